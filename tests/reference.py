"""The mathematics of fastrnn once more, in plain float64 NumPy, by hand: nothing here imports fastrnn.

Everything is forward only. Gradients come from the forward by complex step, so every function takes complex
numbers: no `abs`, no `maximum`, no `np.clip`; where a sign decides, it is the real part's.

Shapes are the glossary's, `x (T, B, I)`, `h, c (L D, B, H)`, parameters as in PyTorch. Any argument may carry
leading axes besides (`...`): that is how `complex_step` moves many elements of an array in one evaluation.
"""

import numpy as np

# --- functions of one number --------------------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def relu(a):
    return np.where(a.real <= 0, 0, a)  # NaN is not <= 0, and passes


def identity(a):
    return a


def clamp(a, low, high):
    """a within the limits, the limit outside. NaN passes."""
    return np.where(a.real < low, low, np.where(a.real > high, high, a))


def hardsigmoid(a):
    """A line through (0, 1/2) with slope 1/5, cut at 0 and 1: ONNX's, with its default constants."""
    return clamp(0.2 * a + 0.5, 0, 1)


def softsign(a):
    """a / (1 + |a|)"""
    return a / (1 + np.where(a.real < 0, -a, a))


NONLINEARITIES = {
    "tanh": np.tanh,
    "relu": relu,
    "sigmoid": sigmoid,
    "identity": identity,
    "hardsigmoid": hardsigmoid,
    "softsign": softsign,
}


# --- one step of one layer in one direction -----------------------------------------------------------------
#
# `params` holds that direction's arrays, under their names without `_l0` or `_l0_reverse`. `seen`, a dict, is given a
# list of every gate's and state's values, one a call. `drop` (B, H) is the mask of recurrent dropout, the same at every
# step (Gal and Ghahramani 2016); `keep`, one for each state (B, H), says how much of the old one is kept: zoneout
# (Krueger et al. 2017).


def affine(x, weight, bias):
    """x (..., B, I), weight (..., O, I), bias (..., O) -> (..., B, O)"""
    return x @ np.swapaxes(weight, -1, -2) + bias[..., None, :]


def from_below(params, x):
    """U x + b, every gate beside the other. x (B, I) -> (B, G H)"""
    U = params["weight_ih"]
    return affine(x, U, params.get("bias_ih", np.zeros(U.shape[-2])))


def from_before(params, h):
    """W h + b, every gate beside the other. h (B, H) -> (B, G H)"""
    W = params["weight_hh"]
    return affine(h, W, params.get("bias_hh", np.zeros(W.shape[-2])))


def note(seen, **values):
    """Appends each value to its list in `seen`, if somebody looks."""
    for name, value in values.items() if seen is not None else ():
        seen.setdefault(name, []).append(value)


def zoned(keep, old, new):
    """Some of the old state, and of the new one the rest; all of it, if nothing is kept and the old one is infinite."""
    return new if np.ndim(keep) == 0 and keep == 0 else keep * old + (1 - keep) * new


def rnn_step(params, x, h, nonlinearity="tanh", seen=None, preactivation=False, drop=1, keep=(0,)):
    """Elman 1990. x (B, I), h (B, H) -> h (B, H)

    preactivation : Pascanu, Mikolov and Bengio 2013, equation 2
    """
    if preactivation:
        h = from_below(params, x) + from_before(params, NONLINEARITIES[nonlinearity](h))
        note(seen, a=NONLINEARITIES[nonlinearity](h))
        return (h,)
    h = zoned(keep[0], h, NONLINEARITIES[nonlinearity](from_below(params, x) + from_before(params, drop * h)))
    note(seen, h=h)
    return (h,)


def layer_norm(a, gain, epsilon):
    """Ba, Kiros and Hinton 2016, equation 4, without its bias. a (B, N), gain (N,) -> (B, N)"""
    a = a - a.mean(axis=-1, keepdims=True)
    return gain[..., None, :] * a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + epsilon)


