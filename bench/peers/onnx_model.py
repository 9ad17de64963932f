"""A case's recurrent layers as an ONNX model: what ONNX Runtime and OpenVINO are given. Needs the package
`onnx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import CELLS, Case
from ..job import Unsupported
from ..problem import Problem


def model_of(case: Case, weights: dict[str, np.ndarray], with_state: bool) -> bytes:
    """A chain of RNN, LSTM or GRU nodes, weights constant. Inputs: x (T, B, I), with_state h0 and c0 (1, B, H), and
    for rows of many lengths lengths (B,). Outputs: y (T, D, B, H), and of each layer n h<n> and c<n> (D, B, H).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if with_state and case.L > 1:
        raise Unsupported("a carried state with several layers is not written")
    cell = CELLS[case.cell]
    dtype = TensorProto.FLOAT if case.dtype == "float32" else TensorProto.DOUBLE
    states = "hc" if cell.lstm else "h"

    def gates(name: str) -> np.ndarray:
        """A parameter with its gates in ONNX's order."""
        if cell.gru:
            r, z, n = np.split(weights[name], 3)
            return np.concatenate((z, r, n))
        if cell.lstm:
            i, f, g, o = np.split(weights[name], 4)
            return np.concatenate((i, o, f, g))
        return weights[name]

    attributes: dict[str, Any] = {"hidden_size": case.H}
    if cell.gru:
        attributes["linear_before_reset"] = 1
    elif not cell.lstm:
        attributes["activations"] = [cell.nonlinearity.capitalize()] * case.D
    if case.D > 1:
        attributes["direction"] = "bidirectional"
    operator = "LSTM" if cell.lstm else "GRU" if cell.gru else "RNN"
    # Between layers (T, D, B, H) becomes (T, B, D*H): of the shape 0 is the size there is, -1 all that is left.
    nodes, constants = [], {"directions": np.array([1]), "side_by_side": np.array([0, 0, -1])}
    below = "x"
    for n in range(case.L):
        ends = [f"l{n}{end}" for end in ("", "_reverse")[: case.D]]
        constants[f"W{n}"] = np.stack([gates(f"weight_ih_{end}") for end in ends])
        constants[f"R{n}"] = np.stack([gates(f"weight_hh_{end}") for end in ends])
        biases = [(gates(f"bias_ih_{end}"), gates(f"bias_hh_{end}")) for end in ends]
        constants[f"B{n}"] = np.stack([np.concatenate(pair) for pair in biases])
        inputs = [below, f"W{n}", f"R{n}", f"B{n}", "lengths" if case.shortest else ""]
        inputs += [f"{s}0" if with_state else "" for s in states]
        if cell.peephole:
            peep = [weights[f"weight_peep_{end}"][[0, 2, 1]].reshape(-1) for end in ends]
            constants[f"P{n}"] = np.stack(peep)
            inputs.append(f"P{n}")
        while not inputs[-1]:
            inputs.pop()
        last = n == case.L - 1
        outputs = ["y" if last else f"y{n}", *(f"{s}{n + 1}" for s in states)]
        nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
        if not last:
            below = f"x{n + 1}"
            if case.D == 1:
                nodes.append(helper.make_node("Squeeze", [f"y{n}", "directions"], [below]))
                continue
            nodes.append(helper.make_node("Transpose", [f"y{n}"], [f"t{n}"], perm=[0, 2, 1, 3]))
            nodes.append(helper.make_node("Reshape", [f"t{n}", "side_by_side"], [below]))

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.INT32 if name == "lengths" else dtype, shape)

    state = [case.D, case.B, case.H]
    graph = helper.make_graph(
        nodes,
        case.name,
        [
            value("x", case.T, case.B, case.I),
            *(value(f"{s}0", *state) for s in states if with_state),
            *([value("lengths", case.B)] if case.shortest else []),
        ],
        [
            value("y", case.T, case.D, case.B, case.H),
            *(value(f"{s}{n + 1}", *state) for s in states for n in range(case.L)),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
    )
    opset = helper.make_opsetid("", 14)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def feed_of(problem: Problem) -> dict[str, np.ndarray]:
    """The model's inputs, without a state."""
    lengths = problem.lengths
    return {"x": problem.x} | ({} if lengths is None else {"lengths": lengths.astype(np.int32)})


def outputs(case: Case, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The model's outputs, in its order, as results."""
    found = {"y": values[0].swapaxes(1, 2).reshape(case.T, case.B, case.D * case.H)}
    for k, name in enumerate("hc" if CELLS[case.cell].lstm else "h"):
        found[name] = np.concatenate(values[1 + k * case.L : 1 + (k + 1) * case.L])
    return found
