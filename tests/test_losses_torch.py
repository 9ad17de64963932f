"""PyTorch's likelihoods, losses and divergences: the same values, and the same gradients by its autograd."""

import numpy as np
import pytest
from helpers import assert_close, import_or_skip

import fastrnn as fr

torch = import_or_skip("torch")
F, D = torch.nn.functional, torch.distributions
torch.set_num_threads(1)  # its threads spin for a while after each call, on the processors that ours want

T, B, V, K, H = 4, 3, 7, 3, 6
O = 5  # noqa: E741 - the glossary's letter
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def numbers(name, *shape, dtype="float64"):
    return np.random.default_rng(list(name.encode())).standard_normal(shape).astype(dtype)


def solve(f, **arrays):
    """The value of f and its gradient by every array."""
    tensors = {name: torch.from_numpy(a).requires_grad_() for name, a in arrays.items()}
    loss = f(**tensors)
    loss.backward()
    return {"loss": loss.detach().numpy()} | {f"d{name}": t.grad.numpy() for name, t in tensors.items()}


def ours(results, *names):
    """What a function of ours returned, under the names that `solve` gives."""
    loss, *gradients = results
    kept = [d for d in gradients if d is not None]
    return {"loss": np.asarray(loss)} | {f"d{name}": d for name, d in zip(names, kept, strict=True)}


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
@pytest.mark.parametrize("ignore", [None, -100, 2])
def test_cross_entropy(dtype, reduction, weighted, smoothing, ignore):
    """Weights, smoothing, ignored targets, all together."""
    logits, weight = numbers("logits", T * B, V, dtype=dtype), abs(numbers("weight", V, dtype=dtype)) + np.float32(0.1)
    targets = np.random.default_rng(1).integers(0, V, T * B)
    targets[[1, 5]] = 2 if ignore is None else ignore
    options = {"reduction": reduction, "label_smoothing": smoothing}
    peer = solve(
        lambda logits: F.cross_entropy(
            logits,
            torch.from_numpy(targets),
            weight=torch.from_numpy(weight) if weighted else None,
            **({} if ignore is None else {"ignore_index": ignore}),
            **options,
        ),
        logits=logits,
    )
    mine = fr.cross_entropy(logits, targets, weight=weight if weighted else None, ignore_index=ignore, **options)
    assert_close(ours(mine, "logits"), peer, TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_cross_entropy_of_probabilities(dtype, smoothing):
    """A distribution for each row."""
    logits, q = numbers("logits", T * B, V, dtype=dtype), fr.softmax(numbers("q", T * B, V, dtype=dtype))
    peer = solve(lambda logits: F.cross_entropy(logits, torch.from_numpy(q), label_smoothing=smoothing), logits=logits)
    assert_close(ours(fr.cross_entropy(logits, q, label_smoothing=smoothing), "logits"), peer, TOLERANCE[dtype])


@every_dtype
def test_linear_cross_entropy(dtype):
    """Every gradient, in blocks of 5 rows."""
    arrays = {n: numbers(n, *s, dtype=dtype) for n, s in (("h", (T * B, H)), ("weight", (V, H)), ("bias", (V,)))}
    targets = np.random.default_rng(1).integers(0, V, T * B)
    peer = solve(
        lambda h, weight, bias: F.cross_entropy(
            F.linear(h, weight, bias), torch.from_numpy(targets), label_smoothing=0.1
        ),
        **arrays,
    )
    mine = fr.linear_cross_entropy(*arrays.values(), targets, label_smoothing=0.1, rows=5)
    assert_close(ours(mine, *arrays), peer, TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_bernoulli_nll(dtype, reduction):
    """binary_cross_entropy_with_logits, and the distribution's own."""
    logits, targets = 5 * numbers("logits", T, B, O, dtype=dtype), abs(np.sin(numbers("t", T, B, O, dtype=dtype)))
    peer = solve(
        lambda logits: F.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets), reduction=reduction),
        logits=logits,
    )
    assert_close(ours(fr.bernoulli_nll(logits, targets, reduction), "logits"), peer, TOLERANCE[dtype])


