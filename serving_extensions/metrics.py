"""Counts and durations of requests: collected as requests end, read as /stats and by Prometheus.

One `Metrics` per server. A request only appends to a list; every few seconds the list is counted
under a lock. Everything else is computed when it is read.
"""

import copy
import json
import logging
import os
import struct
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from .core import (
    PHASES,
    PREPARED_DEVICES,
    REQUEST_LINE,
    Config,
    Extension,
    ModelServer,
    Outcome,
    ServingError,
    log_safely,
    routes_of,
    start_thread,
)
from .history import (
    MOST_SERIES,
    ROW_BOUNDS,
    WINDOWS,
    Resources,
    Series,
    count_by,
    describe_resources,
    describe_series,
    load_history,
    spell_history,
    tally,
)
from .manifest import write_whole
from .quotas import open_quotas

logger = logging.getLogger("serving")

# upper bounds of histograms of time
TIME_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MOST_ERRORS = 100  # the latest errors that are kept
ALL = ("all", "")  # the key of the series of all requests
LATEST = 1000  # the latest requests of a group, whose percentiles /stats shows
TOGETHER = 512  # so many requests are counted in one step, ...
STEP = 5  # ... or those of so many seconds
LOOK_SECONDS = 5.0  # between samples of the process's resources
KEEP_SECONDS = 60  # between writes of the history file
MOST_GROUPS = 200  # names in /stats; requests of further names are only counted in the total


