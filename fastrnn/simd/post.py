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

Where the threads run is the matter of processors.py.
"""

from __future__ import annotations

import ctypes

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .._jit import device, inlined, kernel
from .atomic import SPINS, address, atomic_add, atomic_load, compare_swap, exchange, now, pause, put, rest
from .late import entry, invoke
from .processors import (
    AT_WORK,
    CALLER,
    CPU,
    FETCHED,
    FEW,
    HELPERS,
    LINUX,
    NONE,
    NUMBER,
    SHUNNED,
    THREAD,
    WAITS,
    avoid,
    make_way,
    resume,
    shun,
    tend,
)

# Where among the first tickets of a call are its post's address, less than 0 once the call has it, and how many places.
POST, PLACES = 4, 5

# Words of the post, each in a cache line of its own where waiting threads look at it.
OPEN = 0  # places that nobody has taken
INSIDE = 8  # threads that are about to take a place, or have
WAITING = 16  # threads that look for one
PARKED = 24  # threads that sleep until they are woken, and whom nobody has woken yet
TAKEN = 32  # 1 while a caller has the post
OPENS, TENDS, RESUMES = 35, 36, 37  # where the functions are that kernels call late
SEMAPHORE = 40  # 4 words
FUNCTION = 48
ARGUMENTS = 49
WORDS = 512  # and between them those of processors.py

LOOKS = 16  # at OPEN between two at the clock
PATIENCE = 32  # vain looks at the tickets between two at those who are waited for: some 10 us

# Elsewhere there are no semaphores in memory.
PARKS = LINUX and not config.DISABLE_JIT


def new_post() -> np.ndarray:
    """A post that nobody waits at, on a cache line."""
    words = np.zeros(WORDS + 8, np.int64)
    first = -words.ctypes.data % 64 // 8
    post = words[first : first + WORDS]
    post[CPU], post[AT_WORK] = NONE, post.ctypes.data + 8 * CALLER
    if PARKS:
        ctypes.CDLL(None).sem_init(ctypes.c_void_p(post.ctypes.data + 8 * SEMAPHORE), 0, 0)
    return post


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
        assert len(_kept(kernel)) <= HELPERS - ARGUMENTS

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
                if LINUX:
                    for name, kind, index in (("sched_getcpu", 32, CPU), ("pthread_self", 64, CALLER + THREAD)):
                        ask = ir.FunctionType(ir.IntType(kind), [])
                        found = builder.call(cgutils.get_or_insert_function(builder.module, ask, name), [])
                        builder.store(builder.sext(found, _WORD) if kind < 64 else found, word(post, index))
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
    wake = device(lambda at, count: None)
    park = device(lambda at: None)


@device
def open_places(at, places):
    """What `write` has written down is there to be taken, and those are woken whom that needs."""
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
        at = -atomic_load(tickets, POST)
        invoke(at, OPENS, at, atomic_load(tickets, PLACES))


@device
def wait_patiently(tickets, worker, spins):
    """What a thread does that waits for others, who work on the same call, and has looked in vain `spins` times."""
    at = -atomic_load(tickets, POST)
    # Two looks, which it takes to see that somebody stands, before the processor is given away.
    if spins >= SPINS - PATIENCE and (spins - SPINS) % PATIENCE == 0 and at > 0:
        invoke(at, TENDS, at, worker)
    rest(spins)


@device
def go_on(tickets, worker):
    """What it does when it has waited."""
    at = -atomic_load(tickets, POST)
    if at > 0 and worker <= FEW:
        # The caller does not look where helpers write down that they have come.
        own = at + 8 * CALLER if worker == 0 else atomic_load(at, AT_WORK + worker)
        if own != 0 and atomic_load(own, WAITS) + atomic_load(own, FETCHED) > 0:
            invoke(at, RESUMES, at, own)


@device
def look(at, patience, own):
    """Looks for work, for so many nanoseconds: how many places are open."""
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
            if last - seen > patience:  # this thread has lost its processor
                shun(at)
                return 0
            if last > until:
                return 0
            avoid(at, own)


@device
def take_place(at, left, own):
    """Works, if one of the places that were left still is."""
    atomic_add(at, INSIDE, 1)  # before a place is taken: see `withdraw`
    while left > 0:
        seen = compare_swap(at, OPEN, left, left - 1)
        if seen == left:
            if left <= FEW:
                put(at, AT_WORK + left, own)
            call(at, left)
            if left <= FEW:
                put(at, AT_WORK + left, 0)
            break
        left = seen
    atomic_add(at, INSIDE, -1)
    resume(at, own)


@kernel
def serve(post, patience, record):
    """Takes what is posted, and sleeps when nothing has been for `patience` nanoseconds, again and again. Where nobody
    can sleep it comes back instead.

    post : read and written
    record : of this helper, read and written
    """
    at, own = address(post), address(record)
    put(at, TENDS, entry(tend))
    put(at, RESUMES, entry(resume))
    exchange(at, OPENS, entry(open_places))
    number = atomic_load(own, NUMBER)
    if number < FEW:
        put(at, HELPERS + number, own)
    while True:
        atomic_add(at, WAITING, 1)
        found = look(at, patience, own)
        while found > 0:
            take_place(at, found, own)
            found = look(at, patience, own)
        atomic_add(at, WAITING, -1)
        if not PARKS:
            return
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
            wait_patiently(address(tickets), ~0, spins)
            spins += 1
        put(at, CALLER + WAITS, 0)
        exchange(at, TAKEN, 0)
        tickets[POST] = 0
