"""What requests cost: counted as they end, read as /stats and as Prometheus's text.

One `Metrics` per server. A request costs a lock and a few additions; everything else is computed
when it is asked for.
"""

import bisect
import copy
import json
import logging
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from .core import Extension, ModelServer, Reply, Trace
from .quotas import open_quotas

PARTS = ("queue", "decode", "inference", "routines", "encode")
# upper bounds of histograms of time
SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of batch sizes
KEPT = 1000  # the latest requests of a group, whose percentiles /stats tells
TOGETHER = 64  # requests are counted together
MOST_GROUPS = 200  # of names in /stats; further ones are counted in all alone


class Histogram:
    """Counts by upper bound, and their sum."""

    def __init__(self, bounds: tuple):
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, values: Sequence[float]) -> None:
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect.bisect_left(bounds, value)] += 1
        self.sum += sum(values)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by bound, as Prometheus wants them."""
        sums = np.cumsum(self.counts).tolist()
        return [(str(float(bound)), count) for bound, count in zip(self.bounds, sums)] + [
            ("+Inf", sums[-1])
        ]


class Group:
    """What became of the requests of one deployment, model or handler, or of all."""

    def __init__(self) -> None:
        self.requests = self.errors_4xx = self.errors_5xx = 0
        # seconds, and those of the parts
        self.latest: deque[tuple[float, dict[str, float]]] = deque(maxlen=KEPT)
        self.batch_sizes: Counter[int] = Counter()
        # (second, requests in it, errors among them, seconds that they took), by second modulo 60
        self.seconds = [(0, 0, 0, 0.0)] * 60

    def add(
        self,
        now: int,
        status: int,
        seconds: Sequence[float],
        parts: Sequence[dict[str, float]],
        rows: Sequence[int],
    ) -> None:
        """Count requests that ended in the same second with the same status."""
        self.requests += len(seconds)
        self.errors_4xx += len(seconds) * (400 <= status < 500)
        self.errors_5xx += len(seconds) * (status >= 500)
        self.latest.extend(zip(seconds, parts))
        self.batch_sizes.update(rows)
        second, count, errors, busy = self.seconds[now % 60]
        if second != now:
            count, errors, busy = 0, 0, 0.0
        failed = len(seconds) * (status >= 400)
        self.seconds[now % 60] = now, count + len(seconds), errors + failed, busy + sum(seconds)

    def last_minute(self, now: int) -> tuple[int, int, float]:
        """Requests that ended in the last 60 seconds, errors among them, seconds they took."""
        fresh = [rest for second, *rest in self.seconds if now - second < 60]
        requests, errors, busy = (sum(column) for column in zip((0, 0, 0.0), *fresh))
        return requests, errors, busy

    def held(self) -> "Group":
        """A copy that stays as it is while it is read."""
        still = copy.copy(self)
        still.latest, still.batch_sizes, still.seconds = (
            self.latest.copy(),
            self.batch_sizes.copy(),
            self.seconds.copy(),
        )
        return still

    def read(self, now: int) -> dict[str, Any]:
        parts = {
            name: percentiles([seconds[name] for _, seconds in self.latest if name in seconds])
            for name in PARTS
        }
        return {
            "requests": self.requests,
            "errors_4xx": self.errors_4xx,
            "errors_5xx": self.errors_5xx,
            "requests_per_second": self.last_minute(now)[0] / 60,
            "latency_ms": percentiles([seconds for seconds, _ in self.latest]),
            "parts_ms": {name: found for name, found in parts.items() if found},
            "batch_sizes": {str(rows): count for rows, count in sorted(self.batch_sizes.items())},
        }


def percentiles(seconds: list[float]) -> dict[str, float] | None:
    """Milliseconds that a half, nine of ten and 99 of 100 keep below; None of nothing."""
    if not seconds:
        return None
    return {
        f"p{q}": round(1e3 * value, 3)
        for q, value in zip((50, 90, 99), np.percentile(seconds, (50, 90, 99)).tolist())
    }


class Metrics:
    """Counts of one server. `begin` and `end` are called around every request;"""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock, self._lock = clock, threading.Lock()
        self.started = clock()
        self.in_flight = self.peak_in_flight = 0
        self.count_waiting: Callable[[], int] = lambda: 0  # requests that wait for a thread
        self.refused: Counter[str] = Counter()  # requests that were turned away, by reason
        self.total, self.groups = Group(), dict[str, Group]()
        self.deployments = dict[str, Group]()  # by id
        self.minutes: dict[int, list[int]] = {}  # minute -> requests, errors 4xx, errors 5xx
        self.last_errors: deque[dict[str, Any]] = deque(maxlen=20)
        # by route, model, version, deployment, status
        self.requests: Counter[tuple[str, str, str, str, int]] = Counter()
        # by route, model, deployment; by part, model, deployment
        self.latency: dict[tuple[str, ...], Histogram] = {}
        self.parts: dict[tuple[str, ...], Histogram] = {}
        self.rows: dict[str, Histogram] = {}  # by model
        # calls that a version has run, and the second of the last; by model and version
        self.runs: dict[tuple[str, str], tuple[int, int]] = {}
        self._ended: deque[tuple] = deque()  # requests that are answered and not counted yet
        self._process = psutil.Process()
        self._process.cpu_percent()

    def begin(self) -> "Metrics":
        with self._lock:
            self.in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        return self

    def end(self, trace: Any, call: Mapping[str, Any], response: Any) -> None:
        """Take note of a request that is answered; `call` is what its log line says."""
        now, status = self._clock(), call["status"]
        self._ended.append((now, call, trace.parts(), trace.deployment))
        with self._lock:
            self.in_flight -= 1
            if len(self._ended) >= TOGETHER:
                self._count()
        if status >= 400:
            self.last_errors.append(
                {
                    "time": now,
                    **{name: call[name] for name in ("request_id", "method", "path", "status")},
                    "error": error_of(response),
                }
            )

    def _count(self) -> None:
        """Count what has ended: what is alike at once,
        which takes a fraction of the time that one after the other would.
        """
        alike: dict[tuple, list[tuple[float, dict[str, float], int]]] = {}
        while self._ended:
            now, call, parts, deployment = self._ended.popleft()
            kind = (
                int(now),
                call["status"],
                call["route"],
                call["model"],
                call["version"],
                deployment,
            )
            alike.setdefault(kind, []).append((call["ms"] / 1e3, parts, call["batch"]))
        for kind, calls in alike.items():
            self._count_alike(*kind, *zip(*calls))

    def _count_alike(
        self,
        now: int,
        status: int,
        route: str,
        model: str,
        version: str,
        deployment: str,
        seconds: Sequence[float],
        parts: Sequence[dict[str, float]],
        batches: Sequence[int],
    ) -> None:
        rows = [batch for batch in batches if batch]
        self.requests[route, model, version, deployment, status] += len(seconds)
        self.latency.setdefault((route, model, deployment), Histogram(SECONDS)).add(seconds)
        for name in PARTS:
            if spent := [known[name] for known in parts if name in known]:
                key = name, model, deployment
                self.parts.setdefault(key, Histogram(SECONDS)).add(spent)
        if rows:
            self.rows.setdefault(model, Histogram(ROWS)).add(rows)
            calls, _ = self.runs.get((model, version), (0, 0))
            self.runs[model, version] = calls + len(rows), now
        minute = self.minutes.setdefault(now // 60, [0, 0, 0])
        if len(self.minutes) > 60:
            del self.minutes[min(self.minutes)]
        for place, counted in enumerate((True, 400 <= status < 500, status >= 500)):
            minute[place] += len(seconds) * counted
        self.total.add(now, status, seconds, parts, rows)
        group = model or (route if route.startswith("/") else "")
        if group and (group in self.groups or len(self.groups) < MOST_GROUPS):
            self.groups.setdefault(group, Group()).add(now, status, seconds, parts, rows)
        if deployment and (deployment in self.deployments or len(self.deployments) < MOST_GROUPS):
            found = self.deployments.setdefault(deployment, Group())
            found.add(now, status, seconds, parts, rows)

    def now(self) -> int:
        """The second that is now, by its clock."""
        return int(self._clock())

    @contextmanager
    def counted(self) -> Iterator["Metrics"]:
        """These numbers, all requests among them, held still."""
        with self._lock:
            self._count()
            yield self

    def read_runs(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Calls that each version has run, and the second of the last, by model and version."""
        with self.counted():
            return dict(self.runs)

    def read(self) -> dict[str, Any]:
        """What /stats answers, but for what the models say.

        Requests wait while it is copied, and not while it is computed.
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
            ]
            found = {
                "uptime_seconds": round(now - self.started, 1),
                "in_flight": self.in_flight,
                "peak_in_flight": self.peak_in_flight,
                "queue_depth": self.count_waiting(),
                "refused": dict(self.refused),
                "minutes": minutes,
                "last_errors": list(self.last_errors)[::-1],
            }
            total, groups = (
                self.total.held(),
                {name: group.held() for name, group in sorted(self.groups.items())},
            )
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


def error_of(response: Any) -> str:
    """The error's text in an answer of any shape."""
    with suppress(ValueError, AttributeError, TypeError):
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
        yield from families  # to be spelled while requests go on
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
            "Requests turned away with 503 before a thread took them",
            labels=("reason",),
        )
        for reason, count in sorted(metrics.refused.items()):
            refused.add_metric((reason,), count)
        yield refused
        yield GaugeMetricFamily(
            "serving_uptime_seconds", "Since the server was made", time.time() - metrics.started
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
            "From the first line of our code to the answer",
            ("route", "model", "deployment"),
            metrics.latency,
        ),
        (
            "serving_request_part_seconds",
            "Parts of requests that ran a model",
            ("part", "model", "deployment"),
            metrics.parts,
        ),
        ("serving_batch_size", "Rows that the model ran at once", ("model",), rows),
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
        "Of a version's last load",
        labels=("model", "version"),
    )
    for model, states in manager.states().items():
        for version, state in states.items():
            loaded.add_metric(
                (model, str(version), state.servable.device if state.servable else ""),
                int(state.servable is not None),
            )
            if state.load_seconds:
                seconds.add_metric((model, str(version)), state.load_seconds)
    yield loaded
    yield seconds


