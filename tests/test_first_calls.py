"""First calls, whose kernels are compiled beside each other: the same results, whatever happens meanwhile."""

import os

import numpy as np
import pytest
from helpers import JIT, run_python

import fastrnn as fr
from fastrnn.threads import rehearsal

compiled = pytest.mark.skipif(not JIT, reason="without JIT nothing is compiled")

# A training step in a Python that has compiled nothing; `bits` of all that it gives.
STEP = """
import hashlib, os, threading
import numpy as np
import fastrnn as fr
from fastrnn import _llvm
from fastrnn._llvm import Translation

lstm, x = fr.LSTM(3, 5, seed=1), np.random.default_rng(2).standard_normal((4, 2, 3)).astype("f4")

def bits():
    lstm.zero_grad()
    y, state, tape = lstm.forward(x)
    dx, dstate = lstm.backward(tape, y)
    arrays = y, *state, dx, *dstate, *lstm.grads.values()
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()
"""


def cold(body):
    return run_python(STEP + body, FASTRNN_CACHE_DIR=os.devnull, NUMBA_CACHE_DIR=os.devnull).split()


@pytest.fixture(scope="module")
def expected():
    return cold("print(bits())")


@compiled
def test_all_are_begun_before_the_first_is_wanted(expected):
    """Once each; of a forward and of a backward, with what they call by name."""
    printed = cold("""
told = []

class Told(Translation):
    def __init__(self, library):
        self.of = library.name
        told.append("begun " + self.of)
        super().__init__(library)

    def result(self):
        told.append("wanted " + self.of)
        return super().result()

from fastrnn import _compiler
_compiler.Translation = Told
print(bits(), *told, sep="\\n")
""")
    bits, told = printed[0], list(zip(printed[1::2], printed[2::2], strict=True))
    assert [bits] == expected
    begun = [of for what, of in told if what == "begun"]
    assert len(set(begun)) == len(begun)
    assert sorted(begun) == sorted(of for what, of in told if what == "wanted")
    first = [what for what, _ in told].index("wanted")
    assert {"lstm_pack", "lstm_forward", "ticket_functions"} < {of for _, of in told[:first]}
    rest = told[next(k for k, (what, of) in enumerate(told) if what == "begun" and of == "lstm_backward") :]
    first = [what for what, _ in rest].index("wanted")
    assert {"lstm_backward", "gradient", "product", "pack_tape"} < {of for _, of in rest[:first]}


@compiled
@pytest.mark.parametrize(
    "place",
    [
        "_llvm._processors = lambda: 1",
        "def start(self): raise RuntimeError('no more threads')\nTranslation.start = start",
        # An llvmlite that has no function without its lock.
        "_llvm._freely = lambda name, *args: getattr(_llvm.ffi.lib, name)(*args)",
    ],
    ids=["one processor", "no threads", "with llvmlite's lock"],
)
def test_bits_are_the_same_where_nothing_goes_on_beside(expected, place):
    assert cold(f"{place}\nprint(bits())") == expected


@compiled
def test_an_error_while_llvm_works_is_the_callers(expected):
    """It may be its memory. The next call begins anew."""
    printed = cold("""
work = Translation._translated

def fails(self):
    Translation._translated = work
    raise MemoryError
Translation._translated = fails
try:
    bits()
except MemoryError:
    print("seen", bits())
""")
    assert printed == ["seen", *expected]


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_waits_for_llvm(expected):
    """Kernels have been begun and not wanted yet: nobody holds Numba's lock. The child has none of the threads."""
    printed = cold("""
import signal
from fastrnn.threads import rehearsal
work = Translation._translated

def slowly(self):
    threading.Event().wait(1)
    return work(self)
Translation._translated = slowly
with rehearsal():
    lstm.forward(x)
print(len(Translation.running) > 0 or _llvm._processors() == 1, flush=True)
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    print(len(Translation.running), bits(), flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
print(bits())
""")
    assert printed == ["True", "0", *expected, *expected]


LAYERS = {
    "rnn": lambda: fr.RNN(3, 5, num_layers=2, seed=1),
    "preactivation": lambda: fr.RNN(3, 5, preactivation=True, seed=1),
    "gru": lambda: fr.GRU(3, 5, bidirectional=True, seed=1),
    "reset before": lambda: fr.GRU(3, 5, reset="before", seed=1),
    "lstm": lambda: fr.LSTM(3, 5, num_layers=2, dropout=0.5, seed=1),
    "peephole": lambda: fr.LSTM(3, 5, peephole="diagonal", zoneout=0.3, recurrent_dropout=0.3, seed=1),
    "full": lambda: fr.LSTM(3, 5, peephole="full", input_dropout=0.3, seed=1),
    "projected": lambda: fr.LSTM(3, 5, proj_size=2, coupled=True, clip=0.1, seed=1),
    "norm": lambda: fr.LSTM(3, 5, layer_norm=True, seed=1),
    "gru norm": lambda: fr.GRU(3, 5, layer_norm=True, seed=1),
}


@pytest.mark.parametrize("given", ["dense", "indices", "lengths", "segments"])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_a_rehearsal_leaves_nothing(make, given):
    """No packed weights that are not packed, no random number drawn, no gradient."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 3, 3)).astype(np.float32)
    h0 = rng.standard_normal((make().num_layers * make().directions, 3, 5)).astype(np.float32)
    if given == "indices":
        x = rng.integers(0, 3, (4, 3))
    how = {"lengths": {"lengths": [2, 4, 1]}, "segments": {"segments": 2}}.get(given, {})

    def passes(layer):
        state = None if isinstance(layer, fr.LSTM) else h0
        y, final, tape = layer.forward(x, state, **how)
        dx, dstate = layer.backward(tape, np.ones_like(y), final)
        again, _ = layer(x, state, **{k: v for k, v in how.items() if k == "lengths"})
        one = (final, dstate) if layer.states == 1 else (*final, *dstate)
        return [a for a in (y, again, dx, *one, *layer.grads.values()) if a is not None]

    rehearsed, known = make(), make()
    known._rehearsed |= {True, False, "back"}
    for a, b in zip(passes(rehearsed), passes(known), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_rehearsal_makes_no_table_of_vectors():
    """Inference for the first time, after a training pass and a change of the embedding that its table is made from."""
    x = np.random.default_rng(3).integers(0, 7, (4, 3))

    def model():
        return fr.Sequential(fr.Embedding(7, 3, seed=1), fr.GRU(3, 5, seed=2))

    net, fresh = model(), model()
    net.forward(x)
    for one in (net, fresh):
        one.params["0.weight"] = np.ones((7, 3))
    np.testing.assert_array_equal(net(x)[0], fresh(x)[0])


def test_nothing_is_launched_in_a_rehearsal():
    layer, x = fr.LSTM(3, 5, seed=1), np.ones((4, 2, 3), np.float32)
    fr.last_call_info()
    with rehearsal():
        layer.forward(x)  # which has one within
    assert fr.last_call_info() == []
    with pytest.raises(TypeError), rehearsal():
        layer.forward(x, "no state")
    y, _, _ = layer.forward(x)
    assert [one.kernel for one in fr.last_call_info()] == ["lstm_pack", "lstm_forward"]
    np.testing.assert_array_equal(y, fr.LSTM(3, 5, seed=1)(x)[0])
