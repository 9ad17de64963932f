"""Two directions: which is which, in y, in the state and in the parameters, and that neither knows of the other."""

import numpy as np
import pytest
from helpers import CELLS, Problem, assert_close, assert_same_bits, mixed_lengths
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems
from test_errors import raises
from test_gradients import BACKWARD, FORWARD

import fastrnn as fr

cells = pytest.mark.parametrize("cell", CELLS)


def test_parameters():
    """PyTorch's names, shapes and order."""
    layer = fr.LSTM(3, 5, num_layers=2, bidirectional=True, seed=1)
    assert {name: array.shape for name, array in layer.params.items()} == {
        f"{name}_l{number}{end}": shape
        for number, below in enumerate((3, 10))
        for end in ("", "_reverse")
        for name, shape in {"weight_ih": (20, below), "weight_hh": (20, 5), "bias_ih": (20,), "bias_hh": (20,)}.items()
    }
    first = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
    assert list(layer.params)[:8] == [*first, *(f"{name}_reverse" for name in first)]


@cells
def test_which_half_is_which(cell):
    """With one direction's weights zero, its half of y and of the state does not see x; the other's does."""
    problem = Problem(cell, T=4, B=3, I=5, H=9, bidirectional=True)
    for number, end in enumerate(("", "_reverse")):
        layer = problem.layer()
        layer.params[f"weight_ih_l0{end}"] = np.zeros(problem.params[f"weight_ih_l0{end}"].shape)
        one, other = (layer(x, problem.state) for x in (problem.x, -problem.x))
        halves = [np.split(y, 2, axis=-1) for y, _ in (one, other)]
        states = [problem.unpack(state)["h"] for _, state in (one, other)]
        assert np.array_equal(halves[0][number], halves[1][number])
        assert np.array_equal(states[0][number], states[1][number])
        assert not np.array_equal(halves[0][1 - number], halves[1][1 - number])
        assert not np.array_equal(states[0][1 - number], states[1][1 - number])


@cells
def test_which_way_each_goes(cell):
    """A change of one step of x is seen by the forward half from there on and by the reverse half up to there."""
    problem = Problem(cell, T=5, B=3, I=5, H=9, bidirectional=True, seed=3)
    layer = problem.layer()
    x = problem.x.copy()
    x[2] += 1
    changed = (layer(x, problem.state)[0] != layer(problem.x, problem.state)[0]).any(axis=1)
    forward, reverse = (half.any(axis=-1) for half in np.split(changed, 2, axis=-1))
    assert forward[:2].tolist() == [False, False]
    assert forward[2]
    assert reverse[3:].tolist() == [False, False]
    assert reverse[2]


def mirrored(a, axis=-1):
    """The halves of an axis, each in the other's place."""
    return np.concatenate(np.split(a, 2, axis=axis)[::-1], axis=axis)


def turned_round(problem, a):
    """(T, B, ...) with every row's steps in reverse order, its padding where it was."""
    a = a.copy()
    for row, length in enumerate(problem.lengths or [problem.T] * problem.B):
        a[:length, row] = a[:length, row][::-1]
    return a


def exchanged(arrays):
    """Parameters or their gradients, with each direction's under the other's name."""
    found = {}
    for name, a in arrays.items():
        other = name.removesuffix("_reverse") if name.endswith("_reverse") else f"{name}_reverse"
        below = name.startswith(("weight_ih_l", "dweight_ih_l")) and "_l0" not in name
        found[other] = mirrored(a) if below else a
    return found


def states_exchanged(problem, a):
    """(L 2, B, H) with every layer's two directions in each other's place."""
    return np.ascontiguousarray(a.reshape(problem.L, 2, *a.shape[1:])[:, ::-1]).reshape(a.shape)


