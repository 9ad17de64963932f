"""Stacks of recurrent layers: what RNN and LSTM share above their kernels.

A cell's own file says how one layer of it runs; here are the arguments, the stacking, the dropout between layers, and
the products over all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba.core import config

from ..simd.target import ROWS
from ..threads import workers_for
from .layer import (
    Layer,
    Tape,
    check_array,
    check_dtype,
    check_indices,
    check_probability,
    check_size,
    check_tape,
)
from .products import add_gradient, multiply, pack
from .store import Store

NO_IDS = np.empty((0, 0), np.int64)


class Embedded(NamedTuple):
    """Indices with the vectors that they stand for: `Sequential` passes them to a recurrent layer as they are."""

    ids: np.ndarray  # (T, B) int64
    embedding: Any  # Embedding


class Share(NamedTuple):
    """How the work of one layer is divided."""

    workers: int
    by_rows: bool
    pieces: int


class Kept(NamedTuple):
    """One layer's part of a tape."""

    x: np.ndarray | None  # (T, B, I)
    ids: np.ndarray  # (T, B), or empty
    embedding: Any  # Embedding or None
    mask: np.ndarray | None  # what x was multiplied by (dropout)
    run: tuple[np.ndarray, ...]  # the cell's own


class Recurrent(Layer):
    """The base of RNN and LSTM."""

    recurrent = True
    gates: int  # rows of weight_ih in units of H
    states: int  # 1: h; 2: (h, c)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: Any,
        seed: int | None,
        extra: Sequence[tuple[str, tuple[int, ...]]] = (),
    ) -> None:
        if bidirectional:
            raise NotImplementedError("bidirectional=True is not available yet; run a second layer over x[::-1]")
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = h = check_size("hidden_size", hidden_size)
        self.num_layers = check_size("num_layers", num_layers)
        self.bias, self.batch_first = bool(bias), bool(batch_first)
        self.dropout = check_probability("dropout", dropout)
        self.dtype = check_dtype(dtype)
        self.rng = np.random.default_rng(seed)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            shapes[f"weight_ih_l{layer}"] = (self.gates * h, self.input_size if layer == 0 else h)
            shapes[f"weight_hh_l{layer}"] = (self.gates * h, h)
            if self.bias:
                shapes[f"bias_ih_l{layer}"] = shapes[f"bias_hh_l{layer}"] = (self.gates * h,)
            for name, shape in extra:
                shapes[f"{name}_l{layer}"] = shape
        self.store = Store(shapes, self.dtype)
        super().__init__({"": self.store})
        bound = 1 / math.sqrt(h)
        self.store.assign({name: self.rng.uniform(-bound, bound, shape) for name, shape in shapes.items()})
        self._empty = np.empty(0, self.dtype)
        self._quick: Any = None  # the compiled step, once a step has been made
        self._ready: tuple[int, Any] = (-1, None)  # packed weights for it, and the version that they were made from
        self._flat = {name: self._read(name) for name in shapes}

    def _read(self, name: str) -> np.ndarray:
        """Parameter `name`, flat, as kernels take it."""
        return self.store._values[self.store._where[name]]

    def generators(self) -> list[np.random.Generator]:
        return [self.rng] if self.dropout else []

    def init_orthogonal(self) -> None:
        """Makes the recurrent matrix of each gate orthogonal (Saxe, McClelland and Ganguli 2014)."""
        for layer in range(self.num_layers):
            parts = []
            for _ in range(self.gates):
                q, r = np.linalg.qr(self.rng.standard_normal((self.hidden_size, self.hidden_size)))
                parts.append(q * np.sign(np.diag(r)))
            self.params[f"weight_hh_l{layer}"] = np.concatenate(parts)

    # -- calls ------------------------------------------------------------------------------------------

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        """Inference: `y, state`; nothing is kept.

        x : (T, B, I), or (B, T, I) with batch_first; or integers (T, B), which stand for one-hot rows
        state : h (L, B, H), for an LSTM (h, c); zeros if None
        y : (T, B, H), or (B, T, H) with batch_first
        """
        y, final, _ = self._forward(x, state, lengths, training=False)
        return y, final

    def forward(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any, Tape]:
        """Training: `y, state, tape`; the tape is what `backward` needs. `y` is read-only: the tape refers to it.

        x is referred to as well: leave it as it is until `backward`.
        """
        y, final, tape = self._forward(x, state, lengths, training=True)
        y.flags.writeable = False
        return y, final, tape

    def _forward(self, x: Any, state: Any, lengths: Any, training: bool) -> tuple[np.ndarray, Any, Any]:
        if lengths is not None:
            raise NotImplementedError("lengths is not available yet; pass sequences of one length")
        x, ids, embedding = self._input(x)
        steps, batch = (ids if x is None else x).shape[:2]
        first = self._state("state", state, batch)
        final = tuple(np.empty((self.num_layers, batch, self.hidden_size), self.dtype) for _ in range(self.states))
        kept = []
        for layer in range(self.num_layers):
            mask = None
            if training and layer and self.dropout:
                mask = self.mask(x.shape)
                x = x * mask
            table = self._empty if x is not None else self._table(ids, embedding)
            start = None if first is None else tuple(s[layer] for s in first)
            h, end, run = self._run(layer, steps, batch, x, ids, table, start, training)
            for s, e in zip(final, end, strict=True):
                s[layer] = e
            kept.append(Kept(x, ids, embedding, mask, run))
            x, ids, embedding = h[1:], NO_IDS, None
        y = x.swapaxes(0, 1).copy() if self.batch_first else x[:]
        tape = Tape(self, (steps, batch), kept) if training else None
        return y, final if self.states > 1 else final[0], tape

    def mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """Dropout: 0 with probability `dropout`, else 1 / (1 - dropout)."""
        return (self.rng.random(shape, np.float32) >= self.dropout).astype(self.dtype) / (1 - self.dropout)

    def backward(self, tape: Tape, dy: Any, dstate: Any = None) -> tuple[np.ndarray | None, Any]:
        """`dx, dstate`, and adds the gradients of all parameters into `grads`.

        dy : the gradient of y, in its shape; None for zero
        dstate : the gradient of the final state, in its structure; None for zero
        returns : the gradient of x (None for integers) and that of the initial state

        Backpropagation through time (Werbos 1990). The tape is used up.
        """
        steps, batch = check_tape(tape).shape
        if dy is not None:
            if self.batch_first:
                dy = check_array("dy", dy, self.dtype, "B T H", {"B": batch, "T": steps, "H": self.hidden_size})
                dy = dy.swapaxes(0, 1).copy()
            else:
                dy = check_array("dy", dy, self.dtype, "T B H", {"T": steps, "B": batch, "H": self.hidden_size})
        given = self._state("dstate", dstate, batch)
        shape = (self.num_layers, batch, self.hidden_size)
        d = tuple(np.zeros(shape, self.dtype) if given is None else given[k].copy() for k in range(self.states))
        kept = tape.open(self)
        with self.store._lock:  # gradients of two threads are added one after the other
            for layer in reversed(range(self.num_layers)):
                one = kept.pop()
                dy = self._back(layer, steps, batch, one, dy, tuple(s[layer] for s in d))
                if one.mask is not None:
                    dy *= one.mask
        if dy is not None and self.batch_first:
            dy = dy.swapaxes(0, 1).copy()
        return dy, d if self.states > 1 else d[0]

    # -- arguments --------------------------------------------------------------------------------------

    def _input(self, x: Any) -> tuple[np.ndarray | None, np.ndarray, Any]:
        """(x, ids, embedding): dense steps or indices, time-major."""
        if isinstance(x, Embedded):
            if self.input_size != x.embedding.dim:
                raise ValueError(f"the embedding has dim={x.embedding.dim}, expected I={self.input_size}")
            ids, embedding = x
        elif isinstance(x, np.ndarray) and x.dtype.kind in "iu":
            ids, embedding = check_indices("x", x, self.input_size, "I"), None
        else:
            letters = "B T I" if self.batch_first else "T B I"
            x = check_array("x", x, self.dtype, letters, {"I": self.input_size})
            if self.batch_first:
                x = x.swapaxes(0, 1).copy()
            if not x.shape[0]:
                raise ValueError(f"x has shape {x.shape}, expected at least one step (T from 1)")
            return x, NO_IDS, None
        if ids.ndim != 2 or not ids.shape[1 if self.batch_first else 0]:
            letters = "(B, T)" if self.batch_first else "(T, B)"
            raise ValueError(f"x has shape {ids.shape}, expected indices {letters} with T from 1, or floats with I")
        return None, ids.T.copy() if self.batch_first else ids, embedding

    def _state(self, name: str, state: Any, batch: int) -> tuple[np.ndarray, ...] | None:
        if state is None:
            return None
        sizes = {"L": self.num_layers, "B": batch, "H": self.hidden_size}
        if self.states == 1:
            return (check_array(name, state, self.dtype, "L B H", sizes),)
        if not isinstance(state, tuple | list) or len(state) != self.states:
            raise TypeError(f"{name} is {type(state).__name__}, expected a pair (h, c)")
        return tuple(check_array(f"{name}[{k}]", s, self.dtype, "L B H", sizes) for k, s in enumerate(state))

    def _make_ready(self, version: int, packed: np.ndarray) -> None:
        """Lets later steps take the quick way, as long as the parameters are of this version."""
        if self.num_layers > 1 or self.batch_first or config.DISABLE_JIT:
            return
        self._ready = (version, packed)
        if self._quick is None:
            self._quick = self._compile_step(packed)

    # -- what cells call ----------------------------------------------------------------------------------

    def _share(self, steps: int, batch: int, i_size: int, panels: int) -> Share:
        """Who computes what. Results do not depend on it."""
        depth = i_size + self.hidden_size
        work = self.gates * self.hidden_size * depth * batch
        workers = workers_for(work * steps, panels * batch)
        if workers == 1:
            return Share(1, True, 1)
        # Rows need no waiting at each step, but every worker then streams all weights: they must stay in its cache.
        small = self.gates * self.hidden_size * depth * self.dtype.itemsize <= 1 << 19
        if batch >= workers and (panels == 1 or (small and batch >= 2 * workers)):
            return Share(workers, True, workers)
        pieces = 1
        while panels * pieces < 4 * workers and batch >= 2 * pieces * ROWS:
            pieces *= 2
        return Share(workers, False, pieces)

    def _table(self, ids: np.ndarray, embedding: Any) -> np.ndarray:
        """(V, G H): U x + b for every input x that an index can stand for."""
        held = self.store.made("table", list)
        source = (None, 0) if embedding is None else (embedding.store, embedding.store.version)
        for of, table in held:
            if of[0] is source[0] and of[1] == source[1]:
                return table
        u = self._flat["weight_ih_l0"]
        if embedding is None:
            table = np.ascontiguousarray(u.reshape(-1, self.input_size).T)
            if self.bias:
                table += self._bias()
        else:
            rows = self.gates * self.hidden_size
            packed = pack(self.input_size, rows, u, transposed=True)
            bias = self._bias() if self.bias else self._empty
            table = multiply(embedding.flat.reshape(-1, embedding.dim), packed, rows, bias)
        held[:] = [(source, table)]
        return table

    def _bias(self) -> np.ndarray:
        return self._flat["bias_ih_l0"] + self._flat["bias_hh_l0"]

    def _table_backward(self, dtable: np.ndarray, embedding: Any) -> None:
        """Adds the gradient of the table to those of what it was made from (the bias apart)."""
        du = self.store.grad("weight_ih_l0")
        if embedding is None:
            du += dtable.T
            return
        rows = self.gates * self.hidden_size
        weight = embedding.flat.reshape(-1, embedding.dim)
        add_gradient(du, weight, dtable)
        packed = pack(rows, self.input_size, self._flat["weight_ih_l0"], transposed=False)
        embedding.add_grad(multiply(dtable, packed, self.input_size, self._empty))
