"""The HTTP side alone, as a process: the real application and limits, no engine, and two routes that move bytes.

``python stub_server.py FLAG...`` takes the server's options and prints its port.
"""

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from flask import Flask, Response, request  # noqa: E402

from server.app import create_app  # noqa: E402
from server.cli import parse  # noqa: E402
from server.http import make_server  # noqa: E402
from server.launcher import bind  # noqa: E402
from server.state import ServerState  # noqa: E402


def add_test_routes(app: Flask) -> None:
    """POST /echo answers with the length of its body, GET /flood?mb=N sends N MiB in events of 1 KiB, /bug raises."""

    @app.post("/echo")
    def echo() -> Response:
        return Response(str(len(request.get_data(cache=False))), mimetype="text/plain")

    @app.get("/flood")
    def flood() -> Response:
        event = b"data: " + b"x" * 1016 + b"\n\n"
        return Response((event for _ in range(int(request.args["mb"]) << 10)), mimetype="text/event-stream")

    @app.get("/bug")
    def bug() -> Response:
        raise KeyError("/secret/path/of/a/file")


def main() -> None:
    config, _ = parse(["--port", "0", *sys.argv[1:]])
    listener = bind(config.host, config.port)
    app = create_app(ServerState(), lambda: None, config)
    add_test_routes(app)
    server = make_server(listener, app, config)
    server.start()
    print(listener.getsockname()[1], flush=True)
    gevent.signal_handler(signal.SIGTERM, sys.exit)
    server.serve_forever()


if __name__ == "__main__":
    main()
