"""Optimizers and clipping against the reference, in both types; stopping and going on again."""

import math

import numpy as np
import pytest
import reference
from helpers import JIT, Problem, assert_close, assert_same_bits, bits_of

import fastrnn as fr

# name -> class, options here, options of the reference, the reference
CASES = {
    "SGD": ("SGD", {"lr": 0.1}, reference.sgd),
    "SGD with momentum": ("SGD", {"lr": 0.1, "momentum": 0.9}, reference.sgd),
    "Adagrad": ("Adagrad", {"lr": 0.1}, reference.adagrad),
    "Adagrad, large eps": ("Adagrad", {"lr": 0.1, "eps": 0.1}, reference.adagrad),
    "Adagrad of min-char-rnn": ("Adagrad", {"lr": 0.1, "eps": 1e-8, "inside_sqrt": True}, reference.adagrad),
    "Adagrad, large eps inside": ("Adagrad", {"lr": 0.1, "eps": 0.1, "inside_sqrt": True}, reference.adagrad),
    "SGD with Nesterov's momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, reference.sgd),
    "SGD with weight decay": ("SGD", {"lr": 0.1, "weight_decay": 0.1}, reference.sgd),
    "SGD with all": ("SGD", {"lr": 0.1, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1}, reference.sgd),
    "Adagrad with weight decay": ("Adagrad", {"lr": 0.1, "weight_decay": 0.1}, reference.adagrad),
    "Adadelta": ("Adadelta", {}, reference.adadelta),
    "Adadelta with all": ("Adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-3, "weight_decay": 0.1}, reference.adadelta),
    "RMSProp": ("RMSProp", {"lr": 0.01}, reference.rmsprop),
    "RMSProp with momentum": ("RMSProp", {"lr": 0.01, "momentum": 0.9}, reference.rmsprop),
    "RMSProp, centred": ("RMSProp", {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "centered": True}, reference.rmsprop),
    "RMSProp with all": (
        "RMSProp",
        {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "momentum": 0.8, "centered": True, "weight_decay": 0.1},
        reference.rmsprop,
    ),
    "RMSProp of Graves": (
        "RMSProp",
        {"lr": 0.01, "alpha": 0.95, "eps": 1e-4, "momentum": 0.9, "centered": True, "inside_sqrt": True},
        lambda w, gradients, **o: reference.rmsprop_graves(w, gradients, o["lr"], o["alpha"], o["eps"], o["momentum"]),
    ),
    "RMSProp, other constants": ("RMSProp", {"lr": 0.01, "alpha": 0.9, "eps": 0.1}, reference.rmsprop),
    "Adam": ("Adam", {}, reference.adam),
    "Adam, other constants": ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 0.1}, reference.adam),
    "Adam with weight decay": ("Adam", {"lr": 0.01, "weight_decay": 0.1}, reference.adam),
    "AdamW": ("AdamW", {}, reference.adamw),
    "AdamW, other constants": ("AdamW", {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.3}, reference.adamw),
    "AdamW without decay": ("AdamW", {"lr": 0.01, "weight_decay": 0.0}, reference.adam),
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
    resumed = getattr(fr, kind)(other, **options | {"lr": 0.3})
    resumed.load_state_dict(saved)
    for gradient in gradients[10:]:
        step(other, resumed, gradient)
    assert_same_bits(other.params, model.params)


@every_case
def test_threads(case, set_num_threads):
    """One, two and three threads: the same bits, with a vector large enough for all of them."""
    kind, options, _ = CASES[case]
    results = []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        layer = fr.Linear(*((601, 1001) if JIT else (7, 9)), seed=3)
        optimizer, rng = getattr(fr, kind)(layer, **options), np.random.default_rng(4)
        for _ in range(2):
            layer.grads["weight"][...] = rng.standard_normal(layer.grads["weight"].shape)
            optimizer.step()
        results.append(layer.state_dict() | {n: np.asarray(a) for n, a in optimizer.state_dict().items()})
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


