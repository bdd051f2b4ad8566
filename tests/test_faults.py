"""Faults that are caused: models that fail, hang or answer otherwise than they say, full disks, a loader that dies, ends in the middle."""

import contextlib
import functools
import json
import logging
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import flask
import numpy as np
import pytest
import requests
from conftest import (
    NO_POLL,
    ROOT,
    Disk,
    FakeServable,
    Rest,
    assert_error,
    config,
    fake_server,
    free_port,
    key_entry,
    listening,
    until,
)
from test_saved_models import export
from werkzeug.test import Client

import serving


@pytest.fixture(scope="module")
def folder(tf, tmp_path_factory):
    """Models that do as they say up to 100, and beyond it fail, hang, or answer other shapes."""
    made = tmp_path_factory.mktemp("models")
    one = [tf.TensorSpec([None], name="x")]

    def hang(x):
        while (x > 100).any():
            time.sleep(0.1)
        return x

    def grow(x):
        return np.repeat(x, 3) if (x > 100).any() else x

    with_checks = {
        "crash": lambda x: {
            "y": tf.ensure_shape(x, [None])
            + tf.cast(tf.gather([1, 2], tf.where(x > 100, 7, 0)), tf.float32)
        },
        "raise": lambda x: {
            "y": tf.numpy_function(lambda x: x if (x < 100).all() else 1 / 0, [x], tf.float32)
        },
        "hang": lambda x: {"y": tf.numpy_function(hang, [x], tf.float32)},
        "loop": lambda x: {
            "y": tf.while_loop(lambda y: tf.reduce_any(y > 100), lambda y: [y + 1], [x])[0]
        },
        "grow": lambda x: {
            "y": tf.ensure_shape(tf.numpy_function(grow, [x], tf.float32), [None]),
            "x": tf.identity(x),
        },
    }
    for name, function in with_checks.items():
        export(tf, made / name / "1", {"serving_default": (function, one)})
    return made


@pytest.fixture(scope="module")
def faulty(folder):
    """All of them in one server, with a healthy one."""
    names = ("crash", "raise", "hang", "grow")
    items = [
        {"config": {"name": name, "base_path": str(folder / name), "batching": False}}
        for name in names
    ]
    items.append({"config": {"name": "half", "base_path": str(ROOT / "models/half_plus_two")}})
    server = serving.ModelServer(
        {"model_config_list": items, "server": {**NO_POLL, "threads": 8, "drain_seconds": 1}}
    )
    assert server.wait(60) and not server.readiness()
    return server


@pytest.mark.parametrize(("name", "status"), [("crash", 400), ("raise", 500)])
def test_a_model_that_fails_in_its_graph_answers_why_without_a_traceback(faulty, name, status):
    rest = Rest(faulty)
    answer = rest.post(f"/v1/models/{name}:predict", {"instances": [1.0, 200.0]})
    text = json.loads(answer.data)["error"]
    assert (
        answer.status_code == status
        and text
        and "Traceback" not in text
        and str(ROOT) not in text
        and 'File "' not in text
    )
    assert json.loads(rest.post(f"/v1/models/{name}:predict", {"instances": [1.0]}).data)[
        "predictions"
    ]


def test_outputs_of_different_lengths_are_no_rows_and_come_as_they_are_in_columns(faulty):
    rest = Rest(faulty)
    assert json.loads(rest.post("/v1/models/grow:predict", {"instances": [1.0]}).data) == {
        "predictions": [{"x": 1.0, "y": 1.0}]
    }
    answer = rest.post("/v1/models/grow:predict", {"instances": [1.0, 200.0]})
    assert answer.status_code in (400, 500) and "batch" in json.loads(answer.data)["error"]
    columns = json.loads(rest.post("/v1/models/grow:predict", {"inputs": [1.0, 200.0]}).data)[
        "outputs"
    ]
    assert columns == {"x": [1.0, 200.0], "y": [1.0, 1.0, 1.0, 200.0, 200.0, 200.0]}


