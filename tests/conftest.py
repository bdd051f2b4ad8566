"""Fixtures: the REST client, mounted in three ways, over servers of fake and of real models."""

import contextlib
import faulthandler
import gc
import hashlib
import http.client
import http.server
import io
import json
import logging
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from flask import Flask
from hypothesis import settings
from PIL import Image
from waitress import create_server
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import Client

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
settings.register_profile("steady", deadline=None)  # how fast a machine is, is no test
settings.load_profile("steady")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
logging.getLogger("tensorflow").setLevel(logging.ERROR)

import routines  # noqa: E402
import serving  # noqa: E402


def pytest_sessionfinish(session):
    """A process that does not end in a minute after its tests says where it stands, and fails."""
    if hasattr(session.config, "workerinput"):
        return  # it waits for the other workers, for as long as their tests take
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)


NO_POLL = {"file_system_poll_wait_seconds": 0}


def spec(name, dtype="DT_FLOAT", shape=(None,)):
    return serving.TensorSpec(name, f"{name}:0", dtype, shape)


def signature(inputs, outputs):
    return serving.Signature({s.name: s for s in inputs}, {s.name: s for s in outputs})


class FakeServable(serving.Servable):
    """Answers y = 0.5 x + version; remembers what it was asked and whether it was closed."""

    def __init__(self, version=1, **options):
        self.version, self.calls, self.closed = version, [], False
        signatures = {
            "serving_default": signature([spec("x", shape=(None, 1))], [spec("y", shape=(None, 1))])
        }
        super().__init__(signatures, self.answer, close=self.mark_closed, device="CPU:0", **options)

    def answer(self, name, inputs):
        self.calls.append((name, inputs))
        assert not self.closed, "ran after it was closed"
        return {"y": inputs["x"] * np.float32(0.5) + np.float32(self.version)}

    def mark_closed(self):
        self.closed = True


def fail(*arguments, **options):
    raise RuntimeError("made to fail")


def load_model(folder, name="m", **fields):
    """A SavedModel as a server loads it, by the plain loader and all that is wrapped around it."""
    config = serving.ModelConfig(name, str(folder), **fields)
    return serving.ModelServer({"model_config_list": []}).load(
        serving.LoadRequest(Path(folder), config)
    )


class Disk:
    """Version folders without a disk, and a loader over them: `broken` names the versions that fail."""

    def __init__(self, **models):
        self.models = {name: set(versions) for name, versions in models.items()}
        self.broken, self.loaded, self.stamp = set(), [], {}

    def list_versions(self, base_path):
        name = Path(base_path).name
        if name not in self.models:
            raise serving.LoadError(
                "base_path cannot be read: No such file or directory", status=400
            )
        return {version: Path(base_path) / str(version) for version in self.models[name]}

    def load(self, folder, model):
        key = (model.name, int(folder.name))
        if key in self.broken:
            raise serving.LoadError("made to fail")
        self.loaded.append(key)
        return FakeServable(int(folder.name))


class FakeDetector(serving.Servable):
    """Finds in each picture one object, its box made of the colours of the first pixel, (r, g, 1, 1) / 255."""

    def __init__(self):
        inputs = [spec("image", "DT_UINT8", (1, None, None, 3))]
        outputs = [
            spec("detection_boxes", shape=(1, None, 4)),
            spec("detection_classes", shape=(1, None)),
            spec("detection_scores", shape=(1, None)),
            spec("num_detections", shape=(1,)),
        ]
        super().__init__(
            {"serving_default": signature(inputs, outputs)}, self.answer, device="CPU:0"
        )
        self.shown = []

    def answer(self, name, inputs):
        self.shown.append(inputs["image"])
        red, green, blue = inputs["image"][0, 0, 0].tolist()
        return {
            "detection_boxes": np.array(
                [[[green / 255, red / 255, 1, 1], [0, 0, 0.5, 0.5]]], np.float32
            ),
            "detection_classes": np.array([[1 + blue % 2, 2]], np.float32),
            "detection_scores": np.array([[0.9, 0.4]], np.float32),
            "num_detections": np.array([2], np.float32),
        }


def config(*models, **others):
    """A config of models given as dicts, or by name."""
    items = [
        {"config": model if isinstance(model, dict) else {"name": model, "base_path": model}}
        for model in models
    ]
    return {"model_config_list": items, "server": NO_POLL, **others}