@cells
@given(data=st.data())
def test_mirror(cell, data):
    """Every row backwards and the directions exchanged: the same results backwards and exchanged, without a
    reference. One layer of it has the same bits.
    """
    problem = data.draw(
        problems(cell, bidirectional=True, batch_first=False, indices=False, has_state=True, has_dy=True)
    )
    problem = problem.but(has_dstate=True)
    expected_outputs, expected = problem.solve()

    layer = problem.layer()
    for name, array in exchanged(problem.params).items():
        layer.params[name] = array
    state, dstate = (
        problem.pack({n: states_exchanged(problem, a) for n, a in problem.unpack(s).items()})
        for s in (problem.state, problem.dstate)
    )
    x, dy = turned_round(problem, problem.x), turned_round(problem, mirrored(problem.dy))
    y, final, tape = layer.forward(x, state, problem.lengths)
    dx, dstart = layer.backward(tape, dy, dstate)

    outputs = {"y": mirrored(turned_round(problem, y))}
    outputs |= {n: states_exchanged(problem, a) for n, a in problem.unpack(final).items()}
    gradients = {"dx": turned_round(problem, dx)}
    gradients |= {f"d{n}0": states_exchanged(problem, a) for n, a in problem.unpack(dstart).items()}
    gradients |= exchanged({f"d{name}": a for name, a in layer.grads.items()})
    if problem.L == 1:
        assert_same_bits(outputs, expected_outputs)
    assert_close(outputs, expected_outputs, 1e-12)
    assert_close(gradients, expected, 1e-10)


# --- the sum of both ----------------------------------------------------------------------------------------

SUM = (("merge", "sum"),)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm_projected", "gru"])
@pytest.mark.parametrize("kind", ["stacked", "lengths", "indices, batch first, no dstate"])
def test_summed(cell, kind):
    """Outputs and every gradient; the next layer's weight_ih is as wide as one direction's output."""
    problem = Problem(cell, T=4, B=5, I=3, H=7, L=2, bidirectional=True, more=SUM)
    if kind == "lengths":
        problem = problem.but(lengths=mixed_lengths(4, 5), L=3)
    elif kind.startswith("indices"):
        problem = problem.but(indices=True, batch_first=True, has_dstate=False)
    outputs, gradients = problem.solve()
    assert outputs["y"].shape == (4, 5, problem.O)
    assert problem.layer().params["weight_ih_l1_reverse"].shape[1] == problem.O
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(problem.infer(problem.layer()), problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


@cells
@pytest.mark.parametrize("lengths", [None, (4, 0, 2)], ids=["whole", "lengths"])
def test_summed_is_side_by_side_added(cell, lengths):
    """Of one layer: the same bits as the halves' sum, and as the same dy for both halves."""
    beside = Problem(cell, T=4, B=3, I=5, H=9, bidirectional=True, lengths=lengths)
    summed = beside.but(more=SUM)
    dy = summed.dy
    beside.__dict__["doutputs"] = beside.doutputs | {"y": np.concatenate((dy, dy), axis=-1)}
    (outputs, gradients), (expected, expected_gradients) = summed.solve(), beside.solve()
    forward, reverse = np.split(expected["y"], 2, axis=-1)
    assert_same_bits(outputs, expected | {"y": forward + reverse})
    assert_same_bits(gradients, expected_gradients)


def test_what_can_be_merged():
    """Two directions, in one of two ways; dropout between layers sees the sum; messages speak of its width."""
    for kind in (fr.RNN, fr.LSTM, fr.GRU):
        with raises(ValueError, "merge", "'sum'", "bidirectional=True"):
            kind(3, 5, merge="sum")
        for wrong in ("mean", None, 2):
            with raises(ValueError, "merge", repr(wrong), "concat", "sum"):
                kind(3, 5, bidirectional=True, merge=wrong)
        assert kind(3, 5, merge="concat").merge == "concat"
    layer = fr.GRU(3, 5, num_layers=2, bidirectional=True, dropout=0.5, merge="sum", seed=0)
    y, h, tape = layer.forward(np.ones((4, 2, 3), "float32"))
    assert (y.shape, h.shape) == ((4, 2, 5), (4, 2, 5))
    with raises(ValueError, "dy", "(T, B, H)", "H=5", "(4, 2, 10)"):
        layer.backward(tape, np.zeros((4, 2, 10), "float32"))
    dx, _ = layer.backward(tape, np.ones_like(y))
    assert np.isfinite(dx).all()
