"""The softmax, and the categorical distribution: the cross-entropy as a likelihood."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..checks import as_array, check_array, check_flag, check_indices, check_number
from ..kernels import softmax as kernels
from ..threads import launch, workers_for
from .elements import check_reduction, counted, dtype_of, nothing_counts

# What one exponential costs, in multiply-adds of a matrix product: about 80 of those in a nanosecond.
EXP_COST = 40
# Rows are taken in so many pieces for each worker: one who is interrupted does not keep the others waiting.
PIECES = 4


def cross_entropy(
    logits: Any,
    targets: Any,
    reduction: str = "mean",
    gradient: bool = True,
    *,
    label_smoothing: float = 0.0,
    weight: Any = None,
    ignore_index: int | None = None,
    mask: Any = None,
    lengths: Any = None,
) -> tuple[float, np.ndarray | None]:
    """The cross-entropy of softmax(logits) and the target classes, in nats, and its gradient by the logits.

        loss = mean (or sum) over n of -log p[n, targets[n]]       p = softmax(logits)
        dlogits = (p - onehot(targets)) / N                        (for the sum: without / N)

    It is the negative log-likelihood of the categorical distribution, with probability mass

        P(target = v) = p[v]

    so the least cross-entropy is the largest likelihood; and since it differs from the divergence
    KL(data || model) only by the entropy of the data, that is the least too.

    logits : (..., V), float32 or float64
    targets : (...), integers from 0 to V - 1; or (..., V), of float type: the probabilities q of every class,
        from 0, and -log p[n, targets[n]] becomes sum over v of -q[n, v] log p[n, v]
    reduction : "mean" over all N elements of `targets`, or "sum"
    gradient : False leaves the gradient out; None is in its place
    label_smoothing : e, 0 <= e <= 1: a row's loss is (1 - e) times that of its target, and e times the mean of
        that of all V classes (Szegedy et al. 2016, section 7)
    weight : (V,), from 0, for class targets: what a class's loss is multiplied by. The mean divides by the sum
        of the targets' weights, as PyTorch's; with smoothing too, where each class has its own weight
    ignore_index : targets of this value, a class or not, do not count
    mask : (...), bool: False where a target does not count; what stands there need not be a class
    lengths : (B,), integers from 0 to T, for (T, B, V): as the mask t < lengths[b]. Not with `mask`

    What does not count adds nothing to the loss, whatever its logits (NaN too), its gradient is 0, and the mean
    leaves it out.

    Returns the loss, a float, and dlogits, of the shape and type of `logits`. It is computed without overflow
    for any logits (the largest of a row is subtracted before the exponential), and added up in float64 in a
    fixed order. A logit of -infinity is a class of probability 0; as a target its loss is infinite. A row
    with NaN makes the loss NaN, and the gradient of that row, not of others.

    Raises `TypeError` if logits are not numbers or targets not integers, `ValueError` if shapes do not fit, a
    target that counts is not a class, a weight or probability is below 0, or there is nothing to take the mean
    of.

    >>> import fastrnn as fr, numpy as np
    >>> logits = np.log([[0.2, 0.5, 0.3], [0.1, 0.1, 0.8]])
    >>> loss, dlogits = fr.cross_entropy(logits, [1, 2])
    >>> round(loss, 6)  # -(log 0.5 + log 0.8) / 2
    0.458145
    >>> (2 * dlogits).round(6)
    array([[ 0.2, -0.5,  0.3],
           [ 0.1,  0.1, -0.2]])
    >>> round(fr.cross_entropy(logits, [1, -1], ignore_index=-1)[0], 6)  # -log 0.5
    0.693147
    """
    x, gradient = _logits(logits), check_flag("gradient", gradient)
    rows = Rows(x.shape, x.dtype, targets, reduction, label_smoothing, weight, ignore_index, mask, lengths)
    dx = np.empty(x.shape if gradient else 0, x.dtype)
    losses = np.empty(len(rows.targets))
    total = rows.run(x.reshape(-1), slice(None), losses, dx.reshape(-1))
    return total / rows.divisor, dx if gradient else None


class Rows:
    """What the arguments of a cross-entropy say about its N rows, checked; arrays as the kernel wants them.

    whole : whether the logits are there as a whole. If not, targets are classes, and the argument that the caller
        knows as `weight` is that of the linear layer; this one is then called `class_weight`
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        targets: Any,
        reduction: str,
        label_smoothing: float = 0.0,
        weight: Any = None,
        ignore_index: int | None = None,
        mask: Any = None,
        lengths: Any = None,
        whole: bool = True,
    ) -> None:
        self.V = V = shape[-1]
        e = check_number("label_smoothing", label_smoothing)
        if not 0.0 <= e <= 1.0:
            raise ValueError(f"label_smoothing is {label_smoothing!r}, expected a number from 0 to 1")
        check_reduction(reduction)
        counts = counted(shape[:-1], mask, lengths)
        self.weight = self.spread = np.empty(0, dtype)
        self.hard, self.share, self.stride = 1.0 - e, e / V, 0
        dense = whole and _probabilities(targets, shape)
        if dense:
            if weight is not None or ignore_index is not None:
                name = "weight" if weight is not None else "ignore_index"
                raise ValueError(f"{name} is for targets that are classes, and these are probabilities: leave it out")
            q = check_array("targets", targets, dtype, "... V", {"V": V})
            _from_zero("targets", q)
            if e:
                q = (1.0 - e) * q + e / V
            self.targets = np.zeros(q.size // V, np.int64)
            self.hard, self.share, self.stride, self.spread = 0.0, 1.0, V, q.reshape(-1)
        else:
            self.targets, counts = _targets(targets, shape, ignore_index, counts)
            if weight is not None:
                name = "weight" if whole else "class_weight"
                self.weight = check_array(name, weight, dtype, "V", {"V": V})
                _from_zero(name, self.weight)
            if e:
                self.spread = np.ones(V, dtype) if weight is None else self.weight
        self.all = counts is None
        if counts is not None:
            self.targets[~counts.reshape(-1)] = -1
        self.divisor = 1.0 if reduction == "sum" else self._count()
        if self.divisor == 0:
            raise ValueError(nothing_counts("logits", shape, self.all and not len(self.weight)))

    def _count(self) -> float:
        """What the mean divides by: how many rows count, or the sum of their weights in ascending order."""
        if len(self.weight):
            weights = self.weight[self.targets[self.targets >= 0]].astype(np.float64)
            return float(np.cumsum(weights)[-1]) if weights.size else 0.0
        return float(len(self.targets) if self.all else np.count_nonzero(self.targets >= 0))

    def run(self, x: np.ndarray, which: slice, losses: np.ndarray, dx: np.ndarray) -> float:
        """The kernel on some of the rows, all flat: writes their losses, and dx unless it is empty; their sum."""
        targets, total = self.targets[which], np.empty(1)
        spread = self.spread.reshape(-1, self.V)[which].reshape(-1) if self.stride else self.spread
        N, work = len(targets), float(EXP_COST * x.size)
        workers, pieces = _shares(work, N)
        launch(
            kernels.cross_entropy, workers, 1, work,
            N, self.V, pieces, int(dx.size > 0), 1.0 / self.divisor, self.hard, self.share, self.stride,
            x, targets, self.weight, spread, losses, total, dx,
        )  # fmt: skip
        return float(total[0])


def softmax(logits: Any, temperature: float = 1.0) -> np.ndarray:
    """exp(logits / temperature), divided by its sum over the last axis: probabilities that add up to 1.

    logits : (..., V), float32 or float64
    temperature : a finite number above 0; below 1 it sharpens the distribution, above 1 it flattens it

    Returns an array of the shape and type of `logits`. A row with NaN, with +infinity, or with nothing but
    -infinity is NaN.

    Raises `TypeError` and `ValueError` for logits that are not numbers, without classes, and for other
    temperatures.

    >>> import fastrnn as fr, numpy as np
    >>> fr.softmax(np.log([1.0, 2.0, 5.0])).round(6)
    array([0.125, 0.25 , 0.625])
    >>> fr.softmax(np.log([1.0, 2.0, 5.0]), temperature=0.5).round(6)
    array([0.033333, 0.133333, 0.833333])
    """
    x = _logits(logits)
    number = check_number("temperature", temperature)
    with np.errstate(over="ignore"):
        rounded = x.dtype.type(number)
    if not 0 < rounded < math.inf:
        raise ValueError(f"temperature is {temperature!r}, expected a finite number above 0 (as {x.dtype})")
    y = np.empty_like(x)
    _by_rows(kernels.softmax, x, number, x.reshape(-1), y.reshape(-1))
    return y


def log_softmax(logits: Any) -> np.ndarray:
    """log(softmax(logits)) over the last axis, without the loss of precision of a logarithm of small numbers.

        y = logits - m - log(sum of exp(logits - m))        m the largest of a row

    logits : (..., V), float32 or float64

    Returns an array of the shape and type of `logits`: natural logarithms. A row with NaN, with +infinity, or
    with nothing but -infinity is NaN. Raises as `softmax` does.

    >>> import fastrnn as fr, numpy as np
    >>> fr.log_softmax(np.array([0.0, 1000.0]))
    array([-1000.,     0.])
    """
    x = _logits(logits)
    y = np.empty_like(x)
    _by_rows(kernels.log_softmax, x, x.reshape(-1), y.reshape(-1))
    return y


def _shares(work: float, rows: int) -> tuple[int, int]:
    """How many workers, and in how many pieces they take the rows."""
    workers = workers_for(work, rows)
    return workers, min(rows, PIECES * workers)


def _by_rows(run: Any, x: np.ndarray, *args: Any) -> None:
    """Launches a kernel that goes through the rows of `x` (..., V)."""
    V = x.shape[-1]
    rows, work = x.size // V, float(EXP_COST * x.size)
    workers, pieces = _shares(work, rows)
    launch(run, workers, 1, work, rows, V, pieces, *args)


def _logits(logits: Any) -> np.ndarray:
    x = check_array("logits", logits, dtype_of(logits), "... V", {})
    if x.shape[-1] == 0:
        raise ValueError(f"logits has shape {x.shape}, expected (..., V) with V from 1")
    return x


def _probabilities(targets: Any, shape: tuple[int, ...]) -> bool:
    """Whether targets for logits of that shape are probabilities, not classes."""
    t = as_array("targets", targets)
    return t.dtype.kind == "f" and t.shape == shape


def _from_zero(name: str, a: np.ndarray) -> None:
    if (a < 0).any():
        raise ValueError(f"{name} holds {a.min()}, expected numbers from 0")


def _targets(
    targets: Any, shape: tuple[int, ...], ignore_index: int | None, counts: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """int64 (N,), each one that counts a class; and which of them count."""
    t = as_array("targets", targets)
    if isinstance(targets, list | tuple) and not t.size:
        t = np.empty(t.shape, np.int64)  # an empty list has no type of its own
    if t.dtype.kind in "iu":
        if t.shape != shape[:-1]:
            raise ValueError(f"targets has shape {t.shape}, expected {shape[:-1]} for logits (..., V) = {shape}")
        if ignore_index is not None:
            if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | np.integer):
                raise TypeError(f"ignore_index is {type(ignore_index).__name__}, expected an int")
            counts = t != ignore_index if counts is None else counts & (t != ignore_index)
        if counts is not None:
            t = np.where(counts, t, t.dtype.type(0))  # a copy: what does not count is overwritten later
    return check_indices("targets", t, shape[-1], "V").reshape(-1), counts
