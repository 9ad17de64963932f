"""The LSTM, with and without peepholes, and what else its callers may choose.

    i = sigmoid(U_i x + W_i h' + b_i + p_i c')        h', c': the previous step's
    f = sigmoid(U_f x + W_f h' + b_f + p_f c')
    g = tanh   (U_g x + W_g h' + b_g)
    c = f c' + i g
    o = sigmoid(U_o x + W_o h' + b_o + p_o c)
    h = o tanh(c)

(Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; peepholes as in Graves 2013, eq. 7 to 11.)
With full peepholes, which are not standard, p is a matrix and p c a product: o then needs every c of the step, and a
step has two phases, c and h. The options, each of which another text of these kernels is compiled for:

    form        other functions for sigmoid, tanh and the tanh of c; and a limit within which every argument of the
                former two and every c is clamped. Where one was clamped no gradient comes through.
    coupled     f = 1 - i: three gates, i g o, and two peepholes, i o (Greff et al. 2017, CIFG)
    projection  h = W_hr m, m = o tanh(c): h has O numbers, fewer than H (Sak, Senior and Beaufays 2014). A step has one
                more phase, as h needs every m of it; backward too, as m's gradient needs all of h's.
    zoneout     of c, after it is f c' + i g: o and h of this step see the cell before, i and f of the next that after
                (Krueger et al. 2017; see masks.py, also for zoneout of h and dropout of h' on its way to W)
    norm        z = LN(U x) + LN(W h') + b and h = o tanh(LN(c)) (Ba, Kiros and Hinton 2016, equations 20 to 22), see
                norm.py. U x of all rows is normalised before: what comes in is a table of them. A step has three
                phases, W h', c and h; backward too.

A panel is W hidden units with all their gates, W the lanes of a vector. Panels are put in groups (panels.py), the items
of a step: the tiles give every gate of a group, and the gate arithmetic follows while they are in L1. A tape keeps
gates in blocks of 64 bytes of units, of one or more panels: N = ceil(H / block) blocks, P panels. G gates, 4 or 3; h
has O numbers, which are H but for a projection.

    packed weights   P x G (1 + I + O) W      a group after the other (of three gates a panel): b, then its strips,
                                              of 2 to 4 vectors of gates: U (I lines), W (O lines)
    peepholes        P x (G - 1) W            a panel after the other: p_i, p_f, p_o
    full peepholes   P x (G - 1) H W          a panel after the other: p_i and p_f (H x (G - 2)W), p_o (H x W)
    projection       O H                      W_hr in panels of 4 vectors of h, and for backward of m
    tape             T B 4 N block  gates, (T + 1) B H  cells, (T + 1) B O  states (the output is a view of them),
                     with a projection T B H  for m
    backward         writes dZ over the gates;  B H  for dc, with a projection T B O  for dh
    regularisers     recurrent dropout B O  for the mask, (T + 1) B O  for h times it; zoneout of h T B O  for the mask,
                     of c T B H  for the mask, T B H  for the cells before, in backward B H  for what is carried of dc
    norm             T B (G H + 1)  for (U x)^ and its scales, T B 4 N block  for (W h')^, 7 T B  for scales and means;
                     while it runs N B 4  for partials. Backward writes the gradient of U x over the gates and that of
                     W h' over (W h')^;  T B H  for the gradient of LN(c), B 4 N block  for one step's of W h', N B 6
                     for partials

What a row's numbers are depends on that row alone: each pre-activation is one chain of multiply-adds from the bias, x
before h, ascending.
"""

from .._jit import device, kernel, part
from ..simd.post import share
from ..simd.sync import turns
from ..simd.target import COLS, GROUP
from ..simd.tile import OWN, SHARED, strips
from ..simd.vector import (
    block,
    block_of,
    every,
    fma,
    lanes,
    lanes_of,
    load,
    maximum,
    minimum,
    only,
    pointwise,
    read,
    select,
    stack,
    store,
)
from .activations import ACTIVATIONS
from .few_steps import few_steps, step_fits, which_way
from .masks import add_carried, drop_out, drop_out_backward, hold, zone_out
from .norm import MEAN_C, OF_H, OF_X, SCALE, SCALE_C, STATS, means, moments, store_moments, sum_of, unnormalised
from .panels import (
    CHUNK,
    NO_IDS,
    ROOM,
    TAPE,
    WORK,
    add_biases,
    add_in,
    add_out,
    add_rows,
    blocks_for,
    bounds_of,
    copy_in,
    copy_line,
    copy_out,
    copy_rows,
    fetch,
    groups_for,
    groups_of_few,
    inwards,
    pack_transposed,
    panels_for,
    rows_of,
    steps_of_item,
    strips_for,
    tape_at,
    tiles,
    tiles_of_group,
    tiles_of_panels,
    tiles_of_two,
)
from .writing import division, write_some

INDEXED, TRAINING, BIAS, DY, BY_ROWS = 1, 2, 4, 8, 16

GATES = TAPE
SUMS = GATES + 3  # vectors of sums: the biases, then the peepholes
NORM_SUMS = 2 * GATES + 2  # with normalisation, besides: the gains for U x, for W h' and for c, the bias of c
DOUBLE = 2 * WORK  # working memory of backward: dh, and dc with full peepholes


# ---------------------------------------------------------------------------------------------------
# The choice of functions and the limit
# ---------------------------------------------------------------------------------------------------

USUAL = ("sigmoid", "tanh", "tanh")  # of the gates i f o, of the candidate g, of c
OF_GATES, OF_CANDIDATE, OF_CELL = 0, 1, 2


def form_of(limit, names):
    """A choice as kernels take it: None for the plain LSTM, else the limit or None, and three tuples of Nones whose
    lengths say which functions. Lengths and None are known when a kernel is compiled: it holds what was chosen alone.
    """
    if limit is None and tuple(names) == USUAL:
        return None
    return limit, *((None,) * list(ACTIVATIONS).index(name) for name in names)


def function(form, which):
    """A function and its derivative, from its output."""
    return list(ACTIVATIONS.values())[len(form[1 + which])] if form else ACTIVATIONS[USUAL[which]]


def limited(x, form):
    """x, within the limit if there is one."""
    return minimum(maximum(x, -form[0]), form[0]) if form and form[0] is not None else x


def squash(x, form, which=OF_GATES):
    """A gate from its pre-activation."""
    return function(form, which)[0](limited(x, form))


def unless(d, y, low, high):
    """d, and 0 where y is at its ends."""
    return select(y >= high, every(0.0, d), select(y <= low, every(0.0, d), d))


def slope(y, form, which=OF_GATES):
    """The derivative by its pre-activation of a gate y. What was clamped is what the limits give, bit for bit."""
    f, df = function(form, which)
    if not form or form[0] is None:
        return df(y)
    return unless(df(y), y, f(every(-form[0], y)), f(every(form[0], y)))


# ---------------------------------------------------------------------------------------------------
# One row of one panel
# ---------------------------------------------------------------------------------------------------
#
# Everywhere below
#     form : what form_of gave
#     coupled : None, or anything else for coupled gates, which have no f among what is written or read


def gates_for(coupled):
    """How many gates have weights."""
    return GATES if coupled is None else GATES - 1


def opened(z_i, z_f, z_g, cp, form):
    """i, f, g and c; z_f a list, empty with coupled gates."""
    i, g = squash(z_i, form), squash(z_g, form, OF_CANDIDATE)
    f = squash(z_f[0], form) if z_f else 1.0 - i
    return i, f, g, limited(fma(f, cp, i * g), form)


def opened_backward(dcn, i, f, g, cp, form):
    """From dc, unless c was clamped, that of c' and the gradients of i, f (a list) and g's pre-activations."""
    dz_g = dcn * i * slope(g, form, OF_CANDIDATE)  # c = f c' + i g
    if not f:
        return dcn * (1.0 - i), (dcn * (g - cp) * slope(i, form), dz_g)
    return dcn * f[0], (dcn * g * slope(i, form), dcn * cp * slope(f[0], form), dz_g)


def unless_clamped(dcn, c, form):
    """dc, and 0 where c is at its limit."""
    return unless(dcn, c, -form[0], form[0]) if form and form[0] is not None else dcn


@pointwise
def cell_open(z, z_off, c0, c0_off, c, c_off, count, p, p_off, form, coupled, gates=None, g_off=0):
    """As far as c. z (4W): pre-activations, read. c' read; c written (count of W).

    p : peepholes (3W), i f o, read, or None
    gates : for training, i f g written, a block apart
    """
    w = lanes(z)
    cp = load(c0, c0_off, count)
    z_i, *z_f, z_g = (load(z, z_off + k * w) for k in range(gates_for(coupled) - 1))
    if p is not None:
        p_i, *p_f = (load(p, p_off + k * w) for k in range(gates_for(coupled) - 2))
        z_i, z_f = fma(p_i, cp, z_i), [fma(p_f[0], cp, z_f[0])] if z_f else []
    i, f, g, cn = opened(z_i, z_f, z_g, cp, form)
    store(c, c_off, cn, count)
    if gates is not None:
        for k, gate in enumerate((i, f, g) if z_f else (i, g)):
            store(gates, g_off + k * block(gates), gate)


