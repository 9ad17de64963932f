"""Dropout of the recurrent connection and zoneout: what the cells that have them do besides their own.

    W h'  becomes  W (drop h')                drop (B, H)     0 or 1 / (1 - p), one row for a whole sequence
    h     becomes  keep h' + (1 - keep) h     keep (T, B, H)  1 with probability p, else 0
    c     becomes  keep c' + (1 - keep) c     in inference p everywhere: what is to be expected

(Gal and Ghahramani 2016; Krueger et al. 2017.) A cell writes h as ever. Then, while the panel is in the nearest cache,
`zone_out` mixes the old state in, and `drop_out` writes drop h beside h, for the products with W of the next step and
of dW. So a cell's own arithmetic is as it is without; where drop or keep is None, these calls are not compiled.

A row of keep belongs to a row of x, a row of drop to a row of the batch, in the order of the steps (see panels.py).
"""

from .._jit import device
from ..simd.vector import fma, lanes_of, load, pointwise, store
from .panels import add_in


@pointwise
def mix(to, to_off, new, new_off, old, old_off, keep, keep_off, count):
    """to (count of W), written: keep old + (1 - keep) new, read; exactly one of the two where keep is 0 or 1."""
    k = load(keep, keep_off, count)
    new = (1.0 - k) * load(new, new_off, count)
    store(to, to_off, fma(k, load(old, old_off, count), new), count)


@pointwise
def hold(d, d_off, held, held_off, keep, keep_off, count):
    """Backward of `mix`. d (count of W): the gradient of `to` read, of `new` written; held: that of `old`, written."""
    k, v = load(keep, keep_off, count), load(d, d_off, count)
    store(held, held_off, k * v, count)
    store(d, d_off, (1.0 - k) * v, count)


@pointwise
def scale(to, to_off, source, source_off, drop, drop_off, count):
    """to (count of W), written: source times drop, read."""
    store(to, to_off, load(source, source_off, count) * load(drop, drop_off, count), count)


@device
def zone_out(row0, row1, first, cols, size, new, new_row, new_line, s, before, after, line, keep, keep_row):
    """Some rows of a state, `cols` vectors of it from vector `first` on.

    size : H, numbers in a row of the state
    new : rows of new_line numbers from new_row on, the new state, read
    s : rows of `line` numbers: from `before` on the old state, read, from `after` on what becomes of it, written
    keep : rows of H numbers, from keep_row on; or, where keep_row is -1, one row for all; read
    """
    lane = lanes_of(s)
    for r in range(row0, row1):
        for k in range(first, first + cols):
            unit = k * lane
            row = (keep_row + r) * size if keep_row >= 0 else 0
            mix(
                s, (after + r) * line + unit, new, (new_row + r) * new_line + unit, s, (before + r) * line + unit,
                keep, row + unit, size - unit,
            )  # fmt: skip


@device
def drop_out(row0, row1, first, cols, size, h, after, line, drop, dropped):
    """Some rows of a state times drop, as `zone_out`; dropped : rows of H numbers, from `after` on written."""
    lane = lanes_of(h)
    for r in range(row0, row1):
        for k in range(first, first + cols):
            unit = k * lane
            at = (after + r) * line + unit
            scale(dropped, (after + r) * size + unit, h, at, drop, r * size + unit, size - unit)


@device
def drop_out_backward(row0, rows, first, cols, size, drop, d):
    """d : lines of `cols` vectors, the gradient of drop h' read, of h' written, for `rows` rows from row0 on."""
    lane = lanes_of(d)
    for r in range(rows):
        for k in range(cols):
            unit, at = (first + k) * lane, (r * cols + k) * lane
            scale(d, at, d, at, drop, (row0 + r) * size + unit, size - unit)


@device
def add_carried(row0, rows, first, cols, size, carried, d):
    """d : lines of `cols` vectors, accumulated: those of `carried` (B, H), read, for `rows` rows from row0 on."""
    lane = lanes_of(d)
    for r in range(rows):
        for k in range(cols):
            unit = (first + k) * lane
            add_in(d, (r * cols + k) * lane, carried, (row0 + r) * size + unit, size - unit)
