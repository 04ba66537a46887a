"""``--tuning NAME=VALUE`` for the benchmarks: one choice of speed against the other, see ``ops.set_tuning``."""

from __future__ import annotations

import argparse

from pyengine import ops


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tuning",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="force a choice of the CUDA kernels (overlap=0, stream_rows=16), also repeatedly; results do not change",
    )


def apply(settings: list[str]) -> dict[str, int]:
    """Before an engine starts: its graphs keep what is set when they are captured. Returns what was set."""
    values = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        values[name] = int(value)
        ops.set_tuning(name, values[name])
    return values
