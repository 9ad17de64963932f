"""The peephole LSTM of ONNX Runtime, whose gates stand in another order: W, R, B as i o f c, P as i o f."""

import numpy as np
import pytest
from helpers import Problem, assert_close, import_or_skip

onnx = import_or_skip("onnx")
onnxruntime = import_or_skip("onnxruntime")


def session_of(problem):
    """A session with one LSTM node, its weights constant, and inputs x, h0, c0."""
    H = problem.H

    def gates(name):
        i, f, g, o = np.split(problem.params[name], 4)
        return np.concatenate((i, o, f, g))

    i, f, o = problem.params["weight_peep_l0"]
    constants = {
        "W": gates("weight_ih_l0"),
        "R": gates("weight_hh_l0"),
        "B": np.concatenate((gates("bias_ih_l0"), gates("bias_hh_l0"))),
        "P": np.concatenate((i, o, f)),
    }
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    floats = onnx.TensorProto.FLOAT
    node = helper.make_node("LSTM", ["x", "W", "R", "B", "", "h0", "c0", "P"], ["y", "h", "c"], hidden_size=H)
    graph = helper.make_graph(
        [node],
        "peephole",
        [helper.make_tensor_value_info(name, floats, None) for name in ("x", "h0", "c0")],
        [helper.make_tensor_value_info(name, floats, None) for name in ("y", "h", "c")],
        [numpy_helper.from_array(a[None].astype("float32"), name) for name, a in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def outputs_by_onnx(problem):
    """y, h, c of the node. ONNX has an axis for the directions in y."""
    h0, c0 = problem.state
    y, h, c = session_of(problem).run(None, {"x": problem.x, "h0": h0, "c0": c0})
    return {"y": y[:, 0], "h": h, "c": c}


SIZES = pytest.mark.parametrize("size", [(1, 2, 3, 5), (9, 4, 5, 7), (6, 13, 21, 35)])


def problem_of(size):
    T, B, I, H = size  # noqa: E741 - the glossary's letter
    return Problem("lstm_peephole", T=T, B=B, I=I, H=H, dtype="float32")


@SIZES
def test_reference(size):
    """The reference's peepholes are ONNX's."""
    problem = problem_of(size)
    assert_close(problem.outputs(), outputs_by_onnx(problem), 1e-5)


@SIZES
def test_outputs(size):
    """So are fastrnn's, in inference and in training."""
    problem = problem_of(size)
    layer, expected = problem.layer(), outputs_by_onnx(problem)
    assert_close(problem.infer(layer), expected, 1e-5)
    assert_close(problem.forward(layer)[0], expected, 1e-5)
