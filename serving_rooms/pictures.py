"""Pictures: a deployment is a model that takes them, its labels, its routines, and what it puts aside for review.

Deployments  what the config says, made ready
Prediction   one picture through one deployment
Views        /predict, /classes, /active_learning
"""

import contextlib
import dataclasses
import difflib
import functools
import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from werkzeug.datastructures import MIMEAccept
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import parse_form_data
from werkzeug.http import parse_accept_header

import routines
from serving import (
    CURRENT,
    Allowance,
    BadRequest,
    Call,
    ConfigError,
    ModelServer,
    NotFound,
    Reply,
    ServingError,
    json_kind,
    parse_fields,
    parse_json,
    read_body,
    reply,
)
from serving_rooms.handlers import errors_only
from serving_rooms.inbox import Caps, Inbox, read_group

MOST_ROUTINES = 64  # in one chain

# ==================================================================================================
# Deployments
# In: a deployment's config. Out: `ReadyDeployment`, or ConfigError naming the place.
# ==================================================================================================


@dataclass(frozen=True)
class ReadyDeployment:
    """A deployment's config made ready: labels read, routines built; `models` has what was found out about each servable."""

    config: Any
    labels: Mapping[int, str]
    chain: tuple[Any, ...]
    inbox: Inbox | None
    models: MutableMapping[Any, routines.ImageModel] = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def model_of(self, servable: Any) -> routines.ImageModel:
        """How pictures are shown to a servable; raises ValueError when it takes none, or is of no known family."""
        model = self.models.get(servable)
        if model is None:
            signature = servable.signatures.get("serving_default")
            if signature is None:
                raise ValueError("its model has no signature 'serving_default'")
            inputs, outputs = (
                {name: (spec.dtype, spec.shape) for name, spec in side.items()}
                for side in (signature.inputs, signature.outputs)
            )
            model = routines.ImageModel(
                inputs,
                outputs,
                labels=self.labels,
                family=self.config.family,
                rename=self.config.outputs,
                scale=self.config.scale,
                offset=self.config.offset,
                most=self.config.max_detections,
            )
            self.models[servable] = model
        return model


def prepare_deployment(
    config: Any, path: str, kinds: Mapping[str, type], inboxes: dict[Path, Inbox]
) -> ReadyDeployment:
    """Read what a deployment's config names; `inboxes` are those open already, by folder. Raises ConfigError."""
    try:
        labels = routines.load_labels(config.label_map, Path())
    except OSError as error:
        raise ConfigError(
            f"{path}.label_map", f"{error.strerror or error}: {config.label_map}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"{path}.label_map",
            f"expected a text file (.pbtxt, JSON, or a name a line): {config.label_map}",
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path}.label_map", str(error).removeprefix("label map: ")) from None
    learning, inbox = config.active_learning, None
    if learning:
        folder = Path(learning.folder) / learning.group
        inbox = inboxes.get(folder) or inboxes.setdefault(folder, Inbox(folder))
    return ReadyDeployment(
        config, labels, tuple(read_chain(config.routines, kinds, f"{path}.routines")), inbox
    )


