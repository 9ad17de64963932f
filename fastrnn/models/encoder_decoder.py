"""From one sequence to another, of another length: an encoder, and a decoder that starts from its final state.

Cho et al. 2014; Sutskever, Vinyals and Le 2014.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..checks import check_array, check_size
from ..layers.layer import Layer, Tape, check_tape
from ..layers.sequential import Sequential

__all__ = ["EncoderDecoder"]


class EncoderDecoder(Layer):
    """Many to many of different lengths: the encoder's final state is the decoder's initial one.

    encoder : a recurrent layer, or a `Sequential` that ends with one; its output is not used
    decoder : a recurrent layer, or a `Sequential` with as many recurrent layers, of the same sizes

    In training the decoder is shown, at each step, what it should have said before ("teacher forcing"): `inputs` is the
    target, one step late, after a start symbol. `generate` feeds it with what it did say.

    Parameters are named as those of a PyTorch module with the attributes `encoder` and `decoder`:
    "encoder.1.weight_ih_l0". The two may share layers, an embedding for instance.

    >>> import fastrnn as fr, numpy as np
    >>> model = fr.EncoderDecoder(
    ...     fr.Sequential(fr.Embedding(20, 4), fr.LSTM(4, 8)),
    ...     fr.Sequential(fr.Embedding(10, 4), fr.LSTM(4, 8), fr.Linear(8, 10)),
    ... )
    >>> source = np.array([[3, 4], [5, 6], [7, 8], [9, 1]])   # T, B
    >>> target = np.array([[2, 3], [4, 5]])                   # another T, the same B
    >>> inputs = np.vstack([np.zeros((1, 2), int), target[:-1]])   # 0 is the start symbol
    >>> logits, tape = model.forward(source, inputs)
    >>> loss, dlogits = fr.cross_entropy(logits, target)
    >>> dsource, dinputs = model.backward(tape, dlogits)      # None, None: indices
    >>> fr.Adam(model).step()
    >>> model.generate(source, start=0, length=5).shape
    (5, 2)
    """

    def __init__(self, encoder: Layer, decoder: Layer) -> None:
        cells = {}
        for name, part in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(part, Layer):
                raise TypeError(f"{name} is {type(part).__name__}, expected a layer")
            cells[name] = list(_cells(part))
            if not cells[name]:
                raise ValueError(f"{name} has no recurrent layer, so no state to pass on")
        if not _last(encoder).recurrent:
            raise ValueError(
                f"encoder ends with {type(_last(encoder)).__name__}, expected a recurrent layer: only its final "
                "state is used, and what comes after would never be trained"
            )
        have, want = [_about(cell) for cell in cells["encoder"]], [_about(cell) for cell in cells["decoder"]]
        if have != want:
            raise ValueError(
                f"the encoder's state is {', '.join(have)}; the decoder's {', '.join(want)}: the one starts the "
                "other, so they must be the same"
            )
        self.encoder, self.decoder = encoder, decoder
        self._batch_first = bool(getattr(cells["decoder"][0], "batch_first", False))
        super().__init__(
            {
                f"{name}.{prefix}": store
                for name, part in (("encoder", encoder), ("decoder", decoder))
                for prefix, store in part._stores.items()
            }
        )

    def generators(self) -> list[np.random.Generator]:
        return self.encoder.generators() + self.decoder.generators()

    def __call__(self, x: Any, inputs: Any, lengths: Any = None, input_lengths: Any = None) -> np.ndarray:
        """The decoder's output y, (T', B, O), with teacher forcing; nothing is kept.

        x : what the encoder takes, (T, B, I) or indices (T, B)
        inputs : what the decoder takes, (T', B, I') or indices (T', B)
        lengths, input_lengths : (B,), the valid steps of each row of x and of inputs; None for all
        """
        _, state = self.encoder(x, **_given(lengths))  # type: ignore[operator]
        y, _ = self.decoder(inputs, self._handed(state), **_given(input_lengths))  # type: ignore[operator]
        return y

    def forward(self, x: Any, inputs: Any, lengths: Any = None, input_lengths: Any = None) -> tuple[np.ndarray, Tape]:
        """`y, tape`, with teacher forcing; arguments as those of a call."""
        with self.drawing():
            _, state, first = self.encoder.forward(x, **_given(lengths))  # type: ignore[attr-defined]
            y, _, second = self.decoder.forward(  # type: ignore[attr-defined]
                inputs, self._handed(state), **_given(input_lengths)
            )
        return y, Tape(self, y.shape, (first, second))

    def backward(self, tape: Tape, dy: Any) -> tuple[Any, Any]:
        """`dx, dinputs` (None for indices), and adds the gradients of both parts into `grads`.

        dy : the gradient of y, in its shape
        """
        shape = check_tape(tape, self).shape
        dy = check_array("dy", dy, self._dtype, "...", {})
        if dy.shape != shape:
            raise ValueError(f"dy has shape {dy.shape}, expected {shape}, that of y")
        first, second = tape.open(self)
        dinputs, dstate = self.decoder.backward(second, dy)  # type: ignore[attr-defined]
        dstate = _shaped(self.encoder, iter(_leaves(self.decoder, dstate)))
        dx, _ = self.encoder.backward(first, None, dstate)  # type: ignore[attr-defined]
        return dx, dinputs

    def generate(self, x: Any, start: int, length: int, end: int | None = None, lengths: Any = None) -> np.ndarray:
        """What the decoder says when it is fed with its own words: the likeliest at each step ("greedy").

        The decoder takes indices and gives logits over them.

        x, lengths : as in a call
        start : the symbol that the decoder begins with
        length : how many steps at most
        end : the symbol that ends a row; after it a row is filled with it, and when all rows have ended, so does the
            result. None for `length` steps.
        returns : indices int64 (T', B), or (B, T') if the decoder has batch_first; T' <= length
        """
        start, length = check_size("start", start, 0), check_size("length", length)
        if end is not None:
            end = check_size("end", end, 0)
        known = self.decoder.parts()[0].width
        for name, symbol in (("start", start), ("end", end)):
            if known is not None and symbol is not None and symbol >= known:
                raise ValueError(f"{name} is {symbol}, expected 0 <= {name} < {known}, a symbol that the decoder takes")
        _, state = self.encoder(x, **_given(lengths))  # type: ignore[operator]
        state = self._handed(state)
        batch = _batch(_leaves(self.decoder, state)[0])
        said, ended = [], np.zeros(batch, bool)
        ids = np.full(batch, start, np.int64)
        for _ in range(length):
            logits, state = self.decoder(ids[:, None] if self._batch_first else ids[None], state)  # type: ignore[operator]
            logits = logits.reshape(batch, -1)
            if not np.isfinite(logits.max(axis=1)).all():
                raise ValueError("the model's output is not finite: its training has diverged")
            ids = logits.argmax(axis=1)
            if end is not None:
                ids[ended] = end
                ended |= ids == end
            said.append(ids)
            if end is not None and ended.all():
                break
        return np.stack(said, axis=1 if self._batch_first else 0)

    @property
    def _dtype(self) -> np.dtype:
        return next(iter(self._stores.values())).dtype

    def _handed(self, state: Any) -> Any:
        """The encoder's final state in the decoder's structure."""
        return _shaped(self.decoder, iter(_leaves(self.encoder, state)))


def _given(lengths: Any) -> dict[str, Any]:
    return {} if lengths is None else {"lengths": lengths}


def _last(layer: Layer) -> Layer:
    return _last(layer.layers[-1]) if isinstance(layer, Sequential) else layer


def _cells(layer: Layer) -> Iterator[Any]:
    """The recurrent layers in it, in the order of their states."""
    if isinstance(layer, Sequential):
        for one in layer.layers:
            yield from _cells(one)
    elif layer.recurrent:
        yield layer


def _about(cell: Any) -> str:
    """The state that a recurrent layer takes, in words."""
    directions = 2 if getattr(cell, "bidirectional", False) else 1
    letters = "h" if cell.states == 1 else "(h, c)"
    return f"{letters} of ({cell.num_layers * directions}, B, {cell.hidden_size}) {cell.dtype}"


def _leaves(layer: Layer, state: Any) -> list[Any]:
    """The states of its recurrent layers: one list, however Sequentials are nested."""
    if not isinstance(layer, Sequential):
        return [state]
    parts = [one for one in layer.layers if one.recurrent]
    return [leaf for one, own in zip(parts, state, strict=True) for leaf in _leaves(one, own)]


def _shaped(layer: Layer, leaves: Iterator[Any]) -> Any:
    """The inverse of `_leaves`."""
    if not isinstance(layer, Sequential):
        return next(leaves)
    return tuple(_shaped(one, leaves) for one in layer.layers if one.recurrent)


def _batch(leaf: Any) -> int:
    return (leaf[0] if isinstance(leaf, tuple) else leaf).shape[1]
