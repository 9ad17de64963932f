"""Losses and the softmax. A loss comes with its gradient: `loss, dlogits = cross_entropy(logits, targets)`.

Letters: `V` classes (characters of a vocabulary, say), `...` any number of axes before it, also none. float32
and float64 arrays are computed in their own type, float16 and Python's numbers in float32.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .kernels import softmax as kernels
from .kernels.update import CHUNK, squared_error
from .layers.layer import check_array, check_indices
from .threads import launch, workers_for

__all__ = ["cross_entropy", "log_softmax", "mse", "softmax"]

# What one element costs, in multiply-adds of a matrix product: about 80 of those in a nanosecond.
EXP_COST, ERROR_COST = 40, 20
# Rows are taken in so many pieces for each worker: one who is interrupted does not keep the others waiting.
PIECES = 4


def cross_entropy(
    logits: Any, targets: Any, reduction: str = "mean", gradient: bool = True
) -> tuple[float, np.ndarray | None]:
    """The cross-entropy of softmax(logits) and the target classes, in nats, and its gradient by the logits.

        loss = mean (or sum) over n of -log p[n, targets[n]]       p = softmax(logits)
        dlogits = (p - onehot(targets)) / N                        (for the sum: without / N)

    logits : (..., V), float32 or float64
    targets : (...), integers from 0 to V - 1
    reduction : "mean" over all N elements of `targets`, or "sum"
    gradient : False leaves the gradient out; None is in its place

    Returns the loss, a float, and dlogits, of the shape and type of `logits`. It is computed without overflow
    for any logits (the largest of a row is subtracted before the exponential), and added up in float64 in a
    fixed order. A logit of -infinity is a class of probability 0; as a target its loss is infinite. A row
    with NaN makes the loss NaN, and the gradient of that row, not of others.

    Raises `TypeError` if logits are not numbers or targets not integers, `ValueError` if shapes do not fit, a
    target is not a class, or there is nothing to take the mean of.

    >>> import fastrnn as fr, numpy as np
    >>> logits = np.log([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    >>> loss, dlogits = fr.cross_entropy(logits, [1, 2])
    >>> round(loss, 6)  # -(log 0.5 + log 0.8) / 2
    0.458145
    >>> (2 * dlogits).round(6)
    array([[ 0.2, -0.5,  0.3],
           [ 0.1,  0.1, -0.2]])
    """
    x = _logits(logits)
    V = x.shape[-1]
    t = _targets(targets, x.shape)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}, expected 'mean' or 'sum'")
    N = t.size
    if reduction == "mean" and N == 0:
        raise ValueError(f"logits has shape {x.shape}: there is nothing to take the mean of (reduction='sum' gives 0)")
    divisor = N if reduction == "mean" else 1
    dx = np.empty(x.shape if gradient else 0, x.dtype)
    losses, total = np.empty(N), np.empty(1)
    work = float(EXP_COST * x.size)
    workers, pieces = _shares(work, N)
    launch(
        kernels.cross_entropy, workers, 1, work,
        N, V, pieces, int(gradient), 1.0 / divisor, x.reshape(-1), t, losses, total, dx.reshape(-1),
    )  # fmt: skip
    return float(total[0]) / divisor, dx if gradient else None


def softmax(logits: Any, temperature: float = 1.0) -> np.ndarray:
    """exp(logits / temperature), divided by its sum over the last axis: probabilities that add up to 1.

    logits : (..., V), float32 or float64
    temperature : a finite number above 0; below 1 it sharpens the distribution, above 1 it flattens it

    Returns an array of the shape and type of `logits`. A row with NaN, with +infinity, or with nothing but
    -infinity is NaN.

    Raises `TypeError` and `ValueError` for logits that are not numbers, without classes, and for other
    temperatures.

    >>> import fastrnn as fr, numpy as np
    >>> fr.softmax(np.log([1.0, 2.0, 5.0])).round(6)
    array([0.125, 0.25 , 0.625])
    >>> fr.softmax(np.log([1.0, 2.0, 5.0]), temperature=0.5).round(6)
    array([0.033333, 0.133333, 0.833333])
    """
    x = _logits(logits)
    number = check_number("temperature", temperature)
    with np.errstate(over="ignore"):
        rounded = x.dtype.type(number)
    if not 0 < rounded < math.inf:
        raise ValueError(f"temperature is {temperature!r}, expected a finite number above 0 (as {x.dtype})")
    y = np.empty_like(x)
    _by_rows(kernels.softmax, x, number, x.reshape(-1), y.reshape(-1))
    return y


def log_softmax(logits: Any) -> np.ndarray:
    """log(softmax(logits)) over the last axis, without the loss of precision of a logarithm of small numbers.

        y = logits - m - log(sum of exp(logits - m))        m the largest of a row

    logits : (..., V), float32 or float64

    Returns an array of the shape and type of `logits`: natural logarithms. A row with NaN, with +infinity, or
    with nothing but -infinity is NaN. Raises as `softmax` does.

    >>> import fastrnn as fr, numpy as np
    >>> fr.log_softmax(np.array([0.0, 1000.0]))
    array([-1000.,     0.])
    """
    x = _logits(logits)
    y = np.empty_like(x)
    _by_rows(kernels.log_softmax, x, x.reshape(-1), y.reshape(-1))
    return y


def mse(y: Any, target: Any) -> tuple[float, np.ndarray]:
    """The mean squared error, over all elements, and its gradient by `y`.

        loss = mean of (y - target)^2        dy = 2 (y - target) / N

    y : any shape of N elements, float32 or float64
    target : the same shape and type

    Returns the loss, a float, and dy, of the shape and type of `y`. The sum is float64, in a fixed order.

    Raises `TypeError` if `target` is of a wider type than `y`, `ValueError` if it is of another shape
    (nothing is broadcast), or if there is nothing to take the mean of.

    >>> import fastrnn as fr, numpy as np
    >>> loss, dy = fr.mse(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
    >>> loss, dy
    (2.5, array([ 1., -2.]))
    """
    a = check_array("y", y, _dtype(y), "...", {})
    b = check_array("target", target, a.dtype, "...", {})
    if b.shape != a.shape:
        raise ValueError(f"target has shape {b.shape}, expected the shape of y, {a.shape}")
    if a.size == 0:
        raise ValueError(f"y has shape {a.shape}: there is nothing to take the mean of")
    dy = np.empty_like(a)
    chunks = -(-a.size // CHUNK)
    sums = np.empty(1 + chunks)
    work = float(ERROR_COST * a.size)
    workers = workers_for(work, chunks)
    flat = (a.reshape(-1), b.reshape(-1), dy.reshape(-1))
    launch(squared_error, workers, 1, work, a.size, 2.0 / a.size, *flat, sums)
    return float(sums[0]) / a.size, dy


def _shares(work: float, rows: int) -> tuple[int, int]:
    """How many workers, and in how many pieces they take the rows."""
    workers = workers_for(work, rows)
    return workers, 1 if workers == 1 else min(rows, PIECES * workers)


def _by_rows(run: Any, x: np.ndarray, *args: Any) -> None:
    """Launches a kernel that goes through the rows of `x` (..., V)."""
    V = x.shape[-1]
    rows, work = x.size // V, float(EXP_COST * x.size)
    workers, pieces = _shares(work, rows)
    launch(run, workers, 1, work, rows, V, pieces, *args)


def _dtype(a: Any) -> np.dtype:
    """What is computed in: float64 if `a` is, else float32."""
    wide = isinstance(a, np.ndarray | np.generic) and a.dtype.kind == "f" and a.dtype.itemsize == 8
    return np.dtype("float64" if wide else "float32")


def _logits(logits: Any) -> np.ndarray:
    x = check_array("logits", logits, _dtype(logits), "... V", {})
    if x.shape[-1] == 0:
        raise ValueError(f"logits has shape {x.shape}, expected (..., V) with V from 1")
    return x


def _targets(targets: Any, shape: tuple[int, ...]) -> np.ndarray:
    """int64 (N,), every one a class."""
    if isinstance(targets, list | tuple) and not np.size(targets):
        targets = np.empty(np.shape(targets), np.int64)  # an empty list has no type of its own
    t = np.asarray(targets)
    if t.dtype.kind in "iu" and t.shape != shape[:-1]:
        raise ValueError(f"targets has shape {t.shape}, expected {shape[:-1]} for logits (..., V) = {shape}")
    return check_indices("targets", t, shape[-1], "V").reshape(-1)


def check_number(name: str, value: Any) -> float:
    """A number as a float; NaN and infinity are numbers too."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {type(value).__name__}, expected a number")
    return float(value)
