"""/stats, /metrics, /openapi.json, logs, client code: numbers agree with a counted load, documents with what is served."""

import base64
import dataclasses
import functools
import io
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from urllib.parse import quote

import flask
import jsonschema
import numpy as np
import psutil
import pytest
import requests
from conftest import (
    COUNTED,
    NO_POLL,
    ROOT,
    FakeDetector,
    FakeServable,
    Rest,
    assert_error,
    bearer,
    config,
    fail,
    fake_server,
    image_bytes,
    key_entry,
    listening,
    listening_app,
    signature,
    spec,
    started,
)
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.middleware.proxy_fix import ProxyFix

import routines
import serving
from serving_extensions import console, metrics
from serving_extensions.openapi import DOT

AUTH = {"keys": [key_entry("site", "k")]}
PICTURE = {"image_type": "array", "data": [[[1, 2, 3]]]}


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
    stats = rest.get("/stats", headers=bearer("k")).json
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
    assert {error["error"] for error in rest.get("/stats").json["last_errors"]} == {""}
    assert set(stats["groups"]["d"]["parts_ms"]) == {"decode", "inference", "routines", "encode"}
    assert stats["gpus"] == [] and {
        name: version["device"] for name, version in stats["versions"].items()
    } == {"d/1": "CPU:0", "f/1": "CPU:0", "m/1": "CPU:0"}
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

    server = serving.ModelServer(config("m"), load=load, list_versions=lambda base: {1: ROOT / "1"})
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
        ended = 1000 + milliseconds // 50, 200, 0, milliseconds / 1e3, *[serving.NO_TIME] * 5
        group.add(metrics.Alike(np.array([ended])))
    found = group.read(1030)
    assert found["latency_ms"] == {"p50": 50.5, "p90": 90.1, "p99": 99.01} and found[
        "requests_per_second"
    ] == pytest.approx(100 / 60)
    assert group.read(1100)["requests_per_second"] == 0


