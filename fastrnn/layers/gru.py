"""The GRU layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checks import check_choice, check_dtype, check_flag, check_size
from ..kernels import gru as kernels
from ..kernels.panels import TAPE
from ..simd.target import COLS, lanes
from ..threads import launch, workers_for
from . import buffers
from .norm import EPSILON, check_epsilon
from .products import Taped, add_gradient, multiply, pack_tape
from .recurrent import Recurrent, Run

RESETS = ("after", "before")


class GRU(Recurrent):
    """Gated recurrent units, any number of layers.

        r, z = sigmoid(U x + W h' + b)          h = (1 - z) n + z h'
        n = tanh(U x + b_n + r (W h' + b_hn))   reset="after" the recurrent product: PyTorch's and cuDNN's
        n = tanh(U x + b_n + W (r h') + b_hn)   reset="before" it: Cho et al. 2014, and ONNX's default

    Parameters as PyTorch's `nn.GRU`, gates in the order r z n: `weight_ih_l0` (3H, I), `weight_hh_l0` (3H, H),
    `bias_ih_l0`, `bias_hh_l0` (3H,); `_reverse` after it for the second direction. All start uniform in +-1 / sqrt(H).

    input_dropout, recurrent_dropout : variational dropout (Gal and Ghahramani 2016), from 0 to below 1. In `forward`
        each number of every layer's input, and of h' on its way into the products with W, is 0 with this probability,
        else divided by 1 - p; one mask (B, I) and one (B, H) serve all steps and gates. z h' has h' as it is. Of
        indices, which are one-hot rows, that leaves out some words, everywhere in a sequence; after an `Embedding` it
        is numbers of the vectors
    zoneout : from 0 to below 1 (Krueger et al. 2017). In `forward` each number of h is left as it was in h' with this
        probability; inference takes the expectation, h = p h' + (1 - p) ((1 - z) n + z h')
    merge : what becomes of two directions' outputs: "concat", side by side, (T, B, 2H), or "sum", (T, B, H): then
        `weight_ih` of the next layer is (3H, H). States are side by side in both. "sum" of one direction is an error
    layer_norm : layer normalisation (Ba, Kiros and Hinton 2016): LN(U x; gain_ih) and LN(W h'; gain_hh) in the places
        of U x and W h', each over the 3H numbers of all gates, before the biases are added;

            LN(a; gain) = gain (a - mean of a) / sqrt(variance of a + layer_norm_eps)    of the numbers of one row

        with `weight_ln_ih_l0`, `weight_ln_hh_l0` (3H,), the gains, which start at 1. Only with reset="after": with
        "before" there is no W h' of all gates. Not with recurrent_dropout or zoneout
    layer_norm_eps : > 0

    >>> import fastrnn as fr, numpy as np
    >>> gru = fr.GRU(3, 5, bidirectional=True, seed=0)
    >>> x = np.zeros((7, 2, 3), np.float32)            # T, B, I
    >>> y, h = gru(x, lengths=[7, 4])
    >>> y.shape, h.shape
    ((7, 2, 10), (2, 2, 5))
    >>> y, h, tape = gru.forward(x, lengths=[7, 4])
    >>> dx, dh = gru.backward(tape, np.ones_like(y))
    >>> dx.shape, gru.grads["weight_hh_l0"].shape
    ((7, 2, 3), (15, 5))
    >>> y, h = fr.GRU(3, 5, bidirectional=True, merge="sum", seed=0)(x)
    >>> y.shape, h.shape
    ((7, 2, 5), (2, 2, 5))
    """

    gates = 3
    states = 1
    quick = kernels.gru_steps
    writes = kernels.gru_write

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        reset: str = "after",
        dtype: Any = "float32",
        seed: int | None = None,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        merge: str = "concat",
        layer_norm: bool = False,
        layer_norm_eps: float = EPSILON,
    ) -> None:
        check_choice("reset", reset, RESETS)
        layer_norm = check_flag("layer_norm", layer_norm)
        if layer_norm and reset == "before":
            raise ValueError("layer_norm is True with reset='before', expected reset='after'")
        self.reset = reset
        self.layer_norm, self.layer_norm_eps = layer_norm, check_epsilon(layer_norm_eps, check_dtype(dtype))
        h = check_size("hidden_size", hidden_size)
        extra = [(f"weight_ln_{of}", (3 * h,)) for of in ("ih", "hh")] if layer_norm else []
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed, extra,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, merge=merge,
        )  # fmt: skip

    def _run(self, run: Run, start: tuple[np.ndarray, ...] | None) -> tuple[tuple[np.ndarray, ...], Any]:
        where, hidden, empty = run.where, self.hidden_size, self._empty
        run.begin(0 if start is None else start[0])
        norm = self._normalised(run)
        x, i_size, ids, table = self._inputs(run, norm)
        share = self._share(run, i_size, self._panels)
        flags = (kernels.INDEXED if x is None else 0) | (kernels.BY_ROWS if share.by_rows else 0)
        flags |= kernels.TRAINING if run.training else 0
        packed, wn = self._packed(run.name, i_size)
        kept_rows = run.total if run.training else where.batch
        gates = s = empty
        if run.training or wn is not None or norm is not None:
            gates = self._tape(kept_rows)
        if wn is not None:
            s = buffers.empty((kept_rows, hidden), self.dtype)
        launch(
            kernels.gru_forward, share.workers, 1, share.work,
            where.steps, kept_rows, i_size, hidden, run.line, where.shift, flags, share.pieces,
            where.at, where.counts, share.bounds,
            empty if x is None else x.reshape(-1), ids, table, packed, wn,
            run.h, gates, s.reshape(-1), *run.flat_masks(),
            *self._norm_forward(norm, run),
        )  # fmt: skip
        return (run.states[where.ends],), (gates, s, norm) if run.training else None

    def _back(
        self, run: Run, kept: Any, dy: np.ndarray | None, line: int, dstate: tuple[np.ndarray, ...],
        dx: np.ndarray | None, add: bool, sums: tuple[np.ndarray, ...],
    ) -> None:  # fmt: skip
        gates, s, norm = kept
        where, total, hidden, empty, name = run.where, run.total, self.hidden_size, self._empty, run.name
        grad = self.store.grad
        flags = (kernels.BIAS if self.bias else 0) | (kernels.DY if dy is not None else 0)
        flags |= kernels.INDEXED if run.x is None else 0
        dbias, dgain, dtable = sums
        ids = run.ids.reshape(-1) if norm is None else norm.ids
        share = self._share(run, 0, -(-self._panels // COLS))
        flags |= kernels.BY_ROWS if share.by_rows else 0
        # The gradients of n r z v: of x's products the first three, of h's the last three or, with r before, r z.
        of_x, of_h = Taped(gates, total, hidden, 3, 0, turn=2), Taped(gates, total, hidden, 3, first=1)
        of_n = Taped(gates, total, hidden, 1)
        wnt = None
        w = self.store.flat(f"weight_hh_{name}")
        if self.reset == "before":
            of_h = of_h._replace(gates=2)
            wnt = self.store.made((name, "wn"), lambda: pack_tape(of_n, hidden, w[2 * hidden * hidden :], True))
        wt = self.store.made((name, "w"), lambda: pack_tape(of_h, hidden, w, True))
        drop, _, keep, _ = run.flat_masks()
        launch(
            kernels.gru_backward, share.workers, 2, share.work,
            where.steps, total, hidden, line, where.shift, flags, share.pieces, where.at, where.counts, share.bounds,
            empty if dy is None else dy, ids, wt, wnt, run.h, gates,
            dstate[0].reshape(-1), dtable.reshape(-1), dbias.reshape(-1), drop, keep,
            *self._norm_backward(norm, run), dgain.reshape(-1),
        )  # fmt: skip
        if norm is not None:
            of_h = of_h._replace(a=norm.v)
        dw = grad(f"weight_hh_{name}")
        x, x_line, index = run.entering()
        add_gradient(dw, x, of_h, x_line, index, where.order)
        if wnt is not None:
            add_gradient(dw[2 * hidden :], s, of_n, order=where.order)
        if run.x is None:
            return
        add_gradient(grad(f"weight_ih_{name}"), run.x, of_x, order=where.order)
        ut = self.store.made((name, "u"), lambda: pack_tape(of_x, run.i_size, self.store.flat(f"weight_ih_{name}")))
        multiply(of_x, ut, run.i_size, empty, dx, add)

    def _sums(self, run: Run) -> tuple[np.ndarray, ...]:
        dgain = np.zeros((6 if self.layer_norm else 0, self.hidden_size), self.dtype)
        return np.zeros((TAPE, self.hidden_size), self.dtype), dgain, self._dtable(run)

    def _add_sums(self, run: Run, sums: tuple[np.ndarray, ...]) -> None:
        (n, r, z, v), dgain, dtable = sums
        if self.bias:
            self.store.add_grad(f"bias_ih_{run.name}", np.concatenate([r, z, n]))
            self.store.add_grad(f"bias_hh_{run.name}", np.concatenate([r, z, v if self.reset == "after" else n]))
        if self.layer_norm:
            n, r, z, *of_v = dgain
            self.store.add_grad(f"weight_ln_ih_{run.name}", np.concatenate([r, z, n]))
            self.store.add_grad(f"weight_ln_hh_{run.name}", np.concatenate(of_v))
        self._table_backward(dtable, run)

    def _kept(self, run: Run, kept: Any) -> dict[str, np.ndarray]:
        gates = self._gates(kept[0], run, "nrz")  # and v, the product with h' alone
        return {letter: gates[letter] for letter in "rzn"}

    def _gains(self, name: str) -> list[np.ndarray]:
        of_x, of_h = (self.store.flat(f"weight_ln_{of}_{name}").reshape(3, -1) for of in ("ih", "hh"))
        return [*np.roll(of_x, 1, axis=0), *of_h]  # n r z, r z v

    def _bias(self, name: str) -> np.ndarray:
        bias = super()._bias(name)
        if self.reset == "after":  # b_hn belongs to the product with h'
            bias[2 * self.hidden_size :] = self.store.flat(f"bias_ih_{name}")[2 * self.hidden_size :]
        return bias

    def _quick_with(self, name: str, i_size: int) -> tuple[Any, ...] | None:
        if self.reset == "before" or self.layer_norm:
            return None
        return (self._packed(name, i_size)[0],)

    def _packed(self, name: str, i_size: int) -> tuple[np.ndarray, np.ndarray | None]:
        return self.store.made((name, i_size), lambda: self._pack(name, i_size))

    def _pack(self, name: str, i_size: int) -> tuple[np.ndarray, np.ndarray | None]:
        hidden, empty, units = self.hidden_size, self._empty, self._panels * lanes(self.dtype)
        flat = self.store.flat
        b_ih, b_hh = (flat(f"{b}_{name}") if self.bias else empty for b in ("bias_ih", "bias_hh"))
        before = self.reset == "before"
        packed = buffers.aligned(units * (TAPE + 3 * i_size + (2 if before else 3) * hidden), self.dtype)
        wn = buffers.aligned(units * hidden, self.dtype) if before else None
        work = 8.0 * packed.size
        launch(
            kernels.gru_pack, workers_for(work, self._panels), 1, work,
            i_size, hidden, flat(f"weight_ih_{name}"), flat(f"weight_hh_{name}"), b_ih, b_hh, packed, wn,
        )  # fmt: skip
        return packed, wn
