"""Learning-rate schedules: their formulae, PyTorch's numbers, resuming bit for bit, wrong arguments."""

import json
import math
import warnings

import numpy as np
import pytest
from helpers import import_or_skip
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import fastrnn as fr


def optimizer(lr=0.5):
    return fr.SGD(fr.Linear(2, 1, seed=1), lr=lr)


# name -> the schedule of an optimizer, what PyTorch's is called and takes
CASES = {
    "step": (lambda o: fr.StepLR(o, 3, gamma=0.3), lambda t, o: t.StepLR(o, 3, gamma=0.3)),
    "step, default": (lambda o: fr.StepLR(o, 2), lambda t, o: t.StepLR(o, 2)),
    "exponential": (lambda o: fr.ExponentialLR(o, 0.9), lambda t, o: t.ExponentialLR(o, 0.9)),
    "cosine": (lambda o: fr.CosineAnnealingLR(o, 7), lambda t, o: t.CosineAnnealingLR(o, 7)),
    "cosine to 0.1": (lambda o: fr.CosineAnnealingLR(o, 6, 0.1), lambda t, o: t.CosineAnnealingLR(o, 6, 0.1)),
    "warm-up": (lambda o: fr.WarmupLR(o, 5), lambda t, o: t.LinearLR(o, total_iters=5)),
    "warm-up from 0.1": (lambda o: fr.WarmupLR(o, 4, 0.1), lambda t, o: t.LinearLR(o, 0.1, total_iters=4)),
    "warm-up, step": (
        lambda o: fr.WarmupLR(fr.StepLR(o, 3), 5),
        lambda t, o: t.SequentialLR(o, [t.LinearLR(o, total_iters=5), t.StepLR(o, 3)], [5]),
    ),
    "warm-up, cosine": (
        lambda o: fr.WarmupLR(fr.CosineAnnealingLR(o, 8), 3, 0.2),
        lambda t, o: t.SequentialLR(o, [t.LinearLR(o, 0.2, total_iters=3), t.CosineAnnealingLR(o, 8)], [3]),
    ),
}
PLATEAUS = {
    "default": {},
    "impatient": {"patience": 0, "factor": 0.5},
    "with rests": {"patience": 1, "cooldown": 3, "factor": 0.5},
    "largest": {"mode": "max", "patience": 2, "factor": 0.3},
    "absolute": {"threshold": 0.3, "threshold_mode": "abs", "patience": 1},
    "largest, absolute": {"mode": "max", "threshold": 0.3, "threshold_mode": "abs", "patience": 1},
    "with a floor": {"patience": 0, "factor": 0.5, "min_lr": 0.1},
    "no small changes": {"patience": 0, "factor": 0.5, "eps": 0.1},
    "relative": {"threshold": 0.2, "patience": 1, "factor": 0.5},
}
ALL = {name: make for name, (make, _) in CASES.items()} | {
    "plateau": lambda o: fr.ReduceLROnPlateau(o, patience=1, cooldown=1, factor=0.5),
    "warm-up, plateau": lambda o: fr.WarmupLR(fr.ReduceLROnPlateau(o, patience=1, factor=0.5), 4),
    "warm-up, warm-up": lambda o: fr.WarmupLR(fr.WarmupLR(o, 3), 4),
}


def advance(name, schedule, metric):
    """One step; schedules with a plateau get the metric."""
    schedule.step(*((metric,) if "plateau" in name else ()))


def metrics(seed, count):
    """Losses that fall, stay and rise."""
    return np.abs(np.random.default_rng(seed).standard_normal(count).cumsum()).tolist()


@pytest.fixture
def schedulers():
    """PyTorch's, quiet: it warns of schedules without an optimizer's step, and of its own SequentialLR."""
    torch = import_or_skip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield lambda lr: torch.optim.SGD([torch.zeros(1)], lr=lr), torch.optim.lr_scheduler


# --- values -------------------------------------------------------------------------------------------------


