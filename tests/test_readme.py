"""The README: what it shows runs, and what it names exists."""

import os
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path

import fastrnn as fr

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_example_runs(tmp_path):
    """The Python block, as printed, in a process and a folder of its own."""
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "example.py").write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "example.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nats per character" in done.stdout
    assert (tmp_path / "model.npz").exists()


def test_commands_exist():
    """Every `fastrnn WORD` and every option that the README names is one of the command line's."""
    for word, rest in set(re.findall(r"`fastrnn (\w+)([^`]*)`", TEXT)):
        done = subprocess.run(
            [sys.executable, "-m", "fastrnn", word, "--help"], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"fastrnn {word}: {done.stderr}"
        for option in re.findall(r"--[\w-]+", rest):
            assert option in done.stdout, f"fastrnn {word} has no {option}"


def test_names_exist():
    """The table of what there is names every public name, and nothing that isn't there."""
    (table,) = re.findall(r"^What there is.*\n\n((?:\|.*\n)+)", TEXT, flags=re.MULTILINE)
    named = re.findall(r"`([\w.]+)`", table)
    for name in named:
        assert reduce(getattr, name.split("."), fr), name
    assert set(fr.__all__) <= set(named), f"not in the README's table: {set(fr.__all__) - set(named)}"


def test_files_exist():
    """Every file and folder that it links to or lists is there; further files of a row are fastrnn's."""
    named = re.findall(r"\]\(([\w./-]+)\)", TEXT)
    for first, rest in re.findall(r"^\| `([\w./]+[./]\w*)` \|(.*)", TEXT, flags=re.MULTILINE):
        named += [first, *(f"fastrnn/{name}" for name in re.findall(r"`(\w+\.py)`", rest))]
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name
