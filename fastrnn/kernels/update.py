"""Flat vectors: what optimizers, clipping and the squared error do to them.

g is the gradient, w the weights; the formulae are PyTorch's:

    sgd        v = momentum v + g                   w -= lr v, or with Nesterov's look ahead lr (g + momentum v)
    adagrad    s = s + g^2                          w -= lr g / root(s)
    adadelta   s = rho s + (1 - rho) g^2            d = g sqrt(u + eps) / sqrt(s + eps)
               u = rho u + (1 - rho) d^2            w -= lr d
    rmsprop    s = alpha s + (1 - alpha) g^2        w -= lr v, with v = momentum v + g / root(s)
               m = m + (1 - alpha) (g - m)          centred: root(s - m^2)
    adam       m = m + (1 - beta1) (g - m)
               s = beta2 s + (1 - beta2) g^2        w -= step m / (root sqrt(s) + eps)
               with step = lr / (1 - beta1^t) and root = 1 / sqrt(1 - beta2^t) in the t-th step
    adamw      as adam, and                         w -= lr decay w

root(s) is sqrt(s) + eps, or sqrt(s + eps). With weight decay, g + decay w stands for g in all but adamw.

(Polyak 1964; Nesterov 1983; Duchi, Hazan and Singer 2011; Zeiler 2012; Tieleman and Hinton 2012; Graves 2013, eq. 38 to
41; Kingma and Ba 2015; Loshchilov and Hutter 2019.) Scalars come in as float64 and are rounded to the vectors' type
once.

An option that is off is None, and so are its scalar and its vector. A kernel is compiled for the types that it gets,
None among them, and a pointwise function asks for it while it is compiled: what is off leaves no instruction.

All is element by element, save for the sums of squares: those are float64, over blocks of a fixed size, in
which lane j of a line of 64 bytes sums elements j, j + line, ...; the lanes are added halves upon halves and
the blocks in ascending order. So no bit depends on the number of threads or on the machine's vector width.
"""

from __future__ import annotations

import numpy as np

from .._jit import device, kernel
from ..simd.sync import turns
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


def gradient(g, w, at, left, decay):
    """(gradient, w) at an offset, with the gradient of decay / 2 |w|^2 added if there is decay."""
    grad, weight = load(g, at, left), load(w, at, left)
    return (grad if decay is None else fma(weight, decay, grad)), weight


def root_of(s, outside, inside):
    """sqrt(s) + outside, or sqrt(s + inside); the other one is None."""
    return sqrt(s) + outside if inside is None else sqrt(s + inside)


