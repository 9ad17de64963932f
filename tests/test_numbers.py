"""One result: the same bits for any number of threads, any company in the batch, any cut of the sequence, any
vector width. And what is not a number passes through, in its own row.
"""

import hashlib
import json
from functools import partial

import numpy as np
import pytest
from helpers import (
    ALL_CELLS,
    CELLS,
    IN_FLOAT32,
    JIT,
    NARROW,
    Problem,
    assert_close,
    assert_same_bits,
    held_form,
    is_wide,
    large,
    mixed_lengths,
    run_python,
    seldom,
)

import fastrnn as fr
from fastrnn._jit import kernel
from fastrnn.layers import products, recurrent

# Tiny, with tails everywhere; middling, some panels of every width; large, worth more than one core.
TINY = {"T": 3, "B": 2, "I": 1, "H": 5}
MIDDLE = {"T": 7, "B": 5, "I": 13, "H": 35} if JIT else {"T": 3, "B": 5, "I": 2, "H": 9}

# name -> problem. Those of one direction and one length can also be cut into chunks.
PROBLEMS, VARIANTS = {}, {}
for _cell in ALL_CELLS:
    for _dtype in ("float32", "float64"):
        PROBLEMS[f"{_cell}-{_dtype}-tiny"] = Problem(_cell, **TINY, L=2, dtype=_dtype)
        PROBLEMS[f"{_cell}-{_dtype}-middle"] = Problem(_cell, **MIDDLE, L=3, dtype=_dtype, bias=_dtype == "float32")
        PROBLEMS[f"{_cell}-{_dtype}-large"] = Problem(_cell, **large(_cell), dtype=_dtype)
    _dtype = "float32" if _cell in IN_FLOAT32 else "float64"
    PROBLEMS[f"{_cell}-indices"] = Problem(_cell, **large(_cell), L=2, indices=True, dtype=_dtype)

    VARIANTS[f"{_cell}-bidirectional"] = Problem(_cell, **MIDDLE, L=3, bidirectional=True, indices=True)
    _lengths = {"lengths": mixed_lengths(large(_cell)["T"], large(_cell)["B"]), "dtype": _dtype}
    VARIANTS[f"{_cell}-lengths"] = Problem(_cell, **large(_cell), **_lengths)
    VARIANTS[f"{_cell}-both"] = Problem(_cell, **large(_cell), L=2, bidirectional=True, **_lengths)


def every(problems):
    """A test of each of them."""
    return pytest.mark.parametrize(
        "problem", [pytest.param(p, id=name, marks=seldom(p.cell, p.dtype)) for name, p in problems.items()]
    )


cells_and_types = pytest.mark.parametrize(
    ("cell", "dtype"),
    [pytest.param(cell, dtype, marks=seldom(cell, dtype)) for cell in CELLS for dtype in ("float32", "float64")],
)
every_problem = every(PROBLEMS | VARIANTS)
one_way = every(PROBLEMS)


def by_row(results, rows):
    """The outputs, dx, dh0 and dc0 of these rows of the batch: what is promised row by row."""
    kept = {name: a for name, a in results.items() if name in ("y", "h", "c", "dx", "dh0", "dc0")}
    return {name: np.ascontiguousarray(a[:, rows]) for name, a in kept.items()}


def only(problem, rows, steps=slice(None)):
    """What goes in for these rows of the batch and these steps alone, in time-major pieces."""
    of_rows = {name: problem.unpack(state) for name, state in (("state", problem.state), ("dstate", problem.dstate))}
    packed = {
        name: problem.pack({part: np.ascontiguousarray(a[:, rows]) for part, a in parts.items()})
        for name, parts in of_rows.items()
    }
    lengths = None if problem.lengths is None else np.array(problem.lengths)[rows]
    return problem.x[steps, rows], packed["state"], problem.dy[steps, rows], packed["dstate"], lengths


def run(problem, layer, x, state, dy, dstate, lengths=None):
    """Outputs and gradients by row of one training pass."""
    y, final, tape = layer.forward(x, state, lengths)
    dx, dstart = layer.backward(tape, dy, dstate)
    results = {"y": y} | problem.unpack(final) | {f"d{n}0": d for n, d in problem.unpack(dstart).items()}
    return results if dx is None else results | {"dx": dx}


