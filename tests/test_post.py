"""Kernels that are handed to helpers without Python: the same bits, and nobody stays in a call that has ended."""

import ctypes
import os
import sys
import threading
import time

import numpy as np
import pytest
from helpers import JIT, run_python

import fastrnn as fr
from fastrnn import threads
from fastrnn._jit import kernel
from fastrnn.simd.atomic import now
from fastrnn.simd.post import INSIDE, OPEN, PARKED, PARKS, SEMAPHORE, TAKEN, TENDS, WAITING
from fastrnn.simd.processors import HELPERS, OFF, ON, SHUNNED
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
    """Two helpers that serve at the post, for any work, and look for it longer than usual."""
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
    """Both serve, and look for work: there was some just now."""
    team = threads._team
    team.ask()
    until(lambda: team.serving == 2)
    until(lambda: count_once(3) and threads.at_hand(1.0) == 3)


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


def count_once(workers):
    """How many of 300 items each worker took."""
    taken = np.zeros(workers, np.int64)
    threads.launch(count_items, workers, 1, 1.0, 300, taken)
    assert taken.sum() == 300
    return list(taken)


def test_helpers_take_part(team):
    """Each of them has a share of a call, and every item is taken once."""
    count_once(3)
    gather()
    until(lambda: all(count_once(3)))


needs_parking = pytest.mark.skipif(not PARKS, reason="helpers sleep in a queue here")


@needs_parking
def test_helpers_that_sleep_are_woken(team, monkeypatch):
    """By whoever is in the kernel; and nobody is woken twice, or never again."""
    monkeypatch.setattr(threads, "LINGER", 20_000)
    count_once(3)
    team.ask()
    until(lambda: team.serving == 2)
    parked = 0
    for k in range(300):
        time.sleep(k % 7 * 2e-5)
        parked += team.post[PARKED] > 0
        count_once(3 - k % 2)
    assert parked
    until(lambda: all(count_once(3)))
    until(lambda: team.post[PARKED] == 2)
    tokens = ctypes.c_int(-1)
    assert ctypes.CDLL(None).sem_getvalue(ctypes.c_void_p(team.at + 8 * SEMAPHORE), ctypes.byref(tokens)) == 0
    assert tokens.value == 0
    assert not team.post[[OPEN, INSIDE, WAITING, TAKEN]].any()


@needs_parking
def test_helpers_are_not_where_the_caller_is(team, monkeypatch):
    """Neither those who look for work nor those who sleep: Linux would leave both on one processor for milliseconds."""
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one processor")
    gather()
    own = [ctypes.cast(int(at), ctypes.POINTER(ctypes.c_int64)) for at in team.post[HELPERS : HELPERS + 2]]
    team.post[TENDS] = 0  # nobody is fetched: who is may be anywhere until it has finished its item
    try:
        for sleeping in (False, True):
            for cpu in (min(mine), max(mine)):
                until(lambda needed=sleeping: not needed or team.post[PARKED] == 2)
                # Of this thread alone: the helpers' processors are those of the main thread, where this test may run.
                worker = threading.Thread(target=call_on, args=(cpu,))
                worker.start()
                worker.join(WAIT)
                until(lambda cpu=cpu: all(one[ON] != cpu for one in own))
                if sleeping:
                    assert all(one[OFF] == cpu for one in own)
            monkeypatch.setattr(threads, "LINGER", 0)
    finally:
        os.sched_setaffinity(0, mine)


def call_on(cpu):
    os.sched_setaffinity(0, {cpu})
    count_once(3)


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
            threads.divide(
                broken, (*layer._quick_with("l0", 40), 0), 3, 1.0, 1, x, np.empty((3, 1, 4, 90), np.float32),
                *np.zeros((2, 1, 4, 90), np.float32),
            )  # fmt: skip
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
    until(lambda: layer(x)[0].tobytes() == y.tobytes() and team.serving == 3)


