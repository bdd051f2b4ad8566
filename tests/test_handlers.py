"""Handlers over HTTP: CellStrat's and BentoML's own client code, and every way in which a function can go wrong."""

import asyncio
import base64
import gc
import json
import os
import re
import subprocess
import sys
import threading
import time
import weakref

import flask
import numpy as np
import pytest
import requests
from conftest import (
    ROOT,
    FakeDetector,
    Rest,
    assert_error,
    bearer,
    fake_server,
    key_entry,
    listening,
    until,
)
from werkzeug.test import Client

import serving
from serving_extensions import endpoints

AUTH = {"keys": [key_entry("site", "k")]}
KEY = {"x-api-key": "k"}

MODULE = """
import os, time
import numpy as np
from serving import BadRequest, hub_handler

MODEL_DIR = os.getenv("MODEL_DIR")
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")

def echo(inputs):
    return inputs

@hub_handler
def marked(inputs, _):
    return [("a", np.float32(0.5)), {"n": np.arange(3), "nan": float("nan")}]

def context(inputs, context):
    return {"key": context.key, "id": context.request_id, "agent": context.headers.get("User-Agent"), "dir": os.path.basename(MODEL_DIR or ""),
            "half": context.server.predict("half", {"instances": [1.0]})["predictions"] if inputs else None}

def length(inputs):
    return {"bytes": len(inputs)}

def picture(inputs):
    return PNG

def typed(inputs):
    return b"<svg/>", "image/svg+xml"

def raises(inputs):
    raise ValueError("secret of the house")

def refuses(inputs):
    raise BadRequest("expected a sentence")

def unwritable(inputs):
    return {"when": [object()]}

def eats(inputs):
    return len(bytearray(1 << 62))

def slow(inputs):
    time.sleep(float(inputs))
    return "done"

def leaves(inputs):
    raise SystemExit(3)
"""


def write_config(folder, *handlers, **others):
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_config_list": [],
                "auth": AUTH,
                "handlers": list(handlers),
                "server": {"file_system_poll_wait_seconds": 0},
                **others,
            }
        )
    )


def serve(folder, *names, how="standalone", **fields):
    """A client of handlers /f/<name>, one for each function of MODULE that is named."""
    (folder / "functions.py").write_text(MODULE)
    write_config(
        folder,
        *({"path": f"/f/{name}", "function": f"functions:{name}", **fields} for name in names),
    )
    server = serving.ModelServer(folder / "config.json")
    assert server.wait(10)
    return Rest(server, how)


def test_what_a_config_names_no_more_is_freed_with_it(tmp_path):
    """Of a module, a large weight; of a handler with a time limit, its threads too."""
    (tmp_path / "mine.py").write_text(
        "class Weight(list):\n    pass\n\n\nWEIGHT = Weight([0])\n\n\n"
        "def f(inputs):\n    return WEIGHT\n"
    )
    handler = {"path": "/f", "function": "mine.py:f", "timeout_seconds": 60}

    write_config(tmp_path, handler)
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    rest = Rest(server)
    assert rest.post("/f", "1", headers=KEY).json == [0]
    held = weakref.ref(server.prepared.of["handlers"]["/f"].handler.function.__globals__["WEIGHT"])
    threads = [one for one in threading.enumerate() if one.name.startswith("serving/f")]
    assert held() is not None and threads
    write_config(tmp_path)
    assert server.reload()[0] == 201
    assert rest.post("/f", "1", headers=KEY).status_code in (400, 404)
    until(lambda: gc.collect() + 1 and held() is None)
    until(lambda: not any(one.is_alive() for one in threads))
    write_config(tmp_path, handler)  # and it may come back
    assert server.reload()[0] == 201 and rest.post("/f", "1", headers=KEY).json == [0]
    server.stop()


@pytest.mark.parametrize("value", ["text", 3, 1.5, None, True, [1, [2]], {"a": {"b": []}}])
def test_any_json_value_goes_in_and_out(tmp_path, how, value):
    response = serve(tmp_path, "echo", how=how).post("/f/echo", json.dumps(value), headers=KEY)
    assert response.status_code == 200 and response.json == value


@pytest.mark.parametrize(
    "kind, body, size",
    [
        ("image/png", b"\x89PNG", 4),
        ("application/octet-stream", b"{}", 2),
        ("text/plain", "ü".encode(), 2),
        ("application/json", b'"four"', 4),
        ("application/vnd.x+json", b'"four"', 4),
        ("application/x-www-form-urlencoded", b'"four"', 4),
        ("application/x-www-form-urlencoded", b"\xff\xd8\xff\xe0", 4),  # curl --data-binary
        ("", b"\xff\xd8\xff\xe0", 4),  # curl -T, requests.post(data=b"...")
        ("", b"II*\0", 4),
        ("", b"1,2\n3,4", 7),
        ("", b"nope", 4),
        ("", b"2026-11-30", 10),
        ("", b"5\0\0\xff", 4),
        ("", b' "four"', 4),
    ],
)
def test_content_type_decides_between_json_and_bytes(tmp_path, kind, body, size):
    assert serve(tmp_path, "length").post(
        "/f/length", body, headers=KEY, content_type=kind
    ).json == {"bytes": size}


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("body", ["{a: 1}", "[1,", "\n{", "[1.2.3]", "\t"])
def test_broken_json_is_told_where_no_content_type_says_what_it_is(tmp_path, kind, body):
    rest = serve(tmp_path, "echo")
    answer = rest.post("/f/echo", body, headers=KEY, content_type=kind)
    assert_error(answer, 400, "JSON Parse error...")


