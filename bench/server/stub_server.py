"""``python -m server`` with the stub in the engine's place: ``python -m bench.server.stub_server STREAMS RATE CORE
FLAG...``. The server keeps to one core and the stub to the others.
"""

from gevent import monkey

monkey.patch_all()

import os  # noqa: E402
import sys  # noqa: E402

from server.cli import parse  # noqa: E402
from server.engine_process import EngineProcess  # noqa: E402
from server.launcher import Launcher  # noqa: E402


def main(streams: str, rate: str, core: str, *flags: str) -> int:
    rest = os.sched_getaffinity(0) - {int(core)} or {int(core)}
    stub = ["taskset", "-c", ",".join(map(str, sorted(rest))), sys.executable, "-m", "bench.server.stub_engine"]
    os.sched_setaffinity(0, {int(core)})
    config, engine_config = parse(list(flags))
    process = EngineProcess([*stub, "--streams", streams, "--rate", rate])
    return Launcher(config, engine_config, process).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
