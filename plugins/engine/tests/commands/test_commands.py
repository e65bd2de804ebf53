"""`peg generate`, `peg chat` and `peg bench offline` on a tiny model."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pegboard_engine.workloads import WORKLOADS
from pegboard_sdk.peg import Said

TINY = ("--dtype", "float32", "--max-tokens", "6", "--temperature", "0")
Peg = Callable[..., Said]


def test_generate_streams_one_prompt(peg: Peg, folder: Path) -> None:
    said = peg("generate", folder, "hello", *TINY)
    assert said.status == 0
    again = peg("generate", folder, "hello", *TINY, "--json").out
    row = json.loads(again)
    assert said.out == row["text"] + "\n"
    assert row["finish_reason"] in ("length", "stop")


def test_generate_answers_several_prompts_together(peg: Peg, folder: Path) -> None:
    out = peg("generate", folder, "hello", "world", "--raw", *TINY, "--json").out
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["prompt"] for row in rows] == ["hello", "world"]
    assert rows[0]["text"] == json.loads(peg("generate", folder, "hello", "--raw", *TINY, "--json").out)["text"]
    out = peg("generate", folder, "hello", "world", *TINY).out
    assert "> hello\n" in out
    assert "> world\n" in out


def test_a_prompt_from_standard_input(peg: Peg, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello"))
    piped = peg("generate", folder, "-", *TINY).out
    assert piped == peg("generate", folder, "hello", *TINY).out


def test_seed_makes_sampling_repeatable(peg: Peg, folder: Path) -> None:
    sampled = ("--dtype", "float32", "--max-tokens", "8", "--temperature", "1.5", "--seed")
    assert peg("generate", folder, "a", *sampled, "3").out == peg("generate", folder, "a", *sampled, "3").out
    assert peg("generate", folder, "a", *sampled, "3").out != peg("generate", folder, "a", *sampled, "4").out


def test_system_message_and_stop(peg: Peg, folder: Path) -> None:
    plain = json.loads(peg("generate", folder, "hello", *TINY, "--json").out)
    system = json.loads(peg("generate", folder, "hello", "--system", "world", *TINY, "--json").out)
    assert system["num_prompt_tokens"] > plain["num_prompt_tokens"]
    end = plain["text"][2:3]
    stopped = json.loads(peg("generate", folder, "hello", "--stop", end, *TINY, "--json").out)
    assert stopped["text"] == plain["text"][: plain["text"].index(end)]
    assert stopped["finish_reason"] == "stop"


def test_chat_remembers_the_conversation(peg: Peg, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(text: str) -> list[str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        said = peg("chat", folder, *TINY)
        assert said.status == 0
        return said.out.splitlines()

    once, twice = talk("hello\n"), talk("hello\n\nhello\n")
    assert twice[0] == once[0]
    assert twice[1:] != once
    assert talk("world\n/new\nhello\n")[-1:] == once[-1:]


def test_chat_survives_a_message_that_is_too_long(peg: Peg, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 300 + "\nhello\n"))
    said = peg("chat", folder, *TINY)
    assert said.status == 0
    assert "the prompt has" in said.err
    assert said.out


def test_bench(peg: Peg, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    small = replace(WORKLOADS["stream"], requests=lambda seed: [([1 + seed, 2, 3], 5), ([4], 3)])
    monkeypatch.setitem(WORKLOADS, "stream", small)
    said = peg("bench", "offline", folder, "--workload", "stream", "--repetitions", "2", "--json")
    assert said.status == 0
    told = json.loads(said.out)
    (row,) = told["workloads"]
    assert row["workload"] == "stream"
    assert len(row["all"]) == 2
    assert row["value"] > 0
    assert told["peak_rss_mb"] > 0
    out = peg("bench", "offline", folder, "--workload", "stream", "--repetitions", "1").out
    assert "out tokens/s" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{model}", "hi", "--top-p", "3"), "top_p is 3.0"),
        (("{model}", "hi", "--max-tokens", "0"), "max_tokens is 0"),
        (("{model}", "hi", "--raw", "--system", "x"), "--system needs a chat template"),
        (("{model}", "x" * 400), "the prompt has"),
        (("{model}", "hi", "--dtype", "int7"), "dtype is 'int7'"),
        (("{model}", "hi", "--set", "page_sise=3"), "page_sise"),
        (("{model}", "hi", "--set", "page_size"), "--set 'page_size' is no setting"),
        (("{model}", "hi", "--kv-memory", "lots"), "no amount of memory"),
        (("{model}", "hi", "--attention", "spda"), "'spda'"),
        (("{model}", "hi", "--platform", "cup"), "'cup'"),
        (("nowhere.gguf", "hi"), "no file or folder nowhere.gguf"),
        (("{bare}", "hi"), "tokenizer"),
    ],
)
def test_mistakes_are_told_in_a_few_lines(
    peg: Peg, folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / name, bare)
    filled = [argument.format(model=folder, bare=bare) for argument in arguments]
    said = peg("generate", *filled)
    assert said.status == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.err[said.err.index("error: ") :].count("\n") <= 7
