"""What an error says: the argument's name, the shape expected in letters and numbers, the shape that came.
And after any error the object is as it was.
"""

from contextlib import contextmanager

import numpy as np
import pytest
from helpers import Problem, bits_of

import fastrnn as fr

T, B, I, H, L, V = 5, 3, 8, 11, 2, 6  # noqa: E741 - the glossary's letters


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


@pytest.fixture
def lstm():
    return fr.LSTM(I, H, num_layers=L, seed=1)


@pytest.fixture
def rnn():
    return fr.RNN(I, H, num_layers=L, seed=1)


@contextmanager
def raises(kind, *parts):
    """`pytest.raises`, and the message has all of these parts in it."""
    with pytest.raises(kind) as error:
        yield
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{str(error.value)!r} does not say {missing}"


# --- shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["__call__", "forward"])
@pytest.mark.parametrize("shape", [(T, B, I + 1), (B, I), (T, B, I, 1), (I,), ()])
def test_shape_of_x(lstm, call, shape):
    """x, in inference and in training."""
    with raises(ValueError, "x", "T, B, I", f"I={I}", str(shape)):
        getattr(lstm, call)(zeros(*shape))


def test_shape_of_x_batch_first():
    """The letters stand in the order in which the layer takes the axes."""
    with raises(ValueError, "x", "B, T, I", f"I={I}", str((B, T, I + 1))):
        fr.LSTM(I, H, batch_first=True)(zeros(B, T, I + 1))


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("shape", [(L, B, H + 1), (L + 1, B, H), (L, B + 1, H), (B, H)])
def test_shape_of_state(lstm, rnn, shape, steps):
    """The state of either layer, either half of it; of a small call too, which has compiled code look at it."""
    right, x = zeros(L, B, H), zeros(steps, B, I)
    rnn(x, right)
    lstm(x, (right, right))
    for call in (lambda s: rnn(x, s), lambda s: lstm(x, (s, right)), lambda s: lstm(x, (right, s))):
        with raises(ValueError, "state", "L, B, H", f"L={L}", f"B={B}", f"H={H}", str(shape)):
            call(zeros(*shape))


@pytest.mark.parametrize("shape", [(T, B, H + 1), (T + 1, B, H), (T, B + 1, H), (B, H)])
def test_shape_of_dy(lstm, shape):
    """dy; and the tape is still good after the error."""
    _, _, tape = lstm.forward(zeros(T, B, I))
    with raises(ValueError, "dy", "T, B, H", f"T={T}", f"B={B}", f"H={H}", str(shape)):
        lstm.backward(tape, zeros(*shape))
    lstm.backward(tape, zeros(T, B, H))


def test_shape_of_dstate(lstm):
    """dstate; and the tape is still good after the error."""
    _, _, tape = lstm.forward(zeros(T, B, I))
    with raises(ValueError, "dstate", "L, B, H", f"H={H}", str((L, B, H - 1))):
        lstm.backward(tape, None, (zeros(L, B, H), zeros(L, B, H - 1)))
    lstm.backward(tape, None, (zeros(L, B, H), zeros(L, B, H)))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_shapes_of_two_directions(kind):
    """Twice as many states, y twice as wide; and the tape is still good after the errors."""
    layer = getattr(fr, kind)(I, H, num_layers=L, bidirectional=True, seed=1)
    _, state, tape = layer.forward(zeros(T, B, I))
    pair = isinstance(state, tuple)
    for shape in ((L, B, H), (2 * L, B, 2 * H)):
        wrong = (zeros(*shape), zeros(*shape)) if pair else zeros(*shape)
        with raises(ValueError, "state", "B, H", f"B={B}", f"H={H}", str(shape)):
            layer(zeros(T, B, I), wrong)
        with raises(ValueError, "dstate", "B, H", f"B={B}", f"H={H}", str(shape)):
            layer.backward(tape, zeros(T, B, 2 * H), wrong)
    with raises(ValueError, "dy", "T, B", f"T={T}", f"B={B}", str((T, B, H))):
        layer.backward(tape, zeros(T, B, H))
    layer.backward(tape, zeros(T, B, 2 * H), state)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("call", ["__call__", "forward"])