def test_helpers_are_called_where_small_work_comes_again_and_again(monkeypatch, set_num_threads):
    """Not for a step now and then: waking somebody would cost more than he saves."""
    set_num_threads(2)
    team, work = threads._Team(), threads.SMALL / 4
    monkeypatch.setattr(threads, "_team", team)
    monkeypatch.setattr(threads, "LINGER", 2 * 10**7)
    for _ in range(6):
        assert threads.at_hand(work) == 1
        time.sleep(0.03)
    assert not team.threads

    def burst():
        time.sleep(0.03)
        return [threads.at_hand(work) for _ in range(4)]

    until(lambda: burst() and team.asked)
    assert len(team.threads) == 1
    until(lambda: team.serving == 1 and team.post[WAITING] == 0)  # and it does not look for work for ever
    if PARKS:
        for _ in range(6):
            time.sleep(0.03)
            assert threads.at_hand(work) == 1
        until(lambda: burst() == [1, 1, 1, 2])
    set_num_threads(1)
    assert [threads.at_hand(work) for _ in range(8)] == [1] * 8


def test_helpers_that_keep_their_caller_waiting_sleep(team, divided, monkeypatch):
    """And then they are given work again."""
    layer, x = fr.LSTM(40, 90, seed=1), np.ones((1, 4, 40), np.float32)
    layer(x)
    gather()
    monkeypatch.setattr(threads, "STALL", -1)  # every call takes too long
    until(lambda: layer(x) and team.post[SHUNNED])
    monkeypatch.setattr(threads, "STALL", 10**12)
    team.post[SHUNNED] = time.monotonic_ns() + 10**12
    until(lambda: team.post[WAITING] == 0)
    divided.clear()
    assert threads.at_hand(1.0) == 1
    layer(x)
    assert not divided
    team.post[SHUNNED] = 0
    gather()
    until(lambda: layer(x) and divided)


ELSEWHERE = """
import sys, time
import numba.extending
import numpy as np
sys.platform = "elsewhere"
import fastrnn as fr
from fastrnn import threads
from fastrnn.simd import post, processors

assert not post.PARKS and not processors.MOVES
layer, x = fr.LSTM(40, 128, seed=1), np.ones((30, 32, 40), np.float32)
fr.set_num_threads(1)
expected = layer(x)[0].tobytes()
fr.set_num_threads(2)
threads._team.ask()
end, served = time.monotonic() + 60, 0
while served < 50:  # at the post, from which they come back
    assert time.monotonic() < end
    served += threads._team.serving
    assert layer(x)[0].tobytes() == expected
assert all(one.is_alive() for one in threads._team.threads)
"""


def test_helpers_serve_where_nobody_can_be_moved_or_parked(tmp_path):
    """As on systems other than Linux: so with a cache of its own."""
    run_python(ELSEWHERE, FASTRNN_CACHE_DIR=str(tmp_path))


BIG = """
import sys, threading, time
import numpy as np
import fastrnn as fr
from fastrnn import threads

fr.set_num_threads(COUNT)
layer, x = fr.LSTM(256, 256, seed=1), np.ones((1, 400, 256), np.float32)
threads._team.ask()
while threads._team.serving < fr.get_num_threads() - 1:
    time.sleep(0.01)
seen, stop = [], []

def look():
    while not stop:
        seen.append(time.perf_counter())
        time.sleep(0)

layer(x)
assert layer._ready is not None
fr.last_call_info()
sys.setswitchinterval(1e-4)
threading.Thread(target=look, daemon=True).start()
for _ in range(200):
    start = time.perf_counter()
    y, _ = layer(x)
    middle = (start + time.perf_counter()) / 2
    if any(start < t < middle for t in seen[-100000:]):
        break
else:
    sys.exit("nobody else ran meanwhile")
stop.append(True)
assert fr.last_call_info()[-1].kernel == "lstm_steps"
np.testing.assert_array_equal(y, layer(x, lengths=[1] * 400)[0])
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_large_step_lets_go_of_the_gil(count):
    """As large as it may be to go the quick way."""
    run_python(BIG.replace("COUNT", str(count)))
