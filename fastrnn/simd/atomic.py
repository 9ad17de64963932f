"""Words in memory that several threads change, and what a thread does that waits for one: the instructions for both.

Functions that are called in loops know the words by their address, which `address` gives of an int64 array. Without JIT
there is one thread, and the array itself serves.
"""

from __future__ import annotations

import time

from llvmlite import ir
from numba.core import cgutils, config, types
from numba.extending import intrinsic

from .._jit import device
from .vector import data_of

# Pauses before the processor is given away, about 5 us. It is not given back for ms if another process is busy there:
# with 64 of them that one got 0.63 to 0.75 of it, with 128 0.52 to 0.73.
SPINS = 128


def _address(typingctx, words):
    def codegen(context, builder, signature, args):
        data = data_of(context, builder, signature.args[0], args[0])
        return builder.ptrtoint(data, context.get_value_type(types.int64))

    return types.int64(words), codegen


def _counter(builder: ir.IRBuilder, address: ir.Value, index: ir.Value) -> ir.Value:
    data = builder.inttoptr(address, ir.IntType(64).as_pointer())
    return builder.gep(data, [index])


def _load(typingctx, words, index):
    def codegen(context, builder, signature, args):
        return builder.load_atomic(_counter(builder, *args), "acquire", 8)

    return types.int64(types.int64, types.int64), codegen


def _put(typingctx, words, index, value):
    def codegen(context, builder, signature, args):
        builder.store(args[2], _counter(builder, *args[:2]))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), codegen


def _add(typingctx, words, index, value):
    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _counter(builder, *args[:2]), args[2], "acq_rel")

    return types.int64(types.int64, types.int64, types.int64), codegen


def _swap(typingctx, words, index, old, new):
    def codegen(context, builder, signature, args):
        pair = builder.cmpxchg(_counter(builder, *args[:2]), *args[2:], "acq_rel", "acquire")
        return builder.extract_value(pair, 0)

    return types.int64(types.int64, types.int64, types.int64, types.int64), codegen


def _relax(typingctx, give_away):
    def codegen(context, builder, signature, args):
        # Inline assembly is not available to Numba's JIT; the instruction has an LLVM name of its own.
        void = ir.FunctionType(ir.VoidType(), [])
        name = "llvm.x86.sse2.pause" if "x86" in builder.module.triple else "llvm.donothing"
        builder.call(cgutils.get_or_insert_function(builder.module, void, name), [])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


def _monotonic(typingctx, clock):
    def codegen(context, builder, signature, args):
        word = ir.IntType(64)
        time_of = ir.FunctionType(ir.IntType(32), [ir.IntType(32), word.as_pointer()])
        read = cgutils.get_or_insert_function(builder.module, time_of, "clock_gettime")
        pair = cgutils.alloca_once(builder, word, 2)  # seconds and nanoseconds, each of 64 bits
        builder.call(read, [builder.trunc(args[0], ir.IntType(32)), pair])
        seconds, rest = builder.load(pair), builder.load(builder.gep(pair, [ir.Constant(word, 1)]))
        return builder.add(builder.mul(seconds, ir.Constant(word, 10**9)), rest)

    return types.int64(types.int64), codegen


def _exchange(typingctx, words, index, value):
    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("xchg", _counter(builder, *args[:2]), args[2], "seq_cst")

    return types.int64(types.int64, types.int64, types.int64), codegen


def _twin_put(words, index, value):
    words[index] = value


def _twin_add(words, index, value):
    words[index] += value
    return words[index] - value


def _twin_exchange(words, index, value):
    seen = words[index]
    words[index] = value
    return seen


def _twin_swap(words, index, old, new):
    seen = words[index]
    if seen == old:
        words[index] = new
    return seen


if config.DISABLE_JIT:
    address, atomic_load = (lambda words: words), (lambda words, index: words[index])
    put, atomic_add, compare_swap, exchange = _twin_put, _twin_add, _twin_swap, _twin_exchange
    pause = give_way = lambda: None
    now, monotonic = time.monotonic_ns, lambda clock: time.monotonic_ns()
else:
    address = intrinsic(_address)
    atomic_load, put, atomic_add = intrinsic(_load), intrinsic(_put), intrinsic(_add)
    compare_swap, exchange = intrinsic(_swap), intrinsic(_exchange)
    relax, monotonic = intrinsic(_relax), intrinsic(_monotonic)
    pause = device(lambda: relax(0))
    now = device(lambda: monotonic(time.CLOCK_MONOTONIC))
    give_way = types.ExternalFunction("sched_yield", types.int32())


@device
def rest(spins):
    """What a thread does that has looked in vain, `spins` times already."""
    if spins < SPINS:
        pause()
    else:
        give_way()
