"""Threads keep off their caller's processor, and are fetched by those who wait for them when they have lost theirs."""

import ctypes
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import JIT

import fastrnn as fr
from fastrnn import threads
from fastrnn._jit import kernel
from fastrnn.simd import processors
from fastrnn.simd.atomic import address
from fastrnn.simd.post import new_post
from fastrnn.simd.processors import (
    AT_WORK,
    CALLER,
    CPU,
    FETCHED,
    HELPERS,
    HOME,
    MOVES,
    NONE,
    OFF,
    ON,
    PAUSE,
    RECORD,
    SHUNNED,
    THREAD,
    USED,
    WAITS,
    new_record,
)

pytestmark = pytest.mark.skipif(
    not (JIT and MOVES and len(os.sched_getaffinity(0)) > 1), reason="nobody can be moved here"
)

WAIT = 60  # seconds, against a hang
ALL = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


@kernel
def stands(worker, workers, tickets, record, found):
    found[0] = processors.stands(address(record))


@kernel
def tend(worker, workers, tickets, post, who):
    processors.tend(address(post), who)


@kernel
def resume(worker, workers, tickets, post, record):
    processors.resume(address(post), address(record))


@kernel
def make_way(worker, workers, tickets, post, asleep):
    processors.make_way(address(post), asleep > 0)


@kernel
def avoid(worker, workers, tickets, post, record):
    processors.avoid(address(post), address(record))


NOBODY = np.zeros(0, np.int64)


def is_standing(record):
    found = np.zeros(1, np.int64)
    stands.held(0, 1, NOBODY, record, found)
    return bool(found[0])


class Thread:
    """One that sleeps, or computes, until it is told to end."""

    def __init__(self, sleeping):
        self.ended, ready = threading.Event(), threading.Event()

        self.turns = 0

        def run():
            self.record, self.number = new_record(0), threading.get_native_id()
            ready.set()
            while not (self.ended.wait() if sleeping else self.ended.is_set()):
                self.turns += 1

        self.thread = threading.Thread(target=run)
        self.thread.start()
        assert ready.wait(WAIT)

    def __enter__(self):
        time.sleep(0.05)
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join(WAIT)

    @property
    def cpus(self):
        return os.sched_getaffinity(self.number)


def on_a_thread(run):
    """Runs it on a thread of its own, whose processors it may change."""
    found = []
    thread = threading.Thread(target=lambda: found.append(run()))
    thread.start()
    thread.join(WAIT)
    return found[0]


def test_only_who_does_not_run_stands():
    with Thread(sleeping=True) as one:
        assert [is_standing(one.record) for _ in range(3)] == [False, True, True]
    with Thread(sleeping=False) as one:
        for _ in range(5):
            turns, end = one.turns, time.monotonic() + WAIT
            while one.turns == turns:  # it needs the GIL to run
                time.sleep(1e-3)
                assert time.monotonic() < end
            assert not is_standing(one.record)


@pytest.fixture
def post():
    """With a caller that is this thread, and has begun a call."""
    made = new_post()
    made[CALLER + THREAD] = threading.get_ident()
    return made


def look_twice(post, who):
    """Nobody stands who has not been looked at before."""
    for _ in range(2):
        tend.held(0, 1, NOBODY, post, who)


def test_the_caller_fetches_a_helper_and_it_goes_back(post):
    with Thread(sleeping=True) as one:
        one.record[ON], post[CPU], post[AT_WORK + 1] = max(ALL), min(ALL), one.record.ctypes.data
        look_twice(post, 0)
        cpu = one.record[ON]
        assert cpu in ALL
        assert list(one.record[[OFF, FETCHED, HOME]]) == [NONE, 1, max(ALL)]
        assert 0 < post[SHUNNED] <= time.monotonic_ns() + PAUSE
        assert one.cpus == ALL  # it is moved, and may go elsewhere if the system thinks so
        look_twice(post, 0)  # once is enough
        assert list(one.record[[ON, HOME]]) == [cpu, max(ALL)]
        resume.held(0, 1, NOBODY, post, one.record)
        assert not one.record[FETCHED]
        assert one.cpus == ALL - {min(ALL)}
        assert post[CALLER + WAITS] == 1
        resume.held(0, 1, NOBODY, post, post[CALLER : CALLER + RECORD])
        assert post[CALLER + WAITS] == 0


