"""Matrix products of whole arrays for layers: allocation and division of work around kernels/matmul.py."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kernels import matmul
from ..kernels.panels import CHUNK
from ..simd.target import COLS, ROWS, lanes
from ..threads import launch, workers_for
from . import buffers


class Panels(NamedTuple):
    """A left operand (N, gates * height) whose columns lie in panels: the gates of a tape."""

    rows: int  # N
    gates: int
    height: int  # H
    width: int  # hidden units in a panel

    @property
    def line(self) -> int:
        return self.gates * self.width

    @property
    def count(self) -> int:
        return -(-self.height // self.width)


def pack(rows: int, columns: int, source: np.ndarray, transposed: bool) -> np.ndarray:
    """B (rows, columns) packed for `multiply`; source holds it row-major, or its transpose."""
    w = lanes(source.dtype)
    packed = buffers.aligned(rows * (-(-columns // w) * w), source.dtype)
    work = 8.0 * rows * columns  # a packed number costs about as much as eight multiply-adds
    workers = workers_for(work, -(-columns // (COLS * w)))
    launch(matmul.pack, workers, 1, work, rows, columns, transposed, source, packed)
    return packed


def multiply(
    a: np.ndarray, packed: np.ndarray, columns: int, bias: np.ndarray, panels: Panels | None = None
) -> np.ndarray:
    """bias + a B, (N, columns), for a (N, K) row-major or in panels; bias (columns,) or empty."""
    if panels is None:
        rows, r_stride, seg, seg_stride, n_seg = a.shape[0], a.shape[1], a.shape[1], 0, 1
    else:
        rows, r_stride, seg, seg_stride, n_seg = (
            panels.rows, panels.line, panels.line, panels.rows * panels.line, panels.count,
        )  # fmt: skip
    work = float(rows) * columns * seg * n_seg
    pieces = -(-rows // (CHUNK // 2))
    workers = workers_for(work, pieces)
    out = buffers.empty((rows, columns), a.dtype)
    launch(
        matmul.product, workers, 1, work,
        rows, columns, pieces, a.reshape(-1), r_stride, seg, seg_stride, n_seg, packed, bias, out.reshape(-1),
    )  # fmt: skip
    return out


def add_gradient(out: np.ndarray, x: np.ndarray, a: np.ndarray, panels: Panels | None = None) -> None:
    """out (M, columns) += a^T x for x (N, columns) and a (N, M), row-major or in panels."""
    rows, columns = x.shape
    w = lanes(x.dtype)
    if panels is None:
        gates, height, width, panel_stride, k_stride = 1, out.shape[0], COLS * w, COLS * w, out.shape[0]
    else:
        gates, height, width = panels.gates, panels.height, panels.width
        panel_stride, k_stride = rows * panels.line, panels.line
    groups, count = -(-columns // (COLS * w)), -(-height // width)
    work = float(rows) * columns * gates * height
    workers = workers_for(work, groups * count)
    pieces = 1 if workers == 1 else min(count, max(1, -(-4 * workers // groups)))
    scratch = np.empty(workers * (matmul.BLOCK + ROWS) * COLS * w, x.dtype)
    launch(
        matmul.gradient, workers, 1, work,
        rows, columns, pieces, a.reshape(-1), panel_stride, k_stride, gates, width, height,
        x.reshape(-1), out.reshape(-1), scratch,
    )  # fmt: skip


def add_column_sums(out: np.ndarray, a: np.ndarray) -> None:
    """out (M,) += the sum over the rows of a (N, M), in ascending order."""
    rows, columns = a.shape
    w = lanes(a.dtype)
    work = float(rows) * columns
    workers = workers_for(work, -(-columns // w))
    launch(matmul.column_sums, workers, 1, work, rows, columns, a.reshape(-1), out)
