"""granian, written in Rust, as the HTTP server. From the folder of serving.py:

    pip install 'granian>=2.8'
    SERVING_CONFIG=/srv/config.json python deploy/start_granian.py

`python serving.py` (waitress) needs none of this. deploy/README.md says what granian lacks: put
nginx (nginx.conf beside this) in front, which reads each request whole before it passes it on.
SIGTERM ends it once running requests are answered.
"""

import ipaddress
import logging
import os
import socket
import sys
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from granian import Granian
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import serving  # noqa: E402
from deploy.wsgi import WithLengths, create_app  # noqa: E402


def load_app(config: str) -> Any:
    """The application, made in the worker: TensorFlow does not survive a fork."""
    server = serving.as_server(config)
    logging.basicConfig(format=serving.LOG_LINE, level=server.config.server.log_level)
    # Writes what is counted but not written yet at the stop; `atexit` does not run in forked
    # processes.
    Finalize(None, server.stop, kwargs={"drain": False}, exitpriority=0)
    return WithLengths(create_app(server))


def read_address(text: str) -> tuple[str, int]:
    """The host and port of `127.0.0.1:8501` or `[::1]:8501`; raises ValueError for other text."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        ipaddress.ip_address(host)  # granian does not resolve names
        if 0 < int(port) < 1 << 16:
            return host, int(port)
    except ValueError:
        pass
    raise ValueError(f"SERVING_BIND: expected an address and port as 127.0.0.1:8501, got {text!r}")


def refuse_a_taken_address(host: str, port: int) -> None:
    """Exit with status 1 if the address is taken: granian would share its connections."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        print(f"Cannot listen at {host}:{port}: {error}", file=sys.stderr)
        sys.exit(1)


def main() -> None:
    """Serve until SIGTERM or Ctrl-C; exit status 2 if the config or SERVING_BIND is wrong."""
    config = os.path.abspath(os.environ.get("SERVING_CONFIG", "config.json"))
    try:
        options = serving.load_config(config).server
        host, port = read_address(os.environ.get("SERVING_BIND", "127.0.0.1:8501"))
    except (serving.ConfigError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    refuse_a_taken_address(host, port)
    door = Granian(
        config,
        host,
        port,
        interface=Interfaces.WSGI,
        # One worker: the models are in memory once, and a reload reaches everything.
        workers=1,
        # One thread never waits for the interpreter lock, and is enough while all models are fast.
        # A slow model, or a slow body, blocks all other requests meanwhile.
        blocking_threads=int(os.environ.get("SERVING_BLOCKING_THREADS", "1")),
        # a connection holds a permit from its accept to its end, idle or not
        backpressure=options.connection_limit,
        http=HTTPModes.http1,
        # ms; also how long an idle connection is kept: longer than nginx keeps it (60 s), so that
        # nginx closes first. With granian's own 30 s nginx would now and then lose a request.
        http1_settings=HTTP1Settings(header_read_timeout=75_000),
        websockets=False,
        workers_kill_timeout=max(1, round(options.drain_seconds)),
    )
    door.serve(target_loader=load_app)


if __name__ == "__main__":
    main()
