"""Stacks of recurrent layers: what RNN, LSTM and GRU share above their kernels.

A cell's own file says how one direction of one layer runs; here are the arguments, the stacking, the directions, the
lengths, the dropout between layers, the masks of the other regularisers, and recomputing in segments.

What a tape keeps of one layer, in numbers. Its input has I of them; T B is the sum of the lengths, if there are any:

    always              (T + D) B D O              h: the states; y and the input of the layer above are views of it
                        T B I                      x, unless it is the h of the layer below
     with dropout       2 T B I                    above another layer: the mask, and x times the mask
     with lengths, in   T B I + (T + 1) B O        x and h as the reverse direction sees them
       two directions
    for _back           D times                    what the tops of the kernels' files call a tape, but h:
     LSTM                 T B 4 N block + (T + D) B H    with a projection T B H more
     GRU                  T B 4 N block                  with the reset gate before T B H more
     RNN                  0
     with layer_norm      T B (G H + 4 N block + 8)      more; of a GRU + 6 instead of + 8. Of indices V (G H + 1), once
                                                         for all calls, instead of T B (G H + 1)
    instead of that     D times                    in K segments, of at most S = ceil(T / K) steps:
     LSTM                 K B H                          the cells that each starts from
     GRU, RNN             0

While a forward runs, in inference too, there is U x of all steps, T B G H numbers, where that pays (`_hoists`: few
rows, large U), but at most HOISTED bytes of it.

With lengths D is 1 wherever it is added to T. In segments, backward needs for one segment of one direction at a time
what stands under "for _back", with S in the place of T and 1 in that of D. (And for the RNN's dZ S B H, for dh with a
projection S B O, with layer_norm B 4 N block and for an LSTM's gradient of LN(c) S B H; without segments T instead of
S.) h is kept whole, as the layer above and the caller have it anyway: so the tape of an LSTM shrinks to about a sixth,
and no further. G: gates, 4 of an LSTM (coupled 3), 3 of a GRU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from numba.core import config

from .._jit import SMALL
from ..checks import (
    check_array,
    check_choice,
    check_dtype,
    check_flag,
    check_indices,
    check_lengths,
    check_probability,
    check_segments,
    check_size,
    make_generator,
)
from ..kernels.panels import LONGEST, OVERHEAD, TAPE
from ..simd.target import ROWS, lanes
from ..threads import ALONE, DIVIDED, LONG, at_hand, divide, get_num_threads, launch, rehearsal, rehearsing, workers_for
from . import buffers
from .layer import NOT_TAKEN, Layer, Tape, check_tape
from .layout import Direction, Layout, ragged, take, uniform
from .norm import in_blocks, normalise
from .products import NONE, add_gradient, multiply, pack
from .store import Store

NO_IDS = np.empty((0, 0), np.int64)
HOISTED = 1 << 25  # bytes that U x of all steps may take
WAITED = 1 << 16  # bytes of U, less of which no step waits for
LARGE = 1 << 20  # bytes of weights that a core's cache does not keep from one step to the next
ROUND = 12_000  # multiply-adds in a layer of a character, of which fewer are not worth waiting for each other
MERGES = ("concat", "sum")


class Embedded(NamedTuple):
    """Indices with the vectors that they stand for: `Sequential` passes them to a recurrent layer as they are."""

    ids: np.ndarray  # (T, B) int64
    embedding: Any  # Embedding

    def rows(self) -> np.ndarray:
        """(T, B, I): what they stand for."""
        return self.embedding.flat.reshape(-1, self.embedding.dim).take(self.ids, axis=0)


class Share(NamedTuple):
    """How the work of one direction of one layer is divided."""

    work: float  # multiply-adds, about
    workers: int
    by_rows: bool
    pieces: int
    bounds: np.ndarray


class Masks(NamedTuple):
    """What regularises one direction of one layer in one call; None for what does not."""

    drop: np.ndarray | None  # (B, H): h' times it goes into the product with W
    keep: tuple[np.ndarray | None, ...]  # for each state (total, H), the share of the old one kept; in inference (H,)
    each: bool  # whether zoneout has a mask for each row

    def of(self, rows: slice) -> Masks:
        """Those of some rows of x."""
        return self._replace(keep=tuple(None if k is None else k[rows] for k in self.keep)) if self.each else self


class Quick(NamedTuple):
    """What quick calls of a layer need to know, and how they are made."""

    version: int  # of the parameters
    each: float  # multiply-adds of a number of x
    largest: int  # numbers of weights of a layer, the most
    # From call to call, to read large weights forth and back in turns: `quick` with the parameters for the caller alone
    # and divided, each the first layer's and those of the layers above it; and divided, each as if it were the first.
    turns: Iterator[Any]


class Run(NamedTuple):
    """One direction of one layer in one call: what its forward and its backward work on."""

    name: str  # of the parameters: "l0", "l0_reverse"
    where: Direction
    total: int  # rows of x
    x: np.ndarray | None  # (total, I)
    ids: np.ndarray  # (total,), or empty
    embedding: Any  # Embedding or None
    states: np.ndarray  # h, (slots, H)
    h: np.ndarray  # the same, flat from the first on
    line: int  # from row to row of it
    training: bool
    words: float | None  # with ids, dropout of the input: U x is multiplied by it, and 0 for id I; None without
    masks: Masks
    dropped: np.ndarray | None  # h times masks.drop, (slots, H)
    i_size: int  # I, 0 for indices

    def before(self, states: np.ndarray, line: int) -> tuple[np.ndarray, int, np.ndarray]:
        """The state before each row's input, as `add_gradient` takes it: x, line, index."""
        return states[self.where.previous * line :], line, self.where.previous_at

    def entering(self) -> tuple[np.ndarray, int, np.ndarray]:
        """What the product with W took for each row's input, likewise."""
        if self.dropped is None:
            return self.before(self.h, self.line)
        return self.before(self.dropped.reshape(-1), self.dropped.shape[1])

    def flat_masks(self) -> list[Any]:
        """The mask of h', h times it, the masks of zoneout, flat, and whether these have rows, as kernels take them."""
        drop, keep, each = self.masks
        return [*(None if a is None else a.reshape(-1) for a in (drop, self.dropped, *keep)), each]

    def begin(self, h0: Any) -> None:
        """Writes the initial state, (B, H) or 0."""
        start = self.where.start
        self.states[start] = h0
        if self.dropped is not None and self.masks.drop is not None:
            np.multiply(self.states[start], self.masks.drop[: self.where.batch], out=self.dropped[start])

    def segment(self, first: int, last: int, training: bool) -> tuple[Run, slice]:
        """Some of the steps as if they were all: views of this; and which rows of x they are."""
        where, slot, row = self.where.segment(first, last)
        total = int(where.counts.sum())
        rows = slice(row, row + total)
        x, ids = (None, self.ids[rows]) if self.x is None else (self.x[rows], self.ids)
        one = self._replace(
            where=where, total=total, x=x, ids=ids, states=self.states[slot:], h=self.h[slot * self.line :],
            masks=self.masks.of(rows), dropped=None if self.dropped is None else self.dropped[slot:],
            training=training,
        )  # fmt: skip
        return one, rows


