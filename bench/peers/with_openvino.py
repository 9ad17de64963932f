"""OpenVINO, CPU device, float32 arithmetic: ONNX Runtime's ONNX model, compiled. Inference only."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import CELLS, Case
from ..job import Job, Results, Unsupported
from ..problem import STEPS, Problem
from .onnx_model import feed_of, model_of, outputs

VERSIONS = ("openvino", "onnx")
_threads = 1


def start(threads: int) -> None:
    global _threads
    import onnx  # noqa: F401 - what models are made with
    import openvino  # noqa: F401

    _threads = threads


def make(case: Case) -> Job:
    if case.kind not in ("infer", "step"):
        raise Unsupported("no training")
    if case.dtype != "float32":
        raise Unsupported(f"computes {case.dtype} in float32")
    if CELLS[case.cell].peephole:
        raise Unsupported("reads ONNX's LSTM without its peepholes: the results are another cell's (2026.4)")
    return Infer(Problem(case)) if case.kind == "infer" else Step(Problem(case))


def request_of(case: Case, problem: Problem) -> Any:
    """A compiled model's inference request, with the case's threads."""
    import openvino

    # Left to itself it computes in bfloat16 where the CPU can.
    options = {
        "INFERENCE_NUM_THREADS": _threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
    }  # fmt: skip
    core = openvino.Core()
    try:
        model = core.read_model(model_of(case, problem.weights, with_state=case.kind == "step"), b"")
        return core.compile_model(model, "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise Unsupported(" ".join(str(error).split())[:200]) from error


class Infer(Job):
    how = "infer_request.infer"

    def __init__(self, problem: Problem) -> None:
        self.case, self.feed = problem.case, feed_of(problem)
        self.request = request_of(problem.case, problem)

    def call(self) -> None:
        self.values = list(self.request.infer(self.feed).values())

    def results(self) -> Results:
        self.call()
        return outputs(self.case, self.values)


class Step(Job):
    how = "infer_request.infer, state fed back"

    def __init__(self, problem: Problem) -> None:
        self.case, self.x = problem.case, problem.x
        self.request = request_of(problem.case, problem)
        self.states = ("h0", "c0") if CELLS[problem.case.cell].lstm else ("h0",)
        self.zeros = [np.zeros((1, problem.case.B, problem.case.H), problem.x.dtype) for _ in self.states]
        self.values = [self.x, *self.zeros]

    def call(self) -> None:
        feed = {"x": self.x, **dict(zip(self.states, self.values[1:]))}
        self.values = list(self.request.infer(feed).values())

    def results(self) -> Results:
        self.values = [self.x, *self.zeros]
        for _ in range(STEPS):
            self.call()
        return outputs(self.case, self.values)
