"""The layers' contract besides the numbers: tapes are values, results are never stale, views are views."""

import sys

import numpy as np
import pytest
from helpers import CELLS, Problem, assert_close, assert_same_bits, bits_of

import fastrnn as fr
from fastrnn import threads
from fastrnn.simd.sync import new_tickets

cells = pytest.mark.parametrize("cell", CELLS)


def same(a, b):
    """Whether two arrays have the same bits."""
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --- calls --------------------------------------------------------------------------------------------------


@cells
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forwards_then_two_backwards(cell, order):
    """A tape is a value: nothing of a call hides on the layer."""
    problems = [Problem(cell, T=3, B=2, I=4, H=9, seed=1), Problem(cell, T=5, B=3, I=4, H=9, seed=2)]
    layer = problems[0].layer()
    problems[1].__dict__["params"] = problems[0].params  # one layer, two inputs
    expected = [problem.solve() for problem in problems]
    forwards = [problem.forward(layer) for problem in problems]
    for number in order:
        outputs, tape = forwards[number]
        gradients = problems[number].backward(layer, tape)
        assert_same_bits(outputs, expected[number][0])
        assert_close(gradients, expected[number][1], 1e-12)


@cells
def test_results_are_the_caller_s(cell):
    """A later call writes into none of an earlier call's results."""
    problem = Problem(cell, T=4, B=3, I=5, H=9)
    layer = problem.layer()
    kept = problem.infer(layer)
    before = bits_of(kept)
    layer(2 * problem.x, problem.state)
    layer.forward(2 * problem.x, problem.state)
    assert bits_of(kept) == before


@cells
def test_arguments_are_left_alone(cell):
    """x, state, dy and dstate are read; they may be read-only."""
    problem = Problem(cell, T=4, B=3, I=5, H=9)
    layer = problem.layer()
    x, state, dy, dstate = problem.x, problem.state, problem.dy, problem.dstate
    arrays = [x, dy, *problem.unpack(state).values(), *problem.unpack(dstate).values()]
    for array in arrays:
        array.flags.writeable = False
    before = [array.tobytes() for array in arrays]
    layer(x, state)
    _, _, tape = layer.forward(x, state)
    layer.backward(tape, dy, dstate)
    assert [array.tobytes() for array in arrays] == before


@cells
@pytest.mark.parametrize("sizes", [(1, 9), (4, 1), (1, 1)], ids=["one input", "one unit", "one of both"])
def test_parameters_are_left_alone(cell, sizes):
    """Where a matrix of one row or column is in memory as its transpose is."""
    if "projected" in cell and sizes[1] == 1:
        sizes = sizes[0], 9  # O is less than H
    problem = Problem(cell, T=3, B=2, I=sizes[0], H=sizes[1], seed=1, indices=True)
    layer = problem.layer()
    before = {name: value.copy() for name, value in layer.params.items()}
    _, tape = problem.forward(layer)
    problem.backward(layer, tape)
    assert_same_bits(layer.params, before)


@cells
def test_any_memory_layout(cell):
    """Strided, reversed, transposed or unaligned: an array is its values."""
    problem = Problem(cell, T=4, B=3, I=5, H=9)
    layer = problem.layer()
    expected, _ = layer(problem.x, problem.state)
    x = problem.x
    wide = np.repeat(x, 2, axis=2)
    unaligned = np.frombuffer(b"." + x.tobytes(), dtype=x.dtype, offset=1).reshape(x.shape)
    layouts = {
        "fortran": np.asfortranarray(x),
        "strided": wide[:, :, ::2],
        "reversed": x[::-1].copy()[::-1],
        "transposed": np.ascontiguousarray(x.transpose(2, 1, 0)).transpose(2, 1, 0),
        "unaligned": unaligned,
    }
    for name, array in layouts.items():
        assert same(layer(array, problem.state)[0], expected), name


@cells
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
def test_no_state_is_a_zero_state(cell, bidirectional):
    """state=None is zeros, and dstate=None no gradient."""
    problem = Problem(cell, T=4, B=3, I=5, H=9, L=2, bidirectional=bidirectional)
    layer = problem.layer()
    zeros = problem.pack({name: np.zeros(problem.shape_of(name)) for name in problem.states})
    assert same(layer(problem.x)[0], layer(problem.x, zeros)[0])
    results = []
    for state, dstate in ((None, None), (zeros, zeros)):
        layer.zero_grad()
        _, _, tape = layer.forward(problem.x, state)
        dx, _ = layer.backward(tape, problem.dy, dstate)
        results.append({"dx": dx} | {name: gradient.copy() for name, gradient in layer.grads.items()})
    assert_same_bits(*results)


@cells
def test_indices_are_one_hot_rows(cell):
    """An integer stands for a row of the identity, in any integer type."""
    problem = Problem(cell, T=4, B=3, I=5, H=9, indices=True)
    layer = problem.layer()
    from_rows, _ = layer(np.eye(5)[problem.x], problem.state)
    for dtype in ("int64", "int32", "uint8"):
        from_indices, _ = layer(problem.x.astype(dtype), problem.state)
        assert_close({"y": from_indices}, {"y": from_rows}, 1e-13)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
