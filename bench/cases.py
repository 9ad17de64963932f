"""What is compared: the table of cases that the benchmark, its tests and its report are driven by.

Letters: T time steps, B sequences in the batch, I input size, H hidden size, L layers, V vocabulary, D directions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import NamedTuple


class Cell(NamedTuple):
    """A recurrent cell, as every peer has to make it."""

    gates: int  # rows of weight_ih in units of H
    nonlinearity: str = "tanh"  # of an RNN
    peephole: bool = False

    @property
    def lstm(self) -> bool:
        return self.gates == 4

    @property
    def gru(self) -> bool:
        """PyTorch's: the reset gate acts on the recurrent product."""
        return self.gates == 3


CELLS = {
    "rnn-tanh": Cell(1),
    "rnn-relu": Cell(1, "relu"),
    "lstm": Cell(4),
    "lstm-peephole": Cell(4, peephole=True),
    "gru": Cell(3),
}

#: infer      a sequence from the zero state, nothing kept
#: train      gradients zeroed, forward, backward to the inputs and all weights; weights count as changed before it
#: step       one time step with the state carried from the last
#: charlm     a language model's whole training step: embedding, layers, linear, loss, backward, clip, Adam
#: minchar    the same as min-char-rnn has it: one-hot, RNN, Adagrad, clip by value, batch of one
#: generate   a language model writes T characters, each the most likely one, and reads it next
#: startup    a fresh process: imports, first results with a cold and a warm cache
#: memory     a fresh process: what a training pass holds at the most
#: neighbour  a call of another kind, alone and beside a process that keeps one processor busy
KINDS = ("infer", "train", "step", "charlm", "minchar", "generate", "startup", "memory", "neighbour")
#: Measured after everything else, in ways of their own; none of them is a row of the table.
APART = ("startup", "memory", "neighbour")

#: Groups that are not measured unless they are named.
HIDDEN = "tiny"


@dataclass(frozen=True)
class Case:
    """One thing to measure. For language models I is the embedding's size, 0 for one-hot inputs."""

    kind: str
    cell: str
    T: int
    B: int
    I: int  # noqa: E741 - the glossary's letter
    H: int
    L: int = 1
    V: int = 0
    dtype: str = "float32"
    groups: tuple[str, ...] = ()
    D: int = 1
    shortest: int = 0  # if not 0, the rows' lengths are uniform in shortest .. T (problem.py)
    call: str = ""  # of a `neighbour` case: the kind of the call

    @property
    def called(self) -> Case:
        """The case that a `neighbour` case is about; others are about themselves."""
        return replace(self, kind=self.call, call="") if self.call else self

    @property
    def name(self) -> str:
        name = f"{self.kind}-{self.called._name}" if self.call else self._name
        return f"{HIDDEN}-{name}" if HIDDEN in self.groups else name

    @property
    def _name(self) -> str:
        if self.kind in ("minchar", "startup"):
            name = self.kind
        elif self.kind == "charlm":
            name = f"charlm-{self.cell}-{self.L}x{self.H}"
        elif self.kind == "generate":
            name = f"generate-{self.cell}-{self.T}x{self.B}-{self.L}x{self.H}"
        elif self.kind == "step":
            name = f"{self.cell}-step-B{self.B}-H{self.H}"
        else:
            name = f"{self.cell}-{self.kind}-{self.T}x{self.B}x{self.I}x{self.H}"
            name += f"-{self.L}layers" if self.L > 1 else ""
            name += "-bidirectional" if self.D > 1 else ""
            name += f"-lengths{self.shortest}" if self.shortest else ""
        return name + (f"-{self.dtype}" if self.dtype != "float32" else "")

    @property
    def model(self) -> bool:
        """Whether it is a language model's training step."""
        return self.kind in ("charlm", "minchar")


