"""Too much at once: who waits, who is turned away, deadlines, clients that leave or are slow; over real sockets."""

import collections
import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from conftest import FakeServable, config, fake_server, listening, until

import serving
from serving_extensions import connections, queueing


class Gated(FakeServable):
    """Answers when `go` is set; counts who has begun."""

    def __init__(self):
        super().__init__()
        self.go, self.begun = threading.Event(), []

    def answer(self, name, inputs):
        self.begun.append(float(inputs["x"][0, 0]))
        assert self.go.wait(30)
        return {"y": inputs["x"] * np.float32(2)}


@contextlib.contextmanager
def serve(servables, **options):
    server = fake_server(servables, server={"file_system_poll_wait_seconds": 0, **options})
    with listening(server) as address:
        yield server, address
        for servable in servables.values():
            if isinstance(servable, Gated):
                servable.go.set()


def ask(address, model="slow", value=1.0, **options):
    return requests.post(
        f"{address}/v1/models/{model}:predict", json={"instances": [[value]]}, timeout=30, **options
    )


# --- turning away -----------------------------------------------------------------------------------------


def test_what_finds_the_queue_full_is_turned_away_at_once_and_the_others_are_answered():
    slow = Gated()
    with (
        serve({"slow": slow}, threads=4, max_queued_requests=5) as (server, address),
        ThreadPoolExecutor(20) as pool,
    ):
        session = requests.Session()
        futures = [pool.submit(ask, address, value=float(number)) for number in range(2)]
        until(lambda: len(slow.begun) == 2)
        futures += [pool.submit(ask, address, value=float(number)) for number in range(2, 7)]
        until(lambda: len(server.waiting) == 5)
        for _ in range(3):  # the connection stays open
            refused = ask_through(session, address, {"X-Request-Id": "r-1"})
            assert (
                refused.status_code == 503
                and refused.headers["Retry-After"] == "1"
                and refused.headers["X-Request-Id"] == "r-1"
            )
            assert refused.json() == {
                "error": "The server is busy: 5 requests wait already. Try again in a moment"
            }
        slow.go.set()
        assert [future.result().json() for future in futures] == [
            {"predictions": [[2.0 * number]]} for number in range(7)
        ]
        assert ask_through(session, address).status_code == 200


def ask_through(session, address, headers=None):
    return session.post(
        f"{address}/v1/models/slow:predict",
        json={"instances": [[1.0]]},
        headers=headers,
        timeout=30,
    )


def test_states_and_numbers_are_answered_while_everything_is_full():
    slow, other = Gated(), Gated()
    with (
        serve({"slow": slow, "other": other}, threads=4, max_queued_requests=4) as (
            server,
            address,
        ),
        ThreadPoolExecutor(20) as pool,
    ):
        futures = [pool.submit(ask, address, model) for model in ("slow", "other", "slow")]
        until(lambda: len(slow.begun) + len(other.begun) == 3)
        futures += [pool.submit(ask, address, model) for model in ("slow", "other") * 2]
        until(lambda: len(server.waiting) == 4)
        futures += [pool.submit(ask, address, model) for model in ("slow", "other", "slow")]
        until(lambda: server.refused["queue"] == 3)
        for path in ("/livez", "/readyz", "/metrics", "/stats", "/v1/models/slow"):
            assert requests.get(address + path, timeout=5).status_code == 200
        assert requests.get(f"{address}/stats", timeout=5).json()["refused"] == {"queue": 3}
        assert (
            'serving_refused_total{reason="queue"} 3.0'
            in requests.get(f"{address}/metrics", timeout=5).text
        )
        graphs = requests.get(f"{address}/stats?window=5m", timeout=5).json()["series"]
        refused = {(one["kind"], one["name"]): sum(one["refused"]) for one in graphs}
        assert refused == {("all", ""): 3, ("model", "slow"): 2, ("model", "other"): 1}
        slow.go.set(), other.go.set()
        answers = [future.result() for future in futures]
        assert sorted(answer.status_code for answer in answers) == [200] * 7 + [503] * 3
        assert all("total;dur=" in answer.headers["Server-Timing"] for answer in answers)


