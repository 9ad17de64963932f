"""Outputs and every gradient, by value, against the reference by complex step.

In float64 to 1e-9 of the largest value. Random gradients come in for y and for the final state; the sizes are
pairwise different.
"""

import numpy as np
import pytest
import reference
from helpers import ALL_CELLS, CELLS, KINKED, Problem, assert_close, large, mixed_lengths, seldom
from hypothesis import given
from hypothesis import strategies as st
from strategies import problems, seeds, sizes

import fastrnn as fr

FORWARD, BACKWARD = 1e-12, 1e-9  # float64
FORWARD_32, BACKWARD_32 = 1e-5, 1e-4

cells = pytest.mark.parametrize("cell", CELLS)
all_cells = pytest.mark.parametrize("cell", [pytest.param(cell, marks=seldom(cell)) for cell in ALL_CELLS])
factors = st.integers(-300, 300).map(lambda hundredths: hundredths / 100)  # none so small that products lose digits


# --- recurrent layers ---------------------------------------------------------------------------------------


@all_cells
@given(data=st.data())
def test_every_gradient(cell, data):
    """Forward and backward of every option, by value."""
    problem = data.draw(problems(cell))
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


@pytest.mark.parametrize("cell", [pytest.param(cell, marks=seldom(cell, "float32")) for cell in CELLS])
@given(data=st.data())
def test_every_gradient_float32(cell, data):
    """The same in float32, whose rounding allows a looser bound."""
    problem = data.draw(problems(cell, dtype="float32"))
    outputs, gradients = problem.solve()
    assert {a.dtype for a in (outputs | gradients).values()} == {np.dtype("float32")}
    assert_close(outputs, problem.outputs(), FORWARD_32)
    assert_close(gradients, problem.gradients, BACKWARD_32, share=0.01)


@all_cells
@pytest.mark.parametrize("kind", ["float", "indices", "both ways, lengths"])
def test_every_gradient_large(cell, kind):
    """Sizes that use every core. Each gradient is compared along two random directions."""
    size = large(cell)
    problem = Problem(cell, **size, indices=kind == "indices")
    if kind == "both ways, lengths":
        problem = problem.but(bidirectional=True, lengths=mixed_lengths(size["T"], size["B"]))
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    for number in range(2):
        directions = {
            name: problem.random(f"along {number} {name}", *array.shape, scale=1.0)
            for name, array in problem.inputs.items()
        }
        expected = reference.along(problem.loss, problem.inputs, directions)
        assert set(gradients) == {f"d{name}" for name in expected}
        for name, direction in directions.items():
            gradient = gradients[f"d{name}"]
            error = abs((gradient * direction).sum() - expected[name])
            assert error <= BACKWARD * np.linalg.norm(gradient), name


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell not in KINKED])  # a difference may step over a kink
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.long)], ids=["short", "long"])
@given(data=st.data())
def test_backward_is_the_derivative_of_forward(cell, every, data):
    """Without the reference: the layer's own forward, by central differences, gives its own backward: along random
    directions, in the long form by every element.
    """
    problem = data.draw(problems(cell, L=1, indices=False, has_state=True))
    layer = problem.layer()
    _, tape = problem.forward(layer)
    gradients = problem.backward(layer, tape)

    def loss(arrays):
        for name in problem.params:
            layer.params[name] = arrays[name]
        state = problem.pack({name: arrays[f"{name}0"] for name in problem.states})
        y, state = layer(problem.turned(arrays["x"]), state, problem.lengths)
        out = {"y": problem.turned(y)} | problem.unpack(state)
        return sum((dout * out[name]).sum() for name, dout in problem.doutputs.items())

    assert set(gradients) == {f"d{name}" for name in problem.inputs}
    # A difference has no more digits than the loss: the bound is relative to the largest gradient of all.
    bound = 1e-6 * max(np.abs(gradient).max() for gradient in gradients.values())
    if every:
        for name, gradient in reference.central_difference(loss, problem.inputs).items():
            assert np.abs(gradients[f"d{name}"] - gradient).max() <= bound, name
        return
    for number in range(2):
        for name, array in problem.inputs.items():
            direction = problem.random(f"along {number} {name}", *array.shape, scale=1.0)
            direction /= np.linalg.norm(direction)
            expected = reference.difference_along(loss, problem.inputs, name, direction)
            assert abs((gradients[f"d{name}"] * direction).sum() - expected) <= bound, name


