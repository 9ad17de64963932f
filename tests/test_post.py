"""Kernels that are handed to helpers without Python: the same bits, and nobody stays in a call that has ended."""

import sys
import threading
import time

import numpy as np
import pytest
from helpers import JIT

import fastrnn as fr
from fastrnn import threads
from fastrnn._jit import kernel
from fastrnn.simd.atomic import now
from fastrnn.simd.post import INSIDE, OPEN, TAKEN, WAITING
from fastrnn.simd.sync import turns

pytestmark = pytest.mark.skipif(not JIT, reason="without JIT there is one thread")

WAIT = 60  # seconds, against a hang
CELLS = [
    (fr.RNN, {"nonlinearity": "relu"}), (fr.RNN, {"num_layers": 2, "dtype": "float64"}),
    (fr.LSTM, {"peephole": "diagonal"}), (fr.LSTM, {"num_layers": 3}), (fr.LSTM, {"coupled": True, "clip": 0.1}),
    (fr.GRU, {}), (fr.GRU, {"num_layers": 2}),
]  # fmt: skip


def until(true):
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end
        time.sleep(1e-3)


@pytest.fixture
def team(monkeypatch, set_num_threads):
    """Two helpers that wait at the post, for any work, longer than usual."""
    made = threads._Team()
    monkeypatch.setattr(threads, "_team", made)
    monkeypatch.setattr(threads, "LINGER", 3 * 10**8)
    monkeypatch.setattr(threads, "STALL", 10**12)
    monkeypatch.setattr(threads, "NEW", 0)
    monkeypatch.setattr(threads, "DIVIDED", 1)
    monkeypatch.setattr("fastrnn.layers.recurrent.DIVIDED", 1)
    set_num_threads(3)
    return made


def gather():
    """Two helpers wait."""
    until(lambda: threads.at_hand() == 3)


@pytest.fixture
def divided(monkeypatch):
    """The tickets of whatever is divided."""
    made, new_tickets = [], threads.new_tickets
    monkeypatch.setattr(threads, "new_tickets", lambda *sizes: made.append(new_tickets(*sizes)) or made[-1])
    return made


@kernel
def count_items(worker, workers, tickets, items, taken):
    for _, _ in turns(tickets, 0, worker, workers, 1, items):
        end = now() + 20_000
        while now() < end:
            pass
        taken[worker] += 1


def test_helpers_take_part(team):
    """Each of them has a share of a call, and every item is taken once."""

    def one_call():
        taken = np.zeros(3, np.int64)
        threads.launch(count_items, 3, 1, 1.0, 300, taken)
        assert taken.sum() == 300
        return taken

    one_call()
    gather()
    until(lambda: one_call().all())


@pytest.mark.parametrize(("kind", "options"), CELLS)
@pytest.mark.parametrize(("T", "B"), [(1, 1), (1, 7), (4, 3)])
def test_steps_have_the_same_bits(team, divided, kind, options, T, B):
    layer, rng = kind(50, 150, seed=1, **options), np.random.default_rng(2)
    x = rng.standard_normal((T, B, 50)).astype(layer.dtype)
    long_y, long_final = layer(x, lengths=[T] * B)  # not the quick way
    _, state = layer(x)
    gather()
    divided.clear()
    for _ in range(200):
        y, final = layer(x)
        assert y.tobytes() == long_y.tobytes()
        assert np.array(final).tobytes() == np.array(long_final).tobytes()
    assert divided
    assert np.array(layer(x, state)[1]).tobytes() == np.array(layer(x, state, lengths=[T] * B)[1]).tobytes()
    until(lambda: not team.post[[OPEN, INSIDE, TAKEN]].any())


@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
def test_training_has_the_same_bits(team, set_num_threads, kind):
    """Every launch of a pass, of work so small that nobody would be woken for it."""
    model = fr.Sequential(fr.Embedding(11, 9, seed=1), kind(9, 70, num_layers=2, seed=2), fr.Linear(70, 11, seed=3))
    ids = np.random.default_rng(4).integers(0, 11, (6, 5))

    def one_pass():
        logits, _, tape = model.forward(ids)
        loss, dlogits = fr.cross_entropy(logits, ids)
        model.zero_grad()
        model.backward(tape, dlogits)
        return logits.tobytes() + np.array(loss).tobytes() + b"".join(g.tobytes() for g in model.grads.values())

    found = {one_pass()}
    gather()
    found |= {one_pass() for _ in range(20)}
    set_num_threads(1)
    assert found == {one_pass()}


