"""GET /stats?window=: figures of five minutes, an hour and a day, held against a plain list of what was asked; over a restart too."""

import gc
import json
import re

import numpy as np
import pytest
from conftest import (
    ROOT,
    FakeDetector,
    FakeServable,
    Rest,
    bearer,
    config,
    fake_server,
    key_entry,
    until,
)

import serving
from serving_extensions import history, metrics

PICTURE = {"image_type": "array", "data": [[[1, 2, 3]]]}
P = "/v1/models/m:predict"
ROW = {"instances": [[1.0]]}
NAN = serving.NO_TIME


class Clock:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def line(status, ms, route="predict", model="m", batch=1):
    return {
        "request_id": "r",
        "method": "POST",
        "path": "/x",
        "route": route,
        "model": model,
        "version": "1",
        "status": status,
        "ms": ms,
        "rows": batch,
        "batch": batch,
    }


def trace(spent=(NAN, 0.001, 0.002, 0.0, 0.003), deployment="", by_page=False):
    made = serving.Trace()
    made.spent, made.deployment, made.by_page = spent, deployment, by_page
    made.infers = True
    return made


def series_of(found, kind="all", name=""):
    return found["series"][kind, name]


# --- figures against a plain list -----------------------------------------------------------------


@pytest.mark.parametrize("window", list(history.WINDOWS))
def test_figures_are_those_of_a_plain_list(window):
    step, length = history.WINDOWS[window]
    random, clock = np.random.default_rng(7), Clock(1_000_000_000.0)
    counted, asked = metrics.Metrics(clock), []
    end = clock.now + 1.5 * step * length
    while clock.now < end:
        for _ in range(random.integers(0, 4)):
            status = int(random.choice([200, 200, 200, 404, 500]))
            ms, batch = float(np.round(random.lognormal(2, 1.5), 3)), int(random.integers(0, 40))
            spent = (0.001, *random.uniform(0, 0.01, 4).tolist()) if batch else (0.002, *4 * [NAN])
            counted.note(trace(spent), line(status, ms, batch=batch), None)
            asked.append((clock.now, status, ms, batch, spent))
        clock.now += step * random.uniform(0.05, 0.6)
    found = counted.read_window(window)
    assert found["time"] == [
        (int(clock.now) // step - back) * step for back in reversed(range(length))
    ]
    for one in (series_of(found), series_of(found, "model", "m")):
        for place, began in enumerate(found["time"]):
            inside = [call for call in asked if began <= int(call[0]) < began + step]
            seconds = step if place < length - 1 else max(clock.now % step, 1)
            check_step(one, place, inside, seconds / 60)
    kept = [call for call in asked if call[0] >= found["time"][0]]
    total = series_of(found)["total"]
    assert total["requests"] == len(kept) < len(asked), "older ones are gone"
    assert total["by_status"]["5xx"] == sum(call[1] == 500 for call in kept)
    assert sum(total["batch_sizes"].values()) == sum(call[3] > 0 for call in kept)
    assert total["batch_sizes"]["1"] == sum(call[3] == 1 for call in kept)
    assert total["batch_sizes"]["32"] == sum(16 < call[3] <= 32 for call in kept)


def check_step(one, place, inside, minutes):
    for name, first in (("2xx", 2), ("4xx", 4), ("5xx", 5)):
        number = sum(call[1] // 100 == first for call in inside)
        assert one["requests"][name][place] == pytest.approx(number / minutes, abs=1e-3)
    latencies = [call[2] for call in inside]
    for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
        value = one["latency"][name][place]
        if not latencies:
            assert value is None
            continue
        exact = np.percentile(latencies, share, method="inverted_cdf")
        assert exact / 1.34 <= value <= exact * 1.34 + 1e-3, "within a step of the histogram"
    ran = [call for call in inside if call[3]]
    mean = pytest.approx(np.mean([call[2] for call in inside]), abs=1e-3) if inside else None
    assert one["latency"]["mean"][place] == mean
    for part, who in (("queue", inside), ("decode", ran), ("inference", ran), ("encode", ran)):
        at = serving.PHASES.index(part)
        mean = np.mean([1e3 * call[4][at] for call in who]) if who else None
        expected = pytest.approx(mean, abs=1e-3) if who else None
        assert one["parts"][part][place] == expected, part
    queued = sum(call[4][0] for call in inside)
    assert one["queue"][place] == pytest.approx(queued / (60 * minutes), abs=1e-3)
    served = sum(latencies) / 1e3 - queued
    assert one["in_flight"][place] == pytest.approx(served / (60 * minutes), abs=1e-3)
    rows = pytest.approx(np.mean([call[3] for call in ran]), abs=1e-3) if ran else None
    assert one["batch_size"][place] == rows


def test_latencies_beyond_the_scale_are_told_as_its_ends():
    counted = metrics.Metrics(Clock(1e9))
    for ms in (0.0, 0.01, 5e5):
        counted.note(trace(), line(200, ms), None)
    latency = series_of(counted.read_window("5m"))["latency"]
    assert latency["p99"][-1] == 1e5 and 0 < latency["p50"][-1] <= 0.1


def test_what_the_docstring_says_of_memory_is_so():
    def size(owner):
        return sum(
            array.nbytes
            for ring in owner.rings.values()
            for array in (ring.stamps, *ring.arrays.values())
        )

    numbers = re.findall(r"\d[\d,]*\d", history.Series.__doc__)
    assert (
        f"{size(history.Series()):,}" in numbers and f"{41 * size(history.Series()):,}" in numbers
    )
    assert f"{size(history.Resources()):,}" in history.Resources.__doc__


def test_names_are_bounded_and_old_ones_make_room():
    clock = Clock(1e9)
    counted = metrics.Metrics(clock)
    for number in range(history.MOST_SERIES + 50):
        counted.note(trace(), line(200, 1.0, model=f"m{number}"), None)
    found = counted.read_window("5m")
    assert len(found["series"]) == history.MOST_SERIES + 1
    assert series_of(found)["total"]["requests"] == history.MOST_SERIES + 50
    clock.now += 2 * 86400
    counted.note(trace(), line(200, 1.0, model="new"), None)
    assert set(counted.read_window("24h")["series"]) == {("all", ""), ("model", "new")}


# --- what is counted ------------------------------------------------------------------------------


def server_of_many(tmp_path):
    """A model, a deployment, a pipeline and a handler; three keys, two of them with quotas."""
    keys = [
        key_entry("all", "k", quota={"calls": 100, "period": "day"}),
        key_entry("pets", "p", deployments=["pets"], quota={"calls": 50, "period": "month"}),
        key_entry("talk", "t", deployments=["/talk"]),
    ]
    (tmp_path / "talk.py").write_text("def talk(inputs):\n    return inputs\n")
    file = tmp_path / "c.json"
    text = json.dumps(
        config(
            "m",
            "d",
            auth={"keys": keys, "protect": "all"},
            handlers=[{"path": "/talk", "function": "talk.py:talk"}],
            deployments=[
                {"id": name, "model": "d", "label_map": ["cat", "dog"]}
                for name in ("pets", "birds")
            ],
            pipeline_config_list=[
                {
                    "name": "p",
                    "inputs": ["x"],
                    "nodes": [
                        {
                            "name": "n",
                            "type": "DL model",
                            "model_name": "m",
                            "inputs": [{"x": {"node_name": "request", "data_item": "x"}}],
                            "outputs": [{"data_item": "y", "alias": "y"}],
                        }
                    ],
                    "outputs": [{"y": {"node_name": "n", "data_item": "y"}}],
                }
            ],
        )
    )
    file.write_text(text)
    server = serving.ModelServer(
        file,
        load=lambda folder, model: {"m": FakeServable, "d": FakeDetector}[model.name](),
        list_versions=lambda base: {1: ROOT / "1"},
    )
    assert server.wait(60)
    return server


def figures(rest, key="k", window="5m"):
    answer = rest.get(f"/stats?window={window}", headers=bearer(key))
    assert answer.status_code == 200
    return answer.json


def totals(found):
    return {(one["kind"], one["name"]): one["total"]["requests"] for one in found["series"]}


@pytest.fixture
def many(tmp_path):
    server = server_of_many(tmp_path)
    yield Rest(server)
    server.stop()


def ask_all(rest, **headers):
    headers = {**bearer("k"), **headers}
    codes = [
        rest.post(path, body, headers=headers).status_code
        for path, body in (
            (P, ROW),
            (P, "{"),
            ("/v1/models/p:predict", ROW),
            ("/pets/predict", PICTURE),
            ("/predict", PICTURE),
            ("/model-serving/pets:predict", {"instances": [[[[1, 2, 3]]]]}),
            ("/talk", [1]),
        )
    ]
    assert codes == [200, 400, 200, 200, 200, 200, 200]


def test_calls_are_told_by_what_they_reach(many):
    ask_all(many)
    for path in ("/v1/models", "/v1/models/m", "/stats", "/metrics", "/deployments", "/classes"):
        assert many.get(path, headers=bearer("k")).status_code == 200
    assert many.get("/pets/client/curl", headers=bearer("k")).status_code == 200
    assert totals(figures(many)) == {
        ("all", ""): 7,
        ("model", "m"): 1,
        ("pipeline", "p"): 1,
        ("model", "d"): 3,
        ("deployment", "pets"): 3,
        ("handler", "/talk"): 1,
    }, "what is no inference is not in it, a body that cannot be read is in all alone"


def test_the_pages_own_calls_are_not_in_it(many):
    ask_all(many, **{"X-Serving-Page": "1"})
    found = figures(many)
    assert totals(found) == {("all", ""): 0} and found["last_errors"] == []
    ask_all(many)
    found = figures(many)
    assert totals(found)["all", ""] == 7 and len(found["last_errors"]) == 1
    stats = many.get("/stats", headers=bearer("k")).json
    assert stats["groups"]["m"]["requests"] == 2, "the plain numbers have all"


def test_the_pages_own_calls_are_not_in_flight(many):
    page = {**bearer("k"), "X-Serving-Page": "1"}
    stats = many.get("/stats", headers=page).json
    assert stats["in_flight"] == stats["peak_in_flight"] == 0
    assert many.get("/stats", headers=bearer("k")).json["in_flight"] == 1, "this very request"
    assert many.get("/stats", headers=page).json["in_flight"] == 0


def test_errors_are_told_with_their_route_and_id(many):
    many.post(P, "{", headers={**bearer("k"), "X-Request-Id": "r-1"})
    many.post("/pets/predict", "x", headers={**bearer("p"), "X-Request-Id": "r-2"})
    second, first = figures(many)["last_errors"]
    assert (first["request_id"], first["route"], first["status"]) == ("r-1", "predict", 400)
    assert (
        first["path"] == P
        and first["error"]
        and first["time"] == pytest.approx(second["time"], abs=60)
    )
    assert (second["deployment"], second["route"]) == ("pets", "predict_image")


def test_a_key_sees_what_it_is_for(many):
    ask_all(many)
    many.post("/pets/predict", "x", headers=bearer("p"))
    theirs = {"signature_name": "theirs", "instances": [1]}  # of the same model
    assert many.post("/model-serving/birds:predict", theirs, headers=bearer("k")).status_code == 400
    last = figures(many)["last_errors"][0]
    assert (last["deployment"], last["model"]) == ("birds", "d") and "theirs" in last["error"]
    found = figures(many, "p")
    assert set(totals(found)) == {("all", ""), ("deployment", "pets"), ("model", "d")}
    assert [(q["key"], q["used"], q["limit"], q["period"]) for q in found["quotas"]] == [
        ("pets", 1, 50, "month")
    ]
    assert [error["deployment"] for error in found["last_errors"]] == ["pets"]
    assert set(totals(figures(many, "t"))) == {("all", ""), ("handler", "/talk")}
    assert figures(many, "t")["quotas"] == figures(many, "t")["last_errors"] == []
    for part in ("classes", "predict", "client/curl"):  # no deployment is called as a handler is
        answer = many.get(f"/%2Ftalk/{part}", headers=bearer("t"))
        assert answer.status_code >= 400 and "pets" not in answer.text
    assert [quota["key"] for quota in figures(many)["quotas"]] == ["all", "pets"]
    assert figures(many)["quotas"][0]["resets"] % 86400 == 0


def test_refused_calls_are_those_of_the_deployment_that_they_name(many):
    calls = [("/pets/predict", "t", 403), ("/predict", "?", 401), ("/birds/predict", "p", 403)]
    for path, key, status in [*calls, ("/nobody/predict", "?", 401), ("/talk", "p", 403)]:
        assert many.post(path, PICTURE, headers=bearer(key)).status_code == status
    assert totals(figures(many)) == {
        ("all", ""): 5,
        ("deployment", "pets"): 2,
        ("deployment", "birds"): 1,
        ("handler", "/talk"): 1,
    }
    assert [error["status"] for error in figures(many, "p")["last_errors"]] == [401, 403]


def test_an_unknown_window_is_refused(many):
    for window in ("", "7d", "5M"):
        answer = many.get(f"/stats?window={window}", headers=bearer("k"))
        assert answer.status_code == 400
        assert answer.json == {"error": f"window: expected 5m, 1h or 24h, got '{window}'"}
    assert "groups" in many.get("/stats?other=1", headers=bearer("k")).json


def test_the_process_is_looked_at_while_nobody_asks(monkeypatch):
    monkeypatch.setattr(metrics, "LOOK_SECONDS", 0.02)
    server = fake_server({"m": FakeServable()})
    rest = Rest(server)
    server.refused["queue"] += 3

    def seen():
        return rest.get("/stats?window=1h").json["server"]

    until(lambda: seen()["memory_bytes"][-1] and seen()["refused"][-1] is not None)
    until(lambda: sum(n or 0 for n in seen()["refused"]) == 3)
    found = seen()
    assert found["memory_bytes"][-1] > 1 << 20 and found["cpu_percent"][-1] >= 0
    assert found["queue"][-1] == 0 and found["in_flight"][-1] >= 0
    assert found["gpu_memory_bytes"][-1] is None and found["memory_bytes"][0] is None
    server.stop()
    until(lambda: not server.state["metrics"].watcher.is_alive())


def test_nobody_is_kept_by_the_thread_that_looks():
    server = fake_server({"m": FakeServable()})
    watcher = server.state["metrics"].watcher
    assert watcher.is_alive()
    del server
    until(lambda: gc.collect() is None or not watcher.is_alive())


def test_every_figure_has_a_value_for_each_step(many):
    found = figures(many)
    for one in found["series"]:
        for values in (*one["requests"].values(), *one["latency"].values(), one["batch_size"]):
            assert len(values) == len(found["time"]) == 60
    assert found["step_seconds"] == 5 and found["limits"]["queue"] == 1000


# --- over a restart -------------------------------------------------------------------------------


def site(tmp_path, **server):
    file = tmp_path / "c.json"
    options = {"file_system_poll_wait_seconds": 0, "history": "stats.json", **server}
    file.write_text(json.dumps({**config("m"), "server": options}))
    made = serving.ModelServer(
        file, load=lambda folder, model: FakeServable(), list_versions=lambda base: {1: ROOT / "1"}
    )
    assert made.wait(10)
    return made


def test_history_goes_on_after_a_restart(tmp_path):
    server = site(tmp_path)
    rest = Rest(server)
    for body in (ROW, ROW, "{"):
        rest.post(P, body)
    server.state["metrics"].look()
    before = {window: rest.get(f"/stats?window={window}").json for window in history.WINDOWS}
    server.stop()
    assert {file.name for file in tmp_path.iterdir()} == {"c.json", "stats.json"}
    again = site(tmp_path)
    rest = Rest(again)
    for window, told in before.items():
        found = rest.get(f"/stats?window={window}").json
        assert totals(found) == totals(told) and found["last_errors"] == told["last_errors"]
        assert found["series"][0]["total"] == told["series"][0]["total"]
        assert any(found["server"]["memory_bytes"])
    rest.post(P, ROW)
    assert totals(rest.get("/stats?window=24h").json)["model", "m"] == 3
    again.stop()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\x00",
        b'{"form": 1}',
        b"[" * 100_000,
        "short",
        "bomb",
        "errors",
    ],
)
def test_a_file_that_cannot_be_read_is_a_warning(tmp_path, caplog, text):
    server = site(tmp_path)
    Rest(server).post(P, ROW)
    server.stop()
    file = tmp_path / "stats.json"
    if isinstance(text, str):
        found = json.loads(file.read_text())
        if text == "errors":
            found["errors"] = [{"time": 1}]
        else:
            size = 8 if text == "short" else 100_000_000
            counts = history.pack_array(np.zeros(size, np.uint8))
            found["series"][0][2]["5m"]["counts"] = counts
        text = json.dumps(found).encode()
    file.write_bytes(text)
    server = site(tmp_path)
    (warning,) = [record for record in caplog.records if "$.server.history" in record.getMessage()]
    assert warning.levelname == "WARNING" and "stats.json" in warning.getMessage()
    rest = Rest(server)
    rest.post(P, ROW)
    assert totals(rest.get("/stats?window=5m").json)["model", "m"] == 1
    server.stop()
    assert json.loads(file.read_text())["form"] == history.FORM, "it is written anew"


