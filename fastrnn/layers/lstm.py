"""The LSTM layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import lstm as kernels
from ..simd.target import COLS, lanes
from ..threads import launch, workers_for
from . import buffers
from .products import Panels, add_gradient, multiply
from .recurrent import Kept, Recurrent

PEEPHOLES = (None, "diagonal")


class LSTM(Recurrent):
    """Long short-term memory, any number of layers.

        i, f, o = sigmoid(U x + W h' + b (+ p c))      g = tanh(U x + W h' + b)
        c = f c' + i g                                 h = o tanh(c)

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins 2000; with
    peephole="diagonal" i and f see c', o sees c (Graves 2013, equations 7 to 11).

    Parameters as PyTorch's `nn.LSTM`, gates in the order i f g o: `weight_ih_l0` (4H, I), `weight_hh_l0` (4H, H),
    `bias_ih_l0`, `bias_hh_l0` (4H,), and with peepholes `weight_peep_l0` (3, H), rows i f o. All start uniform in
    +-1 / sqrt(H).

    >>> import fastrnn as fr, numpy as np
    >>> lstm = fr.LSTM(3, 5, seed=0)
    >>> x = np.zeros((7, 2, 3), np.float32)            # T, B, I
    >>> y, (h, c) = lstm(x)
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    >>> y, state, tape = lstm.forward(x)
    >>> dx, (dh, dc) = lstm.backward(tape, np.ones_like(y))
    >>> dx.shape, lstm.grads["weight_hh_l0"].shape
    ((7, 2, 3), (20, 5))
    """

    gates = 4
    states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        peephole: str | None = None,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        if peephole == "full":
            raise NotImplementedError("peephole='full' is not available yet; there are None and 'diagonal'")
        if peephole not in PEEPHOLES:
            raise ValueError(f"peephole is {peephole!r}, expected None or 'diagonal'")
        self.peephole = peephole
        extra = [("weight_peep", (3, hidden_size))] if peephole else []
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed, extra
        )
        self._flags = (kernels.PEEPHOLE if peephole else 0) | (kernels.BIAS if self.bias else 0)
        self._block = 64 // self.dtype.itemsize
        self._blocks = -(-self.hidden_size // self._block)
        self._panels = self._blocks * (self._block // lanes(self.dtype))

    def init_forget_bias(self, value: float = 1.0) -> None:
        """Sets the forget gate's bias, so that a new network remembers (Gers et al. 2000; Jozefowicz et al. 2015)."""
        if not self.bias:
            raise ValueError("this layer has bias=False; there is no forget bias to set")
        h = self.hidden_size
        for layer in range(self.num_layers):
            for name, b in (("bias_ih", value), ("bias_hh", 0.0)):
                new = self.params[f"{name}_l{layer}"].copy()
                new[h : 2 * h] = b
                self.params[f"{name}_l{layer}"] = new

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        if self._quick is not None and lengths is None:
            # One small step, for streams: compiled code looks at the types and shapes. Whatever it does not take goes
            # the long way below, to be converted, or refused with a reason.
            try:
                if len(x) == 1:
                    h0, c0 = state
                    version, packed = self._ready
                    out = np.empty((3, *h0.shape), self.dtype)
                    if version == self.store.version and self._quick(x, h0, c0, packed, self._flags, out):
                        y, h, c = out
                        return y, (h, c)
            except (TypeError, ValueError, AttributeError):
                pass
        return super().__call__(x, state, lengths)

    __call__.__doc__ = Recurrent.__call__.__doc__

    def _compile_step(self, packed: np.ndarray) -> Any:
        a = np.empty((1, 1, 1), self.dtype)
        return kernels.lstm_step.for_types(a, a, a, packed, 0, np.empty((3, 1, 1, 1), self.dtype))

    def _run(
        self,
        layer: int,
        steps: int,
        batch: int,
        x: np.ndarray | None,
        ids: np.ndarray,
        table: np.ndarray,
        start: tuple[np.ndarray, ...] | None,
        training: bool,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
        """One layer, forward: h (T + 1, B, H) from the initial state on, the final state, what backward reads."""
        hidden, empty = self.hidden_size, self._empty
        i_size = 0 if x is None else x.shape[2]
        h = buffers.empty((steps + 1, batch, hidden), self.dtype)
        c = buffers.empty((steps + 1 if training else 1, batch, hidden), self.dtype)
        h[0], c[0] = start or (0, 0)
        flags = self._flags & kernels.PEEPHOLE
        gates = empty
        if training:
            gates = buffers.empty(self._blocks * steps * batch * 4 * self._block, self.dtype)
            flags |= kernels.TRAINING
        if x is None:
            flags |= kernels.INDEXED
        share = self._share(steps, batch, i_size, self._panels)
        if share.by_rows:
            flags |= kernels.BY_ROWS
        version = self.store.version
        packed = self.store.made((layer, i_size), lambda: self._pack(layer, i_size))
        if steps == 1 and layer == 0 and x is not None and not training:
            self._make_ready(version, packed)
        work = 4.0 * steps * batch * hidden * (i_size + hidden)
        launch(
            kernels.lstm_forward, share.workers, 1, work,
            steps, batch, i_size, hidden, flags, share.pieces,
            empty if x is None else x.reshape(-1), ids.reshape(-1), table.reshape(-1), packed,
            h.reshape(-1), c.reshape(-1), gates,
        )  # fmt: skip
        return h, (h[-1], c[-1]), (h, c, gates) if training else ()

    def _back(
        self, layer: int, steps: int, batch: int, kept: Kept, dy: np.ndarray | None, dstate: tuple[np.ndarray, ...]
    ) -> np.ndarray | None:
        """One layer, backward: dx; `dstate` (dh, dc) goes from the final to the initial state."""
        h, c, gates = kept.run
        hidden, empty = self.hidden_size, self._empty
        grad = self.store.grad
        flags = self._flags | (kernels.DY if dy is not None else 0)
        dtable = empty
        if kept.x is None:
            flags |= kernels.INDEXED
            vocab = self.input_size if kept.embedding is None else kept.embedding.num
            dtable = np.zeros((vocab, 4 * hidden), self.dtype)
        share = self._share(steps, batch, 0, -(-self._panels // COLS))
        if share.by_rows:
            flags |= kernels.BY_ROWS
        dbias = np.zeros(4 * hidden, self.dtype) if self.bias else empty
        dpeep = grad(f"weight_peep_l{layer}").reshape(-1) if self.peephole else empty
        dh, dc = dstate
        wt = self.store.made((layer, "w"), lambda: self._pack_backward(layer, "weight_hh", self.peephole))
        launch(
            kernels.lstm_backward, share.workers, 2, 4.0 * steps * batch * hidden * hidden,
            steps, batch, hidden, flags, share.pieces,
            empty if dy is None else dy.reshape(-1), kept.ids.reshape(-1), wt, c.reshape(-1), gates,
            dc.reshape(-1), dh.reshape(-1), dtable.reshape(-1), dbias, dpeep,
        )  # fmt: skip
        if self.bias:
            grad(f"bias_ih_l{layer}")[:] += dbias
            grad(f"bias_hh_l{layer}")[:] += dbias
        rows = steps * batch
        panels = Panels(rows, 4, hidden, self._block)
        add_gradient(grad(f"weight_hh_l{layer}"), h[:-1].reshape(rows, hidden), gates, panels)
        if kept.x is None:
            self._table_backward(dtable, kept.embedding)
            return None
        i_size = kept.x.shape[2]
        add_gradient(grad(f"weight_ih_l{layer}"), kept.x.reshape(rows, i_size), gates, panels)
        ut = self.store.made((layer, "u"), lambda: self._pack_backward(layer, "weight_ih", None))
        return multiply(gates, ut, i_size, empty, panels).reshape(kept.x.shape)

    def _pack(self, layer: int, i_size: int) -> np.ndarray:
        hidden, w, empty = self.hidden_size, lanes(self.dtype), self._empty
        b_ih, b_hh = (self._flat[f"{b}_l{layer}"] if self.bias else empty for b in ("bias_ih", "bias_hh"))
        p = self._flat[f"weight_peep_l{layer}"] if self.peephole else empty
        packed = buffers.aligned(self._panels * (kernels.HEAD + 4 * (i_size + hidden)) * w, self.dtype)
        work = 8.0 * packed.size
        launch(
            kernels.lstm_pack, workers_for(work, self._panels), 1, work,
            i_size, hidden, self._flags, self._flat[f"weight_ih_l{layer}"], self._flat[f"weight_hh_l{layer}"],
            b_ih, b_hh, p, packed,
        )  # fmt: skip
        return packed

    def _pack_backward(self, layer: int, name: str, peephole: str | None) -> np.ndarray:
        hidden, w = self.hidden_size, lanes(self.dtype)
        source = self._flat[f"{name}_l{layer}"]
        columns = source.size // (4 * hidden)
        p = self._flat[f"weight_peep_l{layer}"] if peephole else self._empty
        head = 3 * w * self._panels if peephole else 0
        vectors = self._panels if name == "weight_hh" else -(-columns // w)
        packed = buffers.aligned(head + self._blocks * 4 * self._block * vectors * w, self.dtype)
        work = 4.0 * packed.size
        items = -(-vectors // COLS) * self._blocks
        flags = kernels.PEEPHOLE if peephole else 0
        launch(
            kernels.lstm_pack_backward,
            workers_for(work, items),
            1,
            work,
            hidden,
            columns,
            vectors,
            flags,
            source,
            p,
            packed,
        )
        return packed