def read_chain(value: Any, kinds: Mapping[str, type], path: str = "routines") -> list[Any]:
    """Build the routines of `[{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}]`; arguments may stand beside the name.

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
        close = difflib.get_close_matches(item["name"], kinds, n=1)
        raise ConfigError(
            f"{path}.name",
            f"there is no routine '{item['name'][:60]}'; "
            + (
                f"did you mean '{close[0]}'?"
                if close
                else f"expected one of: {', '.join(sorted(kinds))}"
            ),
        )
    beside = {key: argument for key, argument in item.items() if key not in ("name", "arguments")}
    given = {} if item.get("arguments") is None else item["arguments"]
    if not isinstance(given, dict):
        raise ConfigError(f"{path}.arguments", f"expected an object, got {json_kind(given)}")
    with errors_only(f"routine {item['name'][:60]}"):
        return parse_fields(kind, {**beside, **given}, f"{path}.arguments")


# ==================================================================================================
# Prediction
# In: a picture, a deployment, routines. Out: predictions as arrays, then as JSON, COCO or a drawn picture.
# ==================================================================================================


def find_deployment(server: ModelServer, deployment: str | None = None) -> ReadyDeployment:
    """A deployment by its id, or the default one; raises NotFound."""
    ready = server.prepared.deployments
    if not ready:
        raise NotFound("There is no deployment: the config has none under 'deployments'")
    deployment = deployment if deployment is not None else server.config.default_deployment[0]
    if deployment not in ready:
        raise NotFound(
            f"There is no deployment '{deployment}'; there are: {', '.join(sorted(ready))}"
        )
    return ready[deployment]


@contextlib.contextmanager
def image_errors() -> Iterator[None]:
    """Answer for a picture that cannot be had: 400, or 413 when it is over a limit."""
    try:
        yield
    except routines.ImageError as error:
        raise ServingError(
            str(error), "INVALID_ARGUMENT", 413 if error.too_large else 400
        ) from None


def predict_image(
    server: ModelServer,
    image: np.ndarray | bytes,
    deployment: str | None,
    chain: Any,
    form: str,
    allowance: Allowance,
) -> Any:
    """What a deployment sees in a picture; see ModelServer.predict_image."""
    ready = find_deployment(server, deployment)
    try:
        own = read_chain(chain, server.prepared.routines)
    except ConfigError as error:
        raise BadRequest(error.message) from None
    if isinstance(image, bytes):
        limits = dataclasses.replace(server.prepared.limits, allow=allowance.take)
        with image_errors():
            image = routines.decode_image(image, limits)
    with lease(server, ready.config) as (version, servable):
        try:
            model = ready.model_of(servable)
        except ValueError as error:
            raise BadRequest(f"Deployment '{ready.config.id}' takes no pictures: {error}") from None
        allowance.take(model.shown_bytes(image))
        tensors = annotate(
            ready,
            model,
            functools.partial(servable.run, "serving_default"),
            image,
            own,
            {"deployment": ready.config.id, "model": ready.config.model, "version": version},
        )
    return routines.present(tensors, image, ready.labels, form)


@contextlib.contextmanager
def lease(server: ModelServer, deployment: Any) -> Iterator[tuple[int, Any]]:
    """Lease a deployment's version; ServingError UNAVAILABLE, with the reason, when it is not there."""
    where = deployment.model, deployment.version, deployment.version_label
    try:
        server.start().manager.find(*where)
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
    with server.lease(*where) as leased:
        yield leased


def annotate(
    ready: ReadyDeployment,
    model: routines.ImageModel,
    run: Callable[[dict], dict],
    image: np.ndarray,
    own: Sequence[Any],
    origin: Mapping[str, Any],
) -> routines.Tensors:
    """Predictions for a picture: the deployment's routines, then the request's; what is uncertain is put aside in between.

    The request's routines on the picture run before the model as well. `origin` is written beside what is put aside.
    """
    before = [step for step in own if step.before_model]
    with errors_only("a routine"):
        tensors = routines.predict_image(model, run, image, (*ready.chain, *before))
    start = time.perf_counter()
    if ready.inbox is not None:
        offer(ready, image, tensors, origin)
    with errors_only("a routine"):
        tensors = routines.run_after(own, tensors)
    if (trace := getattr(CURRENT, "trace", None)) is not None:
        trace.routines = time.perf_counter() - start
    return tensors


