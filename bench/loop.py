"""Recurrent layers as a plain NumPy loop, forward and backward, in any float type.

In float64 it is what all results are compared with, in float32 it is the peer called `numpy`. It knows
nothing of fastrnn; tests/test_bench.py holds it against tests/reference.py, where gradients come from complex
steps.

    RNN     h = act(U x + W h' + b)
    LSTM    i, f, o = sigmoid(U x + W h' + b (+ p c))   g = tanh(U x + W h' + b)
            c = f c' + i g   h = o tanh(c)
    GRU     r, z = sigmoid(U x + W h' + b)   n = tanh(U x + b_u + r (W h' + b_w))
            h = (1 - z) n + z h'

x (T, B, I), or integers (T, B) that stand for one-hot rows; h, c (L*D, B, H); parameters as in PyTorch. lengths (B,):
the steps of each row. Those past its end are computed like the others, as a padded batch is, and then put to zero.
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
    """h, and for an LSTM c: zeros (L*D, B, H)."""
    W = params["weight_hh_l0"]
    shape = (sum(name.startswith("weight_hh") for name in params), batch, W.shape[1])
    return tuple(np.zeros(shape, W.dtype) for _ in range(2 if cell.lstm else 1))


def forward(
    cell: Cell, params: Params, x: np.ndarray, state: State, lengths: np.ndarray | None = None
) -> tuple[np.ndarray, State, list[Any]]:
    """y (T, B, D*H), the final state, and what `backward` needs."""
    tape, final = [], []
    for layer, names in enumerate(_layers(params)):
        outputs = []
        for d, name in enumerate(names):
            U, W, b_u, b_w = (params[f"{n}_{name}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            own = turned(x, lengths) if d else x
            start = tuple(s[layer * len(names) + d] for s in state)
            bias = b_u if cell.gru else b_u + b_w  # of the input product, which is made for all steps at once
            inputs = (U.T[own] if own.dtype.kind == "i" else own @ U.T) + bias  # (T, B, G H)
            if cell.lstm:
                kept = _lstm_forward(inputs, W, params.get(f"weight_peep_{name}"), start)
            elif cell.gru:
                kept = _gru_forward(inputs, W, b_w, start)
            else:
                kept = _rnn_forward(inputs, W, cell.nonlinearity, start)
            states = kept[: len(state)]  # of h, and for an LSTM of c: T + 1 arrays (B, H)
            y = masked(np.stack(states[0][1:]), lengths)
            outputs.append(turned(y, lengths) if d else y)
            final.append([s[-1] if lengths is None else np.stack(s)[lengths, np.arange(len(lengths))] for s in states])
            tape.append((own, kept, lengths))
        x = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=2)
    return x, tuple(np.stack(parts) for parts in zip(*final, strict=True)), tape


def backward(cell: Cell, params: Params, tape: list[Any], dy: np.ndarray) -> tuple[np.ndarray | None, Params]:
    """dx (None for one-hot) and the gradients of all parameters, for a final state that has no gradient."""
    grads: Params = {}
    dx: np.ndarray | None = None
    for layer, names in reversed(list(enumerate(_layers(params)))):
        dx = None
        for d, name in enumerate(names):
            x, kept, lengths = tape[layer * len(names) + d]
            U, W = params[f"weight_ih_{name}"], params[f"weight_hh_{name}"]
            H = W.shape[1]
            # Zero past a row's end: what was computed there has no part in the loss, and so dz is zero there too.
            own = masked(dy[:, :, d * H : (d + 1) * H], lengths)
            own = turned(own, lengths) if d else own
            dv = None  # of the recurrent product, where it is not the input product's
            if cell.lstm:
                peep = params.get(f"weight_peep_{name}")
                dz, dpeep = _lstm_backward(W, peep, kept, own)
                if dpeep is not None:
                    grads[f"weight_peep_{name}"] = dpeep
            elif cell.gru:
                dz, dv = _gru_backward(W, kept, own)
            else:
                dz = _rnn_backward(W, cell.nonlinearity, kept, own)
            rows = dz.reshape(-1, dz.shape[2])
            recurrent = rows if dv is None else dv.reshape(rows.shape)
            grads[f"weight_hh_{name}"] = recurrent.T @ np.stack(kept[0][:-1]).reshape(-1, H)
            grads[f"bias_ih_{name}"] = grads[f"bias_hh_{name}"] = rows.sum(axis=0)
            if dv is not None:
                grads[f"bias_hh_{name}"] = recurrent.sum(axis=0)
            if x.dtype.kind == "i":
                dU = np.zeros_like(U.T)
                np.add.at(dU, x.reshape(-1), rows)
                grads[f"weight_ih_{name}"] = dU.T
                continue
            grads[f"weight_ih_{name}"] = rows.T @ x.reshape(len(rows), -1)
            back = turned(dz @ U, lengths) if d else dz @ U
            dx = back if dx is None else dx + back
        dy = dx  # type: ignore[assignment]  # None only below the first layer
    return dx, grads


def _layers(params: Params) -> list[list[str]]:
    """What the parameters' names end with: for each layer one or two directions."""
    ends = ("", "_reverse") if "weight_hh_l0_reverse" in params else ("",)
    count = sum(name.startswith("weight_hh") for name in params) // len(ends)
    return [[f"l{layer}{end}" for end in ends] for layer in range(count)]


