"""A check that cannot fail is worse than none: the checker of test_gradients.py rejects planted errors.

Each wrong result is made from right ones, in the way that real libraries went wrong: a gradient that was
never written, a carry that was dropped, a loop that ended a step early, a buffer read at step 0 for ever.
"""

import numpy as np
import pytest
from helpers import Problem, assert_close
from test_gradients import BACKWARD, FORWARD

import fastrnn as fr

PROBLEM = Problem("lstm_peephole", T=5, B=3, I=7, H=11)


def passes(outputs, gradients, problem=PROBLEM):
    """Whether the checker lets these results pass."""
    try:
        assert_close(outputs, problem.outputs(), FORWARD)
        assert_close(gradients, problem.gradients, BACKWARD)
    except AssertionError:
        return False
    return True


@pytest.fixture
def solved():
    """The outputs and the gradients of an untouched layer, copied."""
    return tuple({name: array.copy() for name, array in results.items()} for results in PROBLEM.solve())


def test_untouched_control(solved):
    """Nothing planted, nothing found."""
    assert passes(*solved)


@pytest.mark.parametrize("name", ["dx", "dh0", "dc0", *(f"d{name}" for name in PROBLEM.params)])
def test_gradient_never_written(solved, name):
    """A gradient that stayed zero."""
    outputs, gradients = solved
    gradients[name][...] = 0
    assert not passes(outputs, gradients)


@pytest.mark.parametrize("name", ["dx", "dh0", "dc0", *(f"d{name}" for name in PROBLEM.params)])
def test_one_element_off(solved, name):
    """One element, the last, off by a part in a million of the largest: a forgotten tail."""
    outputs, gradients = solved
    gradients[name].flat[-1] += 1e-6 * np.abs(gradients[name]).max()
    assert not passes(outputs, gradients)


@pytest.mark.parametrize("name", ["dweight_ih_l0", "dweight_hh_l0", "dbias_ih_l0", "dbias_hh_l0"])
def test_two_gates_exchanged_in_a_gradient(solved, name):
    """The rows of i and f, one in the other's place."""
    outputs, gradients = solved
    H = PROBLEM.H
    i, f = gradients[name][:H].copy(), gradients[name][H : 2 * H].copy()
    gradients[name][:H], gradients[name][H : 2 * H] = f, i
    assert not passes(outputs, gradients)


def test_two_gates_exchanged_in_the_layer():
    """A layer whose o and g stand in the other order (as in ONNX and others), through and through."""
    H = PROBLEM.H
    layer = PROBLEM.layer()
    for name in PROBLEM.params:
        if "peep" not in name:
            i, f, g, o = np.split(layer.params[name], 4)
            layer.params[name] = np.concatenate((i, f, o, g))
    outputs, tape = PROBLEM.forward(layer)
    assert outputs["y"].shape == (PROBLEM.T, PROBLEM.B, H)
    assert not passes(outputs, PROBLEM.backward(layer, tape))


def test_peephole_gates_exchanged(solved):
    """The rows of the peephole gradient as i o f instead of i f o."""
    outputs, gradients = solved
    gradients["dweight_peep_l0"] = gradients["dweight_peep_l0"][[0, 2, 1]]
    assert not passes(outputs, gradients)


def by_steps(keep):
    """Outputs and gradients, the latter step by step from the last. `keep(dh, dc)`: what a step hands on."""
    layer = PROBLEM.layer()
    state, tapes, ys = PROBLEM.state, [], []
    for t in range(PROBLEM.T):
        y, state, tape = layer.forward(PROBLEM.x[t : t + 1], state)
        ys.append(y)
        tapes.append(tape)
    dstate, dxs = PROBLEM.dstate, []
    for t in reversed(range(PROBLEM.T)):
        dx, dstate = layer.backward(tapes[t], PROBLEM.dy[t : t + 1], dstate)
        dxs.insert(0, dx)
        if t > 0:
            dstate = keep(*dstate)
    gradients = {f"d{name}": gradient for name, gradient in layer.grads.items()}
    gradients |= {"dx": np.concatenate(dxs), "dh0": dstate[0], "dc0": dstate[1]}
    return {"y": np.concatenate(ys), "h": state[0], "c": state[1]}, gradients


def test_carry_dropped():
    """dc, or dh, not handed on from a step to the one before it; handed on, all is well."""
    assert passes(*by_steps(lambda dh, dc: (dh, dc)))
    assert not passes(*by_steps(lambda dh, dc: (dh, np.zeros_like(dc))))
    assert not passes(*by_steps(lambda dh, dc: (np.zeros_like(dh), dc)))


def test_first_step_skipped(solved):
    """A backward loop that ends at step 1: the weights never hear of step 0."""
    outputs, gradients = solved
    layer = PROBLEM.layer()
    _, state = layer(PROBLEM.x[:1], PROBLEM.state)
    _, _, tape = layer.forward(PROBLEM.x[1:], state)
    layer.backward(tape, PROBLEM.dy[1:], PROBLEM.dstate)
    short = {f"d{name}": gradient for name, gradient in layer.grads.items()}
    for name, gradient in short.items():
        assert not passes(outputs, gradients | {name: gradient})


def test_step_0_read_for_every_step(solved):
    """dU = sum dz[t] x[0] instead of dz[t] x[t]; and dx[0], y[0] in every place.

    The first comes from a layer with twice the input, x[t] beside x[0], with zero weights for the second
    half.
    """
    outputs, gradients = solved
    I = PROBLEM.I  # noqa: E741 - the glossary's letter
    double = fr.LSTM(2 * I, PROBLEM.H, peephole="diagonal", dtype="float64")
    U = PROBLEM.params["weight_ih_l0"]
    double.load_state_dict(PROBLEM.params | {"weight_ih_l0": np.concatenate((U, np.zeros_like(U)), axis=1)})
    x = np.concatenate((PROBLEM.x, np.broadcast_to(PROBLEM.x[:1], PROBLEM.x.shape)), axis=2)
    _, _, tape = double.forward(x, PROBLEM.state)
    double.backward(tape, PROBLEM.dy, PROBLEM.dstate)
    right, wrong = double.grads["weight_ih_l0"][:, :I], double.grads["weight_ih_l0"][:, I:]
    assert passes(outputs, gradients | {"dweight_ih_l0": right})
    assert not passes(outputs, gradients | {"dweight_ih_l0": wrong})

    assert not passes(outputs, gradients | {"dx": np.broadcast_to(gradients["dx"][:1], gradients["dx"].shape)})
    assert not passes(outputs | {"y": np.broadcast_to(outputs["y"][:1], outputs["y"].shape)}, gradients)
