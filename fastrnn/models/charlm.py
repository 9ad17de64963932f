"""A character-level language model: what is the next character, given all before it?

    character -> [embedding] -> LSTM, GRU or RNN, some layers -> [dropout] -> linear -> logits over the vocabulary

Letters: `T` time steps, `B` parallel rows, `V` characters in the vocabulary.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..checks import check_size
from ..inspection import Inspection, inspect_text
from ..layers.dropout import Dropout
from ..layers.embedding import Embedding
from ..layers.gru import GRU
from ..layers.linear import Linear
from ..layers.lstm import LSTM
from ..layers.rnn import RNN
from ..layers.sequential import Sequential
from ..modelfile import ModelFileError, check_writable, read_model_file, write_model_file
from ..sampling import check_temperature, generate
from ..streaming import Stream, StreamPool
from ..text import Streams, Vocabulary, split_text
from ..training import Console, Epoch, NotSavedError, Trainer, mean_loss, run

__all__ = ["CharLM", "Evaluation", "checkpoint_path"]

KIND = "CharLM"
CELLS: dict[str, Any] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
# Options that one cell has: the cell, what its layer calls them, and the value that says nothing.
OWN: dict[str, tuple[str, str, Any]] = {
    "peephole": ("lstm", "peephole", None),
    "coupled": ("lstm", "coupled", False),
    "cell_clip": ("lstm", "clip", None),
    "proj_size": ("lstm", "proj_size", 0),
    "activations": ("lstm", "activations", None),
    "reset": ("gru", "reset", None),
    "nonlinearity": ("rnn", "nonlinearity", None),
}


class Evaluation(NamedTuple):
    """How well a model predicts a text. `nats` and `bits_per_char` are means over `characters`."""

    nats: float
    bits_per_char: float
    perplexity: float
    characters: int  # predicted and scored: all that the vocabulary has, but the first
    unseen: int  # left out, because the training text doesn't have them

    def __str__(self) -> str:
        text = (
            f"{self.nats:.4f} nats per character, {self.bits_per_char:.4f} bits per character, "
            f"perplexity {self.perplexity:.3f}, over {self.characters:,} characters"
        )
        if self.unseen:
            text += f"; {self.unseen:,} more, unseen in training, were left out and not scored"
        return text


class CharLM:
    """A character-level language model, from text to text.

    `cell` is `"lstm"`, `"gru"` or `"rnn"`. Of the layers' own options, which `fr.LSTM`, `fr.GRU` and `fr.RNN` explain,
    an LSTM takes `peephole`, `coupled`, `proj_size`, `activations` and `cell_clip` (there `clip`; `fit`'s clips the
    gradient), a GRU `reset`, an RNN `nonlinearity`; None, False or 0 is the layer's default, and an option of another
    cell is a `ValueError`. `embedding_size=None` feeds the characters one-hot. `dropout` is the probability of
    dropping an output of a recurrent layer in training. The same `seed` gives the same weights, the same training and
    the same samples along the way, to the bit; None draws one, which is then in `seed`.

    The layers are made by `fit`, `build` or `load`, when the vocabulary is known: `model` is the `Sequential`
    of them, None before, and `vocabulary` has the characters. `settings` are those of the last `fit` (`batch_size`,
    `seq_length`, `window` ...), from a file too, and None before.

    >>> lm = CharLM(hidden_size=8, num_layers=1, embedding_size=4, seed=1)
    >>> history = lm.fit("to be or not to be, " * 20, epochs=2, validation=0.1, progress=False)
    >>> history[1].loss < history[0].loss
    True
    >>> len(lm.sample(40, temperature=0.8, seed=1))
    40
    """

    def __init__(
        self,
        cell: str = "lstm",
        hidden_size: int = 128,
        num_layers: int = 2,
        embedding_size: int | None = 64,
        peephole: str | None = None,
        dropout: float = 0.0,
        seed: int | None = None,
        dtype: str = "float32",
        *,
        nonlinearity: str | None = None,
        reset: str | None = None,
        coupled: bool = False,
        cell_clip: float | None = None,
        proj_size: int = 0,
        activations: Sequence[str] | None = None,
    ):
        if cell not in CELLS:
            raise ValueError(f"cell is {cell!r}, expected one of {', '.join(CELLS)}")
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype is {dtype!r}, expected 'float32' or 'float64'")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}, expected a probability from 0 to below 1")
        self.cell = cell
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.num_layers = _positive("num_layers", num_layers)
        self.embedding_size = None if embedding_size is None else _positive("embedding_size", embedding_size)
        self.dropout = float(dropout)
        self.seed = int(np.random.default_rng().integers(2**32)) if seed is None else operator.index(seed)
        self.dtype = dtype
        if self.seed < 0:
            raise ValueError(f"seed is {seed}, expected a number from 0")
        self.peephole, self.reset, self.nonlinearity = peephole, reset, nonlinearity
        self.coupled, self.cell_clip, self.activations = bool(coupled), cell_clip, activations
        self.proj_size = check_size("proj_size", proj_size, 0)
        self._check_own()
        self.cell_clip = None if cell_clip is None else float(cell_clip)
        self.activations = None if activations is None else tuple(activations)
        self.vocabulary: Vocabulary | None = None
        self.model: Any = None
        self.settings: dict[str, Any] | None = None

    def _own(self) -> dict[str, Any]:
        """The cell's own options that were given, by the names that its layer has for them."""
        options = {}
        for name, (cell, layers_name, default) in OWN.items():
            value = getattr(self, name)
            if value != default:
                if cell != self.cell:
                    raise ValueError(f"{name} is {value!r}, and only {_an(cell)} has that: cell is {self.cell!r}")
                options[layers_name] = value
        return options

    def _check_own(self) -> None:
        """What the layer says to its options; nothing of the size asked for is allocated."""
        options, layer = self._own(), CELLS[self.cell]
        if options.pop("proj_size", 0) >= self.hidden_size:
            layer(1, self.hidden_size, proj_size=self.proj_size)  # refused before there is anything
        try:
            layer(1, 1, dtype=self.dtype, **options)
        except (TypeError, ValueError) as error:
            if str(error).startswith("clip "):
                raise type(error)(f"cell_{error}") from None
            raise

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        names = [
            "cell",
            "hidden_size",
            "num_layers",
            "embedding_size",
            "peephole",
            "dropout",
            "seed",
            "dtype",
            *(name for name in OWN if name != "peephole"),
        ]
        return {name: getattr(self, name) for name in names}

    def __repr__(self) -> str:
        said = {name: value for name, value in self.config.items() if name not in OWN or value != OWN[name][2]}
        return f"CharLM({', '.join(f'{name}={value!r}' for name, value in said.items())})"

    def build(self, text: str) -> CharLM:
        """Makes the layers, with fresh weights, for the characters of `text`. Returns the model itself."""
        self.vocabulary = Vocabulary(text)
        size = len(self.vocabulary)
        seeds = [int(seed) for seed in np.random.SeedSequence(self.seed).generate_state(4)]
        options = {"num_layers": self.num_layers, "dtype": self.dtype, "seed": seeds[0], **self._own()}
        if self.num_layers > 1:
            options["dropout"] = self.dropout
        layers: list[Any] = []
        if self.embedding_size is not None:
            layers.append(Embedding(size, self.embedding_size, dtype=self.dtype, seed=seeds[1]))
        layers.append(CELLS[self.cell](self.embedding_size or size, self.hidden_size, **options))
        if self.dropout:
            layers.append(Dropout(self.dropout, seed=seeds[2]))
        layers.append(Linear(self.proj_size or self.hidden_size, size, dtype=self.dtype, seed=seeds[3]))
        self.model = Sequential(*layers)
        return self

    @property
    def num_parameters(self) -> int:
        return sum(array.size for array in self._built().params.values())

    # ---------------------------------------------------------------- training

    def fit(
        self,
        text: str,
        *,
        validation: float | str = 0.05,
        held_out: float = 0.0,
        epochs: int = 10,
        batch_size: int = 50,
        seq_length: int = 50,
        window: int | None = None,
        lr: float = 0.002,
        lr_halve_every: int | None = 5,
        clip: float | None = 5.0,
        optimizer: str = "adam",
        time_limit: float | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: bool = True,
        sample_every: int | None = None,
    ) -> list[Epoch]:
        """Learns `text` by truncated backpropagation through time; ends with the best weights seen.

        The text is cut into `batch_size` contiguous rows, read in chunks of `seq_length` steps with the state
        carried over. The gradient is clipped to the norm `clip` (None: not at all), the learning rate halved
        every `lr_halve_every` passes. A text too short for that many rows gets fewer. `validation` is a text,
        or the fraction of `text` that is kept for it, before the fraction `held_out` at the end, which is not
        looked at; the best weights are those with the lowest validation loss at the end of a pass (without
        validation, the latest). For speed that loss is taken over `batch_size` rows, each from an empty
        state: a little above `evaluate`'s.

        `window` is how many characters the gradient goes back through, `seq_length` or more (None: `seq_length`).
        There is one update for every `seq_length` characters, of their loss (tau1); with a longer window (tau2) its
        gradient goes on through the characters before them, which are read again with the weights of now: each update
        takes about window / seq_length times as long. At the beginning of the text, and for a last chunk that is
        shorter, a window holds as much less. See `fastrnn.training`, by hand too.

        A model that has been fitted goes on learning; the text must then keep to its vocabulary.

        `checkpoint="model.npz"` keeps the best model there and the latest state of training in
        `model.ckpt.npz`, written every 30 seconds and at the end. With `resume=True` training goes on from
        there, to the bit as if it had not stopped; text, `batch_size`, `seq_length`, `window` and `optimizer`
        must be the same, the rest may differ. `time_limit` (seconds) ends training early, in good order.

        Ctrl-C and SIGTERM end the step that is under way as soon as the kernel that runs returns (training.py says how
        long that may take), write the checkpoint and raise `Interrupted`, a `KeyboardInterrupt`. Files that can't be
        written along the way (a full disk, a folder that has gone) do not end the training: that is told, and tried
        again 30 seconds later. If they can't be written at the end, `NotSavedError`, an `OSError`, is raised; the
        model has what it learned, and `save` may try another place.

        With `progress`, epochs and samples are printed on standard output, the progress line on standard
        error. A sample is shown after steps 100, 200, 500, 1000 and so on, or after every `sample_every`
        steps (0: none).

        Returns one `Epoch` for every pass: losses in nats per character.
        """
        if checkpoint is None and resume:
            raise ValueError("resume needs a checkpoint: name the model's file")
        if checkpoint is not None:
            check_writable(checkpoint)
            check_writable(checkpoint_path(checkpoint))
        latest_path = None if checkpoint is None else checkpoint_path(checkpoint)
        fraction = 0.0 if isinstance(validation, str) else float(validation)
        epochs, held_out = _positive("epochs", epochs), float(held_out)
        train_text, validation_text, _ = split_text(text, fraction, held_out)
        before = self.vocabulary, self.model, self.seed
        try:
            trainer = self._trainer(
                train_text,
                validation if isinstance(validation, str) else validation_text,
                latest_path if resume else None,
                batch_size=_positive("batch_size", batch_size),
                seq_length=_positive("seq_length", seq_length),
                window=None if window is None else _positive("window", window),
                lr=float(lr),
                lr_halve_every=_positive("lr_halve_every", lr_halve_every) if lr_halve_every else None,
                clip=float(clip) if clip else None,
                optimizer=optimizer,
            )
        except BaseException:
            self.vocabulary, self.model, self.seed = before
            raise

        self.settings = trainer.settings
        # The best weights that are on the disk.
        kept = trainer.best_params if checkpoint is not None and resume and os.path.exists(checkpoint) else None

        def write_best() -> None:
            nonlocal kept
            if checkpoint is not None and trainer.best_params is not None and trainer.best_params is not kept:
                write_model_file(checkpoint, *self._contents(trainer.best_params))
                kept = trainer.best_params

        def write_latest() -> None:
            if latest_path is not None:
                model_header, model_arrays = self._contents(self.model.params)
                training, training_arrays = trainer.state_dict()
                training["fit"] = {"epochs": epochs, "validation": fraction, "held_out": held_out}
                header = {**model_header, "training": training}
                write_model_file(latest_path, header, {**model_arrays, **training_arrays})

        def save(latest: bool) -> None:
            errors = []
            for write in (write_best, write_latest) if latest else (write_best,):
                try:
                    write()
                except OSError as error:
                    errors.append(error)  # the other file may still find a place
            if errors:
                raise errors[0]

        def take_best() -> None:
            if trainer.best_params is not None:
                self.model.load_state_dict(trainer.best_params)

        try:
            run(
                trainer,
                epochs=epochs,
                time_limit=time_limit,
                console=Console(silent=not progress),
                sample=(lambda: self._sample(300, "", 0.8, trainer.sample_rng())) if progress else None,
                sample_every=sample_every,
                save=save,
            )
        except NotSavedError:
            take_best()
            raise
        take_best()
        return trainer.history

    def _trainer(self, text: str, validation: str, resume: Path | None, **settings: Any) -> Trainer:
        """The trainer of this model for `text`, at its beginning or where the checkpoint `resume` left it."""
        if resume is not None:
            header, arrays = read_model_file(resume)
            try:
                self._restore(header, arrays, resume=True)
            except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
                raise ModelFileError(f"{resume}: not a model that this fastrnn can read ({error!r})") from error
        elif self.model is None:
            self.build(text)
        assert self.vocabulary is not None
        ids, (validation_ids, _) = self.vocabulary.encode(text), self.vocabulary.encode_known(validation)
        # One character alone can't be validated: there is nothing before it.
        trainer = Trainer(
            self.model, ids, validation_ids if len(validation_ids) > 1 else None, seed=self.seed, **settings
        )
        if resume is not None:
            try:
                trainer.load_state_dict(header["training"], arrays)
            except (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError) as error:
                raise ModelFileError(f"{resume}: its state of training makes no sense ({error!r})") from error
        return trainer

    # ---------------------------------------------------------------- use

    def sample(self, length: int = 500, prime: str = "", temperature: float = 1.0, seed: int | None = None) -> str:
        """A text that the model writes: `prime`, then `length` characters that follow it.

        Without `prime`, the text begins as after a line end (if the vocabulary has one; else after a random
        character). A temperature below 1 makes it surer of itself, 0 takes the most likely character always,
        above 1 it is wilder. The same `seed` gives the same text; None, a new one every time. `ValueError`
        names the characters of `prime` that the training text doesn't have.
        """
        self._built()
        check_temperature(temperature)
        if operator.index(length) < 0:
            raise ValueError(f"length is {length}, expected a number of characters from 0")
        return self._sample(length, prime, temperature, np.random.default_rng(seed))

    def _sample(self, length: int, prime: str, temperature: float, rng: np.random.Generator) -> str:
        assert self.vocabulary is not None
        if prime:
            before = self.vocabulary.encode(prime, what="prime")
        elif "\n" in self.vocabulary.characters:
            before = self.vocabulary.encode("\n")
        else:
            before = rng.integers(len(self.vocabulary), size=1)
        ids = generate(self.model, before, length, temperature=temperature, rng=rng)
        return prime + self.vocabulary.decode(ids)

    def evaluate(self, text: str) -> Evaluation:
        """How well the model predicts `text`: every character but the first, given all before it.

        Characters that the training text doesn't have can't be predicted, nor fed to the model: they are left
        out as if they were not there, and counted in `unseen`. The text is read from beginning to end as one
        row, so the result does not depend on any batch size.

        >>> lm = CharLM(hidden_size=8, num_layers=1, embedding_size=4, seed=1).build("abc")
        >>> result = lm.evaluate("abcabcx")
        >>> result.characters, result.unseen
        (5, 1)
        >>> bool(abs(result.nats - np.log(3)) < 0.5)  # of three characters, and nothing learned yet
        True
        """
        self._built()
        assert self.vocabulary is not None
        ids, unseen = self.vocabulary.encode_known(text)
        if len(ids) < 2:
            raise ValueError(
                f"text has {len(ids)} characters that the model knows and {unseen} that it doesn't: "
                "at least 2 that it knows are needed"
            )
        streams = Streams(ids, batch_size=1, seq_length=1000)
        nats = mean_loss(self.model, streams)
        assert nats is not None
        perplexity = math.exp(nats) if nats < 700 else math.inf
        return Evaluation(nats, nats / math.log(2), perplexity, streams.characters, unseen)

    def inspect(self, text: str, depth: int = 100) -> Inspection:
        """What each hidden unit does over `text`, gate saturation, and the gradient up to `depth` steps back: see
        `fastrnn.inspection`. `ValueError` names the characters of `text` that the training text doesn't have.

        >>> lm = CharLM(hidden_size=8, num_layers=2, embedding_size=4, seed=1).build("abc\\n")
        >>> found = lm.inspect("abc\\n" * 50)
        >>> found.values.shape, found.gradient["c"].shape  # (N, L, H), (L, K)
        ((200, 2, 8), (2, 100))
        >>> unit = found.units()[0]  # the most telling one
        >>> unit.follows in found.properties, 0.5 < abs(unit.r) <= 1
        (True, True)
        """
        self._built()
        assert self.vocabulary is not None
        return inspect_text(self.model, self.vocabulary, text, depth)

    def stream(self) -> Stream:
        """One text, read character by character: `push(index)` gives the logits of the next one. See `Stream`.

        >>> lm = CharLM(hidden_size=8, num_layers=1, embedding_size=4, seed=1).build("abc")
        >>> stream = lm.stream()
        >>> stream.push(lm.vocabulary.encode("b")[0]).shape
        (3,)
        """
        return Stream(self._built())

    def stream_pool(self, capacity: int, full: str = "grow", linger_us: float = 200.0) -> StreamPool:
        """Many texts, read together: see `StreamPool`."""
        return StreamPool(self._built(), capacity, full, linger_us)

    # ---------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes sizes, vocabulary and weights. A kill at any moment leaves the old file or the new one."""
        self._built()
        write_model_file(path, *self._contents(self.model.params))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CharLM:
        """The model of a file that `save` or `fit` wrote (from a checkpoint: the latest weights).

        `ModelFileError` if the file is damaged or something else. Nothing in the file is executed.
        """
        header, arrays = read_model_file(path)
        try:
            lm = cls(**header["model"])
            lm._restore(header, arrays)
            lm.settings = dict(header["settings"]) if "settings" in header else None
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ModelFileError(f"{os.fspath(path)}: not a model that this fastrnn can read ({error})") from error
        return lm

    def _contents(self, params: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        assert self.vocabulary is not None
        header = {"kind": KIND, "model": self.config, "vocabulary": self.vocabulary.characters}
        if self.settings is not None:
            header["settings"] = self.settings
        return header, {f"model/{name}": array for name, array in params.items()}

    def _restore(self, header: dict[str, Any], arrays: dict[str, np.ndarray], resume: bool = False) -> None:
        """Takes the vocabulary and the weights (and, to resume, the seed) of a file's contents."""
        if header["kind"] != KIND:
            raise ModelFileError(f"a model of the kind {header['kind']!r}")
        if resume:
            saved = CharLM(**header["model"]).config  # with the defaults of what an older file does not name
            for name, value in self.config.items():
                if name != "seed" and saved[name] != value:
                    raise ValueError(f"{name} is {value!r}, and {saved[name]!r} in the checkpoint")
            if "training" not in header:
                raise ModelFileError("this is a model, not a checkpoint: there is no training to resume in it")
            self.seed = header["model"]["seed"]
        params = {name.removeprefix("model/"): a for name, a in arrays.items() if name.startswith("model/")}
        # Before anything of the size that the header claims is allocated: are there weights for it?
        size, claimed = sum(array.size for array in params.values()), self._count(len(header["vocabulary"]))
        if size < claimed:
            raise ValueError(f"{size:,} weights are too few for {self!r}, which has {claimed:,}")
        self.build(header["vocabulary"])
        self.model.load_state_dict(params)

    def _count(self, V: int) -> int:
        """How many weights the model has for `V` characters."""
        H, E, L = self.hidden_size, self.embedding_size, self.num_layers
        O = self.proj_size or H  # noqa: E741 - the glossary's letter
        gates = {"rnn": 1, "gru": 3, "lstm": 4}[self.cell] - self.coupled
        inputs = (E or V) + (L - 1) * O
        peepholes = {None: 0, "diagonal": (gates - 1) * H, "full": (gates - 1) * H * H}[self.peephole]
        layers = gates * H * (inputs + L * (O + 2)) + L * (peepholes + self.proj_size * H)
        return V * (E or 0) + layers + (O + 1) * V

    def _built(self) -> Any:
        if self.model is None:
            raise RuntimeError("this model has no weights yet: fit it, or load one")
        return self.model


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Where the state of training is kept for the model at `path`.

    >>> checkpoint_path("models/shakespeare.npz").as_posix()
    'models/shakespeare.ckpt.npz'
    """
    path = Path(path)
    return path.with_name(path.name.removesuffix(".npz") + ".ckpt.npz")


def _an(cell: str) -> str:
    return f"{'a' if cell == 'gru' else 'an'} {cell.upper()}"


def _positive(name: str, number: int) -> int:
    try:
        number = operator.index(number)
    except TypeError:
        raise TypeError(f"{name} is {number!r}, expected a whole number") from None
    if number < 1:
        raise ValueError(f"{name} is {number}, expected a number from 1")
    return number