def test_a_model_that_hangs_is_answered_504_and_holds_up_no_other(faulty):
    with listening(faulty) as address, ThreadPoolExecutor(8) as pool:

        def ask(value):
            return requests.post(
                f"{address}/v1/models/hang:predict",
                json={"instances": [value]},
                headers={"X-Request-Timeout": "1"},
                timeout=30,
            )

        hung = [pool.submit(ask, 200.0) for _ in range(6)]
        time.sleep(0.3)
        assert requests.post(
            f"{address}/v1/models/half:predict", json={"instances": [2.0]}, timeout=10
        ).json() == {"predictions": [3.0]}
        assert [future.result().status_code for future in hung] == [504] * 6
        assert requests.post(
            f"{address}/v1/models/half:predict", json={"instances": [2.0]}, timeout=10
        ).json() == {"predictions": [3.0]}
        # Python runs its own functions one after the other, so this model is lost; it says so, and still nobody waits for ever
        assert ask(2.0).status_code in (200, 504)


def test_a_process_with_a_model_that_hangs_ends_all_the_same(folder):
    source = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r}); sys.path.insert(0, {str(ROOT)!r})
import threading, time, serving
from conftest import FakeServable, fake_server
class Hung(FakeServable):
    def answer(self, name, inputs):
        time.sleep(1000)
server = fake_server({{"m": Hung()}}, server={{"drain_seconds": 1}})
threading.Thread(target=lambda: server.predict("m", {{"instances": [[1.0]]}}), daemon=True).start()
serving.run(server, port=0)
"""
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("serving")
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_process_whose_functions_hang_ends_all_the_same(tmp_path):
    (tmp_path / "own.py").write_text("import time\ndef hang(*given): time.sleep(1000)\n")
    node = {
        "type": "custom",
        "function": "own.py:hang",
        "inputs": [{"v": {"node_name": "request", "data_item": "x"}}],
        "outputs": [{"data_item": "y", "alias": "y"}],
    }
    outputs = [{name: {"node_name": name, "data_item": "y"}} for name in "ab"]
    nodes = [{"name": name, **node} for name in "ab"]
    process, address = serve_alone(
        tmp_path,
        pipeline_config_list=[{"name": "p", "inputs": ["x"], "nodes": nodes, "outputs": outputs}],
        handlers=[{"path": "/hang", "function": "own.py:hang", "timeout_seconds": 0.2}],
        auth={"keys": [key_entry("a", "key")]},
    )
    ask = functools.partial(
        requests.post, headers={"x-api-key": "key"}, json={"inputs": {"x": [1]}}
    )
    assert ask(f"{address}/hang").status_code == 504
    with pytest.raises(requests.Timeout):
        ask(f"{address}/v1/models/p:predict", timeout=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def serve_alone(tmp_path, *models, stderr=None, **others):
    """A server of its own over copies of models; returns its process and its address."""
    source = config(*models, server={**NO_POLL, "drain_seconds": 1}, **others)
    (tmp_path / "config.json").write_text(json.dumps(source))
    process = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "serving.py"),
            "--config",
            str(tmp_path / "config.json"),
            "--port",
            "0",
        ],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    address = process.stdout.readline().split()[3].rstrip(",")
    while requests.get(f"{address}/readyz", timeout=30).status_code != 200:
        time.sleep(0.1)
    return process, address


def test_a_model_that_loops_for_ever_holds_up_neither_its_unloading_nor_the_end(folder, tmp_path):
    """TensorFlow cancels a loop of its own when its session is closed; a Python function, as in the model that hangs, it does not."""
    (
        shutil.copytree(folder / "loop", tmp_path / "loop"),
        shutil.copytree(ROOT / "models/half_plus_two", tmp_path / "half"),
    )
    process, address = serve_alone(tmp_path, "loop", "half")
    lost = requests.post(
        f"{address}/v1/models/loop:predict",
        json={"instances": [200.0]},
        headers={"X-Request-Timeout": "0.5"},
        timeout=30,
    )
    assert lost.status_code == 504
    shutil.rmtree(tmp_path / "loop" / "1")
    shutil.copytree(folder / "loop" / "1", tmp_path / "loop" / "2")
    assert requests.post(f"{address}/v1/config/reload", timeout=60).status_code == 201
    assert requests.post(
        f"{address}/v1/models/loop:predict", json={"instances": [2.0]}, timeout=10
    ).json() == {"predictions": [2.0]}
    assert (
        requests.post(
            f"{address}/v1/models/loop:predict",
            json={"instances": [200.0]},
            headers={"X-Request-Timeout": "0.5"},
            timeout=30,
        ).status_code
        == 504
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


# --- the loader -------------------------------------------------------------------------------------------


def test_a_pass_of_the_loader_that_breaks_is_followed_by_the_next(caplog):
    disk, broken = Disk(m=[1]), threading.Event()

    def list_versions(base_path):
        if broken.is_set():
            raise MemoryError("made to fail")
        return disk.list_versions(base_path)

    server = serving.ModelServer(config("m"), load=disk.load, list_versions=list_versions)
    assert server.wait(10)
    rest = Rest(server)
    broken.set()
    answer = rest.post("/v1/config/reload")
    assert answer.status_code == 500 and "Traceback" not in answer.text
    assert rest.post("/v1/models/m:predict", {"instances": [[1.0]]}).status_code == 200
    broken.clear()
    disk.models["m"].add(2)
    assert rest.post("/v1/config/reload").status_code == 201
    assert json.loads(rest.post("/v1/models/m:predict", {"instances": [[2.0]]}).data) == {
        "predictions": [[3.0]]
    }


def test_a_config_whose_pass_breaks_is_tried_again_by_the_next_reload(tmp_path, monkeypatch):
    """`dry_run` says so, too."""
    (tmp_path / "config.json").write_text('{"model_config_list": []}\n')
    server = serving.ModelServer(tmp_path / "config.json", poll_seconds=0)
    assert server.wait(10)
    rest = Rest(server)
    with monkeypatch.context() as patched:
        patched.setattr(serving, "load_config", lambda *_: 1 / 0)
        (tmp_path / "config.json").write_text('{"model_config_list": []}')
        assert [rest.post("/v1/config/reload").status_code for _ in range(3)] == [500] * 3
    assert rest.post("/v1/config/reload?dry_run=1").json["config_read"]
    assert rest.post("/v1/config/reload").status_code == 201
    assert rest.post("/v1/config/reload").status_code == 200
    server.stop()


class NeedsARequest(logging.Filter):
    """A site's filter: it asks for what there is within a request alone."""

    def filter(self, record):
        record.user = flask.g.get("user", "-")
        return True


