"""Arrays in npz and safetensors files, one at a time; nothing is unpickled. Knows nothing of attention."""

from __future__ import annotations

import contextlib
import math
import mmap
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.errors import TraceError

MOST_BYTES = 4 << 30  # of one array of an npz, which is read as a whole
_HEADER_BYTES = 100 << 20  # the limit of the safetensors library
_SAVE = "np.savez, or save_file of safetensors.torch"
_FLOAT = "save it as float16, bfloat16, float32 or float64"
_AGAIN = "docs/traces.md, section Hugging Face, has a script that makes such files"
# What numpy raises for an archive that is damaged, locked, or says of an array what cannot be.
_DAMAGED = (ValueError, KeyError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, MemoryError)
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class Npz:
    """An open npz; `meta` is the text of an array of that name."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            self._file = np.load(path, allow_pickle=False)
            self.names: list[str] = [name for name in self._file.files if name != "meta"]
            self.meta = self._text("meta") if "meta" in self._file.files else ""
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith(".pkl") for name in archive.namelist()):
                    raise TraceError(f"{path.name} was written by torch.save, as a pickle; those are not read.", _SAVE)
                self._shapes = {
                    info.filename.removesuffix(".npy"): _npy_shape(archive, info) for info in archive.infolist()
                }
        except _DAMAGED as error:
            raise _unreadable(path.name, error) from None

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name][0]

    def array(self, name: str, index: int | None = None) -> NDArray[Any]:
        """Array `name`, or its part `index` along the first axis."""
        _, size = self._shapes[name]
        if size > MOST_BYTES:
            raise TraceError(
                f"{self._name}, {name}: {size >> 30} GB in one array; save one for each layer, or as safetensors.",
                _AGAIN,
            )
        try:
            made: NDArray[Any] = self._file[name]
        except _DAMAGED as error:
            raise _unreadable(self._name, error) from None
        return _floats(made if index is None else made[index], self._name, name)

    def _text(self, name: str) -> str:
        try:
            return str(self._file[name])
        except ValueError as error:
            if "pickle" not in str(error):
                raise
            raise TraceError(
                f"{self._name}: `{name}` is an object as a pickle; those are not read.",
                f"np.savez(…, {name}=json.dumps({name}))",
            ) from None

    def close(self) -> None:
        self._file.close()


class Safetensors:
    """An open safetensors file, mapped and not read; `meta` is the entry of that name among its metadata.

    Read here because numpy, and so the library's own numpy reader, has no bfloat16, in which most models run.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        try:
            with path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            length = int.from_bytes(self._map[:8], "little")
            if not 2 <= length <= min(_HEADER_BYTES, len(self._map) - 8):
                raise ValueError("its header does not fit into it")
            header = msgspec.json.decode(self._map[8 : 8 + length], type=dict[str, dict[str, Any]])
            self.meta = str(header.pop("__metadata__", {}).get("meta", ""))
            self._tensors = {name: msgspec.convert(tensor, _Tensor) for name, tensor in header.items()}
        except (ValueError, OSError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise _unreadable(path.name, error) from None
        self._start = 8 + length
        self.names = list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._checked(name).shape)

    def array(self, name: str, index: int | None = None) -> NDArray[Any]:
        """Array `name`, or its part `index` along the first axis."""
        tensor = self._checked(name)
        dtype, begin = np.dtype(_DTYPES[tensor.dtype]), tensor.data_offsets[0]
        whole = np.frombuffer(self._map, dtype, math.prod(tensor.shape), self._start + begin).reshape(tensor.shape)
        part = whole if index is None else whole[index]
        if tensor.dtype == "BF16":
            return (part.astype(np.uint32) << 16).view(np.float32)
        return part.copy()

    def close(self) -> None:
        self._map.close()

    def _checked(self, name: str) -> _Tensor:
        """What the header says of an array, if that is what the file has."""
        tensor = self._tensors[name]
        if tensor.dtype not in _DTYPES:
            raise TraceError(f"{self._name}, {name}: {tensor.dtype} is no floating point number.", _FLOAT)
        (begin, end), size = tensor.data_offsets, math.prod(tensor.shape) * np.dtype(_DTYPES[tensor.dtype]).itemsize
        if end - begin != size:
            raise TraceError(
                f"{self._name}, {name}: data_offsets are {end - begin} bytes apart, and a shape of {tensor.shape} "
                f"takes {size}.",
                _AGAIN,
            )
        if self._start + end > len(self._map):
            raise TraceError(f"{self._name}, {name}: the file ends in front of its numbers; it was cut off.", _AGAIN)
        return tensor


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[_Size]
    data_offsets: tuple[_Size, _Size]


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator[Npz | Safetensors]:
    """An open file of arrays, by what it begins with; TraceError when it is neither, OSError when it is not there."""
    with path.open("rb") as stream:
        begin = stream.read(2)
    opened = Npz(path) if begin == b"PK" else Safetensors(path)
    try:
        yield opened
    finally:
        opened.close()


def _npy_shape(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[tuple[int, ...], int]:
    """Shape and bytes of an array, from its header alone."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    # numpy makes room for the whole shape before it reads.
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename} is shorter than its shape {tuple(shape)}")
    return tuple(shape), info.file_size


def _floats(array: NDArray[Any], file: str, name: str) -> NDArray[Any]:
    if array.dtype.kind != "f":
        raise TraceError(f"{file}, {name}: {array.dtype} is no floating point number.", _FLOAT)
    return array


def _unreadable(name: str, error: Exception) -> TraceError:
    return TraceError(f"{name} cannot be read: {str(error).removesuffix('.') or type(error).__name__}.", _AGAIN)
