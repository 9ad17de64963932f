"""The embedding layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..checks import check_array, check_choice, check_dtype, check_indices, check_size, make_generator
from ..kernels import embedding as kernels
from ..simd.target import lanes
from ..threads import launch, workers_for
from .layer import Layer, Tape, check_tape
from .products import PIECES, gather
from .store import Store

MISSING = ("random", "zero", "error")


class Embedding(Layer):
    """Row `ids` of a (num, dim) matrix. Parameter as PyTorch's `nn.Embedding`: `weight`, standard normal at first.

    frozen : the matrix stays as it is: it has no gradient, and optimizers leave it alone. It can still be set, by
        `params` or `load_state_dict`.

    >>> import fastrnn as fr, numpy as np
    >>> embedding = fr.Embedding(10, 4)
    >>> embedding(np.array([[1, 2, 3]])).shape
    (1, 3, 4)
    """

    takes_indices = True
    takes_numbers = False

    def __init__(
        self, num: int, dim: int, dtype: Any = "float32", seed: int | None = None, frozen: bool = False
    ) -> None:
        self._build(num, dim, dtype, frozen)
        self.store.assign({"weight": make_generator(seed).standard_normal((self.num, self.dim))})

    def _build(self, num: int, dim: int, dtype: Any, frozen: bool) -> None:
        self.num, self.dim, self.dtype = check_size("num", num), check_size("dim", dim), check_dtype(dtype)
        if not isinstance(frozen, bool | np.bool_):
            raise TypeError(f"frozen is {type(frozen).__name__}, expected a bool")
        self.store = Store({"weight": (self.num, self.dim)}, self.dtype, bool(frozen))
        super().__init__({"": self.store})

    @classmethod
    def from_word_vectors(
        cls,
        vectors: Any,
        words: Sequence[str] | None = None,
        missing: str = "random",
        dtype: Any = None,
        seed: int | None = None,
        frozen: bool = True,
    ) -> Embedding:
        """An embedding whose row k is the vector of words[k].

        vectors : `WordVectors`, as `load_word_vectors` returns them
        words : the caller's vocabulary, in its order; None for all words of `vectors` in theirs
        missing : what becomes of a word that has no vector: "random" (normal numbers with the standard deviation of all
            those in `vectors`: in scale with the others, as Kim 2014 does), "zero", or "error" (`ValueError` names
            the first few). Train random ones with frozen=False.
        dtype : that of `vectors` if None
        frozen : as PyTorch's `from_pretrained`, True unless said otherwise

        >>> import fastrnn as fr, numpy as np
        >>> vectors = fr.WordVectors(["the", "cat"], np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> embedding = fr.Embedding.from_word_vectors(vectors, ["<pad>", "cat", "the"], missing="zero")
        >>> embedding(np.array([0, 1, 2])).tolist()
        [[0.0, 0.0], [3.0, 4.0], [1.0, 2.0]]
        """
        index, matrix = getattr(vectors, "index", None), getattr(vectors, "vectors", None)
        if not isinstance(index, dict) or not isinstance(matrix, np.ndarray):
            raise TypeError(f"vectors is {type(vectors).__name__}, expected what load_word_vectors returns")
        if isinstance(words, str):
            raise TypeError("words is a str, expected a list of words (list(words), if they are single characters)")
        words = vectors.words if words is None else list(words)
        for k, word in enumerate(words):
            if not isinstance(word, str):
                raise TypeError(f"words[{k}] is {type(word).__name__}, expected a str")
        if not words:
            raise ValueError("words is empty, expected at least one word")
        check_choice("missing", missing, MISSING)
        rows = np.array([index.get(word, -1) for word in words])
        absent = np.flatnonzero(rows < 0)
        if absent.size and missing == "error":
            few = ", ".join(repr(words[k]) for k in absent[:5]) + (", ..." if absent.size > 5 else "")
            raise ValueError(f"words has {absent.size} of {len(words)} words without a vector: {few}")
        if absent.size and missing == "random" and not matrix.size:
            raise ValueError("vectors is empty: there is no standard deviation for random ones; pass missing='zero'")

        layer = cls.__new__(cls)
        layer._build(len(words), matrix.shape[1], matrix.dtype if dtype is None else dtype, frozen)
        with layer.store.writing() as values:
            weight = values[layer.store._where["weight"]].reshape(layer.num, layer.dim)
            known = np.flatnonzero(rows >= 0)
            weight[known] = matrix[rows[known]]
            if absent.size and missing == "random":
                scale = float(matrix.std(dtype=np.float64))
                weight[absent] = scale * make_generator(seed).standard_normal((absent.size, layer.dim))
        return layer

    @property
    def frozen(self) -> bool:
        """Whether the matrix has no gradient; decided when the layer is made."""
        return self.store.frozen

    @property
    def flat(self) -> np.ndarray:
        """The matrix, flat, as kernels take it."""
        return self.store.flat("weight")

    def check(self, ids: Any) -> np.ndarray:
        """`ids` as int64, each 0 <= id < num."""
        return check_indices("ids", ids, self.num, "num")

    def add_grad(self, dweight: np.ndarray) -> None:
        """Adds a gradient of the whole matrix, unless it is frozen."""
        if self.frozen:
            return
        with self.store._lock:
            self.store.add_grad("weight", dweight)

    @property
    def width(self) -> int:
        return self.num

    def __call__(self, ids: Any) -> np.ndarray:
        """ids (...) of any integer type to (..., dim)."""
        return self._rows(self.check(ids))

    def _rows(self, ids: np.ndarray) -> np.ndarray:
        return gather(self.flat.reshape(self.num, self.dim), ids.reshape(-1)).reshape(*ids.shape, self.dim)

    def forward(self, ids: Any) -> tuple[np.ndarray, Tape]:
        """`y, tape`"""
        ids = self.check(ids)
        return self._rows(ids), Tape(self, ids.shape, ids)

    def backward(self, tape: Tape, dy: Any) -> None:
        """Adds each row of dy (..., dim) to the gradient of the row it came from, unless the matrix is frozen."""
        shape = check_tape(tape, self).shape
        dy = check_array("dy", dy, self.dtype, "... D", {"D": self.dim})
        if dy.shape[:-1] != shape:
            raise ValueError(f"dy has shape {dy.shape}, expected {(*shape, self.dim)}, that of y")
        ids = tape.open(self)
        if self.frozen:
            return
        work, pieces = float(dy.size), min(-(-self.dim // lanes(self.dtype)), PIECES)
        with self.store._lock:
            launch(
                kernels.scatter_add, workers_for(work, pieces), 1, work,
                ids.size, self.dim, pieces, ids.reshape(-1), dy.reshape(-1), self.store.grad("weight").reshape(-1),
            )  # fmt: skip
