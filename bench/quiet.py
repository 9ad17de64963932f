"""Waiting until this process uses no processor any more.

Thread pools spin for a while after their last call, up to a tenth of a second, so that the next one finds
them awake. A library that is timed right after another one would compete with that.
"""

from __future__ import annotations

import time

LONGEST = 0.3  # seconds
LOOK = 0.001


def settle() -> None:
    """Returns when all threads of this process rest."""
    end = time.perf_counter() + LONGEST
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(LOOK)
        if time.process_time() - before < LOOK / 5:
            return
