"""Models stepped as their input arrives: one stream, or thousands of independent ones together.

A model is called with a state and returns the next one; here that state is kept between the calls. Only the public call
`y, state = model(x, state)` is used, and the shapes of its state, so whatever has a state and reads forward can be
streamed: RNN, LSTM, a Sequential with any of them.

Letters: `T` time steps, `B` streams in one step, `I` input size, `H` the size of an output, `L` layers.

What is promised of both:

- The outputs are the bits that the model gives for the whole sequence in one call: neither the chunks nor the other
  streams of a step change them.
- A call that fails leaves every state as it was.
- When the model's weights change, the next step uses the new ones. The state stays, as the old weights made it: `reset`
  for a clean start.
- Any thread may call anything at any time; calls on one stream, or on one pool, are made one after the other. A child
  that was forked off goes on from the states of that moment.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from time import monotonic_ns
from typing import Any, NamedTuple

import numpy as np

from .checks import check_array, check_choice, check_size, said

__all__ = ["Stream", "StreamPool"]


# --- what a model takes and keeps -------------------------------------------------------------------------------


def _leaves(state: Any) -> list[np.ndarray]:
    """The arrays of a state, in order."""
    if isinstance(state, np.ndarray):
        return [state]
    return [leaf for part in state for leaf in _leaves(part)]


def _nested(like: Any, leaves: Iterator[np.ndarray]) -> Any:
    """The next arrays of `leaves` in the structure of `like`."""
    return next(leaves) if isinstance(like, np.ndarray) else tuple(_nested(part, leaves) for part in like)


class _Plan:
    """How one model is stepped: what it takes, and a zero state of a single stream, never to be written to."""

    def __init__(self, model: Any) -> None:
        if not hasattr(model, "recurrent"):
            raise TypeError(f"model is {type(model).__name__}, expected a layer or a model of layers")
        if not model.recurrent:
            raise TypeError(f"{type(model).__name__} keeps no state from step to step: there is nothing to stream")
        parts = model.parts()
        recurrent = [layer for layer in parts if layer.recurrent]
        if any(getattr(layer, "bidirectional", False) for layer in recurrent):
            raise ValueError("the model is bidirectional: it reads the sequence from its end too, so it has no stream")
        orders = {bool(getattr(layer, "batch_first", False)) for layer in recurrent}
        if len(orders) > 1:
            raise ValueError("some layers have batch_first=True and some have not: T and B cannot be told apart")
        self.batch_first = orders.pop()
        first = next(layer for layer in parts if not layer.any_shape)
        self.only_ids = not first.takes_numbers
        self.takes_ids = first is parts[0] and first.takes_indices
        self.bound_name = "num" if self.only_ids else "I"
        if first.width is None:
            raise TypeError(f"the first layer is {type(first).__name__}, expected one that says its input_size")
        self.size: int = first.width
        self.dtype: np.dtype = first.dtype
        probe = np.zeros((1, 1), np.int64) if self.only_ids else np.zeros((1, 1, self.size), self.dtype)
        y, state = model(probe)
        self.y_shape, self.y_dtype = y.shape[2:], y.dtype
        self.zeros = _nested(state, iter([np.zeros(leaf.shape, leaf.dtype) for leaf in _leaves(state)]))

    def check(self, x: Any, lead: str = "", sizes: dict[str, int] | None = None) -> np.ndarray:
        """`x` as the layers take it: integers (lead), where the model takes them, or numbers (lead, I).

        lead : the letter of the axis before the last, "T" or "B"; "" for one step of one stream
        """
        sizes = sizes or {}
        whole = isinstance(x, int) or (isinstance(x, np.ndarray | np.generic) and x.dtype.kind in "iub")
        if self.only_ids or (self.takes_ids and whole):
            return self._check_ids(x, lead, sizes)
        return check_array("x", x, self.dtype, f"{lead} I".strip(), {**sizes, "I": self.size})

    def _check_ids(self, x: Any, lead: str, sizes: dict[str, int]) -> np.ndarray:
        wanted = f"indices {said((lead,))}" if lead else "an index"
        if not self.only_ids:
            wanted += f" or floats {said((lead, 'I') if lead else ('I',))} with I={self.size}"
        if lead in sizes:
            wanted += f" with {lead}={sizes[lead]}" if self.only_ids else f", {lead}={sizes[lead]}"
        if not isinstance(x, int | list | tuple | np.ndarray | np.generic) or isinstance(x, bool):
            raise TypeError(f"x is {type(x).__name__}, expected {wanted}")
        inside = f"expected 0 <= x < {self.bound_name}={self.size}"
        if isinstance(x, int) and not 0 <= x < self.size:  # before it is too large for any array
            raise ValueError(f"x is {x}, {inside}")
        try:
            ids = np.asarray(x)
        except ValueError:
            raise ValueError(f"x is ragged, expected {wanted}") from None
        untyped = ids.size == 0 and isinstance(x, list | tuple)  # an empty list, of what?
        if ids.dtype.kind not in "iu" and not untyped:
            raise TypeError(f"x has dtype {ids.dtype}, expected {wanted}")
        if ids.ndim != len(lead) or (lead in sizes and ids.size != sizes[lead]):
            raise ValueError(f"x has shape {ids.shape}, expected {wanted}")
        if not ids.flags.c_contiguous:
            ids = ids.copy()  # of a view of one number that claims any shape, this fails at once
        if ids.size and (ids.min() < 0 or ids.max() >= self.size):
            raise ValueError(f"x holds {ids.min()} to {ids.max()}, {inside}" if lead else f"x is {ids}, {inside}")
        return ids.astype(np.int64, copy=False)

    def check_state(self, name: str, state: Any, like: Any) -> Any:
        """A copy of `state`, if it has the structure and the shapes of `like`."""
        if isinstance(like, np.ndarray):
            layers, batch, hidden = like.shape
            return check_array(name, state, like.dtype, "L B H", {"L": layers, "B": batch, "H": hidden}).copy()
        if not isinstance(state, tuple | list) or len(state) != len(like):
            got = f"{len(state)} entries" if isinstance(state, tuple | list) else f"type {type(state).__name__}"
            raise TypeError(f"{name} has {got}, expected a tuple of {len(like)}, structured as the model returns it")
        return tuple(
            self.check_state(f"{name}[{k}]", s, part) for k, (s, part) in enumerate(zip(state, like, strict=True))
        )


_plans: weakref.WeakKeyDictionary[Any, _Plan] = weakref.WeakKeyDictionary()


def _plan(model: Any) -> _Plan:
    """The plan of `model`; its sizes never change."""
    found = _plans.get(model) if hasattr(model, "recurrent") else None
    if found is None:
        found = _Plan(model)
        _plans[model] = found
    return found


# --- one stream -------------------------------------------------------------------------------------------------


class Stream:
    """One sequence, read as it comes: the state stays inside. `model.stream()` makes one.

    >>> import fastrnn as fr, numpy as np
    >>> lstm = fr.LSTM(3, 5, seed=0)
    >>> x = np.ones((7, 3), np.float32)                # T, I
    >>> stream = lstm.stream()
    >>> first = stream.push(x[0])                      # I -> H
    >>> rest = stream.push_many(x[1:])                 # T, I -> T, H
    >>> y, state = lstm(x[:, None])                    # the whole sequence at once: the same bits
    >>> np.array_equal(np.vstack([first, rest]), y[:, 0])
    True
    >>> other = stream.clone()                         # goes its own way from here
    >>> stream.reset()
    >>> np.array_equal(stream.push(x[0]), first)
    True

    Weights that change are used from the next push on; the state stays as it is. A stream can be pickled; its model
    goes with it, and streams that are pickled together still share theirs. `TypeError` for a model without state,
    `ValueError` for one that is bidirectional.
    """

    __slots__ = ("__weakref__", "_index", "_lock", "_model", "_plan", "_state")

    def __init__(self, model: Any) -> None:
        self._plan = _plan(model)
        self._model = model
        # Replaced as a whole, never written to: clones and the zero state may share it.
        self._state = self._plan.zeros
        self._index = np.zeros((1, 1), np.int64)
        self._lock = threading.RLock()
        _live[id(self)] = self

    @property
    def model(self) -> Any:
        """The layer or model that is stepped."""
        return self._model

    def push(self, x: Any) -> np.ndarray:
        """One step: y (H,), or the logits of a model that ends in a Linear.

        x : (I,), or an index, where the model takes indices

        `ValueError` for a wrong shape or an index out of range, `TypeError` for a wrong type; the state is then as
        it was.
        """
        with self._lock:
            try:
                if type(x) is np.ndarray:
                    x3: Any = x[None, None]
                elif type(x) is int:
                    x3 = self._index
                    x3[0, 0] = x
                else:
                    x3 = self._plan.check(x)[None, None]
                y, self._state = self._model(x3, self._state)
            except (ArithmeticError, TypeError, ValueError):
                # The layers speak of (T, B, I): the same complaint in this method's words, if it is one about x.
                self._plan.check(x)
                raise
        return y[0, 0]

    def push_many(self, x: Any) -> np.ndarray:
        """Some steps at once: y (T, H).

        x : (T, I), or indices (T,), where the model takes them; T from 1

        Errors as of `push`.
        """
        with self._lock:
            x = self._plan.check(x, "T")
            if not x.shape[0]:
                raise ValueError(f"x has shape {x.shape}, expected at least one step (T from 1)")
            if self._plan.batch_first:
                y, self._state = self._model(x[None], self._state)
                return y[0]
            y, self._state = self._model(x[:, None], self._state)
            return y[:, 0]

    def reset(self) -> None:
        """Back to the zero state, as before the first push."""
        with self._lock:
            self._state = self._plan.zeros

    @property
    def state(self) -> Any:
        """A copy of the state, as the model returns it for B = 1: h (L, 1, H); for an LSTM (h, c); for a Sequential a
        tuple of these. Setting it copies in; None is the zero state. `ValueError` for a wrong shape, `TypeError` for
        another structure.

        >>> import fastrnn as fr, numpy as np
        >>> stream = fr.RNN(3, 5).stream()
        >>> stream.state = np.ones((1, 1, 5), np.float32)
        >>> stream.state.sum()
        np.float32(5.0)
        """
        state = self._state
        return _nested(state, iter([leaf.copy() for leaf in _leaves(state)]))

    @state.setter
    def state(self, state: Any) -> None:
        zeros = self._plan.zeros
        new = zeros if state is None else self._plan.check_state("state", state, zeros)
        with self._lock:
            self._state = new

    def clone(self) -> Stream:
        """Another stream of the same model, in the same state."""
        other = Stream(self._model)
        other._state = self._state
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {"model": self._model, "state": self._state}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        Stream.__init__(self, kept["model"])
        self._state = kept["state"]


# --- many streams -----------------------------------------------------------------------------------------------

# An id is a row of the pool's arrays plus a multiple of this, another one each time that the row is given out: an id
# of a closed stream never means the stream that came after it.
ROWS = 1 << 32
FULL = ("grow", "evict", "raise")


class StreamPool:
    """Thousands of independent streams of one model, any of them stepped together. `model.stream_pool(capacity)` makes
    one. A stream's outputs are the bits that it would give alone.

    capacity : streams that there is memory for
    full : what `open` does when all are open: "grow" doubles the capacity, "evict" closes the stream that was not used
        for the longest time, "raise" raises `RuntimeError`
    linger_us : microseconds that `submit` may wait for company

    >>> import fastrnn as fr, numpy as np
    >>> lstm = fr.LSTM(3, 5, seed=0)
    >>> x = np.ones((2, 3), np.float32)                # B, I
    >>> with lstm.stream_pool(1000) as pool:
    ...     a, b, c = pool.open(), pool.open(), pool.open()
    ...     y = pool.step([c, a], x)                   # row k is the output of the k-th id
    ...     future = pool.submit(b, x[0])              # from any thread: steps with whoever else comes
    ...     np.array_equal(y[0], future.result()), len(pool)
    (True, 3)
    >>> alone = lstm.stream()
    >>> np.array_equal(alone.push(x[0]), y[1])
    True

    A stream is used when it is opened, stepped, reset or given a state; of those stepped together, the one named first
    counts as used first. Ids that are not those of open streams raise `KeyError`, and nothing changes. A pool can be
    pickled, with its model and its open streams, without what is submitted and not yet stepped.
    """

    _inbox: _Inbox | None = None

    def __init__(self, model: Any, capacity: int, full: str = "grow", linger_us: float = 200.0) -> None:
        capacity = check_size("capacity", capacity)
        if capacity >= ROWS:
            raise ValueError(f"capacity is {capacity}, expected less than {ROWS}")
        check_choice("full", full, FULL)
        if isinstance(linger_us, bool) or not isinstance(linger_us, int | float | np.number):
            raise TypeError(f"linger_us is {type(linger_us).__name__}, expected a number of microseconds")
        if not 0 <= linger_us <= 1e9:
            raise ValueError(f"linger_us is {linger_us}, expected microseconds, 0 <= linger_us <= 1e9")
        self._plan = _plan(model)
        self._model, self._full, self._linger_us = model, full, float(linger_us)
        shapes = [(leaf.shape, leaf.dtype) for leaf in _leaves(self._plan.zeros)]
        #: one array (L, capacity, H) for each array of the model's state
        self._states = [np.zeros((layers, capacity, hidden), dtype) for (layers, _, hidden), dtype in shapes]
        self._used = np.zeros(capacity, np.int64)  # when the stream of a row was last used
        self._place = np.empty(capacity, np.int64)  # scratch: where a row is named in a step
        self._next = np.arange(capacity, dtype=np.int64)  # the id that the next stream of a row will get
        self._owner = np.full(capacity, -1, np.int64)  # the id of the open stream of a row, or -1
        self._free = list(range(capacity - 1, -1, -1))
        self._clock = 0
        self._begin()

    def _begin(self) -> None:
        # What a step has computed, while it is being written: (rows, arrays). Whoever comes after an interrupted step
        # (Ctrl-C, a fork by another thread) finishes the writing first, so a state is never half an old one.
        self._journal: tuple[Any, list[np.ndarray]] | None = None
        self._lock: Any = threading.RLock()
        _live[id(self)] = self

    @property
    def model(self) -> Any:
        """The layer or model that is stepped."""
        return self._model

    @property
    def capacity(self) -> int:
        """How many streams there is memory for."""
        return self._owner.size

    def __len__(self) -> int:
        """How many streams are open."""
        return int(np.count_nonzero(self._owner >= 0))

    def __contains__(self, id: Any) -> bool:
        """Whether `id` is that of an open stream."""
        try:
            self._row(id)
        except (KeyError, TypeError):
            return False
        return True

    def ids(self) -> list[int]:
        """The ids of all open streams, the least recently used first."""
        with self._lock:
            return self._oldest().tolist()

    # -- streams come and go --------------------------------------------------------------------------------------

    def open(self, state: Any = None) -> int:
        """A new stream's id, an int that this pool has not given to any stream before.

        state : where it begins, in the form of `Stream.state`; None for zeros

        When all of the capacity is open, see `full`.
        """
        new = self._leaves_of(state)
        with self._lock:
            self._settle()
            if not self._free:
                self._make_room()
            # In this order an interruption can lose a row, until _make_room finds it, but not give it out twice.
            row = self._free.pop()
            self._write([row], new)
            self._touch(row)
            id = int(self._next[row])
            self._next[row] = id + ROWS
            self._owner[row] = id
            return id

    def _make_room(self) -> None:
        """Puts rows on the list of free ones."""
        rows = np.flatnonzero(self._owner < 0)
        if not rows.size and self._full == "raise":
            raise RuntimeError(f"all {self.capacity} streams of the pool are open; close one, or evict()")
        if not rows.size and self._full == "evict":
            self.evict()
            return
        if not rows.size:
            old, new = self.capacity, min(2 * self.capacity, ROWS - 1)
            if new == old:
                raise RuntimeError(f"all {old} streams of the pool are open, and there can be no more")
            more = np.arange(old, new, dtype=np.int64)
            states = [np.zeros((a.shape[0], new, a.shape[2]), a.dtype) for a in self._states]
            for a, b in zip(self._states, states, strict=True):
                b[:, :old] = a[:, :old]  # an interrupted attempt may have left it larger
            used, owner = np.zeros(new, np.int64), np.full(new, -1, np.int64)
            used[:old], owner[:old] = self._used[:old], self._owner
            # The owners last: with them the new rows are there.
            self._states, self._used, self._place = states, used, np.empty(new, np.int64)
            self._next = np.concatenate([self._next[:old], more])
            self._owner = owner
            rows = more
        self._free = rows[::-1].tolist()

    def close(self, id: int) -> None:
        """Ends a stream; its place is free. What has been submitted for it and is not stepped yet gets `KeyError`."""
        with self._lock:
            self._close(self._row(id))

    def _close(self, row: int) -> None:
        self._owner[row] = -1
        self._free.append(row)

    def evict(self, count: int = 1) -> list[int]:
        """Closes the `count` least recently used streams, or all if there are fewer, and returns their ids."""
        count = check_size("count", count, 0)
        with self._lock:
            ids = self._oldest(count).tolist()
            for id in ids:
                self._close(id % ROWS)
            return ids

    def _oldest(self, count: int | None = None) -> np.ndarray:
        rows = np.flatnonzero(self._owner >= 0)
        if count == 1 and rows.size:
            return self._owner[rows[self._used[rows].argmin()]].reshape(1)
        return self._owner[rows[self._used[rows].argsort()][:count]]

    def clone(self, id: int) -> int:
        """The id of a new stream in the same state as stream `id`."""
        with self._lock:
            return self.open(self.state(id))

    def reset(self, id: int) -> None:
        """Puts a stream back to the zero state."""
        self.set_state(id, None)

    def state(self, id: int) -> Any:
        """A copy of a stream's state, in the form of `Stream.state`; reading it is no use."""
        with self._lock:
            row = self._row(id)
            self._settle()
            return _nested(self._plan.zeros, iter([a[:, row : row + 1].copy() for a in self._states]))

    def set_state(self, id: int, state: Any) -> None:
        """Sets a stream's state (a copy of it; None for zeros). Errors as of `Stream.state`."""
        new = self._leaves_of(state)
        with self._lock:
            row = self._row(id)
            self._settle()
            self._write([row], new)
            self._touch(row)

    def _leaves_of(self, state: Any) -> list[np.ndarray]:
        zeros = self._plan.zeros
        return _leaves(zeros if state is None else self._plan.check_state("state", state, zeros))

    # -- steps ----------------------------------------------------------------------------------------------------

    def step(self, ids: Any, x: Any) -> np.ndarray:
        """One step of the streams `ids`, in one call of the model: y (B, H), row k for the k-th id.

        ids : (B,), a list or an array, each at most once
        x : (B, I), or indices (B,), where the model takes them

        `KeyError` for an id that is not open, `ValueError` for one that is named twice and for wrong shapes or indices
        out of range, `TypeError` for wrong types. No stream has then been stepped.
        """
        with self._lock:
            self._settle()
            clock = self._clock
            rows, places = self._rows(ids)
            x = self._plan.check(x, "B", {"B": rows.size})
            if not rows.size:
                return np.empty((0, *self._plan.y_shape), self._plan.y_dtype)
            first = self._plan.batch_first
            state = _nested(self._plan.zeros, iter([a.take(rows, axis=1) for a in self._states]))
            y, state = self._model(x[:, None] if first else x[None], state)
            if self._clock != clock:  # the lock lets its own thread in again
                raise RuntimeError("a signal handler has used the pool in the middle of this step: it is not made")
            self._write(rows, _leaves(state))
            self._used[rows] = self._clock + places
            self._clock += rows.size
            return y[:, 0] if first else y[0]

    def _write(self, rows: Any, new: list[np.ndarray]) -> None:
        """Sets the states of `rows`: from the first line on, this has happened."""
        self._journal = (rows, new)
        self._settle()

    def _settle(self) -> None:
        """Finishes what was being written. Doing it twice does no harm."""
        if self._journal is not None:
            rows, new = self._journal
            for a, leaf in zip(self._states, new, strict=True):
                a[:, rows] = leaf
            self._journal = None

    def _touch(self, row: int) -> None:
        self._used[row] = self._clock
        self._clock += 1

    # -- ids ------------------------------------------------------------------------------------------------------

    def _row(self, id: Any) -> int:
        """The row of an open stream."""
        if isinstance(id, bool) or not isinstance(id, int | np.integer):
            raise TypeError(f"id is {type(id).__name__}, expected an int, as open() returned it")
        id = int(id)
        owner = self._owner
        row = id % ROWS
        if id < 0 or row >= owner.size or owner[row] != id:
            raise self._unknown("id", id)
        return row

    def _rows(self, ids: Any) -> tuple[np.ndarray, np.ndarray]:
        """The rows (B,) of open streams, and 0 to B - 1."""
        try:
            given = np.asarray(ids)
        except ValueError:
            raise ValueError("ids is ragged, expected (B,)") from None
        if given.dtype.kind not in "iu" and (given.size or given.ndim != 1 or isinstance(ids, np.ndarray)):
            raise TypeError(f"ids has dtype {given.dtype}, expected integers, as open() returned them")
        if given.ndim != 1:
            raise ValueError(f"ids has shape {given.shape}, expected (B,)")
        wide = given.astype(np.int64, copy=False)
        rows = wide & (ROWS - 1)
        # Negative ones apart: -1 is what a free row has for an owner.
        if not ((self._owner.take(rows, mode="clip") == wide) & (wide >= 0)).all():
            for k, id in enumerate(given.tolist()):
                if id not in self:
                    raise self._unknown(f"ids[{k}]", id)
        places = np.arange(rows.size)
        self._place[rows] = places
        if not (self._place[rows] == places).all():  # the last one's place stands
            k = int((self._place[rows] != places).argmax())
            raise ValueError(f"ids[{k}] and ids[{self._place[rows[k]]}] are both {given[k]}: a stream takes one step")
        return rows, places

    def _unknown(self, name: str, id: int) -> KeyError:
        row = id % ROWS
        if id >= 0 and row < self._next.size and id < self._next[row]:
            return KeyError(f"{name} is {id}: this stream has been closed or evicted")
        return KeyError(f"{name} is {id}: no stream of this pool has ever had this id")

    # -- steps from many threads ----------------------------------------------------------------------------------

    def submit(self, id: int, x: Any) -> Future[np.ndarray]:
        """One step of one stream, from any thread: a future of y (H,).

        x : (I,), or an index, where the model takes indices; it is copied

        A thread that this starts gathers submissions for at most `linger_us` microseconds, or until every open stream
        has one, and steps them together. Those for one stream are stepped in the order in which they came. All errors
        come through the future: those of `step`, each to whoever made it, without harm to the others. A submission can
        be cancelled until it is gathered. Do not wait for a future in the callback of another: callbacks run in the
        thread that steps.

        After a fork the child's pool works; futures from before it are the parent's, and are never done in the child.
        """
        future: Future[np.ndarray] = Future()
        try:
            if isinstance(id, bool) or not isinstance(id, int | np.integer):
                raise TypeError(f"id is {type(id).__name__}, expected an int, as open() returned it")
            item = _Item(self, int(id), np.array(self._plan.check(x)), future)
            while not self._front().put(item, self._owner.size - len(self._free)):
                pass  # it has just been stopped: the next one
        except Exception as error:
            future.set_exception(error.with_traceback(None))  # with it, the future would refer to itself
        return future

    def _front(self) -> _Inbox:
        inbox = self._inbox
        if inbox is None or inbox.stopped:
            with self._lock:
                inbox = self._inbox
                if inbox is None or inbox.stopped:
                    inbox = _Inbox(int(1000 * self._linger_us))
                    inbox.worker.start()
                    self._inbox = inbox
        return inbox

    def _serve(self, items: list[_Item]) -> None:
        """Steps what has been gathered, each stream at most once, and says how it went."""
        items = [item for item in items if item.future.set_running_or_notify_cancel()]
        outcomes: list[Any] = []
        with self._lock:
            for ndim in (0, 1):  # indices, vectors: a model without an embedding may be given both
                some = [item for item in items if item.x.ndim == ndim]
                for item in some:
                    if item.id not in self:
                        outcomes.append((item.future, None, self._unknown("id", item.id)))
                some = [item for item in some if item.id in self]
                if not some:
                    continue
                try:
                    y = self.step([item.id for item in some], np.stack([item.x for item in some]))
                    outcomes += [(item.future, y[k].copy(), None) for k, item in enumerate(some)]
                except Exception:
                    # Nothing was stepped. Alone, those that can be are, and the error finds its owner.
                    for item in some:
                        try:
                            outcomes.append((item.future, self.step([item.id], item.x[None])[0], None))
                        except Exception as error:
                            outcomes.append((item.future, None, error.with_traceback(None)))
        for future, y, failure in outcomes:
            _deliver(future, y, failure)

    def close_all(self) -> None:
        """Steps what has been submitted, ends the thread that does so, and closes every stream. The pool may be used
        again. The end of a `with` block does the same. Called where nothing can be waited for, from a future's callback
        or from a signal handler in the middle of a step, what is not stepped yet gets `KeyError`.
        """
        with self._lock:
            inbox = self._inbox
        if inbox is not None:
            inbox.stop()
            # From a callback, or a signal handler in the middle of a step, the end cannot be waited for.
            if inbox.worker is not threading.current_thread() and not self._lock._is_owned():
                inbox.worker.join()
        with self._lock:
            for row in np.flatnonzero(self._owner >= 0).tolist():
                self._close(row)

    def __enter__(self) -> StreamPool:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close_all()

    def __del__(self) -> None:
        # Whatever is submitted refers to the pool: there is nothing left to step. May run in any thread, its own too.
        # While the interpreter ends, threads are gone as they were, some with a lock in hand.
        if self._inbox is not None and not sys.is_finalizing():
            self._inbox.stop()

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._settle()
            leave = ("_plan", "_journal", "_lock", "_inbox", "_place")
            kept = {name: value for name, value in vars(self).items() if name not in leave}
            # Copies, made while nobody steps: the pickler looks at them after this has returned.
            for name, value in kept.items():
                if isinstance(value, np.ndarray):
                    kept[name] = value.copy()
            kept["_states"], kept["_free"] = [a.copy() for a in self._states], list(self._free)
            return kept

    def __setstate__(self, kept: dict[str, Any]) -> None:
        vars(self).update(kept)
        self._plan = _plan(self._model)
        self._place = np.empty(self.capacity, np.int64)
        self._begin()