def offer(
    ready: ReadyDeployment, image: np.ndarray, tensors: routines.Tensors, origin: Mapping[str, Any]
) -> None:
    """Put a picture aside when its score reaches the threshold."""
    learning = ready.config.active_learning
    score = routines.uncertainty(tensors, learning.strategy)
    if score >= learning.threshold:
        about = {
            **origin,
            "score": score,
            "strategy": learning.strategy,
            "version_tag": ready.config.version_tag,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

        def record() -> dict[str, Any]:  # made in the inbox's thread: tracing masks takes time
            return {
                **about,
                "predictions": routines.to_annotations(tensors, image.shape[1], image.shape[0]),
            }

        ready.inbox.offer(image, record, Caps(learning.max_bytes, learning.max_images))  # type: ignore[union-attr]


# ==================================================================================================
# Views
# In: requests. Out: responses.
# ==================================================================================================


def read_image(server: ModelServer, call: Call) -> tuple[np.ndarray, Any]:
    """The picture and the routines of a /predict request: JSON, multipart, or the picture or .npy array itself."""
    limits = dataclasses.replace(server.prepared.limits, allow=call.allowance.take)
    most = min(
        server.config.server.max_request_bytes, 4 * limits.max_bytes
    )  # nested lists take some 4 characters a number
    with image_errors():
        if call.mimetype == "multipart/form-data":
            return read_form(call, limits, most)
        body = read_body(server, call, most)
        if routines.reader_of(body, call.mimetype) or not MAY_BE_JSON.match(body):
            return routines.read_bytes(body, limits, call.mimetype), read_query_routines(call)
        return routines.read_request(parse_json(body), limits)


def read_form(call: Call, limits: routines.ImageLimits, most: int) -> tuple[np.ndarray, Any]:
    """The picture and the routines of a form with a file."""
    environ = {**call.environ, "wsgi.input": call.stream(most)}
    try:
        _, fields, files = parse_form_data(environ, max_form_memory_size=most, max_form_parts=1000)
    except RequestEntityTooLarge:
        raise ServingError(
            f"multipart: the form is over the limit of {most} bytes", status=413
        ) from None
    try:
        file = files.get("image") or files.get("file")
        if file is None:
            got = ", ".join(files) or "none"
            raise BadRequest(
                f"multipart: expected the picture as field 'image' or 'file', got: {got}"
            )
        picture = routines.read_bytes(file.read(), limits, file.mimetype)
    finally:
        for _, sent in files.items(multi=True):
            sent.close()
    return picture, parse_json((fields.get("routines") or "[]").encode())


MAY_BE_JSON = re.compile(
    rb"\s*(?:[\[{\"\-0-9]|true|false|null|NaN|Inf|$|\xef\xbb\xbf)"
)  # all else is taken for a picture


def read_query_routines(call: Call) -> Any:
    """The routines in a URL's `?routines=[...]`; raises BadRequest that names them."""
    try:
        return parse_json((call.argument("routines") or "[]").encode("utf-8", "surrogateescape"))
    except BadRequest as error:
        raise BadRequest(f"routines in the URL: {error.message}") from None


DRAWN = {"image/png": "png", "image/jpeg": "jpeg"}


def view_predict_image(server: ModelServer, call: Call, deployment: str | None = None) -> Reply:
    ready = find_deployment(server, deployment)
    image, chain = read_image(server, call)
    accepted = parse_accept_header(call.header("Accept"), MIMEAccept)
    wanted = next(
        iter(accepted.values()), ""
    )  # the first: Java's client names image/jpeg among others, unasked
    form = DRAWN.get(wanted) or call.argument("format", "json")
    if form not in ("json", "coco", *DRAWN.values()):
        raise BadRequest(f"format: expected json, coco, png or jpeg, got '{form[:40]}'")
    answer = predict_image(server, image, ready.config.id, chain, form, call.allowance)
    replied = (
        Reply(answer, content_type=f"image/{form}") if isinstance(answer, bytes) else reply(answer)
    )
    if ready.config.version_tag:
        replied = replied.with_headers(("X-Version-Tag", ready.config.version_tag))
    return replied


def view_classes(server: ModelServer, call: Call, deployment: str | None = None) -> Reply:
    labels = find_deployment(server, deployment).labels
    return reply(
        {str(number): {"id": number, "name": name} for number, name in sorted(labels.items())}
    )


def view_active_learning(server: ModelServer, call: Call, deployment: str, group: str) -> Reply:
    ready = find_deployment(server, deployment)
    if ready.inbox is None or ready.config.active_learning.group != group:
        raise NotFound(f"Deployment '{deployment}' has no active learning group '{group}'")
    ready.inbox.flush()
    return reply(read_group(ready.inbox.folder, ready.labels, call.caller.deployments))
