"""Layer normalisation in the LSTM and the GRU: the published formulae, every gradient, one result, and its digits."""

import numpy as np
import pytest
import reference
import test_numbers as numbers
from helpers import JIT, Problem, assert_close, assert_same_bits, large, mixed_lengths, those
from test_errors import raises
from test_gradients import BACKWARD, BACKWARD_32, FORWARD, FORWARD_32
from test_regularisers import Masked
from test_segments import assert_one_result, expected_numbers, held, solve

import fastrnn as fr

SIZE = {"T": 5, "B": 4, "I": 7, "H": 19}
# Each type of number compiles kernels of its own: what is not here is compiled in the long form.
DTYPES = {"lstm_norm": "float32", "lstm_norm_more": "float64", "gru_norm": "float64"}
SELDOM = [("lstm_norm", "float64"), ("gru_norm", "float32")]
kinds = pytest.mark.parametrize(
    ("cell", "dtype"),
    [
        *(pytest.param(*kind, marks=pytest.mark.long if JIT and "more" in kind[0] else ()) for kind in DTYPES.items()),
        *(pytest.param(*kind, marks=pytest.mark.long) for kind in SELDOM),
    ],
)
cells_in_float64 = pytest.mark.parametrize("cell", those(["lstm_norm_more", "gru_norm"], ["gru_norm"]))


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """Whatever there is to do is shared: of each kernel only the text that gives the GIL away is compiled."""
    monkeypatch.setattr("fastrnn.threads.SMALL", 0)


# --- the published formulae ---------------------------------------------------------------------------------


def normalised(a, gain, bias, epsilon):
    """One row, number by number."""
    n = len(a)
    mean = sum(a) / n
    variance = sum((number - mean) ** 2 for number in a) / n
    return [gain[k] * (a[k] - mean) / np.sqrt(variance + epsilon) + bias[k] for k in range(n)]


def product(weight, a):
    """One row times a matrix's rows."""
    return [sum(w * number for w, number in zip(row, a, strict=True)) for row in weight]


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def lstm_step(params, x, h, c, epsilon):
    """h, c and c's normalisation of one row (Ba, Kiros and Hinton 2016, equations 20 to 22; haste's LayerNormLSTM)."""
    H = len(h)
    nothing = np.zeros(4 * H)
    from_x = normalised(product(params["weight_ih_l0"], x), params["weight_ln_ih_l0"], nothing, epsilon)
    from_h = normalised(product(params["weight_hh_l0"], h), params["weight_ln_hh_l0"], nothing, epsilon)
    z = [from_x[k] + from_h[k] + params["bias_ih_l0"][k] + params["bias_hh_l0"][k] for k in range(4 * H)]
    i, f, g, o = z[:H], z[H : 2 * H], z[2 * H : 3 * H], z[3 * H :]
    c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * np.tanh(g[k]) for k in range(H)]
    seen = normalised(c, params["weight_ln_c_l0"], params["bias_ln_c_l0"], epsilon)
    return [sigmoid(o[k]) * np.tanh(seen[k]) for k in range(H)], c


def gru_step(params, x, h, epsilon):
    """h of one row (haste's LayerNormGRU)."""
    H = len(h)
    u = normalised(product(params["weight_ih_l0"], x), params["weight_ln_ih_l0"], params["bias_ih_l0"], epsilon)
    w = normalised(product(params["weight_hh_l0"], h), params["weight_ln_hh_l0"], params["bias_hh_l0"], epsilon)
    new = []
    for k in range(H):
        r, z = sigmoid(u[k] + w[k]), sigmoid(u[H + k] + w[H + k])
        n = np.tanh(u[2 * H + k] + r * w[2 * H + k])
        new.append(z * h[k] + (1 - z) * n)
    return (new,)


@pytest.mark.parametrize("cell", ["lstm_norm", "gru_norm"])
def test_published_formulae(cell):
    """Number by number, of one sequence; and the reference, which the gradients below are held to."""
    epsilon = 1e-3
    dtype = DTYPES[cell]
    problem = Problem(cell, T=3, B=1, I=4, H=9, dtype=dtype, more=(("layer_norm_eps", epsilon),))
    state = [problem.inputs[f"{name}0"][0, 0] for name in problem.states]
    step, y = {"LSTM": lstm_step, "GRU": gru_step}[problem.kind], []
    for x in problem.inputs["x"][:, 0]:
        state = step(problem.params, x, *state, epsilon)
        y.append(state[0])
    expected = {"y": np.array(y)[:, None]}
    expected |= {name: np.array(s)[None, None] for name, s in zip(problem.states, state, strict=True)}
    assert_close(problem.outputs(), expected, 1e-14)
    assert_close(problem.infer(problem.layer()), expected, FORWARD if dtype == "float64" else FORWARD_32)