@pytest.fixture
def demanding():
    handler = logging.NullHandler(logging.DEBUG)
    handler.handle = handler.filter  # as a handler that writes begins
    handler.addFilter(NeedsARequest())
    serving.logger.addHandler(handler)
    yield
    serving.logger.removeHandler(handler)


def test_a_sites_filter_that_raises_ends_no_work_of_the_servers_own(demanding):
    disk = Disk(m=[1])
    server = serving.ModelServer(config("m"), load=disk.load, list_versions=disk.list_versions)
    assert server.wait(10) and not server.readiness()
    disk.models["m"].add(2)
    disk.broken.add(("m", 2))
    status, answer = server.reload()
    assert status == 500 and "made to fail" in str(answer)
    with pytest.raises(ZeroDivisionError):
        server.manager.run_in_loader(lambda: 1 / 0, 60)
    disk.broken.clear()
    assert server.reload()[0] == 201 and server.manager.find("m", None, None)[0] == 2
    server.stop()


def test_a_model_that_cannot_be_freed_holds_up_no_other(caplog):
    disk, closed = Disk(a=[1], b=[1]), []

    def load(folder, model):
        servable = disk.load(folder, model)
        name = model.name
        servable._close = lambda: closed.append(name) or (1 / 0 if name == "a" else None)
        return servable

    server = serving.ModelServer(config("a", "b"), load=load, list_versions=disk.list_versions)
    assert server.wait(10)
    server.stop()
    assert sorted(closed) == ["a", "b"] and "A model could not be freed" in caplog.text


