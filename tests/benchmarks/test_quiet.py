"""Other work on the machine is seen, ours is not taken for it, and no verdict comes beside it."""

import os

import pytest

from benchmarks.cpu import quiet

SECOND = os.sysconf("SC_CLK_TCK")


class System:
    """A folder like /proc, of a system with two cores, and a clock."""

    def __init__(self, folder):
        self.folder, self.clock = folder, 0.0
        self.cores = {0: [0] * 10, 1: [0] * 10}
        self.processes = {}

    def write(self):
        lines = [f"cpu{core} " + " ".join(map(str, ticks)) for core, ticks in self.cores.items()]
        (self.folder / "stat").write_text("\n".join(["cpu 1 2 3", *lines, "intr 5"]))
        for pid, (session, ticks) in self.processes.items():
            path = self.folder / str(pid) / "stat"
            path.parent.mkdir(exist_ok=True)
            fields = ["R", 1, 1, session, 0, 0, 0, 0, 0, 0, 0, *ticks, 0, 0, 0]
            path.write_text(f"{pid} (a ) name) " + " ".join(map(str, fields)))

    def go(self, seconds, **columns):
        """Let time pass, for core 0 in these columns of /proc/stat (in seconds), else idle."""
        names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
        for name, spent in columns.items():
            self.cores[0][names.index(name)] += round(spent * SECOND)
        self.clock += seconds
        self.write()


@pytest.fixture
def system(tmp_path, monkeypatch):
    made = System(tmp_path)
    made.write()
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(quiet.time, "perf_counter", lambda: made.clock)
    return made


@pytest.mark.parametrize("column", ["user", "nice", "system", "irq", "softirq", "steal"])
def test_others_work_is_seen(system, column):
    watch = quiet.Watch([], system.folder)
    system.go(4.0, **{column: 2.0})
    assert watch.others() == pytest.approx(0.25)  # 2 of the 8 seconds that two cores had


@pytest.mark.parametrize("column", ["idle", "iowait"])
def test_waiting_is_no_work(system, column):
    watch = quiet.Watch([], system.folder)
    system.go(4.0, **{column: 2.0})
    assert watch.others() == 0


def test_our_own_sessions_are_not_others(system):
    system.processes = {501: (500, [0, 0, 0, 0]), 900: (899, [0, 0, 0, 0])}
    system.write()
    watch = quiet.Watch([500], system.folder)
    system.processes = {
        501: (500, [SECOND, SECOND, 0, 0]),
        502: (500, [0, 0, SECOND, 0]),  # a child, with one of its own that has ended
        900: (899, [SECOND, 0, 0, 0]),
        os.getpid(): (1, [0, 0, 0, 0]),
    }
    system.go(5.0, user=4.0)
    assert watch.others() == pytest.approx(0.1)


def test_cores_that_are_not_ours_do_not_count(system, monkeypatch):
    monkeypatch.setattr(quiet.os, "sched_getaffinity", lambda _: {1})
    watch = quiet.Watch([], system.folder)
    system.go(4.0, user=4.0)
    assert watch.others() == 0


def test_system_that_does_not_say_is_no_evidence(tmp_path):
    assert quiet.Watch([], tmp_path / "absent").others() is None
    assert quiet.disturbance(None, None, 1.5, (1.49, 1.51)) is None


def test_this_system_answers():
    watch = quiet.Watch()
    share = watch.others()
    assert share is None or 0 <= share <= 1


@pytest.mark.parametrize(
    "before, during, quartiles, reason",
    [
        (0.5, 0.0, (1.49, 1.51), "other work used 50% of the cores' time before it"),
        (0.0, 0.06, (1.49, 1.51), "other work used 6% of the cores' time during it"),
        (0.0, 0.0, (1.2, 1.6), "the ratio's quartiles, 1.20 and 1.60, lie too far apart"),
        (0.02, 0.02, (1.45, 1.55), None),
    ],
)
def test_a_row_is_believed_only_when_it_was_quiet(before, during, quartiles, reason):
    assert quiet.disturbance(before, during, 1.5, quartiles) == reason
