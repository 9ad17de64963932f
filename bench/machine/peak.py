"""Multiply-adds per second: the register-tile product of fastrnn.simd on operands that stay in the
first-level cache.

It is the same instruction stream as the kernels', without anything around it: no loads from further away, no
gates, no threads that wait for each other. A library that does better than this has found faster
instructions.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..cases import Case
from ..job import Job
from .crew import Crew

VERSIONS = ("numba",)
DEPTH = 96  # values of the summed index: 24 KiB of one operand
_threads = 1


def start(threads: int) -> None:
    global _threads
    _threads = threads


def make(case: Case) -> Job:
    return Peak(case.dtype)


@cache
def kernel() -> Any:
    """Compiled once for each type; repeats * one full tile."""
    import numba

    from fastrnn.simd.target import COLS, ROWS
    from fastrnn.simd.tile import SHARED, tile

    multiply: Any = tile

    @numba.njit(nogil=True)
    def run(c: Any, a: Any, b: Any, line: int, repeats: int) -> None:
        for _ in range(repeats):
            multiply(c, 0, line, ROWS, COLS, a, 0, DEPTH, DEPTH, 0, 1, 1, b, 0, line, SHARED)

    return run


class Peak(Job):
    how = "register tiles on data in the first-level cache"

    def __init__(self, dtype: str) -> None:
        from fastrnn.simd.target import COLS, ROWS, lanes

        line = COLS * lanes(dtype)
        rng = np.random.default_rng(0)

        def share() -> tuple[Any, ...]:
            a, b = rng.standard_normal(ROWS * DEPTH), rng.standard_normal(DEPTH * line)
            return np.zeros(ROWS * line, dtype), a.astype(dtype), b.astype(dtype), line

        self.crew = Crew(kernel(), [share() for _ in range(_threads)])
        #: floating-point operations in one call
        self.work = 2.0 * ROWS * line * DEPTH * self.crew.repeats * _threads

    def call(self) -> None:
        self.crew()
