"""Connections over real sockets: the same bytes as plain waitress and plain Flask, what is refused, who is cut, and
what is answered by the thread that reads sockets."""

import contextlib
import errno
import functools
import gzip
import io
import json
import logging
import os
import random
import re
import select
import signal
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
from conftest import (
    ROOT,
    FakeServable,
    bearer,
    config,
    fail,
    fake_server,
    key_entry,
    listening,
    until,
)
from flask import Flask
from waitress import create_server, wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.proxy_headers import PROXY_HEADERS

import serving
from serving_extensions import connections, lane

P = "/v1/models/m:predict"
QUICK = {"serving_default": serving.SignatureCall(run=lambda *_: [], seconds=0.0001, steady=True)}
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
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield client


@contextlib.contextmanager
def watched(server):
    """The address of a server that listens, and the ident of the thread that runs waitress's loop."""
    before = set(threading.enumerate())
    with listening(server) as address:
        loop = next(
            thread
            for thread in threading.enumerate()
            if thread not in before and getattr(thread, "_target", None) is serving.run
        )
        yield address, loop.ident


def post(body, path=P, head="", version="1.1"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return (
        f"POST {path} HTTP/{version}\r\nHost: h\r\nX-Request-Id: same\r\nContent-Length: {len(body)}\r\n{head}\r\n".encode(
            "latin-1"
        )
        + body
    )


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


def read_all(client):
    """All that the server says until it hangs up."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while piece := client.recv(1 << 16):
            heard += piece
    return heard


# --- the same bytes as plain waitress and plain Flask ------------------------------------------------------------

PREDICT, OTHER = post(row(4)), post(row(8))
CHUNKED = f"POST {P} HTTP/1.1\r\nHost: h\r\nX-Request-Id: same\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
GET = b"GET /v1/models/m HTTP/1.1\r\nHost: h\r\nX-Request-Id: same\r\n\r\n"
CLOSE = "Connection: close\r\n"
LARGE = json.dumps({"instances": [[number] for number in range(4000)]}).encode()
assert len(LARGE) > lane.SHORT_BYTES

# Pieces as they are sent; the connection then ends, or is ended by a last request that asks for it.
EXCHANGES = {
    "predict": [PREDICT],
    "inputs": [post({"inputs": [[1], [2]]})],
    "again and again": [PREDICT, PREDICT, OTHER, PREDICT],
    "same packet": [PREDICT * 5],
    "pipelined with others": [
        PREDICT
        + GET
        + OTHER
        + post(b"{")
        + PREDICT
        + post(row(1), "/v1/models/slow:predict")
        + PREDICT
    ],
    "pipelined after a slow one": [post(row(1), "/v1/models/slow:predict") + PREDICT * 3 + OTHER],
    "a blank line between": [PREDICT + b"\r\n" + OTHER + b"\r\n\r\n" + PREDICT],
    "half of the next": [PREDICT + OTHER[:40], OTHER[40:]],
    "half of the next body": [PREDICT + OTHER[:-3], OTHER[-3:]],
    "body by itself": [PREDICT[: -len(b'{"instances": [[4]]}')], b'{"instances": [[4]]}', OTHER],
    "byte by byte": [bytes([byte]) for byte in PREDICT + OTHER],
    "wrong JSON": [post(b'{"instances": ['), PREDICT],
    "empty body": [post(b""), PREDICT],
    "no body at all": [
        f"POST {P} HTTP/1.1\r\nHost: h\r\nX-Request-Id: same\r\n\r\n".encode(),
        PREDICT,
    ],
    "wrong dtype": [post({"instances": [["a"]]})],
    "wrong signature": [post({"signature_name": "no", **row(1)})],
    "unknown model": [post(row(1), "/v1/models/none:predict"), PREDICT],
    "wrong verb": [
        post(row(1), "/v1/models/m:nothing"),
        post({"examples": [{}]}, "/v1/models/m:classify"),
    ],
    "nowhere": [post(row(1), "/nowhere"), PREDICT],
    "failing model": [post(row(1), "/v1/models/fails:predict"), PREDICT],
    "get": [GET, PREDICT, GET],
    "get predict": [GET.replace(b"/v1/models/m ", P.encode() + b" ")],
    "head": [GET.replace(b"GET", b"HEAD") + PREDICT],
    "head of predict": [PREDICT.replace(b"POST", b"HEAD")],
    "put": [PREDICT.replace(b"POST", b"PUT")],
    "lower case method": [PREDICT.replace(b"POST", b"post")],
    "options": [
        PREDICT.replace(b"POST", b"OPTIONS"),
        GET.replace(b"GET", b"OPTIONS").replace(b"Host: h", b"Host: h\r\nOrigin: http://a"),
    ],
    "close": [post(row(4), head=CLOSE) + PREDICT],
    "close in capitals": [post(row(4), head="CONNECTION: Close\r\n") + PREDICT],
    "keep-alive": [post(row(4), head="Connection: keep-alive\r\n"), PREDICT],
    "upgrade": [post(row(4), head="Connection: Upgrade\r\nUpgrade: websocket\r\n"), PREDICT],
    "HTTP/1.0": [post(row(4), version="1.0") + PREDICT],
    "HTTP/1.0 that stays": [
        post(row(4), version="1.0", head="Connection: Keep-Alive\r\n"),
        PREDICT,
    ],
    "HTTP/0.9": [post(row(4)).replace(b" HTTP/1.1", b"")],
    "HTTP/1.2": [post(row(4), version="1.2")],
    "HTTP/2.0": [post(row(4), version="2.0")],
    "continue": [post(row(4), head="Expect: 100-continue\r\n")[:-20], PREDICT[-20:], OTHER],
    "continue at once": [post(row(4), head="Expect: 100-continue\r\n"), OTHER],
    "continue twice": [post(row(4), head="Expect: 100-continue\r\n")] * 2,
    "continue behind another": [
        PREDICT + post(row(4), head="Expect: 100-continue\r\n")[:-20],
        PREDICT[-20:],
    ],
    "expect something else": [post(row(4), head="Expect: a miracle\r\n")],
    "chunked": [CHUNKED + b'13\r\n{"instances": [[4]]\r\n1\r\n}\r\n0\r\n\r\n' + PREDICT],
    "chunks in pieces": [
        CHUNKED,
        b'13\r\n{"instances"',
        b": [[4]]\r\n1\r\n}\r\n0\r\n",
        b"\r\n",
        OTHER,
    ],
    "no chunk": [CHUNKED + b"zz\r\n"],
    "chunked and gzip": [CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n"],
    "small letters": [
        PREDICT.replace(b"Host", b"host").replace(b"Content-Length", b"content-length")
    ],
    "header twice": [
        post(row(4), head="Accept: application/x-npy\r\nAccept: text/plain\r\nX-A: 1\r\nX-A: 2\r\n")
    ],
    "length twice": [post(row(4), head="Content-Length: 20\r\n")],
    "wrong length": [PREDICT.replace(b"Length: 20", b"Length: 2x"), PREDICT],
    "negative length": [PREDICT.replace(b"Length: 20", b"Length: -1")],
    "short length": [PREDICT.replace(b"Length: 20", b"Length: 10") + PREDICT],
    "folded header": [post(row(4), head="X-A: 1\r\n  2\r\n"), PREDICT],
    "header without a colon": [post(row(4), head="nothing\r\n")],
    "bare line feed": [post(row(4), head="X-A: 1\nX-B: 2\r\n")],
    "underscore": [post(row(4), head="X_Request_Id: other\r\n")],
    "letters that are not ASCII": [post(row(4), head="X-A: \xfc\xdf\r\n"), PREDICT],
    "other id": [post(row(4)).replace(b"same", b"no id!"), PREDICT],
    "gzip body": [
        post(
            gzip.compress(json.dumps(row(4)).encode(), mtime=0), head="Content-Encoding: gzip\r\n"
        ),
        PREDICT,
    ],
    "no gzip": [post(row(4), head="Content-Encoding: gzip\r\n"), PREDICT],
    "large": [post(LARGE), PREDICT],
    "large behind small": [PREDICT + post(LARGE) + PREDICT],
    "large answer in gzip": [post(LARGE, head="Accept-Encoding: gzip\r\n"), PREDICT],
    "too large": [PREDICT.replace(b"Length: 20", b"Length: 99999999")],
    "version": [
        post(row(4), "/v1/models/m/versions/1:predict"),
        post(row(4), "/v1/models/m/versions/9:predict"),
    ],
    "label": [post(row(4), "/v1/models/m/labels/none:predict")],
    "other case": [
        post(row(4), "/V1/Models/m:predict"),
        post(row(4), "/v1/models/M:predict"),
        post(row(4), "/v1/models/m:Predict"),
    ],
    "absolute": [
        post(row(4), "http://h" + P),
        post(row(4), "http://other:1234" + P + "?a=1"),
        PREDICT,
    ],
    "encoded": [
        post(row(4), "/v1/models/%6d:predict"),
        post(row(4), "/v1/models/m%3Apredict"),
        post(row(4), "/v1/models/%256d:predict"),
    ],
    "slashes": [
        post(row(4), "/" + P),
        post(row(4), P + "/"),
        post(row(4), "/v1//models/m:predict"),
        PREDICT,
    ],
    "query": [
        post(row(4), P + "?outputs=y"),
        post(row(4), P + "?outputs=z"),
        post(row(4), P + "?a=%ff"),
        PREDICT,
    ],
    "fragment": [post(row(4), P + "#there")],
    "npy answer": [post(row(4), head="Accept: application/x-npy\r\n")],
    "raw tensor": [
        post(
            np.float32([[1], [2]]).tobytes(),
            head="X-Tensor-Shape: 2,1\r\nAccept: application/octet-stream\r\n",
        )
    ],
    "origin": [
        post(row(4), head="Origin: https://site.example\r\n"),
        post(row(4), head="Origin: https://other.example\r\n"),
    ],
    "host": [
        post(row(4)).replace(b"Host: h", b"Host: other:80"),
        post(row(4)).replace(b"Host: h\r\n", b""),
    ],
    "strange host": [post(row(4)).replace(b"Host: h", b"Host: a b/c"), PREDICT],
    "long head": [post(row(4), head=f"X-Long: {'a' * 6000}\r\n")] * 2,
    "too long head": [post(row(4), head=f"X-Long: {'a' * 300_000}\r\n")],
    "no request": [b"hello\r\n\r\n"],
    "nothing": [b"\r\n\r\n", PREDICT],
    "broken off": [PREDICT[:-5]],
    "broken off in the head": [PREDICT, PREDICT[:30]],
}


def make_server(**others):
    failing = serving.Servable(FakeServable().signatures, fail, device="CPU:0", calls=QUICK)
    return fake_server(
        {"m": Recorder(), "slow": Recorder(SLOW), "fails": failing},
        server={
            "cors_origins": ["https://site.example"],
            "gzip_min_bytes": 1000,
            "max_request_bytes": 1 << 20,
            "file_system_poll_wait_seconds": 0,
        },
        **others,
    )


class PlainChannel(HTTPChannel):
    """waitress's, which does not send while a worker does: it loses its place then, and hangs up."""

    parser_class = connections.Parser

    def handle_write(self):
        if self.outbuf_lock.acquire(False):
            try:
                super().handle_write()
            finally:
                self.outbuf_lock.release()


@contextlib.contextmanager
def plainly_served(server):
    """The address of the same server by plain waitress, with its own queue and threads, and plain Flask: no door, no lane.

    Of ours there is the parser, which has the rules that waitress leaves out.
    """
    app = serving.create_app(server)
    app.before_request(lambda: None)  # all is Flask's from now on
    sockets = {}
    http = create_server(
        app,
        map=sockets,
        host="127.0.0.1",
        port=0,
        threads=8,
        ident="serving",
        max_request_body_size=(1 << 20) + 1,
        inbuf_overflow=(1 << 20) + 1,
        recv_bytes=1 << 20,
        channel_request_lookahead=1,
        max_request_header_size=connections.HEAD_BYTES,
        log_socket_errors=False,
    )
    http.channel_class = PlainChannel
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            wasyncore.loop(timeout=0.1, map=sockets, use_poll=True, count=1)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.effective_port}"
    finally:
        stop.set()
        thread.join(10)
        http.task_dispatcher.shutdown()
        wasyncore.close_all(sockets)


