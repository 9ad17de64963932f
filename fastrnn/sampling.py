"""Drawing from a language model: one character from logits, and a text character by character.

Letters: `T` time steps, `V` characters in the vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["check_temperature", "draw", "generate"]


def draw(logits: np.ndarray, temperature: float, uniform: float) -> int:
    """The index that `uniform`, a number in [0, 1), picks from the distribution of `logits` (V,).

    The distribution is softmax(logits / temperature): a temperature below 1 sharpens it, one above 1 flattens
    it, and 0 means the most likely index, whatever `uniform` is. It is inverse transform sampling: the first
    index whose cumulated probability is above `uniform`.

    >>> logits = np.log([0.2, 0.5, 0.3])
    >>> [draw(logits, 1.0, uniform) for uniform in (0.1, 0.3, 0.6, 0.9)]
    [0, 1, 1, 2]
    >>> draw(logits, 0, 0.9)
    1
    """
    highest = logits.max()
    if not math.isfinite(highest):
        raise ValueError(f"the model's output is not finite ({highest}): its training has diverged")
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64)
    scaled -= highest  # now the largest is 0, and no exponential overflows
    with np.errstate(over="ignore"):  # a tiny temperature: -infinity, whose exponential is the right 0
        scaled /= temperature
    cumulated = np.exp(scaled).cumsum()
    return int(cumulated.searchsorted(uniform * cumulated[-1], side="right"))


def check_temperature(temperature: float) -> None:
    """`ValueError` if it isn't a finite number from 0."""
    if not (isinstance(temperature, (int, float, np.number)) and 0 <= temperature < math.inf):
        raise ValueError(f"temperature is {temperature!r}, expected a finite number from 0 (0: the most likely one)")


def generate(
    model: Any,
    prime: np.ndarray,
    length: int,
    *,
    temperature: float = 1.0,
    rng: np.random.Generator,
    state: Any = None,
) -> np.ndarray:
    """`length` indices, int64 (length,), that the model continues `prime` with, each fed back as the next
    input.

    `model` is a `Sequential` that takes indices (T, 1) and returns logits (T, 1, V) and the new state. `prime` (T,) has
    at least one index; `state` is the state before it (None: zeros). Exactly `length` numbers are drawn from `rng`, so
    that a longer text with the same seed begins with the shorter one.
    """
    check_temperature(temperature)
    if length == 0:
        return np.empty(0, np.int64)
    logits, state = model(np.asarray(prime, np.int64).reshape(-1, 1), state)
    first = draw(logits[-1, 0], temperature, rng.random())
    rest, _ = model.write([first], length - 1, state, temperature, rng)
    return np.concatenate([[first], rest[:, 0]])
