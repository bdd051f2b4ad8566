"""waitress's own thread answers what is known to be short; all else goes to its worker threads.

A request for a cheap model costs less than handing it to another thread: Python's threads take turns, and with many
connections the turns cost more than the answers. `Front` decides request by request; `attach` puts it between waitress's
channels and its threads, through the two seams that waitress has for it (the server's dispatcher and its `channel_class`).
"""

import collections
import contextlib
import functools
import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

from flask import Flask, Request, Response, signals
from flask.sessions import SecureCookieSessionInterface
from waitress.buffers import OverflowableBuffer
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.proxy_headers import PROXY_HEADERS
from waitress.receiver import FixedStreamReceiver
from waitress.task import WSGITask
from waitress.utilities import build_http_date
from werkzeug.datastructures import EnvironHeaders
from werkzeug.routing import MapAdapter

from serving import CURRENT
from serving_rooms.queueing import Gate, RefusalTask, TooMuch, Turns

KNOWN_FLASK = metadata.version("flask").startswith("3.1.")  # whose contexts App makes; another Flask makes them itself
if KNOWN_FLASK:
    from flask.ctx import RequestContext
    from flask.globals import _cv_app, _cv_request

logger = logging.getLogger("serving")

PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/([0-9]{1,19}))?:predict")
SHORT_SECONDS = 0.0005  # of a call with one row, measured at the warm-up
LONG_SECONDS = 0.005  # requests that take this long ...
STRIKES = 3  # ... so many times running ...
PENALTY_SECONDS = 10.0  # ... send those like them to the threads for so long
SHORT_BYTES = 16 << 10  # of a body
AWAKE_SECONDS = 0.0002 if len(os.sched_getaffinity(0)) > 1 else 0.0  # after a short answer; a client may need the only core


class Front:
    """Tells which requests are short, and which fit. One per listening server; used by the thread that reads sockets alone."""

    def __init__(self, server: Any, listeners: list[Any], gate: Gate | None = None):
        self.server, self.listeners, self.gate, self.thread = server, listeners, gate, 0
        self.awake_until = 0.0  # of time.perf_counter()
        self.strikes: dict[str, int] = {}  # path -> how many of its latest requests took long
        self.late: dict[str, float] = {}  # path -> until when it goes to the threads

    def is_short(self, request: Any) -> bool:
        """Whether a request that has come whole asks for a small predict of a cheap, loaded model, and nothing that may wait."""
        if request.error or request.command != "POST" or request.chunked or request.content_length > SHORT_BYTES:
            return False
        match = PREDICT.fullmatch(request.path)
        if match is None or self.late and time.monotonic() < self.late.get(request.path, 0.0):
            return False
        if self.server.config.auth.protect == "all" or "CONTENT_ENCODING" in request.headers:  # quotas wait; gzip hides much
            return False
        found = self.server.manager.available.get(match[1])
        servable = found.versions.get(int(match[2]) if match[2] else max(found.versions)) if found else None
        return servable is not None and servable.call_seconds < SHORT_SECONDS

    def is_awake(self) -> bool:
        """Whether waitress's loop should not sleep: a client often asks again before a thread that goes to sleep would have been woken."""
        return time.perf_counter() < self.awake_until

    def note(self, path: str, seconds: float) -> None:
        """Learn which requests are short only by their looks: a model that has become slow, or very many rows.

        Once tells nothing: a machine that does something else for a moment makes any request long.
        """
        if seconds < LONG_SECONDS:
            if self.strikes:
                self.strikes.pop(path, None)
            return
        self.strikes[path] = self.strikes.get(path, 0) + 1
        if self.strikes[path] >= STRIKES:
            self.strikes.pop(path)
            self.late = {old: until for old, until in self.late.items() if until > time.monotonic()}
            self.late[path] = time.monotonic() + PENALTY_SECONDS

    def channels(self) -> list[Any]:
        return [channel for listener in self.listeners for channel in listener.active_channels.values()]

    def held(self) -> int:
        """Bytes of the bodies that are there or announced."""
        return sum(max(request.content_length, request.body_bytes_received)
                   for channel in self.channels() for request in (*channel.requests, channel.request) if request)

    def no_room(self) -> str | None:
        """Why the body of a request that has just begun to arrive does not fit; None when it does."""
        if self.held() <= self.server.config.server.max_queued_bytes:
            return None
        reason = "bodies of other requests hold all the memory there is for them"
        return self.gate.note("bytes", reason) if self.gate else reason

    def sweep(self, now: float) -> None:
        """Cut connections whose request takes too long to arrive; and, where bodies of unknown length have become too much, those."""
        options = self.server.config.server
        full = self.held() > options.max_queued_bytes
        for channel in self.channels():
            request, since = channel.request, channel.arriving_since
            if request and since and now - since > options.receive_seconds + request.body_bytes_received / SLOWEST:
                logger.info("A request that has not come whole after %.0f s is given up", now - since)
                channel.will_close = True
            if full and request and request.chunked:
                logger.warning("A request in chunks is given up: bodies hold more than max_queued_bytes")
                channel.will_close = True