@every_dtype
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("features", [O, 1])
def test_gaussian_nll(dtype, reduction, full, features):
    """gaussian_nll_loss, variances below eps included, one for each feature or one for all of a row."""
    mean, targets = numbers("mean", T, B, O, dtype=dtype), numbers("t", T, B, O, dtype=dtype)
    variance = abs(numbers("v", T, B, features, dtype=dtype))
    options = {"full": full, "eps": 0.3, "reduction": reduction}
    assert (variance < 0.3).any()
    peer = solve(
        lambda mean, variance: F.gaussian_nll_loss(mean, torch.from_numpy(targets), variance, **options),
        mean=mean,
        variance=variance,
    )
    mine = fr.gaussian_nll(mean, targets, variance, **options)
    assert_close(ours(mine, "mean", "variance"), peer, TOLERANCE[dtype])


def factor_of(factor):
    """L, by PyTorch's own transform."""
    return D.transforms.LowerCholeskyTransform()(factor)


def mean_of(distribution, targets):
    return -distribution.log_prob(torch.from_numpy(targets)).mean()


def test_multivariate_gaussian_nll():
    """MultivariateNormal by its Cholesky factor."""
    arrays = {"mean": numbers("mean", T, B, O), "factor": numbers("factor", T, B, O, O)}
    targets = numbers("t", T, B, O)
    peer = solve(
        lambda mean, factor: mean_of(D.MultivariateNormal(mean, scale_tril=factor_of(factor)), targets), **arrays
    )
    assert_close(ours(fr.multivariate_gaussian_nll(*arrays.values(), targets), *arrays), peer, 1e-12)


@pytest.mark.parametrize("round_ones", [False, True])
def test_gaussian_mixture_nll(round_ones):
    """MixtureSameFamily of independent Normals."""
    arrays = {
        "logits": numbers("logits", T, B, K),
        "mean": numbers("mean", T, B, K, O),
        "log_scale": numbers("s", T, B, K, *([] if round_ones else [O])),
    }
    targets = numbers("t", T, B, O)

    def loss(logits, mean, log_scale):
        scale = log_scale.exp()[..., None] if round_ones else log_scale.exp()
        components = D.Independent(D.Normal(mean, scale), 1)
        return mean_of(D.MixtureSameFamily(D.Categorical(logits=logits), components), targets)

    assert_close(ours(fr.gaussian_mixture_nll(*arrays.values(), targets), *arrays), solve(loss, **arrays), 1e-12)


def test_bivariate_mixture_nll():
    """MixtureSameFamily of MultivariateNormals with the covariance written out."""
    arrays = {
        "logits": numbers("logits", T, B, K),
        "mean": numbers("mean", T, B, K, 2),
        "log_scale": numbers("s", T, B, K, 2),
        "correlation": numbers("r", T, B, K),
    }
    targets = numbers("t", T, B, 2)

    def loss(logits, mean, log_scale, correlation):
        s, rho = log_scale.exp(), torch.tanh(correlation)
        both = rho * s[..., 0] * s[..., 1]
        covariance = torch.stack([s[..., 0] ** 2, both, both, s[..., 1] ** 2], -1).reshape(T, B, K, 2, 2)
        components = D.MultivariateNormal(mean, covariance)
        return mean_of(D.MixtureSameFamily(D.Categorical(logits=logits), components), targets)

    mine = ours(fr.bivariate_mixture_nll(*arrays.values(), targets), *arrays)
    assert_close(mine, solve(loss, **arrays), 1e-11)


def peers(kind, p):
    """The distribution of PyTorch."""
    if kind == "categorical":
        return D.Categorical(logits=torch.from_numpy(p))
    if kind == "bernoulli":
        return D.Bernoulli(logits=torch.from_numpy(p))
    mean, spread = map(torch.from_numpy, p)
    if kind == "gaussian":
        return D.Normal(mean, torch.exp(spread / 2))
    return D.MultivariateNormal(mean, scale_tril=factor_of(spread))


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian", "multivariate_gaussian"])
def test_divergences_and_entropies(kind):
    """torch.distributions.kl_divergence, and each distribution's entropy."""
    shape = (T, B, O, O) if kind == "multivariate_gaussian" else (T, B, O)
    p, q = ((numbers(f"m{n}", T, B, O), numbers(f"s{n}", *shape)) for n in "pq")
    if kind in ("categorical", "bernoulli"):
        p, q = p[0], q[0]
    theirs = {"kl": D.kl_divergence(peers(kind, p), peers(kind, q)), "entropy": peers(kind, p).entropy()}
    mine = {"kl": fr.kl_divergence(kind, p, q), "entropy": fr.entropy(kind, p)}
    assert_close(mine, {name: a.numpy() for name, a in theirs.items()}, 1e-12)