class _Item(NamedTuple):
    """A submission. It keeps its pool alive until it is stepped."""

    pool: StreamPool
    id: int
    x: np.ndarray  # () or (I,)
    future: Future[np.ndarray]


class _Inbox:
    """What is submitted and not stepped yet, and the thread that steps it. It does not refer to the pool."""

    def __init__(self, linger_ns: int) -> None:
        self.linger_ns = linger_ns
        self.stopped = False
        # Reentrant: the collector may end a pool, and so call `stop`, in the middle of any of these methods.
        self.changed = threading.Condition(threading.RLock())
        self.waiting: dict[int, deque[_Item]] = {}  # by stream, each in the order of submission
        self.enough = 1  # streams worth starting for before the time is over
        self.since = 0  # when the first of those waiting came
        self.worker = threading.Thread(target=_work, args=(self,), name="fastrnn-pool", daemon=True)

    def put(self, item: _Item, enough: int) -> bool:
        """False if it has been stopped, and nothing was put."""
        with self.changed:
            if self.stopped:
                return False
            first = not self.waiting
            if first:
                self.since = monotonic_ns()
            self.waiting.setdefault(item.id, deque()).append(item)
            self.enough = enough
            if first or len(self.waiting) >= enough:  # each wake-up costs the submitter: not for every item
                self.changed.notify()
        return True

    def take(self) -> list[_Item]:
        """The first item of each stream that has one, after waiting for company; none when it is over."""
        with self.changed:
            while not self.waiting:
                if self.stopped:
                    return []
                self.changed.wait()
            until = self.since + self.linger_ns
            while len(self.waiting) < self.enough and not self.stopped and (left := until - monotonic_ns()) > 0:
                self.changed.wait(left / 1e9)
            items = [queue.popleft() for queue in self.waiting.values()]
            # Second ones have waited already: `since` stays as it is.
            self.waiting = {id: queue for id, queue in self.waiting.items() if queue}
            return items

    def stop(self) -> None:
        """Lets the thread end when all is stepped."""
        with self.changed:
            self.stopped = True
            self.changed.notify()


def _work(inbox: _Inbox) -> None:
    """The thread that steps. Between two batches it refers to nothing but the inbox, so that a pool can go."""
    while items := inbox.take():
        try:
            items[0].pool._serve(items)
        except BaseException as error:  # whatever it was: nobody waits for ever
            for item in items:
                if not item.future.done():
                    _deliver(item.future, None, error.with_traceback(None))
            del item
        del items


def _deliver(future: Future[np.ndarray], y: np.ndarray | None, error: BaseException | None) -> None:
    """Sets a future's outcome. What a callback of it does must not keep the others from theirs."""
    try:
        if error is None:
            future.set_result(y)  # type: ignore[arg-type]
        else:
            future.set_exception(error)
    except BaseException:
        logging.getLogger("fastrnn").exception("a submission's future could not be set, or its callback failed")


# --- forks ------------------------------------------------------------------------------------------------------

_live: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _after_fork() -> None:
    """A lock that another thread held at the fork would be held in the child for ever; and the thread that steps is
    not there."""
    for ref in _live.valuerefs():
        one = ref()
        if one is not None:
            one._lock = threading.RLock()
            if isinstance(one, StreamPool):
                one._inbox = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
