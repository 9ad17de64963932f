"""Where the rows of every step lie, for sequences of one length or of many, forward and in reverse.

Recurrent layers make a layout for each call; kernels/panels.py says what its arrays mean. Sequences of different
lengths are put longest first, their steps one after the other without gaps, so that a step is a run of rows and nothing
past an end is computed; the reverse direction reads a copy in which each row is turned within its own length.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from . import buffers
from .products import NONE, gather


class Direction(NamedTuple):
    """The steps of one direction."""

    batch: int
    slots: int  # rows of states: those of all steps and the initial ones
    at: np.ndarray  # (T + 1,)
    counts: np.ndarray  # (T + 1,)
    shift: int
    previous: int  # a row's previous state lies so many rows after its input, if `previous_at` is empty
    previous_at: np.ndarray  # (total,) where a row's previous state lies, or empty
    turned: np.ndarray | None  # (total,) for each row the row of the layout that it is; None: they are the same
    start: slice  # where the initial states lie
    ends: slice | np.ndarray  # where the final states lie
    sizes: np.ndarray | None = None  # (B,) how many steps each row has, longest first; None: all
    order: int = -1  # how the rows of x follow each other in backward: from the last one down, or 1: from the first up

    @property
    def steps(self) -> int:
        return len(self.at) - 1

    def cuts(self, count: int) -> list[tuple[int, int]]:
        """The steps in `count` segments, as equal as can be, each from its first step to before its last; fewer
        segments if there are fewer steps.
        """
        count = max(1, min(count, self.steps))
        ends = [self.steps * k // count for k in range(count + 1)]
        return list(pairwise(ends))

    def segment(self, first: int, last: int) -> tuple[Direction, int, int]:
        """Some of the steps as if they were all, for the rows that have not ended before; and the slot and the row of
        x from which on these are counted: both lie in one piece.
        """
        at, counts = self.at[first : last + 1], self.counts[first : last + 1].copy()
        counts[-1] = 0
        batch, total = int(counts[0]) if first else self.batch, int(counts.sum())
        slot = int(min(at[0], at[-1]))
        row = int(min(at[1], at[-1])) - self.shift if total else 0
        slots = max(int(at[0]) + batch, int(at[-1]) + (int(counts[-2]) if total else 0)) - slot
        at, moved = at - slot, row - slot
        begin = slice(int(at[0]), int(at[0]) + batch)
        ends: slice | np.ndarray = slice(int(at[-1]), int(at[-1]) + batch)
        sizes, index, previous = self.sizes, self.previous_at, self.previous + moved
        if sizes is not None:
            sizes = np.clip(sizes[:batch] - first, 0, last - first)
            ends = at[sizes] + np.arange(batch)
            index, previous = index[row : row + total] - slot, 0
        own = Direction(
            batch, slots, at, counts, self.shift + moved, previous, index, None, begin, ends, sizes, self.order
        )
        return own, slot, row

    def bounds(self, pieces: int) -> np.ndarray:
        """(pieces + 1,) rows that divide the work of all steps into equal parts."""
        if self.sizes is None or pieces == 1:
            return _equal(self.batch, pieces)
        done = np.cumsum(self.sizes)
        inner = np.searchsorted(done, done[-1] * np.arange(1, pieces) / pieces)
        return np.concatenate([[0], inner, [self.batch]])


class Layout(NamedTuple):
    """All directions, and how to get there and back."""

    steps: int
    batch: int
    total: int  # rows in all steps
    directions: tuple[Direction, ...]
    order: np.ndarray | None  # (B,) the rows, longest first; None: as they are
    place: np.ndarray | None  # (B,) where each row comes in that order
    flat: np.ndarray | None  # (total,) where each row is in (T, B); None: as they are
    back: np.ndarray | None  # (T B,) which row each of (T, B) is, or -1

    def pack(self, a: np.ndarray) -> np.ndarray:
        """(T, B, ...) -> (total, ...)"""
        a = a.reshape(self.steps * self.batch, *a.shape[2:])
        return a if self.flat is None else take(a, self.flat)

    def unpack(self, a: np.ndarray) -> np.ndarray:
        """(total, ...) -> (T, B, ...), zeros past the ends."""
        if self.back is not None:
            a = gather(a, self.back)
        return a.reshape(self.steps, self.batch, *a.shape[1:])

    def times(self, a: np.ndarray, mask: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """a (total, I) with each of its rows times that of its sequence in mask (B, I), in the caller's order."""
        out = buffers.empty(a.shape, a.dtype) if out is None else out
        if self.flat is None:
            whole = (self.steps, *mask.shape)
            np.multiply(a.reshape(whole), mask, out=out.reshape(whole))
        else:
            np.multiply(a, mask[self.flat % self.batch], out=out)
        return out

    def sort(self, state: np.ndarray) -> np.ndarray:
        """(L, B, H) with its rows in the layout's order."""
        return state if self.order is None else state.take(self.order, axis=1)  # C-contiguous, as an index is not

    def unsort(self, state: np.ndarray) -> np.ndarray:
        """(L, B, H) with its rows back in the caller's order."""
        return state if self.place is None else state.take(self.place, axis=1)


def take(a: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """a[rows], for numbers in rows or for indices."""
    return a.take(rows) if a.ndim == 1 else gather(a, rows)


@lru_cache(maxsize=64)
def _equal(batch: int, pieces: int) -> np.ndarray:
    return np.arange(pieces + 1) * batch // pieces


@lru_cache(maxsize=64)
def uniform(steps: int, batch: int, directions: int) -> Layout:
    """Every row has all steps."""
    counts = np.full(steps + 1, batch)
    counts[steps] = 0
    slots, slot = (steps + directions) * batch, np.arange(steps + 1) * batch
    first, last = slice(0, batch), slice(steps * batch, (steps + 1) * batch)
    both = [Direction(batch, slots, slot, counts, batch, 0, NONE, None, first, last)]
    if directions == 2:  # from the slot above the last step's down to the slot of the first
        down = np.ascontiguousarray(slot[::-1]) + batch
        above, low = slice((steps + 1) * batch, (steps + 2) * batch), slice(batch, 2 * batch)
        both.append(Direction(batch, slots, down, counts, batch, 2 * batch, NONE, None, above, low, order=1))
    return Layout(steps, batch, steps * batch, tuple(both), None, None, None, None)


def ragged(steps: int, lengths: np.ndarray, directions: int) -> Layout:
    """Row b has the first lengths[b] steps."""
    batch = len(lengths)
    order = np.argsort(-lengths, kind="stable")
    sizes = lengths[order]
    longest = int(sizes[0])
    counts = batch - np.bincount(sizes).cumsum()
    starts = np.concatenate([[0], np.cumsum(counts[:-1])])  # of each step, and the total
    total = int(starts[-1])
    at = np.concatenate([[0], batch + starts[:-1]])
    step = np.repeat(np.arange(longest), counts[:-1])
    rank = np.arange(total) - starts[step]
    index = at[step] + rank
    start, ends = slice(0, batch), at[sizes] + np.arange(batch)
    both = [Direction(batch, batch + total, at, counts, batch, 0, index, None, start, ends, sizes)]
    if directions == 2:
        both.append(both[0]._replace(turned=starts[sizes[rank] - 1 - step] + rank))
    flat = step * batch + order[rank]
    place, back = np.empty_like(order), np.full(steps * batch, -1)
    place[order], back[flat] = np.arange(batch), np.arange(total)
    return Layout(steps, batch, total, tuple(both), order, place, flat, back)
