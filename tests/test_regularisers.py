"""Dropout of the input and of the recurrent connection, one mask a sequence, and zoneout: `input_dropout`,
`recurrent_dropout`, `zoneout`.

The reference is given the masks, which are drawn here from a generator like the layer's, in the order that is promised.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
from helpers import JIT, Problem, assert_close, assert_same_bits, bits_of, mixed_lengths, run_python, those
from test_errors import raises
from test_gradients import BACKWARD, BACKWARD_32, FORWARD, FORWARD_32

import fastrnn as fr
from fastrnn.threads import launch

OFF = {"input_dropout": 0.0, "recurrent_dropout": 0.0, "zoneout": 0.0}


@dataclass(frozen=True)
class Masked(Problem):
    """A problem with regularisers; what the reference gives is training's, or with `inferred` inference's."""

    regularisers: tuple = ()  # of (name, value)
    inferred: bool = False

    @property
    def options(self):
        return super().options | dict(self.regularisers)

    @property
    def arguments(self):
        options = {name: value for name, value in self.options.items() if name not in OFF}
        return options | {"lengths": self.lengths, "masks": self.masks}

    @property
    def zoneout(self):
        """One probability a state."""
        p = self.options.get("zoneout", 0.0)
        return p if isinstance(p, tuple) else (p,) * len(self.states)

    @cached_property
    def masks(self):
        """Layer by layer that of the input, then for each direction that of h and those of zoneout, of h and of c."""
        rng, options = np.random.default_rng(self.seed), OFF | self.options

        def drop(p, *shape):
            return (rng.random(shape, np.float32) >= p) / (1 - p) if p and not self.inferred else 1

        masks = {}
        for layer in range(self.L):
            x = drop(options["input_dropout"], self.B, self.width if layer else self.I)
            for end in ("", "_reverse")[: self.D]:
                m = masks[f"l{layer}{end}"] = {"x": x, "drop": drop(options["recurrent_dropout"], self.B, self.O)}
                m["keep"] = [
                    rng.random((self.T, *self.shape_of(name)[1:]), np.float32) < p if p and not self.inferred else p
                    for name, p in zip(self.states, self.zoneout, strict=True)
                ]
                m["keep"] = [k + 0.0 for k in m["keep"]]
        return masks

    def layer(self):
        layer = super().layer()
        layer.rng = np.random.default_rng(self.seed)
        return layer


def of(cell, *, more=(), L=2, **regularisers):
    """A problem with tails everywhere, and these regularisers."""
    size = {"T": 5, "B": 4, "I": 7, "H": 19} if JIT else {"T": 4, "B": 3, "I": 5, "H": 10}
    return Masked(cell, **size, L=L, more=tuple(more), regularisers=tuple(regularisers.items()))


ALL = {"input_dropout": 0.2, "recurrent_dropout": 0.3, "zoneout": 0.4}
PROBLEMS = {
    "rnn": of("rnn_tanh", **ALL),
    "gru": of("gru_before", **ALL),
    "lstm": of("lstm_peephole", **{**ALL, "zoneout": (0.2, 0.5)}),
}
USUAL = tuple(PROBLEMS)
PROBLEMS |= {
    "rnn zoneout": of("rnn_relu", zoneout=0.5),
    "rnn dropout": of("rnn_identity", recurrent_dropout=0.5),
    "gru zoneout": of("gru", input_dropout=0.4, zoneout=0.5),
    "gru dropout": of("gru", recurrent_dropout=0.5),
    "gru after": of("gru", **ALL),
    "lstm zoneout": of("lstm_peephole", input_dropout=0.4, zoneout=(0.2, 0.5)),
    "lstm dropout": of("lstm", recurrent_dropout=0.5),
    "lstm c": of("lstm_clip", zoneout=(0.0, 0.5)),
    "lstm h": of("lstm_peephole_full", zoneout=(0.5, 0.0)),
    "lstm coupled": of("lstm_coupled", **ALL),
    "lstm full": of("lstm_peephole_full", more={"proj_size": 17 if JIT else 8}.items(), **ALL),
}
EVERY = pytest.mark.parametrize("name", those(PROBLEMS, USUAL))
KINDS = {"T": {}, "both ways, lengths": {"bidirectional": True, "L": 1}, "indices": {"indices": True, "L": 1}}


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """All the work is shared, however small: one compiled text of each kernel serves the whole file."""
    monkeypatch.setattr("fastrnn.threads.SMALL", 0)


@pytest.mark.parametrize("kind", KINDS)
@EVERY
def test_every_gradient(name, kind):
    """Outputs and every gradient, with the masks that the layer has drawn."""
    problem = PROBLEMS[name].but(**KINDS[kind])
    if problem.bidirectional:
        problem = problem.but(lengths=mixed_lengths(problem.T, problem.B))
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)
    with pytest.raises(AssertionError):  # other masks, other numbers
        assert_close(outputs, problem.but(seed=1).outputs(problem.inputs), 1e-2)


def test_every_gradient_of_summed_directions():
    """What goes into the second layer is as wide as one direction, and so is the mask of its input."""
    problem = PROBLEMS["gru"].but(bidirectional=True, more=(("merge", "sum"),))
    outputs, gradients = problem.solve()
    assert_close(outputs, problem.outputs(), FORWARD)
    assert_close(gradients, problem.gradients, BACKWARD)


ZONEOUTS = pytest.mark.parametrize("name", USUAL)


@ZONEOUTS
@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways, lengths"])
def test_inference(name, both_ways):
    """No dropout, and of zoneout what is to be expected; step by step the same bits."""
    problem = PROBLEMS[name].but(inferred=True)
    if both_ways:
        problem = problem.but(L=1, bidirectional=True, lengths=mixed_lengths(problem.T, problem.B))
    layer = problem.layer()
    outputs = problem.infer(layer)
    assert_close(outputs, problem.outputs(), FORWARD)
    if not both_ways:
        y, state = [], problem.state
        for x in problem.x:
            step, state = layer(x[None], state)
            y.append(step[0])
        assert_close({"y": np.stack(y)} | problem.unpack(state), outputs, 0 if JIT else 1e-12)


@ZONEOUTS
def test_small_steps(name):
    """The quick way of a single step has no zoneout, so it is not taken: a stream has the bits of the sequence."""
    problem = PROBLEMS[name].but(L=1)
    layer = problem.layer()
    stream = layer.stream()
    steps = [stream.push(x[0]) for x in problem.x]
    assert_close({"y": np.stack(steps)}, {"y": layer(problem.x)[0][:, 0]}, 0 if JIT else 1e-12)


def test_what_is_kept_has_the_same_bits():
    """Where zoneout keeps a number of the state it is the one from the step before, and its gradient comes through."""
    for name in USUAL:
        problem = PROBLEMS[name].but(L=1, has_state=False)
        (keep, *_), y = problem.masks["l0"]["keep"], problem.forward(problem.layer())[0]["y"]
        before = np.concatenate((np.zeros_like(y[:1]), y[:-1]))
        assert np.array_equal(y == before, keep == 1)


@pytest.mark.skipif(not JIT, reason="without JIT one thread does all the work")
@EVERY
def test_threads(name, set_num_threads):
    """1, 2 or 3 threads: the same masks, the same bits."""
    problem, results = PROBLEMS[name], []
    for threads in (1, 2, 3):
        set_num_threads(threads)
        outputs, gradients = problem.solve()
        results.append(outputs | gradients)
    assert_same_bits(results[1], results[0])
    assert_same_bits(results[2], results[0])


@pytest.mark.parametrize("both_ways", [False, True], ids=["forward", "both ways"])
@pytest.mark.parametrize("name", those(["rnn", "gru", "lstm", "lstm full"], USUAL))
def test_lengths_do_not_change_a_rows_masks(name, both_ways):
    """A row that has all its steps among shorter ones: what it gives without lengths, bit for bit."""
    problem = PROBLEMS[name].but(L=1 if both_ways else 2, bidirectional=both_ways, has_dstate=False)
    lengths = mixed_lengths(problem.T, problem.B)
    rows = [row for row, length in enumerate(lengths) if length == problem.T]
    assert 0 < len(rows) < problem.B
    results = []
    for one in (problem, problem.but(lengths=lengths)):
        outputs, gradients = one.solve()
        found = {**outputs, "dx": gradients["dx"], "dh0": gradients["dh0"]}
        results.append({name: a[:, rows] for name, a in found.items()})
    assert_close(results[1], results[0], 0 if JIT else 1e-12)


if not JIT:  # with it every kernel would be compiled once more

    @EVERY
    def test_float32(name, monkeypatch):
        """The same in the other type, in which are all masks too: kernels take them for what the layer is."""
        launched = []

        def seen(*args):
            launched.extend(a for a in args if isinstance(a, np.ndarray) and a.dtype.kind == "f")
            launch(*args)

        for module in ("rnn", "gru", "lstm"):
            monkeypatch.setattr(f"fastrnn.layers.{module}.launch", seen)
        problem = PROBLEMS[name].but(dtype="float32")
        outputs, gradients = problem.solve()
        problem.infer(problem.layer())
        assert {a.dtype for a in launched} == {np.dtype("float32")}
        assert_close(outputs, problem.outputs(), FORWARD_32)
        assert_close(gradients, problem.gradients, BACKWARD_32, share=0.01)


def test_indices_are_one_hot_rows():
    """Dropout of an index input is that of its one-hot rows: a word is missing in all of a sequence, or in none."""
    problem = PROBLEMS["gru"].but(L=1, indices=True, has_state=False)
    one_hot = np.eye(problem.I)[problem.ids]
    results = []
    for x in (problem.x, one_hot):
        layer = problem.layer()
        y, h, tape = layer.forward(x)
        layer.backward(tape, problem.dy, problem.dstate)
        results.append({"y": y, "h": h, **layer.grads})
    assert_close(*results, 1e-12)
    assert_close(problem.infer(problem.layer()), problem.but(inferred=True).outputs(), FORWARD)  # no row is missing


def test_dropout_of_looked_up_vectors():
    """After an Embedding the numbers of the vectors are dropped, and the matrix has its gradient."""
    problem = PROBLEMS["rnn"].but(L=1, has_state=False)
    embedding, ids = fr.Embedding(9, problem.I, dtype="float64", seed=1), np.arange(problem.T * problem.B) % 9
    ids = ids.reshape(problem.T, problem.B)
    model = fr.Sequential(embedding, problem.layer())
    y, _, tape = model.forward(ids)
    model.backward(tape, problem.dy)

    layer = problem.layer()
    expected, _, tape = layer.forward(embedding(ids))
    dx, _ = layer.backward(tape, problem.dy)
    dweight = np.zeros((9, problem.I))
    np.add.at(dweight, ids, dx)
    grads = {f"1.{name}": grad for name, grad in layer.grads.items()}
    assert_close({"y": y, **model.grads}, {"y": expected, "0.weight": dweight, **grads}, 1e-13)
    expected, _ = layer(embedding(ids))
    assert_close({"y": model(ids)[0]}, {"y": expected}, 1e-13)


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_off(kind):
    """At zero there is nothing to draw, and every bit is that of a layer which was never told."""
    off = of({"RNN": "rnn_tanh"}.get(kind, kind.lower()), **OFF)
    plain = Problem(off.cell, off.T, off.B, off.I, off.H, off.L)
    assert plain.layer().generators() == off.layer().generators() == []
    for want, got in zip(plain.solve(), off.solve(), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("option", OFF)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_generator(kind, option):
    """Each alone makes the layer's generator one to be saved."""
    layer = getattr(fr, kind)(3, 4, **{option: 0.5})
    assert layer.generators() == [layer.rng]


