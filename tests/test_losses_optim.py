"""Losses, softmax, rows of a table and updates of flat vectors: values, edges, and one result everywhere."""

import hashlib
import math

import numpy as np
import pytest
import reference
from helpers import JIT, NARROW, assert_same_bits, is_wide, run_python
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import fastrnn as fr
from fastrnn import threads
from fastrnn.kernels import embedding, update
from fastrnn.simd.target import lanes

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
EPS = {"float32": 1.2e-7, "float64": 2.3e-16}
CLASSES = st.integers(1, 70 if JIT else 40)


def draw(seed, *shape, dtype="float64", scale=1.0):
    """Normal numbers of that type."""
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


# --- cross-entropy ------------------------------------------------------------------------------------------


@every_dtype
@given(seed=seeds, T=st.integers(1, 4), B=st.integers(1, 3), V=CLASSES, scale=st.sampled_from([0.1, 3, 30]))
def test_cross_entropy_is_the_formula(dtype, seed, T, B, V, scale):
    """Loss and gradient against the reference in float64, for the mean and for the sum."""
    logits = draw(seed, T, B, V, dtype=dtype, scale=scale)
    targets = np.random.default_rng(seed).integers(0, V, (T, B))
    wide = logits.astype("float64")
    loss, dlogits = fr.cross_entropy(logits, targets)
    expected = reference.cross_entropy(wide, targets)
    assert type(loss) is float
    assert loss == pytest.approx(expected, rel=2 * EPS[dtype], abs=scale * EPS[dtype])
    assert (dlogits.shape, dlogits.dtype) == (logits.shape, logits.dtype)
    p = np.exp(reference.log_softmax(wide))
    exact = (p - reference.one_hot(targets, V)) / targets.size
    assert np.abs(dlogits - exact).max() <= 4 * max(1, scale) * EPS[dtype] / targets.size

    total, dtotal = fr.cross_entropy(logits, targets, reduction="sum")
    assert total == pytest.approx(expected * targets.size, rel=2 * EPS[dtype], abs=T * B * scale * EPS[dtype])
    assert np.abs(dtotal - exact * targets.size).max() <= 4 * max(1, scale) * EPS[dtype]


@given(seed=seeds, V=CLASSES)
def test_cross_entropy_gradient_by_complex_step(seed, V):
    """dlogits is the derivative of the loss, by the reference's complex step."""
    logits, targets = draw(seed, 2, 3, V), np.random.default_rng(seed).integers(0, V, (2, 3))
    arrays = {"logits": logits}
    derivative = reference.complex_step(lambda a: reference.cross_entropy(a["logits"], targets), arrays)
    assert np.abs(fr.cross_entropy(logits, targets)[1] - derivative["logits"]).max() <= 1e-15


@every_dtype
def test_cross_entropy_without_gradient(dtype):
    """The same loss, bit for bit, and None in the gradient's place."""
    logits, targets = draw(1, 5, 3, 37, dtype=dtype), np.random.default_rng(1).integers(0, 37, (5, 3))
    loss, nothing = fr.cross_entropy(logits, targets, gradient=False)
    assert nothing is None
    assert loss == fr.cross_entropy(logits, targets)[0]


@every_dtype
def test_cross_entropy_of_sure_predictions(dtype):
    """A loss far below the type's precision is still right: the sums are float64."""
    logits = np.zeros((1, 40), dtype)
    logits[0, 7] = 25.0
    loss, _ = fr.cross_entropy(logits, [7])
    assert loss == pytest.approx(math.log1p(39 * math.exp(-25.0)), rel=1e-5)


@every_dtype
def test_cross_entropy_does_not_overflow(dtype):
    """Logits as large as numbers get, of both signs; only their differences count."""
    large = float(np.finfo(dtype).max) / 4
    for at in (large, -large, 1e4, -1e4):
        logits = np.full((2, 19), at, dtype)
        loss, dlogits = fr.cross_entropy(logits, [3, 18])
        assert loss == pytest.approx(math.log(19), rel=1e-6)
        assert np.abs(dlogits[0, [0, 3]] - [1 / 38, -18 / 38]).max() < 1e-6
    logits = np.array([[large, -large, 0]], dtype)
    assert fr.cross_entropy(logits, [0])[0] == 0
    assert fr.cross_entropy(logits, [1])[0] == 2 * float(logits[0, 0])


