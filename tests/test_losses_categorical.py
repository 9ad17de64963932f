"""The options of the cross-entropy, and the linear layer with it in one: values, edges, memory, the same bits."""

import tracemalloc

import numpy as np
import pytest
import reference
from helpers import JIT, assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import fastrnn as fr
from fastrnn.layers import buffers

every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])
TOLERANCE = {"float32": 2e-6, "float64": 1e-13}
IGNORED = -7


def rows(seed, T, B, V, dtype="float64"):
    """Logits, classes, probabilities, weights of classes, a mask with something in it, lengths with it too."""
    rng = np.random.default_rng(seed)
    mask, lengths = rng.random((T, B)) < 0.6, rng.integers(0, T + 1, B)
    mask[rng.integers(T), rng.integers(B)] = True
    lengths[rng.integers(B)] = T
    return {
        "logits": (2 * rng.standard_normal((T, B, V))).astype(dtype),
        "targets": rng.integers(0, V, (T, B)),
        "q": rng.dirichlet(np.ones(V), (T, B)).astype(dtype),
        "weight": rng.uniform(0.2, 3.0, V).astype(dtype),
        "mask": mask,
        "lengths": lengths,
    }


def of_lengths(lengths, T):
    return np.arange(T)[:, None] < lengths


def expected(r, targets, counts, smoothing, weight, reduction):
    """The loss and its gradient by the reference, in float64."""
    V = r["logits"].shape[-1]
    weight = np.ones(V) if weight is None else weight.astype("float64")
    dense = targets.ndim == 3
    q = targets.astype("float64") if dense else reference.one_hot(targets, V)
    q = (1 - smoothing) * q + smoothing / V

    def loss(a):
        total = reference.reduced(reference.categorical(a["logits"], q, weight), counts, "sum")
        if reduction == "sum":
            return total
        return total / (counts.sum() if dense else weight[targets][counts].sum())

    arrays = {"logits": r["logits"].astype("float64")}
    return loss(arrays), reference.complex_step(loss, arrays)["logits"]


def near(actual, wanted, tolerance, share=1.0):
    """A loss and a gradient, which is a difference of numbers of the size of `share`, a row's in the loss."""
    assert actual[0] == pytest.approx(wanted[0], rel=tolerance, abs=tolerance)
    assert actual[1].shape == wanted[1].shape
    assert np.abs(actual[1] - wanted[1]).max() <= tolerance * max(np.abs(wanted[1]).max(), share)


