"""What operators and people in a browser ask for: the console, /stats, /metrics, /openapi.json,
client code.
"""

import dataclasses
import json
import sys
import time
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .client_code import LANGUAGES, client_code
from .core import (
    BadRequest,
    Call,
    ConfigError,
    Extension,
    ModelServer,
    NotFound,
    Reply,
    encode_json,
    find_deployment,
    list_samples,
    may_see_model,
    read_chain,
    read_query_routines,
    reply,
    route,
    url_of,
    view_predict_image,
)
from .history import WINDOWS
from .metrics import memory_limit, prometheus_text, read_gpus
from .openapi import describe_api, example_request
from .periods import period_of
from .quotas import open_quotas

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
    """The numbers; those of models and handlers as far as the key is for them.

    With `?window=` those of a graph.
    """
    if call.environ.get("QUERY_STRING") and "window" in call.arguments:
        return view_window(server, call)
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
            "devices": {name: servable.device for name, servable in loaded.items()},
            "calls": {name: servable.describe_calls() for name, servable in loaded.items()},
        }
    )


def view_window(server: ModelServer, call: Call) -> Reply:
    """The figures of a window for graphs, of what the key is for."""
    window = call.argument("window")
    if window not in WINDOWS:
        raise BadRequest(f"window: expected 5m, 1h or 24h, got '{window[:40]}'")
    found = server.state["metrics"].read_window(window)
    series = [
        {"kind": kind_of_series(server, kind, name), "name": name, **figures}
        for (kind, name), figures in sorted(found.pop("series").items())
        if may_see_series(server, call, kind, name)
        and (kind == "all" or figures["total"]["requests"])
    ]
    errors = [error for error in found.pop("last_errors") if may_see_error(server, call, error)]
    limits = {
        "queue": server.config.server.max_queued_requests,
        "memory_bytes": memory_limit(),
    }
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


def may_see_error(server: ModelServer, call: Call, error: Mapping[str, Any]) -> bool:
    """Whether a caller may know of an error: one of what the key is for."""
    if call.caller.deployments is None:
        return True
    if error["model"]:
        return may_see_model(server, call, error["model"])
    return call.caller.may_see(error["deployment"], error["route"])


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
    return reply(describe_api(server, call.mount, call.caller))


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


def view_deployments(server: ModelServer, call: Call) -> Reply:
    """All that the page needs to build itself: deployments, models, routines and languages.

    As far as the key is for them.
    """
    shown = [
        ready for name, ready in server.prepared.deployments.items() if call.caller.may_see(name)
    ]
    models = [name for name in server.config.served_names if may_see_model(server, call, name)]
    return reply(
        {
            "deployments": [describe_deployment(server, ready) for ready in shown],
            "models": [{"name": name, "body": example_body(server, name)} for name in models],
            "routines": [
                describe_routine(kind)
                for name, kind in server.prepared.routines.items()
                if name == kind.__name__
            ],
            "languages": [
                {"id": name, "name": language.name} for name, language in LANGUAGES.items()
            ],
        }
    )


def describe_deployment(server: ModelServer, ready: Any) -> dict[str, Any]:
    config, takes_images, reason, labels = ready.config, False, None, ready.labels
    try:
        if config.model not in server.manager.available:  # `find` waits for a model that is loading
            raise NotFound("its model is not loaded")
        _, servable = server.manager.find(config.model, config.version, config.version_label)
        labels = ready.model_of(servable).labels
        takes_images = True
    except Exception as error:  # not there, or no model of pictures
        reason = str(error)
    classes = {str(number): {"id": number, "name": name} for number, name in sorted(labels.items())}
    return {
        "id": config.id,
        "model": config.model,
        "default": config.id in server.config.default_deployment,
        "version_tag": config.version_tag,
        "takes_images": takes_images,
        "reason": reason,
        "classes": classes,
        "available": config.model in server.manager.available,
        "routines": list(config.routines),
        "samples": [path.name for path in list_samples(server, config)],
    }


def example_body(server: ModelServer, model: str) -> Any:
    """A predict body that a model's default signature takes, where one can be made up."""
    found = server.manager.available.get(model)
    signature = found and found.versions[max(found.versions)].signatures.get("serving_default")
    return json.loads(encode_json(example_request(signature))) if signature else None


KINDS = {int: "integer", float: "number", str: "string", bool: "boolean"}


def describe_routine(kind: Any) -> dict[str, Any]:
    """A routine's declaration, for fields to fill in."""
    hints = typing.get_type_hints(kind)
    arguments = [
        {
            "name": field.name,
            "kind": kind_of(hints[field.name]),
            "required": field.default is dataclasses.MISSING,
            "default": None if field.default is dataclasses.MISSING else field.default,
            **{key: field.metadata.get(key) for key in ("minimum", "maximum", "doc")},
        }
        for field in dataclasses.fields(kind)
    ]
    doc = (kind.__doc__ or "").strip().partition("\n")[0]
    return {
        "name": kind.__name__,
        "doc": doc,
        "before_model": kind.before_model,
        "arguments": arguments,
    }


def kind_of(hint: Any) -> str:
    """number, integer, string, boolean, numbers, strings or map; of a union the richest."""
    options = (
        typing.get_args(hint)
        if typing.get_origin(hint) in (typing.Union, types.UnionType)
        else (hint,)
    )
    for option in options:
        if typing.get_origin(option) is dict:
            return "map"
        if typing.get_origin(option) is tuple:
            return (
                KINDS.get(typing.get_args(option)[0], "number").replace("integer", "number") + "s"
            )
    return next((KINDS[option] for option in options if option in KINDS), "string")


def view_sample(server: ModelServer, call: Call, deployment: str, name: str) -> Reply:
    path = next(
        (
            path
            for path in list_samples(server, find_deployment(server, deployment).config)
            if path.name == name
        ),
        None,
    )
    if path is None:
        raise NotFound(f"Deployment '{deployment}' has no sample '{name}'")
    kind = {"jpg": "jpeg"}.get(path.suffix[1:].lower(), path.suffix[1:].lower())
    return Reply(
        path.read_bytes(),
        content_type=f"image/{kind}",
        headers=(("Cache-Control", "private, max-age=3600"),),
    )


def view_client(server: ModelServer, call: Call, deployment: str, language: str) -> Reply:
    """A program that calls a deployment, its key left to be filled in."""
    find_deployment(server, deployment)
    url = call.url + url_of(view_predict_image, deployment=deployment)
    chain = read_query_routines(call)
    try:
        read_chain(chain, server.prepared.routines)
        code = client_code(language, url, "YOUR_KEY", chain)
    except (ValueError, ConfigError) as error:
        raise BadRequest(str(error)) from None
    return Reply(code.encode(), content_type="text/plain; charset=utf-8")


def report(server: ModelServer, address: str) -> None:
    print(f"Console: {address}{url_of(view_console, EXTENSION.routes)}", flush=True)


EXTENSION = Extension(
    "console",
    report=report,
    routes=(
        route("GET", "/deployments", view_deployments, "key", "What the page shows", lists=True),
        route("GET", "/{deployment}/samples/{name}", view_sample, "key", "A sample picture"),
        route("GET", "/{deployment}/client/{language}", view_client, "key", "Code that calls it"),
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
