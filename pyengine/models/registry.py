"""Which architectures exist. Each is one file in ``models/architectures`` holding one decorated class; nothing lists
them.

A description is torch-free: it says how an architecture's configuration is to be read and names the graph that runs it.
The graph is imported only when a model is built, so that reading a config.json stays cheap and works in processes
without torch.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

from pyengine.errors import ModelError
from pyengine.models.fields import Fields

_by_name: dict[str, Architecture] = {}


class Architecture:
    """One decoder architecture. Subclasses override the attributes in which they differ.

    Attributes:
        name: as in config.json's ``architectures``.
        gguf_name: as in GGUF's ``general.architecture``, or None.
        gguf_permuted_qk: GGUF files hold q and k rows in interleaved-pair order, which has to be undone.
        graph: "module:class" that computes it.
        qkv_bias, qk_norm: a bias on the q, k, v projections; an RMSNorm of each q and k head.
        default_head_dim: head_dim when config.json has none; None: hidden_size / num_heads.
    """

    name: str
    gguf_name: str | None = None
    gguf_permuted_qk = False
    graph = "pyengine.models.decoder:Decoder"
    qkv_bias = False
    qk_norm = False
    default_head_dim: int | None = None

    def layer_windows(self, hf: Fields, num_layers: int) -> tuple[int, ...]:
        """Sliding window of each layer in tokens, 0 where a layer sees everything."""
        return (0,) * num_layers

    def load_graph(self) -> Any:
        """The graph's class; imports torch."""
        module, _, name = self.graph.partition(":")
        return getattr(importlib.import_module(module), name)


def register(cls: type[Architecture]) -> type[Architecture]:
    """Class decorator: makes an architecture known under its names."""
    assert cls.name not in _by_name, f"{cls.name} is registered twice"
    _by_name[cls.name] = cls()
    return cls


@functools.cache
def _discover() -> None:
    package = importlib.import_module("pyengine.models.architectures")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def supported_architectures() -> list[str]:
    _discover()
    return sorted(_by_name)


def find_architecture(names: tuple[str, ...], where: str) -> Architecture:
    """The first of config.json's ``architectures`` that is supported; ModelError listing those that are otherwise."""
    supported = supported_architectures()
    for name in names:
        if name in _by_name:
            return _by_name[name]
    shown = " ".join(", ".join(names).split())[:200] or "not named"
    raise ModelError(f"{where}: architecture {shown} is not supported (have {', '.join(supported)})")


def find_gguf_architecture(name: str, where: str) -> Architecture:
    """By GGUF's ``general.architecture``."""
    _discover()
    by_gguf_name = {each.gguf_name: each for each in _by_name.values() if each.gguf_name}
    if name not in by_gguf_name:
        raise ModelError(
            f"{where}: GGUF architecture {name[:80]!r} is not supported (have {', '.join(sorted(by_gguf_name))})"
        )
    return by_gguf_name[name]
