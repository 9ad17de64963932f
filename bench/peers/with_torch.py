"""PyTorch: nn.RNN, nn.LSTM and nn.GRU, sequences of many lengths packed; for the peephole LSTM, which PyTorch does not
have, a loop over time, eager and compiled.
"""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..cases import CELLS, Case
from ..job import Job, ModelJob, Results, Unsupported, Writer
from ..lm import Hyper
from ..problem import STEPS, Problem

if TYPE_CHECKING:
    import torch

VERSIONS = ("torch",)
COMPILED = "compiled"  # the way of the peephole LSTM that goes through torch.compile
# Steps that are compiled as one function, at the most. The time to compile grows with them, up to 20 s for training; a
# single step gains little over the eager loop, and 25 gained no more than 10.
CHUNK = 12


def start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def make(case: Case) -> Job:
    problem = Problem(case)
    if case.model:
        how = f"nn modules, cross_entropy, clip_grad, {'Adam' if case.kind == 'charlm' else 'Adagrad'}"
        return ModelJob(problem, lambda way: Model(problem, way == "fused"), how, "fused", "default")
    if case.kind == "generate":
        return Generate(problem)
    kinds: dict[str, type[_Sequence]] = {"infer": Infer, "train": Train, "step": Step}
    if case.kind not in kinds:
        raise Unsupported(f"no {case.kind}")
    if CELLS[case.cell].peephole and (case.D > 1 or case.shortest):
        raise Unsupported("the loop for peepholes has one direction and one length")
    return kinds[case.kind](problem)


def module_of(case: Case, input_size: int) -> torch.nn.Module:
    """The recurrent layers of a case."""
    import torch

    cell, dtype = CELLS[case.cell], getattr(torch, case.dtype)
    if cell.peephole:
        return _peephole_lstm(case, input_size).to(dtype)
    options: dict[str, Any] = {"bidirectional": case.D > 1, "dtype": dtype}
    if cell.lstm:
        return torch.nn.LSTM(input_size, case.H, case.L, **options)
    if cell.gru:
        return torch.nn.GRU(input_size, case.H, case.L, **options)
    return torch.nn.RNN(input_size, case.H, case.L, nonlinearity=cell.nonlinearity, **options)


