"""Python functions behind URLs: `handlers` in the config and `@server.endpoint`."""

import contextlib
import contextvars
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .core import (
    FULL,
    HANDLER_PATH,
    HUB,
    BadRequest,
    Call,
    Config,
    ConfigError,
    Envelope,
    Extension,
    Found,
    HTTPStatus,
    LoadError,
    ModelServer,
    Outcome,
    Reply,
    Route,
    Row,
    ServingError,
    Trace,
    Workers,
    is_taken,
    log_safely,
    logger,
    parse_form,
    parse_json,
    read_body,
    reply,
    result_within,
)
from .handlers import Handler, HandlerError, check_function
from .results import Answer, to_answer

# For streams: makes nginx pass each part on at once instead of gathering the whole answer.
UNBUFFERED = ("X-Accel-Buffering", "no")


@dataclass(frozen=True)
class Context:
    """What a function may know of a call: its second argument.

    `server.predict(...)` and the like call served models as part of this call.
    """

    key: str
    headers: Mapping[str, str]
    request_id: str
    server: "Asked"


class Asked:
    """The server for a function that answers a call: what it asks is part of that call, shares
    its deadline and appears in its line of the log. All else is the ModelServer's.
    """

    TRACED = ("classify", "lease", "metadata", "predict", "predict_image", "regress")

    def __init__(self, server: ModelServer, trace: Trace):
        self._server, self._trace = server, trace

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._server, name)
        return functools.partial(found, trace=self._trace) if name in self.TRACED else found


@dataclass(frozen=True)
class Endpoint:
    """A function behind a URL.

    `wanted` is the config's envelope; None leaves it to the function's mark.
    """

    path: str
    handler: Handler
    methods: tuple[str, ...] = ("POST",)
    wanted: Envelope | None = None
    timeout_seconds: float | None = None
    # where calls with a time limit run
    pool: Workers | None = field(default=None, compare=False)

    @property
    def envelope(self) -> Envelope:
        """How its bodies, answers and errors are wrapped."""
        marked = getattr(self.handler.function, "envelope", None)
        return self.wanted or (marked if isinstance(marked, Envelope) else FULL)


def find_envelope(server: ModelServer, name: str | None) -> Envelope | None:
    """An envelope by its name in a config; None for None. Raises ValueError for other names."""
    if name is None:
        return None
    known = {"none": FULL}
    for extension in reversed(server.extensions):  # the first wins
        known |= extension.envelopes
    if name not in known:
        raise ValueError(f"expected one of {', '.join(sorted(known))}, got '{name}'")
    return known[name]


CALLED_BY = {"GET", "POST", "PUT", "PATCH", "DELETE"}  # as the option `methods` takes them


def declare(
    server: ModelServer, path: str, function: Callable, methods: Sequence[str], envelope: str | None
) -> Endpoint:
    """An endpoint from Python, ready at once.

    It replaces an earlier one of its path, as a notebook's cell does that runs again. Raises
    ServingError for a path or envelope that no config takes, HandlerError for the function.
    """
    if isinstance(methods, str) or not methods or not CALLED_BY.issuperset(methods):
        text = (
            f"endpoint methods: expected a list of {', '.join(sorted(CALLED_BY))}, got {methods!r}"
        )
        raise ServingError(text, "INVALID_ARGUMENT")
    if not isinstance(path, str) or not re.fullmatch(HANDLER_PATH, path):
        raise ServingError(
            "endpoint path: expected something like /alice/caption, and no part . or .., got "
            f"{path!r}",
            "INVALID_ARGUMENT",
        )
    if is_taken(server.extensions, path):
        raise ServingError(tell_taken(path), "INVALID_ARGUMENT")
    try:
        wanted = find_envelope(server, envelope)
    except ValueError as error:
        raise ServingError(f"envelope: {error}", "INVALID_ARGUMENT") from None
    handler = Handler(function, ".")
    handler.load()
    refuse_shared_paths(server.config, {path: function})
    if path in server.endpoints:
        before = name_function(server.endpoints[path].handler.function)
        logger.warning("Endpoint %s: %s replaces %s", path, name_function(function), before)
    return Endpoint(path, handler, tuple(methods), wanted)


