"""The server behind each of its doors, waitress (its own), granian and gunicorn, as people start them: TensorFlow
Serving's answers, keys, reload, and what each of them refuses and lets through, over real sockets."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
import requests
from conftest import ROOT, bearer, free_port, key_entry, until

DOORS = ("waitress", "granian", "gunicorn")
START = {
    "waitress": ["serving.py"],
    "granian": ["deploy/start_granian.py"],
    "gunicorn": ["-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"],
}
MODEL = "/v1/models/half_plus_two"
KEY = "a key of the doors"
HANDLERS = """
import pathlib, time
ran = []
def echo(body):
    ran.append(len(body))
    return body
def seen(body):
    return ran
def headers(value, context):
    return sorted(context.headers)
def hold(name):
    pathlib.Path(name).write_text("begun")
    while pathlib.Path(name).exists():
        time.sleep(0.01)
    return "let go"
"""


def write_config(folder, *models, **others):
    """A config of models of the demo, by their names, and of handlers that tell what they were asked."""
    (folder / "told.py").write_text(HANDLERS)
    names = ("echo", "seen", "headers", "hold")
    told = {
        "model_config_list": [
            {"config": {"name": name, "base_path": str(ROOT / "models" / path)}}
            for name, path in models
        ],
        "handlers": [{"path": f"/{name}", "function": f"told.py:{name}"} for name in names],
        "auth": {"keys": [key_entry("doors", KEY)]},
        "server": {"file_system_poll_wait_seconds": 0, "max_request_bytes": 1_000_000},
        **others,
    }
    (folder / "config.json").write_text(json.dumps(told))


class Door:
    """A process of the server behind a door, and where it listens."""

    def __init__(self, name, folder, log="log", **environ):
        self.name, self.folder = name, folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = folder / log
        environ = {
            **os.environ,
            "SERVING_CONFIG": str(folder / "config.json"),
            "SERVING_BIND": f"127.0.0.1:{self.port}",
            "GRANIAN_PORT": str(self.port),  # for those that granian's own command starts
            "HTTP_PROXY": "a proxy of this machine",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            **environ,
        }
        command = [sys.executable, *START[name]]
        if name == "waitress":
            command += ["--config", str(folder / "config.json"), "--port", str(self.port)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=log, env=environ, start_new_session=True
            )

    def wait(self):
        def ready():
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(requests.ConnectionError):
                return requests.get(f"{self.address}/readyz", timeout=60).status_code == 200

        deadline = time.monotonic() + 120
        while not ready():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)  # the cores are for those that start
        return self

    def ask(self, path, body=None, method="POST", key=KEY, **headers):
        headers = {**(bearer(key) if key else {}), **headers}
        return requests.request(method, self.address + path, data=body, headers=headers, timeout=60)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), 60)

    def connect_soon(self):
        """As `connect`, for one that has no `/readyz`."""
        for _ in range(600):
            with contextlib.suppress(ConnectionError):
                return self.connect()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def doors(tmp_path_factory):
    """All of them with the same config, started at the same time."""
    started = {}
    try:
        for name in DOORS:
            folder = tmp_path_factory.mktemp(name)
            write_config(
                folder,
                ("half_plus_two", "half_plus_two"),
                ("a/b", "half_plus_two"),
                ("shapes", "shapes"),
                deployments=[{"id": "shapes", "model": "shapes", "default": True}],
            )
            started[name] = Door(name, folder)
        for door in started.values():
            door.wait()
        yield started
    finally:
        for door in started.values():
            door.kill()


@pytest.fixture(params=DOORS)
def door(request, doors):
    return doors[request.param]


# --- what TensorFlow Serving answers ------------------------------------------------------------------------------

AVAILABLE = {
    "version": "123",
    "state": "AVAILABLE",
    "status": {"error_code": "OK", "error_message": ""},
}
ONE = '{"instances": [1.0]}'
REST = [
    ("POST", f"{MODEL}:predict", '{"instances": [1.0, 2.0, 5.0]}', 200, {"predictions": [2.5, 3.0, 4.5]}),
    ("POST", f"{MODEL}:predict", '{"inputs": [1.0, 2.0]}', 200, {"outputs": [2.5, 3.0]}),
    ("POST", f"{MODEL}/versions/123:predict", ONE, 200, {"predictions": [2.5]}),
    ("POST", "/v1/models/half_plus%5Ftwo:predict", ONE, 200, {"predictions": [2.5]}),
    ("GET", MODEL, None, 200, {"model_version_status": [AVAILABLE]}),
    ("GET", f"{MODEL}/versions/123", None, 200, {"model_version_status": [AVAILABLE]}),
    ("GET", f"{MODEL}/versions/99", None, 404, "Could not find version 99 of model half_plus_two"),
    ("GET", "/v1/models/%E2%82%AC", None, 404, "Could not find any versions of model \u20ac"),
    ("POST", "/v1/models/none:predict", ONE, 404, "Servable not found for request: Latest(none)"),
    ("POST", f"{MODEL}/versions/99:predict", ONE, 404, "Servable not found for request: Specific(half_plus_two, 99)"),
    ("POST", f"{MODEL}/labels/x:predict", ONE, 400, "Unrecognized servable version label: x"),
    ("POST", f"{MODEL}:predict", "", 400, "JSON Parse error: The document is empty"),
    ("POST", f"{MODEL}:predict", "{", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
    ("POST", f"{MODEL}:predict", "{}", 400, "Missing 'inputs' or 'instances' key"),
    ("POST", f"{MODEL}:predict", '{"instances": []}', 400, "JSON Value: [] No values in 'instances' array"),
    ("GET", f"{MODEL}:predict", None, 400, f"Malformed request: GET {MODEL}:predict"),
    ("POST", f"{MODEL}:nothing", "{}", 400, f"Malformed request: POST {MODEL}:nothing"),
    ("PUT", f"{MODEL}:predict", ONE, 400, f"Malformed request: PUT {MODEL}:predict"),
    ("DELETE", MODEL, None, 400, f"Malformed request: DELETE {MODEL}"),
    ("GET", "/v1/nothing", None, 400, "Malformed request: GET /v1/nothing"),
]  # fmt: skip


@pytest.mark.parametrize("method, path, body, status, expected", REST)
def test_tensorflow_servings_answers(door, method, path, body, status, expected):
    answer = door.ask(path, body, method, key=None)
    expected = {"error": expected} if isinstance(expected, str) else expected
    assert (answer.status_code, answer.json()) == (status, expected)
    assert answer.headers["Content-Type"] == "application/json"
    assert int(answer.headers["Content-Length"]) == len(answer.content)


SLASH = {
    "waitress": (200, {"predictions": [2.5]}),
    "granian": (400, {"error": "Malformed request: POST /v1/models/a/b:predict"}),
    "gunicorn": (200, {"predictions": [2.5]}),
}
COLON = {
    "waitress": (400, {"error": f"Malformed request: POST {MODEL}%3Apredict"}),
    "granian": (200, {"predictions": [2.5]}),
    "gunicorn": (400, {"error": f"Malformed request: POST {MODEL}%3Apredict"}),
}


def test_granian_does_not_tell_what_was_percent_encoded(door):
    """It decodes the path and keeps no other: a model with a slash in its name is not reached."""
    for path, expected in (("/v1/models/a%2Fb:predict", SLASH), (f"{MODEL}%3Apredict", COLON)):
        answer = door.ask(path, ONE)
        assert (answer.status_code, answer.json()) == expected[door.name]


def test_predict_wants_a_key_and_answers_all_alike(doors):
    picture = (ROOT / "models/shapes/samples/0.jpg").read_bytes()
    found = []
    for door in doors.values():
        without = door.ask("/predict", picture, key=None)
        assert without.status_code == 401
        assert without.headers["WWW-Authenticate"].startswith("Bearer")
        assert door.ask("/predict", picture, key="another").status_code == 401
        answer = door.ask(
            "/predict", picture, **{"Content-Type": "image/jpeg", "X-Request-Id": "r-1"}
        )
        assert answer.status_code == 200 and answer.headers["X-Request-Id"] == "r-1"
        assert " r-1 doors POST /predict 200 " in door.log.read_text()
        found.append(answer.json()["predictions"])
    assert found[0] and found[1:] == found[:1] * 2


def test_a_reload_brings_a_model_and_a_wrong_one_takes_none(door):
    config = door.folder / "config.json"
    before = config.read_text()
    told = json.loads(before)
    assert door.ask("/v1/config/reload").status_code == 200
    more = {"config": {"name": "more", "base_path": str(ROOT / "models/half_plus_three")}}
    told["model_config_list"].append(more)
    config.write_text(json.dumps(told))
    assert door.ask("/v1/config/reload").status_code == 201
    assert door.ask("/v1/models/more:predict", ONE).json() == {"predictions": [3.5]}
    config.write_text("{")
    assert door.ask("/v1/config/reload").status_code == 412
    assert door.ask("/v1/models/more:predict", ONE).json() == {"predictions": [3.5]}
    config.write_text(before)
    assert door.ask("/v1/config/reload").status_code == 201
    assert door.ask("/v1/models/more:predict", ONE).status_code == 404


def test_no_header_is_the_machines(door):
    """granian lays each request over the environment of its process, where a proxy may be named."""
    assert "Proxy" not in door.ask("/headers", "1").json()
    mine = door.ask("/headers", "1", Proxy="mine").json()
    assert "Proxy" in mine


# --- bodies -------------------------------------------------------------------------------------------------------

LENGTH_REQUIRED = {"error": "Length Required: under granian a body needs a Content-Length"}


def test_a_body_in_chunks(door):
    answer = door.ask(f"{MODEL}:predict", iter([b'{"instances"', b": [1.0]}"]))
    if door.name == "granian":
        assert (answer.status_code, answer.json()) == (411, LENGTH_REQUIRED)
    else:
        assert (answer.status_code, answer.json()) == (200, {"predictions": [2.5]})


TOO_LARGE = "Request body of 1000001 bytes is over the limit of 1000000"


def test_a_body_over_the_limit(door):
    answer = door.ask(f"{MODEL}:predict", b" " * 1_000_001)
    assert answer.status_code == 413
    if door.name == "waitress":
        assert "exceeds server.max_request_bytes of 1000000" in answer.text
    else:
        assert answer.json() == {"error": TOO_LARGE}
    assert door.ask(f"{MODEL}:predict", b" " * 1_000_000).status_code == 400


def head(path, *lines):
    lines = ("Host: h", f"Authorization: Bearer {KEY}", "Content-Type: a/b", *lines)
    return f"POST {path} HTTP/1.1\r\n{''.join(line + chr(13) + chr(10) for line in lines)}\r\n".encode()


BROKEN = {
    "a length": head("/echo", "Content-Length: 9") + b"half",
    "a chunk": head("/echo", "Transfer-Encoding: chunked") + b"9\r\nhalf",
    "between chunks": head("/echo", "Transfer-Encoding: chunked") + b"4\r\nhalf\r\n",
    "a chunk that is none": head("/echo", "Transfer-Encoding: chunked") + b"4\r\nhalf\r\nz\r\n\r\n",
}


# what a client that has closed its half is told of each; waitress hangs up
BROKEN_OFF = {
    "waitress": ("", "", "", "400"),
    "granian": ("400", "411", "411", "411"),
    "gunicorn": ("400", "400", "400", "400"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("leave", [socket.SHUT_WR, None], ids=["half closed", "gone"])
def test_half_a_body_runs_nothing(door, how, leave):
    before = door.ask("/seen", "1").json()
    with door.connect() as client:
        client.sendall(BROKEN[how])
        if leave is not None:
            if how != "a chunk that is none":  # which is answered without it
                client.shutdown(leave)
            told = BROKEN_OFF[door.name][list(BROKEN).index(how)]
            assert heard(client)[9:12].decode() == told
    assert door.ask("/echo", b"whole", **{"Content-Type": "a/b"}).content == b"whole"
    assert door.ask("/seen", "1").json() == [*before, 5]


def heard(client, until_=None, seconds=60):
    """What comes until the server closes, until something is among it, or until it is silent."""
    parts = b""
    client.settimeout(seconds)
    with contextlib.suppress(OSError):
        while not (until_ and until_ in parts) and (part := client.recv(1 << 16)):
            parts += part
    return parts


def test_a_body_that_waits_to_be_asked_for(door):
    body = b'{"instances": [666.0]}'
    with door.connect() as client:
        client.sendall(head(f"{MODEL}:predict", "Content-Length: 22", "Expect: 100-continue"))
        assert heard(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        answer = heard(client, b"}")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b'{"predictions":[335.0]}')


REFUSED_UNASKED = {"waitress": b"413", "granian": b"100", "gunicorn": b"100"}


def test_a_body_that_is_too_large_and_waits(door):
    """Behind the others it is asked for, and thrown away: deploy/wsgi.py says why."""
    with door.connect() as client:
        client.sendall(head("/echo", "Content-Length: 99999999", "Expect: 100-continue"))
        assert heard(client, b"\r\n\r\n")[9:12] == REFUSED_UNASKED[door.name]


def test_head_is_get_without_its_body(door):
    with door.connect() as client:
        client.sendall(
            b"HEAD /livez HTTP/1.1\r\nHost: h\r\n\r\n" + head("/seen", "Content-Length: 1") + b"1"
        )
        answer = heard(client, b"]")
    first, _, rest = answer.partition(b"\r\n\r\n")
    length = len(requests.get(f"{door.address}/livez", timeout=60).content)
    assert first.startswith(b"HTTP/1.1 200 ") and rest.startswith(b"HTTP/1.1 200 ")
    assert f"content-length: {length}".encode() in first.lower().split(b"\r\n")


def test_pipelined_requests_are_answered_in_turn(door):
    asked = [
        head(f"{MODEL}:predict", "Content-Length: 22") + b'{"instances": [%03d.0]}' % number
        for number in range(100, 120)
    ]
    with door.connect() as client:
        client.sendall(b"".join(asked))
        answers = heard(client, b"[61.5]")
    predicted = [float(number) for number in re.findall(rb'"predictions":\[([0-9.]+)\]', answers)]
    assert predicted == [number / 2 + 2 for number in range(100, 120)]
    assert answers.count(b"HTTP/1.1 200 ") == 20


# --- what each refuses --------------------------------------------------------------------------------------------

PREDICT = f"POST {MODEL}:predict HTTP/1.1\r\n".encode()
BODY = b'{"instances": [4.0]}'
NEXT = PREDICT + b'Host: h\r\nContent-Length: 22\r\n\r\n{"instances": [666.0]}'


def lines(*between, first=PREDICT, body=BODY):
    """A request with a Host, some lines, and a body with its length."""
    return b"".join(
        (first, b"Host: h\r\n", *(line + b"\r\n" for line in between))
    ) + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def coded(*coding, rest=b"14\r\n" + BODY + b"\r\n0\r\n\r\n", first=PREDICT):
    """A request whose body comes in chunks, or says so."""
    return b"".join((first, b"Host: h\r\n", *(line + b"\r\n" for line in coding), b"\r\n", rest))


CHUNKED = b"Transfer-Encoding: chunked"


def sized(*sizes):
    return coded(*(b"Content-Length: " + size for size in sizes), rest=BODY)


def chunks(rest):
    return coded(CHUNKED, rest=rest)


def hosts(*values):
    said = b"".join(b"Host: " + value + b"\r\n" for value in values)
    return PREDICT + said + b"Content-Length: 20\r\n\r\n" + BODY


def get(target, version=b"HTTP/1.1", method=b"GET"):
    return method + b" " + target + b" " + version + b"\r\nHost: h\r\n\r\n"


# Each request, followed by one that is right, as whole and in two pieces. "must": RFC 9112 or 9110 says that it must
# be refused (obsolete folding and a bare CR: or read as a space); "may": that it may be, or SHOULD; "right": it is.
# Then what waitress, granian and gunicorn do: the status, and "goes on" where the next one is answered too; else the
# connection is closed. "waits": for more of the body, and the next one is taken for it.
WIRE = {
    "a length": ("right", lines(), "200 goes on", "200 goes on", "200 goes on"),
    "chunks": ("right", coded(CHUNKED), "200 goes on", "411", "200 goes on"),
    "a chunk with an extension": ("right", chunks(b"14;a=b\r\n" + BODY + b"\r\n0\r\n\r\n"), "200 goes on", "411", "200 goes on"),
    "chunks with a trailer": ("right", chunks(b"14\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n"), "200 goes on", "411", "200 goes on"),
    "a whole URL": ("right", lines(first=PREDICT.replace(b"/v1", b"http://h/v1")), "200 goes on", "200 goes on", "200 goes on"),
    "a whole URL of another host": ("right", lines(first=PREDICT.replace(b"/v1", b"http://i/v1")), "200 goes on", "200 goes on", "200 goes on"),
    "GET with a body": ("right", lines(first=b"GET /livez HTTP/1.1\r\n"), "200 goes on", "200 goes on", "200 goes on"),
    "Connection: close": ("right", lines(b"Connection: close"), "200", "200", "200"),
    "an upgrade to HTTP/2": ("right", lines(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"), "200 goes on", "200 goes on", "200 goes on"),
    "Content-Length before chunked": ("may", coded(b"Content-Length: 4", CHUNKED), "400", "411", "400"),
    "chunked before Content-Length": ("may", coded(CHUNKED, b"Content-Length: 4"), "400", "411", "400"),
    "chunked in HTTP/1.0": ("may", coded(CHUNKED, first=PREDICT.replace(b"1.1", b"1.0")), "400", "400", "400"),
    "an unknown coding": ("must", coded(b"Transfer-Encoding: xchunked"), "501", "400", "501"),
    "gzip, chunked": ("may", coded(b"Transfer-Encoding: gzip, chunked"), "501", "411", "200"),
    "chunked, gzip": ("must", coded(b"Transfer-Encoding: chunked, gzip"), "501", "400", "400"),
    "chunked, chunked": ("may", coded(b"Transfer-Encoding: chunked, chunked"), "400", "411", "400"),
    "Transfer-Encoding: identity": ("must", coded(b"Transfer-Encoding: identity", rest=b""), "501", "400", "400"),
    "no coding": ("may", coded(b"Transfer-Encoding:", rest=b""), "400", "400", "501"),
    "chunked after a control character": ("must", coded(b"Transfer-Encoding: \x0bchunked"), "400", "400", "400"),
    "a space before the colon of Transfer-Encoding": ("must", coded(b"Transfer-Encoding : chunked"), "400", "400", "400"),
    "two Content-Lengths": ("must", sized(b"0", b"20"), "400", "400", "400"),
    "the same Content-Length twice": ("may", sized(b"20", b"20"), "400", "200 goes on", "400"),
    "Content-Length: 20, 20": ("may", sized(b"20, 20"), "400", "400", "400"),
    **{
        f"Content-Length: {size}".strip(): ("must", sized(size.encode()), "400", "400", "400")
        for size in ("+20", "-1", "0x14", "2_0", "20.0", "")
    },
    "Content-Length of thirty nines": ("may", sized(b"9" * 30), "400", "400", "waits"),
    "Content-Length over the limit": ("may", sized(b"99999999999"), "413", "waits", "waits"),
    "a space before the colon of Content-Length": ("must", coded(b"Content-Length : 20", rest=BODY), "400", "400", "400"),
    "a folded line": ("must", lines(b"X: a\r\n b"), "400", "400", "400"),
    "a first line that is folded": ("must", PREDICT + b" X: a\r\nHost: h\r\nContent-Length: 20\r\n\r\n" + BODY, "400", "400", "400"),
    "bare line feeds": ("may", lines().replace(b"\r\n", b"\n"), "400", "200 goes on", "400"),
    "one bare line feed": ("may", lines(b"X: y\nY: z"), "400", "200 goes on", "400"),
    "a bare carriage return": ("must", lines(b"X: a\rb"), "400", "400", "400"),
    "NUL in a value": ("must", lines(b"X: a\0b"), "400", "400", "400"),
    "NUL in a name": ("may", lines(b"X\0: b"), "400", "400", "400"),
    "a line without a colon": ("may", lines(b"Xy"), "400", "400", "400"),
    "a line without a name": ("may", lines(b": y"), "400", "400", "400"),
    "no Host": ("must", hosts(), "400", "200 goes on", "200 goes on"),
    "two Hosts": ("must", hosts(b"h", b"i"), "400", "200 goes on", "400"),
    **{
        f"Host: {host}": ("must", hosts(host.encode()), "400", "200 goes on", "200 goes on")
        for host in ("a b", "a/b", "a@b")
    },
    **{
        f"chunk size {size or 'of nothing'}": ("must", chunks(size.encode() + b"\r\n" + BODY + b"\r\n0\r\n\r\n"), "400", "411", "400")
        for size in ("+14", "0x14", "1_4", "z", "")
    },
    "chunk size and a space": ("may", chunks(b"14 \r\n" + BODY + b"\r\n0\r\n\r\n"), "400", "411", "400"),
    "chunk size of 80 bits": ("may", chunks(b"1" + b"0" * 17 + b"14\r\n" + BODY + b"\r\n0\r\n\r\n"), "413", "411", "waits"),
    "a chunk longer than it says": ("must", chunks(b"14\r\n" + BODY + b"XX\r\n0\r\n\r\n"), "400", "411", "400"),
    "chunks with bare line feeds": ("may", chunks(b"14\n" + BODY + b"\n0\n\n"), "400", "411", "400"),
    "a line feed in a chunk's extension": ("may", chunks(b"14;a\nb\r\n" + BODY + b"\r\n0\r\n\r\n"), "400", "411", "400"),
    "a carriage return in a chunk's extension": ("must", chunks(b"14;a\rb\r\n" + BODY + b"\r\n0\r\n\r\n"), "400", "411", "400"),
    "a trailer without a colon": ("may", chunks(b"14\r\n" + BODY + b"\r\n0\r\nX y\r\n\r\n"), "400", "411", "400"),
    "CONNECT": ("may", get(b"h:80", method=b"CONNECT"), "400", "404 goes on", "404"),
    "a target without a slash": ("may", get(b"livez"), "400", "308 goes on", "400"),
    "a space in the target": ("may", get(b"/live z"), "400", "400", "400"),
    "UTF-8 in the target": ("may", get("/v1/models/\u20ac".encode()), "400", "404 goes on", "400"),
    "a fragment in the target": ("may", get(b"/livez#a"), "400 goes on", "200 goes on", "400 goes on"),
    "two spaces before the target": ("may", get(b" /livez"), "400", "400", "400"),
    "a method in small letters": ("may", get(b"/livez", method=b"get"), "400", "200 goes on", "400"),
    "HTTP/2.0": ("may", get(b"/livez", b"HTTP/2.0"), "200", "400", "400"),
    "http/1.1": ("may", get(b"/livez", b"http/1.1"), "400", "400", "400"),
    "no version": ("may", b"GET /livez\r\n", "400", "400", "400"),
    "empty lines before the request": ("may", b"\r\n\r\n" + get(b"/livez"), "200 goes on", "200 goes on", "400"),
    "an expectation that is not known": ("may", lines(b"Expect: 200-ok"), "200 goes on", "200 goes on", "417"),
    "101 lines": ("may", lines(*[b"X: y"] * 101), "200 goes on", "431", "431"),
    "a line of 9,000 bytes": ("may", lines(b"X: " + b"y" * 9000), "200 goes on", "200 goes on", "431"),
    "a line of 300,000 bytes": ("may", lines(b"X: " + b"y" * 300_000), "431", "200 goes on", "431"),
    "a line of 2,000,000 bytes": ("may", lines(b"X: " + b"y" * 2_000_000), "431", "431", "431"),
    "a target of 9,000 bytes": ("may", get(b"/" + b"a" * 9000), "404 goes on", "404 goes on", "414"),
    "a target of 70,000 bytes": ("may", get(b"/" + b"a" * 70_000), "431", "414", "414"),
}  # fmt: skip


def read_answers(data):
    """Status and body of each answer among what was heard."""
    found = []
    while data:
        first, _, data = data.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d{3})", first)
        length = re.search(rb"(?im)^content-length: (\d+)", first)
        assert status and length, first
        found.append((status[1].decode(), data[: int(length[1])]))
        data = data[int(length[1]) :]
    return found


def done_with(door, pieces, seconds):
    """What a door does with a request and the one that follows it, in the words of WIRE."""
    with door.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                client.sendall(piece)
                time.sleep(0.01)
        answers = read_answers(heard(client, b"335.0]}", seconds))
    goes_on = bool(answers) and b"335.0" in answers[-1][1]
    statuses = [status for status, _ in answers[: -1 if goes_on else None]]
    return " ".join(statuses) + " goes on" * goes_on or "waits"


@pytest.mark.parametrize("name", WIRE)
def test_what_each_door_refuses(doors, name):
    _, data, *expected = WIRE[name]
    seconds = [0.3 if said == "waits" else 60 for said in expected]
    for pieces in [data + NEXT], [data[:30], data[30:] + NEXT]:
        with ThreadPoolExecutor(len(DOORS)) as pool:
            found = pool.map(done_with, doors.values(), [pieces] * len(DOORS), seconds)
        assert list(found) == expected


def test_where_a_door_does_not_do_what_the_rfc_says_it_must():
    """Named, so that a version of a door that changes it is seen."""
    found = {
        door: {
            name
            for name, (rule, _, *said) in WIRE.items()
            if rule == "must" and said[place][:1] not in "45w"
        }
        for place, door in enumerate(DOORS)
    }
    bad_hosts = {"no Host", "Host: a b", "Host: a/b", "Host: a@b"}
    assert found == {"waitress": set(), "granian": {*bad_hosts, "two Hosts"}, "gunicorn": bad_hosts}


def table():
    """The rows of docs/operation.md: where the doors differ, and one where they do not."""
    rows, alike = [], []
    for name, (rule, _, *said) in WIRE.items():
        if len(set(said)) == 1:
            alike += [name] if said == ["400"] * 3 else []
            continue
        cells = [f"**{cell}**" if rule == "must" and cell[0] == "2" else cell for cell in said]
        rows.append(f"| {name} | {rule} | {' | '.join(cells)} |")
    return rows, alike


def test_the_documents_say_what_each_refuses():
    text = (ROOT / "docs/operation.md").read_text()
    rows, alike = table()
    assert "\n".join(rows) in text
    assert "; ".join(alike) in text.replace("\n", " ")


# --- slow ones, and the end ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def holding(door, gate):
    """A call that is being answered, until the `with` ends; its answer."""
    with ThreadPoolExecutor(1) as pool:
        try:
            held = pool.submit(door.ask, "/hold", json.dumps(str(gate)))
            until(gate.exists, 60)
            yield held
        finally:
            gate.unlink(missing_ok=True)


def assert_meanwhile(door, waits, end):
    """`/livez` is answered before, or only after, `end()` has ended what others do."""
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(door.ask, "/livez", None, "GET")
        wait([asked], 0.5 if waits else 60)
        assert asked.done() != waits
        end()
        assert asked.result(60).status_code == 200


def test_a_slow_call_stops_the_others_behind_granians_one_thread(door, tmp_path):
    gate = tmp_path / "gate"
    with holding(door, gate) as held:
        assert_meanwhile(door, door.name == "granian", gate.unlink)
        assert held.result(60).json() == "let go"


def test_a_slow_body_stops_the_others_behind_granians_one_thread(door):
    with door.connect() as client:
        client.sendall(head("/echo", "Content-Length: 9") + b"half")
        time.sleep(0.1)
        assert_meanwhile(door, door.name == "granian", lambda: client.sendall(b" more"))
        assert heard(client, b"half more").startswith(b"HTTP/1.1 200 ")


@pytest.fixture(scope="module")
def threaded(tmp_path_factory):
    """granian with four threads, four connections, and no model."""
    folder = tmp_path_factory.mktemp("threaded")
    write_config(folder, server={"connection_limit": 4, "drain_seconds": 1})
    door = Door("granian", folder, SERVING_BLOCKING_THREADS="4")
    try:
        yield door.wait()
    finally:
        door.kill()


def test_granian_with_more_threads_answers_meanwhile(threaded, tmp_path):
    gate = tmp_path / "gate"
    with holding(threaded, gate), threaded.connect() as client:
        client.sendall(head("/echo", "Content-Length: 9") + b"half")
        time.sleep(0.1)
        assert_meanwhile(threaded, False, gate.unlink)


def test_idle_connections_count_for_granians_limit(threaded):
    idle = [threaded.connect() for _ in range(4)]
    for client in idle:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n")
        assert heard(client, b"}").startswith(b"HTTP/1.1 200 ")
    assert_meanwhile(threaded, True, idle[0].close)
    for client in idle[1:]:
        client.close()


PLAIN = """
def app(environ, start_response):
    body = environ["wsgi.input"].read(1 << 20)
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


