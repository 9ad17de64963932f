"""No kernel touches anything outside its arrays.

Every array that a kernel gets, its scratch and its counters too, is placed directly before or directly after
a page that cannot be read, in a process of its own: an access outside is a crash there, and a failure here.
What is left of the pages beside an array is filled with NaN, and has to stay so.
"""

import contextlib
import ctypes
import gc
import importlib
import math
import mmap
import os
import pkgutil
import sys

import numba
import numpy as np
import pytest
from helpers import ALL_CELLS, CELLS, GATES, JIT, Problem, assert_same_bits, mixed_lengths, run_python, seldom

import fastrnn as fr
import fastrnn.kernels
from fastrnn import threads
from fastrnn._jit import kernel
from fastrnn.kernels import embedding, panels
from fastrnn.simd.target import lanes
from fastrnn.simd.vector import load, pointwise, store

pytestmark = [
    pytest.mark.skipif(not JIT, reason="without JIT, NumPy checks every access"),
    pytest.mark.skipif(os.name != "posix", reason="pages are protected by POSIX's mprotect"),
]

SIDES = ("before", "after")
PAGE = mmap.PAGESIZE
UNTOUCHED = 0xFF  # the bytes beside an array; as floats they are NaN


class Guarded:
    """A copy of `a`: its first byte directly after an unreadable page, or its last directly before one."""

    def __init__(self, a, side):
        size = -(-max(a.nbytes, 1) // PAGE) * PAGE
        # The views keep the region alive, also for a helper that comes late and finds nothing left to do.
        region = np.frombuffer(mmap.mmap(-1, size + 2 * PAGE), np.uint8)
        self.pages = region[PAGE : PAGE + size]
        self.start = 0 if side == "before" else size - a.nbytes
        self.end = self.start + a.nbytes
        self.pages[:] = UNTOUCHED
        self.array = self.pages[self.start : self.end].view(a.dtype).reshape(a.shape)
        self.array[...] = a
        self.array.flags.writeable = a.flags.writeable
        for page in (region[:PAGE], region[PAGE + size :]):
            protect(page)

    def check(self):
        assert np.all(self.pages[: self.start] == UNTOUCHED)
        assert np.all(self.pages[self.end :] == UNTOUCHED)


def protect(page):
    """Makes a page unreadable and unwritable."""
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if mprotect(page.ctypes.data, page.nbytes, 0):
        raise OSError(ctypes.get_errno(), "mprotect")


# --- a control ----------------------------------------------------------------------------------------------


@pointwise
def copy_some(to, source, off, count):
    """One vector of to, source, from `off`: its first `count` elements written, read."""
    store(to, off, load(source, off, count), count)


@numba.njit
def run_copy(to, source, off, count):
    copy_some(to, source, off, count)


def copy_guarded(side, guarded, off, count):
    """A copy within three vectors, one of the arrays guarded; `off` counts from the guarded end."""
    w = lanes("float32")
    arrays = {name: np.ones(3 * w, np.float32) for name in ("to", "source")}
    hold = Guarded(arrays[guarded], side)
    arrays[guarded] = hold.array
    run_copy(arrays["to"], arrays["source"], off if side == "before" else 2 * w + off, count)
    hold.check()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("guarded", ["to", "source"])
def test_an_overrun_crashes(side, guarded):
    """The test of the test: one element too far, read or written, ends the process; up to the end doesn't."""
    code = f"import test_guard_pages as t; t.copy_guarded({side!r}, {guarded!r}, {{off}}, {{count}})"
    w = lanes("float32")
    run_python(code.format(off=0, count=w))
    one_too_far = -1 if side == "before" else 1
    with pytest.raises(AssertionError, match=r"exit code -(7|10|11)\b"):  # SIGSEGV, or SIGBUS
        run_python(code.format(off=one_too_far, count=w))
    if side == "after":  # lanes that are masked out do not count
        run_python(code.format(off=one_too_far, count=w - 1))


def test_what_is_beside_an_array_is_seen():
    """A write into the rest of the page, where nothing crashes, is found too."""
    hold = Guarded(np.ones(3, np.float32), "before")
    hold.check()
    hold.pages[hold.end + 5] = 0
    with pytest.raises(AssertionError):
        hold.check()


# --- every kernel -------------------------------------------------------------------------------------------


def every_kernel():
    """Every kernel there is, by name."""
    modules = [
        importlib.import_module(module.name)
        for module in pkgutil.iter_modules(fastrnn.kernels.__path__, "fastrnn.kernels.")
    ]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, kernel)]
    return {name_of(value) for value in found}