def name_function(function: Any) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{getattr(function, '__module__', '')}.{name}"


def refuse_shared_paths(config: Config, functions: Mapping[str, Any]) -> None:
    """Raise ConfigError for a path that a config's handler shares with a function from Python."""
    for index, handler in enumerate(config.handlers):
        if handler.path in functions:
            other = name_function(functions[handler.path])
            text = f"'{handler.path}' is the path of {other} as well, by @server.endpoint"
            raise ConfigError(f"$.handlers[{index}].path", text)


def view_endpoint(server: ModelServer, call: Call, endpoint: Endpoint) -> Reply:
    """Run the function for POST, or what `methods` names.

    Any other GET loads it if needed and says `ready`.
    """
    if server.manager.stopped:
        raise ServingError("The server is stopping", "UNAVAILABLE")
    if call.method not in endpoint.methods:
        if call.method != "GET":
            methods = ", ".join(dict.fromkeys(("GET", *endpoint.methods)))
            text = f"Method {call.method} is not allowed here; this URL takes {methods}"
            allow = {"Allow": methods}
            raise ServingError(text, "INVALID_ARGUMENT", HTTPStatus.METHOD_NOT_ALLOWED, allow)
        load_handler(server, endpoint, call.trace.remaining(), again=True)
        return reply(endpoint.envelope.wrap({"status": "ready", "path": endpoint.path}))
    if not endpoint.handler.ready:
        load_handler(server, endpoint, call.trace.remaining())
    asked = Asked(server, call.trace)
    context = Context(call.caller.name, dict(call.headers), call.request_id, asked)
    try:
        value = read_value(server, call, endpoint.envelope)
        answer = to_answer(run_handler(endpoint, value, context))
    except HandlerError as error:
        raise ServingError(f"The answer of {endpoint.path} cannot be sent: {error}") from error
    return write_reply(server, call, endpoint, answer)


def write_reply(server: ModelServer, call: Call, endpoint: Endpoint, answer: Answer) -> Reply:
    """A handler's answer as a reply; the envelope wraps only JSON with a status below 400."""
    if answer.stream is not None:
        stream = limit_stream(server, call, endpoint, answer.stream)
        headers = answer.headers
        if UNBUFFERED[0].lower() not in (name.lower() for name, _ in headers):
            headers = (*headers, UNBUFFERED)
        return Reply(b"", answer.status, answer.content_type, headers, stream)
    if answer.data is not None:
        return Reply(answer.data, answer.status, answer.content_type, answer.headers)
    good = answer.status < 400
    written = reply(endpoint.envelope.wrap(answer.value) if good else answer.value, answer.status)
    return written.with_headers(*answer.headers)


def limit_stream(
    server: ModelServer, call: Call, endpoint: Endpoint, parts: Iterator[bytes]
) -> Iterator[bytes]:
    """A stream within the bytes and the time that an answer may take.

    Beyond them it breaks off, and the client sees an incomplete transfer.
    """
    sent, most = 0, server.config.server.max_unpacked_bytes
    try:
        for part in parts:
            sent += len(part)
            if sent > most:
                raise ServingError(f"{endpoint.path}: a stream of more than {most} bytes")
            if call.trace.remaining() <= 0:
                raise ServingError(f"{endpoint.path}: the stream took longer than the timeout")
            if part:
                yield part
    except Exception:
        logger.exception("%s: %s: the stream broke off", call.request_id, endpoint.path)
        raise
    finally:
        close = getattr(parts, "close", None)
        if close is not None:
            close()


REIMPORT_SECONDS = 5.0  # calls do not retry a failed import sooner


def load_handler(
    server: ModelServer, endpoint: Endpoint, seconds: float, again: bool = False
) -> None:
    """Have the loader import the function's module, unless it is ready; `again`: even if that
    has just failed.
    """
    handler = endpoint.handler
    if handler.ready:
        return
    if again or is_worth_a_try(handler):
        job = functools.partial(try_import, handler, again)
        server.start().manager.run_in_loader(job, seconds)
    if handler.error and not handler.ready:
        raise ServingError(f"{endpoint.path} is not available: {handler.error}", "UNAVAILABLE")