@pointwise
def cell_close(z, z_off, c, c_off, h, h_off, count, p, p_off, form, gates=None, g_off=0):
    """The rest. z (W): z_o, read. c read; h written (count of W).

    p : peepholes (W) of o, read, or None
    gates : for training, o written
    """
    # In a loop of its own over the rows: one after the other, c, o and h of a row wait for each other for longer than a
    # processor looks ahead. The gates took 1.2 of the time on Zen 3.
    cn, z_o = load(c, c_off, count), load(z, z_off)
    if p is not None:
        z_o = fma(load(p, p_off), cn, z_o)
    o = squash(z_o, form)
    store(h, h_off, o * function(form, OF_CELL)[0](cn), count)
    if gates is not None:
        store(gates, g_off, o)


@pointwise
def cell_backward(z, z_off, dh, dh_off, c0, c0_off, c, c_off, dc, dc_off, count, p, p_off, form, coupled):
    """z : i f g o, read, overwritten by dZ. dh (W), c', c read. dc: that of c read, that of c' written (count of W).

    p : peepholes (3W), i f o, read, or None
    """
    w, unit = lanes(z), block(z)
    i, *f, g, o = (load(z, z_off + k * unit) for k in range(gates_for(coupled)))
    sigma, dsigma = function(form, OF_CELL)
    cp, cn, d = load(c0, c0_off, count), load(c, c_off, count), load(dh, dh_off)
    tc = sigma(cn)
    dz_o = d * tc * slope(o, form)  # h = o tanh(c)
    dcn = fma(d * o, dsigma(tc), load(dc, dc_off, count))
    if p is not None:
        p_i, *p_f, p_o = (load(p, p_off + k * w) for k in range(gates_for(coupled) - 1))
        dcn = fma(dz_o, p_o, dcn)  # o sees c
    dcp, dz = opened_backward(unless_clamped(dcn, cn, form), i, f, g, cp, form)
    if p is not None:
        if f:
            dcp = fma(dz[1], p_f[0], dcp)
        dcp = fma(dz[0], p_i, dcp)  # i and f see c'
    store(dc, dc_off, dcp, count)
    for k, d in enumerate((*dz, dz_o)):
        store(z, z_off + k * unit, d)


@pointwise
def cell_close_backward(z, z_off, dh, dh_off, c, c_off, dc, dc_off, count, form, coupled):
    """z : o, read, overwritten by dz_o. dh (W), c read; dc accumulated: what comes through h."""
    sigma, dsigma = function(form, OF_CELL)
    o_off = z_off + (gates_for(coupled) - 1) * block(z)
    o, d, tc = load(z, o_off), load(dh, dh_off), sigma(load(c, c_off, count))
    store(z, o_off, d * tc * slope(o, form))
    store(dc, dc_off, fma(d * o, dsigma(tc), load(dc, dc_off, count)), count)


@pointwise
def cell_open_backward(z, z_off, c0, c0_off, c, c_off, dc, dc_off, count, form, coupled):
    """z : i f g, read, overwritten by dZ. c', c read. dc: the whole of c's read, what f carries to c' written."""
    unit = block(z)
    i, *f, g = (load(z, z_off + k * unit) for k in range(gates_for(coupled) - 1))
    dcn = unless_clamped(load(dc, dc_off, count), load(c, c_off, count), form)
    dcp, dz = opened_backward(dcn, i, f, g, load(c0, c0_off, count), form)
    store(dc, dc_off, dcp, count)
    for k, d in enumerate(dz):
        store(z, z_off + k * unit, d)


@pointwise
def add_sums(acc, dz, dz_off, coupled, p=None, c0=None, c0_off=0, c=None, c_off=0, count=0):
    """acc (7W), accumulated: dZ, read, for the biases; unless p is None, dz_i c', dz_f c', dz_o c for the peepholes."""
    w = lanes(acc)
    each = [load(dz, dz_off + k * block(dz)) for k in range(gates_for(coupled))]
    for k, d in enumerate(each):
        store(acc, k * w, load(acc, k * w) + d)
    if p is not None:
        cp, cn = load(c0, c0_off, count), load(c, c_off, count)
        dz_i, *dz_f, _, dz_o = each
        for k, (d, x) in enumerate(((dz_i, cp), *((d, cp) for d in dz_f), (dz_o, cn)), GATES):
            store(acc, k * w, fma(d, x, load(acc, k * w)))


# ---------------------------------------------------------------------------------------------------
# The same with normalisation
# ---------------------------------------------------------------------------------------------------
#
# Everywhere below
#     v : a block of W h', its gates a block apart
#     x : (U x)^ of the row, its gates x_line apart, `count` of each
#     gain : packed gains, see norm.py: from gate to gate a block; after those for U x and W h' c's gain and bias
#     scales : what is kept of the row, from one of its numbers to the next `apart`


@pointwise
def v_moments(v, v_off, count, inverse, parts, off, apart, coupled):
    """The partials of W h': its sum and squares, written to parts; count units."""
    unit = block(v)
    values = [load(v, v_off + k * unit, n=unit) for k in range(gates_for(coupled))]
    store_moments(values, count, inverse, parts, off, apart)


@pointwise
def c_moments(c, c_off, count, inverse, parts, off, apart):
    """The partials of c; count units."""
    store_moments([load(c, c_off, count, block(c))], count, inverse, parts, off, apart)


@pointwise
def cell_open_norm(
    v, v_off, stats, s_off, x, x_off, x_line, gain, gain_off, b, b_off, c0, c0_off, c, c_off, count, p, p_off, form,
    coupled, gates, g_off,
):  # fmt: skip
    """`cell_open` with normalisation. v : read, overwritten by v^

    stats : mean and, CHUNK further, 1 / sqrt(..) of the row's W h', read
    b : biases (4W), read
    p : peepholes (3W), i f o, read, or None
    gates : i f g o written, a block apart
    """
    w, unit, number = lanes(v), block(v), gates_for(coupled)
    mean, scale = read(stats, s_off), read(stats, s_off + CHUNK)
    z = []
    for k in range(number):
        a = (load(v, v_off + k * unit) - mean) * scale
        of_x = fma(load(gain, gain_off + k * unit), load(x, x_off + k * x_line, count), load(b, b_off + k * w))
        z.append(fma(load(gain, gain_off + (number + k) * unit), a, of_x))
        store(v, v_off + k * unit, a)
    cp = load(c0, c0_off, count)
    z_i, *z_f, z_g, z_o = z
    if p is not None:
        p_i, *p_f, p_o = (load(p, p_off + k * w) for k in range(number - 1))
        z_i, z_f = fma(p_i, cp, z_i), [fma(p_f[0], cp, z_f[0])] if z_f else []
    i, f, g, cn = opened(z_i, z_f, z_g, cp, form)
    if p is not None:
        z_o = fma(p_o, cn, z_o)
    o = squash(z_o, form)
    store(c, c_off, cn, count)
    for k, gate in enumerate((i, f, g, o) if z_f else (i, g, o)):
        store(gates, g_off + k * unit, gate)


@pointwise
def cell_close_norm(o, o_off, stats, s_off, gain, gain_off, c, c_off, h, h_off, count, form):
    """The rest: o, c and the mean and 1 / sqrt(..) of the row's c in stats read; h written (count of W)."""
    a = (load(c, c_off, count) - read(stats, s_off)) * read(stats, s_off + CHUNK)
    y = fma(load(gain, gain_off), a, load(gain, gain_off + block(gain)))
    store(h, h_off, load(o, o_off) * function(form, OF_CELL)[0](y), count)


@pointwise
def cell_close_norm_backward(
    z, z_off, dh, dh_off, c, c_off, scales, s_off, apart, gain, gain_off, dn, dn_off, count, form, coupled
):
    """z : o, read, overwritten by dz_o. dh (W), c read; dn, the gradient of LN(c), written (count of W)."""
    unit, number = block(z), gates_for(coupled)
    sigma, dsigma = function(form, OF_CELL)
    o_off, c_gain = z_off + (number - 1) * unit, gain_off + 2 * number * unit
    a = (load(c, c_off, count) - read(scales, s_off + MEAN_C * apart)) * read(scales, s_off + SCALE_C * apart)
    o, d = load(z, o_off), load(dh, dh_off)
    tc = sigma(fma(load(gain, c_gain), a, load(gain, c_gain + unit)))
    store(z, o_off, d * tc * slope(o, form))
    store(dn, dn_off, d * o * dsigma(tc), count)


@pointwise
def c_sums(dn, dn_off, c, c_off, scales, s_off, apart, gain, gain_off, count, parts, off, parts_apart, coupled):
    """The partials of the gradient of c^: sums of d and of d c^; count units of dn and c read."""
    n = block(c)
    d = load(gain, gain_off + 2 * gates_for(coupled) * n, n=n) * load(dn, dn_off, count, n)
    a = (load(c, c_off, count, n) - read(scales, s_off + MEAN_C * apart)) * read(scales, s_off + SCALE_C * apart)
    store(parts, off, sum_of([d]), 1)
    store(parts, off + parts_apart, sum_of([d * only(a, count)]), 1)


