"""Text in, integers out: reading files, the vocabulary, the splits and the streams that training walks along.

Letters: `T` time steps, `B` parallel rows, `V` characters in the vocabulary, `N` characters in a text.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

__all__ = ["Streams", "Vocabulary", "read_text", "split_text", "standard_library_text"]

# Parts of the standard library that are tests, tables of data or somebody else's: not its own prose.
_NOT_PROSE = {
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idle_test", "idlelib", "lib-dynload",
    "lib2to3", "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark is the beginning of this one
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
    """The text of a file, its line ends made `\\n` and a byte-order mark at its beginning removed.

    `encoding` is any text encoding that this Python can decode. `ValueError` names the file when the encoding
    is unknown, when the bytes are not text in it (with the place of the first bad byte), or when there is no
    text; `OSError` is the operating system's word on a file that can't be read.
    """
    name = os.fspath(path)
    data = Path(path).read_bytes()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        hint = next((f"it looks like {e}" for mark, e in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), None)
        raise ValueError(
            f"{name}: not {encoding} text: byte 0x{data[error.start]:02x} at position {error.start:,} "
            f"({error.reason}); name its encoding, {hint or 'latin-1 or cp1252 perhaps'}"
        ) from None
    except (
        LookupError,
        ValueError,
    ) as error:  # unknown, no encoding of text, undecodable in a way of its own
        raise ValueError(f"{name}: can't be decoded as {encoding!r}: {error}") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise ValueError(f"{name}: there is no text in this file")
    return text


def standard_library_text(max_characters: int = 2_000_000) -> str:
    """The source text of Python's standard library: real text that every user has, without a download.

    The order of the files is fixed and mixed (by a digest of their names), so that the end of the text, where
    validation takes place, is of the same kind as its beginning. Files that are not plain ASCII are left out.

    >>> text = standard_library_text(max_characters=1000)
    >>> len(text), text.isascii()
    (1000, True)
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_PROSE and not name.startswith("config-")]
        files += [Path(folder, name) for name in names if name.endswith(".py") and not name.startswith("_sysconfig")]
    files.sort(key=lambda file: hashlib.sha256(file.relative_to(root).as_posix().encode()).digest())
    parts, size = [], 0
    for file in files:
        if size >= max_characters:
            break
        try:
            part = file.read_text("ascii")
        except (OSError, UnicodeDecodeError):
            continue
        parts.append(part)
        size += len(part)
    if not size:
        raise ValueError(f"no source of the standard library is at {root}: name a text file instead")
    return "".join(parts)[:max_characters]


def split_text(text: str, validation: float = 0.05, held_out: float = 0.05) -> tuple[str, str, str]:
    """`text` as three contiguous parts: for training, for validation, and held out for the final score.

    `validation` and `held_out` are fractions of the text, taken from its end; either may be 0.

    >>> split_text("abcdefghij", validation=0.2, held_out=0.1)
    ('abcdefg', 'hi', 'j')
    """
    for name, fraction in (("validation", validation), ("held_out", held_out)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} must be a fraction of the text, from 0 to below 1; got {fraction}")
    if validation + held_out >= 1:
        raise ValueError(f"validation and held_out leave nothing to train on: {validation} + {held_out}")
    end = len(text) - round(held_out * len(text))
    middle = end - round(validation * len(text))
    return text[:middle], text[middle:end], text[end:]


