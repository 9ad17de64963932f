"""ONNX Runtime's numbers, forward: above all of what PyTorch has not, peepholes, coupled gates, clipping, the reset
gate before the product, activations of one's choice. Its gates stand in another order: i o f g, and z r n.
"""

import numpy as np
import pytest
from helpers import CELLS, IN_FLOAT32, JIT, Problem, assert_close, import_or_skip, mixed_lengths, those
from hypothesis import given
from hypothesis import strategies as st
from strategies import lengths, seeds

onnx = import_or_skip("onnx")
onnxruntime = import_or_skip("onnxruntime")

TOLERANCE = 1e-5
# ONNX has no projection and no matrices in peepholes; the clip has a test of its own.
COMPARED = [cell for cell in CELLS if cell not in ("lstm_projected", "lstm_peephole_full", "lstm_clip")]
SIZES = [(1, 2, 3, 5), (9, 4, 5, 7), (6, 13, 21, 35)]
FUNCTIONS = ("tanh", "sigmoid", "relu", "hardsigmoid", "softsign", "identity")
ORDER = {"RNN": "h", "GRU": "zrn", "LSTM": "iofg"}
OURS = {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"}
NAMES = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "hardsigmoid": "HardSigmoid",
    "softsign": "Softsign",
    "identity": "Affine",
}
CONSTANTS = {"hardsigmoid": (0.2, 0.5), "identity": (1.0, 0.0)}  # alpha and beta of those that take them


def in_order(a, have, want):
    """The blocks of rows of `a`, one for each letter of `have`, in the order of `want`.

    A gate that `a` has none of is NaN: whoever reads it is found out.
    """
    blocks = dict(zip(have, np.split(a, len(have)), strict=True))
    missing = np.full_like(blocks[have[0]], np.nan)
    return np.concatenate([blocks.get(letter, missing) for letter in want])


def constants_of(problem, end):
    """W, R, B and P of one direction."""
    params, options, kind = problem.params, problem.options, problem.kind
    have = OURS[kind].replace("f", "") if options.get("coupled") else OURS[kind]

    def gates(name):
        a = params.get(f"{name}_l0{end}", np.zeros(len(have) * problem.H))
        return in_order(a, have, ORDER[kind])

    constants = {
        "W": gates("weight_ih"),
        "R": gates("weight_hh"),
        "B": np.concatenate((gates("bias_ih"), gates("bias_hh"))),
    }
    if options.get("peephole"):
        peep = in_order(params[f"weight_peep_l0{end}"], "io" if options.get("coupled") else "ifo", "iof")
        constants["P"] = peep.ravel()
    return constants


def attributes_of(problem, sides):
    """The node's attributes, for one direction or two."""
    options = problem.options
    of_all = {"RNN": [options.get("nonlinearity", "tanh")], "GRU": ["sigmoid", "tanh"]}
    activations = list(options.get("activations", of_all.get(problem.kind, ["sigmoid", "tanh", "tanh"])))
    attributes = {
        "hidden_size": problem.H,
        "activations": [NAMES[name] for name in activations] * sides,
    }
    both = [CONSTANTS[name] for name in activations if name in CONSTANTS] * sides
    if both:
        attributes |= {"activation_alpha": [a for a, _ in both], "activation_beta": [b for _, b in both]}
    if options.get("clip"):
        attributes["clip"] = options["clip"]
    if options.get("coupled"):
        attributes["input_forget"] = 1
    if problem.kind == "GRU":
        attributes["linear_before_reset"] = int(options.get("reset", "after") == "after")
    return attributes


