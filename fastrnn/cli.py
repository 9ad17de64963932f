"""The command line: `fastrnn train | sample | eval | inspect | bench | info | warmup`.

Results go to standard output, notices and errors to standard error. A mistake of the user's is one line and
exit code 2; SIGINT and SIGTERM end with 130 and 143; 3 says that `train` could not save what it learned. What is
heavy to import is imported where it is needed, so that `--help` and a mistyped option are answered at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

DEFAULT_MODEL = "fastrnn-model.npz"
DEFAULT_SECONDS = 100  # without FILE, and for min-char-rnn, which by itself has no end

# Options of `train` that a checkpoint remembers, with their defaults in a new training.
TRAIN_DEFAULTS: dict[str, Any] = {
    "cell": "lstm",
    "nonlinearity": None,
    "reset": None,
    "peephole": None,
    "coupled": False,
    "cell_clip": None,
    "proj_size": 0,
    "activations": None,
    "hidden_size": 128,
    "layers": 2,
    "embedding_size": 64,
    "dropout": 0.0,
    "seed": 0,
    "epochs": 10,
    "batch_size": 50,
    "seq_length": 50,
    "window": None,
    "lr": 0.002,
    "lr_halve_every": 5,
    "clip": 5.0,
    "validation_fraction": 0.05,
    "held_out_fraction": 0.05,
}
# Those that may change when it is resumed.
FREE = {"epochs", "lr", "lr_halve_every", "clip"}
# Those that min-char-rnn has, with its own defaults.
MIN_CHAR_DEFAULTS: dict[str, Any] = {
    "hidden_size": 100, "seed": 0, "epochs": None, "seq_length": 25, "lr": 0.1, "clip": 5.0,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks is shown as its escape, not as a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and args.command is not _bench:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        code = args.command(args)
        sys.stdout.flush()
    except KeyboardInterrupt as interrupted:
        number = getattr(interrupted, "signum", signal.SIGINT)  # training.Interrupted knows which one
        print(f"fastrnn {args.name}: {interrupted or 'interrupted'}", file=sys.stderr)
        return 128 + number
    except BrokenPipeError:  # the reader of our output has gone, as in `| head`: nothing to complain about
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except MemoryError as error:
        return _complain(args.name, f"not enough memory: {error}")
    except OSError as error:
        _complain(args.name, f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return getattr(error, "exit_code", 2)  # training.NotSavedError has one of its own
    except (ValueError, ArithmeticError) as error:
        return _complain(args.name, str(error))
    return code or 0


def _complain(name: str, message: str) -> int:
    print(f"fastrnn {name}: {' '.join(message.split())}", file=sys.stderr)
    return 2


# -------------------------------------------------------------------- train


def _train(args: argparse.Namespace) -> None:
    given = {name: getattr(args, name) for name in TRAIN_DEFAULTS if hasattr(args, name)}
    if args.min_char_rnn:
        return _train_min_char(args, given)

    from .models.charlm import OWN, CharLM, checkpoint_path
    from .text import split_text
    from .training import check_window

    _set_threads(args)
    options = {**TRAIN_DEFAULTS, **given}
    if args.resume:
        options = _resumed_options(checkpoint_path(args.output), given)
    check_window(options["window"], options["seq_length"])
    lm = CharLM(
        cell=options["cell"],
        **{name: options[name] for name in OWN},
        hidden_size=options["hidden_size"],
        num_layers=options["layers"],
        embedding_size=options["embedding_size"],
        dropout=options["dropout"],
        seed=options["seed"],
    )
    text, name, time_limit = _text_and_limit(args, limited="epochs" not in given)
    parts = split_text(text, options["validation_fraction"], options["held_out_fraction"])
    lm.build(parts[0])
    sizes = [f"{len(part):,}" for part in parts]
    print(
        f"text: {name}: {sizes[0]} characters to learn, {sizes[1]} for validation, {sizes[2]} held out\n"
        f"model: {_describe(lm)}",
        flush=True,
    )
    if os.path.isfile(args.output) and not args.resume:
        print(f"model: replaces the one in {args.output}", flush=True)

    file = "" if args.file is None else shlex.quote(args.file) + " "
    again = f"fastrnn train {file}-o {shlex.quote(args.output)} --resume"
    try:
        lm.fit(
            text,
            validation=options["validation_fraction"],
            held_out=options["held_out_fraction"],
            epochs=options["epochs"],
            batch_size=options["batch_size"],
            seq_length=options["seq_length"],
            window=options["window"],
            lr=options["lr"],
            lr_halve_every=options["lr_halve_every"],
            clip=options["clip"],
            time_limit=time_limit,
            checkpoint=args.output,
            resume=args.resume,
            sample_every=args.sample_every,
        )
    except KeyboardInterrupt as interrupted:
        if hasattr(interrupted, "signum"):
            _notice(args, f"saved in {checkpoint_path(args.output)}; to go on: {again}")
        raise
    print(f"----- a sample -----\n{lm.sample(500, temperature=0.8, seed=options['seed'])}\n-----")
    if len(parts[2]) > 1:
        print(f"held out: {lm.evaluate(parts[2])}")
    print(f"model: {args.output}\nmore text: fastrnn sample {shlex.quote(args.output)}; more training: {again}")


def _text_and_limit(args: argparse.Namespace, limited: bool) -> tuple[str, str, float | None]:
    """The text to learn, what to call it, and the seconds to learn it in."""
    from .text import read_text, standard_library_text

    if args.file is not None:
        return read_text(args.file, args.encoding), args.file, args.time_limit
    seconds = DEFAULT_SECONDS if limited and args.time_limit is None else args.time_limit
    return standard_library_text(), "the Python standard library's source", seconds


def _resumed_options(checkpoint: os.PathLike[str], given: dict[str, Any]) -> dict[str, Any]:
    """The options of the training to be resumed, and those given now that may differ."""
    from .modelfile import ModelFileError, read_model_file
    from .models.charlm import OWN

    if not os.path.exists(checkpoint):
        raise ValueError(f"there is nothing to resume: no {checkpoint}")
    header, _ = read_model_file(checkpoint)
    if "training" not in header:
        raise ModelFileError(f"{checkpoint}: a model, but not a state of training that can be resumed")
    try:
        model, training = header["model"], header["training"]
        saved = {
            **{name: TRAIN_DEFAULTS[name] for name in OWN},  # older files do not name them all
            **model,
            "layers": model["num_layers"],
            "window": training["settings"]["seq_length"],  # of files that have none
            **training["settings"],
            "epochs": training["fit"]["epochs"],
        }
        saved |= {f"{part}_fraction": training["fit"][part] for part in ("validation", "held_out")}
        done = int(training["epoch"])
        saved = {name: saved[name] for name in TRAIN_DEFAULTS}
    except (LookupError, TypeError, ValueError) as error:
        raise ModelFileError(f"{checkpoint}: its state of training makes no sense ({error!r})") from error
    for name, value in given.items():
        if name not in FREE and saved[name] != value:
            value = " ".join(value) if isinstance(value, list) else value
            raise ValueError(f"{_option(name)} {value}, and the training to be resumed has {saved[name]}: leave it out")
    options = {**saved, **given}
    if done >= options["epochs"]:
        raise ValueError(f"all {done} epochs are done: to go on, name more with --epochs")
    return options


def _train_min_char(args: argparse.Namespace, given: dict[str, Any]) -> None:
    import copy
    import time

    from .modelfile import check_writable
    from .models.minchar import min_char_model, min_char_rnn
    from .training import Console, Interrupted, NotSavedError, error_text, noted_signals

    wrong = [_option(name) for name in given if name not in MIN_CHAR_DEFAULTS] + ["--resume"] * args.resume
    if wrong:
        raise ValueError(f"{wrong[0]} does not go with --min-char-rnn, which has no such thing")
    _set_threads(args)
    options = {**MIN_CHAR_DEFAULTS, **given}
    text, name, seconds = _text_and_limit(args, limited=options["epochs"] is None)
    if seconds is None and options["epochs"] is None:
        seconds = DEFAULT_SECONDS
    check_writable(args.output)
    lm = min_char_model(text, options["hidden_size"], options["seed"])
    print(f"text: {name}: {len(text):,} characters\nmin-char-rnn: {_describe(lm)}", flush=True)

    # What compiles, compiles here, on a copy: a signal ends it at once, and there is nothing to save yet.
    next(min_char_rnn(copy.deepcopy(lm), text, seq_length=options["seq_length"], sample_length=2))
    console, started, passes = Console(), time.perf_counter(), options["epochs"]
    every = 100 if args.sample_every is None else args.sample_every
    with noted_signals(console) as noted:
        for iteration in min_char_rnn(
            lm,
            text,
            seq_length=options["seq_length"],
            lr=options["lr"],
            clip=options["clip"],
            sample_every=every,
        ):
            if iteration.sample is not None:
                console.say(f"----\n {iteration.sample} \n----")
            if iteration.n % 100 == 0:
                console.say(f"iter {iteration.n}, loss: {iteration.smooth_loss:f}")
            elapsed = time.perf_counter() - started
            if noted or (passes and iteration.passes >= passes) or (seconds is not None and elapsed >= seconds):
                break
        try:
            lm.save(args.output)
        except OSError as error:
            raise NotSavedError(f"trained to iteration {iteration.n}, but not saved: {error_text(error)}") from error
        characters = (iteration.n + 1) * options["seq_length"]
        print(f"iter {iteration.n}, loss: {iteration.smooth_loss:f}, {characters / elapsed:,.0f} characters/s")
        print(f"model: {args.output}  (more text: fastrnn sample {shlex.quote(args.output)})", flush=True)
        if noted:
            raise Interrupted(noted[0], f"stopped after iteration {iteration.n}")


def _describe(lm: Any) -> str:
    layers = "1 layer" if lm.num_layers == 1 else f"{lm.num_layers} layers"
    cell = _describe_cell(lm)
    inputs = "one-hot" if lm.embedding_size is None else f"embedding {lm.embedding_size}"
    return (
        f"{cell}, {layers} of {lm.hidden_size}, {len(lm.vocabulary)} characters {inputs}, "
        f"{lm.num_parameters:,} weights, {lm.dtype}, seed {lm.seed}"
    )


def _describe_cell(lm: Any) -> str:
    options = {
        "nonlinearity {}": lm.nonlinearity,
        "reset {}": lm.reset,
        "{} peepholes": lm.peephole,
        "coupled gates": lm.coupled,
        "projection to {}": lm.proj_size,
        "activations {}": " ".join(lm.activations or ()),
        "clip {:g}": lm.cell_clip,
    }
    said = [text.format(value) for text, value in options.items() if value]
    return lm.cell.upper() + (f" with {', '.join(said)}" if said else "")


# -------------------------------------------------------------------- sample, eval


def _sample(args: argparse.Namespace) -> None:
    from .models.charlm import CharLM

    _set_threads(args)
    print(CharLM.load(args.model).sample(args.length, args.prime, args.temperature, args.seed))


def _eval(args: argparse.Namespace) -> None:
    from .models.charlm import CharLM
    from .text import read_text

    _set_threads(args)
    print(CharLM.load(args.model).evaluate(read_text(args.file, args.encoding)))


# -------------------------------------------------------------------- inspect


def _inspect(args: argparse.Namespace) -> None:
    from .inspection_page import page
    from .modelfile import check_writable
    from .models.charlm import CharLM
    from .text import read_text

    _set_threads(args)
    output = args.output or args.model.removesuffix(".npz") + ".html"
    for other in (args.model, args.file):
        if other is not None and os.path.realpath(output) == os.path.realpath(other):
            raise ValueError(f"{output} is read: name another file for the page with --output")
    lm = CharLM.load(args.model)
    check_writable(output)
    if args.file is None:
        text, name = lm.sample(args.length, seed=args.seed), f"written by the model itself, seed {args.seed}"
    else:
        text = read_text(args.file, args.encoding)
        name = args.file if len(text) <= args.length else f"{args.file}, the beginning"
    text = text[: args.length]
    found = lm.inspect(text)
    about = f"{_describe(lm)}. Text: {name}, {len(text):,} characters."
    html = page(found, f"{os.path.basename(args.model)}: what its hidden units do", about, args.units)
    with open(output, "w", encoding="utf-8", errors="xmlcharrefreplace", newline="\n") as file:
        file.write(html)
    print(f"model: {_describe(lm)}\ntext: {name}: {len(text):,} characters")
    for unit in found.units()[:5]:
        print(unit)
    print(f"page: {output}")


# -------------------------------------------------------------------- bench


def _bench(args: argparse.Namespace) -> int:
    return _benchmark()(["--quick", *args.rest], "fastrnn bench")


def _benchmark() -> Callable[[Sequence[str], str], int]:
    """The benchmark's command. It lies beside this package in its source, within it where it was installed."""
    from importlib import import_module
    from importlib.util import find_spec

    if find_spec("fastrnn.bench") is not None:
        name = "fastrnn.bench"
    elif os.path.isfile(os.path.join(os.path.dirname(__file__), os.pardir, "bench", "contest.py")):
        name = "bench"
    else:
        raise ValueError("the benchmark is not part of this installation; install fastrnn with pip, from its source")
    return import_module(f"{name}.__main__").main


