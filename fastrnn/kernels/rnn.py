"""The vanilla ("matrix") RNN.

    h = F(U x + W h' + b)        F: tanh, relu, sigmoid or identity; h': the previous step's

(Elman 1990; the notes' U, W, b.) All four F are in one kernel and chosen once for each panel.

The other form has the state before F, h = U x + W F(h') + b. With a = F(h) it is the one above, with a in the place of
h, but for both ends: the first a is F of the first h, and what is returned is the last h. So there are the same loops
and the same tape, of a; what is done besides stands under `last`, in the forward, and `before`, in the backward.

A panel is COLS * W hidden units, W the lanes of a vector, the last one as narrow as it can be; S = ceil(H / W) W. A
forward takes them in groups (panels.py), backward one by one.

    packed weights   S (1 + I + H)       a group after the other: b, then each of its strips: U (I lines), W (H lines)
    tape             (T + 1) B H         states; the output is a view of them: F' is known from F;  last: B H
    backward         T B H  for dZ
    regularisers     recurrent dropout B H  for the mask, (T + 1) B H  for drop h; zoneout T B H  for the mask

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

from .._jit import device, kernel, part
from ..simd.post import share
from ..simd.sync import turns
from ..simd.target import COLS, GROUP
from ..simd.tile import OWN, SHARED
from ..simd.vector import lanes_of, load, pointwise, stack, store
from .activations import drelu, dsigmoid, dtanh, relu, sigmoid, tanh
from .few_steps import few_steps, step_fits, which_way
from .masks import add_carried, drop_out, drop_out_backward, hold, zone_out
from .panels import (
    CHUNK,
    NO_IDS,
    ROOM,
    WORK,
    add_biases,
    add_in,
    add_rows,
    bounds_of,
    copy_in,
    copy_out,
    groups_for,
    pack_transposed,
    rows_of,
    steps_of_item,
    strips_for,
    tiles,
    tiles_of_group,
    tiles_of_two,
)
from .writing import division, write_some

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


@part
def activate(nonlinearity, z, z_off, h, h_off, count):
    """h = F(z), as `tanh_cell`."""
    if nonlinearity == 0:
        tanh_cell(z, z_off, h, h_off, count)
    elif nonlinearity == 1:
        relu_cell(z, z_off, h, h_off, count)
    elif nonlinearity == 2:
        sigmoid_cell(z, z_off, h, h_off, count)
    else:
        copy_out(h, h_off, z, z_off, count)


@part
def activate_backward(nonlinearity, dh, dh_off, h, h_off, dz, dz_off, count):
    """dz = F' dh, as `tanh_backward`."""
    if nonlinearity == 0:
        tanh_backward(dh, dh_off, h, h_off, dz, dz_off, count)
    elif nonlinearity == 1:
        relu_backward(dh, dh_off, h, h_off, dz, dz_off, count)
    elif nonlinearity == 2:
        sigmoid_backward(dh, dh_off, h, h_off, dz, dz_off, count)
    else:
        copy_out(dz, dz_off, dh, dh_off, count)


@device
def vectors_of(group, groups, panels, vectors):
    """The first vector of a group, and how many it has."""
    panel0, panel1 = bounds_of(group, groups, panels)
    return panel0 * COLS, min((panel1 - panel0) * COLS, vectors - panel0 * COLS)


# ---------------------------------------------------------------------------------------------------
# A group or a panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@part
def forward_item(
    row0, row1, first, cols, n, previous, after, i_size, h_size, h0_line, h_line, flags, nonlinearity,
    x, ids, table, w, last, h0, h, z,
):  # fmt: skip
    """A group: `cols` vectors, from the first on."""
    lane = lanes_of(w)
    line = cols * lane
    at = first * lane * (1 + i_size + h_size)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for k in range(cols):
            unit = (first + k) * lane
            for r in range(rows):
                to = r * line + k * lane
                if flags & INDEXED:
                    row = n + r0 + r if len(ids) == 0 else ids[n + r0 + r]
                    copy_in(z, to, table, row * h_size + unit, h_size - unit)
                else:
                    copy_in(z, to, w, at + k * lane, lane)
        x_at, h0_at = (n + r0) * i_size, (previous + r0) * h0_line
        u_at = at + line
        if GROUP == 1:  # noqa: SIM114 - of an `or` Numba leaves no side out
            tiles_of_two(z, 0, line, rows, cols, x, x_at, i_size, i_size, h0, h0_at, h0_line, h_size, w, u_at, OWN)
        elif cols <= COLS:  # in two strips one row would take 1.5 of the time
            tiles_of_two(z, 0, line, rows, cols, x, x_at, i_size, i_size, h0, h0_at, h0_line, h_size, w, u_at, OWN)
        else:
            tiles_of_group(z, line, rows, cols, x, x_at, i_size, i_size, h0, h0_at, h0_line, h_size, w, u_at)
        # In two loops, as LLVM writes a loop of at most COLS out: of one row 0.95 of the time of a loop over `cols`.
        for r in range(rows):
            for v in range(0, cols, COLS):
                for k in range(v, min(v + COLS, cols)):
                    unit = (first + k) * lane
                    z_at = r * line + k * lane
                    h_at = (after + r0 + r) * h_line + unit
                    if last is not None:
                        copy_out(last, (r0 + r) * h_size + unit, z, z_at, h_size - unit)
                    activate(nonlinearity, z, z_at, h, h_at, h_size - unit)


