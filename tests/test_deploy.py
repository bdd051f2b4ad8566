"""The roads of deploy/: ASGI in this process, gunicorn behind a real nginx, and what Dockerfiles and Kubernetes' objects say of the server."""

import asyncio
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import kubernetes_validate
import psutil
import pytest
import requests
import yaml
from conftest import (
    ROOT,
    FakeServable,
    Rest,
    assert_error,
    bearer,
    fake_server,
    free_port,
    key_entry,
    write_certificate,
)

import serving
from serving_extensions.quotas import Quotas

DEPLOY = ROOT / "deploy"


# --- ASGI -----------------------------------------------------------------------------------------------------


def ask_asgi(app, method, path, body=b"", headers=(), chunks=1, raw_path=None):
    """What an ASGI application answers: status, headers, body. A body without a length comes in `chunks`."""
    size = -(-len(body) // chunks) or 1
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    incoming = [
        {"type": "http.request", "body": part, "more_body": index + 1 < len(parts)}
        for index, part in enumerate(parts)
    ]
    names = [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    names += [(b"content-length", str(len(body)).encode())] if chunks == 1 and body else []
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": raw_path,
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": names,
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 9),
    }
    sent = []

    async def run():
        async def receive():
            return incoming.pop(0)

        async def send(message):
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(run())
    return (
        sent[0]["status"],
        dict(sent[0]["headers"]),
        b"".join(message.get("body", b"") for message in sent[1:]),
    )


@pytest.fixture
def both():
    """One server as ASGI and as WSGI: the same must come out."""
    from deploy.asgi import create_asgi

    server = fake_server(
        {"m": FakeServable(), "a/b": FakeServable(2)},
        auth={"keys": [key_entry("site", "k")]},
        deployments=[{"id": "m", "model": "m"}],
        server={"file_system_poll_wait_seconds": 0, "max_request_bytes": 5_000_000},
    )
    return create_asgi(server), Rest(server)


@pytest.mark.parametrize(
    "method, path, body",
    [
        ("POST", "/v1/models/m:predict", b'{"instances": [[1.0]]}'),
        ("POST", "/v1/models/m:predict?outputs=y", b'{"instances": [[1.0]]}'),
        ("POST", "/v1/models/m:predict", b"{"),
        ("POST", "/v1/models/none:predict", b"{}"),
        ("GET", "/v1/models/m", b""),
        ("GET", "/nowhere", b""),
        ("POST", "/predict", b"{}"),
        ("DELETE", "/predict", b""),
        ("HEAD", "/readyz", b""),
        ("POST", "/v1/config/reload", b""),
        ("POST", "/v1/models/m:predict", json.dumps({"instances": [[0.5]] * 400_000}).encode()),
        ("POST", "/v1/models/m:predict", b" " * 5_000_001),
    ],
)
def test_asgi_answers_as_wsgi_does(both, method, path, body):
    asgi, rest = both
    wanted = rest.open(path, method=method, data=body, headers={"X-Request-Id": "r-1"})
    status, headers, answer = ask_asgi(asgi, method, path, body, {"X-Request-Id": "r-1"})
    assert (status, answer) == (wanted.status_code, wanted.data)
    theirs = {name.lower().encode(): value.encode() for name, value in wanted.headers.items()}
    for of_each_its_own in (headers, theirs):
        of_each_its_own.pop(b"server-timing", None)
    assert headers == theirs
    assert headers.get(b"x-request-id") == b"r-1"


