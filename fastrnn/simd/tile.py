"""The register-tile matrix product: the one loop in which nearly all the time is spent.

    c[r, :] += sum over k of a[r, k] * b[k, :]        r < rows <= ROWS,  cols <= COLS vectors

All `rows x cols` accumulators stay in registers for the whole sum. `b` is read one packed line of vectors
at a time; each `a[r, k]` is read once and broadcast. The sum is one chain of fused multiply-adds in ascending `k`
that starts from `c`: a tile shape decides who computes an element, never its value.

`a` is addressed freely, so that one tile serves every product there is:

    a[r, k] = a[off + r * rstride + (k // seg) * segstride + (k % seg) * kstride]

with whole segments only (`k = nseg * seg`): row-major (`seg` = all of it), transposed (`rstride = 1`), and rows whose
elements lie in panels.

A tile of one row reads a line of `b` for every line of multiply-adds. Where `b` is in the second-level cache it waits
for that, unless lines are fetched AHEAD: 0 rows stand for one row that does so. A step of an LSTM with H = 128 takes
0.8 of the time, a sequence with H = 256 0.9; but 1.1 to 1.3 where `b` comes from the third level, H = 1024 (the
benchmark's lstm-step-B1-H128, lstm-infer-150x1x256x256 and lstm-infer-25x1x1024x1024, with and without). With 256-bit
vectors, half a line of the cache each, lstm-infer-672x1x32x32 took 1.2 of the time so on Zen 3, and there is none.

Where `a` has a line for every `k`, forth or back, one that comes SOON is fetched: 0.95 of the time of a gradient at
(T, B, I, H) = (150, 16, 256, 256), 0.98 at (25, 128, 1024, 1024). (Lines of `b`, 8 to 32 of them ahead: 1.0 to 1.05 of
the time of sequences of 4 to 128 rows; the processor fetches those by itself.)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .._jit import before_loading, device, kernel
from .target import COLS, REGISTERS, ROWS
from .vector import _FLOATS, _SUFFIX, I32, I64, Index, Pointer, _splat, lanes, prefetch

AHEAD = 4 if REGISTERS == 32 else 0  # lines of b, or none
SOON = 16  # values of k
FEW = 1  # rows of a tile that takes no longer than its call
HEIGHTS = range(0 if AHEAD else 1, ROWS + 1)

# Whose the functions of so few rows are: every kernel's OWN, or SHARED as the others. Sequences of one row take 1.08 of
# the time if they are shared; a kernel with its own takes 0.1 s more to compile.
SHARED, OWN = 0, 1


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
    c, c_off, c_stride, rows, cols, a, a_off, r_stride, seg, seg_stride, k_stride, n_seg, b, b_off, b_stride, own
):
    """The tile in NumPy: the same sum, in the order that NumPy's product takes."""
    w, rows = cols * lanes(c), max(1, rows)
    k = np.arange(n_seg * seg)
    left = a_off + np.arange(rows)[:, None] * r_stride + (k // seg) * seg_stride + (k % seg) * k_stride
    right = b_off + k[:, None] * b_stride + np.arange(w)
    out = c_off + np.arange(rows)[:, None] * c_stride + np.arange(w)
    c.reshape(-1)[out] += a.reshape(-1)[left] @ b.reshape(-1)[right]


def _declare(module: ir.Module, dtype: np.dtype, rows: int, cols: int, name: str = "tile") -> ir.Function:
    """The function for one tile shape, as `module` knows it."""
    ptr = _FLOATS[dtype].as_pointer()
    fnty = ir.FunctionType(ir.VoidType(), [ptr, I64, ptr, I64, I64, I64, I64, I64, ptr, I64])
    fn = cgutils.get_or_insert_function(module, fnty, f"fastrnn.{name}.{_SUFFIX[dtype]}.{rows}x{cols}")
    fn.attributes.add("nounwind")
    return fn


def _own(module: ir.Module, dtype: np.dtype, rows: int, cols: int) -> ir.Function:
    """The function for a tile of few rows, a kernel's own: what is the same in every call becomes part of it."""
    fn = _declare(module, dtype, rows, cols, "own")
    if fn.is_declaration:
        fn.linkage = "internal"
        fn.attributes.add("noinline")
        _emit(fn, dtype, rows, cols)
    return fn


def _emit(fn: ir.Function, dtype: np.dtype, rows: int, cols: int) -> None:
    """Writes the function for one tile shape; 0 rows: one, with lines of b fetched ahead."""
    bld = ir.IRBuilder(fn.append_basic_block("entry"))
    # What the registers do not hold at once is done one after the other: 4 x 4 as 4 x 2 twice where there are 16.
    count = next(k for k in range(1, cols + 1) if _registers(max(1, rows), -(-cols // k)) <= REGISTERS)
    for k in range(count):
        bld = _pass(fn, bld, dtype, rows, cols * k // count, cols * (k + 1) // count)
    bld.ret_void()


def _registers(rows: int, cols: int) -> int:
    """How many a pass takes: its accumulators, the fewer of its operands, and one of the others."""
    return rows * cols + min(rows, cols) + 1


def _pass(fn: ir.Function, entry: ir.IRBuilder, dtype: np.dtype, rows: int, first: int, last: int) -> ir.IRBuilder:
    """Writes the columns from `first` to before `last` of a tile, behind `entry`; returns behind what the next come."""
    module, cols = fn.module, last - first
    ahead, rows = rows == 0, max(1, rows)
    real, size = _FLOATS[dtype], dtype.itemsize
    n = lanes(np.empty(0, dtype))
    vec, ptr = ir.VectorType(real, n), real.as_pointer()
    c, c_stride, a, r_stride, seg, seg_stride, k_stride, n_seg, b, b_stride = fn.args
    fma = cgutils.get_or_insert_function(module, ir.FunctionType(vec, [vec] * 3), f"llvm.fma.v{n}{_SUFFIX[dtype]}")
    outer, inner, tail, done = (fn.append_basic_block(x) for x in ("outer", "inner", "tail", "done"))

    def lines(bld: ir.IRBuilder, p: ir.Value, row_start: ir.Value) -> list[ir.Value]:
        at = bld.gep(p, [row_start])
        return [bld.bitcast(bld.gep(at, [ir.Constant(I64, j * n)]), vec.as_pointer()) for j in range(first, last)]

    bld = entry
    row_of = [bld.mul(c_stride, ir.Constant(I64, r)) for r in range(rows)]
    left_of = [bld.mul(r_stride, ir.Constant(I64, r)) for r in range(rows)]
    out = [p for r in range(rows) for p in lines(bld, c, row_of[r])]
    start = [bld.load(p, align=size) for p in out]
    zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)
    soon = bld.select(bld.icmp_signed("!=", k_stride, one), bld.mul(k_stride, ir.Constant(I64, SOON)), zero)
    bld.cbranch(bld.icmp_signed(">", n_seg, zero), outer, done)

    bld = ir.IRBuilder(outer)
    s = bld.phi(I64)
    a_seg, b_seg = bld.phi(ptr), bld.phi(ptr)
    acc_outer = [bld.phi(vec) for _ in out]
    for phi, v in [(s, ir.Constant(I64, 0)), (a_seg, a), (b_seg, b), *zip(acc_outer, start, strict=True)]:
        phi.add_incoming(v, entry.block)
    bld.branch(inner)

    bld = ir.IRBuilder(inner)
    k = bld.phi(I64)
    a_k, b_k = bld.phi(ptr), bld.phi(ptr)
    acc = [bld.phi(vec) for _ in out]
    for phi, v in [(k, ir.Constant(I64, 0)), (a_k, a_seg), (b_k, b_seg), *zip(acc, acc_outer, strict=True)]:
        phi.add_incoming(v, outer)
    right = [bld.load(p, align=size) for p in lines(bld, b_k, ir.Constant(I64, 0))]
    if ahead:
        for j in range(first, last):
            prefetch(Pointer(bld, b_k, dtype), Index(bld, b_stride) * AHEAD + j * n, write=False)
    elif rows > 1 and first == 0:
        prefetch(Pointer(bld, a_k, dtype), Index(bld, soon), write=False)
    # What fewer registers hold stays in them, and the other comes one by one: 3 x 4 takes all of 16. Row by row, with
    # four lines kept, accumulators were moved through the stack, and the tile ran at half of its speed.
    by_line = [(r, j) for j in range(cols) for r in range(rows)]
    left: dict[int, ir.Value] = {}
    made: dict[tuple[int, int], ir.Value] = {}
    for r, j in by_line if rows < cols else sorted(by_line):
        if r not in left:
            left[r] = _splat(bld, bld.load(bld.gep(a_k, [left_of[r]]), align=size), n)
        made[r, j] = bld.call(fma, [left[r], right[j], acc[r * cols + j]])
    new = [made[at] for at in sorted(made)]
    k1, a1, b1 = bld.add(k, one), bld.gep(a_k, [k_stride]), bld.gep(b_k, [b_stride])
    for phi, v in [(k, k1), (a_k, a1), (b_k, b1), *zip(acc, new, strict=True)]:
        phi.add_incoming(v, inner)
    again = bld.cbranch(bld.icmp_signed("<", k1, seg), inner, tail)
    if rows * cols >= REGISTERS // 2:
        _unrolled(module, again, 2)

    bld = ir.IRBuilder(tail)
    s1, a2 = bld.add(s, one), bld.gep(a_seg, [seg_stride])
    for phi, v in [(s, s1), (a_seg, a2), (b_seg, b1), *zip(acc_outer, new, strict=True)]:
        phi.add_incoming(v, tail)
    bld.cbranch(bld.icmp_signed("<", s1, n_seg), outer, done)

    bld = ir.IRBuilder(done)
    result = [bld.phi(vec) for _ in out]
    for phi, v0, v1 in zip(result, start, new, strict=True):
        phi.add_incoming(v0, entry.block)
        phi.add_incoming(v1, tail)
    for p, v in zip(out, result, strict=True):
        bld.store(v, p, align=size)
    return bld


def _unrolled(module: ir.Module, again: ir.Instruction, times: int) -> None:
    """Has LLVM write the loop that goes `again` so many times in a row."""
    # Left to itself it did so four times for Zen 3, with loads in advance that found no register: 2 x 4 and 3 x 3 ran
    # at 0.93 and 0.9 of their speed.
    count = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.count"), ir.Constant(I32, times)])
    loop = ir.MDValue(module, [], name=str(len(module.metadata)))
    loop.operands = (loop, count)  # itself first: how LLVM knows one loop's from another's
    again.set_metadata("llvm.loop", loop)


def _shapes(widths: Iterable[int]) -> Any:
    """All functions for tiles of so many columns."""

    def define(typingctx: Any, a: types.Type) -> Any:
        dtype = np.dtype(str(a.dtype))

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
            for r in HEIGHTS:
                for k in widths:
                    _emit(_declare(builder.module, dtype, r, k), dtype, r, k)
            return context.get_dummy_value()

        return types.none(a), codegen

    return define


def _tile(
    typingctx, c, c_off, c_stride, rows, cols, a, a_off, r_stride, seg, seg_stride, k_stride, n_seg,
    b, b_off, b_stride, own,
):  # fmt: skip
    if not isinstance(own, types.IntegerLiteral):
        return None
    ints = (types.int64,)
    fixed = isinstance(cols, types.IntegerLiteral)
    wanted = [cols.literal_value] if fixed else range(1, COLS + 1)
    sig = types.none(c, *ints * 3, cols if fixed else types.int64, a, *ints * 6, b, *ints * 2, own)
    dtype, few = np.dtype(str(c.dtype)), FEW if own.literal_value == OWN else -1
    for k in wanted:
        _provide(dtype, k)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        def address(array: int, off: int) -> ir.Value:
            data = cgutils.create_struct_proxy(signature.args[array])(context, builder, values[array]).data
            return builder.gep(data, [values[off]])

        args = [address(0, 1), values[2], address(5, 6), *values[7:12], address(12, 13), values[14]]
        width = ir.Constant(I64, cols.literal_value) if fixed else values[4]
        shape = builder.add(builder.mul(values[3], ir.Constant(I64, COLS + 1)), width)
        after = builder.append_basic_block("tile.after")
        switch = builder.switch(shape, after)
        for r in HEIGHTS:
            for k in wanted:
                block = builder.append_basic_block(f"tile.{r}x{k}")
                switch.add_case(ir.Constant(I64, r * (COLS + 1) + k), block)
                with builder.goto_block(block):
                    builder.call((_own if r <= few else _declare)(builder.module, dtype, r, k), args)
                    builder.branch(after)
        builder.position_at_end(after)
        return context.get_dummy_value()

    return sig, codegen


WIDEST = range(COLS, COLS + 1)  # whose functions are half of all; kernels with four gates need no others

if not config.DISABLE_JIT:
    wide, narrow = intrinsic(_shapes(WIDEST)), intrinsic(_shapes(range(1, COLS)))


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


_provided: set[tuple[np.dtype, bool]] = set()


def _provide(dtype: np.dtype, cols: int) -> None:
    """Sees to it that they are there, for kernels that are about to be translated or loaded: under Numba's lock."""
    what = dtype, cols in WIDEST
    if what not in _provided:
        _provided.add(what)  # it is a kernel that is loaded, too
        try:
            (tile_shapes if what[1] else narrow_tile_shapes).for_types(np.empty(0, dtype))
        except BaseException:
            _provided.discard(what)
            raise


_NAMES = re.compile(rb"fastrnn\.tile\.(\w+)\.\d+x(\d+)")


@before_loading
def _provide_for(code: bytes) -> None:
    dtypes = {suffix.encode(): dtype for dtype, suffix in _SUFFIX.items()}
    for suffix, cols in set(_NAMES.findall(code)):
        _provide(dtypes[suffix], int(cols))


# (c, c_off, c_stride, rows, cols, a, a_off, r_stride, seg, seg_stride, k_stride, n_seg, b, b_off, b_stride, own)
tile = _twin if config.DISABLE_JIT else intrinsic(prefer_literal=True)(_tile)
