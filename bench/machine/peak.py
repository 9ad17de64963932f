"""Multiply-adds per second: fused ones on numbers that stay in registers, as many at a time as keep every unit busy.

Nothing is loaded, nothing waits. It shares no code with the register tile of fastrnn.simd: measured with that, a tile
at half of the machine's speed was at 100 % of the peak.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastrnn.simd.vector import fma, fold, lanes, load, pointwise, store

from ..cases import Case
from ..job import Job
from .crew import Crew

VERSIONS = ("numba",)
# Chains side by side, each of which waits 4 or 5 cycles for its own last result while two units begin one each; with
# the two operands they fit into 16 registers.
CHAINS = 12
LONG = 64  # multiply-adds of each chain, from one look at the counter to the next
_threads = 1


def start(threads: int) -> None:
    global _threads
    _threads = threads


def make(case: Case) -> Job:
    return Peak(case.dtype)


@pointwise
def chains(sums: Any, numbers: Any, repeats: Any) -> None:
    """CHAINS vectors of `sums`, written: `repeats` x LONG times a vector of `numbers` times them, plus another."""
    w = lanes(sums)
    factor, term = load(numbers, 0), load(numbers, w)

    def body(k: Any, left: Any, *done: Any) -> tuple[Any, ...]:
        for _ in range(LONG):
            done = tuple(fma(one, factor, term) for one in done)
        return done

    for k, one in enumerate(fold(repeats, 1, tuple(load(sums, k * w) for k in range(CHAINS)), body)):
        store(sums, k * w, one)


@cache
def kernel() -> Any:
    """Compiled once for each type."""
    import numba

    several: Any = chains

    @numba.njit(nogil=True)
    def run(sums: Any, numbers: Any, repeats: int) -> None:
        several(sums, numbers, repeats)

    return run


class Peak(Job):
    how = "multiply-adds in registers"

    def __init__(self, dtype: str) -> None:
        width = lanes(np.empty(0, dtype))

        def share() -> tuple[Any, ...]:
            return np.zeros(CHAINS * width, dtype), np.repeat([0.5, 1.0], width).astype(dtype)  # towards 2

        self.crew = Crew(kernel(), [share() for _ in range(_threads)])
        #: floating-point operations in one call
        self.work = 2.0 * CHAINS * LONG * width * self.crew.repeats * _threads

    def call(self) -> None:
        self.crew()
