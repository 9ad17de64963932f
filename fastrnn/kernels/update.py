"""Flat vectors: what optimizers, clipping and the squared error do to them.

g is the gradient, w the weights; the formulae are PyTorch's:

    sgd        v = momentum v + g                   w -= lr v
    adagrad    s = s + g^2                          w -= lr g / (sqrt(s) + eps), or lr g / sqrt(s + eps)
    rmsprop    s = alpha s + (1 - alpha) g^2        w -= lr g / (sqrt(s) + eps)
    adam       m = m + (1 - beta1) (g - m)
               s = beta2 s + (1 - beta2) g^2        w -= step m / (root sqrt(s) + eps)
               with step = lr / (1 - beta1^t) and root = 1 / sqrt(1 - beta2^t) in the t-th step

(Polyak 1964; Duchi, Hazan and Singer 2011; Tieleman and Hinton 2012; Kingma and Ba 2015.) Scalars come in as
float64 and are rounded to the vectors' type once.

All is element by element, save for the sums of squares: those are float64, over blocks of a fixed size, in
which lane j of a line of 64 bytes sums elements j, j + line, ...; the lanes are added halves upon halves and
the blocks in ascending order. So no bit depends on the number of threads or on the machine's vector width.
"""

from __future__ import annotations

import numpy as np

from .._jit import device, kernel
from ..simd.sync import finish, take, wait
from ..simd.vector import (
    accumulate,
    fma,
    fold,
    lanes,
    load,
    maximum,
    minimum,
    pointwise,
    sqrt,
    store,
    widen,
    zero,
)
from .softmax import line_of, row_times

CHUNK = 8192  # elements that a worker takes at a time


@device
def chunks(count):
    """How many chunks `count` elements are."""
    return (count + CHUNK - 1) // CHUNK


# ---------------------------------------------------------------------------------------------------
# One chunk: `count` elements from `off`
# ---------------------------------------------------------------------------------------------------


@pointwise
def sgd_chunk(off, count, lr, w, g):
    """w, g: accumulated, read."""

    def body(k, left):
        at = off + k
        store(w, at, fma(-load(g, at, left), lr, load(w, at, left)), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def momentum_chunk(off, count, lr, momentum, w, g, v):
    """w, g, v: accumulated, read, overwritten."""

    def body(k, left):
        at = off + k
        vn = fma(load(v, at, left), momentum, load(g, at, left))
        store(v, at, vn, left)
        store(w, at, fma(-vn, lr, load(w, at, left)), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def adagrad_chunk(off, count, lr, outside, inside, w, g, s):
    """w, g, s: accumulated, read, accumulated. The root is sqrt(s + inside) + outside."""

    def body(k, left):
        at = off + k
        grad = load(g, at, left)
        sn = fma(grad, grad, load(s, at, left))
        store(s, at, sn, left)
        store(w, at, fma(-(grad / (sqrt(sn + inside) + outside)), lr, load(w, at, left)), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def rmsprop_chunk(off, count, lr, alpha, one_alpha, eps, w, g, s):
    """w, g, s: accumulated, read, overwritten. one_alpha is 1 - alpha."""

    def body(k, left):
        at = off + k
        grad = load(g, at, left)
        sn = fma(grad * one_alpha, grad, load(s, at, left) * alpha)
        store(s, at, sn, left)
        store(w, at, fma(-(grad / (sqrt(sn) + eps)), lr, load(w, at, left)), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def adam_chunk(off, count, step, one_beta1, beta2, one_beta2, root, eps, w, g, m, s):
    """w, g, m, s: accumulated, read, overwritten, overwritten. one_beta1 is 1 - beta1, and so on."""

    def body(k, left):
        at = off + k
        grad, m0 = load(g, at, left), load(m, at, left)
        mn = fma(grad - m0, one_beta1, m0)
        sn = fma(grad * one_beta2, grad, load(s, at, left) * beta2)
        store(m, at, mn, left)
        store(s, at, sn, left)
        store(w, at, fma(-(mn / fma(sqrt(sn), root, eps)), step, load(w, at, left)), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def clip_chunk(off, count, limit, g):
    """g: overwritten. NaN stays NaN."""

    def body(k, left):
        x = load(g, off + k, left)
        store(g, off + k, minimum(maximum(x, zero(g) - limit), limit), left)
        return ()

    fold(count, lanes(g), (), body)


@pointwise
def squares_chunk(off, count, g) -> np.float64:
    """The sum of squares of g, read."""
    n = line_of(g)

    def body(k, left, s):
        x = widen(load(g, off + k, left, n))
        return (fma(x, x, s),)

    (s,) = fold(count, n, (widen(zero(g, n)),), body)
    return accumulate(s)


@pointwise
def error_chunk(off, count, factor, y, target, dy) -> np.float64:
    """The sum of squares of y - target; y, target read; dy = factor (y - target) written."""
    n = line_of(y)

    def body(k, left, s):
        at = off + k
        e = load(y, at, left, n) - load(target, at, left, n)
        store(dy, at, e * factor, left)
        wide = widen(e)
        return (fma(wide, wide, s),)

    (s,) = fold(count, n, (widen(zero(y, n)),), body)
    return accumulate(s)


# ---------------------------------------------------------------------------------------------------
# Vectors
# ---------------------------------------------------------------------------------------------------


@kernel
def sgd(worker, workers, tickets, count, lr, w, g):
    """w -= lr g;  w, g : (count,), accumulated, read"""
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        sgd_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), lr, w, g)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)


@kernel
def sgd_momentum(worker, workers, tickets, count, lr, momentum, w, g, v):
    """v = momentum v + g, w -= lr v;  w, g, v : (count,), accumulated, read, overwritten"""
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        momentum_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), lr, momentum, w, g, v)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)


