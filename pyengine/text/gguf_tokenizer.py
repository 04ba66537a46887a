"""Tokenizers embedded in GGUF files: byte-level BPE ("gpt2") and sentencepiece ("llama") vocabularies.

The metadata states the vocabulary, token types and merges; what it states only by name, the way text is split before
merging, comes from the table in ``pretokenizers``. Everything is checked before it reaches a library, and whatever is
wrong becomes a ModelError naming the file and the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models

from pyengine.errors import ModelError
from pyengine.text import spm
from pyengine.text.bpe import BpeBackend
from pyengine.text.gguf_metadata import GGUFFile, open_gguf
from pyengine.text.library_errors import library_errors
from pyengine.text.pretokenizers import PRETOKENIZERS, PreTokenizer
from pyengine.text.tokenizer import Tokenizer, TokenizerFacts, unique_ids

MAX_VOCAB = 1 << 21

# Texts of tokens that end a turn in the checkpoints that GGUF files are made from; the metadata often names just one.
_END_TEXTS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <end_of_turn> <|endoftext|> <|end_of_text|> <|eom_id|> <EOT> "
    "_<EOT> [EOT] <|end_of_turn|> <end_of_utterance> <｜end▁of▁sentence｜>".split()
)


def load_gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a .gguf file; raises ModelError when there is none or its kind is unknown."""
    return tokenizer_from_gguf(open_gguf(path))


def tokenizer_from_gguf(file: GGUFFile) -> Tokenizer:
    """The tokenizer of an already opened file."""
    vocabulary = _Vocabulary(file)
    kind = file.get("tokenizer.ggml.model", str)
    if kind == "gpt2":
        pre = _pretokenizer(file)
        backend: BpeBackend | spm.SentencePieceBackend = _build_bpe(file, vocabulary, pre)
        add_bos = file.get("tokenizer.ggml.add_bos_token", bool, pre.add_bos)
    elif kind == "llama":
        backend = _build_sentencepiece(file, vocabulary)
        add_bos = file.get("tokenizer.ggml.add_bos_token", bool, True)
    else:
        raise ModelError(f"{file.path}: tokenizer kind {kind!r} is not supported (have gpt2, llama)")
    add_eos = file.get("tokenizer.ggml.add_eos_token", bool, False)
    return Tokenizer(backend, _facts(file, vocabulary, add_bos, add_eos))


class _Vocabulary:
    """Tokens, types and scores as stored, checked for lengths, ranges and duplicates."""

    def __init__(self, file: GGUFFile):
        self.tokens = _list(file, "tokenizer.ggml.tokens", str)
        if not 0 < len(self.tokens) <= MAX_VOCAB:
            raise ModelError(f"{file.path}: tokenizer.ggml.tokens has {len(self.tokens)} entries, not 1 to {MAX_VOCAB}")
        # Placeholders keep empty entries apart; they stand for no text.
        self.tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(self.tokens)]
        self.id_of = {token: i for i, token in enumerate(self.tokens)}
        if len(self.id_of) != len(self.tokens):
            twice = next(token for i, token in enumerate(self.tokens) if self.id_of[token] != i)
            raise ModelError(f"{file.path}: tokenizer.ggml.tokens holds {twice!r:.100} twice")
        self.types = _list(file, "tokenizer.ggml.token_type", int) or [spm.NORMAL] * len(self.tokens)
        self.scores = [float(score) for score in _list(file, "tokenizer.ggml.scores", (int, float))]
        for key, values in (("token_type", self.types), ("scores", self.scores)):
            if values and len(values) != len(self.tokens):
                raise ModelError(
                    f"{file.path}: tokenizer.ggml.{key} has {len(values)} entries for {len(self.tokens)} tokens"
                )

    def ids_of_type(self, *types: int) -> list[int]:
        return [i for i, kind in enumerate(self.types) if kind in types]


def _list(file: GGUFFile, key: str, entry_type: type | tuple[type, ...]) -> list[Any]:
    values = file.get(key, list, [])
    if values and not isinstance(values[0], entry_type):
        raise ModelError(f"{file.path}: {key} holds {type(values[0]).__name__} entries")
    return values


