"""Calls that take long: the caller looks up now and then, comes back to the same bits, and may leave for good."""

import contextlib
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import JIT, TEXTS, Problem, mixed_lengths, run_python
from test_signals import Gate

import fastrnn as fr
from fastrnn import threads
from fastrnn.models.charlm import CharLM, checkpoint_path
from fastrnn.training import Interrupted

SIZES = {"T": 6, "B": 9, "I": 5, "H": 40, "lengths": mixed_lengths(6, 9), "bidirectional": True}


@pytest.fixture
def hurried(monkeypatch):
    """Every call is long, and every look at the clock finds that it is time to leave; or none, with `patient`. Counts
    how often kernels begin: with `after` it is interrupted then.
    """
    state = {}

    def monotonic_ns():
        state["begun"] += 1
        if state["begun"] == state["after"]:
            raise KeyboardInterrupt
        return state["clock"]

    def begin(after=None, patient=False):
        state.update(begun=0, after=after, clock=1 << 62 if patient else 1)
        monkeypatch.setattr(threads, "SMALL", 0)
        monkeypatch.setattr(threads, "LONG", 0)
        monkeypatch.setattr(threads, "APART", 0)
        monkeypatch.setattr(threads, "monotonic_ns", monotonic_ns)
        return state

    return begin


def results(problem, layer):
    """Everything that comes out of inference, of training and of backward."""
    inference = problem.infer(layer)
    outputs, tape = problem.forward(layer)
    layer.zero_grad()
    found = [*inference.values(), *outputs.values(), *problem.backward(layer, tape).values()]
    logits = fr.softmax(outputs["y"]), fr.cross_entropy(outputs["y"], np.zeros(outputs["y"].shape[:-1], np.int64))
    return [a.copy() for a in (*found, logits[0], *map(np.asarray, logits[1]))]


def begun(cell, workers, set_num_threads):
    """A problem, its layer on so many threads, and its results on one."""
    problem = Problem(cell=cell, **SIZES)
    layer = problem.layer()
    wanted = results(problem, layer)
    set_num_threads(workers)
    return problem, layer, wanted


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cell", TEXTS)
def test_whoever_leaves_after_any_item_comes_back_to_the_same_bits(cell, workers, hurried, set_num_threads):
    problem, layer, wanted = begun(cell, workers, set_num_threads)
    state = hurried(patient=True)
    results(problem, layer)
    launches = state["begun"]
    hurried()
    found = results(problem, layer)
    assert state["begun"] > 1.5 * launches
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cell", ["lstm_peephole", "gru", "rnn_tanh"])
def test_an_interrupted_call_leaves_nobody_at_work(cell, workers, hurried, set_num_threads):
    problem, layer, wanted = begun(cell, workers, set_num_threads)
    state = hurried(patient=True)
    results(problem, layer)
    for after in range(2, state["begun"], 3):
        layer.zero_grad()
        hurried(after)
        with pytest.raises(KeyboardInterrupt):
            results(problem, layer)
        left = {name: gradient.copy() for name, gradient in layer.grads.items()}
        time.sleep(0.002)
        for name, gradient in layer.grads.items():
            np.testing.assert_array_equal(gradient, left[name])
    hurried()
    for a, b in zip(wanted, results(problem, layer), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_writer_that_leaves_writes_the_same(cell, rows, hurried, set_num_threads, monkeypatch):
    """With panels divided, and with rows: the caller may leave within a character, and after any it may be for good."""
    monkeypatch.setattr(fr.layers.recurrent, "ROUND", 0)
    monkeypatch.setattr(threads, "DIVIDED", 0)
    model = fr.Sequential(getattr(fr, cell)(9, 150, 2, seed=1), fr.Linear(150, 9, seed=2))

    def write():
        return model.write(np.arange(rows), 11, None, 0.7, np.random.default_rng(1))

    set_num_threads(1)
    wanted, _ = write()
    set_num_threads(3)
    state = hurried()
    np.testing.assert_array_equal(write()[0], wanted)
    for after in range(2, state["begun"], 5):
        hurried(after)
        # It may be over before, when helpers have done much of it.
        with pytest.raises(KeyboardInterrupt) if after == 2 else contextlib.suppress(KeyboardInterrupt):
            write()
    hurried()
    np.testing.assert_array_equal(write()[0], wanted)


def test_a_second_signal_finds_helpers_gone(monkeypatch):
    """It comes while the caller waits for them: it goes on waiting."""
    helping, slept = [1, 2], []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) < 3:
            raise KeyboardInterrupt
        helping.pop()

    monkeypatch.setattr(threads, "sleep", sleep)
    tickets = threads.new_tickets(2, 3)
    threads._call_off(threads._team, tickets, helping)
    assert not helping
    assert len(slept) == 4


