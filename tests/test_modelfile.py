"""Model files: what is written can be read, what is damaged or foreign is refused, and nobody's rubbish stays."""

import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers import assert_same_bits, run_python

from fastrnn import modelfile
from fastrnn.modelfile import ModelFileError, check_writable, read_model_file, write_model_file
from fastrnn.models.charlm import CharLM, checkpoint_path

TEXT = "a rose is a rose is a rose\n" * 6
FIT = {"epochs": 1, "batch_size": 2, "seq_length": 8, "validation": 0.2, "progress": False}


def small():
    return CharLM(hidden_size=3, num_layers=1, embedding_size=2, seed=1)


# -------------------------------------------------------------------- the layout

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "turned": np.arange(6.0).reshape(2, 3).T,
    "every other": np.arange(9, dtype=np.int64)[::2],
    "big-endian": np.arange(3, dtype=">i4"),
    "number": np.array(2.5),
    "nothing": np.empty((0, 3), np.float16),
    "truth": np.array([True, False]),
    "a/b 😀": np.array([np.nan, -0.0, np.inf]),
}


def test_what_is_written_is_read(tmp_path):
    path, header = tmp_path / "m.npz", {"text": "ä\ud800😀", "deep": [{"x": None}], "n": 10**30}
    write_model_file(path, header, ARRAYS)
    found, arrays = read_model_file(path)
    assert found == {"format": modelfile.FORMAT, "version": modelfile.VERSION, **header}
    assert list(arrays) == list(ARRAYS)
    assert_same_bits(arrays, {name: a.astype(a.dtype.newbyteorder("="), order="C") for name, a in ARRAYS.items()})
    assert all(array.flags.writeable for array in arrays.values())


def test_others_can_read_it(tmp_path):
    """The archive is one to zipfile's taste, checksums of the entries included, and to NumPy's."""
    path = tmp_path / "m.npz"
    write_model_file(path, {}, ARRAYS)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["header.npy", *(f"{name}.npy" for name in ARRAYS)]
        assert archive.comment == b"fastrnn sha256 " + hashlib.sha256(path.read_bytes()[:-64]).hexdigest().encode()
    with np.load(path, allow_pickle=False) as arrays:
        for name, array in ARRAYS.items():
            assert np.array_equal(arrays[name], array, equal_nan=array.dtype.kind == "f")
        assert json.loads(arrays["header"].tobytes())["format"] == modelfile.FORMAT


def test_what_is_not_written(tmp_path):
    path = tmp_path / "m.npz"
    for wrong in (np.array([None]), np.zeros(2, complex), np.array(["x"]), np.zeros(2, "m8[s]"), np.zeros(2, "i4,f4")):
        with pytest.raises(TypeError, match=r"a has dtype .*, expected booleans, integers or floats"):
            write_model_file(path, {}, {"a": wrong})
    with pytest.raises(ValueError, match="no array may be called 'header'"):
        write_model_file(path, {}, {"header": np.zeros(1)})
    with pytest.raises(TypeError, match="JSON"):
        write_model_file(path, {"x": object()}, {})
    assert os.listdir(tmp_path) == []


def test_what_a_file_is_told(tmp_path):
    """What is wrong, what was expected, what to do."""
    path = tmp_path / "m.npz"
    write_model_file(path, {}, ARRAYS)
    data = path.read_bytes()
    for changed, message in (
        (
            data[:1000],
            r"damaged: it has 1,000 bytes, expected [\d,]+; it is cut off; use an earlier copy of it, or save",
        ),
        (data + b"\0", r"damaged: it has [\d,]+ bytes, expected [\d,]+; use an earlier copy"),
        (data[:-1] + bytes([data[-1] ^ 1]), "damaged: its checksum does not fit its contents; use an earlier copy"),
        (data[:40] + b"?" + data[41:], "not a fastrnn model file: an archive that something else wrote"),
        (b"First Citizen:\n", "not a fastrnn model file: not even an .npz; name one that `CharLM.save` or"),
    ):
        path.write_bytes(changed)
        with pytest.raises(ModelFileError, match=rf"m\.npz: {message}"):
            read_model_file(path)
    write_model_file(path, {"version": 2}, {})
    with pytest.raises(ModelFileError, match=r"format version 2, and this fastrnn reads version 1; .*: upgrade"):
        read_model_file(path)


