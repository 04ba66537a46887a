"""How a checkpoint says that its embeddings are pooled, and a word when that cannot be had."""

from __future__ import annotations

from pathlib import Path

from pyengine.protocol import Pooling
from pyengine.text.hf_folder import read_json

_GGUF_TYPES = ("none", "mean", "cls", "last", "rank")  # of llama.cpp, by number
_FOLDER_PREFIX = "pooling_mode_"
_FOLDER_NAMES = {"mean_tokens": "mean", "lasttoken": "last"}


def read_pooling(path: Path) -> tuple[Pooling, list[str]]:
    """What ``1_Pooling/config.json`` (sentence-transformers) or a .gguf file's ``pooling_type`` asks for, the mean
    where nothing does; and a line for the operator when it is a kind that is not here. Raises ModelError.
    """
    wanted = _of_folder(path) if path.is_dir() else _of_gguf(path)
    if not wanted or wanted == ["none"]:
        return Pooling.MEAN, []
    if len(wanted) == 1 and wanted[0] in [each.value for each in Pooling]:
        return Pooling(wanted[0]), []
    text = f"{path}: embeddings of this checkpoint are pooled by {' and '.join(wanted)}, which is not supported"
    return Pooling.MEAN, [f"{text} (have mean, last); the mean is taken unless a request says otherwise"]


def _of_folder(path: Path) -> list[str]:
    """All that are on: sentence-transformers joins the vectors of several."""
    config = read_json(path / "1_Pooling" / "config.json")
    names = [
        key.removeprefix(_FOLDER_PREFIX) for key, on in config.items() if on is True and key.startswith(_FOLDER_PREFIX)
    ]
    return [_FOLDER_NAMES.get(name, name) for name in names]


def _of_gguf(path: Path) -> list[str]:
    from pyengine.text.gguf_metadata import open_gguf

    file = open_gguf(path)
    number = file.get(f"{file.get('general.architecture', str, '')}.pooling_type", int)
    if number is None:
        return []
    return [_GGUF_TYPES[number] if 0 <= number < len(_GGUF_TYPES) else f"type {number}"]
