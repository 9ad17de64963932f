"""Threads that work on one call keep off each other's processors, and fetch whoever has lost his.

Linux likes to wake a thread on the processor of its waker, and every hand-over of the GIL wakes one: two threads that
never sleep then share a processor for long, and one that is woken there waits for a tick of the clock, 1 to 4 ms. So
the caller writes down where it is, who finds itself there goes elsewhere (`avoid`), and who cannot do so is moved by
the caller (`make_way`).

A thread that shares its processor with another process loses it every few ms, for as long, and in the midst of an item
as a rule; all others would wait for it. Whoever waits, and sees that a thread that holds something has not run since it
last looked, moves it to its own processor and gives that away (`tend`). As soon as the item is finished the thread goes
back to where it was (`resume`), and rests when the call is over (`shun`), as its processor is wanted by others too.
With a busy process on one of two processors an LSTM (100, 32, 128, 256) takes 1.42 of its time alone in inference, 1.39
in training, where without this it was 1.78 and 1.74 (python -m bench --only neighbour).

What is known of each thread are the words of its record; the post has those of all that work on the call.
"""

from __future__ import annotations

import sys
import threading

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .._jit import device
from .atomic import atomic_load, compare_swap, exchange, give_way, monotonic, now, put

# Elsewhere nobody knows on which processor a thread is.
LINUX = sys.platform == "linux"
MOVES = LINUX and not config.DISABLE_JIT

# Words of the post.
CPU = 33  # the processor of the last caller
SHUNNED = 34  # until when nobody looks for a place before it sleeps, on Python's monotonic clock in ns
HELPERS = 464  # where the records of the first few helpers are
AT_WORK = 472  # where those of the first few workers of the call are; 0 for who is not there. Worker 0 is the caller
CALLER = 488  # its record
FEW = 8  # more processors than these, and Linux finds an idle one by itself

# Words of a record: the helper's number; the thread, as pthreads know it; the processor that it is on, as far as it
# knows, and the one that it keeps off; what it had used of one when somebody last looked; 1 while it waits, and holds
# nothing; 1 while it is fetched; and where it was before.
NUMBER, THREAD, ON, OFF, USED, WAITS, FETCHED, HOME = range(8)
RECORD = 8

MASK = 16  # words of a set of processors
NONE = -1  # no processor
# Nanoseconds, about as long as Linux lets another process run. Without a pause that process got a fifth of its
# processor beside small work, with this one half and more; pauses of 20 ms and longer were felt after it had gone.
PAUSE = 3_000_000


def new_record(number: int) -> np.ndarray:
    """That of the calling thread, a helper."""
    record = np.zeros(RECORD, np.int64)
    record[[NUMBER, THREAD, ON, OFF, HOME]] = number, threading.get_ident(), NONE, NONE, NONE
    return record


@device
def shun(at):
    """Has helpers sleep when they have nothing to do, and little work wakes none of them: one has just lost its
    processor to another process.
    """
    put(at, SHUNNED, now() + PAUSE)


def _room(typingctx):
    def codegen(context, builder, signature, args):
        words = ir.ArrayType(ir.IntType(64), MASK)
        at = cgutils.alloca_once(builder, words)
        builder.store(ir.Constant(words, None), at)
        return builder.ptrtoint(at, ir.IntType(64))

    return types.int64(), codegen


