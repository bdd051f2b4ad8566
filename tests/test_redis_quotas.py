"""Quotas in Redis, against a real one: exact counts, ends of periods, a Redis that goes and comes back, no password shown."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import (
    FakeDetector,
    Rest,
    bearer,
    fake_server,
    free_port,
    key_entry,
    write_certificate,
)

import serving
from serving_extensions import metrics, quotas
from serving_extensions.redis_quotas import KEPT_SECONDS, RedisQuotas, shown

PASSWORD = "s3cret-pass"
PICTURE = json.dumps({"image_type": "array", "data": [[[1, 2, 3]]]})


class Redis:
    """A redis-server of the test's own, on a port and a Unix socket."""

    def __init__(self, folder, *options):
        if not shutil.which("redis-server"):
            (pytest.fail if os.environ.get("CI") else pytest.skip)("redis-server is not installed")
        self.port = free_port()
        self.socket, self.folder, self.options = folder / "redis.sock", folder, options
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [
                "redis-server",
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--unixsocket",
                str(self.socket),
                "--requirepass",
                PASSWORD,
                "--save",
                "",
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--dir",
                str(self.folder),
                *self.options,
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while not self.answers():
            assert time.monotonic() < deadline and self.process.poll() is None, (
                "redis-server does not start"
            )
            time.sleep(0.02)

    def answers(self):
        import redis

        try:
            return redis.Redis(unix_socket_path=str(self.socket), password=PASSWORD).ping()
        except redis.RedisError:
            return False

    def stop(self):
        self.process.terminate()
        self.process.wait(20)

    def read(self, *command):
        """A command's answer, by another client than the one under test: what is in Redis, as Redis says it."""
        done = subprocess.run(
            ["redis-cli", "-s", str(self.socket), "--no-auth-warning", "-a", PASSWORD, *command],
            capture_output=True,
            text=True,
        )
        return done.stdout.split()


@pytest.fixture
def redis(tmp_path):
    server = Redis(tmp_path)
    yield server
    server.stop()


def auth_of(redis, calls=3):
    return {
        "keys": [key_entry("a", "k", quota={"calls": calls, "period": "month"})],
        "quota_store": redis.url,
    }


def test_periods_begin_anew_and_a_count_outlives_its_period_by_an_hour(redis):
    now = [1_000_000_000.0]  # 2001-09-09T01:46:40Z
    store = RedisQuotas(redis.url, clock=lambda: now[0])
    assert [store.take("a", 2, "hour") for _ in range(3)] == [None, None, 800]
    assert store.take("b", 2, "hour") is None and store.take("a", 2, "day") is None, (
        "other keys and periods have counts of their own"
    )
    assert (store.used("a", "hour"), store.used("b", "hour"), store.used("c", "hour")) == (2, 1, 0)
    assert (
        800 + KEPT_SECONDS - 5
        <= int(redis.read("TTL", "serving:quota:a:hour:999997200")[0])
        <= 800 + KEPT_SECONDS
    )
    now[0] += 800
    assert store.take("a", 2, "hour") is None and store.used("a", "hour") == 1
    now[0] -= 800
    assert store.take("a", 2, "hour") == 800, "the hour before is used up, also when it comes again"
    now[0] = 1_001_894_399.5  # the last second of a month
    assert [store.take("a", 1, "month") for _ in range(2)] == [None, 1]
    now[0] += 1
    assert store.take("a", 1, "month") is None


def test_every_count_has_an_end(redis):
    store = RedisQuotas(redis.url)
    for period in ("minute", "hour", "day", "month"):
        store.take("a", 5, period)
    keys = redis.read("KEYS", "*")
    assert len(keys) == 4 and all(int(redis.read("TTL", key)[0]) > KEPT_SECONDS - 5 for key in keys)
    redis.read("PERSIST", keys[0])
    store.take("a", 5, keys[0].split(":")[3])
    assert int(redis.read("TTL", keys[0])[0]) > 0, "one that lost its end gets it back"


def test_counts_nothing_beyond_the_limit(redis):
    store = RedisQuotas(redis.url)
    assert [store.take("a", 3, "month") is None for _ in range(10)] == [True] * 3 + [False] * 7
    assert store.used("a", "month") == 3
    assert store.take("a", 4, "month") is None, "a limit that is raised has one call more"


def take_many(url, calls, results):
    """One process of the test below: four threads over one client."""
    store, let_in = RedisQuotas(url), []
    threads = [
        threading.Thread(
            target=lambda: let_in.extend(
                store.take("a", 500, "month") is None for _ in range(calls // 4)
            )
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.put(sum(let_in))


def test_exact_over_processes_and_threads(redis):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=take_many, args=(redis.url, 200, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    assert sum(results.get(timeout=60) for _ in processes) == 500
    for process in processes:
        process.join(10)
    assert redis.read("GET", redis.read("KEYS", "*")[0]) == ["500"]


def test_a_client_is_not_shared_with_a_forked_process(redis):
    """In a process of its own, as TensorFlow may run in this one: parent and child call at once, over what was opened before."""
    code = (
        f"import os\nfrom serving_extensions.redis_quotas import RedisQuotas\nstore = RedisQuotas({redis.url!r})\nstore.take('a', 10**6, 'month')\n"
        "child = os.fork()\nfor _ in range(300):\n    assert store.take('a', 10**6, 'month') is None\n"
        "if child:\n    assert os.waitpid(child, 0)[1] == 0\n    print(store.used('a', 'month'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=serving.__file__.rpartition("/")[0],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "601\n", done.stderr


def test_redis_that_goes_lets_nobody_in_and_comes_back(redis, caplog):
    caplog.set_level("INFO")
    rest = Rest(
        fake_server(
            {"d": FakeDetector()}, deployments=[{"id": "d", "model": "d"}], auth=auth_of(redis)
        )
    )

    def call():
        return rest.post("/predict", PICTURE, headers=bearer("k"))

    assert call().status_code == 200
    redis.stop()
    begun = time.monotonic()
    gone = [call() for _ in range(3)]
    assert time.monotonic() - begun < 5
    assert [(r.status_code, r.headers["Retry-After"], r.json["error"]) for r in gone] == [
        (503, "5", "The calls of key 'a' cannot be counted just now: Redis: ConnectionError")
    ] * 3
    assert 'serving_quota_used_calls{key="a",period="month"} 1.0' in rest.get("/metrics").get_data(
        as_text=True
    )
    assert rest.get("/usage", headers=bearer("k")).json["quota"]["used"] == 1, "as it was"
    redis.start()
    assert [call().status_code for _ in range(4)] == [200, 200, 429, 429], (
        "from the first call on, and what was counted is still"
    )
    said = [
        record.getMessage() for record in caplog.records if record.getMessage().startswith("Quotas")
    ]
    assert len(said) == 2 and "cannot be counted" in said[0] and "again" in said[1], (
        "once each, not at each call"
    )
    assert PASSWORD not in caplog.text


def test_redis_that_hangs_is_given_up_after_a_second(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = RedisQuotas(f"redis://127.0.0.1:{silent.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(OSError, match="Redis: TimeoutError"):
            store.take("a", 1, "day")
        assert [store.used(str(key), "day") for key in range(100)] == [0] * 100
        assert 0.9 < time.monotonic() - begun < 3


@pytest.mark.parametrize(
    "url, error",
    [
        ("redis://:wrong-pass@127.0.0.1:{port}/0", "Redis: AuthenticationError"),
        ("redis://127.0.0.1:{port}/0", "Redis: AuthenticationError"),
        ("redis://:s3cret-pass@127.0.0.1:{port}/99", "Redis: ResponseError"),
        ("unix://{socket}?password=wrong-pass", "Redis: AuthenticationError"),
    ],
)
def test_redis_that_refuses(redis, caplog, url, error):
    caplog.set_level("DEBUG")
    with pytest.raises(OSError, match=error) as raised:
        RedisQuotas(url.format(port=redis.port, socket=redis.socket)).take("a", 1, "day")
    assert (
        not any(secret in caplog.text + str(raised.value) for secret in ("wrong-pass", PASSWORD))
        and "cannot be counted in" in caplog.text
    )


def test_unix_socket(redis):
    store = quotas.open_quotas(f"unix://{redis.socket}?password={PASSWORD}")
    assert store.take("a", 1, "day") is None and RedisQuotas(redis.url).used("a", "day") == 1
    assert quotas.open_quotas(f"unix://{redis.socket}?password={PASSWORD}") is store


def test_a_closed_store_has_no_connection_and_counts_on(redis):
    store = RedisQuotas(redis.url)
    assert store.take("a", 2, "day") is None and "cmd=eval" in redis.read("client", "list")
    store.close()
    assert "cmd=eval" not in redis.read("client", "list")
    assert [store.take("a", 2, "day") is None for _ in range(2)] == [True, False]


def test_tls(tmp_path):
    write_certificate(tmp_path)
    port = free_port()
    server = Redis(
        tmp_path,
        "--tls-port",
        str(port),
        "--tls-cert-file",
        str(tmp_path / "cert.pem"),
        "--tls-key-file",
        str(tmp_path / "key.pem"),
        "--tls-ca-cert-file",
        str(tmp_path / "cert.pem"),
        "--tls-auth-clients",
        "no",
    )
    try:
        url = f"rediss://:{PASSWORD}@localhost:{port}/0"
        assert (
            RedisQuotas(f"{url}?ssl_ca_certs={tmp_path / 'cert.pem'}").take("a", 1, "day") is None
        )
        with pytest.raises(
            OSError, match="Redis: ConnectionError"
        ):  # a certificate that nobody vouches for
            RedisQuotas(url).take("a", 1, "day")
    finally:
        server.stop()


# --- the config -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url, text",
    [
        (
            "postgres://user:hush@host/0",
            "expected a file, or a URL that begins with redis://, rediss:// or unix://",
        ),
        ("REDIS://:hush@host/0", "expected a file, or a URL that begins with redis://"),
        ("redis://:hu/sh@host/0", "is written %2F"),
        ("redis://:hu?sh@host/0", "is written %2F"),
        ("redis://:hu#sh@host/0", "%23"),
        ("redis://:hush", "not a URL that redis-py takes: redis://..."),
        ("redis://host?port=1&socket_timeout=hush", "not a URL that redis-py takes"),
        ("redis://host?hush=1", "not a URL that redis-py takes"),
    ],
)
def test_wrong_urls_are_refused_and_not_quoted(tmp_path, capsys, url, text):
    auth = {"keys": [key_entry("a", "1", quota={"calls": 1, "period": "day"})], "quota_store": url}
    (tmp_path / "c.json").write_text(json.dumps({"model_config_list": [], "auth": auth}))
    assert serving.main(["--check", "--config", str(tmp_path / "c.json")]) == 2
    shown = capsys.readouterr()
    assert (
        text in shown.err
        and "$.auth" in shown.err
        and "hu" not in (shown.err + shown.out).replace("socket", "")
    )


def test_without_the_package_the_config_is_wrong_and_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "redis", None)
    auth = {
        "keys": [key_entry("a", "1", quota={"calls": 1, "period": "day"})],
        "quota_store": "redis://:hush@host:1/0",
    }
    with pytest.raises(serving.ConfigError) as raised:
        serving.ModelServer({"model_config_list": [], "auth": auth})
    assert raised.value.message == (
        "$.auth.quota_store: cannot be opened: the package redis is not installed: pip install 'redis>=5': "
        "redis://host:1/0"
    )
    serving.ModelServer(
        {"model_config_list": [], "auth": {"quota_store": "redis://host:1/1"}}
    )  # no quota, no need of it


def test_the_password_is_shown_nowhere(redis, tmp_path, capsys, caplog):
    caplog.set_level("DEBUG")
    (tmp_path / "c.json").write_text(json.dumps({"model_config_list": [], "auth": auth_of(redis)}))
    assert serving.main(["--check", "--config", str(tmp_path / "c.json")]) == 0
    server = serving.ModelServer(tmp_path / "c.json")
    rest, answers = Rest(server), []
    for stop in (lambda: None, redis.stop):
        stop()
        answers += [
            rest.get(path, headers=bearer("k")).get_data(as_text=True)
            for path in (
                "/x/classes",
                "/stats",
                "/v1/config",
                "/metrics",
                "/openapi.json",
                "/deployments",
                "/v1/models",
            )
        ]
        answers.append(rest.post("/v1/config/reload").get_data(as_text=True))
    redis.start()
    shown = capsys.readouterr()
    everything = (
        "".join(answers)
        + caplog.text
        + shown.out
        + shown.err
        + repr(server.config)
        + metrics.prometheus_text(server).decode()
    )
    assert "503" in everything and PASSWORD not in everything


def test_a_url_as_it_is_shown():
    assert shown("rediss://user:hush@host:6380/3?password=hush") == "rediss://host:6380/3"
    assert shown("unix://user:hush@/run/redis.sock?db=1") == "unix:///run/redis.sock"


@pytest.mark.parametrize("kind", ["file", "redis"])
def test_calls_are_given_back_and_usage_is_added(tmp_path, kind, request):
    now = [1_000_000_000.0]
    clock = lambda: now[0]  # noqa: E731
    if kind == "file":
        store = quotas.Quotas(tmp_path / "quotas", clock)
    else:
        store = RedisQuotas(request.getfixturevalue("redis").url, clock)
    assert store.count_of("a", "hour") == (0, 800)
    assert [store.take("a", 2, "hour") for _ in range(3)] == [None, None, 800]
    assert store.count_of("a", "hour") == (2, 800)
    store.give_back("a", "hour", 0.5)
    assert store.count_of("a", "hour") == (1, 800) and store.used("a", "hour") == 1
    assert store.take("a", 2, "hour") is None
    now[0] += 3600  # a call of the hour before is none of this one's
    assert store.take("a", 2, "hour") is None
    store.give_back("a", "hour", 3600)
    assert store.used("a", "hour") == 1 and store.count_of("a", "hour") == (1, 800)
    for _ in range(3):
        store.give_back("b", "hour", 0)  # nothing was counted: it stays nothing
    assert store.used("b", "hour") == 0
    store.add("a", 5)
    store.add("a", 2)
    assert store.used("a", "usage") == 7 and store.used("b", "usage") == 0
