"""Keys: every route in every state of a key, quotas, and what a host site puts in their place."""

import contextlib
import datetime
import json
import multiprocessing
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import types

import flask
import numpy as np
import pytest
from conftest import ROOT, FakeDetector, FakeServable, Rest, bearer, config, fake_server, key_entry
from werkzeug.exceptions import Forbidden, HTTPException

import serving
from serving_extensions import catalogue, console, quotas

BODY = json.dumps({"instances": [[1.0]]})
TENSOR = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]})
PICTURE = json.dumps({"image_type": "array", "data": [[[1, 2, 3]]]})
NAME, VERDICT = "0" * 64, json.dumps({"verdict": "accepted"})  # of a picture put aside
# Method, path, body, and who may call: the routes of serving.ROUTES, each at least once.
CALLS = [
    ("POST", "/v1/models/m:predict", BODY, "shared"),
    ("POST", "/model-serving/numbers:predict", BODY, "shared"),
    ("GET", "/v1/models/m/metadata", None, "shared own"),
    ("GET", "/v1/models/m", None, "shared own"),
    ("GET", "/v1/models", None, "shared list"),
    ("GET", "/v1/config", None, "shared list"),
    ("POST", "/v1/config/reload", None, "shared"),
    ("POST", "/v1/config/reload?dry_run=1", None, "shared own"),
    ("POST", "/v1/models/m/load", None, "shared"),
    ("POST", "/v1/models/m/unload", None, "shared"),
    ("GET", "/v2", None, "open"),
    ("GET", "/v2/models/m", None, "shared own"),
    ("GET", "/v2/models/m/ready", None, "shared own"),
    ("POST", "/v2/models/m/infer", TENSOR, "shared"),
    ("GET", "/", None, "open"),
    ("GET", "/livez", None, "open"),
    ("GET", "/readyz", None, "open"),
    ("POST", "/predict", PICTURE, "key"),
    ("POST", "/pictures/predict", PICTURE, "key"),
    ("GET", "/pictures/classes", None, "key"),
    ("GET", "/pictures/active_learning/review", None, "key list own"),
    ("GET", "/pictures/active_learning/review/scores", None, "key list own"),
    ("GET", f"/pictures/active_learning/review/{NAME}.png", None, "key list own"),
    ("PUT", f"/pictures/active_learning/review/{NAME}.png/verdict", VERDICT, "key list own"),
    ("GET", "/deployments", None, "key list"),
    ("GET", "/usage", None, "own"),
    ("GET", "/pictures/client/curl", None, "key list own"),
    ("GET", "/v1/models/m/client/curl", None, "shared list own"),
    ("GET", "/v1/client/curl?path=/livez", None, "shared list"),
    ("GET", "/pictures/samples/0.jpg", None, "key list own"),
    ("POST", "/pictures/preview", PICTURE, "key list own"),
    ("GET", "/metrics", None, "shared own"),
    ("GET", "/stats", None, "shared list"),
    ("GET", "/openapi.json", None, "shared list"),
    ("GET", "/console/", None, "open"),
]
# `m` is not on demand; `/` leads browsers alone to the page.
ADMITTED = {"/v1/models/m/load": 400, "/v1/models/m/unload": 400, "/": 400}
STATES = {
    "no key": 401,
    "wrong": 401,
    "expired": 401,
    "disabled": 401,
    "out of scope": 403,
    "over quota": 429,
    "good": 200,
}


@pytest.fixture(params=["predict", "all"])
def guarded(request, tmp_path, monkeypatch):
    protect = request.param
    entries = [
        key_entry("site", "good"),
        key_entry("old", "expired", expires="2020-01-01"),
        key_entry("off", "disabled", disabled=True),
        key_entry("other", "out of scope", deployments=["elsewhere"]),
        key_entry("busy", "over quota", quota={"calls": 1, "period": "month"}),
    ]
    deployments = [
        {
            "id": "pictures",
            "model": "d",
            "default": True,
            "active_learning": {"threshold": 1, "folder": str(tmp_path)},
        },
        {"id": "numbers", "model": "m"},
        {"id": "elsewhere", "model": "e"},
    ]
    (tmp_path / "review").mkdir()
    (tmp_path / "review" / f"{NAME}.png").write_bytes(b"")
    (tmp_path / "review" / f"{NAME}.json").write_text('{"deployment": "pictures"}')
    monkeypatch.setattr(
        catalogue, "list_samples", lambda server, deployment: [ROOT / "models/shapes/samples/0.jpg"]
    )
    server = fake_server(
        {"m": FakeServable(), "d": FakeDetector(), "e": FakeDetector()},
        deployments=deployments,
        auth={"keys": entries, "protect": protect, "quota_store": str(tmp_path / "quotas")},
    )
    quotas.open_quotas(str(tmp_path / "quotas")).take("busy", 1, "month")
    return protect, Rest(server)