def test_what_is_no_file(tmp_path):
    """Neither waited for nor read to the end that they don't have."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ModelFileError, match="a device or a pipe"):
            read_model_file(path)
    with pytest.raises(IsADirectoryError):
        read_model_file(tmp_path)


def test_a_huge_file_of_nothing_is_not_read(tmp_path):
    """A terabyte, on the disk a few bytes: refused by its size, before any of it is allocated or read."""
    path = tmp_path / "m.npz"
    write_model_file(path, {}, {"a": np.zeros(3)})
    os.truncate(path, 1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="has 1,099,511,627,776 bytes"):
            read_model_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# -------------------------------------------------------------------- mutations


def sealed(data):
    """With a digest that fits."""
    return data[:-64] + hashlib.sha256(data[:-64]).hexdigest().encode()


def archive(entries):
    """A file that is whole in every way, of entries (name, what .npy bytes it has)."""
    out, directory = bytearray(), []
    for name, npy in entries:
        crc = zipfile.crc32(npy)
        directory.append((name, crc, len(npy), len(out)))
        out += modelfile._local_header(name, crc, len(npy)) + npy
    return sealed(bytes(out) + modelfile._directory(directory, len(out)) + bytes(64))


def entries_of(data):
    with zipfile.ZipFile(io.BytesIO(data)) as opened:
        return [(info.filename.removesuffix(".npy"), opened.read(info)) for info in opened.infolist()]


def npy_of(text):
    return modelfile._npy_header("|u1", (len(text),)) + text


HUGE = [2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1]
NASTY = [
    *HUGE, -1, 0, 1, 10**400, 1.5, -0.0, float("nan"), float("inf"), None, True, False, "", "0", "|O", ">f8", "<f4",
    "../../x", "\0", "\ud800", "header", "x" * 70_000, [], {}, [[]], [0], [2**62, 2**62], [0, 2**63], [-1], [1] * 40,
    ["a", "<f4", [2**40]], {"a": {}},
]  # fmt: skip
DEEP = b"[" * 100_000 + b"]" * 100_000


class Mutations:
    """Ways to spoil a file. Each takes bytes and gives bytes; `of` draws one and says what it was."""

    def __init__(self, seed, files):
        self.rng, self.files = np.random.default_rng(seed), files

    def below(self, n):
        return int(self.rng.integers(max(n, 1)))

    def one_of(self, things):
        return things[self.below(len(things))]

    def of(self, data):
        kind = self.one_of(("bytes", "bytes", "sealed bytes", "header", "header", "entries", "foreign"))
        spoiled = getattr(self, kind.replace(" ", "_"))(data)
        return kind, spoiled

    def bytes(self, data):
        out = bytearray(data)
        for _ in range(1 + self.below(2) * self.below(4)):
            at, length = self.below(len(out)), 1 + self.below(self.one_of((2, 20, 500)))
            way = self.below(9)
            if way == 0:
                out[at % max(len(out), 1)] ^= 1 << self.below(8)
            elif way == 1:
                out[at : at + length] = self.rng.bytes(len(out[at : at + length]))
            elif way == 2:
                out[at : at + length] = bytes([self.one_of((0, 255))]) * len(out[at : at + length])
            elif way == 3:
                del out[at:]
            elif way == 4:
                del out[at : at + length]
            elif way == 5:
                out[at:at] = self.rng.bytes(length)
            elif way == 6:
                out += self.one_of((bytes(length), self.rng.bytes(length), data[: length * 9]))
            elif way == 7:
                other = self.one_of(self.files)
                out[at:] = other[self.below(len(other)) :] if self.below(2) else other[at:]
            else:  # a number of the archive made huge
                marks = [n for n in range(len(data) - 4) if data[n : n + 2] == b"PK"]
                start, form = self.one_of(marks) + self.below(60), self.one_of(("<H", "<I", "<Q"))
                number = struct.pack("<Q", self.one_of(HUGE))[: struct.calcsize(form)]
                out[start : start + len(number)] = number
            if not out:
                break
        return bytes(out)

    def sealed_bytes(self, data):
        """Damaged, and then given a fitting digest: what comes after the digest must hold too."""
        return sealed(self.bytes(data))

    def header(self, data):
        """The JSON changed, and every checksum made to fit."""
        (_, npy), *rest = entries_of(data)
        text = npy[128:] if len(npy) > 128 else npy
        header = json.loads(text[text.index(b"{") :])
        for _ in range(1 + self.below(3)):
            part = self.one_of([part for part in header.values() if part and isinstance(part, dict | list)] or [header])
            where, what = self.one_of([*self.places(header if self.below(9) == 0 else part)])
            way = self.below(5)
            if way == 0:
                del where[what]
            elif way == 1 and isinstance(where, list):
                where.insert(what, copy.deepcopy(self.one_of(where)))
            elif way == 2 and isinstance(where[what], int) and not isinstance(where[what], bool):
                where[what] = self.one_of((where[what] + 1, where[what] - 1, -where[what], where[what] * 2**20))
            else:
                where[what] = copy.deepcopy(self.one_of(NASTY))
        text = json.dumps(header).encode()
        if not self.below(10):
            text = self.one_of((text[: self.below(len(text))], DEEP, text.replace(b'"', b"'"), b'{"format":' + DEEP))
        return archive([("header", npy_of(text)), *rest])

    def places(self, tree):
        for what in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, what
            if isinstance(tree[what], dict | list) and tree[what]:
                yield from self.places(tree[what])

    def entries(self, data):
        """Arrays left out, doubled, moved, exchanged with another file's, relabelled; then made to fit."""
        entries, other = entries_of(data), entries_of(self.one_of(self.files))
        way, at, to = self.below(6), self.below(len(entries)), self.below(len(entries))
        if way == 0:
            del entries[at]
        elif way == 1:
            entries.insert(to, entries[at])
        elif way == 2:
            entries[at], entries[to] = entries[to], entries[at]
        elif way == 3:
            entries[at] = self.one_of(other)
        elif way == 4:
            entries[at] = (entries[at][0], entries[to][1])
        else:
            name, npy = entries[at]
            shape = self.one_of(("(99999999999,)", "(4, 4000000000)", "(-1,)", "(1,", "__import__('os').abort()"))
            text = f"{{'descr': '{self.one_of(('<f4', '|O', '<f8'))}', 'fortran_order': True, 'shape': {shape}, }}"
            entries[at] = (name, npy[:10] + text.encode().ljust(117) + b"\n" + npy[128:])
        return archive(entries)

    def foreign(self, data):
        """What other tools would make of it, or somebody with bad intentions, with a digest that fits or without."""
        out, way = io.BytesIO(), self.below(5)
        if way == 0:  # unpacks to a thousand times its size
            with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
                made.writestr("header.npy", npy_of(bytes(1 << 20)))
        elif way == 1:
            np.savez(out, header=np.array([Trap()], dtype=object), **{"model/0.weight": np.zeros(3)})
        elif way == 2:
            np.savez(out, **{name: np.frombuffer(npy, np.uint8) for name, npy in entries_of(data)})
        elif way == 3:  # a thousand entries that are all the same bytes
            (name, npy), *_ = entries_of(data)
            crc = zipfile.crc32(npy)
            local = modelfile._local_header(name, crc, len(npy))
            directory = [(f"{n}", crc, len(npy), 0) for n in range(1000)]
            out.write(local + npy + modelfile._directory(directory, len(local) + len(npy)) + bytes(64))
        else:
            out.write(self.one_of((b"", b"PK", b"PK\3\4", b"PK\5\6" + bytes(18), data[:4] + self.rng.bytes(500))))
        made = out.getvalue()
        return sealed(made) if self.below(2) and len(made) > 64 else made


