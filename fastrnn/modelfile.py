"""Model files: named arrays and a JSON header in one `.npz`; no pickle, checksummed, never half written.

Any tool that opens an `.npz` can look inside. There are two entries beside the arrays: `header`, the JSON as
UTF-8 bytes, and `sha256`, the digest of everything else. Equal contents make equal bytes: there are no times
in the file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import uuid
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["ModelFileError", "check_writable", "read_model_file", "write_model_file"]

FORMAT = "fastrnn model"
VERSION = 1


class ModelFileError(ValueError):
    """A file that is damaged, or that is not a model file of a version that this fastrnn can read."""


def write_model_file(path: str | os.PathLike[str], header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes aside, syncs to the disk, then renames: a kill at any moment leaves the old file or the new one.

    `header` is anything that JSON can hold; `arrays` maps names to numeric arrays of any shape.
    """
    path = os.path.realpath(path)  # of a symbolic link, the file it points to is replaced, not the link
    header_bytes = json.dumps({"format": FORMAT, "version": VERSION, **header}).encode()
    arrays = {name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in arrays.items()}
    entries: dict[str, Any] = {
        "header": np.frombuffer(header_bytes, np.uint8),
        "sha256": np.frombuffer(_digest(header_bytes, arrays), np.uint8),
        **arrays,
    }
    aside = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
    try:
        with open(aside, "xb") as file:
            np.savez(file, **entries)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    _sync_folder(os.path.dirname(path))


def read_model_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a file that `write_model_file` wrote; the arrays are new and writable.

    `ModelFileError` for every file that is something else, or that is not whole; `OSError` for one that can't
    be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    try:
        return _parse(data)
    except ModelFileError as error:
        raise ModelFileError(f"{os.fspath(path)}: {error}") from None
    except Exception as error:
        # A damaged archive makes its readers fail in many ways, which all mean the same to the caller.
        raise ModelFileError(f"{os.fspath(path)}: not a fastrnn model file, or a damaged one ({error})") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """`OSError` if a file can't be made at `path`: better known before the training than after it."""
    path = os.path.realpath(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder, and a file is to be written", path)
    trial = f"{path}.{uuid.uuid4().hex[:12]}.tmp"
    with open(trial, "xb"):
        pass
    os.unlink(trial)


def _parse(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not data.startswith(b"PK"):
        raise ModelFileError("not a fastrnn model file (not even an .npz)")
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            # Compressed entries are never ours, and could unpack to any size.
            if info.compress_type != zipfile.ZIP_STORED or not info.filename.endswith(".npy"):
                raise ModelFileError("an archive, but not one that fastrnn wrote")
            arrays[info.filename.removesuffix(".npy")] = _parse_array(archive.read(info))
    if not {"header", "sha256"} <= arrays.keys():
        raise ModelFileError("an .npz, but not one that fastrnn wrote (or a damaged one)")
    header_bytes, digest = arrays.pop("header").tobytes(), arrays.pop("sha256").tobytes()
    if digest != _digest(header_bytes, arrays):
        raise ModelFileError("damaged: its checksum does not fit its contents")
    header = json.loads(header_bytes)
    if header["format"] != FORMAT:
        raise ModelFileError("an .npz, but not a fastrnn model")
    if header["version"] != VERSION:
        raise ModelFileError(f"format version {header['version']}, and this fastrnn reads version {VERSION}")
    return header, arrays


def _parse_array(data: bytes) -> np.ndarray:
    """The array of one `.npy` entry; nothing is allocated that the entry's own bytes do not fill."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran_order, dtype = read_header(stream)
    if dtype.kind not in "biuf" or fortran_order:  # objects, which would be pickles, are among the others
        raise ModelFileError(f"not a fastrnn model file (an entry of type {dtype})")
    content = data[stream.tell() :]
    if math.prod(shape) * dtype.itemsize != len(content):
        raise ModelFileError("damaged: an array's shape does not fit its bytes")
    return np.frombuffer(content, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _digest(header: bytes, arrays: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256(header)
    for name in sorted(arrays):
        array = arrays[name]
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"\n{name} {little.dtype.str} {array.shape}\n".encode())
        digest.update(little.tobytes())
    return digest.digest()


def _sync_folder(folder: str) -> None:
    """Makes the renaming itself last through a power cut, where the system can do that."""
    with contextlib.suppress(OSError, AttributeError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
