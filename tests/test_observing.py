"""What can be learned of a running program: how calls were run, and how kernels came to be."""

import logging
import threading
import time
import weakref

import numpy as np
import pytest
from helpers import JIT, run_python

import fastrnn as fr
from fastrnn import threads

needs_jit = pytest.mark.skipif(not JIT, reason="without JIT nothing is compiled, and one worker does it all")


@pytest.fixture
def told():
    """What was launched since the last time this was called."""
    fr.last_call_info()
    return lambda: [(one.kernel, one.workers, one.by) for one in fr.last_call_info()]


# --- how calls were run -------------------------------------------------------------------------------------


def test_every_kernel_of_a_call_in_order(told):
    """A first forward packs the weights, a second one finds them; a backward is several kernels."""
    layer, x = fr.GRU(3, 5, seed=1), np.ones((4, 2, 3), np.float32)
    layer(x, lengths=[4, 4])
    assert told() == [("gru_pack", 1, None), ("gru_forward", 1, None)]
    y, _, tape = layer.forward(x)
    assert told() == [("gru_forward", 1, None)]
    layer.backward(tape, y)
    names = [name for name, *_ in told()]
    assert names == ["pack_tape", "gru_backward", "gradient", "gradient", "pack_tape", "product"]
    assert told() == []


@needs_jit
@pytest.mark.parametrize(("T", "B", "by"), [(20, 13, "rows"), (90, 3, "panels")])
def test_rows_or_panels(told, set_num_threads, T, B, by):
    """As layers/recurrent.py decided, by batch and weights."""
    set_num_threads(2)
    layer = fr.LSTM(37, 100, seed=1)
    x = np.zeros((T, B, 37), np.float32)
    layer.forward(x)
    (forward,) = [one for one in fr.last_call_info() if one.kernel == "lstm_forward"]
    assert (forward.workers, forward.by) == (2, by)
    assert forward.pieces >= (2 if by == "rows" else 1)
    set_num_threads(1)
    layer.forward(x)
    assert told() == [("lstm_forward", 1, None)]
    layer(x)
    assert told() == [("lstm_steps", 1, None)]
    set_num_threads(2)
    threads._team.ask()
    end = time.monotonic() + 60
    while threads._team.serving < 1:  # what is divided is so among those who are there
        assert time.monotonic() < end
        time.sleep(0.01)
    layer(x)
    ((name, *how),) = told()
    assert how == [2, by]
    assert name == "lstm_steps" or by == "panels"  # of which there may be too few for all workers, by the processor


def test_each_thread_its_own(told):
    fr.softmax(np.zeros(3))
    others = []

    def work():
        others.append(told())
        fr.log_softmax(np.zeros(3))
        others.append(told())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert others == [[], [("log_softmax", 1, None)]]
    assert told() == [("softmax", 1, None)]


def test_what_is_noted_is_bounded_and_keeps_nothing_alive(told):
    """A thread that never asks again keeps the numbers of some launches, and no array."""
    for _ in range(100):
        y = fr.softmax(np.zeros(3))
    gone = weakref.ref(y)
    del y
    assert gone() is None
    assert told() == [("softmax", 1, None)] * threads.REMEMBERED


def test_nothing_is_noted_before_somebody_asks():
    code = """
        import numpy as np
        import fastrnn as fr
        for _ in range(2):
            fr.softmax(np.zeros(3))
            print(len(fr.last_call_info()))
    """
    assert run_python(code).split() == ["0", "1"]


@needs_jit
@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("embedded", [False, True])
def test_a_step_of_a_stream_is_no_launch(told, kind, layers, embedded):
    """The quick way, which has no time for notes: of a stack too, and of a whole model; the bits are a sequence's."""
    layer, x = kind(3, 5, num_layers=layers, seed=1), np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 1, 3)
    if embedded:
        layer, x = fr.Sequential(fr.Embedding(7, 3, seed=2), layer, fr.Linear(5, 70, seed=3)), np.array([[4], [6], [0]])
    whole, final = layer(x)
    _, state = layer(x[:1])
    _, state = layer(x[1:2], state)
    told()
    y, state = layer(x[2:], state)
    assert told() == []
    assert y.tobytes() == whole[2:].tobytes()
    assert np.array(state).tobytes() == np.array(final).tobytes()


