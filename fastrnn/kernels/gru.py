"""The GRU, with the reset gate after the recurrent product or before it.

    r = sigmoid(U_r x + W_r h' + b_r)                 h': the previous step's
    z = sigmoid(U_z x + W_z h' + b_z)
    n = tanh(U_n x + b_n + r (W_n h' + b_hn))         after: PyTorch's, and cuDNN's
    n = tanh(U_n x + b_n + W_n (r h') + b_hn)         before: Cho et al. 2014
    h = (1 - z) n + z h'

A panel is W hidden units with all their gates, W the lanes of a vector. Its pre-activations lie in the order n r z v,
v = W_n h' + b_hn: the product with x gives the first three and that with h' the last three, three columns each and
none of them idle. The tape has the same order, so that dU and dx take its first three blocks, dW and dh its last three.
With one or two rows the items of a step are groups of panels (panels.py). Before needs every r of a step before any n:
a step has two phases, r z and n. So has one with layer normalisation (Ba, Kiros and Hinton 2016; see norm.py), W h' and
h, where

    LN(U x) and LN(W h')  stand for  U x and W h', normalised before b and b_hn are added

and U x of all rows is normalised before: what comes in is a table of them.

    packed weights   P x (4 + 3 I + 3 H) W    a panel after the other: b (4W), U (I x 3W), W (H x 3W)
                                              before: W (H x 2W), and P x H W apart for W_n
    tape             T B 4 N block  n r z v, (T + 1) B H  states (the output is a view of them), before: T B H  r h'
    backward         writes the gradients of n r z v over them;  B H  for what z (and r) carry of dh
    regularisers     recurrent dropout B H  for the mask, (T + 1) B H  for drop h; zoneout T B H  for the mask
    norm             T B (3 H + 1)  for (U x)^ and its scales, T B 4 N block  for (W h')^, in the last three, 5 T B  for
                     scales and means; while it runs N B 2  for partials. Backward writes the gradient of U x over n r z
                     and that of W h' over (W h')^;  B 4 N block  for one step's of W h', N B 4  for partials

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

from .._jit import device, kernel, part
from ..simd.post import share
from ..simd.sync import turns
from ..simd.target import COLS
from ..simd.tile import OWN, SHARED
from ..simd.vector import block, block_of, fma, lanes, lanes_of, load, only, pointwise, read, stack, store
from .activations import dsigmoid, dtanh, sigmoid, tanh
from .few_steps import few_steps, step_fits, which_way
from .masks import add_carried, drop_out, drop_out_backward, hold, zone_out
from .norm import OF_H, OF_X, SCALE, STATS, means, moments, store_moments, sum_of, unnormalised
from .panels import (
    CHUNK,
    NO_IDS,
    ROOM,
    TAPE,
    WORK,
    add_biases,
    add_in,
    add_out,
    blocks_for,
    bounds_of,
    copy_in,
    copy_line,
    copy_out,
    copy_rows,
    groups_of_few,
    inwards,
    pack_transposed,
    panels_for,
    rows_of,
    steps_of_item,
    tape_at,
    tiles,
    tiles_of_panels,
)
from .writing import division, write_some

INDEXED, TRAINING, BIAS, DY, BY_ROWS = 1, 2, 4, 8, 16

GATES = 3
NORM_SUMS = 2 * GATES  # vectors of sums with normalisation, besides the biases: the gains for U x, for W h'

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
# The same with normalisation
# ---------------------------------------------------------------------------------------------------
#
# Everywhere below
#     v : a block of W h', at its r z v, a block apart
#     x : (U x)^ of the row, r z n x_line apart, `count` of each
#     gain : packed gains, see norm.py: n r z for U x, r z v for W h', a block apart
#     scales : what is kept of the row, from one of its numbers to the next `apart`


@pointwise
def v_moments(v, v_off, count, inverse, parts, off, apart):
    """The partials of W h': its sum and squares, written to parts; count units."""
    n = block(v)
    store_moments([load(v, v_off + k * n, n=n) for k in range(GATES)], count, inverse, parts, off, apart)


