"""The process that keeps one processor busy, on request: `python -m bench.spinner`.

It speaks as `worker.py` does: {"do": "busy"} and {"do": "rest"}, each answered with {} and "cpu", the processor time
used so far. It ends with its input, so that nothing is left of it when the benchmark is killed.
"""

from __future__ import annotations

import os
import sys
import threading

from .worker import Answer, own_standard_output, serve


def main() -> None:
    if hasattr(os, "sched_setaffinity"):
        # The last one: JAX, where it has fewer threads than there are processors, is bound to the first ones.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    answers, wanted = own_standard_output(), threading.Event()

    def spin() -> None:
        while wanted.wait():
            for _ in range(10_000):  # a fraction of a millisecond
                pass

    def busy() -> Answer:
        wanted.set()
        return {}

    def rest() -> Answer:
        wanted.clear()
        return {}

    # A thread, as the first one waits for requests; a daemon, as it must not outlive them.
    threading.Thread(target=spin, daemon=True).start()
    serve(sys.stdin, answers, {"busy": busy, "rest": rest}, {})


if __name__ == "__main__":
    main()
