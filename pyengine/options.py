"""Command-line options from the fields of configuration classes, with their types, defaults and help."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from typing import Any, TypeVar

Config = TypeVar("Config")


def add_options(group: argparse._ArgumentGroup, config_class: type) -> None:
    """One option for each field; a tuple is an option that may be repeated, a boolean has a ``--no-`` form."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        flag = "--" + field.name.replace("_", "-")
        help_text = field.metadata["help"].replace("%", "%%")
        repeatable = typing.get_origin(hints[field.name]) is tuple
        if field.default is not None and not repeatable and hints[field.name] is not bool:
            help_text += f" (default {field.default})"
        if hints[field.name] is bool:
            default_text = "on" if field.default else "off"
            group.add_argument(
                flag,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=f"{help_text} (default {default_text})",
            )
        else:
            group.add_argument(
                flag,
                action="append" if repeatable else "store",
                type=_plain_type(hints[field.name]),
                default=argparse.SUPPRESS,
                metavar=field.name.rsplit("_", 1)[-1].upper(),
                help=help_text,
                choices=field.metadata.get("choices"),
            )


def _plain_type(hint: object) -> type:
    """``int | None`` -> int, ``tuple[str, ...]`` -> str."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint


def config_of(config_class: type[Config], values: dict[str, Any]) -> Config:
    """The configuration with the options that were given. Raises ConfigError."""
    names = [field.name for field in dataclasses.fields(config_class)]
    return config_class(**{name: values[name] for name in names if name in values})
