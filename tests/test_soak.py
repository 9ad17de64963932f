"""An hour of mixed calls (soak.py): a constant ceiling of memory, nothing compiled on the way, no cache that grows."""

import json

from helpers import run_python


def test_soak(effort, reliability, minutes):
    """Eight threads, shapes that vary all the time."""
    seconds = effort(4, 60 * minutes(60))
    found = json.loads(
        run_python(f"import json, soak\nprint(json.dumps(soak.soak({seconds})))", timeout=4 * seconds + 900)
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
    assert largest["helpers"] < max(found["threads"], 2)
    # The workers, the main thread, the helpers and, of each worker at most, the front of a pool and one that ends.
    assert largest["Python threads"] <= 9 + 16 + largest["helpers"]
    assert largest["open files"] <= 16
    # What is alive in the calls of eight threads; and afterwards no more than the models that are left.
    assert largest["streams"] <= 100
    assert largest["stores"] <= 200
    assert (last["plans"], last["stores"]) == (4, 4)
    assert last["streams"] <= 4
    assert last["Python threads"] <= 2 + last["helpers"]
    reliability(
        minutes=round(seconds / 60), minutes_stopped_by_others_besides=round(found["stopped"] / 60),
        calls=found["calls"], kernels_compiled_on_the_way=0,
        MiB_at_most_in_the_second_quarter=before >> 20, MiB_at_most_after_that=after >> 20,
        us_for_a_step_beside_in_the_first_half=round(found["microseconds"][0], 1),
        us_for_one_in_the_second=round(found["microseconds"][1], 1),
        percent_of_the_work_of_all_processors_was_other_programs=round(found["percent of the work that was others'"]),
    )  # fmt: skip