def test_granian_itself_takes_half_a_body_for_a_whole_one(tmp_path, monkeypatch):
    """Why deploy/wsgi.py answers 411: once this fails, granian tells, and bodies in chunks can be let in."""
    (tmp_path / "plain.py").write_text(PLAIN)
    start = ["-m", "granian", "--interface", "wsgi", f"{tmp_path}/plain.py:app"]
    monkeypatch.setitem(START, "granian", start)
    plain = Door("granian", tmp_path)
    try:
        with plain.connect_soon() as client:
            client.sendall(BROKEN["a chunk that is none"])
            answer = heard(client)
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nhalf")
    finally:
        plain.kill()


def test_granian_is_not_started_with_a_wrong_config(tmp_path):
    (tmp_path / "config.json").write_text('{"models": []}')
    door = Door("granian", tmp_path)
    assert door.process.wait(60) == 2
    assert "$.models: unknown key" in door.log.read_text().splitlines()[0]


def test_granian_is_not_started_where_somebody_listens(threaded):
    door = Door("granian", threaded.folder, SERVING_BIND=f"127.0.0.1:{threaded.port}", log="second")
    assert door.process.wait(60) == 1
    assert f"Cannot listen at 127.0.0.1:{threaded.port}: " in door.log.read_text()


ENDED = {"waitress": b"", "granian": b"", "gunicorn": b"HTTP/1.1 200"}


def test_a_client_that_closes_its_half_while_it_waits(door, tmp_path):
    """To waitress and granian it has left; gunicorn answers it."""
    gate = tmp_path / "gate"
    asked = json.dumps(str(gate)).encode()
    with door.connect() as client:
        client.sendall(head("/hold", f"Content-Length: {len(asked)}").replace(b"a/b", b"") + asked)
        until(gate.exists, 60)
        client.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        gate.unlink()
        assert heard(client)[:12] == ENDED[door.name]


def test_granian_takes_a_call_without_end_along_after_its_time(threaded, tmp_path):
    with holding(threaded, tmp_path / "gate") as held:
        assert threaded.stop() == 0
        with pytest.raises(requests.ConnectionError):
            held.result(60)


def test_sigterm_answers_what_runs(doors, tmp_path):
    """The last of these tests: it ends the processes of the others."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(holding(door, tmp_path / name)) for name, door in doors.items()]
        for door in doors.values():
            door.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        for name in doors:
            (tmp_path / name).unlink()
        assert [call.result(60).json() for call in held] == ["let go"] * 3
    assert [door.process.wait(60) for door in doors.values()] == [0, 0, 0]
