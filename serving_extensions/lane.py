"""The lane: requests that are known to be short are answered by the thread that reads sockets.

A request for a cheap model costs less than handing it to another thread: Python's threads take
turns, and with many connections the turns cost more than the answers. Only what can neither wait
nor take long is taken.
"""

import re
import time
from typing import Any

from .core import SHORT_SECONDS, is_plain_json, view_infer

SHORT_BYTES = 16 << 10  # of a body
SLOW_SECONDS = 0.005  # of the processor's time: requests that take this long ...
STRIKES = 3  # ... so many times running ...
SUSPICION = 0.5  # of a strike: the first, of which only the clock tells
PENALTY_SECONDS = 10.0  # ... send those for their model to the worker threads for so long
SIGNATURE = re.compile(rb'"signature_name"\s*:\s*"([\x20-\x7e]*?)"')
# headers of bodies that are more, or other, than they seem
UNPACKED = frozenset({"CONTENT_ENCODING", "X_TENSOR_SHAPE"})


class Lane:
    """Tells which requests are short, and answers them.

    Used by the thread that reads sockets alone.
    """

    def __init__(self, server: Any):
        self.server = server
        self.strikes: dict[str, float] = {}  # model -> how many of its latest requests took long
        # model -> until when its requests go to the worker threads
        self.late: dict[str, float] = {}

    def takes(self, request: Any, found: Any) -> bool:
        """Whether a request asks for a small predict of a cheap, loaded model, in JSON,
        and nothing that may wait.
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
        if self.server.config.auth.protect == "all":  # quotas wait
            return False
        body = peek_body(request)
        signature = name_signature(body) if is_plain_json(body) else None
        if signature is None:
            return False
        return self.is_short(found.arguments["model"], found.arguments.get("version"), signature)

    def is_short(self, model: str, version: int | None, signature: str = "serving_default") -> bool:
        """Whether a version that is there now, the highest for None, answers in a moment."""
        if self.late and time.monotonic() < self.late.get(model, 0.0):
            return False
        available = self.server.manager.available.get(model)
        if available is None:
            return False
        servable = available.versions.get(max(available.versions) if version is None else version)
        return servable is not None and servable.seconds_of(signature) < SHORT_SECONDS

    def answer(self, channel: Any, model: str) -> None:
        """Answer a request here, and note how long that took.

        The processor's time is looked at, which costs microseconds, once one was long by the clock.
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
        """Learn which models are short only by their looks: with very many rows, or with other
        input than was tried.

        Once tells nothing: it may be the first of its shape. By the processor's time, which
        neighbours do not change. Each short one makes up for a quarter of a long one.
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
    """The signature that a body asks for; None where only a parser can tell."""
    number = body.count(b"signature_name")
    named = SIGNATURE.findall(body) if number else []
    if len(named) != number or number > 1:
        return None
    return named[0].decode() if named and named[0] else "serving_default"


def peek_body(request: Any) -> bytes:
    """A request's body, left to be read again."""
    stream = request.get_body_stream()
    body = stream.read()
    stream.seek(0)
    return body
