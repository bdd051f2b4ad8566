"""The server as a WSGI application for gunicorn.conf.py: `deploy.wsgi:create_app('config.json')`.

A refusal (401, 413) is answered before the body is read. gunicorn then closes the connection with
the body unread, and a proxy that is still sending it takes that for a failure and never passes the
refusal on. So what is left of a body is read first.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import serving


class ReadToTheEnd:
    """A WSGI application whose answers go out when the request's body has been read,
    or thrown away, as a whole.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]):
        self.app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        answer = self.app(environ, start_response)
        with contextlib.suppress(Exception):
            # a client that is gone, or chunks that are none: the answer says so already
            while environ["wsgi.input"].read(1 << 20):
                pass
        return answer


def create_app(source: serving.Source) -> ReadToTheEnd:
    """What `serving.create_app` makes, for gunicorn behind a proxy; models load at once.

    Raises ConfigError.
    """
    return ReadToTheEnd(serving.create_app(source, eager=True))
