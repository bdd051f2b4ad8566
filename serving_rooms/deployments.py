"""Deployments: a model that takes pictures, its labels, its routines, and what it puts aside for review."""

import difflib
import time
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import routines
from serving_rooms.inbox import Caps, Inbox
from serving_rooms.keys import KeyRing, digest
from serving_rooms.quotas import open_quotas
from serving_rooms.settings import Key

MOST_ROUTINES = 64  # in one chain


@dataclass(frozen=True)
class ReadyDeployment:
    """A deployment's config made ready: labels read, routines built; `models` has what was found out about each servable."""

    config: Any
    labels: Mapping[int, str]
    chain: tuple[Any, ...]
    inbox: Inbox | None
    models: MutableMapping[Any, routines.ImageModel] = field(default_factory=weakref.WeakKeyDictionary)

    def model_of(self, servable: Any) -> routines.ImageModel:
        """How pictures are shown to a servable; raises ValueError when it takes none, or is of no known family."""
        model = self.models.get(servable)
        if model is None:
            signature = servable.signatures.get("serving_default")
            if signature is None:
                raise ValueError("its model has no signature 'serving_default'")
            inputs, outputs = ({name: (spec.dtype, spec.shape) for name, spec in side.items()}
                               for side in (signature.inputs, signature.outputs))
            model = routines.ImageModel(inputs, outputs, labels=self.labels, family=self.config.family, rename=self.config.outputs,
                                        scale=self.config.scale, offset=self.config.offset, most=self.config.max_detections)
            self.models[servable] = model
        return model


class WrongSetting(ValueError):
    """What the config names at `path` is missing or wrong."""

    def __init__(self, path: str, text: str):
        super().__init__(text)
        self.path = path


def import_routine_modules(names: Sequence[str]) -> None:
    """Import the users' modules, for the routines they register."""
    for index, name in enumerate(names):
        try:
            routines.import_routines(name, Path())
        except Exception as error:  # somebody's code
            raise WrongSetting(f"$.routine_modules[{index}]", f"{type(error).__name__}: {error}") from error


def prepare_keys(auth: Any, generated: str) -> KeyRing:
    """The keys of a config; where it has none, the one generated at start."""
    keys = auth.keys or (Key("generated", digest(generated)),)
    try:
        return KeyRing(keys, open_quotas(auth.quota_store).take if any(key.quota for key in keys) else lambda *_: None)
    except OSError as error:
        raise WrongSetting("$.auth.quota_store", f"cannot be opened: {error}: {auth.quota_store}") from None


def image_limits(images: Any) -> routines.ImageLimits:
    return routines.ImageLimits(images.max_bytes, images.max_pixels, images.download_seconds, tuple(map(str.lower, images.allowed_hosts)))


def prepare_deployments(deployments: Sequence[Any], parse: Callable[[type, dict, str], Any],
                        inboxes: dict[Path, Inbox]) -> dict[str, ReadyDeployment]:
    """Read what the deployments' config names; `inboxes` are those open already, by folder. Raises WrongSetting."""
    ready = {}
    for index, config in enumerate(deployments):
        path, learning, inbox = f"$.deployments[{index}]", config.active_learning, None
        try:
            labels = routines.load_labels(config.label_map, Path())
        except OSError as error:
            raise WrongSetting(f"{path}.label_map", f"{error.strerror or error}: {config.label_map}") from None
        except ValueError as error:
            raise WrongSetting(f"{path}.label_map", str(error).removeprefix("label map: ")) from None
        try:
            chain = read_chain(config.routines, parse, f"{path}.routines")
        except ValueError as error:
            place, _, text = str(error).partition(": ")
            raise WrongSetting(place, text) from None
        if learning:
            folder = Path(learning.folder) / learning.group
            inbox = inboxes.get(folder) or inboxes.setdefault(folder, Inbox(folder))
        ready[config.id] = ReadyDeployment(config, labels, tuple(chain), inbox)
    return ready


def read_chain(value: Any, parse: Callable[[type, dict, str], Any], path: str = "routines") -> list[Any]:
    """Build the routines of `[{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}]`; arguments may stand beside the name.

    `parse(kind, arguments, path)` checks and builds one. Raises ValueError naming the place.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"{path}: expected a list of routines, got {type(value).__name__}")
    if len(value) > MOST_ROUTINES:
        raise ValueError(f"{path}: expected at most {MOST_ROUTINES} routines, got {len(value)}")
    return [read_routine(item, parse, f"{path}[{index}]") for index, item in enumerate(value)]


def read_routine(item: Any, parse: Callable[[type, dict, str], Any], path: str) -> Any:
    if not isinstance(item, dict) or not isinstance(item.get("name"), str):
        raise ValueError(f'{path}: expected an object {{"name": ..., "arguments": {{...}}}}')
    kind = routines.ROUTINES.get(item["name"])
    if kind is None:
        close = difflib.get_close_matches(item["name"], routines.ROUTINES, n=1)
        raise ValueError(f"{path}.name: there is no routine '{item['name'][:60]}'; "
                         + (f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(sorted(routines.ROUTINES))}"))
    beside = {key: argument for key, argument in item.items() if key not in ("name", "arguments")}
    given = item.get("arguments") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{path}.arguments: expected an object, got {type(given).__name__}")
    return parse(kind, {**beside, **given}, f"{path}.arguments")


def annotate(ready: ReadyDeployment, model: routines.ImageModel, run: Callable[[dict], dict], image: np.ndarray,
             own: Sequence[Any], origin: Mapping[str, Any]) -> routines.Tensors:
    """Predictions for a picture: the deployment's routines, then the request's; what is uncertain is put aside in between.

    The request's routines on the picture run before the model as well. `origin` is written beside what is put aside.
    """
    before = [step for step in own if step.before_model]
    tensors = routines.predict_image(model, run, image, (*ready.chain, *before))
    if ready.inbox is not None:
        offer(ready, image, tensors, origin)
    return routines.run_after(own, tensors)


def offer(ready: ReadyDeployment, image: np.ndarray, tensors: routines.Tensors, origin: Mapping[str, Any]) -> None:
    """Put a picture aside when its score reaches the threshold."""
    learning = ready.config.active_learning
    score = routines.uncertainty(tensors, learning.strategy)
    if score >= learning.threshold:
        about = {**origin, "score": score, "strategy": learning.strategy, "version_tag": ready.config.version_tag,
                 "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}

        def record() -> dict[str, Any]:  # made in the inbox's thread: tracing masks takes time
            return {**about, "predictions": routines.to_annotations(tensors, image.shape[1], image.shape[0])}
        ready.inbox.offer(image, record, Caps(learning.max_bytes, learning.max_images))  # type: ignore[union-attr]
