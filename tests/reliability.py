"""Long runs, and the page with their figures: `python -m pytest -m long --reliability` writes tests/RELIABILITY.md.

A test that takes the fixture `effort` has two forms: in the default suite `effort(few, many)` is `few`, under `-m long`
it is `many`. What it has tried it tells to the fixture `reliability`. The page keeps the rows of runs that
were not part of this one.
"""

import datetime
import os
import platform
import re
import time
from pathlib import Path

import numba
import numpy as np
import pytest

PAGE = Path(__file__).with_name("RELIABILITY.md")
COMMAND = "python -m pytest -m long --reliability"
HEAD = f"""# Reliability

What the long runs tried and what became of it. Written by `{COMMAND}`; a run of some of them
(`-k`, or a file's name) replaces their rows and keeps the others. Figures count what was tried and found, not what is
hoped for: a run that fails writes no row.

| run | tried, injected, found | losses | seconds | when, on what |
| --- | --- | ---: | ---: | --- |
"""


def pytest_addoption(parser):
    parser.addoption("--reliability", action="store_true", help="write the figures of long runs to RELIABILITY.md")
    parser.addoption("--minutes", type=float, help="how long those long runs take that could go on for ever")


@pytest.fixture(params=["short", pytest.param("long", marks=pytest.mark.long)])
def effort(request):
    """`effort(few, many)`: how many cases this form of the test has."""
    return lambda few, many: many if request.param == "long" else few


@pytest.fixture
def minutes(request):
    """`minutes(usual)`: how long a long run takes, unless `--minutes` says otherwise."""
    given = request.config.getoption("--minutes")
    return lambda usual: usual if given is None else given


@pytest.fixture
def reliability(request):
    """`reliability(losses=0, **figures)`: what a run came to, in numbers under their names."""
    told, started = {}, time.perf_counter()
    yield lambda losses=0, **figures: told.update(losses=losses, figures=figures)
    failed = getattr(request.node, "failed", True)
    is_long = request.node.get_closest_marker("long") is not None
    if is_long and told and not failed and request.config.getoption("--reliability"):
        _write(request.node, time.perf_counter() - started, told["losses"], told["figures"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        item.failed = report.failed
    return report


def _write(node, seconds, losses, figures):
    name = re.sub(r"\[.*\]$", "", node.nodeid).removeprefix("tests/")
    found = "; ".join(f"{value:,} {what.replace('_', ' ')}" for what, value in figures.items())
    where = f"Python {platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}"
    when = f"{datetime.date.today()}, {platform.system()} {platform.machine()}, {os.cpu_count()} processors, {where}"
    rows = {}
    if PAGE.exists():
        lines = re.findall(r"^\| `(.*?)` \|.*$", PAGE.read_text(), re.MULTILINE)
        rows = dict(zip(lines, re.findall(r"^\| `.*$", PAGE.read_text(), re.MULTILINE), strict=True))
    rows[name] = f"| `{name}` | {found} | {losses} | {seconds:.0f} | {when} |"
    PAGE.write_text(HEAD + "".join(f"{rows[one]}\n" for one in sorted(rows)))
