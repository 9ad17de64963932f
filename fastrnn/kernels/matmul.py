"""Products of matrices, in whole batches: dx, dW, and the linear layer, all on the one tile.

    product    out = b + A B            B packed in panels of COLS vectors, A addressed as the tile allows
    gradient   dM += A^T X              the sum runs over all T B rows, in blocks

Both give each output element one chain of multiply-adds in ascending order of the summed index, whoever computes it;
`gradient` in descending order on request: backward meets the steps from the last to the first, and a sum over rows that
come in several calls is the same chain as over all of them only if every call takes its rows in the order of the calls.
"""

from .._jit import SMALL, kernel, part
from ..simd.sync import turns
from ..simd.target import COLS, REGISTERS, ROWS
from ..simd.tile import AT_ONCE, SHARED, tiles_for, turned
from ..simd.vector import block, block_of, lanes, lanes_of, pointwise, prefetch, stack
from .panels import (
    CHUNK,
    WORK,
    add_in,
    add_out,
    add_rows,
    copy_in,
    copy_line,
    copy_out,
    pack_rows,
    pack_transposed,
    tiles,
)

# Rows summed at a time by `gradient`: a strip of X, 4W columns of it, is then 64 or 128 KiB, in the second-level cache,
# beside the weights' gradient. (96 to 256 rows, whose strip fits nearer, were as fast: the gradient comes and goes more
# often then.)
BLOCK = 512

# And for one gate of a panel. Its units lie beside each other, and from row to row in a tape it is four lines: more
# rows than these, and none is left in the first-level cache when the next tile reads them again. With 256-bit vectors
# 0.93 to 0.95 of the time of 512 (96 to 256 rows: 0.94 to 0.97); with wider ones 0.99 to 1.02.
NEAREST = 128 if REGISTERS == 16 else BLOCK

# How many rows of X before it is copied a row is fetched: with that, and without masks, the gradient of
# (50, 50, 128, 128) took 0.92 of the time on Zen 3, of (60, 32, 293, 128) 0.94, of (25, 64, 512, 512) 1.0.
ROWS_AHEAD = 8


@part
def product_item(
    row0, row1, first, last, columns, add, a, r_stride, seg, seg_stride, n_seg, packed, bias, out, c
):  # fmt: skip
    """`product` for some rows and the vectors of columns from `first` to before `last`."""
    lane = lanes_of(packed)
    for r0 in range(row0, row1, CHUNK):
        count = min(CHUNK, row1 - r0)
        # All columns for these rows: `a` comes from memory once and from the second-level cache after that.
        for v in range(first, last, COLS):
            cols = min(COLS, last - v)
            stride = cols * lane
            for r in range(count):
                for k in range(cols):
                    column = (v + k) * lane
                    copy_in(c, r * stride + k * lane, bias, column, len(bias) - column)
            b_at, left = v * lane * seg * n_seg, r0 * r_stride
            tiles(c, 0, stride, count, cols, a, left, r_stride, seg, seg_stride, n_seg, packed, b_at, SHARED)
            for r in range(count):
                for k in range(cols):
                    column = (v + k) * lane
                    to = (r0 + r) * columns + column
                    if add:
                        add_out(out, to, c, r * stride + k * lane, columns - column)
                    else:
                        copy_out(out, to, c, r * stride + k * lane, columns - column)


@kernel
def product(
    worker, workers, tickets, rows, columns, pieces, strips, add,
    a, r_stride, seg, seg_stride, n_seg, packed, bias, out,
):  # fmt: skip
    """out[r, :] = bias + sum over k of a[r, k] * B[k, :], or with `add` out[r, :] += (the same)

    a : element (r, k) at r * r_stride + k // seg * seg_stride + k % seg, read; seg * n_seg values of k
    packed : B, for every COLS * W columns (seg * n_seg, line), read
    bias : (columns,) or empty, read
    out : (rows, columns), written or accumulated
    pieces, strips : into how many parts the rows are divided for the workers, and the panels of B
    """
    lane = lanes_of(packed)
    vectors = (columns + lane - 1) // lane
    panels = (vectors + COLS - 1) // COLS
    c = stack(packed, WORK)
    for _, item in turns(tickets, 0, worker, workers, 1, pieces * strips):
        piece, strip = item // strips, item % strips
        product_item(
            rows * piece // pieces, rows * (piece + 1) // pieces,
            panels * strip // strips * COLS, min(vectors, panels * (strip + 1) // strips * COLS),
            columns, add, a, r_stride, seg, seg_stride, n_seg, packed, bias, out, c,
        )  # fmt: skip