def test_asgi_reads_bodies_in_chunks_and_urls_as_written(both):
    body = b'{"instances": [[1.0], [2.0]]}'
    assert ask_asgi(both[0], "POST", "/v1/models/m:predict", body, chunks=5)[::2] == (
        200,
        b'{"predictions":[[1.5],[2.0]]}',
    )
    assert (
        ask_asgi(both[0], "POST", "/v1/models/m:predict", b" " * 5_000_001, chunks=2)[0] == 413
    ), "not cut and taken"
    assert (
        ask_asgi(
            both[0], "POST", "/v1/models/m:predict", body + b" " * (5_000_000 - len(body)), chunks=3
        )[0]
        == 200
    )
    found = ask_asgi(
        both[0], "POST", "/v1/models/a/b:predict", body, raw_path=b"/v1/models/a%2Fb:predict"
    )
    assert found[::2] == (200, b'{"predictions":[[2.5],[3.0]]}')


# --- gunicorn behind nginx ------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(command, log, **options):
    """A process that is ended by SIGTERM, with status 0."""
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def nginx_conf(folder, port, upstream):
    """deploy/nginx.conf with this test's ports, certificate, folders and a limit of 30 MB."""
    write_certificate(folder)
    text = (DEPLOY / "nginx.conf").read_text()
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/nginx/serving", str(folder)),
        ("127.0.0.1:8501", f"127.0.0.1:{upstream}"),
        ("/run/nginx.pid", str(folder / "nginx.pid")),
        ("/dev/stdout", str(folder / "access.log")),
        ("body_size 1g", "body_size 30m"),
        ("http {\n", "http {\n" + temporary),
        ("worker_processes auto;", "daemon off;" + (" user root;" if os.getuid() == 0 else "")),
    ):
        assert old in text, old
        text = text.replace(old, new)
    (folder / "nginx.conf").write_text(text)
    return folder / "nginx.conf"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """gunicorn, as deploy/gunicorn.conf.py has it, behind nginx, as deploy/nginx.conf has it: folder, address, a session, gunicorn's process."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not nginx:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("nginx is not installed")
    folder, upstream, port = tmp_path_factory.mktemp("site"), free_port(), free_port()
    write_site_config(folder, "half")
    session = trusting(folder)
    environ = {
        **os.environ,
        "SERVING_CONFIG": str(folder / "config.json"),
        "SERVING_BIND": f"127.0.0.1:{upstream}",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    with (
        running(
            [sys.executable, "-m", "gunicorn", "-c", str(DEPLOY / "gunicorn.conf.py")],
            folder / "gunicorn.log",
            env=environ,
        ) as gunicorn,
        running(
            [nginx, "-e", "stderr", "-c", str(nginx_conf(folder, port, upstream))],
            folder / "nginx.log",
        ),
    ):
        wait_until(lambda: session.get(f"https://localhost:{port}/readyz").status_code == 200)
        yield folder, f"https://localhost:{port}", session, gunicorn


def trusting(folder):
    """A client that trusts the folder's certificate alone, whatever the environment says of certificates and proxies."""
    session = requests.Session()
    session.trust_env, session.verify = False, str(folder / "cert.pem")
    return session


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.ConnectionError):
            if true():
                return
        time.sleep(0.05)
    pytest.fail("waited in vain")


