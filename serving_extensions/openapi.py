"""OpenAPI 3.1 of what is served now: made from the loaded signatures, deployments and handlers."""

import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import numpy as np

from .core import (
    NUMPY_DTYPES,
    VERBS,
    Caller,
    ModelServer,
    Route,
    Signature,
    TensorSpec,
    __version__,
    deployments_of,
    encode_json,
    routes_of,
    sample_inputs,
    spellings,
    view_infer,
    view_predict_image,
)

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "string"},
        "status": {"type": "string"},
        "code": {"type": "integer"},
        "request_id": {"type": "string"},
    },
}
POINTS = {
    "type": ["array", "null"],
    "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
}
PREDICTION = {
    "type": "object",
    "properties": {
        "annotationId": {"type": "integer"},
        "bound": POINTS,
        "boundType": {"enum": ["rectangle", "masks", None]},
        "confidence": {"type": "number"},
        "contour": POINTS,
        "contourType": {"enum": ["polygon", None]},
        "contours": {"type": "array", "items": POINTS},
        "tag": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
        },
    },
}
PICTURE = {
    "type": "object",
    "required": ["image_type", "data"],
    "properties": {
        "image_type": {"enum": ["url", "base64", "base_64", "array"]},
        "data": {"type": ["string", "array"]},
        "frame": {"type": "integer", "minimum": 0, "maximum": 9999},
        "routines": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "arguments": {"type": "object"}},
            },
        },
    },
}
KEYED: list[dict[str, list]] = [{"bearer": []}, {"header": []}]
# 8x8 black pixels
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAADElEQVR4nGNgGB4AAADIAAGtQHYiAAAAAElFTkSuQmCC"


def describe_api(server: ModelServer, prefix: str, caller: Caller) -> dict[str, Any]:
    """The whole document, as far as the caller may see; `prefix` is where the server is mounted."""
    everywhere = KEYED if server.config.auth.protect == "all" else []
    paths = describe_table(server, everywhere)
    for name in server.config.served_names:
        if caller.may_see(*deployments_of(server, name)):
            paths |= describe_model(server, name, everywhere)
    for name, ready in server.prepared.deployments.items():
        if caller.may_see(name):
            paths |= describe_deployment(ready)
    for path, endpoint in server.prepared.of.get("handlers", {}).items():
        if not caller.may_see(path):
            continue
        run = operation(f"run {path}", f"Run the handler of {path}", KEYED, {})
        ping = operation(f"ping {path}", "Load and ping the handler", KEYED)
        paths[path] = {"get": ping} | {method.lower(): run for method in endpoint.methods}
    return {
        "openapi": "3.1.0",
        "info": {"title": "serving", "version": __version__},
        "servers": [{"url": prefix or "/"}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": {"Error": ERROR, "Prediction": PREDICTION, "Picture": PICTURE},
        },
    }


def describe_table(server: ModelServer, everywhere: list) -> dict[str, Any]:
    """The rows of the URL table, names in braces; rows of deployments where there are some."""
    paths: dict[str, Any] = {}
    security = {"open": None, "shared": everywhere, "key": KEYED, "own": KEYED, "admin": KEYED}
    for row in routes_of(server.extensions):
        of_deployments = row.guard == "key" and not row.lists
        if (
            row.name in ("console", "nameless")
            or of_deployments
            and not server.prepared.deployments
        ):
            continue
        for url in spellings(row.url):
            if url.startswith("/model-serving/"):  # another name of the same
                continue
            for path in spell_verbs(url):
                found = describe_row(row, path, security[row.guard])
                paths[path] = found | paths.get(path, {})  # the row that stands first answers
    return paths


def spell_verbs(url: str) -> list[str]:
    return [url.replace("{verb}", verb) for verb in VERBS] if "{verb}" in url else [url]


def describe_row(row: Route, path: str, security: list | None) -> dict[str, Any]:
    """The methods of a row, for one way to write its URL."""
    also = ALSO.get(row.name, CHANGES if row.guard == "admin" else ())
    found = {}
    for method in row.methods:
        if method == "HEAD":  # GET without the body
            continue
        name = re.sub(r"\W+", "_", f"{method.lower()}{path}").rstrip("_")
        takes_one = row.view in (view_infer, view_predict_image) or row.name in BODIES
        body = {"type": "object"} if takes_one else None
        described = operation(name, row.doc, security, body, also=also, open_=row.guard == "open")
        if row.name in MEDIA:
            described["responses"]["200"]["content"] = {MEDIA[row.name]: {}}
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        if parameters := [*parameters, *QUERIES.get(row.name, ())]:
            described["parameters"] = parameters
        found[method.lower()] = described
    return found


DRY_RUN = (
    {
        "name": "dry_run",
        "in": "query",
        "description": "1: tell what would change, and change nothing",
        "schema": {"enum": ["0", "1"]},
    },
)
# What takes a JSON object as its body and changes the config, by a route's name.
BODIES = (
    "put_config_file",
    "put_deployment",
    "delete_deployment",
    "create_key",
    "edit_key",
    "edit_model",
)
# What a URL may ask for behind its `?`, by a route's name.
QUERIES = dict.fromkeys(("reload", "rollback", "delete_key", *BODIES), DRY_RUN)
# What is no JSON.
MEDIA = {"metrics": "text/plain", "client": "text/plain", "sample": "image/*"}
# Statuses beside the common ones, by a route's name; those of what changes the config.
CHANGES = ("201", "409", "412", "428", "507")
ALSO = {
    "reload": ("201", "400", "404", "409", "412", "500"),
    "infer": ("204", "422", "504"),
}


