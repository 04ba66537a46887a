"""Weights from a folder of safetensors files, single or sharded, mapped into memory or read piece by piece.

The format (8 bytes of header length, a JSON header, one data section) is checked here in full before a tensor is
touched: header length, types, shapes, dtype x shape = bytes, gaps and overlaps, and the length of the file. A file that
was cut off while it was downloaded is the usual case, and its error names the first tensor that is not whole.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pyengine.errors import ModelError
from pyengine.models.hf_config import read_json
from pyengine.models.weights.upload import FileBytes

_MAX_HEADER_BYTES = 100 * 2**20  # the limit of the reference implementation
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of one file: ``begin`` and ``end`` are absolute byte offsets."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsSource:
    """A WeightSource over all tensors of a folder."""

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, TensorEntry] = {}
        for file, wanted in _files(folder).items():
            entries = read_header(file)
            for name in entries if wanted is None else wanted:
                if name not in entries:
                    raise ModelError(f"{file}: tensor {name} is missing, though the index places it there")
                if name in self._entries:
                    raise ModelError(f"{file}: tensor {name} is also in {self._entries[name].file.name}")
                self._entries[name] = entries[name]
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self._maps = {
            file: np.memmap(file, mode="c", dtype=np.uint8) for file in {e.file for e in self._entries.values()}
        }

    def where(self, name: str) -> str:
        return str(self._entries[name].file)

    def num_bytes(self, name: str) -> int:
        return self._entries[name].end - self._entries[name].begin

    def file_bytes(self, name: str) -> FileBytes:
        entry = self._entries[name]
        return FileBytes(entry.file, entry.begin, entry.end - entry.begin, self._dtype(name))

    def load(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        entry = self._entries[name]
        raw = torch.from_numpy(self._maps[entry.file][entry.begin : entry.end])
        return raw.view(self._dtype(name)).view(entry.shape).to(device=device, dtype=dtype)

    def _dtype(self, name: str) -> torch.dtype:
        entry = self._entries[name]
        if entry.dtype not in _DTYPES:
            raise ModelError(
                f"{entry.file}: tensor {name} is {entry.dtype}; only {', '.join(_DTYPES)} weights are supported"
            )
        return _DTYPES[entry.dtype]


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file, after every check that needs no tensor data. Raises ModelError."""
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            prefix = stream.read(8)
            header_bytes = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{file}: not a safetensors file: {size} bytes with a header of {header_bytes} bytes")
            header = json.loads(stream.read(header_bytes).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"{file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: the safetensors header is not valid JSON: {error}") from None
    if not isinstance(header, dict):
        raise ModelError(f"{file}: the safetensors header is not an object")
    header.pop("__metadata__", None)
    entries = {name: _parse_entry(file, name, value, 8 + header_bytes) for name, value in header.items()}
    _check_layout(file, entries, 8 + header_bytes, size)
    return entries


def _parse_entry(file: Path, name: str, value: object, data_begin: int) -> TensorEntry:
    if not isinstance(value, dict):
        raise ModelError(f"{file}: tensor {name}: expected an object, got {type(value).__name__}")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ModelError(f"{file}: tensor {name}: dtype {str(dtype)[:40]!r} is not known")
    if not _is_sizes(shape) or len(shape) > 8:
        raise ModelError(f"{file}: tensor {name}: shape {str(shape)[:80]} is not a list of sizes")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ModelError(f"{file}: tensor {name}: data_offsets {str(offsets)[:80]} are not [begin, end]")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise ModelError(
            f"{file}: tensor {name}: {dtype} {shape} takes {expected} bytes, its offsets span {offsets[1] - offsets[0]}"
        )
    return TensorEntry(file, dtype, tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**62 for v in value
    )


def _check_layout(file: Path, entries: dict[str, TensorEntry], begin: int, size: int) -> None:
    """Tensors follow each other without gap or overlap and end where the file ends."""
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.end > size:
            raise ModelError(f"{file}: cut off: tensor {name} ends at byte {entry.end}, the file at {size}")
        if entry.begin != begin:
            kind = "overlaps the one before it" if entry.begin < begin else "leaves a gap before it"
            raise ModelError(f"{file}: tensor {name} {kind} (begins at byte {entry.begin}, expected {begin})")
        begin = entry.end
    if begin != size:
        raise ModelError(f"{file}: {size - begin} bytes after the last tensor")


def _files(folder: Path) -> dict[Path, list[str] | None]:
    """The files to read, each with the names it is asked for (None: all)."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed_files(index)
    single = folder / "model.safetensors"
    if single.is_file():
        return {single: None}
    files = sorted(file for file in folder.glob("*.safetensors") if not file.name.startswith("consolidated"))
    if files:
        return dict.fromkeys(files)
    pickled = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]), None)
    hint = f"; {pickled.name} is a pickle, which is never read: convert it to safetensors" if pickled else ""
    raise ModelError(f"{folder}: no *.safetensors file{hint}")


def _indexed_files(index: Path) -> dict[Path, list[str] | None]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: weight_map is missing or empty")
    files: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(f"{index}: tensor {name}: {str(file)[:80]!r} is not the name of a .safetensors file")
        files.setdefault(index.parent / file, []).append(name)
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file} is missing, though {index.name} lists it")
    return files
