"""The register-tile matrix product: the one loop in which nearly all the time is spent.

    c[r, :] += sum over k of a[r, k] * b[k, :]        r < rows <= ROWS,  cols <= COLS vectors

All `rows x cols` accumulators stay in registers for the whole sum. `b` is packed: one line of `cols` vectors after the
other. Each `a[r, k]` is read once and broadcast. The sum is one chain of fused multiply-adds in ascending `k` that
starts from `c`: a tile shape decides who computes an element, never its value.

Weights that do not fit in the second-level cache come from the third at every step, and who reads them only when they
are needed waits for them: on Zen 3 tiles for 16 rows ran at 0.76 of peak, with weights at hand at 0.96. So a `tile` of
two or more rows fetches a share of the lines that come after its own, one line of the cache for every AT_ONCE values of
k, and those for all rows of a batch together fetch all of them: 0.94 of peak; with 64 rows 0.91 instead of 0.87. (One
for every value of k was as good alone, and beside another process's thread on the same core up to 1.06 of the time.)

There are three, for the two ways in which `a` lies, and for more lines of `b` at once:

    tile      by rows, of two arrays one after the other, either of which may have none:
                  x[x_off + r * x_stride + k]                                   k < x_depth
                  a[a_off + r * stride + k // seg * seg_stride + k % seg]       k < n_seg * seg
              row-major (`seg` = all of it), or with the elements of a row in panels. For every AT_ONCE values of
              k it fetches one line of the cache, from b[b_off + next_off] on every next_step numbers; 0: none
    turned    by columns:
                  a[a_off + r + k * stride]                                     k < depth
              It fetches one line, likewise, from a[a_off + next_off] on every `stride` numbers
    strips    `tile` for one or two rows and as many strips of `b` as there are registers for: strip s, with v vectors
              of columns before it, has its lines at b_off + v * apart + s * b_gap, and its part of `c` at
              c_off + v * W + s * c_gap. With one strip, one row keeps three or four multiply-adds going, of eight

A tile of one row reads a line of `b` for every line of multiply-adds. Where `b` is in the second-level cache it waits
for that, unless lines are fetched AHEAD: 0 rows stand for one row that does so. A step of an LSTM with H = 128 takes
0.8 of the time, a sequence with H = 256 0.9; but 1.1 to 1.3 where `b` comes from the third level, H = 1024 (the
benchmark's lstm-step-B1-H128, lstm-infer-150x1x256x256 and lstm-infer-25x1x1024x1024, with and without). On another
machine of the same kind, whose second-level cache gave all that it can without it (32 bytes a cycle), it was 1.0 to
1.03 of the time of the first two; there two strips at once were 0.95 to 0.98 of a sweep over 1 MiB. With 256-bit
vectors, half a line of the cache each, lstm-infer-672x1x32x32 took 1.2 of the time so on Zen 3, and there is none.

`turned` fetches lines of `a`: in shares, as above, those that come after its own, or, with 512 bits, at every k the one
that comes SOON. That was 0.95 of the time of a gradient at (T, B, I, H) = (150, 16, 256, 256), 0.98 at (25, 128, 1024,
1024); on Zen 3 the shares are 0.97 to 1.01 of that, 0.92 at (25, 64, 512, 512) on one thread, and both together 0.98 to
1.02. In `tile`, where it fetches nothing new, SOON took 1.03 of the time of sequences on Zen 3: a core that does two
loads a cycle has none to spare. (Lines of `b`, 8 to 100 of them ahead, into either cache: 1.0 to 1.06 of the time of
sequences of 4 to 128 rows; the processor fetches those by itself.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .._compiler import before_loading
from .._jit import device, kernel
from .late import promise, provide
from .target import COLS, REGISTERS, ROWS, STRIP
from .vector import _FLOATS, _SUFFIX, I32, I64, Index, Pointer, _splat, data_of, lanes, prefetch

AHEAD = 4 if REGISTERS == 32 else 0  # lines of b, or none
AT_ONCE = 4  # values of k
SOON = 16  # values of k
EVERY_SECOND = 32  # lines of b
FEW = 1  # rows of a tile that takes no longer than its call
LINE = 64  # bytes

# With 512 bits tiles run at 0.92 to 0.97 of peak without it: 0.99 to 1.03 of the time (Zen 4, (30, 16, 512, 512),
# (100, 64, 256, 512), (25, 128, 1024, 1024), and (25, 64, 512, 512) in training).
FETCHES = REGISTERS == 16

TILE, TURNED, STRIPS, OF_ITS_OWN = "tile", "turned", "strips", "own"

# What `strips` takes: for so many columns, the widths of the strips that they are in; and with how many rows. They are
# as many accumulators as there are registers for, or all that there are.
WIDTHS: dict[int, tuple[int, ...]]
if REGISTERS == 16:
    WIDTHS = {5: (2, 3), 6: (3, 3), 8: (2, 3, 3), 9: (3, 3, 3), 12: (3, 3, 3, 3)}
    OF_STRIPS = [(1, 6), (1, 8), (1, 9), (1, 12), (2, 5), (2, 6)]
else:
    WIDTHS = {8: (4, 4)}
    OF_STRIPS = [(1, 8)]
BASE = 1 + max(WIDTHS)  # a shape's number is rows * BASE + columns

# Whose the functions of so few rows are: every kernel's OWN, or SHARED as the others. Sequences of one row take 1.08 of
# the time if they are shared; a kernel with its own takes 0.1 s more to compile. And NARROW: shared, and of at most
# STRIP columns. The wider ones, half of all, are not compiled then.
SHARED, OWN, NARROW = 0, 1, 2


def heights(kind: str) -> range:
    """The numbers of rows for which there are functions."""
    return range(0 if AHEAD and kind == TILE else 1, ROWS + 1)


@device
def tiles_for(rows, cols):
    """Into how many tiles, as equal as possible, so many rows of a product are divided: 16 rows into 5 + 5 + 6."""
    if REGISTERS == 16 and cols == 4:
        # Three rows fill the registers; 4 x 4, done as 4 x 2 twice, takes 1.05 to 1.15 of the time with many rows. But
        # two rows read lines faster than the second-level cache gives them: 4 are 0.95 of the time of 2 + 2, and 16
        # are 3 + 3 + 3 + 3 + 4.
        return (rows + 1) // 3 + (rows == 1)
    return (rows + ROWS - 1) // ROWS


def _twin(
    c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, seg, seg_stride, n_seg, b, b_off,
    next_off, next_step, own,
):  # fmt: skip
    """`tile` in NumPy: the same sum in the same order, its products rounded."""
    r, k = np.arange(max(1, rows))[:, None], np.arange(n_seg * seg)
    of_x = x.reshape(-1)[x_off + r * x_stride + np.arange(x_depth)]
    of_a = a.reshape(-1)[a_off + r * stride + k // seg * seg_stride + k % seg]
    _multiply(c, c_off, c_stride, cols, np.concatenate([of_x, of_a], axis=1), b, b_off)


def _strips_twin(
    c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, seg, seg_stride, n_seg, b, b_off,
    c_gap, apart, b_gap,
):  # fmt: skip
    """`strips`, likewise: one after the other."""
    first = 0
    for k, width in enumerate(WIDTHS[cols]):
        _twin(
            c, c_off + first * lanes(c) + k * c_gap, c_stride, rows, width, x, x_off, x_stride, x_depth,
            a, a_off, stride, seg, seg_stride, n_seg, b, b_off + first * apart + k * b_gap, 0, 0, SHARED,
        )  # fmt: skip
        first += width


def _turned_twin(c, c_off, c_stride, rows, cols, a, a_off, stride, depth, b, b_off, next_off):
    """`turned`, likewise."""
    left = a_off + np.arange(rows)[:, None] + np.arange(depth) * stride
    _multiply(c, c_off, c_stride, cols, a.reshape(-1)[left], b, b_off)


def _multiply(c, c_off, c_stride, cols, left, b, b_off):
    """c += left times the lines of b."""
    (rows, depth), w = left.shape, cols * lanes(c)
    out = c_off + np.arange(rows)[:, None] * c_stride + np.arange(w)
    terms = left[:, :, None] * b.reshape(-1)[b_off : b_off + depth * w].reshape(depth, w)
    # One after the other, as NumPy adds along an axis that is not the last: a product in two calls has the same bits
    # as in one, and a row the same as among others. (`left @ b` leaves both to the shapes.)
    c.reshape(-1)[out] = np.concatenate([c.reshape(-1)[out][:, None], terms], axis=1).sum(axis=1)


def _declare(module: ir.Module, dtype: np.dtype, rows: int, cols: int, kind: str) -> ir.Function:
    """The function of a kind, TILE, TURNED, STRIPS or OF_ITS_OWN, for one shape, as `module` knows it."""
    ptr = _FLOATS[dtype].as_pointer()
    left = [ptr, I64, I64] if kind == TURNED else [ptr, I64, I64, ptr, I64, I64, I64, I64]
    more = 3 if cols > COLS else 1 if kind == TURNED else 2
    fnty = ir.FunctionType(ir.VoidType(), [ptr, I64, *left, ptr, *(more * [I64])])
    fn = cgutils.get_or_insert_function(module, fnty, f"fastrnn.{kind}.{_SUFFIX[dtype]}.{rows}x{cols}")
    fn.attributes.add("nounwind")
    return fn


def _own(module: ir.Module, dtype: np.dtype, rows: int, cols: int) -> ir.Function:
    """The function for a tile of few rows, a kernel's own: what is the same in every call becomes part of it."""
    fn = _declare(module, dtype, rows, cols, OF_ITS_OWN)
    if fn.is_declaration:
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        _emit(fn, dtype, rows, cols, OF_ITS_OWN)
    return fn


