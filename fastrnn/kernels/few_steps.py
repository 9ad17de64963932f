"""Few steps of one layer: what the kernels of quick calls share, whatever the cell. Their arguments are

    worker, workers     as everywhere; helpers come from the post
    tickets     their address
    w           packed weights, read
    layer       from 0, of L; or ~layer, see `which_way`
    pieces      into how many parts the rows are divided for the workers; 1: each step's panels are
    x           (T, B, I), read, if it is the first layer; those above it read the y below. Or (T, B, GH), U x + b, for
                w packed without U
    out         (T + states, L, B, H), of this layer written: y of all steps, h, and an LSTM's c
    h_0         (L, B, H), of this layer read

They return False, and nothing is done, if the shapes do not fit.
"""

from .._jit import SMALL, device, part
from ..simd.gil import let_go, take_back
from ..simd.sync import finish, next_item, wait
from ..simd.vector import lanes_of
from .panels import copy_rows


@device
def step_fits(layer, x, out, h_0):
    """Whether the arrays go together: x (T, B, I), out (T + states, L, B, H), h_0 (L, B, H)."""
    return 0 < len(x) < len(out) and h_0.shape == out[0].shape and x.shape[1] == h_0.shape[1] and layer < len(h_0)


@device
def which_way(layer):
    """Which layer it is, and whether to begin with the last panel: ~layer says so. Calls that do in turns find some of
    the weights in the cache, see `to_and_fro`.
    """
    return (~layer, 1) if layer < 0 else (layer, 0)


@part
def few_steps(worker, workers, tickets, w, layer, turn, pieces, items, x, out, h_0, step_item, given):
    """All steps, after `share`.

    items : of a step: panels, or groups of them
    step_item : computes one of them for some rows, from `given` and (row0, row1, item, t, below, before, y): of
        step t (B, I), what is read; (B, H), the state before it, and that after it, which is written
    """
    steps, batch, size = len(x), x.shape[1], h_0[layer].size
    gil = let_go(worker == 0 and steps * batch * len(w) > SMALL)
    by_rows, by_items = pieces > 1, pieces == 1 and workers > 1
    for n in range(pieces):
        piece = next_item(tickets, worker, workers, n, pieces, 0, 0, by_rows)
        if piece < 0:
            break
        row0, row1 = batch * piece // pieces, batch * (piece + 1) // pieces
        before = h_0[layer]
        for t in range(steps):
            below, y, done = x[t] if layer == 0 else out[t][layer - 1], out[t][layer], 0
            for k in range(items):
                item = next_item(tickets, worker, workers, k, items, t, turn, by_items)
                if item < 0:
                    break
                step_item(row0, row1, item, t, below, before, y, given)
                done += 1
            if by_items:
                finish(tickets, 0, workers, done)
                wait(tickets, 0, worker, workers, (t + 1) * items)
            before = y
        if by_rows:
            finish(tickets, 0, workers, 1)
    if by_rows:
        wait(tickets, 0, worker, workers, pieces)
    lane = lanes_of(w)
    for k in range(0, size if worker == 0 else 0, lane):
        copy_rows(out[steps][layer], k, out[steps - 1][layer], k, size - k)
    take_back(gil)
