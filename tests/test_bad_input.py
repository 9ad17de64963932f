"""Whatever a call is given: the right answer, or the documented exception and nothing changed.

Two searches for the contrary: broken arguments of single calls (fuzzing.py), and long sessions in which right and wrong
calls follow each other in any order, on objects that are compared with twins which have only seen the right ones.
"""

import ast
import contextlib
import copy
import pickle

import numpy as np
import pytest
from helpers import JIT, run_python
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import fastrnn as fr

B, I, H, V = 2, 3, 5, 4  # noqa: E741 - the glossary's letters


# --- broken arguments ---------------------------------------------------------------------------------------


def fuzz(call, timeout, before=""):
    """Runs `fuzzing.<call>` in a process of its own; `before` may spoil the package first."""
    code = f"import fuzzing, helpers\n{before}\nprint(fuzzing.{call})"
    return ast.literal_eval(run_python(code, timeout=timeout).splitlines()[-1])


def test_broken_arguments(effort, reliability):
    """Wrong ranks, sizes, types, strides, byte orders, values, tapes ...: no crash, no hang, no growth of memory."""
    count = effort(600 if JIT else 250, 100_000)
    found = fuzz(f"fuzz({count})", timeout=effort(900, 36_000))
    assert found["wrong"] == []
    assert found["refused"] + found["answered"] + found["too large"] == count
    assert found["refused"] > 0.3 * count
    assert found["answered"] > 0.1 * count
    memory = found["memory"]
    growth = memory[-1] - memory[len(memory) // 2]
    assert growth < 32 << 20, memory
    reliability(
        broken_calls=count, refused_and_nothing_changed=found["refused"], answered_rightly=found["answered"],
        that_asked_for_more_memory_than_there_is=found["too large"], lines_of_the_package_reached=found["lines"],
        calls_kept_for_reaching_new_ones=found["kept"], KiB_of_growth_in_the_second_half=growth >> 10,
    )  # fmt: skip


PLANTED = {
    "half of a state dict": (
        "load",
        """
        from fastrnn.layers.store import Params
        def load(self, new):
            for name in new:
                self[name] = new[name]
        Params.load = load
        """,
        "a failed call changed its object",
    ),
    "an unchecked shape": (
        "densities",
        """
        import fastrnn.losses.densities, fastrnn.losses.mixtures
        from fastrnn.checks import check_array
        def check_same(name, a, dtype, shape, of):
            return check_array(name, a, dtype, "...", {})
        fastrnn.losses.densities.check_same = check_same
        """,
        "",
    ),
    "a given array that is written to": (
        "softmax",
        """
        import fastrnn.losses.categorical as module
        check = module.check_array
        def check_array(name, a, *more):
            a = check(name, a, *more)
            a *= 1.5
            return a
        module.check_array = check_array
        """,
        "the given arrays were changed",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_fuzzer_finds_it(name):
    """Planted errors, one of each kind."""
    call, before, complaint = PLANTED[name]
    lines = [line.removeprefix("        ") for line in before.strip("\n").splitlines()]
    found = fuzz(f"fuzz(400, names=({call!r},), stop=1)", 300, "\n".join(lines))
    assert found["wrong"]
    assert complaint in found["wrong"][0][1]


# --- what they have found -----------------------------------------------------------------------------------


def moved(a):
    """The same numbers at an odd address."""
    raw = np.zeros(a.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(a.tobytes(), np.uint8)
    return raw.view(a.dtype).reshape(a.shape)


@pytest.mark.skipif(not JIT, reason="without JIT there is no quick way")
@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM])
def test_strange_arrays_on_the_quick_way(kind):
    """Numba takes an array of the other byte order for a misaligned one, once it has seen such: it got 1e30 for 1."""
    layer, x = kind(I, H, seed=1), np.linspace(-1, 1, I, dtype="f4").reshape(1, 1, I)
    y, state = layer(x, layer(x)[1])
    first = layer(x)[1]

    def masked(a):
        """Numba knows the type only where it has seen such an array before."""
        return np.ma.masked_array(np.repeat(a, 2, -1)[..., ::2])

    for change in (moved, lambda a: a.astype(">f4"), masked):
        changed = tuple(map(change, first)) if isinstance(first, tuple) else change(first)
        assert same(layer(x, changed), (y, state))
        assert same(layer(change(x), first), (y, state))


@pytest.mark.skipif(not JIT, reason="without JIT there is no quick way")
def test_one_step_of_a_linear_layer():
    """It goes the quick way after the first; whatever that does not take goes the other, to the same end."""
    layer, x = fr.Linear(I, 40, seed=1), np.linspace(-1, 1, 2 * I, dtype="f4").reshape(1, 2, I)
    y = layer(np.concatenate([x, x]))[:1]
    for _ in range(2):
        masked = np.ma.masked_array(np.asfortranarray(np.concatenate([x, x], 1)))[:, :2]
        for changed in (x, moved(x), x.astype(">f4"), masked, x[:, ::-1][:, ::-1], x.tolist()):
            assert same(layer(changed), y)
        assert layer(x).base is None
    assert layer._ready is not None
    assert same(layer(x[0]), y[0])
    assert layer(x[:, :0]).shape == (1, 0, 40)
    for wrong in (x[..., 1:], x.astype("f8"), x.astype("c8"), "x", np.float32(1)):
        with pytest.raises((TypeError, ValueError), match="x "):
            layer(wrong)
    layer.params["bias"] = np.ones(40)
    assert same(layer(x), layer(np.concatenate([x, x]))[:1])
    assert not same(layer(x), y)


def test_a_sequential_looks_at_all_gradients_before_it_adds_any():
    """A wrong dy used up the tape, a wrong dstate of an early layer came after the later ones' gradients."""
    model = fr.Sequential(fr.GRU(I, H, seed=1), fr.Sequential(fr.RNN(H, H, seed=2), fr.Linear(H, V, seed=3)))
    y, state, tape = model.forward(np.ones((3, B, I), "f4"))
    wrong = np.zeros((1, B, H + 1), "f4")
    before = contents(model)
    for dy, dstate, name in ((y[1:], None, "dy"), (y, (wrong, (state[1][0],)), "dstate"), (y, (None, wrong), "dstate")):
        with pytest.raises((TypeError, ValueError), match=name):
            model.backward(tape, dy, dstate)
        assert contents(model) == before
    model.backward(tape, y, state)
    assert contents(model) != before


def test_a_failed_forward_draws_nothing():
    """Dropout had drawn when a later layer's state turned out to be wrong: the next forward had another mask."""
    model, x = fr.Sequential(fr.Dropout(0.5, seed=1), fr.RNN(I, H, seed=2)), np.ones((3, B, I), "f4")
    with pytest.raises(ValueError, match="state"):
        model.forward(x, (np.zeros((1, B, H + 1), "f4"),))
    fresh = fr.Sequential(fr.Dropout(0.5, seed=1), fr.RNN(I, H, seed=2))
    assert same(model.forward(x)[0], fresh.forward(x)[0])


def test_names_in_complaints():
    """Of which of many layers: the name by which the caller knows the parameter."""
    model = fr.Sequential(fr.Linear(I, I), fr.Linear(I, V))
    for wrong in (np.zeros(3), "text", [[0.0], [1.0, 2.0]]):
        with pytest.raises((TypeError, ValueError), match=r"^1\.weight "):
            model.params["1.weight"] = wrong
        with pytest.raises((TypeError, ValueError), match=r"^1\.weight "):
            model.load_state_dict({**model.state_dict(), "1.weight": wrong})
    with pytest.raises(TypeError, match="seed is 'abc'"):
        fr.Linear(I, V, seed="abc")
    with pytest.raises(ValueError, match="tape comes from another layer"):
        fr.Last().backward(model.forward(np.ones((2, I), "f4"))[1], np.ones((2, V), "f4"))


def test_sizes_without_memory():
    """A view of one number may claim any shape, and a layer any size: an answer at once, not in a week."""
    shape = (1 << 46, B, I)
    with pytest.raises(ValueError, match="x has shape"):
        fr.GRU(I + 1, H)(np.broadcast_to(np.float16(0), shape))
    for call in (
        lambda: fr.Embedding(V, I)(np.broadcast_to(0, shape)),
        lambda: fr.LSTM(V, H).stream().push_many(np.broadcast_to(0, 1 << 46)),
        lambda: fr.LSTM(1 << 40, 1 << 40),
        lambda: fr.Linear(1 << 31, 1 << 31),
    ):
        with pytest.raises(MemoryError):
            call()


# --- sessions -----------------------------------------------------------------------------------------------

MODELS = {
    "lstm": lambda: fr.LSTM(I, H, seed=1),
    "gru": lambda: fr.GRU(I, H, seed=2),
    "language": lambda: fr.Sequential(fr.Embedding(V, I, seed=3), fr.LSTM(I, H, seed=4), fr.Linear(H, V, seed=5)),
}
seeds = st.integers(0, 2**32 - 1)
DONE = {"calls": 0, "refused": 0}


def contents(model):
    """Values and gradients."""
    return [(store.values.tobytes(), store.grads.tobytes()) for store in model.stores()]


def leaves(state):
    return [state] if isinstance(state, np.ndarray) else [leaf for part in state for leaf in leaves(part)]


def same(a, b):
    return [x.tobytes() for x in leaves(a)] == [x.tobytes() for x in leaves(b)]


def one_result(a, b):
    """The same bits; without JIT, where the order of a sum is NumPy's choice and depends on the rows, nearly so."""
    return same(a, b) if JIT else all(np.allclose(x, y, 1e-5, 1e-6) for x, y in zip(leaves(a), leaves(b), strict=True))


@contextlib.contextmanager
def refused(*names, errors=(TypeError, ValueError)):
    """The documented exception, about one of these."""
    with pytest.raises(errors) as caught:
        yield
    assert any(name in str(caught.value) for name in names), str(caught.value)
    DONE["refused"] += 1


class Session(RuleBasedStateMachine):
    """A model that sees right and wrong calls, and its twin, which sees the right ones only."""

    tapes, streams = Bundle("tapes"), Bundle("streams")

    @initialize(kind=st.sampled_from(list(MODELS)))
    def begin(self, kind):
        self.kind = kind
        self.model, self.twin = MODELS[kind](), MODELS[kind]()
        self.opts = [fr.Adam(model, lr=0.01) for model in (self.model, self.twin)]
        self.other = MODELS[kind]()
        self.version = 0  # of the parameters
        self.pool, self.pooled = self.model.stream_pool(2), {}

    def x(self, seed, T, batch=B):
        rng = np.random.default_rng(seed)
        return rng.integers(0, V, (T, batch)) if self.kind == "language" else rng.standard_normal((T, batch, I), "f4")

    def wrong_x(self, seed, T):
        x = self.x(seed, T)
        if self.kind == "language":
            return [x + V, x - V, x.astype(float), x[0, 0], [[0], [1, 2]]][seed % 5]
        return [x[..., 1:], x[0], x.astype("f8"), x.astype(object), x.astype("c8"), None][seed % 6]

    # -- training

    @rule(target=tapes, seed=seeds, T=st.integers(1, 3), lengths=st.booleans())
    def forward(self, seed, T, lengths):
        x, given = self.x(seed, T), np.random.default_rng(seed).integers(0, T + 1, B) if lengths else None
        y, state, tape = self.model.forward(x, None, given)
        y2, state2, tape2 = self.twin.forward(x, None, given)
        assert same((y, state), (y2, state2))
        return {"tape": tape, "twin": tape2, "y": y, "state": state, "version": self.version, "used": False}

    @rule(seed=seeds, T=st.integers(1, 3))
    def forward_of_wrong_input(self, seed, T):
        with refused("x", "ids"):
            self.model.forward(self.wrong_x(seed, T))
        with refused("lengths"):
            self.model.forward(self.x(seed, T), None, [[T + 1] * B, [-1] * B, [T], [0.5] * B][seed % 4])
        with refused("state"):
            state = self.model(self.x(seed, T))[1]
            wrong = [leaf[..., 1:] for leaf in leaves(state)]
            self.model(self.x(seed, T), [wrong[0], tuple(wrong), (tuple(wrong),)][seed % 3])

    @rule(one=tapes, seed=seeds)
    def backward(self, one, seed):
        """Any tape: new, used, or of parameters that are no longer."""
        dy = np.random.default_rng(seed).standard_normal(one["y"].shape, "f4")
        if one["used"] or one["version"] != self.version:
            with refused("tape"):
                self.model.backward(one["tape"], dy)
            return
        got, expected = self.model.backward(one["tape"], dy), self.twin.backward(one["twin"], dy)
        one["used"] = True
        assert (got[0] is None) == (expected[0] is None)
        assert same(got[1], expected[1])

    @rule(one=tapes, seed=seeds)
    def wrong_backward(self, one, seed):
        """The tape stays good: whatever comes later may use it."""
        y, state, tape = one["y"], one["state"], one["tape"]
        with refused("tape"):
            self.other.backward(tape, y)
        with refused("tape"):
            self.model.backward([None, "tape", y][seed % 3], y)
        if one["used"] or one["version"] != self.version:
            return
        with refused("dy"):
            self.model.backward(tape, [y[..., 1:], y[0], y.astype("f8"), "dy"][seed % 4])
        with refused("dstate"):
            wrong = [leaf[:, 1:] for leaf in leaves(state)]
            self.model.backward(tape, y, [wrong[0], tuple(wrong), (tuple(wrong),)][seed % 3])

    @rule()
    def step(self):
        for opt in self.opts:
            opt.step()
        self.version += 1

    @rule()
    def zero_grad(self):
        self.model.zero_grad()
        self.twin.zero_grad()

    @rule(norm=st.floats(0.01, 10))
    def clip(self, norm):
        assert fr.clip_grad_norm(self.model, norm) == fr.clip_grad_norm(self.twin, norm)
        with refused("max_norm"):
            fr.clip_grad_norm(self.model, -norm)
        with refused("limit"):
            fr.clip_grad_value(self.model, "1")

    @rule(seed=seeds)
    def assign(self, seed):
        """One parameter, rightly, after wrong attempts."""
        names = list(self.model.params)
        name = names[seed % len(names)]
        shape = self.model.params[name].shape
        value = np.random.default_rng(seed).standard_normal(shape)
        with refused(name):
            self.model.params[name] = value[1:]
        with refused("parameter", errors=KeyError):
            self.model.params[name + "x"] = value
        for model in (self.model, self.twin):
            model.params[name] = value
        self.version += 1

    @rule(seed=seeds)
    def wrong_state_dict(self, seed):
        state = self.model.state_dict()
        name = sorted(state)[seed % len(state)]
        if seed % 3:
            state[name] = [state[name][1:], state[name].astype(str)][seed % 2]
        else:
            del state[name]
        with refused(name):
            self.model.load_state_dict(state)
        saved = self.opts[0].state_dict()
        saved["lr"] = -1.0
        with refused("lr"):
            self.opts[0].load_state_dict(saved)

    @rule()
    def go_on_with_a_copy(self):
        """A pickled model, with its optimizer's state, is as good as the first; tapes stay behind."""
        self.model, saved = pickle.loads(pickle.dumps(self.model)), self.opts[0].state_dict()
        self.opts[0] = fr.Adam(self.model, lr=0.01)
        self.opts[0].load_state_dict(saved)
        self.version += 1
        states = {id: self.pool.state(id) for id in self.pooled}
        self.pool, old = self.model.stream_pool(2), self.pooled
        self.pooled = {self.pool.open(states[id]): state for id, state in old.items()}

    # -- streams

    @rule(target=streams)
    def stream(self):
        return {"stream": self.model.stream(), "state": None, "model": self.model}

    @rule(target=streams, one=streams)
    def clone(self, one):
        return {**one, "stream": copy.deepcopy(one["stream"], {id(one["model"]): one["model"]})}

    @rule(one=streams, seed=seeds, T=st.integers(1, 3))
    def push(self, one, seed, T):
        if one["model"] is not self.model:  # of a model that has been copied since
            return
        stream, x = one["stream"], self.x(seed, T, 1)
        wrong = self.wrong_x(seed, T)
        with refused("x"):
            stream.push_many([[]] if wrong is None or getattr(wrong, "shape", ()) == (B, I) else wrong)  # that is T, I
        with refused("state"):
            stream.state = [np.zeros(3), "state", (np.zeros((1, 1, H), "f4"),) * 3][seed % 3]
        y, one["state"] = self.twin(x, one["state"])
        if T == 1:
            assert same(stream.push(x[0, 0]), y[0, 0])
        else:
            assert same(stream.push_many(x[:, 0]), y[:, 0])
        assert same(stream.state, one["state"])

    @rule(one=streams)
    def reset(self, one):
        one["stream"].reset()
        one["state"] = None

    # -- the pool

    @rule()
    def open(self):
        if len(self.pooled) < 5:
            self.pooled[self.pool.open()] = None

    @rule(seed=seeds)
    def pool_step(self, seed):
        """Some of the streams, in any order, after wrong attempts."""
        rng = np.random.default_rng(seed)
        ids = rng.permutation(list(self.pooled))[: rng.integers(1, 4)].tolist()
        x = self.x(seed, 1, len(ids))[0]
        if not ids:
            return
        for wrong in ([*ids, ids[0]], [*ids[1:], 12345], [*ids[1:], -1], ids[1:], np.array(ids, float)):
            with refused("ids", "x", errors=(TypeError, ValueError, KeyError)):
                self.pool.step(wrong, x)
        with refused("x"):
            self.pool.step(ids, x[..., None, None])
        y = self.pool.step(ids, x)
        for k, id in enumerate(ids):
            alone, self.pooled[id] = self.twin(x[None, k : k + 1], self.pooled[id])
            assert one_result(y[k], alone[0, 0])

    @rule(seed=seeds)
    def close(self, seed):
        if self.pooled:
            id = list(self.pooled)[seed % len(self.pooled)]
            if seed % 2:
                self.pool.close(id)
            else:
                (id,) = self.pool.evict()
            del self.pooled[id]
            for call in (self.pool.close, self.pool.reset, self.pool.state):
                with refused("id", errors=KeyError):
                    call(id)

    # -- always

    @invariant()
    def as_the_twin(self):
        if hasattr(self, "model"):
            DONE["calls"] += 1
            assert contents(self.model) == contents(self.twin)
            assert set(self.pool.ids()) == set(self.pooled)
            for id, state in self.pooled.items():
                if state is not None:
                    assert one_result(self.pool.state(id), state)


def test_sessions(effort, reliability):
    """Right and wrong calls in any order; objects that have seen wrong ones are as those that have not."""
    DONE.update(calls=0, refused=0)
    examples, steps = effort(10 if JIT else 3, 2000), effort(25, 50)
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Session,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, derandomize=True, deadline=None, database=None,
            suppress_health_check=checks,
        ),
    )  # fmt: skip
    assert DONE["refused"] > examples
    reliability(sessions=examples, steps=DONE["calls"], wrong_calls_refused_with_nothing_changed=DONE["refused"])
