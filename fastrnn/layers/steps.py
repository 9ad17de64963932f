"""Layers that take the time axis away, or add it: one vector for a sequence, a sequence from one vector.

They have no parameters and work on float32 and float64. What lies past a row's end is neither read nor given a
gradient, and sums over time run in ascending order, so that a row's bits do not depend on its padding or on the rest of
the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_array, check_flag, check_lengths, check_size
from .layer import Layer, Tape, check_tape


def check_floats(name: str, x: Any, letters: str, sizes: dict[str, int]) -> np.ndarray:
    """`x` in float64 if it is of that type, else in float32."""
    wide = isinstance(x, np.ndarray) and x.dtype.kind == "f" and x.dtype.itemsize == 8
    return check_array(name, x, np.dtype("float64" if wide else "float32"), letters, sizes)


class _Pool(Layer):
    """What Last and Mean share: (T, B, H) to (B, H)."""

    #: calls take `lengths`
    takes_lengths = True

    def __init__(self, batch_first: bool = False) -> None:
        super().__init__({})
        self.batch_first = check_flag("batch_first", batch_first)

    def __call__(self, x: Any, lengths: Any = None) -> np.ndarray:
        """y (B, H)

        x : (T, B, H), or (B, T, H) with batch_first
        lengths : (B,) integers, the valid steps of each row; None for all T
        """
        return self._pool(*self._steps(x, lengths))

    def forward(self, x: Any, lengths: Any = None) -> tuple[np.ndarray, Tape]:
        """`y, tape`"""
        x, lengths = self._steps(x, lengths)
        return self._pool(x, lengths), Tape(self, x.shape, (x.dtype, lengths))

    def backward(self, tape: Tape, dy: Any) -> np.ndarray:
        """dx, in the shape of x, from dy (B, H)."""
        shape = check_tape(tape, self).shape
        dy = check_floats("dy", dy, "B H", {"B": shape[1], "H": shape[2]})
        dtype, lengths = tape.open(self)
        dx = np.zeros(shape, dtype)
        self._spread(dx, dy, lengths)
        return dx.swapaxes(0, 1).copy() if self.batch_first else dx

    def _steps(self, x: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
        x = check_floats("x", x, "B T H" if self.batch_first else "T B H", {})
        x = x.swapaxes(0, 1) if self.batch_first else x
        if not len(x):
            raise ValueError("x has no steps, expected at least one (T from 1)")
        return x, check_lengths(lengths, *x.shape[:2])

    def _pool(self, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _spread(self, dx: np.ndarray, dy: np.ndarray, lengths: np.ndarray) -> None:
        raise NotImplementedError


class Last(_Pool):
    """The output at each row's last valid step, (T, B, H) to (B, H): many to one. Zeros for a row of length 0.

    bidirectional : x is both directions of a bidirectional layer, side by side, (T, B, 2 H). The second one ends at
        step 0, so its half is taken there: each half has then seen the whole row.

    >>> import fastrnn as fr, numpy as np
    >>> x = np.arange(6, dtype=np.float32).reshape(3, 2, 1)   # T, B, H
    >>> fr.Last()(x).tolist()
    [[4.0], [5.0]]
    >>> y, tape = fr.Last().forward(x, lengths=[1, 2])
    >>> y.tolist()
    [[0.0], [3.0]]
    """

    def __init__(self, batch_first: bool = False, bidirectional: bool = False) -> None:
        super().__init__(batch_first)
        self.bidirectional = check_flag("bidirectional", bidirectional)

    def _steps(self, x: Any, lengths: Any) -> tuple[np.ndarray, np.ndarray]:
        x, lengths = super()._steps(x, lengths)
        if self.bidirectional and x.shape[2] % 2:
            raise ValueError(f"x has {x.shape[2]} features, expected 2 H: those of both directions, side by side")
        return x, lengths

    def _ends(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have a step, and their last one."""
        rows = np.flatnonzero(lengths)
        return rows, lengths[rows] - 1

    def _pool(self, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows, last = self._ends(lengths)
        y = np.zeros(x.shape[1:], x.dtype)
        y[rows] = x[last, rows]
        if self.bidirectional:
            half = x.shape[2] // 2
            y[rows, half:] = x[0, rows, half:]
        return y

    def _spread(self, dx: np.ndarray, dy: np.ndarray, lengths: np.ndarray) -> None:
        rows, last = self._ends(lengths)
        half = dx.shape[2] // 2 if self.bidirectional else dx.shape[2]
        dx[last, rows, :half] = dy[rows, :half]
        dx[0, rows, half:] = dy[rows, half:]


class Mean(_Pool):
    """The mean over each row's valid steps, (T, B, H) to (B, H): many to one. Zeros for a row of length 0.

    >>> import fastrnn as fr, numpy as np
    >>> x = np.arange(6, dtype=np.float32).reshape(3, 2, 1)   # T, B, H
    >>> fr.Mean()(x).tolist()
    [[2.0], [3.0]]
    >>> fr.Mean()(x, lengths=[1, 2]).tolist()
    [[0.0], [2.0]]
    """

    def _pool(self, x: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        # Step by step: NumPy's sum would add pairs, in an order that depends on the sizes.
        y = np.zeros(x.shape[1:], x.dtype)
        for t, step in enumerate(x):
            np.add(y, step, out=y, where=(t < lengths)[:, None])
        return y / self._counts(lengths, x.dtype)

    def _spread(self, dx: np.ndarray, dy: np.ndarray, lengths: np.ndarray) -> None:
        share = dy / self._counts(lengths, dx.dtype)
        for t, step in enumerate(dx):
            np.copyto(step, share, where=(t < lengths)[:, None])

    @staticmethod
    def _counts(lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
        return np.maximum(lengths, 1).astype(dtype)[:, None]


class Repeat(Layer):
    """The same input at every one of `steps` steps, (B, I) to (T, B, I): one to many. Indices (B,) become (T, B).

    >>> import fastrnn as fr, numpy as np
    >>> repeat = fr.Repeat(3)
    >>> y, tape = repeat.forward(np.ones((2, 1), np.float32))
    >>> y.shape, repeat.backward(tape, y).tolist()
    ((3, 2, 1), [[3.0], [3.0]])
    """

    def __init__(self, steps: int, batch_first: bool = False) -> None:
        super().__init__({})
        self.steps, self.batch_first = check_size("steps", steps), check_flag("batch_first", batch_first)

    def __call__(self, x: Any) -> np.ndarray:
        """x (B, I), or integers (B,), to (T, B, I) or (T, B); with batch_first, (B, T, I) or (B, T)."""
        if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
            if x.ndim != 1:
                raise ValueError(f"x has shape {x.shape}, expected indices (B,), or floats (B, I)")
            x = np.asarray(x, x.dtype.newbyteorder("="))
        else:
            x = check_floats("x", x, "B I", {})
        axis = 1 if self.batch_first else 0
        return np.repeat(np.expand_dims(x, axis), self.steps, axis)

    def forward(self, x: Any) -> tuple[np.ndarray, Tape]:
        """`y, tape`"""
        y = self(x)
        return y, Tape(self, y.shape, (y.dtype,))

    def backward(self, tape: Tape, dy: Any) -> np.ndarray | None:
        """dx (B, I), the sum of dy over the steps, in ascending order; None for indices, whose dy is None."""
        shape = check_tape(tape, self).shape
        if len(shape) == 2:
            if dy is not None:
                raise TypeError(f"dy is {type(dy).__name__}, expected None: indices have no gradient")
            tape.open(self)
            return None
        letters = "B T I" if self.batch_first else "T B I"
        dy = check_floats("dy", dy, letters, dict(zip(letters.split(), shape, strict=True)))
        (dtype,) = tape.open(self)
        if self.batch_first:
            dy = dy.swapaxes(0, 1)
        dx = np.zeros(dy.shape[1:], dtype)
        for step in dy:
            dx += step
        return dx
