"""pyengine: an LLM inference engine in Python with a handwritten C++/CUDA core.

``from pyengine import LLM, SamplingParams`` is the offline door, ``python -m server`` the online one.
Importing this package imports neither torch nor the kernels: the server process lives without them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyengine.llm import LLM
    from pyengine.outputs import CompletionOutput, EmbeddingRequestOutput, RequestOutput
    from pyengine.sampling_params import SamplingParams

_LAZY = {
    "LLM": "pyengine.llm",
    "SamplingParams": "pyengine.sampling_params",
    "RequestOutput": "pyengine.outputs",
    "CompletionOutput": "pyengine.outputs",
    "EmbeddingRequestOutput": "pyengine.outputs",
}
__all__ = ["LLM", "CompletionOutput", "EmbeddingRequestOutput", "RequestOutput", "SamplingParams", "__version__"]


def __getattr__(name: str) -> object:
    """Import the public classes on first use (PEP 562), so that the server never pays for the engine's imports."""
    if name not in _LAZY:
        raise AttributeError(f"module 'pyengine' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
