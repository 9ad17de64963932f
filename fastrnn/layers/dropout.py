"""Dropout as a layer of its own."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_probability, make_generator
from .layer import Layer, Tape, check_tape
from .steps import check_floats


class Dropout(Layer):
    """In `forward`, zero with probability p and the rest divided by 1 - p; in inference, nothing.

    Srivastava et al. 2014, "inverted". Works on float32 and float64, any shape.

    >>> import fastrnn as fr, numpy as np
    >>> drop = fr.Dropout(0.5, seed=0)
    >>> drop(np.ones(4, np.float32))
    array([1., 1., 1., 1.], dtype=float32)
    >>> y, tape = drop.forward(np.ones(4, np.float32))
    >>> sorted(set(y.tolist()) | {0.0, 2.0})
    [0.0, 2.0]
    """

    any_shape = True

    def __init__(self, p: float, seed: int | None = None) -> None:
        super().__init__({})
        self.p = check_probability("p", p)
        self.rng = make_generator(seed)

    def generators(self) -> list[np.random.Generator]:
        return [self.rng] if self.p else []

    def __call__(self, x: Any) -> np.ndarray:
        """x as it is."""
        return self._checked("x", x)

    def forward(self, x: Any) -> tuple[np.ndarray, Tape]:
        """`y, tape`"""
        x = self._checked("x", x)
        mask = (self.rng.random(x.shape, np.float32) >= self.p).astype(x.dtype) / x.dtype.type(1 - self.p)
        return x * mask, Tape(self, x.shape, mask)

    def backward(self, tape: Tape, dy: Any) -> np.ndarray:
        """dx"""
        shape = check_tape(tape, self).shape
        dy = self._checked("dy", dy)
        if dy.shape != shape:
            raise ValueError(f"dy has shape {dy.shape}, expected {shape}, that of y")
        return dy * tape.open(self)

    @staticmethod
    def _checked(name: str, x: Any) -> np.ndarray:
        return check_floats(name, x, "...", {})
