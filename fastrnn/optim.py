"""Optimizers, gradient clipping and weight noise, on the flat vectors of a layer or a model.

A model is anything with `stores()`: a list of objects that keep parameters in flat vectors (layers/store.py).
Every formula is PyTorch's, element by element (kernels/update.py), so that results do not depend on the
number of threads.

Weight decay adds a regularization term to the cost function, as the notes do (||theta||_2^2, theta the model's
parameters): the cost is L + lambda/2 ||theta||_2^2, `weight_decay` is lambda, and the gradient of the term,
lambda theta, is added to that of L. So the notes' term, which has no factor, is weight_decay=2. All parameters decay,
biases too. `grads` hold the gradient of L alone: clipping is of that, and the term comes in the optimizer's step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from .checks import as_array, check_flag, check_mapping, check_number
from .kernels import update as kernels
from .threads import launch, workers_for

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "RMSProp",
    "clip_grad_norm",
    "clip_grad_value",
    "weight_noise",
]

# What one element costs, in multiply-adds of a matrix product: about 80 of those in a nanosecond.
COST = 30
TINY = float(np.finfo(np.float32).tiny)


def _run(kernel: Any, count: int, *args: Any) -> None:
    """Launches a kernel on vectors of `count` elements."""
    work = float(COST * count)
    launch(kernel, workers_for(work, -(-count // kernels.CHUNK)), 1, work, count, *args)


def _stores(model: Any) -> list[Any]:
    """The model's stores, each once: layers may share one."""
    if isinstance(model, type) or not callable(getattr(model, "stores", None)):
        raise TypeError(f"model is {type(model).__name__}, expected a layer or a model (something with stores())")
    return list({id(store): store for store in model.stores()}.values())


# ---------------------------------------------------------------------------------------------------
# Clipping
# ---------------------------------------------------------------------------------------------------


