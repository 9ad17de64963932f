"""Entropies and Kullback-Leibler divergences that have a closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_array, check_choice
from .densities import LOG_TAU, diagonal, solve_lower
from .elements import check_same, dtype_of, times, wide

# The distributions, and the names of their parameters.
KINDS = {
    "categorical": ("logits",),
    "bernoulli": ("logits",),
    "gaussian": ("mean", "log_variance"),
    "multivariate_gaussian": ("mean", "factor"),
}


def kl_divergence(kind: str, p: Any, q: Any) -> np.ndarray:
    """The Kullback-Leibler divergence KL(p || q) of two distributions of one kind, in nats.

        KL(p || q) = E[log p(x) - log q(x)]      x from p

    It is never negative, 0 where the two are the same, and not symmetric. With q the model and p what the data is
    drawn from it is the cross-entropy less the entropy of p, so the largest likelihood is the smallest divergence.

    kind : the distribution; p and q are its parameters, those of the likelihood of that name:

        "categorical"               logits (..., V)                            -> (...)
        "bernoulli"                 logits (...)                               -> (...)
        "gaussian"                  (mean (..., O), log_variance (..., O))     -> (..., O)
        "multivariate_gaussian"     (mean (..., O), factor (..., O, O))        -> (...)

    Returns a float64 array, one number for each distribution (for each of the O independent Gaussians of a row). It
    is infinite where p can be what q cannot. NaN stays where it is.

    Raises `TypeError` and `ValueError` for unknown kinds, shapes and types that do not fit; q has the shape of p.

    >>> import fastrnn as fr, numpy as np
    >>> fair, loaded = np.log([0.5, 0.5]), np.log([0.25, 0.75])
    >>> float(fr.kl_divergence("categorical", fair, loaded).round(6))  # log 2 - (log 3) / 2
    0.143841
    >>> zero = np.zeros(2)
    >>> fr.kl_divergence("gaussian", (zero, zero), (np.array([0.0, 3.0]), zero))
    array([0. , 4.5])
    """
    a, b = _parameters("p", kind, p), _parameters("q", kind, q)
    for name, one, other in zip(KINDS[kind], a, b, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"q: {name} has shape {other.shape}, expected the shape of that of p, {one.shape}")
    with np.errstate(all="ignore"):
        return np.asarray(_divergence(kind, a, b))


def _divergence(kind: str, a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    if kind == "categorical":
        log_p, log_q = _log_softmax(*a), _log_softmax(*b)
        impossible = log_p == -np.inf  # of no weight, also where q cannot be that either
        return np.where(impossible, _nan_of(log_q), np.exp(log_p) * (log_p - log_q)).sum(-1)
    if kind == "bernoulli":
        yes, no = _log_probabilities(*a)
        result = np.zeros(yes.shape)
        for log_p, log_q in zip((yes, no), _log_probabilities(*b), strict=True):
            result += np.where(log_p == -np.inf, _nan_of(log_q), np.exp(log_p) * (log_p - log_q))
        return result
    if kind == "gaussian":
        (m_p, v_p), (m_q, v_q) = a, b
        error = m_p - m_q
        return 0.5 * (v_q - v_p + np.exp(v_p - v_q) + times(error, times(error, np.exp(-v_q))) - 1.0)
    (m_p, f_p), (m_q, f_q) = a, b
    L_p = np.tril(f_p, -1)
    diagonal(L_p)[...] = np.exp(diagonal(f_p))
    scaled = solve_lower(f_q, L_p)
    error = solve_lower(f_q, (m_p - m_q)[..., None])[..., 0]
    logs = (diagonal(f_q) - diagonal(f_p)).sum(-1)
    return logs + 0.5 * ((scaled * scaled).sum((-2, -1)) + (error * error).sum(-1) - m_p.shape[-1])


def entropy(kind: str, p: Any) -> np.ndarray:
    """The entropy of distributions, in nats: E[-log p(x)], x from p.

        categorical               -sum over v of p[v] log p[v]
        bernoulli                 -p log p - (1 - p) log(1 - p)
        gaussian                  (log v + log 2 pi + 1) / 2
        multivariate_gaussian     sum of log L[i, i] + O (log 2 pi + 1) / 2

    The least that the mean negative log-likelihood of what is drawn from p can be, whatever the model. A density's,
    unlike a probability's, may be negative.

    kind, p : as for `kl_divergence`

    Returns a float64 array, of the shape that `kl_divergence` has, and raises as it does.

    >>> import fastrnn as fr, numpy as np
    >>> fr.entropy("categorical", np.zeros((2, 8))).round(6)  # log 8
    array([2.079442, 2.079442])
    >>> fr.entropy("bernoulli", np.array([0.0, np.inf])).round(6)
    array([0.693147, 0.      ])
    """
    a = _parameters("p", kind, p)
    with np.errstate(all="ignore"):
        return np.asarray(_entropy(kind, a))


def _entropy(kind: str, a: list[np.ndarray]) -> np.ndarray:
    if kind == "categorical":
        log_p = _log_softmax(*a)
        return 0.0 - times(np.exp(log_p), log_p).sum(-1)
    if kind == "bernoulli":
        yes, no = _log_probabilities(*a)
        return 0.0 - times(np.exp(yes), yes) - times(np.exp(no), no)
    mean, spread = a
    if kind == "gaussian":
        return 0.5 * (spread + LOG_TAU + 1.0) + 0.0 * mean  # NaN in a mean is no distribution
    return diagonal(spread).sum(-1) + 0.5 * mean.shape[-1] * (LOG_TAU + 1.0) + 0.0 * mean.sum(-1)


def _parameters(what: str, kind: str, given: Any) -> list[np.ndarray]:
    """The parameters of p or q, checked, in float64."""
    names = KINDS[check_choice("kind", kind, KINDS)]
    if len(names) == 1:
        letters = "... V" if kind == "categorical" else "..."
        a = check_array(f"{what}: logits", given, dtype_of(given), letters, {})
        if kind == "categorical" and a.shape[-1] == 0:
            raise ValueError(f"{what}: logits has shape {a.shape}, expected (..., V) with V from 1")
        return wide(a)
    if not isinstance(given, tuple) or len(given) != len(names):
        raise TypeError(f"{what} is {type(given).__name__}, expected the tuple ({', '.join(names)})")
    mean, spread = given
    m = check_array(f"{what}: mean", mean, dtype_of(mean), "... O", {})
    shape = m.shape if kind == "gaussian" else (*m.shape, m.shape[-1])
    of = "mean" if kind == "gaussian" else "mean and one more axis"
    return wide(m, check_same(f"{what}: {names[1]}", spread, m.dtype, shape, of))


def _log_softmax(a: np.ndarray) -> np.ndarray:
    below = a - a.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True))


def _log_probabilities(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log p and log(1 - p) of Bernoulli's logits."""
    rest = np.log1p(np.exp(-np.abs(a)))
    return np.minimum(a, 0.0) - rest, np.minimum(-a, 0.0) - rest


def _nan_of(a: np.ndarray) -> np.ndarray:
    """0, and NaN where `a` is NaN."""
    return np.where(np.isnan(a), np.nan, 0.0)
