"""Many threads, forks, places where nothing can be written: always an answer, the same one, never a hang.

Every test runs a Python of its own with a time limit, because what it is afraid of is a hang or an abort.
"""

import os
import sys

import pytest
from helpers import JIT, run_python

# A model and one training pass on it, small enough for one thread and large enough for many. `train` gives
# the bits of everything that a pass gives.
SETUP = f"""
import hashlib, os, sys, threading
import numpy as np
import fastrnn as fr

SIZES = {{"small": (3, 2, 5), "large": {(20, 13, 100) if JIT else (2, 3, 6)}}}
fr.set_num_threads(3)

def make(size):
    T, B, H = SIZES[size]
    lstm = fr.LSTM(20, H, num_layers=2, seed=2)
    model = fr.Sequential(fr.Embedding(31, 20, seed=1), lstm, fr.Linear(H, 31, seed=3))
    return model, np.random.default_rng(4).integers(0, 31, (T, B))

def digest(*arrays):
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()

def infer(model, ids):
    logits, ((h, c),) = model(ids)
    return digest(logits, h, c)

def one_pass(model, ids):
    logits, ((h, c),), tape = model.forward(ids)
    loss, dlogits = fr.cross_entropy(logits, ids)
    _, ((dh, dc),) = model.backward(tape, dlogits)
    return digest(logits, h, c, dh, dc)

def train(size, steps=3):
    model, ids = make(size)
    adam = fr.Adam(model)
    for _ in range(steps):
        model.zero_grad()
        one_pass(model, ids)
        adam.step()
    return digest(*model.params.values())
"""


def run(body, **environment):
    return run_python(SETUP + body, timeout=180, **environment).split()


# Numba's threading layers differ in what they forbid: workqueue aborts on a second thread, OpenMP kills after
# a fork.
layers = pytest.mark.parametrize("layer", [None, "workqueue"], ids=["default layer", "workqueue"])
sizes = pytest.mark.parametrize("size", ["small", "large"])


# --- threads ------------------------------------------------------------------------------------------------


@layers
@sizes
def test_many_threads_one_model(layer, size):
    """Eight threads call the same model at once: inference and training give the single thread's bits, and
    the gradients that they add up are the sum, whoever came first.
    """
    printed = run(
        f"""
model, ids = make("{size}")
THREADS, CALLS = 8, 5
inferred, passed = infer(model, ids), one_pass(model, ids)
model.zero_grad()
for _ in range(THREADS * CALLS):
    one_pass(model, ids)
total = digest(*model.grads.values())
model.zero_grad()

found, gate = [], threading.Barrier(THREADS)
def work():
    gate.wait()
    for _ in range(CALLS):
        found.append((infer(model, ids), one_pass(model, ids)))
threads = [threading.Thread(target=work) for _ in range(THREADS)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), set(found) == {{(inferred, passed)}}, digest(*model.grads.values()) == total)
""",
        NUMBA_THREADING_LAYER=layer,
    )
    assert printed == ["40", "True", "True"]


@pytest.mark.skipif(not JIT, reason="without JIT nothing is compiled")
def test_many_threads_first_call(tmp_path, effort):
    """The very first calls, nothing compiled and no helper there yet, may come from many threads too."""
    sizes = effort(["large"] * 6, ["small", "large"] * 3)
    printed = run(
        f"sizes = {sizes}"
        """
found, gate = [], threading.Barrier(6)
def work(size):
    gate.wait()
    found.append((size, train(size)))
threads = [threading.Thread(target=work, args=(size,)) for size in sizes]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), set(found) == {(size, train(size)) for size in set(sizes)})
""",
        FASTRNN_CACHE_DIR=str(tmp_path),
    )
    assert printed == ["6", "True"]


def test_threads_while_weights_change():
    """Inference while weights are set gives the old ones' answer or the new ones', never a mixture."""
    printed = run(
        """
x = np.ones((2, 3, 4), "float32")
layer = fr.LSTM(4, 50, seed=1)
old = layer.state_dict()
new = {name: 2 * array for name, array in old.items()}
expected = set()
for weights in (old, new):
    layer.load_state_dict(weights)
    expected.add(digest(layer(x)[0]))
stop, found = threading.Event(), set()
def read():
    while not stop.is_set():
        found.add(digest(layer(x)[0]))
readers = [threading.Thread(target=read) for _ in range(3)]
for thread in readers: thread.start()
for k in range(300):
    layer.load_state_dict((old, new)[k % 2])
stop.set()
for thread in readers: thread.join()
print(len(expected), found <= expected)
"""
    )
    assert printed == ["2", "True"]


# --- forks --------------------------------------------------------------------------------------------------

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

FORK = """
def in_child(work):
    # The child's answer, and whether it ended well. A hang is killed by the time limit of the whole.
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writer, work().encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    return answer if status == 0 else f"status {status}"
"""


@unix
@layers
@sizes
def test_fork(layer, size):
    """Train, fork, train in the child and in its child, and in the parent again."""
    printed = run(
        FORK
        + f"""
mine = train("{size}")
child = in_child(lambda: train("{size}") + " " + in_child(lambda: train("{size}")))
print(child == mine + " " + mine, train("{size}") == mine)
""",
        NUMBA_THREADING_LAYER=layer,
    )
    assert printed == ["True", "True"]


@unix
def test_fork_before_the_first_call():
    """Import, fork, and only then work: what a server does that loads its application once."""
    printed = run(
        FORK
        + """
children = [in_child(lambda: train("large")) for _ in range(2)]
mine = train("large")
print(children == [mine, mine])
"""
    )
    assert printed == ["True"]