def whole(problem):
    """Everything one training pass gives: outputs, dx, dh0, dc0 and the gradients of the weights."""
    outputs, gradients = problem.solve()
    return outputs | gradients


def assert_one_result(actual, expected):
    """The same bits; without JIT, where the order of a sum is NumPy's choice, the same to rounding."""
    if JIT:
        assert_same_bits(actual, expected)
    else:
        assert_close(actual, expected, 1e-5)


# --- threads ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not JIT, reason="without JIT one thread does all the work")
@every_problem
def test_threads(problem, set_num_threads):
    """1, 2 or 3 threads, if need be more than processors: outputs, states, dx and weight gradients."""
    results = {}
    for threads in (1, 2, 3):
        set_num_threads(threads)
        results[threads] = whole(problem) | {f"inferred {n}": a for n, a in problem.infer(problem.layer()).items()}
    assert_same_bits(results[2], results[1])
    assert_same_bits(results[3], results[1])


@pytest.mark.skipif(not JIT, reason="without JIT one thread does all the work")
@cells_and_types
def test_threads_where_one_would_do(cell, dtype, set_num_threads, monkeypatch):
    """The same where the work is too small to be shared, but is: more threads than rows or panels."""
    problems = [
        Problem(cell, T=T, B=B, I=I, H=H, L=2, dtype=dtype)
        for T, B, I, H in ((1, 2, 3, 4), (5, 7, 9, 33))  # noqa: E741
    ]
    set_num_threads(1)
    alone = [whole(problem) for problem in problems]
    monkeypatch.setattr("fastrnn.threads.SMALL", 0)
    for threads in (2, 3):
        set_num_threads(threads)
        for problem, expected in zip(problems, alone, strict=True):
            assert_same_bits(whole(problem), expected)


@pytest.mark.skipif(not JIT, reason="without JIT there is one form")
@pytest.mark.parametrize(
    "cell", [pytest.param(cell, marks=() if cell == "lstm_peephole" else pytest.mark.long) for cell in ALL_CELLS]
)
def test_forms(cell, monkeypatch):
    """The form of a kernel that keeps the GIL, which helpers.py replaces by the other, gives the same bits."""
    problem, ran = Problem(cell, **TINY, L=2, dtype="float32"), []

    def held(run):
        ran.append(run.__name__)
        return held_form(run)

    expected = whole(problem)
    monkeypatch.setattr(kernel, "held", property(held))
    assert_same_bits(whole(problem), expected)
    kind = problem.kind.lower()
    assert {f"{kind}_forward", f"{kind}_backward", "gradient", "product"} <= set(ran)


@every_problem
def test_inference_is_training(problem):
    """A pass that keeps nothing gives the outputs of one that keeps a tape."""
    layer = problem.layer()
    assert_same_bits(problem.infer(layer), problem.forward(layer)[0])


# --- the batch ----------------------------------------------------------------------------------------------


@every_problem
def test_row_alone(problem):
    """A row by itself, or with one neighbour, gives what it gives among all."""
    layer = problem.layer()
    together = whole(problem)
    for rows in ([0], [problem.B - 1], [problem.B - 1, 0]):
        assert_one_result(run(problem, layer, *only(problem, rows)), by_row(together, rows))


IN_GROUPS = {
    "rnn": fr.RNN,
    "lstm": fr.LSTM,
    "lstm, two layers": partial(fr.LSTM, num_layers=2, peephole="diagonal"),
    "lstm, coupled": partial(fr.LSTM, coupled=True),
    "lstm, float64": partial(fr.LSTM, dtype="float64"),
    "gru": fr.GRU,
}


@pytest.mark.parametrize("H", [48, 75, 224])
@pytest.mark.parametrize("kind", IN_GROUPS)
def test_row_alone_in_groups(kind, H):
    """The same where panels are in groups of two to four, and with as many rows as working memory holds and more."""
    layer = IN_GROUPS[kind](20, H, seed=1)
    x = np.random.default_rng(0).standard_normal((2, 140 if JIT else 9, 20)).astype(layer.dtype)
    y = layer(x)[0]
    for rows in ([0], [3, 8]):
        assert_same_bits({"y": layer(np.ascontiguousarray(x[:, rows]))[0]}, {"y": y[:, rows]})


