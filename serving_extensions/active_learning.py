"""Pictures put aside for people to look at: what active learning collects, a folder a group.

Each picture is kept once, as `<sha256 of its pixels>.png` beside a `.json` with its predictions;
the `.json` is written last, so a picture without one is not there yet. Everything is written by one
thread of its own: a request hands its picture over and goes on.
"""

import contextlib
import hashlib
import json
import logging
import os
import queue
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .core import (
    Call,
    Config,
    Extension,
    ModelServer,
    NotFound,
    Reply,
    find_deployment,
    reply,
    route,
    routines,
)

logger = logging.getLogger("serving")


@dataclass(frozen=True)
class Caps:
    """How much a group may hold; what comes beyond it is counted and let go."""

    max_bytes: int
    max_images: int


class Inbox:
    """One group's folder. `offer` never waits and never raises; `counts` tells what became of what
    was offered.

    counts: `kept`, `known` (the same picture again), `full` (a cap is reached), `busy` (more than
    the queue holds came at once), `failed` (the disk).
    """

    def __init__(self, folder: Path, waiting: int = 32):
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self._queue: queue.Queue = queue.Queue(waiting)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()
        self._names, self._bytes = self._look()

    def _look(self) -> tuple[set[str], int]:
        """The names of what is kept already, and all bytes in the folder."""
        names, size = set(), 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                size += entry.stat().st_size
                if entry.name.endswith(".json"):
                    names.add(entry.name.removesuffix(".json"))
        return names, size

    def offer(self, image: np.ndarray, record: Callable[[], Mapping[str, Any]], caps: Caps) -> None:
        """Hand over a picture, uint8 RGB [H, W, 3], and what makes the record beside it."""
        try:
            self._queue.put_nowait((image, record, caps))
        except queue.Full:
            self.counts["busy"] += 1
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._work, name="serving-inbox", daemon=True
                )
                self._thread.start()

    def flush(self) -> None:
        """Wait until what was offered is written."""
        self._queue.join()

    def end(self) -> None:
        """End the thread when what was offered is written; another offer starts one again."""
        if self._thread is not None and self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (waiting := self._queue.get()) is not None:
            image, record, caps = waiting
            try:
                self._count(self._keep(image, record, caps))
            # a full disk, a vanished folder, a folder that is a file; the next one may fit again
            except Exception as error:
                self._count(
                    "failed", f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
                )
            finally:
                self._queue.task_done()

    def _count(self, outcome: str, reason: str = "a cap is reached") -> None:
        self.counts[outcome] += 1
        if outcome in ("full", "failed") and outcome not in self._said:
            logger.warning(
                "Active learning group %s: pictures are not kept: %s", self.folder.name, reason
            )
        self._said = (self._said | {outcome}) if outcome != "kept" else set()

    def _keep(self, image: np.ndarray, record: Callable[[], Mapping[str, Any]], caps: Caps) -> str:
        name = hashlib.sha256(
            repr(image.shape).encode() + np.ascontiguousarray(image).data
        ).hexdigest()
        if name in self._names:
            return "known"
        if len(self._names) >= caps.max_images:
            return "full"
        _, picture = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        text = json.dumps({**record(), "height": image.shape[0], "width": image.shape[1]}).encode()
        if self._bytes + len(picture) + len(text) > caps.max_bytes:
            return "full"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{name}.png", picture.tobytes())
        write_whole(self.folder / f"{name}.json", text)
        self._names.add(name)
        self._bytes += len(picture) + len(text)
        return "kept"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def read_group(
    folder: Path, labels: Mapping[int, str], deployments: Collection[str] | None = None
) -> dict[str, Any]:
    """A group as one COCO object: `images` with `file_name` in its folder, `score` and
    `date_captured`; `annotations`; `categories`.

    Several deployments may share a group: of some of them alone, where `deployments` names those.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names = dict(labels)
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            if deployments is not None and record.get("deployment") not in deployments:
                continue
            coco = routines.to_coco(
                record["predictions"],
                record["width"],
                record["height"],
                {},
                len(images) + 1,
                f"{path.stem}.png",
            )
        except (OSError, ValueError, KeyError, TypeError):  # taken away or edited by hand meanwhile
            logger.warning("Active learning group %s: %s is no record", folder.name, path.name)
            continue
        images.append(
            {**coco["images"][0], "date_captured": record.get("time"), "score": record.get("score")}
        )
        annotations += [
            {**entry, "id": len(annotations) + number}
            for number, entry in enumerate(coco["annotations"], 1)
        ]
        names = {**{category["id"]: category["name"] for category in coco["categories"]}, **names}
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in sorted(names.items())],
    }


def export_group(folder: Path, target: Path, labels: Mapping[int, str]) -> int:
    """Write a group as a COCO data set, `annotations.json` and `images/`;
    returns how many pictures. Raises OSError.
    """
    coco = read_group(folder, labels)
    (target / "images").mkdir(parents=True, exist_ok=True)
    for image in coco["images"]:
        shutil.copyfile(folder / image["file_name"], target / "images" / image["file_name"])
    write_whole(target / "annotations.json", json.dumps(coco).encode())
    return len(coco["images"])


# --- what plugs in --------------------------------------------------------------------------------


def open_inboxes(server: ModelServer) -> dict[Path, Inbox]:
    """The inboxes of a server, by folder; they outlive a config."""
    return {}


def prepare(server: ModelServer, config: Config) -> dict[str, Inbox]:
    """The inbox of each deployment that has one, by its id."""
    known, found = server.state["active_learning"], {}
    for deployment in config.deployments:
        if learning := deployment.active_learning:
            folder = Path(learning.folder) / learning.group
            found[deployment.id] = known.get(folder) or known.setdefault(folder, Inbox(folder))
    return found


def saw(
    server: ModelServer,
    ready: Any,
    image: np.ndarray,
    tensors: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> None:
    """Put a picture aside when its score reaches the threshold."""
    learning = ready.config.active_learning
    inbox = server.prepared.of["active_learning"].get(ready.config.id)
    if inbox is None:
        return
    score = routines.uncertainty(dict(tensors), learning.strategy)
    if score < learning.threshold:
        return
    about = {
        **origin,
        "score": score,
        "strategy": learning.strategy,
        "version_tag": ready.config.version_tag,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }

    def record() -> dict[str, Any]:  # made in the inbox's thread: tracing masks takes time
        found = routines.to_annotations(dict(tensors), image.shape[1], image.shape[0])
        return {**about, "predictions": found}

    inbox.offer(image, record, Caps(learning.max_bytes, learning.max_images))


def view_active_learning(server: ModelServer, call: Call, deployment: str, group: str) -> Reply:
    ready = find_deployment(server, deployment)
    inbox = server.prepared.of["active_learning"].get(ready.config.id)
    if inbox is None or ready.config.active_learning.group != group:
        raise NotFound(f"Deployment '{deployment}' has no active learning group '{group}'")
    inbox.flush()
    return reply(read_group(inbox.folder, ready.labels, call.caller.deployments))


def end(server: ModelServer) -> None:
    """End the threads that write."""
    for inbox in server.state["active_learning"].values():
        inbox.end()


EXTENSION = Extension(
    "active_learning",
    sections={"deployments[].active_learning": None},
    open=open_inboxes,
    end=end,
    prepare=prepare,
    saw=saw,
    routes=(
        route(
            "GET",
            "/{deployment}/active_learning/{group}",
            view_active_learning,
            "key",
            "What an inbox has collected",
        ),
    ),
)
