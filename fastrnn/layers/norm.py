"""Layer normalisation for recurrent layers: arguments, and what their kernels take around kernels/norm.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels import norm as kernels
from ..simd.vector import block
from ..threads import launch, workers_for
from .products import PIECES

EPSILON = 1e-5


def check_epsilon(layer_norm_eps: Any, dtype: np.dtype) -> float:
    """A number > 0 that is one in `dtype` too."""
    if isinstance(layer_norm_eps, bool) or not isinstance(layer_norm_eps, int | float | np.number):
        raise TypeError(f"layer_norm_eps is {type(layer_norm_eps).__name__}, expected a number")
    with np.errstate(over="ignore", under="ignore"):
        epsilon = float(dtype.type(layer_norm_eps))
    if not 0.0 < epsilon < float("inf"):
        raise ValueError(f"layer_norm_eps is {layer_norm_eps}, expected a finite number > 0 in {dtype}")
    return epsilon


def normalise(a: np.ndarray, epsilon: float) -> np.ndarray:
    """Makes every row of a (N, M) have mean 0 and variance 1; returns (N,), what each was multiplied by."""
    rows, columns = a.shape
    scale = np.empty(rows, a.dtype)
    work = 4.0 * a.size
    pieces = min(rows, PIECES)
    workers = workers_for(work, pieces)
    launch(kernels.normalise, workers, 1, work, rows, columns, pieces, epsilon, a.reshape(-1), scale)
    return scale


def in_blocks(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Some (H,), block by block beside each other, zeros after their ends; flat."""
    hidden, unit = rows[0].size, block(rows[0])
    padded = np.zeros((len(rows), -(-hidden // unit) * unit), rows[0].dtype)
    padded[:, :hidden] = rows
    return np.ascontiguousarray(padded.reshape(len(rows), -1, unit).swapaxes(0, 1)).reshape(-1)
