"""Model configurations: what is read, what is refused, and that a bad file gives a ModelError and nothing else."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyengine.errors import ConfigError, ModelError
from pyengine.layers.rotary import inverse_frequencies
from pyengine.models import hf_config
from pyengine.models.config import FP8, ModelConfig, load_model_config, resolve_dtype, resolve_kv_dtype
from pyengine.models.registry import supported_architectures

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def parse(**changes: object) -> ModelConfig:
    values = {**LLAMA_8B, **changes}
    return hf_config.parse({k: v for k, v in values.items() if v is not ...}, "config.json")


def test_llama_8b_in_numbers():
    config = parse()
    assert config.num_parameters == 8_030_261_248  # as published
    assert config.weight_bytes("bfloat16") == 2 * config.num_parameters + 131072 * 128 * 4
    assert config.kv_bytes_per_token("bfloat16") == 2 * 32 * 8 * 128 * 2
    assert config.head_dim == 128 and config.rope.kind == "llama3" and config.max_position == 131072
    assert config.eos_token_ids == (128001, 128008, 128009) and config.bos_token_id == 128000
    assert config.layer_windows == (0,) * 32


def test_the_issue_s_architectures_are_there():
    wanted = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
    assert wanted <= set(supported_architectures())


def test_qwen_windows():
    qwen = {"architectures": ["Qwen2ForCausalLM"], "rope_scaling": ..., "sliding_window": 4096}
    assert parse(**qwen, max_window_layers=28).layer_windows == (0,) * 32
    assert parse(**qwen, use_sliding_window=True, max_window_layers=28).layer_windows == (0,) * 28 + (4096,) * 4
    kinds = ["sliding_attention", "full_attention"] * 16
    assert parse(**qwen, use_sliding_window=True, layer_types=kinds).layer_windows == (4096, 0) * 16
    assert parse(**qwen, use_sliding_window=False, layer_types=kinds).layer_windows == (0,) * 32
    with pytest.raises(ModelError, match="layer_types"):
        parse(**qwen, use_sliding_window=True, layer_types=["chunked_attention"] * 32)


def test_mistral_windows():
    mistral = {"architectures": ["MistralForCausalLM"], "rope_scaling": ...}
    assert parse(**mistral, sliding_window=4096).layer_windows == (4096,) * 32
    assert parse(**mistral, sliding_window=None).layer_windows == (0,) * 32
    assert parse(**mistral, sliding_window=131072).layer_windows == (0,) * 32, "a window over everything is none"


def test_traits_of_the_qwens():
    qwen2, qwen3 = (parse(architectures=[f"Qwen{n}ForCausalLM"]) for n in (2, 3))
    assert (qwen2.qkv_bias, qwen2.qk_norm, qwen3.qkv_bias, qwen3.qk_norm) == (True, False, False, True)
    assert parse(architectures=["Qwen3ForCausalLM"], hidden_size=1024, num_attention_heads=16).head_dim == 128


def test_stretched_contexts():
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert parse(rope_scaling=yarn, max_position_embeddings=32768).max_position == 131072
    assert parse(rope_scaling=yarn, max_position_embeddings=131072).max_position == 131072
    assert parse(rope_scaling={"type": "linear", "factor": 4}, max_position_embeddings=4096).max_position == 16384


REFUSED = {
    "architectures": (["GemmaForCausalLM"], "have LlamaForCausalLM, MistralForCausalLM"),
    "quantization_config": ({"quant_method": "awq"}, "quantization_config.*awq.*not supported"),
    "attention_bias": (True, "attention_bias=True is not supported"),
    "mlp_bias": (True, "mlp_bias=True is not supported"),
    "final_logit_softcapping": (30.0, "final_logit_softcapping=30.0 is not supported"),
    "hidden_act": ("gelu", "hidden_act=gelu is not supported"),
    "hidden_size": (4097, "hidden_size must be a multiple of num_attention_heads 32, got 4097"),
    "num_attention_heads": (0, r"num_attention_heads must be an integer in \[1, 1024\], got 0"),
    "num_key_value_heads": (5, "num_heads 32 must be a multiple of num_kv_heads 5"),
    "head_dim": (12, "head_dim must be a multiple of 8 up to 256, got 12"),
    "intermediate_size": (14337, "intermediate_size must be a multiple of 32"),
    "num_hidden_layers": (10**9, "num_hidden_layers must be an integer"),
    "vocab_size": (-1, "vocab_size must be an integer"),
    "rms_norm_eps": (float("nan"), "rms_norm_eps must be a number"),
    "rope_theta": ("10000", "rope_theta must be a number"),
    "torch_dtype": ("int8", "torch_dtype must be one of bfloat16, float16, float32, got 'int8'"),
    "eos_token_id": (200000, r"eos_token_id must be token ids in \[0, 128256\)"),
    "tie_word_embeddings": (1, "tie_word_embeddings must be true or false"),
    "max_position_embeddings": (..., "max_position_embeddings is missing"),
    "rope_scaling": ({"type": "dynamic", "factor": 2.0}, "rope type 'dynamic' is not supported"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_refusals_name_file_key_and_value(key):
    value, text = REFUSED[key]
    with pytest.raises(ModelError, match=text) as error:
        parse(**{key: value})
    assert str(error.value).startswith("config.json: ") and "\n" not in str(error.value)


KV_ONLY = {
    "quant_method": "compressed-tensors",
    "config_groups": {},
    "kv_cache_scheme": {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False, "strategy": "tensor"},
}


def test_a_checkpoint_with_scales_for_an_fp8_kv_cache_alone_is_plain():
    assert parse(quantization_config=KV_ONLY) == parse()


@pytest.mark.parametrize(
    "change",
    [
        {"config_groups": {"group_0": {"weights": {"num_bits": 8}}}},
        {"kv_cache_scheme": None},
        {"kv_cache_scheme": {**KV_ONLY["kv_cache_scheme"], "type": "int"}},
        {"kv_cache_scheme": {**KV_ONLY["kv_cache_scheme"], "dynamic": True}},
        {"quant_method": "fp8"},
    ],
)
def test_other_quantization_is_refused(change):
    with pytest.raises(ModelError, match=r"quantization_config=.* is not supported"):
        parse(quantization_config={**KV_ONLY, **change})


def test_kv_dtypes():
    config, odd = parse(), parse(head_dim=96)
    assert resolve_kv_dtype("auto", "float32", config, "cpu") == "float32"
    assert resolve_kv_dtype("fp8", "bfloat16", config, "cuda") == FP8
    assert resolve_kv_dtype("fp8_e4m3", "bfloat16", odd, "cpu") == FP8
    wide = parse(head_dim=128)
    assert resolve_kv_dtype("fp8", "bfloat16", wide, "cuda") == resolve_kv_dtype("fp8", "float16", wide, "cuda") == FP8
    with pytest.raises(ConfigError, match=r"fp8 works on cuda with a head_dim of 64 and 128.* has 96"):
        resolve_kv_dtype("fp8", "bfloat16", odd, "cuda")
    with pytest.raises(ConfigError, match="multiple of 16, the model has 40"):
        resolve_kv_dtype("fp8", "bfloat16", parse(head_dim=40), "cpu")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "factor": 1.0},
        {"rope_type": "yarn", "factor": 0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
        {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}},
        [1.0],
    ],
)
def test_rope_refusals(rope):
    with pytest.raises(ModelError, match="rope"):
        parse(rope_scaling=rope)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 7, 8, 31, 32, 256, 2**31, 2**63, 10**400]),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(-3, 300), max_size=3),
    st.dictionaries(st.sampled_from(["type", "rope_type", "factor", "x"]), st.text(max_size=8), max_size=3),
)
KEYS = sorted(
    [*LLAMA_8B, "head_dim", "rope_parameters", "sliding_window", "layer_types", "dtype", "quantization_config"]
)
ROPE_KEYS = [
    *LLAMA_8B["rope_scaling"],
    "type",
    "rope_theta",
    "beta_fast",
    "mscale",
    "truncate",
    "partial_rotary_factor",
]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    architecture=st.sampled_from(supported_architectures()),
    kind=st.sampled_from(["default", "linear", "llama3", "yarn", "dynamic"]),
    changes=st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=3),
    rope_changes=st.dictionaries(st.sampled_from(ROPE_KEYS), JUNK, max_size=2),
)
@example(architecture="LlamaForCausalLM", kind="default", changes={"rms_norm_eps": 10**400}, rope_changes={})
def test_any_config_is_read_or_refused(architecture, kind, changes, rope_changes):
    values = copy.deepcopy(LLAMA_8B)
    values["architectures"] = [architecture]
    values["rope_scaling"].update({"rope_type": kind, **rope_changes})
    try:
        config = hf_config.parse({**values, **changes}, "config.json")
    except ModelError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert config.num_parameters > 0 and 0 < config.max_position <= 2**25
        assert np.isfinite(inverse_frequencies(config.rope)).all() and math.isfinite(config.rope.attention_factor)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e999999}'])
def test_broken_json(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model_config(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model_config(tmp_path)
    with pytest.raises(ModelError, match="neither a model folder nor a"):
        load_model_config(tmp_path / "absent")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(ModelError, match="not a GGUF file"):
        load_model_config(tmp_path / "model.safetensors")


def test_generation_config_adds_end_tokens(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_8B, "eos_token_id": 128001}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [128009, 128001]}')
    assert load_model_config(tmp_path).eos_token_ids == (128001, 128009)


def test_dtype_resolution():
    bf16, fp16, fp32 = (parse(torch_dtype=name) for name in ("bfloat16", "float16", "float32"))
    assert resolve_dtype("auto", bf16, "cpu") == ("bfloat16", None)
    assert resolve_dtype("auto", fp32, "cpu") == ("float32", None)
    assert resolve_dtype("auto", fp16, "cuda") == ("float16", None)
    assert resolve_dtype("float32", bf16, "cpu") == ("float32", None)
    for config, device in ((fp16, "cpu"), (fp32, "cuda")):
        dtype, note = resolve_dtype("auto", config, device)
        assert dtype == "bfloat16" and config.dtype in note and device in note
    with pytest.raises(ConfigError, match="--dtype float16 does not work on cpu"):
        resolve_dtype("float16", bf16, "cpu")


def test_reading_a_config_does_not_import_torch(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    code = (
        "import sys\nfrom pyengine.models.config import load_model_config\n"
        "from pyengine.models.resolve import resolve_model\n"
        "load_model_config(resolve_model(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
