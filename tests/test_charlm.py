"""The language model: it learns, goes on where it stopped, keeps its files whole, and scores as it says."""

import json
import math
import os
import shutil
import signal
import zipfile

import numpy as np
import pytest
from helpers import JIT, run_python

import fastrnn.training
from fastrnn import modelfile
from fastrnn.layers.sequential import Sequential
from fastrnn.modelfile import ModelFileError, read_model_file, write_model_file
from fastrnn.models.charlm import OWN, CharLM, checkpoint_path
from fastrnn.sampling import draw, generate
from fastrnn.training import Trainer, sample_is_due

TEXT = "a rose is a rose is a rose\n" * 20
SMALL = {"hidden_size": 12, "num_layers": 2 if JIT else 1, "embedding_size": 5, "seed": 7}
FIT = {"batch_size": 4, "seq_length": 9, "lr": 0.02, "validation": 0.2, "progress": False}

VARIANTS = {
    "lstm": {},
    "rnn": {"cell": "rnn"},
    "gru": {"cell": "gru"},
    "options": {"num_layers": 1, "coupled": True, "proj_size": 7, "cell_clip": 3.0},
    "one-hot": {"embedding_size": None, "num_layers": 1},
    "peephole": {"peephole": "diagonal", "num_layers": 1},
    "dropout": {"dropout": 0.3, "num_layers": 2},
    "float64": {"dtype": "float64"},
}


def params_of(lm):
    return {name: array.tobytes() for name, array in lm.model.params.items()}


@pytest.fixture(scope="module")
def fitted():
    lm = CharLM(**SMALL)
    lm.fit(TEXT, epochs=3, **FIT)
    return lm


# -------------------------------------------------------------------- learning


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns(variant):
    lm = CharLM(**{**SMALL, **VARIANTS[variant]})
    before = lm.build(TEXT).evaluate(TEXT).nats
    history = lm.fit(TEXT, epochs=12 if JIT else 4, **FIT)
    assert before == pytest.approx(math.log(len(set(TEXT))), rel=0.3)  # nothing known
    assert lm.evaluate(TEXT).nats < (0.5 if JIT else 0.9) * before
    assert history[-1].loss < history[0].loss
    assert [epoch.epoch for epoch in history] == list(range(1, len(history) + 1))


@pytest.mark.skipif(not JIT, reason="long")
def test_it_writes_what_it_has_learned():
    text = "hello world. " * 40  # what follows an l or an o takes memory
    lm = CharLM(**SMALL)
    lm.fit(text, epochs=40, **FIT)
    assert lm.sample(54, prime="hello ", temperature=0) == text[:60]


def test_the_best_weights_are_those_that_remain(monkeypatch):
    """Three passes with validation losses 2, 1, 3: the second pass's weights are the model, not the last."""
    seen, losses = [], iter([2.0, 1.0, 3.0])
    lm = CharLM(**SMALL)

    def mean_loss(model, streams, stop):
        seen.append(params_of(lm))
        return next(losses)

    monkeypatch.setattr(fastrnn.training, "mean_loss", mean_loss)
    history = lm.fit(TEXT, epochs=3, **FIT)
    assert [epoch.validation for epoch in history] == [2.0, 1.0, 3.0]
    assert params_of(lm) == seen[1]
    assert seen[1] != seen[2]


def test_without_validation_the_latest_weights_remain():
    lm = CharLM(**SMALL)
    history = lm.fit(TEXT, epochs=2, **{**FIT, "validation": 0.0})
    assert [epoch.validation for epoch in history] == [None, None]
    other = CharLM(**SMALL)
    other.fit(TEXT, epochs=2, **{**FIT, "validation": TEXT[:50]})  # same steps, and they do get better
    assert params_of(lm) == params_of(other)


def test_the_validation_loss_is_that_of_the_validation_text():
    lm = CharLM(**SMALL)
    text, validation = TEXT[:400], TEXT[400:]
    history = lm.fit(text, epochs=1, **{**FIT, "validation": validation, "batch_size": 1})
    # One row, and the weights of the end of the pass: exactly what evaluate computes.
    assert history[0].validation == pytest.approx(lm.evaluate(validation).nats, rel=1e-6)


