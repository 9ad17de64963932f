"""Many Python threads beside Numba's own: fastrnn uses none of its threading layers, and is not disturbed by any.

Each case is a Python of its own with a time limit: what it is afraid of is an abort or a hang.
"""

import importlib
import sys

from helpers import JIT, run_python
from test_fork_threads import SETUP


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
    threads, calls = effort(8, 64), effort(6, 60)
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