def fake_server(servables, **others):
    """A started server whose models are the given servables, each as version 1."""
    server = serving.ModelServer(
        config(*servables, **others),
        load=lambda folder, model: servables[model.name],
        list_versions=lambda base_path: {1: Path(base_path) / "1"},
    )
    assert server.wait(10)
    return server


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def listening(server):
    """The address of a server that waitress serves in this process, over a real socket."""
    port, stop = free_port(), threading.Event()
    thread = threading.Thread(
        target=serving.run, args=(server,), kwargs={"port": port, "stop": stop}, daemon=True
    )
    thread.start()
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(60)
        assert not thread.is_alive(), "the server does not end"


class Process:
    """`python serving.py` with some arguments; its output so far, and its port once it listens."""

    def __init__(self, *arguments, cwd=ROOT, **environment):
        command = [sys.executable, str(ROOT / "serving.py"), *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )
        self.out, self.err = [], []
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            threading.Thread(
                target=lambda stream=stream, lines=lines: lines.extend(stream), daemon=True
            ).start()

    def wait_for(self, text, seconds=60):
        deadline = time.monotonic() + seconds
        while not any(text in line for line in self.out):
            assert time.monotonic() < deadline and self.process.poll() is None, (self.out, self.err)
            time.sleep(0.02)
        return next(line for line in self.out if text in line)

    @property
    def port(self):
        return int(self.wait_for("serving ").split("http://127.0.0.1:")[1].split(",")[0])

    def call(self, method, path, body=None, timeout=30):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read()

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)


@contextlib.contextmanager
def started(*arguments, **options):
    process = Process(*arguments, **options)
    try:
        yield process
    finally:
        process.process.kill()


@contextlib.contextmanager
def listening_app(app):
    """The address of a WSGI application that waitress serves in this process."""
    http = create_server(app, host="127.0.0.1", port=0, threads=8)
    threading.Thread(target=http.run, daemon=True).start()
    yield f"http://127.0.0.1:{http.effective_port}"
    http.close()


@contextlib.contextmanager
def web_server(handler, context=None):
    """The port of a web server by a handler of http.server, under TLS where a context is given."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_port
        server.shutdown()


def write_certificate(folder, name="localhost"):
    """Write key.pem and cert.pem, which nobody vouches for, of the host of that name."""
    command = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout key.pem -out cert.pem"
    command = ["openssl", *command.split(), "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def key_entry(name, key, **fields):
    """A key as the config holds it."""
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **fields}


def image_bytes(image, form="PNG", **options):
    """A PIL image, or an array [H, W, 3] or [H, W], as a file of a format."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG's signature and its first chunk, which promise so many RGB pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def mount(server, how):
    """A test client for a server's URLs: standalone, as a blueprint, or behind a dispatcher, and its prefix."""
    if how == "standalone":
        return Client(serving.create_app(server)), ""
    site = Flask("site")
    if how == "blueprint":
        site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
        return Client(site), "/ml"
    return Client(
        DispatcherMiddleware(site.wsgi_app, {"/v1/ml": serving.create_app(server)})
    ), "/v1/ml"


class Rest:
    """A client that speaks to a mounted server: paths as clients write them, bodies as JSON, bytes or text."""

    def __init__(self, server, how="standalone"):
        self.server = server
        mounted = server.__dict__.setdefault("mounted", {})  # once: an app's rules take their time
        if how not in mounted:
            mounted[how] = mount(server, how)
        self.client, self.prefix = mounted[how]

    def get(self, path, **options):
        return self.client.get(self.prefix + path, **options)

    def post(self, path, body=b"", **options):
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        return self.client.post(self.prefix + path, data=data, **options)

    def open(self, path, **options):
        return self.client.open(self.prefix + path, **options)


# What is logged and counted of a request.
COUNTED = {
    "request_id": "",
    "method": "GET",
    "path": "/",
    "route": "x",
    "model": "",
    "version": "",
    "status": 200,
    "ms": 1.0,
    "rows": 0,
    "batch": 0,
}


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def assert_error(response, status, message):
    """The response is `{"error": message}` with that status; `message` may leave out its end with `...`."""
    body = json.loads(response.get_data())
    assert list(body)[0] == "error", body
    wanted = message.removesuffix("...")
    assert (
        body["error"] == message or message.endswith("...") and body["error"].startswith(wanted)
    ), body["error"]
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/json"
    assert "Traceback" not in body["error"] and str(ROOT) not in body["error"]


@pytest.fixture(autouse=True, scope="module")
def aside():
    """What the tests of other files have left is set aside: collections, one after each reload, would walk over it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["standalone", "blueprint", "dispatcher"])
def how(request):
    return request.param


@pytest.fixture(scope="session")
def demo():
    """The demo config's server, its models loaded."""
    server = serving.ModelServer(ROOT / "config.json", poll_seconds=0)
    assert server.wait(120) and not server.readiness()
    yield server
    server.stop()