# -------------------------------------------------------------------- info, warmup


def _info(args: argparse.Namespace) -> None:
    for name, value in (_machine() if args.model is None else _model(args.model)).items():
        print(f"{name + ':':15}{value}")


def _model(path: str) -> dict[str, Any]:
    """What a model's file says of it."""
    from .models.charlm import CharLM

    lm = CharLM.load(path)
    embedding = "one-hot" if lm.embedding_size is None else f"embedding of {lm.embedding_size}"
    about = {
        "model": path,
        "cell": _describe_cell(lm),
        "layers": f"{lm.num_layers} of {lm.hidden_size}" + (f", dropout {lm.dropout:g}" if lm.dropout else ""),
        "characters": f"{len(lm.vocabulary or ())}, {embedding}",
        "weights": f"{lm.num_parameters:,}, {lm.dtype}, seed {lm.seed}",
    }
    if lm.settings is not None:
        about["training"] = ", ".join(f"{name} {value}" for name, value in lm.settings.items())
    return about


def _machine() -> dict[str, Any]:
    """What results and speed may depend on here. The only place that asks the engine about the machine."""
    import platform

    import llvmlite
    import numba
    import numpy

    from . import __version__
    from .simd import target
    from .threads import get_num_threads

    return {
        "fastrnn": __version__,
        "Python": platform.python_version(),
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "llvmlite": llvmlite.__version__,
        "system": platform.platform(),
        "CPU": target.cpu_name(),
        "vectors": f"{8 * target.VECTOR_BYTES} bits",
        "threads": f"{get_num_threads()} of {os.cpu_count()} processors; our own, whatever Numba's threading layer",
        **_compiled_code(),
    }


