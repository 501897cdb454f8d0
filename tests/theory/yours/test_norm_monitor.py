"""theory.torch.NormMonitor: real loops, their norms and angles, and what the laws say of them."""

import copy
import csv
import json
import math
import time

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra `torch` is not installed")

import torch
from foreign_models import ResNet, make
from torch import nn
from torch.nn import functional as F

from minimal_nn.data import digits
from theory import laws
from theory.torch import NormMonitor, audit
from theory.yours.monitoring import Seen, Track, table
from theory.yours.rates import Rule


def classifier(norm=nn.BatchNorm1d):
    return nn.Sequential(nn.Linear(64, 12, bias=False), norm(12), nn.ReLU(), nn.Linear(12, 10))


def trained(make_optimizer, steps, every=10, seed=0, module=None, noise=0.3, batch=32, **options):
    """The monitor of a run on the digits with fresh random labels, whose gradients do not fade."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        data = digits(dtype=np.float32)
        X, Y = torch.tensor(data.X_train), torch.tensor(data.y_train).long()
        module = classifier() if module is None else module
        optimizer = make_optimizer(module)
        monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=every, **options)
        for _ in range(steps):
            rows = torch.randint(0, len(X), (batch,))
            y, noisy = Y[rows].clone(), torch.rand(batch) < noise
            y[noisy] = torch.randint(0, 10, (int(noisy.sum()),))
            optimizer.zero_grad()
            F.cross_entropy(module(X[rows]), y).backward()
            optimizer.step()
    return monitor


def of(kind, own, **rest):
    """An optimizer whose invariant weights have a group of their own, the second one."""

    def make_optimizer(module):
        others = [p for name, p in module.named_parameters() if name != "0.weight"]
        groups = [{"params": others, "weight_decay": 0.0}, {"params": [module[0].weight], **own}]
        return kind(groups, **rest)

    return make_optimizer


SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
# What is asked, and the optimizer with x = 0.005, or 1e-3, 0.05 for Adam, AdamW
SETTLED = {
    "SGD": of(SGD, {"lr": 0.1, "weight_decay": 0.05}, lr=0.05),
    "Momentum": of(SGD, {"lr": 0.05, "weight_decay": 0.1}, lr=0.005, momentum=0.9),
    "Nesterov": of(SGD, {"lr": 0.05, "weight_decay": 0.1}, lr=0.005, momentum=0.9, nesterov=True),
    "Adam": of(ADAM, {"lr": 0.02, "weight_decay": 0.05}, lr=0.001),
    "AdamW": of(ADAMW, {"lr": 0.02, "weight_decay": 1.0}, lr=0.001),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTLED)
def test_the_prediction_meets_the_norm_of_a_settled_run(name):
    monitor = trained(SETTLED[name], 2500)
    late = [sample for sample in monitor.samples if sample.step >= 1000]
    norm, rest, angle = (
        root_mean_square(late, field) for field in ("norm", "norm_at_rest", "angle")
    )
    assert rest == pytest.approx(norm, rel=0.05)
    assert angle == pytest.approx(late[-1].angle_at_rest, rel=0.06)
    assert monitor.remarks() == () and late[-1].steps_to_rest < 100


def root_mean_square(samples, field):
    return math.sqrt(np.mean([getattr(sample, field) ** 2 for sample in samples]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("Adam", "AdamW"))
def test_the_angle_is_told_where_weights_have_unlike_gradients(kind):
    """In large batches without noise, where the law of the angle, for like ones, is far off."""
    monitor = trained(SETTLED[kind], 800, noise=0.0, batch=512)
    late = [sample for sample in monitor.samples if sample.step >= 400]
    angle, norm = (root_mean_square(late, field) for field in ("angle", "norm"))
    told, rest = (root_mean_square(late, f"{field}_at_rest") for field in ("angle", "norm"))
    assert told * rest == pytest.approx(angle * norm, rel=0.1)  # a step is as long at any |w|
    if kind == "AdamW":
        turn = laws.equilibrium("AdamW", 0.02, 1.0, dims=64, memory=0.9).turn
        assert angle < 0.75 * math.acos(1 - turn)


def walked(s_of, norm, steps=4000, every=20):
    """A Track along the law of SGD's |w| itself, with s = s_of(step), and how often it remarks."""
    rule, track, remarked = Rule("SGD", 0.1, 0.05), Track("w", 10, 50), []
    square = norm * norm
    for step in range(steps):
        slope = s_of(step) ** 2 / square
        if step % every == 0:
            turn = 1 - 1 / math.sqrt(1 + (0.1 / (1 - 0.1 * 0.05)) ** 2 * slope / square)
            ones = np.ones(3)
            seen = (square, slope, slope, 0.0, square, turn)
            track.take(step, rule, Seen(*(ones * number for number in seen)))
            remarked += [text for text in track.remarks() if "it was to be" in text]
        square = (1 - 0.1 * 0.05) ** 2 * square + 0.1**2 * slope
    return track, remarked