@pytest.fixture(scope="module")
def both():
    with listening(make_server()) as ours, plainly_served(make_server()) as plain:
        yield ours, plain


ALIKE = re.compile(
    rb"(?:Date|Server-Timing): [^\r]*|X-Request-Id: [0-9a-f]{16}|request [0-9a-f]{16}"
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # sent or not by whether the request before is answered already


def talk(address, pieces):
    """All that the server says to these pieces, until it or we have no more to say."""
    with connected(address) as client:
        with contextlib.suppress(ConnectionError):
            for index, piece in enumerate(pieces):
                client.sendall(piece)
                if len(pieces) < 10 and index < len(pieces) - 1:
                    time.sleep(0.03)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR) if pieces[-1] in (
                PREDICT[:-5],
                PREDICT[:30],
            ) else client.sendall(LAST)
        return ALIKE.sub(b"-", read_all(client))


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_same_bytes_as_plain_waitress_and_flask(both, name):
    ours, plain = (talk(address, EXCHANGES[name]) for address in both)
    assert ours == plain
    assert ours.startswith(b"HTTP/1.") or not ours and "broken" in name


SEQUENCES = int(os.environ.get("SERVING_SEQUENCES", "1000"))  # 20000: a few minutes
LAST = GET.replace(b"Host: h", b"Host: h\r\nConnection: close")
CONTINUED = b"Expect: 100-continue\r\n"


def chunked(random, body):
    """A body as chunks of odd sizes, with an extension or a trailer now and then."""
    parts = b""
    while body:
        size = random.randint(1, len(body))
        parts += b"%x%b\r\n%b\r\n" % (size, random.choice([b"", b"", b";a=b"]), body[:size])
        body = body[size:]
    return parts + b"0\r\n" + random.choice([b"", b"", b"X-Trailer: 1\r\n"]) + b"\r\n"


def make_message(random):
    """A request after which the connection stays open."""
    body = json.dumps(
        random.choice(
            [
                row(random.randint(0, 99)),
                {"inputs": [[1], [2]]},
                {"instances": [["a"]]},
                {"signature_name": "no"},
                [],
                "x",
            ]
        )
    ).encode()
    body = random.choice([body] * 8 + [b"{", b"", body + b" " * 20_000])
    path = random.choice(
        [P] * 6
        + [
            "/v1/models/slow:predict",
            "/v1/models/none:predict",
            "/v1/models/fails:predict",
            "/v1/models/%6d:predict",
            "/v1/models/m:nothing",
            "/v1/models/m/versions/1:predict",
            "/V1/models/m:predict",
            "//v1/models/m:predict",
            "/nowhere",
            "http://h" + P,
            P + "?outputs=y",
        ]
    )
    head = f"Host: h{random.randint(1, 3)}\r\nX-Request-Id: r{random.randint(1, 99)}\r\n"
    for line in (
        "Accept: application/json",
        "Origin: https://site.example",
        "X-Long: " + "a" * 3000,
        "Content-Type: text/plain",
        "X-A: 1\r\nX-A: 2",
        "Accept-Encoding: gzip",
        "Connection: keep-alive",
        "X_B: 3",
        "Authorization: Bearer " + "k" * random.randint(1, 9),
    ):
        head += f"{line}\r\n" if random.random() < 0.15 else ""
    head = head.encode() + (CONTINUED if random.random() < 0.15 else b"")
    kind = random.random()
    if kind < 0.2:
        target = random.choice(
            [
                "/livez",
                "/readyz",
                "/v1/models/m",
                "/v1/models",
                "/v1/models/m/metadata",
                "/nowhere",
                "/v1/models/none",
                "/v2/health/live",
            ]
        )
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (
            random.choice([b"GET", b"GET", b"HEAD", b"OPTIONS", b"DELETE"]),
            target.encode(),
            head,
        )
    if kind < 0.35:
        return b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n%b\r\n%b" % (
            path.encode(),
            head,
            chunked(random, body),
        )
    blank = b"\r\n" if random.random() < 0.05 else b""
    return blank + b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path.encode(),
        head,
        len(body),
        body,
    )


