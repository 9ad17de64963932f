"""An `Inspection` as one HTML page to look at: text coloured by hidden units, gates and gradients as inline SVG.

Nothing is loaded from anywhere and nothing is executed; light or dark as the reader's system has it.
"""

from __future__ import annotations

from html import escape

import numpy as np

from .inspection import Inspection, Unit

__all__ = ["page"]

SHADES = 8  # of each sign
EACH = 2  # units shown for one property, so that nine that mark spaces do not hide the one that counts
LINES = 4  # colours that layers have, in turn

STYLE = """
:root { color-scheme: light dark; --text: #1d1f24; --soft: #626771; --back: #fff; --box: #f5f6f8; --edge: #d5d8de;
  --plus: 255 140 60; --minus: 90 160 255; --l0: #0067a8; --l1: #c24d00; --l2: #00805c; --l3: #9b4a7c }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8ea; --soft: #a0a5af; --back: #16181c; --box: #1e2127;
  --edge: #3a3e47; --plus: 165 70 10; --minus: 35 95 190; --l0: #5cb8f0; --l1: #ff9d55; --l2: #35cda2; --l3: #e79ac6 } }
body { margin: 0 auto; padding: 1.5rem; max-width: 62rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { margin-top: 2.5rem; font-size: 1.25rem }
h3 { margin: 1.5rem 0 .3rem; font-size: 1rem } p { margin: .4rem 0 } .soft { color: var(--soft) }
pre { margin: .4rem 0; padding: .8rem 1rem; overflow-wrap: anywhere; white-space: pre-wrap; background: var(--box);
  border: 1px solid var(--edge); border-radius: 6px; font: 13px/1.45 ui-monospace, monospace }
table { border-collapse: collapse } th { font-weight: 600 }
th, td { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid var(--edge) }
td { font-variant-numeric: tabular-nums }
.row { display: flex; flex-wrap: wrap; gap: 1rem } figure { margin: 0 } figcaption { font-size: .85rem }
svg { display: block; max-width: 100%; font: 11px system-ui, sans-serif; fill: var(--soft) }
svg path { fill: none; stroke: var(--edge) } svg .line { stroke-width: 2 } svg .dash { stroke-dasharray: 5 4 }
svg circle { fill-opacity: .65 }
"""


def page(found: Inspection, title: str, about: str = "", count: int = 12) -> str:
    """The whole page: HTML, self-contained.

    title, about : what is inspected, and what else to say of it (plain text)
    count : how many units are shown on the text, at most two that follow the same property

    >>> import fastrnn as fr
    >>> lm = fr.CharLM(hidden_size=8, num_layers=1, embedding_size=4, seed=1).build("<i>\\n")
    >>> html = page(lm.inspect("<i>\\n" * 50), "A & B")
    >>> "<h1>A &amp; B</h1>" in html, "<i>" in html
    (True, False)
    """
    parts = [
        f"<h1>{_plain(title)}</h1>",
        f'<p class="soft">{_plain(about)}</p>' if about else "",
        "<h2>What the units follow</h2>",
        "<p>For every simple property of the text, the unit of each layer that follows it best. r is the correlation "
        f"of the property with the unit's value, {found.shown}, over {len(found.text):,} characters; r² is the share "
        "of the value's variance that a straight line in that one property explains.</p>",
        _table(found),
        "<h2>The most telling units, on the text</h2>",
        f"<p>In order of r², at most {EACH} for one property. The colour of a character is the unit's {found.shown} "
        'after reading it: <span class="m8">far below 0</span>, <span class="m3">below 0</span>, 0, <span class="p3">'
        'above 0</span>, <span class="p8">far above 0</span>, full at the unit\'s largest absolute value. '
        "The passage is the one in which the property varies most.</p>",
        *(_unit(found, unit) for unit in _chosen(found, count)),
        *_saturation(found),
        *_gradient(found),
        '<p class="soft">After A. Karpathy, J. Johnson and L. Fei-Fei, Visualizing and understanding recurrent '
        "networks, 2015; R. Pascanu, T. Mikolov and Y. Bengio, On the difficulty of training recurrent neural "
        "networks, 2013.</p>",
    ]
    shades = "".join(
        f".{sign}{k} {{ background: rgb(var(--{name}) / {100 * k / SHADES:g}%) }}\n"
        for sign, name in (("p", "plus"), ("m", "minus"))
        for k in range(1, SHADES + 1)
    )
    layers = "".join(
        f"svg path.l{k} {{ stroke: var(--l{k}) }} circle.l{k} {{ fill: var(--l{k}) }} "
        f"span.l{k} {{ color: var(--l{k}) }}\n"
        for k in range(LINES)
    )
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_plain(title)}</title>\n<style>{STYLE}{shades}{layers}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(part for part in parts if part) + "\n</body>\n</html>\n"


