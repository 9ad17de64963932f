"""Losses: likelihoods, and what else is told about distributions.

A loss comes with its gradient, `loss, dlogits = cross_entropy(logits, targets)`, and most losses are negative
log-likelihoods: the network gives the parameters theta of a distribution, and of independent targets

    loss = mean (or sum) over n of -log P(target[n] | theta[n])

Its minimum is the maximum of the likelihood. As the number of targets grows the mean becomes the cross-entropy of
the data's distribution and the model's, which is KL(data || model) + entropy(data): the same minimum again,
since the model has no part in the second term. Logarithms are natural, so losses are in nats.

Letters: `V` classes (characters of a vocabulary, say), `O` numbers in a target, `K` components of a mixture, `...`
any number of axes before them, also none. float32 and float64 arrays are computed in their own type, float16 and
Python's numbers in float32; the densities, which are no part of a training's cost, are computed in float64 and their
gradients rounded to the type of the first argument.
"""

from .categorical import cross_entropy, log_softmax, softmax
from .densities import bernoulli_nll, gaussian_nll, mse, multivariate_gaussian_nll
from .divergence import entropy, kl_divergence
from .mixtures import bivariate_mixture_nll, gaussian_mixture_nll
from .vocabulary import linear_cross_entropy

__all__ = [
    "bernoulli_nll",
    "bivariate_mixture_nll",
    "cross_entropy",
    "entropy",
    "gaussian_mixture_nll",
    "gaussian_nll",
    "kl_divergence",
    "linear_cross_entropy",
    "log_softmax",
    "mse",
    "multivariate_gaussian_nll",
    "softmax",
]
