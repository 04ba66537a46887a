"""Small tokenizers made in the tests: a byte-level BPE, a sentencepiece model, and both inside GGUF files."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from pyengine.text.bpe import BpeBackend
from pyengine.text.tokenizer import Tokenizer, TokenizerFacts

SENTENCES = [
    "The quick brown fox jumps over the lazy dog. It didn't look back, not even once!",
    "In 1984 there were 365 days; 2024 had 366. Prices rose by 3.14 per cent.",
    "Größere Füchse springen höher. Ça va très bien, merci. El niño comió piña.",
    "def main():\n    for i in range(10):\n        print(i, end='')\n\n\nmain()",
    "日本語のテキストも少し。中文也有一点。한국어도 조금. 😀👍🏽 emoji too.",
    "the the the and and of of to to in in that that is is was was he she it they we you I",
] * 4

TEXTS = [
    "",
    " ",
    "Hello world",
    " leading and trailing ",
    "two  spaces   three\n\n\nlines\tand\r\ntabs",
    "It's 12345 o'clock, isn't it? ÄÖÜ ß",
    "日本語 and 한국어 and العربية and हिन्दी",
    "😀 emoji 👩‍👩‍👧 joined ❤️",
    "a\u0301 combining, \u00e1 composed",
    "null \x00 byte and \x7f and \x1b[0m",
    "<0x41> is no byte, ▁ is no space",
    "x" * 300,
]

SPECIAL = ("<|start|>", "<|end|>")


@functools.cache
def trained_bpe() -> str:
    """tokenizer.json of a byte-level BPE with two special tokens and one added token that is not special."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False)])
    return tokenizer.to_str()


def bpe_tokenizer() -> Tokenizer:
    """The BPE as a ``Tokenizer`` whose <|start|> is BOS and <|end|> is EOS."""
    backend = BpeBackend(tokenizers.Tokenizer.from_str(trained_bpe()), "trained in the test")
    facts = TokenizerFacts(
        bos_token_id=0,
        eos_token_id=1,
        eos_token_ids=(1,),
        special_ids=frozenset({0, 1}),
        add_bos=True,
        named_tokens={"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]},
    )
    return Tokenizer(backend, facts)


@functools.cache
def trained_sentencepiece() -> bytes:
    """A BPE sentencepiece model with byte fallback and a dummy prefix, as Llama 2's is made."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["<sep>"],
        minloglevel=2,
    )
    return model.getvalue()


def write_bpe_folder(folder: Path, **config: object) -> Path:
    """A Hugging Face folder with the BPE and the given tokenizer_config.json entries."""
    folder.mkdir(exist_ok=True)
    tokenizer = tokenizers.Tokenizer.from_str(trained_bpe())
    tokenizer.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    entries = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|start|>",
        "eos_token": {"__type": "AddedToken", "content": "<|end|>"},
        **config,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return folder


def write_sentencepiece_folder(folder: Path, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(trained_sentencepiece())
    entries = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries))
    return folder


def write_bpe_gguf(path: Path, pre: str = "gpt-2", **metadata: object) -> Path:
    """The BPE's vocabulary, merges and types in a GGUF file."""
    state = json.loads(trained_bpe())
    vocab = {**state["model"]["vocab"], **{token["content"]: token["id"] for token in state["added_tokens"]}}
    tokens = sorted(vocab, key=vocab.__getitem__)
    special = {token["content"]: token["special"] for token in state["added_tokens"]}
    types = [{True: 3, False: 4}.get(special.get(token), 1) for token in tokens]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    return _finish(writer, metadata)


def write_sentencepiece_gguf(path: Path, **metadata: object) -> Path:
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained_sentencepiece())
    size = processor.get_piece_size()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([processor.id_to_piece(i) for i in range(size)])
    writer.add_token_scores([processor.get_score(i) for i in range(size)])
    writer.add_token_types([_piece_type(processor, i) for i in range(size)])
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    return _finish(writer, metadata)


def _piece_type(processor: sentencepiece.SentencePieceProcessor, token_id: int) -> int:
    if processor.is_unknown(token_id):
        return 2
    if processor.is_control(token_id):
        return 3
    if processor.is_byte(token_id):
        return 6
    return 4 if processor.id_to_piece(token_id) == "<sep>" else 1


def _finish(writer: gguf.GGUFWriter, metadata: dict[str, object]) -> Path:
    for key, value in metadata.items():
        name = "tokenizer." + key if key == "chat_template" else "tokenizer.ggml." + key
        name = key if "." in key else name
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_string(name, str(value))
    writer.add_tensor("token_embd.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.add_tensor("norm.weight", np.ones(32, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    path = Path(writer.path)
    writer.close()
    return path
