"""The LSTM, with and without diagonal peepholes.

    i = sigmoid(U_i x + W_i h' + b_i + p_i c')        h', c': the previous step's
    f = sigmoid(U_f x + W_f h' + b_f + p_f c')
    g = tanh   (U_g x + W_g h' + b_g)
    c = f c' + i g
    o = sigmoid(U_o x + W_o h' + b_o + p_o c)
    h = o tanh(c)

(Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; peepholes as in Graves 2013, eq. 7 to 11.)
With full peepholes, which are not standard, p is a matrix and p c a product: o then needs every c of the step, and a
step has two phases, c and h.

A panel is W hidden units with all their gates, W the lanes of a vector. One tile gives every gate of a panel for up to
ROWS rows, and the gate arithmetic follows while they are in L1. A tape keeps gates in blocks of 64 bytes of units, of
one or more panels: N = ceil(H / block) blocks, P panels.

    packed weights   P x 4 (1 + I + H) W      a panel after the other: b (4W), U (I x 4W), W (H x 4W)
    peepholes        P x 3 W                  a panel after the other: p_i, p_f, p_o
    full peepholes   P x 3 H W                a panel after the other: p_i and p_f (H x 2W), p_o (H x W)
    tape             T B 4 N block  gates, (T + 1) B H  cells, (T + 1) B H  states (the output is a view of them)
    backward         writes dZ over the gates;  B H  for dc

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

import numpy as np

from .._jit import SMALL, device, kernel, part
from ..simd.sync import turns
from ..simd.target import COLS
from ..simd.vector import block, block_of, fma, lanes, lanes_of, load, pointwise, stack, store
from .activations import dsigmoid, dtanh, sigmoid, tanh
from .panels import (
    CHUNK,
    TAPE,
    WORK,
    add_biases,
    add_in,
    add_out,
    blocks_for,
    copy_in,
    copy_line,
    copy_out,
    copy_rows,
    pack_transposed,
    panels_for,
    rows_of,
    tape_at,
    tiles,
)

INDEXED, TRAINING, BIAS, DY, BY_ROWS = 1, 2, 4, 8, 16

GATES = TAPE
SUMS = GATES + 3  # vectors of sums: four biases, three peepholes
DOUBLE = 2 * WORK  # working memory of backward: dh, and dc with full peepholes


# ---------------------------------------------------------------------------------------------------
# One row of one panel
# ---------------------------------------------------------------------------------------------------


@pointwise
def cell(z, z_off, c0, c0_off, c, c_off, h, h_off, count, p, p_off, gates=None, g_off=0):
    """z (4W): pre-activations, read. c' read; c, h written (count of W).

    p : peepholes (3W), i f o, read, or None
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
def cell_backward(z, z_off, dh, dh_off, c0, c0_off, c, c_off, dc, dc_off, count, p, p_off):
    """z : i f g o, read, overwritten by dZ. dh (W), c', c read. dc: that of c read, that of c' written (count of W).

    p : peepholes (3W), i f o, read, or None
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
def cell_open(z, z_off, c0, c0_off, c, c_off, gates, g_off, count):
    """`cell` as far as c, for full peepholes, whose products are in z; z_o is left where o belongs."""
    w = lanes(z)
    z_i, z_f, z_g, z_o = (load(z, z_off + k * w) for k in range(4))
    i, f, g = sigmoid(z_i), sigmoid(z_f), tanh(z_g)
    store(c, c_off, fma(f, load(c0, c0_off, count), i * g), count)
    for k, gate in enumerate((i, f, g, z_o)):
        store(gates, g_off + k * block(gates), gate)


@pointwise
def cell_close(z, z_off, c, c_off, h, h_off, gates, g_off, count):
    """The rest: z (W), the whole of z_o, read; o and h written."""
    o = sigmoid(load(z, z_off))
    store(gates, g_off, o)
    store(h, h_off, o * tanh(load(c, c_off, count)), count)


@pointwise
def cell_close_backward(z, z_off, dh, dh_off, c, c_off, dc, dc_off, count):
    """z : o, read, overwritten by dz_o. dh (W), c read; dc accumulated: what comes through h."""
    unit = block(z)
    o, d, tc = load(z, z_off + 3 * unit), load(dh, dh_off), tanh(load(c, c_off, count))
    store(z, z_off + 3 * unit, d * tc * dsigmoid(o))
    store(dc, dc_off, fma(d * o, dtanh(tc), load(dc, dc_off, count)), count)


@pointwise
def cell_open_backward(z, z_off, c0, c0_off, dc, dc_off, count):
    """z : i f g, read, overwritten by dZ. c' read. dc: the whole of c's read, what f carries to c' written."""
    unit = block(z)
    i, f, g = (load(z, z_off + k * unit) for k in range(3))
    dcn = load(dc, dc_off, count)
    store(dc, dc_off, dcn * f, count)
    for k, dz in enumerate((dcn * g * dsigmoid(i), dcn * load(c0, c0_off, count) * dsigmoid(f), dcn * i * dtanh(g))):
        store(z, z_off + k * unit, dz)


