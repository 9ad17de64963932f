"""Softmax over rows, and the cross-entropy on it, fused.

    p = exp(x - m) / s        m = max of x,  s = sum of exp(x - m)
    loss = log s - (x[target] - m)        dx = (p - onehot(target)) scale

(Bridle 1990.) Subtracting the largest makes every exponential at most 1 and the sum at least 1: nothing
overflows, and the logarithm is never of zero.

What a row's numbers are depends on that row alone, and on no machine's vector width: a line is always 64
bytes, lane j sums elements j, j + line, ... in ascending order, in float64, and the lanes are added halves
upon halves. Losses are float64, whatever the rows are; so are their sums. -infinity is a legal logit, of
probability 0. A row with NaN, with +infinity, or with nothing but -infinity has NaN for its loss and for all
of its gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import kernel
from ..simd.sync import finish, take, wait
from ..simd.vector import accumulate, fold, load, maximum, pointwise, store, widen, zero
from .activations import exp, log

LINE = 64  # bytes; LLVM splits the vector on narrower machines
NOTHING = float("-inf")  # the lanes past the end of a row: never the largest, and their exponential is 0


def line_of(a: Any) -> int:
    """Lanes of a line for the elements of `a`."""
    return LINE // a.dtype.itemsize


# ---------------------------------------------------------------------------------------------------
# One row
# ---------------------------------------------------------------------------------------------------


@pointwise
def row_max(x, off, columns) -> float:
    """The largest of x (columns, read). A NaN may be missed: the sum finds it."""
    n = line_of(x)

    def body(k, left, m):
        return (maximum(m, load(x, off + k, left, n, fill=NOTHING)),)

    (m,) = fold(columns, n, (zero(x, n) + NOTHING,), body)
    return accumulate(m, maximum)


@pointwise
def row_sum(x, off, columns, m) -> np.float64:
    """The sum of exp(x - m); x (columns) read."""
    n = line_of(x)

    def body(k, left, s):
        return (s + widen(exp(load(x, off + k, left, n, fill=NOTHING) - m)),)

    (s,) = fold(columns, n, (widen(zero(x, n)),), body)
    return accumulate(s)


@pointwise
def row_exp(x, off, columns, m, temperature, y, y_off) -> np.float64:
    """y = exp((x - m) / temperature), and the sum of it; x, y (columns): read, written."""
    n = line_of(x)

    def body(k, left, s):
        # Divided: the reciprocal of the smallest temperatures is infinite, and 0 times that is not 0 / t.
        e = exp((load(x, off + k, left, n, fill=NOTHING) - m) / temperature)
        store(y, y_off + k, e, left)
        return (s + widen(e),)

    (s,) = fold(columns, n, (widen(zero(x, n)),), body)
    return accumulate(s)


@pointwise
def row_times(y, off, columns, factor):
    """y (columns), read and overwritten: times factor."""
    n = line_of(y)

    def body(k, left):
        store(y, off + k, load(y, off + k, left, n) * factor, left)
        return ()

    fold(columns, n, (), body)


@pointwise
def row_minus(x, off, columns, m, s, y, y_off):
    """y = (x - m) - s; x, y (columns): read, written."""
    n = line_of(x)

    def body(k, left):
        store(y, y_off + k, load(x, off + k, left, n) - m - s, left)
        return ()

    fold(columns, n, (), body)


@pointwise
def log_one(like, s) -> float:
    """log s, as precise as the elements of `like`, which is not touched."""
    return accumulate(log(zero(like, 1) + s))


# ---------------------------------------------------------------------------------------------------
# All rows
# ---------------------------------------------------------------------------------------------------


@kernel
def cross_entropy(worker, workers, tickets, rows, columns, pieces, backward, scale, x, targets, losses, total, dx):
    """Losses, their sum, and in the same pass the gradient of scale times that sum.

    pieces : into how many parts the rows are divided for the workers
    backward : 0, and dx is not touched, or 1
    scale : float64, what the gradient is multiplied by
    x : (rows, columns), columns >= 1, read
    targets : (rows,) int64, from 0 to columns - 1, read
    losses : (rows,) float64, written
    total : (1,) float64, written: the losses added in ascending order
    dx : with backward (rows, columns), written; it may be x
    """
    item = take(tickets, 0, worker, workers, 0, pieces)
    while item >= 0:
        for r in range(rows * item // pieces, rows * (item + 1) // pieces):
            at = r * columns
            target = at + targets[r]
            m = row_max(x, at, columns)
            below = np.float64(x[target]) - np.float64(m)
            if backward:
                s = row_exp(x, at, columns, m, 1.0, dx, at)
                row_times(dx, at, columns, scale / s)
                dx[target] -= scale
            else:
                s = row_sum(x, at, columns, m)
            losses[r] = log_one(losses, s) - below
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, pieces)
    wait(tickets, 0, workers, pieces)
    if worker == 0:
        total[0] = 0.0
        for r in range(rows):
            total[0] += losses[r]


@kernel
def softmax(worker, workers, tickets, rows, columns, pieces, temperature, x, y):
    """y = softmax(x / temperature)

    pieces : into how many parts the rows are divided for the workers
    temperature : float64, above 0 also when rounded to the type of x
    x : (rows, columns), columns >= 1, read
    y : (rows, columns), written; it may be x
    """
    item = take(tickets, 0, worker, workers, 0, pieces)
    while item >= 0:
        for r in range(rows * item // pieces, rows * (item + 1) // pieces):
            at = r * columns
            s = row_exp(x, at, columns, row_max(x, at, columns), temperature, y, at)
            row_times(y, at, columns, 1.0 / s)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, pieces)
    wait(tickets, 0, workers, pieces)


@kernel
def log_softmax(worker, workers, tickets, rows, columns, pieces, x, y):
    """y = log softmax(x)

    pieces : into how many parts the rows are divided for the workers
    x : (rows, columns), columns >= 1, read
    y : (rows, columns), written; it may be x
    """
    item = take(tickets, 0, worker, workers, 0, pieces)
    while item >= 0:
        for r in range(rows * item // pieces, rows * (item + 1) // pieces):
            at = r * columns
            m = row_max(x, at, columns)
            row_minus(x, at, columns, m, log_one(y, row_sum(x, at, columns, m)), y, at)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, pieces)
    wait(tickets, 0, workers, pieces)
