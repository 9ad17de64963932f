"""`lengths=`: a row of 3 steps among rows of 5 is a row of 3 steps. What stands in its padding is nobody's concern.

That the results are the reference's, PyTorch's and ONNX Runtime's stands in test_gradients.py and the parity files,
that they have the bits of the row alone in test_numbers.py.
"""

import numpy as np
import pytest
from helpers import CELLS, Problem, assert_close, assert_same_bits, bits_of, mixed_lengths
from hypothesis import given
from hypothesis import strategies as st
from strategies import lengths, problems

cells = pytest.mark.parametrize("cell", CELLS)


@st.composite
def ragged(draw, cell, **fixed):
    """Problems with lengths for certain."""
    problem = draw(problems(cell, batch_first=False, **fixed))
    return problem.but(lengths=draw(lengths(problem.T, problem.B)))


def is_padding(problem):
    """(T, B): whether this step of this row is past its end."""
    return np.arange(problem.T)[:, None] >= np.array(problem.lengths)


def solve_with(problem, x, dy):
    """All that comes out for another x and dy."""
    layer = problem.layer()
    y, state, tape = layer.forward(x, problem.state, problem.lengths)
    dx, dstate = layer.backward(tape, dy, problem.dstate)
    results = {"y": y} | problem.unpack(state) | {f"d{n}0": d for n, d in problem.unpack(dstate).items()}
    results |= {f"d{name}": gradient.copy() for name, gradient in layer.grads.items()}
    return results if dx is None else results | {"dx": dx}


@cells
@given(data=st.data())
def test_padding_has_no_effect(cell, data):
    """Not even NaN or infinity in x and dy past a row's end: every bit of every result stays; y and dx are 0 there."""
    problem = data.draw(ragged(cell, has_dy=True))
    padding = is_padding(problem)
    expected = solve_with(problem, problem.x, problem.dy)
    assert np.all(expected["y"][padding] == 0)
    for garbage in (np.nan, np.inf, 1e30):
        x, dy = problem.x.copy(), problem.dy.copy()
        x[padding] = problem.I - 1 if problem.indices else garbage
        dy[padding] = garbage
        assert_same_bits(solve_with(problem, x, dy), expected)
    if not problem.indices:
        assert np.all(expected["dx"][padding] == 0)


@cells
@given(data=st.data())
def test_more_padding_changes_nothing(cell, data):
    """Two steps more that belong to no row."""
    problem = data.draw(ragged(cell, has_dy=True))
    expected = solve_with(problem, problem.x, problem.dy)
    x, dy = (np.concatenate((a, a[:1], a[-1:])) for a in (problem.x, problem.dy))
    padded = solve_with(problem, x, dy)
    for name in ("y", "dx"):
        if name in padded:
            assert np.all(padded[name][problem.T :] == 0)
            padded[name] = padded[name][: problem.T]
    assert_close(padded, expected, 1e-13)


@cells
@given(data=st.data())
def test_rows_of_no_length(cell, data):
    """A row with no step keeps its state, passes its gradient on, and adds to no weight's gradient."""
    problem = data.draw(ragged(cell, has_dy=True, has_state=True, has_dstate=True))
    problem = problem.but(lengths=(0, *problem.lengths[1:]))
    results = solve_with(problem, problem.x, problem.dy)
    for name, start in problem.unpack(problem.state).items():
        assert_same_bits({name: results[name][:, 0].copy()}, {name: start[:, 0].copy()})
    for name, d in problem.unpack(problem.dstate).items():
        assert_same_bits({name: results[f"d{name}0"][:, 0].copy()}, {name: d[:, 0].copy()})

    nothing = problem.but(lengths=(0,) * problem.B)
    results = solve_with(nothing, nothing.x, nothing.dy)
    assert np.all(results["y"] == 0)
    assert all(np.all(results[f"d{name}"] == 0) for name in problem.params)


@cells
def test_any_integers(cell):
    """A list, a tuple, an array of any integers, read and left alone; time-major or batch first; by name or not."""
    problem = Problem(cell, T=5, B=4, I=3, H=9, lengths=(2, 0, 5, 3))
    layer = problem.layer()
    expected = problem.infer(layer)["y"]
    kinds = [list, tuple, *(lambda n, kind=kind: np.array(n, kind) for kind in ("int8", "int32", "uint64", ">i4"))]
    for kind in kinds:
        given = kind(problem.lengths)
        y, _ = layer(problem.x, problem.state, lengths=given)
        assert y.tobytes() == expected.tobytes()
        y, _, _ = layer.forward(problem.x, problem.state, lengths=given)
        assert y.tobytes() == expected.tobytes()
        assert tuple(given) == problem.lengths
    strided = np.repeat(problem.lengths, 2)[::2]
    strided.flags.writeable = False
    assert layer(problem.x, problem.state, strided)[0].tobytes() == expected.tobytes()
    first = problem.but(batch_first=True)
    assert_same_bits({"y": first.infer(first.layer())["y"]}, {"y": expected})


@cells
def test_a_tape_keeps_its_lengths(cell):
    """The caller's array may change after forward: backward goes by what forward was given."""
    problem = Problem(cell, T=5, B=4, I=3, H=9, lengths=(2, 0, 5, 3))
    expected, given = problem.solve()[1], np.array(problem.lengths)
    layer = problem.layer()
    _, _, tape = layer.forward(problem.x, problem.state, given)
    given[:] = 1
    assert_same_bits(problem.backward(layer, tape), expected)


@cells
def test_lengths_from_call_to_call(cell):
    """Nothing of one call's lengths is left for the next: without, with, with others, without; one step too."""
    problem = Problem(cell, T=5, B=4, I=3, H=9)
    layer = problem.layer()
    plain = bits_of(problem.infer(layer))
    for numbers in ((2, 0, 5, 3), (5, 5, 5, 5), (0, 0, 0, 0), (1, 4, 0, 2)):
        with_lengths = problem.but(lengths=numbers)
        assert_close(with_lengths.infer(layer), with_lengths.outputs(), 1e-12)
        assert bits_of(problem.infer(layer)) == plain
    step = problem.but(T=1)
    for numbers in (None, (1, 0, 1, 0), None, (0, 0, 0, 0), (1, 1, 1, 1)):
        one = step.but(lengths=numbers)
        assert_close(one.infer(layer), one.outputs(), 1e-12)


@cells
def test_empty_batch(cell):
    """No rows, no lengths."""
    problem = Problem(cell, T=4, B=0, I=5, H=9)
    y, _, tape = problem.layer().forward(problem.x, problem.state, np.zeros(0, int))
    assert y.shape == (4, 0, problem.O)
    assert tape is not None


@cells
@given(data=st.data())
def test_final_state_is_that_of_the_last_valid_step(cell, data):
    """In one direction h is the output of the last step that counts; in two, the reverse half's first output."""
    problem = data.draw(ragged(cell, L=1))
    outputs = problem.infer(problem.layer())
    for row, length in enumerate(problem.lengths):
        if length:
            halves = np.split(outputs["y"][:, row], problem.D, axis=-1)
            ends = [halves[0][length - 1], *(half[0] for half in halves[1:])]
            assert np.array_equal(outputs["h"][:, row], ends)


def test_mixed_lengths_are_mixed():
    """The lengths that other files take: none, all, and some between."""
    for T, B in ((20, 13), (3, 4), (7, 5)):
        found = mixed_lengths(T, B)
        assert (len(found), found[B // 2], found[-1]) == (B, 0, T)
        assert len(set(found)) > 2
        assert list(found) != sorted(found)