@part
def backward_item(
    row0,
    row1,
    q,
    n,
    after,
    ahead,
    following,
    h_size,
    h_line,
    flags,
    nonlinearity,
    before,
    dy,
    wt,
    h,
    dz,
    dh0,
    drop,
    keep,
    dh,
    t,
):
    """Step s with its rows at n and after as in forward_item; before the first step n is -1.

    ahead : n of step s + 1, of whose rows there are `following`
    t : W, overwritten
    """
    lane = lanes_of(wt)
    vectors = (h_size + lane - 1) // lane
    first = q * COLS
    cols = min(COLS, vectors - first)
    line = cols * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        going = max(0, min(rows, following - r0))
        for r in range(rows):  # from the step after a chain that starts from 0, else the final state's gradient
            for k in range(cols):
                unit = (first + k) * lane
                copy_in(dh, r * line + k * lane, dh0, (r0 + r) * h_size + unit, h_size - unit if r >= going else 0)
        left = (ahead + r0) * h_size
        tiles(dh, 0, line, going, cols, dz, left, h_size, h_size, 0, 1, wt, first * lane * h_size, SHARED)
        if drop is not None:
            drop_out_backward(r0, going, first, cols, h_size, drop, dh)
        if keep is not None:  # what the step after kept of h
            add_carried(r0, going, first, cols, h_size, dh0, dh)
        for r in range(rows):
            for k in range(cols):
                unit = (first + k) * lane
                count = h_size - unit
                d_at = r * line + k * lane
                z_at = (n + r0 + r) * h_size + unit
                h_at = (after + r0 + r) * h_line + unit
                if before is None:
                    if n >= 0 and flags & DY:
                        add_in(dh, d_at, dy, (n + r0 + r) * h_line + unit, count)
                    if keep is not None and n >= 0:  # what h' kept does not go on to F', which is that of h' there
                        hold(dh, d_at, dh0, (r0 + r) * h_size + unit, keep, z_at, count)
                    if n >= 0:
                        activate_backward(nonlinearity, dh, d_at, h, h_at, dz, z_at, count)
                else:
                    # What comes from the step after is of a, a final state's gradient of h. dy goes through F' apart:
                    # so it does where a sequence is cut, and the cut must not be seen.
                    if r < going:
                        activate_backward(nonlinearity, dh, d_at, h, h_at, dh, d_at, count)
                    if n >= 0 and flags & DY:
                        copy_in(t, 0, dy, (n + r0 + r) * h_line + unit, count)
                        activate_backward(nonlinearity, t, 0, h, h_at, t, 0, count)
                        add_in(dh, d_at, t, 0, count)
                    if n >= 0:
                        copy_out(dz, z_at, dh, d_at, count)
                if n < 0:
                    copy_out(dh0, (r0 + r) * h_size + unit, dh, d_at, count)


# ---------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------


