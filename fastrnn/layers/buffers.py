"""Memory for large arrays: on huge pages, and used again once nobody refers to it any more.

Both were measured on a training step at (T, B, I, H) = (100, 64, 256, 512). Weights on pages of 4 KiB overflow the
table of page addresses that a core keeps, and the forward pass ran at 0.6 of its speed. Fresh pages are zeroed and
mapped by the system on first touch; a step allocates 100 MB, and took 1.1 times as long without reuse.

And one of a megabyte, from the system's allocator, cost a step of 1000 streams with H = 128 650 us in faults of pages
of 4 KiB, as much as its arithmetic, whenever the allocator had given the last one back.

An array from here is an ordinary array. When the last reference to it and its views is gone, its memory goes to a list
of blocks of one size, from which the next `empty` of about that size takes; all lists hold at most about KEEP bytes.
"""

from __future__ import annotations

import math
import mmap
from collections import deque
from itertools import count
from typing import Any, NamedTuple

import numpy as np

SMALLEST = 1 << 17  # bytes; below, the allocator's own reuse is as good
LARGE = 1 << 20  # bytes; from here on, huge pages
KEEP = 1 << 28
HUGE = 1 << 21
LINE = 64
EVERY = 64  # so many arrays are taken between looks at how much is kept


class Memory(NamedTuple):
    """One block."""

    owner: Any  # not an array: NumPy would pass over the `_Block` between it and an array on it
    start: int
    size: int


_free: dict[int, deque[Memory]] = {}  # by size
_takes = count(1)


class _Block(np.ndarray):
    """What holds a block for an array, whose base it is, and for all views of that; when it dies, the block is free. (A
    plain object with an `__array_interface__` took twice as long to make.)
    """

    memory: Memory | None = None  # of a view of a block, or one that was interrupted: it has nothing to give back

    def __del__(self) -> None:
        if self.memory is None or _free is None:  # or the interpreter is going away
            return
        # May run at any moment in any thread, in the middle of `empty` too: only single, atomic operations here.
        _free.setdefault(self.memory.size, deque()).append(self.memory)


def empty(shape: int | tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """As `np.empty`."""
    shape = shape if isinstance(shape, tuple) else (shape,)
    size = math.prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if size < SMALLEST else np.ndarray(shape, dtype, _block(size))


def aligned(size: int, dtype: np.dtype) -> np.ndarray:
    """As `empty`, and on a cache line whatever the size: for what is read again and again, vector by vector.

    Small ones are used again too: one takes 1.5 us, and 2.5 to find a line in fresh memory.
    """
    return np.ndarray(size, dtype, _block(max(LINE, size * dtype.itemsize)))


def _block(size: int) -> _Block:
    memory = _take(size)
    block = _Block(memory.size, np.uint8, memory.owner, memory.start)
    block.memory = memory
    return block


def _take(size: int) -> Memory:
    # Sizes in steps of an eighth to a quarter, so that those that are nearly equal share a list; huge pages are whole.
    step = HUGE if size >= LARGE else 0
    step = max(step, 1 << (size.bit_length() - 3))
    size = -(-size // step) * step
    if next(_takes) % EVERY == 0:
        _drop()
    try:
        return _free[size].pop()
    except (KeyError, IndexError):
        pass
    _drop()
    return _pages(size) if size >= LARGE else _on_line(size)


def _drop() -> None:
    """Gives back what is kept beyond KEEP: of the list that holds most, the oldest."""
    kept = {size: size * len(blocks) for size, blocks in list(_free.items())}
    while sum(kept.values()) > KEEP:
        size = max(kept, key=kept.__getitem__)
        kept[size] -= size
        try:
            _free[size].popleft()
        except IndexError:  # another thread was faster
            kept[size] = 0


def _on_line(size: int) -> Memory:
    return _aligned(bytearray(size + LINE), LINE, size)


def _aligned(owner: Any, to: int, size: int) -> Memory:
    return Memory(owner, -np.frombuffer(owner, np.uint8).ctypes.data % to, size)


def _pages(size: int) -> Memory:
    """`size` fresh bytes that begin and end with a huge page, where the system has such a thing."""
    if not hasattr(mmap, "MAP_PRIVATE"):
        return _on_line(size)
    # Private: a shared mapping, the default, would still be one memory in parent and child after a fork.
    try:
        memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for an array of {size:,} bytes") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            memory.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a kernel without them
            pass
    return _aligned(memory, HUGE, size)