SLOWEST = 64 << 10  # bytes a second
LARGE_BODY = 1 << 20  # bytes; smaller ones are bounded by the number of connections
MOST_HEADS, MOST_HEAD_BYTES = 512, 4096
HEAD = ("command", "request_uri", "version", "proxy_scheme", "proxy_netloc", "path", "query", "fragment", "url_scheme",
        "connection_close", "expect_continue", "content_length")  # what waitress's parser finds in a head
heads: dict[bytes, tuple[dict[str, Any], dict[str, str]]] = {}


class Parser(HTTPRequestParser):
    """waitress's parser, which parses a head once: clients send the same one again and again, but for their bodies."""

    front: Front | None = None  # set by `attach`
    headers: dict[str, str]
    headers_seen: dict[str, str] | None = None  # the same object for the same head

    def parse_header(self, header_plus: bytes) -> None:
        self.parse_head(header_plus)
        if self.content_length > LARGE_BODY and self.front and (reason := self.front.no_room()):
            self.error, self.completed = TooMuch(reason), True

    def parse_head(self, header_plus: bytes) -> None:
        known = heads.get(header_plus)
        if known is None:
            super().parse_header(header_plus)
            for name in PROXY_HEADERS:  # what a client says of itself; waitress, left to itself, takes them out at each request
                self.headers.pop(name, None)
            if self.chunked and "CONTENT_LENGTH" in self.headers:  # RFC 9112, 6.3: read in two ways by two servers, it smuggles requests
                raise ParsingError("Content-Length and Transfer-Encoding exclude each other")
            if not self.chunked and len(header_plus) <= MOST_HEAD_BYTES:
                if len(heads) >= MOST_HEADS:
                    heads.clear()
                heads[header_plus] = {name: getattr(self, name) for name in HEAD}, dict(self.headers)
            return
        self.take_head(known)
        if self.content_length > 0:
            self.body_rcv = FixedStreamReceiver(self.content_length, OverflowableBuffer(self.adj.inbuf_overflow))

    def take_head(self, known: tuple[dict[str, Any], dict[str, str]]) -> None:
        self.__dict__.update(known[0])
        self.headers_seen = known[1]
        self.headers = dict(known[1])

    def take_whole(self, data: bytes) -> bool:
        """Read a small request that came in one packet, with a known head and a body; False, and nothing is read, where it did not."""
        end = data.find(b"\r\n\r\n") + 4
        known, length = heads.get(data[:end]), len(data) - end
        if known is None or known[0]["content_length"] != length or known[0]["expect_continue"] or length > SHORT_BYTES:
            return False
        if not 0 < length < self.adj.max_request_body_size:
            return False
        self.take_head(known)
        self.header_bytes_received, self.body_bytes_received = end, length
        self.headers_finished = self.completed = True
        self.body_rcv = WholeBody(data[end:])
        return True


class WholeBody(io.BytesIO):
    """waitress's receiver of a body that is there."""

    def getfile(self) -> "WholeBody":
        return self

    getbuf = getfile

    def __len__(self) -> int:
        return self.getbuffer().nbytes