def both(params, x, h, layer_norm_eps):
    """U x + b and W h + b, of which the products are normalised first if there are gains. -> twice (B, G H)"""
    if "weight_ln_ih" not in params:
        return from_below(params, x), from_before(params, h)
    sums = []
    for name, a in (("ih", x), ("hh", h)):
        product = a @ np.swapaxes(params[f"weight_{name}"], -1, -2)
        bias = params.get(f"bias_{name}", np.zeros(product.shape[-1]))[..., None, :]
        sums.append(layer_norm(product, params[f"weight_ln_{name}"], layer_norm_eps) + bias)
    return sums


def gru_step(
    params, x, h, reset="after", layer_norm=False, layer_norm_eps=1e-5, seen=None, drop=1, keep=(0,)
):  # fmt: skip
    """Cho et al. 2014, whose reset gate stands before the recurrent product; after it, as cuDNN and PyTorch have
    it: Appleyard, Kocisky and Blunsom 2016. x (B, I), h (B, H) -> h (B, H)
    """
    from_x, from_h = both(params, x, drop * h, layer_norm_eps)
    u_r, u_z, u_n = np.split(from_x, 3, axis=-1)
    w_r, w_z, w_n = np.split(from_h, 3, axis=-1)
    r = sigmoid(u_r + w_r)
    z = sigmoid(u_z + w_z)
    if reset == "after":
        n = np.tanh(u_n + r * w_n)
    else:
        _, _, w_n = np.split(from_before(params, r * drop * h), 3, axis=-1)
        n = np.tanh(u_n + w_n)
    h = zoned(keep[0], h, (1 - z) * n + z * h)
    note(seen, r=r, z=z, n=n, h=h)
    return (h,)


def lstm_step(
    params, x, h, c, peephole=None, coupled=False, clip=None, activations=("sigmoid", "tanh", "tanh"), proj_size=0,
    layer_norm=False, layer_norm_eps=1e-5, seen=None, drop=1, keep=(0, 0),
):  # fmt: skip
    """x (B, I), h and c (B, H) -> h, c (B, H); with a projection h is (B, P).

    Hochreiter and Schmidhuber 1997; the forget gate: Gers, Schmidhuber and Cummins 2000; peepholes: Gers,
    Schraudolph and Schmidhuber 2002; coupled gates: Greff et al. 2017; projection: Sak, Senior and Beaufays 2014;
    layer normalisation, if there are gains: Ba, Kiros and Hinton 2016, equations 20 to 22. With zoneout, o and h see
    the cell before it, as in Krueger et al. 2017.
    """
    sigma_g, sigma_c, sigma_h = (NONLINEARITIES[name] for name in activations)
    gates = ("i", "g", "o") if coupled else ("i", "f", "g", "o")
    a = sum(both(params, x, drop * h, layer_norm_eps))
    a = dict(zip(gates, np.split(a, len(gates), axis=-1), strict=True))

    i = sigma_g(limited(a["i"] + peep(params, "i", c, peephole, coupled), clip))
    f = 1 - i if coupled else sigma_g(limited(a["f"] + peep(params, "f", c, peephole, coupled), clip))
    g = sigma_c(limited(a["g"], clip))
    new_c = limited(f * c + i * g, clip)
    o = sigma_g(limited(a["o"] + peep(params, "o", new_c, peephole, coupled), clip))
    new_h = o * sigma_h(seen_of(params, new_c, layer_norm_eps))
    if proj_size:
        new_h = new_h @ np.swapaxes(params["weight_hr"], -1, -2)
    h, c = zoned(keep[0], h, new_h), zoned(keep[1], c, new_c)
    note(seen, i=i, f=f, g=g, o=o, c=c, h=h)
    return h, c


def seen_of(params, c, epsilon):
    """What h sees of c: with gains c normalised. c (B, H) -> (B, H)"""
    if "weight_ln_c" not in params:
        return c
    return layer_norm(c, params["weight_ln_c"], epsilon) + params["bias_ln_c"][..., None, :]