@pytest.mark.parametrize("norm", (0.1, 1.0, 8.0))
def test_gradients_that_stay_are_no_remark(norm):
    track, remarked = walked(lambda step: 1.0, norm)
    assert remarked == [] and track.last.norm_at_rest == pytest.approx(track.last.norm, rel=1e-6)
    assert track.last.angle == pytest.approx(track.last.angle_at_rest, rel=1e-6)


@pytest.mark.parametrize("factor, sign", ((1, -1), (1, 1), (0.3, -1)))
def test_gradients_that_fade_or_grow_within_the_time_to_rest_are_said(factor, sign):
    """|w| cannot follow: 1/(4 eta decay) = 50 steps against 50/factor in which s changes."""
    _, remarked = walked(lambda step: math.exp(sign * factor * step / 50), 1.0, steps=600)
    assert len(remarked) > 3
    assert "steps ago it was to be" in remarked[-1] and "do not stay as they are" in remarked[-1]


def test_gradients_that_fade_slowly_are_followed():
    _, remarked = walked(lambda step: math.exp(-step / 50 / 100), 1.0)
    assert remarked == []


EXTREMES = (0.0, 0.0, 1e-70, 1e-30, 1e-12, 1.0, 1e12, 1e30, 1e70)  # squares of float32
OPTIONS = {
    "optimizer": tuple(SETTLED),
    "learning_rate": (0.0, 1e-8, 0.1, 1.0, 1e8),
    "decay": (0.0, 1e-12, 1e-3, 1.0, 30.0),
    "memory": (0.0, 0.9, 0.999),
    "dampening": (0.0, 0.9, 1.0),
    "eps": (0.0, 1e-8),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(200))
def test_no_run_however_odd_is_broken_by_its_monitor(seed):
    """Gradients that vanish, weights that explode, rates of 0: it says what it knows."""
    rng = np.random.default_rng(seed)
    track = Track("w", 7, 5)
    for step in range(4):
        rule = Rule(**{key: values[rng.integers(len(values))] for key, values in OPTIONS.items()})
        seen = Seen(*rng.choice(EXTREMES, (len(Seen._fields), 2)))
        sign = rng.choice((-1, 1), 2)
        seen = seen._replace(remembered=seen.remembered * sign, turns=np.minimum(seen.turns, 2.0))
        sample = track.take(3 * step, rule, seen)
        assert not sample.norm_at_rest <= 0 and not sample.steps_to_rest < 0
        assert table([sample], track.remarks())
        track.load_state_dict(json.loads(json.dumps(track.state_dict())))