class ShortTask(WSGITask):
    """waitress's task for an answer that is there as a whole: the same bytes, written at once."""

    def service(self) -> None:
        if self.version != "1.1" or "CONNECTION" in self.request.headers:
            super().service()
            return
        started: list[Any] = []
        answer = self.channel.server.application(self.get_environment(), lambda *call: started.extend(call))
        try:
            body = b"".join(answer)
        finally:
            if close := getattr(answer, "close", None):
                close()
        head = self.spell_head(started[0], started[1])
        self.wrote_header = True
        self.channel.send_now(head + body)

    def get_environment(self) -> dict[str, Any]:
        """What waitress makes of a head, for a head that it has known for one connection, made once."""
        known = getattr(self.channel, "environ_of", None)
        if known is None or known[0] is None or known[0] is not self.request.headers_seen:
            environ = super().get_environment()
            self.channel.environ_of = self.request.headers_seen, dict(environ)
            return environ
        return known[1] | {"wsgi.input": self.request.get_body_stream()}

    def spell_head(self, status: str, headers: list[tuple[str, str]]) -> bytes:
        """The head as waitress's build_response_header spells it."""
        names, values = zip(*headers, ("Server", self.channel.server.adj.ident), ("Date", date_of(int(time.time()))))
        text = head_of(names).format(status, *values)
        if text.count("\n") != len(names) + 2 or text.count("\r") != len(names) + 2:
            raise ValueError("carriage return/line feed character present in header")
        return text.encode("latin-1")


@functools.lru_cache(64)
def head_of(names: tuple[str, ...]) -> str:
    """The pattern of a head with these headers, sorted by name as by waitress: {0} is the status, {1} the first's value."""
    places = {place: "-".join(word.capitalize() for word in name.split("-")) for place, name in enumerate(names, 1)}
    lines = [f"{name}: ".replace("{", "{{").replace("}", "}}") + f"{{{place}}}"
             for place, name in sorted(places.items(), key=lambda item: item[1])]
    return "\r\n".join(["HTTP/1.1 {0}", *lines, "", ""])


@functools.lru_cache(1)
def date_of(second: int) -> str:
    return build_http_date(second)


class KnownAdapter(MapAdapter):
    """A URL's adapter that remembers what it matches."""

    found: Any = None

    def match(self, *arguments: Any, **options: Any) -> Any:
        if arguments or options != {"return_rule": True}:
            return super().match(*arguments, **options)
        if self.found is None:
            self.found = super().match(return_rule=True)
        return self.found[0], dict(self.found[1])


# What of an environ a request's own attributes and its adapter are made from.
MAKINGS = ("HTTP_HOST", "PATH_INFO", "REQUEST_METHOD", "QUERY_STRING", "SCRIPT_NAME", "wsgi.url_scheme", "SERVER_NAME", "SERVER_PORT",
           "HTTP_UPGRADE", "HTTP_CONNECTION")
OWN = ("environ", "headers", "remote_addr")  # what each request has for itself
SIGNALS = (signals.appcontext_pushed, signals.request_started, signals.request_finished, signals.request_tearing_down,
           signals.appcontext_tearing_down, signals.appcontext_popped)
PLAIN_HEADERS = {"Content-Type", "Content-Length", "X-Request-Id", "Vary", "Access-Control-Allow-Origin"}