@pytest.fixture(scope="module", params=["extended", "alone"])
def extensions(request):
    """With all extensions, then with none: what tests of the core's routes use, by
    `pytestmark = pytest.mark.usefixtures("extensions")`; with `pytest.mark.extended`, with all alone.
    """
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "alone":
            patch.setattr(serving, "installed", lambda: ())
        yield serving.installed()


# `pytest -m quick`: of each test in these files the first case; it touches each part of the server,
# and needs no browser, no other language and no service.
QUICK = (
    *("calls", "config", "tensors", "models", "loading", "outputs", "formats", "binary", "kserve"),
    *("images", "routines", "masks", "drawing", "tiles", "predict_api", "keys", "quotas", "urls"),
    *("mounting", "pipelines_engine", "pipelines", "handlers", "handlers_module", "rest_guide"),
    *("operation", "history", "counts", "dry_run", "labels", "extending", "doctor", "admin"),
)


def mark_quick(items):
    seen = set()
    for item in items:
        name = item.path.stem.removeprefix("test_")
        case = (name, getattr(item, "originalname", item.name))
        if name in QUICK and case not in seen:
            seen.add(case)
            item.add_marker("quick")


def pytest_collection_modifyitems(config, items):
    """Without extensions: what needs none, mounted in one way. The rest is the same code as with them."""

    def chosen(item):
        params = item.callspec.params if hasattr(item, "callspec") else {}
        if params.get("extensions") != "alone":
            return True
        return not item.get_closest_marker("extended") and params.get("how") in (None, "standalone")

    config.hook.pytest_deselected(items=[item for item in items if not chosen(item)])
    items[:] = filter(chosen, items)
    mark_quick(items)


@pytest.fixture(scope="session")
def demo_alone():
    """The demo's server without extensions, and without what they alone read."""
    source = json.loads((ROOT / "config.json").read_text())
    for section in ("pipeline_config_list", "handlers"):
        source.pop(section, None)
    for item in source["model_config_list"]:
        item["config"]["base_path"] = str(ROOT / item["config"]["base_path"])
    for deployment in source.get("deployments", ()):
        deployment["label_map"] = str(ROOT / deployment["label_map"])
    server = serving.ModelServer(source, poll_seconds=0, extensions=())
    assert server.wait(120) and not server.readiness()
    yield server
    server.stop()


@pytest.fixture
def rest(request, how):
    """A client of the demo config, in each way of mounting it."""
    alone = request.node.callspec.params.get("extensions") == "alone"
    return Rest(request.getfixturevalue("demo_alone" if alone else "demo"), how)


@pytest.fixture(scope="session")
def tf():
    """TensorFlow, with the threads that a server gives it: how many there are is in the last bit."""
    serving.prepare_devices(None, None)
    return serving.tensorflow()


@pytest.fixture
def exports_here(tf, monkeypatch):
    """Keras' files are exported in this process, which has Keras already, and not in one of their own."""

    def run(command, **options):
        *_, code, file, folder = command
        status, said = 0, io.StringIO()
        arguments = mock.patch.object(sys, "argv", ["-c", file, folder])
        with mock.patch.dict(os.environ), arguments, contextlib.redirect_stderr(said):
            try:
                exec(code, {})
            except SystemExit as end:
                status = end.code
        return subprocess.CompletedProcess(command, status, "", said.getvalue())

    monkeypatch.setattr(subprocess, "run", run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


# --- the page -------------------------------------------------------------------------------------

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--window-size=1280,900",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window; what its scripts say and what it asks for is in its logs."""
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "chromium and chromedriver are not installed"
        )
    pytest.importorskip("selenium.webdriver")
    driver = start_browser()
    yield driver
    driver.quit()


def start_browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
    )
    driver.implicitly_wait(0)
    return driver


def wait(browser, script, seconds=20):
    """Wait until a script returns something true; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := browser.execute_script(f"return {script}")):
        assert time.monotonic() < deadline, script
        time.sleep(0.05)
    return found


def paste_mask(mask, box, width, height, scale=1):
    """A mask [mh, mw] relative to its box as 0/1 pixels, uint8 [h, w],
    with the top and left of where they lie.
    """
    ymin, xmin, ymax, xmax = box.tolist()
    top, left = round(ymin * height * scale), round(xmin * width * scale)
    bottom, right = round(ymax * height * scale), round(xmax * width * scale)
    return routines.resize_mask(mask, max(1, bottom - top), max(1, right - left)), top, left
