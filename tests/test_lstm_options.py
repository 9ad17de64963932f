"""The LSTM's options, alone and together, and what each becomes at its limits."""

import numpy as np
import pytest
from helpers import JIT, Problem, assert_close, assert_same_bits, mixed_lengths, those
from test_errors import raises
from test_gradients import BACKWARD, FORWARD

import fastrnn as fr

FUNCTIONS = ("tanh", "sigmoid", "relu", "hardsigmoid", "softsign", "identity")


def of(*, L=1, **options):
    """A problem with tails everywhere and these options."""
    size = {"T": 5, "B": 4, "I": 7, "H": 19}
    return Problem("lstm", **size, L=L, more=tuple(options.items()))


def activated(first):
    """A problem with three functions in a row of the six: in all, each has each place once."""
    return of(activations=(FUNCTIONS * 2)[first : first + 3])


# Options in company: all with either kind of peepholes, then each with each other one.
TOGETHER = [
    {
        "peephole": "full",
        "clip": 0.7,
        "coupled": True,
        "activations": ("hardsigmoid", "relu", "softsign"),
        "proj_size": 17,
    },
    {
        "peephole": "diagonal",
        "clip": 0.5,
        "coupled": True,
        "activations": ("softsign", "identity", "tanh"),
        "proj_size": 3,
    },
    {"peephole": "full", "clip": 0.7, "coupled": True},
    {"peephole": "full", "clip": 0.5, "proj_size": 17},
    {"clip": 0.7, "activations": ("hardsigmoid", "relu", "softsign"), "proj_size": 3},
    {"peephole": "diagonal", "coupled": True, "activations": ("softsign", "identity", "tanh"), "proj_size": 9},
    {"peephole": "full", "coupled": True, "activations": ("hardsigmoid", "tanh", "sigmoid")},
    {"peephole": "diagonal", "clip": 0.4, "coupled": True, "proj_size": 1},
]


