"""The benchmark is right before it is fast: its reference is the tests' one, a wrong result is refused and
not timed, a peer that is not there is named, and the report says what the record says.
"""

import hashlib
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import reference
from helpers import JIT, ROOT, Problem, assert_close, import_or_skip, those

CELLS = {
    "rnn-tanh": "rnn_tanh",
    "rnn-relu": "rnn_relu",
    "lstm": "lstm",
    "lstm-peephole": "lstm_peephole",
    "gru": "gru",
}
PEERS = {"numpy": "numpy", "fastrnn": "fastrnn", "torch": "torch", "onnxruntime": "onnx"}  # and what else they need

PASSES = ("infer", "step", "train")


@pytest.fixture
def bench(monkeypatch):
    """Imports a module of the benchmark, which is not installed."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"bench.{name}")


# --- its reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [False, True], ids=["dense", "one-hot"])
@pytest.mark.parametrize("lengths", [None, (2, 4, 1)], ids=["one-length", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("cell", CELLS)
def test_loop(bench, cell, bidirectional, lengths, indices):
    """The NumPy loop's outputs and gradients are the tests' reference's, by complex step."""
    problem = Problem(
        CELLS[cell], T=4, B=3, I=5, H=3, L=2, bidirectional=bidirectional, lengths=lengths, indices=indices,
        has_state=False, has_dstate=False,
    )  # fmt: skip
    loop, kind = bench("loop"), bench("cases").CELLS[cell]
    x = problem.ids if indices else problem.inputs["x"]
    start = loop.zero_state(kind, problem.params, problem.B)
    y, state, tape = loop.forward(kind, problem.params, x, start, None if lengths is None else np.array(lengths))
    assert_close({"y": y, **dict(zip(problem.states, state))}, problem.outputs(), 1e-14)
    dx, grads = loop.backward(kind, problem.params, tape, problem.doutputs["y"])
    gradients = {f"d{name}": gradient for name, gradient in grads.items()} | ({} if indices else {"dx": dx})
    assert_close(gradients, problem.gradients, 1e-13)


@pytest.mark.parametrize("name", ["tiny-charlm-lstm-2x7", "tiny-minchar"])
def test_language_model(bench, name):
    """The NumPy model's losses over three training steps are those of the tests' reference."""
    (case,) = bench("cases").select([name])
    problem = bench("problem").Problem(case)
    model = bench("lm").NumpyModel(problem, "float64")
    char = case.kind == "charlm"
    params = {n: a.astype("float64") for n, a in problem.model_weights.items()}
    first, scale = int(char), 1 if char else case.T * case.B

    def layers_of(arrays):
        return {n.removeprefix(f"{first}."): a for n, a in arrays.items() if n.startswith(f"{first}.")}

    def run(arrays, ids, state):
        x = reference.embedding({"weight": arrays["0.weight"]}, ids) if char else reference.one_hot(ids, case.V)
        layer = reference.lstm if char else reference.rnn
        y, *state = layer(layers_of(arrays), x, *(state or ()))
        return reference.linear({n: arrays[f"{first + 1}.{n}"] for n in ("weight", "bias")}, y), state

    history, state = {n: [] for n in params}, None
    for ids, targets in problem.chunks[:3]:
        now, before = {n: a.copy() for n, a in params.items()}, state
        logits, state = run(now, ids, before)
        loss = scale * reference.cross_entropy(logits, targets)
        assert model.step(ids, targets) == pytest.approx(loss, rel=1e-12)

        def loss_of(arrays, ids=ids, targets=targets, before=before):
            return scale * reference.cross_entropy(run(arrays, ids, before)[0], targets)

        grads = reference.complex_step(loss_of, now)
        grads = reference.clip_by_norm(grads, 5.0)[0] if char else reference.clip_by_value(grads, 5.0)
        assert_close(model.gradients(), grads, 1e-11)
        for n, g in grads.items():
            history[n].append(g)
            start = problem.model_weights[n].astype("float64")
            optimizer = reference.adam if char else reference.adagrad
            *_, params[n] = optimizer(start, history[n], lr=0.002 if char else 0.1)