def limited(a, clip):
    """Within [-clip, clip], if there is a limit."""
    return a if clip is None else clamp(a, -clip, clip)


def peep(params, gate, c, peephole, coupled):
    """What a gate sees of the cell: p c element by element, or the matrix product P c. c (B, H) -> (B, H)"""
    if "weight_peep" not in params:
        return 0
    row = ("i", "o").index(gate) if coupled else ("i", "f", "o").index(gate)
    if peephole == "full":
        return c @ np.swapaxes(params["weight_peep"][..., row, :, :], -1, -2)
    return params["weight_peep"][..., row, None, :] * c


# --- layers, directions, steps ------------------------------------------------------------------------------


def stack(arrays, axis):
    """`np.stack` of arrays some of which carry leading axes and some do not; `axis` counts from the end."""
    return np.stack(np.broadcast_arrays(*arrays), axis=axis)


def concatenate(arrays, axis):
    """`np.concatenate`, likewise."""
    leading = np.broadcast_shapes(*(a.shape[:-3] for a in arrays))
    return np.concatenate([np.broadcast_to(a, leading + a.shape[-3:]) for a in arrays], axis=axis)


def directions(params):
    """The ends of the parameters' names, layer by layer, forward before reverse."""
    ends = {name.removeprefix("weight_hh_") for name in params if name.startswith("weight_hh_l")}
    return sorted(ends, key=lambda end: (int(end.removesuffix("_reverse")[1:]), end))


def of_direction(params, end):
    """One direction's arrays, under their names without the end."""
    return {name.removesuffix(f"_{end}"): array for name, array in params.items() if name.endswith(f"_{end}")}


def over_time(step, params, x, start, lengths, masks=None, merge="concat", output=identity):
    """Every layer and direction over every step (Schuster and Paliwal 1997 for the two directions).

    step : (params, x (B, I), *state; with masks, drop and keep) -> the new state, h first
    start : the initial states, each (L D, B, H)
    lengths : (B,); from a row's end on nothing happens to its state, and y is zero. So the reverse direction,
        which comes from the right, starts at each row's own end.
    masks : "l0" and so on -> x (B, I), that of the layer's input at every step, drop (B, H), and keep, for each state
        (T, B, H) or a number
    merge : "concat", the directions' outputs side by side, or "sum"
    output : what y is of h
    -> y (T, B, D H), or (T, B, H), then the final states, each (L D, B, H)
    """
    T, B = x.shape[-3:-1]
    valid = np.arange(T)[:, None, None] < (np.full(B, T) if lengths is None else np.asarray(lengths))[:, None]
    join = sum if merge == "sum" else lambda arrays: concatenate(arrays, -1)
    finals, below = [], []
    for number, end in enumerate(directions(params)):
        weights = of_direction(params, end)
        reverse = end.endswith("reverse")
        if not reverse and number:
            x, below = join(below), []
        state = [part[..., number, :, :] for part in start]
        y = [None] * T
        for t in reversed(range(T)) if reverse else range(T):
            if masks is None:
                new = step(weights, x[..., t, :, :], *state)
            else:
                m = masks[end]
                keep = [k[t] if np.ndim(k) else k for k in m["keep"]]
                new = step(weights, x[..., t, :, :] * m["x"], *state, drop=m["drop"], keep=keep)
            state = [np.where(valid[t], after, before) for after, before in zip(new, state, strict=True)]
            y[t] = np.where(valid[t], output(state[0]), 0)
        finals.append(state)
        below.append(stack(y, -3))
    return join(below), *(stack(parts, -3) for parts in zip(*finals, strict=True))


def zeros(params, x, name):
    """An initial state of zeros, as wide as the input of weight `name`."""
    return np.zeros((len(directions(params)), x.shape[-2], params[f"{name}_l0"].shape[-1]))


