"""Tickets: who computes which item, and when it may.

The work of a kernel is a sequence of steps, each of `items` independent items; an item of step t may start when all
items of step t - 1 are finished. Items are taken from counters, never assigned: whoever is there works, nobody waits
for a helper that has not come, and only an item that a running thread holds is ever waited for. So it cannot deadlock,
whatever the operating system does with the helpers. A barrier over a fixed team can, and with another process on one
of two cores its 95th percentile was nine times as long.

Each worker takes its own share of the items first, in every step the same, so that the weights which belong to them
stay in its cache, forth and back in turns, so that part of them stay there that are too large for it; and then what is
left of the others' shares.

One phase of a kernel uses (1 + workers) cache lines of `tickets`: how many items are finished, then for each worker
how many of its share are taken. Both only ever grow, so that nothing has to be reset between steps. Where a worker is,
in which round, stands beside its share. The functions below know the tickets by their address.

Beside the first phase's count stands whether worker 0, the caller, has come. Helpers do not begin before (threads.py):
a caller that is interrupted on its way into the kernel leaves nobody behind who writes into its arrays.

Because nothing but the tickets says what is left to do, a worker can leave between two items and come back. In long
work the caller does, so that Python can look for signals: `UNTIL` tells when, `AWAY` that it has left before the end.
And `call_off` ends the work for everybody, by tickets that say that all is taken and finished.
"""

from __future__ import annotations

import numpy as np
from numba.core import config
from numba.extending import intrinsic

from .._jit import device, inlined, kernel
from .atomic import address, atomic_add, atomic_load, compare_swap, now, put
from .late import call_by_name, define, known_by_name
from .post import go_on, share, wait_patiently

LINE = 8  # int64 values in a cache line: counters of different workers never share one
CALLER = 1  # where the tickets say that the caller has come
UNTIL = 2  # until when it stays, on Python's monotonic clock in ns; 0: to the end
AWAY = 3  # 1 once it has left before the end
LOOKS = 2048  # at the clock in one phase, about
# after these POST and PLACES: see post.py
# Of a worker's own line, and nobody else looks there: the round that it is in, how many items of that it has taken and
# not yet counted, and how many the caller has done since it looked at the clock.
ROUND, DONE, UNSEEN = 1, 2, 3
OVER = 1 << 62  # more than any count of items


def new_tickets(phases: int, workers: int) -> np.ndarray:
    """int64 counters for `phases` phases, all zero."""
    return np.zeros(phases * (1 + workers) * LINE, np.int64)


def call_off(tickets: np.ndarray) -> None:
    """Nothing is left to take or to wait for. Who holds an item finishes it."""
    tickets[::LINE] = OVER


@device
def to_and_fro(n, count, turn):
    """The n-th of `count` items, in odd turns from the last one down. What belongs to the last items of one turn is
    then still in the cache when the next begins, however much all of it is.
    """
    # An LSTM with (T, B, I, H) = (100, 1, 512, 512), 2 MiB of weights a core and 1 MiB of second-level cache, took 0.92
    # of the time, a GRU 0.87; training did not change.
    return count - 1 - n if turn % 2 else n


@device
def take(tickets, phase, worker, workers, step, items, turn):
    """An item of `step` that nobody has taken, or -1. Own share first, then the others'."""
    base = phase * (1 + workers) * LINE
    for d in range(workers):
        owner = worker + d
        if owner >= workers:
            owner -= workers
        first = owner * items // workers
        share = (owner + 1) * items // workers - first
        at = base + (1 + owner) * LINE
        taken = atomic_load(tickets, at)
        while taken < (step + 1) * share:
            seen = taken
            if workers == 1:
                put(tickets, at, taken + 1)
            else:
                seen = compare_swap(tickets, at, taken, taken + 1)
            if seen == taken:
                return first + to_and_fro(taken - step * share, share, step + turn)
            taken = seen
    return -1


@device
def finish(tickets, phase, workers, count):
    """Counts items as finished; what they wrote is visible to everybody who sees the count.

    A worker counts all that it took of a step at once: item by item the counter went from core to core all the time.
    """
    at = phase * (1 + workers) * LINE
    if workers == 1:
        put(tickets, at, atomic_load(tickets, at) + count)
    elif count > 0:
        atomic_add(tickets, at, count)