# --- its libraries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", PEERS)
def test_libraries(bench, monkeypatch, library):
    """Every tiny case that a library takes comes out right: all cells, both directions, lengths."""
    import_or_skip(library)
    import_or_skip(PEERS[library])
    verify, peer, taken = bench("verify"), bench(f"peers.with_{library}"), set()
    job_of = peer.make
    if library == "torch":
        monkeypatch.setattr(peer, "why_not_compiled", lambda: "left to test_compiled_loop")
    for case in bench("cases").select(["tiny"]):
        if case.kind in bench("cases").APART:
            continue
        try:
            job = job_of(case)
        except bench("job").Unsupported:
            continue
        wanted = verify.expected(case)
        with job.around():
            for way in job.ways:
                job.use(way)
                assert verify.wrong(case, verify.errors(case, job.results(), wanted)) == "", case.name
        taken.add((case.cell, case.D, bool(case.shortest)))
    cases = bench("cases")
    assert taken >= {(cell, D, lengths) for cell in cases.FUSED for D in (1, 2) for lengths in (False, True)}
    assert taken >= {(cell, 1, False) for cell in cases.CELLS}


def test_onednn(bench, monkeypatch):
    """The same of oneDNN, in all of its cells and passes, with an error planted in each."""
    onednn, verify = bench("peers.with_onednn"), bench("verify")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `start` sets it; here it is set back
    try:
        onednn.start(1)
    except ImportError as error:
        pytest.skip(f'no comparison with oneDNN: {error} (pip install "fastrnn[peers]")')
    cases, problem = bench("cases"), bench("problem")
    for cell, kind, (L, D, I) in itertools.product(cases.CELLS, PASSES, [(1, 1, 7), (1, 2, 7), (2, 1, 9)]):  # noqa: E741
        case = cases.Case(kind, cell, T=1 if kind == "step" else 5, B=8, I=I, H=9, L=L, D=D)
        wanted = verify.expected(case)
        for planted in (False, True):
            problem.plant = planted
            try:
                job = onednn.make(case)
                job.call()
                found = job.results()
            finally:
                problem.plant = False
            assert bool(verify.wrong(case, verify.errors(case, found, wanted))) == planted, case.name
    for kind, options in (("infer", {"shortest": 2}), ("infer", {"dtype": "float64"}), ("charlm", {"V": 5})):
        with pytest.raises(bench("job").Unsupported):
            onednn.make(cases.Case(kind, "lstm", T=5, B=3, I=7, H=9, **options))


@pytest.mark.filterwarnings("ignore")  # what PyTorch warns of while it compiles is its own affair
@pytest.mark.parametrize("kind", ["infer", "train", "step"])
def test_compiled_loop(bench, monkeypatch, kind):
    """PyTorch's peephole loop is compiled too, and right in both ways; where it cannot be, the job says so."""
    torch = import_or_skip("torch")
    peer, verify = bench("peers.with_torch"), bench("verify")
    (case,) = [c for c in bench("cases").select(["tiny-lstm-peephole"]) if c.kind == kind]
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        assert peer.why_not_compiled()
        pytest.skip("no C++ compiler for torch.compile")
    monkeypatch.setattr(peer, "CHUNK", 2)  # of 4 steps: the state goes from chunk to chunk
    job, wanted = peer.make(case), verify.expected(case)
    assert "eager, or compiled" in job.how
    assert job.ways[-1] == peer.COMPILED
    assert torch._inductor.config.compile_threads == 1
    calls = []
    stats = torch._dynamo.utils.counters["stats"]
    with job.around():
        for way in (*job.ways, *job.ways):  # and back
            before = stats["unique_graphs"]
            job.use(way)
            assert verify.wrong(case, verify.errors(case, job.results(), wanted)) == "", way
            calls.append(stats["unique_graphs"] - before)
    assert calls[len(job.ways) - 1] > 0
    assert sum(calls) == calls[len(job.ways) - 1]  # compiled once, and only there

    monkeypatch.setattr(peer, "why_not_compiled", lambda: "no compiler")
    job = peer.make(case)
    assert "not compiled: no compiler" in job.how
    assert peer.COMPILED not in job.ways


