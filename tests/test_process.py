"""A server inside somebody's process changes nothing of it; one that owns it puts all back."""

import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest
from conftest import ROOT, FakeServable, fake_server

import serving


def python(source, *options, **environment):
    """What a script prints, in a process of its own, beside the repository and its tests."""
    preamble = f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}, {str(ROOT)!r}]\n"
    done = subprocess.run(
        [sys.executable, *options, "-c", preamble + source],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


# --- inside somebody's process ----------------------------------------------------------------------------

HOST = """
import gc, logging, os, signal, threading, time, warnings, weakref
import flask, PIL.Image, numpy, psutil, tensorflow
tensorflow.Graph, tensorflow.raw_ops, tensorflow.compat.v1.Session  # lazy parts of TensorFlow's
gc.set_threshold(701, 11, 12)
logging.getLogger("tensorflow").addFilter(lambda record: True)
warnings.filterwarnings("ignore", "the host's own")
signal.signal(signal.SIGTERM, lambda *_: None)
collections = [0]
collect, freeze, unfreeze = gc.collect, gc.freeze, gc.unfreeze
def asked(*_): collections[0] += 1
gc.collect = gc.freeze = gc.unfreeze = asked

def process():
    root, library = logging.getLogger(), logging.getLogger("tensorflow")
    loggers = {
        logger.name: (logger.level, list(logger.handlers), list(logger.filters), logger.propagate)
        for logger in (root, library, logging.getLogger("PIL"), logging.getLogger("waitress"))
    }
    return {
        "collector": (gc.get_threshold(), gc.get_freeze_count(), gc.isenabled(), collections[0]),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "loggers": loggers,
        "logging": (logging.logThreads, logging.logProcesses, logging._srcfile, logging.lastResort),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in range(1, 32)],
        "modules": {name: sys.modules[name] for name in names},
        "main": sys.modules["__main__"],
        "importers": (list(sys.meta_path), list(sys.path_hooks)),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "folder": os.getcwd(),
    }

names = sorted(sys.modules)
def native(most=None):
    # how many the system knows of, a moment after Python's have ended
    end = time.monotonic() + 60
    while most is not None and psutil.Process().num_threads() > most and time.monotonic() < end:
        time.sleep(0.01)
    return psutil.Process().num_threads()
with tensorflow.Graph().as_default(), tensorflow.compat.v1.Session() as session:
    session.run(tensorflow.constant(1.0))  # TensorFlow's own threads, which stay
before, threads, count = process(), set(threading.enumerate()), native()
def compare(when):
    now = process()
    print(when, [name for name in before if now[name] != before[name]])

import serving, routines
compare("imported")

class Large:
    def __init__(self):
        self.itself, self.bytes = self, bytearray(50_000_000)
alive = Large()
gone = weakref.ref(alive)

site = flask.Flask("site")
site.register_blueprint(serving.create_blueprint("config.json"), url_prefix="/ml")
compare("mounted")
server = site.extensions["serving"]["serving"]
assert server.wait(120) and not server.readiness()
client = site.test_client()
assert client.post("/ml/v1/models/half_plus_two:predict", json={"instances": [1]}).json
key = {"x-api-key": server.generated_key}
with open("models/shapes/samples/0.jpg", "rb") as picture:
    assert client.post("/ml/predict", data=picture.read(), headers=key).status_code == 200
compare("loaded")
assert server.reload()[0] == 200
compare("reloaded")
server.stop()
compare("stopped")
print("threads", [thread.name for thread in set(threading.enumerate()) ^ threads])
print("native", native(count) - count)
import importlib.util, sysconfig
libraries = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
def is_known(name, module):
    file = getattr(module, "__file__", None)
    if name.partition(".")[0] in ("serving", "serving_extensions", "routines"):
        return True
    return file is None or any(os.path.realpath(file).startswith(folder) for folder in libraries)
added = [(name, module) for name, module in list(sys.modules.items()) if name not in names]
print("modules", [name for name, module in added if not is_known(name, module)])
del alive
collect()
print("large", gone() is None)
"""


def test_a_server_inside_somebodys_process_changes_nothing_of_it():
    assert python(HOST) == [
        "imported []",
        "mounted []",
        "loaded []",
        "reloaded []",
        "stopped []",
        "threads []",
        "native 0",
        "modules []",
        "large True",
    ]


def test_a_host_may_have_a_module_of_its_own_called_serving(tmp_path):
    source = f"""
import importlib.util, types
theirs = sys.modules["serving"] = types.ModuleType("serving")
spec = importlib.util.spec_from_file_location("mysite_serving", {str(ROOT / "serving.py")!r})
ours = importlib.util.module_from_spec(spec)
sys.modules["mysite_serving"] = ours
spec.loader.exec_module(ours)
print(sys.modules["serving"] is theirs)
del sys.modules["serving"]
again = importlib.util.module_from_spec(spec)
sys.modules["mysite_serving"] = again
spec.loader.exec_module(again)
print("serving" in sys.modules)
"""
    assert python(source) == ["True", "False"]


def test_a_host_that_has_configured_no_logging_sees_warnings_and_errors():
    source = "import serving; serving.logger.info('low'); serving.logger.warning('high')"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "high\n"


# As TensorFlow is: what it brings along has something to do at the end of the process.
TENSORFLOW = """
import atexit, pathlib, time
tries = pathlib.Path(__file__).with_name("tries")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) <= FAILURES:
    raise KeyError("Registering two gradient")
print("begun", flush=True)
time.sleep(1)
atexit.register(print, "ended well")
class version: VERSION = "0"
"""
ENDING = """
import sys, time
sys.path.insert(0, FOLDER)
import serving
models = [{"config": {"name": "m", "base_path": "models/half_plus_two"}}]
server = serving.ModelServer({"model_config_list": models}, poll_seconds=0.01)
server.start()
if FAILURES:
    server.wait()
    state = server.status("m")["model_version_status"][0]
    print(state["state"], state["status"]["error_message"])
while "tensorflow" not in sys.modules:
    server.reload() if FAILURES else time.sleep(0.01)
"""


@pytest.mark.parametrize("failures", [0, 2])
def test_an_import_of_tensorflow_ends_before_the_process(tmp_path, failures):
    settings = f"FAILURES, FOLDER = {failures}, {str(tmp_path)!r}\n"
    (tmp_path / "tensorflow.py").write_text(settings + TENSORFLOW)
    lines = python(settings + ENDING)
    assert lines[-2:] == ["begun", "ended well"]
    assert len(lines) == 2 + bool(failures)
    told = "LOADING TensorFlow cannot be imported: KeyError: 'Registering two gradient'. If two"
    assert not failures or lines[0].startswith(told)


def test_a_server_that_a_thread_starts_last_of_all_imports_tensorflow(tmp_path):
    (tmp_path / "tensorflow.py").write_text(f"FAILURES = 0\n{TENSORFLOW}")
    lines = python(
        f"import sys, threading, time; sys.path.insert(0, {str(tmp_path)!r}); import serving\n"
        "def work():\n"
        "    threading.main_thread().join()\n"
        "    print(serving.tensorflow().version.VERSION, flush=True)\n"
        "threading.Thread(target=work).start()"
    )
    assert lines == ["begun", "0", "ended well"]


# --- dropped servers --------------------------------------------------------------------------------------

DROPPED = """
import gc, pathlib, threading, weakref
import flask, serving
from conftest import FakeServable, config
made = []
def load(folder, model):
    servable = FakeServable()
    made.append(weakref.ref(servable))
    return servable
def mount(how):
    server = serving.ModelServer(
        config("m", server={"file_system_poll_wait_seconds": how == "polls" and 1 or 0}),
        load=load, list_versions=lambda path: {1: pathlib.Path("1")})
    site = flask.Flask("site")
    if how == "app":
        site = serving.create_app(server)
    else:
        site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    server.wait()
    return weakref.ref(server), site
threads = set(threading.enumerate())
for how in ("app", "blueprint", "polls"):
    server, site = mount(how)
    del site
    loaders = [t for t in threading.enumerate() if t.name == "serving-loader"]
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(60)
    print(len(loaders), server() is None, all(one() is None for one in made),
          [thread.name for thread in set(threading.enumerate()) ^ threads])
"""


def test_an_app_that_is_dropped_ends_its_threads_and_frees_its_models():
    assert python(DROPPED) == ["1 True True []"] * 3


def test_stop_ends_every_thread_of_a_servers(tmp_path):
    before = set(threading.enumerate())
    handlers = [{"path": "/f", "function": "handler.py:f", "timeout_seconds": 5}]
    (tmp_path / "handler.py").write_text("def f(value): return value\n")
    (tmp_path / "config.json").write_text(
        serving.json.dumps({"model_config_list": [], "handlers": handlers})
    )
    server = serving.ModelServer(tmp_path / "config.json")
    client = serving.create_app(server).test_client()
    key = {"x-api-key": server.generated_key}
    assert client.post("/f", json=3, headers=key).json == 3
    server.stop()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(60)
    assert not [thread for thread in left if thread.is_alive()]


def test_a_stopped_server_says_so_and_loads_nothing():
    server = serving.ModelServer({"model_config_list": []})
    server.stop()
    assert server.wait(60) and server.manager._thread is None
    with pytest.raises(serving.ServingError, match="The server is stopping"):
        server.reload()
    fake = fake_server({"m": FakeServable()})
    fake.stop()
    with pytest.raises(serving.ServingError):
        fake.predict("m", {"instances": [[1.0]]})


def test_a_mounted_server_that_is_stopped_says_so_at_each_url():
    server = fake_server({"m": FakeServable()})
    server.endpoint("/f")(lambda value: value)
    client, key = serving.create_app(server).test_client(), {"x-api-key": server.generated_key}
    calls = [("GET", "/readyz"), ("POST", "/v1/models/m:predict"), ("POST", "/f"), ("GET", "/f")]
    for status in (200, 503):
        for method, url in calls:
            answer = client.open(url, method=method, json={"instances": [[1.0]]}, headers=key)
            assert answer.status_code == status, (method, url)
            assert status == 200 or "he server is stopping" in answer.json["error"]
        server.stop()


@pytest.mark.parametrize("begin", ["create_blueprint", "create_app", "run"])
def test_a_stopped_server_does_not_begin_again(begin):
    server, ended = serving.ModelServer({"model_config_list": []}), threading.Event()
    server.stop()
    ended.set()
    options = {"port": 0, "stop": ended} if begin == "run" else {}
    with pytest.raises(serving.ServingError, match="has been stopped: make a new ModelServer"):
        getattr(serving, begin)(server, **options)


# --- a process of our own ---------------------------------------------------------------------------------


def state():
    root, library = logging.getLogger(), logging.getLogger("tensorflow")
    return {
        "collector": (gc.get_threshold(), gc.get_freeze_count() > 0),
        "environment": dict(os.environ),
        "loggers": [(log.level, list(log.handlers)) for log in (root, library)],
        "logging": [
            getattr(logging, name)
            for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")
        ],
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)],
        "tidy": list(serving.TIDY),
    }


