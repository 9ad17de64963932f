"""Hypothesis profiles, and the settings that a test may change and must put back."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from helpers import JIT
from hypothesis import HealthCheck, settings
from reliability import (  # noqa: F401 - for pytest
    effort,
    minutes,
    pytest_addoption,
    pytest_runtest_makereport,
    reliability,
)

# The first example of a test compiles, so no example has a deadline. The same examples in every run: a
# failure that somebody reports can be seen by everybody. `--hypothesis-profile explore` looks for new ones.
common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("jit", max_examples=30, derandomize=True, **common)
settings.register_profile("nojit", max_examples=6, derandomize=True, **common)
settings.register_profile("explore", max_examples=500, print_blob=True, **common)
settings.load_profile("jit" if JIT else "nojit")

# A shell that starts this in the background has it ignore Ctrl-C, and with it every process of a test. What is tested
# is a program that nobody has told so.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config):
    cpu = numba.config.CPU_NAME or "the host's CPU"
    return f"numba {numba.__version__}, " + (f"compiling for {cpu}" if JIT else "JIT disabled")


WHOLE = 1000  # tests: with fewer, nothing is compiled ahead


def pytest_collection_finish(session):
    """Compiling is most of the work, and one thread's: see ahead.py."""
    session.config.ahead = None
    if JIT and len(session.items) > WHOLE and not session.config.option.collectonly and (os.cpu_count() or 1) > 1:
        command = [sys.executable, Path(__file__).parent / "ahead.py"]
        session.config.ahead = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pytest_sessionfinish(session):
    if ahead := getattr(session.config, "ahead", None):
        ahead.kill()
        ahead.wait()


@pytest.fixture
def set_num_threads():
    """`fr.set_num_threads`, undone afterwards."""
    import fastrnn as fr

    before = fr.get_num_threads()
    yield fr.set_num_threads
    fr.set_num_threads(before)