def rnn(
    params, x, h0=None, nonlinearity="tanh", lengths=None, seen=None, masks=None, merge="concat", preactivation=False
):
    """x (T, B, I), h0 (L D, B, H) -> y (T, B, D H), h (L D, B, H)"""
    start = [zeros(params, x, "weight_hh") if h0 is None else h0]
    output = NONLINEARITIES[nonlinearity] if preactivation else identity

    def step(params, x, h, **masks):
        return rnn_step(params, x, h, nonlinearity, seen, preactivation, **masks)

    return over_time(step, params, x, start, lengths, masks, merge, output)


def gru(params, x, h0=None, reset="after", lengths=None, seen=None, masks=None, merge="concat", **options):
    """x (T, B, I), h0 (L D, B, H) -> y (T, B, D H), h (L D, B, H); `options`: others of `gru_step`"""
    start = [zeros(params, x, "weight_hh") if h0 is None else h0]

    def step(p, x, h, **m):
        return gru_step(p, x, h, reset, seen=seen, **options, **m)

    return over_time(step, params, x, start, lengths, masks, merge)


def lstm(params, x, h0=None, c0=None, lengths=None, masks=None, merge="concat", **options):
    """x (T, B, I), h0 and c0 (L D, B, H) -> y (T, B, D H), h and c (L D, B, H); `options`: those of `lstm_step`"""
    widest = "weight_hr" if options.get("proj_size") else "weight_hh"
    start = [
        zeros(params, x, "weight_hh") if h0 is None else h0,
        zeros(params, x, widest) if c0 is None else c0,
    ]
    return over_time(
        lambda p, x, h, c, **m: lstm_step(p, x, h, c, **options, **m), params, x, start, lengths, masks, merge
    )


def over_steps(seen, params, T, lengths=None):
    """What the steps of `over_time` have noted in `seen`, by direction: {"f_l0": (T, B, H)}, zero past a row's end."""
    found = {}
    for number, end in enumerate(directions(params)):
        for name, values in seen.items():
            a = np.stack(values[number * T : (number + 1) * T][:: -1 if end.endswith("reverse") else 1])
            if lengths is not None:
                a = np.where(np.arange(T)[:, None, None] < np.asarray(lengths)[:, None], a, 0)
            found[f"{name}_{end}"] = a
    return found


# --- layers without time ------------------------------------------------------------------------------------


def one_hot(ids, size):
    """ids (...) -> (..., size)"""
    return np.eye(size)[ids]


def linear(params, x):
    """x (T, B, I) -> (T, B, O)"""
    weight = params["weight"][..., None, :, :]  # leading axes stand left of the time axis
    bias = params.get("bias", np.zeros(weight.shape[-2]))[..., None, :]
    return affine(x, weight, bias)


def embedding(params, ids):
    """ids (T, B) -> (T, B, dim)"""
    return params["weight"][..., ids, :]


# --- losses -------------------------------------------------------------------------------------------------


def log_softmax(logits):
    """logits (..., V) -> (..., V)"""
    a = logits - logits.real.max(axis=-1, keepdims=True)  # a shift by any constant leaves it as it is
    return a - np.log(np.exp(a).sum(axis=-1, keepdims=True))


def cross_entropy(logits, targets):
    """Mean over T and B, in nats. logits (..., T, B, V), targets (T, B) -> (...)"""
    T, B = np.indices(targets.shape)
    return -log_softmax(logits)[..., T, B, targets].mean(axis=(-2, -1))


def categorical(logits, q, weight=1.0):
    """-sum of weight q log p of every row. logits (..., V), q (..., V) probabilities, weight (V,) -> (...)"""
    return -(weight * q * log_softmax(logits)).sum(axis=-1)


def bernoulli(logits, targets):
    """logits, targets (...) -> (...)"""
    p = sigmoid(logits)
    return -targets * np.log(p) - (1 - targets) * np.log(1 - p)


def gaussian(mean, variance, targets):
    """mean, variance, targets (...) -> (...)"""
    return np.log(2 * np.pi * variance) / 2 + (targets - mean) ** 2 / (2 * variance)


def cholesky(factor):
    """L from (..., O, O): the lower triangle, with the exponential of the diagonal."""
    eye = np.eye(factor.shape[-1])
    return np.tril(factor, -1) + eye * np.exp(eye * factor)