def make_end(random):
    """A request after which the server hangs up: asked to, or since it is none."""
    body = json.dumps(row(7)).encode()
    return random.choice(
        [
            LAST,
            LAST,
            post(row(7), head="Connection: close\r\n"),
            post(row(7), version="1.0"),
            b"hello\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            post(row(7), head="Content-Length: 20\r\n"),
            post(row(7), head="Transfer-Encoding: chunked\r\n"),
            post(row(7), head="Host: h\r\n"),
            post(row(7), head="X-A: 1\r\n 2\r\n"),
            post(row(7), head="nothing\r\n"),
            b"POST " + P.encode() + b" HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST "
            + P.encode()
            + b" HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"GET /livez HTTP/1.1\nHost: h\n\n",
            b"POST "
            + P.encode()
            + b" HTTP/1.2\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
        ]
    )


def make_script(seed):
    """Pieces of bytes for some connections, in the order in which they are sent."""
    chance = random.Random(seed)
    pieces = []
    for number in range(chance.choice([1, 1, 2, 3])):
        data = b"".join(make_message(chance) for _ in range(chance.randint(0, 5))) + make_end(
            chance
        )
        cuts = sorted(chance.randint(1, len(data)) for _ in range(chance.choice([0, 0, 1, 2, 5])))
        own = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)]) if start < end]
        pieces.append([(number, piece) for piece in own])
    order = [number for number, own in enumerate(pieces) for _ in own]
    chance.shuffle(order)
    return [pieces[number].pop(0) for number in order]


def play(address, script):
    """What each connection of a script hears."""
    with contextlib.ExitStack() as opened:
        clients = {number: opened.enter_context(connected(address)) for number, _ in script}
        for number, piece in script:
            with contextlib.suppress(ConnectionError):
                clients[number].sendall(piece)
        return {
            number: ALIKE.sub(b"-", read_all(client)).replace(CONTINUE, b"")
            for number, client in clients.items()
        }


@pytest.mark.parametrize("part", range(4))
def test_any_sequence_is_answered_as_by_plain_waitress_and_flask(both, part):
    """What is sent to several connections at once, pipelined, in pieces, in chunks, with Expect: status, headers and bytes."""
    for seed in range(part, SEQUENCES, 4):
        script = make_script(seed)
        ours, plain = (play(address, script) for address in both)
        assert ours == plain, (seed, script)


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0;a=b\r\nX-Trailer: 1\r\n\r\n"])
def test_chunks_cut_anywhere_are_the_same_chunks(end):
    data = CHUNKED + b"5\r\nhello\r\n" + end
    for cut in range(1, len(data)):
        parser = connections.Parser(Adjustments())
        assert feed(parser, data[:cut]) == b"" and not parser.completed
        assert feed(parser, data[cut:] + GET) == GET, cut
        assert parser.error is None and parser.get_body_stream().read() == b"hello", cut


@pytest.mark.parametrize("pieces", [(1, 1, 1, 1), (1.5, 1.4, 0.9), (2.9, 0.9), (4,)])
def test_a_chunked_body_is_weighed_whole_in_whatever_pieces_it_comes(pieces):
    front = SimpleNamespace(no_room=lambda: None)
    front.server = fake_server({}, server={"max_queued_bytes": 3 << 20})
    parser = connections.Parser(Adjustments())
    parser.front = front
    feed(parser, CHUNKED)
    for size in (int(megabytes * 2**20) for megabytes in pieces):
        feed(parser, b"%x\r\n%b\r\n" % (size, b" " * size))
    feed(parser, b"0\r\n\r\n")
    assert parser.completed and parser.error.code == 413


def feed(parser, data):
    """Hand a parser what has come; what is left is the next request's."""
    while data and not parser.completed:
        data = data[parser.received(data) :]
    return data


# --- nothing of one client reaches another --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nX-Request-Timeout: 0.000001\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nX-Request-Timeout: 0.000001\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_an_expectation_without_a_body_leaves_nothing_for_the_next_request(first):
    other = b"GET /livez HTTP/1.1\r\nHost: probe\r\nX-Request-Id: probe\r\n\r\n"
    with listening(fake_server({"m": Recorder()})) as address:
        with connected(address) as attacker:
            attacker.sendall(first + other + LAST)
            heard = read_all(attacker)
        assert heard.count(b"HTTP/1.1 504 ") == 1 and heard.count(b"HTTP/1.1 200 ") == 2, (
            "its own requests are three"
        )
        with connected(address) as client:
            for _ in range(3):
                assert ask(client, other) == {"status": "live", "live": True}


def test_no_header_of_one_client_reaches_another(monkeypatch):
    seen, create_app = [], serving.create_app

    def recording(server, **options):
        app = create_app(server, **options)

        def record(environ, start_response):
            seen.append(environ)
            return app(environ, start_response)

        return record

    monkeypatch.setattr(serving, "create_app", recording)
    heads = [
        "",
        "Authorization: Bearer one\r\n",
        "",
        "Authorization: Bearer two\r\nX-A: 1\r\n",
        "X-A: 2\r\n",
        "Authorization: Bearer one\r\n",
        "Accept: text/plain\r\n",
        "",
    ]
    with (
        listening(fake_server({"m": Recorder()})) as address,
        connected(address) as first,
        connected(address) as second,
    ):
        for step in range(48):
            client, head = (first, second)[step % 3 == 2], heads[step * 5 % 8]
            assert ask(client, post(row(step), head=head)) == {"predictions": [[step / 2 + 1]]}
            wanted = {
                "HTTP_" + name.upper().replace("-", "_"): value
                for name, _, value in (line.partition(": ") for line in head.splitlines())
            }
            environ = seen[-1]
            assert {
                name: value for name, value in environ.items() if name.startswith("HTTP_")
            } == wanted | {"HTTP_HOST": "h", "HTTP_X_REQUEST_ID": "same"}
            assert environ["REMOTE_PORT"] == str(client.getsockname()[1])
            environ["HTTP_LEFT_BEHIND"] = "1"


def test_what_a_client_says_of_a_proxy_is_left_out():
    seen = []
    server = fake_server({"m": Recorder()})
    server.endpoint("/see")(lambda value, context: seen.append(set(context.headers)))
    said = "".join(f"{name.replace('_', '-').title()}: 1.2.3.4\r\n" for name in PROXY_HEADERS)
    with listening(server) as address, connected(address) as client:
        ask(
            client,
            post(
                b"1",
                "/see",
                f"{said}X-Forwarded-Other: kept\r\nx-api-key: {server.generated_key}\r\n",
            ),
        )
    assert seen == [{"Host", "X-Request-Id", "Content-Length", "X-Forwarded-Other", "X-Api-Key"}]


# --- what RFC 9112 says to refuse -----------------------------------------------------------------------------------