class Buckets:
    """Counts by upper bound, and their sum."""

    def __init__(self, bounds: tuple):
        self.bounds, self.sum = bounds, 0.0
        self.counts = np.zeros(len(bounds) + 1, np.int64)

    def add(self, values: np.ndarray) -> None:
        self.counts += count_by(self.bounds, values)
        self.sum += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as Prometheus expects."""
        sums = np.cumsum(self.counts).tolist()
        return [(str(float(bound)), count) for bound, count in zip(self.bounds, sums)] + [
            ("+Inf", sums[-1])
        ]


class Group:
    """Counts and latencies of the requests of one deployment, model or handler, or of all."""

    def __init__(self) -> None:
        self.requests = self.errors_4xx = self.errors_5xx = 0
        # of the latest requests: total seconds, then the seconds of each part
        self.latest = np.empty((0, 1 + len(PHASES)))
        self.batch_sizes: Counter[int] = Counter()
        # second -> requests that ended in it, errors among them, the seconds that they took
        self.minute: dict[int, tuple[int, int, float]] = {}

    def add(self, calls: "Alike") -> None:
        """Count requests that ended."""
        self.requests += len(calls.seconds)
        self.errors_4xx += calls.errors_4xx
        self.errors_5xx += calls.errors_5xx
        self.latest = np.concatenate([self.latest, calls.times])[-LATEST:]
        for rows, number in calls.by_rows.items():
            if rows:
                self.batch_sizes[rows] += number
        failed = calls.errors_4xx + calls.errors_5xx
        busy = calls.seconds.sum() - np.nansum(calls.spent[:, 0])  # without the queue
        self.note(int(calls.now), 0, failed, float(busy))
        for now, number in calls.by_second.items():
            self.note(now, number, 0, 0.0)

    def note(self, now: int, count: int, failed: int, busy: float) -> None:
        before = self.minute.get(now, (0, 0, 0.0))
        self.minute[now] = before[0] + count, before[1] + failed, before[2] + busy
        keep_sixty(self.minute, now + STEP)

    def last_minute(self, now: int) -> tuple[int, int, float]:
        """Requests that ended in the last 60 seconds, errors among them, seconds they took."""
        fresh = [spent for second, spent in self.minute.items() if 0 <= now - second < 60]
        requests, errors, busy = zip((0, 0, 0.0), *fresh)
        return sum(requests), sum(errors), sum(busy)

    def held(self) -> "Group":
        """A copy that does not change while it is read."""
        still = copy.copy(self)  # `latest` is replaced, never changed
        still.batch_sizes, still.minute = self.batch_sizes.copy(), self.minute.copy()
        return still

    def read(self, now: int) -> dict[str, Any]:
        parts = {name: percentiles(self.latest[:, place]) for place, name in enumerate(PHASES, 1)}
        return {
            "requests": self.requests,
            "errors_4xx": self.errors_4xx,
            "errors_5xx": self.errors_5xx,
            "requests_per_second": self.last_minute(now)[0] / 60,
            "last_used": max(self.minute, default=None),
            "latency_ms": percentiles(self.latest[:, 0]),
            "parts_ms": {name: found for name, found in parts.items() if found},
            "batch_sizes": {str(rows): count for rows, count in sorted(self.batch_sizes.items())},
        }


def keep_sixty(numbers: dict[int, Any], latest: int) -> None:
    """Forget all but 60 keys: the oldest one, and keys after `latest`, left from before the clock
    was set back.
    """
    for time_to_come in [key for key in numbers if key > latest]:
        del numbers[time_to_come]
    if len(numbers) > 60:
        del numbers[min(numbers)]


def percentiles(seconds: np.ndarray) -> dict[str, float] | None:
    """The 50th, 90th and 99th percentile in milliseconds, NaN left out; None if nothing is left."""
    known = seconds[~np.isnan(seconds)]
    if not len(known):
        return None
    return {
        f"p{q}": round(1e3 * value, 3)
        for q, value in zip((50, 90, 99), np.percentile(known, (50, 90, 99)).tolist())
    }


class Kind(NamedTuple):
    """What requests that are counted together have in common."""

    route: str
    model: str
    version: str
    deployment: str
    drawn: bool  # shown in the graphs: inference that was not requested by the page itself


# Of a request: time, status, rows, seconds, seconds by part. Packed as bytes, because the Python
# objects of 512 requests would push other data out of the processor's cache.
ROW = struct.Struct(f"={4 + len(PHASES)}d")


class Alike:
    """Requests of one kind that ended within a few seconds: float64 [N, columns of `ROW`].

    Rows are 0 for a request that ran no model; seconds of a part are NaN if the request had none.
    """

    def __init__(self, table: np.ndarray):
        self.now, self.times = float(table[0, 0]), table[:, 3:]
        self.seconds, self.spent = table[:, 3], table[:, 4:]
        self.statuses, self.rows = table[:, 1].astype(np.int64), table[:, 2].astype(np.int64)
        self.by_status, self.by_rows = count_values(self.statuses), count_values(self.rows)
        self.by_second = count_values(table[:, 0].astype(np.int64))
        statuses = self.by_status.items()
        self.errors_4xx = sum(count for status, count in statuses if 400 <= status < 500)
        self.errors_5xx = sum(count for status, count in statuses if status >= 500)


def count_values(numbers: np.ndarray) -> dict[int, int]:
    """How often each number is there."""
    first = int(numbers[0])
    if (numbers == first).all():  # as most are
        return {first: len(numbers)}
    return dict(zip(*(found.tolist() for found in np.unique(numbers, return_counts=True))))


class Metrics:
    """Counts of one server. `begin` is called for every request, and `note` after it."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock, self._lock = clock, threading.Lock()
        self.started, self._begun = clock(), time.monotonic()
        self.peak_in_flight = self.latest_peak = 0
        self.count_waiting: Callable[[], int] = lambda: 0  # requests that wait for a thread
        self.refused: Counter[str] = Counter()  # requests that were turned away, by reason
        self.not_called: Counter[tuple[str, str]] = Counter()  # ... by what they would call
        self.total, self.groups = Group(), dict[str, Group]()
        self.deployments = dict[str, Group]()  # by id
        self.minutes: dict[int, list[int]] = {}  # minute -> requests, errors 4xx, errors 5xx
        self.last_errors: deque[dict[str, Any]] = deque(maxlen=MOST_ERRORS)
        self.probes: set[str] = set()  # routes (health checks) whose 503 is no error
        # by route, model, version, deployment, status
        self.requests: Counter[tuple[str, str, str, str, int]] = Counter()
        # by route, model, deployment; by part, model, deployment
        self.latency: dict[tuple[str, ...], Buckets] = {}
        self.parts: dict[tuple[str, ...], Buckets] = {}
        self.rows: dict[str, Buckets] = {}  # by model
        # (model, version) -> calls that it has run, and the second of the last call
        self.runs: dict[tuple[str, str], tuple[int, int]] = {}
        # by kind and name, for the graphs: only inference, without the page's own requests
        self.series: dict[tuple[str, str], Series] = {ALL: Series()}
        self.resources = Resources()
        self._open: list[None] = []  # one item per request in flight
        # answered requests that are not counted yet: the fields of their `Kind`, their ROW
        self._ended: list[tuple[tuple, bytes]] = []
        self._due = 0.0  # the time when those must be counted
        self.ended = threading.Event()  # set to end the watcher
        self.watcher: threading.Thread | None = None
        self.history: str | None = None  # the file named by the start's config; empty for none
        self._kept = 0.0  # when the history was written last
        self._trouble = ""  # why the last write failed
        # Two objects, for /stats and for the graphs: `cpu_percent` covers the time since its last
        # call on the same object.
        self._process, self._watched = psutil.Process(), psutil.Process()
        self._process.cpu_percent(), self._watched.cpu_percent()
        self._refused = 0  # refused requests at the last `look`
        self._not_called: Counter[tuple[str, str]] = Counter()  # `not_called` at the last count

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return len(self._open)

    def begin(self, by_page: bool = False) -> Callable[[], Any] | None:
        """Note that a request begins; returns what notes that it has ended. Those of the page are
        not in flight. No lock is needed: a list's `append` and `pop` are atomic.
        """
        if by_page:
            return None
        self._open.append(None)
        if len(self._open) > self.latest_peak:
            with self._lock:
                self.latest_peak = max(self.latest_peak, len(self._open))
        return self._open.pop

    def note(self, trace: Any, call: Mapping[str, Any], response: Any) -> None:
        """Count an answered request; `call` has the fields of its log line."""
        now = self._clock()
        spent = trace.spent or trace.measure(time.perf_counter())
        if call["status"] >= 400 and call["route"] not in self.probes:
            self.last_errors.append(describe_error(now, trace, call, response))
        drawn = trace.infers and not trace.by_page
        kind = call["route"], call["model"], call["version"], trace.deployment, drawn
        row = ROW.pack(now, call["status"], call["batch"], call["ms"] / 1e3, *spent)
        self._ended.append((kind, row))
        if len(self._ended) >= TOGETHER or now >= self._due:
            with self._lock:
                self._count()
                self._due = (int(now) // STEP + 1) * STEP

    def _count(self) -> None:
        """Count the ended requests, grouped by kind, which takes a fraction of the time of
        counting them one by one. The lock must be held.
        """
        number = len(self._ended)  # requests appended meanwhile are counted the next time
        ended = self._ended[:number]
        del self._ended[:number]
        alike: dict[tuple, list[bytes]] = {}
        for kind, row in ended:
            alike.setdefault(kind, []).append(row)
        parts: list[tuple[float, Kind, np.ndarray]] = []
        for kind, rows in alike.items():
            table = np.frombuffer(b"".join(rows)).reshape(len(rows), -1)
            steps = table[:, 0] // STEP
            parts += [(step, Kind(*kind), table[steps == step]) for step in np.unique(steps)]
        # in order of time: a ring cannot go back
        for _, kind, table in sorted(parts, key=lambda part: part[0]):
            self._count_alike(kind, Alike(table))
        self._count_refused()

    def _count_refused(self) -> None:
        """Add refused requests to the series of what they would have called."""
        before, self._not_called = self._not_called, self.not_called.copy()
        for key, count in (self._not_called - before).items():
            if found := self._series_of(key, self._clock()):
                found.refuse(self._clock(), count)

    def _count_alike(self, kind: Kind, calls: Alike) -> None:
        """Count requests of one kind that ended in the same STEP."""
        route, model, version, deployment, drawn = kind
        for status, count in calls.by_status.items():
            self.requests[route, model, version, deployment, status] += count
        timed = self.latency.setdefault((route, model, deployment), Buckets(TIME_BOUNDS))
        timed.add(calls.seconds)
        for place, name in enumerate(PHASES):
            known = calls.spent[:, place]
            known = known[~np.isnan(known)]
            if len(known):
                self.parts.setdefault((name, model, deployment), Buckets(TIME_BOUNDS)).add(known)
        if calls.rows.any():
            self.rows.setdefault(model, Buckets(ROW_BOUNDS)).add(calls.rows[calls.rows > 0])
            before, _ = self.runs.get((model, version), (0, 0))
            self.runs[model, version] = before + int((calls.rows > 0).sum()), max(calls.by_second)
        self._count_minute(calls)
        self.total.add(calls)
        group = model or (route if route.startswith("/") else "")
        if group and (group in self.groups or len(self.groups) < MOST_GROUPS):
            self.groups.setdefault(group, Group()).add(calls)
        if deployment and (deployment in self.deployments or len(self.deployments) < MOST_GROUPS):
            self.deployments.setdefault(deployment, Group()).add(calls)
        if drawn:
            self._record(
                kind, calls.now, *tally(calls.statuses, calls.seconds, calls.spent, calls.rows)
            )

    def _count_minute(self, calls: Alike) -> None:
        this = int(calls.now) // 60
        minute = self.minutes.setdefault(this, [0, 0, 0])
        keep_sixty(self.minutes, this + 1)
        minute[0] += len(calls.seconds)
        minute[1] += calls.errors_4xx
        minute[2] += calls.errors_5xx

    def _record(self, kind: Kind, now: float, counts: np.ndarray, sums: np.ndarray) -> None:
        """Add requests to the series of their model, deployment and handler, and to ALL."""
        handler = kind.route if kind.route.startswith("/") else ""
        names = {"model": kind.model, "deployment": kind.deployment, "handler": handler}
        for key in [ALL, *((what, name) for what, name in names.items() if name)]:
            if found := self._series_of(key, now):
                found.add(now, counts, sums)

    def _series_of(self, key: tuple[str, str], now: float) -> Series | None:
        """The series of a kind and name, a new one if there is none; None if there are too many.
        Drops series that no window shows any more.
        """
        if key not in self.series and len(self.series) > MOST_SERIES:
            self.series = {
                key: one for key, one in self.series.items() if key == ALL or one.is_recent(now)
            }
        if key in self.series or len(self.series) <= MOST_SERIES:
            return self.series.setdefault(key, Series())
        return None

    def uptime(self) -> float:
        """Seconds since the server was made, by the monotonic clock."""
        return time.monotonic() - self._begun

    def now(self) -> int:
        """The current second of the clock that timestamps the counts."""
        return int(self._clock())

    @contextmanager
    def counted(self) -> Iterator["Metrics"]:
        """Hold the lock within a `with`, after all ended requests have been counted."""
        with self._lock:
            self._count()
            yield self

    def read_runs(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Calls that each version has run, and the second of the last, by model and version."""
        with self.counted():
            return dict(self.runs)

    def read(self) -> dict[str, Any]:
        """The answer of /stats, without the parts about models.

        The lock is held while the numbers are copied, not while the answer is computed.
        """
        now = self._clock()
        with self.counted():
            minutes = [
                {
                    "time": 60 * minute,
                    "requests": counts[0],
                    "errors_4xx": counts[1],
                    "errors_5xx": counts[2],
                }
                for minute, counts in sorted(self.minutes.items())
                if minute > now // 60 - 60
            ]
            found = {
                "uptime_seconds": round(self.uptime(), 1),
                "in_flight": self.in_flight,
                "peak_in_flight": max(self.peak_in_flight, self.latest_peak),
                "queue_depth": self.count_waiting(),
                "refused": dict(self.refused),
                "minutes": minutes,
                "last_errors": list(self.last_errors)[:-21:-1],
            }
            total = self.total.held()
            groups = {name: group.held() for name, group in sorted(self.groups.items())}
        return {
            **found,
            "process": self.read_process(),
            "total": total.read(int(now)),
            "groups": {name: group.read(int(now)) for name, group in groups.items()},
        }

    def read_process(self) -> dict[str, Any]:
        return {
            "cpu_percent": self._process.cpu_percent(),
            "memory_bytes": self._process.memory_info().rss,
            "threads": self._process.num_threads(),
        }

    def look(self) -> None:
        """Sample the process's resources for the graphs."""
        gpus = read_gpus()
        now, refused = self._clock(), self.refused.total()
        seen = {
            "cpu_percent": self._watched.cpu_percent(),
            "memory_bytes": self._watched.memory_info().rss,
            "refused": refused - self._refused,
            "queue": self.count_waiting(),
        }
        self._refused = refused
        if gpus:
            seen["gpu_memory_bytes"] = sum(gpu["memory_used_bytes"] for gpu in gpus)
        if busy := [g["utilisation_percent"] for g in gpus if "utilisation_percent" in g]:
            seen["gpu_utilisation_percent"] = sum(busy) / len(busy)
        with self._lock:
            seen["in_flight"] = self.latest_peak
            self.peak_in_flight = max(self.peak_in_flight, self.latest_peak)
            self.latest_peak = self.in_flight
            self.resources.add(now, seen)

    def read_window(self, window: str) -> dict[str, Any]:
        """A window's figures for `GET /stats?window=`, not yet filtered by what a caller may see.

        `series` is by (kind, name). The lock is held while the numbers are copied, not while the
        figures are computed.
        """
        now, step = self._clock(), WINDOWS[window].step
        with self.counted():
            series = {key: one.rings[window].read(now) for key, one in self.series.items()}
            resources = self.resources.rings[window].read(now)
            # copied first: a request that fails meanwhile appends to it
            errors = [error for error in list(self.last_errors) if not error["by_page"]]
        # The last step is not over yet: its rates are per the time that has passed.
        minutes = np.full(WINDOWS[window].length, step / 60)
        minutes[-1] = max(now % step, 1) / 60
        return {
            "window": window,
            "step_seconds": step,
            "now": round(now, 3),
            "started": round(self.started, 3),
            "uptime_seconds": round(self.uptime(), 1),
            "time": resources["time"].tolist(),
            "server": describe_resources(resources),
            "series": {key: describe_series(found, minutes) for key, found in series.items()},
            "last_errors": errors[::-1],
        }

    def keep(self, path: str | None, now: bool = False) -> None:
        """Write the history to a file, so that it survives a restart: once a minute, or `now`.

        A write error is logged once, and the write is tried again later.
        """
        # after the clock was set back, the time passed is negative: write then
        if not path or not now and 0 <= self._clock() - self._kept < KEEP_SECONDS:
            return
        self._kept = self._clock()
        with self.counted():
            history = spell_history(self.series, self.resources, list(self.last_errors))
        try:
            write_whole(Path(path), json.dumps(history).encode())
        except OSError as error:
            if self._trouble != str(error):
                logger.warning("$.server.history: cannot be written: %s", error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    def take(self, path: str) -> None:
        """Continue the history that an earlier process wrote; logs a file that cannot be read."""
        try:
            series, resources, errors = load_history(Path(path))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            logger.warning("$.server.history: %s is not read, history begins anew: %s", path, error)
            return
        with self.counted():
            self.series, self.resources = {ALL: Series(), **series}, resources
            self.last_errors.extend(errors)


def watch(found: "weakref.ref[ModelServer]", ended: threading.Event) -> None:
    """Sample the process every few seconds and write the history, while the server exists.

    It runs in a thread of its own, so that the graphs also cover times without requests.
    """
    while not ended.wait(LOOK_SECONDS):
        server = found()
        if server is None:
            return
        metrics = server.state["metrics"]
        try:
            metrics.look()
            metrics.keep(metrics.history)
        except Exception as error:  # an error must not end the thread
            text = "The server's resources could not be looked at"
            log_safely(logging.ERROR, text, error=error)
        del server, metrics


def describe_error(
    now: float, trace: Any, call: Mapping[str, Any], response: Any
) -> dict[str, Any]:
    """The entry of a failed request in the `last_errors` of /stats."""
    names = ("request_id", "status", "route", "model")
    return {
        "time": now,
        **{name: call[name] for name in names},
        "method": call["method"][:20],
        "path": call["path"][:500],
        "deployment": trace.deployment,
        "by_page": trace.by_page,
        "error": error_of(response),
    }


def error_of(response: Any) -> str:
    """The error's text in an answer of any shape."""
    with suppress(ValueError, AttributeError, TypeError, LookupError, RecursionError):
        body = json.loads(response.body)
        return str(body.get("error") or body["body"]["error"])[:500]
    return ""


# ==================================================================================================
# Prometheus
# In: a server. Out: its numbers in Prometheus's text format, names after its conventions.
# ==================================================================================================


class Collector:
    """A server's numbers as metric families, made when Prometheus asks."""

    def __init__(self, server: Any):
        self.server = server

    def collect(self) -> Iterator[Any]:
        metrics = self.server.state["metrics"]
        with metrics.counted():
            families = list(collect_requests(metrics))
        yield from families  # converted to text after the lock is released
        yield GaugeMetricFamily(
            "serving_requests_in_flight", "Requests being answered", metrics.in_flight
        )
        yield GaugeMetricFamily(
            "serving_queue_depth", "Requests waiting for a thread", metrics.count_waiting()
        )
        yield GaugeMetricFamily(
            "serving_queue_limit",
            "Requests that may wait for a thread: max_queued_requests",
            self.server.config.server.max_queued_requests,
        )
        refused = CounterMetricFamily(
            "serving_refused",
            "Requests refused with 503 before a thread took them",
            labels=("reason",),
        )
        for reason, count in sorted(metrics.refused.items()):
            refused.add_metric((reason,), count)
        yield refused
        yield GaugeMetricFamily(
            "serving_uptime_seconds", "Time since the server was created", metrics.uptime()
        )
        yield GaugeMetricFamily(
            "serving_memory_limit_bytes",
            "Memory that the process may have: its control group's, or the machine's",
            memory_limit(),
        )
        yield from collect_config(self.server)
        yield from collect_models(self.server.manager)
        yield from collect_learning(self.server)
        yield from collect_quotas(self.server)
        yield collect_expiries(self.server.config)
        yield from collect_gpus()
        for extension in self.server.extensions:
            yield from extension.collect(self.server)


def collect_requests(metrics: Metrics) -> Iterator[Any]:
    requests = CounterMetricFamily(
        "serving_requests",
        "Requests answered",
        labels=("route", "model", "version", "deployment", "status"),
    )
    for counted, count in sorted(metrics.requests.items()):
        requests.add_metric([str(label) for label in counted], count)
    yield requests
    rows = {(model,): histogram for model, histogram in metrics.rows.items()}
    for name, text, labels, histograms in (
        (
            "serving_request_duration_seconds",
            "Time from the last byte of a request to its answer",
            ("route", "model", "deployment"),
            metrics.latency,
        ),
        (
            "serving_request_part_seconds",
            "Time of each part of the requests that ran a model",
            ("part", "model", "deployment"),
            metrics.parts,
        ),
        ("serving_batch_size", "Rows of the run that each request was part of", ("model",), rows),
    ):
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, histogram in sorted(histograms.items()):
            family.add_metric(values, histogram.buckets(), histogram.sum)
        yield family


def collect_models(manager: Any) -> Iterator[Any]:
    loaded = GaugeMetricFamily(
        "serving_model_loaded",
        "1 for a version that is available, else 0",
        labels=("model", "version", "device"),
    )
    seconds = GaugeMetricFamily(
        "serving_model_load_duration_seconds",
        "Time of a version's last load, without TensorFlow's import",
        labels=("model", "version"),
    )
    for model, states in manager.states().items():
        for version, state in states.items():
            if state.state == "END":
                continue
            servable = state.servable  # the loader may take it away meanwhile
            device = servable.device if servable else ""
            loaded.add_metric((model, str(version), device), int(servable is not None))
            took = getattr(servable, "load_seconds", state.load_seconds)  # its own, if on demand
            if took:
                seconds.add_metric((model, str(version)), took)
    yield loaded
    yield seconds


def collect_config(server: Any) -> Iterator[Any]:
    """Whether the config file is in force, and whether the models it names are available."""
    manager = server.manager
    yield GaugeMetricFamily(
        "serving_config_last_reload_successful",
        "1 when the config file as it is now is in force, else 0",
        int(not manager.config_problem),
    )
    yield GaugeMetricFamily(
        "serving_reload_problems",
        "Problems that the last reload or poll of config and models found",
        len(manager.problems),
    )
    available = GaugeMetricFamily(
        "serving_model_available",
        "1 for a model or pipeline of the config that answers, else 0",
        labels=("model",),
    )
    for name in dict.fromkeys(server.config.served_names):
        available.add_metric((name,), int(name in manager.available))
    yield available


def collect_learning(server: Any) -> Iterator[Any]:
    """The pictures that active learning has collected, by group and outcome."""
    pictures = CounterMetricFamily(
        "serving_active_learning_pictures",
        "Pictures offered to a group",
        labels=("group", "outcome"),
    )
    counts: Counter[tuple[str, str]] = Counter()  # groups of several folders may have one name
    for folder, inbox in list(server.state.get("active_learning", {}).items()):
        for outcome, count in list(inbox.counts.items()):
            counts[folder.name, outcome] += count
    for labels, count in sorted(counts.items()):
        pictures.add_metric(labels, count)
    yield pictures


def collect_quotas(server: Any) -> Iterator[Any]:
    """How much of their quotas keys have used, and how much they have."""
    used = GaugeMetricFamily(
        "serving_quota_used_calls", "Calls of a key in the current period", labels=("key", "period")
    )
    limit = GaugeMetricFamily(
        "serving_quota_limit_calls",
        "Calls that a key may make in a period",
        labels=("key", "period"),
    )
    for key in server.config.auth.keys:
        if key.quota:
            store = open_quotas(server.config.auth.quota_store)
            labels = key.name, key.quota.period
            used.add_metric(labels, store.used(*labels))
            limit.add_metric(labels, key.quota.calls)
    yield used
    yield limit


def collect_expiries(config: Config) -> Any:
    """The expiry time of each key that expires."""
    family = GaugeMetricFamily(
        "serving_key_expires_timestamp_seconds", "When a key expires", labels=("key",)
    )
    for key in config.auth.keys:
        if key.expiry and not key.disabled:
            family.add_metric((key.name,), key.expiry.timestamp())
    return family


def collect_gpus() -> Iterator[Any]:
    families = {
        "memory_used_bytes": GaugeMetricFamily(
            "serving_gpu_memory_bytes", "GPU memory that TensorFlow holds", labels=("gpu",)
        ),
        "memory_total_bytes": GaugeMetricFamily(
            "serving_gpu_memory_total_bytes", "Memory of a GPU, where NVML tells", labels=("gpu",)
        ),
        "utilisation_percent": GaugeMetricFamily(
            "serving_gpu_utilisation_ratio",
            "Share of the time in which a GPU ran anything, where NVML tells",
            labels=("gpu",),
        ),
    }
    for gpu in read_gpus():
        for name, family in families.items():
            if name in gpu:
                share = 100 if name == "utilisation_percent" else 1
                family.add_metric((gpu["name"],), gpu[name] / share)
    yield from families.values()


CGROUPS = (  # where Linux says how much memory a process may have: version 2, version 1
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def memory_limit(files: Sequence[str] = CGROUPS) -> int:
    """Bytes of memory that this process may have: its control group's limit, or the machine's."""
    limits = [psutil.virtual_memory().total]
    for file in files:
        with suppress(OSError, ValueError):  # none there; "max"
            limits.append(int(Path(file).read_text()))
    return min(limits)


def read_gpus() -> list[dict[str, Any]]:
    """TensorFlow's GPUs, once TensorFlow is loaded.

    With `nvidia-ml-py` installed, each has its total memory and its utilisation too.
    """
    tf: Any = sys.modules.get("tensorflow") if PREPARED_DEVICES.is_set() else None
    config: Any = getattr(tf, "config", None)  # none yet while the loader's thread imports it
    found = []
    for index, gpu in enumerate(
        config.list_logical_devices("GPU") if hasattr(config, "list_logical_devices") else ()
    ):
        used = config.experimental.get_memory_info(gpu.name)["current"]
        entry = {"name": gpu.name.rpartition("device:")[2], "memory_used_bytes": used}
        with suppress(Exception):  # without nvidia-ml-py, or a driver that says nothing
            import pynvml

            pynvml.nvmlInit()
            handle = find_gpu(pynvml, index)
            entry |= {
                "memory_total_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                "utilisation_percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            }
        found.append(entry)
    return found


def find_gpu(pynvml: Any, index: int) -> Any:
    """NVML's handle of the GPU that this process sees as number `index`.

    NVML counts all GPUs of the machine, CUDA only those in CUDA_VISIBLE_DEVICES. Raises ValueError
    for a MIG slice of a GPU.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = str(index) if visible is None else visible.split(",")[index].strip()
    if name.startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(name)
    return pynvml.nvmlDeviceGetHandleByIndex(int(name))


def prometheus_text(server: Any) -> bytes:
    """Everything in Prometheus's text format, the process's CPU and memory among it."""
    registry = server.kept.get(("registry",))
    if registry is None:
        registry = CollectorRegistry()
        registry.register(Collector(server))
        ProcessCollector(registry=registry)
        server.kept["registry",] = registry  # only when complete: another thread may read it
    return generate_latest(registry)


class TextFormatter(logging.Formatter):
    """The lines of logging.basicConfig; the text of a second is cached, which is faster."""

    second, spelled = -1, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        if self.second != int(record.created):
            moment = self.converter(record.created)
            self.spelled = time.strftime(self.default_time_format, moment)
            self.second = int(record.created)
        return f"{self.spelled},{int(record.msecs):03d}"


class JsonFormatter(TextFormatter):
    """A log record as one JSON object; the fields of a request's line are members of it."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        is_request = record.msg is REQUEST_LINE and isinstance(record.args, dict)
        entry |= record.args if is_request else {"message": record.getMessage()}  # type: ignore
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


# --- what plugs in --------------------------------------------------------------------------------


def open_metrics(server: ModelServer) -> Metrics:
    metrics = Metrics()
    metrics.refused, metrics.not_called = server.refused, server.not_called
    metrics.probes = {row.name for row in routes_of(server.extensions) if row.probe}
    metrics.count_waiting = lambda: len(server.waiting)
    weakref.finalize(server, metrics.ended.set)
    return metrics


def prepare(server: ModelServer, config: Config) -> None:
    """Load the history file that the start's config names; a later config does not change it."""
    metrics = server.state["metrics"]
    if metrics.history is None:
        metrics.history = config.server.history or ""
        if metrics.history:
            metrics.take(metrics.history)


def refresh(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    """Start the watcher thread, once models are loaded."""
    metrics = server.state["metrics"]
    if metrics.watcher is None:
        watched = weakref.ref(server), metrics.ended
        with suppress(ServingError):  # no thread: the next pass starts one
            metrics.watcher = start_thread("serving-watch", watch, *watched)


def end(server: ModelServer) -> None:
    """End the watcher thread, and write the history."""
    metrics = server.state["metrics"]
    metrics.ended.set()
    if metrics.watcher is not None and metrics.watcher is not threading.current_thread():
        metrics.watcher.join(5)  # it ends at once, unless a GPU driver hangs
    metrics.keep(metrics.history, now=True)


EXTENSION = Extension(
    "metrics",
    sections={"server.history": None},
    open=open_metrics,
    prepare=prepare,
    refresh=refresh,
    begin=lambda server, call: server.state["metrics"].begin(call.trace.by_page),
    observe=lambda server, *told: server.state["metrics"].note(*told),
    end=end,
    formatters={"text": TextFormatter, "json": JsonFormatter},
)