# --- threads that cannot be had ---------------------------------------------------------------------------


@pytest.fixture
def lacking(monkeypatch):
    """How the names of threads begin that cannot be had for the moment."""
    names, start = [], threading.Thread.start

    def begin(thread):
        if thread.name.startswith(tuple(names)):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    return names


def test_a_loader_that_finds_no_thread_is_started_by_the_next_request(lacking):
    disk = Disk(m=[1])
    server = serving.ModelServer(config("m"), load=disk.load, list_versions=disk.list_versions)
    rest = Rest(server)
    lacking.append("serving-loader")
    assert rest.post("/v1/models/m:predict", {"instances": [[1.0]]}).status_code == 503
    lacking.clear()
    assert rest.post("/v1/models/m:predict", {"instances": [[1.0]]}).status_code == 200
    server.stop()


def test_what_finds_no_thread_waits_for_one_that_works_or_is_told(lacking):
    workers, hold, closed = serving.Workers(4, "few"), threading.Event(), []
    lacking.append("few-")
    with pytest.raises(serving.ServingError, match="No thread can be started now"):
        workers.submit(int)
    lacking.clear()
    first = workers.submit(hold.wait, 60)
    lacking.append("few-")
    second = workers.submit(lambda: 2)
    hold.set()
    assert first.result(60) and second.result(60) == 2
    workers.close(lambda: closed.append(1))
    until(lambda: closed)


def test_a_watch_that_finds_no_thread_is_started_by_the_next_pass(lacking):
    server = serving.ModelServer(config())
    lacking.append("serving-watch")
    assert server.reload()[0] == 200 and server.state["metrics"].watcher is None
    lacking.clear()
    assert server.reload()[0] == 200 and server.state["metrics"].watcher.is_alive()
    server.stop()


def test_requests_that_find_no_thread_are_told_so_and_the_next_are_answered(lacking):
    server = serving.ModelServer({"model_config_list": [], "server": {"threads": 3}})
    server.endpoint("/slow")(lambda value: value)
    ask = functools.partial(requests.post, json=1, headers={"x-api-key": server.generated_key})
    with listening(server) as address:
        lacking.append("serving-worker")
        for _ in range(4):
            response = ask(f"{address}/slow")
            assert response.status_code == 503 and "Retry-After" in response.headers
        with socket.create_connection(address.removeprefix("http://").split(":"), 60) as client:
            client.sendall(b"POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n" * 2)
            assert client.recv(1000) == b""  # what came in one piece with others is cut
        lacking.clear()
        assert ask(f"{address}/slow").json() == 1
        lacking.append("serving-worker")
        assert ask(f"{address}/slow").json() == 1  # the one that works
        lacking.clear()


