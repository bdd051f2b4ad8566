"""Sites as people make them, the server mounted in each: tests/sites has the sites."""

import contextlib
import errno
import gc
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import weakref

import flask
import numpy as np
import pytest
from conftest import (
    ROOT,
    FakeDetector,
    FakeServable,
    assert_error,
    bearer,
    fake_server,
    free_port,
    image_bytes,
    until,
)
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from flask_wtf.csrf import CSRFProtect
from PIL import Image
from sites import csrf, factory, limited, members, shared
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import TooManyRequests, Unauthorized
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.test import Client

import serving

PREDICT = {"data": '{"instances": [[2.0]]}'}
ANSWER = {"predictions": [[2.0]]}


@pytest.fixture
def server():
    return fake_server({"m": FakeServable()})


# --- extensions -------------------------------------------------------------------------------------------


def test_a_site_that_flask_wtf_protects_exempts_the_blueprint(server):
    client = csrf.create_app(server).test_client()
    assert client.post("/ml/v1/models/m:predict", **PREDICT).json == ANSWER
    assert client.get("/ml/v1/models").status_code == 200
    assert client.post("/form").status_code == 400


def test_without_the_exemption_flask_wtf_says_what_is_missing(server):
    client = csrf.create_app(server, exempt=False).test_client()
    response = client.post("/ml/v1/models/m:predict", **PREDICT)
    assert response.status_code == 400 and b"The CSRF token is missing" in response.data
    assert client.get("/ml/v1/models").status_code == 200


