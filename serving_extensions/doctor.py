"""`--doctor`: check this machine, this installation and a config, and say what to do.

Nothing is loaded, written or changed, and no value of the config that may be secret is printed.
"""

import errno
import http.client
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from .console import CONSOLE
from .core import (
    GREEN,
    RED,
    YELLOW,
    ConfigError,
    Extension,
    ModelServer,
    NotFound,
    ServingError,
    __version__,
    choose_versions,
    examine,
    installed,
    list_versions,
    paint,
    read_port,
    url_of,
    view_live,
)
from .metrics import CGROUPS, memory_limit
from .on_demand import size_of

STATE_COLOURS = {"ok": GREEN, "warning": YELLOW, "wrong": RED}


@dataclass(frozen=True)
class Finding:
    """What one check found: `ok`, `warning` or `wrong`, and what to do about it."""

    state: str
    about: str
    text: str
    todo: str = ""


def doctor(source: Any, value: tuple[bool, str, str]) -> int:
    """Look at all of it; 1 where something is wrong, else 0."""
    _, host, port = value
    counts = dict.fromkeys(STATE_COLOURS, 0)
    for finding in look_at_all(source, host, port):
        counts[finding.state] += 1
        state = paint(f"{finding.state:<7}", STATE_COLOURS[finding.state])
        print(f"{state}  {finding.about:<{ABOUT_COLUMNS}}  {finding.text}", flush=True)
        if finding.todo:
            print(f"{'':7}  -> {finding.todo}", flush=True)
    print(f"{counts['wrong']} wrong, {counts['warning']} warnings, {counts['ok']} ok")
    return 1 if counts["wrong"] else 0


ABOUT_COLUMNS = 10


def look_at_all(source: Any, host: str, port: str) -> Iterator[Finding]:
    """Yield each finding at once, since a later check may crash."""
    yield Finding("ok", "Python", f"{platform.python_version()} at {sys.executable}")
    yield from look_at_installation()
    yield from look_at_address(host, port)
    probe = probe_tensorflow()
    yield from look_at_tensorflow(probe)
    yield from look_at_gpus(probe)
    yield from look_at_config(source, probe)


# --- the installation ---------------------------------------------------------------------------


def look_at_installation() -> Iterator[Finding]:
    """The server's own files."""
    count = len(installed())  # it refuses those of another version
    yield Finding("ok", "serving", f"{__version__} in {Path(__file__).parent.parent}")
    yield Finding("ok", "extensions", f"{count}, of the same version")
    if not any((folder / "index.html").is_file() for folder in CONSOLE):
        todo = "copy console/ beside serving.py, or install with pip; all else works without it"
        yield Finding("warning", "page", "its files are not there", todo)


# --- TensorFlow and GPUs ------------------------------------------------------------------------

# In its own process: an import that crashes still tells why, and no GPU stays held.
PROBE = """
import json, os
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import tensorflow as tf
gpus = tf.config.list_physical_devices("GPU")
details = map(tf.config.experimental.get_device_details, gpus)
names = [found.get("device_name", gpu.name) for gpu, found in zip(gpus, details)]
build = tf.sysconfig.get_build_info()
print(json.dumps({"version": tf.version.VERSION, "gpus": names, "cuda": build.get("cuda_version")}))
"""
PROBE_SECONDS = 300  # a cold disk takes a minute
LEAST_TENSORFLOW = (2, 20)  # as setup.cfg has it


