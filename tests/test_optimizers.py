"""Optimizers and clipping against the reference, in both types; stopping and going on again."""

import numpy as np
import pytest
import reference
from helpers import assert_close, assert_same_bits, bits_of

import fastrnn as fr

# name -> class, options here, options of the reference, the reference
CASES = {
    "SGD": ("SGD", {"lr": 0.1}, reference.sgd),
    "SGD with momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}, reference.sgd),
    "Adagrad": ("Adagrad", {"lr": 0.1}, reference.adagrad),
    "Adagrad, large eps": ("Adagrad", {"lr": 0.1, "eps": 0.1}, reference.adagrad),
    "Adagrad of min-char-rnn": ("Adagrad", {"lr": 0.1, "eps": 1e-8, "inside_sqrt": True}, reference.adagrad),
    "Adagrad, large eps inside": ("Adagrad", {"lr": 0.1, "eps": 0.1, "inside_sqrt": True}, reference.adagrad),
    "RMSProp": ("RMSProp", {"lr": 0.01}, reference.rmsprop),
    "RMSProp, other constants": ("RMSProp", {"lr": 0.01, "alpha": 0.9, "eps": 0.1}, reference.rmsprop),
    "Adam": ("Adam", {}, reference.adam),
    "Adam, other constants": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 0.1}, reference.adam),
}
every_case = pytest.mark.parametrize("case", CASES)


def model_of(dtype):
    """Parameters of several sizes, tails of every vector among them."""
    return fr.Sequential(fr.LSTM(3, 5, dtype=dtype, seed=1), fr.Linear(5, 7, dtype=dtype, seed=2))


def gradients_of(model, steps):
    """Random gradients for some steps, of very different sizes."""
    rng = np.random.default_rng(8)
    return [
        {n: (scale * rng.standard_normal(a.shape)).astype(a.dtype) for n, a in model.params.items()}
        for scale in 10.0 ** rng.integers(-3, 2, steps)
    ]


def step(model, optimizer, gradients):
    for name, gradient in gradients.items():
        model.grads[name][...] = gradient
    optimizer.step()


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
def test_weights_after_each_step(case, dtype, tolerance):
    """Every weight after each of twenty steps is the formula's."""
    kind, options, formula = CASES[case]
    model = model_of(dtype)
    gradients = gradients_of(model, 20)
    start = {name: array.astype("float64") for name, array in model.params.items()}
    expected = {n: list(formula(w, [g[n].astype("float64") for g in gradients], **options)) for n, w in start.items()}
    optimizer = getattr(fr, kind)(model, **options)
    for number, gradient in enumerate(gradients):
        step(model, optimizer, gradient)
        assert_close(model.params, {name: weights[number] for name, weights in expected.items()}, tolerance)


@every_case
def test_step_leaves_the_gradients(case):
    """step() reads the gradients; zero_grad() is the caller's."""
    kind, options, _ = CASES[case]
    model = model_of("float32")
    (gradients,) = gradients_of(model, 1)
    step(model, getattr(fr, kind)(model, **options), gradients)
    assert_same_bits(model.grads, gradients)


@every_case
def test_resume(case):
    """Stopped after ten steps and taken up by a new optimizer, the next ten give the same bits."""
    kind, options, _ = CASES[case]
    model = model_of("float32")
    gradients = gradients_of(model, 20)
    optimizer = getattr(fr, kind)(model, **options)
    for gradient in gradients[:10]:
        step(model, optimizer, gradient)
    weights, saved = model.state_dict(), optimizer.state_dict()
    assert all(isinstance(value, np.ndarray | int | float) for value in saved.values())
    for gradient in gradients[10:]:
        step(model, optimizer, gradient)

    other = model_of("float32")
    other.load_state_dict(weights)
    resumed = getattr(fr, kind)(other, **options)
    resumed.load_state_dict(saved)
    for gradient in gradients[10:]:
        step(other, resumed, gradient)
    assert_same_bits(other.params, model.params)


def test_learning_rate_can_be_set():
    """opt.lr = ... holds from the next step on."""
    model = model_of("float64")
    optimizer = fr.SGD(model, lr=1.0)
    (gradients,) = gradients_of(model, 1)
    before = model.state_dict()
    optimizer.lr = 0.25
    step(model, optimizer, gradients)
    assert_close(model.params, {name: before[name] - 0.25 * g for name, g in gradients.items()}, 1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-6)])
@pytest.mark.parametrize("part", [0.3, 0.999, 1.001, 50])
def test_clip_grad_norm(dtype, tolerance, part):
    """Algorithm 1: above the threshold scaled down to it, below untouched; returns the norm before."""
    model = model_of(dtype)
    (gradients,) = gradients_of(model, 1)
    for name, gradient in gradients.items():
        model.grads[name][...] = gradient
    exact = {name: gradient.astype("float64") for name, gradient in gradients.items()}
    _, norm = reference.clip_by_norm(exact, 1.0)
    clipped, _ = reference.clip_by_norm(exact, part * norm)
    returned = fr.clip_grad_norm(model, part * norm)
    assert type(returned) is float
    assert returned == pytest.approx(norm, rel=tolerance)
    assert_close(model.grads, clipped, tolerance)
    if part > 1:
        assert_same_bits(model.grads, gradients)


def test_clip_grad_norm_of_nothing():
    """No gradient: norm 0, and no division by it."""
    model = model_of("float32")
    assert fr.clip_grad_norm(model, 1.0) == 0.0
    assert all(np.all(gradient == 0) for gradient in model.grads.values())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clip_grad_norm_tells_of_a_lost_gradient(bad):
    """A gradient that is no number makes the norm none: the caller can see it."""
    model = model_of("float32")
    model.grads["1.bias"][3] = bad
    with np.errstate(invalid="ignore"):
        norm = fr.clip_grad_norm(model, 1.0)
    assert not np.isfinite(norm)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_clip_grad_value(dtype):
    """Every element to the limit, the others untouched, NaN still NaN."""
    model = model_of(dtype)
    (gradients,) = gradients_of(model, 1)
    gradients["1.bias"][2] = np.nan
    for name, gradient in gradients.items():
        model.grads[name][...] = gradient
    limit = float(np.nanmedian(np.abs(gradients["0.weight_hh_l0"])))
    fr.clip_grad_value(model, limit)
    expected = reference.clip_by_value(gradients, np.dtype(dtype).type(limit))
    assert bits_of(model.grads) == bits_of(expected)
