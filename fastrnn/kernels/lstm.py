"""The LSTM, with and without diagonal peepholes.

    i = sigmoid(U_i x + W_i h' + b_i + p_i c')        h', c': the previous step's
    f = sigmoid(U_f x + W_f h' + b_f + p_f c')
    g = tanh   (U_g x + W_g h' + b_g)
    c = f c' + i g
    o = sigmoid(U_o x + W_o h' + b_o + p_o c)
    h = o tanh(c)

(Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; peepholes as in Graves 2013, eq. 7 to 11.)

A panel is W hidden units with all their gates, W the lanes of a vector; there are P = ceil(H / W). One tile gives every
gate of a panel for up to ROWS rows, and the gate arithmetic follows while they are in L1.

    packed weights   P x (7 + 4 (I + H)) W    a panel after the other: b (4W), p (3W), U (I x 4W), W (H x 4W)
    tape             T B 4 P W  gates, (T + 1) B H  cells, (T + 1) B H  states (the output is a view of them)
    backward         writes dZ over the gates;  B H  for dc

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

from .._jit import device, kernel
from ..simd.sync import finish, take, wait
from ..simd.target import COLS
from ..simd.vector import fma, lanes, lanes_of, load, pointwise, store
from .activations import dsigmoid, dtanh, sigmoid, tanh
from .panels import CHUNK, add_in, add_out, copy_in, copy_line, copy_out, pack_rows, pack_transposed, tiles

PEEPHOLE, INDEXED, TRAINING, BIAS, DY, BY_ROWS = 1, 2, 4, 8, 16, 32

GATES = 4
HEAD = 7  # vectors before U in a packed panel: four biases, three peepholes


@device
def panel_size(i_size, h_size, w):
    """Elements of one packed panel."""
    return (HEAD + GATES * (i_size + h_size)) * w


# ---------------------------------------------------------------------------------------------------
# One row of one panel
# ---------------------------------------------------------------------------------------------------


@pointwise
def cell(z, z_off, c0, c0_off, c, c_off, h, h_off, count, keep):
    """z (4W): pre-activations, read; where `keep` says, overwritten by i f g o. c' read; c, h written (count of W)."""
    w = lanes(z)
    i, f = sigmoid(load(z, z_off)), sigmoid(load(z, z_off + w))
    g, o = tanh(load(z, z_off + 2 * w)), sigmoid(load(z, z_off + 3 * w))
    cn = fma(f, load(c0, c0_off, count), i * g)
    store(c, c_off, cn, count)
    store(h, h_off, o * tanh(cn), count)
    for k, gate in enumerate((i, f, g, o)):
        store(z, z_off + k * w, gate, keep)


@pointwise
def cell_peephole(z, z_off, c0, c0_off, c, c_off, h, h_off, count, keep, p, p_off):
    """`cell` with peepholes p (3W), rows i f o, read."""
    w = lanes(z)
    cp = load(c0, c0_off, count)
    i = sigmoid(fma(load(p, p_off), cp, load(z, z_off)))
    f = sigmoid(fma(load(p, p_off + w), cp, load(z, z_off + w)))
    g = tanh(load(z, z_off + 2 * w))
    cn = fma(f, cp, i * g)
    o = sigmoid(fma(load(p, p_off + 2 * w), cn, load(z, z_off + 3 * w)))
    store(c, c_off, cn, count)
    store(h, h_off, o * tanh(cn), count)
    for k, gate in enumerate((i, f, g, o)):
        store(z, z_off + k * w, gate, keep)


@pointwise
def cell_backward(z, z_off, dh, dh_off, c0, c0_off, c, c_off, dc, dc_off, count):
    """z (4W): i f g o, read, overwritten by dZ. dh (W), c', c read. dc: that of c read, that of c' written."""
    w = lanes(z)
    i, f, g, o = (load(z, z_off + k * w) for k in range(4))
    cp, tc, d = load(c0, c0_off, count), tanh(load(c, c_off, count)), load(dh, dh_off)
    dz_o = d * tc * dsigmoid(o)  # h = o tanh(c)
    dcn = fma(d * o, dtanh(tc), load(dc, dc_off, count))
    store(z, z_off, dcn * g * dsigmoid(i))  # c = f c' + i g
    store(z, z_off + w, dcn * cp * dsigmoid(f))
    store(z, z_off + 2 * w, dcn * i * dtanh(g))
    store(z, z_off + 3 * w, dz_o)
    store(dc, dc_off, dcn * f, count)


@pointwise
def cell_peephole_backward(z, z_off, dh, dh_off, c0, c0_off, c, c_off, dc, dc_off, count, p, p_off):
    """`cell_backward` with peepholes p (3W), read."""
    w = lanes(z)
    i, f, g, o = (load(z, z_off + k * w) for k in range(4))
    cp, tc, d = load(c0, c0_off, count), tanh(load(c, c_off, count)), load(dh, dh_off)
    dz_o = d * tc * dsigmoid(o)  # h = o tanh(c)
    dcn = fma(d * o, dtanh(tc), load(dc, dc_off, count))
    dcn = fma(dz_o, load(p, p_off + 2 * w), dcn)  # o sees c
    dz_i, dz_f = dcn * g * dsigmoid(i), dcn * cp * dsigmoid(f)  # c = f c' + i g
    store(z, z_off, dz_i)
    store(z, z_off + w, dz_f)
    store(z, z_off + 2 * w, dcn * i * dtanh(g))
    store(z, z_off + 3 * w, dz_o)
    # i and f see c'
    store(dc, dc_off, fma(dz_i, load(p, p_off), fma(dz_f, load(p, p_off + w), dcn * f)), count)


