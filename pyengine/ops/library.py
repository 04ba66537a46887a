"""Finds and loads the compiled extension ``_C.so`` and says in one line what is wrong when that fails.

The extension is a plain library of torch operators on torch's stable ABI: one file for every torch in range and every
Python. It lies beside this package; when a clone's own ``./pyengine`` shadows the installed package (``python -m
server`` from the clone's root), the installed package's file is used. A file built from other sources than this
package is refused.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from pyengine import __version__
from pyengine.errors import BuildError

try:
    import torch
except ImportError as error:
    raise BuildError(
        f"pyengine needs torch>=2.11,<2.14, which cannot be imported ({error}); run: pip install 'torch>=2.11,<2.14'"
    ) from None

MIN_TORCH, MAX_TORCH = (2, 11), (2, 14)  # the second is excluded
REBUILD = "pip install --force-reinstall --no-deps . (in the source tree)"
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class BuildInfo:
    """What ``_C`` was built from: package version, hash of its op schemas, CUDA version or None."""

    version: str
    schema: str
    cuda: str | None


def check_torch(version: str) -> None:
    """Raise BuildError when this torch is outside the range that ``_C`` is made for."""
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if not MIN_TORCH <= numbers < MAX_TORCH:
        raise BuildError(f"torch {version} is outside pyengine's range; run: pip install 'torch>=2.11,<2.14'")


def find_extension(package: Path, search_path: list[str]) -> Path:
    """``_C.so`` beside ``package``, else in the first ``pyengine`` of ``search_path`` that has one; else BuildError."""
    candidates = [package / "_C.so", *(Path(entry or ".") / "pyengine" / "_C.so" for entry in search_path)]
    for path in candidates:
        if path.is_file():
            return path
    raise BuildError(
        f"the compiled extension _C.so is neither in {package} nor in an installed pyengine; "
        "run: pip install . (in the source tree)"
    )


def check_build(info: BuildInfo, path: Path, schema_source: Path) -> None:
    """Raise BuildError when ``_C`` is of another version or other op schemas than the sources beside it."""
    if info.version != __version__:
        raise BuildError(f"{path} is of pyengine {info.version}, this package of {__version__}; run: {REBUILD}")
    if schema_source.is_file() and hashlib.sha256(schema_source.read_bytes()).hexdigest()[:12] != info.schema:
        raise BuildError(f"{path} was built from other sources than {schema_source.parent}; run: {REBUILD}")


def load() -> BuildInfo:
    """Load ``_C`` into torch.ops.pyengine. Raises BuildError with the remedy when it is missing or does not fit."""
    check_torch(torch.__version__)
    path = find_extension(_PACKAGE, sys.path)
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise BuildError(f"{path} does not load with torch {torch.__version__} ({error}); run: {REBUILD}") from None
    version, schema, cuda = torch.ops.pyengine.build_info().split()
    info = BuildInfo(version, schema, None if cuda == "none" else cuda)
    check_build(info, path, _PACKAGE.parent / "csrc" / "torch" / "schema.cpp")
    return info
