"""Training interrupted, killed, or left without a disk: what is on the disk is whole, and goes on to the same bits."""

import contextlib
import ctypes
import functools
import hashlib
import io
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import JIT, ROOT, run_python

import fastrnn.training
from fastrnn.layers.sequential import Sequential
from fastrnn.modelfile import read_model_file
from fastrnn.models import charlm
from fastrnn.models.charlm import CharLM, checkpoint_path
from fastrnn.optim import Adam
from fastrnn.training import Interrupted, NotedSignals, NotSavedError, Trainer

TEXT = "a rose is a rose is a rose\n" * 20
SMALL = {"hidden_size": 12, "num_layers": 2 if JIT else 1, "embedding_size": 5, "dropout": 0.3, "seed": 7}
FIT = {"epochs": 2, "batch_size": 4, "seq_length": 9, "lr": 0.02, "validation": 0.2}  # 12 steps a pass
TIMEOUT = 300


def fit(path, resume=False, **options):
    lm = CharLM(**SMALL)
    history = lm.fit(TEXT, checkpoint=path, resume=resume, **{**FIT, "progress": False, **options})
    return lm, history


def bytes_of(path):
    return path.read_bytes(), checkpoint_path(path).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of a training that nobody interrupted."""
    path = tmp_path_factory.mktemp("whole") / "m.npz"
    fit(path)
    return bytes_of(path)


# -------------------------------------------------------------------- signals, at chosen moments


def at_call(monkeypatch, owner, name, number, signum=signal.SIGINT, when="before"):
    """The signal comes with call `number` of owner.name, before its first line or after its last."""
    real, calls = getattr(owner, name), []

    @functools.wraps(real)
    def interrupted(*args, **more):
        calls.append(1)
        if len(calls) == number and when == "before":
            signal.raise_signal(signum)
        result = real(*args, **more)
        if len(calls) == number and when == "after":
            signal.raise_signal(signum)
        return result

    monkeypatch.setattr(owner, name, interrupted)


MOMENTS = {
    "forward": (Sequential, "forward", 5, 4),
    "backward": (Sequential, "backward", 5, 4),
    "loss": (fastrnn.training, "cross_entropy", 5, 4),
    "first forward": (Sequential, "forward", 1, 0),
    "clipping": (fastrnn.training, "clip_grad_norm", 5, 5),
    "optimizer": (Adam, "step", 5, 5),
    "end of pass": (Trainer, "end_pass", 1, 12),
    "validation": (Sequential, "__call__", 2, 12),
    "sample": (CharLM, "_sample", 1, 10),
    "last optimizer": (Adam, "step", 24, 24),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_this_moment(tmp_path, monkeypatch, capfd, whole, moment, when):
    """A step is given up as if it had not begun, or, once the weights are changing, finished."""
    owner, name, number, steps = MOMENTS[moment]
    path, samples = tmp_path / "m.npz", {"progress": True, "sample_every": 10}
    with monkeypatch.context() as patch:
        if name == "__call__":
            patch.setattr(fastrnn.training, "sample_is_due", lambda steps, every: False)
        at_call(patch, owner, name, number, when=when)
        with pytest.raises(Interrupted, match=f"stopped after step {steps},") as stopped:
            fit(path, **samples)
    assert stopped.value.signum == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert "Exception ignored" not in capfd.readouterr().err
    assert read_model_file(checkpoint_path(path))[0]["training"]["steps"] == steps
    fit(path, resume=True, **samples)
    assert bytes_of(path) == whole


@pytest.mark.parametrize("name", ["forward", "backward"])
def test_the_objects_are_usable(monkeypatch, name):
    """Trained on without a file: the next `fit` begins with the weights of the last finished step."""
    lm, other = CharLM(**SMALL), CharLM(**SMALL)
    with monkeypatch.context() as patch:
        at_call(patch, Sequential, name, 5)
        with pytest.raises(KeyboardInterrupt):
            lm.fit(TEXT, progress=False, **FIT)
    with monkeypatch.context() as patch:
        at_call(patch, Adam, "step", 4, when="after")
        with pytest.raises(KeyboardInterrupt):
            other.fit(TEXT, progress=False, **FIT)
    assert lm.sample(20, seed=1) == other.sample(20, seed=1)
    assert lm.evaluate(TEXT) == other.evaluate(TEXT)
    assert lm.fit(TEXT, progress=False, **FIT) == other.fit(TEXT, progress=False, **FIT)


def test_the_first_one_saves_and_the_second_one_stops(tmp_path, monkeypatch):
    path = tmp_path / "m.npz"
    fit(path, epochs=1)
    before = bytes_of(path)
    at_call(monkeypatch, Sequential, "forward", 5)
    at_call(monkeypatch, charlm, "write_model_file", 1)  # while it saves
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(path, resume=True)
    assert type(stopped.value) is KeyboardInterrupt
    assert bytes_of(path) == before
    assert len(os.listdir(tmp_path)) == 2


def test_where_an_exception_would_be_lost_the_signal_comes_again(tmp_path, monkeypatch, capfd, whole):
    """In a destructor Python would print it and go on: the step ends nonetheless, and nothing is printed."""

    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    forward, calls = Sequential.forward, []

    def dying(self, *args):
        calls.append(1)
        if len(calls) == 5:
            Dying()
            for _ in range(int(TIMEOUT / 0.01)):
                time.sleep(0.01)
            raise AssertionError("it was not given up")
        return forward(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Sequential, "forward", dying)
        with pytest.raises(Interrupted, match="after step 4,") as stopped:
            fit(tmp_path / "m.npz")
    assert stopped.value.signum == signal.SIGTERM
    assert "ignored" not in capfd.readouterr().err
    fit(tmp_path / "m.npz", resume=True)
    assert bytes_of(tmp_path / "m.npz") == whole


def test_windows():
    """Outside of one, a signal is noted; a window that opens later does not begin."""
    noted = NotedSignals()
    assert not noted.came()
    with noted.window():
        pass
    assert noted.handle(15, None) is False
    assert (noted, noted.came()) == ([15], True)
    with pytest.raises(fastrnn.training._GivenUp) as given_up, noted.window():
        raise AssertionError("it began")
    assert not isinstance(given_up.value, Exception)
    assert noted.handle(2, None) is True  # the second one
    assert noted == [15]


def test_in_another_thread_signals_are_left_alone():
    results = []
    thread = threading.Thread(target=lambda: results.append(CharLM(**SMALL).fit(TEXT, progress=False, **FIT)))
    thread.start()
    thread.join()
    assert len(results[0]) == 2


# -------------------------------------------------------------------- signals, at random moments


class Gate:
    """Signals are sent only while training is in charge of them: at any other moment they would end the test."""

    def __init__(self):
        self.lock, self.open, self.began = threading.Lock(), False, threading.Event()

    def watch(self):
        real = fastrnn.training.noted_signals

        @contextlib.contextmanager
        def watched(console):
            with real(console) as noted:
                self.open = True
                self.began.set()
                try:
                    yield noted
                finally:
                    with self.lock:
                        self.open = False

        fastrnn.training.noted_signals = watched

    def send(self, delay, signum, sent):
        """When training has been going for `delay` seconds, if it is still going; notes in `sent` when that was."""
        self.began.wait()
        self.began.clear()
        time.sleep(delay)
        with self.lock:
            if self.open:
                sent.append(time.perf_counter())
                os.kill(os.getpid(), signum)


def interrupt_at_random(folder, count):
    """In a process of its own. Interrupts trainings `count` times; each goes on from there, to the same bits."""
    rng, path, gate = random.Random(1), Path(folder) / "m.npz", Gate()
    options = {"epochs": 40 if JIT else 2, "sample_every": 50, "progress": False}
    fit(path, **options)  # compiles
    started = time.perf_counter()
    fit(path, **options)
    took = time.perf_counter() - started
    whole, waits, steps, finished = bytes_of(path), [], set(), 0
    gate.watch()
    resume = False
    while len(waits) < count or resume:
        sent = []
        delay = rng.random() * took * 0.5 if len(waits) < count else 1e-9 + 10 * took
        signum = rng.choice([signal.SIGINT, signal.SIGTERM])
        sender = threading.Thread(target=gate.send, args=(delay, signum, sent))
        sender.start()
        try:
            fit(path, resume=resume, **options)
        except Interrupted as interrupted:
            ended, by = time.perf_counter(), interrupted.signum
            sender.join()
            waits.append(ended - sent[0])
            if by != signum:
                raise
            steps.add(read_model_file(checkpoint_path(path))[0]["training"]["steps"])
            CharLM.load(checkpoint_path(path)).sample(1, seed=0)
            resume = True
        else:
            sender.join()
            assert bytes_of(path) == whole, f"after {len(waits)} signals"
            finished += 1
            resume = False
    print(json.dumps({"waits": waits, "steps": len(steps), "finished": finished}))


def test_signals_at_random_moments(tmp_path, effort, reliability):
    count = effort(6, 200)
    code = f"import test_signals; test_signals.interrupt_at_random({str(tmp_path)!r}, {count})"
    found = json.loads(run_python(code, timeout=1800))
    assert len(found["waits"]) == count
    assert found["finished"] >= 1
    if count == 200:
        # The only promise about time here; the short form, beside whatever else runs, has none.
        assert max(found["waits"]) < 1
        assert found["steps"] > count / 2
    reliability(
        interruptions=count, different_steps=found["steps"], trainings_finished_to_the_same_bits=found["finished"],
        ms_to_the_checkpoint_on_the_disk_at_most=round(1000 * max(found["waits"])),
    )  # fmt: skip


def interrupt_while_compiling(folder, delay):
    path, gate, sent = Path(folder) / "m.npz", Gate(), []
    gate.watch()
    sender = threading.Thread(target=gate.send, args=(delay, signal.SIGINT, sent), daemon=True)
    sender.start()
    try:
        fit(path)
    except Interrupted:
        ended = time.perf_counter()
        sender.join()
        print(json.dumps(ended - sent[0]))
    else:
        print(json.dumps(None))


@pytest.mark.skipif(not JIT, reason="there is nothing to compile")
def test_signals_while_kernels_are_compiled(tmp_path, effort, reliability, whole):
    """With an empty cache: the first step takes seconds, and is given up."""
    count, waits, first = effort(1, 30), [], 0
    for n in range(count):
        folder = tmp_path / str(n)
        (folder / "cache").mkdir(parents=True)
        code = f"import test_signals; test_signals.interrupt_while_compiling({str(folder)!r}, {0.7 + 6 * n / count})"
        wait = json.loads(run_python(code, timeout=TIMEOUT, FASTRNN_CACHE_DIR=str(folder / "cache")))
        if wait is not None:
            waits.append(wait)
            first += read_model_file(checkpoint_path(folder / "m.npz"))[0]["training"]["steps"] == 0
            fit(folder / "m.npz", resume=True)
        assert bytes_of(folder / "m.npz") == whole
    assert len(waits) > count / 2
    assert first > count / 3
    if count > 1:
        assert max(waits) < 1
    reliability(
        interruptions=len(waits), in_the_first_step=first,
        ms_to_the_checkpoint_on_the_disk_at_most=round(1000 * max(waits)),
    )  # fmt: skip


# -------------------------------------------------------------------- kill -9


def kill_at_random(folder, count):
    """In a process of its own, which forks: trainings that save after every step are killed `count` times."""
    rng, folder = random.Random(2), Path(folder)
    path = folder / "m.npz"
    options = {"epochs": 6 if JIT else 2, "progress": False}
    seldom, often = charlm.run, functools.partial(fastrnn.training.run, save_every=0.0)
    written, write = set(), charlm.write_model_file

    def noting(to, *contents):
        write(to, *contents)
        written.add(hashlib.sha256(Path(to).read_bytes()).hexdigest())

    charlm.run, charlm.write_model_file = often, noting
    fit(path, **options)
    charlm.write_model_file = write
    whole = bytes_of(path)
    started = time.perf_counter()
    fit(path, **options)
    took = time.perf_counter() - started

    def in_a_child(resume):
        child = os.fork()
        if not child:
            try:
                fit(path, resume=resume, **options)
                os._exit(0)
            finally:
                os._exit(1)
        return child

    steps, half_written, finished, tried = set(), 0, 0, 0
    while tried < count:
        for name in os.listdir(folder):
            (folder / name).unlink()
        charlm.run = often
        child = in_a_child(resume=False)
        delay = rng.random() * took
        while not checkpoint_path(path).exists():  # before the first one, there is nothing to lose
            time.sleep(0.0005)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            finished += 1
            continue
        tried += 1
        names = set(os.listdir(folder))
        half_written += len(names) > 2 or (len(names) == 2 and not path.exists())
        for file in (path, checkpoint_path(path)):
            if file.exists():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                assert digest in written, f"{file.name} after kill {tried} is none that was written"
        steps.add(read_model_file(checkpoint_path(path))[0]["training"]["steps"])
        charlm.run = seldom
        _, status = os.waitpid(in_a_child(resume=True), 0)
        assert status == 0, f"not resumed after kill {tried}"
        assert bytes_of(path) == whole, f"other bits after kill {tried}"
        assert len(os.listdir(folder)) == 2, os.listdir(folder)
    print(json.dumps({"steps": len(steps), "half_written": half_written, "finished": finished}))


def test_kills_at_random_moments(tmp_path, effort, reliability):
    """The newest complete checkpoint is one that was written, byte for byte, and goes on to the same end."""
    count = effort(4, 200)
    code = f"import test_signals; test_signals.kill_at_random({str(tmp_path)!r}, {count})"
    found = json.loads(run_python(code, timeout=1800))
    assert found["steps"] >= 2
    reliability(
        kills=count, different_steps=found["steps"], with_a_file_half_written=found["half_written"],
        resumed_to_the_same_bits=count,
    )  # fmt: skip


# -------------------------------------------------------------------- no disk


def without_rights():
    """From now on even root obeys the rights of files: gives up every capability."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