def test_seeded():
    """Every forward draws anew from the layer's generator; from the same state of it the same. Inference draws none."""
    problem = PROBLEMS["rnn"]
    layer = problem.layer()
    first, second = (bits_of(problem.forward(layer)[0]) for _ in range(2))
    assert first != second
    layer.rng.bit_generator.state = np.random.default_rng(problem.seed).bit_generator.state
    problem.infer(layer)
    assert bits_of(problem.forward(layer)[0]) == first


def test_with_dropout_between_layers():
    """Its masks are drawn after all others, so the lower layer does as without it; backward is forward's derivative."""
    problem = PROBLEMS["gru"].but(more=(("dropout", 0.5),), has_dstate=False)

    def run(x):
        layer = problem.layer()
        y, state, tape = layer.forward(x, problem.state)
        return layer, y, state, tape

    layer, _, h, tape = run(problem.x)
    without, _ = problem.but(more=()).solve()
    assert np.array_equal(h[0], without["h"][0])
    assert not np.array_equal(h[1], without["h"][1])
    dx, _ = layer.backward(tape, problem.dy)
    direction, step = problem.random("direction", *dx.shape), 1e-6
    ahead, behind = (run(problem.x + sign * step * direction)[1] for sign in (1, -1))
    expected = ((ahead - behind) * problem.dy).sum() / (2 * step)
    assert abs((dx * direction).sum() - expected) <= 1e-6 * np.linalg.norm(dx)


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", OFF)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_bounds(kind, option):
    """From 0 to below 1."""
    make = getattr(fr, kind)
    for wrong in (-0.1, 1.0, 1.5, float("nan")):
        with raises(ValueError, f"{option} is {wrong}", f"0 <= {option} < 1"):
            make(3, 4, **{option: wrong})
    for wrong in ("0.5", None, True):
        with raises(TypeError, option, "expected a number"):
            make(3, 4, **{option: wrong})


