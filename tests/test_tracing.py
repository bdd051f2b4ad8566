"""Spans of requests, as OpenTelemetry's own SDK receives them; traceparent in the log and in
handlers.
"""

import json
import logging
import subprocess
import sys

import pytest
from conftest import ROOT, FakeServable, Rest, bearer, fake_server, key_entry

import serving

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"  # of the W3C's document
BODY = '{"instances": [[1.0]]}'

# In a process of its own: a provider is set once for all.
TRACED = """
import json, sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
import serving
from conftest import FakeServable, Rest, fake_server
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
later = []
if {late}:
    serving.Turn.defer = lambda turn, note: later.append(note)
fail = lambda name, inputs: 1 / 0
failing = serving.Servable(FakeServable().signatures, fail, device="CPU:0")
rest = Rest(fake_server({{"m": FakeServable(), "f": failing}}))
rest.post("/v1/models/m:predict", {body!r}, headers={{"traceparent": {parent!r}, "tracestate": "a=b"}})
rest.post("/v1/models/m:predict", {body!r}, headers={{"traceparent": "nonsense"}})
rest.get("/v1/models/none")
with trace.get_tracer("site").start_as_current_span("of the site"):
    rest.post("/v1/models/f:predict", {body!r}, headers={{"traceparent": {parent!r}}})
time.sleep(2 * {late})
for note in later:
    note()
print(json.dumps([
    [span.name, format(span.context.trace_id, "032x"), span.parent and format(span.parent.span_id, "016x"),
     format(span.context.span_id, "016x"), span.start_time, span.end_time, dict(span.attributes), span.kind.name]
    for span in exporter.get_finished_spans()]))
"""


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the answer"])
def test_a_request_is_a_span_of_its_caller_with_its_parts(late):
    pytest.importorskip("opentelemetry.sdk")
    folders = {"tests": str(ROOT / "tests"), "root": str(ROOT)}
    code = TRACED.format(**folders, body=BODY, parent=PARENT, late=late)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    spans = json.loads(done.stdout.splitlines()[-1])
    whole = [span for span in spans if span[0].startswith(("POST", "GET"))]
    first, second, third, fourth = whole
    _, version, parent, _ = PARENT.split("-")
    assert (first[0], first[1], first[2]) == ("POST predict", version, parent)
    assert first[6]["http.response.status_code"] == 200 and first[6]["serving.model"] == "m"
    assert second[2] is None and second[1] != version
    assert (third[0], third[6]["http.response.status_code"]) == ("GET status", 404)
    (sites,) = [span for span in spans if span[0] == "of the site"]
    assert (fourth[1], fourth[2]) == (sites[1], sites[3]), "below the site's own span"
    assert fourth[6]["error.type"] == "500" and "error.type" not in third[6]
    assert [span[7] for span in whole] == ["SERVER"] * 3 + ["INTERNAL"], "one SERVER span a request"
    assert all(end - start < 2e9 for _, _, _, _, start, end, *_ in whole), "none ends when noted"
    for span in whole:
        assert {name for name in span[6] if not name.startswith("serving.")} - {"error.type"} == {
            "http.request.method",  # what the conventions require of a server's span, ...
            "url.path",
            "url.scheme",
            "http.response.status_code",
        }, "... and no http.route, which is a template of a path"
    parts = [span for span in spans if span[2] == first[3]]
    assert "inference" in {span[0] for span in parts}
    for name, trace, _, _, start, end, *_ in parts:
        assert trace == version and first[4] <= start <= end <= first[5] + 1_000_000, name


@pytest.mark.parametrize(
    "parent",
    [
        PARENT,
        PARENT + "-more",
        "cc" + PARENT[2:],
        "cc" + PARENT[2:] + "-what the future will be like",
        "cc" + PARENT[2:] + "x",
        "01" + PARENT[2:-1],
        "ff" + PARENT[2:],
        "0" + PARENT,
        PARENT.upper(),
        PARENT.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32),
        PARENT.replace("00f067aa0ba902b7", "0" * 16),
    ],
)
def test_a_traceparent_is_read_as_opentelemetry_reads_it(parent):
    api = pytest.importorskip("opentelemetry.trace")
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = TraceContextTextMapPropagator().extract({"traceparent": parent})
    call = serving.Call({"REQUEST_METHOD": "GET", "HTTP_TRACEPARENT": parent}, "/")
    is_one = api.get_current_span(context).get_span_context().is_valid
    assert serving.read_parent(call)[0] == (parent if is_one else "")


def test_the_trace_is_in_the_log_and_handlers_are_given_it(caplog):
    server = fake_server({"m": FakeServable()}, auth={"keys": [key_entry("k", "k")]})
    server.endpoint("/mine")(lambda inputs, context: context.headers["Traceparent"])
    rest = Rest(server)
    with caplog.at_level(logging.INFO, "serving"):
        answer = rest.post("/mine", "1", headers={**bearer("k"), "traceparent": PARENT})
        rest.post(
            "/mine", "1", headers={**bearer("k"), "traceparent": PARENT.replace("00-", "zz-")}
        )
    assert answer.json == PARENT
    lines = [record.args for record in caplog.records if isinstance(record.args, dict)]
    assert [line.get("trace_id") for line in lines] == [PARENT.split("-")[1], None]