ERRORS = {
    "400": "wrong request",
    "404": "unknown",
    "413": "too large",
    "500": "internal error",
    "503": "not there just now",
}
DENIALS = {
    "401": "no key or a wrong one",
    "403": "the key is not for this",
    "429": "the key's quota is used up",
}


def operation(
    name: str,
    summary: str,
    security: list | None = None,
    body: dict | None = None,
    example: Any = None,
    answer: dict | None = None,
    also: tuple[str, ...] = (),
    open_: bool = False,
) -> dict[str, Any]:
    """One method of one path: 200 with JSON, and the errors that can come."""
    errors = {"503": "not there just now"} if open_ else ERRORS | (DENIALS if security else {})
    content: dict[str, Any] = {"application/json": {"schema": answer or {}}}
    responses = {"200": {"description": "the answer", "content": content}}
    for status, text in {**errors, **{status: "see the body" for status in also}}.items():
        schema = {} if status == "201" else {"$ref": "#/components/schemas/Error"}
        responses[status] = {
            "description": text,
            "content": {"application/json": {"schema": schema}},
        }
    found: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "responses": responses,
        "security": security or [],
    }
    if body is not None:
        media = {"schema": body} | ({"example": example} if example is not None else {})
        found["requestBody"] = {"required": True, "content": {"application/json": media}}
    return found


def describe_model(server: ModelServer, name: str, security: list) -> dict[str, Any]:
    """Status, metadata and predict of a model or pipeline that is there.

    Status alone of one that is not.
    """
    base = f"/v1/models/{quote(name, safe='')}"
    paths = {base: {"get": operation(f"status of {name}", f"The states of {name}", security)}}
    available = server.manager.available.get(name)
    servable = available and available.versions[max(available.versions)]
    if not servable or "serving_default" not in servable.signatures:
        return paths
    signature = servable.signatures["serving_default"]
    example = example_request(signature)
    wanted = {
        "name": "outputs",
        "in": "query",
        "description": "only these outputs, by name",
        "style": "form",
        "explode": False,
        "schema": {"type": "array", "items": {"enum": list(signature.outputs)}},
    }
    predict = operation(
        f"predict {name}",
        f"Answer by {name}",
        security,
        predict_schema(signature, servable.signatures),
        json.loads(encode_json(example)) if example else None,
        {"type": "object"},
        also=("204", "422", "504"),
    )
    return paths | {
        f"{base}/metadata": {
            "get": operation(f"metadata of {name}", f"The signatures of {name}", security)
        },
        f"{base}:predict": {"post": predict | {"parameters": [wanted]}},
    }


def predict_schema(signature: Signature, names: Iterable[str]) -> dict[str, Any]:
    """TensorFlow Serving's body by the default signature: `inputs` as columns,
    or `instances` as rows.
    """
    columns = {name: tensor_schema(spec, spec.shape) for name, spec in signature.inputs.items()}
    rows = {
        name: tensor_schema(spec, spec.shape if spec.shape is None else spec.shape[1:])
        for name, spec in signature.inputs.items()
    }
    lone = len(columns) == 1
    return {
        "type": "object",
        "properties": {
            "signature_name": {"enum": [name for name in names if name == "serving_default"]},
            "inputs": next(iter(columns.values()))
            if lone
            else {"type": "object", "properties": columns},
            "instances": {
                "type": "array",
                "minItems": 1,
                "items": next(iter(rows.values()))
                if lone
                else {"type": "object", "properties": rows},
            },
        },
        "oneOf": [{"required": ["inputs"]}, {"required": ["instances"]}],
    }


def tensor_schema(spec: TensorSpec, shape: tuple | None) -> dict[str, Any]:
    """Nested lists of a tensor's shape; sizes that are open are any."""
    kind = NUMPY_DTYPES[spec.dtype].kind if spec.dtype in NUMPY_DTYPES else "f"
    schema: dict[str, Any] = {
        "type": {"b": "boolean", "i": "integer", "u": "integer", "O": "string"}.get(kind, "number")
    }
    if shape is None:
        return {}
    for size in reversed(shape):
        schema = {"type": "array", "items": schema} | (
            {} if size is None else {"minItems": size, "maxItems": size}
        )
    return schema


def describe_deployment(ready: Any) -> dict[str, Any]:
    name, base = ready.config.id, f"/{quote(ready.config.id, safe='')}"
    found = {"predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}}
    each = {"type": "array", "items": {"type": "object", "properties": found}}
    answer = {"type": "object", "properties": {**found, "results": each}}  # for several pictures
    example = {
        "image_type": "base64",
        "data": DOT,
        "routines": [{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}],
    }
    return {
        f"{base}/predict": {
            "post": operation(
                f"predict picture by {name}",
                f"Annotations of a picture by {name}",
                KEYED,
                {"$ref": "#/components/schemas/Picture"},
                example,
                answer,
            )
        },
        f"{base}/classes": {
            "get": operation(f"classes of {name}", f"The label map of {name}", KEYED)
        },
    }


def example_request(signature: Signature) -> dict[str, Any] | None:
    """A predict request that a signature answers, for people to read.

    None if none can be made up, or none so short.
    """
    numbers = sum(
        np.prod([size or 1 for size in spec.shape or ()]) for spec in signature.inputs.values()
    )
    if numbers > 1000 or any(spec.dtype == "DT_STRING" for spec in signature.inputs.values()):
        return None
    ones = [np.ones_like(sample) for sample in sample_inputs(signature, 1)]
    return {"inputs": dict(zip(signature.inputs, ones)) if len(ones) > 1 else ones[0]}