def write_site_config(folder, name):
    config = {
        "model_config_list": [
            {"config": {"name": name, "base_path": str(ROOT / "models/half_plus_two")}}
        ],
        "deployments": [{"id": "shapes", "model": name}],
        "auth": {"keys": [key_entry("site", "k")]},
        "server": {"max_request_bytes": 25_000_000, "file_system_poll_wait_seconds": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_nginx_and_gunicorn_predict_and_pass_ids(site):
    folder, address, session, _ = site
    answer = session.post(
        f"{address}/v1/models/half:predict",
        '{"instances": [1.0, 2.0, 5.0]}',
        headers={"X-Request-Id": "r-1"},
    )
    assert (
        answer.json() == {"predictions": [2.5, 3.0, 4.5]}
        and answer.headers["X-Request-Id"] == "r-1"
    )
    made = session.post(f"{address}/predict", "{}", headers={"X-Request-Id": "<odd>"})
    assert made.status_code == 401 and made.headers["WWW-Authenticate"].startswith("Bearer")
    assert made.json()["request_id"] == made.headers["X-Request-Id"] and re.fullmatch(
        "[0-9a-f]{32}", made.headers["X-Request-Id"]
    )
    wait_until(
        lambda: (
            " r-1 " in (folder / "access.log").read_text()
            and f" {made.json()['request_id']} " in (folder / "access.log").read_text()
        )
    )
    assert " r-1 - POST /v1/models/half:predict 200 " in (folder / "gunicorn.log").read_text()


def test_nginx_and_gunicorn_pass_large_bodies_and_answers(site):
    _, address, session, _ = site
    rows = 4_000_000  # 20 MB
    answer = session.post(
        f"{address}/v1/models/half:predict",
        json.dumps({"instances": [0.5] * rows}).replace(" ", ""),
    )
    assert answer.json() == {"predictions": [2.25] * rows}
    chunked = session.post(
        f"{address}/v1/models/half:predict", iter([b'{"instances"', b": [1.0]}"])
    )
    assert chunked.json() == {"predictions": [2.5]}
    over = session.post(
        f"{address}/v1/models/half:predict", iter([b'{"instances": [1.0]}', b" " * 25_000_000])
    )
    assert over.status_code == 413


def test_nginx_and_gunicorn_refuse_in_the_servers_words(site):
    _, address, session, _ = site
    assert session.post(f"{address}/v1/models/none:predict", "{}").json() == {
        "error": "Servable not found for request: Latest(none)"
    }
    assert session.get(f"{address}/v1/models/a%2Fb").json() == {
        "error": "Could not find any versions of model a/b"
    }
    over = session.post(f"{address}/v1/models/half:predict", b" " * 26_000_000)
    assert (over.status_code, over.json()) == (
        413,
        {"error": "Request body of 26000000 bytes is over the limit of 25000000"},
    )
    assert session.post(f"{address}/predict", b" " * 20_000_000).status_code == 401, (
        "also when the body is large, and nobody reads it"
    )
    proxys = session.post(
        f"{address}/v1/models/half:predict", b" " * 32_000_000, headers={"X-Request-Id": "r-2"}
    )
    assert (
        proxys.status_code,
        proxys.json()["code"],
        proxys.json()["request_id"],
        proxys.headers["X-Request-Id"],
    ) == (413, 413, "r-2", "r-2")


def test_nginx_keeps_the_operators_urls_and_no_others():
    (expression,) = re.findall(r"location ~\* (\S+) \{", (DEPLOY / "nginx.conf").read_text())
    numbers = {"metrics", "stats", "config", "reload", "load", "unload"}
    kept, open_to_all = set(), {"/statsmodel/predict", "/metrics-v2/predict", "/stats/classes"}
    for row in serving.routes_of(tuple(serving.installed())):
        urls = kept if row.guard == "admin" or row.name in numbers else open_to_all
        urls.update(serving.BRACES.sub("m", url) for url in serving.spellings(row.url))
    shared = {"/v1/models/m", "/v1/models/m/versions/m"}  # by another method
    assert kept & open_to_all == shared
    found = {url for url in kept | open_to_all if re.search(expression, url, re.IGNORECASE)}
    assert found == kept - shared


def test_nginx_keeps_its_connections_to_the_server(site):
    folder, address, session, gunicorn = site

    def connections():
        return {
            c.raddr.port
            for worker in psutil.Process(gunicorn.pid).children()
            for c in worker.net_connections()
            if c.status == "ESTABLISHED"
        }

    session.get(f"{address}/readyz")
    before = connections()
    for _ in range(50):
        trusting(folder).get(f"{address}/readyz")  # a new connection to nginx each time
    assert before and len(connections() - before) <= 2


def test_reload_and_sighup_lose_no_request(site):
    folder, address, session, gunicorn = site
    write_site_config(folder, "other")
    assert session.post(f"{address}/v1/config/reload").status_code == 201
    assert session.post(f"{address}/v1/models/other:predict", '{"instances": [1.0]}').json() == {
        "predictions": [2.5]
    }
    statuses, stop = [], threading.Event()

    def call():
        own = trusting(folder)
        while not stop.is_set():
            statuses.append(
                own.post(f"{address}/v1/models/other:predict", '{"instances": [1.0]}').status_code
            )

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    before = begun_at(session, address)
    gunicorn.send_signal(signal.SIGHUP)
    wait_until(lambda: begun_at(session, address) != before)
    time.sleep(2)
    stop.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200} and len(statuses) > 20


def begun_at(session, address):
    """When the process that answers began: which worker it is."""
    return re.search(
        r"^process_start_time_seconds (\S+)", session.get(f"{address}/metrics").text, re.MULTILINE
    )[1]


def test_nginx_answers_for_a_server_that_is_away(site, tmp_path):
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    port = free_port()
    with running(
        [nginx, "-e", "stderr", "-c", str(nginx_conf(tmp_path, port, free_port()))],
        tmp_path / "nginx.log",
    ):
        session = trusting(tmp_path)
        wait_until(lambda: session.get(f"https://localhost:{port}/livez").status_code == 503)
        answer = session.post(
            f"https://localhost:{port}/v1/models/m:predict", "{}", headers={"X-Request-Id": "r-3"}
        )
    assert (answer.status_code, answer.headers["Retry-After"], answer.json()["request_id"]) == (
        503,
        "1",
        "r-3",
    )


TOLD = """
import pathlib, time

def echo(body):
    return body

def steps(body):
    yield "first\\n"
    for _ in range(200):  # until the first has been read
        if pathlib.Path(__file__).with_name("read").exists():
            yield "read\\n"
            return
        time.sleep(0.05)
    yield "in vain\\n"
"""


def test_nginx_brings_granian_what_it_cannot_do(tmp_path):
    """Bodies in chunks, which granian's door refuses, and ones that come slowly, which would stop it.

    A handler's stream comes through part by part.
    """
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    upstream, port = free_port(), free_port()
    (tmp_path / "told.py").write_text(TOLD)
    config = {
        "model_config_list": [],
        "handlers": [
            {"path": f"/{name}", "function": f"told.py:{name}"} for name in ("echo", "steps")
        ],
        "auth": {"keys": [key_entry("site", "k")]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    environ = {
        **os.environ,
        "SERVING_CONFIG": str(tmp_path / "config.json"),
        "SERVING_BIND": f"127.0.0.1:{upstream}",
    }
    conf = str(nginx_conf(tmp_path, port, upstream))
    start = [sys.executable, str(DEPLOY / "start_granian.py")]
    with (
        running(start, tmp_path / "granian.log", env=environ),
        running([nginx, "-e", "stderr", "-c", conf], tmp_path / "nginx.log"),
        trusting(tmp_path) as session,
    ):
        site = f"https://localhost:{port}"
        wait_until(lambda: session.get(f"{site}/readyz").status_code == 200)
        headers = {"Authorization": "Bearer k", "Content-Type": "a/b"}
        chunked = session.post(f"{site}/echo", iter([b"half ", b"and half"]), headers=headers)
        assert (chunked.status_code, chunked.content) == (200, b"half and half")

        def slowly():
            yield b"half "
            assert trusting(tmp_path).get(f"{site}/livez").status_code == 200
            yield b"more"

        assert session.post(f"{site}/echo", slowly(), headers=headers).content == b"half more"
        with session.post(f"{site}/steps", b".", headers=headers, stream=True) as stream:
            lines = stream.iter_lines()
            first = next(lines)
            (tmp_path / "read").touch()
            assert (first, next(lines)) == (b"first", b"read")
        for _ in range(10):
            refused = session.post(f"{site}/echo", b" " * 20_000_000)
            assert refused.status_code == 401, "also when the body is large, and nobody reads it"
        logged = (tmp_path / "granian.log").read_text()
        assert " POST /echo 200 " in logged and " 411 " not in logged


@pytest.mark.parametrize(
    "door", [("-m", "gunicorn", "-c", "deploy/gunicorn.conf.py"), ("deploy/start_granian.py",)]
)
def test_sigterm_loses_nothing_that_was_counted(tmp_path, door):
    port = free_port()
    (tmp_path / "config.json").write_text(json.dumps(counting_config(tmp_path)))
    environ = {
        **os.environ,
        "SERVING_CONFIG": str(tmp_path / "config.json"),
        "SERVING_BIND": f"127.0.0.1:{port}",
    }
    with running([sys.executable, *door], tmp_path / "log", env=environ, cwd=ROOT):
        site = f"http://127.0.0.1:{port}"
        wait_until(lambda: requests.get(f"{site}/readyz").status_code == 200)
        for _ in range(3):
            answer = requests.post(f"{site}/v1/models/none:predict", "{}", headers=bearer("k"))
            assert answer.status_code == 404
    assert_counted(tmp_path, 3)


def test_an_asgi_servers_end_loses_nothing_that_was_counted(tmp_path):
    from deploy.asgi import create_asgi

    app, sent = create_asgi(counting_config(tmp_path)), []
    assert ask_asgi(app, "POST", "/v1/models/none:predict", b"{}", bearer("k"))[0] == 404

    async def run():
        events = [{"type": f"lifespan.{name}"} for name in ("startup", "shutdown")]

        async def receive():
            return events.pop(0)

        async def send(message):
            sent.append(message["type"])

        await app({"type": "lifespan"}, receive, send)

    asyncio.run(run())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert_counted(tmp_path, 1)


def counting_config(folder):
    return {
        "model_config_list": [],
        "auth": {
            "protect": "all",
            "keys": [key_entry("site", "k", admin=True)],
            "quota_store": str(folder / "quotas.sqlite3"),
        },
        "server": {"history": str(folder / "stats.json")},
        "admin": {},
    }


def assert_counted(folder, calls):
    """What is written at a stop is there."""
    assert Quotas(folder / "quotas.sqlite3").used("site", "usage") == calls
    assert (folder / "stats.json").exists()


def test_gunicorn_says_at_once_that_a_config_is_wrong(tmp_path):
    (tmp_path / "c.json").write_text('{"models": []}')
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-c", str(DEPLOY / "gunicorn.conf.py")],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SERVING_CONFIG": str(tmp_path / "c.json")},
    )
    assert done.returncode != 0 and "$.models: unknown key" in done.stderr


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("SERVING_CONFIG", "/gone/c.json", "No such file or directory: '/gone/c.json'"),
        ("SERVING_BIND", "8501", "expected an address and port as 127.0.0.1:8501, got '8501'"),
        ("SERVING_BIND", "[::1]:x", "SERVING_BIND: expected"),
    ],
)
def test_granian_says_at_once_what_is_wrong(monkeypatch, capsys, name, value, told):
    monkeypatch.setenv("SERVING_CONFIG", str(ROOT / "config.json"))
    monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("deploy.start_granian").main()
    assert ended.value.code == 2 and told in capsys.readouterr().err


