"""Optimizers and gradient clipping, on the flat vectors of a layer or a model.

A model is anything with `stores()`: a list of objects that keep parameters in flat vectors (layers/store.py).
Every formula is PyTorch's, element by element (kernels/update.py), so that results do not depend on the
number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .kernels import update as kernels
from .losses import check_number
from .threads import launch, workers_for

__all__ = ["SGD", "Adagrad", "Adam", "RMSProp", "clip_grad_norm", "clip_grad_value"]

# What one element costs, in multiply-adds of a matrix product: about 80 of those in a nanosecond.
COST = 30
TINY = float(np.finfo(np.float32).tiny)


def _run(kernel: Any, count: int, *args: Any) -> None:
    """Launches a kernel on vectors of `count` elements."""
    work = float(COST * count)
    launch(kernel, workers_for(work, -(-count // kernels.CHUNK)), 1, work, count, *args)


def _stores(model: Any) -> list[Any]:
    """The model's stores, each once: layers may share one."""
    if not callable(getattr(model, "stores", None)):
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
# Optimizers
# ---------------------------------------------------------------------------------------------------


class _Optimizer:
    """What they share: the learning rate, vectors of the parameters' size, and saving both.

    `_vectors` names the vectors, `_options` holds the numbers beside the learning rate.
    """

    _vectors: tuple[str, ...] = ()

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
        below_one = ("momentum", "alpha", "beta1", "beta2")
        for name, value in numbers.items():
            number = check_number(name, value)
            if name == "lr" and not 0 <= number < math.inf:
                raise ValueError(f"lr is {value}, expected a finite number from 0")
            if name in below_one and not 0 <= number < 1:
                raise ValueError(f"{name} is {value}, expected a number from 0 to below 1")
            # If eps rounds to 0, a weight whose gradients have all been 0 so far becomes 0 / 0.
            if name == "eps" and not TINY <= number < math.inf:
                raise ValueError(f"eps is {value}, expected a finite number above {TINY:.1e}")

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

    def state_dict(self) -> dict[str, Any]:
        """All that the optimizer remembers, by name: arrays (copies) and numbers.

        With it and the parameters restored, training goes on bit for bit as if it had never stopped.
        """
        arrays = {name: array.copy() for name, array in self._state.items()}
        return {"lr": self._lr, "steps": self._steps, **self._options, **arrays}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, of an optimizer of the same kind for a model of the same shape.

        All or nothing: `ValueError` for names that are missing or too many, for shapes and numbers that do
        not fit, and `TypeError` for types, leave the optimizer as it is.
        """
        mine = {"lr", "steps", *self._options, *self._state}
        if missing := sorted(mine - set(state)):
            raise ValueError(f"the state lacks {', '.join(missing)}: is it of another kind of optimizer?")
        if unknown := sorted(set(state) - mine):
            raise ValueError(f"the state has {', '.join(unknown)}, which {type(self).__name__} doesn't know")
        self._check({name: state[name] for name in ("lr", *self._options)})
        steps = state["steps"]
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer):
            raise TypeError(f"steps is {type(steps).__name__}, expected an int")
        if steps < 0:
            raise ValueError(f"steps is {steps}, expected a number from 0")
        arrays = {name: np.asarray(state[name]) for name in self._state}
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
    """Stochastic gradient descent, with momentum on request.

        v = momentum v + g        w = w - lr v

    Without momentum v is g, and no vector is kept. (Robbins and Monro 1951; Polyak 1964; PyTorch's form.)

    model : a layer or a model; lr : the learning rate, from 0; momentum : from 0 to below 1

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[0.5, -1.0]]
    >>> fr.SGD(layer, lr=0.5).step()
    >>> layer.params["weight"].tolist()
    [[0.75, 2.5]]
    """

    def __init__(self, model: Any, lr: float, momentum: float = 0.0) -> None:
        self._vectors = ("v",) if momentum else ()
        super().__init__(model, lr, momentum=momentum)

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        if vectors:
            _run(kernels.sgd_momentum, w.size, self._lr, self._options["momentum"], w, g, *vectors)
        else:
            _run(kernels.sgd, w.size, self._lr, w, g)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As every optimizer's; momentum must be zero in both or in neither."""
        if "momentum" in state and bool(state["momentum"]) != bool(self._vectors):
            raise ValueError(f"the state has momentum {state['momentum']}, this optimizer {self._options['momentum']}")
        super().load_state_dict(state)


