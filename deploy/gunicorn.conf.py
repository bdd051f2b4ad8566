"""gunicorn behind a proxy such as nginx.conf beside this. From the folder of serving.py:

    SERVING_CONFIG=/srv/config.json gunicorn -c deploy/gunicorn.conf.py

`python serving.py` (waitress) needs none of this; gunicorn is for sites that run it already.
SIGTERM ends it once running requests are answered, SIGHUP replaces its workers.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import serving  # noqa: E402

config = os.path.abspath(os.environ.get("SERVING_CONFIG", "config.json"))
options = serving.load_config(config).server  # raises ConfigError here, before any worker starts

wsgi_app = f"deploy.wsgi:create_app({config!r})"
chdir = str(ROOT)
bind = os.environ.get("SERVING_BIND", "127.0.0.1:8501")
# One worker: the models are in memory once, the threads share them, TensorFlow computes on all
# cores, and a reload reaches everything. More workers multiply the memory, each polls the config
# file by itself, and POST /v1/config/reload reaches only one of them.
workers = int(os.environ.get("SERVING_WORKERS", "1"))
worker_class = "gthread"
threads = options.threads
worker_connections = options.connection_limit
preload_app = False  # TensorFlow does not survive a fork
# a worker without a heartbeat for this long is replaced; gthread's busy threads do not delay
# heartbeats
timeout = 120
graceful_timeout = options.drain_seconds
# longer than nginx keeps an idle connection to us (60 s), so that nginx is the side that closes
keepalive = 75
max_requests = 0  # a restarted worker loads every model again
# a busy disk must not look like a hanging worker
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
errorlog = "-"
loglevel = "info"
accesslog = None  # the server logs each request itself, with its id and the key's name


def post_worker_init(worker):
    """Set up the log as `python serving.py` does, and load the models before requests come."""
    import logging

    logging.basicConfig(format=serving.LOG_LINE, level=options.log_level)
    # The replaced worker accepts nothing more: new requests wait in the backlog, and not in here,
    # where `load_wait_seconds` limits them. A wait beyond `timeout` would look like a hang.
    worker.wsgi.server.wait(timeout / 2)


def worker_exit(arbiter, worker):
    """Write what is counted but not written yet: the usage of keys, the history."""
    if hasattr(worker, "wsgi"):  # a worker that never began has counted nothing
        worker.wsgi.server.stop(drain=False)