def outputs_by_onnx(problem, direction=None):
    """y, h, c of one node, its weights constant, its inputs x, the lengths and the initial state.

    direction : "forward" and "reverse" run that half of a problem that goes both ways; None: all there is

    ONNX has an axis for the directions in y. For a row of length zero ONNX Runtime says that the final state is
    zero; here it is the initial one, so that a row which has ended keeps its state from chunk to chunk.
    """
    numbers = range(problem.D) if direction is None else [("forward", "reverse").index(direction)]
    sides = [constants_of(problem, ("", "_reverse")[number]) for number in numbers]
    constants = {name: np.stack([side[name] for side in sides]).astype("float32") for name in sides[0]}
    lengths = np.full(problem.B, problem.T) if problem.lengths is None else np.array(problem.lengths)
    state = {n: np.ascontiguousarray(s[list(numbers)]) for n, s in problem.unpack(problem.state).items()}
    feeds = {"x": problem.x, "lengths": lengths.astype("int32")} | {f"{n}0": s for n, s in state.items()}
    inputs = ["x", "W", "R", "B", "lengths", *(f"{n}0" for n in state)] + ["P"] * ("P" in constants)

    helper, types = onnx.helper, onnx.TensorProto
    outputs = ["y", *state]
    direction = direction or ("bidirectional" if problem.bidirectional else "forward")
    attributes = attributes_of(problem, len(sides))
    node = helper.make_node(problem.kind, inputs, outputs, direction=direction, **attributes)
    of_type = {name: types.INT32 if name == "lengths" else types.FLOAT for name in feeds}
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(name, of_type[name], None) for name in feeds],
        [helper.make_tensor_value_info(name, types.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(a, name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *finals = session.run(None, feeds)
    found = {"y": np.concatenate(np.swapaxes(y, 0, 1), axis=-1)} | dict(zip(state, finals, strict=True))
    for name, start in state.items():
        found[name] = np.where((lengths == 0)[:, None], start, found[name])
    return found


@st.composite
def layers(draw, cell):
    """A layer of one of the sizes, with every option that ONNX has too."""
    T, B, I, H = draw(st.sampled_from(SIZES))  # noqa: E741 - the glossary's letter
    return Problem(
        cell,
        T=T,
        B=B,
        I=I,
        H=H,
        bidirectional=draw(st.booleans()),
        lengths=draw(st.none() | lengths(T, B)),
        bias=draw(st.booleans()),
        dtype="float32",
        seed=draw(seeds),
    )


def clipped(cell):
    """A problem whose pre-activations often reach the limit and whose cells never do.

    For ONNX Runtime's clip leaves the cell alone; here it holds for both.
    """
    problem = Problem(cell, T=3, B=5, I=13, H=19, bidirectional=True, dtype="float32", more=(("clip", 3.0),))
    problem.__dict__["params"] = {name: (3 * a).astype("float32") for name, a in problem.params.items()}
    return problem


def activated(first):
    """An LSTM with three functions in a row of the six: in all, each has each place once."""
    names = tuple((FUNCTIONS * 2)[first : first + 3])
    problem = Problem("lstm", T=4, B=5, I=5, H=19, bidirectional=True, lengths=(3, 0, 4, 2, 4), dtype="float32")
    return problem.but(more=(("activations", names),))


compared = pytest.mark.parametrize("cell", COMPARED)
with_clip = pytest.mark.parametrize("cell", ["lstm", "lstm_peephole"])
with_activations = pytest.mark.parametrize("first", range(6), ids=FUNCTIONS)


# --- the reference ------------------------------------------------------------------------------------------


@compared
@given(data=st.data())
def test_reference(cell, data):
    """The reference's outputs are ONNX Runtime's."""
    problem = data.draw(layers(cell))
    assert_close(problem.outputs(), outputs_by_onnx(problem), TOLERANCE)


@with_clip
def test_reference_clips(cell):
    """As far as they mean the same; and the limit is not there in vain."""
    problem = clipped(cell)
    outputs = problem.outputs()
    assert_close(outputs, outputs_by_onnx(problem), TOLERANCE)
    assert np.abs(outputs["c"]).max() < 3
    for limit in (None, 2.9):
        other = problem.but(more=(("clip", limit),))
        other.__dict__["params"] = problem.params
        assert np.abs(other.outputs()["y"] - outputs["y"]).max() > 1e-3


@with_activations
def test_reference_activations(first):
    """Every function in every place."""
    problem = activated(first)
    assert_close(problem.outputs(), outputs_by_onnx(problem), TOLERANCE)


# --- fastrnn ------------------------------------------------------------------------------------------------


def compiled(problem):
    """The problem as fastrnn solves it: where float32 is left to the long form, with the same numbers in float64."""
    if not JIT or (problem.cell in IN_FLOAT32 and not problem.more):
        return problem
    wide = problem.but(dtype="float64")
    wide.__dict__.update(inputs=problem.inputs, params=problem.params)
    return wide


def assert_is_onnx_s(problem):
    """Outputs, in inference and in training."""
    expected = outputs_by_onnx(problem)
    problem = compiled(problem)
    layer = problem.layer()
    assert_close(problem.infer(layer), expected, TOLERANCE)
    assert_close(problem.forward(layer)[0], expected, TOLERANCE)


@compared
@given(data=st.data())
def test_outputs(cell, data):
    """So are fastrnn's."""
    assert_is_onnx_s(data.draw(layers(cell)))


@pytest.mark.parametrize("cell", those(["lstm", "lstm_peephole"], ["lstm_peephole"]))
def test_clip(cell):
    """With pre-activations at the limit."""
    assert_is_onnx_s(clipped(cell))


@pytest.mark.parametrize("first", those(range(6), (0, 3), FUNCTIONS))
def test_activations(first):
    """With other functions than the usual ones."""
    assert_is_onnx_s(activated(first))


@compared
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_one_direction(cell, direction):
    """Either half of a layer that goes both ways is ONNX Runtime's node for that direction."""
    problem = Problem(cell, T=9, B=13, I=5, H=17, bidirectional=True, lengths=mixed_lengths(9, 13), dtype="float32")
    number, ours = int(direction == "reverse"), compiled(problem)
    found = ours.infer(ours.layer())
    half = {name: a[number, None] for name, a in found.items() if name != "y"}
    half["y"] = np.split(found["y"], 2, axis=-1)[number]
    assert_close(half, outputs_by_onnx(problem, direction), TOLERANCE)
