"""What is served, for people to choose from: GET /deployments, samples, and pictures as a model
sees them. The page is built from it.
"""

import dataclasses
import functools
import os
import types
import typing
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import cv2
import numpy as np

from .client_code import LANGUAGES
from .core import (
    BadRequest,
    Call,
    Extension,
    ModelServer,
    NotFound,
    Reply,
    ServingError,
    asked_chain,
    find_deployment,
    is_asked,
    list_samples,
    may_see_model,
    read_image,
    reply,
    route,
    routine_errors,
    routines,
)
from .openapi import example_of, texts_of
from .wrong_keys import identify_for

PREVIEW_PIXELS = 1600  # of a preview's longer side
OUTLINE = (230, 60, 60)  # of tiles


def view_deployments(server: ModelServer, call: Call) -> Reply:
    """All that is served and the key is for, and how to call it; never waits for a model.

    `loading` tells how many models there are, and which are still awaited.
    """
    server.start()
    every = server.models()
    models = [one for one in every if may_see_model(server, call, one["name"])]
    pipelines = [one for one in models if server.config.is_pipeline(one["name"])]
    reasons = {one["name"]: reason_told(one) for one in every}
    seen = [
        ready for name, ready in server.prepared.deployments.items() if call.caller.may_see(name)
    ]
    return reply(
        {
            "key": describe_key(server, call),
            "loading": describe_loading(server, models),
            "deployments": [
                describe_deployment(server, ready, reasons.get(ready.config.model, ""))
                for ready in seen
            ],
            "models": [describe_model(server, one) for one in models if one not in pipelines],
            "pipelines": [describe_pipeline(server, one) for one in pipelines],
            "handlers": describe_handlers(server, call),
            "routines": [
                describe_routine(kind)
                for name, kind in server.prepared.routines.items()
                if name == kind.__name__
            ],
            "languages": [describe_language(name) for name in LANGUAGES],
        }
    )


def describe_language(name: str) -> dict[str, str]:
    """A language of client programs: their file, what they need, and how they are run."""
    one = LANGUAGES[name]
    return {"id": name, "name": one.name, "file": one.file_name, "needs": one.needs, "run": one.run}


def describe_key(server: ModelServer, call: Call) -> dict[str, Any]:
    """The key's name, the deployments and handlers that it is for (null: all), and whether it may
    change what is served.
    """
    caller, limited = call.caller, call.caller.deployments
    only = None if limited is None else sorted(limited)
    return {"name": caller.name, "only": only, "admin": may_manage(server, call)}


def may_manage(server: ModelServer, call: Call) -> bool:
    """Whether the request's key is an admin's. Checked even if the request needed no key: a host
    site let it in, or nothing that is served needs one.
    """
    if server.config.admin is None:
        return False
    key = call.caller.key
    if key is None:
        with suppress(ServingError):  # a wrong key allows nothing more
            found = identify_for(server, call, None)
            key = found.key if found else None
    return key is not None and key.admin


