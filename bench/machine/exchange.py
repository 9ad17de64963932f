"""How soon one processor sees what another one has written: a word goes back and forth between two threads.

A virtual machine's processors may be neighbours one moment and far apart the next. The word then takes several times as
long, and so does all work that threads divide; neither the peak nor the bandwidths show that.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..cases import Case
from ..job import Job, Unsupported
from .crew import Crew

VERSIONS = ("numba",)
LINE = 8  # words of a cache line
_threads = 1


def start(threads: int) -> None:
    global _threads
    _threads = threads


def make(case: Case) -> Job:
    if _threads < 2:
        raise Unsupported("one thread")
    return Exchange()


@cache
def kernel() -> Any:
    """Compiled once; writes the next number `repeats` times, each after the other thread has written one."""
    import numba

    from fastrnn.simd.atomic import address, atomic_load, pause, put

    @numba.njit(nogil=True)
    def run(words: Any, turn: int, own: Any, repeats: int) -> None:
        at, seen = address(words), own[0]
        for _ in range(repeats):
            while atomic_load(at, 0) != seen:
                pause()
            put(at, 0, seen + 1)
            seen += 2
        own[0] = seen

    return run


class Exchange(Job):
    how = "a word back and forth between two threads"

    def __init__(self) -> None:
        words = np.zeros(2 * LINE, np.int64)
        words = words[-words.ctypes.data // LINE % LINE :]
        self.crew = Crew(kernel(), [(words, turn, np.array([turn])) for turn in (0, 1)])
        #: numbers that were written in one call
        self.work = 2.0 * self.crew.repeats

    def call(self) -> None:
        self.crew()