def turned(a: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """(T, B, ...) with each row's steps in the opposite order, those past its end where they are."""
    if lengths is None:
        return a[::-1]
    t = np.arange(len(a))[:, None]
    return a[np.where(t < lengths, lengths - 1 - t, t), np.arange(len(lengths))]


def masked(a: np.ndarray, lengths: np.ndarray | None) -> np.ndarray:
    """(T, B, ...), zero past each row's end."""
    return a if lengths is None else np.where((np.arange(len(a))[:, None] < lengths)[:, :, None], a, a.dtype.type(0))


def _rnn_forward(inputs: np.ndarray, W: np.ndarray, nonlinearity: str, start: State) -> Any:
    (h,) = start
    hs = [h]
    for z in inputs:
        a = z + h @ W.T
        h = np.tanh(a) if nonlinearity == "tanh" else np.maximum(a, 0)
        hs.append(h)
    return (hs,)


def _rnn_backward(W: np.ndarray, nonlinearity: str, kept: Any, dy: np.ndarray) -> np.ndarray:
    (hs,) = kept
    dz = np.empty_like(dy)
    dh = np.zeros_like(hs[0])
    for t in reversed(range(len(dy))):
        h = hs[t + 1]
        dz[t] = (dh + dy[t]) * (1 - h * h if nonlinearity == "tanh" else h > 0)
        dh = dz[t] @ W
    return dz


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
    return hs, cs, gates


def _lstm_backward(W: np.ndarray, peep: np.ndarray | None, kept: Any, dy: np.ndarray) -> Any:
    _, cs, gates = kept
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
    return dz.reshape(T, B, 4 * H), dpeep


def _gru_forward(inputs: np.ndarray, W: np.ndarray, b_w: np.ndarray, start: State) -> Any:
    (h,) = start
    H = W.shape[1]
    hs, gates = [h], []
    for a in inputs:
        v = h @ W.T + b_w
        r = sigmoid(a[:, :H] + v[:, :H])
        z = sigmoid(a[:, H : 2 * H] + v[:, H : 2 * H])
        n = np.tanh(a[:, 2 * H :] + r * v[:, 2 * H :])
        h = (1 - z) * n + z * h
        hs.append(h)
        gates.append((r, z, n, v[:, 2 * H :]))
    return hs, gates


def _gru_backward(W: np.ndarray, kept: Any, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of the input products and of the recurrent ones; they differ by r in the candidate's."""
    hs, gates = kept
    T, B, H = dy.shape
    dz, dv = np.empty((2, T, B, 3, H), dy.dtype)
    dh = np.zeros_like(dy[0])
    for t in reversed(range(T)):
        r, z, n, v = gates[t]
        dh = dh + dy[t]
        dn = dh * (1 - z) * (1 - n * n)
        for k, d in enumerate((dn * v * r * (1 - r), dh * (hs[t] - n) * z * (1 - z), dn)):
            dz[t, :, k] = dv[t, :, k] = d
        dv[t, :, 2] *= r
        dh = dh * z + dv[t].reshape(B, 3 * H) @ W
    return dz.reshape(T, B, 3 * H), dv.reshape(T, B, 3 * H)
