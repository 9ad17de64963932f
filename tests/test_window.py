"""Truncated backpropagation whose window is longer than its stride: the gradient, what is carried, stopping and going
on.
"""

import copy

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits
from test_charlm import FIT, SMALL, TEXT, params_of, rewritten, stop_after

import fastrnn as fr
from fastrnn.models.charlm import CharLM, checkpoint_path
from fastrnn.training import Interrupted, Trainer

STRIDE = 3
WINDOW = {**FIT, "window": 21}  # two strides of 9 and a bit


def trainer_of(window, cell="lstm", **options):
    """Two layers in float64; 7 strides and a shorter one."""
    lm = CharLM(cell=cell, hidden_size=6, num_layers=2, embedding_size=4, seed=1, dtype="float64").build("abcd")
    ids = np.random.default_rng(2).integers(0, 4, 2 * (7 * STRIDE + 2) + 1)
    return Trainer(
        lm.model, ids, batch_size=2, seq_length=STRIDE, window=window, optimizer="sgd", lr=0.5, clip=None, **options
    )


def grads_of(model):
    return {name: gradient.copy() for name, gradient in model.grads.items()}


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("window", [3, 4, 6, 8, 1000])
def test_each_update(cell, window):
    """The gradient of the newest stride's loss through the whole window at once, with the weights of now, from the
    state that the windows before have handed on, each with the weights of its time.
    """
    trainer = trainer_of(window, cell)
    model, everything = trainer.model, trainer.streams.between(0, trainer.streams.steps + 1)
    assert len(trainer.streams) == 8
    state, start = None, 0
    for number in range(8):
        end = min((number + 1) * STRIDE, trainer.streams.steps)
        assert start == max(0, number * STRIDE + STRIDE - window)
        now = copy.deepcopy(model)
        logits, _, tape = now.forward(everything[start:end], state)
        older = number * STRIDE - start
        loss, dnewest = fr.cross_entropy(logits[older:], everything[start + older + 1 : end + 1])
        dlogits = np.zeros_like(logits)
        dlogits[older:] = dnewest
        now.zero_grad()
        now.backward(tape, dlogits)
        before = trainer.loss_sum
        size = trainer.step()
        assert (trainer.loss_sum - before) / size == pytest.approx(loss, rel=1e-12)
        assert_close(grads_of(model), grads_of(now), 1e-12)

        following = min(max(0, (number + 2) * STRIDE - window), end)
        if following > start:
            _, state = now(everything[start:following], state)
            start = following
        if number < 7:
            assert (trainer.state is None) == (state is None)
            for found, expected in zip(np.array(trainer.state or ()), np.array(state or ()), strict=True):
                assert_same_bits({"state": found}, {"state": expected})


def test_all_of_it_is_full_backpropagation():
    """A window of the whole text: the gradients of all strides' losses are together that of the text's loss."""
    trainer = trainer_of(1000)
    trainer.settings["lr"] = 1e-300  # the weights stay as they are
    total = None
    while not trainer.pass_is_over():
        size = trainer.step()
        grads = {name: size * gradient for name, gradient in grads_of(trainer.model).items()}
        total = grads if total is None else {name: total[name] + gradient for name, gradient in grads.items()}
        assert trainer.state is None
    model, steps = copy.deepcopy(trainer.model), trainer.streams.steps
    logits, _, tape = model.forward(trainer.streams.between(0, steps))
    loss, dlogits = fr.cross_entropy(logits, trainer.streams.between(1, steps + 1), "sum")
    model.zero_grad()
    model.backward(tape, dlogits)
    assert trainer.loss_sum == pytest.approx(loss, rel=1e-12)
    assert_close(total, grads_of(model), 1e-12)


@pytest.mark.parametrize("window", [None, STRIDE])
def test_a_window_of_one_stride_is_none(window):
    """The bits of one tape for each chunk, the state carried over."""
    trainer = trainer_of(window)
    model, state = copy.deepcopy(trainer.model), None
    optimizer = fr.SGD(model, lr=0.5)
    for x, target in trainer.streams:
        logits, state, tape = model.forward(x, state)
        model.zero_grad()
        model.backward(tape, fr.cross_entropy(logits, target)[1])
        optimizer.step()
        trainer.step()
        assert_same_bits(trainer.model.state_dict(), model.state_dict())


@pytest.mark.parametrize("steps", [1, 3, 14])
def test_resumed_training_is_the_same_to_the_bit(tmp_path, monkeypatch, steps):
    """From where the window still begins with the text, and from where it does not; dropout too."""
    options = {**SMALL, "dropout": 0.3}
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    history = CharLM(**options).fit(TEXT, epochs=2, checkpoint=whole, **WINDOW)
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Interrupted):
            CharLM(**options).fit(TEXT, epochs=2, checkpoint=parts, **WINDOW)
    assert CharLM(**options).fit(TEXT, epochs=2, checkpoint=parts, resume=True, **WINDOW) == history
    for path in (lambda p: p, checkpoint_path):
        assert path(parts).read_bytes() == path(whole).read_bytes()


def test_another_window_is_another_training(tmp_path):
    """It is not resumed with another window; files from before there were windows are, with none."""
    path = tmp_path / "m.npz"
    one, other = CharLM(**SMALL), CharLM(**SMALL)
    one.fit(TEXT, epochs=1, checkpoint=path, **FIT)
    other.fit(TEXT, epochs=1, **WINDOW)
    assert params_of(one) != params_of(other)
    with pytest.raises(ValueError, match="window is 21, expected 9: the training to be resumed"):
        CharLM(**SMALL).fit(TEXT, epochs=2, checkpoint=path, resume=True, **WINDOW)
    rewritten(checkpoint_path(path), lambda header, arrays: header["training"]["settings"].pop("window"))
    assert len(CharLM(**SMALL).fit(TEXT, epochs=2, checkpoint=path, resume=True, **FIT)) == 2


def test_what_is_no_window():
    """Shorter than the stride, or no number of characters."""
    for window, error, message in (
        (8, ValueError, "window is 8, expected at least seq_length=9"),
        (0, ValueError, "window is 0"),
        (9.5, TypeError, "window is 9.5"),
    ):
        lm = CharLM(**SMALL)
        with pytest.raises(error, match=message):
            lm.fit(TEXT, **{**FIT, "window": window})
        assert lm.model is None