@pytest.mark.parametrize("step", [1, 60])
def test_a_clock_that_is_put_back_leaves_no_numbers_of_a_time_to_come(step):
    now = [1e6]
    counted = metrics.Metrics(clock=lambda: now[0])

    def count(times, status):
        reply = SimpleNamespace(body=b'{"error": ""}')
        for _ in range(times):
            now[0] += step
            counted.note(serving.Trace(), {**COUNTED, "status": status}, reply)

    count(70, 500)
    now[0] -= 7200
    count(60, 200)
    told = counted.read()
    assert sum(minute["errors_5xx"] for minute in told["minutes"]) == 0
    assert told["minutes"][-1]["time"] == now[0] // 60 * 60
    assert sum(minute["requests"] for minute in told["minutes"]) == 60
    requests, errors, _ = counted.total.last_minute(int(now[0]))
    assert (requests, errors) == (60 // step, 0)
    assert told["total"]["requests_per_second"] == 1 / step


def test_a_latency_is_from_the_last_byte_and_who_waits_is_not_being_answered(caplog):
    caplog.set_level("INFO")
    rest = Rest(server_of_two())
    turn = serving.Turn(time.perf_counter() - 5)  # its last byte came so long ago
    answer = rest.post(
        "/predict", PICTURE, headers=bearer("k"), environ_overrides={"serving.turn": turn}
    )
    total = float(re.search(r"total;dur=([0-9.]+)", answer.headers["Server-Timing"])[1])
    (line,) = [record.args for record in caplog.records if isinstance(record.args, dict)]
    stats = rest.get("/stats").json
    measured = samples(rest)
    seconds = sum(
        value
        for (name, *labels), value in measured.items()
        if name == "serving_request_duration_seconds_sum" and ("route", "predict_image") in labels
    )
    for told in (line["ms"], stats["groups"]["d"]["latency_ms"]["p50"], 1e3 * seconds):
        assert told == pytest.approx(total, abs=0.02) and told >= 5000
    group = rest.server.state["metrics"].groups["d"]
    assert group.last_minute(int(time.time()))[2] == pytest.approx((total - 5000) / 1e3, abs=0.1)


def test_the_minutes_told_are_those_of_the_last_hour():
    now = [1e9]
    counted = metrics.Metrics(clock=lambda: now[0])
    times = [now[0] + 600 * number for number in range(60)]
    for now[0] in times:
        counted.note(serving.Trace(), COUNTED, None)
    recent = [60 * (int(time) // 60) for time in times if time > times[-1] - 3600]
    assert [minute["time"] for minute in counted.read()["minutes"]] == recent


def test_a_long_path_does_not_make_the_errors_long():
    rest = Rest(server_of_two())
    for number in range(5):
        rest.open("/v1/models/" + "x" * 50_000, method="Y" * 30_000 if number else "GET")
    told = rest.get("/stats")
    assert len(told.json["last_errors"]) == 5 and len(told.data) < 10_000


def test_minutes_are_kept_for_an_hour():
    now = [0.0]
    counted = metrics.Metrics(clock=lambda: now[0])
    for minute in range(100):
        now[0] = 60.0 * minute
        counted.note(serving.Trace(), COUNTED, None)
    assert [m["time"] for m in counted.read()["minutes"]] == [
        60 * minute for minute in range(40, 100)
    ]


# --- logs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_probes", [False, True])
def test_probes_have_a_line_where_the_config_asks_for_it(caplog, log_probes):
    caplog.set_level("INFO")
    rest = Rest(fake_server({"m": FakeServable()}, server={**NO_POLL, "log_probes": log_probes}))
    probes = ["/livez", "/readyz", "/v2/health/live", "/v2/health/ready"]
    for path in (*probes, "/v1/models", "/v1/nowhere"):
        rest.get(path)
    logged = [record.args["path"] for record in caplog.records if "path" in (record.args or ())]
    assert logged == [*(probes if log_probes else ()), "/v1/models", "/v1/nowhere"]


def test_probes_that_say_not_yet_are_no_errors():
    handlers = [{"path": "/gone", "function": "none.py:none"}]
    rest = Rest(fake_server({"m": FakeServable()}, auth=AUTH, handlers=handlers))
    assert rest.get("/readyz").status_code == rest.get("/v2/health/ready").status_code == 503
    assert rest.get("/v1/models/gone").status_code == 404
    stats = rest.get("/stats", headers=bearer("k")).json
    assert [error["path"] for error in stats["last_errors"]] == ["/v1/models/gone"]
    counted = (
        'serving_requests_total{deployment="",model="",route="ready",status="503",version=""} 2.0'
    )
    assert counted in rest.get("/metrics").get_data(as_text=True)


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
    (tmp_path / "c.json").write_text(
        json.dumps({"model_config_list": [], "server": {"log_format": "json", "log_level": "INFO"}})
    )
    with started("--config", "c.json", "--port", "0", cwd=tmp_path) as server:
        server.call("GET", "/v1/models")
        deadline = time.monotonic() + 10
        while (
            not any('"/v1/models"' in line for line in server.err) and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        entry = next(json.loads(line) for line in server.err if '"/v1/models"' in line)
        assert entry["status"] == 200 and entry["route"] == "models"


# --- OpenAPI --------------------------------------------------------------------------------------------------


def resolve(document, schema):
    """A schema that stands alone: with the document's components beside it."""
    return {**schema, "components": document["components"]}


def test_openapi_is_valid_and_its_examples_work(demo, how):
    rest = Rest(demo, how)
    document = rest.get("/openapi.json").json
    from openapi_spec_validator import validate

    validate(document)
    assert document["servers"] == [
        {"url": rest.prefix or "/"},
        {"url": f"http://localhost{rest.prefix}"},
    ]
    tried = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            names = operation.get("parameters", [])
            assert all(f"{{{one['name']}}}" in path for one in names if one["in"] == "path")
            if any(one.get("required") and one["in"] == "query" for one in names):
                continue
            if "{" in path or method == "post" and "example" not in body:
                continue  # a name is to be filled in
            if "428" in operation["responses"]:  # managing, which the demo has not: test_admin.py
                continue
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
            kind = response.mimetype
            assert kind in operation["responses"]["200"]["content"]
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
        (method.upper(), path.replace("{version}", "1"))
        for path, methods in document["paths"].items()
        for method in methods
    }
    for row in serving.routes_of(server.extensions):
        if row.name in ("nameless", "console", "root"):  # a refusal, and the page
            continue
        assert any(method in row.methods and row.pattern.fullmatch(path) for method, path in told)
    for method, path in told:
        assert serving.find_known(server, method, path), path


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


def test_operation_ids_are_names_of_any_language_each_once():
    names = ("a-b", "a_b", "A b", "ü", "漢", "a_b_2", "2")
    server = fake_server({name: FakeServable() for name in names})
    server.endpoint("/a-b", methods=["GET", "POST", "PUT"])(lambda value: value)
    server.endpoint("/a_b")(lambda value: value)
    paths = Rest(server).get("/openapi.json").json["paths"]
    ids = [one["operationId"] for methods in paths.values() for one in methods.values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in ids)
    assert {"predict_a_b", "predict_a_b_2", "predict_a_b_3", "predict", "predict_2"} <= set(ids)


def test_openapi_gives_a_get_no_body():
    """OpenAPI 3.1.0, 4.8.10.1: of GET "requestBody [...] SHOULD be avoided"; browsers send none."""
    server = server_of_two()
    server.endpoint("/both", methods=["GET", "POST"])(lambda value: value)
    paths = Rest(server).get("/openapi.json").json["paths"]
    gets = [path for path, methods in paths.items() if "requestBody" in methods.get("get", {})]
    assert gets == [] and "requestBody" in paths["/both"]["post"]


def test_openapi_tells_the_bodies_and_answers_that_are_no_json():
    server = server_of_two()
    paths = Rest(server).get("/openapi.json").json["paths"]
    for path in ("/pets/predict", "/predict", "/{deployment}/predict"):
        asked = paths[path]["post"]
        assert list(asked["requestBody"]["content"]) == [
            "application/json",
            "application/octet-stream",
            "multipart/form-data",
        ]
        names = {one["name"] for one in asked["parameters"] if one["in"] == "query"}
        assert names == {"format", "routines", "frame", "version", "version_label"}
        assert set(asked["responses"]["200"]["content"]) == {
            "application/json",
            "image/png",
            "image/jpeg",
        }
    asked = paths["/v1/models/m:predict"]["post"]
    assert {"application/json", "application/x-npy"} <= asked["requestBody"]["content"].keys()
    outputs = next(one for one in asked["parameters"] if one["name"] == "outputs")
    assert outputs["schema"]["items"] == {"enum": ["y"]}


def test_openapi_names_each_argument_of_a_url_that_a_view_reads_and_no_other():
    reads = re.compile(r"""\bargument\(["'](\w+)|is_asked\(\w+, "(\w+)|"(\w+)" in call\.arg""")
    files = (ROOT / "serving.py", *(ROOT / "serving_extensions").glob("*.py"))
    read = {max(names) for file in files for names in reads.findall(file.read_text("utf-8"))}
    read |= {"outputs"} | {"path", "method", "key"}  # by other ways: a list, a dataclass
    told = {}
    for path, methods in Rest(server_of_two()).get("/openapi.json").json["paths"].items():
        for method, described in methods.items():
            names = {(one["name"], one["in"]) for one in described.get("parameters", ())}
            told[f"{method} {path}"] = names
    assert read == {name for names in told.values() for name, where in names if where == "query"}
    group = "/{deployment}/active_learning/{group}"
    for where, expected in {
        "post /{deployment}/preview": ("whole", "frame", "routines"),
        "post /pets/predict": ("format", "routines", "frame", "version", "version_label"),
        f"get {group}": ("format",),
        f"get {group}/{{picture}}": ("side",),
        "get /v1/client/{language}": ("path", "method", "key"),
        "put /v1/config/file": ("dry_run",),
    }.items():
        assert {name for name, kind in told[where] if kind == "query"} == {*expected}, where


def test_openapi_tells_the_bodies_and_headers_of_what_changes_something():
    paths = Rest(server_of_two()).get("/openapi.json").json["paths"]
    heads = {
        f"{method} {path}": one
        for path, methods in paths.items()
        for method, described in methods.items()
        for one in described.get("parameters", ())
        if one["name"] == "If-Match"
    }
    admin = {"/v1/config/file", "/v1/config/rollback", "/v1/keys", "/v1/keys/{key}"}
    assert {where.partition(" ")[2] for where in heads} == admin | {
        "/deployments/{deployment}",
        "/v1/models/{model}",
        "/v1/models/{model}/versions",
        "/v1/models/{model}/versions/{version}",
        "/v1/projects/{project}",
    }
    assert not any(one.get("required") for one in heads.values())  # a dry run needs none
    for path, method, good, bad in (
        ("/v1/config/rollback", "post", {"to": "000012"}, {"to": 12}),
        (
            "/{deployment}/active_learning/{group}/{picture}/verdict",
            "put",
            {"verdict": "none"},
            {"verdict": "good"},
        ),
        *(
            (f"/v2/models/{{model}}{part}/infer", "post", INFER_V2, {"inputs": []})
            for part in ("", "/versions/{version}")
        ),
    ):
        schema = paths[path][method]["requestBody"]["content"]["application/json"]["schema"]
        jsonschema.validate(good, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
    asked = paths["/v2/models/{model}/infer"]["post"]
    assert "Inference-Header-Content-Length" in [one["name"] for one in asked["parameters"]]
    for content in (asked["requestBody"]["content"], asked["responses"]["200"]["content"]):
        assert "application/octet-stream" in content
    assert "400" in paths["/livez"]["get"]["responses"]  # a wrong X-Request-Timeout


@pytest.mark.parametrize(
    "answer",
    [
        lambda: ({"detail": "no"}, 404),
        lambda: ({"id": 1}, 201),
        lambda: ("teapot", 418),
        lambda: b"\x89PNG\r\n\x1a\n",
        lambda: [1],
        lambda: iter([{"a": 1}]),
    ],
)
@pytest.mark.parametrize("envelope", [None, "hub"])
def test_what_a_handler_answers_is_what_openapi_tells(answer, envelope):
    server = server_of_two()
    server.endpoint("/own", **({"envelope": envelope} if envelope else {}))(lambda value: answer())
    rest = Rest(server)
    document = rest.get("/openapi.json").json
    given = rest.post("/own", 1, headers=bearer("k"))
    responses = document["paths"]["/own"]["post"]["responses"]
    told = responses.get(str(given.status_code), responses["default"])
    if "$ref" in told:
        told = document["components"]["responses"][told["$ref"].rpartition("/")[2]]
    content = told.get("content", {"*/*": {}})
    media = content.get(given.mimetype) or content["*/*"]
    if given.mimetype == "application/json":
        jsonschema.validate(given.json, resolve(document, media.get("schema", {})))


def several_signatures(*names):
    """A model of signatures that each take one number more a row than the one before."""
    shapes = {name: (None, count) for count, name in enumerate(names, 1)}
    signatures = {
        name: signature([spec("x", shape=shape)], [spec(f"y_{name}", shape=shape)])
        for name, shape in shapes.items()
    }
    return serving.Servable(signatures, lambda name, inputs: {f"y_{name}": inputs["x"]})


@pytest.mark.parametrize(
    "model, body, valid",
    [
        ("m", {"instances": [{"x": [1.0]}]}, True),
        ("m", {"inputs": {"x": [[1.0]]}}, True),
        ("m", {"inputs": [[1.0]], "signature_name": "serving_default"}, True),
        ("m", {"inputs": {"z": [[1.0]]}}, False),
        ("m", {"inputs": [["a"]]}, False),
        ("d", {"instances": [{"b64": DOT}]}, True),
        ("d", {"inputs": [{"b64": DOT}]}, True),
        ("d", {"inputs": {"b64": DOT}}, True),
        ("d", {"inputs": {"image": [{"b64": DOT}]}}, True),
        ("d", {"instances": [{"image": {"b64": DOT}}]}, True),
        ("d", {"instances": [{"image": {"b64": 1}}]}, False),
        ("two", {"inputs": [[1.0]]}, True),
        ("two", {"signature_name": "other", "inputs": [[1.0, 2.0]]}, True),
        ("two", {"signature_name": "other", "instances": [{"x": [1.0, 2.0]}]}, True),
        ("two", {"signature_name": "other", "inputs": [["a", "b"]]}, False),
        ("two", {"signature_name": "none", "inputs": [[1.0]]}, False),
        ("odd", {"signature_name": "embed", "inputs": [[1.0]]}, True),
        ("odd", {"inputs": [[1.0]]}, False),
        ("pair", {"signature_name": "init", "inputs": {}}, False),
        ("pair", {"inputs": {"a": [1.0], "b": [1.0]}}, True),
        ("pair", {"instances": [{"a": 1.0, "b": 1.0}]}, True),
        ("pair", {"inputs": {"a": [1.0]}}, False),
        ("pair", {"instances": [{"a": 1.0}]}, False),
    ],
)
def test_bodies_that_openapi_takes_are_those_that_are_answered(model, body, valid):
    two, odd = several_signatures("serving_default", "other"), several_signatures("embed", "b")
    pair = serving.Servable(
        {
            "serving_default": signature([spec("a"), spec("b")], [spec("y")]),
            "init": signature([], [spec("done")]),
        },
        lambda name, inputs: {"y": inputs["a"]},
    )
    models = {"m": FakeServable(), "d": FakeDetector(), "two": two, "odd": odd, "pair": pair}
    rest = Rest(fake_server(models))
    path = f"/v1/models/{model}:predict"
    asked = rest.get("/openapi.json").json["paths"][path]["post"]
    schema = asked["requestBody"]["content"]["application/json"]["schema"]
    assert jsonschema.Draft202012Validator(schema).is_valid(body) is valid
    assert (rest.post(path, body).status_code == 200) is valid
    assert "done" not in json.dumps(asked)  # an output of a signature that cannot be called


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (None, 64, 64, 3), (64, 64, 3), (1, 3, 64, 64)])
def test_the_example_of_a_model_for_large_pictures_is_answered(shape):
    pixels = signature([spec("x", shape=shape)], [spec("y")])
    model = serving.Servable({"look": pixels}, lambda _, inputs: {"y": np.ones(1)})
    rest = Rest(fake_server({"m": model}))
    told = rest.get("/openapi.json").json["paths"]["/v1/models/m:predict"]["post"]["requestBody"]
    asked = told["content"]["application/json"]
    assert jsonschema.Draft202012Validator(asked["schema"]).is_valid(asked["example"])
    assert rest.post("/v1/models/m:predict", asked["example"]).status_code == 200


@pytest.mark.parametrize("shape", [(None, 1), (None, 2), (3,), (), (2, None, 500)])
def test_the_example_of_a_model_for_texts_is_answered(shape):
    inputs = [spec("line", "DT_STRING", (None,)), spec("c", "DT_STRING", shape)]
    texts = signature(inputs, [spec("y", "DT_STRING", shape)])
    model = serving.Servable({"serving_default": texts}, lambda _, inputs: {"y": inputs["c"]})
    rest = Rest(fake_server({"m": model}))
    told = rest.get("/openapi.json").json["paths"]["/v1/models/m:predict"]["post"]["requestBody"]
    example = told["content"]["application/json"]["example"]
    filled = np.full([size or 1 for size in shape], "YOUR_INPUT").tolist()
    assert rest.post("/v1/models/m:predict", example).json == {"outputs": filled}
    words = shlex.split(rest.get("/v1/client/curl?path=/v2/models/m/infer").text)
    answer = rest.post("/v2/models/m/infer", words[words.index("-d") + 1])
    assert answer.status_code == 200, answer.text


def test_an_example_of_more_texts_than_people_read_has_one():
    texts = signature([spec("x", "DT_STRING", (None, 1001))], [spec("y")])
    rest = Rest(fake_server({"m": serving.Servable({"serving_default": texts}, fail)}))
    told = rest.get("/openapi.json").json["paths"]["/v1/models/m:predict"]["post"]["requestBody"]
    assert told["content"]["application/json"]["example"] == {"inputs": [["YOUR_INPUT"]]}


def test_a_model_without_a_default_signature_is_asked_by_the_first_that_can_be_called():
    models = {"odd": several_signatures("embed", "other"), "m": FakeServable()}
    long = signature([spec("x", shape=(None, 5000))], [spec("y")])
    models["long"] = serving.Servable({"embed": long}, fail)
    refused = several_signatures("embed", "serving_default").signatures  # of these, the default one
    calls = {"embed": serving.SignatureCall(serving.not_made)}
    models["refused"] = serving.Servable(refused, fail, calls=calls)
    server = fake_server(models)
    rest, key = Rest(server), bearer(server.generated_key)
    paths = rest.get("/openapi.json", headers=key).json["paths"]
    assert "/v1/models/odd/metadata" in paths
    told = paths["/v1/models/odd:predict"]["post"]
    example = told["requestBody"]["content"]["application/json"]["example"]
    assert example == {"signature_name": "embed", "inputs": [[1.0]]}
    (outputs,) = [one for one in told["parameters"] if one["name"] == "outputs"]
    assert outputs["schema"]["items"]["enum"] == ["y_embed", "y_other"]
    assert rest.post("/v1/models/odd:predict", example).status_code == 200
    bodies = {
        one["name"]: one["body"] for one in rest.get("/deployments", headers=key).json["models"]
    }
    assert bodies["odd"] == bodies["refused"] == example and "signature_name" not in bodies["m"]
    wide = {**example, "inputs": [["YOUR_INPUT"]]}
    for model, expected in (("odd", example), ("refused", example), ("long", wide)):
        code = rest.get(f"/v1/models/{model}/client/curl").text
        assert json.loads(shlex.split(code)[shlex.split(code).index("-d") + 1]) == expected


@pytest.mark.parametrize("model", ["m", "odd", "multi", "scalar"])
def test_a_program_for_an_inference_of_kserve_sends_a_body_that_is_answered(model):
    several = [spec("a", shape=(None, 2)), spec("b", "DT_INT64"), spec("c", "DT_BOOL", ())]
    models = {"m": FakeServable(), "odd": several_signatures("embed")}
    for name, inputs in {"multi": several, "scalar": [spec("x", "DT_BFLOAT16", ())]}.items():
        same = {"serving_default": signature(inputs, inputs)}
        models[name] = serving.Servable(same, lambda name, inputs: inputs)
    rest = Rest(fake_server(models))
    path = f"/v2/models/{model}/infer"
    words = shlex.split(rest.get(f"/v1/client/curl?path={path}").text)
    answer = rest.post(path, words[words.index("-d") + 1])
    assert answer.status_code == 200, answer.text
    assert {0} != {len(one["data"]) for one in answer.json["outputs"]}


def test_programs_for_calls_that_need_more_than_can_be_made_up():
    server = server_of_two()
    rest, key = Rest(server), bearer("k")
    text = serving.Servable(
        {"serving_default": signature([spec("t", "DT_STRING", (None, 2))], [spec("y")])}, fail
    )
    code = Rest(fake_server({"t": text})).get("/v1/client/curl?path=/v2/models/t/infer").text
    words = shlex.split(code)
    assert json.loads(words[words.index("-d") + 1])["inputs"] == [
        {"name": "t", "datatype": "BYTES", "shape": [1, 2], "data": ["YOUR_INPUT"] * 2}
    ]
    code = rest.get("/v1/client/curl?path=/pets/preview?whole=1", headers=key).text
    assert "-F image=@picture.jpg" in code and "/pets/preview?whole=1" in code


INFER_V2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}


@pytest.mark.parametrize(
    "inputs, outputs",
    [
        ([], [spec("y")]),
        ([spec("x")], []),
        *(([spec("x", dtype)], [spec("y", dtype)]) for dtype in ("DT_COMPLEX64", "DT_INVALID")),
        ([spec("x", "DT_STRING"), spec("z", "DT_COMPLEX64", ())], [spec("y")]),
        *(([spec("x", shape=shape)], [spec("y")]) for shape in ((), (None, 0), (1,) * 254)),
        ([spec("x", shape=(2**32, 2**32))], [spec("y", shape=None)]),
    ],
)
def test_whatever_a_signature_is_it_is_told_and_hides_no_other_model(inputs, outputs):
    odd = serving.Servable({"serving_default": signature(inputs, outputs)}, fail)
    server = fake_server({"odd": odd, "m": FakeServable()})
    rest, key = Rest(server), bearer(server.generated_key)
    document = rest.get("/openapi.json", headers=key).json
    from openapi_spec_validator import validate

    validate(document)
    assert {"/v1/models/m:predict", "/v1/models/odd:predict"} <= document["paths"].keys()
    models = rest.get("/deployments", headers=key).json["models"]
    assert {one["name"]: one["body"] is None for one in models} == {
        "m": False,
        "odd": inputs not in ([spec("x")], [spec("x", shape=())]),
    }
    assert rest.get("/v1/models/odd/client/curl", headers=key).status_code == 200


def test_errors_have_the_shape_that_openapi_says():
    server = server_of_two()
    server.endpoint("/hub", envelope="hub")(fail)
    server.endpoint("/plain")(fail)
    rest = Rest(server)
    document = rest.get("/openapi.json").json
    for path, method, body, key, status in (
        ("/pets/predict", "post", b"", "k", "400"),
        ("/pets/predict", "post", b"", "wrong", "401"),
        ("/pets/classes", "get", None, "wrong", "401"),
        ("/v1/models/m:predict", "post", b"{", "k", "400"),
        ("/v1/models/f:predict", "post", b'{"inputs": [[1]]}', "k", "500"),
        ("/hub", "post", b"1", "k", "500"),
        ("/hub", "post", b"1", "wrong", "401"),
        ("/plain", "post", b"1", "k", "500"),
    ):
        told = document["paths"][path][method]["responses"][status]
        told = document["components"]["responses"][told["$ref"].rpartition("/")[2]]
        answer = rest.open(path, method=method.upper(), data=body, headers=bearer(key))
        assert str(answer.status_code) == status, (path, answer.text)
        (kind, content), *_ = told["content"].items()
        assert answer.mimetype == kind
        jsonschema.validate(answer.json, resolve(document, content["schema"]))
        for wrong in ([], {"errors": "x"}, {"error": 1}):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(wrong, resolve(document, content["schema"]))


def test_a_key_sees_in_openapi_what_it_may_call_alone(tmp_path):
    rest = Rest(server_of_keys(tmp_path))
    everything = rest.get("/openapi.json", headers=bearer("all")).json["paths"]
    seen = rest.get("/openapi.json", headers=bearer("k")).json["paths"]
    hidden = {path for path in everything if path not in seen}
    assert hidden == {"/b/predict", "/b/classes", "/a/b/theirs"} | {
        f"/v1/models/m{part}" for part in ("", "/metadata", ":predict")
    }
    assert "theirs" not in rest.get("/openapi.json", headers=bearer("k")).text


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    "trusted, said, expected",
    [
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, "https://{host}"),
        (
            "127.0.0.1",
            {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "ml.example"},
            "https://ml.example",
        ),
        ("*", {"X-Forwarded-Host": "ml.example:8443"}, "http://ml.example:8443"),
        ("127.0.0.1", {"Forwarded": "proto=https;host=ml.example"}, "http://{host}"),
        ("127.0.0.1", {}, "http://{host}"),
        ("10.0.0.7", {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "x"}, "http://{host}"),
        (None, {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "x"}, "http://{host}"),
    ],
)
def test_only_a_trusted_proxy_says_by_which_address_clients_come(trusted, said, expected, alone):
    extensions = [one for one in serving.installed() if not alone or one.name != "front"]
    server = serving.ModelServer(config(server={"trusted_proxy": trusted}), extensions)
    with listening(server) as address:
        wanted = expected.format(host=address.removeprefix("http://"))
        document = requests.get(f"{address}/openapi.json", headers=said).json()
        code = requests.get(f"{address}/v1/client/curl?path=/livez", headers=said).text
    assert document["servers"] == [{"url": "/"}, {"url": wanted}]
    assert shlex.split(code)[-1] == f"{wanted}/livez"


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("trusted, then", [("127.0.0.1", 200), ("10.0.0.7", 429), (None, 429)])
def test_wrong_keys_are_those_of_the_client_whom_a_trusted_proxy_names(trusted, then, alone):
    auth = {"keys": [key_entry("ann", "good")], "wrong_keys_per_minute": 2}
    extensions = [one for one in serving.installed() if not alone or one.name != "front"]
    server = serving.ModelServer(config(auth=auth, server={"trusted_proxy": trusted}), extensions)

    def ask(key, said):
        headers = {**bearer(key), "X-Forwarded-For": said}
        return requests.get(f"{address}/usage", headers=headers).status_code

    with listening(server) as address:
        # what a client says of itself stands before what the proxy has seen
        said = ["1.1.1.1, 2001:db8::1", "1.1.1.2, 2001:db8::2", "10.9.9.9, 2001:db8::1"]
        assert [ask(f"wrong{one}", one) for one in said] == [401, 401, 429]
        assert ask("good", "2001:db8::1, 10.0.0.2") == then
        assert ask("good", "10.0.0.2, 2001:db8::3") == 429
        told = [401, 401, 429] if then == 200 else [429] * 3
        # as an IPv6 socket spells an address of IPv4, and with a port
        said = ["::ffff:192.0.2.7", "192.0.2.7:4000", "192.0.2.7"]
        assert [ask(f"wrong{one}", one) for one in said] == told
        assert ask("good", "::ffff:192.0.2.8") == then
        said = ["[2001:db8:7::1]:4000", "[2001:db8:7::1]:4001", "[2001:db8:7::2]"]
        assert [ask(f"wrong{one}", one) for one in said] == told


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    "said", [",", ":80", "[]", '"', "unix:", "a" * 5000, "1.1.1.1:x:y", "\xff"]
)
def test_an_address_from_a_proxy_that_is_none_harms_nobody(said, alone, caplog):
    extensions = [one for one in serving.installed() if not alone or one.name != "front"]
    server = serving.ModelServer(config(server={"trusted_proxy": "*"}), extensions)
    with listening(server) as address:
        headers = {"X-Forwarded-For": said.encode("latin-1"), **bearer("wrong")}
        status = requests.get(f"{address}/usage", headers=headers).status_code
    assert status in (400, 401), caplog.text