class App(Flask):
    """Flask, which reads a URL once, and leaves out hooks, signals and a session where nobody has any."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.known: dict[tuple, tuple[dict[str, Any], KnownAdapter]] = {}  # a request's attributes and its adapter
        self.plain_views: dict[int, Callable] = {}  # by id: a view need not be hashable

    def is_plain(self) -> bool:
        """Whether nothing is to be done around a view. Asked at each request: a site may add to the app at any time."""
        return KNOWN_FLASK and not (
            self.before_request_funcs or self.after_request_funcs or self.teardown_request_funcs or self.teardown_appcontext_funcs
            or self.url_value_preprocessors or self.config["SECRET_KEY"] or type(self.session_interface) is not SecureCookieSessionInterface
            or any(signal.receivers for signal in SIGNALS))

    def ensure_sync(self, func: Callable) -> Callable:
        """Flask's, which looks into a view at each request for what does not change."""
        if self.plain_views.get(id(func)) is func:
            return func
        made = super().ensure_sync(func)
        if made is func and any(func is view for view in self.view_functions.values()):
            self.plain_views[id(func)] = func
        return made

    def request_context(self, environ: Any) -> "RequestContext":
        """Flask's; for a URL and a host met before, from what it has made of them: rules do not change after the first request."""
        key = tuple(map(environ.get, MAKINGS))
        known = self.known.get(key) if KNOWN_FLASK and self.request_class is Request else None  # a site's own may differ each time
        if known is None:
            context = super().request_context(environ)
            self.remember(key, context)
            return context
        request = object.__new__(Request)
        request.__dict__.update(known[0], environ=environ, headers=EnvironHeaders(environ), remote_addr=environ.get("REMOTE_ADDR"))
        environ["werkzeug.request"] = request
        context = object.__new__(RequestContext)
        context.app, context.request, context.url_adapter, context.flashes, context._session = self, request, known[1], None, None
        context._after_request_functions, context._cv_tokens = [], []
        return context

    def remember(self, key: tuple, context: "RequestContext") -> None:
        bound = context.url_adapter
        if not self._got_first_request or type(bound) is not MapAdapter or sum(len(part or "") for part in key) >= MOST_HEAD_BYTES:
            return
        adapter = KnownAdapter(self.url_map, bound.server_name, bound.script_name, bound.subdomain, bound.url_scheme, bound.path_info,
                               bound.default_method, bound.query_args)
        adapter.websocket = bound.websocket
        if len(self.known) >= MOST_HEADS:
            self.known.clear()
        self.known[key] = {name: value for name, value in vars(context.request).items() if name not in OWN}, adapter

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        """What Flask's own does, in its order."""
        if not self.is_plain() or "werkzeug.debug.preserve_context" in environ:
            return super().wsgi_app(environ, start_response)
        self._got_first_request = True
        app_context, context = self.app_context(), self.request_context(environ)
        app_token, token = _cv_app.set(app_context), _cv_request.set(context)
        context._cv_tokens.append((token, app_context))
        context._session = self.session_interface.make_null_session(self)
        try:
            try:
                context.match_request()
                response = self.answer(context)
            except Exception as error:
                response = self.handle_exception(error)
            return send_plainly(response, environ, start_response)
        finally:
            if "files" in vars(context.request) or type(context.request) is not Request:  # what Werkzeug's has to close
                context.request.close()
            environ["werkzeug.request"] = None
            _cv_request.reset(token)
            _cv_app.reset(app_token)

    def answer(self, context: "RequestContext") -> Response:
        asked: Any = context.request
        try:
            if asked.routing_exception is not None or getattr(asked.url_rule, "provide_automatic_options", True):
                answer: Any = self.dispatch_request()
            else:  # the view, without a look for the request through Flask's proxy
                answer = self.ensure_sync(self.view_functions[asked.url_rule.endpoint])(**asked.view_args)
        except Exception as error:
            answer = self.handle_user_exception(error)
        if type(answer) is self.response_class and not context._after_request_functions:
            return answer
        return self.finalize_request(answer)


def send_plainly(response: Response, environ: Any, start_response: Any) -> Any:
    """Send a response as Werkzeug does, which looks for what is never there in the answer to a predict."""
    headers, parts = response.headers.to_wsgi_list(), response.response
    names = {name for name, _ in headers}
    if (type(parts) is not list or len(parts) != 1 or type(parts[0]) is not bytes or response.status_code != 200
            or environ["REQUEST_METHOD"] == "HEAD" or response.direct_passthrough or response._on_close
            or "Content-Length" not in names or not names <= PLAIN_HEADERS):
        return response(environ, start_response)
    start_response(response.status, headers)
    return parts