# --- Docker ---------------------------------------------------------------------------------------------------


def instructions(name):
    """The instructions of a Dockerfile, each with its arguments as one line."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / name).read_text(), flags=re.MULTILINE).replace(
        "\\\n", ""
    )
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def copied(name):
    return [
        source
        for word, rest in instructions(name)
        if word == "COPY"
        for source in rest.split()[:-1]
    ]


@pytest.mark.parametrize(
    "name, extras", [("Dockerfile", ["cpu", "redis"]), ("Dockerfile.gpu", ["redis", "gpu"])]
)
def test_an_image_installs_what_setup_cfg_requires(name, extras, tmp_path):
    run, fonts, compiled = [rest for word, rest in instructions(name) if word == "RUN"]
    assert " fonts-noto-core " in fonts  # docs/pictures.md, "Drawn"
    assert compiled == "python -m compileall -q ."
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    make, _, install = run.partition("&&")
    assert install.strip() == "pip install -r requirements.txt"
    subprocess.run(
        ["sh", "-c", make.replace("python ", f"{sys.executable} ", 1)], cwd=tmp_path, check=True
    )
    from setuptools.config.setupcfg import read_configuration

    options = read_configuration(ROOT / "setup.cfg")["options"]
    wanted = [
        *options["install_requires"],
        *(line for extra in extras for line in options["extras_require"][extra]),
    ]
    assert [
        line.strip()
        for line in (tmp_path / "requirements.txt").read_text().splitlines()
        if line.strip()
    ] == wanted


def test_the_images_are_alike_but_for_what_they_install():
    plain, gpu = dict(instructions("Dockerfile")), dict(instructions("Dockerfile.gpu"))
    for word in ("WORKDIR", "USER", "EXPOSE", "HEALTHCHECK", "CMD"):
        assert plain[word] == gpu[word]
    assert copied("Dockerfile") == copied("Dockerfile.gpu")
    for name in ("Dockerfile", "Dockerfile.gpu"):
        assert f"docker build -f deploy/{name} " in (DEPLOY / name).read_text()


def test_an_image_holds_what_the_server_needs_and_ends_by_sigterm(tmp_path):
    words = dict(instructions("Dockerfile"))
    assert words["USER"] == "10001:10001"
    for source in copied("Dockerfile"):
        target = tmp_path / "app" / source
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, target)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "."], cwd=tmp_path / "app", check=True
    )
    write_site_config(tmp_path, "half")
    port = str(free_port())

    def as_here(text):
        return [
            {
                "python": sys.executable,
                "/etc/serving/config.json": str(tmp_path / "config.json"),
                "0.0.0.0": "127.0.0.1",
            }.get(word, word.replace("8501", port))
            for word in json.loads(text)
        ]

    check = as_here(words["HEALTHCHECK"].partition("CMD ")[2])
    assert subprocess.run(check, capture_output=True).returncode != 0, "nothing listens yet"
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "TF_CPP_MIN_LOG_LEVEL": "3"
    }
    with running(as_here(words["CMD"]), tmp_path / "log", cwd=tmp_path / "app", env=environ):
        wait_until(lambda: requests.get(f"http://127.0.0.1:{port}/readyz").status_code == 200)
        assert subprocess.run(check).returncode == 0
        assert requests.get(f"http://127.0.0.1:{port}/console").status_code == 200
        assert requests.post(
            f"http://127.0.0.1:{port}/v1/models/half:predict", '{"instances": [1.0]}'
        ).json() == {"predictions": [2.5]}


def test_the_context_of_an_image_is_what_is_copied():
    lines = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if not line.startswith("#")
    ]
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    assert (
        {line.removeprefix("!") for line in lines[1:-1]}
        == set(copied("Dockerfile"))
        == set(copied("Dockerfile.gpu"))
    )


# --- Kubernetes -----------------------------------------------------------------------------------------------


def objects():
    """The objects of kubernetes.yaml by kind; the adapter's rule apart."""
    found = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return {
        ("Rule" if item["metadata"]["name"] == "serving-adapter-rule" else item["kind"]): item
        for item in found
    }