def test_the_post_has_one_caller_at_a_time(team):
    """Others work alone meanwhile; all are right."""
    layers = [kind(40, 90, seed=k) for k, kind in enumerate((fr.RNN, fr.LSTM, fr.GRU, fr.LSTM))]
    x = np.random.default_rng(1).standard_normal((1, 4, 40), dtype=np.float32)
    expected, wrong = [layer(x, lengths=[1] * 4)[0].tobytes() for layer in layers], []

    def work(k):
        for _ in range(500):
            if layers[k](x)[0].tobytes() != expected[k]:
                wrong.append(k)

    gather()
    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong
    until(lambda: not team.post[[OPEN, INSIDE, TAKEN]].any())


def test_no_reference_is_lost_or_kept(team):
    """Helpers count none: the arrays are the caller's."""
    layer, x = fr.LSTM(40, 90, seed=1), np.ones((1, 4, 40), np.float32)
    state = layer(x)[1]
    layer(x, state)
    gather()
    before = [sys.getrefcount(a) for a in (x, *state)]
    for _ in range(1000):
        layer(x, state)
    assert [sys.getrefcount(a) for a in (x, *state)] == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_gives_the_post_back(team, monkeypatch, error):
    """Whether it strikes before the kernel or after it."""
    layer, x = fr.LSTM(40, 90, seed=1), np.ones((1, 4, 40), np.float32)
    expected = layer(x)[0].tobytes()

    def before(*args):
        raise error

    def after(*args):
        run(*args)
        raise error

    run = layer._compiled
    gather()
    for broken in (before, after):
        with pytest.raises(error):
            threads.divide(broken, (), 3, *layer._quick_with("l0", 40), 0, x, np.empty((3, 1, 4, 90), np.float32),
                           *np.zeros((2, 1, 4, 90), np.float32))  # fmt: skip
        until(lambda: not team.post[[OPEN, INSIDE, TAKEN]].any())
        assert layer(x)[0].tobytes() == expected


def test_those_who_wait_and_those_who_are_parked_work_on_one_call(team, divided, set_num_threads):
    """Two of them wait, three are wanted."""
    layer, x = fr.LSTM(64, 128, seed=1), np.ones((50, 16, 64), np.float32)
    set_num_threads(1)
    y = layer(x)[0]
    set_num_threads(3)
    gather()
    set_num_threads(4)
    assert layer(x)[0].tobytes() == y.tobytes()
    assert len(team.threads) == 3
    until(lambda: layer(x)[0].tobytes() == y.tobytes() and team.post[WAITING] == 3)


def test_a_helper_is_asked_for_where_small_work_comes_again_and_again(monkeypatch, set_num_threads):
    """Not for a step now and then: waking somebody would cost more than he saves."""
    set_num_threads(2)
    team = threads._Team()
    monkeypatch.setattr(threads, "_team", team)
    monkeypatch.setattr(threads, "LINGER", 2 * 10**7)
    for _ in range(3):
        assert threads.at_hand() == 1
        time.sleep(0.03)
    assert not team.threads
    for _ in range(threads.OFTEN):
        assert threads.at_hand() == 1
    assert not team.threads
    until(lambda: threads.at_hand() == 2)
    until(lambda: team.post[WAITING] == 0)  # and it does not wait for ever
    set_num_threads(1)
    assert [threads.at_hand() for _ in range(3)] == [1, 1, 1]


def test_helpers_that_keep_their_caller_waiting_are_left_alone(team, divided, monkeypatch):
    """And then they are given work again."""
    layer, x = fr.LSTM(40, 90, seed=1), np.ones((1, 4, 40), np.float32)
    layer(x)
    gather()
    monkeypatch.setattr(threads, "STALL", -1)  # every call takes too long
    until(lambda: layer(x) and team.shunned)
    monkeypatch.setattr(threads, "STALL", 10**12)
    team.shunned = time.monotonic_ns() + 10**12
    assert threads.at_hand() == 1
    divided.clear()
    layer(x)
    assert not divided
    team.shunned = 0
    gather()
    until(lambda: layer(x) and divided)


def test_they_are_left_alone_for_longer_and_longer():
    """While it goes on, up to 32 times as long as the first time."""
    made, first, now = threads._Team(), threads.SHUNNED, 10**12
    pauses = []
    for _ in range(8):
        made.shun(now)
        pauses.append(made.shunned - now)
        now = made.shunned + 1
    assert pauses == [first * 2 ** min(k, 5) for k in range(8)]
    made.shun(now + 1000 * first)
    assert made.shunned == now + 1001 * first
