"""/stats, /metrics, /openapi.json, logs, client code: numbers agree with a counted load, documents with what is served."""

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jsonschema
import psutil
import pytest
import requests
from conftest import (
    NO_POLL,
    ROOT,
    FakeDetector,
    FakeServable,
    Rest,
    assert_error,
    bearer,
    config,
    fake_server,
    key_entry,
    listening,
)
from prometheus_client.parser import text_string_to_metric_families
from waitress import create_server

import routines
import serving
from serving_extensions import console, metrics

AUTH = {"keys": [key_entry("site", "k")]}
PICTURE = {"image_type": "array", "data": [[[1, 2, 3]]]}


@contextlib.contextmanager
def listening_app(app):
    """The address of a WSGI application that waitress serves in this process."""
    http = create_server(app, host="127.0.0.1", port=0, threads=8)
    threading.Thread(target=http.run, daemon=True).start()
    yield f"http://127.0.0.1:{http.effective_port}"
    http.close()


def fail(name, inputs):
    raise RuntimeError("made to fail")


def server_of_two():
    """Models `m` of numbers and `d` of pictures, and `f`, which fails."""
    failing = serving.Servable(FakeServable().signatures, fail, device="CPU:0")
    return fake_server(
        {"m": FakeServable(), "d": FakeDetector(), "f": failing},
        auth=AUTH,
        deployments=[{"id": "pets", "model": "d", "label_map": ["cat", "dog"]}],
    )


def samples(rest):
    """All samples of /metrics: name and labels -> value."""
    text = rest.get("/metrics").get_data(as_text=True)
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def load(rest):
    """A load of known counts: 7 predicts of 1 row, 3 of 4 rows, 5 pictures, 2 wrong bodies, 1 unknown model, 2 failures of a model."""
    for _ in range(7):
        assert rest.post("/v1/models/m:predict", {"instances": [[1.0]]}).status_code == 200
    for _ in range(3):
        assert rest.post("/v1/models/m:predict", {"instances": [[1.0]] * 4}).status_code == 200
    for _ in range(5):
        assert rest.post("/predict", PICTURE, headers=bearer("k")).status_code == 200
    for _ in range(2):
        assert rest.post("/v1/models/m:predict", "{").status_code == 400
    assert rest.post("/v1/models/none:predict", {"instances": [1]}).status_code == 404
    for _ in range(2):
        assert rest.post("/v1/models/f:predict", {"instances": [[1.0]]}).status_code == 500


def test_stats_agree_with_a_counted_load():
    rest = Rest(server_of_two())
    load(rest)
    stats = rest.get("/stats").json
    assert (
        stats["total"]["requests"] == 20
        and stats["total"]["errors_4xx"] == 3
        and stats["total"]["errors_5xx"] == 2
    )
    assert (
        stats["groups"]["f"]["errors_5xx"] == 2
        and stats["groups"]["f"]["errors_4xx"] == stats["groups"]["m"]["errors_5xx"] == 0
    )
    assert (
        stats["groups"]["m"]["batch_sizes"] == {"1": 7, "4": 3}
        and stats["groups"]["d"]["requests"] == 5
    )
    assert [
        sum(minute[name] for minute in stats["minutes"])
        for name in ("requests", "errors_4xx", "errors_5xx")
    ] == [20, 3, 2]
    assert stats["in_flight"] == 1 and stats["peak_in_flight"] == 1, "this very request"
    assert stats["total"]["requests_per_second"] == pytest.approx(20 / 60)
    assert [error["status"] for error in stats["last_errors"]] == [500, 500, 404, 400, 400]
    assert (
        stats["last_errors"][2]["error"] == "Servable not found for request: Latest(none)"
        and stats["last_errors"][2]["request_id"]
    )
    assert set(stats["groups"]["d"]["parts_ms"]) == {"decode", "inference", "routines", "encode"}
    assert stats["gpus"] == [] and stats["devices"] == {
        "d/1": "CPU:0",
        "f/1": "CPU:0",
        "m/1": "CPU:0",
    }
    assert stats["process"]["memory_bytes"] > 1 << 20 and stats["uptime_seconds"] >= 0