class Faults:
    """Ways to lose a disk, and to get it back."""

    def __init__(self, folder):
        self.folder, self.elsewhere = Path(folder), Path(f"{folder}-gone")
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(self, lost):
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, self.limits[1]) if lost else self.limits)

    def read_only(self, lost):
        self.folder.chmod(0o555 if lost else 0o755)

    def vanished(self, lost):
        (self.folder.rename(self.elsewhere)) if lost else self.elsewhere.rename(self.folder)


def lose_the_disk(folder, fault, back):
    """In a process of its own. The disk goes after step 5, and comes back after step 15 or never."""
    path, faults, step = Path(folder) / "m.npz", Faults(folder), Trainer.step
    if fault == "read_only":
        without_rights()

    def faulty(trainer):
        characters = step(trainer)
        if trainer.steps in (5, back):
            getattr(faults, fault)(trainer.steps == 5)
        return characters

    Trainer.step = faulty
    charlm.run = functools.partial(fastrnn.training.run, save_every=0.0)
    lm = CharLM(**SMALL)
    out, err, error = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            lm.fit(TEXT, checkpoint=path, **FIT)
        except OSError as raised:
            error = raised
    if error is not None:
        getattr(faults, fault)(False)
        lm.save(path)  # what was learned is not lost
    print(
        json.dumps(
            {"err": err.getvalue(), "out": out.getvalue(), "error": error and [type(error).__name__, str(error)]}
        )
    )