@pytest.mark.skipif(
    not JIT, reason="without JIT Python looks for signals all the time, and so many steps take too long"
)
def test_many_steps_of_few_units_are_cut(hurried, set_num_threads):
    """By rows a worker takes whole sequences, but not of any length: the caller can leave in between."""
    T = 400_000
    set_num_threads(1)
    x = np.random.default_rng(0).standard_normal((T, 2, 1)).astype(np.float32)
    for cell in fr.LSTM, fr.GRU, fr.RNN:
        layer = cell(1, 2, seed=1)
        state = hurried()
        y, _ = layer(x)
        assert state["begun"] >= 3
        head, state = layer(x[: T // 3])
        tail, _ = layer(x[T // 3 :], state)
        np.testing.assert_array_equal(y, np.concatenate([head, tail]))


# name -> what is called for long; about 10^11 multiply-adds each, half a second and more
CALLS = {
    "inference": lambda layer, ids, tape, y: layer(ids),
    "training": lambda layer, ids, tape, y: layer.forward(ids),
    "backward": lambda layer, ids, tape, y: layer.backward(tape, y),
}


def interrupt(count):
    """In a process of its own: Ctrl-C at random moments of long calls, each of which leaves at once."""
    rng, waits, missed, took = random.Random(1), [], 0, {}
    ids = np.random.default_rng(0).integers(0, 50, (600, 64))
    x = np.random.default_rng(0).standard_normal((1, 1, 50)).astype(np.float32)
    layers = [cell(50, 1024, seed=0) for cell in (fr.LSTM, fr.GRU, fr.RNN)]
    while len(waits) < count:
        number = (len(waits) + missed) % 9
        layer, (name, call) = layers[number // 3], list(CALLS.items())[number % 3]
        wanted = layer(x)[0]
        y, tape = None, None
        if name == "backward":
            y, _, tape = layer.forward(ids)
        if number not in took:
            call(layer, ids[:2], *(layer.forward(ids[:2])[::-2]))  # compiles
            started = time.perf_counter()
            call(layer, ids, tape, y)
            took[number] = time.perf_counter() - started
            if name == "backward":
                y, _, tape = layer.forward(ids)
        sent, gate = [], threading.Event()

        def send(delay, sent=sent, gate=gate):
            gate.wait()
            time.sleep(delay)
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        sender = threading.Thread(target=send, args=(rng.random() * 0.7 * took[number],))
        sender.start()
        try:
            gate.set()
            call(layer, ids, tape, y)
            sender.join()
            time.sleep(0.1)
            missed += 1  # by then it had ended
        except KeyboardInterrupt:
            waits.append(time.perf_counter() - sent[0])
        sender.join()
        np.testing.assert_array_equal(layer(x)[0], wanted)
    print(json.dumps({"waits": waits, "missed": missed, "took": list(took.values())}))


@pytest.mark.skipif(not JIT, reason="without JIT Python looks for signals all the time")
def test_interrupts_of_long_calls(effort, reliability):
    count = effort(3, 300)
    found = json.loads(run_python(f"import test_long_calls; test_long_calls.interrupt({count})", timeout=3600))
    if count == 300:
        # The only promise about time here; the short form, beside whatever else runs, has none.
        assert max(found["waits"]) < 1
    assert np.median(found["waits"]) < np.median(found["took"])
    reliability(
        interrupted_calls=count, that_had_ended_by_then=found["missed"],
        ms_from_the_signal_to_the_exception_at_most=round(1000 * max(found["waits"])),
        ms_as_a_rule=round(1000 * float(np.median(found["waits"]))),
        ms_that_the_longest_call_takes=round(1000 * max(found["took"])),
    )  # fmt: skip


# A layer that takes a tenth of a second and more of each step, forward and backward, and files that are soon written.
LARGE = {"hidden_size": 512, "num_layers": 1, "embedding_size": 8, "seed": 1}
LONG_STEPS = {"batch_size": 64, "seq_length": 600, "epochs": 50, "validation": 0.0, "progress": False}


def interrupt_training(folder, count):
    """In a process of its own: Ctrl-C and SIGTERM at random moments of a training whose kernels take long."""
    rng, path, gate, waits = random.Random(2), Path(folder) / "m.npz", Gate(), []
    text = "".join(random.Random(1).choices("abcdefgh \n", k=64 * 600 * 3 + 1))
    CharLM(**LARGE).fit(text[: 64 * 40 * 3], **{**LONG_STEPS, "seq_length": 40, "epochs": 1})  # compiles
    gate.watch()
    while len(waits) < count:
        signum, sent = rng.choice([signal.SIGINT, signal.SIGTERM]), []
        sender = threading.Thread(target=gate.send, args=(0.2 + rng.random(), signum, sent))
        sender.start()
        with pytest.raises(Interrupted) as interrupted:
            CharLM(**LARGE).fit(text, checkpoint=path, resume=path.exists(), **LONG_STEPS)
        waits.append(time.perf_counter() - sent[0])
        assert interrupted.value.signum == signum
        sender.join()
        CharLM.load(checkpoint_path(path)).sample(1, seed=0)
    print(json.dumps(waits))


@pytest.mark.skipif(not JIT, reason="without JIT Python looks for signals all the time")
def test_signals_in_long_steps_of_training(tmp_path, effort, reliability):
    count = effort(2, 50)
    code = f"import test_long_calls; test_long_calls.interrupt_training({str(tmp_path)!r}, {count})"
    waits = json.loads(run_python(code, timeout=3600))
    assert len(waits) == count
    if count == 50:
        assert max(waits) < 1
    reliability(
        interruptions=count, ms_to_the_checkpoint_on_the_disk_at_most=round(1000 * max(waits)),
        ms_as_a_rule=round(1000 * float(np.median(waits))),
    )  # fmt: skip
