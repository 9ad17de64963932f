"""Compiled code that is kept: always that of the sources that run, wherever they are and whoever else writes.

Every test has packages and folders of its own, and runs Pythons of their own with a time limit.
"""

import compileall
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import JIT, ROOT, run_python
from numba.core import types
from numba.core.typing.context import BaseContext

from fastrnn._jit import device, kernel

pytestmark = pytest.mark.skipif(not JIT, reason="without JIT nothing is kept")

# Prints the version, the bits of a small kernel, how many functions were compiled (none if it was loaded), and where
# the package is.
CALL = """
import numba.core.event as event
import numpy as np
import fastrnn as fr
with event.install_recorder("numba:compile") as compiled:
    y = fr.softmax(np.array([0.0, 1.0, 3.0]))
starts = sum(e.is_start for _, e in compiled.buffer if e.data["dispatcher"].py_func.__module__.startswith("fastrnn"))
print(fr.__version__, y.tobytes().hex(), starts, fr.__file__)
"""

# Root may write everywhere; without its capabilities it is as anybody else.
AS_ANYBODY = """
import ctypes, os
if os.geteuid() == 0:
    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
    capset = ctypes.CDLL(None, use_errno=True).capset
    assert capset(ctypes.byref(Header(0x20080522, 0)), (ctypes.c_uint32 * 6)()) == 0
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")


def call(cache, package=ROOT, before=""):
    """(version, bits, kernels compiled) of the package in a folder, with the cache in a folder."""
    variables = {"PYTHONPATH": str(package), "FASTRNN_CACHE_DIR": cache and str(cache), "NUMBA_CACHE_DIR": None}
    here = "import sys\nsys.path.remove('')\n"  # not the package in the current folder
    version, bits, compiled, place = run_python(here + before + CALL, **variables).split()
    assert place.startswith(str(package))
    return version, bits, int(compiled)


def copied(folder):
    """The package, copied there."""
    shutil.copytree(ROOT / "fastrnn", folder / "fastrnn", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_kernels_find_what_they_call_by_name(tmp_path):
    """Tiles, and how workers find their items, are kept by themselves: a kernel that is loaded without them has them
    compiled again.
    """
    code = """
import numpy as np
import fastrnn as fr
y, _ = fr.LSTM(3, 40, seed=1)(np.ones((5, 4, 3), "float32"), lengths=[5] * 4)
z, _ = fr.LSTM(3, 40, seed=1, dtype="float64")(np.ones((5, 4, 3)), lengths=[5] * 4)
w, _ = fr.RNN(3, 40, seed=1)(np.ones((5, 4, 3), "float32"), lengths=[5] * 4)
print(y.tobytes().hex(), z.tobytes().hex(), w.tobytes().hex())
"""
    bits = run_python(code, FASTRNN_CACHE_DIR=str(tmp_path))
    # Tiles: wide ones of both types; an RNN has narrow ones besides.
    for pattern, count in (("*tile_shapes*", 3), ("*ticket_functions*", 1)):
        assert len(list(tmp_path.rglob(f"{pattern}.nbc"))) == count
        for path in tmp_path.rglob(pattern):
            path.unlink()
        assert run_python(code, FASTRNN_CACHE_DIR=str(tmp_path)) == bits
        assert len(list(tmp_path.rglob(f"{pattern}.nbc"))) == count


def edit(package, path, old, new):
    """Changes a source and neither its size nor its time: nothing but its text can tell."""
    assert len(old) == len(new)
    file = package / "fastrnn" / path
    text, times = file.read_text(), file.stat()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def freeze(folder):
    """Nobody may write there."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def thaw(folder):
    """So that it can be removed."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def listing(folder):
    """Everything below a folder, with sizes and times."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The bits of the sources as they are."""
    return call(tmp_path_factory.mktemp("cache"))[1]


