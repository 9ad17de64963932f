"""Model files: named arrays and a JSON header in one `.npz`; no pickle, sealed by a checksum, never half written.

Any tool that opens an `.npz` can look inside. The first entry, `header`, is the JSON as ASCII bytes; the arrays follow,
uncompressed, in the order, of the types and of the shapes that the header lists under "arrays":

    local header, .npy header, JSON      | for each array: local header, .npy header, values
    directory of the archive             | its comment: "fastrnn sha256 " and the digest of all bytes before, in hex

So the header determines every byte of the file but the values and their checksums, and reading is checking: the size
that the header asks for is compared with the file's before anything of that size is allocated, the bytes between the
values are compared with what would be written, and the digest covers all. Equal contents make equal bytes: there are no
times in the file. Archives are laid out here, not by zipfile: its bytes depend on its version, and for an archive that
lies about itself (entries that overlap, sizes that don't fit) it reads what it is told to.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import struct
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

try:
    import fcntl
except ImportError:  # a system without it: nobody can tell there whether a writer lives, so nothing is cleared away
    fcntl = None  # type: ignore[assignment]

__all__ = ["ModelFileError", "check_writable", "read_model_file", "write_model_file"]

FORMAT = "fastrnn model"
VERSION = 1

TYPES = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
HEADER_LIMIT = 1 << 28  # bytes; a vocabulary of all of Unicode takes 13 million
NDIM_LIMIT = 32  # NumPy 1's

# Of an archive, in the form for files above 4 GB, whatever the size: there is one layout only.
_LOCAL = struct.Struct("<4s5H3L2H 2H2Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_ENTRY_EXTRA = struct.Struct("<2H3Q")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_NEEDED, _UTF8, _STORED, _TIME, _DATE = 45, 0x800, 0, 0, 0x21  # 1980-01-01, the first date that there is
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_SEAL = b"fastrnn sha256 "
_SEAL_SIZE = len(_SEAL) + 64


class ModelFileError(ValueError):
    """A file that is damaged, or that is not a model file of a version that this fastrnn can read."""

    def __init__(self, message: str) -> None:
        # It quotes the file, which may be of any size.
        super().__init__(message if len(message) <= 1000 else f"{message[:1000]} ...")


def _damaged(what: str) -> ModelFileError:
    return ModelFileError(f"damaged: {what}; use an earlier copy of it, or save the model anew")


def _foreign(what: str) -> ModelFileError:
    return ModelFileError(f"not a fastrnn model file: {what}; name one that `CharLM.save` or `fastrnn train` wrote")


# -------------------------------------------------------------------- writing


def write_model_file(path: str | os.PathLike[str], header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes aside, syncs to the disk, then renames: a kill at any moment leaves the old file or the new one.

    `header` is anything that JSON can hold (its "arrays" is set here); `arrays` maps names to arrays of booleans,
    integers or floats of up to 64 bits, of any shape. `OSError` names `path`; the old file is then as it was. What a
    killed process has left of an earlier attempt is removed.
    """
    path = os.path.realpath(path)  # of a symbolic link, the file it points to is replaced, not the link
    little = {name: _little(name, array) for name, array in arrays.items()}
    specs = [[name, array.dtype.str, list(array.shape)] for name, array in little.items()]
    text = json.dumps({"format": FORMAT, "version": VERSION, **header, "arrays": specs}).encode("ascii")
    if len(text) > HEADER_LIMIT or "header" in little:
        raise ValueError("the header is too large" if len(text) > HEADER_LIMIT else "no array may be called 'header'")
    _clear_left_over(path)
    with _told_of(path), _aside(path) as file:
        digest = hashlib.sha256()
        for piece in _pieces({"header": np.frombuffer(text, np.uint8), **little}):
            digest.update(piece)
            file.write(piece)
        file.write(digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)
    _sync_folder(os.path.dirname(path))


def check_writable(path: str | os.PathLike[str]) -> None:
    """`OSError` if a file can't be made at `path`: better known before the training than after it."""
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder, and a file is to be written", path)
    with _told_of(path), _aside(path):
        pass


def _little(name: str, array: Any) -> np.ndarray:
    """`array` as the file has it: contiguous and little-endian."""
    array = np.asarray(array)
    little = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    if little.dtype.str not in TYPES:
        raise TypeError(f"{name} has dtype {array.dtype}, expected booleans, integers or floats of up to 64 bits")
    return little


