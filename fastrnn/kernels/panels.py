"""Lines of vectors and the packing of weights into panels: what every kernel that uses the tile shares.

A *line* is what one tile row holds: up to COLS vectors side by side. A packed panel is one line for each value of the
summed index, contiguous, with zeros where the matrix has ended.

Steps and rows. The kernels of a cell go through the steps of one direction; where the rows of a step lie is told by

    at       (T + 1,) int64: step s has its previous states from row at[s] on and writes its own from row at[s + 1]
    shift    the inputs of step s, its dy and its part of the tape lie from row at[s + 1] - shift on
    counts   (T + 1,) int64: how many rows take part in step s; never more than before; counts[T] = 0
    total    rows of x in all steps
    bounds   (pieces + 1,) int64: the rows that share all steps, when the work is divided by rows

So one kernel serves sequences of one length, forward (at = 0, B, 2B ...) and in reverse, and sequences of different
lengths, longest first, one step after the other without gaps.
"""

import numpy as np

from .._jit import device, part
from ..simd.target import COLS, VECTOR_BYTES
from ..simd.tile import AHEAD, tile, tiles_for
from ..simd.vector import block_of, greatest, lanes, lanes_of, least, load, pointwise, prefetch, store, transpose

# Values of the summed index that `tiles` takes at a time: 128 KiB of float32 lines.
DEPTH = 512

# Bytes of packed weights up to which they are taken to be in the second-level cache, where each worker has its share.
NEAR = 5 << 18

# Rows whose pre-activations are in working memory at a time, and the vectors that they take: 33 KiB of the stack. A
# multiple of every ROWS. With 96 a batch of 128 went through the weights twice: 4 % of lstm_forward.
CHUNK = 132
WORK = CHUNK * COLS

# Multiply-adds: what a row of a step costs beside its own, about; and the most that an item by rows has of them.
OVERHEAD, LONGEST = 500, 200_000_000

# Blocks of a tape for each row and block of hidden units: gates, later their gradients.
TAPE = 4

# No indices: a constant in compiled code (an array made there took 0.1 s more to compile).
NO_IDS = np.empty(0, np.int64)


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
def fetch(to, to_off):
    """Begins to bring a line of `to`, which will be written, into the cache."""
    prefetch(to, to_off)


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


@device
def one_row(b):
    """How `tile` is told of one row alone: whether its lines are fetched ahead, see simd/tile.py."""
    return 0 if AHEAD and len(b) <= NEAR // VECTOR_BYTES * lanes_of(b) else 1


@part
def tiles_of_two(c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, depth, b, b_off, own):
    """c[r, :] += sum over k of x[r, k] b[k, :], then of a[r, k] and the lines after those, for any number of rows.

    own : OWN or SHARED, see simd/tile.py

    At most DEPTH values of k at a time for all rows, so that their lines of `b` are read from the second-level cache.
    Row after row over the whole sum was 10 % slower where a panel of `b` does not fit there. One call of `tile` takes
    what it can of both: an LSTM (128, 16, 32, 32) took 1.03 of the time with two.
    """
    line, blocks = cols * lanes_of(b), tiles_for(rows, cols)
    for k in range(0, x_depth + depth, DEPTH):
        begin = max(0, k - x_depth)
        more = max(0, min(depth, k + DEPTH - x_depth) - begin)
        for block in range(blocks):
            r = rows * block // blocks
            count = one_row(b) if rows == 1 else rows * (block + 1) // blocks - r
            tile(
                c, c_off + r * c_stride, c_stride, count, cols,
                x, x_off + r * x_stride + k, x_stride, min(DEPTH, x_depth - k),
                a, a_off + r * stride + begin, stride, more, 0, min(more, 1), b, b_off + k * line, own,
            )  # fmt: skip


