"""The linear layer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numba.core import config

from .._jit import SMALL
from ..checks import check_array, check_dtype, check_flag, check_size, make_generator
from ..kernels import matmul
from .layer import NOT_TAKEN, Layer, Tape, check_tape
from .products import add_column_sums, add_gradient, multiply, pack
from .store import Store


class Linear(Layer):
    """y = V x + c, on the last axis.

    Parameters as PyTorch's `nn.Linear`: `weight` (O, I), `bias` (O,); they start uniform in +-1 / sqrt(I).

    >>> import fastrnn as fr, numpy as np
    >>> linear = fr.Linear(3, 2, seed=0)
    >>> y, tape = linear.forward(np.ones((7, 4, 3), np.float32))
    >>> y.shape, linear.backward(tape, np.ones_like(y)).shape
    ((7, 4, 2), (7, 4, 3))
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, dtype: Any = "float32", seed: int | None = None
    ) -> None:
        self.in_features = check_size("in_features", in_features)
        self.out_features = check_size("out_features", out_features)
        self.bias, self.dtype = check_flag("bias", bias), check_dtype(dtype)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.out_features, self.in_features)}
        if self.bias:
            shapes["bias"] = (self.out_features,)
        self.store = Store(shapes, self.dtype)
        super().__init__({"": self.store})
        rng, bound = make_generator(seed), 1 / math.sqrt(self.in_features)
        self.store.assign({name: rng.uniform(-bound, bound, shape) for name, shape in shapes.items()})
        self._none = np.empty(0, self.dtype)
        self._ready: tuple[int, Any] | None = None  # a version of the parameters, and their product for one small step

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ready": None}  # compiled code stays where it is

    @property
    def width(self) -> int:
        return self.in_features

    def __call__(self, x: Any) -> np.ndarray:
        """x (..., I) to y (..., O)."""
        if self._ready is not None:
            # One small step, for streams, as in Recurrent: what it does not take goes the long way.
            try:
                version, step = self._ready
                if version == self.store.version and x.dtype.isnative:
                    y = np.empty((1, x.shape[1], self.out_features), self.dtype)
                    if step(x, y):
                        return y
            except NOT_TAKEN:
                pass
        x = check_array("x", x, self.dtype, "... I", {"I": self.in_features})
        version = self.store.version
        packed, bias = self.packed()
        if x.ndim == 3 and len(x) == 1 and x.shape[1] * packed.size <= SMALL:
            self._make_ready(version, packed, bias)
        y = multiply(x.reshape(-1, self.in_features), packed, self.out_features, bias)
        return y.reshape(*x.shape[:-1], self.out_features)

    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """The weight, packed for `multiply`, and the bias, or nothing."""
        i, o = self.in_features, self.out_features
        packed = self.store.made("w", lambda: pack(i, o, self.store.flat("weight"), True))
        return packed, self.store.flat("bias") if self.bias else self._none

    def _make_ready(self, version: int, packed: np.ndarray, bias: np.ndarray) -> None:
        """Lets later steps take the quick way, as long as the parameters are of this version."""
        if config.DISABLE_JIT or (self._ready is not None and self._ready[0] == version):
            return
        a = np.empty((1, 1, 1), self.dtype)
        self._ready = version, partial(matmul.product_step.for_types(packed, bias, a, a), packed, bias)

    def forward(self, x: Any) -> tuple[np.ndarray, Tape]:
        """`y, tape`; x is referred to until `backward`."""
        x = check_array("x", x, self.dtype, "... I", {"I": self.in_features})
        return self(x), Tape(self, x.shape, x)

    def backward(self, tape: Tape, dy: Any) -> np.ndarray:
        """dx (..., I) from dy (..., O); adds dV = dy^T x and dc = sum of dy into `grads`."""
        shape = check_tape(tape, self).shape
        dy = check_array("dy", dy, self.dtype, "... O", {"O": self.out_features})
        if dy.shape[:-1] != shape[:-1]:
            raise ValueError(f"dy has shape {dy.shape}, expected {(*shape[:-1], self.out_features)}, that of y")
        x = tape.open(self).reshape(-1, self.in_features)
        dz = dy.reshape(-1, self.out_features)
        with self.store._lock:
            add_gradient(self.store.grad("weight"), x, dz)
            if self.bias:
                add_column_sums(self.store.grad("bias"), dz)
        packed = self.store.made(
            "wt", lambda: pack(self.out_features, self.in_features, self.store.flat("weight"), False)
        )
        return multiply(dz, packed, self.in_features, self._none).reshape(shape)