@kernel
def product_step(packed, bias, x, out):
    """out = bias + x B for one step, for the caller alone. False, and nothing done, if the shapes do not fit or the
    work is not small.

    packed : B, (I, O), read; bias : (O,) or empty, read
    x : (1, B, I), read
    out : (1, B, O), written
    """
    rows, depth, columns = x.shape[1], x.shape[2], out.shape[2]
    lane = lanes_of(packed)
    vectors = (columns + lane - 1) // lane
    if len(x) != 1 or len(packed) != vectors * lane * depth or rows * len(packed) > SMALL:
        return False
    c = stack(packed, WORK)
    product_item(0, rows, 0, vectors, columns, False, x[0], depth, depth, 0, 1, packed, bias, out[0], c)
    return True


@kernel
def gradient(
    worker, workers, tickets, rows, columns, pieces, beside, order,
    a, panel_stride, k_stride, gates, turn, width, height, x, x_line, index, out, scratch,
):  # fmt: skip
    """out[(g + turn) % gates * height + j, :] += sum over n of a[n, g, j] * x[n, :]

    a : element (n, g, j) at j // width * panel_stride + n * k_stride + g * width + j % width, read: the panels of a
        tape, or row-major with one gate
    x : row n at n * x_line, or at index[n] * x_line, `columns` of it, read
    index : (rows,) int64, or empty, read
    out : (gates * height, columns), accumulated
    pieces : into how many parts the panels are divided for the workers
    beside : how many strips of x, of 4W columns each, are in scratch together
    order : 1 for ascending n, -1 for descending
    scratch : (workers, beside * BLOCK + ROWS, 4W), overwritten
    """
    lane = lanes_of(x)
    vectors = (columns + lane - 1) // lane
    panels = (height + width - 1) // width
    line = COLS * lane
    strip, whole = BLOCK * line, beside * COLS
    own = worker * (beside * strip + ROWS * line)
    items = (vectors + whole - 1) // whole * pieces
    for step, item in turns(tickets, 0, worker, workers, (rows + BLOCK - 1) // BLOCK, items):
        depth = min(BLOCK, rows - step * BLOCK)
        n0 = step * BLOCK if order > 0 else rows - 1 - step * BLOCK
        begin, piece = item // pieces * whole, item % pieces
        end = min(vectors, begin + whole)
        # Read in place, at the stride of a whole row of x, it is 15 % slower; and this pads the end with zeros.
        for first in range(begin, end, COLS):
            to, stride = own + (first - begin) * BLOCK * lane, min(COLS, end - first) * lane
            full = first * lane + line <= columns
            for k in range(depth):
                n = n0 + k * order
                if len(index):
                    n = index[n]
                if full:
                    fetch_line(x, (n + ROWS_AHEAD * order) * x_line + first * lane)
                    copy_line(scratch, to + k * stride, x, n * x_line + first * lane)
                    continue
                for j in range(0, stride, lane):
                    column = first * lane + j
                    copy_in(scratch, to + k * stride + j, x, n * x_line + column, columns - column)
        for panel in range(panels * piece // pieces, panels * (piece + 1) // pieces):
            units = min(width, height - panel * width)
            for g in range(gates):
                left = panel * panel_stride + n0 * k_stride + g * width
                row = (g + turn) % gates * height + panel * width
                # Where the next tile is, whose lines are fetched meanwhile (7 % of this kernel at H = 1024).
                below = (g + 1 + turn) % gates * height + (panel + (g + 1) // gates) * width
                for first in range(begin, end, COLS):
                    to, cols = own + (first - begin) * BLOCK * lane, min(COLS, end - first)
                    after = row * columns + (first + COLS) * lane
                    if first + COLS >= end:
                        after = below * columns + begin * lane
                    for k in range(0, depth, NEAREST):
                        next_a = left + (k + NEAREST) * k_stride * order
                        if k + NEAREST >= depth:
                            next_a = left
                            if first + COLS >= end:
                                next_a += width if g + 1 < gates else panel_stride - (gates - 1) * width
                        gradient_rows(
                            units, first, cols, min(NEAREST, depth - k), columns, a, left + k * k_stride * order,
                            k_stride * order, scratch, to + k * cols * lane, out, row, after, own + beside * strip,
                            next_a,
                        )  # fmt: skip


@pointwise
def fetch_line(x, at):
    """Four vectors of `x`, to be read soon."""
    for k in range(0, COLS * lanes(x), block(x)):
        prefetch(x, at + k, write=False)


@pointwise
def prefetch_tile(out, at, columns):
    """The largest tile of `out`, to be written soon."""
    for r in range(ROWS):
        for k in range(0, COLS * lanes(out), block(out)):
            prefetch(out, at + columns * r + k)


@part
def gradient_rows(units, first, cols, depth, columns, a, left, k_stride, scratch, strip, out, row, after, tail, next_a):
    """The rows of `gradient` that belong to one gate of one panel, in one strip of columns.

    after, next_a : which elements of `out` and `a` come next
    """
    lane = lanes_of(scratch)
    column, stride = first * lane, cols * lane
    blocks = tiles_for(units, cols)
    for q in range(blocks):
        r0 = units * q // blocks
        r = units * (q + 1) // blocks - r0
        at = (row + r0) * columns + column
        coming = next_a - left - r0 + q * (depth // AT_ONCE) * k_stride
        if column + stride <= columns:
            last = q == blocks - 1
            prefetch_tile(out, after if last else at + r * columns, columns)
            turned(out, at, columns, r, cols, a, left + r0, k_stride, depth, scratch, strip, coming)
            continue
        for j in range(r):
            for k in range(0, stride, lane):
                copy_in(scratch, tail + j * stride + k, out, at + j * columns + k, columns - column - k)
        turned(scratch, tail, stride, r, cols, a, left + r0, k_stride, depth, scratch, strip, coming)
        for j in range(r):
            for k in range(0, stride, lane):
                copy_out(out, at + j * columns + k, scratch, tail + j * stride + k, columns - column - k)


@kernel
def pack(worker, workers, tickets, rows, columns, transposed, source, packed):
    """B for `product`: for every COLS * W of its columns, its rows as lines.

    source : (rows, columns) of B, or with `transposed` (columns, rows), read
    packed : written
    """
    lane = lanes_of(packed)
    vectors = (columns + lane - 1) // lane
    for _, item in turns(tickets, 0, worker, workers, 1, (vectors + COLS - 1) // COLS):
        column = item * COLS * lane
        line = min(COLS * lane, vectors * lane - column)
        if transposed:
            used = min(line, columns - column)
            pack_transposed(packed, column * rows, line, source, column, used, rows, line)
        else:
            pack_rows(packed, column * rows, line, source, 0, rows, columns, column, rows)


@kernel
def pack_tape(worker, workers, tickets, h_size, columns, vectors, gates, turn, source, packed):
    """B for products whose left operand is a tape: its rows as they lie there, its columns in panels.

    vectors : of columns, zeros after the last
    source : (gates H, columns), of gate (g + turn) % gates where g is in the tape, read
    packed : for every COLS * W columns (N, gates blocks, line), written
    """
    lane, size = lanes_of(packed), block_of(packed)
    blocks = (h_size + size - 1) // size
    for _, item in turns(tickets, 0, worker, workers, 1, (vectors + COLS - 1) // COLS * blocks):
        first, n = item // blocks * COLS, item % blocks
        stride = min(COLS, vectors - first) * lane
        unit = n * size
        rows = min(size, h_size - unit)
        at = (first * lane * blocks + n * stride) * gates * size
        for g in range(gates):
            to, row = at + g * size * stride, (g + turn) % gates * h_size + unit
            pack_rows(packed, to, stride, source, row, rows, columns, first * lane, size)


@kernel
def column_sums(worker, workers, tickets, rows, columns, pieces, order, a, out):
    """out[j] += sum over n of a[n, j], in ascending n, or with order -1 in descending n.

    a : (rows, columns), read; out : (columns,), accumulated
    pieces : into how many parts the columns are divided for the workers
    """
    # Whole vectors are stored without a mask: what was stored with one cannot be loaded again before it is in the
    # cache, and that took ten times as long (6400 rows of 512 columns 1.8 ms; one column of vectors after the other,
    # the sum on the stack, 0.65; so 0.18, or 1.1 by two workers if the rows come from memory, instead of 2.3).
    lane = lanes_of(a)
    vectors, whole = (columns + lane - 1) // lane, columns // lane * lane
    for _, piece in turns(tickets, 0, worker, workers, 1, pieces):
        first, last = vectors * piece // pieces * lane, vectors * (piece + 1) // pieces * lane
        for k in range(rows):
            row = (k if order > 0 else rows - 1 - k) * columns
            for column in range(first, min(last, whole), lane):
                add_in(out, column, a, row + column, lane)
            if last > whole:
                add_rows(out, whole, a, row + whole, columns - whole)
