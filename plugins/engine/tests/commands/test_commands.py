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


def test_an_adapter_beside_the_model(peg: Peg, folder: Path, tuned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, merged = (peg("generate", model, "hello", *TINY).out for model in (folder, tuned))
    assert plain != merged
    assert peg("generate", folder, "hello", "--adapter", tuned, *TINY).out == merged
    assert (
        json.loads(peg("generate", folder, "hello", "--adapter", tuned, *TINY, "--json").out)["text"] + "\n" == merged
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert peg("chat", folder, "--adapter", tuned, *TINY).out == merged
    said = peg("generate", folder, "hello", "--adapter", folder, *TINY)
    assert (said.status, "is no folder of an adapter" in said.err) == (2, True)


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
    assert list(row["itl_ms"]) == ["p50", "p90", "p99"]
    assert 0 < row["itl_ms"]["p50"] <= row["itl_ms"]["p99"]
    out = peg("bench", "offline", folder, "--workload", "stream", "--repetitions", "1").out
    assert "out tokens/s" in out
    assert "ms a token" in out


def test_bench_writes_files(peg: Peg, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    asked = []

    def requests(seed: int) -> list[tuple[list[int], int]]:
        asked.append(seed)
        return [([1 + seed % 9, 2, 3], 4)]

    for name in ("stream", "single"):
        monkeypatch.setitem(WORKLOADS, name, replace(WORKLOADS[name], requests=requests))
    figures, picture = tmp_path / "figures.json", tmp_path / "tokens.png"
    said = peg(
        *("bench", "offline", folder, "--workload", "stream", "--workload", "single", "--repetitions", "2"),
        *("--seed", "7", "--json", figures, "--plot", picture),
    )
    assert said.status == 0, said.err
    assert set(asked) == {7, 8}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [row["workload"] for row in json.loads(figures.read_text())["workloads"]] == ["stream", "single"]
    assert "out tokens/s" in said.out
    said = peg("bench", "offline", folder, "--workload", "stream", "--plot", "x.txt")
    assert (said.status, "is no picture" in said.err) == (2, True)
    said = peg("bench", "offline", folder, "--workload", "stream", "--json", "/nowhere/x")
    assert (said.status, "does not exist" in said.err) == (2, True)


def test_tokens_of_one_step_share_its_time() -> None:
    from pegboard_engine.commands.bench import Run

    run = Run({"a": [(1.0, 1), (2.0, 2), (5.0, 1)], "b": [(0.5, 1)]}, 5.0)
    assert run.first == 0.5
    assert run.gaps == [0.5, 0.5, 3.0]


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
