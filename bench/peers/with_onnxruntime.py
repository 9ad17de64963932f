"""ONNX Runtime, CPU provider: `session.run` with the RNN, LSTM (peepholes included) and GRU operators. Inference
only.
"""

from __future__ import annotations

from typing import Any

from ..cases import CELLS, Case
from ..job import Job, Results, Unsupported
from ..problem import STEPS, Problem
from .onnx_model import feed_of, model_of, outputs

VERSIONS = ("onnxruntime", "onnx")
_threads = 1


def start(threads: int) -> None:
    global _threads
    import onnx  # noqa: F401 - what models are made with
    import onnxruntime  # noqa: F401

    _threads = threads


def make(case: Case) -> Job:
    if case.kind not in ("infer", "step"):
        raise Unsupported("no training")
    if case.dtype != "float32":
        raise Unsupported(f"its recurrent operators know no {case.dtype}")
    return Infer(Problem(case)) if case.kind == "infer" else Step(Problem(case))


def session_of(case: Case, problem: Problem) -> Any:
    """A session with the case's threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = _threads, 1
    options.log_severity_level = 3
    model = model_of(case, problem.weights, with_state=case.kind == "step")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own exception types, and what an operator lacks is one of them
        raise Unsupported(" ".join(str(error).split())[:200]) from error


class Infer(Job):
    how = "session.run"

    def __init__(self, problem: Problem) -> None:
        self.case, self.feed = problem.case, feed_of(problem)
        self.session = session_of(problem.case, problem)

    def call(self) -> None:
        self.values = self.session.run(None, self.feed)

    def results(self) -> Results:
        self.call()
        return outputs(self.case, self.values)


class Step(Job):
    how = "session.run, state fed back"

    def __init__(self, problem: Problem) -> None:
        self.case, self.x = problem.case, problem.x
        self.session = session_of(problem.case, problem)
        zeros = problem.x.dtype.type(0) * problem.weights["bias_hh_l0"][: problem.case.H]
        self.zeros = zeros[None, None].repeat(problem.case.B, axis=1)
        self.lstm = CELLS[problem.case.cell].lstm
        self.h = self.c = self.zeros

    def call(self) -> None:
        if self.lstm:
            self.y, self.h, self.c = self.session.run(None, {"x": self.x, "h0": self.h, "c0": self.c})
        else:
            self.y, self.h = self.session.run(None, {"x": self.x, "h0": self.h})

    def results(self) -> Results:
        self.h = self.c = self.zeros
        for _ in range(STEPS):
            self.call()
        return outputs(self.case, [self.y, self.h, *([self.c] if self.lstm else [])])
