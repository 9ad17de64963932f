"""The register tile by itself: the loop in which nearly all the time is spent keeps everything in registers."""

import platform
import re
from itertools import pairwise

import llvmlite.binding as llvm
import numpy as np
import pytest
from helpers import JIT
from llvmlite import ir

from fastrnn._jit import kernel
from fastrnn.kernels import panels as panels_of_kernels
from fastrnn.kernels.panels import behind, step_of
from fastrnn.simd import target, tile

AVX = platform.machine() in ("x86_64", "AMD64") and "avx2" in target.features()


def translated(dtype, rows, cols, kind):
    """The tile's function for this CPU, in assembly."""
    module = ir.Module()
    module.triple = llvm.get_process_triple()
    function = tile._declare(module, np.dtype(dtype), rows, cols, kind)
    tile._emit(function, np.dtype(dtype), rows, cols, kind)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = ",".join("+" + name for name in sorted(target.features()))
    machine = llvm.Target.from_triple(module.triple).create_target_machine(target.cpu_name(), features, opt=3)
    code = llvm.parse_assembly(str(module))
    passes = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(code, passes)
    return machine.emit_assembly(code)


KINDS = (tile.TILE, tile.TURNED, tile.STRIPS)
SHAPES = [(kind, *shape) for kind in KINDS for shape in tile.shapes_of(kind, range(1, target.COLS + 1))]


@pytest.mark.skipif(not JIT, reason="without JIT there are no registers")
@pytest.mark.skipif(not AVX, reason="reads x86 assembly, with 256 bits or more")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "rows", "cols"), SHAPES)
def test_no_vector_on_the_stack(kind, rows, cols, dtype):
    """Neither an accumulator nor an operand: a tile whose vectors did not fit ran at half of its speed. And its loop
    begins where a line of the cache begins.
    """
    code = translated(dtype, rows, cols, kind)
    vectors = [line for line in code.splitlines() if re.search(r"%[yz]mm", line)]
    assert sum("vfmadd" in line for line in vectors) >= max(1, rows) * cols
    assert not [line for line in vectors if "(%rsp)" in line]
    assert re.search(rf"\.p2align\s+{tile.LINE.bit_length() - 1}\s*\n\S+:\s*\n[^:]*vfmadd", code)


@pytest.mark.skipif(not JIT, reason="without JIT nothing is fetched")
@pytest.mark.skipif(not AVX or not tile.FETCHES, reason="reads x86 assembly, with 256 bits")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [tile.TILE, tile.TURNED])
@pytest.mark.parametrize(("rows", "cols"), [(r, k) for r in range(2, target.ROWS + 1) for k in range(1, 4)])
def test_one_line_is_fetched_for_several_values(kind, rows, cols, dtype):
    """One instruction that fetches, in a loop that has AT_ONCE values of the summed index."""
    code = translated(dtype, rows, cols, kind)
    loops = re.split(r"\.p2align", code)
    fetching = [loop for loop in loops if "prefetch" in loop]
    assert len(fetching) == 1
    assert fetching[0].count("prefetch") == 1
    before = re.split(r"\bj\w+\s", fetching[0])[0]
    assert sum("vfmadd" in line for line in before.splitlines()) == tile.AT_ONCE * rows * cols


@kernel
def shares(line, blocks, depth, b, where):
    """Where each block of rows begins to fetch, and how far it is to the next."""
    for block in range(blocks):
        where[block, 1] = step_of(line, blocks, b)
        where[block, 0] = behind(depth, line, block, where[block, 1])


@pytest.mark.parametrize("cols", range(1, target.COLS + 1))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_blocks_of_rows_fetch_what_comes(dtype, cols):
    """Together, each line of the cache once or twice, as long as one line at a time is enough; and nothing where it
    would gain nothing.
    """
    itemsize = np.dtype(dtype).itemsize
    few, many = (np.empty(panels_of_kernels.NEAR // itemsize + k, dtype) for k in (0, 1))
    line, depth = cols * target.lanes(dtype), 512
    for blocks in range(1, 50):
        where = np.empty((blocks, 2), np.int64)
        shares.held(line, blocks, depth, few, where)
        assert not where[:, 1].any()
        shares.held(line, blocks, depth, many, where)
        if blocks <= 2 or not tile.FETCHES:
            assert not where[:, 1].any()
            continue
        fetched = np.zeros(2 * depth * line * itemsize // tile.LINE, int)
        for begin, step in where:
            at = (begin + np.arange(depth // tile.AT_ONCE) * step) * itemsize // tile.LINE
            fetched[np.unique(at[at < len(fetched)])] += 1
        begin = depth * line * itemsize // tile.LINE
        assert not fetched[:begin].any()
        enough = blocks * tile.LINE >= tile.AT_ONCE * line * itemsize
        share = fetched[begin : begin + len(fetched) // 2]
        assert share.all() if enough else (share == 1).sum() == blocks * depth // tile.AT_ONCE
        assert share.max() <= 2


@pytest.mark.parametrize("panels", range(1, 130))
def test_groups(panels):
    """All panels are in one, none has more than it may, and two workers find as many."""
    count = target.groups(panels)
    bounds_of = getattr(panels_of_kernels.bounds_of, "py_func", panels_of_kernels.bounds_of)
    bounds = [bounds_of(group, count, panels) for group in range(count)]
    assert [b for b, _ in bounds] == [0, *(e for _, e in bounds[:-1])]
    assert bounds[-1][1] == panels
    assert all(1 <= e - b <= target.GROUP for b, e in bounds)
    assert count < 2 or 2 * bounds[count // 2][0] == panels or panels % 2


@pytest.mark.parametrize("cols", range(1, target.COLS + 1))
def test_tiles_for_any_number_of_rows(cols):
    """No tile is taller than there is a function for, and none has no rows."""
    tiles_for = getattr(tile.tiles_for, "py_func", tile.tiles_for)  # without JIT it is the function itself
    assert tiles_for(0, cols) == 0
    for rows in range(1, 200):
        count = tiles_for(rows, cols)
        ends = [rows * k // count for k in range(count + 1)]
        assert all(1 <= b - a <= target.ROWS for a, b in pairwise(ends))