class Adagrad(_Optimizer):
    """Adagrad: a learning rate for each weight, smaller the more that weight has been moved.

        s = s + g^2        w = w - lr g / (sqrt(s) + eps)

    With `inside_sqrt` the root is sqrt(s + eps), as min-char-rnn has it. (Duchi, Hazan and Singer 2011.)

    model : a layer or a model; lr : the learning rate, from 0; eps : above 0

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[8.0, -0.125]]
    >>> fr.Adagrad(layer, lr=0.5).step()  # the first step is lr, whatever the gradient
    >>> layer.params["weight"].round(6).tolist()
    [[0.5, 2.5]]
    """

    _vectors = ("s",)

    def __init__(self, model: Any, lr: float, eps: float = 1e-10, inside_sqrt: bool = False) -> None:
        super().__init__(model, lr, eps=eps, inside_sqrt=int(bool(inside_sqrt)))

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        eps = self._options["eps"]
        outside, inside = (0.0, eps) if self._options["inside_sqrt"] else (eps, 0.0)
        _run(kernels.adagrad, w.size, self._lr, outside, inside, w, g, *vectors)


class RMSProp(_Optimizer):
    """RMSProp: Adagrad with a memory that fades.

        s = alpha s + (1 - alpha) g^2        w = w - lr g / (sqrt(s) + eps)

    (Tieleman and Hinton 2012; PyTorch's form.)

    model : a layer or a model; lr : the learning rate, from 0; alpha : from 0 to below 1; eps : above 0

    >>> import fastrnn as fr, numpy as np
    >>> layer = fr.Linear(2, 1, bias=False, seed=0)
    >>> layer.params["weight"] = np.float32([[1.0, 2.0]])
    >>> layer.grads["weight"][:] = [[8.0, -0.125]]
    >>> fr.RMSProp(layer, lr=0.25, alpha=0.75).step()  # g / sqrt(g^2 / 4) = 2
    >>> layer.params["weight"].round(6).tolist()
    [[0.5, 2.5]]
    """

    _vectors = ("s",)

    def __init__(self, model: Any, lr: float, alpha: float = 0.99, eps: float = 1e-8) -> None:
        super().__init__(model, lr, alpha=alpha, eps=eps)

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        alpha, eps = self._options["alpha"], self._options["eps"]
        _run(kernels.rmsprop, w.size, self._lr, alpha, 1.0 - alpha, eps, w, g, *vectors)


class Adam(_Optimizer):
    """Adam: the step is the mean of recent gradients over the root of the mean of their squares.

        m = beta1 m + (1 - beta1) g        s = beta2 s + (1 - beta2) g^2
        w = w - lr M / (sqrt(S) + eps)     M = m / (1 - beta1^t),  S = s / (1 - beta2^t)

    in the t-th step; the divisions make up for m and s having started from zero. (Kingma and Ba 2015.)

    model : a layer or a model; lr : the learning rate, from 0
    betas : two numbers from 0 to below 1; eps : above 0

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
        self, model: Any, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise TypeError(f"betas is {betas!r}, expected two numbers")
        super().__init__(model, lr, beta1=betas[0], beta2=betas[1], eps=eps)

    def _update(self, w: np.ndarray, g: np.ndarray, *vectors: np.ndarray) -> None:
        beta1, beta2, eps = (self._options[name] for name in ("beta1", "beta2", "eps"))
        t = self._steps
        step, root = self._lr / (1.0 - beta1**t), 1.0 / math.sqrt(1.0 - beta2**t)
        _run(kernels.adam, w.size, step, 1.0 - beta1, beta2, 1.0 - beta2, root, eps, w, g, *vectors)
