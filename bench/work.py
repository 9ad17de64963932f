"""How much a case has to do: multiply-adds, counted as the mathematics has them, and bytes of weights to be
read.

Both are the same for every library. What a library saves by exact algebra (an embedding's product computed
once for each character) shows as speed, not as less work.
"""

from __future__ import annotations

from collections.abc import Iterator

from .cases import CELLS, Case
from .problem import Problem


def _layers(case: Case) -> Iterator[tuple[int, int]]:
    """For each direction of each layer the numbers of elements of weight_ih (0 for one-hot inputs: a row is
    copied) and weight_hh.
    """
    rows = CELLS[case.cell].gates * case.H
    for layer in range(case.L):
        for _ in range(case.D):
            yield rows * (case.I if layer == 0 else case.D * case.H), rows * case.H


def _steps(case: Case) -> tuple[int, int]:
    """How many steps the longest row has, and all rows together: what lies past a row's end is no work."""
    lengths = Problem(case).lengths
    return (case.T, case.T * case.B) if lengths is None else (int(lengths.max()), int(lengths.sum()))


def _training(case: Case) -> bool:
    return case.kind == "train" or case.model


def flops(case: Case) -> float:
    """Floating-point operations of the matrix products of one call: 2 for each weight, row and step; three
    times that with backward. Gates, losses and optimizers are not counted.
    """
    weights = sum(u + w for u, w in _layers(case)) + case.H * case.V
    return 2.0 * _steps(case)[1] * weights * (3 if _training(case) else 1)


def traffic(case: Case) -> float:
    """Bytes of weights that one call cannot avoid reading: weight_hh in every step of every pass, the others
    once.
    """
    passes = 2 if _training(case) else 1
    size = 4 if case.dtype == "float32" else 8
    steps = _steps(case)[0]
    return float(size * passes * sum(u + steps * w for u, w in _layers(case)))


def resident_bytes(case: Case) -> int:
    """Bytes of weights that are read in every step of one direction of one layer; of all layers if there is only
    one step.
    """
    size = 4 if case.dtype == "float32" else 8
    if case.T == 1:
        return size * sum(u + w for u, w in _layers(case))
    return size * max(w for _, w in _layers(case))


def characters(case: Case) -> int:
    """Characters that one call of a language model learns from, or writes; 0 for other cases."""
    return case.T * case.B if case.model or case.kind == "generate" else 0
