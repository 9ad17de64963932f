"""The process of one library: `python -m bench.worker LIBRARY THREADS [--plant]`.

It reads one JSON request a line on standard input and answers with one JSON line on standard output:

    at the start, unasked             -> {"versions": {...}} or {"missing": why}
    {"do": "prepare", "case": {...}}  -> {"how", "ways", "work"}
    {"do": "check", "way", "path"}    -> {"first": seconds of the first call}; results in the .npz file `path`
    {"do": "tune", "ways": [...]}     -> {"way": the fastest, "number": calls in a sample, "seconds": of one}
                                         "sample": how many seconds a sample is to take at the least
    {"do": "time"}                    -> {"seconds": per call}
    {"do": "memory", "way"}           -> {"before", "peak"}: bytes held before three calls, and the most there ever were

Any answer can be {"unsupported": why} or {"error": what}, and has "cpu", the processor time used so far.
Nothing is timed while the process is still busy with the last sample.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TextIO

import numpy as np

from . import problem
from .cases import Case
from .job import Job, Unsupported
from .quiet import settle

SAMPLE = 0.005  # seconds: shorter calls are timed several at once
SHORT = 0.05  # seconds: before shorter calls comes one that is not timed; the first 2 ms after a pause are 1/8 slower
Answer = dict[str, Any]


def module_of(library: str) -> Any:
    """The file that speaks for a library, or for the machine itself."""
    place = f".machine.{library}" if library in ("peak", "bandwidth", "exchange") else f".peers.with_{library}"
    return importlib.import_module(place, __package__)


class Library:
    """What the requests of one library's process do."""

    def __init__(self, module: Any) -> None:
        self.make = module.make
        self.job: Job = Job()
        self.number, self.short = 1, False

    def prepare(self, case: Answer) -> Answer:
        self.job = Job()  # frees the last one's arrays before the next one's are made
        gc.collect()
        self.job = self.make(Case(**{**case, "groups": tuple(case["groups"])}))
        return {"how": self.job.how, "ways": self.job.ways, "work": getattr(self.job, "work", 0)}

    def check(self, way: str, path: str) -> Answer:
        with self.job.around():
            self.job.use(way)
            start = time.perf_counter()
            self.job.call()
            first = time.perf_counter() - start
            np.savez(path, **self.job.results())  # type: ignore[arg-type]
        settle()
        return {"first": first}

    def tune(self, ways: list[str], sample: float = SAMPLE) -> Answer:
        took: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(3 if len(ways) > 1 else 1):
            for way, seconds in took.items():
                self.job.use(way)
                self._sample(1)  # what a way does only once, it has done
                number = 1
                while (each := self._sample(number)) * number < sample:
                    number *= 2
                seconds.append(each)
        best = min(ways, key=lambda way: statistics.median(took[way]))
        each = statistics.median(took[best])
        if best != ways[-1]:
            self.job.use(best)
            self._sample(1)
        self.number = max(1, math.ceil(sample / each))
        self.short = each < SHORT
        settle()
        return {"way": best, "number": self.number, "seconds": each}

    def time(self) -> Answer:
        if self.short:
            self._sample(1)  # fetches code and data back; one long call does that by itself
        seconds = self._sample(self.number)
        settle()
        return {"seconds": seconds}

    def memory(self, way: str) -> Answer:
        before = held("VmRSS")
        with self.job.around():
            self.job.use(way)
            for _ in range(3):
                self.job.call()
        return {"before": before, "peak": held("VmHWM")}

    def _sample(self, number: int) -> float:
        """Seconds per call, over `number` calls, without the garbage collector."""
        call, turns = self.job.call, range(number)
        gc.disable()
        try:
            with self.job.around():
                start = time.perf_counter()
                for _ in turns:
                    call()
                return (time.perf_counter() - start) / number
        finally:
            gc.enable()


def held(what: str) -> int:
    """Bytes of this process, now (VmRSS) or at the most (VmHWM); the maximum of `getrusage` is the parent's too."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(what))


def serve(requests: TextIO, answers: TextIO, commands: dict[str, Callable[..., Answer]], hello: Answer) -> None:
    """Answers requests until there are no more."""

    def say(answer: Answer) -> None:
        answers.write(json.dumps({**answer, "cpu": time.process_time()}) + "\n")
        answers.flush()

    say(hello)
    for line in requests:
        request = json.loads(line)
        try:
            answer = commands[request.pop("do")](**request)
        except Unsupported as reason:
            answer = {"unsupported": str(reason)}
        except Exception as error:  # the library's own affair: it is reported, the others go on
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(answer)


def own_standard_output() -> TextIO:
    """Standard output for answers alone: whatever a library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return out


def main() -> None:
    library, threads, *options = sys.argv[1:]
    problem.plant = "--plant" in options
    answers = own_standard_output()
    try:
        module = module_of(library)
        further = module.start(int(threads)) or {}
        commands = Library(module)
        hello = {"versions": {name: version_of(name) for name in module.VERSIONS} | further}
    except ImportError as error:
        serve(sys.stdin, answers, {}, {"missing": str(error)})
        return
    names = ("prepare", "check", "tune", "time", "memory")
    serve(sys.stdin, answers, {name: getattr(commands, name) for name in names}, hello)


def version_of(distribution: str) -> str:
    """The installed version, or what the module itself says where it is used from its source tree."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return str(getattr(importlib.import_module(distribution), "__version__", "unknown"))


if __name__ == "__main__":
    main()