def _compiled_code() -> dict[str, Any]:
    """Where compiled code is kept, and what is there."""
    from numba.core import config

    from ._jit import cache_folder, cache_state

    if config.DISABLE_JIT:
        return {"compiled code": "none: NUMBA_DISABLE_JIT is set"}
    folder = cache_folder()
    if folder is None:
        return {"compiled code": "not kept: no folder can be written (FASTRNN_CACHE_DIR names one)"}
    state = cache_state(folder)
    told = f"{state.entries} kernels, {state.size / 1e6:.1f} MB, {'can be written' if state.writable else 'read only'}"
    others = f"{state.others} folders, {state.others_size / 1e6:.1f} MB: may be deleted"
    return {"compiled code": folder, "kept there": told} | ({"older ones": others} if state.others else {})


def _warmup(args: argparse.Namespace) -> None:
    import time

    from ._jit import cache_folder
    from .models.charlm import CharLM
    from .models.minchar import min_char_model, min_char_rnn

    started = time.perf_counter()
    text = "to be or not to be\n" * 40
    for options in (
        {},
        {"peephole": "diagonal"},
        {"cell": "rnn"},
        {"cell": "gru"},
        {"embedding_size": None},
        {"dropout": 0.1},
    ):
        print(f"train and sample, {options or 'defaults'}", file=sys.stderr, flush=True)
        # Large enough that the kernels run as they do in earnest, on several threads.
        lm = CharLM(hidden_size=128, seed=0, **options)
        lm.fit(text, epochs=1, progress=False)
        lm.sample(2, seed=0)
        lm.evaluate(text)
    print("train and sample, min-char-rnn", file=sys.stderr, flush=True)
    next(min_char_rnn(min_char_model(text, seed=0), text))
    print(f"compiled in {time.perf_counter() - started:.1f} s; kept in {cache_folder() or 'no folder'}")


