"""What is read of prompts, against transformers on the same random weights: pooled states and log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import make_hf, random_sequences, save_hf

from pyengine.config import EngineConfig
from pyengine.engine import Engine
from pyengine.protocol import Pooling, Request
from pyengine.sampling_params import SamplingParams

PROMPTS = random_sequences([1, 2, 15, 33, 90])


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_float32(family, tmp_path, backend):
    if backend == "cuda":
        pytest.skip("float32 runs on CPUs alone")
    hf = make_hf(family)
    options = {"dtype": "float32", "max_num_batched_tokens": 24, "max_num_seqs": 24, "kv_cache_memory": "8MiB"}
    engine = Engine.start(EngineConfig(model=str(save_hf(hf, tmp_path)), device=backend, **options))
    for i, prompt in enumerate(PROMPTS):
        for pooling in Pooling:
            engine.add(Request(f"{pooling.value}{i}", prompt, SamplingParams(max_tokens=0), pooling=pooling))
        engine.add(Request(f"scores{i}", prompt, SamplingParams(max_tokens=0, prompt_logprobs=2)))
    vectors, scores = {}, {f"scores{i}": [] for i in range(len(PROMPTS))}
    while engine.has_work:
        for delta in engine.step():
            if delta.embedding is not None:
                vectors[delta.request_id] = torch.from_numpy(np.frombuffer(delta.embedding, np.float32).copy())
            scores.get(delta.request_id, []).extend(delta.prompt_logprobs or ())
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            out = hf(torch.tensor([prompt]), output_hidden_states=True)
        states, logprobs = out.hidden_states[-1][0], torch.log_softmax(out.logits[0], -1)
        torch.testing.assert_close(vectors[f"mean{i}"], states.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(vectors[f"last{i}"], states[-1], atol=2e-4, rtol=2e-4)
        for score, row, token in zip(scores[f"scores{i}"], logprobs[:-1], prompt[1:], strict=True):
            assert score.logprob == pytest.approx(float(row[token]), abs=2e-3)
            assert score.top_logprobs == pytest.approx(row.topk(2).values.tolist(), abs=2e-3)
