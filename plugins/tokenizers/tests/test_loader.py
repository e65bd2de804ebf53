"""Loading: which file says what, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from tokenizers import Tokenizer

from pegboard.errors import DataError, ModelError
from pegboard.plugins.load import Registry
from pegboard_tokenizers.loader import Loader

Files = dict[str, bytes]
MakeFiles = Callable[..., Files]


def change(files: Files, name: str, **values: Any) -> Files:
    content = json.loads(files.get(name, b"{}"))
    return {**files, name: json.dumps({**content, **values}).encode()}


def test_the_registry_finds_it_and_the_front_door_is_light() -> None:
    registry = Registry.discover()
    assert isinstance(registry.create("tokenizer", "tokenizers"), Loader)
    assert registry.auto("tokenizer").name == "tokenizers"
    code = "import sys, pegboard_tokenizers.plugin; print(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    heavy = ["torch", "tokenizers", "jinja2"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], check=True, capture_output=True, text=True)
    assert done.stdout == "\n"


def test_ids_are_those_of_the_library(make_files: MakeFiles) -> None:
    files = make_files()
    tokenizer, core = Loader().load(files, {}), Tokenizer.from_str(files["tokenizer.json"].decode())
    text = "the quick <tool> naïve 日本語<|im_end|>"
    assert tokenizer.encode(text) == core.encode(text).ids
    assert tokenizer.vocab_size == core.get_vocab_size(with_added_tokens=True)
    assert tokenizer.decode(tokenizer.encode(text)) == "the quick <tool> naïve 日本語"
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text
    assert tokenizer.decode([tokenizer.vocab_size + 7]) == ""


def test_roles_come_from_every_configuration(make_files: MakeFiles) -> None:
    files = make_files(eos_token={"content": "<|im_end|>", "lstrip": False}, pad_token=None)
    plain = Loader().load(files, {})
    assert (plain.bos_id, plain.eos_ids, plain.pad_id) == (1, (2,), None)
    several = change(files, "generation_config.json", eos_token_id=[5, 2, 0])
    tokenizer = Loader().load(several, {"eos_token_id": 5, "bos_token_id": 7, "pad_token_id": 8})
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2, 5, 0), 8)
    without = change(make_files(bos_token=None, eos_token=None), "special_tokens_map.json", eos_token="<|end|>")
    del without["tokenizer_config.json"]
    tokenizer = Loader().load(without, {"eos_token_id": [3, None, -1]})
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (None, (0, 3), None)


def test_tokenizer_config_goes_before_the_map(make_files: MakeFiles) -> None:
    files = change(make_files(), "special_tokens_map.json", eos_token="<|end|>")
    assert Loader().load(files, {}).eos_ids == (2,)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": False}, {"add_eos_token": True}])
def test_tokenizer_json_decides_what_goes_around_a_text(make_files: MakeFiles, flags: dict[str, Any]) -> None:
    tokenizer = Loader().load(make_files("byte_fallback", bos_token="<s>", eos_token="</s>", **flags), {})
    ids = tokenizer.encode("a", special=False)
    assert min(ids) > 2
    assert tokenizer.encode("a") == [1, *ids]


def test_tokens_are_added(make_files: MakeFiles) -> None:
    size = Loader().load(make_files(), {}).vocab_size
    extra = {
        str(size + 1): {"content": "<|later|>", "special": True},
        str(size): {"content": "<call>", "special": False, "rstrip": True},
    }
    files = make_files(added_tokens_decoder=extra, pad_token="<|pad|>", additional_special_tokens=["<|more|>"])
    tokenizer = Loader().load(files, {})
    assert tokenizer.vocab_size == size + 4
    assert tokenizer.encode("<call> <|later|>", special=False) == [size, size + 1]  # rstrip takes the space
    assert tokenizer.pad_id == size + 2
    assert tokenizer.decode([size, size + 1, size + 2, size + 3]) == "<call>"


def test_flags_of_known_tokens_are_taken_over(make_files: MakeFiles) -> None:
    first = Loader().load(make_files(), {})
    index = first.encode("<tool>")[0]
    assert first.decode([index]) == "<tool>"
    changed = make_files(added_tokens_decoder={str(index): {"content": "<tool>", "special": True}})
    assert Loader().load(changed, {}).decode([index]) == ""


def test_truncation_and_padding_of_the_file_are_off(make_files: MakeFiles) -> None:
    core = Tokenizer.from_str(make_files()["tokenizer.json"].decode())
    core.enable_truncation(2)
    core.enable_padding(length=50)
    files = {**make_files(), "tokenizer.json": core.to_str().encode()}
    text = "the lazy dog is lazy"
    assert Loader().load(files, {}).encode(text) == Loader().load(make_files(), {}).encode(text)


def test_own_files_come_back_as_they_were(make_files: MakeFiles) -> None:
    files = {
        **make_files(template="x"),
        "additional_chat_templates/tool_use.jinja": b"y",
        "README.md": b"no",
        "generation_config.json": b"{}",
    }
    kept = Loader().load(files, {}).files()
    assert kept == {name: files[name] for name in files if name not in ("README.md", "generation_config.json")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is not JSON"),
        ("tokenizer.json", b"[]", "tokenizer.json holds a list"),
        ("tokenizer.json", b"{}", "tokenizer.json is damaged or of a newer kind"),
        ("tokenizer.json", b'{"model": {"type": "Later"}}', "tokenizer.json is damaged or of a newer kind"),
        ("tokenizer.json", b"\xff\xfe", "tokenizer.json is not UTF-8"),
        ("tokenizer_config.json", b"nul", "tokenizer_config.json is not JSON"),
        ("tokenizer_config.json", b"[" * 100_000, "tokenizer_config.json is not JSON"),
        ("special_tokens_map.json", b"3", "special_tokens_map.json holds a int"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is not UTF-8"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "y"}}}', "no token id"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"3": "y"}}', "needs a `content`"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"0": {"content": "<|im_end|>"}}}', "the id 0"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"9999": {"content": "<|new|>"}}}', "the id 9999"),
    ],
)
def test_damage_is_named(make_files: MakeFiles, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Loader().load({**make_files(), name: content}, {})


def test_a_model_without_tokenizer_says_what_to_do(make_files: MakeFiles) -> None:
    files = make_files()
    del files["tokenizer.json"]
    with pytest.raises(ModelError, match=r"(?s)tokenizer.json is missing.*fix: copy"):
        Loader().load(files, {})
    with pytest.raises(ModelError, match=r"(?s)has tokenizer.model but no tokenizer.json.*save_pretrained"):
        Loader().load({**files, "tokenizer.model": b""}, {})


def test_half_a_character_is_no_text(make_files: MakeFiles) -> None:
    with pytest.raises(DataError, match=r"the text 'a\\ud800' has no token ids"):
        Loader().load(make_files(), {}).encode("a\ud800")


def test_text_that_the_vocabulary_cannot_spell(make_files: MakeFiles) -> None:
    content = json.loads(make_files("metaspace_always")["tokenizer.json"])
    content["model"]["unk_id"] = None
    tokenizer = Loader().load({"tokenizer.json": json.dumps(content).encode()}, {})
    with pytest.raises(DataError, match="has no token ids"):
        tokenizer.encode("日本")
