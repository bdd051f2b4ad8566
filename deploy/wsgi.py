"""The server as a WSGI application for gunicorn.conf.py, `deploy.wsgi:create_app('config.json')`,
and for start_granian.py.

A refusal (401, 413) is answered before the body is read. gunicorn and granian then close the
connection with the body unread; a proxy that is still sending it sees a failure and never passes
the refusal on. So the rest of the body is read first.
"""

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any

import serving


class ReadToTheEnd:
    """A WSGI application that answers only after the whole body of the request has
    been read or discarded.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], server: serving.ModelServer):
        self.app, self.server = app, server

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        answer = self.app(environ, start_response)
        with contextlib.suppress(Exception):
            # fails if the client left or chunks are malformed, as the answer already says
            while environ["wsgi.input"].read(1 << 20):
                pass
        return answer


def create_app(source: serving.Source) -> ReadToTheEnd:
    """What `serving.create_app` makes, for a server behind a proxy; models load at once.

    Raises ConfigError.
    """
    server = serving.as_server(source)
    return ReadToTheEnd(serving.create_app(server, eager=True), server)


class WithLengths:
    """A WSGI application behind granian, which answers 411 to bodies without a Content-Length.

    granian ends a chunked body that breaks off like a whole one: the model would silently get only
    a part of what the client meant. With a length the server notices that bytes are missing.
    """

    ANSWER = b'{"error":"Length Required: under granian a body needs a Content-Length"}'

    def __init__(self, app: Callable[..., Iterable[bytes]]):
        self.app = app
        # granian adds its process' environment to each request, where HTTP_* look like headers
        self.foreign = [name for name in os.environ if name.startswith("HTTP_")]

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if "HTTP_TRANSFER_ENCODING" in environ:
            length = str(len(self.ANSWER))
            headers = [("Content-Type", "application/json"), ("Content-Length", length)]
            start_response("411 Length Required", [*headers, ("Connection", "close")])
            return [self.ANSWER]
        for name in self.foreign:
            if environ.get(name) == os.environ.get(name):
                environ.pop(name)
        return self.app(environ, start_response)
