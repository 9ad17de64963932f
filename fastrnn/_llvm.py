"""LLVM's half of a compilation, in a thread of its own: only _compiler.py, which writes the texts, asks for it.

Numba, which is Python, writes the next text meanwhile. Two fifths of a cold training step are LLVM's: it takes 0.77 of
the time where there are two processors. On one, where there would be no gain (1.05), a text waits until it is wanted.

To LLVM every text is a world of its own (a context), so several threads may work on several. llvmlite has one lock
around every call: the two that take long go past it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from copy import copy
from ctypes import string_at
from functools import partial
from time import perf_counter
from typing import Any, ClassVar, NamedTuple

import llvmlite.binding as llvm
from llvmlite.binding import ffi
from numba.core import config


class Translation(threading.Thread):
    """The text of a whole library to its code: what Numba would do about it, and its engine when it is loaded."""

    running: ClassVar[set[Translation]] = set()
    seconds = 0.0  # that it took

    def __init__(self, library: Any) -> None:
        super().__init__(name="fastrnn-llvm", daemon=False)  # at its exit Python waits for it
        self._library, self._text = library, library._final_module.as_bitcode()
        self._made: tuple[bytes, bytes] | None = None
        self._error: BaseException | None = None
        if _processors() > 1:
            self.running.add(self)
            try:
                self.start()
            except RuntimeError:  # no more threads to be had, or the interpreter is shutting down
                self.running.discard(self)

    def run(self) -> None:
        begun = perf_counter()
        try:
            self._made = self._translated()
        except BaseException as error:
            self._error = error
        finally:
            self.seconds = perf_counter() - begun
            self._library = self._text = None
            self.running.discard(self)

    def _translated(self) -> tuple[bytes, bytes]:
        library = copy(self._library)
        library._codegen = own = copy(library._codegen)
        library._final_module = llvm.parse_bitcode(self._text, llvm.create_context())
        options = {"opt": config.OPT}
        own._customize_tm_options(options)
        own._tm = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(**options)
        own._module_pass_manager = partial(_free_passes, own._module_pass_manager)
        library._optimize_final_module()
        library._final_module.verify()
        return library._final_module.as_bitcode(), _code(own._tm, library._final_module)

    def result(self) -> tuple[Any, bytes]:
        """The optimized text, in the context of all others again, and its code."""
        if self.ident is None:
            self.run()
        else:
            self.join()
        if self._made is None:
            assert self._error is not None
            raise self._error
        text, code = self._made
        return llvm.parse_bitcode(text), code


def wait() -> None:
    """Until LLVM is at rest."""
    for one in list(Translation.running):
        one.join()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Passes(NamedTuple):
    """Passes of LLVM that run without llvmlite's lock."""

    numbas: Any

    def run(self, module: Any, builder: Any) -> None:
        _freely("LLVMPY_RunNewModulePassManager", self.numbas, module, builder)


def _free_passes(make: Callable[..., Any], **how: Any) -> tuple[_Passes, Any]:
    passes, builder = make(**how)
    return _Passes(passes), builder


def _code(machine: Any, module: Any) -> bytes:
    """`machine.emit_object(module)` without llvmlite's lock."""
    with ffi.OutputString() as error:
        buffer = _freely("LLVMPY_TargetMachineEmitToMemory", machine, module, 1, error)
        if not buffer:
            raise RuntimeError(f"LLVM has made no code: {error}")
    try:
        return string_at(ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer))
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


def _freely(name: str, *args: Any) -> Any:
    function = getattr(ffi.lib, name)
    return getattr(function, "_cfn", function)(*args)