class Indexed(NamedTuple):
    """What a table of inputs is made from, where there is no call: see `Run`."""

    name: str
    embedding: Any
    x: None = None
    words: None = None


class Normalised(NamedTuple):
    """Layer normalisation of one direction of one layer in one call: what comes in and what is kept."""

    ids: np.ndarray  # (total,) which row of the table each row of x is
    table: np.ndarray  # (V, GH): (U x)^
    scale: np.ndarray  # (V,): what each row was multiplied by
    v: np.ndarray  # flat, a tape: (W h')^
    scales: np.ndarray  # flat: what backward needs of rows


class Kept(NamedTuple):
    """One layer's part of a tape."""

    mask: np.ndarray | None  # what x was multiplied by (dropout)
    rows: np.ndarray | None  # (B, I), what each row of it was multiplied by in every step (input_dropout)
    runs: list[tuple[Run, Any]]  # for each direction, with what the cell's own forward kept; or, in segments,
    segments: int | None  # with the states but h at the start of each segment


class Recurrent(Layer):
    """The base of RNN, LSTM and GRU."""

    recurrent = True
    takes_lengths = True
    takes_segments = True
    takes_indices = True
    gates: int  # rows of weight_ih in units of H
    states: int  # 1: h; 2: (h, c)
    output_letter = "h"  # what y is made of: h, or what the layer's text calls it
    quick: Any  # the kernel of quick calls, for one layer
    writes: Any  # the kernel of a language model that writes
    recomputes = True  # in segments backward runs forward again: there is more in a tape than h
    layer_norm = False
    layer_norm_eps: float

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
        projected: int = 0,
        *,
        input_dropout: float,
        recurrent_dropout: float,
        zoneout: float | tuple[float, float],
        merge: str,
    ) -> None:
        self.input_size = check_size("input_size", input_size)
        self.hidden_size = h = check_size("hidden_size", hidden_size)
        self.num_layers = check_size("num_layers", num_layers)
        self.bias, self.batch_first = check_flag("bias", bias), check_flag("batch_first", batch_first)
        self.dropout = check_probability("dropout", dropout)
        self.input_dropout = check_probability("input_dropout", input_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        self.zoneout = _check_zoneout(zoneout, self.states)
        self._unmasked = None if any(self._zoneouts()) else Masks(None, (None,) * self.states, False)  # in inference
        if self.layer_norm:
            for option, p in (("recurrent_dropout", self.recurrent_dropout), ("zoneout", max(self._zoneouts()))):
                if p:
                    raise ValueError(f"layer_norm is True with {option}={getattr(self, option)}, expected {option}=0")
        self.dtype = check_dtype(dtype)
        self.rng = make_generator(seed)
        self.bidirectional = check_flag("bidirectional", bidirectional)
        self.directions = 2 if self.bidirectional else 1
        self.merge = _check_merge(merge, self.bidirectional)
        self._beside = 1 if merge == "sum" else self.directions  # outputs that lie side by side in y
        o = projected or h
        self._widths = (o, h)[: self.states]  # of the states; y is as wide as h
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            for name in self._names(layer):
                shapes[f"weight_ih_{name}"] = (self.gates * h, self.input_size if layer == 0 else self._beside * o)
                shapes[f"weight_hh_{name}"] = (self.gates * h, o)
                if self.bias:
                    shapes[f"bias_ih_{name}"] = shapes[f"bias_hh_{name}"] = (self.gates * h,)
                for kind, shape in extra:
                    shapes[f"{kind}_{name}"] = shape
        self.store = Store(shapes, self.dtype)
        super().__init__({"": self.store})
        bound = 1 / math.sqrt(h)

        def start(name: str, shape: tuple[int, ...]) -> np.ndarray:
            if name.startswith(("weight_ln", "bias_ln")):
                return np.full(shape, float(name.startswith("weight")))
            return self.rng.uniform(-bound, bound, shape)

        self.store.assign({name: start(name, shape) for name, shape in shapes.items()})
        self._empty = np.empty(0, self.dtype)
        unit = 64 // self.dtype.itemsize
        self._blocks = -(-h // unit)  # of a tape
        self._panels = self._blocks * (unit // lanes(self.dtype))  # of as many units
        self._rehearsed: set[Any] = set()  # what has been called for once: forward in training or not, "back", "quick"
        self._compiled: Any = None  # `quick`, once it has been called for
        self._ready: Quick | None = None
        self._hoisted: Quick | None = None  # where U x comes first, of all steps
        widest = max(input_size, h if num_layers > 1 else 0)
        # The widest input; 0 if no step ever waits for U.
        self._wide = widest if self._bytes_of_u(widest) >= WAITED else 0

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code stays where it is.
        new: dict[str, Any] = {"_rehearsed": set(), "_compiled": None, "_ready": None, "_hoisted": None}
        return {**vars(self), **new}

    @property
    def width(self) -> int:
        return self.input_size

    def _names(self, layer: int) -> list[str]:
        """How the parameters of each direction of a layer end."""
        return [f"l{layer}", f"l{layer}_reverse"][: self.directions]

    def generators(self) -> list[np.random.Generator]:
        drawn = (self.dropout, self.input_dropout, self.recurrent_dropout, *self._zoneouts())
        return [self.rng] if any(drawn) else []

    def init_orthogonal(self) -> None:
        """Makes the recurrent matrix of each gate orthogonal (Saxe, McClelland and Ganguli 2014); with a projection,
        whose h is narrower, its columns.
        """
        for name in self.params:
            if not name.startswith("weight_hh"):
                continue
            parts = []
            for _ in range(self.gates):
                q, r = np.linalg.qr(self.rng.standard_normal((self.hidden_size, self._widths[0])))
                parts.append(q * np.sign(np.diag(r)))
            self.params[name] = np.concatenate(parts)

    # -- calls ------------------------------------------------------------------------------------------

    def __call__(self, x: Any, state: Any = None, lengths: Any = None) -> tuple[np.ndarray, Any]:
        """Inference: `y, state`; nothing is kept.

        x : (T, B, I), or (B, T, I) with batch_first; or integers (T, B), which stand for one-hot rows
        state : h (L*D, B, H), for an LSTM (h, c); zeros if None. D: 2 if bidirectional, else 1
        lengths : (B,) integers, how many steps each row has, in any order, 0 too; all T if None
        y : (T, B, D*H), or (B, T, D*H) with batch_first; with two directions the forward one's half comes first; their
            sum (T, B, H) with merge="sum"

        With lengths, y is zero past a row's end, the final state is that of its last step, and the reverse direction
        starts at its end. Their cost is that of the steps there are.
        """
        if lengths is None and (done := self._quickly(x, state)) is not None:
            return done
        y, final, _ = self._forward(x, state, lengths, training=False)
        return y, final

    def _quickly(self, x: Any, state: Any) -> tuple[np.ndarray, Any] | None:
        """A call with little Python around it, for streams and all else that is over before anybody could interrupt it:
        compiled code looks at the types and shapes. None for whatever it does not take, which goes the long way, to be
        converted, or refused with a reason.

        (One text for any number of states, with stars, took 0.3 us of 2 more.)
        """
        try:
            now = x.rows() if type(x) is Embedded and len(x.ids) == 1 else x
            steps = len(now)
            hoists = steps > 1 and self._wide > 0 and self._waits(self._wide, now.shape[1], steps)
            ready = self._hoisted if hoists else self._ready
            if ready is None or ready.version != self.store.version:
                ready = self._make_ready(now, hoists)
                if ready is None:
                    return None
            version, each, largest, turns = ready
            # Compiled code does not look at the order of bytes: once Numba has seen a misaligned array, it takes those
            # of the other order for its like.
            if version != self.store.version or not now.dtype.isnative:
                return None
            work = now.size * each
            workers, pieces = (1, 1) if work < DIVIDED else self._way(largest, steps, now.shape[1], work)
            if not workers:
                return None
            if hoists:
                if (
                    now.dtype != self.dtype
                    or now.shape[2] != self.input_size
                    or self._table_size(steps * now.shape[1]) > HOISTED
                ):
                    return None
                now = self._hoist("l0", now.reshape(-1, self.input_size)).reshape(steps, now.shape[1], -1)
            if state is None:
                h0 = c0 = np.zeros((self.num_layers, now.shape[1], self.hidden_size), self.dtype)
            elif self.states == 1:
                h0 = c0 = state
            else:
                h0, c0 = state
            if len(h0) != self.num_layers or not (h0.dtype.isnative and c0.dtype.isnative):
                return None
            alone = workers == 1 and work < SMALL
            ways = next(turns)
            if work >= SMALL and steps > 1 and self.num_layers > 1:
                return self._stacked([partial(one, workers, work, pieces) for one in ways[2]], now, h0, c0)
            make = np.empty if work < DIVIDED else buffers.empty
            out = make((steps + self.states, *h0.shape), self.dtype)
            first, above = ways[not alone]
            if not alone:
                first, *above = [partial(one, workers, work, pieces) for one in (first, *above)]
            if self.states == 1:
                if not first(now, out, h0) or (above and not all(up(now, out, h0) for up in above)):
                    return None
                final = out[steps]
            else:
                if not first(now, out, h0, c0) or (above and not all(up(now, out, h0, c0) for up in above)):
                    return None
                final = out[steps], out[steps + 1]
            y = out[:steps, -1]
            return y.copy() if above and steps > 1 else y, final
        except NOT_TAKEN:
            return None

    def _stacked(self, runs: Sequence[Any], x: Any, *start: Any) -> tuple[np.ndarray, Any] | None:
        """The steps of one layer after the other, each with an array of its own: those below the last are given back,
        and y is whole. (Where little is to be done, this takes 1.5 times as long as one array for all, and a copy.)
        """
        steps, start, ends = len(x), start[: self.states], []
        for layer, run in enumerate(runs):
            own = [s[layer : layer + 1] for s in start]
            out = buffers.empty((steps + self.states, *own[0].shape), self.dtype)
            if not run(x, out, *own):
                return None
            x = out[:steps, 0]
            ends.append(out[steps:])
        final = np.concatenate(ends, axis=1)
        return x, tuple(final) if self.states > 1 else final[0]

    def forward(
        self, x: Any, state: Any = None, lengths: Any = None, segments: int | str | None = None
    ) -> tuple[np.ndarray, Any, Tape]:
        """Training: `y, state, tape`; the tape is what `backward` needs. `y` is read-only: the tape refers to it.

        x, state, lengths : as in a call; x is referred to as well: leave it as it is until `backward`
        segments : None keeps every gate of every step. A number K from 1 to T divides the steps into as many segments
            and keeps h, and what a segment starts from; `backward` runs the forward of one segment after the other
            again, from the last to the first, each just before its own backward (Chen, Xu, Zhang and Guestrin 2016,
            "Training deep nets with sublinear memory cost"). "sqrt" takes their ceil(sqrt(T)) segments. The gradients
            are the same, bit for bit. It costs about one more forward, and more in short segments, whose products
            have few rows (an RNN has nothing to run again: its F' is known from h). Besides x and h, (T + D) B D H a
            layer, an LSTM's tape shrinks from 5 T B H numbers a layer and direction, a GRU's from 4 T B H (with
            layer_norm 13 and 11), to K B H and none; during `backward` there are those for one segment. (`backward`
            writes every h, and so y, anew: the same bits.)

        What is random comes from the layer's own generator, `rng`, made from `seed`, and depends neither on threads nor
        on lengths. It is drawn in this order: for each layer the mask of its input (B, I), then for each direction that
        of h' (B, H), zoneout of h (T, B, H) and of c (T, B, H); after all these, `dropout` between layers.

        >>> import fastrnn as fr, numpy as np
        >>> lstm = fr.LSTM(3, 5, seed=0)
        >>> x = np.ones((100, 2, 3), np.float32)                       # T, B, I
        >>> y, state, tape = lstm.forward(x, segments="sqrt")          # 10 segments of 10 steps
        >>> dx, dstate = lstm.backward(tape, y)
        >>> y, state, tape = lstm.forward(x)
        >>> np.allclose(dx, lstm.backward(tape, y)[0])
        True
        """
        y, final, tape = self._forward(x, state, lengths, training=True, segments=segments)
        y.flags.writeable = False
        return y, final, tape

    def _forward(
        self, x: Any, state: Any, lengths: Any, training: bool, segments: int | str | None = None
    ) -> tuple[np.ndarray, Any, Any]:
        x, ids, embedding = self._input(x)
        steps, batch = (ids if x is None else x).shape[:2]
        count = check_segments(segments, steps)
        layout = self._layout(steps, batch, lengths)
        given = self._state("state", state, batch)
        first = None if given is None else tuple(layout.sort(s) for s in given)
        H, D = self._widths[0], self.directions
        final = tuple(np.empty((self.num_layers * D, batch, width), self.dtype) for width in self._widths)
        drawn = self._draw(steps, batch) if training else None
        words = None
        if x is None:
            if drawn is not None and drawn[0][0] is not None:  # of indices alone: Sequential looks others up
                words = 1 / (1 - self.input_dropout)
                ids = np.where(drawn[0][0][np.arange(batch), ids], ids, self.input_size)
            ids = layout.pack(ids)
        else:
            x = layout.pack(x)
        kept = []
        for layer in range(self.num_layers):
            mask = rows = None
            if training and layer and self.dropout:
                mask = self.mask(x.shape, self.dropout)
                x = x * mask
            if drawn is not None and x is not None and (rows := drawn[layer][0]) is not None:
                x = layout.times(x, rows)
            h = buffers.empty((layout.directions[0].slots, D * H), self.dtype)
            runs = []
            for d, (name, where) in enumerate(zip(self._names(layer), layout.directions, strict=True)):
                k = layer * D + d
                start = None if first is None else tuple(s[k] for s in first)
                if where.turned is None:
                    own, column, xd, idsd = h, d * H, x, ids
                else:  # each row turned within its own length
                    own, column = buffers.empty((where.slots, H), self.dtype), 0
                    xd = None if x is None else take(x, where.turned)
                    idsd = ids if x is not None else ids[where.turned]
                states, flat = own[:, column : column + H], own.reshape(-1)[column:]
                masks = self._masks(None if drawn is None else drawn[layer][1][d], layout, where)
                dropped = None if masks.drop is None else buffers.empty((where.slots, H), self.dtype)
                run = Run(
                    name, where, layout.total, xd, idsd, embedding, states, flat, own.shape[1], training, words,
                    masks, dropped, 0 if xd is None else xd.shape[1],
                )  # fmt: skip
                cuts = count if training else self._parts(run)
                self._rehearse(training, self._run, run, start)
                ends, tape = self._run(run, start) if cuts is None else self._run_segments(run, start, cuts)
                for s, end in zip(final, ends, strict=True):
                    s[k] = end
                if where.turned is not None:
                    h[batch:, d * H :] = own[batch:][where.turned]
                if training:
                    runs.append((run, tape))
            kept.append(Kept(mask, rows, runs, count))
            x, ids, embedding, words = h[batch : batch + layout.total], NO_IDS, None, None
            if self._beside < D:
                x = np.add(x[:, :H], x[:, H:], out=buffers.empty((layout.total, H), self.dtype))
        y = layout.unpack(x)
        y = y.swapaxes(0, 1).copy() if self.batch_first else y
        tape = Tape(self, (steps, batch), (layout, kept)) if training else None
        final = final if layout.order is None else tuple(layout.unsort(s) for s in final)
        return y, final if self.states > 1 else final[0], tape

    def _run_segments(
        self, run: Run, start: tuple[np.ndarray, ...] | None, count: int
    ) -> tuple[tuple[np.ndarray, ...], list[tuple[np.ndarray, ...]]]:
        """`_run` in segments, which keeps the states but h that each of them starts from."""
        if start is None:
            ends = tuple(np.zeros((run.where.batch, width), self.dtype) for width in self._widths)
        else:
            ends = tuple(s.copy() for s in start)
        return ends, [self._run_segment(run, first, last, ends) for first, last in run.where.cuts(count)]

    def _run_segment(self, run: Run, first: int, last: int, states: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """The forward of a segment, of which nothing is kept; takes `states`, (B, H) each, from its start to its end.

        returns : those of its start but h, which `run.states` has
        """
        one, _ = run.segment(first, last, training=False)
        now = tuple(s[: one.where.batch] for s in states)  # rows that have ended keep what they ended with
        start = tuple(s.copy() for s in now[1:])
        for s, end in zip(now, self._run(one, now)[0], strict=True):
            s[:] = end
        return start

    def _rehearse(self, what: Any, call: Callable[..., Any], *args: Any) -> None:
        """Has the kernels of a first call compiled beside each other."""
        if what in self._rehearsed:
            return
        with rehearsal():
            call(*args)
        self._rehearsed.add(what)

    def _layout(self, steps: int, batch: int, lengths: Any) -> Layout:
        if lengths is not None:
            lengths = check_lengths(lengths, steps, batch)
            if (lengths < steps).any():
                return ragged(steps, lengths, self.directions)
        return uniform(steps, batch, self.directions)

    def mask(self, shape: tuple[int, ...], p: float) -> np.ndarray:
        """Dropout: 0 with probability p, else 1 / (1 - p)."""
        return (self.rng.random(shape, np.float32) >= p).astype(self.dtype) / (1 - p)

    def _zoneouts(self) -> tuple[float, ...]:
        """The probability for each state."""
        return self.zoneout if isinstance(self.zoneout, tuple) else (self.zoneout,)

    def _draw(self, steps: int, batch: int) -> list[tuple[np.ndarray | None, list[Masks]]] | None:
        """For each layer the mask of its input, and for each direction the others; None if there are none at all.

        In the order that `forward` states. Rows are the caller's, and zoneout is for every step, whether a row has it
        or not: so lengths do not change what a row gets.
        """
        p_x, p_h, shares = self.input_dropout, self.recurrent_dropout, self._zoneouts()
        if not any((p_x, p_h, *shares)):
            return None
        drawn = []
        for layer in range(self.num_layers):
            width = self._beside * self._widths[0] if layer else self.input_size
            of_x = self.mask((batch, width), p_x) if p_x else None
            each = []
            for _ in range(self.directions):
                drop = self.mask((batch, self._widths[0]), p_h) if p_h else None
                sizes = zip(self._widths, shares, strict=True)
                keep = tuple(self._keep((steps, batch, size), p) if p else None for size, p in sizes)
                each.append(Masks(drop, keep, any(shares)))
            drawn.append((of_x, each))
        return drawn

    def _keep(self, shape: tuple[int, ...], p: float) -> np.ndarray:
        """Zoneout: 1 with probability p, else 0."""
        return (self.rng.random(shape, np.float32) < p).astype(self.dtype)

    def _masks(self, drawn: Masks | None, layout: Layout, where: Direction) -> Masks:
        """Those of one direction with their rows as the layout has them; in inference the expectation of zoneout."""
        if drawn is None:
            if self._unmasked is not None:
                return self._unmasked
            sizes = zip(self._widths, self._zoneouts(), strict=True)
            return Masks(None, tuple(np.full(size, p, self.dtype) if p else None for size, p in sizes), False)
        drop, packed = drawn.drop, [None if k is None else layout.pack(k) for k in drawn.keep]
        if where.turned is not None:
            packed = [None if k is None else take(k, where.turned) for k in packed]
        return drawn._replace(drop=None if drop is None else layout.sort(drop[None])[0], keep=tuple(packed))

    def backward(self, tape: Tape, dy: Any, dstate: Any = None) -> tuple[np.ndarray | None, Any]:
        """`dx, dstate`, and adds the gradients of all parameters into `grads`.

        dy : the gradient of y, in its shape; None for zero
        dstate : the gradient of the final state, in its structure; None for zero
        returns : the gradient of x (None for integers) and that of the initial state

        Backpropagation through time (Werbos 1990). The tape is used up.
        """
        steps, batch = check_tape(tape, self).shape
        H, D = self._widths[0], self.directions
        letter = f"D*{self._letter(H)}" if self._beside > 1 else self._letter(H)
        sizes = {"T": steps, "B": batch, letter: self._beside * H}
        if dy is not None:
            letters = ("B T " if self.batch_first else "T B ") + letter
            dy = check_array("dy", dy, self.dtype, letters, sizes)
            dy = dy.swapaxes(0, 1).copy() if self.batch_first else dy
        given = self._state("dstate", dstate, batch)
        layout, kept = tape.open(self)
        if given is None:
            d_all = tuple(np.zeros((self.num_layers * D, batch, width), self.dtype) for width in self._widths)
        else:
            d_all = tuple(layout.sort(s.copy()) for s in given)
        dx = None if dy is None else layout.pack(dy)
        with self.store._lock:  # gradients of two threads are added one after the other
            for layer in reversed(range(self.num_layers)):
                one, dy, dx = kept.pop(), dx, None
                if dy is not None and self._beside < D:
                    dy = np.concatenate([dy, dy], axis=1)  # of each direction
                for d, (run, own) in enumerate(one.runs):
                    dstate = tuple([s[layer * D + d] for s in d_all])
                    turned = run.where.turned
                    if turned is None:
                        dyd = None if dy is None else dy.reshape(-1)[d * H :]
                        dx = self._back_all(run, own, one.segments, dyd, D * H, dstate, dx)
                    else:
                        dyd = None if dy is None else np.ascontiguousarray(dy[:, d * H :][turned]).reshape(-1)
                        dxd = self._back_all(run, own, one.segments, dyd, H, dstate, None)
                        if dxd is not None:
                            dx += dxd[turned]
                if one.rows is not None:
                    dx = layout.times(dx, one.rows, dx)
                if one.mask is not None:
                    dx *= one.mask
        if dx is not None:
            dx = layout.unpack(dx)
            dx = dx.swapaxes(0, 1).copy() if self.batch_first else dx
        d_all = d_all if layout.order is None else tuple(layout.unsort(s) for s in d_all)
        return dx, d_all if self.states > 1 else d_all[0]

    def _back_all(
        self, run: Run, kept: Any, segments: int | None, dy: np.ndarray | None, line: int,
        dstate: tuple[np.ndarray, ...], dx: np.ndarray | None,
    ) -> np.ndarray | None:  # fmt: skip
        """`_back` of all steps, or of one segment after the other, from the last to the first.

        dx : (total, I), to which this direction's part is added; None: it is returned in a new array
        returns : dx; None for indices

        Not one bit depends on the segments. What goes from step to step is computed step by step anyway; every sum over
        the steps runs in the order in which backward meets them, and a segment goes on where the one before it stopped.
        """
        add, sums = dx is not None, self._sums(run)
        if run.x is not None and not add:
            dx = buffers.empty(run.x.shape, self.dtype)
        if segments is None:
            self._rehearse("back", self._back, run, kept, dy, line, dstate, dx, add, sums)
            self._back(run, kept, dy, line, dstate, dx, add, sums)
        else:
            for (first, last), start in zip(reversed(run.where.cuts(segments)), reversed(kept), strict=True):
                self._back_segment(run, first, last, start, dy, line, dstate, dx, add, sums)
        self._add_sums(run, sums)
        return dx

    def _back_segment(
        self, run: Run, first: int, last: int, start: tuple[np.ndarray, ...], dy: np.ndarray | None, line: int,
        dstate: tuple[np.ndarray, ...], dx: np.ndarray | None, add: bool, sums: tuple[np.ndarray, ...],
    ) -> None:  # fmt: skip
        """The forward of a segment once more, which writes the h that is there already, and its backward. A function of
        its own, so that what it keeps is gone before the next.
        """
        one, rows = run.segment(first, last, training=True)
        kept = self._run(one, (one.states[one.where.start], *start))[1] if self.recomputes else None
        dy = None if dy is None else dy[rows.start * line :]
        dstate = tuple(s[: one.where.batch] for s in dstate)
        self._back(one, kept, dy, line, dstate, None if dx is None else dx[rows], add, sums)

    def intermediates(self, tape: Tape) -> dict[str, np.ndarray]:
        """All gate activations and states of the forward that returned `tape`, named: "f_l0", "c_l1_reverse".

        tape : of this layer, from a forward without `segments` (which keep none of it), not yet used by `backward`; it
            is only read, and `backward` can follow
        returns : for every layer and direction, in this order, each (T, B, H), or (B, T, H) with batch_first:
            LSTM i f g o c h, GRU r z n h, RNN h (with preactivation=True a = F(h)); gates after their nonlinearity

        With lengths, what is past a row's end is zero. All arrays are new: they are the caller's to change, and stay
        when the tape goes. `ValueError` for another layer's tape and for one that has been used.

        Why this name: what a forward computes between input and output and does not return is its intermediates, in
        Flax too; "activations" would leave out the states, and are as well the functions that gates go through.

        >>> import fastrnn as fr, numpy as np
        >>> lstm = fr.LSTM(3, 5, seed=0)
        >>> y, state, tape = lstm.forward(np.ones((7, 2, 3), np.float32))
        >>> v = lstm.intermediates(tape)
        >>> list(v), v["c_l0"].shape
        (['i_l0', 'f_l0', 'g_l0', 'o_l0', 'c_l0', 'h_l0'], (7, 2, 5))
        >>> np.allclose(v["c_l0"][1:], v["f_l0"][1:] * v["c_l0"][:-1] + v["i_l0"][1:] * v["g_l0"][1:])
        True
        """
        layout, kept = check_tape(tape, self).look(self)
        if kept[0].segments is not None:
            raise ValueError("tape is of a forward in segments, which keeps no gates; run forward without segments")
        named = {}
        for one in kept:
            for run, own in one.runs:
                h = run.states[run.where.shift :][: run.total]
                for name, a in {**self._kept(run, own), self.output_letter: h}.items():
                    a = layout.unpack(a if run.where.turned is None else a[run.where.turned])
                    a = a.swapaxes(0, 1) if self.batch_first else a
                    named[f"{name}_{run.name}"] = np.array(a, order="C")
        return named

    def _gates(self, tape: np.ndarray, run: Run, letters: str) -> dict[str, np.ndarray]:
        """The gates of a tape (N, total, TAPE blocks), whose order `letters` tells, each (total, H)."""
        unit = 64 // self.dtype.itemsize
        blocks = tape.reshape(-(-self.hidden_size // unit), run.total, TAPE, unit).transpose(2, 1, 0, 3)
        whole = blocks.reshape(TAPE, run.total, -1 if run.total else self.hidden_size)[:, :, : self.hidden_size]
        return dict(zip(letters, whole))

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
        sizes = {"L*D" if self.bidirectional else "L": self.num_layers * self.directions, "B": batch}

        def check(name: str, s: Any, width: int) -> np.ndarray:
            letter = self._letter(width)
            return check_array(name, s, self.dtype, " ".join((*sizes, letter)), sizes | {letter: width})

        if self.states == 1:
            return (check(name, state, self._widths[0]),)
        if not isinstance(state, tuple | list) or len(state) != self.states:
            raise TypeError(f"{name} is {type(state).__name__}, expected a pair (h, c)")
        return tuple(check(f"{name}[{k}]", s, self._widths[k]) for k, s in enumerate(state))

    def _letter(self, width: int) -> str:
        """H, or O for what it is projected to."""
        return "H" if width == self.hidden_size else "O"

    # -- what cells have ----------------------------------------------------------------------------------

    def _run(self, run: Run, start: tuple[np.ndarray, ...] | None) -> tuple[tuple[np.ndarray, ...], Any]:
        """The forward of one direction of one layer: writes `run.states`.

        start : the initial states, (B, H) each; None for zeros
        returns : the final states; and, in training, what `_back` and `_kept` are given
        """
        raise NotImplementedError

    def _back(
        self, run: Run, kept: Any, dy: np.ndarray | None, line: int, dstate: tuple[np.ndarray, ...],
        dx: np.ndarray | None, add: bool, sums: tuple[np.ndarray, ...],
    ) -> None:  # fmt: skip
        """The backward of what `_run` did: adds to the gradients of the parameters that are products of matrices.

        dy : flat from this direction's first number on, `line` from row to row; None for zero
        dstate : (B, H) each, the gradients of the final states, overwritten by those of the initial ones
        dx : (total, I), written, or with `add` added to; None for indices
        sums : what `_sums` made, added to

        Sums over steps and rows run in the order `run.where.order`, and go on from what is there: see `_back_all`.
        """
        raise NotImplementedError

    def _sums(self, run: Run) -> tuple[np.ndarray, ...]:
        """Zeros, for the gradients that are not products of matrices (those of biases, of a table), of all segments."""
        raise NotImplementedError

    def _add_sums(self, run: Run, sums: tuple[np.ndarray, ...]) -> None:
        """Adds them to the gradients of the parameters."""
        raise NotImplementedError

    def _kept(self, run: Run, kept: Any) -> dict[str, np.ndarray]:
        """What a cell's forward kept besides h, by the glossary's letters, each (total, H)."""
        return {}

    def _quick_with(self, name: str, i_size: int) -> tuple[Any, ...] | None:
        """The first arguments of `quick`, of the parameters; None if it cannot do what the layer does."""
        raise NotImplementedError

    def _writes_with(self) -> tuple[Any, ...]:
        """Those of `writes` between the weights and the states, of all layers, where `quick` can do what they do."""
        return ()

    # -- writing ------------------------------------------------------------------------------------------

    def write(
        self, embedding: Any, linear: Any, ids: np.ndarray, state: tuple[np.ndarray, ...], uniforms: np.ndarray,
        temperature: float,
    ) -> tuple[np.ndarray, bool] | None:  # fmt: skip
        """`Sequential.write` between these two layers, its arguments checked: the characters, and whether all logits
        were finite. The states are overwritten. None, and nothing done, where no kernel can do it.
        """
        if self.directions > 1 or self.batch_first or self._unmasked is None or self._quick_with("l0", 0) is None:
            return None
        (count, batch), hidden = uniforms.shape, self.hidden_size
        table = self._table(Indexed("l0", embedding))
        w, starts, *more = self.store.made("written", self._written)
        packed, bias = linear.packed()
        h = np.empty((2, *state[0].shape), self.dtype)
        h[0] = state[0]
        written, broken = np.empty((count + 1, batch), np.int64), np.zeros(batch, np.int64)
        written[0] = ids
        columns = linear.out_features
        each = float((w.size + packed.size + OVERHEAD) * batch)  # of a character
        if self._writes_by_rows(batch, each):
            workers = pieces = workers_for(count * each, batch)
        else:
            workers, pieces = workers_for(count * each, self._panels), 1
        logits = np.empty(batch * columns, self.dtype)
        cumulated = np.empty(batch * columns * (workers if pieces == 1 else 1))
        launch(
            self.writes, workers, 1, count * each,
            count, pieces, self.num_layers, batch, hidden, columns, temperature,
            written.reshape(-1), table, w, starts, *more, h.reshape(-1), *(s.reshape(-1) for s in state[1:]),
            packed, bias, logits, cumulated, uniforms.reshape(-1), broken,
        )  # fmt: skip
        state[0][:] = h[count % 2]
        return written[1:], not broken.any()

    def _writes_by_rows(self, batch: int, each: float) -> bool:
        """Whether workers write texts of their own, rather than panels of each character.

        each : multiply-adds of a character
        """
        threads = get_num_threads()
        largest = self.gates * self.hidden_size**2 * (2 if self.num_layers > 1 else 1)
        if each < ROUND * (self.num_layers + 1) or self._by_rows(batch, threads, self._panels, largest):
            return True
        # There are more rounds than in a sequence, and characters are picked by all. With four rows each LSTMs of
        # 2 x 256 units took 0.94 of the time by rows, but 1.2 with two; of 3 x 512 with two, four and eight 1.75, 1.4
        # and 1.3.
        return batch >= 4 * threads and largest * self.dtype.itemsize <= 1 << 21

    def _written(self) -> tuple[Any, ...]:
        """What `writes` takes of the parameters: the packed weights of all layers, where each begins, and more."""
        parts = [self._quick_with(f"l{layer}", layer and self.hidden_size) for layer in range(self.num_layers)]
        sizes = [one[0].size for one in parts if one is not None]
        w = buffers.aligned(sum(sizes), self.dtype)
        starts = np.cumsum([0, *sizes])
        for one, start in zip(parts, starts, strict=False):
            assert one is not None
            w[start : start + one[0].size] = one[0]
        return w, starts, *self._writes_with()

    # -- what cells call ----------------------------------------------------------------------------------

    def _make_ready(self, x: np.ndarray, hoists: bool) -> Quick | None:
        """What calls like that of x, and later ones with these parameters, need to be quick ones; None if they cannot
        be.
        """
        # Without zoneout; and not for arrays that go the long way in any case.
        if self.directions > 1 or self.batch_first or self._unmasked is None or config.DISABLE_JIT:
            return None
        if x.dtype != self.dtype or x.ndim != 3 or x.shape[2] != self.input_size or (hoists and self.num_layers > 1):
            return None
        widths = [0 if hoists else self.input_size] + (self.num_layers - 1) * [self.hidden_size]
        sizes = [self.gates * self.hidden_size * (width + self.hidden_size) for width in widths]
        each = sum(sizes) / self.input_size
        if not self._way(max(sizes), len(x), x.shape[1], x.size * each)[0]:
            return None
        if "quick" not in self._rehearsed:
            with rehearsal() as wanted:
                own = self._quick_with("l0", widths[0])
                if own is not None:
                    wanted.append((self.quick.held, self._quick_arguments(own)))
            self._rehearsed.add("quick")
        version, made = self.store.version, []
        for layer, width in enumerate(widths):
            own = self._quick_with(f"l{layer}", width)
            if own is None:
                return None
            made.append(own)
        if self._compiled is None:
            self._compiled = self.quick.for_types(*self._quick_arguments(made[0]))
        ways = []
        for back in (False, True) if sum(own[0].nbytes for own in made) >= LARGE else (False,):
            given = [(*own, ~layer if back else layer) for layer, own in enumerate(made)]
            alone, *above = [partial(self._compiled, *ALONE, *own, 1) for own in given]
            divided, *above_divided = [partial(divide, self._compiled, own) for own in given]
            lone = [partial(divide, self._compiled, (*own, ~0 if back else 0)) for own in made]
            ways.append(((alone, above), (divided, above_divided), lone))
        ready = Quick(version, each, max(sizes), cycle(ways))
        if hoists:
            self._hoisted = ready
        else:
            self._ready = ready
        return ready

    def _quick_arguments(self, own: tuple[Any, ...]) -> tuple[Any, ...]:
        """Arguments of all the types that `quick` takes."""
        a = np.empty((1, 1, 1, 1), self.dtype)
        return *ALONE, *own, 0, 1, a[0], a, *self.states * (a[0],)

    def _way(self, largest: int, steps: int, batch: int, work: float) -> tuple[int, int]:
        """How many workers a quick call is for, none if it goes the long way; and into how many parts its rows are
        divided for them, or each step's panels are: 1.
        """
        if steps * batch * largest > LONG:  # what cannot be interrupted
            return 0, 1
        threads = get_num_threads()
        by_rows = steps > 1 and self._by_rows(batch, threads, self._panels, largest)
        # To hand out a call costs some us, to wait for each other at a step less than one.
        workers = at_hand(work) if work >= DIVIDED * (1 if by_rows else max(1, steps / 8)) else 1
        # More is divided by those who are there already, and into enough items.
        if work >= SMALL and (workers < threads or not (by_rows or self._panels >= 4 * threads)):
            return 0, 1
        return workers, workers if by_rows else 1

    def _by_rows(self, batch: int, workers: int, panels: int, numbers: int) -> bool:
        """Whether workers take rows of all steps, and then wait for nobody, but stream all weights: so many must stay
        in the cache of each, or nearly so if there are enough rows.
        """
        size, rows = numbers * self.dtype.itemsize, batch // workers
        # By rows an LSTM (150, 16, 256, 256), 1 MiB of weights, takes 0.95 of the time backward; but one of 0.8 MiB
        # with two rows for each worker, (50, 4, 160, 160), 1.3 forward.
        return rows >= 1 and (panels == 1 or (size <= 1 << 19 and rows >= 2) or (size <= 1 << 20 and rows >= 8))

    def _tape(self, rows: int) -> np.ndarray:
        """A tape of so many rows, flat."""
        return buffers.empty(self._blocks * rows * TAPE * (64 // self.dtype.itemsize), self.dtype)

    def _share(self, run: Run, i_size: int, panels: int) -> Share:
        """Who computes what. Results do not depend on it."""
        batch = run.where.batch
        depth = i_size + self.hidden_size
        work = float((self.gates * self.hidden_size * depth + OVERHEAD) * run.total)
        workers = workers_for(work, panels * batch)
        step = work / max(1, run.where.steps)
        if workers > 1:
            by_rows = self._by_rows(batch, workers, panels, self.gates * self.hidden_size * depth)
        else:
            # Alone, by panels only where a step of all rows would keep the caller too long: rows in pieces would read
            # all weights once for each, and took 1.15 of the time at (25, 128, 1024, 1024).
            by_rows = step <= LONGEST or panels == 1
        pieces = workers if by_rows else 1
        # In a step there are enough items to keep all workers busy to its end, and none that keeps the caller long.
        items, least = (1, 1) if by_rows else (panels, 4 * workers)
        while (items * pieces < least or items * pieces * LONGEST < step) and batch >= 2 * pieces * ROWS:
            pieces *= 2
        return Share(work, workers, by_rows, pieces, run.where.bounds(pieces))

    def _inputs(self, run: Run, norm: Normalised | None) -> tuple[np.ndarray | None, int, np.ndarray, np.ndarray]:
        """What a forward reads: x, and its I; or None, 0, and for each row of x the row of a table that is U x + b.

        Where x is indices the table has the few inputs that there are. Where a step has so few rows that it would wait
        for U to be read, it has all rows of x, in one product. Bits do not depend on it: the sum over I starts from b
        and goes on over H either way.
        """
        if norm is not None:  # U x alone, without b
            return None, 0, norm.ids, norm.table
        if run.x is None:
            return None, 0, run.ids.reshape(-1), self._table(run)
        if not self._hoists(run):
            return run.x, run.i_size, run.ids.reshape(-1), self._empty
        return None, 0, NONE, self._hoist(run.name, run.x).reshape(-1)

    def _hoist(self, name: str, x: np.ndarray) -> np.ndarray:
        """(N, G H): U x + b for each row of x (N, I)."""
        bias = self.store.made((name, "b"), lambda: self._bias(name)) if self.bias else self._empty
        return multiply(x, self._packed_u(name, x.shape[1]), self.gates * self.hidden_size, bias)

    def _hoists(self, run: Run) -> bool:
        """Whether U x is computed for all steps before the first one.

        Measured on an LSTM with 1 MiB of second-level cache a core, 32 of third: at (187, 1, 1536, 1536) it took 0.4 of
        the time, at (25, 4, 1024, 1024) half, at (150, 1, 256, 256) 0.8; but 1.15 at (25, 4, 512, 512), 1.1 at
        (150, 4, 256, 256), as the table is written and read again.
        """
        pays = run.where.steps > 1 and self._waits(run.i_size, run.where.batch, run.where.steps)
        return pays and (not run.training or self._table_size(run.total) <= HOISTED)

    def _bytes_of_u(self, i_size: int) -> int:
        return i_size * self.gates * self.hidden_size * self.dtype.itemsize

    def _waits(self, i_size: int, few: int, steps: int) -> bool:
        """Whether so many steps of few rows would wait for U to be read, longer than one product more takes."""
        of_u, workers = self._bytes_of_u(i_size), get_num_threads()
        # One row reads at half of the speed of a product, from the second level too: alone 0.76 to 0.83 of the time
        # from 64 KiB on; an RNN (150, 1, 256, 256), 256 KiB, on two threads 0.88. With less for each of several, a call
        # may be left with too little to be divided: a GRU (100, 1, 128, 128) took 1.15. Several layers have more Python
        # around them then (`_quickly`), and must be longer.
        enough = WAITED if workers == 1 else 2 * WAITED * workers
        long = few == 1 and of_u >= enough and of_u * steps >= 1 << (23 if self.num_layers == 1 else 25)
        return long or of_u > few << 20 or (few <= 2 and of_u >= 1 << 19)

    def _table_size(self, rows: int) -> int:
        """Bytes of U x for so many rows of x."""
        return rows * self.gates * self.hidden_size * self.dtype.itemsize

    def _parts(self, run: Run) -> int | None:
        """Into how many segments a forward for inference is divided, so that no table is larger than HOISTED."""
        size = self._table_size(run.total)
        return -(-size // HOISTED) if size > HOISTED and run.x is not None and self._hoists(run) else None

    def _packed_u(self, name: str, i_size: int) -> np.ndarray:
        rows, u = self.gates * self.hidden_size, self.store.flat(f"weight_ih_{name}")
        return self.store.made((name, "u^"), lambda: pack(i_size, rows, u, transposed=True))

    def _indices(self, run: Run) -> int:
        """How many different inputs an index can stand for."""
        if run.embedding is None:
            return self.input_size + (run.words is not None)
        return run.embedding.num

    def _table(self, run: Run | Indexed) -> np.ndarray:
        """(V G H,): U x + b for every input x that an index can stand for; empty for other inputs."""
        if run.x is not None:
            return self._empty
        return self._held("table", run, lambda: self._products(run, self.bias).reshape(-1))

    def _held(self, what: str, run: Run | Indexed, make: Callable[[], Any]) -> Any:
        """`make()`, kept under the name `what` until the parameters change, or those of the embedding."""
        name, embedding = run.name, run.embedding
        held = self.store.made((what, name), list)
        source = (None, run.words) if embedding is None else (embedding.store, embedding.store.version)
        for of, made in held:
            if of[0] is source[0] and of[1] == source[1]:
                return made
        made = make()
        if not rehearsing():
            held[:] = [(source, made)]
        return made

    def _products(self, run: Run | Indexed, bias: bool) -> np.ndarray:
        """(V, G H): U x for every input x that an index can stand for, with `bias` U x + b."""
        name, embedding = run.name, run.embedding
        u = self.store.flat(f"weight_ih_{name}")
        if embedding is None:
            table = np.array(u.reshape(-1, self.input_size).T, order="C")  # of one column too, never a view
            if run.words is not None:  # and a row for the inputs that are dropped
                table = np.concatenate([table * run.words, np.zeros_like(table[:1])])
            if bias:
                table += self._bias(name)
            return table
        rows = self.gates * self.hidden_size
        packed = pack(self.input_size, rows, u, transposed=True)
        return multiply(
            embedding.flat.reshape(-1, embedding.dim), packed, rows, self._bias(name) if bias else self._empty
        )

    def _normalised(self, run: Run) -> Normalised | None:
        """What a forward with layer normalisation works on; None without."""
        if not self.layer_norm:
            return None
        rows, epsilon = self.gates * self.hidden_size, self.layer_norm_eps

        def normalised(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return a.reshape(-1), normalise(a, epsilon)

        if run.x is None:
            table, scale = self._held("norm", run, lambda: normalised(self._products(run, False)))
            ids = run.ids.reshape(-1)
        else:
            table, scale = normalised(multiply(run.x, self._packed_u(run.name, run.i_size), rows, self._empty))
            ids = np.arange(run.total)
        kept = run.total if run.training else run.where.batch
        scales = np.empty((5 if self.states == 1 else 7) * run.total if run.training else 0, self.dtype)
        return Normalised(ids, table, scale, self._tape(kept), scales)

    def _partials(self, run: Run, kinds: int) -> np.ndarray:
        """As many for U x and W h' together as there are `kinds`, two more for the LSTM's c."""
        return np.empty((kinds + (2 if self.states > 1 else 0)) * self._blocks * run.where.batch, self.dtype)

    def _packed_gains(self, name: str) -> np.ndarray:
        return self.store.made((name, "gain"), lambda: in_blocks(self._gains(name)))

    def _gains(self, name: str) -> list[np.ndarray]:
        """The gains of a direction, (H,) each, in the order of the cell's kernels."""
        raise NotImplementedError

    def _norm_forward(self, norm: Normalised | None, run: Run) -> tuple[Any, ...]:
        """gain, epsilon, batch, v, partials, scales, as the kernels of all cells take them."""
        if norm is None:
            return None, 0.0, 0, self._empty, self._empty, self._empty
        gain, parts = self._packed_gains(run.name), self._partials(run, 2)
        return gain, self.layer_norm_eps, run.where.batch, norm.v, parts, norm.scales

    def _norm_backward(self, norm: Normalised | None, run: Run) -> tuple[Any, ...]:
        """gain, batch, table, scale, v, partials, scales, dv, likewise."""
        if norm is None:
            return None, 0, *(6 * (self._empty,))
        gain, batch, parts = self._packed_gains(run.name), run.where.batch, self._partials(run, 4)
        return gain, batch, norm.table, norm.scale, norm.v, parts, norm.scales, self._tape(batch)

    def _dtable(self, run: Run) -> np.ndarray:
        """Zeros (V, G H) for the gradient of the table, or empty if there is none."""
        if run.x is not None:
            return self._empty
        return np.zeros((self._indices(run), self.gates * self.hidden_size), self.dtype)

    def _bias(self, name: str) -> np.ndarray:
        """What is added to U x before the product with h'."""
        return self.store.flat(f"bias_ih_{name}") + self.store.flat(f"bias_hh_{name}")

    def _table_backward(self, dtable: np.ndarray, run: Run) -> None:
        """Adds the gradient of the table, if there is one, to those of what it was made from (the bias apart)."""
        if run.x is not None:
            return
        embedding = run.embedding
        du = self.store.grad(f"weight_ih_{run.name}")
        if embedding is None:
            # Transposed first, the sum takes a fifth of the time.
            turned = np.ascontiguousarray((dtable if run.words is None else dtable[:-1] * run.words).T)
            du += turned
            return
        rows = self.gates * self.hidden_size
        weight = embedding.flat.reshape(-1, embedding.dim)
        add_gradient(du, weight, dtable)
        if embedding.frozen:
            return
        packed = pack(rows, self.input_size, self.store.flat(f"weight_ih_{run.name}"), transposed=False)
        embedding.add_grad(multiply(dtable, packed, self.input_size, self._empty))


def _check_zoneout(value: Any, states: int) -> float | tuple[float, float]:
    """A probability or, if there are two states, one for each; one number is for both."""
    if states == 1:
        return check_probability("zoneout", value)
    if not isinstance(value, tuple | list):
        p = check_probability("zoneout", value)
        return p, p
    if len(value) != states:
        raise ValueError(f"zoneout has {len(value)} numbers, expected one, or two: for h and for c")
    h, c = (check_probability(f"zoneout[{k}]", p) for k, p in enumerate(value))
    return h, c


def _check_merge(merge: Any, bidirectional: bool) -> str:
    """One of MERGES; a sum takes two directions."""
    check_choice("merge", merge, MERGES)
    if merge == "sum" and not bidirectional:
        raise ValueError("merge is 'sum', and there is one direction: only the two of bidirectional=True are summed")
    return merge
