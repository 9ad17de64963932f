"""The reference is right: it agrees with itself, with hand calculation and with PyTorch."""

import ast
from pathlib import Path

import numpy as np
import pytest
import reference
from helpers import CELLS, Problem, assert_close, import_or_skip
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds


def test_imports_numpy_alone():
    """A reference that shares code with what it judges shares its errors."""
    tree = ast.parse(Path(reference.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import numpy as np"]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("L", [1, 2, 3])
def test_complex_step_is_central_difference(cell, L):
    """Two ways to the same gradients, of every array that goes in."""
    problem = Problem(cell, T=3, B=2, I=4, H=5, L=L)
    by_difference = reference.central_difference(problem.loss, problem.inputs)
    expected = {f"d{name}": gradient for name, gradient in by_difference.items()}
    assert_close(problem.gradients, expected, 1e-7)


@pytest.mark.parametrize("cell", CELLS)
def test_along_is_the_gradient_times_the_direction(cell):
    """The derivative along a direction, for arrays too large to take by element."""
    problem = Problem(cell, T=4, B=2, I=3, H=5, L=2)
    directions = {name: problem.random(f"along {name}", *a.shape) for name, a in problem.inputs.items()}
    derivatives = reference.along(problem.loss, problem.inputs, directions)
    for name, direction in directions.items():
        assert derivatives[name] == pytest.approx((problem.gradients[f"d{name}"] * direction).sum(), rel=1e-12)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_complex_step_in_any_portions(at_once):
    """How many elements move at once is no part of the result."""
    problem = Problem("lstm_peephole", T=2, B=3, I=4, H=5)
    portions = reference.complex_step(problem.loss, problem.inputs, at_once=at_once)
    assert_close({f"d{name}": g for name, g in portions.items()}, problem.gradients, 1e-14)


def test_lstm_by_hand():
    """One unit, one step, numbers that fit on paper: every gate is 1/2 or tanh 0, save what is set."""
    zero = {"weight_ih_l0": np.zeros((4, 1)), "weight_hh_l0": np.zeros((4, 1))}
    x, c0 = np.ones((1, 1, 1)), np.full((1, 1, 1), 2.0)
    y, h, c = reference.lstm(zero, x, None, c0)
    assert c.item() == 1.0  # f c' + i g = 1/2 2 + 1/2 0
    assert y.item() == h.item() == pytest.approx(np.tanh(1.0) / 2, rel=1e-15)

    peep = np.array([[3.0], [5.0], [7.0]])  # rows i f o
    g = {"weight_ih_l0": np.array([[0.0], [0.0], [1.0], [0.0]])}
    _, h, c = reference.lstm(zero | g | {"weight_peep_l0": peep}, x, None, c0)
    i, f = 1 / (1 + np.exp(-6.0)), 1 / (1 + np.exp(-10.0))  # they see the cell before: 3 2 and 5 2
    assert c.item() == pytest.approx(f * 2 + i * np.tanh(1.0), rel=1e-15)
    o = 1 / (1 + np.exp(-7 * c.item()))  # it sees the cell after
    assert h.item() == pytest.approx(o * np.tanh(c.item()), rel=1e-15)


def test_rnn_by_hand():
    """h = f(u x + w h' + b), twice."""
    params = {
        "weight_ih_l0": np.array([[2.0]]),
        "weight_hh_l0": np.array([[-3.0]]),
        "bias_ih_l0": np.array([0.5]),
    }
    x, h0 = np.array([[[1.0]], [[2.0]]]), np.array([[[1.0]]])
    y, h = reference.rnn(params, x, h0, "identity")
    assert y.ravel().tolist() == [-0.5, 6.0]  # 2 - 3 + 1/2, then 4 + 3/2 + 1/2
    assert h.item() == 6.0
    assert reference.rnn(params, x, h0, "relu")[0].ravel().tolist() == [0.0, 4.5]


@given(seed=seeds, T=st.integers(1, 4), B=st.integers(1, 5), V=st.integers(1, 9))
def test_cross_entropy_of_nothing_known_is_log_V(seed, T, B, V):
    """Equal logits, whatever they are: log V nats; and a shift of all logits changes nothing."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, V, (T, B))
    assert reference.cross_entropy(np.full((T, B, V), 1e3), targets) == pytest.approx(np.log(V), abs=1e-12)
    logits = rng.standard_normal((T, B, V))
    shifted = reference.cross_entropy(logits + 700.0, targets)
    assert shifted == pytest.approx(reference.cross_entropy(logits, targets), abs=1e-11)


def test_losses_and_layers_without_time():
    """Complex step and central difference agree for linear, embedding, cross entropy and mse too."""
    rng = np.random.default_rng(1)
    ids, targets = rng.integers(0, 6, (3, 2)), rng.integers(0, 5, (3, 2))
    arrays = {
        "table": rng.standard_normal((6, 4)),
        "weight": rng.standard_normal((5, 4)),
        "bias": rng.standard_normal(5),
    }
    goal = rng.standard_normal((3, 2, 5))

    def logits(a):
        return reference.linear(a, reference.embedding({"weight": a["table"]}, ids))

    def loss(a):
        return reference.cross_entropy(logits(a), targets) + reference.mse(logits(a), goal)

    assert_close(reference.complex_step(loss, arrays), reference.central_difference(loss, arrays), 1e-8)


def test_nan_and_infinity_pass():
    """The reference judges what becomes of them, so it must not stop them itself."""
    a = np.array([np.nan, np.inf, -np.inf])
    with np.errstate(over="ignore"):
        assert np.array_equal(reference.relu(a), [np.nan, np.inf, 0], equal_nan=True)
        assert np.array_equal(reference.sigmoid(a), [np.nan, 1, 0], equal_nan=True)


def test_clip_by_norm_is_algorithm_1():
    """From the threshold on, the norm becomes it and the direction stays; below, nothing happens."""
    gradients = {"a": np.array([3.0]), "b": np.array([[4.0]])}
    clipped, norm = reference.clip_by_norm(gradients, 1.0)
    assert norm == 5.0
    assert (clipped["a"].item(), clipped["b"].item()) == pytest.approx((0.6, 0.8))
    assert reference.clip_by_norm(gradients, 6.0) == (gradients, 5.0)


@pytest.mark.parametrize("L", [1, 2, 3])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm"])
def test_outputs_are_pytorch_s(cell, L):
    """The reference against a library that nobody here wrote."""
    torch = import_or_skip("torch")
    problem = Problem(cell, T=4, B=3, I=5, H=7, L=L)
    kind, options = CELLS[cell]
    peer = getattr(torch.nn, kind)(problem.I, problem.H, L, dtype=torch.float64, **options)
    peer.load_state_dict({name: torch.from_numpy(array) for name, array in problem.params.items()})
    as_torch = {name: torch.from_numpy(array) for name, array in problem.inputs.items()}
    y, state = peer(as_torch["x"], problem.pack({name: as_torch[f"{name}0"] for name in problem.states}))
    outputs = {"y": y} | problem.unpack(state)
    assert_close({name: a.detach().numpy() for name, a in outputs.items()}, problem.outputs(), 1e-14)