def test_a_sites_proxy_fix_says_by_which_address_clients_come():
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server_of_two()), url_prefix="/ml")
    site.wsgi_app = ProxyFix(site.wsgi_app, x_proto=1, x_host=1, x_prefix=1)
    said = {
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "a.example",
        "X-Forwarded-Prefix": "/b",
    }
    client = site.test_client()
    servers = client.get("/ml/openapi.json", headers=said).json["servers"]
    assert servers == [{"url": "/b/ml"}, {"url": "https://a.example/b/ml"}]
    code = client.get("/ml/v1/models/m/client/curl", headers=said).text
    assert shlex.split(code)[-1] == "https://a.example/b/ml/v1/models/m:predict"


# --- what the page is built from ------------------------------------------------------------------------------


def test_deployments_tell_what_the_page_needs(demo):
    rest, key = Rest(demo), bearer(demo.generated_key)
    found = rest.get("/deployments", headers=key).json
    (shapes,) = found["deployments"]
    assert (
        shapes["state"] == "ready"
        and shapes["default"]
        and len(shapes["samples"]) == 10
        and shapes["classes"]["4"]["name"] == "star"
    )
    assert {model["name"] for model in found["models"]} == {
        "half_plus_two",
        "half_plus_three",
        "digits",
        "shapes",
    }
    (pipeline,) = found["pipelines"]
    assert [node["name"] for node in pipeline["nodes"]] == ["first", "second"]
    for model in [*found["models"], pipeline]:
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


