"""Spans of requests for OpenTelemetry, if the process has it configured.

`opentelemetry-instrument python serving.py` does that (https://opentelemetry.io/docs/zero-code/
python/), or the program that embeds the server. Each request is a span: a child of the host site's
span, else of the one in its `traceparent` (https://www.w3.org/TR/trace-context/). Each phase of its
time is a child span. Attribute names follow OpenTelemetry's semantic conventions for HTTP servers;
those that begin with `serving.` are our own.
"""

import sys
import time
from typing import Any

from .core import PHASES, Extension, ModelServer, Reply, Trace


def observe(server: ModelServer, trace: Trace, line: dict[str, Any], replied: Reply) -> None:
    """Record an answered request as spans."""
    api = sys.modules.get("opentelemetry.trace")  # whatever configures it imports it
    if api is None or not hasattr(api.get_tracer_provider(), "add_span_processor"):
        return
    spans = api.get_tracer("serving")
    inside_site = is_within(api)
    begin = time.time_ns() - int(1e9 * (time.perf_counter() - (trace.queued or trace.start)))
    span = spans.start_span(
        f"{line['method']} {line['route']}",
        context=None if inside_site else parent_of(trace),
        kind=api.SpanKind.INTERNAL if inside_site else api.SpanKind.SERVER,
        start_time=begin,
        attributes=attributes_of(line, trace),
    )
    if replied.status >= 500:
        span.set_status(api.StatusCode.ERROR)
    inside, at = api.set_span_in_context(span), begin
    for name, seconds in zip(PHASES, trace.spent):
        if seconds > 0:
            part = spans.start_span(name, context=inside, start_time=at)
            at += int(1e9 * seconds)
            part.end(end_time=at)
    span.end(end_time=begin + int(1e9 * (trace.answered - (trace.queued or trace.start))))


def is_within(api: Any) -> bool:
    """Whether the site has a span for the request, the SERVER one: ours becomes its child."""
    return api.get_current_span().get_span_context().is_valid


def parent_of(trace: Trace) -> Any:
    """The context that a request's headers name."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    names = ("traceparent", "tracestate")
    carrier = {name: value for name, value in zip(names, trace.parent) if value}
    return TraceContextTextMapPropagator().extract(carrier)


def attributes_of(line: dict[str, Any], trace: Trace) -> dict[str, Any]:
    found = {
        "http.request.method": line["method"],
        "http.response.status_code": line["status"],
        "error.type": str(line["status"]) if line["status"] >= 500 else "",
        "url.scheme": trace.scheme,
        "url.path": line["path"],
        "serving.route": line["route"],
        "serving.request_id": line["request_id"],
        "serving.model": str(line["model"]),
        "serving.version": str(line["version"]),
        "serving.deployment": trace.deployment,
    }
    return {name: value for name, value in found.items() if value != ""}


EXTENSION = Extension("tracing", observe=observe)