@pytest.mark.parametrize("kind", (ADAM, ADAMW))
def test_an_eps_beside_which_gradients_are_small_hides_the_laws(kind):
    """|g| falls as 1/|w|: at 10^8 |w| the default eps is not small, and no law knows of it."""

    def large(module):
        with torch.no_grad():
            module[0].weight.mul_(1e8)
        return kind([module[0].weight], lr=0.01, weight_decay=0.1)

    monitor = trained(large, 2, every=1)
    sample = monitor.samples[-1]
    assert math.isnan(sample.rate) and math.isnan(sample.norm_at_rest) and sample.norm > 0
    assert monitor.remarks() == ("0.weight: eps is not small beside its gradients",)
    ordinary = trained(lambda m: kind([m[0].weight], lr=0.01, weight_decay=0.1), 2, every=1)
    assert ordinary.samples[-1].rate > 0 and ordinary.samples[-1].norm_at_rest > 0
    own = {"lr": 1e-2, "weight_decay": 1e-15, "eps": 1e-7}
    far = trained(lambda m: kind([m[0].weight], **own), 2, every=1)
    assert far.samples[-1].rate > 0 and math.isnan(far.samples[-1].norm_at_rest)
    assert far.remarks() == ("0.weight: eps is not small beside gradients at rest",)


def test_each_number_is_what_it_says(rng):
    """Steps of Nesterov's momentum, against their definition."""
    module = classifier().double()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}
    optimizer = SGD(module.parameters(), **options)
    monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=1)
    X = torch.tensor(rng.standard_normal((32, 64)))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(module(X), torch.arange(32) % 10).backward()
        w, g = (t.detach().numpy().copy() for t in (module[0].weight, module[0].weight.grad))
        optimizer.step()
        new = module[0].weight.detach().numpy()
        norms = np.linalg.norm(w, axis=1)
        sample = monitor.samples[-1]
        assert sample.norm == pytest.approx(np.sqrt(np.mean(norms**2)), rel=1e-12)
        assert sample.rate == pytest.approx(0.1 / (0.1 * sample.norm**2), rel=1e-12)
        cosines = (w * new).sum(1) / norms / np.linalg.norm(new, axis=1)
        angle = np.sqrt(np.mean(np.arccos(cosines) ** 2))
        assert sample.angle == pytest.approx(angle, rel=1e-6)
    track = monitor._groups[0].track
    assert track.dims == 64 and track.means["slopes"].shape == (12,)
    assert track.rule.optimizer == "Nesterov" and g.shape == w.shape


def test_a_run_from_elsewhere_is_told_where_it_goes_and_when():
    """Weights eight times as large come near their rest when the first sample said they would."""

    def large(module):
        with torch.no_grad():
            module[0].weight.mul_(8)
        return SETTLED["SGD"](module)

    monitor = trained(large, 800, window=20)
    first, last = monitor.samples[3], monitor.samples[-1]
    assert first.norm > 8 * last.norm and first.norm_at_rest == pytest.approx(last.norm, rel=0.2)
    reached = next(s.step for s in monitor.samples if s.norm <= 1.05 * last.norm_at_rest)
    assert first.step + first.steps_to_rest == pytest.approx(reached, rel=0.1)


# What a loop does with gradients


