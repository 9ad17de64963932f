"""`pytest bench/`: timings on, and `--cases` to choose other ones than the small default."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", nargs="+", default=["pytest"], help="cases of bench/cases.py (default: pytest)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """The project's own settings switch timings off, for the tests' sake; here they are the point."""
    if "--benchmark-disable" not in config.invocation_params.args and hasattr(config.option, "benchmark_disable"):
        config.option.benchmark_disable = False


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        from .cases import APART, select

        chosen = [case for case in select(metafunc.config.getoption("--cases")) if case.kind not in APART]
        metafunc.parametrize("case", chosen, ids=lambda case: case.name)