def test_a_preview_is_small_and_tells_the_pictures_size_and_what_the_model_is_shown(demo):
    rest, key = Rest(demo), bearer(demo.generated_key)
    file = io.BytesIO()
    Image.new("RGB", (2000, 500), "teal").save(file, "PNG")
    for name, arguments, shown, size in (
        (None, {}, "2000x500", (1600, 400)),
        ("Crop", {"xmax": 0.25}, "500x500", (500, 500)),
        ("Resize", {"width": 3200, "height": 100}, "3200x100", (1600, 50)),
        ("Tile", {"size": 500}, "2000x500", (1600, 400)),
    ):
        chain = [{"name": name, "arguments": arguments}] if name else []
        answer = rest.post(
            "/shapes/preview",
            file.getvalue(),
            headers=key,
            query_string={"routines": json.dumps(chain)},
        )
        told = [answer.headers[f"X-{kind}-Size"] for kind in ("Picture", "Shown")]
        assert told == ["2000x500", shown]
        assert Image.open(io.BytesIO(answer.data)).size == size


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


def server_of_keys(folder, protect="all"):
    """Deployments, models and handlers, a key for all and one for some, which has one call a day."""
    deployments = [{"id": "a", "model": "d"}, {"id": "b", "model": "m"}]
    server = fake_server(
        {"m": FakeServable(), "d": FakeDetector()},
        deployments=deployments,
        handlers=[{"path": path, "function": "json:dumps"} for path in ("/mine", "/a/b/theirs")],
        auth={
            "protect": protect,
            "quota_store": str(folder / "quotas"),
            "keys": [
                key_entry("site", "all"),
                key_entry(
                    "few", "k", deployments=["a", "/mine"], quota={"calls": 1, "period": "day"}
                ),
            ],
        },
    )
    return server


