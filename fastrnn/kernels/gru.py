"""The GRU, with the reset gate after the recurrent product or before it.

    r = sigmoid(U_r x + W_r h' + b_r)                 h': the previous step's
    z = sigmoid(U_z x + W_z h' + b_z)
    n = tanh(U_n x + b_n + r (W_n h' + b_hn))         after: PyTorch's, and cuDNN's
    n = tanh(U_n x + b_n + W_n (r h') + b_hn)         before: Cho et al. 2014
    h = (1 - z) n + z h'

A panel is W hidden units with all their gates, W the lanes of a vector. Its pre-activations lie in the order n r z v,
v = W_n h' + b_hn: the product with x gives the first three and that with h' the last three, three columns each and
none of them idle. The tape has the same order, so that dU and dx take its first three blocks, dW and dh its last three.
Before needs every r of a step before any n: a step has two phases, r z and n.

    packed weights   P x (4 + 3 I + 3 H) W    a panel after the other: b (4W), U (I x 3W), W (H x 3W)
                                              before: W (H x 2W), and P x H W apart for W_n
    tape             T B 4 N block  n r z v, (T + 1) B H  states (the output is a view of them), before: T B H  r h'
    backward         writes the gradients of n r z v over them;  B H  for what z (and r) carry of dh
    regularisers     recurrent dropout B H  for the mask, (T + 1) B H  for drop h; zoneout T B H  for the mask

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

import numpy as np

from .._jit import SMALL, kernel, part
from ..simd.sync import turns
from ..simd.target import COLS
from ..simd.vector import block, block_of, fma, lanes, lanes_of, load, pointwise, stack, store
from .activations import dsigmoid, dtanh, sigmoid, tanh
from .masks import add_carried, drop_out, drop_out_backward, hold, zone_out
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

GATES = 3

# ---------------------------------------------------------------------------------------------------
# One row of one panel
# ---------------------------------------------------------------------------------------------------


@pointwise
def cell(y, y_off, h0, h0_off, h, h_off, count, gates=None, g_off=0):
    """y (4W): pre-activations n r z v, read. h' read, h written (count of W). gates: for training, n r z v written."""
    w = lanes(y)
    y_n, y_r, y_z, v = (load(y, y_off + k * w) for k in range(4))
    r, z = sigmoid(y_r), sigmoid(y_z)
    n = tanh(fma(r, v, y_n))
    store(h, h_off, fma(z, load(h0, h0_off, count) - n, n), count)
    if gates is not None:
        for k, gate in enumerate((n, r, z, v)):
            store(gates, g_off + k * block(gates), gate)


@pointwise
def cell_backward(a, a_off, dh, dh_off, h0, h0_off, dh0, dh0_off, count):
    """a : n r z v, read, overwritten by their gradients. dh (W), h' read; dh0 (count of W) written: what z carries."""
    unit = block(a)
    n, r, z, v = (load(a, a_off + k * unit) for k in range(4))
    d = load(dh, dh_off)
    dn = (d - d * z) * dtanh(n)
    dz_z = d * (load(h0, h0_off, count) - n) * dsigmoid(z)
    store(dh0, dh0_off, d * z, count)
    for k, dz in enumerate((dn, dn * v * dsigmoid(r), dz_z, dn * r)):
        store(a, a_off + k * unit, dz)


@pointwise
def cell_open(y, y_off, h0, h0_off, s, s_off, gates, g_off, count):
    """Before: r, z and s = r h', written (count of W); y_n is left where n belongs."""
    w = lanes(y)
    y_n, y_r, y_z = (load(y, y_off + k * w) for k in range(3))
    r, z = sigmoid(y_r), sigmoid(y_z)
    store(s, s_off, r * load(h0, h0_off, count), count)
    for k, gate in enumerate((y_n, r, z)):
        store(gates, g_off + k * block(gates), gate)


@pointwise
def cell_close(y, y_off, h0, h0_off, h, h_off, gates, g_off, count):
    """The rest: y (W), the whole of y_n, and z read; n and h written."""
    n, z = tanh(load(y, y_off)), load(gates, g_off + 2 * block(gates))
    store(gates, g_off, n)
    store(h, h_off, fma(z, load(h0, h0_off, count) - n, n), count)