BODY = b'{"instances": [[4]]}'
ASKED = b"POST " + P.encode() + b" HTTP/1.1\r\n"
HEAD = ASKED + b"Host: h\r\n"
IN_CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
# More than those of test_doors.py, which are sent to a server of its own.
REFUSED = {
    **{
        f"chunks and a length in HTTP/{version}": (
            400,
            b"POST "
            + P.encode()
            + b" HTTP/"
            + version.encode()
            + b"\r\nHost: h\r\nConnection: keep-alive\r\n"
            b"Content-Length: 20\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,
        )
        for version in ("0.9", "1.0", "1.2", "2.0")
    },
    "chunks and a length without a version": (
        400,
        b"POST "
        + P.encode()
        + b"\r\nContent-Length: 20\r\nTransfer-Encoding: chunked\r\n\r\n"
        + BODY,
    ),
    "chunks in HTTP/1.2": (
        400,
        ASKED.replace(b"1.1", b"1.2") + b"Host: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "two hosts in HTTP/1.0": (
        400,
        ASKED.replace(b"1.1", b"1.0") + b"Host: h\r\nHost: i\r\nContent-Length: 20\r\n\r\n" + BODY,
    ),
    **{
        f"host {host}": (400, ASKED + b"Host: " + host + b"\r\nContent-Length: 20\r\n\r\n" + BODY)
        for host in (b"h:x", b"[::1", b"h, h", b"h?", b"h#", b"\xfc", b"h\\i")
    },
    "chunked in two lines": (
        400,
        ASKED
        + b"Host: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "a comma for a coding": (400, HEAD + b"Transfer-Encoding: ,\r\n\r\n"),
    "no coding beside one": (400, HEAD + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n"),
    **{
        f"length {length[:9]}": (400, HEAD + b"Content-Length: " + length + b"\r\n\r\n" + BODY)
        for length in (b"2 0", b"9" * 5000)
    },
    "a line feed at once": (400, b"\nGET /livez HTTP/1.1\r\nHost: h\r\n\r\n"),
    "a folded coding": (400, HEAD + b"Transfer-Encoding:\r\n\tchunked\r\n\r\n0\r\n\r\n"),
    "an endless trailer": (400, IN_CHUNKS + b"0\r\n" + b"X: y\r\n" * 20_000),
    "an endless extension": (400, IN_CHUNKS + b"1;" + b"x" * 100_000),
    "an unclean trailer": (400, IN_CHUNKS + b"0\r\nA: b\n\n"),
    "a trailer of bare line feeds": (400, IN_CHUNKS + b"0\r\nA: b\n\n\r\n\r\n"),
    "a huge chunk": (413, IN_CHUNKS + b"FFFFFFFFFFFFFFFFF\r\n"),
    "a huge body that waits": (
        413,
        HEAD + b"Expect: 100-continue\r\nContent-Length: 9999999999\r\n\r\n",
    ),
    **{
        f"very many blanks {number}": (
            400,
            b"GET /livez HTTP/1.1\r\nHost: h\r\nA:" + blanks + b"x\r\n\r\n",
        )
        for number, blanks in enumerate(
            (b"\t" * 60_000, b" " * 60_000 + b"\x01", b"y" + b" \t" * 30_000)
        )
    },
    "an endless head": (431, HEAD + b"X: y\r\n" * 20_000),
}


@pytest.fixture(scope="module")
def live():
    model = Recorder()
    with listening(fake_server({"m": model})) as address:
        yield address, model


@pytest.mark.parametrize("name", REFUSED)
def test_a_head_that_may_be_read_in_two_ways_is_refused_and_hung_up_on(live, name):
    address, model = live
    status, data = REFUSED[name]
    model.threads.clear()
    for pieces in ([data + PREDICT], [data[:30], data[30:] + PREDICT]):
        with connected(address) as client:
            with contextlib.suppress(ConnectionError):
                for piece in pieces:
                    client.sendall(piece)
                    time.sleep(0.02)
            heard = read_all(client)
        assert heard[8:13] == b" %d " % status or not heard, (
            heard
        )  # a reset may take the answer with it
        assert heard.count(b"Connection: close") <= 1
    assert heard and not model.threads, "nothing of it ran"
    with connected(address) as client:
        assert ask(client, PREDICT) == {"predictions": [[3.0]]}


@pytest.mark.parametrize(
    "value", ["close", "Close", "keep-alive, close", "close, te", "te , CLOSE"]
)
def test_a_connection_that_is_to_close_in_whatever_list_closes(live, value):
    with connected(live[0]) as client:
        client.sendall(post(row(4), head=f"Connection: {value}\r\n") + PREDICT)
        heard = read_all(client)
    assert heard.count(b"HTTP/1.1 200 ") == 1 and b"Connection: close" in heard


@pytest.mark.parametrize(
    "host",
    [
        b"h",
        b"h:80",
        b"h:",
        b"[::1]:8501",
        b"",
        b"a.example",
        b"xn--tst-qla.example",
        b"127.0.0.1:8501",
        b"a_b",
        b"%41",
    ],
)
def test_a_host_that_may_be_is_taken(live, host):
    with connected(live[0]) as client:
        assert ask(client, PREDICT.replace(b"Host: h", b"Host: " + host)) == {
            "predictions": [[3.0]]
        }


# --- too much, too slow -----------------------------------------------------------------------------------------------


class Large(FakeServable):
    """Answers more than waitress holds for one client before a thread has to wait (64 MiB)."""

    def answer(self, name, inputs):
        return {"y": np.array([[b"x" * 70_000_000]], object)}


def test_answers_that_nobody_reads_hold_nobody_and_are_cut_by_a_clock_that_is_not_set_back(
    monkeypatch, caplog
):
    caplog.set_level("INFO", "serving")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    server = fake_server(
        {"m": Recorder(), "large": Large(calls=QUICK)},
        server={"threads": 4, "send_seconds": 1, "file_system_poll_wait_seconds": 0},
    )
    with listening(server) as address, contextlib.ExitStack() as opened:
        stuck = [opened.enter_context(connected(address)) for _ in range(3)]
        for client in stuck:
            client.sendall(post(row(1), "/v1/models/large:predict") * 2)
        until(
            lambda: server.state["metrics"].in_flight or server.state["metrics"].total.requests, 60
        )
        for _ in range(5):
            assert requests.get(f"{address}/livez", timeout=10).status_code == 200
        with connected(address) as client:
            assert ask(client, PREDICT) == {"predictions": [[3.0]]}
        monkeypatch.setattr(time, "time", lambda: now - 7200)
        until(
            lambda: caplog.text.count("A connection is cut: an answer has not been read") == 3, 60
        )
        for client in stuck:  # there is what lay in between, and then no more
            assert len(read_all(client)) < 70_000_000


def test_a_request_that_drips_in_while_the_clock_is_set_back_is_cut(monkeypatch):
    server = fake_server(
        {"m": Recorder()}, server={"receive_seconds": 1, "file_system_poll_wait_seconds": 0}
    )
    with listening(server) as address, connected(address) as client:
        client.sendall(b"POST /v1/mod")
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now - 7200)
        client.settimeout(60)
        assert read_all(client) == b"", "the server hangs up"


def test_who_reads_and_sends_at_a_fair_pace_is_not_cut():
    options = SimpleNamespace(receive_seconds=60, send_seconds=60)
    channel = SimpleNamespace(
        total_outbufs_len=0,
        requests=[],
        active_at=0.0,
        arriving=None,
        arriving_since=0.0,
        sending_since=0.0,
        sent_bytes=0,
        sent_at=0.0,
    )
    channel.is_unread = functools.partial(connections.Channel.is_unread, channel)

    def overdue(now, **changes):
        vars(channel).update(changes)
        return connections.Channel.is_overdue(channel, now, options)

    assert overdue(1000.0) == overdue(1119.0) == "" and overdue(1121.0) == "idle"
    arriving = SimpleNamespace(body_bytes_received=0)
    assert (
        overdue(2000.0, active_at=2000.0, arriving=arriving, arriving_since=2000.0)
        == ""
        == overdue(2059.0, active_at=2059.0)
    )
    assert "has not fully arrived after 61 s" in overdue(2061.0, active_at=2061.0)
    arriving.body_bytes_received = 10 * connections.SLOWEST
    assert overdue(2069.0, active_at=2069.0) == "" != overdue(2071.0)
    assert overdue(3000.0, arriving=None, total_outbufs_len=5) == overdue(3060.0) == ""
    assert "has not been read after 61 s" in overdue(3061.0)
    read = {"sent_bytes": 10 * connections.SLOWEST, "sent_at": 3060.0}
    assert overdue(3069.0, **read) == "" != overdue(3071.0)
    read = {"sent_bytes": 1000 * connections.SLOWEST, "sent_at": 3060.0}
    assert overdue(3119.0, **read) == "" != overdue(3121.0), "what the system has taken is not read"
    assert overdue(3122.0, total_outbufs_len=0) == "" == overdue(3150.0, total_outbufs_len=5), (
        "the time begins anew"
    )


def test_each_refused_request_of_a_packet_is_refused():
    gate, slow = threading.Event(), Recorder(SLOW)
    slow.answer = lambda name, inputs: gate.wait(30) and FakeServable.answer(slow, name, inputs)
    slow._run = slow.answer
    server = fake_server(
        {"slow": slow, "m": Recorder()},
        server={"threads": 2, "max_queued_requests": 1, "file_system_poll_wait_seconds": 0},
    )
    asked = post(row(1), "/v1/models/slow:predict")
    with watched(server) as (address, loop), contextlib.ExitStack() as opened:
        busy = [opened.enter_context(connected(address)) for _ in range(2)]
        busy[0].sendall(asked)
        until(lambda: server.state["metrics"].in_flight)
        busy[1].sendall(asked)
        until(lambda: len(server.waiting) == 1)
        calls = len(slow.calls)
        with connected(address) as client:
            client.sendall(asked * 3 + LAST)
            heard = read_all(client)
        assert heard.count(b"HTTP/1.1 503 ") == 3 and len(slow.calls) == calls
        gate.set()
        for client in busy:
            assert receive(client).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("how", ["handler", "metadata"])
def test_what_only_looks_leaves_a_thread_for_those_who_ask_how_things_are(how):
    go, begun = threading.Event(), []

    def load(folder, model):
        assert go.wait(60)
        return FakeServable()

    server = serving.ModelServer(
        config(
            "m", server={"threads": 4, "file_system_poll_wait_seconds": 0, "load_wait_seconds": 60}
        ),
        load=load,
        list_versions=lambda base: {1: serving.Path(base) / "1"},
    )

    @server.endpoint("/wait", methods=("GET",))
    def wait(value):
        begun.append(1)
        assert go.wait(60)
        return "waited"

    path, head = (
        ("/wait", f"x-api-key: {server.generated_key}\r\n")
        if how == "handler"
        else ("/v1/models/m/metadata", "")
    )
    with listening(server) as address, contextlib.ExitStack() as opened:
        clients = [opened.enter_context(connected(address)) for _ in range(12)]
        for client in clients:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\n{head}\r\n".encode())
        until(lambda: len(server.waiting) >= 10)
        for asked in (
            "/livez",
            "/metrics",
            "/stats",
            "/console/",
            "/v1/models/m",
            "/v1/models",
            "/v1/config",
        ):
            assert requests.get(address + asked, timeout=10).status_code == 200, asked
        assert requests.get(f"{address}/readyz", timeout=10).status_code == 503
        assert (
            requests.get(
                f"{address}/deployments", headers=bearer(server.generated_key), timeout=10
            ).status_code
            == 200
        )
        go.set()
        for client in clients:
            assert receive(client).startswith(b"HTTP/1.1 200 ")


PROGRAM = """
import resource, sys
sys.path.insert(0, {root!r})
{before}
import serving
sys.exit(serving.main(["--config", {config!r}, "--port", "0"]))
"""


@contextlib.contextmanager
def started(tmp_path, before="", **pipes):
    """A server without models as a program of its own; its address and its process."""
    (tmp_path / "config.json").write_text('{"model_config_list": []}')
    code = PROGRAM.format(root=str(ROOT), before=before, config=str(tmp_path / "config.json"))
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True, **pipes
    )
    try:
        yield re.search(r"http://\S+?(?=,)", process.stdout.readline())[0], process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_a_log_that_nobody_reads_stops_no_request(tmp_path):
    with started(tmp_path, stderr=subprocess.PIPE) as (address, process):
        with requests.Session() as session:
            for _ in range(2000):  # of some 100 bytes; a pipe holds 65536
                assert session.get(f"{address}/v1/models", timeout=10).status_code == 200
            os.set_blocking(process.stderr.fileno(), False)
            read = os.read(process.stderr.fileno(), 1 << 20)
            assert len(read) > 50_000 and b"GET /v1/models 200" in read
            assert session.get(f"{address}/v1/config", timeout=10).status_code == 200
            until(lambda: select_readable(process.stderr), 10)
            later = os.read(process.stderr.fileno(), 1 << 20)
        assert (
            re.match(rb"\(\d{3,} log lines were dropped here, as nothing read the log\)\n", later)
            and b"GET /v1/config 200" in later
        )