@pytest.mark.parametrize(
    ("lengths", "error", "parts"),
    [
        ([T] * (B + 1), ValueError, ("B", f"B={B}", str((B + 1,)))),
        ([[T] * B], ValueError, ("B", f"B={B}", str((1, B)))),
        (T, ValueError, ("B", f"B={B}", "()")),
        ([T, 0, -1], ValueError, ("-1", f"T={T}")),
        ([T + 1, 0, 1], ValueError, (str(T + 1), f"T={T}")),
        (np.full(B, 2**40), ValueError, (str(2**40), f"T={T}")),
        ([1.0, 2.0, 3.0], TypeError, ("float64",)),
        (["a"] * B, TypeError, ()),
        ("abc", TypeError, ()),
    ],
)
def test_lengths(kind, call, lengths, error, parts):
    """As many as rows, whole numbers from 0 to T; the layer is good after the error."""
    layer = getattr(fr, kind)(I, H, seed=1)
    before = bits_of(layer.params)
    with raises(error, "lengths", *parts):
        getattr(layer, call)(zeros(T, B, I), None, lengths)
    assert bits_of(layer.params) == before
    layer(zeros(T, B, I), None, [T, 0, 1])


def test_shapes_of_linear():
    """Linear's x and dy."""
    layer = fr.Linear(I, H)
    with raises(ValueError, "x", f"{I}", str((T, B, I + 1))):
        layer(zeros(T, B, I + 1))
    _, tape = layer.forward(zeros(T, B, I))
    with raises(ValueError, "dy", f"{H}", str((T, B, H + 1))):
        layer.backward(tape, zeros(T, B, H + 1))


def test_shapes_of_losses():
    """Targets that do not fit."""
    with raises(ValueError, "targets", str((T, B)), str((T, B + 1))):
        fr.cross_entropy(zeros(T, B, V), zeros(T, B + 1, dtype="int64"))
    with raises(ValueError, "target", str((T, B, V)), str((T, B))):
        fr.mse(zeros(T, B, V), zeros(T, B))


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, V, 10**9])
def test_indices_out_of_range(wrong):
    """An index that stands for no row never reaches a pointer: embedding, one-hot input, targets."""
    ids = np.zeros((T, B), "int64")
    ids[1, 2] = wrong
    for name, call in (
        ("ids", lambda: fr.Embedding(V, 4)(ids)),
        ("ids", lambda: fr.Embedding(V, 4).forward(ids)),
        ("x", lambda: fr.LSTM(V, H)(ids)),
        ("x", lambda: fr.RNN(V, H).forward(ids)),
        ("x", lambda: fr.GRU(V, H)(ids)),
        ("targets", lambda: fr.cross_entropy(zeros(T, B, V), ids)),
    ):
        with raises(ValueError, name, str(wrong), str(V)):
            call()


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (lambda: fr.LSTM(0, H), ValueError, ("input_size", "0")),
        (lambda: fr.LSTM(I, -1), ValueError, ("hidden_size", "-1")),
        (lambda: fr.RNN(I, H, num_layers=0), ValueError, ("num_layers", "0")),
        (lambda: fr.LSTM(I, 1.5), TypeError, ("hidden_size", "float")),
        (lambda: fr.LSTM("8", H), TypeError, ("input_size", "str")),
        (
            lambda: fr.RNN(I, H, nonlinearity="softsign"),
            ValueError,
            ("nonlinearity", "softsign", "tanh", "relu"),
        ),
        (lambda: fr.LSTM(I, H, peephole="round"), ValueError, ("peephole", "round", "diagonal", "full")),
        (lambda: fr.GRU(I, H, reset="never"), ValueError, ("reset", "never", "after", "before")),
        (lambda: fr.GRU(I, -1), ValueError, ("hidden_size", "-1")),
        (lambda: fr.GRU(I, H, dropout=1.5), ValueError, ("dropout", "1.5")),
        (lambda: fr.LSTM(I, H, dropout=1.5), ValueError, ("dropout", "1.5")),
        (lambda: fr.Dropout(-0.1), ValueError, ("p", "-0.1")),
        (lambda: fr.LSTM(I, H, dtype="float16"), TypeError, ("dtype", "float16", "float32", "float64")),
        (lambda: fr.Linear(I, H, dtype="int32"), TypeError, ("dtype", "int32")),
        (lambda: fr.Embedding(0, 3), ValueError, ("num", "0")),
        (lambda: fr.Linear(3, 0), ValueError, ("out_features", "0")),
        (lambda: fr.set_num_threads(0), ValueError, ("0",)),
        (lambda: fr.set_num_threads(1.5), TypeError, ("float",)),
    ],
)
def test_wrong_options(make, error, parts):
    """Options that mean nothing, said when the object is made."""
    with raises(error, *parts):
        make()