def test_a_slow_model_leaves_threads_for_others():
    slow = Gated()
    with (
        serve({"slow": slow, "quick": FakeServable()}, threads=4) as (server, address),
        ThreadPoolExecutor(20) as pool,
    ):
        futures = [pool.submit(ask, address) for _ in range(12)]
        until(lambda: len(slow.begun) == 2)
        assert ask(address, "quick").json() == {"predictions": [[1.5]]}
        assert len(slow.begun) == 2
        slow.go.set()
        assert {future.result().status_code for future in futures} == {200}


def test_what_would_wait_too_long_is_turned_away():
    class Steady(FakeServable):
        def answer(self, name, inputs):
            time.sleep(0.05)
            return {"y": inputs["x"]}

    with (
        serve({"slow": Steady()}, threads=2, max_queue_seconds=0.2) as (_, address),
        ThreadPoolExecutor(32) as pool,
    ):
        assert [ask(address).status_code for _ in range(3)] == [200] * 3
        answers = list(pool.map(lambda _: ask(address), range(32)))
        statuses = collections.Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503} and statuses[200] >= 2  # of 1.6 s of work
        assert all(
            "an answer would take about" in answer.json()["error"]
            for answer in answers
            if answer.status_code == 503
        )
        assert ask(address).status_code == 200


def test_bodies_beyond_the_memory_there_is_for_them_are_turned_away():
    slow = Gated()
    with (
        serve({"slow": slow}, threads=4, max_queued_bytes=3 << 20) as (server, address),
        ThreadPoolExecutor(4) as pool,
    ):
        first = pool.submit(
            requests.post,
            f"{address}/v1/models/slow:predict",
            b'{"instances": [[1.0]]}' + b" " * (2 << 20),
            timeout=30,
        )
        until(lambda: slow.begun)
        with raw(address) as connection:
            connection.sendall(
                b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nX-Request-Id: r-3\r\n"
                b"Content-Length: 2097152\r\n\r\n"
            )
            answer = read_all(connection)
        assert (
            answer.startswith(b"HTTP/1.1 503 ")
            and b"Retry-After: 1\r\n" in answer
            and b"X-Request-Id: r-3\r\n" in answer
            and b"other requests use all the memory" in answer
        )
        assert server.refused == {"bytes": 1}
        slow.go.set()
        assert first.result().status_code == 200


def test_a_body_that_no_server_would_take_is_not_one_that_was_turned_away():
    with (
        serve({"m": FakeServable()}, max_queued_bytes=3 << 20) as (server, address),
        raw(address) as connection,
    ):
        connection.sendall(
            b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000000\r\n\r\n"
        )
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")
        assert not server.refused


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_alone_is_more_than_may_be_held_is_never_to_be_sent_again(chunked):
    body = b" " * (4 << 20)
    with serve({"m": FakeServable()}, max_queued_bytes=3 << 20) as (server, address):
        url = f"{address}/v1/models/m:predict"
        answer = requests.post(url, iter([body]) if chunked else body, timeout=30)
        assert answer.status_code == 413 and "Retry-After" not in answer.headers
        assert "exceeds server.max_queued_bytes of 3145728" in answer.text
        assert not server.refused


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_exactly_the_most_bytes_is_taken_and_the_next_is_told_the_limit(chunked):
    body = json.dumps({"instances": [[1.0]]}).encode()

    def sent(body):
        url = f"{address}/v1/models/m:predict"
        return requests.post(url, iter([body]) if chunked else body, timeout=30)

    # what frames the chunks counts, too
    most = len(body) + (len(b"16\r\n\r\n0\r\n\r\n") if chunked else 0)
    with serve({"m": FakeServable()}, max_request_bytes=most) as (_, address):
        assert sent(body).json() == {"predictions": [[1.5]]}
        refused = sent(body + b" ")
        assert refused.status_code == 413
        assert f"exceeds server.max_request_bytes of {most}\r" in refused.text
        assert f"exceeds server.max_request_bytes of {most}\r" in sent(b" " * 100).text