@every_dtype
@pytest.mark.parametrize("V", [2, 9, 16, 17, 40])
def test_minus_infinity_is_a_class_of_probability_0(dtype, V):
    """As if the class did not exist; as a target its loss is infinite."""
    logits = draw(V, 3, V, dtype=dtype)
    logits[:, -1] = -np.inf
    targets = np.zeros(3, np.int64)
    loss, dlogits = fr.cross_entropy(logits, targets)
    less, dless = fr.cross_entropy(np.ascontiguousarray(logits[:, :-1]), targets)
    assert loss == pytest.approx(less, rel=1e-6, abs=1e-12)
    assert np.abs(dlogits[:, :-1] - dless).max() <= EPS[dtype]
    assert np.all(dlogits[:, -1] == 0)
    assert np.all(fr.softmax(logits)[:, -1] == 0)
    assert np.all(fr.log_softmax(logits)[:, -1] == -np.inf)
    loss, dlogits = fr.cross_entropy(logits, targets + V - 1)
    assert loss == np.inf
    assert np.all(np.isfinite(dlogits))


@every_dtype
@pytest.mark.parametrize("bad", ["nan", "inf", "all -inf"])
@pytest.mark.parametrize("at", [0, 5, 16, 36])
def test_nan_stays_in_its_row(dtype, bad, at):
    """A row that has no softmax is NaN as a whole, and no other row feels it."""
    logits, targets = draw(3, 6, 37, dtype=dtype), np.arange(6)
    spoilt = logits.copy()
    if bad == "all -inf":
        spoilt[2] = -np.inf
    else:
        spoilt[2, at] = float(bad)
    others = np.arange(6) != 2
    with np.errstate(invalid="ignore"):  # the NumPy twin warns
        loss, dspoilt = fr.cross_entropy(spoilt, targets)
        results = {"d": dspoilt, "p": fr.softmax(spoilt), "log p": fr.log_softmax(spoilt)}
    assert math.isnan(loss)
    expected = {
        "d": fr.cross_entropy(logits, targets)[1],
        "p": fr.softmax(logits),
        "log p": fr.log_softmax(logits),
    }
    for a in results.values():
        assert np.all(np.isnan(a[2]))
    assert_same_bits({n: a[others] for n, a in results.items()}, {n: a[others] for n, a in expected.items()})


def test_one_row_and_no_row():
    """Logits (V,) with one target; the sum over nothing is 0, the mean over nothing an error."""
    loss, dlogits = fr.cross_entropy(np.zeros(4, np.float32), 2)
    assert loss == pytest.approx(math.log(4))
    assert dlogits.tolist() == [0.25, 0.25, -0.75, 0.25]
    loss, dlogits = fr.cross_entropy(np.zeros((0, 4)), [], reduction="sum")
    assert (loss, dlogits.shape) == (0.0, (0, 4))
    assert fr.softmax(np.zeros((0, 4))).shape == fr.log_softmax(np.zeros((3, 0, 4)))[0].shape == (0, 4)


# --- softmax ------------------------------------------------------------------------------------------------


@every_dtype
@given(seed=seeds, V=CLASSES, temperature=st.sampled_from([1e-3, 0.5, 1.0, 1.7, 1e3]))
def test_softmax_is_the_formula(dtype, seed, V, temperature):
    """Against the reference; it adds up to 1, and its logarithm is log_softmax."""
    logits = draw(seed, 2, 3, V, dtype=dtype, scale=3.0)
    # A number of that type divided by the temperature: the exponent is known to a few of its own steps.
    size = 30 / min(temperature, 1)
    p, expected = (
        fr.softmax(logits, temperature),
        np.exp(reference.log_softmax(logits.astype("float64") / temperature)),
    )
    assert (p.shape, p.dtype) == (logits.shape, logits.dtype)
    assert np.abs(p - expected).max() <= size * EPS[dtype]
    assert np.abs(p.astype("float64").sum(-1) - 1).max() <= 2 * EPS[dtype]
    y, expected = fr.log_softmax(logits), reference.log_softmax(logits.astype("float64"))
    assert np.abs(y - expected).max() <= 2 * EPS[dtype] * max(1, np.abs(expected).max())


