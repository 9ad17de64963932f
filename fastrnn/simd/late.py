"""Functions that a kernel calls by an address which is written down in memory once somebody may need them.

What stands in the text of a kernel is compiled with every kernel, before its first result. So what is of use only
beside helpers is compiled once, with what they run (`serve` in post.py), and kernels call it by its address: it took a
tenth of a cold first result.

They take two int64 and return nothing, as the convention of Numba's own functions is no matter of theirs.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_LATE = ir.FunctionType(ir.VoidType(), [_WORD, _WORD])
GIVEN = types.int64, types.int64


def _entry(typingctx, function):
    function.dispatcher.compile(GIVEN)

    def codegen(context, builder, signature, args):
        made = function.dispatcher.overloads[GIVEN]
        context.add_linking_libs([made.library])
        name = f"{made.fndesc.mangled_name}.late"
        entry = builder.module.globals.get(name)
        if entry is None:
            entry = ir.Function(builder.module, _LATE, name)
            entry.linkage = "internal"
            inner = ir.IRBuilder(entry.append_basic_block())
            context.call_internal_no_propagate(inner, made.fndesc, made.signature, entry.args)
            inner.ret_void()
        return builder.ptrtoint(entry, _WORD)

    return types.int64(function), codegen


def _invoke(typingctx, words, index, first, second):
    def codegen(context, builder, signature, args):
        words, index, *given = args
        at = builder.gep(builder.inttoptr(words, _WORD.as_pointer()), [index])
        address = builder.load_atomic(at, "acquire", 8)
        with builder.if_then(builder.icmp_signed("!=", address, _WORD(0))):
            builder.call(builder.inttoptr(address, _LATE.as_pointer()), given)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, *GIVEN), codegen


#: the address of a `device` function of two int64, compiled with whoever asks
entry = intrinsic(_entry)
#: calls, with two int64, the function whose address is in a word of memory; nothing if there is none
invoke = intrinsic(_invoke)