# --- deadlines --------------------------------------------------------------------------------------------


def test_what_has_waited_past_its_deadline_is_never_run():
    slow = Gated()
    with serve({"slow": slow}, threads=2) as (_, address), ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, address, value=1.0)
        until(lambda: slow.begun)
        late = pool.submit(ask, address, value=2.0, headers={"X-Request-Timeout": "0.2"})
        time.sleep(0.4)
        slow.go.set()
        assert first.result().status_code == 200
        assert late.result().status_code == 504
        assert late.result().json() == {
            "error": "The request waited longer than its timeout, 0.2 s"
        }
        assert slow.begun == [1.0]


def test_a_header_may_shorten_the_time_but_not_lengthen_it():
    with serve({"slow": FakeServable()}, timeout_seconds=5) as (_, address):
        assert ask(address, headers={"X-Request-Timeout": "1000"}).status_code == 200
        for wrong in ("soon", "-1", "1e3", "nan", "", "1" * 40):
            answer = ask(address, headers={"X-Request-Timeout": wrong})
            assert answer.status_code == 400
            assert answer.json() == {
                "error": f"X-Request-Timeout: expected seconds such as 2.5, got '{wrong}'"
            }


def test_a_call_that_takes_too_long_is_given_up_and_one_that_waits_then_never_runs():
    workers, go, ran = serving.Workers(1, "test"), threading.Event(), []
    trace = serving.Trace()
    trace.limit(0.1, None)
    with pytest.raises(serving.ServingError) as raised:
        workers.run(go.wait, 30, trace=trace)
    assert raised.value.status == 504
    waiting = serving.Trace()
    waiting.limit(0.1, None)
    with pytest.raises(serving.ServingError, match="longer than the request's time"):
        workers.run(ran.append, 1, trace=waiting)
    go.set()
    assert workers.run(lambda: 5) == 5 and ran == []

    def times_out():
        raise TimeoutError("the function's own")

    with pytest.raises(TimeoutError, match="own"):
        workers.run(times_out, trace=serving.Trace())
    workers.close()


def test_a_call_whose_client_has_left_is_never_run():
    workers, go, ran = serving.Workers(1, "test"), threading.Event(), []
    busy = workers.submit(go.wait, 30)
    with ThreadPoolExecutor(1) as pool:
        gone = pool.submit(workers.run, ran.append, 1, trace=serving.Trace(has_left=lambda: True))
        until(lambda: workers.jobs.qsize() == 1)
        go.set()
        with pytest.raises(serving.ServingError, match="client has left"):
            gone.result()
    assert busy.result() and ran == []
    workers.close()


def test_a_request_that_waits_is_told_its_place_by_its_id():
    def place_of(name):
        return requests.get(f"{address}/stats", params={"request": name}, timeout=10).json()

    slow, other = Gated(), Gated()
    with serve({"slow": slow, "other": other}, threads=2) as (server, address):
        with ThreadPoolExecutor(5) as pool:
            futures = []
            for place, (model, name) in enumerate(
                [("slow", "r-0"), ("slow", "r-1"), ("other", "s-1"), ("slow", "r-2")]
            ):
                headers = {"X-Request-Id": name}
                futures.append(pool.submit(ask, address, model, headers=headers))
                until(lambda count=place: slow.begun and len(server.waiting) == count)
            told = {name: place_of(name)["place"] for name in ("r-0", "r-1", "s-1", "r-2", "?")}
            assert told == {"r-0": 0, "r-1": 1, "s-1": 1, "r-2": 2, "?": 0}
            slow.go.set()
            other.go.set()
            assert all(future.result().status_code == 200 for future in futures)
        assert place_of("r-2") == {"place": 0}
    alone = serving.create_app(fake_server({})).test_client()
    assert alone.get("/stats?request=r-2").json == {"place": None}


