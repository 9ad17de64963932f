"""oneDNN's own recurrent primitives, called through its C interface: what PyTorch computes an LSTM with, without
PyTorch around it. From Python nobody calls it, so it is a yardstick, not one of the peers that a user chooses from.

    pip install onednn-cpu-gomp

Weights lie as its own users keep them, (L, D, I, G, H), and are given to a primitive in the layout that it asks for:
once for inference, in every call of training, gradients the other way round.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_int64, c_void_p
from importlib import metadata
from typing import Any

import numpy as np

from ..cases import CELLS, Case
from ..job import Job, Results, Unsupported
from ..problem import STEPS, Problem

DISTRIBUTION = "onednn-cpu-gomp"
VERSIONS = ()
BUILT = "ONEDNN_LIBRARY"  # names a libdnnl.so.3 that was built by hand, to be taken instead

# Of dnnl_types.h, which changes them with its major version only, 3.
CPU, IN_ORDER, FLOAT32, ANY, ARGUMENT_LAYOUT, ALLOCATE = 1, 1, 3, 1, 255, -1
INFERENCE, TRAINING, BACKWARD, OVERWRITE = 96, 64, 128, 1
ACTIVATIONS = {"relu": 0x20, "tanh": 0x21}
LEFT_TO_RIGHT, CONCATENATED = 1, 3
WORKSPACE, GRADIENT = 64, 128  # the number of dX is that of X and 128
ARGUMENTS = {
    "src_layer": 1, "src_iter": 2, "src_iter_c": 3,
    "weights_layer": 33, "weights_iter": 34, "weights_peephole": 35, "weights_projection": 36, "bias": 41,
    "dst_layer": 17, "dst_iter": 18, "dst_iter_c": 19,
}  # fmt: skip
OF_LSTM = ("src_iter_c", "weights_peephole", "weights_projection", "dst_iter_c")

_lib: Any = None
_engine, _stream = c_void_p(), c_void_p()


def start(threads: int) -> dict[str, str]:
    global _lib
    os.environ["OMP_NUM_THREADS"] = str(threads)
    path = os.environ.get(BUILT)
    if not path:
        files = metadata.files(DISTRIBUTION) or ()
        path = next(str(file.locate()) for file in files if file.name == "libdnnl.so.3")
    _lib = ctypes.CDLL(path)
    _lib.dnnl_version.restype = POINTER(c_int)
    _lib.dnnl_primitive_desc_query_md.restype = c_void_p
    _do("engine_create", byref(_engine), c_int(CPU), ctypes.c_size_t(0))
    _do("stream_create", byref(_stream), _engine, c_int(IN_ORDER))
    return {"oneDNN": ".".join(map(str, _lib.dnnl_version()[:3]))}


def make(case: Case) -> Job:
    kinds: dict[str, type[_Sequence]] = {"infer": Infer, "train": Train, "step": Step}
    if case.kind not in kinds:
        raise Unsupported("only sequences and steps are written")
    if case.dtype != "float32" or case.shortest:
        raise Unsupported("its primitives have float32 only, and rows of one length")
    if case.L > 1 and (case.D > 1 or case.I != case.H):
        raise Unsupported("its layers have inputs of one size")
    return kinds[case.kind](Problem(case))


def _do(name: str, *arguments: Any) -> None:
    if status := getattr(_lib, f"dnnl_{name}")(*arguments):
        raise RuntimeError(f"dnnl_{name}: status {status}")


def _dense(shape: Sequence[int]) -> c_void_p:
    """A layout: row after row."""
    found = c_void_p()
    _do("memory_desc_create_with_strides", byref(found), c_int(len(shape)), (c_int64 * 12)(*shape), FLOAT32, None)
    return found


def _any(shape: Sequence[int]) -> c_void_p:
    """The layout that a primitive will ask for."""
    found = c_void_p()
    _do("memory_desc_create_with_tag", byref(found), c_int(len(shape)), (c_int64 * 12)(*shape), FLOAT32, ANY)
    return found


class Memory:
    """oneDNN's memory in a layout; with an address, what lies there."""

    def __init__(self, layout: c_void_p, address: int = ALLOCATE) -> None:
        self.layout, self.handle = layout, c_void_p()
        _do("memory_create", byref(self.handle), layout, _engine, c_void_p(address))