def test_formulae():
    """Each schedule's learning rate at every t, by its formula."""
    half = [(1 + math.cos(math.pi * t / 10)) / 2 for t in range(20)]
    expected = {
        "step": (lambda o: fr.StepLR(o, 4, 0.25), [0.5 * 0.25 ** (t // 4) for t in range(20)]),
        "exponential": (lambda o: fr.ExponentialLR(o, 0.75), [0.5 * 0.75**t for t in range(20)]),
        "cosine": (lambda o: fr.CosineAnnealingLR(o, 10, 0.25), [0.25 + 0.25 * x for x in half]),
        "warm-up": (lambda o: fr.WarmupLR(o, 8, 0.0), [0.5 * min(t / 8, 1) for t in range(20)]),
        "none": (lambda o: fr.WarmupLR(o, 0), [0.5] * 20),
    }
    for name, (make, rates) in expected.items():
        o = optimizer()
        schedule = make(o)
        for t, rate in enumerate(rates):
            assert o.lr == pytest.approx(rate, rel=1e-15, abs=1e-17), f"{name}, t = {t}"
            assert schedule.lr == o.lr
            schedule.step()


@pytest.mark.parametrize("name", CASES)
def test_torch(name, schedulers):
    """Forty steps, the same learning rates."""
    make_peer, peers = schedulers
    mine, peer = optimizer(0.3), make_peer(0.3)
    schedule, peer_schedule = CASES[name][0](mine), CASES[name][1](peers, peer)
    for t in range(40):
        assert mine.lr == pytest.approx(peer.param_groups[0]["lr"], rel=1e-12, abs=1e-15), f"t = {t}"
        schedule.step()
        peer.step()
        peer_schedule.step()


@pytest.mark.parametrize("name", PLATEAUS)
def test_plateau_of_torch(name, schedulers):
    """A hundred metrics, NaN and infinity among them: lowered at the same steps, to the same bits."""
    make_peer, peers = schedulers
    lowered = 0
    for seed in range(5):
        mine, peer = optimizer(0.3), make_peer(0.3)
        schedule = fr.ReduceLROnPlateau(mine, **PLATEAUS[name])
        peer_schedule = peers.ReduceLROnPlateau(peer, **PLATEAUS[name])
        values = metrics(seed, 100)
        values[seed], values[50], values[70] = math.inf, math.nan, -math.inf
        for t, metric in enumerate(values[:60] if seed else values):
            before = mine.lr
            schedule.step(metric)
            peer_schedule.step(metric)
            assert mine.lr == peer.param_groups[0]["lr"], f"t = {t}"
            lowered += mine.lr < before
    assert lowered


def test_plateau_after_warm_up():
    """Metrics of the warm-up are not looked at; afterwards the plateau works."""
    o = optimizer()
    schedule, rates = fr.WarmupLR(fr.ReduceLROnPlateau(o, patience=0, factor=0.5), 2, 0.0), [o.lr]
    for loss in (1.0, 1.0, 3.0, 2.0, 2.0, 2.0):
        schedule.step(loss)
        rates.append(o.lr)
    assert rates == [0.0, 0.25, 0.5, 0.5, 0.5, 0.25, 0.125]


def test_the_optimizer_uses_it():
    """The step after `schedule.step()` is made with the new learning rate."""
    layer = fr.Linear(2, 1, bias=False, dtype="float64", seed=1)
    o = fr.SGD(layer, lr=0.5)
    schedule = fr.StepLR(o, 1, gamma=0.5)
    for rate in (0.5, 0.25, 0.125):
        before = layer.params["weight"].copy()
        layer.grads["weight"][...] = 1
        o.step()
        assert np.abs(before - layer.params["weight"] - rate).max() < 1e-15
        schedule.step()


# --- stopping and going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
@given(seed=seeds, stop=st.integers(0, 12))
def test_resume(name, seed, stop):
    """Through JSON, into a schedule of an optimizer with another learning rate: the same bits from there on."""
    o = optimizer(0.3)
    schedule, values = ALL[name](o), metrics(seed, 25)
    for metric in values[:stop]:
        advance(name, schedule, metric)
    saved = json.loads(json.dumps({"schedule": schedule.state_dict(), "lr": o.lr}))
    other = optimizer(0.7)
    resumed = ALL[name](other)
    resumed.load_state_dict(saved["schedule"])
    assert other.lr == saved["lr"]
    for metric in values[stop:]:
        advance(name, schedule, metric)
        advance(name, resumed, metric)
        assert other.lr == o.lr
    assert resumed.state_dict() == schedule.state_dict()


def test_options_are_the_states():
    """As for an optimizer: what was saved holds, not what the new one was made with."""
    o = optimizer()
    schedule = fr.StepLR(o, 1, gamma=0.5)
    schedule.load_state_dict(fr.StepLR(optimizer(0.25), 2, gamma=0.1).state_dict())
    assert schedule.state_dict() == {"lr": 0.25, "base_lr": 0.25, "steps": 0, "step_size": 2, "gamma": 0.1}


@pytest.mark.parametrize("name", ALL)
def test_state_that_does_not_fit_changes_nothing(name):
    """Names, types and numbers are checked before anything is taken over."""
    o = optimizer()
    schedule = ALL[name](o)
    for metric in metrics(1, 7):
        advance(name, schedule, metric)
    good, rate = schedule.state_dict(), o.lr
    wrong = [
        (None, TypeError),
        ({}, ValueError),
        (good | {"more": 1}, ValueError),
        (good | {"steps": -1}, ValueError),
        (good | {"steps": 1.5}, TypeError),
        (good | {"lr": math.nan}, ValueError),
        (good | {"lr": "fast"}, TypeError),
        (good | {"base_lr": -1.0}, ValueError),
        ({key: value for key, value in good.items() if key != "base_lr"}, ValueError),
        ((fr.StepLR if "exponential" in name else fr.ExponentialLR)(optimizer(), 1).state_dict(), ValueError),
    ]
    wrong += [(good | {n: -1}, ValueError) for n in ("step_size", "gamma", "T_max", "factor", "bad_steps") if n in good]
    if name.startswith("warm-up"):
        after = None if good["after"] else fr.StepLR(optimizer(), 1).state_dict()
        wrong.append((good | {"lr": 0.1, "after": after}, ValueError))
    if good.get("after"):
        wrong.append((good | {"lr": 0.1, "after": good["after"] | {"steps": -1}}, ValueError))
    if "best" in good:
        wrong.append((good | {"best": "good"}, TypeError))
    for state, kind in wrong:
        with pytest.raises(kind):
            schedule.load_state_dict(state)
        assert (schedule.state_dict(), o.lr) == (good, rate)


# --- wrong arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda o: fr.StepLR(fr.Linear(2, 1), 3), TypeError, "optimizer is Linear, expected one such as Adam"),
        (lambda o: fr.StepLR(o, 0), ValueError, "step_size is 0, expected at least 1"),
        (lambda o: fr.StepLR(o, 2.0), TypeError, "step_size is float, expected an int"),
        (lambda o: fr.StepLR(o, 2, -0.1), ValueError, "gamma is -0.1, expected a number from 0"),
        (lambda o: fr.ExponentialLR(o, math.nan), ValueError, "gamma is nan"),
        (lambda o: fr.ExponentialLR(o, math.inf), ValueError, "gamma is inf"),
        (lambda o: fr.ExponentialLR(o, "0.9"), TypeError, "gamma is str, expected a number"),
        (lambda o: fr.CosineAnnealingLR(o, 0), ValueError, "T_max is 0"),
        (lambda o: fr.CosineAnnealingLR(o, 5, -1), ValueError, "eta_min is -1"),
        (lambda o: fr.ReduceLROnPlateau(o, "low"), ValueError, "mode is 'low', expected one of min, max"),
        (lambda o: fr.ReduceLROnPlateau(o, threshold_mode="no"), ValueError, "threshold_mode is 'no'"),
        (
            lambda o: fr.ReduceLROnPlateau(o, factor=1.0),
            ValueError,
            "factor is 1.0, expected a number from 0 to below 1",
        ),
        (lambda o: fr.ReduceLROnPlateau(o, patience=-1), ValueError, "patience is -1, expected at least 0"),
        (lambda o: fr.ReduceLROnPlateau(o, min_lr=-1), ValueError, "min_lr is -1"),
        (lambda o: fr.ReduceLROnPlateau(o).step("low"), TypeError, "metric is str, expected a number"),
        (lambda o: fr.WarmupLR(None, 3), TypeError, "after is NoneType, expected an optimizer or a schedule"),
        (lambda o: fr.WarmupLR(o, -1), ValueError, "total_iters is -1, expected at least 0"),
        (lambda o: fr.WarmupLR(o, 3, 1.5), ValueError, "start_factor is 1.5, expected a number from 0 to 1"),
    ],
)
def test_wrong_arguments(call, kind, said):
    """The argument, what was expected, what came; the learning rate is as it was."""
    o = optimizer()
    with pytest.raises(kind, match=said):
        call(o)
    assert o.lr == 0.5


def test_warm_up_before_a_schedule_under_way():
    """Its learning rate is no beginning to come back to."""
    schedule = fr.StepLR(optimizer(), 1)
    schedule.step()
    with pytest.raises(ValueError, match="after has made 1 steps, expected a schedule that has made none"):
        fr.WarmupLR(schedule, 3)


def test_a_step_that_fails_does_not_count():
    """A wrong metric, or a learning rate that overflows, leaves the schedule as it was."""
    o = optimizer()
    growing = fr.ExponentialLR(o, 1e200)
    growing.step()
    plateau = fr.WarmupLR(fr.ReduceLROnPlateau(optimizer()), 0)
    for schedule, args, kind in ((growing, (), (ValueError, OverflowError)), (plateau, ("low",), TypeError)):
        before = schedule.state_dict()
        with pytest.raises(kind):
            schedule.step(*args)
        assert schedule.state_dict() == before
