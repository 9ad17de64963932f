"""What all losses share: numbers that are checked, elements that count, the mean or the sum over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import as_array, check_array, check_choice


def check_reduction(reduction: Any) -> None:
    check_choice("reduction", reduction, ("mean", "sum"))


def dtype_of(a: Any) -> np.dtype:
    """What is computed in, or what gradients are given in: float64 if `a` is, else float32."""
    wide = isinstance(a, np.ndarray | np.generic) and a.dtype.kind == "f" and a.dtype.itemsize == 8
    return np.dtype("float64" if wide else "float32")


def check_same(name: str, a: Any, dtype: np.dtype, shape: tuple[int, ...], of: str) -> np.ndarray:
    """`a` as an array of that type, and of exactly that shape: that of `of`. Nothing is broadcast."""
    array = check_array(name, a, dtype, "...", {})
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected the shape of {of}, {shape}")
    return array


def counted(shape: tuple[int, ...], mask: Any, lengths: Any, features: bool = False) -> np.ndarray | None:
    """Which of the losses, an array of `shape`, count; None if all do.

    features : whether their last axis is one of features, which a mask may leave out
    """
    if mask is None and lengths is None:
        return None
    if mask is not None and lengths is not None:
        raise ValueError("mask and lengths both say what counts: pass one of them")
    if mask is not None:
        counts = as_array("mask", mask)
        if counts.dtype.kind != "b":
            raise TypeError(f"mask has dtype {counts.dtype}, expected bool")
        if counts.shape != shape and not (features and shape and counts.shape == shape[:-1]):
            wanted = f"{shape}" + (f" or {shape[:-1]}" if features and shape else "")
            raise ValueError(f"mask has shape {counts.shape}, expected {wanted}")
    else:
        if len(shape) < 2:
            raise ValueError(f"lengths needs sequences (T, B, ...), and there are losses of shape {shape}")
        ends = as_array("lengths", lengths)
        if ends.dtype.kind not in "iu":
            raise TypeError(f"lengths has dtype {ends.dtype}, expected integers")
        T, B = shape[:2]
        if ends.shape != (B,):
            raise ValueError(f"lengths has shape {ends.shape}, expected (B,) with B={B}")
        if ends.size and (ends.min() < 0 or ends.max() > T):
            raise ValueError(f"lengths holds {ends.min()} to {ends.max()}, expected 0 <= lengths <= T={T}")
        counts = np.arange(T)[:, None] < ends
    missing = len(shape) - counts.ndim
    return np.broadcast_to(counts.reshape(counts.shape + (1,) * missing), shape)


def nothing_counts(name: str, shape: tuple[int, ...], whole: bool) -> str:
    """The message for a mean over nothing; whole: nothing is left out, so there is nothing at all."""
    why = f"{name} has shape {shape}" if whole else f"nothing in {name} of shape {shape} counts"
    return f"{why}: there is nothing to take the mean of (reduction='sum' gives 0)"


class Elements:
    """The losses that one number is made of: which count, and what their sum is divided by.

    name : the argument whose shape says how many there are, for messages
    shape : of the array of losses
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], reduction: str, mask: Any, lengths: Any, features: bool = False
    ) -> None:
        check_reduction(reduction)
        self.counts = counted(shape, mask, lengths, features)
        N = int(np.prod(shape)) if self.counts is None else int(np.count_nonzero(self.counts))
        if reduction == "mean" and N == 0:
            raise ValueError(nothing_counts(name, shape, self.counts is None))
        self.divisor = N if reduction == "mean" else 1

    def total(self, losses: np.ndarray) -> float:
        """The mean or the sum of those that count."""
        return float(np.sum(losses if self.counts is None else np.where(self.counts, losses, 0.0))) / self.divisor

    def gradient(self, d: np.ndarray, like: np.ndarray) -> np.ndarray:
        """The gradient of `total` from that of each loss by what it alone depends on; `d` has the losses' axes
        first. Where the array it belongs to, `like`, has a last axis of 1 instead, it is summed over that.
        """
        d = np.asarray(d) / self.divisor
        if self.counts is not None:
            d = np.where(self.counts.reshape(self.counts.shape + (1,) * (d.ndim - self.counts.ndim)), d, 0.0)
        if np.shape(d) != like.shape:
            d = d.sum(-1, keepdims=True)
        return np.asarray(d, like.dtype)


def wide(*arrays: np.ndarray) -> list[np.ndarray]:
    """Each of them in float64."""
    return [a.astype(np.float64) for a in arrays]


def times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b, where 0 times infinity is 0: a term without weight does not count."""
    return np.where((a == 0.0) & np.isinf(b), 0.0, a * b)