def test_empty_batch(cell, bidirectional):
    """No rows in, no rows out, and no gradient."""
    problem = Problem(cell, T=4, B=0, I=5, H=9, L=2, bidirectional=bidirectional)
    layer = problem.layer()
    outputs, tape = problem.forward(layer)
    assert {name: a.shape for name, a in outputs.items()} == {n: d.shape for n, d in problem.doutputs.items()}
    gradients = problem.backward(layer, tape)
    assert gradients["dx"].shape == (4, 0, 5)
    assert all(np.all(gradient == 0) for gradient in gradients.values())


@cells
def test_empty_sequence(cell):
    """T counts from 1."""
    with pytest.raises(ValueError, match="x has shape"):
        Problem(cell, I=5, H=9).layer()(np.zeros((0, 3, 5)))


# --- parameters and gradients -------------------------------------------------------------------------------


@cells
def test_no_stale_results(cell):
    """After every way to change a weight, the next call uses the new one."""
    problem, other = (Problem(cell, T=3, B=2, I=4, H=9, bidirectional=True, seed=seed) for seed in (1, 2))
    layer = problem.layer()
    old, _ = layer(problem.x)
    for name, array in other.params.items():
        y_before, _ = layer(problem.x)
        layer.params[name] = array
        y_after, _ = layer(problem.x)
        assert not same(y_before, y_after), name
    assert same(layer(problem.x)[0], other.layer()(problem.x)[0])
    layer.load_state_dict(problem.params)
    assert same(layer(problem.x)[0], old)
    for gradient in layer.grads.values():
        gradient[...] = 1
    fr.SGD(layer, lr=0.1).step()
    assert not same(layer(problem.x)[0], old)
    layer.load_state_dict(problem.params)
    assert same(layer(problem.x)[0], old)


def test_sequential_shares_its_layers():
    """A change made to a layer shows in the model and the other way round; names are PyTorch's."""
    lstm, linear = fr.LSTM(4, 5, num_layers=2, seed=1), fr.Linear(5, 3, seed=2)
    model = fr.Sequential(lstm, linear)
    assert list(model.params) == [f"0.{name}" for name in lstm.params] + ["1.weight", "1.bias"]
    x = np.ones((2, 3, 4), "float32")
    before, _ = model(x)
    linear.params["bias"] = np.ones(3)
    assert not same(model(x)[0], before)
    model.params["1.bias"] = np.full(3, 2.0)
    assert np.all(linear.params["bias"] == 2)
    model.grads["0.weight_hh_l1"][...] = 3
    assert np.all(lstm.grads["weight_hh_l1"] == 3)
    fr.SGD(model, lr=1.0).step()
    model.zero_grad()
    assert np.all(lstm.grads["weight_hh_l1"] == 0)
    y, _ = lstm(x)
    assert same(model(x)[0], linear(y))


def test_each_embedding_has_its_own_vectors():
    """A recurrent layer that serves one model after another uses the rows of the one that calls."""
    lstm, ids = fr.LSTM(3, 4, dtype="float64", seed=1), np.array([[0, 1], [2, 1]])
    for seed in range(20):
        embedding = fr.Embedding(3, 3, dtype="float64", seed=seed)
        y, _ = fr.Sequential(embedding, lstm)(ids)
        assert_close({"y": y}, {"y": lstm(embedding(ids))[0]}, 1e-13)
        del embedding  # the next one may take its place in memory, and must not be taken for it


def test_sequential_without_state():
    """Layers without state return y, (y, tape) and dx."""
    model = fr.Sequential(fr.Linear(4, 5, dtype="float64", seed=1), fr.Linear(5, 3, dtype="float64", seed=2))
    first, second = model.params["0.weight"], model.params["1.weight"]
    x, dy = np.random.default_rng(1).standard_normal((2, 3, 4)), np.ones((2, 3, 3))
    y, tape = model.forward(x)
    assert same(y, model(x))
    assert_close({"dx": model.backward(tape, dy)}, {"dx": dy @ second @ first}, 1e-13)


def test_state_dict_is_a_copy():
    """Training on does not change what was saved, and changing what was saved does not train."""
    layer = fr.LSTM(3, 4, seed=1)
    saved = layer.state_dict()
    before = bits_of(layer.params)
    for array in saved.values():
        array[...] = 7
    assert bits_of(layer.params) == before
    layer.load_state_dict(saved)
    for array in saved.values():
        array[...] = 0
    assert all(np.all(array == 7) for array in layer.params.values())


