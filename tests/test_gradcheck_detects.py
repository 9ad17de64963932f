"""A check that cannot fail is worse than none: the checker of test_gradients.py rejects planted errors.

Each wrong result is made from right ones, in the way that real libraries went wrong: a gradient that was
never written, a carry that was dropped, a loop that ended a step early, a buffer read at step 0 for ever.
"""

import numpy as np
import pytest
from helpers import Problem, assert_close, mixed_lengths
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


# --- other cells, two directions, lengths -------------------------------------------------------------------
#
# What an error of such a layer would give is what the reference gives for the wrong equation, or for the wrong
# lengths: no layer need be broken for it.

RAGGED = Problem("lstm", T=5, B=4, I=3, H=6, L=2, bidirectional=True, lengths=mixed_lengths(5, 4))
ONE_WAY = RAGGED.but(bidirectional=False, L=1)


def is_caught(wrong, problem):
    """Whether the checker rejects another problem's outputs, and its gradients, though they have its parameters."""
    wrong.__dict__["params"] = problem.params
    wrong.__dict__["inputs"] = problem.inputs
    wrong.__dict__["doutputs"] = problem.doutputs
    assert passes(problem.outputs(), problem.gradients, problem)
    in_outputs = not passes(wrong.outputs(), problem.gradients, problem)
    in_gradients = not passes(problem.outputs(), wrong.gradients, problem)
    return in_outputs, in_gradients


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("gru", "gru_before"),
        ("gru_before", "gru"),
        ("rnn_tanh", "rnn_sigmoid"),
        ("lstm_clip", "lstm_peephole"),
    ],
)
def test_another_cell_of_the_same_shape(right, wrong):
    """The reset gate on the other side of the product, another nonlinearity, a clip that was forgotten."""
    problem = Problem(right, T=4, B=3, I=5, H=7)
    assert is_caught(problem.but(cell=wrong), problem) == (True, True)


@pytest.mark.parametrize("cell", ["gru", "gru_before"])
@pytest.mark.parametrize("order", ["zrn", "rnz", "nzr"])
def test_gru_gates_exchanged(cell, order):
    """z r n, as ONNX has them, and the other ways to be wrong, in the layer and in its gradients."""
    problem = Problem(cell, T=4, B=3, I=5, H=7)
    blocks = ["rzn".index(letter) for letter in order]
    wrong = {name: np.concatenate([np.split(a, 3)[k] for k in blocks]) for name, a in problem.params.items()}
    assert not passes(problem.outputs(problem.inputs | wrong), problem.gradients, problem)
    for name in problem.params:
        d = np.concatenate([np.split(problem.gradients[f"d{name}"], 3)[k] for k in blocks])
        assert not passes(problem.outputs(), problem.gradients | {f"d{name}": d}, problem)


def test_gru_bias_on_the_wrong_side_of_the_reset_gate():
    """Both biases of n outside: right for the gate before the product, wrong after it."""
    problem = Problem("gru", T=4, B=3, I=5, H=7)
    H, moved = problem.H, {name: a.copy() for name, a in problem.params.items()}
    moved["bias_ih_l0"][2 * H :] += moved["bias_hh_l0"][2 * H :]
    moved["bias_hh_l0"][2 * H :] = 0
    assert not passes(problem.outputs(problem.inputs | moved), problem.gradients, problem)
    same = problem.gradients["dbias_ih_l0"]
    assert not passes(problem.outputs(), problem.gradients | {"dbias_hh_l0": same}, problem)


def test_full_peephole_transposed():
    """c W instead of c W', and the gradient as its transpose."""
    problem = Problem("lstm_peephole_full", T=4, B=3, I=5, H=7)
    peep = problem.params["weight_peep_l0"].swapaxes(1, 2)
    assert not passes(problem.outputs(problem.inputs | {"weight_peep_l0": peep}), problem.gradients, problem)
    dpeep = problem.gradients["dweight_peep_l0"].swapaxes(1, 2)
    assert not passes(problem.outputs(), problem.gradients | {"dweight_peep_l0": dpeep}, problem)