def clip_grad_norm(model: Any, max_norm: float) -> float:
    """Scales all gradients by one factor so that their norm is at most `max_norm`; returns the norm before.

        g = g max_norm / |g|        if |g| > max_norm

    |g| is the Euclidean norm over all gradients of the model together, computed in float64. It is Algorithm 1
    of Pascanu, Mikolov and Bengio (2013) as written; PyTorch divides by |g| + 1e-6 instead, so that its
    result is a little shorter.

    If the norm is not finite (a gradient is NaN or infinite, or in float64 its square is), the gradients stay
    as they are: no factor would make them useful. The caller can test for it: ``math.isfinite(norm)``. An
    infinite `max_norm` never clips.

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.grads["weight"][:] = [[3.0, 4.0]]
    >>> fr.clip_grad_norm(layer, 1.0)
    5.0
    >>> layer.grads["weight"].round(6).tolist() == np.float32([[0.6, 0.8]]).round(6).tolist()
    True
    """
    stores = _stores(model)
    max_norm = check_number("max_norm", max_norm)
    if not max_norm > 0:
        raise ValueError(f"max_norm is {max_norm}, expected a number above 0")
    total = 0.0
    for store in stores:
        count = store.grads.size
        sums = np.empty(1 - (-count // kernels.CHUNK))
        _run(kernels.squares, count, store.grads, sums)
        total += float(sums[0])
    norm = math.sqrt(total)
    if max_norm < norm < math.inf:
        for store in stores:
            _run(kernels.scale, store.grads.size, max_norm / norm, store.grads)
    return norm


def clip_grad_value(model: Any, limit: float) -> None:
    """Brings every element of every gradient into -limit ... limit. NaN stays NaN.

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(3, 1, bias=False, seed=0)
    >>> layer.grads["weight"][:] = [[-7.0, 0.5, 9.0]]
    >>> fr.clip_grad_value(layer, 5.0)
    >>> layer.grads["weight"].tolist()
    [[-5.0, 0.5, 5.0]]
    """
    stores = _stores(model)
    limit = check_number("limit", limit)
    if not limit > 0:
        raise ValueError(f"limit is {limit}, expected a number above 0")
    for store in stores:
        _run(kernels.clip, store.grads.size, limit, store.grads)


# ---------------------------------------------------------------------------------------------------
# Weight noise
# ---------------------------------------------------------------------------------------------------


def weight_noise(model: Any, std: float, seed: int | np.random.Generator | None = None) -> AbstractContextManager[None]:
    """Within the `with` block, Gaussian noise is added to every parameter; after it they are what they were.

        w = w + std n,  n from N(0, 1)      independently for every element

    Forward and backward run inside, so that the gradient is that of the noisy weights; the optimizer's step
    comes after the block and is made from the weights without noise. (Jim, Giles and Horne 1996; Graves 2013,
    section 3.1, with std = 0.075, drawn anew for every training sequence.)

    model : a layer or a model; std : of the noise, a finite number from 0 (0 does nothing)
    seed : a seed, which gives the same noise each time; or a generator, which goes on; or None. The same noise
        whatever the number of threads.

    Every bit is restored, after an exception too. A tape belongs to the weights that it was made with: one made
    inside cannot be used after the block, nor one made before it inside. Changes to the parameters inside are
    lost: `RuntimeError` says so when the block ends, and for a block for the same model inside it too. Other
    threads that call the model meanwhile see the noise.

    >>> import fastrnn as fr, numpy as np
    >>> layer, x = fr.Linear(3, 2, seed=0), np.ones((1, 3), np.float32)
    >>> y, rng, opt = layer(x), np.random.default_rng(1), fr.SGD(layer, lr=0.1)
    >>> with fr.weight_noise(layer, std=0.075, seed=rng):
    ...     noisy, tape = layer.forward(x)
    ...     dx = layer.backward(tape, noisy)
    >>> bool((noisy != y).all()), bool((layer(x) == y).all())
    (True, True)
    >>> opt.step()
    """
    stores = _stores(model)
    std = check_number("std", std)
    if not 0 <= std < math.inf:
        raise ValueError(f"std is {std}, expected a finite number from 0")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer | np.random.Generator | None):
        raise TypeError(f"seed is {type(seed).__name__}, expected an int, a numpy Generator or None")
    if isinstance(seed, int | np.integer) and seed < 0:
        raise ValueError(f"seed is {seed}, expected a number from 0")
    return _noise(stores if std else [], std, np.random.default_rng(seed))


@contextmanager
def _noise(stores: list[Any], std: float, rng: np.random.Generator) -> Iterator[None]:
    clean: list[tuple[Any, np.ndarray]] = []
    changed = False
    try:
        for store in stores:
            with store.writing() as values:
                clean.append((store, values.copy()))
                for where in store._where.values():  # not the gaps between parameters: they stay 0
                    noise = rng.standard_normal(where.stop - where.start, store.dtype)
                    values[where] += store.dtype.type(std) * noise
        versions = [store.version for store in stores]
        yield
        changed = versions != [store.version for store in stores]
    finally:
        for store, before in clean:
            with store.writing() as values:
                values[:] = before
    if changed:
        raise RuntimeError(
            "the parameters were changed within weight_noise, and are now as they were before it; "
            "call the optimizer's step() after the block"
        )


# ---------------------------------------------------------------------------------------------------
# Optimizers
# ---------------------------------------------------------------------------------------------------


class _Optimizer:
    """What they share: the learning rate, vectors of the parameters' size, and saving both.

    `_vectors` names the vectors, `_options` holds the numbers beside the learning rate. Those named in
    `_optional` are in the state only when they are on.
    """

    _vectors: tuple[str, ...] = ()
    _optional: tuple[str, ...] = ("weight_decay",)

    def __init__(self, model: Any, lr: float, **options: float) -> None:
        self._stores = _stores(model)
        self._check({"lr": lr, **options})
        self._lr = float(lr)
        self._options = {name: float(value) for name, value in options.items()}
        self._steps = 0
        self._state = {
            f"{name}.{k}": np.zeros(store.values.size, store.values.dtype)
            for name in self._vectors
            for k, store in enumerate(self._stores)
        }

    @staticmethod
    def _check(numbers: dict[str, Any]) -> None:
        """`TypeError` or `ValueError` for a number that makes no sense."""
        below_one = ("momentum", "alpha", "rho", "beta1", "beta2")
        finite = ("lr", "weight_decay", "decoupled_weight_decay")
        for name, value in numbers.items():
            number = check_number(name, value)
            if name in finite and not 0 <= number < math.inf:
                raise ValueError(f"{name.removeprefix('decoupled_')} is {value}, expected a finite number from 0")
            if name in below_one and not 0 <= number < 1:
                raise ValueError(f"{name} is {value}, expected a number from 0 to below 1")
            # If eps rounds to 0, a weight whose gradients have all been 0 so far becomes 0 / 0.
            if name == "eps" and not TINY <= number < math.inf:
                raise ValueError(f"eps is {value}, expected a finite number above {TINY:.1e}")
        if numbers.get("nesterov") and not numbers["momentum"]:
            raise ValueError(f"momentum is {numbers['momentum']}, expected a number above 0 for nesterov")

    @property
    def lr(self) -> float:
        """The learning rate: a finite number from 0; may be set at any time."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._check({"lr": value})
        self._lr = float(value)

    def step(self) -> None:
        """Changes the model's parameters once, by its gradients as they are now."""
        self._steps += 1
        for k, store in enumerate(self._stores):
            if store.values.size:
                with store.writing() as values:
                    self._update(values, store.grads, *(self._state[f"{name}.{k}"] for name in self._vectors))

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        raise NotImplementedError

    def _decay(self) -> float | None:
        """What weights decay by, or None: kernels leave out what is None."""
        return self._options["weight_decay"] or None

    def _root(self) -> tuple[float | None, float | None]:
        """eps outside the square root, and inside it; None where it is not."""
        eps = self._options["eps"]
        return (None, eps) if self._options["inside_sqrt"] else (eps, None)

    def state_dict(self) -> dict[str, Any]:
        """All that the optimizer remembers, by name: arrays (copies) and numbers.

        With it and the parameters restored, training goes on bit for bit as if it had never stopped.
        """
        arrays = {name: array.copy() for name, array in self._state.items()}
        options = {name: value for name, value in self._options.items() if value or name not in self._optional}
        return {"lr": self._lr, "steps": self._steps, **options, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of an optimizer of the same kind for a model of the same shape.

        The learning rate and the other options become the state's; momentum and centering, which need vectors,
        must be on in both or in neither. All or nothing: `ValueError` for names that are missing or too many,
        for shapes and numbers that do not fit, and `TypeError` for types, leave the optimizer as it is.
        """
        check_mapping("state", state)
        state = {**dict.fromkeys(self._optional, 0.0), **state}
        for name in ("momentum", "centered"):
            if name not in self._options or name not in state:
                continue
            if bool(check_number(name, state[name])) != bool(self._options[name]):
                raise ValueError(f"the state has {name} {state[name]}, this optimizer {self._options[name]}")
        mine = {"lr", "steps", *self._options, *self._state}
        if missing := sorted(mine - set(state)):
            raise ValueError(f"the state lacks {', '.join(missing)}: is it of another kind of optimizer?")
        if unknown := sorted(map(str, set(state) - mine)):
            raise ValueError(f"the state has {', '.join(unknown)}, which {type(self).__name__} doesn't know")
        self._check({name: state[name] for name in ("lr", *self._options)})
        steps = state["steps"]
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
            raise TypeError(f"steps is {type(steps).__name__}, expected an int")
        if steps < 0:
            raise ValueError(f"steps is {steps}, expected a number from 0")
        arrays = {name: as_array(name, state[name]) for name in self._state}
        for name, array in arrays.items():
            own = self._state[name]
            if array.dtype != own.dtype:
                raise TypeError(f"the state's {name} is {array.dtype}, expected {own.dtype}")
            if array.shape != own.shape:
                raise ValueError(f"the state's {name} has shape {array.shape}, expected {own.shape}")
        self._lr, self._steps = float(state["lr"]), int(steps)
        self._options = {name: float(state[name]) for name in self._options}
        for name, array in arrays.items():
            self._state[name][:] = array


class SGD(_Optimizer):
    """Stochastic gradient descent, with momentum and weight decay on request.

        v = momentum v + g        w = w - lr v,  with `nesterov`  w = w - lr (g + momentum v)

    Without momentum v is g, and no vector is kept. (Robbins and Monro 1951; Polyak 1964; Nesterov 1983, in the
    form of Sutskever, Martens, Dahl and Hinton 2013; PyTorch's form.)

    model : a layer or a model; lr : the learning rate, from 0; momentum : from 0 to below 1
    nesterov : look ahead; needs a momentum above 0
    weight_decay : lambda, from 0, of the regularization term lambda/2 ||theta||_2^2 in the cost function; its
        gradient is added, so that g is g + lambda w

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[0.5, -1.0]]
    >>> fr.SGD(layer, lr=0.5).step()
    >>> layer.params["weight"].tolist()
    [[0.75, 2.5]]
    """

    _optional = ("nesterov", "weight_decay")

    def __init__(
        self, model: Any, lr: float, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        self._vectors = ("v",) if check_number("momentum", momentum) else ()
        ahead = int(check_flag("nesterov", nesterov))
        super().__init__(model, lr, momentum=momentum, nesterov=ahead, weight_decay=weight_decay)

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        momentum = self._options["momentum"] or None
        ahead = momentum if self._options["nesterov"] else None
        v = vectors[0] if vectors else None
        _run(kernels.sgd, w.size, self._lr, w, g, self._decay(), momentum, v, ahead)


class Adagrad(_Optimizer):
    """Adagrad: a learning rate for each weight, smaller the more that weight has been moved.

        s = s + g^2        w = w - lr g / (sqrt(s) + eps)

    With `inside_sqrt` the root is sqrt(s + eps), as min-char-rnn has it. (Duchi, Hazan and Singer 2011.)

    model : a layer or a model; lr : the learning rate, from 0; eps : above 0
    weight_decay : lambda, from 0, of the regularization term lambda/2 ||theta||_2^2 in the cost function; its
        gradient is added, so that g is g + lambda w

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[8.0, -0.125]]
    >>> fr.Adagrad(layer, lr=0.5).step()  # the first step is lr, whatever the gradient
    >>> layer.params["weight"].round(6).tolist()
    [[0.5, 2.5]]
    """

    _vectors = ("s",)

    def __init__(
        self, model: Any, lr: float, eps: float = 1e-10, inside_sqrt: bool = False, weight_decay: float = 0.0
    ) -> None:
        inside = int(check_flag("inside_sqrt", inside_sqrt))
        super().__init__(model, lr, eps=eps, inside_sqrt=inside, weight_decay=weight_decay)

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        _run(kernels.adagrad, w.size, self._lr, *self._root(), w, g, *vectors, self._decay())


class Adadelta(_Optimizer):
    """Adadelta: the step is as large as recent steps were, for a gradient as large as recent gradients were.

        s = rho s + (1 - rho) g^2        d = g sqrt(u + eps) / sqrt(s + eps)
        u = rho u + (1 - rho) d^2        w = w - lr d

    s and u start from zero, so the first steps are about sqrt(eps). (Zeiler 2012, Algorithm 1, which has lr = 1;
    PyTorch's form.)

    model : a layer or a model; lr : the learning rate, from 0; rho : from 0 to below 1; eps : above 0
    weight_decay : lambda, from 0, of the regularization term lambda/2 ||theta||_2^2 in the cost function; its
        gradient is added, so that g is g + lambda w

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[8.0, -2.0]]
    >>> fr.Adadelta(layer, rho=0.75, eps=1e-4).step()  # 2 sqrt(eps)
    >>> layer.params["weight"].round(4).tolist() == np.float32([[0.98, 2.02]]).tolist()
    True
    """

    _vectors = ("s", "u")

    def __init__(
        self, model: Any, lr: float = 1.0, rho: float = 0.9, eps: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        super().__init__(model, lr, rho=rho, eps=eps, weight_decay=weight_decay)

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        rho, eps = self._options["rho"], self._options["eps"]
        _run(kernels.adadelta, w.size, self._lr, rho, 1.0 - rho, eps, w, g, *vectors, self._decay())


class RMSProp(_Optimizer):
    """RMSProp: Adagrad with a memory that fades.

        s = alpha s + (1 - alpha) g^2        w = w - lr g / (sqrt(s) + eps)

    (Tieleman and Hinton 2012; PyTorch's form.) On request, one by one or together:

        momentum       v = momentum v + g / root        w = w - lr v
        centered       m = alpha m + (1 - alpha) g      s - m^2, the variance of g, stands for s in the root
        inside_sqrt    the root is sqrt(s + eps)

    All three together are Graves' form (2013, eq. 38 to 41; his constants, eq. 42 to 45, are lr=1e-4, alpha=0.95,
    eps=1e-4, momentum=0.9). He multiplies by lr before v is summed, which is the same as long as lr does not
    change. Rounding could make the variance negative and the root NaN, as in PyTorch; here it ends at 0.

    model : a layer or a model; lr : the learning rate, from 0; alpha : from 0 to below 1; eps : above 0
    momentum : from 0 to below 1; 0 keeps no vector
    weight_decay : lambda, from 0, of the regularization term lambda/2 ||theta||_2^2 in the cost function; its
        gradient is added, so that g is g + lambda w

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[8.0, -0.125]]
    >>> fr.RMSProp(layer, lr=0.25, alpha=0.75).step()  # g / sqrt(g^2 / 4) = 2
    >>> layer.params["weight"].round(6).tolist()
    [[0.5, 2.5]]
    >>> graves = fr.RMSProp(layer, lr=1e-4, alpha=0.95, eps=1e-4, momentum=0.9, centered=True, inside_sqrt=True)
    """

    _optional = ("momentum", "centered", "inside_sqrt", "weight_decay")

    def __init__(
        self,
        model: Any,
        lr: float,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
        inside_sqrt: bool = False,
    ) -> None:
        centered, moves = check_flag("centered", centered), check_number("momentum", momentum) != 0
        self._vectors = ("s", *(("m",) if centered else ()), *(("v",) if moves else ()))
        super().__init__(
            model,
            lr,
            alpha=alpha,
            eps=eps,
            momentum=momentum,
            centered=int(centered),
            weight_decay=weight_decay,
            inside_sqrt=int(check_flag("inside_sqrt", inside_sqrt)),
        )

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        alpha, momentum = self._options["alpha"], self._options["momentum"] or None
        of = dict(zip(self._vectors, vectors, strict=True))
        after = self._decay(), of.get("m"), momentum, of.get("v")
        _run(kernels.rmsprop, w.size, self._lr, alpha, 1.0 - alpha, *self._root(), w, g, of["s"], *after)


class Adam(_Optimizer):
    """Adam: the step is the mean of recent gradients over the root of the mean of their squares.

        m = beta1 m + (1 - beta1) g        s = beta2 s + (1 - beta2) g^2
        w = w - lr M / (sqrt(S) + eps)     M = m / (1 - beta1^t),  S = s / (1 - beta2^t)

    in the t-th step; the divisions make up for m and s having started from zero. (Kingma and Ba 2015.)

    model : a layer or a model; lr : the learning rate, from 0
    betas : two numbers from 0 to below 1; eps : above 0
    weight_decay : lambda, from 0, of the regularization term lambda/2 ||theta||_2^2 in the cost function; its
        gradient is added, so that g is g + lambda w. `AdamW` is the other way.

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[8.0, -0.125]]
    >>> fr.Adam(layer, lr=0.5).step()  # the first step is lr, whatever the gradient
    >>> layer.params["weight"].round(6).tolist()
    [[0.5, 2.5]]
    """

    _vectors = ("m", "s")

    def __init__(
        self,
        model: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self._adam(model, lr, betas, eps, weight_decay=weight_decay)

    def _adam(self, model: Any, lr: float, betas: Any, eps: float, **decay: float) -> None:
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas is {betas!r}, expected two numbers")
        _Optimizer.__init__(self, model, lr, beta1=betas[0], beta2=betas[1], eps=eps, **decay)

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        beta1, beta2, eps = (self._options[name] for name in ("beta1", "beta2", "eps"))
        t = self._steps
        step, root = self._lr / (1.0 - beta1**t), 1.0 / math.sqrt(1.0 - beta2**t)
        decay = self._decay(), self._shrink()
        _run(kernels.adam, w.size, step, 1.0 - beta1, beta2, 1.0 - beta2, root, eps, w, g, *vectors, *decay)

    def _shrink(self) -> float | None:
        """The part of each weight that a step takes away, or None."""
        return None


class AdamW(Adam):
    """Adam with decoupled weight decay: the weights shrink by themselves, past m and s.

        w = w - lr lambda w, then Adam's step, in which g is the gradient of the loss alone

    In `Adam` the gradient of lambda/2 ||theta||_2^2 is divided by sqrt(S) with the rest, so that weights with large
    gradients decay less; here all decay alike. It is not the gradient of any such term in the cost function.
    (Loshchilov and Hutter 2019, Algorithm 2, with PyTorch's lr in the place of their schedule.)

    model : a layer or a model; lr : the learning rate, from 0
    betas : two numbers from 0 to below 1; eps : above 0; weight_decay : lambda, from 0

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[8.0, -0.125]]
    >>> fr.AdamW(layer, lr=0.5, weight_decay=0.25).step()  # 1/8 of the weight, then lr
    >>> layer.params["weight"].round(6).tolist()
    [[0.375, 2.25]]
    """

    _optional = ()

    def __init__(
        self,
        model: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        # Under a name of its own in the state: Adam's would be taken for the other kind of decay.
        self._adam(model, lr, betas, eps, decoupled_weight_decay=weight_decay)

    def _decay(self) -> float | None:
        return None

    def _shrink(self) -> float | None:
        decay = self._options["decoupled_weight_decay"]
        return self._lr * decay if decay else None