def test_metrics_agree_with_a_counted_load():
    rest = Rest(server_of_two())
    load(rest)
    found = samples(rest)

    def total(metric, **labels):
        return sum(
            value
            for (name, *pairs), value in found.items()
            if name == metric and labels.items() <= dict(pairs).items()
        )

    requests_of = functools.partial(total, "serving_requests_total")

    assert (
        requests_of() == 20
        and requests_of(route="predict", status="200") == 10
        and requests_of(status="400") == 2
    )
    assert requests_of(model="f", status="500") == requests_of(status="500") == 2
    assert requests_of(route="predict_image", model="d", version="1", status="200") == 5
    assert requests_of(deployment="pets", model="d") == 5 and requests_of(deployment="") == 15
    assert total("serving_request_duration_seconds_count", route="predict") == 15
    assert total("serving_request_duration_seconds_count", route="predict", model="m") == 10
    assert total("serving_request_duration_seconds_count", deployment="pets") == 5
    assert total("serving_request_part_seconds_count", part="inference") == 17
    assert total("serving_request_part_seconds_count", part="inference", model="f") == 2
    assert (
        found["serving_batch_size_bucket", ("le", "1.0"), ("model", "m")] == 7
        and found["serving_batch_size_sum", ("model", "m")] == 19
    )
    assert found["serving_model_loaded", ("device", "CPU:0"), ("model", "m"), ("version", "1")] == 1
    assert (
        found["serving_requests_in_flight",] == 1
        and found["process_resident_memory_bytes",] > 1 << 20
    )
    assert rest.get("/monitoring/prometheus/metrics").status_code == 200


def test_metrics_follow_prometheus_conventions(tmp_path):
    promtool = shutil.which("promtool")
    if not promtool:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("promtool is not installed")
    rest = Rest(server_of_two())
    load(rest)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=rest.get("/metrics").data, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_tell_what_alerts_ask_for(tmp_path):
    """Queue, memory, quotas, models that are not there, and a config that is not in force."""
    file = tmp_path / "c.json"
    file.write_text(json.dumps(config("m", "n", server={"max_queued_requests": 7, **NO_POLL})))
    server = serving.ModelServer(
        file,
        load=lambda folder, model: FakeServable(),
        list_versions=lambda base: {1: file} if base.endswith("/m") else {},
    )
    rest = Rest(server)
    assert server.wait(10)
    found = samples(rest)
    assert found["serving_queue_limit",] == 7
    assert 0 < found["serving_memory_limit_bytes",] <= psutil.virtual_memory().total
    assert found["serving_model_available", ("model", "m")] == 1
    assert found["serving_model_available", ("model", "n")] == 0
    assert found["serving_config_last_reload_successful",] == 1
    good = file.read_text()
    for text in ("{", good.replace("max_queued", "max_quoted"), None):
        file.unlink() if text is None else file.write_text(text)
        assert rest.post("/v1/config/reload").status_code >= 400
        server.manager.run_in_loader(lambda: server.manager.refresh(polling=True))
        found = samples(rest)
        assert found["serving_config_last_reload_successful",] == 0, text
        assert found["serving_reload_problems",] >= 1
    file.write_text(good)
    assert rest.post("/v1/config/reload").status_code == 201
    found = samples(rest)
    assert found["serving_config_last_reload_successful",] == 1
    assert found["serving_reload_problems",] == 0


def test_what_cannot_be_loaded_is_a_problem_of_the_last_look():
    def load(folder, model):
        raise serving.LoadError("made to fail")

    server = serving.ModelServer(config("m"), load=load, list_versions=lambda base: {1: ROOT})
    assert server.wait(10)
    found = samples(Rest(server))
    assert found["serving_reload_problems",] == 1
    assert found["serving_config_last_reload_successful",] == 1, "it is the model that is wrong"
    assert found["serving_model_available", ("model", "m")] == 0


def test_quotas_are_told_with_their_limits(tmp_path):
    key = key_entry("site", "k", quota={"calls": 10, "period": "day"})
    rest = Rest(
        fake_server(
            {"d": FakeDetector()},
            auth={"keys": [key], "quota_store": str(tmp_path / "q.sqlite3")},
            deployments=[{"id": "pets", "model": "d", "label_map": ["cat", "dog"]}],
        )
    )
    for _ in range(3):
        assert rest.post("/predict", PICTURE, headers=bearer("k")).status_code == 200
    found, labels = samples(rest), (("key", "site"), ("period", "day"))
    assert found[("serving_quota_used_calls", *labels)] == 3
    assert found[("serving_quota_limit_calls", *labels)] == 10


def test_the_limit_of_memory_is_the_control_groups_where_there_is_one(tmp_path):
    for name, text in (("two", "1048576"), ("one", "9223372036854771712"), ("none", "max")):
        (tmp_path / name).write_text(text)
    machine = psutil.virtual_memory().total
    assert metrics.memory_limit([tmp_path / "two", tmp_path / "one"]) == 1 << 20
    assert metrics.memory_limit([tmp_path / "one", tmp_path / "none", tmp_path / "-"]) == machine