def select_readable(pipe):
    return select.select([pipe], [], [], 0)[0]


def test_a_long_line_that_does_not_fit_is_cut_and_said_so():
    reading, writing = os.pipe()
    handler = serving.PatientHandler(os.fdopen(writing, "w"))
    record = serving.logging.makeLogRecord({"msg": "x" * 300_000})
    handler.emit(record), handler.emit(record)
    assert handler.dropped == 2
    while len(os.read(reading, 1 << 16)) == 1 << 16:
        pass
    handler.emit(serving.logging.makeLogRecord({"msg": "short"}))
    assert (
        os.read(reading, 1 << 16)
        == b"(2 log lines were dropped here, as nothing read the log)\nshort\n"
    )
    handler.stream.close(), os.close(reading)


@pytest.mark.parametrize("lines, writes", [(5, 1), (25, 3), (0, 0)])
def test_lines_that_are_written_together_keep_their_order_and_fit_what_a_pipe_takes(lines, writes):
    reading, writing = os.pipe()
    handler = serving.PatientHandler(os.fdopen(writing, "w"))
    sent, write = [], handler.stream.write
    handler.stream = SimpleNamespace(
        write=lambda text: sent.append(text) or write(text),
        flush=handler.stream.flush,
        fileno=handler.stream.fileno,
        close=handler.stream.close,
    )
    with handler.together():
        for number in range(lines):
            handler.handle(serving.logging.makeLogRecord({"msg": f"{number:099}"}))
        assert not sent
    assert len(sent) == writes and all(len(text) <= 1000 for text in sent)
    assert "".join(sent).split() == [f"{number:099}" for number in range(lines)]
    handler.handle(serving.logging.makeLogRecord({"msg": "alone"}))
    assert sent[-1] == "alone\n"
    handler.stream.close(), os.close(reading)


def test_lines_together_whose_reader_has_gone_end_nothing(capsys):
    reading, writing = os.pipe()
    handler = serving.PatientHandler(os.fdopen(writing, "w"))
    os.close(reading)
    with handler.together():
        handler.handle(serving.logging.makeLogRecord({"msg": "for nobody"}))
        with handler.together():
            handler.handle(serving.logging.makeLogRecord({"msg": "in the first's"}))
    assert "BrokenPipeError" in capsys.readouterr().err and handler.joined is None
    with open(os.devnull, "w") as nothing:  # which takes what is left, so that it can be closed
        os.dup2(nothing.fileno(), writing)
    handler.stream.close()


def test_lines_together_that_nobody_reads_are_counted_each():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(1 << 12))
    handler = serving.PatientHandler(os.fdopen(writing, "w"))
    with handler.together():
        for number in range(25):
            handler.handle(serving.logging.makeLogRecord({"msg": f"{number:099}"}))
    assert handler.dropped == 25
    handler.stream.close(), os.close(reading)


def test_at_the_limit_of_open_files_the_log_stays_small_and_others_follow(tmp_path):
    log = tmp_path / "log"
    before = "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    with log.open("w") as file, started(tmp_path, before, stderr=file) as (address, _):
        with contextlib.ExitStack() as opened:
            for _ in range(100):
                opened.enter_context(connected(address))
            until(lambda: "cannot be accepted" in log.read_text(), 20)
            time.sleep(1.5)
            assert log.read_text().count("cannot be accepted") == 1 and log.stat().st_size < 5000
        assert requests.get(f"{address}/livez", timeout=20).status_code == 200


@pytest.mark.parametrize("limit, accepted", [(100, 20), (12, 10)])
def test_all_connections_that_wait_are_accepted_at_once(limit, accepted):
    front = connections.Front(
        fake_server({"m": FakeServable(1)}),
        lambda *call: [],
        host="127.0.0.1",
        port=0,
        connection_limit=limit,
    )  # two are its own
    clients = []
    try:
        clients += [socket.create_connection(("127.0.0.1", front.port)) for _ in range(20)]
        for _ in range(2):
            front.turn(1)
            assert len(front.listeners[0].active_channels) == accepted
    finally:
        front.dispatcher.shutdown()
        wasyncore.close_all(front.sockets)
        for client in clients:
            client.close()


# --- who answers where ----------------------------------------------------------------------------------------------


def test_cheap_models_are_answered_by_the_loop_and_others_by_workers():
    models = {"quick": Recorder(), "slow": Recorder(SLOW), "unknown": Recorder({})}
    with watched(fake_server(models)) as (address, loop):
        for name in models:
            with connected(address) as client:
                for number in range(5):
                    assert ask(client, post(row(number), f"/v1/models/{name}:predict")) == {
                        "predictions": [[number / 2 + 1]]
                    }
    assert set(models["quick"].threads) == {loop}
    for name in ("slow", "unknown"):
        assert len(models[name].threads) == 5 and loop not in models[name].threads


@pytest.mark.parametrize(
    "data",
    [
        post(LARGE),
        post(row(4), "/v1/models/m/versions/0:predict"),
        post({"instances": [{"b64": "AA=="}]}),
        post(b'{"instances": [[4]], "\\u0061": 1}'),
        CHUNKED + b'14\r\n{"instances": [[4]]}\r\n0\r\n\r\n',
        post(
            gzip.compress(json.dumps(row(4)).encode(), mtime=0), head="Content-Encoding: gzip\r\n"
        ),
        post(np.float32([[4]]).tobytes(), head="X-Tensor-Shape: 1,1\r\n"),
        post(b"\x93NUMPY" + bytes(80)),
    ],
)
def test_what_may_take_long_is_left_to_workers(data):
    model = Recorder()
    with watched(fake_server({"m": model})) as (address, loop):
        for sent in (data, PREDICT):
            with connected(address) as client:
                ask(client, sent)
    assert model.threads[-1] == loop and loop not in model.threads[:-1]