# --- by value -----------------------------------------------------------------------------------------------


VARIANTS = {
    "two layers": {"L": 2, "bias": False},
    "both ways, lengths": {"bidirectional": True, "lengths": mixed_lengths(SIZE["T"], SIZE["B"])},
    "indices": {"indices": True},
    "one unit more than a block": {"H": 33, "I": 2, "T": 2, "has_state": False},
}


@kinds
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_gradient(cell, dtype, variant):
    """Outputs, and every gradient by complex step."""
    problem = Problem(cell, **{**SIZE, **variant}, dtype=dtype)
    outputs, gradients = problem.solve()
    double = dtype == "float64"
    assert_close(outputs, problem.outputs(), FORWARD if double else FORWARD_32)
    assert_close(gradients, problem.gradients, BACKWARD if double else BACKWARD_32, share=0 if double else 0.01)


@cells_in_float64
def test_every_gradient_large(cell):
    """Several blocks and workers: the gradient along a random direction of each array."""
    problem = Problem(cell, **large(cell), has_dy=True)
    _, gradients = problem.solve()
    directions = {name: problem.random(f"along {name}", *a.shape, scale=1.0) for name, a in problem.inputs.items()}
    expected = reference.along(problem.loss, problem.inputs, directions)
    for name, direction in directions.items():
        gradient = gradients[f"d{name}"]
        assert abs((gradient * direction).sum() - expected[name]) <= BACKWARD * np.linalg.norm(gradient), name


@cells_in_float64
@pytest.mark.parametrize("words", [False, True], ids=["both ways summed", "indices"])
def test_every_gradient_with_others(cell, words):
    """Dropped inputs, of indices whole words; both directions summed."""
    if words:
        problem = Masked(cell, **SIZE, indices=True, regularisers=(("input_dropout", 0.3),))
    else:
        size = SIZE | {"T": 3, "H": 9, "L": 2, "bidirectional": True}
        problem = Masked(cell, **size, more=(("merge", "sum"),), regularisers=(("input_dropout", 0.3),))
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


def test_embedding():
    """An embedding's rows are normalised once each; it gives what its vectors give, and the same gradients."""
    problem = Problem("gru_norm", T=6, B=5, I=7, H=19)
    layer, other = problem.layer(), problem.layer()
    model = fr.Sequential(fr.Embedding(4, 7, dtype="float64", seed=1), layer)
    ids = problem.rng("ids").integers(0, 4, (6, 5))
    y, _, tape = model.forward(ids)
    model.backward(tape, problem.dy)
    expected, _, tape = other.forward(model.params["0.weight"][ids])
    dx, _ = other.backward(tape, problem.dy)
    dweight = np.zeros((4, 7))
    np.add.at(dweight, ids, dx)
    assert_close({"y": y, "weight": model.grads["0.weight"]}, {"y": expected, "weight": dweight}, FORWARD)
    assert_close({n: model.grads[f"1.{n}"] for n in other.grads}, dict(other.grads), BACKWARD)


def test_intermediates():
    """c is the state: what it is before its normalisation."""
    problem = Problem("lstm_norm", **SIZE, dtype="float32")
    layer, seen = problem.layer(), {}
    _, tape = problem.forward(layer)
    arrays = problem.inputs
    reference.lstm(problem.params, arrays["x"], arrays["h0"], arrays["c0"], seen=seen, **problem.options)
    assert_close(layer.intermediates(tape), reference.over_steps(seen, problem.params, problem.T), 2e-5)


# --- one result ---------------------------------------------------------------------------------------------


PROMISES = [
    numbers.test_inference_is_training,
    numbers.test_row_alone,
    numbers.test_rows_moved,
    numbers.test_batch_first,
    lambda problem: numbers.test_chunks(problem, (1, 3)),
    numbers.test_row_cut_to_its_length,
    numbers.test_lengths_that_cut_nothing,
    numbers.test_nan_stays_in_its_row_both_ways_and_with_lengths,
]


@pytest.mark.parametrize("cell", ["lstm_norm", "gru_norm"])
@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__.strip("<>"))
def test_promises(cell, promise):
    """Rows alone and among others, chunks, lengths, NaN: what test_numbers.py asks of every cell."""
    size = large(cell)
    promise(Problem(cell, **size, dtype=DTYPES[cell], lengths=mixed_lengths(size["T"], size["B"])))


