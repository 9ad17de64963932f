"""A case's recurrent layers as an ONNX model: what ONNX Runtime and OpenVINO are given. Needs the package
`onnx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import CELLS, Case
from ..job import Unsupported


def model_of(case: Case, weights: dict[str, np.ndarray], with_state: bool) -> bytes:
    """A chain of RNN or LSTM nodes, weights constant. Inputs: x (T, B, I) and, with_state, h0 and c0 (1, B,
    H). Outputs: y (T, 1, B, H), the 1 being ONNX's axis for directions, and of each layer n h<n> and c<n> (1,
    B, H).
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    if with_state and case.L > 1:
        raise Unsupported("a carried state with several layers is not written")
    cell = CELLS[case.cell]
    dtype = TensorProto.FLOAT if case.dtype == "float32" else TensorProto.DOUBLE
    states = "hc" if cell.lstm else "h"

    def gates(name: str) -> np.ndarray:
        if not cell.lstm:
            return weights[name]
        i, f, g, o = np.split(weights[name], 4)
        return np.concatenate((i, o, f, g))  # ONNX's order is i o f c

    nodes, constants = [], {"directions": np.array([1])}
    below = "x"
    for n in range(case.L):
        constants[f"W{n}"], constants[f"R{n}"] = (
            gates(f"weight_ih_l{n}")[None],
            gates(f"weight_hh_l{n}")[None],
        )
        constants[f"B{n}"] = np.concatenate((gates(f"bias_ih_l{n}"), gates(f"bias_hh_l{n}")))[None]
        inputs = [below, f"W{n}", f"R{n}", f"B{n}", ""]
        inputs += [f"{s}0" if with_state else "" for s in states]
        if cell.peephole:
            i, f, o = weights[f"weight_peep_l{n}"]
            constants[f"P{n}"] = np.concatenate((i, o, f))[None]
            inputs.append(f"P{n}")
        while not inputs[-1]:
            inputs.pop()
        last = n == case.L - 1
        outputs = ["y" if last else f"y{n}", *(f"{s}{n + 1}" for s in states)]
        options: dict[str, Any] = {} if cell.lstm else {"activations": [cell.nonlinearity.capitalize()]}
        nodes.append(helper.make_node("LSTM" if cell.lstm else "RNN", inputs, outputs, hidden_size=case.H, **options))
        if not last:
            nodes.append(helper.make_node("Squeeze", [f"y{n}", "directions"], [f"x{n + 1}"]))
            below = f"x{n + 1}"

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, dtype, shape)

    state = [1, case.B, case.H]
    graph = helper.make_graph(
        nodes,
        case.name,
        [value("x", case.T, case.B, case.I), *(value(f"{s}0", *state) for s in states if with_state)],
        [
            value("y", case.T, 1, case.B, case.H),
            *(value(f"{s}{n + 1}", *state) for s in states for n in range(case.L)),
        ],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
    )
    opset = helper.make_opsetid("", 14)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def outputs(case: Case, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    """The model's outputs, in its order, as results."""
    found = {"y": values[0][:, 0]}
    for k, name in enumerate("hc" if CELLS[case.cell].lstm else "h"):
        found[name] = np.concatenate(values[1 + k * case.L : 1 + (k + 1) * case.L])
    return found
