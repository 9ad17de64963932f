"""A character-level language model and its training step in plain NumPy, on `loop`.

In float64 the reference for the cases `charlm` and `minchar`, in float32 their peer `numpy`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import loop
from .cases import CELLS
from .problem import Problem

BETAS, EPS, ADAGRAD_EPS = (0.9, 0.999), 1e-8, 1e-10


class Hyper:
    """What the cases train with: the same in every library."""

    adam_lr, clip_norm = 0.002, 5.0  # charlm; the loss is the mean over all characters
    adagrad_lr, clip_value = 0.1, 5.0  # minchar; the loss is their sum


class NumpyModel:
    """[embedding,] recurrent layers, linear; state carried from step to step. Computes in `dtype`."""

    def __init__(self, problem: Problem, dtype: str) -> None:
        self.case, self.cell = problem.case, CELLS[problem.case.cell]
        self.params = {name: array.astype(dtype) for name, array in problem.model_weights.items()}
        self.first = int(self.case.I > 0)
        self.lr = Hyper.adam_lr if self.case.kind == "charlm" else Hyper.adagrad_lr
        self.grads: dict[str, np.ndarray] = {}
        self.steps = 0
        self.memory = [{name: np.zeros_like(a) for name, a in self.params.items()} for _ in range(2)]
        self.state: loop.State | None = None

    def forget(self) -> None:
        self.state = None

    def loss(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """Mean in nats, the state carried along."""
        return self._forward(ids, targets)[0] / targets.size

    def step(self, ids: np.ndarray, targets: np.ndarray) -> float:
        """One training step; the loss before it."""
        total, p, y, tape, layers = self._forward(ids, targets)
        mean = self.case.kind == "charlm"
        scale = 1 / targets.size if mean else 1.0
        rows = np.arange(targets.size)
        p.reshape(len(rows), -1)[rows, targets.reshape(-1)] -= 1
        dlogits = p * y.dtype.type(scale)
        out = f"{self.first + 1}."
        flat = dlogits.reshape(len(rows), -1)
        grads = {
            f"{out}weight": flat.T @ y.reshape(len(rows), -1),
            f"{out}bias": flat.sum(axis=0),
        }
        dx, inner = loop.backward(self.cell, layers, tape, dlogits @ self.params[f"{out}weight"])
        grads |= {f"{self.first}.{name}": g for name, g in inner.items()}
        if self.first:
            assert dx is not None
            grads["0.weight"] = np.zeros_like(self.params["0.weight"])
            np.add.at(grads["0.weight"], ids.reshape(-1), dx.reshape(len(rows), -1))
        self.grads = self._clipped(grads)
        self._update()
        return float(total) * scale

    def _forward(self, ids: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, Any, loop.Params]:
        """The summed loss, the probabilities, the layers' output, their tape and their parameters."""
        x = self.params["0.weight"][ids] if self.first else ids
        prefix = f"{self.first}."
        layers = {n.removeprefix(prefix): a for n, a in self.params.items() if n.startswith(prefix)}
        state = self.state or loop.zero_state(self.cell, layers, ids.shape[1])
        y, self.state, tape = loop.forward(self.cell, layers, x, state)
        logits = y @ self.params[f"{self.first + 1}.weight"].T + self.params[f"{self.first + 1}.bias"]
        logits -= logits.max(axis=-1, keepdims=True)
        e = np.exp(logits)
        s = e.sum(axis=-1, keepdims=True)
        picked = np.take_along_axis(logits, targets[..., None], -1)
        return float((np.log(s) - picked).sum()), e / s, y, tape, layers

    def _clipped(self, grads: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.case.kind == "minchar":
            return {n: np.clip(g, -Hyper.clip_value, Hyper.clip_value) for n, g in grads.items()}
        norm = float(np.sqrt(sum(float((g * g).sum()) for g in grads.values())))
        if norm <= Hyper.clip_norm:
            return grads
        return {n: g * g.dtype.type(Hyper.clip_norm / norm) for n, g in grads.items()}

    def _update(self) -> None:
        self.steps += 1
        m, s = self.memory
        for name, g in self.grads.items():
            w = self.params[name]
            if self.case.kind == "minchar":
                s[name] += g * g
                w -= self.lr * g / (np.sqrt(s[name]) + ADAGRAD_EPS)
                continue
            m[name] += (1 - BETAS[0]) * (g - m[name])
            s[name] += (1 - BETAS[1]) * (g * g - s[name])
            root = np.sqrt(s[name] / (1 - BETAS[1] ** self.steps)) + EPS
            w -= self.lr / (1 - BETAS[0] ** self.steps) * m[name] / root

    def gradients(self) -> dict[str, np.ndarray]:
        """Of the last step, after clipping."""
        return self.grads
