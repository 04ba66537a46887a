"""The default model's text side, as its GGUF file gives it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tokenizers
from text_helpers import TEXTS
from tokenizers import decoders, models, pre_tokenizers

from pyengine.models.resolve import resolve_model
from pyengine.protocol import FinishReason, TokenDelta
from pyengine.text.gguf_metadata import open_gguf
from pyengine.text.processor import ModelText, TextProcessor, load_model_text
from pyengine.text.validation import Limits


@pytest.fixture(scope="module")
def path() -> Path:
    return resolve_model("smollm2-135m")


@pytest.fixture(scope="module")
def text(path) -> ModelText:
    return load_model_text(path)


@pytest.fixture(scope="module")
def processor(text) -> TextProcessor:
    return TextProcessor(text, Limits(max_model_len=8192, vocab_size=49152), ["smollm2-135m"])


def test_facts(text):
    tokenizer = text.tokenizer
    assert (tokenizer.vocab_size, tokenizer.bos_token_id, tokenizer.eos_token_id) == (49152, 1, 2)
    assert tokenizer.eos_token_ids == (2, 0)  # <|im_end|>, <|endoftext|>
    assert set(range(17)) == tokenizer.special_ids
    assert text.warnings == [] and text.chat_template.accepts_string and not text.chat_template.accepts_parts


def test_ids_are_those_of_the_original_tokenizer(path, text):
    """The checkpoint's own tokenizer.json cuts with Digits and ByteLevel; ours cuts with the table's expressions."""
    metadata = open_gguf(path).metadata
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    original = tokenizers.Tokenizer(models.BPE(vocab, merges))
    original.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    original.decoder = decoders.ByteLevel()
    original.add_special_tokens([token for token, i in vocab.items() if i < 17])
    source = Path(__file__).read_text()
    for sample in (*TEXTS, source, "<|im_start|>system\nYou<|im_end|>", "½ ² ① १२३ 12,345.67"):
        ids = text.tokenizer.encode(sample)
        assert ids == original.encode(sample).ids
        assert text.tokenizer.decode(ids, skip_special_tokens=False) == sample


def test_chat_prompt(processor):
    request = processor.chat(b'{"messages":[{"role":"user","content":"What is the capital of France?"}]}')
    prompt = request.prompts[0]
    assert prompt.text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.token_ids[:5] == [1, 9690, 198, 2683, 359]
    question = [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
    assert prompt.token_ids[-len(question) :] == question
    assert request.eos_token_ids == (2, 0)


def test_an_answer_streams_and_stops(processor):
    request = processor.chat(b'{"messages":[{"role":"user","content":"Hi"}],"stop":["over"],"n":2}')
    answer = processor.tokenizer.encode("Größe 😀 is fine. It is over now.")
    first, second = processor.generations(request.prompts[0])
    shown = [first.push(TokenDelta("r", 0, [token_id])) for token_id in answer]
    assert "".join(delta.text for delta in shown) == first.text == "Größe 😀 is fine. It is "
    assert [delta.abort for delta in shown].count(True) == 1 and first.stop_reason == "over"
    second.push(TokenDelta("r", 1, answer[:5]))
    second.push(TokenDelta("r", 1, [2], FinishReason.STOP, stop_token_id=2))
    assert (second.finish_reason, second.stop_reason) == ("stop", None) and "<|im_end|>" not in second.text


def test_loading_is_quick(path):
    """The library's own reader takes seconds for the same header; start-up has a budget of a few."""
    start = time.perf_counter()
    load_model_text(path)
    assert time.perf_counter() - start < 5
