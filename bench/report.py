"""A run's record as markdown: all of it in bench/RESULTS.md, the headline rows in README.md between two
markers, and pictures. Nobody edits these numbers by hand: `python -m bench.report [RECORD ...]`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from . import picture, startup, table
from .cases import CELLS
from .contest import OURS, PLAIN, Row
from .neighbour import Beside
from .peers import YARDSTICKS
from .stats import geometric_mean

HERE = Path(__file__).parent
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
# Sections of RESULTS.md, by a row's kind.
SECTIONS = {
    "infer": "Inference",
    "train": "Training pass: forward and backward, packing of the weights included",
    "step": "One step from Python, state carried",
    "charlm": "Character language model, whole training step",
    "minchar": "min-char-rnn, whole training step",
    "generate": "Text generation, character by character",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files; says which."""
    parser = argparse.ArgumentParser("python -m bench.report", description="tables and pictures from a run's record")
    what = "later ones replace or add rows; default: bench/latest.json"
    parser.add_argument("record", nargs="*", type=Path, default=[HERE / "latest.json"], help=what)
    parser.add_argument("--learn", type=Path, help="a record of python -m bench.learn, to be shown too")
    parser.add_argument("--results", type=Path, default=HERE / "RESULTS.md", help="default: %(default)s")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        record = merged([json.loads(path.read_text()) for path in args.record])
        learned = json.loads(args.learn.read_text()) if args.learn else None
    except (OSError, ValueError) as error:
        print(f"bench.report: {error}", file=sys.stderr)
        return 2
    rows = [Row.from_json(row) for row in record["rows"]]
    pictures = picture.draw(rows, caption(record), args.results.with_suffix(""))
    if not pictures:
        print("no picture: matplotlib is not installed (pip install 'fastrnn[bench]')")
    args.results.write_text(results(record, rows, [p.name for p in pictures], learned))
    written = [args.results, *pictures]
    if args.readme.exists():
        text = args.readme.read_text()
        if BEGIN in text and END in text:
            args.readme.write_text(between_markers(text, headline(record, rows)))
            written.append(args.readme)
        else:
            print(f"{args.readme} has no {BEGIN} ... {END}: left as it is")
    print("\n".join(map(str, written)))
    return 0


# ---------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------


