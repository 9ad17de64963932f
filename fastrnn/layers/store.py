"""Where a layer's parameters live: one flat vector of values, one of gradients, and names for their parts.

Layers, optimizers and models share it; only it knows when values have changed.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..checks import as_array, check_mapping
from ..threads import rehearsing
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
            n = math.prod(shape)
            self._where[name] = slice(size, size + n)
            size += -(-n // step) * step
        if size * dtype.itemsize > sys.maxsize:
            raise MemoryError(f"{size:,} parameters are more than there are addresses for")
        self._values, self.grads = buffers.aligned(size, dtype), buffers.aligned(0 if frozen else size, dtype)
        self._values.fill(0)
        self.grads.fill(0)
        self._grads = {} if frozen else {name: self.grads[at].reshape(shapes[name]) for name, at in self._where.items()}
        self.version = 0
        self._lock = threading.RLock()
        self._made: dict[Any, tuple[int, Any]] = {}
        # Of a read-only buffer, so that nobody can make the view writable either.
        self.values = np.frombuffer(self._values.data.toreadonly(), dtype)
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

    def flat(self, name: str) -> np.ndarray:
        """The values of `name`, flat, as kernels take them: to be read. Not to be kept: a pickled view is a copy."""
        return self._values[self._where[name]]

    def grad(self, name: str) -> np.ndarray:
        """A view of its gradient, always the same one."""
        return self._grads[name]

    def add_grad(self, name: str, d: np.ndarray) -> None:
        """Adds to it."""
        grad = self._grads[name]
        grad += d

    def assign(self, new: Mapping[str, Any]) -> None:
        """Sets the named parameters; all of them, or on an error none."""
        checked = {name: self._checked(name, array) for name, array in new.items()}
        with self.writing() as values:
            for name, array in checked.items():
                values[self._where[name]] = array.reshape(-1)

    def _checked(self, name: str, array: Any, said: str | None = None) -> np.ndarray:
        """`array` as parameter `name`; said : what the caller knows it as."""
        said = said or name
        if name not in self.shapes:
            raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self.shapes)}")
        if hasattr(array, "detach"):  # a PyTorch tensor
            array = array.detach().cpu().numpy()
        array = as_array(said, array)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{said} has dtype {array.dtype}, expected numbers")
        if array.shape != self.shapes[name]:
            raise ValueError(f"{said} has shape {array.shape}, expected {self.shapes[name]}")
        return array.astype(self.dtype)

    def made(self, what: Any, make: Callable[[], Any]) -> Any:
        """`make()` from the present values, kept under the name `what` until they change."""
        entry = self._made.get(what)
        if entry is not None and entry[0] == self.version:
            return entry[1]
        if rehearsing():
            return make()
        with self._lock:
            entry = (self.version, make())
            self._made[what] = entry
        return entry[1]

    def __getstate__(self) -> dict[str, Any]:
        kept = {"shapes": self.shapes, "dtype": self.dtype, "frozen": self.frozen, "version": self.version}
        return {**kept, "values": self._values, "grads": self.grads}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["shapes"], state["dtype"], state["frozen"])  # type: ignore[misc]
        self._values[:] = state["values"]
        self.grads[:] = state["grads"]
        # Not from 0 again: what was made from the old values, and pickled beside them, must not pass for new some day.
        self.version = state["version"] + 1


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork() -> None:
    """A lock that another thread held at the fork would be held in the child for ever."""
    for store in list(_stores):
        store._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Params(MutableMapping[str, np.ndarray]):
    """The parameters of a layer or model by name. Reading gives read-only views, assigning copies in.

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(3, 2)
    >>> layer.params["bias"] = np.ones(2)
    >>> layer.params["bias"]
    array([1., 1.], dtype=float32)
    """

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = stores  # prefix -> store

    def _find(self, name: str) -> tuple[Store, str]:
        for prefix, store in self._stores.items() if isinstance(name, str) else ():
            if name.startswith(prefix) and name[len(prefix) :] in store.shapes:
                return store, name[len(prefix) :]
        raise KeyError(f"there is no parameter {name!r}; there are {', '.join(self)}")

    def __getitem__(self, name: str) -> np.ndarray:
        store, own = self._find(name)
        return store.value(own)

    def __setitem__(self, name: str, array: Any) -> None:
        store, own = self._find(name)
        store.assign({own: store._checked(own, array, name)})

    def __delitem__(self, name: str) -> None:
        raise TypeError("parameters cannot be removed from a layer")

    def __iter__(self) -> Iterator[str]:
        return (prefix + name for prefix, store in self._stores.items() for name in store.shapes)

    def __len__(self) -> int:
        return sum(len(store.shapes) for store in self._stores.values())

    def load(self, new: Mapping[str, Any]) -> None:
        """Sets all parameters from a complete mapping; on an error none."""
        check_mapping("d", new)
        missing, unknown = [n for n in self if n not in new], [n for n in new if n not in self]
        if missing or unknown:
            both = (("missing", missing), ("unknown", unknown))
            said = "; ".join(f"{what}: {', '.join(map(str, names))}" for what, names in both if names)
            raise ValueError(f"the state dict does not fit this layer; {said}")
        parts: dict[int, tuple[Store, dict[str, Any]]] = {}
        for name, array in new.items():
            store, own = self._find(name)
            parts.setdefault(id(store), (store, {}))[1][own] = store._checked(own, array, name)
        for store, values in parts.values():
            store.assign(values)


class Grads(Mapping[str, np.ndarray]):
    """The gradients of a layer or model by name: writable views. Frozen parameters have none."""

    def __init__(self, params: Params) -> None:
        self._params = params

    def __getitem__(self, name: str) -> np.ndarray:
        store, own = self._params._find(name)
        if store.frozen:
            raise KeyError(f"{name!r} is frozen: it has no gradient")
        return store.grad(own).view()

    def __iter__(self) -> Iterator[str]:
        stores = self._params._stores.items()
        return (prefix + name for prefix, store in stores if not store.frozen for name in store.shapes)

    def __len__(self) -> int:
        return sum(1 for _ in self)
