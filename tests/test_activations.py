"""exp, log, sigmoid and tanh keep the error bounds that kernels/activations.py states."""

import numba
import numpy as np
import pytest
from helpers import JIT
from hypothesis import given
from hypothesis import strategies as st

from fastrnn.kernels import activations
from fastrnn.simd.vector import lanes_of, load, pointwise, store

# The table in activations.py.
BOUNDS = {
    "float32": {"exp": 8.5e-8, "log": 8.5e-8, "sigmoid": 1.5e-7, "tanh": 1.8e-7},
    "float64": {"exp": 3e-16, "log": 3e-16, "sigmoid": 4e-16, "tanh": 5e-16},
}
TRUTH = {"exp": np.exp, "log": np.log, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}
NAMES = tuple(TRUTH)

# The truth for float64 needs more digits: x86 has 80-bit numbers, some machines have nothing wider.
WIDER = {"float32": np.float64, "float64": np.longdouble}
DTYPES = [
    "float32",
    pytest.param(
        "float64",
        marks=pytest.mark.skipif(np.finfo(np.longdouble).nmant < 60, reason="no wider type on this machine"),
    ),
]
every_function = pytest.mark.parametrize("name", NAMES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


def compiled(name):
    """The function as kernels use it, over a whole array: y and x (N,), written and read."""
    at = getattr(activations, f"{name}_at")

    @numba.njit(error_model="numpy")
    def run(y, x):
        for off in range(0, len(x), lanes_of(x)):
            at(y, x, off, len(x) - off)

    return run


RUN = {name: compiled(name) for name in NAMES}


def twin(name, x):
    """The same text read as NumPy."""
    with np.errstate(all="ignore"):
        return getattr(activations, name)(x)


def evaluated(name, x):
    """`name` of x (N,): compiled, or without JIT its twin."""
    if not JIT:
        return twin(name, x)
    y = np.full_like(x, 123.0)
    RUN[name](y, x)
    return y


def true(name, x):
    with np.errstate(all="ignore"):
        return TRUTH[name](x.astype(WIDER[x.dtype.name]))


def every_exponent(dtype, mantissas):
    """Numbers of both signs and every exponent there is, zeros, subnormals, infinities and NaN included."""
    info = np.finfo(dtype)
    exponents = 1 << (info.bits - 1 - info.nmant)
    m = np.random.default_rng(0).integers(0, 1 << info.nmant, (exponents, mantissas), np.uint64)
    m[:, :3] = 0, 1, (1 << info.nmant) - 1
    bits = (np.arange(exponents, dtype=np.uint64)[:, None] << np.uint64(info.nmant)) | m
    both = np.concatenate([bits.ravel(), bits.ravel() | np.uint64(1 << (info.bits - 1))])
    return both.astype(f"uint{info.bits}").view(dtype)


def where_it_matters(dtype, count):
    """Evenly spaced numbers where the functions bend, and up to where exp is zero or infinite."""
    ends = (-105, 90) if dtype == "float32" else (-747, 711)
    return np.concatenate([np.linspace(*e, count) for e in (ends, (-20, 20), (-1, 1), (0.5, 2))]).astype(dtype)


def worst_error(y, truth):
    """The largest relative error where the true result is a normal number."""
    info = np.finfo(y.dtype)
    normal = (np.abs(truth) >= info.tiny) & (np.abs(truth) <= info.max)
    return float((np.abs(y[normal] - truth[normal]) / np.abs(truth[normal])).max())


@every_dtype
@every_function
def test_error_bound(name, dtype):
    """Over every exponent with dense mantissas, and densely over the middle: the bound of the table."""
    mantissas, count = (4096, 1_000_000) if dtype == "float32" else (256, 100_000)
    for x in (every_exponent(dtype, mantissas), where_it_matters(dtype, count)):
        y, truth = evaluated(name, x), true(name, x)
        assert np.array_equal(np.isnan(y), np.isnan(truth))
        assert worst_error(y, truth) <= BOUNDS[dtype][name]
        with np.errstate(over="ignore"):
            rounded = truth.astype(dtype)
        infinite = np.isinf(rounded)
        assert np.array_equal(y[infinite], rounded[infinite])
        assert np.all(np.isfinite(y[~infinite & ~np.isnan(truth)]))


@every_dtype
@every_function
def test_twin_keeps_the_same_bound(name, dtype):
    """The NumPy reading of the text, with JIT too."""
    x = np.concatenate([every_exponent(dtype, 64), where_it_matters(dtype, 20_000)])
    y, truth = twin(name, x), true(name, x)
    assert y.dtype == x.dtype
    assert np.array_equal(np.isnan(y), np.isnan(truth))
    assert worst_error(y, truth) <= BOUNDS[dtype][name]


@every_dtype
def test_results_below_the_smallest_normal_number(dtype):
    """exp and tanh have them, to one of their steps; sigmoid is 0 from 0.36 of that number downwards."""
    info = np.finfo(dtype)
    step = WIDER[dtype](info.smallest_subnormal)
    for name, allowed in (("exp", step), ("tanh", step), ("sigmoid", 0.36 * WIDER[dtype](info.tiny))):
        x = np.concatenate([every_exponent(dtype, 64), where_it_matters(dtype, 100_000)])
        y, truth = evaluated(name, x), true(name, x)
        small = np.abs(truth) < info.tiny
        assert small.sum() > 100
        assert np.abs(y[small] - truth[small]).max() <= allowed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_values(dtype):
    """Zeros of both signs, the limits at both infinities, the largest numbers, and NaN."""
    info = np.finfo(dtype)
    x = np.array([0.0, -0.0, np.inf, -np.inf, info.max, -info.max, np.nan], dtype)
    expected = {
        "exp": [1, 1, np.inf, 0, np.inf, 0, np.nan],
        "log": [-np.inf, -np.inf, np.inf, np.nan, None, np.nan, np.nan],
        "sigmoid": [0.5, 0.5, 1, 0, 1, 0, np.nan],
        "tanh": [0.0, -0.0, 1, -1, 1, -1, np.nan],
    }
    for name, values in expected.items():
        y = evaluated(name, x)
        for got, want in zip(y.tolist(), values, strict=True):
            assert want is None or np.array_equal(got, want, equal_nan=True), name
    assert np.signbit(evaluated("tanh", x)[:2]).tolist() == [False, True]
    assert evaluated("log", np.array([1, 1, 1], dtype)).tolist() == [0.0, 0.0, 0.0]
    assert np.array_equal(evaluated("tanh", -x), -evaluated("tanh", x), equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_function
@given(data=st.data())
def test_lanes_are_alone(name, dtype, data):
    """A lane's result is the same beside any others, NaN and infinities among them, and at any place."""
    width = 32 if dtype == "float32" else 64
    some = data.draw(st.lists(st.floats(width=width), min_size=1, max_size=40))
    x = np.array(some, dtype)
    alone = np.concatenate([evaluated(name, x[k : k + 1].copy()) for k in range(len(x))])
    assert np.array_equal(evaluated(name, x), alone, equal_nan=True)


@pytest.mark.skipif(not JIT, reason="the twin takes whole arrays")
@every_function
def test_nothing_is_written_past_the_end(name):
    """The last vector is cut off where the array ends."""
    for size in range(40):
        y = np.full(size + 64, 7.0, np.float32)
        RUN[name](y[:size], np.linspace(0.1, 1, size, dtype=np.float32))
        assert np.all(y[size:] == 7)
        assert not np.any(y[:size] == 7)


# --- those that a caller may choose -------------------------------------------------------------------------

# name -> the function, its derivative, and its limits at -infinity and infinity
CHOICE = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2, (-1, 1)),
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2, (0, 1)),
    "relu": (lambda x: np.maximum(x, 0), lambda x: x > 0, (0, np.inf)),
    "hardsigmoid": (lambda x: np.clip(0.2 * x + 0.5, 0, 1), lambda x: 0.2 * (np.abs(x) < 2.5), (0, 1)),
    "softsign": (lambda x: x / (1 + np.abs(x)), lambda x: (1 + np.abs(x)) ** -2, (-1, 1)),
    "identity": (lambda x: x, lambda x: x * 0 + 1, (-np.inf, np.inf)),
}