def _plain(text: str) -> str:
    """`text` as HTML shows it; control characters, which it may not hold, as the pictures that Unicode has of them."""
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
    return escape(text.translate(pictures), quote=False)  # never inside a tag


def _chosen(found: Inspection, count: int) -> list[Unit]:
    shown: list[Unit] = []
    for unit in found.units():
        if len(shown) < count and unit.r and sum(one.follows == unit.follows for one in shown) < EACH:
            shown.append(unit)
    return shown


def _table(found: Inspection) -> str:
    layers = range(found.values.shape[1])
    rows = ["<tr><th>property</th>" + "".join(f"<th>layer {layer}</th>" for layer in layers) + "</tr>"]
    for name, r in zip(found.properties, np.moveaxis(found.correlation, -1, 0)):
        cells = []
        for layer in layers:
            unit = int(np.abs(r[layer]).argmax())
            best = float(r[layer, unit])
            text = f"unit {unit}, r = {best:+.2f}" if best else "none"
            cells.append(f"<td{_shade(best)}>{text}</td>")
        rows.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    return "<table>\n" + "\n".join(rows) + "\n</table>"


def _shade(value: float) -> str:
    """The class attribute of a value from -1 to 1."""
    k = round(value * SHADES)
    return f' class="{"p" if k > 0 else "m"}{abs(k)}"' if k else ""


def _unit(found: Inspection, unit: Unit) -> str:
    value = found.values[:, unit.layer, unit.number].astype(np.float64)
    property = found.properties[unit.follows]
    if len(np.unique(property)) == 2:
        high, low = value[property > property.min()].mean(), value[property == property.min()].mean()
        mean = f"Mean {high:+.2f} where it holds, {low:+.2f} elsewhere."
    else:
        mean = _means(value, property, unit)
    where = found.passage(unit.follows)
    shades = np.rint(value[where] / np.abs(value).max() * SHADES).astype(int)
    text = found.text[where]
    ends = [*np.flatnonzero(np.diff(shades)) + 1, len(text)]
    parts, start = [], 0
    for end in ends:
        run = _plain(text[start:end]).replace("\n", "↵\n")
        shade = _shade(shades[start] / SHADES)
        parts.append(f"<span{shade}>{run}</span>" if shade else run)
        start = end
    return (
        f"<h3>Layer {unit.layer}, unit {unit.number}: {unit.follows}, r = {unit.r:+.2f}</h3>\n"
        f'<p class="soft">{found.shown} from {value.min():+.2f} to {value.max():+.2f}. {mean}</p>\n'
        f"<pre>{''.join(parts)}</pre>"
    )


def _means(value: np.ndarray, property: np.ndarray, unit: Unit) -> str:
    """The unit's mean at every value of a count, in words: at 0, in the middle, and where 99 % of the text is below."""
    points = sorted({int(np.quantile(property, q)) for q in (0, 0.25, 0.5, 0.75, 0.99)})
    at = [(p, value[property == p]) for p in points]
    return "Mean " + ", ".join(f"{v.mean():+.2f} at {p}" for p, v in at if len(v)) + "."


# -------------------------------------------------------------------- drawings


def _frame(size: tuple[int, int], x_label: str, y_label: str, ticks: tuple[list, list], marks: list[str]) -> str:
    """An SVG with axes. ticks : for x and y, (place from 0 to 1, text); marks : what is drawn inside."""
    w, h = size
    size_of = f'viewBox="-52 -8 {w + 64} {h + 46}" width="{w + 64}" height="{h + 46}"'
    out = [f'<svg {size_of} role="img" aria-label="{y_label} against {x_label}">']
    out.append(f'<path d="M0 0V{h}H{w}"/>')
    for place, text in ticks[0]:
        out.append(f'<text x="{place * w:.1f}" y="{h + 15}" text-anchor="middle">{text}</text>')
    for place, text in ticks[1]:
        y = h - place * h
        out.append(f'<path d="M0 {y:.1f}H{w}" stroke-opacity=".5"/>')
        out.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    out.append(f'<text x="{w / 2:.0f}" y="{h + 32}" text-anchor="middle">{x_label}</text>')
    out.append(f'<text transform="translate(-40 {h / 2:.0f}) rotate(-90)" text-anchor="middle">{y_label}</text>')
    return "\n".join([*out, *marks, "</svg>"])