@cells
@given(data=st.data())
def test_no_gradient_in_no_gradient_out(cell, data):
    """Zeros in give zeros out, exactly, not rounding errors."""
    problem = data.draw(problems(cell, has_dy=True, has_dstate=True))
    layer = problem.layer()
    _, tape = problem.forward(layer)
    zeros = problem.pack({name: np.zeros_like(a) for name, a in problem.unpack(problem.dstate).items()})
    dx, dstate = layer.backward(tape, np.zeros_like(problem.dy), zeros)
    gradients = [*layer.grads.values(), *problem.unpack(dstate).values(), *([] if problem.indices else [dx])]
    assert all(np.all(gradient == 0) for gradient in gradients)


@cells
@given(data=st.data(), a=factors, b=factors)
def test_gradients_are_linear_in_what_comes_in(cell, data, a, b):
    """backward(a u + b v) = a backward(u) + b backward(v)."""
    problem = data.draw(problems(cell, has_dy=True, has_dstate=True))
    other = {name: problem.random(f"other {name}", *d.shape, scale=1.0) for name, d in problem.doutputs.items()}

    def gradients(doutputs):
        layer = problem.layer()
        _, tape = problem.forward(layer)
        dstate = problem.pack({name: doutputs[name] for name in problem.states})
        dx, dstate = layer.backward(tape, problem.turned(doutputs["y"]), dstate)
        found = {name: gradient.copy() for name, gradient in layer.grads.items()}
        return found | problem.unpack(dstate) | ({} if problem.indices else {"x": dx})

    u, v = gradients(problem.doutputs), gradients(other)
    both = gradients({name: a * d + b * other[name] for name, d in problem.doutputs.items()})
    for name, gradient in both.items():
        scale = abs(a) * np.abs(u[name]).max() + abs(b) * np.abs(v[name]).max()
        assert np.abs(gradient - (a * u[name] + b * v[name])).max() <= 1e-12 * scale, name


@cells
@given(data=st.data())
def test_gradients_add_up(cell, data):
    """A second backward adds to what the first left, a third after zero_grad() starts anew."""
    problem = data.draw(problems(cell))
    layer = problem.layer()

    def backward():
        _, tape = problem.forward(layer)
        layer.backward(tape, problem.dy, problem.dstate)
        return {name: gradient.copy() for name, gradient in layer.grads.items()}

    once, twice = backward(), backward()
    assert_close(twice, {name: 2 * gradient for name, gradient in once.items()}, 1e-13)
    layer.zero_grad()
    assert all(np.all(gradient == 0) for gradient in layer.grads.values())
    assert_close(backward(), once, 0)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm_peephole", "gru"])
@pytest.mark.parametrize(("stride", "window"), [(3, 3), (3, 5), (2, 12)])
def test_truncated_backpropagation(cell, stride, window):
    """Every `stride` steps the gradient of those steps' loss, back through `window` of them (Williams and Peng 1990):
    with a state that is carried and no gradient beyond the window.
    """
    problem = Problem(cell, T=12, B=3, I=4, H=9, has_dstate=False)
    layer, state_at, state = problem.layer(), [problem.state], problem.state
    for t in range(problem.T):
        _, state = layer(problem.x[t : t + 1], state)
        state_at.append(state)
    expected = {f"d{name}": np.zeros(array.shape) for name, array in problem.params.items()}
    for end in range(stride, problem.T + 1, stride):
        start = max(0, end - window)
        dy = problem.dy[start:end].copy()
        dy[: end - stride - start] = 0
        _, _, tape = layer.forward(problem.x[start:end], state_at[start])
        layer.backward(tape, dy)

        # The reference's window, whose initial state is a number to it as to the layer.
        part = problem.but(T=end - start)
        begun = problem.but(T=max(start, 1)).outputs(problem.inputs | {"x": problem.inputs["x"][: max(start, 1)]})
        states = {f"{n}0": begun[n] if start else problem.inputs[f"{n}0"] for n in problem.states}
        part.__dict__["inputs"] = problem.params | states | {"x": problem.inputs["x"][start:end]}
        part.__dict__["doutputs"] = {"y": dy}
        for name in expected:
            expected[name] += part.gradients[name]
    assert_close({f"d{name}": gradient for name, gradient in layer.grads.items()}, expected, BACKWARD)


