"""The wire between the server (text) and the engine (tokens): typed msgpack messages over one local socket.

Text never crosses this border and tensors never cross it either: prompts are token ids, answers are token ids. Each
message is an array-like tagged struct, so that a decoder accepts exactly these types and nothing executable. One
``StepDeltas`` goes to each server per engine step, however many tokens it carries.

    server -> engine: Hello, Request, Abort, AbortSequence, ServerEnded, Control
    engine -> server: Progress, Ready, StepDeltas, Rejected, Fatal
"""

from __future__ import annotations

import enum

import msgspec

from pyengine.sampling_params import SamplingParams


class _Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages: immutable, encoded as a msgpack array that begins with the class name."""


class Hello(_Message):
    """A server's first message: the engine answers it with Progress while it starts, and with Ready."""


class Pooling(enum.Enum):
    """How the hidden states of a prompt become one vector: their mean, or the last of them."""

    MEAN = "mean"
    LAST = "last"


class Request(_Message):
    """One prompt to continue. Made and checked by the server; the engine answers with deltas for n sequences.

    Attributes:
        request_id: unique among live requests of this server.
        prompt_token_ids: at least one id, each in [0, vocab_size).
        params: see SamplingParams; ``seed`` and ``max_tokens`` are filled in by the server.
        eos_token_ids: ids that end a sequence unless ``ignore_eos``.
        priority: lower is earlier.
        cache_salt: prefix-cache blocks are shared only between requests of equal salt.
        arrival_s: wall-clock seconds (time.time) when the server took the request.
        num_more: prompts of the same client's request that follow at once; the engine queues all of them or none.
        pooling: nothing is generated, the answer is the pooled final hidden states; n is 1.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int] = []
    priority: int = 0
    cache_salt: str = ""
    arrival_s: float = 0.0
    num_more: int = 0
    pooling: Pooling | None = None


class Abort(_Message):
    """Forget these requests; unknown ids are ignored (they may have just finished)."""

    request_ids: list[str]


class AbortSequence(_Message):
    """Forget one sequence of a request (a stop string ended it); its siblings go on."""

    request_id: str
    index: int


class ServerEnded(_Message):
    """Another server, known by this name on the socket, is no more: forget it and all of its requests."""

    name: str


class ControlKind(enum.Enum):
    """The closed list of things a server may ask of an engine besides requests."""

    STATS = "stats"
    FLUSH_PREFIX_CACHE = "flush_prefix_cache"


class Control(_Message):
    kind: ControlKind


# The error of a sequence that its own request left without a token to draw; all others are ours.
NO_TOKEN_LEFT = "no token can be drawn here: allowed_token_ids, bad_words, the grammar and min_tokens leave none"


class FinishReason(enum.Enum):
    """Why a sequence ended. ``ERROR`` carries a text in ``TokenDelta.error``."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class TokenLogprob(_Message):
    """Log-probabilities at one output token, of the raw logits.

    Attributes:
        logprob, rank: of the token itself; rank 1 is the likeliest.
        top_ids, top_logprobs: the likeliest tokens, as many as ``params.logprobs`` asked for, descending.
    """

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class TokenDelta(_Message, gc=False):
    """New tokens of one sequence in one step.

    Attributes:
        request_id: of the request.
        index: which of its n sequences.
        token_ids: new tokens; a stop token or end-of-sequence token is included.
        finish_reason: set exactly once per sequence, in its last delta.
        stop_token_id: the token that ended the sequence with STOP.
        num_cached_tokens: prompt tokens taken from the prefix cache; meaningful in a sequence's first delta.
        error: text when finish_reason is ERROR.
        logprobs: one for each of token_ids when the request asked for them.
        prompt_logprobs: of the next tokens of the prompt, from its second on, as they are computed; of the first of n
            sequences. All are there before its first token.
        embedding: with a request for one, in its only delta: float32 [hidden_size], little-endian, of any length.
    """

    request_id: str
    index: int
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    embedding: bytes | None = None


class Stats(_Message):
    """A snapshot of the engine, taken after a step. Counters are totals since the engine started."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0  # blocks no live sequence holds (cached ones included)
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0  # prompt tokens of admitted requests
    num_cached_tokens: int = 0  # those of them served by the prefix cache
    num_generated_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    step_tokens: list[int] = []  # tokens computed by each step since the last snapshot
    num_queued: int = 0  # sequences that have never run
    num_queued_tokens: int = 0  # of their prompts
    drained_seqs_per_s: float = 0.0  # how fast they leave the queue; 0 before it was measured
    drained_tokens_per_s: float = 0.0
    num_swapped_out: int = 0  # KV blocks copied to the host tier
    num_swapped_in: int = 0  # and back


class StepDeltas(_Message):
    """New tokens, statistics, or both. ``num_received``: Requests of this server that the engine has decided on."""

    deltas: list[TokenDelta]
    stats: Stats | None = None
    num_received: int = 0


class Rejected(_Message):
    """The engine refuses a request (too long for the cache, queue full, ...) and those sent with it.

    Attributes:
        status, text, param, code: as of ``RequestError``.
        retry_after_s: with status 429, when there is likely to be room.
    """

    request_id: str
    status: int
    text: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float = 0.0


class Ready(_Message):
    """The engine's first message: facts learnt while it started.

    Attributes:
        model_name: architecture and size for logs.
        max_model_len: tokens of prompt and output together.
        vocab_size: width of the logits; every client token id must be smaller.
        num_blocks, block_size: the KV cache.
        dtype, device: of the weights.
        startup_s: seconds per phase, in order.
        memory: lines of the memory ledger, bytes by name.
        notes: warnings for the operator, one line each.
        max_queued_requests, max_queued_tokens: bounds of the queue (see ``admission``).
        hidden_size: dimensions of an embedding.
        kv_cache_dtype: element type of the KV cache.
    """

    model_name: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    dtype: str
    device: str
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    startup_s: dict[str, float] = {}
    memory: dict[str, int] = {}
    notes: list[str] = []
    max_queued_requests: int = 0
    max_queued_tokens: int = 0
    hidden_size: int = 0
    kv_cache_dtype: str = ""


class Progress(_Message):
    """Start-up progress for the server to show: what is being done and how far it is (fraction in [0, 1])."""

    text: str
    fraction: float = 0.0


class Fatal(_Message):
    """The engine cannot go on; the process ends with ``exit_code`` after this message."""

    text: str
    exit_code: int = 1


ToEngine = Hello | Request | Abort | AbortSequence | ServerEnded | Control
ToServer = Ready | Progress | StepDeltas | Rejected | Fatal

_encoder = msgspec.msgpack.Encoder()
_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
_server_decoder = msgspec.msgpack.Decoder(ToServer)


def encode(message: _Message) -> bytes:
    """Any message as msgpack bytes."""
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Bytes from a server; raises msgspec.DecodeError on anything that is not one of its messages."""
    return _decode(_engine_decoder, data)


def decode_to_server(data: bytes) -> ToServer:
    """Bytes from an engine; raises msgspec.DecodeError on anything else."""
    return _decode(_server_decoder, data)


def _decode(decoder: msgspec.msgpack.Decoder, data: bytes) -> ToEngine | ToServer:
    try:
        return decoder.decode(data)
    except UnicodeDecodeError as error:  # a tag that is not UTF-8 escapes msgspec's own error
        raise msgspec.DecodeError(f"message is not UTF-8: {error.reason}") from None