class Channel(HTTPChannel):
    """A connection that may answer on the thread that reads it. `front` is set by `attach`."""

    front: Front
    reading = set_aside = False
    refused: str | None = None  # why its first request is turned away
    arriving_since = 0.0  # when a request began to arrive that has not come whole

    def handle_read(self) -> None:
        """Read what has come; answer it here if it is short. (Answering inside `received` would wait for a lock it holds.)"""
        self.reading = True
        self.front.thread = threading.get_ident()
        super().handle_read()
        while self.set_aside:
            self.answer_here()
        self.arriving_since = 0.0 if self.request is None else self.arriving_since or time.monotonic()
        self.reading = False
        if self.total_outbufs_len and not self.requests:
            self.handle_write()

    def received(self, data: bytes) -> bool:
        """waitress's, but for what it need not look at in pieces. (The lock: a worker may be at the end of the request before.)"""
        if self.request is None:
            request = self.parser_class(self.adj)
            with self.requests_lock:
                free = not (self.requests or self.will_close or self.close_when_flushed)
                if free and request.take_whole(data):
                    self.requests.append(request)
                    self.server.add_task(self)
                    return True
        return super().received(data)

    def send_now(self, data: bytes) -> None:
        """Send an answer of this thread without a buffer; what does not go out at once goes the way of all answers, errors as well."""
        sent = 0
        if self.connected and not self.total_outbufs_len:
            with contextlib.suppress(OSError):
                sent = self.send(data, do_close=False)
        if sent < len(data):
            self.write_soon(data[sent:])

    def answer_here(self) -> None:
        self.set_aside, refused = False, self.refused
        path, start = self.requests[0].path, time.perf_counter()
        self.task_class = RefusalTask if refused else ShortTask
        self.service()
        self.task_class, self.refused = WSGITask, None
        if not refused:
            end = time.perf_counter()
            self.front.note(path, end - start)
            self.front.awake_until = end + AWAKE_SECONDS


def maintain(front: Front, close_idle: Any, now: float) -> None:
    """waitress's own care for idle connections, and that of `front`; once a second."""
    close_idle(now)
    front.sweep(time.monotonic())


def accept_waiting(listener: Any, accept: Any) -> None:
    """Accept all connections that wait: waitress accepts one in each turn of its loop, and in a turn all others are answered."""
    room = listener.adj.connection_limit - len(listener._map)
    for known in range(len(listener.active_channels), len(listener.active_channels) + max(room, 1)):
        accept()
        if len(listener.active_channels) == known:
            return


def wake_latest(condition: Any) -> None:
    """Let `notify` wake the thread that has waited least: as many threads work as are needed, not all of them in turn.

    Each keeps some MB of the large bodies that it has read: with 32 threads and bodies of 2 MB that was a tenth of all memory.
    """
    waiters = getattr(condition, "_waiters", None)
    if not isinstance(waiters, collections.deque):  # it is not public
        return

    def notify(count: int = 1) -> None:
        waiters.rotate(count)
        threading.Condition.notify(condition, count)
    condition.notify = notify


def attach(server: Any, listeners: list[Any], dispatcher: Any) -> Front:
    """Answer short requests, and those that are turned away, on the thread that runs waitress's loop; the others take turns.

    Returns what decides, whose `is_awake` the loop asks.
    """
    CURRENT.alone = True  # this thread's calls cannot be joined: it answers one after the other
    wake_latest(dispatcher.queue_cv)
    turns = dispatcher.queue = Turns(dispatcher, server.config.server.threads)
    refused = server.metrics.refused if server.metrics else collections.Counter()
    gate, add_task = Gate(lambda: server.config.server, turns, refused), dispatcher.add_task
    front = Front(server, listeners, gate)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # it would say so at each request

    def choose(channel: Any) -> None:
        here = threading.get_ident() == front.thread and channel.reading
        if here and front.is_short(channel.requests[0]):
            channel.set_aside = True
        elif here and (reason := gate.refusal(channel.requests[0])):
            channel.set_aside, channel.refused = True, reason
        else:
            add_task(channel)
    dispatcher.add_task = choose
    channel_class = type("Channel", (Channel,), {"front": front, "parser_class": type("Parser", (Parser,), {"front": front})})
    for listener in listeners:
        listener.channel_class = channel_class
        listener.maintenance = functools.partial(maintain, front, listener.maintenance)
        listener.handle_accept = functools.partial(accept_waiting, listener, listener.handle_accept)
        wake = listener.pull_trigger
        listener.pull_trigger = lambda wake=wake: None if threading.get_ident() == front.thread else wake()
    return front