@pytest.mark.parametrize("state", STATES)
def test_every_route_in_every_state_of_a_key(guarded, state):
    protect, rest = guarded
    for method, path, body, guard in CALLS:
        guard, *lists = guard.split()
        asked = guard in ("key", "own") or guard == "shared" and protect == "all"
        # any key sees what it is for, and looking counts for no quota; what is one deployment's or
        # model's own is for its keys
        free = {"list": ("out of scope", "over quota"), "own": ("over quota",)}
        lists = ["list"] if guard == "own" else lists
        expected = 200 if lists and state in free[lists[-1]] else STATES[state]
        for headers in ({"x-api-key": state}, bearer(state)) if state != "no key" else ({},):
            response = rest.open(path, method=method, data=body, headers=headers)
            wanted = expected if asked else 200
            assert response.status_code == (ADMITTED.get(path, 200) if wanted == 200 else wanted), (
                method,
                path,
                response.data,
            )
            refused = response.status_code != 200
            assert ("WWW-Authenticate" in response.headers) == (response.status_code == 401)
            assert ("Retry-After" in response.headers) == (response.status_code == 429)
            assert (
                not refused
                or set(response.json) >= {"error"}
                and state
                not in response.json["error"].replace("is disabled", "").replace("has expired", "")
            ), response.json


def test_every_route_is_in_the_table_above():
    for route in serving.routes_of(serving.installed()):
        if route.view in (serving.view_nameless, console.view_root):  # those refuse, and lead on
            continue
        if route.guard == "admin":  # of test_admin.py
            continue
        guard = f"{route.guard} list" if route.lists else route.guard
        assert any(
            method in route.methods
            and route.pattern.fullmatch(path.partition("?")[0])
            and guard == kind.removesuffix(" own")
            for method, path, _, kind in CALLS
        ), route


def test_an_error_has_the_vendors_body_and_a_request_id(guarded):
    rest = guarded[1]
    response = rest.post("/predict", PICTURE, headers={"X-Request-Id": "abc-1"})
    assert response.json == {
        "error": "A key is needed: send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'",
        "status": "Unauthorized",
        "code": 401,
        "request_id": "abc-1",
    }
    assert response.headers["X-Request-Id"] == "abc-1" and response.headers[
        "WWW-Authenticate"
    ].startswith("Bearer")
    odd = rest.post("/predict", PICTURE, headers={"X-Request-Id": "<script>"})
    assert (
        re.fullmatch("[0-9a-f]{16}", odd.headers["X-Request-Id"])
        and odd.json["request_id"] == odd.headers["X-Request-Id"]
    )


@pytest.mark.parametrize(
    "headers, status",
    [
        ({**bearer("good"), "x-api-key": "good"}, 200),
        ({**bearer("good"), "x-api-key": "wrong"}, 401),
        ({**bearer("wrong"), "x-api-key": "good"}, 401),
        ({"Authorization": "bearer   good"}, 200),
        ({"Authorization": "Basic good"}, 401),
        ({"Authorization": "Basic x", "x-api-key": "good"}, 200),
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": "Bearer good good"}, 401),
        ({"x-api-key": ""}, 401),
        ({**bearer("good"), "x-api-key": " "}, 200),
        ({"Authorization": "Bearer", "x-api-key": "good"}, 200),
        ({"Authorization": "Bearer ", "x-api-key": ""}, 401),
        ({"x-api-key": "g\xf6\xf6d"}, 401),
    ],
)
def test_headers_that_hold_keys(guarded, headers, status):
    assert guarded[1].get("/pictures/classes", headers=headers).status_code == status