# --- layers without time ------------------------------------------------------------------------------------


@given(sizes(), seeds, st.booleans())
def test_linear(size, seed, bias):
    """y, dx, dweight and dbias."""
    T, B, I, O = size.values()  # noqa: E741 - the glossary's letters
    rng = np.random.default_rng(seed)
    params = {"weight": rng.standard_normal((O, I))} | ({"bias": rng.standard_normal(O)} if bias else {})
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, O))
    layer = fr.Linear(I, O, bias=bias, dtype="float64")
    layer.load_state_dict(params)
    y, tape = layer.forward(x)
    dx = layer.backward(tape, dy)

    def loss(arrays):
        return (dy * reference.linear(arrays, arrays["x"])).sum(axis=(-3, -2, -1))

    assert_close({"y": y, "inferred": layer(x)}, dict.fromkeys(("y", "inferred"), reference.linear(params, x)), FORWARD)
    assert_close({"x": dx} | dict(layer.grads), reference.complex_step(loss, {"x": x} | params), BACKWARD)


@given(sizes(), seeds)
def test_embedding(size, seed):
    """A row for each index; its gradient is the sum over every place where the index stands."""
    T, B, num, dim = size.values()
    rng = np.random.default_rng(seed)
    weight, ids, dy = (
        rng.standard_normal((num, dim)),
        rng.integers(0, num, (T, B)),
        rng.standard_normal((T, B, dim)),
    )
    layer = fr.Embedding(num, dim, dtype="float64")
    layer.load_state_dict({"weight": weight})
    y, tape = layer.forward(ids)
    assert layer.backward(tape, dy) is None

    def loss(arrays):
        return (dy * reference.embedding(arrays, ids)).sum(axis=(-3, -2, -1))

    assert np.array_equal(y, weight[ids])
    assert np.array_equal(layer(ids), weight[ids])
    assert_close(layer.grads, reference.complex_step(loss, {"weight": weight}), BACKWARD)


def test_leading_axes():
    """Linear and Embedding take any number of axes before the one they act on."""
    rng = np.random.default_rng(5)
    x, ids = rng.standard_normal((2, 3, 4, 5)), rng.integers(0, 6, (2, 3, 4))
    linear, embedding = fr.Linear(5, 7, dtype="float64"), fr.Embedding(6, 5, dtype="float64")
    flat = linear(x.reshape(-1, 5))
    assert_close({"y": linear(x), "one": linear(x[0, 0, 0])}, {"y": flat.reshape(2, 3, 4, 7), "one": flat[0]}, FORWARD)
    assert np.array_equal(embedding(ids), embedding.params["weight"][ids])
    assert np.array_equal(embedding(ids[0, 0, 0]), embedding.params["weight"][ids[0, 0, 0]])


# --- a model and its loss -----------------------------------------------------------------------------------


@given(sizes(2), seeds, st.sampled_from([False, True]))
def test_sequential_and_cross_entropy(size, seed, one_hot):
    """Embedding (or indices as they are), LSTM, Linear, cross entropy: the loss and every gradient."""
    T, B, V, H = size.values()
    E = H + 2
    problem = Problem("lstm", T=T, B=B, I=V if one_hot else E, H=H, L=2, seed=seed)
    rng = problem.rng("model")
    table = {} if one_hot else {"0.weight": rng.standard_normal((V, E))}
    at = len(table)
    arrays = (
        table
        | {f"{at}.{name}": array for name, array in problem.params.items()}
        | {f"{at + 1}.weight": rng.standard_normal((V, H)), f"{at + 1}.bias": rng.standard_normal(V)}
    )
    ids, targets = rng.integers(0, V, (T, B)), rng.integers(0, V, (T, B))
    state = problem.pack({name: problem.inputs[f"{name}0"] for name in problem.states})
    dstate = problem.pack({name: problem.doutputs[name] for name in problem.states})

    def of(number, arrays):
        return {name.split(".")[1]: array for name, array in arrays.items() if name.startswith(f"{number}.")}

    def run(arrays):
        x = reference.one_hot(ids, V) if one_hot else reference.embedding(of(0, arrays), ids)
        y, h, c = reference.lstm(of(at, arrays), x, arrays["h0"], arrays["c0"])
        return reference.linear(of(at + 1, arrays), y), h, c

    def loss(arrays):
        logits, h, c = run(arrays)
        from_state = sum((d * s).sum(axis=(-3, -2, -1)) for d, s in zip(dstate, (h, c), strict=True))
        return reference.cross_entropy(logits, targets) + from_state

    layers = [fr.LSTM(problem.I, H, num_layers=2, dtype="float64"), fr.Linear(H, V, dtype="float64")]
    model = fr.Sequential(*([] if one_hot else [fr.Embedding(V, E, dtype="float64")]), *layers)
    model.load_state_dict(arrays)
    logits, (final,), tape = model.forward(ids, (state,))
    value, dlogits = fr.cross_entropy(logits, targets)
    dx, (dstart,) = model.backward(tape, dlogits, (dstate,))

    arrays |= dict(zip(("h0", "c0"), state, strict=True))
    outputs = dict(zip(("logits", "h", "c"), run(arrays), strict=True))
    inferred, (inferred_final,) = model(ids, (state,))
    assert_close(dict(zip(outputs, (logits, *final), strict=True)), outputs, FORWARD)
    assert_close(dict(zip(outputs, (inferred, *inferred_final), strict=True)), outputs, FORWARD)
    assert value == pytest.approx(reference.cross_entropy(outputs["logits"], targets), rel=1e-13)
    assert dx is None
    found = dict(model.grads) | dict(zip(("h0", "c0"), dstart, strict=True))
    assert_close(found, reference.complex_step(loss, arrays), BACKWARD)


