"""GGUF files, opened as what they are: untrusted input.

``open_gguf(path)`` reads the header (metadata and tensor table) with every count, length and offset checked against the
file's real size before anything is allocated or viewed, and returns plain Python values and lazy numpy views. Whatever
is wrong with the file becomes one ``ModelError`` that names it. The layout is the GGUF specification's (versions 2
and 3, little endian); block sizes of the quantised types come from the ``gguf`` library, which also dequantises them.

    [magic version num_tensors num_keys] [key type value]* [name dims type offset]* pad [tensor data ...]
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from pyengine.errors import ModelError

# No real file comes near these; a header that claims more is refused before any memory is taken for it.
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_ARRAY_LEN = 1 << 24
MAX_NAME_BYTES = 1 << 16
MAX_STRING_BYTES = 1 << 26
MAX_DIMS = 4

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_PLAIN_DTYPES = {
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F64: np.dtype("<f8"),
    GGMLQuantizationType.I8: np.dtype("i1"),
    GGMLQuantizationType.I16: np.dtype("<i2"),
    GGMLQuantizationType.I32: np.dtype("<i4"),
    GGMLQuantizationType.I64: np.dtype("<i8"),
}


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of the file.

    Attributes:
        name: as stored, such as ``blk.0.attn_q.weight``.
        tensor_type: ``gguf.GGMLQuantizationType``.
        shape: element counts, outermost first (numpy's and torch's order, the reverse of the file's).
        data_offset: bytes from the start of the file.
        num_bytes: of its data in the file.
    """

    name: str
    tensor_type: GGMLQuantizationType
    shape: tuple[int, ...]
    data_offset: int
    num_bytes: int
    _file: np.ndarray

    @property
    def data(self) -> np.ndarray:
        """Read-only view of the mapped file.

        Plain types have their dtype and ``shape``; all others (also BF16) are uint8 with the last axis in bytes, which
        is what ``gguf.quants.dequantize(data, tensor_type)`` takes.
        """
        raw = self._file[self.data_offset : self.data_offset + self.num_bytes]
        dtype = _PLAIN_DTYPES.get(self.tensor_type)
        if dtype is not None:
            return raw.view(dtype).reshape(self.shape)
        num_rows = math.prod(self.shape[:-1])
        return raw.reshape(*self.shape[:-1], self.num_bytes // num_rows)


@dataclass(frozen=True)
class GGUFFile:
    """A checked GGUF file: ``metadata`` holds Python scalars, strings and lists; ``tensors`` are in file order."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: list[GGUFTensor]

    @cached_property
    def by_name(self) -> dict[str, GGUFTensor]:
        return {tensor.name: tensor for tensor in self.tensors}

    def get(self, key: str, expected: type | tuple[type, ...], default: Any = None) -> Any:
        """``metadata[key]`` if it is of the expected type; ``default`` when absent; ModelError when of another type."""
        value = self.metadata.get(key)
        if value is None:
            return default
        if not isinstance(value, expected) or (isinstance(value, bool) and expected is int):
            raise ModelError(f"{self.path}: metadata {key} has an unexpected type {type(value).__name__}")
        return value


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open and check a .gguf file; raises ModelError naming the file, and the key or tensor, when anything is wrong.

    The file opened last is kept: at a start its configuration, tokenizer and weights are asked for one after another,
    and a header of many tokens takes a tenth of a second to read.
    """
    path = Path(path)
    try:
        status = path.stat()
        if status.st_size < 24:
            raise ModelError(f"{path}: not a GGUF file, only {status.st_size} bytes")
        return _read(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be opened: {error}") from None


@lru_cache(maxsize=1)
def _read(path: Path, identity: tuple[int, ...]) -> GGUFFile:
    return _Reader(path, np.memmap(path, dtype=np.uint8, mode="r")).read()


class _Reader:
    """A cursor over the header. Every read is checked against the end of the file first."""

    def __init__(self, path: Path, mapped: np.ndarray):
        self.path = path
        self.file = mapped
        self.view = memoryview(mapped)
        self.size = len(mapped)
        self.offset = 0

    def read(self) -> GGUFFile:
        if bytes(self.view[:4]) != b"GGUF":
            raise ModelError(f"{self.path}: not a GGUF file (it begins with {bytes(self.view[:4])!r})")
        self.offset = 4
        version = self.scalar("I")
        if version & 0xFFFF == 0:
            raise ModelError(f"{self.path}: big-endian GGUF files are not supported")
        if version not in (2, 3):
            raise ModelError(f"{self.path}: GGUF version {version} is not supported (have 2 and 3)")
        num_tensors, num_keys = self.scalar("Q"), self.scalar("Q")
        self.check_count("tensors", num_tensors, MAX_TENSORS, min_bytes=24)
        self.check_count("metadata keys", num_keys, MAX_KEYS, min_bytes=13)
        metadata = self.read_metadata(num_keys)
        tensors = self.read_tensors(num_tensors, metadata)
        return GGUFFile(self.path, version, metadata, tensors)

    def read_metadata(self, num_keys: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string("a metadata key", MAX_NAME_BYTES)
            if key in metadata:
                raise ModelError(f"{self.path}: metadata key {key!r:.200} occurs twice")
            metadata[key] = self.value(key)
        return metadata

    def value(self, key: str) -> Any:
        kind = self.scalar("I")
        if kind == _STRING:
            return self.string(key, MAX_STRING_BYTES)
        if kind == _ARRAY:
            return self.array(key)
        if kind not in _SCALARS:
            raise ModelError(f"{self.path}: metadata {key} has unknown type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self, key: str) -> list[Any]:
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            self.check_count(f"entries of {key}", count, MAX_ARRAY_LEN, min_bytes=8)
            return [self.string(key, MAX_STRING_BYTES) for _ in range(count)]
        if kind not in _SCALARS:
            raise ModelError(f"{self.path}: metadata {key} is an array of unsupported type {kind}")
        code = _SCALARS[kind]
        width = struct.calcsize(code)
        self.check_count(f"entries of {key}", count, MAX_ARRAY_LEN, min_bytes=width)
        start = self.take(width * count)
        return np.frombuffer(self.view[start : self.offset], dtype=np.dtype("<" + code)).tolist()

    def read_tensors(self, num_tensors: int, metadata: dict[str, Any]) -> list[GGUFTensor]:
        entries = [self.tensor_entry() for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise ModelError(f"{self.path}: general.alignment must be a power of two up to 2^20, got {alignment!r:.80}")
        data_start = -(-self.offset // alignment) * alignment
        tensors: dict[str, GGUFTensor] = {}
        for name, tensor_type, shape, num_bytes, offset in entries:
            start = data_start + offset
            if offset % alignment or start + num_bytes > self.size:
                raise ModelError(
                    f"{self.path}: tensor {name} lies at bytes [{start}, {start + num_bytes}) of a file of {self.size} "
                    f"bytes aligned to {alignment}; the file is truncated or corrupt"
                )
            if name in tensors:
                raise ModelError(f"{self.path}: tensor {name} occurs twice")
            tensors[name] = GGUFTensor(name, tensor_type, shape, start, num_bytes, self.file)
        return list(tensors.values())

    def tensor_entry(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int, int]:
        name = self.string("a tensor name", MAX_NAME_BYTES)
        num_dims = self.scalar("I")
        if not 1 <= num_dims <= MAX_DIMS:
            raise ModelError(f"{self.path}: tensor {name} has {num_dims} dimensions, expected 1 to {MAX_DIMS}")
        dims = [self.scalar("Q") for _ in range(num_dims)]
        type_code, offset = self.scalar("I"), self.scalar("Q")
        try:
            tensor_type = GGMLQuantizationType(type_code)
        except ValueError:
            raise ModelError(f"{self.path}: tensor {name} has unknown element type {type_code}") from None
        block, block_bytes = GGML_QUANT_SIZES[tensor_type]
        if 0 in dims or dims[0] % block:
            raise ModelError(
                f"{self.path}: tensor {name} of type {tensor_type.name} has dimensions {dims}; rows must be of whole "
                f"blocks of {block}"
            )
        num_bytes = math.prod(dims) // block * block_bytes
        return name, tensor_type, tuple(reversed(dims)), num_bytes, offset

    def take(self, num_bytes: int) -> int:
        """Advance over ``num_bytes`` and return where they start."""
        start, end = self.offset, self.offset + num_bytes
        if end > self.size:
            raise ModelError(f"{self.path}: ends inside its header, at {self.size} bytes; it is truncated or corrupt")
        self.offset = end
        return start

    def scalar(self, code: str) -> Any:
        return struct.unpack_from("<" + code, self.view, self.take(struct.calcsize("<" + code)))[0]

    def string(self, what: str, limit: int) -> str:
        length = self.scalar("Q")
        if length > limit:
            raise ModelError(f"{self.path}: {what!s:.200} claims a text of {length} bytes, the limit is {limit}")
        start = self.take(length)
        try:
            return str(self.view[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"{self.path}: {what!s:.200} is not valid UTF-8") from None

    def check_count(self, what: str, count: int, limit: int, min_bytes: int) -> None:
        if count > limit or count * min_bytes > self.size - self.offset:
            raise ModelError(
                f"{self.path}: claims {count} {what}, more than its {self.size} bytes can hold or the limit of {limit}"
            )
