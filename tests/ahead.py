"""Compiles what the tests of every cell need, in a process of its own, on a processor that they leave idle.

conftest.py starts it with a session and ends it with it. It goes through the cells from the last to the first, they go
from the first to the last, and both write into the same cache; whatever is missing there, a test compiles itself.
"""

import os

import numpy as np
from helpers import CELLS, Problem


def main():
    os.nice(10)
    for cell in reversed(CELLS):
        for dtype in ("float64", "float32"):
            problem = Problem(cell, dtype=dtype)
            layer = problem.layer()
            problem.backward(layer, problem.forward(layer)[1])
            _, state = layer(np.zeros((1, 1, problem.I), dtype))
            layer(np.zeros((1, 1, problem.I), dtype), state)


if __name__ == "__main__":
    main()