def _pieces(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The file, but for the digest at its end."""
    entries, offset = [], 0
    for name, array in arrays.items():
        start, values = _npy_header(array.dtype.str, array.shape), array.reshape(-1).view(np.uint8).data
        crc = zlib.crc32(values, zlib.crc32(start))
        size = len(start) + len(values)
        local = _local_header(name, crc, size)
        yield local + start
        yield values
        entries.append((name, crc, size, offset))
        offset += len(local) + size
    yield _directory(entries, offset)


def _npy_header(dtype: str, shape: Sequence[int]) -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {tuple(shape)}, }}".encode()
    padded = text.ljust(-(-(len(text) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded


def _file_name(name: str) -> bytes:
    return f"{name}.npy".encode()


def _local_header(name: str, crc: int, size: int) -> bytes:
    file_name, extra = _file_name(name), 20
    packed = _LOCAL.pack(
        b"PK\3\4", _NEEDED, _UTF8, _STORED, _TIME, _DATE, crc, _MAX32, _MAX32, len(file_name), extra,
        1, extra - 4, size, size,
    )  # fmt: skip
    return packed[:-extra] + file_name + packed[-extra:]


def _directory(entries: Sequence[tuple[str, int, int, int]], offset: int) -> bytes:
    """What follows the last array, up to the digest. entries : name, CRC, size and offset of each"""
    out = bytearray()
    for name, crc, size, at in entries:
        file_name = _file_name(name)
        out += _ENTRY.pack(
            b"PK\1\2", 3 << 8 | _NEEDED, _NEEDED, _UTF8, _STORED, _TIME, _DATE, crc, _MAX32, _MAX32,
            len(file_name), _ENTRY_EXTRA.size, 0, 0, 0, 0o600 << 16, _MAX32,
        )  # fmt: skip
        out += file_name + _ENTRY_EXTRA.pack(1, _ENTRY_EXTRA.size - 4, size, size, at)
    size, count = len(out), len(entries)
    out += _END_64.pack(b"PK\6\6", _END_64.size - 12, _NEEDED, _NEEDED, 0, 0, count, count, size, offset)
    out += _LOCATOR.pack(b"PK\6\7", 0, offset + size, 1)
    out += _END.pack(b"PK\5\6", 0, 0, _MAX16, _MAX16, _MAX32, _MAX32, _SEAL_SIZE)
    return bytes(out + _SEAL)


# -------------------------------------------------------------------- reading


def read_model_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file that `write_model_file` wrote; the arrays are new and writable.

    `ModelFileError` for every file that is something else, or that is not whole; `OSError` for one that can't
    be read. Nothing in the file is executed, and no array is allocated before the file is known to have its bytes.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):  # a pipe could keep us waiting for ever
            raise _foreign("a device or a pipe")
        with open(path, "rb") as file:
            return _read(file, os.fstat(file.fileno()).st_size)
    except ModelFileError as error:
        raise ModelFileError(f"{os.fspath(path)}: {error}") from None


def _read(file: BinaryIO, size: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    digest = hashlib.sha256()

    def take(count: int) -> bytes:
        data = file.read(count)
        if len(data) != count:
            raise _damaged("it became shorter while it was read")
        digest.update(data)
        return data

    def expect(found: bytes, piece: bytes) -> None:
        if found != piece:
            raise _damaged(f"the {len(piece)} bytes before byte {file.tell():,} are not those expected there")

    if size < 4 or (start := take(4)) != b"PK\3\4":
        raise _foreign(f"{size} bytes" if size < 4 else "not even an .npz")
    length = len(_local_header("header", 0, 0))
    if size < length:
        raise _damaged(f"it ends after {size:,} bytes")
    start += take(length - 4)
    crc, entry = int.from_bytes(start[14:18], "little"), int.from_bytes(start[-8:], "little")
    if start != _local_header("header", crc, entry):
        raise _foreign("an archive that something else wrote, or whose first bytes are damaged")
    if entry > min(HEADER_LIMIT, size - length):
        raise _damaged(f"its header is said to have {entry:,} bytes, and the file has {size:,}")
    header = _header(take(entry), crc)
    specs = _specs(header.pop("arrays", None))

    # All that is left to come, before any of it is allocated.
    sizes = [len(_npy_header(dtype, shape)) + _bytes(dtype, shape) for _, dtype, shape in specs]
    entries, offset = [("header", crc, entry, 0)], length + entry
    for (name, _, _), one in zip(specs, sizes, strict=True):
        entries.append((name, 0, one, offset))
        offset += len(_local_header(name, 0, 0)) + one
    expected = offset + len(_directory(entries, 0)) + 64
    if size != expected:
        raise _damaged(f"it has {size:,} bytes, expected {expected:,}" + ("; it is cut off" if size < expected else ""))

    arrays = {}
    for k, ((name, dtype, shape), (_, _, one, at)) in enumerate(zip(specs, entries[1:], strict=True)):
        local = take(len(_local_header(name, 0, 0)))
        crc = int.from_bytes(local[14:18], "little")
        npy = _npy_header(dtype, shape)
        expect(local, _local_header(name, crc, one))
        expect(take(len(npy)), npy)
        flat = np.empty(_bytes(dtype, shape), np.uint8)
        if file.readinto(flat.data) != flat.size:  # type: ignore[attr-defined]
            raise _damaged("it became shorter while it was read")
        digest.update(flat.data)
        if zlib.crc32(flat.data, zlib.crc32(npy)) != crc:
            raise _damaged(f"the checksum of {name} does not fit its values")
        entries[k + 1] = (name, crc, one, at)
        array = flat.view(dtype).reshape(shape)
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    directory = _directory(entries, offset)
    expect(take(len(directory)), directory)
    if file.read(64) != digest.hexdigest().encode():
        raise _damaged("its checksum does not fit its contents")
    return header, arrays


def _header(entry: bytes, crc: int) -> dict[str, Any]:
    """The JSON of the first entry."""
    if zlib.crc32(entry) != crc:
        raise _damaged("the checksum of its header does not fit")
    text = entry[10 + int.from_bytes(entry[8:10], "little") :]
    if entry != _npy_header("|u1", (len(text),)) + text:
        raise _foreign("its header is not as fastrnn writes it")
    try:
        header = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise _foreign(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _foreign("an .npz, but not a fastrnn model")
    version = header.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise ModelFileError(
            f"format version {version}, and this fastrnn reads version {VERSION}"
            + ("; a newer fastrnn wrote it: upgrade" if newer else "")
        )
    return header


def _specs(listed: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, type and shape of each array, checked."""
    if not isinstance(listed, list):
        raise _damaged("its header lists no arrays")
    specs, names = [], {"header"}
    for one in listed:
        if not (isinstance(one, list) and len(one) == 3 and isinstance(one[0], str) and isinstance(one[2], list)):
            raise _damaged("its header lists something that is no array")
        name, dtype, shape = one
        try:
            unusable = name in names or len(_file_name(name)) > _MAX16
        except UnicodeEncodeError:
            unusable = True
        if unusable:
            raise _damaged(f"an array is called {name[:50]!r}, twice or in vain")
        if dtype not in TYPES:
            raise _damaged(f"{name[:50]} has the type {str(dtype)[:50]!r}, expected one of {', '.join(TYPES)}")
        if len(shape) > NDIM_LIMIT or any(type(n) is not int or not 0 <= n < 1 << 62 for n in shape):
            raise _damaged(f"the shape of {name[:50]} makes no sense")
        if math.prod(n for n in shape if n) >= 1 << 59:  # of an empty array too: NumPy has no such thing
            raise _damaged(f"{name[:50]} is said to have shape {tuple(shape)}, more than fits in any memory")
        names.add(name)
        specs.append((name, dtype, tuple(shape)))
    return specs


def _bytes(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * int(dtype[2:])


# -------------------------------------------------------------------- files beside it

# No one else names a file so, and it is locked as long as its writer lives.
_ASIDE = ".fastrnn.tmp"


@contextlib.contextmanager
def _aside(path: str) -> Iterator[BinaryIO]:
    """A new file beside `path`, locked; removed at the end, unless it has got another name."""
    while True:
        name = f"{path}.{uuid.uuid4().hex[:12]}{_ASIDE}"
        try:
            with open(name, "xb") as file:
                _lock(file.fileno())
                # Between the two lines above, somebody who clears away may have taken it for a dead one's.
                if os.fstat(file.fileno()).st_nlink == 0:
                    continue
                yield file
                return
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)


def _lock(descriptor: int, wait: bool = True) -> bool:
    """Locks until the file is closed; False if somebody else has, or if that can't be known."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _clear_left_over(path: str) -> None:
    """Removes what killed writers of `path` have left: files with our kind of name and beginning, locked by nobody."""
    folder, name = os.path.split(path)
    ours = re.compile(re.escape(name) + r"\.[0-9a-f]{12}" + re.escape(_ASIDE))
    try:
        found = [one for one in os.listdir(folder) if ours.fullmatch(one)]
    except OSError:
        return
    begin = _local_header("header", 0, 0)[:14]
    for one in found:
        with contextlib.suppress(OSError):
            left = os.path.join(folder, one)
            descriptor = os.open(left, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
                if regular and begin.startswith(os.read(descriptor, len(begin))) and _lock(descriptor, wait=False):
                    os.unlink(left)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def _told_of(path: str) -> Iterator[None]:
    """An `OSError` within names `path`: not the file aside, nor nothing, as one of a full disk does."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def _sync_folder(folder: str) -> None:
    """Makes the renaming itself last through a power cut, where the system can do that."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