@pytest.mark.parametrize(
    ("options", "error", "parts"),
    [
        ({"clip": 0.0}, ValueError, ("clip", "0.0")),
        ({"clip": -1.0}, ValueError, ("clip", "-1.0")),
        ({"clip": float("nan")}, ValueError, ("clip", "nan")),
        ({"clip": "1"}, TypeError, ("clip", "str")),
        ({"activations": ("sigmoid", "tanh")}, ValueError, ("activations",)),
        ({"activations": ("sigmoid", "tanh", "elu")}, ValueError, ("activations", "elu", "hardsigmoid", "softsign")),
        ({"proj_size": -1}, ValueError, ("proj_size", "-1")),
        ({"proj_size": H}, ValueError, ("proj_size", str(H))),
        ({"proj_size": 1.5}, TypeError, ("proj_size", "float")),
    ],
)
def test_wrong_options_of_lstm(options, error, parts):
    """The LSTM's own."""
    with raises(error, *parts):
        fr.LSTM(I, H, **options)


# --- types --------------------------------------------------------------------------------------------------


def test_types_of_x(lstm):
    """A wider float is not narrowed in silence; what has no width to lose is taken."""
    with raises(TypeError, "x", "float64", "float32"):
        lstm(zeros(T, B, I, dtype="float64"))
    for wrong in ("text", None, zeros(T, B, I, dtype="complex64"), np.full((T, B, I), "a"), object()):
        with raises(TypeError, "x"):
            lstm(wrong)
    y, _ = lstm(zeros(T, B, I))
    assert np.array_equal(lstm(zeros(T, B, I).tolist())[0], y)
    assert np.array_equal(lstm(zeros(T, B, I, dtype="float16"))[0], y)


def test_types_of_state(lstm, rnn):
    """An LSTM's state is a pair, an RNN's one array."""
    h = zeros(L, B, H)
    for wrong in (h, (h,), (h, h, h)):
        with raises((TypeError, ValueError), "state", "h, c"):
            lstm(zeros(T, B, I), wrong)
    with raises((TypeError, ValueError), "state"):
        rnn(zeros(T, B, I), (h, h))
    with raises(TypeError, "state", "float64", "float32"):
        rnn(zeros(T, B, I), h.astype("float64"))


def test_types_of_indices_and_tape(lstm):
    """Indices are integers, a tape is a tape."""
    with raises(TypeError, "ids", "float32"):
        fr.Embedding(V, 4)(zeros(T, B))
    with raises(TypeError, "targets", "float32"):
        fr.cross_entropy(zeros(T, B, V), zeros(T, B))
    with raises(TypeError, "tape"):
        lstm.backward(None, zeros(T, B, H))


# --- tapes --------------------------------------------------------------------------------------------------


def test_tape_used_twice(lstm):
    """One forward, one backward: a second one raises and adds nothing."""
    _, _, tape = lstm.forward(zeros(T, B, I))
    lstm.backward(tape, np.ones((T, B, H), "float32"))
    before = bits_of(lstm.grads)
    with raises(ValueError, "tape", "forward"):
        lstm.backward(tape, np.ones((T, B, H), "float32"))
    assert bits_of(lstm.grads) == before


def test_tape_of_another_layer(lstm):
    """A tape belongs to the layer that made it, and stays good."""
    other = fr.LSTM(I, H, num_layers=L, seed=2)
    _, _, tape = lstm.forward(zeros(T, B, I))
    with raises(ValueError, "tape"):
        other.backward(tape, zeros(T, B, H))
    lstm.backward(tape, zeros(T, B, H))


def test_training_output_is_read_only(lstm):
    """The tape refers to y: changing it would change gradients, so it cannot be changed. Inference's can."""
    y, _, _ = lstm.forward(zeros(T, B, I))
    with pytest.raises(ValueError, match="read-only"):
        y[0] = 1
    y, _ = lstm(zeros(T, B, I))
    y[0] = 1


# --- parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_ih_l0"])
def test_params_are_read_only_views(lstm, name):
    """A change that the next call would not see is not possible; assignment is."""
    view = lstm.params[name]
    for change in (lambda: view.__setitem__(0, 1), lambda: view.fill(1), lambda: view.__iadd__(1)):
        with pytest.raises(ValueError, match="read-only"):
            change()
    lstm.params[name] = np.ones(view.shape)
    assert np.all(view == 1)
    assert np.all(lstm.params[name] == 1)


