"""exp, log, tanh and sigmoid on vectors, with stated error bounds.

Each is written once, for float32 and float64: a reduction that is exact or nearly so, one division at most,
and a polynomial from Chebyshev interpolation at high precision. No relative error is larger than (float32:
checked for every number there is, against float64; float64: for samples of every exponent, against extended
precision; tests/test_activations.py asserts both on samples):

              float32     float64
    exp       8.5e-8      3e-16
    log       8.5e-8      3e-16
    sigmoid   1.5e-7      4e-16     0 where the result is below 2**-127.5 (float64: 2**-1023.5)
    tanh      1.8e-7      5e-16

NaN gives NaN; the infinities give the limits. numpy's own tanh is a scalar call from compiled code, 9 ns a
value; these take 0.2 to 0.3 ns. A clamped rational tanh 13/6, as fast, was 2.2e-7 off and made sigmoid's tail
absolute only.
"""

from __future__ import annotations

from typing import Any

from ..simd.vector import (
    absolute,
    copysign,
    every,
    exp2_integer,
    exponent,
    fma,
    load,
    maximum,
    minimum,
    pointwise,
    round_even,
    select,
    split_exponent,
    store,
)

LOG2E = 1.4426950408889634
# log(2) in two parts; the first has few enough bits that n * LN2_HI is exact for every n in range.
LN2 = {4: (0.693359375, -2.1219444005469057e-4), 8: (0.6931471803691238, 1.9082149292705877e-10)}

# exp(r) = 1 + r + r^2 P(r) for |r| <= log(2)/2, ascending powers.
EXP = {
    4: (0.50000000135387299, 0.16666666681704215, 0.041666464197405692, 0.0083333108446478626,
        0.0013933730715792083, 0.00019891080463998842),
    8: (0.5, 0.16666666666666666667, 0.041666666666666676865, 0.0083333333333333340131, 0.0013888888888879003084,
        0.00019841269841263251867, 2.4801587336630946966e-5, 2.7557319247344509509e-6, 2.7557263077309411451e-7,
        2.5052070959803661989e-8, 2.0918212319133978201e-9, 1.6086677666787361503e-10),
}  # fmt: skip

# log(m) = 2s + s^3 Q(s^2) for s = (m - 1) / (m + 1), sqrt(1/2) <= m < sqrt(2), ascending powers.
LOG = {
    4: (0.6666666654988317655, 0.40000125594554367087, 0.28550396959618013579, 0.23341943388714560866),
    8: (0.66666666666666666668, 0.39999999999999991869, 0.28571428571435857662, 0.22222222219710296254,
        0.18181818615177278632, 0.1538457345002896918, 0.13335711085008435313, 0.11686508917312045956,
        0.11896558568412164507),
}  # fmt: skip

# 2**n is a normal number or zero or infinity for n in this range.
EXPONENT = {4: (-126.0, 128.0), 8: (-1022.0, 1024.0)}


def _polynomial(x: Any, square: Any, coefficients: tuple[float, ...]) -> Any:
    """In pairs of coefficients: as many operations as one after the other, and half as many that wait for another."""
    pairs = [fma(x, b, a) for a, b in zip(coefficients[::2], coefficients[1::2], strict=False)]
    y = coefficients[-1] if len(coefficients) % 2 else pairs.pop()
    for p in pairs[::-1]:
        y = fma(y, square, p)
    return y


def _fraction(x: Any, n: Any) -> Any:
    """q, exp(x) = 2**n * (1 + q). Where n is the integer nearest to x / log(2), |q| < 0.42, and q is as exact
    relatively as x allows.
    """
    size = x.dtype.itemsize
    hi, lo = LN2[size]
    r = fma(n, -lo, fma(n, -hi, x))
    square = r * r
    return fma(square, _polynomial(r, square, EXP[size]), r)


