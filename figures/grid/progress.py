"""Progress bars of a grid."""

from tqdm.auto import tqdm


class Bars:
    """Progress bars: one for all steps of the grid with the time that remains, one for each run."""

    def __init__(self, total_steps, runs, name, shown, describe):
        self._shown = shown
        self._describe = describe
        self._bars, self._steps = {}, {}
        self._runs, self._done = runs, 0
        self._overall = tqdm(
            total=total_steps,
            desc=name,
            unit="step",
            unit_scale=True,
            disable=not shown,
            position=0,
            smoothing=0.05,
            leave=True,
            dynamic_ncols=True,
        )
        self._overall.set_postfix_str(f"0/{runs} runs")

    def advance(self, key, configuration, steps, total):
        if not self._shown:
            return
        if key not in self._bars:
            taken = {bar.pos for bar in self._bars.values()}
            place = next(p for p in range(1, len(taken) + 2) if -p not in taken)
            self._bars[key] = tqdm(
                total=total,
                desc=self._describe(configuration)[:40],
                position=place,
                leave=False,
                unit="step",
                unit_scale=True,
                dynamic_ncols=True,
            )
        self._overall.update(steps - self._steps.get(key, 0))
        self._bars[key].update(steps - self._bars[key].n)
        self._steps[key] = steps

    def finish(self, key, total):
        self._overall.update(total - self._steps.pop(key, 0))
        self._done += 1
        self._overall.set_postfix_str(f"{self._done}/{self._runs} runs")
        self.drop(key)

    def drop(self, key):
        self._overall.update(-self._steps.pop(key, 0))
        if key in self._bars:
            self._bars.pop(key).close()

    def close(self):
        for bar in self._bars.values():
            bar.close()
        self._overall.close()
