"""Numba's compiler without what none of our functions needs, for the time of a cold first result.

They allocate nothing, count no references, and are closed over nothing; they call each other a lot. `TextCompiler` is
for those that kernels call, `KernelCompiler` for kernels. Nobody but _jit.py, where the flags are, speaks of them; and
the code that they make is Numba's own, but for the order of what is optimized.
"""

from __future__ import annotations

import gc
from types import BuiltinFunctionType
from typing import Any, ClassVar

from numba.core import event, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import BaseNativeLowering, IRLegalization, NativeLowering, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes


class _Text(JITCodeLibrary):  # type: ignore[misc]  # Numba has no types
    """A device function as Numba has written it, neither optimized nor translated: that is done once, with all of the
    kernel that it belongs to.

    Numba's own way is to do both for every function alone and then again within whatever calls it, at each level, and
    to copy what it inlines variable by variable: a quarter of a cold training step and more.
    """

    def _optimize_functions(self, module: Any) -> None:
        pass

    def finalize(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0  # to Numba: there is no such function

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, env: Any) -> None:
        pass  # what a Python function has besides its code; nothing of ours looks at it


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """A kernel: its own text, and that of every function that it calls."""

    def _optimize_functions(self, module: Any) -> None:
        pass

    def finalize(self) -> None:
        todo, self._linking_libraries = self._linking_libraries, []
        seen, names = set(), []
        while todo:
            library = todo.pop()
            if library in seen:
                continue
            seen.add(library)
            if not isinstance(library, _Text):
                self._linking_libraries.append(library)
                continue
            todo += library._linking_libraries
            self._reload_init.update(library._reload_init)
            names += [f.name for f in library._final_module.functions if not f.is_declaration]
            self._final_module.link_in(library._final_module, preserve=True)
        # As Numba gives them away: what is written into all of its callers is left out.
        for name in names:
            self._final_module.get_function(name).linkage = "linkonce_odr"
        super().finalize()


_SIZES: dict[Any, int] = {}  # bytes of LLVM's types


class _Typing:
    """Numba's typing context, which remembers what it has found.

    To know what `a + b` is of two integers, Numba asks all that know of some sum, arrays, strings and times among them,
    and asks them anew at every sum: a sixth of a cold training step. The answers are Numba's own, and so is the code.
    """

    _known: ClassVar[dict[Any, Any]] = {}

    def __init__(self, numbas: Any) -> None:
        self._numbas = numbas

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numbas, name)

    def resolve_function_type(self, func: Any, args: Any, kws: Any) -> Any:
        """The signature with which `func` is called. A function of Python's is not remembered here: it is compiled."""
        find = self._numbas.resolve_function_type
        if kws or not isinstance(func, types.Function):
            return find(func, args, kws)
        # Numba itself asks about constants, one by one, only what has no answer for numbers.
        if isinstance(func.key[0], BuiltinFunctionType) and all(isinstance(a, types.Number) for a in args):
            args = tuple(types.unliteral(a) for a in args)
        known = self._known.get((func, args))
        if known is None:
            found = find(func, args, kws)
            self._known[func, args] = found, func.get_impl_key(found)
            return found
        found, code = known
        # For these types a function has the code of whoever asked last: of another program perhaps, with its fast-math.
        func._impl_keys[found.args] = code  # type: ignore[attr-defined]
        return found


class _Lower(Lower):  # type: ignore[misc]
    """Numba's writer of LLVM's text, which otherwise loads what a variable held before whenever it is set, for the
    references that may be in it: there are none in ours.
    """

    def storevar(self, value: Any, name: str, argidx: int | None = None) -> None:
        if argidx is not None or self._disable_sroa_like_opt:
            super().storevar(value, name, argidx)
            return
        self._alloca_var(name, self.typeof(name))
        if name in self._singly_assigned_vars:
            self._blk_local_varmap[name] = value
        else:
            self.builder.store(value, self.getvar(name))


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(BaseNativeLowering):  # type: ignore[misc]
    _name = "fastrnn_lowering"  # type: ignore[assignment]
    lowering_class = _Lower


# What Numba does about closures and array expressions, a tenth of the time of all though there are none; and about
# where the life of a variable ends, for its references to be given back there, 0.05.
_NEEDLESS = InlineClosureLikes, NopythonRewrites, IRLegalization


class _Compiler(Compiler):  # type: ignore[misc]
    """Numba's, without what none of ours needs; and it knows how large a type is, where Numba has LLVM read a module
    with one in it for each variable.
    """

    library: type

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.state.typingctx = _Typing(self.state.typingctx)
        own = self.state.targetctx  # this function's own
        measure = own.get_abi_sizeof
        own.get_abi_sizeof = lambda kind: _SIZES.get(kind) or _SIZES.setdefault(kind, measure(kind))

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        own = {NativeLowering: _Lowering}
        passes.passes = [(own.get(kind, kind), told) for kind, told in passes.passes if kind not in _NEEDLESS]
        passes.finalize()
        return [passes]

    def _compile_core(self) -> Any:
        if self.state.library is None:
            self.state.library = self.library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
            self.state.library.enable_object_caching()
        return super()._compile_core()


class TextCompiler(_Compiler):
    library = _Text


class KernelCompiler(_Compiler):
    library = _Whole


class _NoCollection(event.Listener):  # type: ignore[misc]  # Numba has no types
    """Pauses Python's garbage collector while this package's functions are compiled: it walked through Numba's many
    objects again and again, for a fifth of the time. Under Numba's lock, one thread at a time is here.
    """

    def __init__(self) -> None:
        self._depth, self._paused = 0, False

    def on_start(self, event: Any) -> None:
        if _ours(event):
            self._depth += 1
            if self._depth == 1:
                self._paused = gc.isenabled()
                gc.disable()

    def on_end(self, event: Any) -> None:
        if _ours(event):
            self._depth -= 1
            if self._depth == 0 and self._paused:
                gc.enable()


def _ours(event: Any) -> bool:
    """Whether it is about a function of this package. Numba tells of everybody's, also of those without a module."""
    function = getattr(event.data.get("dispatcher"), "py_func", None)
    return str(getattr(function, "__module__", None)).partition(".")[0] == __package__


event.register("numba:compile", _NoCollection())