# --- its table ----------------------------------------------------------------------------------------------


def test_cases(bench):
    """Names are unique, the named ones exist, a name that fits nothing is an error that lists the groups."""
    cases = bench("cases")
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    assert set(names) >= cases.QUICK | cases.PYTEST | cases.HEADLINE
    assert not any("tiny" in case.groups for case in cases.select())
    assert {case.name for case in cases.select(["lstm-train"])} == {
        case.name for case in cases.CASES if "lstm-train" in case.groups
    }
    with pytest.raises(ValueError, match="lstm-train"):
        cases.select(["nothing"])


def test_odd_sizes_are_compared_with_whole_vectors(bench):
    cases, contest = bench("cases"), bench("contest")
    named = {case.name: contest.PLAIN["fastrnn in whole vectors"](case) for case in cases.CASES}
    assert named["lstm-infer-33x7x19x75"].name == "lstm-infer-33x7x32x80"
    assert named["gru-train-17x5x3x5"].name == "gru-train-17x5x16x16"
    assert named["lstm-infer-100x32x128x256"] is None
    assert named["lstm-step-B1-H8"] is None


def test_later_records_replace_rows(bench):
    """Of the same name and threads; what they have besides is added, and it is said that there were several."""
    first = {
        "rows": [{"name": "a", "threads": 2, "n": 1}, {"name": "b", "threads": 2, "n": 2}],
        "limits": [{"threads": 2, "flops": 1}],
        "startup": [1],
        "memory": [2],
        "date": "1",
    }
    later = {
        "rows": [{"name": "b", "threads": 2, "n": 3}, {"name": "b", "threads": 1, "n": 4}],
        "limits": [{"threads": 1, "flops": 2}, {"threads": 2, "flops": 3}],
        "neighbour": [],
        "startup": [3],
        "memory": [],
        "date": "2",
    }
    found = bench("report").merged([first, later])
    assert [row["n"] for row in found["rows"]] == [1, 3, 4]
    assert (found["date"], found["again"], found["neighbour"]) == ("1", 1, [])
    assert (found["startup"], found["memory"]) == ([3], [2])
    assert [(one["threads"], one["flops"]) for one in found["limits"]] == [(2, 1), (1, 2)]
    assert bench("report").merged([later])["again"] == 0


def test_work(bench):
    """Steps past a row's end are no work; the second direction is as much as the first."""
    work, problem = bench("work"), bench("problem").Problem
    (case,) = bench("cases").select(["tiny-gru-train-6x4x5x7-2layers-bidirectional-lengths2"])
    lengths = problem(case).lengths
    assert lengths.shape == (4,)
    assert set(lengths) <= {2, 3, 4, 5, 6}
    weights = 2 * 3 * 7 * (5 + 7 + 14 + 7)
    assert work.flops(case) == 3 * 2 * weights * lengths.sum()
    assert work.traffic(case) == 4 * 2 * (2 * 3 * 7 * (5 + 14) + lengths.max() * 2 * 3 * 7 * (7 + 7))
    assert sum(a.size for n, a in problem(case).weights.items() if "weight" in n) == weights


def test_errors_are_seen(bench):
    """Every array is compared: one element off, NaN, missing, of another shape."""
    verify = bench("verify")
    (case,) = bench("cases").select(["tiny-lstm-train-4x3x5x7"])
    wanted = verify.expected(case)
    assert verify.wrong(case, verify.errors(case, wanted, wanted)) == ""
    for name, array in wanted.items():
        off, nan = array.copy(), array.copy()
        off.flat[-1] += 1e-2 * np.abs(array).max()
        nan.flat[0] = np.nan
        for bad in (off, nan, array[:-1], None):
            actual = {n: a for n, a in {**wanted, name: bad}.items() if a is not None}
            assert name in verify.wrong(case, verify.errors(case, actual, wanted))


# --- the command --------------------------------------------------------------------------------------------