def _peephole_lstm(case: Case, input_size: int) -> torch.nn.Module:
    """As a user of PyTorch has to write it: the input product for all steps at once, then a loop."""
    import torch
    from torch.nn import functional

    def steps(z: Any, h: Any, c: Any, weights: Any, peepholes: Any) -> Any:
        p_i, p_f, p_o = peepholes.unbind(0)
        y = []
        for z_t in z.unbind(0):
            a_i, a_f, a_g, a_o = torch.addmm(z_t, h, weights).chunk(4, 1)
            i, f = torch.sigmoid(a_i + p_i * c), torch.sigmoid(a_f + p_f * c)
            c = f * c + i * torch.tanh(a_g)
            h = torch.sigmoid(a_o + p_o * c) * torch.tanh(c)
            y.append(h)
        return torch.stack(y), h, c

    class PeepholeLSTM(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps, self.chunk = steps, case.T
            H = case.H
            for n in range(case.L):
                shapes = {
                    f"weight_ih_l{n}": (4 * H, input_size if n == 0 else H), f"weight_hh_l{n}": (4 * H, H),
                    f"bias_ih_l{n}": (4 * H,), f"bias_hh_l{n}": (4 * H,), f"weight_peep_l{n}": (3, H),
                }  # fmt: skip
                for name, shape in shapes.items():
                    self.register_parameter(name, torch.nn.Parameter(torch.zeros(shape)))

        def forward(self, x: Any, state: Any = None) -> Any:
            if state is None:
                zeros = x.new_zeros(case.L, x.shape[1], case.H)
                state = zeros, zeros
            hs, cs = [], []
            for n in range(case.L):
                h, c = state[0][n], state[1][n]
                weights, peepholes = self.get_parameter(f"weight_hh_l{n}").t(), self.get_parameter(f"weight_peep_l{n}")
                bias = self.get_parameter(f"bias_ih_l{n}") + self.get_parameter(f"bias_hh_l{n}")
                ys = []
                for z in functional.linear(x, self.get_parameter(f"weight_ih_l{n}"), bias).split(self.chunk):
                    y, h, c = self.steps(z, h, c, weights, peepholes)
                    ys.append(y)
                x = torch.cat(ys) if len(ys) > 1 else ys[0]
                hs.append(h)
                cs.append(c)
            return x, (torch.stack(hs), torch.stack(cs))

    return PeepholeLSTM()


@functools.cache
def why_not_compiled() -> str:
    """What torch.compile lacks here, a C++ compiler or Python's headers perhaps; empty if it works. Tried once."""
    import torch

    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # else code of earlier runs would be found
        folder = tempfile.TemporaryDirectory(prefix="bench-torch-")
        atexit.register(folder.cleanup)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder.name
    try:
        from torch._inductor import config

        config.compile_threads = 1  # in this process: none that stay behind and disturb
        torch.compile(torch.sigmoid, fullgraph=True)(torch.zeros(8))
    except Exception as error:  # of whatever kind: every part of the tool chain has its own
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Tensors with memory of their own."""
    import torch

    return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}


class _Sequence(Job):
    def __init__(self, problem: Problem) -> None:
        import torch

        case = problem.case
        self.module: Any = module_of(case, case.I)
        self.module.load_state_dict(tensors(problem.weights))
        self.how = f"nn.{type(self.module).__name__}"
        if CELLS[case.cell].peephole:
            self._prepare_loop(case)
        self.x, self.dy = torch.from_numpy(problem.x.copy()), torch.from_numpy(problem.dy.copy())
        self.lengths = None if problem.lengths is None else torch.from_numpy(problem.lengths)
        if self.lengths is not None:
            self.how = f"pack_padded_sequence, {self.how}, pad_packed_sequence"
        self.y: Any = None
        self.state: Any = None

    def _prepare_loop(self, case: Case) -> None:
        """Two ways: with `steps` of the module as they are, and compiled, some at once: as many as divide T, so that
        there is one shape to compile for. What is a step of a stream is compiled whole.
        """
        self.ways = tuple(way or "eager" for way in self.ways)
        self._loop, self._chunk = "forward" if case.kind == "step" else "steps", case.T
        self._eager: Any = getattr(self.module, self._loop)
        self._compiled: Any = None
        if why := why_not_compiled():
            self.how = f"a loop over time, eager (not compiled: {why})"
            return
        self._chunk = max(n for n in range(1, CHUNK + 1) if case.T % n == 0)
        self.how = f"a loop over time, eager, or compiled by torch.compile, {self._chunk} steps at once"
        self.ways += (COMPILED,)

    def use(self, way: str) -> None:
        import torch

        if self.ways == type(self).ways:  # no loop
            return
        if way == COMPILED and self._compiled is None:
            torch._dynamo.reset()  # it counts what it compiles, those of earlier cases too, and gives up at some number
            self._compiled = torch.compile(self._eager, dynamic=False, fullgraph=True)
        setattr(self.module, self._loop, self._compiled if way == COMPILED else self._eager)
        self.module.chunk = self._chunk if way == COMPILED else len(self.x)

    def run(self) -> tuple[Any, Any]:
        """`y, state` of a sequence from the zero state; packed and padded again if the rows have lengths."""
        if self.lengths is None:
            return self.module(self.x)
        from torch.nn.utils import rnn

        packed = rnn.pack_padded_sequence(self.x, self.lengths, enforce_sorted=False)
        y, state = self.module(packed)
        return rnn.pad_packed_sequence(y, total_length=len(self.x))[0], state

    def outputs(self) -> Results:
        state = self.state if isinstance(self.state, tuple) else (self.state,)
        return {"y": self.y.numpy(), **{name: s.numpy() for name, s in zip("hc", state)}}


class _Inference(_Sequence):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.how += ", inference_mode"
        self.module.eval()

    def around(self) -> AbstractContextManager[Any]:
        import torch

        return torch.inference_mode()


class Infer(_Inference):
    def call(self) -> None:
        self.y, self.state = self.run()

    def results(self) -> Results:
        self.call()
        return self.outputs()


class Step(_Inference):
    def call(self) -> None:
        self.y, self.state = self.module(self.x, self.state)

    def results(self) -> Results:
        self.state = None
        for _ in range(STEPS):
            self.call()
        return self.outputs()


class Train(_Sequence):
    ways = ("zero_grad(set_to_none=True)", "zero_grad(set_to_none=False)")

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.how += ", forward, backward"
        self.x.requires_grad_()
        self.none = True

    def use(self, way: str) -> None:
        super().use(way)
        self.none = way != self.ways[1]

    def call(self) -> None:
        self.module.zero_grad(set_to_none=self.none)
        if self.none:
            self.x.grad = None
        elif self.x.grad is not None:
            self.x.grad.zero_()
        self.y, _ = self.run()
        self.y.backward(self.dy)

    def results(self) -> Results:
        self.call()
        assert self.x.grad is not None
        found = {"y": self.y.detach().numpy(), "dx": self.x.grad.numpy().copy()}
        for name, parameter in self.module.named_parameters():
            assert parameter.grad is not None
            found[f"d{name}"] = parameter.grad.numpy().copy()
        return found


def layers_of(problem: Problem) -> torch.nn.ModuleList:
    """Of a language model: [embedding,] recurrent layers, linear."""
    import torch

    case = problem.case
    dtype = getattr(torch, case.dtype)
    layers: list[torch.nn.Module] = [torch.nn.Embedding(case.V, case.I, dtype=dtype)] if case.I else []
    layers.append(module_of(case, case.I or case.V))
    layers.append(torch.nn.Linear(case.H, case.V, dtype=dtype))
    found = torch.nn.ModuleList(layers)
    found.load_state_dict(tensors(problem.model_weights))
    return found


class Generate(Writer):
    how = "nn modules in a loop, inference_mode"

    def __init__(self, problem: Problem) -> None:
        import torch

        super().__init__(problem)
        self.layers, self.torch = layers_of(problem).eval(), torch

    def around(self) -> AbstractContextManager[Any]:
        return self.torch.inference_mode()

    def write(self, count: int) -> np.ndarray:
        torch, (embedding, recurrent, linear) = self.torch, self.layers
        ids, state, written = torch.zeros(1, self.case.B, dtype=torch.long), None, []
        for _ in range(count):
            y, state = recurrent(embedding(ids), state)
            ids = linear(y).argmax(-1)
            written.append(ids)
        return torch.cat(written).numpy()


class Model:
    """A language model in training; see job.Model."""

    def __init__(self, problem: Problem, fused: bool) -> None:
        import torch
        from torch.nn import functional

        case = problem.case
        dtype = getattr(torch, case.dtype)
        self.layers = layers_of(problem)
        self.mean, self.V, self.dtype = case.kind == "charlm", case.V, dtype
        self.state: Any = None
        optim: Any = torch.optim.Adam if self.mean else torch.optim.Adagrad
        lr = Hyper.adam_lr if self.mean else Hyper.adagrad_lr
        options: dict[str, Any] = {"fused": True} if fused else {}
        self.optimizer: Any = optim(self.layers.parameters(), lr=lr, **options)
        self.torch, self.functional = torch, functional

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def forget(self) -> None:
        self.state = None

    def _forward(self, ids: np.ndarray, targets: np.ndarray, reduction: str) -> Any:
        torch, functional = self.torch, self.functional
        x, t = torch.from_numpy(ids).long(), torch.from_numpy(targets).long()
        *embedding, recurrent, linear = self.layers
        x = embedding[0](x) if embedding else functional.one_hot(x, self.V).to(self.dtype)
        y, state = recurrent(x, self.state)
        self.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return functional.cross_entropy(linear(y).flatten(0, 1), t.flatten(), reduction=reduction)

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        with self.torch.inference_mode():
            return self._forward(ids, targets, "mean").item()

    def step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        loss = self._forward(ids, targets, "mean" if self.mean else "sum")
        self.optimizer.zero_grad()
        loss.backward()
        if self.mean:
            self.torch.nn.utils.clip_grad_norm_(self.layers.parameters(), Hyper.clip_norm)
        else:
            self.torch.nn.utils.clip_grad_value_(self.layers.parameters(), Hyper.clip_value)
        self.optimizer.step()
        return loss.item()

    def gradients(self) -> Results:
        return {name: p.grad.numpy() for name, p in self.layers.named_parameters() if p.grad is not None}
