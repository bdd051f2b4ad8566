"""waitress's connections, extended: stricter parsing, time-outs, and where a request is answered.

Parser      waitress's parser, which also refuses what RFC 9112 says to refuse
Channel     a connection, timed by a monotonic clock
Listener    a listening socket: accepts all waiting connections, pauses without file descriptors
Front       the loop: decides where a request is answered, and once a second which connections to
            close
"""

import contextlib
import functools
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any

from waitress.channel import ClientDisconnected, HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError, TransferEncodingNotImplemented
from waitress.proxy_headers import PROXY_HEADERS
from waitress.receiver import ChunkedReceiver
from waitress.server import TcpWSGIServer
from waitress.utilities import BadRequest, RequestEntityTooLarge

from .core import (
    Extension,
    OpenDoor,
    ServingError,
    Turn,
    Waitress,
    called_by,
    find_known,
    lines_together,
    path_of,
    reached_by,
)
from .lane import Lane
from .queueing import Dispatcher, Gate, TooMuch, refuse, task_of

logger = logging.getLogger("serving")

# ==================================================================================================
# Parser
# In: bytes of a connection. Out: requests; `error` is set on requests that must be refused.
# ==================================================================================================

HEAD_BYTES = 64 << 10  # the most for a request's head, and for the trailer after the last chunk
LARGE_BODY = 1 << 20  # bytes; the total of smaller bodies is limited by the number of connections
BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
FRAMING = re.compile(
    rb"\r\n(host|content-length|transfer-encoding)[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE
)
BLANKS = re.compile(rb"[ \t]{256}")
TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\x20-\x7e\x80-\xff\t]*")
TARGET = re.compile(r"/|https?://|\*$", re.IGNORECASE)
HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[\w.~%!$&'()*+,;=-]*)(?::[0-9]*)?", re.ASCII)


class Parser(HTTPRequestParser):
    """waitress's parser, with rules of RFC 9112 that waitress leaves out; `Front` sets `front`."""

    front: Any = None
    completed: bool
    error: Any
    body_rcv: Any
    refused: str | None = None  # why the request is turned away with 503
    short: Any = None  # a function of the environment that answers directly, bypassing WSGI
    checked = 0  # bytes of the body when `look_for_room` was called last

    def received(self, data: bytes) -> int:
        if self.body_rcv is None and not self.completed:
            before = self.header_plus[-3:]
            text = before + data
            end = text.find(b"\r\n\r\n")
            if BARE_LINE_FEED.search(text, len(before), end if end >= 0 else len(text)):
                # section 2.2
                self.error, self.completed = BadRequest("Bare LF found in HTTP message"), True
                return len(data)
        consumed = super().received(data)
        if self.error:  # the error is answered now; the client is not asked to continue
            self.expect_continue = False
        if isinstance(self.error, RequestEntityTooLarge):  # waitress names an option of its own
            most = self.adj.max_request_body_size
            own, ours = f"max_body of {most}", f"server.max_request_bytes of {most - 1}"
            self.error.body = self.error.body.replace(own, ours)
        came = self.body_bytes_received
        since = 0 if self.completed else self.checked  # once more when it is complete
        if self.chunked and not self.error and came > since + LARGE_BODY:
            self.checked = came
            self.look_for_room()
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        lengths: list[bytes] = []
        codings: list[bytes] = []
        hosts: list[bytes] = []
        of_name = {b"content-length": lengths, b"transfer-encoding": codings, b"host": hosts}
        for name, value in FRAMING.findall(header_plus):
            of_name[name.lower()].append(value.rstrip(b" \t"))
        if b"\r\n " in header_plus or b"\r\n\t" in header_plus:  # section 5.2
            raise ParsingError("Header lines must not be folded")
        if BLANKS.search(header_plus):  # waitress's pattern takes seconds for some 10,000 of them
            raise ParsingError("A header has very many blanks in a row")
        if any(not value.isdigit() or len(value) > 18 for value in lengths):
            raise ParsingError("Content-Length is invalid")
        super().parse_header(header_plus)
        check_framing(lengths, codings, self.version)
        check_host(hosts, self.version)
        check_target(self.request_uri)
        self.settle()

    def settle(self) -> None:
        """Apply what a valid head says about the connection and the body."""
        if not self.adj.trusted_proxy and not PROXY_HEADERS.isdisjoint(self.headers):
            for name in PROXY_HEADERS:  # without a trusted proxy the client made them up
                self.headers.pop(name, None)
        if "CONNECTION" in self.headers:
            options = [one.strip().lower() for one in self.headers["CONNECTION"].split(",")]
            if len(options) > 1 and "close" in options:  # it is a list (RFC 9110, 7.6.1)
                self.connection_close, self.headers["CONNECTION"] = True, "close"
        if self.chunked:
            most = self.adj.max_request_body_size - 1
            self.body_rcv = Chunks(self.body_rcv.getbuf(), most)
        elif not self.content_length:  # no body: waitress would read the next head as the body
            self.expect_continue = False
        if LARGE_BODY < self.content_length < self.adj.max_request_body_size:
            self.look_for_room()

    def look_for_room(self) -> None:
        if self.front is None:
            return
        most = self.front.server.config.server.max_queued_bytes
        if max(self.content_length, self.body_bytes_received) > most:  # it fits at no time
            self.error = RequestEntityTooLarge(f"exceeds server.max_queued_bytes of {most}")
            self.completed = True
        elif reason := self.front.no_room():
            self.error, self.completed = TooMuch(refuse(self.front, self, reason)), True


def check_framing(lengths: list[bytes], codings: list[bytes], version: str) -> None:
    """Refuse a body whose end two servers could see differently (RFC 9112, 6.1 and 6.3)."""
    if len(lengths) > 1:
        raise ParsingError("Content-Length stands twice")
    if lengths and codings:
        raise ParsingError("Content-Length and Transfer-Encoding exclude each other")
    names = [name.strip(b" \t").lower() for value in codings for name in value.split(b",")]
    if any(name and name != b"chunked" for name in names):
        raise TransferEncodingNotImplemented("Transfer-Encoding requested is not supported")
    if codings and names != [b"chunked"]:
        raise ParsingError("Transfer-Encoding is invalid")
    if codings and version != "1.1":
        raise ParsingError(f"Transfer-Encoding is not for HTTP/{version or '0.9'}")


def check_target(uri: str) -> None:
    """Refuse what is neither a path nor a URL, nor `*` (RFC 9112, 3.2)."""
    if not TARGET.match(uri):
        raise ParsingError("Request target is invalid")


def check_host(hosts: list[bytes], version: str) -> None:
    """Refuse a missing, doubled or impossible Host (RFC 9112, 3.2)."""
    if len(hosts) > 1:
        raise ParsingError("Host stands twice")
    if not hosts and version == "1.1":
        raise ParsingError("Host is missing")
    if any(not HOST.fullmatch(host) for host in hosts):
        raise ParsingError("Host is invalid")


class Chunks(ChunkedReceiver):
    """waitress's receiver of chunks of at most `most` bytes; checks size lines and the trailer like
    lines of a head.

    waitress itself scans an unfinished line again with each piece, so lines must be short, and it
    does not check the trailer at all.
    """

    error: Any  # a waitress error, or None

    def __init__(self, buffer: Any, most: int):
        super().__init__(buffer)
        self.most = most

    def received(self, data: bytes) -> int:
        consumed = super().received(data)
        if self.error is None and (problem := self.problem()):
            self.error = problem
            self.all_chunks_received = True
        return consumed

    def problem(self) -> Any:
        """What is wrong with the chunks received so far, or None."""
        if len(self.control_line) > HEAD_BYTES or len(self.trailer) > HEAD_BYTES:
            return BadRequest(f"Chunk size or trailer exceeds {HEAD_BYTES} bytes")
        if self.chunk_remainder > self.most:
            return RequestEntityTooLarge(f"exceeds server.max_request_bytes of {self.most}")
        if BARE_LINE_FEED.search(self.trailer) or BARE_LINE_FEED.search(self.control_line):
            return BadRequest("Bare LF found in chunks")
        if not self.completed or self.trailer == b"\r":  # empty: its CR LF was split in two
            return None
        if any(line and not TRAILER.fullmatch(line) for line in self.trailer.split(b"\r\n")):
            return BadRequest("Invalid trailer")
        return None


# ==================================================================================================
# Channel
# In: an accepted socket. Out: complete requests, handed to `Front`; answers, sent.
# ==================================================================================================


class Channel(HTTPChannel):
    """A connection. Times are of `time.monotonic`; only the loop's thread writes them."""

    front: "Front"
    task_class = staticmethod(task_of)
    reading = False  # received data is being parsed
    whole = False  # a first request was completed while `reading`
    gathered: list[bytes] | None = None  # the answer's bytes during `answer_here`, else None
    turn = Turn()  # of the first request, once that is complete
    arriving: Any = None  # a request that is only partly received ...
    arriving_since = 0.0  # ... and the time when it began
    sending_since = 0.0  # since when the client has an answer to read; 0 if it has none
    sent_bytes = 0  # since `sending_since`
    sent_at = 0.0  # when some bytes of the answer were sent last
    active_at = 0.0  # when the connection was last in use; 0 before the first data

    def handle_read(self) -> None:
        """Parse what has arrived, and only then handle a complete request: `received` holds a lock
        that answering needs.
        """
        self.reading = True
        super().handle_read()
        self.reading = False
        self.active_at = time.monotonic()
        if self.request is not self.arriving:
            self.arriving, self.arriving_since = self.request, self.active_at
        if self.whole:
            self.whole = False
            self.front.see_to(self)
        if self.front.answers and time.monotonic() > self.front.held_since + HELD_SECONDS:
            self.front.send_answers()

    def handle_write(self) -> None:
        """waitress's, but not while a worker sends: both would send the same bytes of the buffer.

        The loop calls it again.
        """
        if self.outbuf_lock.acquire(False):
            try:
                super().handle_write()
            finally:
                self.outbuf_lock.release()

    def answer_here(self) -> None:
        """Answer the only request on the loop's thread.

        The answer is collected, and sent in one piece at the end of the loop's turn.
        """
        self.gathered = []
        try:
            self.service()
        finally:
            gathered, self.gathered = self.gathered, None
        self.front.keep(self, b"".join(gathered))

    def write_soon(self, data: Any) -> int:
        if self.gathered is None:
            return super().write_soon(data)
        self.gathered.append(data)
        return len(data)

    def send_all(self, data: bytes) -> None:
        """Send what the socket takes at once; the rest, and any error, is left to `write_soon`."""
        sent = 0
        if self.connected and not self.total_outbufs_len:
            with contextlib.suppress(OSError):
                sent = self.send(data, do_close=False)
        if sent < len(data):
            with contextlib.suppress(ClientDisconnected):
                self.write_soon(data[sent:])

    def send(self, data: bytes, do_close: bool = True) -> int:
        sent = super().send(data, do_close=do_close)
        self.sent_bytes += sent
        if sent:
            self.sent_at = time.monotonic()
        return sent

    def is_alone(self) -> bool:
        """Whether there is exactly one request, complete, and no unsent answer.

        A short answer then fits into the buffer, so this thread cannot block on its own sending.
        """
        return len(self.requests) == 1 and self.request is None and not self.total_outbufs_len

    def is_overdue(self, now: float, options: Any) -> str:
        """Why the connection must be closed, or ""."""
        if self.total_outbufs_len or self.requests or not self.active_at:
            self.active_at = now
        if (
            self.arriving
            and now - self.arriving_since
            > options.receive_seconds + self.arriving.body_bytes_received / SLOWEST
        ):
            return f"a request has not fully arrived after {now - self.arriving_since:.0f} s"
        if not self.total_outbufs_len:
            self.sending_since = 0.0
        elif not self.sending_since:
            self.sending_since, self.sent_bytes, self.sent_at = now, 0, now
        elif self.is_unread(now, options.send_seconds):
            return f"an answer has not been read after {now - self.sending_since:.0f} s"
        return "idle" if now - self.active_at > IDLE_SECONDS else ""

    def is_unread(self, now: float, seconds: float) -> bool:
        """Whether the client reads nothing for `seconds`, or on average less than SLOWEST.

        Sent bytes may still be unread: the system buffers some MB of an answer.
        """
        if now - self.sent_at > seconds:
            return True
        return now - self.sending_since > seconds + self.sent_bytes / SLOWEST


SLOWEST = 64 << 10  # bytes a second
IDLE_SECONDS = 120


# ==================================================================================================
# Listener
# In: an address. Out: channels.
# ==================================================================================================

REST_SECONDS = 1.0  # how long nothing is accepted after an accept has failed


class Listener(TcpWSGIServer):
    """A listening socket. `front` is set by `Front`."""

    front: "Front"
    resting_until = said_at = float("-inf")

    def add_task(self, channel: Channel) -> None:
        """Called by waitress when a channel's first request is complete.

        The channel's lock is held, by the loop's thread or by a worker.
        """
        channel.turn = Turn(time.perf_counter())
        if channel.reading and threading.get_ident() == self.front.thread:
            channel.whole = True
        else:
            self.front.see_to(channel, here=False)

    def readable(self) -> bool:
        return super().readable() and time.monotonic() >= self.resting_until

    def handle_accept(self) -> None:
        """Accept all waiting connections: waitress accepts only one per turn of its loop, and
        serves all other connections in the same turn.
        """
        room = self.adj.connection_limit - len(self._map)
        for known in range(len(self.active_channels), len(self.active_channels) + max(room, 1)):
            super().handle_accept()
            if len(self.active_channels) == known:
                return

    def accept(self) -> Any:
        """waitress's, but after a failure (no file descriptors left) it pauses REST_SECONDS.

        The loop would otherwise call it again at once, and log the failure each time.
        """
        try:
            return super().accept()
        except OSError as error:
            now = time.monotonic()
            self.resting_until = now + REST_SECONDS
            if now > self.said_at + 60:
                self.said_at = now
                logger.warning("A connection cannot be accepted: %s", error.strerror)
            return None

    def maintenance(self, now: float) -> None:
        """Do nothing: `Front.sweep` closes idle connections, by a monotonic clock."""

    def pull_trigger(self) -> None:
        if threading.get_ident() != self.front.thread:  # the loop's own thread is awake
            super().pull_trigger()


# ==================================================================================================
# Front
# In: a server and the addresses it listens on. Out: each request to the lane, to the worker
# threads, or refused.
# ==================================================================================================

HELD_SECONDS = 0.01  # how long an answer may wait, to be sent with others of the same turn
# How many answered requests, and how long, may wait to be counted and logged together: code that
# runs several times in a row is in the processor's cache, and the log is written once.
NOTED_TOGETHER, NOTED_SECONDS = 32, 0.01


class Front(Waitress):
    """waitress's loop over its listeners, with a fair queue (Dispatcher), a gate that refuses
    requests, and a lane that bypasses the queue.
    """

    def __init__(self, server: Any, app: Any, **adjustments: Any):
        self.server = server
        self.thread = 0  # the id of the loop's thread
        self.swept_at = self.held_since = self.noted_at = 0.0
        self.answers: list[tuple[Channel, bytes]] = []  # of this turn, not sent yet
        self.later: list[Callable[[], None]] = []  # count and log, once the answers are sent
        options = server.config.server
        self.dispatcher = Dispatcher(options.threads)
        self.gate = Gate(lambda: self.server.config.server, self.dispatcher, server.refused)
        self.lane = Lane(server)
        # with a trusted proxy, waitress puts a middleware before the application: no bypassing
        self.app = None if "trusted_proxy" in adjustments else app
        server.waiting, server.place_of = self.dispatcher, self.dispatcher.place_of
        parser = type("Parser", (Parser,), {"front": self})
        channel = type("Channel", (Channel,), {"front": self, "parser_class": parser})
        kind = type("Listener", (Listener,), {"front": self, "channel_class": channel})
        super().__init__(
            app,
            kind,
            self.dispatcher,
            max_request_header_size=HEAD_BYTES,
            log_socket_errors=False,
            **adjustments,
        )

    def turn(self, seconds: float = 0.5) -> None:
        """Run the loop once, then send the answers that it made."""
        self.thread = threading.get_ident()
        super().turn(min(seconds, NOTED_SECONDS) if self.later else seconds)
        self.send_answers()
        now = time.monotonic()
        if len(self.later) >= NOTED_TOGETHER or now > self.noted_at + NOTED_SECONDS:
            self.note_answered()
            self.noted_at = now
        if now >= self.swept_at + 1:
            self.swept_at = now
            self.sweep(now)

    def finish(self, seconds: float) -> None:
        super().finish(seconds)
        self.note_answered()

    def see_to(self, channel: Channel, here: bool = True) -> None:
        """Handle a channel's first request: refuse it if there are too many, answer it on this
        thread if `here` and if it is short, else queue it for a worker.
        """
        if not channel.requests:  # the connection is being closed
            return
        request, alone = channel.requests[0], here and channel.is_alone()
        found = self.find(request)
        line = self.line_of(request, found)
        request.refused = self.gate.refusal(line)
        if request.refused:
            self.note_refused(found)
        if alone and request.refused:
            channel.answer_here()
        elif alone and self.lane.takes(request, found):
            door = getattr(self.app, "wsgi_app", None)
            if isinstance(door, OpenDoor):  # not if somebody has wrapped it in a middleware
                path = path_of(request.request_uri)
                request.short = functools.partial(door.answer, path=path, found=found)
            turn, turn.later = channel.turn, self.later
            self.lane.answer(channel, line)
            turn.later = None
        else:
            if here:  # not on a worker's thread, which adds the next request of its connection
                self.note_answered()  # this one may ask for the counts
            self.let_wait(channel, "health" if request.refused else line, found)

    def let_wait(self, channel: Channel, line: str, found: Any) -> None:
        try:
            self.dispatcher.add(channel, line)
        except ServingError as error:
            channel.requests[0].refused = self.gate.note("threads", str(error))
            self.note_refused(found)
            # pipelined requests cannot be answered on this thread
            channel.answer_here() if channel.is_alone() else channel.cancel()

    def note_refused(self, found: Any) -> None:
        """Note what a refused request would have called, for its graph."""
        self.server.not_called.update(called_by(self.server, found))

    def keep(self, channel: Channel, data: bytes) -> None:
        """Keep an answer until the turn ends; the last answer of a connection is sent at once."""
        if channel.close_when_flushed:
            channel.send_all(data)
            return
        if not self.answers:
            self.held_since = time.monotonic()
        self.answers.append((channel, data))

    def send_answers(self) -> None:
        """Send all answers of this turn together: a client woken earlier would take CPU time from
        the requests that are already waiting.
        """
        answers, self.answers = self.answers, []
        for channel, data in answers:
            try:
                channel.send_all(data)
            except Exception:
                channel.handle_error()

    def note_answered(self) -> None:
        """Count and log the requests that the lane has answered."""
        later, self.later = self.later, []
        with lines_together() if len(later) > 1 else contextlib.nullcontext():
            for note in later:
                # a filter or a handler of the site's may raise; nobody waits for it
                with contextlib.suppress(Exception):
                    note()

    def find(self, request: Any) -> Any:
        """The entry of the URL table that a request selects.

        None for an invalid request, and for a URL that is not the server's own.
        """
        if request.error:
            return None
        with contextlib.suppress(Exception):  # even an extension's: the view raises it again
            return find_known(self.server, request.command.upper(), path_of(request.request_uri))
        return None

    def line_of(self, request: Any, found: Any) -> str:
        """The line in which a request waits: its route's line, or the model or handler that it
        reaches.
        """
        if request.error or request.command.upper() == "OPTIONS":  # a preflight asks no model
            return "health"
        if found is None:
            return "other"
        return found.route.line or reached_by(self.server, found)

    # --- what is held ---------------------------------------------------------------------------

    def channels(self) -> list[Channel]:
        return [
            channel
            for listener in self.listeners
            for channel in list(listener.active_channels.values())
        ]

    def held(self) -> int:
        """Bytes of all bodies, received or announced, and of what they were unpacked to."""
        return self.server.unpacked.held + sum(
            max(request.content_length, request.body_bytes_received)
            for channel in self.channels()
            for request in (*channel.requests, channel.request)
            if request
        )

    def no_room(self) -> str | None:
        """Why the body of a request that has begun to arrive does not fit; None when it does."""
        if self.held() <= self.server.config.server.max_queued_bytes:
            return None
        return self.gate.note(
            "bytes", "other requests use all the memory that max_queued_bytes allows"
        )

    def sweep(self, now: float) -> None:
        """Close connections that are idle, or whose clients take too long to send or to read."""
        for channel in self.channels():
            if reason := channel.is_overdue(now, self.server.config.server):
                logger.log(
                    logging.DEBUG if reason == "idle" else logging.INFO,
                    "A connection is cut: %s",
                    reason,
                )
                # at once: a worker that waits for the client to read would wait for ever
                channel.handle_close()


def serve(server: Any, app: Any, adjustments: dict[str, Any]) -> Front:
    # `Parser` removes proxy headers itself, unless waitress is to trust them.
    clear = "trusted_proxy" in adjustments
    return Front(server, app, clear_untrusted_proxy_headers=clear, **adjustments)


EXTENSION = Extension("front", serve=serve)
