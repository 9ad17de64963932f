"""One case: everybody's results are verified, then everybody is timed, in turns, a round after the other."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import verify, work
from .cases import CELLS, Case
from .client import Worker, WorkerError
from .machine.about import cpu_seconds
from .machine.bandwidth import MEMORY
from .problem import Problem
from .quiet import settle
from .stats import Samples, Spread, ratio, spread, taken
from .worker import SAMPLE

OURS = "fastrnn"
MACHINE = ("peak", "bandwidth", "exchange")
LEAST, MOST = 7, 31  # rounds; most of a round of short calls is waiting for the threads of the last one to rest
SLOW_ROUNDS = 3  # turns of whoever would take more than its part of the time


def _without_peepholes(case: Case) -> Case | None:
    return replace(case, cell="lstm") if CELLS[case.cell].peephole and not case.model else None


def _without_lengths(case: Case) -> Case | None:
    """As many steps, of rows that are all of one length: to the nearest step of each."""
    lengths = Problem(case).lengths
    return None if lengths is None else replace(case, shortest=0, T=max(1, round(lengths.mean())))


def _in_whole_vectors(case: Case) -> Case | None:
    """Sizes of the group "odd", up to the next multiple of a vector of 64 bytes."""
    n = 64 // np.dtype(case.dtype).itemsize
    whole = replace(case, I=-(-case.I // n) * n, H=-(-case.H // n) * n)
    return whole if "odd" in case.groups and whole != case else None


# Ourselves once more, beside a case, without something: what does it cost?
PLAIN: dict[str, Callable[[Case], Case | None]] = {
    "fastrnn in whole vectors": _in_whole_vectors,
    "fastrnn without peepholes": _without_peepholes,
    "fastrnn without lengths": _without_lengths,
}


@dataclass
class Outcome:
    """What came of one contender."""

    status: str = "timed"  # or: unsupported, refused (its results are wrong), failed
    reason: str = ""
    how: str = ""
    way: str = ""
    work: float = 0.0  # of the machine's own jobs: operations or bytes in one call
    errors: dict[str, Any] = field(default_factory=dict)  # relative to the reference, by result
    first: float = 0.0  # seconds of the first call
    number: int = 0  # calls in one sample
    seconds: list[float | None] = field(default_factory=list)  # per call, one for each round

    def as_json(self) -> dict[str, Any]:
        """All of it; JSON knows no NaN."""
        return {**asdict(self), "errors": {n: e if math.isfinite(e) else None for n, e in self.errors.items()}}


@dataclass
class Row:
    """One case on one number of threads."""

    case: Case
    threads: int
    outcomes: dict[str, Outcome]
    others: float | None = None  # share of all processors that was used by somebody else meanwhile

    # -- derived ------------------------------------------------------------------------------------

    def samples(self, label: str) -> Samples:
        outcome = self.outcomes.get(label)
        return outcome.seconds if outcome is not None else []

    def seconds(self, label: str = OURS) -> Spread | None:
        """Of one call."""
        values = taken(self.samples(label))
        return spread(values) if values else None

    def speedup(self, label: str) -> Spread | None:
        """The contender's time divided by ours."""
        return ratio(self.samples(label), self.samples(OURS))

    def rate(self, label: str) -> float | None:
        """What the machine itself does in a second: operations of `peak`, bytes of `bandwidth`, words of `exchange`."""
        found = self.seconds(label)
        return self.outcomes[label].work / found.median if found else None

    def flops(self, label: str = OURS) -> float | None:
        """Floating-point operations per second."""
        found = self.seconds(label)
        return work.flops(self.case) / found.median if found else None

    def share_of_peak(self, label: str = OURS) -> float | None:
        """Of the machine's multiply-adds in the same rounds."""
        done, peak = self.flops(label), self.rate("peak")
        return done / peak if done and peak else None

    def _limits(self) -> tuple[float, float] | None:
        """Seconds that the multiply-adds take, and reading the weights from the cache level where they fit."""
        peak, bandwidth = self.rate("peak"), self.rate("bandwidth")
        return (work.flops(self.case) / peak, work.traffic(self.case) / bandwidth) if peak and bandwidth else None

    def share_of_limit(self, label: str = OURS) -> tuple[float, str] | None:
        """Of what binds: multiply-adds, or reading the weights."""
        found, limits = self.seconds(label), self._limits()
        if not found or not limits:
            return None
        seconds, name = max(zip(limits, ("compute", "bandwidth")))
        return seconds / found.median, name

    def intensity(self) -> float | None:
        """Work per byte that is read; 1 where multiply-adds and reading would take equally long."""
        limits = self._limits()
        return limits[0] / limits[1] if limits else None

    def exchange(self) -> float | None:
        """Seconds until one processor sees what another one has written."""
        rate = self.rate("exchange")
        return 1 / rate if rate else None

    def refused(self) -> list[str]:
        """Contenders whose results are wrong, or that failed."""
        return [label for label, outcome in self.outcomes.items() if outcome.status in ("refused", "failed")]

    def as_json(self) -> dict[str, Any]:
        """All of it, and what is derived from it for readers without this class."""
        return {
            **asdict(self),
            "outcomes": {label: outcome.as_json() for label, outcome in self.outcomes.items()},
            "name": self.case.name,
            "flops": work.flops(self.case),
            "traffic": work.traffic(self.case),
            "speedup": {label: self.speedup(label) for label in self.outcomes if label not in (OURS, *MACHINE)},
            "share_of_peak": {label: self.share_of_peak(label) for label in self.outcomes if label not in MACHINE},
            "share_of_limit": {label: self.share_of_limit(label) for label in self.outcomes if label not in MACHINE},
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Row:
        case = Case(**{**row["case"], "groups": tuple(row["case"]["groups"])})
        outcomes = {label: Outcome(**outcome) for label, outcome in row["outcomes"].items()}
        return cls(case, row["threads"], outcomes, row["others"])


def _case_for(label: str, case: Case) -> Case | None:
    """What a contender runs beside a case; None if it does not take part."""
    return PLAIN[label](case) if label in PLAIN else case


class Contest:
    """The workers of one number of threads, and the cases that they compete in."""

    def __init__(self, libraries: list[str], threads: int, seconds: float, folder: Path, plant: str = "") -> None:
        self.threads, self.seconds, self._folder = threads, seconds, folder
        self._plant = plant
        wanted = [*libraries, *(PLAIN if OURS in libraries else ()), *MACHINE]
        self._workers = {label: self._start(label) for label in wanted}
        #: why a library is not there, and the versions of those that are
        self.missing = {label: w.missing for label, w in self._workers.items() if w.missing}
        self.versions = {
            label: w.hello["versions"]
            for label, w in self._workers.items()
            if label not in self.missing and label in libraries
        }
        for label in self.missing:
            self._workers.pop(label).close()

    def contenders(self, cases: list[Case]) -> list[str]:
        """Who takes part in at least one of the cases."""
        return [label for label in self._workers if any(_case_for(label, case) for case in cases)]

    def _start(self, label: str) -> Worker:
        library = OURS if label in PLAIN else label
        plant = ["--plant"] if label == self._plant else []
        return Worker(f"{__package__}.worker", library, str(self.threads), *plant, threads=self.threads)

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def run(self, case: Case) -> Row:
        """Verifies and times one case."""
        outcomes = self.enter(case, self._workers)
        row = Row(case, self.threads, outcomes)
        self._race(row, [label for label, o in outcomes.items() if o.status == "timed"])
        return row

    def enter(self, case: Case, labels: Iterable[str], sample: float = SAMPLE) -> dict[str, Outcome]:
        """Contenders made ready for a case, as far as they take part: verified, and tuned to samples of so many
        seconds.
        """
        wanted = verify.expected(case)
        settle()
        return {
            label: self._enter(label, own, wanted if own is case else verify.expected(own), sample)
            for label in labels
            if (own := _case_for(label, case)) is not None
        }

    def time(self, label: str) -> float:
        """One sample of one contender, in seconds per call. `WorkerError` if it fails."""
        return self._workers[label].ask("time")["seconds"]

    def limits(self) -> dict[str, float | None]:
        """What this machine can do on these threads: operations and, from memory, bytes in a second."""
        return {"flops": self._rate("peak"), "bytes": self._rate("bandwidth")}

    def _rate(self, label: str, rounds: int = 5) -> float | None:
        if label not in self._workers:
            return None
        worker = self._workers[label]
        amount = worker.ask("prepare", case=asdict(MEMORY))["work"]
        worker.ask("tune", ways=[""])
        return amount / spread(worker.ask("time")["seconds"] for _ in range(rounds)).median

    def _enter(self, label: str, case: Case, wanted: dict[str, np.ndarray], sample: float) -> Outcome:
        """A contender made ready: verified, unless it is the machine, and tuned. Or why it does not take
        part.
        """
        outcome = Outcome()
        if not self._workers[label].alive:
            self._workers[label].close()
            self._workers[label] = self._start(label)
        worker = self._workers[label]
        try:
            answer = worker.ask("prepare", case=asdict(case))
            if "unsupported" in answer:
                return Outcome("unsupported", answer["unsupported"])
            outcome.how, outcome.work = answer["how"], answer["work"]
            ways = dict.fromkeys(answer["ways"], 0.0)
            if label not in MACHINE:
                ways = self._verified(worker, case, answer["ways"], wanted, outcome)
            if ways:
                tuned = worker.ask("tune", ways=list(ways), sample=sample)
                outcome.way, outcome.number = tuned["way"], tuned["number"]
                outcome.first = ways[outcome.way]
                outcome.seconds = [tuned["seconds"]]  # an estimate, until the race
        except WorkerError as error:
            return Outcome("failed", str(error), outcome.how)
        return outcome

    def _verified(
        self, worker: Worker, case: Case, ways: list[str], wanted: dict[str, np.ndarray], outcome: Outcome
    ) -> dict[str, float]:
        """The ways and the seconds of their first calls, if all of them give the right results; else none, and the
        reason in `outcome`.
        """
        path, firsts = self._folder / "results.npz", {}
        for way in ways:
            answer = worker.ask("check", way=way, path=str(path))
            with np.load(path) as results:
                found = verify.errors(case, dict(results), wanted)
            firsts[way] = answer["first"]
            outcome.errors = {name: max(e, outcome.errors.get(name, 0.0)) for name, e in found.items()}
            if said := verify.wrong(case, found):
                outcome.status, outcome.reason = "refused", f"{way}: {said}" if way else said
                return {}
        return firsts

    def _race(self, row: Row, labels: list[str]) -> None:
        """Rounds in which each has one turn, the order moved on by one from round to round."""
        each = {}
        for label in labels:
            outcome = row.outcomes[label]
            each[label] = outcome.number * taken(outcome.seconds)[0]
            outcome.seconds = []
        part = self.seconds / max(1, len(labels))
        slow = {label for label, seconds in each.items() if seconds * LEAST > part and label not in (OURS, *MACHINE)}
        quick = sum(seconds for label, seconds in each.items() if label not in slow)
        rounds = round(min(MOST, max(LEAST, self.seconds / quick))) if quick else 0
        clock, used = time.perf_counter(), self.cpu()
        for turn in range(rounds):
            for label in labels[turn % len(labels) :] + labels[: turn % len(labels)]:
                outcome = row.outcomes[label]
                if outcome.status != "timed":
                    continue
                if label in slow and turn >= SLOW_ROUNDS:
                    outcome.seconds.append(None)
                    continue
                try:
                    outcome.seconds.append(self.time(label))
                except WorkerError as error:
                    outcome.status, outcome.reason = "failed", str(error)
        row.others = self.others(clock, used)

    def cpu(self, *more: Worker) -> tuple[float | None, float]:
        """Processor time used so far: by everybody, by the benchmark, to which `more` belong."""
        return cpu_seconds(), sum(w.cpu for w in (*self._workers.values(), *more)) + time.process_time()

    def others(self, clock: float, used: tuple[float | None, float], *more: Worker) -> float | None:
        """The share of all processors that others have used since then, when `clock` was the time."""
        everybody, ours = self.cpu(*more)
        if everybody is None or used[0] is None:
            return None
        elapsed = (time.perf_counter() - clock) * (os.cpu_count() or 1)
        return max(0.0, (everybody - used[0] - (ours - used[1])) / elapsed) if elapsed > 1 else None
