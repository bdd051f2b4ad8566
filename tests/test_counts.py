"""Requests are counted many at once: none is lost, whoever reads meanwhile; log lines are as the logging module writes them."""

import logging
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import COUNTED, FakeServable, Rest, fake_server
from prometheus_client.parser import text_string_to_metric_families

import serving
from serving_extensions import metrics

P = "/v1/models/m:predict"


def samples(text):
    return {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def predicts_in(found):
    return sum(
        value
        for (name, *labels), value in found.items()
        if name == "serving_requests_total" and ("route", "predict") in labels
    )


def run_threads(targets):
    threads = [threading.Thread(target=target) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("count", [1, 63, 64, 65, 128, 1000])
def test_every_request_is_counted_while_others_read(count):
    server = fake_server({"m": FakeServable()})
    app, left, ended, wrong = serving.create_app(server), iter(range(count)), threading.Event(), []
    lock, seen = threading.Lock(), {"stats": [0], "metrics": [0]}

    def ask():
        client = app.test_client()
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            body = "{" if number % 10 == 9 else '{"instances": [[1.0], [2.0]]}'
            if client.post(P, data=body).status_code != (400 if number % 10 == 9 else 200):
                wrong.append(number)

    def read_stats():
        client = app.test_client()
        while not ended.is_set():
            seen["stats"].append(
                client.get("/stats").json["groups"].get("m", {"requests": 0})["requests"]
            )

    def read_metrics():
        client = app.test_client()
        while not ended.is_set():
            seen["metrics"].append(
                predicts_in(samples(client.get("/metrics").get_data(as_text=True)))
            )

    readers = [threading.Thread(target=target) for target in (read_stats, read_metrics)]
    for reader in readers:
        reader.start()
    run_threads([ask] * 8)
    ended.set()
    for reader in readers:
        reader.join()
    failed = count // 10
    stats = app.test_client().get("/stats").json
    assert wrong == [] and stats["groups"]["m"]["batch_sizes"] == {"2": count - failed}
    assert (
        stats["groups"]["m"]["requests"] == count - failed
        and stats["total"]["errors_4xx"] == failed
    )
    assert stats["total"]["requests"] == count + len(seen["stats"]) - 1 + len(seen["metrics"]) - 1
    assert sum(minute["requests"] for minute in stats["minutes"]) == stats["total"]["requests"]
    found = samples(app.test_client().get("/metrics").get_data(as_text=True))
    durations = sum(
        value
        for (name, *labels), value in found.items()
        if name == "serving_request_duration_seconds_count" and ("route", "predict") in labels
    )
    assert predicts_in(found) == durations == count
    assert found["serving_batch_size_sum", ("model", "m")] == 2 * (count - failed)
    for counts in seen.values():
        assert counts == sorted(counts) and counts[-1] <= count


def test_the_first_readers_at_once_see_all_families():
    for _ in range(20):
        rest = Rest(fake_server({"m": FakeServable()}))
        texts, start = [], threading.Barrier(4)

        def read(rest=rest, texts=texts, start=start):
            start.wait()
            texts.append(rest.client.get("/metrics").get_data(as_text=True))

        run_threads([read] * 4)
        assert all(
            "serving_model_loaded{" in text and "process_resident_memory_bytes" in text
            for text in texts
        )


def test_requests_go_on_while_what_is_read_is_computed(monkeypatch):
    server = fake_server({"m": FakeServable()})
    rest, asked, begun, go_on = Rest(server), [], threading.Event(), threading.Event()

    def percentiles(seconds):
        begun.set()
        assert go_on.wait(20)

    monkeypatch.setattr(metrics, "percentiles", percentiles)

    def ask():
        asked.append(rest.post(P, {"instances": [[1.0]]}).status_code)

    with ThreadPoolExecutor(2) as pool:
        stats = pool.submit(server.state["metrics"].read)
        assert begun.wait(20)
        pool.submit(ask).result(10)
        go_on.set()
        assert stats.result(20)["total"]["requests"] == 0, "as it was when it was asked for"
        families = metrics.Collector(server).collect()
        next(families)
        try:
            pool.submit(ask).result(10)
        finally:
            families.close()
    assert asked == [200, 200] and server.state["metrics"].read()["total"]["requests"] == 2


def test_the_last_errors_may_be_read_while_requests_fail():
    counted, ended, wrong = metrics.Metrics(), threading.Event(), []
    call = {**COUNTED, "status": 404}

    def read():
        while not ended.is_set():
            if len(counted.read()["last_errors"]) > 20:
                wrong.append("too many")
            try:
                counted.read_window("5m")
            except RuntimeError as error:
                wrong.append(error)
            time.sleep(0.0005)

    def fail():
        for _ in range(500):
            counted.note(serving.Trace(), call, None)

    reader = threading.Thread(target=read)
    reader.start()
    run_threads([fail] * 4)
    ended.set()
    reader.join()
    found = counted.read()
    assert (
        not wrong
        and found["total"]["requests"] == found["total"]["errors_4xx"] == 2000
        and found["in_flight"] == 0
    )


@pytest.mark.parametrize(
    "created",
    [
        0.0,
        0.9999,
        1.0,
        1_700_000_000.0,
        1_700_000_000.001,
        1_700_000_000.9995,
        1_700_000_000.9999999,
        1_700_000_001.0005,
        1_711_846_800.25,
        2_000_000_000.5,
    ],
)
def test_log_lines_are_those_of_logging(created):
    ours, theirs = metrics.TextFormatter(serving.LOG_LINE), logging.Formatter(serving.LOG_LINE)
    for shift in (0, 0.0005, 0.9, 1, -1, 0, 3600, 86400 * 180, 0):
        record = logging.LogRecord("serving", logging.INFO, __file__, 1, "%s is %d", ("a", 1), None)
        record.created = max(0.0, created + shift)
        record.msecs = (record.created - int(record.created)) * 1000
        assert ours.format(record) == theirs.format(record)


def test_an_answer_that_nobody_can_read_is_counted_all_the_same():
    assert metrics.error_of(serving.Reply(b"[" * 200_000, 400)) == ""


def test_an_observer_that_raises_takes_no_answer_away(caplog):
    server = fake_server({"m": FakeServable()})

    def raise_error(*anything):
        raise RuntimeError("observed too much")

    server.observers.append(raise_error)
    answer = Rest(server).post("/v1/models/m:predict", {"instances": [[1.0]]})
    assert answer.status_code == 200 and "observed too much" in caplog.text
    assert server.state["metrics"].in_flight == 0


def test_groups_of_one_name_are_one_number():
    class Box:
        counts = {"kept": 2, "busy": 1}

    folders = {Path("a/hard"): Box(), Path("b/hard"): Box()}
    server = types.SimpleNamespace(state={"active_learning": folders})
    (family,) = metrics.collect_learning(server)
    assert {(*one.labels.values(), one.value) for one in family.samples} == {
        ("hard", "kept", 4),
        ("hard", "busy", 2),
    }


def test_a_look_at_the_numbers_settles_nothing_of_tensorflows(monkeypatch):
    asked = []
    fake = types.SimpleNamespace(
        config=types.SimpleNamespace(list_logical_devices=lambda kind: asked.append(kind) or [])
    )
    monkeypatch.setitem(sys.modules, "tensorflow", fake)
    ready = threading.Event()
    monkeypatch.setattr(metrics, "PREPARED_DEVICES", ready)
    assert metrics.read_gpus() == [] and asked == []
    ready.set()
    assert metrics.read_gpus() == [] and asked == ["GPU"]


@pytest.mark.parametrize(
    ("visible", "index", "wanted"),
    [(None, 1, ("index", 1)), ("3,GPU-ab", 0, ("index", 3)), ("3, GPU-ab", 1, ("uuid", "GPU-ab"))],
)
def test_the_gpu_that_is_told_is_the_one_that_the_process_sees(monkeypatch, visible, index, wanted):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = types.SimpleNamespace(
        nvmlDeviceGetHandleByIndex=lambda number: ("index", number),
        nvmlDeviceGetHandleByUUID=lambda name: ("uuid", name),
    )
    assert metrics.find_gpu(nvml, index) == wanted
