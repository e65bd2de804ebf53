"""`peg bench serve` against a real server on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pegboard_sdk.peg import Said

Peg = Callable[..., Said]


def bench(peg: Peg, server: Any, *options: object) -> Any:
    said = peg("bench", "serve", server.url, "--json", "-", *options)
    assert said.status == 0, said.err
    return json.loads(said.out)


def test_a_sweep(peg: Peg, server: Any) -> None:
    told = bench(
        peg,
        server,
        *(
            "--rate",
            "500,inf",
            "--requests",
            "6",
            "--output-tokens",
            "3:5",
            "--input-tokens",
            "4",
            "--goodput",
            "ttft:60000",
        ),
    )
    assert (told["model"], told["endpoint"], told["workload"]) == ("ok", "completions", "random")
    assert [run["rate"] for run in told["runs"]] == ["500", "inf"]
    # One warm-up, and fresh prompts in each run.
    assert len(server.bodies) == 13
    assert len({tuple(prompt) for prompt in server.prompts}) == 13
    assert all(body["ignore_eos"] and body["stream"] and body["temperature"] == 0 for body in server.bodies)
    lengths = [body["max_tokens"] for body in server.bodies[1:]]
    for run, wanted in zip(told["runs"], (lengths[:6], lengths[6:]), strict=True):
        assert (run["completed"], run["failed"]) == (6, 0)
        assert run["output_tokens"] == sum(wanted)
        assert run["input_tokens"] == 6 * 7
        assert run["output_tokens_counted_by"] == "server"
        assert run["goodput"]["share"] == 1
        assert 0 < run["ttft_ms"]["p50"] <= run["e2el_ms"]["p50"]
        assert run["itl_ms"]["mean"] >= 0


def test_requests_of_a_seed_are_the_same(peg: Peg, server: Any) -> None:
    options = ("--requests", "3", "--warmup", "0", "--seed", "5")
    bench(peg, server, *options)
    bench(peg, server, *options)
    assert sorted(server.prompts[:3]) == sorted(server.prompts[3:])


def test_chats(peg: Peg, server: Any, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n"ho"\n')
    told = bench(peg, server, "--prompts", path, "--requests", "4", "--output-tokens", "3", "--body", '{"top_p": 0.5}')
    assert told["endpoint"] == "chat"
    assert {body["messages"][0]["content"] for body in server.bodies} == {"hi", "ho"}
    assert all(body["top_p"] == 0.5 and "ignore_eos" not in body for body in server.bodies)
    # Three tokens each; neither the role nor the end is one.
    assert told["runs"][0]["output_tokens"] == 12


def test_pieces_are_counted_where_the_server_counts_nothing(peg: Peg, server: Any) -> None:
    for endpoint in ("completions", "chat"):
        told = bench(
            peg, server, "--model", "no usage", "--endpoint", endpoint, "--requests", "2", "--output-tokens", "5"
        )
        assert told["runs"][0]["output_tokens"] == 10
        assert told["runs"][0]["output_tokens_counted_by"] == "pieces"


def test_headers(peg: Peg, server: Any) -> None:
    bench(peg, server, "--requests", "1", "--warmup", "0", "--api-key", "secret", "--header", "X-Tenant: me")
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert server.headers[0]["X-Tenant"] == "me"


@pytest.mark.parametrize(
    ("mode", "kind", "detail"),
    [
        ("full", "http 429", "too many requests"),
        ("plain", "no stream", "application/json"),
        ("cut", "cut off", "before the answer did"),
        ("reset", "connection lost", ""),
        ("error", "error event", "it broke"),
        ("garbage", "bad event", "no JSON"),
        ("odd", "bad event", "OpenAI's shape"),
        ("hang", "timeout", "0.05 s"),
    ],
)
def test_failures_by_kind(peg: Peg, server: Any, mode: str, kind: str, detail: str) -> None:
    timeout = "0.05" if mode == "hang" else "60"
    told = bench(peg, server, "--model", mode, "--requests", "3", "--warmup", "0", "--timeout", timeout)
    (run,) = told["runs"]
    assert (run["completed"], run["failed"]) == (0, 3)
    assert run["failures"][kind]["count"] == 3
    assert detail in run["failures"][kind]["example"]
    assert run["ttft_ms"] is None


def test_some_fail(peg: Peg, server: Any) -> None:
    said = peg("bench", "serve", server.url, "--model", "every third fails", "--requests", "9", "--warmup", "0")
    assert said.status == 0
    assert "rate inf: 6 of 9 requests" in said.out
    assert "failed: 3 x http 500: no" in said.out


def test_concurrency(peg: Peg, server: Any) -> None:
    told = bench(peg, server, "--model", "crowd", "--requests", "20", "--warmup", "0", "--max-concurrency", "4")
    assert server.most == 4
    assert told["runs"][0]["peak_concurrency"] <= 4
    assert told["runs"][0]["completed"] == 20


def test_no_bound_on_open_requests(peg: Peg, server: Any) -> None:
    told = bench(peg, server, "--model", "crowd", "--requests", "40", "--warmup", "0")
    assert told["runs"][0]["max_concurrency"] is None
    assert server.most >= 4
    assert told["runs"][0]["completed"] == 40


def test_a_late_load_generator_is_told() -> None:
    from pegboard_bench.report import run_lines
    from pegboard_bench.samples import Sample, summary

    samples = [Sample(0.0, 0.2, [0.3], 1, 1, counted=True)]
    for concurrency, said in ((None, True), (4, False)):
        told = {"rate": "2", "max_concurrency": concurrency, **summary(samples, 1.0)}
        assert ("late, by 200 ms at p99" in "\n".join(run_lines(told))) is said


def test_duration(peg: Peg, server: Any) -> None:
    told = bench(peg, server, "--duration", "0.3", "--rate", "100", "--burstiness", "inf", "--warmup", "0")
    # One each 10 ms before the end; a slow machine sends fewer.
    assert 1 <= told["runs"][0]["completed"] <= 30
    told = bench(peg, server, "--duration", "0.1", "--max-concurrency", "2", "--warmup", "0")
    assert told["runs"][0]["completed"] >= 2
    assert server.most <= 30


def test_a_table_and_a_picture(peg: Peg, server: Any, tmp_path: Path) -> None:
    picture, figures = tmp_path / "latency.png", tmp_path / "figures.json"
    said = peg(
        *("bench", "serve", server.url, "--rate", "300,inf", "--requests", "3"),
        *("--plot", picture, "--json", figures, "--goodput", "ttft:60000,tpot:60000"),
    )
    assert said.status == 0, said.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(figures.read_text())["runs"]) == 2
    assert "time to first token" in said.out
    assert "goodput" in said.out
    assert said.out.count("rate inf: 3 of 3 requests") == 1
    assert said.out.splitlines()[-3].split()[:2] == ["rate", "requests/s"]


def test_a_picture_without_matplotlib(peg: Peg, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = peg("bench", "serve", server.url, "--plot", "x.png")
    assert said.status == 2
    assert "pip install 'pegboard-bench[plot]'" in said.err
    assert not server.bodies


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rate", "0"), "is no rate"),
        (("--duration", "1"), "has no end"),
        (("--workload", "batch23"), "did you mean 'batch32'?"),
        (("--workload", "stream", "--endpoint", "chat"), "is token ids"),
        (("--burstiness", "x"), "--burstiness 'x'"),
        (("--header", "x"), "is no header"),
        (("--body", "[]"), "--body is []"),
        (("--body", "{"), "--body is no JSON"),
        (("--plot", "x.doc"), "is no picture"),
        (("--plot", "/nowhere/x.png"), "does not exist"),
        (("--json", "/nowhere/x"), "does not exist"),
    ],
)
def test_bad_options(peg: Peg, server: Any, options: tuple[str, ...], said: str) -> None:
    answer = peg("bench", "serve", server.url, *options)
    assert answer.status == 2
    assert said in answer.err
    assert not server.bodies


def test_no_server(peg: Peg, server: Any) -> None:
    said = peg("bench", "serve", "http://127.0.0.1:9")
    assert said.status == 2
    assert "cannot be reached" in said.err
    assert "is no URL" in peg("bench", "serve", "localhost:8000").err
    said = peg("bench", "serve", server.url, "--model", "full")
    assert said.status == 2
    assert "does not answer: http 429, too many requests" in said.err
