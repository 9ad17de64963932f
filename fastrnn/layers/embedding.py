"""The embedding layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import embedding as kernels
from ..simd.target import lanes
from ..threads import launch, workers_for
from . import buffers
from .layer import Layer, Tape, check_array, check_dtype, check_indices, check_size, check_tape
from .store import Store

# Into how many parts a look-up is divided for the workers.
PIECES = 8


class Embedding(Layer):
    """Row `ids` of a (num, dim) matrix. Parameter as PyTorch's `nn.Embedding`: `weight`, standard normal at first.

    >>> import fastrnn as fr, numpy as np
    >>> embedding = fr.Embedding(10, 4)
    >>> embedding(np.array([[1, 2, 3]])).shape
    (1, 3, 4)
    """

    def __init__(self, num: int, dim: int, dtype: Any = "float32", seed: int | None = None) -> None:
        self.num, self.dim, self.dtype = check_size("num", num), check_size("dim", dim), check_dtype(dtype)
        self.store = Store({"weight": (self.num, self.dim)}, self.dtype)
        super().__init__({"": self.store})
        self.store.assign({"weight": np.random.default_rng(seed).standard_normal((self.num, self.dim))})

    @property
    def flat(self) -> np.ndarray:
        """The matrix, flat, as kernels take it."""
        return self.store._values[self.store._where["weight"]]

    def check(self, ids: Any) -> np.ndarray:
        """`ids` as int64, each 0 <= id < num."""
        return check_indices("ids", ids, self.num, "num")

    def add_grad(self, dweight: np.ndarray) -> None:
        """Adds a gradient of the whole matrix."""
        with self.store._lock:
            self.store.grad("weight")[:] += dweight

    def __call__(self, ids: Any) -> np.ndarray:
        """ids (...) of any integer type to (..., dim)."""
        return self._rows(self.check(ids))

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        y = buffers.empty((*ids.shape, self.dim), self.dtype)
        work, pieces = float(y.size), min(ids.size, PIECES)
        launch(
            kernels.gather, workers_for(work, pieces), 1, work,
            ids.size, self.dim, pieces, ids.reshape(-1), self.flat, y.reshape(-1),
        )  # fmt: skip
        return y

    def forward(self, ids: Any) -> tuple[np.ndarray, Tape]:
        """`y, tape`"""
        ids = self.check(ids)
        return self._rows(ids), Tape(self, ids.shape, ids)

    def backward(self, tape: Tape, dy: Any) -> None:
        """Adds each row of dy (..., dim) to the gradient of the row it came from."""
        shape = check_tape(tape).shape
        dy = check_array("dy", dy, self.dtype, "... D", {"D": self.dim})
        if dy.shape[:-1] != shape:
            raise ValueError(f"dy has shape {dy.shape}, expected {(*shape, self.dim)}, that of y")
        ids = tape.open(self)
        work, pieces = float(dy.size), min(-(-self.dim // lanes(self.dtype)), PIECES)
        with self.store._lock:
            launch(
                kernels.scatter_add, workers_for(work, pieces), 1, work,
                ids.size, self.dim, pieces, ids.reshape(-1), dy.reshape(-1), self.store.grad("weight").reshape(-1),
            )  # fmt: skip
