"""Attacks on the wire: JSON and archives that blow up, paths that climb; over real sockets. What smuggles a request is
in test_doors.py.
"""

import contextlib
import functools
import gzip
import json
import socket
import time
import zlib

import pytest
import requests
from conftest import FakeDetector, FakeServable, bearer, fake_server, key_entry, listening

import serving

KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def live():
    servables = {"m": FakeServable(), "d": FakeDetector()}
    server = fake_server(
        servables, deployments=[{"id": "d", "model": "d"}], auth={"keys": [key_entry("t", KEY)]}
    )
    with listening(server) as address:
        yield address, server


def exchange(address, data):
    """All that comes back for some bytes, until the server closes or is silent."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    parts = []
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(data)
        connection.settimeout(3)
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 10_000_000,
        b"[" * 5_000_000 + b"]" * 5_000_000,
        b'{"instances":' * 100_000,
        b'{"a":' * 900_000 + b"1" + b"}" * 900_000,
        b'{"instances": [' + b"1" * 1_000_000 + b"]}",
        b'{"instances": [[0.' + b"1" * 1_000_000 + b"]]}",
        b'{"instances": [[1e' + b"9" * 1_000_000 + b"]]}",
        b'{"instances": [[-' + b"0" * 1_000_000 + b"]]}",
        b'{"inputs": "' + b"\\u0000" * 200_000 + b'"}',
        b'{"instances": [[1.0]]' + b', "instances": [[2.0]]' * 20_000 + b"}",
    ],
    ids=[
        "opened",
        "nested",
        "objects",
        "deep",
        "long integer",
        "long float",
        "long exponent",
        "zeros",
        "escapes",
        "repeated keys",
    ],
)
def test_json_that_blows_up_is_answered_soon(live, body):
    address, _ = live
    start = time.monotonic()
    answer = requests.post(f"{address}/v1/models/m:predict", body, timeout=60)
    assert answer.status_code in (200, 400, 413) and time.monotonic() - start < 10
    if answer.status_code != 200:
        assert len(answer.json()["error"]) < 1000
    assert requests.get(f"{address}/livez", timeout=10).status_code == 200


@functools.cache
def bomb(size=300 << 20):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return packer.compress(b" " * size) + packer.flush()


def test_archives_that_unpack_to_more_than_the_limit_are_refused(live, monkeypatch):
    address, server = live
    unpacked = []

    class Watched(gzip.GzipFile):
        def read(self, size=-1):
            unpacked.append(len(data := super().read(size)))
            return data

    monkeypatch.setattr(serving.gzip, "GzipFile", Watched)
    for path, headers in (("/v1/models/m:predict", {}), ("/d/predict", bearer(KEY))):
        answer = requests.post(
            address + path, bomb(), headers={"Content-Encoding": "gzip", **headers}, timeout=60
        )
        assert answer.status_code == 413 and "unpacks to more than the limit" in answer.text
    assert sum(unpacked) == 2 * (
        server.config.server.max_unpacked_bytes + 1
    )  # no more than tells that it is too much
    assert server.unpacked.held == 0
    twice = requests.post(
        f"{address}/v1/models/m:predict",
        gzip.compress(bomb(), mtime=0),
        headers={"Content-Encoding": "gzip"},
        timeout=60,
    )
    assert twice.status_code == 400  # unpacked once, it is no JSON


@pytest.mark.filterwarnings(
    "ignore:Unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Werkzeug's, of the parts refused
def test_multipart_of_a_thousand_parts_and_without_end(live):
    address, _ = live
    many = {f"part{number}": (f"{number}.jpg", b"x" * 100) for number in range(2000)}
    answer = requests.post(f"{address}/d/predict", files=many, headers=bearer(KEY), timeout=60)
    assert answer.status_code in (400, 413) and set(answer.json()) == {
        "error",
        "status",
        "code",
        "request_id",
    }
    for body in (
        b"--b\r\nContent-Disposition: form-data; name=image; filename=a\r\n\r\nxxx",
        b"--b" * 100_000,
        b"--b\r\n" + b"X: y\r\n" * 50_000 + b"\r\n\r\n--b--",
    ):
        broken = requests.post(
            f"{address}/d/predict",
            body,
            headers={"Content-Type": "multipart/form-data; boundary=b", **bearer(KEY)},
            timeout=60,
        )
        assert broken.status_code in (400, 413)


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/console/../serving.py",
        "/console/..%2fserving.py",
        "/console/%2e%2e/serving.py",
        "/console/%2e%2e%2fserving.py",
        "/console/..%5cserving.py",
        "/console//etc/passwd",
        "/console/console.js%00.html",
        "/console/%00",
        "/d/samples/..%2f..%2fconfig.json",
        "/d/samples/%2e%2e%2f0.jpg",
        "/d/client/..%2f..%2fserving",
        "/d/active_learning/..%2f..",
        "/v1/models/..%2f..%2fetc:predict",
        "/v1/models/m%00:predict",
        "/model-serving/..%2f/v1",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/console/%c0%ae%c0%ae/serving.py",
    ],
)
def test_paths_that_climb_reach_no_file(live, path):
    address, _ = live
    for method in (b"GET", b"POST"):
        answer = exchange(
            address,
            b"%b %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            % (method, path.encode(), KEY.encode()),
        )
        status = int(answer.split(b" ", 2)[1])
        assert 400 <= status < 500 or status == 308, answer[:300]
        assert (
            b"root:" not in answer
            and b"def main" not in answer
            and b"model_config_list" not in answer
        )


def test_what_a_user_sends_comes_back_as_json_and_never_as_html(live):
    address, _ = live
    script = "<script>alert(1)</script>"
    for answer in (
        requests.get(f"{address}/v1/models/{script}", timeout=10),
        requests.get(f"{address}/{script}/classes", headers=bearer(KEY), timeout=10),
        requests.post(f"{address}/v1/models/m:predict", json={"instances": script}, timeout=10),
        requests.post(
            f"{address}/d/predict", json={"image_type": script}, headers=bearer(KEY), timeout=10
        ),
        requests.get(f"{address}/{script}", timeout=10),
        requests.post(f"{address}/v1/models/m:predict", script, timeout=10),
    ):
        assert answer.status_code >= 400 and answer.headers["Content-Type"].startswith(
            "application/json"
        ), (answer.url, answer.headers)
    page = requests.get(f"{address}/console/", timeout=10)
    assert (
        "default-src 'self'" in page.headers["Content-Security-Policy"]
        and page.headers["X-Content-Type-Options"] == "nosniff"
    )
    assert "unsafe-inline" not in page.headers["Content-Security-Policy"]


def test_no_attack_left_a_trace_of_code_in_an_answer(live):
    address, server = live
    wrong = [entry for entry in server.state["metrics"].last_errors if entry["status"] >= 500]
    assert wrong == []
    assert json.loads(requests.get(f"{address}/stats", timeout=10).text)["total"]["errors_5xx"] == 0
