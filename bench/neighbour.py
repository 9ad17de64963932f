"""What a busy process on one of the processors costs: every library alone and beside one, in turns.

A library that cuts its work into equal parts, one for each thread, waits for the thread that shares its processor.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from .cases import Case
from .client import Worker, WorkerError
from .contest import Contest, Row
from .stats import Spread, ratio, spread, taken

SAMPLE = 0.1  # seconds: many of the scheduler's turns
MOMENT = 0.02  # seconds, until the scheduler has seen that a process is busy, or that it rests
LEAST, MOST = 7, 61  # rounds
PART = 5  # times as long as the rounds of other cases, as the samples are twenty times as long


class Spinner(Worker):
    """The busy process; it rests until it is told. To be closed."""

    def __init__(self) -> None:
        super().__init__(f"{__package__}.spinner", threads=1)

    def turn(self, busy: bool) -> None:
        """Returns when it is busy, or rests."""
        self.ask("busy" if busy else "rest")
        time.sleep(MOMENT)


@dataclass
class Beside(Row):
    """One case; the outcomes' samples are those alone."""

    beside: dict[str, list[float]] = field(default_factory=dict)  # per call, one for each round, as those alone

    def found(self, label: str) -> tuple[Spread, Spread, Spread] | None:
        """Seconds of one call alone, beside the busy process, and the second divided by the first, round by round; None
        if it was not timed.
        """
        alone, beside = self.samples(label), self.beside.get(label, [])
        quotient = ratio(beside, alone) if self.outcomes[label].status == "timed" else None
        return quotient and (spread(taken(alone)), spread(taken(beside)), quotient)

    def as_json(self) -> dict[str, Any]:
        """All of it, and what is derived from it."""
        summary = {
            label: {"alone": found[0].median, "beside": found[1].median, "slowdown": found[2]}
            for label in self.outcomes
            if (found := self.found(label))
        }
        outcomes = {label: outcome.as_json() for label, outcome in self.outcomes.items()}
        return {**asdict(self), "outcomes": outcomes, "name": self.case.name, "summary": summary}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Beside:
        one = Row.from_json(row)
        return cls(one.case, one.threads, one.outcomes, one.others, row["beside"])


def measure(contest: Contest, case: Case) -> Beside:
    """Every library of the contest that has the case: verified, then timed in rounds."""
    outcomes = contest.enter(case.called, contest.versions, SAMPLE)
    row = Beside(case, contest.threads, outcomes)
    racing = [label for label, outcome in outcomes.items() if outcome.status == "timed"]
    each = sum(2 * (MOMENT + outcomes[n].number * taken(outcomes[n].seconds)[0]) for n in racing)
    rounds = round(min(MOST, max(LEAST, PART * contest.seconds / each))) if racing else 0
    for label in racing:
        outcomes[label].seconds, row.beside[label] = [], []
    spinner = Spinner()
    try:
        spinner.turn(busy=False)
        clock, used = time.perf_counter(), contest.cpu(spinner)
        for turn in range(rounds):
            first = turn % len(racing)
            for label in racing[first:] + racing[:first]:
                _turns(contest, row, label, spinner, busy_first=turn % 2 > 0)
        spinner.turn(busy=False)
        row.others = contest.others(clock, used, spinner)
    finally:
        spinner.close()
    return row


def _turns(contest: Contest, row: Beside, label: str, spinner: Spinner, busy_first: bool) -> None:
    """One turn alone and one beside the busy process, right after each other: what disturbs both cancels."""
    outcome, seconds = row.outcomes[label], {}
    if outcome.status != "timed":
        return
    for busy in (busy_first, not busy_first):
        spinner.turn(busy)
        try:
            seconds[busy] = contest.time(label)
        except WorkerError as error:
            outcome.status, outcome.reason = "failed", str(error)
            return
    outcome.seconds.append(seconds[False])
    row.beside[label].append(seconds[True])