@pytest.mark.parametrize("charset", ["", "; charset=iso-8859-1"], ids=["none", "latin-1"])
def test_json_that_is_not_utf8_is_the_clients_fault(tmp_path, charset):
    answer = serve(tmp_path, "echo").post(
        "/f/echo", b'"\xe9t\xe9"', headers=KEY, content_type="application/json" + charset
    )
    assert_error(answer, 400, "body: expected JSON in UTF-8, got the byte 0xE9 at offset 1")


PNG = b"\x89PNG\r\n\x1a\n\0\xff"


@pytest.mark.parametrize(
    "parts, found",
    [
        ({"files": {"data": ("kitten.png", PNG)}}, repr(PNG)),
        ({"files": {"a": PNG, "b": b"{}"}}, repr({"a": PNG, "b": b"{}"})),
        (
            {"files": {"image": ("a.png", PNG)}, "data": {"threshold": "0.5", "n": "ä"}},
            repr({"threshold": "0.5", "n": "ä", "image": PNG}),
        ),
        ({"files": [("a", b"1"), ("a", b"2")]}, repr({"a": [b"1", b"2"]})),
        ({"files": {"a": (None, "text")}}, repr({"a": "text"})),
        ({"files": {"a": (None, PNG)}}, repr({"a": PNG})),
    ],
)
def test_a_form_is_taken_apart_for_a_function(parts, found):
    sent = requests.Request("POST", "http://s", **parts).prepare()
    server = serving.ModelServer({"model_config_list": [], "auth": AUTH})
    server.endpoint("/parts")(lambda parts: repr(parts))
    headers = {**KEY, "Content-Type": sent.headers["Content-Type"]}
    assert Rest(server).post("/parts", sent.body, headers=headers).json == found


def test_a_form_without_its_boundary_is_refused(tmp_path):
    answer = serve(tmp_path, "echo").post(
        "/f/echo", b"--x", headers=KEY, content_type="multipart/form-data"
    )
    assert_error(answer, 400, "multipart: expected a boundary in the content type, got none")


def test_ping_and_methods(tmp_path):
    rest = serve(tmp_path, "echo", "marked")
    assert rest.get("/f/echo", headers=KEY).json == {"status": "ready", "path": "/f/echo"}
    assert rest.get("/f/marked", headers=KEY).json == {
        "statusCode": 200,
        "body": {"output": {"status": "ready", "path": "/f/marked"}},
    }
    assert_error(
        rest.open("/f/echo", method="PUT", headers=KEY),
        405,
        "Method PUT is not allowed here; this URL takes GET, POST",
    )
    for methods, told in (([], "GET"), (["GET", "PUT"], "GET, PUT")):
        assert_error(
            serve(tmp_path, "echo", methods=methods).open("/f/echo", method="POST", headers=KEY),
            405,
            f"Method POST is not allowed here; this URL takes {told}",
        )
    assert (
        serve(tmp_path, "echo", methods=["PUT"])
        .open("/f/echo", method="PUT", data="1", headers=KEY)
        .json
        == 1
    )


def test_the_hub_envelope_holds_answers_and_errors(tmp_path):
    rest = serve(tmp_path, "marked", "raises", "refuses", envelope="hub")
    answer = json.loads(rest.post("/f/marked", '"x"', headers=KEY).data)
    assert (
        answer["statusCode"] == 200
        and answer["body"]["output"][0] == ["a", 0.5]
        and answer["body"]["output"][1]["n"] == [0, 1, 2]
    )
    for path, headers, body, status, text in (
        ("/f/refuses", KEY, "1", 400, "expected a sentence"),
        ("/f/refuses", KEY, "{", 400, "JSON Parse error"),
        ("/f/refuses", {}, "1", 401, "A key is needed"),
        ("/f/raises", KEY, "1", 500, "Internal server error: see request "),
    ):
        response = rest.post(path, body, headers=headers)
        assert response.status_code == response.json["statusCode"] == status and response.json[
            "body"
        ]["error"].startswith(text), response.json


@pytest.mark.parametrize("limit", [{}, {"timeout_seconds": 60}])  # here; in a thread of its own
def test_context_and_model_dir(tmp_path, caplog, limit):
    caplog.set_level("INFO", "serving")
    (tmp_path / "functions.py").write_text(MODULE)
    write_config(
        tmp_path,
        {"path": "/c", "function": "functions.py:context", "model_dir": "weights", **limit},
        model_config_list=[
            {"config": {"name": "half", "base_path": str(ROOT / "models/half_plus_two")}}
        ],
    )
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(60)
    answer = (
        Rest(server)
        .post("/c", True, headers={**KEY, "X-Request-Id": "r-1", "User-Agent": "me"})
        .json
    )
    assert answer == {"key": "site", "id": "r-1", "agent": "me", "dir": "weights", "half": [2.5]}
    assert "MODEL_DIR" not in os.environ
    assert "model=half version=123 rows=1 batch=1" in caplog.text  # a part of this request
    server.stop()


