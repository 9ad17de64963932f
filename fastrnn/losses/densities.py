"""Bernoulli and Gaussian likelihoods, and the squared error, which is one of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..checks import check_array, check_number
from ..kernels.update import CHUNK, squared_error
from ..threads import launch, workers_for
from .elements import Elements, check_same, dtype_of, times, wide

# What one element costs, in multiply-adds of a matrix product: about 80 of those in a nanosecond.
ERROR_COST = 20
LOG_TAU = math.log(2.0 * math.pi)


def mse(
    y: Any, target: Any, reduction: str = "mean", *, mask: Any = None, lengths: Any = None
) -> tuple[float, np.ndarray]:
    """The mean squared error, over all elements, and its gradient by `y`.

        loss = mean (or sum) of (y - target)^2        dy = 2 (y - target) / N     (for the sum: without / N)

    Half of the sum is, but for a constant, the negative log-likelihood of Gaussians of variance 1 around y:
    `gaussian_nll` with variance=1. The least squares are the largest likelihood.

    y : any shape of N elements, float32 or float64
    target : the same shape and type
    reduction : "mean" over the elements that count, or "sum"
    mask : bool, the shape of `y` or that without its last axis: False where elements do not count
    lengths : (B,), integers from 0 to T, for y (T, B, ...): as the mask t < lengths[b]. Not with `mask`

    Returns the loss, a float, and dy, of the shape and type of `y`; 0 where elements do not count, whatever they
    are. The sum is float64, in a fixed order.

    Raises `TypeError` if `target` is of a wider type than `y`, `ValueError` if it is of another shape
    (nothing is broadcast), or if there is nothing to take the mean of.

    >>> import fastrnn as fr, numpy as np
    >>> loss, dy = fr.mse(np.array([1.0, 2.0]), np.array([0.0, 4.0]))
    >>> loss, dy
    (2.5, array([ 1., -2.]))
    """
    a = check_array("y", y, dtype_of(y), "...", {})
    b = check_same("target", target, a.dtype, a.shape, "y")
    elements = Elements("y", a.shape, reduction, mask, lengths, features=True)
    if elements.counts is not None:
        a, b = (np.where(elements.counts, e, e.dtype.type(0)) for e in (a, b))
    dy = np.empty_like(a)
    chunks = -(-a.size // CHUNK)
    sums = np.empty(1 + chunks)
    work = float(ERROR_COST * a.size)
    workers = workers_for(work, chunks)
    flat = (a.reshape(-1), b.reshape(-1), dy.reshape(-1))
    launch(squared_error, workers, 1, work, a.size, 2.0 / elements.divisor, *flat, sums)
    return float(sums[0]) / elements.divisor, dy


def bernoulli_nll(
    logits: Any, targets: Any, reduction: str = "mean", *, mask: Any = None, lengths: Any = None
) -> tuple[float, np.ndarray]:
    """The negative log-likelihood of yes and no, in nats, and its gradient by the logits.

        P(target = 1) = p,   P(target = 0) = 1 - p         p = sigmoid(logits)
        loss = mean (or sum) of -target log p - (1 - target) log(1 - p)
        dlogits = (p - target) / N                         (for the sum: without / N)

    PyTorch's `binary_cross_entropy_with_logits`. It is computed as log(1 + exp(-|logit|)) and the rest by hand:
    nothing overflows and nothing is rounded to log 0. Infinite logits are probabilities of exactly 0 and 1.

    logits : any shape of N elements, float32 or float64
    targets : the same shape, numbers from 0 to 1 (in between: the probability of a 1), or bool
    reduction : "mean" over the elements that count, or "sum"
    mask : bool, the shape of `logits` or that without its last axis: False where elements do not count
    lengths : (B,), integers from 0 to T, for logits (T, B, ...): as the mask t < lengths[b]. Not with `mask`

    Returns the loss, a float, and dlogits, of the shape and type of `logits`; 0 where elements do not count. NaN
    makes the loss NaN, and the gradient of that element.

    Raises `TypeError` and `ValueError` for shapes and types that do not fit, targets that count outside of 0 to
    1, and a mean over nothing.

    >>> import fastrnn as fr, numpy as np
    >>> loss, dlogits = fr.bernoulli_nll(np.array([0.0, np.log(3.0), -1000.0]), [1, 1, 0])
    >>> round(loss, 6), dlogits.round(6)  # -(log 1/2 + log 3/4 + log 1) / 3
    (0.326943, array([-0.166667, -0.083333,  0.      ]))
    """
    x = check_array("logits", logits, dtype_of(logits), "...", {})
    if isinstance(targets, np.ndarray | np.generic) and targets.dtype.kind in "biu":
        targets = targets.astype(x.dtype)
    t = check_same("targets", targets, x.dtype, x.shape, "logits")
    elements = Elements("logits", x.shape, reduction, mask, lengths, features=True)
    outside = (t < 0) | (t > 1)
    if elements.counts is not None:
        outside &= elements.counts
    if outside.any():
        raise ValueError(f"targets holds {t[outside][0]}, expected numbers from 0 to 1")
    a, q = wide(x, t)
    with np.errstate(all="ignore"):
        small = np.exp(-np.abs(a))
        losses = np.log1p(small) + times(np.where(a > 0, 1.0 - q, -q), a)
        d = np.where(a >= 0, 1.0, small) / (1.0 + small) - q
        return elements.total(losses), elements.gradient(d, x)


def gaussian_nll(
    mean: Any,
    targets: Any,
    variance: Any = None,
    log_variance: Any = None,
    reduction: str = "mean",
    full: bool = False,
    eps: float = 1e-6,
    *,
    mask: Any = None,
    lengths: Any = None,
) -> tuple[float, np.ndarray, np.ndarray | None]:
    """The negative log-likelihood of independent Gaussians, in nats, and its gradients.

        p(target) = exp(-(target - mean)^2 / (2 v)) / sqrt(2 pi v)
        loss = mean (or sum) of (log v + (target - mean)^2 / v) / 2       [+ (log 2 pi) / 2 with full=True]
        dmean = (mean - target) / v        dv = (1 - (target - mean)^2 / v) / (2 v)       dlog v = v dv     (/ N)

    The covariance of a row is diagonal; `multivariate_gaussian_nll` has a full one. The variance v is one of

    - a number above 0, fixed: the loss is the squared error, times 1 / (2 v), plus a constant;
    - variance, an array from 0: at least `eps` is used for it, and the gradient is that of the formula at what is
      used (PyTorch's `gaussian_nll_loss`);
    - log_variance, an array of any numbers, which is what a linear layer gives.

    mean : (..., O), float32 or float64, N elements
    targets : the shape of `mean`
    variance, log_variance : one of them: a number (variance only), or an array of the shape of `mean` or with 1
        for its last axis
    reduction : "mean" over the elements that count, or "sum"
    full : whether the constant (log 2 pi) / 2 is in the loss
    mask : bool, (..., O) or (...): False where elements do not count
    lengths : (B,), integers from 0 to T, for mean (T, B, ...): as the mask t < lengths[b]. Not with `mask`

    Returns the loss, a float, dmean, and the gradient by the variance or log variance that was given, of their
    shapes and of the type of `mean`; None in its place for a fixed variance. 0 where elements do not count. NaN
    makes the loss NaN, and the gradients of that element.

    Raises `TypeError` and `ValueError` for shapes and types that do not fit, variances below 0, and a mean over
    nothing.

    >>> import fastrnn as fr, numpy as np
    >>> mean, targets = np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]])
    >>> fr.gaussian_nll(mean, targets, variance=1.0)  # (1 + 4) / 2 / 2
    (1.25, array([[ 0.5, -1. ]]), None)
    >>> fr.gaussian_nll(mean, targets, log_variance=np.zeros((1, 2)), reduction="sum")
    (2.5, array([[ 1., -2.]]), array([[ 0. , -1.5]]))
    """
    mu = check_array("mean", mean, dtype_of(mean), "...", {})
    t = check_same("targets", targets, mu.dtype, mu.shape, "mean")
    if (variance is None) == (log_variance is None):
        raise ValueError("variance and log_variance: pass one of them")
    eps = check_number("eps", eps)
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps is {eps!r}, expected a finite number above 0")
    spread = None
    if isinstance(variance, int | float | np.integer | np.floating):
        fixed = check_number("variance", variance)
        if not 0.0 < fixed < math.inf:
            raise ValueError(f"variance is {variance!r}, expected a finite number above 0")
    else:
        name, given = ("variance", variance) if log_variance is None else ("log_variance", log_variance)
        spread = check_array(name, given, mu.dtype, "...", {})
        shapes = (mu.shape, (*mu.shape[:-1], 1)) if mu.ndim else ((),)
        if spread.shape not in shapes:
            raise ValueError(f"{name} has shape {spread.shape}, expected {' or '.join(map(str, shapes))}")
    elements = Elements("mean", mu.shape, reduction, mask, lengths, features=True)
    m, x = wide(mu, t)
    with np.errstate(all="ignore"):
        if spread is None:
            log_v, precision = np.float64(math.log(fixed)), np.float64(1.0 / fixed)
        elif log_variance is not None:
            (log_v,) = wide(spread)
            precision = np.exp(-log_v)
        else:
            below = np.broadcast_to(spread < 0, mu.shape)
            if (below if elements.counts is None else below & elements.counts).any():
                raise ValueError(f"variance holds {spread.min()}, expected numbers from 0")
            v = np.maximum(spread.astype(np.float64), eps)
            log_v, precision = np.log(v), 1.0 / v
        error = m - x
        pull = times(error, np.asarray(precision))  # infinitely sure of what is right: no loss by the error
        squares = times(error, pull)
        constant = LOG_TAU if full else 0.0
        loss = elements.total(0.5 * (log_v + squares + constant))
        dmean = elements.gradient(pull, mu)
        if spread is None:
            return loss, dmean, None
        d = 0.5 * (1.0 - squares)
        return loss, dmean, elements.gradient(d if log_variance is not None else d * precision, spread)


def multivariate_gaussian_nll(
    mean: Any, factor: Any, targets: Any, reduction: str = "mean", *, mask: Any = None, lengths: Any = None
) -> tuple[float, np.ndarray, np.ndarray]:
    """The negative log-likelihood of Gaussians of full covariance, in nats, and its gradients.

        p(target) = exp(-|z|^2 / 2) / ((2 pi)^(O/2) det L)         L z = target - mean,  covariance L L^T
        loss = mean (or sum) over rows of |z|^2 / 2 + sum of log L[i, i] + O (log 2 pi) / 2
        dmean = -u        dL = -u z^T, lower triangle, + diagonal of 1 / L[i, i]        L^T u = z     (/ N)

    L, the Cholesky factor, is given without bounds, as a linear layer can give it: below the diagonal as it is, the
    diagonal as its logarithm, so that it is positive and every `factor` is a covariance (Williams 1996). What stands
    above the diagonal is not read.

    mean : (..., O), float32 or float64; N rows
    factor : (..., O, O): L below the diagonal, log L on it
    targets : (..., O)
    reduction : "mean" over the rows that count, or "sum"
    mask : bool, (...): False where a row does not count
    lengths : (B,), integers from 0 to T, for mean (T, B, O): as the mask t < lengths[b]. Not with `mask`

    Returns the loss, a float, dmean and dfactor, of the shapes of mean and factor and of the type of `mean`; 0 above
    the diagonal, and where rows do not count. A row with NaN makes the loss NaN, and gradients of that row alone.

    Raises `TypeError` and `ValueError` for shapes and types that do not fit, and a mean over nothing.

    >>> import fastrnn as fr, numpy as np
    >>> mean, targets = np.zeros(2), np.array([1.0, 3.0])
    >>> factor = np.array([[0.0, 99.0], [1.0, np.log(2.0)]])  # L = [[1, 0], [1, 2]]
    >>> loss, dmean, dfactor = fr.multivariate_gaussian_nll(mean, factor, targets)
    >>> round(loss, 6), dmean, dfactor  # z = (1, 1), u = (1/2, 1/2)
    (3.531024, array([-0.5, -0.5]), array([[ 0.5,  0. ],
           [-0.5,  0. ]]))
    """
    mu = check_array("mean", mean, dtype_of(mean), "... O", {})
    O = mu.shape[-1]  # noqa: E741 - the glossary's letter
    raw = check_same("factor", factor, mu.dtype, (*mu.shape, O), "mean and one more axis")
    t = check_same("targets", targets, mu.dtype, mu.shape, "mean")
    elements = Elements("mean", mu.shape[:-1], reduction, mask, lengths)
    m, f, x = wide(mu, raw, t)
    with np.errstate(all="ignore"):
        log_diagonal = diagonal(f)
        z = solve_lower(f, (x - m)[..., None])[..., 0]
        u = solve_lower_transposed(f, z)
        df = np.tril(-u[..., :, None] * z[..., None, :])
        scaled = np.exp(log_diagonal) * diagonal(df)
        diagonal(df)[...] = 1.0 + scaled
        losses = 0.5 * (z * z).sum(-1) + log_diagonal.sum(-1) + 0.5 * O * LOG_TAU
        return elements.total(losses), elements.gradient(-u, mu), elements.gradient(df, raw)


def diagonal(a: np.ndarray) -> np.ndarray:
    """The diagonals of a (..., O, O): a view (..., O) that can be written."""
    return np.einsum("...ii->...i", a)


def solve_lower(f: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x of L x = b, for the factors f (..., O, O) of L and b (..., O, C): row by row from the first."""
    x, scale = np.array(b), np.exp(-diagonal(f))
    for i in range(x.shape[-2]):
        before = f[..., i : i + 1, :i] @ x[..., :i, :]
        x[..., i, :] = (x[..., i, :] - before[..., 0, :]) * scale[..., i, None]
    return x


def solve_lower_transposed(f: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x of L^T x = b, for the factors f (..., O, O) of L and b (..., O): row by row from the last."""
    x, scale = np.array(b), np.exp(-diagonal(f))
    for i in reversed(range(x.shape[-1])):
        after = (f[..., i + 1 :, i] * x[..., i + 1 :]).sum(-1)
        x[..., i] = (x[..., i] - after) * scale[..., i]
    return x
