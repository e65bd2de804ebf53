"""Templates that behave as those of Gemma and Phi do: who speaks is renamed, a system text moves, turns must alternate."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from pegboard.errors import DataError
from pegboard.types import Message
from pegboard_tokenizers.loader import Loader
from pegboard_tokenizers.tokenizer import HfTokenizer

# Gemma 2 knows no system text; in Gemma 3 it begins the first question, whose content may be a list of parts.
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}{% endfor %}"
)
TURN = "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
OPEN = "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
GEMMA2 = (
    "{{ bos_token }}{% if messages and messages[0].role == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}"
    f"{ALTERNATE}{{% for m in messages %}}{TURN}{{{{ m.content | trim + '<end_of_turn>\n' }}}}{{% endfor %}}{OPEN}"
)
GEMMA3 = (
    "{{ bos_token }}{% set first = '' %}{% if messages and messages[0].role == 'system' %}"
    "{% set first = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    f"{ALTERNATE}{{% for m in messages %}}{TURN}{{{{ first if loop.first }}}}"
    "{% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}"
    f"{{{{ '<end_of_turn>\n' }}}}{{% endfor %}}{OPEN}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SPECIAL = {
    "gemma": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
    "phi": [
        "<s>",
        "<|endoftext|>",
        "<|end|>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|im_sep|>",
    ],
}
CHAT = [Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "the dog?"), Message("assistant", " a fox")]
SYSTEM = Message("system", "be brief")


@pytest.fixture
def make(make_files: Callable[..., dict[str, bytes]]) -> Callable[..., HfTokenizer]:
    def load(family: str, template: str) -> HfTokenizer:
        files = make_files(template=template)
        special = SPECIAL[family]
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.add_special_tokens(special)
        files = make_files(template=template, bos_token=special[0], eos_token=special[1])
        return Loader().load({**files, "tokenizer.json": tokenizer.to_str().encode()}, {})

    return load


def learned(tokenizer: HfTokenizer, messages: list[Message]) -> list[str]:
    """Return the texts of runs of learned tokens."""
    ids, mask = tokenizer.chat_with_mask(messages)
    assert ids == tokenizer.chat(messages, generation_prompt=False)
    runs: list[list[int]] = [[]]
    for index, wanted in zip(ids, mask, strict=True):
        if wanted:
            runs[-1].append(index)
        elif runs[-1]:
            runs.append([])
    return [tokenizer.decode(run, skip_special=False) for run in runs if run]


def test_gemma2(make: Callable[..., HfTokenizer]) -> None:
    tokenizer = make("gemma", GEMMA2)
    assert tokenizer.chat_text(CHAT[:1]) == "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert learned(tokenizer, CHAT) == ["Ho<end_of_turn>", "a fox<end_of_turn>"]
    # The template writes the first token itself: it must not come twice.
    assert tokenizer.chat(CHAT).count(tokenizer.encode("<bos>", special=False)[0]) == 1
    with pytest.raises(DataError, match="there is no system role"):
        tokenizer.chat([SYSTEM, *CHAT])
    with pytest.raises(DataError, match="must take turns"):
        tokenizer.chat([*CHAT, *CHAT[1:]])


def test_gemma3(make: Callable[..., HfTokenizer]) -> None:
    tokenizer = make("gemma", GEMMA3)
    assert tokenizer.chat_text([SYSTEM, *CHAT[:1]]).startswith("<bos><start_of_turn>user\nbe brief\n\nHi<end_of_turn>")
    assert learned(tokenizer, [SYSTEM, *CHAT]) == ["Ho<end_of_turn>", "a fox<end_of_turn>"]
    with pytest.raises(DataError, match="must take turns"):
        tokenizer.chat(CHAT[1:])


@pytest.mark.parametrize(
    ("template", "end", "closing"), [(PHI3, "<|end|>", "\n<|endoftext|>"), (PHI4, "<|im_end|>", "")]
)
def test_phi(make: Callable[..., HfTokenizer], template: str, end: str, closing: str) -> None:
    tokenizer = make("phi", template)
    assert "be brief" in tokenizer.chat_text([SYSTEM, *CHAT])
    assert learned(tokenizer, [SYSTEM, *CHAT]) == [f"Ho{end}", f" a fox{end}{closing}"]