@every_dtype
@given(
    seed=seeds,
    T=st.integers(1, 4),
    B=st.integers(1, 3),
    V=st.integers(1, 40 if JIT else 20),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    leave_out=st.sampled_from(["", "mask", "lengths", "ignore_index", "ignore_index and mask"]),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_every_option_is_the_formula(dtype, seed, T, B, V, smoothing, weighted, leave_out, reduction):
    """Loss and gradient by complex step, for classes."""
    r = rows(seed, T, B, V, dtype)
    counts, targets, options = np.ones((T, B), bool), r["targets"].copy(), {}
    if leave_out == "mask":
        counts, options["mask"] = r["mask"], r["mask"]
    elif leave_out == "lengths":
        counts, options["lengths"] = of_lengths(r["lengths"], T), r["lengths"]
    elif leave_out:
        counts, options["ignore_index"] = r["mask"], IGNORED
        targets[~counts] = IGNORED
        if leave_out.endswith("mask"):
            options["mask"] = np.ones((T, B), bool)
    weight = r["weight"] if weighted else None
    wanted = expected(r, r["targets"], counts, smoothing, weight, reduction)
    options |= {"label_smoothing": smoothing, "weight": weight, "reduction": reduction}
    actual = fr.cross_entropy(r["logits"], targets, **options)
    near(actual, wanted, TOLERANCE[dtype], 1 / counts.sum() if reduction == "mean" else 1.0)
    assert np.all(actual[1][~counts] == 0)
    alone, nothing = fr.cross_entropy(r["logits"], targets, gradient=False, **options)
    assert (alone, nothing) == (actual[0], None)


@every_dtype
@given(seed=seeds, V=st.integers(1, 40 if JIT else 20), smoothing=st.sampled_from([0.0, 0.2]), masked=st.booleans())
def test_targets_that_are_probabilities(dtype, seed, V, smoothing, masked):
    """The same with a distribution for each row; a one-hot one is the class."""
    r = rows(seed, 3, 2, V, dtype)
    counts = r["mask"] if masked else np.ones((3, 2), bool)
    options = {"label_smoothing": smoothing, "mask": r["mask"] if masked else None}
    wanted = expected(r, r["q"], counts, smoothing, None, "mean")
    near(fr.cross_entropy(r["logits"], r["q"], **options), wanted, TOLERANCE[dtype], 1 / counts.sum())
    one_hot = reference.one_hot(r["targets"], V).astype(dtype)
    wanted = fr.cross_entropy(r["logits"], r["targets"], **options)
    near(fr.cross_entropy(r["logits"], one_hot, **options), wanted, TOLERANCE[dtype], 1 / counts.sum())


def test_options_that_say_nothing_change_no_bit():
    """Everything counts, all weights are 1: what was there before the options."""
    r = rows(1, 5, 3, 37, "float32")
    plain = fr.cross_entropy(r["logits"], r["targets"])
    for options in (
        {"mask": np.ones((5, 3), bool)},
        {"lengths": [5, 5, 5]},
        {"ignore_index": -1},
        {"weight": np.ones(37, np.float32)},
        {"label_smoothing": 0},
    ):
        loss, dlogits = fr.cross_entropy(r["logits"], r["targets"], **options)
        assert loss == plain[0]
        assert_same_bits({"dlogits": dlogits}, {"dlogits": plain[1]})


def test_the_mean_of_some_is_the_mean_of_those_alone():
    """Left out by mask, lengths or value: as if never there, bit for bit."""
    r = rows(2, 6, 4, 21, "float32")
    for counts, options in ((r["mask"], {"mask": r["mask"]}), (of_lengths(r["lengths"], 6), {"lengths": r["lengths"]})):
        loss, dlogits = fr.cross_entropy(r["logits"], r["targets"], **options)
        alone, dalone = fr.cross_entropy(r["logits"][counts], r["targets"][counts])
        assert loss == alone
        assert_same_bits({"d": dlogits[counts]}, {"d": dalone})


@every_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_what_does_not_count_may_be_anything(dtype, smoothing):
    """NaN logits and targets that are no class, under a mask; and NaN that counts stays in its row."""
    r = rows(3, 4, 3, 19, dtype)
    mask = np.ones((4, 3), bool)
    mask[1, 2] = mask[3, 0] = False
    clean = fr.cross_entropy(r["logits"], r["targets"], mask=mask, label_smoothing=smoothing, weight=r["weight"])
    r["logits"][~mask], r["targets"][~mask] = np.nan, 10**6
    options = {"label_smoothing": smoothing, "weight": r["weight"]}
    spoilt = fr.cross_entropy(r["logits"], r["targets"], mask=mask, **options)
    assert spoilt[0] == clean[0]
    assert_same_bits({"d": spoilt[1]}, {"d": clean[1]})
    r["logits"][2, 1, 5] = np.nan
    loss, dlogits = fr.cross_entropy(r["logits"], r["targets"], mask=mask, **options)
    assert np.isnan(loss)
    assert np.all(np.isnan(dlogits[2, 1]))
    others = np.ones((4, 3), bool)
    others[2, 1] = False
    assert_same_bits({"d": dlogits[others]}, {"d": clean[1][others]})


@np.errstate(invalid="ignore")  # the NumPy twin warns
@every_dtype
def test_impossible_classes_without_weight(dtype):
    """A class of probability 0 and of weight 0 costs nothing, smoothed or not; one that has weight costs infinity."""
    logits = np.array([[0.5, -np.inf, 1.0, 0.2]], dtype)
    weight = np.array([1, 0, 2, 1], dtype)
    loss, dlogits = fr.cross_entropy(logits, [0], label_smoothing=0.3, weight=weight)
    a, b, c = -reference.log_softmax(logits[0, [0, 2, 3]].astype("float64"))
    assert loss == pytest.approx(0.7 * a + 0.3 * (a + 2 * b + c) / 4, rel=1e-6)
    assert dlogits[0, 1] == 0
    assert np.isfinite(dlogits).all()
    assert fr.cross_entropy(logits, [1], weight=weight, reduction="sum")[0] == 0
    assert fr.cross_entropy(logits, [0], label_smoothing=0.3)[0] == np.inf
    assert np.isfinite(fr.cross_entropy(logits, [0], label_smoothing=0.3)[1]).all()
    q = np.array([[0.25, 0, 0.5, 0.25]], dtype)
    assert np.isfinite(fr.cross_entropy(logits, q)[0])


@every_dtype
def test_large_logits_with_options(dtype):
    """Differences as large as numbers get."""
    large = float(np.finfo(dtype).max) / 8
    logits = np.array([[large, -large, 0.0]], dtype)
    loss, dlogits = fr.cross_entropy(logits, [0], label_smoothing=0.3)
    assert loss == pytest.approx(0.1 * (2 * large + large), rel=1e-6)
    assert np.abs(dlogits - [[0.2, -0.1, -0.1]]).max() < 1e-6


# --- the linear layer in one --------------------------------------------------------------------------------


def head(seed, T, B, H, V, bias=True, dtype="float32"):
    rng = np.random.default_rng(seed)
    layer = fr.Linear(H, V, bias=bias, dtype=dtype, seed=seed % 1000)
    h, targets = rng.standard_normal((T, B, H)).astype(dtype), rng.integers(0, V, (T, B))
    return layer, h, targets


def same(actual, expected):
    """The same bits. Without JIT, where NumPy's products sum as they like, the same numbers."""
    if JIT:
        return assert_same_bits(actual, expected)
    return assert_close(actual, expected, 1e-5)


def in_one(layer, h, targets, **options):
    """Everything that comes out, by name."""
    results = fr.linear_cross_entropy(h, layer.params["weight"], layer.params.get("bias"), targets, **options)
    named = dict(zip(("loss", "dh", "dweight", "dbias"), results, strict=True))
    return {name: np.asarray(a) for name, a in named.items() if a is not None}


def in_two(layer, h, targets, **options):
    """The same by `Linear` and `cross_entropy`."""
    layer.zero_grad()
    logits, tape = layer.forward(h)
    loss, dlogits = fr.cross_entropy(logits, targets, **options)
    dh = layer.backward(tape, dlogits)
    return {"loss": np.asarray(loss), "dh": dh} | {f"d{name}": a.copy() for name, a in layer.grads.items()}


@every_dtype
@given(
    seed=seeds,
    T=st.integers(1, 5),
    B=st.integers(1, 4),
    H=st.integers(1, 20 if JIT else 7),
    V=st.integers(1, 70 if JIT else 20),
    block=st.integers(1, 21),
    bias=st.booleans(),
    reduction=st.sampled_from(["mean", "sum"]),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_one_is_two_bit_for_bit(dtype, seed, T, B, H, V, block, bias, reduction, smoothing):
    """`linear_cross_entropy` is `cross_entropy` of `Linear`, whatever the blocks."""
    layer, h, targets = head(seed, T, B, H, V, bias, dtype)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    expected = in_two(layer, h, targets, **options)
    same(in_one(layer, h, targets, rows=block, **options), expected)
    loss, *nothing = in_one(layer, h, targets, rows=block, gradient=False, **options).values()
    assert nothing == []
    same({"loss": loss}, {"loss": expected["loss"]})


def test_blocks_longer_than_the_product_s_own(set_num_threads):
    """More rows than are summed at a time in one product: the sums over the rows still run in one order."""
    shape = (50, 23, 65, 301) if JIT else (4, 3, 5, 9)  # enough to be shared
    layer, h, targets = head(5, *shape)
    expected = in_two(layer, h, targets)
    for n, block in ((1, None), (2, 700), (3, 333), (3, 1)):
        set_num_threads(n)
        same(in_one(layer, h, targets, rows=block), expected)


@given(seed=seeds, weighted=st.booleans(), by=st.sampled_from(["mask", "lengths", "ignore_index"]))
def test_rows_that_do_not_count_cost_and_spoil_nothing(seed, weighted, by):
    """As if they were not there; NaN in them reaches no weight."""
    r = rows(seed, 5, 3, 11, "float32")
    layer, h, _ = head(seed, 5, 3, 7, 11)
    counts = of_lengths(r["lengths"], 5) if by == "lengths" else r["mask"]
    targets = r["targets"].copy()
    options = {by: {"mask": counts, "lengths": r["lengths"], "ignore_index": IGNORED}[by]}
    if by == "ignore_index":
        targets[~counts] = IGNORED
    weight = {"weight": r["weight"]} if weighted else {}
    expected = in_two(layer, h[counts], r["targets"][counts], **weight)
    h[~counts] = np.nan
    options |= {"class_weight": r["weight"]} if weighted else {}
    actual = in_one(layer, h, targets, rows=4, **options)
    dh = actual.pop("dh")
    same(actual | {"dh": dh[counts]}, expected)
    assert np.all(dh[~counts] == 0)


def test_no_row_counts():
    """The sum over nothing is 0, with gradients of 0."""
    layer, h, targets = head(1, 3, 2, 5, 7)
    for T in (3, 0):
        results = in_one(layer, h[:T], targets[:T], reduction="sum", mask=np.zeros((T, 2), bool))
        assert all(np.all(a == 0) for a in results.values())
        assert results["dh"].shape == (T, 2, 5)


@pytest.mark.skipif(not JIT, reason="without JIT the products hold arrays of their own")
@pytest.mark.parametrize("gradient", [True, False])
def test_memory_is_bounded_by_the_block(gradient):
    """R V, two packings of H V and a little, beside the results: not N V, nor 2 R V. In bytes asked for."""
    N, H, V, R = 4000, 16, 1500, 400
    layer, h, targets = head(1, N, 1, H, V)
    in_one(layer, h[:R], targets[:R], rows=R, gradient=gradient)  # compiles
    asked, live, take = {}, [0, 0], buffers._take

    def counted(size):
        memory = take(size)
        if size >= buffers.LARGE:  # pages that tracemalloc does not see
            asked[id(memory.owner)] = memory, max(size, asked.get(id(memory.owner), (None, 0))[1])
        return memory

    buffers._take = counted
    buffers._free.clear()
    tracemalloc.start()
    try:
        in_one(layer, h, targets, rows=R, gradient=gradient)
        live[:] = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        buffers._take = take
    results = N * H + H * V + V if gradient else 0
    budget = 4 * (results + R * V + 2 * H * V) + 8 * 2 * N  # float64 losses, int64 targets
    slack = 2 << 20  # scratch of products, a late helper keeps one a little longer; the interpreter's own
    assert live[1] + sum(size for _, size in asked.values()) <= budget + slack
    assert slack < 4 * R * V, "two blocks at once would pass"
    assert budget + slack < N * V, "a quarter of all logits would pass"


def test_a_vocabulary_of_50000():
    """In blocks of less than all rows, the same bits."""
    layer, h, targets = head(1, 10, 1, 4, 50_000 if JIT else 500)
    same(in_one(layer, h, targets, rows=3), in_two(layer, h, targets))


# --- arguments ----------------------------------------------------------------------------------------------

X, IDS, W = np.zeros((2, 3, 5), np.float32), np.zeros((2, 3), np.int64), np.ones(5, np.float32)
ON, H, TABLE = np.ones((2, 3), bool), np.zeros((2, 3, 4), np.float32), np.zeros((5, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: fr.cross_entropy(X, IDS, label_smoothing=1.1), ValueError, "label_smoothing is 1.1"),
        (lambda: fr.cross_entropy(X, IDS, label_smoothing=-0.1), ValueError, "label_smoothing is -0.1"),
        (lambda: fr.cross_entropy(X, IDS, label_smoothing=np.nan), ValueError, "label_smoothing is nan"),
        (lambda: fr.cross_entropy(X, IDS, label_smoothing="a bit"), TypeError, "label_smoothing is str"),
        (lambda: fr.cross_entropy(X, IDS, weight=W[:4]), ValueError, r"weight has shape \(4,\), expected \(V,\) .*V=5"),
        (lambda: fr.cross_entropy(X, IDS, weight=W - 2), ValueError, "weight holds -1.0, expected numbers from 0"),
        (lambda: fr.cross_entropy(X, IDS, weight=W.astype(float)), TypeError, "weight .* float64"),
        (lambda: fr.cross_entropy(X, IDS, weight=0 * W), ValueError, "nothing to take the mean of"),
        (lambda: fr.cross_entropy(X, IDS, ignore_index=1.0), TypeError, "ignore_index is float"),
        (lambda: fr.cross_entropy(X, IDS, ignore_index=0), ValueError, "nothing in logits .* counts"),
        (lambda: fr.cross_entropy(X, IDS - 1, ignore_index=-2), ValueError, "targets .* -1 .* V=5"),
        (lambda: fr.cross_entropy(X, IDS, mask=ON[:1]), ValueError, r"mask has shape \(1, 3\), expected \(2, 3\)"),
        (lambda: fr.cross_entropy(X, IDS, mask=IDS), TypeError, "mask has dtype int64, expected bool"),
        (lambda: fr.cross_entropy(X, IDS, mask=~ON), ValueError, "nothing in logits .* counts"),
        (lambda: fr.cross_entropy(X, IDS, mask=ON, lengths=[2, 2, 2]), ValueError, "mask and lengths"),
        (lambda: fr.cross_entropy(X, IDS, lengths=[2, 2]), ValueError, r"lengths has shape \(2,\), expected \(B,\)"),
        (lambda: fr.cross_entropy(X, IDS, lengths=[2, 3, 1]), ValueError, "lengths holds 1 to 3, .* T=2"),
        (lambda: fr.cross_entropy(X, IDS, lengths=[2, -1, 1]), ValueError, "lengths holds -1 to 2"),
        (lambda: fr.cross_entropy(X, IDS, lengths=[2.0, 1, 1]), TypeError, "lengths has dtype float64"),
        (lambda: fr.cross_entropy(X[0], IDS[0], lengths=[1, 1, 1]), ValueError, "lengths needs sequences"),
        (lambda: fr.cross_entropy(X, X - 1), ValueError, "targets holds -1.0, expected numbers from 0"),
        (lambda: fr.cross_entropy(X, X, weight=W), ValueError, "weight is for targets that are classes"),
        (lambda: fr.cross_entropy(X, X, ignore_index=1), ValueError, "ignore_index is for targets that are classes"),
        (lambda: fr.cross_entropy(X, X.astype(float)), TypeError, "targets .* float64"),
        (lambda: fr.linear_cross_entropy(H, TABLE.T, None, IDS), ValueError, r"weight .* \(V, H\) with H=4"),
        (lambda: fr.linear_cross_entropy(H, TABLE, W[:2], IDS), ValueError, r"bias has shape \(2,\), expected .* V=5"),
        (lambda: fr.linear_cross_entropy(H, TABLE[:0], None, IDS), ValueError, r"weight has shape \(0, 4\)"),
        (lambda: fr.linear_cross_entropy(H, TABLE, None, IDS, rows=0), ValueError, "rows is 0"),
        (lambda: fr.linear_cross_entropy(H, TABLE, None, IDS, rows=2.5), TypeError, "rows is float"),
        (lambda: fr.linear_cross_entropy(H, TABLE, None, IDS[:1]), ValueError, r"targets has shape \(1, 3\)"),
        (lambda: fr.linear_cross_entropy(H, TABLE, None, X), TypeError, "targets has dtype float32"),
        (lambda: fr.linear_cross_entropy(H, TABLE, None, IDS, "none"), ValueError, "reduction is 'none'"),
        (
            lambda: fr.linear_cross_entropy(H, TABLE, None, IDS, class_weight=W[:2]),
            ValueError,
            r"class_weight has shape \(2,\)",
        ),
    ],
)
def test_wrong_arguments(call, kind, said):
    """The argument, what was expected, what came."""
    with pytest.raises(kind, match=said):
        call()


# --- bits ---------------------------------------------------------------------------------------------------


def test_bits_do_not_depend_on_threads(set_num_threads):
    """All options at once, on enough rows to be shared."""
    T, B, V = (60, 25, 300) if JIT else (3, 2, 19)
    r = rows(9, T, B, V, "float32")
    options = {"weight": r["weight"], "label_smoothing": 0.1, "lengths": r["lengths"]}

    def computed():
        loss, dlogits = fr.cross_entropy(r["logits"], r["targets"], **options)
        dense, ddense = fr.cross_entropy(r["logits"], r["q"])
        return {"loss": np.asarray(loss), "dlogits": dlogits, "dense": np.asarray(dense), "ddense": ddense}

    set_num_threads(1)
    expected = computed()
    for n in (2, 3):
        set_num_threads(n)
        assert_same_bits(computed(), expected)


def test_a_planted_error_is_seen():
    """The check that the others rest on fails for a gradient that is off by a thousandth, or unweighted."""
    r = rows(4, 3, 2, 7)
    wanted = expected(r, r["targets"], r["mask"], 0.1, r["weight"], "mean")
    loss, dlogits = fr.cross_entropy(r["logits"], r["targets"], mask=r["mask"], label_smoothing=0.1, weight=r["weight"])
    near((loss, dlogits), wanted, 1e-13, 0.1)
    unweighted = fr.cross_entropy(r["logits"], r["targets"], mask=r["mask"], label_smoothing=0.1)
    for wrong in ((loss, 1.001 * dlogits), (1.001 * loss, dlogits), unweighted):
        with pytest.raises(AssertionError):
            near(wrong, wanted, 1e-6, 0.1)
