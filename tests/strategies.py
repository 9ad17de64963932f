"""Hypothesis strategies: which sizes and options the laws are tried on."""

from helpers import JIT, Problem
from hypothesis import strategies as st

# The complex step evaluates the reference once per parameter, and kernels without JIT are slow: the more
# layers, and without JIT, the smaller. With JIT, one layer reaches past two vectors of float64 of 512 bits
# and three of 256.
LARGEST = {1: 20, 2: 11, 3: 9} if JIT else {1: 9, 2: 5, 3: 3}
LONGEST = 6 if JIT else 3

seeds = st.integers(0, 2**32 - 1)


@st.composite
def sizes(draw, L=1):
    """T, B, I, H from 1, mostly no multiple of 8, pairwise different: no transposed axis can pass."""
    largest = {"T": LONGEST, "B": LONGEST + 1, "I": LARGEST[L], "H": LARGEST[L]}
    found = {}
    for letter, most in largest.items():
        taken = set(found.values())
        found[letter] = draw(st.integers(1, most).filter(lambda size, taken=taken: size not in taken))
    return found


@st.composite
def problems(draw, cell, dtype="float64", **fixed):
    """Problems for one cell with every option drawn; `fixed` ones are not."""
    L = fixed.pop("L") if "L" in fixed else draw(st.integers(1, 3))
    has_dy = draw(st.booleans())
    options = {
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "indices": draw(st.booleans()),
        "has_state": draw(st.booleans()),
        "has_dy": has_dy,
        "has_dstate": draw(st.booleans()) if has_dy else True,
        "seed": draw(seeds),
    }
    return Problem(cell=cell, L=L, dtype=dtype, **(draw(sizes(L)) | options | fixed))