def probe_tensorflow() -> dict[str, Any]:
    """TensorFlow's version, the CUDA it is built for and the GPUs that it sees; or `problem`."""
    command = [sys.executable, "-c", PROBE]
    folder = sys.prefix  # `-c` imports from the current folder; this one has no modules
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PROBE_SECONDS, cwd=folder
        )
    except subprocess.TimeoutExpired:
        return {"problem": f"its import has not ended in {PROBE_SECONDS} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    ended = f"its import ended with {done.returncode}"
    return {"problem": f"{ended}: {lines[-1][:300]}" if lines else ended}


def look_at_tensorflow(probe: dict[str, Any]) -> Iterator[Finding]:
    if "problem" in probe:
        todo = "pip install 'tensorflow>=2.20', or tensorflow-cpu, into this Python"
        if "No module named 'tensorflow'" not in probe["problem"]:
            todo += "; a processor without AVX needs a TensorFlow that is built for it"
        yield Finding("wrong", "TensorFlow", probe["problem"], todo)
        return
    version = tuple(int(part) for part in probe["version"].split(".")[:2])
    text = f"{probe['version']}, {'for CUDA ' + probe['cuda'] if probe['cuda'] else 'CPU only'}"
    if version < LEAST_TENSORFLOW:
        todo = "pip install -U 'tensorflow>=2.20': older ones are not tested"
        yield Finding("warning", "TensorFlow", text, todo)
    else:
        yield Finding("ok", "TensorFlow", text)


DRIVER = Path("/proc/driver/nvidia/version")


def look_at_gpus(probe: dict[str, Any]) -> Iterator[Finding]:
    """The GPUs that TensorFlow sees, and whether the system has NVIDIA's driver."""
    if "problem" in probe:
        return
    has_driver = DRIVER.is_file() or shutil.which("nvidia-smi") is not None
    if probe["gpus"]:
        yield Finding("ok", "GPU", ", ".join(probe["gpus"]))
    elif not has_driver:
        yield Finding("ok", "GPU", "none, and no NVIDIA driver: models run on the CPU")
    elif not probe["cuda"]:
        todo = "pip uninstall tensorflow-cpu, then pip install 'tensorflow[and-cuda]'"
        yield Finding("warning", "GPU", "a driver is there, this TensorFlow is for CPUs", todo)
    else:
        todo = (
            "pip install 'tensorflow[and-cuda]'; see that nvidia-smi lists the GPU, that its "
            f"driver is new enough for CUDA {probe['cuda']}, that CUDA_VISIBLE_DEVICES names it; "
            "in Docker, run with --gpus all"
        )
        yield Finding("warning", "GPU", "a driver is there, TensorFlow sees no GPU", todo)


# --- the machine --------------------------------------------------------------------------------

NEEDED_BYTES = 600 << 20  # TensorFlow, the server and small models: 430 MB, and what requests need


def free_memory() -> int:
    """Bytes that this process could still get from the machine or its control group."""
    free = psutil.virtual_memory().available
    for file in CGROUPS:
        used = file.replace("memory.max", "memory.current").replace("limit_in", "usage_in")
        try:
            free = min(free, int(Path(file).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such file; "max"
            continue
    return max(0, free)


def look_at_memory(models: int) -> Iterator[Finding]:
    """`models` is the bytes of all model files to be served."""
    free = free_memory()
    text = f"{megabytes(free)} free of {megabytes(memory_limit())}"
    text += f", the models' files have {megabytes(models)}" if models else ""
    if free < NEEDED_BYTES + models:
        todo = 'add memory, or, with several models, serve some with "load": "on_demand"'
        yield Finding("warning", "memory", text, todo)
    else:
        yield Finding("ok", "memory", text)


def megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def look_at_address(host: str, port: str) -> Iterator[Finding]:
    """Whether the server can listen on the address."""
    try:
        number = read_port(port, "--port")
        found = socket.getaddrinfo(host.strip("[]") or None, number, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name == "posix":  # as the server does: a port just closed is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", 0) == errno.EADDRINUSE and answers(*address[:2]):
            yield Finding("ok", "address", f"{host} port {port}: serving already runs there")
            return
        reason = getattr(error, "strerror", None) or error
        todo = "choose another with --port or --host, or stop who listens there"
        yield Finding("wrong", "address", f"{host} port {port}: {reason}", todo)
        return
    if host.strip("[]") in ("127.0.0.1", "localhost", "::1"):
        yield Finding("ok", "address", f"{host} port {port} is free, for this machine alone")
    else:
        todo = 'with "protect": "all" in "auth" models need a key too; put TLS in front'
        text = f"{host} port {port} is free: whoever reaches it can use the models"
        yield Finding("warning", "address", text, todo)


def answers(host: str, port: int) -> bool:
    """Whether a server like this one answers at an address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", url_of(view_live))
        return b'"live":true' in connection.getresponse().read(1000).replace(b" ", b"")
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# --- the config ---------------------------------------------------------------------------------


def look_at_config(source: Any, probe: dict[str, Any]) -> Iterator[Finding]:
    """The config, its models, what it writes, and whether there is memory for it."""
    name = source if isinstance(source, str) else "of the command line"
    try:
        server = ModelServer(source)
    except ConfigError as error:
        for one in error.all():
            yield Finding("wrong", "config", f"{name}: {one.message}")
        return
    except NotFound as error:
        yield Finding("wrong", "config", f"{name}: {error.message}")
        return
    except OSError as error:
        todo = "name a config, --config FILE, or what to serve: serving models/mine"
        yield Finding("wrong", "config", f"{name}: {error.strerror or error}", todo)
        return
    # Never started, so not stopped either: a server writes its counts when it stops.
    yield Finding("ok", "config", name)
    yield from look_at_places(server)
    yield from look_at_memory(sum(map(size_of, folders_of(server))))
    if "problem" in probe:  # reading signatures may crash as the import does
        yield Finding("warning", "models", "not looked at: they need TensorFlow")
        return
    rows, problems = examine(server)
    for kind, title, what, _ in rows:
        yield Finding("ok", kind, f"{title}: {what}")
    for problem in problems:
        yield Finding("wrong", "config", problem)
    yield from look_at_devices(server, probe)


def look_at_devices(server: ModelServer, probe: dict[str, Any]) -> Iterator[Finding]:
    """Models that accept only a GPU while TensorFlow sees none."""
    if probe["gpus"]:
        return
    for model in server.config.models:
        if model.targets and all(target.startswith("GPU") for target in model.targets):
            todo = 'write "target_device": "HETERO:GPU,CPU", or see what is said of the GPU'
            text = f"{model.name} wants {', '.join(model.targets)}, but TensorFlow sees no GPU"
            yield Finding("wrong", "model", text, todo)


def folders_of(server: ModelServer) -> Iterator[Path]:
    """The version folders, or files, to be served, without models that cannot be read."""
    for model in server.config.models:
        try:
            folders = list_versions(model.base_path)
        except ServingError:  # reported already
            continue
        yield from map(folders.get, choose_versions(model.model_version_policy, folders))


FOLDERLESS = ("quotas", "history")  # files whose folder the server does not make


def look_at_places(server: ModelServer) -> Iterator[Finding]:
    """Whether the server can write all that the config demands."""
    for what, place in written_by(server):
        above = [place.parent] if what in FOLDERLESS else place.parents
        folder = next((one for one in (place, *above) if os.path.exists(one)), None)
        if folder is None:
            text = f"{what}: {place.parent}: no such folder"
            yield Finding("wrong", "writes", text, "make it, or name another")
            continue
        if folder == place and place.is_file() != (what in FOLDERLESS):
            kind = "file" if what in FOLDERLESS else "folder"
            text = f"{what}: {place}: it exists, but is not a {kind}"
            yield Finding("wrong", "writes", text, "name another place")
            continue
        if folder == place and place.is_file():
            can = os.access(place, os.W_OK) and os.access(place.parent, os.W_OK | os.X_OK)
        else:
            can = os.access(folder, os.W_OK | os.X_OK)
        if can:
            yield Finding("ok", "writes", f"{what}: {place}")
        else:
            todo = f"let user {os.getuid() if hasattr(os, 'getuid') else ''} write there, or name "
            yield Finding("wrong", "writes", f"{what}: {folder}: no permission", todo + "another")


def written_by(server: ModelServer) -> Iterable[tuple[str, Path]]:
    """What a config makes the server write, and where: files and folders, no URLs."""
    config = server.config
    if any(key.quota for key in config.auth.keys) and "://" not in (config.auth.quota_store or ""):
        yield "quotas", Path(config.auth.quota_store or "")
    if config.server.history:
        yield "history", Path(config.server.history)
    if config.admin:
        yield "config", server.folder
        if config.admin.upload:
            yield "uploaded models", Path(config.admin.models_folder)
        if config.admin.upload == "code":
            yield "uploaded projects", Path(config.admin.projects_folder)
    groups = {
        Path(deployment.active_learning.folder)
        for deployment in config.deployments
        if deployment.active_learning
    }
    yield from (("active learning", folder) for folder in sorted(groups))


EXTENSION = Extension("doctor", commands={"doctor": doctor})
