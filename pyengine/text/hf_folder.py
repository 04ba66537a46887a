"""The text side of a Hugging Face folder: tokenizer files, special tokens, chat templates, sampling defaults.

Reads only JSON and text files, each bounded in size, and executes nothing of the checkpoint. Precedence where files
disagree follows ``transformers``: ``chat_template.jinja`` over ``tokenizer_config.json``, the post-processor of
tokenizer.json over ``add_bos_token`` and ``add_eos_token``, ``generation_config.json`` over ``config.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyengine.errors import ModelError
from pyengine.text import bpe, spm
from pyengine.text.tokenizer import Tokenizer, TokenizerFacts, unique_ids

MAX_JSON_BYTES = 1 << 27
MAX_TEMPLATE_BYTES = 1 << 20
MAX_ID_DIGITS = 9

_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


def has_tokenizer(path: Path) -> bool:
    """Whether a checkpoint brings a tokenizer: any .gguf file is expected to."""
    return path.is_file() or any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def load_folder_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json when there is one, else tokenizer.model; raises ModelError naming what is missing or broken."""
    config = read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        backend: bpe.BpeBackend | spm.SentencePieceBackend = bpe.read_tokenizer_json(folder / "tokenizer.json")
        explicit = _orders_beside(backend, config)
    elif (folder / "tokenizer.model").is_file():
        options = spm.Options(
            added_tokens=_added_tokens(folder, config), prefix_each_fragment=config.get("legacy") is not False
        )
        backend = spm.read_sentencepiece(folder / "tokenizer.model", options)
        explicit = (config.get("add_bos_token", True) is not False, config.get("add_eos_token") is True)
    else:
        raise ModelError(f"{folder}: has neither tokenizer.json nor tokenizer.model")
    return Tokenizer(backend, _facts(folder, config, backend, explicit))


def _orders_beside(backend: bpe.BpeBackend, config: dict) -> tuple[bool | None, bool | None]:
    """add_bos_token and add_eos_token, which count only where the post-processor adds nothing itself."""
    wanted = (config.get("add_bos_token") is True, config.get("add_eos_token") is True)
    return wanted if any(wanted) and not backend.encode("", post_process=True) else (None, None)


def _facts(
    folder: Path,
    config: dict,
    backend: bpe.BpeBackend | spm.SentencePieceBackend,
    explicit: tuple[bool | None, bool | None],
) -> TokenizerFacts:
    named = {**_named_tokens(read_json(folder / "special_tokens_map.json")), **_named_tokens(config)}
    ids = {name: backend.token_to_id(text) for name, text in named.items()}
    eos = ids.get("eos_token")
    extra = [backend.token_to_id(text) for text in _token_texts(config.get("additional_special_tokens"))]
    return TokenizerFacts(
        bos_token_id=ids.get("bos_token"),
        eos_token_id=eos,
        pad_token_id=ids.get("pad_token"),
        eos_token_ids=unique_ids([eos, *_generation_eos_ids(folder)], backend.vocab_size),
        special_ids=backend.special_ids | set(unique_ids([*ids.values(), *extra], backend.vocab_size)),
        add_bos=explicit[0],
        add_eos=explicit[1],
        chat_templates=_chat_templates(folder, config),
        named_tokens=named,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} when the file does not exist; raises ModelError naming the file when it is not one."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path}: larger than {MAX_JSON_BYTES} bytes")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_sampling_defaults(path: Path) -> dict[str, Any]:
    """Sampling defaults of generation_config.json, as ``SamplingParams`` fields; {} for a .gguf file or without one.

    The fields that vLLM takes from there; its max_new_tokens is our max_tokens. Raises ModelError for one that is no
    number.
    """
    config = read_json(path / "generation_config.json") if path.is_dir() else {}
    defaults: dict[str, Any] = {}
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"):
        value, is_int = config.get(name), name in ("top_k", "max_new_tokens")
        if value is None:
            continue
        if is_int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int if is_int else (int, float)):
            wanted = "an integer" if is_int else "a number"
            raise ModelError(f"{path / 'generation_config.json'}: {name} must be {wanted}, got {value!r:.80}")
        if name == "max_new_tokens" and value < 1:
            raise ModelError(f"{path / 'generation_config.json'}: max_new_tokens must be 1 or more, got {value}")
        defaults["max_tokens" if name == "max_new_tokens" else name] = value
    return defaults


def _text_of(token: object) -> str | None:
    """A token as configs write it: a string, or an object with ``content``."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _token_texts(tokens: object) -> list[str]:
    texts = [_text_of(token) for token in tokens] if isinstance(tokens, list) else []
    return [text for text in texts if text is not None]


def _named_tokens(config: dict) -> dict[str, str]:
    texts = {name: _text_of(config.get(name)) for name in _NAMED}
    return {name: text for name, text in texts.items() if text is not None}


def _added_tokens(folder: Path, config: dict) -> list[spm.AddedToken]:
    """Tokens beside a tokenizer.model: added_tokens.json, then tokenizer_config.json's richer table."""
    tokens: dict[int, spm.AddedToken] = {}
    for text, token_id in read_json(folder / "added_tokens.json").items():
        if isinstance(token_id, int):
            tokens[token_id] = spm.AddedToken(token_id, text)
    table = config.get("added_tokens_decoder")
    for key, entry in table.items() if isinstance(table, dict) else ():
        text = _text_of(entry)
        if text is not None and len(key) <= MAX_ID_DIGITS and key.isascii() and key.isdigit():
            richer = entry if isinstance(entry, dict) else {}
            flags = {name: richer.get(name) is True for name in ("special", "lstrip", "rstrip")}
            tokens[int(key)] = spm.AddedToken(int(key), text, **flags)
    return list(tokens.values())


def _generation_eos_ids(folder: Path) -> list[int]:
    """eos_token_id (an int or a list) of generation_config.json, else of config.json."""
    for name in ("generation_config.json", "config.json"):
        ids = read_json(folder / name).get("eos_token_id")
        if ids is not None:
            ids = ids if isinstance(ids, list) else [ids]
            return [i for i in ids if isinstance(i, int) and not isinstance(i, bool)]
    return []


def _chat_templates(folder: Path, config: dict) -> dict[str, str]:
    """Templates by name. A file of its own wins over the one inside tokenizer_config.json."""
    inside = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(inside, str):
        templates["default"] = inside
    elif isinstance(inside, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in inside if isinstance(entry, dict)]
        templates.update({name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)})
    alone = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(alone, str):
        templates["default"] = alone
    path = folder / "chat_template.jinja"
    if path.is_file():
        templates["default"] = read_template(path)
    return templates


def read_template(path: Path) -> str:
    """A Jinja source from a file of its own; raises ModelError naming it."""
    try:
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ModelError(f"{path}: larger than {MAX_TEMPLATE_BYTES} bytes")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not readable: {error}") from None
