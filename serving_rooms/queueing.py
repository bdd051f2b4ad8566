"""Whose turn it is, and who is turned away: the requests that wait for one of waitress's threads.

    Turns    waitress's queue, fair: models take turns, and none can hold all threads
    Gate     503 at once for what would wait too long, or would not fit
    Task     the answer to what is turned away

A request belongs to a `line`: the model, deployment or handler that it asks for. What asks for none (states, metrics, the
page) has the line "", for which a thread is always kept.
"""

import collections
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

from waitress.task import Task
from waitress.utilities import Error

from serving import CURRENT, request_id_of

logger = logging.getLogger("serving")

LINE = re.compile(r"/v1/models/([^/:]+)|(/[^/]*(?:/[^/]*)?)", re.IGNORECASE)


def line_of(request: Any) -> str:
    """The line of a request as waitress has parsed it, by its URL."""
    if request.error or request.command in ("GET", "HEAD", "OPTIONS"):
        return ""
    match = LINE.match(request.path)
    return (match[1] or match[2]) if match else ""


# ======================================================================================================
# Turns
# ======================================================================================================


class Job:
    """A connection whose first request waits for a thread."""

    def __init__(self, turns: "Turns", channel: Any, line: str):
        self.turns, self.channel, self.line = turns, channel, line

    def service(self) -> None:
        CURRENT.waited = False
        try:
            self.channel.service()
        finally:
            self.turns.end(self.line, CURRENT.waited)

    def cancel(self) -> None:
        self.channel.cancel()


class Turns:
    """Stands in for the deque in waitress's dispatcher, which holds its lock whenever it looks at it.

    Each line is first come, first served, and the lines take turns. A line may hold three quarters of the threads, and all
    lines together all but one: a model that hangs or is slow leaves threads for others, and for those who ask how things are.
    """

    def __init__(self, dispatcher: Any, threads: int):
        self.dispatcher = dispatcher
        self.most_of_all = max(1, threads - 1)
        self.most = max(1, min(self.most_of_all - 1, 3 * threads // 4))
        self.waiting: collections.OrderedDict[str, collections.deque[Job]] = collections.OrderedDict()
        self.running: collections.Counter[str] = collections.Counter()
        self.pace: dict[str, Pace] = {}

    def append(self, channel: Any) -> None:
        line = line_of(channel.requests[0])
        self.waiting.setdefault(line, collections.deque()).append(Job(self, channel, line))

    def next_line(self) -> str | None:
        """The line whose turn it is, of those that wait and may have one more thread."""
        full = self.running.total() - self.running[""] >= self.most_of_all
        return next((line for line in self.waiting if not line or not full and self.running[line] < self.most), None)

    def __bool__(self) -> bool:
        return self.next_line() is not None

    def __len__(self) -> int:
        return sum(map(len, list(self.waiting.values())))

    def popleft(self) -> Job:
        line = self.next_line()
        if line is None:  # at the end, when all that waits is cancelled
            line = next(iter(self.waiting))
        job = self.waiting[line].popleft()
        if self.waiting[line]:
            self.waiting.move_to_end(line)
        else:
            del self.waiting[line]
        self.running[line] += 1
        self.pace.setdefault(line, Pace()).begin(self.running[line])
        return job

    def end(self, line: str, waited: bool = False) -> None:
        """A thread has answered a request of a line, which may have waited for its model to load."""
        with self.dispatcher.lock:
            self.running[line] -= 1
            self.pace[line].end(waited)
            if not self.running[line]:
                del self.running[line]
            if len(self.pace) > MOST_LINES:
                self.pace = {line: self.pace[line] for line in self.running}
            self.dispatcher.queue_cv.notify()

    def ahead(self, line: str) -> int:
        """How many requests of a line wait or run."""
        return len(self.waiting.get(line, ())) + self.running[line]


MOST_LINES = 1000  # that are remembered: anybody can ask for anything


class Pace:
    """How fast a line moves: the seconds from one answer to the next while there is work, a moving average.

    What has waited for a model to load tells nothing of the next ones, and is left out.
    """

    def __init__(self) -> None:
        self.seconds, self.since, self.known = 0.0, 0.0, False

    def begin(self, running: int) -> None:
        if running == 1:
            self.since = time.monotonic()

    def end(self, waited: bool = False) -> None:
        now = time.monotonic()
        gap, self.since = now - self.since, now
        if waited:
            return
        self.seconds = 0.9 * self.seconds + 0.1 * gap if self.known else gap
        self.known = True


# ======================================================================================================
# Gate
# ======================================================================================================


class Gate:
    """Turns requests away that would wait too long. `options` is the config's `server`; `refused` counts by reason."""

    def __init__(self, options: Callable[[], Any], turns: Turns, refused: collections.Counter[str]):
        self.options, self.turns, self.refused = options, turns, refused
        self.said = 0.0

    def refusal(self, request: Any) -> str | None:
        """Why a request that has come whole is turned away; None lets it wait its turn. One without a line is never turned away."""
        options, line = self.options(), line_of(request)
        if not line:
            return None
        if len(self.turns) >= options.max_queued_requests:
            return self.note("queue", f"{len(self.turns)} requests wait already")
        pace = self.turns.pace.get(line)
        wait = (self.turns.ahead(line) + 1) * pace.seconds if pace else 0.0
        if wait > options.max_queue_seconds and self.turns.ahead(line) > 1:
            return self.note("wait", f"an answer would take about {wait:.2g} s")
        return None

    def note(self, reason: str, text: str) -> str:
        self.refused[reason] += 1
        if time.monotonic() > self.said + 1:
            self.said = time.monotonic()
            logger.warning("Busy: requests are turned away, %d until now: %s", self.refused.total(), text)
        return text


class TooMuch(Error):
    """waitress's error for a body that does not fit beside those that are there."""

    code, reason = 503, "Service Unavailable"

    def to_response(self, ident: Any = None) -> tuple[str, list[tuple[str, str]], bytes]:
        return refuse(self.body, None)


def refuse(reason: str, request_id: str | None) -> tuple[str, list[tuple[str, str]], bytes]:
    """Status, headers and body of a refusal; `request_id` is the one that the client has sent."""
    body = json.dumps({"error": f"The server is busy: {reason}. Try again in a moment"}).encode()
    headers = [("Content-Type", "application/json"), ("Retry-After", "1"), ("Content-Length", str(len(body))),
               ("X-Request-Id", request_id_of(request_id))]
    return "503 Service Unavailable", headers, body


class RefusalTask(Task):
    """waitress's task for a request that is turned away; the connection stays open for the next one."""

    complete = True

    def execute(self) -> None:
        self.status, headers, body = refuse(self.channel.refused, self.request.headers.get("X_REQUEST_ID"))
        self.response_headers.extend(headers)
        self.content_length = len(body)
        self.write(body)


