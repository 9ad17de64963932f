"""Layer normalisation (Ba, Kiros and Hinton 2016): the rows of inputs, and what the LSTM's and the GRU's steps share.

    a^ = (a - mean) / sqrt(variance + epsilon)         of the n numbers of a row; then a gain, and a bias: LN(a)
    da = (d - mean of d - a^ (mean of d a^)) / sqrt(variance + epsilon)         d: the gradient of a^

In a step the numbers of a row lie in many panels, which different workers compute. Each takes the *partials* of its
blocks: of every row and every 64 bytes of units, with all their gates, the sum and the sum of the squares of the
deviations from the block's own mean. When all are there, whoever needs the mean and the variance of a row puts them
together in the order of the blocks (Chan, Golub and LeVeque 1983). No square is taken of what a common offset makes
large; and what a row's numbers are depends on that row alone, on no width of vector and no number of workers.

    partials     K N B                   kinds of them, blocks of units, rows of a step
    scales       (5 or 7) total          kept for backward: of each row 1 / sqrt(variance + epsilon) of W h'; the means
                                         of d and of d a^, for U x and for W h'; the LSTM's mean and 1 / sqrt(..) of c
    gains        N K block               a block after the other: for U x, for W h', the LSTM's gain and bias for c

The means of d and d a^ come before any da is known: backward too has a phase for them.
"""

from .._jit import kernel, part
from ..simd.sync import turns
from ..simd.vector import (
    accumulate,
    block,
    block_of,
    every,
    fma,
    fold,
    lanes_of,
    load,
    only,
    pointwise,
    sqrt,
    store,
    zero,
)
from .panels import CHUNK, blocks_for

# Vectors of working memory for two numbers of each of CHUNK rows: of the fewest lanes, 4.
STATS = 2 * CHUNK // 4

# Rows of `scales`.
SCALE, OF_X, OF_H, MEAN_C, SCALE_C = 0, 1, 3, 5, 6


# ---------------------------------------------------------------------------------------------------
# Within a pointwise function
# ---------------------------------------------------------------------------------------------------


def sum_of(values):
    """The sum of all lanes of some vectors, in every lane."""
    total = values[0]
    for v in values[1:]:
        total = total + v
    return every(accumulate(total), total)


def store_moments(values, count, inverse, parts, off, apart):
    """The partials of one row and block: values, zero from `count` on, 1 / inverse numbers in all."""
    total = sum_of(values)
    mean = total * inverse
    deviations = [only(v - mean, count) for v in values]
    store(parts, off, total, 1)
    store(parts, off + apart, sum_of([d * d for d in deviations]), 1)


def unnormalised(d, a, scale, mean_d, mean_da):
    """da, from the gradient of a^, `a`."""
    return fma(-a, mean_da, d - mean_d) * scale


# ---------------------------------------------------------------------------------------------------
# Rows of a step
# ---------------------------------------------------------------------------------------------------


@pointwise
def row_moments(
    parts, off, apart, line, blocks, whole, of_whole, last, of_last, of_all, epsilon, stats, at, count
):  # fmt: skip
    """Mean and 1 / sqrt(variance + epsilon) of a vector of rows, written to stats, the latter CHUNK further.

    parts : sums, and `apart` further squares, from `off` on, `line` from block to block, read
    whole, last, of_whole, of_last, of_all : the numbers in a whole block and in the last one, and their inverses; the
        inverse of all
    """

    def add(k, left, total):
        return (total + load(parts, off + k * line, count),)

    def deviate(at, squares, size, inverse):
        d = load(parts, at, count) * inverse - mean
        return fma(d * size, d, squares + load(parts, at + apart, count))

    end = off + (blocks - 1) * line
    (total,) = fold(blocks - 1, 1, (zero(parts),), add)
    mean = (total + load(parts, end, count)) * of_all
    (squares,) = fold(
        blocks - 1, 1, (zero(parts),), lambda k, left, s: (deviate(off + k * line, s, whole, of_whole),)
    )  # fmt: skip
    squares = deviate(end, squares, last, of_last)
    store(stats, at, mean, count)
    store(stats, at + CHUNK, 1.0 / sqrt(squares * of_all + epsilon), count)


@pointwise
def row_mean(parts, off, line, blocks, of_all, to, at, count):
    """The mean of a vector of rows, written: from sums at off, `line` from block to block, read."""

    def add(k, left, total):
        return (total + load(parts, off + k * line, count),)

    (total,) = fold(blocks, 1, (zero(parts),), add)
    store(to, at, total * of_all, count)


@part
def moments(parts, kind, r0, rows, batch, h_size, number, epsilon, stats):
    """stats, written: the means of rows of `number` gates, and from CHUNK on 1 / sqrt(variance + epsilon)."""
    size, blocks = block_of(parts), blocks_for(parts, h_size)
    whole, last = number * size, number * (h_size - (blocks - 1) * size)
    for r in range(0, rows, lanes_of(parts)):
        row_moments(
            parts, kind * blocks * batch + r0 + r, blocks * batch, batch, blocks, 1.0 * whole, 1.0 / whole,
            1.0 * last, 1.0 / last, 1.0 / (number * h_size), epsilon, stats, r, rows - r,
        )  # fmt: skip


@part
def means(parts, kind, r0, rows, batch, h_size, number, to, at):
    """Of one kind of sums, over rows of `number` gates, written to `to` from `at` on."""
    blocks = blocks_for(parts, h_size)
    for r in range(0, rows, lanes_of(parts)):
        row_mean(
            parts, kind * blocks * batch + r0 + r, batch, blocks, 1.0 / (number * h_size), to, at + r, rows - r
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------
# Whole rows
# ---------------------------------------------------------------------------------------------------


@pointwise
def normalise_row(a, off, columns, inverse, epsilon, scale, at):
    """a (columns): read, overwritten by a^. scale: 1 / sqrt(variance + epsilon), written."""
    n = block(a)
    (total,) = fold(columns, n, (zero(a, n),), lambda k, left, s: (s + load(a, off + k, left, n),))
    mean = sum_of([total]) * inverse

    def square(k, left, s):
        d = load(a, off + k, left, n) - mean
        d = d if left is None else only(d, left)
        return (fma(d, d, s),)

    def write(k, left):
        store(a, off + k, (load(a, off + k, left, n) - mean) * factor, left)
        return ()

    (squares,) = fold(columns, n, (zero(a, n),), square)
    factor = 1.0 / sqrt(sum_of([squares]) * inverse + epsilon)
    fold(columns, n, (), write)
    store(scale, at, factor, 1)


@kernel
def normalise(worker, workers, tickets, rows, columns, pieces, epsilon, a, scale):
    """Every row to mean 0 and variance 1.

    a : (rows, columns), read, overwritten
    scale : (rows,), what each was multiplied by, written
    pieces : into how many parts the rows are divided for the workers
    """
    for _, item in turns(tickets, 0, worker, workers, 1, pieces):
        for r in range(rows * item // pieces, rows * (item + 1) // pieces):
            normalise_row(a, r * columns, columns, 1.0 / columns, epsilon, scale, r)
