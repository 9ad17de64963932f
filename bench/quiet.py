"""Waiting until this process uses no processor any more.

Thread pools spin for a while after their last call, up to a tenth of a second, so that the next one finds
them awake. A library that is timed right after another one would compete with that.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

LONGEST = 0.3  # seconds
LOOK = 0.001
TICK = 0.012  # the kernel adds to a running thread's time every 1, 4 or 10 ms
TASKS = Path("/proc/self/task")


def settle() -> None:
    """Returns when all other threads of this process rest, in two looks one after the other."""
    end, quiet = time.perf_counter() + LONGEST, 0
    while quiet < 2 and time.perf_counter() < end:
        quiet = 0 if busy() else quiet + 1


def busy() -> bool:
    """Whether a thread besides the calling one is running, or waits for nothing but a processor.

    (The processor time of a millisecond does not tell: with ticks of 4 ms most of them showed none while a thread was
    spinning, and whoever came next, after ONNX Runtime, OpenVINO or NumPy, had half of the machine.)
    """
    if not TASKS.exists():
        before = time.process_time()
        time.sleep(TICK)
        return time.process_time() - before > TICK / 5
    time.sleep(LOOK)
    own = str(threading.get_native_id())
    return any(task.name != own and _state(task) == "R" for task in TASKS.iterdir())


def _state(task: Path) -> str:
    """The letter that Linux gives for a thread's state; none if it has ended."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
