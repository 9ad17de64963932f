"""Functions that are compiled once, not with every kernel that calls them: by an address in memory, or by name.

What stands in the text of a kernel is compiled with every kernel, before its first result.

By address: what is of use only beside helpers is compiled with what they run (`serve` in post.py), and kernels call it
by its address, which is written down in memory once somebody may need it: it took a tenth of a cold first result. These
functions take two int64 and return nothing.

By name: what every kernel needs is compiled when the first of them is, and LLVM finds it by its name. These take int64
and return one.

The convention of Numba's own functions is no matter of either.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import typeof
from numba.core import cgutils, types
from numba.extending import intrinsic

from .._compiler import before_loading
from .._jit import begin, kernel

_WORD = ir.IntType(64)
_LATE = ir.FunctionType(ir.VoidType(), [_WORD, _WORD])
GIVEN = types.int64, types.int64


def _outer(context: Any, builder: Any, made: Any, kind: ir.FunctionType, name: str) -> ir.Function:
    """A function of this type that calls one which Numba has compiled, whose result and error have a place each."""
    context.add_linking_libs([made.library])
    outer = builder.module.globals.get(name)
    if outer is None:
        outer = ir.Function(builder.module, kind, name)
        inner = ir.IRBuilder(outer.append_basic_block())
        _, result = context.call_internal_no_propagate(inner, made.fndesc, made.signature, outer.args)
        if kind.return_type == _WORD:
            inner.ret(result)
        else:
            inner.ret_void()
    return outer


def _entry(typingctx, function):
    function.dispatcher.compile(GIVEN)

    def codegen(context, builder, signature, args):
        made = function.dispatcher.overloads[GIVEN]
        outer = _outer(context, builder, made, _LATE, f"{made.fndesc.mangled_name}.late")
        outer.linkage = "internal"
        return builder.ptrtoint(outer, _WORD)

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


_provided: set[tuple[Any, ...]] = set()


def promise(defining: kernel, *args: Any) -> None:
    """Begins what `provide` does, for a kernel that is about to be written: when it is loaded, it is provided for."""
    if (defining, *map(typeof, args)) not in _provided:
        begin(defining.held, *args)


def provide(defining: kernel, *args: Any) -> None:
    """Sees to it that the functions which a kernel defines, for arguments like these, are there for those kernels that
    are about to be translated or loaded: under Numba's lock.
    """
    key = defining, *map(typeof, args)
    if key not in _provided:
        _provided.add(key)  # it is a kernel that is loaded, too
        try:
            defining.for_types(*args)
        except BaseException:
            _provided.discard(key)
            raise


def _named(function: Any) -> tuple[str, tuple[types.Type, ...]]:
    """Its name for LLVM, and what it takes."""
    code = function.py_func.__code__
    return f"fastrnn.{function.py_func.__name__}", code.co_argcount * (types.int64,)


def _define(typingctx, function):
    name, given = _named(function.dispatcher)
    function.dispatcher.compile(given)

    def codegen(context, builder, signature, args):
        made = function.dispatcher.overloads[given]
        _outer(context, builder, made, ir.FunctionType(_WORD, len(given) * [_WORD]), name)
        return context.get_dummy_value()

    return types.none(function), codegen


#: defines a `device` function for whoever calls it by its name
define = intrinsic(_define)


def call_by_name(function: Any, defining: kernel) -> Any:
    """What an intrinsic gives Numba that calls what `defining` defines: the signature, and the code."""
    promise(defining)
    name, given = _named(function)

    def codegen(context, builder, signature, args):
        kind = ir.FunctionType(_WORD, len(given) * [_WORD])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return types.int64(*given), codegen


_known: dict[bytes, kernel] = {}


def known_by_name(defining: kernel, *functions: Any) -> None:
    """A kernel that calls one of them has it there, if it is loaded, too."""
    _known.update((_named(function)[0].encode(), defining) for function in functions)


@before_loading
def _provide_for(code: bytes) -> None:
    for defining in {found for name, found in _known.items() if name in code}:
        provide(defining)
