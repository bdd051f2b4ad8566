"""The server as an ASGI application, for Ray Serve, uvicorn and the like:
`create_asgi("config.json")`.

a2wsgi hands each request to a thread. This module adds what it lacks: the URL as the client wrote
it, and bodies without a length.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from a2wsgi import WSGIMiddleware

sys.path.insert(0, str(Path(__file__).parent.parent))

import serving  # noqa: E402


class AsWritten:
    """A WSGI application that gets REQUEST_URI, as from waitress, and reads
    chunked bodies.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]]):
        self.app = app

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        scope = environ["asgi.scope"]
        if raw := scope.get("raw_path"):
            environ["REQUEST_URI"] = raw.decode("latin-1") + (
                "?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else ""
            )
        environ["wsgi.input_terminated"] = True  # a2wsgi's body stream ends by itself
        return self.app(environ, start_response)


class EndsWell(WSGIMiddleware):
    """Writes the server's pending counts before it sends `lifespan.shutdown.complete`, because the
    process may end right after that.
    """

    def __init__(self, app: Callable[..., Iterable[bytes]], server: serving.ModelServer):
        super().__init__(app, workers=server.config.server.threads)
        self.server = server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def stop_first(message: Any) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                await asyncio.to_thread(self.server.stop, drain=False)
            await send(message)

        await super().__call__(scope, receive, stop_first if scope["type"] == "lifespan" else send)


def create_asgi(source: serving.Source) -> EndsWell:
    """An ASGI application for a config in any form, with the config's number of threads.

    Raises ConfigError.
    """
    server = serving.as_server(source)
    return EndsWell(AsWritten(serving.create_app(server, eager=True)), server)
