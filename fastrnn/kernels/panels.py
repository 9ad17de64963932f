"""Lines of vectors and the packing of weights into panels: what every kernel that uses the tile shares.

A *line* is what one tile row holds: up to COLS vectors side by side. A packed panel is one line for each value of the
summed index, contiguous, with zeros where the matrix has ended.

Panels of a forward are in groups, which are the items of a step. With 32 registers a group is a panel (but for one row
of an LSTM, see `row_item` there). With 16 it is two panels of four vectors, or three, packed together: first the biases
of all, then strip after strip, of three vectors (eight are 2 + 3 + 3). A tile of a strip and four rows accumulates in
12 registers, and reads a line of 96 bytes for four rows; 4 x 4 had to be done as 4 x 2 twice, each of which read every
second line of 64. An LSTM (25, 4, 512, 512) takes 0.80 of the time of that on Zen 3, (150, 4, 256, 256) 0.82, (30, 8,
512, 512) 0.91, (30, 16, 512, 512) 0.93, and from 24 rows on 0.96 to 1.02. And one row keeps only as many multiply-adds
going as a tile has columns, where eight could be: it takes all strips of a group at once, (672, 1, 32, 32) in 0.8 of
the time. (Strips of two vectors, of one panel, were slower with four rows and more. Strips of three for backward too:
0.98 to 1.08 of lstm-train.)

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
from ..simd.target import COLS, GROUP, STRIP, VECTOR_BYTES, groups
from ..simd.tile import AHEAD, AT_ONCE, FETCHES, NARROW, OWN, SHARED, strips, tile, tiles_for
from ..simd.vector import block_of, greatest, lanes, lanes_of, least, load, pointwise, prefetch, store, transpose

# Values of the summed index that `tiles` takes at a time: 128 KiB of float32 lines.
DEPTH = 512

# Bytes of packed weights up to which they are taken to be in the second-level cache, where each worker has its share.
NEAR = 5 << 18

# Rows whose pre-activations are in working memory at a time, and the vectors that they take: 33 KiB of the stack, for a
# group of three panels 50. A multiple of every ROWS. With 96 a batch of 128 went through the weights twice: 4 % of
# lstm_forward.
CHUNK = 132
WORK = CHUNK * COLS
ROOM = GROUP * WORK

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
def near(b):
    """Whether packed weights are taken to be in the second-level cache."""
    return len(b) <= NEAR // VECTOR_BYTES * lanes_of(b)


@device
def one_row(b):
    """How `tile` is told of one row alone: whether its lines are fetched ahead, see simd/tile.py."""
    return 0 if AHEAD and near(b) else 1


@device
def step_of(line, blocks, b):
    """How far apart the lines of the cache are that `tile` fetches for one of all blocks of rows, so that all blocks
    fetch as many lines of `b` as they read; 0 if they are not to. (With one block (25, 4, 512, 512) took 1.05 of the
    time, with two (30, 8, 512, 512) as long as without.)
    """
    return 0 if not FETCHES or blocks <= 2 or near(b) else min(block_of(b), (AT_ONCE * line + blocks - 1) // blocks)


@device
def behind(depth, line, block, step):
    """Where they begin for a block, from the first line that it reads."""
    return depth * line + depth // AT_ONCE * block * step


@part
def tiles_of_two(c, c_off, c_stride, rows, cols, x, x_off, x_stride, x_depth, a, a_off, stride, depth, b, b_off, own):
    """c[r, :] += sum over k of x[r, k] b[k, :], then of a[r, k] and the lines after those, for any number of rows.

    own : OWN or SHARED, see simd/tile.py

    At most DEPTH values of k at a time for all rows, so that their lines of `b` are read from the second-level cache.
    Row after row over the whole sum was 10 % slower where a panel of `b` does not fit there. One call of `tile` takes
    what it can of both: an LSTM (128, 16, 32, 32) took 1.03 of the time with two.
    """
    line, blocks = cols * lanes_of(b), tiles_for(rows, cols)
    step = step_of(line, blocks, b)
    for k in range(0, x_depth + depth, DEPTH):
        begin = max(0, k - x_depth)
        more = max(0, min(depth, k + DEPTH - x_depth) - begin)
        for block in range(blocks):
            r = rows * block // blocks
            count = one_row(b) if rows == 1 else rows * (block + 1) // blocks - r
            tile(
                c, c_off + r * c_stride, c_stride, count, cols,
                x, x_off + r * x_stride + k, x_stride, min(DEPTH, x_depth - k),
                a, a_off + r * stride + begin, stride, more, 0, min(more, 1),
                b, b_off + k * line, behind(max(0, min(DEPTH, x_depth - k)) + more, line, block, step), step, own,
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
    step = step_of(line, blocks, b)
    several = max(1, DEPTH // seg)
    for s in range(0, n_seg, several):
        for block in range(blocks):
            r = rows * block // blocks
            count = one_row(b) if rows == 1 else rows * (block + 1) // blocks - r
            tile(
                c, c_off + r * c_stride, c_stride, count, cols, a, a_off, 0, 0,
                a, a_off + r * stride + s * seg_stride, stride, seg, seg_stride, min(several, n_seg - s),
                b, b_off + s * seg * line, behind(min(several, n_seg - s) * seg, line, block, step), step, own,
            )  # fmt: skip


@device
def strips_for(vectors):
    """In how many strips the vectors of a group are: strip s has those from vectors * s // strips on."""
    return 1 if vectors <= COLS else (vectors + STRIP - 1) // STRIP