@pytest.mark.parametrize("limit", [{}, {"timeout_seconds": 60}])
def test_a_function_is_called_within_its_sites_context(tmp_path, limit):
    source = "import flask\ndef f(value): return [flask.g.user, flask.request.path]\n"
    (tmp_path / "mine.py").write_text(source)
    write_config(tmp_path, {"path": "/f", "function": "mine.py:f", **limit})
    site = flask.Flask("site")
    site.before_request(lambda: setattr(flask.g, "user", "bob"))
    site.register_blueprint(serving.create_blueprint(tmp_path / "config.json"), url_prefix="/ml")
    response = site.test_client().post("/ml/f", data="1", headers=KEY)
    assert response.json == ["bob", "/ml/f"]
    for server in site.extensions["serving"].values():
        server.stop()


def test_bytes_are_answered_as_what_they_are(tmp_path):
    rest = serve(tmp_path, "picture", "typed")
    assert rest.post("/f/picture", 1, headers=KEY).headers["Content-Type"] == "image/png"
    typed = rest.post("/f/typed", 1, headers=KEY)
    assert typed.headers["Content-Type"] == "image/svg+xml" and typed.data == b"<svg/>"


@pytest.mark.parametrize(
    "name, status, text",
    [
        ("raises", 500, "Internal server error"),
        ("leaves", 500, "Internal server error"),
        ("eats", 503, "The server has no memory for this request now"),
        (
            "unwritable",
            500,
            "The answer of /f/unwritable cannot be sent: $.when[0]: cannot be written as JSON: got object",
        ),
        ("refuses", 400, "expected a sentence"),
    ],
)
def test_functions_that_go_wrong_have_their_outcome_and_the_server_goes_on(
    tmp_path, caplog, name, status, text
):
    rest = serve(tmp_path, name, "echo")
    response = rest.post(f"/f/{name}", "1", headers=KEY)
    assert_error(response, status, text + "...")
    assert (
        "secret" not in response.json["error"]
        and response.json["request_id"] == response.headers["X-Request-Id"]
    )
    assert (
        name != "raises"
        or "secret of the house" in caplog.text
        and response.json["request_id"] in caplog.text
    )
    assert rest.post("/f/echo", '"still there"', headers=KEY).json == "still there"


def test_a_slow_function_is_cut_at_its_time_and_holds_nobody_else(tmp_path):
    rest = serve(tmp_path, "slow", "echo", timeout_seconds=0.3)
    assert rest.post("/f/slow", 0, headers=KEY).json == "done"
    start = time.monotonic()
    response = rest.post("/f/slow", 5, headers=KEY)
    assert_error(response, 504, "/f/slow took longer than 0.3 s")
    assert time.monotonic() - start < 3 and rest.post("/f/echo", 1, headers=KEY).json == 1


def test_an_edited_function_is_taken_in_by_a_reload_and_a_broken_one_leaves_the_old(tmp_path):
    rest = serve(tmp_path, "echo")
    path = tmp_path / "functions.py"
    path.write_text("def echo(inputs):\n    return 'new'\n")
    assert rest.post("/f/echo", 1, headers=KEY).json == 1, "not before it is said to be whole"
    assert rest.post("/v1/config/reload").status_code == 201
    assert rest.post("/f/echo", 1, headers=KEY).json == "new"
    path.write_text("def echo(inputs:\n")
    answer = rest.post("/v1/config/reload")
    assert answer.status_code == 500 and answer.json["details"][0].startswith(
        "$.handlers[0].function: functions.py: SyntaxError"
    )
    assert (
        rest.post("/f/echo", 1, headers=KEY).json == "new"
        and rest.get("/readyz").status_code == 200
    )
    path.write_text("def echo(inputs):\n    return 'newer'\n")
    assert (
        rest.post("/v1/config/reload").status_code == 201
        and rest.post("/f/echo", 1, headers=KEY).json == "newer"
    )
    assert rest.post("/v1/config/reload").status_code == 200


def test_a_project_that_is_not_there_is_told_as_one(tmp_path):
    write_config(tmp_path, {"path": "/gone", "project": "gone"})
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    (problem,) = server.manager.problems
    assert problem.startswith("$.handlers[0].project: ") and problem.endswith("no such file")
    assert any(p.startswith("$.handlers[0].project: ") for p in endpoints.check(server)[1])


def test_a_function_that_cannot_be_imported_is_told_everywhere(tmp_path):
    write_config(tmp_path, {"path": "/gone", "function": "gone.py:f"})
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    rest = Rest(server)
    assert_error(rest.get("/readyz"), 503, "Not ready: handler /gone")
    wrong = ["$.handlers[0].function: gone.py: no such file beside the config"]
    assert server.manager.problems == wrong
    server.manager.refresh(polling=True)
    assert server.manager.problems == wrong, "it is wrong as long as it is"
    for response in (rest.get("/gone", headers=KEY), rest.post("/gone", 1, headers=KEY)):
        assert_error(
            response, 503, "/gone is not available: gone.py: no such file beside the config"
        )
    (tmp_path / "gone.py").write_text("def f(inputs):\n    return inputs\n")
    assert rest.get("/gone", headers=KEY).status_code == 200, "GET loads it"
    assert rest.get("/readyz").status_code == 200


