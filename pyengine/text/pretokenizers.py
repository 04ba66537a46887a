r"""How text is cut before byte-pair merging, for each ``tokenizer.ggml.pre`` kind that a GGUF file may name.

A GGUF names this step instead of describing it, so this is a table: the split patterns of the checkpoints' own
tokenizer.json files, applied one after another (matches and what lies between them both become pieces), whether a piece
that is a whole token skips merging, whether BOS is added by default, and the Unicode normaliser. An unknown name is
refused: a wrong split gives plausible ids and a model that is quietly worse.

``\p{N}`` alone isolates single digits; ``\s+(?!\S)`` leaves the last space of a run to the word that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from tokenizers import Regex, normalizers, pre_tokenizers


@dataclass(frozen=True)
class PreTokenizer:
    """One kind: ``splits`` in order of application, then bytes become the byte alphabet."""

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    normalizer: Callable[[], normalizers.Normalizer] | None = None

    def build(self) -> pre_tokenizers.PreTokenizer:
        steps = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.splits]
        return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(number: str, letters: str = r"\p{L}+", symbols: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    """The cl100k family: contractions, words with one leading symbol, numbers, symbols with line ends, white space."""
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{letters}|{number}|{symbols}|{_SPACES}"


def _cased_words(suffix: str, number: str) -> str:
    """The o200k family: a word breaks where lower case is followed by upper case."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    lead = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}"
    return rf"{words}|{number}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


# Letters with case, of the Unicode version that the deepseek-llm tokenizer was made with.
_DEEPSEEK_LETTERS = (
    "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffcℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳ"
    "Ꙁ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    rf"|{_SPACES}",
)
# The look-behind changes no match; without it a long run of spaces inside a text costs quadratic time.
_DEEPSEEK1 = (
    "[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"(?<!\s)\s+$",
    _CJK,
    r"\p{N}+",
)
_QWEN35 = _words(_DIGIT, r"[\p{L}\p{M}]+", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"

_gpt2 = PreTokenizer((_GPT2,))
_digits = PreTokenizer((_DIGIT, _GPT2))
_one_digit = PreTokenizer((_words(_DIGIT),))
_llama3 = PreTokenizer((_words(r"\p{N}{1,3}"),), ignore_merges=True, add_bos=True)

_FAMILIES: list[tuple[str, PreTokenizer]] = [
    ("default", PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))),
    ("gpt-2 phi-2 jais gigachat a.x-4.0 mellum exaone4 trillion granite-docling", _gpt2),
    ("mpt olmo", replace(_gpt2, normalizer=normalizers.NFC)),
    ("smollm starcoder refact codeshell exaone minerva minerva-7b mellum2", _digits),
    ("command-r", replace(_digits, normalizer=normalizers.NFC)),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2", _llama3),
    ("dbrx smaug-bpe glm4 chatglm-bpe", PreTokenizer((_words(r"\p{N}{1,3}"),))),
    ("qwen2 stablelm2", replace(_one_digit, normalizer=normalizers.NFC)),
    ("deepseek-r1-qwen megrez hunyuan kormo grok-2 solar-open", _one_digit),
    ("qwen35", PreTokenizer((_QWEN35,), normalizer=normalizers.NFC)),
    ("seed-coder", PreTokenizer((_words(_DIGIT, symbols=r" ?[^\s\p{L}\p{N}\r\n]+"),))),
    ("deepseek-llm", PreTokenizer(_DEEPSEEK1)),
    ("deepseek-coder", PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, _DIGIT))),
    ("deepseek-v3 hunyuan-dense joyai-llm", PreTokenizer(_DEEPSEEK3)),
    ("falcon", PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"))),
    ("tekken", PreTokenizer((_cased_words("", _DIGIT),), ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 kanana2 minimax-m2", PreTokenizer((_cased_words(_CONTRACTION + "?", r"\p{N}{1,3}"),))),
    ("bloom gpt3-finnish poro-chat", PreTokenizer((_BLOOM,))),
    ("viking", PreTokenizer((_BLOOM, _DIGIT))),
]

PRETOKENIZERS: dict[str, PreTokenizer] = {name: kind for names, kind in _FAMILIES for name in names.split()}
