"""Server-Timing: on every answer, by the grammar of its standard, and no more than the client's own clock."""

import re
import time

import numpy as np
import pytest
import requests
from conftest import (
    FakeDetector,
    FakeServable,
    Rest,
    bearer,
    fail,
    fake_server,
    key_entry,
    listening,
)

import serving

PICTURE = {"image_type": "array", "data": [[[1, 2, 3]]]}
ROW = {"instances": [[1.0]]}
# https://www.w3.org/TR/server-timing/#the-server-timing-header-field
TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
HEADER = re.compile(rf"{TOKEN};dur={TOKEN}(, {TOKEN};dur={TOKEN})*")


def times(response):
    """The header's durations, in ms, by name."""
    text = response.headers["Server-Timing"]
    assert HEADER.fullmatch(text), text
    found = dict(part.split(";dur=") for part in text.split(", "))
    assert set(found) <= {*serving.PHASES, "total"} and "total" in found
    assert all(float(value) >= 0 for value in found.values()), text
    return {name: float(value) for name, value in found.items()}


def sleep(name, inputs):
    time.sleep(0.02)
    return {"y": inputs["x"]}


def server_of(**options):
    like = FakeServable()
    return fake_server(
        {
            "m": like,
            "d": FakeDetector(),
            "f": serving.Servable(like.signatures, fail, device="CPU:0"),
            "slow": serving.Servable(like.signatures, sleep, device="CPU:0"),
        },
        auth={"keys": [key_entry("site", "k")]},
        deployments=[{"id": "pets", "model": "d", "label_map": ["cat", "dog"]}],
        **options,
    )


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/models/m:predict", ROW, 200),
        ("POST", "/v1/models/m/versions/1:predict", ROW, 200),
        ("POST", "/v1/models/m:predict", "{", 400),
        ("POST", "/v1/models/m:predict", {"instances": [["x"]]}, 400),
        ("POST", "/v1/models/m:classify", {"examples": [{}]}, 400),
        ("POST", "/v1/models/none:predict", ROW, 404),
        ("POST", "/v1/models/f:predict", ROW, 500),
        ("POST", "/v1/models/m/versions/99999999999999999999:predict", ROW, 400),
        ("POST", "/pets/predict", PICTURE, 200),
        ("POST", "/predict", PICTURE, 200),
        ("POST", "/pets/predict", "x", 400),
        ("POST", "/nobody/predict", PICTURE, 404),
        ("GET", "/pets/predict", "", 405),
        ("GET", "/v1/models/m", "", 200),
        ("GET", "/v1/other", "", 400),
        ("GET", "/stats", "", 200),
        ("OPTIONS", "/v1/models/m:predict", "", 400),
    ],
)
def test_every_answer_carries_it(how, method, path, body, status):
    rest = Rest(server_of(), how)
    answer = getattr(rest, method.lower(), None)
    options = {"headers": bearer("k")}
    if method == "POST":
        answer = rest.post(path, body, **options)
    else:
        answer = rest.open(path, method=method, **options)
    assert answer.status_code == status, answer.get_data(as_text=True)
    found = times(answer)
    ran = status == 200 and method == "POST"
    assert ("inference" in found) == (ran or path == "/v1/models/f:predict")
    parts = sum(value for name, value in found.items() if name != "total")
    assert parts <= found["total"] + 0.005, "each is rounded to a thousandth"


def test_who_has_no_key_is_told_as_well():
    answer = Rest(server_of()).post("/pets/predict", PICTURE)
    assert answer.status_code == 401 and set(times(answer)) == {"total"}


def test_it_is_no_more_than_the_client_waits():
    with listening(server_of()) as address, requests.Session() as session:
        session.headers.update(bearer("k"))
        for path, body, slow in (
            ("/v1/models/m:predict", ROW, 0),
            ("/v1/models/slow:predict", ROW, 20),
            ("/v1/models/f:predict", ROW, 0),
            ("/v1/models/m:predict", {"instances": np.zeros((5000, 1)).tolist()}, 0),
            ("/pets/predict", PICTURE, 0),
        ):
            for _ in range(5):
                start = time.perf_counter()
                answer = session.post(address + path, json=body)
                wall = 1e3 * (time.perf_counter() - start)
                found = times(answer)
                assert slow <= found["total"] <= wall and "queue" in found
                assert sum(found.values()) - found["total"] <= wall
                assert found["inference"] >= slow


def test_several_runs_at_once_are_no_more_than_has_passed():
    trace = serving.Trace()
    now = time.perf_counter()
    trace.queued, trace.start, trace.began, trace.ended = now - 4, now - 3, now - 2, now - 1
    trace.inference, trace.routines = 17.0, 5.0
    found = dict(zip(serving.PHASES, trace.measure(now)))
    assert sum(found.values()) == pytest.approx(4, abs=0.5)
    assert found["inference"] == pytest.approx(1) and found["encode"] == 0


def test_pages_of_other_origins_may_read_it():
    site = "https://site.example"
    server = server_of(server={"cors_origins": [site], "file_system_poll_wait_seconds": 0})
    server.dressers.append(lambda *given: [("X-Limit", "1")])  # an extension's, as quotas have
    rest = Rest(server)
    answer = rest.post("/v1/models/m:predict", ROW, headers={"Origin": site})
    assert answer.headers["Timing-Allow-Origin"] == site
    exposed = answer.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Server-Timing", "X-Request-Id", "X-Limit"} <= set(exposed)
    for origin in ("https://other.example", None):
        headers = {"Origin": origin} if origin else {}
        answer = rest.post("/v1/models/m:predict", ROW, headers=headers)
        assert "Timing-Allow-Origin" not in answer.headers
        assert "Access-Control-Expose-Headers" not in answer.headers and times(answer)


def test_a_pipeline_tells_the_time_of_each_node(demo):
    answer = Rest(demo).post("/v1/models/two_steps:predict", '{"inputs": 1.0}')
    assert answer.status_code == 200
    told = re.findall(r'node;desc="(\w+)";dur=([\d.]+)', answer.headers["Server-Timing"])
    assert sorted(name for name, _ in told) == ["first", "second"]
    (total,) = re.findall(r"total;dur=([\d.]+)", answer.headers["Server-Timing"])
    assert 0 < sum(float(spent) for _, spent in told) <= float(total)
