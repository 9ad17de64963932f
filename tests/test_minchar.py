"""min-char-rnn on this engine, step by step against the same thing written down in plain NumPy."""

import itertools
import math

import numpy as np
import pytest
from helpers import JIT

from fastrnn.models.minchar import min_char_model, min_char_rnn

TEXT = "The quick brown fox jumps over the lazy dog; " * 8
ITERATIONS = 50 if JIT else 20


def plain_min_char_rnn(params, text, T, lr):
    """The algorithm in float64 NumPy, character by character; yields the loss, and updates `params`."""
    V = len(set(text))
    ids = [sorted(set(text)).index(c) for c in text]
    U, W, b, out, c = params
    squares = [np.zeros_like(p) for p in params]
    p, h = 0, np.zeros(len(b))
    while True:
        x, target = ids[p : p + T], ids[p + 1 : p + T + 1]
        hs, probabilities, loss = [h], [], 0.0
        for t in range(T):
            one_hot = np.eye(V)[x[t]]
            hs.append(np.tanh(U @ one_hot + W @ hs[-1] + b))
            y = out @ hs[-1] + c
            probabilities.append(np.exp(y) / np.exp(y).sum())
            loss -= math.log(probabilities[-1][target[t]])
        gradients = [np.zeros_like(p) for p in params]
        dh_next = np.zeros(len(b))
        for t in reversed(range(T)):
            dy = probabilities[t] - np.eye(V)[target[t]]
            da = (out.T @ dy + dh_next) * (1 - hs[t + 1] ** 2)
            for gradient, part in zip(
                gradients,
                [np.outer(da, np.eye(V)[x[t]]), np.outer(da, hs[t]), da, np.outer(dy, hs[t + 1]), dy],
                strict=True,
            ):
                gradient += part
            dh_next = W.T @ da
        for parameter, gradient, square in zip(params, gradients, squares, strict=True):
            gradient = gradient.clip(-5, 5)
            square += gradient**2
            parameter -= lr * gradient / np.sqrt(square + 1e-8)
        yield loss
        h = hs[-1]
        p += T
        if p + T + 1 >= len(ids):
            p, h = 0, np.zeros(len(b))


def weights_of(lm):
    names = ("0.weight_ih_l0", "0.weight_hh_l0", "0.bias_ih_l0", "1.weight", "1.bias")
    return [np.array(lm.model.params[name], np.float64) for name in names]


@pytest.mark.parametrize("size", [101, 126, 130])  # a multiple of 25, and the one character that the last one needs
def test_the_end_of_the_text(size):
    text = TEXT[:size]
    lm = min_char_model(text, hidden_size=8, seed=3)
    plain = plain_min_char_rnn(weights_of(lm), text, T=25, lr=0.1)
    for iteration, loss in itertools.islice(zip(min_char_rnn(lm, text), plain, strict=False), 12):
        assert iteration.loss == pytest.approx(loss, rel=1e-9)
    assert iteration.passes == 12 // ((size - 2) // 25)


def test_losses_and_weights_are_those_of_the_plain_algorithm():
    lm = min_char_model(TEXT, hidden_size=30, seed=3)
    params = weights_of(lm)
    plain = plain_min_char_rnn(params, TEXT, T=25, lr=0.1)
    smooth = -math.log(1 / len(set(TEXT))) * 25
    for iteration, loss in itertools.islice(zip(min_char_rnn(lm, TEXT), plain, strict=False), ITERATIONS):
        assert iteration.loss == pytest.approx(loss, rel=1e-9)
        smooth = 0.999 * smooth + 0.001 * loss
        assert iteration.smooth_loss == pytest.approx(smooth, rel=1e-9)
    assert iteration.n == ITERATIONS - 1
    assert iteration.passes == ITERATIONS * 25 // len(TEXT)  # so that the memory has been reset on the way
    assert iteration.passes >= 1
    for ours, theirs in zip(weights_of(lm), params, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9)
    assert not lm.model.params["0.bias_hh_l0"].any()  # one hidden bias, not two


def test_it_begins_as_min_char_rnn_does():
    lm = min_char_model(TEXT, seed=3)
    U, W, b, out, c = weights_of(lm)
    V = len(set(TEXT))
    assert (U.shape, W.shape, out.shape) == ((100, V), (100, 100), (V, 100))
    assert not b.any()
    assert not c.any()
    for weight in (U, W, out):
        assert 0.008 < weight.std() < 0.012
    first = next(min_char_rnn(lm, TEXT))
    assert first.n == 0
    assert first.loss == pytest.approx(25 * math.log(V), rel=0.01)  # nothing known: all characters alike
    assert first.smooth_loss == pytest.approx(25 * math.log(V), rel=1e-4)


def test_samples_now_and_then_and_they_change_nothing():
    runs = []
    for every in (100, 3, 0):
        lm = min_char_model(TEXT, hidden_size=10, seed=1)
        steps = min_char_rnn(lm, TEXT, sample_every=every, sample_length=20)
        runs.append(list(itertools.islice(steps, 8)))
    assert [i.loss for i in runs[0]] == [i.loss for i in runs[1]] == [i.loss for i in runs[2]]
    assert [i.n for i in runs[0] if i.sample is not None] == [0]
    assert [i.n for i in runs[1] if i.sample is not None] == [0, 3, 6]
    assert not any(i.sample for i in runs[2])
    for iteration in runs[1]:
        if iteration.sample is not None:
            assert len(iteration.sample) == 20
            assert set(iteration.sample) <= set(TEXT)


def test_the_shortest_text():
    text = "abcdefghijklmnopqrstuvwxyz"
    assert len(text) == 26
    lm = min_char_model(text, hidden_size=5, seed=1)
    assert [i.passes for i in itertools.islice(min_char_rnn(lm, text), 3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="25 characters, and at least 26 are needed"):
        next(min_char_rnn(lm, text[:25]))