@pytest.mark.skipif(not JIT, reason="without JIT one thread does all the work")
@kinds
def test_threads(cell, dtype, set_num_threads):
    """By rows and by panels, with more threads than rows or panels too."""
    for T, B, I, H in ((1, 2, 3, 4), (5, 7, 9, 33), (4, 2, 9, 70)):  # noqa: E741
        problem = Problem(cell, T=T, B=B, I=I, H=H, L=2, dtype=dtype)
        numbers.test_threads(problem, set_num_threads)
    size = large(cell)
    numbers.test_threads(Problem(cell, **size, dtype=dtype, bidirectional=True, indices=True), set_num_threads)


@pytest.mark.parametrize("cell", ["lstm_norm", "gru_norm"])
def test_infinity(cell):
    """The mean of numbers one of which is infinite is no number; the other rows do not see it."""
    numbers.test_infinity(cell, DTYPES[cell], np.inf)


@pytest.mark.parametrize("cell", ["lstm_norm", "gru_norm"])
def test_stream(cell):
    """Step by step: the same bits."""
    layer = Problem(cell, **SIZE, dtype=DTYPES[cell]).layer()
    x = np.random.default_rng(0).standard_normal((5, 1, SIZE["I"])).astype(DTYPES[cell])
    stream = layer.stream()
    steps = np.stack([stream.push(step[0]) for step in x])
    assert_close({"y": steps}, {"y": layer(x)[0][:, 0]}, 0 if JIT else 1e-6)


# --- segments -----------------------------------------------------------------------------------------------

CUT = SIZE if JIT else {"T": 3, "B": 3, "I": 2, "H": 9}


@kinds
@pytest.mark.parametrize("cut", [False, True], ids=["uniform", "lengths"])
@pytest.mark.parametrize("indices", [False, True], ids=["float", "indices"])
def test_segments(cell, dtype, cut, indices):
    """A forward that is run again gives the same bits: outputs, states and every gradient."""
    problem = Problem(cell, **CUT, L=2, bidirectional=True, dtype=dtype if JIT else "float64", indices=indices)
    problem = problem.but(lengths=mixed_lengths(problem.T, problem.B) if cut else None)
    expected = solve(problem, None)
    for segments in (1, 2, 3, problem.T) if JIT else (2, problem.T):
        assert_one_result(solve(problem, segments), expected)


def test_segments_over_many_rows_and_threads(set_num_threads):
    """More rows than a step's working memory holds, by several workers; by rows and by panels."""
    size = {"T": 5, "B": 140, "I": 5, "H": 70} if JIT else {"T": 3, "B": 4, "I": 3, "H": 9}
    for cell in ("lstm_norm", "gru_norm"):
        problem = Problem(cell, **size, dtype=DTYPES[cell] if JIT else "float64")
        set_num_threads(1)
        expected = solve(problem, None)
        for threads in (1, 2, 3):
            set_num_threads(threads)
            assert_one_result(solve(problem, 2), expected)


@pytest.mark.parametrize("cell", those(DTYPES, ["lstm_norm", "gru_norm"]))
@pytest.mark.parametrize("cut", [False, True], ids=["uniform", "lengths"])
def test_what_a_tape_keeps(cell, cut):
    """The arrays that it refers to, to the byte: the formula at the top of recurrent.py."""
    problem = Problem(cell, **CUT, L=2, bidirectional=True, dtype=DTYPES[cell] if JIT else "float64")
    problem = problem.but(lengths=mixed_lengths(problem.T, problem.B) if cut else None)
    layer = problem.layer()
    for segments in (None, 1, 3, problem.T):
        tape = layer.forward(problem.x, None, problem.lengths, segments)[2]
        assert sum(held(tape).values()) == expected_numbers(problem, segments) * np.dtype(problem.dtype).itemsize


@pytest.mark.parametrize("cell", ["lstm_norm", "gru_norm"])
def test_nobody_there(cell):
    """No rows; rows of no length, among others and alone."""
    for changes in ({"B": 0}, {"lengths": (0,) * CUT["B"]}, {"lengths": (0,) * (CUT["B"] - 1) + (1,)}):
        problem = Problem(cell, **(CUT | changes), L=2, bidirectional=True, dtype=DTYPES[cell] if JIT else "float64")
        expected = solve(problem, None)
        for segments in (1, 2, problem.T):
            assert_one_result(solve(problem, segments), expected)


# --- digits -------------------------------------------------------------------------------------------------