def run(*arguments, path=()):
    """`python -m bench...` in the repository's folder, with folders put before everybody else's modules."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), str(ROOT)])}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)


compiled = pytest.mark.skipif(not JIT, reason="the machine's own peak is measured by compiled code")
HURRIED = ("--threads", "1", "--seconds", "0.01")


@compiled
def test_a_word_goes_from_thread_to_thread(bench):
    """Every call goes on where the last one stopped; with one thread there is nobody to pass it to."""
    exchange, job = bench("machine.exchange"), bench("job")
    exchange.start(1)
    with pytest.raises(job.Unsupported, match="one thread"):
        exchange.make(None)
    exchange.start(2)
    made = exchange.make(None)
    start = time.perf_counter()
    for _ in range(3):
        made.call()
    assert 1e-9 < (time.perf_counter() - start) / (3 * made.work) < 1


@compiled
def test_run_and_report(tmp_path):
    """Tiny cases from verification to the README: who took part, who is missing, how long it took."""
    absent = tmp_path / "absent"
    absent.mkdir()
    (absent / "jax.py").write_text("raise ImportError('not on this machine')")
    record = tmp_path / "record.json"
    done = run(
        "bench", "--only", "tiny-lstm-peephole-train-4x3x5x7", "tiny-charlm",
        "tiny-gru-train-6x4x5x7-2layers-bidirectional-lengths2", "tiny-neighbour",
        "--libraries", "fastrnn,numpy,jax", "--json", record, *HURRIED, path=[absent],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jax: missing" in done.stdout
    found = json.loads(record.read_text())
    assert list(found["missing"]) == ["jax"]
    assert found["limits"][0]["flops"] > 1e9
    peephole, lengths, model = found["rows"]
    machine = {"peak", "bandwidth", "exchange"}
    assert set(peephole["outcomes"]) == {"fastrnn", "numpy", "fastrnn without peepholes", *machine}
    assert set(lengths["outcomes"]) == {"fastrnn", "numpy", "fastrnn without lengths", *machine}
    assert set(model["outcomes"]) == {"fastrnn", "numpy", *machine}
    for row in found["rows"]:
        assert row["outcomes"].pop("exchange")["status"] == "unsupported"
        for outcome in row["outcomes"].values():
            assert outcome["status"] == "timed", outcome
            assert len(outcome["seconds"]) >= 3
            assert min(filter(None, outcome["seconds"])) > 0
        assert row["outcomes"]["fastrnn"]["errors"]
        assert row["speedup"]["numpy"][0] > 0
        assert 0 < row["share_of_peak"]["fastrnn"] < 1

    (beside,) = found["neighbour"]
    assert list(beside["summary"]) == ["fastrnn", "numpy"]

    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    results = tmp_path / "RESULTS.md"
    done = run("bench.report", record, "--results", results, "--readme", readme)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line for line in results.read_text().splitlines() if line.startswith("| tiny-")]
    names = [*(row["name"] for row in found["rows"]), beside["name"], beside["name"]]
    assert [line.split("|")[1].strip() for line in table] == names
    assert "## Beside a busy process" in results.read_text()
    text = readme.read_text()
    assert beside["name"] not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| tiny-charlm-lstm-2x7 |" in text
    assert found["machine"]["cpu"] in text


def test_means(bench):
    """Of the fastest peer of every row, a yardstick not counted; steps also together with sequences."""
    contest, select = bench("contest"), bench("cases").select

    def row(name, **times):
        (case,) = select([name])
        outcomes = {label: contest.Outcome(seconds=[seconds]) for label, seconds in times.items()}
        return contest.Row(case, 2, outcomes)

    rows = [
        row("tiny-lstm-infer-4x3x5x7-2layers", fastrnn=1.0, torch=2.0, jax=3.0, onednn=1.0),
        row("tiny-lstm-step-B2-H7", fastrnn=1.0, torch=9.0, jax=8.0),
        row("tiny-lstm-train-4x3x5x7", fastrnn=1.0, torch=1.5),
    ]
    machine = {"cpu": "a machine", "processors": 2, "system": "a system", "python": "3"}
    record = {"machine": machine, "versions": {}, "missing": {}, "limits": [], "startup": [], "again": 0, "date": ""}
    said = bench("report").results(record, rows, [], None)
    means = [line.split(" times")[0].split("takes ")[1] for line in said.splitlines() if "as fastrnn (" in line]
    assert means[:4] == ["2.00", "1.50", "8.00", "4.00"]


@compiled
@pytest.mark.parametrize(
    "case",
    those(["tiny-lstm-train-4x3x5x7", "tiny-neighbour", "tiny-minchar"], ["tiny-lstm-train-4x3x5x7", "tiny-neighbour"]),
)
def test_a_wrong_result_is_refused(tmp_path, case):
    """A library with one wrong row of weights is named, is not timed, and the command fails."""
    record = tmp_path / "record.json"
    done = run(
        "bench",
        "--only",
        case,
        "--libraries",
        "fastrnn,numpy",
        "--plant",
        "fastrnn",
        "--json",
        record,
        *HURRIED,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "fastrnn refused" in done.stdout
    found = json.loads(record.read_text())
    (row,) = found["rows"] + found["neighbour"]
    assert row["outcomes"]["fastrnn"]["status"] == "refused"
    assert "fastrnn" not in row.get("beside", {})
    assert row["outcomes"]["fastrnn"]["seconds"] == []
    assert row["outcomes"]["numpy"]["status"] == "timed"


def test_settling(bench, monkeypatch):
    """Whoever was timed has no thread running any more when the next one's turn comes."""
    quiet, ended = bench("quiet"), []
    monkeypatch.setattr(quiet, "LONGEST", 60)

    def spin():
        hashlib.pbkdf2_hmac("sha256", b"", b"", 300_000)  # without the GIL
        ended.append(True)

    spinning = threading.Thread(target=spin)
    spinning.start()
    quiet.settle()
    assert ended
    spinning.join()