def multivariate_gaussian(mean, factor, targets):
    """By the covariance's own inverse and determinant. mean, targets (..., O), factor (..., O, O) -> (...)"""
    L = cholesky(factor)
    covariance = L @ np.swapaxes(L, -1, -2)
    error = (targets - mean)[..., None]
    squares = (error * np.linalg.solve(covariance, error)).sum(axis=(-2, -1))
    return (np.log(np.linalg.det(2 * np.pi * covariance)) + squares) / 2


def gaussian_mixture(logits, mean, log_scale, targets):
    """logits (..., K), mean and log_scale (..., K, O), targets (..., O) -> (...)"""
    each = gaussian(mean, np.exp(2 * log_scale), targets[..., None, :]).sum(axis=-1)
    return -np.log((np.exp(log_softmax(logits)) * np.exp(-each)).sum(axis=-1))


def bivariate_mixture(logits, mean, log_scale, correlation, targets):
    """Graves 2013, equations 18 to 25. logits, correlation (..., K), mean, log_scale (..., K, 2) -> (...)"""
    rho = np.tanh(correlation)
    z = (targets[..., None, :] - mean) / np.exp(log_scale)
    z_1, z_2 = z[..., 0], z[..., 1]
    Z = z_1**2 + z_2**2 - 2 * rho * z_1 * z_2
    density = np.exp(-Z / (2 * (1 - rho**2))) / (2 * np.pi * np.exp(log_scale.sum(axis=-1)) * np.sqrt(1 - rho**2))
    return -np.log((np.exp(log_softmax(logits)) * density).sum(axis=-1))


def reduced(losses, counts, reduction="mean"):
    """The mean or sum of the losses (..., *counts.shape) that count -> (...)"""
    total = losses[..., counts].sum(axis=-1)
    return total / counts.sum() if reduction == "mean" else total


def mse(y, target):
    """Mean over T, B and O. y (..., T, B, O), target (T, B, O) -> (...)"""
    return ((y - target) ** 2).mean(axis=(-3, -2, -1))


# --- optimizers: a sequence of gradients in, the weights after each of them out -----------------------------


def decayed(g, w, weight_decay):
    """The gradient of the loss + weight_decay / 2 ||w||^2."""
    return g + weight_decay * w


def sgd(w, gradients, lr, momentum=0.0, nesterov=False, weight_decay=0.0):
    """Polyak 1964; `nesterov`: Sutskever, Martens, Dahl and Hinton 2013."""
    v = 0
    for g in gradients:
        g = decayed(g, w, weight_decay)
        v = momentum * v + g
        w = w - lr * (g + momentum * v if nesterov else v)
        yield w


def adagrad(w, gradients, lr, eps=1e-10, inside_sqrt=False, weight_decay=0.0):
    """Duchi, Hazan and Singer 2011. `inside_sqrt`: as min-char-rnn writes it."""
    s = 0
    for g in gradients:
        g = decayed(g, w, weight_decay)
        s = s + g * g
        root = np.sqrt(s + eps) if inside_sqrt else np.sqrt(s) + eps
        w = w - lr * g / root
        yield w


