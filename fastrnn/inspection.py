"""What the hidden units of a character model do: which property of the text each of them follows, how often its gates
are saturated, and how fast the gradient vanishes on its way back in time.

After Karpathy, Johnson and Fei-Fei 2015, "Visualizing and understanding recurrent networks", who found units that count
the characters of a line and units that light up inside quotes. Letters: `N` characters of the text, `M` properties, `K`
steps back; `L` and `H` as everywhere.
"""

from __future__ import annotations

import copy
import re
from typing import Any, NamedTuple

import numpy as np

from .checks import check_size
from .layers.dropout import Dropout
from .losses import cross_entropy
from .text import Vocabulary

__all__ = ["Inspection", "Unit", "inspect_text", "text_properties"]

GATES = "iforz"  # those that are sigmoids, and so can be open or shut
LEFT, RIGHT = 0.1, 0.9  # the paper's bounds of saturation
STILL = 0.01  # a unit whose standard deviation is smaller follows nothing
CHUNK = 1000  # steps of a forward
WINDOWS = 64  # places in the text that the gradient goes back from


class Unit(NamedTuple):
    """A hidden unit, and the property of the text that its value follows best."""

    layer: int  # from 0, as in the parameters' names
    number: int  # of 0 ... H-1
    follows: str
    r: float  # correlation of the two, -1 to 1; 0 for a unit that does not move

    def __str__(self) -> str:
        return f"layer {self.layer}, unit {self.number}: {self.follows}, r = {self.r:+.2f}"


class Inspection(NamedTuple):
    """What `inspect_text` has found."""

    text: str  # N characters
    shown: str  # what a unit's value is: "tanh(c)", or "h" for a cell without c
    values: np.ndarray  # (N, L, H), after each character has been read
    properties: dict[str, np.ndarray]  # of the text, each (N,)
    correlation: np.ndarray  # (L, H, M) Pearson's r of every unit's value with every property
    saturation: dict[str, np.ndarray]  # gate -> (L, H, 2): the share of the text in which it is < 0.1, > 0.9
    gradient: dict[str, np.ndarray]  # "h" (and "c") -> (L, K): norm of the gradient k = 1 ... K steps back

    def units(self) -> list[Unit]:
        """All of them, the most telling first: sorted by r^2 of the property that they follow best, which is the
        share of the variance of a unit's value that a straight line in that one property explains.
        """
        best = np.abs(self.correlation).argmax(axis=-1)
        r = np.take_along_axis(self.correlation, best[..., None], -1)[..., 0]
        order = np.argsort(-np.abs(r), axis=None, kind="stable")
        names = list(self.properties)
        return [
            Unit(int(layer), int(unit), names[best[layer, unit]], float(r[layer, unit]))
            for layer, unit in zip(*np.unravel_index(order, r.shape))
        ]

    def half_lives(self) -> dict[str, list[int | None]]:
        """For "h" (and "c") and each layer, the first k at which the gradient is below half of that one step back;
        None: it is not, in K steps.
        """
        below = {name: norms < norms[:, :1] / 2 for name, norms in self.gradient.items()}
        return {name: [int(row.argmax()) + 1 if row.any() else None for row in rows] for name, rows in below.items()}

    def passage(self, follows: str, size: int = 700) -> slice:
        """Where that property varies most: `size` characters from the beginning of a line. No unit has a say."""
        p = self.properties[follows]
        p = np.minimum(p, p.mean() + 2 * p.std())  # one very long line is not the place to look at
        lines = np.flatnonzero(np.array(list("\n" + self.text[:-1])) == "\n")
        starts = lines[lines + size <= len(p)]
        if not len(starts):
            return slice(0, min(size, len(p)))
        sums = np.concatenate([np.zeros((2, 1)), np.cumsum([p, p * p], axis=1)], axis=1)
        mean, square = (sums[:, starts + size] - sums[:, starts]) / size
        start = int(starts[np.argmax(square - mean * mean)])
        return slice(start, start + size)


def text_properties(text: str) -> dict[str, np.ndarray]:
    """Simple properties of the text at each character, that one read: numbers, each (N,) float64.

    position in the line, in the word : characters of it so far
    indentation : spaces and tabs before the line's first other character, as far as read
    inside quotes : from a double quote to the next or to a blank line; from three in a row to the next three
    depth of brackets : round, square and curly ones that are open; a blank line closes them
    line end, between words, capital letter, digit : 1 where the character is that, else 0

    >>> p = text_properties('a (b)\\n  "c"')
    >>> p["position in the line"].astype(int).tolist()
    [1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    >>> p["inside quotes"].astype(int).tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]
    """
    rows = []
    column = indent = word = depth = 0
    run = 0  # double quotes in a row
    quoted = tripled = False
    blank = True  # nothing but spaces so far in this line
    for character in text:
        if character == "\n":
            if blank:
                depth, quoted = 0, False
            column, indent, blank = 0, 0, True
        else:
            column += 1
            blank = blank and character in " \t"
            indent += blank
        word = word + 1 if character.isalnum() or character == "_" else 0
        depth = max(0, depth + (character in "([{") - (character in ")]}"))
        run = run + 1 if character == '"' else 0
        if run == 3:
            tripled, quoted, run = not tripled, False, 0
        elif not tripled:
            quoted = character == "“" or (quoted != (character == '"') and character != "”")
        rows.append((column, word, indent, quoted or tripled, depth))
    counted = np.array(rows, np.float64).reshape(-1, 5).T
    names = "position in the line", "position in the word", "indentation", "inside quotes", "depth of brackets"
    tests = {
        "line end": lambda character: character == "\n",
        "between words": lambda character: not (character.isalnum() or character == "_"),
        "capital letter": str.isupper,
        "digit": str.isdigit,
    }
    alone = {name: np.array([test(character) for character in text], np.float64) for name, test in tests.items()}
    return dict(zip(names, counted)) | alone