def steps_of(change, optimizer=None):
    """The samples of ten steps with a change of how gradients come about."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = classifier()
        optimizer = (optimizer or SETTLED["Momentum"])(module)
        monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=1)
        X, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
        for _ in range(10):
            optimizer.zero_grad()
            change(module, optimizer, X, y)
    return monitor.samples


def halves(module, X, y):
    return sum(F.cross_entropy(module(X[i : i + 32]), y[i : i + 32]) / 2 for i in (0, 32))


def plain(module, optimizer, X, y):
    halves(module, X, y).backward()
    optimizer.step()


def accumulated(module, optimizer, X, y):
    for half in (slice(32), slice(32, 64)):
        (F.cross_entropy(module(X[half]), y[half]) / 2).backward()
    optimizer.step()


def scaled(module, optimizer, X, y):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(halves(module, X, y)).backward()
    scaler.step(optimizer)


def assert_same(found, expected):
    rows = [np.array([s[2:] for s in samples]) for samples in (found, expected)]
    np.testing.assert_allclose(*rows, rtol=1e-4)


@pytest.mark.parametrize("change", (accumulated, scaled))
def test_accumulated_and_scaled_gradients_are_seen_as_the_step_takes_them(change):
    assert_same(steps_of(change), steps_of(plain))


def test_a_fused_optimizer_under_amp_is_seen_unscaled():
    """Its gradients are still scaled when the hooks run, and `found_inf` may skip the step."""

    def fused(module):
        return of(ADAMW, {"lr": 0.02, "weight_decay": 1.0}, lr=0.001, fused=True)(module)

    assert_same(steps_of(scaled, optimizer=fused), steps_of(plain, optimizer=fused))


@pytest.mark.parametrize("fused", (False, True))
@pytest.mark.parametrize(
    "bad_steps, every, steps",
    (
        ((False, True, False), 1, [0, 1]),
        ((True, True, False, False, False, False), 2, [0, 2]),  # as a scale that is too large
        ((False, True, False, False, False), 2, [0, 2]),
    ),
)
def test_steps_that_amp_skips_are_neither_seen_nor_counted(fused, bad_steps, every, steps):
    """A step that was to be measured and is skipped is made up for by the next."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = classifier()
        optimizer = ADAMW(module.parameters(), lr=0.1, fused=fused)
        monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=every)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for bad in bad_steps:
            optimizer.zero_grad()
            loss = F.cross_entropy(module(torch.randn(32, 64)), torch.arange(32) % 10)
            scaler.scale(loss * (math.inf if bad else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert [sample.step for sample in monitor.samples] == steps
    assert monitor.step == bad_steps.count(False) == monitor.state_dict()["step"]
    again = NormMonitor(module, optimizer, {"0.weight": 0}, every=every)
    again.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert again.step == monitor.step and again.state_dict() == monitor.state_dict()


def test_clipped_gradients_count_as_they_are():
    def clipped(module, optimizer, X, y):
        F.cross_entropy(module(X), y).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1e-3)
        optimizer.step()

    small, large = (samples[-1] for samples in (steps_of(clipped), steps_of(plain)))
    assert small.norm_at_rest < large.norm_at_rest / 5 and small.angle < large.angle / 5


def test_maximize_is_minimizing_the_negative():
    def other(module, optimizer, X, y):
        (-F.cross_entropy(module(X), y)).backward()
        optimizer.step()

    def same(module, optimizer, X, y):
        F.cross_entropy(module(X), y).backward()
        optimizer.step()

    own = {"lr": 0.05, "weight_decay": 0.1}
    options = {"lr": 0.005, "momentum": 0.9, "dampening": 0.5}
    maximized = of(SGD, own, maximize=True, **options)
    assert_same(
        steps_of(other, optimizer=maximized), steps_of(same, optimizer=of(SGD, own, **options))
    )


def test_frozen_parameters_and_schedules(rng):
    module = classifier()
    optimizer = SGD(module.parameters(), lr=0.2, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=1)
    for step in range(3):
        optimizer.zero_grad()
        if step != 1:
            F.cross_entropy(module(torch.randn(32, 64)), torch.arange(32) % 10).backward()
        optimizer.step()
        schedule.step()
    assert [sample.step for sample in monitor.samples] == [0, 2]
    rates = [sample.rate * sample.norm**2 for sample in monitor.samples]
    assert rates == pytest.approx([0.2, 0.05])


# Models that nobody made for it


@pytest.mark.parametrize(
    "name, kind", (("residual", SGD), ("qk norm", ADAMW), ("group norm", ADAMW))
)
def test_real_models_are_watched_by_their_audit(name, kind):
    module, loss, X, y = make(name, 0, torch.float32)
    decay = [p for p in module.parameters() if p.ndim > 1]
    rest = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": rest, "weight_decay": 0.0}, {"params": decay, "weight_decay": 0.05}]
    optimizer = kind(groups, lr=0.01)
    report = audit(module, loss, X, y, optimizer)
    monitor = NormMonitor(module, optimizer, report, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        loss(module(X), y).backward()
        optimizer.step()
    invariant = [
        row for row in report.rows if row.invariant in ("per unit", "in blocks", "as a whole")
    ]
    first = {s.name: s for s in monitor.samples if s.step == 0}
    assert set(first) == {", ".join(row.parameters) for row in invariant} and first
    for row in invariant:
        sample = first[", ".join(row.parameters)]
        assert sample.norm == pytest.approx(row.norm, rel=1e-4)
        assert sample.rate == pytest.approx(row.effective_rate, rel=1e-4, nan_ok=True)
        if kind is SGD:  # without memory the audit's law is the monitor's, unit by unit
            assert sample.norm_at_rest == pytest.approx(row.equilibrium, rel=0.2, nan_ok=True)
    assert len(str(monitor).splitlines()) >= 2 + len(first)


def test_the_cost_of_a_sample_is_at_most_a_step():
    """So every 50th step, the default, costs 2 % at most; measured in processor time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def seconds(every):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = ResNet(16)
            optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
            groups = {name: 0 for name, p in module.named_parameters() if p.ndim == 4}
            NormMonitor(module, optimizer, groups, every=every)
            X, y = torch.randn(32, 3, 16, 16), torch.randint(0, 4, (32,))
            start = time.process_time()
            for _ in range(20):
                optimizer.zero_grad()
                F.cross_entropy(module(X), y).backward()
                optimizer.step()
        return time.process_time() - start

    try:
        pairs = [(seconds(1), seconds(10**6)) for _ in range(4)]
    finally:
        torch.set_num_threads(threads)
    assert min(pair[0] for pair in pairs) < 2 * min(pair[1] for pair in pairs)


# State, sinks, remarks


def test_a_resumed_monitor_goes_on_as_if_nothing_had_been():
    def run(interrupted):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = classifier()
            optimizer = SETTLED["AdamW"](module)
            monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=2)
            X, y = torch.randn(64, 64), torch.randint(0, 10, (64,))
            for step in range(9):
                if step == 5 and interrupted:
                    state = json.loads(json.dumps(monitor.state_dict()))
                    monitor.close()
                    monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=2)
                    monitor.load_state_dict(state)
                optimizer.zero_grad()
                F.cross_entropy(module(X), y).backward()
                optimizer.step()
        return monitor

    whole, resumed = run(False), run(True)
    assert resumed.samples == whole.samples and len(whole.samples) == 5
    assert resumed.state_dict() == whole.state_dict()
    with pytest.raises(ValueError, match="state: got the groups 0.weight, expected 3.weight"):
        module = classifier()
        other = NormMonitor(module, SGD(module.parameters(), lr=0.1), {"3.weight": 0})
        other.load_state_dict(whole.state_dict())


class Writer:
    """TensorBoard's or Weights & Biases' methods."""

    def __init__(self):
        self.seen = []


class Board(Writer):
    def add_scalar(self, tag, value, step):
        self.seen.append((tag, value, step))


class Run(Writer):
    def log(self, values, step):
        self.seen.append((values, step))


def test_samples_go_to_files_boards_runs_and_functions(tmp_path):
    board, run, seen = Board(), Run(), []
    path = tmp_path / "norms.csv"
    for _ in range(2):  # a second monitor adds to the file
        monitor = trained(SETTLED["SGD"], 4, every=2, sinks=[path, board, run, seen.append])
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "2", "0", "2"]
    assert float(rows[-1]["norm"]) == monitor.samples[-1].norm
    tags = [tag for tag, _, step in board.seen if step == 2]
    assert "norm/0.weight" in tags and "norm_at_rest/0.weight" in tags
    assert run.seen[-1][1] == 2 and run.seen[-1][0]["rate/0.weight"] == monitor.samples[-1].rate
    assert seen[-1] == monitor.samples[-1:]
    assert not any(isinstance(v, float) and math.isnan(v) for _, v, _ in board.seen)
    assert trained(SETTLED["SGD"], 1, sinks=str(tmp_path / "other.csv")).samples


def test_what_is_off_is_said():
    growing = trained(lambda m: SGD(m.parameters(), lr=2.0), 60, every=5)
    (text,) = growing.remarks()
    assert text.startswith("0.weight: |w| ") and "without weight decay" in text
    assert text in str(growing) and "1 remarks" in repr(growing)
    assert math.isnan(growing.samples[-1].norm_at_rest)

    def silenced(module):
        with torch.no_grad():
            module[1].bias[:4] = -100.0
        return SETTLED["SGD"](module)

    dead = trained(silenced, 12, every=2)
    assert "0.weight: 4 of 12 parts have had no gradient for 5 samples" in dead.remarks()[0]
    steep = trained(of(SGD, {"lr": 1.0, "weight_decay": 3.0}, lr=0.01), 2, every=1)
    assert "learning rate times decay is too large" in steep.remarks()[0]
    fading = trained(of(SGD, {"lr": 0.01, "weight_decay": 40.0}, lr=0.0), 6, every=1)
    assert "times as large: gradients fade while decay goes on" in fading.remarks()[0]


def test_it_is_drawn():
    figure = trained(SETTLED["AdamW"], 6, every=2).plot()
    above, below = figure.axes
    assert len(above.lines) == len(below.lines) == 2 and above.get_yscale() == "log"


def test_optimizers_without_a_law_are_measured_alone():
    for optimizer in (
        lambda m: torch.optim.RMSprop(m.parameters(), lr=1e-3, weight_decay=0.1),
        lambda m: ADAM(m.parameters(), lr=1e-3, weight_decay=0.1, amsgrad=True),
    ):
        sample = trained(optimizer, 3, every=1).samples[-1]
        assert sample.norm > 0 and sample.angle > 0 and math.isnan(sample.norm_at_rest)


class FullyShardedDataParallel(nn.Module):
    """A name that a sharded module has."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    "error, words, change",
    (
        (TypeError, "module: got int, expected", {"module": 1}),
        (TypeError, "optimizer: got str, expected a torch.optim", {"optimizer": "SGD"}),
        (TypeError, "groups: got int, expected an Audit, or", {"groups": 1}),
        (ValueError, "groups: got 'w', expected names of", {"groups": {"w": 0}}),
        (ValueError, "groups: got the axis 2 of '0.weight'", {"groups": {"0.weight": 2}}),
        (ValueError, "groups: got none with parameters of this", {"groups": {}}),
        (ValueError, "every: got 0, expected an integer >= 1", {"every": 0}),
        (ValueError, "window: got 1.5, expected an integer", {"window": 1.5}),
        (TypeError, "sinks: got int, expected a path", {"sinks": [1]}),
        (FileNotFoundError, "sinks: the folder .* does not exist", {"sinks": ["no/such/a.csv"]}),
        (
            ValueError,
            "module: its parameters are sharded .FullyShardedDataParallel.",
            {"module": FullyShardedDataParallel(nn.Linear(2, 2))},
        ),
    ),
)
def test_what_does_not_fit_is_refused(error, words, change):
    module = classifier()
    optimizer = SGD(module.parameters(), lr=0.1)
    arguments = {"module": module, "optimizer": optimizer, "groups": {"0.weight": 0}, **change}
    with pytest.raises(error, match=words):
        NormMonitor(**arguments)


def test_another_models_audit_is_refused():
    module, loss, X, y = make("batch norm", 0, torch.float32)
    report = audit(module, loss, X, y)
    other = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="groups: the audit has .*, which the module has not"):
        NormMonitor(other, SGD(other.parameters(), lr=0.1), report)


