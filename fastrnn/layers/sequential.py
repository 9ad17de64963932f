"""Layers one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_indices, check_size
from ..sampling import check_temperature, draw
from .dropout import Dropout
from .embedding import Embedding
from .layer import Layer, Tape, check_tape
from .linear import Linear
from .recurrent import Embedded, Recurrent
from .store import Store

# A table holds U x + b for every row of the embedding: worth it while a call looks up more rows than there are, and for
# small vocabularies always (it is kept until the weights change).
SMALL_VOCABULARY = 1024


class Sequential(Layer):
    """Layers applied in order. Parameters are named as PyTorch's `nn.Sequential` names them: "0.weight".

    If any layer is recurrent, calls take and return a tuple of states, one for each recurrent layer in order; if
    none is, they return `y`, `(y, tape)` and `dx`.

    An `Embedding` directly before a recurrent layer is never looked up: U x is computed once for every row of the
    embedding, and a step copies a row of that table. The numbers are the same, bit for bit. (It is looked up where the
    recurrent layer has `input_dropout`, in training: each sequence has its own mask of the vectors.)

    >>> import fastrnn as fr, numpy as np
    >>> model = fr.Sequential(fr.Embedding(10, 4), fr.LSTM(4, 8), fr.Linear(8, 10))
    >>> ids = np.array([[1, 2], [3, 4], [5, 6]])       # T, B
    >>> logits, state = model(ids)
    >>> logits.shape, [s.shape for s in state[0]]
    ((3, 2, 10), [(1, 2, 8), (1, 2, 8)])
    >>> logits, state, tape = model.forward(ids, state)
    >>> dx, dstate = model.backward(tape, np.ones_like(logits))
    """

    def __init__(self, *layers: Layer) -> None:
        if not layers:
            raise ValueError("there are no layers, expected at least one")
        for k, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(f"layers[{k}] is {type(layer).__name__}, expected a layer")
            if any(layer is other for other in layers[:k]):
                raise ValueError(f"layers[{k}] is in the list twice; its tape and gradients would be mixed up")
        self.layers = layers
        self._count = sum(layer.recurrent for layer in layers)
        self.recurrent = self._count > 0
        self.takes_lengths = any(layer.takes_lengths for layer in layers)
        self.takes_segments = any(layer.takes_segments for layer in layers)
        # Each layer with the recurrent one that it may hand its indices to, as they are.
        self._pairs: list[tuple[Any, Recurrent | None]] = [
            (a, b if isinstance(a, Embedding) and isinstance(b, Recurrent) and a.dtype == b.dtype else None)
            for a, b in zip(layers, (*layers[1:], None), strict=True)
        ]
        stores: dict[str, Store] = {}
        for k, layer in enumerate(layers):
            stores.update({f"{k}.{prefix}": store for prefix, store in layer._stores.items()})
        super().__init__(stores)

    def parts(self) -> list[Layer]:
        """The layers in order, those of a Sequential within it too."""
        return [part for layer in self.layers for part in layer.parts()]

    def generators(self) -> list[np.random.Generator]:
        return [g for layer in self.layers for g in layer.generators()]

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> Any:
        """`y, state`, or `y` if no layer has a state. `lengths` goes to every layer that takes lengths."""
        states = self._given("state", state, lengths)
        final: list[Any] = []
        for layer, reader in self._pairs:
            if reader is not None and (handed := self._handed(layer, reader, x, False)) is not None:
                x = handed
                continue
            more = {"lengths": lengths} if lengths is not None and layer.takes_lengths else {}
            if layer.recurrent:
                x, one = layer(x, states[len(final)], **more)
                final.append(one)
            else:
                x = layer(x, **more)
        return (x, tuple(final)) if self.recurrent else x

    def forward(self, x: Any, state: Any = None, lengths: Any = None, segments: int | str | None = None) -> Any:
        """`y, state, tape`, or `y, tape` if no layer has a state. `segments` goes to every recurrent layer: see
        `LSTM.forward`.
        """
        states = self._given("state", state, lengths, segments)
        final: list[Any] = []
        kept: list[Any] = []
        with self.drawing():
            for layer, reader in self._pairs:
                if reader is not None and (handed := self._handed(layer, reader, x, True)) is not None:
                    x = handed
                    kept.append(None)
                    continue
                more = {"lengths": lengths} if lengths is not None and layer.takes_lengths else {}
                if segments is not None and layer.takes_segments:
                    more["segments"] = segments
                if layer.recurrent:
                    x, one, tape = layer.forward(x, states[len(final)], **more)
                    final.append(one)
                else:
                    x, tape = layer.forward(x, **more)
                kept.append(tape)
        tape = Tape(self, np.shape(x), kept)
        return (x, tuple(final), tape) if self.recurrent else (x, tape)

    def backward(self, tape: Tape, dy: Any, dstate: Any = None) -> Any:
        """`dx, dstate`, or `dx`; adds into `grads`."""
        check_tape(tape, self).check(self)
        states = self._states("dstate", dstate)
        self._check_states(tape, states)
        kept, out = tape.look(self), []
        for layer, one in zip(reversed(self.layers), reversed(kept), strict=True):
            if one is None:  # an embedding whose gradient the recurrent layer has added
                continue
            if layer.recurrent:
                dy, d = layer.backward(one, dy, states.pop())  # type: ignore[attr-defined]
                out.append(d)
            else:
                dy = layer.backward(one, dy)  # type: ignore[attr-defined]
            # The last layer has looked at dy, and used up its own tape: from here on nothing can be wrong.
            tape.kept = None
        return (dy, tuple(reversed(out))) if self.recurrent else dy

    def _check_states(self, tape: Tape, states: list[Any]) -> None:
        """Raises what some layer's `backward` would raise for its dstate, before any of them has added a gradient."""
        parts = [pair for pair in zip(self.layers, tape.look(self), strict=True) if pair[0].recurrent]
        for (layer, one), dstate in zip(parts, states, strict=True):
            if isinstance(layer, Sequential):
                layer._check_states(one, layer._states("dstate", dstate))
            else:
                layer._state("dstate", dstate, one.shape[1])  # type: ignore[attr-defined]

    def intermediates(self, tape: Tape) -> dict[str, np.ndarray]:
        """Those of every recurrent layer, named as the parameters: "1.f_l0". See `LSTM.intermediates`."""
        named: dict[str, np.ndarray] = {}
        for k, (layer, one) in enumerate(zip(self.layers, check_tape(tape, self).look(self), strict=True)):
            if isinstance(layer, Recurrent | Sequential):
                named.update({f"{k}.{name}": a for name, a in layer.intermediates(one).items()})
        return named

    def write(
        self,
        ids: Any,
        count: int,
        state: Any = None,
        temperature: float = 1.0,
        rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, Any]:
        """What a language model writes: `(count, B)` int64 indices, and the state before the last of them is read.

        The model takes indices (T, B) and gives logits (T, B, V) of the next ones. Each row goes on by itself.

        ids : (B,), the first input of each row
        state : as in a call
        temperature : an index is drawn from softmax(logits / temperature); with 0 it is the most likely one
        rng : where count times B uniform numbers are drawn from, in the order of the result; None for a new one

        An [embedding,] one recurrent layer or stack and a linear layer write without Python between the characters,
        the rows divided among the threads, or with few rows each character's units. `ValueError` if logits are not
        finite.

        >>> import fastrnn as fr, numpy as np
        >>> model = fr.Sequential(fr.Embedding(10, 4, seed=0), fr.LSTM(4, 8, seed=0), fr.Linear(8, 10, seed=0))
        >>> ids, state = model.write([3, 7], 20, rng=np.random.default_rng(0))
        >>> ids.shape, [s.shape for s in state[0]]
        ((20, 2), [(1, 2, 8), (1, 2, 8)])
        """
        check_temperature(temperature)
        count = check_size("count", count, least=0)
        if not self.recurrent:
            raise TypeError("no layer has a state: the model cannot write")
        layers: list[Any] = [layer for layer in self.parts() if not isinstance(layer, Dropout)]
        first = check_indices("ids", ids, layers[0].width or 0, "V")
        if first.ndim != 1:
            raise ValueError(f"ids has shape {first.shape}, expected (B,)")
        uniforms = (np.random.default_rng() if rng is None else rng).random((count, len(first)))
        if (written := self._write(layers, first, state, uniforms, float(temperature))) is not None:
            return written
        out = np.empty(uniforms.shape, np.int64)
        for n, row in enumerate(uniforms):
            logits, state = self(first[None], state)
            out[n] = [draw(one, temperature, uniform) for one, uniform in zip(logits[0], row, strict=True)]
            first = out[n]
        return out, state

    def _write(
        self, layers: list[Any], ids: np.ndarray, state: Any, uniforms: np.ndarray, temperature: float
    ) -> tuple[Any, Any] | None:
        """By one kernel; None for models that it cannot serve."""
        embedding = layers.pop(0) if isinstance(layers[0], Embedding) else None
        if len(layers) != 2 or not isinstance(layers[0], Recurrent) or type(layers[1]) is not Linear:
            return None
        recurrent, linear = layers
        inputs, dtype = (
            (recurrent.input_size, recurrent.dtype) if embedding is None else (embedding.num, embedding.dtype)
        )
        if not uniforms.size or linear.out_features > inputs or {dtype, linear.dtype} != {recurrent.dtype}:
            return None
        (given,) = self._states("state", state)
        states = recurrent._state("state", given, len(ids))
        if states is None:
            shape = recurrent.num_layers, len(ids), recurrent.hidden_size
            states = tuple(np.zeros(shape, dtype) for _ in range(recurrent.states))
        else:
            states = tuple(s.copy() for s in states)
        if (written := recurrent.write(embedding, linear, ids, states, uniforms, temperature)) is None:
            return None
        out, finite = written
        if not finite:
            raise ValueError("the model's output is not finite: its training has diverged")
        return out, (states if recurrent.states > 1 else states[0],)

    def _handed(self, layer: Embedding, reader: Recurrent, x: Any, training: bool) -> Embedded | None:
        """The indices, if `reader` takes them as they are; None if it reads the vectors that they stand for."""
        if training and reader.input_dropout:
            return None
        ids = layer.check(x)
        return Embedded(ids, layer) if layer.num <= max(SMALL_VOCABULARY, ids.size) else None

    def _given(self, name: str, state: Any, lengths: Any, segments: Any = None) -> list[Any]:
        """The state of each recurrent layer, when there are layers for all that was passed."""
        states = self._states(name, state)
        if lengths is not None and not self.takes_lengths:
            raise TypeError("lengths was passed, but no layer takes lengths")
        if segments is not None and not self.takes_segments:
            raise TypeError("segments was passed, but no layer is recurrent")
        return states

    def _states(self, name: str, given: Any) -> list[Any]:
        count = self._count
        if given is None:
            return [None] * count
        if not self.recurrent:
            raise TypeError(f"{name} was passed, but no layer has a state")
        if not isinstance(given, tuple | list) or len(given) != count:
            got = f"{len(given)} entries" if isinstance(given, tuple | list) else type(given).__name__
            raise TypeError(f"{name} has {got}, expected a tuple with one state for each of {count} recurrent layers")
        return list(given)
