"""The helpers: they work while their caller does, and not a moment longer; no error ends them."""

import itertools
import threading
import time

import numpy as np
import pytest
from helpers import JIT

import fastrnn as fr
from fastrnn import threads
from fastrnn.kernels.panels import inwards
from fastrnn.simd.sync import CALLER

WAIT = 60  # seconds, against a hang


class Job:
    """In the place of a kernel: `work` is called as the kernel is, by the caller and by every helper that comes."""

    shown = slice(0)

    def __init__(self, work):
        self.released = work


@pytest.fixture
def team(monkeypatch):
    """Helpers of our own, none at first, that get their work from the queue."""
    monkeypatch.setattr(threads, "NEW", 10**9)
    monkeypatch.setattr(threads, "_team", threads._Team())
    return threads._team


def settled(team):
    """Waits until every job has been taken, and its helper is back for the next."""
    both = threading.Barrier(len(team.threads) + 1, timeout=WAIT)

    def work(worker, workers, tickets):
        tickets[CALLER] = 1
        both.wait()

    threads.launch(Job(work), len(team.threads) + 1, 1, 1e9)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_no_helper_works_for_a_caller_that_never_began(team, error):
    """The job has been handed out, then the caller is interrupted: nobody writes into its arrays."""
    written = np.zeros(3)

    def work(worker, workers, tickets):
        if worker == 0:
            time.sleep(0.01)  # the helpers are awake
            raise error
        written[worker] = 1

    for _ in range(20):
        with pytest.raises(error):
            threads.launch(Job(work), 3, 1, 1e9)
    settled(team)
    assert not written.any()
    assert len(team.threads) == 2


def test_helpers_come_when_the_caller_has_begun(team):
    """As soon as it has: not only those that look later."""
    began, came = threading.Event(), threading.Barrier(3, timeout=WAIT)

    def work(worker, workers, tickets):
        if worker == 0:
            tickets[CALLER] = 1
            began.set()
        assert began.is_set()
        came.wait()

    for _ in range(20):
        began.clear()
        threads.launch(Job(work), 3, 1, 1e9)


def test_an_error_does_not_end_a_helper(team):
    def work(worker, workers, tickets):
        tickets[CALLER] = 1
        if worker:
            raise MemoryError

    for _ in range(5):
        threads.launch(Job(work), 3, 1, 1e9)
    settled(team)
    assert all(thread.is_alive() for thread in team.threads)
    assert len(team.threads) == 2


@pytest.mark.skipif(not JIT, reason="without JIT there are no helpers")
def test_kernels_say_that_the_caller_has_begun(monkeypatch, set_num_threads):
    """Every parallel launch of a training step."""
    set_num_threads(3)
    made, new_tickets = [], threads.new_tickets

    def noted(phases, workers):
        tickets = new_tickets(phases, workers)
        made.append((workers, tickets))
        return tickets

    monkeypatch.setattr(threads, "new_tickets", noted)
    layer, x = fr.LSTM(37, 100, seed=1), np.ones((20, 13, 37), np.float32)
    y, _, tape = layer.forward(x)
    layer.backward(tape, y)
    parallel = [tickets for workers, tickets in made if workers > 1]
    assert len(parallel) >= 2
    assert all(tickets[CALLER] for tickets in parallel)
    assert not any(tickets[CALLER] for workers, tickets in made if workers == 1)


@pytest.mark.parametrize(
    ("serving", "first", "expected"), [(0, 1, [1, 2, 3]), (1, 2, [2, 3]), (1, 1, [1, 2]), (0, 2, [2, 3])]
)
def test_no_number_is_given_twice_and_no_job_to_nobody(team, monkeypatch, serving, first, expected):
    """Those before `first` are given at the post, whether as many still serve there or not."""
    monkeypatch.setattr(team, "threads", [None] * 3)
    monkeypatch.setattr(team, "serving", serving)
    threads._hand_out(team, Job(None), first, 4, None, (), [])
    given = []
    while not team.jobs.empty():
        _, (_, worker, *_) = team.jobs.get()
        given.append(worker)
    assert given == expected


@pytest.mark.parametrize("rows", range(1, 14))
def test_rows_are_taken_inwards(rows):
    """Each once; and who goes on from any two at the distance of those, as a processor's prefetcher does, is still in
    them: those beyond are another worker's.
    """
    of_python = getattr(inwards, "py_func", inwards)  # only kernels call the compiled one
    order = [of_python(k, rows) for k in range(rows)]
    assert sorted(order) == list(range(rows))
    turn = rows // 2
    for half in (order[:turn], order[turn:]):
        assert all(0 <= 2 * b - a < rows for a, b in itertools.pairwise(half))