def _facts(file: GGUFFile, vocabulary: _Vocabulary, add_bos: bool, add_eos: bool) -> TokenizerFacts:
    size = len(vocabulary.tokens)
    names = ("bos", "eos", "unknown", "padding", "eot", "eom")
    ids = {name: file.get(f"tokenizer.ggml.{name}_token_id", int) for name in names}
    for name, token_id in ids.items():
        if token_id is not None and not 0 <= token_id < size:
            raise ModelError(f"{file.path}: tokenizer.ggml.{name}_token_id is {token_id}, of {size} tokens")
    controls = vocabulary.ids_of_type(spm.CONTROL, spm.UNKNOWN)
    ends = [i for i in controls if vocabulary.tokens[i] in _END_TEXTS]
    named = {"bos_token": ids["bos"], "eos_token": ids["eos"], "unk_token": ids["unknown"], "pad_token": ids["padding"]}
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).removeprefix(".") or "default": value
        for key, value in file.metadata.items()
        if (key == prefix or key.startswith(prefix + ".")) and isinstance(value, str)
    }
    return TokenizerFacts(
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["padding"],
        eos_token_ids=unique_ids([ids["eos"], ids["eot"], ids["eom"], *ends], size),
        special_ids=frozenset(controls),
        add_bos=add_bos,
        add_eos=add_eos,
        chat_templates=templates,
        named_tokens={name: vocabulary.tokens[i] for name, i in named.items() if i is not None},
    )


def _pretokenizer(file: GGUFFile) -> PreTokenizer:
    name = file.get("tokenizer.ggml.pre", str, "default")
    pre = PRETOKENIZERS.get(name)
    if pre is None:
        known = ", ".join(sorted(PRETOKENIZERS))
        raise ModelError(f"{file.path}: tokenizer.ggml.pre {name!r:.100} is not supported (have {known})")
    return pre


def _build_bpe(file: GGUFFile, vocabulary: _Vocabulary, pre: PreTokenizer) -> BpeBackend:
    merges = [_merge(file, text) for text in _list(file, "tokenizer.ggml.merges", str)]
    if not merges:
        raise ModelError(f"{file.path}: tokenizer.ggml.merges is missing, so its gpt2 vocabulary cannot be used")
    with library_errors(ModelError, f"{file.path}: not a usable BPE vocabulary"):
        model = models.BPE(vocab=vocabulary.id_of, merges=merges, ignore_merges=pre.ignore_merges)
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.pre_tokenizer = pre.build()
        if pre.normalizer is not None:
            tokenizer.normalizer = pre.normalizer()
        tokenizer.decoder = decoders.ByteLevel()
        control = [vocabulary.tokens[i] for i in vocabulary.ids_of_type(spm.CONTROL, spm.UNKNOWN)]
        defined = [vocabulary.tokens[i] for i in vocabulary.ids_of_type(spm.USER_DEFINED)]
        tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in control])
        tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in defined])
        return BpeBackend(tokenizer, str(file.path))


def _merge(file: GGUFFile, text: str) -> tuple[str, str]:
    """``"left right"``; a space cannot begin a side, since the byte alphabet has none."""
    left, space, right = text.partition(" ")
    if not (left and space and right):
        raise ModelError(f"{file.path}: tokenizer.ggml.merges holds {text!r:.100}, expected two tokens")
    return left, right


def _build_sentencepiece(file: GGUFFile, vocabulary: _Vocabulary) -> spm.SentencePieceBackend:
    if not vocabulary.scores:
        raise ModelError(f"{file.path}: tokenizer.ggml.scores is missing, which its sentencepiece vocabulary needs")
    types = _sentencepiece_types(file, vocabulary)
    defined = [i for i, kind in enumerate(types) if kind == spm.USER_DEFINED]
    # Pieces hold spaces as U+2581, also those that converters wrote with plain ones.
    pieces = list(vocabulary.tokens)
    for i in defined:
        pieces[i] = pieces[i].replace(" ", spm.SPACE)
    model = spm.build_model(pieces, vocabulary.scores, types, file.get("tokenizer.ggml.add_space_prefix", bool, True))
    added = [spm.AddedToken(i, vocabulary.tokens[i], special=False) for i in defined if spm.SPACE not in pieces[i]]
    return spm.SentencePieceBackend(model, str(file.path), spm.Options(added_tokens=added))


def _sentencepiece_types(file: GGUFFile, vocabulary: _Vocabulary) -> list[int]:
    """The stored types as sentencepiece accepts them: one UNKNOWN, BYTE pieces complete and well formed or absent."""
    unknown = file.get("tokenizer.ggml.unknown_token_id", int)
    stated = vocabulary.ids_of_type(spm.UNKNOWN)
    chosen = stated[0] if stated else unknown if unknown is not None else 0
    types = [kind if spm.NORMAL <= kind <= spm.BYTE else spm.UNUSED for kind in vocabulary.types]
    for i in stated:
        types[i] = spm.CONTROL
    types[chosen] = spm.UNKNOWN
    byte_ids = [i for i, kind in enumerate(types) if kind == spm.BYTE]
    if byte_ids and {vocabulary.tokens[i] for i in byte_ids} != {f"<0x{byte:02X}>" for byte in range(256)}:
        raise ModelError(f"{file.path}: its {len(byte_ids)} byte tokens are not <0x00> to <0xFF>")
    return types
