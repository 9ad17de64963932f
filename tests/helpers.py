"""What several test files share: problems to solve, how to compare, how to run another Python."""

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numba
import numpy as np
import pytest
import reference
from numba.core.codegen import get_host_cpu_features

from fastrnn._jit import kernel

ROOT = Path(__file__).parent.parent
JIT = not numba.config.DISABLE_JIT

# The two forms of a kernel (see _jit.py) differ in some instructions around it, and each takes as long to compile. In
# every process that imports this module, small calls too run the one that gives the GIL away, but for
# test_numbers.py::test_forms; processes that do not (the command's, those of test_fork_threads.py) run both.
kernel.held = property(lambda self: self.released)


def held_form(run):
    """What `held` is otherwise."""
    return run.__dict__.get("held") or kernel.__getattr__(run, "held")


# name -> the class and the keyword that make it
CELLS = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "rnn_sigmoid": ("RNN", {"nonlinearity": "sigmoid"}),
    "rnn_identity": ("RNN", {"nonlinearity": "identity"}),
    "lstm": ("LSTM", {}),
    "lstm_peephole": ("LSTM", {"peephole": "diagonal"}),
    "lstm_peephole_full": ("LSTM", {"peephole": "full"}),
    "lstm_clip": ("LSTM", {"peephole": "diagonal", "clip": 0.6}),
    "lstm_activations": ("LSTM", {"activations": ("hardsigmoid", "sigmoid", "relu")}),
    "lstm_coupled": ("LSTM", {"peephole": "diagonal", "coupled": True}),
    "lstm_projected": ("LSTM", {"proj_size": 3}),
    "gru": ("GRU", {}),
    "gru_before": ("GRU", {"reset": "before"}),
}
# Layer normalisation, whose kernels take twice as long to compile. Where tests of every cell take these, it is in the
# long form; test_layer_norm.py asks the same of fewer problems.
NORMED = {
    "lstm_norm": ("LSTM", {"layer_norm": True}),
    "lstm_norm_more": (
        "LSTM",
        {
            "layer_norm": True,
            "layer_norm_eps": 1e-3,
            "peephole": "diagonal",
            "coupled": True,
            "clip": 1.0,
            "proj_size": 3,
        },
    ),
    "gru_norm": ("GRU", {"layer_norm": True}),
}
ALL_CELLS = CELLS | NORMED
# Each type of number is compiled by itself, 5 to 20 s a cell. All cells are tried in float64, whose errors are small
# enough to be seen; in float32 these, and in the long form all the others, which are options of these.
IN_FLOAT32 = ("rnn_tanh", "rnn_relu", "lstm", "lstm_peephole", "gru")
# One cell for each text of a kernel; the other cells are options of these.
TEXTS = ("rnn_tanh", "lstm_peephole", "lstm_peephole_full", "lstm_projected", "gru", "gru_before")
# Those with a kink, over which a difference may step.
KINKED = ("rnn_relu", "lstm_clip", "lstm_activations")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}

# What a Python is told that compiles for 256-bit vectors.
NARROW = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+cx16,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+movbe",
}


def is_wide():
    """Whether this process compiles for wider ones."""
    return JIT and numba.config.CPU_NAME is None and "+avx512f" in get_host_cpu_features()


def seldom(cell, dtype="float64"):
    """The marks of this cell's tests: in the long form, or none."""
    return pytest.mark.long if cell in NORMED or (dtype == "float32" and cell not in IN_FLOAT32) else ()


def those(values, some, ids=None):
    """Parameters of a test: with JIT all but `some` of them are in the long form, as each has kernels of its own."""
    names = ids or [None] * len(values)
    return [
        pytest.param(value, id=name, marks=pytest.mark.long if JIT and value not in some else ())
        for value, name in zip(values, names, strict=True)
    ]


