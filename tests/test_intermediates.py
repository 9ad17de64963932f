"""`intermediates(tape)`: every gate and every state of a forward, against the reference and against each other."""

import numpy as np
import pytest
import reference
from helpers import CELLS, IN_FLOAT32, Problem, assert_close, assert_same_bits, bits_of, mixed_lengths, seldom
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems

import fastrnn as fr

cells = pytest.mark.parametrize("cell", CELLS)
TOLERANCE = {"float64": 1e-12, "float32": 2e-5}
LETTERS = {"RNN": "h", "GRU": "rznh", "LSTM": "ifgoch"}


def expected(problem):
    """The reference's, time-major, in float64."""
    seen = {}
    arrays = problem.inputs
    x = arrays["x"] if "x" in arrays else reference.one_hot(problem.ids, problem.I)
    run = {"RNN": reference.rnn, "GRU": reference.gru, "LSTM": reference.lstm}[problem.kind]
    state = [arrays.get(f"{name}0") for name in problem.states]
    run(problem.params, x, *state, lengths=problem.lengths, seen=seen, **problem.options)
    return reference.over_steps(seen, problem.params, problem.T, problem.lengths)


def found(problem, layer, tape):
    """The layer's, time-major."""
    return {name: problem.turned(a) for name, a in layer.intermediates(tape).items()}


@pytest.mark.parametrize(
    ("cell", "dtype"),
    [pytest.param(cell, dtype, marks=seldom(cell, dtype)) for cell in CELLS for dtype in TOLERANCE],
)
@given(data=st.data())
def test_they_are_the_reference_s(cell, dtype, data):
    """All cells, layers and directions, any lengths; and y is the last layer's h."""
    problem = data.draw(problems(cell, dtype))
    layer = problem.layer()
    outputs, tape = problem.forward(layer)
    values = found(problem, layer, tape)
    ends = reference.directions(problem.params)
    assert list(values) == [f"{letter}_{end}" for end in ends for letter in LETTERS[problem.kind]]
    # A relu's stack grows as it goes up: of the largest value of all.
    assert_close(values, expected(problem), TOLERANCE[dtype], share=1.0)
    top = np.concatenate([values[f"h_{end}"] for end in ends[-problem.D :]], axis=-1)
    assert_same_bits({"y": top}, {"y": outputs["y"]})


@cells
def test_large_ones(cell):
    """Several blocks of units, several workers, mixed lengths, both directions, batch first."""
    problem = Problem(cell, T=6, B=13, I=5, H=37, L=2, bidirectional=True, batch_first=True)
    dtype = "float32" if cell in IN_FLOAT32 else "float64"
    problem = problem.but(lengths=mixed_lengths(problem.T, problem.B), dtype=dtype)
    layer = problem.layer()
    values = layer.intermediates(problem.forward(layer)[1])
    for name, a in values.items():
        width = problem.O if name.startswith("h_") else problem.H
        assert (a.shape, a.dtype) == ((problem.B, problem.T, width), dtype)
        assert a.flags.carray
    past = np.arange(problem.T) >= np.array(problem.lengths)[:, None]  # B, T
    for name, a in values.items():
        assert not a[past].any(), name
        assert a[~past].any(), name
    assert_close(
        {name: problem.turned(a) for name, a in values.items()}, expected(problem), TOLERANCE[dtype], share=1.0
    )


@pytest.mark.parametrize("reverse", [False, True])
def test_the_equations_hold_among_them(reverse):
    """c = f c' + i g and h = o tanh(c); h = (1 - z) n + z h': of the layer's own numbers."""
    for cell in ("lstm", "lstm_peephole", "lstm_peephole_full", "gru", "gru_before"):
        problem = Problem(cell, T=7, B=4, I=5, H=19, bidirectional=True)
        layer = problem.layer()
        end = "_l0_reverse" if reverse else "_l0"
        turn = slice(None, None, -1) if reverse else slice(None)
        v = {n.removesuffix(end): a[turn] for n, a in layer.intermediates(problem.forward(layer)[1]).items()}
        before = {name: np.concatenate([start[int(reverse)][None], v[name][:-1]]) for name, start in
                  problem.unpack(problem.state).items()}  # fmt: skip
        if problem.kind == "LSTM":
            want = {"c": v["f"] * before["c"] + v["i"] * v["g"], "h": v["o"] * np.tanh(v["c"])}
        else:
            want = {"h": (1 - v["z"]) * v["n"] + v["z"] * before["h"]}
        assert_close({name: v[name] for name in want}, want, 1e-14)


@cells
def test_the_tape_is_only_read(cell):
    """Asked twice they are the same bits; backward gives what it would have given; changing them changes nothing."""
    problem = Problem(cell, L=2, bidirectional=True, lengths=(5, 0, 3))
    _, expected_gradients = problem.solve()
    layer = problem.layer()
    outputs, tape = problem.forward(layer)
    first = layer.intermediates(tape)
    before = bits_of(first)
    for a in first.values():
        a.fill(np.nan)
    assert bits_of(layer.intermediates(tape)) == before
    assert not np.isnan(outputs["y"]).any()
    assert_same_bits(problem.backward(layer, tape), expected_gradients)
    with pytest.raises(ValueError, match="tape has been used by an earlier backward"):
        layer.intermediates(tape)


@cells
def test_nobody_there(cell):
    """No rows; rows of no length."""
    for problem in (Problem(cell, B=0), Problem(cell, B=2, lengths=(0, 0), bidirectional=True)):
        layer = problem.layer()
        values = layer.intermediates(problem.forward(layer)[1])
        assert {a.shape for a in values.values()} == {(problem.T, problem.B, width) for width in (problem.H, problem.O)}
        assert not any(a.any() for a in values.values())


def test_what_is_refused():
    """Another layer's tape, something else; changed parameters are no obstacle: the values are those of then."""
    x = np.ones((2, 3, 4), np.float32)
    one, other = fr.GRU(4, 5, seed=0), fr.GRU(4, 5, seed=0)
    tape = one.forward(x)[2]
    with pytest.raises(ValueError, match="tape comes from another layer's forward"):
        other.intermediates(tape)
    with pytest.raises(TypeError, match="tape is dict, expected what forward returned"):
        one.intermediates({})
    before = bits_of(one.intermediates(tape))
    one.params["weight_hh_l0"] = np.zeros((15, 5), np.float32)
    assert bits_of(one.intermediates(tape)) == before


def test_of_layers_in_order():
    """`Sequential` names them as it names parameters, and dropout is that of this forward."""
    inner = fr.Sequential(fr.LSTM(4, 6, num_layers=2, dropout=0.5, seed=1), fr.Linear(6, 3, seed=2))
    model = fr.Sequential(fr.Embedding(9, 4, seed=3), inner, fr.RNN(3, 2, seed=4))
    y, _, tape = model.forward(np.arange(8).reshape(4, 2))
    values = model.intermediates(tape)
    assert [name for name in values if "h_" in name] == ["1.0.h_l0", "1.0.h_l1", "2.h_l0"]
    assert np.array_equal(values["2.h_l0"], y)
    model.backward(tape, np.ones_like(y))
    with pytest.raises(ValueError, match="tape has been used"):
        model.intermediates(tape)
