"""The lane: requests that are known to be short are answered by the thread that reads sockets.

Answering a request for a cheap model costs less than handing it to a worker thread: with many
connections, switching threads under the GIL costs more than the answers. Only requests that can
neither block nor take long are answered here.
"""

import re
import time
from typing import Any

from .core import SHORT_SECONDS, is_plain_json, view_infer

SHORT_BYTES = 16 << 10  # the largest body
SLOW_SECONDS = 0.005  # of CPU time: a request that takes as long is a strike against its model
STRIKES = 3  # after so many strikes a model's requests go to the worker threads ...
SUSPICION = 0.5  # strikes for a first slow request, of which only the wall-clock time is known
PENALTY_SECONDS = 10.0  # ... for so long
SIGNATURE = re.compile(rb'"signature_name"\s*:\s*"([\x20-\x7e]*?)"')
# headers of bodies that unpack to more bytes, or are not JSON
UNPACKED = frozenset({"CONTENT_ENCODING", "X_TENSOR_SHAPE"})


class Lane:
    """Decides which requests are short, and answers them.

    Only the thread that reads sockets uses it, so it needs no lock.
    """

    def __init__(self, server: Any):
        self.server = server
        self.strikes: dict[str, float] = {}  # model -> strikes of its latest requests
        # model -> the time until which its requests go to the worker threads
        self.late: dict[str, float] = {}

    def takes(self, request: Any, found: Any) -> bool:
        """Whether a request is a small JSON predict of a cheap, loaded model, and nothing in it
        can block.
        """
        if (
            found is None
            or found.route.view is not view_infer
            or found.arguments["verb"] != "predict"
        ):
            return False
        if request.chunked or request.content_length > SHORT_BYTES or "label" in found.arguments:
            return False
        if not UNPACKED.isdisjoint(request.headers):
            return False
        if self.server.config.auth.protect == "all":  # checking a quota may block
            return False
        body = peek_body(request)
        signature = name_signature(body) if is_plain_json(body) else None
        if signature is None:
            return False
        return self.is_short(found.arguments["model"], found.arguments.get("version"), signature)

    def is_short(self, model: str, version: int | None, signature: str = "serving_default") -> bool:
        """Whether a loaded version (None: the highest) is known to answer quickly."""
        if self.late and time.monotonic() < self.late.get(model, 0.0):
            return False
        available = self.server.manager.available.get(model)
        if available is None:
            return False
        servable = available.versions.get(max(available.versions) if version is None else version)
        return servable is not None and servable.seconds_of(signature) < SHORT_SECONDS

    def answer(self, channel: Any, model: str) -> None:
        """Answer a request on this thread, and note how long it took.

        CPU time costs microseconds to read, so it is read only for models with strikes.
        """
        watched, began = model in self.strikes, time.perf_counter()
        busy = time.thread_time() if watched else 0.0
        channel.answer_here()
        seconds = time.perf_counter() - began
        if seconds < SLOW_SECONDS:
            self.note(model, seconds)
        elif watched:
            self.note(model, time.thread_time() - busy)
        else:
            self.strikes[model] = SUSPICION

    def note(self, model: str, seconds: float) -> None:
        """Learn which models are slower than their warm-up showed: with very many rows, or with
        other input than was tried.

        One slow request proves nothing: it may be the first of its shape. CPU time is used, since
        other processes do not change it. Each short request takes back a quarter of a strike.
        """
        if seconds < SLOW_SECONDS:
            if model in self.strikes:
                self.strikes[model] -= 0.25
                if self.strikes[model] <= 0:
                    del self.strikes[model]
            return
        self.strikes[model] = self.strikes.get(model, 0.0) + 1
        if self.strikes[model] < STRIKES:
            return
        del self.strikes[model]
        now = time.monotonic()
        self.late = {other: until for other, until in self.late.items() if until > now}
        self.late[model] = now + PENALTY_SECONDS


def name_signature(body: bytes) -> str | None:
    """The signature that a body asks for; None if only a JSON parser can tell."""
    number = body.count(b"signature_name")
    named = SIGNATURE.findall(body) if number else []
    if len(named) != number or number > 1:
        return None
    return named[0].decode() if named and named[0] else "serving_default"


def peek_body(request: Any) -> bytes:
    """A request's body; the stream is rewound, so that it can be read again."""
    stream = request.get_body_stream()
    body = stream.read()
    stream.seek(0)
    return body
