"""``python -m bench.serving offline|http|client-speed ...``: the workloads through the engine alone and over HTTP, and
what the HTTP client itself can take.
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "offline": "bench.serving.offline",
    "http": "bench.serving.online",
    "client-speed": "bench.serving.client_speed",
}


def main(argv: list[str]) -> int:
    if not argv or argv[0] not in COMMANDS:
        print(f"usage: python -m bench.serving {{{','.join(COMMANDS)}}} ... (each has --help)", file=sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    return importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
