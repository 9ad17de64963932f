"""A language model that writes: the kernel that goes from character to character does what the loop in Python does."""

import numpy as np
import pytest
from helpers import JIT

import fastrnn as fr
from fastrnn.sampling import draw

V, E = 11, 5
CELLS = {
    "lstm": lambda h, **more: fr.LSTM(E, h, seed=1, **more),
    "lstm, three layers": lambda h, **more: fr.LSTM(E, h, 3, peephole="diagonal", coupled=True, seed=1, **more),
    "gru": lambda h, **more: fr.GRU(E, h, 2, seed=1, **more),
    "rnn": lambda h, **more: fr.RNN(E, h, 2, nonlinearity="relu", seed=1, **more),
}
cells = pytest.mark.parametrize("cell", CELLS)


def model_of(cell, h=19, **more):
    dtype = more.get("dtype", "float32")
    return fr.Sequential(
        fr.Embedding(V, E, dtype=dtype, seed=0), CELLS[cell](h, **more), fr.Linear(h, V, dtype=dtype, seed=2)
    )


def by_hand(model, ids, count, state=None, temperature=1.0, rng=None):
    """`Sequential.write`, step by step."""
    uniforms, x, written = rng.random((count, len(ids))), np.asarray(ids), []
    for row in uniforms:
        logits, state = model(x[None], state)
        x = np.array([draw(one, temperature, uniform) for one, uniform in zip(logits[0], row, strict=True)])
        written.append(x)
    return np.array(written), state


def same(a, b):
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@cells
@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("B", [1, 9])
def test_as_the_loop(cell, B, temperature, monkeypatch):
    model, ids = model_of(cell), np.arange(B) % V
    monkeypatch.setattr(type(model), "__call__", None)  # it is no loop
    found = model.write(ids, 25, None, temperature, np.random.default_rng(1))
    monkeypatch.undo()
    wanted = by_hand(model, ids, 25, None, temperature, np.random.default_rng(1))
    assert same(found, wanted)
    assert same(model.write(ids, 7, found[1], 0), by_hand(model, ids, 7, found[1], 0, np.random.default_rng(1)))


def test_in_float64():
    model = model_of("lstm", dtype="float64")
    wanted = by_hand(model, [1, 2], 9, rng=np.random.default_rng(1))
    assert same(model.write([1, 2], 9, rng=np.random.default_rng(1)), wanted)


@pytest.fixture
def divided(monkeypatch):
    """However little it is: characters' panels are divided too, but where rows are. Gives how the latest was."""
    monkeypatch.setattr(fr.threads, "SMALL", 0)
    monkeypatch.setattr(fr.threads, "DIVIDED", 0)
    monkeypatch.setattr(fr.layers.recurrent, "ROUND", 0)
    fr.last_call_info()
    return lambda: [(one.workers, one.pieces) for one in fr.last_call_info() if one.kernel.endswith("_write")][-1]


@cells
def test_rows_and_threads(cell, set_num_threads, divided):
    """A row's text depends neither on the others nor on who writes it, and goes on where it was cut."""
    model, ids = model_of(cell), np.arange(7) % V
    set_num_threads(1)
    texts, state = model.write(ids, 12, temperature=0)
    set_num_threads(3)
    assert same(model.write(ids, 12, temperature=0), (texts, state))
    assert divided() == ((3, 3) if JIT else (1, 1))
    for row in range(0, 7, 3):
        assert same(model.write(ids[row : row + 1], 12, temperature=0)[0], texts[:, row : row + 1])
    first, between = model.write(ids, 5, temperature=0)
    assert same(first, texts[:5])
    assert same(model.write(first[-1], 7, between, 0), (texts[5:], state))


@cells
@pytest.mark.parametrize("temperature", [0, 0.7])
@pytest.mark.parametrize("B", [1, 3])
def test_panels_and_threads(cell, B, temperature, set_num_threads, divided):
    """Nor does it where several write the same characters."""
    model, ids = model_of(cell, 200), np.arange(B) % V
    set_num_threads(1)
    wanted = model.write(ids, 12, None, temperature, np.random.default_rng(1))
    set_num_threads(3)
    for _ in range(3):
        assert same(model.write(ids, 12, None, temperature, np.random.default_rng(1)), wanted)
        assert divided() == ((3, 1) if JIT else (1, 1))
    first, between = model.write(ids, 5, temperature=0)
    assert same(
        model.write(first[-1], 7, between, 0), by_hand(model, first[-1], 7, between, 0, np.random.default_rng(1))
    )