def container_of(found):
    return found["Deployment"]["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("version", ["1.28", kubernetes_validate.latest_version()])
def test_kubernetes_schemas(version):
    found = objects()
    assert len(found) == 6
    for item in found.values():
        kubernetes_validate.validate(item, version, strict=True)
    del container_of(found)["name"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found["Deployment"], version, strict=True)


def test_kubernetes_config_is_a_config_and_its_paths_are_mounted(tmp_path):
    found = objects()
    (tmp_path / "config.json").write_text(found["ConfigMap"]["data"]["config.json"])
    config = serving.ModelServer(tmp_path / "config.json").config
    mounts = {mount["mountPath"]: mount for mount in container_of(found)["volumeMounts"]}
    assert all(
        model.base_path.startswith("/models/") for model in config.models
    ) and config.auth.quota_store.startswith("redis://")
    command = json.loads(dict(instructions("Dockerfile"))["CMD"])
    assert (
        command[command.index("--config") + 1].rpartition("/")[0] in mounts
        and "subPath" not in mounts["/etc/serving"]
    )
    sleep = int(container_of(found)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert (
        found["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        > sleep + config.server.drain_seconds + 1
    )


def test_a_changed_configmap_is_taken_over(tmp_path):
    """kubelet writes a new folder and swings the link ..data to it, as here."""
    for number, name in enumerate(("old", "new")):
        (tmp_path / f"..{number}").mkdir()
        write_site_config(tmp_path / f"..{number}", name)
        text = (
            (tmp_path / f"..{number}/config.json")
            .read_text()
            .replace('"file_system_poll_wait_seconds": 0', '"file_system_poll_wait_seconds": 0.2')
        )
        (tmp_path / f"..{number}/config.json").write_text(text)
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "config.json").symlink_to("..data/config.json")
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(30) and [model.name for model in server.config.models] == ["old"]
    (tmp_path / "..data_tmp").symlink_to("..1")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    wait_until(lambda: [model["name"] for model in server.models()] == ["new"], 10)
    server.stop()


def test_kubernetes_asks_what_the_server_answers():
    found, rest = objects(), Rest(fake_server({"m": FakeServable()}))
    container, pod = container_of(found), found["Deployment"]["spec"]["template"]
    port = container["ports"][0]
    for name, path in (
        ("startupProbe", "/livez"),
        ("livenessProbe", "/livez"),
        ("readinessProbe", "/readyz"),
    ):
        assert (
            container[name]["httpGet"] == {"path": path, "port": port["name"]}
            and rest.get(path).status_code == 200
        )
    annotations = pod["metadata"]["annotations"]
    assert (
        annotations["prometheus.io/port"]
        == str(port["containerPort"])
        == dict(instructions("Dockerfile"))["EXPOSE"]
    )
    metrics = rest.get(annotations["prometheus.io/path"]).get_data(as_text=True)
    autoscaler = found["HorizontalPodAutoscaler"]["spec"]
    name = autoscaler["metrics"][0]["pods"]["metric"]["name"]
    rule = yaml.safe_load(found["Rule"]["data"]["config.yaml"])["rules"][0]
    assert (
        f"# TYPE {name} gauge" in metrics
        and rule["name"]["as"] == name
        and rule["seriesQuery"].startswith(name + "{")
    )
    labels, own = pod["metadata"]["labels"], found["Deployment"]["metadata"]["name"]
    selectors = [
        found["Deployment"]["spec"]["selector"]["matchLabels"],
        found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        found["Service"]["spec"]["selector"],
    ]
    assert (
        all(selector.items() <= labels.items() for selector in selectors)
        and autoscaler["scaleTargetRef"]["name"] == own
    )
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    assert volumes["config"]["configMap"]["name"] == found["ConfigMap"]["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert pod["spec"]["securityContext"]["runAsUser"] == int(
        dict(instructions("Dockerfile"))["USER"].partition(":")[0]
    )


# --- Ray's proxies --------------------------------------------------------------------------------------------


@pytest.fixture
def ray_serve(monkeypatch):
    """deploy/ray_serve.py without Ray (deploy/check_ray.py shows it on a cluster)."""
    ray = types.ModuleType("ray")
    ray.serve = types.SimpleNamespace(Application=None)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.delitem(sys.modules, "deploy.ray_serve", raising=False)
    yield importlib.import_module("deploy.ray_serve")
    sys.modules.pop("deploy.ray_serve")


@pytest.fixture
def retryable(ray_serve, monkeypatch):
    """The middleware of Ray's proxies, without its pauses."""
    monkeypatch.setattr(ray_serve, "PAUSES", (0, 0))
    monkeypatch.setattr(ray_serve, "KEPT_BYTES", 1000)
    return ray_serve.Retryable


@pytest.mark.parametrize(
    ("other", "status", "told"),
    [(OSError(), 412, "one"), (TimeoutError(), 504, "A replica takes longer to load than...")],
)
def test_a_reload_on_ray_is_answered_for_all_replicas(ray_serve, monkeypatch, other, status, told):
    """Ray gives the error of a replica that ended, or is late, in the place of its answer."""
    server = ray_serve.ServerOfMany({"model_config_list": []})

    def broadcast(method):
        found = [(200, {}), getattr(server, method)(), (412, {"error": "one"}), other]
        return types.SimpleNamespace(results=lambda **options: found)

    names = {
        "get_replica_context": lambda: types.SimpleNamespace(deployment="d", app_name="a"),
        "get_deployment_handle": lambda *names: types.SimpleNamespace(broadcast=broadcast),
    }
    monkeypatch.setattr(ray_serve, "serve", types.SimpleNamespace(**names))
    assert_error(Rest(server).post("/v1/config/reload"), status, told)


def ending(times, seen):
    """A proxy whose replicas end that many times after they have read a request, and which then echoes its body."""

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        seen.append(body)
        scope["path"] = "/changed"
        if len(seen) > times:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": body})

    return app


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/v1/models/one:predict"),
        ("POST", "/v1/models/one/versions/2:classify"),
        ("POST", "/predict"),
        ("POST", "/shapes/predict"),
        ("GET", "/stats"),
    ],
)
def test_a_request_whose_replica_ends_is_answered_by_another(retryable, method, path):
    seen = []
    status, _, body = ask_asgi(
        retryable(ending(2, seen)), method, path, b"0123456789" * 50, chunks=7
    )
    assert (status, body, seen) == (200, b"0123456789" * 50, [b"0123456789" * 50] * 3)


