"""Short requests answered on waitress's own thread: the same bytes as from a worker thread, and only what is short."""

import contextlib
import errno
import gzip
import io
import json
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from conftest import ROOT, FakeServable, bearer, config, fake_server, key_entry, listening
from flask import (
    Flask,
    Request,
    abort,
    after_this_request,
    current_app,
    g,
    has_app_context,
    has_request_context,
    request,
    session,
    signals,
    stream_with_context,
    url_for,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from waitress.adjustments import Adjustments
from waitress.parser import HTTPRequestParser
from waitress.proxy_headers import PROXY_HEADERS
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client, EnvironBuilder

import serving
from serving_rooms import front

P = "/v1/models/m:predict"
QUICK = {"serving_default": serving.SignatureCall(run=lambda *_: [], seconds=0.0001)}
SLOW = {"serving_default": serving.SignatureCall(run=lambda *_: [], seconds=0.1)}


class Recorder(FakeServable):
    """A fake that remembers the thread of each call."""

    def __init__(self, calls=QUICK, version=1, seconds=0.0):
        self.threads, self.seconds = [], seconds
        super().__init__(version, calls=calls)

    def answer(self, name, inputs):
        self.threads.append(threading.get_ident())
        time.sleep(self.seconds)
        return super().answer(name, inputs)


@contextlib.contextmanager
def connected(address):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


@contextlib.contextmanager
def watched(server):
    """The address of a server that listens, and the ident of the thread that runs waitress's loop."""
    before = set(threading.enumerate())
    with listening(server) as address:
        loop = next(thread for thread in threading.enumerate() if thread not in before and getattr(thread, "_target", None) is serving.run)
        yield address, loop.ident


def post(body, path=P, head="", version="1.1"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/{version}\r\nHost: h\r\nX-Request-Id: same\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode("latin-1") + body


def row(number):
    return {"instances": [[number]]}


def ask(client, data):
    """The JSON that a connection answers to a request, by its Content-Length."""
    client.sendall(data)
    heard = b""
    while b"\r\n\r\n" not in heard:
        heard += receive(client)
    head, _, body = heard.partition(b"\r\n\r\n")
    length = int(re.search(rb"Content-Length: ([0-9]+)", head)[1])
    while len(body) < length:
        body += receive(client)
    assert len(body) == length
    return json.loads(body)


def receive(client):
    piece = client.recv(1 << 16)
    assert piece, "the server hung up"
    return piece


# --- the same bytes as from a worker thread --------------------------------------------------------------------

PREDICT, OTHER = post(row(4)), post(row(8))
CHUNKED = f"POST {P} HTTP/1.1\r\nHost: h\r\nX-Request-Id: same\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
GET = b"GET /v1/models/m HTTP/1.1\r\nHost: h\r\nX-Request-Id: same\r\n\r\n"
CLOSE = "Connection: close\r\n"
LARGE = json.dumps({"instances": [[number] for number in range(4000)]}).encode()
assert len(LARGE) > front.SHORT_BYTES

# Pieces as they are sent; the connection then ends, or is ended by a last request that asks for it.
EXCHANGES = {
    "predict": [PREDICT], "inputs": [post({"inputs": [[1], [2]]})], "again and again": [PREDICT, PREDICT, OTHER, PREDICT], "same packet": [PREDICT * 5],
    "pipelined with others": [PREDICT + GET + OTHER + post(b"{") + PREDICT + post(row(1), "/v1/models/slow:predict") + PREDICT],
    "pipelined after a slow one": [post(row(1), "/v1/models/slow:predict") + PREDICT * 3 + OTHER], "a blank line between": [PREDICT + b"\r\n" + OTHER + b"\r\n\r\n" + PREDICT],
    "half of the next": [PREDICT + OTHER[:40], OTHER[40:]], "half of the next body": [PREDICT + OTHER[:-3], OTHER[-3:]],
    "body by itself": [PREDICT[:-len(b'{"instances": [[4]]}')], b'{"instances": [[4]]}', OTHER], "byte by byte": [bytes([byte]) for byte in PREDICT + OTHER],
    "wrong JSON": [post(b'{"instances": ['), PREDICT], "empty body": [post(b""), PREDICT], "no body at all": [f"POST {P} HTTP/1.1\r\nHost: h\r\nX-Request-Id: same\r\n\r\n".encode(), PREDICT],
    "wrong dtype": [post({"instances": [["a"]]})], "wrong signature": [post({"signature_name": "no", **row(1)})], "unknown model": [post(row(1), "/v1/models/none:predict"), PREDICT],
    "wrong verb": [post(row(1), "/v1/models/m:nothing"), post({"examples": [{}]}, "/v1/models/m:classify")], "nowhere": [post(row(1), "/nowhere"), PREDICT],
    "failing model": [post(row(1), "/v1/models/fails:predict"), PREDICT], "get": [GET, PREDICT, GET], "get predict": [GET.replace(b"/v1/models/m ", P.encode() + b" ")],
    "head": [GET.replace(b"GET", b"HEAD") + PREDICT], "head of predict": [PREDICT.replace(b"POST", b"HEAD")], "put": [PREDICT.replace(b"POST", b"PUT")],
    "lower case method": [PREDICT.replace(b"POST", b"post")], "options": [PREDICT.replace(b"POST", b"OPTIONS"), GET.replace(b"GET", b"OPTIONS").replace(b"Host: h", b"Host: h\r\nOrigin: http://a")],
    "close": [post(row(4), head=CLOSE) + PREDICT], "close in capitals": [post(row(4), head="CONNECTION: Close\r\n") + PREDICT], "keep-alive": [post(row(4), head="Connection: keep-alive\r\n"), PREDICT],
    "upgrade": [post(row(4), head="Connection: Upgrade\r\nUpgrade: websocket\r\n"), PREDICT], "HTTP/1.0": [post(row(4), version="1.0") + PREDICT],
    "HTTP/1.0 that stays": [post(row(4), version="1.0", head="Connection: Keep-Alive\r\n"), PREDICT], "HTTP/0.9": [post(row(4)).replace(b" HTTP/1.1", b"")],
    "HTTP/1.2": [post(row(4), version="1.2")], "HTTP/2.0": [post(row(4), version="2.0")], "continue": [post(row(4), head="Expect: 100-continue\r\n")[:-20], PREDICT[-20:], OTHER],
    "continue at once": [post(row(4), head="Expect: 100-continue\r\n"), OTHER], "continue twice": [post(row(4), head="Expect: 100-continue\r\n")] * 2,
    "continue behind another": [PREDICT + post(row(4), head="Expect: 100-continue\r\n")[:-20], PREDICT[-20:]], "expect something else": [post(row(4), head="Expect: a miracle\r\n")],
    "chunked": [CHUNKED + b'13\r\n{"instances": [[4]]\r\n1\r\n}\r\n0\r\n\r\n' + PREDICT], "chunks in pieces": [CHUNKED, b'13\r\n{"instances"', b": [[4]]\r\n1\r\n}\r\n0\r\n", b"\r\n", OTHER],
    "no chunk": [CHUNKED + b"zz\r\n"], "chunked and gzip": [CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n"], "small letters": [PREDICT.replace(b"Host", b"host").replace(b"Content-Length", b"content-length")],
    "header twice": [post(row(4), head="Accept: application/x-npy\r\nAccept: text/plain\r\nX-A: 1\r\nX-A: 2\r\n")], "length twice": [post(row(4), head="Content-Length: 20\r\n")],
    "wrong length": [PREDICT.replace(b"Length: 20", b"Length: 2x"), PREDICT], "negative length": [PREDICT.replace(b"Length: 20", b"Length: -1")], "short length": [PREDICT.replace(b"Length: 20", b"Length: 10") + PREDICT],
    "folded header": [post(row(4), head="X-A: 1\r\n  2\r\n"), PREDICT], "header without a colon": [post(row(4), head="nothing\r\n")], "bare line feed": [post(row(4), head="X-A: 1\nX-B: 2\r\n")],
    "underscore": [post(row(4), head="X_Request_Id: other\r\n")], "letters that are not ASCII": [post(row(4), head="X-A: \xfc\xdf\r\n"), PREDICT], "other id": [post(row(4)).replace(b"same", b"no id!"), PREDICT],
    "gzip body": [post(gzip.compress(json.dumps(row(4)).encode()), head="Content-Encoding: gzip\r\n"), PREDICT], "no gzip": [post(row(4), head="Content-Encoding: gzip\r\n"), PREDICT],
    "large": [post(LARGE), PREDICT], "large behind small": [PREDICT + post(LARGE) + PREDICT], "large answer in gzip": [post(LARGE, head="Accept-Encoding: gzip\r\n"), PREDICT],
    "too large": [PREDICT.replace(b"Length: 20", b"Length: 99999999")], "version": [post(row(4), "/v1/models/m/versions/1:predict"), post(row(4), "/v1/models/m/versions/9:predict")],
    "label": [post(row(4), "/v1/models/m/labels/none:predict")], "other case": [post(row(4), "/V1/Models/m:predict"), post(row(4), "/v1/models/M:predict"), post(row(4), "/v1/models/m:Predict")],
    "absolute": [post(row(4), "http://h" + P), post(row(4), "http://other:1234" + P + "?a=1"), PREDICT], "encoded": [post(row(4), "/v1/models/%6d:predict"), post(row(4), "/v1/models/m%3Apredict"), post(row(4), "/v1/models/%256d:predict")],
    "slashes": [post(row(4), "/" + P), post(row(4), P + "/"), post(row(4), "/v1//models/m:predict"), PREDICT], "query": [post(row(4), P + "?outputs=y"), post(row(4), P + "?outputs=z"), post(row(4), P + "?a=%ff"), PREDICT],
    "fragment": [post(row(4), P + "#there")], "npy answer": [post(row(4), head="Accept: application/x-npy\r\n")], "raw tensor": [post(np.float32([[1], [2]]).tobytes(), head="X-Tensor-Shape: 2,1\r\nAccept: application/octet-stream\r\n")],
    "origin": [post(row(4), head="Origin: https://site.example\r\n"), post(row(4), head="Origin: https://other.example\r\n")], "host": [post(row(4)).replace(b"Host: h", b"Host: other:80"), post(row(4)).replace(b"Host: h\r\n", b"")],
    "strange host": [post(row(4)).replace(b"Host: h", b"Host: a b/c"), PREDICT], "long head": [post(row(4), head=f"X-Long: {'a' * 6000}\r\n")] * 2, "too long head": [post(row(4), head=f"X-Long: {'a' * 300_000}\r\n")],
    "no request": [b"hello\r\n\r\n"], "nothing": [b"\r\n\r\n", PREDICT], "broken off": [PREDICT[:-5]], "broken off in the head": [PREDICT, PREDICT[:30]],
}


def fail(name, inputs):
    raise RuntimeError("made to fail")


def make_server(**others):
    failing = serving.Servable(FakeServable().signatures, fail, device="CPU:0", calls=QUICK)
    return fake_server({"m": Recorder(), "slow": Recorder(SLOW), "fails": failing},
                       server={"cors_origins": ["https://site.example"], "gzip_min_bytes": 1000, "max_request_bytes": 1 << 20, "file_system_poll_wait_seconds": 0}, **others)


def talk(address, pieces):
    """All that the server says to these pieces, until it or we have no more to say."""
    with connected(address) as client:
        with contextlib.suppress(ConnectionError):
            for index, piece in enumerate(pieces):
                client.sendall(piece)
                if len(pieces) < 10 and index < len(pieces) - 1:
                    time.sleep(0.03)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR) if pieces[-1] in (PREDICT[:-5], PREDICT[:30]) else client.sendall(GET.replace(b"Host: h", b"Host: h\r\nConnection: close"))
        heard = b""
        with contextlib.suppress(ConnectionError):
            while piece := client.recv(1 << 16):
                heard += piece
    return re.sub(rb"Date: [^\r]*|X-Request-Id: [0-9a-f]{16}|request [0-9a-f]{16}", b"-", heard)


@pytest.fixture(scope="module")
def both():
    """The addresses of two servers that are the same, but that one of them answers nothing on waitress's thread."""
    quick = make_server()
    plain = make_server()
    is_short = front.Front.is_short
    with pytest.MonkeyPatch.context() as patch, listening(quick) as first, listening(plain) as second:
        patch.setattr(front.Front, "is_short", lambda self, request: self.server is not plain and is_short(self, request))
        yield first, second


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_same_bytes_as_from_a_worker(both, name):
    quick, plain = (talk(address, EXCHANGES[name]) for address in both)
    assert quick == plain
    assert quick.startswith(b"HTTP/1.") or not quick and "broken" in name


# --- who answers where ----------------------------------------------------------------------------------------

def test_cheap_models_are_answered_by_the_loop_and_others_by_workers():
    models = {"quick": Recorder(), "slow": Recorder(SLOW), "unknown": Recorder({})}
    with watched(fake_server(models)) as (address, loop):
        for name in models:
            with connected(address) as client:
                for number in range(5):
                    assert ask(client, post(row(number), f"/v1/models/{name}:predict")) == {"predictions": [[number / 2 + 1]]}
    assert set(models["quick"].threads) == {loop}
    for name in ("slow", "unknown"):
        assert len(models[name].threads) == 5 and loop not in models[name].threads


@pytest.mark.parametrize("data", [
    post(LARGE), post(row(4), "/v1/models/m/versions/0:predict"), CHUNKED + b"14\r\n{\"instances\": [[4]]}\r\n0\r\n\r\n",
    post(gzip.compress(json.dumps(row(4)).encode()), head="Content-Encoding: gzip\r\n"), post(row(4), "/model-serving/m:predict")])
def test_what_may_take_long_is_left_to_workers(data):
    model = Recorder()
    with watched(fake_server({"m": model})) as (address, loop):
        for sent in (data, PREDICT):
            with connected(address) as client:
                assert "predictions" in ask(client, sent)
    assert loop != model.threads[0] and loop == model.threads[1]


def test_a_version_is_answered_where_its_own_calls_belong():
    made = {1: Recorder(SLOW), 2: Recorder(version=2)}
    server = serving.ModelServer(config({"name": "m", "base_path": "m", "model_version_policy": {"all": {}}}),
                                 load=lambda folder, model: made[int(folder.name)], list_versions=lambda base: {1: serving.Path("1"), 2: serving.Path("2")})
    assert server.wait(10)
    with watched(server) as (address, loop), connected(address) as client:
        for version in (1, 2):
            assert ask(client, post(row(4), f"/v1/models/m/versions/{version}:predict")) == {"predictions": [[2.0 + version]]}
        assert "error" in ask(client, post(row(4), "/v1/models/m/versions/3:predict"))
        assert "error" in ask(client, post(row(4), f"/v1/models/m/versions/{'9' * 19}:predict"))
    assert loop not in made[1].threads and made[2].threads == [loop]


def test_a_short_request_behind_a_long_one_is_a_workers():
    models = {"m": Recorder(), "slow": Recorder(SLOW, seconds=0.2)}
    with watched(fake_server(models)) as (address, loop), connected(address) as client:
        client.sendall(post(row(1), "/v1/models/slow:predict"))
        time.sleep(0.05)
        client.sendall(PREDICT)
        heard = b""
        while heard.count(b'{"predictions"') < 2:
            heard += receive(client)
    assert heard.index(b"[[1.5]]") < heard.index(b"[[3.0]]")
    assert len(models["m"].threads) == 1 and loop not in models["m"].threads


def test_a_protected_server_answers_on_workers_alone():
    model = Recorder()
    server = fake_server({"m": model}, auth={"keys": [key_entry("site", "k")], "protect": "all"})
    with watched(server) as (address, loop), connected(address) as client:
        assert "error" in ask(client, PREDICT)
        for _ in range(3):
            assert ask(client, post(row(4), head=f"Authorization: {bearer('k')['Authorization']}\r\n")) == {"predictions": [[3.0]]}
    assert len(model.threads) == 3 and loop not in model.threads


def chain(*nodes, **others):
    """A pipeline: each node takes what the one before made."""
    names = ["request", *(f"node {number}" for number in range(len(nodes)))]
    ends = [{"node_name": name, "data_item": "x" if name == "request" else "y"} for name in names]
    return {"name": "p", "inputs": ["x"], "outputs": [{"y": ends[-1]}], **others, "nodes": [
        {"name": name, "inputs": [{"x": end}], "outputs": [{"data_item": "y", "alias": "y"}],
         **({"type": "DL model", "model_name": node} if isinstance(node, str) else node)} for name, end, node in zip(names[1:], ends, nodes)]}


PASS = {"type": "custom", "function": "passing.py:passing", "params": {}}


@pytest.mark.parametrize("pipeline, short", [
    (chain("m", "other"), True), (chain("m"), True), (chain(*["m"] * 6), False), (chain("m", "slow"), False), (chain("m", "unknown"), False),
    (chain("m", PASS), False), (chain("m", demultiply_count=3), False), (chain("m", {"type": "DL model", "model_name": "m", "version": 1}), True)])
def test_pipelines_of_cheap_models_are_answered_by_the_loop(tmp_path, pipeline, short):
    (tmp_path / "passing.py").write_text("def passing(inputs, params):\n    return {'y': inputs['x']}\n")
    models = {"m": Recorder(), "other": Recorder(version=2), "slow": Recorder(SLOW), "unknown": Recorder({})}
    (tmp_path / "config.json").write_text(json.dumps(config(*models, pipeline_config_list=[pipeline])))
    server = serving.ModelServer(tmp_path / "config.json", load=lambda folder, model: models[model.name],
                                 list_versions=lambda base: {1: serving.Path(base) / "1"})
    assert server.wait(10) and not server.readiness(), server.readiness()
    expected = np.array([1.0, 2.0, 5.0]).reshape((3, 1, 1) if "demultiply_count" in pipeline else (3, 1))
    with watched(server) as (address, loop), connected(address) as client:
        answer = ask(client, post({"inputs": expected.tolist()}, "/v1/models/p:predict"))
    assert (set(models["m"].threads) == {loop}) is short and (short or loop not in models["m"].threads)
    for node in pipeline["nodes"]:
        model = models.get(node.get("model_name"))
        expected = expected * 0.5 + model.version if model else expected
    assert answer == {"outputs": expected.tolist()}


def test_a_pipeline_whose_member_is_slow_in_a_new_version_leaves_the_loop(tmp_path):
    versions, made = {1}, {1: Recorder(), 2: Recorder(SLOW, version=2)}
    (tmp_path / "config.json").write_text(json.dumps(config("m", pipeline_config_list=[chain("m", "m")])))
    server = serving.ModelServer(tmp_path / "config.json", load=lambda folder, model: made[int(folder.name)],
                                 list_versions=lambda base: {number: serving.Path(base) / str(number) for number in versions})
    assert server.wait(10)
    with watched(server) as (address, loop), connected(address) as client:
        assert ask(client, post(row(4), "/v1/models/p:predict")) == {"predictions": [[2.5]]}
        versions.add(2)
        assert server.reload()[0] == 201
        assert ask(client, post(row(4), "/v1/models/p:predict")) == {"predictions": [[4.0]]}
    assert made[1].threads == [loop, loop] and len(made[2].threads) == 2 and loop not in made[2].threads


def test_branches_of_a_short_pipeline_run_on_its_thread():
    models = {"m": Recorder(), "other": Recorder(version=2)}
    pipeline = chain("m", "other")
    pipeline["nodes"][1]["inputs"] = pipeline["nodes"][0]["inputs"]
    pipeline["outputs"] = [{name: {"node_name": name, "data_item": "y"}} for name in ("node 0", "node 1")]
    with watched(fake_server(models, pipeline_config_list=[pipeline])) as (address, loop), connected(address) as client:
        for _ in range(50):
            answer = ask(client, post({"inputs": [[4.0]]}, "/v1/models/p:predict"))
            assert answer == {"outputs": {"node 0": [[3.0]], "node 1": [[4.0]]}}
    assert {*models["m"].threads, *models["other"].threads} == {loop}


def test_a_name_is_decoded_once():
    models = {"mm": Recorder(), "m%6d": Recorder(SLOW, version=2)}
    with watched(fake_server(models)) as (address, loop), connected(address) as client, connected(address) as other:
        assert ask(client, post(row(0), "/v1/models/m%256d:predict")) == {"predictions": [[2.0]]}
        assert ask(other, post(row(0), "/v1/models/m%6d:predict")) == {"predictions": [[1.0]]}
    assert loop not in models["m%6d"].threads and models["mm"].threads == [loop]


# --- what turns out to be long ---------------------------------------------------------------------------------

def small_request(path=P):
    return SimpleNamespace(error=None, command="POST", chunked=False, content_length=20, path=path, request_uri=path, headers={})


def make_front(monkeypatch, names=("m", "other")):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(front, "time", clock)
    available = {name: serving.Available({1: Recorder()}, {}) for name in names}
    config = SimpleNamespace(auth=SimpleNamespace(protect="none"))
    return front.Front(SimpleNamespace(config=config, manager=SimpleNamespace(available=available)), []), clock


def test_no_batch_is_waited_for_where_none_can_form():
    model = {"name": "half_plus_two", "base_path": str(ROOT / "models/half_plus_two"), "batching": {"batch_timeout_micros": 1_000_000, "max_batch_size": 2}}
    server = serving.ModelServer(config(model))
    assert server.wait(60)
    _, servable = server.manager.find("half_plus_two", None, None)
    assert servable.callables["serving_default"].kind == "batched"
    with listening(server) as address:
        start = time.monotonic()
        for _ in range(3):
            answer = requests.post(f"{address}/v1/models/half_plus_two:predict", json={"instances": [[1.0]]}, timeout=30)
            assert answer.json() == {"predictions": [[2.5]]}
        assert time.monotonic() - start < 2  # each would wait for 1 s


def test_three_long_ones_running_send_a_path_to_the_threads_for_a_while(monkeypatch):
    found, clock = make_front(monkeypatch)
    other = small_request("/v1/models/other:predict")
    for _ in range(3):
        assert found.is_short(small_request())
        found.note(P, front.LONG_SECONDS)
    assert not found.is_short(small_request()) and found.is_short(other)
    clock.now += front.PENALTY_SECONDS - 0.01
    assert not found.is_short(small_request())
    clock.now += 0.02
    assert found.is_short(small_request())
    for _ in range(2):
        found.note(P, 1.0)
    assert found.is_short(small_request()), "strikes begin anew"
    found.note(P, 1.0)
    assert not found.is_short(small_request())


def test_a_quick_one_between_forgives(monkeypatch):
    found, _ = make_front(monkeypatch)
    for seconds in (1.0, 1.0, 0.0001) * 5:
        found.note(P, seconds)
        assert found.is_short(small_request())
    for seconds in (1.0, 1.0):
        found.note(P, seconds)
        found.note("/v1/models/other:predict", 0.0001)
    assert found.is_short(small_request())
    found.note(P, 1.0)
    assert not found.is_short(small_request()), "quick ones of another path do not"


def test_a_model_that_has_become_slow_moves_to_the_workers(monkeypatch):
    monkeypatch.setattr(front, "LONG_SECONDS", 0.1)
    model = Recorder(seconds=0.11)
    with watched(fake_server({"m": model})) as (address, loop), connected(address) as client:
        for number in range(5):
            assert ask(client, post(row(number))) == {"predictions": [[number / 2 + 1]]}
    assert model.threads[:3] == [loop] * 3 and loop not in model.threads[3:]


# --- many clients -----------------------------------------------------------------------------------------------

def test_fifty_connections_get_their_own_answers():
    wrong = []
    with listening(fake_server({"m": Recorder(), "slow": Recorder(SLOW)})) as address:
        def work(client_number):
            with connected(address) as client:
                for step in range(20):
                    number, name = 1000 * client_number + step, "slow" if step % 5 == 4 else "m"
                    answer = ask(client, post(row(number), f"/v1/models/{name}:predict"))
                    if answer != {"predictions": [[number / 2 + 1]]}:
                        wrong.append((number, answer))
            wrong.append(None)
        threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == [None] * 50


def test_the_loop_stays_awake_just_after_a_short_answer_and_then_sleeps(monkeypatch):
    monkeypatch.setattr(front, "AWAKE_SECONDS", 0.2)
    asked, is_awake = [], front.Front.is_awake
    monkeypatch.setattr(front.Front, "is_awake", lambda self: asked.append(is_awake(self)) or asked[-1])
    with watched(fake_server({"m": Recorder(), "slow": Recorder(SLOW)})) as (address, _):
        time.sleep(0.7)
        assert set(asked) == {False}
        with connected(address) as client:
            ask(client, post(row(1), "/v1/models/slow:predict"))
            assert set(asked) == {False}
            ask(client, post(row(1)))
        time.sleep(0.7)
        assert asked.count(True) > 10 and not asked[-1] and asked[asked.index(True):].count(False) < 10


@pytest.mark.parametrize("limit, accepted", [(100, 20), (12, 10)])
def test_all_connections_that_wait_are_accepted_at_once(limit, accepted):
    sockets, clients = {}, []
    http = create_server(lambda *call: [], map=sockets, host="127.0.0.1", port=0, threads=1, connection_limit=limit)  # two are its own
    try:
        front.attach(fake_server({"m": FakeServable(1)}), [http], http.task_dispatcher)
        clients += [socket.create_connection(("127.0.0.1", http.effective_port)) for _ in range(20)]
        for _ in range(2):
            http.asyncore.loop(timeout=1, map=sockets, count=1)
            assert len(http.active_channels) == accepted
    finally:
        http.task_dispatcher.shutdown()
        http.asyncore.close_all(sockets)
        for client in clients:
            client.close()


@pytest.mark.parametrize("sent", [PREDICT[:20], PREDICT[:-5], PREDICT, PREDICT * 50, post(row(1), "/v1/models/slow:predict"), post(LARGE), PREDICT + OTHER[:-4]])
def test_clients_that_vanish_harm_nobody(sent):
    with listening(fake_server({"m": Recorder(), "slow": Recorder(SLOW, seconds=0.02)})) as address:
        with connected(address) as steady:
            for attempt in range(10):
                with connected(address) as client:
                    client.sendall(sent)
                    if attempt % 2:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                assert ask(steady, post(row(attempt))) == {"predictions": [[attempt / 2 + 1]]}
        with connected(address) as client:
            assert ask(client, PREDICT) == {"predictions": [[3.0]]}


# --- heads that are parsed once -----------------------------------------------------------------------------------

ADJUSTMENTS = Adjustments()


def parse(kind, data):
    """A request as a parser reads it from one packet, and what it has left over."""
    parser = kind(ADJUSTMENTS)
    while data and not parser.completed:
        data = data[parser.received(data):]
    return parser, data


def describe(parser, rest):
    """All that a parser has found. (Its first_line is for waitress's own tests.)"""
    names = [name for name in dir(parser) if name[0] != "_" and not callable(getattr(parser, name)) and name not in ("adj", "first_line", "headers_seen", "front")]
    found = {name: getattr(parser, name) for name in names}
    error, body = found.pop("error"), found.pop("body_rcv")
    return (found, list(parser.headers), error and (type(error), error.body), type(body), body is not None and (len(body), body.getfile().read()),
            parser.get_body_stream().read(), rest)


def assert_parses_alike(data):
    theirs, rest = parse(HTTPRequestParser, data)
    if theirs.chunked and re.search(rb"(?im)^content-length:", data.partition(b"\r\n\r\n")[0]):  # waitress takes the chunks; RFC 9112 lets a server refuse
        parser, _ = parse(front.Parser, data)
        assert parser.error.code == 400 and "exclude each other" in parser.error.body
        return
    wanted = describe(theirs, rest)
    for _ in range(3):
        assert describe(*parse(front.Parser, data)) == wanted


HEADS = {name: b"".join(pieces) for name, pieces in EXCHANGES.items()}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_parsed_as_by_waitress(name):
    assert_parses_alike(HEADS[name])


headers = st.lists(st.tuples(
    st.sampled_from(["Host", "host", "Content-Length", "Connection", "CONNECTION", "Expect", "Transfer-Encoding", "Authorization", "X-A", "X_A", "Accept", "x-a ", ""]),
    st.sampled_from(["5", "0", "", "05", "5 ", "-5", "h", "close", "keep-alive", "100-continue", "chunked", "gzip, chunked", "Basic a", "\xfc", "a, b", "a\r\n b", "a\nb", "5, 5"])), max_size=6)


@given(st.sampled_from(["GET", "POST", "HEAD", "post", "P:", ""]), st.sampled_from(["/", P, P + "?a=b&c#d", "http://h:1" + P, "//a/b?c", "/%c3%bc%2F", "/\xfc", "*", ""]),
       st.sampled_from([" HTTP/1.1", " HTTP/1.0", " HTTP/1.2", "", " HTTP/11", " http/1.1"]), headers, st.sampled_from(["", "hello", "hello GET / HTTP/1.1\r\n\r\n", "0\r\n\r\n"]))
@settings(max_examples=150)
def test_any_head_is_parsed_as_by_waitress(method, uri, version, fields, body):
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    assert_parses_alike(f"{method} {uri}{version}\r\n{lines}\r\n{body}".encode("latin-1"))


WHOLE = {"a predict": post(row(1)), "its body in bytes": post(b"\x00\xff\r\n\r\n"), "a key": post(row(1), head="Authorization: Bearer k\r\n"),
         "that closes": post(row(1), head="Connection: close\r\n"), "of HTTP 1.0": post(row(1), version="1.0"), "as large as it may be": post(b"1" * front.SHORT_BYTES)}


@pytest.mark.parametrize("name", WHOLE)
def test_a_request_in_one_packet_is_read_as_by_waitress(name):
    data = WHOLE[name]
    parse(front.Parser, data)  # its head is known from now on
    whole = front.Parser(ADJUSTMENTS)
    assert whole.take_whole(data)
    theirs, rest = parse(HTTPRequestParser, data)
    found, wanted = describe(whole, rest), describe(theirs, rest)
    assert found[:3] == wanted[:3] and found[4:] == wanted[4:]  # but for the kind of what holds the body
    whole.close()


@pytest.mark.parametrize(("data", "most"), [
    (post(row(1)) + b"x", 1000), (post(row(1))[:-1], 1000), (post(row(1)) * 2, 1000), (post(b""), 1000), (post(row(1)), len(json.dumps(row(1)))),
    (post(row(1), head="Expect: 100-continue\r\n"), 1000), (post(row(1), head="Transfer-Encoding: chunked\r\n"), 1000), (b"\r\n" + post(row(1)), 1000),
    (b"", 1000), (b"\r\n\r\n", 1000), (post(b"1" * (front.SHORT_BYTES + 1)), 1 << 20), (b"GET / HTTP/1.1\r\n\r\n", 1000)])
def test_what_is_not_one_small_request_is_left_to_waitress(data, most):
    for known in (data, post(row(1)), post(b"")):
        parse(front.Parser, known)
    parser = front.Parser(Adjustments(max_request_body_size=most))
    assert not parser.take_whole(data)
    assert not parser.headers and not parser.completed and parser.body_rcv is None, "nothing is read"


@pytest.mark.parametrize("piece", [0, 1, 100, "gone"])
def test_what_does_not_go_out_at_once_is_not_lost(monkeypatch, piece):
    tries, send = [], front.Channel.send

    def hampered(self, data, do_close=True):
        tries.append(len(data))
        if len(tries) > 1:
            return send(self, data, do_close)
        if piece == "gone":
            raise OSError(errno.EHOSTUNREACH, "made to fail")
        return self.socket.send(data[:piece]) if piece else 0
    with listening(fake_server({"m": Recorder()})) as address, connected(address) as client:
        monkeypatch.setattr(front.Channel, "send", hampered)
        for number in range(3):
            assert ask(client, post(row(number))) == {"predictions": [[number / 2 + 1]]}
    assert len(tries) == 4 and tries[1] == tries[0] - (piece if piece != "gone" else 0)


def test_what_a_client_says_of_a_proxy_is_left_out():
    data = post(row(1), head="".join(f"{name.replace('_', '-').title()}: 1.2.3.4\r\n" for name in PROXY_HEADERS) + "X-Forwarded-Other: kept\r\n")
    for kind in ("new", "known"):
        parser, _ = parse(front.Parser, data)
        assert set(parser.headers) == {"HOST", "X_REQUEST_ID", "CONTENT_LENGTH", "X_FORWARDED_OTHER"}, kind


def test_what_one_request_does_to_its_head_is_not_seen_by_the_next():
    for _ in range(3):
        parser, _ = parse(front.Parser, post(row(1), head="Expect: 100-continue\r\n"))
        assert parser.expect_continue and "X_ADDED" not in parser.headers and parser.connection_close is False
        parser.headers["X_ADDED"] = "1"
        parser.expect_continue, parser.connection_close = False, True


def test_known_heads_are_few_and_small(monkeypatch):
    monkeypatch.setattr(front, "heads", {})
    for number in range(3 * front.MOST_HEADS):
        parse(front.Parser, f"GET /{number} HTTP/1.1\r\n\r\n".encode())
        parse(front.Parser, f"GET /{number} HTTP/1.1\r\nX-Long: {'a' * front.MOST_HEAD_BYTES}\r\n\r\n".encode())
        assert len(front.heads) <= front.MOST_HEADS
    assert all(len(head) <= front.MOST_HEAD_BYTES for head in front.heads)


def test_no_header_of_one_client_reaches_another(monkeypatch):
    seen, create_app = [], serving.create_app

    def recording(server):
        app = create_app(server)

        def record(environ, start_response):
            seen.append(environ)
            return app(environ, start_response)
        return record
    monkeypatch.setattr(serving, "create_app", recording)
    heads = ["", "Authorization: Bearer one\r\n", "", "Authorization: Bearer two\r\nX-A: 1\r\n", "X-A: 2\r\n", "Authorization: Bearer one\r\n", "Accept: text/plain\r\n", ""]
    with listening(fake_server({"m": Recorder()})) as address, connected(address) as first, connected(address) as second:
        for step in range(48):
            client, head = (first, second)[step % 3 == 2], heads[step * 5 % 8]
            assert ask(client, post(row(step), head=head)) == {"predictions": [[step / 2 + 1]]}
            wanted = {"HTTP_" + name.upper().replace("-", "_"): value for name, _, value in (line.partition(": ") for line in head.splitlines())}
            environ = seen[-1]
            assert {name: value for name, value in environ.items() if name.startswith("HTTP_")} == wanted | {"HTTP_HOST": "h", "HTTP_X_REQUEST_ID": "same"}
            assert environ["REMOTE_PORT"] == str(client.getsockname()[1]) and environ["CONTENT_LENGTH"] == str(len(json.dumps(row(step))))
            assert environ["waitress.client_disconnected"].__self__.addr[1] == client.getsockname()[1]
            environ["HTTP_LEFT_BEHIND"] = "1"


# --- URLs that are matched once --------------------------------------------------------------------------------------

def make_site(kind):
    app = kind("site")

    def show(**arguments):
        arguments = request.view_args
        answer = {"endpoint": request.endpoint, "arguments": dict(arguments), "method": request.method, "query": request.args.to_dict(False), "root": request.script_root,
                  "host": request.host, "link": url_for("item", number=3), "outside": url_for("item", number=3, _external=True)}
        arguments["left behind"] = 1
        return answer
    app.add_url_rule("/items/<int:number>", "item", show, methods=["GET", "POST"])
    app.add_url_rule("/items/new", "new", show, methods=["PUT"])
    app.add_url_rule("/files/<path:name>", "file", show, defaults={"kind": "plain"})
    app.add_url_rule("/folder/", "folder", show)
    return app


CALLS = [(method, path, base) for path in ("/items/1", "/items/2", "/items/2?a=1&a=2", "/items/new", "/items/none", "/files/a/b", "/files/a%2Fb", "/files//a", "/folder", "/folder/", "/folder?q=1", "/", "/\u00fc")
         for method in ("GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE") for base in ("http://one.example", "http://two.example:81", "https://one.example")]


@pytest.mark.parametrize("prefix", ["", "/ml"])
def test_urls_lead_where_flask_leads_them(prefix):
    apps = [make_site(kind) for kind in (front.App, Flask)]
    mounted = [Client(DispatcherMiddleware(Flask("host"), {prefix: app}) if prefix else app) for app in apps]
    for number, (method, path, base) in enumerate(CALLS + CALLS[::-1]):
        host = {"HTTP_HOST": f"host{number % 3}.example"} if number % 2 else {}
        ours, flasks = (client.open(prefix + path, method=method, base_url=base, environ_overrides=host) for client in mounted)
        assert (ours.status, list(ours.headers), ours.data) == (flasks.status, list(flasks.headers), flasks.data)
    assert apps[0].known, "the URLs were remembered"


def test_one_app_under_two_prefixes():
    app = make_site(front.App)
    client = Client(DispatcherMiddleware(Flask("host"), {"/a": app, "/b": app}))
    for _ in range(2):
        for prefix in ("/a", "/b"):
            answer = client.get(f"{prefix}/items/1").json
            assert answer["root"] == prefix and answer["link"] == f"{prefix}/items/3" and answer["arguments"] == {"number": 1}


def test_remembered_urls_are_few_and_small():
    app = make_site(front.App)
    client = Client(app)
    for number in range(2 * front.MOST_HEADS + 10):
        assert client.get(f"/items/{number}").json["arguments"] == {"number": number}
    assert 0 < len(app.known) <= front.MOST_HEADS
    before = len(app.known)
    client.get("/files/" + "a" * front.MOST_HEAD_BYTES)
    assert len(app.known) == before
    assert not any(set(front.OWN) & set(attributes) for attributes, _ in app.known.values()), "nothing of a request is kept"


def test_each_request_has_its_own_address_headers_and_body():
    app = front.App("site")
    app.add_url_rule("/who", "who", lambda: [request.remote_addr, request.headers["X-A"], request.get_data(as_text=True)], methods=["POST"])
    client = Client(app)
    for number in range(3):
        mine = client.post("/who", data=f"body {number}", headers={"X-A": f"a{number}"}, environ_overrides={"REMOTE_ADDR": f"10.0.0.{number}"}).json
        assert mine == [f"10.0.0.{number}", f"a{number}", f"body {number}"]
    assert len(app.known) == 1


def test_a_sites_own_kind_of_request_is_made_each_time():
    numbers = iter(range(10))

    class Numbered(Request):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.number = next(numbers)
    app = front.App("site")
    app.request_class = Numbered
    app.add_url_rule("/number", "number", lambda: [request.number])
    assert [Client(app).get("/number").json for _ in range(3)] == [[0], [1], [2]]


def test_a_view_that_cannot_be_hashed():
    class View:
        __name__, __hash__ = "view", None

        def __call__(self):
            return "seen"
    app = front.App("site")
    app.add_url_rule("/", "view", View())
    assert [Client(app).get("/").data for _ in range(2)] == [b"seen"] * 2


def test_text_leaves_as_bytes():
    app = front.App("site")
    app.add_url_rule("/", "text", lambda: app.response_class(["text"], headers={"Content-Type": "text/plain", "Content-Length": "4"}))
    for _ in range(2):
        assert list(app(EnvironBuilder().get_environ(), lambda *head: None)) == [b"text"]


def test_a_deployments_model_is_looked_up_at_each_request():
    for model in ("a", "b", "a"):
        deployment = SimpleNamespace(id="d", model=model, version=None, version_label=None)
        server = SimpleNamespace(config=SimpleNamespace(deployments=[deployment]))
        assert serving.find_view(server, "POST", "/model-serving/d:predict").arguments == {"model": model, "verb": "predict"}


def test_our_own_app_has_no_guests():
    app = serving.create_app(fake_server({"m": Recorder()}))
    assert app.is_plain()
    app.before_request(lambda: None)
    assert not app.is_plain()


# --- Flask's surroundings of a view, left out where there are none ------------------------------------------------------


def seen_by(app, made):
    """What requests to `app` answer and do, in order; `made` is what guests note."""
    def fail():
        raise ValueError("made to fail")

    def later():
        @after_this_request
        def note(response):
            made.append("after this request")
            response.headers["X-Late"] = "1"
            return response
        return "later"

    def about():
        g.mine = getattr(g, "mine", 0) + 1
        return {"app": current_app.name, "g": g.mine, "session": dict(session), "rule": str(request.url_rule), "blueprints": request.blueprints}

    def stream():
        return app.response_class(stream_with_context(f"{request.path} {number}\n" for number in range(3)))
    pages = {"fail": fail, "later": later, "about": about, "stream": stream, "forbidden": lambda: abort(403), "gone": lambda: ("gone", 410, {"X-A": "b"}),
             "list": lambda: [1, 2], "none": lambda: None, "bytes": lambda: b"bytes", "moved": lambda: app.response_class(b"x", headers={"Location": "/\u00fc"}),
             "empty": lambda: app.response_class(b""), "nothing": lambda: app.response_class(status=204), "lazy": lambda: app.response_class(iter(["a", "b"])), "form": lambda: request.form.to_dict(), "data": lambda: request.get_data()}
    for name, page in pages.items():
        app.add_url_rule(f"/{name}", name, page, methods=["GET", "POST"])
    client, answers = Client(app), []
    app.logger.disabled = True
    for name in (*pages, "nowhere", *pages):
        for method in ("GET", "HEAD", "POST", "OPTIONS"):
            answer = client.open(f"/{name}", method=method, data={"a": "1"} if method == "POST" else None)
            answers.append((name, method, answer.status, [line for line in answer.headers if line[0] != "Set-Cookie"], answer.data))
    return answers


def add_nothing(app, made):
    pass


def add_hooks(app, made):
    app.before_request(lambda: made.append(f"before {request.path}"))
    app.teardown_request(lambda error: made.append(f"teardown {error!r}"))
    app.teardown_appcontext(lambda error: made.append(f"end {error!r}"))

    @app.after_request
    def note(response):
        made.append(f"after {response.status}")
        return response


def add_one_hook(name):
    def add(app, made):
        getattr(app, name)(lambda *about: made.append(name) or (about[0] if name == "after_request" else None))
    return add


def add_signals(app, made):
    for name in ("request_started", "request_finished", "request_tearing_down", "appcontext_pushed", "appcontext_popped", "appcontext_tearing_down",
                 "got_request_exception"):
        def note(sender, name=name, **about):
            made.append(name)
        getattr(signals, name).connect(note, app)
        app.extensions[name] = note  # signals hold their receivers weakly


def add_session(app, made):
    app.secret_key = "secret"

    @app.before_request
    def count():
        session["count"] = session.get("count", 0) + 1
        made.append(session["count"])


def add_error_pages(app, made):
    app.errorhandler(403)(lambda error: ("no entry", 403))
    app.errorhandler(ValueError)(lambda error: (f"caught {error}", 500))


@pytest.mark.parametrize("add", [add_nothing, add_hooks, add_signals, add_session, add_error_pages,
                                 *map(add_one_hook, ("before_request", "after_request", "teardown_request", "teardown_appcontext"))])
def test_an_app_with_guests_is_flask(add):
    found = []
    for kind in (front.App, Flask):
        app, made = kind("site"), []
        add(app, made)
        found.append((seen_by(app, made), made))
        assert not has_app_context() and not has_request_context()
    assert found[0] == found[1]
    assert (add in (add_nothing, add_error_pages)) == (set(found[0][1]) <= {"after this request"})


def test_an_error_that_is_to_be_raised_leaves_no_context():
    app = front.App("site")
    app.testing = True

    @app.get("/")
    def fail():
        raise ValueError("made to fail")
    for _ in range(2):
        with pytest.raises(ValueError):
            Client(app).get("/")
        assert not has_app_context() and not has_request_context()


def test_as_many_threads_work_as_are_needed():
    dispatcher, done = ThreadedTaskDispatcher(), []
    dispatcher.set_thread_count(8)

    def run(times):
        for _ in range(times):
            finished = threading.Event()
            dispatcher.add_task(SimpleNamespace(service=lambda told=finished: (done.append(threading.get_ident()), told.set())))
            assert finished.wait(10)
            end = time.monotonic() + 10
            while dispatcher.active_count and time.monotonic() < end:  # until the thread waits again
                time.sleep(0.001)
    run(8)
    assert len(set(done)) > 4  # waitress's own way
    front.wake_latest(dispatcher.queue_cv)
    done.clear()
    run(20)
    assert len(set(done)) == 1
    barrier = threading.Barrier(8)  # and all of them, where they are needed
    for _ in range(8):
        dispatcher.add_task(SimpleNamespace(service=lambda: (barrier.wait(10), done.append(threading.get_ident()))))
    end = time.monotonic() + 10
    while len(done) < 28 and time.monotonic() < end:
        time.sleep(0.01)
    assert len(set(done)) == 8
    dispatcher.shutdown()


def test_another_flask_makes_its_own_contexts():
    """Flask 3.2 has one context for what 3.1 has two for, and no `_cv_request`."""
    script = """
import importlib.metadata
import flask.globals, flask.ctx
known = importlib.metadata.version
importlib.metadata.version = lambda name: "3.2.0" if name == "flask" else known(name)
del flask.globals._cv_request, flask.ctx.RequestContext
import serving
from serving_rooms import front
assert not front.KNOWN_FLASK
app = serving.create_app({"model_config_list": []})
print(type(app) is front.App, app.test_client().get("/v1/config").status_code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "200"], done.stderr


def test_files_that_a_view_of_the_site_was_sent_are_closed():
    app, sent = serving.create_app(fake_server({})), []
    assert type(app) is front.App and app.is_plain()
    app.add_url_rule("/upload", view_func=lambda: sent.append(request.files["file"].stream) or "thanks", methods=["POST"])
    for _ in range(2):  # the URL is known at the second
        assert Client(app).post("/upload", data={"file": (io.BytesIO(b"x" * 10), "a.txt")}).text == "thanks"
    assert [stream.closed for stream in sent] == [True, True]