def test_who_writes_what(set_num_threads, monkeypatch):
    """Rows are divided where each worker has some, panels where there are too few, and little is not."""
    layer = fr.LSTM(V, 256, seed=0)
    set_num_threads(2)
    by_rows = [layer._writes_by_rows(B, B * 4.0 * 256 * 256) for B in (1, 3, 4, 8, 64)]
    assert by_rows == [False, False, False, True, True]
    assert fr.LSTM(V, 20)._writes_by_rows(1, 4.0 * 20 * 20)


def test_what_is_written_follows_the_weights():
    model = model_of("lstm")
    before = model.write([1], 20, temperature=0)[0]
    model.params["0.weight"] = -model.params["0.weight"]
    model.params["2.bias"] = np.arange(V)
    found = model.write([1], 20, temperature=0)
    assert same(found, by_hand(model, [1], 20, None, 0, np.random.default_rng(0)))
    assert not same(found[0], before)


OTHERS = {
    "indices": lambda: fr.Sequential(fr.GRU(V, 6, seed=0), fr.Linear(6, V, seed=1)),
    "dropout": lambda: fr.Sequential(
        fr.Embedding(V, E, seed=0), fr.Dropout(0.5), fr.LSTM(E, 6, seed=1), fr.Dropout(0.5), fr.Linear(6, V, seed=2)
    ),
    "full peepholes": lambda: model_of("lstm", peephole="full"),
    "zoneout": lambda: model_of("gru", zoneout=0.1),
    "normalised": lambda: model_of("gru", layer_norm=True),
    "two recurrent layers": lambda: fr.Sequential(
        fr.Embedding(V, E, seed=0), fr.LSTM(E, 6, seed=1), fr.GRU(6, 6, seed=2), fr.Linear(6, V, seed=3)
    ),
    "no bias": lambda: fr.Sequential(fr.RNN(V, 6, seed=0, bias=False), fr.Linear(6, V, bias=False, seed=1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models(name):
    """With the kernel or without it."""
    model = OTHERS[name]()
    wanted = by_hand(model, [3, 0], 6, rng=np.random.default_rng(1))
    assert same(model.write(np.array([3, 0], np.int8), 6, rng=np.random.default_rng(1)), wanted)


def test_nothing_to_write():
    model = model_of("rnn")
    ids, state = model.write([1, 2], 0)
    assert ids.shape == (0, 2)
    assert model.write(np.zeros(0, int), 3)[0].shape == (3, 0)
    assert state is None


@cells
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_model_that_has_diverged(cell, value):
    model = model_of(cell)
    bias = model.params["2.bias"].copy()
    bias[4] = value
    model.params["2.bias"] = bias
    with pytest.raises(ValueError, match="not finite"):
        model.write([1, 2], 5)


def test_errors():
    model = model_of("lstm")
    for ids in ([V], [-1], [[1]]):
        with pytest.raises(ValueError, match=r"^ids "):
            model.write(ids, 3)
    with pytest.raises(TypeError, match="ids"):
        model.write([0.5], 3)
    with pytest.raises(ValueError, match="count"):
        model.write([1], -1)
    with pytest.raises(ValueError, match="temperature"):
        model.write([1], 3, temperature=-1)
    with pytest.raises(ValueError, match="state"):
        model.write([1], 3, model.write([1, 2], 1)[1])
    with pytest.raises(TypeError, match="no layer has a state"):
        fr.Sequential(fr.Embedding(V, E), fr.Linear(E, V)).write([1], 3)


@pytest.mark.skipif(not JIT, reason="without JIT every kernel is a function in Python")
def test_one_launch():
    model = model_of("gru")
    model.write([1, 2], 3)
    fr.last_call_info()
    model.write([1, 2], 30)
    assert [one.kernel for one in fr.last_call_info()] == ["gru_write"]