def name_of(run):
    return f"{run.__module__}.{run.__name__}"


def call_guarded(side, call, args):
    """`call(*args)` with a guarded copy in the place of every array, and what was written brought back."""
    arrays = {a.ctypes.data: a for a in args if isinstance(a, np.ndarray) and a.size}
    holds = {address: Guarded(a, side) for address, a in arrays.items()}

    def guarded(a):
        if not isinstance(a, np.ndarray):
            return a
        if not a.size:
            return Guarded(a, side).array
        assert arrays[a.ctypes.data].shape == a.shape, "two arguments overlap"
        return holds[a.ctypes.data].array

    result = call(*map(guarded, args))
    for address, hold in holds.items():
        hold.check()
        if arrays[address].flags.writeable:
            arrays[address][...] = hold.array
    return result


@contextlib.contextmanager
def guarded_kernels(side):
    """Every kernel works on guarded copies, launched or called. Gives the names of those that have run."""
    ran, launch, new_tickets, for_types = set(), threads.launch, threads.new_tickets, kernel.for_types
    for name in fr.__all__:
        getattr(fr, name)  # loads its module
    users = [m for name, m in sys.modules.items() if name.startswith("fastrnn") and hasattr(m, "launch")]

    def guarded_launch(run, workers, phases, work, *args):
        ran.add(name_of(run))
        call_guarded(side, lambda *copies: launch(run, workers, phases, work, *copies), args)

    def guarded_for_types(self, *args):
        made = for_types(self, *args)

        def call(*args):
            done = call_guarded(side, made, args)
            if done:
                ran.add(name_of(self))
            return done

        return call

    threads.new_tickets = lambda phases, workers: Guarded(new_tickets(phases, workers), side).array
    kernel.for_types = guarded_for_types
    for module in users:
        module.launch = guarded_launch
    yield ran
    threads.new_tickets, kernel.for_types = new_tickets, for_types
    for module in users:
        module.launch = launch


def recurrent(size, dtype, cells):
    """The outputs and gradients of these cells with `size` hidden units, for every kind of input."""
    w = lanes(dtype)
    results = {}
    for number, cell in enumerate(cells):
        problem = Problem(
            cell,
            T=1 + size % 3,
            B=1 + (size + 5 * number) % 13,
            I=1 + (7 * size + 3 * number) % (3 * w),
            H=size + ALL_CELLS[cell][1].get("proj_size", 0),  # which is smaller than H
            L=1 + size // 2 % 2,
            bidirectional=(size + number) % 3 == 0,
            bias=size % 5 != 0,
            has_state=size % 7 != 0,
            has_dy=size % 9 != 8,
            dtype=dtype,
            more=(("preactivation", True),) if cell == "rnn_tanh" and size % 2 else (),
        )
        problem = problem.but(lengths=mixed_lengths(problem.T, problem.B) if (size + number) % 4 < 2 else None)
        for one in (problem, problem.but(indices=True)):
            outputs, gradients = one.solve()
            for kind, arrays in (("", outputs), ("", gradients), ("inferred ", one.infer(one.layer()))):
                results |= {f"{cell} {one.indices} {kind}{name}": a for name, a in arrays.items()}
        problem = problem.but(bidirectional=False)
        layer, state = problem.layer(), problem.but(has_state=True).state
        for step in range(3):  # from the second one on, a kernel of its own
            y, state = layer(problem.x[:1], state)
            results |= {f"{cell} step {step} {name}": a for name, a in problem.unpack(state).items()}
            results[f"{cell} step {step} y"] = y
    return results