@part
def tiles_of_group(c, c_stride, rows, vectors, x, x_off, x_stride, x_depth, a, a_off, stride, depth, b, b_off):
    """The same, from the start of `c`, for the vectors of a group: strip after strip, or for one or two rows as many of
    them as there are registers for.
    """
    count, lane, s = strips_for(vectors), lanes_of(b), 0
    apart = (x_depth + depth) * lane
    while s < count:
        v, beside = vectors * s // count, 1
        if rows == 1 and (vectors == 8 or vectors == 12):
            beside = count
        elif rows == 2 and s + 1 < count and vectors * (s + 2) // count - v > COLS:
            beside = 2
        width = vectors * (s + beside) // count - v
        if beside > 1:
            strips(
                c, v * lane, c_stride, rows, width, x, x_off, x_stride, x_depth,
                a, a_off, stride, depth, 0, min(depth, 1), b, b_off + v * apart, 0, apart, 0,
            )  # fmt: skip
        else:
            tiles_of_two(
                c, v * lane, c_stride, rows, width,
                x, x_off, x_stride, x_depth, a, a_off, stride, depth, b, b_off + v * apart, NARROW,
            )  # fmt: skip
        s += beside


@part
def tiles_of_panels(
    c, c_off, c_stride, c_next, rows, panels, x, x_off, x_stride, x_depth, a, a_off, stride, depth, b, b_off, b_next
):  # fmt: skip
    """The same for panels of three vectors, each packed by itself; for one or two rows several at once, likewise.

    c_next, b_next : from panel to panel
    """
    if GROUP == 1:
        tiles_of_two(
            c, c_off, c_stride, rows, 3, x, x_off, x_stride, x_depth, a, a_off, stride, depth, b, b_off, OWN
        )  # fmt: skip
    else:
        lane, k = lanes_of(b), 0
        apart = (x_depth + depth) * lane
        while k < panels:
            beside = panels - k if rows == 1 else min(2, panels - k)
            if rows <= 2 and beside > 1:
                strips(
                    c, c_off + k * c_next, c_stride, rows, 3 * beside, x, x_off, x_stride, x_depth,
                    a, a_off, stride, depth, 0, min(depth, 1), b, b_off + k * b_next, c_next - 3 * lane, apart,
                    b_next - 3 * apart,
                )  # fmt: skip
            else:
                beside = 1
                tiles_of_two(
                    c, c_off + k * c_next, c_stride, rows, 3,
                    x, x_off, x_stride, x_depth, a, a_off, stride, depth, b, b_off + k * b_next, SHARED,
                )  # fmt: skip
            k += beside


@device
def blocks_for(a, h_size):
    """Blocks of hidden units in a tape, N."""
    return (h_size + block_of(a) - 1) // block_of(a)


@device
def panels_for(a, h_size):
    """Panels of hidden units, P: as many as fill the blocks."""
    return blocks_for(a, h_size) * (block_of(a) // lanes_of(a))


groups_for = device(groups)


@device
def bounds_of(group, groups, panels):
    """The panels of a group: the first, and that after the last."""
    if GROUP == 1:  # known when a kernel is compiled: what loops over its panels is no loop
        return group, group + 1
    if groups == panels:  # without two divisions
        return group, group + 1
    return panels * group // groups, panels * (group + 1) // groups


@device
def groups_of_few(panels, rows):
    """`groups_for` panels that are packed by themselves: with many rows each is a group, as there is no gain."""
    # In groups, which are fewer items for two workers, a GRU (100, 32, 128, 256) took 1.02 to 1.06 of the time.
    return groups_for(panels) if rows <= 2 else panels


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
