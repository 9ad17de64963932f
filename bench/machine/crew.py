"""One compiled function on several threads at once, each with arrays of its own."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TARGET = 0.01  # seconds in one call: waking a thread is then noise


class Crew:
    """`run(*args, repeats)` for each of `shares`, side by side; `repeats` chosen so that a call takes TARGET.

    `run` must release the GIL. Each share has a thread bound to a processor of its own: left to the scheduler, two
    threads that are woken for 0.01 s often stayed on one processor for all of it, and the machine seemed half as fast.
    """

    def __init__(self, run: Callable[..., Any], shares: list[tuple[Any, ...]]) -> None:
        self._run, self._shares = run, shares
        self._pools = [ThreadPoolExecutor(1) for _ in shares]
        if hasattr(os, "sched_setaffinity"):
            processors = sorted(os.sched_getaffinity(0))
            for k, pool in enumerate(self._pools):
                pool.submit(os.sched_setaffinity, 0, [processors[k % len(processors)]]).result()
        self.repeats = 1
        self()  # compiles
        # The best of three, and again when it is long enough: a stall or two of the machine, and all calls would be too
        # short to measure anything by.
        while (took := min(self._seconds() for _ in range(3))) < TARGET / 2:
            self.repeats = math.ceil(self.repeats * min(8.0, TARGET / took))

    def _seconds(self) -> float:
        start = time.perf_counter()
        self()
        return time.perf_counter() - start

    def __call__(self) -> None:
        running = [pool.submit(self._run, *share, self.repeats) for pool, share in zip(self._pools, self._shares)]
        for one in running:
            one.result()