@unix
def test_fork_while_others_work():
    """A fork in the midst of other threads' calls: whatever they held, the child is free."""
    printed = run(
        FORK
        + """
expected = train("large")
stop = threading.Event()
def work():
    model, ids = make("large")
    while not stop.is_set():
        one_pass(model, ids)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
answers = [in_child(lambda: train("large")) for _ in range(8)]
stop.set()
for thread in threads: thread.join()
print(set(answers) == {expected})
"""
    )
    assert printed == ["True"]


@unix
def test_fork_of_a_shared_model_in_use():
    """The same with the very model that the other threads call: no lock stays locked in the child."""
    printed = run(
        FORK
        + """
model, ids = make("large")
inferred, passed = infer(model, ids), one_pass(model, ids)
stop = threading.Event()
def work():
    while not stop.is_set():
        one_pass(model, ids)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads: thread.start()
answers = [in_child(lambda: infer(model, ids) + one_pass(model, ids)) for _ in range(8)]
stop.set()
for thread in threads: thread.join()
print(set(answers) == {inferred + passed})
"""
    )
    assert printed == ["True"]


@unix
@pytest.mark.skipif(not JIT, reason="without JIT nothing is compiled")
def test_fork_while_another_thread_compiles(tmp_path):
    """As when a server warms up in a thread and forks its workers meanwhile: Numba's lock, and LLVM's inside, would be
    left locked in the child. The fork waits.
    """
    printed = run(
        FORK
        + """
a = np.arange(12.0).reshape(3, 4)
softmax, warm = fr.softmax, threading.Thread(target=lambda: (fr.softmax(a), fr.softmax(a.astype("f4"))))
warm.start()
answers = []
while warm.is_alive():
    answers.append(in_child(lambda: digest(softmax(a), softmax(a.astype("f4")))))
print(len(answers) > 0, set(answers) == {digest(softmax(a), softmax(a.astype("f4")))})
""",
        FASTRNN_CACHE_DIR=str(tmp_path),
    )
    assert printed == ["True", "True"]


@unix
def test_fork_from_a_thread():
    """The thread that forks is the child's main thread, whatever it was before."""
    printed = run(
        FORK
        + """
mine, answers = train("large"), []
thread = threading.Thread(target=lambda: answers.append(in_child(lambda: train("large"))))
thread.start()
thread.join()
print(answers == [mine])
"""
    )
    assert printed == ["True"]


# --- nowhere to write ---------------------------------------------------------------------------------------

NOWHERE = {
    "HOME": None,
    "XDG_CACHE_HOME": None,
    "FASTRNN_CACHE_DIR": None,
    "NUMBA_CACHE_DIR": None,
    "LOCALAPPDATA": None,
}
# Kernels that are compiled in a second: whatever is kept is kept in one way.
BITS = """
model = fr.Sequential(fr.Embedding(31, 20, seed=1), fr.Linear(20, 31, seed=3))
logits = model(np.arange(6).reshape(2, 3))
print(digest(logits, fr.softmax(logits)))
"""


@pytest.fixture(scope="module")
def expected():
    """The bits where all is well."""
    return run(BITS)


def test_no_home(expected):
    """No HOME, as in many containers and services."""
    assert run(BITS, **NOWHERE) == expected


@pytest.mark.parametrize("variable", ["FASTRNN_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_cache_that_cannot_be_made(tmp_path, expected, variable):
    """No writable cache at all: a folder that even root cannot make, because a file stands in the way."""
    (tmp_path / "file").write_text("")
    nowhere = NOWHERE | {"HOME": str(tmp_path / "file"), variable: str(tmp_path / "file" / "cache")}
    assert run(BITS, **nowhere) == expected


@pytest.mark.skipif(not JIT, reason="without JIT nothing is cached")
def test_cache_that_cannot_be_written(tmp_path, expected):
    """A filled cache on a read-only disk is read; an empty one is done without."""
    for fill in (True, False):
        folder = tmp_path / f"{fill}"
        folder.mkdir()
        if fill:
            assert run(BITS, FASTRNN_CACHE_DIR=str(folder)) == expected
        before = contents(folder)
        assert bool(before) == fill
        allow(folder, 0o555, 0o444)
        try:
            assert run(BITS, FASTRNN_CACHE_DIR=str(folder)) == expected
            if fill or os.geteuid() != 0:  # root may write anywhere
                assert contents(folder) == before
        finally:
            allow(folder, 0o755, 0o644)


@pytest.mark.skipif(not JIT, reason="without JIT nothing is cached")
def test_damaged_cache(tmp_path, expected):
    """A cache cut short by a kill or a full disk costs time, not the answer."""
    run(BITS, FASTRNN_CACHE_DIR=str(tmp_path))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(BITS, FASTRNN_CACHE_DIR=str(tmp_path)) == expected


def contents(folder):
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def allow(folder, folder_mode, file_mode):
    """Sets the modes of a folder and of all that is in it."""
    for path in [*folder.rglob("*"), folder]:
        path.chmod(folder_mode if path.is_dir() else file_mode)


@pytest.mark.skipif(sys.platform != "linux", reason="sched_setaffinity is Linux's")
def test_default_threads_follow_the_affinity_mask():
    """By default no more threads than processors that this process may use; FASTRNN_NUM_THREADS overrules."""
    code = """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import fastrnn as fr
        print(fr.get_num_threads())
    """
    assert run_python(code, FASTRNN_NUM_THREADS=None).split() == ["1"]
    assert run_python(code, FASTRNN_NUM_THREADS="5").split() == ["5"]
