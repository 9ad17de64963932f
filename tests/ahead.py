"""Compiles what the tests need, in a process of its own, on a processor that they leave idle.

conftest.py starts it with a session and ends it with it. It goes from the last to the first where they go from the
first to the last, and both write into the same cache; whatever is missing there, a test compiles itself.
"""

import os

import numpy as np
import test_layer_norm
import test_lstm_options
import test_regularisers
from helpers import CELLS, IN_FLOAT32, NARROW, Problem, is_wide, run_python


def problems():
    """In about the order in which they are first met, but for the cells."""
    for cell in reversed(CELLS):
        yield Problem(cell)
    for cell in reversed(IN_FLOAT32):
        yield Problem(cell, dtype="float32")
    yield Problem("rnn_tanh", more=(("preactivation", True),))
    for cell in ("gru_norm", "lstm_norm"):
        yield Problem(cell, dtype=test_layer_norm.DTYPES[cell])
    yield Problem("rnn_tanh", dtype="float32", more=(("preactivation", True),))
    for options in test_lstm_options.TOGETHER[:2]:
        yield test_lstm_options.of(**options)
    for first in (3, 0):
        yield test_lstm_options.activated(first)
    for name in reversed(test_regularisers.USUAL):
        yield test_regularisers.PROBLEMS[name].but(L=1)
    yield Problem("rnn_sigmoid", more=(("preactivation", True),))


def main():
    os.nice(10)
    for problem in problems():
        layer = problem.layer()
        problem.backward(layer, problem.forward(layer)[1])
        problem.infer(layer)
        _, state = layer(np.zeros((1, 1, problem.I), problem.dtype))
        layer(np.zeros((1, 1, problem.I), problem.dtype), state)
    if is_wide():
        run_python("import test_losses_optim as t; t.digest(['float32'])", timeout=None, **NARROW)
        run_python("import test_numbers as t; t.fingerprints('short')", timeout=None, **NARROW)


if __name__ == "__main__":
    main()
