"""Sentencepiece tokenizers: ``tokenizer.model`` files, and models rebuilt from a GGUF's tokens, scores and types.

Sentencepiece never matches control tokens inside a text, so texts are cut at control and added tokens first; what lies
between goes through the library. Whether a fragment gets the dummy space in front is decided here, not in the model:
the first always does (when the model wants one), later ones only under the older rule that most checkpoints were made
with.

The model file is a protocol buffer; the few fields needed to build one, or to override one by appending (a later field
wins), are written by hand. Field numbers are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import sentencepiece

from pyengine.errors import ModelError
from pyengine.text.library_errors import library_errors
from pyengine.text.trie_regex import compile_literals

SPACE = "\u2581"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class AddedToken:
    """A token matched as a whole before the model runs; l/rstrip swallow the white space beside it."""

    token_id: int
    text: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Options:
    """How texts are cut and prefixed; ``prefix_each_fragment``: the dummy space also follows every special token."""

    added_tokens: list[AddedToken] = field(default_factory=list)
    prefix_each_fragment: bool = True


class SentencePieceBackend:
    """A sentencepiece model behind the ``Backend`` interface."""

    def __init__(self, model: bytes, source: str, options: Options):
        self._with_prefix = _load(model, source)
        num_pieces = self._with_prefix.get_piece_size()
        controls = [i for i in range(num_pieces) if self._with_prefix.is_control(i)]
        self._added = {i: AddedToken(i, self._with_prefix.id_to_piece(i)) for i in controls}
        self._added.update({token.token_id: token for token in options.added_tokens if token.text})
        self._id_of = {token.text: token.token_id for token in self._added.values()}
        self._cut = _cutter(self._id_of, source)
        self._num_pieces = num_pieces
        self._prefix_each = options.prefix_each_fragment
        probe = self._with_prefix.encode("a", out_type=str)
        self.strip_leading_space = bool(probe) and probe[0].startswith(SPACE)
        # normalizer_spec.add_dummy_prefix = false, appended so that it overrides the model's own.
        self._bare = self._with_prefix
        if self.strip_leading_space:
            self._bare = _load(model + _message(3, _flag(3, False)), source)
        self.vocab_size = max([num_pieces, *(i + 1 for i in self._added)])
        unknown = self._with_prefix.unk_id()
        self.special_ids = frozenset(i for i, token in self._added.items() if token.special) | {unknown}

    def encode(self, text: str, post_process: bool) -> list[int]:
        ids: list[int] = []
        prefixed = True
        for fragment in self._fragments(text):
            if isinstance(fragment, AddedToken):
                ids.append(fragment.token_id)
                prefixed = self._prefix_each
            elif fragment:
                ids.extend((self._with_prefix if prefixed else self._bare).encode(fragment))
                prefixed = False
        return ids

    def _fragments(self, text: str) -> Iterator[str | AddedToken]:
        """The text cut at control and added tokens, in order."""
        start, strip = 0, False
        for match in self._cut.finditer(text) if self._cut else ():
            token = self._added[self._id_of[match.group()]]
            between = text[start : match.start()]
            between = between.lstrip() if strip else between
            yield between.rstrip() if token.lstrip else between
            yield token
            start, strip = match.end(), token.rstrip
        yield text[start:].lstrip() if strip else text[start:]

    def token_bytes(self, token_id: int) -> bytes:
        added = self._added.get(token_id)
        if added is not None:
            return added.text.encode("utf-8", "replace")
        if token_id >= self._num_pieces:
            return b""
        piece = self._with_prefix.id_to_piece(token_id)
        if self._with_prefix.is_byte(token_id):
            return bytes.fromhex(piece[3:5])
        return piece.replace(SPACE, " ").encode("utf-8", "replace")

    def token_to_id(self, token: str) -> int | None:
        if token in self._id_of:
            return self._id_of[token]
        token_id = self._with_prefix.piece_to_id(token)
        return token_id if self._with_prefix.id_to_piece(token_id) == token else None


def _cutter(literals: dict[str, int], source: str) -> re.Pattern[str] | None:
    try:
        return compile_literals(literals) if literals else None
    except (re.error, RecursionError, OverflowError):
        raise ModelError(f"{source}: its {len(literals)} special tokens nest too deeply to be searched for") from None


def _load(model: bytes, source: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    with library_errors(ModelError, f"{source}: not a usable sentencepiece model"):
        processor.LoadFromSerializedProto(model)
    return processor


def read_sentencepiece(path: Path, options: Options) -> SentencePieceBackend:
    """A ``tokenizer.model`` file; raises ModelError naming it."""
    try:
        model = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    return SentencePieceBackend(model, str(path), options)


def build_model(pieces: list[str], scores: list[float], types: list[int], add_dummy_prefix: bool) -> bytes:
    """A serialised BPE ModelProto from a vocabulary; ``types`` holds exactly one UNKNOWN.

    Bytes fall back to BYTE pieces when all 256 are there.
    """
    body = bytearray()
    for piece, score, kind in zip(pieces, scores, types, strict=True):
        entry = _bytes(1, piece.encode("utf-8")) + _tag(2, 5) + struct.pack("<f", score) + _number(3, kind)
        body += _message(1, entry)
    unknown = types.index(UNKNOWN)
    trainer = _number(3, 2) + _number(4, len(pieces)) + _flag(35, types.count(BYTE) == 256)
    trainer += _number(40, unknown) + b"".join(_number(field_number, -1) for field_number in (41, 42, 43))
    trainer += _bytes(45, pieces[unknown].encode("utf-8"))
    normalizer = _bytes(1, b"identity") + _flag(3, add_dummy_prefix) + _flag(4, False) + _flag(5, True)
    return bytes(body) + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(number: int, wire_type: int) -> bytes:
    return _varint(number << 3 | wire_type)


def _number(number: int, value: int) -> bytes:
    return _tag(number, 0) + _varint(value)


def _flag(number: int, value: bool) -> bytes:
    return _number(number, int(value))


def _bytes(number: int, value: bytes) -> bytes:
    return _tag(number, 2) + _varint(len(value)) + value


_message = _bytes
