"""`forward(segments=)`: the forward is run again, segment by segment, instead of being kept. Not one bit changes, and
the memory is what the top of fastrnn/layers/recurrent.py says.
"""

import weakref

import numpy as np
import pytest
from helpers import CELLS, JIT, TEXTS, Problem, assert_close, assert_same_bits, bits_of, mixed_lengths
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import problems

import fastrnn as fr
from fastrnn.layers import buffers, layout, recurrent
from fastrnn.layers.layer import Tape

DTYPE = "float64"
SIZE = {"T": 7, "B": 5, "I": 3, "H": 19} if JIT else {"T": 4, "B": 3, "I": 2, "H": 5}
texts = pytest.mark.parametrize("cell", TEXTS)


def solve(problem, segments, layer=None):
    """Outputs and gradients of a training pass."""
    layer = layer or problem.layer()
    y, state, tape = layer.forward(problem.x, problem.state, problem.lengths, segments)
    outputs = {"y": problem.turned(y)} | problem.unpack(state)
    before = bits_of(outputs)
    gradients = problem.backward(layer, tape)
    assert bits_of(outputs) == before  # the second forward has written the same h over it
    return outputs | gradients


def assert_one_result(actual, expected):
    """The same bits; without JIT, where the order of a sum is NumPy's choice, the same to rounding."""
    if JIT:
        assert_same_bits(actual, expected)
    else:
        there = {name for name, want in expected.items() if want.size}
        assert actual.keys() == expected.keys()
        assert_close({n: actual[n] for n in there}, {n: expected[n] for n in there}, 1e-12, share=1e-3)


# --- the same bits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS if JIT else TEXTS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "two ways"])
@pytest.mark.parametrize("cut", [False, True], ids=["uniform", "lengths"])
def test_same_bits(cell, bidirectional, cut):
    """Outputs, states, dx, the gradients of the initial state and of every parameter, of two layers."""
    problem = Problem(cell, **SIZE, L=2, bidirectional=bidirectional, dtype=DTYPE)
    problem = problem.but(lengths=mixed_lengths(problem.T, problem.B) if cut else None)
    expected = solve(problem, None)
    for segments in (1, 2, 3, problem.T, "sqrt") if JIT else (2, problem.T):
        assert_one_result(solve(problem, segments), expected)


@texts
@settings(max_examples=15 if JIT else 2)
@given(data=st.data())
def test_same_bits_for_any_options(cell, data):
    """Sizes from 1, no bias, batch first, indices, no dy, no dstate, any lengths, any number of segments."""
    problem = data.draw(problems(cell, DTYPE))
    segments = data.draw(st.integers(1, problem.T) | st.just("sqrt"))
    assert_one_result(solve(problem, segments), solve(problem, None))


def test_same_bits_over_many_rows_and_threads(set_num_threads, monkeypatch):
    """More rows than a product sums at a time, so that its blocks lie elsewhere; by several workers."""
    size = {"T": 9, "B": 130, "I": 37, "H": 40} if JIT else {"T": 3, "B": 4, "I": 5, "H": 9}
    monkeypatch.setattr("fastrnn.threads.SMALL", 0)
    for cell in ("rnn_tanh", "lstm_peephole", "gru"):
        problem = Problem(cell, **size, bidirectional=True, dtype=DTYPE)
        for one in (problem, problem.but(lengths=mixed_lengths(problem.T, problem.B))):
            set_num_threads(1)
            expected = solve(one, None)
            for threads in (1, 2, 3):
                set_num_threads(threads)
                assert_one_result(solve(one, 2), expected)