@pointwise
def cell_norm(
    v, v_off, stats, s_off, x, x_off, x_line, gain, gain_off, b, b_off, h0, h0_off, h, h_off, count, gates, g_off
):
    """v : read, overwritten by v^

    stats : mean and, CHUNK further, 1 / sqrt(..) of the row's W h', read
    b : biases (4W) n r z v, read
    gates : n r z v written
    """
    w, unit = lanes(v), block(v)
    mean, scale = read(stats, s_off), read(stats, s_off + CHUNK)
    from_x, from_h = [], []
    for k in range(GATES):
        a = (load(v, v_off + k * unit) - mean) * scale
        bias, x_at = load(b, b_off + k * w), x_off + (k + 2) % GATES * x_line
        from_x.append(fma(load(gain, gain_off + k * unit), load(x, x_at, count), bias))
        from_h.append((load(gain, gain_off + (GATES + k) * unit), a))
        store(v, v_off + k * unit, a)
    (y_n, x_r, x_z), (v_r, v_z, (gain_v, a)) = from_x, from_h
    r, z = sigmoid(fma(*v_r, x_r)), sigmoid(fma(*v_z, x_z))
    u = fma(gain_v, a, load(b, b_off + GATES * w))
    n = tanh(fma(r, u, y_n))
    store(h, h_off, fma(z, load(h0, h0_off, count) - n, n), count)
    for k, gate in enumerate((n, r, z, u)):
        store(gates, g_off + k * unit, gate)


@pointwise
def a_sums(a, a_off, v, v_off, x, x_off, x_line, gain, gain_off, count, parts, off, apart):
    """The partials of the gradients of (U x)^ and of (W h')^: of each the sums of d and of d (..)^.

    a : the gradients of n r z v, read; v^, x read
    """
    n = block(a)
    for of_h in (0, 1):
        sums, products = [], []
        for k in range(GATES):
            b = load(v, v_off + k * n, n=n) if of_h else load(x, x_off + (k + 2) % GATES * x_line, count, n)
            d = load(gain, gain_off + (of_h * GATES + k) * n, n=n) * load(a, a_off + (of_h + k) * n, n=n)
            sums.append(only(d, count))
            products.append(only(d * b, count))
        store(parts, off + 2 * of_h * apart, sum_of(sums), 1)
        store(parts, off + (2 * of_h + 1) * apart, sum_of(products), 1)


@pointwise
def v_backward(a, a_off, v, v_off, scales, s_off, apart, stats, at, gain, gain_off, count, dv, dv_off):
    """The gradients of r z v at a, and v^, read; the gradient of W h' written to dv; count units.

    stats : the row's means of d and, CHUNK further, of d v^, read
    """
    n = block(a)
    scale, mean, product = read(scales, s_off + SCALE * apart), read(stats, at), read(stats, at + CHUNK)
    for k in range(GATES):
        d = load(gain, gain_off + (GATES + k) * n, n=n) * load(a, a_off + k * n, n=n)
        store(dv, dv_off + k * n, only(unnormalised(d, load(v, v_off + k * n, n=n), scale, mean, product), count))


@pointwise
def add_norm_sums(
    acc, a, a_off, v, v_off, x, x_off, x_line, x_scale, x_at, scales, s_off, apart, gain, gain_off, count
):
    """acc (6W), accumulated: the gradients of n r z times x, those of r z v times v^. a : the former read, overwritten
    by the gradient of U x. v : v^, read, overwritten by that of W h'.
    """
    w, unit = lanes(acc), block(a)
    of_x, of_h = [read(x_scale, x_at)], [read(scales, s_off + SCALE * apart)]
    of_x += [read(scales, s_off + (OF_X + k) * apart) for k in (0, 1)]
    of_h += [read(scales, s_off + (OF_H + k) * apart) for k in (0, 1)]
    d = [load(a, a_off + k * unit) for k in range(TAPE)]
    for k in range(GATES):
        x_k, v_k = load(x, x_off + (k + 2) % GATES * x_line, count), load(v, v_off + k * unit)
        d_x, d_h = load(gain, gain_off + k * unit) * d[k], load(gain, gain_off + (GATES + k) * unit) * d[k + 1]
        store(acc, k * w, fma(d[k], x_k, load(acc, k * w)))
        store(acc, (GATES + k) * w, fma(d[k + 1], v_k, load(acc, (GATES + k) * w)))
        store(a, a_off + k * unit, only(unnormalised(d_x, x_k, *of_x), count))
        store(v, v_off + k * unit, only(unnormalised(d_h, v_k, *of_h), count))


