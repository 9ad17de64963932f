"""Word-vector files: every format comes back as it was written, and no file crashes, hangs or fills the memory."""

import gzip
import re
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import fastrnn as fr

FORMATS = ("word2vec-text", "word2vec-binary", "glove")
WORDS = ["the", "cat", "naïve", "日本", "</s>"]
VECTORS = np.random.default_rng(1).standard_normal((5, 7)).astype("float32")


def contents(format, words, vectors, end=None, encoding="utf-8"):
    """The bytes of a file. `end` is what ends a vector: line ends differ, and binary files may have none."""
    end = end if end is not None else b"" if format == "word2vec-binary" else b"\n"
    header = b"" if format == "glove" else b"%d %d\n" % vectors.shape
    data = [header]
    for word, vector in zip(words, vectors, strict=True):
        if format == "word2vec-binary":
            numbers = struct.pack(f"<{len(vector)}f", *vector)
        else:
            numbers = " ".join(repr(float(number)) for number in vector).encode()
        data.append(word.encode(encoding) + b" " + numbers + end)
    return b"".join(data)


@pytest.fixture
def load(tmp_path):
    """`fr.load_word_vectors` of these bytes."""

    def load(data, **options):
        path = tmp_path / "vectors"
        path.write_bytes(data)
        return fr.load_word_vectors(path, **options)

    return load


def refused(load, data, *parts, **options):
    """The file is refused, by name, and the message has all of these parts in it."""
    with pytest.raises(ValueError, match=re.escape("vectors: ")) as error:
        load(data, **options)
    missing = [part for part in parts if part not in str(error.value)]
    assert not missing, f"{str(error.value)!r} does not say {missing}"


def read_or_refused(path, **options):
    """What is in the file, or None if a `ValueError` about it was raised."""
    try:
        return fr.load_word_vectors(path, **options)
    except ValueError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    return None


def same(found, words, vectors):
    assert found.words == list(words)
    assert found.index == {word: row for row, word in enumerate(words)}
    assert found.vectors.dtype == vectors.dtype
    assert found.vectors.shape == vectors.shape
    assert np.array_equal(found.vectors, vectors)


# --- what was written comes back ----------------------------------------------------------------------------

# No word of a single token is a number: in a GloVe file nothing tells it from one, if it comes first.
words = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters=" "), min_size=1, max_size=6),
    min_size=1,
    max_size=40,
    unique=True,
)


@given(st.data())
def test_round_trip(tmp_path_factory, data):
    """Any words, any finite numbers, every format, with and without line ends, plain and gzipped: the same bits."""
    format = data.draw(st.sampled_from(FORMATS))
    found = data.draw(words)
    dim = data.draw(st.integers(1, 9))
    # The format is found from the contents, unless a GloVe file looks as if it had a header.
    vectors = data.draw(
        arrays("float32", (len(found), dim), elements=st.floats(width=32, allow_nan=False, allow_infinity=False))
    )
    end = data.draw(
        st.sampled_from([b"", b"\n"] if format == "word2vec-binary" else [b"\n", b" \n", b"\r\n", b" \r\n"])
    )
    file = contents(format, found, vectors, end)
    packed = data.draw(st.booleans())
    path = tmp_path_factory.mktemp("vectors") / "file"
    path.write_bytes(gzip.compress(file) if packed else file)
    same(fr.load_word_vectors(path, format=format), found, vectors)
    same(fr.load_word_vectors(path), found, vectors)
    limit = data.draw(st.integers(1, len(found) + 1))
    same(fr.load_word_vectors(path, limit=limit), found[:limit], vectors[:limit])
    kept = [k for k in range(len(found)) if data.draw(st.booleans())]
    wide = fr.load_word_vectors(path, words={found[k] for k in kept} | {"not there"}, dtype="float64")
    same(wide, [found[k] for k in kept], vectors[kept].astype("float64"))


@pytest.mark.parametrize("format", FORMATS)
def test_many_words(load, format):
    """More than a block of bytes and more rows than were first made room for."""
    names = [f"w{k}" for k in range(6000)]
    vectors = np.random.default_rng(2).standard_normal((6000, 60)).astype("float32")
    same(load(contents(format, names, vectors)), names, vectors)


