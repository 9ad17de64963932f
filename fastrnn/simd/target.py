"""What this CPU has: vector width and the tile shape that fits its registers.

Numba's own settings decide (``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES``, ``NUMBA_ENABLE_AVX``), because
they decide what LLVM may emit and they are part of the key under which compiled code is cached.
"""

from functools import cache

import llvmlite.binding as llvm
import numpy as np
from numba.core import config
from numba.core.codegen import get_host_cpu_features


@cache
def features() -> frozenset[str]:
    """Names of the instruction-set features that compiled code may use."""
    text = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    return frozenset(word[1:] for word in text.split(",") if word.startswith("+"))


def cpu_name() -> str:
    """LLVM's name of the CPU that code is compiled for."""
    return config.CPU_NAME or llvm.get_host_cpu_name()


# 32 registers of 512 bits, or 16 of 256. Anything older is served by LLVM splitting the 256-bit vectors.
VECTOR_BYTES = 64 if "avx512f" in features() else 32
REGISTERS = 32 if VECTOR_BYTES == 64 else 16

# A tile has at most ROWS x COLS vectors of accumulators. 6 x 4 leaves 8 of 32 registers for the operands. Of 16, 4 x 3
# and 3 x 4 leave 4; see tile.py for 4 x 4. (6 x 4 as 6 x 2 twice took 1.05 to 1.15 of the time.)
ROWS = 6 if REGISTERS == 32 else 4
COLS = 4

# The vectors that a forward's tile takes of a group of panels, and the panels of four vectors that are in a group at
# most. With 16 registers it is 4 x 3, which does as much with each of its loads as 3 x 4, and reads a line for one row
# more.
STRIP = 4 if REGISTERS == 32 else 3
GROUP = 1 if REGISTERS == 32 else 3


def groups(panels: int) -> int:
    """In how many groups so many panels are: group g has those from panels * g // groups on.

    With 16 registers groups of two, or a few of three, and an even number of them but for 7 panels: two workers find as
    much to do.
    """
    # In groups of three 0.98 to 0.99 of the time on two threads; but with H = 256 there are 11, too few for eight.
    return panels if GROUP == 1 else max(-(-panels // GROUP), panels // 4 * 2)


def lanes(dtype: np.dtype | type | str) -> int:
    """How many values of `dtype` one vector holds.

    >>> lanes("float32") == 2 * lanes("float64")
    True
    """
    return VECTOR_BYTES // np.dtype(dtype).itemsize