class Vocabulary:
    """The distinct characters of a text, by code point; a character's index is its place among them.

    >>> vocabulary = Vocabulary("hello")
    >>> vocabulary.characters, len(vocabulary)
    ('ehlo', 4)
    >>> vocabulary.encode("hole").tolist()
    [1, 3, 2, 0]
    >>> vocabulary.decode([1, 3, 2, 0])
    'hole'
    """

    def __init__(self, text: str):
        if not isinstance(text, str):
            raise TypeError(f"text must be a str, got {type(text).__name__}")
        if not text:
            raise ValueError("text is empty: a vocabulary needs at least one character")
        self.characters = "".join(sorted(set(text)))
        self._points = _code_points(self.characters)  # (V,) ascending

    def __len__(self) -> int:
        return len(self.characters)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.characters == other.characters

    def __hash__(self) -> int:
        return hash(self.characters)

    def __repr__(self) -> str:
        return f"Vocabulary({self.characters!r})"

    def encode(self, text: str, what: str = "text") -> np.ndarray:
        """The indices, int32 (N,), of the characters of `text`.

        `ValueError` names those that are not in the vocabulary; `what` is what it calls the text.

        >>> Vocabulary("hello").encode("hippo", what="prime")
        Traceback (most recent call last):
        ...
        ValueError: prime has characters that the training text does not have: 'i' (U+0069), 'p' (U+0070)
        """
        ids, known = self._look_up(text)
        if not known.all():
            raise ValueError(f"{what} has characters that the training text does not have: {self._unseen(text)}")
        return ids

    def encode_known(self, text: str) -> tuple[np.ndarray, int]:
        """Indices of the characters that the vocabulary has, and the number of the others, left out.

        >>> ids, unseen = Vocabulary("hello").encode_known("hippo")
        >>> ids.tolist(), unseen
        ([1, 3], 3)
        """
        ids, known = self._look_up(text)
        return ids[known], int(len(ids) - known.sum())

    def decode(self, ids: np.ndarray | list[int]) -> str:
        """The text of indices (N,); `ValueError` for an index outside the vocabulary."""
        ids = np.asarray(ids, dtype=np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < len(self):
            raise ValueError(f"ids must be in 0 ... {len(self) - 1}, got {ids.min()} ... {ids.max()}")
        return self._points[ids].tobytes().decode("utf-32-le", "surrogatepass")

    def _look_up(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        points = _code_points(text)
        ids = np.minimum(self._points.searchsorted(points), len(self) - 1).astype(np.int32)
        return ids, self._points[ids] == points

    def _unseen(self, text: str, at_most: int = 10) -> str:
        unseen = sorted(set(text) - set(self.characters))
        names = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in unseen[:at_most])
        return names + (f" and {len(unseen) - at_most} more" if len(unseen) > at_most else "")


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class Streams:
    """A text as `B` contiguous rows, read side by side in chunks of `T` steps.

    Row `b` is the `b`-th part of the text, so that the state after one chunk is the state before the next
    one, and the target of every character is the one that follows it. What does not fill the rows, fewer than
    `B` characters at the end, is left out; the last chunk may be shorter than `T`. A text too short to give
    every row `T` steps gets fewer rows.

    >>> streams = Streams(np.arange(12), batch_size=2, seq_length=3)
    >>> for x, target in streams:
    ...     print(x.T.tolist(), target.T.tolist())
    [[0, 1, 2], [5, 6, 7]] [[1, 2, 3], [6, 7, 8]]
    [[3, 4], [8, 9]] [[4, 5], [9, 10]]
    """

    def __init__(self, ids: np.ndarray, batch_size: int, seq_length: int):
        if len(ids) < 2:
            raise ValueError(f"a text of at least 2 characters is needed, got {len(ids)}")
        self.seq_length = seq_length
        self.rows = max(1, min(batch_size, (len(ids) - 1) // seq_length))
        steps = (len(ids) - 1) // self.rows  # of every row
        # One array (steps + 1, B): a chunk and its targets are contiguous views of it, one step apart.
        columns = [ids[row * steps : (row + 1) * steps + 1] for row in range(self.rows)]
        self._ids = np.ascontiguousarray(np.stack(columns, axis=1), dtype=np.int32)
        self.steps = steps
        self.characters = steps * self.rows  # that one pass predicts

    def __len__(self) -> int:
        """The number of chunks in one pass."""
        return -(-self.steps // self.seq_length)

    def chunk(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Input and target of chunk `index`, int32, each (T, B): contiguous views, not to be written to."""
        start = index * self.seq_length
        end = min(start + self.seq_length, self.steps)
        return self._ids[start:end], self._ids[start + 1 : end + 1]

    def between(self, start: int, end: int) -> np.ndarray:
        """Steps `start` to before `end` of all rows, int32 (end - start, B): a view, not to be written to."""
        return self._ids[start:end]

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self.chunk(index) for index in range(len(self)))
