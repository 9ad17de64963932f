"""Many Python threads beside Numba's own: fastrnn uses none of its threading layers, and is not disturbed by any.

Each case is a Python of its own with a time limit: what it is afraid of is an abort or a hang.
"""

import importlib
import io
import os
import statistics
import sys
import threading
import time

import pytest
from helpers import JIT, run_python
from test_fork_threads import SETUP

from fastrnn import threads as threading_of_calls


def loads(module):
    try:
        importlib.import_module(f"numba.np.ufunc.{module}")
    except ImportError:
        return False
    return True


LAYERS = [
    name for name, module in (("workqueue", "workqueue"), ("omp", "omppool"), ("tbb", "tbbpool")) if loads(module)
]

# Every kind of call in every thread, in an order of its own, and a parallel loop of the user's in one more.
MIX = """
import numba, random

THREADS, CALLS = {threads}, {calls}

@numba.njit(parallel=True)
def users_own(a):
    total = 0.0
    for k in numba.prange(a.size):
        total += np.sqrt(a[k])
    return total

models = {{size: make(size) for size in SIZES}}
x = np.random.default_rng(1).standard_normal((4, 20), "f4")
shared = fr.LSTM(20, 7, seed=5)

def streamed():
    stream = shared.stream()
    return digest(*(stream.push(row) for row in x), stream.push_many(x))

def pooled():
    with shared.stream_pool(2) as pool:
        ids = [pool.open() for _ in range(4)]
        future = pool.submit(ids[3], x[3])
        return digest(pool.step(ids[:3], x[:3]), future.result(timeout=100))

def losses():
    logits = np.resize(x, (30, 40))
    return digest(np.float64(fr.cross_entropy(logits, np.arange(30))[0]), fr.softmax(logits))

KINDS = {{
    "infer small": lambda: infer(*models["small"]), "pass small": lambda: one_pass(*models["small"]),
    "infer large": lambda: infer(*models["large"]), "pass large": lambda: one_pass(*models["large"]),
    "train": lambda: train("small"), "stream": streamed, "pool": pooled, "losses": losses,
    "threads": lambda: fr.set_num_threads(random.choice((1, 2, 5, 16))),
}}
fr.set_num_threads(1)
expected = {{name: kind() for name, kind in KINDS.items()}}
fr.set_num_threads({helpers})

wrong, done, stop = [], [], threading.Event()
gate = threading.Barrier(THREADS + 1)

def work(seed):
    order = random.Random(seed)
    gate.wait()
    for _ in range(CALLS):
        name = order.choice(list(KINDS))
        if KINDS[name]() != expected[name]:
            wrong.append(name)
        done.append(name)

def own():
    a = np.ones(10000)
    gate.wait()
    while not stop.is_set():
        if users_own(a) != 10000.0:
            wrong.append("the user's own")

threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
beside = threading.Thread(target=own)
for thread in [*threads, beside]: thread.start()
for thread in threads: thread.join()
stop.set()
beside.join()
layer = numba.threading_layer() if JIT else "{layer}"
print(len(done), len(wrong), layer, *wrong[:3])
"""

ONE_CORE = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"


def test_a_mix_of_calls_from_many_threads(effort, reliability):
    """Single-threaded bits from every call, on each layer that there is, with one core and with more threads than
    cores, under OMP_THREAD_LIMIT, while the user's own parallel loop runs in another thread.
    """
    threads, calls = 64, effort(1, 60)
    cases = [(layer, one) for layer in LAYERS for one in (False, True)]
    cases = effort([(layer, layer != "workqueue") for layer in LAYERS], cases)
    total = 0
    for layer, one in cases:
        body = MIX.format(threads=threads, calls=calls, helpers=16, layer=layer)
        limits = {"OMP_THREAD_LIMIT": "1"} if one else {}
        setup = (ONE_CORE if one and sys.platform == "linux" else "") + f"JIT = {JIT}\n" + SETUP
        printed = run_python(setup + body, timeout=effort(400, 3000), NUMBA_THREADING_LAYER=layer, **limits).split()
        assert printed == [str(threads * calls), "0", layer], printed
        total += threads * calls
    reliability(calls=total, threads=threads, threading_layers=len(LAYERS), conditions=len(cases))


# --- beside a busy thread -----------------------------------------------------------------------------------


class Busy(threading.Thread):
    """Nothing but Python, all the time."""

    def __init__(self):
        super().__init__(daemon=True)
        self.count, self.stop = 0, False

    def run(self):
        while not self.stop:
            self.count += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self.stop = True
        self.join()


# Single steps of the kinds that a server makes.
KINDS = """
import numpy as np
import fastrnn as fr

def lstm():
    stream, x = fr.LSTM(20, 30, seed=1).stream(), np.ones(20, "f4")
    return lambda: stream.push(x)

def language():
    layers = (fr.Embedding(31, 20, seed=1), fr.LSTM(20, 30, seed=2), fr.Linear(30, 31, seed=3))
    stream = fr.Sequential(*layers).stream()
    return lambda: stream.push(3)

def pool():
    pool, x = fr.LSTM(20, 30, seed=1).stream_pool(4), np.ones((3, 20), "f4")
    ids = [pool.open() for _ in range(3)]
    return lambda: pool.step(ids, x)
"""


@pytest.mark.skipif(not JIT, reason="without JIT nothing lets go of the GIL")
def test_a_step_keeps_the_gil():
    """Beside a busy Python thread it would wait for it, 5 ms each time, a thousand steps. Whether it does is
    chance on a machine with other things to do; that no kernel is of the kind that lets go is not.
    """
    code = """
import gc
from fastrnn._jit import kernel
for kind in (lstm, language, pool):
    step = kind()
    for _ in range(3):
        step()
used = [one for one in gc.get_objects() if type(one) is kernel and one.compilations]
print(len(used) > 3, {one.held.targetoptions["nogil"] for one in used}, [k for k in used if "released" in vars(k)])
"""
    assert run_python(KINDS + code).split() == ["True", "{False}", "[]"]


@pytest.mark.long
def test_a_step_beside_a_busy_thread(reliability):
    """Its median time, beside the idle one. The best of some pairs: others work on this machine too."""

    def median(step):
        times = []
        for k in range(20_000):
            started = time.perf_counter()
            step()
            times.append(time.perf_counter() - started)
            if k % 300 == 0:
                time.sleep(0)  # lets the busy thread have its turn between steps
        return 1e6 * statistics.median(times)

    made, figures = {}, {}
    exec(KINDS, made)
    for kind in ("lstm", "language", "pool"):
        step, pairs = made[kind](), []
        for _ in range(5):
            idle = median(step)
            with Busy():
                pairs.append((idle, median(step)))
        idle, busy = min(pairs, key=lambda pair: pair[1] / pair[0])
        assert busy < 2 * idle, (kind, pairs)
        figures |= {f"us_for_a_step_of_{kind}": round(idle, 1), f"us_for_{kind}_beside_a_busy_thread": round(busy, 1)}
    reliability(steps=600_000, **figures)


# --- as many threads as may work ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "spoiled"}, 64),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ({}, 64),
    ],
)
def test_the_control_group_s_quota(monkeypatch, files, expected):
    """Of both versions of control groups; half a processor is one thread."""

    def opened(path):
        name = path.removeprefix("/sys/fs/cgroup/")
        if name not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[name])

    monkeypatch.delenv("FASTRNN_NUM_THREADS", raising=False)
    monkeypatch.setattr(threading_of_calls, "open", opened, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert threading_of_calls._default() == expected