def test_softmax_of_extreme_temperatures():
    """Towards 0 all goes to the largest, equal ones share it; towards infinity all become equal."""
    logits = np.array([1.0, 3.0, 3.0, -np.inf, 2.0], np.float32)
    assert fr.softmax(logits, temperature=2e-38).tolist() == [0, 0.5, 0.5, 0, 0]
    assert fr.softmax(logits, temperature=3e38).tolist() == [0.25, 0.25, 0.25, 0, 0.25]


# --- mean squared error -------------------------------------------------------------------------------------


@every_dtype
@given(seed=seeds, T=st.integers(1, 3), B=st.integers(1, 3), D=CLASSES)
def test_mse_is_the_formula(dtype, seed, T, B, D):
    """Loss and gradient."""
    y, target = draw([seed, 1], T, B, D, dtype=dtype), draw([seed, 2], T, B, D, dtype=dtype)
    loss, dy = fr.mse(y, target)
    difference = y.astype("float64") - target
    assert loss == pytest.approx((difference**2).mean(), rel=2 * EPS[dtype])
    assert (dy.shape, dy.dtype) == (y.shape, y.dtype)
    assert np.abs(dy - 2 * difference / y.size).max() <= 2 * EPS[dtype] * np.abs(dy).max()


def test_mse_of_large_numbers():
    """Squares past float32's largest number are added up in float64."""
    y = np.full(3, 1e30, np.float32)
    loss, dy = fr.mse(y, np.zeros(3, np.float32))
    assert loss == pytest.approx(float(y[0]) ** 2, rel=1e-12)
    assert np.all(np.isfinite(dy))


# --- arguments ----------------------------------------------------------------------------------------------

X, IDS = np.zeros((2, 3, 5), np.float32), np.zeros((2, 3), np.int64)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: fr.cross_entropy(X, IDS[:1]), ValueError, "targets has shape .1, 3., expected .2, 3."),
        (lambda: fr.cross_entropy(X, IDS + 5), ValueError, "targets .* 5 .* V=5"),
        (lambda: fr.cross_entropy(X, IDS - 1), ValueError, "targets .* -1 .* V=5"),
        (lambda: fr.cross_entropy(X, IDS.astype(float)), TypeError, "targets .* float64"),
        (lambda: fr.cross_entropy(X, IDS, reduction="none"), ValueError, "reduction .* 'mean' or 'sum'"),
        (lambda: fr.cross_entropy(X[:0], IDS[:0]), ValueError, "nothing to take the mean of"),
        (lambda: fr.cross_entropy(X[..., :0], IDS), ValueError, "logits .* V from 1"),
        (lambda: fr.cross_entropy(np.float32(1), 0), ValueError, "logits has shape"),
        (lambda: fr.cross_entropy(X.astype(complex), IDS), TypeError, "logits .* complex128"),
        (lambda: fr.cross_entropy("logits", IDS), TypeError, "logits is str"),
        (lambda: fr.mse(X, X[:1]), ValueError, r"target has shape .1, 3, 5., expected .* .2, 3, 5."),
        (lambda: fr.mse(X, X.astype("float64")), TypeError, "target .* float64, expected float32"),
        (lambda: fr.mse(X[:0], X[:0]), ValueError, "nothing to take the mean of"),
        (lambda: fr.softmax(X, temperature=0), ValueError, "temperature is 0"),
        (lambda: fr.softmax(X, temperature=-1.0), ValueError, "temperature is -1.0"),
        (lambda: fr.softmax(X, temperature=np.nan), ValueError, "temperature is nan"),
        (lambda: fr.softmax(X, temperature=1e-60), ValueError, "temperature is 1e-60,.*float32"),
        (lambda: fr.softmax(X, temperature="hot"), TypeError, "temperature is str"),
        (lambda: fr.log_softmax(None), TypeError, "logits is NoneType"),
    ],
)
def test_wrong_arguments_of_losses(call, kind, said):
    """The argument, what was expected, what came."""
    with pytest.raises(kind, match=said):
        call()


def test_arguments_that_are_converted():
    """Integer types, lists, float16, other orders in memory, and read-only arrays."""
    logits, targets = draw(1, 3, 2, 5, dtype="float32"), np.random.default_rng(1).integers(0, 5, (3, 2))
    loss, dlogits = fr.cross_entropy(logits, targets)
    frozen = logits.copy()
    frozen.flags.writeable = False
    for x, t in (
        (logits, targets.astype("int8")),
        (logits, targets.astype("uint64")),
        (logits, targets.tolist()),
        (np.asfortranarray(logits), np.asfortranarray(targets)),
        (logits.astype(">f4"), targets.astype(">i4")),
        (frozen, targets),
        (logits.tolist(), targets),
    ):
        other, dother = fr.cross_entropy(x, t)
        assert other == loss
        assert_same_bits({"dlogits": dother}, {"dlogits": dlogits})
    assert fr.softmax(np.zeros(4, np.float16)).dtype == np.float32


