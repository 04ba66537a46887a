"""One tokenizer interface over every kind of checkpoint.

``load_tokenizer(path)`` takes a Hugging Face folder (``tokenizer.json`` or ``tokenizer.model``) or a ``.gguf`` file and
returns a ``Tokenizer``: a backend that splits text into ids and knows the bytes behind each id, plus the facts that a
checkpoint states about its special tokens. Ids become text through their bytes alone (``id_to_bytes``), so that plain
and incremental decoding are the same computation. A ``Tokenizer`` is immutable after loading and may be used from
several threads at once; ``encode`` of a long text releases the GIL where the backend does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pyengine.errors import ModelError, RequestError
from pyengine.text.library_errors import library_errors


class Backend(Protocol):
    """What a kind of tokenizer must offer; ids outside the vocabulary have no bytes."""

    vocab_size: int
    strip_leading_space: bool  # whether decoding drops one space at the very beginning of a text

    def encode(self, text: str, post_process: bool) -> list[int]:
        """Ids of ``text``; ``post_process`` also adds what the tokenizer file itself says belongs around a text."""

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes (perhaps of a part of a character) that this id stands for."""

    def token_to_id(self, token: str) -> int | None:
        """The id of a token given as it is written in the vocabulary."""


@dataclass(frozen=True)
class TokenizerFacts:
    """What a checkpoint says about its tokenizer beside the vocabulary.

    Attributes:
        bos_token_id, eos_token_id, pad_token_id: None where the checkpoint names none.
        eos_token_ids: every id that ends a generation, ``eos_token_id`` first.
        special_ids: ids that skip_special_tokens leaves out of the text.
        add_bos, add_eos: explicit orders for ``encode``; None leaves it to the tokenizer file's own post-processor.
        chat_templates: Jinja sources by name; "default" is the one for plain chat.
        named_tokens: ``bos_token``, ``eos_token``, ... as text, the variables of a chat template.
    """

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    special_ids: frozenset[int] = frozenset()
    add_bos: bool | None = None
    add_eos: bool | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    named_tokens: dict[str, str] = field(default_factory=dict)


class Tokenizer:
    """Text to ids and back. See ``TokenizerFacts`` for the attributes that describe special tokens."""

    def __init__(self, backend: Backend, facts: TokenizerFacts):
        self._backend = backend
        self.facts = facts
        self.vocab_size = backend.vocab_size
        self.strip_leading_space = backend.strip_leading_space
        self.special_ids = facts.special_ids
        self.eos_token_ids = facts.eos_token_ids
        self.bos_token_id = facts.bos_token_id
        self.eos_token_id = facts.eos_token_id
        self.pad_token_id = facts.pad_token_id
        self.chat_template = facts.chat_templates.get("default")
        self._bytes_of: dict[int, bytes] = {}

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of a text; ``add_special_tokens`` puts BOS/EOS around it as the checkpoint asks.

        Raises RequestError when the text holds lone surrogates, which no UTF-8 text can.
        """
        check_encodable(text)
        explicit = self.facts.add_bos is not None or self.facts.add_eos is not None
        ids = self._backend.encode(text, add_special_tokens and not explicit)
        if add_special_tokens and explicit:
            if self.facts.add_bos and self.bos_token_id is not None:
                ids.insert(0, self.bos_token_id)
            if self.facts.add_eos and self.eos_token_id is not None:
                ids.append(self.eos_token_id)
        return ids

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that are not UTF-8 become U+FFFD."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        data = b"".join([self.id_to_bytes(token_id) for token_id in token_ids if token_id not in skipped])
        if self.strip_leading_space and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", "replace")

    def id_to_bytes(self, token_id: int) -> bytes:
        """UTF-8 bytes of one token, which may be part of a character; empty for ids outside the vocabulary."""
        data = self._bytes_of.get(token_id)
        if data is not None:
            return data
        if not 0 <= token_id < self.vocab_size:
            return b""
        data = self._bytes_of[token_id] = self._backend.token_bytes(token_id)
        return data

    def token_to_id(self, token: str) -> int | None:
        return self._backend.token_to_id(token)


def check_encodable(text: str, param: str | None = None) -> None:
    """Raise RequestError when ``text`` cannot be UTF-8 (it holds lone surrogates)."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise RequestError(
            f"the text is not valid Unicode: lone surrogate U+{code:04X} at character {error.start}", param=param
        ) from None


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint: a folder with tokenizer.json or tokenizer.model, or a .gguf file.

    Raises ModelError naming the file when it is missing, corrupt or of an unsupported kind.
    """
    from pyengine.text import gguf_tokenizer, hf_folder

    path = Path(path)
    with library_errors(ModelError, f"{path}: not a usable tokenizer"):
        if path.is_dir():
            return hf_folder.load_folder_tokenizer(path)
        if path.is_file() and path.suffix == ".gguf":
            return gguf_tokenizer.load_gguf_tokenizer(path)
    what = "is neither a folder nor a .gguf file" if path.exists() else "does not exist"
    raise ModelError(f"{path}: {what}; expected a folder with tokenizer.json or tokenizer.model, or a .gguf file")


def unique_ids(ids: Sequence[int | None], vocab_size: int) -> tuple[int, ...]:
    """The ids that are given and inside the vocabulary, in order, each once."""
    return tuple(dict.fromkeys(i for i in ids if i is not None and 0 <= i < vocab_size))