def test_versions_side_by_side_and_an_edited_kernel(tmp_path, expected):
    """One cache for all: each gets its own code, the others' stays."""
    cache = tmp_path / "cache"
    one, two = copied(tmp_path / "one"), copied(tmp_path / "two")
    edit(two, "__init__.py", '__version__ = "0', '__version__ = "9')
    # In another module than the kernel's: of that Numba knows nothing.
    edit(two, "kernels/activations.py", "return fma(q, s, s)", "return fma(q, s, q)")
    first, second = call(cache, one), call(cache, two)
    assert (first[1], first[2] > 0, second[2] > 0) == (expected, True, True)
    assert (first[0][1:], second[0][0]) == (second[0][1:], "9")
    assert first[1] != second[1]
    assert call(cache, one) == (*first[:2], 0)
    assert call(cache, two) == (*second[:2], 0)
    edit(one, "kernels/activations.py", "return fma(q, s, s)", "return fma(q, s, q)")
    assert call(cache, one)[1:] == (second[1], first[2])
    edit(one, "kernels/activations.py", "return fma(q, s, q)", "return fma(q, s, s)")
    assert call(cache, one) == (*first[:2], 0)


def test_a_package_that_changes_under_a_running_program(tmp_path, expected):
    """As when it is upgraded below a server: what that compiles is from the old text, and nobody's from then on."""
    package, cache, file = copied(tmp_path), tmp_path / "cache", tmp_path / "fastrnn" / "kernels" / "activations.py"
    before = f"""
from pathlib import Path
import fastrnn
fastrnn.softmax  # imports the kernels
file = Path({str(file)!r})
file.write_text(file.read_text().replace("return fma(q, s, s)", "return fma(q, s, q)"))
"""
    bits, compiled = call(cache, package, before)[1:]
    assert (bits, compiled > 0) == (expected, True)
    changed = call(cache, package)
    assert changed[1] != expected
    assert changed[1:] == call(tmp_path / "another", package)[1:]


def test_a_package_without_its_text(tmp_path, expected):
    """Compiled modules only, or an archive: two versions get their own code."""
    cache, found = tmp_path / "cache", []
    for name, new in (("one", "return fma(q, s, s)"), ("two", "return fma(q, s, q)")):
        package = copied(tmp_path / name)
        edit(package, "kernels/activations.py", "return fma(q, s, s)", new)
        archive = shutil.make_archive(str(tmp_path / name), "zip", package)
        assert compileall.compile_dir(package, quiet=1, legacy=True)
        for text in package.rglob("*.py"):
            text.unlink()
        found.append(call(cache, package)[1])
        assert call(cache, archive)[1] == found[-1]
    assert found[0] == expected != found[1]
    assert call(cache, package)[1:] == (found[1], 0)


@linux
def test_a_read_only_install(tmp_path, expected):
    """A package in a place where nothing can be written, not even Python's own compiled modules."""
    package, cache = copied(tmp_path / "install"), tmp_path / "cache"
    freeze(package)
    before = listing(package)
    try:
        bits, compiled = call(cache, package, AS_ANYBODY)[1:]
        assert (bits, compiled > 0) == (expected, True)
        assert call(cache, package, AS_ANYBODY)[1:] == (expected, 0)
    finally:
        thaw(package)
    assert set(listing(package)) == set(before)


@linux
def test_a_read_only_cache(tmp_path, expected):
    """As in an image whose cache was filled when it was built: what is there is loaded, the rest is compiled."""
    call(tmp_path / "cache")
    freeze(tmp_path / "cache")
    before = listing(tmp_path / "cache")
    more = "import numpy, fastrnn; fastrnn.log_softmax(numpy.zeros(3))\n"  # compiled first, and in vain to be kept
    try:
        assert call(tmp_path / "cache", before=AS_ANYBODY + more)[1:] == (expected, 0)
        assert listing(tmp_path / "cache") == before
    finally:
        thaw(tmp_path / "cache")


def test_no_writable_place_at_all(tmp_path, expected):
    """Whatever wants to write, wherever it is, is told that the disk is read-only."""
    before = """
import os
def forbid(event, args):
    if event == "open":
        writes = args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.link", "os.symlink", "os.truncate", "os.chmod")
    if writes:
        raise OSError(30, "Read-only file system")
sys.addaudithook(forbid)
"""
    cache = tmp_path / "cache"
    bits, compiled = call(cache, before=before)[1:]
    assert (bits, compiled > 0, cache.exists()) == (expected, True, False)