def test_weight_decay_is_the_gradient_of_the_term():
    """With it, a step is that of the loss + lambda/2 ||theta||_2^2, whose gradient is by complex step."""
    plain, decaying = model_of("float64"), model_of("float64")
    (gradients,) = gradients_of(plain, 1)
    weights = plain.state_dict()

    def cost(arrays):
        sums = [
            ((array * gradients[n]) + 0.3 / 2 * array**2).reshape(-1, weights[n].size) for n, array in arrays.items()
        ]
        return sum(one.sum(axis=1) for one in sums)

    step(plain, fr.SGD(plain, lr=0.1), reference.complex_step(cost, weights))
    step(decaying, fr.SGD(decaying, lr=0.1, weight_decay=0.3), gradients)
    assert_close(decaying.params, plain.params, 1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_centred_variance_is_never_negative(dtype):
    """A constant gradient: its variance is rounding alone, and the weights stay numbers."""
    layer = fr.Linear(50, 20, dtype=dtype, seed=1)
    optimizer = fr.RMSProp(layer, lr=1e-9, alpha=0.5, centered=True)
    layer.grads["weight"][...] = np.random.default_rng(1).standard_normal((20, 50))
    for _ in range(200):
        optimizer.step()
    assert np.isfinite(layer.params["weight"]).all()


def test_state_has_what_is_on():
    """A state saved before an option existed fits an optimizer that has it off, and the state's options hold."""
    model = model_of("float32")
    names = {"lr", "steps", "momentum"}
    assert set(fr.SGD(model, lr=0.1).state_dict()) == names
    assert set(fr.SGD(model, lr=0.1, weight_decay=0.2).state_dict()) == names | {"weight_decay"}
    assert {n.split(".")[0] for n in fr.RMSProp(model, lr=0.1).state_dict()} == {"lr", "steps", "alpha", "eps", "s"}
    assert {n.split(".")[0] for n in fr.Adam(model).state_dict()} == {"lr", "steps", "beta1", "beta2", "eps", "m", "s"}
    optimizer = fr.SGD(model, lr=0.1, weight_decay=0.2)
    optimizer.load_state_dict(fr.SGD(model, lr=0.1, weight_decay=0.5).state_dict())
    assert optimizer.state_dict()["weight_decay"] == 0.5
    optimizer.load_state_dict(fr.SGD(model, lr=0.1).state_dict())
    assert "weight_decay" not in optimizer.state_dict()


@pytest.mark.parametrize(
    ("kind", "mine", "other", "others", "said"),
    [
        ("SGD", {"lr": 0.1}, "SGD", {"lr": 0.1, "momentum": 0.9}, "the state has momentum 0.9, this optimizer 0.0"),
        ("RMSProp", {"lr": 1, "momentum": 0.9}, "RMSProp", {"lr": 1}, "the state has momentum 0.0, this optimizer 0.9"),
        ("RMSProp", {"lr": 1}, "RMSProp", {"lr": 1, "centered": True}, "the state has centered 1.0"),
        ("Adam", {"weight_decay": 0.1}, "AdamW", {}, "decoupled_weight_decay, which Adam doesn't know"),
        ("AdamW", {}, "Adam", {"weight_decay": 0.1}, "lacks decoupled_weight_decay"),
        ("Adadelta", {}, "Adagrad", {"lr": 1}, "lacks rho"),
    ],
)
def test_state_of_another_kind(kind, mine, other, others, said):
    """Two optimizers that keep different things do not take each other's state."""
    model = model_of("float32")
    optimizer = getattr(fr, kind)(model, **mine)
    before = bits_of(optimizer.state_dict())
    with pytest.raises(ValueError, match=said):
        optimizer.load_state_dict(getattr(fr, other)(model, **others).state_dict())
    assert bits_of(optimizer.state_dict()) == before


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


# --- weight noise -------------------------------------------------------------------------------------------


def test_weight_noise_is_gaussian():
    """Every parameter, independently, with that standard deviation."""
    model = fr.Sequential(fr.LSTM(30, 40, seed=1), fr.Linear(40, 50, seed=2))
    before = model.state_dict()
    with fr.weight_noise(model, 0.075, seed=5):
        noise = {name: (array - before[name]).reshape(-1) / 0.075 for name, array in model.params.items()}
        for store in model.stores():  # the gaps between parameters stay zero
            assert np.count_nonzero(store.values) == sum(map(math.prod, store.shapes.values()))
    assert sum(store.values.size for store in model.stores()) > sum(n.size for n in noise.values())
    together = np.concatenate(list(noise.values()))
    assert together.size > 10_000
    for name, n in noise.items():
        assert abs(n.mean()) * n.size**0.5 < 4, name
        assert abs(n.std() - 1) * (2 * n.size) ** 0.5 < 4, name
    assert abs((together[:-1] * together[1:]).mean()) * together.size**0.5 < 4
    assert abs((together**4).mean() - 3) * (together.size / 96) ** 0.5 < 4
    assert abs(np.corrcoef(noise["0.bias_ih_l0"], noise["0.bias_hh_l0"])[0, 1]) < 0.3


@pytest.mark.parametrize("ends", ["well", "by an exception", "by a break"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weight_noise_leaves_no_trace(dtype, ends):
    """Every bit is restored, the signs of zeros and NaN too, however the block ends; results are the old ones."""
    problem = Problem("lstm_peephole", dtype=dtype, L=2)
    layer = problem.layer()
    layer.params["bias_ih_l0"] = np.resize(np.array([-0.0, 0.0, 1e-40]), layer.params["bias_ih_l0"].shape)
    model = fr.Sequential(layer, fr.Linear(problem.H, 3, dtype=dtype, seed=1))
    model.params["1.bias"] = np.array([-0.0, np.nan, np.inf])
    before, flat = bits_of(model.params), [store.values.tobytes() for store in model.stores()]
    y = problem.infer(layer)
    for _ in range(3):
        try:
            with fr.weight_noise(model, 10.0, seed=1):
                assert bits_of(model.params) != before
                assert np.abs(problem.infer(layer)["y"] - y["y"]).max() > 1e-3
                if ends == "by an exception":
                    raise KeyboardInterrupt
                if ends == "by a break":
                    break
        except KeyboardInterrupt:
            assert ends == "by an exception"
    assert bits_of(model.params) == before
    assert [store.values.tobytes() for store in model.stores()] == flat
    assert_same_bits(problem.infer(layer), y)


def test_gradients_of_noisy_weights():
    """Forward and backward inside are those of a layer that has the noisy weights for good."""
    problem = Problem("lstm_peephole", L=2)
    layer, other = problem.layer(), problem.layer()
    with fr.weight_noise(layer, 0.1, seed=3):
        other.load_state_dict(layer.state_dict())
        outputs, tape = problem.forward(layer)
        gradients = problem.backward(layer, tape)
    expected, tape = problem.forward(other)
    assert_same_bits(outputs, expected)
    assert_same_bits(gradients, problem.backward(other, tape))


def test_tapes_stay_on_their_side_of_the_noise():
    """A tape made inside is of no use after the block, one made before it of none inside nor after it."""
    problem = Problem("lstm")
    layer = problem.layer()
    changed = "the parameters have changed since forward made this tape"
    _, outer = problem.forward(layer)
    with fr.weight_noise(layer, 0.1):
        _, inner = problem.forward(layer)
        with pytest.raises(ValueError, match=changed):
            problem.backward(layer, outer)
    for tape in (inner, outer):
        with pytest.raises(ValueError, match=changed):
            problem.backward(layer, tape)


def noisy(seed, *, model=None):
    """The weights inside the block."""
    model = model or model_of("float32")
    with fr.weight_noise(model, 0.5, seed=seed):
        return model.state_dict()


def test_weight_noise_is_seeded(set_num_threads):
    """A seed gives the same noise, whatever the threads; a generator goes on; None is different each time."""
    expected = noisy(7)
    for threads in (1, 2, 3):
        set_num_threads(threads)
        assert_same_bits(noisy(7), expected)
    assert bits_of(noisy(8)) != bits_of(expected)
    assert bits_of(noisy(None)) != bits_of(noisy(None))
    rng, model = np.random.default_rng(7), model_of("float32")
    first, second = noisy(rng, model=model), noisy(rng, model=model)
    assert_same_bits(first, expected)
    assert bits_of(second) != bits_of(first)


def test_a_step_inside_the_noise_is_an_error():
    """The weights are restored all the same, and whoever made the step is told that it is lost."""
    model = model_of("float32")
    before = bits_of(model.params)
    (gradients,) = gradients_of(model, 1)
    with (
        pytest.raises(RuntimeError, match=r"call the optimizer's step\(\) after the block"),
        fr.weight_noise(model, 0.1),
    ):
        step(model, fr.SGD(model, lr=0.1), gradients)
    assert bits_of(model.params) == before

    def step_and_fail():
        with fr.weight_noise(model, 0.1):
            step(model, fr.SGD(model, lr=0.1), gradients)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):  # the first error is the one that is told
        step_and_fail()
    assert bits_of(model.params) == before


def test_no_noise_costs_nothing():
    """With std=0 the weights are not even copied: a tape from before is still good."""
    problem = Problem("lstm")
    layer = problem.layer()
    _, tape = problem.forward(layer)
    with fr.weight_noise(layer, 0.0):
        problem.backward(layer, tape)
    with fr.weight_noise(fr.Dropout(0.5), 0.1):  # nothing to be noisy
        pass


@pytest.mark.parametrize(
    ("std", "seed", "kind", "said"),
    [
        (-0.1, None, ValueError, "std is -0.1, expected a finite number from 0"),
        (np.inf, None, ValueError, "std is inf"),
        (np.nan, None, ValueError, "std is nan"),
        ("0.1", None, TypeError, "std is str, expected a number"),
        (0.1, -1, ValueError, "seed is -1, expected a number from 0"),
        (0.1, "7", TypeError, "seed is str, expected an int, a numpy Generator or None"),
        (0.1, True, TypeError, "seed is bool"),
    ],
)
def test_wrong_arguments_of_weight_noise(std, seed, kind, said):
    """Said at once, not when the block begins; nothing has changed."""
    model = model_of("float32")
    before = bits_of(model.params)
    with pytest.raises(kind, match=said):
        fr.weight_noise(model, std, seed)
    with pytest.raises(TypeError, match="model is dict"):
        fr.weight_noise({}, 0.1)
    assert bits_of(model.params) == before
