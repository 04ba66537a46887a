"""GGUF models: small files written here, and SmolLM2 itself against transformers on the same dequantised weights."""

from __future__ import annotations

import copy
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tiny_models import PagedRun, hf_logits, load, make_hf, random_sequences
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pyengine.errors import ModelError
from pyengine.layers.rotary import inverse_frequencies
from pyengine.models.config import load_model_config
from pyengine.models.resolve import resolve_model
from pyengine.models.weights.gguf import GgufSource, unpermute

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUANT = gguf.GGMLQuantizationType


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """The order in which llama.cpp's converter writes Llama's q and k rows."""
    shape = (num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return weight.reshape(shape).swapaxes(1, 2).reshape(weight.shape)


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def tensors_of(hf) -> dict[str, np.ndarray]:
    """The tensors of a GGUF file of this model, in float32."""
    config, out = hf.config, {}
    for name, tensor in hf.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.float().numpy()
        if config.model_type == "llama" and ".q_proj." in name:
            values = permute(values, config.num_attention_heads)
        if config.model_type == "llama" and ".k_proj." in name:
            values = permute(values, config.num_key_value_heads)
        out[gguf_name(name)] = values
    return out


def write_gguf(hf, path: Path, quant: QUANT = QUANT.F32, keys: dict | None = None, tensors: dict | None = None) -> Path:
    """``keys`` adds to, replaces or (None) drops metadata; matrices are quantised to ``quant``."""
    config, arch = hf.config, hf.config.model_type
    metadata = {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.rope.freq_base": 10000.0,
        "tokenizer.ggml.eos_token_id": 2,
        **(keys or {}),
    }
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, values in (tensors or tensors_of(hf)).items():
        kind = quant if values.ndim == 2 else QUANT.F32
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantised(hf, quant: QUANT) -> None:
    """Rounds a model's matrices to what a file of that kind holds."""
    for name, tensor in hf.state_dict().items():
        if tensor.ndim == 2 and name.endswith("weight"):
            values = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), quant), quant)
            tensor.copy_(torch.from_numpy(values))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_tiny_files_match_transformers(family, tied, tmp_path):
    hf = make_hf(family, tie_word_embeddings=tied, head_dim=24 if family == "qwen3" else 16)
    path = write_gguf(hf, tmp_path / "tiny.gguf")
    config = load_model_config(path)
    assert config.dtype == "float32" and config.tie_word_embeddings == tied and config.eos_token_ids == (2,)
    sequences = random_sequences([1, 16, 37])
    ours = PagedRun(load(path), sequences).whole()
    for a, b in zip(ours, hf_logits(hf, sequences), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("quant", [QUANT.F16, QUANT.BF16, QUANT.Q8_0, QUANT.Q4_0, QUANT.Q4_1, QUANT.Q5_0, QUANT.Q5_1])
def test_quantised_kinds(quant, tmp_path):
    """Sizes chosen so that rows are whole blocks and the number of blocks has no convenient divisors."""
    hf = make_hf("llama", intermediate_size=32 * 7, vocab_size=331, num_hidden_layers=1)
    sequences = random_sequences([20], vocab_size=331)
    model = load(write_gguf(hf, tmp_path / "tiny.gguf", quant))
    dequantised(hf, quant)
    torch.testing.assert_close(PagedRun(model, sequences).whole()[0], hf_logits(hf, sequences)[0], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("quant", [QUANT.Q2_K, QUANT.Q3_K, QUANT.Q4_K, QUANT.Q5_K, QUANT.Q6_K])
def test_k_quants_are_read_as_the_library_reads_them(quant, tmp_path):
    """The library cannot make K-quants, so the blocks are random bytes with small scales."""
    hf = make_hf("llama", hidden_size=256, num_attention_heads=4, head_dim=64, num_hidden_layers=1)
    tensors = tensors_of(hf)
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    block, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    shape = tensors["token_embd.weight"].shape
    raw = np.random.default_rng(0).integers(0, 64, (shape[0], shape[1] // block * block_bytes), dtype=np.uint8)
    writer.add_tensor("token_embd.weight", raw, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = load_model_config(write_gguf(hf, tmp_path / "config.gguf"))
    loaded = GgufSource(path, config).load("model.embed_tokens.weight", torch.float32, torch.device("cpu"))
    np.testing.assert_array_equal(loaded.numpy(), gguf.quants.dequantize(raw, quant))


def test_unpermute_undoes_the_converter():
    weight = np.arange(4 * 16 * 3.0).reshape(64, 3)
    np.testing.assert_array_equal(unpermute(torch.from_numpy(permute(weight, 4)), 4).numpy(), weight)


def test_rope_scaling(tmp_path):
    hf = make_hf("qwen2", num_hidden_layers=1)
    yarn = {
        "qwen2.rope.scaling.type": "yarn",
        "qwen2.rope.scaling.factor": 4.0,
        "qwen2.rope.scaling.original_context_length": 64,
    }
    config = load_model_config(write_gguf(hf, tmp_path / "yarn.gguf", keys=yarn))
    assert (config.rope.kind, config.rope.original_max_position, config.max_position) == ("yarn", 64, 256)
    assert config.rope.attention_factor == pytest.approx(1.138629436)
    linear = {"qwen2.rope.scaling.type": "linear", "qwen2.rope.scaling.factor": 2.0}
    config = load_model_config(write_gguf(hf, tmp_path / "linear.gguf", keys=linear))
    assert (config.rope.kind, config.rope.factor, config.max_position) == ("linear", 2.0, 256)


def test_rope_freqs_tensor(tmp_path):
    hf = make_hf("llama", num_hidden_layers=1)
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    tensors = {**tensors_of(hf), "rope_freqs.weight": factors}
    path = write_gguf(hf, tmp_path / "tiny.gguf", tensors=tensors)
    plain = load_model_config(write_gguf(hf, tmp_path / "plain.gguf")).rope
    config = load_model_config(path)
    np.testing.assert_allclose(inverse_frequencies(config.rope), inverse_frequencies(plain) / factors, rtol=1e-6)
    load(path)  # the tensor is no weight
    for bad in (factors[:4], -factors, factors * np.nan):
        with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
            load_model_config(write_gguf(hf, tmp_path / "bad.gguf", tensors={**tensors, "rope_freqs.weight": bad}))


BAD_KEYS = {
    "llama.block_count": (None, r"llama\.block_count is missing"),
    "llama.attention.head_count": (0, r"llama\.attention\.head_count must be an integer in"),
    "llama.embedding_length": (2**30, r"llama\.embedding_length must be"),
    "llama.attention.layer_norm_rms_epsilon": (float("nan"), "must be a number"),
    "llama.attention.value_length": (32, r"value_length must be an integer in \[16, 16\], got 32"),
    "llama.expert_count": (8, r"expert_count=8 is not supported"),
    "llama.rope.scaling.type": ("longrope", "rope scaling 'longrope' is not supported"),
    "llama.rope.dimension_count": (18, r"rope\.dimension_count must be"),
    "tokenizer.ggml.eos_token_id": (10**6, r"eos_token_id must be token ids in \[0, 320\)"),
}


@pytest.mark.parametrize("key", BAD_KEYS)
def test_metadata_errors_name_file_and_key(key, tmp_path):
    value, text = BAD_KEYS[key]
    extra = {"llama.rope.scaling.factor": 2.0} if key.endswith("scaling.type") else {}
    path = write_gguf(make_hf("llama", num_hidden_layers=1), tmp_path / "tiny.gguf", keys={key: value, **extra})
    with pytest.raises(ModelError, match=text) as error:
        load_model_config(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_unknown_architecture(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"GGUF architecture 'gemma3' is not supported \(have llama, qwen2, qwen3\)"):
        load_model_config(tmp_path / "x.gguf")


def test_tensor_errors(tmp_path):
    hf = make_hf("llama", num_hidden_layers=2)
    tensors = tensors_of(hf)
    q = "blk.1.attn_q.weight"
    cases = {
        r"tensor model\.layers\.1\.self_attn\.q_proj\.weight is missing": {n: t for n, t in tensors.items() if n != q},
        r"tensor blk\.1\.attn_sinks\.weight is not known": {
            **tensors,
            "blk.1.attn_sinks.weight": np.ones(4, np.float32),
        },
        r"q_proj\.weight has shape \[32, 64\], LlamaForCausalLM expects \[64, 64\]": {**tensors, q: tensors[q][:32]},
        r"token_embd\.weight is missing": {n: t for n, t in tensors.items() if not n.startswith("token_embd")},
    }
    for text, changed in cases.items():
        path = write_gguf(hf, tmp_path / "tiny.gguf", tensors=changed)
        with pytest.raises(ModelError, match=text) as error:
            load(path)
        assert str(path) in str(error.value)


def test_truncated_file(tmp_path):
    path = write_gguf(make_hf("llama"), tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"tiny\.gguf: tensor .*truncated"):
        load(path)


# ---- SmolLM2 ---------------------------------------------------------------------------------------------------------

PROMPT = [
    1,
    4093,
    198,
    1780,
    314,
    260,
    3575,
    282,
    4649,
    47,
    2,
    198,
    1,
    520,
    9531,
    198,
]  # "What is the capital of France?"
NUM_GENERATED = 16


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="module")
def reference(smollm2) -> LlamaForCausalLM:
    """transformers' Llama with the file's weights, read by the gguf library alone."""
    config = load_model_config(smollm2)
    hf_config = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_position,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    with torch.device("meta"):  # no time is spent on random weights
        model = LlamaForCausalLM(hf_config)
    by_gguf_name = {gguf_name(name): name for name in model.state_dict() if name != "lm_head.weight"}
    state = {}
    for tensor in gguf.GGUFReader(smollm2).tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for kind, num_heads in (("attn_q", config.num_heads), ("attn_k", config.num_kv_heads)):
            if kind in tensor.name:
                half = values.shape[0] // num_heads // 2
                values = values.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(values.shape)
        state[by_gguf_name[tensor.name]] = torch.from_numpy(np.array(values))
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(hf_config)
    return model.eval()


@pytest.fixture(scope="module")
def text(smollm2) -> list[int]:
    """The prompt and what our float32 model says to it, greedily, one token at a time."""
    model, tokens = load(smollm2, "float32"), list(PROMPT)
    run = PagedRun(model, [[*PROMPT, *[0] * NUM_GENERATED]])
    logits = run.step([len(PROMPT)])
    for index in range(NUM_GENERATED):
        tokens.append(int(logits[-1].argmax()))
        run.sequences[0][len(PROMPT) + index] = tokens[-1]
        logits = run.step([1])
    return tokens


@pytest.fixture(scope="module")
def exact(reference, text) -> torch.Tensor:
    return hf_logits(reference, [text])[0]


def test_smollm2_greedy_tokens_and_logits_match_transformers(smollm2, text, exact):
    assert exact.argmax(dim=-1)[len(PROMPT) - 1 : -1].tolist() == text[len(PROMPT) :]
    ours = PagedRun(load(smollm2, "float32"), [text]).whole()[0]
    torch.testing.assert_close(ours, exact, atol=5e-3, rtol=1e-3)


def test_smollm2_in_bfloat16_agrees_where_the_reference_decides_clearly(smollm2, reference, text, exact, device):
    """Teacher-forced: the chosen token's exact logit is within twice the error of plain bfloat16 torch of the best."""
    plain_error = (hf_logits(copy.deepcopy(reference).to(torch.bfloat16), [text])[0] - exact).abs().amax(dim=-1)
    ours = PagedRun(load(smollm2, "bfloat16", device), [text]).in_steps([11, 1, 1, 1])[0]
    chosen = exact.gather(1, ours.argmax(dim=-1, keepdim=True))[:, 0]
    assert ((exact.amax(dim=-1) - chosen) <= 2 * plain_error).all()
    assert (ours - exact).abs().max() <= 2 * plain_error.max()