@given(sizes(), seeds)
def test_cross_entropy(size, seed):
    """The loss is a Python float, its gradient softmax minus one-hot over the number of elements."""
    T, B, _, V = size.values()
    rng = np.random.default_rng(seed)
    logits, targets = 3 * rng.standard_normal((T, B, V)), rng.integers(0, V, (T, B))
    loss, dlogits = fr.cross_entropy(logits, targets)
    expected = reference.complex_step(lambda a: reference.cross_entropy(a["logits"], targets), {"logits": logits})
    assert type(loss) is float
    assert loss == pytest.approx(reference.cross_entropy(logits, targets), rel=1e-13, abs=1e-15)
    # With V = 1 the gradient is zero, and the complex step says so only up to its rounding.
    assert np.abs(dlogits - expected["logits"]).max() <= 1e-13

    total, dtotal = fr.cross_entropy(logits, targets, reduction="sum")
    assert total == pytest.approx(T * B * loss, rel=1e-13, abs=1e-15)
    assert np.abs(dtotal - T * B * dlogits).max() <= 1e-13


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_of_extreme_logits(dtype):
    """Certainty, right and wrong, neither overflows nor loses the loss."""
    logits = np.array([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]], dtype)
    loss, dlogits = fr.cross_entropy(logits, np.array([0, 2, 1]), reduction="sum")
    assert loss == pytest.approx(0 + 2e4 + np.log(3), rel=1e-6)
    assert np.abs(dlogits - [[0, 0, 0], [1, 0, -1], [1 / 3, -2 / 3, 1 / 3]]).max() < 1e-6


@given(sizes(), seeds)
def test_mse(size, seed):
    """The mean of the squares over every element, and its gradient."""
    T, B, _, O = size.values()  # noqa: E741 - the glossary's letters
    rng = np.random.default_rng(seed)
    y, target = rng.standard_normal((T, B, O)), rng.standard_normal((T, B, O))
    loss, dy = fr.mse(y, target)
    assert type(loss) is float
    assert loss == pytest.approx(reference.mse(y, target), rel=1e-13)
    assert_close({"y": dy}, reference.complex_step(lambda a: reference.mse(a["y"], target), {"y": y}), BACKWARD)


@given(sizes(), seeds, st.floats(0.1, 10))
def test_softmax(size, seed, temperature):
    """softmax is exp of log_softmax, sums to one, and a temperature divides the logits."""
    T, B, _, V = size.values()
    logits = 5 * np.random.default_rng(seed).standard_normal((T, B, V))
    expected = reference.log_softmax(logits / temperature)
    found = {"log": fr.log_softmax(logits), "p": fr.softmax(logits, temperature=temperature)}
    assert np.abs(found["log"] - reference.log_softmax(logits)).max() <= 1e-12 * np.abs(found["log"]).max() + 1e-15
    assert np.abs(found["p"] - np.exp(expected)).max() <= 1e-13
    assert np.abs(found["p"].sum(axis=-1) - 1).max() <= 1e-13