def test_the_learning_rate_is_halved():
    history = CharLM(**SMALL).fit(TEXT, epochs=5, lr_halve_every=2, **FIT)
    assert [epoch.lr for epoch in history] == [0.02, 0.02, 0.01, 0.01, 0.005]


def test_the_optimizer_gets_that_learning_rate(monkeypatch):
    rates = []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self: (step(self), rates.append((self.epoch, self.optimizer.lr)))[0])
    CharLM(**SMALL).fit(TEXT, epochs=3, lr_halve_every=1, **FIT)
    assert set(rates) == {(0, 0.02), (1, 0.01), (2, 0.005)}


def test_the_state_is_carried_from_chunk_to_chunk_and_begins_anew_with_the_text(monkeypatch):
    given, returned, forward = [], [], Sequential.forward

    def spy(self, x, state=None):
        given.append(None if state is None else state[0][0].copy())  # h of the LSTM
        result = forward(self, x, state)
        returned.append(result[1][0][0].copy())
        return result

    monkeypatch.setattr(Sequential, "forward", spy)
    history = CharLM(**SMALL).fit(TEXT, epochs=2, **FIT)
    assert len(given) == history[-1].steps == 24
    for n in range(24):
        if n % 12 == 0:
            assert given[n] is None
        else:
            assert np.array_equal(given[n], returned[n - 1])
            assert given[n].any()


def test_clipping_changes_what_is_learned():
    runs = {}
    for clip in (None, 1e9, 1e-3):
        lm = CharLM(**SMALL)
        lm.fit(TEXT, epochs=1, clip=clip, optimizer="sgd", **FIT)
        runs[clip] = params_of(lm)
    assert runs[None] == runs[1e9]
    assert runs[None] != runs[1e-3]


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop"])
def test_other_optimizers(optimizer):
    lm = CharLM(**SMALL)
    before = lm.build(TEXT).evaluate(TEXT).nats
    lm.fit(TEXT, epochs=3, optimizer=optimizer, **FIT)
    assert lm.evaluate(TEXT).nats < before


def test_the_seed_is_all():
    runs = []
    for _ in range(2):
        lm = CharLM(**SMALL, dropout=0.2)
        lm.fit(TEXT, epochs=2, **FIT)
        runs.append(params_of(lm))
    assert runs[0] == runs[1]
    assert CharLM().seed != CharLM().seed


def test_a_short_text_gets_fewer_rows():
    lm = CharLM(**SMALL)
    assert lm.fit("abcabcabcabc", epochs=1, progress=False)[0].steps == 1