@needs_jit
@pytest.mark.parametrize("T", [1, 2, 17])
@pytest.mark.parametrize("B", [1, 7])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (fr.RNN, {"nonlinearity": "relu"}), (fr.RNN, {"num_layers": 2, "dtype": "float64"}),
        (fr.LSTM, {"peephole": "diagonal"}), (fr.LSTM, {"num_layers": 3, "bias": False}),
        (fr.LSTM, {"coupled": True, "clip": 0.1}), (fr.GRU, {}), (fr.GRU, {"num_layers": 2}),
    ],
)  # fmt: skip
def test_few_steps_are_no_launch(told, kind, options, T, B):
    """The quick way of a small inference; lengths that are all T go the long way, to the same bits."""
    layer, rng = kind(3, 37, seed=1, **options), np.random.default_rng(2)
    x = rng.standard_normal((T, B, 3)).astype(layer.dtype)
    shape = layer.num_layers, B, 37
    start = tuple(rng.standard_normal(shape).astype(layer.dtype) for _ in range(layer.states))
    given = start if layer.states > 1 else start[0]
    for state in (None, given):
        layer(x, state)
        told()
        y, final = layer(x, state)
        assert told() == []
        long_y, long_final = layer(x, state, lengths=[T] * B)
        assert told()
        assert y.flags.c_contiguous
        assert y.dtype == layer.dtype
        assert y.tobytes() == long_y.tobytes()
        assert np.array(final).tobytes() == np.array(long_final).tobytes()
    for old, new in zip(start, given if layer.states > 1 else [given], strict=True):
        assert old is new
    layer.params["weight_hh_l0"] = np.zeros_like(layer.params["weight_hh_l0"])
    changed, _ = layer(x, given)
    assert changed.tobytes() == layer(x, given, lengths=[T] * B)[0].tobytes()
    assert (changed != y).any()


@needs_jit
@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
def test_large_weights_are_read_forth_and_back(told, kind):
    """Steps whose weights no cache keeps begin with the last panel in every other call: the bits are the same."""
    layer, x = kind(3, 520, seed=1), np.linspace(-1, 1, 18, dtype=np.float32).reshape(3, 2, 3)
    for steps in (1, 2, 3):
        long = layer(x[:steps], lengths=[steps] * 2)
        told()
        for _ in range(3):
            y, final = layer(x[:steps])
            assert y.tobytes() == long[0].tobytes()
            assert np.array(final).tobytes() == np.array(long[1]).tobytes()
        assert told() == []
    turns = layer._ready[-1]
    assert next(turns) is not next(turns)


@needs_jit
def test_what_is_not_small_is_a_launch(told, set_num_threads):
    """Much work, what the quick kernel cannot do, and other types."""
    set_num_threads(2)
    layer = fr.LSTM(3, 40, seed=1)
    layer(np.zeros((2, 1, 3), np.float32))
    told()
    f32 = np.float32
    for x in (np.zeros((2400, 1, 3), f32), np.zeros((2, 75_000, 3), f32), np.zeros((3, 1, 2), f32).T, [[[1, 2, 3]]]):
        layer(x)
        assert [name for name, *_ in told()] == ["lstm_forward"]
    for options in ({"bidirectional": True}, {"batch_first": True}, {"proj_size": 2}, {"zoneout": 0.5}):
        layer = fr.LSTM(3, 5, seed=1, **options)
        layer(np.zeros((2, 2, 3), np.float32))
        assert told()[-1][0] == "lstm_forward"


@needs_jit
@pytest.mark.parametrize("kind", [fr.RNN, fr.LSTM, fr.GRU])
def test_layers_one_after_the_other(told, kind):
    """Several layers, many steps, enough work for all workers: the quick kernel, to the same bits."""
    layer, rng = kind(5, 72, num_layers=3, seed=1), np.random.default_rng(2)
    x = rng.standard_normal((40, 32, 5), dtype=np.float32)
    layer(x[:2])
    told()
    for back in range(3):
        y, final = layer(x[back:])
        assert {name for name, *_ in told()} == {f"{kind.__name__.lower()}_steps"}
        long_y, long_final = layer(x[back:], lengths=[40 - back] * 32)
        told()
        assert y.flags.c_contiguous
        assert y.tobytes() == long_y.tobytes()
        assert np.array(final).tobytes() == np.array(long_final).tobytes()
        again, _ = layer(x[back:], final)
        assert again.tobytes() == layer(x[back:], long_final, lengths=[40 - back] * 32)[0].tobytes()
        told()