def test_starts(bench, monkeypatch):
    """The starts' scripts run, and their results are the reference's. The cache is the usual one."""
    startup = bench("startup")
    monkeypatch.setattr(startup, "environment", lambda **variables: bench("client").environment())
    (case,) = bench("cases").select(["tiny-startup"])
    measures = {m.name: m.seconds for m in startup.measure(case, ["fastrnn"], rounds=1, cold_rounds=0)}
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in measures.values())
    assert {"python", "import numba", "fastrnn: first inference", "fastrnn: first training step"} <= set(measures)


def test_installed(bench):
    """NumPy's own size; fastrnn's with what it needs; nothing for what is not there."""
    found = bench("installed").sizes(["numpy", "fastrnn", "nobody has this"])
    assert list(found) == ["numpy", "fastrnn"]
    ours = sum(path.stat().st_size for path in (ROOT / "fastrnn").rglob("*.py"))
    assert 1 << 20 < found["numpy"] < found["numpy"] + ours < found["fastrnn"] < 1 << 30


def test_memory(bench):
    """What a process holds, of those who have the case; and who is wrong is not believed."""
    (case,) = bench("cases").select(["tiny-lstm-memory"])
    ours, plain = bench("memory").measure(case, ["fastrnn", "numpy"], 1)
    assert (ours.library, plain.library) == ("fastrnn", "numpy")
    for one in (ours, plain):
        assert 10 << 20 < one.peak < 10 << 30
        assert 0 <= one.beyond < one.peak


