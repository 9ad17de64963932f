"""A long run of mixed calls from eight threads: `python tests/soak.py MINUTES` prints what it came to.

Shapes vary all the time, models and streams come and go. Memory must reach a ceiling and stay there, nothing may be
compiled once all kinds of calls have been made, and no cache may grow with the number of shapes that it has seen.

The processors are whoever's: what others took of them meanwhile is measured, because latencies depend on it.
"""

import gc
import json
import os
import pickle
import random
import statistics
import sys
import threading
import time
from collections import Counter

import numpy as np
from fuzzing import resident

import fastrnn as fr
from fastrnn import streaming, threads
from fastrnn._jit import kernel
from fastrnn.layers import buffers, layout, store
from fastrnn.simd.post import PARKS
from fastrnn.threads import REMEMBERED

THREADS = 8
SAMPLES = 40
NAP = 5.0  # seconds: whoever sleeps for longer has been stopped, which is not part of the time that he was to run


def compilations():
    """How often each kernel has been compiled or loaded."""
    return Counter(
        {f"{one.__module__}.{one.__name__}": one.compilations for one in gc.get_objects() if type(one) is kernel}
    )


def sizes():
    """Everything that could grow."""
    gc.collect()
    return {
        "layouts": layout.uniform.cache_info().currsize,
        "free blocks": sum(size * len(blocks) for size, blocks in list(buffers._free.items())),
        "plans": len(streaming._plans),
        "stores": len(store._stores),
        "streams": len(streaming._live),
        "made": max((len(one._made) for one in list(store._stores)), default=0),
        "helpers": len(threads._team.threads),
        "Python threads": threading.active_count(),
        "open files": len(os.listdir("/proc/self/fd")),
    }


def processors():
    """Seconds of work of all processors so far, and those of this process among them."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, *interrupts = map(int, file.readline().split()[1:9])
    mine = os.times()
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK"), mine.user + mine.system


class Worker(threading.Thread):
    """Calls of random kinds and shapes until it is told to stop."""

    def __init__(self, seed, shared, stop):
        super().__init__(daemon=True)
        self.r, self.rng, self.shared, self.stop = random.Random(seed), np.random.default_rng(seed), shared, stop
        self.calls, self.error = 0, None

    def run(self):
        try:
            while not self.stop.is_set():
                self.r.choice((self.infer, self.train, self.stream, self.pool, self.loss))()
                self.calls += 1
        except BaseException as error:
            self.error = repr(error)
            self.stop.set()

    def x(self):
        """(T, B, 20) of any T and B; now and then a large one, for all workers."""
        T, B = (self.r.randint(20, 60), self.r.randint(8, 24)) if self.r.random() < 0.1 else (
            self.r.randint(1, 12), self.r.randint(1, 6))  # fmt: skip
        return self.rng.standard_normal((T, B, 20), "f4")

    def lengths(self, x):
        return self.rng.integers(0, len(x) + 1, x.shape[1]) if self.r.random() < 0.5 else None

    def infer(self):
        """Now and then with other weights, for all workers; or with a copy."""
        x = self.x()
        model = self.r.choice(self.shared)
        if self.r.random() < 0.1:
            model.params["bias_ih_l0"] = np.zeros_like(model.params["bias_ih_l0"])
        elif self.r.random() < 0.1:
            model = pickle.loads(pickle.dumps(model))
        y, _ = model(x, None, self.lengths(x))
        assert np.isfinite(y).all()
        assert len(fr.last_call_info()) <= REMEMBERED

    def train(self):
        """A model that nobody else has, of a size of its own."""
        model = fr.Sequential(fr.LSTM(20, self.r.randint(1, 40)), fr.Dropout(0.1))
        opt, x = fr.Adam(model), self.x()
        for segments in (None, self.r.randint(1, len(x))):
            y, _, tape = model.forward(x, None, self.lengths(x), segments=segments)
            model.backward(tape, y)
            opt.step()

    def stream(self):
        stream = self.r.choice(self.shared).stream()
        for row in self.x()[:, 0]:
            stream.push(row)

    def pool(self):
        with self.r.choice(self.shared).stream_pool(self.r.randint(1, 4)) as pool:
            ids = [pool.open() for _ in range(self.r.randint(1, 9))]
            pool.step(ids, self.rng.standard_normal((len(ids), 20), "f4"))
            pool.submit(ids[0], np.zeros(20, "f4")).result(timeout=600)

    def loss(self):
        logits = self.rng.standard_normal((self.r.randint(1, 50), self.r.randint(2, 90)), "f4")
        fr.cross_entropy(logits, np.zeros(len(logits), int))
        fr.softmax(logits)


def every_kind(shared):
    """All that will be compiled, before the clock starts."""
    worker = Worker(0, shared, threading.Event())
    for large in (False, True):
        worker.x = lambda large=large: np.ones((60, 24, 20) if large else (3, 2, 20), "f4")
        for ragged in (False, True):
            worker.lengths = lambda x, ragged=ragged: np.resize([len(x), 0], x.shape[1]) if ragged else None
            for model in shared:
                worker.shared = [model]
                for call in (worker.infer, worker.train, worker.stream, worker.pool, worker.loss):
                    call()
    # The largest of all, whose kernels let go of the GIL: they are others.
    worker.lengths, worker.r.randint = lambda x: None, lambda low, high: high
    worker.train()
    threads._team.ask()
    while PARKS and threads._team.serving < fr.get_num_threads() - 1:
        time.sleep(0.01)


def soak(seconds):
    """Runs for so long; returns figures."""
    shared = [fr.LSTM(20, 30, seed=1), fr.GRU(20, 100, seed=2), fr.RNN(20, 17, seed=3)]
    every_kind(shared)
    compiled, stop = compilations(), threading.Event()
    workers = [Worker(seed, shared, stop) for seed in range(THREADS)]
    probe, step, latencies = fr.LSTM(20, 30, seed=4).stream(), np.zeros(20, "f4"), []
    memory, seen, before = [], [], processors()
    for worker in workers:
        worker.start()
    awake = stopped = 0.0
    for n in range(SAMPLES):
        while awake < seconds * (n + 1) / SAMPLES and not stop.is_set():
            t = time.monotonic()
            stop.wait(0.1)
            t = time.monotonic() - t
            awake += min(t, NAP)
            stopped += max(0.0, t - NAP)
        memory.append(resident())
        seen.append(sizes())
        times = []
        for _ in range(30):
            t = time.perf_counter()
            probe.push(step)
            times.append(time.perf_counter() - t)
        latencies.append(statistics.median(times))
    stop.set()
    for worker in workers:
        worker.join(timeout=600)
    work, mine = (after - then for after, then in zip(processors(), before, strict=True))
    half = SAMPLES // 2
    return {
        "calls": sum(worker.calls for worker in workers),
        "errors": [worker.error for worker in workers if worker.error],
        "hanging": sum(worker.is_alive() for worker in workers),
        "compiled": dict(compilations() - compiled),
        "memory": [max(memory[SAMPLES // 4 : half]), max(memory[half:])],
        "largest": {name: max(one[name] for one in seen) for name in seen[0]},
        "last": sizes(),
        "threads": fr.get_num_threads(),
        "percent of the work that was others'": 100 * max(0.0, work - mine) / work,
        "stopped": stopped,
        "microseconds": [1e6 * statistics.median(part) for part in (latencies[:half], latencies[half:])],
    }


if __name__ == "__main__":
    print(json.dumps(soak(60 * float(sys.argv[1])), indent=1))