def describe_loading(server: ModelServer, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether the first load is over, and which models are still awaited."""
    waiting = [] if server.manager.first_pass_done.is_set() else models
    names = [one["name"] for one in waiting if state_of(server, one) == "loading"]
    return {"of": len(models), "waiting": names}


def state_of(server: ModelServer, model: dict[str, Any]) -> str:
    """`ready`, `failed`, `loading` or `empty` (a model without versions)."""
    if model["name"] in server.manager.available:
        return "ready"
    if reason_told(model):
        return "failed"
    return "empty" if server.manager.first_pass_done.is_set() else "loading"


def reason_told(model: dict[str, Any]) -> str:
    """Why a model, or the first version of it that failed, cannot be loaded."""
    versions = model["model_version_status"]
    return next(
        (one["status"]["error_message"] for one in versions if one["status"]["error_message"]), ""
    )


def describe_model(server: ModelServer, model: dict[str, Any]) -> dict[str, Any]:
    name = model["name"]
    config = next((one for one in server.config.models if one.name == name), None)
    return {
        "name": name,
        "state": state_of(server, model),
        "reason": reason_told(model),
        "versions": model["model_version_status"],
        "labels": dict(config.version_labels) if config else {},
        **describe_examples(server, name),
    }


def describe_versions(server: ModelServer, call: Call) -> dict[str, Any]:
    """What each loaded version costs and how often it is called, by `model/version`.

    `memory_bytes` is measured only under a memory budget, else null; `file_bytes` is the size of
    its files. `calls` and `last_used` (seconds since 1970, or null) are since the start; a
    pipeline's calls of its models count as the pipeline's.
    """
    residency = server.state["on_demand"]
    on_demand = {entry.name: entry for entry in residency.known()}
    runs = server.state["metrics"].read_runs()
    found = {}
    for model, states in server.manager.states().items():
        if not may_see_model(server, call, model):
            continue
        for version, state in states.items():
            servable = state.servable  # the loader may take it away meanwhile
            if servable is None:
                continue
            name = f"{model}/{version}"
            own = on_demand.get(name)
            calls, last_used = runs.get((model, str(version)), (0, None))
            found[name] = {
                "device": servable.device,
                "load_seconds": round((own or state).load_seconds, 3),
                "memory_bytes": residency.memory_of(servable),
                "file_bytes": file_bytes(state.files),
                "calls": calls,
                "last_used": last_used,
                "on_demand": own
                and {
                    "resident": own.resident is not None,
                    "why": own.why,
                    "pinned": own.config.pinned,
                },
            }
    return found


@functools.lru_cache(256)  # it reads the disk; fingerprints change with the files
def file_bytes(fingerprint: tuple) -> int:
    """Bytes of the files of a version, folders themselves left out."""
    return sum(size for path, size, *_ in fingerprint if os.path.isfile(path))


def describe_pipeline(server: ModelServer, model: dict[str, Any]) -> dict[str, Any]:
    """A pipeline and its graph: nodes, and from which output each input comes."""
    name = model["name"]
    config = next(one for one in server.config.pipeline_config_list if one.name == name)
    return {
        "name": name,
        "state": state_of(server, model),
        "reason": reason_told(model),
        "inputs": list(config.inputs),
        "nodes": [
            {
                "name": node.name,
                "model": node.model_name,
                "function": node.function,
                "inputs": links_of(node.inputs),
            }
            for node in config.nodes
        ],
        "outputs": links_of(config.outputs),
        **describe_examples(server, name),
    }


def links_of(inputs: Any) -> list[dict[str, str]]:
    return [
        {"name": name, "node": source.node_name, "item": source.data_item}
        for each in inputs
        for name, source in each.items()
    ]


def describe_handlers(server: ModelServer, call: Call) -> list[dict[str, Any]]:
    """The endpoints of the config and of Python, if the key is for them."""
    return [
        {
            "path": path,
            "state": state_of_handler(endpoint.handler),
            "reason": endpoint.handler.error or "",
            "methods": list(endpoint.methods),
            "envelope": name_envelope(server, endpoint.envelope),
        }
        for path, endpoint in server.prepared.of.get("handlers", {}).items()
        if call.caller.may_see(path)
    ]


def name_envelope(server: ModelServer, envelope: Any) -> str | None:
    """An envelope's name in a config; None for no envelope, or for one that has no name."""
    known = [item for one in server.extensions for item in one.envelopes.items()]
    return next((name for name, one in known if one is envelope), None)


def state_of_handler(handler: Any) -> str:
    if handler.ready:
        return "ready"
    return "failed" if handler.error else "loading"


def describe_deployment(server: ModelServer, ready: Any, failure: str = "") -> dict[str, Any]:
    """How to call a deployment; `failure` is why its model could not be loaded."""
    config, labels = ready.config, ready.labels
    state, reason = "ready", ready.problem or ""
    available = config.model in server.manager.available
    try:
        if not available:  # `find` would wait while it loads
            raise NotFound("its model is not loaded")
        _, servable = server.manager.find(config.model, config.version, config.version_label)
        labels = ready.of(servable).model_of(servable).labels
    except Exception as error:  # missing, or no model of pictures
        state = "failed" if available or server.manager.first_pass_done.is_set() else "loading"
        reason = reason or ": ".join(filter(None, [str(error), failure if not available else ""]))
    learning = config.active_learning
    return {
        "id": config.id,
        "model": config.model,
        "version": config.version,
        "version_label": config.version_label,
        "default": config.id in server.config.default_deployment,
        "version_tag": config.version_tag,
        "state": "failed" if ready.problem else state,
        "reason": reason,
        "classes": {
            str(number): {"id": number, "name": name} for number, name in sorted(labels.items())
        },
        "routines": list(config.routines),
        "samples": [path.name for path in list_samples(server, config)],
        "active_learning": learning and {"group": learning.group, "threshold": learning.threshold},
    }


def describe_examples(server: ModelServer, model: str) -> dict[str, Any]:
    """What the newest version takes: `body`, a predict body that it answers, if one can be made
    up; `examples` by signature, then by input: a tf.train.Example or picture file as base64.
    """
    found = server.manager.available.get(model)
    if found is None:
        return {"body": None, "examples": {}}
    newest = found.versions[max(found.versions)]
    examples = {name: texts_of(one) for name, one in newest.signatures.items()}
    return {"body": example_of(newest), "examples": examples}


KINDS = {int: "integer", float: "number", str: "string", bool: "boolean"}


def describe_routine(kind: Any) -> dict[str, Any]:
    """A routine's declaration, for the fields of a form."""
    hints = typing.get_type_hints(kind)
    arguments = [
        {
            "name": field.name,
            "kind": kind_of(hints[field.name]),
            "required": field.default is field.default_factory is dataclasses.MISSING,
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
    """number, integer, string, boolean, numbers, strings or map; for a union the richest."""
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


def find_own(server: ModelServer, call: Call, deployment: str) -> Any:
    """A deployment that the caller's key is for, without counting a call. Raises ServingError."""
    if not call.caller.may_see(deployment):
        raise ServingError(f"The key is not for '{deployment}'", "PERMISSION_DENIED")
    return find_deployment(server, deployment)


def view_sample(server: ModelServer, call: Call, deployment: str, name: str) -> Reply:
    own = list_samples(server, find_own(server, call, deployment).config)
    path = next((path for path in own if path.name == name), None)
    if path is None:
        raise NotFound(f"Deployment '{deployment}' has no sample '{name}'")
    suffix = path.suffix[1:].lower()
    return Reply(
        path.read_bytes(),
        content_type=f"image/{'jpeg' if suffix == 'jpg' else suffix}",
        headers=(("Cache-Control", "private, max-age=3600"),),
    )


def view_preview(server: ModelServer, call: Call, deployment: str) -> Reply:
    """A picture as the model is shown it: decoded, upright, after the routines before the model.

    The body is that of /predict; no model runs. With `?whole=1` no routine runs either. Answers a
    PNG of at most 1600 pixels a side, with tiles outlined. `X-Picture-Size` is the picture's own
    width and height (`4000x3000`), `X-Shown-Size` that of what the model is shown.
    """
    ready = find_own(server, call, deployment)
    image, chain = read_image(server, call, ready.config)
    if isinstance(image, list):
        raise BadRequest(f"preview: expected one picture, got {len(image)}")
    own = asked_chain(server, chain)
    whole = is_asked(call, "whole")
    steps = [step for step in (*ready.chain, *own) if step.before_model and not whole]
    image = routines.on_background(image, server.config.server.images.background)
    with routine_errors():
        shown, _ = routines.run_before(steps, image)
        sizes = ("X-Picture-Size", tell_size(image)), ("X-Shown-Size", tell_size(shown))
        return Reply(draw_preview(shown, steps), content_type="image/png", headers=sizes)


def tell_size(pixels: np.ndarray) -> str:
    height, width = pixels.shape[:2]
    return f"{width}x{height}"


def shrink(image: np.ndarray, most: int) -> tuple[np.ndarray, float]:
    """Pixels [H, W, C] with at most `most` on the longer side, and the factor of the sides."""
    factor = min(1.0, most / max(image.shape[:2]))
    width, height = (max(1, round(side * factor)) for side in image.shape[1::-1])
    return routines.resize(image, width, height), factor


def draw_preview(shown: np.ndarray, steps: Sequence[Any]) -> bytes:
    """RGB pixels [H, W, 3] as a PNG: shrunk, with a routine's tiles outlined."""
    tile = routines.find_tile(steps)
    windows = tile.windows(shown) if tile else ()
    shown, factor = shrink(shown, PREVIEW_PIXELS)
    shown = np.ascontiguousarray(shown).copy()
    for top, left, bottom, right in np.round(np.array(windows).reshape(-1, 4) * factor).astype(int):
        cv2.rectangle(shown, (left, top), (right - 1, bottom - 1), OUTLINE, 2)
    return routines.encode(shown)


EXTENSION = Extension(
    "catalogue",
    routes=(
        route("GET", "/deployments", view_deployments, "key", "All that is served", lists=True),
        route(
            "GET",
            "/{deployment}/samples/{name}",
            view_sample,
            "key",
            "A sample picture",
            lists=True,
        ),
        route(
            "POST",
            "/{deployment}/preview",
            view_preview,
            "key",
            "A picture as the model is shown it",
            lists=True,
        ),
    ),
)
