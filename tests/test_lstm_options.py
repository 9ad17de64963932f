"""The LSTM's options, alone and together, and what each becomes at its limits."""

import numpy as np
import pytest
from helpers import CELLS, Problem, assert_close, assert_same_bits, mixed_lengths
from test_gradients import BACKWARD, FORWARD

FUNCTIONS = ("tanh", "sigmoid", "relu", "hardsigmoid", "softsign", "identity")
# Those that there are.
THERE = [name for cell, name in (("lstm_clip", "clip"), ("lstm_activations", "activations")) if cell in CELLS]
THERE += [name for cell, name in (("lstm_coupled", "coupled"), ("lstm_projected", "proj_size")) if cell in CELLS]


def of(*, L=1, **options):
    """A problem with tails everywhere and these options."""
    size = {"T": 5, "B": 4, "I": 7, "H": 19}
    return Problem("lstm", **size, L=L, more=tuple(options.items()))


def together():
    """Options in company, each with each other one."""
    combinations = [
        {"peephole": "full", "clip": 0.7, "coupled": True},
        {"peephole": "full", "clip": 0.5, "proj_size": 17},
        {"clip": 0.7, "activations": ("hardsigmoid", "relu", "softsign"), "proj_size": 3},
        {"peephole": "diagonal", "coupled": True, "activations": ("softsign", "identity", "tanh"), "proj_size": 9},
        {"peephole": "full", "coupled": True, "activations": ("hardsigmoid", "tanh", "sigmoid")},
        {"peephole": "diagonal", "clip": 0.4, "coupled": True, "proj_size": 1},
    ]
    known = {"peephole", *THERE}
    return [options for options in combinations if set(options) <= known]


@pytest.mark.parametrize("options", together(), ids=lambda options: " ".join(options))
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


@pytest.mark.parametrize("first", range(6) if "activations" in THERE else (), ids=str)
def test_activations(first):
    """Every function in every place, outputs and every gradient."""
    problem = of(activations=(FUNCTIONS * 2)[first : first + 3])
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


OFF = {"peephole": None, "coupled": False, "clip": None, "activations": ("sigmoid", "tanh", "tanh"), "proj_size": 0}


@pytest.mark.parametrize("name", ["peephole", *THERE])
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


@pytest.mark.skipif("coupled" not in THERE, reason="there are no coupled gates")
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


@pytest.mark.skipif("clip" not in THERE, reason="there is no clip")
@pytest.mark.parametrize("peephole", [None, "diagonal", "full"])
def test_clip_at_its_limits(peephole):
    """A limit that nothing reaches is none. Below a limit that everything exceeds no gradient comes through."""
    plain, wide, narrow = (of(peephole=peephole, clip=clip) for clip in (None, 1e6, 1e-9))
    for got, want in zip(wide.solve(), plain.solve(), strict=True):
        assert_close(got, want, FORWARD)
    outputs, gradients = narrow.solve()
    assert np.abs(outputs["c"]).max() <= 1e-9
    assert all(np.all(gradient == 0) for name, gradient in gradients.items() if name != "dc0")