def merged(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The first record, with the rows of the others in it, or instead of those of the same name and threads. What is no
    row of a case is taken whole from the last record that has it.
    """
    record = records[0]
    for kind in ("rows", "neighbour"):
        found = {(row["name"], row["threads"]): row for one in records for row in one.get(kind, [])}
        record[kind] = list(found.values())
    for kind in ("startup", "installed", "memory"):
        record[kind] = next((one[kind] for one in reversed(records) if one.get(kind)), record.get(kind))
    limits = {one["threads"]: one for each in reversed(records) for one in each["limits"]}
    record["limits"] = [limits[threads] for threads in sorted(limits, reverse=True)]
    record["again"] = len(records) - 1
    return record


def caption(record: dict[str, Any]) -> str:
    """What was measured where, when and with what: one sentence each."""
    machine, versions = record["machine"], {}
    for found in record["versions"].values():
        versions.update(found)
    threads = ", ".join(str(limits["threads"]) for limits in record["limits"])
    said = f"{machine['cpu']}, {machine['processors']} processors, {machine['system']}; threads: {threads}. "
    said += f"Python {machine['python']}, " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ". "
    if record["missing"]:
        said += f"Not installed, so not compared: {', '.join(record['missing'])}. "
    for limits in record["limits"]:
        if limits["flops"] and limits["bytes"]:
            said += f"{limits['threads']} thread{'s' * (limits['threads'] > 1)}: "
            said += f"{limits['flops'] / 1e9:.0f} GFLOP/s multiply-add peak, "
            said += f"{limits['bytes'] / 1e9:.1f} GB/s from memory. "
    if record.get("again"):
        said += f"With rows measured again in {record['again']} later run{'s' * (record['again'] > 1)}. "
    return said + record["date"][:10] + "."


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table; the first column to the left, the others to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)) + "\n"


def peers_of(rows: list[Row]) -> list[str]:
    """Who was timed in at least one of the rows beside us."""
    labels = dict.fromkeys(label for row in rows for label in row.outcomes)
    return [p for p in table.peers(list(labels)) if any(row.speedup(p) for row in rows)]


def best(row: Row) -> float | None:
    """The fastest peer's median ratio: what a user gains over the best that there is otherwise."""
    ratios = (row.speedup(p) for p in table.peers(list(row.outcomes)) if p not in (*PLAIN, *YARDSTICKS))
    found = [r.median for r in ratios if r is not None]
    return min(found) if found else None


def rows_table(rows: list[Row], spreads: bool = True, plain: bool = True) -> str:
    """Our time, rate and shares; every peer's time divided by ours, and with `plain` our own without something."""
    peers = [peer for peer in peers_of(rows) if plain or peer not in PLAIN]
    header = ["case", "threads", OURS, "rate", "of peak", "of limit", *(f"{p} / {OURS}" for p in peers)]
    exchanged = spreads and any(row.exchange() for row in rows)
    if exchanged:
        header.append("exchange")
    lines = []
    for row in rows:
        ours = row.seconds()
        cells = [row.case.name, str(row.threads), table.seconds(ours.median) if ours else _status(row, OURS)]
        cells += [table.rate(row), table.share(row.share_of_peak()), table.limit(row.share_of_limit())]
        for p in peers:
            ratio = row.speedup(p)
            if ratio is None:
                cells.append(_status(row, p))
            else:
                cells.append(table.speedup(ratio) if spreads else table.times(ratio.median))
        if exchanged:
            cells.append(table.seconds(took) if (took := row.exchange()) else "")
        lines.append(cells)
    return markdown(header, lines)


def by_threads(rows: list[Row]) -> dict[int, list[Row]]:
    """The rows of each number of threads, the most first."""
    return {n: [row for row in rows if row.threads == n] for n in sorted({row.threads for row in rows}, reverse=True)}


def yardstick_table(yardstick: str, rows: list[Row]) -> str:
    """Geometric means of a yardstick's ratios, by threads and cell: inference, training, both."""
    lines = []
    for threads, those in by_threads([row for row in rows if row.speedup(yardstick) is not None]).items():
        for cell in CELLS:
            own = [row for row in those if row.case.cell == cell]
            cells = []
            for kinds in (("infer", "step"), ("train",), ("infer", "step", "train")):
                ratios = [found.median for row in own if row.case.kind in kinds and (found := row.speedup(yardstick))]
                cells.append(f"{table.times(geometric_mean(ratios))} ({len(ratios)} rows)" if ratios else "")
            if own:
                lines.append([cell, str(threads), *cells])
    return markdown(["cell", "threads", "inference", "training", "both"], lines) if lines else ""


def neighbours_table(rows: list[Beside]) -> str:
    """A line for every case and library, alone and beside a busy process."""
    lines = []
    for row in rows:
        for label, outcome in row.outcomes.items():
            if found := row.found(label):
                alone, beside, slowdown = found
                cells = [table.seconds(alone.median), table.seconds(beside.median), table.speedup(slowdown)]
                lines.append([row.case.name, label, *cells])
            elif outcome.status != "unsupported":
                lines.append([row.case.name, label, "", "", outcome.status])
    return markdown(["case", "library", "alone", "beside", "slow-down"], lines)


def _status(row: Row, label: str) -> str:
    outcome = row.outcomes.get(label)
    return "" if outcome is None or outcome.status in ("unsupported", "timed") else outcome.status


def means(rows: list[Row]) -> str:
    """For each number of threads the geometric mean of the best peer's ratios, and the lowest of them."""
    said = ""
    for threads, those in by_threads(rows).items():
        ratios = {row.case.name: ratio for row in those if (ratio := best(row)) is not None}
        if ratios:
            name, least = min(ratios.items(), key=lambda item: item[1])
            mean = table.times(geometric_mean(ratios.values()))
            said += (
                f"Threads: {threads}. The fastest peer of each row takes {mean} times as long as {OURS} "
                f"(geometric mean of {len(ratios)} rows); least: {table.times(least)}, {name}.\n"
            )
    return said


def notes(rows: Sequence[Row]) -> str:
    """Who was refused or failed, and what was disturbed: it is part of the result."""
    said = []
    for row in rows:
        said += [f"- {row.case.name}, threads {row.threads}: {label} {row.outcomes[label].status}: "
                 f"{row.outcomes[label].reason}" for label in row.refused()]  # fmt: skip
        if row.others is not None and row.others > 0.05:
            said.append(
                f"- {row.case.name}, threads {row.threads}: other processes used {table.share(row.others)} "
                "of the processors while this was timed"
            )
    return "\n".join(said) + "\n" if said else ""


def results(record: dict[str, Any], rows: list[Row], pictures: list[str], learned: dict[str, Any] | None) -> str:
    """RESULTS.md."""
    parts = ["# Results\n", "Made by `python -m bench.report`; how to read it: [README.md](README.md).\n"]
    parts += [caption(record) + "\n"]
    what = "every library under the machine's roofline", "speed-ups and shares of the machine's peak"
    parts += [f"![{what['roofline' not in n]}]({n})\n" for n in pictures if n.endswith("svg")]
    for kind, title in SECTIONS.items():
        chosen = [row for row in rows if row.case.kind == kind]
        if chosen:
            parts += [f"## {title}\n", rows_table(chosen), means(chosen)]
        if chosen and kind == "step" and (sequences := [row for row in rows if row.case.kind == "infer"]):
            parts += ["Sequences for inference and steps together:\n", means([*sequences, *chosen])]
    for yardstick in YARDSTICKS:
        if said := yardstick_table(yardstick, rows):
            parts += [f"## Beside {yardstick}\n", f"Its time divided by {OURS}'s, geometric means.\n", said]
    if record["startup"]:
        measures = [startup.Measure(**one) for one in record["startup"]]
        parts += ["## Start\n", "Seconds from a process's start to the result.\n"]
        parts += [markdown(["", "seconds"], [[m.name, table.speedup(m.spread)] for m in measures])]
        if (beyond := startup.import_cost(measures)) is not None:
            parts += [f"`import fastrnn` takes {beyond:+.3f} s beyond `import numba`.\n"]
    if record.get("installed"):
        parts += ["## Installed\n", "On the disk, with everything that is needed at run time.\n"]
        parts += [markdown(["library", "size"], [[n, table.size(size)] for n, size in record["installed"].items()])]
    if record.get("memory"):
        parts += ["## Memory of a training pass\n", "The most that the process ever held, and what of it is beyond the"]
        parts += ["layer and its inputs, once they were made.\n"]
        lines = [[m["case"], m["library"], table.size(m["peak"]), table.size(m["beyond"])] for m in record["memory"]]
        parts += [markdown(["case", "library", "whole process", "beyond"], lines)]
    besides = [Beside.from_json(row) for row in record.get("neighbour", [])]
    if besides:
        parts += ["## Beside a busy process\n", "Alone, and while another process keeps one processor busy; threads: "]
        parts[-1] += ", ".join(map(str, dict.fromkeys(row.threads for row in besides))) + ".\n"
        parts += [neighbours_table(besides)]
    if learned is not None:
        parts += ["## Learning\n", learning(learned)]
    if said := notes([*rows, *besides]):
        parts += ["## Notes\n", said]
    return "\n".join(part for part in parts if part)


def learning(learned: dict[str, Any]) -> str:
    """The record of bench.learn: a line for each epoch."""
    runs: dict[str, list[dict[str, float]]] = learned["epochs"]
    header = ["epoch", *(f"{name}: validation loss" for name in runs), *(f"{name}: seconds" for name in runs)]
    lines = [
        [str(n + 1), *(f"{e['validation']:.4f}" for e in epochs), *(f"{e['seconds']:.1f}" for e in epochs)]
        for n, epochs in enumerate(zip(*runs.values()))
    ]
    totals = ", ".join(f"{name} {sum(e['seconds'] for e in epochs):.1f} s" for name, epochs in runs.items())
    return f"{learned['what']} {totals} in all.\n\n{markdown(header, lines)}"


def headline(record: dict[str, Any], rows: list[Row]) -> str:
    """What README.md shows: the headline rows on the most threads that were measured."""
    most = max((row.threads for row in rows), default=0)
    chosen = [row for row in rows if "headline" in row.case.groups and row.threads == most] or rows
    return f"{rows_table(chosen, spreads=False, plain=False)}\n{caption(record)}\n"


def between_markers(text: str, new: str) -> str:
    """`text` with what stands between the markers replaced.

    >>> between_markers(f"a\\n{BEGIN}\\nold\\n{END}\\nb\\n", "new\\n") == f"a\\n{BEGIN}\\nnew\\n{END}\\nb\\n"
    True
    """
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    return pattern.sub(lambda _: f"{BEGIN}\n{new}{END}", text, count=1)


if __name__ == "__main__":
    sys.exit(main())