MAIN = [(100, 64, 256, 512), (25, 128, 1024, 1024), (100, 32, 128, 256)]
STEPS = [8, 16, 32, 64, 128, 256, 512]
BATCH_ONE = [
    (150, 1, 256, 256), (50, 1, 256, 256), (100, 1, 512, 512), (672, 1, 32, 32), (25, 1, 1024, 1024),
    (187, 1, 1536, 1536), (48000, 1, 1, 16),
]  # fmt: skip
SMALL_BATCH = [
    (25, 2, 512, 512), (25, 4, 512, 512), (150, 2, 256, 256), (150, 4, 256, 256), (30, 8, 512, 512),
    (30, 16, 512, 512),
]  # fmt: skip
TRAIN = [
    (128, 16, 32, 32), (50, 32, 64, 128), (100, 32, 128, 256), (100, 64, 256, 512), (25, 64, 512, 512),
    (150, 16, 256, 256), (150, 64, 256, 256), (25, 128, 1024, 1024), (50, 16, 1536, 1536),
]  # fmt: skip
ODD = [(33, 7, 19, 75), (80, 24, 40, 320), (200, 3, 100, 300), (17, 5, 3, 5)]
STACKED = [(100, 32, 128, 256), (60, 32, 293, 128)]
MODEST = [(100, 32, 128, 256), (50, 32, 64, 128), (128, 16, 32, 32)]
LENGTHS, SHORTEST = [(100, 32, 128, 256)], 10
# Both directions, and lengths: cells of which PyTorch has fused ones too.
FUSED = ("rnn-tanh", "lstm", "gru")
MODELS = [(1, 128), (2, 128), (2, 256), (3, 512)]  # L, H
# Beside a busy process: the kind of the call, T, B, I, H, L, V.
NEIGHBOURS = [
    ("infer", 100, 32, 128, 256, 1, 0), ("train", 100, 32, 128, 256, 1, 0), ("step", 1, 1, 256, 256, 1, 0),
    ("charlm", 50, 50, 64, 128, 2, 65),
]  # fmt: skip

# What `--quick` runs (a little over two minutes), and what `pytest bench/` does: fastrnn alone, in seconds.
QUICK = {
    "lstm-infer-100x64x256x512", "lstm-infer-100x32x128x256", "lstm-infer-150x1x256x256",
    "lstm-train-100x64x256x512", "lstm-train-25x128x1024x1024", "lstm-train-100x32x128x256",
    "lstm-peephole-train-100x32x128x256", "rnn-tanh-train-100x32x128x256", "lstm-step-B1-H64",
    "gru-infer-100x32x128x256", "gru-train-100x32x128x256", "lstm-train-100x32x128x256-2layers-bidirectional",
    "lstm-train-100x32x128x256-lengths10", "charlm-lstm-2x128", "minchar", "generate-lstm-2000x1-2x128", "startup",
}  # fmt: skip
PYTEST = {
    "lstm-infer-100x32x128x256", "lstm-infer-150x1x256x256", "rnn-tanh-infer-100x32x128x256",
    "lstm-train-50x32x64x128", "lstm-train-100x32x128x256", "lstm-peephole-train-50x32x64x128",
    "rnn-tanh-train-50x32x64x128", "gru-infer-50x32x64x128", "gru-train-50x32x64x128",
    "lstm-step-B1-H64", "rnn-tanh-step-B1-H64", "gru-step-B1-H64", "charlm-lstm-1x128", "minchar",
}  # fmt: skip
# What the README shows.
HEADLINE = {
    *(f"{cell}-{kind}-" + "x".join(map(str, shape)) for cell in ("lstm", "lstm-peephole")
      for kind in ("infer", "train") for shape in MAIN),
    "rnn-tanh-infer-100x32x128x256", "rnn-tanh-train-100x32x128x256", "gru-infer-100x32x128x256",
    "gru-train-100x32x128x256", "lstm-train-100x32x128x256-2layers-bidirectional",
    "lstm-train-100x32x128x256-lengths10", "lstm-step-B1-H64", "charlm-lstm-2x128", "minchar",
    "generate-lstm-2000x1-2x128",
}  # fmt: skip


def _sequences() -> Iterator[Case]:
    shapes: dict[tuple[str, tuple[int, ...], int, str], list[str]] = {}

    def add(
        kind: str, sizes: Iterable[tuple[int, int, int, int]], group: str, L: int = 1, dtype: str = "float32"
    ) -> None:
        for shape in sizes:
            shapes.setdefault((kind, shape, L, dtype), []).append(group)

    add("infer", MAIN, "main")
    add("train", MAIN, "main")
    add("infer", BATCH_ONE, "batch-one")
    add("infer", SMALL_BATCH, "small-batch")
    add("train", TRAIN, "train")
    for kind in ("infer", "train"):
        add(kind, ODD, "odd")
        add(kind, STACKED, "stacked", L=2)
        add(kind, MODEST, "modest")
        add(kind, [(100, 32, 4, 64)], "float64", L=3, dtype="float64")
    add("infer", [(2000, 8, 256, 256)], "long", L=2)
    for cell in CELLS:
        for (kind, (T, B, I, H), L, dtype), groups in shapes.items():  # noqa: E741
            yield Case(kind, cell, T, B, I, H, L, 0, dtype, (*groups, f"{cell}-{kind}"))
        if cell in FUSED:
            for kind in ("infer", "train"):
                for T, B, I, H in STACKED:  # noqa: E741
                    yield Case(kind, cell, T, B, I, H, 2, groups=("bidirectional", f"{cell}-{kind}"), D=2)
                for T, B, I, H in LENGTHS:  # noqa: E741
                    yield Case(kind, cell, T, B, I, H, groups=("lengths", f"{cell}-{kind}"), shortest=SHORTEST)


