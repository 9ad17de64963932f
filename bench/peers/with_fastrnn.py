"""fastrnn, through its public API."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import CELLS, Case
from ..job import Job, ModelJob, Results, Unsupported, Writer
from ..lm import Hyper
from ..problem import STEPS, Problem

VERSIONS = ("fastrnn", "numba", "llvmlite", "numpy")


def start(threads: int) -> None:
    import fastrnn as fr

    fr.set_num_threads(threads)


def make(case: Case) -> Job:
    problem = Problem(case)
    if case.model:
        return ModelJob(problem, lambda way: Model(problem), "Sequential, cross_entropy, clip, optimizer")
    if case.kind == "generate":
        return Generate(problem)
    kinds: dict[str, type[_Sequence]] = {"infer": Infer, "train": Train, "step": Step}
    if case.kind not in kinds:
        raise Unsupported(f"no {case.kind}")
    return kinds[case.kind](problem)


def layer_of(case: Case, input_size: int) -> Any:
    """The recurrent layers of a case, with weights of their own."""
    import fastrnn as fr

    cell = CELLS[case.cell]
    options: dict[str, Any] = {"num_layers": case.L, "bidirectional": case.D > 1, "dtype": case.dtype}
    if cell.gru:
        return fr.GRU(input_size, case.H, **options)
    if cell.lstm:
        return fr.LSTM(input_size, case.H, peephole="diagonal" if cell.peephole else None, **options)
    return fr.RNN(input_size, case.H, nonlinearity=cell.nonlinearity, **options)


class _Sequence(Job):
    def __init__(self, problem: Problem) -> None:
        self.layer = layer_of(problem.case, problem.case.I)
        self.layer.load_state_dict(problem.weights)
        self.x, self.dy, self.lengths = problem.x, problem.dy, problem.lengths
        self.y: Any = None
        self.state: Any = None

    def outputs(self) -> Results:
        state = self.state if isinstance(self.state, tuple) else (self.state,)
        return {"y": self.y, **dict(zip("hc", state))}


class Infer(_Sequence):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.how = "y, state = layer(x)" if self.lengths is None else "y, state = layer(x, lengths=lengths)"

    def call(self) -> None:
        self.y, self.state = self.layer(self.x, lengths=self.lengths)

    def results(self) -> Results:
        self.call()
        return self.outputs()


class Step(_Sequence):
    how = "y, state = layer(x, state)"

    def call(self) -> None:
        self.y, self.state = self.layer(self.x, self.state)

    def results(self) -> Results:
        self.state = None
        for _ in range(STEPS):
            self.call()
        return self.outputs()


class Train(_Sequence):
    how = "weights marked as changed, zero_grad, forward, backward"

    def call(self) -> None:
        # As after an optimizer's step: whatever was made of the old weights is old, and packing is paid for
        # here.
        for store in self.layer.stores():
            with store.writing():
                pass
        self.layer.zero_grad()
        self.y, _, tape = self.layer.forward(self.x, lengths=self.lengths)
        self.dx, _ = self.layer.backward(tape, self.dy)

    def results(self) -> Results:
        self.call()
        gradients = {f"d{name}": np.array(g) for name, g in self.layer.grads.items()}
        return {"y": self.y, "dx": self.dx, **gradients}


def model_of(problem: Problem) -> Any:
    """A language model: [embedding,] recurrent layers, linear."""
    import fastrnn as fr

    case = problem.case
    layers: list[Any] = [fr.Embedding(case.V, case.I, dtype=case.dtype)] if case.I else []
    layers.append(layer_of(case, case.I or case.V))
    layers.append(fr.Linear(case.H, case.V, dtype=case.dtype))
    model = fr.Sequential(*layers)
    model.load_state_dict(problem.model_weights)
    return model


class Generate(Writer):
    how = "model.write"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.model = model_of(problem)

    def write(self, count: int) -> np.ndarray:
        return self.model.write(np.zeros(self.case.B, np.int64), count, temperature=0)[0]


class Model:
    """A language model in training; see job.Model."""

    def __init__(self, problem: Problem) -> None:
        import fastrnn as fr

        case = problem.case
        self.model = model_of(problem)
        self.mean = case.kind == "charlm"
        if self.mean:
            self.optimizer: Any = fr.Adam(self.model, lr=Hyper.adam_lr)
        else:
            self.optimizer = fr.Adagrad(self.model, lr=Hyper.adagrad_lr)
        self.state: Any = None
        self._loss = fr.cross_entropy
        self._clip_norm, self._clip_value = fr.clip_grad_norm, fr.clip_grad_value

    @property
    def lr(self) -> float:
        return self.optimizer.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.optimizer.lr = value

    def forget(self) -> None:
        self.state = None

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        logits, self.state = self.model(ids, self.state)
        return self._loss(logits, targets, gradient=False)[0]

    def step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        logits, self.state, tape = self.model.forward(ids, self.state)
        loss, dlogits = self._loss(logits, targets, reduction="mean" if self.mean else "sum")
        self.model.zero_grad()
        self.model.backward(tape, dlogits)
        if self.mean:
            self._clip_norm(self.model, Hyper.clip_norm)
        else:
            self._clip_value(self.model, Hyper.clip_value)
        self.optimizer.step()
        return loss

    def gradients(self) -> Results:
        return dict(self.model.grads)
