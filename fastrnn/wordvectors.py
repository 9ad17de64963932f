"""Word vectors from files: word2vec's two formats and GloVe's, plain or gzipped.

    word2vec-text      a line "N D", then N lines "word 0.1 -0.2 ..." (fastText's .vec is the same)
    word2vec-binary    a line "N D", then N times: the word, a space, D float32 little-endian (and perhaps a line end)
    glove              lines "word 0.1 -0.2 ..." alone; a word may have spaces in it

    N, D    words in the file, numbers in a vector

A file is data from elsewhere: nothing of the size that it claims is allocated before as much has been read.
"""

from __future__ import annotations

import codecs
import gzip
import os
import re
import zlib
from collections.abc import Collection, Iterator
from typing import IO, Any

import numpy as np

from .checks import check_dtype, check_size

__all__ = ["WordVectors", "load_word_vectors"]

FORMATS = ("word2vec-text", "word2vec-binary", "glove")
LONGEST_VECTOR = 1 << 16  # numbers; real ones have some hundreds
LONGEST_WORD = 1 << 16  # bytes
LONGEST_LINE = 32 * LONGEST_VECTOR + LONGEST_WORD  # bytes
BLOCK = 1 << 20  # bytes read at once
PEEK = 1 << 16  # bytes that a format is known by

# What people pass by mistake, by how it begins.
FOREIGN = {
    b"PK\x03\x04": "a zip archive (or .npz, .pt): unpack it and pass the text or binary file inside",
    b"BZh": "compressed with bzip2: unpack it first (gzip is read as it is)",
    b"\xfd7zXZ": "compressed with xz: unpack it first (gzip is read as it is)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it first (gzip is read as it is)",
    b"\xba\x16\x4f\x2f": "fastText's own .bin model: pass the .vec file that comes with it",
    b"\x93NUMPY": "a NumPy array, without words: fr.WordVectors(words, np.load(path)) takes it",
    b"\x89HDF": "an HDF5 file: write its vectors as text first",
    b"\x80\x02": "a Python pickle: write its vectors as text first (gensim: save_word2vec_format)",
    b"\x80\x03": "a Python pickle: write its vectors as text first (gensim: save_word2vec_format)",
    b"\x80\x04": "a Python pickle: write its vectors as text first (gensim: save_word2vec_format)",
    b"\x80\x05": "a Python pickle: write its vectors as text first (gensim: save_word2vec_format)",
    codecs.BOM_UTF16_LE: "UTF-16 text: convert it to UTF-8 first",
    codecs.BOM_UTF16_BE: "UTF-16 text: convert it to UTF-8 first",
}


class WordVectors:
    """Words and their vectors.

    words : list of str, each once
    index : dict, word -> row
    vectors : (num, dim), float32 or float64; row k is the vector of words[k]

    >>> import fastrnn as fr, numpy as np
    >>> vectors = fr.WordVectors(["the", "cat"], np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))
    >>> len(vectors), vectors.dim, "cat" in vectors, vectors.index["cat"], vectors["cat"].tolist()
    (2, 2, True, 1, [3.0, 4.0])
    """

    def __init__(self, words: Collection[str], vectors: Any) -> None:
        if isinstance(words, str):
            raise TypeError("words is a str, expected a list of words")
        self.words: list[str] = list(words)
        self.vectors = np.asarray(vectors)
        check_dtype(self.vectors.dtype)
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.words):
            raise ValueError(
                f"vectors has shape {self.vectors.shape}, expected (num, dim) with num={len(self.words)}, one a word"
            )
        self.index: dict[str, int] = {word: row for row, word in enumerate(self.words)}
        if len(self.index) < len(self.words):
            again = next(word for row, word in enumerate(self.words) if self.index[word] != row)
            raise ValueError(f"words has {again!r} twice")

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: object) -> bool:
        return word in self.index

    def __getitem__(self, word: str) -> np.ndarray:
        """The vector (dim,) of a word; `KeyError` if there is none."""
        return self.vectors[self.index[word]]

    def __repr__(self) -> str:
        return f"<WordVectors: {len(self):,} words, dim={self.dim}, {self.vectors.dtype}>"