def test_a_version_is_answered_where_its_own_calls_belong():
    made = {1: Recorder(SLOW), 2: Recorder(version=2)}
    server = serving.ModelServer(
        config({"name": "m", "base_path": "m", "model_version_policy": {"all": {}}}),
        load=lambda folder, model: made[int(folder.name)],
        list_versions=lambda base: {1: serving.Path("1"), 2: serving.Path("2")},
    )
    assert server.wait(10)
    with watched(server) as (address, loop), connected(address) as client:
        for version in (2, 1):  # a worker may still be busy with what it has answered
            assert ask(client, post(row(4), f"/v1/models/m/versions/{version}:predict")) == {
                "predictions": [[2.0 + version]]
            }
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


@pytest.mark.parametrize(
    ("body", "here"),
    [
        ({"instances": [1.0, 2.0]}, True),
        ({"inputs": [[1.0]]}, True),
        ({"signature_name": "serving_default", "instances": [1.0]}, True),
        ({"signature_name": "", "instances": [1.0]}, True),
        ({"signature_name": "regress", "inputs": ["x"]}, False),
        (
            b'{"signature_name": "serving_default", "signature_name": "regress", "instances": [1.0]}',
            False,
        ),
        ({"signature_name": 3, "instances": [1.0]}, False),
        ({"instances": [{"signature_name": "serving_default"}]}, True),
    ],
)
def test_the_signature_that_is_asked_for_decides(demo, body, here):
    server = SimpleNamespace(config=demo.config, manager=demo.manager)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = SimpleNamespace(
        chunked=False,
        content_length=len(data),
        headers={},
        get_body_stream=lambda: io.BytesIO(data),
    )
    found = serving.find_known(demo, "POST", "/v1/models/half_plus_two:predict")
    assert lane.Lane(server).takes(asked, found) is here


def test_a_protected_server_answers_on_workers_alone():
    model = Recorder()
    server = fake_server({"m": model}, auth={"keys": [key_entry("site", "k")], "protect": "all"})
    with watched(server) as (address, loop), connected(address) as client:
        assert "error" in ask(client, PREDICT)
        for _ in range(3):
            assert ask(
                client, post(row(4), head=f"Authorization: {bearer('k')['Authorization']}\r\n")
            ) == {"predictions": [[3.0]]}
    assert len(model.threads) == 3 and loop not in model.threads


def chain(*nodes, **others):
    """A pipeline: each node takes what the one before made."""
    names = ["request", *(f"node {number}" for number in range(len(nodes)))]
    ends = [{"node_name": name, "data_item": "x" if name == "request" else "y"} for name in names]
    return {
        "name": "p",
        "inputs": ["x"],
        "outputs": [{"y": ends[-1]}],
        **others,
        "nodes": [
            {
                "name": name,
                "inputs": [{"x": end}],
                "outputs": [{"data_item": "y", "alias": "y"}],
                **({"type": "DL model", "model_name": node} if isinstance(node, str) else node),
            }
            for name, end, node in zip(names[1:], ends, nodes)
        ],
    }


PASS = {"type": "custom", "function": "passing.py:passing", "params": {}}


@pytest.mark.parametrize(
    "pipeline, short",
    [
        (chain("m", "other"), True),
        (chain("m"), True),
        (chain(*["m"] * 6), False),
        (chain("m", "slow"), False),
        (chain("m", "unknown"), False),
        (chain("m", PASS), False),
        (chain("m", demultiply_count=3), False),
        (chain("m", {"type": "DL model", "model_name": "m", "version": 1}), True),
    ],
)
def test_pipelines_of_cheap_models_are_answered_by_the_loop(tmp_path, pipeline, short):
    (tmp_path / "passing.py").write_text(
        "def passing(inputs, params):\n    return {'y': inputs['x']}\n"
    )
    models = {
        "m": Recorder(),
        "other": Recorder(version=2),
        "slow": Recorder(SLOW),
        "unknown": Recorder({}),
    }
    (tmp_path / "config.json").write_text(
        json.dumps(config(*models, pipeline_config_list=[pipeline]))
    )
    server = serving.ModelServer(
        tmp_path / "config.json",
        load=lambda folder, model: models[model.name],
        list_versions=lambda base: {1: serving.Path(base) / "1"},
    )
    assert server.wait(10) and not server.readiness(), server.readiness()
    expected = np.array([1.0, 2.0, 5.0]).reshape(
        (3, 1, 1) if "demultiply_count" in pipeline else (3, 1)
    )
    with watched(server) as (address, loop), connected(address) as client:
        answer = ask(client, post({"inputs": expected.tolist()}, "/v1/models/p:predict"))
    assert (set(models["m"].threads) == {loop}) is short and (
        short or loop not in models["m"].threads
    )
    for node in pipeline["nodes"]:
        model = models.get(node.get("model_name"))
        expected = expected * 0.5 + model.version if model else expected
    assert answer == {"outputs": expected.tolist()}


def test_a_pipeline_whose_member_is_slow_in_a_new_version_leaves_the_loop(tmp_path):
    versions, made = {1}, {1: Recorder(), 2: Recorder(SLOW, version=2)}
    (tmp_path / "config.json").write_text(
        json.dumps(config("m", pipeline_config_list=[chain("m", "m")]))
    )
    server = serving.ModelServer(
        tmp_path / "config.json",
        load=lambda folder, model: made[int(folder.name)],
        list_versions=lambda base: {
            number: serving.Path(base) / str(number) for number in versions
        },
    )
    assert server.wait(10)
    with watched(server) as (address, loop), connected(address) as client:
        assert ask(client, post(row(4), "/v1/models/p:predict")) == {"predictions": [[2.5]]}
        versions.add(2)
        assert server.reload()[0] == 201
        assert ask(client, post(row(4), "/v1/models/p:predict")) == {"predictions": [[4.0]]}
    assert (
        made[1].threads == [loop, loop]
        and len(made[2].threads) == 2
        and loop not in made[2].threads
    )


def test_branches_of_a_short_pipeline_run_on_its_thread():
    models = {"m": Recorder(), "other": Recorder(version=2)}
    pipeline = chain("m", "other")
    pipeline["nodes"][1]["inputs"] = pipeline["nodes"][0]["inputs"]
    pipeline["outputs"] = [
        {name: {"node_name": name, "data_item": "y"}} for name in ("node 0", "node 1")
    ]
    with (
        watched(fake_server(models, pipeline_config_list=[pipeline])) as (address, loop),
        connected(address) as client,
    ):
        for _ in range(50):
            answer = ask(client, post({"inputs": [[4.0]]}, "/v1/models/p:predict"))
            assert answer == {"outputs": {"node 0": [[3.0]], "node 1": [[4.0]]}}
    assert {*models["m"].threads, *models["other"].threads} == {loop}


def test_a_name_is_decoded_once():
    models = {"mm": Recorder(), "m%6d": Recorder(SLOW, version=2)}
    with (
        watched(fake_server(models)) as (address, loop),
        connected(address) as client,
        connected(address) as other,
    ):
        assert ask(client, post(row(0), "/v1/models/m%256d:predict")) == {"predictions": [[2.0]]}
        assert ask(other, post(row(0), "/v1/models/m%6d:predict")) == {"predictions": [[1.0]]}
    assert loop not in models["m%6d"].threads and models["mm"].threads == [loop]


# --- what turns out to be long ---------------------------------------------------------------------------------


@pytest.fixture
def clocked(monkeypatch):
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(lane, "time", clock)
    available = {name: serving.Available({1: Recorder()}, {}) for name in ("m", "other")}
    return lane.Lane(SimpleNamespace(manager=SimpleNamespace(available=available))), clock


def test_three_long_ones_running_send_a_models_requests_to_the_threads_for_a_while(clocked):
    found, clock = clocked
    for _ in range(3):
        assert found.is_short("m", None)
        found.note("m", lane.SLOW_SECONDS)
    assert (
        not found.is_short("m", None)
        and not found.is_short("m", 1)
        and found.is_short("other", None)
    )
    clock.now += lane.PENALTY_SECONDS - 0.01
    assert not found.is_short("m", None)
    clock.now += 0.02
    assert found.is_short("m", None)
    for _ in range(2):
        found.note("m", 1.0)
    assert found.is_short("m", None), "strikes begin anew"
    found.note("m", 1.0)
    assert not found.is_short("m", None)


