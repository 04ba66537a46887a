"""An engine process that computes nothing: it answers every request with the tokens of one text, over and over.

``python -m bench.server.stub_engine --streams N --rate EVENTS_PER_S ADDRESS`` speaks the protocol of
``pyengine.engine_proc``. Once N requests are live it makes steps, one token for each of them, N / rate seconds apart,
as an engine would: by the clock, whether or not the server keeps up.
"""

from __future__ import annotations

import argparse
import sys
import time

import msgspec
import zmq

from pyengine.config import EngineConfig
from pyengine.protocol import (
    Abort,
    AbortSequence,
    FinishReason,
    Hello,
    Ready,
    Request,
    StepDeltas,
    TokenDelta,
    decode_to_engine,
    encode,
)
from pyengine.text.tokenizer import load_tokenizer

TEXT = (
    "The keeper of the lighthouse counted the ships that passed in the night, and wrote their names in a book. "
    "On clear evenings there were many; in the fog there were none, and he listened to the bell instead. "
    "Nobody had asked him to count, but a number that is written down is worth more than one that is guessed. "
)
MAX_MODEL_LEN = 8192


class StubEngine:
    """The loop: take requests; when enough are live, one token for each at every tick."""

    def __init__(self, address: str, token_ids: list[int], vocab_size: int, num_streams: int, rate: float):
        self._socket = zmq.Context().socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.bind(address)
        self._token_ids = token_ids
        self._vocab_size = vocab_size
        self._num_streams = num_streams
        self._step_s = num_streams / rate
        self._live: dict[str, tuple[bytes, int]] = {}  # by request: its server, its tokens to come
        self._num_received: dict[bytes, int] = {}
        self._running = False

    def run(self) -> None:
        next_s, position = 0.0, 0
        while True:
            wait_ms = max(0, round(1e3 * (next_s - time.monotonic()))) if self._running else 1000
            while self._socket.poll(wait_ms):
                self._take(*self._socket.recv_multipart())
                wait_ms = 0
            if not self._running and len(self._live) >= self._num_streams:
                self._running, next_s, position = True, time.monotonic() + 0.5, 0
            if self._running and time.monotonic() >= next_s:
                self._step(self._token_ids[position % len(self._token_ids)])
                position, next_s = position + 1, next_s + self._step_s

    def _take(self, server: bytes, data: bytes) -> None:
        message = decode_to_engine(data)
        if isinstance(message, Hello):
            self._socket.send_multipart((server, encode(self._ready())))
        elif isinstance(message, Request):
            self._live[message.request_id] = (server, message.params.max_tokens)
            self._num_received[server] = self._num_received.get(server, 0) + 1
            self._socket.send_multipart((server, encode(StepDeltas([], None, self._num_received[server]))))
        elif isinstance(message, Abort):
            for request_id in message.request_ids:
                self._live.pop(request_id, None)
        elif isinstance(message, AbortSequence):
            self._live.pop(message.request_id, None)

    def _step(self, token_id: int) -> None:
        deltas: dict[bytes, list[TokenDelta]] = {}
        for request_id, (server, num_left) in list(self._live.items()):
            reason = FinishReason.LENGTH if num_left == 1 else None
            deltas.setdefault(server, []).append(TokenDelta(request_id, 0, [token_id], reason))
            if num_left == 1:
                del self._live[request_id]
            else:
                self._live[request_id] = (server, num_left - 1)
        for server, of_server in deltas.items():
            self._socket.send_multipart((server, encode(StepDeltas(of_server, None, self._num_received[server]))))
        self._running = bool(self._live)

    def _ready(self) -> Ready:
        return Ready(
            "stub",
            MAX_MODEL_LEN,
            self._vocab_size,
            num_blocks=1,
            block_size=MAX_MODEL_LEN,
            dtype="none",
            device="none",
            max_num_seqs=4096,
            memory={"weights": 0},
            max_queued_requests=1 << 20,
            max_queued_tokens=1 << 40,
            kv_cache_dtype="none",
        )


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.server.stub_engine")
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("address")
    args = parser.parse_args(argv)
    config = msgspec.json.decode(sys.stdin.buffer.read(), type=EngineConfig)
    tokenizer = load_tokenizer(config.model)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    StubEngine(args.address, ids, tokenizer.vocab_size, args.streams, args.rate).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