@every_problem
def test_rows_moved(problem):
    """A permutation of the batch permutes the results."""
    order = np.random.default_rng(1).permutation(problem.B)
    moved = run(problem, problem.layer(), *only(problem, order))
    assert_one_result(moved, by_row(whole(problem), order))


@every_problem
def test_batch_first(problem):
    """The order of the axes is the caller's taste and touches no number."""
    assert_same_bits(whole(problem.but(batch_first=True)), whole(problem))


# --- time ---------------------------------------------------------------------------------------------------


def in_chunks(problem, ends):
    """The results by row when the sequence is cut at these ends: states go forward, their gradients back."""
    layer = problem.layer()
    cuts = list(zip((0, *ends[:-1]), ends, strict=True))
    _, state, _, dstate, lengths = only(problem, slice(None))
    ys, tapes, dxs = [], [], []
    for start, end in cuts:
        left = None if lengths is None else np.clip(lengths - start, 0, end - start)
        y, state, tape = layer.forward(problem.x[start:end], state, left)
        ys.append(y)
        tapes.append(tape)
    for (start, end), tape in zip(reversed(cuts), reversed(tapes), strict=True):
        dx, dstate = layer.backward(tape, problem.dy[start:end], dstate)
        dxs.insert(0, dx)
    outputs = {"y": np.concatenate(ys)} | problem.unpack(state)
    gradients = {f"d{name}0": d for name, d in problem.unpack(dstate).items()}
    return outputs, gradients if problem.indices else gradients | {"dx": np.concatenate(dxs)}


@every(PROBLEMS | {name: problem for name, problem in VARIANTS.items() if not problem.bidirectional})
@pytest.mark.parametrize("ends", [(1,), (-1,), (1, 3), range(1, 20)], ids=["1 rest", "rest 1", "1 2 rest", "steps"])
def test_chunks(problem, ends):
    """At once, in chunks, step by step: outputs, states, dx and the gradient of the initial state. With lengths
    a row may end in an earlier chunk, and has nothing in the later ones.
    """
    T = problem.T
    ends = [*sorted({end % T for end in ends if end < T}), T]
    expected = by_row(whole(problem), slice(None))
    outputs, gradients = in_chunks(problem, [end for end in ends if end > 0])
    assert_one_result(outputs, {name: expected[name] for name in outputs})
    assert_one_result(gradients, {name: expected[name] for name in gradients})


@one_way
def test_inference_in_steps(problem):
    """Streaming: one call per step gives the sequence's outputs."""
    layer = problem.layer()
    ys, state = [], problem.state
    for t in range(problem.T):
        y, state = layer(problem.x[t : t + 1], state)
        ys.append(y)
    assert_one_result({"y": np.concatenate(ys)} | problem.unpack(state), problem.infer(layer))


# --- lengths ------------------------------------------------------------------------------------------------


@every({name: problem for name, problem in VARIANTS.items() if problem.lengths is not None})
def test_row_cut_to_its_length(problem):
    """A row among longer and shorter ones gives what it gives alone, without its padding and without lengths."""
    layer, together = problem.layer(), whole(problem)
    for row, length in enumerate(problem.lengths):
        among = by_row(together, [row])
        if length:
            *pieces, _ = only(problem, [row], slice(length))
            cut = {name: a[:length] if name in ("y", "dx") else a for name, a in among.items()}
            assert_one_result(run(problem, layer, *pieces), cut)
        else:
            _, state, _, dstate, _ = only(problem, [row])
            same = problem.unpack(state) | {f"d{name}0": d for name, d in problem.unpack(dstate).items()}
            assert_same_bits({name: among[name] for name in same}, same)
        for name in ("y", "dx"):
            assert np.all(among[name][length:] == 0)


@every({name: problem for name, problem in VARIANTS.items() if not problem.indices})
def test_lengths_that_cut_nothing(problem):
    """Every row as long as the sequence: the bits of no lengths at all."""
    plain = problem.but(lengths=None)
    cut = problem.but(lengths=(problem.T,) * problem.B)
    assert_one_result(by_row(whole(cut), slice(None)), by_row(whole(plain), slice(None)))
    assert_one_result(cut.infer(cut.layer()), plain.infer(plain.layer()))


# --- two directions -----------------------------------------------------------------------------------------