# ---------------------------------------------------------------------------------------------------
# A group or a panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@part
def forward_item(
    row0, row1, panel0, panel1, n, before, after, kept, kept_rows, i_size, h_size, h_line, flags,
    x, ids, table, w, wn, h0, h, gates, s, y, hw, hw_line,
):  # fmt: skip
    """The panels of a group, from panel0 to before panel1.

    hw : rows of hw_line numbers: h' as it goes into the products with W, read
    """
    lane = lanes_of(w)
    one, panels = TAPE * lane, panel1 - panel0
    line = panels * one
    w_next = (TAPE + GATES * i_size + (GATES if wn is None else 2) * h_size) * lane
    at = panel0 * w_next
    u_at = at + one
    w_at = u_at + i_size * GATES * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for k in range(panels):
            for r in range(rows):
                copy_line(y, r * line + k * one, w, at + k * w_next)
        if flags & INDEXED:
            for r in range(rows):
                row = n + r0 + r if len(ids) == 0 else ids[n + r0 + r]
                for k in range(panels):
                    for g in range(GATES):  # n r z from r z n
                        unit = (panel0 + k) * lane
                        source = (row * GATES + (g + 2) % GATES) * h_size + unit
                        copy_in(y, r * line + k * one + g * lane, table, source, h_size - unit)
        else:
            x_at = (n + r0) * i_size
            tiles_of_panels(y, 0, line, one, rows, panels, x, x_at, 0, 0, x, x_at, i_size, i_size, w, u_at, w_next)
        h0_at, hw_at = (before + r0) * h_line, (before + r0) * hw_line
        if wn is None:
            tiles_of_panels(
                y, lane, line, one, rows, panels, hw, hw_at, 0, 0, hw, hw_at, hw_line, h_size, w, w_at, w_next
            )  # fmt: skip
        else:
            for k in range(panels):
                tiles(
                    y, k * one + lane, line, rows, 2, hw, hw_at, hw_line, h_size, 0, 1, w, w_at + k * w_next, OWN
                )  # fmt: skip
        for panel in range(panel0, panel1):
            unit, of_panel = panel * lane, (panel - panel0) * one
            count = h_size - unit
            for k in range(rows):
                r = inwards(k, rows)
                y_at = r * line + of_panel
                from_at, to_at = h0_at + r * h_line + unit, (after + r0 + r) * h_line + unit
                g_at = tape_at(w, panel, kept_rows, kept + r0 + r)
                if wn is not None:
                    s_at = (kept + r0 + r) * h_size + unit
                    cell_open(y, y_at, hw, hw_at + r * hw_line + unit, s, s_at, gates, g_at, count)
                elif flags & TRAINING:
                    cell(y, y_at, h0, from_at, h, to_at, count, gates, g_at)
                else:
                    cell(y, y_at, h0, from_at, h, to_at, count)


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
            y, 0, lane, rows, 1, s, (kept + r0) * h_size, h_size, h_size, 0, 1, wn, panel * h_size * lane, OWN
        )  # fmt: skip
        for r in range(rows):
            from_at, to_at = (before + r0 + r) * h_line + unit, (after + r0 + r) * h_line + unit
            g_at = tape_at(wn, panel, kept_rows, kept + r0 + r)
            cell_close(y, r * lane, h, from_at, h, to_at, gates, g_at, h_size - unit)