# --- rows of a table ----------------------------------------------------------------------------------------


@every_dtype
@given(seed=seeds, N=st.integers(0, 9), V=st.integers(1, 6), D=CLASSES, pieces=st.integers(1, 4))
def test_gather_and_scatter_add(dtype, seed, N, V, D, pieces):
    """The rows, and the gradient added in ascending n, in any number of pieces; zeros for -1."""
    rng = np.random.default_rng(seed)
    ids, weight, dy = rng.integers(0, V, N), draw(seed, V, D, dtype=dtype), draw(seed, N, D, dtype=dtype)
    y, dweight = np.full((N, D), np.nan, dtype), draw([seed, 1], V, D, dtype=dtype)
    expected = dweight.copy()
    for n in range(N):
        expected[ids[n]] += dy[n]
    flat = (ids, weight.reshape(-1), y.reshape(-1))
    threads.launch(embedding.gather, 1, 1, 0, N, D, min(pieces, max(N, 1)), *flat)
    some, rows = np.where(rng.random(N) < 0.3, -1, ids), np.full((N, D), np.nan, dtype)
    threads.launch(embedding.gather, 1, 1, 0, N, D, min(pieces, max(N, 1)), some, flat[1], rows.reshape(-1))
    assert_same_bits({"y": rows}, {"y": np.where(some[:, None] < 0, np.zeros(1, dtype), weight[ids])})
    pieces = min(pieces, -(-D // lanes(dtype)))
    threads.launch(embedding.scatter_add, 1, 1, 0, N, D, pieces, ids, dy.reshape(-1), dweight.reshape(-1))
    assert_same_bits({"y": y, "dweight": dweight}, {"y": weight[ids], "dweight": expected})


# --- sums of squares, clipping ------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("size", [0, 1, 7, 16, 33, 1000, update.CHUNK, 2 * update.CHUNK + 5])
def test_sum_of_squares(dtype, size):
    """To the last digits of float64, and each element once."""
    size = size if JIT else min(size, 1000)
    g = draw(size, size, dtype=dtype)
    sums = np.empty(1 - (-size // update.CHUNK))
    threads.launch(update.squares, 1, 1, 0, size, g, sums)
    assert sums[0] == pytest.approx(math.fsum((g.astype("float64") ** 2).tolist()), rel=1e-14, abs=0)


def test_norm_of_large_gradients():
    """float32 gradients whose squares are no float32 are clipped all the same."""
    layer = fr.Linear(3, 4, seed=1)
    layer.grads["weight"][...] = 1e30
    layer.grads["bias"][...] = 0
    norm = fr.clip_grad_norm(layer, 1.0)
    assert norm == pytest.approx(math.sqrt(12) * 1e30, rel=1e-6)
    assert np.allclose(layer.grads["weight"], 1 / math.sqrt(12), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_gradients_without_a_norm_are_left_alone(bad):
    """The norm says so, and nothing is scaled."""
    layer = fr.Linear(3, 4, seed=1)
    layer.grads["weight"][...] = 3.0
    layer.grads["weight"][1, 2] = bad
    before = {name: a.copy() for name, a in layer.grads.items()}
    assert not math.isfinite(fr.clip_grad_norm(layer, 1.0))
    assert_same_bits(layer.grads, before)


def test_infinite_limits_only_measure():
    """max_norm=inf gives the norm, limit=inf nothing."""
    layer = fr.Linear(3, 4, bias=False, seed=1)
    layer.grads["weight"][...] = 0.5
    assert fr.clip_grad_norm(layer, math.inf) == pytest.approx(math.sqrt(3.0))
    fr.clip_grad_value(layer, math.inf)
    assert np.all(layer.grads["weight"] == 0.5)


def test_norm_at_the_limit():
    """A norm of exactly max_norm changes no bit."""
    layer = fr.Linear(2, 1, bias=False, seed=1)
    layer.grads["weight"][...] = [[3.0, 4.0]]
    assert fr.clip_grad_norm(layer, 5.0) == 5.0
    assert layer.grads["weight"].tolist() == [[3.0, 4.0]]


# --- optimizers ---------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "SGD": lambda m: fr.SGD(m, lr=0.1),
    "momentum": lambda m: fr.SGD(m, lr=0.1, momentum=0.9),
    "Adagrad": lambda m: fr.Adagrad(m, lr=0.1),
    "Adagrad inside": lambda m: fr.Adagrad(m, lr=0.1, eps=1e-8, inside_sqrt=True),
    "Nesterov": lambda m: fr.SGD(m, lr=0.1, momentum=0.9, nesterov=True),
    "Adadelta": lambda m: fr.Adadelta(m),
    "RMSProp": lambda m: fr.RMSProp(m, lr=0.1),
    "RMSProp of Graves": lambda m: fr.RMSProp(m, lr=0.1, momentum=0.9, centered=True, inside_sqrt=True),
    "Adam": lambda m: fr.Adam(m, lr=0.1),
}
DECAYING = {
    "SGD, decay": lambda m: fr.SGD(m, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Adagrad, decay": lambda m: fr.Adagrad(m, lr=0.1, weight_decay=0.1),
    "Adadelta, decay": lambda m: fr.Adadelta(m, weight_decay=0.1),
    "RMSProp, decay": lambda m: fr.RMSProp(m, lr=0.1, centered=True, weight_decay=0.1),
    "Adam, decay": lambda m: fr.Adam(m, lr=0.1, weight_decay=0.1),
    "AdamW": lambda m: fr.AdamW(m, lr=0.1),
}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@every_optimizer
def test_nan_stays_in_its_element(name):
    """A gradient of NaN spoils the weight that it belongs to, and no other."""
    layers = [fr.Linear(7, 5, seed=1) for _ in range(2)]
    for layer in layers:
        layer.grads["weight"][...] = draw(2, 5, 7)
    layers[1].grads["weight"][2, 3] = np.nan
    for layer in layers:
        optimizer = OPTIMIZERS[name](layer)
        optimizer.step()
        optimizer.step()
    right, spoilt = (layer.params["weight"] for layer in layers)
    at = np.isnan(spoilt)
    assert np.argwhere(at).tolist() == [[2, 3]]
    assert np.array_equal(spoilt[~at], right[~at])
    assert_same_bits({"bias": layers[1].params["bias"]}, {"bias": layers[0].params["bias"]})


@every_optimizer
def test_weights_without_gradient_stay(name):
    """Zero gradients change nothing, not even to NaN."""
    layer = fr.Linear(7, 5, seed=1)
    before = layer.state_dict()
    OPTIMIZERS[name](layer).step()
    assert_same_bits(layer.params, before)


@pytest.mark.parametrize("name", DECAYING)
def test_weights_without_gradient_decay(name):
    """Zero gradients, and every weight goes towards zero; the gaps between parameters stay zero."""
    layer = fr.Linear(7, 5, seed=1)
    before = layer.state_dict()
    DECAYING[name](layer).step()
    for parameter, w in layer.params.items():
        assert np.array_equal(np.sign(w - before[parameter]), -np.sign(before[parameter]))
    (store,) = layer.stores()
    assert np.count_nonzero(store.values) == sum(w.size for w in layer.params.values()) < store.values.size


@every_optimizer
def test_next_call_sees_the_new_weights(name):
    """No result of old, packed weights after a step."""
    layer, x = fr.Linear(7, 5, dtype="float64", seed=1), draw(3, 2, 7)
    y, tape = layer.forward(x)
    layer.backward(tape, np.ones_like(y))
    OPTIMIZERS[name](layer).step()
    assert np.abs(layer(x) - (x @ layer.params["weight"].T + layer.params["bias"])).max() < 1e-12


def test_layers_without_parameters():
    """Dropout has nothing to learn: nothing happens."""
    model = fr.Sequential(fr.Dropout(0.5))
    fr.Adam(model).step()
    assert fr.clip_grad_norm(model, 1.0) == 0.0
    fr.clip_grad_value(model, 1.0)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda m: fr.SGD(m, lr=-1), ValueError, "lr is -1, expected a finite number from 0"),
        (lambda m: fr.SGD(m, lr=np.nan), ValueError, "lr is nan"),
        (lambda m: fr.SGD(m, lr="0.1"), TypeError, "lr is str, expected a number"),
        (lambda m: fr.SGD(m, lr=0.1, momentum=1.0), ValueError, "momentum is 1.0"),
        (lambda m: fr.Adagrad(m, lr=0.1, eps=0), ValueError, "eps is 0, expected a finite number above"),
        (lambda m: fr.RMSProp(m, lr=0.1, alpha=-0.1), ValueError, "alpha is -0.1"),
        (lambda m: fr.Adam(m, betas=(0.9, 1.0)), ValueError, "beta2 is 1.0"),
        (lambda m: fr.Adam(m, betas=0.9), TypeError, "betas is 0.9, expected two numbers"),
        (lambda m: fr.SGD(m, lr=0.1, nesterov=True), ValueError, "momentum is 0.0, expected a number above 0 for nest"),
        (
            lambda m: fr.SGD(m, lr=0.1, weight_decay=-1),
            ValueError,
            "^weight_decay is -1, expected a finite number from 0",
        ),
        (lambda m: fr.Adagrad(m, lr=0.1, weight_decay=np.inf), ValueError, "^weight_decay is inf"),
        (lambda m: fr.Adadelta(m, rho=1.0), ValueError, "rho is 1.0, expected a number from 0 to below 1"),
        (lambda m: fr.Adadelta(m, eps=0.0), ValueError, "eps is 0.0, expected a finite number above"),
        (lambda m: fr.RMSProp(m, lr=0.1, momentum=1.5), ValueError, "momentum is 1.5"),
        (lambda m: fr.Adam(m, weight_decay="much"), TypeError, "^weight_decay is str, expected a number"),
        (lambda m: fr.AdamW(m, weight_decay=np.nan), ValueError, "^weight_decay is nan"),
        (lambda m: fr.AdamW(m, betas=(0.9,)), TypeError, "betas is"),
        (lambda m: fr.Adam(m.params), TypeError, "model is Params"),
        (lambda m: fr.clip_grad_norm(m, 0), ValueError, "max_norm is 0"),
        (lambda m: fr.clip_grad_norm(m, np.nan), ValueError, "max_norm is nan"),
        (lambda m: fr.clip_grad_value(m, -1), ValueError, "limit is -1"),
        (lambda m: fr.clip_grad_value(m, None), TypeError, "limit is NoneType"),
    ],
)
def test_wrong_arguments_of_optimizers(call, kind, said):
    """The argument, what was expected, what came."""
    with pytest.raises(kind, match=said):
        call(fr.Linear(2, 3, seed=1))


def test_learning_rate_that_is_none():
    """A learning rate is checked when it is set, and an error leaves the old one."""
    optimizer = fr.SGD(fr.Linear(2, 3, seed=1), lr=0.5)
    for wrong in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="lr is"):
            optimizer.lr = wrong
    assert optimizer.lr == 0.5


@every_optimizer
def test_state_that_does_not_fit_changes_nothing(name):
    """Names, types, shapes and numbers are checked before anything is taken over."""
    layer = fr.Linear(7, 5, seed=1)
    optimizer = OPTIMIZERS[name](layer)
    optimizer.step()
    good = optimizer.state_dict()
    before = {key: np.asarray(value) for key, value in good.items()}
    wrong = [
        ({key: value for key, value in good.items() if key != "lr"}, ValueError),
        (good | {"steps": -1}, ValueError),
        (good | {"steps": 1.5}, TypeError),
        (good | {"lr": "fast"}, TypeError),
        (good | {"more": 1}, ValueError),
    ]
    for key, value in good.items():
        if isinstance(value, np.ndarray):
            wrong += [
                (good | {key: value[1:]}, ValueError),
                (good | {key: value.astype("float64")}, TypeError),
            ]
    for state, kind in wrong:
        with pytest.raises(kind):
            optimizer.load_state_dict(state)
        assert_same_bits({k: np.asarray(v) for k, v in optimizer.state_dict().items()}, before)


# --- one result ---------------------------------------------------------------------------------------------


def computed(dtypes=("float32", "float64")):
    """Loss, gradient and weights of some steps, large enough for several threads; for comparing bits."""
    rows, columns, hidden = (3001, 83, 4000) if JIT else (5, 19, 3)
    results = {}
    for dtype in dtypes:
        x, targets = draw(1, rows, columns, dtype=dtype), np.random.default_rng(1).integers(0, columns, rows)
        loss, results[f"{dtype} dlogits"] = fr.cross_entropy(x, targets)
        results[f"{dtype} loss"] = np.array(loss)
        options = {"weight": np.abs(x[0]), "label_smoothing": 0.1, "ignore_index": 0}
        loss, results[f"{dtype} dlogits with options"] = fr.cross_entropy(x, targets, **options)
        results[f"{dtype} loss with options"] = np.array(loss)
        dense, results[f"{dtype} dlogits of probabilities"] = fr.cross_entropy(x, np.abs(x[::-1]))
        results[f"{dtype} loss of probabilities"] = np.array(dense)
        results[f"{dtype} softmax"], results[f"{dtype} log"] = (
            fr.softmax(x, temperature=0.8),
            fr.log_softmax(x),
        )
        loss, results[f"{dtype} dy"] = fr.mse(x, draw(2, rows, columns, dtype=dtype))
        results[f"{dtype} mse"] = np.array(loss)
        for name, make in (OPTIMIZERS | DECAYING).items():
            layer = fr.Linear(columns, hidden, dtype=dtype, seed=3)
            optimizer = make(layer)
            for step in range(2):
                layer.grads["weight"][...] = draw([step, 4], hidden, columns, dtype=dtype)
                results[f"{dtype} {name} norm {step}"] = np.array(fr.clip_grad_norm(layer, 7.0))
                fr.clip_grad_value(layer, 0.03)
                optimizer.step()
            results[f"{dtype} {name}"] = layer.state_dict()["weight"]
        table, dy = draw(5, 9, 40, dtype=dtype), draw(6, 1000 if JIT else 7, 40, dtype=dtype)
        ids = np.random.default_rng(7).integers(0, 9, len(dy))
        workers = threads.get_num_threads()
        y, dtable = np.empty_like(dy), np.zeros_like(table)
        args = (ids, table.reshape(-1), y.reshape(-1))
        threads.launch(embedding.gather, workers, 1, 1e9, len(dy), 40, workers, *args)
        pieces = min(workers, -(-40 // lanes(dtype)))
        args = (ids, dy.reshape(-1), dtable.reshape(-1))
        threads.launch(embedding.scatter_add, workers, 1, 1e9, len(dy), 40, pieces, *args)
        results |= {f"{dtype} y": y, f"{dtype} dtable": dtable}
    return results


def digest(dtypes):
    """Of all the bits of `computed`."""
    results = computed(dtypes)
    return hashlib.sha256(b"".join(results[name].tobytes() for name in sorted(results))).hexdigest()


def test_bits_do_not_depend_on_threads(set_num_threads):
    """One, two and three threads, and three of them again: the same bits."""
    set_num_threads(1)
    expected = computed()
    for n in (2, 3, 3):
        set_num_threads(n)
        assert_same_bits(computed(), expected)


def test_rows_do_not_depend_on_others():
    """A row alone, and the same row among others, anywhere."""
    x, targets = draw(1, 9, 37, dtype="float32"), np.arange(9)
    together = fr.cross_entropy(x, targets, reduction="sum")[1], fr.softmax(x), fr.log_softmax(x)
    for r in range(9):
        row = x[r : r + 1]
        alone = (
            fr.cross_entropy(row, targets[r : r + 1], reduction="sum")[1],
            fr.softmax(row),
            fr.log_softmax(row),
        )
        for one, all_ in zip(alone, together, strict=True):
            assert one.tobytes() == all_[r].tobytes()
    turned = fr.softmax(x[::-1])
    assert turned.tobytes() == together[1][::-1].tobytes()


@pytest.mark.skipif(not JIT, reason="without JIT there is no vector width")
def test_bits_do_not_depend_on_the_vector_width(effort):
    """Compiled for a CPU with 256-bit vectors, in another process: the host's bits."""
    if not is_wide():
        pytest.skip("this run compiles for 256-bit vectors already")
    dtypes = effort(("float32",), ("float32", "float64"))
    code = f"""
        import test_losses_optim
        from fastrnn.simd.target import VECTOR_BYTES
        print(VECTOR_BYTES, test_losses_optim.digest({dtypes}))
    """
    assert run_python(code, **NARROW).split() == ["32", digest(dtypes)]
