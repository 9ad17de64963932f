"""The vanilla ("matrix") RNN.

    h = F(U x + W h' + b)        F: tanh, relu, sigmoid or identity; h': the previous step's

(Elman 1990; the notes' U, W, b.) All four F are in one kernel and chosen once for each panel.

A panel is COLS * W hidden units, W the lanes of a vector, the last one as narrow as it can be; S = ceil(H / W) W.

    packed weights   S (1 + I + H)       a panel after the other: b (line), U (I x line), W (H x line)
    tape             (T + 1) B H         states; the output is a view of them: F' is known from F
    backward         T B H  for dZ

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

import numpy as np

from .._jit import SMALL, kernel, part
from ..simd.sync import finish, take, wait
from ..simd.target import COLS
from ..simd.vector import lanes_of, load, pointwise, stack, store
from .activations import drelu, dsigmoid, dtanh, relu, sigmoid, tanh
from .panels import CHUNK, WORK, add_in, add_rows, copy_in, copy_out, copy_rows, pack_transposed, tiles

INDEXED, DY, BY_ROWS = 1, 2, 4
NONLINEARITIES = ("tanh", "relu", "sigmoid", "identity")  # their numbers in the kernels

# ---------------------------------------------------------------------------------------------------
# One vector of one row
# ---------------------------------------------------------------------------------------------------


@pointwise
def tanh_cell(z, z_off, h, h_off, count):
    """z (W) read; h (count of W) written."""
    store(h, h_off, tanh(load(z, z_off)), count)


@pointwise
def tanh_backward(dh, dh_off, h, h_off, dz, dz_off, count):
    """dh (W) read; h, dz (count of W): read, written."""
    store(dz, dz_off, load(dh, dh_off) * dtanh(load(h, h_off, count)), count)


@pointwise
def relu_cell(z, z_off, h, h_off, count):
    """As `tanh_cell`."""
    store(h, h_off, relu(load(z, z_off)), count)


@pointwise
def relu_backward(dh, dh_off, h, h_off, dz, dz_off, count):
    """As `tanh_backward`."""
    store(dz, dz_off, load(dh, dh_off) * drelu(load(h, h_off, count)), count)


@pointwise
def sigmoid_cell(z, z_off, h, h_off, count):
    """As `tanh_cell`."""
    store(h, h_off, sigmoid(load(z, z_off)), count)


@pointwise
def sigmoid_backward(dh, dh_off, h, h_off, dz, dz_off, count):
    """As `tanh_backward`."""
    store(dz, dz_off, load(dh, dh_off) * dsigmoid(load(h, h_off, count)), count)


# ---------------------------------------------------------------------------------------------------
# One panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@part
def forward_item(t, row0, row1, q, batch, i_size, h_size, flags, nonlinearity, ahead, x, ids, table, w, h0, h, z):
    lane = lanes_of(w)
    vectors = (h_size + lane - 1) // lane
    first = q * COLS
    cols = min(COLS, vectors - first)
    line = cols * lane
    at = first * lane * (1 + i_size + h_size)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        n0 = t * batch + r0
        for r in range(rows):
            for k in range(cols):
                to = r * line + k * lane
                if flags & INDEXED:
                    unit = (first + k) * lane
                    copy_in(z, to, table, ids[n0 + r] * h_size + unit, h_size - unit)
                else:
                    copy_in(z, to, w, at + k * lane, lane)
        if not flags & INDEXED:
            tiles(z, 0, line, rows, cols, x, n0 * i_size, i_size, i_size, 0, 1, w, at + line, line)
        w_at = at + line * (1 + i_size)
        tiles(z, 0, line, rows, cols, h0, n0 * h_size, h_size, h_size, 0, 1, w, w_at, line)
        for r in range(rows):
            for k in range(cols):
                unit = (first + k) * lane
                z_at = r * line + k * lane
                h_at = (n0 + ahead + r) * h_size + unit
                if nonlinearity == 0:
                    tanh_cell(z, z_at, h, h_at, h_size - unit)
                elif nonlinearity == 1:
                    relu_cell(z, z_at, h, h_at, h_size - unit)
                elif nonlinearity == 2:
                    sigmoid_cell(z, z_at, h, h_at, h_size - unit)
                else:
                    copy_out(h, h_at, z, z_at, h_size - unit)


@part
def backward_item(t, row0, row1, q, steps, batch, h_size, flags, nonlinearity, dy, wt, h, dz, dh0, dh):
    lane = lanes_of(wt)
    vectors = (h_size + lane - 1) // lane
    first = q * COLS
    cols = min(COLS, vectors - first)
    line = cols * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        n0 = t * batch + r0
        for r in range(rows):  # from the step after: the gradient of the final state, or a chain that starts from 0
            for k in range(cols):
                unit = (first + k) * lane
                count = h_size - unit if t == steps - 1 else 0
                copy_in(dh, r * line + k * lane, dh0, (r0 + r) * h_size + unit, count)
        if t < steps - 1:
            left = (n0 + batch) * h_size
            tiles(dh, 0, line, rows, cols, dz, left, h_size, h_size, 0, 1, wt, first * lane * h_size, line)
        for r in range(rows):
            for k in range(cols):
                unit = (first + k) * lane
                count = h_size - unit
                d_at = r * line + k * lane
                z_at = (n0 + r) * h_size + unit
                h_at = z_at + batch * h_size
                if t >= 0 and flags & DY:
                    add_in(dh, d_at, dy, z_at, count)
                if t < 0:
                    copy_out(dh0, (r0 + r) * h_size + unit, dh, d_at, count)
                elif nonlinearity == 0:
                    tanh_backward(dh, d_at, h, h_at, dz, z_at, count)
                elif nonlinearity == 1:
                    relu_backward(dh, d_at, h, h_at, dz, z_at, count)
                elif nonlinearity == 2:
                    sigmoid_backward(dh, d_at, h, h_at, dz, z_at, count)
                else:
                    copy_out(dz, z_at, dh, d_at, count)


# ---------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------


@kernel
def rnn_forward(
    worker, workers, tickets, steps, batch, i_size, h_size, flags, nonlinearity, pieces,
    x, ids, table, w, h,
):  # fmt: skip
    """All steps of one layer.

    flags : INDEXED; BY_ROWS: each of `pieces` row groups goes through all steps alone, else the panels of a step, in
        `pieces` row groups each, are shared among the workers
    x : (T, B, I), read; or, with INDEXED,
    ids : (T, B) int64, read, rows of table : (V, H), U x + b for each x, read
    w : packed weights, read
    h : (T + 1, B, H); h[0] read, h[1:] written
    """
    lane = lanes_of(w)
    panels = ((h_size + lane - 1) // lane + COLS - 1) // COLS
    z = stack(w, WORK)
    rounds, length, span = (1, steps, panels) if flags & BY_ROWS else (steps, 1, 1)
    items = panels // span * pieces
    for start in range(rounds):
        wait(tickets, 0, workers, start * items)
        item = take(tickets, 0, worker, workers, start, items)
        while item >= 0:
            first, piece = item // pieces, item % pieces
            row0, row1 = batch * piece // pieces, batch * (piece + 1) // pieces
            for t in range(start, start + length):
                for q in range(first, first + span):
                    forward_item(
                        t, row0, row1, q, batch, i_size, h_size, flags, nonlinearity, batch, x, ids, table, w, h, h, z
                    )
            finish(tickets, 0, workers)
            item = take(tickets, 0, worker, workers, start, items)
    wait(tickets, 0, workers, rounds * items)


@kernel
def rnn_backward(
    worker, workers, tickets, steps, batch, h_size, flags, nonlinearity, pieces,
    dy, ids, wt, h, dz, dh0, dtable,
):  # fmt: skip
    """All steps of one layer, backwards; then the sums that the rows of a table need.

    flags : INDEXED, DY; BY_ROWS as in rnn_forward
    dy : with DY (T, B, H), read
    ids : with INDEXED (T, B) int64, read
    wt : W packed by columns, read
    h : (T + 1, B, H), read
    dz : (T, B, H), written
    dh0 : (B, H): gradient of the final state read, of the initial state written
    dtable : with INDEXED (V, H), accumulated
    """
    lane = lanes_of(wt)
    vectors = (h_size + lane - 1) // lane
    panels = (vectors + COLS - 1) // COLS
    dh = stack(wt, WORK)
    rounds, length, span = (1, steps + 1, panels) if flags & BY_ROWS else (steps + 1, 1, 1)
    items = panels // span * pieces
    for start in range(rounds):
        wait(tickets, 0, workers, start * items)
        item = take(tickets, 0, worker, workers, start, items)
        while item >= 0:
            first, piece = item // pieces, item % pieces
            row0, row1 = batch * piece // pieces, batch * (piece + 1) // pieces
            for s in range(start, start + length):
                for q in range(first, first + span):
                    backward_item(
                        steps - 1 - s, row0, row1, q, steps, batch, h_size, flags, nonlinearity,
                        dy, wt, h, dz, dh0, dh,
                    )  # fmt: skip
            finish(tickets, 0, workers)
            item = take(tickets, 0, worker, workers, start, items)
    wait(tickets, 0, workers, rounds * items)
    if flags & INDEXED:
        k = take(tickets, 1, worker, workers, 0, vectors)
        while k >= 0:
            for n in range(steps * batch):
                add_rows(dtable, ids[n] * h_size + k * lane, dz, n * h_size + k * lane, h_size - k * lane)
            finish(tickets, 1, workers)
            k = take(tickets, 1, worker, workers, 0, vectors)
        wait(tickets, 1, workers, vectors)


@kernel
def rnn_step(x, h0, w, nonlinearity, out):
    """One step, for the caller alone. False, and nothing done, if the shapes do not fit or the work is not small.

    x : (1, B, I), h0 : (1, B, H), w : packed weights, read
    out : (2, 1, B, H), written: y, h, both the same
    """
    y, h = out[0], out[1]
    batch, i_size, h_size = x.shape[1], x.shape[2], h.shape[2]
    lane = lanes_of(w)
    vectors = (h_size + lane - 1) // lane
    fits = len(x) == 1 and h0.shape == h.shape and h.shape[:2] == (1, batch)
    if not fits or len(w) != vectors * lane * (1 + i_size + h_size) or batch * len(w) > SMALL:
        return False
    z, none = stack(w, WORK), stack(w, 1)
    ids = np.empty(0, np.int64)
    for q in range((vectors + COLS - 1) // COLS):
        forward_item(0, 0, batch, q, batch, i_size, h_size, 0, nonlinearity, 0, x, ids, none, w, h0, h, z)
    for k in range(0, batch * h_size, lane):
        copy_rows(y, k, h, k, batch * h_size - k)
    return True


# ---------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------


@kernel
def rnn_pack(worker, workers, tickets, i_size, h_size, u, w, b_ih, b_hh, packed):
    """Weights as rnn_forward wants them.

    u : (H, I), read; w : (H, H), read; b_ih, b_hh : (H,) or empty, read
    packed : written
    """
    lane = lanes_of(packed)
    vectors = (h_size + lane - 1) // lane
    panels = (vectors + COLS - 1) // COLS
    q = take(tickets, 0, worker, workers, 0, panels)
    while q >= 0:
        unit = q * COLS * lane
        line = min(COLS, vectors - q * COLS) * lane
        rows = min(line, h_size - unit)
        at = unit * (1 + i_size + h_size)
        for k in range(0, line, lane):
            copy_in(packed, at + k, b_ih, unit + k, len(b_ih) - unit - k)
            add_in(packed, at + k, b_hh, unit + k, len(b_hh) - unit - k)
        pack_transposed(packed, at + line, line, u, unit, rows, i_size, line)
        pack_transposed(packed, at + line * (1 + i_size), line, w, unit, rows, h_size, line)
        finish(tickets, 0, workers)
        q = take(tickets, 0, worker, workers, 0, panels)
    wait(tickets, 0, workers, panels)
