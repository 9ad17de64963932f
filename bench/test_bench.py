"""fastrnn alone under pytest-benchmark, on the cases of the benchmark: `pytest bench/ --benchmark-autosave`,
and later `--benchmark-compare --benchmark-compare-fail=median:10%` catches what has become slower.
"""

from __future__ import annotations

from typing import Any

from . import verify, work
from .cases import Case
from .peers import with_fastrnn


def test_case(case: Case, benchmark: Any) -> None:
    """The results are verified, then the call is timed."""
    job = with_fastrnn.make(case)
    job.use(job.ways[0])
    found = verify.errors(case, job.results(), verify.expected(case))
    assert verify.wrong(case, found) == ""
    benchmark.group = case.kind
    benchmark(job.call)
    benchmark.extra_info |= {"flops": work.flops(case), "characters": work.characters(case)}
