"""In a host site nothing of the host changes; two servers live in one process; other WSGI servers do."""

import json
import re
from urllib.parse import quote

import pytest
from conftest import ROOT, FakeServable, Rest, assert_error, fake_server
from flask import Flask, jsonify
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

import serving


@pytest.fixture
def site():
    """A site with a login hook, error pages and a JSON provider of its own."""
    app = Flask("site")
    app.json.sort_keys = False

    @app.before_request
    def login():
        from flask import request

        if request.headers.get("X-User") != "ann":
            return "please log in", 403

    @app.errorhandler(404)
    def missing(error):
        return "the site's own page", 404

    @app.errorhandler(400)
    def bad(error):
        return "the site's own bad page", 400

    @app.errorhandler(Exception)
    def broken(error):
        return "the site's own 500", 500

    @app.get("/")
    def home():
        return "home"

    @app.get("/api/numbers")
    def numbers():
        return jsonify(b=1, a=2)

    return app


ANN = {"X-User": "ann"}


@pytest.mark.parametrize("prefix", ["/ml", "/a/b/v1/c", None])
def test_blueprint_changes_nothing_of_its_host(site, prefix):
    site.register_blueprint(
        serving.create_blueprint(fake_server({"m": FakeServable()})), url_prefix=prefix
    )
    client, prefix = site.test_client(), prefix or ""
    assert client.get("/", headers=ANN).data == b"home"
    assert (
        client.get("/api/numbers", headers=ANN).data.replace(b" ", b"").strip() == b'{"b":1,"a":2}'
    )
    assert client.get("/nowhere", headers=ANN).data == b"the site's own page"
    assert client.get(f"{prefix}/v3/x", headers=ANN).data == b"the site's own page"
    assert client.get(f"{prefix}/v1/models").data == b"please log in"
    response = client.post(
        f"{prefix}/v1/models/m:predict", data='{"instances": [[2.0]]}', headers=ANN
    )
    assert json.loads(response.data) == {"predictions": [[2.0]]}
    assert_error(
        client.post(f"{prefix}/v1/models/x:predict", data="{}", headers=ANN),
        404,
        "Servable not found for request: Latest(x)",
    )
    assert_error(
        client.post(f"{prefix}/v1/models/m:predict", data="{", headers=ANN),
        400,
        "JSON Parse error: ...",
    )


def test_two_servers_in_one_site(site):
    for name, version in (("one", 1), ("two", 2)):
        site.register_blueprint(
            serving.create_blueprint(fake_server({"m": FakeServable(version)})),
            url_prefix=f"/{name}",
        )
    client = site.test_client()
    for name, version in (("one", 1), ("two", 2)):
        response = client.post(
            f"/{name}/v1/models/m:predict", data='{"inputs": [0.0]}', headers=ANN
        )
        assert json.loads(response.data) == {"outputs": [float(version)]}


def test_dispatcher_keeps_its_host(site):
    app = DispatcherMiddleware(
        site.wsgi_app, {"/ml": serving.create_app(fake_server({"m": FakeServable()}))}
    )
    client = Client(app)
    assert client.get("/", headers=ANN).data == b"home"
    assert client.get("/ml/livez").status_code == 200
    assert_error(
        client.get("/ml/nowhere"),
        404,
        "Not Found: GET /ml/nowhere. The models are listed at /ml/v1/models",
    )


@pytest.mark.parametrize(
    "name",
    ["a/b:c", "metadata", "versions", "with space", "é", "100%", "a+b", "m?x=1", "...", "x.y-z_1"],
)
def test_odd_model_names_are_reached_percent_encoded(how, name):
    client = Rest(fake_server({name: FakeServable()}), how)
    url = "/v1/models/" + quote(name, safe="")
    assert json.loads(client.get(url).data)["model_version_status"][0]["state"] == "AVAILABLE"
    assert json.loads(client.post(url + ":predict?trace=1", {"inputs": [0.0]}).data) == {
        "outputs": [1.0]
    }
    assert json.loads(client.get(url + "/metadata").data)["model_spec"]["name"] == name


def test_case_of_the_path_is_free_and_of_the_name_is_not(how):
    client = Rest(fake_server({"m": FakeServable()}), how)
    assert json.loads(
        client.post("/V1/Models/m/Versions/0001:predict", {"inputs": [0.0]}).data
    ) == {"outputs": [1.0]}
    assert json.loads(client.get("/v1/models/m/METADATA").data) == client.server.status("m")
    assert_error(client.get("/v1/models/M"), 404, "Could not find any versions of model M")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain; charset=x"},
        {"Content-Type": "multipart/form-data; boundary=x"},
    ],
)
def test_content_type_is_ignored(how, headers):
    client = Rest(fake_server({"m": FakeServable()}), how)
    assert json.loads(
        client.post("/v1/models/m:predict", '{"inputs": [0.0]}', headers=headers).data
    ) == {"outputs": [1.0]}


