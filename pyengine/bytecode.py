"""Keeps what Python compiles of packages that were installed without bytecode.

Images are often built without ``__pycache__`` folders (``PYTHONDONTWRITEBYTECODE``, ``pip --no-compile``). Importing
torch then compiles 870 files, three seconds at every start. Where that is so, compiled files go to a folder of ours and
not beside the sources, and the second start finds them. Python itself checks them against the time and size of the
sources.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import stat
import sys
from pathlib import Path


def keep(package: str = "torch") -> Path | None:
    """Call before the first import of ``package``; returns the folder where bytecode goes from now on, or None where it
    is with the sources, the user has chosen a place, or no place is safe.
    """
    if sys.pycache_prefix is not None or _has_bytecode(package):
        return None
    folder = default_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_ours(folder):
            sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
            return folder
    return None


def default_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyengine" / "bytecode"


def _has_bytecode(package: str) -> bool:
    """Also true of a package that is not there: there is nothing to keep."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return True
    return os.path.exists(importlib.util.cache_from_source(spec.origin))


def _is_ours(folder: Path) -> bool:
    """Nobody else can put code there that we would run."""
    status = folder.stat()
    return status.st_uid == os.getuid() and not stat.S_IMODE(status.st_mode) & (stat.S_IWGRP | stat.S_IWOTH)
