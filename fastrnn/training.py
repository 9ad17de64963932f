"""Truncated backpropagation through time: the step, the loop around it, and how it stops and goes on.

The text is read as `B` contiguous rows in chunks of `T` steps (`text.Streams`); the state at the end of one
chunk is the state at the beginning of the next, and the gradient stops between them: one update for every tau1 = T
steps, whose gradient goes back through tau2 = T. `Trainer` is everything that the loop remembers: saved and restored,
it goes on as if it had never stopped, bit for bit. `run` is the loop, with the clock, the signals and the screen
around it.

With a `window` longer than T the gradient of a chunk's loss goes on through the steps before it, tau2 = `window` steps
in all (Williams and Peng 1990, BPTT(h; h'); tau1 and tau2 are Sutskever's, 2013). The weights have changed since those
steps were computed, so they are computed again, from the state at the window's beginning, which is the one thing that
is carried: each character is read window / T times. To have the state where the next window begins, a window is run as
two parts with a tape each, cut there. By hand, with layers, here for the loss of steps 12 to 15 in a window of 12:

>>> import fastrnn as fr, numpy as np
>>> lstm, linear = fr.LSTM(5, 8, seed=0), fr.Linear(8, 5, seed=1)
>>> model = fr.Sequential(lstm, linear)
>>> ids = np.arange(40).reshape(20, 2) % 5                       # N, B
>>> _, state = lstm(ids[:4])                                     # carried, to where the window begins
>>> _, carried, first = lstm.forward(ids[4:8], state)
>>> y, _, second = lstm.forward(ids[8:16], carried)
>>> logits, last = linear.forward(y[4:])                         # the stride, which alone has a loss
>>> loss, dlogits = fr.cross_entropy(logits, ids[13:17])
>>> dy = np.zeros_like(y)
>>> dy[4:] = linear.backward(last, dlogits)
>>> _, dstate = lstm.backward(second, dy)
>>> _ = lstm.backward(first, None, dstate)                       # on through the older part
>>> fr.Adam(model).step()
>>> state = carried                                              # the next window is ids[8:20]

A signal is honoured as soon as Python has it, which is when the kernel that runs returns, for a moment if it takes long
(see threads.py): a step that is in its forward or backward pass then, a validation or a sample is given up, as if it
had not begun, and only the short rest of a step (clipping, the optimizer) is finished. So the longest wait is some
tenths of a second, and then the writing of the files. While a kernel is compiled, once on a machine, the longest call
is one of LLVM's, of a few tenths of a second too. tests/RELIABILITY.md has the longest waits that were seen.
"""

from __future__ import annotations

import _thread
import contextlib
import hashlib
import itertools
import logging
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, NamedTuple

import numpy as np

from .losses import cross_entropy
from .optim import SGD, Adagrad, Adam, RMSProp, clip_grad_norm
from .text import Streams

__all__ = ["Console", "Epoch", "Interrupted", "NotSavedError", "NotedSignals", "Trainer", "mean_loss", "run"]

OPTIMIZERS = {"adam": Adam, "rmsprop": RMSProp, "adagrad": Adagrad, "sgd": SGD}


class Epoch(NamedTuple):
    """What one pass over the training text came to; losses in nats per character."""

    epoch: int
    steps: int  # since the beginning of training
    lr: float
    loss: float  # mean over the pass, while the weights were changing
    validation: float | None