def adadelta(w, gradients, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
    """Zeiler 2012, Algorithm 1; RMS[a] = sqrt(E[a^2] + eps)."""
    mean_g2 = mean_d2 = 0
    for g in gradients:
        g = decayed(g, w, weight_decay)
        mean_g2 = rho * mean_g2 + (1 - rho) * g**2
        d = -np.sqrt(mean_d2 + eps) / np.sqrt(mean_g2 + eps) * g
        mean_d2 = rho * mean_d2 + (1 - rho) * d**2
        w = w + lr * d
        yield w


def rmsprop(w, gradients, lr, alpha=0.99, eps=1e-8, momentum=0.0, centered=False, weight_decay=0.0):
    """Tieleman and Hinton 2012; centred, and with momentum, as PyTorch documents it."""
    s = m = v = 0
    for g in gradients:
        g = decayed(g, w, weight_decay)
        s = alpha * s + (1 - alpha) * g * g
        m = alpha * m + (1 - alpha) * g
        root = np.sqrt(s - m * m if centered else s) + eps
        v = momentum * v + g / root
        w = w - lr * v
        yield w


def rmsprop_graves(w, gradients, lr, alpha, eps, momentum):
    """Graves 2013, eq. 38 to 41."""
    n = m = delta = 0
    for e in gradients:
        n = alpha * n + (1 - alpha) * e**2
        m = alpha * m + (1 - alpha) * e
        delta = momentum * delta - lr * e / np.sqrt(n - m**2 + eps)
        w = w + delta
        yield w


def adam(w, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Kingma and Ba 2015."""
    beta_1, beta_2 = betas
    m = v = 0
    for n, g in enumerate(gradients, start=1):
        g = decayed(g, w, weight_decay)
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        m_hat = m / (1 - beta_1**n)
        v_hat = v / (1 - beta_2**n)
        w = w - lr * m_hat / (np.sqrt(v_hat) + eps)
        yield w


def adamw(w, gradients, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """Loshchilov and Hutter 2019, Algorithm 2."""
    beta_1, beta_2 = betas
    m = v = 0
    for n, g in enumerate(gradients, start=1):
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g * g
        m_hat = m / (1 - beta_1**n)
        v_hat = v / (1 - beta_2**n)
        w = w - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * w)
        yield w


def clip_by_norm(gradients, max_norm):
    """Pascanu, Mikolov and Bengio 2013, Algorithm 1. A dict of gradients -> (clipped, the norm before)"""
    norm = np.sqrt(sum((g * g).sum() for g in gradients.values()))
    scale = max_norm / norm if norm >= max_norm else 1.0
    return {name: scale * g for name, g in gradients.items()}, norm


def clip_by_value(gradients, limit):
    """Every element to [-limit, limit]."""
    return {name: np.clip(g, -limit, limit) for name, g in gradients.items()}


# --- gradients ----------------------------------------------------------------------------------------------


def complex_step(f, arrays, step=1e-30, at_once=256):
    """The gradient of f by every element of every array, exact to rounding (Squire and Trapp 1998).

    `f` maps a dict of arrays, one of which carries a leading axis of moved copies, to a number for each copy.
    """
    gradients = {}
    for name, array in arrays.items():
        values = []
        for start in range(0, array.size, at_once):
            count = min(at_once, array.size - start)
            moves = np.eye(count, array.size, start).reshape(count, *array.shape)
            moved = {**arrays, name: array + 1j * step * moves}
            values.append(np.broadcast_to(f(moved), count).imag / step)
        gradients[name] = np.concatenate(values).reshape(array.shape)
    return gradients


def along(f, arrays, directions, step=1e-30):
    """The derivative of f along each of the directions, a dict like `arrays`: a complex step for arrays too
    large to take element by element. For gradients dX it is sum(dX * direction).
    """
    return {
        name: float(f({**arrays, name: arrays[name] + 1j * step * direction}).imag / step)
        for name, direction in directions.items()
    }


def difference_along(f, arrays, name, direction, step=1e-6):
    """The derivative of f along a direction of one of the arrays, to about 1e-9. `f`: a dict of arrays to a number."""
    ahead, behind = (f({**arrays, name: arrays[name] + sign * step * direction}) for sign in (1, -1))
    return (ahead - behind) / (2 * step)


def central_difference(f, arrays, step=1e-6):
    """The gradient of f by every element of every array, to about 1e-9. `f`: a dict of arrays to a number."""
    gradients = {}
    for name, array in arrays.items():
        gradient = np.empty(array.shape)
        for at in np.ndindex(array.shape):
            ahead, behind = array.copy(), array.copy()
            ahead[at] += step
            behind[at] -= step
            gradient[at] = (f({**arrays, name: ahead}) - f({**arrays, name: behind})) / (2 * step)
        gradients[name] = gradient
    return gradients
