"""Mixtures of Gaussians: the mixture density networks of Bishop (1994), as Graves (2013) puts them on top of an LSTM.

    p(target) = sum over k of w[k] N(target; component k)          w = softmax(logits)

All is done with logarithms: log p is a log-sum-exp of log w[k] + log N, so neither a component that is far away nor
one that is very narrow rounds the density to 0. Every gradient goes through the responsibilities

    gamma[k] = w[k] N(target; component k) / p(target)

(Graves 2013, equations 27 and 28): the share of component k in this target.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_array
from .densities import LOG_TAU
from .elements import Elements, check_same, dtype_of, times, wide


def gaussian_mixture_nll(
    logits: Any, mean: Any, log_scale: Any, targets: Any, reduction: str = "mean", *, mask: Any = None,
    lengths: Any = None,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The negative log-likelihood of mixtures of Gaussians, in nats, and its gradients.

        p(target) = sum over k of w[k] prod over o of exp(-z[k, o]^2 / 2) / (sqrt(2 pi) s[k, o])
        w = softmax(logits)         s = exp(log_scale)         z[k, o] = (target[o] - mean[k, o]) / s[k, o]
        loss = mean (or sum) over rows of -log p
        dlogits = w - gamma      dmean = -gamma z / s      dlog_scale = gamma (1 - z^2)       (/ N)

    with the responsibilities gamma[k], the share of component k in p (Bishop 1994; Graves 2013, section 4.1).

    logits : (..., K), float32 or float64; N rows, K components
    mean : (..., K, O)
    log_scale : (..., K, O), or (..., K): one scale for all O, components that are round
    targets : (..., O)
    reduction : "mean" over the rows that count, or "sum"
    mask : bool, (...): False where a row does not count
    lengths : (B,), integers from 0 to T, for logits (T, B, K): as the mask t < lengths[b]. Not with `mask`

    Returns the loss, a float, dlogits, dmean and dlog_scale, of the shapes of what they belong to and of the type of
    `logits`; 0 where rows do not count. A row with NaN makes the loss NaN, and the gradients of that row alone; so
    does a row of density 0, whose loss is infinite.

    Raises `TypeError` and `ValueError` for shapes and types that do not fit, and a mean over nothing.

    >>> import fastrnn as fr, numpy as np
    >>> logits, mean, log_scale = np.zeros(2), np.array([[-1.0], [1.0]]), np.zeros(2)
    >>> loss, dlogits, dmean, dlog_scale = fr.gaussian_mixture_nll(logits, mean, log_scale, np.array([0.0]))
    >>> round(loss, 6), dlogits  # both components are as far away: 1/2 + (log 2 pi) / 2
    (1.418939, array([0., 0.]))
    >>> dmean, dlog_scale
    (array([[-0.5],
           [ 0.5]]), array([0., 0.]))
    """
    a, mu, t = _arrays(logits, mean, targets)
    K, O = mu.shape[-2:]  # noqa: E741 - the glossary's letter
    s = check_array("log_scale", log_scale, a.dtype, "...", {})
    if s.shape not in (mu.shape, a.shape):
        raise ValueError(f"log_scale has shape {s.shape}, expected (..., K, O) or (..., K) with {K=}, {O=}: "
                         f"{mu.shape} or {a.shape}")  # fmt: skip
    scales = s.reshape(*a.shape, 1 if s.shape == a.shape else O)
    elements = Elements("logits", a.shape[:-1], reduction, mask, lengths)
    x, m, log_s, y = wide(a, mu, scales, t)
    with np.errstate(all="ignore"):
        precise = np.exp(-log_s)
        z = times(y[..., None, :] - m, precise)
        densities = -0.5 * (z * z).sum(-1) - np.broadcast_to(log_s, m.shape).sum(-1) - 0.5 * O * LOG_TAU
        losses, dlogits, gamma = _mixed(x, densities)
        shares = gamma[..., None]
        return (
            elements.total(losses),
            elements.gradient(dlogits, a),
            elements.gradient(-times(shares, times(z, precise)), mu),
            elements.gradient(shares - times(shares, z * z), scales).reshape(s.shape),
        )