def large(cell):
    """Sizes worth more than one core: more units for the vanilla RNN, which has a fraction of the others' work.
    Without JIT, where one core does it all and slowly, sizes with a few tails.
    """
    if not JIT:
        return {"T": 3, "B": 4, "I": 7, "H": 18}
    if ALL_CELLS[cell][0] != "RNN":
        return {"T": 20, "B": 13, "I": 37, "H": 100}
    return {"T": 20, "B": 13, "I": 67, "H": 190}


def mixed_lengths(T, B):
    """Lengths in no order, B from 1: the last row goes on to the end, the middle one never starts."""
    between = np.linspace(1, T, max(B - 2, 0)).astype(int)
    between = np.random.default_rng([T, B]).permutation(between).tolist()
    return tuple([*between[: B // 2], 0, *between[B // 2 :], T][-B:])


@dataclass(frozen=True)
class Problem:
    """One recurrent layer and all that goes in, made from sizes, options and a seed alone.

    The methods without `layer` are the reference's view, always float64 and time-major; `forward` and
    `backward` are fastrnn's. Both speak of the same dicts: outputs `y h c`, gradients `dx dh0 dc0 d...`.
    """

    cell: str = "lstm_peephole"
    T: int = 5
    B: int = 3
    I: int = 7  # noqa: E741 - the glossary's letter
    H: int = 11
    L: int = 1
    bidirectional: bool = False
    lengths: tuple | None = None  # B numbers from 0 to T
    bias: bool = True
    batch_first: bool = False
    indices: bool = False  # x is (T, B) integers: rows of the one-hot matrix
    has_state: bool = True
    has_dy: bool = True
    has_dstate: bool = True
    dtype: str = "float64"
    seed: int = 0
    more: tuple = ()  # of (name, value): options of the class besides the cell's

    def __post_init__(self):
        assert self.has_dy or self.has_dstate, "no gradient comes in"

    @property
    def kind(self):
        return ALL_CELLS[self.cell][0]

    @property
    def options(self):
        """The keywords that make the cell."""
        return ALL_CELLS[self.cell][1] | dict(self.more)

    @property
    def arguments(self):
        """The reference's other arguments."""
        return self.options | {"lengths": self.lengths}

    @property
    def D(self):
        """Directions."""
        return 2 if self.bidirectional else 1

    @property
    def O(self):  # noqa: E743 - the glossary's letter
        """The width of one direction's output, and of h: H, or what H is projected to."""
        return self.options.get("proj_size") or self.H

    @property
    def width(self):
        """The width of y: both directions' outputs, or their sum."""
        return self.O if self.options.get("merge") == "sum" else self.D * self.O

    def shape_of(self, name):
        """The shape of y, h or c."""
        if name == "y":
            return self.T, self.B, self.width
        return self.L * self.D, self.B, self.H if name == "c" else self.O

    @property
    def states(self):
        return ("h", "c") if self.kind == "LSTM" else ("h",)

    # --- what goes in ---------------------------------------------------------------------------------------

    def rng(self, name):
        """Each array has a generator of its own: its values do not depend on which was asked for first."""
        return np.random.default_rng([self.seed, *name.encode()])

    def random(self, name, *shape, scale=0.5):
        """Normal numbers, rounded to the layer's type, so that both sides start from the same ones."""
        return (scale * self.rng(name).standard_normal(shape)).astype(self.dtype).astype("float64")

    @cached_property
    def params(self):
        coupled, peephole = self.options.get("coupled"), self.options.get("peephole")
        rows = (GATES[self.kind] - bool(coupled)) * self.H
        shapes = {}
        for layer in range(self.L):
            for end in ("", "_reverse")[: self.D]:
                one = {"weight_ih": (rows, self.I if layer == 0 else self.width), "weight_hh": (rows, self.O)}
                if self.bias:
                    one |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if self.options.get("proj_size"):
                    one["weight_hr"] = (self.O, self.H)
                if peephole:
                    one["weight_peep"] = (2 if coupled else 3, self.H) + (self.H,) * (peephole == "full")
                if self.options.get("layer_norm"):
                    one |= {"weight_ln_ih": (rows,), "weight_ln_hh": (rows,)}
                    one |= {"weight_ln_c": (self.H,), "bias_ln_c": (self.H,)} if self.kind == "LSTM" else {}
                shapes |= {f"{name}_l{layer}{end}": shape for name, shape in one.items()}
        # Pre-activations stay of order 1: the gradients of saturated gates would be made of rounding errors.
        scales = {
            name: shape[-1] ** -0.5
            if name.startswith(("weight_ih", "weight_hh", "weight_hr")) or len(shape) == 3
            else 0.5
            for name, shape in shapes.items()
        }
        return {name: self.random(name, *shape, scale=scales[name]) for name, shape in shapes.items()}

    @cached_property
    def ids(self):
        return self.rng("ids").integers(0, self.I, (self.T, self.B)) if self.indices else None

    @cached_property
    def inputs(self):
        """Every array that has a gradient, under its name."""
        arrays = {} if self.indices else {"x": self.random("x", self.T, self.B, self.I, scale=1.0)}
        if self.has_state:
            arrays |= {f"{name}0": self.random(f"{name}0", *self.shape_of(name)) for name in self.states}
        return arrays | self.params

    @cached_property
    def doutputs(self):
        """Random gradients of y and of the final state; zeros for what the problem has none of."""
        shapes = {name: self.shape_of(name) for name in ("y", *self.states)}
        given = {name: self.has_dy if name == "y" else self.has_dstate for name in shapes}
        return {name: given[name] * self.random(f"d{name}", *shape, scale=1.0) for name, shape in shapes.items()}

    # --- what must come out ---------------------------------------------------------------------------------

    def outputs(self, arrays=None):
        """The reference's outputs for these arrays (by default the problem's own)."""
        arrays = self.inputs if arrays is None else arrays
        x = arrays["x"] if "x" in arrays else reference.one_hot(self.ids, self.I)
        params = {name: array for name, array in arrays.items() if name not in ("x", "h0", "c0")}
        state = [arrays.get(f"{name}0") for name in self.states]
        run = {"RNN": reference.rnn, "GRU": reference.gru, "LSTM": reference.lstm}[self.kind]
        outputs = run(params, x, *state, **self.arguments)
        return dict(zip(("y", *self.states), outputs, strict=True))

    def loss(self, arrays):
        """The number whose gradient by y, h, c is `doutputs`."""
        out = self.outputs(arrays)
        return sum((dout * out[name]).sum(axis=(-3, -2, -1)) for name, dout in self.doutputs.items())

    @cached_property
    def gradients(self):
        """Every gradient, by complex step."""
        by_name = reference.complex_step(self.loss, self.inputs)
        return {f"d{name}": gradient for name, gradient in by_name.items()}

    # --- what comes out -------------------------------------------------------------------------------------

    def layer(self):
        """The fastrnn layer with the problem's parameters."""
        import fastrnn as fr

        layer = getattr(fr, self.kind)(
            self.I,
            self.H,
            num_layers=self.L,
            bias=self.bias,
            batch_first=self.batch_first,
            dtype=self.dtype,
            bidirectional=self.bidirectional,
            **self.options,
        )
        assert set(layer.params) == set(self.params)
        for name, array in self.params.items():
            layer.params[name] = array.astype(self.dtype)
        return layer

    def turned(self, a):
        """(T, B, ...) as the layer wants it, or back."""
        return np.ascontiguousarray(np.swapaxes(a, 0, 1)) if self.batch_first else a

    @property
    def x(self):
        return self.turned(self.ids if self.indices else self.inputs["x"].astype(self.dtype))

    @property
    def state(self):
        return self.pack({n: self.inputs[f"{n}0"].astype(self.dtype) for n in self.states}) if self.has_state else None

    @property
    def dy(self):
        return self.turned(self.doutputs["y"].astype(self.dtype)) if self.has_dy else None

    @property
    def dstate(self):
        return self.pack({n: self.doutputs[n].astype(self.dtype) for n in self.states}) if self.has_dstate else None

    def pack(self, by_name):
        """{"h": h, "c": c} as the layer takes a state: (h, c) or h."""
        return tuple(by_name[name] for name in self.states) if self.kind == "LSTM" else by_name["h"]

    def unpack(self, state):
        return dict(zip(self.states, state if self.kind == "LSTM" else (state,), strict=True))

    def infer(self, layer):
        """The outputs of inference."""
        y, state = layer(self.x, self.state, self.lengths)
        return {"y": self.turned(y)} | self.unpack(state)

    def forward(self, layer):
        """The outputs of a training pass, and its tape."""
        y, state, tape = layer.forward(self.x, self.state, self.lengths)
        return {"y": self.turned(y)} | self.unpack(state), tape

    def backward(self, layer, tape):
        """What a backward returns and what it adds to the layer's gradients, copied."""
        before = {name: gradient.copy() for name, gradient in layer.grads.items()}
        dx, dstate = layer.backward(tape, self.dy, self.dstate)
        gradients = {f"d{name}": grad - before[name] for name, grad in layer.grads.items()}
        if self.indices:
            assert dx is None
        else:
            gradients["dx"] = self.turned(dx)
        if self.has_state:
            gradients |= {f"d{name}0": d for name, d in self.unpack(dstate).items()}
        return gradients

    def solve(self):
        """Outputs and gradients of a fresh layer's training pass."""
        layer = self.layer()
        outputs, tape = self.forward(layer)
        return outputs, self.backward(layer, tape)

    def but(self, **changes):
        """The same problem with other options."""
        return replace(self, **changes)


# --- comparing ----------------------------------------------------------------------------------------------


def assert_close(actual, expected, tolerance, share=0.0):
    """Dicts with the same names; arrays equal within `tolerance` of the largest value expected in each.

    share : an array whose values are smaller than this share of the largest of all, as those of a gradient are whose
        terms cancel, is held to that share instead
    """
    assert set(actual) == set(expected)
    least = share * max((np.abs(want).max() for want in expected.values()), default=0) if share else 0
    for name, want in expected.items():
        got = np.asarray(actual[name])
        assert got.shape == want.shape, f"{name} has shape {got.shape}, expected {want.shape}"
        largest, error = np.abs(want).max(), np.abs(got - want).max()
        assert error <= tolerance * max(largest, least), (
            f"{name} is off by {error:.2e}, its largest value is {largest:.2e}"
        )


def assert_same_bits(actual, expected):
    """Dicts with the same names; every array equal bit for bit."""
    assert set(actual) == set(expected)
    for name, want in expected.items():
        got = np.asarray(actual[name])
        assert (got.dtype, got.shape) == (want.dtype, want.shape), name
        if got.tobytes() != want.tobytes():
            differ = np.argwhere((got != want) & ~(np.isnan(got) & np.isnan(want)))
            raise AssertionError(f"{name}: {len(differ)} of {got.size} elements differ, first at {differ[:3].tolist()}")


def bits_of(arrays):
    """All the bits of a dict of arrays, to compare an object before and after."""
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


# --- other libraries, other processes -----------------------------------------------------------------------


def import_or_skip(name):
    """A peer to compare with, or a skip of the whole file that says what to install. What the peer warns of
    while it is imported is its own affair.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reason = f'no comparison with {name}: {error} (pip install "fastrnn[peers]")'
            return pytest.skip(reason, allow_module_level=True)


def run_python(code, *, timeout=120, **environment):
    """Runs `code` in a fresh Python that can import fastrnn and the tests; returns what it printed.

    A variable set to None is removed from the environment. A hang or an abort is a failure.
    """
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={name: value for name, value in variables.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        printed, complaints = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its forks too: a child that hangs would outlive it
        printed, complaints = process.communicate()
        raise AssertionError(f"no end after {timeout} s\n{printed}\n{complaints}") from None
    assert process.returncode == 0, f"exit code {process.returncode}\n{printed}\n{complaints}"
    return printed