def test_grads_are_views():
    """The array in grads is the one that backward adds to and an optimizer reads."""
    problem = Problem("lstm", T=3, B=2, I=4, H=5)
    layer = problem.layer()
    views = dict(layer.grads)
    problem.backward(layer, problem.forward(layer)[1])
    assert all(np.any(view != 0) for view in views.values())
    assert bits_of(views) == bits_of(layer.grads)


def test_seed():
    """The same seed gives the same weights, another one or none others."""
    made = [bits_of(fr.LSTM(3, 4, num_layers=2, seed=seed).params) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert bits_of(fr.LSTM(3, 4).params) != bits_of(fr.LSTM(3, 4).params)


@cells
def test_flat_parameters_do_not_overlap(cell):
    """Every parameter has memory of its own, for its whole shape."""
    layer = Problem(cell, I=3, H=5, L=3, bidirectional=True).layer()
    for number, name in enumerate(layer.params):
        layer.params[name] = np.full(layer.params[name].shape, number)
    for number, array in enumerate(layer.params.values()):
        assert np.all(array == number)


def test_init_forget_bias():
    """The forget gate's bias, b_ih + b_hh, is the number asked for in every layer and direction; nothing else
    changes.
    """
    layer = fr.LSTM(3, 5, num_layers=2, bidirectional=True, seed=1)
    before = layer.state_dict()
    layer.init_forget_bias(1.0)
    for number in ("0", "0_reverse", "1", "1_reverse"):
        names = [f"bias_ih_l{number}", f"bias_hh_l{number}"]
        total = sum(layer.params[name] for name in names)
        np.testing.assert_allclose(total[5:10], 1.0, rtol=1e-6)
        for name in names:
            assert same(np.delete(layer.params[name], np.s_[5:10]), np.delete(before[name], np.s_[5:10]))
        for name in (f"weight_ih_l{number}", f"weight_hh_l{number}"):
            assert same(layer.params[name], before[name])


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_init_orthogonal(kind):
    """Every H x H block of the recurrent weights is orthogonal; nothing else changes."""
    layer = getattr(fr, kind)(3, 6, num_layers=2, bidirectional=True, dtype="float64", seed=1)
    before = layer.state_dict()
    layer.init_orthogonal()
    for name, array in layer.params.items():
        if not name.startswith("weight_hh"):
            assert same(array, before[name])
            continue
        for block in np.split(array, len(array) // 6):
            np.testing.assert_allclose(block @ block.T, np.eye(6), atol=1e-13)


# --- dropout ------------------------------------------------------------------------------------------------


def test_dropout():
    """Inference: the identity. Training: a share p dropped, the rest times 1/(1-p); backward the same."""
    x = np.ones((50, 40), "float32")
    layer = fr.Dropout(0.25, seed=1)
    assert np.array_equal(layer(x), x)
    y, tape = layer.forward(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / x.size)
    assert same(layer.backward(tape, x), y)
    again, _ = fr.Dropout(0.25, seed=1).forward(x)
    assert same(again, y)
    other, _ = layer.forward(x)
    assert not same(other, y)
    assert np.array_equal(fr.Dropout(0.0).forward(x)[0], x)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_dropout_between_layers(cell, bidirectional):
    """dropout=p: inference without it; training has it between layers and not after the last."""
    problem = Problem(cell, T=4, B=3, I=5, H=9, L=2, bidirectional=bidirectional)
    make, options = getattr(fr, problem.kind), {"bidirectional": bidirectional, "dtype": "float64"}
    plain, dropping = problem.layer(), make(5, 9, num_layers=2, dropout=0.5, seed=1, **options)
    dropping.load_state_dict(problem.params)
    assert same(dropping(problem.x)[0], plain(problem.x)[0])
    y, _, tape = dropping.forward(problem.x)
    assert not same(y, plain(problem.x)[0])
    assert np.all(y != 0)
    dx, _ = dropping.backward(tape, problem.dy)
    assert np.all(np.isfinite(dx))


@cells
def test_no_reference_is_left(cell, monkeypatch):
    """Kernels give back every array that they were passed: compiled code counts references by itself."""
    launch, launched, tickets = threads.launch, [], []

    def counted(run, workers, phases, work, *args):
        if threads.rehearsing():  # it keeps what it is to be compiled for
            launch(run, workers, phases, work, *args)
            return
        arrays = [a for a in args if isinstance(a, np.ndarray)]
        before = [sys.getrefcount(a) for a in arrays]
        launch(run, workers, phases, work, *args)
        launched.append([sys.getrefcount(a) for a in arrays] == before)

    monkeypatch.setattr(threads, "new_tickets", lambda *sizes: tickets.append(new_tickets(*sizes)) or tickets[-1])
    for module in [m for name, m in sys.modules.items() if name.startswith("fastrnn") and hasattr(m, "launch")]:
        monkeypatch.setattr(module, "launch", counted)
    Problem(cell, bidirectional=True).solve()
    assert launched
    assert all(launched)
    assert {sys.getrefcount(t) for t in tickets} == {sys.getrefcount(t) for t in [new_tickets(1, 1)]}
