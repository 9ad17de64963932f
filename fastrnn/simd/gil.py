"""Python's lock, given away in the midst of a kernel that is called with it.

What a kernel has to do may be so little that to give the lock away and take it back would cost more, or be much: it can
tell when it has seen the shapes.
"""

from __future__ import annotations

from numba.core import config, types

from .._jit import device

if config.DISABLE_JIT:
    PyGILState_Check = PyEval_SaveThread = lambda: 0
    PyEval_RestoreThread = lambda thread: None  # noqa: E731
else:
    PyGILState_Check = types.ExternalFunction("PyGILState_Check", types.int32())
    PyEval_SaveThread = types.ExternalFunction("PyEval_SaveThread", types.int64())
    PyEval_RestoreThread = types.ExternalFunction("PyEval_RestoreThread", types.void(types.int64))


@device
def let_go(much):
    """Gives the lock away if there is much to do, and this thread has it. What `take_back` needs."""
    if much and PyGILState_Check() != 0:
        return PyEval_SaveThread()
    return 0


@device
def take_back(gil):
    """Returns when this thread has the lock again that it had before `let_go`."""
    if gil != 0:
        PyEval_RestoreThread(gil)