@pytest.mark.parametrize("cpu", [min(ALL), max(ALL)])
def test_a_sleeping_helper_makes_way_before_it_is_woken(post, cpu):
    """And one that is awake only if it is where the caller is."""
    with Thread(True) as one:
        post[HELPERS], post[CPU] = one.record.ctypes.data, cpu
        make_way.held(0, 1, NOBODY, post, 0)
        assert (one.cpus, one.record[OFF]) == (ALL, NONE)
        make_way.held(0, 1, NOBODY, post, 1)
        assert (one.cpus, one.record[OFF]) == (ALL - {cpu}, cpu)
        post[CPU], one.record[ON] = other(cpu), other(cpu)
        make_way.held(0, 1, NOBODY, post, 0)
        assert (one.cpus, one.record[OFF]) == (ALL - {other(cpu)}, other(cpu))


@pytest.mark.parametrize("cpu", [min(ALL), max(ALL)])
def test_a_helper_avoids_the_caller(post, cpu):
    def run():
        os.sched_setaffinity(0, {cpu})
        record, post[CPU] = new_record(0), other(cpu)
        avoid.held(0, 1, NOBODY, post, record)
        found = [(os.sched_getaffinity(0), record[ON])]
        post[CPU] = cpu
        avoid.held(0, 1, NOBODY, post, record)
        return [*found, (os.sched_getaffinity(0), record[OFF], record[ON] != cpu)]

    assert on_a_thread(run) == [({cpu}, cpu), (ALL - {cpu}, cpu, True)]


def other(cpu):
    return min(ALL - {cpu})


def test_who_holds_nothing_is_left_where_it_is(post):
    """But not when all others are waited for, at the end of a call."""
    with Thread(sleeping=True) as one:
        post[AT_WORK + 1], one.record[WAITS] = one.record.ctypes.data, 1
        look_twice(post, 0)
        assert not one.record[FETCHED]
        look_twice(post, ~0)
        assert one.record[FETCHED]


def test_a_helper_changes_places_with_the_caller(post):
    """Whose processors are its own, and stay so."""
    with Thread(sleeping=True) as caller:
        post[CALLER + THREAD] = caller.thread.ident
        own = min(ALL), max(ALL)
        os.sched_setaffinity(caller.number, own)

        def help_out(cpu):
            os.sched_setaffinity(0, {cpu})
            record = new_record(0)
            post[AT_WORK + 1] = record.ctypes.data
            look_twice(post, 1)
            return record[OFF], os.sched_getaffinity(0)

        for cpu in own:
            post[CALLER + USED] = 0  # as if nobody had looked at it yet
            assert on_a_thread(lambda cpu=cpu: help_out(cpu)) == (cpu, ALL - {cpu})
            assert post[CPU] == cpu
            assert caller.cpus == set(own)
            assert not post[CALLER + FETCHED]


def test_a_caller_that_keeps_to_its_processors_stays_there(post):
    with Thread(sleeping=True) as caller:
        post[CALLER + THREAD], post[CPU] = caller.thread.ident, NONE
        os.sched_setaffinity(caller.number, {min(ALL)})

        def help_out():
            os.sched_setaffinity(0, {max(ALL)})
            record = new_record(0)
            post[AT_WORK + 1] = record.ctypes.data
            look_twice(post, 1)
            return os.sched_getaffinity(0)

        assert on_a_thread(help_out) == {max(ALL)}
        assert caller.cpus == {min(ALL)}
        assert post[CPU] == NONE


def test_beside_a_busy_process_helpers_are_fetched(monkeypatch, set_num_threads):
    """The results are the same bits, and this thread's processors are what they were."""
    set_num_threads(1)
    layer, x = fr.LSTM(64, 256, seed=1), np.random.default_rng(2).standard_normal((60, 16, 64), dtype=np.float32)
    expected = layer(x)[0].tobytes()
    monkeypatch.setattr(threads, "_team", made := threads._Team())
    set_num_threads(2)
    made.ask()
    end = time.monotonic() + WAIT
    while layer(x)[0].tobytes() == expected and made.serving == 0:
        assert time.monotonic() < end
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in ALL]
    try:
        while not fetched(made):
            assert layer(x)[0].tobytes() == expected
            assert time.monotonic() < end
    finally:
        for one in busy:
            one.kill()
            one.wait()
    assert os.sched_getaffinity(0) == ALL


def fetched(team):
    at = int(team.post[processors.HELPERS])
    return at and ctypes.cast(at, ctypes.POINTER(ctypes.c_int64))[HOME] != NONE
