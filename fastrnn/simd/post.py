"""A kernel that is running is handed to threads that wait for one, without Python: they are at work within a
microsecond, where waking a thread and its taking the GIL take twenty.

The post is one page of words for all threads of a process. A thread that waits (`serve`) looks at OPEN. The caller, in
the kernel already, writes down its own arguments and the address of a function that calls the kernel with them, and
opens as many places as there were threads waiting when the call began (`share`). Who takes a place is the worker of
that number; who comes late finds no tickets left, as everywhere (sync.py). When the caller has left the kernel it
closes the post, and goes on when nobody is inside any more (`withdraw`): nobody writes into its arrays afterwards.

One caller at a time has the post; another one that finds it taken works alone.

Linux likes to wake a thread on the processor of its waker, and every hand-over of the GIL wakes one: two threads that
never sleep then share a processor for long. So the caller writes down where it is, and who waits there goes elsewhere.
"""

from __future__ import annotations

import sys

import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .._jit import device, kernel
from .atomic import address, atomic_add, atomic_load, compare_swap, exchange, now, pause, rest

# Where among the first tickets of a call are its post's address, less than 0 once the call has it, and how many places.
POST, PLACES = 4, 5

# Words of the post, each in a cache line of its own where waiting threads look at it.
OPEN = 0  # places that nobody has taken
INSIDE = 8  # threads that are about to take one, or have
WAITING = 16  # threads that look for one
TAKEN = 24  # 1 while a caller has the post
CPU = 25  # the processor of the last caller
FUNCTION = 32
ARGUMENTS = 33
WORDS = 512

LOOKS = 16  # at OPEN between two at the clock
MASK = 16  # words of a set of processors

_LINUX = sys.platform == "linux"  # elsewhere nobody knows on which processor a thread is


def new_post() -> np.ndarray:
    """A post that nobody waits at, on a cache line."""
    words = np.zeros(WORDS + 8, np.int64)
    first = -words.ctypes.data % 64 // 8
    post = words[first : first + WORDS]
    post[CPU] = -1
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


def _share(typingctx, tickets, phase, worker):
    def codegen(context, builder, signature, args):
        at, phase, worker = args
        kernel = builder.function
        # Numba's convention is a place for the result, one for an error, and then the arguments.
        if not kernel.args[2].name.startswith("arg.worker"):
            raise AssertionError("turns is not called by a kernel itself")
        assert len(_kept(kernel)) <= WORDS - ARGUMENTS

        def word(base, index):
            return builder.gep(builder.inttoptr(base, _WORD.as_pointer()), [_WORD(index)])

        post = builder.load(word(at, POST))
        first = builder.icmp_signed("==", builder.or_(phase, worker), _WORD(0))
        with builder.if_then(builder.and_(first, builder.icmp_signed(">", post, _WORD(0))), likely=False):
            pair = builder.cmpxchg(word(post, TAKEN), _WORD(0), _WORD(1), "acq_rel", "acquire")
            mine = builder.extract_value(pair, 1)
            builder.store(builder.select(mine, builder.neg(post), _WORD(0)), word(at, POST))
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
                builder.store_atomic(builder.load(word(at, PLACES)), word(post, OPEN), "release", 8)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), codegen


def _call(typingctx, post, worker):
    def codegen(context, builder, signature, args):
        post, worker = args
        words = builder.inttoptr(post, _WORD.as_pointer())
        function = builder.inttoptr(builder.load(builder.gep(words, [_WORD(FUNCTION)])), _CALLS.as_pointer())
        builder.call(function, [builder.bitcast(builder.gep(words, [_WORD(ARGUMENTS)]), _BYTES), worker])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


if config.DISABLE_JIT:
    share = lambda tickets, phase, worker: None  # noqa: E731
else:
    share, call = intrinsic(_share), intrinsic(_call)

if _LINUX and not config.DISABLE_JIT:
    sched_getcpu = types.ExternalFunction("sched_getcpu", types.int32())
    sched_setaffinity = types.ExternalFunction("sched_setaffinity", types.int32(types.int32, types.int64, types.int64))

    @device
    def avoid(cpu, allowed, others):
        """Moves this thread to another processor if it is on this one."""
        if sched_getcpu() == cpu and cpu < 64 * MASK:
            for k in range(MASK):
                others[k] = allowed[k]
            others[cpu // 64] &= ~(1 << cpu % 64)
            sched_setaffinity(0, 8 * MASK, address(others))

else:
    avoid = device(lambda cpu, allowed, others: None)


@kernel
def serve(post, patience, allowed, others):
    """Takes what is posted, until nothing has been for `patience` nanoseconds. True if that is because this thread lost
    its processor to another one.

    post : read and written
    allowed : (MASK,), read: a bit for each processor that this thread may use; others : (MASK,), overwritten
    """
    at = address(post)
    atomic_add(at, WAITING, 1)
    last, looks, robbed = now(), 0, False
    until = last + patience
    while True:
        left = atomic_load(at, OPEN)
        if left > 0:
            atomic_add(at, INSIDE, 1)  # before a place is taken: see `withdraw`
            while left > 0:
                seen = compare_swap(at, OPEN, left, left - 1)
                if seen == left:
                    call(at, left)
                    break
                left = seen
            atomic_add(at, INSIDE, -1)
            last = now()
            until = last + patience
        pause()
        looks += 1
        if looks == LOOKS:
            looks = 0
            seen, last = last, now()
            robbed = last - seen > patience
            if last > until:
                break
            avoid(atomic_load(at, CPU), allowed, others)
    atomic_add(at, WAITING, -1)
    return robbed


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
