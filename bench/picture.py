"""The pictures of a run: how many times as long every peer takes, what share of the machine's peak that is, and how
near to the roof.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .contest import MACHINE, OURS, PLAIN, Row

COLOURS = {
    OURS: "C3", "torch": "C0", "onnxruntime": "C1", "openvino": "C2", "jax": "C4", "numpy": "C7", "onednn": "C9",
}  # fmt: skip


def draw(rows: list[Row], caption: str, path: Path) -> list[Path]:
    """`path` and `path`-roofline, with .png and .svg. None without matplotlib (extra `bench`), or without a row to
    show.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")

    most = max((row.threads for row in rows), default=0)
    rows = [row for row in rows if row.threads == most and row.seconds()]
    if not rows:
        return []
    headline = [row for row in rows if "headline" in row.case.groups] or rows[:20]
    # A name's hash in the ids would make every picture a new one.
    with matplotlib.rc_context({"svg.hashsalt": "bench", "svg.fonttype": "none"}):
        files = _save(_compared(headline, most), caption, path)
        files += _save(_roofline(rows, most), caption, path.with_name(f"{path.name}-roofline"))
    return files


def _save(figure: Any, caption: str, path: Path) -> list[Path]:
    from matplotlib import pyplot

    figure.supxlabel(textwrap.fill(caption, round(14 * figure.get_figwidth())), fontsize="x-small")
    files = [Path(f"{path}.png"), Path(f"{path}.svg")]
    figure.savefig(files[0], dpi=110)
    figure.savefig(files[1], metadata={"Date": None})
    pyplot.close(figure)
    return files


def _shown(rows: list[Row]) -> list[str]:
    """Who was timed in at least one of the rows."""
    labels = dict.fromkeys(label for row in rows for label in row.outcomes if label not in (*PLAIN, *MACHINE))
    return [label for label in labels if any(row.seconds(label) for row in rows)]


def _compared(rows: list[Row], threads: int) -> Any:
    """Bars: the peers' times in ours, and everybody's share of the peak."""
    from matplotlib import pyplot

    shown = _shown(rows)
    peers = [label for label in shown if label != OURS and any(row.speedup(label) for row in rows)]
    size = 12, 1.5 + 0.22 * len(rows) * max(2, len(shown)) ** 0.7
    figure, (left, right) = pyplot.subplots(1, 2, sharey=True, layout="constrained", figsize=size)
    _bars(left, rows, peers, lambda row, p: found.median if (found := row.speedup(p)) else None, 1)
    left.axvline(1, color="black", linewidth=1)
    left.set_xscale("log")
    left.set_xlabel(f"time of the peer / time of {OURS} (right of 1: {OURS} is faster)")
    _bars(right, rows, shown, lambda row, p: 100 * share if (share := row.share_of_peak(p)) else None, 0)
    right.set_xlabel(f"% of the machine's multiply-add peak, {threads} threads")
    right.set_xlim(0, 100)
    left.set_yticks(range(len(rows)), [row.case.name for row in rows])
    left.set_ylim(len(rows) - 0.5, -0.5)
    # Above, where no bar is; the right half has everybody.
    figure.legend(*right.get_legend_handles_labels(), loc="outside upper center", ncols=len(shown), fontsize="small")
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    return figure


def _roofline(rows: list[Row], threads: int) -> Any:
    """A point for each row and library under the one roof that both limits make. The slope is the bandwidth of the
    cache level where a row's weights fit, so that work per byte is told in multiples of what each level needs.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(layout="constrained", figsize=(9, 6))
    roof = [0.01, 1, 1000]
    axes.plot(roof, [100 * min(1, x) for x in roof], color="black", linewidth=1.5)
    for label in reversed(_shown(rows)):  # ours on top
        found = [(x, 100 * y) for row in rows if (x := row.intensity()) and (y := row.share_of_peak(label))]
        style = {"s": 45, "zorder": 3} if label == OURS else {"s": 14, "alpha": 0.6}
        if found:
            axes.scatter(*zip(*found), label=label, color=COLOURS.get(label, "C5"), **style)
    axes.set(xscale="log", yscale="log", xlim=(0.01, 1000), ylim=(0.1, 150))
    axes.set_xlabel("multiply-adds per byte of weights that is read (1: both would take equally long)")
    axes.set_ylabel(f"% of the machine's multiply-add peak, {threads} threads")
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def _bars(
    axes: Any, rows: list[Row], labels: list[str], value: Callable[[Row, str], float | None], start: float
) -> None:
    """For every row a bar of each label, from `start`."""
    height = 0.8 / max(1, len(labels))
    for n, label in enumerate(labels):
        found = [(k, v) for k, row in enumerate(rows) if (v := value(row, label)) is not None]
        axes.barh(
            [k + (n - (len(labels) - 1) / 2) * height for k, _ in found],
            [v - start for _, v in found],
            left=start,
            height=height,
            label=label,
            color=COLOURS.get(label, "C5"),
        )