@pytest.mark.parametrize("lengths", [None, (7, 0, 3, 5, 7)], ids=["uniform", "lengths"])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("RNN", {"recurrent_dropout": 0.4, "zoneout": 0.3}),
        ("RNN", {"preactivation": True}),
        ("LSTM", {"peephole": "diagonal", "recurrent_dropout": 0.4, "zoneout": (0.2, 0.5)}),
        ("GRU", {"reset": "before", "recurrent_dropout": 0.4, "zoneout": 0.3}),
    ],
    ids=["rnn", "preactivation", "lstm", "gru"],
)
def test_same_bits_with_masks(kind, more, lengths):
    """A segment that is run again has the masks that it had: one of each row, or of each row and step."""
    T, B, I, H = 7, 5, 3, 19  # noqa: E741 - the glossary's letter
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, 2 * H))
    results = []
    for segments in (None, 1, 3, T):
        layer = getattr(fr, kind)(
            I, H, 2, bidirectional=True, input_dropout=0.2, dropout=0.1, dtype="float64", seed=5, **more
        )
        y, state, tape = layer.forward(x, None, lengths, segments)
        dx, dstate = layer.backward(tape, dy)
        states = state if kind == "LSTM" else (state,)
        dstates = dstate if kind == "LSTM" else (dstate,)
        named = {"y": y, "dx": dx} | {f"s{k}": a for k, a in enumerate(states + dstates)}
        results.append(named | dict(layer.grads))
    for result in results[1:]:
        assert_one_result(result, results[0])


@pytest.mark.skipif(not JIT, reason="without JIT the order of a sum is NumPy's choice")
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_another_order_of_a_sum_is_seen(cell, monkeypatch):
    """The test of the test: rows summed the other way round are the same without segments and others with them."""
    problem = Problem(cell, **SIZE, dtype="float32")

    def turned(*args):
        found = uniform(*args)
        return found._replace(directions=tuple(d._replace(order=-d.order) for d in found.directions))

    uniform = layout.uniform
    monkeypatch.setattr(recurrent, "uniform", turned)
    expected = solve(problem, None)
    with pytest.raises(AssertionError, match=r"dweight_ih_l0: .* elements differ"):
        assert_same_bits(solve(problem, 3), expected)


def test_gradients_are_added():
    """To those that are there, as ever; by two tapes of which the older one is used last."""
    problem = Problem("lstm_peephole", **SIZE, dtype=DTYPE)
    found = []
    for segments in (None, 3):
        layer = problem.layer()
        tapes = [layer.forward(x, problem.state, None, segments)[2] for x in (problem.x, -problem.x)]
        results = [layer.backward(tape, problem.dy, problem.dstate)[0] for tape in reversed(tapes)]
        found.append({"first": results[1], "second": results[0]} | {n: g.copy() for n, g in layer.grads.items()})
    assert_one_result(found[1], found[0])


def model():
    """Layers of many kinds in a row, one Sequential in another, with dropout between layers and of its own."""
    inner = fr.Sequential(
        fr.LSTM(6, 9, num_layers=2, dropout=0.4, seed=1), fr.Dropout(0.3, seed=2), fr.Linear(9, 4, seed=3)
    )
    return fr.Sequential(fr.Embedding(11, 6, seed=4), inner, fr.GRU(4, 5, bidirectional=True, seed=5), fr.Last())


@pytest.mark.parametrize("lengths", [None, (7, 0, 4)])
def test_sequential(lengths):
    """It passes `segments` to what is recurrent in it; masks are drawn once, an embedding's table is made anew."""
    ids = np.random.default_rng(0).integers(0, 11, (7, 3))
    results = []
    for segments in (None, 1, 3, "sqrt"):
        layers = model()
        y, _, tape = layers.forward(ids, None, lengths, segments)
        dx, dstate = layers.backward(tape, np.ones_like(y))
        assert dx is None
        results.append({"y": y, "dh": dstate[1]} | {f"d{name}": g.copy() for name, g in layers.grads.items()})
    for found in results[1:]:
        if JIT:
            assert_same_bits(found, results[0])
        else:
            assert_close(found, results[0], 1e-5, share=1e-2)


def test_segments_do_not_outlive_a_call():
    """A forward without them keeps its gates again; a call of one step is as quick as before."""
    problem = Problem("gru", **SIZE, dtype=DTYPE)
    layer = problem.layer()
    solve(problem, problem.T, layer)
    assert layer._ready is None  # segments of one step are no stream
    _, _, tape = layer.forward(problem.x)
    assert set(layer.intermediates(tape)) == {"r_l0", "z_l0", "n_l0", "h_l0"}


# --- memory -------------------------------------------------------------------------------------------------


def held(thing, found=None):
    """Every array of floats that a tape refers to, once: {where its memory is: its bytes}."""
    found = {} if found is None else found
    if isinstance(thing, np.ndarray):
        while isinstance(thing.base, np.ndarray):
            thing = thing.base
        if thing.dtype.kind == "f" and thing.size:
            found[thing.ctypes.data] = thing.nbytes
    elif isinstance(thing, tuple | list):
        for part in thing:
            held(part, found)
    elif isinstance(thing, Tape):
        held(thing.kept, found)
    return found


