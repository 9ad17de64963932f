"""Streams and pools of them: the bits of the whole sequence in one call, however it is cut and whoever else steps."""

import copy
import gc
import os
import pickle
import sys
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager

import numpy as np
import pytest
from helpers import JIT, run_python
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import fastrnn as fr
from fastrnn.streaming import FULL

I, H, V = 3, 5, 7  # noqa: E741 - the glossary's letters


def language_model():
    return fr.Sequential(fr.Embedding(V, I, seed=1), fr.LSTM(I, H, num_layers=2, seed=2), fr.Linear(H, V, seed=3))


# name -> how to make it, whether its inputs are indices
MODELS = {
    "rnn": (lambda: fr.RNN(I, H, num_layers=2, seed=1), False),
    "lstm": (lambda: fr.LSTM(I, H, seed=1), False),
    "lstm3_f64": (lambda: fr.LSTM(I, H, num_layers=3, peephole="diagonal", dtype="float64", seed=1), False),
    "lstm_batch_first": (lambda: fr.LSTM(I, H, num_layers=2, batch_first=True, seed=1), False),
    "lstm_one_hot": (lambda: fr.LSTM(V, H, seed=1), True),
    "language_model": (language_model, True),
    "nested": (
        lambda: fr.Sequential(
            fr.Dropout(0.5, seed=1),
            fr.Linear(I, 4, seed=2),
            fr.Sequential(fr.RNN(4, H, seed=3), fr.LSTM(H, 4, num_layers=2, seed=4)),
        ),
        False,
    ),
}

models = pytest.mark.parametrize("name", MODELS)


def make(name):
    return MODELS[name][0]()


def inputs(name, *shape, seed=0):
    """Random inputs of that leading shape: indices, or vectors."""
    rng = np.random.default_rng(seed)
    if MODELS[name][1]:
        return rng.integers(0, V, shape)
    return rng.standard_normal((*shape, I)).astype("float64" if name.endswith("f64") else "float32")


def whole(name, model, x):
    """Outputs and final state of the sequence x (T, ...) in one call."""
    y, state = model(x[None] if name == "lstm_batch_first" else x[:, None])
    return (y[0] if name == "lstm_batch_first" else y[:, 0]), state


def bits(state):
    """All the bits of a state, and its structure."""
    if isinstance(state, np.ndarray):
        return state.dtype.str, state.shape, state.tobytes()
    return tuple(bits(part) for part in state)


def same(found, wanted):
    """The same bits; without JIT, where the order of a sum is NumPy's choice, the same to rounding."""
    if JIT:
        return bits(found) == bits(wanted)
    if isinstance(wanted, tuple):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return (found.dtype, found.shape) == (wanted.dtype, wanted.shape) and bool(np.abs(found - wanted).max() < 1e-5)


@contextmanager
def raises(kind, *parts):
    """`pytest.raises`, and the message has all of these parts in it."""
    with pytest.raises(kind) as error:
        yield
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{str(error.value)!r} does not say {missing}"


# --- one stream ---------------------------------------------------------------------------------------------


@models
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_chunks_give_the_bits_of_one_call(name, chunks):
    """0: one push; n: n steps at once. Outputs and the state at the end."""
    model = make(name)
    x = inputs(name, sum(max(n, 1) for n in chunks))
    stream, found, t = model.stream(), [], 0
    for n in chunks:
        found += [stream.push(x[t])] if n == 0 else list(stream.push_many(x[t : t + n]))
        t += max(n, 1)
    y, state = whole(name, model, x)
    assert same(np.array(found), y)
    assert same(stream.state, state)


@models
def test_reset_state_and_clone(name):
    """Back to zeros; to a state that was copied out; and two that part."""
    model, x = make(name), inputs(name, 6)
    stream = model.stream()
    assert stream.model is model
    zero = bits(stream.state)
    first = stream.push_many(x[:3])
    at_three, twin = stream.state, stream.clone()
    rest = stream.push_many(x[3:])
    assert same(twin.state, at_three)
    assert same(twin.push_many(x[3:]), rest)
    stream.state = at_three
    assert same(stream.push_many(x[3:]), rest)
    stream.reset()
    assert bits(stream.state) == zero
    assert same(stream.push_many(x[:3]), first)
    stream.state = None
    assert bits(stream.state) == zero


@models
def test_nothing_is_shared_with_the_caller(name):
    """What comes out may be written to, and what went in too."""
    model, x = make(name), inputs(name, 4)
    y, _ = whole(name, model, x)
    stream = model.stream()
    for t in range(4):
        now, state = np.array(x[t]), stream.state
        stream.state = state
        out = stream.push(now)
        assert same(out, y[t])
        now[...] = 0
        out[...] = np.nan
        for part in (state, stream.state):
            fill(part)


