"""The vanilla RNN layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels import rnn as kernels
from ..simd.target import COLS, lanes
from ..threads import launch, workers_for
from . import buffers
from .products import add_column_sums, add_gradient, multiply, pack
from .recurrent import Kept, Recurrent


class RNN(Recurrent):
    """The vanilla recurrent network, any number of layers.

        h = F(U x + W h' + b)          F: "tanh", "relu", "sigmoid" or "identity"

    Elman 1990. Parameters as PyTorch's `nn.RNN`: `weight_ih_l0` (H, I), `weight_hh_l0` (H, H), `bias_ih_l0`,
    `bias_hh_l0` (H,). All start uniform in +-1 / sqrt(H).

    >>> import fastrnn as fr, numpy as np
    >>> rnn = fr.RNN(3, 5, nonlinearity="relu", seed=0)
    >>> x = np.zeros((7, 2, 3), np.float32)            # T, B, I
    >>> y, h = rnn(x)
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    >>> y, h, tape = rnn.forward(x)
    >>> dx, dh = rnn.backward(tape, np.ones_like(y))
    >>> dx.shape, rnn.grads["weight_hh_l0"].shape
    ((7, 2, 3), (5, 5))
    """

    gates = 1
    states = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: Any = "float32",
        seed: int | None = None,
    ) -> None:
        if nonlinearity not in kernels.NONLINEARITIES:
            known = ", ".join(map(repr, kernels.NONLINEARITIES))
            raise ValueError(f"nonlinearity is {nonlinearity!r}, expected one of {known}")
        self.nonlinearity = nonlinearity
        self._number = kernels.NONLINEARITIES.index(nonlinearity)
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed)
        self._panels = -(-self.hidden_size // (COLS * lanes(self.dtype)))

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        if self._quick is not None and lengths is None:
            try:  # see LSTM.__call__
                if len(x) == 1:
                    version, packed = self._ready
                    out = np.empty((2, *state.shape), self.dtype)
                    if version == self.store.version and self._quick(x, state, packed, self._number, out):
                        y, h = out
                        return y, h
            except (TypeError, ValueError, AttributeError):
                pass
        return super().__call__(x, state, lengths)

    __call__.__doc__ = Recurrent.__call__.__doc__

    def _compile_step(self, packed: np.ndarray) -> Any:
        a = np.empty((1, 1, 1), self.dtype)
        return kernels.rnn_step.for_types(a, a, packed, 0, np.empty((2, 1, 1, 1), self.dtype))

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
        h[0] = start[0] if start else 0
        share = self._share(steps, batch, i_size, self._panels)
        flags = (kernels.INDEXED if x is None else 0) | (kernels.BY_ROWS if share.by_rows else 0)
        version = self.store.version
        packed = self.store.made((layer, i_size), lambda: self._pack(layer, i_size))
        if steps == 1 and layer == 0 and x is not None and not training:
            self._make_ready(version, packed)
        launch(
            kernels.rnn_forward, share.workers, 1, float(steps) * batch * hidden * (i_size + hidden),
            steps, batch, i_size, hidden, flags, self._number, share.pieces,
            empty if x is None else x.reshape(-1), ids.reshape(-1), table.reshape(-1), packed, h.reshape(-1),
        )  # fmt: skip
        return h, (h[-1],), (h,)

    def _back(
        self, layer: int, steps: int, batch: int, kept: Kept, dy: np.ndarray | None, dstate: tuple[np.ndarray, ...]
    ) -> np.ndarray | None:
        """One layer, backward: dx; `dstate` (dh,) goes from the final to the initial state."""
        (h,) = kept.run
        hidden, empty = self.hidden_size, self._empty
        grad = self.store.grad
        share = self._share(steps, batch, 0, self._panels)
        flags = (kernels.DY if dy is not None else 0) | (kernels.BY_ROWS if share.by_rows else 0)
        dtable = empty
        if kept.x is None:
            flags |= kernels.INDEXED
            vocab = self.input_size if kept.embedding is None else kept.embedding.num
            dtable = np.zeros((vocab, hidden), self.dtype)
        dz = buffers.empty((steps * batch, hidden), self.dtype)
        wt = self.store.made((layer, "w"), lambda: pack(hidden, hidden, self._flat[f"weight_hh_l{layer}"], False))
        launch(
            kernels.rnn_backward, share.workers, 2, float(steps) * batch * hidden * hidden,
            steps, batch, hidden, flags, self._number, share.pieces,
            empty if dy is None else dy.reshape(-1), kept.ids.reshape(-1), wt, h.reshape(-1), dz.reshape(-1),
            dstate[0].reshape(-1), dtable.reshape(-1),
        )  # fmt: skip
        if self.bias:
            dbias = np.zeros(hidden, self.dtype)
            add_column_sums(dbias, dz)
            grad(f"bias_ih_l{layer}")[:] += dbias
            grad(f"bias_hh_l{layer}")[:] += dbias
        add_gradient(grad(f"weight_hh_l{layer}"), h[:-1].reshape(-1, hidden), dz)
        if kept.x is None:
            self._table_backward(dtable, kept.embedding)
            return None
        i_size = kept.x.shape[2]
        add_gradient(grad(f"weight_ih_l{layer}"), kept.x.reshape(-1, i_size), dz)
        ut = self.store.made((layer, "u"), lambda: pack(hidden, i_size, self._flat[f"weight_ih_l{layer}"], False))
        return multiply(dz, ut, i_size, empty).reshape(kept.x.shape)

    def _pack(self, layer: int, i_size: int) -> np.ndarray:
        hidden, w, empty = self.hidden_size, lanes(self.dtype), self._empty
        b_ih, b_hh = (self._flat[f"{b}_l{layer}"] if self.bias else empty for b in ("bias_ih", "bias_hh"))
        packed = buffers.aligned(-(-hidden // w) * w * (1 + i_size + hidden), self.dtype)
        work = 8.0 * packed.size
        launch(
            kernels.rnn_pack, workers_for(work, self._panels), 1, work,
            i_size, hidden, self._flat[f"weight_ih_l{layer}"], self._flat[f"weight_hh_l{layer}"], b_ih, b_hh, packed,
        )  # fmt: skip
        return packed