class Array(Memory):
    """A NumPy array, and the same as oneDNN's memory."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = np.array(array, np.float32, order="C")
        super().__init__(_dense(self.array.shape), self.array.ctypes.data)


class _Argument(ctypes.Structure):
    _fields_ = (("number", c_int), ("memory", c_void_p))


class Call:
    """A primitive with its arguments, {number: memory}."""

    def __init__(self, description: c_void_p, arguments: dict[int, Memory]) -> None:
        self._primitive, self._kept = c_void_p(), arguments
        _do("primitive_create", byref(self._primitive), description)
        self._count = c_int(len(arguments))
        self._arguments = (_Argument * len(arguments))(*(_Argument(n, m.handle) for n, m in arguments.items()))

    def __call__(self) -> None:
        _do("primitive_execute", self._primitive, _stream, self._count, self._arguments)


def _reorder(source: Memory, target: Memory) -> Call:
    description = c_void_p()
    _do("reorder_primitive_desc_create", byref(description), source.layout, _engine, target.layout, _engine, None)
    return Call(description, {1: source, 17: target})


class Cell:
    """One pass of a case's cell over arrays of these shapes, {name: shape}; with `hint`, the way back from that one."""

    def __init__(self, case: Case, prop: int, shapes: dict[str, tuple[int, ...]], hint: Cell | None = None) -> None:
        cell, self.description = CELLS[case.cell], c_void_p()
        layouts = {name: (_any if "weights" in name else _dense)(shape) for name, shape in shapes.items()}
        in_order = [layouts.get(name) for name in ARGUMENTS if cell.lstm or name not in OF_LSTM]
        kind = "lstm" if cell.lstm else "lbr_gru" if cell.gru else "vanilla_rnn"
        activation = [c_int(ACTIVATIONS[cell.nonlinearity])] if kind == "vanilla_rnn" else []
        _do(
            f"{kind}_{'backward' if hint else 'forward'}_primitive_desc_create",
            byref(self.description), _engine, c_int(prop), *activation,
            c_int(CONCATENATED if case.D > 1 else LEFT_TO_RIGHT), *in_order, *(in_order if hint else ()),
            c_int(OVERWRITE if hint else 0), *([c_float(0), c_float(0)] if activation else ()),
            *([hint.description] if hint else ()), None,
        )  # fmt: skip

    def layout(self, number: int) -> c_void_p:
        """What the primitive asks for."""
        return c_void_p(_lib.dnnl_primitive_desc_query_md(self.description, c_int(ARGUMENT_LAYOUT), c_int(number)))

    def memory(self, arrays: dict[str, Array], kind: int = 0) -> dict[int, Memory]:
        """By the argument's number: the arrays themselves, or memory in the layout that is asked for."""
        found: dict[int, Memory] = {}
        for name, own in arrays.items():
            wanted = self.layout(ARGUMENTS[name] + kind)
            same = _lib.dnnl_memory_desc_equal(own.layout, wanted)
            found[ARGUMENTS[name] + kind] = own if same else Memory(wanted)
        return found


class _Sequence(Job):
    how = "the primitive alone"
    # Which of them are given. In training all: without src_iter dweights_iter was wrong in version 3.2.
    states: tuple[str, ...] = ("src_iter", "src_iter_c", "dst_iter", "dst_iter_c")

    def __init__(self, problem: Problem) -> None:
        case, cell = problem.case, CELLS[problem.case.cell]
        self.case, self._weights = case, problem.weights
        arrays = {
            "src_layer": problem.x,
            "weights_layer": self._gates("weight_ih", -2).transpose(0, 1, 4, 2, 3),
            "weights_iter": self._gates("weight_hh", -2).transpose(0, 1, 4, 2, 3),
            "bias": self._bias(),
            "dst_layer": np.zeros(problem.dy.shape),
        }
        if cell.peephole:
            arrays["weights_peephole"] = self._stacked("weight_peep")
        for name in self.states:
            if cell.lstm or name not in OF_LSTM:
                arrays[name] = np.zeros((case.L, case.D, case.B, case.H))
        self.arrays = {name: Array(array) for name, array in arrays.items()}
        self.shapes = {name: array.array.shape for name, array in self.arrays.items()}

    def _stacked(self, name: str) -> np.ndarray:
        """(L, D, ...)"""
        ends = ("", "_reverse")[: self.case.D]
        return np.array([[self._weights[f"{name}_l{n}{end}"] for end in ends] for n in range(self.case.L)])

    def _gates(self, name: str, axis: int) -> np.ndarray:
        """(L, D, ...), of its axis GH two, G and H; a GRU's gates in oneDNN's order, z r n."""
        found = np.stack(np.split(self._stacked(name), CELLS[self.case.cell].gates, axis), axis - 1)
        return np.take(found, [1, 0, 2], axis - 1) if CELLS[self.case.cell].gru else found

    def _bias(self) -> np.ndarray:
        """(L, D, G, H); of the GRU (L, D, 4, H), the last of them b_hn, which the reset gate acts on."""
        ours, theirs = (self._gates(name, -1) for name in ("bias_ih", "bias_hh"))
        if not CELLS[self.case.cell].gru:
            return ours + theirs
        return np.concatenate([ours[:, :, :2] + theirs[:, :, :2], ours[:, :, 2:], theirs[:, :, 2:]], 2)

    def outputs(self) -> Results:
        rows = (-1, self.case.B, self.case.H)
        states = {"h": "dst_iter", "c": "dst_iter_c"}
        found = {letter: self.arrays[n].array.reshape(rows).copy() for letter, n in states.items() if n in self.arrays}
        return {"y": self.arrays["dst_layer"].array.copy(), **found}