@part
def backward_item(
    row0, row1, q, n, before, ahead, following, total, h_size, h_line, flags, dy, wt, wnt, h, a, next_a, next_rows,
    dh0, drop, keep, held, dh,
):  # fmt: skip
    """Step s with its rows at n and before as in forward_item; before the first step n is -1.

    ahead : n of step s + 1 in next_a, a tape of next_rows; of its rows there are `following`
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
            dh, 0, stride, going, cols, next_a, left, TAPE * size, seg, next_rows * TAPE * size, blocks,
            wt, first * lane * blocks * seg, SHARED,
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
            wnt, first * lane * blocks * size, SHARED,
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


@device
def gain_at(gain, panel):
    """Where the gains of a panel begin."""
    unit, size = panel * lanes_of(gain), block_of(gain)
    return unit // size * 2 * GATES * size + unit % size


@part
def product_item_norm(
    row0, row1, first, end, before, kept, kept_rows, batch, h_size, h_line, w, h, v, parts, y
):  # fmt: skip
    """With normalisation: W h' of whole blocks, the panels from first to before end, and its partials."""
    lane, size = lanes_of(w), block_of(w)
    line = GATES * lane
    blocks = blocks_for(w, h_size)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for b in range(first * lane // size, end * lane // size):
            for panel in range(b * (size // lane), (b + 1) * (size // lane)):
                for k in range(0, rows * line, lane):
                    copy_in(y, k, v, 0, 0)
                w_at = panel * (TAPE + GATES * h_size) * lane + TAPE * lane
                tiles(y, 0, line, rows, 3, h, (before + r0) * h_line, h_line, h_size, 0, 1, w, w_at, OWN)
                for r in range(rows):
                    v_at = tape_at(w, panel, kept_rows, kept + r0 + r) + size
                    for g in range(GATES):
                        copy_out(v, v_at + g * size, y, r * line + g * lane, lane)
            count = min(size, h_size - b * size)
            for r in range(rows):
                v_at, at = (b * kept_rows + kept + r0 + r) * TAPE * size + size, b * batch + r0 + r
                v_moments(v, v_at, count, 1.0 / (GATES * count), parts, at, blocks * batch)


@part
def cell_item_norm(
    row0, row1, first, end, n, before, after, total, kept, kept_rows, batch, h_size, h_line, flags,
    ids, table, w, gain, epsilon, h, gates, v, parts, scales, stats,
):  # fmt: skip
    """When all partials of W h' are there: gates and h."""
    lane, size = lanes_of(w), block_of(w)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        moments(parts, 0, r0, rows, batch, h_size, GATES, epsilon, stats)
        if flags & TRAINING and first == 0:
            for r in range(0, rows, lane):
                copy_rows(scales, SCALE * total + n + r0 + r, stats, CHUNK + r, rows - r)
        for panel in range(first, end):
            unit = panel * lane
            b_at = panel * (TAPE + GATES * h_size) * lane
            for r in range(rows):
                g_at = tape_at(w, panel, kept_rows, kept + r0 + r)
                x_at = ids[n + r0 + r] * GATES * h_size + unit
                from_at, to_at = (before + r0 + r) * h_line + unit, (after + r0 + r) * h_line + unit
                cell_norm(
                    v, g_at + size, stats, r, table, x_at, h_size, gain, gain_at(gain, panel), w, b_at,
                    h, from_at, h, to_at, h_size - unit, gates, g_at,
                )  # fmt: skip


@part
def partials_item_norm_backward(row0, row1, q, n, total, batch, h_size, wt, ids, table, a, v, gain, parts):
    """With normalisation, after backward_item: the partials of what it wrote."""
    lane, size = lanes_of(wt), block_of(wt)
    panels, blocks = panels_for(wt, h_size), blocks_for(wt, h_size)
    first, last = q * COLS, min((q + 1) * COLS, panels)
    for b in range(first * lane // size, last * lane // size):
        for r in range(row0, row1):
            a_at = (b * total + n + r) * TAPE * size
            a_sums(
                a, a_at, v, a_at + size, table, ids[n + r] * GATES * h_size + b * size, h_size,
                gain, b * 2 * GATES * size, min(size, h_size - b * size), parts, b * batch + r, blocks * batch,
            )  # fmt: skip


@part
def product_item_norm_backward(row0, row1, q, n, total, batch, h_size, wt, a, v, gain, parts, scales, dv, stats):
    """When these are there: the gradient of W h', and for the sums what is kept of the rows."""
    lane, size = lanes_of(wt), block_of(wt)
    panels = panels_for(wt, h_size)
    first, last = q * COLS, min((q + 1) * COLS, panels)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for k in range(2):
            means(parts, 2 + k, r0, rows, batch, h_size, GATES, stats, k * CHUNK)
        if q == 0:
            for k in range(2):
                means(parts, k, r0, rows, batch, h_size, GATES, scales, (OF_X + k) * total + n + r0)
                for r in range(0, rows, lane):
                    copy_rows(scales, (OF_H + k) * total + n + r0 + r, stats, k * CHUNK + r, rows - r)
        for b in range(first * lane // size, last * lane // size):
            for r in range(rows):
                a_at = (b * total + n + r0 + r) * TAPE * size + size
                v_backward(
                    a, a_at, v, a_at, scales, n + r0 + r, total, stats, r, gain, b * 2 * GATES * size,
                    min(size, h_size - b * size), dv, (b * batch + r0 + r) * TAPE * size + size,
                )  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------


@kernel
def gru_forward(
    worker, workers, tickets, steps, kept_rows, i_size, h_size, h_line, shift, flags, pieces,
    at, counts, bounds, x, ids, table, w, wn, h, gates, s, drop, dropped, keep, each,
    gain, epsilon, batch, v, parts, scales,
):  # fmt: skip
    """All steps of one direction of one layer. For `at`, `counts`, `bounds`, `shift` and `total` see panels.py.

    flags : INDEXED, TRAINING, BY_ROWS
    x : (total, I), read; or, with INDEXED,
    ids : (total,) int64, read, rows of table : (V, 3H), U x and the biases for each x, read
    w : packed weights, read
    wn : packed W_n, read, for the reset gate before the product; or None
    h : rows of h_line numbers, H of them used; those of at[0] read, all others written
    gates : (N, kept_rows, 4 blocks), with TRAINING kept_rows = total, written: n r z v; or, with wn or gain but
        without TRAINING, kept_rows = B, overwritten
    s : with wn (kept_rows, H), written: r h'
    drop, dropped : (B, H), read, and rows of H, as h, for the mask of recurrent dropout and h times it; or None
    keep : (total, H), read, for zoneout, without `each` one row for all; or None
    gain : packed gains, read, for normalisation, which has none of the former; or None, and then nobody looks at what
        follows. With it I is 0, ids and table are always read, the latter being (V, 3H), (U x)^
    epsilon, batch : what is added to a variance; B
    v : (N, kept_rows, 4 blocks), written: r z v are (W h')^
    parts : (2, N, B), overwritten
    scales : with TRAINING (5, total), written: what backward needs of rows, but for the means
    """
    panels = panels_for(w, h_size)
    y, stats = stack(w, ROOM), stack(w, STATS)
    if drop is None:
        hw, hw_line = h, h_line
    else:
        hw, hw_line = dropped, h_size
    phases = 1 if wn is None and gain is None else 2
    # With normalisation a group is a block: partials are those of whole blocks.
    groups = groups_of_few(panels, counts[0]) if gain is None else blocks_for(w, h_size)
    last = steps * phases
    length = steps_of_item(flags & BY_ROWS, last, counts[0] // pieces, GATES * h_size * (i_size + h_size))
    span = groups if flags & BY_ROWS else 1
    for start, item in turns(tickets, 0, worker, workers, (last + length - 1) // length, groups // span * pieces):
        group, piece = item // pieces, item % pieces
        first, end = bounds_of(group, groups, panels)
        if span > 1:
            end = panels
        for k in range(start * length, min(last, start * length + length)):
            t = k // phases
            row0, row1 = rows_of(piece, pieces, counts[t], bounds, flags & BY_ROWS)
            n = at[t + 1] - shift
            kept = n if flags & TRAINING else 0
            if gain is not None:
                if k % phases == 0:
                    product_item_norm(
                        row0, row1, first, end, at[t], kept, kept_rows, batch, h_size, h_line, w, h, v, parts, y
                    )  # fmt: skip
                else:
                    cell_item_norm(
                        row0, row1, first, end, n, at[t], at[t + 1], kept_rows, kept, kept_rows, batch, h_size, h_line,
                        flags, ids, table, w, gain, epsilon, h, gates, v, parts, scales, stats,
                    )  # fmt: skip
                continue
            for g in range(group, group + span if k % phases == 0 else group):
                panel0, panel1 = bounds_of(g, groups, panels)
                forward_item(
                    row0, row1, panel0, panel1, n, at[t], at[t + 1], kept, kept_rows, i_size, h_size, h_line, flags,
                    x, ids, table, w, wn, h, h, gates, s, y, hw, hw_line,
                )  # fmt: skip
            for panel in range(first, end):
                if wn is not None and k % phases == 1:
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
    gain, batch, table, scale, v, parts, scales, dv, dgain,
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
    gain : packed gains, read, for normalisation; or None, and then nobody looks at what follows. With it n r z become
        the gradient of U x, as dtable's are, and ids are always read
    batch : B
    table, scale : (V, 3H), (V,), read: (U x)^ and what it was multiplied by
    v, scales : as gru_forward left them: (N, total, 4 blocks), r z v overwritten by the gradient of W h'; (5, total),
        read, and the means written
    parts, dv : (4, N, B), (N, B, 4 blocks), overwritten
    dgain : (6, H), accumulated: n r z for U x, r z v for W h'
    """
    panels = panels_for(wt, h_size)
    groups = (panels + COLS - 1) // COLS
    dh, acc, held = stack(wt, WORK), stack(wt, TAPE), stack(wt, 1)
    stats, acc_norm = stack(wt, STATS), stack(wt, NORM_SUMS)
    phases = 1 if wnt is None and gain is None else 2
    last = steps * phases + 1
    length = steps_of_item(flags & BY_ROWS, last, counts[0] // pieces, GATES * h_size * h_size)
    span = groups if flags & BY_ROWS else 1
    for start, item in turns(tickets, 0, worker, workers, (last + length - 1) // length, groups // span * pieces):
        first, piece = item // pieces, item % pieces
        for k in range(start * length, min(last, start * length + length)):
            t = steps - 1 - k // phases
            row0, row1 = rows_of(piece, pieces, counts[max(t, 0)], bounds, flags & BY_ROWS)
            n = at[t + 1] - shift if t >= 0 else -1
            before = at[max(t, 0)]
            # After the last step there are no rows, and nothing is read at `ahead`.
            ahead, following = (at[t + 2] - shift, counts[t + 1]) if t < steps - 1 else (0, 0)
            for q in range(first, first + span):
                if gain is not None:
                    if k % phases == 0:
                        backward_item(
                            row0, row1, q, n, before, 0, following, total, h_size, h_line, flags,
                            dy, wt, wnt, h, gates, dv, batch, dh0, None, None, held, dh,
                        )  # fmt: skip
                        if n >= 0:
                            partials_item_norm_backward(
                                row0, row1, q, n, total, batch, h_size, wt, ids, table, gates, v, gain, parts
                            )  # fmt: skip
                    else:
                        product_item_norm_backward(
                            row0, row1, q, n, total, batch, h_size, wt, gates, v, gain, parts, scales, dv, stats
                        )  # fmt: skip
                elif k % phases == 0:
                    backward_item(
                        row0, row1, q, n, before, ahead, following, total, h_size, h_line, flags,
                        dy, wt, wnt, h, gates, gates, total, dh0, drop, keep, held, dh,
                    )  # fmt: skip
                elif wnt is not None:
                    reset_item_backward(row0, row1, q, n, before, total, h_size, h_line, wnt, h, gates, dh0, drop, dh)
    if flags & (BIAS | INDEXED) or gain is not None:
        lane = lanes_of(gates)
        for _, panel in turns(tickets, 1, worker, workers, 1, panels):
            unit = panel * lane
            for k in range(TAPE):
                copy_in(acc, k * lane, dbias, k * h_size + unit, h_size - unit)
            if gain is not None:
                for k in range(NORM_SUMS):
                    copy_in(acc_norm, k * lane, dgain, k * h_size + unit, h_size - unit)
            for t in range(steps - 1, -1, -1):
                for n in range(at[t + 1] - shift, at[t + 1] - shift + counts[t]):
                    a_at = tape_at(gates, panel, total, n)
                    add_sums(acc, gates, a_at, wnt)
                    if gain is not None:
                        add_norm_sums(
                            acc_norm, gates, a_at, v, a_at + block_of(gates),
                            table, ids[n] * GATES * h_size + unit, h_size, scale, ids[n], scales, n, total,
                            gain, gain_at(gain, panel), h_size - unit,
                        )  # fmt: skip
                    if flags & INDEXED:
                        for g in range(GATES):  # r z n from n r z
                            to, source = (ids[n] * GATES + g) * h_size + unit, a_at + (g + 1) % GATES * block_of(gates)
                            add_out(dtable, to, gates, source, h_size - unit)
            if gain is not None:
                for k in range(NORM_SUMS):
                    copy_out(dgain, k * h_size + unit, acc_norm, k * lane, h_size - unit)
            if flags & BIAS:
                for k in range(TAPE):
                    copy_out(dbias, k * h_size + unit, acc, k * lane, h_size - unit)


@part
def step_item(row0, row1, group, t, below, before, y, given):
    batch, i_size, h_size, flags, panels, groups, w, work, none = given
    panel0, panel1 = bounds_of(group, groups, panels)
    forward_item(
        row0, row1, panel0, panel1, 0, 0, 0, 0, batch, i_size, h_size, h_size, flags,
        below, NO_IDS, below, w, None, before, y, none, none, work, before, h_size,
    )  # fmt: skip


@kernel
def gru_steps(worker, workers, tickets, w, layer, pieces, x, out, h_0):
    """Few steps of one layer, with the reset gate after the product: see few_steps.py."""
    layer, turn = which_way(layer)
    if not step_fits(layer, x, out, h_0):
        return False
    h_size = out.shape[3]
    batch, i_size = x.shape[1], x.shape[2] if layer == 0 else h_size
    lane = lanes_of(w)
    panels = panels_for(w, h_size)
    hoisted = layer == 0 and i_size == GATES * h_size and len(w) == panels * (TAPE + GATES * h_size) * lane
    if not hoisted and len(w) != panels * (TAPE + GATES * (i_size + h_size)) * lane:
        return False
    i_size, flags = (0, INDEXED) if hoisted else (i_size, 0)
    groups = groups_of_few(panels, batch)
    given = batch, i_size, h_size, flags, panels, groups, w, stack(w, ROOM), stack(w, 1)
    share(tickets, 0, worker)
    few_steps(worker, workers, tickets, w, layer, turn, pieces, groups, x, out, h_0, step_item, given)
    return True


@part
def layer_item(row0, row1, group, n, layer, w, below, before, after, given):
    batch, h_size, panels, groups, ids, table, none, work = given
    panel0, panel1 = bounds_of(group, groups, panels)
    row, i_size, flags = (n * batch, 0, INDEXED) if layer == 0 else (0, h_size, 0)
    forward_item(
        row0, row1, panel0, panel1, row, 0, 0, 0, batch, i_size, h_size, h_size, flags,
        below, ids, table, w, None, before, after, none, none, work, before, h_size,
    )  # fmt: skip


@kernel
def gru_write(
    worker, workers, tickets, count, pieces, layers, batch, h_size, columns, temperature,
    ids, table, w, starts, h, packed, bias, logits, cumulated, uniforms, broken,
):  # fmt: skip
    """A language model with these layers, the reset gate after the product, writes; see writing.py."""
    panels = panels_for(w, h_size)
    groups, known = groups_of_few(panels, batch), 0
    work, none = stack(w, ROOM), stack(w, 1)
    given = batch, h_size, panels, groups, ids, table, none, work
    length, rounds, items = division(workers, pieces, count, layers, batch, groups, len(w) + len(packed))
    for r, item in turns(tickets, 0, worker, workers, rounds, items):
        known = write_some(
            worker, r, item, groups, length, known, count, pieces, layers, batch, h_size, columns, temperature,
            ids, w, starts, h, packed, bias, logits, cumulated, uniforms, broken, work, layer_item, given,
        )  # fmt: skip


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
