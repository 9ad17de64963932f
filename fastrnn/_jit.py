"""Every compiler flag, and where compiled code is kept.

`kernel` marks what Python calls, `device` what kernels call. Nothing else in the package speaks of Numba's
decorators. No fast-math flag is set: NaN and infinity pass through, and products and sums are fused only where the
text says `fma`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.ma  # Numba does at the first call, and a fork just then leaves the module locked in the child
from numba.core import caching, config, types
from numba.core.compiler_lock import global_compiler_lock

from ._compiler import Halves, KernelCompiler, TextCompiler, show
from ._llvm import wait

# Below this many multiply-adds (about 100 us on one core) a kernel runs in the caller alone and keeps the GIL.
SMALL = 8_000_000

# Whoever wants to hear how kernels come to be sets a handler and the level DEBUG; by default nothing is said.
_log = logging.getLogger("fastrnn")
_log.addHandler(logging.NullHandler())

# Without NRT, Numba's memory: kernels allocate nothing and return no array, so there is nothing to count. A step of
# B=1, H=32 takes 0.94 of the time, a small training pass 0.95, a cold start 0.9: less is written, nothing pruned.
FLAGS: dict[str, Any] = {"error_model": "numpy", "no_cfunc_wrapper": True, "_nrt": False}


DEVICE: dict[str, Any] = {**FLAGS, "no_cpython_wrapper": True, "pipeline_class": TextCompiler}


def device(function: Callable[..., Any]) -> Any:
    """A function that only kernels call; LLVM decides where it is written into its callers.

    Numba would compile it for every constant that it is called with; of `take` there were three.
    """
    made = numba.njit(**DEVICE)(function)
    if not config.DISABLE_JIT:
        made.get_call_template = partial(_of_any_number, made.get_call_template)
    return made


def _of_any_number(get: Any, args: Any, kws: Any) -> Any:
    return get(tuple(types.unliteral(a) for a in args), kws)


def part(function: Callable[..., Any]) -> Any:
    """A `device` function that is one place's text put under a name of its own: LLVM writes it into its callers."""
    return numba.njit(forceinline=True, **DEVICE)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """A `device` function that Numba writes into its callers: a generator cannot be handed on otherwise."""
    return numba.njit(inline="always", **DEVICE)(function)