@pytest.mark.parametrize("options", those(TOGETHER, TOGETHER[:2], [" ".join(options) for options in TOGETHER]))
@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways, lengths"])
def test_together(options, both_ways):
    """Outputs and every gradient."""
    problem = of(L=2, **options)
    if both_ways:
        problem = problem.but(L=1, bidirectional=True, lengths=mixed_lengths(problem.T, problem.B))
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(problem.infer(problem.layer()), problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


@pytest.mark.parametrize("first", those(range(6), (0, 3)))
def test_activations(first):
    """Every function in every place, outputs and every gradient."""
    problem = activated(first)
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


OFF = {"peephole": None, "coupled": False, "clip": None, "activations": ("sigmoid", "tanh", "tanh"), "proj_size": 0}


@pytest.mark.parametrize("name", OFF)
def test_off_is_not_there(name):
    """An option at its default gives the plain LSTM, bit for bit."""
    for plain, off in zip(of().solve(), of(**{name: OFF[name]}).solve(), strict=True):
        assert_same_bits(off, plain)


def test_full_peepholes_that_are_diagonal():
    """Matrices with nothing off the diagonal are the diagonal peepholes; so are their gradients' diagonals."""
    diagonal, full = of(peephole="diagonal"), of(peephole="full")
    full.__dict__["params"] = diagonal.params | {
        "weight_peep_l0": np.stack([np.diag(row) for row in diagonal.params["weight_peep_l0"]])
    }
    (outputs, gradients), (expected_outputs, expected) = full.solve(), diagonal.solve()
    dpeep = gradients.pop("dweight_peep_l0")
    assert np.abs(dpeep - dpeep * np.eye(full.H)).max() > 0
    gradients["dweight_peep_l0"] = np.stack([np.diag(matrix) for matrix in dpeep])
    assert_close(outputs, expected_outputs, FORWARD)
    assert_close(gradients, expected, BACKWARD)


def test_coupled_gates_are_an_lstm_whose_forget_gate_mirrors_the_input_gate():
    """1 - sigmoid(a) = sigmoid(-a)"""
    coupled, plain = (of(peephole="diagonal", **options) for options in ({"coupled": True}, {}))
    params = {}
    for name, a in coupled.params.items():
        i, *rest = np.split(a, 2 if "peep" in name else 3)
        params[name] = np.concatenate((i, -i, *rest))
    plain.__dict__["params"] = params
    (outputs, gradients), (expected_outputs, expected) = coupled.solve(), plain.solve()
    for name in params:
        di, df, *rest = np.split(expected[f"d{name}"], 3 if "peep" in name else 4)
        expected[f"d{name}"] = np.concatenate((di - df, *rest))
    assert_close(outputs, expected_outputs, FORWARD)
    assert_close(gradients, expected, BACKWARD)


@pytest.mark.parametrize("peephole", those([None, "diagonal", "full"], ["diagonal"]))
def test_clip_at_its_limits(peephole):
    """A limit that nothing reaches is none. Below a limit that everything exceeds no gradient comes through."""
    plain, wide, narrow = (of(peephole=peephole, clip=clip) for clip in (None, 1e6, 1e-9))
    for got, want in zip(wide.solve(), plain.solve(), strict=True):
        assert_close(got, want, FORWARD)
    outputs, gradients = narrow.solve()
    assert np.abs(outputs["c"]).max() <= 1e-9
    assert all(np.all(gradient == 0) for name, gradient in gradients.items() if name != "dc0")


def test_gradient_of_a_clamped_nan_is_nan():
    """A gate that is NaN is not taken for one at the limit, whose gradient is zero."""
    layer = fr.LSTM(1, 1, peephole="diagonal", clip=1.0, bias=False, dtype="float64", seed=0)
    y, _, tape = layer.forward(np.full((1, 1, 1), np.nan))
    dx, _ = layer.backward(tape, np.ones_like(y))
    assert np.isnan(dx).all()


def test_forget_bias_of_coupled_gates():
    """Both kinds forget as little."""
    gates = []
    for coupled in (False, True):
        layer = fr.LSTM(2, 3, peephole="diagonal", coupled=coupled, dtype="float64", seed=0)
        layer.init_forget_bias(1.5)
        for name in ("weight_ih_l0", "weight_hh_l0", "weight_peep_l0"):
            layer.params[name] = np.zeros(layer.params[name].shape)
        _, (_, c) = layer(np.zeros((1, 1, 2)), (np.zeros((1, 1, 3)), np.full((1, 1, 3), 1e9)))
        gates.append(c / 1e9)
    np.testing.assert_allclose(*gates, rtol=1e-8)


def test_orthogonal_columns_with_a_projection():
    """W of every gate has orthonormal columns, as many as h is wide."""
    layer = fr.LSTM(2, 7, proj_size=4, dtype="float64", seed=0)
    layer.init_orthogonal()
    for w in np.split(layer.params["weight_hh_l0"], 4):
        np.testing.assert_allclose(w.T @ w, np.eye(4), atol=1e-14)


def test_shapes_with_a_projection():
    """A message has another letter for the width of h, and the cell keeps its own."""
    layer = fr.LSTM(2, 7, proj_size=4, dtype="float64", seed=0)
    x, h, c = np.zeros((3, 5, 2)), np.zeros((1, 5, 4)), np.zeros((1, 5, 7))
    with raises(ValueError, "state[0]", "(1, 5, 7)", "(L, B, O)", "O=4"):
        layer(x, (c, c))
    with raises(ValueError, "state[1]", "(1, 5, 4)", "(L, B, H)", "H=7"):
        layer(x, (h, h))
    y, _, tape = layer.forward(x, (h, c))
    with raises(ValueError, "dy", "(T, B, O)", "O=4"):
        layer.backward(tape, np.zeros((3, 5, 7)))
    dx, (dh, dc) = layer.backward(tape, np.zeros_like(y))
    assert (dx.shape, dh.shape, dc.shape) == (x.shape, h.shape, c.shape)


@pytest.mark.parametrize("cell", ["lstm_coupled", "lstm_clip", "lstm_projected"])
def test_stream(cell):
    """Step by step, the short way or, where there is none, the long one: the same bits."""
    layer = Problem(cell, I=3, H=7).layer()
    x = np.random.default_rng(0).standard_normal((5, 1, 3))
    stream = layer.stream()
    steps = np.stack([stream.push(step[0]) for step in x])
    assert_close({"y": steps}, {"y": layer(x)[0][:, 0]}, 0 if JIT else 1e-6)