FAULTS = {"full": "File too large", "read_only": "Permission denied", "vanished": "No such file or directory"}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("back", [15, None])
def test_a_training_without_a_disk_goes_on(tmp_path, whole, fault, back):
    folder = tmp_path / "models"
    folder.mkdir()
    code = f"import test_signals; test_signals.lose_the_disk({str(folder)!r}, {fault!r}, {back})"
    found = json.loads(run_python(code, timeout=TIMEOUT))
    path = folder / "m.npz"
    said = f"not saved: {checkpoint_path(path)}: {FAULTS[fault]}"
    lines = found["err"].splitlines()
    # It is told when it begins, and again only if it becomes another error: the best model can't be written either.
    assert lines[0] == f"fastrnn: {said}; training goes on, and this is tried again every 0 s"
    assert "epoch 2/2" in found["out"]
    if back:
        assert len(lines) <= 3
        assert lines[-1] == "fastrnn: saved again"
        assert found["error"] is None
        assert bytes_of(path) == whole
    else:
        assert len(lines) == 2
        kind, message = found["error"]
        assert kind == "NotSavedError"
        assert message == f"trained to step 24, but not saved: {path}: {FAULTS[fault]}"
        assert path.read_bytes() == whole[0]
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def train(*args, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fastrnn", "train", "text.txt", *map(str, args)]
    return subprocess.run(
        command, **{"capture_output": True, "text": True, "timeout": TIMEOUT, "env": environment, **options}
    )


OPTIONS = ["-o", "m.npz", "--epochs", 2, "--hidden-size", 12, "--batch-size", 4, "--seq-length", 9]


@pytest.mark.parametrize("options", [[], ["--min-char-rnn"]])
def test_the_exit_code_says_that_the_model_was_not_saved(tmp_path, options):
    folders = [tmp_path / "first", tmp_path / "full"]
    for folder in folders:
        folder.mkdir()
        (folder / "text.txt").write_text(TEXT)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    chosen = ["-o", "m.npz", "--epochs", 2, *options] if options else OPTIONS
    assert train(*chosen, cwd=folders[0]).returncode == 0  # with the limit, nothing that is compiled can be kept
    done = train(*chosen, cwd=folders[1], preexec_fn=limit)
    assert done.returncode == 3, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("fastrnn train: trained to ")
    assert line.endswith(f", but not saved: {folders[1] / 'm.npz'}: File too large")
    assert os.listdir(folders[1]) == ["text.txt"]


def test_output_to_a_full_disk(tmp_path, monkeypatch, whole):
    """What can't be shown is lost; what was learned is not."""
    with contextlib.suppress(OSError), open("/dev/full", "w") as out, open("/dev/full", "w") as err:  # closing flushes
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        with contextlib.suppress(OSError):
            print("so it is", flush=True)
            raise AssertionError("a disk that is not full")
        monkeypatch.setattr(charlm, "Console", Busy)
        fit(tmp_path / "m.npz", progress=True, sample_every=10)
    assert bytes_of(tmp_path / "m.npz") == whole


class Busy(fastrnn.training.Console):
    """Shows its progress after every step."""

    def is_due(self, now):
        return True


def failing(monkeypatch, error, calls=range(10**6)):
    """Saving fails in these of its calls."""
    write, made = charlm.write_model_file, []

    def write_or_not(*args):
        made.append(1)
        if len(made) - 1 in calls:
            raise error
        write(*args)

    monkeypatch.setattr(charlm, "write_model_file", write_or_not)


def test_interrupted_and_not_saved(tmp_path, monkeypatch):
    """That it is not saved is what matters more, in the exit code too."""
    failing(monkeypatch, OSError(28, "No space left on device", "m.ckpt.npz"))
    at_call(monkeypatch, Sequential, "backward", 5)
    message = r"stopped after step 4, epoch 1, but not saved: m\.ckpt\.npz: No space left on device"
    with pytest.raises(NotSavedError, match=message) as raised:
        fit(tmp_path / "m.npz")
    assert raised.value.exit_code == 3
    assert isinstance(raised.value.__cause__, OSError)


def test_memory_that_a_checkpoint_does_not_get(tmp_path, monkeypatch, capsys, whole):
    failing(monkeypatch, MemoryError(), calls=range(1, 4))
    monkeypatch.setattr(charlm, "run", functools.partial(fastrnn.training.run, save_every=0.0))
    fit(tmp_path / "m.npz", progress=True, sample_every=0)
    err = capsys.readouterr().err
    assert err.splitlines()[0].startswith("fastrnn: not saved: MemoryError; training goes on")
    assert err.splitlines()[1] == "fastrnn: saved again"
    assert bytes_of(tmp_path / "m.npz") == whole


def test_a_silent_training_tells_the_logger(tmp_path, monkeypatch, caplog, capsys):
    failing(monkeypatch, OSError(5, "Input/output error", "m.npz"), calls=range(2))
    monkeypatch.setattr(charlm, "run", functools.partial(fastrnn.training.run, save_every=0.0))
    with caplog.at_level(logging.WARNING, "fastrnn"):
        fit(tmp_path / "m.npz")
    assert [record.getMessage().split(";")[0] for record in caplog.records] == [
        "not saved: m.npz: Input/output error",
        "saved again",
    ]
    assert capsys.readouterr() == ("", "")


def test_the_checkpoint_is_written_where_the_model_can_not_be(tmp_path, monkeypatch, whole):
    """One of the two files is better than none."""
    write = charlm.write_model_file

    def only_checkpoints(path, *contents):
        if Path(path).name == "m.npz":
            raise OSError(28, "No space left on device", str(path))
        write(path, *contents)

    with monkeypatch.context() as patch:
        patch.setattr(charlm, "write_model_file", only_checkpoints)
        with pytest.raises(NotSavedError, match=r"m\.npz: No space"):
            fit(tmp_path / "m.npz")
    assert os.listdir(tmp_path) == ["m.ckpt.npz"]
    assert checkpoint_path(tmp_path / "m.npz").read_bytes() == whole[1]


def test_an_error_in_a_step_leaves_the_trainer_before_it(monkeypatch):
    """Whatever it is: the state and the generators are those of before."""
    lm = CharLM(**SMALL).build(TEXT)
    trainer = Trainer(lm.model, lm.vocabulary.encode(TEXT), batch_size=4, seq_length=9)
    trainer.step()
    before = repr(trainer.state_dict())
    with monkeypatch.context() as patch:
        patch.setattr(Sequential, "backward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.step()
    assert repr(trainer.state_dict()) == before
