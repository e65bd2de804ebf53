"""Traces of real requests: what the engine notes about each, through the observer `otel`, to a collector that listens."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import httpx2 as httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.chaos import Server
from pegboard.interfaces.engine import RequestOptions
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_engine import LLM
from pegboard_otel.observer import RequestTraces

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SLACK = 5.0
"""Seconds by which the clocks of two processes may differ, as each knows the wall's time."""

Spans = dict[str, Any]
"""Of one trace: "root", and the phases by name, with a number behind it for each answer beyond the first."""


class Collector:
    """Keeps the spans that are sent to it over OTLP and HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                    spans.extend(span for scope in group.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def traces(self) -> dict[str, Spans]:
        """Return the traces by the engine's id of the request, which for texts has the number of the prompt behind it."""
        found = {}
        for _, spans in itertools.groupby(sorted(self.spans, key=lambda s: s.trace_id), key=lambda s: s.trace_id):
            members = list(spans)
            ids = {span.span_id for span in members}
            (root,) = [span for span in members if span.parent_span_id not in ids]
            trace: Spans = {"root": root}
            for span in members:
                if span is not root:
                    assert span.parent_span_id == root.span_id
                    number = attributes(span).get("pegboard.answer", 0)
                    trace[f"{span.name}{number or ''}"] = span
            found[attributes(root)["gen_ai.response.id"]] = trace
        return found


def attributes(span: Any) -> dict[str, Any]:
    """Return a span's attributes as plain values."""
    found = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


def begin(span: Any) -> float:
    return span.start_time_unix_nano / 1e9  # type: ignore[no-any-return]


def end(span: Any) -> float:
    return span.end_time_unix_nano / 1e9  # type: ignore[no-any-return]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.close()


@pytest.fixture
def server(toy_model: Path, collector: Collector, tmp_path: Path) -> Iterator[Server]:
    options = ["--platform", "cpu", "--dtype", "float32", "--threads", "1", "--kv-memory", "4MB", "--name", "toy"]
    made = Server(str(toy_model), [*options, "--set", "page_size=4"], tmp_path / "log")

    async def ready() -> None:
        async with aiohttp.ClientSession(made.url) as session:
            await made.ready(session)

    asyncio.run(ready())
    yield made
    if made.process.poll() is None:
        made.stop()


def phases_follow_each_other(trace: Spans, *, answers: int = 1) -> None:
    """Of each answer: it waits from the request's arrival on, is computed, and goes on until it ends."""
    for number in range(answers):
        queue, prefill, decode = (trace[f"{name}{number or ''}"] for name in ("queue", "prefill", "decode"))
        assert begin(queue) >= begin(trace["root"])
        assert begin(queue) <= end(queue) == begin(prefill) < end(prefill) == begin(decode) < end(decode)
        assert end(decode) <= end(trace["root"])
    assert end(trace["root"]) == max(end(span) for name, span in trace.items() if name.startswith("decode"))