@pointwise
def cell_open_norm_backward(
    z, z_off, dn, dn_off, stats, at, c0, c0_off, c, c_off, dc, dc_off, scales, s_off, apart, gain, gain_off, count,
    p, p_off, form, coupled,
):  # fmt: skip
    """z : i f g dz_o, read, overwritten by dZ. dc: that of c read but for what comes through h, that of c' written.

    stats : the row's means of d and, CHUNK further, of d c^, read
    p : peepholes (3W), i f o, read, or None
    """
    w, unit, number = lanes(z), block(z), gates_for(coupled)
    i, *f, g, dz_o = (load(z, z_off + k * unit) for k in range(number))
    cp, cn = load(c0, c0_off, count), load(c, c_off, count)
    scale = read(scales, s_off + SCALE_C * apart)
    a = (cn - read(scales, s_off + MEAN_C * apart)) * scale
    d = load(gain, gain_off + 2 * number * unit) * load(dn, dn_off, count)
    dcn = load(dc, dc_off, count) + unnormalised(d, a, scale, read(stats, at), read(stats, at + CHUNK))
    if p is not None:
        p_i, *p_f, p_o = (load(p, p_off + k * w) for k in range(number - 1))
        dcn = fma(dz_o, p_o, dcn)  # o sees c
    dcp, dz = opened_backward(unless_clamped(dcn, cn, form), i, f, g, cp, form)
    if p is not None:
        if f:
            dcp = fma(dz[1], p_f[0], dcp)
        dcp = fma(dz[0], p_i, dcp)  # i and f see c'
    store(dc, dc_off, dcp, count)
    for k, d in enumerate(dz):
        store(z, z_off + k * unit, d)


@pointwise
def z_sums(z, z_off, v, v_off, x, x_off, x_line, gain, gain_off, count, parts, off, apart, coupled):
    """The partials of the gradients of (U x)^ and of (W h')^: of each the sums of d and of d (..)^; dZ, v^, x read."""
    n, number = block(z), gates_for(coupled)
    for of_h in (0, 1):
        sums, products = [], []
        for k in range(number):
            a = load(v, v_off + k * n, n=n) if of_h else load(x, x_off + k * x_line, count, n)
            d = load(gain, gain_off + (of_h * number + k) * n, n=n) * load(z, z_off + k * n, n=n)
            sums.append(only(d, count))
            products.append(only(d * a, count))
        store(parts, off + 2 * of_h * apart, sum_of(sums), 1)
        store(parts, off + (2 * of_h + 1) * apart, sum_of(products), 1)


@pointwise
def v_backward(z, z_off, v, v_off, scales, s_off, apart, stats, at, gain, gain_off, count, dv, dv_off, coupled):
    """dZ and v^ read; the gradient of W h' written to dv; count units.

    stats : the row's means of d and, CHUNK further, of d v^, read
    """
    n, number = block(z), gates_for(coupled)
    scale, mean, product = read(scales, s_off + SCALE * apart), read(stats, at), read(stats, at + CHUNK)
    for k in range(number):
        d = load(gain, gain_off + (number + k) * n, n=n) * load(z, z_off + k * n, n=n)
        store(dv, dv_off + k * n, only(unnormalised(d, load(v, v_off + k * n, n=n), scale, mean, product), count))


@pointwise
def add_norm_sums(
    acc, z, z_off, v, v_off, x, x_off, x_line, x_scale, x_at, scales, s_off, apart, gain, gain_off,
    dn, dn_off, c, c_off, count, coupled,
):  # fmt: skip
    """acc (10W), accumulated: dZ x, dZ v^, dn c^, dn. z : dZ, read, overwritten by the gradient of U x. v : v^, read,
    overwritten by that of W h'.
    """
    w, unit, number = lanes(acc), block(z), gates_for(coupled)
    of_x, of_h = [read(x_scale, x_at)], [read(scales, s_off + SCALE * apart)]
    of_x += [read(scales, s_off + (OF_X + k) * apart) for k in (0, 1)]
    of_h += [read(scales, s_off + (OF_H + k) * apart) for k in (0, 1)]
    for k in range(number):
        dz, b, a = load(z, z_off + k * unit), load(x, x_off + k * x_line, count), load(v, v_off + k * unit)
        d_x, d_h = (load(gain, gain_off + (m * number + k) * unit) * dz for m in (0, 1))
        store(acc, k * w, fma(dz, b, load(acc, k * w)))
        store(acc, (GATES + k) * w, fma(dz, a, load(acc, (GATES + k) * w)))
        store(z, z_off + k * unit, only(unnormalised(d_x, b, *of_x), count))
        store(v, v_off + k * unit, only(unnormalised(d_h, a, *of_h), count))
    a = (load(c, c_off, count) - read(scales, s_off + MEAN_C * apart)) * read(scales, s_off + SCALE_C * apart)
    d = load(dn, dn_off, count)
    store(acc, 2 * GATES * w, fma(d, a, load(acc, 2 * GATES * w)))
    store(acc, (2 * GATES + 1) * w, load(acc, (2 * GATES + 1) * w) + d)


@device
def groups_in(panels, rows, coupled):
    """Into how many groups panels are put, for so many rows: three gates are packed by themselves."""
    if coupled is None:
        return groups_for(panels)
    return groups_of_few(panels, rows)