def test_flask_limiter_counts_the_servers_urls_alone(server):
    client = limited.create_app(server).test_client()
    statuses = [client.post("/ml/v1/models/m:predict", **PREDICT).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert [client.get("/").status_code for _ in range(4)] == [200] * 4


def test_flask_limiter_and_flask_wtf_tell_a_second_server_from_the_first():
    site = flask.Flask("site")
    site.secret_key = "of a test"
    protect = CSRFProtect(site)
    limiter = Limiter(get_remote_address, app=site, storage_uri="memory://")
    blueprints = [serving.create_blueprint(fake_server({"m": FakeServable()})) for _ in range(2)]
    protect.exempt(blueprints[1])
    for index, blueprint in enumerate(blueprints):
        site.register_blueprint(blueprint, url_prefix=f"/{index}")
    limiter.limit("1 per minute")(blueprints[1])
    client = site.test_client()
    statuses = [
        client.post(f"/{index}/v1/models/m:predict", **PREDICT).status_code
        for index in (0, 0, 1, 1)
    ]
    assert statuses == [400, 400, 200, 429]


def test_a_default_limit_of_the_whole_site_holds_for_the_servers_urls(server):
    client = limited.create_app(server, "1 per minute").test_client()
    statuses = [client.post("/ml/v1/models/m:predict", **PREDICT).status_code for _ in range(2)]
    assert statuses == [200, 429]


def test_flask_login_lets_its_members_in():
    server = fake_server({"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}])
    client = members.create_app(server).test_client()
    assert client.post("/ml/predict", data=picture()).status_code == 401
    assert client.post("/login").status_code == 200
    assert client.post("/ml/predict", data=picture()).status_code == 200


@pytest.mark.parametrize("origin", ["https://page.example", "null", "capacitor://localhost"])
def test_flask_cors_opens_the_servers_urls_to_other_pages(server, origin):
    client = shared.create_app(server).test_client()
    ask = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    preflight = client.options("/ml/v1/models/m:predict", headers=ask)
    answer = client.post("/ml/v1/models/m:predict", headers=ask, **PREDICT)
    assert preflight.status_code == 200 and answer.json == ANSWER
    for response in (preflight, answer):
        allowed = response.headers.getlist("Access-Control-Allow-Origin")
        assert allowed == [origin]
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]


def test_a_login_around_every_view_of_the_app_is_asked(server):
    app = serving.create_app(server)
    client = app.test_client()
    assert client.get("/v1/models/m").status_code == 200
    for name in app.view_functions:  # as Dash's users do
        app.view_functions[name] = lambda **values: ("please log in", 401)
    assert client.get("/v1/models/m").status_code == 401


def test_every_view_has_a_name_and_a_module_as_extensions_expect(server):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    for name, view in site.view_functions.items():
        assert isinstance(view.__name__, str) and isinstance(view.__module__, str), name


# --- when models are loaded -------------------------------------------------------------------------------


def picture():
    return image_bytes(Image.new("RGB", (8, 6), (10, 20, 30)))


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """What a site of the factory's has written down: (process, `parent` or `true`, what)."""
    path = tmp_path / "notes"
    path.touch()
    monkeypatch.setenv("NOTES", str(path))
    return lambda: [tuple(line.split()) for line in path.read_text().splitlines()]


def test_an_app_of_a_test_loads_nothing_until_it_is_asked(notes):
    site = factory.create_app()
    client = site.test_client()
    assert client.get("/ml/livez").status_code == 200
    assert [what for *_, what in notes()] == ["made"]
    assert client.post("/ml/v1/models/m:predict", data='{"instances": [1]}').json == {
        "predictions": [7.0]
    }
    assert [what for *_, what in notes()] == ["made", "loads"]
    (server,) = site.extensions["serving"].values()
    server.stop()


@pytest.mark.parametrize("make", [serving.create_app, serving.create_blueprint])
def test_an_eager_server_loads_at_once(make, monkeypatch):
    source = {"model_config_list": [{"config": {"name": "m", "base_path": "m"}}]}
    loaded, imported = [], []
    monkeypatch.setattr(serving, "tensorflow", lambda: imported.append(threading.current_thread()))

    def load(folder, model):
        assert imported == [threading.main_thread()], "before the site goes on to import keras"
        loaded.append(model.name)
        return FakeServable()

    def serve():
        return serving.ModelServer(source, load=load, list_versions=lambda path: {1: ROOT / "1"})

    server = serve()
    make(server)
    assert loaded == imported == [] and server.manager._thread is None
    assert "not loaded" in repr(server)
    server = serve()
    make(server, eager=True)
    until(lambda: loaded == ["m"], 60)
    server.stop()


def flask_command(*arguments):
    command = [sys.executable, "-m", "flask", "--app", str(ROOT / "tests/sites/factory.py")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return {"args": [*command, *arguments], "env": environment, "cwd": ROOT / "tests/sites"}


def test_a_flask_command_loads_nothing(notes):
    for command in ("hello", "routes"):
        done = subprocess.run(**flask_command(command), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert [what for *_, what in notes()] == ["made", "made"]


def test_flask_run_with_its_reloader_loads_in_the_child_alone(notes):
    port = free_port()
    process = subprocess.Popen(
        **flask_command("run", "--debug", "--port", str(port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/ml/v1/models/m:predict"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                answer = json.load(urllib.request.urlopen(url, b'{"instances": [1]}', timeout=60))
                break
            time.sleep(0.1)
        assert answer == {"predictions": [7.0]}
        assert [who for _, who, what in notes() if what == "loads"] == ["true"]
        assert {who for _, who, what in notes() if what == "made"} >= {"true"}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


# --- where it is mounted ----------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["app", "blueprint", "tenant", "root"])
def test_a_handler_that_a_reload_brings_is_answered(tmp_path, monkeypatch, how):
    (tmp_path / "handler.py").write_text("def f(value): return [value]\n")
    path = tmp_path / "config.json"
    path.write_text('{"model_config_list": []}')
    server = serving.ModelServer(path, poll_seconds=0)
    prefix = {"app": "", "blueprint": "/ml", "tenant": "/acme/ml", "root": ""}[how]
    if how == "app":
        site = serving.create_app(server)
    else:
        site = flask.Flask("site")
        rule = "/<tenant>/ml" if how == "tenant" else prefix or None
        site.register_blueprint(serving.create_blueprint(server), url_prefix=rule)
        site.add_url_rule("/page/", "page", lambda: "page")
        site.add_url_rule("/cms/<path:name>", "cms", lambda name: f"cms {name}")
        site.register_error_handler(404, lambda error: ("the site's own page", 404))
    client, key = site.test_client(), bearer(server.generated_key)
    assert client.post(f"{prefix}/new/f", data="1", headers=key).status_code == 404
    handlers = [{"path": f"/{of}/f", "function": "handler.py:f"} for of in ("also", "new")]
    path.write_text(json.dumps({"model_config_list": [], "handlers": handlers}))
    assert client.post(f"{prefix}/v1/config/reload").status_code == 201
    for of in ("also", "new"):
        assert client.post(f"{prefix}/{of}/f", data="1", headers=key).json == [1]
    if how == "app":  # the server's own URLs are answered before Flask, as they were
        with monkeypatch.context() as patch:
            patch.setattr(site.wsgi_app, "through_flask", None)
            assert client.get("/v1/models").json == {"models": []}
    else:
        assert client.get(f"{prefix}/new/g").data == b"the site's own page"
        assert client.get("/page").status_code == 308 and client.get("/page/").data == b"page"
        assert client.post("/page/").status_code == 405
        assert client.get("/cms/new/f").data == b"cms new/f"
    path.write_text('{"model_config_list": []}')
    assert server.reload()[0] == 201
    assert client.post(f"{prefix}/new/f", data="1", headers=key).status_code == 404
    server.stop()


def test_pages_of_a_site_below_the_prefix_stay_what_they_are(tmp_path):
    site = flask.Flask("site")
    path = tmp_path / "config.json"
    path.write_text('{"model_config_list": []}')
    for name in ("one", "two"):
        server = serving.ModelServer(path, poll_seconds=0)
        site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml", name=name)
    site.add_url_rule("/<path:name>", "cms", lambda name: f"cms {name}")
    site.add_url_rule("/<area>/settings", "settings", lambda area: f"settings of {area}")
    client = site.test_client()
    assert client.get("/ml/docs").data == b"cms ml/docs"
    assert client.get("/ml/a/b").data == b"cms ml/a/b"
    assert client.get("/ml/settings").data == b"settings of ml"
    (tmp_path / "handler.py").write_text("def f(value): return [value]\n")
    handlers = [{"path": "/hello", "function": "handler.py:f"}]
    path.write_text(json.dumps({"model_config_list": [], "handlers": handlers}))
    assert server.reload()[0] == 201  # of the second
    key = bearer(server.generated_key)
    assert client.post("/ml/hello", data="1", headers=key).json == [1]
    assert client.get("/ml/docs").data == b"cms ml/docs"
    server.stop()


def strip(app, prefix):
    """A site's own middleware that takes a prefix off, and leaves the rest as it came."""

    def stripped(environ, start_response):
        environ["PATH_INFO"] = environ["PATH_INFO"].removeprefix(prefix)
        return app(environ, start_response)

    return stripped


@pytest.mark.parametrize("written", ["/ml/v1/models/m", "/v1/models/m"])
def test_a_path_that_somebody_on_the_way_has_changed(server, written):
    app = strip(serving.create_app(server), "/ml")
    environ = {"REQUEST_URI": written, "PATH_INFO": written, "REQUEST_METHOD": "GET"}
    answer = Client(app).get(written, environ_overrides=environ)
    assert answer.status_code == 200 and answer.json == server.status("m")


@pytest.mark.parametrize("prefix", ["", "/ml"])
def test_a_slash_in_a_name_is_one_below_a_prefix_that_the_proxy_took_off(server, prefix):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server), url_prefix=prefix)
    written = f"{prefix}/v1/models/a%2Fb"
    environ = {"REQUEST_URI": written, "HTTP_X_FORWARDED_PREFIX": "/app"}
    answer = Client(ProxyFix(site, x_prefix=1)).get(written, environ_overrides=environ)
    assert_error(answer, 404, "Could not find any versions of model a/b")


def test_a_sites_page_for_every_other_url_stays_in_front_of_later_handlers(server):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server))
    site.add_url_rule("/<path:name>", "cms", lambda name: f"cms {name}")
    client = site.test_client()
    assert client.get("/about/us").data == b"cms about/us"
    assert client.get("/livez").json == {"status": "live", "live": True}


@pytest.mark.parametrize(
    "rule, prefix",
    [("/<tenant>/ml", "/acme/ml"), ("/<root>/<rest>/<group>", "/a/b/c"), ("/<int:id>", "/7")],
)
def test_a_prefix_may_have_values_of_the_sites(server, rule, prefix):
    site, seen = flask.Flask("site"), []
    site.register_blueprint(serving.create_blueprint(server), url_prefix=rule)
    site.before_request(lambda: seen.append(dict(flask.request.view_args)))
    client = site.test_client()
    assert client.post(f"{prefix}/v1/models/m:predict", **PREDICT).json == ANSWER
    assert client.get(f"{prefix}/v1/models/m").json == server.status("m")
    assert client.get(f"{prefix}/openapi.json").json["servers"][0]["url"].endswith(prefix)
    assert client.get(f"{prefix}/console/").status_code == 200
    assert_error(client.get(f"{prefix}/v1/models/x"), 404, "Could not find any versions of model x")
    assert seen[0]


def test_a_site_that_tells_hosts_apart_has_the_server_on_each(server):
    site = flask.Flask("site", host_matching=True, static_host="static.example")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    site.add_url_rule("/", "home", lambda: "home", host="www.example")
    client = site.test_client()
    for host in ("www.example", "api.example", "localhost:5000"):
        response = client.post("/ml/v1/models/m:predict", base_url=f"http://{host}", **PREDICT)
        assert response.json == ANSWER, host
    assert client.get("/", base_url="http://www.example").data == b"home"
    assert client.get("/", base_url="http://api.example").status_code == 404


def test_a_server_keeps_none_of_the_sites_that_it_was_in(server):
    sites = []
    for _ in range(3):
        site = flask.Flask("site")
        site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
        assert site.test_client().get("/ml/v1/models/m").status_code == 200
        sites.append(weakref.ref(site))
    gc.collect()
    server.show_urls()
    assert [found() for found in sites] == [None, None, site]


def test_what_files_are_missing_for_takes_no_page_of_the_sites():
    site = flask.Flask("site")
    server = serving.ModelServer({"model_config_list": []}, extensions=())
    site.register_blueprint(serving.create_blueprint(server))
    site.add_url_rule("/<path:page>", "page", lambda page: f"the site's {page}")
    client = site.test_client()
    for page in ("metrics", "console/", "usage", "v2"):
        assert client.get(f"/{page}").text == f"the site's {page}"


def test_one_server_may_be_mounted_twice_and_each_is_told_by_its_name(server):
    site, blueprint = flask.Flask("site"), serving.create_blueprint(server)
    site.register_blueprint(blueprint, url_prefix="/one")
    site.register_blueprint(blueprint, url_prefix="/two", name="second")
    client = site.test_client()
    for prefix in ("/one", "/two"):
        assert client.post(f"{prefix}/v1/models/m:predict", **PREDICT).json == ANSWER
    assert site.extensions["serving"] == {blueprint.name: server, "second": server}


def test_a_config_that_is_not_there_is_told_with_the_folder_that_was_searched(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        serving.create_blueprint("config.json")
    assert caught.value.filename == str(tmp_path / "config.json")


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_names_of_blueprints_depend_on_their_site_alone(is_nested):
    called = []
    for _ in range(2):  # a factory's sites, in one process
        site, servers = flask.Flask("site"), {}
        site.before_request(lambda: called.append(flask.request.blueprint))
        for name in ("serving", "serving2"):
            servers[name] = fake_server({"m": FakeServable()})
            blueprint = serving.create_blueprint(servers[name])
            parent = flask.Blueprint(f"of_{name}", __name__) if is_nested else site
            parent.register_blueprint(blueprint, url_prefix=f"/{name}")
            if is_nested:
                site.register_blueprint(parent)
            assert site.extensions["serving"][blueprint.name] is servers[name]
        assert site.extensions["serving"] == servers
        for name in servers:
            assert site.test_client().post(f"/{name}/v1/models/m:predict", **PREDICT).json == ANSWER
    assert called == 2 * [f"of_{name}.{name}" if is_nested else name for name in servers]


# --- hooks that read the body -----------------------------------------------------------------------------

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    "look",
    [
        lambda request: request.get_data(),
        lambda request: request.get_json(force=True),
        lambda request: (request.get_data(), request.form),
        lambda request: request.data,
    ],
)
def test_a_body_that_a_hook_has_read_is_answered(server, look):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    site.before_request(lambda: look(flask.request) and None)
    client = site.test_client()
    for headers in ({}, {"Content-Type": "application/json"}):
        response = client.post("/ml/v1/models/m:predict", headers=headers, **PREDICT)
        assert response.json == ANSWER, headers


@pytest.mark.parametrize("chunked", [False, True])
def test_a_hook_after_the_view_finds_the_body_as_in_a_view_of_flasks(server, chunked):
    site, seen = flask.Flask("site"), []
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    site.add_url_rule("/own", "own", lambda: "", methods=["POST"])
    site.after_request(lambda answer: seen.append(flask.request.get_data()) or answer)
    environ = {"wsgi.input_terminated": True} if chunked else {}
    for url in ("/own", "/ml/v1/models/m:predict"):
        body = {"input_stream": io.BytesIO(PREDICT["data"].encode())} if chunked else PREDICT
        headers = {"Transfer-Encoding": "chunked"} if chunked else {}
        answer = site.test_client().post(url, headers=headers, environ_overrides=environ, **body)
        assert answer.status_code == 200
    assert seen[0] == seen[1] == PREDICT["data"].encode() and answer.json == ANSWER


BASIC = WWWAuthenticate("basic", {"realm": "x"})


@pytest.mark.parametrize(
    "error, name, value",
    [
        (Unauthorized(www_authenticate=BASIC), "WWW-Authenticate", str(BASIC)),
        (TooManyRequests(retry_after=30), "Retry-After", "30"),
    ],
)
def test_an_error_of_a_sites_check_keeps_its_headers(server, error, name, value):
    def check(request):
        raise error

    client = serving.create_app(server, authorize=check).test_client()
    answer = client.get("/usage")
    assert answer.status_code == error.code
    assert answer.headers[name] == value and len(answer.headers.getlist("Content-Type")) == 1


def test_a_form_that_a_hook_looks_for_in_json_takes_nothing_away(server):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    site.before_request(lambda: flask.request.form.get("csrf_token") and None)
    response = site.test_client().post("/ml/v1/models/m:predict", json={"instances": [[2.0]]})
    assert response.json == ANSWER


@pytest.mark.parametrize(
    "look", [lambda request: request.form, lambda request: request.stream.read()]
)
def test_a_body_that_a_hook_has_used_up_is_an_error_that_says_so(server, look):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    site.before_request(lambda: look(flask.request) and None)
    response = site.test_client().post("/ml/v1/models/m:predict", headers=FORM, **PREDICT)
    assert_error(response, 500, "A hook of this site has already read the request's body...")


def test_a_body_that_flask_keeps_is_there_after_a_hook_that_reads_forms(server):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    site.before_request(lambda: (flask.request.get_data(), None)[1])
    site.before_request(lambda: (flask.request.form, None)[1])
    site.add_url_rule("/page", "page", lambda: "the site's own")
    assert site.test_client().get("/page").text == "the site's own"
    response = site.test_client().post("/ml/v1/models/m:predict", headers=FORM, **PREDICT)
    assert response.json == ANSWER


@pytest.mark.parametrize("look", [None, lambda request: request.get_data()])
@pytest.mark.parametrize("is_terminated", [False, True])
def test_chunks_that_a_wsgi_server_gives_no_end_are_refused(look, is_terminated):
    server = serving.ModelServer({"model_config_list": []})
    server.endpoint("/echo")(lambda inputs: {"got": inputs})
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server, lambda request: True))
    site.before_request(lambda: look and look(flask.request) and None)
    response = site.test_client().post(
        "/echo",
        input_stream=io.BytesIO(b"[1, 2]"),
        headers={"Transfer-Encoding": "chunked"},  # as a2wsgi and uWSGI hand them on
        environ_overrides={"wsgi.input_terminated": is_terminated, "CONTENT_LENGTH": ""},
    )
    if is_terminated:
        assert response.json == {"got": [1, 2]}
    else:
        assert_error(response, 411, "Length Required: send the body with a Content-Length...")


# --- from Python ------------------------------------------------------------------------------------------


def test_a_call_from_python_waits_for_the_model_however_long_it_loads():
    source = {
        "model_config_list": [{"config": {"name": "m", "base_path": "m"}}],
        "server": {"load_wait_seconds": 0},
    }
    asked = []

    def load(folder, model):
        until(lambda: asked, 60)
        return FakeServable()

    server = serving.ModelServer(source, load=load, list_versions=lambda path: {1: ROOT / "1"})
    tried = server.manager._tried["m"]

    def note(seconds):
        asked.append(seconds)
        return type(tried).wait(tried, seconds)

    tried.wait = note
    assert server.predict("m", {"instances": [[2.0]]})["predictions"].tolist() == [[2.0]]
    server.stop()


def test_a_server_tells_its_models_and_their_states(server):
    assert repr(server) == "<ModelServer m: 1 AVAILABLE>"
    assert repr(serving.ModelServer({"model_config_list": []})) == "<ModelServer of no models>"
    source = {"model_config_list": [{"config": {"name": "n", "base_path": "nowhere"}}]}
    assert repr(serving.ModelServer(source)) == "<ModelServer n: not loaded>"


def test_a_picture_may_be_a_path_bytes_a_pil_image_or_an_array(tmp_path):
    server = fake_server({"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}])
    pixels = np.full((6, 8, 3), (10, 20, 30), np.uint8)
    path = tmp_path / "picture.png"
    path.write_bytes(picture())
    image = Image.open(path)
    ways = [str(path), path, picture(), bytearray(picture()), image, pixels, pixels / np.float32(1)]
    answers = [server.predict_image(way)["predictions"] for way in ways]
    assert len(answers[0]) == 2 and all(answer == answers[0] for answer in answers)
    grey = [
        server.predict_image(way) for way in (pixels[:, :, 0], Image.fromarray(pixels[:, :, 0]))
    ]
    assert grey[0] == grey[1]
    assert image.size == (8, 6), "the caller's image stays as it is"
    with pytest.raises(FileNotFoundError):
        server.predict_image(tmp_path / "nowhere.png")
    with pytest.raises(serving.BadRequest, match="expected a path, bytes, a PIL image"):
        server.predict_image([[1]])
    with pytest.raises(serving.BadRequest, match="expected shape HxW"):
        server.predict_image(np.zeros((2, 2, 7), np.uint8))


def test_a_pil_image_is_turned_as_its_exif_says():
    server = fake_server({"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}])
    turned, file = Image.new("RGB", (8, 6), (10, 20, 30)), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(file, "PNG", exif=exif)
    shown = [server.predict_image(way, form="coco") for way in (file.getvalue(), Image.open(file))]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("given, expected", [({}, ("0.0.0.0", 9)), ({"port": 5}, ("0.0.0.0", 5))])
def test_run_listens_where_the_environment_says(monkeypatch, given, expected):
    asked = []
    monkeypatch.setenv("SERVING_HOST", "0.0.0.0")
    monkeypatch.setenv("SERVING_PORT", "9")
    monkeypatch.setattr(serving, "serve", lambda process, server, *where: asked.append(where[:2]))
    serving.run({"model_config_list": []}, **given)
    assert asked == [expected]
    monkeypatch.setenv("SERVING_PORT", "http")
    with pytest.raises(ValueError, match="SERVING_PORT: expected 0 to 65535, got 'http'"):
        serving.run({"model_config_list": []})


ABSENT = "198.51.100.1"  # TEST-NET-2 (RFC 5737): no machine has it


@pytest.mark.parametrize(
    "places, expected",
    [
        ([ABSENT, "127.0.0.1"], ["127.0.0.1"]),
        (["127.0.0.1", ABSENT], ["127.0.0.1"]),
        pytest.param(
            ["127.0.0.1", "127.0.0.2"],
            ["127.0.0.1", "127.0.0.2"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is Linux's"),
        ),
        (["127.0.0.1", "127.0.0.1"], ["127.0.0.1"]),  # the port is taken
    ],
)
@pytest.mark.parametrize("given", [{}, {"extensions": ()}], ids=["all", "alone"])
def test_a_host_of_several_addresses_is_listened_at_on_one_port(
    places, expected, given, monkeypatch
):
    server = serving.ModelServer({"model_config_list": []}, **given)
    app = serving.create_app(server)
    with monkeypatch.context() as patch:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, 0)) for place in places]
        patch.setattr(socket, "getaddrinfo", lambda *_: found)
        http = serving.listen(server, app, "host.example", 0)
    assert [listener.socket.getsockname() for listener in http.listeners] == [
        (place, http.port) for place in expected
    ]
    assert len(http.sockets) == 2 * len(expected)  # each with what wakes it
    http.finish(0)
    server.stop()


def test_a_host_without_an_address_here_cannot_be_had():
    with pytest.raises(OSError) as raised:
        serving.run({"model_config_list": []}, host=ABSENT, port=0)
    assert raised.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("wanted, expected", [(1000, 504), (5, 9)])
def test_where_select_is_all_there_is_its_512_sockets_are_not_exceeded(
    wanted, expected, monkeypatch
):
    monkeypatch.delattr(select, "poll")  # as on Windows
    config = {"model_config_list": [], "server": {"connection_limit": wanted}}
    server = serving.ModelServer(config)
    http = serving.listen(server, serving.create_app(server), "127.0.0.1", 0)
    assert http.listeners[0].adj.connection_limit == expected
    http.finish(0)
    server.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "*"])
def test_the_links_at_the_start_open_in_a_browser(host, capsys, monkeypatch):
    stop, server = threading.Event(), serving.ModelServer({"model_config_list": []})
    report = serving.report
    monkeypatch.setattr(serving, "report", lambda *given: (report(*given), stop.set()))
    serving.run(server, host=host, port=0, stop=stop)
    links = re.findall(r"http://(\S+?):\d+", capsys.readouterr().out)
    assert len(links) >= 4 and set(links) == {"127.0.0.1"}


def test_the_start_names_the_log_only_for_what_has_no_reason(capsys, monkeypatch, tmp_path):
    stop, report = threading.Event(), serving.report
    monkeypatch.setattr(serving, "report", lambda *given: (report(*given), stop.set()))
    (tmp_path / "1").mkdir()
    (tmp_path / "1/saved_model.pb").write_bytes(b"x")
    models = [{"config": {"name": "m", "base_path": str(tmp_path)}}]
    source = {"model_config_list": models, "deployments": [{"id": "d", "model": "nope"}]}
    serving.run(source, port=0, stop=stop)
    told = capsys.readouterr().out
    assert "  deployment d (no model is called 'nope'): not available\n" in told, told
    assert "  m: not available, the log says why\n" in told, told
