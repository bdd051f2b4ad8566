"""URLs for operators and browsers: the console, /stats, /metrics, /openapi.json."""

import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .catalogue import describe_versions
from .core import (
    BadRequest,
    Call,
    Caller,
    Extension,
    ModelServer,
    NotFound,
    Reply,
    ServingError,
    deployments_of,
    may_see_model,
    reply,
    route,
    url_of,
)
from .history import WINDOWS
from .metrics import memory_limit, prometheus_text, read_gpus
from .openapi import describe_api
from .periods import period_of
from .quotas import open_quotas
from .wrong_keys import identify_for

# Beside the server, or where `pip install` puts it.
CONSOLE = [Path(__file__).parent.parent / "console", Path(sys.prefix) / "share/serving/console"]
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"


PAGE_HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


def view_metrics(server: ModelServer, call: Call) -> Reply:
    return Reply(prometheus_text(server), content_type="text/plain; version=0.0.4; charset=utf-8")


def view_stats(server: ModelServer, call: Call) -> Reply:
    """The server's numbers, and those of the models and handlers that the key is for.

    `?window=` asks for graphs, `?request=` for the place in the queue of a request by its id.
    """
    if "window" in call.arguments:
        return view_window(server, call)
    if "request" in call.arguments:
        return reply({"place": server.place_of(call.argument("request"))})
    calls = {
        f"{model}/{version}": servable.describe_calls()
        for model, states in server.manager.states().items()
        for version, state in states.items()
        if (servable := state.servable) and may_see_model(server, call, model)
    }
    numbers = server.state["metrics"].read()
    if call.caller.deployments is not None:
        numbers["groups"] = {
            name: group
            for name, group in numbers["groups"].items()
            if may_see_model(server, call, name) or name[0] == "/" and call.caller.may_see(name)
        }
    numbers["last_errors"] = list_errors(server, call, numbers["last_errors"])
    return reply(
        {
            **numbers,
            "gpus": read_gpus(),
            "residency": server.state["on_demand"].read(),
            "versions": describe_versions(server, call),
            "calls": calls,
        }
    )


def view_window(server: ModelServer, call: Call) -> Reply:
    """A window's figures for graphs, of what the key is for."""
    window = call.argument("window")
    if window not in WINDOWS:
        raise BadRequest(f"window: expected 5m, 1h or 24h, got '{window[:40]}'")
    found = server.state["metrics"].read_window(window)
    series = [
        {"kind": kind_of_series(server, kind, name), "name": name, **figures}
        for (kind, name), figures in sorted(found.pop("series").items())
        if may_see_series(server, call, kind, name)
        and (kind == "all" or figures["total"]["requests"] or figures["total"]["refused"])
    ]
    errors = list_errors(server, call, found.pop("last_errors"))
    limits = {"queue": server.config.server.max_queued_requests, "memory_bytes": memory_limit()}
    quotas = read_quotas(server, call)
    return reply(
        {**found, "limits": limits, "series": series, "quotas": quotas, "last_errors": errors}
    )


def kind_of_series(server: ModelServer, kind: str, name: str) -> str:
    return "pipeline" if kind == "model" and server.config.is_pipeline(name) else kind


def may_see_series(server: ModelServer, call: Call, kind: str, name: str) -> bool:
    if kind == "model":
        return may_see_model(server, call, name)
    return kind == "all" or call.caller.may_see(name)


def list_errors(
    server: ModelServer, call: Call, errors: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """The errors that a caller may see. A text may quote another's request, so only a key for
    what failed shows it.
    """
    known = call.caller if call.caller != Caller() else identify_sender(server, call)
    return [
        error if known and may_see_error(server, known, error) else {**error, "error": ""}
        for error in errors
        if may_see_error(server, call.caller, error)
    ]


def identify_sender(server: ModelServer, call: Call) -> Caller | None:
    """The caller of an open URL, by the key that is sent; None without a valid one."""
    with suppress(ServingError):
        return identify_for(server, call, None, False) or server.identify(call.headers, None, False)
    return None


def may_see_error(server: ModelServer, caller: Caller, error: Mapping[str, Any]) -> bool:
    """Whether a caller may see an error: the key is for what failed."""
    if error["model"] and not error["deployment"]:
        return caller.may_see(*deployments_of(server, error["model"]))
    return caller.may_see(error["deployment"], error["route"])


def read_quotas(server: ModelServer, call: Call) -> list[dict[str, Any]]:
    """What keys have used of their quotas: all of them, or the caller's own."""
    everybody, now = call.caller.deployments is None, time.time()
    return [
        {
            "key": key.name,
            "used": open_quotas(server.config.auth.quota_store).used(key.name, key.quota.period),
            "limit": key.quota.calls,
            "period": key.quota.period,
            "resets": period_of(now, key.quota.period)[1],
        }
        for key in server.config.auth.keys
        if key.quota and (everybody or key.name == call.caller.name)
    ]


def view_openapi(server: ModelServer, call: Call) -> Reply:
    return reply(describe_api(server, call.mount, call.url, call.caller))


def view_root(server: ModelServer, call: Call) -> Reply:
    """Redirect a browser to the page; answer others as at any unknown URL."""
    if "text/html" not in (call.header("Accept") or ""):
        raise BadRequest(f"Malformed request: {call.method} {call.path}")
    address = f"{call.mount}{url_of(view_console, EXTENSION.routes)}/"
    return Reply(status=302, content_type="text/plain", headers=(("Location", address),))


def view_console(server: ModelServer, call: Call, name: str | None = None) -> Reply:
    """A file of the page.

    The page itself is at /console/, so that its relative URLs work under any prefix.
    """
    if name is None and not call.path.endswith("/"):
        return Reply(
            status=308,
            content_type="text/plain",
            headers=(("Location", f"{call.mount}{call.path}/"),),
        )
    files = {file.name: file for folder in reversed(CONSOLE) for file in folder.glob("*.*")}
    file = files.get(name or "index.html")
    if file is None:
        raise NotFound(
            f"The console has no file '{name}'"
            if files
            else "The console needs the folder console beside serving.py"
        )
    return Reply(
        file.read_bytes(),
        content_type=TYPES.get(file.suffix, "application/octet-stream"),
        headers=PAGE_HEADERS,
    )


def announce(server: ModelServer, address: str) -> None:
    key = f"#key={server.generated_key}" if server.generated_key else ""
    print(f"Console: {address}{url_of(view_console, EXTENSION.routes)}{key}", flush=True)


EXTENSION = Extension(
    "console",
    announce=announce,
    routes=(
        route("GET", "/", view_root, "open", "Redirects browsers to the page", line="health"),
        route(
            "GET",
            "(/metrics|/monitoring/prometheus/metrics)",
            view_metrics,
            "shared",
            "Metrics for Prometheus",
            free=True,
            line="health",
        ),
        route(
            "GET",
            "/stats",
            view_stats,
            "shared",
            "Counts, latencies, resources",
            lists=True,
            line="health",
        ),
        route("GET", "/openapi.json", view_openapi, "shared", "This document", lists=True),
        route("GET HEAD", "/console[/[{name}]]", view_console, "open", "The page", line="health"),
    ),
)