@device
def groups_in_steps(panels, rows, workers, coupled):
    """The same for few steps in inference. With 32 registers a row of four gates is in groups too, see `row_item`, of
    four panels or as many as leave two groups for each worker.
    """
    groups = groups_in(panels, rows, coupled)
    if coupled is None and GROUP == 1 and rows == 1:
        size = max(1, min(4, panels // (2 * workers)))
        groups = (panels + size - 1) // size
    return groups


# ---------------------------------------------------------------------------------------------------
# A group or a panel of one step, for some rows: the item that workers take
# ---------------------------------------------------------------------------------------------------


@part
def forward_item(
    row0, row1, panel0, panel1, n, before, c_row, total, i_size, h_size, o_size, h_line, flags,
    x, ids, table, w, peep, p_first, full, form, coupled, h0, to, to_row, to_line, c0, c, gates, z,
):  # fmt: skip
    """The panels of a group, from panel0 to before panel1.

    p_first : where the layer's peepholes begin
    c : rows of H numbers, from c_row on written
    to : rows of to_line numbers, from to_row on: h, or what is projected to it, written
    """
    lane = lanes_of(w)
    number = GATES if coupled is None else GATES - 1
    one, training = GATES * lane, flags & TRAINING
    line = (panel1 - panel0) * one
    vectors = (panel1 - panel0) * number
    # Three gates of a panel are packed by themselves, four of all panels of a group together.
    at, b_next = panel0 * (1 + i_size + o_size) * number * lane, number * lane
    u_at = at + vectors * lane
    if coupled is not None:
        u_at, b_next = at + b_next, (1 + i_size + o_size) * b_next
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        if flags & INDEXED:
            for r in range(rows):
                row = n + r0 + r if len(ids) == 0 else ids[n + r0 + r]
                for panel in range(panel0, panel1):
                    for g in range(number):
                        unit, z_at = panel * lane, r * line + (panel - panel0) * one + g * lane
                        copy_in(z, z_at, table, (row * number + g) * h_size + unit, h_size - unit)
        else:
            for k in range(panel1 - panel0):
                for r in range(rows):
                    # Of three gates with a vector that follows them, which nobody looks at.
                    copy_line(z, r * line + k * one, w, at + k * b_next)
        h0_at, c0_at = (before + r0) * h_line, (before + r0) * h_size
        x_at = (n + r0) * i_size
        # Alone, 0.97 to 0.99 of the time with 2 to 16 rows; of one row 1.04 at H = 32. In training it gained nothing,
        # nor where c is read; a GRU takes 0.98 to 0.99 alone, but up to 1.016 on two threads.
        for panel in range(panel0, panel1):
            for r in range(rows if rows > 1 and not training else 0):
                fetch(to, (to_row + r0 + r) * to_line + panel * lane)
        if coupled is not None:  # with INDEXED i_size is 0
            tiles_of_panels(
                z, 0, line, one, rows, panel1 - panel0,
                x, x_at, i_size, i_size, h0, h0_at, h_line, o_size, w, u_at, b_next,
            )  # fmt: skip
        elif GROUP == 1:
            tiles_of_two(z, 0, line, rows, 4, x, x_at, i_size, i_size, h0, h0_at, h_line, o_size, w, u_at, OWN)
        else:
            tiles_of_group(z, line, rows, vectors, x, x_at, i_size, i_size, h0, h0_at, h_line, o_size, w, u_at)
        for panel in range(panel0, panel1):
            unit, of_panel = panel * lane, (panel - panel0) * one
            count = h_size - unit
            if full is not None:
                p_at = panel * (number - 1) * h_size * lane
                if coupled is None:
                    tiles(z, of_panel, line, rows, 2, c0, c0_at, h_size, h_size, 0, 1, full, p_at, SHARED)
                else:
                    tiles(z, of_panel, line, rows, 1, c0, c0_at, h_size, h_size, 0, 1, full, p_at, SHARED)
            p_at, last = p_first + unit * (number - 1), number - 1
            for k in range(rows):
                r = inwards(k, rows)
                z_at, g_at = r * line + of_panel, tape_at(w, panel, total, n + r0 + r)
                cp_at = ((before if training else 0) + r0 + r) * h_size + unit
                c_at = (c_row + r0 + r) * h_size + unit
                if training:
                    cell_open(z, z_at, c0, cp_at, c, c_at, count, peep, p_at, form, coupled, gates, g_at)
                else:
                    cell_open(z, z_at, c0, cp_at, c, c_at, count, peep, p_at, form, coupled)
                if full is not None:  # z_o is left where o belongs
                    copy_in(gates, g_at + last * block_of(w), z, z_at + last * lane, lane)
            p_at += (last - 1) * lane
            for k in range(rows if full is None else 0):
                r = inwards(k, rows)
                z_at, g_at = r * line + of_panel + last * lane, tape_at(w, panel, total, n + r0 + r)
                c_at, to_at = (c_row + r0 + r) * h_size + unit, (to_row + r0 + r) * to_line + unit
                if training:
                    o_at = g_at + last * block_of(w)
                    cell_close(z, z_at, c, c_at, to, to_at, count, peep, p_at, form, gates, o_at)
                else:
                    cell_close(z, z_at, c, c_at, to, to_at, count, peep, p_at, form)


@part
def output_item(
    row0, row1, panel, n, c_row, total, h_size, full, form, coupled, to, to_row, to_line, c, gates, z
):  # fmt: skip
    """With full peepholes, when every c of the step is there: the output gate and h, or what is projected to it."""
    lane = lanes_of(full)
    number = GATES if coupled is None else GATES - 1
    unit = panel * lane
    o_at = (number - 1) * block_of(z)
    p_at = (panel * (number - 1) + number - 2) * h_size * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for r in range(rows):
            copy_in(z, r * lane, gates, tape_at(z, panel, total, n + r0 + r) + o_at, lane)
        tiles(z, 0, lane, rows, 1, c, (c_row + r0) * h_size, h_size, h_size, 0, 1, full, p_at, SHARED)
        for r in range(rows):
            g_at = tape_at(z, panel, total, n + r0 + r) + o_at
            c_at, to_at = (c_row + r0 + r) * h_size + unit, (to_row + r0 + r) * to_line + unit
            cell_close(z, r * lane, c, c_at, to, to_at, h_size - unit, None, 0, form, gates, g_at)


@device
def gain_at(gain, panel, number):
    """Where the gains of a panel begin."""
    unit, size = panel * lanes_of(gain), block_of(gain)
    return unit // size * (2 * number + 2) * size + unit % size


@part
def product_item_norm(
    row0, row1, first, end, before, kept, kept_rows, batch, h_size, o_size, h_line, w, coupled, h0, v, parts, z
):
    """With normalisation: W h' of whole blocks, the panels from first to before end, and its partials."""
    lane, size = lanes_of(w), block_of(w)
    number = GATES if coupled is None else GATES - 1
    one, line, several = GATES * lane, GROUP * GATES * lane, size // lane
    blocks = blocks_for(w, h_size)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        h0_at = (before + r0) * h_line
        for b in range(first * lane // size, end * lane // size):
            for r in range(rows):
                for k in range(0, several * one, lane):
                    copy_in(z, r * line + k, v, 0, 0)
            w_at = b * several * (1 + o_size) * number * lane
            if coupled is not None:
                tiles_of_panels(
                    z, 0, line, one, rows, several, h0, h0_at, 0, 0, h0, h0_at, h_line, o_size,
                    w, w_at + number * lane, (1 + o_size) * number * lane,
                )  # fmt: skip
            elif GROUP == 1:
                tiles(z, 0, line, rows, 4, h0, h0_at, h_line, o_size, 0, 1, w, w_at + one, OWN)
            else:
                tiles_of_group(
                    z, line, rows, several * GATES, h0, h0_at, 0, 0, h0, h0_at, h_line, o_size, w, w_at + several * one
                )  # fmt: skip
            for r in range(rows):
                for k in range(several):
                    v_at = tape_at(w, b * several + k, kept_rows, kept + r0 + r)
                    for g in range(number):
                        copy_out(v, v_at + g * size, z, r * line + k * one + g * lane, lane)
            count = min(size, h_size - b * size)
            for r in range(rows):
                v_at, at = (b * kept_rows + kept + r0 + r) * TAPE * size, b * batch + r0 + r
                v_moments(v, v_at, count, 1.0 / (number * count), parts, at, blocks * batch, coupled)


@part
def open_item_norm(
    row0, row1, first, end, n, before, after, total, kept, kept_rows, batch, h_size, o_size, flags,
    ids, table, w, peep, form, coupled, gain, epsilon, c, gates, v, parts, scales, stats,
):  # fmt: skip
    """When all partials of W h' are there: gates and c, and the partials of c."""
    lane, size = lanes_of(w), block_of(w)
    number = GATES if coupled is None else GATES - 1
    blocks, several = blocks_for(w, h_size), size // lane
    b_next = number * lane if coupled is None else (1 + o_size) * number * lane
    training = flags & TRAINING
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        moments(parts, 0, r0, rows, batch, h_size, number, epsilon, stats)
        if training and first == 0:
            for r in range(0, rows, lane):
                copy_rows(scales, SCALE * total + n + r0 + r, stats, CHUNK + r, rows - r)
        for b in range(first * lane // size, end * lane // size):
            for panel in range(b * several, (b + 1) * several):
                unit = panel * lane
                count = h_size - unit
                b_at, p_at = b * several * (1 + o_size) * number * lane, unit * (number - 1)
                b_at += (panel - b * several) * b_next
                for r in range(rows):
                    v_at = tape_at(w, panel, kept_rows, kept + r0 + r)
                    x_at = ids[n + r0 + r] * number * h_size + unit
                    c0_at = ((before if training else 0) + r0 + r) * h_size + unit
                    c_at = ((after if training else 0) + r0 + r) * h_size + unit
                    cell_open_norm(
                        v, v_at, stats, r, table, x_at, h_size, gain, gain_at(gain, panel, number), w, b_at,
                        c, c0_at, c, c_at, count, peep, p_at, form, coupled, gates, v_at,
                    )  # fmt: skip
            count = min(size, h_size - b * size)
            for r in range(rows):
                c_at = ((after if training else 0) + r0 + r) * h_size + b * size
                c_moments(c, c_at, count, 1.0 / count, parts, (2 * blocks + b) * batch + r0 + r, blocks * batch)


@part
def close_item_norm(
    row0, row1, first, end, n, after, total, kept, kept_rows, batch, h_size, flags, form, coupled, gain, epsilon,
    c, gates, to, to_row, to_line, parts, scales, stats,
):  # fmt: skip
    """When all partials of c are there: h, or what is projected to it."""
    lane = lanes_of(gain)
    number = GATES if coupled is None else GATES - 1
    o_at = (number - 1) * block_of(gain)
    training = flags & TRAINING
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        moments(parts, 2, r0, rows, batch, h_size, 1, epsilon, stats)
        if training and first == 0:
            for r in range(0, rows, lane):
                copy_rows(scales, MEAN_C * total + n + r0 + r, stats, r, rows - r)
                copy_rows(scales, SCALE_C * total + n + r0 + r, stats, CHUNK + r, rows - r)
        for panel in range(first, end):
            unit = panel * lane
            c_gain = gain_at(gain, panel, number) + 2 * number * block_of(gain)
            for r in range(rows):
                v_at = tape_at(gain, panel, kept_rows, kept + r0 + r) + o_at
                c_at = ((after if training else 0) + r0 + r) * h_size + unit
                to_at = (to_row + r0 + r) * to_line + unit
                cell_close_norm(gates, v_at, stats, r, gain, c_gain, c, c_at, to, to_at, h_size - unit, form)


@part
def projection_item(row0, row1, q, after, h_size, o_size, h_line, wr, m, m_row, h, z):
    """When every m of the step is there: COLS vectors of h = W_hr m."""
    lane = lanes_of(wr)
    first = q * COLS
    cols = min(COLS, (o_size + lane - 1) // lane - first)
    stride = cols * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for k in range(0, rows * stride, lane):
            copy_in(z, k, m, 0, 0)
        m_at = (m_row + r0) * h_size
        tiles(z, 0, stride, rows, cols, m, m_at, h_size, h_size, 0, 1, wr, first * lane * h_size, SHARED)
        for r in range(rows):
            for k in range(cols):
                unit = (first + k) * lane
                copy_out(h, (after + r0 + r) * h_line + unit, z, r * stride + k * lane, o_size - unit)


@part
def arriving(
    r0, rows, q, vectors, n, ahead, following, total, h_size, o_size, d_line, flags, dy, wt, coupled, z, dh0,
    drop, keep, dh,
):  # fmt: skip
    """dh, written: COLS of `vectors` vectors of the gradient of h, from the step after and from y. With zoneout that of
    h before it, and dh0 what it kept of h'.

    Its arguments are those of backward_item.
    """
    lane = lanes_of(wt)
    number = GATES if coupled is None else GATES - 1
    blocks = blocks_for(wt, h_size)
    z_line = GATES * block_of(wt)
    seg = number * block_of(wt)
    first = q * COLS
    cols = min(COLS, vectors - first)
    stride = cols * lane
    going = max(0, min(rows, following - r0))
    for r in range(rows):  # from the step after a chain that starts from 0, else the final state's gradient
        for k in range(cols):
            unit = (first + k) * lane
            copy_in(dh, r * stride + k * lane, dh0, (r0 + r) * o_size + unit, o_size - unit if r >= going else 0)
    left = (ahead + r0) * z_line
    wt_at = first * lane * blocks * seg
    tiles(dh, 0, stride, going, cols, z, left, z_line, seg, total * z_line, blocks, wt, wt_at, SHARED)
    if drop is not None:
        drop_out_backward(r0, going, first, cols, o_size, drop, dh)
    if keep is not None:
        add_carried(r0, going, first, cols, o_size, dh0, dh)
    if n >= 0 and flags & DY:
        for r in range(rows):
            for k in range(cols):
                unit = (first + k) * lane
                add_in(dh, r * stride + k * lane, dy, (n + r0 + r) * d_line + unit, o_size - unit)
    if keep is not None and n >= 0:
        for r in range(rows):
            for k in range(cols):
                unit = (first + k) * lane
                keep_at = (n + r0 + r) * o_size + unit
                hold(dh, r * stride + k * lane, dh0, (r0 + r) * o_size + unit, keep, keep_at, o_size - unit)


@part
def projection_item_backward(
    row0, row1, q, n, ahead, following, total, h_size, o_size, d_line, flags, dy, wt, coupled, z, dh0, dhs,
    drop, keep, dh,
):  # fmt: skip
    """With a projection: the gradient of h, kept in dhs; before the first step in dh0."""
    lane = lanes_of(wt)
    first, vectors = q * COLS, (o_size + lane - 1) // lane
    cols = min(COLS, vectors - first)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        arriving(
            r0, rows, q, vectors, n, ahead, following, total, h_size, o_size, d_line, flags, dy, wt, coupled, z, dh0,
            drop, keep, dh,
        )  # fmt: skip
        for r in range(rows):
            for k in range(cols):
                unit, d_at = (first + k) * lane, (r * cols + k) * lane
                if n < 0:
                    copy_out(dh0, (r0 + r) * o_size + unit, dh, d_at, o_size - unit)
                else:
                    copy_out(dhs, (n + r0 + r) * o_size + unit, dh, d_at, o_size - unit)


@part
def backward_item(
    row0, row1, q, n, before, c_row, ahead, following, total, h_size, o_size, d_line, flags, dy, wt, peep, full, wrt,
    form, coupled, c0, c, z, dc, dhs, drop, keep, keep_c, carried, dh,
):  # fmt: skip
    """Step s with its rows at n, before, c_row as in forward_item; before the first step n is -1.

    ahead : n of step s + 1, of whose rows there are `following`
    dhs : with wrt that of the kernel, else its dh0. (Numba does not read calls with more than 30 arguments.)
    """
    lane = lanes_of(wt)
    number = GATES if coupled is None else GATES - 1
    panels, blocks = panels_for(wt, h_size), blocks_for(wt, h_size)
    size = block_of(wt)
    first = q * COLS
    cols = min(COLS, panels - first)
    stride = cols * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        if wrt is None:
            arriving(
                r0, rows, q, panels, n, ahead, following, total, h_size, o_size, d_line, flags,
                dy, wt, coupled, z, dhs, drop, keep, dh,
            )  # fmt: skip
        elif n >= 0:
            for k in range(0, rows * stride, lane):
                copy_in(dh, k, dhs, 0, 0)
            wrt_at = first * lane * o_size
            tiles(dh, 0, stride, rows, cols, dhs, (n + r0) * o_size, o_size, o_size, 0, 1, wrt, wrt_at, SHARED)
        if full is not None:
            going = max(0, min(rows, following - r0))
            seg = (number - 2) * size
            left, p_at = (ahead + r0) * GATES * size, first * lane * blocks * seg
            add_product(dc, r0, first, cols, going, h_size, z, left, seg, total, blocks, full, p_at, dh)
        for k in range(cols):
            unit = (first + k) * lane
            count = h_size - unit
            for r in range(rows):
                d_at = r * stride + k * lane
                state = (r0 + r) * h_size + unit
                if n < 0:
                    if wrt is None:
                        copy_out(dhs, state, dh, d_at, count)
                    continue
                z_at = tape_at(wt, first + k, total, n + r0 + r)
                c0_at, c_at = (before + r0 + r) * h_size + unit, (c_row + r0 + r) * h_size + unit
                if keep_c is not None:
                    hold(dc, state, carried, state, keep_c, (n + r0 + r) * h_size + unit, count)
                if full is not None:
                    cell_close_backward(z, z_at, dh, d_at, c, c_at, dc, state, count, form, coupled)
                else:
                    p_at = unit * (number - 1)
                    cell_backward(
                        z, z_at, dh, d_at, c0, c0_at, c, c_at, dc, state, count, peep, p_at, form, coupled
                    )  # fmt: skip
                    if keep_c is not None:
                        add_rows(dc, state, carried, state, count)


@part
def open_item_backward(
    row0, row1, q, n, before, c_row, total, h_size, full, form, coupled, c0, c, z, dc, keep_c, carried, work
):
    """With full peepholes, when every dz_o of the step is there: the other gates."""
    lane = lanes_of(full)
    number = GATES if coupled is None else GATES - 1
    panels, blocks = panels_for(full, h_size), blocks_for(full, h_size)
    size = block_of(full)
    first = q * COLS
    cols = min(COLS, panels - first)
    p_at = ((number - 2) * panels + first) * lane * blocks * size
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        left = ((n + r0) * GATES + number - 1) * size
        add_product(dc, r0, first, cols, rows, h_size, z, left, size, total, blocks, full, p_at, work)
        for k in range(cols):
            unit = (first + k) * lane
            for r in range(rows):
                z_at = tape_at(full, first + k, total, n + r0 + r)
                c0_at, c_at = (before + r0 + r) * h_size + unit, (c_row + r0 + r) * h_size + unit
                state = (r0 + r) * h_size + unit
                cell_open_backward(z, z_at, c0, c0_at, c, c_at, dc, state, h_size - unit, form, coupled)
                if keep_c is not None:
                    add_rows(dc, state, carried, state, h_size - unit)


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
    tiles(work, at, stride, rows, cols, z, left, z_line, seg, total * z_line, blocks, p, p_at, SHARED)
    for r in range(rows):
        for k in range(cols):
            unit = (first + k) * lane
            copy_out(dc, (r0 + r) * h_size + unit, work, at + r * stride + k * lane, h_size - unit)


@part
def close_item_norm_backward(
    row0, row1, q, n, after, following, total, batch, h_size, o_size, d_line, flags, dy, wt, wrt, form, coupled,
    c, z, gain, parts, scales, dv, dn, dh0, dhs, dh,
):  # fmt: skip
    """With normalisation: dz_o and the gradient of LN(c), and its partials; before the first step n is -1."""
    lane, size = lanes_of(wt), block_of(wt)
    number = GATES if coupled is None else GATES - 1
    panels, blocks = panels_for(wt, h_size), blocks_for(wt, h_size)
    first = q * COLS
    cols = min(COLS, panels - first)
    stride = cols * lane
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        if wrt is None:
            arriving(
                r0, rows, q, panels, n, 0, following, batch, h_size, o_size, d_line, flags,
                dy, wt, coupled, dv, dh0, None, None, dh,
            )  # fmt: skip
        elif n >= 0:
            for k in range(0, rows * stride, lane):
                copy_in(dh, k, dhs, 0, 0)
            wrt_at = first * lane * o_size
            tiles(dh, 0, stride, rows, cols, dhs, (n + r0) * o_size, o_size, o_size, 0, 1, wrt, wrt_at, SHARED)
        for k in range(cols):
            panel, unit = first + k, (first + k) * lane
            count = h_size - unit
            for r in range(rows):
                d_at = r * stride + k * lane
                if n < 0:
                    if wrt is None:
                        copy_out(dh0, (r0 + r) * h_size + unit, dh, d_at, count)
                    continue
                row = n + r0 + r
                cell_close_norm_backward(
                    z, tape_at(wt, panel, total, row), dh, d_at, c, (after + r0 + r) * h_size + unit,
                    scales, row, total, gain, gain_at(gain, panel, number), dn, row * h_size + unit, count, form,
                    coupled,
                )  # fmt: skip
        if n < 0:
            continue
        for b in range(first * lane // size, (first + cols) * lane // size):
            count = min(size, h_size - b * size)
            for r in range(rows):
                row = n + r0 + r
                c_sums(
                    dn, row * h_size + b * size, c, (after + r0 + r) * h_size + b * size, scales, row, total,
                    gain, b * (2 * number + 2) * size, count, parts, b * batch + r0 + r, blocks * batch, coupled,
                )  # fmt: skip


@part
def open_item_norm_backward(
    row0, row1, q, n, before, after, total, batch, h_size, wt, peep, form, coupled, ids, table, c, z, v, dc,
    gain, parts, scales, dn, stats,
):  # fmt: skip
    """When the partials of c^'s gradient are there: dZ and the partials of it."""
    lane, size = lanes_of(wt), block_of(wt)
    number = GATES if coupled is None else GATES - 1
    panels, blocks = panels_for(wt, h_size), blocks_for(wt, h_size)
    first = q * COLS
    cols = min(COLS, panels - first)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        means(parts, 0, r0, rows, batch, h_size, 1, stats, 0)
        means(parts, 1, r0, rows, batch, h_size, 1, stats, CHUNK)
        for panel in range(first, first + cols):
            unit = panel * lane
            for r in range(rows):
                row = n + r0 + r
                c0_at, c_at = (before + r0 + r) * h_size + unit, (after + r0 + r) * h_size + unit
                cell_open_norm_backward(
                    z, tape_at(wt, panel, total, row), dn, row * h_size + unit, stats, r, c, c0_at, c, c_at,
                    dc, (r0 + r) * h_size + unit, scales, row, total, gain, gain_at(gain, panel, number),
                    h_size - unit, peep, unit * (number - 1), form, coupled,
                )  # fmt: skip
        for b in range(first * lane // size, (first + cols) * lane // size):
            count = min(size, h_size - b * size)
            for r in range(rows):
                row = n + r0 + r
                z_at = (b * total + row) * TAPE * size
                z_sums(
                    z, z_at, v, z_at, table, ids[row] * number * h_size + b * size, h_size,
                    gain, b * (2 * number + 2) * size, count, parts, (2 * blocks + b) * batch + r0 + r, blocks * batch,
                    coupled,
                )  # fmt: skip


@part
def product_item_norm_backward(
    row0, row1, q, n, total, batch, h_size, wt, coupled, z, v, gain, parts, scales, dv, stats
):
    """When the partials of dZ are there: the gradient of W h', and for the sums what is kept of the rows."""
    lane, size = lanes_of(wt), block_of(wt)
    number = GATES if coupled is None else GATES - 1
    panels = panels_for(wt, h_size)
    first = q * COLS
    cols = min(COLS, panels - first)
    for r0 in range(row0, row1, CHUNK):
        rows = min(CHUNK, row1 - r0)
        for k in range(2):
            means(parts, 4 + k, r0, rows, batch, h_size, number, stats, k * CHUNK)
        if q == 0:
            for k in range(2):
                means(parts, 2 + k, r0, rows, batch, h_size, number, scales, (OF_X + k) * total + n + r0)
                for r in range(0, rows, lane):
                    copy_rows(scales, (OF_H + k) * total + n + r0 + r, stats, k * CHUNK + r, rows - r)
        for b in range(first * lane // size, (first + cols) * lane // size):
            count = min(size, h_size - b * size)
            for r in range(rows):
                z_at = (b * total + n + r0 + r) * TAPE * size
                v_backward(
                    z, z_at, v, z_at, scales, n + r0 + r, total, stats, r, gain, b * (2 * number + 2) * size, count,
                    dv, (b * batch + r0 + r) * TAPE * size, coupled,
                )  # fmt: skip


@part
def sums_item_norm(
    panel, n, after, rows, total, h_size, flags, ids, table, scale, coupled, z, v, c, gain, scales, dn, acc, dtable
):
    """One panel of one step of what normalisation sums over all steps and rows; then z is the gradient of U x and v
    that of W h'.
    """
    number = GATES if coupled is None else GATES - 1
    unit = panel * lanes_of(z)
    count = h_size - unit
    for row in range(n, n + rows):
        z_at, x_at = tape_at(z, panel, total, row), ids[row] * number * h_size + unit
        add_norm_sums(
            acc, z, z_at, v, z_at, table, x_at, h_size, scale, ids[row], scales, row, total,
            gain, gain_at(gain, panel, number), dn, row * h_size + unit, c, (after + row - n) * h_size + unit, count,
            coupled,
        )  # fmt: skip
        if flags & INDEXED:
            for k in range(number):
                add_out(dtable, x_at + k * h_size, z, z_at + k * block_of(z), count)


@part
def sums_item(panel, n, before, c_row, rows, total, h_size, flags, ids, peep, coupled, z, c0, c, acc, dtable):
    """One panel of one step of what is summed over all steps and rows."""
    lane = lanes_of(z)
    number = GATES if coupled is None else GATES - 1
    unit = panel * lane
    count = h_size - unit
    for r in range(rows):
        z_at = tape_at(z, panel, total, n + r)
        c0_at, c_at = (before + r) * h_size + unit, (c_row + r) * h_size + unit
        add_sums(acc, z, z_at, coupled, peep, c0, c0_at, c, c_at, count)
        if flags & INDEXED:
            for k in range(number):
                add_out(dtable, (ids[n + r] * number + k) * h_size + unit, z, z_at + k * block_of(z), count)


# ---------------------------------------------------------------------------------------------------
# Sequences
# ---------------------------------------------------------------------------------------------------


@kernel
def lstm_forward(
    worker, workers, tickets, steps, total, i_size, h_size, o_size, h_line, shift, flags, pieces,
    at, counts, bounds, x, ids, table, w, peep, full, wr, form, coupled, h, c, gates, m,
    drop, dropped, keep, keep_c, each, cells,
    gain, epsilon, batch, v, parts, scales,
):  # fmt: skip
    """All steps of one direction of one layer. For `at`, `counts`, `bounds`, `shift` and `total` see panels.py.

    flags : INDEXED, TRAINING, BY_ROWS
    x : (total, I), read; or, with INDEXED,
    ids : (total,) int64, read, or empty for 0, 1, 2 ...: rows of table : (V, GH), U x + b for each x, read
    w : packed weights, read
    peep : packed diagonal peepholes, read, or None
    full : packed full peepholes, read, or None; only with TRAINING
    wr : W_hr packed for products with m, read, or None
    form : the functions and the limit, see form_of; None for the plain LSTM
    coupled : None, or anything else for coupled gates
    h : rows of h_line numbers, O of them used; those of at[0] read, all others written
    c : with TRAINING rows of H, as h; else (B, H), read and overwritten
    gates : with TRAINING (N, total, 4 blocks), written: i f g o, with coupled gates i g o; with gain, but without
        TRAINING (N, B, 4 blocks)
    m : with wr (total, H), without TRAINING (B, H), written
    drop, dropped : (B, O), read, and rows of O, as h, for the mask of recurrent dropout and h times it; or None
    keep, keep_c : (total, O), (total, H), read, for zoneout of h and c, without `each` one row for all; or None
    cells : with keep_c (total, H), without TRAINING (B, H), written: c before zoneout; else None
    gain : packed gains, read, for normalisation, which has none of the former; or None, and then nobody looks at what
        follows. With it I is 0, ids and table are always read, the latter being (V, GH), (U x)^
    epsilon, batch : what is added to a variance; B
    v : (N, total, 4 blocks), without TRAINING (N, B, 4 blocks), written: (W h')^
    parts : (4, N, B), overwritten
    scales : with TRAINING (7, total), written: what backward needs of rows, but for the means
    """
    panels = panels_for(w, h_size)
    z, stats = stack(w, ROOM), stack(w, STATS)
    if drop is None:
        h0, h0_line = h, h_line
    else:
        h0, h0_line = dropped, o_size
    phases = (1 if full is None else 2) + (0 if wr is None else 1) + (0 if gain is None else 2)
    # With normalisation a group is a block: partials are those of whole blocks.
    groups = blocks_for(w, h_size) if gain is not None else groups_in(panels, counts[0], coupled)
    last = steps * phases
    length = steps_of_item(flags & BY_ROWS, last, counts[0] // pieces, GATES * h_size * (i_size + o_size))
    span = groups if flags & BY_ROWS else 1
    for start, item in turns(tickets, 0, worker, workers, (last + length - 1) // length, groups // span * pieces):
        group, piece = item // pieces, item % pieces
        first, end = bounds_of(group, groups, panels)
        if span > 1:
            end = panels
        for k in range(start * length, min(last, start * length + length)):
            s, phase = k // phases, k % phases
            row0, row1 = rows_of(piece, pieces, counts[s], bounds, flags & BY_ROWS)
            n = at[s + 1] - shift
            if wr is None:
                to, to_row, to_line = h, at[s + 1], h_line
            else:
                to, to_row, to_line = m, n if flags & TRAINING else 0, h_size
            c0_row, c_row = (at[s], at[s + 1]) if flags & TRAINING else (0, 0)
            if cells is None:
                new, new_row = c, c_row
            else:
                new, new_row = cells, n if flags & TRAINING else 0
            if gain is not None:
                kept, kept_rows = (n, total) if flags & TRAINING else (0, batch)
                if phase == 0:
                    product_item_norm(
                        row0, row1, first, end, at[s], kept, kept_rows, batch, h_size, o_size, h_line,
                        w, coupled, h, v, parts, z,
                    )  # fmt: skip
                elif phase == 1:
                    open_item_norm(
                        row0, row1, first, end, n, at[s], at[s + 1], total, kept, kept_rows, batch, h_size, o_size,
                        flags, ids, table, w, peep, form, coupled, gain, epsilon, c, gates, v, parts, scales, stats,
                    )  # fmt: skip
                elif phase == 2:
                    close_item_norm(
                        row0, row1, first, end, n, at[s + 1], total, kept, kept_rows, batch, h_size, flags,
                        form, coupled, gain, epsilon, c, gates, to, to_row, to_line, parts, scales, stats,
                    )  # fmt: skip
            for g in range(group, group + span if gain is None and phase == 0 else group):
                panel0, panel1 = bounds_of(g, groups, panels)
                if gain is None:
                    forward_item(
                        row0, row1, panel0, panel1, n, at[s], new_row, total, i_size, h_size, o_size, h0_line, flags,
                        x, ids, table, w, peep, 0, full, form, coupled, h0, to, to_row, to_line, c, new, gates, z,
                    )  # fmt: skip
            for panel in range(first, end):
                if keep_c is not None and phase == 0:
                    zone_out(
                        row0, row1, panel, 1, h_size, new, new_row, h_size, c, c0_row, c_row, h_size,
                        keep_c, n if each else -1,
                    )  # fmt: skip
                if full is not None and phase == 1:
                    output_item(
                        row0, row1, panel, n, new_row, total, h_size, full, form, coupled,
                        to, to_row, to_line, new, gates, z,
                    )  # fmt: skip
                # h has fewer vectors than there are panels, and some of these have nothing to do.
                if wr is not None and phase == phases - 1 and panel * COLS * lanes_of(w) < o_size:
                    projection_item(row0, row1, panel, at[s + 1], h_size, o_size, h_line, wr, m, to_row, h, z)
                if wr is None:
                    vector, cols = panel, 1
                else:
                    vector = panel * COLS
                    cols = max(0, min(COLS, (o_size + lanes_of(w) - 1) // lanes_of(w) - vector))
                if keep is not None and phase == phases - 1:
                    zone_out(
                        row0, row1, vector, cols, o_size, h, at[s + 1], h_line, h, at[s], at[s + 1], h_line,
                        keep, n if each else -1,
                    )  # fmt: skip
                if drop is not None and phase == phases - 1:
                    drop_out(row0, row1, vector, cols, o_size, h, at[s + 1], h_line, drop, dropped)


@kernel
def lstm_backward(
    worker, workers, tickets, steps, total, h_size, o_size, d_line, shift, flags, pieces,
    at, counts, bounds, dy, ids, wt, peep, full, wrt, form, coupled, c, gates, dc, dh0, dhs, dtable, dbias, dpeep,
    drop, keep, keep_c, cells, carried,
    gain, batch, table, scale, v, parts, scales, dv, dn, dgain,
):  # fmt: skip
    """All steps, backwards; then the sums over steps and rows that biases and peepholes need, in the same order: a sum
    goes on from what is there, so that several calls, the last steps first, make the chain that one call makes.

    flags : INDEXED, BIAS, DY, BY_ROWS
    dy : with DY rows of d_line numbers, as x, O of them used, read
    ids : with INDEXED (total,) int64, read
    wt : W with its rows as in a tape, packed, read
    peep : packed diagonal peepholes, read, or None
    full : full peepholes, packed, read, or None
    wrt : W_hr packed for products with dh, as many columns as a tape has units, read, or None
    form : the functions and the limit, see form_of; None for the plain LSTM
    coupled : None, or anything else for coupled gates
    c : as lstm_forward left it, read
    gates : (N, total, 4 blocks): i f g o (coupled i g o) read, overwritten by dZ
    dc, dh0 : (B, H), (B, O): gradients of the final state read, of the initial state written
    dhs : with wrt (total, O), written: the gradient of h
    dtable : with INDEXED (V, GH), accumulated
    dbias : (GH,), accumulated
    dpeep : (G - 1, H), accumulated, or None as peep is
    drop, keep, keep_c, cells : as lstm_forward, read, or None
    carried : with keep_c (B, H), overwritten; else None
    gain : packed gains, read, for normalisation; or None, and then nobody looks at what follows. With it gates becomes
        the gradient of U x, as dtable's are, and ids are always read
    batch : B
    table, scale : (V, GH), (V,), read: (U x)^ and what it was multiplied by
    v, scales : as lstm_forward left them: (N, total, 4 blocks), overwritten by the gradient of W h'; (7, total),
        read, and the means written
    parts, dv, dn : (6, N, B), (N, B, 4 blocks), (total, H), overwritten
    dgain : (2G + 2, H), accumulated: for U x, for W h', the gain and the bias for c
    """
    panels = panels_for(wt, h_size)
    groups = (panels + COLS - 1) // COLS
    dh, acc = stack(wt, DOUBLE), stack(wt, SUMS)
    stats, acc_norm = stack(wt, STATS), stack(wt, NORM_SUMS)
    through = 0 if wrt is None else 1  # the phase in which dh goes through the cell
    phases = (1 if full is None else 2) + through + (0 if gain is None else 2)
    last = steps * phases + 1  # before the first step there is dh0, and with full peepholes its dc
    if full is not None:
        last += through
    through_h = dh0 if wrt is None else dhs
    length = steps_of_item(flags & BY_ROWS, last, counts[0] // pieces, GATES * h_size * o_size)
    span = groups if flags & BY_ROWS else 1
    for start, item in turns(tickets, 0, worker, workers, (last + length - 1) // length, groups // span * pieces):
        first, piece = item // pieces, item % pieces
        for k in range(start * length, min(last, start * length + length)):
            s, phase = steps - 1 - k // phases, k % phases
            row0, row1 = rows_of(piece, pieces, counts[max(s, 0)], bounds, flags & BY_ROWS)
            n = at[s + 1] - shift if s >= 0 else -1
            before = at[max(s, 0)]
            # One step past the end has no rows: nothing is read at `ahead` then.
            ahead, following = (at[s + 2] - shift, counts[s + 1]) if s < steps - 1 else (0, 0)
            if cells is None:
                new, new_row = c, at[s + 1]
            else:
                new, new_row = cells, n
            for q in range(first, first + span):
                if wrt is not None and phase == 0 and q * COLS * lanes_of(wt) < o_size:
                    if gain is None:
                        projection_item_backward(
                            row0, row1, q, n, ahead, following, total, h_size, o_size, d_line, flags,
                            dy, wt, coupled, gates, dh0, dhs, drop, keep, dh,
                        )  # fmt: skip
                    else:  # the gradient of W h' of the step after
                        projection_item_backward(
                            row0, row1, q, n, 0, following, batch, h_size, o_size, d_line, flags,
                            dy, wt, coupled, dv, dh0, dhs, None, None, dh,
                        )  # fmt: skip
                if gain is not None:
                    if phase == through:
                        close_item_norm_backward(
                            row0, row1, q, n, at[s + 1], following, total, batch, h_size, o_size, d_line, flags,
                            dy, wt, wrt, form, coupled, c, gates, gain, parts, scales, dv, dn, dh0, dhs, dh,
                        )  # fmt: skip
                    elif phase == through + 1:
                        open_item_norm_backward(
                            row0, row1, q, n, before, at[s + 1], total, batch, h_size, wt, peep, form, coupled,
                            ids, table, c, gates, v, dc, gain, parts, scales, dn, stats,
                        )  # fmt: skip
                    elif phase == through + 2:
                        product_item_norm_backward(
                            row0, row1, q, n, total, batch, h_size, wt, coupled, gates, v, gain, parts, scales, dv,
                            stats,
                        )  # fmt: skip
                if gain is None and phase == through:
                    backward_item(
                        row0, row1, q, n, before, new_row, ahead, following, total, h_size, o_size, d_line, flags,
                        dy, wt, peep, full, wrt, form, coupled, c, new, gates, dc,
                        through_h, drop, keep, keep_c, carried, dh,
                    )  # fmt: skip
                if full is not None and phase == phases - 1:
                    open_item_backward(
                        row0, row1, q, n, before, new_row, total, h_size, full, form, coupled, c, new, gates, dc,
                        keep_c, carried, dh,
                    )  # fmt: skip
    if flags & (BIAS | INDEXED) or peep is not None or gain is not None:
        lane = lanes_of(gates)
        number = GATES if coupled is None else GATES - 1
        of_z = flags if gain is None else flags & ~INDEXED
        for _, panel in turns(tickets, 1, worker, workers, 1, panels):
            unit = panel * lane
            for k in range(SUMS * lane):
                acc[k] = 0
            if gain is not None:
                for k in range(number):
                    copy_in(acc_norm, k * lane, dgain, k * h_size + unit, h_size - unit)
                    copy_in(acc_norm, (GATES + k) * lane, dgain, (number + k) * h_size + unit, h_size - unit)
                for k in range(2):
                    copy_in(acc_norm, (2 * GATES + k) * lane, dgain, (2 * number + k) * h_size + unit, h_size - unit)
            if flags & BIAS:
                for k in range(number):
                    copy_in(acc, k * lane, dbias, k * h_size + unit, h_size - unit)
            if peep is not None:
                for k in range(number - 1):
                    copy_in(acc, (GATES + k) * lane, dpeep, k * h_size + unit, h_size - unit)
            for s in range(steps - 1, -1, -1):
                n = at[s + 1] - shift
                if cells is None:
                    new, new_row = c, at[s + 1]
                else:
                    new, new_row = cells, n
                sums_item(
                    panel, n, at[s], new_row, counts[s], total, h_size, of_z, ids, peep, coupled,
                    gates, c, new, acc, dtable,
                )  # fmt: skip
                if gain is not None:
                    sums_item_norm(
                        panel, n, at[s + 1], counts[s], total, h_size, flags, ids, table, scale, coupled,
                        gates, v, c, gain, scales, dn, acc_norm, dtable,
                    )  # fmt: skip
            if gain is not None:
                for k in range(number):
                    copy_out(dgain, k * h_size + unit, acc_norm, k * lane, h_size - unit)
                    copy_out(dgain, (number + k) * h_size + unit, acc_norm, (GATES + k) * lane, h_size - unit)
                for k in range(2):
                    copy_out(dgain, (2 * number + k) * h_size + unit, acc_norm, (2 * GATES + k) * lane, h_size - unit)
            if flags & BIAS:
                for k in range(number):
                    copy_out(dbias, k * h_size + unit, acc, k * lane, h_size - unit)
            if peep is not None:
                for k in range(number - 1):
                    copy_out(dpeep, k * h_size + unit, acc, (GATES + k) * lane, h_size - unit)


@part
def row_item(
    panel0, panel1, n, i_size, h_size, flags, x, ids, table, w, peep, p_first, form, coupled, h0, to, c0, c, z
):  # fmt: skip
    """`forward_item` for one row in inference, four gates and a group of panels that are packed by themselves.

    Two tiles at once have as many sums going as a processor can, and of the gates of several panels none waits for
    another's. On Zen 4 an LSTM (T, B, I, H) = (50, 1, 256, 256) takes 0.93 of the time so, on two threads 0.91,
    (150, 1, 128, 128) 0.92 and 0.91, (100, 1, 512, 512) 0.98, and a text of 2 x 128 units 0.88. With one panel at a
    time these loops took up to 1.1, at H = 16. (The next panel's lines fetched before the gates: 0.99 to 1.03.)
    """
    lane = lanes_of(w)
    one, line = GATES * lane, (1 + i_size + h_size) * GATES * lane
    for panel in range(panel0, panel1):
        z_at, unit = (panel - panel0) * one, panel * lane
        if flags & INDEXED:
            row = n if len(ids) == 0 else ids[n]
            for g in range(GATES):
                copy_in(z, z_at + g * lane, table, (row * GATES + g) * h_size + unit, h_size - unit)
        else:
            copy_line(z, z_at, w, panel * line)
    for panel in range(panel0, panel1, 2):
        z_at, u_at = (panel - panel0) * one, panel * line + one
        if panel + 1 < panel1:
            strips(
                z, z_at, one, 1, 8, x, 0, i_size, i_size, h0, 0, h_size, h_size, 0, 1,
                w, u_at, 0, (i_size + h_size) * lane, one,
            )  # fmt: skip
        else:
            tiles_of_two(z, z_at, one, 1, 4, x, 0, i_size, i_size, h0, 0, h_size, h_size, w, u_at, OWN)
    for panel in range(panel0, panel1):
        z_at, unit = (panel - panel0) * one, panel * lane
        p_at = p_first + unit * (GATES - 1)
        cell_open(z, z_at, c0, unit, c, unit, h_size - unit, peep, p_at, form, coupled)
    for panel in range(panel0, panel1):
        z_at, unit = (panel - panel0) * one + (GATES - 1) * lane, panel * lane
        p_at = p_first + (unit + lane) * (GATES - 1) - lane
        cell_close(z, z_at, c, unit, to, unit, h_size - unit, peep, p_at, form)


@part
def step_item(row0, row1, group, t, below, before, y, given):
    batch, i_size, h_size, flags, panels, groups, w, peep, form, coupled, c0, c, z, none = given
    own = c0 if t == 0 else c
    if GROUP == 1:  # noqa: SIM102 - alone, so that Numba leaves it out elsewhere
        if groups < panels:
            row_item(
                panels * group // groups, panels * (group + 1) // groups, 0, i_size, h_size, flags,
                below, NO_IDS, below, w, peep, 0, form, coupled, before, y, own, c, z,
            )  # fmt: skip
            return
    panel0, panel1 = bounds_of(group, groups, panels)
    forward_item(
        row0, row1, panel0, panel1, 0, 0, 0, batch, i_size, h_size, h_size, h_size, flags,
        below, NO_IDS, below, w, peep, 0, None, form, coupled, before, y, 0, h_size, own, c, none, z,
    )  # fmt: skip


@kernel
def lstm_steps(worker, workers, tickets, w, peep, form, coupled, layer, pieces, x, out, h_0, c_0):
    """Few steps of one layer: see few_steps.py. Besides,

    peep : packed diagonal peepholes, read, or None; form, coupled : as lstm_forward
    c_0 : (L, B, H), of this layer read
    """
    layer, turn = which_way(layer)
    if not step_fits(layer, x, out, h_0) or not step_fits(layer, x, out, c_0):
        return False
    steps, h_size = len(x), out.shape[3]
    batch, i_size = x.shape[1], x.shape[2] if layer == 0 else h_size
    lane = lanes_of(w)
    panels = panels_for(w, h_size)
    number = GATES if coupled is None else GATES - 1
    hoisted = layer == 0 and i_size == number * h_size and len(w) == panels * number * (1 + h_size) * lane
    if not hoisted and len(w) != panels * number * (1 + i_size + h_size) * lane:
        return False
    i_size, flags = (0, INDEXED) if hoisted else (i_size, 0)
    c = out[steps + 1][layer]
    groups, z = groups_in_steps(panels, batch, workers, coupled), stack(w, ROOM)
    given = batch, i_size, h_size, flags, panels, groups, w, peep, form, coupled, c_0[layer], c, z, stack(w, 1)
    share(tickets, 0, worker)
    few_steps(worker, workers, tickets, w, layer, turn, pieces, groups, x, out, h_0, step_item, given)
    return True


@part
def layer_item(row0, row1, group, n, layer, w, below, before, after, given):
    batch, h_size, panels, groups, ids, table, peep, form, coupled, c, none, z = given
    row, i_size, flags = (n * batch, 0, INDEXED) if layer == 0 else (0, h_size, 0)
    state, number = c[layer * batch * h_size :], GATES if coupled is None else GATES - 1
    p_first = layer * (number - 1) * panels * lanes_of(w)
    if GROUP == 1:  # noqa: SIM102 - alone, so that Numba leaves it out elsewhere
        if groups < panels:
            row_item(
                panels * group // groups, panels * (group + 1) // groups, row, i_size, h_size, flags,
                below, ids, table, w, peep, p_first, form, coupled, before, after, state, state, z,
            )  # fmt: skip
            return
    panel0, panel1 = bounds_of(group, groups, panels)
    forward_item(
        row0, row1, panel0, panel1, row, 0, 0, batch, i_size, h_size, h_size, h_size, flags,
        below, ids, table, w, peep, p_first, None, form, coupled, before, after, 0, h_size, state, state, none, z,
    )  # fmt: skip


@kernel
def lstm_write(
    worker, workers, tickets, count, pieces, layers, batch, h_size, columns, temperature,
    ids, table, w, starts, peep, form, coupled, h, c, packed, bias, logits, cumulated, uniforms, broken,
):  # fmt: skip
    """A language model with these layers writes; see writing.py. Besides,

    peep : packed diagonal peepholes of all layers, read, or None; form, coupled : as lstm_forward
    c : (L, B, H), read, overwritten by the final ones
    """
    panels = panels_for(w, h_size)
    groups, known = groups_in_steps(panels, batch, workers, coupled), 0
    z, none = stack(w, ROOM), stack(w, 1)
    given = batch, h_size, panels, groups, ids, table, peep, form, coupled, c, none, z
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
def lstm_pack(worker, workers, tickets, number, groups, i_size, h_size, o_size, u, w, b_ih, b_hh, packed):
    """Weights as lstm_forward wants them.

    number : of gates, G
    groups : of panels, each packed together
    u : (GH, I), read; w : (GH, O), read; b_ih, b_hh : (GH,) or empty, read
    packed : P panels, written
    """
    lane = lanes_of(packed)
    panels = panels_for(packed, h_size)
    for _, group in turns(tickets, 0, worker, workers, 1, groups):
        first, end = bounds_of(group, groups, panels)
        vectors = (end - first) * number
        strips, b_at = strips_for(vectors), first * number * (1 + i_size + o_size) * lane
        for s in range(strips):
            v0, v1 = vectors * s // strips, vectors * (s + 1) // strips
            line, strip = (v1 - v0) * lane, b_at + (vectors + v0 * (i_size + o_size)) * lane
            for v in range(v0, v1):
                unit, g = (first + v // number) * lane, v % number
                rows = max(0, min(lane, h_size - unit))
                add_biases(packed, b_at + v * lane, b_ih, b_hh, g * h_size + unit, rows)
                for of_w in (False, True):  # one text, of which a kernel is compiled in 0.8 of the time of two
                    source, columns, above = (w, o_size, i_size * line) if of_w else (u, i_size, 0)
                    pack_transposed(
                        packed, strip + (v - v0) * lane + above, line, source, g * h_size + unit, rows, columns, lane
                    )


@kernel
def lstm_pack_full(worker, workers, tickets, number, h_size, p, packed):
    """Full peepholes as lstm_forward wants them.

    number : of gates that see c, G - 1
    p : (G - 1, H, H), rows i f o, read
    packed : P panels: p_i and p_f (H x (G - 2)W), p_o (H x W), written
    """
    lane = lanes_of(packed)
    line = (number - 1) * lane
    for _, panel in turns(tickets, 0, worker, workers, 1, panels_for(packed, h_size)):
        unit, at = panel * lane, panel * number * h_size * lane
        rows = max(0, min(lane, h_size - unit))
        for k in range(number - 1):
            pack_transposed(packed, at + k * lane, line, p, k * h_size + unit, rows, h_size, lane)
        pack_transposed(packed, at + h_size * line, lane, p, (number - 1) * h_size + unit, rows, h_size, lane)
