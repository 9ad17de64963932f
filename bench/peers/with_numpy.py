"""NumPy, as a plain loop over time: a peer in the case's own type, the reference in float64."""

from __future__ import annotations

import numpy as np

from .. import loop
from ..cases import CELLS, Case
from ..job import Job, ModelJob, Results, Unsupported, Writer
from ..lm import NumpyModel
from ..problem import STEPS, Problem

VERSIONS = ("numpy",)


def start(threads: int) -> None:
    """NumPy's BLAS takes its number of threads from the environment (see client.py)."""


def make(case: Case, compute: str = "") -> Job:
    """`compute`: the type to compute in, if it is not the case's."""
    problem, dtype = Problem(case), compute or case.dtype
    if case.model:
        return ModelJob(problem, lambda way: NumpyModel(problem, dtype), "a loop over time, by hand")
    if case.kind == "generate":
        return Generate(problem, dtype)
    kinds: dict[str, type[_Sequence]] = {"infer": Infer, "train": Train, "step": Step}
    if case.kind not in kinds:
        raise Unsupported(f"no {case.kind}")
    return kinds[case.kind](problem, dtype)


class _Sequence(Job):
    how = "a loop over time, input product for all steps at once"

    def __init__(self, problem: Problem, dtype: str) -> None:
        self.case, self.cell = problem.case, CELLS[problem.case.cell]
        self.params = {name: array.astype(dtype) for name, array in problem.weights.items()}
        self.x, self.dy = problem.x.astype(dtype), problem.dy.astype(dtype)
        self.lengths = problem.lengths
        self.zeros = loop.zero_state(self.cell, self.params, self.case.B)
        self.y, self.state = self.x, self.zeros

    def outputs(self) -> Results:
        return {"y": self.y, **dict(zip("hc", self.state))}


class Infer(_Sequence):
    def call(self) -> None:
        self.y, self.state, _ = loop.forward(self.cell, self.params, self.x, self.zeros, self.lengths)

    def results(self) -> Results:
        self.call()
        return self.outputs()


class Step(_Sequence):
    def call(self) -> None:
        self.y, self.state, _ = loop.forward(self.cell, self.params, self.x, self.state)

    def results(self) -> Results:
        self.state = self.zeros
        for _ in range(STEPS):
            self.call()
        return self.outputs()


class Train(_Sequence):
    def call(self) -> None:
        self.y, _, tape = loop.forward(self.cell, self.params, self.x, self.zeros, self.lengths)
        self.dx, self.grads = loop.backward(self.cell, self.params, tape, self.dy)

    def results(self) -> Results:
        self.call()
        assert self.dx is not None
        return {"y": self.y, "dx": self.dx, **{f"d{name}": g for name, g in self.grads.items()}}


class Generate(Writer):
    how = "a loop over characters, by hand"

    def __init__(self, problem: Problem, dtype: str) -> None:
        super().__init__(problem)
        self.params = {name: array.astype(dtype) for name, array in problem.model_weights.items()}
        self.layers = {name[2:]: array for name, array in self.params.items() if name.startswith("1.")}
        self.cell = CELLS[self.case.cell]

    def write(self, count: int) -> np.ndarray:
        state, ids, written = loop.zero_state(self.cell, self.layers, self.case.B), np.zeros(self.case.B, np.int64), []
        for _ in range(count):
            x = self.params["0.weight"][ids][None]
            y, state, _ = loop.forward(self.cell, self.layers, x, state)
            logits = y[0] @ self.params["2.weight"].T + self.params["2.bias"]
            ids = logits.argmax(axis=-1)
            written.append(ids)
        return np.stack(written)