@kernel
def adagrad(worker, workers, tickets, count, lr, outside, inside, w, g, s):
    """s += g^2, w -= lr g / (sqrt(s + inside) + outside)

    w, g, s : (count,), accumulated, read, accumulated
    """
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        adagrad_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), lr, outside, inside, w, g, s)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)


@kernel
def rmsprop(worker, workers, tickets, count, lr, alpha, one_alpha, eps, w, g, s):
    """s = alpha s + one_alpha g^2, w -= lr g / (sqrt(s) + eps)

    w, g, s : (count,), accumulated, read, overwritten
    """
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        rmsprop_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), lr, alpha, one_alpha, eps, w, g, s)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)


@kernel
def adam(worker, workers, tickets, count, step, one_beta1, beta2, one_beta2, root, eps, w, g, m, s):
    """m += one_beta1 (g - m), s = beta2 s + one_beta2 g^2, w -= step m / (root sqrt(s) + eps)

    w, g, m, s : (count,), accumulated, read, overwritten, overwritten
    """
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        size = min(CHUNK, count - item * CHUNK)
        adam_chunk(item * CHUNK, size, step, one_beta1, beta2, one_beta2, root, eps, w, g, m, s)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)


@kernel
def scale(worker, workers, tickets, count, factor, g):
    """g *= factor;  g : (count,), overwritten"""
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        row_times(g, item * CHUNK, min(CHUNK, count - item * CHUNK), factor)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)


@kernel
def clip(worker, workers, tickets, count, limit, g):
    """g = min(max(g, -limit), limit), NaN stays NaN;  g : (count,), overwritten"""
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        clip_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), limit, g)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)


@kernel
def squares(worker, workers, tickets, count, g, sums):
    """The sum of g^2, in float64.

    g : (count,), read
    sums : (1 + chunks,) float64, written: the whole sum, then that of each chunk
    """
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        sums[1 + item] = squares_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), g)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)
    if worker == 0:
        add_up(sums)


@kernel
def squared_error(worker, workers, tickets, count, factor, y, target, dy, sums):
    """The sum of (y - target)^2, in float64, and dy = factor (y - target).

    y, target, dy : (count,), read, read, written
    sums : (1 + chunks,) float64, written: the whole sum, then that of each chunk
    """
    items = chunks(count)
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        sums[1 + item] = error_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), factor, y, target, dy)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)
    if worker == 0:
        add_up(sums)


@device
def add_up(sums):
    """sums[0] = the sum of the others, in ascending order."""
    total = 0.0
    for k in range(1, len(sums)):
        total += sums[k]
    sums[0] = total
