"""The picture of a run: how many times as long every peer takes, and what share of the machine's peak that
is.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contest import MACHINE, OURS, PLAIN, Row


def draw(rows: list[Row], caption: str, path: Path) -> list[Path]:
    """`path` with .png and .svg. None without matplotlib (extra `bench`), or without a row to show."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    most = max((row.threads for row in rows), default=0)
    rows = [row for row in rows if row.threads == most and row.seconds()]
    rows = [row for row in rows if "headline" in row.case.groups] or rows[:20]
    if not rows:
        return []
    labels = dict.fromkeys(label for row in rows for label in row.outcomes if label not in (*PLAIN, *MACHINE))
    shown = [label for label in labels if any(row.seconds(label) for row in rows)]
    peers = [label for label in shown if label != OURS and any(row.speedup(label) for row in rows)]
    # A name's hash in the ids would make every picture a new one.
    with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none"}):
        figure, (left, right) = pyplot.subplots(
            1,
            2,
            sharey=True,
            layout="constrained",
            figsize=(12, 1.5 + 0.28 * len(rows) * max(2, len(shown)) ** 0.7),
        )
        _bars(left, rows, peers, lambda row, p: found.median if (found := row.speedup(p)) else None, 1)
        left.axvline(1, color="black", linewidth=1)
        left.set_xscale("log")
        left.set_xlabel(f"time of the peer / time of {OURS} (right of 1: {OURS} is faster)")
        _bars(right, rows, shown, lambda row, p: 100 * share if (share := row.share_of_peak(p)) else None, 0)
        right.set_xlabel(f"% of the machine's multiply-add peak, {most} threads")
        right.set_xlim(0, 100)
        left.set_yticks(range(len(rows)), [row.case.name for row in rows])
        left.invert_yaxis()
        for axes in (left, right):
            axes.legend(fontsize="small")
            axes.grid(axis="x", alpha=0.3)
        figure.supxlabel(textwrap.fill(caption, 170), fontsize="x-small")
        files = [Path(f"{path}.png"), Path(f"{path}.svg")]
        figure.savefig(files[0], dpi=110)
        figure.savefig(files[1], metadata={"Date": None})
        pyplot.close(figure)
    return files


def _bars(
    axes: Any, rows: list[Row], labels: list[str], value: Callable[[Row, str], float | None], start: float
) -> None:
    """For every row a bar of each label, from `start`."""
    colours = {
        OURS: "C3",
        "torch": "C0",
        "onnxruntime": "C1",
        "openvino": "C2",
        "jax": "C4",
        "numpy": "C7",
        "onednn": "C9",
    }
    height = 0.8 / max(1, len(labels))
    for n, label in enumerate(labels):
        found = [(k, v) for k, row in enumerate(rows) if (v := value(row, label)) is not None]
        axes.barh(
            [k + (n - (len(labels) - 1) / 2) * height for k, _ in found],
            [v - start for _, v in found],
            left=start,
            height=height,
            label=label,
            color=colours.get(label, "C5"),
        )
