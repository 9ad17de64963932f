"""The command line, as its users meet it: in processes of its own."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import JIT, ROOT, run_python, those

from fastrnn.cli import _parser, main
from fastrnn.kernels.rnn import NONLINEARITIES
from fastrnn.layers.gru import RESETS
from fastrnn.layers.lstm import ACTIVATIONS, PEEPHOLES
from fastrnn.modelfile import read_model_file
from fastrnn.models.charlm import CELLS, CharLM

TEXT = "She sells sea shells by the sea shore.\nThe shells she sells are sea shells, I'm sure.\n" * (12 if JIT else 4)
SMALL = [
    "--hidden-size",
    10,
    "--layers",
    1,
    "--embedding-size",
    4,
    "--batch-size",
    4,
    "--seq-length",
    10,
    "--seed",
    3,
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
TIMEOUT = 120


def fastrnn(*args, **options):
    """Runs `python -m fastrnn` with `args`; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "fastrnn", *map(str, args)],
        **{"capture_output": True, "text": True, "timeout": TIMEOUT, "env": ENVIRONMENT, **options},
    )


def succeed(*args, **options):
    done = fastrnn(*args, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def fail(*args, **options):
    """The one line of an error that ends with exit code 2."""
    done = fastrnn(*args, **options)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("fastrnn")
    return lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a text, and a model that has learned it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    done = succeed("train", "text.txt", "-o", "model.npz", "--epochs", 3, *SMALL, cwd=folder)
    (folder / "train.out").write_text(done.stdout)
    return folder


# -------------------------------------------------------------------- train


def test_training_tells_its_story(folder):
    out = (folder / "train.out").read_text()
    part = round(len(TEXT) / 20)
    assert f"text: text.txt: {len(TEXT) - 2 * part} characters to learn, {part} for validation, {part} held out" in out
    assert re.search(r"model: LSTM, 1 layer of 10, \d+ characters embedding 4, [\d,]+ weights, float32, seed 3", out)
    losses = [float(loss) for loss in re.findall(r"epoch \d/3 .* validation (\d\.\d+)", out)]
    assert len(losses) == 3
    assert losses[2] < losses[0]
    assert re.search(r"characters/s", out)
    assert re.search(r"held out: \d\.\d+ nats per character, \d\.\d+ bits per character, perplexity", out)
    assert "model: model.npz" in out
    assert "a sample" in out


def test_the_same_training_makes_the_same_files(folder):
    succeed("train", "text.txt", "-o", "again.npz", "--epochs", 3, *SMALL, "--threads", 1, cwd=folder)
    assert (folder / "again.npz").read_bytes() == (folder / "model.npz").read_bytes()
    assert (folder / "again.ckpt.npz").read_bytes() == (folder / "model.ckpt.npz").read_bytes()


def interrupt(args, folder, signum):
    """Trains, sends `signum` when the second epoch has been reported; returns exit code, output, errors."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "train", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=folder,
    )  # fmt: skip
    try:
        out = ""
        while "epoch 2/" not in out:
            line = process.stdout.readline()
            assert line, f"training ended early: {process.stderr.read()}"
            out += line
        process.send_signal(signum)
        rest, err = process.communicate(timeout=TIMEOUT)
        return process.returncode, out + rest, err
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_interrupted_training_goes_on_to_the_same_bits(folder, signum):
    epochs = 150 if JIT else 6  # long enough for the signal to arrive before the end
    options = ["text.txt", "--epochs", epochs, "--lr-halve-every", 3, "--dropout", 0.1, "--window", 25, *SMALL]
    whole, parts = f"whole{signum}", f"parts{signum}"
    succeed("train", *options, "-o", f"{whole}.npz", cwd=folder)

    code, _, err = interrupt([*options, "-o", f"{parts}.npz"], folder, signum)
    assert code == 128 + signum, err
    assert "Traceback" not in err
    assert f"{parts}.ckpt.npz" in err
    assert "--resume" in err
    header, _ = read_model_file(folder / f"{parts}.ckpt.npz")
    assert 2 <= header["training"]["epoch"] < epochs
    sample = succeed("sample", f"{parts}.ckpt.npz", "--length", 5, cwd=folder)
    assert len(sample.stdout) == 6

    # Of the options, the checkpoint knows them all.
    done = succeed("train", "text.txt", "-o", f"{parts}.npz", "--resume", cwd=folder)
    assert f"epoch {epochs}/{epochs}" in done.stdout
    for end in ("npz", "ckpt.npz"):
        assert (folder / f"{parts}.{end}").read_bytes() == (folder / f"{whole}.{end}").read_bytes()


def test_resuming_with_more_epochs_and_what_is_refused(folder):
    for end in ("npz", "ckpt.npz"):
        (folder / f"more.{end}").write_bytes((folder / f"model.{end}").read_bytes())
    resume = ("train", "text.txt", "-o", "more.npz", "--resume")
    assert "all 3 epochs are done" in fail(*resume, cwd=folder)
    assert "--layers 2, and the training to be resumed has 1" in fail(*resume, "--layers", 2, cwd=folder)
    (folder / "other.txt").write_text(TEXT[::-1])
    other = fail("train", "other.txt", "-o", "more.npz", "--resume", "--epochs", 4, cwd=folder)
    assert "the text, or how it is split" in other
    assert "nothing to resume: no none.ckpt.npz" in fail("train", "text.txt", "-o", "none.npz", "--resume", cwd=folder)

    succeed(*resume, "--epochs", 5, cwd=folder)
    succeed("train", "text.txt", "-o", "five.npz", "--epochs", 5, *SMALL, cwd=folder)
    assert (folder / "more.ckpt.npz").read_bytes() == (folder / "five.ckpt.npz").read_bytes()


def test_a_kill_at_any_moment_leaves_files_that_load(folder):
    """Training that does little but write its files, killed at different moments."""
    code = f"""if True:
        import functools, fastrnn.training
        from fastrnn.models import charlm
        charlm.run = functools.partial(fastrnn.training.run, save_every=0.0)
        lm = charlm.CharLM(hidden_size=10, num_layers=1, embedding_size=4, seed=1)
        lm.fit({TEXT!r}, epochs=10**6, batch_size=4, seq_length=10, checkpoint="killed.npz", sample_every=0)
    """
    for seconds in (0.0, 0.013, 0.029):
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        try:
            assert "epoch 1/" in process.stdout.readline()
            time.sleep(seconds)
        finally:
            process.kill()
            process.communicate(timeout=TIMEOUT)
        assert read_model_file(folder / "killed.ckpt.npz")[0]["training"]["steps"] > 0
        for end in ("npz", "ckpt.npz"):
            if (folder / f"killed.{end}").exists():
                CharLM.load(folder / f"killed.{end}")


def test_a_time_limit_ends_training(folder):
    done = succeed("train", "text.txt", "-o", "limited.npz", "--epochs", 10**6, "--time-limit", 0.2, *SMALL, cwd=folder)
    assert "time is up" in done.stdout or "epoch 1/" in done.stdout
    assert "model: limited.npz" in done.stdout


def test_without_a_file_the_standard_library_is_learned(folder):
    little = ("--validation-fraction", 0.001, "--held-out-fraction", 0.001)
    done = succeed("train", "--time-limit", 0.1, *little, *SMALL, cwd=folder)
    assert "the Python standard library's source" in done.stdout
    assert "model: fastrnn-model.npz" in done.stdout
    assert (folder / "fastrnn-model.npz").exists()


def test_min_char_rnn_in_one_command(folder):
    done = succeed(
        "train",
        "text.txt",
        "--min-char-rnn",
        "-o",
        "min.npz",
        "--epochs",
        4 if JIT else 12,
        "--hidden-size",
        8,
        cwd=folder,
    )
    out = done.stdout
    assert out.count("----\n") >= 2 * 2  # before iterations 0 and 100, at the least
    first, later = (float(re.search(rf"iter {n}, loss: ([\d.]+)", out)[1]) for n in (0, 100))
    assert later < first
    assert len(succeed("sample", "min.npz", "--length", 9, "--seed", 1, cwd=folder).stdout) == 10
    wrong = fail("train", "text.txt", "--min-char-rnn", "--layers", 2, cwd=folder)
    assert "--layers does not go with --min-char-rnn" in wrong


MODELS = [["--cell", "rnn"], ["--peephole", "diagonal"], ["--embedding-size", "0"]]


@pytest.mark.parametrize("cell", those(MODELS, [MODELS[0], MODELS[2]], [" ".join(words) for words in MODELS]))
def test_other_models(folder, cell):
    done = succeed("train", "text.txt", "-o", "other.npz", "--epochs", 1, "--hidden-size", 6, *cell, cwd=folder)
    assert re.search({"rnn": "RNN", "diagonal": "diagonal peepholes", "0": "one-hot"}[cell[1]], done.stdout)
    succeed("eval", "other.npz", "text.txt", cwd=folder)


def test_options_of_the_cell(folder):
    """They are trained with, and are in the file: `info` tells them, --resume needs none of them."""
    options = ["--coupled", "--proj-size", 7, "--cell-clip", 3, "--window", 25]
    done = succeed("train", "text.txt", "-o", "cell.npz", "--epochs", 1, *SMALL, *options, cwd=folder)
    said = "LSTM with coupled gates, projection to 7, clip 3"
    assert f"model: {said}, 1 layer of 10, " in done.stdout
    for file in ("cell.npz", "cell.ckpt.npz"):
        out = succeed("info", file, cwd=folder).stdout
        assert re.search(rf"^model: +{file}$", out, re.MULTILINE)
        assert re.search(rf"^cell: +{said}$", out, re.MULTILINE)
        assert re.search(r"^layers: +1 of 10$", out, re.MULTILINE)
        assert re.search(r"^training: .*seq_length 10, window 25, ", out, re.MULTILINE)
    resume = ("train", "text.txt", "-o", "cell.npz", "--epochs", 2, "--resume")
    assert "--window 30, and the training to be resumed has 25" in fail(*resume, "--window", 30, cwd=folder)
    assert said in succeed(*resume, "--coupled", cwd=folder).stdout


def test_names_on_the_command_line_are_the_layers():
    train = _parser()._subparsers._group_actions[0].choices["train"]
    choices = {option: action.choices for action in train._actions for option in action.option_strings}
    for option, names in (
        ("--cell", CELLS),
        ("--nonlinearity", NONLINEARITIES),
        ("--reset", RESETS),
        ("--peephole", [name for name in PEEPHOLES if name]),
        ("--activations", ACTIVATIONS),
    ):
        assert set(choices[option]) == set(names)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_texts_in_other_encodings(folder, encoding):
    (folder / "coded.txt").write_bytes((TEXT + "Blåbærsyltetøy\n" * 9).encode(encoding))
    options = ["--epochs", 1, "--validation-fraction", 0, "--held-out-fraction", 0, *SMALL]
    line = fail("train", "coded.txt", "-o", "coded.npz", *options, cwd=folder)
    assert "coded.txt: not utf-8 text" in line
    assert "name its encoding" in line
    succeed("train", "coded.txt", "-o", "coded.npz", "--encoding", encoding, *options, cwd=folder)
    # A terminal that can't show a character gets its escape.
    plain = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    done = succeed("sample", "coded.npz", "--prime", "Blåb", "--length", 0, cwd=folder, env=plain)
    assert done.stdout == "Bl\\xe5b\n"
    assert "characters" in succeed("eval", "coded.npz", "coded.txt", "--encoding", encoding, cwd=folder).stdout


# -------------------------------------------------------------------- sample, eval


def test_the_text_alone_is_on_standard_output(folder):
    options = ("sample", "model.npz", "--length", 80, "--prime", "She ", "--temperature", 0.7)
    done = succeed(*options, "--seed", 1, cwd=folder)
    assert done.stdout.startswith("She ")
    assert len(done.stdout) == 4 + 80 + 1
    assert done.stderr == ""
    assert succeed(*options, "--seed", 1, cwd=folder).stdout == done.stdout
    assert succeed(*options, "--seed", 1, "--threads", 1, cwd=folder).stdout == done.stdout
    assert succeed(*options, "--seed", 2, cwd=folder).stdout != done.stdout


def test_evaluation(folder):
    (folder / "eval.txt").write_text("She sells XY shells\n")
    out = succeed("eval", "model.npz", "eval.txt", cwd=folder).stdout
    nats, bits, perplexity, characters, unseen = map(
        float,
        re.match(r"([\d.]+) nats .* ([\d.]+) bits .* perplexity ([\d.]+), over (\d+) .*; (\d+) more", out).groups(),
    )
    assert bits == pytest.approx(nats / 0.693147, rel=1e-3)
    assert perplexity == pytest.approx(2.718282**nats, rel=1e-3)
    assert (characters, unseen) == (17, 2)


def test_a_reader_that_goes_away(folder):
    """`fastrnn sample ... | head -c 1`: no traceback."""
    with subprocess.Popen(
        [sys.executable, "-m", "fastrnn", "sample", "model.npz", "--length", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, cwd=folder,
    ) as process:  # fmt: skip
        process.stdout.close()
        assert process.stderr.read() == b""


# -------------------------------------------------------------------- info, warmup, mistakes


def test_info():
    out = succeed("info").stdout
    for name in ("fastrnn", "Python", "numpy", "numba", "CPU", "vectors", "threads", "compiled code"):
        assert re.search(rf"^{name}: +\S", out, re.MULTILINE), out


@pytest.mark.skipif(not JIT, reason="there is nothing to compile")
def test_info_of_the_cache(tmp_path):
    """Its place, what is in it, whether it can be written; and what older versions have left there."""
    old = tmp_path / "fastrnn" / "0123" / "held"
    old.mkdir(parents=True)
    (old / "f.nbc").write_bytes(bytes(300_000))
    environment = {**ENVIRONMENT, "FASTRNN_CACHE_DIR": str(tmp_path)}
    out = succeed("info", env=environment).stdout
    assert re.search(rf"^compiled code: +{re.escape(str(tmp_path))}", out, re.MULTILINE), out
    assert re.search(r"^kept there: +0 kernels, 0\.0 MB, can be written$", out, re.MULTILINE), out
    assert re.search(r"^older ones: +1 folders, 0\.3 MB", out, re.MULTILINE), out
    run_python("import numpy, fastrnn; fastrnn.softmax(numpy.zeros(3))", FASTRNN_CACHE_DIR=str(tmp_path))
    # `softmax`, and how workers find their items.
    assert re.search(r"^kept there: +2 kernels, 0\.\d MB", succeed("info", env=environment).stdout, re.MULTILINE)
    (tmp_path / "file").write_text("")
    environment["FASTRNN_CACHE_DIR"] = str(tmp_path / "file" / "cache")
    assert "not kept" in succeed("info", env=environment).stdout


@pytest.mark.skipif(not JIT, reason="there is nothing to compile")
def test_warmup():
    assert "compiled in" in succeed("warmup", timeout=600).stdout


def test_help_is_there_for_every_command():
    assert "train" in succeed("--help").stdout
    for command in ("train", "sample", "eval", "info", "warmup"):
        assert "usage" in succeed(command, "--help").stdout


# The others are told to the function behind the command, but in the long form.
IN_A_PROCESS = ("", "train none.txt", "train text.txt --bogus", "sample model.npz --prime Zürich")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("train none.txt", "none.txt: No such file"),
        ("train .", r"\."),
        ("train text.txt -o no/where.npz", "no/where.npz.*No such file"),
        ("train text.txt -o .", "folder"),
        ("train text.txt --epochs 0", "'0' is not a whole number from 1"),
        ("train text.txt --epochs many", "'many' is not a whole number"),
        ("train text.txt --lr -1", "--lr"),
        ("train text.txt --lr nan", "'nan' is not a number above 0"),
        ("train text.txt --dropout 1", "'1' is not a fraction"),
        ("train text.txt --cell elman", "invalid choice: 'elman'"),
        ("train text.txt --peephole round", "invalid choice: 'round'"),
        ("train text.txt --activations tanh elu tanh", "invalid choice: 'elu'"),
        ("train text.txt --activations tanh", "--activations: expected 3 arguments"),
        ("train text.txt --cell-clip -1", "'-1' is not a number from 0"),
        ("train none.txt --proj-size 128", "proj_size is 128, expected less than hidden_size=128"),  # before any work
        ("train none.txt --cell gru --coupled", "coupled is True, and only an LSTM"),
        ("train none.txt --reset before", "reset is 'before', and only a GRU"),
        ("info none.npz", "none.npz: No such file"),
        ("info text.txt", "text.txt: not a fastrnn model file"),
        ("train text.txt --cell rnn --peephole diagonal", "only an LSTM"),
        ("train none.txt --seq-length 20 --window 19", "window is 19, expected at least seq_length=20"),
        ("train text.txt --validation-fraction 0.6 --held-out-fraction 0.6", "nothing to train on"),
        ("train text.txt --encoding no-such", "can't be decoded as 'no-such'"),
        ("train text.txt --bogus", "unrecognized arguments: --bogus"),
        ("train empty.txt", "no text"),
        ("train short.txt --validation-fraction 0 --held-out-fraction 0", "at least 2 characters"),
        ("sample none.npz", "none.npz: No such file"),
        ("sample text.txt", "text.txt: not a fastrnn model file"),
        ("sample damaged.npz", "damaged.npz: "),
        ("sample model.npz --prime Zürich", r"prime has .*'Z' \(U\+005A\), .*'ü' \(U\+00FC\)"),
        ("sample model.npz --temperature -1", "'-1' is not a number from 0"),
        ("sample model.npz --length -1", "'-1' is not a whole number from 0"),
        ("eval model.npz none.txt", "none.txt: No such file"),
        ("eval model.npz digits.txt", "0 characters that the model knows and 9 that it doesn't"),
        ("train text.txt -o model.npz --resume --min-char-rnn", "--resume does not go with --min-char-rnn"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(folder, command, message, effort, monkeypatch, capfd):
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("a")
    (folder / "digits.txt").write_text("123456789")
    (folder / "damaged.npz").write_bytes((folder / "model.npz").read_bytes()[:-100])
    if effort(command in IN_A_PROCESS, True):
        line = fail(*command.split(), cwd=folder, env={**ENVIRONMENT, "PYTHONUTF8": "1"})
    else:
        monkeypatch.chdir(folder)
        try:
            code = main(command.split())
        except SystemExit as end:
            code = end.code
        (line,) = capfd.readouterr().err.splitlines()
        assert code == 2
        assert line.startswith("fastrnn")
    assert re.search(message, line), line


# --- bench --------------------------------------------------------------------------------------------------


def test_bench_takes_the_benchmark_s_options(tmp_path):
    """The quick cases unless others are named; its errors, and its exit codes."""
    quick = succeed("bench", "--list", cwd=tmp_path).stdout
    assert "lstm-train-100x64x256x512" in quick
    assert "tiny" not in quick
    assert "tiny-lstm-step-B2-H7" in succeed("bench", "--only", "tiny", "--list", cwd=tmp_path).stdout
    assert "no case is called 'nothing'" in fail("bench", "--only", "nothing", cwd=tmp_path)