@pytest.mark.slow
def test_every_request_to_a_server_is_a_trace(server: Server, collector: Collector) -> None:
    prompt = list(range(30, 50))
    body: dict[str, Any] = {"model": "toy", "prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    with httpx.Client(base_url=server.url, timeout=500) as client:

        def post(path: str, body: Mapping[str, Any], **headers: str) -> Any:
            response = client.post(path, json=body, headers=headers)
            assert response.status_code == 200, response.text
            return response.json()

        first = post("/v1/completions", body)
        sent, arrived, pieces = time.time(), 0.0, []
        parent = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}, headers=parent) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    arrived = arrived or time.time()
                    pieces.append(line)
        received = time.time()
        several = post("/v1/completions", {**body, "n": 3, "temperature": 1, "seed": 4, "top_p": 0.5})
        chat = post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "ignore_eos": True},
        )
        embedding = post("/v1/embeddings", {"model": "toy", "input": [prompt]})
        # A client that goes away, one whose grammar is none, and one whom the server refuses before the engine hears of it.
        missed = -1  # times that the answer was over before the server heard that nobody listens
        while 'pegboard_requests_aborted_total{cause="disconnect"} 1\n' not in (metrics := client.get("/metrics").text):
            if "\npegboard_requests_running 0\n" in metrics:
                missed += 1
                leave = client.stream("POST", "/v1/completions", json={**body, "max_tokens": 200, "stream": True})
                with leave as response:
                    next(response.iter_lines())
        assert client.post("/v1/completions", json={**body, "guided_regex": "("}).status_code == 400
        assert client.post("/v1/completions", json={**body, "temperature": -1}).status_code == 400
    assert server.stop() == 0
    assert pieces
    traces = collector.traces()
    reasons = sorted(
        reason for t in traces.values() for reason in attributes(t["root"])["gen_ai.response.finish_reasons"]
    )
    # One more than was asked for here: the request that warms a server up.
    assert reasons == ["abort", "error", *["length"] * (7 + missed), "stop"]

    trace = traces[first["id"] + "-0"]
    told = attributes(trace["root"])
    assert trace["root"].name == "text_completion toy"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (20, 12)
    assert attributes(trace["prefill"]) == {"pegboard.computed_tokens": 20}
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    first_token = end(trace["prefill"]) - begin(trace["root"])
    assert told["gen_ai.response.time_to_first_chunk"] == pytest.approx(first_token, abs=1e-6)
    phases_follow_each_other(trace)

    (trace,) = [t for t in traces.values() if t["root"].trace_id.hex() == TRACE]
    assert trace["root"].parent_span_id.hex() == PARENT
    phases_follow_each_other(trace)
    # What the client saw of it lies around what the engine noted.
    assert sent - SLACK <= begin(trace["root"])
    assert end(trace["prefill"]) <= arrived + SLACK
    assert end(trace["root"]) <= received + SLACK
    told = attributes(trace["root"])
    # Of a prompt that is known as a whole one token is computed.
    assert told["gen_ai.usage.cache_read.input_tokens"] == 19
    assert attributes(trace["prefill"]) == {"pegboard.computed_tokens": 1}

    trace = traces[several["id"] + "-0"]
    phases_follow_each_other(trace, answers=3)
    told = attributes(trace["root"])
    assert (told["gen_ai.request.choice.count"], told["gen_ai.usage.output_tokens"]) == (3, 36)
    assert (told["gen_ai.request.seed"], told["gen_ai.request.top_p"]) == (4, 0.5)

    assert traces[chat["id"]]["root"].name == "chat toy"
    told = attributes(traces[chat["id"]]["root"])
    usage = chat["usage"]
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    (trace,) = [t for t in traces.values() if t["root"].name == "embeddings toy"]
    assert sorted(trace) == ["prefill", "queue", "root"]
    assert attributes(trace["root"])["gen_ai.usage.input_tokens"] == embedding["usage"]["prompt_tokens"] == 20
    (trace,) = [t for t in traces.values() if attributes(t["root"]).get("error.type")]
    assert (sorted(trace), attributes(trace["root"])["error.type"]) == (["queue", "root"], "error")


def test_requests_of_the_python_api_are_traces(toy_model: Path) -> None:
    registry, exporter = Registry.discover(), InMemorySpanExporter()
    observer = RequestTraces(exporter=exporter)
    registry.hooks.register(observer, "traces")
    before = time.time()
    options = {"platform": "cpu", "dtype": "float32", "kv_memory": "4MB", "page_size": 4, "max_num_seqs": 2}
    with LLM(str(toy_model), registry=registry, **options) as llm:
        params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
        generations = llm.generate(
            [list(range(20, 30 + n)) for n in range(6)], params, RequestOptions(labels={"model": "toy"})
        )
    after = time.time()
    observer.close()
    spans = exporter.get_finished_spans()
    roots = [span for span in spans if span.parent is None]
    assert sorted(dict(root.attributes or {})["gen_ai.usage.input_tokens"] for root in roots) == list(range(10, 16))
    assert {root.name for root in roots} == {"text_completion toy"}
    computed = {}
    for root in roots:
        mine = {span.name: span for span in spans if span.parent and span.parent.span_id == root.context.span_id}
        queue, prefill, decode = (mine[name] for name in ("queue", "prefill", "decode"))
        times = [root.start_time, queue.end_time, prefill.end_time, decode.end_time]
        assert times == sorted(set(times))  # type: ignore[type-var]
        assert [queue.start_time, prefill.start_time, decode.start_time, root.end_time] == times[:3] + times[3:]
        assert before - SLACK <= root.start_time / 1e9 <= root.end_time / 1e9 <= after + SLACK
        told = dict(root.attributes or {})
        cached = told.get("gen_ai.usage.cache_read.input_tokens", 0)
        computed[told["gen_ai.usage.input_tokens"]] = dict(prefill.attributes or {})["pegboard.computed_tokens"], cached
    assert [(len(one.prompt_token_ids) - one.num_cached_tokens, one.num_cached_tokens) for one in generations] == [
        computed[len(one.prompt_token_ids)] for one in generations
    ]
    # Two at a time may run: the others wait, and their traces say so.
    waits = sorted(span.end_time - span.start_time for span in spans if span.name == "queue")
    ran = min(span.end_time - span.start_time for span in spans if span.name == "decode")
    assert waits[2] > ran