def test_a_folder_that_is_half_copied_is_served_when_it_is_whole(tf, tmp_path):
    import shutil

    base = tmp_path / "m"
    shutil.copytree(ROOT / "models/half_plus_two/123", base / "1")
    server = serving.ModelServer(
        {
            "model_config_list": [{"config": {"name": "m", "base_path": str(base)}}],
            "server": NO_POLL,
        }
    )
    assert server.wait(60)
    rest = Rest(server)
    (base / "2").mkdir()
    whole = (base / "1/saved_model.pb").read_bytes()
    (base / "2/saved_model.pb").write_bytes(whole[: len(whole) // 2])
    assert rest.post("/v1/config/reload").status_code == 500
    assert json.loads(rest.post("/v1/models/m:predict", {"instances": [2.0]}).data) == {
        "predictions": [3.0]
    }
    shutil.rmtree(base / "2")
    shutil.copytree(base / "1", base / "2")
    assert rest.post("/v1/config/reload").status_code == 201
    assert json.loads(rest.post("/v1/models/m/versions/2:predict", {"instances": [2.0]}).data) == {
        "predictions": [3.0]
    }
    shutil.rmtree(base)
    assert json.loads(rest.post("/v1/models/m:predict", {"instances": [2.0]}).data) == {
        "predictions": [3.0]
    }
    assert rest.post("/v1/config/reload").status_code >= 400
    assert json.loads(rest.post("/v1/models/m:predict", {"instances": [2.0]}).data) == {
        "predictions": [3.0]
    }


def test_sigterm_during_a_reload_ends_well(tmp_path):
    source = f"""
import sys; sys.path.insert(0, {str(ROOT / "tests")!r}); sys.path.insert(0, {str(ROOT)!r})
import time, pathlib, serving
from conftest import FakeServable, config
class Loader:
    count = 0
    def __call__(self, folder, model):
        self.count += 1
        if self.count > 1:
            print("loading", flush=True)
            time.sleep(1)
        return FakeServable()
versions = {{1: pathlib.Path("1")}}
server = serving.ModelServer(config("m"), load=Loader(), list_versions=lambda path: dict(versions))
server.wait()
import threading
def reload():
    versions[2] = pathlib.Path("2")
    server.reload()
threading.Timer(1, reload).start()
serving.run(server, port=0)
"""
    process = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "loading\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


# --- full disks -------------------------------------------------------------------------------------------


def test_a_log_that_cannot_be_written_stops_no_request(monkeypatch, capsys):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:
        handler = logging.StreamHandler(full)
        monkeypatch.setattr(logging, "raiseExceptions", False)
        logging.getLogger("serving").addHandler(handler)
        try:
            logging.getLogger("serving").setLevel(logging.INFO)
            rest = Rest(fake_server({"m": FakeServable()}))
            assert rest.post("/v1/models/m:predict", {"instances": [[1.0]]}).status_code == 200
        finally:
            logging.getLogger("serving").removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()


def test_the_server_of_its_own_goes_on_with_a_full_disk_under_its_log(tmp_path):
    with open("/dev/full", "w") as full:
        process, address = serve_alone(tmp_path, stderr=full)
    for _ in range(50):
        assert requests.get(f"{address}/v1/models", timeout=10).status_code == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_full_disk_under_stdout_keeps_no_server_from_starting(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config()))
    command = [sys.executable, str(ROOT / "serving.py"), "--config", str(tmp_path / "config.json")]
    port = free_port()
    with open("/dev/full", "w") as full, open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=full, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}/readyz"
        for _ in range(600):
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(url, timeout=30).status_code == 200:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
    log = (tmp_path / "log").read_text()
    assert "Nothing can be printed: [Errno 28] No space left on device" in log
    assert "Traceback" not in log and "Exception ignored" not in log


def test_a_quota_store_without_room_lets_nobody_in_and_recovers(tmp_path):
    from serving_extensions.quotas import Quotas

    quotas = Quotas(tmp_path / "q.sqlite3")
    assert quotas.take("k", 10, "day") is None
    pages = quotas._database.execute("PRAGMA page_count").fetchone()[0]
    quotas._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match="full"):
        for number in range(100_000):
            quotas.take("key" * 100 + str(number), 10, "day")
    quotas._database.execute("PRAGMA max_page_count = 1000000")
    assert quotas.take("k", 10, "day") is None and quotas.used("k", "day") == 2
    assert sqlite3.connect(tmp_path / "q.sqlite3").execute("PRAGMA integrity_check").fetchone() == (
        "ok",
    )


def test_a_reload_that_waits_for_a_load_that_hangs_ends_at_its_deadline():
    go, disk = threading.Event(), Disk(m=[1])
    load = disk.load
    disk.load = lambda folder, model: (go.wait(60), load(folder, model))[1]
    server = serving.ModelServer(config("m"), load=disk.load, list_versions=disk.list_versions)
    rest = Rest(server)
    response = rest.post("/v1/config/reload", headers={"X-Request-Timeout": "0.3"})
    assert_error(response, 504, "Loading takes longer than the request's timeout")
    go.set()
    assert server.wait(60) and rest.post("/v1/config/reload").status_code == 200


