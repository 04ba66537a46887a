"""``python -m bench.serving client-speed``: how many events a second one client process takes in, each sent by itself
by a sender that does nothing else. A measurement below that figure shows the server, one at it the client.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import sys
import time

from bench.serving.sse_client import Call, Client, request_bytes

EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"text":" token","logprobs":null,"finish_reason":null,"stop_reason":null}],"usage":null}\n\n'
)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _send_all(listener: socket.socket, num_streams: int, num_events: int, rate: float) -> None:
    """One event to every stream in turn, as an engine's step would, ``rate`` a second in all."""
    clients = [listener.accept()[0] for _ in range(num_streams)]
    for client in clients:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.recv(1 << 16)
        client.sendall(HEAD)
    event = _chunk(EVENT)
    begin_s = time.monotonic()
    for step in range(num_events):
        time.sleep(max(0.0, begin_s + step * num_streams / rate - time.monotonic()))
        for client in clients:
            client.sendall(event)
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": num_events}}).encode()
    for client in clients:
        client.sendall(_chunk(b"data: " + usage + b"\n\n") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        client.close()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving client-speed", description=__doc__)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--events", type=int, default=2000, help="of each stream")
    parser.add_argument("--rate", type=float, default=60_000, help="events a second that are sent")
    args = parser.parse_args(argv)
    listener = socket.create_server(("127.0.0.1", 0), backlog=args.streams)
    sender = multiprocessing.get_context("spawn").Process(
        target=_send_all, args=(listener, args.streams, args.events, args.rate), daemon=True
    )
    sender.start()
    port = listener.getsockname()[1]
    wire = request_bytes("127.0.0.1", "/v1/completions", {})
    calls = [Call(i, wire, 1, args.events) for i in range(args.streams)]
    begin_cpu = time.process_time()
    outcomes = Client("127.0.0.1", port).run(calls, time.monotonic())
    cpu_s = time.process_time() - begin_cpu
    wrong = [o for o in outcomes if o.error is not None or len(o.event_s) != args.events]
    if wrong:
        raise SystemExit(f"{len(wrong)} streams were not whole, the first: {wrong[0].error}")
    num_events = args.streams * args.events
    begin_s = max(o.event_s[0] for o in outcomes)
    seconds = max(o.event_s[-1] for o in outcomes) - begin_s
    num_reads = len({time_s for o in outcomes for time_s in o.event_s})
    print(
        f"{num_events} events of {len(EVENT)} bytes on {args.streams} streams: {num_events / seconds:,.0f} a second, "
        f"{num_events / num_reads:.2f} a read; {num_events / cpu_s:,.0f} for each second of the client's processor"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