def test_what_a_server_changes_of_its_own_process_it_puts_back(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    handlers, logging.getLogger().handlers = logging.getLogger().handlers, []
    gc.unfreeze()
    try:
        before = state()
        with serving.Process() as process:
            process.quiet_libraries()
            process.write_log()
            process.tend_memory()
            process.take_signals(threading.Event())
            serving.settle_garbage()
            inside = state()
        assert [name for name in before if inside[name] == before[name]] == []
        assert state() == before
    finally:
        logging.getLogger().handlers = handlers


def test_what_the_host_has_frozen_stays_frozen(monkeypatch):
    gc.freeze()
    with serving.Process() as process:
        process.tend_memory()
        monkeypatch.setattr(gc, "freeze", lambda: pytest.fail("somebody else's"))
        monkeypatch.setattr(gc, "unfreeze", lambda: pytest.fail("somebody else's"))
        serving.settle_garbage(freeze=True)


def test_a_second_signal_ends_the_process_at_once(monkeypatch):
    ended, stop = [], threading.Event()
    monkeypatch.setattr(os, "_exit", ended.append)
    with serving.Process() as process:
        process.take_signals(stop)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set() and ended == []
        signal.raise_signal(signal.SIGINT)
        assert ended == [1]


def test_a_hangup_ends_the_process_once_and_not_where_it_is_ignored(monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda status: pytest.fail("a shell sends it again"))
    before = signal.getsignal(signal.SIGHUP)
    try:
        for given, then in ((signal.SIG_IGN, False), (signal.SIG_DFL, True)):
            signal.signal(signal.SIGHUP, given)
            stop = threading.Event()
            with serving.Process() as process:
                process.take_signals(stop)
                for _ in range(2):
                    signal.raise_signal(signal.SIGHUP)
            assert stop.is_set() == then and signal.getsignal(signal.SIGHUP) == given
    finally:
        signal.signal(signal.SIGHUP, before)


OWNED = """
import gc, pathlib, re, shutil, sys, tempfile, threading, weakref
import serving
folder = pathlib.Path(tempfile.mkdtemp())
def tell(*words):  # a line of its own, whatever another thread is printing
    sys.stdout.write("\\n" + " ".join(map(str, words)) + "\\n")
def put(version):
    shutil.copytree("models/half_plus_two/123", folder / "m" / str(version))
put(1)
(folder / "handler.py").write_text("class Model: pass\\nmodel = Model()\\ndef f(x): return 1\\n")
(folder / "config.json").write_text(serving.json.dumps({
    "model_config_list": [{"config": {"name": "m", "base_path": "m"}}],
    "handlers": [{"path": "/f", "function": "handler.py:f"}],
    "server": {"file_system_poll_wait_seconds": 0}}))
server, stop = serving.ModelServer(folder / "config.json"), threading.Event()
def change():
    call = server.manager.available["m"].versions[1].callables["serving_default"]
    graph = weakref.ref(call.run._session.graph)
    del call
    put(2)
    tell(server.reload()[0], graph() is None)
    (name,) = [name for name in sys.modules if re.fullmatch("serving_handler_[0-9]+.handler", name)]
    model = weakref.ref(sys.modules[name].model)
    (folder / "handler.py").write_text("def f(x): return 2\\n")
    tell(server.reload()[0], model() is None)
def watch():
    try:
        server.manager.first_pass_done.wait(60)
        tell(gc.get_freeze_count() > 200_000)
        change()
    finally:
        stop.set()
gc.disable()  # nothing is collected by chance
threading.Thread(target=watch).start()
serving.run(server, port=0, stop=stop)
tell(gc.get_freeze_count() == 0)
shutil.rmtree(folder)
"""


def test_in_a_process_of_its_own_what_is_no_longer_served_is_freed_and_what_stays_set_aside():
    lines = python(OWNED)
    assert [
        line for line in lines if line[:4] in ("True", "Fals") or line[:3] in ("200", "201")
    ] == ["True", "201 True", "201 True", "True"]


# --- other systems ----------------------------------------------------------------------------------------

ELSEWHERE = """
import os, select, ctypes, signal
for module, names in ((os, ("sched_getaffinity", "fork", "getuid")), (select, ("poll", "epoll"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
def no_library(name=None, *_, **__):
    raise TypeError("Windows has no library without a name")
import numpy, tensorflow, cv2  # which need the real ones
ctypes.CDLL = no_library
import threading, urllib.request, serving
print(serving.usable_cores() == os.cpu_count())
models = [{"config": {"name": "m", "base_path": "models/half_plus_two"}}]
server, stop = serving.ModelServer({"model_config_list": models}), threading.Event()
def ask():
    try:
        server.wait(300)
        print(server.predict("m", {"instances": [1.0]})["predictions"].tolist())
    finally:
        stop.set()
threading.Thread(target=ask).start()
serving.run(server, port=0, stop=stop)
"""


def test_what_linux_alone_has_is_not_needed():
    told = "\n".join(python(ELSEWHERE))  # the server's thread may print into a line of ours
    assert "True" in told and "[2.5]" in told


# --- an end that nothing holds up -------------------------------------------------------------------------

HANGS = """
import sys, threading, time
import serving
def load(folder, model):
    print("hangs", flush=True)
    time.sleep(600)
models = [{"config": {"name": "m", "base_path": "models/half_plus_two"}}]
source = {"model_config_list": models, "server": {"drain_seconds": 1}}
serving.run(serving.ModelServer(source, load=load), port=0)
"""


def test_a_load_that_hangs_does_not_keep_a_signalled_process_from_ending():
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + HANGS],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while "hangs" not in process.stdout.readline():
        assert process.poll() is None
    process.terminate()
    try:
        assert process.wait(30) == 1
    finally:
        process.kill()
    process.communicate()