def fill(state):
    for part in (state,) if isinstance(state, np.ndarray) else state:
        if isinstance(part, np.ndarray):
            part.fill(np.nan)
        else:
            fill(part)


@models
@pytest.mark.parametrize("copied", [lambda s: pickle.loads(pickle.dumps(s)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_pickled_stream_goes_on(name, copied):
    """With a model of its own: it sees the changes of its own weights, not those of the first one's."""
    model, x = make(name), inputs(name, 5)
    stream = model.stream()
    stream.push_many(x[:2])
    model.load_state_dict({key: 0.5 * value for key, value in model.params.items()})
    stream.push(x[2])
    other, twin = copied((stream, stream.clone()))
    assert other.model is twin.model is not model
    assert same(other.clone().push(x[3]), stream.clone().push(x[3]))
    other.model.load_state_dict({key: 2 * value for key, value in model.params.items()})
    changed = other.clone().push(x[3])
    assert bits(changed) != bits(stream.clone().push(x[3]))
    assert same(twin.push(x[3]), changed)
    model.load_state_dict(other.model.state_dict())
    assert same(stream.push(x[3]), changed)


@models
def test_new_weights_from_the_next_push_on(name):
    """The state stays: the same as calling the layer with it."""
    model, x = make(name), inputs(name, 3)
    stream = model.stream()
    stream.push_many(x[:2])
    state = stream.state
    model.load_state_dict({key: -value for key, value in model.params.items()})
    stacked = x[2:, None]
    y, state = model(stacked, state)
    assert same(stream.push(x[2]), y[0, 0])
    assert same(stream.state, state)


@pytest.mark.parametrize("index", [4, np.int32(4), np.array(4), np.array(4, "uint8")])
@pytest.mark.parametrize("name", ["lstm_one_hot", "language_model"])
def test_an_index_of_any_integer_type(name, index):
    expected = make(name).stream().push_many(np.array([4]))[0]
    assert same(make(name).stream().push(index), expected)


def test_numbers_of_other_kinds():
    """Lists, integers of Python, and arrays that are strided or read-only: converted as the layers do."""
    lstm = make("lstm")
    want = lstm.stream().push(np.array([1, 2, 3], "float32"))
    strided = np.array([[1, 0], [2, 0], [3, 0]], "float32")[:, 0]
    frozen = np.array([1, 2, 3], "float32")
    frozen.flags.writeable = False
    for x in ([1, 2, 3], (1.0, 2.0, 3.0), strided, frozen, frozen.astype(">f4")):
        assert same(lstm.stream().push(x), want)
        assert same(lstm.stream().push_many([x])[0], want)


def test_one_stream_from_many_threads():
    """Pushes are made one after the other: none is lost. The layer counts them."""
    rnn = fr.RNN(1, 1, nonlinearity="identity", bias=False)
    rnn.load_state_dict({name: np.ones((1, 1)) for name in rnn.params})
    stream, x, gate = rnn.stream(), np.ones(1, "float32"), threading.Barrier(4)
    before = sys.getswitchinterval()

    def work():
        gate.wait()
        for _ in range(500):
            stream.push(x)

    sys.setswitchinterval(1e-6)
    try:
        run_threads(work, 4)
    finally:
        sys.setswitchinterval(before)
    assert stream.state == 2000


def run_threads(work, count):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


# --- errors of a stream -------------------------------------------------------------------------------------

WRONG = {
    "lstm": [
        (np.zeros(I + 1, "float32"), ValueError, ("x", "(4,)", "(I,)", "I=3")),
        (np.zeros((1, I), "float32"), ValueError, ("x", "(1, 3)", "(I,)")),
        (np.zeros((), "float32"), ValueError, ("x", "()", "(I,)")),
        (np.zeros(I, "int64"), ValueError, ("x", "(3,)", "an index", "(I,)", "I=3")),
        (np.zeros(I, "float64"), TypeError, ("x", "float64", "float32")),
        (np.zeros(I, bool), TypeError, ("x", "bool")),
        ([[1], [2, 3]], ValueError, ("x", "ragged")),
        (I, ValueError, ("x is 3", "0 <= x < I=3")),
        (True, TypeError, ("x", "bool")),
        ("abc", TypeError, ("x", "str")),
        (None, TypeError, ("x", "NoneType")),
    ],
    "language_model": [
        (V, ValueError, ("x is 7", "0 <= x < num=7")),
        (-1, ValueError, ("x is -1", "0 <= x < num=7")),
        (np.int64(V), ValueError, ("x is 7", "0 <= x < num=7")),
        (2**70, ValueError, ("x is", "0 <= x < num=7")),
        (1.5, TypeError, ("x", "float", "an index")),
        (True, TypeError, ("x", "bool", "an index")),
        (np.zeros(2, "int64"), ValueError, ("x", "(2,)", "an index")),
        (np.zeros(I, "float32"), TypeError, ("x", "float32", "an index")),
        (None, TypeError, ("x", "NoneType", "an index")),
    ],
    "nested": [
        (np.zeros((2, I), "float32"), ValueError, ("x", "(2, 3)", "(I,)")),
        (1, ValueError, ("x", "()", "(I,)", "I=3")),
    ],
}


@pytest.mark.parametrize(("name", "x", "kind", "says"), [(name, *case) for name in WRONG for case in WRONG[name]])
def test_a_failed_push_changes_nothing(name, x, kind, says):
    """Before the first step and after some: the message is about x (I,), and the state is what it was."""
    stream = make(name).stream()
    for _ in range(2):
        before = bits(stream.state)
        with raises(kind, *says):
            stream.push(x)
        assert bits(stream.state) == before
        stream.push_many(inputs(name, 2))


def test_shapes_of_push_many():
    stream = make("lstm").stream()
    before = bits(stream.state)
    for x, says in (
        (np.zeros((2, I + 1), "float32"), ("(2, 4)", "(T, I)", "I=3")),
        (np.zeros(I, "float32"), ("(3,)", "(T, I)")),
        (np.zeros((0, I), "float32"), ("(0, 3)", "at least one step")),
        (np.array([0, I]), ("0 to 3", "0 <= x < I=3")),
    ):
        with raises(ValueError, "x", *says):
            stream.push_many(x)
    with raises(ValueError, "x", "(2, 1)", "indices (T,)"):
        make("language_model").stream().push_many(np.zeros((2, 1), "int64"))
    assert bits(stream.state) == before


def test_states_that_do_not_fit():
    """The message names the part, and nothing changes."""
    stream = make("language_model").stream()
    stream.push(1)
    before, right = bits(stream.state), np.zeros((2, 1, H), "float32")
    for state, kind, says in (
        (((right, right[:1]),), ValueError, ("state[0][1]", "L, B, H", "L=2, B=1, H=5", "(1, 1, 5)")),
        (((right, right.astype("float64")),), TypeError, ("state[0][1]", "float64")),
        ((right, right), TypeError, ("state", "2 entries", "tuple of 1")),
        (right, TypeError, ("state", "ndarray", "tuple of 1")),
        ((right,), TypeError, ("state[0]", "ndarray", "tuple of 2")),
    ):
        with raises(kind, *says):
            stream.state = state
        assert bits(stream.state) == before


def test_models_without_a_stream():
    with raises(TypeError, "Linear", "no state"):
        fr.Linear(3, 2).stream()
    with raises(TypeError, "Sequential", "no state"):
        fr.Sequential(fr.Embedding(3, 2), fr.Linear(2, 2)).stream_pool(3)
    with raises(TypeError, "model is list"):
        fr.Stream([])
    with raises(ValueError, "batch_first"):
        fr.Sequential(fr.RNN(3, 4), fr.RNN(4, 3, batch_first=True)).stream()
    backward_too = fr.LSTM(3, 4)
    backward_too.bidirectional = True
    with raises(ValueError, "bidirectional"):
        backward_too.stream()
    with pytest.raises(RuntimeError, match="no weights yet"):
        fr.CharLM().stream()
    with pytest.raises(RuntimeError, match="no weights yet"):
        fr.CharLM().stream_pool(3)


def test_a_language_model_streams():
    lm = fr.CharLM(hidden_size=4, num_layers=1, embedding_size=3, seed=1).build("abcd")
    ids = lm.vocabulary.encode("abca")
    logits, _ = lm.model(ids[:, None])
    stream, pool = lm.stream(), lm.stream_pool(2)
    assert same(stream.push_many(ids), logits[:, 0])
    assert same(pool.step([pool.open()], ids[:1]), logits[0])


# --- a pool against streams ---------------------------------------------------------------------------------


class Pool(RuleBasedStateMachine):
    """Anything in any order, against a model made of lone streams in the order of their last use."""

    opened = Bundle("opened")

    @initialize(name=st.sampled_from(sorted(MODELS)), full=st.sampled_from(FULL[:2]), capacity=st.integers(1, 5))
    def begin(self, name, full, capacity):
        self.name, self.full, self.capacity = name, full, capacity
        self.model = make(name)
        self.pool = self.model.stream_pool(capacity, full=self.full, linger_us=0)
        self.streams, self.ever, self.seed = OrderedDict(), [], 0

    def random(self, *shape):
        self.seed += 1
        return inputs(self.name, *shape, seed=self.seed)

    def has_opened(self, id, stream):
        assert id not in self.ever
        if self.full == "evict" and len(self.streams) == self.capacity:
            self.streams.popitem(last=False)
        self.streams[id] = stream
        self.ever.append(id)
        return id

    @rule(target=opened)
    def open(self):
        return self.has_opened(self.pool.open(), self.model.stream())

    @rule(target=opened)
    def open_with_a_state(self):
        stream = self.model.stream()
        stream.push_many(self.random(2))
        return self.has_opened(self.pool.open(stream.state), stream)

    @rule(target=opened, id=opened)
    def clone(self, id):
        if id in self.streams:
            return self.has_opened(self.pool.clone(id), self.streams[id].clone())
        with pytest.raises(KeyError):
            self.pool.clone(id)
        return multiple()

    @rule(data=st.data(), as_array=st.booleans(), fewer=st.integers(0, 3))
    def step(self, data, as_array, fewer):
        ids = data.draw(st.permutations(list(self.streams)))[fewer:]
        x = self.random(len(ids))
        y = self.pool.step(np.array(ids, np.int64) if as_array else ids, x)
        assert y.shape[0] == len(ids)
        for k, id in enumerate(ids):
            assert same(y[k], self.streams[id].push(x[k]))
            self.streams.move_to_end(id)

    @rule(ids=st.lists(opened, min_size=1, max_size=6))
    def submit(self, ids):
        """Twice the same, closed ones among them: one submission after the other."""
        x = self.random(len(ids))
        futures = [self.pool.submit(id, x[k]) for k, id in enumerate(ids)]
        for k, (id, future) in enumerate(zip(ids, futures, strict=True)):
            if id in self.streams:
                assert same(future.result(60), self.streams[id].push(x[k]))
            else:
                assert isinstance(future.exception(60), KeyError)
        # Which ones were stepped together depends on the time: the order of use is then put in order.
        for id in OrderedDict.fromkeys(ids):
            if id in self.streams:
                self.pool.set_state(id, self.streams[id].state)
                self.streams.move_to_end(id)

    @rule(id=opened)
    def reset(self, id):
        if id in self.streams:
            self.pool.reset(id)
            self.streams[id].reset()
            self.streams.move_to_end(id)
        else:
            with pytest.raises(KeyError):
                self.pool.reset(id)

    @rule(id=opened, other=opened)
    def set_state(self, id, other):
        if id in self.streams and other in self.streams:
            self.pool.set_state(id, self.pool.state(other))
            self.streams[id].state = self.streams[other].state
            self.streams.move_to_end(id)

    @rule(id=consumes(opened))
    def close(self, id):
        if id in self.streams:
            self.pool.close(id)
            del self.streams[id]
        with raises(KeyError, str(id), "closed"):
            self.pool.close(id)

    @rule(count=st.integers(0, 3))
    def evict(self, count):
        expected = list(self.streams)[:count]
        assert self.pool.evict(count) == expected
        for id in expected:
            del self.streams[id]

    @rule()
    def close_all(self):
        self.pool.close_all()
        self.streams.clear()

    @rule(data=st.data(), wrong=st.sampled_from(["unknown", "negative", "closed", "twice", "x"]))
    def fail(self, data, wrong):
        ids = data.draw(st.permutations(list(self.streams)))
        kind, says, count = KeyError, "", 1
        if wrong == "unknown":
            ids, says = [*ids, max(self.ever, default=0) + 5], "ever"
        elif wrong == "negative":
            ids, says = [data.draw(st.sampled_from([-1, -(2**32), -(2**63)])), *ids], "ever"
        elif wrong == "closed" and set(self.ever) - set(self.streams):
            gone = data.draw(st.sampled_from(sorted(set(self.ever) - set(self.streams))))
            ids, says = [gone, *ids], "closed"
        elif wrong == "twice" and ids:
            ids, kind, says = [*ids, ids[0]], ValueError, "both"
        else:
            kind, says, count = ValueError, "x", 2
        with raises(kind, says):
            self.pool.step(ids, self.random(len(ids) * count + count - 1))

    @rule()
    def pickle(self):
        self.pool = pickle.loads(pickle.dumps(self.pool))
        for id, stream in self.streams.items():
            state, self.streams[id] = stream.state, self.pool.model.stream()
            self.streams[id].state = state
        self.model = self.pool.model

    @rule(scale=st.sampled_from([-1.0, 0.5]))
    def change_weights(self, scale):
        self.model.load_state_dict({key: scale * value for key, value in self.model.params.items()})

    @invariant()
    def same(self):
        if not hasattr(self, "pool"):
            return
        assert self.pool.ids() == list(self.streams)
        assert len(self.pool) == len(self.streams) <= self.pool.capacity
        assert self.full == "grow" or self.pool.capacity == self.capacity
        assert all((id in self.pool) == (id in self.streams) for id in self.ever)
        for id, stream in self.streams.items():
            assert same(self.pool.state(id), stream.state)

    def teardown(self):
        if hasattr(self, "pool"):
            self.pool.close_all()


TestPool = Pool.TestCase
TestPool.settings = hypothesis_settings(max_examples=100 if JIT else 20, stateful_step_count=30)


@models
def test_many_streams_in_one_step(name):
    """More than a tile's rows, in an order that is not the rows', again and again."""
    model, rng = make(name), np.random.default_rng(3)
    with model.stream_pool(40) as pool:
        ids = [pool.open() for _ in range(40)]
        streams = {id: model.stream() for id in ids}
        for round in range(4):
            some = rng.permutation(ids)[: 37 - 9 * round]
            x = inputs(name, len(some), seed=round)
            y = pool.step(some, x)
            assert same(y, np.array([streams[id].push(x[k]) for k, id in enumerate(some.tolist())]))


def test_a_full_pool():
    rnn = make("rnn")
    pool = rnn.stream_pool(2, full="raise")
    a, b = pool.open(), pool.open()
    with raises(RuntimeError, "all 2 streams", "evict()"):
        pool.open()
    assert pool.ids() == [a, b]
    pool.step([a], inputs("rnn", 1))
    assert pool.evict() == [b]
    assert pool.open() not in (a, b)


def test_growth_keeps_every_state():
    rnn = make("rnn")
    pool, streams = rnn.stream_pool(1), {}
    for k in range(9):
        stream = rnn.stream()
        stream.push(inputs("rnn", seed=k))
        streams[pool.open(stream.state)] = stream
    assert pool.capacity == 16
    assert {id: bits(pool.state(id)) for id in streams} == {id: bits(s.state) for id, s in streams.items()}


@pytest.mark.parametrize("after", ["step", "state", "open", "pickle"])
def test_interrupted_writing_is_finished(after):
    """Ctrl-C between the arrays of a state: the step has happened, whatever the pool is asked next."""
    lstm, x = make("lstm"), inputs("lstm", 2)
    pool, stream = lstm.stream_pool(1), lstm.stream()
    id = pool.open()
    stream.push(x[0])

    class Interrupted(np.ndarray):
        def __setitem__(self, *_):
            raise KeyboardInterrupt

    c = pool._states[1]
    pool._states[1] = c.view(Interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.step([id], x[:1])
    pool._states[1] = c
    if after == "state":
        assert same(pool.state(id), stream.state)
    elif after == "open":
        pool.open()
    elif after == "pickle":
        pool = pickle.loads(pickle.dumps(pool))
    assert same(pool.step([id], x[1:])[0], stream.push(x[1]))


def test_a_signal_handler_in_the_middle_of_a_step():
    """The lock lets its own thread in: what the handler does holds, and the step is not made over it."""

    class Signalled(fr.LSTM):
        handler = None

        def __call__(self, x, state=None, lengths=None):
            if self.handler is not None:
                handler, self.handler = self.handler, None
                handler()
            return super().__call__(x, state, lengths)

    lstm, x = Signalled(I, H, seed=1), inputs("lstm", 1)
    pool = lstm.stream_pool(1)
    id = pool.open()
    lstm.handler = lambda: (pool.close(id), pool.open())
    with raises(RuntimeError, "signal handler"):
        pool.step([id], x)
    (new,) = pool.ids()
    assert not pool.state(new)[0].any()
    pool.submit(new, x[0]).result(60)

    # The thread of the pool waits for this step, so this step's handler must not wait for the thread.
    waiting = []
    lstm.handler = lambda: (waiting.append(pool.submit(new, x[0])), pool.close_all())
    stepping = threading.Thread(target=pool.step, args=([new], x), daemon=True)
    stepping.start()
    stepping.join(60)
    assert not stepping.is_alive()
    assert isinstance(waiting[0].exception(60), KeyError)
    assert len(pool) == 0


# --- errors of a pool ---------------------------------------------------------------------------------------


def test_arguments_of_a_pool():
    rnn = make("rnn")
    for arguments, kind, says in (
        ({"capacity": 0}, ValueError, ("capacity is 0", "at least 1")),
        ({"capacity": 1.5}, TypeError, ("capacity is float",)),
        ({"capacity": 2**32}, ValueError, ("capacity is 4294967296",)),
        ({"capacity": 1, "full": "wait"}, ValueError, ("full is 'wait'", "'grow', 'evict' or 'raise'")),
        ({"capacity": 1, "linger_us": -1}, ValueError, ("linger_us is -1",)),
        ({"capacity": 1, "linger_us": float("nan")}, ValueError, ("linger_us is nan",)),
        ({"capacity": 1, "linger_us": "1"}, TypeError, ("linger_us is str",)),
    ):
        with raises(kind, *says):
            rnn.stream_pool(**arguments)


def test_arguments_of_a_step():
    """Each by its message; and no stream has moved."""
    lm = make("language_model")
    pool = lm.stream_pool(4)
    a, b = pool.open(), pool.open()
    closed = pool.open()
    pool.close(closed)
    pool.step([a, b], [1, 2])
    before, order = [bits(pool.state(id)) for id in (a, b)], pool.ids()
    for ids, x, kind, says in (
        ([a, 3], [1, 2], KeyError, ("ids[1] is 3", "no stream of this pool has ever had this id")),
        ([a, 10**6], [1, 2], KeyError, ("ids[1] is 1000000", "ever")),
        (np.array([a, 2**63], "uint64"), [1, 2], KeyError, ("ids[1] is 9223372036854775808", "ever")),
        ([closed, a], [1, 2], KeyError, (f"ids[0] is {closed}", "closed or evicted")),
        ([a, b, a], [1, 2, 3], ValueError, ("ids[0] and ids[2] are both 0",)),
        ([a, b], [1, 2, 3], ValueError, ("x", "(3,)", "indices (B,)", "B=2")),
        ([a, b], [1, V], ValueError, ("x holds 1 to 7", "num=7")),
        ([a, b], [1.0, 2.0], TypeError, ("x", "float64", "indices (B,)")),
        ([[a, b]], [1, 2], ValueError, ("ids", "(1, 2)", "(B,)")),
        ([0.0, 1.0], [1, 2], TypeError, ("ids", "float64", "integers")),
        (["0"], [1], TypeError, ("ids", "integers")),
        ([True], [1], TypeError, ("ids", "bool")),
        (a, [1], ValueError, ("ids", "()", "(B,)")),
        ([[a], [a, b]], [1], ValueError, ("ids", "ragged")),
    ):
        with raises(kind, *says):
            pool.step(ids, x)
        assert [bits(pool.state(id)) for id in (a, b)] == before
        assert pool.ids() == order
    for call in (pool.close, pool.reset, pool.state, pool.clone, lambda id: pool.set_state(id, None)):
        with raises(TypeError, "id is str"):
            call("0")
        with raises(TypeError, "id is bool"):
            call(True)
        with raises(KeyError, "id is -1", "ever"):
            call(-1)
    with raises(TypeError, "state", "tuple of 1"):
        pool.open(np.zeros(3))
    with raises(TypeError, "state", "tuple of 1"):
        pool.set_state(a, np.zeros(3))
    with raises(ValueError, "count is -1"):
        pool.evict(-1)
    assert pool.ids() == order
    assert "0" not in pool
    assert pool.step([], []).shape == (0, V)


def test_dense_and_index_inputs_of_a_pool():
    pool = make("lstm").stream_pool(2)
    ids = [pool.open(), pool.open()]
    with raises(ValueError, "x", "(3, 3)", "(B, I) with B=2, I=3"):
        pool.step(ids, np.zeros((3, I), "float32"))
    with raises(ValueError, "x", "(2, 3)", "indices (B,)", "floats (B, I)"):
        pool.step(ids, np.zeros((2, I), "int64"))


# --- submissions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linger_us", [0, 300])
@pytest.mark.parametrize("name", ["lstm", "language_model"])
def test_many_submitters(name, linger_us):
    """Eight threads, some streams each, while others open, step and close theirs: each stream's bits, in its order."""
    model, length, gate = make(name), 12, threading.Barrier(10)
    pool, wrong = model.stream_pool(2, linger_us=linger_us), []

    def submit():
        ids = [pool.open() for _ in range(3)]
        xs = [inputs(name, length, seed=id) for id in ids]
        gate.wait()
        futures = [[pool.submit(id, x[t]) for id, x in zip(ids, xs, strict=True)] for t in range(length)]
        for k, x in enumerate(xs):
            y = np.array([row[k].result(60) for row in futures])
            wrong.append(not same(y, whole(name, model, x)[0]))

    def come_and_go():
        gate.wait()
        for seed in range(length):
            id, x = pool.open(), inputs(name, 1, seed=seed)
            wrong.append(not same(pool.step([id], x), whole(name, model, x)[0]))
            pool.close(id)

    threads = [threading.Thread(target=work) for work in [submit] * 8 + [come_and_go] * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == [False] * (8 * 3 + 2 * length)
    pool.close_all()
    assert len(pool) == 0


def test_each_error_finds_its_future():
    """One bad submission does no harm to those gathered with it."""
    lm = make("language_model")
    with lm.stream_pool(4, linger_us=20_000) as pool:
        a, b, idle = pool.open(), pool.open(), pool.open()
        cases = [
            (a, 1, None, ""),
            (idle + 7, 1, KeyError, "ever"),
            (b, V, ValueError, "x is 7"),
            (b, "x", TypeError, "x is str"),
            ("b", 1, TypeError, "id is str"),
            (b, 2, None, ""),
        ]
        futures = [pool.submit(id, x) for id, x, _, _ in cases]
        for (_, _, kind, says), future in zip(cases, futures, strict=True):
            if kind is None:
                assert future.result(60).shape == (V,)
            else:
                with raises(kind, says):
                    future.result(60)
        assert same(pool.state(b), lm(np.array([[2]]))[1])


def test_an_error_of_the_model_finds_its_future():
    """What no check foresees: each is then stepped alone."""

    class Moody(fr.LSTM):
        def __call__(self, x, state=None, lengths=None):
            if (x == 13).any():
                raise ZeroDivisionError("13")
            return super().__call__(x, state, lengths)

    lstm, x = Moody(I, H, seed=1), np.array([[1, 2, 3], [13, 1, 2], [3, 2, 1]], "float32")
    with lstm.stream_pool(3, linger_us=20_000) as pool:
        ids = [pool.open() for _ in range(3)]
        good, bad, other = [pool.submit(id, x[k]) for k, id in enumerate(ids)]
        assert isinstance(bad.exception(60), ZeroDivisionError)
        assert same(np.array([good.result(60), other.result(60)]), lstm(x[None, [0, 2]])[0][0])
        assert not pool.state(ids[1])[0].any()


def test_indices_and_vectors_together():
    lstm, x = make("lstm"), np.array([0, 1, 0], "float32")
    with lstm.stream_pool(2, linger_us=20_000) as pool:
        ids = [pool.open(), pool.open()]
        dense, index = pool.submit(ids[0], x), pool.submit(ids[1], 1)
        assert same(dense.result(60), lstm.stream().push(x))
        assert same(index.result(60), lstm.stream().push(1))


def test_submitted_inputs_are_copied():
    lstm, x = make("lstm"), np.ones(I, "float32")
    with lstm.stream_pool(2, linger_us=50_000) as pool:
        id = pool.open()
        pool.open()  # idle: the first one waits for it
        future = pool.submit(id, x)
        x[:] = 0
        assert same(future.result(60), lstm.stream().push(np.ones(I, "float32")))


def test_cancelled_and_closed_submissions():
    """Neither is stepped, and the next one of the stream is the first."""
    lstm, x = make("lstm"), inputs("lstm", 2)
    pool = lstm.stream_pool(3, linger_us=1e6)
    a, b = pool.open(), pool.open()
    pool.open()
    cancelled, second, closed = pool.submit(a, x[0]), pool.submit(a, x[1]), pool.submit(b, x[0])
    assert cancelled.cancel()
    pool.close(b)
    pool.reset(a)
    pool.evict(0)
    inbox = pool._inbox
    inbox.linger_ns = 0  # the wait is over for whoever comes next
    with inbox.changed:
        inbox.changed.notify()
    with pytest.raises(CancelledError):
        cancelled.result(60)
    with raises(KeyError, f"id is {b}", "closed"):
        closed.result(60)
    assert same(second.result(60), lstm.stream().push(x[1]))
    pool.close_all()


def test_callbacks():
    """One that fails, even by SystemExit, or that submits or ends the pool, keeps nobody from the next."""
    lstm, x = make("lstm"), inputs("lstm", 2)
    pool, chained, closed = lstm.stream_pool(2), Future(), threading.Event()
    id = pool.open()

    def leave(_):
        raise SystemExit

    def go_on(_):
        pool.submit(id, x[1]).add_done_callback(lambda future: chained.set_result(future.result()))

    pool.submit(pool.open(), x[0]).add_done_callback(leave)
    pool.submit(id, x[0]).add_done_callback(go_on)
    assert same(chained.result(60), whole("lstm", lstm, x)[0][1])

    def end(_):
        pool.close_all()
        closed.set()

    pool.submit(id, x[0]).add_done_callback(end)
    assert closed.wait(60)
    assert len(pool) == 0


def test_close_all_steps_what_is_submitted():
    """And the pool, and a thread of its own, begin anew."""
    lstm, x = make("lstm"), inputs("lstm", 3)
    pool = lstm.stream_pool(2, linger_us=1e6)
    for _ in range(2):
        id = pool.open()
        pool.open()
        futures = [pool.submit(id, row) for row in x]
        worker = pool._inbox.worker
        pool.close_all()
        assert not worker.is_alive()
        assert all(future.done() for future in futures)
        assert same(np.array([future.result() for future in futures]), whole("lstm", lstm, x)[0])
        with raises(KeyError, "closed"):
            pool.submit(id, x[0]).result(60)


def test_a_dropped_pool_ends_its_thread():
    """Not before what it has promised is done."""
    lstm, x = make("lstm"), inputs("lstm", 3)
    pool = lstm.stream_pool(2, linger_us=10_000)
    id = pool.open()
    pool.open()
    futures, worker, gone = [pool.submit(id, row) for row in x], pool._inbox.worker, weakref.ref(pool)
    del pool
    assert same(np.array([future.result(60) for future in futures]), whole("lstm", lstm, x)[0])
    worker.join(60)
    gc.collect()
    assert not worker.is_alive()
    assert gone() is None


def test_no_thread_before_the_first_submission():
    pool, before = make("lstm").stream_pool(2), set(threading.enumerate())
    id = pool.open()
    pool.step([id], inputs("lstm", 1))
    assert set(threading.enumerate()) <= before
    pool.submit(id, inputs("lstm")).result(60)
    assert [thread.name for thread in set(threading.enumerate()) - before] == ["fastrnn-pool"]
    pool.close_all()


def test_everybody_there_is_reason_to_start():
    """No stream is left to wait for: the quarter of an hour of patience is not used."""
    lstm, x = make("lstm"), inputs("lstm")
    with lstm.stream_pool(2, linger_us=9e8) as pool:
        ids = [pool.open(), pool.open()]
        for future in [pool.submit(id, x) for id in ids]:
            future.result(60)


# --- forks --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork_while_others_submit():
    """Child after child, forked while threads push, step and submit: streams and pool go on there, from whole states,
    with the right bits.
    """
    printed = run_python(
        """
        import os, threading
        import numpy as np
        import fastrnn as fr

        lstm = fr.LSTM(3, 5, num_layers=2, seed=1)
        x = np.random.default_rng(1).standard_normal((30, 3)).astype("float32")
        y, _ = lstm(x[:, None])
        states, state = {}, tuple(np.zeros((2, 1, 5), "float32") for _ in range(2))
        for t in range(30):  # every state that there can be, by its first half
            states[state[0].tobytes()] = t, state[1].tobytes()
            _, state = lstm(x[t : t + 1, None], state)

        pool, lone, stop = lstm.stream_pool(4), lstm.stream(), threading.Event()
        ids = [pool.open() for _ in range(3)]

        def submit():
            while not stop.is_set():
                pool.reset(ids[0])
                for t in range(20):
                    pool.submit(ids[0], x[t]).result()

        def step():
            while not stop.is_set():
                for id in ids[1:]: pool.reset(id)
                for t in range(20):
                    for id in ids[1:]: pool.step([id], x[t : t + 1])

        def push():
            while not stop.is_set():
                lone.reset()
                lone.push_many(x)

        threads = [threading.Thread(target=work, daemon=True) for work in (submit, step, push)]
        for thread in threads: thread.start()

        def child():
            assert sorted(pool.ids()) == ids
            for id in ids:
                h, c = pool.state(id)
                t, expected = states[h.tobytes()]
                assert c.tobytes() == expected
                futures = [pool.submit(id, x[t + k]) for k in range(3)]
                for k, future in enumerate(futures):
                    assert future.result(30).tobytes() == y[t + k, 0].tobytes()
            lone.reset()
            assert lone.push_many(x).tobytes() == y[:, 0].tobytes()
            assert pool.step([pool.open()], x[:1]).tobytes() == y[0].tobytes()
            pool.close_all()

        for _ in range(8):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    child()
                    code = 0
                finally:
                    os._exit(code)
            print(os.waitpid(pid, 0)[1])
        stop.set()
        for thread in threads: thread.join()
        pool.close_all()
        """,
        timeout=90,
    )
    assert printed.split() == ["0"] * 8


def test_an_interpreter_ends_with_submissions_waiting():
    """No hang, no abort, nothing said."""
    printed = run_python(
        """
        import numpy as np
        import fastrnn as fr
        pool = fr.LSTM(3, 5).stream_pool(3, linger_us=1e9)
        ids = [pool.open(), pool.open()]
        pool.submit(ids[0], np.ones(3, "float32"))
        print("end")
        """
    )
    assert printed == "end\n"


# --- pickled layers -----------------------------------------------------------------------------------------


@models
def test_a_pickled_layer_sees_its_own_parameters(name):
    """Whatever had been packed before: a copy computes with the parameters it is given afterwards."""
    model, x = make(name), inputs(name, 1)[None]
    state = model.stream().state
    for _ in range(3):
        model(x, state)  # the quick step, once there is one
    other = pickle.loads(pickle.dumps(model))
    for k in range(1, 4):
        new = {key: value / (k + 1) for key, value in model.params.items()}
        fresh = make(name)
        fresh.load_state_dict(new)
        other.load_state_dict(new)
        assert same(other(x, state), fresh(x, state))