def test_zoneout_of_two_states():
    """A pair is for the LSTM, which alone has two states."""
    assert fr.LSTM(3, 4, zoneout=0.1).zoneout == (0.1, 0.1)
    assert fr.LSTM(3, 4, zoneout=[0.1, 0]).zoneout == (0.1, 0.0)
    with raises(ValueError, "zoneout[1] is 1.0"):
        fr.LSTM(3, 4, zoneout=(0.1, 1.0))
    with raises(ValueError, "zoneout has 3 numbers"):
        fr.LSTM(3, 4, zoneout=(0.1, 0.1, 0.1))
    for make in (fr.RNN, fr.GRU):
        with raises(TypeError, "zoneout is tuple"):
            make(3, 4, zoneout=(0.1, 0.1))


# --- memory -------------------------------------------------------------------------------------------------


def solve_guarded(names):
    """These problems, in sizes that end anywhere in a vector, with unreadable pages beside every array."""
    import test_guard_pages

    from fastrnn import threads

    threads.SMALL = 0
    problems = [
        problem.but(T=2, B=3, I=size, H=(2 if name == "lstm full" else 0) + size, L=1, more=more)
        for size in (1, 5, 8, 9, 17)
        for name, problem in PROBLEMS.items()
        if name in names
        for more in [(("proj_size", 1 + size // 2),) if name == "lstm full" else ()]
    ]
    plain = [problem.solve() for problem in problems]
    for side in test_guard_pages.SIDES:
        with test_guard_pages.guarded_kernels(side):
            guarded = [problem.solve() for problem in problems]
        for got, want in zip(guarded, plain, strict=True):
            for one, other in zip(got, want, strict=True):
                assert_same_bits(one, other)


if JIT:  # without, NumPy checks every access

    def test_every_array_is_kept_within(effort):
        """As test_guard_pages.py does with all else."""
        names = effort(USUAL, tuple(PROBLEMS))
        run_python(f"import test_regularisers as t; t.solve_guarded({names})", timeout=effort(120, 600))