def test_assigning_to_params(lstm):
    """A wrong shape, a wrong type, an unknown name: an error, and the weights as they were."""
    before = bits_of(lstm.params)
    with raises(ValueError, "weight_ih_l0", str((4 * H, I)), str((4 * H, I + 1))):
        lstm.params["weight_ih_l0"] = zeros(4 * H, I + 1)
    with raises(TypeError, "bias_ih_l0"):
        lstm.params["bias_ih_l0"] = np.full(4 * H, "a")
    with raises(KeyError, "weight_ih_l9"):
        lstm.params["weight_ih_l9"] = zeros(4 * H, I)
    with pytest.raises(TypeError):
        del lstm.params["weight_ih_l0"]
    assert bits_of(lstm.params) == before


def spoiled_state_dicts():
    """name -> (how to spoil a state dict, error, what the message says)"""
    return {
        "missing": (lambda d: d.pop("bias_hh_l1"), ValueError, ("bias_hh_l1", "missing")),
        "unknown": (
            lambda d: d.update(weight_peep_l0=zeros(3, H)),
            ValueError,
            ("weight_peep_l0", "unknown"),
        ),
        "shape": (
            lambda d: d.update(bias_hh_l1=zeros(H)),
            ValueError,
            ("bias_hh_l1", str((4 * H,)), str((H,))),
        ),
        "type": (lambda d: d.update(bias_hh_l1=np.full(4 * H, "a")), TypeError, ("bias_hh_l1",)),
    }


@pytest.mark.parametrize("case", spoiled_state_dicts())
@pytest.mark.parametrize("wrapped", [False, True], ids=["layer", "sequential"])
def test_load_state_dict_is_all_or_nothing(lstm, case, wrapped):
    """A dict that does not fit, only in its last entry, changes nothing."""
    spoil, kind, parts = spoiled_state_dicts()[case]
    model = fr.Sequential(fr.Linear(I, I, seed=3), lstm) if wrapped else lstm
    before = bits_of(model.params)
    new = {name: np.ones(array.shape) for name, array in lstm.state_dict().items()}
    spoil(new)
    if wrapped:
        new = {"0.weight": np.ones((I, I)), "0.bias": np.ones(I)} | {f"1.{name}": a for name, a in new.items()}
    with raises(kind, *parts):
        model.load_state_dict(new)
    assert bits_of(model.params) == before


def test_optimizer_state_that_does_not_fit():
    """Another model's, or another optimizer's, state is refused and changes nothing."""
    model, other = fr.Linear(3, 4, seed=1), fr.Linear(5, 6, seed=1)
    adam = fr.Adam(model)
    for gradient in model.grads.values():
        gradient[...] = 1
    adam.step()
    before = bits_of(adam.state_dict())
    for wrong in (fr.Adam(other).state_dict(), fr.SGD(model, lr=0.1, momentum=0.9).state_dict(), {}):
        with raises(ValueError, "state"):
            adam.load_state_dict(wrong)
        assert bits_of(adam.state_dict()) == before


# --- after an error -----------------------------------------------------------------------------------------


def test_everything_as_it_was():
    """After every kind of wrong call: the same weights, the same gradients, the same results."""
    problem = Problem("lstm_peephole", T=4, B=3, I=5, H=9, L=2)
    layer = problem.layer()
    _, tape = problem.forward(layer)
    gradients = problem.backward(layer, tape)
    before = bits_of(layer.params) | {f"d{name}": bits for name, bits in bits_of(layer.grads).items()}
    _, tape = problem.forward(layer)
    for wrong in (
        lambda: layer(problem.x[..., 1:], problem.state),
        lambda: layer.forward(problem.x, problem.state[0]),
        lambda: layer.backward(tape, problem.dy[1:], problem.dstate),
        lambda: layer.backward(tape, problem.dy, problem.dstate[:1]),
        lambda: layer.load_state_dict({}),
        lambda: layer.forward(problem.x, problem.state, [4, 4, 5]),
        lambda: layer(problem.x, problem.state, [4, 4, -1]),
    ):
        with pytest.raises((ValueError, TypeError)):
            wrong()
    assert bits_of(layer.params) | {f"d{name}": bits for name, bits in bits_of(layer.grads).items()} == before
    layer.zero_grad()
    assert bits_of(problem.backward(layer, tape)) == bits_of(gradients)
