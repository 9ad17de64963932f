"""The vanilla RNN layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_choice, check_flag
from ..kernels import rnn as kernels
from ..simd.target import COLS, lanes
from ..threads import launch, workers_for
from . import buffers
from .products import add_column_sums, add_gradient, multiply, pack
from .recurrent import Recurrent, Run


class RNN(Recurrent):
    """The vanilla recurrent network, any number of layers.

        h = F(U x + W h' + b)          F: "tanh", "relu", "sigmoid" or "identity"

    Elman 1990. Parameters as PyTorch's `nn.RNN`: `weight_ih_l0` (H, I), `weight_hh_l0` (H, H), `bias_ih_l0`,
    `bias_hh_l0` (H,); `_reverse` after it for the second direction. All start uniform in +-1 / sqrt(H).

    input_dropout, recurrent_dropout : variational dropout (Gal and Ghahramani 2016), from 0 to below 1. In `forward`
        each number of every layer's input, and of h' on its way into W h', is 0 with this probability, else divided by
        1 - p; one mask (B, I) and one (B, H) serve all steps. Of indices, which are one-hot rows, that leaves out some
        words, everywhere in a sequence; after an `Embedding` it is numbers of the vectors
    zoneout : from 0 to below 1 (Krueger et al. 2017). In `forward` each number of h is left as it was in h' with this
        probability; inference takes the expectation, h = p h' + (1 - p) F(..)
    preactivation : h = U x + W F(h') + b, y = F(h): the form in which the notes follow the gradient,
        h[t] = W f(h[t-1]) + U x[t], y[t] = V f(h[t]), where V is a `Linear` after this layer (Pascanu, Mikolov and
        Bengio 2013, equation 2). y is that of the usual form started from F(h0); the state that is taken and returned,
        and its gradient, are of h before F, so that dh[t]/dh[k] is the product of W diag(F'(h[j-1])), j from t to k + 1
    merge : what becomes of two directions' outputs: "concat", side by side, (T, B, 2H), or "sum", (T, B, H): then
        `weight_ih` of the next layer is (H, H). States are side by side in both. "sum" of one direction is an error

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

    The product of Jacobians of the notes, by `backward`: five rows that are all the same, with a unit vector each for
    the gradient of the final state.

    >>> rnn = fr.RNN(3, 5, preactivation=True, dtype="float64", seed=0)
    >>> x, W = np.ones((7, 5, 3)), rnn.params["weight_hh_l0"]
    >>> y, h, tape = rnn.forward(x)
    >>> np.allclose(y[-1], np.tanh(h[0]))
    True
    >>> dx, dh = rnn.backward(tape, None, np.eye(5)[None])
    >>> product = W @ np.diag(np.ones(5))                      # dh[1]/dh[0], where h[0] = 0 and F' = 1
    >>> for t in range(6):
    ...     product = W @ np.diag(1 - y[t, 0] ** 2) @ product
    >>> np.allclose(dh[0], product)                            # dh[7]/dh[0]
    True
    """

    gates = 1
    states = 1
    quick = kernels.rnn_steps
    writes = kernels.rnn_write
    recomputes = False

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
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        preactivation: bool = False,
        merge: str = "concat",
    ) -> None:
        check_choice("nonlinearity", nonlinearity, kernels.NONLINEARITIES)
        self.nonlinearity = nonlinearity
        self._number = kernels.NONLINEARITIES.index(nonlinearity)
        self.preactivation = check_flag("preactivation", preactivation)
        for name, p in (("recurrent_dropout", recurrent_dropout), ("zoneout", zoneout)):
            if self.preactivation and p:
                raise ValueError(f"{name} is {p!r} with preactivation=True, expected one of them")
        self.output_letter = "a" if self.preactivation else "h"
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, merge=merge,
        )  # fmt: skip
        self._panels = -(-self.hidden_size // (COLS * lanes(self.dtype)))

    def _run(self, run: Run, start: tuple[np.ndarray, ...] | None) -> tuple[tuple[np.ndarray, ...], Any]:
        where, hidden, empty = run.where, self.hidden_size, self._empty
        h0, last = 0 if start is None else start[0], None
        if self.preactivation:
            last = buffers.empty((where.batch, hidden), self.dtype)
            last[:] = h0
        else:
            run.begin(h0)
        x, i_size, ids, table = self._inputs(run, None)
        share = self._share(run, i_size, self._panels)
        flags = (kernels.INDEXED if x is None else 0) | (kernels.BY_ROWS if share.by_rows else 0)
        packed = self._packed(run.name, i_size)
        launch(
            kernels.rnn_forward, share.workers, 1 if last is None else 2, share.work,
            where.steps, i_size, hidden, run.line, where.shift, flags, self._number, share.pieces,
            where.at, where.counts, share.bounds, empty if x is None else x.reshape(-1), ids, table, packed,
            None if last is None else last.reshape(-1), run.h, *run.flat_masks(),
        )  # fmt: skip
        return (run.states[where.ends] if last is None else last,), None

    def _back(
        self, run: Run, kept: Any, dy: np.ndarray | None, line: int, dstate: tuple[np.ndarray, ...],
        dx: np.ndarray | None, add: bool, sums: tuple[np.ndarray, ...],
    ) -> None:  # fmt: skip
        where, total, hidden, empty, name = run.where, run.total, self.hidden_size, self._empty, run.name
        grad = self.store.grad
        share = self._share(run, 0, self._panels)
        flags = (kernels.DY if dy is not None else 0) | (kernels.BY_ROWS if share.by_rows else 0)
        flags |= kernels.INDEXED if run.x is None else 0
        dbias, dtable = sums
        dz = buffers.empty((total, hidden), self.dtype)
        wt = self.store.made((name, "w"), lambda: pack(hidden, hidden, self.store.flat(f"weight_hh_{name}"), False))
        drop, _, keep, _ = run.flat_masks()
        launch(
            kernels.rnn_backward, share.workers, 2, share.work,
            where.steps, hidden, run.line, where.shift, flags, self._number, share.pieces,
            where.at, where.counts, share.bounds, self.preactivation or None,
            empty if dy is None else dy, run.ids.reshape(-1), wt, run.h, dz.reshape(-1),
            dstate[0].reshape(-1), dtable.reshape(-1), drop, keep,
        )  # fmt: skip
        if self.bias:
            add_column_sums(dbias, dz, where.order)
        x, x_line, index = run.entering()
        add_gradient(grad(f"weight_hh_{name}"), x, dz, x_line, index, where.order)
        if run.x is None:
            return
        add_gradient(grad(f"weight_ih_{name}"), run.x, dz, order=where.order)
        ut = self.store.made((name, "u"), lambda: pack(hidden, run.i_size, self.store.flat(f"weight_ih_{name}"), False))
        multiply(dz, ut, run.i_size, empty, dx, add)

    def _sums(self, run: Run) -> tuple[np.ndarray, ...]:
        return np.zeros(self.hidden_size, self.dtype), self._dtable(run)

    def _add_sums(self, run: Run, sums: tuple[np.ndarray, ...]) -> None:
        dbias, dtable = sums
        if self.bias:
            self.store.add_grad(f"bias_ih_{run.name}", dbias)
            self.store.add_grad(f"bias_hh_{run.name}", dbias)
        self._table_backward(dtable, run)

    def _quick_with(self, name: str, i_size: int) -> tuple[Any, ...] | None:
        return None if self.preactivation else (self._packed(name, i_size), self._number)

    def _writes_with(self) -> tuple[Any, ...]:
        return (self._number,)

    def _packed(self, name: str, i_size: int) -> np.ndarray:
        return self.store.made((name, i_size), lambda: self._pack(name, i_size))

    def _pack(self, name: str, i_size: int) -> np.ndarray:
        hidden, w, empty = self.hidden_size, lanes(self.dtype), self._empty
        flat = self.store.flat
        b_ih, b_hh = (flat(f"{b}_{name}") if self.bias else empty for b in ("bias_ih", "bias_hh"))
        packed = buffers.aligned(-(-hidden // w) * w * (1 + i_size + hidden), self.dtype)
        work = 8.0 * packed.size
        launch(
            kernels.rnn_pack, workers_for(work, self._panels), 1, work,
            i_size, hidden, flat(f"weight_ih_{name}"), flat(f"weight_hh_{name}"), b_ih, b_hh, packed,
        )  # fmt: skip
        return packed