@pointwise
def add_sums(acc, dz, dz_off, p=None, c0=None, c0_off=0, c=None, c_off=0, count=0):
    """acc (7W), accumulated: dZ, read, for the biases; unless p is None, dz_i c', dz_f c', dz_o c for the peepholes."""
    w = lanes(acc)
    dz_i, dz_f, dz_g, dz_o = (load(dz, dz_off + k * block(dz)) for k in range(4))
    for k, d in enumerate((dz_i, dz_f, dz_g, dz_o)):
        store(acc, k * w, load(acc, k * w) + d)
    if p is not None:
        cp, cn = load(c0, c0_off, count), load(c, c_off, count)
        for k, (d, x) in enumerate(((dz_i, cp), (dz_f, cp), (dz_o, cn)), GATES):
            store(acc, k * w, fma(d, x, load(acc, k * w)))


# ---------------------------------------------------------------------------------------------------
# One panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@part
def forward_item(
    row0, row1, panel, n, before, after, total, i_size, h_size, h_line, flags,
    x, ids, table, w, peep, full, h0, h, c0, c, gates, z,
):  # fmt: skip
    lane = lanes_of(w)
    line = GATES * lane
    training = flags & TRAINING
    at = panel * GATES * (1 + i_size + h_size) * lane
    u_at = at + line
    w_at = u_at + i_size * line
    unit = panel * lane
    count = h_size - unit
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        if flags & INDEXED:
            for r in range(rows):
                for g in range(GATES):
                    copy_in(z, r * line + g * lane, table, (ids[n + r0 + r] * GATES + g) * h_size + unit, count)
        else:
            for r in range(rows):
                copy_line(z, r * line, w, at)
            tiles(z, 0, line, rows, 4, x, (n + r0) * i_size, i_size, i_size, 0, 1, w, u_at, line)
        tiles(z, 0, line, rows, 4, h0, (before + r0) * h_line, h_line, h_size, 0, 1, w, w_at, line)
        if full is not None:
            c0_at = (before + r0) * h_size
            tiles(z, 0, line, rows, 2, c0, c0_at, h_size, h_size, 0, 1, full, panel * 3 * h_size * lane, 2 * lane)
        for r in range(rows):
            z_at = r * line
            c0_at = ((before if training else 0) + r0 + r) * h_size + unit
            c_at = ((after if training else 0) + r0 + r) * h_size + unit
            h_at = (after + r0 + r) * h_line + unit
            g_at = tape_at(w, panel, total, n + r0 + r)
            if full is not None:
                cell_open(z, z_at, c0, c0_at, c, c_at, gates, g_at, count)
            elif training:
                cell(z, z_at, c0, c0_at, c, c_at, h, h_at, count, peep, 3 * unit, gates, g_at)
            else:
                cell(z, z_at, c0, c0_at, c, c_at, h, h_at, count, peep, 3 * unit)


@part
def output_item(row0, row1, panel, n, after, total, h_size, h_line, full, h, c, gates, z):
    """With full peepholes, when every c of the step is there: the output gate and h."""
    lane = lanes_of(full)
    unit = panel * lane
    p_at = (panel * 3 + 2) * h_size * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for r in range(rows):
            g_at = tape_at(z, panel, total, n + r0 + r) + 3 * block_of(z)
            copy_in(z, r * lane, gates, g_at, lane)
        tiles(z, 0, lane, rows, 1, c, (after + r0) * h_size, h_size, h_size, 0, 1, full, p_at, lane)
        for r in range(rows):
            g_at = tape_at(z, panel, total, n + r0 + r) + 3 * block_of(z)
            c_at, h_at = (after + r0 + r) * h_size + unit, (after + r0 + r) * h_line + unit
            cell_close(z, r * lane, c, c_at, h, h_at, gates, g_at, h_size - unit)


