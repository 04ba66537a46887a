"""The command line: options come from the fields of EngineConfig and ServerConfig, with their types, defaults and
help.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import types
import typing

from pyengine import __version__
from pyengine.config import EngineConfig
from pyengine.errors import PyengineError
from server.config import ServerConfig

API_KEY_VARIABLE = "PYENGINE_API_KEY"  # a secret, so it may stay out of the process list

EPILOG = """examples:
  python -m server                                         serve the small default model
  python -m server --model /models/Llama-3.1-8B-Instruct   a Hugging Face folder
  python -m server --model model.Q4_1.gguf --port 9000     a GGUF file

The API is OpenAI's: http://127.0.0.1:8000/v1/chat/completions, /v1/completions, /v1/models; besides /health, /ready,
/version, /metrics.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="pyengine: serve a language model with OpenAI's API.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyengine {__version__}")
    _add_options(parser.add_argument_group("server"), ServerConfig)
    _add_options(parser.add_argument_group("model and engine"), EngineConfig)
    return parser


def _add_options(group: argparse._ArgumentGroup, config_class: type) -> None:
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


def parse(argv: list[str]) -> tuple[ServerConfig, EngineConfig]:
    """Options as frozen configurations. Raises ConfigError; argparse itself exits with 2 on unknown options."""
    values = vars(build_parser().parse_args(argv))
    values.update((name, tuple(value)) for name, value in values.items() if isinstance(value, list))
    if os.environ.get(API_KEY_VARIABLE):
        values["api_key"] = (*values.get("api_key", ()), os.environ[API_KEY_VARIABLE])

    def of(config_class: type):
        return config_class(
            **{field.name: values[field.name] for field in dataclasses.fields(config_class) if field.name in values}
        )

    return of(ServerConfig), of(EngineConfig)


def main(argv: list[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    try:
        server_config, engine_config = parse(argv)
        from server.launcher import Launcher  # after the options: --help answers at once

        return Launcher(server_config, engine_config).run()
    except PyengineError as error:
        print(f"pyengine: {error}", file=sys.stderr)
        return error.exit_code