class kernel:  # noqa: N801 - read as a decorator
    """A compiled entry point. Those that are launched (see threads.py) begin with `worker`, `workers`, `tickets`.

    There are two of it, compiled when first called. `held` keeps the GIL: taking it back can cost 5 ms beside a busy
    Python thread, a thousand times a short kernel's own time. `released` lets others run meanwhile.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.py_func = function
        self.__name__, self.__doc__, self.__module__ = function.__name__, function.__doc__, function.__module__
        names = function.__code__.co_varnames[3 : function.__code__.co_argcount]
        shown = [names.index(name) for name in ("flags", "pieces") if name in names]
        #: where `flags` and `pieces` are among the arguments of a launch, for `last_call_info`
        self.shown = slice(shown[0], shown[-1] + 1, max(1, shown[-1] - shown[0])) if shown else slice(0)

    def __getattr__(self, name: str) -> Any:
        if name not in ("held", "released"):
            raise AttributeError(f"a kernel has no {name!r}")
        # Not a cached_property: until Python 3.12 that has a lock, and a fork just then leaves it locked in the child.
        return self.__dict__.setdefault(name, self._compile(nogil=name == "released"))

    def for_types(self, *args: Any) -> Any:
        """`held`, compiled for arguments like these; it compiles for no others: they are errors, NumPy's or Numba's."""
        made = self.held
        with global_compiler_lock:
            made.disable_compile(False)
            try:
                made.compile(tuple(numba.typeof(a) for a in args))
            finally:  # after an interruption there may be nothing yet
                made.disable_compile(bool(made.signatures))
        return made

    def _compile(self, nogil: bool) -> Any:
        made = numba.njit(nogil=nogil, pipeline_class=KernelCompiler, **FLAGS)(self.py_func)
        if not config.DISABLE_JIT:
            form, folder = "released" if nogil else "held", cache_folder()
            name = f"{self.__name__} ({form})"
            made._cache = _Unkept(name) if folder is None else _cache_class(folder / form)(self.py_func, name)
            made.halves = Halves(made)
        return made

    @property
    def compilations(self) -> int:
        """How many times this process compiled it or loaded it from the cache."""
        made = [self.__dict__[name] for name in ("held", "released") if name in self.__dict__]
        return sum(len(m.signatures) for m in made if hasattr(m, "signatures"))  # without JIT they are functions


def begin(made: Any, *args: Any) -> None:
    """Begins to compile `held` or `released` of a kernel for arguments like these: the first call of it goes on."""
    with global_compiler_lock:
        made.halves.begin(tuple(numba.typeof(a) for a in args))


def _before_fork() -> None:
    """A fork waits until no thread compiles. The child would find Numba's lock taken by a thread that it does not have,
    and LLVM in the midst of something: its first kernel would hang for ever.
    """
    global_compiler_lock.acquire()
    wait()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=global_compiler_lock.release,
        after_in_child=global_compiler_lock.release,
    )


@cache
def cache_folder() -> Path | None:
    """The folder for compiled code, or None if there is none and none can be made. One that can only be read is read.

    `FASTRNN_CACHE_DIR`, else `NUMBA_CACHE_DIR`, else the user's cache folder. Its last part is a hash of everything
    that compiled code depends on and that Numba's own key leaves out (the text of every other module, the flags), so
    an entry can never be older than the code that asks for it. A program whose package is replaced or edited while it
    runs has neither the old text nor the new: it goes on without the folder, and so does one that is in an archive.
    """
    if not _SOURCES:
        _log.debug("compiled code is not kept: the package's files are not in a folder")
        return None
    for base in _candidates():
        folder = base / "fastrnn" / _STAMP
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _log.debug("compiled code is not kept: %s", error)
            continue
        if os.access(folder, os.R_OK | os.X_OK):
            if not os.access(folder, os.W_OK):
                _log.debug("compiled code is read from %s, where nothing can be written", folder)
            return folder
        _log.debug("compiled code is not kept: no right to read %s", folder)
    return None


class CacheState(NamedTuple):
    """What there is in the folder for compiled code."""

    entries: int  # compiled kernels, each for its types and CPU
    size: int  # bytes
    writable: bool
    others: int  # folders beside it: of other versions and settings
    others_size: int  # bytes


def cache_state(folder: Path) -> CacheState:
    """The state of a `cache_folder`, as far as it can be read."""
    mine, entries = _files(folder)
    others = [other for other in _listed(folder.parent) if other != folder and other.is_dir()]
    return CacheState(entries, mine, os.access(folder, os.W_OK), len(others), sum(_files(one)[0] for one in others))


def _files(folder: Path) -> tuple[int, int]:
    """Bytes in all files of a folder, and how many of them hold a compiled kernel."""
    size = entries = 0
    for form in _listed(folder):
        for path in _listed(form):
            try:
                size += path.stat().st_size
            except OSError:  # gone meanwhile
                continue
            entries += path.suffix == ".nbc"
    return size, entries


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _candidates() -> list[Path]:
    named = os.environ.get("FASTRNN_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    if named:
        return [Path(named)]
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return [Path(local)]
    if sys.platform == "darwin":
        return [Path("~/Library/Caches").expanduser()]
    try:
        return [Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")]
    except RuntimeError:  # no home directory
        return []


def _times() -> list[tuple[int, int, int]]:
    """By which a source that has been written to or replaced is known, of each."""
    try:
        found = [path.stat() for path in _SOURCES]
    except OSError:
        return []
    return [(one.st_mtime_ns, one.st_size, one.st_ino) for one in found]


def _stamp() -> str:
    digest = hashlib.sha256()
    for path in _SOURCES:
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    flags = (config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT)
    for part in (sys.version, numba.__version__, np.__version__, flags):
        digest.update(str(part).encode())
    return digest.hexdigest()[:24]


# Every module's text; without it (an installation that is only compiled) Python's own code. Looked at before any
# kernel's module is imported, and before any text is read.
_SOURCES = sorted(
    path for path in Path(__file__).parent.rglob("*.py*")
    if path.suffix in (".py", ".pyc") and path.parent.name != "__pycache__"
)  # fmt: skip
_TIMES = _times()
_STAMP = _stamp()


@cache
def _cache_class(folder: Path) -> type:
    class Locator(caching._CacheLocator):
        def __init__(self, py_func: Any, py_file: str) -> None:
            self._name = py_func.__module__

        def get_cache_path(self) -> str:
            return str(folder)

        def get_source_stamp(self) -> str:
            return folder.parent.name

        def get_disambiguator(self) -> str:
            return self._name

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Locator:
            return cls(py_func, py_file)

    class Impl(caching.CompileResultCacheImpl):
        _locator_classes = [Locator]  # noqa: RUF012 - Numba's own name and form

        def rebuild(self, target_context: Any, payload: Any) -> Any:
            _, _, (code, _) = payload[0]
            show(code)
            return super().rebuild(target_context, payload)

    class Cache(caching.FunctionCache):
        _impl_class = Impl

        def __init__(self, py_func: Any, name: str) -> None:
            super().__init__(py_func)
            self._told = name
            self._loads = self._keeps = True

        def _may_be_used(self) -> bool:
            if self._loads and _times() != _TIMES:
                self._keeps = self._loads = False
                _log.debug("%s: compiled code is not kept: the package has changed meanwhile", self._told)
            return self._loads

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            found = None
            if not self._may_be_used():
                return found
            try:
                # Numba would first register whatever it can compile and compile its NRT, which took 0.3 of 0.9 s of a
                # warm start (half of it imports SciPy, where there is one). Loaded code of ours needs neither.
                with self._guard_against_spurious_io_errors():
                    found = self._load_overload(sig, target_context)
            except Exception:  # a damaged or half-written entry is an entry that is not there
                pass
            if found is not None:
                _log.debug("loaded %s from the cache", self._told)
            return found

        def save_overload(self, sig: Any, data: Any) -> None:
            _log.debug("compiled %s in %.2f s", self._told, data.library.seconds)
            if not self._may_be_used() or not self._keeps:
                return
            try:
                super().save_overload(sig, data)
            except Exception:  # a damaged index is begun anew; a full or vanished disk costs the next warm start
                try:
                    self.flush()
                    super().save_overload(sig, data)
                except Exception as error:
                    self._keeps = False  # and what is there is read all the same
                    _log.debug("not kept: %s: %s", self._told, error)

    return Cache


class _Unkept(caching.NullCache):
    """No cache; it tells what is compiled."""

    def __init__(self, name: str) -> None:
        self._told = name

    def save_overload(self, sig: Any, cres: Any) -> None:
        _log.debug("compiled %s in %.2f s", self._told, cres.library.seconds)
