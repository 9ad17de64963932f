"""One to one, one to many, many to one, many to many: the layers that make these shapes, and the models made of them.

Every gradient by complex step on a reference of its own, and of whole models by central differences besides.
"""

import re

import numpy as np
import pytest
import reference
from helpers import Problem, assert_close, assert_same_bits, bits_of
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds, sizes

import fastrnn as fr

FORWARD, BACKWARD = 1e-13, 1e-11


# --- references ---------------------------------------------------------------------------------------------


def last(x, lengths, bidirectional=False):
    """x (..., T, B, H) -> (..., B, H)"""
    rows = []
    for b, length in enumerate(lengths):
        row = x[..., length - 1, b, :] if length else 0 * x[..., 0, b, :]
        if bidirectional and length:
            half = x.shape[-1] // 2
            row = np.concatenate([row[..., :half], x[..., 0, b, half:]], axis=-1)
        rows.append(row)
    return np.stack(rows, axis=-2)


def mean(x, lengths):
    """x (..., T, B, H) -> (..., B, H)"""
    rows = [x[..., :length, b, :].sum(axis=-2) / max(length, 1) for b, length in enumerate(lengths)]
    return np.stack(rows, axis=-2)


POOLS = {
    "last": (fr.Last, last, {}),
    "last of two directions": (fr.Last, last, {"bidirectional": True}),
    "mean": (fr.Mean, mean, {}),
}
pools = pytest.mark.parametrize("pool", POOLS)


# --- Last, Mean, Repeat -------------------------------------------------------------------------------------


@pools
@given(sizes(), seeds, st.booleans(), st.booleans())
def test_pools(pool, size, seed, batch_first, whole):
    """y and dx, for any lengths, zero included; what lies past a row's end may be anything."""
    make, ref, options = POOLS[pool]
    T, B, H, _ = size.values()
    H += H % 2
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((T, B, H)), rng.standard_normal((B, H))
    lengths = np.full(B, T) if whole else rng.integers(0, T + 1, B)
    layer = make(batch_first=batch_first, **options)
    assert layer.takes_lengths
    poisoned = np.where(np.arange(T)[:, None, None] < lengths[:, None], x, np.nan)
    given_x = poisoned.swapaxes(0, 1) if batch_first else poisoned
    given_lengths = None if whole else lengths.tolist()
    y, tape = layer.forward(given_x, given_lengths)
    dx = layer.backward(tape, dy)

    def loss(arrays):
        return (dy * ref(arrays["x"], lengths, **options)).sum(axis=(-2, -1))

    outputs = {"y": y, "inferred": layer(given_x, given_lengths)}
    assert_close(outputs, dict.fromkeys(outputs, ref(x, lengths, **options)), FORWARD)
    dx = dx.swapaxes(0, 1) if batch_first else dx
    assert_close({"x": dx}, reference.complex_step(loss, {"x": x}), BACKWARD)
    assert np.all(dx[np.arange(T)[:, None] >= lengths] == 0)


@pools
def test_a_row_s_bits(pool):
    """A row's numbers do not depend on its padding or on the other rows; H = 1 is where NumPy's sum would differ."""
    make, _, options = POOLS[pool]
    layer = make(**options)
    for H in (2, 1) if pool == "mean" else (2,):
        x = np.random.default_rng(1).standard_normal((100, 3, H)).astype("float32")
        lengths = np.array([70, 100, 9])
        y = layer(x, lengths)
        assert y.dtype == "float32"
        for b, length in enumerate(lengths):
            assert_same_bits({"y": layer(x[:length, b : b + 1])[0]}, {"y": y[b]})


@given(sizes(), seeds, st.booleans())
def test_repeat(size, seed, batch_first):
    """y and dx; dx is the sum over the steps in their order."""
    T, B, I, _ = size.values()  # noqa: E741 - the glossary's letters
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((B, I)), rng.standard_normal((T, B, I))
    layer = fr.Repeat(T, batch_first=batch_first)
    turned = (lambda a: a.swapaxes(0, 1)) if batch_first else (lambda a: a)
    y, tape = layer.forward(x)
    assert np.array_equal(turned(y), np.stack([x] * T))
    assert np.array_equal(layer(x), y)
    expected = reference.complex_step(lambda a: (dy * a["x"][..., None, :, :]).sum(axis=(-3, -2, -1)), {"x": x})
    assert_close({"x": layer.backward(tape, turned(dy))}, expected, BACKWARD)
    alone, tape = layer.forward(x[:1])
    y, whole = layer.forward(x)
    one = layer.backward(tape, turned(dy[:, :1]))
    assert_same_bits({"dx": one[0]}, {"dx": layer.backward(whole, turned(dy))[0]})
    assert alone.shape == ((1, T, I) if batch_first else (T, 1, I))


