"""The command: `python -m bench`. It chooses cases and threads, runs them, prints a table and writes a JSON
file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import installed, memory, neighbour, startup, table
from .cases import APART, Case, groups, select
from .contest import Contest, Row
from .machine.about import describe
from .peers import LIBRARIES

FULL, QUICK = 6.0, 4.0  # seconds for the rounds of one case
# Beside the source; an installed package is no place for it.
RECORD = Path(__file__).parent / "latest.json" if __package__ == "bench" else Path("fastrnn-bench.json")


def main(argv: Sequence[str] | None = None, name: str = "python -m bench") -> int:
    """Runs the benchmark, which its user called `name`. 0: all results were right; 1: some library's were wrong, or it
    failed; 2: usage.
    """
    args = _parser(name).parse_args(argv)
    try:
        cases = select(args.only or (["quick"] if args.quick else []))
    except ValueError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{case.name:{table.NAME}} {' '.join(case.groups)}" for case in cases))
        return 0
    # Without them a pipe or a file shows nothing until the end.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    record: dict[str, Any] = {
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe(),
        "versions": {},
        "missing": {},
        "limits": [],
        "rows": [],
        "startup": [],
        "installed": {},
        "memory": [],
        "neighbour": [],
    }
    seconds = args.seconds or (QUICK if args.quick else FULL)
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for threads in _threads(args):
            contest = Contest(args.libraries, threads, seconds, Path(folder), args.plant)
            try:
                wrong |= _contest(contest, cases, record, args)
                if threads == max(_threads(args)):
                    wrong |= _neighbours(contest, [case for case in cases if case.kind == "neighbour"], record, args)
            except KeyboardInterrupt:
                print(f"{name}: interrupted; what was measured so far is kept", file=sys.stderr)
                return 130
            finally:
                contest.close()
                _write(args.json, record)
        try:
            _startups([case for case in cases if case.kind == "startup"], record, args)
            _memories([case for case in cases if case.kind == "memory"], record, args)
        except RuntimeError as error:  # a process that gave a wrong result, or none
            print(f"refused: {error}")
            wrong = True
        finally:
            _write(args.json, record)
    print(f"\n{args.json}: python -m {__package__}.report {args.json} makes tables and a picture of it")
    return int(wrong)


def _contest(contest: Contest, cases: list[Case], record: dict[str, Any], args: argparse.Namespace) -> bool:
    """All cases on one number of threads. Whether anybody was refused or failed."""
    labels = contest.contenders(cases)
    record["versions"] |= contest.versions
    record["missing"] |= contest.missing
    limits = {"threads": contest.threads, **contest.limits()}
    record["limits"].append(limits)
    _introduce(record, contest, limits)
    print(table.header(labels))
    wrong = False
    for case in cases:
        if case.kind in APART:
            continue
        row: Row = contest.run(case)
        print(table.line(row, labels))
        record["rows"].append(row.as_json())
        _write(args.json, record)
        wrong |= bool(row.refused())
    return wrong


def _neighbours(contest: Contest, cases: list[Case], record: dict[str, Any], args: argparse.Namespace) -> bool:
    """Cases beside a busy process. Whether anybody was refused or failed."""
    wrong = False
    for case in cases:
        row = neighbour.measure(contest, case)
        print(f"\n{case.name}: time of a call alone, beside a process that keeps one processor busy, and")
        print("the second divided by the first, median [quartiles] of the rounds\n")
        print(table.beside(row), end="")
        record["neighbour"].append(row.as_json())
        _write(args.json, record)
        wrong |= bool(row.refused())
    return wrong


def _introduce(record: dict[str, Any], contest: Contest, limits: dict[str, Any]) -> None:
    """Who and what takes part."""
    if len(record["limits"]) == 1:
        print("{cpu}, {processors} processors, {system}, Python {python}".format(**record["machine"]))
        for name, versions in contest.versions.items():
            print(f"{name}: {', '.join(f'{k} {v}' for k, v in versions.items())}")
        for name, reason in contest.missing.items():
            print(f"{name}: missing, so not compared ({reason})")
    print(f"\n{contest.threads} thread{'s' * (contest.threads > 1)}:", end=" ")
    if limits["flops"] and limits["bytes"]:
        print(f"{limits['flops'] / 1e9:.0f} GFLOP/s multiply-add peak,", end=" ")
        print(f"{limits['bytes'] / 1e9:.1f} GB/s from memory;")
    print("columns of peers: their time / ours, median [quartiles] of the rounds\n")


def _startups(cases: list[Case], record: dict[str, Any], args: argparse.Namespace) -> None:
    """Starts, after everything else: nothing of theirs is alive by then."""
    present = [name for name in args.libraries if name not in record["missing"]]
    for case in cases:
        rounds, cold = (2, 1) if args.quick else (5, 3)
        print(f"\n{case.name}: seconds from a process's start to the result, median [quartiles]\n")
        measures = startup.measure(case, present, rounds, cold)
        for one in measures:
            print(f"{one.name:{table.NAME}}{table.speedup(one.spread):>24}")
        record["startup"] += [asdict(one) for one in measures]
        beyond = startup.import_cost(measures)
        if beyond is not None:
            print(f"{'import fastrnn beyond import numba':{table.NAME}}{beyond:>10.3f}")
        record["installed"] = installed.sizes(present)
        print("\nbytes on the disk, with everything that is needed at run time\n")
        for name, size in record["installed"].items():
            print(f"{name:{table.NAME}}{table.size(size):>10}")


def _memories(cases: list[Case], record: dict[str, Any], args: argparse.Namespace) -> None:
    """Memory, likewise apart."""
    present = [name for name in args.libraries if name not in record["missing"]]
    for case in cases:
        print(f"\n{case.name}: bytes that the process held at the most, and beyond the layer and its inputs\n")
        for one in memory.measure(case, present, _threads(args)[-1]):
            print(f"{one.library:{table.NAME}}{table.size(one.peak):>12}{table.size(one.beyond):>12}")
            record["memory"].append(asdict(one))


def _threads(args: argparse.Namespace) -> list[int]:
    """The numbers of threads, each once. All: what fastrnn takes by itself, the affinity mask and quota
    observed.
    """
    from fastrnn import get_num_threads

    asked = args.threads or (["all"] if args.quick else ["1", "all"])
    return list(dict.fromkeys(get_num_threads() if n == "all" else int(n) for n in asked))


def _write(path: Path, record: dict[str, Any]) -> None:
    """Aside, and renamed: a kill at any moment leaves the last complete record."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(record, allow_nan=False) + "\n")
    os.replace(aside, path)


def _number(text: str) -> str:
    if text != "all" and not (text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of threads nor 'all'")
    return text


def _library(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in LIBRARIES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(LIBRARIES)}")
    return names


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(name, description="fastrnn beside its peers: verified, then timed")
    parser.add_argument("--only", nargs="+", metavar="CASE", help=f"names, beginnings or groups: {', '.join(groups())}")
    parser.add_argument("--quick", action="store_true", help="the most telling cases on all threads, in two minutes")
    parser.add_argument("--list", action="store_true", help="print the chosen cases and their groups")
    parser.add_argument("--threads", nargs="+", type=_number, metavar="N", help="numbers, or all (default: 1 all)")
    parser.add_argument(
        "--libraries",
        type=_library,
        default=list(LIBRARIES),
        metavar="A,B",
        help=f"of {', '.join(LIBRARIES)}",
    )
    parser.add_argument("--seconds", type=float, help=f"for the rounds of one case (default: {FULL:g})")
    parser.add_argument("--json", type=Path, default=RECORD, metavar="FILE", help="the record (default: %(default)s)")
    parser.add_argument(
        "--plant",
        default="",
        choices=LIBRARIES,
        metavar="LIBRARY",
        help="give it wrong weights: it must be refused",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