@pytest.mark.parametrize("protect", ["predict", "all"])
def test_a_key_gets_client_code_for_what_it_may_call_alone_and_at_no_cost(protect, tmp_path):
    rest = Rest(server_of_keys(tmp_path, protect))
    for path, reached, shared in (
        ("/a/client/go", True, False),
        ("/b/client/go", False, False),
        ("/v1/models/d/client/go", True, True),
        ("/v1/models/m/client/go", False, True),
        ("/v1/models/m/versions/1/client/go", False, True),
        ("/v1/client/go?path=/a/predict", True, True),
        ("/v1/client/go?path=/b/classes", False, True),
        ("/v1/client/go?path=/mine", True, True),
        ("/v1/client/go?path=/a/b/theirs", False, True),
        ("/v1/client/go?path=/v1/config/reload", False, True),
        ("/v1/client/go?path=/v1/models", True, True),
        ("/v1/client/go?path=/livez", True, True),
    ):
        allowed = reached or shared and protect == "predict"
        given = rest.get(path, headers=bearer("k"))
        assert given.status_code == (200 if allowed else 403), (path, given.text)
        assert allowed or given.json["error"] == "The key 'few' is only for: /mine, a"
        assert rest.get(path, headers=bearer("all")).status_code == 200
        assert rest.get(path).status_code == (200 if shared and protect == "predict" else 401)


