"""The reference is right: it agrees with itself, with hand calculation. That it agrees with PyTorch and
with ONNX Runtime stands in test_torch_parity.py and test_onnx_parity.py.
"""

import ast
from pathlib import Path

import numpy as np
import pytest
import reference
from helpers import ALL_CELLS, CELLS, Problem, assert_close
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds


def test_imports_numpy_alone():
    """A reference that shares code with what it judges shares its errors."""
    tree = ast.parse(Path(reference.__file__).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import numpy as np"]


@pytest.mark.parametrize("cell", ALL_CELLS)
@pytest.mark.parametrize("L", [1, 2, 3])
def test_complex_step_is_central_difference(cell, L):
    """Two ways to the same gradients, of every array that goes in; with two layers in two directions."""
    problem = Problem(cell, T=3, B=2, I=4, H=5, L=L, bidirectional=L == 2, lengths=(2, 3) if L == 2 else None)
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


def test_full_peephole_by_hand():
    """Two units, each of which sees the other's cell alone: a product with the matrix, not with its transpose."""
    zero = {"weight_ih_l0": np.zeros((8, 1)), "weight_hh_l0": np.zeros((8, 2))}
    peep = np.zeros((3, 2, 2))
    peep[1, 0, 1] = 3.0  # f of unit 0 sees the cell of unit 1
    peep[2, 1, 0] = 5.0  # o of unit 1 sees the new cell of unit 0
    _, h, c = reference.lstm(
        zero | {"weight_peep_l0": peep}, np.ones((1, 1, 1)), None, np.array([[[2.0, 4.0]]]), peephole="full"
    )
    f = 1 / (1 + np.exp(-12.0))
    assert c.ravel().tolist() == pytest.approx([f * 2, 2.0], rel=1e-15)
    o = 1 / (1 + np.exp(-5 * f * 2))
    assert h.ravel().tolist() == pytest.approx([np.tanh(f * 2) / 2, o * np.tanh(2.0)], rel=1e-15)


def test_coupled_and_clipped_by_hand():
    """f is what i leaves; a pre-activation and a cell beyond the limit are at it."""
    U = np.array([[4.0], [1.0], [0.0]])  # rows i g o
    params = {"weight_ih_l0": U, "weight_hh_l0": np.zeros((3, 1))}
    x, c0 = np.ones((1, 1, 1)), np.full((1, 1, 1), 2.0)
    _, _, c = reference.lstm(params, x, None, c0, coupled=True)
    i = 1 / (1 + np.exp(-4.0))
    assert c.item() == pytest.approx((1 - i) * 2 + i * np.tanh(1.0), rel=1e-15)
    i = 1 / (1 + np.exp(-1.5))
    _, _, c = reference.lstm(params, x, None, c0, coupled=True, clip=1.5)
    assert c.item() == pytest.approx((1 - i) * 2 + i * np.tanh(1.0), rel=1e-15)
    _, h, c = reference.lstm(params, x, None, 5 * c0, coupled=True, clip=1.5)
    assert c.item() == 1.5
    assert h.item() == pytest.approx(np.tanh(1.5) / 2, rel=1e-15)


def test_gru_by_hand():
    """The reset gate beside the product and its bias, or inside; the update gate keeps the old state."""
    params = {
        "weight_ih_l0": np.zeros((3, 1)),
        "weight_hh_l0": np.array([[1.0], [2.0], [3.0]]),  # rows r z n
        "bias_ih_l0": np.array([0.0, 0.0, 0.1]),
        "bias_hh_l0": np.array([0.0, 0.0, 0.7]),
    }
    x, h0 = np.ones((1, 1, 1)), np.full((1, 1, 1), 0.5)
    r, z = 1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(-1.0))
    n = {"after": np.tanh(0.1 + r * (1.5 + 0.7)), "before": np.tanh(0.1 + 3 * r * 0.5 + 0.7)}
    for reset, candidate in n.items():
        y, h = reference.gru(params, x, h0, reset)
        assert y.item() == h.item() == pytest.approx((1 - z) * candidate + z * 0.5, rel=1e-15)


def test_activations_by_hand():
    """Each at points where it bends, in the order sigma_g, sigma_c, sigma_h."""
    a = np.array([-10.0, -1.0, 0.0, 1.0, 10.0])
    assert reference.hardsigmoid(a).tolist() == pytest.approx([0, 0.3, 0.5, 0.7, 1])
    assert reference.softsign(a).tolist() == pytest.approx([-10 / 11, -0.5, 0, 0.5, 10 / 11])
    params = {"weight_ih_l0": np.array([[1.0], [1.0], [3.0], [1.0]]), "weight_hh_l0": np.zeros((4, 1))}
    x, c0 = np.ones((1, 1, 1)), np.full((1, 1, 1), 2.0)
    _, h, c = reference.lstm(params, x, None, c0, activations=("hardsigmoid", "identity", "softsign"))
    assert c.item() == pytest.approx(0.7 * 2 + 0.7 * 3)
    assert h.item() == pytest.approx(0.7 * 3.5 / 4.5)


def test_projection_by_hand():
    """h is what the matrix makes of o tanh(c), and what the next step sees."""
    zero = {"weight_ih_l0": np.zeros((8, 1)), "weight_hh_l0": np.zeros((8, 1)), "weight_hr_l0": np.array([[2.0, 3.0]])}
    y, h, c = reference.lstm(zero, np.ones((1, 1, 1)), None, np.array([[[2.0, 4.0]]]), proj_size=1)
    assert c.ravel().tolist() == [1.0, 2.0]
    assert y.item() == h.item() == pytest.approx(np.tanh(1.0) + 1.5 * np.tanh(2.0), rel=1e-15)


def test_directions_and_lengths_by_hand():
    """Sums from the left and from the right, of three rows of which one has no step."""
    one = np.ones((1, 1))
    params = {f"weight_{name}_l0{end}": one for name in ("ih", "hh") for end in ("", "_reverse")}
    x = np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0], [100.0, 200.0, 300.0]])[:, :, None]  # columns are rows
    h0 = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[:, :, None] / 10
    y, h = reference.rnn(params, x, h0, "identity", lengths=[2, 0, 3])
    np.testing.assert_allclose(y[:, 0], [[1.1, 11.4], [11.1, 10.4], [0, 0]])
    assert np.all(y[:, 1] == 0)
    np.testing.assert_allclose(y[:, 2], [[3.3, 333.6], [33.3, 330.6], [333.3, 300.6]])
    np.testing.assert_allclose(h[..., 0], [[11.1, 0.2, 333.3], [11.4, 0.5, 333.6]])


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