def units(problem):
    """N block: H in whole lines of 64 bytes."""
    block = 64 // np.dtype(problem.dtype).itemsize
    return -(-problem.H // block) * block


def for_back(problem, rows, states):
    """Numbers that one direction's forward keeps besides h, for so many rows of x and of states."""
    if problem.kind == "RNN":
        return 0
    found = rows * 4 * units(problem)
    if problem.kind == "LSTM":
        found += states * problem.H + (rows * problem.H if problem.options.get("proj_size") else 0)
    if problem.options.get("layer_norm"):
        G = {"GRU": 3, "LSTM": 3 if problem.options.get("coupled") else 4}[problem.kind]
        found += rows * (G * problem.H + 4 * units(problem) + (8 if problem.kind == "LSTM" else 6))
    return found + (rows * problem.H if problem.options.get("reset") == "before" else 0)


def expected_numbers(problem, segments, dropout=False):
    """The formula at the top of recurrent.py."""
    T, B, D, H, O = problem.T, problem.B, problem.D, problem.H, problem.O  # noqa: E741
    lengths = np.full(B, T) if problem.lengths is None else np.array(problem.lengths)
    ragged = problem.lengths is not None
    rows, states = lengths.sum(), lengths.sum() + (1 if ragged else D) * B
    longest = lengths.max()
    found = rows * problem.I
    for layer in range(problem.L):
        width = D * O if layer else problem.I
        found += states * D * O
        if layer and dropout:
            found += 2 * rows * width
        if ragged and D == 2:
            found += rows * width + states * O
        if segments is None:
            found += D * for_back(problem, rows, states)
        elif problem.kind == "LSTM":
            starts = [longest * k // segments for k in range(segments)]
            found += D * H * sum(B if start == 0 else (lengths > start).sum() for start in starts)
    return int(found)


@texts
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "two ways"])
@pytest.mark.parametrize("cut", [False, True], ids=["uniform", "lengths"])
def test_what_a_tape_keeps(cell, bidirectional, cut):
    """The arrays that it refers to, to the byte."""
    problem = Problem(cell, **SIZE, L=2, bidirectional=bidirectional, dtype=DTYPE)
    problem = problem.but(lengths=mixed_lengths(problem.T, problem.B) if cut else None)
    layer, kept = problem.layer(), {}
    for segments in (None, 1, 3, problem.T):
        tape = layer.forward(problem.x, None, problem.lengths, segments)[2]
        kept[segments] = sum(held(tape).values())
        assert kept[segments] == expected_numbers(problem, segments) * np.dtype(problem.dtype).itemsize
    if problem.kind != "RNN":
        assert max(kept[1], kept[3], kept[problem.T]) < 0.8 * kept[None]


def test_what_a_tape_keeps_of_dropout():
    """Masks are kept, and x times them."""
    problem = Problem("lstm", **SIZE, L=3, more=(("dropout", 0.5),), dtype="float32")
    for segments in (None, 2):
        tape = problem.layer().forward(problem.x, None, None, segments)[2]
        assert sum(held(tape).values()) == 4 * expected_numbers(problem, segments, dropout=True)


class Live:
    """`buffers.empty` that knows how many bytes of it are in use, and how many there were at most."""

    def __init__(self, monkeypatch):
        self.now = self.most = 0
        empty = buffers.empty

        def counted(shape, dtype):
            a = empty(shape, dtype)
            self.now += a.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(a, self.gone, a.nbytes)
            return a

        monkeypatch.setattr(buffers, "empty", counted)

    def gone(self, size):
        self.now -= size