@pointwise
def sums_peephole(acc, dz, dz_off, c0, c0_off, c, c_off, count):
    """acc (7W), accumulated: dZ (4W, read) for the biases, dz_i c' , dz_f c' and dz_o c for the peepholes."""
    w = lanes(acc)
    dz_i, dz_f, dz_g, dz_o = (load(dz, dz_off + k * w) for k in range(4))
    cp, cn = load(c0, c0_off, count), load(c, c_off, count)
    for k, d in enumerate((dz_i, dz_f, dz_g, dz_o)):
        store(acc, k * w, load(acc, k * w) + d)
    for k, (d, x) in enumerate(((dz_i, cp), (dz_f, cp), (dz_o, cn)), GATES):
        store(acc, k * w, fma(d, x, load(acc, k * w)))


# ---------------------------------------------------------------------------------------------------
# One panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@device
def forward_item(t, row0, row1, panel, steps, batch, i_size, h_size, flags, x, ids, table, w, h, c, z, z_off):
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
        if training:  # the gates are computed where they are kept
            z_off = (panel * steps * batch + n0) * line
        if flags & INDEXED:
            for r in range(rows):
                for g in range(GATES):
                    source = (ids[n0 + r] * GATES + g) * h_size + unit
                    copy_in(z, z_off + r * line + g * lane, table, source, count)
        else:
            for r in range(rows):
                copy_line(z, z_off + r * line, w, at)
            tiles(z, z_off, line, rows, 4, x, n0 * i_size, i_size, i_size, 0, 1, w, u_at, line)
        tiles(z, z_off, line, rows, 4, h, n0 * h_size, h_size, h_size, 0, 1, w, w_at, line)
        for r in range(rows):
            z_at = z_off + r * line
            before = t * c_step + (r0 + r) * h_size + unit
            after = before + c_step
            h_at = (n0 + batch + r) * h_size + unit
            if flags & PEEPHOLE:
                cell_peephole(z, z_at, c, before, c, after, h, h_at, count, training * lane, w, at + line)
            else:
                cell(z, z_at, c, before, c, after, h, h_at, count, training * lane)


@device
def backward_item(t, row0, row1, q, steps, batch, h_size, flags, dy, wt, c, z, dc, dh0, dh, dh_off):
    lane = lanes_of(wt)
    line = GATES * lane
    panels = (h_size + lane - 1) // lane
    first = q * COLS
    cols = min(COLS, panels - first)
    stride = cols * lane
    wt_at = (panels * 3 * lane if flags & PEEPHOLE else 0) + first * lane * panels * line
    panel_stride = steps * batch * line
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        n0 = t * batch + r0
        for r in range(rows):  # dh starts from dy[t]; t = -1 is the initial state
            for k in range(cols):
                unit = (first + k) * lane
                to = dh_off + r * stride + k * lane
                copy_in(dh, to, dy, (n0 + r) * h_size + unit, h_size - unit if t >= 0 and flags & DY else 0)
                if t == steps - 1:
                    add_in(dh, to, dh0, (r0 + r) * h_size + unit, h_size - unit)
        if t < steps - 1:
            left = (n0 + batch) * line
            tiles(dh, dh_off, stride, rows, cols, z, left, line, line, panel_stride, panels, wt, wt_at, stride)
        for k in range(cols):
            unit = (first + k) * lane
            count = h_size - unit
            for r in range(rows):
                d_at = dh_off + r * stride + k * lane
                state = (r0 + r) * h_size + unit
                if t < 0:
                    copy_out(dh0, state, dh, d_at, count)
                    continue
                z_at = (first + k) * panel_stride + (n0 + r) * line
                before = t * batch * h_size + state
                after = before + batch * h_size
                if flags & PEEPHOLE:
                    p_at = (first + k) * 3 * lane
                    cell_peephole_backward(z, z_at, dh, d_at, c, before, c, after, dc, state, count, wt, p_at)
                else:
                    cell_backward(z, z_at, dh, d_at, c, before, c, after, dc, state, count)


