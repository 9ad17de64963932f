"""An hour of mixed calls (soak.py): a constant ceiling of memory, nothing compiled on the way, no cache that grows."""

import json
import os

from helpers import JIT, run_python


def test_soak(effort, reliability, minutes):
    """Eight threads, shapes that vary all the time."""
    seconds = effort(10 if JIT else 5, 60 * minutes(60))
    found = json.loads(
        run_python(f"import json, soak\nprint(json.dumps(soak.soak({seconds})))", timeout=2 * seconds + 900)
    )
    assert found["errors"] == []
    assert found["hanging"] == 0
    assert found["calls"] > 8
    assert found["compiled"] == {}
    before, after = found["memory"]
    # Of the ceiling itself 256 MiB may be blocks that are kept for the next large array.
    assert after < before + (64 << 20), found
    largest, last = found["largest"], found["last"]
    assert largest["layouts"] <= 64
    assert largest["free blocks"] <= (1 << 28) + (1 << 21)
    assert largest["made"] <= 24
    assert largest["plans"] <= 8
    assert largest["helpers"] <= max(16, os.cpu_count() or 1)
    # What is alive in the calls of eight threads; and afterwards no more than the models that are left.
    assert largest["streams"] <= 100
    assert largest["stores"] <= 200
    assert (last["plans"], last["stores"]) == (4, 4)
    assert last["streams"] <= 4
    reliability(
        minutes=round(seconds / 60), calls=found["calls"], kernels_compiled_on_the_way=0,
        MiB_at_most_in_the_second_quarter=before >> 20, MiB_at_most_after_that=after >> 20,
        us_for_a_step_beside_in_the_first_half=round(found["microseconds"][0]),
        us_for_one_in_the_second=round(found["microseconds"][1]),
    )  # fmt: skip
