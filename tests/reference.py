"""The mathematics of fastrnn once more, in plain float64 NumPy, by hand: nothing here imports fastrnn.

Everything is forward only. Gradients come from the forward by complex step, so every function takes complex
numbers: no `abs`, no `maximum`, no `clip`; where a sign decides, it is the real part's.

Shapes are the glossary's, `x (T, B, I)`, `h, c (L, B, H)`, parameters as in PyTorch. Any argument may carry
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


NONLINEARITIES = {"tanh": np.tanh, "relu": relu, "sigmoid": sigmoid, "identity": identity}


# --- recurrent layers ---------------------------------------------------------------------------------------


def affine(x, weight, bias):
    """x (..., B, I), weight (..., O, I), bias (..., O) -> (..., B, O)"""
    return x @ np.swapaxes(weight, -1, -2) + bias[..., None, :]


def rnn_step(params, layer, x, h, nonlinearity):
    """One step of one layer. Elman 1990. x (B, I), h (B, H) -> h (B, H)"""
    U, W, b_u, b_w = of_layer(params, layer)
    return NONLINEARITIES[nonlinearity](affine(x, U, b_u) + affine(h, W, b_w))


def lstm_step(params, layer, x, h, c):
    """One step of one layer. Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000; peepholes:
    Gers, Schraudolph and Schmidhuber 2002. x (B, I), h and c (B, H) -> h, c (B, H)
    """
    U, W, b_u, b_w = of_layer(params, layer)
    U_i, U_f, U_g, U_o = np.split(U, 4, axis=-2)
    W_i, W_f, W_g, W_o = np.split(W, 4, axis=-2)
    b_ui, b_uf, b_ug, b_uo = np.split(b_u, 4, axis=-1)
    b_wi, b_wf, b_wg, b_wo = np.split(b_w, 4, axis=-1)
    p_i, p_f, p_o = peepholes(params, layer)

    i = sigmoid(affine(x, U_i, b_ui) + affine(h, W_i, b_wi) + p_i * c)
    f = sigmoid(affine(x, U_f, b_uf) + affine(h, W_f, b_wf) + p_f * c)
    g = np.tanh(affine(x, U_g, b_ug) + affine(h, W_g, b_wg))
    c = f * c + i * g
    o = sigmoid(affine(x, U_o, b_uo) + affine(h, W_o, b_wo) + p_o * c)
    h = o * np.tanh(c)
    return h, c


def of_layer(params, layer):
    """U, W and the two biases of a layer; a layer without biases has zeros."""
    U, W = params[f"weight_ih_l{layer}"], params[f"weight_hh_l{layer}"]
    zeros = np.zeros(U.shape[-2])
    return U, W, params.get(f"bias_ih_l{layer}", zeros), params.get(f"bias_hh_l{layer}", zeros)


def peepholes(params, layer):
    """The three rows, i f o, of a layer's peephole weights, each (..., 1, H); zeros if it has none."""
    H = params[f"weight_hh_l{layer}"].shape[-1]
    p = params.get(f"weight_peep_l{layer}", np.zeros((3, H)))
    return p[..., 0, None, :], p[..., 1, None, :], p[..., 2, None, :]


def num_layers(params):
    return sum(name.startswith("weight_hh_l") for name in params)


def at_start(state, params, x):
    """The initial state of every layer, a list of (..., B, H); zeros if there is none."""
    L, B, H = num_layers(params), x.shape[-2], params["weight_hh_l0"].shape[-1]
    return [np.zeros((B, H)) if state is None else state[..., layer, :, :] for layer in range(L)]


def stack(arrays, axis):
    """`np.stack` of arrays some of which carry leading axes and some do not; `axis` counts from the end."""
    return np.stack(np.broadcast_arrays(*arrays), axis=axis)


def rnn(params, x, h0=None, nonlinearity="tanh"):
    """x (T, B, I), h0 (L, B, H) -> y (T, B, H), h (L, B, H)"""
    h = at_start(h0, params, x)
    y = []
    for t in range(x.shape[-3]):
        below = x[..., t, :, :]
        for layer in range(num_layers(params)):
            h[layer] = below = rnn_step(params, layer, below, h[layer], nonlinearity)
        y.append(below)
    return stack(y, -3), stack(h, -3)


def lstm(params, x, h0=None, c0=None):
    """x (T, B, I), h0 and c0 (L, B, H) -> y (T, B, H), h (L, B, H), c (L, B, H)"""
    h, c = at_start(h0, params, x), at_start(c0, params, x)
    y = []
    for t in range(x.shape[-3]):
        below = x[..., t, :, :]
        for layer in range(num_layers(params)):
            h[layer], c[layer] = lstm_step(params, layer, below, h[layer], c[layer])
            below = h[layer]
        y.append(below)
    return stack(y, -3), stack(h, -3), stack(c, -3)


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