def test_it_is_written_once_a_minute(tmp_path):
    clock, file = Clock(1e9), tmp_path / "stats.json"
    counted = metrics.Metrics(clock)
    counted.keep(str(file))
    assert file.exists()
    file.unlink()
    clock.now += 59
    counted.keep(str(file))
    assert not file.exists()
    counted.keep(str(file), now=True)
    assert file.exists()
    file.unlink()
    clock.now += 60
    counted.keep(str(file))
    assert file.exists() and [each.name for each in tmp_path.iterdir()] == ["stats.json"]
    counted.keep(None, now=True)


def test_a_clock_that_is_put_back_keeps_nothing_from_being_written(tmp_path):
    clock, file = Clock(1e9), tmp_path / "stats.json"
    counted = metrics.Metrics(clock)
    counted.keep(str(file))
    file.unlink()
    clock.now -= 86400
    counted.keep(str(file))
    assert file.exists()
    assert 0 <= counted.read()["uptime_seconds"] < 60
    assert 0 <= counted.read_window("5m")["uptime_seconds"] < 60


def test_a_file_that_cannot_be_written_is_told_once(tmp_path, caplog):
    counted = metrics.Metrics()
    for _ in range(3):
        counted.keep(str(tmp_path / "none/stats.json"), now=True)
    (warning,) = caplog.records
    assert "$.server.history: cannot be written" in warning.getMessage()


def test_a_history_that_a_reload_names_waits_for_the_next_start(tmp_path, caplog):
    server = site(tmp_path)
    text = (tmp_path / "c.json").read_text()
    (tmp_path / "c.json").write_text(text.replace("stats.json", "other.json"))
    (tmp_path / "other.json").write_text("precious")
    assert server.reload()[0] == 201
    server.stop()
    assert "$.server.history: changed; it takes effect at a restart" in caplog.text
    assert (tmp_path / "other.json").read_text() == "precious"
    assert json.loads((tmp_path / "stats.json").read_text())["form"] == history.FORM


def test_history_without_what_keeps_it_is_refused(tmp_path):
    with pytest.raises(serving.ConfigError, match=r"\$.server.history: this needs serving_ext"):
        serving.ModelServer({**config(), "server": {"history": "x.json"}}, extensions=())