@needs_jit
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "i_size", "options"),
    [(fr.LSTM, 1100, {}), (fr.LSTM, 1400, {"coupled": True}), (fr.LSTM, 1100, {"peephole": "diagonal"}),
     (fr.GRU, 1400, {}), (fr.RNN, 4200, {})],
)  # fmt: skip
def test_large_u_is_read_once_for_all_steps(told, kind, i_size, options, bias):
    """A product and then the quick way; the bits are the same, and a change of the parameters is seen."""
    layer, rng = kind(i_size, 33, seed=1, bias=bias, **options), np.random.default_rng(2)
    for T, B in ((1, 1), (2, 1), (7, 2), (2, 1)):
        x = rng.standard_normal((T, B, i_size), dtype=np.float32)
        layer(x)
        told()
        final = layer(x)[1]
        assert [name for name, *_ in told()] == (["product"] if T > 1 else [])
        for state in (None, final):
            long, quick = layer(x, state, lengths=[T] * B), layer(x, state)
            assert quick[0].tobytes() == long[0].tobytes()
            assert np.array(quick[1]).tobytes() == np.array(long[1]).tobytes()
        layer.params["weight_hh_l0"] = 2 * layer.params["weight_hh_l0"]
        layer.params["weight_ih_l0"] = layer.params["weight_ih_l0"] + 1e-3
    with pytest.raises(ValueError, match="state"):
        layer(x, np.zeros((1, 1, 32), np.float32) if kind is not fr.LSTM else (np.zeros((1, 1, 32), np.float32),) * 2)


# --- logging ------------------------------------------------------------------------------------------------

CALL = """
    import io, logging, sys
    sys.stderr = io.StringIO()
    if {heard}:
        logging.basicConfig(stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
        logging.getLogger("fastrnn").setLevel("DEBUG")
    import numpy as np
    import fastrnn as fr
    print("imported")
    fr.softmax(np.zeros(3))
    fr.softmax(np.zeros(4))
    print("silent" if not sys.stderr.getvalue() else sys.stderr.getvalue())
"""


@needs_jit
def test_the_logger_hears_of_every_kernel(tmp_path):
    """Compiled, then loaded; silent unless somebody listens."""
    said = [run_python(CALL.format(heard=True), FASTRNN_CACHE_DIR=str(tmp_path)).splitlines() for _ in range(2)]
    for lines, does in zip(said, ("compiled softmax (held) in ", "loaded softmax (held) from "), strict=True):
        assert [line for line in lines if "softmax" in line] == [line for line in lines if does in line]
        assert sum(does in line for line in lines) == 1
        assert all(line.startswith("fastrnn DEBUG ") for line in lines[1:-1])
        assert (lines[0], lines[-1]) == ("imported", "silent")
    assert run_python(CALL.format(heard=False), FASTRNN_CACHE_DIR=str(tmp_path)).split() == ["imported", "silent"]


@needs_jit
def test_the_logger_hears_that_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    nowhere = str(tmp_path / "file" / "cache")
    lines = run_python(CALL.format(heard=True), FASTRNN_CACHE_DIR=nowhere).splitlines()
    assert any("compiled code is not kept" in line and nowhere in line for line in lines)
    assert any("compiled softmax (held) in" in line for line in lines)
    assert lines[-1] == "silent"


def test_the_logger_is_silent_by_itself():
    """Warnings too: with no handler at all, logging would print those."""
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("fastrnn").handlers)


def test_import_does_not_need_logging():
    """It comes with the first thing that is used, as numba does."""
    code = """
        import sys
        before = set(sys.modules)
        import fastrnn
        print(sorted({"logging", "numba", "numpy"} & (set(sys.modules) - before)))
    """
    assert run_python(code).strip() == "[]"


@needs_jit
@pytest.mark.parametrize("enabled", [True, False])
def test_compiling_leaves_the_collector_as_it_was(tmp_path, enabled):
    """It rests while something is compiled, and is then as it was; also where compiling fails."""
    code = f"""
        import gc
        import numba
        import numpy as np
        import fastrnn as fr
        from fastrnn.kernels import softmax
        {"gc.enable()" if enabled else "gc.disable()"}
        fr.softmax(np.zeros(3))  # imports what Numba imports when it first compiles
        before = sum(one["collections"] for one in gc.get_stats())
        fr.log_softmax(np.zeros(3))
        print(gc.isenabled(), sum(one["collections"] for one in gc.get_stats()) - before < 5)
        try:
            softmax.log_softmax.held("no numbers")
        except (numba.TypingError, TypeError):
            print(gc.isenabled())
    """
    assert run_python(code, FASTRNN_CACHE_DIR=str(tmp_path)).split() == [str(enabled), "True", str(enabled)]


@needs_jit
def test_functions_of_others_are_left_alone():
    """Numba tells this package of all that is compiled: a function without a module, a loop in object mode."""
    code = """
        import gc
        import numba
        import fastrnn._jit
        made = {}
        exec("def nowhere(x): return x + 1", made)
        assert made["nowhere"].__module__ is None
        print(numba.njit(made["nowhere"])(1))

        @numba.jit(forceobj=True, looplift=True)
        def lifted(n):
            object()
            s = 0
            for i in range(n):
                s += i
            return s

        print(lifted(4), gc.isenabled())
    """
    assert run_python(code).split() == ["2", "6", "True"]