def bivariate_mixture_nll(
    logits: Any, mean: Any, log_scale: Any, correlation: Any, targets: Any, reduction: str = "mean", *,
    mask: Any = None, lengths: Any = None,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """The negative log-likelihood of mixtures of Gaussians of two correlated numbers, and its gradients.

        p(target) = sum over k of w[k] exp(-Z[k] / (2 (1 - rho^2))) / (2 pi s[k, 0] s[k, 1] sqrt(1 - rho^2))
        Z = z[0]^2 + z[1]^2 - 2 rho z[0] z[1]        z = (target - mean) / s
        w = softmax(logits)        s = exp(log_scale)        rho = tanh(correlation)

    for the pen of handwriting, whose two offsets go together (Graves 2013, equations 18 to 25 and 30 to 35). With
    r = correlation, 1 / sqrt(1 - rho^2) is cosh r, and

        Z / (1 - rho^2) = z[0]^2 + b^2      a = z[0] cosh r - z[1] sinh r      b = z[1] cosh r - z[0] sinh r
        dmean = -gamma cosh r (a, b) / s    dlog_scale = gamma (1 - cosh r (a, b) z)    dr = -gamma (rho + a b)

    which holds where rho is rounded to 1. The end of a stroke is a `bernoulli_nll` of its own.

    logits, correlation : (..., K), float32 or float64; N rows, K components
    mean, log_scale : (..., K, 2)
    targets : (..., 2)
    reduction : "mean" over the rows that count, or "sum"
    mask : bool, (...): False where a row does not count
    lengths : (B,), integers from 0 to T, for logits (T, B, K): as the mask t < lengths[b]. Not with `mask`

    Returns the loss, a float, dlogits, dmean, dlog_scale and dcorrelation, of the shapes of what they belong to and
    of the type of `logits`; else as `gaussian_mixture_nll`, and raises as it does.

    >>> import fastrnn as fr, numpy as np
    >>> one, two = np.zeros((5, 1)), np.zeros((5, 1, 2))
    >>> loss, *gradients = fr.bivariate_mixture_nll(one, two, two, one, np.ones((5, 2)))
    >>> round(loss, 6)  # 1 + log 2 pi
    2.837877
    >>> [d.shape for d in gradients]
    [(5, 1), (5, 1, 2), (5, 1, 2), (5, 1)]
    """
    weights, mu, t = _arrays(logits, mean, targets)
    if mu.shape[-1] != 2:
        raise ValueError(f"mean has shape {mu.shape}, expected (..., K, 2)")
    s = check_same("log_scale", log_scale, weights.dtype, mu.shape, "mean")
    corr = check_same("correlation", correlation, weights.dtype, weights.shape, "logits")
    elements = Elements("logits", weights.shape[:-1], reduction, mask, lengths)
    x, m, log_s, r, y = wide(weights, mu, s, corr, t)
    with np.errstate(all="ignore"):
        precise = np.exp(-log_s)
        z = times(y[..., None, :] - m, precise)
        size, sign = np.abs(r)[..., None], np.copysign(1.0, r)[..., None]
        cosh = np.cosh(size)
        # (a, b), with the large terms taken together first: they cancel where z[1] is nearly z[0].
        other = sign * z[..., ::-1]
        ab = (z - other) * cosh + other * np.exp(-size)
        log_cosh = (size + np.log1p(np.exp(-2.0 * size)))[..., 0] - np.log(2.0)
        squares = z[..., 0] ** 2 + ab[..., 1] ** 2
        losses, dlogits, gamma = _mixed(x, log_cosh - 0.5 * squares - log_s.sum(-1) - LOG_TAU)
        shares, pull = gamma[..., None], cosh * ab
        return (
            elements.total(losses),
            elements.gradient(dlogits, weights),
            elements.gradient(-times(shares, pull * precise), mu),
            elements.gradient(shares - times(shares, pull * z), s),
            elements.gradient(-times(gamma, np.tanh(r) + ab[..., 0] * ab[..., 1]), corr),
        )


def _arrays(logits: Any, mean: Any, targets: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checked: logits (..., K), mean (..., K, O), targets (..., O)."""
    a = check_array("logits", logits, dtype_of(logits), "... K", {})
    K = a.shape[-1]
    if K == 0:
        raise ValueError(f"logits has shape {a.shape}, expected (..., K) with K from 1")
    mu = check_array("mean", mean, a.dtype, "... K O", {"K": K})
    if mu.shape[:-1] != a.shape:
        raise ValueError(f"mean has shape {mu.shape}, expected that of logits and O: {(*a.shape, 'O')}")
    t = check_array("targets", targets, a.dtype, "... O", {"O": mu.shape[-1]})
    if t.shape[:-1] != a.shape[:-1]:
        raise ValueError(f"targets has shape {t.shape}, expected {(*a.shape[:-1], mu.shape[-1])}")
    return a, mu, t


def _mixed(logits: np.ndarray, densities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-log p (...), its gradient by the logits (..., K), and the responsibilities (..., K); densities : log N."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    w = shifted / shifted.sum(-1, keepdims=True)
    joint = logits - logits.max(-1, keepdims=True) - np.log(shifted.sum(-1, keepdims=True)) + densities
    largest = joint.max(-1, keepdims=True)
    largest = np.where(largest == -np.inf, 0.0, largest)  # no component reaches the target: -log 0 is infinite
    parts = np.exp(joint - largest)
    total = parts.sum(-1, keepdims=True)
    gamma = parts / total
    return -(largest + np.log(total))[..., 0], w - gamma, gamma