if MOVES:
    _of_thread = types.int32(types.int64, types.int64, types.int64)
    getpid = types.ExternalFunction("getpid", types.int32())
    sched_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
    sched_getaffinity = types.ExternalFunction("sched_getaffinity", types.int32(types.int32, types.int64, types.int64))
    getaffinity = types.ExternalFunction("pthread_getaffinity_np", _of_thread)
    setaffinity = types.ExternalFunction("pthread_setaffinity_np", _of_thread)
    getcpuclockid = types.ExternalFunction("pthread_getcpuclockid", types.int32(types.int64, types.int64))
    room = intrinsic(_room)  # the empty set of processors, for as long as the function runs

    @device
    def move(thread, on, off, free):
        """Moves a thread to the processor `on`, if there is such a one, and then lets it be on all of the set `free`
        but `off`.
        """
        if on >= 0:
            only = room()
            put(only, on // 64, 1 << on % 64)
            setaffinity(thread, 8 * MASK, only)
        if off >= 0:
            put(free, off // 64, atomic_load(free, off // 64) & ~(1 << off % 64))
        setaffinity(thread, 8 * MASK, free)

    @device
    def place(record, on, off):
        """`move` of a helper, whose processors are the process's."""
        free = room()
        if sched_getaffinity(getpid(), 8 * MASK, free) == 0 and max(on, off) < 64 * MASK:
            move(atomic_load(record, THREAD), on, off, free)
        put(record, OFF, off)

    @device
    def avoid(at, record):
        """Moves this helper elsewhere if it is where the caller is."""
        cpu = sched_getcpu()
        if cpu == atomic_load(at, CPU):
            place(record, NONE, cpu)
            cpu = sched_getcpu()
        if cpu != atomic_load(record, ON):
            put(record, ON, cpu)

    @device
    def make_way(at, asleep):
        """Moves those of the first helpers elsewhere that are where the caller is; or, if they sleep, may be."""
        cpu = atomic_load(at, CPU)
        for k in range(FEW):
            record = atomic_load(at, HELPERS + k)
            if record == 0:
                break
            if atomic_load(record, ON) == cpu or (asleep and atomic_load(record, OFF) != cpu):
                place(record, NONE, cpu)

    @device
    def stands(record):
        """Whether a thread has not run since somebody last asked: the clock of one that runs never stands still."""
        clock = room()
        if getcpuclockid(atomic_load(record, THREAD), clock) != 0:
            return False
        used = monotonic(atomic_load(clock, 0))
        return exchange(record, USED, used) == used

    @device
    def fetch(at, record):
        """Brings a helper here that does not run, and gives the processor away to it."""
        cpu = sched_getcpu()
        put(record, HOME, atomic_load(record, ON))
        put(record, ON, cpu)
        place(record, cpu, NONE)
        shun(at)
        give_way()

    @device
    def change_places(at, own):
        """Brings the caller here, if it does not run, and goes elsewhere. It may be on its own processors as before."""
        free, caller, cpu = room(), atomic_load(at, AT_WORK), sched_getcpu()
        thread = atomic_load(caller, THREAD)
        known = getaffinity(thread, 8 * MASK, free) == 0 and cpu < 64 * MASK
        if known and atomic_load(free, cpu // 64) >> cpu % 64 & 1:
            put(at, CPU, cpu)
            move(thread, cpu, NONE, free)
            place(own, NONE, cpu)
        put(caller, FETCHED, 0)

    @device
    def tend(at, worker):
        """Fetches those who hold something and do not run; also those who hold nothing, for ~worker, who waits until
        all have left.
        """
        everybody, worker = worker < 0, ~worker if worker < 0 else worker
        own = atomic_load(at, AT_WORK + worker) if worker <= FEW else 0
        if own == 0:
            return
        put(own, WAITS, 1)
        for k in range(FEW + 1):
            other = atomic_load(at, AT_WORK + k)
            if k == worker or other == 0 or (atomic_load(other, WAITS) and not everybody):
                continue
            if stands(other) and compare_swap(other, FETCHED, 0, 1) == 0:
                if k == 0:
                    change_places(at, own)
                else:
                    fetch(at, other)

    @device
    def resume(at, own):
        """What this thread does that has waited, or was fetched."""
        put(own, WAITS, 0)
        if own != atomic_load(at, AT_WORK) and atomic_load(own, FETCHED):
            put(own, FETCHED, 0)
            home, cpu = atomic_load(own, HOME), atomic_load(at, CPU)
            place(own, NONE if home == cpu else home, cpu)

else:
    avoid = device(lambda at, record: None)
    make_way = device(lambda at, asleep: None)
    tend = resume = device(lambda at, worker: None)
