"""The RNN whose state is before the nonlinearity: h = W F(h') + U x + b, y = F(h)."""

import numpy as np
import pytest
import reference
from helpers import JIT, Problem, assert_close, assert_same_bits, mixed_lengths, those
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems
from test_gradients import BACKWARD, FORWARD
from test_numbers import assert_one_result, by_row, in_chunks, whole

import fastrnn as fr

PRE = (("preactivation", True),)
NAMES = ("tanh", "relu", "sigmoid", "identity")
some_functions = pytest.mark.parametrize("name", those(NAMES, ("tanh", "sigmoid")))

# With tails and mixed lengths; several workers share the rows of most, and the panels of one with few rows and many
# units. In float64 alone, since each type is compiled by itself; the guarded pages have float32 as well.
MANY = {"I": 5, "H": 70} if JIT else {"I": 5, "H": 9}
SIZES = {
    "small": Problem("rnn_tanh", T=7, B=5, I=3, H=19, L=2, more=PRE),
    "lengths": Problem("rnn_sigmoid", T=7, B=5, I=3, H=19, more=PRE, lengths=(3, 0, 7, 1, 6)),
    "rows": Problem("rnn_sigmoid", T=6, B=13, **MANY, more=PRE, lengths=mixed_lengths(6, 13)),
    "panels": Problem("rnn_tanh", T=6, B=3, **MANY, more=PRE),
}
sizes = pytest.mark.parametrize("problem", SIZES.values(), ids=SIZES)


@some_functions
@given(data=st.data())
def test_every_gradient(name, data):
    """Outputs, the states at both ends and every gradient; every option of the layer."""
    problem = data.draw(problems(f"rnn_{name}", more=PRE))
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(problem.infer(problem.layer()), problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


@pytest.mark.parametrize("size", ["rows", "panels"])
def test_shared(size, set_num_threads, monkeypatch):
    """What several workers share, along a random direction; both ways."""
    set_num_threads(3)
    monkeypatch.setattr("fastrnn.threads.SMALL", 0)
    problem = SIZES[size].but(bidirectional=True)
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    along = {name: problem.random(f"along {name}", *a.shape, scale=1.0) for name, a in problem.inputs.items()}
    for name, expected in reference.along(problem.loss, problem.inputs, along).items():
        gradient = gradients[f"d{name}"]
        assert abs((gradient * along[name]).sum() - expected) <= BACKWARD * np.linalg.norm(gradient), name


@some_functions
def test_it_is_the_usual_form_in_between(name):
    """Started from F(h0) the usual one gives this y, bit for bit, and the same gradients of what is in between."""
    pre = Problem(f"rnn_{name}", T=6, B=4, I=3, H=19, L=2, has_dstate=False, more=PRE, lengths=(6, 2, 0, 5))
    usual = pre.but(more=())
    start = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0), "sigmoid": reference.sigmoid, "identity": np.array}
    usual.__dict__["inputs"] = pre.inputs | {"h0": start[name](pre.inputs["h0"])}
    (outputs, gradients), (expected, expected_gradients) = pre.solve(), usual.solve()
    assert_close({"y": outputs["y"]}, {"y": expected["y"]}, FORWARD)
    for found in (gradients, expected_gradients):
        found.pop("dh0")
    assert_close(gradients, expected_gradients, 1e-13)
    if name != "sigmoid":  # F(0) = 0: without a state there is no difference
        nothing = pre.but(has_state=False)
        assert_same_bits(
            {"y": nothing.infer(nothing.layer())["y"]},
            {"y": nothing.but(more=()).infer(nothing.but(more=()).layer())["y"]},
        )


@sizes
@pytest.mark.parametrize("ends", [(1,), (2, 3), range(1, 20)], ids=["1 rest", "2 1 rest", "steps"])
def test_chunks(problem, ends):
    """At once, in chunks, step by step: the same bits, of the gradient too, though dy and what follows meet there."""
    ends = [*sorted(end for end in ends if end < problem.T), problem.T]
    expected = by_row(whole(problem), slice(None))
    outputs, gradients = in_chunks(problem, ends)
    assert_one_result(outputs, {name: expected[name] for name in outputs})
    assert_one_result(gradients, {name: expected[name] for name in gradients})