@pytest.mark.parametrize(
    "method, path, allowed",
    [
        ("GET", "/pictures/predict", "POST"),
        ("PUT", "/classes", "GET"),
        ("PROPFIND", "/classes", "GET"),  # of WebDAV: one that no rule of Flask's lists
    ],
)
def test_a_wrong_method_at_a_deployments_url_has_the_vendors_body(guarded, method, path, allowed):
    response = guarded[1].open(path, method=method)
    assert response.status_code == 405 and response.headers["Allow"] == allowed
    assert response.json == {
        "error": f"Method {method} is not allowed here: {path}",
        "status": "MethodNotAllowed",
        "code": 405,
        "request_id": response.headers["X-Request-Id"],
    }


def test_the_body_of_a_refused_request_is_not_parsed(guarded, monkeypatch):
    monkeypatch.setattr(serving, "read_image", lambda server, call: pytest.fail("parsed"))
    assert guarded[1].post("/predict", b"{" * 1000).status_code == 401


def test_a_key_for_a_deployment_reaches_its_model_and_nothing_else(tmp_path):
    deployments = [{"id": "a", "model": "m"}, {"id": "b", "model": "d"}]
    rest = Rest(
        fake_server(
            {"m": FakeServable(), "d": FakeDetector()},
            deployments=deployments,
            auth={"protect": "all", "keys": [key_entry("a", "k", deployments=["a"])]},
        )
    )
    for path, status in (
        ("/v1/models/m", 200),
        ("/model-serving/a", 200),
        ("/v1/models/d", 403),
        ("/model-serving/b", 403),
        ("/metrics", 403),
        ("/b/classes", 403),
        ("/nowhere/classes", 403),
        ("/a/classes", 200),
    ):
        assert rest.get(path, headers=bearer("k")).status_code == status, path
    assert rest.get("/b/classes", headers=bearer("k")).json["error"] == "The key 'a' is only for: a"


@pytest.mark.parametrize("protect", ["predict", "all"])
def test_a_key_sees_only_what_it_may_call(tmp_path, protect):
    learning = {"threshold": 0, "folder": str(tmp_path), "group": "shared"}
    deployments = [
        {"id": "a", "model": "m"},
        {"id": "b", "model": "d", "active_learning": learning},
        {"id": "c", "model": "b", "active_learning": learning},  # a model by a deployment's name
    ]
    server = fake_server(
        {"m": FakeServable(), "d": FakeDetector(), "b": FakeDetector()},
        deployments=deployments,
        auth={
            "protect": protect,
            "keys": [
                key_entry("site", "all"),
                key_entry("mine", "k", deployments=["b"], quota={"calls": 1, "period": "day"}),
            ],
            "quota_store": str(tmp_path / "quotas"),
        },
    )
    server.endpoint("/other")(lambda inputs: inputs)
    rest = Rest(server)
    for path in ("/b/predict", "/c/predict"):
        rest.post(
            path,
            json.dumps({"image_type": "array", "data": [[[len(path), 2, ord(path[1])]]]}),
            headers=bearer("all"),
        )
    (
        rest.post("/v1/models/m:predict", BODY, headers=bearer("all")),
        rest.get("/nowhere/classes", headers=bearer("all")),
    )

    def get(path, key="k"):
        response = rest.get(path, headers=bearer(key))
        assert response.status_code == 200, (path, response.data)
        return response.json

    for _ in range(2):  # looking costs nothing of the one call that it has
        shown = get("/deployments")
        assert [d["id"] for d in shown["deployments"]] == ["b"] and [
            m["name"] for m in shown["models"]
        ] == ["d"]
    assert [d["id"] for d in get("/deployments", "all")["deployments"]] == ["a", "b", "c"]
    get("/b/active_learning/shared", "all")  # waits until both are written
    assert [
        entry["deployment"] for entry in [*map(origin_of, sorted(tmp_path.glob("shared/*.json")))]
    ] in (["b", "c"], ["c", "b"])
    if protect == "all":
        assert (
            [model["name"] for model in get("/v1/models")["models"]]
            == ["d"]
            == list(get("/v1/config"))
        )
        stats, paths = get("/stats"), get("/openapi.json")["paths"]
        assert (
            set(stats["groups"]) == {"d"} == {name.split("/")[0] for name in stats["versions"]}
            and stats["last_errors"] == []
        )
        assert (
            "/other" not in paths
            and "/b/predict" in paths
            and not [p for p in paths if p.startswith("/c/")]
        )
    assert len(get("/b/active_learning/shared")["images"]) == 1
    assert len(get("/b/active_learning/shared", "all")["images"]) == 2