def test_words_with_spaces(load):
    """GloVe's largest files have some: the last D tokens are the numbers."""
    found = load(b". . . 0.5 -1 2e-1\nat name@example.com 1 2 3\n\xc2\xa0 4 5 6\n")
    assert found.words == [". . .", "at name@example.com", "\xa0"]
    assert found["at name@example.com"].tolist() == [1, 2, 3]
    assert load(b"a\t1\t2\nb  3  4\n\n").vectors.tolist() == [[1, 2], [3, 4]]


def test_a_word_that_comes_again(load):
    """The first vector counts; the limit counts words of the file."""
    file = b"a 1 2\nb 3 4\na 5 6\nc 7 8\n"
    same(load(file), ["a", "b", "c"], np.float32([[1, 2], [3, 4], [7, 8]]))
    same(load(file, limit=3), ["a", "b"], np.float32([[1, 2], [3, 4]]))


def test_reading_ends_when_all_is_found(load):
    """What comes after the last word of interest is not looked at."""
    file = contents("glove", WORDS, VECTORS) + b"damage"
    same(load(file, words=["cat", "the"]), WORDS[:2], VECTORS[:2])
    same(load(file, limit=5), WORDS, VECTORS)
    assert len(load(file, words=[])) == 0


@pytest.mark.parametrize("format", FORMATS)
def test_encoding(load, format):
    """Another encoding by name; bytes that are no text by choice; the byte-order mark of UTF-8 is not a word's."""
    latin = contents(format, ["the", "naïve"], VECTORS[:2], encoding="latin-1")
    same(load(latin, encoding="latin-1"), ["the", "naïve"], VECTORS[:2])
    where = {"glove": "line 2", "word2vec-text": "line 3", "word2vec-binary": "byte 36"}[format]
    refused(load, latin, where, "0xef", "utf-8", "errors='replace'")
    same(load(latin, errors="replace"), ["the", "na\ufffdve"], VECTORS[:2])
    same(load(b"\xef\xbb\xbf" + contents(format, WORDS, VECTORS)), WORDS, VECTORS)