@texts
@pytest.mark.parametrize("reverse", [False, True], ids=["one way", "two ways"])
def test_what_backward_needs(cell, reverse, monkeypatch):
    """dx, and what is kept for one segment, never for two; forward less than that."""
    problem = Problem(cell, **(SIZE | {"T": 9}), bidirectional=reverse, dtype=DTYPE, has_state=False)
    layer, size = problem.layer(), np.dtype(DTYPE).itemsize
    solve(problem, None, layer)  # packs the weights
    live = Live(monkeypatch)
    most = {}
    for segments, steps in ((None, 9), (1, 9), (2, 5), (4, 3), (9, 1)):
        rows = steps * problem.B
        y, _, tape = layer.forward(problem.x, None, None, segments)
        of_h = size * (problem.T + problem.D) * problem.B * problem.D * problem.O
        one = size * for_back(problem, rows, rows + problem.B)
        if segments is not None:
            assert live.most <= of_h + one + 2 * size * problem.B * problem.H
        live.most = before = live.now
        layer.backward(tape, np.ones_like(y))
        del tape, y
        dx = size * problem.T * problem.B * problem.I
        if problem.kind == "RNN":
            one = size * rows * problem.H  # dZ
        elif problem.options.get("proj_size"):
            one += size * rows * problem.O  # dh
        most[segments] = live.most - before
        if segments is not None:
            assert most[segments] == dx + one
        assert live.now == 0
        live.most = 0
    assert most[9] < most[4] < most[2] < most[1]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
def test_arguments(kind):
    """Each message says what came and what was expected; the layer is as it was."""
    layer = kind(3, 4, num_layers=2, dropout=0.5, seed=0)
    x, before = np.ones((5, 2, 3), np.float32), layer.rng.bit_generator.state
    for segments in (0, -1, 6, np.int64(7), "square", ""):
        with pytest.raises(ValueError, match=r"segments is .*, expected 1 <= segments <= T=5, 'sqrt' or None"):
            layer.forward(x, segments=segments)
    for segments in (True, 2.0, [2]):
        with pytest.raises(TypeError, match=r"segments is (bool|float|list), expected an int, 'sqrt' or None"):
            layer.forward(x, segments=segments)
    assert layer.rng.bit_generator.state == before
    for segments in (1, 5, np.int8(2), "sqrt"):
        y, _, tape = layer.forward(x, segments=segments)
        layer.backward(tape, y)
    first = kind(3, 4, batch_first=True)
    with pytest.raises(ValueError, match="segments is 3, expected 1 <= segments <= T=2"):
        first.forward(x, segments=3)


@pytest.mark.parametrize(("steps", "count"), [(1, 1), (2, 2), (4, 2), (5, 3), (9, 3), (10, 4), (100, 10)])
def test_sqrt(steps, count):
    """ceil(sqrt(T)) of them: as many cells as that."""
    tape = fr.LSTM(2, 3).forward(np.ones((steps, 1, 2), np.float32), segments="sqrt")[2]
    ((_, starts),) = tape.kept[1][0].runs
    assert len(starts) == count


def test_layers_that_have_no_segments():
    """A Sequential of none that is recurrent says so, and changes nothing."""
    layers = fr.Sequential(fr.Linear(3, 4), fr.Dropout(0.5, seed=0))
    before = layers.layers[1].rng.bit_generator.state
    with pytest.raises(TypeError, match="segments was passed, but no layer is recurrent"):
        layers.forward(np.ones((2, 3), np.float32), segments=2)
    assert layers.layers[1].rng.bit_generator.state == before


def test_tapes_that_are_refused():
    """Changed parameters, a second backward: as without segments. There are no intermediates, and the tape lives on."""
    layer = fr.LSTM(3, 4, seed=0)
    x = np.ones((5, 2, 3), np.float32)
    y, _, tape = layer.forward(x, segments=2)
    with pytest.raises(ValueError, match="tape is of a forward in segments, which keeps no gates"):
        layer.intermediates(tape)
    layer.backward(tape, y)
    with pytest.raises(ValueError, match="tape has been used"):
        layer.backward(tape, y)
    y, _, tape = layer.forward(x, segments=2)
    before = y.tobytes()
    layer.params["bias_ih_l0"] = np.zeros(16, np.float32)
    with pytest.raises(ValueError, match="the parameters have changed since forward"):
        layer.backward(tape, y)
    assert y.tobytes() == before


@texts
def test_nobody_there(cell):
    """No rows; rows of no length, among others and alone."""
    for changes in ({"B": 0}, {"lengths": (0,) * SIZE["B"]}, {"lengths": (0,) * (SIZE["B"] - 1) + (1,)}):
        problem = Problem(cell, **(SIZE | {"I": 4, "H": 5} | changes), L=2, bidirectional=True, dtype=DTYPE)
        for segments in (1, 2, problem.T):
            assert_one_result(solve(problem, segments), solve(problem, None))