def is_worth_a_try(handler: Handler) -> bool:
    return time.monotonic() - handler.failed_at > REIMPORT_SECONDS


def try_import(handler: Handler, again: bool) -> None:
    """Import a module, unless another request has just tried; the handler keeps the error."""
    if not handler.ready and (again or is_worth_a_try(handler)):
        with contextlib.suppress(HandlerError):
            handler.load()


def read_value(server: ModelServer, call: Call, envelope: Envelope) -> Any:
    """A request's body for the function: the JSON value out of its envelope, None without a body,
    a form's parts, or bytes if the content type (or, lacking one, the body) is not JSON.

    Raises BadRequest for JSON that is wrong or not UTF-8.
    """
    body, kind = read_body(server, call), call.mimetype
    if kind == "multipart/form-data":
        return read_parts(call, body)
    # curl declares a form for all -d bodies, and no type for -T
    unknown = kind in ("", "application/x-www-form-urlencoded")
    if kind.endswith("json") or unknown and IS_JSON.match(body):
        require_utf8(body)
        return envelope.unwrap(parse_json(body)) if body else None
    return body


def require_utf8(body: bytes) -> None:
    """Refuse what RFC 8259 (8.1) does; `parse_json` keeps such bytes, as `:predict` needs it."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        wrong = f"0x{body[error.start]:02X} at offset {error.start}"
        raise BadRequest(f"body: expected JSON in UTF-8, got the byte {wrong}") from None


# An object, a list or a string begins; or the whole is a number, a word or empty.
IS_JSON = re.compile(
    rb"[ \t\r\n]*(?:[{\[\"]|\xef\xbb\xbf"
    rb"|(?:-?(?:\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|Inf(?:inity)?)|true|false|null|NaN)?[ \t\r\n]*\Z)"
)


def read_parts(call: Call, body: bytes) -> Any:
    """The bytes of a form's only part, if that is a file; else its parts by name: files as bytes,
    fields as text (bytes if not UTF-8), a list for a name that is repeated.
    """
    fields, files = parse_form(call, body)
    try:
        parts = [(name, file.read()) for name, file in files.items(multi=True)]
    finally:
        for _, file in files.items(multi=True):
            file.close()
    if len(parts) == 1 and not fields:
        return parts[0][1]
    found: dict[str, list[Any]] = {}
    for name, text in fields.items(multi=True):
        found.setdefault(name, []).append(as_text(text.encode("latin-1")))
    for name, data in parts:
        found.setdefault(name, []).append(data)
    return {name: values if values[1:] else values[0] for name, values in found.items()}


def as_text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def run_handler(endpoint: Endpoint, value: Any, context: Context) -> Any:
    """The function's result.

    After `timeout_seconds` the answer is 504; a call that has not begun by then never does.
    """
    if endpoint.pool is None:
        return endpoint.handler.call(value, context)
    run = contextvars.copy_context().run  # with the site's flask.g, flask.request
    future = endpoint.pool.submit(run, endpoint.handler.call, value, context)
    seconds = endpoint.timeout_seconds
    return result_within(future, seconds, f"{endpoint.path} took longer than {seconds:g} s")


# --- what plugs in --------------------------------------------------------------------------------


def tell_taken(path: str) -> str:
    return f"path: '{path}' is one of the server's own URLs; choose another, such as /my{path}"


def prepare_endpoint(
    server: ModelServer, config: Any, wanted: Envelope | None, threads: int
) -> Endpoint:
    """The endpoint of a config's handler; the loader imports the function."""
    handler = server.kept.setdefault(
        kept_as(config), Handler(config.function, server.folder, config.model_dir)
    )
    pool = None
    if config.timeout_seconds is not None:
        pool = server.kept.setdefault(
            ("pool", config.path), Workers(threads, f"serving{config.path}")
        )
    return Endpoint(config.path, handler, config.methods, wanted, config.timeout_seconds, pool)


def kept_as(config: Any) -> tuple[Any, ...]:
    """The key of a config's handler in `server.kept`."""
    return "handler", config.function, config.model_dir