@device
def wait(tickets, phase, worker, workers, count):
    """Returns when `count` items of `phase` are finished."""
    at = phase * (1 + workers) * LINE
    spins = 0
    while atomic_load(tickets, at) < count:
        wait_patiently(tickets, worker, spins)
        spins += 1
    go_on(tickets, worker)


@device
def advance(tickets, phase, worker, workers, rounds, items):
    """The next item of this worker, whose round stands at ROUND then; what it had before is done. Or -1: all items of
    all rounds are finished, whoever took them, or it is time for the caller to leave.
    """
    first = phase * (1 + workers) * LINE
    own = first + (1 + worker) * LINE
    r, done = atomic_load(tickets, own + ROUND), atomic_load(tickets, own + DONE)
    until = atomic_load(tickets, UNTIL) if worker == 0 else 0
    if until and done:
        unseen = 1 + atomic_load(tickets, own + UNSEEN)
        if unseen > rounds * items // LOOKS:
            unseen = 0
            if now() >= until:
                finish(tickets, phase, workers, done)
                put(tickets, own + DONE, 0)
                put(tickets, AWAY, 1)
                return -1
        put(tickets, own + UNSEEN, unseen)
    if done == 0:
        r = max(r, atomic_load(tickets, first) // max(1, items))
    while r < rounds:
        if done == 0:
            wait(tickets, phase, worker, workers, r * items)
        item = take(tickets, phase, worker, workers, r, items, 0)
        if item >= 0:
            put(tickets, own + ROUND, r)
            put(tickets, own + DONE, done + 1)
            return item
        finish(tickets, phase, workers, done)
        r, done = r + 1, 0
    put(tickets, own + ROUND, r)
    put(tickets, own + DONE, 0)
    wait(tickets, phase, worker, workers, rounds * items)
    return -1


@kernel
def ticket_functions():
    """Nothing to call: the functions that kernels call by name. (Written into each kernel, they were a seventh of a
    cold training step.)
    """
    define(take)
    define(advance)


def _take(typingctx, tickets, phase, worker, workers, step, items, turn):
    return call_by_name(take, ticket_functions)


def _advance(typingctx, tickets, phase, worker, workers, rounds, items):
    return call_by_name(advance, ticket_functions)


if config.DISABLE_JIT:
    take_there, advance_there = take, advance
else:
    known_by_name(ticket_functions, take, advance)
    take_there, advance_there = intrinsic(_take), intrinsic(_advance)


@device
def next_item(tickets, worker, workers, n, items, step, turn, divided):
    """Of a step's items, if they are divided, one that nobody has taken, or -1; else the n-th.

    What `turns` does, for few items: a generator takes 0.02 us for each.
    """
    if divided:
        return take_there(tickets, 0, worker, workers, step, items, turn)
    return to_and_fro(n, items, step + turn)


@inlined
def turns(tickets, phase, worker, workers, rounds, items):
    """Yields every (round, item) that this worker takes, `items` in each of `rounds`, and counts those of a round as
    finished when there are no more. It ends when all items of all rounds are finished, whoever took them; or, for the
    caller, when it is time to leave: then every `turns` of the kernel ends at once, and when the kernel is called again
    each goes on from where the tickets stand.

    At the first of them the caller hands the kernel that it is in to those who wait for one.
    """
    share(address(tickets), phase, worker)
    return _turns(address(tickets), phase, worker, workers, rounds, items)


# Of numbers alone: compiled code never gives back the references to arrays that a generator takes.
@device
def _turns(tickets, phase, worker, workers, rounds, items):
    if worker == 0:
        if workers > 1:
            atomic_add(tickets, CALLER, 1)
        if atomic_load(tickets, AWAY):
            return
    own = (phase * (1 + workers) + 1 + worker) * LINE
    item = advance_there(tickets, phase, worker, workers, rounds, items)
    while item >= 0:
        yield atomic_load(tickets, own + ROUND), item
        item = advance_there(tickets, phase, worker, workers, rounds, items)