def test_client_code_for_any_call(how, tmp_path):
    rest = Rest(server_of_keys(tmp_path, "predict"), how)

    def code(path, **wanted):
        given = rest.post("/v1/client/curl", {"path": path, **wanted})
        assert given.status_code == 200, given.text
        return shlex.split(given.text.replace(f"http://localhost{rest.prefix}", ""))

    plain, key = ["curl", "--fail-with-body", "-X"], ["-H", "Authorization: Bearer YOUR_KEY"]
    kind = ["-H", "Content-Type: application/json", "-d"]
    asked = '{"inputs": [[1.0]]}'
    assert code("/v1/models/m:predict") == [*plain, "POST", *kind, asked, "/v1/models/m:predict"]
    assert code("/v1/models/m/versions/1:predict?outputs=y", body=[1])[-2:] == [
        "[1]",
        "/v1/models/m/versions/1:predict?outputs=y",
    ]
    assert code("/v1/models/m:classify")[-2] == '{"examples": ["YOUR_INPUT"]}'
    assert code("/v1/models/m") == [*plain, "GET", "/v1/models/m"]
    assert code("/v1/config/reload") == [*plain, "POST", "/v1/config/reload"]
    assert code("/mine") == [*plain, "POST", *key, *kind, '"YOUR_INPUT"', "/mine"]
    assert code("/mine", method="GET") == [*plain, "GET", *key, "/mine"]
    assert code("/mine", key="it's", body={"ü": "'"})[5:-1] == [
        "Authorization: Bearer it's",
        *kind,
        '{"\\u00fc": "\'"}',
    ]
    picture = code("/a/predict?format=coco&routines=" + quote('[{"name": "Grayscale"}]'))
    assert picture[2:] == [
        *key,
        "-F",
        "image=@picture.jpg",
        "--form-string",
        'routines=[{"name": "Grayscale"}]',
        "/a/predict?format=coco",
    ]


