"""The queue of requests that wait for a worker thread, and the refusal of requests beyond limits.

    Dispatcher   the worker threads and their fair queue: models take turns, and no model can hold
                 all threads
    Gate         answers 503 at once if a request would wait too long, or its body would not fit
    RefusalTask  writes that 503

A request belongs to a `line`: the model or handler that it reaches, whatever name the URL uses.
Lines of `KEPT` (health, metrics and the page; states) never wait behind other lines.
"""

import collections
import email.utils
import functools
import logging
import operator
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress.task import Task, WSGITask
from waitress.utilities import Error

from .core import (
    BARE,
    Call,
    ServingError,
    dress,
    log_safely,
    path_of,
    start_thread,
    status_line,
    to_reply,
)

logger = logging.getLogger("serving")

# ==================================================================================================
# Dispatcher
# In: channels whose first request is complete. Out: `channel.service()` in a thread, in turn.
# ==================================================================================================

KEPT = ("health", "state")  # one thread is reserved for these lines
MOST_QUEUES = 1000  # lines whose pace is remembered; a limit, since clients can invent names


class Dispatcher:
    """waitress's worker threads, which get the channels of `Listener`.

    Each line is first come, first served, and the lines take turns. A line may hold three quarters
    of the threads, and all lines together all but one: a model that hangs or is slow leaves threads
    for other models, and for health checks. The thread that became idle last is woken first, so
    that only as many threads are used as are needed: each holds some MB of buffers.
    """

    def __init__(self, threads: int):
        self.threads = threads
        self.most_of_all = max(1, threads - 1)
        self.most = max(1, min(self.most_of_all - 1, 3 * threads // 4))
        self.lock = threading.Lock()  # guards all fields below
        self.waiting: collections.OrderedDict[str, collections.deque[Any]] = (
            collections.OrderedDict()
        )
        self.running: collections.Counter[str] = collections.Counter()
        self.pace: dict[str, Pace] = {}
        self.idle: list[threading.Lock] = []  # one lock per idle thread; its release wakes it
        self.workers: list[threading.Thread] = []
        self.ending = False

    def __len__(self) -> int:
        return sum(map(len, list(self.waiting.values())))

    def add(self, channel: Any, line: str) -> None:
        """Queue a channel in a line, and wake or start a thread for it.

        Raises ServingError if there is no worker thread and none can be started.
        """
        with self.lock:
            self.waiting.setdefault(line, collections.deque()).append(channel)
            if self.next_line() is None:
                return
            if self.idle:
                self.idle.pop().release()
            elif len(self.workers) < self.threads:
                name = f"serving-worker-{len(self.workers)}"
                try:
                    self.workers.append(start_thread(name, self.work))
                except ServingError:
                    if not self.workers:
                        del self.waiting[line]
                        raise

    def next_line(self) -> str | None:
        """The next line in turn that has a waiting channel and may use one more thread, or None."""
        full = self.running.total() - sum(self.running[line] for line in KEPT) >= self.most_of_all
        free = (
            line
            for line in self.waiting
            if line in KEPT or not full and self.running[line] < self.most
        )
        return next(free, None)

    def take(self) -> tuple[str, Any] | None:
        """Take the next channel in turn, and its line; None if none may run now."""
        line = self.next_line()
        if line is None:
            return None
        channel = self.waiting[line].popleft()
        if self.waiting[line]:
            self.waiting.move_to_end(line)
        else:
            del self.waiting[line]
        self.running[line] += 1
        self.pace.setdefault(line, Pace()).begin(self.running[line])
        return line, channel

    def work(self) -> None:
        """A worker thread: serve channels while there are any, then wait to be woken."""
        bell = threading.Lock()
        bell.acquire()
        while not self.ending:
            with self.lock:
                taken = self.take()
                if taken is None:
                    self.idle.append(bell)
            if taken is None:
                bell.acquire()
            else:
                self.serve(*taken)
                del taken  # else the channel's memory is held until the next one comes

    def serve(self, line: str, channel: Any) -> None:
        turn = channel.turn  # kept here: the connection's next request replaces it
        try:
            channel.service()
        # Our own views raise nothing, but a host site's may, and its client must not wait for ever.
        except BaseException as error:
            channel.will_close = True
            channel.server.pull_trigger()
            log_safely(logging.ERROR, "A request failed in its thread", error=error)
        finally:
            self.end(line, turn.waited)

    def end(self, line: str, waited: bool) -> None:
        """Note that a request of a line is answered; `waited`: its model had to be loaded first."""
        with self.lock:
            self.running[line] -= 1
            self.pace[line].end(waited)
            if not self.running[line]:
                del self.running[line]
            if len(self.pace) > MOST_QUEUES:
                self.pace = {line: self.pace[line] for line in self.running}

    def ahead(self, line: str) -> int:
        """How many requests of a line wait or run."""
        return len(self.waiting.get(line, ())) + self.running[line]

    def place_of(self, request_id: str) -> int:
        """The place in its line, from 1, of the request with this X-Request-Id; 0 if not queued."""
        with self.lock:
            lines = [list(line) for line in self.waiting.values()]
        for line in lines:
            for place, channel in enumerate(line, 1):
                waiting = list(channel.requests)
                if waiting and waiting[0].headers.get("X_REQUEST_ID") == request_id:
                    return place
        return 0

    def shutdown(self, timeout: float = 5) -> bool:
        """End the threads after their current request, and cancel waiting channels; False if some
        threads still run after `timeout` seconds.
        """
        with self.lock:
            self.ending = True
            waiting = [channel for line in self.waiting.values() for channel in line]
            self.waiting.clear()
            for bell in self.idle:
                bell.release()
            self.idle.clear()
        for channel in waiting:
            channel.cancel()
        deadline = time.monotonic() + timeout
        for worker in self.workers:
            worker.join(max(0.0, deadline - time.monotonic()))
        return not any(worker.is_alive() for worker in self.workers)


class Pace:
    """How fast a line moves: a moving average of the seconds between answers while it is busy.

    Requests that waited for their model to load are left out: the next ones will not have to.
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


# ==================================================================================================
# Gate
# ==================================================================================================


class Gate:
    """Refuses requests that would wait too long.

    `options` returns the config's `server`; `refused` counts refusals by reason.
    """

    def __init__(
        self, options: Callable[[], Any], turns: Dispatcher, refused: collections.Counter[str]
    ):
        self.options, self.turns, self.refused = options, turns, refused
        self.said = 0.0

    def refusal(self, line: str) -> str | None:
        """Why a complete request of a line is refused; None if it may be queued."""
        if line in KEPT or not self.turns.waiting and not self.turns.running:
            return None
        options = self.options()
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
            logger.warning(
                "Busy: requests are refused with 503 (%d so far): %s", self.refused.total(), text
            )
        return text


class TooMuch(Error):
    """waitress's error for a body for which the other requests' bodies leave no room; its own body
    is the whole refusal.
    """

    code, reason = 503, "Service Unavailable"

    def to_response(self, ident: Any = None) -> tuple[str, list[tuple[str, str]], bytes]:
        return self.body


def refuse(
    front: Any, request: Any, reason: str, turn: Any = None
) -> tuple[str, list[tuple[str, str]], bytes]:
    """Status, headers and body of a request's refusal, in the form of its URL's other errors."""
    environ = {f"HTTP_{name}": value for name, value in request.headers.items()}
    environ |= {"REQUEST_METHOD": request.command, "serving.turn": turn}
    call, found = Call(environ, path_of(request.request_uri)), front.find(request)
    text = f"The server is busy: {reason}. Try again in a moment"
    replied = to_reply(ServingError(text, "UNAVAILABLE"), call, found.envelope if found else BARE)
    replied = dress(front.server, call, replied)
    return status_line(replied.status), replied.head(), replied.body


def task_of(channel: Any, request: Any) -> Task:
    """waitress's task for a request: a refusal, or the application."""
    if request.refused:
        return RefusalTask(channel, request)
    return ShortTask(channel, request) if request.short else AnswerTask(channel, request)


class AnswerTask(WSGITask):
    """waitress's task for a request that the application answers; the environ gets its turn."""

    def get_environment(self) -> dict[str, Any]:
        environ = super().get_environment()
        environ["serving.turn"] = self.channel.turn
        return environ


class ShortTask(AnswerTask):
    """waitress's task for a request of the lane: bypasses WSGI if the app is not wrapped."""

    own = False  # whether `short` made the answer: complete and of known length

    def execute(self) -> None:
        replied = self.request.short(self.get_environment())
        if replied is None:
            super().execute()
            return
        self.own = self.complete = True
        self.status = status_line(replied.status)
        self.response_headers, self.content_length = replied.head(), len(replied.body)
        if CONTROLS.search("".join(map("".join, self.response_headers))):
            raise ValueError("a header of the answer has a line feed")
        self.write(replied.body)

    def build_response_header(self) -> bytes:
        """waitress's, but written directly, which is faster, if the connection stays open."""
        connection = self.request.headers.get("CONNECTION", "").lower()
        if not self.own or self.version != "1.1" or connection not in ("", "keep-alive"):
            return super().build_response_header()
        told = ("Server", "serving"), ("Date", spell_date(int(self.start_time)))
        headers = sorted([*self.response_headers, *told], key=NAME)
        fields = [f"{name}: {value}" for name, value in headers]
        return "\r\n".join([f"HTTP/1.1 {self.status}", *fields, "\r\n"]).encode("latin-1")


NAME = operator.itemgetter(0)
CONTROLS = re.compile(r"[\r\n]")


@functools.lru_cache(1)
def spell_date(second: int) -> str:
    return email.utils.formatdate(second, usegmt=True)


class RefusalTask(Task):
    """waitress's task for a refused request; the connection stays open for the next one."""

    complete = True

    def execute(self) -> None:
        request, channel = self.request, self.channel
        answer = refuse(channel.front, request, request.refused, channel.turn)
        self.status, self.response_headers, body = answer
        self.content_length = len(body)
        self.write(b"" if request.command.upper() == "HEAD" else body)