def test_health_needs_no_model(how):
    client = Rest(fake_server({}), how)
    for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == client.open(path, method="HEAD").status_code == 200
    for path in ("/openapi.json", "/stats?window=5m", "/v2", "/metrics"):  # RFC 9110, 9.1
        asked = client.open(path, method="HEAD")
        assert (asked.status_code, asked.data) == (200, b"")
        assert asked.content_type == client.get(path).content_type
    assert client.get("/v2/health/live").json["live"] is True
    assert client.get("/v2/health/ready").json["ready"] is True


# --- CORS -------------------------------------------------------------------------------------------------

ORIGIN = {"Origin": "https://site.example"}


def test_no_cors_headers_without_the_option(how):
    client = Rest(fake_server({"m": FakeServable()}), how)
    assert "Access-Control-Allow-Origin" not in client.get("/v1/models/m", headers=ORIGIN).headers
    response = client.open("/v1/models/m:predict", method="OPTIONS", headers=ORIGIN)
    assert (
        response.status_code == 200
        and response.data == b""
        and "Access-Control-Allow-Methods" not in response.headers
    )


@pytest.mark.parametrize(
    "origins, allowed",
    [(["https://site.example"], True), (["*"], True), (["https://other.example"], False)],
)
def test_cors_lets_the_listed_origins_in(how, origins, allowed):
    client = Rest(fake_server({"m": FakeServable()}, server={"cors_origins": origins}), how)
    for response in (
        client.get("/v1/models/m", headers=ORIGIN),
        client.get("/v1/models/nope", headers=ORIGIN),
        client.open("/v1/models/m:predict", method="OPTIONS", headers=ORIGIN),
    ):
        assert (
            response.headers.get("Access-Control-Allow-Origin") == "https://site.example"
        ) == allowed
        assert "Origin" in response.headers["Vary"]
    preflight = client.open("/v1/models/m:predict", method="OPTIONS", headers=ORIGIN)
    for header in ("Authorization", "x-api-key", "Content-Type"):
        assert header in preflight.headers["Access-Control-Allow-Headers"]
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize(
    "origin", ["null", "capacitor://localhost", "tauri://localhost", "chrome-extension://abc"]
)
def test_apps_and_files_are_let_in_where_all_are(origin):
    client = Rest(fake_server({"m": FakeServable()}, server={"cors_origins": ["*"]}))
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for method in ("OPTIONS", "GET"):
        answer = client.open("/v1/models/m", method=method, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["Access-Control-Allow-Origin"] == origin
    client = Rest(
        fake_server({"m": FakeServable()}, server={"cors_origins": ["https://site.example"]})
    )
    answer = client.open("/v1/models/m", method="OPTIONS", headers=headers)
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_every_header_that_is_read_may_be_sent():
    """Those that the sources ask a request for; a browser writes the others itself."""
    sources = [ROOT / "serving.py", *sorted((ROOT / "serving_extensions").glob("*.py"))]
    text = "".join(path.read_text() for path in sources)
    named = set(re.findall(r'call\.header\("([A-Za-z-]+)"', text))
    named |= {name.replace("_", "-") for name in re.findall(r'"HTTP_([A-Z_]+)"', text)}
    written_by_browsers = {"origin", "upgrade", "accept-encoding", "access-control-request-method"}
    client = Rest(fake_server({"m": FakeServable()}, server={"cors_origins": ["*"]}))
    answer = client.open("/v1/models/m:predict", method="OPTIONS", headers=ORIGIN)
    allowed = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {name.lower() for name in named} - written_by_browsers <= set(allowed)


def test_every_header_that_is_written_may_be_read():
    client = Rest(fake_server({"m": FakeServable()}, server={"cors_origins": ["*"]}))
    headers = {**ORIGIN, "Accept": "application/octet-stream"}
    answer = client.post("/v1/models/m:predict", '{"instances": [[1.0]]}', headers=headers)
    assert answer.status_code == 200
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"X-Tensor-Shape", "X-Tensor-Dtype", "X-Request-Id", "Server-Timing"} <= set(exposed)