@part
def backward_item(
    row0, row1, q, n, before, after, ahead, following, total, h_size, d_line, flags, dy, wt, peep, full,
    c, z, dc, dh0, dh,
):  # fmt: skip
    """Step s with its rows at n, before, after as in forward_item; before the first step n is -1.

    ahead : n of step s + 1, of whose rows there are `following`
    """
    lane = lanes_of(wt)
    panels, blocks = panels_for(wt, h_size), blocks_for(wt, h_size)
    size = block_of(wt)
    seg = GATES * size
    first = q * COLS
    cols = min(COLS, panels - first)
    stride = cols * lane
    wt_at = first * lane * blocks * seg
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        going = max(0, min(rows, following - r0))
        for r in range(rows):  # from the step after a chain that starts from 0, else the final state's gradient
            for k in range(cols):
                unit = (first + k) * lane
                copy_in(dh, r * stride + k * lane, dh0, (r0 + r) * h_size + unit, h_size - unit if r >= going else 0)
        left = (ahead + r0) * seg
        tiles(dh, 0, stride, going, cols, z, left, seg, seg, total * seg, blocks, wt, wt_at, stride)
        if full is not None:
            p_at = first * lane * blocks * 2 * size
            add_product(dc, r0, first, cols, going, h_size, z, left, 2 * size, total, blocks, full, p_at, dh)
        for k in range(cols):
            unit = (first + k) * lane
            count = h_size - unit
            for r in range(rows):
                d_at = r * stride + k * lane
                state = (r0 + r) * h_size + unit
                if n < 0:
                    copy_out(dh0, state, dh, d_at, count)
                    continue
                if flags & DY:
                    add_in(dh, d_at, dy, (n + r0 + r) * d_line + unit, count)
                z_at = tape_at(wt, first + k, total, n + r0 + r)
                c0_at, c_at = (before + r0 + r) * h_size + unit, (after + r0 + r) * h_size + unit
                if full is not None:
                    cell_close_backward(z, z_at, dh, d_at, c, c_at, dc, state, count)
                else:
                    cell_backward(z, z_at, dh, d_at, c, c0_at, c, c_at, dc, state, count, peep, 3 * unit)


@part
def open_item_backward(row0, row1, q, n, before, total, h_size, full, c, z, dc, work):
    """With full peepholes, when every dz_o of the step is there: the other gates."""
    lane = lanes_of(full)
    panels, blocks = panels_for(full, h_size), blocks_for(full, h_size)
    size = block_of(full)
    first = q * COLS
    cols = min(COLS, panels - first)
    p_at = (2 * panels + first) * lane * blocks * size
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        left = (n + r0) * GATES * size + 3 * size
        add_product(dc, r0, first, cols, rows, h_size, z, left, size, total, blocks, full, p_at, work)
        for k in range(cols):
            unit = (first + k) * lane
            for r in range(rows):
                z_at = tape_at(full, first + k, total, n + r0 + r)
                cell_open_backward(
                    z, z_at, c, (before + r0 + r) * h_size + unit, dc, (r0 + r) * h_size + unit, h_size - unit
                )


@device
def add_product(dc, r0, first, cols, rows, h_size, z, left, seg, total, blocks, p, p_at, work):
    """dc (B, H), accumulated: `seg` of each block of dZ times full peepholes, for some rows and vectors of units."""
    lane = lanes_of(p)
    stride = cols * lane
    at = WORK * lane
    for r in range(rows):
        for k in range(cols):
            unit = (first + k) * lane
            copy_in(work, at + r * stride + k * lane, dc, (r0 + r) * h_size + unit, h_size - unit)
    z_line = GATES * block_of(p)
    tiles(work, at, stride, rows, cols, z, left, z_line, seg, total * z_line, blocks, p, p_at, stride)
    for r in range(rows):
        for k in range(cols):
            unit = (first + k) * lane
            copy_out(dc, (r0 + r) * h_size + unit, work, at + r * stride + k * lane, h_size - unit)


