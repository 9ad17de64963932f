"""Likelihoods of numbers: Bernoulli, Gaussian, mixtures, the squared error; divergences and entropies."""

import math

import numpy as np
import pytest
import reference
from helpers import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

import fastrnn as fr

T, B = 3, 2
COUNTS = np.array([[True, False], [True, True], [False, True]])
LENGTHS = np.array([3, 1])


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


class Head:
    """A likelihood: its arguments by name, those that have a gradient first, and the reference's losses."""

    def __init__(self, name, shapes, losses, features=False, **options):
        self.name, self.shapes, self.losses, self.features, self.options = name, shapes, losses, features, options

    def arrays(self, seed, K, O):  # noqa: E741 - the glossary's letter
        """Random arguments, (T, B, ...), not so large that the plain formulae lose their digits; targets of a
        Bernoulli are probabilities, variances are from 0.2.
        """
        sizes = {"K": K, "O": O, "2": 2}
        made = {
            name: 0.6 * numbers([seed, number], T, B, *(sizes[letter] for letter in letters.split()))
            for number, (name, letters) in enumerate(self.shapes.items())
        }
        if self.name == "bernoulli_nll":
            made["targets"] = reference.sigmoid(made["targets"])
        if "variance" in made:
            made["variance"] = 0.2 + made["variance"] ** 2
        return made

    def __call__(self, arrays, **options):
        return getattr(fr, self.name)(**arrays, **self.options, **options)

    def loss(self, arrays, counts, reduction):
        losses = self.losses(**arrays)
        counts = counts.reshape(counts.shape + (1,) * (self.features))
        shape = (T, B, *losses.shape[losses.ndim - 1 :]) if self.features else (T, B)
        return reference.reduced(losses, np.broadcast_to(counts, shape), reduction)


HEADS = {
    "mse": Head("mse", {"y": "O", "target": "O"}, lambda y, target: (y - target) ** 2, True),
    "bernoulli": Head("bernoulli_nll", {"logits": "O", "targets": "O"}, reference.bernoulli, True),
    "fixed variance": Head(
        "gaussian_nll",
        {"mean": "O", "targets": "O"},
        lambda mean, targets: reference.gaussian(mean, 0.7, targets) - np.log(2 * np.pi) / 2,
        True,
        variance=0.7,
    ),
    "variance": Head(
        "gaussian_nll", {"mean": "O", "variance": "O", "targets": "O"}, reference.gaussian, True, full=True
    ),
    "log variance": Head(
        "gaussian_nll",
        {"mean": "O", "log_variance": "O", "targets": "O"},
        lambda mean, log_variance, targets: reference.gaussian(mean, np.exp(log_variance), targets),
        True,
        full=True,
    ),
    "full covariance": Head(
        "multivariate_gaussian_nll", {"mean": "O", "factor": "O O", "targets": "O"}, reference.multivariate_gaussian
    ),
    "mixture": Head(
        "gaussian_mixture_nll",
        {"logits": "K", "mean": "K O", "log_scale": "K O", "targets": "O"},
        reference.gaussian_mixture,
    ),
    "round mixture": Head(
        "gaussian_mixture_nll",
        {"logits": "K", "mean": "K O", "log_scale": "K", "targets": "O"},
        lambda logits, mean, log_scale, targets: reference.gaussian_mixture(
            logits, mean, log_scale[..., None] + 0 * mean.real, targets
        ),
    ),
    "bivariate mixture": Head(
        "bivariate_mixture_nll",
        {"logits": "K", "mean": "K 2", "log_scale": "K 2", "correlation": "K", "targets": "2"},
        reference.bivariate_mixture,
    ),
}
every_head = pytest.mark.parametrize("name", HEADS)


def solved(head, arrays, **options):
    """Loss and gradients by name, what `Head` calls d<argument>."""
    loss, *gradients = head(arrays, **options)
    assert type(loss) is float
    names = [name for name in arrays if name not in ("target", "targets")]
    gradients = [d for d in gradients if d is not None]
    return loss, {f"d{name}": d for name, d in zip(names, gradients, strict=True)}