def load_word_vectors(
    path: str | os.PathLike[str],
    words: Collection[str] | None = None,
    limit: int | None = None,
    dtype: Any = "float32",
    format: str | None = None,
    encoding: str = "utf-8",
    errors: str = "strict",
) -> WordVectors:
    """The words and vectors of a word2vec (text or binary) or GloVe file, plain or gzipped, in the file's order.

    words : only these, as far as the file has them; reading ends when all are found, and the numbers of others are
        not looked at
    limit : only the first `limit` words of the file; files begin with the most frequent ones
    dtype : of the vectors, float32 or float64
    format : "word2vec-text", "word2vec-binary" or "glove"; None tells them apart by what the file begins with. Needed
        where that can mislead: a GloVe file whose first line is a whole number and one more whole number.
    encoding, errors : of the words, as `bytes.decode` takes them, for encodings that contain ASCII. With
        errors="replace" a word that is not in the encoding gets U+FFFD for what can't be read.

    A word that comes again keeps its first vector. `ValueError` says what is wrong with a file and where: not one of
    these formats, damaged, truncated, longer than its header says, a number that is none or not finite, a word that
    is not in the encoding. `OSError` is the system's word on a file that can't be read.

    >>> import fastrnn as fr
    >>> with open("vectors.txt", "w") as file:
    ...     _ = file.write("the 0.5 -1 2\\ncat 1 0 0.25\\n")
    >>> vectors = fr.load_word_vectors("vectors.txt")
    >>> vectors.words, vectors["cat"].tolist()
    (['the', 'cat'], [1.0, 0.0, 0.25])
    >>> embedding = fr.Embedding.from_word_vectors(vectors, ["cat", "dog", "the"], missing="zero")
    >>> embedding.params["weight"].tolist()
    [[1.0, 0.0, 0.25], [0.0, 0.0, 0.0], [0.5, -1.0, 2.0]]
    """
    dtype = check_dtype(dtype)
    if isinstance(words, str):
        raise TypeError("words is a str, expected a collection of words")
    if limit is not None:
        limit = check_size("limit", limit)
    if format is not None and format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected None, {', '.join(map(repr, FORMATS))}")
    _check_encoding(encoding, errors)

    wanted = None if words is None else frozenset(words)
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        # The size of what is packed is not known before it has been read.
        size = None if packed else os.fstat(raw.fileno()).st_size
        file: Any = gzip.GzipFile(fileobj=raw) if packed else raw
        rows = _Rows(wanted, limit, dtype)
        try:
            with file:
                return _Reader(file, size, rows, encoding, errors).read(format)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{os.fspath(path)}: the gzip file is damaged or truncated after {rows.words_read:,} words ({error}); "
                "download it again"
            ) from None
        except _FileError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from None


class _FileError(Exception):
    """What is wrong with the file, without its name."""


def _check_encoding(encoding: str, errors: str) -> None:
    try:
        codecs.lookup_error(errors)
        plain = " 0.1\n".encode(encoding) == b" 0.1\n"
    except LookupError as error:
        raise ValueError(f"{error}; for instance encoding='utf-8' or 'latin-1', errors='strict' or 'replace'") from None
    if not plain:
        raise ValueError(
            f"encoding is {encoding!r}, expected one that contains ASCII as it is, such as utf-8 or latin-1"
        )