def test_repeat_of_indices():
    """Integers are repeated as they are; they have no gradient."""
    layer = fr.Repeat(3)
    y, tape = layer.forward(np.array([4, 2]))
    assert y.tolist() == [[4, 2]] * 3
    with pytest.raises(TypeError, match="dy is ndarray, expected None"):
        layer.backward(tape, np.ones((3, 2)))
    assert layer.backward(tape, None) is None
    model = fr.Sequential(fr.Repeat(3), fr.Embedding(5, 4, seed=1), fr.LSTM(4, 6, seed=2), fr.Linear(6, 5, seed=3))
    logits, _, tape = model.forward(np.array([4, 2]))
    assert logits.shape == (3, 2, 5)
    dx, _ = model.backward(tape, np.ones_like(logits))
    assert dx is None
    assert np.any(model.grads["1.weight"][[2, 4]] != 0)


def test_errors_of_steps():
    """What is wrong, by name; and the tape is still good after the error."""
    x = np.ones((4, 3, 2), "float32")
    pool = fr.Last()
    for call, kind, part in (
        (lambda: pool(x[0]), ValueError, "x has shape (3, 2), expected (T, B, H)"),
        (lambda: fr.Mean(batch_first=True)(x[0]), ValueError, "x has shape (3, 2), expected (B, T, H)"),
        (lambda: pool(x[:0]), ValueError, "x has no steps"),
        (lambda: pool(x, [1, 2]), ValueError, "lengths has shape (2,), expected (B,) with B=3"),
        (lambda: pool(x, [1, 5, 2]), ValueError, "lengths holds 1 to 5, expected 0 <= length <= T=4"),
        (lambda: pool(x, [1, -1, 2]), ValueError, "lengths holds -1 to 2"),
        (lambda: pool(x, [1.0, 2.0, 3.0]), TypeError, "lengths has dtype float64, expected integers"),
        (lambda: pool(None), TypeError, "x is NoneType"),
        (lambda: fr.Last(bidirectional=True)(x[:, :, :1]), ValueError, "x has 1 features, expected 2 H"),
        (lambda: fr.Repeat(0), ValueError, "steps is 0"),
        (lambda: fr.Repeat(1.5), TypeError, "steps is float"),
        (lambda: fr.Repeat(2)(x), ValueError, "x has shape (4, 3, 2), expected (B, I)"),
        (lambda: fr.Repeat(2)(np.ones((2, 2), int)), ValueError, "expected indices (B,)"),
    ):
        with pytest.raises(kind, match=re.escape(part)):
            call()
    for layer, given_x, wrong, expected in (
        (pool, x, x, "expected (B, H) with B=3, H=2"),
        (fr.Mean(), x, x[0, :2], "expected (B, H) with B=3, H=2"),
        (fr.Repeat(5), x[0], x, "expected (T, B, I) with T=5, B=3, I=2"),
    ):
        y, tape = layer.forward(given_x)
        with pytest.raises(ValueError, match=re.escape(f"dy has shape {wrong.shape}, {expected}")):
            layer.backward(tape, wrong)
        layer.backward(tape, y)
        with pytest.raises(ValueError, match="tape has been used"):
            layer.backward(tape, y)


def test_empty_batch():
    """No rows in, no rows out."""
    for layer, shape in ((fr.Last(), (3, 0, 2)), (fr.Mean(), (3, 0, 2)), (fr.Repeat(3), (0, 2))):
        y, tape = layer.forward(np.ones(shape, "float32"))
        assert layer.backward(tape, y).shape == shape
    assert fr.Last()(np.ones((3, 0, 2), "float32"), []).shape == (0, 2)


# --- whole models -------------------------------------------------------------------------------------------

