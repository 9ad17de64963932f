"""Recurrent layers as a plain NumPy loop, forward and backward, in any float type.

In float64 it is what all results are compared with, in float32 it is the peer called `numpy`. It knows
nothing of fastrnn; tests/test_bench.py holds it against tests/reference.py, where gradients come from complex
steps.

    RNN     h = act(U x + W h' + b)
    LSTM    i, f, o = sigmoid(U x + W h' + b (+ p c))   g = tanh(U x + W h' + b)
            c = f c' + i g   h = o tanh(c)

x (T, B, I), or integers (T, B) that stand for one-hot rows; h, c (L, B, H); parameters as in PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .cases import Cell

Params = dict[str, np.ndarray]
State = tuple[np.ndarray, ...]  # (h,) or (h, c)


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def zero_state(cell: Cell, params: Params, batch: int) -> State:
    """h, and for an LSTM c: zeros (L, B, H)."""
    W = params["weight_hh_l0"]
    shape = (sum(name.startswith("weight_hh") for name in params), batch, W.shape[1])
    return tuple(np.zeros(shape, W.dtype) for _ in range(2 if cell.lstm else 1))


def forward(cell: Cell, params: Params, x: np.ndarray, state: State) -> tuple[np.ndarray, State, list[Any]]:
    """y (T, B, H), the final state, and what `backward` needs."""
    tape, final = [], []
    for layer in range(len(state[0])):
        U, W, b_u, b_w = (params[f"{n}_l{layer}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        inputs = (U.T[x] if x.dtype.kind == "i" else x @ U.T) + (b_u + b_w)  # (T, B, G H), all steps at once
        start = tuple(s[layer] for s in state)
        if cell.lstm:
            y, end, kept = _lstm_forward(inputs, W, params.get(f"weight_peep_l{layer}"), start)
        else:
            y, end, kept = _rnn_forward(inputs, W, cell.nonlinearity, start)
        tape.append((x, kept))
        final.append(end)
        x = y
    return x, tuple(np.stack(parts) for parts in zip(*final, strict=True)), tape


def backward(cell: Cell, params: Params, tape: list[Any], dy: np.ndarray) -> tuple[np.ndarray | None, Params]:
    """dx (None for one-hot) and the gradients of all parameters, for a final state that has no gradient."""
    grads: Params = {}
    for layer in reversed(range(len(tape))):
        x, kept = tape[layer]
        U, W = params[f"weight_ih_l{layer}"], params[f"weight_hh_l{layer}"]
        peep = params.get(f"weight_peep_l{layer}")
        if cell.lstm:
            dz, before, dpeep = _lstm_backward(W, peep, kept, dy)
        else:
            (dz, before), dpeep = _rnn_backward(W, cell.nonlinearity, kept, dy), None
        rows = dz.reshape(-1, dz.shape[2])
        if dpeep is not None:
            grads[f"weight_peep_l{layer}"] = dpeep
        grads[f"weight_hh_l{layer}"] = rows.T @ before.reshape(len(rows), -1)
        grads[f"bias_ih_l{layer}"] = grads[f"bias_hh_l{layer}"] = rows.sum(axis=0)
        if x.dtype.kind == "i":
            dU = np.zeros_like(U.T)
            np.add.at(dU, x.reshape(-1), rows)
            grads[f"weight_ih_l{layer}"] = dU.T
            return None, grads
        grads[f"weight_ih_l{layer}"] = rows.T @ x.reshape(len(rows), -1)
        dy = dz @ U
    return dy, grads


def _rnn_forward(inputs: np.ndarray, W: np.ndarray, nonlinearity: str, start: State) -> Any:
    (h,) = start
    hs = [h]
    for z in inputs:
        a = z + h @ W.T
        h = np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0)
        hs.append(h)
    return np.stack(hs[1:]), (h,), hs


def _rnn_backward(W: np.ndarray, nonlinearity: str, hs: list[np.ndarray], dy: np.ndarray) -> Any:
    dz = np.empty_like(dy)
    dh = np.zeros_like(hs[0])
    for t in reversed(range(len(dy))):
        h = hs[t + 1]
        dz[t] = (dh + dy[t]) * (1 - h * h if nonlinearity == "tanh" else h > 0)
        dh = dz[t] @ W
    return dz, np.stack(hs[:-1])


def _lstm_forward(inputs: np.ndarray, W: np.ndarray, peep: np.ndarray | None, start: State) -> Any:
    h, c = start
    H = W.shape[1]
    hs, cs, gates = [h], [c], []
    for z in inputs:
        a = z + h @ W.T
        a_i, a_f, a_g, a_o = (a[:, k * H : (k + 1) * H] for k in range(4))
        if peep is not None:
            a_i, a_f = a_i + peep[0] * c, a_f + peep[1] * c
        i, f, g = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g)
        c = f * c + i * g
        o = sigmoid(a_o if peep is None else a_o + peep[2] * c)
        h = o * np.tanh(c)
        hs.append(h)
        cs.append(c)
        gates.append((i, f, g, o))
    return np.stack(hs[1:]), (h, c), (hs, cs, gates)


def _lstm_backward(W: np.ndarray, peep: np.ndarray | None, kept: Any, dy: np.ndarray) -> Any:
    hs, cs, gates = kept
    T, B, H = dy.shape
    dz = np.empty((T, B, 4, H), dy.dtype)
    dh, dc = np.zeros_like(dy[0]), np.zeros_like(dy[0])
    dpeep = None if peep is None else np.zeros_like(peep)
    for t in reversed(range(T)):
        i, f, g, o = gates[t]
        tc = np.tanh(cs[t + 1])
        dh = dh + dy[t]
        dz_o = dh * tc * o * (1 - o)
        dc = dc + dh * o * (1 - tc * tc)
        if peep is not None:
            dc = dc + dz_o * peep[2]
        dz_i, dz_f = dc * g * i * (1 - i), dc * cs[t] * f * (1 - f)
        for k, d in enumerate((dz_i, dz_f, dc * i * (1 - g * g), dz_o)):
            dz[t, :, k] = d
        dc = dc * f
        if peep is not None and dpeep is not None:
            dc = dc + dz_i * peep[0] + dz_f * peep[1]
            dpeep += [(dz_i * cs[t]).sum(0), (dz_f * cs[t]).sum(0), (dz_o * cs[t + 1]).sum(0)]
        dh = dz[t].reshape(B, 4 * H) @ W
    return dz.reshape(T, B, 4 * H), np.stack(hs[:-1]), dpeep