def inspect_text(model: Any, vocabulary: Vocabulary, text: str, depth: int = 100) -> Inspection:
    """Runs a character model over `text`, from a state of zeros, and looks at every hidden unit.

    model : `CharLM.model`; it is copied, so its gradients and random generators stay as they are
    depth : K, how many steps back the gradient is followed (fewer in a shorter text)

    The gradient's norms: for the loss of one prediction at step t alone, that of dh[t-k], the gradient of h[t-k] with
    c[t-k] held fixed, and that of dc[t-k], with h[t-k] held fixed: the two ways in which the state at t-k reaches t
    (Hochreiter and Schmidhuber 1997; Pascanu, Mikolov and Bengio 2013). The median over 64 places in the text.

    `ValueError` for characters that the vocabulary does not have, for fewer than 2 characters, and for states that are
    not finite. Memory: N L H numbers, twice that for an LSTM.
    """
    if not isinstance(text, str):
        raise TypeError(f"text is {type(text).__name__}, expected a str")
    check_size("depth", depth)
    ids = vocabulary.encode(text)
    if len(ids) < 2:
        raise ValueError(f"text has {len(ids)} characters, expected at least 2")
    model = copy.deepcopy(model)
    for layer in model.layers:
        if isinstance(layer, Dropout):
            layer.p = 0.0
        elif hasattr(layer, "dropout"):
            layer.dropout = 0.0
    states, saturation = _run(model, ids)
    shown = "tanh(c)" if "c" in states else "h"
    values = np.tanh(states["c"]) if "c" in states else states["h"]
    if not np.isfinite(values).all():
        raise ValueError("the model's states are not finite: its training has diverged")
    properties = text_properties(text)
    correlation = _correlation(values, np.stack(list(properties.values()), axis=1))
    gradient = _gradient(model, ids, states, min(depth, len(ids) - 1))
    return Inspection(text, shown, values, properties, correlation, saturation, gradient)


def _run(model: Any, ids: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """States, "h" (and "c") -> (N, L, H), and saturation, gate -> (L, H, 2)."""
    state, parts, counts = None, {}, {}  # type: Any, dict[str, list[np.ndarray]], dict[str, Any]
    for start in range(0, len(ids), CHUNK):
        _, state, tape = model.forward(ids[start : start + CHUNK, None], state)
        layers: dict[str, list[np.ndarray]] = {}  # letter -> (T, H) of each layer
        for name, a in model.intermediates(tape).items():
            letter = re.fullmatch(r"\d+\.(\w+)_l\d+", name)[1]  # type: ignore[index]
            layers.setdefault(letter, []).append(a[:, 0])
        for letter, arrays in layers.items():
            a = np.stack(arrays, axis=1)  # (T, L, H)
            if letter in GATES:
                both = np.stack([(a < LEFT).sum(axis=0), (a > RIGHT).sum(axis=0)], axis=-1)
                counts[letter] = counts.get(letter, 0) + both
            elif letter in "hc":
                parts.setdefault(letter, []).append(a)
    states = {letter: np.concatenate(arrays) for letter, arrays in parts.items()}
    return states, {letter: count / len(ids) for letter, count in counts.items()}


def _correlation(values: np.ndarray, properties: np.ndarray) -> np.ndarray:
    """(L, H, M) of values (N, L, H) and properties (N, M); 0 where one of the two does not move."""
    v = values.reshape(len(values), -1).astype(np.float64)
    v -= v.mean(axis=0)
    p = properties - properties.mean(axis=0)
    v_norm, p_norm = np.sqrt((v * v).mean(axis=0)), np.sqrt((p * p).mean(axis=0))
    product = v.T @ p / len(v)
    moves = (v_norm[:, None] >= STILL) & (p_norm > 0)
    r = np.divide(product, v_norm[:, None] * p_norm, out=np.zeros_like(product), where=moves)
    return r.clip(-1, 1).reshape(*values.shape[1:], -1)


def _gradient(model: Any, ids: np.ndarray, states: dict[str, np.ndarray], depth: int) -> dict[str, np.ndarray]:
    """ "h" (and "c") -> (L, K): one step a tape, so that the gradient is seen at every step."""
    letters = [letter for letter in "hc" if letter in states]
    starts = np.unique(np.linspace(0, len(ids) - 1 - depth, WINDOWS).astype(int))
    first = [np.where(starts[:, None, None] > 0, states[letter][starts - 1], 0).swapaxes(0, 1) for letter in letters]
    state: Any = (tuple(first) if len(first) > 1 else first[0],)
    tapes = []
    for k in range(depth):
        logits, state, tape = model.forward(ids[starts + k][None], state)
        tapes.append(tape)
    _, mean = cross_entropy(logits, ids[starts + depth][None])
    dlogits = np.asarray(mean) * len(starts)  # of each place's own loss
    norms: dict[str, list[np.ndarray]] = {letter: [] for letter in letters}
    dstate = None
    for tape in reversed(tapes):
        _, dstate = model.backward(tape, dlogits, dstate)
        dlogits = np.zeros_like(dlogits)
        for letter, d in zip(letters, dstate[0] if len(letters) > 1 else dstate):
            norms[letter].append(np.median(np.linalg.norm(d.astype(np.float64), axis=-1), axis=-1))
    return {letter: np.stack(rows, axis=1) for letter, rows in norms.items()}