@pytest.mark.parametrize("problem", [ONE_WAY, RAGGED], ids=["forward", "both ways"])
@pytest.mark.parametrize("how", ["ignored", "one more", "one less", "sorted", "moved"])
def test_wrong_lengths(problem, how):
    """Lengths that are ignored, one too long or short, or those of other rows."""
    lengths, T = np.array(problem.lengths), problem.T
    assert list(lengths) != sorted(lengths)
    wrong = {
        "ignored": None,
        "one more": tuple(np.clip(lengths + 1, 0, T)),
        "one less": tuple(np.clip(lengths - 1, 0, T)),
        "sorted": tuple(sorted(lengths)),
        "moved": tuple(np.roll(lengths, 1)),
    }
    assert is_caught(problem.but(lengths=wrong[how]), problem) == (True, True)


def test_past_the_end():
    """Something in y or dx past a row's end; the state of the last step instead of the last valid one."""
    padding = np.arange(RAGGED.T)[:, None] >= np.array(RAGGED.lengths)
    for problem in (ONE_WAY, RAGGED):
        outputs, gradients = problem.outputs(), problem.gradients
        y, dx = outputs["y"].copy(), gradients["dx"].copy()
        y[padding], dx[padding] = 1e-6, 1e-6
        assert not passes(outputs | {"y": y}, gradients, problem)
        assert not passes(outputs, gradients | {"dx": dx}, problem)
    outputs = ONE_WAY.outputs()
    for name in ("h", "c"):
        rows = np.array(ONE_WAY.lengths) == 0
        state = np.where(rows[:, None], 0, outputs[name])  # as ONNX Runtime has it for rows of no length
        assert not passes(outputs | {name: state}, ONE_WAY.gradients, ONE_WAY)
        dstart = np.where(rows[:, None], 0, ONE_WAY.gradients[f"d{name}0"])
        assert not passes(outputs, ONE_WAY.gradients | {f"d{name}0": dstart}, ONE_WAY)


def test_directions_exchanged():
    """The halves of y, the rows of the states, the parameters and their gradients, one in the other's place."""
    outputs, gradients = RAGGED.outputs(), RAGGED.gradients
    halves = np.concatenate(np.split(outputs["y"], 2, axis=-1)[::-1], axis=-1)
    assert not passes(outputs | {"y": halves}, gradients, RAGGED)
    for order in ([1, 0, 3, 2], [0, 2, 1, 3], [2, 3, 0, 1]):  # exchanged; all forward ones first; layers exchanged
        for name in ("h", "c"):
            assert not passes(outputs | {name: outputs[name][order]}, gradients, RAGGED)
            assert not passes(outputs, gradients | {f"d{name}0": gradients[f"d{name}0"][order]}, RAGGED)
    for name in [name for name in RAGGED.params if not name.endswith("_reverse")]:
        d = {f"d{name}": gradients[f"d{name}_reverse"], f"d{name}_reverse": gradients[f"d{name}"]}
        assert not passes(outputs, gradients | d, RAGGED)
        p = {name: RAGGED.params[f"{name}_reverse"], f"{name}_reverse": RAGGED.params[name]}
        assert not passes(RAGGED.outputs(RAGGED.inputs | p), gradients, RAGGED)


def test_reverse_direction_that_runs_forward():
    """Both directions from the left; and the reverse one from the right end of the padding."""
    problem = RAGGED.but(L=1)
    outputs, gradients = problem.outputs(), problem.gradients
    reverse = {n.removesuffix("_reverse"): a for n, a in problem.params.items() if n.endswith("_reverse")}
    one_way = problem.but(bidirectional=False)
    arrays = reverse | {"x": problem.inputs["x"]} | {f"{n}0": problem.inputs[f"{n}0"][1:] for n in ("h", "c")}
    from_the_right = problem.but(lengths=None).outputs(problem.inputs)["y"][..., problem.H :]
    for wrong in (one_way.outputs(arrays)["y"], from_the_right):
        y = np.concatenate((outputs["y"][..., : problem.H], wrong), axis=-1)
        y[np.arange(problem.T)[:, None] >= np.array(problem.lengths)] = 0
        assert not passes(outputs | {"y": y}, gradients, problem)


def test_gradient_of_one_direction_forgotten():
    """dx of the forward direction alone, or of the reverse one: the gradients with the other's dy set to zero."""
    problem = RAGGED.but(L=1)
    for half in (slice(problem.H), slice(problem.H, None)):
        one = problem.but()
        douts = {name: d.copy() for name, d in problem.doutputs.items()}
        douts["y"][..., half] = 0
        one.__dict__["doutputs"] = douts
        for name in ("dx", "dh0", "dc0"):
            assert not passes(problem.outputs(), problem.gradients | {name: one.gradients[name]}, problem)