@pointwise
def cell_close_backward(a, a_off, dh, dh_off, h0, h0_off, dh0, dh0_off, count):
    """a : n and z read, overwritten by their gradients. dh (W), h' read; dh0 written: what z carries."""
    unit = block(a)
    n, z, d = load(a, a_off), load(a, a_off + 2 * unit), load(dh, dh_off)
    store(dh0, dh0_off, d * z, count)
    store(a, a_off, (d - d * z) * dtanh(n))
    store(a, a_off + 2 * unit, d * (load(h0, h0_off, count) - n) * dsigmoid(z))


@pointwise
def cell_open_backward(a, a_off, ds, ds_off, h0, h0_off, dh0, dh0_off, count):
    """ds (W), the gradient of r h', and h' read. a : r read, overwritten by its gradient. dh0 accumulated."""
    unit = block(a)
    r, d = load(a, a_off + unit), load(ds, ds_off)
    store(a, a_off + unit, d * load(h0, h0_off, count) * dsigmoid(r))
    store(dh0, dh0_off, fma(d, r, load(dh0, dh0_off, count)), count)


@pointwise
def add_sums(acc, a, a_off, wnt):
    """acc (4W), accumulated: the gradients of n r z v, read, for the biases; before (wnt is not None) there is no v."""
    w = lanes(acc)
    for k in range(TAPE if wnt is None else GATES):
        store(acc, k * w, load(acc, k * w) + load(a, a_off + k * block(a)))


# ---------------------------------------------------------------------------------------------------
# One panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@part
def forward_item(
    row0, row1, panel, n, before, after, kept, kept_rows, i_size, h_size, h_line, flags,
    x, ids, table, w, wn, h0, h, gates, s, y, hw, hw_line,
):  # fmt: skip
    """hw : rows of hw_line numbers: h' as it goes into the products with W, read"""
    lane = lanes_of(w)
    line = TAPE * lane
    at = panel * (TAPE + GATES * i_size + (GATES if wn is None else 2) * h_size) * lane
    u_at = at + line
    w_at = u_at + i_size * GATES * lane
    unit = panel * lane
    count = h_size - unit
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for r in range(rows):
            copy_line(y, r * line, w, at)
        if flags & INDEXED:
            for r in range(rows):
                for g in range(GATES):  # n r z from r z n
                    source = (ids[n + r0 + r] * GATES + (g + 2) % GATES) * h_size + unit
                    copy_in(y, r * line + g * lane, table, source, count)
        else:
            x_at = (n + r0) * i_size
            tiles(y, 0, line, rows, 3, x, x_at, i_size, i_size, 0, 1, w, u_at, GATES * lane)
        h0_at, hw_at = (before + r0) * h_line, (before + r0) * hw_line
        if wn is None:
            tiles(y, lane, line, rows, 3, hw, hw_at, hw_line, h_size, 0, 1, w, w_at, GATES * lane)
        else:
            tiles(y, lane, line, rows, 2, hw, hw_at, hw_line, h_size, 0, 1, w, w_at, 2 * lane)
        for r in range(rows):
            from_at, to_at = h0_at + r * h_line + unit, (after + r0 + r) * h_line + unit
            g_at = tape_at(w, panel, kept_rows, kept + r0 + r)
            if wn is not None:
                s_at = (kept + r0 + r) * h_size + unit
                cell_open(y, r * line, hw, hw_at + r * hw_line + unit, s, s_at, gates, g_at, count)
            elif flags & TRAINING:
                cell(y, r * line, h0, from_at, h, to_at, count, gates, g_at)
            else:
                cell(y, r * line, h0, from_at, h, to_at, count)


@part
def candidate_item(row0, row1, panel, before, after, kept, kept_rows, h_size, h_line, wn, h, gates, s, y):
    """Before, when every r of the step is there: n and h."""
    lane = lanes_of(wn)
    unit = panel * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for r in range(rows):
            copy_in(y, r * lane, gates, tape_at(wn, panel, kept_rows, kept + r0 + r), lane)
        tiles(
            y, 0, lane, rows, 1, s, (kept + r0) * h_size, h_size, h_size, 0, 1, wn, panel * h_size * lane, lane
        )  # fmt: skip
        for r in range(rows):
            from_at, to_at = (before + r0 + r) * h_line + unit, (after + r0 + r) * h_line + unit
            g_at = tape_at(wn, panel, kept_rows, kept + r0 + r)
            cell_close(y, r * lane, h, from_at, h, to_at, gates, g_at, h_size - unit)