@every({name: problem.but(L=1) for name, problem in VARIANTS.items() if problem.bidirectional})
def test_each_direction_alone(problem):
    """A layer of two directions is two layers, the second of which reads every row from its own end."""
    together, width = whole(problem), problem.O
    lengths = [problem.T] * problem.B if problem.lengths is None else problem.lengths
    for number, end in enumerate(("", "_reverse")):
        single = problem.but(bidirectional=False)
        params = {name: problem.params[f"{name}{end}"] for name in single.params}
        single.__dict__["params"] = params  # its other arrays are the larger problem's, cut
        layer = single.layer()
        for row in {0, problem.B // 2, problem.B - 1}:
            length = lengths[row]
            if not length:
                continue
            turn = slice(None, None, -1 if number else 1)
            x, state, dy, dstate, _ = only(problem, [row], slice(length))
            state, dstate = (
                problem.pack({n: np.ascontiguousarray(a[number, None]) for n, a in problem.unpack(s).items()})
                for s in (state, dstate)
            )
            dy = dy[turn, :, number * width : (number + 1) * width]
            found = run(problem, layer, x[turn], state, np.ascontiguousarray(dy), dstate)
            found.pop("dx", None)  # the two directions' are added
            found["y"] = np.ascontiguousarray(found["y"][turn])
            among = by_row(together, [row])
            expected = {n: np.ascontiguousarray(among[n][number, None]) for n in found if n != "y"}
            expected["y"] = np.ascontiguousarray(among["y"][:length, :, number * width : (number + 1) * width])
            assert_one_result(found, expected)


# --- a whole model ------------------------------------------------------------------------------------------


def model_and_ids():
    """Embedding, two LSTM layers and Linear, with indices to run it on."""
    size = {"T": 20, "B": 13, "H": 100} if JIT else {"T": 3, "B": 4, "H": 9}
    model = fr.Sequential(
        fr.Embedding(61, 24, seed=1),
        fr.LSTM(24, size["H"], num_layers=2, seed=2),
        fr.Linear(size["H"], 61, seed=3),
    )
    return model, np.random.default_rng(4).integers(0, 61, (size["T"], size["B"]))


def test_model(set_num_threads):
    """The promises hold for layers in a row: threads, rows, chunks."""
    model, ids = model_and_ids()
    targets = np.roll(ids, -1, axis=0)
    results = {}
    for threads in (1, 2, 3):
        set_num_threads(threads)
        model.zero_grad()
        logits, ((h, c),), tape = model.forward(ids)
        loss, dlogits = fr.cross_entropy(logits, targets)
        model.backward(tape, dlogits)
        results[threads] = {"logits": logits, "h": h, "c": c, "loss": np.float64(loss), "dlogits": dlogits}
        results[threads] |= {f"d{name}": gradient.copy() for name, gradient in model.grads.items()}
    assert_same_bits(results[2], results[1])
    assert_same_bits(results[3], results[1])

    expected = results[1]["logits"]
    assert_one_result({"row": model(ids[:, 2:3])[0]}, {"row": np.ascontiguousarray(expected[:, 2:3])})
    start, state = model(ids[:1])
    rest, _ = model(ids[1:], state)
    assert_one_result({"logits": np.concatenate((start, rest))}, {"logits": expected})


# --- vector width -------------------------------------------------------------------------------------------


def fingerprints(extent):
    """A hash of every array of every problem. Also run by a fresh Python that compiles for another CPU.

    extent : "long" for all of them, "short" for some in float32: compiling is what takes the time
    """
    return {
        f"{name} {part}": hashlib.sha256(array.tobytes()).hexdigest()
        for name, problem in (PROBLEMS | VARIANTS).items()
        if extent == "long" or (problem.cell in ("rnn_tanh", "lstm_peephole", "gru") and problem.dtype == "float32")
        for part, array in whole(problem).items()
    }


@pytest.mark.skipif(not JIT, reason="without JIT nothing is compiled, for any width")
@pytest.mark.parametrize("extent", ["short", pytest.param("long", marks=pytest.mark.long)])
def test_vector_width(extent):
    """Compiled for a CPU with 256-bit vectors: the host's bits, for every problem."""
    if not is_wide():
        pytest.skip("this run compiles for 256-bit vectors already: there is no other width to compare with")
    code = f"""
        import json
        import test_numbers
        from fastrnn.simd.target import VECTOR_BYTES
        print(json.dumps([VECTOR_BYTES, test_numbers.fingerprints({extent!r})]))
    """
    printed = run_python(code, timeout=1500, **NARROW)
    vector_bytes, narrow_prints = json.loads(printed)
    assert vector_bytes == 32
    prints = fingerprints(extent)
    assert narrow_prints.keys() == prints.keys()
    assert [name for name in prints if prints[name] != narrow_prints[name]] == []


# --- the input product --------------------------------------------------------------------------------------


@every({name: one for name, one in (PROBLEMS | VARIANTS).items() if name.endswith(("float32-middle", "both"))})
def test_input_product(problem, monkeypatch):
    """U x step by step, for all steps at once, and in several parts: outputs, states, dx and weight gradients."""
    results = []
    for hoists, most in ((False, 1 << 40), (True, 1 << 40), (True, 100)):
        monkeypatch.setattr(recurrent.Recurrent, "_hoists", lambda self, run, hoists=hoists: hoists)
        monkeypatch.setattr(recurrent, "HOISTED", most)
        results.append(whole(problem) | {f"inferred {n}": a for n, a in problem.infer(problem.layer()).items()})
    for other in results[1:]:
        assert_one_result(other, results[0])


@pytest.mark.skipif(not JIT, reason="without JIT such sizes take too long")
def test_input_product_where_it_pays():
    """One row and large weights: all steps at once give the bits of a stream's, which cannot know the next input."""
    problem = Problem("lstm", T=6, B=1, I=520, H=256, dtype="float32")
    layer, x = problem.layer(), problem.x
    fr.last_call_info()
    y, _ = layer(x)
    assert "product" in [one.kernel for one in fr.last_call_info()]
    stream = layer.stream()
    assert_same_bits({"y": y}, {"y": np.stack([stream.push(x[t, 0]) for t in range(6)])[:, None]})


@pytest.mark.skipif(not JIT, reason="without JIT such sizes take too long")
@pytest.mark.parametrize(("cell", "I"), [("rnn_tanh", 129), ("lstm", 33), ("gru", 43)])
def test_input_product_of_one_row(cell, I, set_num_threads):  # noqa: E741
    """Alone, from 64 KiB of U on and where there are enough steps; with the bits of a few steps at a time, which have
    no such product.
    """
    set_num_threads(1)
    problem = Problem(cell, T=130, B=1, I=I, H=128, dtype="float32")
    layer, x = problem.layer(), problem.x
    fr.last_call_info()
    y, _ = layer(x)
    assert "product" in [one.kernel for one in fr.last_call_info()]
    state, parts = None, []
    for t in range(0, 130, 10):
        part, state = layer(x[t : t + 10], state)
        parts.append(part)
        assert "product" not in [one.kernel for one in fr.last_call_info()]
    assert_same_bits({"y": y}, {"y": np.concatenate(parts)})


# --- who computes what ---------------------------------------------------------------------------------------


@every({name: one for name, one in (PROBLEMS | VARIANTS).items() if name.endswith(("float32-middle", "both"))})
def test_alone_by_panels(problem, monkeypatch, set_num_threads):
    """Steps that would keep a caller without helpers too long are divided into panels."""
    set_num_threads(1)
    usual = whole(problem)
    monkeypatch.setattr(recurrent, "LONGEST", 100)
    assert_one_result(whole(problem), usual)


def test_weights_are_read_once_a_step(monkeypatch, set_num_threads):
    """Alone as well, however long a step takes: its rows stay together as long as there are panels enough."""
    set_num_threads(1)
    layer, x = fr.LSTM(30, 100, seed=1), np.zeros((3, 40, 30), np.float32)
    step = 40 * 4 * 100 * 130
    monkeypatch.setattr(recurrent, "LONGEST", step // 4)
    fr.last_call_info()
    layer.forward(x)
    (forward,) = [one for one in fr.last_call_info() if one.kernel == "lstm_forward"]
    assert forward.pieces == 1
    monkeypatch.setattr(recurrent, "LONGEST", 0)
    layer.forward(x)
    (forward,) = fr.last_call_info()
    assert forward.pieces > 1


@pytest.mark.parametrize("columns", [5, 64, 190, 300])
@pytest.mark.parametrize("workers", [1, 2])
def test_strips_of_a_gradient(columns, workers, monkeypatch, set_num_threads):
    """Several strips of columns beside each other, as large layers have them, give the bits of one after the other."""
    set_num_threads(workers)
    rng = np.random.default_rng(1)
    x, a = rng.standard_normal((1100, columns)), rng.standard_normal((1100, 70))
    sums = []
    for far in (1 << 40, 0):
        monkeypatch.setattr(products, "FAR", far)
        sums.append({order: np.ones((70, columns)) for order in (1, -1)})
        for order, out in sums[-1].items():
            products.add_gradient(out, x, a, order=order)
    assert_same_bits(*sums)
    np.testing.assert_allclose(sums[0][1], 1 + a.T @ x, rtol=1e-10)


# --- not a number, infinity ---------------------------------------------------------------------------------


NAN_CASES = [
    pytest.param(name, where, marks=seldom(problem.cell, problem.dtype))
    for name, problem in PROBLEMS.items()
    for where in ("x", "h0", "c0")
    if where in problem.inputs
]


@pytest.mark.parametrize(("name", "where"), NAN_CASES)
def test_nan_stays_in_its_row(name, where):
    """NaN in one row reaches that row's outputs from there on, and no other row's bits."""
    problem = PROBLEMS[name]
    layer, row, step = problem.layer(), problem.B - 1, problem.T // 2 if where == "x" else 0
    others = np.arange(problem.B) != row
    x, state, dy, dstate, _ = only(problem, slice(None))
    if where == "x":
        x[step, row, -1] = np.nan
    else:
        problem.unpack(state)[where[0]][:, row, -1] = np.nan
    with np.errstate(invalid="ignore"):  # without JIT the kernels are NumPy, which has something to say
        hurt = run(problem, layer, x, state, dy, dstate)
        hurt["inferred"], _ = layer(x, state)
    well = whole(problem)
    assert_same_bits(by_row(hurt, others), by_row(well, others))
    assert_same_bits({"y": hurt["y"][:step]}, {"y": well["y"][:step]})
    # The cells of a layer do not see each other: NaN in one of c0 is in every unit one step later.
    assert np.isnan(hurt["y"][step + (where == "c0") :, row]).all()
    assert np.isnan(hurt["h"][-1, row]).all()
    # The sign of a NaN is nobody's promise; that it is one, and every other bit, is.
    number = ~np.isnan(hurt["y"])
    np.testing.assert_array_equal(~np.isnan(hurt["inferred"]), number)
    assert hurt["inferred"][number].tobytes() == hurt["y"][number].tobytes()


@every({name: problem for name, problem in VARIANTS.items() if not problem.indices})
def test_nan_stays_in_its_row_both_ways_and_with_lengths(problem):
    """NaN in one row reaches that row's outputs, in the reverse direction those before it, and no other row's bits."""
    row, step = problem.B - 1, problem.T // 2  # a row that goes on to the end
    others = np.arange(problem.B) != row
    pieces = only(problem, slice(None))
    pieces[0][step, row, -1] = np.nan
    with np.errstate(invalid="ignore"):
        hurt = run(problem, problem.layer(), *pieces)
    well = whole(problem)
    assert_same_bits(by_row(hurt, others), by_row(well, others))
    assert np.isnan(hurt["y"][step:, row]).all()
    assert np.isnan(hurt["y"][:step, row]).all() == problem.bidirectional
    if not problem.bidirectional:
        assert_same_bits({"y": hurt["y"][:step]}, {"y": well["y"][:step]})
    assert np.isnan(hurt["h"][:, row]).all()


@cells_and_types
@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_infinity(cell, dtype, infinity):
    """An infinite input gives what the equations give: saturated gates, an infinite or undefined sum."""
    problem = Problem(cell, **TINY, dtype=dtype)
    problem.inputs["x"][1, 0, 0] = infinity
    with np.errstate(over="ignore", invalid="ignore"):
        expected = problem.outputs()
        outputs, _ = problem.forward(problem.layer())
    for name, want in expected.items():
        np.testing.assert_allclose(outputs[name], want, rtol=1e-5, atol=1e-6, equal_nan=True, err_msg=name)