def test_neighbour(bench, tmp_path, monkeypatch):
    """A turn alone and one beside the busy process in every round, and their quotients; nothing of it is left."""
    neighbour = bench("neighbour")
    (case,) = bench("cases").select(["tiny-neighbour"])
    spinners, told = [], []

    class Watched(neighbour.Spinner):
        def __init__(self):
            super().__init__()
            spinners.append(self)

        def turn(self, busy):
            told.append(busy)
            super().turn(busy)

    monkeypatch.setattr(neighbour, "Spinner", Watched)
    monkeypatch.setattr(neighbour, "SAMPLE", 0.001)
    monkeypatch.setattr(neighbour, "MOST", 3)
    contest = bench("contest").Contest(["fastrnn", "numpy"], 1, 0.01, tmp_path)
    try:
        row = neighbour.measure(contest, case)
    finally:
        contest.close()
    assert told == [False, *(False, True) * 2, *(True, False) * 2, *(False, True) * 2, False]
    (spinner,) = spinners
    assert not spinner.alive
    assert list(row.outcomes) == ["fastrnn", "numpy"]
    for label, outcome in row.outcomes.items():
        assert outcome.status == "timed"
        assert outcome.errors
        pairs = list(zip(outcome.seconds, row.beside[label], strict=True))
        assert len(pairs) == 3
        alone, beside, slowdown = row.found(label)
        assert alone.median == sorted(one for one, _ in pairs)[1] > 0
        assert beside.median == sorted(other for _, other in pairs)[1] > 0
        assert slowdown.median == sorted(other / one for one, other in pairs)[1]
        assert slowdown.low <= slowdown.median <= slowdown.high
    again = neighbour.Beside.from_json(json.loads(json.dumps(row.as_json(), allow_nan=False)))
    assert again.found("numpy") == row.found("numpy")
    row.outcomes["numpy"].status = "failed"
    assert row.found("numpy") is None
    assert row.refused() == ["numpy"]
    assert "| failed |" in bench("report").neighbours_table([row])


def test_the_busy_process_is_busy(bench):
    """It uses a processor when it is told to, and none when it rests."""
    spinner = bench("neighbour").Spinner()
    try:
        for _ in range(2):
            spinner.turn(busy=True)
            start, end = spinner.cpu, time.monotonic() + 60
            while spinner.cpu < start + 0.2:
                assert time.monotonic() < end, "it does not spin"
                spinner.turn(busy=True)
            spinner.turn(busy=False)
            start = spinner.cpu
            time.sleep(0.3)
            spinner.turn(busy=False)
            assert spinner.cpu < start + 0.1
    finally:
        spinner.close()
    assert not spinner.alive


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_busy_process_dies_with_the_benchmark(how):
    """Interrupted or killed, the benchmark leaves nothing that spins."""
    code = """
import signal, time
from bench import neighbour
signal.signal(signal.SIGINT, signal.default_int_handler)
spinner = neighbour.Spinner()
try:
    spinner.turn(busy=True)
    print(spinner._process.pid, flush=True)
    time.sleep(60)
finally:
    spinner.close()
"""
    command = [sys.executable, "-c", code]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        pid = int(process.stdout.readline())
        assert len(os.sched_getaffinity(pid)) == 1
        assert Path(f"/proc/{pid}").exists()
        process.send_signal(how)
    end = time.monotonic() + 60
    while not ended(pid):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.05)


def ended(pid):
    """Whether a process is gone, or waits for nothing but to be counted by its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_learning(tmp_path):
    """Two libraries learn the same text from the same weights: the same losses after every epoch."""
    text, record = tmp_path / "text.txt", tmp_path / "learn.json"
    text.write_text("to be or not to be, that is the question. " * 20)
    sizes = ("--hidden-size", 8, "--embedding", 4, "--layers", 1, "--batch-size", 4, "--seq-length", 10)
    done = run(
        "bench.learn", text, "--epochs", 2, "--halve-every", 1, *sizes,
        "--libraries", "fastrnn", "numpy", "--threads", 1, "--json", record,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = json.loads(record.read_text())["epochs"].values()
    assert len(ours) == 2
    assert ours[1]["validation"] < ours[0]["validation"]
    for one, other in zip(ours, theirs):
        assert one["validation"] == pytest.approx(other["validation"], rel=1e-4)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_usage(tmp_path):
    """A case that does not exist is exit code 2 and one line."""
    done = run("bench", "--only", "nothing", "--json", tmp_path / "record.json")
    assert done.returncode == 2
    assert "no case is called 'nothing'" in done.stderr
    assert not (tmp_path / "record.json").exists()