@part
def tiles(c, c_off, c_stride, rows, cols, a, a_off, stride, seg, seg_stride, n_seg, b, b_off, own):
    """The same for one array, which may be in segments: a[r, k] at a_off + r * stride + k // seg * seg_stride +
    k % seg.
    """
    if n_seg == 1:
        tiles_of_two(c, c_off, c_stride, rows, cols, a, a_off, 0, 0, a, a_off, stride, seg, b, b_off, own)
        return
    line, blocks = cols * lanes_of(b), tiles_for(rows, cols)
    several = max(1, DEPTH // seg)
    for s in range(0, n_seg, several):
        for block in range(blocks):
            r = rows * block // blocks
            count = one_row(b) if rows == 1 else rows * (block + 1) // blocks - r
            tile(
                c, c_off + r * c_stride, c_stride, count, cols, a, a_off, 0, 0,
                a, a_off + r * stride + s * seg_stride, stride, seg, seg_stride, min(several, n_seg - s),
                b, b_off + s * seg * line, own,
            )  # fmt: skip


@device
def blocks_for(a, h_size):
    """Blocks of hidden units in a tape, N."""
    return (h_size + block_of(a) - 1) // block_of(a)


@device
def panels_for(a, h_size):
    """Panels of hidden units, P: as many as fill the blocks."""
    return blocks_for(a, h_size) * (block_of(a) // lanes_of(a))


@device
def tape_at(a, panel, rows, row):
    """Where the gates of a panel are in a tape (N, rows, 4 blocks); from gate to gate it is a block."""
    unit, size = panel * lanes_of(a), block_of(a)
    return (unit // size * rows + row) * TAPE * size + unit % size


@device
def inwards(k, rows):
    """The k-th of some rows, from both ends to the middle: the last half downwards, then the first half upwards.

    A processor that has met a few rows at equal distances fetches those that come next. In rising order, these would be
    another worker's, who may be about to write them.
    """
    # Where the workers' caches are far from each other (a word goes over in 190 ns, here 50 as a rule), an LSTM's
    # training pass forward at (60, 32, 128, 128) ran at 0.85 of its speed in rising order. Orders without any equal
    # distances were as good there, but lost 4 % elsewhere. Backward gained nothing by it, nor did an RNN.
    return rows - 1 - k if k < rows // 2 else k - rows // 2


@device
def add_biases(to, to_off, b_ih, b_hh, unit, count):
    """One vector of `to`, written: `count` biases from `unit` on, the sum of both; zeros where there are none."""
    copy_in(to, to_off, b_ih, unit, min(count, len(b_ih)))
    add_in(to, to_off, b_hh, unit, min(count, len(b_hh)))


@device
def rows_of(piece, pieces, count, bounds, by_rows):
    """The rows of a piece in a step of `count` rows, from the first to before the last."""
    if by_rows:
        return min(bounds[piece], count), min(bounds[piece + 1], count)
    return count * piece // pieces, count * (piece + 1) // pieces


@device
def steps_of_item(flag, steps, rows, numbers):
    """How many of all steps a worker takes in one item: one; or by rows, where nobody waits for anybody, as many as
    there are, but no more than may keep the caller: some 0.1 s, at 2 multiply-adds a nanosecond.

    rows, numbers : in a step of an item; of weights, each a multiply-add a row
    """
    if not flag:
        return 1
    return max(1, min(steps, LONGEST // ((rows + 1) * (numbers + OVERHEAD))))


@pointwise
def copy_square(to, to_off, line, source, source_off, columns):
    """to[k, j] = source[j, k] for as many k, written, and j, read, as a vector holds."""
    rows = [load(source, source_off + j * columns) for j in range(lanes(to))]
    for k, v in enumerate(transpose(rows)):
        store(to, to_off + k * line, v)


@pointwise
def copy_transposed(to, to_off, line, source, source_off, columns, rows, count):
    """The same for k < count and j < rows; zeros for the other j of a vector.

    What is not there is neither read nor written, and the address that is passed for it is one that is there.
    """
    n = lanes(to)
    picked = []
    for j in range(n):
        there = least(greatest(rows - j, 0), 1)
        at = source_off + least(j, greatest(rows - 1, 0)) * columns
        picked.append(load(source, at, there * count))
    for k, v in enumerate(transpose(picked)):
        store(to, to_off + least(k, count - 1) * line, v, least(greatest(count - k, 0), 1) * n)


@device
def pack_transposed(to, to_off, line, source, row0, rows, columns, width):
    """to[k, j] = source[row0 + j, k]: `rows` of `width` columns j, the others zero; k < columns.

    to : at to_off, `line` from one k to the next, written
    source : row-major, `columns` in a row, read
    """
    lane = lanes_of(to)
    for j in range(0, width, lane):
        left = max(0, min(lane, rows - j))
        at = (row0 + j) * columns if left else 0
        for k in range(0, columns, lane):
            into, count = to_off + k * line + j, min(lane, columns - k)
            if left == lane and count == lane:  # without masks 0.7 of the time on Zen 3
                copy_square(to, into, line, source, at + k, columns)
            else:
                copy_transposed(to, into, line, source, at + k, columns, left, count)


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
