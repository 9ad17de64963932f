"""Softmax over rows, and the cross-entropy on it, fused.

    p = exp(x - m) / s        m = max of x,  s = sum of exp(x - m)
    loss = log s - (x[target] - m)        dx = (p - onehot(target)) scale

and with any distribution q over the classes in the place of onehot(target),

    loss = sum of q (log s - (x - m))     dx = (p sum of q - q) scale

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
from ..simd.sync import turns
from ..simd.vector import accumulate, fma, fold, load, maximum, pointwise, select, store, widen, zero
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
def row_zero(y, off, columns):
    """y (columns) = 0, written."""
    n = line_of(y)

    def body(k, left):
        store(y, off + k, zero(y, n), left)
        return ()

    fold(columns, n, (), body)


@pointwise
def row_total(q, off, columns) -> np.float64:
    """The sum of q (columns, read)."""
    n = line_of(q)

    def body(k, left, s):
        return (s + widen(load(q, off + k, left, n)),)

    (s,) = fold(columns, n, (widen(zero(q, n)),), body)
    return accumulate(s)


@pointwise
def row_dot(x, off, columns, m, q, q_off) -> np.float64:
    """The sum of q (m - x), in float64; x, q (columns), q from 0, read."""
    n = line_of(x)

    def body(k, left, s):
        below = m - widen(load(x, off + k, left, n))
        share = widen(load(q, q_off + k, left, n))
        # A class that has no share may have no probability either: 0 times infinity is 0 here. NaN stays NaN.
        return (s + select(share > 0.0, share * below, share),)

    (s,) = fold(columns, n, (widen(zero(x, n)),), body)
    return accumulate(s)


@pointwise
def row_add(y, off, columns, factor, q, q_off):
    """y += factor q; y, q (columns): accumulated, read."""
    n = line_of(y)

    def body(k, left):
        store(y, off + k, fma(load(q, q_off + k, left, n), factor, load(y, off + k, left, n)), left)
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
def cross_entropy(
    worker, workers, tickets, rows, columns, pieces, backward, scale, hard, share, stride,
    x, targets, weight, spread, losses, total, dx,
):  # fmt: skip
    """Losses, their sum, and in the same pass the gradient of scale times that sum. A row's loss is

        f (log s - (x[target] - m)) + share sum of q (log s - (x - m)),       f = hard weight[target]

    pieces : into how many parts the rows are divided for the workers
    backward : 0, and dx is not touched, or 1
    scale : float64, what the gradient is multiplied by
    hard, share : float64, from 0, how much the target and how much q count
    stride : q of row r begins at r * stride: 0 for one q for all rows
    x : (rows, columns), columns >= 1, read
    targets : (rows,) int64, below `columns`, read; below 0 the row does not count, and its dx is 0
    weight : (columns,), from 0, read; or (0,), and all are 1
    spread : q, (columns,) or (rows, columns), from 0, read; or (0,), and there is none
    losses : (rows,) float64, written
    total : (1,) float64, written: the losses added in ascending order
    dx : with backward (rows, columns), written; it may be x
    """
    for _, item in turns(tickets, 0, worker, workers, 1, pieces):
        for r in range(rows * item // pieces, rows * (item + 1) // pieces):
            at = r * columns
            losses[r] = 0.0
            if targets[r] < 0:
                if backward:
                    row_zero(dx, at, columns)
                continue
            target = at + targets[r]
            m = row_max(x, at, columns)
            below = np.float64(x[target]) - np.float64(m)
            dot = 0.0
            if len(spread):  # before dx, which may be x, is written
                dot = share * row_dot(x, at, columns, m, spread, r * stride)
            s = row_exp(x, at, columns, m, 1.0, dx, at) if backward else row_sum(x, at, columns, m)
            log_s = log_one(losses, s)
            f = hard * np.float64(weight[targets[r]]) if len(weight) else hard
            # A target that counts for nothing may have an infinite loss; a row of NaN is seen all the same.
            losses[r] = f * (log_s - below) if f > 0.0 else 0.0 * log_s
            mass = f
            if len(spread):
                q = share * row_total(spread, r * stride, columns)
                losses[r] += q * log_s + dot
                mass += q
            if backward:
                row_times(dx, at, columns, scale * mass / s)
                if len(spread):
                    row_add(dx, at, columns, -scale * share, spread, r * stride)
                dx[target] = np.float64(dx[target]) - scale * f
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
    for _, item in turns(tickets, 0, worker, workers, 1, pieces):
        for r in range(rows * item // pieces, rows * (item + 1) // pieces):
            at = r * columns
            s = row_exp(x, at, columns, row_max(x, at, columns), temperature, y, at)
            row_times(y, at, columns, 1.0 / s)


@kernel
def log_softmax(worker, workers, tickets, rows, columns, pieces, x, y):
    """y = log softmax(x)

    pieces : into how many parts the rows are divided for the workers
    x : (rows, columns), columns >= 1, read
    y : (rows, columns), written; it may be x
    """
    for _, item in turns(tickets, 0, worker, workers, 1, pieces):
        for r in range(rows * item // pieces, rows * (item + 1) // pieces):
            at = r * columns
            m = row_max(x, at, columns)
            row_minus(x, at, columns, m, log_one(y, row_sum(x, at, columns, m)), y, at)