class Infer(_Sequence):
    states: tuple[str, ...] = ("dst_iter", "dst_iter_c")

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.cell = Cell(self.case, INFERENCE, self.shapes)
        self.memory = self.cell.memory(self.arrays)
        for name, own in self.arrays.items():
            if (its := self.memory[ARGUMENTS[name]]) is not own:
                _reorder(own, its)()
        self.forward = Call(self.cell.description, self.memory)

    def call(self) -> None:
        self.forward()
        _do("stream_wait", _stream)

    def results(self) -> Results:
        self.call()
        return self.outputs()


class Step(Infer):
    states = _Sequence.states

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        turned = {18: 2, 2: 18, 19: 3, 3: 19}  # what came out of the last step goes into this one
        memory = {turned.get(n, n): own for n, own in self.memory.items()}
        self.back = Call(self.cell.description, memory)
        self.pair = self.forward, self.back

    def call(self) -> None:
        super().call()
        self.forward, self.back = self.back, self.forward

    def results(self) -> Results:
        self.forward, self.back = self.pair
        for name in self.states:
            if name in self.arrays:
                self.arrays[name].array[:] = 0
        for _ in range(STEPS):  # an odd number: the last one's states are in dst_iter
            self.call()
        return self.outputs()


class Train(_Sequence):
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.how += ", forward, backward, weights and gradients brought into its layouts and back"
        forward = Cell(self.case, TRAINING, self.shapes)
        backward = Cell(self.case, BACKWARD, self.shapes, forward)
        self.gradients = {name: Array(np.zeros(shape)) for name, shape in self.shapes.items()}
        self.gradients["dst_layer"].array[:] = problem.dy
        kept = {WORKSPACE: Memory(forward.layout(WORKSPACE))}
        there, here = forward.memory(self.arrays), backward.memory(self.arrays)
        back = backward.memory(self.gradients, GRADIENT)
        calls, after = [], []
        for name, own in self.arrays.items():
            number = ARGUMENTS[name]
            calls += [_reorder(own, its[number]) for its in (there, here) if its[number] is not own]
            if (its := back[number + GRADIENT]) is not self.gradients[name]:
                after.append(_reorder(its, self.gradients[name]))
        calls.append(Call(forward.description, there | kept))
        calls.append(Call(backward.description, here | back | kept))
        self.calls = calls + after

    def call(self) -> None:
        for call in self.calls:
            call()
        _do("stream_wait", _stream)

    def results(self) -> Results:
        self.call()
        case, cell = self.case, CELLS[self.case.cell]
        found = {"y": self.arrays["dst_layer"].array.copy(), "dx": self.gradients["src_layer"].array.copy()}
        order = [1, 0, 2] if cell.gru else list(range(cell.gates))
        for n, d in np.ndindex(case.L, case.D):
            given = {name: array.array[n, d] for name, array in self.gradients.items() if "weights" in name}
            end, bias = f"l{n}{'_reverse' * d}", self.gradients["bias"].array[n, d]
            for which, name in (("ih", "weights_layer"), ("hh", "weights_iter")):
                found[f"dweight_{which}_{end}"] = given[name][:, order].reshape(len(given[name]), -1).T
            found[f"dbias_ih_{end}"] = bias[order].reshape(-1)
            found[f"dbias_hh_{end}"] = bias[[*order[:2], 3] if cell.gru else order].reshape(-1)
            if cell.peephole:
                found[f"dweight_peep_{end}"] = given["weights_peephole"]
        return found