def test_client_code_for_no_call_says_so(tmp_path):
    rest = Rest(server_of_keys(tmp_path, "predict"))
    for wanted, status, text in (
        ({"path": "/v1/nothing"}, 404, "This server has no GET /v1/nothing"),
        ({"path": "/a/predict", "method": "PUT"}, 404, "This server has no PUT /a/predict"),
        ({"path": "/c/predict"}, 404, "There is no deployment 'c'..."),
        ({"path": "/v1/models/x:predict"}, 404, "Servable not found for request: Latest(x)"),
        ({"path": "predict"}, 400, "$.path: expected a path of this server's..."),
        ({"path": "/livez", "method": "get"}, 400, "$.method: expected POST if..."),
        ({"path": 1}, 400, "$.path: expected string, got integer 1"),
        ({"url": "/livez"}, 400, "$.url: unknown key..."),
        ([], 400, "$: expected object, got array"),
        ({"path": "/mine", "key": "a\nb"}, 400, "The key has characters that cannot be printed"),
        (
            {"path": "/mine", "body": "x" * 70_000},
            400,
            "body: expected at most 60000 characters...",
        ),
    ):
        assert_error(rest.post("/v1/client/curl", wanted), status, text)
    assert_error(rest.get("/v1/client/curl"), 400, "$: missing key 'path'...")


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
    for name in ("x.js", "a" * 300):
        assert_error(rest.get(f"/console/{name}"), 404, f"The console has no file '{name}'")
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
    assert server.state["metrics"].read()["total"]["requests"] == 0
    assert not vars(serving.UNTRACED)