@part
def sums_item(panel, n, before, after, rows, total, h_size, flags, ids, peep, z, c, acc, dtable):
    """One panel of one step of what is summed over all steps and rows."""
    lane = lanes_of(z)
    unit = panel * lane
    count = h_size - unit
    for r in range(rows):
        z_at = tape_at(z, panel, total, n + r)
        add_sums(acc, z, z_at, peep, c, (before + r) * h_size + unit, c, (after + r) * h_size + unit, count)
        if flags & INDEXED:
            for k in range(GATES):
                add_out(dtable, (ids[n + r] * GATES + k) * h_size + unit, z, z_at + k * block_of(z), count)


# ---------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------


@kernel
def lstm_forward(
    worker, workers, tickets, steps, total, i_size, h_size, h_line, shift, flags, pieces,
    at, counts, bounds, x, ids, table, w, peep, full, h, c, gates,
):  # fmt: skip
    """All steps of one direction of one layer. For `at`, `counts`, `bounds`, `shift` and `total` see panels.py.

    flags : INDEXED, TRAINING, BY_ROWS
    x : (total, I), read; or, with INDEXED,
    ids : (total,) int64, read, rows of table : (V, 4H), U x + b for each x, read
    w : packed weights, read
    peep : packed diagonal peepholes, read, or None
    full : packed full peepholes, read, or None; only with TRAINING
    h : rows of h_line numbers, H of them used; those of at[0] read, all others written
    c : with TRAINING rows of H, as h; else (B, H), read and overwritten
    gates : with TRAINING (N, total, 4 blocks), written: i f g o
    """
    panels = panels_for(w, h_size)
    z = stack(w, WORK)
    phases = 1 if full is None else 2
    length, span = (steps * phases, panels) if flags & BY_ROWS else (1, 1)
    rounds = steps * phases // max(1, length)
    for start, item in turns(tickets, 0, worker, workers, rounds, panels // span * pieces):
        first, piece = item // pieces, item % pieces
        for k in range(start * length, start * length + length):
            s = k // phases
            row0, row1 = rows_of(piece, pieces, counts[s], bounds, flags & BY_ROWS)
            n = at[s + 1] - shift
            for panel in range(first, first + span):
                if k % phases == 0:
                    forward_item(
                        row0, row1, panel, n, at[s], at[s + 1], total, i_size, h_size, h_line, flags,
                        x, ids, table, w, peep, full, h, h, c, c, gates, z,
                    )  # fmt: skip
                elif full is not None:
                    output_item(row0, row1, panel, n, at[s + 1], total, h_size, h_line, full, h, c, gates, z)


@kernel
def lstm_backward(
    worker, workers, tickets, steps, total, h_size, d_line, shift, flags, pieces,
    at, counts, bounds, dy, ids, wt, peep, full, c, gates, dc, dh0, dtable, dbias, dpeep,
):  # fmt: skip
    """All steps, backwards; then the sums over steps and rows that biases and peepholes need.

    flags : INDEXED, BIAS, DY, BY_ROWS
    dy : with DY rows of d_line numbers, as x, H of them used, read
    ids : with INDEXED (total,) int64, read
    wt : W with its rows as in a tape, packed, read
    peep : packed diagonal peepholes, read, or None
    full : full peepholes, packed, read, or None
    c : as lstm_forward left it, read
    gates : (N, total, 4 blocks): i f g o read, overwritten by dZ
    dc, dh0 : (B, H): gradients of the final state read, of the initial state written
    dtable : with INDEXED (V, 4H), accumulated
    dbias : (4H,), accumulated
    dpeep : (3, H), accumulated, or None as peep is
    """
    panels = panels_for(wt, h_size)
    groups = (panels + COLS - 1) // COLS
    dh, acc = stack(wt, DOUBLE), stack(wt, SUMS)
    phases = 1 if full is None else 2
    last = steps * phases + 1
    length, span = (last, groups) if flags & BY_ROWS else (1, 1)
    for start, item in turns(tickets, 0, worker, workers, last // length, groups // span * pieces):
        first, piece = item // pieces, item % pieces
        for k in range(start * length, start * length + length):
            s = steps - 1 - k // phases
            row0, row1 = rows_of(piece, pieces, counts[max(s, 0)], bounds, flags & BY_ROWS)
            n = at[s + 1] - shift if s >= 0 else -1
            before = at[max(s, 0)]
            # One step past the end has no rows: nothing is read at `ahead` then.
            ahead, following = (at[s + 2] - shift, counts[s + 1]) if s < steps - 1 else (0, 0)
            for q in range(first, first + span):
                if k % phases == 0:
                    backward_item(
                        row0, row1, q, n, before, at[s + 1], ahead, following, total, h_size, d_line, flags,
                        dy, wt, peep, full, c, gates, dc, dh0, dh,
                    )  # fmt: skip
                elif full is not None:
                    open_item_backward(row0, row1, q, n, before, total, h_size, full, c, gates, dc, dh)
    if flags & (BIAS | INDEXED) or peep is not None:
        lane = lanes_of(gates)
        for _, panel in turns(tickets, 1, worker, workers, 1, panels):
            for k in range(SUMS * lane):
                acc[k] = 0
            for s in range(steps):
                n = at[s + 1] - shift
                sums_item(panel, n, at[s], at[s + 1], counts[s], total, h_size, flags, ids, peep, gates, c, acc, dtable)
            unit = panel * lane
            if flags & BIAS:
                for k in range(GATES):
                    add_out(dbias, k * h_size + unit, acc, k * lane, h_size - unit)
            if peep is not None:
                for k in range(3):
                    add_out(dpeep, k * h_size + unit, acc, (GATES + k) * lane, h_size - unit)


@kernel
def lstm_step(x, h0, c0, w, peep, out):
    """One step, for the caller alone. False, and nothing done, if the shapes do not fit or the work is not small.

    x : (1, B, I), h0, c0 : (1, B, H), w : packed weights, read; peep : packed diagonal peepholes, read, or None
    out : (3, 1, B, H), written: y, h, c, of which y and h are the same
    """
    y, h, c = out[0], out[1], out[2]
    batch, i_size, h_size = x.shape[1], x.shape[2], h.shape[2]
    lane = lanes_of(w)
    panels = panels_for(w, h_size)
    fits = len(x) == 1 and h0.shape == h.shape and c0.shape == h.shape and h.shape[:2] == (1, batch)
    if not fits or len(w) != panels * GATES * (1 + i_size + h_size) * lane or batch * len(w) > SMALL:
        return False
    z, none = stack(w, WORK), stack(w, 1)
    ids = np.empty(0, np.int64)
    for panel in range(panels):
        forward_item(
            0, batch, panel, 0, 0, 0, batch, i_size, h_size, h_size, 0,
            x, ids, none, w, peep, None, h0, h, c0, c, none, z,
        )  # fmt: skip
    for k in range(0, batch * h_size, lane):
        copy_rows(y, k, h, k, batch * h_size - k)
    return True


# ---------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------


@kernel
def lstm_pack(worker, workers, tickets, i_size, h_size, u, w, b_ih, b_hh, packed):
    """Weights as lstm_forward wants them.

    u : (4H, I), read; w : (4H, H), read; b_ih, b_hh : (4H,) or empty, read
    packed : P panels, written
    """
    lane = lanes_of(packed)
    line = GATES * lane
    for _, panel in turns(tickets, 0, worker, workers, 1, panels_for(packed, h_size)):
        at = panel * (1 + i_size + h_size) * line
        unit = panel * lane
        rows = max(0, min(lane, h_size - unit))
        for g in range(GATES):
            add_biases(packed, at + g * lane, b_ih, b_hh, g * h_size + unit, rows)
            u_at = at + line + g * lane
            pack_transposed(packed, u_at, line, u, g * h_size + unit, rows, i_size, lane)
            pack_transposed(packed, u_at + i_size * line, line, w, g * h_size + unit, rows, h_size, lane)


@kernel
def lstm_pack_full(worker, workers, tickets, h_size, p, packed):
    """Full peepholes as lstm_forward wants them.

    p : (3, H, H), rows i f o, read
    packed : P panels: p_i and p_f (H x 2W), p_o (H x W), written
    """
    lane = lanes_of(packed)
    for _, panel in turns(tickets, 0, worker, workers, 1, panels_for(packed, h_size)):
        unit, at = panel * lane, panel * 3 * h_size * lane
        rows = max(0, min(lane, h_size - unit))
        for k in range(2):
            pack_transposed(packed, at + k * lane, 2 * lane, p, k * h_size + unit, rows, h_size, lane)
        pack_transposed(packed, at + 2 * h_size * lane, lane, p, 2 * h_size + unit, rows, h_size, lane)