def prepare(server: ModelServer, config: Config) -> dict[str, Endpoint]:
    """The endpoints of a config and of `ModelServer.endpoint`, by path.

    Raises ConfigError for the server's own paths, those of both, and unknown envelopes.
    """
    from_python = {path: one.handler.function for path, one in server.endpoints.items()}
    refuse_shared_paths(config, from_python)
    own: dict[str, Endpoint] = {}
    for index, handler in enumerate(config.handlers):
        if is_taken(server.extensions, handler.path):
            raise ConfigError(f"$.handlers[{index}]", tell_taken(handler.path))
        try:
            wanted = find_envelope(server, handler.envelope)
        except ValueError as error:
            raise ConfigError(f"$.handlers[{index}].envelope", str(error)) from None
        own[handler.path] = prepare_endpoint(server, handler, wanted, config.server.threads)
    return {**own, **server.endpoints}


def place_of(index: int, config: Any) -> str:
    """Where a handler's config says what its function is."""
    return f"$.handlers[{index}].{'function' if config.project is None else 'project'}"


def endpoints_of(server: ModelServer) -> dict[str, Endpoint]:
    return server.prepared.of["handlers"]


def refresh(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    """Import handlers that are new or, at a reload, have changed."""
    for index, config in enumerate(server.config.handlers):
        handler = endpoints_of(server)[config.path].handler
        import_handler(handler, place_of(index, config), outcome, polling)
    # The threads of a dropped pool end with its last call.
    server.drop("pool", [("pool", config.path) for config in server.config.handlers])
    server.drop("handler", list(map(kept_as, server.config.handlers)))


def import_handler(handler: Handler, path: str, outcome: Outcome, polling: bool) -> None:
    """Import a function's module if it is not there or, at a reload, has changed. Polling looks for
    no changes: only the operator knows when a file is whole. A failed import keeps the old one.
    """
    if not polling or outcome.config_read or not (handler.ready or handler.error):
        try:
            outcome.changed |= handler.load()
        except HandlerError as error:
            log_safely(logging.INFO, "%s", path, error=error.__cause__ or error)
    if handler.error:
        outcome.errors.append(LoadError(f"{path}: {handler.error}"))


def unready(server: ModelServer) -> list[str]:
    return [
        f"handler {path}" for path, one in endpoints_of(server).items() if not one.handler.ready
    ]


def find(server: ModelServer, method: str, path: str) -> Found | None:
    """The endpoint at a path."""
    endpoint = endpoints_of(server).get(unquote(path))
    if endpoint is None:
        return None
    route = Route(
        (method,),
        endpoint.path,
        view_endpoint,
        "key",
        "A handler",
        infers=method in endpoint.methods,
    )
    return Found(route, {"endpoint": endpoint}, endpoint.path, endpoint.envelope)


def check(server: ModelServer) -> tuple[list[Row], list[str]]:
    """The handlers of a config, and what they name that does not exist."""
    problems: list[str] = []
    for index, handler in enumerate(server.config.handlers):
        if problem := check_function(handler.function, server.folder):
            problems.append(f"{place_of(index, handler)}: {problem}")
        if handler.model_dir is not None and not Path(handler.model_dir).is_dir():
            problems.append(f"$.handlers[{index}].model_dir: no such folder: {handler.model_dir}")
    rows = [("handler", handler.path, handler.function, "") for handler in server.config.handlers]
    return rows, problems


def end(server: ModelServer) -> None:
    """End the threads of functions with a time limit."""
    for endpoint in endpoints_of(server).values():
        if endpoint.pool is not None:
            endpoint.pool.close()


def report(server: ModelServer, address: str) -> None:
    """Print each endpoint, and how to call one."""
    for path, endpoint in endpoints_of(server).items():
        print(f"  {path}: {'ready' if endpoint.handler.ready else endpoint.handler.error}")
    for path in list(endpoints_of(server))[:1]:
        key = server.generated_key or "KEY"
        print(f"        curl -H 'x-api-key: {key}' -d '\"hello\"' {address}{path}", flush=True)


EXTENSION = Extension(
    "handlers",
    sections={"handlers": None},
    envelopes={"hub": HUB},
    find=find,
    urls=endpoints_of,
    declare=declare,
    prepare=prepare,
    refresh=refresh,
    unready=unready,
    report=report,
    check=check,
    end=end,
)