def unexpected(response):
    """The fixed text for what is in the log alone."""
    request = response.headers["X-Request-Id"]
    return [f"Internal server error: see request {request} in the server's log"]


@pytest.mark.parametrize("status", [99, 200, 302, 399, 600, 1000, -1, "no number"])
def test_an_error_of_a_handlers_own_with_an_impossible_status_is_a_500(how, status):
    server = fake_server({"m": FakeServable()})

    @server.endpoint("/own")
    def own(inputs):
        raise serving.ServingError("t", status=status)

    key = {"Authorization": f"Bearer {server.generated_key}"}
    response = Rest(server, how).post("/own", {}, headers=key)
    assert response.status_code == 500 and response.status.startswith("500 ")
    assert json.loads(response.data)["error"] in ("t", *unexpected(response))


@pytest.mark.parametrize("message", [None, 3, b"bytes", ["a"], {"a": 1}])
def test_an_error_of_a_handlers_own_without_a_text_is_a_500(how, message, caplog):
    server = fake_server({"m": FakeServable()})

    @server.endpoint("/own")
    def own(inputs):
        raise serving.ServingError(message, status=400)

    key = {"Authorization": f"Bearer {server.generated_key}"}
    response = Rest(server, how).post("/own", {}, headers=key)
    assert response.status_code == 500
    assert json.loads(response.data)["error"].startswith("Internal server error")
    assert "/own failed" in caplog.text


@pytest.mark.parametrize(
    "name, value",
    [
        ("X-A", "one\r\nX-B: two"),
        ("X-A", "one\n"),
        ("X-A\r\nX-B", "one"),
        ("X A", "one"),
        ("", "one"),
        ("X-A", "\u20ac"),
        ("X-A", 3),
        (3, "one"),
        ("Content-Length", "7"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "close"),
    ],
)
def test_an_errors_header_that_cannot_be_sent_is_left_out(caplog, name, value):
    server = fake_server({"m": FakeServable()})

    @server.endpoint("/own")
    def own(inputs):
        raise serving.ServingError("t", status=418, headers={name: value, "X-Good": "yes"})

    with listening(server) as address:
        request = urllib.request.Request(address + "/own", b"{}")
        request.add_header("Authorization", f"Bearer {server.generated_key}")
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(request, timeout=60)
    answer = raised.value
    assert answer.code == 418 and answer.headers["X-Good"] == "yes"
    assert json.loads(answer.read())["error"] == "t"
    assert "X-B" not in answer.headers and answer.headers.get("X-A") is None
    assert "cannot be sent, and is left out" in caplog.text


ENDS = [SystemExit(3), GeneratorExit("left"), BaseException("odd")]


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_a_check_of_the_sites_that_ends_its_program_answers_500(how, error, caplog):
    server = fake_server({"m": FakeServable()}, auth={"protect": "all"})

    def check(request):
        raise error

    site = serving.create_app(server, authorize=check)
    response = Client(site).get("/v1/models/m")
    assert response.status_code == 500
    assert json.loads(response.data)["error"].startswith("Internal server error")
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize("error", ENDS, ids=lambda error: type(error).__name__)
def test_a_model_that_ends_its_program_answers_500(how, error, caplog):
    fake = FakeServable()

    def end(name, inputs):
        raise error

    fake._run = end
    response = Rest(fake_server({"m": fake}), how).post("/v1/models/m:predict", {"inputs": [1.0]})
    assert response.status_code == 500
    assert json.loads(response.data)["error"].startswith("Internal server error")
    assert type(error).__name__ in caplog.text


def test_a_keyboard_interrupt_ends_the_main_thread_and_no_other():
    server = fake_server({"m": FakeServable()}, auth={"protect": "all"})

    def check(request):
        raise KeyboardInterrupt

    client, answers = Client(serving.create_app(server, authorize=check)), []
    thread = threading.Thread(target=lambda: answers.append(client.get("/v1/models/m")))
    thread.start()
    thread.join(60)
    assert [answer.status_code for answer in answers] == [500]
    with pytest.raises(KeyboardInterrupt):
        client.get("/v1/models/m")
