"""The wire: what goes in comes out, and nothing else gets in."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyengine import protocol as p
from pyengine.config import EngineConfig
from pyengine.errors import ConfigError, RequestError
from pyengine.sampling_params import SamplingParams

TO_ENGINE = [
    p.Hello(),
    p.Request("a", [1, 2, 3], SamplingParams(n=2, stop=("x", "ü"), seed=-5), [2], 1, "salt", 3.5),
    p.Abort(["a", "b"]),
    p.AbortSequence("a", 1),
    p.Control(p.ControlKind.STATS),
]
TO_SERVER = [
    p.Ready("m", 10, 20, 30, 16, "bfloat16", "cpu", 1, 2, {"load": 1.5}, {"kv": 1 << 40}, ["note"]),
    p.Progress("x", 0.5),
    p.StepDeltas(
        [
            p.TokenDelta("a", 0, [1], p.FinishReason.STOP, 1, 5),
            p.TokenDelta("b", 1, [], p.FinishReason.ERROR, error="nan"),
        ],
        p.Stats(1),
    ),
    p.Rejected("a", 429, "full"),
    p.Fatal("gone", 3),
]


@pytest.mark.parametrize("message", TO_ENGINE, ids=lambda m: type(m).__name__)
def test_to_engine(message):
    assert p.decode_to_engine(p.encode(message)) == message


@pytest.mark.parametrize("message", TO_SERVER, ids=lambda m: type(m).__name__)
def test_to_server(message):
    assert p.decode_to_server(p.encode(message)) == message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x91\xa3Foo",
        b"\x91\xa1\xff",
        msgspec.msgpack.encode(["Request", "a", [1], {"n": 0}]),
        msgspec.msgpack.encode(["Request", "a", ["x"], {}]),
        msgspec.msgpack.encode(["Fatal", "x", 1]),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(1, b"x")),
        msgspec.msgpack.encode(["Request", "a", [1], {"temperature": -1.0}]),
    ],
)
def test_foreign_bytes_are_refused(data):
    with pytest.raises((msgspec.DecodeError, RequestError)):
        p.decode_to_engine(data)


@given(st.binary(max_size=64))
def test_random_bytes_never_do_anything_else(data):
    try:
        p.decode_to_engine(data)
    except msgspec.DecodeError:
        pass


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"min_p": 2},
        {"n": 0},
        {"n": 10**9},
        {"n": True},
        {"n": 1.5},
        {"seed": 1 << 63},
        {"max_tokens": -1},
        {"prompt_logprobs": 21},
        {"max_tokens": "5"},
        {"stop": [""]},
        {"stop": ["a"] * 100},
        {"stop_token_ids": [-1]},
        {"temperature": "hot"},
    ],
)
def test_parameters_out_of_range(values):
    with pytest.raises(RequestError) as caught:
        SamplingParams(**values)
    assert caught.value.param == next(iter(values))


@pytest.mark.parametrize(
    "values",
    [
        {"max_num_seqs": 0},
        {"gpu_memory_utilization": 1.5},
        {"dtype": "int8"},
        {"kv_cache_dtype": "fp8_e5m2"},
        {"block_size": 17},
        {"kv_cache_memory": "x"},
    ],
)
def test_configuration_out_of_range(values):
    with pytest.raises(
        ConfigError, match="--" + next(iter(values)).replace("_", "-") if "kv_cache_memory" not in values else "size"
    ):
        EngineConfig(**values)


def test_configuration_travels_as_json():
    config = EngineConfig(model="x", max_num_seqs=3)
    assert msgspec.json.decode(msgspec.json.encode(config), type=EngineConfig) == config