def origin_of(path):
    return json.loads(path.read_bytes())


async def somebody(request):
    return True


@pytest.mark.parametrize(
    ("check", "status", "name"),
    [
        (lambda request: True, 200, "site"),
        (lambda request: "ann", 200, "ann"),
        (lambda request: False, 401, ""),
        (lambda request: None, 401, ""),
        (lambda request: "", 401, ""),
        (lambda request: flask.Response("go away", 403), 500, "Response"),
        (lambda request: ("no", 403), 500, "tuple"),
        (somebody, 500, "coroutine"),
        (lambda request: 1, 500, "int"),
        (lambda request: [], 500, "list"),
        (lambda request: object(), 500, "object"),
        (lambda request: "two\nlines", 500, "str"),
        (lambda request: np.True_, 500, "bool"),
    ],
)
@pytest.mark.parametrize("how", ["blueprint", "app"])
def test_a_sites_check_answers_true_false_none_or_a_name_and_nothing_else(
    check, status, name, how, caplog
):
    server = fake_server({"d": FakeDetector()}, deployments=[{"id": "p", "model": "d"}])
    site = serving.create_app(server, authorize=check) if how == "app" else flask.Flask("site")
    if how == "blueprint":
        site.register_blueprint(serving.create_blueprint(server, authorize=check))
    caplog.set_level("INFO", "serving")
    response = site.test_client().get("/p/classes")
    assert response.status_code == status
    if status == 500:
        assert (
            f"authorize= has returned {name}" in response.json["error"]
            and "must return True" in response.json["error"]
        )
    if status == 200:
        assert f" {name} GET /p/classes 200" in caplog.text


