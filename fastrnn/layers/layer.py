"""What all layers are: parameters by name, their gradients, and the tapes between forward and backward."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba.core.errors import NumbaError

from ..streaming import Stream, StreamPool
from .store import Grads, Params, Store

# What the quick way of a small step may raise at arguments that it does not take. They go the long way then, to be
# converted, or refused with a reason.
NOT_TAKEN = (TypeError, ValueError, AttributeError, IndexError, MemoryError, NumbaError)


class Layer:
    """A layer with parameters. It offers `params`, `grads`, `stores`, `state_dict`, `load_state_dict`, `zero_grad`."""

    #: whether calls take and return a state
    recurrent = False

    #: whether calls take `lengths`
    takes_lengths = False

    #: whether `forward` takes `segments`
    takes_segments = False

    #: whether x may be indices, and whether it may be numbers
    takes_indices = False
    takes_numbers = True

    #: whether y is shaped as x, whatever that is
    any_shape = False

    @property
    def width(self) -> int | None:
        """How many numbers x has in its last axis, or how many values an index has; None if that is open."""
        return None

    def parts(self) -> list[Layer]:
        """The layers that x goes through, in order."""
        return [self]

    def __init__(self, stores: Mapping[str, Store]) -> None:
        self._stores = dict(stores)
        self.params = Params(self._stores)
        self.grads = Grads(self.params)

    def stores(self) -> list[Store]:
        """The flat vectors behind the parameters; optimizers work on them. None for a layer without parameters, nor for
        frozen ones.
        """
        return [store for store in self._stores.values() if not store.frozen]

    def generators(self) -> list[np.random.Generator]:
        """The random generators that `forward` draws from (dropout), for whoever wants to save their state."""
        return []

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Puts `generators` back when what is done within fails: a wrong argument of a later layer is seen late."""
        before = [(generator, generator.bit_generator.state) for generator in self.generators()]
        try:
            yield
        except BaseException:
            for generator, state in before:
                generator.bit_generator.state = state
            raise

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters, named and shaped as PyTorch's."""
        return {name: value.copy() for name, value in self.params.items()}

    def load_state_dict(self, d: Mapping[str, Any]) -> None:
        """Sets all parameters from arrays or PyTorch tensors.

        Raises `ValueError` for missing, unknown or wrongly shaped entries, `TypeError` for what is not numbers; the
        layer is then as it was.
        """
        self.params.load(d)

    def zero_grad(self) -> None:
        """Sets all gradients to zero. `backward` adds to them."""
        for store in self.stores():
            store.grads.fill(0)

    def stream(self) -> Stream:
        """One sequence, read step by step, that keeps its state inside: see `Stream`. `TypeError` without a state."""
        return Stream(self)

    def stream_pool(self, capacity: int, full: str = "grow", linger_us: float = 200.0) -> StreamPool:
        """Many independent streams, stepped together: see `StreamPool`. `TypeError` without a state."""
        return StreamPool(self, capacity, full, linger_us)


class Tape:
    """What `forward` kept for one `backward`. It belongs to its layer and is used up by it."""

    __slots__ = ("_lock", "kept", "layer", "shape", "versions")

    def __init__(self, layer: Layer, shape: tuple[int, ...], kept: Any) -> None:
        self.layer, self.shape, self.kept = layer, shape, kept
        self.versions = self._versions()
        self._lock = threading.Lock()

    def _versions(self) -> list[int]:
        # Of frozen parameters too: the gradients of others are computed from them.
        return [store.version for store in self.layer._stores.values()]

    def open(self, layer: Layer) -> Any:
        """What was kept, once, for `layer`."""
        self.check(layer)
        with self._lock:
            kept, self.kept = self.kept, None
        return self._check_kept(kept)

    def check(self, layer: Layer) -> None:
        """Raises for another layer's tape, and for one of old parameters."""
        check_tape(self, layer)
        if self.versions != self._versions():
            raise ValueError("tape is old: the parameters have changed since forward made this tape; run forward again")

    def look(self, layer: Layer) -> Any:
        """What was kept, for `layer`, to be read only: the tape is not used up."""
        check_tape(self, layer)
        return self._check_kept(self.kept)

    @staticmethod
    def _check_kept(kept: Any) -> Any:
        if kept is None:
            raise ValueError("tape has been used by an earlier backward; run forward again")
        return kept


def check_tape(tape: Any, layer: Layer) -> Tape:
    """`tape`, if it is one, and of this layer."""
    if not isinstance(tape, Tape):
        raise TypeError(f"tape is {type(tape).__name__}, expected what forward returned")
    if tape.layer is not layer:
        raise ValueError("tape comes from another layer's forward; pass the one that this layer's forward returned")
    return tape