@kinds
def test_large_common_offset(cell, dtype):
    """An offset common to all that is normalised changes nothing but its rounding: no digits are lost to its square."""
    offset, tolerance = (1e3, 5e-3) if dtype == "float32" else (1e6, 1e-7)
    problem = Problem(cell, **SIZE, dtype=dtype)
    layer = problem.layer()
    x = np.ones_like(problem.x) * np.random.default_rng(1).uniform(1, 2, problem.x.shape).astype(dtype)
    y, _ = layer(x, problem.state)
    raw = layer.params["weight_ih_l0"] @ x[0, 0]
    for name in ("weight_ih_l0", "weight_hh_l0"):
        layer.params[name] = layer.params[name] + offset
    moved, _ = layer(x, problem.state)
    assert_close({"y": moved}, {"y": y}, tolerance)
    # The test of the test: the mean of the squares less the square of the mean has lost them.
    raw, at = raw.astype(dtype), (raw + offset * x[0, 0].sum()).astype(dtype)
    assert abs((at * at).mean() - at.mean() ** 2 - raw.var()) > 100 * tolerance * raw.var()


def test_large_common_offset_of_c():
    """Likewise of c, where every gate remembers all."""
    layer = Problem("lstm_norm", **SIZE, dtype="float32", has_state=False).layer()
    bias = layer.params["bias_ih_l0"].copy()
    bias[SIZE["H"] : 2 * SIZE["H"]] = 100
    layer.params["bias_ih_l0"] = bias
    x = np.random.default_rng(1).standard_normal((5, 4, 7)).astype("float32")
    h = c = np.zeros((1, 4, SIZE["H"]), "float32")
    y, _ = layer(x, (h, c))
    moved, (_, end) = layer(x, (h, c + 1000))
    assert np.all(np.abs(end - 1000) < 10)
    assert_close({"y": moved}, {"y": y}, 5e-3)


# --- arguments ----------------------------------------------------------------------------------------------


def test_names_and_first_values():
    """Gains of 1 and a bias of 0, and all the rest as without normalisation."""
    for kind, rows in (("LSTM", 4), ("GRU", 3)):
        make = getattr(fr, kind)
        plain, layer = (make(3, 5, num_layers=2, seed=1, layer_norm=on) for on in (False, True))
        more = {name: layer.params[name] for name in layer.params if name not in plain.params}
        own = ["weight_ln_ih", "weight_ln_hh"] + ["weight_ln_c", "bias_ln_c"] * (kind == "LSTM")
        assert set(more) == {f"{name}_l{k}" for name in own for k in range(2)}
        for name, a in more.items():
            assert a.shape == ((5,) if "_c_" in name else (5 * rows,))
            assert np.all(a == name.startswith("weight"))
        assert_same_bits({name: layer.params[name] for name in plain.params}, dict(plain.params))


def test_forget_bias_leaves_the_others():
    """Only b has a forget gate's rows."""
    layer = fr.LSTM(3, 5, layer_norm=True)
    layer.params["bias_ln_c_l0"] = np.arange(5.0)
    layer.init_forget_bias(2.0)
    assert layer.params["bias_ln_c_l0"].tolist() == [0, 1, 2, 3, 4]
    assert np.all(layer.params["bias_ih_l0"][5:10] == 2)


def test_errors():
    """What does not go together, and what epsilon may be."""
    with raises(ValueError, "layer_norm", "peephole='full'", "'diagonal'"):
        fr.LSTM(3, 5, peephole="full", layer_norm=True)
    with raises(ValueError, "layer_norm", "reset='before'", "reset='after'"):
        fr.GRU(3, 5, reset="before", layer_norm=True)
    for make in (fr.LSTM, fr.GRU):
        with raises(ValueError, "layer_norm", "recurrent_dropout=0.3", "expected recurrent_dropout=0"):
            make(3, 5, layer_norm=True, recurrent_dropout=0.3)
        with raises(ValueError, "layer_norm", "zoneout=", "0.2", "expected zoneout=0"):
            make(3, 5, layer_norm=True, zoneout=0.2)
        for wrong in (0, -1e-5, np.inf, np.nan, 1e-60):
            with raises(ValueError, "layer_norm_eps", str(wrong), "> 0"):
                make(3, 5, layer_norm=True, layer_norm_eps=wrong)
        for wrong in ("1e-5", None, True):
            with raises(TypeError, "layer_norm_eps", type(wrong).__name__):
                make(3, 5, layer_norm=True, layer_norm_eps=wrong)