def collect_config(server: Any) -> Iterator[Any]:
    """Whether the config file is in force, and whether all that it names is there."""
    manager = server.manager
    yield GaugeMetricFamily(
        "serving_config_last_reload_successful",
        "1 when the config file as it is now is in force, else 0",
        int(not manager.config_problem),
    )
    yield GaugeMetricFamily(
        "serving_reload_problems",
        "What of the config could not be brought about when the loader last looked",
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
    """What active learning put aside."""
    pictures = CounterMetricFamily(
        "serving_active_learning_pictures",
        "Pictures offered to a group",
        labels=("group", "outcome"),
    )
    for folder, inbox in sorted(server.state.get("active_learning", {}).items()):
        for outcome, count in sorted(inbox.counts.items()):
            pictures.add_metric((folder.name, outcome), count)
    yield pictures


def collect_quotas(server: Any) -> Iterator[Any]:
    """How much of their quotas keys have used, and how much they have."""
    used = GaugeMetricFamily(
        "serving_quota_used_calls",
        "Calls of a key in the period that is now",
        labels=("key", "period"),
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
    """The GPUs of TensorFlow, where it is loaded and has some.

    `nvidia-ml-py` adds what others use and how busy they are.
    """
    tf: Any = sys.modules.get("tensorflow")
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
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            entry |= {
                "memory_total_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                "utilisation_percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            }
        found.append(entry)
    return found


def prometheus_text(server: Any) -> bytes:
    """Everything in Prometheus's text format, the process's CPU and memory among it."""
    registry = server.kept.get(("registry",))
    if registry is None:
        registry = CollectorRegistry()
        registry.register(Collector(server))
        ProcessCollector(registry=registry)
        server.kept["registry",] = registry  # now that it is whole: others may ask at the same time
    return generate_latest(registry)


class TextFormatter(logging.Formatter):
    """Lines as logging.basicConfig has them, their second spelled once."""

    second, spelled = -1, ""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        if self.second != int(record.created):
            self.second, self.spelled = (
                int(record.created),
                time.strftime(self.default_time_format, self.converter(record.created)),
            )
        return f"{self.spelled},{int(record.msecs):03d}"


class JsonFormatter(TextFormatter):
    """A log record as one JSON object; of a request's line, each part under its own name."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        entry |= record.args if isinstance(record.args, dict) else {"message": record.getMessage()}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


# --- what plugs in --------------------------------------------------------------------------------


def open_metrics(server: ModelServer) -> Metrics:
    metrics = Metrics()
    metrics.refused = server.refused
    metrics.count_waiting = lambda: len(server.waiting)
    return metrics


def begin(server: ModelServer) -> None:
    server.state["metrics"].begin()


def observe(server: ModelServer, trace: Trace, line: Mapping[str, Any], reply: Reply) -> None:
    server.state["metrics"].end(trace, line, reply)


EXTENSION = Extension(
    "metrics",
    open=open_metrics,
    begin=begin,
    observe=observe,
    formatters={"text": TextFormatter, "json": JsonFormatter},
)