def test_no_home_directory(expected):
    """Neither in the environment nor in the list of users, as for a container's random user."""
    before = """
import os, pwd
for name in ("HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
"""
    after = "\nfrom fastrnn._jit import cache_folder\nassert cache_folder() is None\n"
    assert call(None, before=before + after)[1] == expected


def test_many_processes_fill_the_cache(tmp_path, effort, reliability, expected):
    """All begin at once, with nothing there; in the long form half of them are killed on the way. The right bits from
    each, and from whatever they have left; nothing is compiled a third time.
    """
    rounds, processes = effort(1, 12), effort(3, 8)
    wait = "import os, time\nwhile not os.path.exists({go!r}): time.sleep(0.001)\n"
    killed = 0
    for n in range(rounds):
        cache, go = tmp_path / f"cache{n}", str(tmp_path / f"go{n}")
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "FASTRNN_CACHE_DIR": str(cache)}
        code = "import numba, numpy\n" + wait.format(go=go) + CALL
        running = [
            subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        open(go, "w").close()
        dying = running[: processes // 2] if rounds > 1 else []
        for k, process in enumerate(dying):
            time.sleep(0.3 * (n + 1) / rounds * (k + 1))
            process.send_signal(signal.SIGKILL)
        for process in running:
            printed, _ = process.communicate(timeout=300)
            if process.returncode == -signal.SIGKILL and process in dying:
                killed += 1
            else:
                assert process.returncode == 0
                assert printed.split()[1] == expected
        assert call(cache)[1] == expected  # all may have been killed before they were done
        assert call(cache)[1:] == (expected, 0)
    reliability(caches_filled=rounds, by_processes=rounds * processes, of_them_killed_on_the_way=killed)


@pytest.mark.skipif(not JIT, reason="without JIT nothing is compiled")
def test_an_interrupted_compilation_is_begun_anew(monkeypatch):
    """The interruption is what the caller sees."""

    @kernel
    def twice(a):
        return 2 * a

    def interrupted(types):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(twice.held, "compile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            twice.for_types(1.0)
    assert twice.for_types(1.0)(3.0) == 6.0
    with pytest.raises(TypeError):
        twice.held("no other type is compiled")


def test_numba_is_asked_once_what_a_sum_is_of(monkeypatch):
    """And says of every one what it says of the first, whether a constant is in it or not."""
    asked, ask = [], BaseContext.resolve_function_type

    def listen(context, function, args, kws):
        if isinstance(function, types.Function):
            asked.append((function, args))
        return ask(context, function, args, kws)

    @device
    def sums(a, b):
        return a + b + a + b + 1 + 2, a + 1.5 + b

    monkeypatch.setattr(BaseContext, "resolve_function_type", listen)
    sums.compile((types.int8, types.int8))
    assert asked
    assert len(asked) == len(set(asked))
    assert not any(isinstance(t, types.Literal) for _, args in asked for t in args)
    assert [str(t) for t in sums.nopython_signatures[0].return_type] == ["int64", "float64"]


def test_other_peoples_flags_stay_theirs():
    """A program's own `max` without NaN, compiled after ours was found and before it is written into a kernel."""
    code = """
import re
import numba
from fastrnn._jit import kernel

@kernel
def before(a, b):
    return max(a, b)

@kernel
def after(a, b):
    return max(a, b)

before.for_types(1.0, 1.0)
assert numba.njit(fastmath=True)(lambda a, b: max(a, b))(1.0, 2.0) == 2.0
made = after.for_types(1.0, 1.0)
text = made.inspect_llvm(made.signatures[0])
assert "fcmp" in text, text
assert not re.search(r"fcmp (fast|nnan)", text), text
"""
    run_python(code, FASTRNN_CACHE_DIR="/dev/null/none", NUMBA_CACHE_DIR="/dev/null/none")
