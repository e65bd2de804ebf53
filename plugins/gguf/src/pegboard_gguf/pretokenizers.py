"""How text is cut before byte-pair merging, by the name in `tokenizer.ggml.pre`.

Each entry is a tokenizer that published models have; the expressions are those of their tokenizer.json files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pegboard.errors import ModelError, nearest

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}*{_CASED[1]}+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{_CASED[0]}+{_CASED[1]}*",
)

_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_TEKKEN = rf"{_CAMEL[0]}|{_CAMEL[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
_GPT4O = (
    rf"{_CAMEL[0]}{_CONTRACTIONS}?|{_CAMEL[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How one family of byte-level tokenizers cuts text.

    pattern: expression whose matches are cut out before the byte mapping; None for GPT-2's own, which the byte
    mapping holds.
    digits: each digit is cut off alone first. nfc: text is normalised to NFC first.
    ignore_merges: a piece that is a token as a whole is taken as it is. bos: a sequence begins with bos unless the
    file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = False

    @property
    def steps(self) -> dict[str, Any]:
        """The `pre_tokenizer` of a tokenizer.json."""
        steps: list[dict[str, Any]] = []
        if self.digits:
            steps.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            steps.append({"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False})
        steps.append(byte_level(use_regex=self.pattern is None))
        return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    """The step that spells bytes as printable letters."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_GPT2_LIKE = PreTokenizer()
_LLAMA3_LIKE = PreTokenizer(_LLAMA3, ignore_merges=True, bos=True)
_SMOLLM_LIKE = PreTokenizer(digits=True)
_QWEN2_LIKE = PreTokenizer(_QWEN2, nfc=True)
_GPT4O_LIKE = PreTokenizer(_GPT4O)

PRE_TOKENIZERS = {
    "default": _GPT2_LIKE,
    "gpt-2": _GPT2_LIKE,
    "gpt2": _GPT2_LIKE,
    "phi-2": _GPT2_LIKE,
    "mpt": _GPT2_LIKE,
    "olmo": _GPT2_LIKE,
    "llama3": _LLAMA3_LIKE,
    "llama-v3": _LLAMA3_LIKE,
    "llama-bpe": _LLAMA3_LIKE,
    "pixtral": _LLAMA3_LIKE,
    "falcon3": PreTokenizer(_LLAMA3, ignore_merges=True),
    "dbrx": PreTokenizer(_LLAMA3),
    "smaug-bpe": PreTokenizer(_LLAMA3),
    "smollm": _SMOLLM_LIKE,
    "starcoder": _SMOLLM_LIKE,
    "refact": _SMOLLM_LIKE,
    "command-r": PreTokenizer(digits=True, nfc=True),
    "qwen2": _QWEN2_LIKE,
    "deepseek-r1-qwen": _QWEN2_LIKE,
    "megrez": _QWEN2_LIKE,
    "tekken": PreTokenizer(_TEKKEN, ignore_merges=True, bos=True),
    "gpt-4o": _GPT4O_LIKE,
    "llama4": _GPT4O_LIKE,
}


def pre_tokenizer(name: str | None, where: str) -> PreTokenizer:
    """Return the entry called `name`; a file without a name is taken as GPT-2's. Raises ModelError when it is not
    known.
    """
    found = PRE_TOKENIZERS.get(name or "default")
    if found is None:
        raise ModelError(
            f"{where}: the pre-tokenizer {name!r} is not known{nearest(str(name), PRE_TOKENIZERS)}",
            fix="use the model's Hugging Face folder for its tokenizer",
        )
    return found
