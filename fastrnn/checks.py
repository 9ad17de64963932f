"""The checks at the border: an argument is right, is made right, or is refused with what was wrong and what was wanted.

Every layer, loss and optimizer calls them, once, before compiled code, which checks nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

DTYPES = (np.dtype("float32"), np.dtype("float64"))
INDEX = np.dtype("int64")


def check_dtype(dtype: Any) -> np.dtype:
    """float32 or float64."""
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"dtype is {dtype!r}, expected 'float32' or 'float64'") from None
    if dtype not in DTYPES:
        raise TypeError(f"dtype is {dtype}, expected 'float32' or 'float64'")
    return dtype


def check_size(name: str, value: Any, least: int = 1) -> int:
    """A whole number, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {type(value).__name__}, expected an int")
    if value < least:
        raise ValueError(f"{name} is {value}, expected at least {least}")
    return int(value)


def check_probability(name: str, value: Any) -> float:
    """0 <= value < 1."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} is {type(value).__name__}, expected a number")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} is {value}, expected 0 <= {name} < 1")
    return float(value)


def check_choice(name: str, value: Any, choices: Iterable[str | None]) -> Any:
    """One of the names that there are, or None, if that is one."""
    every = list(choices)
    if not isinstance(value, str | None) or value not in every:
        *most, last = map(repr, every)
        raise ValueError(f"{name} is {value!r}, expected {', '.join(most)} or {last}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Yes or no: whatever Python can decide about."""
    try:
        return bool(value)
    except ValueError:  # an array
        raise TypeError(f"{name} is {type(value).__name__}, expected a bool") from None


def said(shape: tuple[Any, ...]) -> str:
    """A shape as the messages print it: letters stay letters."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def check_array(name: str, a: Any, dtype: np.dtype, letters: str, sizes: Mapping[str, int]) -> np.ndarray:
    """`a` as a C-contiguous, aligned, native array of `dtype`; copied only if it is not one.

    letters : a letter for each axis, "T B I"; "... I" allows any axes before the last
    sizes : the sizes that are fixed
    """
    convert = type(a) is not np.ndarray or a.dtype != dtype
    if convert:
        a = _numbers(name, a, dtype)
    names = letters.split()
    loose = names[0] == "..."
    tail = names[1:] if loose else names
    fits = a.ndim >= len(tail) if loose else a.ndim == len(tail)
    if fits:
        for letter, size in zip(tail, a.shape[a.ndim - len(tail) :], strict=True):
            if letter in sizes and sizes[letter] != size:
                fits = False
    if not fits:
        fixed = ", ".join(f"{k}={sizes[k]}" for k in tail if k in sizes)
        wanted = said(tuple(names)) + (f" with {fixed}" if fixed else "")
        raise ValueError(f"{name} has shape {a.shape}, expected {wanted}")
    if convert:
        a = a.astype(dtype)  # only now: a view of one number may have any shape, and its copy no memory
    return a if a.flags.carray else contiguous(a)


def as_array(name: str, a: Any) -> np.ndarray:
    """`a` as an array of whatever it holds."""
    try:
        return np.asarray(a)
    except ValueError:
        raise ValueError(f"{name} is ragged, expected an array") from None


def _numbers(name: str, a: Any, dtype: np.dtype) -> np.ndarray:
    """`a` as an array of numbers that `dtype` can hold."""
    if not isinstance(a, np.ndarray | np.number | list | tuple | int | float):
        raise TypeError(f"{name} is {type(a).__name__}, expected an array of {dtype}")
    python = not isinstance(a, np.ndarray | np.number)
    a = as_array(name, a)
    # Wider numbers would lose digits without anybody having said so; Python's own carry no width to lose.
    if a.dtype.kind not in "fiu" or not (python or np.can_cast(a.dtype, dtype)):
        raise TypeError(f"{name} has dtype {a.dtype}, expected {dtype}: convert it, or make the layer with that dtype")
    return a


def contiguous(a: np.ndarray) -> np.ndarray:
    """`a` C-contiguous, aligned and typed as writable, which kernels are compiled for once and for all."""
    if not (a.flags.c_contiguous and a.flags.aligned):
        a = np.require(a, requirements=["C", "A"])
    if a.flags.writeable:
        return a
    if a.size == 0:
        return a.copy()
    a = a.view()
    try:
        a.flags.writeable = True  # of what a layer has returned, whose memory is
    except ValueError:
        return np.asarray(_Writable(a))
    return a


class _Writable:
    """A read-only array seen as writable: the kernels that read it are compiled for one type, not for two."""

    def __init__(self, a: np.ndarray) -> None:
        self._keep = a
        self.__array_interface__ = dict(a.__array_interface__, data=(a.ctypes.data, False))


def check_indices(name: str, ids: Any, bound: int, what: str) -> np.ndarray:
    """`ids` as contiguous int64, each 0 <= id < bound."""
    one = type(ids) is np.ndarray and ids.size == 1 and ids.dtype is INDEX and ids.flags.aligned
    if one and 0 <= ids.item() < bound:  # a step of a stream has no time for the rest
        return ids
    ids = as_array(name, ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {ids.dtype}, expected integers")
    # Copied before they are looked at: of a view of one number that claims any shape, the copy fails at once.
    whole = contiguous(ids.astype(np.int64, copy=False))
    if whole.size and whole.view(np.uint64).max() >= bound:  # or below 0
        if ids.dtype == np.uint64:
            whole = ids
        raise ValueError(f"{name} holds {whole.min()} to {whole.max()}, expected 0 <= {name} < {what}={bound}")
    return whole


def check_lengths(lengths: Any, steps: int, batch: int) -> np.ndarray:
    """`lengths` as int64 (B,), each 0 <= length <= T; all T if None."""
    if lengths is None:
        return np.full(batch, steps)
    given = as_array("lengths", lengths)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"lengths has dtype {given.dtype}, expected integers")
    if given.shape != (batch,):
        raise ValueError(f"lengths has shape {given.shape}, expected (B,) with B={batch}")
    if batch and (given.min() < 0 or given.max() > steps):
        raise ValueError(f"lengths holds {given.min()} to {given.max()}, expected 0 <= length <= T={steps}")
    return given.astype(np.int64)


def check_segments(segments: Any, steps: int) -> int | None:
    """Into how many segments T steps are divided: a number from 1 to T, or about its root ("sqrt"); None for None."""
    if segments is None:
        return None
    if isinstance(segments, str) and segments == "sqrt":
        return math.isqrt(steps - 1) + 1
    if isinstance(segments, bool) or not isinstance(segments, int | np.integer | str):
        raise TypeError(f"segments is {type(segments).__name__}, expected an int, 'sqrt' or None")
    if isinstance(segments, str) or not 1 <= segments <= steps:
        raise ValueError(f"segments is {segments!r}, expected 1 <= segments <= T={steps}, 'sqrt' or None")
    return int(segments)


def check_number(name: str, value: Any) -> float:
    """A number as a float; NaN and infinity are numbers too."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {type(value).__name__}, expected a number")
    return float(value)


def make_generator(seed: Any) -> np.random.Generator:
    """The random generator of an argument `seed`: None, a number from 0, or whatever else NumPy takes for one."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise type(error)(f"seed is {seed!r}, expected a number from 0 or None") from None


def check_mapping(name: str, value: Any) -> Mapping[str, Any]:
    """A dict, or something like it."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} is {type(value).__name__}, expected a dict, as state_dict() returns it")
    return value
