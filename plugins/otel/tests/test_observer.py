"""The observer, from the engine's hook to a collector that really listens."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import RequestOptions, RequestOutput, RequestRecord
from pegboard.plugins.hooks import HookRelay
from pegboard.plugins.load import Registry
from pegboard.types import SamplingParams
from pegboard_otel.observer import RequestTraces
from pegboard_otel.options import TraceOptions


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def output(name: str = "r") -> RequestOutput:
    now = time.monotonic()
    record = RequestRecord(SamplingParams(), RequestOptions(), now - 4, now - 3, now - 2, now)
    return RequestOutput(name, finish_reason="stop", num_prompt_tokens=3, num_output_tokens=4, record=record)


class Collector(BaseHTTPRequestHandler):
    """Keeps what is sent to it."""

    got: list[tuple[str, str | None, ExportTraceServiceRequest]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.got.append((self.path, self.headers.get("x-team"), ExportTraceServiceRequest.FromString(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def collector() -> Iterator[tuple[str, type[Collector]]]:
    kind = type("Here", (Collector,), {"got": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", kind
    server.shutdown()
    thread.join()
    server.server_close()


def test_off_unless_told_where_to(monkeypatch: pytest.MonkeyPatch) -> None:
    others = threading.enumerate()
    quiet = RequestTraces()
    quiet.request_finished(output())
    assert quiet.doctor() is None
    quiet.close()
    assert not [t for t in threading.enumerate() if t.name == "pegboard-otel" and t not in others]
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
            patch.setenv(name, value)
            assert RequestTraces().doctor() is None


def test_off_imports_no_sdk() -> None:
    import subprocess
    import sys

    code = "import sys; from pegboard_otel.observer import RequestTraces as R; R(); print('opentelemetry.sdk' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "False\n"


def test_spans_come_to_the_collector(monkeypatch: pytest.MonkeyPatch, collector: tuple[str, type[Collector]]) -> None:
    url, kind = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-team=us")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "assistant")
    registry = Registry.discover()
    observer = registry.create("hooks", "otel")
    relay = HookRelay(pytest.fail)
    relay.register(observer, "otel")
    assert relay.call("doctor") == [[f"traces of requests go to {url}"]]
    before = time.time_ns()
    relay.call("request_finished", output=output("one"))
    relay.call("request_finished", output=output("two"))
    observer.close()
    observer.close()
    assert {(path, team) for path, team, _ in kind.got} == {("/v1/traces", "us")}
    groups = [group for _, _, sent in kind.got for group in sent.resource_spans]
    assert {a.value.string_value for group in groups for a in group.resource.attributes if a.key == "service.name"} == {
        "assistant"
    }
    spans = [span for group in groups for scope in group.scope_spans for span in scope.spans]
    assert sorted(span.name for span in spans) == sorted(["text_completion", "queue", "prefill", "decode"] * 2)
    # Wall time, as far as two clocks agree.
    ends = [span.end_time_unix_nano for span in spans if span.name == "decode"]
    assert all(abs(end - before) < 600e9 for end in ends)


def test_the_endpoint_as_an_option(collector: tuple[str, type[Collector]]) -> None:
    url, kind = collector
    observer = Registry.discover().create("hooks", {"use": "otel", "endpoint": url + "/"})
    observer.request_finished(output())
    observer.close()
    assert [path for path, _, _ in kind.got] == ["/v1/traces"]


class Blocked(SpanExporter):
    """A collector that does not answer until it is let."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.free.wait()
        return SpanExportResult.SUCCESS


def test_a_slow_collector_blocks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    exporter = Blocked()
    observer = RequestTraces(TraceOptions(queue=2), exporter)
    try:
        for _ in range(20_000):
            observer.request_finished(output())
        # It would never come here otherwise.
        assert not exporter.free.is_set()
        assert caplog.text.count("some are dropped") == (observer.num_dropped > 0)
    finally:
        exporter.free.set()
        observer.close()


def test_requests_without_a_record_have_no_trace() -> None:
    exporter = InMemorySpanExporter()
    observer = RequestTraces(exporter=exporter)
    observer.request_finished(RequestOutput("r", finish_reason="stop"))
    observer.close()
    assert exporter.get_finished_spans() == ()


def test_a_protocol_that_is_not_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="traces by 'grpc' cannot be sent"):
        RequestTraces()


def test_what_is_queued_is_sent_at_the_end_of_the_process(collector: tuple[str, type[Collector]]) -> None:
    import os
    import subprocess
    import sys

    url, kind = collector
    code = """
from pegboard.interfaces.engine import RequestOptions, RequestOutput, RequestRecord
from pegboard.types import SamplingParams
from pegboard_otel.observer import RequestTraces
observer = RequestTraces()
record = RequestRecord(SamplingParams(), RequestOptions(), 1.0, 2.0, 3.0, 4.0)
observer.request_finished(RequestOutput("r", finish_reason="stop", num_output_tokens=4, record=record))
"""
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": url}
    said = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert said.stderr == ""
    (sent,) = [sent for _, _, sent in kind.got]
    assert len(sent.resource_spans[0].scope_spans[0].spans) == 4
