"""The threads that help: how many, how they are woken, what becomes of them after a fork.

Helpers are ordinary Python threads, so there is no threading layer to choose, to abort or to hang. A call hands its job
to the helpers that are idle and starts working at once; a helper that comes late finds no tickets left (see
simd/sync.py). Numba's own pool and its settings are never touched.

The first jobs come from a queue, until a helper has done enough to be worth compiling more for. From then on it serves
at the post (simd/post.py), without Python and its GIL: it looks for work for half a millisecond after the last, when
it costs nobody anything to hand some out, and then sleeps until a caller wakes it. So work is divided that is too
little to wake anybody for, where it comes again and again. Nobody waits long for a thread that has lost its processor
to another process (simd/processors.py).

A helper works only while its caller does: it begins when the caller is in the kernel, which does not return before all
items are finished. From long work the caller returns now and then, so that Python can run what a signal asks for; if
that raises (Ctrl-C), the rest is called off. Whatever exception strikes the caller, at whatever moment, nobody writes
into its arrays afterwards.

A helper that looks for work is there within 1 us, one that sleeps after some 80. (A `prange` launch, OpenMP layer,
takes 3 us, but is compiled a second time, takes the GIL twice, kills or hangs a forked child, and on another layer
aborts when two threads launch.)
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from time import monotonic_ns, sleep
from typing import Any, NamedTuple

from numba.core import config

from ._jit import SMALL, begin, kernel
from .simd.post import (
    PARKS,
    PLACES,
    POST,
    WAITING,
    new_post,
    serve,
    withdraw,
)
from .simd.processors import PAUSE, SHUNNED, new_record
from .simd.sync import AWAY, CALLER, UNTIL, call_off, new_tickets

# Seconds between looks at whether the caller has begun.
PATIENCE = (0.0, 0.0, 0.0, 5e-5, 1e-4, 2e-4, 5e-4)

# Multiply-adds from which work is long: 5 ms to 1 s. In it the caller looks for signals so many nanoseconds apart.
LONG, APART = 1e9, 200_000_000

# Nanoseconds for which a helper looks for work before it sleeps; multiply-adds from which work is divided if one looks.
# Calls that follow each other as closely, and together are not SMALL, are worth waking one.
LINGER, DIVIDED = 500_000, 400_000
STALL = 1_000_000  # nanoseconds that little work takes only if a helper has lost its processor
NEW = 8  # jobs after which a helper serves at the post: to compile what it takes would make a first call longer

_log = logging.getLogger("fastrnn")


class _Team:
    """The helpers of one process."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Any] = SimpleQueue()
        self.lock = threading.Lock()
        self.threads: list[threading.Thread] = []
        self.post = new_post()
        self.at = self.post.ctypes.data
        self.lately, self.wanted = 0.0, 0  # multiply-adds that nobody was there for; and when it last was so
        self.asked = 0  # how many helpers have been asked to serve at the post
        self.serving = 0  # how many do

    def grow(self, count: int) -> None:
        with self.lock:
            while len(self.threads) < count:
                thread = threading.Thread(target=self._help, args=(len(self.threads),), name="fastrnn", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no more threads to be had, or the interpreter is shutting down
                    return
                self.threads.append(thread)

    def ask(self) -> None:
        """Asks all helpers to serve at the post, once."""
        self.grow(get_num_threads() - 1)
        while self.asked < len(self.threads):
            self.asked += 1
            self.jobs.put((-1, None))

    def shun(self) -> None:
        """What is done there too, where a helper can be fetched (simd/processors.py)."""
        self.post[SHUNNED] = monotonic_ns() + PAUSE

    def _help(self, number: int) -> None:
        own, done, serves, others = new_record(number), 0, False, 0
        while True:
            try:
                cpu, job = self.jobs.get(block=not serves)
            except Empty:
                for _ in range(others):
                    self.jobs.put((-1, None))
                others = 0
                serve.released(self.post, LINGER, own)
                if not PARKS:
                    serves = self._serves(False)
                continue
            if serves and job is None:  # for one that does not yet
                others += 1
                continue
            if cpu >= 0 and _cpu() == cpu:
                _leave(cpu)
            if job is not None:
                self._do(*job)
                done += 1
            if not config.DISABLE_JIT and not serves and (job is None or done >= NEW):
                withdraw.for_types(self.post, _NO_TICKETS)  # what the caller needs is there before anybody serves
                serves = self._serves(True)
            # Parked, a helper must not keep the arrays of its last job alive.
            del job

    def _serves(self, now: bool) -> bool:
        """Counts a helper that gets its work at the post from now on, or from the queue again."""
        with self.lock:  # what is in the queue by then, it still does
            self.serving += 1 if now else -1
            self.asked = max(0, self.asked - (not now))
        return now

    def _do(self, run: Any, worker: int, workers: int, tickets: Any, args: Any, helping: list[int]) -> None:
        helping.append(worker)
        if _has_begun(tickets):
            try:
                run(worker, workers, tickets, *args)
            except Exception as error:  # no memory to begin with, say: the others do its share
                _log.debug("a helper gave up: %s", error)
        helping.pop()


def _has_begun(tickets: Any) -> bool:
    """Whether the caller of a job is in the kernel, or comes in the next millisecond.

    As a rule it is: it holds the GIL until then, and a helper needs the GIL to get here. One that still compiles the
    kernel, or has lost the GIL to another thread just then, does without.
    """
    for pause in PATIENCE:
        if tickets[CALLER]:
            return True
        sleep(pause)
    return bool(tickets[CALLER])


def _find_cpu() -> Callable[[], int]:
    """A function that tells which processor the calling thread is on, -1 where that cannot be known or changed."""
    if hasattr(os, "sched_setaffinity"):
        try:
            return ctypes.CDLL(None).sched_getcpu
        except (OSError, AttributeError):
            pass
    return lambda: -1


_cpu = _find_cpu()


def _leave(cpu: int) -> None:
    """Moves the calling helper to another processor.

    Linux likes to wake a thread on the processor of its waker and leaves both there for milliseconds: after a pause, a
    call with (T, B, I, H) = (100, 32, 128, 256) took 12.4 ms, the time of one thread; with this it takes 8.2.
    """
    try:
        if others := os.sched_getaffinity(os.getpid()) - {cpu}:
            os.sched_setaffinity(0, others)
    except OSError:
        pass


_team = _Team()

_NO_TICKETS = new_tickets(1, 1)
ALONE = 0, 1, _NO_TICKETS.ctypes.data  # worker, workers and tickets of few steps that the caller takes alone


def _after_fork() -> None:
    """Threads do not survive a fork: the child starts with a team of its own, and nobody in it."""
    global _team
    _team = _Team()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _quota() -> float:
    """Processors that the control group grants, or infinity."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()
        return float("inf") if quota == "max" else float(quota) / float(period)
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as f, open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as g:
            quota_us, period_us = float(f.read()), float(g.read())
        return quota_us / period_us if quota_us > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")


def _default() -> int:
    asked = os.environ.get("FASTRNN_NUM_THREADS")
    if asked:
        if not asked.isdigit() or int(asked) < 1:
            raise ValueError(f"FASTRNN_NUM_THREADS is {asked!r}, expected a whole number from 1")
        return int(asked)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cpus, _quota())))


_num_threads: int | None = None


def get_num_threads() -> int:
    """How many threads work on one call: the caller and its helpers.

    By default the smaller of the processors that this process may run on and its control group's quota, or
    ``FASTRNN_NUM_THREADS``.

    >>> import fastrnn as fr
    >>> fr.get_num_threads() >= 1
    True
    """
    global _num_threads
    if _num_threads is None:
        _num_threads = _default()
    return _num_threads


def set_num_threads(n: int) -> None:
    """Sets how many threads work on one call. Results do not depend on it.

    >>> import fastrnn as fr
    >>> before = fr.get_num_threads()
    >>> fr.set_num_threads(1); fr.get_num_threads()
    1
    >>> fr.set_num_threads(before)
    """
    global _num_threads
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"n is {type(n).__name__}, expected an int")
    if n < 1:
        raise ValueError(f"n is {n}, expected a number of threads from 1")
    _num_threads = n


def workers_for(work: float, items: int) -> int:
    """How many workers `work` multiply-adds in `items` pieces are worth."""
    if config.DISABLE_JIT or work < DIVIDED:
        return 1
    workers = get_num_threads() if work >= SMALL else at_hand(work)
    return max(1, min(workers, items))


def at_hand(work: float) -> int:
    """How many workers there are at the post: the caller and, for little work, the helpers that look for some. Those
    that sleep are counted, and will be woken, for what is not little, and where so much of it comes closely after each
    other that it is worth it.
    """
    team = _team
    if work >= SMALL:
        return min(get_num_threads(), 1 + team.serving)
    helpers = team.post[WAITING]
    if not helpers:
        now = monotonic_ns()
        if now < team.post[SHUNNED]:
            return 1
        team.lately = work + (team.lately if now - team.wanted < LINGER else 0.0)
        team.wanted = now
        if team.lately < SMALL:
            return 1
        helpers = team.serving
        if not helpers and team.asked < get_num_threads() - 1:
            team.ask()
    return min(get_num_threads(), 1 + int(helpers))


def divide(
    run: Any, given: tuple[Any, ...], workers: int, work: float, pieces: int, *args: Any
) -> Any:  # fmt: skip
    """What compiled code `run`, which begins with `worker`, `workers` and where tickets are, gives the caller; helpers
    at the post are the other workers. It lets go of the GIL by itself.
    """
    if _asked and work >= SMALL:
        _seen.add((run, workers, work, (run.py_func.__globals__["BY_ROWS"] if pieces > 1 else 0, pieces)))
    team, tickets, begun = _team, new_tickets(1, workers), monotonic_ns()
    if workers > 1:
        tickets[POST], tickets[PLACES] = team.at, workers - 1
    try:
        result = run(0, workers, tickets.ctypes.data, *given, pieces, *args)
        if workers > 1:
            withdraw.held(team.post, tickets)
            if work < SMALL and monotonic_ns() - begun > STALL:
                team.shun()
        return result
    except BaseException:
        _call_off(team, tickets, [])
        raise


def launch(run: kernel, workers: int, phases: int, work: float, *args: Any) -> None:
    """Runs kernel `run` with `args` to its end, on the caller and up to `workers - 1` helpers."""
    if _rehearsed.wanted is not None:
        _rehearsed.wanted.append((run.held if work < SMALL else run.released, (0, workers, _NO_TICKETS, *args)))
        return
    if _asked:
        _seen.add((run, workers, work, args[run.shown]))
    tickets = new_tickets(phases, workers)
    if workers == 1 and work < SMALL:
        run.held(0, 1, tickets, *args)
        return
    team, begun = _team, monotonic_ns()
    helping: list[int] = []  # helpers that have taken the job from the queue and not yet left it
    try:
        places = min(team.serving, workers - 1)
        if places:
            tickets[POST], tickets[PLACES] = team.at, places
        if places < workers - 1 and work >= SMALL:
            _hand_out(team, run, 1 + places, workers, tickets, args, helping)
        if work < LONG:
            (run.held if work < SMALL else run.released)(0, workers, tickets, *args)
        else:
            tickets[AWAY] = 1
            while tickets[AWAY]:
                tickets[AWAY], tickets[UNTIL] = 0, monotonic_ns() + APART
                run.released(0, workers, tickets, *args)
        if tickets[POST]:
            withdraw.held(team.post, tickets)
            if work < SMALL and monotonic_ns() - begun > STALL:
                team.shun()
    except BaseException:
        _call_off(team, tickets, helping)
        raise


def _hand_out(
    team: _Team, run: kernel, first: int, workers: int, tickets: Any, args: tuple[Any, ...], helping: list[int]
) -> None:  # fmt: skip
    """By the queue, to those who do not serve at the post, as the workers from `first` on."""
    if len(team.threads) < workers - 1:
        team.grow(workers - 1)
    cpu = _cpu()
    with team.lock:  # who begins to serve meanwhile takes what is in the queue by then, and nothing after it
        for worker in range(first, min(workers, first + len(team.threads) - team.serving)):
            team.jobs.put((cpu, (run.released, worker, workers, tickets, args, helping)))


def _call_off(team: _Team, tickets: Any, helping: list[int]) -> None:
    """Returns when no helper works on the job any more, whatever signals come meanwhile: arrays are given back then."""
    while True:
        try:
            call_off(tickets)
            if tickets[POST]:
                withdraw.held(team.post, tickets)
            while helping:
                sleep(1e-4)
            return
        except BaseException:  # one is being raised already
            continue


# --- first calls --------------------------------------------------------------------------------------------------


class _Rehearsed(threading.local):
    """What a thread has rehearsed: compiled code wanted, and arguments for it; None if it does not."""

    wanted: list[tuple[Any, tuple[Any, ...]]] | None = None


_rehearsed = _Rehearsed()


def rehearsing() -> bool:
    """Whether this thread's launches are only rehearsed, so that what they write is not there."""
    return _rehearsed.wanted is not None


@contextmanager
def rehearsal() -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """Nothing is launched in the block: all kernels that it would launch begin to be compiled at its end, so that LLVM
    works on one while Numba writes the next. The launches themselves follow.

    gives : compiled code wanted (`held` or `released` of a kernel) and arguments for it, which may be added to
    """
    wanted: list[tuple[Any, tuple[Any, ...]]] = []
    around, _rehearsed.wanted = _rehearsed.wanted, wanted
    try:
        yield wanted
    finally:
        _rehearsed.wanted = around
    if not config.DISABLE_JIT:
        # The longest first, which by and large has the most arguments: for what is written last LLVM is waited for.
        for made, args in sorted(wanted, key=lambda one: -len(one[1])):
            begin(made, *args)


# --- how calls were run -------------------------------------------------------------------------------------------

REMEMBERED = 64  # launches of a thread, the latest


class Launch(NamedTuple):
    """How one kernel was run."""

    kernel: str
    workers: int  # threads that it was handed to, the caller among them
    by: str | None  # what several workers of a recurrent kernel divide: "rows" of the batch, or "panels" of units too
    pieces: int | None  # into how many parts the rows were divided, where they are
    work: float  # multiply-adds, about


class _Seen(threading.local):
    """The latest launches of each thread. Numbers only: arrays would be kept alive."""

    def __init__(self) -> None:
        self.add = deque[Any](maxlen=REMEMBERED).append


_seen = _Seen()
_asked = False  # noting costs a launch 0.14 us: only once somebody has asked


def last_call_info() -> list[Launch]:
    """How the calls that this thread has made since it last asked were run: a `Launch` for every kernel that they
    started, in order; of more than 64 the latest. For people who tune. Nothing is noted before the first time that
    anybody asks: ask once, call, ask again.

    ``workers`` is 1 for work that is too small to be divided (below 8 million multiply-adds, or 0.4 where calls follow
    each other so closely that helpers have not parked yet), and else at most `get_num_threads`. A recurrent kernel's
    work is divided ``by`` "rows", which wait for nobody, while the weights fit into every core's cache, and else by
    "panels" of hidden units. Kernels whose name has "pack" in it run once after the weights have changed. An inference
    without lengths of less than 8 million multiply-adds, such as a step of a stream, is no launch: it leaves no trace.

    >>> import fastrnn as fr, numpy as np
    >>> earlier = fr.last_call_info()
    >>> lstm = fr.LSTM(3, 5)
    >>> y, state, tape = lstm.forward(np.zeros((7, 2, 3), np.float32))
    >>> [one.kernel for one in fr.last_call_info()]
    ['lstm_pack', 'lstm_forward']
    >>> y, state, tape = lstm.forward(np.zeros((7, 2, 3), np.float32))
    >>> fr.last_call_info()
    [Launch(kernel='lstm_forward', workers=1, by=None, pieces=1, work=9240.0)]
    """
    global _asked
    _asked = True
    kept: deque[Any] = _seen.add.__self__  # type: ignore[attr-defined]
    found = list(kept)
    kept.clear()
    return [_launch_of(*one) for one in found]


def _launch_of(run: kernel, workers: int, work: float, shown: tuple[Any, ...]) -> Launch:
    by = None
    if workers > 1 and len(shown) == 2:
        by = "rows" if shown[0] & run.py_func.__globals__["BY_ROWS"] else "panels"
    return Launch(run.__name__, workers, by, int(shown[-1]) if shown else None, float(work))