@kernel
def rnn_forward(
    worker, workers, tickets, steps, i_size, h_size, h_line, shift, flags, nonlinearity, pieces,
    at, counts, bounds, x, ids, table, w, last, h, drop, dropped, keep, each,
):  # fmt: skip
    """All steps of one direction of one layer. For `at`, `counts`, `bounds`, `shift` and `total` see panels.py.

    flags : INDEXED, BY_ROWS
    x : (total, I), read; or, with INDEXED,
    ids : (total,) int64, read, or empty for 0, 1, 2 ...: rows of table : (V, H), U x + b for each x, read
    w : packed weights, read
    last : None; or (B, H), the states before F: the initial ones read, overwritten by the final ones
    h : rows of h_line numbers, H of them used; those of at[0] read (with `last` written), all others written
    drop, dropped : (B, H), read, and rows of H, as h, for the mask of recurrent dropout and h times it; or None
    keep : (total, H), read, for zoneout, without `each` one row for all; or None
    """
    lane = lanes_of(w)
    vectors = (h_size + lane - 1) // lane
    panels = (vectors + COLS - 1) // COLS
    groups = groups_for(panels)
    z = stack(w, ROOM)
    if drop is None:
        h0, h0_line = h, h_line
    else:
        h0, h0_line = dropped, h_size
    if last is not None:
        for _, k in turns(tickets, 1, worker, workers, 1, vectors):
            for r in range(counts[0]):
                copy_in(z, 0, last, r * h_size + k * lane, h_size - k * lane)
                activate(nonlinearity, z, 0, h, (at[0] + r) * h_line + k * lane, h_size - k * lane)
    length = steps_of_item(flags & BY_ROWS, steps, counts[0] // pieces, h_size * (i_size + h_size))
    span = groups if flags & BY_ROWS else 1
    for start, item in turns(tickets, 0, worker, workers, (steps + length - 1) // length, groups // span * pieces):
        first, piece = item // pieces, item % pieces
        for s in range(start * length, min(steps, start * length + length)):
            row0, row1 = rows_of(piece, pieces, counts[s], bounds, flags & BY_ROWS)
            n = at[s + 1] - shift
            for g in range(first, first + span):
                vector, cols = vectors_of(g, groups, panels, vectors)
                forward_item(
                    row0, row1, vector, cols, n, at[s], at[s + 1], i_size, h_size, h0_line, h_line, flags, nonlinearity,
                    x, ids, table, w, last, h0, h, z,
                )  # fmt: skip
                if keep is not None:
                    zone_out(
                        row0, row1, vector, cols, h_size, h, at[s + 1], h_line, h, at[s], at[s + 1], h_line,
                        keep, n if each else -1,
                    )  # fmt: skip
                if drop is not None:
                    drop_out(row0, row1, vector, cols, h_size, h, at[s + 1], h_line, drop, dropped)


@kernel
def rnn_backward(
    worker, workers, tickets, steps, h_size, h_line, shift, flags, nonlinearity, pieces,
    at, counts, bounds, before, dy, ids, wt, h, dz, dh0, dtable, drop, keep,
):  # fmt: skip
    """All steps, backwards; then the sums that the rows of a table need, in the same order.

    flags : INDEXED, DY, BY_ROWS
    before : None; or anything else if dh0 is of states before F
    dy : with DY rows of h_line numbers, as x, H of them used, read
    ids : with INDEXED (total,) int64, read
    wt : W packed by columns, read
    h : as rnn_forward left it, read
    dz : (total, H), written
    dh0 : (B, H): gradient of the final state read, of the initial state written
    dtable : with INDEXED (V, H), accumulated
    drop, keep : (B, H), (total, H), as rnn_forward, read, or None
    """
    lane = lanes_of(wt)
    vectors = (h_size + lane - 1) // lane
    panels = (vectors + COLS - 1) // COLS
    dh, t = stack(wt, WORK), stack(wt, 1)
    last = steps + 1
    length = steps_of_item(flags & BY_ROWS, last, counts[0] // pieces, h_size * h_size)
    span = panels if flags & BY_ROWS else 1
    for start, item in turns(tickets, 0, worker, workers, (last + length - 1) // length, panels // span * pieces):
        first, piece = item // pieces, item % pieces
        for k in range(start * length, min(last, start * length + length)):
            s = steps - 1 - k
            row0, row1 = rows_of(piece, pieces, counts[max(s, 0)], bounds, flags & BY_ROWS)
            n = at[s + 1] - shift if s >= 0 else -1
            # After the last step there are no rows, and nothing is read at `ahead`.
            ahead, following = (at[s + 2] - shift, counts[s + 1]) if s < steps - 1 else (0, 0)
            for q in range(first, first + span):
                backward_item(
                    row0, row1, q, n, at[s + 1], ahead, following, h_size, h_line, flags, nonlinearity, before,
                    dy, wt, h, dz, dh0, drop, keep, dh, t,
                )  # fmt: skip
    if flags & INDEXED:
        for _, k in turns(tickets, 1, worker, workers, 1, vectors):
            for s in range(steps - 1, -1, -1):
                for n in range(at[s + 1] - shift, at[s + 1] - shift + counts[s]):
                    add_rows(dtable, ids[n] * h_size + k * lane, dz, n * h_size + k * lane, h_size - k * lane)


@part
def step_item(row0, row1, group, t, below, before, y, given):
    i_size, h_size, flags, groups, panels, vectors, nonlinearity, w, z = given
    vector, cols = vectors_of(group, groups, panels, vectors)
    forward_item(
        row0, row1, vector, cols, 0, 0, 0, i_size, h_size, h_size, h_size, flags, nonlinearity,
        below, NO_IDS, below, w, None, before, y, z,
    )  # fmt: skip


@kernel
def rnn_steps(worker, workers, tickets, w, nonlinearity, layer, pieces, x, out, h_0):
    """Few steps of one layer: see few_steps.py."""
    layer, turn = which_way(layer)
    if not step_fits(layer, x, out, h_0):
        return False
    h_size = out.shape[3]
    i_size = x.shape[2] if layer == 0 else h_size
    lane = lanes_of(w)
    vectors = (h_size + lane - 1) // lane
    panels = (vectors + COLS - 1) // COLS
    groups = groups_for(panels)
    hoisted = layer == 0 and i_size == h_size and len(w) == vectors * lane * (1 + h_size)
    if not hoisted and len(w) != vectors * lane * (1 + i_size + h_size):
        return False
    i_size, flags = (0, INDEXED) if hoisted else (i_size, 0)
    given = i_size, h_size, flags, groups, panels, vectors, nonlinearity, w, stack(w, ROOM)
    share(tickets, 0, worker)
    few_steps(worker, workers, tickets, w, layer, turn, pieces, groups, x, out, h_0, step_item, given)
    return True


@part
def layer_item(row0, row1, group, n, layer, w, below, before, after, given):
    batch, h_size, groups, panels, vectors, nonlinearity, ids, table, z = given
    vector, cols = vectors_of(group, groups, panels, vectors)
    row, i_size, flags = (n * batch, 0, INDEXED) if layer == 0 else (0, h_size, 0)
    forward_item(
        row0, row1, vector, cols, row, 0, 0, i_size, h_size, h_size, h_size, flags, nonlinearity,
        below, ids, table, w, None, before, after, z,
    )  # fmt: skip


@kernel
def rnn_write(
    worker, workers, tickets, count, pieces, layers, batch, h_size, columns, temperature,
    ids, table, w, starts, nonlinearity, h, packed, bias, logits, cumulated, uniforms, broken,
):  # fmt: skip
    """A language model with these layers writes; see writing.py."""
    lane = lanes_of(w)
    vectors = (h_size + lane - 1) // lane
    panels = (vectors + COLS - 1) // COLS
    groups, known = groups_for(panels), 0
    z = stack(w, ROOM)
    given = batch, h_size, groups, panels, vectors, nonlinearity, ids, table, z
    length, rounds, items = division(workers, pieces, count, layers, batch, groups, len(w) + len(packed))
    for r, item in turns(tickets, 0, worker, workers, rounds, items):
        known = write_some(
            worker, r, item, groups, length, known, count, pieces, layers, batch, h_size, columns, temperature,
            ids, w, starts, h, packed, bias, logits, cumulated, uniforms, broken, z, layer_item, given,
        )  # fmt: skip


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
    groups = groups_for(panels)
    for _, group in turns(tickets, 0, worker, workers, 1, groups):
        first, cols = vectors_of(group, groups, panels, vectors)
        strips, b_at = strips_for(cols), first * lane * (1 + i_size + h_size)
        for s in range(strips):
            v = cols * s // strips
            unit, line = (first + v) * lane, (cols * (s + 1) // strips - v) * lane
            rows, at = min(line, h_size - unit), b_at + (cols + v * (i_size + h_size)) * lane
            for k in range(0, line, lane):
                add_biases(packed, b_at + v * lane + k, b_ih, b_hh, unit + k, h_size - unit - k)
            for of_w in (False, True):  # one text, as in lstm.py
                source, columns, above = (w, h_size, i_size * line) if of_w else (u, i_size, 0)
                pack_transposed(packed, at + above, line, source, unit, rows, columns, line)