def test_a_real_dtensor_is_refused():
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        module = classifier()

        def shard(name, part, mesh):
            for key, parameter in list(part.named_parameters(recurse=False)):
                sharded = nn.Parameter(distribute_tensor(parameter.data, mesh, [Shard(0)]))
                part.register_parameter(key, sharded)

        module = distribute_module(module, mesh, shard)
        optimizer = SGD(module.parameters(), lr=0.1)
        with pytest.raises(ValueError, match="module: its parameters are sharded .DTensor."):
            NormMonitor(module, optimizer, {"0.weight": 0})
    finally:
        distributed.destroy_process_group()


def test_a_closure_is_refused():
    module = classifier()
    optimizer = SGD(module.parameters(), lr=0.1)
    NormMonitor(module, optimizer, {"0.weight": 0})

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(module(torch.randn(8, 64)), torch.arange(8))
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="NormMonitor: the optimizer is called with a closure"):
        optimizer.step(closure)


def test_a_closed_monitor_sees_nothing_and_changes_nothing():
    states = []
    for watched in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = classifier()
            optimizer = SETTLED["Momentum"](module)
            if watched:
                monitor = NormMonitor(module, optimizer, {"0.weight": 0}, every=1)
            for step in range(4):
                if watched and step == 2:
                    monitor.close()
                optimizer.zero_grad()
                F.cross_entropy(module(torch.randn(32, 64)), torch.arange(32) % 10).backward()
                optimizer.step()
            states.append(copy.deepcopy(module.state_dict()))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert [sample.step for sample in monitor.samples] == [0, 1]


