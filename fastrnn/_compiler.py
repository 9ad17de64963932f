"""Numba's compiler without what none of our functions needs, for the time of a cold first result.

They allocate nothing, count no references, and are closed over nothing; they call each other a lot. `TextCompiler` is
for those that kernels call, `KernelCompiler` for kernels, which are compiled in `Halves`. Nobody but _jit.py, where the
flags are, speaks of these; and the code that they make is Numba's own, but for the order of what is optimized.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from time import perf_counter
from types import BuiltinFunctionType
from typing import Any, ClassVar

from numba.core import event, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.ir import UNDEFINED
from numba.core.lowering import Lower
from numba.core.typed_passes import BaseNativeLowering, IRLegalization, NativeLowering, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes, IRProcessing, WithLifting

from ._llvm import Translation


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


_before_loading: list[Callable[[bytes], None]] = []


def before_loading(function: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A function that is shown the compiled code of a kernel before it is loaded.

    Whoever writes calls by name into kernels sees to it that these names are known by then: for one that it does not
    know LLVM ends the process.
    """
    _before_loading.append(function)
    return function


def show(code: bytes) -> None:
    """What is about to be loaded."""
    for function in _before_loading:
        function(code)


class _Whole(JITCodeLibrary):  # type: ignore[misc]
    """A kernel: its own text, and that of every function that it calls. A thread of its own translates it."""

    seconds = 0.0  # that it took, without what it waited for
    _translation: Translation

    def _optimize_functions(self, module: Any) -> None:
        pass

    def translate(self) -> None:
        """Begins to be translated: nothing is added afterwards."""
        self._codegen._check_llvm_bugs()
        todo, self._linking_libraries = self._linking_libraries, []
        seen, names = set(), []
        while todo:
            library = todo.pop()
            if library in seen:
                continue
            seen.add(library)
            if not isinstance(library, _Text):
                self._final_module.link_in(library._get_module_for_linking(), preserve=True)
                continue
            todo += library._linking_libraries
            self._reload_init.update(library._reload_init)
            names += [f.name for f in library._final_module.functions if not f.is_declaration]
            self._final_module.link_in(library._final_module, preserve=True)
        # As Numba gives them away: what is written into all of its callers is left out.
        for name in names:
            self._final_module.get_function(name).linkage = "linkonce_odr"
        self._translation = Translation(self)

    def finalize(self) -> None:
        self._final_module, code = self._translation.result()
        self.seconds += self._translation.seconds
        show(code)
        self._compiled_object = code
        self._finalize_final_module()
        self._compiled_object = code  # the engine's way of asking for it takes it away


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

    _of_numbers: ClassVar[dict[Any, tuple[Any, Any]]] = {}  # signatures of operators, and what writes their text

    def lower_binop(self, resty: Any, expr: Any, op: Any) -> Any:
        """Numba asks here, for every operator, once more what it is of these types; see `_Typing`."""
        given = self.fndesc.calltypes[expr].args
        known = self._of_numbers.get((op, given)) or self._find(op, given)
        constant = expr.static_lhs is not UNDEFINED or expr.static_rhs is not UNDEFINED
        if constant or known is None:
            return super().lower_binop(resty, expr, op)
        sig, write = known
        values = [
            self.context.cast(self.builder, self.loadvar(side.name), self.typeof(side.name), wanted)
            for side, wanted in zip((expr.lhs, expr.rhs), given, strict=True)
        ]
        result = write(self.context, self.builder, sig, values, loc=None)
        return self.context.cast(self.builder, result, sig.return_type, resty)

    def _find(self, op: Any, given: tuple[Any, ...]) -> tuple[Any, Any] | None:
        if not all(isinstance(a, types.Number) for a in given):
            return None
        operator = self.context.typing_context.resolve_value_type(op)
        sig = operator.get_call_type(self.context.typing_context, given, {})
        found = self.context.get_function(operator, sig)
        if hasattr(found, "libs"):  # compiled, with somebody's flags
            return None
        return self._of_numbers.setdefault((op, given), (sig, found._imp))


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(BaseNativeLowering):  # type: ignore[misc]
    _name = "fastrnn_lowering"  # type: ignore[assignment]
    lowering_class = _Lower


# What Numba does about closures and array expressions, a tenth of the time of all though there are none; about where
# the life of a variable ends, for its references to be given back there, 0.05; and about `with`, for which it finds out
# these lives too, as it does again for those who look at them.
_NEEDLESS = InlineClosureLikes, NopythonRewrites, IRLegalization, IRProcessing, WithLifting


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
    """Its result cannot be called yet: see `Halves`."""

    library = _Whole

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.state.flags.no_compile = True

    def _compile_core(self) -> Any:
        begun = perf_counter()
        made = super()._compile_core()
        made.library.translate()
        made.library.seconds = perf_counter() - begun
        return made


class _Begun(Exception):  # noqa: N818 - no error
    """How Numba's `compile` is left at half time."""


class Halves:
    """The compilation of a kernel in two: Numba's, and LLVM's, which goes on until the kernel is wanted (_llvm.py)."""

    def __init__(self, made: Any) -> None:
        self._made, self._numbas = made, made._compiler.compile
        self._begun: dict[Any, Any] = {}
        self._begins = False
        made._compiler.compile = self._compile

    def begin(self, args: tuple[Any, ...]) -> None:
        """The first half, if there is no code for these types, nor any to be loaded; under Numba's lock."""
        if args in self._made.overloads or args in self._begun:
            return
        only = not self._made._can_compile  # those that there are
        self._made.disable_compile(False)
        self._begins = True
        try:
            self._made.compile(args)
        except _Begun:
            pass
        finally:
            self._begins = False
            self._made.disable_compile(only)

    def _compile(self, args: tuple[Any, ...], return_type: Any) -> Any:
        made = self._begun.pop(args, None) or self._numbas(args, return_type)
        if self._begins:
            self._begun[args] = made
            raise _Begun
        library, target = made.library, made.target_context
        entry = target.get_executable(library, made.fndesc, made.environment)
        target.insert_user_function(entry, made.fndesc, [library])
        made.reload_init.extend(library._reload_init)
        return made._replace(entry_point=entry)


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
