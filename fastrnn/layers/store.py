"""Where a layer's parameters live: one flat vector of values, one of gradients, and names for their parts.

Layers, optimizers and models share it; only it knows when values have changed.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import buffers

ALIGN = 64  # bytes: a parameter begins on a cache line of its own


class Store:
    """Named parameters in one flat vector, their gradients in another, and a version that counts changes.

    `values` is read-only: whoever changes it goes through `writing`, so that what was made from the old values (packed
    weights) is known to be old.

    A frozen store has no gradients, not even the memory for them. It is frozen for life: an optimizer takes its stores
    when it is made, and must not find one without gradients later.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, frozen: bool = False) -> None:
        self.dtype, self.frozen = dtype, frozen
        self.shapes = dict(shapes)
        step = ALIGN // dtype.itemsize
        self._where: dict[str, slice] = {}
        size = 0
        for name, shape in self.shapes.items():
            n = int(np.prod(shape))
            self._where[name] = slice(size, size + n)
            size += -(-n // step) * step
        self._values, self.grads = buffers.aligned(size, dtype), buffers.aligned(0 if frozen else size, dtype)
        self._values.fill(0)
        self.grads.fill(0)
        self.version = 0
        self._lock = threading.RLock()
        self._made: dict[Any, tuple[int, Any]] = {}
        # Of a read-only buffer, so that nobody can make the view writable either.
        self.values = np.frombuffer(memoryview(self._values).toreadonly(), dtype)
        _stores.add(self)

    @contextmanager
    def writing(self) -> Iterator[np.ndarray]:
        """The values, to be changed within the `with` block."""
        with self._lock:
            try:
                yield self._values
            finally:
                self.version += 1

    def value(self, name: str) -> np.ndarray:
        """A read-only view of parameter `name`."""
        return self.values[self._where[name]].reshape(self.shapes[name])

    def grad(self, name: str) -> np.ndarray:
        """A view of its gradient."""
        return self.grads[self._where[name]].reshape(self.shapes[name])

    def assign(self, new: Mapping[str, Any]) -> None:
        """Sets the named parameters; all of them, or on an error none."""
        checked = {name: self._checked(name, array) for name, array in new.items()}
        with self.writing() as values:
            for name, array in checked.items():
                values[self._where[name]] = array.reshape(-1)

    def _checked(self, name: str, array: Any) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self.shapes)}")
        if hasattr(array, "detach"):  # a PyTorch tensor
            array = array.detach().cpu().numpy()
        array = np.asarray(array)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{name} has dtype {array.dtype}, expected numbers")
        if array.shape != self.shapes[name]:
            raise ValueError(f"{name} has shape {array.shape}, expected {self.shapes[name]}")
        return array.astype(self.dtype)

    def made(self, what: Any, make: Callable[[], Any]) -> Any:
        """`make()` from the present values, kept under the name `what` until they change."""
        entry = self._made.get(what)
        if entry is not None and entry[0] == self.version:
            return entry[1]
        with self._lock:
            entry = (self.version, make())
            self._made[what] = entry
        return entry[1]

    def __getstate__(self) -> dict[str, Any]:
        kept = {"shapes": self.shapes, "dtype": self.dtype, "frozen": self.frozen}
        return {**kept, "values": self._values, "grads": self.grads, "version": self.version}