class _Rows:
    """The words and vectors so far. Memory grows with what has been read, whatever the file says of itself."""

    def __init__(self, wanted: Collection[str] | None, limit: int | None, dtype: np.dtype) -> None:
        self.wanted, self.limit, self.dtype = wanted, limit, dtype
        self.index: dict[str, int] = {}
        self.words_read = 0
        self.vectors = np.empty((0, 0), dtype)

    def full(self) -> bool:
        """Whether nothing that comes can be of interest."""
        if self.wanted is not None and len(self.index) == len(self.wanted):
            return True
        return self.limit is not None and self.words_read >= self.limit

    def takes(self, word: str) -> bool:
        """Counts a word; whether its vector is to be kept."""
        self.words_read += 1
        return (self.wanted is None or word in self.wanted) and word not in self.index

    def add(self, word: str, vector: Any, dim: int) -> None:
        row = len(self.index)
        if row == len(self.vectors):
            # realloc: for large arrays the system moves pages and copies nothing.
            self.vectors.resize((max(16, row + row // 2), dim), refcheck=False)
        self.vectors[row] = vector
        self.index[word] = row

    def done(self, dim: int) -> WordVectors:
        self.vectors.resize((len(self.index), dim), refcheck=False)
        words = list(self.index)
        for first in range(0, len(words), 4096):
            fine = np.isfinite(self.vectors[first : first + 4096]).all(axis=1)
            if not fine.all():
                word = words[first + int(np.argmin(fine))]
                raise _FileError(
                    f"the vector of {word!r} has a number that is not finite in {self.dtype}: the file is damaged, or "
                    "not of this format; correct or remove that word"
                )
        return WordVectors(words, self.vectors)


class _Reader:
    """One file being read."""

    def __init__(self, file: IO[bytes], size: int | None, rows: _Rows, encoding: str, errors: str) -> None:
        self.file, self.size, self.rows = file, size, rows
        self.encoding, self.errors = encoding, errors

    def read(self, format: str | None) -> WordVectors:
        start = self.file.read(PEEK)
        if not start.strip():
            raise _FileError("there is nothing in this file")
        if format is None:
            for magic, what in FOREIGN.items():
                if start.startswith(magic):
                    raise _FileError(f"this is {what}")
        skip = 3 if start.startswith(codecs.BOM_UTF8) else 0
        header = _header(start[skip:])
        if format is None:
            format = "glove" if header is None else "word2vec-" + ("text" if _is_text(start, header) else "binary")
        self.file.seek(skip)
        with np.errstate(over="ignore"):  # beyond float32: infinite, which is found at the end
            if format == "glove":
                return self.text(None, 1)
            if header is None:
                raise _FileError(
                    "line 1 is not the two whole numbers that a word2vec file begins with (words, numbers in a "
                    "vector); without them the format is 'glove'"
                )
            self.file.readline()
            self.check_header(*header, least=4 if format == "word2vec-binary" else 2)
            return self.binary(*header) if format == "word2vec-binary" else self.text(header, 2)

    def check_header(self, num: int, dim: int, least: int) -> None:
        """A size that is a lie is found before memory is asked for. least : bytes that a number takes at least"""
        says = f"line 1 says {num:,} words with {dim:,} numbers each"
        if not 1 <= dim <= LONGEST_VECTOR:
            raise _FileError(
                f"{says}, expected 1 to {LONGEST_VECTOR:,} numbers: the file is damaged, or of another "
                "format (see format=)"
            )
        rows = num if self.rows.limit is None else min(num, self.rows.limit)
        if self.size is not None and rows * (least * dim + 1) > self.size:
            raise _FileError(
                f"{says}, which takes more than the {self.size:,} bytes of the file: it is damaged or truncated; "
                "download it again, or read its beginning with limit="
            )

    def word(self, raw: bytes, where: str) -> str:
        try:
            return raw.decode(self.encoding, self.errors)
        except UnicodeDecodeError as error:
            raise _FileError(
                f"{where}: the word {raw[:40]!r} is not {self.encoding} (byte 0x{raw[error.start]:02x}, "
                f"{error.reason}); name another encoding=, or pass errors='replace'"
            ) from None

    # ---------------------------------------------------------------- text

    def lines(self, number: int) -> Iterator[tuple[int, bytes]]:
        """(line number, line) of lines that are not empty."""
        while line := self.file.readline(LONGEST_LINE):
            if len(line) == LONGEST_LINE:
                raise _FileError(
                    f"line {number:,} has no end within {LONGEST_LINE:,} bytes: not a file of word vectors"
                )
            if line := line.rstrip(b" \t\r\n"):
                yield number, line
            number += 1

    def text(self, header: tuple[int, int] | None, first: int) -> WordVectors:
        """Lines from number `first` on; without a header that one says how many numbers a vector has."""
        rows = self.rows
        num, dim = header or (None, 0)
        for number, line in self.lines(first):
            if rows.full():
                return rows.done(dim)
            if rows.words_read == num:
                raise _FileError(f"line {number:,} comes after the {num:,} words that line 1 says: the header is wrong")
            dim = dim or _numbers_at_end(line)
            raw, *numbers = line.rsplit(None, dim)
            # A word of several tokens is a word with spaces, unless there are numbers among them.
            if len(numbers) < dim or not dim or any(map(_number, raw.split()[1:])):
                raise self.misfit(line, number, dim, header is not None)
            word = self.word(raw, f"line {number:,}")
            if rows.takes(word):
                try:
                    vector = list(map(float, numbers))
                except ValueError:
                    vector = None
                if vector is None or b"_" in line[len(raw) :]:
                    bad = next(token for token in numbers if not _number(token))
                    raise _FileError(
                        f"line {number:,}: {bad[:40]!r} in the vector of {word[:40]!r} is not a number: the file is "
                        "damaged, or not of this format"
                    )
                rows.add(word, vector, dim)
        if num is not None and rows.words_read < num and not rows.full():
            raise _FileError(
                f"the file ends after {rows.words_read:,} of the {num:,} words that line 1 says: it is truncated; "
                "download it again, or read its beginning with limit="
            )
        return rows.done(dim)

    @staticmethod
    def misfit(line: bytes, number: int, dim: int, header: bool) -> _FileError:
        """What is wrong with a line that is not a word and `dim` numbers."""
        if not dim:
            return _FileError(
                f"line {number:,} is not a word and numbers: this is neither GloVe nor word2vec; it begins "
                f"{line[:40]!r}"
            )
        if line[:1].isspace():
            return _FileError(f"line {number:,} has no word before its numbers: the file is damaged")
        count = sum(map(_number, line.split()[1:]))
        whose = "as line 1 says" if header else "as in the first line"
        return _FileError(
            f"line {number:,} has {count:,} numbers after its word, expected {dim:,} {whose}: the file is damaged or "
            "truncated; download it again, or read the lines before with limit="
        )

    # ---------------------------------------------------------------- binary

    def binary(self, num: int, dim: int) -> WordVectors:
        rows, width = self.rows, 4 * dim
        data, at, base = b"", 0, self.file.tell()  # what has been read, how far it is used, and where it lies
        while rows.words_read < num and not rows.full():
            space = data.find(b" ", at, at + LONGEST_WORD)
            if space < 0 or len(data) < space + 1 + width:
                more = b"" if space < 0 and len(data) - at >= LONGEST_WORD else self.file.read(max(BLOCK, 2 * width))
                where = f"word {rows.words_read + 1:,} of {num:,}, which begins at byte {base + at:,}"
                if not more and len(data) - at >= LONGEST_WORD and space < 0:
                    raise _FileError(f"{where}, has no end: the file is damaged, or not word2vec's binary format")
                if not more:
                    raise _FileError(
                        f"the file ends within {where}: it is truncated, or damaged before; download it again, or read "
                        "its beginning with limit="
                    )
                data, base, at = data[at:] + more, base + at, 0
                continue
            raw = data[at:space].lstrip(b"\n")  # some writers end a vector with one
            if not raw:
                raise _FileError(f"byte {base + at:,} begins a vector without a word: the file is damaged")
            word = self.word(raw, f"byte {base + at:,}")
            if rows.takes(word):
                rows.add(word, np.frombuffer(data, "<f4", dim, space + 1), dim)
            at = space + 1 + width
        if rows.words_read == num and (left := (data[at:] + self.file.read(BLOCK)).strip(b"\n")):
            raise _FileError(
                f"after its {num:,} words, at byte {base + at:,}, the file goes on ({left[:20]!r}): it is damaged, or "
                "its vectors are not float32"
            )
        return rows.done(dim)


# ---------------------------------------------------------------- telling formats apart


def _header(start: bytes) -> tuple[int, int] | None:
    """(N, D) if the first line is two whole numbers."""
    found = re.match(rb"(\d{1,18})[ \t](\d{1,18})[ \t]*(?:\r?\n|\Z)", start)
    return None if found is None else (int(found[1]), int(found[2]))


def _is_text(start: bytes, header: tuple[int, int]) -> bool:
    """Whether what follows the header is a line of numbers, or float32.

    Where text has digits, float32 of the usual sizes have bytes that are no characters. If all are characters, but not
    of numbers, it is text that is damaged: to be told so, not taken for binary. A byte of a float32 looks like one in
    three times of eight, so that the eight bytes of two hardly ever do.
    """
    record = start.partition(b"\n")[2]
    numbers = record[record.find(b" ") + 1 :][:64]
    if not numbers[: 4 * header[1]].translate(None, b"0123456789+-.eE \t\r\n"):
        return True
    return len(numbers) >= 8 and not re.search(rb"[^\t\r\n -~]", numbers)


def _number(token: bytes) -> bool:
    """Whether it is one, by its look: "nan" and "infinity" are words too, and 1_000 is Python's own."""
    try:
        float(token)
    except ValueError:
        return False
    return b"_" not in token and (token[-1:].isdigit() or token[-1:] == b".")


def _numbers_at_end(line: bytes) -> int:
    """How many of the line's last tokens are numbers; its first one is a word. 0 if there are absurdly many."""
    tokens = line.split(None, LONGEST_VECTOR + 2)[1:]
    if len(tokens) > LONGEST_VECTOR:
        return 0
    return next((k for k, token in enumerate(reversed(tokens)) if not _number(token)), len(tokens))