def far(dtype):
    """Weights that tiles of many rows fetch from behind what they read: behind the last ones there is nothing."""
    results = {}
    for cell in ("lstm", "gru", "rnn_tanh"):
        hidden = 1 + math.isqrt(panels.NEAR // np.dtype(dtype).itemsize // GATES[CELLS[cell][0]])
        problem = Problem(cell, T=2, B=13, I=5, H=hidden, L=1, dtype=dtype)
        outputs, gradients = problem.solve()
        results |= {f"{cell} {name}": a for name, a in (outputs | gradients).items()}
    return results


def model(size, dtype):
    """Embedding, LSTM, linear layer, loss, clipping and every optimizer, on a vocabulary of `size`."""
    rng = np.random.default_rng(size)
    results = {}
    optimizers = {
        "SGD": lambda m: fr.SGD(m, lr=0.1),
        "momentum": lambda m: fr.SGD(m, lr=0.1, momentum=0.9),
        "Adagrad": lambda m: fr.Adagrad(m, lr=0.1),
        "Adadelta": lambda m: fr.Adadelta(m),
        "RMSProp": lambda m: fr.RMSProp(m, lr=0.1),
        "RMSProp with all": lambda m: fr.RMSProp(m, lr=0.1, momentum=0.9, centered=True, weight_decay=0.1),
        "Adam": lambda m: fr.Adam(m, lr=0.1),
        "AdamW": lambda m: fr.AdamW(m, lr=0.1),
    }
    hidden, ids, targets = 1 + 5 * size % 19, rng.integers(0, size, (3, 2)), rng.integers(0, size, (3, 2))
    for name, make in optimizers.items():
        m = fr.Sequential(
            fr.Embedding(size, 3, dtype=dtype, seed=1),
            fr.LSTM(3, hidden, dtype=dtype, seed=2),
            fr.Linear(hidden, size, dtype=dtype, seed=3),
        )
        logits, _, tape = m.forward(ids)
        loss, dlogits = fr.cross_entropy(logits, targets)
        m.backward(tape, dlogits)
        fr.clip_grad_norm(m, 0.01)
        fr.clip_grad_value(m, 0.001)
        make(m).step()
        results |= {f"{name} loss": np.array(loss), f"{name} dlogits": dlogits}
        results |= {f"{name} {parameter}": a.copy() for parameter, a in m.params.items()}
    return results


def losses(size, dtype):
    """Losses and the softmax on `size` classes, and the optimizers on a vector of that many elements."""
    rng = np.random.default_rng(size)
    x, y = rng.standard_normal((2, 1 + size % 5, size)).astype(dtype)
    targets = rng.integers(0, size, len(x))
    results = {}
    results["loss"], results["dlogits"] = fr.cross_entropy(x, targets)
    results["loss alone"], _ = fr.cross_entropy(x, targets, gradient=False)
    weight, mask = rng.uniform(0.5, 2, size).astype(dtype), rng.random(len(x)) < 0.7
    for options in (
        {"weight": weight},
        {"label_smoothing": 0.1},
        {"weight": weight, "label_smoothing": 0.1, "mask": mask, "reduction": "sum"},
    ):
        results[f"loss {options}"], results[f"dlogits {options}"] = fr.cross_entropy(x, targets, **options)
    results["loss of q"], results["dlogits of q"] = fr.cross_entropy(x, fr.softmax(y))
    h, table = rng.standard_normal((len(x), 3)).astype(dtype), rng.standard_normal((size, 3)).astype(dtype)
    results |= zip(("linear loss", "dh", "dtable"), fr.linear_cross_entropy(h, table, None, targets, rows=2)[:3])
    results["softmax"], results["log softmax"] = fr.softmax(x, temperature=0.7), fr.log_softmax(x)
    results["mse"], results["dy"] = fr.mse(x, y)
    return {name: np.asarray(a) for name, a in results.items()}


def rows(size, dtype):
    """Rows of `size` columns from a table, and back into it."""
    rng = np.random.default_rng(size)
    table = rng.standard_normal((5, size)).astype(dtype)
    ids = np.array([4, 0, 4, 2, 0, 4, 1])
    y, dtable = np.empty((7, size), dtype), np.zeros_like(table)
    for pieces in (1, 2):
        vectors = -(-size // lanes(dtype))
        args = (np.where(ids == 2, -1, ids), table.reshape(-1), y.reshape(-1))
        threads.launch(embedding.gather, pieces, 1, 0, 7, size, pieces, *args)
        args = (ids, y.reshape(-1), dtable.reshape(-1))
        threads.launch(embedding.scatter_add, pieces, 1, 0, 7, size, min(pieces, vectors), *args)
    return {"y": y, "dtable": dtable}


def products(size, dtype):
    """The linear layer with `size` inputs and few or many outputs, and a long sum."""
    results = {}
    for outputs, n in ((1, 3), (size, 1), (2 * size + 1, 14), (3, 300)):
        layer = fr.Linear(size, outputs, dtype=dtype, seed=1)
        x = np.random.default_rng(n).standard_normal((n, size)).astype(dtype)
        y, tape = layer.forward(x)
        dx = layer.backward(tape, y)
        steps = [layer(x[None, :7]) for _ in range(2)]  # the second one by a kernel of its own
        results |= {f"{n} y": y, f"{n} dx": dx, f"{n} step": steps[1]}
        results |= {f"{n} d{name}": a.copy() for name, a in layer.grads.items()}
    return results


def writing(size, dtype):
    """Characters written by language models with `size` units."""
    results = {}
    for cell, more in ((fr.LSTM, {"peephole": "diagonal"}), (fr.GRU, {}), (fr.RNN, {})):
        m = fr.Sequential(
            fr.Embedding(size + 1, 3, dtype=dtype, seed=1),
            cell(3, size, 1 + size % 2, dtype=dtype, seed=2, **more),
            fr.Linear(size, size + 1, dtype=dtype, seed=3),
        )
        ids, state = m.write([size, 0, size // 2], 4, rng=np.random.default_rng(size))
        results |= {f"{cell.__name__} ids": ids, f"{cell.__name__} h": np.asarray(state[0])}
    return results


def everything(dtype, cells, sizes):
    """Runs every kernel plainly, then guarded on either side, in one process: the results must be the same bits."""
    threads.SMALL = 0  # whatever there is to do is shared
    plainly = results_of(dtype, cells, sizes)
    for side in SIDES:
        with guarded_kernels(side) as ran:
            guarded = results_of(dtype, cells, sizes)
        missing = every_kernel() - ran
        if "lstm_peephole_full" not in cells:
            missing.discard("fastrnn.kernels.lstm.lstm_pack_full")
        assert not missing, f"never run: {', '.join(sorted(missing))}"
        for one, plain in zip(guarded, plainly, strict=True):
            assert_same_bits(one, plain)


def results_of(dtype, cells, sizes):
    """What every task gives for every (size, number of threads)."""
    results = []
    for size, workers in sizes:
        fr.set_num_threads(workers)
        gc.collect()  # pages that only cycles refer to: a process may have so many mappings and no more
        results.append(recurrent(size, dtype, cells))
        results += [task(size, dtype) for task in (model, losses, rows, products, writing)]
    return [*results, far(dtype)]


# Of those that take long to compile, some.
NORMED = {"float32": ("lstm_norm",), "float64": ("gru_norm",)}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_kernel_stays_inside(dtype, effort):
    """Sizes from 1 to a little over 3 vectors, all of them or those about the ends of each; alone and shared among
    three workers.
    """
    w = lanes(dtype)
    few = sorted({1, 2, w // 2, w - 1, w, w + 1, 2 * w - 1, 2 * w, 2 * w + 3, 3 * w + 1})
    sizes = [(size, 3 if size % 4 == 0 else 1) for size in effort(few, range(1, 3 * w + 2))]
    cells = effort([cell for cell in CELLS if not seldom(cell, dtype)] + [*NORMED[dtype]], [*ALL_CELLS])
    run_python(f"import test_guard_pages as t; t.everything({dtype!r}, {cells}, {sizes})", timeout=effort(600, 3600))