@pointwise
def sgd_chunk(off, count, lr, w, g, decay=None, momentum=None, v=None, ahead=None):
    """w, g, v: accumulated, read, overwritten. ahead: momentum once more, for Nesterov's form."""

    def body(k, left):
        at = off + k
        step, weight = gradient(g, w, at, left, decay)
        if v is not None:
            grad, step = step, fma(load(v, at, left), momentum, step)
            store(v, at, step, left)
            if ahead is not None:
                step = fma(step, ahead, grad)
        store(w, at, fma(-step, lr, weight), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def adagrad_chunk(off, count, lr, outside, inside, w, g, s, decay=None):
    """w, g, s: accumulated, read, accumulated."""

    def body(k, left):
        at = off + k
        grad, weight = gradient(g, w, at, left, decay)
        sn = fma(grad, grad, load(s, at, left))
        store(s, at, sn, left)
        store(w, at, fma(-(grad / root_of(sn, outside, inside)), lr, weight), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def adadelta_chunk(off, count, lr, rho, one_rho, eps, w, g, s, u, decay=None):
    """w, g, s, u: accumulated, read, overwritten, overwritten. one_rho is 1 - rho."""

    def body(k, left):
        at = off + k
        grad, weight = gradient(g, w, at, left, decay)
        sn, u0 = fma(grad * one_rho, grad, load(s, at, left) * rho), load(u, at, left)
        step = sqrt(u0 + eps) / sqrt(sn + eps) * grad
        store(s, at, sn, left)
        store(u, at, fma(step * one_rho, step, u0 * rho), left)
        store(w, at, fma(-step, lr, weight), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def rmsprop_chunk(
    off, count, lr, alpha, one_alpha, outside, inside, w, g, s, decay=None, m=None, momentum=None, v=None
):
    """w, g, s, m, v: accumulated, read, overwritten, overwritten, overwritten. one_alpha is 1 - alpha."""

    def body(k, left):
        at = off + k
        grad, weight = gradient(g, w, at, left, decay)
        sn = fma(grad * one_alpha, grad, load(s, at, left) * alpha)
        store(s, at, sn, left)
        if m is not None:
            m0 = load(m, at, left)
            mn = fma(grad - m0, one_alpha, m0)
            store(m, at, mn, left)
            sn = maximum(fma(-mn, mn, sn), 0.0)  # a variance; rounding alone can make it negative
        step = grad / root_of(sn, outside, inside)
        if v is not None:
            step = fma(load(v, at, left), momentum, step)
            store(v, at, step, left)
        store(w, at, fma(-step, lr, weight), left)
        return ()

    fold(count, lanes(w), (), body)


@pointwise
def adam_chunk(off, count, step, one_beta1, beta2, one_beta2, root, eps, w, g, m, s, decay=None, shrink=None):
    """w, g, m, s: accumulated, read, overwritten, overwritten. one_beta1 is 1 - beta1, and so on."""

    def body(k, left):
        at = off + k
        (grad, weight), m0 = gradient(g, w, at, left, decay), load(m, at, left)
        mn = fma(grad - m0, one_beta1, m0)
        sn = fma(grad * one_beta2, grad, load(s, at, left) * beta2)
        store(m, at, mn, left)
        store(s, at, sn, left)
        if shrink is not None:
            # Not w (1 - shrink): in float32 the difference from 1 would lose all but a few of shrink's digits.
            weight = fma(-weight, shrink, weight)
        store(w, at, fma(-(mn / fma(sqrt(sn), root, eps)), step, weight), left)
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
def sgd(worker, workers, tickets, count, lr, w, g, decay, momentum, v, ahead):
    """w -= lr g, or with momentum v = momentum v + g, w -= lr v, or with ahead as well w -= lr (g + ahead v)

    w, g : (count,), accumulated, read
    decay : scalar or None; with it, g + decay w stands for g
    momentum, v : scalar and (count,), overwritten, or None
    ahead : momentum once more, or None
    """
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        size = min(CHUNK, count - item * CHUNK)
        sgd_chunk(item * CHUNK, size, lr, w, g, decay, momentum, v, ahead)


@kernel
def adagrad(worker, workers, tickets, count, lr, outside, inside, w, g, s, decay):
    """s += g^2, w -= lr g / root(s)

    outside, inside : root(s) is sqrt(s) + outside, or sqrt(s + inside); the other one is None
    w, g, s : (count,), accumulated, read, accumulated
    decay : scalar or None; with it, g + decay w stands for g
    """
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        size = min(CHUNK, count - item * CHUNK)
        adagrad_chunk(item * CHUNK, size, lr, outside, inside, w, g, s, decay)


@kernel
def adadelta(worker, workers, tickets, count, lr, rho, one_rho, eps, w, g, s, u, decay):
    """s = rho s + one_rho g^2, d = g sqrt(u + eps) / sqrt(s + eps), u = rho u + one_rho d^2, w -= lr d

    w, g, s, u : (count,), accumulated, read, overwritten, overwritten
    decay : scalar or None; with it, g + decay w stands for g
    """
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        size = min(CHUNK, count - item * CHUNK)
        adadelta_chunk(item * CHUNK, size, lr, rho, one_rho, eps, w, g, s, u, decay)


@kernel
def rmsprop(worker, workers, tickets, count, lr, alpha, one_alpha, outside, inside, w, g, s, decay, m, momentum, v):
    """s = alpha s + one_alpha g^2, w -= lr g / root(s); with m, m += one_alpha (g - m) and root(s - m^2)

    outside, inside : root(s) is sqrt(s) + outside, or sqrt(s + inside); the other one is None
    w, g, s : (count,), accumulated, read, overwritten
    decay : scalar or None; with it, g + decay w stands for g
    m : (count,), overwritten, or None
    momentum, v : scalar and (count,), overwritten, or None; v = momentum v + g / root, w -= lr v
    """
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        size = min(CHUNK, count - item * CHUNK)
        rmsprop_chunk(item * CHUNK, size, lr, alpha, one_alpha, outside, inside, w, g, s, decay, m, momentum, v)


@kernel
def adam(worker, workers, tickets, count, step, one_beta1, beta2, one_beta2, root, eps, w, g, m, s, decay, shrink):
    """m += one_beta1 (g - m), s = beta2 s + one_beta2 g^2, w -= step m / (root sqrt(s) + eps)

    w, g, m, s : (count,), accumulated, read, overwritten, overwritten
    decay : scalar or None; with it, g + decay w stands for g
    shrink : scalar or None; with it, w -= shrink w before the step (AdamW)
    """
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        size = min(CHUNK, count - item * CHUNK)
        adam_chunk(item * CHUNK, size, step, one_beta1, beta2, one_beta2, root, eps, w, g, m, s, decay, shrink)


@kernel
def scale(worker, workers, tickets, count, factor, g):
    """g *= factor;  g : (count,), overwritten"""
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        row_times(g, item * CHUNK, min(CHUNK, count - item * CHUNK), factor)


@kernel
def clip(worker, workers, tickets, count, limit, g):
    """g = min(max(g, -limit), limit), NaN stays NaN;  g : (count,), overwritten"""
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        clip_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), limit, g)


@kernel
def squares(worker, workers, tickets, count, g, sums):
    """The sum of g^2, in float64.

    g : (count,), read
    sums : (1 + chunks,) float64, written: the whole sum, then that of each chunk
    """
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        sums[1 + item] = squares_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), g)
    if worker == 0:
        add_up(sums)


@kernel
def squared_error(worker, workers, tickets, count, factor, y, target, dy, sums):
    """The sum of (y - target)^2, in float64, and dy = factor (y - target).

    y, target, dy : (count,), read, read, written
    sums : (1 + chunks,) float64, written: the whole sum, then that of each chunk
    """
    for _, item in turns(tickets, 0, worker, workers, 1, chunks(count)):
        sums[1 + item] = error_chunk(item * CHUNK, min(CHUNK, count - item * CHUNK), factor, y, target, dy)
    if worker == 0:
        add_up(sums)


@device
def add_up(sums):
    """sums[0] = the sum of the others, in ascending order."""
    total = 0.0
    for k in range(1, len(sums)):
        total += sums[k]
    sums[0] = total
