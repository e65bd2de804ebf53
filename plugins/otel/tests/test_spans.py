"""Traces of finished requests, read back from the SDK's exporter in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from pegboard.interfaces.engine import RequestOptions, RequestOutput, RequestRecord
from pegboard.types import SamplingParams
from pegboard_otel.spans import Requests

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
EPOCH = 1_700_000_000 * 10**9

Trace = Callable[..., list[ReadableSpan]]


def ended(
    *times: float | None,
    reason: Any = "stop",
    index: int = 0,
    params: SamplingParams | None = None,
    options: RequestOptions | None = None,
    tokens: int = 5,
    cached: int = 0,
    **fields: Any,
) -> RequestOutput:
    arrival, started, first, finished = times or (10.0, 11.0, 13.0, 17.0)
    assert arrival is not None
    assert finished is not None
    record = RequestRecord(
        params or SamplingParams(), options or RequestOptions(), arrival, started, first, finished, cached
    )
    return RequestOutput(
        "r-1",
        finish_reason=reason,
        index=index,
        num_prompt_tokens=30,
        num_output_tokens=tokens,
        record=record,
        **fields,
    )


@pytest.fixture
def trace() -> Iterator[Trace]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def make(*outputs: RequestOutput, flush: bool = False) -> list[ReadableSpan]:
        requests = Requests(provider.get_tracer("test"), EPOCH)
        for output in outputs:
            requests.ended(output)
        if flush:
            requests.flush()
        spans = exporter.get_finished_spans()
        return sorted(spans, key=lambda span: (span.name in ("queue", "prefill", "decode"), span.start_time or 0))

    yield make
    provider.shutdown()


def seconds(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.start_time - EPOCH) / 1e9, (span.end_time - EPOCH) / 1e9


def test_a_request_and_its_phases(trace: Trace) -> None:
    root, *phases = trace(ended(cached=16, params=SamplingParams(temperature=0.5, max_tokens=9)))
    assert [span.name for span in phases] == ["queue", "prefill", "decode"]
    assert [seconds(span) for span in (root, *phases)] == [(10, 17), (10, 11), (11, 13), (13, 17)]
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for span in phases)
    assert {span.context.trace_id for span in phases} == {root.context.trace_id}
    assert root.parent is None
    assert (root.name, root.kind) == ("text_completion", SpanKind.INTERNAL)
    assert root.status.status_code is StatusCode.UNSET
    assert dict(root.attributes or {}) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "pegboard",
        "gen_ai.response.id": "r-1",
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.response.time_to_first_chunk": 3.0,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.temperature": 0.5,
    }
    assert dict(phases[1].attributes or {}) == {"pegboard.computed_tokens": 14}


def test_attribute_names_are_those_of_the_conventions(trace: Trace) -> None:
    from opentelemetry.semconv._incubating.attributes import error_attributes, gen_ai_attributes

    known = {str(value) for module in (gen_ai_attributes, error_attributes) for value in vars(module).values()}
    params = SamplingParams(top_p=0.5, top_k=3, frequency_penalty=0.5, presence_penalty=0.5, seed=7, stop=("x",), n=2)
    options = RequestOptions(adapter="a", labels={"model": "m"})
    outputs = [ended(reason="error", index=index, params=params, options=options, cached=1) for index in range(2)]
    names = {name for span in trace(*outputs) for name in span.attributes or {}}
    assert len(names) > 18
    assert {name for name in names if name not in known} == {
        "pegboard.adapter",
        "pegboard.answer",
        "pegboard.computed_tokens",
    }


def test_the_callers_trace_goes_on(trace: Trace) -> None:
    labels = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b", "model": "m", "operation": "chat"}
    root, *phases = trace(ended(options=RequestOptions(labels=labels)))
    assert (root.name, root.kind) == ("chat m", SpanKind.SERVER)
    assert f"{root.context.trace_id:032x}" == TRACE
    assert root.parent is not None
    assert f"{root.parent.span_id:016x}" == PARENT
    assert root.context.trace_state.get("a") == "b"
    assert {f"{span.context.trace_id:032x}" for span in phases} == {TRACE}


def test_a_caller_that_does_not_sample(trace: Trace) -> None:
    labels = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert trace(ended(options=RequestOptions(labels=labels))) == []


@pytest.mark.parametrize("text", ["", "00-x-y-01", "ff" * 200, f"00-{'0' * 32}-{PARENT}-01", "\ud800"])
def test_a_traceparent_that_is_none(trace: Trace, text: str) -> None:
    root, *_ = trace(ended(options=RequestOptions(labels={"traceparent": text})))
    assert root.parent is None


def test_several_answers_are_one_trace(trace: Trace) -> None:
    params = SamplingParams(n=2)
    later = ended(10.0, 11.0, 14.0, 18.0, index=0, params=params, reason="length", tokens=7)
    root, *phases = trace(ended(index=1, params=params), later)
    assert seconds(root) == (10, 18)
    assert root.attributes is not None
    assert root.attributes["gen_ai.response.finish_reasons"] == ("length", "stop")
    assert root.attributes["gen_ai.usage.output_tokens"] == 12
    assert root.attributes["gen_ai.request.choice.count"] == 2
    assert sorted((span.name, (span.attributes or {})["pegboard.answer"]) for span in phases) == [
        (name, index) for name in ("decode", "prefill", "queue") for index in (0, 1)
    ]
    assert root.parent is None


def test_answers_that_never_come(trace: Trace) -> None:
    output = ended(params=SamplingParams(n=2))
    assert trace(output) == []
    assert len(trace(output, flush=True)) == 4


def test_requests_that_ended_early(trace: Trace) -> None:
    root, queue = trace(ended(10.0, None, None, 12.0, reason="timeout", tokens=0))
    assert (queue.name, seconds(queue)) == ("queue", (10, 12))
    assert root.status.status_code is StatusCode.ERROR
    assert (root.attributes or {})["error.type"] == "timeout"
    assert "gen_ai.response.time_to_first_chunk" not in (root.attributes or {})


def test_an_error_in_the_first_step(trace: Trace) -> None:
    root, *phases = trace(ended(10.0, 11.0, None, 12.0, reason="error", tokens=0, error="it broke"))
    assert [(span.name, seconds(span)) for span in phases] == [("queue", (10, 11)), ("prefill", (11, 12))]
    assert (root.status.status_code, root.status.description) == (StatusCode.ERROR, "it broke")


def test_an_abort_is_no_error(trace: Trace) -> None:
    assert trace(ended(reason="abort"))[0].status.status_code is StatusCode.UNSET


def test_an_embedding(trace: Trace) -> None:
    root, *phases = trace(ended(10.0, 11.0, None, 12.0, options=RequestOptions(task="embed"), tokens=0))
    assert [span.name for span in phases] == ["queue", "prefill"]
    assert root.name == "embeddings"
    assert not [name for name in root.attributes or {} if name.startswith("gen_ai.request")]