class Trap:
    """What a pickle would do, if anybody opened it."""

    def __reduce__(self):
        return (os.abort, ())


def good_files(folder):
    """A model, a model of another shape, and a checkpoint in the middle of a pass."""
    small().build("abc").save(folder / "a.npz")
    CharLM("rnn", 4, 2, None, dropout=0.5, seed=2).build("hello").save(folder / "b.npz")
    stop_in_the_middle(folder / "c.npz")
    return [(folder / name).read_bytes() for name in ("a.npz", "b.npz", "c.ckpt.npz")]


def stop_in_the_middle(path):
    small().fit(TEXT, checkpoint=path, **FIT)  # so that there is a best
    small().fit(TEXT, checkpoint=path, resume=True, **{**FIT, "epochs": 2, "time_limit": 1e-6})


def try_mutations(folder, count, seed=0):
    """In a process of its own. Prints what became of `count` mutated files."""
    files = good_files(folder)
    path = folder / "spoiled.npz"
    original = path.with_name("spoiled.ckpt.npz")
    seen, forbidden, watching = collections.Counter(), [], False
    harmless = {"open", "builtins.id", "object.__getattr__", "object.__setattr__", "sys._getframe"}

    def hook(event, args):
        if watching and event not in harmless:
            forbidden.append(f"{event} {args}")

    def attempt(call):
        nonlocal watching
        watching = True
        try:
            return call()
        except ModelFileError as error:
            said = str(error)
        finally:
            watching = False
        assert said.startswith(f"{path}: "), said
        assert len(said) < 2000, said
        return None

    path.write_bytes(files[0])
    CharLM.load(path)
    sys.addaudithook(hook)
    tracemalloc.start()
    for n in range(count):
        mutations = Mutations([seed, n], files)
        data = mutations.one_of(files)
        kind, spoiled = mutations.of(data)
        path.write_bytes(spoiled)
        tracemalloc.clear_traces()
        tracemalloc.reset_peak()
        found = attempt(lambda: read_model_file(path))
        lm = attempt(lambda: CharLM.load(path))
        peak = tracemalloc.get_traced_memory()[1]
        # Lists and dicts of the JSON take more than its text; arrays no more than the file.
        assert peak < (1 << 20) + 60 * len(spoiled), (n, kind, peak, len(spoiled))
        if found is not None:
            arrays = sum(array.nbytes for array in found[1].values())
            assert arrays < len(spoiled), (n, kind)
            if kind.endswith("bytes") and spoiled != data:
                # With a digest that fits, all that a change can do and stay unseen is to make another good file.
                assert kind == "sealed bytes", (n, kind)
                assert spoiled in files, (n, kind)
        if lm is not None:
            lm.sample(1, seed=0)
        if found is not None and "training" in found[0]:
            original.write_bytes(spoiled)
            fresh = small()
            what = "resumed"
            try:
                with np.errstate(all="ignore"):
                    fresh.fit(TEXT, checkpoint=path, resume=True, **FIT)
            except FloatingPointError:
                what = "diverged"
            except ValueError:
                what = "refused"
            seen[f"checkpoints {what}"] += 1
            assert (fresh.model is None) == (what == "refused"), (n, kind, what)
        seen["unchanged" if spoiled == data else "refused" if lm is None else "accepted"] += 1
        assert not forbidden, (n, kind, forbidden)
    print(json.dumps(seen))