def exp(x: Any) -> Any:
    """e**x over the whole range, subnormal results included."""
    low, high = (-104.0, 89.0) if x.dtype.itemsize == 4 else (-746.0, 710.0)
    x = minimum(maximum(x, low), high)
    n = round_even(x * LOG2E)
    q = _fraction(x, n)
    half = round_even(n * 0.5)  # 2**n in two factors: 2**128 and 2**-149 have no single one
    s = exp2_integer(half)
    return fma(q, s, s) * exp2_integer(n - half)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e**-x)"""
    low, high = EXPONENT[x.dtype.itemsize]
    x = minimum(x, -low / LOG2E)
    # Where 2**n would be infinite, q is what is left, and overflows the sum.
    n, s = exponent(x, -LOG2E, high - 1.0)
    return 1.0 / fma(1.0 + _fraction(-x, n), s, 1.0)


def tanh(x: Any) -> Any:
    """(e**2x - 1) / (e**2x + 1), from e**2x - 1 without cancellation"""
    a = minimum(absolute(x), 20.0)
    n, s = exponent(a, 2.0 * LOG2E)
    q = _fraction(a + a, n)
    return copysign(fma(q, s, s - 1.0) / fma(q, s, s + 1.0), x)


def log(x: Any) -> Any:
    """The natural logarithm; -inf at zero, NaN below."""
    size = x.dtype.itemsize
    tiny, scale, shift = (2.0**-126, 2.0**25, 25.0) if size == 4 else (2.0**-1022, 2.0**54, 54.0)
    small = x < tiny
    m, e = split_exponent(select(small, x * scale, x))
    e = e - select(small, e * 0.0 + shift, e * 0.0)
    f = m - 1.0
    s = f / (f + 2.0)
    z = s * s
    hi, lo = LN2[size]
    # 2s = f - s f, and f is exact: the rounding of s is multiplied by f. Straight from 2s it was 1.8e-7 off.
    y = fma(e, hi, fma(-s, f - z * _polynomial(z, z * z, LOG[size]), fma(e, lo, f)))
    y = select(x < float("inf"), y, x)  # infinity and NaN are their own logarithms
    y = select(x > 0.0, y, select(x < 0.0, x * float("nan"), x + float("-inf")))
    return y


def relu(x: Any) -> Any:
    """max(x, 0), and NaN for NaN"""
    return maximum(x, 0.0)


def identity(x: Any) -> Any:
    """x"""
    return x


def hardsigmoid(x: Any) -> Any:
    """0.2 x + 0.5 between 0 and 1: Keras' first one, and ONNX's with its default constants."""
    return minimum(maximum(fma(x, 0.2, 0.5), 0.0), 1.0)


def softsign(x: Any) -> Any:
    """x / (1 + |x|)"""
    a = minimum(absolute(x), 1e30)  # infinity gives 1, as every number past 1e30 does
    return copysign(a / (1.0 + a), x)


def dsigmoid(y: Any) -> Any:
    """The derivative of sigmoid, from its output."""
    return y * (1.0 - y)


def dtanh(y: Any) -> Any:
    """The derivative of tanh, from its output."""
    return fma(-y, y, 1.0)


def drelu(y: Any) -> Any:
    """The derivative of relu, from its output; 0 at 0, as in PyTorch."""
    return select(y > 0.0, y * 0.0 + 1.0, y * 0.0)


def dhardsigmoid(y: Any) -> Any:
    """The derivative of hardsigmoid, from its output; 0 at 0 and 1, as in PyTorch."""
    return select(y > 0.0, select(y < 1.0, y * 0.0 + 0.2, y * 0.0), y * 0.0)


def dsoftsign(y: Any) -> Any:
    """The derivative of softsign, from its output."""
    left = 1.0 - absolute(y)
    return left * left


def didentity(y: Any) -> Any:
    """1"""
    return every(1.0, y)


# What a caller may choose from: each with its derivative, from its output.
ACTIVATIONS = {
    "tanh": (tanh, dtanh),
    "sigmoid": (sigmoid, dsigmoid),
    "relu": (relu, drelu),
    "hardsigmoid": (hardsigmoid, dhardsigmoid),
    "softsign": (softsign, dsoftsign),
    "identity": (identity, didentity),
}


@pointwise
def exp_at(y, x, off, count):
    store(y, off, exp(load(x, off, count)), count)


@pointwise
def log_at(y, x, off, count):
    store(y, off, log(load(x, off, count)), count)


@pointwise
def sigmoid_at(y, x, off, count):
    store(y, off, sigmoid(load(x, off, count)), count)


@pointwise
def tanh_at(y, x, off, count):
    store(y, off, tanh(load(x, off, count)), count)
