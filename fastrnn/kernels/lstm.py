"""The LSTM, with and without diagonal peepholes.

    i = sigmoid(U_i x + W_i h' + b_i + p_i c')        h', c': the previous step's
    f = sigmoid(U_f x + W_f h' + b_f + p_f c')
    g = tanh   (U_g x + W_g h' + b_g)
    c = f c' + i g
    o = sigmoid(U_o x + W_o h' + b_o + p_o c)
    h = o tanh(c)

(Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; peepholes as in Graves 2013, eq. 7 to 11.)

A panel is W hidden units with all their gates, W the lanes of a vector. One tile gives every gate of a panel for up to
ROWS rows, and the gate arithmetic follows while they are in L1. A tape keeps gates in blocks of 64 bytes of units, of
one or more panels: N = ceil(H / block) blocks, P panels.

    packed weights   P x (7 + 4 (I + H)) W    a panel after the other: b (4W), p (3W), U (I x 4W), W (H x 4W)
    tape             T B 4 N block  gates, (T + 1) B H  cells, (T + 1) B H  states (the output is a view of them)
    backward         writes dZ over the gates;  B H  for dc

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

import numpy as np

from .._jit import SMALL, device, kernel, part
from ..simd.sync import finish, take, wait
from ..simd.target import COLS
from ..simd.vector import block, block_of, fma, lanes, lanes_of, load, pointwise, stack, store
from .activations import dsigmoid, dtanh, sigmoid, tanh
from .panels import (
    CHUNK,
    WORK,
    add_in,
    add_out,
    copy_in,
    copy_line,
    copy_out,
    copy_rows,
    pack_rows,
    pack_transposed,
    tiles,
)

PEEPHOLE, INDEXED, TRAINING, BIAS, DY, BY_ROWS = 1, 2, 4, 8, 16, 32

GATES = 4
HEAD = 7  # vectors before U in a packed panel: four biases, three peepholes


# ---------------------------------------------------------------------------------------------------
# One row of one panel
# ---------------------------------------------------------------------------------------------------


@pointwise
def cell(z, z_off, c0, c0_off, c, c_off, h, h_off, count, p=None, p_off=0, gates=None, g_off=0):
    """z (4W): pre-activations, read. c' read; c, h written (count of W).

    p : peepholes (3W), rows i f o, read
    gates : for training, i f g o written, a block apart
    """
    w = lanes(z)
    cp = load(c0, c0_off, count)
    z_i, z_f, z_g, z_o = (load(z, z_off + k * w) for k in range(4))
    if p is not None:
        z_i, z_f = fma(load(p, p_off), cp, z_i), fma(load(p, p_off + w), cp, z_f)
    i, f, g = sigmoid(z_i), sigmoid(z_f), tanh(z_g)
    cn = fma(f, cp, i * g)
    if p is not None:
        z_o = fma(load(p, p_off + 2 * w), cn, z_o)
    o = sigmoid(z_o)
    store(c, c_off, cn, count)
    store(h, h_off, o * tanh(cn), count)
    if gates is not None:
        for k, gate in enumerate((i, f, g, o)):
            store(gates, g_off + k * block(gates), gate)


@pointwise
def cell_backward(z, z_off, dh, dh_off, c0, c0_off, c, c_off, dc, dc_off, count, p=None, p_off=0):
    """z : i f g o, read, overwritten by dZ. dh (W), c', c read. dc: that of c read, that of c' written (count of W).

    p : peepholes (3W), rows i f o, read
    """
    w, unit = lanes(z), block(z)
    i, f, g, o = (load(z, z_off + k * unit) for k in range(4))
    cp, tc, d = load(c0, c0_off, count), tanh(load(c, c_off, count)), load(dh, dh_off)
    dz_o = d * tc * dsigmoid(o)  # h = o tanh(c)
    dcn = fma(d * o, dtanh(tc), load(dc, dc_off, count))
    if p is not None:
        dcn = fma(dz_o, load(p, p_off + 2 * w), dcn)  # o sees c
    dz_i, dz_f, dz_g = dcn * g * dsigmoid(i), dcn * cp * dsigmoid(f), dcn * i * dtanh(g)  # c = f c' + i g
    dcp = dcn * f
    if p is not None:
        dcp = fma(dz_i, load(p, p_off), fma(dz_f, load(p, p_off + w), dcp))  # i and f see c'
    store(dc, dc_off, dcp, count)
    for k, dz in enumerate((dz_i, dz_f, dz_g, dz_o)):
        store(z, z_off + k * unit, dz)


@pointwise
def add_sums(acc, dz, dz_off, c0, c0_off, c, c_off, count):
    """acc (7W), accumulated: dZ, read, for the biases; dz_i c', dz_f c' and dz_o c for the peepholes."""
    w = lanes(acc)
    dz_i, dz_f, dz_g, dz_o = (load(dz, dz_off + k * block(dz)) for k in range(4))
    cp, cn = load(c0, c0_off, count), load(c, c_off, count)
    for k, d in enumerate((dz_i, dz_f, dz_g, dz_o)):
        store(acc, k * w, load(acc, k * w) + d)
    for k, (d, x) in enumerate(((dz_i, cp), (dz_f, cp), (dz_o, cn)), GATES):
        store(acc, k * w, fma(d, x, load(acc, k * w)))


# ---------------------------------------------------------------------------------------------------
# Where things are
# ---------------------------------------------------------------------------------------------------


@device
def panel_size(i_size, h_size, w):
    """Elements of one packed panel."""
    return (HEAD + GATES * (i_size + h_size)) * w


@device
def blocks_for(a, h_size):
    """Blocks of hidden units in a tape, N."""
    return (h_size + block_of(a) - 1) // block_of(a)


@device
def panels_for(a, h_size):
    """Panels of hidden units, P: as many as fill the blocks."""
    return blocks_for(a, h_size) * (block_of(a) // lanes_of(a))


@device
def tape_at(a, panel, rows, row):
    """Where the gates of a panel are in a tape (N, rows, 4 blocks); from gate to gate it is a block."""
    unit, size = panel * lanes_of(a), block_of(a)
    return (unit // size * rows + row) * GATES * size + unit % size


# ---------------------------------------------------------------------------------------------------
# One panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@part
def forward_item(
    t, row0, row1, panel, steps, batch, i_size, h_size, flags, ahead, x, ids, table, w, h0, h, c0, c, gates, z
):
    lane = lanes_of(w)
    line = GATES * lane
    training = flags & TRAINING
    at = panel * panel_size(i_size, h_size, lane)
    u_at = at + HEAD * lane
    w_at = u_at + i_size * line
    unit = panel * lane
    count = h_size - unit
    c_step = batch * h_size if training else 0
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        n0 = t * batch + r0
        if flags & INDEXED:
            for r in range(rows):
                for g in range(GATES):
                    copy_in(z, r * line + g * lane, table, (ids[n0 + r] * GATES + g) * h_size + unit, count)
        else:
            for r in range(rows):
                copy_line(z, r * line, w, at)
            tiles(z, 0, line, rows, 4, x, n0 * i_size, i_size, i_size, 0, 1, w, u_at, line)
        tiles(z, 0, line, rows, 4, h0, n0 * h_size, h_size, h_size, 0, 1, w, w_at, line)
        for r in range(rows):
            z_at = r * line
            before = t * c_step + (r0 + r) * h_size + unit
            after = before + c_step
            h_at = (n0 + ahead + r) * h_size + unit
            g_at = tape_at(w, panel, steps * batch, n0 + r)
            if training and flags & PEEPHOLE:
                cell(z, z_at, c0, before, c, after, h, h_at, count, w, at + line, gates, g_at)
            elif training:
                cell(z, z_at, c0, before, c, after, h, h_at, count, None, 0, gates, g_at)
            elif flags & PEEPHOLE:
                cell(z, z_at, c0, before, c, after, h, h_at, count, w, at + line)
            else:
                cell(z, z_at, c0, before, c, after, h, h_at, count)


@part
def backward_item(t, row0, row1, q, steps, batch, h_size, flags, dy, wt, c, z, dc, dh0, dh):
    lane = lanes_of(wt)
    panels, blocks = panels_for(wt, h_size), blocks_for(wt, h_size)
    seg = GATES * block_of(wt)
    first = q * COLS
    cols = min(COLS, panels - first)
    stride = cols * lane
    wt_at = (panels * 3 * lane if flags & PEEPHOLE else 0) + first * lane * blocks * seg
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        n0 = t * batch + r0
        for r in range(rows):  # from the step after: the gradient of the final state, or a chain that starts from 0
            for k in range(cols):
                unit = (first + k) * lane
                count = h_size - unit if t == steps - 1 else 0
                copy_in(dh, r * stride + k * lane, dh0, (r0 + r) * h_size + unit, count)
        if t < steps - 1:
            left = (n0 + batch) * seg
            tiles(dh, 0, stride, rows, cols, z, left, seg, seg, steps * batch * seg, blocks, wt, wt_at, stride)
        for k in range(cols):
            unit = (first + k) * lane
            count = h_size - unit
            for r in range(rows):
                d_at = r * stride + k * lane
                state = (r0 + r) * h_size + unit
                if t < 0:
                    copy_out(dh0, state, dh, d_at, count)
                    continue
                if flags & DY:
                    add_in(dh, d_at, dy, (n0 + r) * h_size + unit, count)
                z_at = tape_at(wt, first + k, steps * batch, n0 + r)
                before = t * batch * h_size + state
                after = before + batch * h_size
                if flags & PEEPHOLE:
                    p_at = (first + k) * 3 * lane
                    cell_backward(z, z_at, dh, d_at, c, before, c, after, dc, state, count, wt, p_at)
                else:
                    cell_backward(z, z_at, dh, d_at, c, before, c, after, dc, state, count)


@part
def sums_item(panel, steps, batch, h_size, flags, ids, z, c, acc, dtable, dbias, dpeep):
    lane = lanes_of(z)
    unit = panel * lane
    count = h_size - unit
    for k in range(HEAD * lane):
        acc[k] = 0
    for n in range(steps * batch):
        z_at = tape_at(z, panel, steps * batch, n)
        before = n * h_size + unit
        add_sums(acc, z, z_at, c, before, c, before + batch * h_size, count)
        if flags & INDEXED:
            for k in range(GATES):
                add_out(dtable, (ids[n] * GATES + k) * h_size + unit, z, z_at + k * block_of(z), count)
    if flags & BIAS:
        for k in range(GATES):
            add_out(dbias, k * h_size + unit, acc, k * lane, count)
    if flags & PEEPHOLE:
        for k in range(3):
            add_out(dpeep, k * h_size + unit, acc, (GATES + k) * lane, count)


# ---------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------


@kernel
def lstm_forward(worker, workers, tickets, steps, batch, i_size, h_size, flags, pieces, x, ids, table, w, h, c, gates):
    """All steps of one layer.

    flags : PEEPHOLE, INDEXED, TRAINING; BY_ROWS: each of `pieces` row groups goes through all steps alone, else the
        panels of a step, in `pieces` row groups each, are shared among the workers
    x : (T, B, I), read; or, with INDEXED,
    ids : (T, B) int64, read, rows of table : (V, 4H), U x + b for each x, read
    w : packed weights, read
    h : (T + 1, B, H); h[0] read, h[1:] written
    c : with TRAINING (T + 1, B, H), c[0] read, c[1:] written; else (B, H), read and overwritten
    gates : with TRAINING (N, T, B, 4 blocks), written: i f g o
    """
    panels = panels_for(w, h_size)
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
                for panel in range(first, first + span):
                    forward_item(
                        t, row0, row1, panel, steps, batch, i_size, h_size, flags, batch,
                        x, ids, table, w, h, h, c, c, gates, z,
                    )  # fmt: skip
            finish(tickets, 0, workers)
            item = take(tickets, 0, worker, workers, start, items)
    wait(tickets, 0, workers, rounds * items)


@kernel
def lstm_backward(
    worker, workers, tickets, steps, batch, h_size, flags, pieces,
    dy, ids, wt, c, gates, dc, dh0, dtable, dbias, dpeep,
):  # fmt: skip
    """All steps of one layer, backwards; then the sums over steps and rows that biases and peepholes need.

    flags : PEEPHOLE, INDEXED, BIAS, DY; BY_ROWS as in lstm_forward
    dy : with DY (T, B, H), read
    ids : with INDEXED (T, B) int64, read
    wt : with PEEPHOLE (P, 3W) first; then W with its rows as in a tape, packed; read
    c : (T + 1, B, H), read
    gates : (N, T, B, 4 blocks): i f g o read, overwritten by dZ
    dc, dh0 : (B, H): gradients of the final state read, of the initial state written
    dtable : with INDEXED (V, 4H), accumulated
    dbias : (4H,), accumulated
    dpeep : (3, H), accumulated
    """
    panels = panels_for(wt, h_size)
    groups = (panels + COLS - 1) // COLS
    dh, acc = stack(wt, WORK), stack(wt, HEAD)
    rounds, length, span = (1, steps + 1, groups) if flags & BY_ROWS else (steps + 1, 1, 1)
    items = groups // span * pieces
    for start in range(rounds):
        wait(tickets, 0, workers, start * items)
        item = take(tickets, 0, worker, workers, start, items)
        while item >= 0:
            first, piece = item // pieces, item % pieces
            row0, row1 = batch * piece // pieces, batch * (piece + 1) // pieces
            for s in range(start, start + length):
                for q in range(first, first + span):
                    backward_item(
                        steps - 1 - s, row0, row1, q, steps, batch, h_size, flags,
                        dy, wt, c, gates, dc, dh0, dh,
                    )  # fmt: skip
            finish(tickets, 0, workers)
            item = take(tickets, 0, worker, workers, start, items)
    wait(tickets, 0, workers, rounds * items)
    if flags & (BIAS | PEEPHOLE | INDEXED):
        panel = take(tickets, 1, worker, workers, 0, panels)
        while panel >= 0:
            sums_item(panel, steps, batch, h_size, flags, ids, gates, c, acc, dtable, dbias, dpeep)
            finish(tickets, 1, workers)
            panel = take(tickets, 1, worker, workers, 0, panels)
        wait(tickets, 1, workers, panels)


@kernel
def lstm_step(x, h0, c0, w, flags, out):
    """One step, for the caller alone. False, and nothing done, if the shapes do not fit or the work is not small.

    flags : PEEPHOLE
    x : (1, B, I), h0, c0 : (1, B, H), w : packed weights, read
    out : (3, 1, B, H), written: y, h, c, of which y and h are the same
    """
    y, h, c = out[0], out[1], out[2]
    batch, i_size, h_size = x.shape[1], x.shape[2], h.shape[2]
    lane = lanes_of(w)
    panels = panels_for(w, h_size)
    fits = len(x) == 1 and h0.shape == h.shape and c0.shape == h.shape and h.shape[:2] == (1, batch)
    if not fits or len(w) != panels * panel_size(i_size, h_size, lane) or batch * len(w) > SMALL:
        return False
    z, none = stack(w, WORK), stack(w, 1)
    ids = np.empty(0, np.int64)
    for panel in range(panels):
        forward_item(0, 0, batch, panel, 1, batch, i_size, h_size, flags, 0, x, ids, none, w, h0, h, c0, c, none, z)
    for k in range(0, batch * h_size, lane):
        copy_rows(y, k, h, k, batch * h_size - k)
    return True


# ---------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------


@kernel
def lstm_pack(worker, workers, tickets, i_size, h_size, flags, u, w, b_ih, b_hh, p, packed):
    """Weights as lstm_forward wants them.

    u : (4H, I), read; w : (4H, H), read; b_ih, b_hh : with BIAS (4H,), read; p : with PEEPHOLE (3, H), read
    packed : P panels, written
    """
    lane = lanes_of(packed)
    line = GATES * lane
    panels = panels_for(packed, h_size)
    panel = take(tickets, 0, worker, workers, 0, panels)
    while panel >= 0:
        at = panel * panel_size(i_size, h_size, lane)
        unit = panel * lane
        rows = max(0, min(lane, h_size - unit))
        for g in range(GATES):
            copy_in(packed, at + g * lane, b_ih, g * h_size + unit, rows if flags & BIAS else 0)
            add_in(packed, at + g * lane, b_hh, g * h_size + unit, rows if flags & BIAS else 0)
            u_at = at + HEAD * lane + g * lane
            pack_transposed(packed, u_at, line, u, g * h_size + unit, rows, i_size, lane)
            pack_transposed(packed, u_at + i_size * line, line, w, g * h_size + unit, rows, h_size, lane)
        for k in range(3):
            copy_in(packed, at + line + k * lane, p, k * h_size + unit, rows if flags & PEEPHOLE else 0)
        finish(tickets, 0, workers)
        panel = take(tickets, 0, worker, workers, 0, panels)
    wait(tickets, 0, workers, panels)


@kernel
def lstm_pack_backward(worker, workers, tickets, h_size, columns, vectors, flags, source, p, packed):
    """W (or U, for dx) as backward products want it: rows as in a tape, columns in panels.

    vectors : of columns, zeros after the last
    source : (4H, columns), read; p : with PEEPHOLE (3, H), read
    packed : with PEEPHOLE (P, 3W) first; then for every COLS * W columns (N, 4 blocks, line), written
    """
    lane, size = lanes_of(packed), block_of(packed)
    blocks = blocks_for(packed, h_size)
    head = panels_for(packed, h_size) * 3 * lane if flags & PEEPHOLE else 0
    items = (vectors + COLS - 1) // COLS * blocks
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        first, n = item // blocks * COLS, item % blocks
        stride = min(COLS, vectors - first) * lane
        unit = n * size
        rows = min(size, h_size - unit)
        at = head + (first * lane * blocks + n * stride) * GATES * size
        for g in range(GATES):
            to = at + g * size * stride
            pack_rows(packed, to, stride, source, g * h_size + unit, rows, columns, first * lane, size)
        if head and first == 0:
            for v in range(unit, unit + size, lane):
                for k in range(3):
                    copy_in(packed, 3 * v + k * lane, p, k * h_size + v, h_size - v)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)
