"""Streams a checkpoint into a graph: every tensor is read once, by a pool of threads, and put where the graph keeps it.

All names and shapes are compared before the first byte of data is read, so a wrong checkpoint fails in milliseconds. At
most a few tensors are in flight, so loading needs little more memory than the weights. Packing happens in the calling
thread alone. On a GPU, where nothing is packed, files go piece by piece straight to their places (``upload``).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from pyengine import ops
from pyengine.errors import ModelError
from pyengine.layers.host_memory import empty_on_huge_pages
from pyengine.models.config import ModelConfig
from pyengine.models.progress import Progress, silent
from pyengine.models.registry import find_architecture
from pyengine.models.weights.dummy import DummySource
from pyengine.models.weights.parameter import Parameter
from pyengine.models.weights.source import WeightSource
from pyengine.models.weights.upload import FileBytes, upload

_IGNORED_SUFFIXES = (
    ".rotary_emb.inv_freq",
    ".masked_bias",
    ".attn.bias",
)  # tables that old checkpoints stored as weights
_MAX_THREADS = 8
_SHOWN_NAMES = 3
_PANEL_ROWS = 16  # csrc/include/pe/linear.h


def load_model(
    model_path: str | Path,
    config: ModelConfig,
    dtype: str,
    device: str | torch.device,
    progress: Progress | None = None,
    dummy_seed: int | None = None,
) -> Any:
    """The graph of ``config.architecture`` with its weights, ready to run.

    Args:
        model_path: folder or .gguf file, as ``resolve_model`` gives it.
        dtype: element type of the weights, as ``resolve_dtype`` gives it.
        progress: called with bytes read so far and in total.
        dummy_seed: not None: weights are random and ``model_path`` is not read.
    Raises:
        ModelError: tensors are missing, left over, of the wrong shape or type, or not readable; names file and tensor.
    """
    graph = find_architecture((config.architecture,), config.source).load_graph()
    parameters = graph.parameters(config)
    source = _open_source(Path(model_path), config, parameters, dummy_seed)
    _check_names_and_shapes(source, parameters, config, str(model_path))
    placed = _read(source, parameters, getattr(torch, dtype), torch.device(device), progress or silent)
    return graph(config, placed)


def _open_source(path: Path, config: ModelConfig, parameters: list[Parameter], dummy_seed: int | None) -> WeightSource:
    if dummy_seed is not None:
        return DummySource({name: p.part_shape(rows) for p in parameters for name, rows in p.parts}, dummy_seed)
    if path.is_file():
        from pyengine.models.weights.gguf import GgufSource

        return GgufSource(path, config)
    from pyengine.models.weights.safetensors import SafetensorsSource

    return SafetensorsSource(path)


def _check_names_and_shapes(source: WeightSource, parameters: list[Parameter], config: ModelConfig, path: str) -> None:
    expected = {name: p.part_shape(rows) for p in parameters for name, rows in p.parts}
    missing = [name for name in expected if name not in source.shapes]
    if missing:
        raise ModelError(f"{path}: {_names('tensor', missing)} missing")
    for name, shape in expected.items():
        if tuple(source.shapes[name]) != shape:
            raise ModelError(
                f"{source.where(name)}: tensor {name} has shape {list(source.shapes[name])}, "
                f"{config.architecture} expects {list(shape)}"
            )
    ignored = ("lm_head.weight",) if config.tie_word_embeddings else ()
    unexpected = [
        name
        for name in source.shapes
        if name not in expected and name not in ignored and not name.endswith(_IGNORED_SUFFIXES)
    ]
    if unexpected:
        raise ModelError(
            f"{source.where(unexpected[0])}: {_names('tensor', unexpected)} not part of {config.architecture}"
        )


def _names(noun: str, names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN_NAMES])
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return f"{noun}{'s' if len(names) > 1 else ''} {shown}{more} {'are' if len(names) > 1 else 'is'}"


def _read(
    source: WeightSource, parameters: list[Parameter], dtype: torch.dtype, device: torch.device, progress: Progress
) -> dict[str, Any]:
    """Every parameter by its name: a PackedWeight for a matrix, a Tensor for a vector."""
    names = [name for p in parameters for name, _ in p.parts]
    total, done = sum(source.num_bytes(name) for name in names), 0
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    placed: dict[str, Any] = _allocate(parameters, dtype, device)
    in_files = {name: source.file_bytes(name) for name in names} if device.type == "cuda" else {}
    if in_files and None not in in_files.values():
        for num_bytes in upload(_jobs(in_files, parameters, placed, dtype, device), device):
            done += num_bytes
            progress("loading weights", done, total)
        return placed
    with ThreadPoolExecutor(num_threads, thread_name_prefix="weights") as pool:
        tensors = _ahead(pool, names, lambda name: source.load(name, dtype, device), 2 * num_threads)
        for parameter in parameters:
            parts = list(islice(tensors, len(parameter.parts)))
            if parameter.num_cols is None:
                placed[parameter.name] = torch.cat(parts)
            else:
                _fill(placed[parameter.name], parts)
            done += sum(source.num_bytes(name) for name, _ in parameter.parts)
            progress("loading weights", done, total)
    return placed


def _jobs(
    in_files: dict[str, FileBytes], parameters: list[Parameter], placed: dict[str, Any], dtype: torch.dtype, device
) -> list[tuple[FileBytes, torch.Tensor]]:
    """Each tensor with the rows that it becomes; a vector's place is made, and put into ``placed``, here."""
    jobs = []
    for parameter in parameters:
        if parameter.num_cols is None:
            placed[parameter.name] = torch.empty(parameter.num_rows, dtype=dtype, device=device)
        place = placed[parameter.name]
        rows = place.data.view(parameter.num_rows, -1) if parameter.num_cols is not None else place
        parts = rows.split([num_rows for _, num_rows in parameter.parts])
        jobs += [(in_files[name], part) for (name, _), part in zip(parameter.parts, parts, strict=True)]
    return jobs


def _ahead(
    pool: ThreadPoolExecutor, names: list[str], load: Callable[[str], torch.Tensor], depth: int
) -> Iterator[torch.Tensor]:
    """load(name) for every name, in order, computed up to ``depth`` ahead; an error drops what is still queued."""
    pending: deque[Future] = deque()
    rest = iter(names)
    try:
        while True:
            pending.extend(pool.submit(load, name) for name in islice(rest, depth - len(pending)))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _allocate(parameters: list[Parameter], dtype: torch.dtype, device: torch.device) -> dict[str, ops.PackedWeight]:
    """A place for every matrix; on the CPU side by side, in the order in which a pass streams them."""
    matrices = [p for p in parameters if p.num_cols is not None]
    if device.type != "cpu":
        return {p.name: ops.empty_packed_weight(p.num_rows, p.num_cols, dtype, device) for p in matrices}
    sizes = [ops.empty_packed_weight(p.num_rows, p.num_cols, dtype, "meta").data.numel() for p in matrices]
    pieces = empty_on_huge_pages(sum(sizes), dtype).split(sizes)
    return {p.name: ops.PackedWeight(data, p.num_rows, p.num_cols) for p, data in zip(matrices, pieces, strict=True)}


def _fill(packed: ops.PackedWeight, parts: list[torch.Tensor]) -> None:
    """Packs the parts below each other."""
    if any(len(part) % _PANEL_ROWS for part in parts[:-1]):  # heads so small that they share a panel of the layout
        parts = [torch.cat(parts)]
    row = 0
    for part in parts:
        ops.pack_rows(packed, row, part)
        row += len(part)
