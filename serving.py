"""serving: a TensorFlow model server in one embeddable Python file.

It loads SavedModels named in a JSON config and answers TensorFlow Serving's REST API, with OpenVINO
Model Server's config and reload; with routines.py beside it, it takes pictures and answers
annotations; with serving_extensions/, it has pipelines, handlers, a page, metrics and more.

    A server of its own       python serving.py --config config.json
    In a Flask site           site.register_blueprint(serving.create_blueprint("config.json"))
    From Python, without HTTP serving.ModelServer("config.json").predict("digits", {...})

The sections of this file, each using only those above it:

    Errors                what can go wrong, and its HTTP status
    Extensions            the seam that optional capabilities plug into
    Configuration         config.json as frozen dataclasses
    Tensors and JSON      JSON to NumPy arrays and back, as TensorFlow Serving reads and writes it
    Servables             what answers: signatures, arrays in, arrays out; versions on disk
    SavedModels           opened in TensorFlow sessions, checked, called: servables
    Model manager         what is wanted, what is loaded, and the thread that brings them together
    Inference             predict, classify, regress: dict in, dict out
    Keys                  who may call what
    Pictures              a picture through a deployment: labels, model, routines
    ModelServer           all of it behind one object: the Python API
    HTTP                  the same behind URLs: routes, views, blueprint, app
    The process           what a server changes of a process that is its own
    Command line          options, the waitress server, start and stop
"""

import argparse
import array
import base64
import binascii
import codecs
import contextlib
import contextvars
import copy
import ctypes
import dataclasses
import datetime
import difflib
import errno
import functools
import gc
import gzip
import hashlib
import hmac
import importlib
import importlib.util
import inspect
import io
import itertools
import json
import logging
import math
import operator
import os
import queue
import random
import re
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import types
import typing
import warnings
import weakref
import zlib
from collections import ChainMap, Counter
from collections.abc import (
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Union
from urllib.parse import parse_qs, quote, unquote
from wsgiref.util import is_hop_by_hop

import ml_dtypes
import numpy as np
import orjson
import simdjson
from flask import Blueprint, Flask, Request, Response, abort, request, signals
from flask.blueprints import BlueprintSetupState
from flask.sessions import SecureCookieSessionInterface
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher
from werkzeug.datastructures import (
    Accept,
    EnvironHeaders,
    FileStorage,
    Headers,
    MIMEAccept,
    MultiDict,
)
from werkzeug.exceptions import ClientDisconnected, HTTPException, RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser
from werkzeug.http import HTTP_STATUS_CODES, parse_accept_header, parse_options_header
from werkzeug.routing import BaseConverter
from werkzeug.wsgi import get_current_url, get_input_stream

if not typing.TYPE_CHECKING:  # type checkers see every name: extensions use more, via core.py
    __all__ = [
        "BadRequest",
        "Config",
        "ConfigError",
        "ModelServer",
        "NotFound",
        "Servable",
        "ServingError",
        "create_app",
        "create_blueprint",
        "hub_handler",
        "load_config",
        "main",
        "run",
    ]
__version__ = "0.2.0"
if __name__ == "__main__":  # run as a program: importing `serving` then yields this same module
    sys.modules[f"{__package__ or ''}.serving".lstrip(".")] = sys.modules[__name__]

logger = logging.getLogger("serving")

# ==================================================================================================
# Errors
# In: nothing. Out: ServingError, raised anywhere below and answered in one place, `to_response`.
# ==================================================================================================


class ServingError(Exception):
    """An error with a text for the client; `code` is the canonical status name TensorFlow uses."""

    code = "INTERNAL"
    key_name = ""  # name of the refused key, for the log

    def __init__(
        self,
        message: str,
        code: str | None = None,
        status: int | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.headers = message, dict(headers or {})
        self.code = code or self.code
        self.status = status or HTTP_STATUS.get(self.code, HTTPStatus.INTERNAL_SERVER_ERROR)


class BadRequest(ServingError):
    """The request itself is wrong."""

    code = "INVALID_ARGUMENT"


class NotFound(ServingError):
    """Nothing of that name is served."""

    code = "NOT_FOUND"


class LoadError(ServingError):
    """A model cannot be loaded; the message says why."""

    code = "UNKNOWN"

    def __init__(self, message: str, *others: Any, **named: Any):
        # it may quote a file's name that is not UTF-8, and goes into JSON
        super().__init__(message.encode("utf-8", "backslashreplace").decode(), *others, **named)


MOST_OTHERS = 20  # errors of a config that are reported besides the first


class ConfigError(ServingError):
    """The config is wrong at `path` (a JSON path such as `$.model_config_list[1].config.name`).

    `others` holds the further errors found in the same config.
    """

    code = "FAILED_PRECONDITION"
    others: "tuple[ConfigError, ...]" = ()

    def __init__(self, path: str, problem: str):
        text = f"{path}: {problem}" if path else problem
        super().__init__(text, status=HTTPStatus.PRECONDITION_FAILED)
        self.path, self.problem = path, problem

    def __reduce__(self) -> tuple:
        """For `pickle`, which takes it from one process to another."""
        return type(self), (self.path, self.problem), vars(self)

    def all(self) -> "list[ConfigError]":
        """This error and at most `MOST_OTHERS` of the others."""
        return [self, *self.others[:MOST_OTHERS]]


# absl status codes in the order of their numbers -> HTTP, as tensorflow_serving/util/net_http maps.
HTTP_STATUS: dict[str, int] = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
# Indexed by the `error_code` of TensorFlow's exceptions.
CODE_NAMES = ("OK", *HTTP_STATUS)


def explain(error: BaseException, folders: Iterable[str] = ()) -> str:
    """Describe an exception to the client in one line: its type and its message,
    without the folders of this machine.
    """
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else clean(repr(error.code))})"
    if isinstance(error, OSError) and error.strerror:
        name = (
            f": {Path(os.fsdecode(error.filename)).name}"
            if isinstance(error.filename, (str, bytes))
            else ""
        )
        return f"{type(error).__name__}: {error.strerror}{name}"
    try:
        text = clean(str(error), folders)
    except BaseException:  # the __str__ of a user's exception may fail
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def spell(error: BaseException) -> str:
    """An exception's type and text; the type alone where its own `__str__` fails."""
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException:
        return name


def lacks_files(error: BaseException | None) -> bool:
    """Whether an error means that the process is out of file descriptors, which passes by itself.

    The errors that caused it are searched as well.
    """
    texts = (os.strerror(errno.EMFILE), os.strerror(errno.ENFILE))
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        if any(text in spell(error) for text in texts):  # TensorFlow reports it in its text only
            return True
        error = error.__cause__ or error.__context__
    return False


PRINTED = "".join(map(chr, range(32, 127)))


def printable(text: str) -> str:
    """Make a client's text safe for the log: percent-encode it if it holds unprintable characters,
    so that it can neither forge a line nor control a terminal.
    """
    return text if text.isprintable() else quote(text, PRINTED, errors="backslashreplace")


ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and no UTF-8


def is_plain(name: str) -> bool:
    """Whether a file's name can be a name in JSON, in URLs and in the log."""
    return not ODD.search(name)


def log_safely(level: int, text: str, *arguments: Any, error: BaseException | None = None) -> None:
    """Log from a thread of the server's own: a site's filter, made for its requests, may raise."""
    with contextlib.suppress(Exception):
        logger.log(level, text, *arguments, exc_info=error, stacklevel=2)


def start_thread(name: str, work: Callable, *arguments: Any) -> threading.Thread:
    """Start a daemon thread.

    Raises ServingError if the system has none to give: count the thread after this has returned.
    """
    thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise ServingError(f"No thread can be started now: {error}", "UNAVAILABLE") from None
    return thread


@contextlib.contextmanager
def errors_only(who: str) -> Iterator[None]:
    """Turn what is no Exception (sys.exit, KeyboardInterrupt, a cancelled task) into RuntimeError.

    No `except Exception` would catch it, and the client would wait forever. The operator's Ctrl-C
    is safe: it arrives in the main thread only, where no user code runs.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        raise RuntimeError(f"{who} ended with {type(error).__name__}: {explain(error)}") from error


def clean(text: str, folders: Iterable[str] = ()) -> str:
    """Shorten a text to one line of at most 500 characters; an absolute path in it keeps its last
    part only, or its part below one of `folders`.
    """
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    # a quoted path may hold spaces
    text = re.sub(r"(?<=['\"])(?:[A-Za-z]:)?[/\\][^'\"]*[/\\]", "", " ".join(text.split()))
    text = re.sub(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;()]+[/\\])+", "", text)
    return text if len(text) <= 500 else f"{text[:497]}..."


# ==================================================================================================
# Extensions
# In: nothing, or the files in serving_extensions/. Out: `Extension`s, each a capability that plugs
# in. This section comes first because all others use it; the types that they define are therefore
# named in quotes.
# ==================================================================================================


def nothing(*arguments: Any) -> Any:
    """Return None: the default of hooks that may return one value."""
    return None


def first(found: Iterable[Any]) -> Any:
    """The first value that is not None, else None."""
    return next((value for value in found if value is not None), None)


def none(*arguments: Any) -> Any:
    """Return no values: the default of hooks that return several."""
    return ()


@dataclass(frozen=True, eq=False)
class Extension:
    """A capability that plugs in: what it adds, and where. By default each hook adds nothing, so
    the core never asks which extensions there are.

        serving.ModelServer("config.json", extensions=[*serving.installed(), mine])

    Extensions are asked in order; for `find`, `read` and `write` the first result that is not None
    counts.
    """

    name: str
    # Keys of config.json that it reads. A key of its own maps to its dataclass, and is then
    # `config.<key>`, None if not given; a key that `Config` declares, such as "handlers" or
    # "auth.keys[].quota", maps to None.
    sections: Mapping[str, type | None] = field(default_factory=dict)
    # URLs that it answers, beside the core's table.
    routes: Sequence["Route"] = ()
    # find(server, method, path) -> Found or None: URLs that a config names; urls(server) lists
    # their paths.
    find: Callable[["ModelServer", str, str], Any] = nothing
    urls: Callable[["ModelServer"], Iterable[str]] = none
    # How bodies and answers of handlers are wrapped, by `handlers[].envelope`.
    envelopes: Mapping[str, "Envelope"] = field(default_factory=dict)
    # declare(server, path, function, methods, envelope): what `ModelServer.endpoint` registers.
    declare: Callable[..., Any] = nothing
    # open(server) -> the extension's state for a server, kept at `server.state[name]`.
    open: Callable[["ModelServer"], Any] = nothing
    # prepare(server, config) -> what requests need of a config, at `server.prepared.of[name]`;
    # swapped with the config; raises ConfigError.
    prepare: Callable[["ModelServer", "Config"], Any] = nothing
    # refresh(server, outcome, polling): after the models of a pass of the loader.
    refresh: Callable[["ModelServer", "Outcome", bool], None] = nothing
    # unready(server) -> names of what is not ready.
    unready: Callable[["ModelServer"], Iterable[str]] = none
    # identify(server, call, found) -> the Caller of a protected URL, or None if unknown; raises
    # ServingError if it may not call. Asked before the config's keys.
    identify: Callable[["ModelServer", "Call", "Found"], Any] = nothing
    # read(call, body) -> the value of a predict body that is no JSON, or None.
    read: Callable[["Call", bytes], Any] = nothing
    # write(call, answer) -> the Reply in a format other than JSON that the client accepts, or None.
    write: Callable[["Call", Mapping[str, Any]], Any] = nothing
    # wrap_load(server, load) -> load: around the loading of a version.
    wrap_load: Callable[["ModelServer", "Load"], "Load"] = lambda server, load: load
    # saw(server, deployment, image, predictions, origin): a picture has been answered.
    saw: Callable[..., None] = nothing
    # begin(server, call): a request begins; what it returns, if anything, is called at its end.
    begin: Callable[["ModelServer", "Call"], Callable[[], Any] | None] = nothing
    # observe(server, trace, line, reply): a request is answered; its client may have the reply.
    observe: Callable[..., None] = nothing
    # headers(server, call, reply) -> additional headers of the answer, as (name, value).
    headers: Callable[["ModelServer", "Call", "Reply"], Iterable[tuple[str, str]]] = none
    # collect(server) -> metric families of prometheus-client's, for /metrics.
    collect: Callable[["ModelServer"], Iterable[Any]] = none
    # serve(server, app, adjustments) -> Waitress, or None: what `run` listens with.
    serve: Callable[..., Any] = nothing
    # announce(server, address): prints the page's address as soon as the server listens.
    announce: Callable[["ModelServer", str], None] = nothing
    # show_load(server): shows the first load's progress, in `run` only; returns when it is over.
    show_load: Callable[["ModelServer"], None] = nothing
    # report(server, address): prints, once the first load is over, what somebody may want to try.
    report: Callable[["ModelServer", str], None] = nothing
    # check(server) -> rows of what a config would serve (kind, name, what it is, where), and what
    # is wrong, for `--check` and a reload's dry run; loads nothing.
    check: "Callable[[ModelServer], tuple[Sequence[Row], Sequence[str]]]" = lambda _: ((), ())
    # end(server): called when the server has stopped, to end the extension's threads.
    end: Callable[["ModelServer"], None] = nothing
    # Options of the command line, by name: command(source, value) -> exit status. Its docstring is
    # the option's help.
    commands: Mapping[str, Callable[[Any, Any], int]] = field(default_factory=dict)
    # Log formatters, by the value of `server.log_format`.
    formatters: Mapping[str, Any] = field(default_factory=dict)


# The folder of this file; if the file is a symbolic link, also that of its target.
FOLDERS = {
    os.path.realpath(os.path.dirname(os.path.abspath(__file__))),
    os.path.dirname(os.path.realpath(__file__)),
}


def sibling(name: str) -> Any:
    """Import the module or package beside this file, as part of this file's package if it has one.

    None if there is none: a module of the same name elsewhere on Python's path does not count.
    """
    full, origin = find_sibling(name)
    return importlib.import_module(full) if origin and is_beside(origin) else None


def find_sibling(name: str) -> tuple[str, str | None]:
    """The full name of such a module or package, and the file that Python finds for it, if any."""
    full = f"{__package__}.{name}" if __package__ else name
    try:
        spec = importlib.util.find_spec(full)
    except (ModuleNotFoundError, ValueError):  # blocked, or a module made without a file
        return full, None
    return full, spec.origin if spec else None


def is_beside(origin: str) -> bool:
    """Whether a module's file, or a package's `__init__.py`, belongs to what is beside this one."""
    place = Path(os.path.abspath(origin))
    place = place.parent.parent if place.name == "__init__.py" else place.parent
    return os.path.realpath(place) in FOLDERS


def tell_hidden(name: str) -> str:
    """Why Python does not take a module that is beside this file, as the end of a text; empty if it
    does, or if there is none.
    """
    beside = [Path(folder, file) for folder in FOLDERS for file in (name, f"{name}.py")]
    _, origin = find_sibling(name)
    if not any(map(os.path.exists, beside)) or origin and is_beside(origin):
        return ""
    if origin:
        return f": Python finds {origin} first"
    return ": it is there, but its folder is not on Python's path (-P, -I or PYTHONSAFEPATH)"


@functools.cache
def installed() -> "tuple[Extension, ...]":
    """The extensions in serving_extensions/ beside this file; none where there is no such folder.

    The only place that imports them. Raises ImportError if they are of another version, or made
    for another module.
    """
    found = sibling("serving_extensions")
    if found is None:
        return ()
    if __version__ != found.VERSION:
        raise ImportError(
            f"serving_extensions/ is of version {found.VERSION}, serving.py of {__version__}: "
            "copy both from one place"
        )
    if vars(found.core) is not globals():
        raise ImportError(
            f"serving_extensions/ uses the module {found.core.__name__!r}, but this one is "
            f"{__name__!r}: import it under the name serving, from its own folder"
        )
    return found.EXTENSIONS


def named_once(extensions: Iterable[Extension]) -> "tuple[Extension, ...]":
    """The extensions as a tuple; ValueError if two share a name, the key of their state."""
    extensions = tuple(extensions)
    for name, count in Counter(extension.name for extension in extensions).items():
        if count > 1:
            raise ValueError(f"{count} extensions are named {name!r}: give each a name of its own")
    return extensions


class NoRoutines:
    """Stands in for routines.py where it is missing: false, and its attributes raise NotFound."""

    def __bool__(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise NotFound("This needs routines.py beside serving.py")


if typing.TYPE_CHECKING:
    import routines
else:
    routines = sibling("routines") or NoRoutines()


# The file in serving_extensions/ for each section and command, to name the missing one to somebody
# who has copied only some. A test compares these with what the files declare.
SECTION_FILES = {
    "pipeline_config_list": "pipelines.py",
    "handlers": "handlers.py",
    "deployments[].active_learning": "active_learning.py",
    "auth.keys[].quota": "quotas.py",
    "server.history": "metrics.py",
    "admin": "admin.py",
}
COMMAND_FILES = {
    "manifest": "manifest.py",
    "deploy": "deploying.py",
    "export": "commands.py",
    "init": "commands.py",
    "init-hub": "commands.py",
    "completion": "completion.py",
    "doctor": "doctor.py",
}


def tell_missing(file: str) -> str:
    return f"this needs serving_extensions/{file} beside serving.py"


# ==================================================================================================
# Configuration
# In: config.json, a dict or nothing. Out: a frozen `Config`, or ConfigError naming the JSON path.
# ==================================================================================================


def option(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    pattern: str | None = None,
    loads: bool = False,
    secret: bool = False,
) -> Any:
    """Declare a config field in one line: default, what it means (with its unit),
    and its limits. A change of a field that `loads` makes the model load anew; no `repr` shows
    a `secret` one.
    """
    metadata = {
        "doc": doc,
        "minimum": minimum,
        "maximum": maximum,
        "pattern": pattern,
        "loads": loads,
    }
    if default == {}:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, repr=not secret, metadata=metadata)


# Patterns that JSON Schema understands too. Clients resolve a part of a URL that is . or .. before
# they send it: it cannot be a name.
NOT_EMPTY = r"^[\s\S]"
MODEL_NAME = r"^(?!\.{1,2}$)[^\x00-\x1f\x7f-\x9f]+$"
HANDLER_PATH = r"^(/(?!\.{1,2}(/|$))[\w.~-]+)+$"
NO_EFFECT = "OpenVINO only, no effect"  # marks fields that are accepted, and named in the log


def without_effect(value: Any) -> list[str]:
    """The names of the fields that are set in a part of a config but have no effect here."""
    return [
        f.name
        for f in dataclasses.fields(value)
        if f.metadata["doc"] == NO_EFFECT and getattr(value, f.name) != f.default
    ]


@dataclass(frozen=True)
class LatestPolicy:
    num_versions: int = option(1, "how many of the highest versions to serve", minimum=1)


@dataclass(frozen=True)
class AllPolicy:
    pass


@dataclass(frozen=True)
class SpecificPolicy:
    versions: tuple[int, ...] = option(doc="the versions to serve", minimum=0)


@dataclass(frozen=True)
class VersionPolicy:
    latest: LatestPolicy | None = option(None, "serve the highest versions")
    all: AllPolicy | None = option(None, "serve every version")
    specific: SpecificPolicy | None = option(None, "serve these versions")

    @property
    def problem(self) -> str:
        """What is wrong with the policy; empty if nothing is."""
        given = [policy for policy in (self.latest, self.all, self.specific) if policy is not None]
        return "" if len(given) == 1 else "expected exactly one of 'latest', 'all', 'specific'"


@dataclass(frozen=True)
class Batching:
    """Sizes of TensorFlow's own batch scheduler, under TensorFlow Serving's names."""

    max_batch_size: int = option(32, "rows; a larger request runs alone", minimum=2, maximum=65536)
    num_batch_threads: int = option(
        2, "batches run at once: while one runs, the next one fills", minimum=1, maximum=64
    )
    batch_timeout_micros: int = option(
        0,
        "microseconds that a batch waits for more requests; 0: it does not wait",
        minimum=0,
        maximum=10**7,
    )
    max_enqueued_batches: int = option(
        1000, "batches that may wait; beyond it a request runs alone", minimum=1, maximum=10**6
    )
    allowed_batch_sizes: tuple[int, ...] | None = option(
        None, "batches are padded to these; default: powers of two", minimum=1
    )

    @property
    def problem(self) -> str:
        """What is wrong with the sizes; empty if nothing is."""
        sizes = self.allowed_batch_sizes
        if not sizes or list(sizes) == sorted(set(sizes)) and sizes[-1] == self.max_batch_size:
            return ""
        return (
            "allowed_batch_sizes: expected rising sizes that end with max_batch_size "
            f"({self.max_batch_size}), got {list(sizes)}"
        )

    @property
    def sizes(self) -> list[int]:
        """The batch sizes TensorFlow pads to, rising, the last one `max_batch_size`."""
        powers = (2**n for n in range(16) if 2**n < self.max_batch_size)  # at most 2**16
        return list(self.allowed_batch_sizes or (*powers, self.max_batch_size))


LIST_OF_DEVICES = re.compile(r"(?i)(?:(AUTO|HETERO|MULTI|BATCH):)?(.+)")
DEVICE = re.compile(r"(?i)(CPU|GPU)(?:[:.]([0-9]{1,4}))?")


def read_devices(target: str) -> list[str]:
    """The devices that a `target_device` names, the first choice first: `GPU:0`, `CPU:0`.

    Every spelling of OpenVINO's is taken: AUTO, HETERO:GPU,CPU, MULTI:GPU.1,CPU, BATCH:CPU(4), in
    any case. A device that TensorFlow has no name for is returned as it is written.
    """
    plain = re.sub(r"\s|\([0-9]*\)", "", target)  # (4) is OpenVINO's batch size, not used here
    if plain.upper() in ("AUTO", "HETERO", "MULTI"):
        return ["GPU:0", "CPU:0"]
    kind, names = LIST_OF_DEVICES.fullmatch(plain).groups() if plain else ("", "")  # type: ignore
    devices = []
    for name in names.split(","):
        known = DEVICE.fullmatch(name)
        devices.append(f"{known[1].upper()}:{int(known[2] or 0)}" if known else name)
    if (kind or "").upper() == "AUTO" and all(name.startswith("-") for name in devices):
        unwanted = [name[1:].upper() for name in devices]
        return [name for name in ("GPU:0", "CPU:0") if name.partition(":")[0] not in unwanted]
    return devices


@dataclass(frozen=True)
class ModelConfig:
    """One model. A contradiction in it fails this model alone: `problem` says which."""

    name: str = option(
        doc="the model's name in URLs: any text without control characters; not empty, . or ..",
        pattern=MODEL_NAME,
    )
    base_path: str = option(
        "",  # empty: `problem` refuses this model, not the whole config
        "folder of numbered version folders, or a SavedModel itself; relative to the config file",
        loads=True,
    )
    model_version_policy: VersionPolicy = option(
        VersionPolicy(latest=LatestPolicy()), "which versions to serve"
    )
    version_labels: dict[str, int] = option(
        {}, "names for versions, for /labels/<label> URLs", minimum=0
    )
    target_device: str | tuple[str, ...] = option(
        "AUTO",
        "AUTO (a GPU if TensorFlow sees one, else the CPU), CPU, GPU, GPU:1, HETERO:GPU,CPU (the "
        "first that is there), or an array of them: a replica on each",
        loads=True,
    )
    tags: tuple[str, ...] = option(
        ("serve",),
        "which of the SavedModel's graphs to load: the one with just these tags",
        loads=True,
    )
    instances: int = option(
        1, "replicas on each device; the least busy one answers", minimum=1, maximum=64, loads=True
    )
    load: str = option(
        "eager",
        "eager, or on_demand: loaded at the first request",
        pattern="^(eager|on_demand)$",
        loads=True,
    )
    idle_seconds: int | float | None = option(
        None, "on_demand: unloaded after so many seconds without a request", minimum=1
    )
    pinned: bool = option(False, "on_demand: stays in memory once it is loaded")
    freeze: bool = option(
        True,
        "turn the variables of a convolutional network into constants of its graph "
        "on a CPU; false: results stay the same to the last bit",
        loads=True,
    )
    batching: bool | Batching | None = option(
        None,
        "join concurrent requests: true, or sizes; default: each is answered alone",
        loads=True,
    )
    warm_up: bool = option(
        True,
        "call signatures with made-up input when a model is loaded, "
        "if their graph keeps no state between calls",
        loads=True,
    )
    # OpenVINO Model Server's fields that have no meaning for a SavedModel: accepted, and named
    # once in the log.
    batch_size: int | str | None = option(None, NO_EFFECT)
    shape: str | dict[str, str] | None = option(None, NO_EFFECT)
    layout: str | dict[str, str] | None = option(None, NO_EFFECT)
    nireq: int | None = option(None, NO_EFFECT, minimum=0)
    plugin_config: dict[str, str | bool | int | float] | None = option(None, NO_EFFECT)
    allow_cache: bool | None = option(None, NO_EFFECT)
    stateful: bool | None = option(None, NO_EFFECT)
    idle_sequence_cleanup: bool | None = option(None, NO_EFFECT)
    low_latency_transformation: bool | None = option(None, NO_EFFECT)
    max_sequence_number: int | None = option(None, NO_EFFECT, minimum=0)
    custom_loader_options: dict[str, Any] | None = option(None, NO_EFFECT)
    graph_path: str | None = option(None, NO_EFFECT)
    subconfig: str | None = option(None, NO_EFFECT)

    @property
    def targets(self) -> tuple[str, ...]:
        """The devices that each have a replica."""
        return (self.target_device,) if isinstance(self.target_device, str) else self.target_device

    @property
    def problem(self) -> str:
        """Why this model cannot be served, as `field: reason`; empty if it can be."""
        if not self.base_path:
            return "base_path: expected a folder, got ''"
        if re.match(r"[A-Za-z][\w+.-]*://", self.base_path):  # such as gs://
            scheme = self.base_path.partition(":")[0]
            return f"base_path: expected a folder of this machine, got a URL, {scheme}://..."
        if self.model_version_policy.problem:
            return f"model_version_policy: {self.model_version_policy.problem}"
        for label in self.version_labels:
            if label in ("", ".", ".."):
                return (
                    f"version_labels: expected labels for URLs; not empty, . or .., got '{label}'"
                )
        if not self.targets:
            return "target_device: expected a device, got an empty array"
        for target in self.targets:
            if not any(DEVICE.fullmatch(name) for name in read_devices(target)):
                return (
                    "target_device: expected AUTO, CPU, GPU, GPU:1 or HETERO:GPU,CPU, "
                    f"got '{target}'"
                )
        for name in ("idle_sequence_cleanup", "low_latency_transformation", "max_sequence_number"):
            if getattr(self, name) is not None and not self.stateful:
                return f'{name}: needs "stateful": true'
        if isinstance(self.batching, Batching) and self.batching.problem:
            return f"batching.{self.batching.problem}"
        return ""

    @property
    def load_key(self) -> tuple:
        """What a loaded version depends on: when it changes, the version is loaded anew."""
        fields = [f.name for f in dataclasses.fields(self) if f.metadata["loads"]]
        return tuple(getattr(self, name) for name in fields)

    def resolve(self, folder: Path) -> "ModelConfig":
        """Return a copy with an absolute base_path, which starts at `folder`."""
        if self.problem.startswith("base_path"):
            return self
        return dataclasses.replace(self, base_path=beside(folder, self.base_path))


@dataclass(frozen=True)
class ModelItem:
    config: ModelConfig = option(doc="one model")


def refuse_repeated(
    where: str, field_name: str, values: Sequence[str], hidden: bool = False
) -> None:
    """Raise ValueError for a value that stands twice in a list of the config; the error hides a
    value that may be a key.
    """
    for index, value in enumerate(values):
        if value in values[:index]:
            shown = "it" if hidden else f"'{value}'"
            taken = f"is already taken by {where}[{values.index(value)}]"
            raise ValueError(f"{where}[{index}].{field_name}: {shown} {taken}")


@dataclass(frozen=True)
class ActiveLearningConfig:
    """Pictures the model is unsure of are put aside, for people to look at."""

    threshold: int | float = option(
        doc="a picture with this score or more is put aside, 0..1", minimum=0, maximum=1
    )
    group: str = option(
        "review",
        "the folder its pictures go to: up to 100 letters, digits, '_', '-' and '.', which is not "
        "the first",
        pattern=r"^[\w-][\w.-]{0,99}$",
    )
    strategy: str = option(
        "entropy",
        "entropy, least_confidence or margin",
        pattern="^(entropy|least_confidence|margin)$",
    )
    folder: str = option(
        "active_learning", "where the groups' folders are; relative to the config file"
    )
    max_bytes: int = option(1 << 30, "bytes that a group may hold", minimum=0)
    max_images: int = option(10_000, "pictures that a group may hold", minimum=0)


@dataclass(frozen=True)
class BoxesConfig:
    format: str | None = option(
        None,
        "yxyx, xyxy (corners), xywh (a corner and the size) or cxcywh (the middle and the size)",
        pattern="^(yxyx|xyxy|xywh|cxcywh)$",
    )
    scale: str | None = option(
        None,
        "unit (0..1), pixels (of the picture before it is resized) or input (of the resized one)",
        pattern="^(unit|pixels|input)$",
    )


@dataclass(frozen=True)
class Deployment:
    id: str = option(
        doc="its name in URLs, without slashes, colons and control characters; not ., .., v1, v2, "
        "deployments, model-serving",
        pattern=r"^(?!(?i:\.{1,2}|v1|v2|deployments|model-serving)$)[^/:\x00-\x1f\x7f-\x9f]+$",
    )
    model: str = option(doc="the name of the model it serves")
    version: int | None = option(None, "the model's version; default: the highest", minimum=0)
    version_label: str | None = option(None, "or the label of the version")
    default: bool = option(
        False, "whether it answers /predict without an id; else the first deployment does"
    )
    label_map: str | dict[str, Any] | tuple[Any, ...] | None = option(
        None, "names of the classes: a file, an object by id, or a list", pattern=NOT_EMPTY
    )
    family: str | None = option(None, "the family that reads the outputs, if they do not show it")
    outputs: dict[str, str] = option({}, "the model's own names of the family's outputs")
    boxes: BoxesConfig | None = option(None, "how boxes are written, where the family does not say")
    classes_from: int | None = option(
        None, "the number of the first class in the outputs, 0 or 1", minimum=0, maximum=1
    )
    planes: str | None = option(
        None,
        "first or last: the axis of [A, B, C] that counts the classes, or the prototypes; needed "
        "if the sizes do not show it",
        pattern="^(first|last)$",
    )
    activation: str | None = option(
        None,
        "softmax, sigmoid or none (already confidences): how outputs become confidences",
        pattern="^(softmax|sigmoid|none)$",
    )
    threshold: int | float | None = option(
        None, "the lowest confidence of a prediction, or of a mask's pixel", minimum=0, maximum=1
    )
    top_k: int | None = option(
        None, "the most predictions in an answer; the best are kept", minimum=1
    )
    input: str | None = option(
        None,
        "what a string input holds, if the graph does not show it: encoded (a picture file) or "
        "example (a tf.Example)",
        pattern="^(encoded|example)$",
    )
    example_feature: str = option(
        "image/encoded", "the tf.Example's feature that holds the picture's file"
    )
    layout: str | None = option(
        None,
        "the input's dimensions, if its shape does not show it: NHWC, NCHW, NHW, HWC, CHW or HW",
        pattern="^(NHWC|NCHW|NHW|HWC|CHW|HW)$",
    )
    channels: str | None = option(
        None,
        "the channels that the model takes: rgb, bgr, grey, rgba or bgra",
        pattern="^(rgb|bgr|grey|rgba|bgra)$",
    )
    preprocess: str | None = option(
        None,
        "the mode in which keras.applications prepares pixels: tf, torch or caffe",
        pattern="^(tf|torch|caffe)$",
    )
    scale: int | float = option(
        1,
        "the model gets (pixel * scale + offset - mean) / std, for pixels of 0..255",
        minimum=-1e30,
        maximum=1e30,
    )
    offset: int | float = option(0, "see scale", minimum=-1e30, maximum=1e30)
    mean: tuple[int | float, ...] = option(
        (), "see scale: one number, or one for each channel", minimum=-1e30, maximum=1e30
    )
    std: tuple[int | float, ...] = option(
        (), "see scale: one number, or one for each channel", minimum=1e-12, maximum=1e30
    )
    resize: str | None = option(
        None,
        "how a picture of other proportions is fitted to the model: stretch, letterbox (whole, "
        "with padding) or crop (its middle); default: stretch",
        pattern="^(stretch|letterbox|crop)$",
    )
    padding: tuple[int, ...] = option(
        (0, 0, 0),
        "the colour around a letterboxed picture, red, green, blue",
        minimum=0,
        maximum=255,
    )
    stateful: bool = option(False, "true: its model may change its variables in a call")
    max_detections: int = option(
        300,
        "the most predictions in an answer, for detectors and segmenters; for classifiers: top_k",
        minimum=1,
        maximum=100_000,
    )
    version_tag: str | None = option(
        None,
        "a name of your own for this version, printable ASCII, in the X-Version-Tag header of its "
        "answers",
        pattern=r"^[\x20-\x7e]*$",
    )
    name: str | None = option(None, "what people call it; default: its id", pattern=NOT_EMPTY)
    notes: dict[str, str] = option({}, "texts that are kept and shown with it, such as a region")
    routines: tuple[dict[str, Any], ...] = option((), "run before those of a request")
    active_learning: ActiveLearningConfig | None = option(
        None, "put aside pictures that the model is unsure of"
    )

    def __post_init__(self) -> None:
        if self.version is not None and self.version_label is not None:
            raise ValueError("give 'version' or 'version_label', not both")
        if self.scale == 0:
            raise ValueError("scale: expected a number other than 0: it makes all pictures equal")
        reckoned = self.scale, self.offset, self.mean, self.std, self.channels
        if self.preprocess and reckoned != (1, 0, (), (), None):
            raise ValueError(
                "give 'preprocess', or 'scale', 'offset', 'mean', 'std' and 'channels', not both"
            )
        if len(self.padding) != 3:
            raise ValueError(f"padding: expected red, green, blue, got {len(self.padding)} numbers")


@dataclass(frozen=True)
class Quota:
    calls: int = option(doc="how many calls", minimum=1, maximum=1 << 53)
    period: str = option(
        doc="minute, hour, day or month, by UTC", pattern="^(minute|hour|day|month)$"
    )


@dataclass(frozen=True)
class Key:
    name: str = option(
        doc="its name in logs and counts: up to 100 printable ASCII characters, no spaces; not . "
        "or ..",
        pattern=r"^(?!\.{1,2}$)[\x21-\x7e]{1,100}$",
    )
    sha256: str = option(
        doc="64 hexadecimal digits: the SHA-256 of the key, as --new-key prints it",
        pattern="^[0-9a-fA-F]{64}$",
    )
    expires: str | None = option(
        None, "a date or time, such as 2027-01-31 or 2027-01-31T12:00:00+01:00; without offset: UTC"
    )
    disabled: bool = option(False, "true: the key is refused")
    admin: bool = option(False, "may change what is served, where the config has `admin`")
    deployments: tuple[str, ...] | None = option(
        None, "ids of deployments and paths of handlers that it may call; default: everything"
    )
    quota: Quota | None = option(None, "how often it may call; default: without limit")

    def __post_init__(self) -> None:
        if self.expires is not None and self.expiry is None:
            raise ValueError(
                "expires: expected a date or time such as 2027-01-31T12:00:00Z, got "
                f"a text of {len(self.expires)} characters"
            )

    @property
    def expiry(self) -> datetime.datetime | None:
        """When the key expires; None if `expires` is not given or cannot be read."""
        try:
            moment = datetime.datetime.fromisoformat((self.expires or "").replace("Z", "+00:00"))
        except ValueError:
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)

    @property
    def has_expired(self) -> bool:
        expiry = self.expiry
        return expiry is not None and expiry <= datetime.datetime.now(datetime.timezone.utc)


@dataclass(frozen=True)
class Auth:
    keys: tuple[Key, ...] = option((), "who may call; default: one key, made at each start")
    protect: str = option(
        "predict",
        "predict: pictures and handlers need a key; all: everything but /livez and /readyz does",
        pattern="^(predict|all)$",
    )
    quota_store: str | None = option(
        None,
        "where quotas are counted: a file, or redis://, rediss:// or unix:// for several servers "
        "together; default: <config>.quotas.sqlite3",
        pattern=NOT_EMPTY,
        secret=True,  # it may hold a password
    )
    wrong_keys_per_minute: int | None = option(
        None,
        "wrong keys that one address may send in a minute; after them it gets 429; default: "
        "30 where the config has `admin`, else without limit",
        minimum=1,
    )

    def __post_init__(self) -> None:
        refuse_repeated("keys", "name", [key.name for key in self.keys], hidden=True)
        refuse_repeated("keys", "sha256", [key.sha256.lower() for key in self.keys], hidden=True)
        scheme, is_url, rest = (self.quota_store or "").partition("://")
        # these errors do not quote the URL, which may hold a password
        if is_url and scheme not in ("redis", "rediss", "unix"):
            raise ValueError(
                "quota_store: expected a file, or a URL that begins with redis://, rediss:// or "
                "unix://"
            )
        if is_url and any("@" in part for part in re.split("[/?#]", rest, maxsplit=1)[1:]):
            raise ValueError(
                "quota_store: a /, ? or # in a user's name or password is written %2F, %3F or "
                "%23, an @ in an option %40"
            )


@dataclass(frozen=True)
class ImageConfig:
    max_bytes: int = option(50 << 20, "size of a picture's file", minimum=1)
    max_pixels: int = option(
        50_000_000,
        "width times height, read from the header; Pillow itself reads files up to 178,956,970",
        minimum=1,
    )
    download_seconds: int | float = option(
        10, "how long a download may take in all", minimum=0.001, maximum=3600
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        "hosts, or host:port, of pictures' URLs whose address need not be public",
        pattern=r"^[^/*\s]+$",
    )
    max_pictures: int = option(32, "pictures in one request", minimum=1, maximum=100_000)
    background: tuple[int, ...] = option(
        (255, 255, 255),
        "the colour behind transparent pixels: red, green, blue",
        minimum=0,
        maximum=255,
    )

    def __post_init__(self) -> None:
        if len(self.background) != 3:
            got = len(self.background)
            raise ValueError(f"background: expected red, green, blue, got {got} numbers")


def beside(folder: Path, path: str) -> str:
    """Make a path of the config absolute: it starts at `folder`; `~` is the home folder."""
    with contextlib.suppress(RuntimeError):  # `~name` of an unknown user
        return str(folder / Path(path).expanduser())
    return str(folder / path)


@dataclass(frozen=True)
class HandlerConfig:
    path: str = option(
        doc="its URL, such as /alice/sentiment, with letters, digits and ._~-; no part is . or ..",
        pattern=HANDLER_PATH,
    )
    function: str = option(
        "",
        "module:name or file.py:name, looked for beside the config, or in the project; needed "
        "without a project (src/main.py:inference_handler)",
        pattern=r"^[^:]+:[^:]+$",
    )
    project: str | None = option(
        None,
        "a project's folder in the layout of CellStrat's Hub API; relative to the config file",
        pattern=NOT_EMPTY,
    )
    model_dir: str | None = option(
        None,
        "the folder that the module finds as MODEL_DIR; relative to the config file; default: "
        "model in the project",
        pattern=NOT_EMPTY,
    )
    envelope: str | None = option(
        None, "hub (CellStrat's answers), an extension's, or none; default: what the function says"
    )
    methods: tuple[str, ...] = option(
        ("POST",),
        "GET, POST, PUT, PATCH or DELETE: the methods that call it; without GET, a GET pings it",
        pattern="^(GET|POST|PUT|PATCH|DELETE)$",
    )
    timeout_seconds: int | float | None = option(
        None, "how long a call may take, then 504; default: no limit", minimum=0.001, maximum=86400
    )

    def __post_init__(self) -> None:
        if not self.function and self.project is None:
            raise ValueError("function: needed where there is no project")

    def resolve(self, folder: Path) -> "HandlerConfig":
        """Return a copy with absolute paths, which start at `folder`, and a project's defaults."""
        function, model_dir = self.function, self.model_dir and beside(folder, self.model_dir)
        if self.project is not None:
            project = Path(beside(folder, self.project))
            function = str(project / (function or "src/main.py:inference_handler"))
            model_dir = model_dir or str(project / "model")
        return dataclasses.replace(self, function=function, model_dir=model_dir)


@dataclass(frozen=True)
class NodeInput:
    node_name: str = option(doc="the node whose output it is, or request")
    data_item: str = option(doc="the output's alias, or the input of the request")


@dataclass(frozen=True)
class NodeOutput:
    data_item: str = option(doc="the output's name in the model")
    alias: str = option(doc="its name for later nodes")


@dataclass(frozen=True)
class Node:
    name: str = option(doc="its name in this pipeline")
    type: str = option(doc="DL model or custom", pattern="^(DL model|custom)$")
    inputs: tuple[dict[str, NodeInput], ...] = option(
        doc="for each input an object of one key, its name: where it comes from"
    )
    outputs: tuple[NodeOutput, ...] = option(doc="the outputs that others use")
    model_name: str | None = option(None, "the model of a DL model node")
    version: int | None = option(
        None, "its version; default: the highest, at each request", minimum=1
    )
    function: str | None = option(
        None,
        "the Python function of a custom node: module:name or file.py:name",
        pattern=r"^[^:]+:[^:]+$",
    )
    params: dict[str, str] = option({}, "further arguments of a custom node's function")
    library_name: str | None = option(
        None, "OpenVINO's C++ nodes; here custom nodes are Python functions"
    )
    demultiply_count: int | None = option(
        None,
        "its outputs are split along their first dimension, of this size; -1: of any size",
        minimum=-1,
        maximum=10000,
    )
    gather_from_node: str | None = option(None, "the demultiplexer node whose shards it joins")

    def __post_init__(self) -> None:
        refuse_many_keys("inputs", self.inputs)
        is_custom = self.type == "custom"
        if is_custom and self.library_name and self.function is None and self.model_name is None:
            return  # OpenVINO's C++ node: its pipeline is refused later, the config stays valid
        wanted, other = ("function", "model_name") if is_custom else ("model_name", "function")
        if getattr(self, wanted) is None or getattr(self, other) is not None or self.library_name:
            raise ValueError(
                f"a node of type '{self.type}' needs '{wanted}' and has no '{other}' or "
                "'library_name'"
            )


@dataclass(frozen=True)
class Pipeline:
    name: str = option(
        doc="its name in URLs, as of a model: without control characters; not empty, . or ..",
        pattern=MODEL_NAME,
    )
    inputs: tuple[str, ...] = option(doc="the inputs of a request")
    nodes: tuple[Node, ...] = option(doc="models and functions")
    outputs: tuple[dict[str, NodeInput], ...] = option(
        doc="for each output an object of one key, its name: where it comes from"
    )
    demultiply_count: int | None = option(
        None,
        "inputs are split along their first dimension, of this size; -1: of any size",
        minimum=-1,
        maximum=10000,
    )

    def __post_init__(self) -> None:
        refuse_many_keys("outputs", self.outputs)


def refuse_many_keys(where: str, objects: Sequence[dict[str, NodeInput]]) -> None:
    for index, value in enumerate(objects):
        if len(value) != 1:
            raise ValueError(f"{where}[{index}]: expected an object of one key, got {len(value)}")


@dataclass(frozen=True)
class ServerConfig:
    """Options of the whole server. A change of those marked (start) needs a restart."""

    threads: int = option(32, "requests worked on at once (start)", minimum=1, maximum=1000)
    connection_limit: int = option(
        1000,
        "open connections; further ones wait to be accepted (start)",
        minimum=1,
        maximum=100_000,
    )
    file_system_poll_wait_seconds: int | float = option(
        1, "seconds between looks at config and version folders; 0: off", minimum=0, maximum=86400
    )
    servable_versions_always_present: bool = option(
        False, "the last version of a model is not unloaded when its folder has become empty"
    )
    aspired_version_policy: str = option(
        "availability_preserving",
        "availability_preserving: a new version is loaded before the old one is unloaded; "
        "resource_preserving: after it, so that both need not fit into memory",
        pattern="^(availability_preserving|resource_preserving)$",
    )
    num_load_threads: int = option(4, "versions that are loaded at once", minimum=1, maximum=64)
    max_queued_requests: int = option(
        1000, "requests that may wait for a thread; beyond it 503", minimum=1
    )
    max_queued_bytes: int = option(
        2 << 30,
        "size of the bodies held at once, and of what they unpack to; beyond it 503",
        minimum=1,
    )
    max_queue_seconds: int | float = option(
        60, "a request that would wait longer is refused at once with 503", minimum=0.001
    )
    timeout_seconds: int | float = option(
        300,
        "how long a request may take, waiting included; then 504. X-Request-Timeout may shorten it",
        minimum=0.001,
        maximum=86400,
    )
    receive_seconds: int | float = option(
        60,
        "how long a request may take to arrive; a second more for each 64 KB",
        minimum=0.1,
        maximum=86400,
    )
    send_seconds: int | float = option(
        60,
        "how long a client may take to read its answer; a second more for each 64 KB",
        minimum=0.1,
        maximum=86400,
    )
    load_wait_seconds: int | float = option(
        10, "how long a request waits for a model's first load, then 503", minimum=0, maximum=86400
    )
    drain_seconds: int | float = option(
        30, "how long running requests may take at a reload or at the end", minimum=0, maximum=86400
    )
    max_request_bytes: int = option(1 << 30, "size of a request's body as sent (start)", minimum=1)
    max_unpacked_bytes: int = option(
        100 << 20,
        "size of a body unpacked from gzip or deflate (TensorFlow Serving's limit), or a handler's "
        "stream",
        minimum=1,
    )
    max_decoded_bytes: int = option(
        1_500_000_000,
        "what gzip, deflate, arrays and pictures of one request may unpack to",
        minimum=1,
    )
    gzip_min_bytes: int = option(
        65536, "answers of at least this size are gzipped if Accept-Encoding allows it", minimum=1
    )
    memory_budget_mb: int | None = option(
        None,
        "MiB for models; beyond it on_demand models are unloaded, least recently used first",
        minimum=1,
    )
    cors_origins: tuple[str, ...] = option(
        (),
        'origins whose pages may call, as browsers write them: ["https://site.example"], in small '
        'letters, without a path or the usual port; or ["*"] for all',
        # null and file:// are the origins of pages opened from disk, capacitor://localhost of apps
        pattern=r"^(?!https://.*:443$|http://.*:80$)"
        r"(\*|null|file://|[a-z][a-z0-9+.-]*://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?)$",
    )
    trusted_proxy: str | None = option(
        None,
        "address of the proxy in front whose X-Forwarded-Proto, X-Forwarded-Host and the last "
        "address of X-Forwarded-For are believed, or * for any that connects (start)",
        pattern=r"^(\*|[0-9a-fA-F.]*:[0-9a-fA-F:.]*|"
        r"((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(\.(?!$)|$)){4})$",
    )
    gpu_memory_limit_mb: int | None = option(
        None, "MiB of each GPU for this process; default: grows on demand (start)", minimum=1
    )
    intra_op_threads: int | None = option(
        None,
        "threads that share one operation on a CPU; default: 1 on up to 2 cores, else as many "
        "as there are cores (start)",
        minimum=1,
        maximum=1024,
    )
    log_format: str = option(
        "text",
        "text or json: how `python serving.py` writes its log (start)",
        pattern="^(text|json)$",
    )
    log_level: str = option(
        "INFO", "DEBUG, INFO, WARNING or ERROR (start)", pattern="^(DEBUG|INFO|WARNING|ERROR)$"
    )
    log_probes: bool = option(
        False, "true: requests of /livez and /readyz are logged like all others"
    )
    history: str | None = option(
        None,
        "a file that keeps the page's graphs over a restart; relative to the config file (start)",
        pattern=NOT_EMPTY,
    )
    images: ImageConfig = option(ImageConfig(), "limits for pictures in requests")


@dataclass(frozen=True)
class Admin:
    """Options for changing what is served over REST, with keys that are marked `admin`."""

    upload: bool | str = option(
        False,
        "true: models may be uploaded; code: handler projects too, whose code then runs here",
        pattern="^code$",
    )
    models_folder: str = option(
        "models",
        "the folder for models uploaded under new names; relative to the config file",
        pattern=NOT_EMPTY,
    )
    projects_folder: str = option(
        "projects",
        "the folder for uploaded projects; relative to the config file",
        pattern=NOT_EMPTY,
    )
    max_upload_bytes: int = option(
        2 << 30, "size of an upload, and of all that it unpacks to", minimum=1
    )
    max_upload_files: int = option(10_000, "files and folders in an upload", minimum=1)


@dataclass(frozen=True)
class Config:
    model_config_list: tuple[ModelItem, ...] = option(doc="the models")
    deployments: tuple[Deployment, ...] = option(
        (), "models under names of their own, and how they take pictures"
    )
    import_modules: tuple[str, ...] = option(
        (), 'modules with custom operations, imported before models: such as "tensorflow_text"'
    )
    routine_modules: tuple[str, ...] = option((), "files or modules with routines of your own")
    auth: Auth = option(Auth(), "who may call what")
    server: ServerConfig = option(ServerConfig(), "options of the whole server")
    pipeline_config_list: tuple[Pipeline, ...] = option((), "graphs of models")
    handlers: tuple[HandlerConfig, ...] = option((), "Python functions behind URLs of their own")
    admin: Admin | None = option(None, "lets admin keys change the config over REST; default: off")
    custom_node_library_config_list: tuple[dict[str, Any], ...] = option((), NO_EFFECT)
    custom_loader_config_list: tuple[dict[str, Any], ...] = option((), NO_EFFECT)
    mediapipe_config_list: tuple[dict[str, Any], ...] = option((), NO_EFFECT)
    monitoring: dict[str, Any] | None = option(None, NO_EFFECT)

    def __post_init__(self) -> None:
        names = [deployment.id for deployment in self.deployments]
        paths = [handler.path for handler in self.handlers]
        refuse_repeated("deployments", "id", names)
        refuse_repeated("handlers", "path", paths)
        for index, one in enumerate(self.deployments):
            pinned = "version" if one.version is not None else "version_label"
            if getattr(one, pinned) is not None and self.is_pipeline(one.model):
                text = f"'{one.model}' is a pipeline, which has no versions"
                raise ValueError(f"deployments[{index}].{pinned}: {text}")
        defaults = [index for index, one in enumerate(self.deployments) if one.default]
        if len(defaults) > 1:
            text = f"deployments[{defaults[0]}] is the default already"
            raise ValueError(f"deployments[{defaults[1]}].default: {text}")
        for index, key in enumerate(self.auth.keys):
            for place, name in enumerate(key.deployments or ()):
                if name not in (*names, *paths):
                    raise ValueError(  # which hides the name: it may be the key itself
                        f"auth.keys[{index}].deployments[{place}]: "
                        "no deployment has that id, and no handler that path"
                    )

    @property
    def models(self) -> list[ModelConfig]:
        return [item.config for item in self.model_config_list]

    @property
    def served_names(self) -> list[str]:
        """The names of models and pipelines."""
        return [model.name for model in self.models] + [
            pipeline.name for pipeline in self.pipeline_config_list
        ]

    def is_pipeline(self, name: str) -> bool:
        """Whether `name` is a pipeline's; a model of the same name takes precedence."""
        return any(pipeline.name == name for pipeline in self.pipeline_config_list) and all(
            model.name != name for model in self.models
        )

    @property
    def default_deployment(self) -> list[str]:
        """The id of the deployment that answers /predict, as a list of one: the deployment marked
        `default`, else the first. Empty if there is no deployment.
        """
        marked = [deployment.id for deployment in self.deployments if deployment.default]
        return marked or [deployment.id for deployment in self.deployments[:1]]


def resolve_paths(config: Config, folder: Path, stem: str) -> Any:
    """Return the config with absolute paths: relative ones start at `folder`, the config file's.
    `stem`, the file's name without its suffix, names the default quota store.
    """

    def resolved(deployment: Deployment) -> Deployment:
        label_map, learning = deployment.label_map, deployment.active_learning
        return dataclasses.replace(
            deployment,
            label_map=beside(folder, label_map) if isinstance(label_map, str) else label_map,
            active_learning=learning
            and dataclasses.replace(learning, folder=beside(folder, learning.folder)),
        )

    store = config.auth.quota_store or f"{stem}.quotas.sqlite3"
    return dataclasses.replace(
        config,
        model_config_list=tuple(ModelItem(model.resolve(folder)) for model in config.models),
        deployments=tuple(map(resolved, config.deployments)),
        handlers=tuple(handler.resolve(folder) for handler in config.handlers),
        routine_modules=tuple(
            beside(folder, name) if name.endswith(".py") else name
            for name in config.routine_modules
        ),
        server=dataclasses.replace(
            config.server, history=config.server.history and beside(folder, config.server.history)
        ),
        auth=dataclasses.replace(
            config.auth, quota_store=store if "://" in store else beside(folder, store)
        ),
        admin=config.admin
        and dataclasses.replace(
            config.admin,
            models_folder=beside(folder, config.admin.models_folder),
            projects_folder=beside(folder, config.admin.projects_folder),
        ),
    )


JSON_TYPES = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    type(None): "null",
    dict: "object",
    list: "array",
    np.ndarray: "array",  # a long list of numbers
}


def json_kind(value: Any) -> str:
    """Name a JSON value for an error: `integer 3`, `string 'x'`, `object`."""
    name = JSON_TYPES.get(type(value), type(value).__name__)
    if value is None or isinstance(value, dict | list | np.ndarray):
        return name
    return f"{name} {str(value)[:60]!r}" if name == "string" else f"{name} {value}"


def what_came(value: Any, path: str, kind: Any) -> str:
    """Name the JSON value that came at `path` in place of a `kind`, for an error.

    Only its type is named where the value may be a key or a password: under `auth`, or if it is a
    string in place of an object, or of a list or union with objects in it.
    """
    objects = any(json_type_of(one) is dict for one in (kind, *typing.get_args(kind)))
    if is_secret(path) or isinstance(value, str) and objects:
        return JSON_TYPES.get(type(value), type(value).__name__)
    return json_kind(value)


def is_secret(path: str) -> bool:
    """Whether what the config has at a JSON path may be a key or a password."""
    return path.partition("[")[0].split(".")[:2] == ["$", "auth"]


def kind_name(kind: Any) -> str:
    """Name a declared type for an error: `string or object`."""
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(
            dict.fromkeys(kind_name(k) for k in typing.get_args(kind) if k is not type(None))
        )
    return JSON_TYPES[json_type_of(kind)]


def json_type_of(kind: Any) -> type:
    """The Python type that JSON parses to where a type is declared: dict for a dataclass,
    list for a tuple.
    """
    if dataclasses.is_dataclass(kind):
        return dict
    return {tuple: list, list: list, dict: dict}.get(typing.get_origin(kind), kind)


def is_json(value: Any, kind: Any) -> bool:
    """Whether a JSON value fits a declared type. Types are compared exactly, since a bool is an
    int in Python; an int fits where a float is declared.
    """
    return type(value) in ((int, float) if kind is float else (json_type_of(kind),))


def parse(
    kind: Any, value: Any, path: str = "$", limits: Mapping[str, Any] = types.MappingProxyType({})
) -> Any:
    """Read a JSON value as the declared `kind`: a dataclass, tuple, dict, union or plain type.

    Raises ConfigError with the JSON path, what was expected and what came. A bool is not an
    integer.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        matching = next((one for one in arguments if is_json(value, one)), None)
        if matching is not None:
            return parse(matching, value, path, limits)
    if not is_json(value, kind):
        raise ConfigError(path, f"expected {kind_name(kind)}, got {what_came(value, path, kind)}")
    if dataclasses.is_dataclass(kind):
        return parse_fields(kind, value, path)
    if origin in (tuple, list):
        return origin(
            gather(
                functools.partial(parse, arguments[0], item, f"{path}[{index}]", limits)
                for index, item in enumerate(value)
            )
        )
    if origin is dict:
        items = gather(
            functools.partial(parse, arguments[1], item, f"{path}.{key}", limits)
            for key, item in value.items()
        )
        return dict(zip(value, items))
    return check_limits(value, path, limits)


def gather(reads: Iterable[Callable[[], Any]], wrong: Sequence[ConfigError] = ()) -> list[Any]:
    """Call all functions and return their results. If any fails, or errors came before (`wrong`),
    raise the first ConfigError with the rest as its `others`.
    """
    found, errors = [], list(wrong)
    for read in reads:
        if len(errors) > MOST_OTHERS:  # a bound, since requests of any size are parsed here too
            break
        try:
            found.append(read())
        except ConfigError as error:
            errors += [error, *error.others]
    if errors:
        errors[0].others = tuple(errors[1:])
        raise errors[0]
    return found


def check_limits(value: Any, path: str, limits: Mapping[str, Any]) -> Any:
    """Return a plain value after checking it against its minimum, maximum and pattern."""
    if isinstance(value, int | float):
        if limits.get("minimum") is not None and not value >= limits["minimum"]:
            raise ConfigError(path, f"expected at least {limits['minimum']}, got {value}")
        if limits.get("maximum") is not None and not value <= limits["maximum"]:
            raise ConfigError(path, f"expected at most {limits['maximum']}, got {str(value)[:40]}")
    refuse_half(value, path)  # for requests: `refuse_twice` has checked a config already
    if limits.get("pattern") and isinstance(value, str):
        # JSON Schema's `$` matches at the end only; Python's also before a final line feed
        pattern = re.sub(r"(?<!\\)\$\Z", r"\\Z", limits["pattern"])
        if not re.search(pattern, value):
            came = f"a text of {len(value)} characters" if is_secret(path) else repr(value[:60])
            raise ConfigError(path, f"expected {limits['doc']}; got {came}")
    return value


@functools.cache
def field_types(kind: Any) -> dict[str, Any]:
    """A dataclass's fields and their types, also where its module postpones annotations."""
    return typing.get_type_hints(kind)


def parse_fields(kind: Any, value: dict[str, Any], path: str) -> Any:
    """Read a JSON object as the dataclass `kind`; unknown keys fail with a suggestion."""
    fields, kinds = {f.name: f for f in dataclasses.fields(kind)}, field_types(kind)
    unknown = itertools.islice((key for key in value if key not in fields), MOST_OTHERS + 1)
    meant = {str(key): similar_key(str(key)[:60], fields) for key in unknown}
    wrong = [unknown_key(key, fields, path) for key in meant]
    wrong += [
        ConfigError(path, f"missing key '{name}': {f.metadata['doc']}")
        for name, f in fields.items()
        if f.default is f.default_factory  # both are MISSING: the field has no default
        and name not in (*value, *meant.values())
    ]
    known = [key for key in value if key in fields]
    items = gather(
        (
            functools.partial(parse, kinds[key], value[key], f"{path}.{key}", fields[key].metadata)
            for key in known
        ),
        wrong,
    )
    try:
        return kind(**dict(zip(known, items)))
    except ValueError as error:
        place, colon, problem = str(error).partition(": ")
        if colon and re.split(r"[.[]", place)[0] in fields:
            raise ConfigError(f"{path}.{place}", problem) from None
        raise ConfigError(path, str(error)) from None


def similar_key(key: str, fields: Iterable[str]) -> str:
    return "".join(difflib.get_close_matches(key, fields, n=1))


def suggest(name: str, known: Iterable[str]) -> str:
    """Suggest the known name that is closest to `name`, else list them all."""
    close = similar_key(name, known)
    all_known = ", ".join(known) or "nothing"
    return f"did you mean '{close}'?" if close else f"expected one of: {all_known}"


def unknown_key(key: str, fields: Iterable[str], path: str) -> ConfigError:
    """The error for an unknown key: it suggests one of `fields`, or lists them all."""
    hint = suggest(key[:60], fields)
    hidden = is_secret(path)  # the key may be a password in the place of a field's name
    return ConfigError(path if hidden else f"{path}.{key}"[:200], f"unknown key; {hint}")


class Repeated(dict):
    """An object that repeats keys: it has the last value of each key, `first` has the first."""

    first: dict[str, Any]
    twice: str  # one of the repeated keys


def read_object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(members)
    if len(value) == len(members):
        return value
    repeated = Repeated(value)
    repeated.first = dict(reversed(members))
    repeated.twice = Counter(key for key, _ in members).most_common(1)[0][0]
    return repeated


def refuse_twice(value: Any, path: str) -> None:
    """Raise ConfigError for an object that repeats a key, with the object's path, and for half of
    a surrogate pair.

    Under `auth` the error names only keys that are options: another one may be a password.
    """
    if isinstance(value, Repeated):
        options = {one.name for kind in (Auth, Key, Quota) for one in dataclasses.fields(kind)}
        hidden = is_secret(path) and value.twice not in options
        key = "a key" if hidden else f"key '{value.twice}'"
        raise ConfigError(path, f"{key} stands twice in one object")
    if isinstance(value, dict):
        for name, item in value.items():
            refuse_half(name, path)
            refuse_twice(item, f"{path}.{name}")
    if isinstance(value, list):
        for index, item in enumerate(value):
            refuse_twice(item, f"{path}[{index}]")
    refuse_half(value, path)


def refuse_half(text: Any, path: str) -> None:
    """Raise ConfigError for a value or an object's key that UTF-8 cannot encode."""
    if isinstance(text, str) and re.search("[\ud800-\udfff]", text):
        where = "$.auth" if is_secret(path) else path  # a key in the path may be a password
        raise ConfigError(where, "expected text, got half of a surrogate pair")


# The beginning of TensorFlow Serving's --model_config_file: protobuf's text format, no JSON.
PROTOBUF_CONFIG = re.compile(
    rb"(?:\s|#[^\n]*\n)*(?:model_config_list|custom_model_config)\s*(?:[{<]|:(?!\s*[-[]))"
)
# Its messages (config/model_server_config.proto, file_system_storage_path_source.proto), with the
# fields that have a meaning here, and logging_config, which is ignored: field name -> number, type,
# whether it is repeated.
PROTOBUF_MESSAGES: dict[str, dict[str, tuple[int, str, bool]]] = {
    "ModelServerConfig": {"model_config_list": (1, "ModelConfigList", False)},
    "ModelConfigList": {"config": (1, "ModelConfig", True)},
    "ModelConfig": {
        "name": (1, "string", False),
        "base_path": (2, "string", False),
        "model_platform": (4, "string", False),
        "logging_config": (6, "Logging", False),
        "model_version_policy": (7, "Policy", False),
        "version_labels": (8, "Label", True),
    },
    "Logging": {
        "log_collector_config": (1, "LogCollector", False),
        "sampling_config": (2, "Sampling", False),
    },
    "LogCollector": {"type": (1, "string", False), "filename_prefix": (2, "string", False)},
    "Sampling": {"sampling_rate": (1, "double", False), "attributes": (2, "int32", False)},
    "Policy": {
        "latest": (100, "Latest", False),
        "all": (101, "All", False),
        "specific": (102, "Specific", False),
    },
    "Latest": {"num_versions": (1, "uint32", False)},
    "All": {},
    "Specific": {"versions": (1, "int64", True)},
    "Label": {"key": (1, "string", False), "value": (2, "int64", False)},
}


@functools.cache
def protobuf_config() -> Any:
    """The message that TensorFlow Serving's --model_config_file is read into."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # late: slow

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_server_config.proto", package="serving")
    for name, fields in PROTOBUF_MESSAGES.items():
        message = file.message_type.add(name=name)
        for key, (number, kind, several) in fields.items():
            label = kinds.LABEL_REPEATED if several else kinds.LABEL_OPTIONAL
            made = message.field.add(name=key, number=number, label=label)
            if kind in PROTOBUF_MESSAGES:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".serving.{kind}"
            else:
                made.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.ModelServerConfig"))


def read_protobuf_config(text: bytes) -> dict[str, Any]:
    """Convert TensorFlow Serving's --model_config_file to a config. Raises ConfigError."""
    from google.protobuf import json_format, text_format

    try:
        message = text_format.Parse(text.decode(), protobuf_config()())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigError("$", f"not a config of TensorFlow Serving: {error}") from None
    value = json_format.MessageToDict(message, preserving_proto_field_name=True)
    items = value.get("model_config_list", {}).get("config", [])
    for item in items:
        for name in ("model_platform", "logging_config"):
            item.pop(name, None)
        labels = item.pop("version_labels", ())  # protobuf leaves out fields that are 0 or empty
        item["version_labels"] = {one.get("key", ""): int(one.get("value", 0)) for one in labels}
        policy = item.pop("model_version_policy", {})
        if policy:  # an empty one is the default
            item["model_version_policy"] = policy
        if "specific" in policy:
            versions = policy["specific"].get("versions", [])
            policy["specific"] = {"versions": [int(number) for number in versions]}
        if policy.get("latest", {}).get("num_versions") == 0:  # TensorFlow Serving takes 0 as 1
            policy["latest"] = {}
    return {"model_config_list": [{"config": item} for item in items]}


def read_config(text: bytes) -> Any:
    """Parse the bytes of a config file; raises ConfigError with line and column.

    It is JSON, or TensorFlow Serving's own --model_config_file.
    """
    text = text.removeprefix(codecs.BOM_UTF8)
    if PROTOBUF_CONFIG.match(text):
        return read_protobuf_config(text)

    def constant(name: str) -> None:
        raise ConfigError("$", f"expected a number, got {name}")

    try:
        value = json.loads(text.decode(), object_pairs_hook=read_object, parse_constant=constant)
        refuse_twice(value, "$")
        return value
    except UnicodeDecodeError as error:
        raise ConfigError(
            "$", f"expected UTF-8 text, got byte 0x{text[error.start]:02x} at offset {error.start}"
        ) from None
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno} column {error.colno}"
        yaml = re.match(rb"(?:\s|#[^\n]*\n|---)*[\w-]+:(?:\s|$)", text)
        hint = "; it looks like YAML, and a config is JSON" if yaml else ""
        raise ConfigError("$", f"not valid JSON: {where}{hint}") from None
    except (RecursionError, ValueError):
        raise ConfigError("$", "not a config: nested too deeply, or a number too long") from None


def read_file(path: Path) -> bytes:
    if path.is_fifo():  # reading a named pipe blocks until somebody writes, at every reload
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return path.read_bytes()


def config_kind(extensions: Iterable[Extension]) -> type[Config]:
    """The `Config` class with the extensions' sections added as fields, None if not given."""
    sections = [
        (name, kind | None, option(None, f"of the extension {extension.name}"))
        for extension in extensions
        for name, kind in extension.sections.items()
        if kind is not None
    ]
    if not sections:
        return Config
    return dataclasses.make_dataclass("Config", sections, bases=(Config,), frozen=True)


def load_config(
    source: "str | os.PathLike | Mapping | Config",
    text: bytes | None = None,
    kind: type[Config] = Config,
) -> Config:
    """Read a config from a path (or its bytes `text`), a dict or a `Config`.

    Relative base paths start at the config file's folder, for a dict at the current one. `kind` is
    the class that `config_kind` makes, if extensions have sections of their own.
    Raises ConfigError; FileNotFoundError and other OSErrors when the file cannot be read.
    """
    if isinstance(source, kind):
        return source
    if isinstance(source, Config):
        return kind(**{f.name: getattr(source, f.name) for f in dataclasses.fields(Config)})
    if isinstance(source, Mapping):
        value, folder, stem = dict(source), Path.cwd(), "serving"
        refuse_twice(value, "$")
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(f"config: expected a path, a dict or a Config, got {repr(source)[:60]}")
    else:
        value = read_config(read_file(Path(source)) if text is None else text)
        folder, stem = Path(source).absolute().parent, Path(source).stem
    if isinstance(value, dict):
        value.pop("$schema", None)  # editors write it to find config.schema.json
    return resolve_paths(parse(kind, value), folder, stem)


# ==================================================================================================
# Tensors and JSON
# In: request bodies (bytes) and signatures. Out: NumPy arrays by input name; and arrays back to
# JSON. The rules and texts are TensorFlow Serving's (util/json_tensor.cc), read with RapidJSON 1.1.
# ==================================================================================================

# DataType enum name -> NumPy dtype; the dtypes REST can spell. Strings are bytes in object arrays.
NUMPY_DTYPES: dict[str, np.dtype] = {
    "DT_FLOAT": np.dtype(np.float32),
    "DT_DOUBLE": np.dtype(np.float64),
    "DT_HALF": np.dtype(np.float16),
    "DT_BFLOAT16": np.dtype(ml_dtypes.bfloat16),
    "DT_INT8": np.dtype(np.int8),
    "DT_INT16": np.dtype(np.int16),
    "DT_INT32": np.dtype(np.int32),
    "DT_INT64": np.dtype(np.int64),
    "DT_UINT8": np.dtype(np.uint8),
    "DT_UINT16": np.dtype(np.uint16),
    "DT_UINT32": np.dtype(np.uint32),
    "DT_UINT64": np.dtype(np.uint64),
    "DT_BOOL": np.dtype(np.bool_),
    "DT_STRING": np.dtype(object),
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a signature: its key (`name`), its name in the graph (`tensor`), dtype, shape.

    `dtype` is spelled `DT_FLOAT`. `shape` has None for an unknown size, and is None if the rank is
    unknown. Of an output, `made_by` is the type of the operation that computes it; `scale` says
    whether the boxes that it starts with are in 0..1 (`unit`) or in pixels of the input (`input`);
    both are "" if unknown. `logits` names the outputs of which it is the softmax or sigmoid.
    """

    name: str
    tensor: str
    dtype: str
    shape: tuple[int | None, ...] | None
    made_by: str = ""
    scale: str = ""
    logits: tuple[str, ...] = ()

    @property
    def type_name(self) -> str:
        """The dtype as TensorFlow prints it: `float`, `int64`."""
        return self.dtype.removeprefix("DT_").lower()


@dataclass(frozen=True)
class Signature:
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]
    # Types of the operations that it may run; empty if unknown.
    operations: Collection[str] = ()
    example: bytes = b""  # a made-up tf.train.Example with the features it parses, if it parses any


class UnpackedBytes:
    """Counts the bytes that the bodies of all running requests have unpacked to.

    `limit()` is the most that they may be, and is called each time. Counted under a lock.
    """

    def __init__(self, limit: Callable[[], int]):
        self.limit, self._lock = limit, threading.Lock()
        self.held = 0

    def add(self, size: int) -> None:
        """Count `size` bytes, negative ones as free again; 503 when they do not fit."""
        with self._lock:
            if size > 0 and self.held + size > self.limit():
                raise ServingError(
                    "The server is busy: other requests use all the memory that "
                    "max_queued_bytes allows. Try again in a moment",
                    "UNAVAILABLE",
                )
            self.held += size


class Allowance:
    """The bytes that one request's body may unpack to: taken before unpacking, freed by `close`."""

    def __init__(self, all_bodies: UnpackedBytes, most: int):
        self._all, self.most, self.held = all_bodies, most, 0

    def take(self, size: int) -> None:
        """Take `size` bytes; a negative size gives some back.

        Raises ServingError: 413 when they can never fit, 503 when they do not fit now.
        """
        most = min(self.most, self._all.limit())
        if size > 0 and self.held + size > most:
            raise ServingError(
                f"Request body unpacks to {self.held + size} bytes or more, "
                f"over the limit of {most}",
                "INVALID_ARGUMENT",
                413,
            )
        self._all.add(size)
        self.held += size

    def close(self) -> None:
        if self.held:
            self.take(-self.held)


UNPACKED_PIECE = 1 << 20  # bytes that are unpacked in one step


def unpack_body(data: bytes, coding: str, most: int, allowance: Allowance) -> bytes:
    """Unpack a body of gzip or deflate, piece by piece; 413 beyond `most` bytes.

    Raises ServingError.
    """
    unpacked, file = io.BytesIO(), gzip.GzipFile(fileobj=io.BytesIO(data))

    def read() -> bytes:
        return file.read(min(UNPACKED_PIECE, most + 1 - unpacked.tell()))

    try:
        for piece in iter(read, b"") if coding == "gzip" else inflate(data):
            if unpacked.tell() + len(piece) > most:
                raise ServingError(
                    f"Request body unpacks to more than the limit of {most} bytes", status=413
                )
            allowance.take(len(piece))
            unpacked.write(piece)
    except (OSError, EOFError, zlib.error) as error:
        text = f"Content-Encoding says {coding}, but the request body is not: {error}"
        raise BadRequest(text) from None
    return unpacked.getvalue()


def inflate(data: bytes) -> Iterator[bytes]:
    """Unpack deflated data, in pieces, with a zlib header or, as some clients send it, without."""
    unpacker, packed = zlib.decompressobj(15 if data[:1] and data[0] & 15 == 8 else -15), b""
    for start in range(0, len(data), UNPACKED_PIECE):
        packed = data[start : start + UNPACKED_PIECE]
        while packed and not unpacker.eof:
            yield unpacker.decompress(packed, UNPACKED_PIECE)
            packed = unpacker.unconsumed_tail
    yield unpacker.flush()
    if not unpacker.eof or unpacker.unused_data or packed:
        raise EOFError("it ends too early, or has more bytes after its end")


def is_plain_json(body: bytes) -> bool:
    """Whether a body is a JSON object without anything packed: no `b64`, and no escapes."""
    return body[:1] == b"{" and b"b64" not in body and b"\\" not in body


# 64 pictures of 224x224 pixels have 3.2 million lists. An empty list, 3 bytes of text, takes 60
# bytes of memory.
MAX_LISTS = 4_000_000


def parse_json(body: bytes) -> Any:
    """Parse a request's body in RapidJSON's dialect; raises BadRequest with RapidJSON's text."""
    if body.count(b"[") + body.count(b"{") > MAX_LISTS:
        raise ServingError(
            f"Request body holds more than {MAX_LISTS} lists and objects: send fewer rows at once",
            "INVALID_ARGUMENT",
            413,
        )
    try:
        value = orjson.loads(body)
    except ValueError:  # wrong, or valid in RapidJSON's dialect only
        return parse_dialect(body)
    return parse_dialect(body) if may_repeat_a_key(body, value) else value


ESCAPED_KEY = re.compile(rb'\\"?[^"\\]*"\s*:')


def may_repeat_a_key(body: bytes, value: Any) -> bool:
    """Whether a key at the top or in `inputs` may repeat: orjson keeps the last, not the first."""
    if not isinstance(value, dict):
        return False
    inputs = value.get("inputs")
    names = [*value, *(inputs if isinstance(inputs, dict) else ())]
    if len(names) > 64 or (b"\\" in body and ESCAPED_KEY.search(body)):
        return True
    return any(body.count(b'"%b"' % name.encode()) > 1 for name in names)


JSON_SPACE = " \t\r\n"
# Strings and words. An unterminated string matches up to the end of the text: a search from each
# later quote would take quadratic time.
JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|-?\w[\w.+-]*', re.DOTALL)
JSON_WORDS = {"-NaN": "NaN", "Inf": "Infinity", "-Inf": "-Infinity"}  # RapidJSON's -> Python's
JSON_ESCAPE = re.compile(  # group 1: half of a surrogate pair
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F]..)|.)", re.DOTALL
)
# Start of a message of Python's parser -> RapidJSON's text for it; the default is "Invalid value."
JSON_PROBLEMS = {
    "Expecting property name": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Expecting ':'": "Missing a colon after a name of object member.",
    "Unterminated string": "Missing a closing quotation mark in string.",
    "Invalid \\uXXXX": "Incorrect hex digit after \\u escape in string.",
    "Invalid": "Invalid escape character in string.",
}


def read_float(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise OverflowError(number)
    return value


def read_integer(number: str) -> int | float:
    """Read an integer; one that does not fit into 64 bits becomes a float, as in RapidJSON."""
    if len(number) <= 20 and -(2**63) <= int(number) < 2**64:
        return int(number)
    return read_float(number)


JSON_DECODER = json.JSONDecoder(
    object_pairs_hook=read_object, parse_float=read_float, parse_int=read_integer
)


def parse_dialect(body: bytes) -> Any:
    """Parse JSON in RapidJSON's dialect with Python's parser; raises BadRequest.

    NaN and Inf are numbers, and text after the value is ignored. Bytes that are not UTF-8 become
    surrogate escapes. The first of repeated keys wins, at the top and in `inputs`.
    """
    if not body:
        raise BadRequest("JSON Parse error: The document is empty")
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    if re.search("-NaN|Inf(?!inity)", text):
        text = JSON_TOKEN.sub(lambda token: JSON_WORDS.get(token[0], token[0]), text)
    try:
        value, end = decode_json(text)
    except RecursionError:
        raise BadRequest("JSON Parse error: lists and objects are nested too deep") from None
    if "\\u" in text[:end]:
        position = find_token(text[:end], has_half_a_pair)
        if position < end:
            raise json_error("The surrogate pair in string is invalid.", text, position)
    value = getattr(value, "first", value)
    if isinstance(value, dict) and "inputs" in value:
        value["inputs"] = getattr(value["inputs"], "first", value["inputs"])
    return value


def decode_json(text: str) -> tuple[Any, int]:
    """The first value of a text, and where it ends; raises BadRequest."""
    try:
        value, end = JSON_DECODER.raw_decode(text, len(text) - len(text.lstrip(JSON_SPACE)))
        if re.match("[0-9][.eE]", text[end - 1 : end + 1]):  # it has stopped within a number
            raise json.JSONDecodeError("Expecting ',' delimiter", text, end)
        return value, end
    except json.JSONDecodeError as error:
        raise json_error(explain_json(text, error), text, error.pos) from None
    except OverflowError as error:
        number = str(error)
        position = find_token(text, lambda token: token.startswith(number))
        raise json_error("Number too big to be stored in double.", text, position) from None


def find_token(text: str, wanted: Callable[[str], bool]) -> int:
    """The offset of the first string or word that is `wanted`; the text's length if none is."""
    tokens = JSON_TOKEN.finditer(text)
    return next((token.start() for token in tokens if wanted(token[0])), len(text))


def has_half_a_pair(token: str) -> bool:
    return any(escape[1] for escape in JSON_ESCAPE.finditer(token))


def explain_json(text: str, error: json.JSONDecodeError) -> str:
    """RapidJSON's text for what Python's parser has found wrong."""
    before, mark = text[: error.pos], text[error.pos : error.pos + 1]
    if not before.strip(JSON_SPACE) and not mark:
        return "The document is empty."
    if not error.msg.startswith("Expecting ','"):
        known = (theirs for start, theirs in JSON_PROBLEMS.items() if error.msg.startswith(start))
        return next(known, "Invalid value.")
    if before[-1].isdigit() and mark in (".", "e", "E"):
        return f"Miss {'fraction part' if mark == '.' else 'exponent'} in number."
    try:
        JSON_DECODER.decode(before + "}")
    except json.JSONDecodeError as again:
        if again.pos == error.pos:  # not even a brace may stand here: it is within an array
            return "Missing a comma or ']' after an array element."
    return "Missing a comma or '}' after an object member."


def json_error(problem: str, text: str, position: int) -> BadRequest:
    offset = len(text[:position].encode("utf-8", "surrogateescape"))
    return BadRequest(f"JSON Parse error: {problem} at offset: {offset}")


def show(value: Any) -> str:
    """A JSON value for an error text, pretty-printed and cut at 256 characters,
    as TensorFlow Serving shows it.
    """
    text = ""
    for piece in json.JSONEncoder(
        indent=4, ensure_ascii=False, skipkeys=True, default=repr
    ).iterencode(value):
        text += piece[:256]
        if len(text) > 256:
            break
    return f"JSON Value: {text[:256]}"


def type_of(value: Any) -> str:
    """RapidJSON's name of a value's type; Python's name for what JSON does not have."""
    if isinstance(value, bool):
        return str(value)
    kind = type(value)
    names = {dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
    return "Null" if value is None else names.get(kind, kind.__name__)


MAX_DIMENSIONS = 32  # TensorFlow 2.21 crashes the process on string tensors of rank 33 and more


def decode_tensor(value: Any, spec: TensorSpec) -> np.ndarray:
    """Read a JSON value, or an array from Python, as one tensor of `spec`'s dtype. Its shape is not
    checked here.

    Raises BadRequest with TensorFlow Serving's text; ServingError UNIMPLEMENTED for a dtype that
    JSON cannot spell.
    """
    array = None
    if isinstance(value, list | np.ndarray):
        array = quick_tensor(value, NUMPY_DTYPES.get(spec.dtype))
    if array is None:
        made = plain_value(value)
        if made is not value:
            return decode_tensor(made, spec)
        exact = exact_array if isinstance(value, np.ndarray) else exact_tensor
        array = exact(value, spec)
    if array.ndim > MAX_DIMENSIONS:
        raise BadRequest(f"tensor parsing error: {spec.name}")
    return array


def plain_value(value: Any) -> Any:
    """Convert a Python value to one that JSON has, or to an array: tuples and ranges to lists, what
    has `__array__`, such as a tensor or a pandas frame, to an array. Others are returned as given.
    """
    if isinstance(value, tuple | range):
        return list(value)
    if isinstance(value, np.ndarray) or not hasattr(value, "__array__"):
        return value
    return np.asarray(value)


def quick_tensor(value: Any, dtype: np.dtype | None) -> np.ndarray | None:
    """Read nested lists of numbers, or of arrays, level by level in C.

    None if the exact path must decide: it has all rules and error texts.
    """
    if dtype is None or dtype.kind == "O":
        return None
    if isinstance(value, np.ndarray):
        return quick_cast(value, dtype)
    shape: list[int] = []
    flat = [value]
    while (kinds := set(map(type, flat))) == {list}:
        lengths = set(map(len, flat))
        if len(lengths) > 1 or len(shape) > MAX_DIMENSIONS:
            return None
        shape.append(lengths.pop())
        flat = list(itertools.chain.from_iterable(flat))
    try:
        if not kinds:
            return np.empty(shape, dtype)
        if kinds <= {int, float}:
            code = "Q" if dtype == np.uint64 else "q"
            if float in kinds or dtype.kind in "fV":
                # straight to float32: larger numbers become infinity, as in TensorFlow Serving
                code = dtype.char if dtype.char in "fd" else "d"
            return quick_cast(np.frombuffer(array.array(code, flat), code).reshape(shape), dtype)
        if kinds == {bool} and dtype.kind == "b":
            return np.array(flat, dtype).reshape(shape)
        if all(issubclass(kind, np.ndarray | np.generic) for kind in kinds):
            arrays = np.array(flat)
            return quick_cast(arrays.reshape(*shape, *arrays.shape[1:]), dtype)
    except (ValueError, OverflowError, TypeError):  # different shapes, integers over 64 bits
        return None
    return None


def quick_cast(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Convert an array of numbers to `dtype` when every value is of its kind and in its range,
    else None.
    """
    if numbers.dtype == dtype or numbers.size == 0 and numbers.dtype.kind != "O":
        return numbers.astype(dtype, copy=False)
    if dtype.kind in "fV" and numbers.dtype.kind in "iuf":  # V: bfloat16
        with np.errstate(over="ignore"):  # too large is infinity, as in TensorFlow Serving
            return numbers.astype(np.float64, copy=False).astype(dtype)
    if dtype.kind in "iu" and numbers.dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if limits.min <= numbers.min() and numbers.max() <= limits.max:
            return numbers.astype(dtype, copy=False)
    return None


def exact_tensor(value: Any, spec: TensorSpec) -> np.ndarray:
    """Read a JSON value one element at a time, by the rules and with
    the texts of util/json_tensor.cc.
    """
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MAX_DIMENSIONS:
        raise BadRequest(f"tensor parsing error: {spec.name}")
    leaves: list[Any] = []
    collect_leaves(value, 0, shape, leaves)
    dtype = NUMPY_DTYPES.get(spec.dtype)
    if dtype is None:
        raise ServingError(
            f"Conversion of {show(first)} to type: {spec.type_name}", "UNIMPLEMENTED"
        )
    elements = np.empty(len(leaves), dtype)
    with np.errstate(over="ignore"):
        for index, leaf in enumerate(leaves):
            elements[index] = decode_leaf(leaf, index, shape, spec, dtype)
    return elements.reshape(shape)


def decode_leaf(
    leaf: Any, index: int, shape: Sequence[int], spec: TensorSpec, dtype: np.dtype
) -> Any:
    """Read the element at the flat `index` of a tensor of `shape`; BadRequest if it is wrong."""
    try:
        return decode_element(leaf, spec, dtype)
    except OverflowError:
        place = "".join(f"[{i}]" for i in np.unravel_index(index, shape)) if shape else ""
        where = f" at {place}" if place else ""
        raise BadRequest(
            f"{show(leaf)}{where} is out of range for type: {spec.type_name}"
        ) from None


def exact_array(array: np.ndarray, spec: TensorSpec) -> np.ndarray:
    """Read an array that quick_cast refused, by the rules of exact_tensor.

    An array of numbers is then wrong: only its first wrong one is made a Python object, to be
    named in the error.
    """
    dtype = NUMPY_DTYPES.get(spec.dtype)
    if dtype is not None and not array.size:  # nested lists cannot hold the sizes after a 0
        return np.empty(array.shape, dtype)
    if array.dtype.kind in "mM":  # as a list, some are numbers
        raise BadRequest(f"{spec.name}: expected {spec.type_name}, got {array.dtype}")
    if dtype is None or array.dtype.kind not in "biufc" or array.ndim > MAX_DIMENSIONS:
        return exact_tensor(array.tolist(), spec)
    index = 0
    if array.dtype.kind in "iu" and dtype.kind in "iu":  # find the first that is out of range
        limits, flat = np.iinfo(dtype), array.reshape(-1)
        index = int(((flat < limits.min) | (flat > limits.max)).argmax())
    return np.array(decode_leaf(array.item(index), index, array.shape, spec, dtype))


def collect_leaves(value: Any, level: int, shape: list[int], leaves: list[Any]) -> None:
    """Append the elements of a nested list that must have exactly `shape`."""
    if not isinstance(value, list):
        if level != len(shape):
            raise BadRequest(
                f"{show(value)} found at incorrect level: {level + 1} in the JSON DOM. Expected "
                f"at level: {len(shape)}"
            )
        leaves.append(value)
        return
    if level >= len(shape):
        raise BadRequest(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise BadRequest(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    for item in value:
        collect_leaves(item, level + 1, shape, leaves)


def decode_element(leaf: Any, spec: TensorSpec, dtype: np.dtype) -> Any:
    """One JSON value as one element.

    OverflowError when an integer does not fit (never wrapped around).
    """
    if isinstance(leaf, np.generic) and leaf.dtype.kind not in "mM":
        leaf = leaf.item()
    kind = type(leaf)
    if dtype.kind in "fV" and kind in (int, float):
        return float(leaf)
    if dtype.kind in "iu" and kind is int:
        limits = np.iinfo(dtype)
        # TensorFlow Serving reads any int32 for the types below 32 bits, and wraps it: here it is
        # out of range. Larger numbers have the wrong type, as there.
        readable = np.iinfo(np.int32) if dtype.itemsize <= 2 else limits
        if limits.min <= leaf <= limits.max:
            return leaf
        if readable.min <= leaf <= readable.max:
            raise OverflowError
    if dtype.kind == "b" and kind is bool:
        return leaf
    if dtype.kind == "O" and kind is str:
        return encode_text(leaf)
    if dtype.kind == "O" and kind is bytes:  # from Python
        return leaf
    if dtype.kind == "O" and kind is dict:
        return decode_b64(leaf)
    raise BadRequest(
        f"{show(leaf)} Type: {type_of(leaf)} is not of expected type: {spec.type_name}"
    )


def encode_text(text: str) -> bytes:
    """Encode a string as UTF-8; surrogate escapes become the bytes that they were read from.

    BadRequest for half of a surrogate pair, which only callers from Python can pass.
    """
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise BadRequest(f"{text[:60]!r} is no Unicode text") from None


def is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def holds_bytes(value: Any) -> bool:
    """Whether a predict body's value may hold bytes, such as pictures.

    Only the first item of each list is looked at, so that large arrays of numbers cost nothing.
    """
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value[:1]
        elif isinstance(value, bytes) or is_base64(value):
            return True
        elif isinstance(value, dict):
            waiting += value.values()
    return False


def decode_b64(value: dict) -> bytes:
    """Decode `{"b64": ...}`: standard alphabet, padding optional but right if given,
    white space skipped (abseil).
    """
    if not is_base64(value):
        raise BadRequest(f"{show(value)} not formatted correctly for base64 data")
    text = re.sub(r"[ \t\n\r\f\v]", "", value["b64"]).replace(".", "=")
    digits = text.rstrip("=")
    padding = len(text) - len(digits)
    try:
        if padding > 2 or (padding and len(text) % 4):
            raise ValueError
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (ValueError, binascii.Error):
        raise BadRequest("Unable to base64 decode") from None


STRING_ESCAPES = {bytes([code]): f"\\u{code:04X}".encode() for code in range(0x20)} | {
    b'"': b'\\"',
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\f": b"\\f",
    b"\n": b"\\n",
    b"\r": b"\\r",
    b"\t": b"\\t",
}


def encode_string(value: bytes) -> bytes:
    """Write bytes as a JSON string: only quotes, backslashes and control characters are escaped,
    so that bytes which are not UTF-8 are kept.
    """
    escaped = re.sub(rb'[\x00-\x1f"\\]', lambda match: STRING_ESCAPES[match.group()], value)
    return b'"' + escaped + b'"'


def encode_floats(array: np.ndarray) -> bytes:
    """An array of numbers as JSON with the tokens NaN, Infinity and -Infinity,
    for which orjson writes null.
    """
    pieces = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY).split(b"null")
    flat = np.atleast_1d(array)
    tokens = (
        b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity"
        for value in flat[~np.isfinite(flat)]
    )
    return b"".join(
        itertools.chain.from_iterable(itertools.zip_longest(pieces, tokens, fillvalue=b""))
    )


def encode_odd(value: Any) -> Any:
    """What orjson cannot write by itself: bytes, bfloat16, object arrays, scalars in arrays,
    strided arrays.
    """
    if isinstance(value, bytes):
        return orjson.Fragment(encode_string(value))
    if isinstance(value, ml_dtypes.bfloat16):
        return np.float32(value)
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot be written as JSON: {type(value).__name__}")
    if value.dtype.kind == "O":
        return value.tolist()
    if value.dtype.kind == "V":
        value = value.astype(np.float32)
    return value[()] if value.ndim == 0 else np.ascontiguousarray(value)


def spell_floats(value: Any) -> Any:
    """Like encode_odd, but write arrays and scalars with NaN and infinities as JSON tokens."""
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind == "O":
        return encode_odd(value)
    array = np.asarray(value, np.float32 if value.dtype.kind == "V" else None)
    return orjson.Fragment(
        encode_floats(array[()] if array.ndim == 0 else np.ascontiguousarray(array))
    )


def encode_json(value: Any) -> bytes:
    """Write an answer as JSON.

    Floats are the shortest text that reads back to the same value in their dtype.
    """
    text = orjson.dumps(value, default=encode_odd, option=orjson.OPT_SERIALIZE_NUMPY)
    # a null may stand for a NaN
    return orjson.dumps(value, default=spell_floats) if b"null" in text else text


# --- large arrays -------------------------------------------------------------------------------
#
# Read into NumPy without a Python object for each number. For anything unusual (ragged lists, null,
# strings among numbers, escapes, pictures, NaN) these functions return None: the plain path, which
# has all rules and error texts, then reads the body.

LARGE = 512  # bytes of an array's text; for less, the plain path is as fast
MOST_STRINGS = 512  # strings in a body, keys included
# Removing these leaves an array's brackets and commas; simdjson checks the numbers themselves.
NUMBER_BYTES = b"0123456789+-.eE \t\n\r"
TOKEN = secrets.token_hex(16)  # starts the string in place of an array; no client can guess it
TOKEN_BYTES = TOKEN.encode()

KEPT_BYTES = 8 << 20  # of the longest text whose parser is kept: it holds several times as much
parsers: list[Any] = []  # idle ones, for reuse: as many as were ever in use at once


def read_large_json(body: bytes) -> Any | None:
    """The JSON value of a body, its large arrays as int64, uint64 or float64.

    None if the plain path must read it.
    """
    if b"\\" in body:
        return None
    rest, arrays, start = list[bytes](), list[np.ndarray](), 0
    for _ in range(MOST_STRINGS):  # a step: brackets and numbers up to a string, then the string
        quote = body.find(b'"', start)
        end = quote if quote >= 0 else len(body)
        if end - start < LARGE:
            rest.append(body[start:end])
        else:
            first, brace = body.find(b"[", start, end), body.find(b"}", start, end)
            # brackets after the brace that ends a row belong to other rows
            last = body.rfind(b"]", start, brace if brace >= 0 else end) + 1
            array = read_array(body[first:last]) if first >= 0 else None
            if array is None or body[last:end].lstrip().startswith(b":"):
                # a list cannot be a key, but its token could
                return None
            rest += [body[start:first], b'"%b%d"' % (TOKEN_BYTES, len(arrays)), body[last:end]]
            arrays.append(array)
        if quote < 0:
            break
        start = body.find(b'"', quote + 1) + 1
        string = body[quote:start]
        if not start or string == b'"b64"':
            return None
        rest.append(string)
    else:
        return None
    text = b"".join(rest)
    if not arrays or len(body) > MAX_LISTS and count_lists(text, arrays) > MAX_LISTS:
        return None
    try:
        return put_back(parse_json(text), arrays)
    except (ServingError, RecursionError):
        return None


def count_lists(text: bytes, arrays: list[np.ndarray]) -> int:
    """Count the lists and objects of a body: those in its remaining text and in its arrays."""
    return (
        text.count(b"[")
        + text.count(b"{")
        + sum(math.prod(array.shape[:level]) for array in arrays for level in range(array.ndim))
    )


def put_back(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return the value with each token replaced by its array."""
    if isinstance(value, str):
        return arrays[int(value[len(TOKEN) :])] if value.startswith(TOKEN) else value
    if isinstance(value, dict):
        return {key: put_back(item, arrays) for key, item in value.items()}
    return [put_back(item, arrays) for item in value] if isinstance(value, list) else value


def read_array(text: bytes) -> np.ndarray | None:
    """Read nested JSON lists of numbers as an array.

    None unless they are rectangular, not empty, and of numbers that fit into 64 bits.
    """
    rank = rank_of_row(text)
    shape = [1] * (rank - 1) + [-1] if rank else shape_of(text.translate(None, NUMBER_BYTES))
    if shape is None:
        return None
    try:
        parser = parsers.pop()
    except IndexError:
        parser = simdjson.Parser()
    try:
        lists = parser.parse(text)
        flat = read_numbers(lists, is_float=b"." in text or b"e" in text or b"E" in text)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        return None
    finally:
        lists = None  # a parser can be used again only when nothing refers to its result
        if len(text) <= KEPT_BYTES:
            parsers.append(parser)
    # without numbers, [] and [1] are the same skeleton
    fits = flat.size == math.prod(shape) if not rank else flat.size
    return flat.reshape(shape) if fits else None


def read_numbers(lists: Any, is_float: bool) -> np.ndarray:
    """All numbers of nested lists: float64 if one of them is written as a float, else int64,
    or uint64 where they need it.
    """
    if is_float:
        return np.frombuffer(lists.as_buffer(of_type="d"), np.float64)
    try:
        return np.frombuffer(lists.as_buffer(of_type="i"), np.int64)
    except (ValueError, TypeError, OverflowError):
        return np.frombuffer(lists.as_buffer(of_type="u"), np.uint64)


def rank_of_row(text: bytes) -> int:
    """The rank of lists that hold a single row of numbers: [[1, 2]] has 2.

    0 if there are more rows, or if shape_of must find out.
    """
    opened, closed = text.rfind(b"[") + 1, text.find(b"]")
    if opened > MAX_DIMENSIONS or len(text) - closed > MAX_DIMENSIONS:
        return 0
    return opened if text[:opened] == b"[" * opened and text[closed:] == b"]" * opened else 0


def shape_of(skeleton: bytes) -> list[int] | None:
    """The shape of nested lists from their brackets and commas alone; None when rows differ.

    Works from the innermost list out: at each level it counts equal lists separated by commas, up
    to the first with a bracket after it. In the end, the skeleton must equal what was counted.
    """
    rank = len(skeleton) - len(skeleton.lstrip(b"["))
    unit_end = skeleton.find(b"]") + 1
    if not 0 < rank <= MAX_DIMENSIONS or not unit_end:
        return None
    unit = skeleton[rank - 1 : unit_end]
    shape = [len(unit) - 1]
    for level in range(1, rank):
        # the character after each list of this level
        behind = skeleton[rank - level + len(unit) :: len(unit) + 1]
        count = behind.find(b"]") + 1
        if not count:
            return None
        unit = b"[" + b",".join([unit] * count) + b"]"
        shape.append(count)
    return shape[::-1] if unit == skeleton and math.prod(shape[1:]) <= MAX_LISTS // 2 else None


# ==================================================================================================
# Servables
# In: a base path; a function over arrays. Out: version folders; `Servable`: `run`, leases.
# ==================================================================================================


PHASES = ("queue", "decode", "inference", "routines", "encode")  # parts of a request's time
NO_TIME = float("nan")  # the time of a phase that a request does not have


class Turn:
    """A request's place in a server's queue, which measures by it how fast its lines move."""

    def __init__(self, queued: float | None = None):
        self.queued = queued  # time.perf_counter() when its last byte arrived
        self.waited = False  # whether it held a thread while its model was loading
        # a list for work to do once its answer is sent; None if that moment is not known
        self.later: list[Callable[[], None]] | None = None

    def defer(self, do: Callable[[], None]) -> None:
        """Do something that the client need not wait for: after its answer, if possible."""
        later, self.later = self.later, None  # `do` may refer to this: break the reference cycle
        if later is None:
            do()
        else:
            later.append(do)


def stays() -> bool:
    """Say that the client has not left: the default where nobody can tell."""
    return False


class Trace:
    """What is recorded about a request while it is answered, for metrics and the log.

    It is passed as an argument to all functions that work on the request.
    """

    deadline = math.inf  # of time.perf_counter()
    began = ended = inference = routines = answered = 0.0
    rows = batch = 0
    model = version = deployment = ""
    waited = False  # whether it had to wait for a model to load
    infers = by_page = False  # whether it calls a model or handler; whether the page sends it
    spent: tuple[float, ...] = ()  # the final result of `measure`
    nodes: Mapping[str, float] = types.MappingProxyType({})  # seconds in each node of a pipeline
    parent: tuple[str, str] = ("", "")  # the span that it is part of: traceparent, tracestate
    scheme = "http"  # of its URL

    def __init__(self, queued: float | None = None, has_left: Callable[[], bool] = stays):
        self.start = time.perf_counter()
        self.queued = queued  # time.perf_counter() when its last byte arrived
        self.has_left = has_left  # tells whether its client has left

    def limit(self, seconds: float, wish: str | None) -> None:
        """Set the deadline: after `seconds`, or sooner if `wish`, the client's header, asks for it.

        Raises BadRequest for a malformed wish, ServingError if the deadline has passed.
        """
        if wish is not None:
            if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", wish.strip(), re.ASCII):
                raise BadRequest(
                    f"X-Request-Timeout: expected seconds such as 2.5, got '{wish[:40]}'"
                )
            seconds = min(seconds, float(wish))
        self.deadline = (self.queued or self.start) + seconds
        if self.remaining() <= 0:
            raise ServingError(
                f"The request waited longer than its timeout, {seconds:g} s", "DEADLINE_EXCEEDED"
            )

    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def timeout(self) -> float:
        """Seconds until the deadline, as locks take them."""
        return min(max(0.0, self.remaining()), threading.TIMEOUT_MAX)

    def measure(self, now: float) -> tuple[float, ...]:
        """Seconds in each of `PHASES` until `now`, of time.perf_counter().

        NaN for a phase that there was not: the queue under another WSGI server; all phases but the
        queue if nothing was inferred. Their sum is at most the time since the last byte arrived.
        """
        queued = self.start - self.queued if self.queued else NO_TIME
        if not self.inference:
            return queued, NO_TIME, NO_TIME, NO_TIME, NO_TIME
        inference = min(self.inference, self.ended - self.began)  # several may have run at once
        rest = now - self.ended
        routines = min(self.routines, rest)
        return queued, self.began - self.start, inference, routines, rest - routines


class Untraced(Trace):
    """The trace of calls from Python: it records nothing and has no deadline."""

    start, queued, has_left = 0.0, None, staticmethod(stays)

    def __init__(self) -> None:
        pass

    def __setattr__(self, name: str, value: Any) -> None:
        pass


UNTRACED = Untraced()


class SignatureCall(typing.NamedTuple):
    """How a signature is called: the function, from arrays to arrays, and what is known of it."""

    run: Callable[..., list[np.ndarray]]  # `not_made` until there is a session
    feeds: Sequence[str] = ()  # the graph's names of the input tensors
    fetches: Sequence[str] = ()  # and of the output tensors
    outputs: Sequence[str] = ()  # the signature's names of the fetched outputs
    # the time of one made-up row; infinity if unknown, or if that row is not typical
    seconds: float = float("inf")
    kind: str = "session"  # or `frozen`, or `batched`: its last value is the rows of the batch
    tried: bool = False  # whether it has answered made-up input
    steady: bool = False  # whether many small rows are fast too, whatever their values
    operations: frozenset[str] = frozenset()  # types of the operations that it may run
    keeps: tuple[str, ...] = ()  # those types that may keep state from one call to the next


class Servable:
    """Anything that answers: signatures, and `run(signature_name, inputs) -> outputs` on arrays by
    name.

    Requests hold a lease while they run, so that `retire` can wait for them: `close` is called
    once, after the last one. Leases are counted under a lock; everything else is fixed at
    construction. A servable that needs more than a function is a subclass with its own `call`.
    """

    # Of a SavedModel: its session and calls, for extensions that wrap its loader.
    opened: "OpenModel | None" = None
    folder: Path | None = None  # of the SavedModel, whose assets may name its classes

    def __init__(
        self,
        signatures: Mapping[str, Signature],
        run: Callable[[str, dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
        *,
        metadata: dict[str, Any] | None = None,
        device: str = "",
        close: Callable[[], None] = lambda: None,
        calls: Mapping[str, "SignatureCall"] = types.MappingProxyType({}),
    ):
        self.signatures, self._run, self._calls = dict(signatures), run, calls
        self.metadata, self.device = metadata or {}, device  # such as `GPU:0`
        self._close = close
        self._leases, self._retired, self.closed = 0, False, False
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    @property
    def callables(self) -> Mapping[str, SignatureCall]:
        """How its signatures are called, where that is known."""
        return self._calls

    def seconds_of(self, name: str) -> float:
        """How long a small request takes by the signature `name`; infinity where nobody knows."""
        call = self.callables.get(name)
        return call.seconds if call is not None and call.steady else float("inf")

    def run(
        self, name: str, inputs: dict[str, np.ndarray], trace: Trace = UNTRACED
    ) -> dict[str, np.ndarray]:
        """Run the signature `name`: takes arrays by input name, returns arrays by output name.

        Records in `trace` the rows and the time that it takes.
        """
        trace.began = trace.began or time.perf_counter()
        start = time.perf_counter()
        first = next(iter(inputs.values()), None)
        # `call` corrects `batch` if the request shares a batch with others
        trace.rows = trace.batch = len(first) if first is not None and first.ndim else 1
        try:
            return self.call(name, inputs, trace)
        finally:
            trace.ended = time.perf_counter()
            trace.inference += trace.ended - start

    def call(
        self, name: str, inputs: dict[str, np.ndarray], trace: Trace = UNTRACED
    ) -> dict[str, np.ndarray]:
        """Do the work of `run`, without timing it; `trace` knows the deadline and the client."""
        if self._run is None:
            raise NotImplementedError(f"{type(self).__name__} has neither a function nor a `call`")
        return self._run(name, inputs)

    def describe_calls(self) -> dict[str, str]:
        """How each signature is called, and how long that takes with one made-up row:
        `{"serving_default": "session, 0.02 ms"}`.
        """
        return {
            name: call.kind
            + (f", {1e3 * call.seconds:.3g} ms" if call.seconds < float("inf") else "")
            for name, call in self.callables.items()
        }

    def acquire(self) -> bool:
        """Take a lease; False when the servable is being retired."""
        with self._lock:
            self._leases += not self._retired
            return not self._retired

    def release(self) -> None:
        with self._lock:
            self._leases -= 1
            if self._retired and not self._leases:
                self._changed.notify_all()

    def retire_if_idle(self) -> bool:
        """Free the model unless a request holds a lease; returns whether it did."""
        with self._changed:
            if self._leases or self._retired:
                return False
            self._retired = True
        return self.retire(0)

    def retire(self, timeout: float) -> bool:
        """Refuse new leases, wait until all leases are released, free the model.

        False, and nothing is freed, if some are still held after `timeout` seconds.
        """
        with self._changed:
            self._retired = True
            if not self._changed.wait_for(lambda: not self._leases, timeout):
                return False
        close, self._close = self._close, lambda: None
        try:
            close()
        except Exception as error:  # `close` may be a user's; nobody needs this model any more
            log_safely(logging.ERROR, "A model could not be freed", error=error)
        self.closed = True
        return True


def list_versions(base_path: str) -> dict[int, Path]:
    """The version folders under `base_path`; a SavedModel or model file at it is version 1.

    Raises LoadError if there is no folder.
    """
    base = Path(base_path)
    try:
        if is_saved_model(base) or is_model_file(base) and base.is_file():
            return {1: base}
        folders = sorted(
            entry
            for entry in base.iterdir()
            if re.fullmatch(r"0*[0-9]{1,19}", entry.name) and entry.is_dir()
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        text = f"base_path cannot be read: {reason}{explain_path(base_path)}"
        raise LoadError(text, BadRequest.code) from None
    return {int(folder.name): folder for folder in folders if int(folder.name) < 2**63}


GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
MODEL_FILES = (".keras", ".h5", ".hdf5")  # what serving_extensions/keras_files.py exports
WEIGHTS_ALONE = ".weights.h5"  # what Keras' save_weights writes
NO_MODELS = {".tflite", ".onnx", ".pt", ".pth", ".pb", ".pkl", ".pickle", ".joblib"}
PACKED_FILES = (".zip", ".tar", ".tar.gz", ".tgz")


def is_saved_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in GRAPHS)


def is_model_file(path: Path) -> bool:
    """Whether Keras would read a file, by its name; Keras heeds the case of letters."""
    return path.name.endswith(MODEL_FILES) and not path.name.endswith(WEIGHTS_ALONE)


def find_model_file(folder: Path) -> Path | None:
    """The one .keras or .h5 file that a version is, or that its folder holds; None if the folder
    holds a SavedModel, or another number of such files.
    """
    if folder.is_file():
        return folder
    if is_saved_model(folder):
        return None
    found = [file for file in folder.glob("*") if is_model_file(file)]
    return found[0] if len(found) == 1 else None


def explain_path(base_path: str) -> str:
    """A hint for the commonest mistakes with a `base_path` that is no folder; else empty."""
    name, suffix = Path(base_path).name.lower(), Path(base_path).suffix.lower()
    if name in GRAPHS:
        return "; serve the folder that it is in"
    if name.endswith(WEIGHTS_ALONE):
        return "; it holds only weights: save the model, model.save('x.keras')"
    if suffix in MODEL_FILES:
        return f"; rename it: Keras reads only files that end in {suffix}, in small letters"
    if name.endswith(PACKED_FILES):
        return "; it is an archive: unpack it, and serve the folder"
    if suffix in NO_MODELS:
        return f"; a {suffix} file is no SavedModel: export one (Keras: model.export(folder))"
    return ""


BESIDE_A_GRAPH = ("fingerprint.pb", "keras_metadata.pb")  # .pb files that hold no graph


def explain_folder(folder: Path) -> str:
    """A hint on what a version's folder holds in place of a SavedModel; "" if there is none."""
    entries = sorted(entry for entry in folder.glob("*") if entry.name not in BESIDE_A_GRAPH)
    models = [f"'{entry.name}'" for entry in entries if is_model_file(entry)]
    if len(models) > 1:
        return f"; it holds {' and '.join(models[:2])}, but a version is one model: keep one"
    for entry in entries:
        if entry.name in GRAPHS:
            return f"; '{entry.name}' in it is no file, or a link to nothing"
        if is_saved_model(entry):
            return f"; there is a model one folder down, in '{entry.name}'"
        if hint := explain_path(entry.name):
            return f"; '{entry.name}' is in it{hint}"
    return ""


def explain_no_versions(base_path: str) -> str:
    """A hint where the model is, for a `base_path` without versions; "" if there is none."""
    base = Path(base_path)
    with contextlib.suppress(OSError, ValueError):
        inside = sorted(entry for entry in base.iterdir() if entry.is_dir())
        named = [entry for entry in inside if re.fullmatch(r"[vV][0-9]+", entry.name)]
        if named:
            name = named[0].name
            return f"; a version folder's name is a number: '{name}' should be '{name[1:]}'"
        if is_saved_model(base.parent):
            return f"; the SavedModel is one folder up, in '{base.parent.name}'"
        for entry in inside:
            if is_saved_model(entry) or any(
                each.name.isdigit() and is_saved_model(each) for each in entry.iterdir()
            ):
                return f"; there is a model one folder down, in '{entry.name}'"
        for file in sorted(base.iterdir()):
            if is_model_file(file):
                return (
                    f"; '{file.name}' is in no version folder: move it into '1', or serve the file"
                )
            hint = explain_path(file.name)
            if hint and file.name not in BESIDE_A_GRAPH:
                return f"; '{file.name}' is in it{hint}"
    return ""


def choose_versions(policy: VersionPolicy, versions: Iterable[int]) -> list[int]:
    """The versions that the policy picks out of those there, highest first."""
    falling = sorted(versions, reverse=True)
    if policy.specific:
        return [version for version in falling if version in policy.specific.versions]
    return falling[: policy.latest.num_versions] if policy.latest else falling


def paths_below(folder: str | Path, above: tuple = ()) -> Iterator[str]:
    """Yield files and folders below a folder, as text: a `Path` of each would take most of the time
    of a poll. Links are followed, except to the folders `above`.

    `above` has the device and inode of each. A folder that cannot be read, or that vanishes
    meanwhile, yields nothing.
    """
    try:
        status, entries = os.stat(folder), list(os.scandir(folder))
    except OSError:
        return
    here = status.st_dev, status.st_ino
    if here in above:
        return
    for entry in entries:
        yield entry.path
        if os.path.isdir(entry):  # entry.is_dir() raises for a link that leads to itself
            yield from paths_below(entry.path, (*above, here))


def fingerprint(folder: Path) -> tuple:
    """A value that changes when a version's files do, made without reading them.

    For each path: its size, mtime (changed content) and ctime (changed permissions, too), both in
    nanoseconds. When it changes, a version that has failed to load is tried again.
    """
    found: list[tuple[str, int, int, int]] = []
    for path in [str(folder), *sorted(paths_below(folder))]:
        with contextlib.suppress(OSError):  # what vanishes meanwhile is a change as well
            status = os.stat(path)
            found.append((path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


COPY_SECONDS = 1.0  # a new version that was written so lately is perhaps still being copied


def is_fresh(folder: Path) -> bool:
    """Whether files of a version are perhaps still being written. `cp -r` may copy the graph first,
    and a table of words last: the version would load, with half of its words.
    """
    ages = (time.time_ns() - changed for *_, changed in fingerprint(folder))
    # a time to come is that of a network drive with another clock
    return any(0 <= age < 1e9 * COPY_SECONDS for age in ages)


def contents(files: tuple) -> list[tuple]:
    """A fingerprint without ctimes, which a chmod changes:
    that is no reason to load a loaded version anew.
    """
    # the first entry is the folder itself, unless the version is a single file
    return [status[:3] for status in files[1:] or files]


# ==================================================================================================
# SavedModels
# In: a `LoadRequest`: a version's folder, its model's config. Out: its `Servable`, or LoadError.
# The only room that touches TensorFlow.
# ==================================================================================================

Function = typing.TypeVar("Function", bound=Callable[..., Any])


def once(function: Function) -> Function:
    """Cache a function's result for its arguments; threads that call it meanwhile wait for it."""
    kept, lock = functools.cache(function), threading.RLock()

    @functools.wraps(function)
    def ask(*arguments: Any) -> Any:
        with lock:
            return kept(*arguments)

    return typing.cast(Function, ask)


@once
def tensorflow() -> Any:
    """TensorFlow, imported when the first model is loaded.

    The import takes seconds, and a server without SavedModels does not need it.
    """
    began = time.monotonic()
    logger.info("Importing TensorFlow")
    found: Future = Future()
    # At exit, Python waits for a thread that is no daemon before it runs `atexit` functions. One of
    # these is h5py's, which comes with TensorFlow: run during the import, it ends in SIGSEGV. A
    # pool would do nothing any more where a program's main thread has ended.
    threading.Thread(target=import_into, args=(found,), name="serving-import", daemon=False).start()
    try:
        tensorflow = found.result()
    except Exception as error:
        problem = (
            f"TensorFlow cannot be imported: {explain(error)}. If two threads imported it, or "
            "keras, at the same time, restart the process, and import tensorflow once, at the "
            "top of your program"
        )
        if isinstance(error, ModuleNotFoundError) and error.name == "tensorflow":
            problem = (
                "TensorFlow is not installed: pip install tensorflow-cpu, or, with its support of "
                "GPUs, 'tensorflow[and-cuda]'"
            )
        raise LoadError(problem) from error

    settle_garbage(freeze=True)
    took = time.monotonic() - began
    logger.info("TensorFlow %s is imported, in %.1f s", tensorflow.version.VERSION, took)
    IMPORTED.append(time.perf_counter())
    return tensorflow


IMPORTED: list[float] = []  # when the import ended: a load's time counts from then at the earliest


def import_into(found: Future) -> None:
    try:
        found.set_result(import_tensorflow())
    except BaseException as error:
        found.set_exception(error)


def import_tensorflow() -> Any:
    import tensorflow

    return tensorflow


# Functions tidy(freeze) that free memory after loads; none unless the process is our own.
TIDY: list[Callable[[bool], None]] = []


def settle_garbage(freeze: bool = False) -> None:
    """Free what loading left over, where the process is our own; a host's collector is left alone.

    With `freeze`, later garbage collections skip the objects that exist now.
    """
    for tidy in list(TIDY):
        tidy(freeze)


def usable_cores() -> int:
    """The number of CPU cores that this process may use.

    Only Linux tells; elsewhere it is the number of the machine's cores.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@once
def prepare_devices(limit_mb: int | None, intra_op_threads: int | None) -> None:
    """Let GPU memory grow on demand, or up to `limit_mb` MiB on each; set CPU threads. Must come
    before TensorFlow's first use.

    On 2 cores, sharing an operation among threads makes a lone request no faster, and several at
    once a third slower.
    """
    tf = tensorflow()
    if (
        intra_op_threads
        or not tf.config.threading.get_intra_op_parallelism_threads()
        and usable_cores() <= 2
    ):
        try:
            tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads or 1)
        except RuntimeError as error:
            level = logging.WARNING if intra_op_threads else logging.DEBUG
            logger.log(level, "intra_op_threads has no effect: %s", error)
    for gpu in tf.config.list_physical_devices("GPU"):
        try:
            if limit_mb:
                tf.config.set_logical_device_configuration(
                    gpu, [tf.config.LogicalDeviceConfiguration(memory_limit=limit_mb)]
                )
            else:
                tf.config.experimental.set_memory_growth(gpu, True)
        except (RuntimeError, ValueError) as error:  # the host has started TensorFlow already
            logger.warning("GPU memory settings have no effect: %s", error)
    PREPARED_DEVICES.set()


PREPARED_DEVICES = threading.Event()  # listing TensorFlow's devices ends the time to set them up


def pick_device(target: str) -> str:
    """The first device of a `target_device` that exists, such as `GPU:0`; LoadError if none."""
    wanted, there = read_devices(target), list_devices()
    for name in wanted:
        if name in there:
            return name
    problem = (
        f"{wanted[0]} is not" if len(wanted) == 1 else f"{target}: none of {', '.join(wanted)} is"
    )
    raise LoadError(f"target_device {problem} available: TensorFlow sees {', '.join(there)}")


@once
def list_devices() -> list[str]:
    """The devices that a session has, such as `CPU:0`."""
    tf = tensorflow()
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        return [listed.name.split("device:")[-1] for listed in session.list_devices()]


@once
def warn_once(text: str) -> None:
    logger.warning("%s", text)


def import_operations(names: tuple[str, ...]) -> list[str]:
    """Import the modules whose operations models need; returns a text for each that fails.

    A failure does not affect models that do without the module. It is tried again at each load,
    since it may be installed by then.
    """
    tensorflow()  # the modules register their operations with it
    failed = []
    for index, name in enumerate(names):
        try:
            importlib.import_module(name)
        except BaseException as error:  # somebody's code, which may also end with sys.exit
            reason = clean_message(spell(error))
            failed.append(f"$.import_modules[{index}]: {name} cannot be imported: {reason}")
            warn_once(failed[-1])
    return failed


# Module -> prefixes of the names of its operations, as far as models are known to need them.
OPERATIONS = {
    "tensorflow_text": "TFText> Sentencepiece Wordpiece FastWordpiece FastBertNormalize "
    "FastSentencepiece RegexSplit NormalizeUTF8 CaseFoldUTF8 WhitespaceTokenize "
    "UnicodeScriptTokenize SentenceFragments SplitMerge PhraseTokenize ConstrainedSequence "
    "MaxSpanningTree RougeL",
    "tensorflow_addons": "Addons>",
    "tensorflow_io": "IO>",
    "tensorflow_decision_forests": "SimpleML",
    "struct2tensor": "DecodeProtoSparse EquiJoinIndices RunLengthBefore",
    "tensorflow_recommenders_addons": "TFRA>",
    "tensorflow_quantum": "Tfq",
}


def explain_operation(message: str, failed: Sequence[str]) -> str:
    """TensorFlow's message; for an operation that it does not know, what to write into the config.

    `failed` are the modules of the config that could not be imported, with the reason.
    """
    unknown = re.search(r"Op type not registered '([^']*)'", message)
    if unknown is None:
        return message
    module = "<the module that brings it>"
    for known, starts in OPERATIONS.items():
        if unknown[1].startswith(tuple(starts.split())):
            module = known
    hint = f'write "import_modules": ["{module}"] into the config, once that module is installed'
    return f"{unknown[0]}: {'; '.join(failed) or hint}"


@dataclass(frozen=True)
class LoadRequest:
    """A version to load; a wrapper of a loader passes it on without the options it handles."""

    folder: Path
    config: ModelConfig
    options: ServerConfig = ServerConfig()
    modules: tuple[str, ...] = ()  # imported first, for the operations that they register
    device: str = ""  # such as `GPU:0`; if empty, the config's first device that exists
    try_calls: bool = True  # with made-up input; False if a wrapper puts other calls in their place

    def with_config(self, **fields: Any) -> "LoadRequest":
        """The same request with other fields of the model's config."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **fields))


Load = Callable[[LoadRequest], Servable]  # a wrapper around a loader is a loader, too


def load_saved_model(request: LoadRequest) -> Servable:
    """Load a SavedModel into a TensorFlow session of its own: the plain loader, complete by itself.

    A session over the SavedModel's own graph is how TensorFlow Serving runs it; a call costs
    microseconds where a signature of `tf.saved_model.load` costs hundreds, and closing the session
    frees the memory. Raises LoadError with the reason.
    """
    if file := find_model_file(request.folder):
        raise LoadError(f"'{file.name}' is no SavedModel: {tell_missing('keras_files.py')}")
    if not is_saved_model(request.folder):
        there = f"<base_path>/{request.folder.name}/{{saved_model.pbtxt|saved_model.pb}}"
        hint = explain_folder(request.folder)
        raise LoadError(f"SavedModel file does not exist at: {there}{hint}")
    config, held = request.config, contextlib.ExitStack()
    prepare_devices(request.options.gpu_memory_limit_mb, request.options.intra_op_threads)
    failed = import_operations(request.modules)
    device = request.device or pick_device(config.targets[0])
    report_unread(request)
    with load_errors(request.folder, held.close, failed):
        session, definitions, metadata = open_session(request.folder, device, config.tags)
        held.callback(session.close)  # the next garbage collection frees its graph
        model = prepare_calls(config.name, device, session, definitions, metadata)
        model = dataclasses.replace(model, folder=request.folder)
        if request.try_calls:
            model = try_calls(model, config)
    return SessionServable(model, held.close)


def report_unread(request: LoadRequest) -> None:
    """Log the options of a config that no wrapper of this loader has handled."""
    config = request.config
    unread = []
    if config.batching:
        unread.append("no batching")
    if not request.device and len(config.targets) * config.instances > 1:
        unread.append("no replicas")
    if config.load == "on_demand":
        unread.append("no on-demand loading")
    for what in unread:
        logger.warning("%s: %s: it needs serving_extensions/ beside serving.py", config.name, what)


@contextlib.contextmanager
def load_errors(
    folder: Path, close: Callable[[], Any], failed: Sequence[str] = ()
) -> Iterator[None]:
    """Turn any error of the block into a LoadError with its reason, after calling `close`.

    `failed` has a text for each module that could not be imported.
    """
    try:
        yield
    except Exception as error:
        close()
        raise LoadError(explain_operation(reason_of(error, folder), failed)) from error


@dataclass(frozen=True)
class OpenModel:
    """A SavedModel in a session, and how each of its signatures is called.

    A wrapper of the loader makes a changed copy, and another servable from that.
    """

    name: str  # of the model, for the log
    device: str
    session: Any  # TensorFlow's, closed with the servable
    signatures: Mapping[str, Signature]
    calls: Mapping[str, SignatureCall]
    refused: Mapping[str, str]  # signatures that cannot be called -> why
    metadata: dict[str, Any]
    folder: Path | None = None  # of the SavedModel

    def own_calls(self) -> dict[str, SignatureCall]:
        """The calls by signature, a call that several share under the first one only."""
        return {name: call for name, call in self.calls.items() if self.owner(call) == name}

    def with_calls(self, change: Callable[[str, SignatureCall], SignatureCall]) -> "OpenModel":
        """Return a copy with changed calls; a call that signatures share is changed only once."""
        changed = {name: change(name, call) for name, call in self.own_calls().items()}
        calls = {name: changed[self.owner(call)] for name, call in self.calls.items()}
        return dataclasses.replace(self, calls=calls)

    def owner(self, call: SignatureCall) -> str:
        """The name of the first signature that has this call."""
        return next(name for name, other in self.calls.items() if other is call)


class SessionServable(Servable):
    """A SavedModel as a servable: calls that may take long run on threads of the model's own."""

    def __init__(self, opened: OpenModel, close: Callable[[], Any]):
        super().__init__(
            opened.signatures,
            metadata=opened.metadata,
            device=opened.device,
            close=self.stop,
            calls=opened.calls,
        )
        self.opened, self.folder = opened, opened.folder
        self._refused, self._free = opened.refused, close
        counts = {
            name: count_threads(call, opened.device)
            for name, call in opened.calls.items()
            if may_take_long(call)
        }
        self._pools = {
            count: Workers(count, f"model-{opened.name}") for count in sorted(set(counts.values()))
        }
        self._workers = {name: self._pools[count] for name, count in counts.items()}

    def call(
        self, name: str, inputs: dict[str, np.ndarray], trace: Trace = UNTRACED
    ) -> dict[str, np.ndarray]:
        call = self.callables.get(name)
        if call is None:
            reason = self._refused.get(name, "no signature has that name")
            raise BadRequest(f'Signature "{name}" cannot be called: {reason}')
        arrays = [fit(spec, inputs) for spec in self.signatures[name].inputs.values()]
        values = self.compute(name, call, arrays, trace)
        if call.kind == "batched":
            trace.batch = int(values[-1])
        return dict(zip(call.outputs, map(as_array, values)))

    def compute(
        self, name: str, call: SignatureCall, arrays: Sequence[np.ndarray], trace: Trace
    ) -> list[Any]:
        """What TensorFlow answers, on this thread or on the model's own; its errors as ours."""
        workers = self._workers.get(name)
        try:
            if workers is None:
                return call.run(*arrays)
            return workers.run(call.run, *arrays, trace=trace)
        except tensorflow().errors.OpError as error:
            code = CODE_NAMES[error.error_code]
            raise ServingError(clean_message(error.message), code) from error
        except UnicodeDecodeError as error:  # TensorFlow's message quotes bytes that are no text
            raise BadRequest(clean_message(error.object.decode("utf-8", "replace"))) from error

    def stop(self) -> None:
        """End the threads, and free the model as soon as no call of it runs any more.

        Closing the session sooner would block until its calls end: forever if the model hangs.
        """
        close = self._free
        for workers in self._pools.values():
            close = functools.partial(workers.close, close)
        close()


def reason_of(error: Exception, folder: Path) -> str:
    """Why a model could not be loaded, without the place where its files are."""
    plain = str(error)
    if not isinstance(error, OSError | RuntimeError):
        plain = f"{type(error).__name__}: {error}"
    reason = getattr(error, "message", None) or plain
    return clean_message(reason.replace(str(folder), f"<base_path>/{folder.name}"))


MOST_MESSAGE = 64 << 10  # characters of an error that are read: it may quote a whole request
# What TensorFlow and Python write around the reason of an error: places in code, and in the graph.
AROUND = re.compile(r"""(?mx)
    ^[ \t]* (?: Graph[ ]execution[ ]error: | Detected[ ]at[ ]node[ ].* | Node:[ ]'.*'
        | <stack[ ]traces[ ]unavailable> | [0-9]+[ ]root[ ]error\(s\)[ ]found\. ) [ \t]* (?:\n|\Z)
    | ^[ \t]* File[ ]".*",[ ]line[ ][0-9]+.* (?:\n[ ]{4,}\S.*)? (?:\n|\Z)
    | ^[ \t]+ \[\[ (?: \{\{.* | [\w./-]+/_[0-9]+ ) \]\] (?:[ ]\[Op:.*)? [ \t]* (?:\n|\Z)
    | [ ]\[Op:[^][\n]*\] (?:[ ]name:.*)?
    """)
# Each of these begins text that follows the reason, and ends it.
AFTER = re.compile(r"""(?mx)
    ^[ \t]*(?: Traceback[ ]\(most[ ]recent[ ]call[ ]last\) | Function[ ]call[ ]stack:
        | Original[ ]stack[ ]trace[ ]for | \(1\)[ ][A-Z_]+: | [0-9]+[ ]successful[ ]operations )
    """)


def clean_message(message: str) -> str:
    """The reason in an error message of TensorFlow's, cut to a readable length and without the
    places in code and graph.
    """
    if message.startswith("Restoring from checkpoint failed"):  # keep the original error only
        message = message.partition("Original error:\n")[2] or message
    reason = AROUND.sub("", message[:MOST_MESSAGE])
    reason = AFTER.split(reason, maxsplit=1)[0].strip() or reason.strip().rpartition("\n")[2]
    return hide_paths(re.sub(r"^\(0\) [A-Z_]+: ", "", reason))


def hide_paths(text: str) -> str:
    """Replace the folders of this program, of Python and of the user's home in a text.

    Other paths belong to the model, and are part of the reason.
    """
    folders = {
        str(Path(__file__).parent): "<serving>",
        sys.prefix: "<python>",
        sys.base_prefix: "<python>",
        os.path.expanduser("~"): "~",
    }
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(?![\w-])", folders[folder], text)
    return text


def open_session(
    folder: Path, device: str, tags: Sequence[str]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Load a SavedModel into a session on `device`; returns the session, the SignatureDefs to call
    and their description as stored.

    Some SavedModels hold each variable twice and restore only one of the two. These are loaded as
    objects, since TensorFlow then ties the two together.
    """
    session, definitions = open_used(folder, device, tags)
    if definitions is None:
        session, definitions = open_graph(folder, device, tags)
    renamed = rename_tensors(definitions, folder)
    metadata = describe(definitions)
    if session is None:
        session = open_objects(folder, device, definitions, renamed, tags)
    return session, definitions, metadata


def is_filled(session: Any) -> dict[Any, bool]:
    """For each variable of a session, by its VarHandleOp: whether it has a value."""
    variables = [op for op in session.graph.get_operations() if op.type == "VarHandleOp"]
    ask = tensorflow().raw_ops.VarIsInitializedOp
    with session.graph.as_default():
        asked = [ask(resource=variable.outputs[0]) for variable in variables]
    return dict(zip(variables, session.run(asked)))


def check_variables(session: Any) -> None:
    """Raise LoadError for a variable that a checkpoint has filled with a value of another shape.

    TensorFlow accepts any shape, and the answers would be wrong.
    """
    tf = tensorflow()
    variables = [variable for variable, filled in is_filled(session).items() if filled]
    with session.graph.as_default():
        asked = [tf.raw_ops.VariableShape(input=variable.outputs[0]) for variable in variables]
    for variable, sizes in zip(variables, session.run(asked)):
        shape = tf.TensorShape(variable.get_attr("shape"))
        if not shape.is_compatible_with(sizes):
            name = variable.get_attr("shared_name").decode() or variable.name
            raise LoadError(
                f"variable '{name}' is {print_shape(shape.as_list())} in the graph, "
                f"{print_shape(sizes.tolist())} in the checkpoint"
            )


@contextlib.contextmanager
def new_session(device: str, options: Any = None) -> Iterator[Any]:
    """A session over an empty graph, which the block fills; it is closed if the block fails."""
    tf = tensorflow()
    session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
    try:
        with session.graph.as_default(), session.graph.device(f"/device:{device}"):
            yield session
    except BaseException:
        session.close()
        raise


def open_graph(folder: Path, device: str, tags: Sequence[str]) -> tuple[Any | None, dict[str, Any]]:
    """Load a SavedModel as TensorFlow Serving does.

    Returns the session, or None if variables stay empty, and the SignatureDefs.
    """
    tf = tensorflow()
    with new_session(device) as session:
        try:
            meta_graph = tf.compat.v1.saved_model.load(session, list(tags), str(folder))
        except RuntimeError:  # perhaps no graph has these tags: find_graph says so more clearly
            find_graph(read_graphs(folder), tags)
            raise
        check_variables(session)
    if not all(is_filled(session).values()):
        session.close()
        session = None
    return session, dict(meta_graph.signature_def)


def read_graphs(folder: Path) -> list[Any]:
    """The MetaGraphDefs of a SavedModel, from its file.

    Raises OSError for what is no SavedModel.
    """
    from tensorflow.python.saved_model import loader_impl  # it reads saved_model.pbtxt as well

    return list(loader_impl.parse_saved_model(str(folder)).meta_graphs)


def find_graph(graphs: Sequence[Any], tags: Sequence[str]) -> Any:
    """The MetaGraphDef with just these tags.

    Raises LoadError, naming the tags of the graphs there are, if there is none.
    """
    for graph in graphs:
        if set(graph.meta_info_def.tags) == set(tags):
            return graph
    if not graphs:
        raise LoadError("the SavedModel has no graphs: it is empty or only half copied")
    there = [json.dumps(sorted(graph.meta_info_def.tags)) for graph in graphs]
    raise LoadError(
        f"no graph of the SavedModel has just the tags {json.dumps(list(tags))}: "
        f"it has {', '.join(there)}; "
        f'write "tags": {there[0]} into the model\'s config'
    )


def describe(definitions: Mapping[str, Any]) -> dict[str, Any]:
    """All signatures as JSON, in TensorFlow Serving's casing (`signature_def`) and
    in OpenVINO's (`signatureDef`).
    """
    # protobuf comes, and is imported, with TensorFlow
    from google.protobuf.json_format import MessageToDict

    def write(snake: bool) -> dict[str, Any]:
        return {
            name: MessageToDict(
                definition,
                preserving_proto_field_name=snake,
                always_print_fields_with_no_presence=True,
            )
            for name, definition in definitions.items()
        }

    return {"signature_def": write(True), "signatureDef": write(False)}


def read_signature(definition: Any) -> Signature:
    """A SignatureDef as a `Signature`, its tensors sorted by name.

    Sparse and composite tensors have an empty `tensor`.
    """

    def read(side: Mapping[str, Any]) -> dict[str, TensorSpec]:
        return {name: read_tensor_info(name, info) for name, info in sorted(side.items())}

    return Signature(read(definition.inputs), read(definition.outputs))


def read_tensor_info(name: str, info: Any) -> TensorSpec:
    """A TensorInfo as a `TensorSpec`; a dtype that TensorFlow has no name for is its number.

    TF1 marks the dtype of a variable with _REF, which is removed: a session answers its value.
    """
    from tensorflow.core.framework import types_pb2  # there once TensorFlow is imported

    known = types_pb2.DataType.DESCRIPTOR.values_by_number
    dtype = known[info.dtype].name if info.dtype in known else str(info.dtype)
    shape = None
    if info.HasField("tensor_shape") and not info.tensor_shape.unknown_rank:
        shape = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return TensorSpec(name, info.name, dtype.removesuffix("_REF"), shape)


# --------------------------------------------------------------------------------------------------
# A session over what the signatures use
# --------------------------------------------------------------------------------------------------

READ_SUFFIX = "/Read/ReadVariableOp"  # of the node beside each variable by which freezing reads it
# Other stateful operations need more than the values of a checkpoint.
PLAIN_STATE = {"VarHandleOp", "ReadVariableOp", "StatefulPartitionedCall"}
INIT_SIGNATURE = "__saved_model_init_op"
INIT_COLLECTIONS = {"saved_model_main_op", "legacy_init_op"}


def open_used(
    folder: Path, device: str, tags: Sequence[str]
) -> tuple[Any | None, dict[str, Any] | None]:
    """Open a session over the nodes that the signatures use, with filled variables.

    TensorFlow's session loader takes some three times as long: it also imports the functions that
    save and restore, and keeps variables in memory that no signature uses (Keras stores each one
    twice). Returns the session, or None if it is not certain what each variable holds; and the
    SignatureDefs, or None if TensorFlow's session loader is to be tried next. It is not tried on a
    graph with more variables than its checkpoint, where it may fill the wrong ones.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    tf = tensorflow()
    file, prefix = folder / "saved_model.pb", folder / "variables" / "variables"
    if not file.is_file() or not prefix.with_suffix(".index").is_file():
        return None, None
    graphs = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    graph = find_graph(graphs, tags)
    reader, session = tf.train.load_checkpoint(str(prefix)), None
    try:
        used = extract_used(graph, choose_sound(graph, folder))
        if keys := checkpoint_keys(graph, used, reader):
            session = open_filled(used, keys, prefix, device, graph.meta_info_def.stripped_op_list)
    except Exception as error:  # TensorFlow's own loaders explain better what is wrong
        logger.debug("%s is loaded whole: %s", folder, clean_message(str(error)))
    doubled = sum(node.op == "VarHandleOp" for node in graph.graph_def.node) > len(
        reader.get_variable_to_shape_map()
    )
    return session, dict(graph.signature_def) if session or doubled else None


def choose_sound(graph: Any, folder: Path) -> list[str]:
    """The signatures of a MetaGraphDef whose operations and functions all exist.

    An incomplete signature would keep the others from being loaded; the log says what it lacks.
    """
    sound = []
    for name in graph.signature_def:
        try:
            missing = find_missing(extract_used(graph, [name]))
        except ValueError as error:  # a tensor is missing
            missing = clean_message(str(error))
        if missing:
            logger.warning("%s: signature %s is left out: %s", folder, name, missing)
        else:
            sound.append(name)
    return sound


def definition_of(operation: str) -> Any:
    """TensorFlow's definition of an operation: its attributes, whether it is stateful.

    None if there is no such operation. No public function tells.
    """
    from tensorflow.python.framework import op_def_registry

    return op_def_registry.get(operation)


def find_missing(used: Any) -> str:
    """Name an operation or function that a graph calls and that does not exist; "" if all do."""
    functions = {function.signature.name: function for function in used.library.function}
    bodies = [used.node, *(function.node_def for function in functions.values())]
    for node in itertools.chain.from_iterable(bodies):
        if node.op not in functions and definition_of(node.op) is None:
            return f"there is no operation '{node.op}'"
        lost = sorted(called_names(node.attr) - functions.keys() - {""})
        if lost:
            return f"there is no function '{lost[0]}'"
    return ""


def find_needed(graph: Any, names: Iterable[str], placed: bool = False) -> dict[str, Any]:
    """The nodes of a GraphDef, by name, that the named nodes or tensors need, themselves included;
    with `placed` also nodes that these are colocated with. ValueError for a missing node.
    """
    nodes = {node.name: node for node in graph.node}
    waiting, used = [name.split(":")[0] for name in names], dict[str, Any]()
    while waiting:
        name = waiting.pop()
        if name in used:
            continue
        if name not in nodes:
            raise ValueError(f"{name} is not in graph")
        used[name] = nodes[name]
        waiting += [source.lstrip("^").split(":")[0] for source in nodes[name].input]
        if placed and "_class" in nodes[name].attr:
            beside = nodes[name].attr["_class"].list.s
            waiting += [place.decode().removeprefix("loc:@") for place in beside]
    return used


def extract_sub_graph(graph: Any, names: Iterable[str], *beside: str) -> Any:
    """The part of a GraphDef that the named nodes need, as a GraphDef, with the nodes whose names
    are one of these and a suffix of `beside`; ValueError for a missing node.

    TensorFlow's function of this name is deprecated, and warns of it.
    """
    used = find_needed(graph, names, placed=True)
    part = type(graph)(library=graph.library, versions=graph.versions)
    kept = {name + end for name in used for end in ("", *beside)}
    part.node.extend(node for node in graph.node if node.name in kept)
    return part


def extract_used(graph: Any, signatures: Iterable[str]) -> Any:
    """The part of a MetaGraphDef's graph that signatures need, with the functions it calls."""
    infos = (
        info
        for name in signatures
        for signature in [graph.signature_def[name]]
        for side in (signature.inputs, signature.outputs)
        for info in side.values()
    )
    # sparse and composite tensors have no name
    names = {info.name for info in infos if info.name}
    used = extract_sub_graph(graph.graph_def, names, READ_SUFFIX)
    functions = called_functions(used.node, used.library)
    if not used.library.gradient:
        del used.library.function[:]
        used.library.function.extend(functions)
    return used


def checkpoint_keys(graph: Any, used: Any, reader: Any) -> dict[str, str] | None:
    """The checkpoint's key for each variable of the used part.

    None if a key is not certain, or if more than variables must be restored. A function lists the
    objects that it is bound to (saved_object_graph.proto), which are its last inputs; the
    checkpoint has the key of each (trackable_object_graph.proto), as for `tf.saved_model.load`.
    """
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    if not reader.has_tensor("_CHECKPOINTABLE_OBJECT_GRAPH") or has_more_to_restore(graph, used):
        return None
    stored = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    ).nodes
    saved = graph.object_graph_def
    if list(map(sorted_children, stored)) != list(map(sorted_children, saved.nodes)):
        return None
    keys = bound_keys(used, saved, stored)
    handles = {node.name: node.attr for node in used.node if node.op == "VarHandleOp"}
    if keys is None or keys.keys() != handles.keys():
        return None
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    for name, key in keys.items():
        shape = tensorflow().TensorShape(handles[name]["shape"].shape)
        if key not in shapes or dtypes[key] != handles[name]["dtype"].type:
            return None
        if not shape.is_compatible_with(shapes[key]):
            return None
    return keys


def bound_keys(used: Any, saved: Any, stored: Sequence[Any]) -> dict[str, str] | None:
    """The key of each variable that functions are bound to; None if two disagree about one."""
    handles = {node.name for node in used.node if node.op == "VarHandleOp"}
    keys: dict[str, str] = {}
    for node in used.node:
        if "f" not in node.attr:
            continue
        bound = saved.concrete_functions[node.attr["f"].func.name].bound_inputs
        inputs = [name for name in node.input if not name.startswith("^")]
        for name, number in zip(inputs[len(inputs) - len(bound) :], bound):
            attributes = stored[number].attributes
            own = (one.checkpoint_key for one in attributes if one.name == "VARIABLE_VALUE")
            key = next(own, "")  # empty if it is not a variable
            if name in handles and keys.setdefault(name, key) != key:
                return None
    return keys


def has_more_to_restore(graph: Any, used: Any) -> bool:
    """Whether a SavedModel has assets, something to run when it is loaded,
    or tables and the like.
    """
    starts = []
    if INIT_SIGNATURE in graph.signature_def:
        starts += [info.name for info in graph.signature_def[INIT_SIGNATURE].outputs.values()]
    starts += [
        name
        for key in INIT_COLLECTIONS & graph.collection_def.keys()
        for name in graph.collection_def[key].node_list.value
    ]
    names = {name.split(":")[0] for name in starts}
    if graph.asset_file_def or any(
        node.op != "NoOp" or node.input for node in graph.graph_def.node if node.name in names
    ):
        return True
    kinds = {node.op for node in used.node} - PLAIN_STATE
    return any(
        definition is None or definition.is_stateful for definition in map(definition_of, kinds)
    )


def sorted_children(node: Any) -> list[tuple[str, int]]:
    return sorted((child.local_name, child.node_id) for child in node.children)


def open_filled(
    used: Any, keys: Mapping[str, str], prefix: Path, device: str, producer: Any
) -> Any:
    """A session over a graph, each of its variables restored from the checkpoint by its key."""
    tf = tensorflow()
    dtypes = {node.name: node.attr["dtype"].type for node in used.node if node.op == "VarHandleOp"}
    with new_session(device) as session:
        tf.graph_util.import_graph_def(used, name="", producer_op_list=producer)
        handles = [session.graph.get_tensor_by_name(f"{name}:0") for name in keys]
        with session.graph.device("/device:CPU:0"):
            values = tf.raw_ops.RestoreV2(
                prefix=str(prefix),
                tensor_names=list(keys.values()),
                shape_and_slices=[""] * len(keys),
                dtypes=[dtypes[name] for name in keys],
            )
        session.run(
            [
                tf.raw_ops.AssignVariableOp(resource=handle, value=value)
                for handle, value in zip(handles, values)
            ]
        )
    return session


# --------------------------------------------------------------------------------------------------
# As objects, and by other names
# --------------------------------------------------------------------------------------------------


def open_objects(
    folder: Path,
    device: str,
    definitions: Mapping[str, Any],
    renamed: Mapping[str, Mapping[str, str]],
    tags: Sequence[str],
) -> Any:
    """Load a SavedModel's objects into a session's graph.

    Changes `definitions`, which then name the tensors of that graph.
    """
    tf = tensorflow()
    with new_session(device) as session:
        loaded = tf.saved_model.load(str(folder), tags=list(tags))
        session.run(
            [tf.compat.v1.global_variables_initializer(), tf.compat.v1.tables_initializer()]
        )
        check_variables(session)
        for name, function in loaded.signatures.items():
            rewire(definitions[name], function, renamed)
    return session


def rewire(definition: Any, function: Any, renamed: Mapping[str, Mapping[str, str]]) -> None:
    """Call a loaded signature in the current graph; its SignatureDef then names the new tensors."""
    placeholder = tensorflow().compat.v1.placeholder
    inputs = {
        name: placeholder(spec.dtype, spec.shape)
        for name, spec in function.structured_input_signature[1].items()
    }
    for side, tensors in (("inputs", inputs), ("outputs", function(**inputs))):
        for name, tensor in tensors.items():
            getattr(definition, side)[renamed.get(side, {}).get(name, name)].name = tensor.name


def read_mapping(path: Path) -> dict[str, dict[str, str]]:
    """For `inputs` and `outputs`: the model's own names -> those in requests. {} without a file."""
    if not path.is_file():
        return {}
    try:
        mapping = parse(dict, read_config(path.read_bytes()))
        return {
            side: parse(dict[str, str], mapping.get(side, {}), f"$.{side}")
            for side in ("inputs", "outputs")
        }
    except ConfigError as error:
        raise LoadError(f"{path.name}: {error.message}") from None


def rename_tensors(definitions: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Apply OpenVINO Model Server's mapping_config.json, and return it.

    It maps the model's own names to those in requests. Raises LoadError if two become the same.
    """
    mapping = read_mapping(folder / "mapping_config.json")
    for definition in definitions.values():
        for side in ("inputs", "outputs"):
            tensors = getattr(definition, side)
            stored = copy.deepcopy(dict(tensors))
            tensors.clear()
            for own, info in stored.items():
                exposed = mapping.get(side, {}).get(own, own)
                if exposed in tensors:
                    raise LoadError(f"mapping_config.json gives two {side} the name '{exposed}'")
                tensors[exposed].CopyFrom(info)
    return mapping


# --------------------------------------------------------------------------------------------------
# What a signature takes and answers
# --------------------------------------------------------------------------------------------------

# The dtypes of arrays passed to and from TensorFlow; only Python callers have complex numbers.
CARRIED = NUMPY_DTYPES | {
    "DT_COMPLEX64": np.dtype(np.complex64),
    "DT_COMPLEX128": np.dtype(np.complex128),
}


NO_INPUTS = "it has no inputs, which :predict needs"  # TensorFlow Serving loads it all the same
NO_SIGNATURE = "has no signature and cannot be called: export it with signatures"


def is_runnable(signature: Signature) -> bool:
    sides = (signature.inputs, signature.outputs)
    return all(
        side and all(s.tensor and s.dtype != "DT_INVALID" for s in side.values()) for side in sides
    )


def check_signature(graph: Any, signature: Signature) -> Signature:
    """A signature with its inputs' shapes as the graph knows them.

    Raises LoadError for one that cannot be called.
    """
    if not signature.inputs:
        raise LoadError(NO_INPUTS)
    if not is_runnable(signature):
        raise LoadError("it has sparse, composite or no tensors, which REST cannot carry")
    for spec in signature.outputs.values():
        find_tensor(graph, spec)
    inputs = {
        name: narrow_input(spec, find_tensor(graph, spec))
        for name, spec in signature.inputs.items()
    }
    for name, spec in inputs.items():
        if not is_carried(spec):
            raise LoadError(f"input '{name}' is {spec.type_name}, which is not a number or string")
    if not any(map(is_carried, signature.outputs.values())):
        raise LoadError("none of its outputs is a number or a string")
    return Signature(inputs, signature.outputs)


def is_carried(spec: TensorSpec) -> bool:
    """Whether a tensor holds numbers or strings; a resource handle would expose our memory."""
    return spec.dtype in CARRIED


def find_tensor(graph: Any, spec: TensorSpec) -> Any:
    """A signature's tensor in the graph; LoadError where there is none of that name and dtype."""
    from tensorflow.core.framework import types_pb2

    try:
        tensor = graph.get_tensor_by_name(spec.tensor)
    except (KeyError, ValueError) as error:
        raise LoadError(
            f"tensor '{spec.tensor}' of '{spec.name}' is not in the graph, "
            "or not in the part of it that can be loaded"
        ) from error
    dtype = types_pb2.DataType.Name(tensor.dtype.base_dtype.as_datatype_enum)
    if dtype != spec.dtype:  # its bytes would be read as another dtype
        stored = dtype.removeprefix("DT_").lower()
        raise LoadError(
            f"'{spec.name}' is {spec.type_name} in the signature, {stored} in the graph"
        )
    return tensor


def narrow_input(spec: TensorSpec, tensor: Any) -> TensorSpec:
    """A signature's input, with the sizes that it leaves open taken from its placeholder.

    TensorFlow optimizes a graph for these sizes. LoadError if the two contradict each other.
    """
    if tensor.op.type not in ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault"):
        return spec
    try:
        shape = tensorflow().TensorShape(spec.shape).merge_with(tensor.shape)
    except ValueError as error:
        raise LoadError(
            f"'{spec.name}' is {print_shape(spec.shape)} in the signature, "
            f"{print_shape(tensor.shape.as_list())} in the graph"
        ) from error
    sizes = None if shape.rank is None else tuple(shape.as_list())
    return dataclasses.replace(spec, shape=sizes)


# Operations that pass on the values of their first input: cast, sliced, reordered, interpolated.
HANDED_ON = {
    *("Identity", "Snapshot", "StopGradient", "PreventGradient", "CheckNumerics", "EnsureShape"),
    *("Cast", "Reshape", "Squeeze", "ExpandDims", "Transpose", "StridedSlice", "Slice"),
    *("ClipByValue", "ResizeBilinear", "ResizeNearestNeighbor", "DepthToSpace"),
    *("FakeQuantWithMinMaxVars", "FakeQuantWithMinMaxArgs"),
}


class Scope(typing.NamedTuple):
    """The namespace of a tensor: a graph, or the body of a function that `caller` calls."""

    nodes: Mapping[str, Any]
    functions: Mapping[str, Any]  # all of the graph
    arguments: Mapping[str, str] = types.MappingProxyType({})  # argument -> the caller's tensor
    caller: "Scope | None" = None


def tell_makers(graph: Any, signature: Signature) -> Signature:
    """A signature with what a GraphDef tells of it: how its outputs are made, the types of
    operations that it may run, and an example that it can parse.
    """
    functions = {function.signature.name: function for function in graph.library.function}
    top = Scope({node.name: node for node in graph.node}, functions)
    shapes = [spec.shape or () for spec in signature.inputs.values()]
    sizes = {size for shape in shapes if len(shape) == 4 for size in shape[1:] if size and size > 4}
    logits = find_logits(signature, top) if len(signature.outputs) > 1 else {}
    outputs = {
        name: dataclasses.replace(
            spec,
            made_by=find_maker(spec.tensor, top),
            scale=find_scale(spec.tensor, top, sizes),
            logits=logits.get(name, ()),
        )
        for name, spec in signature.outputs.items()
    }
    bodies = used_bodies(graph, [spec.tensor for spec in signature.outputs.values()])
    operations = frozenset(node.op for body in bodies for node in body)
    return Signature(signature.inputs, outputs, operations, make_example(bodies, operations))


KINDS_PARSED = {1: "float", 7: "bytes", 9: "int64"}  # DT_FLOAT, DT_STRING, DT_INT64
MOST_PARSED = 1000  # values in a made-up example


READ_PNG = {"DecodeImage", "DecodeJpeg", "DecodePng"}  # operations that take a PNG's bytes
# 8x8 black pixels, as PNG
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAADElEQVR4nGNgGB4AAADIAAGtQHYiAAAAAElFTkSuQmCC"


def make_example(bodies: Iterable[Iterable[Any]], operations: Collection[str]) -> bytes:
    """Make a serialized tf.train.Example with the features that a graph's nodes, and those of its
    functions, parse; b"" if they parse none, or more than `MOST_PARSED` values.
    """
    text = b"1" if READ_PNG.isdisjoint(operations) else base64.b64decode(DOT)
    features: dict[str, tuple[str, list]] = {}
    for body in bodies:
        nodes = {node.name: node for node in body}
        for node in filter(lambda node: node.op in ("ParseExample", "ParseExampleV2"), body):
            features |= parsed_features(node, nodes, text)
    size = sum(len(values) for _, values in features.values())
    return serialize_examples([features])[0] if 0 < size <= MOST_PARSED else b""


def parsed_features(
    node: Any, nodes: Mapping[str, Any], text: bytes
) -> dict[str, tuple[str, list]]:
    """The sparse and dense features that an operation parses: key -> (type, values), where the
    values are all 1, or `text`. None of them if a key is not a constant.
    """
    attr = node.attr
    sparse, dense = (1, 1) if node.op.endswith("V2") else (attr["Nsparse"].i, attr["Ndense"].i)
    # inputs of the operation: examples, their names, keys of sparse features, keys of dense ones
    makers = [nodes.get(name.split(":")[0]) for name in node.input[2 : 2 + sparse + dense]]
    if any(getattr(maker, "op", "") != "Const" for maker in makers):
        return {}
    read = tensorflow().make_ndarray
    values = [maker.attr["value"].tensor for maker in makers if maker]
    keys = [key for value in values for key in read(value).ravel()]
    types = [*attr["sparse_types"].list.type, *attr["Tdense"].list.type]
    shapes = [shape.dim for shape in attr["dense_shapes"].list.shape]
    sizes = [1] * len(attr["sparse_types"].list.type)
    sizes += [math.prod(max(dim.size, 1) for dim in shape) for shape in shapes]
    ones = [text if kind == 7 else 1 for kind in types]
    return {
        key.decode(errors="replace"): (KINDS_PARSED[kind], [one] * min(size, MOST_PARSED + 1))
        for key, kind, one, size in zip(keys, types, ones, sizes)
    }


def serialize_examples(examples: Sequence[Mapping[str, tuple[str, list]]]) -> np.ndarray:
    """Features by name, each (`int64` | `float` | `bytes`, values),
    as serialized tf.train.Examples [N].
    """
    train = tensorflow().train
    lists = {
        "int64": lambda values: train.Feature(int64_list=train.Int64List(value=values)),
        "float": lambda values: train.Feature(float_list=train.FloatList(value=values)),
        "bytes": lambda values: train.Feature(bytes_list=train.BytesList(value=values)),
    }
    serialized = np.empty(len(examples), object)
    for index, features in enumerate(examples):
        feature = {name: lists[kind](values) for name, (kind, values) in features.items()}
        serialized[index] = train.Example(
            features=train.Features(feature=feature)
        ).SerializeToString()
    return serialized


def find_maker(tensor: str, scope: Scope) -> str:
    """The type of the operation that computes a tensor's values; "" if it cannot be found.

    Looks through operations that pass values on, and into functions. Several joined tensors of one
    maker count as made by it, but several softmaxes do not. exp(x) / sum(exp(x)) is a Softmax.
    """
    node, scope = find_node(tensor, scope)
    if node is None:
        return ""
    if node.op in ("ConcatV2", "Pack"):
        joined = node.input[:-1] if node.op == "ConcatV2" else node.input
        makers = {find_maker(one, scope) for one in joined if one[0] != "^"}
        is_one_kind = len(makers) == 1 and (len(joined) == 1 or makers != {"Softmax"})
        return makers.pop() if is_one_kind else node.op
    if node.op == "Sub" and is_one(node.input[0], scope):  # 1 - p: the other of two classes
        maker = find_maker(node.input[1], scope)
        return maker if maker == "Sigmoid" else node.op
    if node.op == "RealDiv":
        over, under = (scope.nodes.get(one.partition(":")[0]) for one in node.input[:2])
        is_sum = under is not None and under.op == "Sum" and under.input[0] == node.input[0]
        return "Softmax" if is_sum and over is not None and over.op == "Exp" else node.op
    return node.op


def find_logits(signature: Signature, top: Scope) -> dict[str, tuple[str, ...]]:
    """For each output that is the softmax or sigmoid of others, unsliced: the names of those."""
    whole = HANDED_ON - {"Slice", "StridedSlice"}

    def place(tensor: str, scope: Scope) -> tuple[str, ...]:
        """Identify where a tensor is made: its name and index, and the arguments of its callers."""
        tensor, scope = trace_tensor(tensor, scope, whole)
        name, _, index = tensor.partition(":")
        names = [name, index or "0"]
        while scope.caller is not None:
            names += scope.arguments.values()
            scope = scope.caller
        return tuple(names)

    places = {name: place(spec.tensor, top) for name, spec in signature.outputs.items()}
    found = {}
    for name, spec in signature.outputs.items():
        tensor, scope = trace_tensor(spec.tensor, top, whole)
        node = scope.nodes.get(tensor.partition(":")[0])
        if node is not None and node.op in ("Softmax", "Sigmoid"):
            given = place(node.input[0], scope)
            found[name] = tuple(other for other, made in places.items() if made == given)
    return found


def find_node(tensor: str, scope: Scope) -> tuple[Any, Scope]:
    """The node that computes a tensor's values, or None if it is missing; and its scope."""
    tensor, scope = trace_tensor(tensor, scope)
    return scope.nodes.get(tensor.partition(":")[0]), scope


def trace_tensor(
    tensor: str, scope: Scope, handed_on: Collection[str] = HANDED_ON
) -> tuple[str, Scope]:
    """The tensor as which the values of `tensor` are computed, and its scope; "" for a loop."""
    for _ in range(10_000):  # longer than any chain: a graph may have loops
        name, _, place = tensor.partition(":")
        if name in scope.arguments and scope.caller is not None:
            tensor, scope = scope.arguments[name], scope.caller
            continue
        node = scope.nodes.get(name)
        if node is None:
            return tensor, scope
        called = scope.functions.get(node.attr["f"].func.name if "f" in node.attr else node.op)
        if called is not None:
            tensor, scope = enter(called, node, place, scope)
        elif node.op in handed_on:
            tensor = node.input[0]
        elif node.op == "IdentityN":
            tensor = node.input[int(place.rpartition(":")[2] or 0)]
        elif node.op in ("Minimum", "Maximum") and is_constant(node.input[1], scope):  # clipped
            tensor = node.input[0]
        else:
            return tensor, scope
    return "", scope


def enter(function: Any, node: Any, place: str, scope: Scope) -> tuple[str, Scope]:
    """The tensor in a function's body behind output `place` of its call `node`, and its scope."""
    index = int(place.rpartition(":")[2] or 0)
    results = [argument.name for argument in function.signature.output_arg]
    named = place.partition(":")[0]
    result = named if named in results else results[min(index, len(results) - 1)]
    given = [argument.name for argument in function.signature.input_arg]
    nodes = {one.name: one for one in function.node_def}
    inner = Scope(nodes, scope.functions, dict(zip(given, node.input)), scope)
    return function.ret[result], inner


STRIDES = {4, 8, 16, 32, 64, 128}  # input pixels per grid cell of a detector
MOST_STEPS = 24  # between an output and the constants that tell the scale of its boxes
MOST_CONSTANTS = 1 << 20  # numbers in a constant; a larger one is not read


def find_scale(tensor: str, scope: Scope, sizes: Collection[int], step: int = 0) -> str:
    """Whether the boxes that an output starts with are in 0..1 (`unit`) or in pixels of the input
    (`input`), as the constants that they are computed with tell; "" if these do not.

    `sizes` are the input's. YOLO's heads multiply by the strides of their cells; an export in 0..1
    then divides by the input's sizes, or multiplies by stride / size instead.
    """
    node, scope = find_node(tensor, scope)
    if node is None or step > MOST_STEPS:
        return ""

    def follow(tensor: str) -> str:
        return find_scale(tensor, scope, sizes, step + 1)

    if node.op in ("Sigmoid", "Softmax"):
        return "unit"
    if node.op in ("ConcatV2", "Pack", "SplitV", "Unpack", "Split"):
        return follow(node.input[1 if node.op == "Split" else 0])
    if node.op == "Const":
        return scale_of_values(read_constant(node), {2})
    if node.op not in ("Mul", "RealDiv", "Add", "AddV2", "Sub"):
        return ""
    first, second = (find_node(one, scope)[0] for one in node.input[:2])
    left, right = read_constant(first), read_constant(second)
    if node.op in ("Add", "AddV2", "Sub"):
        told = [scale_of_values(one, sizes) for one in (left, right)]
        rest = [one for one, known in zip(node.input, (left, right)) if known is None]
        return next(filter(None, told), "") or next(filter(None, map(follow, rest)), "")
    if right is not None:
        factors = right if node.op == "Mul" else 1 / np.where(right == 0, np.inf, right)
    elif left is not None and node.op == "Mul":
        factors = left
    else:
        return ""
    is_small = np.abs(factors).max() <= 2  # such as 1/2 or 2, which do not change the scale
    further = follow(node.input[1 if right is None else 0]) if is_small else ""
    return scale_of_factors(factors, sizes) or further


def read_constant(node: Any) -> np.ndarray | None:
    """The numbers of a Const node as float64; None for other nodes, no numbers or too many."""
    if node is None or node.op != "Const":
        return None
    shape = [dim.size for dim in node.attr["value"].tensor.tensor_shape.dim]
    if math.prod(shape) > MOST_CONSTANTS:
        return None
    values = tensorflow().make_ndarray(node.attr["value"].tensor)
    return values.astype(np.float64) if values.size and values.dtype.kind in "iuf" else None


def scale_of_values(values: np.ndarray | None, sizes: Collection[int]) -> str:
    """The scale of constant boxes or cell centres; "" if unknown, as for a single row of biases."""
    if values is None or sum(size > 1 for size in values.shape) < 2:
        return ""
    values = np.nan_to_num(values)
    most = values.max()
    if values.min() >= 0 and 0.5 < most <= 1:
        return "unit"
    return "input" if sizes and most > max(2, min(sizes) / 2) else ""


def scale_of_factors(factors: np.ndarray, sizes: Collection[int]) -> str:
    """The scale of boxes that result from a multiplication by `factors`; "" if unknown."""

    def are_all(known: Iterable[float]) -> bool:
        near = np.array([*known, np.inf])
        return bool(np.isclose(factors.ravel()[:, np.newaxis], near, 1e-4, 0).any(1).all())

    if are_all(STRIDES) and factors.max() >= 8 or sizes and are_all(sizes):
        return "input"
    shares = {part / size for size in sizes for part in (1, *STRIDES) if part < size}
    return "unit" if are_all(shares) and factors.max() < 0.5 else ""


def is_one(tensor: str, scope: Scope) -> bool:
    """Whether a tensor is the constant 1."""
    if not is_constant(tensor, scope):
        return False
    value = scope.nodes[tensor.partition(":")[0]].attr["value"].tensor
    return bool((tensorflow().make_ndarray(value) == 1).all())


def is_constant(tensor: str, scope: Scope) -> bool:
    node = scope.nodes.get(tensor.partition(":")[0])
    return node is not None and node.op == "Const"


def read_signatures(folder: Path, tags: Sequence[str]) -> dict[str, Signature]:
    """Read a SavedModel's signatures, and what its graph tells of them, without loading it.

    Raises whatever reading its file raises.
    """
    return signatures_of(read_graph(folder, tags), folder)


def read_graph(folder: Path, tags: Sequence[str]) -> Any:
    """Read the MetaGraphDef with just these tags from a SavedModel's file.

    Raises whatever reading its file raises.
    """
    tensorflow()
    return find_graph(read_graphs(folder), tags)


def signatures_of(graph: Any, folder: Path) -> dict[str, Signature]:
    """The signatures of a SavedModel's MetaGraphDef, in which their tensors are renamed, and what
    its graph tells of them.
    """
    definitions = dict(graph.signature_def)
    rename_tensors(definitions, folder)
    signatures = {name: read_signature(one) for name, one in definitions.items()}
    for name in filter(lambda name: is_runnable(signatures[name]), signatures):
        with contextlib.suppress(ValueError):  # missing tensors: loading leaves the signature out
            signatures[name] = tell_makers(graph.graph_def, signatures[name])
    return signatures


def print_shape(shape: Sequence[int | None] | None) -> str:
    """A shape as clients write it, -1 for any size: `[-1, 32, 32, 3]`."""
    if shape is None:
        return "of any shape"
    return str([-1 if size is None else size for size in shape])


def fit(spec: TensorSpec, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array for an input; BadRequest if its dtype, rank or size is not what the input takes.

    TensorFlow's kernels do not check enough: a wrong rank can crash the process.
    """
    if spec.name not in inputs:
        raise BadRequest(f"Missing named input: {spec.name}")
    array = np.asarray(inputs[spec.name])
    is_text = spec.dtype == "DT_STRING" and array.dtype.kind in "SU"
    if array.dtype != CARRIED[spec.dtype] and not is_text:
        raise misfit(spec, array.dtype.name)
    if spec.shape is not None and not matches(spec.shape, array.shape):
        raise misfit(spec, f"shape {list(array.shape)}")
    return array


def matches(wanted: Sequence[int | None], shape: Sequence[int]) -> bool:
    """Whether a shape has the rank and the sizes that are wanted."""
    return len(wanted) == len(shape) and all(
        size is None or size == given for size, given in zip(wanted, shape)
    )


def misfit(spec: TensorSpec, came: str) -> BadRequest:
    takes = f"input '{spec.name}' takes {spec.type_name} {print_shape(spec.shape)}"
    return BadRequest(f"{takes}, got {came}")


def as_array(value: Any) -> np.ndarray:
    """Convert a value from TensorFlow to an array: it returns scalars bare."""
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


# --------------------------------------------------------------------------------------------------
# How it is called
# --------------------------------------------------------------------------------------------------


def make_callable(
    session: Any, feeds: Sequence[str], fetches: Sequence[str]
) -> Callable[..., list[np.ndarray]]:
    """A function from arrays to arrays that runs in the caller's thread, the GIL released (about 10
    us a call).

    Session.make_callable takes some 300 us, most of it Python; this is the call below it.
    """
    from tensorflow.core.protobuf import config_pb2

    options = config_pb2.CallableOptions(feed=feeds, fetch=fetches)
    options.run_options.inter_op_thread_pool = -1
    return session._make_callable_from_options(options)


def prepare_calls(
    name: str, device: str, session: Any, definitions: Mapping[str, Any], metadata: dict[str, Any]
) -> OpenModel:
    """Find how each signature of a model is called, or why it cannot be.

    Raises LoadError if none can be called: a model that answers nothing is not served.
    """
    signatures = {signature: read_signature(one) for signature, one in definitions.items()}
    refused: dict[str, str] = {}
    plans = plan_calls(session.graph, signatures, refused)
    graph = session.graph.as_graph_def()
    twins = find_twins(graph, {signature: signatures[signature] for signature in plans})
    sound = {}
    for signature, planned in plans.items():
        if signature in twins:
            continue
        plan = know_operations(graph, planned)
        label = f"{name}: signature {signature}"
        if problem := lacks_rank(signatures[signature], plan) or lacks_python(graph, plan, label):
            refused[signature] = problem
        else:
            sound[signature] = plan
    calls = make_calls(session, sound, refused)
    refused |= {twin: refused[other] for twin, other in twins.items() if other in refused}
    report_refused(name, calls, refused)
    calls |= {twin: calls[other] for twin, other in twins.items() if other in calls}
    for signature in calls:
        signatures[signature] = tell_makers(graph, signatures[signature])
        text = tell_training(signatures[signature].operations)
        if text and signature not in twins:
            logger.warning("%s: signature %s %s", name, signature, text)
    return OpenModel(name, device, session, signatures, calls, refused, metadata)


def plan_calls(
    graph: Any, signatures: dict[str, Signature], refused: dict[str, str]
) -> dict[str, SignatureCall]:
    """Plan the call of each signature; if it cannot be called, its name -> why in `refused`."""
    plans = {}
    for name, signature in signatures.items():
        try:
            signatures[name] = check_signature(graph, signature)
            plans[name] = plan_call(graph, signatures[name])
        except LoadError as error:
            refused[name] = error.message
    return plans


def plan_call(graph: Any, signature: Signature) -> SignatureCall:
    """Plan what is fed and fetched for a signature: all inputs, the outputs that are carried."""
    feeds = [spec.tensor for spec in signature.inputs.values()]
    fetched = {name: spec.tensor for name, spec in signature.outputs.items() if is_carried(spec)}
    identity = tensorflow().identity
    with graph.as_default():  # a tensor cannot be both fed and fetched
        fetches = [
            identity(graph.get_tensor_by_name(tensor)).name if tensor in feeds else tensor
            for tensor in fetched.values()
        ]
    return SignatureCall(not_made, feeds, fetches, list(fetched))


def know_operations(graph: Any, plan: SignatureCall) -> SignatureCall:
    """Add to a plan the operations that it may run, and what follows from them."""
    nodes = used_nodes(graph, plan.fetches)
    kinds = frozenset(node.op for node in nodes)
    keeps = tuple(sorted({node.op for node in nodes if leaves_behind(node)}))
    return plan._replace(operations=kinds, keeps=keeps)


# Operations that crash the process on an input of another rank than theirs (oneDNN's kernels).
OF_ONE_RANK = {
    *("Conv2D", "Conv2DBackpropFilter", "Conv2DBackpropInput", "Conv3D", "Conv3DBackpropFilterV2"),
    *("Conv3DBackpropInputV2", "DepthwiseConv2dNative", "DepthwiseConv2dNativeBackpropFilter"),
    *("DepthwiseConv2dNativeBackpropInput",),
}


def lacks_rank(signature: Signature, plan: SignatureCall) -> str:
    """Why requests of a wrong rank, which would crash the process, cannot be refused; "" if they
    can be.
    """
    fixed = sorted(OF_ONE_RANK & plan.operations)
    for spec in signature.inputs.values():
        if fixed and spec.shape is None and spec.dtype != "DT_STRING":
            return (
                f"input '{spec.name}' has no fixed rank, but its operation {fixed[0]} needs one: "
                "export the model with the input's shape"
            )
    return ""


PYTHON_CALLS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}


def lacks_python(graph: Any, plan: SignatureCall, label: str) -> str:
    """Why a signature cannot be called whose Python functions this process does not have; "" if it
    can be. The process that saved the model has them.
    """
    if not PYTHON_CALLS & plan.operations:
        return ""
    nodes = [node for node in used_nodes(graph, plan.fetches) if node.op in PYTHON_CALLS]
    tokens = sorted({node.attr["token"].s.decode() for node in nodes})
    if lost := [token for token in tokens if not is_registered(token)]:
        return (
            f"it calls a Python function ({lost[0]}), which no SavedModel can contain: "
            "export it without tf.py_function and tf.numpy_function"
        )
    logger.warning(
        "%s calls Python functions by name (%s). This process has these names, but "
        "they are the right functions only if it saved the model itself",
        label,
        ", ".join(tokens),
    )
    return ""


def is_registered(token: str) -> bool:
    """Whether this process has a Python function that graphs call by that name.

    Loading a model registers none, so a missing one stays missing. No public function tells.
    """
    from tensorflow.python.ops import script_ops

    registered = getattr(script_ops, "_py_funcs", None)
    return registered is None or registered.get(token) is not None


def not_made(*arrays: np.ndarray) -> list[np.ndarray]:
    """Stand in for the function of a call that is only planned so far."""
    raise LoadError("the model is not loaded yet")


def make_calls(
    session: Any, plans: Mapping[str, SignatureCall], refused: dict[str, str]
) -> dict[str, SignatureCall]:
    """Make calls of a session from plans; for those that TensorFlow refuses, why in `refused`."""
    calls = {}
    for name, plan in plans.items():
        try:
            calls[name] = plan._replace(run=make_callable(session, plan.feeds, plan.fetches))
        except (tensorflow().errors.OpError, ValueError) as error:
            refused[name] = clean_message(getattr(error, "message", None) or str(error))
    return calls


def report_refused(
    label: str, calls: Mapping[str, SignatureCall], refused: Mapping[str, str]
) -> None:
    """Log the signatures of a model that cannot be called; LoadError if none can be."""
    told = {name: reason for name, reason in refused.items() if name != INIT_SIGNATURE}
    texts = [f"signature {name} cannot be called: {reason}" for name, reason in told.items()]
    if texts and not calls and NO_INPUTS not in told.values():
        raise LoadError("; ".join(texts))
    for text in texts:
        logger.warning("%s: %s", label, text)
    if not calls and not texts:
        logger.warning("%s %s", label, NO_SIGNATURE)


# --------------------------------------------------------------------------------------------------
# One function under two names
# --------------------------------------------------------------------------------------------------


def find_twins(graph: Any, signatures: Mapping[str, Signature]) -> dict[str, str]:
    """Signatures that duplicate another one: their name -> the name of that other.

    Keras exports `serve` and `serving_default`: they call functions that differ in nothing but
    their names, with the same variables.
    """
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    first, twins = dict[Any, str](), dict[str, str]()
    for name in sorted(signatures, key=lambda name: (name != "serving_default", name)):
        key = call_key(signatures[name], nodes, functions)
        if key and first.setdefault(key, name) != name:
            twins[name] = first[key]
    return twins


def call_key(
    signature: Signature, nodes: Mapping[str, Any], functions: Mapping[str, Any]
) -> tuple | None:
    """A key that is equal for duplicates; None for a signature that is not a single function."""
    callers = {spec.tensor.split(":")[0] for spec in signature.outputs.values()}
    call = nodes.get(callers.pop()) if len(callers) == 1 else None
    if call is None or call.attr["f"].func.name not in functions:
        return None
    feeds = {
        spec.tensor.split(":")[0]: (name, spec.dtype, spec.shape)
        for name, spec in signature.inputs.items()
    }
    fetches = tuple(
        (name, spec.dtype, spec.shape, spec.tensor.split(":")[-1])
        for name, spec in signature.outputs.items()
    )
    function = copy.deepcopy(functions[call.attr["f"].func.name])
    function.signature.ClearField("name")
    for attributes in function.arg_attr.values():
        attributes.attr.pop("_user_specified_name", None)
    others = sorted(
        (name, value.SerializeToString(deterministic=True))
        for name, value in call.attr.items()
        if name != "f"
    )
    inputs = tuple(feeds.get(tensor.split(":")[0], tensor) for tensor in call.input)
    return (
        call.op,
        inputs,
        tuple(feeds.values()),
        fetches,
        tuple(others),
        function.SerializeToString(deterministic=True),
    )


# --------------------------------------------------------------------------------------------------
# What a call leaves behind
# --------------------------------------------------------------------------------------------------

# Operations that TensorFlow marks as stateful, but that keep nothing of a call: they read variables
# or tables, use arrays that end with the call, or call functions, whose operations are checked one
# by one. Any other stateful operation keeps something, or may.
HARMLESS = {
    *("VarHandleOp", "ReadVariableOp", "VariableShape", "VarIsInitializedOp", "ResourceGather"),
    *("ResourceGatherNd", "Variable", "VariableV2", "IsVariableInitialized", "RefIdentity"),
    *("RefEnter", "RefExit", "RefMerge", "RefNextIteration", "RefSelect", "RefSwitch", "HashTable"),
    *("HashTableV2", "MutableHashTable", "MutableHashTableV2", "MutableDenseHashTable"),
    *("MutableDenseHashTableV2", "LookupTableFind", "LookupTableFindV2", "LookupTableSize"),
    *("LookupTableSizeV2", "TensorArrayV3", "TensorArrayReadV3", "TensorArrayWriteV3"),
    *("TensorArrayGatherV3", "TensorArrayScatterV3", "TensorArraySizeV3", "TensorArrayConcatV3"),
    *("TensorArraySplitV3", "TensorArrayCloseV3", "StatefulPartitionedCall", "While", "If", "Case"),
    *("Assert", "GuaranteeConst"),
}
# Without a seed, random numbers differ each time, whatever was drawn before; with a seed, a call
# uses up numbers of a fixed series.
RANDOM = {
    *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal"),
    *("ParameterizedTruncatedNormal", "RandomGamma", "RandomPoisson", "RandomPoissonV2"),
    *("RandomShuffle", "Multinomial", "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"),
}
# Operations that TensorFlow marks as stateless, but that may keep something, or block: Python,
# files, calls that wait for each other.
HARMFUL = re.compile(
    "PyFuncStateless|.*Dataset.*|Debug.*|(Unb|B)atch(Function)?|.*Infeed.*|TPU.*|Abort"
)


ASSIGNS = {f"Assign{way}{what}" for way in ("", "Add", "Sub") for what in ("", "VariableOp")}


def tell_training(operations: Collection[str]) -> str:
    """A warning about a signature that assigns variables, with the remedy; "" if it does not.

    Keras 3.15 exports layers after a Resizing in training mode: BatchNormalization then uses the
    mean of the request's own pictures, and updates its moving average with it.
    """
    if not ASSIGNS & set(operations):
        return ""
    return (
        "changes variables in a call: answers may depend on earlier calls, and on what else is in "
        "the request. The usual cause is a Keras model with Resizing, CenterCrop or random layers, "
        "exported in training mode. Export it again, with `x = model.inputs[0]` (several inputs: "
        "`model.input`): keras.Model(x, model(x, training=False)).export(...)"
    )


def used_nodes(graph: Any, fetches: Iterable[str]) -> list[Any]:
    """The NodeDefs of a GraphDef that fetching tensors may run, with those of all functions they
    call.
    """
    return list(itertools.chain.from_iterable(used_bodies(graph, fetches)))


def used_bodies(graph: Any, fetches: Iterable[str]) -> list[list[Any]]:
    """The nodes of `used_nodes` in groups: the graph's own first, then those of each function."""
    used = find_needed(graph, fetches).values()
    functions = called_functions(used, graph.library)
    names = {function.signature.name for function in functions}  # a call's operation may be one
    bodies = used, *(function.node_def for function in functions)
    return [[node for node in body if node.op not in names] for body in bodies]


def called_functions(nodes: Iterable[Any], library: Any) -> list[Any]:
    """The FunctionDefs that nodes call, and those that TensorFlow may put in the place of one.

    An LSTM has two equivalent functions, one of them for cuDNN, which share an attribute's value.
    """
    functions = {function.signature.name: function for function in library.function}
    alike: dict[str, set[str]] = {}
    for name, function in functions.items():
        alike.setdefault(kin_of(function) or name, set()).add(name)
    seen, waiting = set[str](), list(nodes)
    while waiting:
        node = waiting.pop()
        for name in (functions.keys() & {node.op, *called_names(node.attr)}) - seen:
            new = alike[kin_of(functions[name]) or name] - seen
            seen |= new
            waiting += itertools.chain.from_iterable(functions[one].node_def for one in new)
    return [function for name, function in functions.items() if name in seen]


def kin_of(function: Any) -> str:
    """The name of what a function implements, shared with its alternatives; "" if it has none."""
    return function.attr["api_implements"].s.decode() if "api_implements" in function.attr else ""


def called_names(attributes: Mapping[str, Any]) -> set[str]:
    """The names of functions in a node's attributes: single, in lists, and in their attributes."""
    names = set[str]()
    for value in attributes.values():
        for function in (value.func, *value.list.func):
            names |= {function.name, *called_names(function.attr)}
    return names


def leaves_behind(node: Any) -> bool:
    """Whether an operation may keep something of a call: true unless it is known to be harmless."""
    from tensorflow.core.framework import types_pb2

    if node.op in HARMLESS:
        return False
    if node.op in RANDOM:
        return bool(node.attr["seed"].i or node.attr["seed2"].i)
    definition = definition_of(node.op)
    if definition is None or definition.is_stateful or HARMFUL.fullmatch(node.op):
        return True
    return any(
        given.is_ref or given.type == types_pb2.DT_RESOURCE for given in definition.input_arg
    )


def try_calls(model: OpenModel, config: ModelConfig) -> OpenModel:
    """Try the calls of a model that leave nothing behind; returns it with what that has told."""

    def attempt(name: str, call: SignatureCall) -> SignatureCall:
        return warm_up(call, model.signatures[name], f"{model.name}: signature {name}", config)

    return model.with_calls(attempt)


def warm_up(
    call: SignatureCall, signature: Signature, label: str, config: ModelConfig
) -> SignatureCall:
    """Call a signature with made-up input, unless that may leave something behind.

    TensorFlow plans a graph at its first call, and that time belongs to loading.
    """
    if reason := why_untried(signature, call, config):
        logger.info("%s is not warmed up: %s", label, reason)
        return call
    # made-up texts other than examples are no valid pictures: send 0 rows
    rows = 0 if has_strings(signature) and not signature.example else 1
    elementwise = call.operations <= ELEMENTWISE
    inputs = many_numbers(signature) if elementwise else sample_inputs(signature, rows)
    try:
        call.run(*inputs)
        known = elementwise or is_typical(signature)
        seconds = time_call(call.run, inputs) if known else float("inf")
        steady = elementwise or known and is_steady(signature, call, seconds)
    except (tensorflow().errors.OpError, UnicodeDecodeError) as error:
        reason = clean_message(str(error)).partition("\n")[0]
        logger.info("%s is not warmed up: made-up input does not suit it: %s", label, reason)
        return call
    return call._replace(tried=True, seconds=seconds, steady=steady)


def why_untried(signature: Signature, call: SignatureCall, config: ModelConfig) -> str:
    """Why a signature is not called with made-up input; empty where it may be."""
    if not config.warm_up:
        return '"warm_up" is false'
    elementwise = call.operations <= ELEMENTWISE
    for name, spec in signature.inputs.items():
        if spec.shape is None and not elementwise:  # a wrong rank can crash the process
            return f"the rank of input '{name}' is not known"
    if has_strings(signature) and not all(
        spec.shape and spec.shape[0] is None for spec in signature.inputs.values()
    ):
        return "made-up strings do not suit it"
    if not call.keeps:
        return ""
    return f"its graph may keep state between calls ({', '.join(call.keeps[:5])})"


# Operations that do the same to each number, in any shape: the count of numbers alone decides how
# long they take.
ELEMENTWISE = {
    *("Placeholder", "Const", "VarHandleOp", "ReadVariableOp", "Identity", "IdentityN", "NoOp"),
    *("PartitionedCall", "StatefulPartitionedCall", "Add", "AddV2", "Sub", "Mul", "RealDiv", "Neg"),
    *("Square", "Maximum", "Minimum", "Relu", "Relu6", "Sigmoid", "Tanh", "Cast"),
}
# Operations whose time and output size follow from the input's sizes, whatever its values are.
STEADY = ELEMENTWISE | {
    *("Abs", "ArgMax", "AvgPool", "BatchMatMulV2", "BiasAdd", "ConcatV2", "Conv2D"),
    *("DepthwiseConv2dNative", "Einsum", "Elu", "Equal", "Erf", "Exp", "ExpandDims", "Floor"),
    *("FusedBatchNormV3", "GatherV2", "Greater", "GreaterEqual", "LeakyRelu", "Less", "LessEqual"),
    *("Log", "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr", "MatMul", "Max", "MaxPool"),
    *("Mean", "Min", "NotEqual", "Pack", "Pow", "Prod", "ResourceGather", "Reshape", "Rsqrt"),
    *("Select", "SelectV2", "Selu", "Shape", "Sign", "Softmax", "Softplus", "Split", "Sqrt"),
    *("SquaredDifference", "Squeeze", "StopGradient", "StridedSlice", "Sum", "Transpose", "Unpack"),
    *("_FusedConv2D", "_FusedMatMul"),
}
MANY = 8192  # numbers in some 16 KB of JSON
SHORT_SECONDS = 0.0005  # the longest that one row of a steady call may take
STEADY_SECONDS = 0.005  # the longest that its many rows may take
STEADY_BYTES = 1 << 20  # the largest answer to many rows


def is_steady(signature: Signature, call: SignatureCall, seconds: float) -> bool:
    """Whether a request of up to MANY numbers is answered fast, tried with ever more rows.

    `seconds` is the time of one row.
    """
    if not call.operations <= STEADY or seconds > SHORT_SECONDS:
        return False
    shapes = [spec.shape or () for spec in signature.inputs.values()]
    numbers = max(math.prod(size or 1 for size in shape[1:]) for shape in shapes)
    most, rows = max(1, MANY // max(1, numbers)), 1
    while rows < most:
        rows = min(8 * rows, most)
        inputs = sample_inputs(signature, rows)
        answered = sum(np.asarray(value).nbytes for value in call.run(*inputs))
        if answered > STEADY_BYTES or time_call(call.run, inputs) > STEADY_SECONDS:
            return False
    return True


def many_numbers(signature: Signature) -> list[np.ndarray]:
    """Made-up inputs of about MANY numbers each, the most of a small request, if sizes are open."""
    samples = []
    for spec in signature.inputs.values():
        shape = [MANY] if spec.shape is None else [size or 1 for size in spec.shape]
        if spec.shape and None in spec.shape:
            last = max(at for at, size in enumerate(spec.shape) if size is None)
            shape[last] = max(1, MANY // math.prod(shape))
        samples.append(np.ones(shape, CARRIED.get(spec.dtype, np.dtype(np.float32))))
    return samples


def has_strings(signature: Signature) -> bool:
    return any(spec.dtype == "DT_STRING" for spec in signature.inputs.values())


def is_typical(signature: Signature) -> bool:
    """Whether one made-up row takes as long as a real one: a string or a picture of 1x1 does not.

    Nor is an input without rows typical: a scalar may say how much there is to do.
    """
    rows = all(spec.shape and None not in spec.shape[1:] for spec in signature.inputs.values())
    return rows and not has_strings(signature)


def time_call(call: Callable, inputs: Sequence[np.ndarray]) -> float:
    """Seconds of the fastest of up to 3 calls; a call that takes over 0.25 s is the last."""
    seconds = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        call(*inputs)
        seconds = min(seconds, time.perf_counter() - start)
        if seconds > 0.25:
            break
    return seconds


def sample_inputs(signature: Signature, rows: int) -> list[np.ndarray]:
    """Made-up inputs of `rows` rows: floats in 0..1, integers and booleans 0 or 1, strings that are
    empty, or the signature's example.

    Unknown sizes are 1, and an input of unknown rank has one dimension.
    """
    random = np.random.default_rng(0)
    samples = []
    for spec in signature.inputs.values():
        dtype = CARRIED.get(spec.dtype, np.dtype(np.float32))
        sizes = (None,) if spec.shape is None else spec.shape
        shape = [size or 1 for size in sizes]
        values = random.random(shape, np.float32)
        numbers = np.round(values) if dtype.kind in "iub" else values
        row = numbers.astype(dtype)
        if dtype.kind == "O":
            row.fill(signature.example)
        rowwise = sizes and sizes[0] is None
        samples.append(np.repeat(row, rows, axis=0) if rowwise else row)
    return samples


# --------------------------------------------------------------------------------------------------
# Threads of a model's own
# --------------------------------------------------------------------------------------------------

MOST_THREADS = 64  # of a model whose calls may take any time
LONG_SECONDS = 0.001  # from here on, a hand-over to another thread (30 us) is worth its time

# Operations whose time depends on the input's values, on other calls or on user code.
UNBOUNDED = {
    *(*PYTHON_CALLS, "While", "StatelessWhile", "NextIteration"),
    *("ReadFile", "WriteFile", "QueueDequeueV2"),
}


def may_take_long(call: SignatureCall) -> bool:
    """Whether a call needs the model's own threads, where a request leaves it at its deadline."""
    return call.seconds >= LONG_SECONDS or not UNBOUNDED.isdisjoint(call.operations)


def count_threads(call: SignatureCall, device: str) -> int:
    """The number of threads for a call: as many as cores, if all it does is compute on the CPU.

    More would take turns, each with less of the caches, and TensorFlow keeps what oneDNN has
    prepared per thread: thirty threads would hold it thirty times.
    """
    if call.kind == "batched":  # calls wait here for each other: as many as `threads` allows
        return 1000
    is_bounded = call.seconds < float("inf") and UNBOUNDED.isdisjoint(call.operations)
    return usable_cores() if is_bounded and device.startswith("CPU") else MOST_THREADS


class Workers:
    """A pool of up to `count` threads for the calls of one model, or for loads: threads start when
    needed, jobs run first come, first served.

    A request past its deadline gets an error, and its call runs on. The threads end with `close`,
    or when nothing refers to the pool. Not a ThreadPoolExecutor: at its end, a process would wait
    for all jobs that are queued in one.
    """

    def __init__(self, count: int, name: str):
        self.jobs: queue.SimpleQueue = queue.SimpleQueue()
        self.count, self.name = count, name
        self.started = self.open = 0  # threads started; jobs queued or running
        self._lock = threading.Lock()
        self._after: Callable[[], Any] | None = None  # given to `close`: called after the last job
        weakref.finalize(self, self.jobs.put, None).atexit = False

    def run(self, function: Callable, *arguments: Any, trace: Trace = UNTRACED) -> Any:
        """Run a function when a thread is free.

        Raises ServingError at the deadline of `trace`; if it still waits then, it never runs.
        """
        future = self.submit(function, *arguments, wanted=lambda: not trace.has_left())
        try:
            text = "The model took longer than the request's timeout"
            return result_within(future, trace.timeout(), text)
        except CancelledError:
            raise ServingError("The client has left", "CANCELLED") from None

    def submit(
        self, function: Callable, *arguments: Any, wanted: Callable[[], bool] = lambda: True
    ) -> Future:
        """Queue a function, to run when a thread is free, unless it is not `wanted` then.

        Raises ServingError after `close`, and if no thread at all can be started.
        """
        future: Future = Future()
        with self._lock:
            if self._after is not None:
                raise ServingError("The server is stopping", "UNAVAILABLE")
            if self.started < min(self.open + 1, self.count):
                try:
                    start_thread(f"{self.name}-{self.started}", do_jobs, self.jobs)
                    self.started += 1
                except ServingError:
                    if not self.started:
                        raise
            self.open += 1
            self.jobs.put(functools.partial(self.do, future, wanted, function, arguments))
        return future

    def do(
        self, future: Future, wanted: Callable[[], bool], function: Callable, arguments: tuple
    ) -> None:
        if not wanted():
            future.cancel()
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)
        del future, function, arguments  # an error's traceback holds this frame: break the cycle
        with self._lock:
            self.open -= 1
            after = None if self.open else self._after
        try:
            if after:
                after()
        except Exception as error:
            log_safely(logging.ERROR, "%s could not be ended", self.name, error=error)

    def close(self, after: Callable[[], Any] = lambda: None) -> None:
        """End the threads after the queued jobs; the last job, or this if idle, calls `after`."""
        with self._lock:
            self._after, idle = after, not self.open
        self.jobs.put(None)
        if idle:
            after()


def result_within(future: Future, seconds: float | None, text: str) -> Any:
    """A future's result; ServingError after `seconds`: if it still waits then, it never runs."""
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        if future.done() and not future.cancelled():  # just now, or the function raised the error
            return future.result()
        future.cancel()
        raise ServingError(text, "DEADLINE_EXCEEDED") from None


def do_jobs(jobs: queue.SimpleQueue) -> None:
    """Run jobs until None comes, which is put back for the other threads.

    While waiting, it refers neither to an answer nor to the `Workers`, so that both can be freed.
    """
    while (job := jobs.get()) is not None:
        job()
        del job
    jobs.put(None)


# ==================================================================================================
# Model manager
# In: a Config, first at the start and then at each reload. Out: a leased Servable for
# (model, version or label); the states of all versions.
# ==================================================================================================


@dataclass
class VersionState:
    """The state of one version: START, LOADING, AVAILABLE, UNLOADING or END, and its error."""

    state: str = "START"
    error: str = ""
    error_code: str = "UNKNOWN"
    servable: Servable | None = None
    load_key: tuple | None = None
    load_seconds: float = 0.0
    files: tuple = ()  # the fingerprint of the files that `servable` was loaded from
    failed_at: tuple | None = None  # load key and fingerprint of the last failed load


@dataclass(frozen=True)
class Available:
    """The versions and labels of one model that readers see: replaced as a whole, never changed."""

    versions: Mapping[int, Servable]
    labels: Mapping[str, int]


NOTHING_AVAILABLE = Available({}, {})


@dataclass
class Outcome:
    """What one pass of the loader did; each message of `errors` begins with its JSON path."""

    config_missing: bool = False
    config_read: bool = False
    changed: bool = False
    errors: list[ServingError] = field(default_factory=list)
    # Problems that an earlier pass reported as errors and that still hold.
    told: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Prepared:
    """What requests need of a config, built once per config.

    Replaced as a whole when the config changes.
    """

    keys: "KeyRing"
    deployments: "Mapping[str, ReadyDeployment]"  # by id
    routines: Mapping[str, type]  # by name, with the built-in ones
    of: Mapping[str, Any]  # by extension name: its `prepare` result


@dataclass(frozen=True)
class Visit:
    """One model in one pass of the loader."""

    model: ModelConfig
    path: str  # JSON path of the model's config
    polling: bool  # a poll, not a reload: changed files of a loaded version are not loaded
    again: bool  # broken versions are tried again although their files are the same
    pool: Workers
    outcome: Outcome = field(default_factory=Outcome)

    def fail(self, problem: str, like: ServingError | None = None) -> None:
        """Record a problem, which continues the model's JSON path, as `.base_path: ...` or `: ...`
        does. `like` lends its code and status.
        """
        text = self.path + problem
        self.outcome.errors.append(LoadError(text, *((like.code, like.status) if like else ())))


NO_VERSION = (
    "expected a version to serve, got none; those that are loaded keep serving "
    "(servable_versions_always_present)"
)


class Look(typing.NamedTuple):
    """What a model's config and folders tell without loading it."""

    model: ModelConfig
    path: str
    problems: list[str]  # worded as a reload reports them
    folders: Mapping[int, Path] = {}
    picked: dict[int, Path] | None = None  # the folders its policy picks; None: model refused


def place_models(config: Config) -> Iterator[tuple[ModelConfig, str, str]]:
    """Yield each model of a config, its JSON path, and what is wrong with its name; "" if nothing
    is.
    """
    places: dict[str, str] = {}
    for index, model in enumerate(config.models):
        path = f"$.model_config_list[{index}].config"
        taken = places.setdefault(model.name, path)
        yield model, path, "" if taken == path else f"'{model.name}' is already taken by {taken}"


def look_at(config: Config, list_versions: Callable[[str], dict[int, Path]]) -> Iterator[Look]:
    """Yield each model of a config as a pass of the loader would find it."""
    for model, path, misnamed in place_models(config):
        if misnamed:
            yield Look(model, path, [f"{path}.name: {misnamed}"])
            continue
        if model.problem:
            yield Look(model, path, [f"{path}.{model.problem}"])
            continue
        try:
            folders = list_versions(model.base_path)
        except LoadError as error:
            yield Look(model, path, [f"{path}.base_path: {error.message}"])
            continue
        versions = choose_versions(model.model_version_policy, folders)
        picked = {version: folders[version] for version in versions}
        problems = [
            f"{path}.version_labels.{label}: version {number} is not available"
            for label, number in model.version_labels.items()
            if number not in picked
        ]
        if not picked and config.server.servable_versions_always_present:
            problems = [f"{path}.base_path: {NO_VERSION}"]
        yield Look(model, path, problems, folders, picked)


def missing_models(config: Config) -> list[str]:
    """One problem for each deployment whose model is not in the config."""
    return [
        f"$.deployments[{index}].model: no model is called '{deployment.model}'"
        for index, deployment in enumerate(config.deployments)
        if deployment.model not in config.served_names
    ]


def check_deployments(config: Config, served: Mapping[str, list[int]]) -> list[str]:
    """Problems of deployments that name a missing model, version or label.

    `served` maps each model whose folders can be read to its versions.
    """
    models = {model.name: model for model in config.models}
    problems = missing_models(config)
    for index, deployment in enumerate(config.deployments):
        if deployment.model in served:
            problems += check_pin(
                deployment,
                f"$.deployments[{index}]",
                served[deployment.model],
                models[deployment.model].version_labels,
            )
    return problems


def check_pin(
    deployment: Deployment, path: str, versions: Sequence[int], labels: Mapping[str, int]
) -> list[str]:
    """Problems of the version or label that a deployment pins; `versions` are those served."""
    pin, label = deployment.version, deployment.version_label
    if pin and pin not in versions:  # 0 means the default version unless a version 0 exists
        return [
            f"{path}.version: version {pin} of {deployment.model} is not served; there "
            f"are: {list(versions)}"
        ]
    if label is not None and labels.get(label) not in versions:
        there = sorted(name for name, version in labels.items() if version in versions)
        return [
            f"{path}.version_label: {deployment.model} has no label '{label}'; there are: {there}"
        ]
    return []


def changed_fields(now: Any, wanted: Any) -> list[str]:
    """The names of the options in which two dataclass values of one type differ."""
    names = [field.name for field in dataclasses.fields(wanted)]
    return [name for name in names if getattr(now, name) != getattr(wanted, name)]


def tell_changed(now: Any, wanted: Any) -> list[dict[str, Any]]:
    """The options in which two values differ, each with its old and new value.

    `restart` is true when the change takes effect only after a restart.
    """
    docs = {field.name: field.metadata["doc"] for field in dataclasses.fields(wanted)}
    return [
        {
            "option": name,
            "from": as_json(getattr(now, name)),
            "to": as_json(getattr(wanted, name)),
            "restart": docs[name].endswith("(start)"),
        }
        for name in changed_fields(now, wanted)
    ]


def as_json(value: Any) -> Any:
    """A config's value as JSON, without the program's own folders and the user's home folder."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: as_json(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(one) for one in value]
    return hide_paths(value) if isinstance(value, str) else value


def tell_restart(now: ServerConfig, wanted: ServerConfig) -> None:
    """Log which changed server options take effect only after a restart."""
    for one in tell_changed(now, wanted):
        if one["restart"]:
            text = "$.server.%s: changed; it takes effect at a restart"
            log_safely(logging.WARNING, text, one["option"])


def label_files(config: Config) -> list[tuple[int, int] | None]:
    """Size and modification time (ns) of each label map's file, to notice changes; None without."""
    found: list[tuple[int, int] | None] = []
    for deployment in config.deployments:
        status = None
        with contextlib.suppress(OSError, ValueError, TypeError):  # missing, or not a path at all
            status = os.stat(deployment.label_map)  # type: ignore[arg-type]
        found.append(status and (status.st_size, status.st_mtime_ns))
    return found


def state_text(error: BaseException) -> str:
    """Why something cannot be served, as a version's state reports it: without private folders.

    A ServingError's text keeps the model's own paths, which are part of the reason.
    """
    return hide_paths(error.message if isinstance(error, ServingError) else explain(error))


Steps = Iterator[Sequence[Future]]  # work in steps: yields the futures its next step waits for


CONFIG_MISSING = "Config file not found or cannot open."


class ModelManager:
    """Brings what is loaded in line with what the config wants.

    One loader thread does all bookkeeping, one pass at a time; `reload` waits for its pass. The
    loads, which take long, run in a thread pool of the pass, so that no model waits for another.
    Readers read `available` once and take a lease, so they never wait for a load: the loader builds
    a new mapping aside and assigns it. `load`, which several threads call at once, and
    `list_versions` are arguments, so that tests need neither TensorFlow nor sleep.
    """

    # The process in which a manager was started last: TensorFlow does not survive a fork of it.
    _begun_in: int | None = None

    def __init__(
        self,
        path: Path | None,
        text: bytes,
        config: Config,
        load: Callable[[Path, ModelConfig], Servable],
        prepare: Callable[[Config], Prepared],
        refresh_others: Callable[[Outcome, bool], None],
        take_effect: Callable[[], None],
        list_versions: Callable[[str], dict[int, Path]] = list_versions,
        poll_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.config, self._take_effect = config, take_effect
        self._prepare, self._refresh_others = prepare, refresh_others
        self._label_files = label_files(config)
        self.prepared = prepare(config)
        self._poll_seconds = poll_seconds  # from the command line; overrides the config's value
        self._given, self.path = path, path and path.absolute()  # the config file, as it is printed
        self._text = self.text = text  # its bytes when last read, and those in force
        self._load, self.list_versions = load, list_versions
        self._config_failed = False
        self._config_error = self._missing = ""  # why the file's present text is not in force
        self._problems: tuple[str, ...] = ()  # of the last pass
        self._said: set[str] = set()  # texts that the log need not repeat
        self._clock, self._silent_until = clock, 0.0  # about a lack of file descriptors
        self._states: dict[str, dict[int, VersionState]] = {}
        self._refused: dict[str, str] = {}  # by model: what in its config keeps it from loading
        self._absent: dict[str, str] = {}  # by model: why there is no version to serve
        self._tried: dict[str, threading.Event] = {}  # by model: set when its first load is over
        self.available: dict[str, Available] = {}  # what readers see
        self._draining: list[tuple[VersionState | None, Servable]] = []
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._started = threading.Lock()
        self._ending, self._ended = threading.Event(), False  # `stop` was called; its job is done
        self._process: int | None = None  # in which this one was started
        self._first_pass: Future = Future()
        self.first_pass_done = threading.Event()
        self._expect_models()

    @property
    def name(self) -> str:
        """What is served, for the start-up line: the config file, or the models by name."""
        if self._given:
            return str(self._given)
        return ", ".join(model.name for model in self.config.models) or "no models"

    # --- readers --------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(
        self,
        model: str,
        version: int | None = None,
        label: str | None = None,
        trace: Trace = UNTRACED,
    ) -> Iterator[tuple[int, Servable]]:
        """Yield a version and its servable: the version named, the labelled one or the highest.

        The servable is not freed before the `with` block ends. Raises NotFound or BadRequest.
        """
        number, servable = self.find(model, version, label, trace)
        while not servable.acquire():
            # retired between `find` and `acquire`: `available` has a newer one by now
            number, servable = self.find(model, version, label, trace)
        try:
            if not trace.model:
                trace.model, trace.version = model, str(number)
            yield number, servable
        finally:
            servable.release()

    def find(
        self, model: str, version: int | None, label: str | None, trace: Trace = UNTRACED
    ) -> tuple[int, Servable]:
        """The version and servable that `lease` would yield, without a lease."""
        if model not in self.available and model in self._tried:
            self.await_load(model, trace)
        versions = self.available.get(model, NOTHING_AVAILABLE).versions
        if not versions and self._ending.is_set():
            raise ServingError("The server is stopping", "UNAVAILABLE")
        if self.config.is_pipeline(model):  # pipelines have neither versions nor labels
            version, label = 1, None
            if 1 not in versions:
                raise NotFound("Pipeline is not loaded yet")
        if label is not None:
            version = self.label_version(model, label)
        if version is None or version == 0 and 0 not in versions:
            # OVMS's client sends 0 for "the default"
            if not versions:
                raise NotFound(f"Servable not found for request: Latest({model})")
            version = max(versions)
        if version not in versions:
            raise NotFound(f"Servable not found for request: Specific({model}, {version})")
        return version, versions[version]

    def await_load(self, model: str, trace: Trace) -> None:
        """Wait until a model's first load is over; ServingError UNAVAILABLE when that takes too
        long.

        A request waits for up to `load_wait_seconds`. A call from Python, whose trace has no
        deadline, keeps no client waiting, so it waits as long as the load takes.
        """
        tried, trace.waited = self._tried[model], True
        if trace.deadline < math.inf:
            patience = min(self.config.server.load_wait_seconds, trace.remaining())
            if self._ending.is_set():
                raise ServingError("The server is stopping", "UNAVAILABLE")
            if not tried.wait(patience):
                raise ServingError(f"Model {model} is still loading", "UNAVAILABLE")
        while not tried.is_set():
            self.require_loader()
            tried.wait(1)

    def label_version(self, model: str, label: str) -> int:
        """The version that a label names; raises BadRequest for an unknown one."""
        labels = self.available.get(model, NOTHING_AVAILABLE).labels
        if label not in labels:
            raise BadRequest(f"Unrecognized servable version label: {label}")
        return labels[label]

    def states(self) -> dict[str, dict[int, VersionState]]:
        """The state of every version of every model ever configured, by model and version."""
        # why a model without known versions is refused is told as its version 0
        refused = {
            name: {0: VersionState("LOADING", why)} for name, why in self._refused.copy().items()
        }
        return {
            model: dict(versions) or refused.get(model, {})
            for model, versions in sorted(self._states.copy().items())
        }

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called, which is for good."""
        return self._ending.is_set()

    def unready(self) -> list[str]:
        """Configured models and pipelines that are not available, and deployments that cannot
        answer, each with its reason where one is known; after `stop`, only that.
        """
        if self.stopped:
            return ["the server is stopping"]
        names = self.config.served_names
        known = self._absent | self._refused
        reasons = {name: f" ({reason})" for name, reason in known.items()}
        missing = [name for name in dict.fromkeys(names) if name not in self.available]
        return (
            [name + reasons.get(name, "") for name in missing]
            + [
                f"deployment {deployment.id} (no model is called '{deployment.model}')"
                for deployment in self.config.deployments
                if deployment.model not in names
            ]
            + [
                f"deployment {name} ({problem})"
                for name, problem in self.deployment_problems().items()
            ]
        )

    @property
    def config_problem(self) -> str:
        """Why the config file's present text is not in force; "" when it is."""
        return self._missing or self._config_error

    @property
    def problems(self) -> list[str]:
        """What was wrong with the config or could not be loaded in the loader's last pass."""
        return list(dict.fromkeys([*filter(None, [self.config_problem]), *self._problems]))

    def deployment_problems(self) -> dict[str, str]:
        """By deployment id, why it cannot answer: its own config, or that its model does not fit.

        Waits for nothing: a deployment whose model is not loaded yet counts as without a problem.
        """
        problems = {}
        for name, ready in self.prepared.deployments.items():
            if problem := ready.problem or self._problem_of(ready):
                problems[name] = problem
        return problems

    def _problem_of(self, ready: Any) -> str:
        """Why the loaded versions of a deployment's model cannot answer for it; "" if they can."""
        deployment = ready.config
        available = self.available.get(deployment.model)
        if available is None:
            return ""
        versions = sorted(available.versions)
        if problems := check_pin(deployment, ready.path, versions, available.labels):
            return problems[0]
        where = deployment.model, deployment.version, deployment.version_label
        try:
            servable = self.find(*where)[1]
            ready.of(servable).model_of(servable)
        except ServingError:  # withdrawn meanwhile: the next call finds no versions
            return ""
        except ValueError as error:
            return ready.tell(error)
        return ""

    # --- the loader thread ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the loader thread and its first pass, once."""
        if self._thread is not None and self._thread.is_alive():  # a forked process has no threads
            return
        forked = PREPARED_DEVICES.is_set() and ModelManager._begun_in not in (None, os.getpid())
        if forked or self._process not in (None, os.getpid()):
            raise ServingError(
                "Models were loaded before this process was forked, which TensorFlow does not "
                "survive: create the app in each worker (gunicorn: without --preload; "
                'multiprocessing: get_context("spawn"))',
                "UNAVAILABLE",
            )
        with self._started:
            if self._thread is not None or self._ending.is_set():
                return
            self._thread = start_thread("serving-loader", work_for, weakref.ref(self), self._jobs)
            ModelManager._begun_in = self._process = os.getpid()
            self._jobs.put((ModelManager.refresh, self._first_pass))
            weakref.finalize(self, end_loader, self._jobs, self._thread, self._ending)

    def reload(self, timeout: float = math.inf) -> Outcome:
        """Have the loader do a pass now, which also tries broken versions again.

        Returns when the pass is over.
        """
        begins = self._thread is None
        self.start()
        if begins:
            return self.await_job(self._first_pass, timeout)
        return self.run_in_loader(self.refresh, timeout)

    def stop(self, drain: bool = True) -> None:
        """Stop loading and free every model that no request uses.

        With `drain`, running requests finish first, within `drain_seconds`.
        """
        self._ending.set()
        if self._thread is None:
            self.first_pass_done.set()  # there will be no first pass to wait for
        elif self._thread.is_alive():
            self.run_in_loader(functools.partial(self.unload_all, drain))
            self._thread.join()

    def run_in_loader(self, job: Callable[[], Any], timeout: float = math.inf) -> Any:
        """Have the loader thread do a job; returns what the job returns, raises what it raises.

        ServingError DEADLINE_EXCEEDED after `timeout` seconds; the job still runs, later.
        """
        future: Future = Future()
        self._jobs.put((lambda _: job(), future))
        return self.await_job(future, timeout)

    def await_job(self, future: Future, timeout: float = math.inf) -> Any:
        """Wait for a job of the loader thread; returns what the job returns, raises its error."""
        deadline = time.monotonic() + timeout
        while not wait([future], timeout=max(0.0, min(1.0, deadline - time.monotonic()))).done:
            self.require_loader()
            if time.monotonic() >= deadline:
                raise ServingError(
                    "Loading takes longer than the request's timeout", "DEADLINE_EXCEEDED"
                )
        return future.result()

    def require_loader(self) -> None:
        """Raise ServingError UNAVAILABLE when the loader's thread has ended, or never began."""
        if not (self._thread and self._thread.is_alive()):
            raise ServingError("The server is stopping", "UNAVAILABLE")

    def poll_seconds(self) -> float:
        """Seconds between two polls of the config and the version folders; 0 for no polls."""
        if self._poll_seconds is not None:
            return self._poll_seconds
        return self.config.server.file_system_poll_wait_seconds

    def patience(self) -> float | None:
        """Seconds that the loader waits for a job before it calls `look`; None for ever."""
        return self.poll_seconds() or (1 if self._draining else None)

    def look(self) -> None:
        """Poll the files, or only free retired servables: what the loader does without a job."""
        if self.poll_seconds():
            self.refresh(polling=True)
        else:
            self._drain()

    def do(self, job: Callable[["ModelManager"], Any], future: Future) -> bool:
        """Do a job in the loader thread; False when it was the last job."""
        try:
            future.set_result(job(self))
        except BaseException as error:  # the loader must live: the next pass is a fresh start
            future.set_exception(error)
            self._log_failure("The loader failed", error)
        return not self._ended

    def refresh(self, polling: bool = False) -> Outcome:
        """One pass: read the config if it changed, then load and retire versions.

        A reload tries a broken config and broken versions again although their files are the same;
        a pass with `polling` tries broken versions again only when the config has changed.
        """
        outcome = Outcome()
        self._read_config(outcome, polling)
        if not outcome.errors or outcome.config_missing and polling:
            self._refresh_models(outcome, polling)
        self._drain(patient=not polling)
        if outcome.config_read or not self.first_pass_done.is_set():
            self._config_failed = bool(outcome.errors)
        if outcome.changed or outcome.config_read or not self.first_pass_done.is_set():
            settle_garbage()
        for error in outcome.errors if not self._ending.is_set() else ():
            # while the server stops, a load that was cut short says nothing about the model
            self._say_once(logging.ERROR, error.message)
        self._said &= {error.message for error in outcome.errors} | {
            said for said in self._said if not said.startswith("$")
        }
        self._problems = (*(error.message for error in outcome.errors), *outcome.told)
        self.first_pass_done.set()
        return outcome

    def _log_failure(self, place: str, error: BaseException) -> None:
        """Log a lack of files at most once a minute, any other error with its traceback."""
        if not lacks_files(error):
            log_safely(logging.ERROR, "%s", place, error=error)
        elif self._clock() >= self._silent_until:
            self._silent_until = self._clock() + 60
            text = "%s: the process has too many open files; it will try again"
            log_safely(logging.ERROR, text, place)

    def _say_once(self, level: int, text: str) -> None:
        """Log a text once: an error again after a pass without it, a note never again."""
        if text not in self._said:
            log_safely(level, "%s", text)
            self._said.add(text)

    def _read_config(self, outcome: Outcome, polling: bool) -> None:
        """Put the config file in force if its bytes changed; a wrong config changes nothing."""
        text = self.read_text(outcome, polling)
        self._missing = CONFIG_MISSING if outcome.config_missing else ""
        if self.path is None or text is None:
            return
        # `refresh` clears the flag at the end: after a pass that fails midway, a reload reads again
        self._text, self._config_failed = text, True
        try:
            config = load_config(self.path, text, type(self.config))
            self._label_files = label_files(config)
            prepared = self._prepare(config)
            self._keep_described(config, prepared)
            self.prepared = prepared
            tell_restart(self.config.server, config.server)
            self.config, self.text = config, text
            self._expect_models()
            self._config_error = ""
            self._take_effect()
        except ConfigError as error:
            self._config_error = error.message
            outcome.errors += error.all()

    def _keep_described(self, config: Config, prepared: Prepared) -> None:
        """Keep, for servables that a new config replaces, the deployments as they are now."""
        keys = {model.name: model.load_key for model in config.models}
        for name, ready in prepared.deployments.items():
            before = self.prepared.deployments.get(name)
            if before is None or before.config.model != ready.config.model:
                continue
            for state in self._states.get(ready.config.model, {}).values():
                if state.servable and state.load_key != keys.get(ready.config.model):
                    ready.older[state.servable] = before.of(state.servable)

    def read_text(self, outcome: Outcome, polling: bool = False) -> bytes | None:
        """The bytes of the config file if a pass is to read it, else None: when they have changed,
        and in a reload also after a failure or when files of label maps have changed.
        """
        if self.path is None:
            return None
        try:
            text = read_file(self.path)
        except OSError:
            outcome.config_missing = True
            outcome.errors.append(LoadError(CONFIG_MISSING))
            return None
        again = not polling and (self._config_failed or self.has_other_labels())
        outcome.config_read = again or text != self._text
        return text if outcome.config_read else None

    def has_other_labels(self) -> bool:
        """Whether any label map's file has changed since it was read."""
        return self._label_files != label_files(self.config)

    def plan_model(
        self, name: str, model: ModelConfig | None, folders: Mapping[int, Path]
    ) -> dict[str, list[int]]:
        """The versions that a pass would load, reload and unload if `model` were a model's config
        and `folders` its versions; `model` is None for a model that the config drops.
        """
        loaded = {v: state for v, state in self.states().get(name, {}).items() if state.servable}
        kept = [version for version in folders if version in loaded]

        def is_stale(version: int) -> bool:
            state = loaded[version]
            files = contents(fingerprint(folders[version]))
            same = model is not None and state.load_key == model.load_key
            return not same or files != contents(state.files)

        return {
            "load": sorted(folders.keys() - loaded.keys()),
            "reload": sorted(filter(is_stale, kept)),
            "unload": sorted(loaded.keys() - folders.keys()),
        }

    def _expect_models(self) -> None:
        """Register the config's models, so that requests for them wait for their first load."""
        for name in self.config.served_names:
            self._tried.setdefault(name, threading.Event())
            self._states.setdefault(name, {})

    def show_pipeline(
        self, name: str, servable: Servable | None, error: str, outcome: Outcome
    ) -> None:
        """Publish a pipeline as version 1 of its name, or record why it is not available."""
        states = self._states[name]
        if 1 in states and states[1].load_key:  # version 1 of a model that had this name
            if states[1].servable:
                self._draining.append((None, states[1].servable))
            del states[1]
        new = Available({1: servable}, {}) if servable else NOTHING_AVAILABLE
        self._publish(name, new, {1}, outcome)
        state = states.setdefault(1, VersionState())
        state.servable, state.error = servable, hide_paths(error)
        state.state = "AVAILABLE" if servable else "LOADING"
        # OpenVINO Model Server's code for a pipeline that is not available
        state.error_code = "FAILED_PRECONDITION"
        self._tried[name].set()

    def _refresh_models(self, outcome: Outcome, polling: bool) -> None:
        """Load and retire versions of all models, several at once; none waits for a hanging one."""
        for name in without_effect(self.config):
            self._say_once(logging.WARNING, f"note: $.{name}: {NO_EFFECT}")
        threads = Workers(self.config.server.num_load_threads, "serving-load")
        with contextlib.closing(threads) as pool:
            again = not polling or outcome.config_read  # a new config may name other modules
            visits, steps = list[Visit](), dict[str, Steps]()
            for model, path, misnamed in place_models(self.config):
                visit = Visit(model, path, polling, again, pool)
                visits.append(visit)
                if misnamed:
                    visit.fail(f".name: {misnamed}")
                else:
                    steps[model.name] = self._refresh_model_safely(visit)
            self._take_turns(steps)
        outcome.changed |= any(visit.outcome.changed for visit in visits)
        for visit in visits:  # errors in the config's order, not in that of the loads
            outcome.errors += visit.outcome.errors
        seen = set(self.config.served_names)
        outcome.errors += map(LoadError, missing_models(self.config))
        for name in self._states.keys() - seen:
            self._refused.pop(name, None)
            self._absent.pop(name, None)
            self._publish(name, NOTHING_AVAILABLE, set(), outcome)
        if not self._ending.is_set():
            self._refresh_others(outcome, polling)
            outcome.errors += map(LoadError, self.deployment_problems().values())

    def _take_turns(self, steps: Mapping[str, Steps]) -> None:
        """Run each model's next step as soon as the loads it waits for are over."""
        loads: dict[str, Sequence[Future]] = {name: () for name in steps}
        while loads:
            running = {load for waited in loads.values() for load in waited if not load.done()}
            ready = [name for name, waited in loads.items() if running.isdisjoint(waited)]
            for name in ready:
                next_loads = next(steps[name], None)
                if next_loads is not None:
                    loads[name] = next_loads
                    continue
                del loads[name]
                self._tried[name].set()
            if not ready:
                wait(running, return_when=FIRST_COMPLETED)

    def _refresh_model_safely(self, visit: Visit) -> Steps:
        """Like `_refresh_model`, but an unexpected error ends this model's steps alone."""
        try:
            yield from self._refresh_model(visit)
        except Exception as error:
            self._log_failure(visit.path, error)
            visit.fail(f": {state_text(error)}")

    def _refresh_model(self, visit: Visit) -> Steps:
        """Load the versions that the policy picks, skipping broken ones; retire the others."""
        model, states = visit.model, self._states[visit.model.name]
        folders = None if self._ending.is_set() else self._find_folders(visit)
        if folders is None:
            return
        broken: set[int] = set()
        while True:
            picked = choose_versions(model.model_version_policy, folders.keys() - broken)
            yield from self._load_versions(visit, {version: folders[version] for version in picked})
            failed = {version for version in picked if states[version].servable is None}
            if not failed:
                break
            broken |= failed
        serving = {
            version: servable for version in picked if (servable := states[version].servable)
        }
        if broken and not serving and model.name in self.available:
            return  # all new versions are broken: the old ones keep serving
        labels = {
            label: number for label, number in model.version_labels.items() if number in serving
        }
        for label, number in model.version_labels.items():
            if label not in labels:
                visit.fail(f".version_labels.{label}: version {number} is not available")
        self._publish(model.name, Available(serving, labels), broken, visit.outcome)

    def _load_versions(self, visit: Visit, folders: Mapping[int, Path]) -> Steps:
        """Load those of `folders` that are new or changed, all at once, and report what failed.

        Only the loads run in the pass's thread pool; their results are recorded here, in the
        loader thread.
        """
        model, states = visit.model, self._states[visit.model.name]
        to_load = {}
        for version, folder in folders.items():
            files = self._files_to_load(visit, version, folder)
            if files is not None:
                to_load[version] = files
        if to_load and self.config.server.aspired_version_policy == "resource_preserving":
            yield [
                visit.pool.submit(self._unload, self._take_away(visit, set(folders) - set(to_load)))
            ]
        loads = {version: self._begin_load(visit, version, folders[version]) for version in to_load}
        yield list(loads.values())
        for version, load in loads.items():
            self._end_load(visit, version, to_load[version], load)
        for version in folders:
            if states[version].failed_at is not None:
                reason = states[version].error
                visit.fail(f": version {version} of {model.name} cannot be loaded: {reason}")

    def _find_folders(self, visit: Visit) -> dict[int, Path] | None:
        """The folders of a model's versions; None when the loaded versions are to stay as is."""
        model = visit.model
        for name in without_effect(model):
            text = f"note: {model.name}: '{name}' has no effect on a SavedModel"
            self._say_once(logging.WARNING, text)
        if model.load == "eager" and (model.pinned or model.idle_seconds is not None):
            text = "'idle_seconds' and 'pinned' have no effect without \"load\": \"on_demand\""
            self._say_once(logging.WARNING, f"note: {model.name}: {text}")
        self._refused.pop(model.name, None)
        absent = self._absent.pop(model.name, None)
        if model.problem:
            self._refuse(visit)
            return None
        try:
            folders = self.list_versions(model.base_path)
        except LoadError as error:
            self._absent[model.name] = error.message
            visit.fail(f".base_path: {error.message}", error)
            return None
        folders = self._without_copies(visit, folders)
        if folders.get(1) == Path(model.base_path):
            kind = "SavedModel" if Path(model.base_path).is_dir() else "model's file"
            text = f"note: {model.name}: base_path is a {kind} itself, served as version 1"
            self._say_once(logging.INFO, text)
        if choose_versions(model.model_version_policy, folders):
            self._said.discard(f"{model.name}: {absent} in {model.base_path}")
            return folders
        hint = "" if folders else explain_no_versions(model.base_path)
        reason = f"model_version_policy picks none of the version folders {sorted(folders)}{hint}"
        self._absent[model.name] = f"no version to serve: {reason}"
        text = f"{model.name}: no version to serve: {reason} in {model.base_path}"
        self._say_once(logging.WARNING, text)
        if not self.config.server.servable_versions_always_present:
            return folders
        visit.fail(f".base_path: {NO_VERSION}")
        return None

    def _without_copies(self, visit: Visit, folders: dict[int, Path]) -> dict[int, Path]:
        """Leave out the new versions that are perhaps still being copied. A reload leaves out none:
        whoever asks for it knows.
        """
        if visit.again:
            return folders
        known = self._states[visit.model.name]
        fresh = {version for version in folders.keys() - known if is_fresh(folders[version])}
        for version in fresh:
            text = (
                f"note: {visit.model.name} version {version} is being written: it loads after that"
            )
            self._say_once(logging.INFO, text)
        return {version: path for version, path in folders.items() if version not in fresh}

    def _refuse(self, visit: Visit) -> None:
        """Report, for the model and each of its versions, why its config cannot be served."""
        model, problem = visit.model, visit.model.problem
        visit.fail(f".{problem}")
        self._refused[model.name] = problem
        folders: dict[int, Path] = {}
        if not problem.startswith("base_path"):
            with contextlib.suppress(LoadError):
                folders = self.list_versions(model.base_path)
        for version in choose_versions(model.model_version_policy, folders):
            state = self._states[model.name].setdefault(version, VersionState())
            if state.servable is None:
                state.state, state.error = "LOADING", problem

    def _files_to_load(self, visit: Visit, version: int, folder: Path) -> tuple | None:
        """The fingerprint of a version that is to be loaded.

        None when the version is loaded already, or would fail as before.
        """
        model = visit.model
        state = self._states[model.name].setdefault(version, VersionState())
        files = fingerprint(folder)
        note = (
            f"note: the files of {model.name} version {version} changed; "
            "POST /v1/config/reload loads them"
        )
        same = contents(files) == contents(state.files)
        if state.servable and state.load_key == model.load_key and (visit.polling or same):
            if not same:  # perhaps half copied: only the operator knows when the copy is done
                self._say_once(logging.WARNING, note)
            state.error, state.failed_at = "", None
            return None
        self._said.discard(note)
        return files if visit.again or state.failed_at != (model.load_key, files) else None

    def _begin_load(self, visit: Visit, version: int, folder: Path) -> Future:
        state = self._states[visit.model.name][version]
        state.state = state.state if state.servable else "LOADING"

        def load() -> tuple[Servable, float]:
            if self._ending.is_set():
                raise LoadError("The server is stopping")
            start = time.perf_counter()
            servable = self._load(folder, visit.model)
            return servable, time.perf_counter() - max([start, *IMPORTED])

        return visit.pool.submit(load)

    def _end_load(self, visit: Visit, version: int, files: tuple, load: Future) -> None:
        """Record the result of a load; after a failed one, the version's older servable stays."""
        model, state = visit.model, self._states[visit.model.name][version]
        visit.outcome.changed = True
        error = load.exception()
        if error is not None:  # of any kind: a broken model must not end the loader
            log_safely(logging.DEBUG, "%s version %d", model.name, version, error=error)
            state.error = state_text(error)
            # when the process is out of file descriptors, the next poll tries the same files again
            state.failed_at = (model.load_key, None if lacks_files(error) else files)
            return
        if state.servable:
            self._draining.append((None, state.servable))
        state.servable, state.load_seconds = load.result()
        state.load_key, state.files, state.failed_at = model.load_key, files, None
        state.state, state.error = "AVAILABLE", ""
        described, device = state.servable.describe_calls(), state.servable.device or "demand"
        calls = "; ".join(f"{name}: {call}" for name, call in described.items()) or "-"
        text = "%s version %d is available on %s (%s)"
        log_safely(logging.INFO, text, model.name, version, device, calls)

    def _take_away(self, visit: Visit, staying: set[int]) -> list[Servable]:
        """Withdraw from readers all versions but `staying`, and return them."""
        name, states = visit.model.name, self._states[visit.model.name]
        loaded = {version: state.servable for version, state in states.items() if state.servable}
        serving = {version: servable for version, servable in loaded.items() if version in staying}
        labels = visit.model.version_labels
        labels = {label: version for label, version in labels.items() if version in serving}
        others = states.keys() - loaded.keys()
        broken = {version for version in others if states[version].failed_at is not None}
        if serving != loaded:
            self._publish(name, Available(serving, labels), broken, visit.outcome)
        return [servable for version, servable in loaded.items() if version not in serving]

    def _unload(self, servables: Sequence[Servable]) -> None:
        """Free withdrawn servables when their requests are done, within `drain_seconds`."""
        deadline = time.monotonic() + self.config.server.drain_seconds
        for servable in servables:
            servable.retire(max(0, deadline - time.monotonic()))

    def _publish(self, name: str, new: Available, broken: set[int], outcome: Outcome) -> None:
        """Show the new versions to readers in one assignment, then retire all others.

        Versions in `broken` keep their state and their error.
        """
        if self.available.get(name, NOTHING_AVAILABLE) != new:
            others = {key: value for key, value in self.available.items() if key != name}
            self.available = others | {name: new} if new.versions else others
            outcome.changed = True
        for version, state in self._states[name].items():
            if version in new.versions or version in broken:
                continue
            if state.servable:
                state.state = "UNLOADING"
                self._draining.append((state, state.servable))
                state.servable = None
                log_safely(logging.INFO, "%s version %d is retired", name, version)
            elif state.state != "UNLOADING":
                state.state = "END"
            state.error, state.failed_at = "", None

    def _drain(self, patient: bool = True) -> None:
        """Wait for the requests on retired servables, then free them.

        A servable still in use after `drain_seconds`, or at once without `patient`, stays for the
        next pass.
        """
        waiting, self._draining = self._draining, []
        deadline = time.monotonic() + (self.config.server.drain_seconds if patient else 0)
        for state, servable in waiting:
            if not servable.retire(max(0, deadline - time.monotonic())):
                self._draining.append((state, servable))
            elif state and state.state == "UNLOADING":
                state.state = "END"

    def unload_all(self, drain: bool = False) -> None:
        """The loader's last job: withdraw every model, and free those that are idle."""
        self._ended = True
        for name in list(self._states):
            self._publish(name, NOTHING_AVAILABLE, set(), Outcome())
        self._drain(drain)


def work_for(found: "weakref.ref[ModelManager]", jobs: queue.SimpleQueue) -> None:
    """Do a manager's jobs one after the other until the last: the body of the loader thread.

    While it waits it holds only a weak reference, so that a manager nobody else uses is freed and
    the thread ends.
    """
    while (manager := found()) is not None:
        seconds = manager.patience()
        del manager
        try:
            job, future = jobs.get(timeout=seconds)
        except queue.Empty:
            job, future = ModelManager.look, Future()
        manager = found()
        if manager is None or not manager.do(job, future):
            return
        del manager, job, future


def end_loader(jobs: queue.SimpleQueue, thread: threading.Thread, ending: threading.Event) -> None:
    """End the loader thread of a manager that is freed, or whose process ends.

    At the end of the process, wait for the thread: TensorFlow aborts a process that exits during
    a load.
    """
    ending.set()
    jobs.put((ModelManager.unload_all, Future()))
    if not threading.main_thread().is_alive() and thread is not threading.current_thread():
        thread.join()


# ==================================================================================================
# Inference
# In: a servable and a request's JSON value. Out: the answer as a dict of arrays and lists.
# Error texts and the order of the checks are TensorFlow Serving's.
# ==================================================================================================


def signature_name(body: Any) -> str:
    """The signature a request asks for; an empty name means `serving_default`.

    Raises BadRequest when the body is not a JSON object, or the name not a string.
    """
    if not isinstance(body, dict):
        raise BadRequest(f"{show(body)} Is not object")
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise BadRequest(
            f"{show(body)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or "serving_default"


def predict(
    servable: Servable,
    name: str,
    body: dict[str, Any],
    wanted: Sequence[str] = (),
    trace: Trace = UNTRACED,
) -> dict[str, Any]:
    """Answer a predict request: `predictions` for `instances` (rows), `outputs` for `inputs`
    (columns). `wanted` names the outputs to answer; empty means all of them.
    """
    signature = servable.signatures.get(name)
    if signature is None:
        raise BadRequest(f'Serving signature name: "{name}" not found in signature def')
    if not signature.inputs:
        raise BadRequest(
            "Failed to get input map for signature: "
            f"{name if body.get('signature_name') else 'DEFAULT'}"
        )
    if "instances" in body and "inputs" in body:
        raise BadRequest(
            f"{show(body)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist "
        )
    if wanted:
        signature = select_outputs(signature, wanted)
    if "inputs" in body:
        columns = decode_columns(signature, body["inputs"])
        require_writable(signature)
        return {"outputs": encode_columns(signature, servable.run(name, columns, trace))}
    if "instances" in body:
        rows = decode_rows(signature, body["instances"])
        require_writable(signature)
        return {"predictions": encode_rows(signature, servable.run(name, rows, trace))}
    raise BadRequest("Missing 'inputs' or 'instances' key")


def require_writable(signature: Signature) -> None:
    """Raise BadRequest for an output dtype that JSON cannot hold, before the model runs.

    The text is TensorFlow Serving's.
    """
    for spec in signature.outputs.values():
        known = spec.dtype != "DT_INVALID"  # a pipeline's function does not declare its dtypes
        if known and spec.dtype not in NUMPY_DTYPES:
            raise BadRequest(f"Failed to write JSON value for tensor type: {spec.type_name}")


def refuse_complex(array: np.ndarray) -> None:
    """Raise BadRequest for a complex array, from a function that declares no output dtypes."""
    if array.dtype.kind == "c":
        raise BadRequest(f"Failed to write JSON value for tensor type: {array.dtype.name}")


def select_outputs(signature: Signature, wanted: Sequence[str]) -> Signature:
    """The signature with only the `wanted` outputs, in the signature's order.

    Raises BadRequest for an output that the signature does not have.
    """
    if unknown := [name for name in wanted if name not in signature.outputs]:
        raise BadRequest(
            f"outputs: there is no output '{unknown[0][:60]}'; expected some of: "
            f"{', '.join(signature.outputs)}"
        )
    return Signature(
        signature.inputs, {name: spec for name, spec in signature.outputs.items() if name in wanted}
    )


def decode_columns(signature: Signature, value: Any) -> dict[str, np.ndarray]:
    """Read `inputs`: an object of tensors, or the one tensor itself; extra keys are ignored."""
    specs = signature.inputs
    if not isinstance(value, dict) or is_base64(value):
        if len(specs) > 1:
            raise BadRequest(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return {name: decode_tensor(value, spec) for name, spec in specs.items()}
    for name in specs:
        if name not in value:
            raise BadRequest(f"Missing named input: {name} in 'inputs' object.")
    return {name: decode_tensor(value[name], spec) for name, spec in specs.items()}


def decode_rows(signature: Signature, rows: Any) -> dict[str, np.ndarray]:
    """Read `instances`: a list of values (one input),
    or of objects with exactly the inputs' names.
    """
    specs = signature.inputs
    rows = rows if type(rows) is list else plain_value(rows)
    if isinstance(rows, np.ndarray) and len(specs) == 1 and rows.size:
        return {
            name: decode_tensor(rows if rows.ndim else rows[np.newaxis], spec)
            for name, spec in specs.items()
        }
    rows = rows.tolist() if isinstance(rows, np.ndarray) else rows
    if not isinstance(rows, list):
        raise BadRequest(f"{show(rows)} Expecting 'instances' to be an list/array")
    if not rows:
        raise BadRequest(f"{show(rows)} No values in 'instances' array")
    if isinstance(rows[0], dict) and not is_base64(rows[0]):
        return decode_named_rows(specs, rows)
    if len(specs) > 1:
        raise BadRequest(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    for index, row in enumerate(rows):
        if isinstance(row, dict) and not is_base64(row):
            raise BadRequest(f"Expecting value/list but got object at item {index} of input list")
    return {name: stack_rows(rows, spec, "") for name, spec in specs.items()}


def decode_named_rows(specs: Mapping[str, TensorSpec], rows: list) -> dict[str, np.ndarray]:
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadRequest(f"Expecting object but got list at item {index} of input list")
        for key in row:
            if key not in specs:
                raise BadRequest(
                    f"Failed to process element: {index} key: {key} of 'instances' list. "
                    f"Error: INVALID_ARGUMENT: JSON object: does not have named input: {key}"
                )
        if len(row) != len(specs):
            raise BadRequest(
                f"Failed to process element: {index} of 'instances' list. JSON object: "
                f"{show(row).removeprefix('JSON Value: ')} keys must be equal to: "
                f"{','.join(sorted(specs))}"
            )
    return {
        name: stack_rows([row[name] for row in rows], spec, f" key: {name}")
        for name, spec in specs.items()
    }


def stack_rows(rows: list, spec: TensorSpec, key: str) -> np.ndarray:
    """Read equally shaped rows as one tensor [rows, ...]; the error names the row."""
    quick = quick_tensor(rows, NUMPY_DTYPES.get(spec.dtype))
    if quick is not None and quick.ndim <= MAX_DIMENSIONS:
        return quick
    tensors: list[np.ndarray] = []
    for index, row in enumerate(rows):
        try:
            tensors.append(decode_tensor(row, spec))
            first, last = tensors[0], tensors[-1]
            if last.ndim >= MAX_DIMENSIONS:
                raise BadRequest(f"tensor parsing error: {spec.name}")
            if first.size != last.size:
                raise BadRequest(f"Expecting tensor size: {first.size} but got: {last.size}")
            if first.shape != last.shape:
                shapes = f"{shape_text(first)} but got: {shape_text(last)}"
                raise BadRequest(f"Expecting shape {shapes}")
        except ServingError as error:
            raise BadRequest(
                f"Failed to process element: {index}{key} of 'instances' list. Error: "
                f"{error.code}: {error.message}"
            ) from None
    return np.stack(tensors)


def present_output(spec: TensorSpec, array: np.ndarray) -> Any:
    """An output as the answer holds it: the array itself, or nested lists of `{"b64": ...}` for a
    string output whose name ends in `_bytes`.
    """
    if spec.dtype != "DT_STRING" or not spec.name.endswith("_bytes"):
        if spec.dtype == "DT_INVALID":
            refuse_complex(array)
        return array
    encoded = np.array(
        [{"b64": base64.b64encode(value).decode()} for value in array.reshape(-1)], object
    )
    return encoded.reshape(array.shape).tolist()


def encode_columns(signature: Signature, outputs: Mapping[str, np.ndarray]) -> Any:
    values = {name: present_output(spec, outputs[name]) for name, spec in signature.outputs.items()}
    return values if len(values) > 1 else next(iter(values.values()))


def encode_rows(signature: Signature, outputs: Mapping[str, np.ndarray]) -> Any:
    """The outputs row by row: bare values when there is one output,
    else one object for each row.
    """
    rows = None
    for name, output in ((name, outputs[name]) for name in signature.outputs):
        if not output.ndim:
            raise BadRequest(f"Tensor name: {name} has no shape information ")
        rows = len(output) if rows is None else rows
        if len(output) != rows:
            raise BadRequest(
                f"Tensor name: {name} has inconsistent batch size: {len(output)} expecting: {rows}"
            )
    values = {name: present_output(spec, outputs[name]) for name, spec in signature.outputs.items()}
    if len(values) == 1:
        return next(iter(values.values()))
    return NamedRows(values)


class NamedRows(list):
    """One object for each row of several outputs; `columns` has the outputs by name."""

    def __init__(self, columns: Mapping[str, Any]) -> None:
        super().__init__(dict(zip(columns, row)) for row in zip(*columns.values()))
        self.columns = columns


# --- classify and regress -----------------------------------------------------------------------


def decode_examples(
    body: dict[str, Any], allowance: Allowance
) -> list[Mapping[str, tuple[str, list]]]:
    """Read `examples`; each takes from `context` the features it lacks, and their bytes are counted
    once per example.

    As in TensorFlow Serving an example's own feature wins, though its guide forbids it in both.
    """
    context = decode_features(body["context"]) if "context" in body else {}
    if "examples" not in body:
        raise BadRequest(
            f"{show(body)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = body["examples"]
    if not isinstance(examples, list):
        raise BadRequest(f"{show(body)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise BadRequest(f"{show(body)} 'examples' value is an empty array")
    if not context:
        return [decode_features(example) for example in examples]
    allowance.take(len(examples) * size_of_features(context))
    return [ChainMap(decode_features(example), context) for example in examples]


def size_of_features(features: Mapping[str, tuple[str, list]]) -> int:
    """Roughly the bytes that features take in a tf.train.Example."""
    return sum(
        len(name) + sum(8 + (len(value) if kind == "bytes" else 0) for value in values)
        for name, (kind, values) in features.items()
    )


def decode_features(example: Any) -> dict[str, tuple[str, list]]:
    """Read one example; an empty list is a missing feature."""
    if not isinstance(example, dict):
        raise BadRequest(f"Example must be JSON object but got JSON {type_of(example)}")
    features = {}
    for name, value in example.items():
        if re.search("[\ud800-\udfff]", name):
            raise BadRequest(f"Feature name is not UTF-8: {encode_text(name)!r}")
        value = value.tolist() if isinstance(value, np.ndarray) else value
        items = [
            decode_feature(name, item) for item in (value if isinstance(value, list) else [value])
        ]
        for kind, _ in items:
            if kind != items[0][0]:
                raise BadRequest(
                    f"Unexpected element type in feature: {name} expecting type: {items[0][0]}"
                )
        if items:
            features[name] = (items[0][0], [item for _, item in items])
    return features


def decode_feature(name: str, value: Any) -> tuple[str, Any]:
    """The kind of a feature value, and the value; an integer is never converted to a float."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int):  # true and false among them
        if not -(2**63) <= value < 2**63:
            raise BadRequest(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64", int(value)
    if isinstance(value, float):
        return "float", value
    if isinstance(value, str | bytes):
        return "bytes", value if isinstance(value, bytes) else encode_text(value)
    if isinstance(value, dict) and is_base64(value):
        return "bytes", decode_b64(value)
    raise BadRequest(f"Feature: {name} has element with unexpected JSON type: {type_of(value)}")


def require(holds: bool, text: str) -> None:
    if not holds:
        raise BadRequest(text)


def run_examples(
    servable: Servable,
    name: str,
    examples: list,
    check: Callable[[Signature, str], None],
    trace: Trace,
) -> dict[str, np.ndarray]:
    """Run a classify or regress signature on serialized examples, its structure checked first."""
    signature = servable.signatures.get(name)
    if signature is None:
        raise BadRequest(f"No signature was found with the name: {name}")
    require(len(signature.inputs) == 1, "Expected one input Tensor.")
    check(
        signature, f"inputs: {', '.join(signature.inputs)}; outputs: {', '.join(signature.outputs)}"
    )
    return servable.run(name, {"inputs": serialize_examples(examples)}, trace)


def shape_text(array: np.ndarray) -> str:
    return str(list(array.shape)).replace(" ", "")


def classify(
    servable: Servable, name: str, examples: list, trace: Trace = UNTRACED
) -> dict[str, Any]:
    """Answer a classify request: for each example its [label, score] pairs,
    under `results` and `result`.
    """
    outputs = run_examples(servable, name, examples, check_classification, trace)
    specs = servable.signatures[name].outputs
    shapes = [
        check_class_tensor(outputs[output], specs[output], dtype, len(examples))
        for output, dtype in (("classes", "DT_STRING"), ("scores", "DT_FLOAT"))
        if output in outputs
    ]
    classes = outputs.get("classes", np.full(shapes[0], b"", object))
    scores = outputs.get("scores", np.zeros(shapes[0], np.float32))
    require(
        classes.shape == scores.shape,
        "Tensors class and score should match in dim_size(1). "
        f"Got {classes.shape[1]} vs. {scores.shape[1]}",
    )
    results = [[list(pair) for pair in zip(*row)] for row in zip(classes, scores)]
    return {"results": results, "result": results}


def check_classification(signature: Signature, text: str) -> None:
    """Refuse a signature that cannot classify, before it runs."""
    count = len(signature.outputs)
    require(count in (1, 2), f"Expected one or two output Tensors, found {count}")
    missing = f"No classification inputs found in SignatureDef: {text}"
    require("inputs" in signature.inputs, missing)
    require(
        bool(signature.outputs.keys() & {"classes", "scores"}),
        "Expected classification signature outputs to contain at least one of "
        f'"classes" or "scores". Signature was: {text}',
    )


def check_class_tensor(
    array: np.ndarray, spec: TensorSpec, dtype: str, count: int
) -> tuple[int, ...]:
    """Check that classes or scores are [examples, classes] of `dtype`; returns their shape."""
    rank = f"Expected Tensor shape: [batch_size num_classes] but got {shape_text(array)}"
    require(array.ndim == 2, rank)
    require(spec.dtype == dtype, f"Expected {spec.name} Tensor of {dtype}. Got: {spec.dtype}")
    size = f"Expected {spec.name} output batch size of {count}. Got: {len(array)}"
    require(len(array) == count, size)
    return array.shape


def regress(
    servable: Servable, name: str, examples: list, trace: Trace = UNTRACED
) -> dict[str, Any]:
    """Answer a regress request: one value for each example, float32 [N],
    under `results` and `result`.
    """

    def check(signature: Signature, text: str) -> None:
        require(len(signature.outputs) == 1, "Expected one output Tensor.")
        require("inputs" in signature.inputs, f"No regression inputs found in SignatureDef: {text}")
        require(
            "outputs" in signature.outputs, f"No regression outputs found in SignatureDef: {text}"
        )

    values = run_examples(servable, name, examples, check, trace)["outputs"]
    dtype = servable.signatures[name].outputs["outputs"].dtype
    require(
        values.ndim == 1 or values.ndim == 2 and values.shape[1] == 1,
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
        f"{shape_text(values)}",
    )
    require(
        len(values) == len(examples),
        f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}",
    )
    require(dtype == "DT_FLOAT", f"Expected output Tensor of DT_FLOAT.  Got: {dtype}")
    return {"results": values.reshape(-1), "result": values.reshape(-1)}


# ==================================================================================================
# Keys
# In: the config's keys, a request's headers. Out: the caller's key, or a ServingError.
# ==================================================================================================


def unauthorized(text: str, challenge: str = ', error="invalid_token"') -> ServingError:
    headers = {"WWW-Authenticate": f'Bearer realm="serving"{challenge}'}
    return ServingError(text, "UNAUTHENTICATED", headers=headers)


def digest(key: str) -> str:
    """The SHA-256 of a key in hexadecimal digits, which a config stores in place of the key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def tokens_of(headers: Any) -> list[str]:
    """The keys in a request's Authorization and x-api-key headers."""
    scheme, _, bearer = headers.get("Authorization", "").strip().partition(" ")
    sent = (bearer if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""))
    return [token.strip() for token in sent if token.strip()]


def list_expired(config: Config) -> list[Key]:
    """The expired keys among those that are not disabled."""
    return [key for key in config.auth.keys if key.has_expired and not key.disabled]


class KeyRing:
    """The keys of one config; replaced as a whole when the config changes.

    `take(name, calls, period)` counts a call; it returns None, or the seconds to wait when the
    quota is used up.
    """

    def __init__(self, keys: Sequence[Key], take: Callable[[str, int, str], int | None]):
        self._keys, self._take = keys, take

    def find(self, token: str) -> Key | None:
        """The key of a token, or None; compares every stored digest, each in constant time."""
        given, found = digest(token), None
        for key in self._keys:
            if hmac.compare_digest(given, key.sha256.lower()):
                found = key
        return found

    def check(
        self, tokens: Sequence[str], reached: Collection[str] | None, counted: bool = True
    ) -> Key:
        """The key of a call, if it is for one of the deployments `reached`; counts the call against
        the key's quota if `counted`.

        With None any valid key will do and the call is not counted, since it only lists what the
        key is for. Raises ServingError, whose text never contains the key itself.
        """
        if not tokens:
            raise unauthorized(
                "A key is needed: send it as 'Authorization: Bearer <key>' or 'x-api-key: <key>'",
                "",
            )
        if len(set(tokens)) > 1:
            raise unauthorized("Authorization and x-api-key hold different keys")
        key = self.find(tokens[0])
        if key is None:
            raise unauthorized("The key is not valid")
        try:
            self._let_in(key, reached, counted)
        except ServingError as error:
            error.key_name = key.name
            raise
        return key

    def _let_in(self, key: Key, reached: Collection[str] | None, counted: bool) -> None:
        if key.disabled:
            raise unauthorized(f"The key '{key.name}' is disabled")
        if key.has_expired:
            raise unauthorized(f"The key '{key.name}' has expired")
        if reached is None:
            return
        if key.deployments is not None and not set(key.deployments) & set(reached):
            own = ", ".join(key.deployments) or "nothing"
            raise ServingError(f"The key '{key.name}' is only for: {own}", "PERMISSION_DENIED")
        if counted and key.quota is not None:
            self._count(key, key.quota)

    def _count(self, key: Key, quota: Quota) -> None:
        try:
            seconds = self._take(key.name, quota.calls, quota.period)
        # a quota promises an exact count: a call that cannot be counted is refused
        except OSError as error:
            text = f"The calls of key '{key.name}' cannot be counted just now: {error}"
            raise ServingError(text, "UNAVAILABLE", headers={"Retry-After": "5"}) from None
        if seconds is None:
            return
        raise ServingError(
            f"The key '{key.name}' has used its {quota.calls} calls per {quota.period}; "
            f"try again in {seconds} s",
            "RESOURCE_EXHAUSTED",
            headers={
                "Retry-After": str(seconds),
                "RateLimit-Limit": str(quota.calls),
                "RateLimit-Remaining": "0",
                "RateLimit-Reset": str(seconds),
            },
        )


# ==================================================================================================
# Pictures
# In: a deployment's config; a picture. Out: predictions as arrays, then as JSON, COCO or a drawing.
# ==================================================================================================


MOST_ROUTINES = 64  # in one chain


@dataclass(frozen=True)
class ReadyDeployment:
    """A deployment's config made ready: labels read, routines built, families to choose from.

    `models` caches by servable its ImageModel, or the ValueError that says why it takes no
    pictures. `problem` says what is wrong with the config, `path` is the deployment's JSON path.
    `older` has, for servables that the reload replaces, the deployment that they were loaded for:
    until the new ones are there, or if they fail, the old ones answer as described before.
    """

    config: Any
    path: str
    chain: tuple[Any, ...]
    families: Mapping[str, Any]
    labels: Mapping[int, str]
    problem: str
    models: MutableMapping[Any, Any] = field(default_factory=weakref.WeakKeyDictionary)
    older: MutableMapping[Any, "ReadyDeployment"] = field(default_factory=weakref.WeakKeyDictionary)

    def of(self, servable: Any) -> "ReadyDeployment":
        """The deployment that describes a servable of its model."""
        return self.older.get(servable, self)

    def model_of(self, servable: Any) -> Any:
        """The ImageModel that shows pictures to a servable.

        Raises ValueError when the servable takes no pictures or its outputs cannot be identified.
        """
        model = self.models.get(servable)
        if model is None:
            try:
                signature = servable.signatures.get("serving_default")
                model = self.build_model(signature, servable.folder)
            except ValueError as error:
                if isinstance(error.__cause__, OSError):  # perhaps temporary: not cached
                    raise
                model = error
            self.models[servable] = model
        if isinstance(model, ValueError):
            raise type(model)(*model.args)
        return model

    def tell(self, error: ValueError) -> str:
        """An error of `model_of` with its JSON path. "" for a model that takes no pictures when the
        deployment sets no picture options: it may exist only for /model-serving.
        """
        said = ("id", "model", "version", "version_label")
        plain = Deployment(**{name: getattr(self.config, name) for name in said})
        if isinstance(error, routines.NoPicture) and self.config == plain:
            return ""
        return f"{self.path}: model '{self.config.model}': {error}"

    def labels_in(self, folder: Path | None) -> Mapping[int, str]:
        """The deployment's labels; without a label map of its own, those in the model's folder.

        Raises ValueError for a label file that cannot be read.
        """
        if self.config.label_map is not None or folder is None:
            return self.labels
        try:
            found = routines.find_labels(folder)
        except OSError as error:
            text = f"the label map of its folder: {error.strerror or type(error).__name__}"
            raise ValueError(text) from error
        if found is None:
            return self.labels
        try:
            return read_labels(str(found))
        except ValueError as error:
            raise ValueError(f"its file '{found.name}': {error}") from error.__cause__

    def build_model(self, signature: Signature | None, folder: Path | None) -> Any:
        """Build the ImageModel of a signature; raises ValueError as `model_of` does."""
        config, labels = self.config, self.labels_in(folder)
        if signature is None:
            raise ValueError("its model has no signature 'serving_default'")
        shown = [one.name for one in dataclasses.fields(routines.InputOptions)]
        boxes = {"format": config.boxes.format, "scale": config.boxes.scale} if config.boxes else {}
        model = routines.ImageModel(
            {name: (spec.dtype, spec.shape) for name, spec in signature.inputs.items()},
            {
                name: (spec.dtype, spec.shape, spec.made_by, spec.scale, spec.logits)
                for name, spec in signature.outputs.items()
            },
            labels=labels,
            family=config.family,
            rename=config.outputs,
            options=routines.InputOptions(**{name: getattr(config, name) for name in shown}),
            most=config.max_detections,
            operations=signature.operations,
            boxes=boxes,
            classes_from=config.classes_from,
            planes=config.planes,
            activation=config.activation,
            threshold=config.threshold,
            top_k=config.top_k,
            families=self.families,
        )
        tile = routines.find_tile(self.chain)
        if tile is not None and not model.kind.boxes:
            raise ValueError(f"routines: {routines.lacks(tile, 'boxes')}")
        if not config.stateful and (text := tell_training(signature.operations)):
            raise ValueError(f'its signature {text}. If that is intended, write "stateful": true')
        return model


def prepare_deployment(
    config: Any, path: str, kinds: Mapping[str, type], families: Mapping[str, Any]
) -> ReadyDeployment:
    """Read the labels and build the routines of a deployment's config.

    A wrong label map makes this deployment alone unavailable, as its `problem`. Raises ConfigError
    for a wrong routine or family.
    """
    chain = tuple(read_chain(config.routines, kinds, f"{path}.routines"))
    if config.family is not None and config.family not in families:
        hint = suggest(config.family, families)
        raise ConfigError(f"{path}.family", f"there is no family '{config.family[:60]}'; {hint}")
    problem = ""
    try:
        labels = read_labels(config.label_map)
    except ValueError as error:
        labels, problem = {}, f"{path}.label_map: {error}"
    return ReadyDeployment(config, path, chain, families, labels, problem)


def read_labels(label_map: Any) -> Mapping[int, str]:
    """Class names by id. Raises ValueError, whose text has the file's name without its folder."""
    name = Path(label_map).name if isinstance(label_map, str) else ""
    try:
        return routines.load_labels(label_map, Path())
    except OSError as error:
        raise ValueError(f"{error.strerror or type(error).__name__}: {name}") from error
    except UnicodeDecodeError:
        text = f"expected a text file (.pbtxt, JSON, YAML, or one name per line): {name}"
        raise ValueError(text) from None
    except RecursionError:
        raise ValueError(f"nested too deeply: {name}") from None
    except ValueError as error:
        raise ValueError(clean(str(error).removeprefix("label map: "))) from None


def read_chain(value: Any, kinds: Mapping[str, type], path: str = "routines") -> list[Any]:
    """Build the routines of `[{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}]`;
    arguments may stand beside the name.

    Raises ConfigError naming the place.
    """
    if not isinstance(value, list | tuple):
        raise ConfigError(path, f"expected a list of routines, got {json_kind(value)}")
    if len(value) > MOST_ROUTINES:
        raise ConfigError(path, f"expected at most {MOST_ROUTINES} routines, got {len(value)}")
    return [read_routine(item, kinds, f"{path}[{index}]") for index, item in enumerate(value)]


def read_routine(item: Any, kinds: Mapping[str, type], path: str) -> Any:
    if not isinstance(item, dict) or "name" not in item:
        raise ConfigError(
            path,
            f'expected an object {{"name": ..., "arguments": {{...}}}}, got {json_kind(item)}'
            + (" without 'name'" if isinstance(item, dict) else ""),
        )
    if not isinstance(item["name"], str):
        raise ConfigError(f"{path}.name", f"expected string, got {json_kind(item['name'])}")
    kind = kinds.get(item["name"])
    if kind is None:
        name = item["name"][:60]
        hint = suggest(name, sorted(kinds))
        raise ConfigError(f"{path}.name", f"there is no routine '{name}'; {hint}")
    given = read_arguments(item, kind, path)
    with errors_only(f"routine {item['name'][:60]}"):
        return parse_fields(kind, given, f"{path}.arguments")


def read_arguments(item: Mapping[str, Any], kind: type, path: str) -> dict[str, Any]:
    """A routine's arguments by name. A request may give them under `arguments` or `kwargs`, beside
    `name`, or as a list `args` in the order of the routine's fields.
    """
    others = ("name", "arguments", "kwargs", "args")
    given: dict[str, Any] = {key: item[key] for key in item if key not in others}
    for key in ("kwargs", "arguments"):
        value = {} if item.get(key) is None else item[key]
        if not isinstance(value, dict):
            raise ConfigError(f"{path}.{key}", f"expected an object, got {json_kind(value)}")
        if twice := sorted(given.keys() & value.keys()):
            raise ConfigError(f"{path}.{key}", f"'{twice[0][:60]}' is given twice")
        given |= value
    ordered = [] if item.get("args") is None else item["args"]
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(ordered, list):
        raise ConfigError(f"{path}.args", f"expected a list, got {json_kind(ordered)}")
    if len(ordered) > len(names):
        raise ConfigError(
            f"{path}.args", f"{kind.__name__} has {len(names)} arguments, got {len(ordered)}"
        )
    found = dict(zip(names, ordered))
    if twice := sorted(found.keys() & given.keys()):
        raise ConfigError(f"{path}.args", f"'{twice[0]}' is given by name as well")
    return found | given


def find_deployment(server: "ModelServer", deployment: str | None = None) -> ReadyDeployment:
    """A deployment by id, or the default one. Raises NotFound; UNAVAILABLE if it has a problem."""
    ready = server.prepared.deployments
    if not ready:
        raise NotFound("There is no deployment: the config has none under 'deployments'")
    deployment = deployment if deployment is not None else server.config.default_deployment[0]
    if deployment not in ready:
        raise NotFound(
            f"There is no deployment '{deployment}'; there are: {', '.join(sorted(ready))}"
        )
    found = ready[deployment]
    if found.problem:
        text = f"Deployment '{deployment}' is not available: {found.problem}"
        raise ServingError(text, "UNAVAILABLE")
    return found


def image_limits(config: Config, allow: Callable[[int], None], **options: Any) -> Any:
    """The limits for reading pictures: the config's, and `options` of one request."""
    return routines.ImageLimits(**vars(config.server.images), allow=allow, **options)


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """Turn an ImageError into a BadRequest: 400, or 413 for a picture over a limit."""
    try:
        yield
    except routines.ImageError as error:
        raise BadRequest(str(error), status=413 if error.too_large else None) from None


@contextlib.contextmanager
def routine_errors(ready: ReadyDeployment | None = None) -> Iterator[None]:
    """Turn a RoutineError into an answer: 503 when the deployment's model never gives what one of
    the deployment's own routines needs, else 400.
    """
    try:
        with errors_only("a routine"):
            yield
    except routines.RoutineError as error:
        if ready is not None and any(step is error.step for step in ready.chain):
            raise refusal_of(ready, ValueError(f"routines: {error}")) from None
        raise BadRequest(f"routines: {error}") from None


@image_errors()
def answer_pictures(
    server: "ModelServer",
    image: "np.ndarray | list[np.ndarray]",
    deployment: str | None,
    chain: Any,
    form: str,
    allowance: Allowance,
    trace: Trace,
    warn: Callable[[str], None] = lambda text: None,
    which: Mapping[str, Any] = types.MappingProxyType({}),
) -> Any:
    """What a deployment sees in a picture, or in each of several; see ModelServer.predict_image.

    `warn` is called with each warning of the routines, since a drawn picture has no place for it.
    `which` has a `version` or `version_label` to ask in place of the deployment's own.
    """
    ready, own = find_deployment(server, deployment), asked_chain(server, chain)
    images = image if isinstance(image, list) else [image]
    with lease(server, ask_version(server, ready.config, which), trace) as (version, servable):
        ready = ready.of(servable)
        try:
            model = ready.model_of(servable)
        except ValueError as error:
            raise refusal_of(ready, error) from None
        views = [show_view(server, model, each, allowance) for each in images]
        allowance.take(routines.tile_bytes((*ready.chain, *own)))
        if form in ("png", "jpeg"):  # for each picture a canvas, its copy, a transparent overlay
            allowance.take(3 * sum(view.drawn.nbytes for view in views))
        run = functools.partial(servable.run, "serving_default", trace=trace)
        origin = {"deployment": ready.config.id, "model": ready.config.model, "version": version}
        seen = annotate(server, ready, model, run, views, own, allowance, trace, origin=origin)
    answers = present_all(seen, views, model, form, warn)
    return {"results": answers} if isinstance(image, list) else answers[0]


def asked_chain(server: "ModelServer", chain: Any) -> list[Any]:
    """Build the routines of a request; raises BadRequest."""
    try:
        return read_chain(chain, server.prepared.routines)
    except ConfigError as error:
        raise BadRequest(error.message) from None


def ask_version(
    server: "ModelServer", deployment: Deployment, which: Mapping[str, Any]
) -> Deployment:
    """A deployment with the version that a request names; raises NotFound and BadRequest."""
    if not which:
        return deployment
    asked = dataclasses.replace(deployment, **which)
    server.start().manager.find(asked.model, asked.version, asked.version_label)
    return asked


def present_all(
    seen: Sequence[Any], views: Sequence["View"], model: Any, form: str, warn: Callable
) -> list[Any]:
    """The answer for each of some pictures."""
    for tensors in seen:
        for text in tensors.get("answer", {}).get("warnings", []):
            warn(text)
    return [
        routines.present(tensors, view.drawn, model.labels, form)
        for tensors, view in zip(seen, views)
    ]


def refusal_of(ready: ReadyDeployment, error: ValueError) -> ServingError:
    """The error for a picture sent to a deployment whose model cannot take it."""
    if problem := ready.tell(error):
        text = f"Deployment '{ready.config.id}' is not available: {problem}"
        return ServingError(text, "UNAVAILABLE")
    return BadRequest(f"Deployment '{ready.config.id}' takes no pictures: {error}")


class View(typing.NamedTuple):
    """A picture as the model gets it, and as people see it: RGB, drawn on the background."""

    shown: np.ndarray
    drawn: np.ndarray


def show_view(server: "ModelServer", model: Any, image: np.ndarray, allowance: Allowance) -> View:
    """Prepare an RGB or RGBA picture for a model; counts the memory of a copy made for alpha."""
    if image.shape[2] == 4:
        allowance.take(3 * image.shape[0] * image.shape[1])
    drawn = routines.on_background(image, server.config.server.images.background)
    shown = image if model.shown.takes_alpha else drawn
    return View(shown, drawn)


@contextlib.contextmanager
def lease(
    server: "ModelServer", deployment: Any, trace: Trace = UNTRACED
) -> Iterator[tuple[int, Any]]:
    """Lease the servable of a deployment's version.

    ServingError UNAVAILABLE, with the reason, when the version is not available.
    """
    where = deployment.model, deployment.version, deployment.version_label
    try:
        server.start().manager.find(*where, trace)
    except (NotFound, BadRequest) as error:
        states = server.manager.states().get(deployment.model, {})
        reason = next(
            (state.error for _, state in sorted(states.items(), reverse=True) if state.error),
            error.message,
        )
        text = (
            f"Deployment '{deployment.id}' is not available: model '{deployment.model}': {reason}"
        )
        raise ServingError(text, "UNAVAILABLE") from None
    with server.lease(*where, trace) as leased:
        yield leased


def annotate(
    server: "ModelServer",
    ready: ReadyDeployment,
    model: Any,
    run: Callable[[dict], dict],
    views: Sequence[View],
    own: Sequence[Any],
    allowance: Allowance,
    trace: Trace,
    origin: Mapping[str, Any],
) -> list[Any]:
    """Predictions for pictures: run the model and the deployment's routines, let extensions see the
    result, then run the request's routines (`own`).

    Those of `own` that work on the picture run before the model. `origin` names the deployment,
    model and version for the extensions.
    """
    before = [step for step in own if step.before_model]
    images = [view.shown for view in views]
    try:
        with routine_errors(ready):
            found = routines.predict_images(
                model, run, images, (*ready.chain, *before), allowance.take
            )
    except routines.OutputError as error:
        raise ServingError(f"Deployment '{ready.config.id}': {error}") from None
    start = time.perf_counter()
    for view, tensors in zip(views, found):
        for extension in server.extensions:
            extension.saw(server, ready, view.drawn, tensors, origin)
    with routine_errors():
        found = [routines.run_after(own, tensors) for tensors in found]
    trace.routines = time.perf_counter() - start
    return found


# --- pictures in predict bodies -----------------------------------------------------------------
#
# TensorFlow Serving takes encoded pictures only for string tensors; those take bytes as they are.


Change = Callable[[Any, Any], Any]  # change(leaf of nested lists, its input's TensorSpec) -> leaf


def wrap_picture(signature: Signature, body: dict[str, Any]) -> dict[str, Any]:
    """Replace `instances` that are a picture's raw bytes: by a list of that one row, or by `inputs`
    for a model whose only input has no batch dimension.
    """
    picture = body.get("instances")
    if not isinstance(picture, bytes):
        return body
    spec, *others = signature.inputs.values()
    shown = picture_input(spec)
    is_lone = spec.shape == () or shown is not None and "N" not in shown.layout
    return {"inputs": picture} if is_lone and not others else {"instances": [picture]}


@image_errors()
def unpack_pictures(signature: Any, body: dict[str, Any], limits: Any) -> dict[str, Any]:
    """A predict body with pixels [H, W, C] in place of pictures. Raises BadRequest."""
    key = "instances" if "instances" in body else "inputs"
    rows = body[key] if key == "instances" else [body[key]]
    if not isinstance(rows, list):  # `decode_rows` refuses it
        return body
    found = {name: picture_input(spec) for name, spec in signature.inputs.items()}
    specs = {name: signature.inputs[name] for name, shown in found.items() if shown is not None}
    if not specs and has_strings(signature):
        return body
    if not specs:
        name, spec = next(iter(signature.inputs.items()))
        raise routines.ImageError(
            f"input '{name}' takes no pictures: expected [-1, H, W, 3] or [-1, H, W, 1] or another "
            "layout of pictures, of numbers that hold 0..255; "
            f"it is {spec.type_name} {print_shape(spec.shape)}"
        )

    def visit(row: Any, change: Change) -> Any:
        if isinstance(row, dict) and not is_base64(row):
            if key == "instances" and row.keys() != signature.inputs.keys():  # refused later
                return row
            return {
                name: visit_all(part, specs[name], change) if name in specs else part
                for name, part in row.items()
            }
        lone = len(signature.inputs) == 1  # else it is refused later, for want of names
        return visit_all(row, next(iter(specs.values())), change) if lone else row

    def decode(leaf: Any, spec: Any) -> Any:
        dtype = NUMPY_DTYPES.get(spec.dtype, np.dtype(np.uint8))
        return fit_pixels(leaf, found[spec.name], dtype, limits)

    # Check the headers of all pictures before decoding the first.
    opened = [visit(row, lambda leaf, spec: open_picture(leaf, limits)) for row in rows]
    pixels = [visit(row, decode) for row in opened]
    return {**body, key: pixels if key == "instances" else as_batch(pixels[0], specs)}


def picture_input(spec: Any) -> Any:
    """How an input takes pictures (pixels 0..255), judged by its shape as `/predict` does; None if
    it takes none.

    `fit_pixels` converts to the input's dtype, so DT_UINT8 here is only nominal.
    """
    if spec.shape is None or spec.dtype in ("DT_STRING", "DT_BOOL", "DT_INT8"):
        return None
    layout = "NHWC"
    if len(spec.shape) != 4 or spec.shape[3] not in (1, 3):
        try:
            layout = routines.find_layout(spec.name, spec.shape, routines.InputOptions())
        except ValueError:
            return None
    sizes = dict(zip(layout, spec.shape))
    return routines.PictureInput(
        spec.name,
        "DT_UINT8",
        joins=True,
        layout=layout,
        height=sizes["H"],
        width=sizes["W"],
        channels=routines.NORMAL[sizes.get("C", 1)],
    )


def visit_all(value: Any, spec: Any, change: Change, level: int = 0) -> Any:
    """Nested lists with each leaf changed; raises ImageError for lists deeper than any tensor."""
    if not isinstance(value, list):
        return change(value, spec)
    if value and isinstance(value[0], int | float):  # a row of numbers has no pictures
        return value
    if level > MAX_DIMENSIONS:
        raise routines.ImageError(
            f"input '{spec.name}': more than {MAX_DIMENSIONS} levels of lists"
        )
    return [visit_all(item, spec, change, level + 1) for item in value]


def open_picture(leaf: Any, limits: Any) -> Any:
    """Open a picture's bytes or base64, reading only its header; other leaves stay as they are."""
    if is_base64(leaf):
        leaf = routines.read_text(leaf["b64"], limits)
    return routines.open_image(leaf, limits) if isinstance(leaf, bytes) else leaf


def fit_pixels(leaf: Any, shown: Any, dtype: np.dtype, limits: Any) -> Any:
    """Decode a picture to pixels 0..255 in an input's layout and dtype, resized to a fixed size."""
    if not isinstance(leaf, routines.Image.Image):
        return leaf
    image = routines.unpack_image(leaf, dataclasses.replace(limits, alpha=shown.takes_alpha))
    height, width = shown.height or image.shape[0], shown.width or image.shape[1]
    resized = 0 if image.shape[:2] == (height, width) else 3
    # Two copies in the tensor's dtype: one made here, one when the rows are stacked.
    channels = routines.CHANNELS[shown.channels]
    limits.allow(height * width * (resized + 2 * channels * dtype.itemsize))
    pixels, _ = shown.show(image)
    return (pixels[0] if shown.layout.startswith("N") else pixels).astype(dtype)


def as_batch(value: Any, specs: Mapping[str, Any]) -> Any:
    """Give a lone picture, [H, W, C], the batch dimension that a column of `inputs` has."""
    if isinstance(value, dict):
        return {name: as_row(item, specs.get(name)) for name, item in value.items()}
    return as_row(value, next(iter(specs.values())))


def as_row(value: Any, spec: Any) -> Any:
    is_lone = spec and isinstance(value, np.ndarray) and value.ndim == len(spec.shape) - 1
    return value[np.newaxis] if is_lone else value


# ==================================================================================================
# ModelServer
# In: a config in any form. Out: the Python API, one method for each kind of request.
# ==================================================================================================


@dataclass(frozen=True)
class Caller:
    """Who calls: a name for the log, and the deployment ids and handler paths that the caller's key
    is for; None for all of them.

    `key` is the config's key that let the call in, if one did; `counted` tells whether the call
    counts against its quota.
    """

    name: str = "-"
    deployments: frozenset[str] | None = None
    key: Key | None = None
    counted: bool = False

    def may_see(self, *names: str) -> bool:
        """Whether the caller may use any of these deployments or handlers."""
        return self.deployments is None or not self.deployments.isdisjoint(names)


class ModelServer:
    """A config and the models it names, served: what the URLs answer, without HTTP.

        server = ModelServer("config.json")
        server.predict("digits", {"instances": images})["predictions"]     # float32 [N, 10]

    `source` is the path of a config file (which `reload` reads again), a dict or a `Config`; `text`
    replaces the file's bytes, to try a config before it is written. Models load in a background
    thread, from `start` or the first call on; a call waits until the model's first load is over, an
    HTTP request at most `load_wait_seconds`. Raises ConfigError when the config is wrong; models
    that cannot be loaded are reported by `status` and `readiness`. `stop` frees the models and ends
    the threads, as does dropping the last reference.
    """

    def __init__(
        self,
        source: "str | os.PathLike | Mapping | Config",
        extensions: Sequence[Extension] | None = None,
        text: bytes | None = None,
        **manager_options: Any,
    ):
        path = Path(source) if isinstance(source, str | os.PathLike) else None
        if text is None:
            text = read_file(path.absolute()) if path else b""  # read once: the manager keeps it
        self.extensions = named_once(installed() if extensions is None else extensions)
        config = load_config(source, text, config_kind(self.extensions))
        # Hooks around each request; those left at their default, which does nothing, are skipped.
        self.begins = [e.begin for e in self.extensions if e.begin is not nothing]
        self.observers = [e.observe for e in self.extensions if e.observe is not nothing]
        self.folder = path.absolute().parent if path else Path.cwd()  # of the config's modules
        self.key = secrets.token_urlsafe(24)
        self.kept: dict[tuple[Any, ...], Any] = {}  # outlives reloads: modules, pools, ...
        self.endpoints: dict[str, Any] = {}  # by path: what `endpoint` has registered
        self.waiting: Any = ()  # the requests that wait for a thread; only its length is used
        self.place_of: Callable[[str], int | None] = lambda request_id: None  # place in the queue
        self.refused: Counter[str] = Counter()  # requests that were turned away, by reason
        self.not_called: Counter[tuple[str, str]] = Counter()  # ... by what they would call
        self.max_request_bytes = config.server.max_request_bytes  # of the start, as in waitress
        self._mounted = self.says_key = False  # the app is built; `run` prints the generated key
        self.mounts: list[weakref.ref[Callable[[], None]]] = []  # each adds a config's URLs
        self.unpacked = UnpackedBytes(lambda: self.config.server.max_queued_bytes)
        self.state = {extension.name: extension.open(self) for extension in self.extensions}
        # Hooks that add headers to each answer, likewise without the defaults.
        self.dressers = [e.headers for e in self.extensions if e.headers is not none]
        self.load: Load = load_saved_model
        for extension in self.extensions:
            self.load = extension.wrap_load(self, self.load)
        options = {
            "load": functools.partial(load_model, self, config.server),
            "prepare": functools.partial(prepare, self),
            "refresh_others": functools.partial(refresh_others, self),
            "take_effect": self.show_urls,
        }
        self.manager = ModelManager(path, text, config, **{**options, **manager_options})

    def show_urls(self) -> None:
        """Add the URLs that a reload has brought to the sites that the server is mounted in."""
        for found in tuple(self.mounts):
            if (mount := found()) is not None:
                mount()

    def __repr__(self) -> str:
        """The models and their states, without loading any."""
        states = self.manager.states()
        models = [
            f"{name}: {describe_briefly(states.get(name, {}))}" for name in self.config.served_names
        ]
        return f"<ModelServer {'; '.join(models) or 'of no models'}>"

    @property
    def config(self) -> Config:
        """The config in force."""
        return self.manager.config

    @property
    def prepared(self) -> Prepared:
        return self.manager.prepared

    @property
    def generated_key(self) -> str | None:
        """The key made at start, or None when the config has keys of its own."""
        return None if self.config.auth.keys else self.key

    def endpoint(
        self, path: str, *, methods: Sequence[str] = ("POST",), envelope: str | None = None
    ) -> Callable[[Callable], Callable]:
        """Put the decorated function behind a URL, as `handlers` in the config does:
        `f(inputs)` or `f(inputs, context)`. Raises ConfigError for a path of the config's own.
        """

        def register(function: Callable) -> Callable:
            if self._mounted:
                raise ServingError(
                    f"The endpoint {path} is too late: the app and its URLs are already built. "
                    "Register endpoints before create_app, create_blueprint or run"
                )
            made = first(
                e.declare(self, path, function, methods, envelope) for e in self.extensions
            )
            if made is None:
                raise NotFound(tell_missing("handlers.py").capitalize())
            self.endpoints[path] = made
            self.manager.prepared = prepare(self, self.config)
            return function

        return register

    def start(self) -> "ModelServer":
        """Start loading the models in the background; a second call does nothing."""
        self.manager.start()
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the first load is over; False after `timeout` seconds."""
        self.start()
        return self.manager.first_pass_done.wait(timeout)

    def stop(self, drain: bool = True) -> None:
        """Free the models and end the threads, for good.

        With `drain`, running requests finish first.
        """
        self.manager.stop(drain)
        for extension in self.extensions:
            try:
                extension.end(self)
            except Exception:
                logger.exception("Extension %s did not end", extension.name)

    def allowance(self) -> Allowance:
        """A new allowance for what one request's body unpacks to; close it after the answer."""
        return Allowance(self.unpacked, self.config.server.max_decoded_bytes)

    def predict(
        self,
        model: str,
        body: Any,
        version: int | None = None,
        label: str | None = None,
        outputs: Sequence[str] = (),
        allowance: Allowance | None = None,
        trace: Trace = UNTRACED,
    ) -> dict[str, Any]:
        """Answer TensorFlow Serving's predict body: `{"instances": ...}` -> `{"predictions": ...}`,
        `inputs` -> `outputs`.

        Arrays may stand wherever the body has numbers. An array-like (a tensor, a pandas
        DataFrame), a tuple or a range may stand for a whole input, `instances` or one of its items.
        Answers are arrays in the model's dtype, strings as bytes; `outputs` names the outputs to
        answer, all by default. Raises BadRequest, NotFound, and ServingError with the code of an
        error in the graph. `allowance` and `trace` belong to the surrounding request; without an
        allowance, the call makes its own.
        """
        name = signature_name(body)
        lease = self.lease(model, version, label, trace)
        with use_allowance(self, allowance) as own, lease as (_, servable):
            signature = servable.signatures.get(name)
            value = body.get("instances", body.get("inputs"))
            if signature and signature.inputs and holds_bytes(value):
                body = wrap_picture(signature, body)
                if routines or not has_strings(signature):  # texts need no routines.py
                    limits = image_limits(self.config, own.take)
                    body = unpack_pictures(signature, body, limits)
            return predict(servable, name, body, outputs, trace)

    def classify(
        self,
        model: str,
        body: Any,
        version: int | None = None,
        label: str | None = None,
        allowance: Allowance | None = None,
        trace: Trace = UNTRACED,
    ) -> dict[str, Any]:
        """Answer a classify body, `{"examples": [{feature: value}]}`:
        `{"results": [[[label, score], ...], ...]}`.
        """
        name = signature_name(body)
        with use_allowance(self, allowance) as own:
            examples = decode_examples(body, own)
            with self.lease(model, version, label, trace) as (_, servable):
                return classify(servable, name, examples, trace)

    def regress(
        self,
        model: str,
        body: Any,
        version: int | None = None,
        label: str | None = None,
        allowance: Allowance | None = None,
        trace: Trace = UNTRACED,
    ) -> dict[str, Any]:
        """Answer a regress body, `{"examples": [{feature: value}]}`: `{"results": float32 [N]}`."""
        name = signature_name(body)
        with use_allowance(self, allowance) as own:
            examples = decode_examples(body, own)
            with self.lease(model, version, label, trace) as (_, servable):
                return regress(servable, name, examples, trace)

    def lease(
        self, model: str, version: int | None, label: str | None, trace: Trace = UNTRACED
    ) -> contextlib.AbstractContextManager[tuple[int, Servable]]:
        """Lease a version and its servable: the named version, the labelled one or the highest.

        Raises NotFound or BadRequest.
        """
        return self.start().manager.lease(model, version, label, trace)

    def models(self) -> list[dict[str, Any]]:
        """Name and version states of each configured model."""
        states = self.start().manager.states()
        return [
            {"name": name, **describe_states(states[name])}
            for name in sorted(set(self.config.served_names))
        ]

    def predict_image(
        self,
        image: Any,
        deployment: str | None = None,
        routines: Sequence[Mapping[str, Any]] = (),
        form: str = "json",
        trace: Trace = UNTRACED,
    ) -> Any:
        """Answer what a deployment sees in a picture: `{"predictions": [...]}` and what routines
        add.

        `image` is the path of a file, its bytes, a PIL image, or an array of 0..255, [H, W], [H, W,
        1], RGB [H, W, 3] or RGBA [H, W, 4]; a list of these is answered by `{"results": [...]}`, an
        answer for each. `form` is `json`, `coco`, or `png` or `jpeg` for the
        bytes of the drawn picture. Raises OSError for a file that cannot be read, NotFound,
        BadRequest for the picture or a routine, and ServingError UNAVAILABLE when the model is not
        there.
        """
        with contextlib.closing(self.allowance()) as allowance:
            limits = image_limits(self.config, allowance.take, alpha=True)
            several = isinstance(image, list | tuple)
            read = [read_picture(each, limits) for each in (image if several else [image])]
            pictures = read if several else read[0]
            return answer_pictures(self, pictures, deployment, routines, form, allowance, trace)

    def identify(self, headers: Any, reached: Iterable[str] | None, counted: bool = True) -> Caller:
        """The caller, by the key in a request's headers, if it is for one of the deployments
        `reached`; counts the call against the key's quota if `counted`.

        With None any valid key will do and the call is not counted. Raises ServingError: 401, 403,
        429, or 503 when the call cannot be counted.
        """
        wanted = None if reached is None else set(reached)
        found = self.prepared.keys.check(tokens_of(headers), wanted, counted)
        own = None if found.deployments is None else frozenset(found.deployments)
        return Caller(found.name, own, found, counted and wanted is not None)

    def status(
        self, model: str, version: int | None = None, label: str | None = None
    ) -> dict[str, Any]:
        """The states of a model's versions, highest first, or of one version.

        Raises NotFound for a model or version never seen.
        """
        self.start()
        states = self.manager.states().get(model)
        pipeline = self.config.is_pipeline(model)
        if states is None or not states and not pipeline:
            raise NotFound(f"Could not find any versions of model {model}")
        if label is not None and not pipeline:
            version = self.manager.label_version(model, label)
        if version is None or version == 0 and 0 not in states or pipeline:
            return describe_states(states)
        if version not in states:
            raise NotFound(f"Could not find version {version} of model {model}")
        return describe_states({version: states[version]})

    def config_status(self) -> dict[str, Any]:
        """The status of every model ever configured, by name."""
        return {model: describe_states(states) for model, states in self.manager.states().items()}

    def metadata(
        self,
        model: str,
        version: int | None = None,
        label: str | None = None,
        trace: Trace = UNTRACED,
    ) -> dict[str, Any]:
        """A version's signatures, in TensorFlow Serving's casing and in OpenVINO Model Server's."""
        with self.lease(model, version, label, trace) as (number, servable):
            return {
                "model_spec": {"name": model, "signature_name": "", "version": str(number)},
                "modelSpec": {"name": model, "signatureName": "", "version": str(number)},
                "metadata": {"signature_def": servable.metadata},
            }

    def drop(self, kind: str, named: Collection[Any]) -> None:
        """Drop from `kept` the entries of a kind whose key is not among `named`."""
        for key in [key for key in self.kept if key[0] == kind and key not in named]:
            del self.kept[key]

    def readiness(self) -> list[str]:
        """The models, deployments and handlers that cannot answer; empty when all are ready."""
        self.start()
        others = (name for extension in self.extensions for name in extension.unready(self))
        return [*self.manager.unready(), *others]

    def reload(self, timeout: float = math.inf) -> tuple[int, dict[str, Any]]:
        """Read config and version folders again; returns the HTTP status and body OpenVINO Model
        Server gives.

        201: something was read or loaded anew; 200: nothing had changed; else the body has `error`,
        and in `details` what failed and where. Raises ServingError DEADLINE_EXCEEDED after
        `timeout` seconds.
        """
        outcome = self.manager.reload(timeout)
        if not outcome.errors:
            return (201 if outcome.config_read or outcome.changed else 200), self.config_status()
        return tell_failure(outcome)

    def plan_reload(self) -> tuple[int, dict[str, Any]]:
        """Tell what `reload` would change; returns the HTTP status and body. Nothing is loaded or
        changed.

        200 and what `plan_changes` finds, with the `problems` that `--check` finds; the error of
        `reload` for a config that is wrong. A new config is read as `--check` reads it: its
        `routine_modules` run, its models and handlers do not.
        """
        outcome, wanted = Outcome(), self
        try:
            text = self.manager.read_text(outcome)
            if text is not None:
                wanted = self.read_aside(text)
        except ConfigError as error:
            outcome.errors += error.all()
        if outcome.errors:
            return tell_failure(outcome)
        plan = plan_changes(self.manager, wanted.config, wanted is not self)
        _, seen = examine(wanted, self.manager.list_versions)
        return 200, plan | {"problems": list(dict.fromkeys(map(hide_paths, seen)))}

    def read_aside(self, text: bytes) -> "ModelServer":
        """A server of what the config file might hold, made ready and never started."""
        return ModelServer(self.manager.path or Path(), self.extensions, text)


def tell_failure(outcome: Outcome) -> tuple[int, dict[str, Any]]:
    """The HTTP status and body of a reload that failed, with OpenVINO Model Server's texts."""
    step = (
        "Reloading config file failed."
        if outcome.config_read
        else "Reloading models versions failed."
    )
    text = CONFIG_MISSING if outcome.config_missing else f"{step} Check server logs for more info."
    return int(outcome.errors[0].status), {
        "error": text,
        "details": [error.message for error in outcome.errors],
    }


# --- what a reload would change -----------------------------------------------------------------


def plan_changes(manager: ModelManager, wanted: Config, config_read: bool) -> dict[str, Any]:
    """What a reload to `wanted` would change: by section the names added, removed and changed, and
    for models also the versions to load, reload and unload.

    `problems` has what can be seen without loading, worded as in a reload's `details`. Only models
    and `server` show values: other sections may hold keys and passwords.
    """
    now = manager.config
    versions, problems = plan_versions(manager, wanted)
    models = compare(now, wanted, "models", "name", tell_changed)
    sections = {"deployments": "id", "pipeline_config_list": "name", "handlers": "path"}
    plan: dict[str, Any] = {
        "dry_run": True,
        "config_read": config_read,
        "models": models | {"versions": versions},
        **{key: compare(now, wanted, key, name) for key, name in sections.items()},
        "keys": compare(now.auth, wanted.auth, "keys", "name"),
        "auth": [name for name in changed_fields(now.auth, wanted.auth) if name != "keys"],
        "server": tell_changed(now.server, wanted.server),
        "modules": [name for name in changed_fields(now, wanted) if name in MODULES],
        "others": [
            *changed_others(now, wanted, {*sections, *TOLD, *MODULES}),
            *["label_map"] * manager.has_other_labels(),
        ],
        "problems": problems,
    }
    return plan | {"changes": has_changes(plan) or bool(changed_fields(now, wanted))}


MODULES = ("import_modules", "routine_modules")
TOLD = ("model_config_list", "auth", "server")


def changed_others(now: Config, wanted: Config, told: Collection[str]) -> list[str]:
    """The names of the sections in which two configs differ, except those in `told`; for `admin`
    the options that differ, such as `admin.upload`.
    """
    names = [name for name in changed_fields(now, wanted) if name not in told]
    if "admin" not in names or now.admin is None or wanted.admin is None:
        return names
    options = [f"admin.{option}" for option in changed_fields(now.admin, wanted.admin)]
    return [name for name in names if name != "admin"] + options


def has_changes(plan: Mapping[str, Any]) -> bool:
    """Whether any list of a plan, at any depth, is not empty; `problems` do not count."""
    return any(
        has_changes(found) if isinstance(found, dict) else isinstance(found, list) and bool(found)
        for name, found in plan.items()
        if name != "problems"
    )


def compare(
    now: Any,
    wanted: Any,
    section: str,
    name: str,
    tell: Callable[[Any, Any], list[Any]] = changed_fields,
) -> dict[str, Any]:
    """The entries added, removed and changed in a section between two configs; the attribute `name`
    names an entry.

    `tell(now, wanted)` lists the options that differ in a changed entry.
    """
    before, after = (
        {getattr(entry, name): entry for entry in getattr(config, section)}
        for config in (now, wanted)
    )
    both = [name for name in after if name in before and before[name] != after[name]]
    return {
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
        "changed": [{"name": name, "options": tell(before[name], after[name])} for name in both],
    }


def plan_versions(manager: ModelManager, wanted: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """By model the versions that would be loaded, reloaded and unloaded; and all problems."""
    looks = list(look_at(wanted, manager.list_versions))
    problems = [problem for look in looks for problem in look.problems]
    models = {look.model.name: look for look in reversed(looks)}  # the first of a name wins
    plans, served = [], dict[str, list[int]]()
    last_stay = wanted.server.servable_versions_always_present
    for name in sorted(models.keys() | {model.name for model in manager.config.models}):
        look = models.get(name)
        picked = look.picked if look else {}
        if picked is None or look and not picked and last_stay:  # loaded versions stay
            continue
        served |= {name: sorted(picked)} if picked else {}
        found = manager.plan_model(name, look and look.model, picked)
        plans += [{"model": name, **found}] if any(found.values()) else []
    return plans, problems + check_deployments(wanted, served)


# --- what is wrong with a config -----------------------------------------------------------------

Row = tuple[str, str, str, str]  # of what would be served: its kind, its name, what it is, where


def examine(
    server: ModelServer, list_versions: Callable[[str], dict[int, Path]] | None = None
) -> tuple[list[Row], list[str]]:
    """What a config would serve, a row each, and what is wrong with it and with its folders.

    `list_versions` may be that of a reload, whose errors name no folder.
    """
    config, prepared = server.config, server.prepared
    rows, problems, served = check_models(config, list_versions or list_told)
    problems += [ready.problem for ready in prepared.deployments.values() if ready.problem]
    problems += check_modules(config)
    for extension in server.extensions:
        more, wrong = extension.check(server)
        rows += more
        problems += wrong
    for deployment in config.deployments:
        labels = prepared.deployments[deployment.id].labels
        what = f"model {deployment.model}, {len(labels)} classes"
        rows.append(("deployment", deployment.id, what, ""))
    problems += check_deployments(config, served)
    return rows, problems + check_pictures(config, prepared, served)


def check_models(
    config: Config, list_versions: Callable[[str], dict[int, Path]]
) -> tuple[list[Row], list[str], dict[str, list[int]]]:
    """A row for each model, what is wrong with its folders,
    and by name the versions to be served.
    """
    rows, problems = list[Row](), list[str]()
    served: dict[str, list[int]] = {}
    for look in look_at(config, list_versions):
        problems += look.problems
        if look.picked is None:
            continue
        model = look.model
        served[model.name] = list(look.picked)
        numbers, devices = ", ".join(map(str, look.picked)) or "none", ", ".join(model.targets)
        rows.append(("model", model.name, f"version {numbers} on {devices}", model.base_path))
        problems += check_versions(look)
    return rows, list(dict.fromkeys(problems)), served


def list_told(base_path: str) -> dict[int, Path]:
    """As `list_versions`; its error names the folder, too."""
    try:
        return list_versions(base_path)
    except LoadError as error:
        raise LoadError(f"{error}: {base_path}") from None


def check_versions(look: Look) -> list[str]:
    """What is wrong with the versions that a model's policy picks."""
    base_path, tags = look.model.base_path, look.model.tags
    if not look.picked:
        hint = "" if look.folders else explain_no_versions(base_path)
        return [f"{look.path}: model_version_policy picks no version folder in {base_path}{hint}"]
    problems = []
    for version, folder in look.picked.items():
        if find_model_file(folder) is not None:
            continue
        if not any(file.stat().st_size for file in folder.glob("saved_model.pb*")):
            text = f"version {version} holds no saved_model.pb, or an empty one: {folder}"
            problems.append(f"{look.path}: {text}")
            continue
        try:
            tensorflow()
        except LoadError as error:  # the same of each version and model
            problems.append(error.message)
            continue
        try:
            if not set(find_graph(read_graphs(folder), tags).signature_def) - {INIT_SIGNATURE}:
                problems.append(f"{look.path}: version {version} {NO_SIGNATURE}")
        except LoadError as error:
            problems.append(f"{look.path}.tags: version {version}: {error}")
        except Exception as error:
            problems.append(f"{look.path}: version {version}: {explain(error)}")
    return problems


def check_modules(config: Config) -> list[str]:
    """Which modules of operations are not installed; nothing is imported."""
    return [
        f"$.import_modules[{index}]: {name}: no such module is installed"
        for index, name in enumerate(config.import_modules)
        if not is_installed(name)
    ]


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except ValueError:  # no name of a module
        return False


def check_pictures(
    config: Config, prepared: Prepared, served: Mapping[str, list[int]]
) -> list[str]:
    """Which deployments' models take no pictures, or do not tell what their outputs are.

    By their files alone: what of those cannot be read is told when they are loaded.
    """
    problems: list[str] = []
    models = {model.name: model for model in config.models}
    for ready in prepared.deployments.values():
        name, pinned = ready.config.model, ready.config.version
        if ready.problem or not served.get(name):
            continue
        label = models[name].version_labels.get(ready.config.version_label)
        version = pinned if pinned is not None else label or max(served[name])
        try:
            folder = list_versions(models[name].base_path)[version]
            found = read_signatures(folder, models[name].tags)
        except Exception:  # no such version, or no file of a graph: told elsewhere
            continue
        try:
            ready.build_model(found.get("serving_default"), folder)
        except ValueError as error:
            problems += filter(None, [ready.tell(error)])
    return problems


def read_picture(image: Any, limits: Any) -> np.ndarray:
    """A picture given from Python as uint8 RGB [H, W, 3], or RGBA [H, W, 4] if it has alpha.

    Raises OSError for a file that cannot be read, BadRequest for anything that is no picture.
    """
    with image_errors():
        if isinstance(image, str | os.PathLike):
            return routines.decode_image(Path(image).read_bytes(), limits)
        if isinstance(image, bytes | bytearray | memoryview):
            return routines.decode_image(bytes(image), limits)
        if isinstance(image, routines.Image.Image):
            return routines.to_pixels(routines.upright(image), limits)
        if isinstance(image, np.ndarray):
            return routines.decode_array(image, limits)
    kinds = "a path, bytes, a PIL image or a NumPy array"
    raise BadRequest(f"image: expected {kinds}, got {type(image).__name__}")


def use_allowance(
    server: ModelServer, given: Allowance | None
) -> contextlib.AbstractContextManager[Allowance]:
    """The allowance given, which its owner closes; or a new one, closed after the `with`."""
    return contextlib.nullcontext(given) if given else contextlib.closing(server.allowance())


def load_model(
    server: ModelServer, options: ServerConfig, folder: Path, model: ModelConfig
) -> Servable:
    """Load a version for the manager; `options` are the server options at the start."""
    return server.load(LoadRequest(folder, model, options, server.config.import_modules))


def prepare(server: ModelServer, config: Config) -> Prepared:
    """Build what requests need of a config: keys, deployments, routines, extensions' parts.

    Raises ConfigError for anything that the config names and that is missing or wrong.
    """
    refuse_unread(config, server.extensions)
    kinds, families = prepare_routines(server, config)
    deployments = {
        deployment.id: prepare_deployment(deployment, f"$.deployments[{index}]", kinds, families)
        for index, deployment in enumerate(config.deployments)
    }
    of = {extension.name: extension.prepare(server, config) for extension in server.extensions}
    keys = config.auth.keys or (Key("generated", digest(server.key)),)
    ring = KeyRing(keys, of.get("quotas") or nothing)  # without it, no key has a quota
    server.drop("routines", [("routines", name) for name in config.routine_modules])
    return Prepared(ring, deployments, kinds, of)


def prepare_routines(
    server: ModelServer, config: Config
) -> tuple[Mapping[str, type], Mapping[str, Any]]:
    """The routines and the families of a server by name: those of its own modules, then what every
    server has.
    """
    if not (routines or config.routine_modules or config.deployments):
        return {}, {}
    own: dict[str, type] = {}
    families: dict[str, Any] = {}
    for index, name in enumerate(config.routine_modules):
        try:
            with errors_only("the module"):
                kinds, others = import_once(server, name)
        except Exception as error:  # of any kind: the module is not ours
            path = f"$.routine_modules[{index}]"
            raise ConfigError(path, explain(error)) from error
        own |= kinds
        families |= others
    # A server's own families come first, so they are tried first; one of the same name replaces.
    return ChainMap(own, *routines.ROUTINES.maps), {**families, **routines.FAMILIES, **families}


def import_once(server: ModelServer, name: str) -> tuple[dict[str, type], dict[str, Any]]:
    """The routines and families of a module; a .py file runs again only when it has changed."""
    text = Path(name).read_bytes() if name.endswith(".py") else b""
    key, known = ("routines", name), server.kept.get(("routines", name))
    if known is None or known[0] != text:
        known = server.kept[key] = text, routines.import_module(name, Path())
    return known[1]


def refuse_unread(config: Config, extensions: Iterable[Extension]) -> None:
    """Raise ConfigError for a section that no extension here reads, naming the file that would."""
    if not routines and config.deployments:
        needed = f"this needs routines.py beside serving.py{tell_hidden('routines')}"
        raise ConfigError("$.deployments", needed)
    read = {section for extension in extensions for section in extension.sections}
    for section, file in SECTION_FILES.items():
        for path in find_given(config, section.split(".")) if section not in read else ():
            raise ConfigError(path, tell_missing(file) + tell_hidden("serving_extensions"))


def find_given(value: Any, names: Sequence[str], path: str = "$") -> Iterator[str]:
    """The JSON paths at which a config sets a section, named as `["auth", "keys[]", "quota"]`."""
    if not names:
        yield from [path] if value else []
        return
    name, is_array = names[0].removesuffix("[]"), names[0].endswith("[]")
    inner, path = getattr(value, name), f"{path}.{name}"
    items = (
        [(f"{path}[{i}]", item) for i, item in enumerate(inner)] if is_array else [(path, inner)]
    )
    for place, item in items:
        yield from find_given(item, names[1:], place)


def refresh_others(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    """Let extensions bring their servables up to date after the models of a loader pass."""
    for extension in server.extensions:
        extension.refresh(server, outcome, polling)


def describe_briefly(states: Mapping[int, VersionState]) -> str:
    """Version states in a few words: `1 AVAILABLE, 2 LOADING`."""
    words = [f"{version} {state.state}" for version, state in sorted(states.items())]
    return ", ".join(words) or "not loaded"


def describe_states(states: Mapping[int, VersionState]) -> dict[str, Any]:
    """Version states as TensorFlow Serving's GetModelStatusResponse.

    A failed load is LOADING / UNKNOWN, with its reason.
    """
    return {
        "model_version_status": [
            {
                "version": str(version),
                "state": state.state,
                "status": {"error_code": "OK", "error_message": ""}
                if state.servable or not state.error
                else {"error_code": state.error_code, "error_message": state.error},
            }
            for version, state in sorted(states.items(), reverse=True)
        ]
    }


Source = str | os.PathLike | Mapping | Config | ModelServer


def as_server(source: Source) -> ModelServer:
    """A ModelServer as it is; anything else becomes the config of a new one."""
    return source if isinstance(source, ModelServer) else ModelServer(source)


# ==================================================================================================
# HTTP
# In: a WSGI environ, under any prefix, in any Flask site. Out: a Reply.
# A view takes a call, asks the server one question and returns the reply.
# ==================================================================================================


@dataclass(frozen=True)
class Reply:
    """An answer as bytes; Content-Length is written with it."""

    body: bytes = b""
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    stream: Iterable[bytes] | None = None  # in place of the body, when its length is not known

    def with_headers(self, *headers: tuple[str, str]) -> "Reply":
        more = self.headers + headers
        return Reply(self.body, self.status, self.content_type, more, self.stream)

    def head(self) -> list[tuple[str, str]]:
        """The headers to send; a 204 and a stream go without Content-Length."""
        headers = [("Content-Type", self.content_type), *self.headers]
        if self.status != HTTPStatus.NO_CONTENT and self.stream is None:
            headers.append(("Content-Length", str(len(self.body))))
        return headers


def reply(value: Any, status: int = 200) -> Reply:
    """A value as JSON."""
    return Reply(encode_json(value), status)


class Call:
    """A request, as views and readers see it.

    `path` is what follows the mount point `prefix`, still percent-encoded as the client wrote it.
    `prefix` is decoded and follows the environ's SCRIPT_NAME. `site` is the host's request object,
    for its own `authorize` check and its limit for a body.
    """

    def __init__(self, environ: dict[str, Any], path: str, prefix: str = "", site: Any = None):
        self.environ, self.path, self.prefix, self.site = environ, path, prefix, site
        self.method = environ["REQUEST_METHOD"].upper()
        self.request_id = request_id_of(environ.get("HTTP_X_REQUEST_ID"))
        self.caller = Caller()
        self.allowance: Any = None  # for what the body unpacks to; set while the call is answered
        self.turn: Turn = environ.get("serving.turn") or Turn()
        has_left = environ.get("waitress.client_disconnected", stays)
        self.trace = Trace(self.turn.queued, has_left)
        self.trace.by_page = "HTTP_X_SERVING_PAGE" in environ
        self.trace.scheme = environ.get("wsgi.url_scheme", "http")

    def header(self, name: str) -> str:
        """A header's value; empty where there is none."""
        return self.environ.get("HTTP_" + name.upper().replace("-", "_"), "")

    @functools.cached_property
    def headers(self) -> EnvironHeaders:
        return EnvironHeaders(self.environ)

    @property
    def mimetype(self) -> str:
        """The content type, in small letters, without its parameters."""
        return self.environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()

    @functools.cached_property
    def arguments(self) -> dict[str, list[str]]:
        """The URL's `?name=value`, all values of each name. Raises BadRequest for very many."""
        query = self.environ.get("QUERY_STRING", "").encode("latin-1")
        text = query.decode("utf-8", "surrogateescape")
        try:
            return parse_qs(
                text, keep_blank_values=True, errors="surrogateescape", max_num_fields=1000
            )
        except ValueError:
            raise BadRequest("The URL has more than 1000 arguments") from None

    def argument(self, name: str, default: str = "") -> str:
        """The URL's `?name=value`; raises BadRequest if it stands there with several values."""
        value, *others = dict.fromkeys(self.arguments.get(name, [default]))
        if others:
            raise BadRequest(f"{name}: expected one value in the URL, got {1 + len(others)}")
        return value

    @property
    def accepted(self) -> str:
        """The media type of an answer that the client likes best, in small letters; "" for any.

        RFC 9110, 12.5.1: the highest `q` wins, and `q=0` refuses. Among equals the most exact does,
        then the first: Java's client lists image/jpeg after text/html by default.
        """
        listed = parse_accept_header(self.header("Accept"), MIMEAccept)
        kind, quality = max(listed, key=lambda one: one[1], default=("", 0))
        return kind.lower() if quality else ""

    @property
    def url(self) -> str:
        """The URL of the mount point as this client reaches it, without a slash at the end."""
        return get_current_url(self.environ, root_only=True).rstrip("/") + quote(self.prefix)

    @property
    def mount(self) -> str:
        """The path of the mount point, percent-encoded."""
        script = self.environ.get("SCRIPT_NAME", "").rstrip("/")  # Latin-1, as WSGI requires
        return quote(script.encode("latin-1").decode("utf-8", "replace") + self.prefix)

    def read(self, limit: int) -> bytes:
        """The body's bytes, whatever its content type says.

        ServingError 413 beyond `limit` bytes, 411 for a chunked body whose end the WSGI server does
        not mark.
        """
        own = None if self.site is None else self.site.max_content_length
        limit = limit if own is None else min(limit, own)
        announced = self.environ.get("CONTENT_LENGTH") or "0"
        length = int(announced) if announced.isdigit() else 0
        if length > limit:
            text = f"Request body of {length} bytes is over the limit of {limit}"
            raise ServingError(text, status=413)
        is_chunked = not length and self.header("Transfer-Encoding")
        if is_chunked and not self.environ.get("wsgi.input_terminated"):
            raise ServingError(
                "Length Required: send the body with a Content-Length. This WSGI server takes "
                "chunked bodies, but does not set wsgi.input_terminated",
                status=411,
            )
        try:
            if self.site is not None:
                data = body_of(self.site, limit)
            elif length:
                data = self.environ["wsgi.input"].read(length)
            else:
                data = get_input_stream(self.environ, max_content_length=limit + 1).read()
        except (HTTPException, ServingError, MemoryError):
            raise
        except Exception as error:  # each WSGI server raises its own for a body cut short
            raise BadRequest(f"Request body cannot be read: {type(error).__name__}") from error
        if len(data) > limit:
            raise ServingError(f"Request body is over the limit of {limit} bytes", status=413)
        if len(data) < length:
            raise ClientDisconnected
        return data


def body_of(site: Request, limit: int) -> bytes:
    """The body of a site's request, read by Flask, which keeps it for the site's hooks, those
    before a view and those after it.

    Raises ServingError when a hook has read it and Flask has kept nothing: after a parsed form or
    with `cache=False`; HTTPException for a body in chunks of more than `limit` bytes.
    """
    was_read = "stream" in vars(site)
    if not was_read:
        site.max_content_length = limit + 1
    data = site.get_data()
    is_chunked = "chunked" in site.headers.get("Transfer-Encoding", "").lower()
    if was_read and not data and (site.content_length or is_chunked):
        text = (
            "A hook of this site has already read the request's body, which can be read only "
            "once. Let the hook skip these URLs, or call request.get_data() in it before "
            "request.data, form, files or stream: then Flask keeps the body"
        )
        logger.error("%s", text)
        raise ServingError(text)
    return data


@dataclass(frozen=True)
class Envelope:
    """How the JSON at a URL is wrapped: a handler's input and result, and the bodies of errors.

    `error(text, status, request_id)` returns the body of an error. `unwrap(body)` returns what the
    handler is called with, or raises BadRequest; `wrap(result)` returns the body of the answer.
    """

    error: Callable[[str, int, str], Any]
    unwrap: Callable[[Any], Any] = lambda body: body
    wrap: Callable[[Any], Any] = lambda result: result


def tell_in_full(text: str, status: int, request_id: str) -> dict[str, Any]:
    """An error's body in Datature's form: with the status also by name."""
    known = HTTPStatus(min(status, 500)) if status in list(HTTPStatus) else None
    name = known.phrase.title().replace(" ", "") if known else "Error"
    return {"error": text, "status": name, "code": status, "request_id": request_id}


BARE = Envelope(lambda text, status, request_id: {"error": text})  # TensorFlow Serving's
FULL = Envelope(tell_in_full)
HUB = Envelope(  # CellStrat's
    error=lambda text, status, request_id: {
        "statusCode": status,
        "body": {"error": text, "request_id": request_id},
    },
    wrap=lambda result: {"statusCode": 200, "body": {"output": result}},
)


def enveloped(envelope: Envelope) -> Callable[[Callable], Callable]:
    """A decorator: the function's URL answers in this envelope unless the config names another."""

    def mark(function: Callable) -> Callable:
        function.envelope = envelope  # type: ignore[attr-defined]
        return function

    return mark


hub_handler = enveloped(HUB)


def to_reply(error: BaseException, call: Call, envelope: Envelope) -> Reply:
    """Answer an error in the envelope of its URL: the one place that turns errors into HTTP.

    The text of an unexpected error goes into the log alone. Never raises, even if the error's own
    attributes are broken.
    """
    try:
        return tell_error(error, call, envelope)
    except Exception as failed:
        return tell_unexpected(failed, call, FULL)


def tell_error(error: BaseException, call: Call, envelope: Envelope) -> Reply:
    headers: Mapping[str, str] = {}
    if isinstance(error, MemoryError):
        log_failed(call, "ran out of memory", error)
        error = ServingError(
            "The server has no memory for this request now: try again in a "
            "moment, or with less at once",
            "UNAVAILABLE",
        )
    if isinstance(error, ServingError):
        text, status, headers = error.message, int(error.status), error.headers
        if status == HTTPStatus.NO_CONTENT:
            return Reply(status=status)
        if status == HTTPStatus.SERVICE_UNAVAILABLE:
            headers = {"Retry-After": "1", **headers}
    elif isinstance(error, HTTPException):
        if error.response is not None:  # the response of a host site's own check
            answer = error.get_response()
            own = ("Content-Type", "Content-Length")
            others = sendable(pair for pair in answer.headers.items() if pair[0] not in own)
            kind = answer.content_type or ""
            return Reply(answer.get_data(), answer.status_code, kind, others)
        text, status = error.description or error.name, error.code or 500
        headers = dict(pair for pair in error.get_headers() if pair[0] != "Content-Type")
    else:
        return tell_unexpected(error, call, envelope)
    if not isinstance(text, str):
        raise TypeError(f"the text of {type(error).__name__} is {type(text).__name__}")
    text = text.encode("utf-8", "replace").decode()  # a quoted request may hold lone surrogates
    status = status if 400 <= status <= 599 else 500
    body = envelope.error(text, status, call.request_id)
    return reply(body, status).with_headers(*sendable(headers.items()))


def log_failed(call: Call, how: str, error: BaseException) -> None:
    path = printable(call.path)
    logger.error("%s: %s %s %s", call.request_id, call.method, path, how, exc_info=error)


def tell_unexpected(error: BaseException, call: Call, envelope: Envelope) -> Reply:
    """Answer an unexpected error with a fixed text; its reason goes into the log alone."""
    log_failed(call, "failed", error)
    text = f"Internal server error: see request {call.request_id} in the server's log"
    return reply(envelope.error(text, 500, call.request_id), 500)


HEADER = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
OF_A_BODY = ("content-length", "content-type", "trailer")  # the server itself sets these


def sendable(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Those of an error's headers that can be sent; the log names the others."""
    return tuple((name, value) for name, value in headers if is_sendable(name, value))


def is_sendable(name: Any, value: Any) -> bool:
    """Whether a header is one line of Latin-1 and not one that the server sets itself."""
    if (
        isinstance(name, str)
        and isinstance(value, str)
        and HEADER.fullmatch(name)
        and not is_hop_by_hop(name)
        and name.lower() not in OF_A_BODY
        and re.fullmatch(r"[\t\x20-\x7e\xa0-\xff]*", value)
    ):
        return True
    logger.error("The header %.100r of an error cannot be sent, and is left out", name)
    return False


def is_operators(error: BaseException) -> bool:
    """Whether an exception is Ctrl-C, which ends the process and no request."""
    in_main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and in_main


# utf-8 is no coding, but some clients send it where they mean a charset
CODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate", "identity": "", "utf-8": ""}


def read_body(
    server: ModelServer, call: Call, limit: int | None = None, lenient: bool = False
) -> bytes:
    """The request's body whatever its content type says, unpacked if it is gzip or deflate.

    ServingError 413 beyond `limit` bytes, 415 for other codings; `lenient` takes those as plain.
    """
    limits = server.config.server
    said = call.header("Content-Encoding").strip().lower()
    known: str | None = ""
    if said and lenient:  # as TensorFlow Serving, which only looks for the word
        known = next((one for one in ("gzip", "deflate") if one in said), "")
    elif said and (known := CODINGS.get(said)) is None:
        text = f"Content-Encoding: expected gzip, deflate or identity, got {said[:60]!r}"
        raise ServingError(text, status=415, headers={"Accept-Encoding": "gzip, deflate"})
    data = call.read(limit or server.max_request_bytes)
    return unpack_body(data, known, limits.max_unpacked_bytes, call.allowance) if known else data


PLAIN_BYTES = 2000  # a JSON body from this size on is searched for large arrays


def view_infer(server: ModelServer, call: Call, model: str, verb: str, **which: Any) -> Reply:
    body = read_body(server, call, lenient=True)
    about = {**which, "allowance": call.allowance, "trace": call.trace}
    if verb != "predict":
        return reply(getattr(server, verb)(model, parse_json(body), **about))
    wanted: list[str] = []
    if call.environ.get("QUERY_STRING"):
        wanted = [name for value in call.arguments.get("outputs", ()) for name in value.split(",")]

    def infer(value: Any) -> dict[str, Any]:
        return server.predict(model, value, outputs=wanted, **about)

    if is_plain_predict(call, body):
        return reply(infer(parse_json(body)))
    answer = infer_any(call, body, infer, server.extensions)
    return first(extension.write(call, answer) for extension in server.extensions) or reply(answer)


def infer_any(
    call: Call, body: bytes, infer: Callable[[Any], dict[str, Any]], extensions: Sequence[Extension]
) -> dict[str, Any]:
    """The answer to a predict body: in a format that an extension reads, as JSON with large arrays,
    or as plain JSON.
    """
    value = first(extension.read(call, body) for extension in extensions)
    large = read_large_json(body) if value is None and len(body) >= PLAIN_BYTES else None
    answer = infer_large(large, infer) if large is not None else None
    if answer is None:
        answer = infer(parse_json(body) if value is None else value)
    return answer


def infer_large(value: Any, infer: Callable[[Any], dict[str, Any]]) -> dict[str, Any] | None:
    """The answer; None for a wrong body, which the plain path then reads again for its error text.

    A failed model is not run again; one whose output JSON cannot hold runs twice.
    """
    try:
        return infer(value)
    except BadRequest:
        return None
    except ServingError as error:
        if error.code != "UNIMPLEMENTED":  # of a dtype that JSON cannot spell
            raise
        return None


# what curl, requests, browsers' fetch and axios send by themselves, and who says so
TAKE_JSON = {"*/*", "application/json", "application/json, text/plain, */*"}


def is_plain_predict(call: Call, body: bytes) -> bool:
    """Whether a predict request is a small JSON object and asks for no other form of answer."""
    return (
        len(body) < PLAIN_BYTES
        and body[:1] == b"{"
        and "HTTP_X_TENSOR_SHAPE" not in call.environ
        and "HTTP_X_TENSOR_DTYPE" not in call.environ
        and call.environ.get("HTTP_ACCEPT", "*/*") in TAKE_JSON
    )


NO_BODY = (
    "the body is empty: expected the bytes of a picture (Content-Type: image/jpeg), a form "
    "(multipart/form-data) with a file, or JSON such as "
    '{"image_type": "base64", "data": "..."}'
)


SAMPLE = re.compile(r"sample:(?P<name>.+)|\{\{\s*(?P<braced>[^{}]+?)\s*\}\}")
SAMPLE_FILES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MOST_SAMPLES = 24


def list_samples(server: ModelServer, deployment: Deployment) -> list[Path]:
    """The picture files in `samples`, a folder beside the versions of a deployment's model."""
    models = server.config.models
    base = next((one.base_path for one in models if one.name == deployment.model), None)
    files = sorted(Path(base).glob("samples/*")) if base else []
    found = [path for path in files if path.suffix.lower() in SAMPLE_FILES and is_plain(path.name)]
    return found[:MOST_SAMPLES]


def with_samples(server: ModelServer, deployment: Deployment, body: Any) -> Any:
    """A request whose `data` names samples, `sample:0.jpg` or `{{0}}`, with those pictures.

    Raises BadRequest for a name that no sample has.
    """
    data = body.get("data") if isinstance(body, dict) else None
    named = data if isinstance(data, list) else [data]
    if not any(isinstance(one, str) and SAMPLE.fullmatch(one) for one in named):
        return body
    files = list_samples(server, deployment)
    found = []
    for one in named:
        match = SAMPLE.fullmatch(one) if isinstance(one, str) else None
        if match is None:
            raise BadRequest("data: names of samples cannot be mixed with other pictures")
        name = match["name"] or match["braced"]
        path = next((path for path in files if name in (path.name, path.stem)), None)
        if path is None:
            there = ", ".join(path.name for path in files) or "none"
            raise BadRequest(f"data: there is no sample '{name[:60]}'; there are: {there}")
        found.append(base64.b64encode(path.read_bytes()).decode())
    return {**body, "image_type": "base64", "data": found if isinstance(data, list) else found[0]}


def read_image(
    server: ModelServer, call: Call, deployment: Deployment
) -> tuple[np.ndarray | list[np.ndarray], Any]:
    """The picture, or a list of several, and the routines of a /predict request: JSON, multipart,
    or the picture or .npy array itself; JSON may name a sample of the deployment's.
    """
    with image_errors():
        frame = routines.read_frame(call.argument("frame") or None)
        limits = image_limits(server.config, call.allowance.take, frame=frame, alpha=True)
        # nested lists take some 4 characters a number
        most = min(server.max_request_bytes, 4 * limits.max_bytes)
        body = read_body(server, call, most)
        if not body.strip():
            raise routines.ImageError(NO_BODY)
        if routines.OBJECT_START.match(body):
            value = with_samples(server, deployment, parse_json(body))
            pictures, chain = routines.read_request(value, limits)
        elif call.mimetype == "multipart/form-data":
            pictures, chain = read_form(call, body, limits)
        elif routines.reader_of(body, call.mimetype) or not MAY_BE_JSON.match(body):
            pictures, chain = read_sent(call, body, limits), None
        else:
            pictures, chain = routines.read_request(parse_json(body), limits)
    given = [one for one in (read_query_routines(call), chain) if one not in (None, [])]
    if given[1:]:
        raise BadRequest("routines: expected in the body or in the URL, got both")
    return pictures, given[0] if given else []


def read_sent(call: Call, body: bytes, limits: Any) -> np.ndarray | list[np.ndarray]:
    """The picture, or array of several, that the body consists of; an error hints at `curl -d`,
    which damages bytes.
    """
    try:
        return routines.read_bytes(body, limits, call.mimetype)
    except routines.ImageError as error:
        if call.mimetype != "application/x-www-form-urlencoded" or error.too_large:
            raise
        raise routines.ImageError(f"{error}; with curl use --data-binary") from None


class FormParser(MultiPartParser):
    """Decodes fields as Latin-1, which keeps every byte: a picture may come as a plain field."""

    def get_part_charset(self, headers: Headers) -> str:
        return "latin-1"


def parse_form(call: Call, body: bytes) -> tuple[MultiDict, MultiDict]:
    """The fields of a form, as Latin-1, and its files, which the caller closes. Raises BadRequest,
    and ServingError 413 for too many parts.
    """
    boundary = parse_options_header(call.environ["CONTENT_TYPE"])[1].get("boundary", "")
    if not boundary:
        raise BadRequest("multipart: expected a boundary in the content type, got none")
    try:
        parser = FormParser(max_form_parts=1000)
        return parser.parse(io.BytesIO(body), boundary.encode(), len(body))
    except RequestEntityTooLarge:  # by its parts
        raise ServingError("multipart: the form has more than 1000 parts", status=413) from None
    except ValueError:
        text = "the body is not a whole form with the boundary of the content type"
        raise BadRequest(f"multipart: {text}") from None


def read_form(call: Call, body: bytes, limits: Any) -> tuple[np.ndarray | list[np.ndarray], Any]:
    """The picture and the routines of a form with one file, under any field name; a list of
    pictures for a form with several files.
    """
    fields, files = parse_form(call, body)
    try:
        chain = files["routines"].read() if "routines" in files else b""
        sent = find_files(fields, files)
        if not sent:
            got = ", ".join(map(str, (*fields, *files))) or "no field"
            raise BadRequest(f"multipart: expected a picture as a file, got: {got}")
        if fields.get("frame"):
            limits = dataclasses.replace(limits, frame=routines.read_frame(fields["frame"]))
        pictures = read_files(sent, limits)
    finally:
        for _, file in files.items(multi=True):
            file.close()
    return pictures, parse_routines(chain or fields.get("routines", "").encode("latin-1"), "form")


def find_files(fields: MultiDict, files: MultiDict) -> list[FileStorage]:
    """The pictures of a form: its files, without empty file inputs, which browsers send too; if it
    has no files, the fields `image` and `file`.
    """
    sent = [file for name, file in files.items(multi=True) if name != "routines"]
    named = [
        value.encode("latin-1") for name in ("image", "file") for value in fields.getlist(name)
    ]
    filled = [file for file in sent if file.filename or file.stream.read(1)]
    for file in filled:
        file.stream.seek(0)
    return filled or [FileStorage(io.BytesIO(value)) for value in named if value]


def read_files(files: Sequence[Any], limits: Any) -> np.ndarray | list[np.ndarray]:
    """The picture of a lone file, or those of several."""

    def read(file: Any, limits: Any) -> Any:
        picture = routines.read_bytes(file.read(), limits, file.mimetype)
        if isinstance(picture, list) and files[1:]:
            raise routines.ImageError("expected one picture, got an array of several")
        return picture

    return routines.read_many(files, limits, read, "file") if files[1:] else read(files[0], limits)


# a body that does not match is taken for a picture
MAY_BE_JSON = re.compile(rb"\s*(?:[\[\"0-9]|-(?!-)|true|false|null|NaN|Inf|\xef\xbb\xbf)")


def read_query_routines(call: Call) -> Any:
    """The routines in a URL's `?routines=[...]`; raises BadRequest that names them."""
    return parse_routines(call.argument("routines").encode("utf-8", "surrogateescape"), "URL")


def parse_routines(text: bytes, where: str) -> Any:
    """The routines in a JSON text, none for an empty one; raises BadRequest that says where."""
    try:
        return parse_json(text or b"[]")
    except BadRequest as error:
        raise BadRequest(f"routines in the {where}: {error.message}") from None


DRAWN = {"image/png": "png", "image/jpeg": "jpeg"}


def read_which(call: Call) -> dict[str, Any]:
    """The version that a /predict URL asks for: `?version=2` or `?version_label=canary`."""
    version, label = call.argument("version"), call.argument("version_label")
    if version and label:
        raise BadRequest("expected version or version_label, got both")
    if label:
        return {"version": None, "version_label": label}
    if not version:
        return {}
    if not re.fullmatch("[0-9]{1,30}", version):
        raise BadRequest(f"version: expected a number, got '{version[:40]}'")
    return {"version": read_version(version), "version_label": None}


def view_predict_image(server: ModelServer, call: Call, deployment: str | None = None) -> Reply:
    ready = find_deployment(server, deployment)
    call.trace.deployment = ready.config.id
    image, chain = read_image(server, call, ready.config)
    form = DRAWN.get(call.accepted) or call.argument("format", "json")
    if form not in ("json", "coco", *DRAWN.values()):
        raise BadRequest(f"format: expected json, coco, png or jpeg, got '{form[:40]}'")
    if isinstance(image, list) and form in DRAWN.values():
        raise BadRequest(f"format: expected json or coco for several pictures, got {form}")
    warnings: list[str] = []
    answer = answer_pictures(
        server,
        image,
        ready.config.id,
        chain,
        form,
        call.allowance,
        call.trace,
        warnings.append,
        read_which(call),
    )
    if isinstance(answer, bytes):
        replied = Reply(answer, content_type=f"image/{form}").with_headers(*told_in_head(warnings))
    else:
        replied = reply(answer)
    if ready.config.version_tag:
        replied = replied.with_headers(("X-Version-Tag", ready.config.version_tag))
    return replied


MOST_HEADER = 4000  # characters of one header; proxies allow 8,000 for all of them


def told_in_head(warnings: Sequence[str]) -> list[tuple[str, str]]:
    """The X-Warnings header of a drawn picture: a JSON list in ASCII of as many as fit."""
    kept = list(warnings)
    while kept and len(json.dumps(kept)) > MOST_HEADER:
        kept.pop()
    return [("X-Warnings", json.dumps(kept))] if kept else []


def view_classes(server: ModelServer, call: Call, deployment: str | None = None) -> Reply:
    ready = find_deployment(server, deployment)
    labels = ready.labels
    if ready.config.label_map is None:
        with lease(server, ready.config, call.trace) as (_, servable):
            try:
                labels = ready.labels_in(servable.folder)
            except ValueError as error:
                raise refusal_of(ready, error) from None
    return reply(
        {str(number): {"id": number, "name": name} for number, name in sorted(labels.items())}
    )


def view_status(server: ModelServer, call: Call, model: str, **which: Any) -> Reply:
    return reply(server.status(model, **which))


def view_metadata(server: ModelServer, call: Call, model: str, **which: Any) -> Reply:
    return reply(server.metadata(model, **which, trace=call.trace))


def view_models(server: ModelServer, call: Call) -> Reply:
    models = [model for model in server.models() if may_see_model(server, call, model["name"])]
    return reply({"models": models})


def view_nameless(server: ModelServer, call: Call, **_: Any) -> Reply:
    raise BadRequest("Missing model name in request.")


def view_config(server: ModelServer, call: Call) -> Reply:
    states = server.start().config_status()
    return reply(
        {name: found for name, found in states.items() if may_see_model(server, call, name)}
    )


def view_reload(server: ModelServer, call: Call) -> Reply:
    if is_asked(call, "dry_run"):
        status, body = server.plan_reload()
    else:
        status, body = server.reload(call.trace.remaining())
    return reply(body, status)


def is_asked(call: Call, name: str) -> bool:
    """Whether the URL says `?name=1`; raises BadRequest for what is neither yes nor no."""
    given = call.argument(name, "0").lower()
    if given not in ("0", "1", "false", "true"):
        raise BadRequest(f"{name}: expected 1 or 0, got '{given[:40]}'")
    return given in ("1", "true")


def view_live(server: ModelServer, call: Call) -> Reply:
    return reply({"status": "live", "live": True})  # the second is of KServe V2


def view_ready(server: ModelServer, call: Call) -> Reply:
    if waiting := server.readiness():
        which = ", ".join(waiting)
        if server.config.auth.protect == "all":  # names are only for callers with a key
            which = f"{len(waiting)} missing; see the server's log"
        raise ServingError(f"Not ready: {which}", "UNAVAILABLE")
    return reply({"status": "ready", "ready": True})


def may_see_model(server: ModelServer, call: Call, model: str) -> bool:
    """Whether the caller may know of a model: its key is for a deployment of that model."""
    return call.caller.may_see(*deployments_of(server, model))


def deployments_of(server: ModelServer, model: str) -> list[str]:
    return [deployment.id for deployment in server.config.deployments if deployment.model == model]


@dataclass(frozen=True)
class Route:
    """A row of the URL table.

    In a `url` such as `/v1/models/{model}[/versions/{version}|/labels/{label}]`, a name in braces
    is an argument of the view, brackets hold an optional part, parentheses a required one, `|`
    separates alternatives, and a part in single quotes is case-sensitive. `guard` says who may
    call: `open` anybody; `shared` anybody, or with `protect: all` only callers with a key; `key`
    only callers with a key; `own` only callers with a key of the config, whatever a host site's
    check says; `admin` as `own`, and the view asks that the key is marked admin. A route that
    `lists` is open to every key and shows what that key is for. A `free` route only reports state:
    no quota counts it. `line` names the queue in which requests wait for a thread, by default that
    of the model or handler reached; a thread is kept free for `health` and `state`.
    """

    methods: tuple[str, ...]
    url: str
    view: Callable[..., Reply]
    guard: str
    doc: str = ""  # what the route answers, for the OpenAPI document
    lists: bool = False
    free: bool = False
    line: str = ""
    infers: bool = False  # runs a model or a handler, so that /stats counts it
    probe: bool = False  # asked every few seconds: logged only with `log_probes`

    @functools.cached_property
    def pattern(self) -> re.Pattern:
        """Matches a whole undecoded path, ignoring case, as TensorFlow Serving's grammar does."""
        return re.compile("".join(map(pattern_of, PARTS.split(self.url))), re.IGNORECASE)

    @property
    def name(self) -> str:
        """What the route is called in metrics and logs."""
        return self.view.__name__.removeprefix("view_")


OWN_KEYS = ("own", "admin")  # guards of routes for callers with a key of the config alone
NEED_KEY = ("key", *OWN_KEYS)
PARTS = re.compile(r"(\{\w+\}|'\w+'|[\[\]()|])")  # of a route's URL
BRACES = re.compile(r"\{(\w+)\}")
VERBS = ("predict", "classify", "regress")
PLACEHOLDERS = {
    "version": "[0-9]+",
    "verb": f"(?-i:{'|'.join(VERBS)})",
    "deployment": "(?!deployments/)[^/:]+",  # /deployments/classes tells of one called classes
}
GROUPS = {"[": "(?:", "]": ")?", "(": "(?:", ")": ")", "|": "|"}


def pattern_of(part: str) -> str:
    """The regular expression of a part of a route's URL."""
    if part.startswith("{"):
        name = part[1:-1]
        return f"(?P<{name}>{PLACEHOLDERS.get(name, '[^/:]+')})"
    if part.startswith("'"):
        return f"(?-i:{part[1:-1]})"
    return GROUPS.get(part) or re.escape(part)


def spellings(url: str) -> list[str]:
    """Each way to write a route's URL, with names still in braces; the shortest comes last."""
    group = re.search(r"([\[(])([^\[\]()]*)[\])]", url)
    if group is None:
        return [url.replace("'", "")]
    ways = group[2].split("|") + ([""] if group[1] == "[" else [])
    before, after = url[: group.start()], url[group.end() :]
    return [spelled for way in ways for spelled in spellings(before + way + after)]


def route(
    methods: str, url: str, view: Callable[..., Reply], guard: str, doc: str = "", **options: Any
) -> Route:
    """A row of the URL table; `doc` says what it answers, for the OpenAPI document.

    Raises ValueError for an unknown guard, which would leave the route open.
    """
    if guard not in ("open", "shared", *NEED_KEY):
        raise ValueError(f"{url}: guard: expected open, shared, key, own or admin, got '{guard}'")
    return Route(tuple(methods.split()), url, view, guard, doc, **options)


WHICH = "[/versions/{version}|/labels/{label}]"
MODEL = "(/v1/models/{model}|/model-serving/{alias})" + WHICH

ROUTES: tuple[Route, ...] = (  # the first match answers
    route("POST", MODEL + ":{verb}", view_infer, "shared", "What a model answers", infers=True),
    route(
        "GET", MODEL + "/'metadata'", view_metadata, "shared", "A version's signatures", free=True
    ),
    route(
        "GET",
        MODEL + "[/metadata]",
        view_status,
        "shared",
        "The states of a model's versions",
        free=True,
        line="state",
    ),
    route(
        "GET",
        "/v1/models",
        view_models,
        "shared",
        "All models and their versions' states",
        lists=True,
        line="state",
    ),
    route(
        "GET",
        "/v1/models" + WHICH + "[/metadata]",
        view_nameless,
        "shared",
        "Refused: a model's name is missing",
        lists=True,
        line="state",
    ),
    route(
        "GET",
        "/v1/config",
        view_config,
        "shared",
        "The states of all models, also of removed ones",
        lists=True,
        line="state",
    ),
    route(
        "POST", "/v1/config/reload", view_reload, "shared", "Read config and version folders now"
    ),
    route(
        "GET HEAD",
        "(/livez|/v2/health/live)",
        view_live,
        "open",
        "The process is up",
        line="health",
        probe=True,
    ),
    route(
        "GET HEAD",
        "(/readyz|/v2/health/ready)",
        view_ready,
        "open",
        "Everything in the config is ready",
        line="health",
        probe=True,
    ),
    route(
        "POST",
        "[/{deployment}]/predict",
        view_predict_image,
        "key",
        "Annotations of a picture",
        infers=True,
    ),
    route("GET", "[/{deployment}]/classes", view_classes, "key", "The label map of a deployment"),
)


def url_of(view: Callable[..., Reply], rows: Iterable[Route] = ROUTES, **names: str) -> str:
    """The shortest URL of a view below the mount point, with `names` filled in for the braces."""
    ways = [url for row in rows if row.view is view for url in spellings(row.url)]
    fitting = [url for url in ways if set(BRACES.findall(url)) == set(names)]
    return BRACES.sub(
        lambda name: quote(names[name[1]], safe="", errors="surrogateescape"), min(fitting, key=len)
    )


# All paths below these belong to the server: those that no row of the table matches are answered
# as TensorFlow Serving answers unknown paths.
OWN = ("/v1/{rest}", "/V1/{rest}", "/model-serving/{rest}")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")


class RestConverter(BaseConverter):
    """The rest of a path as it is, empty, with doubled slashes or line breaks."""

    regex = r"[\s\S]*?"
    part_isolating = False


def raw_path(environ: Mapping[str, Any], decoded: str) -> str:
    """The request's path below the mount point as the client wrote it: `a%2Fb` and `a/b` are
    different models.

    WSGI decodes PATH_INFO; waitress keeps the original in REQUEST_URI, gunicorn in RAW_URI.
    """
    written = path_of(environ.get("REQUEST_URI") or environ.get("RAW_URI") or "")
    # The path as written is right if it decodes to `decoded`. It does not if the mount point comes
    # before it, or if a site's middleware or a proxy has removed a prefix.
    if written == decoded or written.startswith("/") and unquote(written) == decoded:
        return written
    whole = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    whole = whole.encode("latin-1").decode("utf-8", "replace")
    mount = whole[: len(whole) - len(decoded)]
    if mount.endswith("/"):  # a doubled slash: Flask accepts it, TensorFlow Serving does not
        return whole
    for match in re.finditer("/", written[: 3 * len(mount) + 1]):
        above, below = unquote(written[: match.start()]), written[match.start() :]
        # a proxy has taken the first part of the mount point off: X-Forwarded-Prefix
        if mount.endswith(above) and unquote(below) == decoded:
            return below
        if above != mount:
            continue
        whole = unquote(below)
        if whole != (rest := whole.removesuffix(decoded)) and rest.strip("/"):
            break
        return below
    return quote(decoded, safe="/:@!$&'()*+,;=~")


def path_of(uri: str) -> str:
    """The undecoded path of a request target, which is a path or a whole URL."""
    path = uri.partition("?")[0]
    return path if path.startswith("/") else re.sub(r"^\w+://[^/]*", "", path)


class Found(typing.NamedTuple):
    """What a URL selects: a row of the table, the view's arguments, and the envelope of errors."""

    route: Route
    arguments: dict[str, Any]
    name: str  # in metrics
    envelope: Envelope
    deployment: str = ""  # the deployment id that the URL has in place of a model's name


@functools.cache
def routes_of(extensions: tuple[Extension, ...]) -> tuple[Route, ...]:
    """The one URL table: the core's rows, then those of extensions."""
    return (*ROUTES, *(row for extension in extensions for row in extension.routes))


OF_TF_SERVING = "/v1/"


@functools.lru_cache(512)  # `find_known` bypasses the cache for long paths
def match_route(extensions: tuple[Extension, ...], method: str, path: str) -> Found | None:
    """The first row that matches; raises BadRequest for a version over 63 bits.

    HEAD matches what GET does (RFC 9110, 9.1), but not at TensorFlow Serving's URLs, as there.
    """
    is_head = method == "HEAD" and not path.lower().startswith(OF_TF_SERVING)
    for route in routes_of(extensions):
        match = None
        if method in route.methods or is_head and "GET" in route.methods:
            match = route.pattern.fullmatch(path)
        if match is None:
            continue
        arguments: dict[str, Any] = {
            name: unquote(text, errors="surrogateescape")
            for name, text in match.groupdict().items()
            if text
        }
        if "version" in arguments:
            arguments["version"] = read_version(arguments["version"])
        name = arguments.get("verb") or route.name
        return Found(route, arguments, name, FULL if route.guard in NEED_KEY else BARE)
    return None


def is_taken(extensions: tuple[Extension, ...], path: str) -> bool:
    """Whether a path is the server's own, so that no handler can have it: a URL of the table, or
    one whose first segment begins a URL of the table.
    """
    rows = routes_of(extensions)
    return first_name(path).lower() in taken_names(extensions) or any(
        row.pattern.fullmatch(path) for row in rows
    )


@functools.cache
def taken_names(extensions: tuple[Extension, ...]) -> set[str]:
    """The names that the server's own URLs begin with, in small letters."""
    urls = [*OWN, *(url for row in routes_of(extensions) for url in spellings(row.url))]
    return {first_name(url).lower() for url in urls} - {"{deployment}"}


def first_name(path: str) -> str:
    return path.split("/", 2)[1]


def read_version(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    if len(digits) > 19 or int(digits) >= 2**63:
        raise BadRequest(f"Failed to convert version: {digits[:40]} to numeric.")
    return int(digits)


def find_known(server: ModelServer, method: str, path: str) -> Found | None:
    """The route or handler that a method and an undecoded path select; None for no match.

    Raises BadRequest for a version that is out of range.
    """
    match = match_route if len(method + path) < 200 else match_route.__wrapped__
    known = match(server.extensions, method, path)
    if known is not None:
        return use_deployment(server, known) if "alias" in known.arguments else known
    return first(extension.find(server, method, path) for extension in server.extensions)


def find_view(server: ModelServer, method: str, path: str) -> Found:
    """As `find_known`, but raises for no match: BadRequest, or 405 for one of our own URLs."""
    if (known := find_known(server, method, path)) is not None:
        return known
    others = [route for route in routes_of(server.extensions) if route.pattern.fullmatch(path)]
    if others and all(route.guard in NEED_KEY for route in others):  # not TensorFlow Serving's URL
        allow = {"Allow": ", ".join(method for route in others for method in route.methods)}
        text = f"Method {method} is not allowed here: {path[:200]}"
        raise ServingError(text, "INVALID_ARGUMENT", HTTPStatus.METHOD_NOT_ALLOWED, allow)
    raise BadRequest(f"Malformed request: {method} {path}")


def use_deployment(server: ModelServer, known: Found) -> Found:
    """Replace the alias of a /model-serving URL by the model and version of that deployment.

    An alias that is no deployment's id is a model's name.
    """
    others = dict(known.arguments)
    alias = others.pop("alias")
    deployment = next((d for d in server.config.deployments if d.id == alias), None)
    if deployment is None:
        return known._replace(arguments=others | {"model": alias})
    own = {"version": deployment.version, "label": deployment.version_label}
    if not {"version", "label"} & others.keys():
        others |= {name: value for name, value in own.items() if value is not None}
    return known._replace(arguments=others | {"model": deployment.model}, deployment=alias)


def reached_by(server: ModelServer, found: Found) -> str:
    """The model or handler that a URL reaches, itself or by a deployment; else the view's name."""
    arguments = found.arguments
    if "model" in arguments:
        return arguments["model"]
    if "endpoint" in arguments:
        return arguments["endpoint"].path
    deployment = deployment_of(server, found)
    return deployment.model if deployment else found.name


def deployment_of(server: ModelServer, found: Found) -> Deployment | None:
    """The deployment that a URL names, or that /predict means; None if there is none."""
    if found.route.guard != "key" or found.route.lists or "endpoint" in found.arguments:
        return None
    default = next(iter(server.config.default_deployment), "")
    wanted = found.arguments.get("deployment") or default
    return next((d for d in server.config.deployments if d.id == wanted), None)


def called_by(server: ModelServer, found: Found | None) -> list[tuple[str, str]]:
    """Kind and name of the model, deployment or handler that a URL calls, those that exist, and of
    all that are called.
    """
    if found is None or not found.route.infers:
        return []
    name, deployment = reached_by(server, found), deployment_of(server, found)
    kind = "handler" if "endpoint" in found.arguments else "model"
    called = [("all", "")]
    if kind == "handler" or name in server.manager.available:
        called.append((kind, name))
    if deployment:
        called.append(("deployment", deployment.id))
    return called


@dataclass(frozen=True)
class Door:
    """A mounted server, and the host site's own check in place of keys, if it has one."""

    server: ModelServer
    check: Callable[[Any], Any] | None = None


def authorize(door: Door, call: Call, found: Found) -> Caller:
    """The caller of a URL; raises ServingError for one who may not call it."""
    server, guard = door.server, found.route.guard
    if guard == "open" or not needs_key(server, found.route):
        return Caller()
    if door.check is not None:
        caller = ask_site(door.check, call)
        if guard not in OWN_KEYS:
            return caller
    known = first(extension.identify(server, call, found) for extension in server.extensions)
    if known is not None:
        return known
    reached = list_reached(server, found)
    return server.identify(call.headers, reached, is_counted(call, found.route))


def is_counted(call: Call, route: Route) -> bool:
    """Whether a quota counts a call: not a `free` route, and not a reload with `dry_run`."""
    dry_run = route.view is view_reload and call.argument("dry_run").lower() in ("1", "true")
    return not (route.free or dry_run)


def needs_key(server: ModelServer, route: Route) -> bool:
    """Whether a route needs a key; one that lists what is served needs it only if the config has
    deployments or handlers, which need keys themselves.
    """
    if server.config.auth.protect == "all":
        return True
    if route.guard == "key" and route.lists and "{" not in route.url:
        return bool(server.config.deployments or list_urls(server))
    return route.guard in NEED_KEY


def ask_site(check: Callable[[Any], Any], call: Call) -> Caller:
    """The caller by the host site's check: True or a name lets the call in.

    False, None and "" are answered 401; any other value is the site's mistake, 500.
    """
    found = check(call.site)
    if found is True:
        return Caller("site")
    if found is None or found is False or found == "" and isinstance(found, str):
        raise unauthorized("This site has refused the request; you may have to log in", "")
    if isinstance(found, str) and found.isprintable():
        return Caller(found[:100])
    if inspect.iscoroutine(found):
        found.close()  # else Python warns that the coroutine was never awaited
    text = (
        f"authorize= has returned {type(found).__name__}: it must return True or a printable "
        "name to let the request in, False or None to answer 401 (it may also flask.abort)"
    )
    logger.error("%s", text)
    raise ServingError(text)


def list_reached(server: ModelServer, found: Found) -> list[str] | None:
    """The deployments, or the handler, that a key must be for; None where any key will do."""
    if found.route.lists or found.route.guard in OWN_KEYS:
        return None
    arguments = found.arguments
    if "model" in arguments:
        return deployments_of(server, arguments["model"])
    if "endpoint" in arguments:
        return [arguments["endpoint"].path]
    # empty for an unknown id: else a key for a handler of the same name would fit
    deployment = deployment_of(server, found)
    return [deployment.id] if deployment else []


REQUEST_ID = re.compile(r"[\w.:-]{1,100}", re.ASCII)


def request_id_of(given: str | None) -> str:
    """A request's id: the client's own where it sends one, else a new one."""
    return given if given and REQUEST_ID.fullmatch(given) else f"{random.getrandbits(64):016x}"


def answer_call(door: Door, call: Call, found: Found | None = None) -> Reply:
    """Answer a call with its view's reply or its error; adds common headers and a log line."""
    server, trace, envelope = door.server, call.trace, BARE
    ends = []
    call.allowance = server.allowance()
    try:
        for begin in server.begins:
            ends.append(begin(server, call))
        if "HTTP_TRACEPARENT" in call.environ:
            trace.parent = read_parent(call)
        if call.method == "OPTIONS":
            found, replied = None, preflight(server, call)
        else:
            found = found or find_view(server, call.method, call.path)
            envelope, trace.infers = found.envelope, found.route.infers
            trace.deployment = found.deployment
            if found.name:  # empty for an unknown URL: 404 even with a wrong X-Request-Timeout
                wish = call.environ.get("HTTP_X_REQUEST_TIMEOUT")
                trace.limit(server.config.server.timeout_seconds, wish)
            call.caller = authorize(door, call, found)
            replied = found.route.view(server, call, **found.arguments)
        replied = dress(server, call, replied)
    except BaseException as error:  # a site's own check or a view may call sys.exit
        if is_operators(error):
            raise
        if found is None and getattr(error, "status", 0) == HTTPStatus.METHOD_NOT_ALLOWED:
            envelope = FULL  # `find_view` answers 405 only for URLs with this envelope
        note_refusal(server, call, found, error)
        replied = dress(server, call, to_reply(error, call, envelope))
    finally:
        call.turn.waited = trace.waited
        call.allowance.close()
        for end in filter(None, ends):
            end()
    # in this context, where spans and filters of the log find what the site has put there
    run = contextvars.copy_context().run
    call.turn.defer(functools.partial(run, note_request, server, call, found, replied))
    return replied


def note_refusal(
    server: ModelServer, call: Call, found: Found | None, error: BaseException
) -> None:
    """Note whose key was refused, and at which deployment: the view has not seen the call."""
    if isinstance(error, ServingError) and error.key_name:
        call.caller = Caller(error.key_name)
    if found and found.route.infers and not call.trace.deployment:
        deployment = deployment_of(server, found)
        call.trace.deployment = deployment.id if deployment else ""


def note_request(server: ModelServer, call: Call, found: Found | None, replied: Reply) -> None:
    """Let the extensions count an answered request, and log it; at DEBUG for probes, which would
    fill the log.
    """
    line = request_line(call, found.name if found else "", replied)
    for observe in server.observers:
        try:
            observe(server, call.trace, line, replied)
        except Exception:  # the reply is complete without the extension
            logger.exception("An extension could not take note of a request")
    is_quiet = found is not None and found.route.probe and not server.config.server.log_probes
    logger.log(logging.DEBUG if is_quiet else logging.INFO, REQUEST_LINE, line)


TRACEPARENT = re.compile(  # a later version is read by the fields known today (section 4.3)
    "(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


def read_parent(call: Call) -> tuple[str, str]:
    """A request's traceparent and tracestate (W3C Trace Context); empty when not well formed."""
    parent = call.header("traceparent").strip()
    return (parent, call.header("tracestate")) if TRACEPARENT.fullmatch(parent) else ("", "")


def request_line(call: Call, route: str, replied: Reply) -> dict[str, Any]:
    """What the log says of a request."""
    parent = call.trace.parent[0]
    return {
        "request_id": call.request_id,
        **({"trace_id": parent.split("-")[1]} if parent else {}),
        "key": call.caller.name,
        "method": call.method,
        "path": printable(call.path),
        "route": route or "none",
        "model": call.trace.model,
        "version": call.trace.version,
        "status": replied.status,
        "ms": round(1e3 * (call.trace.answered - (call.trace.queued or call.trace.start)), 2),
        "rows": call.trace.rows,
        "batch": call.trace.batch,
    }


REQUEST_LINE = (
    "%(request_id)s %(key)s %(method)s %(path)s %(status)d %(ms)s ms model=%(model)s "
    "version=%(version)s rows=%(rows)d batch=%(batch)d"
)


def dress(server: ModelServer, call: Call, replied: Reply) -> Reply:
    """The reply to send: compressed if the client accepts that, with its request id, its timings
    and its CORS headers.
    """
    vary: list[str] = []
    if len(replied.body) >= server.config.server.gzip_min_bytes:
        replied = compress(call, replied, vary)
    headers: list[tuple[str, str]] = []
    for more in server.dressers:
        try:
            headers += more(server, call, replied)
        except Exception:  # the reply is complete without these headers
            logger.exception("Headers of an extension are left out")
    headers += ("X-Request-Id", call.request_id), ("Server-Timing", tell_times(call.trace))
    if origins := server.config.server.cors_origins:
        vary.append("Origin")
        origin = call.header("Origin")
        if origin and (origin in origins or "*" in origins):
            names = dict.fromkeys(name for name, _ in (*replied.headers, *headers))
            headers.append(("Access-Control-Allow-Origin", origin))
            headers.append(("Access-Control-Expose-Headers", ", ".join(names)))
            headers.append(("Timing-Allow-Origin", origin))
    if vary:
        headers.append(("Vary", ", ".join(vary)))
    return replied.with_headers(*headers)


# The common case in one format string: formatting costs more than all else in `tell_times`.
PLAIN_TIMES = "queue;dur=%.3f, decode;dur=%.3f, inference;dur=%.3f, encode;dur=%.3f, total;dur=%.3f"


def tell_times(trace: Trace) -> str:
    """A Server-Timing header (https://www.w3.org/TR/server-timing/): the milliseconds that each
    phase of the request has taken until now, without phases that took none, and the total.
    """
    now = trace.answered = time.perf_counter()
    trace.spent = queued, decoding, inference, routines, encoding = trace.measure(now)
    total = 1e3 * (now - (trace.queued or trace.start))
    if queued > 0 and inference > 0 and routines == 0 and not trace.nodes:
        times = 1e3 * queued, 1e3 * decoding, 1e3 * inference, 1e3 * encoding, total
        return PLAIN_TIMES % times
    parts = [f"{name};dur={1e3 * s:.3f}" for name, s in zip(PHASES, trace.spent) if s > 0]
    for name, seconds in trace.nodes.items():
        parts.append(f'node;desc="{quote(name, safe="")}";dur={1e3 * seconds:.3f}')
    return ", ".join([*parts, f"total;dur={total:.3f}"])


# Content types worth compressing; pictures are compressed already.
COMPRESSIBLE = (
    "application/json",
    "application/x-npy",
    "application/octet-stream",
    "text/html; charset=utf-8",
    "text/css; charset=utf-8",
    "text/javascript; charset=utf-8",
)


def compress(call: Call, replied: Reply, vary: list[str]) -> Reply:
    """Compress a large answer with gzip if the client's Accept-Encoding allows it; level 1 gives
    most of the gain for the least time.

    Adds to `vary` the request headers that the answer depends on.
    """
    names = {name.lower() for name, _ in replied.headers}
    if replied.content_type not in COMPRESSIBLE or "content-encoding" in names:  # of a handler
        return replied
    vary.append("Accept-Encoding")
    if parse_accept_header(call.header("Accept-Encoding"), Accept)["gzip"] <= 0:
        return replied
    packed = gzip.compress(replied.body, compresslevel=1, mtime=0)
    return dataclasses.replace(replied, body=packed).with_headers(("Content-Encoding", "gzip"))


# Request headers that the server reads, so that pages of other origins may send them.
READ_HEADERS = (
    "Authorization, x-api-key, Content-Type, Content-Encoding, Accept, If-Match, X-Request-Id, "
    "X-Request-Timeout, X-Serving-Page, X-Tensor-Dtype, X-Tensor-Shape, "
    "Inference-Header-Content-Length, traceparent, tracestate"
)


def preflight(server: ModelServer, call: Call) -> Reply:
    """Answer OPTIONS, which browsers send without a key; as in TensorFlow Serving, needs an Origin.

    The origin may also be `null` (a page from a file, a sandboxed frame) or an app's
    (`capacitor://localhost`, `tauri://localhost`, `chrome-extension://...`) if the config has
    `cors_origins`, or if a hook of the host site may allow it.
    """
    if not server.config.server.cors_origins:
        is_sites = call.site is not None and call.header("Access-Control-Request-Method")
        if not re.search("." if is_sites else "https?://", call.header("Origin")):
            raise BadRequest("OPTIONS needs an Origin header with http:// or https://")
        return Reply()
    return Reply(
        headers=(
            ("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            ("Access-Control-Max-Age", "600"),
            ("Access-Control-Allow-Headers", READ_HEADERS),
        )
    )


# --- the WSGI door ------------------------------------------------------------------------------


class OpenDoor:
    """An app's WSGI callable: answers the server's own URLs itself and hands all others to Flask.

    As soon as somebody hooks anything onto the app, or adds or replaces a view, Flask answers all
    URLs.
    """

    def __init__(self, door: Door, app: Flask):
        self.door, self.app = door, app
        self.through_flask, self.views = app.wsgi_app, [*app.view_functions.values()]

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        decoded = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        path = raw_path(environ, decoded)
        try:
            found = find_known(self.door.server, environ["REQUEST_METHOD"].upper(), path)
            replied = self.answer(environ, path, found) if found else None
        except ServingError:
            replied = None
        except Exception:  # of an extension's `find`; `answer_call` calls it again, to report it
            replied = self.answer(environ, path)
        if replied is None:
            return self.through_flask(environ, start_response)
        return send(replied, environ, start_response)

    def answer(
        self, environ: dict[str, Any], path: str, found: Found | None = None
    ) -> Reply | None:
        """The reply to a path that selects `found`; None if Flask must answer it."""
        views = [*self.app.view_functions.values()]
        if views != self.views or is_hooked(self.app) or "HTTP_UPGRADE" in environ:
            return None
        return answer_call(self.door, Call(environ, path), found)


SIGNALS = (
    signals.appcontext_pushed,
    signals.request_started,
    signals.request_finished,
    signals.request_tearing_down,
    signals.appcontext_tearing_down,
    signals.appcontext_popped,
    signals.got_request_exception,
)
RECEIVERS = operator.attrgetter("receivers")


def is_hooked(app: Flask) -> bool:
    """Whether a site has hooks around its views, which only Flask runs in their right order."""
    return bool(
        app.before_request_funcs
        or app.after_request_funcs
        or app.teardown_request_funcs
        or app.teardown_appcontext_funcs
        or app.url_value_preprocessors
        or app.config["MAX_CONTENT_LENGTH"] is not None
        or app.config["TRUSTED_HOSTS"] is not None
        or app.request_class is not Request
        or app.response_class is not Response
        or type(app.session_interface) is not SecureCookieSessionInterface
        or any(map(RECEIVERS, SIGNALS))
    )


@functools.cache
def status_line(status: int) -> str:
    """A status as Werkzeug spells it."""
    return f"{status} {HTTP_STATUS_CODES.get(status, 'Unknown').upper()}"


def send(
    replied: Reply, environ: Mapping[str, Any], start_response: Callable[..., Any]
) -> Iterable[bytes]:
    start_response(status_line(replied.status), replied.head())
    if replied.stream is not None:
        return replied.stream
    return [] if environ["REQUEST_METHOD"] == "HEAD" or not replied.body else [replied.body]


# --- the Flask adapter --------------------------------------------------------------------------


def make_view(door: Door, rule: str) -> Callable[..., Response]:
    """A Flask view for a URL rule: makes a Call of the request and a Response of the Reply.

    It is a plain function, since Flask extensions read a view's name and module.
    """

    def respond(**values: Any) -> Response:  # `values` include those of the site's own prefix
        decoded = re.sub(r"<(?:[^<>]*:)?(\w+)>", lambda name: values[name[1]], rule)
        asked = request._get_current_object()  # type: ignore[attr-defined]
        prefix = asked.path[: len(asked.path) - len(decoded)]
        path = raw_path(asked.environ, decoded)
        return to_response(answer_call(door, Call(asked.environ, path, prefix, asked)))

    return respond


def to_response(replied: Reply) -> Response:
    body = replied.body if replied.stream is None else replied.stream
    return Response(body, replied.status, replied.head())


def list_urls(server: ModelServer) -> list[str]:
    """The paths that extensions answer by the config."""
    return [path for extension in server.extensions for path in extension.urls(server)]


def within(site: Flask, door: Door) -> Door:
    """The door of a server mounted in a site. Exceptions of the site's check, but for HTTP errors,
    are answered as in the site's own views: by its `errorhandler`, if it has one for them.
    """
    check = door.check
    if check is None:
        return door

    def ask(asked: Request) -> Any:
        try:
            return check(asked)
        except (HTTPException, ServingError):
            raise
        except Exception as error:
            abort(site.make_response(site.handle_user_exception(error)))

    return dataclasses.replace(door, check=ask)


class ServerBlueprint(Blueprint):
    """The URLs of a server. Its name depends on the site alone: `serving`, or the first of
    `serving2`, `serving3`, ... that no other blueprint of the site has.
    """

    def __init__(self, door: Door):
        super().__init__("serving", __name__)
        self.door = door
        self.record(functools.partial(add_rules, door))

    def register(self, app: Any, options: dict[str, Any]) -> None:
        """Register with a site; `name` among the options takes precedence."""
        if "name" not in options:
            others = (name for name, one in app.blueprints.items() if one is not self)
            taken = {name.rpartition(".")[2] for name in others}  # nested ones have dotted names
            names = itertools.chain(["serving"], map("serving{}".format, itertools.count(2)))
            self.name = next(name for name in names if name not in taken)
        super().register(app, options)


def create_blueprint(
    source: Source, authorize: Callable[[Any], Any] | None = None, *, eager: bool = False
) -> ServerBlueprint:
    """The server's URLs as a Flask blueprint:
    `site.register_blueprint(create_blueprint("config.json"), url_prefix="/ml")`.

    The blueprint answers its own errors; the site's error pages, hooks and other URLs stay as they
    are. Models begin to load in the background with the first request that needs them, or with
    `start`; with `eager`, now, and this call waits for TensorFlow's import. The server is
    `site.extensions["serving"][blueprint.name]`, the name given by the registration.
    `authorize(request)` replaces keys: True, or the caller's name for the log, lets the request
    in; False and None are answered 401. An HTTP error, such as `flask.abort` raises, is answered by
    the server, any other exception by the site's `errorhandler` for its class, else with 500.
    Raises ConfigError; FileNotFoundError and other OSErrors when the file cannot be read;
    ServingError for a ModelServer that was stopped.
    """
    door = Door(as_server(source), authorize)
    if door.server.manager.stopped:
        raise ServingError("This server has been stopped: make a new ModelServer")
    door.server._mounted = True
    if eager:
        if door.server.config.models:  # now, so that the site does not import it at the same time
            with contextlib.suppress(LoadError):  # each model's load reports it
                tensorflow()
        door.server.start()
    if authorize is None and door.server.generated_key and not door.server.says_key:
        logger.warning(
            "The config has no keys: pictures and handlers accept only "
            "ModelServer.generated_key, "
            "which changes at each start; `python serving.py --new-key NAME` makes one that stays; "
            "`authorize=` lets the site decide"
        )
    if authorize is not None and door.server.config.auth.protect != "all":
        logger.warning(
            "authorize= is asked only where a key is needed: pictures and handlers; :predict, "
            "metrics and reloads are open to everybody, as TensorFlow Serving's are: "
            'to protect these too, write "auth": {"protect": "all"} into the config'
        )
    return ServerBlueprint(door)


REST = "<serving_rest:serving_rest>"
ANY_MODEL = "<serving_rest:serving_model>"  # a name may hold a slash, as WSGI decodes %2F


@functools.cache
def rules_of(extensions: tuple[Extension, ...]) -> tuple[str, ...]:
    """The URL table as Flask rules; arguments get a `serving_` prefix, unlike those of a site."""
    urls = [url for row in routes_of(extensions) for url in spellings(row.url)]
    below = tuple(own.partition("{")[0] for own in OWN)
    alone = [url for url in urls if not url.startswith(below)]
    rules = [BRACES.sub(r"<serving_\1>", url.replace("{model}", ANY_MODEL)) for url in alone]
    # The first segment as a converter weighs less than text: the site's own page at that URL wins.
    rules = [re.sub(r"^/([^/<]+)", r"/<any('\1'):serving_root>", rule) for rule in rules]
    own = [url.replace("{rest}", REST) for url in OWN]
    return tuple(dict.fromkeys([*own, *rules]))


def add_rules(door: Door, state: BlueprintSetupState) -> None:
    """Add the server's URLs to the site that a blueprint is registered with."""
    site, server = typing.cast(Flask, state.app), door.server
    door = within(site, door)
    mounted = site.extensions.setdefault("serving", {})
    mounted[state.name] = server
    site.url_map.converters["serving_rest"] = RestConverter
    rules = (*rules_of(server.extensions), *list_urls(server))
    # With host matching, a rule needs a host: these rules match any.
    host = {"host": "<serving_host>"} if site.url_map.host_matching else {}
    for index, rule in enumerate(rules):
        if rule == "/" and not state.url_prefix:  # a site's own front page
            continue
        state.add_url_rule(
            rule,
            f"respond{index}",
            make_view(door, rule),
            methods=METHODS,
            provide_automatic_options=False,
            merge_slashes=False,
            **host,
        )
    later = f"{state.name_prefix}.{state.name}.respond_later".lstrip(".")
    site.view_functions[later] = make_later_view(door)
    mount = functools.partial(add_later_rules, door, state, later, {*rules}, host)
    # Only the site holds `mount`: a server may outlive its sites, as in tests.
    site.extensions.setdefault("serving_mounts", []).append(mount)
    server.mounts.append(weakref.ref(mount, server.mounts.remove))


def add_later_rules(
    door: Door, state: BlueprintSetupState, endpoint: str, known: set[str], host: Mapping[str, Any]
) -> None:
    """Add the URLs of handlers that a reload has brought, straight to the site's URL map: a running
    site refuses `add_url_rule`.
    """
    for path in list_urls(door.server):
        if path in known:
            continue
        known.add(path)
        rule = state.app.url_rule_class(
            (state.url_prefix or "").rstrip("/") + path,
            endpoint=endpoint,
            methods=METHODS,
            defaults={**state.url_defaults, "serving_path": path},
            subdomain=state.subdomain,
            merge_slashes=False,
            **host,
        )
        rule.provide_automatic_options = False  # type: ignore[attr-defined]
        state.app.url_map.add(rule)


def make_later_view(door: Door) -> Callable[..., Response]:
    """A view for the handlers that a reload adds.

    When a later reload removes a handler, its URL answers the site's 404.
    """

    def respond_later(serving_path: str, **values: Any) -> Response:
        if serving_path not in list_urls(door.server):
            abort(HTTPStatus.NOT_FOUND)
        return make_view(door, serving_path)(**values)

    return respond_later


def create_app(
    source: Source, authorize: Callable[[Any], Any] | None = None, *, eager: bool = False
) -> Flask:
    """The server as a WSGI application of its own, for any WSGI server or `DispatcherMiddleware`.

    Models begin to load with the first request that needs them; with `eager`, now: for gunicorn and
    the like. The server is `app.extensions["serving"]["serving"]`. Raises as `create_blueprint`.
    """
    app = Flask("serving", root_path=str(Path(__file__).parent), static_folder=None)
    blueprint = create_blueprint(source, authorize, eager=eager)
    door = blueprint.door
    app.register_blueprint(blueprint)
    app.add_url_rule("/", "respond_root", make_view(within(app, door), "/"), methods=METHODS)

    @app.errorhandler(HTTPException)
    def unknown(error: HTTPException) -> Response:
        listed = f"{request.script_root}{url_of(view_models)}"
        text = (
            f"{error.name}: {request.method} {request.script_root}{request.path}. The models "
            f"are listed at {listed}"
        )

        def say_so(server: ModelServer, call: Call) -> Reply:
            raise ServingError(text, status=error.code)

        found: Found | None = Found(Route((), "", say_so, "open"), {}, "", BARE)
        if error.code == HTTPStatus.METHOD_NOT_ALLOWED:  # a method that Flask's rules do not list
            found = None
        path = raw_path(request.environ, request.path)
        return to_response(answer_call(door, Call(request.environ, path), found))

    if authorize is None:  # `authorize` takes Flask's request, so Flask must answer all URLs
        app.wsgi_app = OpenDoor(door, app)  # type: ignore[method-assign]
    return app


# ==================================================================================================
# The process
# In: a server that owns its process. Out: the process as that server wants it, put back at the end.
# Nothing else in this file changes anything of the process.
# ==================================================================================================


LOG_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Characters per write, at most 4 bytes each in UTF-8: what `select` calls writable takes 4096
# bytes without blocking (PIPE_BUF of Linux and macOS, or more).
PRINTED_CHARACTERS = 1000


class PatientHandler(logging.StreamHandler):
    """A log handler that never blocks: while its stream takes no more, lines are dropped and
    counted, so that no request waits.

    If the system cannot tell whether a stream takes more, lines are written anyway.
    """

    dropped = 0
    joined: list[str] | None = None  # lines kept by `together` until its end

    @functools.cached_property
    def always_takes(self) -> bool:
        """Whether the stream is a regular file, which always takes more: no `select` is needed."""
        try:
            return stat.S_ISREG(os.fstat(self.stream.fileno()).st_mode)
        except (AttributeError, OSError, ValueError):
            return False

    def takes_more(self) -> bool:
        if self.always_takes:
            return True
        try:
            return bool(select.select([], [self.stream.fileno()], [], 0)[1])
        except (AttributeError, OSError, ValueError):
            # not a file descriptor; or Windows, where `select` takes sockets alone
            return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record) + self.terminator
            if self.joined is None:
                self.write([text])
            else:
                self.joined.append(text)
        except Exception:  # as all of logging's own handlers do
            self.handleError(record)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Collect the lines of a `with` block and write them at its end: each write is costly.

        If several threads are inside at once, the first one's block collects the lines of all.
        """
        own: list[str] = []
        with self.lock or contextlib.nullcontext():
            if self.joined is None:
                self.joined = own
        try:
            yield
        finally:
            with self.lock or contextlib.nullcontext():
                if self.joined is own:
                    self.joined = None
                self.write(own)

    def write(self, lines: list[str]) -> None:
        most = sys.maxsize if self.always_takes else PRINTED_CHARACTERS
        for text, number in join_lines(lines, most):
            if self.dropped and self.takes_more():
                text = (
                    f"({self.dropped} log lines were dropped here, as nothing read the log)\n{text}"
                )
                self.dropped = 0
            try:
                if not self.write_text(text, most):
                    self.dropped += number
            except Exception:  # as all of logging's own handlers do
                self.handleError(logging.makeLogRecord({"msg": f"{number} lines"}))

    def write_text(self, text: str, most: int) -> bool:
        """Write a text in pieces of `most` characters; False if the stream stops taking them."""
        for start in range(0, len(text), most):
            if not self.takes_more():
                return False
            self.stream.write(text[start : start + most])
            self.stream.flush()
        return True


def join_lines(lines: Iterable[str], most: int) -> Iterator[tuple[str, int]]:
    """Join lines to texts of at most `most` characters, each with its number of lines; a longer
    line is a text of its own.
    """
    joined: list[str] = []
    size = 0
    for line in lines:
        size += len(line)
        if joined and size > most:
            yield "".join(joined), len(joined)
            joined, size = [], len(line)
        joined.append(line)
    if joined:
        yield "".join(joined), len(joined)


@contextlib.contextmanager
def lines_together() -> Iterator[None]:
    """Write the log lines of a `with` block together, if the log has a PatientHandler."""
    with contextlib.ExitStack() as stack:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, PatientHandler):
                stack.enter_context(handler.together())
        yield


# Lines that the C++ of TensorFlow and its libraries writes to stderr at each start, whatever
# TF_CPP_MIN_LOG_LEVEL says, since absl writes everything before its log is set up. Errors are not
# noise, except those (NO_DEVICE) that only say that a machine has no NVIDIA device.
NOISE = (
    r"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:\d\d:\d+\."
    r"|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] |To enable the following instructions"
)
NO_DEVICE = r"|(E\d{4}|\d{4}-\d\d-\d\d \S+ E) .*(cuInit|Unable to register cu\w+ factory)"
END_OF_NOISE = "\x1eend of noise\n"
# The program of a child process that reads the server's stderr: passes other lines on at once and
# keeps noise. After END_OF_NOISE it hands the kept lines to the server; if its input ends without
# that line, the server has crashed, and it writes the kept lines to stderr.
SORTER = """
import os, re, signal, sys
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
noise, end = re.compile(sys.argv[1].encode()), sys.argv[2].encode()
kept, ended = [], False
for line in sys.stdin.buffer:
    if line.endswith(end):
        os.write(2, line[:-len(end)])
        with open(1, "wb") as told:
            told.writelines(kept)
        kept, ended = [], True
    elif noise.match(line) and not ended:
        kept.append(line)
    else:
        os.write(2, line)
for line in kept:
    os.write(2, line)
os._exit(0)
"""


@contextlib.contextmanager
def spelling(stream: Any) -> Iterator[None]:
    """Have a stream write `\\u914d` where its encoding lacks a character."""
    before, wrong = getattr(stream, "errors", None), (AttributeError, OSError, ValueError)
    with contextlib.suppress(*wrong):
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(*wrong):
            stream.reconfigure(errors=before)


class Process(contextlib.ExitStack):
    """All that `run` and `main` change in the process; the end of the `with` block restores it.

    A server inside a host site changes none of this.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = False  # a signal told it to end
        self._aside: list[tuple[int, subprocess.Popen[bytes]]] = []  # real stderr, sorter process

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute."""
        self.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def quiet_libraries(self) -> None:
        """Keep messages of TensorFlow and Pillow about their own code and clients' files out of the
        log. Let stdout escape characters that its encoding lacks, as stderr does.
        """
        self.enter_context(spelling(sys.stdout))
        if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
            self.callback(os.environ.pop, "TF_CPP_MIN_LOG_LEVEL", None)
        library = logging.getLogger("tensorflow")
        self.callback(library.setLevel, library.level)
        library.setLevel(logging.ERROR)
        if os.environ["TF_CPP_MIN_LOG_LEVEL"] not in ("0", "1"):  # set by a user who wants it all
            self.hide_noise()
        # Python would remember each new warning text about a picture for ever.
        self.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", module=r"PIL\.", append=True)

    def hide_noise(self) -> None:
        """Collect what TensorFlow's C++ writes to stderr at its start, until `show_noise` sends it
        to the debug log. `sys.stderr` keeps writing to the real stderr.
        """
        try:
            if sys.stderr.fileno() != 2 or not sys.executable or "tensorflow" in sys.modules:
                return  # not the real stderr; no Python to run; or TensorFlow has started already
        except (AttributeError, OSError, ValueError):
            return
        if getattr(sys, "frozen", False):  # `sys.executable` is not a Python interpreter
            return
        noise = NOISE if os.path.exists("/dev/nvidiactl") else NOISE + NO_DEVICE
        command = [sys.executable, "-I", "-S", "-c", SORTER, noise, END_OF_NOISE]
        pipe = subprocess.PIPE
        try:  # in a session of its own, so that Ctrl-C does not reach it
            sorter = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
        except OSError:
            return
        aside = os.dup(2)
        with typing.cast(typing.BinaryIO, sorter.stdin) as written:
            os.dup2(written.fileno(), 2)
        terminal = open(  # noqa: SIM115
            aside, "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors
        )
        self.callback(close_anyway, terminal)
        self.set(sys, "stderr", terminal)
        self._aside.append((aside, sorter))
        self.callback(self.show_noise)

    def show_noise(self) -> None:
        """Restore stderr and log the kept lines at DEBUG; a second call does nothing."""
        try:
            aside, sorter = self._aside.pop()
        except IndexError:
            return
        with contextlib.suppress(OSError):  # the sorter was killed: the lines it kept are lost
            os.write(2, END_OF_NOISE.encode())
        os.dup2(aside, 2)
        with typing.cast(typing.BinaryIO, sorter.stdout) as kept:
            for line in kept:
                logger.debug("%s", line.decode(errors="replace").rstrip())
        # The sorter lives on while a child process started meanwhile has its pipe as stderr.
        with contextlib.suppress(subprocess.TimeoutExpired):
            sorter.wait(1)

    def write_log(self) -> logging.Handler | None:
        """Write the log to stderr; returns the handler, None if the root logger has one already."""
        root = logging.getLogger()
        if root.handlers:
            return None
        handler = PatientHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(LOG_LINE))
        root.addHandler(handler)
        self.callback(root.removeHandler, handler)
        self.callback(root.setLevel, root.level)
        root.setLevel(logging.INFO)
        # Our formats use none of these, and each costs time (Logging HOWTO, "Optimization").
        for name in ("logThreads", "logProcesses", "logMultiprocessing"):
            self.set(logging, name, False)
        self.set(logging, "_srcfile", None)
        return handler

    def tend_memory(self) -> None:
        """Make garbage collections rare, keep lasting objects out of them, and return memory to the
        system after loads.

        Reference counts free what requests leave, while TensorFlow's 250,000 objects stay: without
        this, a request whose JSON makes many lists has them walked again and again.
        """
        self.callback(gc.set_threshold, *gc.get_threshold())
        gc.set_threshold(20_000, 20, 20)
        is_free = gc.get_freeze_count() == 0  # else somebody's frozen objects must stay frozen

        def tidy(freeze: bool) -> None:
            # All threads wait meanwhile: some ms, or 0.1 s over TensorFlow's objects just after its
            # import.
            gc.collect()
            if freeze and is_free:
                gc.freeze()
            # glibc keeps hundreds of MB that loading has used; other systems have no such call.
            with contextlib.suppress(OSError, AttributeError, TypeError):
                ctypes.CDLL(None).malloc_trim(0)

        TIDY.append(tidy)
        self.callback(TIDY.remove, tidy)
        if is_free:
            self.callback(gc.unfreeze)

    def take_signals(self, stop: threading.Event) -> None:
        """Let SIGTERM, SIGINT and SIGHUP set `stop`; a second SIGTERM or SIGINT ends the process.

        Does nothing outside the main thread, where Python refuses signal handlers.
        """
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none

        def end(number: int, _: Any) -> None:
            # SIGHUP is no second signal: a closing terminal and its shell both send it
            if stop.is_set() and number != hangup:
                os._exit(1)
            self._told = True
            stop.set()

        numbers = [signal.SIGTERM, signal.SIGINT]
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # nohup ignores it
            numbers.append(hangup)
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                before = signal.signal(number, end)
                if before is not None:  # else it was set outside of Python
                    self.callback(signal.signal, number, before)

    def finish(self, job: Callable[[], Any], seconds: float) -> None:
        """Do the last job. After a signal, end the process if the job takes longer than `seconds`:
        nothing can interrupt a load that hangs in a model's files or in somebody's code.
        """
        if not self._told:
            return job()
        thread = threading.Thread(target=job, name="serving-stop", daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            logger.error("A model is still loading after %g s: the process ends anyway", seconds)
            logging.shutdown()
            os._exit(1)


def close_anyway(stream: typing.TextIO) -> None:
    """Close a stream whose last lines may find no room."""
    with contextlib.suppress(OSError):
        stream.close()


# ==================================================================================================
# Command line
# In: arguments and signals. Out: a process that serves until it is told to stop, and then ends
# well.
# ==================================================================================================


def flag(*names: str, **told: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """An option of the command line, declared with the arguments of argparse's `add_argument`."""
    return names, told


OPTIONS = (
    flag(
        "path",
        nargs="?",
        metavar="PATH",
        help="a model's folder of versions, a SavedModel, a folder of several models, a "
        ".keras or .h5 file, or a config file",
    ),
    flag(
        "--config", "--config_path", "--model_config_file", metavar="FILE", help="the config file"
    ),
    flag("--model_name", metavar="NAME", help="serve one model without a config, under this name"),
    flag(
        "--model_base_path",
        "--model_path",
        metavar="DIR",
        help="its folder of versions, or a SavedModel itself",
    ),
    flag("--host", "--rest_bind_address", help="address to listen on (SERVING_HOST; %(default)s)"),
    flag(
        "--port",
        "--rest_port",
        "--rest_api_port",
        help="port to listen on, 0 for any (SERVING_PORT; %(default)s)",
    ),
    flag(
        "--file_system_poll_wait_seconds",
        type=float,
        metavar="SECONDS",
        help="seconds between looks at the config and the version folders, 0 for never (1)",
    ),
    flag(
        "--new-key",
        metavar="NAME",
        help="print a new key, once, and what to write into the config for it, then exit",
    ),
    flag(
        "--init", metavar="DIR", help="create a handler project that is ready to serve, then exit"
    ),
    flag(
        "--init-hub", metavar="DIR", help="the same in the layout of CellStrat's Hub API, then exit"
    ),
    flag(
        "--export",
        nargs=2,
        metavar=("GROUP", "FOLDER"),
        help="write the pictures of an active learning group as a COCO data set, then exit",
    ),
    flag(
        "--check",
        action="store_true",
        help="say what the config would serve and what is wrong with it, then exit",
    ),
    flag(
        "--doctor",
        action="store_true",
        help="check this machine, this installation and the config, and say what to do, then exit",
    ),
    flag(
        "--completion",
        choices=("bash", "zsh"),
        help="print a script that completes these options in the shell, then exit",
    ),
    flag(
        "--manifest",
        metavar="DIR",
        help="add manifest.sha256 to a version folder, for each load to check its files, then exit",
    ),
    flag(
        "--deploy",
        metavar="DIR",
        help="send a model, or a handler project, to a running server that accepts "
        "uploads, with the admin key in SERVING_KEY, then exit",
    ),
    flag("--to", metavar="URL", help="--deploy: where that server is mounted (%(default)s)"),
    flag("--version", action="version", version=f"serving {__version__}"),
)


# Options of TensorFlow Serving and OpenVINO Model Server, and what to use here instead.
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("--enable_batching", "--batching_parameters_file"), "a model's 'batching'"),
    **dict.fromkeys(
        ("--rest_api_num_threads", "--rest_workers"), "'threads' of the config's 'server'"
    ),
    "--rest_api_timeout_in_ms": "'timeout_seconds' of the config's 'server'",
    "--num_load_threads": "'num_load_threads' of the config's 'server'",
    "--tensorflow_intra_op_parallelism": "'intra_op_threads' of the config's 'server'",
    "--target_device": "a model's 'target_device'",
    "--model_version_policy": "a model's 'model_version_policy'",
    "--saved_model_tags": "a model's 'tags'",
    "--enable_model_warmup": "a model's 'warm_up', true by default",
    "--monitoring_config_file": "/metrics, which is always on",
    "--ssl_config_file": "a proxy in front for TLS",
    **dict.fromkeys(
        ("--grpc_port", "--grpc_bind_address", "--grpc_channel_arguments", "--grpc_socket_path"),
        "REST: this server has no gRPC",
    ),
}

# Further options that a command gets with its own value: command(source, (value, host, port)).
TOLD_BESIDE: dict[str, tuple[str, ...]] = {"deploy": ("to",), "doctor": ("host", "port")}
HOST, PORT = "127.0.0.1", 8501  # the defaults
# The titles under which `--help` groups options; all others stand under COMMANDS_TITLE.
TITLES: dict[str, tuple[str, ...]] = {
    "what to serve": ("path", "--config", "--model_name", "--model_base_path"),
    "how to serve it": ("--host", "--port", "--file_system_poll_wait_seconds"),
}
COMMANDS_TITLE = "do one thing, then exit"
EPILOG = """\
Without options it serves ./config.json, or, in a clone, the demo beside serving.py.

examples:
  serving models/mine            serve the versions in a folder, 1, 2, ..., as the model "mine"
  serving config.json --check    say what a config would serve, and what is wrong with it
  serving doctor                 --doctor; commands need no dashes if no file has their name
  serving config.json --host 0.0.0.0 --port 80

exit status:
  0  done; or told to stop, and stopped
  1  the server cannot listen on its address; --doctor found something wrong; --deploy reached
     no server; a second signal stopped it, or a load did not end in time
  2  the options or the config are wrong, or, with --check, a file or model that it names
  3  --deploy: the server refused the upload
"""


def build_parser(extensions: Sequence[Extension] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "serving",
        description="Serve TensorFlow models over REST.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = {title: parser.add_argument_group(title) for title in (*TITLES, COMMANDS_TITLE)}
    for names, told in OPTIONS:
        title = next((title for title in TITLES if names[0] in TITLES[title]), COMMANDS_TITLE)
        groups[title].add_argument(*names, **told)
    known = parser.parse_args([])
    for name, command in commands(extensions).items():
        if not hasattr(known, name.replace("-", "_")):
            groups[COMMANDS_TITLE].add_argument(
                f"--{name}",
                metavar="VALUE",
                help=(inspect.getdoc(command) or "").replace("%", "%%"),
            )
    parser.set_defaults(
        host=os.environ.get("SERVING_HOST") or HOST,
        port=os.environ.get("SERVING_PORT") or str(PORT),
        to=f"http://{HOST}:{PORT}",
    )
    return parser


def choose_source(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> "str | dict[str, Any]":
    """What to serve by the options; exits with status 2 if they contradict each other.

    Raises ConfigError for a PATH with nothing to serve, OSError for one that cannot be read.
    """
    refuse_contradictions(parser, options)
    if options.path is not None:
        return source_at(options.path)
    if options.model_name:
        return as_source([{"name": options.model_name, "base_path": options.model_base_path}])
    # this file may be a symbolic link
    beside = [Path(f).with_name("config.json") for f in (__file__, os.path.realpath(__file__))]
    demo = next((path for path in beside if path.exists()), None)
    if options.config or Path("config.json").exists() or demo is None:
        return options.config or "config.json"
    return str(demo)


def refuse_foreign(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Exit with status 2 for an option of another server, naming what replaces it here."""
    names = [argument.partition("=")[0] for argument in arguments]
    for name in names:
        if name in ELSEWHERE:
            parser.error(f"{name}: no such option here; use {ELSEWHERE[name]}")
    if "--port" in names and {"--rest_port", "--rest_api_port"} & set(names):
        parser.error("--port is the same as --rest_port here, as there is no gRPC: leave one out")


def refuse_unknown(
    parser: argparse.ArgumentParser, rest: Sequence[str], names: Iterable[str]
) -> None:
    """Exit with status 2 for arguments that argparse does not know; name the first option."""
    known = [name for spellings, _ in OPTIONS for name in spellings] + [f"--{n}" for n in names]
    for option in (argument.partition("=")[0] for argument in rest if argument.startswith("-")):
        close = similar_key(option, known)
        parser.error(
            f"unknown option {option}: {f'did you mean {close}?' if close else 'see --help'}"
        )
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")


def refuse_contradictions(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with status 2 if options contradict each other, are empty or out of range."""
    kinds = {"path": "PATH", "config": "--config", "model_name": "--model_name"}
    given = [kind for name, kind in kinds.items() if getattr(options, name) is not None]
    spelled = kinds | {"model_base_path": "--model_base_path"}
    for name, value in vars(options).items():
        if value == "" and name not in ("host", "port"):
            option = spelled.get(name, f"--{name.replace('_', '-')}")
            parser.error(f"{option} is empty: leave it out, or give it a value")
    if (options.model_name is None) != (options.model_base_path is None):
        parser.error("--model_name and --model_base_path go together")
    if len(given) > 1:
        parser.error(f"{' and '.join(given)} cannot be used together: each says what to serve")
    if not 0 <= (options.file_system_poll_wait_seconds or 0) <= 86400:
        parser.error(
            "argument --file_system_poll_wait_seconds: expected 0 to 86400, got "
            f"{options.file_system_poll_wait_seconds}"
        )


def source_at(path: str) -> "str | dict[str, Any]":
    """What a PATH serves: the path of a config file, or a config of the models found there.

    Raises ConfigError if there is nothing to serve, OSError for a path that cannot be read.
    """
    place = Path(os.path.abspath(path))
    models = models_at(place)
    if models:
        return as_source(models)
    if place.is_dir():
        if (place / "config.json").is_file():
            return str(place / "config.json")
        hint = explain_no_versions(str(place))
        raise ConfigError("", f"there is no model in this folder, and no config.json{hint}")
    if place.suffix.lower() != ".json" and (hint := explain_path(path)):
        raise ConfigError("", hint.removeprefix("; "))
    return path


def as_source(models: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {"model_config_list": [{"config": model} for model in models]}


def models_at(place: Path) -> list[dict[str, Any]]:
    """The model at a place, or those in the folder there, as a config has them.

    The log names a model whose name cannot be served, and two of one name.
    """
    model = model_at(place)
    if model or not place.is_dir():
        return [model] if model else []
    found, first = [], dict[str, Path]()
    for entry in sorted(place.iterdir()):
        model = None if entry.name.startswith(".") else model_at(entry)
        if model is None:
            continue
        where = printable(str(entry))
        if not is_plain(entry.name):
            logger.warning("%s is not served: its name is no UTF-8 text on one line", where)
            continue
        other = first.setdefault(model["name"], entry)
        if other != entry:
            text = "%s and %s are models of one name: rename one"
            logger.warning(text, printable(str(other)), where)
        found.append(model)
    return found


def model_at(place: Path) -> dict[str, Any] | None:
    """The model at a place, under the name of its folder or file; None where there is none."""
    if place.is_file():
        return {"name": place.stem, "base_path": str(place)} if is_model_file(place) else None
    if not place.is_dir():
        return None
    if is_saved_model(place) and re.fullmatch("[0-9]{1,19}", place.name):  # one of its versions
        policy = {"specific": {"versions": [int(place.name)]}}
        base = place.parent
        return {"name": base.name, "base_path": str(base), "model_version_policy": policy}
    folders = list_versions(str(place)).values()
    if any(is_saved_model(folder) or find_model_file(folder) for folder in folders):
        return {"name": place.name, "base_path": str(place)}
    return None


class PrintableLog(logging.LoggerAdapter):
    """waitress's log of a connection, which names paths as they were decoded."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> Any:
        return printable(msg), kwargs


class LastAnswer:
    """What waitress's channels get before their own class: when the server ends, an answer says
    that it is the last on its connection, so that the client sends no more (RFC 9112, 9.6).
    """

    waitress: "Waitress"
    requests: list[Any]

    def service(self) -> None:
        if self.waitress.ending and len(self.requests) == 1:
            self.requests[0].headers["CONNECTION"] = "close"
        super().service()  # type: ignore[misc]


ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)  # this machine has no such address
CALM_SECONDS = 0.5  # how long an ending server waits for what idle connections have sent


class Waitress:
    """waitress's loop over its listening sockets, a turn at a time.

    Raises OSError for an address that cannot be had.
    """

    ending = False

    def __init__(
        self,
        app: Callable[..., Any],
        kind: type[TcpWSGIServer],
        dispatcher: Any,
        **adjustments: Any,
    ):
        adj = Adjustments(**adjustments)
        self.dispatcher, self.sockets = dispatcher, dict[int, Any]()
        self.listeners: list[TcpWSGIServer] = []
        error = None
        for address in adj.listen:
            error = self.add_listener(address, kind, app, adj) or error
        if not self.listeners and error:
            raise error

    def add_listener(
        self, address: Sequence[Any], kind: type[TcpWSGIServer], app: Any, adj: Adjustments
    ) -> OSError | None:
        """Listen at one more address, on the port of the first; returns the error of one that can
        be left out, such as the `::1` of `localhost` where IPv6 is off.
        """
        *family, (host, port, *rest) = address
        info = (*family, (host, self.port if self.listeners else port, *rest))
        sockets, known = self.sockets, self.sockets.copy()
        try:
            listener = kind(app, map=sockets, dispatcher=self.dispatcher, adj=adj, sockinfo=info)
        except OSError as error:
            wasyncore.close_all({fd: sockets[fd] for fd in sockets if fd not in known})
            if error.errno in ABSENT or self.listeners and port == 0:
                return error
            wasyncore.close_all(sockets)
            raise
        of_all = {"logger": PrintableLog(listener.logger), "waitress": self}
        listener.channel_class = type("Channel", (LastAnswer, listener.channel_class), of_all)
        self.listeners.append(listener)
        return None

    @property
    def port(self) -> int:
        return int(self.listeners[0].effective_port)

    def turn(self, seconds: float = 0.5) -> None:
        """Wait at most `seconds` for socket events and handle those that come."""
        wasyncore.loop(timeout=seconds, map=self.sockets, use_poll=True, count=1)

    def finish(self, seconds: float) -> None:
        """Stop accepting, answer what has come, close each connection with its last answer, or when
        it stays idle; give up after `seconds`.
        """
        begun = time.monotonic()
        self.turn(0)  # the connections that wait to be accepted, ...
        self.turn(0)  # ... and what they have sent
        for listener in self.listeners:
            listener.del_channel(self.sockets)
            listener.socket.close()
        self.ending = True
        while (passed := time.monotonic() - begun) < seconds:
            channels = [entry for entry in self.sockets.values() if isinstance(entry, HTTPChannel)]
            if not channels:
                break
            for channel in channels:
                busy = channel.requests or channel.request or channel.total_outbufs_len
                if passed > CALM_SECONDS and not busy:
                    channel.will_close = True
            self.turn(0.1)
        self.dispatcher.shutdown(timeout=1)


def listen(server: ModelServer, app: Callable[..., Any], host: str, port: int) -> Waitress:
    """waitress, set up for a server: with serving_extensions/ its queue is fair,
    else it is waitress's own.
    """
    options = server.config.server
    # without poll, as on Windows, the loop's select fails beyond 512 sockets (CPython's FD_SETSIZE)
    limit = math.inf if hasattr(select, "poll") else 500
    adjustments: dict[str, Any] = {
        "host": host,
        "port": port,
        "ident": "serving",
        # waitress counts its own sockets
        "connection_limit": min(options.connection_limit, limit) + 4,
        # waitress refuses bodies from this size on
        "max_request_body_size": options.max_request_bytes + 1,
        # bodies stay in memory, and out of temporary files
        "inbuf_overflow": options.max_request_bytes + 1,
        "recv_bytes": 1 << 20,
        "outbuf_overflow": 64 << 20,
        "outbuf_high_watermark": 64 << 20,
        "channel_request_lookahead": 1,  # sees clients that went away
    }
    if options.trusted_proxy:
        adjustments["trusted_proxy"] = options.trusted_proxy
        adjustments["trusted_proxy_headers"] = "x-forwarded-for x-forwarded-proto x-forwarded-host"
    found = first(extension.serve(server, app, adjustments) for extension in server.extensions)
    if found is not None:
        return found
    dispatcher = ThreadedTaskDispatcher()
    dispatcher.set_thread_count(options.threads)
    server.waiting = dispatcher.queue
    return Waitress(app, TcpWSGIServer, dispatcher, cleanup_interval=1, **adjustments)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Let the server survive a print that fails, as on a full disk. Stdout then becomes os.devnull,
    as Python's "Note on SIGPIPE" advises, or flushing it at exit would fail again.
    """
    try:
        yield
    except OSError as error:
        logger.warning("Nothing can be printed: %s", error)
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def curl_key(server: ModelServer, needed: bool = True) -> str:
    """curl's option with a key, where one is needed."""
    return f" -H 'Authorization: Bearer {server.generated_key or 'KEY'}'" if needed else ""


@printing()
def report(server: ModelServer, address: str, stop: threading.Event, process: Process) -> None:
    """Print, once the first load is over, each model with its versions and devices,
    and the URLs.
    """
    for extension in server.extensions:
        extension.show_load(server)
    server.wait()
    process.show_noise()
    if stop.is_set():
        return
    for model, states in server.manager.states().items():
        for version, state in sorted(states.items(), reverse=True):
            servable = state.servable  # read once: the loader may set it to None meanwhile
            device = f" on {servable.device}" if servable and servable.device else ""
            error = f" {state.error}" if state.error else ""
            print(f"  {model} version {version}: {state.state}{device}{error}")
    for name in server.readiness():
        told = name.endswith(")")  # the reason, in parentheses
        print(f"  {name}: not available{'' if told else ', the log says why'}")
    status, reload = url_of(view_models), url_of(view_reload)
    key = curl_key(server, server.config.auth.protect == "all")
    print(
        f"Status: {address}{status}   Reload: curl -X POST{key} {address}{reload}   "
        f"Ready: {address}{url_of(view_ready)}",
        flush=True,
    )
    for extension in server.extensions:
        extension.report(server, address)


def run(
    source: Source,
    host: str | None = None,
    port: int | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serve with waitress until SIGTERM, SIGINT, SIGHUP or `stop`; running requests are finished.

    `host` and `port` are those of SERVING_HOST and SERVING_PORT by default, else 127.0.0.1 and
    8501. Raises as `create_blueprint`; OSError for an address that cannot be had; ValueError for
    a SERVING_PORT that is no number.
    """
    if host is None:
        host = os.environ.get("SERVING_HOST") or HOST
    if port is None:
        port = read_port(os.environ.get("SERVING_PORT") or str(PORT))
    read_port(str(port), "port")
    with Process() as process:
        process.quiet_libraries()
        process.tend_memory()
        serve(process, as_server(source), host.strip("[]"), port, stop or threading.Event())


def read_port(text: str, name: str = "SERVING_PORT") -> int:
    """The port that an option, or SERVING_PORT, names; ValueError for what is none."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) >= 65536:
        raise ValueError(f"{name}: expected 0 to 65535, got {text[:40]!r}")
    return int(text)


def serve(
    process: Process, server: ModelServer, host: str, port: int, stop: threading.Event
) -> None:
    """Listen, load, answer until `stop`, and end well."""
    server.says_key = True
    app = create_app(server)
    try:
        socket.getaddrinfo(host or "?", port)  # says what is wrong with the host, as an OSError
        # Listen first, so that a port in use fails before any model is loaded.
        http = listen(server, app, host, port)
    except OSError as error:
        raise OSError(error.errno, f"{host} port {port}: {error.strerror}") from None
    process.take_signals(stop)  # before the first load, so that a signal can end a hanging one
    server.start()  # not `eager`: nobody else imports TensorFlow, so no need to wait for it
    # browsers cannot open wildcards
    where = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"http://{f'[{where}]' if ':' in where else where}:{http.port}"
    with printing():
        print(f"serving {__version__} on {address}, loading {server.manager.name}", flush=True)
        for extension in server.extensions:
            extension.announce(server, address)
    for key in list_expired(server.config):
        logger.warning("The key '%s' has expired: %s", key.name, key.expires)
    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning("Listening on %s: whoever reaches this address can use the models", host)
    threading.Thread(target=report, args=(server, address, stop, process), daemon=True).start()
    while not stop.is_set():
        http.turn()
    logger.info("Stopping when the running requests are answered; a second signal stops at once")
    http.finish(server.config.server.drain_seconds)
    stop_server = functools.partial(server.stop, drain=False)
    process.finish(stop_server, max(1.0, server.config.server.drain_seconds))


def new_key(_: Any, name: str) -> int:
    """Print a key, and what a config says of it.

    Raises ConfigError for a name that a config refuses.
    """
    key = secrets.token_urlsafe(24)
    entry = {"name": name, "sha256": digest(key)}
    parse(Auth, {"keys": [entry]}, "$.auth")
    print(f"Key, shown this once: {key}")
    print(f'For the config, in "auth": {{"keys": [...]}}:\n{json.dumps(entry)}')
    return 0


# --- what --check prints ------------------------------------------------------------------------


def check_config(extensions: Sequence[Extension], source: str | dict[str, Any], _: bool) -> int:
    """Print what a config would serve and what is wrong with it, without loading anything."""
    server = ModelServer(source, extensions)
    rows, problems = examine(server)
    rows += [("key", key.name, f"expired {key.expires}", "") for key in list_expired(server.config)]
    for line in align(rows):
        print(line)
    for problem in problems:
        print(f"{paint('wrong:', RED)} {problem}")
    return 2 if problems else 0


RED, YELLOW, GREEN = 31, 33, 32  # ANSI's codes


def paint(text: str, colour: int) -> str:
    """A text in colour; plain off a terminal or with NO_COLOR (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty():
        return text
    return f"\x1b[{colour}m{text}\x1b[0m"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table as lines, each column as wide as its widest cell but the last one."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


# --- the command line ---------------------------------------------------------------------------


def missing_command(name: str, source: Any, value: Any) -> int:
    needed = tell_missing(COMMAND_FILES[name]).capitalize()
    raise NotFound(needed + tell_hidden("serving_extensions"))


def commands(extensions: Sequence[Extension]) -> dict[str, Callable[[Any, Any], int]]:
    """The commands of the command line by option name: command(source, value) -> exit status."""
    known: dict[str, Callable[[Any, Any], int]] = {"new-key": new_key}
    known |= {name: functools.partial(missing_command, name) for name in COMMAND_FILES}
    known["check"] = functools.partial(check_config, extensions)
    for extension in extensions:
        known |= extension.commands
    return known


def set_format(server: ModelServer, handler: logging.Handler) -> None:
    """Write the log as the config asks for it."""
    kinds = {"text": logging.Formatter}
    for extension in server.extensions:
        kinds |= extension.formatters
    kind = kinds.get(server.config.server.log_format, logging.Formatter)
    handler.setFormatter(kind(LOG_LINE))


def main(
    arguments: Sequence[str] | None = None, extensions: Sequence[Extension] | None = None
) -> int:
    """Run the command line, with the installed extensions or those given.

    Returns the exit status: 0, 1 when it cannot listen, 2 when the config is wrong.
    """
    try:
        extensions = installed() if extensions is None else extensions
    except ImportError as error:  # extensions of another version, or a package they need is missing
        print(f"serving: {error}", file=sys.stderr)
        return 2
    parser = build_parser(extensions)
    given = spell_command(parser, sys.argv[1:] if arguments is None else arguments)
    refuse_foreign(parser, given)
    options, rest = parser.parse_known_args(given)
    refuse_unknown(parser, rest, commands(extensions))
    with Process() as process:
        process.quiet_libraries()
        handler = process.write_log()
        try:
            return obey(process, parser, options, handler, extensions)
        except ConfigError as error:
            place = options.config or options.path or "config"
            problem = "\n  ".join(one.message for one in error.all())
        except NotFound as error:
            place, problem = options.config or options.path or "config", error.message
        except OSError as error:
            place, problem = spell_file(error, options), tell_os_error(error, options)
    print(f"serving: {f'{place}: ' if place else ''}{problem}", file=sys.stderr)
    return 2


def spell_command(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Turn a command given as the first word, `serving doctor`, into its option, `--doctor`, unless
    a path of that name exists. Exits with status 2 for a misspelled one.
    """
    serving = {name for names in TITLES.values() for name in names}
    known = [names[0][2:] for names, _ in OPTIONS if names[0] not in (*serving, "--to")]
    first = "".join(arguments[:1])
    if os.path.lexists(first):
        return list(arguments)
    if first in known:
        return [f"--{first}", *arguments[1:]]
    # very close ones only: other words are folders that are not there
    close = difflib.get_close_matches(first, known, n=1, cutoff=0.8)
    if close and not first.startswith("-"):
        meant = f"did you mean 'serving {close[0]}'?"
        parser.error(f"{first}: no such file, folder or command; {meant}")
    return list(arguments)


def spell_file(error: OSError, options: argparse.Namespace) -> Any:
    """The file of an error; the config as it was given."""
    given = options.config or options.path or "config.json"
    return given if error.filename == str(Path(given).absolute()) else error.filename


def tell_os_error(error: OSError, options: argparse.Namespace) -> str:
    """What is wrong with a file, and what to do where the command line meant something else."""
    text = str(error.strerror or error)
    given = (options.path, options.config, options.model_name)
    if os.path.isdir(options.config or ""):
        return f"it is a folder; 'serving {options.config}' serves the models in it"
    if isinstance(error, FileNotFoundError) and given == (None, None, None):
        text += "; say what to serve (serving models/mine), or create a project with --init"
    return text


def port_of(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """The port of the options; ends with status 2 and the name of what gives a wrong one."""
    given = options.port != parser.get_default("port")
    try:
        return read_port(options.port, "argument --port" if given else "SERVING_PORT")
    except ValueError as error:
        parser.error(str(error))


def obey(
    process: Process,
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    handler: logging.Handler | None,
    extensions: Sequence[Extension],
) -> int:
    """Run a command, or serve, as the options say; `handler` writes the log if it is our own.

    Returns the exit status.
    """
    source = choose_source(parser, options)
    asked = [
        (name, command, value)
        for name, command in commands(extensions).items()
        if (value := getattr(options, name.replace("-", "_")))
    ]
    if asked[1:]:
        parser.error(f"--{asked[0][0]} and --{asked[1][0]} are two commands: give one")
    for name, command, value in asked:
        if handler is not None:  # a command prints its result, so the log stays short
            logging.getLogger().setLevel(logging.WARNING)
        also = [getattr(options, other) for other in TOLD_BESIDE.get(name, ())]
        return command(source, (value, *also) if also else value)
    port = port_of(parser, options)
    server = ModelServer(
        source, poll_seconds=options.file_system_poll_wait_seconds, extensions=extensions
    )
    if handler is not None:
        logging.getLogger().setLevel(server.config.server.log_level)
        set_format(server, handler)
    process.tend_memory()
    try:
        serve(process, server, options.host.strip("[]"), port, threading.Event())
    except OSError as error:
        if error.filename:
            raise
        print(f"serving: {error.strerror}; choose another --host or --port", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
