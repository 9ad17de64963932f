"""What a library does for a case: one call, which is timed, and its results, which are verified before."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from .problem import WRITTEN, Problem

Results = dict[str, np.ndarray]


class Unsupported(Exception):  # noqa: N818 - an answer, not an error
    """The library cannot do this case; the message says what it lacks."""


class Job:
    """One case in one library."""

    #: what the call is, in the library's own words
    how = ""
    #: ways of making the same call, of which the fastest is timed
    ways: tuple[str, ...] = ("",)

    def use(self, way: str) -> None:
        """Chooses one of `ways`; from the case's beginning."""

    def around(self) -> AbstractContextManager[Any]:
        """What calls run within."""
        return nullcontext()

    def call(self) -> None:
        """The call that is timed."""
        raise NotImplementedError

    def results(self) -> Results:
        """What the very same call gives, from the case's beginning.

        infer: y h (c); train: y dx d<parameter>; step: those of infer after several steps; language models:
        losses of several steps and d<parameter> after the first; generate: the first characters (N, B)
        """
        raise NotImplementedError


class Model(Protocol):
    """A language model in training, in any library. ids, targets: (T, B) integers."""

    lr: float

    def step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """One whole training step, the state carried from the last; the loss before it."""

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """The mean loss in nats, without learning, the state carried from the last call."""

    def forget(self) -> None:
        """The next call starts from the zero state."""

    def gradients(self) -> Results:
        """Of the last step, after clipping, by parameter."""


class Writer(Job):
    """A language model that writes: each character is the most likely one, and the next input."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.case = problem, problem.case

    def write(self, count: int) -> Any:
        """(count, B): so many characters; the model starts from the zero state and character 0."""
        raise NotImplementedError

    def call(self) -> None:
        self.write(self.case.T)

    def results(self) -> Results:
        return {"ids": np.asarray(self.write(WRITTEN))}


class ModelJob(Job):
    """A language model's training step, for the library whose model `make(way)` makes."""

    def __init__(self, problem: Problem, make: Callable[[str], Model], how: str, *ways: str) -> None:
        self.how, self.ways = how, ways or ("",)
        self.make, self._chunks = make, problem.chunks
        self._way = self.ways[0]

    def use(self, way: str) -> None:
        self._way = way
        self._model, self._next = self.make(way), 0

    def call(self) -> None:
        ids, targets = self._chunks[self._next]
        self._next = (self._next + 1) % len(self._chunks)
        self._model.step(ids, targets)

    def results(self) -> Results:
        self.use(self._way)
        losses, gradients = [], {}
        for n, (ids, targets) in enumerate(self._chunks[:3]):
            losses.append(self._model.step(ids, targets))
            if n == 0:
                gradients = {f"d{name}": np.array(g) for name, g in self._model.gradients().items()}
        return {"losses": np.array(losses), **gradients}