def _emit(fn: ir.Function, dtype: np.dtype, rows: int, cols: int, kind: str) -> None:
    """Writes the function for one shape; 0 rows: one, with lines of b fetched ahead."""
    bld = ir.IRBuilder(fn.append_basic_block("entry"))
    # What the registers do not hold at once is done one after the other: 4 x 4 as 4 x 2 twice where there are 16.
    count = next(k for k in range(1, cols + 1) if _registers(max(1, rows), -(-cols // k)) <= REGISTERS)
    for k in range(count):
        bld = _pass(fn, bld, dtype, rows, cols, range(cols * k // count, cols * (k + 1) // count), kind)
    bld.ret_void()


def _registers(rows: int, cols: int) -> int:
    """How many a pass takes: its accumulators, the fewer of its operands, and one of the others."""
    return rows * cols + min(rows, cols) + 1


def _pass(
    fn: ir.Function, entry: ir.IRBuilder, dtype: np.dtype, rows: int, cols: int, some: range, kind: str
) -> ir.IRBuilder:
    """Writes `some` of the columns of a tile, behind `entry`; returns behind what the next come."""
    module = fn.module
    ahead, rows, width = rows == 0, max(1, rows), len(some)
    widths = WIDTHS.get(cols, (cols,))
    real, size = _FLOATS[dtype], dtype.itemsize
    n = lanes(np.empty(0, dtype))
    vec = ir.VectorType(real, n)
    zero, one, b_stride = (ir.Constant(I64, k) for k in (0, 1, cols * n))
    of_strip = [(strip, k) for strip, w in enumerate(widths) for k in range(w)]
    fma = cgutils.get_or_insert_function(module, ir.FunctionType(vec, [vec] * 3), f"llvm.fma.v{n}{_SUFFIX[dtype]}")
    fetches = FETCHES and kind != STRIPS and rows > 1
    outer, inner, tail, done = (fn.append_basic_block(x) for x in ("outer", "inner", "tail", "done"))

    def lines_of(bld: ir.IRBuilder, strips: Sequence[ir.Value]) -> list[ir.Value]:
        at = [bld.gep(strips[s], [ir.Constant(I64, k * n)]) for s, k in (of_strip[j] for j in some)]
        return [bld.bitcast(p, vec.as_pointer()) for p in at]

    # What of `a` comes first, what after it, and how many there are.
    bld = entry
    if kind == TURNED:
        c, c_stride, a, k_stride, depth, b, *more = fn.args
        first, after, count = (a, one, depth), (a, one, depth), one
        seg_stride = zero
    else:
        c, c_stride, x, x_stride, x_depth, a, stride, seg, seg_stride, n_seg, b, *more = fn.args
        k_stride, two = one, bld.icmp_signed(">", x_depth, zero)
        then = bld.select(two, a, bld.gep(a, [seg_stride]))
        both = zip((x, x_stride, x_depth), (a, stride, seg), strict=True)
        first, after = [bld.select(two, of_x, of_a) for of_x, of_a in both], (then, stride, seg)
        count = bld.add(n_seg, bld.zext(two, I64))
    c_of, strips = [c], [b]  # of each strip
    for k in range(1, len(widths)):
        c_gap, apart, b_gap = more
        before = ir.Constant(I64, sum(widths[:k]))
        c_of.append(bld.gep(c, [bld.add(bld.mul(before, ir.Constant(I64, n)), bld.mul(c_gap, ir.Constant(I64, k)))]))
        strips.append(bld.gep(b, [bld.add(bld.mul(before, apart), bld.mul(b_gap, ir.Constant(I64, k)))]))
    row_of = [bld.mul(c_stride, ir.Constant(I64, r)) for r in range(rows)]
    out = [p for r in range(rows) for p in lines_of(bld, [bld.gep(p, [row_of[r]]) for p in c_of])]
    start = [bld.load(p, align=size) for p in out]
    soon = bld.mul(k_stride, ir.Constant(I64, SOON))
    coming = [bld.gep(a if kind == TURNED else b, [more[0]])] if fetches else []  # the line that is fetched next
    line_step = k_stride if kind == TURNED else more[-1]
    bld.cbranch(bld.icmp_signed(">", count, zero), outer, done)

    # What changes with k: it, where `a` is, what is coming, where `b` is of each strip, and the accumulators.
    lines, sums = slice(2 + len(coming), 2 + len(coming) + len(widths)), 2 + len(coming) + len(widths)

    def step(bld: ir.IRBuilder, state: list[ir.Value]) -> list[ir.Value]:
        """One value of k."""
        k, a_k, b_k, acc = state[0], state[1], state[lines], state[sums:]
        right = [bld.load(p, align=size) for p in lines_of(bld, b_k)]
        if ahead:
            for j in some:
                prefetch(Pointer(bld, b_k[0], dtype), Index(bld, b_stride) * AHEAD + j * n, write=False)
        elif kind == TILE and width < cols and some.start == 0:
            # The next pass has the other half of these lines, and a processor does not fetch every second one by
            # itself. When an LSTM's forward had tiles of 4 x 4, (50, 4, 1024, 1024), its weights in the third-level
            # cache, took 0.87 of the time, (25, 4, 512, 512) 0.99. 16 lines ahead: 0.93 of the first; 64 and 128 were
            # worse.
            for j in range(0, cols, LINE // (n * size)):
                prefetch(Pointer(bld, b_k[0], dtype), Index(bld, b_stride) * EVERY_SECOND + j * n, write=False)
        elif kind == TURNED and rows > 1 and some.start == 0 and not fetches:
            prefetch(Pointer(bld, a_k, dtype), Index(bld, soon), write=False)
        # What fewer registers hold stays in them, and the other comes one by one: 3 x 4 takes all of 16. Row by row,
        # with four lines kept, accumulators were moved through the stack, and the tile ran at half of its speed.
        by_line = [(r, j) for j in range(width) for r in range(rows)]
        left: dict[int, ir.Value] = {}
        made: dict[tuple[int, int], ir.Value] = {}
        for r, j in by_line if rows < width else sorted(by_line):
            if r not in left:
                left[r] = _splat(bld, bld.load(bld.gep(a_k, [left_of[r]]), align=size), n)
            made[r, j] = bld.call(fma, [left[r], right[j], acc[r * width + j]])
        k1, a1 = bld.add(k, one), bld.gep(a_k, [k_stride])
        b1 = [bld.gep(p, [ir.Constant(I64, w * n)]) for p, w in zip(b_k, widths, strict=True)]
        return [k1, a1, *state[2 : lines.start], *b1, *(made[at] for at in sorted(made))]

    bld = ir.IRBuilder(outer)
    entering = [zero, first[1], first[2], after[0], first[0], *coming, *strips, *start]
    segment = _meeting(bld, (entering, entry.block))
    s, r_stride, seg, a_next, *state = segment
    left_of = [bld.mul(r_stride, ir.Constant(I64, r)) for r in range(rows)]
    ways = [([zero, *state], outer)]  # into what comes next
    if fetches:
        some_more, several, between = ir.Constant(I64, AT_ONCE), *map(fn.append_basic_block, ("several", "between"))
        enough, asked = (bld.icmp_signed(*x) for x in ((">=", seg, some_more), ("!=", line_step, zero)))
        bld.cbranch(bld.and_(enough, asked), several, between)
        bld = ir.IRBuilder(several)
        before = state = _meeting(bld, *ways)
        if some.start == 0:
            prefetch(Pointer(bld, state[2], dtype), Index(bld, zero), write=False, level=1 if kind == TURNED else 2)
        for _ in range(AT_ONCE):
            state = step(bld, state)
        state[2] = bld.gep(state[2], [line_step])
        _come(before, state, several)
        again = bld.cbranch(bld.icmp_signed("<=", bld.add(state[0], some_more), seg), several, between)
        _written(module, again, 1)
        bld = ir.IRBuilder(between)
        state = _meeting(bld, *ways, (state, several))
        ways = [(state, between)]
        bld.cbranch(bld.icmp_signed("<", state[0], seg), inner, tail)
    else:
        bld.branch(inner)

    bld = ir.IRBuilder(inner)
    before = _meeting(bld, *ways)
    state = step(bld, before)
    _come(before, state, inner)
    again = bld.cbranch(bld.icmp_signed("<", state[0], seg), inner, tail)
    _written(module, again, 2 if rows * width >= REGISTERS // 2 else 0)

    bld = ir.IRBuilder(tail)
    state = _meeting(bld, (state, inner), *(ways if fetches else []))
    s1 = bld.add(s, one)
    _come(segment, [s1, after[1], after[2], bld.gep(a_next, [seg_stride]), a_next, *state[2:]], tail)
    bld.cbranch(bld.icmp_signed("<", s1, count), outer, done)

    bld = ir.IRBuilder(done)
    result = [bld.phi(vec) for _ in out]
    _come(result, start, entry.block)
    _come(result, state[sums:], tail)
    for p, v in zip(out, result, strict=True):
        bld.store(v, p, align=size)
    return bld


def _meeting(bld: ir.IRBuilder, *ways: tuple[list[ir.Value], ir.Block]) -> list[ir.Value]:
    """What the same values are where control comes from different blocks."""
    phis = [bld.phi(v.type) for v in ways[0][0]]
    for values, block in ways:
        _come(phis, values, block)
    return phis


def _come(phis: list[ir.Value], values: list[ir.Value], block: ir.Block) -> None:
    """Adds the way from one more block."""
    for phi, v in zip(phis, values, strict=True):
        phi.add_incoming(v, block)


def _written(module: ir.Module, again: ir.Instruction, times: int) -> None:
    """Has LLVM begin the loop that goes `again` where a line of the cache begins; and write it so many times in a row,
    or as often as it likes: 0.
    """
    # Instructions are read a line at a time, and two threads of a core share what reads them: beside a busy one, a
    # 3 x 4 that began in the middle of a line took 1.05 to 1.07 of the time on Zen 3.
    hints = [("llvm.loop.align", LINE)]
    # Left to itself it did so four times for Zen 3, with loads in advance that found no register: 2 x 4 and 3 x 3 ran
    # at 0.93 and 0.9 of their speed.
    hints += [("llvm.loop.unroll.count", times)] if times else []
    nodes = [module.add_metadata([ir.MetaDataString(module, name), ir.Constant(I32, n)]) for name, n in hints]
    loop = ir.MDValue(module, [], name=str(len(module.metadata)))
    loop.operands = (loop, *nodes)  # itself first: how LLVM knows one loop's from another's
    again.set_metadata("llvm.loop", loop)


def shapes_of(kind: str, widths: Iterable[int]) -> list[tuple[int, int]]:
    """Rows and columns of all functions of a kind with so many columns; STRIPS has its own."""
    if kind == STRIPS:
        return OF_STRIPS
    return [(r, k) for r in heights(kind) for k in widths]


def _shapes(kind: str, widths: Iterable[int] = ()) -> Any:
    """All functions of a kind with so many columns."""

    def define(typingctx: Any, a: types.Type) -> Any:
        dtype = np.dtype(str(a.dtype))

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            for r, k in shapes_of(kind, widths):
                _emit(_declare(builder.module, dtype, r, k, kind), dtype, r, k, kind)
            return context.get_dummy_value()

        return types.none(a), codegen

    return define


def _tile(
    typingctx, c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, seg, seg_stride, n_seg,
    b, b_off, next_off, next_step, own,
):  # fmt: skip
    if not isinstance(own, types.IntegerLiteral):
        return None
    few, most = FEW if own.literal_value == OWN else -1, STRIP if own.literal_value == NARROW else COLS
    return _call(TILE, few, c, cols, [(x, 2), (a, 4), (b, 2)], own, most=most)


def _strips(
    typingctx, c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, seg, seg_stride, n_seg,
    b, b_off, c_gap, apart, b_gap,
):  # fmt: skip
    return _call(STRIPS, -1, c, types.int64, [(x, 2), (a, 4), (b, 3)])


def _turned(typingctx, c, c_off, c_stride, rows, cols, a, a_off, stride, depth, b, b_off, next_off):
    return _call(TURNED, -1, c, cols, [(a, 2), (b, 1)])


def _call(
    kind: str, few: int, c: types.Type, cols: types.Type, read: list[tuple[types.Type, int]], *own: types.Type,
    most: int = COLS,
) -> Any:  # fmt: skip
    """The signature of a kind, and the code that finds the function for its shape; for up to `few` rows the kernel's
    own.

    read : the arrays after c, each with how many numbers follow its offset
    most : columns
    """
    fixed = isinstance(cols, types.IntegerLiteral)
    wanted = WIDTHS if kind == STRIPS else [cols.literal_value] if fixed else range(1, most + 1)
    number = types.int64
    given = [t for array, count in read for t in (array, number, *(count * [number]))]
    sig = types.none(c, number, number, number, cols if fixed else number, *given, *own)
    dtype = np.dtype(str(c.dtype))
    for k in wanted:
        promise(*_defining(kind, dtype, k))

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        def address(array: int) -> ir.Value:
            data = data_of(context, builder, signature.args[array], values[array])
            return builder.gep(data, [values[array + 1]])

        args, at = [address(0), values[2]], 5
        for _, count in read:
            args += [address(at), *values[at + 2 : at + 2 + count]]
            at += 2 + count
        width = ir.Constant(I64, cols.literal_value) if fixed else values[4]
        shape = builder.add(builder.mul(values[3], ir.Constant(I64, BASE)), width)
        after = builder.append_basic_block("tile.after")
        switch = builder.switch(shape, after)
        for r, k in shapes_of(kind, wanted):
            block = builder.append_basic_block(f"tile.{r}x{k}")
            switch.add_case(ir.Constant(I64, r * BASE + k), block)
            with builder.goto_block(block):
                module = builder.module
                fn = _own(module, dtype, r, k) if r <= few else _declare(module, dtype, r, k, kind)
                builder.call(fn, args)
                builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return sig, codegen


WIDEST = range(COLS, COLS + 1)  # whose functions are half of all; kernels with four gates need no others

if not config.DISABLE_JIT:
    wide, narrow = intrinsic(_shapes(TILE, WIDEST)), intrinsic(_shapes(TILE, range(1, COLS)))
    all_turned, all_strips = intrinsic(_shapes(TURNED, range(1, COLS + 1))), intrinsic(_shapes(STRIPS))


@kernel
def tile_shapes(a):
    """Nothing to call: the functions for tiles of COLS columns, of the type of `a`. They are translated once, and
    kernels find them by their names. (Written into each kernel, they were a fifth of a cold training step.)
    """
    wide(a)


@kernel
def narrow_tile_shapes(a):
    """Those for fewer columns."""
    narrow(a)


@kernel
def turned_tile_shapes(a):
    """Those that are turned."""
    all_turned(a)


@kernel
def strip_shapes(a):
    """Those for several strips."""
    all_strips(a)


def _defining(kind: str, dtype: np.dtype, cols: int) -> tuple[kernel, np.ndarray]:
    """The kernel that defines a shape's function, and what it takes."""
    if kind == TILE:
        shapes = tile_shapes if cols in WIDEST else narrow_tile_shapes
    else:
        shapes = strip_shapes if kind == STRIPS else turned_tile_shapes
    return shapes, np.empty(0, dtype)


_NAMES = re.compile(rb"fastrnn\.(tile|turned|strips)\.(\w+)\.\d+x(\d+)")


@before_loading
def _provide_for(code: bytes) -> None:
    dtypes = {suffix.encode(): dtype for dtype, suffix in _SUFFIX.items()}
    for kind, suffix, cols in set(_NAMES.findall(code)):
        provide(*_defining(kind.decode(), dtypes[suffix], int(cols)))


# (c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, seg, seg_stride, n_seg, b, b_off,
#  next_off, next_step, own)
tile = _twin if config.DISABLE_JIT else intrinsic(prefer_literal=True)(_tile)

# (c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, seg, seg_stride, n_seg, b, b_off,
#  c_gap, apart, b_gap)
strips = _strips_twin if config.DISABLE_JIT else intrinsic(_strips)

# (c, c_off, c_stride, rows, cols, a, a_off, stride, depth, b, b_off, next_off)
turned = _turned_twin if config.DISABLE_JIT else intrinsic(prefer_literal=True)(_turned)