def test_mutated_files(tmp_path, effort, reliability):
    """No crash, no hang, no wild allocation, nothing executed; and never a changed file for a good one."""
    count = effort(300, 10_000)
    code = f"""
        import faulthandler, pathlib, sys
        faulthandler.enable()
        import test_modelfile
        test_modelfile.try_mutations(pathlib.Path({str(tmp_path)!r}), {count})
    """
    seen = json.loads(run_python(code, timeout=1200).splitlines()[-1])
    assert sum(seen.get(name, 0) for name in ("unchanged", "refused", "accepted")) == count
    assert seen["refused"] > 0.7 * count
    # Some get past every check, or the checks behind the first ones have not been tried.
    assert seen["accepted"] > 0
    assert seen["checkpoints refused"] > 0
    reliability(
        mutated_files=count, refused=seen["refused"], unchanged=seen.get("unchanged", 0),
        read_as_what_they_are_after_all_their_checksums_were_made_to_fit=seen["accepted"],
        checkpoints_among_those_refused_when_resumed=seen["checkpoints refused"],
        and_resumed=seen.get("checkpoints resumed", 0),
    )  # fmt: skip


def test_the_mutations_find_a_reader_that_trusts(tmp_path, monkeypatch):
    """Without the digest's check, changed bytes get through: the test above could tell."""
    path, got_through = tmp_path / "spoiled.npz", 0
    monkeypatch.setattr(modelfile.hashlib, "sha256", lambda data=b"": Anything())
    monkeypatch.setattr(modelfile.zlib, "crc32", lambda data, start=0: 0)
    write_model_file(path, {}, {"a": np.zeros(100)})
    data = path.read_bytes()
    for at in range(0, len(data), 10):
        spoiled = bytearray(data)
        spoiled[at] ^= 1
        path.write_bytes(spoiled)
        with contextlib.suppress(ModelFileError):
            read_model_file(path)
            got_through += 1
    assert got_through > 50


