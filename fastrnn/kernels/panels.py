"""Lines of vectors and the packing of weights into panels: what every kernel that uses the tile shares.

A *line* is what one tile row holds: up to COLS vectors side by side. A packed panel is one line for each value of the
summed index, contiguous, with zeros where the matrix has ended.
"""

from .._jit import device, part
from ..simd.target import COLS, ROWS
from ..simd.tile import tile
from ..simd.vector import lanes, lanes_of, load, pointwise, store

# Values of the summed index that `tiles` takes at a time: 128 KiB of float32 lines.
DEPTH = 512

# Rows whose pre-activations are in working memory at a time, and the vectors that they take: 24 KiB of the stack.
CHUNK = 16 * ROWS
WORK = CHUNK * COLS


@pointwise
def copy_line(to, to_off, source, source_off):
    """Four vectors of `source` (read) to `to` (written)."""
    w = lanes(to)
    for k in range(4):
        store(to, to_off + k * w, load(source, source_off + k * w))


@pointwise
def copy_in(to, to_off, source, source_off, count):
    """One vector of `to`, written: the first `count` elements from `source`, read, then zeros."""
    store(to, to_off, load(source, source_off, count))


@pointwise
def copy_out(to, to_off, source, source_off, count):
    """The first `count` elements of `to`, written, from one vector of `source`, read."""
    store(to, to_off, load(source, source_off), count)


@pointwise
def copy_rows(to, to_off, source, source_off, count):
    """The first `count` elements of `to`, written, from those of `source`, read."""
    store(to, to_off, load(source, source_off, count), count)


@pointwise
def add_in(to, to_off, source, source_off, count):
    """One vector of `to`, accumulated: plus the first `count` elements of `source`, read."""
    store(to, to_off, load(to, to_off) + load(source, source_off, count))


@pointwise
def add_out(to, to_off, source, source_off, count):
    """The first `count` elements of `to`, accumulated: plus one vector of `source`, read."""
    store(to, to_off, load(to, to_off, count) + load(source, source_off), count)


@pointwise
def add_rows(to, to_off, source, source_off, count):
    """The first `count` elements of `to`, accumulated: plus those of `source`, read."""
    store(to, to_off, load(to, to_off, count) + load(source, source_off, count), count)


@part
def tiles(c, c_off, c_stride, rows, cols, a, a_off, r_stride, seg, seg_stride, n_seg, b, b_off, line):
    """c[r, :] += sum over k of a[r, k] b[k, :] for any number of rows; `a` as in simd/tile.py with kstride 1.

    At most DEPTH values of k at a time for all rows, so that their lines of `b` are read from the second-level cache.
    Row after row over the whole sum was 10 % slower where a panel of `b` does not fit there.
    """
    blocks = (rows + ROWS - 1) // ROWS  # as equal as possible: 16 rows are 5 + 5 + 6, not 6 + 6 + 4
    if n_seg > 1:
        several = max(1, DEPTH // seg)
        for s in range(0, n_seg, several):
            for block in range(blocks):
                r = rows * block // blocks
                tile(
                    c, c_off + r * c_stride, c_stride, rows * (block + 1) // blocks - r, cols,
                    a, a_off + r * r_stride + s * seg_stride, r_stride, seg, seg_stride, 1, min(several, n_seg - s),
                    b, b_off + s * seg * line, line,
                )  # fmt: skip
        return
    for k in range(0, seg, DEPTH):
        for block in range(blocks):
            r = rows * block // blocks
            tile(
                c, c_off + r * c_stride, c_stride, rows * (block + 1) // blocks - r, cols,
                a, a_off + r * r_stride + k, r_stride, min(DEPTH, seg - k), 0, 1, 1, b, b_off + k * line, line,
            )  # fmt: skip


@device
def pack_transposed(to, to_off, line, source, row0, rows, columns, width):
    """to[k, j] = source[row0 + j, k]: `rows` of `width` columns j, the others zero; k < columns.

    to : at to_off, `line` from one k to the next, written
    source : row-major, `columns` in a row, read
    """
    for k0 in range(0, columns, 16):  # 16 x 16 blocks: both sides of the transposition stay in L1
        k1 = min(k0 + 16, columns)
        for j in range(rows):
            for k in range(k0, k1):
                to[to_off + k * line + j] = source[(row0 + j) * columns + k]
        for j in range(rows, width):
            for k in range(k0, k1):
                to[to_off + k * line + j] = 0


@device
def pack_rows(to, to_off, line, source, row0, rows, columns, column0, height):
    """to[k, j] = source[row0 + k, column0 + j] for k < rows, zero up to `height`; j < line, zero past the columns.

    to : (height, line) at to_off, written
    source : row-major, `columns` in a row, read
    """
    lane = lanes_of(to)
    for k in range(rows):
        for j in range(0, line, lane):
            copy_in(to, to_off + k * line + j, source, (row0 + k) * columns + column0 + j, columns - column0 - j)
    for k in range(rows, height):
        for j in range(0, line, lane):
            copy_in(to, to_off + k * line + j, source, 0, 0)