@part
def backward_item(
    row0, row1, q, n, before, ahead, following, total, h_size, h_line, flags, dy, wt, wnt, h, a, dh0,
    drop, keep, held, dh,
):  # fmt: skip
    """Step s with its rows at n and before as in forward_item; before the first step n is -1.

    ahead : n of step s + 1, of whose rows there are `following`
    """
    lane = lanes_of(wt)
    panels, blocks = panels_for(wt, h_size), blocks_for(wt, h_size)
    size = block_of(wt)
    seg = (GATES if wnt is None else 2) * size
    first = q * COLS
    cols = min(COLS, panels - first)
    stride = cols * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        going = max(0, min(rows, following - r0))
        for r in range(rows):  # what z carried from the step after, or the final state's gradient
            for k in range(cols):
                unit = (first + k) * lane
                count = h_size - unit
                if drop is not None:  # it comes after the product
                    count = count if r >= going else 0
                copy_in(dh, r * stride + k * lane, dh0, (r0 + r) * h_size + unit, count)
        left = (ahead + r0) * TAPE * size + size
        tiles(
            dh, 0, stride, going, cols, a, left, TAPE * size, seg, total * TAPE * size, blocks,
            wt, first * lane * blocks * seg, stride,
        )  # fmt: skip
        if drop is not None:
            drop_out_backward(r0, going, first, cols, h_size, drop, dh)
            add_carried(r0, going, first, cols, h_size, dh0, dh)
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
                    add_in(dh, d_at, dy, (n + r0 + r) * h_line + unit, count)
                if keep is not None:
                    hold(dh, d_at, held, 0, keep, (n + r0 + r) * h_size + unit, count)
                a_at = tape_at(wt, first + k, total, n + r0 + r)
                h_at = (before + r0 + r) * h_line + unit
                if wnt is None:
                    cell_backward(a, a_at, dh, d_at, h, h_at, dh0, state, count)
                else:
                    cell_close_backward(a, a_at, dh, d_at, h, h_at, dh0, state, count)
                if keep is not None:
                    add_out(dh0, state, held, 0, count)


@part
def reset_item_backward(row0, row1, q, n, before, total, h_size, h_line, wnt, h, a, dh0, drop, ds):
    """Before, when every dn of the step is there: the gradient of r h', and with it that of r."""
    lane = lanes_of(wnt)
    panels, blocks = panels_for(wnt, h_size), blocks_for(wnt, h_size)
    size = block_of(wnt)
    first = q * COLS
    cols = min(COLS, panels - first)
    stride = cols * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for r in range(rows):
            for k in range(cols):
                copy_in(ds, r * stride + k * lane, dh0, 0, 0)
        tiles(
            ds, 0, stride, rows, cols, a, (n + r0) * TAPE * size, TAPE * size, size, total * TAPE * size, blocks,
            wnt, first * lane * blocks * size, stride,
        )  # fmt: skip
        if drop is not None:  # s = r (drop h')
            drop_out_backward(r0, rows, first, cols, h_size, drop, ds)
        for k in range(cols):
            unit = (first + k) * lane
            for r in range(rows):
                a_at = tape_at(wnt, first + k, total, n + r0 + r)
                h_at = (before + r0 + r) * h_line + unit
                state = (r0 + r) * h_size + unit
                cell_open_backward(a, a_at, ds, r * stride + k * lane, h, h_at, dh0, state, h_size - unit)


# ---------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------


