"""The LSTM layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import check_choice, check_dtype, check_flag, check_size
from ..kernels import lstm as kernels
from ..simd.target import COLS, groups, lanes
from ..threads import launch, workers_for
from . import buffers
from .norm import EPSILON, check_epsilon
from .products import Taped, add_gradient, multiply, pack, pack_tape
from .recurrent import Recurrent, Run

PEEPHOLES = (None, "diagonal", "full")
ACTIVATIONS = tuple(kernels.ACTIVATIONS)
GAINS = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")  # in the order of the kernels


class LSTM(Recurrent):
    """Long short-term memory, any number of layers.

        i, f, o = sigmoid(U x + W h' + b (+ p c))      g = tanh(U x + W h' + b)
        c = f c' + i g                                 h = o tanh(c)

    Hochreiter and Schmidhuber 1997, with the forget gate of Gers, Schmidhuber and Cummins 2000; with
    peephole="diagonal" i and f see c', o sees c (Graves 2013, equations 7 to 11). With peephole="full", which is not
    standard and which some notes write, p is a matrix (H, H): p c is a product, and a step has to wait once more.

    Parameters as PyTorch's `nn.LSTM`, gates in the order i f g o: `weight_ih_l0` (4H, I), `weight_hh_l0` (4H, H),
    `bias_ih_l0`, `bias_hh_l0` (4H,), and with peepholes `weight_peep_l0` (3, H) or (3, H, H), rows i f o; `_reverse`
    after it for the second direction. All start uniform in +-1 / sqrt(H).

    clip : a limit > 0 within which the argument of every sigmoid and tanh (its peephole included) and c are clamped;
        where one was, no gradient comes through. ONNX Runtime clamps the arguments and leaves c alone
    activations : names of the functions of the gates i f o, of g, and of c on its way to h: `tanh`, `sigmoid`, `relu`,
        `hardsigmoid` (0.2 x + 0.5 between 0 and 1), `softsign` (x / (1 + |x|)), `identity`
    coupled : f = 1 - i, what is forgotten is what comes in (Greff et al. 2017, "CIFG"): three gates, parameters with
        rows i g o, (3H, ...), peepholes i o
    proj_size : O, from 1 to H - 1: h = W_hr (o tanh(c)), with `weight_hr_l0` (O, H) (Sak, Senior and Beaufays 2014). h
        and y are O wide instead of H, `weight_hh_l0` is (4H, O), and so on, as PyTorch has it; 0: no projection
    input_dropout, recurrent_dropout : variational dropout (Gal and Ghahramani 2016), from 0 to below 1. In `forward`
        each number of every layer's input, and of h' on its way into the products with W, is 0 with this probability,
        else divided by 1 - p; one mask (B, I) and one (B, H) serve all steps and gates. Of indices, which are one-hot
        rows, that leaves out some words, everywhere in a sequence; after an `Embedding` it is numbers of the vectors
    zoneout : probabilities from 0 to below 1 for h and for c, or one for both (Krueger et al. 2017). In `forward` each
        number of the state is left as it was with this probability; inference takes the expectation, p h' + (1 - p) h
        and p c' + (1 - p) c. As in the paper, o tanh(c), and what o sees through a peephole, is c before its zoneout
    merge : what becomes of two directions' outputs: "concat", side by side, (T, B, 2H), or "sum", (T, B, H): then
        `weight_ih` of the next layer is (4H, H). States are side by side in both. "sum" of one direction is an error
    layer_norm : layer normalisation (Ba, Kiros and Hinton 2016, equations 20 to 22),

            LN(a; gain) = gain (a - mean of a) / sqrt(variance of a + layer_norm_eps)    of the numbers of one row
            z = LN(U x; gain_ih) + LN(W h'; gain_hh) + b       over the 4H numbers of all gates, in the place of
                                                               U x + W h' + b
            h = o tanh(LN(c; gain_c) + bias_c)                 over the H numbers of c

        with `weight_ln_ih_l0`, `weight_ln_hh_l0` (4H,), `weight_ln_c_l0` (H,), the gains, which start at 1, and
        `bias_ln_c_l0` (H,), which starts at 0. What (h, c) holds is c before its normalisation, as in the paper: c adds
        up undisturbed from step to step, and only what h sees of it is normalised. (TensorFlow Addons' cell carries the
        normalised c: another function.) Not with peephole="full", recurrent_dropout or zoneout
    layer_norm_eps : > 0

    Each choice is compiled once, when first used. Those that are off cost nothing.

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
    >>> small = fr.LSTM(3, 5, coupled=True, proj_size=2, clip=50.0, seed=0)
    >>> y, (h, c) = small(x)
    >>> h.shape, c.shape, small.params["weight_hh_l0"].shape
    ((1, 2, 2), (1, 2, 5), (15, 2))
    """

    gates = 4
    states = 2
    quick = kernels.lstm_steps
    writes = kernels.lstm_write

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
        *,
        clip: float | None = None,
        activations: Sequence[str] = kernels.USUAL,
        coupled: bool = False,
        proj_size: int = 0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        merge: str = "concat",
        layer_norm: bool = False,
        layer_norm_eps: float = EPSILON,
    ) -> None:
        self.peephole, self.coupled = check_choice("peephole", peephole, PEEPHOLES), check_flag("coupled", coupled)
        self.activations = _check_activations(activations)
        h = check_size("hidden_size", hidden_size)
        self.proj_size = o = check_size("proj_size", proj_size, 0)
        if o >= h:
            raise ValueError(f"proj_size is {o}, expected less than hidden_size={h}, or 0 for no projection")
        self.clip = _check_clip(clip, check_dtype(dtype))
        layer_norm = check_flag("layer_norm", layer_norm)
        self.layer_norm, self.layer_norm_eps = layer_norm, check_epsilon(layer_norm_eps, check_dtype(dtype))
        if layer_norm and peephole == "full":
            raise ValueError("layer_norm is True with peephole='full', expected peephole=None or 'diagonal'")
        self.gates = 3 if self.coupled else 4
        see = self.gates - 1
        extra: list[tuple[str, tuple[int, ...]]] = [("weight_hr", (o, h))] if o else []
        extra += [("weight_peep", (see, h) if peephole == "diagonal" else (see, h, h))] if peephole else []
        if layer_norm:
            extra += [(f"weight_ln_{of}", (self.gates * h,)) for of in ("ih", "hh")]
            extra += [("weight_ln_c", (h,)), ("bias_ln_c", (h,))]
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, seed, extra, o,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, merge=merge,
        )  # fmt: skip
        self._form, self._coupled = kernels.form_of(self.clip, self.activations), self.coupled or None

    def init_forget_bias(self, value: float = 1.0) -> None:
        """Sets the forget gate's bias, so that a new network remembers (Gers et al. 2000; Jozefowicz et al. 2015).

        With coupled gates the input gate's, to -value: 1 - sigmoid(-value) = sigmoid(value).
        """
        if not self.bias:
            raise ValueError("this layer has bias=False; there is no forget bias to set")
        h = self.hidden_size
        rows, value = (slice(0, h), -value) if self.coupled else (slice(h, 2 * h), value)
        for name in self.params:
            if name.startswith(("bias_ih", "bias_hh")):
                new = self.params[name].copy()
                new[rows] = value if name.startswith("bias_ih") else 0.0
                self.params[name] = new

    def _run(self, run: Run, start: tuple[np.ndarray, ...] | None) -> tuple[tuple[np.ndarray, ...], Any]:
        where, hidden, empty = run.where, self.hidden_size, self._empty
        h0, c0 = (0, 0) if start is None else start
        run.begin(h0)
        training = run.training or self.peephole == "full"
        c = buffers.empty((where.slots if training else where.batch, hidden), self.dtype)
        c[where.start if training else slice(None)] = c0
        rows = run.total if training else where.batch
        gates = self._tape(rows) if training or self.layer_norm else empty
        m = buffers.empty((rows, hidden), self.dtype) if self.proj_size else empty
        cells = None if run.masks.keep[1] is None else buffers.empty((rows, hidden), self.dtype)
        norm = self._normalised(run)
        x, i_size, ids, table = self._inputs(run, norm)
        share = self._share(run, i_size, self._panels)
        flags = (kernels.INDEXED if x is None else 0) | (kernels.TRAINING if training else 0)
        flags |= kernels.BY_ROWS if share.by_rows else 0
        packed = self._packed(run.name, i_size)
        peep, full = self._peepholes(run.name)
        wr = self._projection(run.name)
        launch(
            kernels.lstm_forward, share.workers, 1, share.work,
            where.steps, run.total, i_size, hidden, self._widths[0], run.line, where.shift, flags, share.pieces,
            where.at, where.counts, share.bounds,
            empty if x is None else x.reshape(-1), ids, table, packed, peep, full,
            wr, self._form, self._coupled, run.h, c.reshape(-1), gates, m.reshape(-1),
            *run.flat_masks(), None if cells is None else cells.reshape(-1),
            *self._norm_forward(norm, run),
        )  # fmt: skip
        kept = (c, c[where.shift :] if cells is None else cells, gates, m, norm) if run.training else None
        return (run.states[where.ends], c[where.ends] if training else c), kept

    def _back(
        self, run: Run, kept: Any, dy: np.ndarray | None, line: int, dstate: tuple[np.ndarray, ...],
        dx: np.ndarray | None, add: bool, sums: tuple[np.ndarray, ...],
    ) -> None:  # fmt: skip
        c, cells, gates, m, norm = kept
        where, total, hidden, empty, name = run.where, run.total, self.hidden_size, self._empty, run.name
        grad = self.store.grad
        flags = (kernels.BIAS if self.bias else 0) | (kernels.DY if dy is not None else 0)
        flags |= kernels.INDEXED if run.x is None else 0
        dbias, dpeep, dgain, dtable = sums
        ids = run.ids.reshape(-1) if norm is None else norm.ids
        dn = empty if norm is None else buffers.empty(total * hidden, self.dtype)
        share = self._share(run, 0, -(-self._panels // COLS))
        flags |= kernels.BY_ROWS if share.by_rows else 0
        dh, dc = dstate
        tape, o = Taped(gates, total, hidden, self.gates), self._widths[0]
        w, projected = self.store.flat(f"weight_hh_{name}"), self.proj_size > 0
        wt = self.store.made((name, "w"), lambda: pack_tape(tape, o, w, not projected))
        peep, full = self._peepholes(name, backward=True)
        dhs = buffers.empty((total, o), self.dtype) if projected else empty
        drop, _, keep, keep_c, _ = run.flat_masks()
        masked: tuple[Any, ...] = (drop, keep, None, None, None)
        if keep_c is not None:
            masked = (drop, keep, keep_c, cells.reshape(-1), np.empty(where.batch * hidden, self.dtype))
        launch(
            kernels.lstm_backward, share.workers, 2, share.work,
            where.steps, total, hidden, o, line, where.shift, flags, share.pieces, where.at, where.counts, share.bounds,
            empty if dy is None else dy, ids, wt, peep, full, self._projection(name, backward=True),
            self._form, self._coupled, c.reshape(-1), gates, dc.reshape(-1), dh.reshape(-1), dhs.reshape(-1),
            dtable.reshape(-1), dbias, None if peep is None else dpeep, *masked,
            *self._norm_backward(norm, run), dn, dgain,
        )  # fmt: skip
        of_h = tape if norm is None else tape._replace(a=norm.v)
        x, x_line, index = run.entering()
        add_gradient(grad(f"weight_hh_{name}"), x, of_h, x_line, index, where.order)
        if projected:
            add_gradient(grad(f"weight_hr_{name}"), m, dhs, order=where.order)
        if full is not None:
            seen = self.gates - 2  # gates that see c'
            dfull = grad(f"weight_peep_{name}")
            x, x_line, index = run.before(c.reshape(-1), hidden)
            add_gradient(dfull[:seen].reshape(-1, hidden), x, tape._replace(gates=seen), x_line, index, where.order)
            seen_by_o = tape._replace(gates=1, first=seen + 1)
            add_gradient(dfull[seen], cells.reshape(-1), seen_by_o, hidden, order=where.order)
        if run.x is None:
            return
        add_gradient(grad(f"weight_ih_{name}"), run.x, tape, order=where.order)
        ut = self.store.made((name, "u"), lambda: pack_tape(tape, run.i_size, self.store.flat(f"weight_ih_{name}")))
        multiply(tape, ut, run.i_size, empty, dx, add)

    def _sums(self, run: Run) -> tuple[np.ndarray, ...]:
        dbias = np.zeros(self.gates * self.hidden_size, self.dtype) if self.bias else self._empty
        diagonal = (self.gates - 1) * self.hidden_size if self.peephole == "diagonal" else 0
        dgain = np.zeros((2 * self.gates + 2) * self.hidden_size if self.layer_norm else 0, self.dtype)
        return dbias, np.zeros(diagonal, self.dtype), dgain, self._dtable(run)

    def _add_sums(self, run: Run, sums: tuple[np.ndarray, ...]) -> None:
        dbias, dpeep, dgain, dtable = sums
        grad = self.store.grad
        if self.bias:
            self.store.add_grad(f"bias_ih_{run.name}", dbias)
            self.store.add_grad(f"bias_hh_{run.name}", dbias)
        if self.peephole == "diagonal":
            self.store.add_grad(f"weight_peep_{run.name}", dpeep.reshape(-1, self.hidden_size))
        if self.layer_norm:
            sizes = [grad(f"{kind}_{run.name}").size for kind in GAINS]
            for kind, part in zip(GAINS, np.split(dgain, np.cumsum(sizes[:-1])), strict=True):
                self.store.add_grad(f"{kind}_{run.name}", part)
        self._table_backward(dtable, run)

    def _kept(self, run: Run, kept: Any) -> dict[str, np.ndarray]:
        c, _, gates, *_ = kept
        shift = run.where.shift
        named = self._gates(gates, run, "igo" if self.coupled else "ifgo")
        if self.coupled:
            named = {"i": named["i"], "f": 1 - named["i"], "g": named["g"], "o": named["o"]}
        return {**named, "c": c[shift : shift + run.total]}

    def _gains(self, name: str) -> list[np.ndarray]:
        return [row for kind in GAINS for row in self.store.flat(f"{kind}_{name}").reshape(-1, self.hidden_size)]

    def _quick_with(self, name: str, i_size: int) -> tuple[Any, ...] | None:
        if self.proj_size or self.layer_norm or self.peephole == "full":
            return None
        return self._packed(name, i_size), self._peepholes(name)[0], self._form, self._coupled

    def _writes_with(self) -> tuple[Any, ...]:
        peeps = [p for layer in range(self.num_layers) if (p := self._peepholes(f"l{layer}")[0]) is not None]
        return (np.concatenate(peeps) if peeps else None), self._form, self._coupled

    def _packed(self, name: str, i_size: int) -> np.ndarray:
        return self.store.made((name, i_size), lambda: self._pack(name, i_size))

    def _pack(self, name: str, i_size: int) -> np.ndarray:
        hidden, o, empty = self.hidden_size, self._widths[0], self._empty
        flat = self.store.flat
        b_ih, b_hh = (flat(f"{b}_{name}") if self.bias else empty for b in ("bias_ih", "bias_hh"))
        packed = buffers.aligned(self._panels * self.gates * (1 + i_size + o) * lanes(self.dtype), self.dtype)
        work = 8.0 * packed.size
        # With normalisation, four gates of the panels of a block; see kernels/lstm.py.
        together = self._panels if self.coupled else self._blocks if self.layer_norm else groups(self._panels)
        launch(
            kernels.lstm_pack, workers_for(work, together), 1, work,
            self.gates, together, i_size, hidden, o,
            flat(f"weight_ih_{name}"), flat(f"weight_hh_{name}"), b_ih, b_hh, packed,
        )  # fmt: skip
        return packed

    def _peepholes(self, name: str, backward: bool = False) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Diagonal and full peepholes as the kernels take them; None for what there is not."""
        if self.peephole is None:
            return None, None
        p = self.store.flat(f"weight_peep_{name}")
        if self.peephole == "diagonal":
            return self.store.made((name, "p"), lambda: self._pack_diagonal(p)), None
        make = self._pack_full_backward if backward else self._pack_full
        return None, self.store.made((name, "p", backward), lambda: make(p))

    def _pack_diagonal(self, p: np.ndarray) -> np.ndarray:
        w, rows = lanes(self.dtype), self.gates - 1
        padded = np.zeros((rows, self._panels * w), self.dtype)
        padded[:, : self.hidden_size] = p.reshape(rows, -1)
        return np.ascontiguousarray(padded.reshape(rows, self._panels, w).swapaxes(0, 1)).reshape(-1)

    def _pack_full(self, p: np.ndarray) -> np.ndarray:
        rows, hidden = self.gates - 1, self.hidden_size
        packed = buffers.aligned(rows * self._panels * lanes(self.dtype) * hidden, self.dtype)
        work = 8.0 * packed.size
        launch(kernels.lstm_pack_full, workers_for(work, self._panels), 1, work, rows, hidden, p, packed)
        return packed

    def _pack_full_backward(self, p: np.ndarray) -> np.ndarray:
        hidden, seen = self.hidden_size, self.gates - 2
        i_f = Taped(self._empty, 0, hidden, seen)
        o = i_f._replace(gates=1)
        both = (pack_tape(i_f, hidden, p, True), pack_tape(o, hidden, p[seen * hidden * hidden :], True))
        return np.concatenate(both)

    def _projection(self, name: str, backward: bool = False) -> np.ndarray | None:
        """W_hr as the kernels take it; None if there is none."""
        if not self.proj_size:
            return None
        w, o, hidden = self.store.flat(f"weight_hr_{name}"), self.proj_size, self.hidden_size

        def padded() -> np.ndarray:
            columns = self._panels * lanes(self.dtype)  # as many as a tape has units
            wide = np.zeros((o, columns), self.dtype)
            wide[:, :hidden] = w.reshape(o, hidden)
            return pack(o, columns, wide.reshape(-1), transposed=False)

        make = padded if backward else lambda: pack(hidden, o, w, transposed=True)
        return self.store.made((name, "r", backward), make)


def _check_clip(clip: Any, dtype: np.dtype) -> float | None:
    """None, or a number > 0 that is one in `dtype` too."""
    if clip is None:
        return None
    if isinstance(clip, bool) or not isinstance(clip, int | float | np.number):
        raise TypeError(f"clip is {type(clip).__name__}, expected a number or None")
    with np.errstate(over="ignore"):
        limit = float(dtype.type(clip))
    if not 0.0 < limit < float("inf"):
        raise ValueError(f"clip is {clip}, expected a finite number > 0 in {dtype}, or None")
    return limit


def _check_activations(names: Any) -> tuple[str, ...]:
    """Three of the names that there are."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"activations is {type(names).__name__}, expected three names")
    if len(names) != 3:
        raise ValueError(f"activations has {len(names)} names, expected three: of i f o, of g, of c")
    for name in names:
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise ValueError(f"activations has {name!r}, expected names from {', '.join(ACTIVATIONS)}")
    return tuple(names)