def test_the_prediction_moves_with_the_law(monkeypatch):
    """Its constants are those of theory.laws."""
    before = trained(SETTLED["Momentum"], 3, every=1).samples[-1]
    right = laws.BALANCES["Momentum"]
    monkeypatch.setitem(laws.BALANCES, "Momentum", lambda x, rho: 1.0816 * right(x, rho))
    after = trained(SETTLED["Momentum"], 3, every=1).samples[-1]
    assert after.norm_at_rest == pytest.approx(1.0816**0.25 * before.norm_at_rest, rel=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", (SGD, ADAM, ADAMW))
def test_a_warm_up_from_0_is_watched_and_a_rate_of_0_predicts_nothing(kind):
    def make_optimizer(module):
        optimizer = kind(module.parameters(), lr=0.01, weight_decay=0.01)
        rates = iter((0.0, 0.0, 0.01, 0.01, 0.0))
        optimizer.register_step_pre_hook(lambda own, *_: own.param_groups[0].update(lr=next(rates)))
        return optimizer

    monitor = trained(make_optimizer, 5, every=1)
    assert [sample.rate > 0 for sample in monitor.samples] == [False, False, True, True, False]
    known = [not math.isnan(sample.norm_at_rest) for sample in monitor.samples]
    assert known == [False, False, True, True, False]
    assert monitor.remarks() == () and "0.weight" in str(monitor)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decay", (1.0, 1.5))
def test_decay_that_forgets_w_within_a_step_has_no_time_to_rest(decay):
    monitor = trained(of(SGD, {"weight_decay": decay, "lr": 1.0}, lr=1e-3), 8, every=1)
    assert all(math.isnan(s.steps_to_rest) or s.steps_to_rest == 0 for s in monitor.samples)
    assert "0.weight" in str(monitor)


def test_dampening_that_keeps_gradients_out_is_measured_without_a_prediction():
    own = {"momentum": 0.9, "dampening": 1.0, "weight_decay": 0.01}
    monitor = trained(of(SGD, own, lr=0.1), 3, every=1)
    assert [sample.step for sample in monitor.samples] == [0, 1, 2]
    assert math.isnan(monitor.samples[-1].norm_at_rest) and "0.weight" in str(monitor)


def test_a_run_that_diverged_is_told():
    monitor = trained(of(SGD, {"lr": float("inf")}, lr=0.1), 3, every=1)
    assert len(monitor.samples) == 0
    told = "0.weight: weights or gradients are not finite at step 2: the run has diverged"
    assert monitor.remarks() == (told,)


@pytest.mark.parametrize("state", ({}, None, {"step": 3}))
def test_what_no_monitor_returned_is_not_loaded(state):
    monitor = trained(of(SGD, {}, lr=0.1), 1)
    with pytest.raises(ValueError, match="state: got .*, expected what state_dict returned"):
        monitor.load_state_dict(state)


def test_sinks_that_cannot_take_samples_are_refused_at_once(tmp_path):
    import logging

    refused = (
        (tmp_path, IsADirectoryError),
        (tmp_path / "none" / "norms.csv", FileNotFoundError),
        (logging.getLogger(__name__), TypeError),
        (math, TypeError),
        (None, TypeError),
    )
    for sink, error in refused:
        for sinks in (sink, [sink]):
            with pytest.raises(error, match="sinks: "):
                trained(of(SGD, {}, lr=0.1), 1, sinks=sinks)
    assert len(trained(of(SGD, {}, lr=0.1), 1, sinks=str(tmp_path / "one.csv")).samples) == 1
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 2
