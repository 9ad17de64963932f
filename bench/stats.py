"""Medians and quartiles, of times and of ratios round by round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Samples = Sequence[float | None]  # one for each round; None where there was no turn


class Spread(NamedTuple):
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Of at least one value.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)
    """
    values = list(values)
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high)


def taken(samples: Samples) -> list[float]:
    """The samples of the rounds that had one."""
    return [s for s in samples if s is not None]


def ratio(above: Samples, below: Samples) -> Spread | None:
    """Of the quotients of the rounds in which both took part: noise that lasts longer than a round cancels.

    >>> ratio([2.0, 4.0, None], [1.0, 2.0, 3.0])
    Spread(median=2.0, low=2.0, high=2.0)
    """
    quotients = [a / b for a, b in zip(above, below) if a is not None and b is not None]
    return spread(quotients) if quotients else None


def geometric_mean(values: Iterable[float]) -> float:
    """Of at least one value.

    >>> round(geometric_mean([1.0, 4.0]), 6)
    2.0
    """
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))
