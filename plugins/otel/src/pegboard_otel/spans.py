"""From finished requests to spans.

Names: OpenTelemetry's semantic conventions for generative AI, https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from pegboard.interfaces.engine import RequestOutput, RequestRecord
from pegboard.types import SamplingParams

PROVIDER = "pegboard"
OPERATIONS = {"generate": "text_completion", "embed": "embeddings"}
OPEN = 4096
"""Requests of which some answers have ended; beyond that the oldest becomes a trace as it is."""

Ended = tuple[RequestOutput, RequestRecord]


class Requests:
    """Puts the answers to a request together into one trace. epoch: nanoseconds from the monotonic clock's zero to 1970."""

    def __init__(self, tracer: Tracer, epoch: int) -> None:
        self._tracer, self._epoch = tracer, epoch
        self._open: OrderedDict[str, list[Ended]] = OrderedDict()

    def ended(self, output: RequestOutput) -> None:
        """Take the last output of an answer; the request's trace is made with that of its last answer."""
        assert output.record is not None
        answers = self._open.setdefault(output.request_id, [])
        answers.append((output, output.record))
        if len(answers) >= output.record.params.n:
            self._trace(self._open.pop(output.request_id))
        elif len(self._open) > OPEN:
            self._trace(self._open.popitem(last=False)[1])

    def flush(self) -> None:
        """Make traces of requests whose other answers will not come any more."""
        while self._open:
            self._trace(self._open.popitem(last=False)[1])

    def _trace(self, answers: Sequence[Ended]) -> None:
        answers = sorted(answers, key=lambda pair: pair[0].index)
        first = answers[0][1]
        labels = first.options.labels
        parent = TraceContextTextMapPropagator().extract(labels)
        remote = get_current_span(parent).get_span_context().is_valid
        operation = labels.get("operation") or OPERATIONS[first.options.task]
        model = labels.get("model", "")
        span = self._tracer.start_span(
            f"{operation} {model}".rstrip(),
            context=parent,
            kind=SpanKind.SERVER if remote else SpanKind.INTERNAL,
            attributes={"gen_ai.operation.name": operation, **_attributes(answers, model)},
            start_time=self._wall(min(record.arrival for _, record in answers)),
        )
        for output, record in answers:
            if output.finish_reason in ("error", "timeout"):
                span.set_attribute("error.type", output.finish_reason)
                span.set_status(Status(StatusCode.ERROR, output.error or output.finish_reason))
            if span.is_recording():
                self._phases(span, output, record)
        span.end(self._wall(max(record.finished for _, record in answers)))

    def _phases(self, parent: Span, output: RequestOutput, record: RequestRecord) -> None:
        context = set_span_in_context(parent)
        several = {"pegboard.answer": output.index} if record.params.n > 1 else {}
        for name, begin, end, attributes in _parts(output, record):
            span = self._tracer.start_span(
                name, context=context, attributes={**several, **attributes}, start_time=self._wall(begin)
            )
            span.end(self._wall(end))

    def _wall(self, seconds: float) -> int:
        return self._epoch + round(seconds * 1e9)


def _parts(
    output: RequestOutput, record: RequestRecord
) -> Iterator[tuple[str, float, float, dict[str, AttributeValue]]]:
    """Yield name, begin, end and attributes of what an answer went through, as far as it came."""
    started, first = record.started, record.first_token
    yield "queue", record.arrival, record.finished if started is None else started, {}
    if started is None:
        return
    computed = output.num_prompt_tokens - record.num_cached_tokens
    yield "prefill", started, record.finished if first is None else first, {"pegboard.computed_tokens": computed}
    if first is not None and output.num_output_tokens > 1:
        yield "decode", first, record.finished, {"gen_ai.usage.output_tokens": output.num_output_tokens}


def _attributes(answers: Sequence[Ended], model: str) -> dict[str, AttributeValue]:
    outputs, records = [output for output, _ in answers], [record for _, record in answers]
    found: dict[str, AttributeValue] = {
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.response.id": outputs[0].request_id,
        "gen_ai.usage.input_tokens": outputs[0].num_prompt_tokens,
        "gen_ai.response.finish_reasons": [str(output.finish_reason) for output in outputs],
    }
    if model:
        found["gen_ai.request.model"] = model
    if records[0].options.adapter is not None:
        found["pegboard.adapter"] = records[0].options.adapter
    if cached := max(record.num_cached_tokens for record in records):
        found["gen_ai.usage.cache_read.input_tokens"] = cached
    firsts = [record.first_token - record.arrival for record in records if record.first_token is not None]
    if firsts:
        found["gen_ai.response.time_to_first_chunk"] = min(firsts)
    if records[0].options.task == "generate":
        found["gen_ai.usage.output_tokens"] = sum(output.num_output_tokens for output in outputs)
        found |= _sampling(records[0].params)
    return found


def _sampling(params: SamplingParams) -> dict[str, AttributeValue]:
    """Return how a request was sampled; what is at its default is left out, but for the two that everybody asks for."""
    found: dict[str, AttributeValue] = {
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.temperature": float(params.temperature),
    }
    defaults = SamplingParams()
    for name in ("top_p", "frequency_penalty", "presence_penalty"):
        if (value := getattr(params, name)) != getattr(defaults, name):
            found[f"gen_ai.request.{name}"] = float(value)
    if params.top_k:
        found["gen_ai.request.top_k"] = float(params.top_k)
    if params.seed is not None and -(2**63) <= params.seed < 2**63:  # more is no integer of OTLP
        found["gen_ai.request.seed"] = params.seed
    if params.stop:
        found["gen_ai.request.stop_sequences"] = list(params.stop)
    if params.n > 1:
        found["gen_ai.request.choice.count"] = params.n
    return found