@sizes
def test_threads(problem, set_num_threads, monkeypatch):
    """1, 2 or 3 workers."""
    monkeypatch.setattr("fastrnn.threads.SMALL", 0)
    results = {}
    for workers in (1, 2, 3):
        set_num_threads(workers)
        results[workers] = whole(problem)
    assert_same_bits(results[2], results[1])
    assert_same_bits(results[3], results[1])


def test_rows_of_no_length():
    """Such a row's state is returned as it came, and so is its gradient: F has nothing to do with it."""
    problem = SIZES["lengths"]
    outputs, gradients = problem.solve()
    assert_same_bits({"h": outputs["h"][:, 1].copy()}, {"h": problem.state[:, 1].copy()})
    assert_same_bits({"h": gradients["dh0"][:, 1].copy()}, {"h": problem.dstate[:, 1].copy()})
    nothing = problem.but(lengths=(0,) * problem.B)
    outputs, gradients = nothing.solve()
    assert_same_bits({"h": outputs["h"], "dh": gradients["dh0"]}, {"h": problem.state, "dh": problem.dstate})
    assert not any(np.any(gradients[f"d{name}"]) for name in problem.params)


SLOPES = {
    "tanh": lambda h: 1 - np.tanh(h) ** 2,
    "relu": lambda h: 1.0 * (h > 0),
    "sigmoid": lambda h: reference.sigmoid(h) * (1 - reference.sigmoid(h)),
    "identity": np.ones_like,
}


@some_functions
def test_the_product_of_jacobians(name):
    """dh[t]/dh[k] is the product of W diag(F'(h[j-1])) for j from t down to k + 1; its norm is at most the product of
    theirs (Pascanu, Mikolov and Bengio 2013, equations 5 to 7; the notes' on how gradients vanish and explode).
    """
    H, T = 6, 8
    rnn = fr.RNN(3, H, nonlinearity=name, preactivation=True, dtype="float64", seed=0)
    W = rnn.params["weight_hh_l0"]
    x = np.random.default_rng(1).standard_normal((T, 1, 3)).repeat(H, axis=1)
    h = [np.random.default_rng(2).standard_normal((1, 1, H)).repeat(H, axis=1)]
    tapes = []
    for t in range(T):
        _, state, tape = rnn.forward(x[t : t + 1], h[-1])
        h.append(state)
        tapes.append(tape)
    found = np.eye(H)[None]  # each row of the batch begins with another unit vector
    product, bound = np.eye(H), 1.0
    for j in range(T, 0, -1):
        _, found = rnn.backward(tapes[j - 1], None, found)
        slope = SLOPES[name](h[j - 1][0, 0])
        product = product @ W @ np.diag(slope)
        bound *= np.linalg.norm(W, 2) * slope.max()
        np.testing.assert_allclose(found[0], product, atol=1e-14)
        assert np.linalg.norm(found[0], 2) <= bound * (1 + 1e-12)


def test_stream():
    """Step by step from a stream, which has a kernel of its own for other layers: the bits of the whole."""
    rnn = fr.RNN(3, 7, nonlinearity="sigmoid", preactivation=True, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((5, 1, 3))
    stream = rnn.stream()
    found = np.stack([stream.push(step[0]) for step in x])
    y, h = rnn(x)
    assert_one_result({"y": found, "h": stream.state}, {"y": y[:, 0].copy(), "h": h})


def test_state_is_left_alone():
    """The caller's state is read; the intermediates say a, which y is made of; a pickle remembers."""
    rnn = fr.RNN(3, 7, preactivation=True, dtype="float64", seed=0)
    x, h0 = np.ones((4, 2, 3)), np.full((1, 2, 7), 0.5)
    y, h, tape = rnn.forward(x, h0)
    assert np.all(h0 == 0.5)
    assert_same_bits(rnn.intermediates(tape), {"a_l0": np.array(y)})
    np.testing.assert_allclose(np.tanh(h[0]), y[-1], rtol=1e-14)