def test_a_module_that_fails_is_not_executed_at_each_call(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(endpoints, "REIMPORT_SECONDS", 1000)
    write_config(tmp_path, {"path": "/slow", "function": "slow.py:f"})
    count = "from pathlib import Path\nwith open(Path(__file__).parent / 'runs', 'a') as f:\n    f.write('x')\n"
    (tmp_path / "slow.py").write_text(count + "raise OSError('no weights')\n")
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    rest = Rest(server)
    for _ in range(3):
        assert_error(
            rest.post("/slow", 1, headers=KEY),
            503,
            "/slow is not available: slow.py: OSError: no weights",
        )
    assert (tmp_path / "runs").read_text() == "x"
    rest.get("/slow", headers=KEY)
    assert (tmp_path / "runs").read_text() == "xx"
    assert "The loader failed" not in caplog.text
    server.stop()


@pytest.mark.parametrize(
    "handler, text",
    [
        ({"path": "x", "function": "a:b"}, ".path: expected its URL"),
        ({"path": "/a b", "function": "a:b"}, ".path: expected its URL"),
        *(
            ({"path": path, "function": "a:b"}, f": path: '{path}' is one of the server's own URLs")
            for path in (
                "/stats",
                "/v1/x",
                "/console/mine",
                "/alice/predict",
                "/alice/samples/x",
                "/Metrics",
            )
        ),
        ({"path": "/a", "function": "a"}, ".function: expected module:name"),
        ({"path": "/a", "function": "a:b", "methods": ["LIST"]}, ".methods[0]: expected GET, POST"),
        (
            {"path": "/a", "function": "a:b", "envelope": "soap"},
            ".envelope: expected one of hub, none, got 'soap'",
        ),
        ({"path": "/a", "fuction": "a:b"}, ".fuction: unknown key; did you mean 'function'?"),
    ],
)
def test_wrong_handlers_in_the_config(handler, text):
    with pytest.raises(serving.ConfigError) as raised:
        serving.ModelServer({"model_config_list": [], "handlers": [handler]})
    assert raised.value.message.startswith(f"$.handlers[0]{text}")


@pytest.mark.parametrize("methods", ["POST", ["post"], ["HEAD"], (), [3]])
def test_methods_from_python_are_those_of_a_config(methods):
    server = fake_server({}, auth=AUTH)
    with pytest.raises(serving.ServingError, match="endpoint methods: expected a list of DELETE"):
        server.endpoint("/m", methods=methods)(lambda inputs: inputs)
    with pytest.raises(serving.ServingError, match="endpoint path"):
        server.endpoint(3)(lambda inputs: inputs)
    config = {"path": "/m", "function": "json:dumps", "methods": methods}
    if methods:  # what a config with the same refuses
        with pytest.raises(serving.ConfigError):
            serving.ModelServer({"model_config_list": [], "handlers": [config]})


def test_endpoints_from_python(how):
    server = fake_server({}, auth=AUTH)

    @server.endpoint("/alice/caption", methods=["POST", "PUT"])
    def caption(inputs, context):
        return {"caption": inputs, "by": context.key}

    rest = Rest(server, how)
    assert rest.post("/alice/caption", '"hello"', headers=KEY).json == {
        "caption": "hello",
        "by": "site",
    }
    assert (
        rest.post("/alice/caption", "hello").status_code == 401
        and caption("x", type("C", (), {"key": 1}))["by"] == 1
    )
    with pytest.raises(serving.ServingError, match="The endpoint /late is too late"):
        server.endpoint("/late")(caption)
    with pytest.raises(
        serving.ServingError, match="path: '/stats' is one of the server's own URLs"
    ):
        fake_server({}).endpoint("/stats")(caption)
    for path in ("no/slash", "/a/../b", "/."):
        with pytest.raises(serving.ServingError, match="endpoint path: expected something like"):
            fake_server({}).endpoint(path)(caption)


def test_a_second_function_from_python_replaces_the_first_and_says_so(caplog):
    server = fake_server({}, auth=AUTH)
    for said in ("first", "second"):
        server.endpoint("/two")(lambda value, said=said: said)
    assert Rest(server).post("/two", "1", headers=KEY).json == "second"
    name = "test_a_second_function_from_python_replaces_the_first_and_says_so.<locals>.<lambda>"
    line = f"Endpoint /two: {__name__}.{name} replaces {__name__}.{name}"
    assert [one.getMessage() for one in caplog.records if one.levelname == "WARNING"] == [line]


def test_a_path_of_the_config_and_of_a_function_from_python_is_refused(tmp_path):
    def handler(name):
        return {"path": f"/{name}", "function": f"functions:{name}"}

    (tmp_path / "functions.py").write_text("echo = repeat = repr\n")
    write_config(tmp_path, handler("echo"))
    server = serving.ModelServer(tmp_path / "config.json")
    with pytest.raises(serving.ServingError) as raised:
        server.endpoint("/echo")(len)
    told = "'/echo' is the path of builtins.len as well, by @server.endpoint"
    assert raised.value.message == f"$.handlers[0].path: {told}"
    server.endpoint("/repeat")(len)
    write_config(tmp_path, handler("echo"), handler("repeat"))
    status, body = server.reload()
    told = f"$.handlers[1].path: {told.replace('echo', 'repeat')}"
    assert (status, body["details"]) == (412, [told])
    rest = Rest(server)
    assert rest.post("/echo", '"a"', headers=KEY).json == "'a'"
    assert rest.post("/repeat", '"a"', headers=KEY).json == 1


def test_handlers_that_a_reload_brings_are_served(tmp_path):
    rest = serve(tmp_path, "echo")
    write_config(
        tmp_path,
        {"path": "/f/echo", "function": "functions:echo"},
        {"path": "/g/added", "function": "functions:length"},
    )
    assert rest.post("/v1/config/reload").status_code == 201
    assert rest.post("/g/added", '"four"', headers=KEY).json == {"bytes": 4}


def test_handlers_alone_never_import_tensorflow(tmp_path):
    (tmp_path / "functions.py").write_text("def f(inputs):\n    return inputs\n")
    write_config(tmp_path, {"path": "/f", "function": "functions:f"})
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import serving\nfrom werkzeug.test import Client\nserver = serving.ModelServer('config.json')\n"
        "server.wait(10)\nclient = Client(serving.create_app(server))\nprint(client.post('/f', data='1', headers={'x-api-key': 'k'}).json, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "1 False\n", done.stderr


# --- the guides' own client code ------------------------------------------------------------------------------

GUIDE = """
import os
import json
import requests
import base64

# Paste your key and username here
API_KEY = "YOUR API KEY"
USERNAME = "YOUR USERNAME"
API_NAME = "sentiment-analyser"

# The API endpoint for your Hub API project
endpoint = f"https://api.cellstrathub.com/{USERNAME}/{API_NAME}"

headers = {
  "x-api-key": API_KEY,
  "Content-Type": "application/json"
}
requests.get(endpoint, headers=headers).json()
sample_inputs = ["Deployment with CellStrat Hub is so simple and quick!",
                 "I have been using CellStrat Workspace for a while now",
                 "I don't like that movie. It tried to do a lot of things at once."]

payload = sample_inputs[0]

# Send the POST request
response = requests.post(endpoint, headers=headers, data=json.dumps(payload)).json()

if response.get('statusCode') == 200:
    # Parse the output
    output = response['body']['output']
else:
    output = response

print(output)
"""


def test_cellstrats_client_code_gets_its_answer_from_the_sentiment_example():
    """The code of the guide, word for word, with another address and key."""
    source = json.loads((ROOT / "examples/sentiment/config.json").read_text()) | {"auth": AUTH}
    config = ROOT / "examples/sentiment" / "config.json"
    server = serving.ModelServer(config)
    server.manager.prepared = serving.prepare(
        server, serving.load_config(config, json.dumps(source).encode())
    )
    assert server.wait(30) and server.readiness() == []
    with listening(server) as address:
        code = (
            GUIDE.replace("https://api.cellstrathub.com", address)
            .replace("YOUR API KEY", "k")
            .replace("YOUR USERNAME", "alice")
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        wrong = subprocess.run(
            [sys.executable, "-c", code.replace('"k"', '"wrong"')],
            capture_output=True,
            text=True,
            timeout=60,
        )
    ((best, *others),) = eval(done.stdout, {"__builtins__": {}})
    assert (
        best[0] == "Positive"
        and best[1] > max(score for _, score in others)
        and {name for name, _ in others} == {"Neutral", "Negative"}
    )
    assert "'statusCode': 401" in wrong.stdout


def test_bentomls_curl_gets_an_image():
    """The call of the guide, word for word, with another address and key."""
    server = fake_server({}, auth=AUTH)

    @server.endpoint("/3ed3b4e7-46cb-459f-abd9-e30680e8b11f/generate")
    def generate(inputs):
        from PIL import Image

        return Image.new("RGB", (inputs["width"] // 8, inputs["height"] // 8), "red")

    command = """curl -X 'POST' \\
    'https://api-cloud-function.elice.io/3ed3b4e7-46cb-459f-abd9-e30680e8b11f/generate' \\
    -H 'accept: image/*' \\
    -H 'Content-Type: application/json' \\
    -H 'Authorization: Bearer {{api_key}}' \\
    -d '{
    "prompt": "a tiny astronaut hatching from an egg on the moon",
    "height": 512,
    "width": 512,
    "num_inference_steps": 4,
    "guidance_scale": 0
    }' """
    with listening(server) as address:
        command = command.replace("https://api-cloud-function.elice.io", address).replace(
            "{{api_key}}", "k"
        )
        done = subprocess.run(
            command.replace("curl", "curl -s -D /dev/stderr", 1),
            shell=True,
            capture_output=True,
            timeout=60,
        )
    assert (
        b"200 OK" in done.stderr
        and b"image/png" in done.stderr
        and done.stdout.startswith(b"\x89PNG")
    )


@pytest.mark.parametrize("command", [["-m", "serving"], [str(ROOT / "serving.py")]])
def test_a_new_project_serves_at_once(tmp_path, command):
    project = tmp_path / "hello"
    assert serving.main(["--init", str(project)]) == 0
    process = subprocess.Popen(
        [sys.executable, *command, "--config", "config.json", "--port", "0"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "curl" in line and "x-api-key" in line:
                break
        command = lines[-1][lines[-1].index("curl") :]
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
        assert json.loads(done.stdout)["statusCode"] == 200, (lines, done)
    finally:
        process.terminate()
    assert process.wait(30) == 0
    assert serving.main(["--init", str(project)]) == 2


def test_two_servers_of_one_process_have_handlers_and_neighbours_of_one_name(tmp_path):
    path, modules, environment = list(sys.path), dict(sys.modules), dict(os.environ)
    answers = {}
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "utils.py").write_text(f"NAME = {name!r}")
        (folder / "handler.py").write_text("import utils\ndef f(value): return utils.NAME")
        handler = {"path": "/f", "function": "handler:f"}
        write_config(folder, handler)
        server = serving.ModelServer(folder / "config.json")
        assert server.wait(60)
        answers[name] = Rest(server)
    for name, rest in answers.items():
        assert rest.post("/f", "1", headers=KEY).json == name
    assert sys.path == path and dict(os.environ) == environment
    assert all(
        sys.modules.get(name) is module
        for name, module in modules.items()
        if not name.startswith("serving_handler")  # of an earlier server, which may go meanwhile
    )
    assert not {"handler", "utils"} & set(sys.modules) - set(modules)


def test_eight_callers_of_one_handler_at_once(tmp_path):
    rest = serve(tmp_path, "echo")
    wrong = []

    def ask(number):
        client = Client(rest.client.application)  # one alone is not for several threads
        for n in range(50):
            value = [number, n, base64.b64encode(os.urandom(20)).decode()]
            if client.post("/f/echo", data=json.dumps(value), headers=KEY).json != value:
                wrong.append(value)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_arrays_of_numpy_and_names_of_urls(tmp_path):
    (tmp_path / "functions.py").write_text(
        "import numpy as np\n\ndef f(inputs):\n    return np.asarray(inputs, np.float32) / 3\n"
    )
    write_config(tmp_path, {"path": "/a-b.c/~d_e", "function": "functions:f"})
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    answer = Rest(server).post("/a-b.c/~d_e", [1, 2], headers=bearer("k"))
    assert np.array_equal(
        np.array(answer.json, np.float32), np.float32([1, 2]) / 3
    ) and not re.search("null", answer.text)


def test_no_url_of_the_server_is_left_to_handlers():
    """Each route of the table, with names filled in, is refused as a handler's path."""

    extensions = serving.installed()
    for pattern in (route.pattern for route in serving.routes_of(extensions)):
        for path in (
            "/livez",
            "/readyz",
            "/v2/health/live",
            "/v1/models/m",
            "/v1/models/m/metadata",
            "/v1/models",
            "/v1/config",
            "/v1/config/reload",
            "/predict",
            "/a/predict",
            "/a/classes",
            "/a/active_learning/g",
            "/deployments",
            "/a/samples/n",
            "/a/client/c",
            "/metrics",
            "/stats",
            "/openapi.json",
            "/console",
            "/console/x",
            "/model-serving/d",
            "/monitoring/prometheus/metrics",
            "/v1/models/m:predict",
            "/v1/models/labels/x",
        ):
            assert not pattern.fullmatch(path) or serving.is_taken(extensions, path), path
    assert not any(
        serving.is_taken(extensions, path)
        for path in ("/alice/sentiment", "/generate", "/stats2", "/a/b/predict", "/my/stats")
    )


@pytest.mark.parametrize(
    "function, text",
    [
        ("gone.py:f", "gone.py: no such file beside the config"),
        ("no_such_module_x:f", "no_such_module_x: no such module"),
    ],
)
def test_check_says_where_a_function_is_missing_without_importing(tmp_path, capsys, function, text):
    (tmp_path / "there.py").write_text("raise SystemExit('imported')")
    write_config(
        tmp_path,
        {"path": "/a", "function": function},
        {"path": "/b", "function": "there:f"},
        pipeline_config_list=[
            {
                "name": "p",
                "inputs": ["x"],
                "nodes": [
                    {
                        "name": "n",
                        "type": "custom",
                        "function": function,
                        "inputs": [],
                        "outputs": [],
                    }
                ],
                "outputs": [],
            }
        ],
    )
    assert serving.main(["--check", "--config", str(tmp_path / "config.json")]) == 2
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong: ")]
    assert len(wrong) == 2 and all(text in line for line in wrong)
    for place in ("handlers[0].function", "pipeline_config_list[0].nodes[0].function"):
        assert sum(line.startswith(f"wrong: $.{place}: ") for line in wrong) == 1


# --- what is no Exception ------------------------------------------------------------------------------------

ENDS = "import asyncio\nclass Odd(BaseException): pass\n\ndef ends(inputs, *others):\n    raise eval(inputs if isinstance(inputs, str) else 'KeyboardInterrupt')\n"
NAMES = [
    "KeyboardInterrupt",
    "SystemExit",
    "GeneratorExit",
    "asyncio.CancelledError",
    "Odd",
    "StopIteration",
]


@pytest.mark.parametrize("seconds", [None, 30])
def test_whatever_a_handler_raises_its_client_has_an_answer(tmp_path, seconds):
    (tmp_path / "ends.py").write_text(ENDS)
    write_config(
        tmp_path,
        {
            "path": "/f/ends",
            "function": "ends:ends",
            **({"timeout_seconds": seconds} if seconds else {}),
        },
    )
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    for name in NAMES:
        assert_error(
            Rest(server).post("/f/ends", json.dumps(name), headers=KEY),
            500,
            "Internal server error: see request ...",
        )


def test_a_handler_that_is_interrupted_answers_over_a_socket(tmp_path):
    (tmp_path / "ends.py").write_text(ENDS)
    write_config(tmp_path, {"path": "/f/ends", "function": "ends:ends"})
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    with listening(server) as address:
        for name in NAMES:
            assert (
                requests.post(f"{address}/f/ends", json=name, headers=KEY, timeout=60).status_code
                == 500
            )
        assert requests.get(f"{address}/livez", timeout=60).status_code == 200


def test_whatever_an_endpoint_of_python_raises_its_client_has_an_answer():
    server = fake_server({}, auth=AUTH)

    @server.endpoint("/ends")
    def ends(name):
        raise {"k": KeyboardInterrupt, "g": GeneratorExit}[name]

    for name in "kg":
        assert_error(
            Rest(server).post("/ends", json.dumps(name), headers=KEY),
            500,
            "Internal server error: ...",
        )


def test_a_module_that_is_interrupted_leaves_its_url_unavailable_and_the_loader_alive(tmp_path):
    (tmp_path / "main.py").write_text("raise KeyboardInterrupt")
    write_config(tmp_path, {"path": "/f", "function": "main.py:f"})
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    assert_error(
        Rest(server).post("/f", "1", headers=KEY),
        503,
        "/f is not available: main.py: KeyboardInterrupt",
    )
    (tmp_path / "main.py").write_text("def f(x): return x")
    assert server.reload()[0] == 201 and Rest(server).post("/f", "1", headers=KEY).json == 1


def test_routines_of_ones_own_that_are_interrupted_are_answered(tmp_path):
    (tmp_path / "stopping.py").write_text("""from routines import routine

@routine()
class Stopping:
    def __call__(self, tensors):
        raise KeyboardInterrupt

@routine()
class Leaving:
    when: str = "soon"
    def __post_init__(self):
        raise SystemExit(2)

@routine(before_model=True)
class Early:
    def __call__(self, image):
        raise GeneratorExit
""")
    server = fake_server(
        {"d": FakeDetector()},
        auth=AUTH,
        routine_modules=[str(tmp_path / "stopping.py")],
        deployments=[{"id": "d", "model": "d"}],
    )
    for name in ("Stopping", "Leaving", "Early"):
        body = {"image_type": "array", "data": [[[1, 2, 3]]], "routines": [{"name": name}]}
        assert_error(
            Rest(server).post("/d/predict", body, headers=KEY), 500, "Internal server error: ..."
        )


def test_a_module_of_routines_that_leaves_is_a_wrong_config(tmp_path):
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    with pytest.raises(
        serving.ConfigError,
        match=r"\$.routine_modules\[0\]: RuntimeError: the module ended with SystemExit",
    ):
        serving.ModelServer(
            {"model_config_list": [], "routine_modules": [str(tmp_path / "leaving.py")]}
        )


def test_a_custom_node_that_is_interrupted_is_answered(tmp_path):
    (tmp_path / "ends.py").write_text(ENDS)
    pipeline = {
        "name": "p",
        "inputs": ["x"],
        "outputs": [{"y": {"node_name": "n", "data_item": "y"}}],
        "nodes": [
            {
                "name": "n",
                "type": "custom",
                "function": str(tmp_path / "ends.py:ends"),
                "outputs": [{"data_item": "y", "alias": "y"}],
                "inputs": [{"x": {"node_name": "request", "data_item": "x"}}],
            }
        ],
    }
    rest = Rest(fake_server({}, pipeline_config_list=[pipeline]))
    assert_error(
        rest.post("/v1/models/p:predict", {"inputs": [1.0]}),
        500,
        "Internal server error: see request ...",
    )


def test_the_own_time_out_of_a_handler_is_no_deadline(tmp_path):
    (tmp_path / "main.py").write_text("def f(x): raise TimeoutError('mine')")
    write_config(tmp_path, {"path": "/f", "function": "main.py:f", "timeout_seconds": 60})
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(10)
    assert_error(Rest(server).post("/f", "1", headers=KEY), 500, "Internal server error: ...")


# --- answers as Flask's views have them -----------------------------------------------------------

VIEWS = """
import asyncio
import flask
import gzip
import time
from pathlib import Path

def packed(inputs):
    headers = {"Content-Encoding": "gzip", "X-Request-Id": "mine"}
    return flask.Response(gzip.compress(b"1" * inputs, 0), 200, headers, mimetype="application/json")

def missing(inputs):
    return {"error": f"there is no {inputs}"}, 404, {"X-Missing": "yes"}

def response(inputs):
    return flask.Response("<b>", 203, {"X-A": "b"}, content_type="text/html")

async def later(inputs):
    await asyncio.sleep(0.01)
    return [inputs, float("nan")]

def stream(inputs):
    for number in range(inputs):
        yield {"number": number}

def gathered(inputs):
    return (number for number in inputs), 200, {"x-accel-buffering": "yes"}

async def ticks(inputs):
    work = asyncio.create_task(asyncio.sleep(60))
    try:
        for number in range(inputs):
            await asyncio.sleep(0.01)
            yield {"number": number}
        if inputs == 2:
            raise RuntimeError("a secret of the model")
    finally:
        await asyncio.sleep(0)
        with open(Path(__file__).with_name("ticked"), "a") as file:
            print(number, work.done(), file=file)

async def told(inputs):
    return (text async for text in texts()), "text/event-stream"

async def texts():
    yield "data: 1\\n\\n"

def breaks(inputs):
    yield "begins"
    raise RuntimeError("a secret of the model")

def fails(inputs):
    raise RuntimeError("a secret of the model")
    yield "never"

def drips(inputs):
    number = 0
    try:
        for number in range(inputs):
            time.sleep(0.02)
            yield {"number": number}
    finally:
        with open(Path(__file__).with_name("ended"), "a") as file:
            print(number, file=file)

def floods(inputs):
    while True:
        yield b"x" * 100_000
"""
NAMES = ("missing", "packed", "response", "later", "stream", "gathered", "breaks", "fails")
NAMES += ("floods", "drips", "ticks", "told")


@pytest.fixture(scope="module")
def folder_of_views(tmp_path_factory):
    return tmp_path_factory.mktemp("views")


@pytest.fixture(scope="module")
def views(folder_of_views):
    """The address of a server of these handlers, over a socket."""
    folder = folder_of_views
    (folder / "views.py").write_text(VIEWS)
    handlers = [{"path": f"/v/{name}", "function": f"views.py:{name}"} for name in NAMES]
    config = {
        "model_config_list": [],
        "handlers": [
            *handlers,
            {"path": "/v/hub", "function": "views.py:missing", "envelope": "hub"},
        ],
        "auth": {"keys": [key_entry("all", "k")]},
        "server": {"max_unpacked_bytes": 1_000_000},
    }
    (folder / "config.json").write_text(json.dumps(config))
    server = serving.ModelServer(folder / "config.json")
    assert server.wait(30)
    with listening(server) as address:
        yield address
    server.stop()


def call_view(views, name, value=None, **options):
    url = f"{views}/v/{name}"
    return requests.post(url, json=value, headers={"x-api-key": "k"}, timeout=20, **options)


def test_a_handler_answers_with_a_status_and_headers(views):
    answer = call_view(views, "missing", "bird")
    assert (answer.status_code, answer.json()) == (404, {"error": "there is no bird"})
    assert answer.headers["X-Missing"] == "yes" and answer.headers["X-Request-Id"]
    assert call_view(views, "hub", "bird").json() == {"error": "there is no bird"}


def test_a_handler_answers_with_a_response(views):
    answer = call_view(views, "response")
    assert (answer.status_code, answer.text, answer.headers["X-A"]) == (203, "<b>", "b")
    assert answer.headers["Content-Type"] == "text/html"


def test_an_answer_that_a_handler_has_compressed_is_not_compressed_again(views):
    answer = call_view(views, "packed", 100_000)
    assert answer.headers["Content-Encoding"] == "gzip" and answer.text == "1" * 100_000
    assert "mine" not in answer.headers["X-Request-Id"]


def test_an_async_handler(views):
    assert call_view(views, "later", 1).json() == [1, None]


def test_async_handlers_below_a_running_event_loop(tmp_path):
    """As in a notebook, where the caller's thread runs one."""
    (tmp_path / "views.py").write_text(VIEWS)
    handlers = [{"path": f"/{name}", "function": f"views.py:{name}"} for name in ("later", "ticks")]
    config = {"model_config_list": [], "handlers": handlers}
    (tmp_path / "config.json").write_text(json.dumps(config))
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(30)
    client = serving.create_app(server).test_client()

    async def ask(path, value):
        return client.post(path, json=value, headers={"x-api-key": server.generated_key})

    try:
        assert asyncio.run(ask("/later", 1)).json == [1, None]
        assert asyncio.run(ask("/ticks", 1)).text == '{"number":0}\n'
    finally:
        server.stop()


def test_a_stream_comes_in_parts(views):
    answer = call_view(views, "stream", 3, stream=True)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["X-Accel-Buffering"] == "no"
    lines = [json.loads(line) for line in answer.iter_lines()]
    assert lines == [{"number": number} for number in range(3)]


def test_an_async_stream_comes_in_parts(views):
    answer = call_view(views, "ticks", 3, stream=True)
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert [json.loads(line)["number"] for line in answer.iter_lines()] == [0, 1, 2]
    answer = call_view(views, "told")
    assert (answer.headers["Content-Type"], answer.text) == ("text/event-stream", "data: 1\n\n")


def test_an_async_stream_that_fails_is_no_whole_one(views, folder_of_views):
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        assert call_view(views, "ticks", 2).content == b""
    assert (folder_of_views / "ticked").read_text().splitlines()[-1] == "1 False"


def test_an_async_stream_is_closed_when_its_client_leaves(views, folder_of_views):
    answer = call_view(views, "ticks", 10_000, stream=True)
    assert next(answer.iter_lines()) == b'{"number":0}'
    (folder_of_views / "ticked").write_text("")
    answer.close()
    until(lambda: (folder_of_views / "ticked").read_text())
    assert int((folder_of_views / "ticked").read_text().split()[0]) < 9_000


def test_a_handler_may_have_a_proxy_gather_its_stream(views):
    answer = call_view(views, "gathered", [1, 2])
    assert (answer.headers["X-Accel-Buffering"], answer.text) == ("yes", "1\n2\n")
    assert "X-Accel-Buffering" not in call_view(views, "later", 1).headers


def test_a_stream_that_fails_is_no_whole_one(views, caplog):
    headers = {"x-api-key": "k", "X-Request-Id": "r-1"}
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.post(f"{views}/v/breaks", json=1, headers=headers, timeout=20)
    assert "r-1: /v/breaks: the stream broke off" in caplog.text
    answer = call_view(views, "fails", 1)
    assert answer.status_code == 500 and "secret" not in answer.text


def test_a_client_that_leaves_ends_its_own_stream_alone(views, folder_of_views):
    leaver = call_view(views, "drips", 10_000, stream=True)
    next(leaver.iter_lines())
    other = call_view(views, "drips", 30, stream=True)
    lines = other.iter_lines()
    next(lines)
    leaver.close()
    assert len(list(lines)) == 29
    for _ in range(500):
        ended = (folder_of_views / "ended").read_text().split()
        if len(ended) == 2:
            break
        time.sleep(0.02)
    assert "29" in ended and len(ended) == 2 and "9999" not in ended


def test_a_stream_is_bounded(views):
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        call_view(views, "floods", 1)
    assert call_view(views, "later", 1).status_code == 200