@device
def sums_item(panel, steps, batch, h_size, flags, ids, z, c, acc, acc_off, dtable, dbias, dpeep):
    lane = lanes_of(z)
    line = GATES * lane
    unit = panel * lane
    count = h_size - unit
    acc = acc[acc_off : acc_off + HEAD * lane]
    for k in range(HEAD * lane):
        acc[k] = 0
    for n in range(steps * batch):
        z_off = (panel * steps * batch + n) * line
        before = n * h_size + unit
        sums_peephole(acc, z, z_off, c, before, c, before + batch * h_size, count)
        if flags & INDEXED:
            for k in range(GATES):
                add_out(dtable, (ids[n] * GATES + k) * h_size + unit, z, z_off + k * lane, count)
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
def lstm_forward(
    worker, workers, tickets, steps, batch, i_size, h_size, flags, pieces, x, ids, table, w, h, c, gates, scratch
):
    """All steps of one layer.

    flags : PEEPHOLE, INDEXED, TRAINING; BY_ROWS: each of `pieces` row groups goes through all steps alone, else the
        panels of a step, in `pieces` row groups each, are shared among the workers
    x : (T, B, I), read; or, with INDEXED,
    ids : (T, B) int64, read, rows of table : (V, 4H), U x + b for each x, read
    w : packed weights, read
    h : (T + 1, B, H); h[0] read, h[1:] written
    c : with TRAINING (T + 1, B, H), c[0] read, c[1:] written; else (B, H), read and overwritten
    gates : with TRAINING (P, T, B, 4W), written: i f g o
    scratch : (workers, CHUNK * 4W), overwritten
    """
    lane = lanes_of(w)
    panels = (h_size + lane - 1) // lane
    z = gates if flags & TRAINING else scratch
    z_off = worker * CHUNK * GATES * lane
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
                        t, row0, row1, panel, steps, batch, i_size, h_size, flags, x, ids, table, w, h, c, z, z_off
                    )
            finish(tickets, 0, workers)
            item = take(tickets, 0, worker, workers, start, items)
    wait(tickets, 0, workers, rounds * items)


@kernel
def lstm_backward(
    worker, workers, tickets, steps, batch, h_size, flags, pieces,
    dy, ids, wt, c, gates, dc, dh0, dtable, dbias, dpeep, scratch,
):  # fmt: skip
    """All steps of one layer, backwards; then the sums over steps and rows that biases and peepholes need.

    flags : PEEPHOLE, INDEXED, BIAS, DY; BY_ROWS as in lstm_forward
    dy : with DY (T, B, H), read
    ids : with INDEXED (T, B) int64, read
    wt : with PEEPHOLE (P, 3W) first; then W with its rows in panel order, packed; read
    c : (T + 1, B, H), read
    gates : (P, T, B, 4W): i f g o read, overwritten by dZ
    dc, dh0 : (B, H): gradients of the final state read, of the initial state written
    dtable : with INDEXED (V, 4H), accumulated
    dbias : (4H,), accumulated
    dpeep : (3, H), accumulated
    scratch : (workers, CHUNK * 4W), overwritten
    """
    lane = lanes_of(wt)
    panels = (h_size + lane - 1) // lane
    groups = (panels + COLS - 1) // COLS
    off = worker * CHUNK * COLS * lane
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
                        dy, wt, c, gates, dc, dh0, scratch, off,
                    )  # fmt: skip
            finish(tickets, 0, workers)
            item = take(tickets, 0, worker, workers, start, items)
    wait(tickets, 0, workers, rounds * items)
    if flags & (BIAS | PEEPHOLE | INDEXED):
        panel = take(tickets, 1, worker, workers, 0, panels)
        while panel >= 0:
            sums_item(panel, steps, batch, h_size, flags, ids, gates, c, scratch, off, dtable, dbias, dpeep)
            finish(tickets, 1, workers)
            panel = take(tickets, 1, worker, workers, 0, panels)
        wait(tickets, 1, workers, panels)


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
    panels = (h_size + lane - 1) // lane
    panel = take(tickets, 0, worker, workers, 0, panels)
    while panel >= 0:
        at = panel * panel_size(i_size, h_size, lane)
        unit = panel * lane
        rows = min(lane, h_size - unit)
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
def lstm_pack_backward(worker, workers, tickets, h_size, columns, flags, source, p, packed):
    """W (or U, for dx) as backward products want it: rows in panel order, columns in panels.

    source : (4H, columns), read; p : with PEEPHOLE (3, H), read
    packed : with PEEPHOLE (P, 3W) first; then for every COLS * W columns (4 P W, line), written
    """
    lane = lanes_of(packed)
    line = GATES * lane
    panels = (h_size + lane - 1) // lane
    vectors = (columns + lane - 1) // lane
    head = panels * 3 * lane if flags & PEEPHOLE else 0
    items = (vectors + COLS - 1) // COLS * panels
    item = take(tickets, 0, worker, workers, 0, items)
    while item >= 0:
        first, panel = item // panels * COLS, item % panels
        stride = min(COLS, vectors - first) * lane
        unit = panel * lane
        rows = min(lane, h_size - unit)
        at = head + first * lane * panels * line + panel * line * stride
        for g in range(GATES):
            pack_rows(
                packed, at + g * lane * stride, stride, source, g * h_size + unit, rows, columns, first * lane, lane
            )
        if head and first == 0:
            for k in range(3):
                copy_in(packed, (panel * 3 + k) * lane, p, k * h_size + unit, rows)
        finish(tickets, 0, workers)
        item = take(tickets, 0, worker, workers, 0, items)
    wait(tickets, 0, workers, items)
