"""min-char-rnn (Karpathy, 2015) to the letter, on this engine.

    h = tanh(U x + W h + b)        x one-hot, weights 0.01 randn, biases 0
    y = V h + c                    p = softmax(y)

A batch of one; 25 characters at a time; the loss is their sum; every gradient is clipped to -5 ... 5; Adagrad
with lr 0.1 and 1e-8 inside the root; the memory h is carried along and reset at the beginning of the text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from ..losses import cross_entropy
from ..optim import Adagrad, clip_grad_value
from ..sampling import generate
from .charlm import CharLM

__all__ = ["Iteration", "min_char_model", "min_char_rnn"]


class Iteration(NamedTuple):
    """One iteration; losses in nats, summed over its characters, before its update."""

    n: int
    passes: int  # over the text, finished with this iteration
    loss: float
    smooth_loss: float  # running mean
    sample: str | None  # every `sample_every` iterations, drawn before the update


def min_char_model(text: str, hidden_size: int = 100, seed: int | None = None, dtype: str = "float64") -> CharLM:
    """The model that min-char-rnn starts from, for the characters of `text`."""
    lm = CharLM("rnn", hidden_size, num_layers=1, embedding_size=None, seed=seed, dtype=dtype).build(text)
    rng = np.random.default_rng(lm.seed)
    params = lm.model.params
    for name in ("0.weight_ih_l0", "0.weight_hh_l0", "1.weight"):
        params[name] = (rng.standard_normal(params[name].shape) * 0.01).astype(dtype)
    for name in ("0.bias_ih_l0", "0.bias_hh_l0", "1.bias"):
        params[name] = np.zeros(params[name].shape, dtype)
    return lm


def min_char_rnn(
    lm: CharLM,
    text: str,
    *,
    seq_length: int = 25,
    lr: float = 0.1,
    clip: float | None = 5.0,
    sample_every: int = 100,
    sample_length: int = 200,
) -> Iterator[Iteration]:
    """Trains `lm`, from `min_char_model`, on `text`, without end: one `Iteration` after every update.

    >>> text = "hello hello " * 10
    >>> for iteration in min_char_rnn(min_char_model(text, seed=1), text):
    ...     if iteration.n == 200:
    ...         break
    >>> bool(iteration.smooth_loss < 25 * np.log(5))  # of five characters: where it began
    True
    """
    assert lm.vocabulary is not None
    ids = lm.vocabulary.encode(text)
    if len(ids) < seq_length + 1:
        raise ValueError(f"text has {len(ids)} characters, and at least {seq_length + 1} are needed")
    model = lm.model
    optimizer = Adagrad(model, lr=lr, eps=1e-8, inside_sqrt=True)
    rng = np.random.default_rng(lm.seed + 1)  # for the samples alone: showing them changes nothing
    smooth_loss = -math.log(1 / len(lm.vocabulary)) * seq_length
    n, p, passes, h = 0, 0, 0, None
    while True:
        if p + seq_length + 1 >= len(ids) or n == 0:
            p, h = 0, None
        x, target = ids[p : p + seq_length, None], ids[p + 1 : p + seq_length + 1, None]  # (T, 1) each

        sample = None
        if sample_every and n % sample_every == 0:
            sample = lm.vocabulary.decode(generate(model, x[0], sample_length, rng=rng, state=h))

        logits, h, tape = model.forward(x, h)
        loss, dlogits = cross_entropy(logits, target, reduction="sum")
        smooth_loss = smooth_loss * 0.999 + loss * 0.001
        model.zero_grad()
        model.backward(tape, dlogits)
        # min-char-rnn has one hidden bias. Of our two, which have the same gradient, the second stays zero.
        model.grads["0.bias_hh_l0"][:] = 0
        if clip:
            clip_grad_value(model, clip)
        optimizer.step()
        p += seq_length
        passes += p + seq_length + 1 >= len(ids)
        yield Iteration(n, passes, loss, smooth_loss, sample)
        n += 1
