"""gunicorn behind a proxy such as nginx.conf beside this. From the folder of serving.py:

    SERVING_CONFIG=/srv/config.json gunicorn -c deploy/gunicorn.conf.py

`python serving.py` (waitress) needs none of this; gunicorn is for sites that run it already.
SIGTERM ends it when what runs is answered, SIGHUP replaces its workers.
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
# cores, and a reload reaches all there is. More workers multiply the memory, each looks at the
# config file by itself, and POST /v1/config/reload reaches one of them.
workers = int(os.environ.get("SERVING_WORKERS", "1"))
worker_class = "gthread"
threads = options.threads
worker_connections = options.connection_limit
preload_app = False  # TensorFlow does not survive a fork
# a worker that says nothing for so long is replaced; gthread's threads do not keep it from saying
# so
timeout = 120
graceful_timeout = options.drain_seconds
# longer than nginx keeps an idle connection to us (60 s), so that nginx is the one who closes
keepalive = 75
max_requests = 0  # a worker that starts anew loads every model anew
# a disk that is busy must not look like a worker that hangs
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None
errorlog = "-"
loglevel = "info"
accesslog = None  # the server writes a line a request itself, with the id and the key's name


def post_worker_init(worker):
    """The server's own log, as `python serving.py` writes it, and its models, before requests."""
    import logging

    logging.basicConfig(format=serving.LOG_LINE, level=options.log_level)
    # The worker that this one replaces takes no more: what comes meanwhile waits in the backlog,
    # and not in here, for `load_wait_seconds` alone. Beyond `timeout` this would be one that hangs.
    worker.wsgi.server.wait(timeout / 2)


def worker_exit(arbiter, worker):
    """What is counted, and not written yet, is written at the stop: usage of keys, the history."""
    if hasattr(worker, "wsgi"):  # one that never began has counted nothing
        worker.wsgi.server.stop(drain=False)
