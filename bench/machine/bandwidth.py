"""Bytes read per second from as much data as a case's weights are, each thread its own part, again and again.

So it is the bandwidth of the cache level in which those weights fit, whatever this machine's caches are like;
of memory for the pseudo-case MEMORY.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..cases import Case
from ..job import Job
from ..work import resident_bytes
from .crew import Crew

VERSIONS = ("numba",)
MEMORY = Case("memory", "lstm", 1, 1, 1, 1)
MEMORY_BYTES = 1 << 28
STREAMS = 8  # vectors added up side by side, to cover the latency of the addition
_threads = 1


def start(threads: int) -> None:
    global _threads
    _threads = threads


def make(case: Case) -> Job:
    return Bandwidth(MEMORY_BYTES if case.kind == MEMORY.kind else resident_bytes(case))


@cache
def kernel() -> Any:
    """Compiled once; repeats * the sum of an array whose size is a multiple of what is read at a time."""
    import numba

    from fastrnn.simd.target import lanes
    from fastrnn.simd.vector import accumulate, fold, load, pointwise, zero

    width = lanes("float32")

    @pointwise
    def total(a: Any, count: Any) -> float:
        def body(k: Any, left: Any, *sums: Any) -> Any:
            return tuple(s + load(a, k + n * width) for n, s in enumerate(sums)) if left is None else sums

        sums = fold(count, STREAMS * width, (zero(a),) * STREAMS, body)
        while len(sums) > 1:
            sums = tuple(x + y for x, y in zip(sums[::2], sums[1::2]))
        return accumulate(sums[0])

    @numba.njit(nogil=True)
    def run(a: Any, out: Any, repeats: int) -> None:
        for _ in range(repeats):
            out[0] += total(a, a.size)

    return run


class Bandwidth(Job):
    how = "vectors loaded and added up"

    def __init__(self, size: int) -> None:
        from fastrnn.simd.target import lanes

        line = STREAMS * lanes("float32")
        count = max(4, size // _threads // 4 // line) * line
        shares = []
        for _ in range(_threads):
            raw = np.full(count + 16, 1e-9, np.float32)  # written: pages of zeros may all be the same one
            start = -raw.ctypes.data % 64 // 4  # on a cache line
            shares.append((raw[start : start + count], np.zeros(1, np.float32)))
        self.crew = Crew(kernel(), shares)
        #: bytes read in one call
        self.work = 4.0 * count * self.crew.repeats * _threads

    def call(self) -> None:
        self.crew()
