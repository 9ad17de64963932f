"""Hypothesis strategies: which sizes and options the laws are tried on."""

from helpers import ALL_CELLS, JIT, Problem
from hypothesis import strategies as st

# The complex step evaluates the reference once per parameter, and kernels without JIT are slow: the more
# layers times directions, and without JIT, the smaller. With JIT, one layer reaches past two vectors of
# float64 of 512 bits and three of 256, and so do two directions past one.
LARGEST = {1: 20, 2: 11, 3: 9, 4: 7, 6: 6} if JIT else {1: 9, 2: 5, 3: 3, 4: 4, 6: 4}
LONGEST = 6 if JIT else 3

seeds = st.integers(0, 2**32 - 1)


@st.composite
def sizes(draw, layers=1, least_hidden=1):
    """T, B, I, H from 1, mostly no multiple of 8, pairwise different: no transposed axis can pass."""
    largest = {"T": LONGEST, "B": LONGEST + 1, "I": LARGEST[layers], "H": max(LARGEST[layers], least_hidden + 2)}
    found = {}
    for letter, most in largest.items():
        taken, least = set(found.values()), least_hidden if letter == "H" else 1
        found[letter] = draw(st.integers(least, most).filter(lambda size, taken=taken: size not in taken))
    return found


def lengths(T, B):
    """A length for each row, in any order, zero included."""
    return st.lists(st.integers(0, T), min_size=B, max_size=B).map(tuple)


@st.composite
def problems(draw, cell, dtype="float64", **fixed):
    """Problems for one cell with every option drawn; `fixed` ones are not."""
    L = fixed.pop("L") if "L" in fixed else draw(st.integers(1, 3))
    bidirectional = fixed.pop("bidirectional") if "bidirectional" in fixed else draw(st.booleans())
    size = draw(sizes(L * (1 + bidirectional), 1 + ALL_CELLS[cell][1].get("proj_size", 0)))
    has_dy = draw(st.booleans())
    options = {
        "bidirectional": bidirectional,
        "lengths": draw(st.none() | lengths(size["T"], size["B"])),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "indices": draw(st.booleans()),
        "has_state": draw(st.booleans()),
        "has_dy": has_dy,
        "has_dstate": draw(st.booleans()) if has_dy else True,
        "seed": draw(seeds),
    }
    return Problem(cell=cell, L=L, dtype=dtype, **(size | options | fixed))
