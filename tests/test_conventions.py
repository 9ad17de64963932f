"""The house rules, as facts: read from the syntax tree of the sources, or asked of a fresh Python."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
from helpers import JIT, ROOT, run_python

import fastrnn as fr

PACKAGE = ROOT / "fastrnn"
SOURCES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}

# Calls run downward only: cli, models, layers, kernels, simd. Of the modules at the top level, those named
# here stand below the layers or beside them; every other one stands above.
RANKS = {
    "simd": 0, "_llvm.py": 0, "_compiler.py": 0, "_jit.py": 0, "checks.py": 0, "sampling.py": 0, "threads.py": 1,
    "streaming.py": 1, "kernels": 2, "layers": 3, "losses": 3, "optim.py": 3,
}  # fmt: skip
ABOVE = 4
ON_TOP = {"cli.py": 6, "__main__.py": 7, "models": 5}


def rank(path):
    """How high a module stands, by its path inside the package."""
    return (RANKS | ON_TOP).get(path.split("/")[0], ABOVE)


def words(tree):
    """Every identifier in a module: names, attributes, imported names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from node.module.split(".")


def kernels(tree):
    """The functions of a module that are compiled: kernels, device functions, pointwise functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            decorators = " ".join(ast.unparse(decorator) for decorator in node.decorator_list)
            if re.search("kernel|device|pointwise", decorators):
                yield node


def imported(path, tree):
    """What a module imports from this package: the folder or file at the package's top level."""
    here = path.split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - node.level + 1] + (node.module.split(".") if node.module else [])
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "fastrnn":
            base = node.module.split(".")[1:]
        else:
            continue
        for target in [base] if base else [[alias.name] for alias in node.names]:
            yield target[0] if (PACKAGE / target[0]).is_dir() else f"{target[0]}.py"


# --- sources ------------------------------------------------------------------------------------------------


def test_kernels_are_found():
    """The rules below are about something: every file of kernels has some."""
    files = [path for path in SOURCES if path.startswith("kernels/") and not path.endswith("__init__.py")]
    assert files
    assert [path for path in files if not list(kernels(SOURCES[path]))] == []


@pytest.mark.parametrize("path", [path for path in SOURCES if path.startswith(("kernels/", "simd/"))])
def test_compiled_code_neither_raises_nor_prints(path):
    """An error is found in Python, at the border, before a pointer is touched."""
    for function in kernels(SOURCES[path]):
        for node in ast.walk(function):
            assert not isinstance(node, ast.Raise | ast.Assert | ast.Try), f"{function.name}, line {node.lineno}"
            assert not (isinstance(node, ast.Name) and node.id == "print"), f"{function.name}, line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES)
def test_only_one_module_compiles(path):
    """Every compiler flag is in _jit.py; simd speaks to the compiler itself."""
    if path != "_jit.py" and not path.startswith("simd/"):
        assert not {"njit", "jit", "vectorize", "guvectorize", "cfunc"} & set(words(SOURCES[path]))


@pytest.mark.parametrize("path", SOURCES)
def test_only_simd_speaks_llvm(path):
    """LLVM's instructions are written in one folder; one module calls its library, one knows Numba's own form."""
    if not path.startswith("simd/"):
        may = {"_llvm.py": {"binding"}, "_compiler.py": {"ir"}}.get(path, set())
        assert not ({"ir", "binding", "intrinsic"} - may) & set(words(SOURCES[path]))


@pytest.mark.parametrize("path", [path for path in SOURCES if path != "__init__.py"])
def test_calls_run_downward(path):
    """cli, models, layers, kernels, simd: nobody imports from above."""
    for target in imported(path, SOURCES[path]):
        assert rank(target) <= rank(path), f"{path} imports {target}"


def test_no_blas_in_kernels():
    """np.dot in Numba needs SciPy, and a matrix product of another library rounds in another order."""
    for path, tree in SOURCES.items():
        if path.startswith("kernels/"):
            assert not {"dot", "matmul", "einsum"} & {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}, (
                path
            )
            assert not any(isinstance(node, ast.MatMult) for node in ast.walk(tree)), path


def test_run_time_dependencies():
    """numpy and numba, and nothing else."""
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert sorted(re.match(r"[\w.-]+", line)[0].lower() for line in project["dependencies"]) == [
        "numba",
        "numpy",
    ]


# --- documentation ------------------------------------------------------------------------------------------

MODULES = sorted(m.name for m in pkgutil.walk_packages(fr.__path__, "fastrnn.") if not m.name.endswith("__main__"))


# Those that take 5 to 20 s without JIT.
LEARNING = ("fastrnn.models.minchar", "fastrnn.models.charlm", "fastrnn.losses.vocabulary")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n in LEARNING and not JIT else ()) for n in ("fastrnn", *MODULES)],
)
def test_doctests(name, tmp_path, monkeypatch):
    """Every example in a docstring gives what it says."""
    monkeypatch.chdir(tmp_path)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("name", sorted(fr.__all__))
def test_public_names_have_an_example(name):
    """What is public is documented, with an example that the test above runs."""
    public = getattr(fr, name)
    if callable(public) and not (inspect.isclass(public) and issubclass(public, Exception)):
        assert ">>>" in (public.__doc__ or ""), f"{name} has no example"


# --- import -------------------------------------------------------------------------------------------------


def test_import_is_light():
    """`import fastrnn` starts no thread, compiles nothing, loads no kernel and nobody else's library."""
    printed = run_python(
        """
        import sys, threading
        import numba.core.event as event
        before = set(sys.modules)
        with event.install_recorder("numba:compile") as compiled:
            import fastrnn
        print(len(compiled.buffer), threading.active_count())
        loaded = set(sys.modules) - before  # numba itself loads SciPy, where there is one
        print(sorted(name for name in loaded if name.startswith("fastrnn.kernels")))
        foreign = {"scipy", "torch", "pytest", "hypothesis", "onnx", "onnxruntime"}
        print(sorted(foreign & {name.split(".")[0] for name in loaded}))
        """
    )
    assert printed.splitlines() == ["0 1", "[]", "[]"]


def test_import_reads_no_file_but_its_own():
    """What it opens is Python source, in this package or in a library that it imports."""
    printed = run_python(
        """
        import sys
        import numba, numpy
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        import fastrnn
        print([path for path in opened if not path.endswith((".py", ".pyc"))])
        """
    )
    assert printed.strip() == "[]"


@pytest.mark.skipif(not JIT, reason="without JIT nothing is ever compiled")
def test_a_call_compiles_what_it_needs_and_no_more(tmp_path):
    """With an empty cache: making a layer compiles nothing, a first call does, a second one does not."""
    printed = run_python(
        """
        import numba.core.event as event
        import numpy as np
        import fastrnn as fr
        x = np.zeros((2, 3, 5), "float32")
        for step in ("make", "first", "second", "other sizes"):
            with event.install_recorder("numba:compile") as compiled:
                if step == "make":
                    layer = fr.RNN(5, 7, seed=1)
                elif step == "other sizes":
                    fr.RNN(3, 40, num_layers=2)(np.zeros((4, 1, 3), "float32"))
                else:
                    layer(x)
            print(step, bool(compiled.buffer))
        """,
        FASTRNN_CACHE_DIR=str(tmp_path),
    )
    assert printed.splitlines() == ["make False", "first True", "second False", "other sizes False"]