T, B, I, H, O = 4, 3, 2, 5, 6  # noqa: E741 - the glossary's letters
F64 = {"dtype": "float64"}
SHAPES = {
    "one to one": (lambda: [fr.Repeat(1), fr.RNN(I, H, **F64), fr.Last(), fr.Linear(H, O, **F64)], (B, I), (B, O)),
    "one to many": (lambda: [fr.Repeat(T), fr.LSTM(I, H, **F64), fr.Linear(H, O, **F64)], (B, I), (T, B, O)),
    "many to one": (lambda: [fr.LSTM(I, H, **F64), fr.Last(), fr.Linear(H, O, **F64)], (T, B, I), (B, O)),
    "many to one, mean": (lambda: [fr.RNN(I, H, **F64), fr.Mean(), fr.Linear(H, O, **F64)], (T, B, I), (B, O)),
    "many to many": (lambda: [fr.LSTM(I, H, **F64), fr.Linear(H, O, **F64)], (T, B, I), (T, B, O)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape):
    """The model's shapes, and every gradient of a loss by central differences."""
    layers, x_shape, y_shape = SHAPES[shape]
    model = fr.Sequential(*layers())
    rng = np.random.default_rng(1)
    x, target = rng.standard_normal(x_shape), rng.standard_normal(y_shape)
    y, _, tape = model.forward(x)
    assert y.shape == y_shape
    assert_same_bits({"y": model(x)[0]}, {"y": y})
    loss, dy = fr.mse(y, target)
    dx, _ = model.backward(tape, dy)

    def run(arrays):
        model.load_state_dict({name: array for name, array in arrays.items() if name != "x"})
        return fr.mse(model(arrays["x"])[0], target)[0]

    arrays = {"x": x, **model.state_dict()}
    assert_close({"x": dx, **model.grads}, reference.central_difference(run, arrays), 1e-6)
    for _ in range(3):
        _, _, tape = model.forward(x)
        model.zero_grad()
        model.backward(tape, fr.mse(model(x)[0], target)[1])
        fr.SGD(model, lr=0.1).step()
    assert fr.mse(model(x)[0], target)[0] < loss


# --- encoder and decoder ------------------------------------------------------------------------------------


def encoder_decoder(V=5, E=3, H=4, W=6, L=1, **options):
    """Embedding and LSTM; embedding, LSTM and linear layer. V, W: the vocabularies."""
    options = {"dtype": "float64"} | options
    return fr.EncoderDecoder(
        fr.Sequential(fr.Embedding(V, E, dtype="float64", seed=1), fr.LSTM(E, H, num_layers=L, seed=2, **options)),
        fr.Sequential(
            fr.Embedding(W, E, dtype="float64", seed=3),
            fr.LSTM(E, H, num_layers=L, seed=4, **options),
            fr.Linear(H, W, dtype="float64", seed=5),
        ),
    )


@given(sizes(2), seeds)
def test_encoder_decoder(size, seed):
    """The loss and every gradient of both parts."""
    S, B, T, H = size["T"], size["B"], size["I"], size["H"]
    V, W, E, L = H + 1, H + 3, 3, 2
    model = encoder_decoder(V, E, H, W, L)
    names = ["encoder.0.weight", "encoder.1.weight_ih_l0", "decoder.1.weight_hh_l1", "decoder.2.bias"]
    assert set(names) <= set(model.state_dict())
    rng = np.random.default_rng(seed)
    arrays = {name: 0.5 * rng.standard_normal(array.shape) for name, array in model.params.items()}
    model.load_state_dict(arrays)
    x, inputs, targets = rng.integers(0, V, (S, B)), rng.integers(0, W, (T, B)), rng.integers(0, W, (T, B))

    def part(arrays, prefix):
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    def run(arrays):
        encoded = reference.embedding(part(arrays, "encoder.0."), x)
        _, h, c = reference.lstm(part(arrays, "encoder.1."), encoded)
        decoded = reference.embedding(part(arrays, "decoder.0."), inputs)
        y, _, _ = reference.lstm(part(arrays, "decoder.1."), decoded, h, c)
        return reference.linear(part(arrays, "decoder.2."), y)

    y, tape = model.forward(x, inputs)
    assert_close({"y": y, "inferred": model(x, inputs)}, dict.fromkeys(("y", "inferred"), run(arrays)), FORWARD)
    loss, dy = fr.cross_entropy(y, targets)
    assert loss == pytest.approx(reference.cross_entropy(run(arrays), targets), rel=1e-12)
    assert model.backward(tape, dy) == (None, None)
    expected = reference.complex_step(lambda a: reference.cross_entropy(run(a), targets), arrays)
    assert_close(model.grads, expected, BACKWARD)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_bare_layers(cell):
    """Two recurrent layers as they are; dense inputs have gradients, by central differences."""
    L = 1 if cell == "lstm" else 2
    problems = [Problem(cell, T=2, B=2, I=4, H=3, L=L, seed=1), Problem(cell, T=3, B=2, I=1, H=3, L=L, seed=2)]
    model = fr.EncoderDecoder(*(problem.layer() for problem in problems))
    x, inputs = (problem.x for problem in problems)
    y, tape = model.forward(x, inputs)
    dx, dinputs = model.backward(tape, problems[1].dy)

    def run(arrays):
        model.load_state_dict({name: array for name, array in arrays.items() if "." in name})
        return (model(arrays["x"], arrays["inputs"]) * problems[1].dy).sum()

    arrays = {"x": x, "inputs": inputs, **model.state_dict()}
    found = {"x": dx, "inputs": dinputs, **model.grads}
    assert_close(found, reference.central_difference(run, arrays), 1e-6)
    assert y.shape == (3, 2, 3)


def test_structures():
    """The state finds its place however each part is nested: the same numbers."""
    rng = np.random.default_rng(1)
    x, inputs = rng.standard_normal((3, 2, 4)), rng.standard_normal((5, 2, 4))
    first, second = fr.LSTM(4, 4, seed=1, **F64), fr.RNN(4, 4, seed=2, **F64)
    third, fourth = fr.LSTM(4, 4, seed=3, **F64), fr.RNN(4, 4, seed=4, **F64)
    flat = fr.EncoderDecoder(fr.Sequential(first, second), fr.Sequential(third, fourth))
    nested = fr.EncoderDecoder(fr.Sequential(fr.Sequential(first), second), fr.Sequential(third, fr.Sequential(fourth)))
    results = []
    for model in (flat, nested):
        model.zero_grad()
        y, tape = model.forward(x, inputs)
        dx, dinputs = model.backward(tape, y)
        gradients = {str(k): gradient.copy() for k, gradient in enumerate(model.grads.values())}
        results.append({"y": y, "dx": dx, "dinputs": dinputs, **gradients})
    assert_same_bits(*results)
    assert np.any(results[0]["dx"] != 0)


def test_shared_embedding():
    """One embedding for both: two names, one matrix, one gradient, one step."""
    table = fr.Embedding(6, 3, seed=1, **F64)
    model = fr.EncoderDecoder(
        fr.Sequential(table, fr.LSTM(3, 4, seed=2, **F64)),
        fr.Sequential(table, fr.LSTM(3, 4, seed=3, **F64), fr.Linear(4, 6, seed=4, **F64)),
    )
    rng = np.random.default_rng(1)
    x, inputs, targets = (rng.integers(0, 6, (steps, 2)) for steps in (5, 4, 4))
    y, tape = model.forward(x, inputs)
    _, dy = fr.cross_entropy(y, targets)
    model.backward(tape, dy)

    def run(arrays):
        table.params["weight"] = arrays["weight"]
        return fr.cross_entropy(model(x, inputs), targets)[0]

    weight = table.state_dict()
    found = {"weight": table.grads["weight"].copy()}
    assert_close(found, reference.central_difference(run, weight), 1e-6)
    table.load_state_dict(weight)
    fr.SGD(model, lr=1.0).step()
    assert_close(table.params, {"weight": weight["weight"] - found["weight"]}, 1e-15)
    frozen = fr.Embedding(6, 3, seed=1, frozen=True, **F64)
    model = fr.EncoderDecoder(fr.Sequential(frozen, fr.RNN(3, 4, **F64)), fr.Sequential(frozen, fr.RNN(3, 4, **F64)))
    y, tape = model.forward(x, inputs)
    model.backward(tape, y)
    assert {"encoder.0.weight", "decoder.0.weight"} == set(model.params) - set(model.grads)


@pytest.mark.parametrize("batch_first", [False, True])
def test_generate(batch_first):
    """Greedy decoding is what feeding every prefix of its own words to the decoder says; `end` ends a row."""
    model = encoder_decoder(W=6, batch_first=batch_first)
    model.params["decoder.2.weight"] = 40 * model.params["decoder.2.weight"]  # so that it says more than one thing
    x = np.random.default_rng(1).integers(0, 5, (4, 8))
    x = np.ascontiguousarray(x.T) if batch_first else x
    turned = (lambda a: a.T) if batch_first else (lambda a: a)
    said = model.generate(x, start=2, length=7)
    assert said.dtype == np.int64
    assert turned(said).shape == (7, 8)
    inputs = np.vstack([np.full((1, 8), 2), turned(said)[:-1]])
    assert np.array_equal(model(x, np.ascontiguousarray(turned(inputs))).argmax(axis=-1), said)

    free = turned(said)
    assert len(set(free.ravel().tolist())) > 2
    end = int(free[2, 0])
    ended = turned(model.generate(x, start=2, length=7, end=end))
    for row, whole in zip(ended.T, free.T, strict=True):
        at = whole.tolist().index(end) if end in whole.tolist() else 7
        assert row.tolist() == (whole[: at + 1].tolist() + [end] * 7)[: len(row)]
    one = model.generate(x[:1] if batch_first else x[:, :1], start=2, length=7, end=end)
    assert turned(one).tolist() == [[word] for word in free[: free[:, 0].tolist().index(end) + 1, 0].tolist()]


def test_it_learns():
    """To say a sequence backwards: exactly, by its own words alone."""
    rng = np.random.default_rng(1)
    x = rng.integers(1, 4, (3, 6))
    target = x[::-1].copy()
    inputs = np.vstack([np.zeros((1, 6), int), target[:-1]])
    model = encoder_decoder(V=4, E=4, H=10, W=4)
    optimizer = fr.Adam(model, lr=0.05)
    for _ in range(80):
        logits, tape = model.forward(x, inputs)
        _, dlogits = fr.cross_entropy(logits, target)
        model.zero_grad()
        model.backward(tape, dlogits)
        optimizer.step()
    assert np.array_equal(model.generate(x, start=0, length=3), target)


class Masked(fr.RNN):
    """An RNN that remembers which lengths it was given."""

    def __call__(self, x, state=None, lengths=None):
        self.given = lengths
        return super().__call__(x, state)

    def forward(self, x, state=None, lengths=None):
        self.given = lengths
        return super().forward(x, state)


def test_lengths_are_passed_on():
    """Each part gets its own, in inference, training and generation, and nothing when there are none."""
    model = fr.EncoderDecoder(Masked(3, 4), Masked(4, 4))
    x, inputs = np.ones((2, 3, 3), "float32"), np.ones((5, 3, 4), "float32")
    for call in (model, model.forward):
        call(x, inputs)
        assert (model.encoder.given, model.decoder.given) == (None, None)
        call(x, inputs, [1, 2, 0], input_lengths=[5, 4, 1])
        assert (model.encoder.given, model.decoder.given) == ([1, 2, 0], [5, 4, 1])
    model.generate(x, start=0, length=2, lengths=[2, 2, 1])
    assert model.encoder.given == [2, 2, 1]


def test_errors_of_encoder_decoder():
    """What does not fit is said when the model is made; after an error in a call, all is as it was."""
    lstm, rnn = fr.LSTM(3, 4), fr.RNN(3, 4)
    for make, kind, part in (
        (lambda: fr.EncoderDecoder("x", lstm), TypeError, "encoder is str, expected a layer"),
        (lambda: fr.EncoderDecoder(lstm, fr.Linear(3, 4)), ValueError, "decoder has no recurrent layer"),
        (
            lambda: fr.EncoderDecoder(fr.Sequential(fr.LSTM(3, 4), fr.Linear(4, 2)), lstm),
            ValueError,
            "ends with Linear",
        ),
        (lambda: fr.EncoderDecoder(lstm, rnn), ValueError, "(h, c) of (1, B, 4) float32; the decoder's h of (1, B, 4)"),
        (lambda: fr.EncoderDecoder(rnn, fr.RNN(3, 5)), ValueError, "h of (1, B, 5)"),
        (lambda: fr.EncoderDecoder(rnn, fr.RNN(3, 4, num_layers=2)), ValueError, "h of (2, B, 4)"),
        (lambda: fr.EncoderDecoder(rnn, fr.RNN(3, 4, **F64)), ValueError, "float64"),
        (lambda: fr.EncoderDecoder(rnn, fr.Sequential(rnn, fr.RNN(4, 4))), ValueError, "float32, h of"),
    ):
        with pytest.raises(kind, match=re.escape(part)):
            make()
    model = encoder_decoder()
    ids = np.ones((2, 3), int)
    y, tape = model.forward(ids, ids)
    for wrong, kind, part in (
        (y[:, :2], ValueError, f"dy has shape (2, 2, 6), expected {y.shape}"),
        (np.zeros((2, 3, 6), "complex64"), TypeError, "dy has dtype complex64"),
        (None, TypeError, "dy is NoneType"),
    ):
        with pytest.raises(kind, match=re.escape(part)):
            model.backward(tape, wrong)
    assert all(np.all(gradient == 0) for gradient in model.grads.values())
    model.backward(tape, y)
    before = bits_of(model.grads)
    with pytest.raises(ValueError, match="tape has been used"):
        model.backward(tape, y)
    assert bits_of(model.grads) == before
    for options, kind, part in (
        ({"start": 6, "length": 2}, ValueError, "6"),
        ({"start": -1, "length": 2}, ValueError, "start is -1"),
        ({"start": 0, "length": 0}, ValueError, "length is 0"),
        ({"start": 0, "length": 2, "end": 0.5}, TypeError, "end is float"),
    ):
        with pytest.raises(kind, match=re.escape(part)):
            model.generate(ids, **options)
    model.params["decoder.2.bias"] = np.full(6, np.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.generate(ids, start=0, length=2)