def test_a_request_whose_client_leaves_while_it_waits_is_never_run():
    slow = Gated()
    with serve({"slow": slow}, threads=2) as (server, address), ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, address, value=1.0)
        until(lambda: slow.begun)
        with raw(address) as connection:
            body = b'{"instances": [[2.0]]}'
            connection.sendall(
                b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            until(lambda: len(server.waiting) == 1)
        time.sleep(0.2)
        slow.go.set()
        assert first.result().status_code == 200
        assert ask(address, value=3.0).status_code == 200
        assert slow.begun == [1.0, 3.0]


def test_waiting_for_a_models_first_load_ends_at_the_deadline():
    go = threading.Event()

    def load(folder, model):
        assert go.wait(30)
        return FakeServable()

    server = serving.ModelServer(
        {"model_config_list": [{"config": {"name": "m", "base_path": "m"}}]},
        load=load,
        list_versions=lambda path: {1: serving.Path(path) / "1"},
    )
    with listening(server) as address:
        start = time.monotonic()
        answer = requests.post(
            f"{address}/v1/models/m:predict",
            json={"instances": [[1.0]]},
            headers={"X-Request-Timeout": "0.3"},
            timeout=30,
        )
        assert answer.status_code == 503 and time.monotonic() - start < 5
        go.set()
        assert ask(address, "m").status_code == 200


# --- slow clients -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw(address):
    host, _, port = address.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        yield connection


def read_all(connection):
    parts = []
    with contextlib.suppress(OSError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "start",
    [
        b"POST /v1/mod",
        b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{",
    ],
)
def test_a_request_that_drips_in_is_cut(start):
    with (
        serve({"slow": FakeServable()}, receive_seconds=1) as (_, address),
        raw(address) as connection,
    ):
        connection.sendall(start)
        end, cut = time.monotonic() + 20, False
        while not cut and time.monotonic() < end:
            time.sleep(0.2)
            try:
                connection.sendall(b"x")
            except OSError:
                cut = True
        assert cut
        assert ask(address).status_code == 200


def test_a_client_that_does_not_read_its_answer_blocks_nobody():
    class Large(FakeServable):
        def answer(self, name, inputs):
            return {"y": np.ones((1, 3_000_000), np.float32)}

    with (
        serve({"slow": Large(), "quick": FakeServable()}, threads=2) as (_, address),
        contextlib.ExitStack() as opened,
    ):
        body = b'{"instances": [[2.0]]}'
        for _ in range(4):
            connection = opened.enter_context(raw(address))
            connection.sendall(
                b"POST /v1/models/slow:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
        for _ in range(5):
            assert ask(address, "quick").json() == {"predictions": [[1.5]]}


# --- turns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "command", "line"),
    [
        ("/v1/models/m:predict", "POST", "m"),
        ("/V1/models/m/versions/3:predict", "POST", "m"),
        ("/v1/models/%6d:predict?a=1", "POST", "m"),
        ("http://h/v1/models/m:predict", "POST", "m"),
        ("/model-serving/ssd:predict", "POST", "m"),
        ("/v1/models/m/metadata", "GET", "m"),
        ("/ssd/predict", "POST", "m"),
        ("/predict", "POST", "m"),
        ("/%73sd/classes", "GET", "m"),
        ("/alice/caption", "GET", "/alice/caption"),
        ("/alice/caption", "POST", "/alice/caption"),
        ("/v1/models/m", "GET", "state"),
        ("/v1/config", "GET", "state"),
        ("/livez", "GET", "health"),
        ("/predict", "OPTIONS", "health"),
        ("/alice/caption", "OPTIONS", "health"),
        ("/v2/health/ready", "HEAD", "health"),
        ("/metrics", "GET", "health"),
        ("/stats", "GET", "health"),
        ("/console/console.js", "GET", "health"),
        ("/v1/config/reload", "POST", "reload"),
        ("/deployments", "GET", "deployments"),
        ("", "POST", "other"),
        ("/nowhere", "GET", "other"),
        ("/v1/models/m/versions/99999999999999999999:predict", "POST", "other"),
    ],
)
def test_a_request_waits_in_the_line_of_what_it_reaches(target, command, line):
    server = fake_server({"m": FakeServable()}, deployments=[{"id": "ssd", "model": "m"}])
    server.endpoint("/alice/caption")(lambda inputs: inputs)
    front = SimpleNamespace(server=server)
    asked = SimpleNamespace(request_uri=target, command=command, error=None)
    assert connections.Front.line_of(front, asked, connections.Front.find(front, asked)) == line


def test_lines_take_turns_and_none_holds_all_threads():
    turns = queueing.Dispatcher(8)
    turns.threads = 0  # none is started: the test takes what they would
    for line in "a" * 9 + "b" * 3:
        turns.add(SimpleNamespace(), line)
    order = [turns.take()[0] for _ in range(7)]
    assert order == ["a", "b", "a", "b", "a", "b", "a"]  # 7 of 8 threads
    assert turns.take() is None and len(turns) == 5
    for line in ("state", "health", "state", "health"):  # which never wait for anything
        turns.add(SimpleNamespace(), line)
    assert [turns.take()[0] for _ in range(4)] == [
        "state",
        "health",
        "state",
        "health",
    ] and turns.take() is None
    for _ in range(3):
        turns.end("b", False)
    assert turns.take()[0] == "a" and turns.take()[0] == "a" and turns.take() is None  # 6 of 8
    turns.end("a", False)
    assert turns.take()[0] == "a"


def test_as_many_threads_work_as_are_needed():
    done, turns = [], queueing.Dispatcher(8)

    def run(times):
        for _ in range(times):
            finished = threading.Event()
            turns.add(
                SimpleNamespace(
                    turn=serving.Turn(),
                    service=lambda told=finished: (done.append(threading.get_ident()), told.set()),
                ),
                "a",
            )
            assert finished.wait(10)
            until(lambda: len(turns.idle) == len(turns.workers))

    run(20)
    assert len(set(done)) == 1
    barrier = threading.Barrier(6)  # and as many as a line may have, where they are needed
    for _ in range(6):
        turns.add(
            SimpleNamespace(
                turn=serving.Turn(),
                service=lambda: (barrier.wait(10), done.append(threading.get_ident())),
            ),
            "a",
        )
    until(lambda: len(done) == 26)
    assert len(set(done)) == 6
    assert turns.shutdown(timeout=10)


def test_what_ends_a_request_in_any_way_closes_its_connection_and_the_thread_goes_on():
    pulled, turns = [], queueing.Dispatcher(2)

    def end():
        raise SystemExit

    channel = SimpleNamespace(
        turn=serving.Turn(),
        service=end,
        will_close=False,
        server=SimpleNamespace(pull_trigger=lambda: pulled.append(1)),
    )
    turns.add(channel, "a")
    until(lambda: pulled)
    finished = threading.Event()
    turns.add(SimpleNamespace(turn=serving.Turn(), service=finished.set), "a")
    assert finished.wait(10) and channel.will_close and len(turns.workers) == 1
    assert turns.shutdown(timeout=10)


def test_the_pace_of_a_line_is_the_time_from_answer_to_answer(monkeypatch):
    now = 100.0
    monkeypatch.setattr(queueing, "time", SimpleNamespace(monotonic=lambda: now))
    pace = queueing.Pace()
    pace.begin(1)
    pace.begin(2)
    now += 0.2
    pace.end()
    assert pace.seconds == pytest.approx(0.2)
    for _ in range(100):
        now += 0.1
        pace.end()
    assert pace.seconds == pytest.approx(0.1, rel=1e-3)
    now += 1000  # idle
    pace.begin(1)
    now += 0.1
    pace.end()
    assert pace.seconds == pytest.approx(0.1, rel=1e-3)
    pace.begin(1)
    now += 10  # for its model to load
    pace.end(waited=True)
    assert pace.seconds == pytest.approx(0.1, rel=1e-3)


def test_who_waits_for_a_model_to_load_does_not_make_its_line_look_slow():
    loaded = threading.Event()

    def load(folder, model):
        assert loaded.wait(30)
        return FakeServable()

    server = serving.ModelServer(
        config(
            "m", server={"file_system_poll_wait_seconds": 0, "threads": 8, "max_queue_seconds": 1}
        ),
        load=load,
        list_versions=lambda base_path: {1: Path(base_path) / "1"},
    )
    with listening(server) as address, ThreadPoolExecutor(40) as pool:
        early = [pool.submit(ask, address, "m") for _ in range(4)]
        time.sleep(1.5)
        loaded.set()
        assert {future.result().status_code for future in early} == {200}
        assert {
            answer.status_code for answer in pool.map(lambda _: ask(address, "m"), range(200))
        } == {200}


ORIGIN = "https://shop.example"
AT_ONCE = {"max_queued_requests": 1, "threads": 2, "file_system_poll_wait_seconds": 0}


@contextlib.contextmanager
def full(monkeypatch):
    """The address of a server with a model, a deployment and a hub handler; `fill()` fills it."""
    server = fake_server(
        {"m": FakeServable()},
        deployments=[{"id": "ssd", "model": "m"}],
        server={**AT_ONCE, "cors_origins": [ORIGIN]},
    )
    server.endpoint("/alice/caption", envelope="hub")(lambda inputs: inputs)

    def refusal(gate, line):
        return None if line in queueing.KEPT else "so it is"

    with listening(server) as address:
        yield address, lambda: monkeypatch.setattr(queueing.Gate, "refusal", refusal)


def form_of(value):
    return {name: form_of(one) for name, one in value.items()} if isinstance(value, dict) else None


@pytest.mark.parametrize(
    "path", ["/predict", "/ssd/predict", "/alice/caption", "/v1/models/m:predict", "/nowhere"]
)
def test_a_refusal_has_the_form_and_the_headers_of_its_urls_other_errors(monkeypatch, path):
    given = {"Origin": ORIGIN, "X-Request-Id": "r-1"}
    with full(monkeypatch) as (address, fill):
        other = requests.post(address + path, b"{", headers=given, timeout=30)
        fill()
        refused = requests.post(address + path, b"{", headers=given, timeout=30)
        asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
        preflight = requests.options(address + path, headers=asked, timeout=30)
    assert 400 <= other.status_code < 500 and refused.status_code == 503
    assert form_of(refused.json()) == form_of(other.json())
    assert "The server is busy: so it is. Try again in a moment" in refused.text
    told = "Access-Control-Allow-Origin", "Timing-Allow-Origin", "Vary", "X-Request-Id"
    for name in (*told, "Content-Type"):
        assert refused.headers[name] == other.headers[name]
    assert refused.headers["Access-Control-Allow-Origin"] == ORIGIN
    exposed = refused.headers["Access-Control-Expose-Headers"].split(", ")
    assert {"Retry-After", "X-Request-Id", "Server-Timing"} <= set(exposed)
    assert preflight.ok and preflight.headers["Access-Control-Allow-Origin"] == ORIGIN


@pytest.mark.parametrize(
    "path, called",
    [
        ("/ssd/predict", [("deployment", "ssd"), ("model", "m")]),
        ("/alice/caption", [("handler", "/alice/caption")]),
        ("/v1/models/m:predict", [("model", "m")]),
        ("/v1/models/none:predict", []),
    ],
)
def test_a_refusal_is_in_the_graphs_of_all_that_the_url_would_have_called(
    monkeypatch, path, called
):
    with full(monkeypatch) as (address, fill):
        fill()
        for _ in range(2):
            assert requests.post(address + path, b"{", timeout=30).status_code == 503
        monkeypatch.undo()
        graphs = requests.get(f"{address}/stats?window=5m", timeout=30).json()["series"]
    refused = {(one["kind"], one["name"]): sum(one["refused"]) for one in graphs}
    assert refused == dict.fromkeys([("all", ""), *called], 2)


def test_a_refused_head_has_no_body_that_the_next_answer_would_follow(monkeypatch):
    with full(monkeypatch) as (address, fill), raw(address) as connection:
        fill()
        connection.sendall(b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
        until(lambda: b"\r\n\r\n" in connection.recv(1 << 16, socket.MSG_PEEK))
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        refused, _, rest = read_all(connection).partition(b"\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 503 ") and rest.startswith(b"HTTP/1.1 200 ")