def _legend(layers: int) -> str:
    return " ".join(f'<span class="l{k % LINES}">● layer {k}</span>' for k in range(layers))


def _saturation(found: Inspection) -> list[str]:
    """A drawing for each gate: a point for each unit, and the means of layers in words."""
    if not found.saturation:
        return []
    names = {"i": "input gate", "f": "forget gate", "o": "output gate", "r": "reset gate", "z": "update gate"}
    quarters = [(k / 4, f"{k / 4:g}") for k in range(5)]
    figures = []
    for gate, shares in found.saturation.items():
        w = h = 210
        marks = [f'<path d="M0 0L{w} {h}"/>']
        for layer, units in enumerate(shares):
            marks += [
                f'<circle class="l{layer % LINES}" cx="{right * w:.1f}" cy="{h - left * h:.1f}" r="3"/>'
                for left, right in units
            ]
        frame = _frame((w, h), "share of time above 0.9", "share of time below 0.1", (quarters, quarters), marks)
        means = "<br>".join(
            f"layer {layer}: below {left:.0%}, above {right:.0%}"
            for layer, (left, right) in enumerate(shares.mean(axis=1))
        )
        figures.append(f"<figure>\n<figcaption><b>{gate}</b>, {names[gate]}</figcaption>\n{frame}\n"
                       f"<figcaption>{means}</figcaption>\n</figure>")  # fmt: skip
    return [
        "<h2>Gate saturation</h2>",
        "<p>A point is one unit's gate: for what share of the text it is open (above 0.9, right) or shut (below 0.1, "
        "up). A forget gate far to the right remembers; units at the lower left are hardly ever saturated.</p>",
        f"<p>{_legend(found.values.shape[1])}</p>",
        f'<div class="row">{"".join(figures)}</div>',
    ]


def _gradient(found: Inspection) -> list[str]:
    """Norms against steps back, on a logarithmic scale."""
    norms = np.concatenate(list(found.gradient.values()))
    positive = norms[(norms > 0) & np.isfinite(norms)]
    if not len(positive):
        return []
    low, high = int(np.floor(np.log10(positive.min()))), int(np.ceil(np.log10(positive.max())))
    high = max(high, low + 1)
    w, h, steps = 560, 240, norms.shape[1]
    every = -(-(high - low) // 8)
    y_ticks = [((e - low) / (high - low), f"1e{e}") for e in range(low, high + 1, every)]
    last = max(steps - 1, 1)
    x_ticks = [((k - 1) / last, str(k)) for k in sorted({1, *range(-(-steps // 5), steps + 1, -(-steps // 5))})]
    marks = []
    for name, rows in found.gradient.items():
        for layer, row in enumerate(rows):
            points = [
                f"{k / last * w:.1f} {h - (np.log10(norm) - low) / (high - low) * h:.1f}"
                for k, norm in enumerate(row)
                if norm > 0 and np.isfinite(norm)
            ]
            if points:
                dash = " dash" if name == "c" else ""
                marks.append(f'<path class="line l{layer % LINES}{dash}" d="M{"L".join(points)}"/>')
    halves = [
        f"d{name} of layer {layer}: {f'after {k} steps' if k else f'not within {steps} steps'}"
        for name, lives in found.half_lives().items()
        for layer, k in enumerate(lives)
    ]
    cells = " and, dashed, that by c[t-k]" if "c" in found.gradient else ""
    return [
        "<h2>The gradient on its way back</h2>",
        f"<p>The norm of the gradient of one prediction's loss at step t by the state h[t-k]{cells}: the median over "
        "places in the text. A straight fall is an exponential one: the gradient vanishes.</p>",
        f"<p>{_legend(found.values.shape[1])}</p>",
        _frame((w, h), "k, steps back", "norm", (x_ticks, y_ticks), marks),
        f'<p class="soft">Below half of its norm one step back: {"; ".join(halves)}.</p>',
    ]
