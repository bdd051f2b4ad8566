"""The OpenAPI 3.1 document, made from the signatures, deployments and handlers in force."""

import base64
import functools
import json
import math
import re
from collections import Counter
from typing import Any

import numpy as np

from .core import (
    DOT,
    FULL,
    HUB,
    MAX_DIMENSIONS,
    NUMPY_DTYPES,
    READ_PNG,
    VERBS,
    Caller,
    Envelope,
    ModelServer,
    Route,
    Servable,
    Signature,
    TensorSpec,
    __version__,
    deployments_of,
    encode_json,
    picture_input,
    routes_of,
    sample_inputs,
    spellings,
    url_of,
    view_classes,
    view_infer,
    view_metadata,
    view_models,
    view_predict_image,
    view_status,
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
        "data": {"type": ["string", "array"], "items": {}},
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
PREDICTIONS = {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}}
PICTURE_ANSWER = {
    "type": "object",
    "properties": {
        "predictions": PREDICTIONS,
        "results": {  # for several pictures
            "type": "array",
            "items": {"type": "object", "properties": {"predictions": PREDICTIONS}},
        },
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}
HUB_ERROR = {
    "type": "object",
    "required": ["statusCode", "body"],
    "properties": {
        "statusCode": {"type": "integer"},
        "body": {
            "type": "object",
            "required": ["error"],
            "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}},
        },
    },
}
STATUS = {
    "type": "object",
    "required": ["model_version_status"],
    "properties": {
        "model_version_status": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "version": {"type": "string"},
                    "state": {"type": "string"},
                    "status": {
                        "type": "object",
                        "properties": {
                            "error_code": {"type": "string"},
                            "error_message": {"type": "string"},
                        },
                    },
                },
            },
        }
    },
}
LABELS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
    },
}
SCHEMAS = {
    "Error": ERROR,
    "HubError": HUB_ERROR,
    "OwnError": {},
    "Prediction": PREDICTION,
    "Picture": PICTURE,
    "PictureAnswer": PICTURE_ANSWER,
    "Status": STATUS,
    "Labels": LABELS,
}
FILE = {"type": "string", "format": "binary"}
TENSOR_V2 = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {},
        "parameters": {"type": ["object", "null"]},
    },
}
INFER_V2 = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": ["string", "null"]},
        "inputs": {"type": "array", "minItems": 1, "items": TENSOR_V2},
        "outputs": {
            "type": ["array", "null"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "parameters": {"type": ["object", "null"]},
                },
            },
        },
        "parameters": {"type": ["object", "null"]},
    },
}


