"""The command line: options come from the fields of EngineConfig and ServerConfig, with their types, defaults and
help.
"""

from __future__ import annotations

import argparse
import os
import sys

from pyengine import __version__
from pyengine.config import EngineConfig
from pyengine.errors import PyengineError
from pyengine.options import add_options, config_of
from server.config import ServerConfig
from server.engine_process import EngineProcess

API_KEY_VARIABLE = "PYENGINE_API_KEY"  # a secret, so it may stay out of the process list

EPILOG = """examples:
  python -m server                                         serve the small default model
  python -m server --model /models/Llama-3.1-8B-Instruct   a Hugging Face folder
  python -m server --model model.Q4_1.gguf --port 9000     a GGUF file

The API is OpenAI's: http://127.0.0.1:8000/v1/chat/completions, /v1/completions, /v1/models; besides /health, /ready,
/version, /metrics, /dashboard.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="pyengine: serve a language model with OpenAI's API.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyengine {__version__}")
    add_options(parser.add_argument_group("server"), ServerConfig)
    add_options(parser.add_argument_group("model and engine"), EngineConfig)
    return parser


def parse(argv: list[str]) -> tuple[ServerConfig, EngineConfig]:
    """Options as frozen configurations. Raises ConfigError; argparse itself exits with 2 on unknown options."""
    values = vars(build_parser().parse_args(argv))
    values.update((name, tuple(value)) for name, value in values.items() if isinstance(value, list))
    if os.environ.get(API_KEY_VARIABLE):
        values["api_key"] = (*values.get("api_key", ()), os.environ[API_KEY_VARIABLE])

    return config_of(ServerConfig, values), config_of(EngineConfig, values)


def main(argv: list[str]) -> int:
    """Serve until told to stop; returns the exit code."""
    try:
        server_config, engine_config = parse(argv)
        process = EngineProcess()
        process.start()  # it has the longer way to go, so it begins before our own imports
        from server.launcher import Launcher  # after the options: --help answers at once

        return Launcher(server_config, engine_config, process).run()
    except PyengineError as error:
        print(f"pyengine: {error}", file=sys.stderr)
        return error.exit_code
