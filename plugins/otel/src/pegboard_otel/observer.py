"""The observer: takes finished requests from the engine's thread, and makes spans of them in one of its own."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from typing import TYPE_CHECKING

from pegboard.errors import ConfigError
from pegboard.interfaces.engine import RequestOutput
from pegboard.interfaces.hooks import Hooks
from pegboard.plugins.hooks import hookimpl
from pegboard_otel.options import TraceOptions

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger("pegboard.otel")

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"


class RequestTraces(Hooks):
    """Sends a trace of every request. Off, and without an import of the SDK, where nobody says where to."""

    def __init__(self, options: TraceOptions | None = None, exporter: SpanExporter | None = None) -> None:
        """exporter: takes the spans in place of a collector. Raises ConfigError for a protocol that is not spoken."""
        self.options = options or TraceOptions()
        self.num_dropped = 0
        self._queue: queue.Queue[RequestOutput | None] = queue.Queue(self.options.queue)
        self._thread: threading.Thread | None = None
        self._closing = False
        # Records have times of the monotonic clock, spans those of the wall.
        self._epoch = time.time_ns() - time.monotonic_ns()
        if exporter is None and not self.endpoint:
            return
        self._provider = self._make_provider(exporter)
        self._thread = threading.Thread(target=self._work, name="pegboard-otel", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def endpoint(self) -> str:
        """Where traces go; empty for nowhere."""
        if (
            os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
            or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
        ):
            return ""
        return self.options.endpoint or next((value for name in ENDPOINTS if (value := os.environ.get(name))), "")

    @hookimpl
    def request_finished(self, output: RequestOutput) -> None:
        if self._thread is None or output.record is None:
            return
        try:
            self._queue.put_nowait(output)
        except queue.Full:
            if self.num_dropped == 0:
                log.warning("requests end faster than their traces are made: some are dropped")
            self.num_dropped += 1

    @hookimpl
    def doctor(self) -> list[str] | None:
        return [f"traces of requests go to {self.endpoint}"] if self._thread is not None else None

    def close(self) -> None:
        """Send what is queued and end. Safe to call twice."""
        if self._thread is None or self._closing:
            return
        self._closing = True
        atexit.unregister(self.close)
        self._queue.put(None)
        self._thread.join()
        self._provider.shutdown()

    def _work(self) -> None:
        from pegboard_otel.spans import Requests

        requests = Requests(self._provider.get_tracer("pegboard"), self._epoch)
        while (output := self._queue.get()) is not None:
            try:
                requests.ended(output)
            except Exception as error:
                log.warning("a request has no trace: %s: %s", type(error).__name__, error)
        requests.flush()

    def _make_provider(self, exporter: SpanExporter | None) -> TracerProvider:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        if exporter is None:
            protocol = next((value for name in PROTOCOLS if (value := os.environ.get(name))), SPOKEN)
            if protocol != SPOKEN:
                raise ConfigError(
                    f"traces by {protocol!r} cannot be sent", fix=f"set {PROTOCOLS[1]}={SPOKEN}, on port 4318 usually"
                )
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            given = self.options.endpoint
            exporter = OTLPSpanExporter(f"{given.rstrip('/')}/v1/traces" if given else None)
        # What the environment says goes before this name.
        name = os.environ.get("OTEL_SERVICE_NAME") or "pegboard"
        resource = Resource.create({} if "service.name=" in _attributes() else {SERVICE_NAME: name})
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return provider


def _attributes() -> str:
    return os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