class Anything:
    def update(self, data):
        pass

    def hexdigest(self):
        return "0" * 64


def test_a_small_file_can_not_ask_for_a_large_model(tmp_path):
    """Sizes whose product nobody has: before they are allocated, there must be weights for all of them."""
    path = tmp_path / "m.npz"
    small().build("abc").save(path)
    header, arrays = read_model_file(path)
    header["model"].update(embedding_size=20_000, hidden_size=100_000, num_layers=1)
    arrays["model/0.weight"] = np.zeros((3, 20_000), np.float32)
    write_model_file(path, header, arrays)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="weights are too few"):
            CharLM.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * path.stat().st_size + (1 << 20)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("embedding_size", [None, 5])
@pytest.mark.parametrize("peephole", [None, "diagonal"])
def test_the_count_of_weights(cell, embedding_size, peephole):
    if cell == "rnn" and peephole:
        peephole, embedding_size = None, 7
    lm = CharLM(cell, 6, 3, embedding_size, peephole).build("abcd")
    assert lm._count(4) == lm.num_parameters


# -------------------------------------------------------------------- what killed writers leave


def left_over(path):
    """The name of what a killed writer of `path` has left."""
    run = f"""
        import os, signal
        import numpy as np
        from fastrnn import modelfile
        modelfile.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        modelfile.write_model_file({str(path)!r}, {{}}, {{"a": np.zeros(1000)}})
    """
    before = set(os.listdir(path.parent))
    with pytest.raises(AssertionError, match="exit code -9"):
        run_python(run)
    (name,) = set(os.listdir(path.parent)) - before
    return path.parent / name


def test_the_next_save_removes_what_a_kill_left(tmp_path):
    path, other = tmp_path / "m.npz", tmp_path / "m.npz.npz"
    mine, others = left_over(path), left_over(other)
    empty = tmp_path / "m.npz.0123456789ab.fastrnn.tmp"
    empty.write_bytes(b"")
    write_model_file(path, {}, {})
    assert set(tmp_path.iterdir()) == {path, others}
    write_model_file(other, {}, {})
    assert set(tmp_path.iterdir()) == {path, other}
    assert not mine.exists()