def _table() -> Iterator[Case]:
    yield from _sequences()
    for cell in CELLS:
        for B in (1, 16, 64):
            for H in STEPS:
                yield Case("step", cell, 1, B, H, H, groups=("step", f"step-B{B}", f"{cell}-step"))
    for cell in FUSED:
        for L, H in MODELS:
            yield Case("charlm", cell, 50, 50, 64, H, L, 65, groups=("charlm",))
        for B in (1, 64):
            yield Case("generate", cell, 2000, B, 64, 128, 2, 65, groups=("generate",))
    yield Case("minchar", "rnn-tanh", 25, 1, 0, 100, 1, 65, groups=("minchar",))
    yield Case("startup", "lstm", 10, 4, 64, 128, groups=("startup",))
    for T, B, I, H in MAIN:  # noqa: E741
        yield Case("memory", "lstm", T, B, I, H, groups=("memory",))
    for kind, T, B, I, H, L, V in NEIGHBOURS:  # noqa: E741
        yield Case("neighbour", "lstm", T, B, I, H, L, V, groups=("neighbour",), call=kind)
    for cell in CELLS:
        yield Case("infer", cell, 4, 3, 5, 7, 2, groups=(HIDDEN,))
        yield Case("train", cell, 4, 3, 5, 7, groups=(HIDDEN,))
        yield Case("step", cell, 1, 2, 5, 7, groups=(HIDDEN,))
    for cell in FUSED:
        for kind in ("infer", "train"):
            yield Case(kind, cell, 5, 3, 5, 7, 2, groups=(HIDDEN,), D=2)
            yield Case(kind, cell, 6, 4, 5, 7, groups=(HIDDEN,), shortest=2)
            yield Case(kind, cell, 6, 4, 5, 7, 2, groups=(HIDDEN,), D=2, shortest=2)
    yield Case("infer", "lstm", 4, 3, 5, 7, dtype="float64", groups=(HIDDEN,))
    yield Case("charlm", "lstm", 5, 3, 6, 7, 2, 11, groups=(HIDDEN,))
    yield Case("generate", "lstm", 12, 3, 6, 7, 2, 11, groups=(HIDDEN,))
    yield Case("minchar", "rnn-tanh", 5, 1, 0, 9, 1, 11, groups=(HIDDEN,))
    yield Case("startup", "lstm", 2, 1, 3, 4, groups=(HIDDEN,))
    yield Case("memory", "lstm", 2, 1, 3, 4, groups=(HIDDEN,))
    yield Case("neighbour", "lstm", 4, 3, 5, 7, groups=(HIDDEN,), call="train")


def _with_groups(case: Case) -> Case:
    extra = [g for g, names in (("quick", QUICK), ("pytest", PYTEST), ("headline", HEADLINE)) if case.name in names]
    return Case(**{**vars(case), "groups": (*case.groups, *extra)})


CASES: tuple[Case, ...] = tuple(_with_groups(case) for case in _table())


def groups() -> list[str]:
    """All names of groups, in the table's order."""
    return list(dict.fromkeys(group for case in CASES for group in case.groups))


def select(patterns: Iterable[str] = ()) -> list[Case]:
    """The cases that are of one of the named groups, or whose name begins with or matches one of `patterns`.

    All but the hidden ones if there are no patterns. `ValueError` for a pattern that fits no case.

    >>> [case.name for case in select(["charlm-lstm-2"])]
    ['charlm-lstm-2x128', 'charlm-lstm-2x256']
    """
    patterns = list(patterns)
    if not patterns:
        return [case for case in CASES if HIDDEN not in case.groups]

    def fits(case: Case, pattern: str) -> bool:
        return pattern in case.groups or case.name.startswith(pattern) or fnmatchcase(case.name, pattern)

    for pattern in patterns:
        if not any(fits(case, pattern) for case in CASES):
            raise ValueError(f"no case is called {pattern!r}; the groups are {', '.join(groups())}")
    return [case for case in CASES if any(fits(case, pattern) for pattern in patterns)]
