"""The numbers of a case: weights, inputs, gradients that come in. From seeds, the same in every process."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .cases import CELLS, Case

STEPS = 5  # time steps that the results of a `step` case come from
WRITTEN = 10  # characters that are the results of a `generate` case
CHUNKS = 4  # different batches of text that a language model's case goes through

#: Set in one library's process by `--plant`: its weights are then wrong, and it has to be refused.
plant = False


@dataclass(frozen=True)
class Problem:
    """Arrays of `case`, in its dtype. Parameters have PyTorch's names; a model's those of `nn.Sequential`."""

    case: Case

    def _rng(self, name: str) -> np.random.Generator:
        """Each array has a generator of its own: its values do not depend on which was asked for first."""
        return np.random.default_rng([20, zlib.crc32(name.encode())])

    def _normal(self, name: str, *shape: int) -> np.ndarray:
        return self._rng(name).standard_normal(shape, np.float32).astype(self.case.dtype)

    def _uniform(self, name: str, bound: float, *shape: int) -> np.ndarray:
        values = self._rng(name).random(shape, np.float32) * (2 * bound) - bound
        return values.astype(self.case.dtype)

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """Of the recurrent layers, as PyTorch draws them: uniform in +-1 / sqrt(H)."""
        case, cell = self.case, CELLS[self.case.cell]
        shapes: dict[str, tuple[int, ...]] = {}
        names = [(layer, f"l{layer}{end}") for layer in range(case.L) for end in ("", "_reverse")[: case.D]]
        for layer, name in names:
            below = (case.I or case.V) if layer == 0 else case.D * case.H
            shapes[f"weight_ih_{name}"] = (cell.gates * case.H, below)
            shapes[f"weight_hh_{name}"] = (cell.gates * case.H, case.H)
            shapes[f"bias_ih_{name}"] = shapes[f"bias_hh_{name}"] = (cell.gates * case.H,)
            if cell.peephole:
                shapes[f"weight_peep_{name}"] = (3, case.H)
        made = {name: self._uniform(name, case.H**-0.5, *shape) for name, shape in shapes.items()}
        if plant:
            made["weight_ih_l0"][0] *= -1
        return made

    @cached_property
    def model_weights(self) -> dict[str, np.ndarray]:
        """Of a language model: [embedding,] recurrent layers, linear."""
        case, first = self.case, int(self.case.I > 0)
        made = {"0.weight": self._normal("embedding", case.V, case.I)} if first else {}
        made |= {f"{first}.{name}": array for name, array in self.weights.items()}
        made[f"{first + 1}.weight"] = self._uniform("linear", case.H**-0.5, case.V, case.H)
        made[f"{first + 1}.bias"] = self._uniform("linear bias", case.H**-0.5, case.V)
        return made

    @cached_property
    def x(self) -> np.ndarray:
        """(T, B, I)"""
        return self._normal("x", self.case.T, self.case.B, self.case.I)

    @cached_property
    def dy(self) -> np.ndarray:
        """(T, B, D*H), past the rows' ends too: what comes in there must have no effect."""
        return self._normal("dy", self.case.T, self.case.B, self.case.D * self.case.H)

    @cached_property
    def lengths(self) -> np.ndarray | None:
        """(B,) int64, or None: all T."""
        case = self.case
        return self._rng("lengths").integers(case.shortest, case.T + 1, case.B) if case.shortest else None

    @cached_property
    def chunks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(T, B) int64 characters and the characters that follow them, one chunk after the other."""
        case = self.case
        ids = self._rng("ids").integers(0, case.V, (CHUNKS * case.T + 1, case.B))
        starts = range(0, CHUNKS * case.T, case.T)
        return [(ids[s : s + case.T].copy(), ids[s + 1 : s + case.T + 1].copy()) for s in starts]