def test_what_is_not_surely_left_over_stays(tmp_path):
    path = tmp_path / "m.npz"
    left = left_over(path)
    data = left.read_bytes()
    left.unlink()
    names = {
        "m.npz.0123456789ab.fastrnn.tmp": b"somebody else's, whatever its name",
        "m.npz.0123456789ab.tmp": data,
        "m.npz.0123456789AB.fastrnn.tmp": data,
        "m.npz.0123.fastrnn.tmp": data,
        "mXnpz.0123456789ab.fastrnn.tmp": data,
    }
    for name, content in names.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "target").write_bytes(data)
    (tmp_path / "m.npz.111111111111.fastrnn.tmp").symlink_to("target")
    os.mkfifo(tmp_path / "m.npz.222222222222.fastrnn.tmp")
    (tmp_path / "m.npz.333333333333.fastrnn.tmp").mkdir()
    before = set(os.listdir(tmp_path))
    write_model_file(path, {}, {})
    assert set(os.listdir(tmp_path)) == before | {"m.npz"}


def test_a_living_writer_is_left_alone(tmp_path, monkeypatch):
    """Two that save to the same path at once: both succeed, and the later one's file stays."""
    path, pieces, seen = tmp_path / "m.npz", modelfile._pieces, []

    def slow(arrays):
        for n, piece in enumerate(pieces(arrays)):
            if n == 2:
                monkeypatch.setattr(modelfile, "_pieces", pieces)
                write_model_file(path, {"n": 2}, {})
                seen.append(read_model_file(path)[0]["n"])
            yield piece

    monkeypatch.setattr(modelfile, "_pieces", slow)
    write_model_file(path, {"n": 1}, {"a": np.zeros(3)})
    assert seen == [2]
    assert read_model_file(path)[0]["n"] == 1
    assert os.listdir(tmp_path) == ["m.npz"]


def test_taken_for_a_dead_ones_before_it_is_locked(tmp_path, monkeypatch):
    path, lock, removed = tmp_path / "m.npz", modelfile._lock, []

    def late(descriptor, wait=True):
        if not removed:
            removed.extend(tmp_path.iterdir())
            removed[0].unlink()
        return lock(descriptor, wait)

    monkeypatch.setattr(modelfile, "_lock", late)
    write_model_file(path, {}, {"a": np.ones(2)})
    assert len(removed) == 1
    assert read_model_file(path)[1]["a"].sum() == 2
    assert os.listdir(tmp_path) == ["m.npz"]


def test_trying_leaves_nothing(tmp_path):
    check_writable(tmp_path / "m.npz")
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"'.*/none/m\.npz'$"):  # not the trial's name
        check_writable(tmp_path / "none" / "m.npz")
    with pytest.raises(FileNotFoundError, match=r"'.*/none/m\.npz'$"):
        write_model_file(tmp_path / "none" / "m.npz", {}, {})


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "m.npz"
    write_model_file(path, {"n": 1}, {})

    def interrupted(arrays):
        yield b"PK"
        raise KeyboardInterrupt

    monkeypatch.setattr(modelfile, "_pieces", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_model_file(path, {"n": 2}, {})
    assert read_model_file(path)[0]["n"] == 1
    assert os.listdir(tmp_path) == ["m.npz"]


def test_a_checkpoint_that_makes_no_sense_changes_nothing(tmp_path):
    path = tmp_path / "m.npz"
    stop_in_the_middle(path)
    header, arrays = read_model_file(checkpoint_path(path))
    changes = {
        "chunk": lambda h, a: h["training"].update(chunk=10**9),
        "makes no sense": lambda h, a: h["training"].pop("loss_sum"),
        "the state": lambda h, a: a.update({"state/0": a["state/0"][:, :1]}),
        "the best weights": lambda h, a: a.update({"best/0.weight": a["best/0.weight"][:1]}),
    }
    for message, change in changes.items():
        spoiled = copy.deepcopy((header, arrays))
        change(*spoiled)
        write_model_file(checkpoint_path(path), *spoiled)
        lm = small()
        with pytest.raises(ValueError, match=message):
            lm.fit(TEXT, checkpoint=path, resume=True, **FIT)
        assert lm.model is None