def refer(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def in_json(schema: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The content of a body or an answer that is JSON."""
    return {"application/json": {"schema": schema, **options}}


def in_query(name: str, doc: str, schema: dict, **options: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": doc, "schema": schema, **options}


def in_head(name: str, doc: str, **options: Any) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": "header", "description": doc, "schema": schema, **options}


CHAIN = in_query("routines", 'JSON: [{"name": "Histogram"}]', {"type": "string"})
OF_BODY = [  # for a body that is the picture itself
    {**CHAIN, "description": "for a body that is the picture itself. " + CHAIN["description"]},
    in_query(
        "frame",
        "of an animation or a TIFF of several pages, for a body that is the picture itself",
        PICTURE["properties"]["frame"],  # type: ignore[index]
    ),
]
OF_PICTURES = [
    in_query(
        "format",
        "annotations, COCO, or the picture drawn; Accept may name the latter, too",
        {"enum": ["json", "coco", "png", "jpeg"], "type": "string"},
    ),
    *OF_BODY,
    in_query("version", "of the model, in place of the deployment's", {"type": "integer"}),
    in_query("version_label", "or the label of one", {"type": "string"}),
]
PICTURE_FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": FILE, "routines": {"type": "string"}, "frame": {"type": "integer"}},
}
PICTURE_BODIES = {
    **in_json(refer("Picture"), example={"image_type": "base64", "data": DOT}),
    "application/octet-stream": {"schema": FILE},  # the picture itself, or .npy
    "multipart/form-data": {"schema": PICTURE_FORM},
}
PICTURE_ANSWERS = {
    **in_json(refer("PictureAnswer")),
    "image/png": {"schema": FILE},
    "image/jpeg": {"schema": FILE},
}
# Bodies of :predict besides JSON; application/octet-stream is a raw tensor, or a picture.
ARRAYS = {
    kind: {"schema": FILE}
    for kind in ("application/x-npy", "application/x-npz", "application/octet-stream")
}
OF_ARRAYS = [
    in_head("X-Tensor-Dtype", "of a raw tensor; float32 where it is left out"),
    in_head("X-Tensor-Shape", "of a raw tensor: 1,224,224,3"),
]
KEY_ASKED: list[dict[str, list]] = [{"bearer": []}, {"header": []}]


def describe_api(server: ModelServer, prefix: str, url: str, caller: Caller) -> dict[str, Any]:
    """The whole document, without parts that the caller may not see; `prefix` is the path where the
    server is mounted, `url` the full address of that path.
    """
    everywhere = KEY_ASKED if server.config.auth.protect == "all" else []
    paths = document_table(server, everywhere)
    for name in server.config.served_names:
        if caller.may_see(*deployments_of(server, name)):
            paths |= tag("models", document_model(server, name, everywhere))
    for name, ready in server.prepared.deployments.items():
        if caller.may_see(name):
            paths |= tag("pictures", document_deployment(ready))
    for path, endpoint in server.prepared.of.get("handlers", {}).items():
        if caller.may_see(path):
            paths |= tag("handlers", {path: document_handler(endpoint)})
    return {
        "openapi": "3.1.0",
        "info": {"title": "serving", "version": __version__},
        # the first works behind any proxy, the second for a document saved as a file
        "servers": [{"url": prefix or "/"}, {"url": url}],
        "paths": name_operations(paths),
        "components": {
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "schemas": SCHEMAS,
            "responses": RESPONSES,
        },
    }


def tag(name: str, paths: dict[str, Any]) -> dict[str, Any]:
    """Set the tag, under which a viewer groups the operations of these paths."""
    for methods in paths.values():
        for described in methods.values():
            described["tags"] = [name]
    return paths


def name_operations(paths: dict[str, Any]) -> dict[str, Any]:
    """Turn the operations' ids into unique names that are valid in any language."""
    counts: Counter[str] = Counter()
    for methods in paths.values():
        for described in methods.values():
            name = re.sub(r"[^a-z0-9]+", "_", described["operationId"].lower()).strip("_")
            counts[name] += 1
            while counts[name] > 1:  # the name with a number added may be taken as well
                name = f"{name}_{counts[name]}"
                counts[name] += 1
            described["operationId"] = name
    return paths


HUB_ANSWER = {
    "type": "object",
    "properties": {"statusCode": {"type": "integer"}, "body": {"type": "object"}},
}
# The schema of a handler's answer and the kind of its errors, by envelope; an extension's own
# envelope may have any form.
ENVELOPED: dict[Envelope, tuple[dict, str]] = {FULL: ({}, "Error"), HUB: (HUB_ANSWER, "HubError")}


def document_handler(endpoint: Any) -> dict[str, Any]:
    """The methods of a handler: those that run it, and otherwise a GET that pings it."""
    path = endpoint.path
    schema, error = ENVELOPED.get(endpoint.envelope, ({}, "OwnError"))
    found = {}
    for method in dict.fromkeys(("GET", *endpoint.methods)):
        if method in endpoint.methods:
            doc = f"Run the handler of {path}"
            described = operation(f"{method} {path}", doc, KEY_ASKED, answer=schema, error=error)
            if method != "GET":  # browsers send none with a GET
                described["requestBody"] = {"content": dict(ANYTHING)}
            tell_own_answers(described["responses"])
        else:
            doc = "Load and ping the handler"
            described = operation(f"ping {path}", doc, KEY_ASKED, answer=schema, error=error)
        found[method.lower()] = described
    return found


def tell_own_answers(responses: dict[str, Any]) -> None:
    """Let a handler's own answers and errors have any form; errors that the server answers before
    the function is called, or in its place, keep the server's form.
    """
    responses["200"]["content"] |= ANYTHING | responses["200"]["content"]
    for status in responses.keys() - {"200", "500", *DENIALS}:
        responses[status] = {"$ref": f"#/components/responses/OwnError{status}"}
    responses["default"] = {"description": "what else the handler answers"}


def document_table(server: ModelServer, everywhere: list) -> dict[str, Any]:
    """The rows of the URL table, names in braces; those of deployments only if there are any."""
    paths: dict[str, Any] = {}
    security = {"open": None, "shared": everywhere}
    for row in routes_of(server.extensions):
        of_deployments = "{deployment}" in row.url
        if (
            row.name in ("console", "root", "nameless")
            or of_deployments
            and not server.prepared.deployments
        ):
            continue
        for url in spellings(row.url):
            if "{alias}" in url:  # another name of a URL that is listed already
                continue
            for path in spell_verbs(url):
                found = document_row(row, path, security.get(row.guard, KEY_ASKED))
                paths[path] = found | paths.get(path, {})  # the row that stands first answers
    return paths


def spell_verbs(url: str) -> list[str]:
    return [url.replace("{verb}", verb) for verb in VERBS] if "{verb}" in url else [url]


def document_row(row: Route, path: str, security: list | None) -> dict[str, Any]:
    """The methods of a row, for one spelling of its URL."""
    also = ALSO.get(row.name, CHANGES if row.guard == "admin" else ())
    found = {}
    for method in row.methods:
        if method == "HEAD":  # GET without the body
            continue
        name = f"{method} {path}"
        described = operation(name, row.doc, security, also=also, open_=row.guard == "open")
        described["responses"]["200"]["content"] = ANSWERS.get(row.name, ANY)
        bodies = infer_bodies(path) if row.view is view_infer else BODIES.get((row.name, method))
        if bodies:
            needed = (row.name, method) not in MAY_BE_EMPTY
            described["requestBody"] = {"required": needed, "content": bodies}
        names = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        if parameters := [*names, *PARAMETERS.get((row.name, method), ())]:
            described["parameters"] = parameters
        found[method.lower()] = described | {"tags": [tag_of(row)]}
    return found


def tag_of(row: Route) -> str:
    """The tag under which a row's operations are shown."""
    if "{model}" in row.url or row.view is view_models:
        return "models"
    return "pictures" if "{deployment}" in row.url else "server"


def infer_bodies(path: str) -> dict[str, Any]:
    """The bodies of `:predict`, or of `:classify` and `:regress`, for a model not known yet."""
    named = {"signature_name": {"type": "string"}}
    if path.endswith(":predict"):
        rows = {"type": "array", "items": {}, "minItems": 1}
        return in_json(one_of(named, {}, rows)) | ARRAYS
    examples = {"type": "array", "items": {}, "minItems": 1}
    properties = {**named, "context": {"type": "object"}, "examples": examples}
    return in_json({"type": "object", "required": ["examples"], "properties": properties})


def one_of(named: dict, columns: dict, rows: dict) -> dict[str, Any]:
    """A predict body: its inputs as columns, or as rows."""
    return {
        "oneOf": [
            {"type": "object", "required": [name], "properties": {**named, name: schema}}
            for name, schema in (("inputs", columns), ("instances", rows))
        ]
    }


ANY = in_json({})
OBJECT = in_json({"type": "object"})
ANYTHING = {**ANY, "*/*": {"schema": FILE}}
TEXT = {"schema": {"type": "string"}}
# What the routes take and answer, by name.
ANSWERS = {
    "metrics": {"text/plain": TEXT},
    "client": {"text/plain": TEXT},
    "model_client": {"text/plain": TEXT},
    "call_client": {"text/plain": TEXT},
    "sample": {"image/*": {"schema": FILE}},
    "picture": {"image/png": {"schema": FILE}},
    "preview": {"image/png": {"schema": FILE}},
    "status": in_json(refer("Status")),
    "classes": in_json(refer("Labels")),
    "infer": {**OBJECT, **ARRAYS},
    "infer_v2": {
        **OBJECT,
        "application/octet-stream": {"schema": FILE},  # JSON and the bytes behind it
    },
    "predict_image": PICTURE_ANSWERS,
}


def of_members(*required: str, **properties: dict) -> dict[str, Any]:
    """A body that is a JSON object with these members."""
    needed = {"required": [*required]} if required else {}
    return in_json({"type": "object", "properties": properties, **needed})


# Routes that take a JSON object as their body and change the config.
CHANGING = (
    ("put_config_file", "PUT"),
    ("put_deployment", "PUT"),
    ("put_deployment", "PATCH"),
    ("delete_deployment", "DELETE"),
    ("create_key", "POST"),
    ("edit_key", "PATCH"),
    ("edit_model", "PATCH"),
)
MATCHED = (*CHANGING, ("rollback", "POST"), ("delete_key", "DELETE"))
UPLOADS = (("upload", "POST"), ("upload", "PUT"), ("project", "PUT"))
ARCHIVES = {"application/octet-stream": {"schema": FILE}}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    **dict.fromkeys(CHANGING, OBJECT),
    **dict.fromkeys(UPLOADS, ARCHIVES),
    ("rollback", "POST"): of_members(to={"type": "string"}),
    ("verdict", "PUT"): of_members("verdict", verdict={"enum": ["accepted", "rejected", "none"]}),
    ("infer_v2", "POST"): {
        **in_json(INFER_V2),
        "application/octet-stream": {"schema": FILE},  # JSON and the bytes behind it, or bytes
    },
    ("predict_image", "POST"): PICTURE_BODIES,
    ("preview", "POST"): PICTURE_BODIES,
    ("call_client", "POST"): in_json(
        {
            "type": "object",
            "required": ["path"],
            "properties": {
                "path": {"type": "string", "pattern": "^/"},
                "method": {"type": "string"},
                "body": {},
                "key": {"type": "string"},
            },
        },
        example={"path": "/readyz"},
    ),
}
MAY_BE_EMPTY = (("rollback", "POST"),)  # bodies
OUTPUTS = in_query(
    "outputs",
    "only these outputs, by name: a,b",
    {"type": "array", "items": {"type": "string"}},
    style="form",
    explode=False,
)
DRY_RUN = in_query("dry_run", "1: tell what would change, and change nothing", {"enum": ["0", "1"]})
IF_MATCH = in_head("If-Match", "the ETag of the config file that this changes, or *")
MUST_MATCH = in_head("If-Match", "the ETag of what it replaces, or *; only a dry run needs none")
PARAMETERS = {
    **dict.fromkeys(MATCHED, [DRY_RUN, IF_MATCH]),
    **dict.fromkeys(UPLOADS, [IF_MATCH]),
    ("put_config_file", "PUT"): [DRY_RUN, MUST_MATCH],
    ("infer_v2", "POST"): [
        in_head("Inference-Header-Content-Length", "bytes of JSON at the beginning of the body")
    ],
    ("infer", "POST"): [OUTPUTS, *OF_ARRAYS],
    ("predict_image", "POST"): OF_PICTURES,
    ("preview", "POST"): [
        *OF_BODY,
        in_query("whole", "1: as it came, before any routine", {"enum": ["0", "1"]}),
    ],
    ("active_learning", "GET"): [
        in_query("format", "COCO, or the records as they are kept", {"enum": ["coco", "json"]})
    ],
    ("picture", "GET"): [
        in_query("side", "the most pixels of its longer side", {"type": "integer", "minimum": 1})
    ],
    ("client", "GET"): [CHAIN],
    ("call_client", "GET"): [
        in_query("path", "what to call", {"type": "string"}, required=True),
        in_query("method", "how to call it", {"type": "string"}),
        in_query("key", "put into the program", {"type": "string"}),
    ],
    ("reload", "POST"): [DRY_RUN],
    ("stats", "GET"): [
        in_query("window", "the figures of a graph, step by step", {"enum": ["5m", "1h", "24h"]}),
        in_query("request", "the id of a request: the place of one that waits", {"type": "string"}),
    ],
}
# Further statuses by a route's name, and those of the routes that change the config.
CHANGES = ("201", "409", "412", "428", "507")
ALSO = {"reload": ("201", "409", "412"), "infer": ("204", "422")}


# The meaning of each status; the common ones come first.
ERRORS = {
    "400": "wrong request",
    "404": "unknown",
    "413": "too large",
    "500": "internal error",
    "503": "not available now",
    "504": "took too long",
}
DENIALS = {
    "401": "no key or a wrong one",
    "403": "the key is not for this",
    "429": "the key's quota is used up",
}
OTHERS = {
    "409": "conflicts with what exists",
    "412": "the config is wrong, or has changed since it was read",
    "422": "cannot be processed",
    "428": "If-Match is missing",
    "507": "the disk is full",
}


RESPONSES = {
    f"{schema}{status}": {"description": text, "content": in_json(refer(schema))}
    for schema in ("Error", "HubError", "OwnError")
    for status, text in (ERRORS | DENIALS | OTHERS).items()
}
# Answers besides 200 that are not errors.
MORE = {
    "201": {"description": "something has changed", "content": ANY},
    "204": {"description": "a pipeline has found nothing to split"},
}


def operation(
    name: str,
    summary: str,
    security: list | None,
    answer: dict | None = None,
    also: tuple[str, ...] = (),
    open_: bool = False,
    error: str = "Error",
) -> dict[str, Any]:
    """One method of one path: 200 with JSON, and the errors that can come."""
    errors = ("400", "503") if open_ else (*ERRORS, *(DENIALS if security else ()))
    responses: dict[str, Any] = {
        "200": {"description": "the answer", "content": in_json(answer or {})}
    }
    for status in dict.fromkeys((*errors, *also)):
        known = {"$ref": f"#/components/responses/{error}{status}"}
        responses[status] = MORE.get(status, known)
    return {
        "operationId": name,
        "summary": summary,
        "responses": responses,
        "security": security or [],
    }


def document_model(server: ModelServer, name: str, security: list) -> dict[str, Any]:
    """Status, metadata and predict of an available model or pipeline; only the status of one that
    is not available.
    """
    status = operation(
        f"status of {name}", f"The states of {name}", security, answer=refer("Status")
    )
    paths = {url_of(view_status, model=name): {"get": status}}
    available = server.manager.available.get(name)
    servable = available and available.versions[max(available.versions)]
    if not servable or not servable.signatures:
        return paths
    example = example_of(servable) or dot_of(servable) or words_of(servable)
    names = {one for name in names_to_call(servable) for one in servable.signatures[name].outputs}
    wanted = OUTPUTS | {"schema": {"type": "array", "items": {"enum": sorted(names)}}}
    answer = {"type": "object"}
    predict = operation(
        f"predict {name}", f"Answer by {name}", security, answer=answer, also=("204", "422")
    )
    media = in_json(predict_schema(servable), **{"example": example} if example else {})
    predict["requestBody"] = {"required": True, "content": media | ARRAYS}
    predict["responses"]["200"]["content"] |= ARRAYS
    metadata = operation(f"metadata of {name}", f"The signatures of {name}", security)
    return paths | {
        url_of(view_metadata, model=name): {"get": metadata},
        url_of(view_infer, model=name, verb="predict"): {
            "post": predict | {"parameters": [wanted, *OF_ARRAYS]}
        },
    }


def predict_schema(servable: Servable) -> dict[str, Any]:
    """TensorFlow Serving's body for any signature that can be called: `inputs` as columns, or
    `instances` as rows.
    """
    names = names_to_call(servable)
    ways = [way for name in names for way in ways_to_ask(name, servable.signatures[name])]
    return {"oneOf": ways} if ways else {}


def ways_to_ask(name: str, signature: Signature) -> list[dict[str, Any]]:
    columns, rows = {}, {}
    for key, spec in signature.inputs.items():
        shape = spec.shape
        also = [B64, B64_LIST] if picture_input(spec) else []
        columns[key] = any_of(tensor_schema(spec, shape), *also)
        rows[key] = any_of(tensor_schema(spec, shape and shape[1:]), *also)
    ways = one_of(
        {"signature_name": {"enum": [name]}},
        named_or_lone(columns),
        {"type": "array", "minItems": 1, "items": named_or_lone(rows)},
    )["oneOf"]
    if name != "serving_default":
        for way in ways:
            way["required"].append("signature_name")
    return ways


def any_of(*schemas: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [*schemas]} if len(schemas) > 1 else schemas[0]


def named_or_lone(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors by name; a single tensor may also stand without its name."""
    named = {"type": "object", "properties": tensors, "required": [*tensors]}
    return any_of(*tensors.values(), named) if len(tensors) == 1 else named


# Bytes in base64, for any text (TensorFlow Serving: "Encoding binary values").
B64 = {"type": "object", "required": ["b64"], "properties": {"b64": {"type": "string"}}}
B64_LIST = {"type": "array", "items": B64}


def tensor_schema(spec: TensorSpec, shape: tuple | None) -> dict[str, Any]:
    """The schema of nested lists of a tensor's shape; an unknown size allows any length."""
    kind = NUMPY_DTYPES[spec.dtype].kind if spec.dtype in NUMPY_DTYPES else "f"
    schema: dict[str, Any] = {
        "type": {"b": "boolean", "i": "integer", "u": "integer"}.get(kind, "number")
    }
    if kind == "O":
        schema = {"oneOf": [{"type": "string"}, B64]}
    if shape is None or len(shape) > MAX_DIMENSIONS:
        return {}
    for size in reversed(shape):
        schema = {"type": "array", "items": schema} | (
            {} if size is None else {"minItems": size, "maxItems": size}
        )
    return schema


def document_deployment(ready: Any) -> dict[str, Any]:
    name = ready.config.id
    example = {
        "image_type": "base64",
        "data": DOT,
        "routines": [{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}],
    }
    predict = operation(
        f"predict picture by {name}", f"Annotations of a picture by {name}", KEY_ASKED
    )
    predict["responses"]["200"]["content"] = PICTURE_ANSWERS
    bodies = PICTURE_BODIES | in_json(refer("Picture"), example=example)
    predict["requestBody"] = {"required": True, "content": bodies}
    labels = operation(
        f"classes of {name}", f"The label map of {name}", KEY_ASKED, answer=refer("Labels")
    )
    return {
        url_of(view_predict_image, deployment=name): {
            "post": predict | {"parameters": OF_PICTURES}
        },
        url_of(view_classes, deployment=name): {"get": labels},
    }


MOST_SHOWN = 1000  # elements of an example that people read
NUMERIC = NUMPY_DTYPES.keys() - {"DT_STRING"}  # what JSON carries, complex numbers not


def sizes_of(spec: TensorSpec) -> tuple:
    return spec.shape or ()


def names_to_call(servable: Servable) -> list[str]:
    """The signatures that can be called: `serving_default`, then the others by name."""
    known, calls = servable.signatures, servable.callables
    names = [name for name in known if known[name].inputs and (not calls or name in calls)]
    # sorted: protobuf keeps no order, and code generators number the alternatives
    return sorted(names, key=lambda name: (name != "serving_default", name))


def find_default(servable: Servable) -> tuple[str, Signature] | None:
    """`serving_default`, else the first signature by name that can be called; None without one."""
    name = next(iter(names_to_call(servable)), None)
    return None if name is None else (name, servable.signatures[name])


def named_body(name: str, body: dict[str, Any]) -> dict[str, Any]:
    """A predict body; the signature is named if it is not the default one."""
    return body if name == "serving_default" else {"signature_name": name, **body}


def example_of(servable: Servable) -> dict[str, Any] | None:
    """An example predict body for a model, as a JSON value; None if none can be made up."""
    found = find_default(servable)
    body = found and example_request(found[1])
    return json.loads(encode_json(named_body(found[0], body))) if found and body else None


def dot_of(servable: Servable) -> dict[str, Any] | None:
    """A predict body with a small PNG for a model that takes only a picture's pixels; else None."""
    name, signature = find_default(servable) or ("", Signature({}, {}))
    if len(signature.inputs) != 1 or not picture_input(*signature.inputs.values()):
        return None
    return named_body(name, {"inputs": {"b64": DOT}})


def words_of(servable: Servable) -> dict[str, Any] | None:
    """A predict body with YOUR_INPUT for each input of a model that takes only texts; else None."""
    name, signature = find_default(servable) or ("", Signature({}, {}))
    if {spec.dtype for spec in signature.inputs.values()} != {"DT_STRING"}:
        return None
    return named_body(name, placeholders_of(signature))


def placeholders_of(signature: Signature) -> dict[str, Any]:
    """A predict body with YOUR_INPUT for each element of each input."""
    word: Any = "YOUR_INPUT"
    inputs = {
        name: functools.reduce(lambda inner, size: [inner] * size, sizes_to_fill(spec)[::-1], word)
        for name, spec in signature.inputs.items()
    }
    return {"inputs": inputs if len(inputs) > 1 else next(iter(inputs.values()), word)}


def sizes_to_fill(spec: TensorSpec) -> list[int]:
    """An input's sizes, 1 for unknown ones; only ones if that were too long for people to read."""
    sizes = [size or 1 for size in sizes_of(spec)]
    return sizes if math.prod(sizes) <= MOST_SHOWN else [1] * len(sizes)


# names of inputs that take encoded pictures, if the graph does not show it
PICTURE_NAME = re.compile("image.*bytes|encoded|jpeg|png", re.IGNORECASE)


def texts_of(signature: Signature) -> dict[str, str]:
    """Example values by name for string inputs that take one text per row, as base64: a made-up
    tf.train.Example or a picture. Inputs that take other texts are left out.
    """
    texts = [
        name
        for name, spec in signature.inputs.items()
        if spec.dtype == "DT_STRING" and len(sizes_of(spec)) <= 1
    ]
    if signature.example:
        return dict.fromkeys(texts, base64.b64encode(signature.example).decode())
    decodes = len(texts) == 1 and not READ_PNG.isdisjoint(signature.operations)
    return {name: DOT for name in texts if decodes or PICTURE_NAME.search(name)}


def example_request(signature: Signature) -> dict[str, Any] | None:
    """An example predict request for a signature, short enough for people to read.

    None if none can be made up, or if it would be too long.
    """
    inputs, texts = signature.inputs.values(), texts_of(signature)
    if len(texts) == len(inputs) == 1:
        value: Any = {"b64": texts[next(iter(signature.inputs))]}
        shape = next(iter(inputs)).shape
        return {"inputs": value if shape == () else [value] * (shape and shape[0] or 1)}
    if not inputs or any(spec.dtype not in NUMERIC or 0 in sizes_of(spec) for spec in inputs):
        return None
    shapes = [[size or 1 for size in sizes_of(spec)] for spec in inputs]
    if sum(map(math.prod, shapes)) > MOST_SHOWN or max(map(len, shapes)) > MAX_DIMENSIONS:
        return None
    ones = [np.ones_like(sample) for sample in sample_inputs(signature, 1)]
    return {"inputs": dict(zip(signature.inputs, ones)) if len(ones) > 1 else ones[0]}
