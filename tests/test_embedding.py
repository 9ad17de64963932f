"""Frozen embeddings: no gradient, no step, whichever way a model looks them up; everything else is as it would be."""

import pickle

import numpy as np
import pytest
from helpers import assert_close, assert_same_bits, bits_of

import fastrnn as fr

V, E, H, O = 7, 3, 5, 4  # noqa: E741 - the glossary's letters


def model(frozen, between=False):
    """An embedding read from a table (by the layer after it), or with a layer in between, row by row."""
    middle = [fr.Linear(E, E, dtype="float64", seed=4)] if between else []
    return fr.Sequential(
        fr.Embedding(V, E, dtype="float64", seed=1, frozen=frozen),
        *middle,
        fr.LSTM(E, H, dtype="float64", seed=2),
        fr.Linear(H, O, dtype="float64", seed=3),
    )


def train(net, ids):
    """The gradients of one forward and backward, and the logits."""
    y, _, tape = net.forward(ids)
    _, dlogits = fr.cross_entropy(y, ids % O)
    net.zero_grad()
    net.backward(tape, dlogits)
    return {name: gradient.copy() for name, gradient in net.grads.items()}, y


@pytest.mark.parametrize("between", [False, True], ids=["table", "rows"])
def test_frozen_in_a_model(between):
    """The same outputs and the same other gradients, bit for bit; its own is not there."""
    ids = np.random.default_rng(1).integers(0, V, (6, 3))
    free, frozen = model(False, between), model(True, between)
    gradients, y = train(free, ids)
    found, y_frozen = train(frozen, ids)
    assert_same_bits({"y": y_frozen}, {"y": y})
    assert np.any(gradients.pop("0.weight") != 0)
    assert_same_bits(found, gradients)
    assert "0.weight" not in frozen.grads
    assert len(frozen.grads) == len(frozen.params) - 1
    with pytest.raises(KeyError, match="frozen"):
        frozen.grads["0.weight"]


def optimizers(net):
    return (fr.SGD(net, 0.1, momentum=0.9), fr.Adagrad(net, 0.1), fr.RMSProp(net, 0.1), fr.Adam(net, 0.1))


@pytest.mark.parametrize("number", range(4))
def test_optimizers_leave_it_alone(number):
    """Steps change every parameter but the frozen one; clipping takes the norm over the others; a lone one has none."""
    ids = np.random.default_rng(1).integers(0, V, (6, 3))
    net = model(True)
    optimizer = optimizers(net)[number]
    gradients, _ = train(net, ids)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    assert fr.clip_grad_norm(net, 100.0) == pytest.approx(norm, rel=1e-12)
    fr.clip_grad_value(net, 1.0)
    before = bits_of(net.params)
    optimizer.step()
    assert [name for name, bits in bits_of(net.params).items() if bits == before[name]] == ["0.weight"]
    lone = fr.Embedding(V, E, frozen=True, seed=1)
    before = bits_of(lone.params)
    optimizers(lone)[number].step()
    lone.zero_grad()
    assert bits_of(lone.params) == before


def test_frozen_layer():
    """It has no memory for gradients, is saved and set like every other, and checks its arguments."""
    layer = fr.Embedding(V, E, frozen=True, seed=1)
    assert layer.frozen
    assert not fr.Embedding(V, E).frozen
    assert layer.stores() == []
    assert layer.store.grads.size == 0
    assert np.array_equal(layer.params["weight"], fr.Embedding(V, E, seed=1).params["weight"])
    ids = np.array([[1, 6]])
    y, tape = layer.forward(ids)
    with pytest.raises(ValueError, match="dy has shape"):
        layer.backward(tape, y[0])
    assert layer.backward(tape, y) is None
    with pytest.raises(ValueError, match="tape has been used"):
        layer.backward(tape, y)
    layer.add_grad(np.ones((V, E), "float32"))
    layer.params["weight"] = np.ones((V, E))
    assert np.all(layer(ids) == 1)
    layer.load_state_dict({"weight": np.zeros((V, E))})
    assert np.all(layer.state_dict()["weight"] == 0)
    again = pickle.loads(pickle.dumps(layer.store))
    assert (again.frozen, again.grads.size) == (True, 0)
    with pytest.raises(AttributeError):
        layer.frozen = False
    with pytest.raises(TypeError, match="frozen is int"):
        fr.Embedding(V, E, frozen=1)


def test_setting_it_spoils_a_tape():
    """Other gradients are computed from its rows: they must be the ones that forward saw."""
    ids = np.random.default_rng(1).integers(0, V, (6, 3))
    net = model(True)
    y, _, tape = net.forward(ids)
    net.params["0.weight"] = np.ones((V, E))
    with pytest.raises(ValueError, match="parameters have changed"):
        net.backward(tape, np.ones_like(y))
    # And no table of the old rows is used.
    free = model(False)
    free.load_state_dict(net.state_dict())
    assert_close({"y": net(ids)[0]}, {"y": free(ids)[0]}, 0)