def test_training_that_diverges_says_so_and_keeps_the_best(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    cross_entropy = fastrnn.training.cross_entropy
    lm = CharLM(**SMALL)
    lm.fit(TEXT, epochs=1, checkpoint=path, **FIT)
    checkpoint = checkpoint_path(path).read_bytes()
    monkeypatch.setattr(fastrnn.training, "cross_entropy", lambda *a: (math.nan, cross_entropy(*a)[1]))
    with pytest.raises(FloatingPointError, match="the loss is nan at step"):
        lm.fit(TEXT, epochs=9, checkpoint=path, resume=True, **FIT)
    assert params_of(CharLM.load(path)) is not None
    assert checkpoint_path(path).read_bytes() == checkpoint


def test_a_time_limit_ends_it_in_good_order(tmp_path):
    path = tmp_path / "model.npz"
    lm = CharLM(**SMALL)
    assert lm.fit(TEXT, epochs=1000, time_limit=1e-9, checkpoint=path, **FIT) == []
    assert params_of(CharLM.load(path)) == params_of(lm)
    header, _ = read_model_file(checkpoint_path(path))
    assert header["training"]["steps"] == 1
    assert header["training"]["best"] is not None


def test_what_fit_refuses_leaves_the_model_as_it_was(fitted, tmp_path):
    before = params_of(fitted)
    with pytest.raises(ValueError, match=r"characters that the training text does not have: 'X'"):
        fitted.fit(TEXT + "X" + TEXT, **FIT)
    with pytest.raises(ValueError, match="needs a checkpoint"):
        fitted.fit(TEXT, resume=True, **FIT)
    with pytest.raises(FileNotFoundError):
        fitted.fit(TEXT, resume=True, checkpoint=tmp_path / "none.npz", **FIT)
    with pytest.raises(FileNotFoundError):  # known before the training, not after it
        fitted.fit(TEXT, checkpoint=tmp_path / "no folder" / "m.npz", **FIT)
    with pytest.raises(IsADirectoryError):
        fitted.fit(TEXT, checkpoint=tmp_path, **FIT)
    assert params_of(fitted) == before
    new = CharLM(**SMALL)
    for wrong in ({"batch_size": 0}, {"seq_length": -1}, {"lr": 0}, {"lr": math.nan}, {"optimizer": "magic"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            new.fit(TEXT, **{**FIT, **wrong})
    with pytest.raises(TypeError, match=r"batch_size is 2\.5"):
        new.fit(TEXT, **{**FIT, "batch_size": 2.5})
    assert new.model is None
    assert new.vocabulary is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cell": "elman"}, "cell is 'elman'"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"embedding_size": 0}, "embedding_size is 0"),
        ({"peephole": "half"}, "peephole is 'half'"),
        ({"peephole": "diagonal", "cell": "rnn"}, "only an LSTM"),
        ({"coupled": True, "cell": "gru"}, "coupled is True, and only an LSTM has that: cell is 'gru'"),
        ({"proj_size": 3, "cell": "rnn"}, "proj_size is 3, and only an LSTM"),
        ({"reset": "before"}, "reset is 'before', and only a GRU has that: cell is 'lstm'"),
        ({"nonlinearity": "relu"}, "only an RNN"),
        ({"nonlinearity": "elu", "cell": "rnn"}, "nonlinearity is 'elu', expected 'tanh', 'relu'"),
        ({"reset": "never", "cell": "gru"}, "reset is 'never', expected 'after' or 'before'"),
        ({"proj_size": 128}, "proj_size is 128, expected less than hidden_size=128"),
        ({"proj_size": -1}, "proj_size is -1"),
        ({"cell_clip": 0.0}, "cell_clip is 0.0, expected a finite number > 0"),
        ({"cell_clip": 1e39}, "cell_clip is 1e[+]39, expected .* in float32"),
        ({"activations": ("tanh", "tanh", "elu")}, "activations has 'elu'"),
        ({"activations": ("tanh", "tanh")}, "activations has 2 names"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments(options, error):
    with pytest.raises(ValueError, match=error):
        CharLM(**options)


@pytest.mark.parametrize("options", [{"cell_clip": "3"}, {"activations": "tanh"}, {"proj_size": 2.5}])
def test_types_of_arguments(options):
    with pytest.raises(TypeError, match=next(iter(options))):
        CharLM(**options)


# Every option of every cell, alone and in company.
CELLS = [
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "gru", "reset": "before", "embedding_size": None},
    {"coupled": True},
    {"peephole": "full", "num_layers": 3},
    {"peephole": "diagonal", "coupled": True, "proj_size": 5, "embedding_size": None},
    {"peephole": "full", "coupled": True, "proj_size": 1, "num_layers": 1},
    {"cell_clip": 2.5, "activations": ("hardsigmoid", "tanh", "softsign"), "proj_size": 11},
]


@pytest.mark.parametrize("options", CELLS, ids=lambda options: " ".join(options))
def test_options_reach_the_layer_and_the_file(tmp_path, options):
    lm = CharLM(**{**SMALL, **options}).build(TEXT)
    assert lm.num_parameters == lm._count(len(lm.vocabulary))
    layer = next(part for part in lm.model.layers if part.recurrent)
    assert type(layer).__name__ == lm.cell.upper()
    for name, (cell, layers_name, _) in OWN.items():
        if cell == lm.cell and name in options:
            assert getattr(layer, layers_name) == options[name]
    lm.save(tmp_path / "m.npz")
    other = CharLM.load(tmp_path / "m.npz")
    assert (other.config, params_of(other), other.settings) == (lm.config, params_of(lm), None)
    assert repr(other) == repr(lm)
    assert eval(repr(lm)).config == lm.config


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_files_from_before_there_were_options(tmp_path, cell):
    """They load, and their training goes on, as those of the defaults."""
    path = tmp_path / "m.npz"
    one = CharLM(**SMALL, cell=cell)
    one.fit(TEXT, epochs=1, checkpoint=path, **FIT)
    for file in (path, checkpoint_path(path)):
        assert CharLM.load(file).settings == one.settings
        rewritten(file, lambda h, a: [h["model"].pop(name) for name in OWN if name != "peephole"])
        rewritten(file, lambda h, a: h.pop("settings"))
        assert CharLM.load(file).config == one.config
        assert CharLM.load(file).settings is None
    assert len(CharLM(**SMALL, cell=cell).fit(TEXT, epochs=2, checkpoint=path, resume=True, **FIT)) == 2
    other = {"coupled": True} if cell == "lstm" else {"nonlinearity": "relu"}
    with pytest.raises(ValueError, match=f"{next(iter(other))} is .*, and (False|None) in the checkpoint"):
        CharLM(**SMALL, cell=cell, **other).fit(TEXT, epochs=3, checkpoint=path, resume=True, **FIT)


def test_inspection_of_other_cells():
    for options in ({"cell": "gru"}, {"proj_size": 7, "coupled": True, "cell_clip": 3.0, "num_layers": 1}):
        lm = CharLM(**{**SMALL, **options}).build(TEXT)
        found = lm.inspect(TEXT[:50], depth=5)
        assert found.values.shape == (50, lm.num_layers, 12)
        assert all(np.isfinite(norms).all() and norms.any() for norms in found.gradient.values())


def test_a_model_without_weights_says_what_to_do():
    for use in (lambda lm: lm.sample(3), lambda lm: lm.evaluate("abc"), lambda lm: lm.save("none.npz")):
        with pytest.raises(RuntimeError, match="fit it, or load one"):
            use(CharLM())


# -------------------------------------------------------------------- stopping and going on


def stop_after(monkeypatch, steps, signum=signal.SIGINT):
    """The signal comes at the end of step number `steps` (counted from the beginning of the training)."""
    step = Trainer.step

    def interrupted(self):
        characters = step(self)
        if self.steps == steps:
            signal.raise_signal(signum)
        return characters

    monkeypatch.setattr(Trainer, "step", interrupted)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("steps", [1, 14, 36] if JIT else [14])  # 12 steps a pass: first, within, last of a pass
def test_resumed_training_is_the_same_to_the_bit(tmp_path, monkeypatch, capfd, variant, steps):
    options = {**SMALL, **VARIANTS[variant]}
    fit = {**FIT, "progress": True, "sample_every": 5, "epochs": 4 if JIT else 2}
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    sample = CharLM._sample
    monkeypatch.setattr(CharLM, "_sample", lambda lm, length, *more: sample(lm, min(length, 20), *more))

    one = CharLM(**options)
    history = one.fit(TEXT, checkpoint=whole, **fit)
    shown = capfd.readouterr().out
    assert history[0].steps == 12

    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(fastrnn.training.Interrupted, match=f"after step {steps},") as stopped:
            CharLM(**options).fit(TEXT, checkpoint=parts, **fit)
    assert stopped.value.signum == signal.SIGINT
    assert read_model_file(checkpoint_path(parts))[0]["training"]["steps"] == steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    CharLM.load(checkpoint_path(parts)).sample(3)  # the latest weights can be used at once

    two = CharLM(**{**options, "seed": 0})  # the seed comes from the checkpoint
    assert two.fit(TEXT, checkpoint=parts, resume=True, **fit) == history
    assert params_of(two) == params_of(one)
    # No time and no place is in the files, so that equal contents are equal bytes: weights, generators and all.
    assert checkpoint_path(parts).read_bytes() == checkpoint_path(whole).read_bytes()
    assert parts.read_bytes() == whole.read_bytes()
    again = capfd.readouterr().out
    for sample in ("step 5,", "step 20,"):  # also what is shown along the way
        if f"----- {sample}" in shown:
            assert shown.split(f"----- {sample}")[1].split("-----")[1] in again


def test_a_signal_during_validation_repeats_the_validation(tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.npz", tmp_path / "parts.npz"
    CharLM(**SMALL).fit(TEXT, epochs=2, checkpoint=whole, **FIT)
    mean_loss = fastrnn.training.mean_loss

    def interrupted(*args):
        signal.raise_signal(signal.SIGINT)
        return mean_loss(*args)

    with monkeypatch.context() as patch:
        patch.setattr(fastrnn.training, "mean_loss", interrupted)
        with pytest.raises(KeyboardInterrupt):
            CharLM(**SMALL).fit(TEXT, epochs=2, checkpoint=parts, **FIT)
    assert read_model_file(checkpoint_path(parts))[0]["training"]["history"] == []
    CharLM(**SMALL).fit(TEXT, epochs=2, checkpoint=parts, resume=True, **FIT)
    assert checkpoint_path(parts).read_bytes() == checkpoint_path(whole).read_bytes()


def test_more_epochs_later_are_the_same_as_at_once(tmp_path):
    CharLM(**SMALL).fit(TEXT, epochs=3, checkpoint=tmp_path / "a.npz", **FIT)
    CharLM(**SMALL).fit(TEXT, epochs=1, checkpoint=tmp_path / "b.npz", **FIT)
    (tmp_path / "b.npz").unlink()  # the checkpoint alone is enough
    CharLM(**SMALL).fit(TEXT, epochs=3, checkpoint=tmp_path / "b.npz", resume=True, **FIT)
    assert (tmp_path / "a.ckpt.npz").read_bytes() == (tmp_path / "b.ckpt.npz").read_bytes()
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_what_can_not_be_resumed(tmp_path):
    path = tmp_path / "m.npz"
    lm = CharLM(**SMALL)
    lm.fit(TEXT, epochs=1, checkpoint=path, **FIT)
    for wrong in ({"batch_size": 5}, {"seq_length": 8}, {"optimizer": "sgd"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CharLM(**SMALL).fit(TEXT, checkpoint=path, resume=True, **{**FIT, **wrong})
    with pytest.raises(ValueError, match="hidden_size is 13, and 12 in the checkpoint"):
        CharLM(**{**SMALL, "hidden_size": 13}).fit(TEXT, checkpoint=path, resume=True, **FIT)
    for text, validation in ((TEXT[::-1], 0.2), (TEXT, 0.1)):
        with pytest.raises(ValueError, match="the text, or how it is split"):
            CharLM(**SMALL).fit(text, checkpoint=path, resume=True, **{**FIT, "validation": validation})
    shutil.copy(path, checkpoint_path(path))
    with pytest.raises(ModelFileError, match="no training to resume"):
        CharLM(**SMALL).fit(TEXT, checkpoint=path, resume=True, **FIT)


def test_handlers_of_others_are_left_alone(monkeypatch):
    mine = []
    before = signal.signal(signal.SIGTERM, lambda *_: mine.append("mine"))
    try:
        stop_after(monkeypatch, 3, signal.SIGTERM)
        CharLM(**SMALL).fit(TEXT, epochs=1, **FIT)
        assert mine == ["mine"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_when_samples_are_shown():
    assert [n for n in range(12_000) if sample_is_due(n, None)] == [100, 200, 500, 1000, 2000, 5000, 10_000]
    assert not any(sample_is_due(n, 0) for n in range(1000))


# -------------------------------------------------------------------- files


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_from_a_file_is_the_model(tmp_path, variant):
    path = tmp_path / "model.npz"
    lm = CharLM(**{**SMALL, **VARIANTS[variant]}).build(TEXT + "ä\ud800😀")
    lm.save(path)
    other = CharLM.load(path)
    assert other.config == lm.config
    assert other.vocabulary == lm.vocabulary
    assert params_of(other) == params_of(lm)
    assert other.sample(30, seed=1) == lm.sample(30, seed=1)
    assert os.listdir(tmp_path) == ["model.npz"]
    with np.load(path, allow_pickle=False) as arrays:  # any reader of .npz can look inside
        for name, array in lm.model.params.items():
            assert np.array_equal(arrays[f"model/{name}"], array)


def test_the_same_model_makes_the_same_file(tmp_path, fitted):
    for name in "ab":
        fitted.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_gets_the_rights_that_other_files_get(tmp_path, fitted):
    (tmp_path / "other").write_text("")
    fitted.save(tmp_path / "model.npz")
    assert (tmp_path / "model.npz").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_stays_a_link(tmp_path, fitted):
    (tmp_path / "link.npz").symlink_to("model.npz")
    fitted.save(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    CharLM.load(tmp_path / "model.npz")


@pytest.fixture
def small_file(tmp_path):
    """A model file of a few kilobytes."""
    path = tmp_path / "small.npz"
    CharLM(hidden_size=2, num_layers=1, embedding_size=2, seed=1).build("abc").save(path)
    return path


def contents(path):
    header, arrays = read_model_file(path)
    return json.dumps(header), {name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}


def test_truncated_files(small_file):
    data = small_file.read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        small_file.write_bytes(data[:length])
        with pytest.raises(ModelFileError, match=r"small\.npz"):
            CharLM.load(small_file)


def test_flipped_bytes(small_file):
    """Every bit flipped is either found out or changes nothing (a date in the archive's directory, say)."""
    data, whole, found, positions = small_file.read_bytes(), contents(small_file), 0, 0
    rng = np.random.default_rng(1)
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.integers(8)
        small_file.write_bytes(damaged)
        positions += 1
        try:
            assert contents(small_file) == whole, f"byte {position} of {len(data)} changed the model unnoticed"
        except ModelFileError:
            found += 1
    assert found > positions / 2  # the archive's padding and dates are what remains


def test_files_that_pickle_would_open(tmp_path):
    """An object array in the file is refused, and what it would do when unpickled is not done."""
    path, trap = tmp_path / "model.npz", tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(trap),))

    np.savez(path, header=np.array([Trap()], dtype=object), sha256=np.zeros(32, np.uint8))
    with pytest.raises(ModelFileError, match="something else wrote"):
        CharLM.load(path)
    assert not trap.exists()
    np.load(path, allow_pickle=True)["header"]  # the trap works: it is we who did not step into it
    assert trap.exists()


def save_npy(path):
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def save_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def foreign_files():
    yield "empty", lambda path: path.write_bytes(b"")
    yield "text", lambda path: path.write_text("First Citizen:\n" * 100)
    yield "npz", lambda path: np.savez(path, a=np.arange(3))
    yield "npy", save_npy
    yield "compressed", lambda path: np.savez_compressed(path, header=np.zeros(9, np.uint8))
    yield "complex", lambda path: np.savez(path, header=np.zeros(3, np.complex64))
    yield "zip", save_zip
    yield (
        "half",
        lambda path: np.savez(path, header=np.frombuffer(b"{}", np.uint8), sha256=np.zeros(32, np.uint8)),
    )


@pytest.mark.parametrize(("make"), [make for _, make in foreign_files()], ids=[name for name, _ in foreign_files()])
def test_foreign_files(tmp_path, make):
    path = tmp_path / "model.npz"
    make(path)
    with pytest.raises(ModelFileError, match=r"model\.npz"):
        CharLM.load(path)
    with pytest.raises(ValueError, match=r"model\.npz"):  # whoever does not know the name catches it as this
        CharLM.load(path)


def rewritten(path, change):
    """The file with another header, and a checksum that fits it."""
    header, arrays = read_model_file(path)
    change(header, arrays)
    write_model_file(path, header, arrays)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, a: h.update(version=99), "format version 99"),
        (lambda h, a: h.update(format="something else"), "not a fastrnn model"),
        (lambda h, a: h.update(kind="Translator"), "Translator"),
        (lambda h, a: h.pop("vocabulary"), "vocabulary"),
        (lambda h, a: h.update(vocabulary=""), "empty"),
        (lambda h, a: h.update(vocabulary=[1, 2]), "list"),
        (lambda h, a: h.update(vocabulary="abcd"), "too few"),
        (lambda h, a: h.update(vocabulary="ab"), "shape"),
        (lambda h, a: h.pop("model"), "model"),
        (lambda h, a: h["model"].update(cell="elman"), "cell"),
        (lambda h, a: h["model"].update(proj_size=10**9), "proj_size"),
        (lambda h, a: h["model"].update(unknown=1), "unknown"),
        (lambda h, a: h.update(settings="fast"), "dictionary"),
        (lambda h, a: h["model"].update(hidden_size=10**9), "too few"),  # and no gigabytes are asked for
        (lambda h, a: h["model"].update(embedding_size=10**9), "too few"),
        (lambda h, a: h["model"].update(num_layers=10**9), "too few"),
        (lambda h, a: a.pop("model/0.weight"), "weight"),
        (lambda h, a: a.update({"model/9.weight": np.zeros(3)}), "weight"),
    ],
)
def test_whole_files_that_make_no_sense(small_file, change, message):
    rewritten(small_file, change)
    with pytest.raises(ModelFileError, match=message):
        CharLM.load(small_file)


KILLED = """
    import os, signal, sys
    import numpy as np
    from fastrnn import modelfile

    path, moment = sys.argv[1:]
    real = {{name: getattr(os, name) for name in ("fsync", "replace")}}

    def killed(name):
        def call(*args):
            if moment == "before " + name: os.kill(os.getpid(), signal.SIGKILL)
            result = real[name](*args)
            if moment == "after " + name: os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call

    def half(arrays):
        yield b"PK" + bytes(1 << 20)
        os.kill(os.getpid(), signal.SIGKILL)

    for name in real:
        setattr(os, name, killed(name))
    if moment == "while writing":
        modelfile._pieces = half
    modelfile.write_model_file(path, {{"n": 2}}, {{"a": np.full(1000, 2.0)}})
"""


@pytest.mark.parametrize(
    ("moment", "left"),
    [
        ("while writing", 1),
        ("before fsync", 1),
        ("after fsync", 1),
        ("before replace", 1),
        ("after replace", 2),
    ],
)
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path, moment, left):
    path = tmp_path / "model.npz"
    write_model_file(path, {"n": 1}, {"a": np.full(1000, 1.0)})
    code = KILLED.format().replace("sys.argv[1:]", repr([str(path), moment]))
    with pytest.raises(AssertionError, match="exit code -9"):
        run_python(code)
    header, arrays = read_model_file(path)
    assert header["n"] == left
    assert (arrays["a"] == left).all()


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    write_model_file(path, {"n": 1}, {})

    def full(arrays):
        yield b"PK"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(modelfile, "_pieces", full)
    with pytest.raises(OSError, match=r"No space.*model\.npz"):
        write_model_file(path, {"n": 2}, {})
    assert read_model_file(path)[0]["n"] == 1
    assert os.listdir(tmp_path) == ["model.npz"]


# -------------------------------------------------------------------- scoring and sampling


def test_what_evaluate_computes(fitted):
    text = TEXT[3:70]
    ids = fitted.vocabulary.encode(text)
    logits, _ = fitted.model(ids[:-1, None], None)
    logits = logits[:, 0].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nats = -np.mean(log_p[np.arange(len(text) - 1), ids[1:]])
    result = fitted.evaluate(text)
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.bits_per_char == pytest.approx(nats / math.log(2), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(nats), rel=1e-5)
    assert result.characters == len(text) - 1
    assert result.unseen == 0
    assert "unseen" not in str(result)


def test_unseen_characters_are_counted_and_left_out(fitted):
    result = fitted.evaluate("a roZse Zis\n")
    assert result.unseen == 2
    assert result._replace(unseen=0) == fitted.evaluate("a rose is\n")
    assert "2 more, unseen in training, were left out" in str(result)
    with pytest.raises(ValueError, match="1 characters that the model knows and 3 that it doesn't"):
        fitted.evaluate("XaYZ")


def test_a_long_text_is_one_text(fitted):
    """The state goes on from piece to piece: 1000 characters more do not begin anew."""
    text = TEXT * 4
    assert len(text) > 2000
    ids = fitted.vocabulary.encode(text)
    logits, _ = fitted.model(ids[:-1, None], None)
    loss = fastrnn.training.cross_entropy(logits, ids[1:, None])[0]
    assert fitted.evaluate(text).nats == pytest.approx(loss, rel=1e-6)


def test_samples(fitted):
    text = fitted.sample(40, prime="a ro", seed=5)
    assert text.startswith("a ro")
    assert len(text) == 44
    assert text == fitted.sample(40, prime="a ro", seed=5)
    assert fitted.sample(80, prime="a ro", seed=5).startswith(text)
    assert text != fitted.sample(40, prime="a ro", seed=6)
    assert fitted.sample(20, temperature=0, seed=1) == fitted.sample(20, temperature=0, seed=2)
    assert fitted.sample(0, prime="rose") == "rose"
    assert fitted.sample(200) != fitted.sample(200)
    with pytest.raises(ValueError, match=r"prime has .*'Q' \(U\+0051\)"):
        fitted.sample(3, prime="aQ")
    with pytest.raises(ValueError, match="length is -1"):
        fitted.sample(-1)
    for temperature in (-1, math.nan, math.inf, "hot"):
        with pytest.raises(ValueError, match="temperature is"):
            fitted.sample(3, temperature=temperature)


def test_without_a_line_end_the_first_character_is_random():
    lm = CharLM(**SMALL).build("abc")
    assert set(lm.sample(5, seed=1)) <= set("abc")


def test_sampled_step_by_step_is_as_scored_at_once(fitted):
    """The characters fed back one by one see the same state as the whole text does."""
    prime = fitted.vocabulary.encode("a rose is")
    ids = generate(fitted.model, prime, 30, temperature=0, rng=np.random.default_rng(0))
    whole = np.concatenate([prime, ids])
    logits, _ = fitted.model(whole[:-1, None], None)
    assert np.array_equal(logits[len(prime) - 1 :, 0].argmax(axis=1), ids)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    logits = np.array([0.3, -1.0, 2.0, -np.inf, 1.0], np.float32)
    weights = np.exp(logits.astype(np.float64) / temperature)
    uniforms = (np.arange(20_000) + 0.5) / 20_000  # evenly spaced: counts are exact to one or two
    counts = np.bincount([draw(logits, temperature, u) for u in uniforms], minlength=5)
    np.testing.assert_allclose(counts, 20_000 * weights / weights.sum(), atol=2)
    assert counts[3] == 0
    assert draw(logits, temperature, 0.0) == 0
    assert draw(logits, temperature, math.nextafter(1, 0)) == 4


def test_draws_at_the_extremes():
    logits = np.array([1.0, 3e38, -3e38], np.float32)
    assert draw(logits, 1e-300, 0.7) == 1
    assert draw(logits, 1.0, 0.999) == 1
    assert draw(np.zeros(4), 1e300, 0.6) == 2
    assert draw(np.array([-np.inf, 0.0]), 1.0, 0.0) == 1  # never one of probability 0
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            draw(np.array([0.0, wrong]), 1.0, 0.5)