def test_vector_objects():
    """WordVectors from the caller's own arrays."""
    found = fr.WordVectors(WORDS, VECTORS)
    assert (len(found), found.dim, "cat" in found, "dog" in found) == (5, 7, True, False)
    assert np.array_equal(found["日本"], VECTORS[3])
    assert repr(found) == "<WordVectors: 5 words, dim=7, float32>"
    with pytest.raises(KeyError):
        found["dog"]
    with pytest.raises(ValueError, match=r"'a' twice"):
        fr.WordVectors(["a", "b", "a"], np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\(3, 2\).*num=2"):
        fr.WordVectors(["a", "b"], np.ones((3, 2)))
    with pytest.raises(TypeError, match="int"):
        fr.WordVectors(["a"], np.ones((1, 2), int))
    with pytest.raises(TypeError, match="str"):
        fr.WordVectors("ab", np.ones((2, 2)))


# --- files that are something else, or damaged --------------------------------------------------------------


def test_foreign_files(load):
    """What the file is, and what to pass instead."""
    for start, part in (
        (b"PK\x03\x04\x14", "zip"), (b"BZh91AY", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\xba\x16\x4f\x2f\x0c", ".vec"),
        (b"\x93NUMPY\x01", "np.load"), (b"\x80\x04\x95", "save_word2vec_format"), (b"\xff\xfea\0", "UTF-16"),
    ):  # fmt: skip
        refused(load, start + bytes(100), part)
    for file in (b"", b" \n\n"):
        refused(load, file, "nothing in this file")
    for file in (b"Once upon a time\nthere was\n", bytes(1000), b"word\n", b"\x89PNG\r\n\x1a\n" + bytes(50)):
        refused(load, file, "line 1", "neither GloVe nor word2vec")
    refused(load, b"a" * 5_000_000, "line 1", "no end")
    refused(load, b"a" + b" 1" * 70_000, "line 1", "neither")


def test_damaged_text(load):
    """The line, and what is wrong in it."""
    glove = b"a 1 2 3\nb 4 5 6\nc 7 8 9\n"
    refused(load, glove.replace(b"5", b"x"), "line 2", "'x'", "'b'", "not a number")
    refused(load, glove.replace(b"5", b"1_0"), "line 2", "'1_0'", "not a number")
    refused(load, glove.replace(b"4 ", b""), "line 2", "2 numbers", "expected 3", "first line")
    refused(load, glove.replace(b"b", b"b 9"), "line 2", "4 numbers", "expected 3")
    refused(load, glove.replace(b"6\n", b"6"), "line 2", "expected 3")
    refused(load, glove[:-3], "line 3", "2 numbers", "expected 3", "truncated")
    refused(load, glove.replace(b"b", b""), "line 2", "no word")
    refused(load, glove.replace(b"5", b"nan"), "'b'", "not finite")
    refused(load, glove.replace(b"5", b"1e39"), "'b'", "not finite", "float32")
    assert load(glove.replace(b"5", b"1e39"), dtype="float64")["b"].tolist() == [4, 1e39, 6]
    counted = b"3 3\n" + glove.replace(b"1", b"1.000000")
    refused(load, counted.replace(b"3 3", b"4 3", 1), "ends after 3 of the 4 words", "limit=")
    assert len(load(counted.replace(b"3 3", b"4 3", 1), limit=3)) == 3
    refused(load, counted.replace(b"3 3", b"2 3", 1), "line 4", "2 words")
    refused(load, counted.replace(b"3 3", b"3 2", 1), "line 2", "3 numbers", "expected 2", "line 1 says")
    refused(load, counted.replace(b"c 7 8", b"c 7"), "line 4", "2 numbers", "expected 3", "line 1 says")
    refused(load, counted.replace(b"2 3", b"2 three"), "line 2", "'three'", "not a number")
    refused(load, glove, "line 1", "two whole numbers", "'glove'", format="word2vec-text")
    refused(load, glove, "line 1", "two whole numbers", format="word2vec-binary")
    refused(load, counted, "line 2", "3 numbers", "expected 1", format="glove")


def test_damaged_binary(load):
    """The word, the byte, and what is wrong there."""
    file = contents("word2vec-binary", WORDS, VECTORS)
    refused(load, file[:-1], "word 5 of 5", "byte 138", "truncated")
    refused(load, file[:40], "takes more than the 40 bytes")
    assert load(file[:40], limit=1).words == ["the"]
    refused(load, file + b"x", "after its 5 words", "byte 171", "float32")
    assert len(load(file + b"\n")) == 5
    refused(load, b"1 1\n" + b"x" * 80_000, "word 1 of 1", "no end", format="word2vec-binary")
    refused(load, b"1 1\n 1234", "byte 4", "without a word", format="word2vec-binary")
    broken = VECTORS.copy()
    broken[2, 3] = np.inf
    refused(load, contents("word2vec-binary", WORDS, broken), "naïve", "not finite")


def test_damaged_gzip(load):
    """A gzip file that ends too early, or whose checksum is wrong."""
    packed = gzip.compress(contents("glove", [f"w{k}" for k in range(5000)], np.ones((5000, 7), "float32")))
    for file in (packed[: len(packed) // 2], packed[:-6] + bytes(6), packed[:12], b"\x1f\x8b"):
        refused(load, file, "gzip", "damaged or truncated", "words")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("header", [b"999999999999 300", b"1 65536", b"1 99999999999", b"99999999 1", b"5 0"])
@pytest.mark.parametrize("format", ["word2vec-text", "word2vec-binary"])
def test_sizes_that_are_lies(load, header, format, packed):
    """A header that claims the moon is refused, and nothing of that size is ever allocated."""
    file = header + b"\n" + contents(format, WORDS, VECTORS).partition(b"\n")[2]
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="vectors: "):
            load(gzip.compress(file) if packed else file, format=format)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@given(st.data())
def test_mutated_files(tmp_path_factory, data):
    """Bytes changed, removed, put in, cut off: a `ValueError` about the file, or vectors that are whole; and never
    more memory than a few blocks.
    """
    format = data.draw(st.sampled_from(FORMATS))
    file = contents(format, WORDS, VECTORS)
    packed = data.draw(st.booleans())
    if packed and data.draw(st.booleans()):
        file, packed = gzip.compress(file), False  # the gzip file itself is what is damaged
    for _ in range(data.draw(st.integers(1, 4))):
        # Half of the damage is at the beginning, where the sizes stand.
        at = data.draw(st.integers(0, len(file)) | st.integers(0, 12))
        count = data.draw(st.integers(0, 3) | st.integers(0, len(file)))
        file = (
            file[:at] + data.draw(st.binary(max_size=3) | st.sampled_from([b"9" * 9, b" ", b"\n"])) + file[at + count :]
        )
    path = tmp_path_factory.mktemp("mutated") / "file"
    path.write_bytes(gzip.compress(file) if packed else file)
    choice = data.draw(st.sampled_from((None, *FORMATS)))
    errors = data.draw(st.sampled_from(["strict", "replace"]))
    tracemalloc.start()
    try:
        found = read_or_refused(path, format=choice, errors=errors)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    if found is not None:
        assert len(found.words) == len(found.index) == len(found.vectors) <= len(file)
        assert np.isfinite(found.vectors).all()


@given(st.binary(max_size=300), st.sampled_from((None, *FORMATS)))
def test_random_files(tmp_path_factory, file, format):
    """No bytes whatever do anything but be read or refused."""
    path = tmp_path_factory.mktemp("random") / "file"
    path.write_bytes(file)
    read_or_refused(path, format=format)


def test_arguments(load, tmp_path):
    """Wrong arguments, by name, before the file is touched."""
    for options, kind, part in (
        ({"limit": 0}, ValueError, "limit is 0"),
        ({"limit": 1.5}, TypeError, "limit is float"),
        ({"dtype": "float16"}, TypeError, "float16"),
        ({"format": "fasttext"}, ValueError, "format is 'fasttext', expected None, 'word2vec-text'"),
        ({"encoding": "klingon"}, ValueError, "klingon"),
        ({"encoding": "utf-16"}, ValueError, "encoding is 'utf-16'"),
        ({"errors": "shrug"}, ValueError, "shrug"),
        ({"words": "cat"}, TypeError, "words is a str"),
    ):
        with pytest.raises(kind, match=re.escape(part)):
            fr.load_word_vectors(tmp_path / "not there", **options)
    with pytest.raises(FileNotFoundError):
        fr.load_word_vectors(tmp_path / "not there")


# --- as an embedding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_embedding_of_a_vocabulary(dtype):
    """Rows in the caller's order; missing words zero or of the others' scale; the file's own order without one."""
    vectors = fr.WordVectors(WORDS, 3 * VECTORS)
    vocabulary = ["<pad>", "日本", *(f"new{k}" for k in range(200)), "the", "the"]
    known = [vocabulary.index("日本"), 202, 203]
    zero = fr.Embedding.from_word_vectors(vectors, vocabulary, missing="zero", dtype=dtype)
    drawn = fr.Embedding.from_word_vectors(vectors, vocabulary, dtype=dtype, seed=1)
    for embedding in (zero, drawn):
        assert embedding.params["weight"].dtype == dtype
        assert np.array_equal(embedding.params["weight"][known], vectors.vectors[[3, 0, 0]])
    others = np.delete(drawn.params["weight"], known, axis=0)
    assert np.all(np.delete(zero.params["weight"], known, axis=0) == 0)
    assert others.std() == pytest.approx(vectors.vectors.std(), rel=0.1)
    assert abs(others.mean()) < 0.1 * others.std()
    again = fr.Embedding.from_word_vectors(vectors, vocabulary, dtype=dtype, seed=1)
    assert again.params["weight"].tobytes() == drawn.params["weight"].tobytes()
    whole = fr.Embedding.from_word_vectors(vectors)
    assert np.array_equal(whole.params["weight"], vectors.vectors)
    assert (whole.num, whole.dim, whole.dtype, whole.frozen) == (5, 7, np.dtype("float32"), True)
    assert np.array_equal(whole(np.array([[4, 1]])), vectors.vectors[[[4, 1]]])
    assert not fr.Embedding.from_word_vectors(vectors, frozen=False).frozen


def test_embedding_arguments():
    """What is wrong, by name."""
    vectors = fr.WordVectors(WORDS, VECTORS)
    make = fr.Embedding.from_word_vectors
    unknown = [f"new{k}" for k in range(7)]
    for call, kind, part in (
        (
            lambda: make(vectors, ["the", *unknown], missing="error"),
            ValueError,
            "7 of 8 words without a vector: 'new0', ",
        ),
        (
            lambda: make(vectors, missing="guess"),
            ValueError,
            "missing is 'guess', expected 'random', 'zero' or 'error'",
        ),
        (lambda: make(vectors, "the"), TypeError, "words is a str"),
        (lambda: make(vectors, ["the", 3]), TypeError, "words[1] is int"),
        (lambda: make(vectors, []), ValueError, "words is empty"),
        (lambda: make(VECTORS), TypeError, "vectors is ndarray"),
        (lambda: make(vectors, frozen="no"), TypeError, "frozen is str"),
        (lambda: make(fr.WordVectors([], VECTORS[:0]), ["a"]), ValueError, "missing='zero'"),
    ):
        with pytest.raises(kind, match=re.escape(part)):
            call()
