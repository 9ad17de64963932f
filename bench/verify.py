"""Results against the reference. What is not within the tolerance is not timed."""

from __future__ import annotations

import math

import numpy as np

from .cases import CELLS, Case
from .job import Results
from .peers import with_numpy

# Largest difference, relative to the largest value of the array: outputs, gradients. Gradients of weights are
# sums over all T B rows, in each library in another order.
TOLERANCES = {"float32": (1e-5, 5e-5), "float64": (1e-12, 1e-11)}
# Where relu's pre-activation is zero to rounding, its derivative is 0 in one library and 1 in another, and
# single elements of a gradient differ. So the whole array is compared: |difference| / |array|.
RELU_TOLERANCE = 1e-2


def expected(case: Case) -> Results:
    """The results in float64, from the case's own weights and inputs."""
    job = with_numpy.make(case, compute="float64")
    job.use(job.ways[0])
    return job.results()


def errors(case: Case, actual: Results, wanted: Results) -> dict[str, float]:
    """The relative difference of every array that the reference has; NaN for one that is missing or
    misshapen.
    """
    found = {}
    relu = CELLS[case.cell].nonlinearity == "relu"
    for name, want in wanted.items():
        got = actual.get(name)
        if got is None or got.shape != want.shape:
            found[name] = float("nan")
        elif relu and name.startswith("d"):
            found[name] = float(np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0))
        else:
            found[name] = float(np.abs(got - want).max() / (np.abs(want).max() or 1.0))
    return found


def wrong(case: Case, found: dict[str, float]) -> str:
    """What is outside of the tolerance, in words; empty if nothing is."""
    outputs, gradients = TOLERANCES[case.dtype]
    relu = CELLS[case.cell].nonlinearity == "relu"
    said = []
    for name, error in found.items():
        allowed = (RELU_TOLERANCE if relu else gradients) if name.startswith("d") else outputs
        if math.isnan(error):
            said.append(f"{name} is missing, of another shape, or not a number")
        elif error > allowed:
            said.append(f"{name} is off by {error:.1e}, allowed {allowed:.0e}")
    return "; ".join(said)
