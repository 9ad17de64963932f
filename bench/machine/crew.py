"""One compiled function on several threads at once, each with arrays of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TARGET = 0.01  # seconds in one call: waking a thread is then noise


class Crew:
    """`run(*args, repeats)` for each of `shares`, side by side; `repeats` chosen so that a call takes TARGET.

    `run` must release the GIL.
    """

    def __init__(self, run: Callable[..., Any], shares: list[tuple[Any, ...]]) -> None:
        self._run, self._shares = run, shares
        self._pool = ThreadPoolExecutor(max(1, len(shares) - 1))
        self.repeats = 1
        self()  # compiles
        # The best of three: one stall of the machine, and all calls would be too short to measure anything by.
        while (took := min(self._seconds() for _ in range(3))) < TARGET / 4:
            self.repeats *= 2
        self.repeats = max(1, round(self.repeats * TARGET / took))

    def _seconds(self) -> float:
        start = time.perf_counter()
        self()
        return time.perf_counter() - start

    def __call__(self) -> None:
        others = [self._pool.submit(self._run, *share, self.repeats) for share in self._shares[1:]]
        self._run(*self._shares[0], self.repeats)
        for other in others:
            other.result()
