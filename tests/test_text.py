"""Reading, vocabulary, splits and streams: what goes into training is the text, all of it, in its order."""

import codecs

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrnn.text import Streams, Vocabulary, read_text, split_text, standard_library_text

# -------------------------------------------------------------------- vocabulary


@given(st.text(min_size=1))  # surrogates are among the characters that hypothesis draws from a list of its own
def test_decoding_undoes_encoding(text):
    vocabulary = Vocabulary(text)
    ids = vocabulary.encode(text)
    assert ids.shape == (len(text),)
    assert vocabulary.decode(ids) == text
    assert vocabulary.characters == "".join(sorted(set(text)))
    assert [vocabulary.characters[i] for i in ids] == list(text)


def test_lone_surrogates_are_characters_too():
    text = "a\ud800b\U0001f600"
    vocabulary = Vocabulary(text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_unseen_characters_are_named():
    vocabulary = Vocabulary("abc")
    with pytest.raises(ValueError, match=r"prime .*'ä' \(U\+00E4\), '😀' \(U\+1F600\)$"):
        vocabulary.encode("aä😀ä", what="prime")
    with pytest.raises(ValueError, match="and 16 more"):
        vocabulary.encode("".join(map(chr, range(200, 226))))


@given(st.text(alphabet="abcdef"))
def test_unseen_characters_are_left_out_and_counted(text):
    vocabulary = Vocabulary("bdf")
    ids, unseen = vocabulary.encode_known(text)
    assert vocabulary.decode(ids) == "".join(c for c in text if c in "bdf")
    assert unseen == sum(c not in "bdf" for c in text)


def test_a_vocabulary_needs_text():
    with pytest.raises(ValueError, match="empty"):
        Vocabulary("")
    with pytest.raises(TypeError, match="bytes"):
        Vocabulary(b"abc")


@pytest.mark.parametrize("ids", [[-1], [3], [0, 7]])
def test_indices_outside_the_vocabulary(ids):
    with pytest.raises(ValueError, match=r"0 \.\.\. 2"):
        Vocabulary("abc").decode(ids)


# -------------------------------------------------------------------- reading

TEXT = "Blåbærsyltetøy\nčeština\n日本\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "utf-7", "gb18030"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "text"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path, encoding) == TEXT


def test_a_byte_order_mark_is_no_character(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(codecs.BOM_UTF8 + TEXT.encode())
    assert read_text(path) == TEXT


def test_line_ends(tmp_path):
    path = tmp_path / "text"
    path.write_bytes(b"one\r\ntwo\rthree\n")
    assert read_text(path) == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        ("Blåbær".encode("latin-1"), "utf-8", r"text: not utf-8 text: byte 0xe5 at position 2 .*latin-1"),
        ("Blåbær".encode("utf-16"), "utf-8", r"position 0 .*it looks like utf-16$"),
        ("Blåbær".encode("utf-32"), "utf-8", r"it looks like utf-32$"),
        (b"\xff\xff", "ascii", "not ascii text"),
        (b"abc", "no-such-encoding", "can't be decoded as 'no-such-encoding'"),
        (b"abc", "rot13", "can't be decoded as 'rot13'"),  # a codec, but not of text from bytes
        (b"abc", "undefined", "can't be decoded as 'undefined'"),
        (b"abc", "nul\0", "can't be decoded"),
        (b"", "utf-8", "no text"),
        (codecs.BOM_UTF8, "utf-8", "no text"),
    ],
)
def test_what_can_not_be_read_is_said(tmp_path, data, encoding, message):
    path = tmp_path / "text"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_text(path, encoding)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "none")


def test_the_standard_library_is_the_same_text_every_time():
    text = standard_library_text(50_000)
    assert len(text) == 50_000
    assert text == standard_library_text(50_000)
    assert standard_library_text(60_000).startswith(text)
    assert text.isascii()
    assert "\r" not in text
    assert "def " in text
    assert "import " in text


# -------------------------------------------------------------------- splits


@given(st.integers(0, 300), st.floats(0, 0.49), st.floats(0, 0.49))
def test_the_parts_of_a_split_are_the_text(size, validation, held_out):
    text = "".join(chr(200 + n) for n in range(size))
    parts = split_text(text, validation, held_out)
    assert "".join(parts) == text
    assert abs(len(parts[1]) - validation * size) <= 0.5
    assert abs(len(parts[2]) - held_out * size) <= 0.5


@pytest.mark.parametrize("fractions", [(-0.1, 0), (1.0, 0), (0, 1.5), (0.5, 0.5), (float("nan"), 0)])
def test_fractions_that_leave_nothing(fractions):
    with pytest.raises(ValueError, match=r"fraction|nothing to train on"):
        split_text("abc", *fractions)


# -------------------------------------------------------------------- streams


@given(st.integers(2, 400), st.integers(1, 9), st.integers(1, 30))
def test_rows_are_the_text_in_order_and_targets_are_one_ahead(size, batch_size, seq_length):
    ids = np.arange(size, dtype=np.int32)
    streams = Streams(ids, batch_size, seq_length)
    chunks = list(streams)
    assert len(chunks) == len(streams)
    for n, (x, target) in enumerate(chunks):
        assert x.flags.c_contiguous
        assert target.flags.c_contiguous
        assert x.shape == target.shape
        assert np.array_equal(target, x + 1)  # the ids count up: one ahead is one more
        assert x.shape[0] == seq_length or (n == len(chunks) - 1 and 1 <= x.shape[0] < seq_length)
        same = streams.chunk(n)
        assert np.array_equal(same[0], x)
    rows = np.concatenate([x for x, _ in chunks]).T
    # One row after the other, the rows are the text without a gap, and at most B characters short of its end.
    assert np.array_equal(rows.ravel(), np.arange(rows.size))
    assert streams.characters == rows.size
    assert size - 1 - streams.rows < rows.size <= size - 1
    assert 1 <= streams.rows <= batch_size
    if size - 1 >= batch_size * seq_length:
        assert streams.rows == batch_size


@pytest.mark.parametrize("size", [0, 1])
def test_one_character_has_no_next(size):
    with pytest.raises(ValueError, match=f"at least 2 characters is needed, got {size}"):
        Streams(np.zeros(size, np.int32), 1, 1)