def test_routine_declarations_of_ones_own_are_described():
    from serving_extensions.catalogue import describe_routine

    @routines.routine()
    class Twice:
        """Two times. Or more."""

        factor: float | None = routines.argument(None, "how often", minimum=0)
        names: dict[str, str] = dataclasses.field(default_factory=dict)

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
            },
            {
                "name": "names",
                "kind": "map",
                "required": False,
                **dict.fromkeys(("default", "minimum", "maximum", "doc")),
            },
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
                "4",
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
    for path in ("/nowhere", "/", "/livez", "/v1/models/m", "/v1/models/none", "/console/none.js"):
        assert rest.get(path, headers={"X-Request-Id": "r-1"}).headers["X-Request-Id"] == "r-1", (
            path
        )
        assert re.fullmatch("[0-9a-f]{16}", rest.get(path).headers["X-Request-Id"]), path


@pytest.mark.parametrize(("method", "path"), [("GET", "/nothing"), ("FOO", "/v1/models/m:predict")])
def test_an_unknown_url_or_method_is_counted_and_logged_as_any_request(method, path, caplog):
    caplog.set_level("INFO")
    rest = Rest(server_of_two())
    answer = rest.open(path, method=method, headers={"X-Request-Id": "r-1"})
    status = 404 if method == "GET" else 400  # as PUT: "Malformed request"
    assert answer.status_code == status and "total;dur=" in answer.headers["Server-Timing"]
    (line,) = [record.args for record in caplog.records if isinstance(record.args, dict)]
    told = [line[name] for name in ("request_id", "method", "path", "route", "status")]
    assert told == ["r-1", method, path, "none", status]
    counted = f'{{deployment="",model="",route="none",status="{status}",version=""}} 1.0'
    assert f"serving_requests_total{counted}" in rest.get("/metrics").get_data(as_text=True)


def test_an_unknown_url_is_unknown_whatever_is_sent():
    found = Rest(server_of_two()).get("/nope", headers={"X-Request-Timeout": "5s"})
    assert found.status_code == 404


@pytest.mark.parametrize(("wish", "status"), [("abc", 400), ("0", 504)])
def test_a_request_out_of_time_is_answered_and_counted_as_its_url_does(wish, status):
    rest = Rest(server_of_two())
    wrong = rest.post("/pets/predict", "x", headers=bearer("k"))
    answer = rest.post("/pets/predict", "x", headers={**bearer("k"), "X-Request-Timeout": wish})
    assert (wrong.status_code, answer.status_code) == (400, status)
    assert list(answer.json) == list(wrong.json) and answer.json["code"] == status
    assert {error["route"] for error in rest.get("/stats").json["last_errors"]} == {"predict_image"}
    drawn = rest.get("/stats?window=5m").json["series"][0]["total"]["requests"]
    assert drawn == 2


def test_what_a_handler_logs_never_stands_for_parts_of_a_line():
    record = logging.LogRecord(
        "mine", logging.INFO, "f", 1, "payload %s", ({"level": "CRITICAL", "key": "admin"},), None
    )
    line = json.loads(metrics.JsonFormatter().format(record))
    assert line["level"] == "INFO" and "key" not in line
    assert line["message"] == "payload {'level': 'CRITICAL', 'key': 'admin'}"


def test_control_characters_of_a_path_are_not_written_to_the_log(caplog):
    caplog.set_level("INFO", "serving")
    server = fake_server({"m": FakeServable()})
    door = serving.create_app(server).wsgi_app
    path = "/v1/models/\x1b[31mX"
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "REQUEST_URI": path, "QUERY_STRING": ""}
    b"".join(door({**environ, "wsgi.input": io.BytesIO()}, lambda status, headers: None))
    lines = [
        record.getMessage() for record in caplog.records if "/v1/models/" in record.getMessage()
    ]
    assert lines and "\x1b" not in lines[0] and "%1B[31mX" in lines[0]


def test_a_preview_is_what_the_model_is_shown_or_the_picture_that_came():
    chain = [{"name": "Crop", "arguments": {"xmin": 0.5}}]
    deployment = {"id": "pets", "model": "d", "routines": chain}
    key = bearer("k")
    auth = {"keys": [key_entry("site", "k")]}
    rest = Rest(fake_server({"d": FakeDetector()}, auth=auth, deployments=[deployment]))
    picture = image_bytes(Image.new("RGB", (40, 20)))
    body = {"image_type": "base64", "data": base64.b64encode(picture).decode()}
    width, height = 40, 20
    for query, shown in (("", (width // 2, height)), ("?whole=1", (width, height))):
        answer = rest.post(f"/pets/preview{query}", body, headers=key)
        assert Image.open(io.BytesIO(answer.data)).size == shown
        assert answer.headers["X-Picture-Size"] == f"{width}x{height}"
        assert answer.headers["X-Shown-Size"] == "{}x{}".format(*shown)
    assert_error(
        rest.post("/pets/preview?whole=yes", body, headers=key),
        400,
        "whole: expected 1 or 0, got 'yes'",
    )
