"""Matrix products and rows of whole arrays for layers: allocation and division of work around kernels/matmul.py and
kernels/embedding.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kernels import embedding, matmul
from ..kernels.panels import CHUNK, TAPE
from ..simd.target import COLS, ROWS, lanes
from ..simd.vector import block
from ..threads import launch, workers_for
from . import buffers

NONE = np.empty(0, np.int64)

# Into how many parts rows, or the columns of a table, are divided for the workers.
PIECES = 8

# Strips of x, 128 KiB each, that a gradient keeps in the second-level cache where a block of what they are multiplied
# by has more bytes than FAR: it comes from the third-level cache, so once for all of them. That took 0.9 of the time at
# H = 1024 and 1536 (2 or 8 strips: 0.95); from H = 512 down it gained nothing, and took 1.05 where strips are few.
BESIDE, FAR = 4, 1 << 22


class Taped(NamedTuple):
    """A left operand (N, gates * H) that is part of a tape (blocks, N, TAPE blocks)."""

    a: np.ndarray  # flat
    rows: int  # N
    hidden: int  # H
    gates: int
    first: int = 0  # the first of these gates in the tape
    turn: int = 0  # gate g of them belongs to gate (g + turn) % gates of the weights

    def sizes(self) -> tuple[int, int, int]:
        """Units of a block, blocks, numbers from row to row."""
        unit = block(self.a)
        return unit, -(-self.hidden // unit), TAPE * unit

    @property
    def start(self) -> np.ndarray:
        """From the first of these gates on."""
        return self.a[self.first * block(self.a) :] if self.first else self.a


def pack(rows: int, columns: int, source: np.ndarray, transposed: bool) -> np.ndarray:
    """B (rows, columns) packed for `multiply`; source holds it row-major, or its transpose."""
    w = lanes(source.dtype)
    packed = buffers.aligned(rows * (-(-columns // w) * w), source.dtype)
    work = 8.0 * rows * columns  # a packed number costs about as much as eight multiply-adds
    workers = workers_for(work, -(-columns // (COLS * w)))
    launch(matmul.pack, workers, 1, work, rows, columns, transposed, source, packed)
    return packed


def pack_tape(tape: Taped, columns: int, source: np.ndarray, whole: bool = False) -> np.ndarray:
    """B (gates H, columns) packed for products with `tape`; `whole`: as many columns as the tape has units."""
    w = lanes(source.dtype)
    unit, blocks, _ = tape.sizes()
    vectors = blocks * (unit // w) if whole else -(-columns // w)
    packed = buffers.aligned(blocks * tape.gates * unit * vectors * w, source.dtype)
    work = 4.0 * packed.size
    workers = workers_for(work, -(-vectors // COLS) * blocks)
    launch(
        matmul.pack_tape, workers, 1, work, tape.hidden, columns, vectors, tape.gates, tape.turn, source, packed
    )  # fmt: skip
    return packed


def multiply(
    a: np.ndarray | Taped,
    packed: np.ndarray,
    columns: int,
    bias: np.ndarray,
    out: np.ndarray | None = None,
    add: bool = False,
) -> np.ndarray:
    """bias + a B, (N, columns), for a (N, K) row-major or a tape; bias (columns,) or empty.

    It is written into `out`, if given, or with `add` added to it.
    """
    if isinstance(a, Taped):
        unit, n_seg, r_stride = a.sizes()
        rows, seg, left, seg_stride = a.rows, a.gates * unit, a.start, a.rows * r_stride
    else:
        rows, seg, n_seg = a.shape[0], a.shape[1], 1
        left, r_stride, seg_stride = a.reshape(-1), seg, 0
    work = float(rows) * columns * seg * n_seg
    pieces, groups = -(-rows // (CHUNK // 2)), -(-columns // (COLS * lanes(packed.dtype)))
    workers = workers_for(work, pieces * groups)
    strips = 1
    if workers > 1:
        # Few rows are not enough for all workers: then the columns are divided as well. And nobody works alone at the
        # end, where there are not many items: with 9 of them two workers took 1.1 of the time of 12.
        if pieces < 2 * workers:
            strips = min(groups, -(-4 * workers // pieces))
            strips = min(groups, next(n for n in range(strips, strips + workers) if pieces * n % workers == 0))
        else:
            pieces = -(-pieces // workers) * workers
    out = buffers.empty((rows, columns), packed.dtype) if out is None else out
    launch(
        matmul.product, workers, 1, work,
        rows, columns, pieces, strips, add, left, r_stride, seg, seg_stride, n_seg, packed, bias, out.reshape(-1),
    )  # fmt: skip
    return out


def add_gradient(
    out: np.ndarray,
    x: np.ndarray,
    a: np.ndarray | Taped,
    line: int | None = None,
    index: np.ndarray = NONE,
    order: int = 1,
) -> None:
    """out (M, columns) += a^T x for x (N, columns) and a (N, M), row-major or a tape.

    With `line`, row n of x lies at n * line (or index[n] * line) of the flat `x`. The sum runs over ascending n, with
    order -1 over descending n.
    """
    columns = out.shape[1]
    w = lanes(x.dtype)
    if isinstance(a, Taped):
        width, count, k_stride = a.sizes()
        rows, gates, turn, height, left, panel_stride = a.rows, a.gates, a.turn, a.hidden, a.start, a.rows * k_stride
    else:
        rows, gates, turn, height, width = a.shape[0], 1, 0, out.shape[0], COLS * w
        left, panel_stride, k_stride, count = a.reshape(-1), width, out.shape[0], -(-height // width)
    beside = BESIDE if matmul.BLOCK * gates * height * x.itemsize > FAR else 1
    groups = -(-columns // (beside * COLS * w))
    work = float(rows) * columns * gates * height
    workers = workers_for(work, groups * count)
    pieces = 1 if workers == 1 else min(count, max(1, -(-4 * workers // groups)))
    scratch = buffers.aligned(workers * (beside * matmul.BLOCK + ROWS) * COLS * w, x.dtype)
    launch(
        matmul.gradient, workers, 1, work,
        rows, columns, pieces, beside, order, left, panel_stride, k_stride, gates, turn, width, height,
        x.reshape(-1), columns if line is None else line, index, out.reshape(-1), scratch,
    )  # fmt: skip


def add_column_sums(out: np.ndarray, a: np.ndarray, order: int = 1) -> None:
    """out (M,) += the sum over the rows of a (N, M), in ascending order, with order -1 in descending order."""
    rows, columns = a.shape
    w = lanes(a.dtype)
    work = 4.0 * rows * columns  # a number that comes from memory costs about as much as four multiply-adds, or more
    workers = workers_for(work, -(-columns // w))
    launch(matmul.column_sums, workers, 1, work, rows, columns, workers, order, a.reshape(-1), out)


def gather(a: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """a[ids], for a (V, columns) and ids (N,); zeros where an id is -1."""
    rows, columns = len(ids), a.shape[1]
    out = buffers.empty((rows, columns), a.dtype)
    work, pieces = 40.0 * out.size, min(rows, PIECES)  # a copied number costs about as much as 40 multiply-adds
    launch(
        embedding.gather, workers_for(work, pieces), 1, work,
        rows, columns, pieces, ids, np.ascontiguousarray(a).reshape(-1), out.reshape(-1),
    )  # fmt: skip
    return out
