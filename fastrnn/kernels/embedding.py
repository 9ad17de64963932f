"""Rows of a table by index, and the gradient of that; and rows of sequences from one layout into another.

    y[n, :] = weight[ids[n], :]        dweight[ids[n], :] += dy[n, :]

The gradient is shared among the workers by columns, not by n: each element is added to by one worker, in
ascending n, so that its bits do not depend on how many there are. Nobody checks an index here.
"""

from .._jit import kernel
from ..simd.sync import turns
from ..simd.vector import fold, lanes, lanes_of, load, pointwise, store, zero


@pointwise
def copy_row(to, to_off, source, source_off, columns):
    """to, source (columns): written, read."""

    def body(k, left):
        store(to, to_off + k, load(source, source_off + k, left), left)
        return ()

    fold(columns, lanes(to), (), body)


@pointwise
def clear_row(to, to_off, columns):
    """to (columns), written: zeros."""

    def body(k, left):
        store(to, to_off + k, zero(to), left)
        return ()

    fold(columns, lanes(to), (), body)


@pointwise
def add_row(to, to_off, source, source_off, columns):
    """to, source (columns): accumulated, read."""

    def body(k, left):
        store(to, to_off + k, load(to, to_off + k, left) + load(source, source_off + k, left), left)
        return ()

    fold(columns, lanes(to), (), body)


@kernel
def gather(worker, workers, tickets, rows, columns, pieces, ids, weight, y):
    """y[n, :] = weight[ids[n], :], or zeros where ids[n] is -1

    pieces : into how many parts the rows are divided for the workers
    ids : (rows,) int64, from -1 to V - 1, read
    weight : (V, columns), read
    y : (rows, columns), written
    """
    for _, item in turns(tickets, 0, worker, workers, 1, pieces):
        for n in range(rows * item // pieces, rows * (item + 1) // pieces):
            if ids[n] >= 0:
                copy_row(y, n * columns, weight, ids[n] * columns, columns)
            else:
                clear_row(y, n * columns, columns)


@kernel
def scatter_add(worker, workers, tickets, rows, columns, pieces, ids, dy, dweight):
    """dweight[ids[n], :] += dy[n, :], in ascending n.

    pieces : into how many parts the columns are divided for the workers, each a number of whole vectors
    ids : (rows,) int64, from 0 to V - 1, read
    dy : (rows, columns), read
    dweight : (V, columns), accumulated
    """
    lane = lanes_of(dy)
    vectors = (columns + lane - 1) // lane
    for _, item in turns(tickets, 0, worker, workers, 1, pieces):
        first = vectors * item // pieces * lane
        width = min(vectors * (item + 1) // pieces * lane, columns) - first
        for n in range(rows):
            add_row(dweight, ids[n] * columns + first, dy, n * columns + first, width)