def test_a_key_is_made_while_the_config_has_none(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_config_list": []}')
    server = serving.ModelServer(path, poll_seconds=0)
    assert server.wait(10), (
        "else the first pass may take over what is written below, and the reload has nothing to do"
    )
    rest, made = Rest(server), server.generated_key
    assert len(made) >= 32 and rest.get("/x/classes", headers=bearer(made)).status_code == 404
    path.write_text(
        json.dumps({"model_config_list": [], "auth": {"keys": [key_entry("site", "mine")]}})
    )
    assert rest.post("/v1/config/reload").status_code == 201
    assert server.generated_key is None
    assert [rest.get("/x/classes", headers=bearer(key)).status_code for key in (made, "mine")] == [
        401,
        404,
    ]
    path.write_text(
        '{"model_config_list": [], "auth": {"keys": [{"name": "a", "sha256": "short"}]}}'
    )
    assert rest.post("/v1/config/reload").status_code == 412
    assert rest.get("/x/classes", headers=bearer("mine")).status_code == 404, (
        "a wrong config leaves the keys as they were"
    )


@pytest.mark.parametrize(
    "auth, text",
    [
        (
            {"keys": [{"name": "a", "sha256": "x"}]},
            "$.auth.keys[0].sha256: expected 64 hexadecimal digits",
        ),
        (
            {"keys": [key_entry("a", "1"), key_entry("a", "2")]},
            "$.auth.keys[1].name: it is already taken by keys[0]",
        ),
        (
            {"keys": [key_entry("a", "1", expires="soon")]},
            "$.auth.keys[0].expires: expected a date or time such as",
        ),
        (
            {"keys": [key_entry("a", "1", quota={"calls": 1, "period": "year"})]},
            "$.auth.keys[0].quota.period: expected minute, hour, day or month",
        ),
        (
            {"keys": [key_entry("a", "1", quota={"calls": 0, "period": "day"})]},
            "$.auth.keys[0].quota.calls: expected at least 1, got 0",
        ),
        ({"protect": "none"}, "$.auth.protect: expected predict:"),
        ({"key": []}, "$.auth: unknown key; did you mean 'keys'?"),
    ],
)
def test_wrong_keys_in_the_config(auth, text):
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": [], "auth": auth})
    assert raised.value.message.startswith(text)


def test_a_key_for_a_deployment_that_is_not_there():
    with pytest.raises(serving.ConfigError, match="no deployment has that id"):
        serving.load_config(
            {
                "model_config_list": [],
                "deployments": [{"id": "y", "model": "m"}],
                "auth": {"keys": [key_entry("a", "1", deployments=["x"])]},
            }
        )


@pytest.mark.parametrize(
    "expires, before, after",
    [
        ("2027-01-31", "2027-01-30T23:59:59+00:00", "2027-01-31T00:00:00+00:00"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T09:59:59+00:00", "2027-01-31T10:00:00+00:00"),
        ("2027-01-31T12:00:00Z", "2027-01-31T11:59:59+00:00", "2027-01-31T12:00:00+00:00"),
    ],
)
def test_expiry(expires, before, after, monkeypatch):
    key = serving.parse(serving.Auth, {"keys": [key_entry("a", "k", expires=expires)]}).keys[0]
    ring = serving.KeyRing([key], lambda *_: None)
    for moment, let_in in ((before, True), (after, False)):

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, zone, moment=moment):
                return cls.fromisoformat(moment)

        clock = types.SimpleNamespace(datetime=Clock, timezone=datetime.timezone)
        monkeypatch.setattr(serving, "datetime", clock)
        if let_in:
            assert ring.check(["k"], set()) is key
        else:
            with pytest.raises(serving.ServingError, match="expired"):
                ring.check(["k"], set())


# --- quotas ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "moment, period, start, end",
    [
        ("2026-11-25T15:30:59", "minute", "2026-11-25T15:30:00", "2026-11-25T15:31:00"),
        ("2026-11-25T15:30:59", "hour", "2026-11-25T15:00:00", "2026-11-25T16:00:00"),
        ("2026-11-25T15:30:59", "day", "2026-11-25T00:00:00", "2026-11-26T00:00:00"),
        ("2026-11-25T15:30:59", "month", "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
        ("2026-12-31T23:59:59", "month", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("2028-02-29T12:00:00", "month", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
    ],
)
def test_periods_are_those_of_the_calendar(moment, period, start, end):
    def seconds(text):
        return datetime.datetime.fromisoformat(text + "+00:00").timestamp()

    assert quotas.period_of(seconds(moment) + 0.5, period) == (seconds(start), seconds(end))


def test_quota_begins_anew_with_each_period_and_survives_a_clock_set_back(tmp_path):
    now = [1_000_000_000.0]
    store = quotas.Quotas(tmp_path / "q", clock=lambda: now[0])
    assert [store.take("a", 2, "hour") for _ in range(3)] == [
        None,
        None,
        3600 - 1_000_000_000 % 3600,
    ]
    assert store.take("b", 2, "hour") is None
    now[0] += 3600
    assert store.take("a", 2, "hour") is None
    now[0] -= 3600
    assert store.take("a", 2, "hour") is not None, (
        "the hour before is used up, also when it comes again"
    )


def test_quota_is_exact_under_concurrency(tmp_path):
    store, let_in = quotas.Quotas(tmp_path / "q"), []

    def call():
        for _ in range(50):
            if store.take("a", 300, "month") is None:
                let_in.append(1)

    threads = [threading.Thread(target=call) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 300 and quotas.Quotas(tmp_path / "q").used("a", "month") == 300


def take_many(path, calls, results):
    store = quotas.Quotas(path)
    results.put(sum(store.take("a", 500, "month") is None for _ in range(calls)))


def test_quota_is_exact_over_processes(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=take_many, args=(tmp_path / "q", 200, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert sum(results.get(timeout=60) for _ in processes) == 500
    for process in processes:
        process.join(10)


def test_quota_survives_kill_9(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom serving_extensions import quotas\nstore = quotas.Quotas({str(tmp_path / 'q')!r})\n"
        "while True:\n    store.take('a', 10**9, 'month')\n    print('.', end='', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    answered = len(os.read(process.stdout.fileno(), 1))
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    answered += len(process.stdout.read())
    counted = quotas.Quotas(tmp_path / "q").used("a", "month")
    assert answered > 10 and counted - answered in (0, 1), (
        "what was answered was counted; one may be counted and not answered"
    )


def test_quota_that_cannot_be_counted_lets_nobody_in(guarded, monkeypatch):
    def fail(self):
        raise quotas.sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(quotas.Quotas, "_connect", fail)
    response = guarded[1].get("/pictures/classes", headers=bearer("over quota"))
    assert (
        response.status_code == 503
        and response.json["error"]
        == "The calls of key 'busy' cannot be counted just now: database or disk is full"
    )
    assert guarded[1].get("/pictures/classes", headers=bearer("good")).status_code == 200


def test_quota_store_that_cannot_be_opened_is_a_wrong_config(tmp_path):
    auth = {
        "keys": [key_entry("a", "1", quota={"calls": 1, "period": "day"})],
        "quota_store": str(tmp_path / "none" / "q"),
    }
    with pytest.raises(
        serving.ConfigError,
        match=r"\$.auth.quota_store: cannot be opened: unable to open database file",
    ):
        serving.ModelServer({"model_config_list": [], "auth": auth})


def test_quota_store_that_takes_no_count_is_a_wrong_config(tmp_path, monkeypatch):
    path, connect = tmp_path / "q", sqlite3.connect
    quotas.Quotas(path).take("a", 1, "day")
    reads = lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options)  # noqa: E731
    monkeypatch.setattr(quotas.sqlite3, "connect", reads)
    auth = {"keys": [key_entry("a", "1", quota={"calls": 1, "period": "day"})]}
    with pytest.raises(serving.ConfigError, match="cannot be opened: attempt to write a readonly"):
        serving.ModelServer(config(auth={**auth, "quota_store": str(path)}))


def test_a_store_that_fails_later_is_logged_once(tmp_path, caplog):
    store = quotas.Quotas(tmp_path / "q")
    store.take("a", 1, "day")
    store._database.execute("PRAGMA query_only = 1")
    for _ in range(3):
        with pytest.raises(OSError, match="readonly"):
            store.take("a", 9, "day")
    assert caplog.text.count("attempt to write a readonly database") == 1
    assert f"Calls cannot be counted in {tmp_path / 'q'}: " in caplog.text


def test_a_stopped_server_leaves_a_store_that_may_be_removed(tmp_path):
    auth = {
        "keys": [key_entry("a", "k", quota={"calls": 1, "period": "day"})],
        "quota_store": str(tmp_path / "q"),
    }
    for _ in range(2):
        server = fake_server(
            {"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}], auth=auth
        )
        rest = Rest(server)
        statuses = [rest.post("/predict", PICTURE, headers=bearer("k")).status_code for _ in "12"]
        assert statuses == [200, 429]
        server.stop()
        # SQLite removes the -wal and the -shm with the last connection.
        assert os.listdir(tmp_path) == ["q"]
        (tmp_path / "q").unlink()


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no open file")
def test_a_store_that_is_removed_while_it_counts_begins_anew(tmp_path):
    store = quotas.Quotas(tmp_path / "q")
    for _ in range(2):
        assert [store.take("a", 2, "day") is None for _ in range(3)] == [True, True, False]
        with contextlib.closing(sqlite3.connect(tmp_path / "q")) as database:
            assert database.execute("SELECT key, count FROM calls").fetchall() == [("a", 2)]
        for file in tmp_path.iterdir():
            file.unlink()


@pytest.mark.parametrize("command", ["--check", "--doctor"])
def test_who_looks_at_a_config_makes_no_quota_store(tmp_path, command, monkeypatch):
    monkeypatch.setattr("serving_extensions.doctor.probe_tensorflow", lambda: {"problem": "none"})
    key = key_entry("a", "1", quota={"calls": 1, "period": "day"})
    config = {"model_config_list": [], "auth": {"keys": [key]}, "admin": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    serving.main([command, "--config", str(tmp_path / "config.json"), "--port", "0"])
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_quota_over_http_is_counted_once_a_call(tmp_path):
    auth = {
        "keys": [key_entry("a", "k", quota={"calls": 3, "period": "day"})],
        "quota_store": str(tmp_path / "q"),
    }
    rest = Rest(
        fake_server({"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}], auth=auth)
    )
    statuses = [rest.post("/predict", PICTURE, headers=bearer("k")).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    response = rest.post("/predict", PICTURE, headers=bearer("k"))
    assert (
        0 < int(response.headers["Retry-After"]) <= 86400
        and response.json["status"] == "TooManyRequests"
    )
    assert response.json["error"].startswith(
        "The key 'a' has used its 3 calls per day; try again in "
    )


def test_the_log_names_the_key_that_was_not_let_in(tmp_path, caplog):
    caplog.set_level("INFO")
    keys = [
        key_entry("many", "m", quota={"calls": 1, "period": "day"}),
        key_entry("other", "o", deployments=["e"]),
        key_entry("gone", "g", expires="2020-01-01T00:00:00Z"),
    ]
    auth = {"keys": keys, "quota_store": str(tmp_path / "q")}
    deployments = [{"id": "d", "model": "d"}, {"id": "e", "model": "d"}]
    rest = Rest(fake_server({"d": FakeDetector()}, deployments=deployments, auth=auth))
    for key in ("m", "m", "o", "g", "wrong"):
        rest.post("/d/predict", PICTURE, headers=bearer(key))
    lines = [record.args for record in caplog.records if isinstance(record.args, dict)]
    assert [(line["key"], line["status"]) for line in lines] == [
        ("many", 200),
        ("many", 429),
        ("other", 403),
        ("gone", 401),
        ("-", 401),
    ]


def test_a_count_that_cannot_be_read_is_told_as_it_was(tmp_path):
    store = quotas.Quotas(tmp_path / "q")
    assert store.take("a", 5, "month") is None
    store.add("a", 3)
    assert (store.used("a", "month"), store.used("a", "usage")) == (1, 3)
    with contextlib.closing(sqlite3.connect(tmp_path / "q")) as database:
        database.execute("DROP TABLE calls")
    assert (store.used("a", "month"), store.used("a", "usage")) == (1, 3)


# --- the host site's own check, and the command line ---------------------------------------------------------


@pytest.mark.parametrize(
    "check, status",
    [
        (lambda request: True, 200),
        (lambda request: "alice", 200),
        (lambda request: False, 401),
        (lambda request: None, 401),
        (lambda request: flask.abort(403), 403),
        (lambda request: flask.abort(flask.redirect("/login")), 302),
        (lambda request: request.cookies.get("session") == "yes", 401),
    ],
)
def test_a_host_sites_own_check_stands_in_for_keys(check, status, caplog):
    caplog.set_level("INFO")
    server = fake_server({"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}])
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server, authorize=check), url_prefix="/ml")
    client = site.test_client()
    assert client.post("/ml/predict", data=PICTURE).status_code == status
    assert client.get("/ml/livez").status_code == 200
    assert ("alice POST" in caplog.text) == (check(None) == "alice" if status == 200 else False)


@pytest.mark.parametrize("is_handled", [True, False])
def test_an_error_of_a_sites_check_is_answered_as_the_site_answers_it(is_handled, caplog):
    class NoToken(Exception):
        pass

    def check(request):
        raise NoToken("Missing cookie")

    server = fake_server({"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}])
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server, authorize=check), url_prefix="/ml")
    if is_handled:  # as flask-jwt-extended registers its own
        site.register_error_handler(NoToken, lambda error: ({"msg": str(error)}, 401, {"A": "b"}))
    response = site.test_client().post("/ml/predict", data=PICTURE)
    if is_handled:
        assert (response.status_code, response.json) == (401, {"msg": "Missing cookie"})
        assert response.headers["A"] == "b" and "Traceback" not in caplog.text
    else:
        assert response.status_code == 500 and "Missing cookie" not in response.text
        assert "NoToken: Missing cookie" in caplog.text


@pytest.mark.parametrize("error, status", [(Forbidden(), 403), (RuntimeError("odd"), 500)])
def test_the_server_answers_what_is_no_exception_of_the_sites_own(error, status):
    def check(request):
        raise error

    server = fake_server({"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}])
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server, authorize=check), url_prefix="/ml")
    for handled in (403, 500, HTTPException):
        site.register_error_handler(handled, lambda error: ("the site's page", 418))
    response = site.test_client().post("/ml/predict", data=PICTURE)
    assert (response.status_code, response.json["code"]) == (status, status)


def test_a_mounted_server_without_keys_says_where_its_key_is(caplog):
    flask.Flask("site").register_blueprint(serving.create_blueprint({"model_config_list": []}))
    assert "ModelServer.generated_key" in caplog.text
    caplog.clear()
    serving.create_blueprint({"model_config_list": []}, authorize=lambda request: True)
    serving.create_blueprint({"model_config_list": [], "auth": {"keys": [key_entry("a", "k")]}})
    assert "generated_key" not in caplog.text


def test_new_key_prints_a_key_and_the_json_that_lets_it_in(capsys):
    assert serving.main(["--new-key", "laptop"]) == 0
    shown, _, entry = capsys.readouterr().out.strip().split("\n")
    key, entry = shown.removeprefix("Key, shown this once: "), json.loads(entry)
    assert entry == key_entry("laptop", key)
    rest = Rest(fake_server({}, auth={"keys": [entry]}))
    assert rest.get("/x/classes", headers=bearer(key)).status_code == 404
    assert serving.main(["--new-key", "no spaces"]) == 2
    assert capsys.readouterr().err.endswith("; got a text of 9 characters\n")


def test_keys_are_in_no_log(guarded, caplog):
    caplog.set_level("DEBUG")
    for state in STATES:
        guarded[1].get("/pictures/classes", headers=bearer(f"{state}"))
        guarded[1].get("/pictures/classes", headers={"x-api-key": "s3cret-" + state})
    assert "s3cret" not in caplog.text and "good" not in caplog.text
    assert re.search(r"[0-9a-f]{16} site GET /pictures/classes 200 [0-9.]+ ms", caplog.text)


def test_comparing_takes_every_key_whole(monkeypatch):
    compared = []
    monkeypatch.setattr(serving.hmac, "compare_digest", lambda a, b: compared.append(b) or a == b)
    entries = serving.parse(serving.Auth, {"keys": [key_entry(name, name) for name in "abc"]}).keys
    ring = serving.KeyRing(entries, lambda *_: None)
    assert ring.find("a").name == "a" and len(compared) == 3
    with contextlib.suppress(Exception):
        ring.find("\udcff")
    assert len(compared) == 6


@pytest.mark.parametrize("protect, said", [("predict", 1), ("all", 0)])
def test_what_a_sites_own_check_leaves_open_is_said(caplog, protect, said):
    server = fake_server({"m": FakeServable(1)}, auth={"protect": protect})
    server.wait()
    serving.create_blueprint(server, authorize=lambda request: None)
    assert caplog.text.count("open to everybody") == said
    site = flask.Flask("site")
    blueprint = serving.create_blueprint(server, authorize=lambda request: None)
    site.register_blueprint(blueprint, url_prefix="/ml")
    client, url = site.test_client(), "/ml/v1/models/m:predict"
    answer = client.post(url, json={"instances": [[1.0]]})
    assert answer.status_code == (200 if said else 401)  # which is what is said of it


def test_what_was_counted_long_ago_is_forgotten(tmp_path):
    now = [1_800_000_000.0]
    store = quotas.Quotas(tmp_path / "q", clock=lambda: now[0])
    for _ in range(500):
        assert store.take("a", 5, "minute") is None
        store.take("a", 9, "day")
        now[0] += 60
    with contextlib.closing(sqlite3.connect(tmp_path / "q")) as database:
        rows = database.execute("SELECT period, COUNT(*) FROM calls GROUP BY period").fetchall()
    assert dict(rows)["minute"] <= 2
    assert store.used("a", "day") == 9