def test_every_metric_is_in_the_documents():
    documents = (ROOT / "docs/operation.md").read_text()
    rest = Rest(server_of_two())
    for family in text_string_to_metric_families(rest.get("/metrics").get_data(as_text=True)):
        assert family.name.startswith("process_") or f"`{family.name}" in documents, family.name


def test_numbers_of_many_at_once_add_up_and_survive_a_reload():
    server = server_of_two()
    with listening(server) as address:

        def ask():
            session = requests.Session()
            for _ in range(50):
                assert (
                    session.post(
                        address + "/v1/models/m:predict", '{"instances": [[1.0]]}'
                    ).status_code
                    == 200
                )

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert requests.post(address + "/v1/config/reload").status_code == 200
        stats = requests.get(address + "/stats").json()
    assert (
        stats["groups"]["m"]["requests"] == 400
        and 1 <= stats["peak_in_flight"] <= 32
        and stats["total"]["requests"] == 401
    )
    assert set(stats["groups"]["m"]["parts_ms"]) == {
        "queue",
        "decode",
        "inference",
        "routines",
        "encode",
    }


def test_percentiles_and_rates_by_hand():
    group = metrics.Group()
    for milliseconds in range(1, 101):
        group.add(1000 + milliseconds // 50, 200, [milliseconds / 1e3], [{}], [])
    found = group.read(1030)
    assert found["latency_ms"] == {"p50": 50.5, "p90": 90.1, "p99": 99.01} and found[
        "requests_per_second"
    ] == pytest.approx(100 / 60)
    assert group.read(1100)["requests_per_second"] == 0


def test_minutes_are_kept_for_an_hour():
    now = [0.0]
    counted = metrics.Metrics(clock=lambda: now[0])
    call = {
        "request_id": "",
        "method": "GET",
        "path": "/",
        "route": "x",
        "model": "",
        "version": "",
        "status": 200,
        "ms": 1.0,
        "rows": 0,
        "batch": 0,
    }
    for minute in range(100):
        now[0] = 60.0 * minute
        counted.begin().end(serving.Trace(), call, None)
    assert [m["time"] for m in counted.read()["minutes"]] == [
        60 * minute for minute in range(40, 100)
    ]


# --- logs -----------------------------------------------------------------------------------------------------


def test_a_request_is_one_line_in_the_log(caplog):
    caplog.set_level("INFO")
    Rest(server_of_two()).post("/predict", PICTURE, headers={**bearer("k"), "X-Request-Id": "r-1"})
    (line,) = [record for record in caplog.records if "r-1" in record.getMessage()]
    assert re.fullmatch(
        r"r-1 site POST /predict 200 [0-9.]+ ms model=d version=1 rows=1 batch=1", line.getMessage()
    )
    entry = json.loads(metrics.JsonFormatter().format(line))
    assert entry.pop("time") and entry.pop("ms") > 0
    assert entry == {
        "level": "INFO",
        "logger": "serving",
        "request_id": "r-1",
        "key": "site",
        "method": "POST",
        "path": "/predict",
        "route": "predict_image",
        "model": "d",
        "version": "1",
        "status": 200,
        "rows": 1,
        "batch": 1,
    }


def test_other_lines_as_json_hold_their_traceback():
    try:
        raise ValueError("x")
    except ValueError:
        record = logging.LogRecord("serving", 40, "", 0, "%s failed", ("it",), sys.exc_info())
    entry = json.loads(metrics.JsonFormatter().format(record))
    assert entry["message"] == "it failed" and "ValueError: x" in entry["traceback"]


def test_log_format_and_level_come_from_the_config(tmp_path):
    from test_command_line import started

    (tmp_path / "c.json").write_text(
        json.dumps({"model_config_list": [], "server": {"log_format": "json", "log_level": "INFO"}})
    )
    with started("--config", "c.json", "--port", "0", cwd=tmp_path) as server:
        server.call("GET", "/livez")
        deadline = time.monotonic() + 10
        while not any('"/livez"' in line for line in server.err) and time.monotonic() < deadline:
            time.sleep(0.05)
        entry = next(json.loads(line) for line in server.err if '"/livez"' in line)
        assert entry["status"] == 200 and entry["route"] == "live"


# --- OpenAPI --------------------------------------------------------------------------------------------------


def resolve(document, schema):
    """A schema that stands alone: with the document's components beside it."""
    return {**schema, "components": document["components"]}


def test_openapi_is_valid_and_its_examples_work(demo, how):
    rest = Rest(demo, how)
    document = rest.get("/openapi.json").json
    from openapi_spec_validator import validate

    validate(document)
    assert document["servers"] == [{"url": rest.prefix or "/"}]
    tried = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            names = operation.get("parameters", [])
            assert all(f"{{{one['name']}}}" in path for one in names if one["in"] == "path")
            if "{" in path or method == "post" and "example" not in body:
                continue  # a name is to be filled in
            jsonschema.validate(
                body["example"], resolve(document, body["schema"])
            ) if body else None
            response = rest.open(
                path,
                method=method.upper(),
                data=json.dumps(body["example"]) if body else None,
                headers=bearer(demo.generated_key),
            )
            assert response.status_code == 200, (path, response.data)
            (kind,) = operation["responses"]["200"]["content"]
            assert response.mimetype == kind
            if kind != "application/json":
                continue
            answer = operation["responses"]["200"]["content"][kind]["schema"]
            jsonschema.validate(response.json, resolve(document, answer))
            tried += 1
    assert tried >= 20


def test_every_row_of_the_url_table_is_in_the_openapi_document_and_nothing_else():
    server = server_of_two()
    document = Rest(server).get("/openapi.json").json
    told = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    for row in serving.routes_of(server.extensions):
        if row.name in ("nameless", "console"):  # a refusal, and the page
            continue
        assert any(method in row.methods and row.pattern.fullmatch(path) for method, path in told)
    for method, path in told:
        filled = path.replace("{version}", "1")
        assert serving.find_known(server, method, filled), path


def test_openapi_names_every_deployment_and_handler():
    server = server_of_two()
    server.endpoint("/alice/caption")(lambda inputs: inputs)
    paths = Rest(server).get("/openapi.json").json["paths"]
    assert {
        "/pets/predict",
        "/pets/classes",
        "/alice/caption",
        "/v1/models/m:predict",
        "/v1/models/d/metadata",
    } <= paths.keys()
    assert paths["/pets/predict"]["post"]["security"] == [{"bearer": []}, {"header": []}]


# --- what the page is built from ------------------------------------------------------------------------------


def test_deployments_tell_what_the_page_needs(demo):
    rest, key = Rest(demo), bearer(demo.generated_key)
    found = rest.get("/deployments", headers=key).json
    (shapes,) = found["deployments"]
    assert (
        shapes["takes_images"]
        and shapes["default"]
        and len(shapes["samples"]) == 10
        and shapes["classes"]["4"]["name"] == "star"
    )
    assert {model["name"] for model in found["models"]} == {
        "half_plus_two",
        "half_plus_three",
        "digits",
        "shapes",
        "two_steps",
    }
    for model in found["models"]:
        assert rest.post(f"/v1/models/{model['name']}:predict", model["body"]).status_code == 200
    by_name = {
        routine["name"]: routine
        for routine in found["routines"]
        if routines.ROUTINES[routine["name"]].__module__ == "routines"
    }
    assert by_name["FilterConfidence"]["arguments"] == [
        {
            "name": "confidence",
            "kind": "number",
            "required": True,
            "default": None,
            "minimum": 0,
            "maximum": 1,
            "doc": "0..1",
        }
    ]
    assert {
        name: [a["kind"] for a in routine["arguments"]]
        for name, routine in by_name.items()
        if routine["arguments"]
    } == {
        "FilterConfidence": ["number"],
        "FilterIOU": ["number"],
        "FilterClass": ["strings"],
        "ExcludeClass": ["strings"],
        "Threshold": ["map", "number"],
        "TopK": ["integer"],
        "Tile": ["integer", "number", "number", "boolean"],
        "ActiveLearning": ["strings"],
        "Histogram": ["integer", "numbers"],
        "Resize": ["integer", "integer"],
        "Crop": ["number"] * 4,
    }
    assert (
        by_name["Resize"]["before_model"]
        and set(by_name) >= {"Grayscale", "Histogram"}
        and "ActiveLearningMetric" not in by_name
    )
    picture = rest.get("/shapes/samples/3.jpg", headers=key)
    assert (
        picture.data == (ROOT / "models/shapes/samples/3.jpg").read_bytes()
        and picture.headers["Content-Type"] == "image/jpeg"
    )
    for name in ("..%2f1", "label_map.pbtxt", "%00", "nothing.jpg"):
        assert rest.get(f"/shapes/samples/{name}", headers=key).status_code == 404


def test_client_code_at_its_url(demo):
    rest, key = Rest(demo), bearer(demo.generated_key)
    code = rest.get(
        "/shapes/client/python",
        headers=key,
        query_string={"routines": json.dumps([{"name": "Histogram"}])},
    )
    assert (
        code.headers["Content-Type"].startswith("text/plain")
        and "http://localhost/shapes/predict" in code.text
        and "Histogram" in code.text
    )
    compile(code.text, "client", "exec")
    assert (
        rest.get("/shapes/client/cobol", headers=key).status_code == 400
        and "python" in rest.get("/shapes/client/cobol", headers=key).json["error"]
    )
    assert rest.get("/cars/client/python", headers=key).status_code == 404
    for given, text in (
        ("5", "routines: expected a list of routines"),
        ('[{"name": "Nope"}]', "routines[0].name: there is no routine 'Nope'"),
        ("[", "routines in the URL: JSON Parse error: "),
    ):
        assert_error(
            rest.get("/shapes/client/python", headers=key, query_string={"routines": given}),
            400,
            text + "...",
        )


def test_the_console_is_served_under_any_prefix_with_a_policy(how):
    rest = Rest(server_of_two(), how)
    moved = rest.get("/console")
    assert moved.status_code == 308 and moved.headers["Location"].endswith(
        f"{rest.prefix}/console/"
    )
    page = rest.get("/console/")
    assert (
        page.headers["Content-Type"].startswith("text/html")
        and page.data == (ROOT / "console/index.html").read_bytes()
    )
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    for name in ("..%2fserving.py", "%2e%2e", "nothing.js", "%00"):
        assert rest.get(f"/console/{name}").status_code in (400, 404)
    assert_error(rest.get("/console/x.js"), 404, "The console has no file 'x.js'")
    for name in (
        "../serving.py",
        "../console/../serving.py",
        str(ROOT / "serving.py"),
        "..",
        ".",
    ):  # however a name came through
        with pytest.raises(serving.NotFound):
            console.view_console(rest.server, SimpleNamespace(path="/console/", mount=""), name)


def test_measuring_leaves_nothing_in_python_calls():
    """Calls without HTTP belong to no request."""
    server = server_of_two()
    server.predict("m", {"instances": [[1.0]]})
    assert (
        server.state["metrics"].read()["total"]["requests"] == 0
        and getattr(serving.CURRENT, "trace", None) is None
    )


def test_routine_declarations_of_ones_own_are_described():
    from serving_extensions.console import describe_routine

    @routines.routine()
    class Twice:
        """Two times. Or more."""

        factor: float | None = routines.argument(None, "how often", minimum=0)

    assert describe_routine(Twice) == {
        "name": "Twice",
        "doc": "Two times. Or more.",
        "before_model": False,
        "arguments": [
            {
                "name": "factor",
                "kind": "number",
                "required": False,
                "default": None,
                "minimum": 0,
                "maximum": None,
                "doc": "how often",
            }
        ],
    }
    del routines.ROUTINES["Twice"]


def test_config_of_nothing_has_stats():
    rest = Rest(fake_server({}, **{k: v for k, v in config().items() if k == "server"}))
    assert (
        rest.get("/stats").json["total"]["latency_ms"] is None
        and rest.get("/metrics").status_code == 200
    )


def test_schemathesis_finds_nothing(demo, tmp_path):
    """All its checks but three that cannot hold: TensorFlow Serving answers a wrong method 400, a schema cannot say that nested
    lists are rectangular or that a url is one, and a model may take more than its signature says."""
    app = serving.create_app(demo)
    with listening_app(app) as address:
        tool = (
            shutil.which("schemathesis", path=str(serving.Path(sys.executable).parent))
            or "schemathesis"
        )
        done = subprocess.run(
            [
                tool,
                "run",
                f"{address}/openapi.json",
                "-H",
                f"Authorization: Bearer {demo.generated_key}",
                "-n",
                "25",
                "--max-response-time",
                "20",
                "--exclude-checks",
                "unsupported_method,positive_data_acceptance,negative_data_rejection",
            ],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stdout[-5000:]


def test_stats_and_metrics_answer_while_tensorflow_is_half_imported(monkeypatch):
    rest = Rest(server_of_two())
    monkeypatch.setitem(
        sys.modules, "tensorflow", type(sys)("tensorflow")
    )  # as the loader's thread leaves it for some seconds
    assert rest.get("/stats").json["gpus"] == [] and rest.get("/metrics").status_code == 200


def test_every_answer_has_the_clients_id_or_one_of_its_own():
    rest = Rest(server_of_two())
    for path in ("/nowhere", "/livez", "/v1/models/m", "/v1/models/none", "/console/none.js"):
        assert rest.get(path, headers={"X-Request-Id": "r-1"}).headers["X-Request-Id"] == "r-1", (
            path
        )
        assert re.fullmatch("[0-9a-f]{16}", rest.get(path).headers["X-Request-Id"]), path