def chosen(name):
    """y = f(x) and d = f'(x) from y: arrays of one length, written and read."""
    f, df = activations.ACTIVATIONS[name]

    @pointwise
    def at(y, d, x, off, count):
        value = f(load(x, off, count))
        store(y, off, value, count)
        store(d, off, df(value), count)

    def run(y, d, x):
        for off in range(0, len(x), lanes_of(x)):
            at(y, d, x, off, len(x) - off)

    return numba.njit(error_model="numpy")(run) if JIT else run


def test_choice_is_whole():
    """Every name that there is."""
    assert list(activations.ACTIVATIONS) == list(CHOICE)


@pytest.mark.parametrize("name", CHOICE)
def test_choice(name):
    """Values and derivatives, the limits at both infinities, and NaN."""
    f, df, limits = CHOICE[name]
    run = chosen(name)
    for dtype in ("float32", "float64"):
        x = np.concatenate([np.linspace(-6, 6, 1000), np.linspace(-1000, 1000, 1000)]).astype(dtype)
        y, d = np.empty_like(x), np.empty_like(x)
        with np.errstate(all="ignore"):
            run(y, d, x)
            truth, slope = f(x.astype("float64")), df(x.astype("float64"))
        step = np.finfo(dtype).eps
        np.testing.assert_allclose(y, truth, rtol=3 * step, atol=step)
        known = ~np.isnan(slope)  # exp(1000) is infinite
        np.testing.assert_allclose(d[known], slope[known], rtol=0, atol=3 * step)
        ends = np.array([-np.inf, np.inf, -np.finfo(dtype).max, np.finfo(dtype).max, np.nan], dtype)
        y, d = np.empty_like(ends), np.empty_like(ends)
        with np.errstate(all="ignore"):
            run(y, d, ends)
        assert y[:2].tolist() == list(limits)
        assert np.array_equal(y[2:4], np.clip(limits, *ends[2:4]))
        assert np.isnan(y[4])
