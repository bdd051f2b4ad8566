"""The numbers of one deployment that Datature's page lists, taken from the metrics."""

import sys
import time
from contextlib import suppress
from typing import Any

from .catalogue import describe_deployment
from .core import ModelServer
from .metrics import Group, percentiles, read_gpus


def describe_statistics(server: ModelServer, ready: Any, since: float | None) -> dict[str, Any]:
    """A deployment's numbers, and those of the shared process. `since` (monotonic clock) is when
    it came into force; None if it is not.

    Rates, shares and concurrency are of the last minute: `concurrent_requests` is how many were
    answered at once on average (their total time outside the queue, divided by the minute).
    `latency_ms` is of the latest 1000 requests.
    """
    metrics = server.state["metrics"]
    now = metrics.now()
    with metrics.counted():
        group = metrics.deployments.get(ready.config.id, Group()).held()
    requests, errors, busy = group.last_minute(now)
    known = describe_deployment(server, ready)
    return {
        "deployment": ready.config.id,
        "name": ready.config.name or ready.config.id,
        "version_tag": ready.config.version_tag,
        "notes": dict(ready.config.notes),
        "state": known["state"],
        "reason": known["reason"],
        "uptime_seconds": None if since is None else round(time.monotonic() - since, 1),
        "requests": group.requests,
        "errors_4xx": group.errors_4xx,
        "errors_5xx": group.errors_5xx,
        "requests_per_minute": requests,
        "error_rate": round(errors / requests, 4) if requests else 0.0,
        "latency_ms": percentiles(group.latest[:, 0]),
        "concurrent_requests": round(busy / 60, 3),
        "model_memory_bytes": model_memory(server, ready.config),
        "process": metrics.read_process(),
        "gpus": [gpu | gpu_type(index) for index, gpu in enumerate(read_gpus())],
    }


def model_memory(server: ModelServer, deployment: Any) -> int | None:
    """Bytes of its model; None unless a memory budget measures them."""
    found = server.manager.available.get(deployment.model)
    if found is None:
        return None
    version = deployment.version
    if version is None:
        version = found.labels.get(deployment.version_label, max(found.versions))
    servable = found.versions.get(version)
    return server.state["on_demand"].memory_of(servable) if servable else None


def gpu_type(index: int) -> dict[str, Any]:
    """The kind of a GPU, if TensorFlow tells it."""
    with suppress(Exception):  # the driver may say nothing
        config = sys.modules["tensorflow"].config
        gpu = config.list_physical_devices("GPU")[index]
        return {"type": config.experimental.get_device_details(gpu)["device_name"]}
    return {}