# -------------------------------------------------------------------- the options


def _set_threads(args: argparse.Namespace) -> None:
    if args.threads is not None:
        from .threads import set_num_threads

        set_num_threads(args.threads)


def _notice(args: argparse.Namespace, text: str) -> None:
    print(f"fastrnn {args.name}: {text}", file=sys.stderr, flush=True)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


def _number(kind: Callable[[str], Any], allowed: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not allowed(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return parse


_COUNT = _number(int, lambda n: n >= 1, "a whole number from 1")
_WHOLE = _number(int, lambda n: n >= 0, "a whole number from 0")
_ABOVE_0 = _number(float, lambda x: 0 < x < float("inf"), "a number above 0")
_FROM_0 = _number(float, lambda x: 0 <= x < float("inf"), "a number from 0")
_FRACTION = _number(float, lambda x: 0 <= x < 1, "a fraction from 0 to below 1")


def _or_none(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """0 on the command line is None in Python: off."""
    return lambda text: parse(text) or None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fastrnn", description="Recurrent networks, fast on CPUs: a character-level language model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="name")

    def command(name: str, run: Callable[[argparse.Namespace], Any], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        return sub

    train = command("train", _train, "learn a text (without FILE: the source of Python's standard library)")
    train.add_argument("file", nargs="?", metavar="FILE", help="a text file")
    train.add_argument(
        "-o", "--output", metavar="MODEL.npz", default=DEFAULT_MODEL,
        help="the best model; beside it, MODEL.ckpt.npz has the state of training (default: %(default)s)",
    )  # fmt: skip
    train.add_argument("--resume", action="store_true", help="go on where the training of MODEL.npz stopped")
    train.add_argument(
        "--time-limit", type=_ABOVE_0, metavar="SECONDS",
        help=f"end after so many seconds, in good order (without FILE and --epochs: {DEFAULT_SECONDS})",
    )  # fmt: skip
    train.add_argument(
        "--sample-every", type=_WHOLE, metavar="STEPS",
        help="show a sample after every so many steps, 0: never (default: after 100, 200, 500, 1000, ...)",
    )  # fmt: skip
    train.add_argument(
        "--min-char-rnn", action="store_true",
        help="min-char-rnn to the letter: tanh RNN, one-hot, 25 characters a step, Adagrad, no batch",
    )  # fmt: skip

    def option(flag: str, type: Any, metavar: str | tuple[str, ...] | None, text: str, **more: Any) -> None:
        default = TRAIN_DEFAULTS[flag.removeprefix("--").replace("-", "_")]
        shown = "" if default is None else f" (default: {default})"
        # Without a default here: a checkpoint must be able to tell what was given from what was not.
        train.add_argument(
            flag,
            type=type,
            metavar=metavar,
            default=argparse.SUPPRESS,
            help=text.replace("%", "%%") + shown,
            **more,
        )

    option("--epochs", _COUNT, "N", "passes over the text")
    names = ["tanh", "sigmoid", "relu", "hardsigmoid", "softsign", "identity"]
    option("--cell", None, None, "the recurrent cell", choices=["lstm", "gru", "rnn"])
    option("--nonlinearity", None, None, "of the RNN (default: tanh)", choices=["tanh", "relu", "sigmoid", "identity"])
    option("--reset", None, None, "the GRU's, about its product (default: after)", choices=["after", "before"])
    option("--peephole", None, None, "let the LSTM's gates see the cell state", choices=["diagonal", "full"])
    train.add_argument(
        "--coupled", action="store_true", default=argparse.SUPPRESS,
        help="couple the LSTM's gates: what is forgotten is what comes in",
    )  # fmt: skip
    option("--cell-clip", _or_none(_FROM_0), "LIMIT", "keep the LSTM's gates and cell within this, 0: don't")
    option("--proj-size", _WHOLE, "O", "project the LSTM's output to this size, 0: don't")
    option(
        "--activations", None, ("GATES", "CELL", "OUTPUT"), f"the LSTM's functions, of {' '.join(names)}",
        nargs=3, choices=names,
    )  # fmt: skip
    option("--hidden-size", _COUNT, "H", "hidden units of a layer")
    option("--layers", _COUNT, "L", "recurrent layers")
    option("--embedding-size", _or_none(_WHOLE), "E", "size of a character's embedding, 0: one-hot")
    option("--dropout", _FRACTION, "P", "probability of dropping a recurrent layer's output")
    option("--batch-size", _COUNT, "B", "rows read side by side")
    option("--seq-length", _COUNT, "T", "characters of a row in one step")
    option("--window", _COUNT, "T", "characters that a step's gradient goes back through (default: --seq-length)")
    option("--lr", _ABOVE_0, "LR", "Adam's learning rate")
    option("--lr-halve-every", _or_none(_WHOLE), "N", "halve the learning rate every N epochs, 0: never")
    option("--clip", _or_none(_FROM_0), "NORM", "clip the gradient to this norm, 0: don't")
    option("--seed", _WHOLE, "S", "of the weights, dropout and samples")
    option("--validation-fraction", _FRACTION, "F", "part of the text that the best model is chosen by")
    option("--held-out-fraction", _FRACTION, "F", "part of the text, at its end, for the final score alone")

    sample = command("sample", _sample, "write text with a model (the text alone on standard output)")
    sample.add_argument("model", metavar="MODEL.npz")
    sample.add_argument("--length", type=_WHOLE, default=500, metavar="N", help="characters (default: %(default)s)")
    sample.add_argument("--prime", default="", metavar="TEXT", help="the beginning, to be continued")
    sample.add_argument(
        "--temperature", type=_FROM_0, default=1.0, metavar="X",
        help="below 1: surer, 0: always the most likely character, above 1: wilder (default: %(default)s)",
    )  # fmt: skip
    sample.add_argument("--seed", type=_WHOLE, metavar="S", help="the same seed writes the same text (default: random)")

    score = command("eval", _eval, "nats, bits per character and perplexity of a text under a model")
    score.add_argument("model", metavar="MODEL.npz")
    score.add_argument("file", metavar="FILE", help="a text file")

    look = command("inspect", _inspect, "what a model's hidden units do, on a page to look at (HTML)")
    look.add_argument("model", metavar="MODEL.npz")
    look.add_argument("file", nargs="?", metavar="FILE", help="a text file (default: a text that the model writes)")
    look.add_argument("-o", "--output", metavar="PAGE.html", help="the page (default: beside the model)")
    look.add_argument("--units", type=_COUNT, default=12, metavar="N", help="units to show (default: %(default)s)")
    look.add_argument(
        "--length", type=_COUNT, default=20_000, metavar="N",
        help="characters of the text that are looked at, from its beginning (default: %(default)s)",
    )  # fmt: skip
    look.add_argument("--seed", type=_WHOLE, default=0, metavar="S", help="of the model's own text (default: 0)")

    for sub in (train, score, look):
        sub.add_argument(
            "--encoding", default="utf-8", help="of FILE: any that Python can decode (default: %(default)s)"
        )
    for sub in (train, sample, score, look):
        sub.add_argument("--threads", type=_COUNT, metavar="N", help="(default: all processors; results are the same)")

    # Its own options are read where they are known: bench/__main__.py.
    bench = commands.add_parser(
        "bench", add_help=False, help="fastrnn beside the other libraries that are installed, in two or three minutes"
    )
    bench.set_defaults(command=_bench)

    info = command("info", _info, "this machine and these versions, as fastrnn sees them; or what a model's file says")
    info.add_argument("model", nargs="?", metavar="MODEL.npz", help="a model, or the state of its training")
    command(
        "warmup",
        _warmup,
        "compile what train and sample need (but for the cells' rarer options), so that they start at once",
    )
    return parser