@kernel
def gru_forward(
    worker, workers, tickets, steps, kept_rows, i_size, h_size, h_line, shift, flags, pieces,
    at, counts, bounds, x, ids, table, w, wn, h, gates, s, drop, dropped, keep, each,
):  # fmt: skip
    """All steps of one direction of one layer. For `at`, `counts`, `bounds`, `shift` and `total` see panels.py.

    flags : INDEXED, TRAINING, BY_ROWS
    x : (total, I), read; or, with INDEXED,
    ids : (total,) int64, read, rows of table : (V, 3H), U x and the biases for each x, read
    w : packed weights, read
    wn : packed W_n, read, for the reset gate before the product; or None
    h : rows of h_line numbers, H of them used; those of at[0] read, all others written
    gates : (N, kept_rows, 4 blocks), with TRAINING kept_rows = total, written: n r z v; or, with wn but without
        TRAINING, kept_rows = B, overwritten
    s : with wn (kept_rows, H), written: r h'
    drop, dropped : (B, H), read, and rows of H, as h, for the mask of recurrent dropout and h times it; or None
    keep : (total, H), read, for zoneout, without `each` one row for all; or None
    """
    panels = panels_for(w, h_size)
    y = stack(w, WORK)
    if drop is None:
        hw, hw_line = h, h_line
    else:
        hw, hw_line = dropped, h_size
    phases = 1 if wn is None else 2
    length, span = (steps * phases, panels) if flags & BY_ROWS else (1, 1)
    rounds = steps * phases // max(1, length)
    for start, item in turns(tickets, 0, worker, workers, rounds, panels // span * pieces):
        first, piece = item // pieces, item % pieces
        for k in range(start * length, start * length + length):
            t = k // phases
            row0, row1 = rows_of(piece, pieces, counts[t], bounds, flags & BY_ROWS)
            n = at[t + 1] - shift
            kept = n if flags & TRAINING else 0
            for panel in range(first, first + span):
                if k % phases == 0:
                    forward_item(
                        row0, row1, panel, n, at[t], at[t + 1], kept, kept_rows, i_size, h_size, h_line, flags,
                        x, ids, table, w, wn, h, h, gates, s, y, hw, hw_line,
                    )  # fmt: skip
                elif wn is not None:
                    candidate_item(
                        row0, row1, panel, at[t], at[t + 1], kept, kept_rows, h_size, h_line, wn, h, gates, s, y
                    )
                if keep is not None and k % phases == phases - 1:
                    zone_out(
                        row0, row1, panel, 1, h_size, h, at[t + 1], h_line, h, at[t], at[t + 1], h_line,
                        keep, n if each else -1,
                    )  # fmt: skip
                if drop is not None and k % phases == phases - 1:
                    drop_out(row0, row1, panel, 1, h_size, h, at[t + 1], h_line, drop, dropped)


@kernel
def gru_backward(
    worker, workers, tickets, steps, total, h_size, h_line, shift, flags, pieces,
    at, counts, bounds, dy, ids, wt, wnt, h, gates, dh0, dtable, dbias, drop, keep,
):  # fmt: skip
    """All steps, backwards; then the sums over steps and rows that biases need, in the same order: a sum goes on from
    what is there, so that several calls, the last steps first, make the chain that one call makes.

    flags : INDEXED, BIAS, DY, BY_ROWS
    dy : with DY rows of h_line numbers, as x, H of them used, read
    ids : with INDEXED (total,) int64, read
    wt : W with its rows as in a tape, packed, read; with wnt without W_n
    wnt : W_n with its rows as in a tape, packed, read, for the reset gate before the product; or None
    h : as gru_forward left it, read
    gates : (N, total, 4 blocks): n r z v read, overwritten by their gradients
    dh0 : (B, H): gradient of the final state read, of the initial state written
    dtable : with INDEXED (V, 3H), accumulated
    dbias : (4, H), accumulated: of n r z v; without v if there is wnt
    drop, keep : (B, H), (total, H), as gru_forward, read, or None
    """
    panels = panels_for(wt, h_size)
    groups = (panels + COLS - 1) // COLS
    dh, acc, held = stack(wt, WORK), stack(wt, TAPE), stack(wt, 1)
    phases = 1 if wnt is None else 2
    last = steps * phases + 1
    length, span = (last, groups) if flags & BY_ROWS else (1, 1)
    for start, item in turns(tickets, 0, worker, workers, last // length, groups // span * pieces):
        first, piece = item // pieces, item % pieces
        for k in range(start * length, start * length + length):
            t = steps - 1 - k // phases
            row0, row1 = rows_of(piece, pieces, counts[max(t, 0)], bounds, flags & BY_ROWS)
            n = at[t + 1] - shift if t >= 0 else -1
            before = at[max(t, 0)]
            # After the last step there are no rows, and nothing is read at `ahead`.
            ahead, following = (at[t + 2] - shift, counts[t + 1]) if t < steps - 1 else (0, 0)
            for q in range(first, first + span):
                if k % phases == 0:
                    backward_item(
                        row0, row1, q, n, before, ahead, following, total, h_size, h_line, flags,
                        dy, wt, wnt, h, gates, dh0, drop, keep, held, dh,
                    )  # fmt: skip
                elif wnt is not None:
                    reset_item_backward(row0, row1, q, n, before, total, h_size, h_line, wnt, h, gates, dh0, drop, dh)
    if flags & (BIAS | INDEXED):
        lane = lanes_of(gates)
        for _, panel in turns(tickets, 1, worker, workers, 1, panels):
            unit = panel * lane
            for k in range(TAPE):
                copy_in(acc, k * lane, dbias, k * h_size + unit, h_size - unit)
            for t in range(steps - 1, -1, -1):
                for n in range(at[t + 1] - shift, at[t + 1] - shift + counts[t]):
                    a_at = tape_at(gates, panel, total, n)
                    add_sums(acc, gates, a_at, wnt)
                    if flags & INDEXED:
                        for g in range(GATES):  # r z n from n r z
                            to, source = (ids[n] * GATES + g) * h_size + unit, a_at + (g + 1) % GATES * block_of(gates)
                            add_out(dtable, to, gates, source, h_size - unit)
            if flags & BIAS:
                for k in range(TAPE):
                    copy_out(dbias, k * h_size + unit, acc, k * lane, h_size - unit)


@kernel
def gru_step(w, x, out, h0):
    """One step, for the caller alone, with the reset gate after the product. False, and nothing done, if the shapes do
    not fit or the work is not small.

    w : packed weights, read
    x : (1, B, I), read
    out : (2, 1, B, H), written: y, h, both the same
    h0 : (1, B, H), read
    """
    y, h = out[0], out[1]
    batch, i_size, h_size = x.shape[1], x.shape[2], h.shape[2]
    lane = lanes_of(w)
    panels = panels_for(w, h_size)
    fits = len(x) == 1 and h0.shape == h.shape and h.shape[:2] == (1, batch)
    if not fits or len(w) != panels * (TAPE + GATES * (i_size + h_size)) * lane or batch * len(w) > SMALL:
        return False
    work, none = stack(w, WORK), stack(w, 1)
    ids = np.empty(0, np.int64)
    for panel in range(panels):
        forward_item(
            0, batch, panel, 0, 0, 0, 0, batch, i_size, h_size, h_size, 0,
            x, ids, none, w, None, h0, h, none, none, work, h0, h_size,
        )  # fmt: skip
    for k in range(0, batch * h_size, lane):
        copy_rows(y, k, h, k, batch * h_size - k)
    return True


# ---------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------


@kernel
def gru_pack(worker, workers, tickets, i_size, h_size, u, w, b_ih, b_hh, packed, wn):
    """Weights as gru_forward wants them.

    u : (3H, I), read; w : (3H, H), read; b_ih, b_hh : (3H,) or empty, read
    packed : P panels, written
    wn : P panels (H x W) for W_n, written, for the reset gate before the product; or None
    """
    lane = lanes_of(packed)
    recurrent = GATES if wn is None else 2
    none = b_ih[:0]
    for _, panel in turns(tickets, 0, worker, workers, 1, panels_for(packed, h_size)):
        at = panel * (TAPE + GATES * i_size + recurrent * h_size) * lane
        unit = panel * lane
        rows = max(0, min(lane, h_size - unit))
        u_at = at + TAPE * lane
        w_at = u_at + i_size * GATES * lane
        for g in range(GATES):  # r z n
            column = (g + 1) % GATES * lane
            b_h = none if g == 2 and wn is None else b_hh
            add_biases(packed, at + column, b_ih, b_h, g * h_size + unit, rows)
            pack_transposed(packed, u_at + column, GATES * lane, u, g * h_size + unit, rows, i_size, lane)
        add_biases(packed, at + GATES * lane, none, b_hh, 2 * h_size + unit, rows)
        for g in range(recurrent):
            to = w_at + g * lane
            pack_transposed(packed, to, recurrent * lane, w, g * h_size + unit, rows, h_size, lane)
        if wn is not None:
            pack_transposed(wn, panel * h_size * lane, lane, w, 2 * h_size + unit, rows, h_size, lane)