def test_quick_ones_between_forgive_but_not_one_for_two(clocked):
    found, _ = clocked
    for seconds in (1.0, 1.0, *[0.0001] * 8) * 5:
        found.note("m", seconds)
        assert found.is_short("m", None)
    for seconds in (1.0, 1.0):
        found.note("m", seconds)
        found.note("other", 0.0001)
    assert found.is_short("m", None)
    found.note("m", 1.0)
    assert not found.is_short("m", None), "quick ones of another model do not"
    for seconds in (1.0, 1.0, 0.0001) * 2:
        found.note("other", seconds)
    assert not found.is_short("other", None)


def test_a_model_that_has_become_slow_moves_to_the_workers():
    class Busy(Recorder):
        def answer(self, name, inputs):
            end = time.thread_time() + 2 * lane.SLOW_SECONDS
            while time.thread_time() < end:
                pass
            return super().answer(name, inputs)

    model = Busy()
    with watched(fake_server({"m": model})) as (address, loop), connected(address) as client:
        for number in range(6):
            assert ask(client, post(row(number))) == {"predictions": [[number / 2 + 1]]}
    assert model.threads[:4] == [loop] * 4 and loop not in model.threads[4:]


def test_a_machine_that_does_something_else_makes_no_model_slow():
    model = Recorder(seconds=2 * lane.SLOW_SECONDS)  # by the clock, not by the processor's time
    with watched(fake_server({"m": model})) as (address, loop), connected(address) as client:
        for number in range(6):
            assert ask(client, post(row(number))) == {"predictions": [[number / 2 + 1]]}
    assert set(model.threads) == {loop}


@pytest.mark.parametrize("piece", [0, 1, 100, "gone"])
def test_what_does_not_go_out_at_once_is_not_lost(monkeypatch, piece):
    tries, send = [], connections.Channel.send

    def hampered(self, data, do_close=True):
        tries.append(len(data))
        if len(tries) > 1:
            return send(self, data, do_close)
        if piece == "gone":
            raise OSError(errno.EHOSTUNREACH, "made to fail")
        return self.socket.send(data[:piece]) if piece else 0

    with listening(fake_server({"m": Recorder()})) as address, connected(address) as client:
        monkeypatch.setattr(connections.Channel, "send", hampered)
        for number in range(3):
            assert ask(client, post(row(number))) == {"predictions": [[number / 2 + 1]]}
    assert len(tries) == 4 and tries[1] == tries[0] - (piece if piece != "gone" else 0)


@contextlib.contextmanager
def turned(server, number):
    """A front whose turns are the test's own, and clients that are connected to it."""
    front = serving.listen(server, serving.create_app(server, eager=True), "127.0.0.1", 0)
    server.wait()
    with contextlib.ExitStack() as stack:
        stack.callback(wasyncore.close_all, front.sockets)
        stack.callback(front.finish, 0)
        clients = [
            stack.enter_context(connected(f"http://127.0.0.1:{front.port}")) for _ in range(number)
        ]
        until(lambda: front.turn(0.01) or len(front.channels()) == number)
        yield front, clients


def seen_by(monkeypatch):
    """What becomes of requests, in its order."""
    seen, send, note = [], connections.Channel.send_all, serving.note_request
    run = Recorder.call

    def noted(*given):
        seen.append("noted")
        note(*given)

    monkeypatch.setattr(
        Recorder, "call", lambda *given: seen.append("answered") or run(*given), raising=False
    )
    monkeypatch.setattr(
        connections.Channel, "send_all", lambda *given: seen.append("sent") or send(*given)
    )
    monkeypatch.setattr(serving, "note_request", noted)
    return seen


@pytest.mark.parametrize(
    "held, order",
    [
        (60, ["answered"] * 4 + ["sent"] * 4 + ["noted"] * 4),
        (-1, ["answered", "sent"] * 4 + ["noted"] * 4),
    ],
)
def test_answers_of_a_turn_are_sent_together_then_noted_and_none_is_held_for_long(
    monkeypatch, held, order
):
    monkeypatch.setattr(connections, "HELD_SECONDS", held)
    with turned(fake_server({"m": Recorder()}), 4) as (front, clients):
        seen = seen_by(monkeypatch)
        for number, client in enumerate(clients):
            client.sendall(post(row(number)))
        until(lambda: seen.count("noted") == 4 or front.turn(0.2))
        assert seen == order
        for number, client in enumerate(clients):
            assert f"[[{number / 2 + 1}]]".encode() in receive(client)


@pytest.mark.parametrize("held, together", [(60, 3), (-1, 100)], ids=["many", "late"])
def test_requests_are_noted_together_when_they_are_many_or_after_a_while(
    monkeypatch, held, together
):
    monkeypatch.setattr(connections, "NOTED_SECONDS", held)
    monkeypatch.setattr(connections, "NOTED_TOGETHER", together)
    with turned(fake_server({"m": Recorder()}), 1) as (front, (client,)):
        front.noted_at = time.monotonic()  # else the first turn is late
        seen = seen_by(monkeypatch)
        for _ in range(3):
            assert seen.count("noted") == (0 if held > 0 else seen.count("sent"))
            client.sendall(post(row(0)))
            until(lambda: select_readable(client) or front.turn(0))
            receive(client)
        assert seen.count("noted") == 3


