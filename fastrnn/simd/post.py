"""A kernel that is running is handed to threads that wait for one, without Python: they are at work within a
microsecond, where waking a thread and its taking the GIL take twenty.

The post is one page of words for all threads of a process. A thread that serves (`serve`) looks at OPEN. The caller, in
the kernel already, writes down its own arguments and the address of a function that calls the kernel with them, and
opens as many places as it has work for (`share`). Who takes a place is the worker of that number; who comes late finds
no tickets left, as everywhere (sync.py). When the caller has left the kernel it closes the post, and goes on when
nobody is inside any more (`withdraw`): nobody writes into its arrays afterwards.

Who has looked in vain for a while sleeps at a semaphore, and is woken by a caller that opens more places than there are
threads looking: that costs the caller some 20 us, and nobody the GIL. Each sleeper is woken by one caller only: PARKED
counts those whom nobody has woken yet, and whoever takes one away from it sends one token. Where there are no
semaphores (PARKS) threads wait in Python instead.

One caller at a time has the post; another one that finds it taken works alone.

Linux likes to wake a thread on the processor of its waker, and every hand-over of the GIL wakes one: two threads that
never sleep then share a processor for long, and one that is woken there waits for a tick of the clock, 1 to 4 ms. So
the caller writes down where it is, who finds itself there goes elsewhere, and who cannot do so is moved by the caller.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .._jit import device, inlined, kernel
from .atomic import address, atomic_add, atomic_load, compare_swap, exchange, now, pause, put, rest

# Where among the first tickets of a call are its post's address, less than 0 once the call has it, and how many places.
POST, PLACES = 4, 5

# Words of the post, each in a cache line of its own where waiting threads look at it.
OPEN = 0  # places that nobody has taken
INSIDE = 8  # threads that are about to take a place, or have
WAITING = 16  # threads that look for one
PARKED = 24  # threads that sleep until they are woken, and whom nobody has woken yet
TAKEN = 32  # 1 while a caller has the post
CPU = 33  # the processor of the last caller
SHUNNED = 34  # until when nobody looks for a place before it sleeps, on Python's monotonic clock in ns
SEMAPHORE = 40  # 4 words
FUNCTION = 48
ARGUMENTS = 49
CALLERS_MASK = 480
HELPERS = 496  # where the words of the first few helpers are
WORDS = 512
FEW = 8  # more processors than these, and Linux finds an idle one by itself

# Words of a helper: its number, and that to the system; the processor that it is on, as far as it knows, and the one
# that it keeps off; and a set of processors.
NUMBER, THREAD, ON, OFF, OWN_MASK, OWN = 0, 1, 2, 3, 4, 20

LOOKS = 16  # at OPEN between two at the clock
MASK = 16  # words of a set of processors: OWN has room for as many
NOTHING, ROBBED = 0, -1  # why a thread looks for work no longer

# Elsewhere nobody knows on which processor a thread is, and there are no semaphores in memory.
_LINUX = sys.platform == "linux"
PARKS = _LINUX and not config.DISABLE_JIT


def new_post() -> np.ndarray:
    """A post that nobody waits at, on a cache line."""
    words = np.zeros(WORDS + 8, np.int64)
    first = -words.ctypes.data % 64 // 8
    post = words[first : first + WORDS]
    post[CPU] = -1
    if PARKS:
        ctypes.CDLL(None).sem_init(ctypes.c_void_p(post.ctypes.data + 8 * SEMAPHORE), 0, 0)
    return post


def new_helper(number: int, thread: int) -> np.ndarray:
    """The words of a helper."""
    own = np.full(OWN, -1, np.int64)
    own[:ON] = number, thread
    return own


_VOID, _BYTES, _WORD = ir.VoidType(), ir.IntType(8).as_pointer(), ir.IntType(64)
_CALLS = ir.FunctionType(_VOID, [_BYTES, _WORD])  # what FUNCTION is: ARGUMENTS, worker


def _kept(kernel: ir.Function) -> list[ir.Argument]:
    """A kernel's arguments that are written down: not its result, its error and the worker's number; and no pointers to
    bytes, which are those to what counts an array's references.
    """
    return [a for a in kernel.args[3:] if a.type != _BYTES]


def _pages(builder: ir.IRBuilder, address: ir.Value, kernel: ir.Function) -> list[ir.Value]:
    """Where each of them is."""
    page = builder.bitcast(address, ir.LiteralStructType([a.type for a in _kept(kernel)]).as_pointer())
    return [builder.gep(page, [ir.IntType(32)(0), ir.IntType(32)(k)]) for k, _ in enumerate(_kept(kernel))]


def _calling(kernel: ir.Function) -> ir.Function:
    """A function that calls `kernel` with what `share` wrote down, as another worker.

    No references are counted there: the arrays are the caller's, as long as anybody is inside. A helper that gave back
    the last one would wait for the GIL, which the caller holds while it waits for the helper.
    """
    name = f"{kernel.name}.shared"
    if name in kernel.module.globals:
        return kernel.module.globals[name]
    function = ir.Function(kernel.module, _CALLS, name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    written = iter(_pages(builder, function.args[0], kernel))
    given = [_BYTES(None) if a.type == _BYTES else builder.load(next(written)) for a in kernel.args[3:]]
    own = [builder.alloca(a.type.pointee) for a in kernel.args[:2]]
    builder.call(kernel, [*own, function.args[1], *given])
    builder.ret_void()
    return function


def _write(typingctx, tickets, phase, worker):
    def codegen(context, builder, signature, args):
        at, phase, worker = args
        kernel = builder.function
        # Numba's convention is a place for the result, one for an error, and then the arguments.
        if not kernel.args[2].name.startswith("arg.worker"):
            raise AssertionError("turns is not called by a kernel itself")
        assert len(_kept(kernel)) <= CALLERS_MASK - ARGUMENTS

        def word(base, index):
            return builder.gep(builder.inttoptr(base, _WORD.as_pointer()), [_WORD(index)])

        post = builder.load(word(at, POST))
        first = builder.icmp_signed("==", builder.or_(phase, worker), _WORD(0))
        opens = cgutils.alloca_once_value(builder, ir.IntType(1)(0))
        with builder.if_then(builder.and_(first, builder.icmp_signed(">", post, _WORD(0))), likely=False):
            pair = builder.cmpxchg(word(post, TAKEN), _WORD(0), _WORD(1), "acq_rel", "acquire")
            mine = builder.extract_value(pair, 1)
            builder.store(builder.select(mine, builder.neg(post), _WORD(0)), word(at, POST))
            builder.store(mine, opens)
            with builder.if_then(mine):
                for a, page in zip(_kept(kernel), _pages(builder, word(post, ARGUMENTS), kernel), strict=True):
                    builder.store(a, page)
                function = builder.ptrtoint(_calling(kernel), _WORD)
                builder.store(function, word(post, FUNCTION))
                if _LINUX:
                    ask = cgutils.get_or_insert_function(
                        builder.module, ir.FunctionType(ir.IntType(32), []), "sched_getcpu"
                    )
                    builder.store(builder.sext(builder.call(ask, []), _WORD), word(post, CPU))
        return builder.load(opens)

    return types.boolean(types.int64, types.int64, types.int64), codegen


def _call(typingctx, post, worker):
    def codegen(context, builder, signature, args):
        post, worker = args
        words = builder.inttoptr(post, _WORD.as_pointer())
        function = builder.inttoptr(builder.load(builder.gep(words, [_WORD(FUNCTION)])), _CALLS.as_pointer())
        builder.call(function, [builder.bitcast(builder.gep(words, [_WORD(ARGUMENTS)]), _BYTES), worker])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


if config.DISABLE_JIT:
    write = lambda tickets, phase, worker: False  # noqa: E731
else:
    write, call = intrinsic(_write), intrinsic(_call)

if PARKS:
    sem_post = types.ExternalFunction("sem_post", types.int32(types.int64))
    sem_wait = types.ExternalFunction("sem_wait", types.int32(types.int64))
    getpid = types.ExternalFunction("getpid", types.int32())
    sched_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
    of_set = types.int32(types.int32, types.int64, types.int64)
    sched_getaffinity = types.ExternalFunction("sched_getaffinity", of_set)
    sched_setaffinity = types.ExternalFunction("sched_setaffinity", of_set)

    @device
    def keep_off(own, cpu, mask):
        """Lets a helper be on all of the process's processors but one."""
        for k in range(MASK):
            put(mask, k, 0)
        if sched_getaffinity(getpid(), 8 * MASK, mask) == 0 and cpu < 64 * MASK:
            put(mask, cpu // 64, atomic_load(mask, cpu // 64) & ~(1 << cpu % 64))
            sched_setaffinity(atomic_load(own, THREAD), 8 * MASK, mask)
        put(own, OFF, cpu)

    @device
    def avoid(at, own):
        """Moves this thread elsewhere if it is where the caller is."""
        cpu = sched_getcpu()
        if cpu == atomic_load(at, CPU):
            keep_off(own, cpu, own + 8 * OWN_MASK)
            cpu = sched_getcpu()
        if cpu != atomic_load(own, ON):
            put(own, ON, cpu)

    @device
    def make_way(at, asleep):
        """Moves those of the first helpers elsewhere that are where the caller is; or, if they sleep, may be."""
        cpu = atomic_load(at, CPU)
        for k in range(FEW):
            own = atomic_load(at, HELPERS + k)
            if own == 0:
                break
            if atomic_load(own, ON) == cpu or (asleep and atomic_load(own, OFF) != cpu):
                keep_off(own, cpu, at + 8 * CALLERS_MASK)

    @device
    def wake(at, count):
        """Wakes up to `count` of those who are parked."""
        parked = atomic_load(at, PARKED)
        while count > 0 and parked > 0:
            seen = compare_swap(at, PARKED, parked, parked - 1)
            if seen == parked:
                sem_post(at + 8 * SEMAPHORE)
                count -= 1
                seen = parked - 1
            parked = seen

    @device
    def park(at):
        """Sleeps until it is woken; not if there is something to do."""
        atomic_add(at, PARKED, 1)
        # Whoever opens places does so before it looks at PARKED, so one of both sees the other.
        if atomic_add(at, OPEN, 0) > 0:
            parked = atomic_load(at, PARKED)
            while parked > 0:
                seen = compare_swap(at, PARKED, parked, parked - 1)
                if seen == parked:
                    return
                parked = seen
            # Somebody has woken this thread already, and its token must not be left to another one.
        while sem_wait(at + 8 * SEMAPHORE) != 0:  # a signal
            pass

else:
    avoid = device(lambda at, own: None)
    make_way = device(lambda at, asleep: None)
    wake = device(lambda at, count: None)
    park = device(lambda at: None)


@device
def open_places(tickets):
    """What `write` has written down is there to be taken, and those are woken whom that needs."""
    at, places = -atomic_load(tickets, POST), atomic_load(tickets, PLACES)
    exchange(at, OPEN, places)
    asleep = places - atomic_load(at, WAITING)
    make_way(at, asleep > 0)
    wake(at, asleep)


@inlined
def share(tickets, phase, worker):
    """Hands the kernel that this stands in to those who serve, if the caller is to and the post is free.

    tickets : their address
    """
    if write(tickets, phase, worker):
        open_places(tickets)


@device
def look(at, patience, own):
    """Looks for work, for so many nanoseconds: how many places are open, or why this thread looks no longer."""
    avoid(at, own)
    last, looks = now(), 0
    until = last + (patience if last >= atomic_load(at, SHUNNED) else 0)
    while True:
        left = atomic_load(at, OPEN)
        if left > 0:
            return left
        pause()
        looks += 1
        if looks == LOOKS:
            looks = 0
            seen, last = last, now()
            if last - seen > patience:
                return ROBBED
            if last > until:
                return NOTHING
            avoid(at, own)


@device
def take_place(at, left):
    """Works, if one of the places that were left still is."""
    atomic_add(at, INSIDE, 1)  # before a place is taken: see `withdraw`
    while left > 0:
        seen = compare_swap(at, OPEN, left, left - 1)
        if seen == left:
            call(at, left)
            break
        left = seen
    atomic_add(at, INSIDE, -1)


@kernel
def serve(post, patience, own_words):
    """Takes what is posted, and sleeps when nothing has been for `patience` nanoseconds, again and again. True
    if it comes back because it lost its processor to another thread. Where nobody can sleep it comes back instead.

    post : read and written
    own_words : (OWN,), of this helper, read and written
    """
    at, own = address(post), address(own_words)
    number = atomic_load(own, NUMBER)
    if number < FEW:
        put(at, HELPERS + number, own)
    while True:
        atomic_add(at, WAITING, 1)
        found = look(at, patience, own)
        while found > 0:
            take_place(at, found)
            found = look(at, patience, own)
        atomic_add(at, WAITING, -1)
        if found == ROBBED or not PARKS:
            return found == ROBBED
        park(at)


@kernel
def withdraw(post, tickets):
    """Closes the post, if this call has it, and gives it back when nobody is inside.

    post : read and written; tickets : of the call, read and written
    """
    if tickets[POST] < 0:
        at = address(post)
        exchange(at, OPEN, 0)
        spins = 0
        while atomic_load(at, INSIDE) > 0:
            rest(spins)
            spins += 1
        exchange(at, TAKEN, 0)
        tickets[POST] = 0
