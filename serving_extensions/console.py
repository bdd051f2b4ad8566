"""What operators and people in a browser ask for: the console, /stats, /metrics, /openapi.json,
client code.
"""

import sys
from pathlib import Path

from .catalogue import describe_versions, find_own
from .client_code import client_code
from .core import (
    BadRequest,
    Call,
    ConfigError,
    Extension,
    ModelServer,
    NotFound,
    Reply,
    may_see_model,
    read_chain,
    read_query_routines,
    reply,
    route,
)
from .metrics import prometheus_text, read_gpus
from .openapi import describe_api

# Beside the server, or where `pip install` puts it.
CONSOLE = [Path(__file__).parent.parent / "console", Path(sys.prefix) / "share/serving/console"]
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'self'; base-uri "
    "'none'; form-action 'none'"
)


PAGE_HEADERS = (
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
)


def view_metrics(server: ModelServer, call: Call) -> Reply:
    return Reply(prometheus_text(server), content_type="text/plain; version=0.0.4; charset=utf-8")


def view_stats(server: ModelServer, call: Call) -> Reply:
    """The numbers; those of models and handlers as far as the key is for them."""
    loaded = {
        f"{model}/{version}": state.servable
        for model, states in server.manager.states().items()
        for version, state in states.items()
        if state.servable and may_see_model(server, call, model)
    }
    numbers = server.state["metrics"].read()
    if call.caller.deployments is not None:
        numbers["groups"] = {
            name: group
            for name, group in numbers["groups"].items()
            if call.caller.may_see(name) or may_see_model(server, call, name)
        }
        numbers["last_errors"] = []  # their URLs name what others reach
    residency = server.state["on_demand"].read()
    residency["on_demand"] = {
        name: entry
        for name, entry in residency["on_demand"].items()
        if may_see_model(server, call, name.rpartition("/")[0])
    }
    return reply(
        {
            **numbers,
            "gpus": read_gpus(),
            "residency": residency,
            "versions": describe_versions(server, call),
            "devices": {name: servable.device for name, servable in loaded.items()},
            "calls": {name: servable.describe_calls() for name, servable in loaded.items()},
        }
    )


def view_openapi(server: ModelServer, call: Call) -> Reply:
    return reply(describe_api(server, call.mount, call.caller))


def view_root(server: ModelServer, call: Call) -> Reply:
    """Leads a browser to the page; others are told that this URL is none, as all such are."""
    if "text/html" not in (call.header("Accept") or ""):
        raise BadRequest(f"Malformed request: {call.method} {call.path}")
    address = f"{call.mount}/console/"
    return Reply(status=302, content_type="text/plain", headers=(("Location", address),))


def view_console(server: ModelServer, call: Call, name: str | None = None) -> Reply:
    """A file of the page.

    The page itself at /console/, so that its relative addresses hold under any prefix.
    """
    if name is None and not call.path.endswith("/"):
        return Reply(
            status=308,
            content_type="text/plain",
            headers=(("Location", f"{call.mount}{call.path}/"),),
        )
    for folder in CONSOLE:
        file = folder / (name or "index.html")
        if file.parent == folder and file.is_file():
            return Reply(
                file.read_bytes(),
                content_type=TYPES.get(file.suffix, "application/octet-stream"),
                headers=PAGE_HEADERS,
            )
    raise NotFound(
        f"The console has no file '{name}'"
        if CONSOLE[0].is_dir() or CONSOLE[1].is_dir()
        else "The console needs the folder console beside serving.py"
    )


def view_client(server: ModelServer, call: Call, deployment: str, language: str) -> Reply:
    """A program that calls a deployment, its key left to be filled in."""
    find_own(server, call, deployment)
    url = f"{call.url}{call.path.rpartition('/client/')[0]}/predict"
    chain = read_query_routines(call)
    try:
        read_chain(chain, server.prepared.routines)
        code = client_code(language, url, "YOUR_KEY", chain)
    except (ValueError, ConfigError) as error:
        raise BadRequest(str(error)) from None
    return Reply(code.encode(), content_type="text/plain; charset=utf-8")


def report(server: ModelServer, address: str) -> None:
    key = f"#key={server.generated_key}" if server.generated_key else ""
    print(f"Console: {address}/console{key}", flush=True)


EXTENSION = Extension(
    "console",
    report=report,
    routes=(
        route("GET", "/", view_root, "open", "Leads browsers to the page", line="health"),
        route(
            "GET",
            "/{deployment}/client/{language}",
            view_client,
            "key",
            "Code that calls it",
            lists=True,
        ),
        route(
            "GET",
            "(/metrics|/monitoring/prometheus/metrics)",
            view_metrics,
            "shared",
            "The same numbers for Prometheus",
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