def test_the_counts_that_are_asked_for_have_all_that_was_answered(monkeypatch):
    monkeypatch.setattr(connections, "NOTED_SECONDS", 60)
    with turned(fake_server({"m": Recorder()}), 2) as (front, (one, two)):
        front.noted_at = time.monotonic()
        send = front.send_answers
        # a worker answers before this turn ends
        monkeypatch.setattr(front, "send_answers", lambda: time.sleep(0.1) or send())
        for number in range(1, 4):
            one.sendall(post(row(0)))
            until(lambda: select_readable(one) or front.turn(0))
            receive(one)
            two.sendall(b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n")
            until(lambda: select_readable(two) or front.turn(0.01))
            found = json.loads(receive(two).partition(b"\r\n\r\n")[2])
            assert found["groups"]["m"]["requests"] == number, "and of no other thread's"


def test_only_the_loop_notes_what_it_has_answered(monkeypatch):
    """A worker that did so would take the list to which the loop adds."""
    ask = b"GET /stats HTTP/1.1\r\nHost: h\r\n\r\n"
    with turned(fake_server({"m": Recorder()}), 1) as (front, (client,)):
        threads, note = [], front.note_answered
        monkeypatch.setattr(
            front, "note_answered", lambda: threads.append(threading.get_ident()) or note()
        )
        client.sendall(2 * ask)
        got = b""
        while got.count(b"HTTP/1.1 200") < 2:
            front.turn(0.01)
            got += client.recv(1 << 20) if select_readable(client) else b""
    assert set(threads) == {threading.get_ident()}


@pytest.mark.parametrize("number", range(4))
def test_a_client_that_leaves_before_its_answer_is_sent_costs_no_other_theirs(monkeypatch, number):
    with turned(fake_server({"m": Recorder()}), 4) as (front, clients):
        leaving, send = clients[number], connections.Channel.send_all

        def left(channel, data):
            if str(number / 2 + 1).encode() in data:
                leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                leaving.close()
                time.sleep(0.05)
            send(channel, data)

        monkeypatch.setattr(connections.Channel, "send_all", left)
        for each, client in enumerate(clients):
            client.sendall(post(row(each)))
        others = [client for client in clients if client is not leaving]
        until(lambda: all(map(select_readable, others)) or front.turn(0.2))
        for each, client in enumerate(clients):
            if client is not leaving:
                assert f"[[{each / 2 + 1}]]".encode() in receive(client)
        assert front.server.state["metrics"].in_flight == 0


@pytest.mark.parametrize("extensions", [None, []], ids=["front", "plain"])
def test_a_path_in_waitresss_log_makes_no_line_of_its_own(monkeypatch, caplog, extensions):
    def left(channel, data):
        raise ClientDisconnected

    monkeypatch.setattr(HTTPChannel, "write_soon", left)
    caplog.set_level(logging.INFO)
    server = serving.ModelServer({"model_config_list": []}, extensions)
    with listening(server) as address:
        port = int(address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), 10) as client:
            client.sendall(b"GET /a%20b%0Aforged%1B[31m HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(100) == b""
    said = [one.getMessage() for one in caplog.records if one.name == "waitress"]
    assert said == ["Client disconnected while serving /a b%0Aforged%1B[31m"]


def test_a_path_of_a_request_that_fails_makes_no_line_of_its_own(caplog):
    call = serving.Call({"REQUEST_METHOD": "GET"}, "/a\nforged")
    serving.tell_unexpected(RuntimeError("made to fail"), call, serving.FULL)
    assert [one.getMessage() for one in caplog.records] == [
        f"{call.request_id}: GET /a%0Aforged failed"
    ]


def test_a_log_that_fails_stops_neither_the_loop_nor_what_follows():
    def fails(record):
        raise RuntimeError("made to fail")

    with turned(fake_server({"m": Recorder()}), 2) as (front, clients):
        serving.logger.addFilter(fails)
        try:
            for client in clients:
                client.sendall(post(row(4)))
            until(lambda: all(map(select_readable, clients)) or front.turn(0.2))
            until(lambda: not front.later or front.turn(0.2))
        finally:
            serving.logger.removeFilter(fails)
        assert all(b"[[3.0]]" in receive(client) for client in clients)
        with front.server.state["metrics"].counted() as numbers:
            assert numbers.total.requests == 2


def test_an_answer_that_cannot_be_kept_costs_its_connection_alone(monkeypatch):
    with turned(fake_server({"m": Recorder()}), 3) as (front, clients):
        send = connections.Channel.send_all

        def fails(channel, data):
            if b"[[2.0]]" in data:
                raise MemoryError("made to fail")
            send(channel, data)

        monkeypatch.setattr(connections.Channel, "send_all", fails)
        for number, client in enumerate(clients):
            client.sendall(post(row(2 * number)))
        until(lambda: all(map(select_readable, clients)) or front.turn(0.2))
        assert b"[[1.0]]" in receive(clients[0]) and b"[[3.0]]" in receive(clients[2])
        assert clients[1].recv(100) == b""


def test_a_hook_that_streams_is_framed_by_waitress():
    """A view of the server's own, whose answer a hook of the site's has replaced."""

    def streams(response):
        response.response = (b"a piece" for _ in range(2))
        del response.headers["Content-Length"]
        return response

    with turned(fake_server({"m": Recorder()}), 1) as (front, [client]):
        front.app.after_request(streams)
        client.sendall(post(row(4)))
        heard = read_turning(front, client)
    assert b"Transfer-Encoding: chunked" in heard and heard.count(b"Date: ") == 1
    assert heard.count(b"a piece") == 2 and heard.endswith(b"0\r\n\r\n")


def read_turning(front, client):
    """What a client hears until a chunked body has ended; the front is turned meanwhile."""
    heard, deadline = b"", time.monotonic() + 10
    client.settimeout(0.2)
    while not heard.endswith(b"\r\n0\r\n\r\n"):
        assert time.monotonic() < deadline, heard
        front.turn(0.05)
        with contextlib.suppress(TimeoutError):
            heard += receive(client)
    return heard


def test_the_last_answer_of_a_connection_is_sent_before_anything_can_close_it(monkeypatch):
    monkeypatch.setattr(connections.Front, "send_answers", lambda front: None)
    with turned(fake_server({"m": Recorder()}), 2) as (front, clients):
        clients[0].sendall(post(row(4), head="Connection: close\r\n"))
        clients[1].sendall(post(row(6)))
        until(lambda: front.answers or front.turn(0.2))
        assert b"[[3.0]]" in receive(clients[0])
        assert not select_readable(clients[1])


@pytest.mark.parametrize("head", ["", "Connection: keep-alive\r\n", "Connection: close\r\n"])
def test_a_line_feed_in_a_header_is_no_header(head):
    server = fake_server({"m": Recorder()})
    server.dressers.append(lambda *given: [("X-Odd", "a\r\nSet-Cookie: b")])
    with listening(server) as address, connected(address) as client:
        client.sendall(post(row(4), head=head))
        heard = receive(client)
    assert heard.startswith(b"HTTP/1.1 500 ") and b"Set-Cookie" not in heard


# --- the door before Flask --------------------------------------------------------------------------------------------


def passes_flask(app, path="/livez"):
    """Whether a request to one of the server's URLs goes through Flask."""
    seen, dispatch = [], app.dispatch_request
    app.dispatch_request = lambda *about: seen.append(1) or dispatch(*about)
    assert app.test_client().get(path).status_code == 200
    return bool(seen)


HOOKS = {
    "nothing": lambda app: None,
    "before": lambda app: app.before_request(lambda: None),
    "after": lambda app: app.after_request(lambda response: response),
    "teardown": lambda app: app.teardown_request(lambda error: None),
    "context": lambda app: app.teardown_appcontext(lambda error: None),
    "values": lambda app: app.url_value_preprocessor(lambda *about: None),
    "signal": lambda app: serving.signals.request_started.connect(app.keep, app),
    "a page": lambda app: app.add_url_rule("/livez", "mine", lambda: "mine"),
    "a limit": lambda app: app.config.update(MAX_CONTENT_LENGTH=10),
    "hosts": lambda app: app.config.update(TRUSTED_HOSTS=["localhost"]),
    "a kind of request": lambda app: setattr(
        app, "request_class", type("Own", (serving.Request,), {})
    ),
    "a kind of response": lambda app: setattr(
        app, "response_class", type("Own", (serving.Response,), {})
    ),
    "a session": lambda app: setattr(
        app, "session_interface", type("Own", (serving.SecureCookieSessionInterface,), {})()
    ),
}


@pytest.mark.parametrize("hook", HOOKS)
def test_an_app_with_guests_is_flasks(hook):
    app = serving.create_app(fake_server({"m": Recorder()}))
    app.keep = lambda sender, **about: None  # signals hold their receivers weakly
    HOOKS[hook](app)
    assert passes_flask(app) is (hook != "nothing")
    if hook == "a page":
        assert app.test_client().get("/livez").text == "mine"


def test_a_page_beside_the_servers_urls_is_found_and_an_unknown_url_says_where_the_models_are():
    app = serving.create_app(fake_server({"m": Recorder()}))
    app.add_url_rule("/about", "about", lambda: "about us")
    client = app.test_client()
    assert client.get("/about").text == "about us" and client.get("/livez").json == {
        "status": "live",
        "live": True,
    }
    assert "The models are listed at /v1/models" in client.get("/nowhere").json["error"]


def test_a_deployments_model_is_looked_up_at_each_request():
    for model in ("a", "b", "a"):
        deployment = SimpleNamespace(id="d", model=model, version=None, version_label=None)
        server = SimpleNamespace(config=SimpleNamespace(deployments=[deployment]), extensions=())
        assert serving.find_view(server, "POST", "/model-serving/d:predict").arguments == {
            "model": model,
            "verb": "predict",
        }


def test_the_limit_of_a_hosts_bodies_holds():
    site = Flask("site")
    site.config["MAX_CONTENT_LENGTH"] = 30
    site.register_blueprint(
        serving.create_blueprint(fake_server({"m": Recorder()})), url_prefix="/ml"
    )
    client = site.test_client()
    assert client.post("/ml" + P, data=json.dumps(row(4))).json == {"predictions": [[3.0]]}
    refused = client.post("/ml" + P, data=json.dumps(row(4)) + " " * 30)
    assert (
        refused.status_code == 413
        and refused.json["error"] == "Request body of 50 bytes is over the limit of 30"
    )


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


@pytest.mark.parametrize(
    "sent",
    [
        PREDICT[:20],
        PREDICT[:-5],
        PREDICT,
        PREDICT * 50,
        post(row(1), "/v1/models/slow:predict"),
        post(LARGE),
        PREDICT + OTHER[:-4],
    ],
)
def test_clients_that_vanish_harm_nobody(sent):
    with listening(fake_server({"m": Recorder(), "slow": Recorder(SLOW, seconds=0.02)})) as address:
        with connected(address) as steady:
            for attempt in range(10):
                with connected(address) as client:
                    client.sendall(sent)
                    if attempt % 2:
                        client.setsockopt(
                            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                        )
                assert ask(steady, post(row(attempt))) == {"predictions": [[attempt / 2 + 1]]}
        with connected(address) as client:
            assert ask(client, PREDICT) == {"predictions": [[3.0]]}
