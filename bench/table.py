"""Numbers as people read them, and the table that grows on the terminal."""

from __future__ import annotations

from .contest import MACHINE, OURS, PLAIN, Row
from .neighbour import Beside
from .stats import Spread
from .work import characters

NAME, PEER = 48, 20


def seconds(value: float) -> str:
    """Three digits and a unit.

    >>> seconds(0.0000123), seconds(1.5), seconds(5e-8)
    ('12.3 µs', '1.5 s', '50 ns')
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def size(value: int) -> str:
    """Bytes.

    >>> size(123_456_789)
    '123 MB'
    """
    return f"{value / 1e6:.0f} MB"


def share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def limit(value: tuple[float, str] | None) -> str:
    """The share of what binds, named if it is not the multiply-adds."""
    if value is None:
        return ""
    part, name = value
    return share(part) + ("" if name == "compute" else " bw")


def speedup(value: Spread | None) -> str:
    """The median ratio, and the quartiles."""
    return "" if value is None else f"{times(value.median)} [{times(value.low)}-{times(value.high)}]"


def times(value: float) -> str:
    """A ratio.

    >>> times(1.234), times(123.4)
    ('1.23', '123')
    """
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def rate(row: Row) -> str:
    """Characters per second of a language model, GFLOP/s of everything else."""
    found = row.seconds()
    if found is None:
        return ""
    if chars := characters(row.case):
        return f"{chars / found.median / 1e3:.0f} kchar/s"
    return f"{(row.flops() or 0) / 1e9:.3g} GF/s"


def peers(labels: list[str]) -> list[str]:
    """The contenders that have a column of ratios."""
    return [label for label in labels if label not in (OURS, *MACHINE)]


def header(labels: list[str]) -> str:
    """The first line of the terminal's table."""
    columns = "".join(f"{p.removeprefix(f'{OURS} ') if p in PLAIN else p:>{PEER}}" for p in peers(labels))
    return f"{'case':{NAME}}{OURS:>10}{'':>14}{'peak':>7}{'limit':>9}{columns}"


def line(row: Row, labels: list[str]) -> str:
    """One row: our time, rate and shares; then every peer's time divided by ours."""
    ours = row.seconds()
    text = f"{row.case.name:{NAME}}{seconds(ours.median) if ours else '-':>10}{rate(row):>14}"
    text += f"{share(row.share_of_peak()):>7}{limit(row.share_of_limit()):>9}"
    for label in peers(labels):
        outcome = row.outcomes.get(label)
        said = "" if outcome is None else outcome.status
        if outcome is not None and outcome.status == "timed":
            said = speedup(row.speedup(label)) or "timed"
        text += f"{'-' if said in ('', 'unsupported') else said:>{PEER}}"
    return f"{text}\n{troubles(row)}".rstrip("\n")


def beside(row: Beside) -> str:
    """Lines of a case that was timed alone and beside a busy process."""
    text = ""
    for label in row.outcomes:
        if found := row.found(label):
            alone, busy, slowdown = found
            text += f"{label:{NAME}}{seconds(alone.median):>10}{seconds(busy.median):>10}{speedup(slowdown):>{PEER}}\n"
    return text + troubles(row)


def troubles(row: Row) -> str:
    """Lines on who was refused or failed, and on what was disturbed."""
    lines = [f"    {label} {row.outcomes[label].status}: {row.outcomes[label].reason}\n" for label in row.refused()]
    if row.others is not None and row.others > 0.05:
        lines.append(f"    others used {share(row.others)} of the processors meanwhile\n")
    return "".join(lines)