def by_reference(head, arrays, counts, reduction):
    """The same, by complex step."""
    parameters = {name: a for name, a in arrays.items() if name not in ("target", "targets")}
    fixed = {name: a for name, a in arrays.items() if name not in parameters}

    def loss(a):
        return head.loss({**a, **fixed}, counts, reduction)

    gradients = reference.complex_step(loss, parameters)
    return float(loss(parameters)), {f"d{name}": d for name, d in gradients.items()}


@every_head
@given(
    seed=seeds,
    K=st.integers(1, 4),
    O=st.integers(1, 4),
    by=st.sampled_from(["", "mask", "lengths"]),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_loss_and_gradients_are_the_formula(name, seed, K, O, by, reduction):  # noqa: E741
    """Against the density as it is written, and its complex step."""
    head = HEADS[name]
    arrays = head.arrays(seed, K, O)
    counts = {"": np.ones((T, B), bool), "mask": COUNTS, "lengths": np.arange(T)[:, None] < LENGTHS}[by]
    options = {"mask": {"mask": COUNTS}, "lengths": {"lengths": LENGTHS}}.get(by, {})
    loss, gradients = solved(head, arrays, reduction=reduction, **options)
    expected, dexpected = by_reference(head, arrays, counts, reduction)
    assert loss == pytest.approx(expected, rel=1e-9, abs=1e-9)
    floored = {name: d for name, d in dexpected.items() if np.abs(d).max() > 1e-6}  # a lone component has no choice
    assert_close({name: gradients[name] for name in floored}, floored, 1e-8)
    for d, wanted in ((gradients[name], dexpected[name]) for name in set(dexpected) - set(floored)):
        assert np.abs(d - wanted).max() < 1e-12
    for d in gradients.values():
        assert np.all(d[~counts] == 0)


@every_head
def test_float32_is_the_same_to_its_digits(name):
    """Gradients in the type of what they belong to."""
    head = HEADS[name]
    arrays = {n: a.astype(np.float32) for n, a in head.arrays(5, 3, 2).items()}
    loss, gradients = solved(head, arrays)
    expected, dexpected = solved(head, {n: a.astype(np.float64) for n, a in arrays.items()})
    assert loss == pytest.approx(expected, rel=1e-6)
    assert {d.dtype for d in gradients.values()} == {np.dtype("float32")}
    assert_close(gradients, dexpected, 1e-6)


@every_head
def test_nan_reaches_its_row_alone(name):
    """In any argument, in any row; and nobody at all where the row does not count."""
    head = HEADS[name]
    arrays = head.arrays(7, 3, 2)
    _, clean = solved(head, arrays)
    masked_loss, masked = solved(head, arrays, mask=COUNTS)
    for argument in arrays:
        for row in np.ndindex(T, B):
            spoilt = {n: a.copy() for n, a in arrays.items()}
            spoilt[argument][row] = np.nan
            others = np.ones((T, B), bool)
            others[row] = False
            if COUNTS[row]:
                if argument != "targets" or name != "bernoulli":
                    loss, gradients = solved(head, spoilt)
                    assert math.isnan(loss)
                    assert all(np.isnan(d[row]).any() for d in gradients.values()), argument
                    kept = {n: d[others] for n, d in gradients.items()}
                    assert_same_bits(kept, {n: d[others] for n, d in clean.items()})
            else:
                loss, gradients = solved(head, spoilt, mask=COUNTS)
                assert loss == masked_loss
                assert_same_bits(gradients, masked)


@every_head
def test_planted_errors_are_seen(name):
    """The comparison of the tests above fails for gradients that are a millionth off."""
    head = HEADS[name]
    arrays = head.arrays(9, 3, 2)
    _, gradients = solved(head, arrays)
    _, expected = by_reference(head, arrays, np.ones((T, B), bool), "mean")
    assert_close(gradients, expected, 1e-10)
    for n in gradients:
        with pytest.raises(AssertionError, match="is off by"):
            assert_close({**gradients, n: gradients[n] * (1 + 1e-6)}, expected, 1e-8)


# --- one by one ---------------------------------------------------------------------------------------------


def test_mask_of_single_elements():
    """A mask of the whole shape, for what has a loss for each element; the mean is over those."""
    y, target, mask = numbers(1, 3, 2, 5), numbers(2, 3, 2, 5), numbers(3, 3, 2, 5) > 0
    loss, dy = fr.mse(y, target, mask=mask)
    assert loss == pytest.approx(((y - target) ** 2)[mask].mean(), rel=1e-14)
    assert np.allclose(dy, np.where(mask, 2 * (y - target) / mask.sum(), 0), rtol=1e-14, atol=0)
    loss, dmean, _ = fr.gaussian_nll(y, target, variance=0.5, mask=mask, reduction="sum")
    assert loss == pytest.approx((y - target)[mask] @ (y - target)[mask] + mask.sum() * math.log(0.5) / 2)
    assert np.all(dmean[~mask] == 0)


def test_fixed_variance_is_the_squared_error():
    """Half of its sum over v, and a constant."""
    y, target = numbers(1, 3, 2, 5), numbers(2, 3, 2, 5)
    loss, dmean, nothing = fr.gaussian_nll(y, target, variance=0.3, full=True)
    squares, dy = fr.mse(y, target)
    assert nothing is None
    assert loss == pytest.approx(squares / 0.6 + math.log(2 * math.pi * 0.3) / 2, rel=1e-14)
    assert np.allclose(dmean, dy / 0.6, rtol=1e-13, atol=0)


def test_mse_sum_and_of_nothing():
    """`reduction="sum"` is the mean times N, and 0 of nothing."""
    y, target = numbers(1, 3, 2, 5), numbers(2, 3, 2, 5)
    (mean, dmean), (total, dtotal) = fr.mse(y, target), fr.mse(y, target, "sum")
    assert total == pytest.approx(30 * mean)
    assert np.allclose(dtotal, 30 * dmean, rtol=1e-14, atol=0)
    loss, dy = fr.mse(y[:0], target[:0], reduction="sum")
    assert (loss, dy.shape) == (0.0, (0, 2, 5))


def test_bernoulli_of_extremes():
    """Sure and right costs nothing, sure and wrong as much as the logit says; infinity is certainty."""
    logits = np.array([1000.0, -1000.0, 1000.0, -1000.0, np.inf, -np.inf, 1e308])
    loss, d = fr.bernoulli_nll(logits, [1, 0, 0, 1, 1, 0, 1], reduction="sum")
    assert loss == 2000.0
    assert d.tolist() == [0, 0, 1, -1, 0, 0, 0]
    assert fr.bernoulli_nll(np.array([np.inf]), [0])[0] == np.inf
    loss, d = fr.bernoulli_nll(np.array([-50.0]), np.array([0.0]))
    assert loss == pytest.approx(math.exp(-50), rel=1e-12)
    assert d[0] == pytest.approx(math.exp(-50), rel=1e-12)
    booleans, integers = (fr.bernoulli_nll(np.zeros(2), np.array([1, 0], kind)) for kind in ("bool", "int64"))
    assert booleans[0] == integers[0]


def test_gaussian_of_extremes():
    """Variances that overflow or vanish when they are taken out of the logarithm; `eps` for those given as they are."""
    log_variance = np.array([-1500.0, 1500.0, -np.inf])
    loss, dmean, d = fr.gaussian_nll(np.zeros(3), np.zeros(3), log_variance=log_variance, reduction="sum")
    assert loss == -np.inf
    assert dmean.tolist() == [0, 0, 0]
    assert d.tolist() == [0.5, 0.5, 0.5]
    loss, dmean, d = fr.gaussian_nll(np.zeros(2), np.ones(2), variance=np.array([0.0, 1e-3]), eps=1e-2, reduction="sum")
    assert loss == pytest.approx(math.log(1e-2) + 1 / 1e-2)
    assert np.allclose(dmean, -100.0)
    assert np.allclose(d, (1 - 100.0) / 0.02)


def test_one_variance_for_all_features():
    """A last axis of 1, whose gradient is the sum of those of the features."""
    mean, targets, v = numbers(1, 4, 3), numbers(2, 4, 3), numbers(3, 4, 1) ** 2 + 0.1
    for spread in ({"variance": v}, {"log_variance": v}):
        ((name, a),) = spread.items()
        loss, dmean, d = fr.gaussian_nll(mean, targets, **spread)
        whole, dwhole, dfull = fr.gaussian_nll(mean, targets, **{name: np.repeat(a, 3, axis=1)})
        assert loss == pytest.approx(whole)
        assert_close({"m": dmean, "v": d}, {"m": dwhole, "v": dfull.sum(-1, keepdims=True)}, 1e-13)


def test_full_covariance_reads_no_upper_triangle():
    """NaN above the diagonal changes nothing, and 0 comes back for it."""
    mean, factor, targets = numbers(1, 5, 4), numbers(2, 5, 4, 4), numbers(3, 5, 4)
    expected = fr.multivariate_gaussian_nll(mean, np.tril(factor), targets)
    upper = np.triu(np.ones((4, 4), bool), 1)
    factor[:, upper] = np.nan
    actual = fr.multivariate_gaussian_nll(mean, factor, targets)
    assert actual[0] == expected[0]
    assert_same_bits({"m": actual[1], "f": actual[2]}, {"m": expected[1], "f": expected[2]})
    assert np.all(actual[2][:, upper] == 0)


def test_full_covariance_that_is_diagonal():
    """Is `gaussian_nll`, where the determinant itself would underflow or overflow too."""
    for size in (0.0, -300.0, 300.0):
        half = size + numbers(1, 3, 6)
        mean = numbers(2, 3, 6)
        targets = mean + np.exp(half) * numbers(3, 3, 6)
        factor = half[..., None] * np.eye(6)
        loss, dmean, dfactor = fr.multivariate_gaussian_nll(mean, factor, targets, reduction="sum")
        other, dother, dlog = fr.gaussian_nll(mean, targets, log_variance=2 * half, reduction="sum", full=True)
        assert loss == pytest.approx(other, rel=1e-12)
        diagonal = dfactor[:, range(6), range(6)]
        assert_close({"m": dmean, "d": diagonal}, {"m": dother, "d": 2 * dlog}, 1e-9)


def test_mixture_far_from_all_its_components():
    """The density is 1e-20000 there; its logarithm and its gradients are ordinary numbers."""
    logits, mean, log_scale = np.zeros(2), np.array([[0.0], [1.0]]), np.zeros(2)
    loss, dlogits, dmean, dlog_scale = fr.gaussian_mixture_nll(logits, mean, log_scale, np.array([301.0]))
    assert loss == pytest.approx(300.0**2 / 2 + math.log(2) + math.log(2 * math.pi) / 2, rel=1e-14)
    assert np.allclose(dlogits, [0.5, -0.5])
    assert np.allclose(dmean, [[0], [-300]])
    assert np.allclose(dlog_scale, [0, 1 - 300.0**2])
    narrow = np.array([-800.0, 0.0])  # a component of no width, beside the target
    results = fr.gaussian_mixture_nll(logits, mean, narrow, np.array([0.5]))
    assert all(np.isfinite(a).all() for a in results)
    absent = np.array([0.0, -np.inf])  # and one of no weight
    results = fr.gaussian_mixture_nll(absent, mean, log_scale, np.array([0.5]))
    assert results[0] == pytest.approx(0.125 + math.log(2 * math.pi) / 2)
    assert results[1].tolist() == [0, 0]
    assert results[2][1] == 0


@pytest.mark.parametrize("r", [0.3, 5.0, 15.0, -15.0])
def test_correlations_up_to_1(r):
    """Two numbers along a line: with z[1] = rho z[0] + sqrt(1 - rho^2) e, the density is that of z[0] and of e."""
    z, e = 0.7, -1.3
    other = math.tanh(r) * z + e / math.cosh(r)
    zero, two = np.zeros((1, 1)), np.zeros((1, 1, 2))
    loss, _, dmean, _, dr = fr.bivariate_mixture_nll(zero, two, two, np.full((1, 1), r), np.array([[z, other]]))
    expected = (z**2 + e**2) / 2 + math.log(2 * math.pi) - math.log(math.cosh(r))
    # What is left of e in `other` is known to 1e-16 cosh r.
    assert loss == pytest.approx(expected, rel=1e-14 * math.cosh(r))
    assert np.isfinite(dmean).all()
    assert np.isfinite(dr).all()


def test_mixture_of_one_is_the_gaussian():
    """One component: `gaussian_nll`, summed over a row; with round ones too."""
    mean, s, t = numbers(1, 4, 1, 3), numbers(2, 4, 1), numbers(3, 4, 3)
    loss, dlogits, dmean, ds = fr.gaussian_mixture_nll(np.zeros((4, 1)), mean, s, t, reduction="sum")
    other, dother, dlog = fr.gaussian_nll(mean[:, 0], t, log_variance=2 * s, full=True, reduction="sum")
    assert loss == pytest.approx(other)
    assert np.all(dlogits == 0)
    assert_close({"m": dmean[:, 0], "s": ds}, {"m": dother, "s": 2 * dlog}, 1e-12)


# --- divergences and entropies ------------------------------------------------------------------------------


def distributions(kind, seed, O):  # noqa: E741
    """Parameters of three distributions."""
    if kind in ("categorical", "bernoulli"):
        return 2 * numbers(seed, 3, O)
    spread = (3, O, O) if kind == "multivariate_gaussian" else (3, O)
    return numbers([seed, 1], 3, O), 0.7 * numbers([seed, 2], *spread)


KINDS = ["categorical", "bernoulli", "gaussian", "multivariate_gaussian"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@given(seed=seeds, O=st.integers(1, 5))
def test_divergence_is_zero_only_of_the_same(kind, seed, O):  # noqa: E741
    """Never negative, 0 for p and p, and not symmetric."""
    p, q = distributions(kind, [seed, 1], O), distributions(kind, [seed, 2], O)
    assert np.abs(fr.kl_divergence(kind, p, p)).max() < 1e-12
    forward, back = fr.kl_divergence(kind, p, q), fr.kl_divergence(kind, q, p)
    assert forward.min() > -1e-14
    assert forward.dtype == np.float64
    assert forward.shape == back.shape == fr.entropy(kind, p).shape
    if not (kind == "categorical" and O == 1):
        assert np.all(forward > 0)
        assert not np.allclose(forward, back, rtol=1e-9, atol=0)


@given(seed=seeds, V=st.integers(1, 9))
def test_divergence_is_cross_entropy_less_entropy(seed, V):
    """The notes' identity: over all classes with their probabilities, and for yes and no."""
    p, q = 2 * numbers([seed, 1], 3, V), 2 * numbers([seed, 2], 3, V)
    cross = np.array([fr.cross_entropy(b, fr.softmax(a))[0] for a, b in zip(p, q, strict=True)])
    difference = cross - fr.entropy("categorical", p)
    assert np.allclose(fr.kl_divergence("categorical", p, q), difference, rtol=1e-9, atol=1e-12)
    cross = np.array([[fr.bernoulli_nll(b, reference.sigmoid(a))[0] for a, b in zip(*ab)] for ab in zip(p, q)])
    difference = cross - fr.entropy("bernoulli", p)
    assert np.allclose(fr.kl_divergence("bernoulli", p, q), difference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS[2:])
def test_divergence_of_densities_is_their_integral(kind):
    """E[log p - log q] and E[-log p] over p by Gauss-Hermite quadrature, exact for polynomials of degree 2."""
    p, q = distributions(kind, 4, 2), distributions(kind, 5, 2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    z = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    w = np.outer(weights, weights).reshape(-1) / (2 * np.pi)
    for row in range(3):
        mean, spread = p[0][row], p[1][row]
        L = reference.cholesky(spread) if kind == "multivariate_gaussian" else np.diag(np.exp(spread / 2))

        def minus_log(mean, spread, x):
            if kind == "multivariate_gaussian":
                return np.array([reference.multivariate_gaussian(mean, spread, one) for one in x])
            return reference.gaussian(mean, np.exp(spread), x).sum(-1)

        x = mean + z @ L.T
        entropy = w @ minus_log(mean, spread, x)
        divergence = w @ minus_log(q[0][row], q[1][row], x) - entropy
        assert fr.entropy(kind, p)[row].sum() == pytest.approx(entropy, rel=1e-12)
        assert fr.kl_divergence(kind, p, q)[row].sum() == pytest.approx(divergence, rel=1e-10)


def test_divergence_of_certainties():
    """0 log 0 is 0; what q cannot be and p can is infinitely far; NaN stays in its row."""
    inf = np.inf
    p = np.array([[0, -inf, 0], [0, -inf, 0], [0, 0, 0], [0, np.nan, 0]])
    q = np.array([[0, 0, 0], [0, -inf, 0], [0, -inf, 0], [0, 0, 0]])
    kl = fr.kl_divergence("categorical", p, q)
    assert np.allclose(kl, [math.log(1.5), 0, inf, np.nan], equal_nan=True)
    assert np.allclose(fr.entropy("categorical", p[:2]), math.log(2))
    a, b = np.array([inf, inf, -inf, 800.0, np.nan, inf]), np.array([inf, -inf, 0, -800.0, 0, np.nan])
    kl = fr.kl_divergence("bernoulli", a, b)
    assert np.allclose(kl, [0, inf, math.log(2), 800.0, np.nan, np.nan], equal_nan=True)


# --- arguments ----------------------------------------------------------------------------------------------

Y, ON = np.zeros((3, 2, 4)), np.ones((3, 2), bool)
K5, KO, LL = np.zeros((3, 2, 5)), np.zeros((3, 2, 5, 4)), np.zeros((3, 2, 4, 4))


@pytest.mark.parametrize(
    ("call", "kind", "said"),
    [
        (lambda: fr.mse(Y, Y, "none"), ValueError, "reduction is 'none', expected 'mean' or 'sum'"),
        (lambda: fr.mse(Y, Y, mask=ON[:2]), ValueError, r"mask .* \(2, 2\), expected \(3, 2, 4\) or \(3, 2\)"),
        (lambda: fr.mse(Y, Y, mask=~ON), ValueError, "nothing in y of shape .* counts"),
        (lambda: fr.mse(Y, Y, mask=Y), TypeError, "mask has dtype float64"),
        (lambda: fr.mse(Y, Y, lengths=[4, 0]), ValueError, "lengths holds 0 to 4, .* T=3"),
        (lambda: fr.mse(Y[0, 0], Y[0, 0], lengths=[1]), ValueError, "lengths needs sequences"),
        (lambda: fr.bernoulli_nll(Y, Y + 1.5), ValueError, "targets holds 1.5, expected numbers from 0 to 1"),
        (lambda: fr.bernoulli_nll(Y, ON), ValueError, r"targets has shape \(3, 2\), expected the shape of logits"),
        (lambda: fr.bernoulli_nll(Y.astype("float32"), Y), TypeError, "targets has dtype float64"),
        (lambda: fr.gaussian_nll(Y, Y), ValueError, "variance and log_variance: pass one"),
        (lambda: fr.gaussian_nll(Y, Y, 1.0, Y), ValueError, "variance and log_variance: pass one"),
        (lambda: fr.gaussian_nll(Y, Y, 0.0), ValueError, "variance is 0.0, expected a finite number above 0"),
        (lambda: fr.gaussian_nll(Y, Y, True), TypeError, "variance is bool"),
        (lambda: fr.gaussian_nll(Y, Y, Y - 1), ValueError, "variance holds -1.0"),
        (lambda: fr.gaussian_nll(Y, Y, Y[..., :2]), ValueError, r"variance .* \(3, 2, 4\) or \(3, 2, 1\)"),
        (lambda: fr.gaussian_nll(Y, Y, log_variance=Y[0]), ValueError, r"log_variance has shape \(2, 4\)"),
        (lambda: fr.gaussian_nll(Y, Y[0], 1.0), ValueError, r"targets has shape \(2, 4\)"),
        (lambda: fr.gaussian_nll(Y, Y, 1.0, eps=0), ValueError, "eps is 0"),
        (lambda: fr.multivariate_gaussian_nll(Y, Y, Y), ValueError, r"factor .* \(3, 2, 4\), .* \(3, 2, 4, 4\)"),
        (lambda: fr.multivariate_gaussian_nll(Y, LL, Y[0]), ValueError, r"targets has shape \(2, 4\)"),
        (lambda: fr.multivariate_gaussian_nll(Y, LL, Y, mask=Y > 0), ValueError, r"expected \(3, 2\)$"),
        (lambda: fr.gaussian_mixture_nll(K5, Y, K5, Y), ValueError, r"mean .* \(\.\.\., K, O\) with K=5"),
        (lambda: fr.gaussian_mixture_nll(K5, KO[0], K5, Y), ValueError, "mean has shape"),
        (lambda: fr.gaussian_mixture_nll(K5, KO, Y, Y), ValueError, "log_scale has shape .* K=5, O=4"),
        (lambda: fr.gaussian_mixture_nll(K5, KO, K5, K5), ValueError, r"targets .* with O=4"),
        (lambda: fr.gaussian_mixture_nll(K5, KO, K5, Y[0]), ValueError, r"targets has shape \(2, 4\)"),
        (lambda: fr.gaussian_mixture_nll(K5[..., :0], KO, K5, Y), ValueError, "logits .* K from 1"),
        (lambda: fr.bivariate_mixture_nll(K5, KO, KO, K5, Y), ValueError, r"mean .* expected \(\.\.\., K, 2\)"),
        (
            lambda: fr.bivariate_mixture_nll(K5, KO[..., :2], KO[..., :2], Y, Y[..., :2]),
            ValueError,
            "correlation has shape .* of logits",
        ),
        (lambda: fr.kl_divergence("gamma", Y, Y), ValueError, "kind is 'gamma', expected 'categorical'"),
        (lambda: fr.kl_divergence("gaussian", Y, Y), TypeError, r"p is ndarray, expected the tuple \(mean, log_var"),
        (lambda: fr.kl_divergence("gaussian", (Y, Y), (Y[0], Y[0])), ValueError, r"q: mean has shape \(2, 4\)"),
        (lambda: fr.kl_divergence("categorical", Y, Y[0]), ValueError, r"q: logits has shape \(2, 4\)"),
        (lambda: fr.entropy("gaussian", (Y, Y[0])), ValueError, r"p: log_variance has shape \(2, 4\)"),
        (lambda: fr.entropy("multivariate_gaussian", (Y, Y)), ValueError, "p: factor has shape"),
        (lambda: fr.entropy("categorical", Y[..., :0]), ValueError, "V from 1"),
        (lambda: fr.entropy("bernoulli", "maybe"), TypeError, "p: logits is str"),
    ],
)
def test_wrong_arguments(call, kind, said):
    """The argument, what was expected, what came."""
    with pytest.raises(kind, match=said):
        call()