class Interrupted(KeyboardInterrupt):
    """Training stopped by a signal, between two steps. `signum` is the signal's number."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class NotSavedError(OSError):
    """Training is over, and its last state is not on the disk. The model that was trained has it still."""

    exit_code = 3  # of the command line


class _GivenUp(BaseException):
    """What a signal raises in a window: see `NotedSignals`. It never leaves this module."""


def check_window(window: int | None, seq_length: int) -> int:
    """The steps that a gradient goes back through: `window`, or without one `seq_length`; never fewer."""
    if window is not None and window < seq_length:
        raise ValueError(
            f"window is {window}, expected at least seq_length={seq_length}: "
            "the gradient goes back through the characters of the loss, and those before them"
        )
    return seq_length if window is None else window


def mean_loss(model: Any, streams: Streams, stop: Callable[[], bool] = lambda: False) -> float | None:
    """Nats per character over `streams`, the state carried along; None if `stop()` ends it early."""
    total, state = 0.0, None
    for x, target in streams:
        logits, state = model(x, state)
        total += cross_entropy(logits, target, gradient=False)[0] * target.size
        if stop():
            return None
    return total / streams.characters


class Trainer:
    """The model and all that training it needs, at one point in the text.

    `ids` and `validation_ids` are indices (N,); the other arguments are `CharLM.fit`'s.
    """

    def __init__(
        self,
        model: Any,
        ids: np.ndarray,
        validation_ids: np.ndarray | None = None,
        *,
        batch_size: int = 50,
        seq_length: int = 50,
        window: int | None = None,
        lr: float = 0.002,
        lr_halve_every: int | None = 5,
        clip: float | None = 5.0,
        optimizer: str = "adam",
        seed: int = 0,
    ):
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
        for name, number in (("batch_size", batch_size), ("seq_length", seq_length), ("lr", lr)):
            if not 0 < number < math.inf:
                raise ValueError(f"{name} is {number}, expected a number above 0")
        self.settings: dict[str, Any] = {
            "batch_size": batch_size,
            "seq_length": seq_length,
            "window": check_window(window, seq_length),
            "lr": lr,
            "lr_halve_every": lr_halve_every,
            "clip": clip,
            "optimizer": optimizer,
        }
        self.model = model
        self.optimizer = OPTIMIZERS[optimizer](model, lr=lr)
        self.streams = Streams(ids, batch_size, seq_length)
        self.validation = None if validation_ids is None else Streams(validation_ids, batch_size, seq_length)
        self.seed = seed  # of the samples that are shown
        self.window: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext  # where a signal may break in

        self.epoch = 0  # passes finished
        self.chunk = 0  # chunks of this pass finished
        self.steps = 0  # since the beginning
        self.state: Any = None  # of the model, where the next chunk's window begins; None: zeros
        self.loss_sum = 0.0  # over the characters of this pass
        self.smooth_loss: float | None = None
        self.history: list[Epoch] = []
        self.best: float | None = None  # the lowest validation loss
        self.best_params: dict[str, np.ndarray] | None = None  # that had it
        self._digests = [
            None if part is None else hashlib.sha256(part.tobytes()).hexdigest() for part in (ids, validation_ids)
        ]

    def learning_rate(self) -> float:
        every = self.settings["lr_halve_every"]
        return self.settings["lr"] * 0.5 ** (self.epoch // every if every else 0)

    def step(self) -> int:
        """One chunk forward and back, and one step of the optimizer. Returns the number of characters.

        If anything is raised before the optimizer's turn, a signal in the `window` too, the step has not happened.
        """
        _, target = self.streams.chunk(self.chunk)
        generators = [(rng.bit_generator, rng.bit_generator.state) for rng in self.model.generators()]
        try:
            with self.window():
                loss, state = self._propagate(target)
        except BaseException:
            for generator, before in generators:
                generator.state = before
            raise
        self.state = state
        if self.settings["clip"]:
            clip_grad_norm(self.model, self.settings["clip"])
        self.optimizer.lr = self.learning_rate()
        self.optimizer.step()
        self.chunk += 1
        self.steps += 1
        self.loss_sum += loss * target.size
        self.smooth_loss = loss if self.smooth_loss is None else 0.99 * self.smooth_loss + 0.01 * loss
        return target.size

    def _propagate(self, target: np.ndarray) -> tuple[float, Any]:
        """The loss of this chunk, and the state where the next window begins; the gradient is in the model's grads."""
        stride, older = self.streams.seq_length, self.settings["window"] - self.streams.seq_length
        start, following = (max(0, chunk * stride - older) for chunk in (self.chunk, self.chunk + 1))
        x = self.streams.between(start, self.chunk * stride + len(target))
        cut = min(following - start, len(x))
        parts = [part for part in (slice(cut), slice(cut, len(x))) if len(x[part])]
        state = carried = self.state
        outputs, tapes = [], []
        for part in parts:
            logits, state, tape = self.model.forward(x[part], state)
            outputs.append(logits)
            tapes.append(tape)
            if part.stop == cut:
                carried = state
        logits = outputs[0] if len(parts) == 1 else np.concatenate(outputs)
        loss, gradient = cross_entropy(logits[len(x) - len(target) :], target)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {self.steps + 1}: training has diverged; lower the learning rate"
            )
        dlogits = np.asarray(gradient)
        if len(x) > len(target):
            dlogits = np.concatenate([np.zeros_like(logits[: len(x) - len(target)]), dlogits])
        self.model.zero_grad()
        dstate = None
        for part, tape in zip(reversed(parts), reversed(tapes), strict=True):
            _, dstate = self.model.backward(tape, dlogits[part], dstate)
        return loss, carried

    def pass_is_over(self) -> bool:
        return self.chunk == len(self.streams)

    def end_pass(self, stop: Callable[[], bool] = lambda: False) -> Epoch | None:
        """Validates and turns to the next pass. If `stop()` ends it early: None, and nothing has changed."""
        validation = self.validate(stop)
        if validation is None and self.validation is not None:
            return None
        lr, loss = self.learning_rate(), self.loss_sum / self.streams.characters
        self.epoch += 1
        self.chunk, self.state, self.loss_sum = 0, None, 0.0
        self.history.append(Epoch(self.epoch, self.steps, lr, loss, validation))
        return self.history[-1]

    def validate(self, stop: Callable[[], bool] = lambda: False) -> float | None:
        """The validation loss, the weights kept if it is the lowest so far (without validation: always)."""
        if self.validation is None:
            self.best_params = self.model.state_dict()
            return None
        with self.window():
            loss = mean_loss(self.model, self.validation, stop)
        if loss is not None and loss < (math.inf if self.best is None else self.best):
            self.best, self.best_params = loss, self.model.state_dict()
        return loss

    def sample_rng(self) -> np.random.Generator:
        """For the sample at this step: of nothing that was shown before, so that a sample can be given up."""
        return np.random.default_rng([self.seed, self.steps])

    def state_dict(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """All of it but the model's weights: what JSON can hold, and arrays."""
        optimizer = self.optimizer.state_dict()
        arrays = {f"optimizer/{name}": value for name, value in optimizer.items() if isinstance(value, np.ndarray)}
        arrays |= {f"state/{n}": array for n, array in enumerate(_leaves(self.state))}
        arrays |= {f"best/{name}": array for name, array in (self.best_params or {}).items()}
        header = {
            "settings": self.settings,
            "text": self._digests,
            "epoch": self.epoch,
            "chunk": self.chunk,
            "steps": self.steps,
            "loss_sum": self.loss_sum,
            "smooth_loss": self.smooth_loss,
            "history": self.history,
            "best": self.best,
            "state": _shape_of(self.state),
            "optimizer": {name: value for name, value in optimizer.items() if not isinstance(value, np.ndarray)},
            "layer_rngs": [rng.bit_generator.state for rng in self.model.generators()],
        }
        return header, arrays

    def load_state_dict(self, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Goes to the point that `state_dict` saved. The model's weights are the caller's to restore.

        `ValueError` if the text or the way it is cut into chunks is not the one of then, and for numbers that are of no
        training of this kind.
        """
        settings = {"window": header["settings"]["seq_length"], **header["settings"]}  # older files have no window
        for name in ("batch_size", "seq_length", "window", "optimizer"):
            if settings[name] != self.settings[name]:
                raise ValueError(
                    f"{name} is {self.settings[name]!r}, expected {settings[name]!r}: "
                    "the training to be resumed has that"
                )
        if header["text"] != self._digests:
            raise ValueError("the text, or how it is split, is not the one of the training to be resumed")

        def part(prefix: str) -> dict[str, np.ndarray]:
            return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

        self.optimizer.load_state_dict({**header["optimizer"], **part("optimizer/")})
        leaves = part("state/")
        state = None
        if header["state"] is not None:
            _, like = self.model(self.streams.chunk(0)[0][:1], None)
            _check_alike("the nesting of the state", header["state"], _shape_of(like))
            found = [leaves[str(n)] for n in range(len(leaves))]
            _check_alike("the state", _kinds(found), _kinds(_leaves(like)))
            state = _from_leaves(header["state"], iter(found))
        if best := part("best/"):
            params = self.model.params
            _check_alike("the best weights", _kinds(best.values(), best), _kinds(params.values(), params))
        self.state = state
        for name, most in (("epoch", math.inf), ("chunk", len(self.streams)), ("steps", math.inf)):
            if type(header[name]) is not int or not 0 <= header[name] <= most:
                raise ValueError(f"{name} is {header[name]!r}, expected a number from 0 to {most}")
        self.epoch, self.chunk, self.steps = header["epoch"], header["chunk"], header["steps"]
        self.loss_sum, self.smooth_loss = float(header["loss_sum"]), _float_or_none(header["smooth_loss"])
        self.history = [
            Epoch(int(epoch), int(steps), float(lr), float(loss), _float_or_none(validation))
            for epoch, steps, lr, loss, validation in header["history"]
        ]
        self.best, self.best_params = _float_or_none(header["best"]), part("best/") or None
        for rng, state in zip(self.model.generators(), header["layer_rngs"], strict=True):
            rng.bit_generator.state = state


def _kinds(arrays: Iterable[np.ndarray], names: Iterable[str] = itertools.repeat("")) -> list[Any]:
    return sorted((name, array.dtype.str, array.shape) for name, array in zip(names, arrays))


def _check_alike(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        said, wanted = repr(found)[:200], repr(expected)[:200]
        raise ValueError(f"{what} in the checkpoint does not fit the model: {said}, expected {wanted}")


def _float_or_none(number: Any) -> float | None:
    return None if number is None else float(number)


def _leaves(state: Any) -> list[np.ndarray]:
    """The arrays of a state, which is an array, None, or a tuple of states."""
    if state is None:
        return []
    return [state] if isinstance(state, np.ndarray) else [leaf for part in state for leaf in _leaves(part)]


def _shape_of(state: Any) -> Any:
    """The nesting of a state, for JSON: lists, with 1 in the place of an array."""
    if state is None:
        return None
    return 1 if isinstance(state, np.ndarray) else [_shape_of(part) for part in state]


def _from_leaves(shape: Any, leaves: Iterator[np.ndarray]) -> Any:
    if shape is None:
        return None
    return next(leaves) if shape == 1 else tuple(_from_leaves(part, leaves) for part in shape)


def run(
    trainer: Trainer,
    *,
    epochs: int,
    time_limit: float | None = None,
    console: Console | None = None,
    sample: Callable[[], str] | None = None,
    sample_every: int | None = None,
    save: Callable[[bool], None] = lambda latest: None,
    save_every: float = 30.0,
) -> None:
    """Trains until `epochs` passes are done or `time_limit` seconds are over; then scores and saves.

    `sample()` gives the text to show after steps 100, 200, 500, 1000, ..., or after every `sample_every`
    steps (0: never). `save(latest)` keeps the best weights so far and, if `latest`, the trainer; it is called
    every `save_every` seconds, and at the end. An `OSError` of it on the way is told, and training goes on to
    the next time; one at the end is `NotSavedError`. A SIGINT or SIGTERM ends the step, as the head of this file
    says, saves, and raises `Interrupted`.
    """
    console = console or Console(silent=True)
    clock = time.perf_counter
    started = clock()
    deadline = math.inf if time_limit is None else started + time_limit
    pace, saving = _Pace(), _Saving(save, save_every, console)
    console.passing("starting; the first time, kernels are compiled, which takes some seconds")
    with noted_signals(console) as signals:
        trainer.window, stop = signals.window, signals.came
        try:
            while trainer.epoch < epochs and not stop():
                if not trainer.pass_is_over():
                    before = clock()
                    try:
                        characters = trainer.step()
                    except FloatingPointError:
                        saving.attempt(False)  # the best so far; the latest is of no use to anyone
                        raise
                    now = clock()
                    pace.add(characters, now - before)
                    if sample is not None and sample_is_due(trainer.steps, sample_every):
                        title = f"step {trainer.steps:,}, loss {trainer.smooth_loss:.3f}"
                        with signals.window():
                            text = sample()
                        console.say(f"----- {title} -----\n{text}\n-----")
                    if console.is_due(now):
                        console.progress(_progress(trainer, epochs, pace, deadline - now))
                elif epoch := trainer.end_pass(stop):
                    console.say(_summary(epoch, epochs, trainer, pace))
                if stop() or clock() >= deadline:
                    break
                saving.if_due()
            within_a_pass = trainer.chunk > 0 or trainer.best_params is None
            if within_a_pass and not stop():
                loss = trainer.validate(stop)
                where = f"time is up in epoch {trainer.epoch + 1}/{epochs}  step {trainer.steps:,}"
                console.say(where + ("" if loss is None else f"  validation {loss:.4f}{_mark(trainer, loss)}"))
        except _GivenUp:
            pass
        finally:
            trainer.window = contextlib.nullcontext
        error = saving.last()
        console.say(f"{trainer.steps:,} steps; {_duration(clock() - started)}, {pace} while training")
        stopped = f"stopped after step {trainer.steps:,}, epoch {trainer.epoch + 1}"
        if error is not None:
            when = stopped if stop() else f"trained to step {trainer.steps:,}"
            raise NotSavedError(f"{when}, but not saved: {error_text(error)}") from error
        if stop():
            raise Interrupted(signals[0], stopped)


def error_text(error: BaseException) -> str:
    """What went wrong with which file, in one line."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


class _Saving:
    """Saves now and then. A failure is told when it begins and when it is over, and does not end the training."""

    def __init__(self, save: Callable[[bool], None], every: float, console: Console) -> None:
        self._save, self._every, self._console = save, every, console
        self._at = time.perf_counter()
        self._told = ""

    def if_due(self) -> None:
        if time.perf_counter() - self._at >= self._every:
            self.attempt(True)

    def attempt(self, latest: bool) -> None:
        error = self._try(latest)
        if error is not None and error_text(error) != self._told:
            self._told = error_text(error)
            self._console.warn(
                f"not saved: {self._told}; training goes on, and this is tried again every {self._every:g} s"
            )

    def last(self) -> OSError | MemoryError | None:
        """The error, if the last state could not be saved: its teller is the caller."""
        return self._try(True)

    def _try(self, latest: bool) -> OSError | MemoryError | None:
        try:
            self._save(latest)
        except (OSError, MemoryError) as error:
            return error
        finally:
            self._at = time.perf_counter()
        if self._told:
            self._told = ""
            self._console.warn("saved again")
        return None


def sample_is_due(steps: int, every: int | None) -> bool:
    """Whether to show a sample after so many steps.

    >>> [steps for steps in range(3000) if sample_is_due(steps, None)]
    [100, 200, 500, 1000, 2000]
    >>> [steps for steps in range(100) if sample_is_due(steps, 30)]
    [30, 60, 90]
    """
    if every is not None:
        return every > 0 and steps > 0 and steps % every == 0
    return steps >= 100 and f"{steps}".rstrip("0") in ("1", "2", "5")


class _Pace:
    """Characters a second, the first step left out: kernels are compiled or loaded in it."""

    def __init__(self) -> None:
        self.characters, self.seconds, self._first = 0, 0.0, True

    def add(self, characters: int, seconds: float) -> None:
        if not self._first:
            self.characters += characters
            self.seconds += seconds
        self._first = False

    def rate(self) -> float:
        return self.characters / self.seconds if self.seconds else math.nan

    def __str__(self) -> str:
        return f"{self.rate():,.0f} characters/s" if self.seconds else "starting"


def _progress(trainer: Trainer, epochs: int, pace: _Pace, seconds: float) -> str:
    done = trainer.chunk / len(trainer.streams)
    characters = (epochs - trainer.epoch - done) * trainer.streams.characters
    left = min(seconds, characters / pace.rate()) if pace.seconds else seconds
    return (
        f"epoch {min(trainer.epoch + 1, epochs)}/{epochs} {100 * done:3.0f} %  step {trainer.steps:,}  "
        f"loss {trainer.smooth_loss:.3f}  {pace}" + (f"  {_duration(left)} left" if left < math.inf else "")
    )


def _summary(epoch: Epoch, epochs: int, trainer: Trainer, pace: _Pace) -> str:
    validation = "" if epoch.validation is None else f"  validation {epoch.validation:.4f}"
    mark = "" if epoch.validation is None else _mark(trainer, epoch.validation)
    return (
        f"epoch {epoch.epoch}/{epochs}  step {epoch.steps:,}  lr {epoch.lr:.3g}  loss {epoch.loss:.4f}"
        f"{validation}  {pace}{mark}"
    )


def _mark(trainer: Trainer, loss: float) -> str:
    return "  best so far" if loss == trainer.best else ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class Console:
    """What training shows: its story on standard output, and how far it is on standard error.

    The progress line is rewritten in place on a terminal; elsewhere a new line is written now and then.
    """

    def __init__(self, silent: bool = False):
        self.silent = silent
        self._terminal = not silent and sys.stderr.isatty()
        self._interval = 0.2 if self._terminal else 10.0
        self._due = math.inf if silent else time.perf_counter() + self._interval
        self._shown = 0  # width of the progress line on the screen

    def is_due(self, now: float) -> bool:
        return now >= self._due

    def progress(self, text: str) -> None:
        self._due = time.perf_counter() + self._interval
        with _full_disks():
            if self._terminal:
                text = text[: shutil.get_terminal_size().columns - 1]
                sys.stderr.write("\r" + text.ljust(self._shown))
                self._shown = len(text)
            else:
                sys.stderr.write(text + "\n")
            sys.stderr.flush()

    def passing(self, text: str) -> None:
        """Shown on a terminal until the next line comes, and nowhere else."""
        if self._terminal:
            self.progress(text)

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            sys.stderr.flush()
            self._shown = 0

    def say(self, text: str) -> None:
        if not self.silent:
            with _full_disks():
                self.clear()
                print(text, flush=True)

    def warn(self, text: str) -> None:
        """One line on standard error; from a silent console, a warning of the logger "fastrnn"."""
        if self.silent:
            logging.getLogger("fastrnn").warning("%s", text)
            return
        with _full_disks():
            self.clear()
            print(f"fastrnn: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _full_disks() -> Iterator[None]:
    """What can't be shown, because the output is a file on a disk that is full, does not end a training."""
    try:
        yield
    except BrokenPipeError:  # nobody reads any more, as in `| head`
        raise
    except OSError:
        pass


class NotedSignals(list[int]):
    """The numbers of the signals that came. Within a `window` the first one breaks in; elsewhere it is noted only."""

    def __init__(self) -> None:
        self._open = self._nudged = False
        self._lock = threading.Lock()  # never taken by the handler, which may run while this thread has it

    def came(self) -> bool:
        return bool(self)

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        """What runs within may be given up at any moment, as if it had not begun."""
        try:
            self._open = True
            if self:
                raise _GivenUp
            yield
        finally:
            with self._lock:
                self._open = False

    def handle(self, signum: int, frame: FrameType | None) -> bool:
        """Called by the handler. True if this is a second signal."""
        nudged, self._nudged = self._nudged, False
        if not nudged:
            if self:
                return True
            self.append(signum)
        if self._open:
            if _would_be_lost(frame):
                _thread.start_new_thread(self._nudge, (signum,))  # threading's own way takes locks
            else:
                self._open = False
                raise _GivenUp
        return False

    def _nudge(self, signum: int) -> None:
        """Has the handler called once more, a moment later."""
        time.sleep(0.01)
        with self._lock:
            if self._open:
                self._nudged = True
                _thread.interrupt_main(signal.Signals(signum))


_NO_WAY_OUT = {"__del__", "__enter__", "__exit__", "_raw_object_cache_notify", "_raw_object_cache_getbuffer"}


def _would_be_lost(frame: FrameType | None) -> bool:
    """Whether what is raised in this frame is lost: in destructors, and where LLVM calls back while it compiles, it
    ends as a line "Exception ignored in" on the screen. A context manager half entered or left could keep its lock.
    """
    while frame is not None:
        if frame.f_code.co_name in _NO_WAY_OUT:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def noted_signals(console: Console) -> Iterator[NotedSignals]:
    """SIGINT and SIGTERM are noted instead of ending the program at once; a second one does end it.

    A handler that somebody else has installed stays, and outside the main thread, where signals don't arrive,
    nothing is done.
    """
    noted = NotedSignals()
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}

    def note(signum: int, frame: FrameType | None) -> None:
        first = not noted
        if first and not console.silent:  # by os.write: the signal may have come in the middle of a print
            with contextlib.suppress(OSError):
                os.write(2, b"\nstopping, and saving; once more to stop at once\n")
        if noted.handle(signum, frame):
            signal.signal(signum, usual[signum])
            signal.raise_signal(signum)

    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [signum for signum, handler in usual.items() if signal.getsignal(signum) is handler]
    for signum in mine:
        signal.signal(signum, note)
    try:
        yield noted
    finally:
        for signum in mine:
            signal.signal(signum, usual[signum])