@pytest.mark.parametrize(
    "method, path, size, tries",
    [
        ("POST", "/slow", 10, 1),
        ("POST", "/a/b/predict", 10, 1),
        ("POST", "/v1/config/reload", 10, 1),
        ("DELETE", "/predict", 10, 1),
        ("POST", "/v1/models/one:predict", 1001, 1),
        ("POST", "/v1/models/one:predict", 10, 3),
    ],
)
def test_what_may_do_more_than_answer_or_fails_on_is_503(retryable, method, path, size, tries):
    seen = []
    status, headers, body = ask_asgi(retryable(ending(9, seen)), method, path, b"x" * size)
    assert (status, headers[b"retry-after"], len(seen)) == (503, b"1", tries)
    assert "send it again" in json.loads(body)["error"]


def test_an_answer_that_has_begun_is_not_begun_again(retryable):
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert ask_asgi(retryable(app), "GET", "/stats")[0] == 200 and seen == ["/stats"]


# --- the page -------------------------------------------------------------------------------------------------


def test_the_page_names_what_is_there_and_is_linked():
    page = (DEPLOY / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)", page):
        assert (DEPLOY / target).exists(), target
    for path in re.findall(r"python (deploy/\S+\.py)", page):
        assert (ROOT / path).exists()
    assert {path.name for path in DEPLOY.iterdir() if path.is_file()} - {
        "README.md",
        "config_schema.py",
        "check_ray.py",
        "wsgi.py",
    } == set(re.findall(r"\]\(([\w.-]+)\)", page))
    assert (
        "deploy/README.md" in (ROOT / "README.md").read_text()
        and "deploy/README.md" in (ROOT / "docs/operation.md").read_text()
    )
