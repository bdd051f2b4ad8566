"""Active learning: pictures that are kept for people to review, one folder per group.

Each picture is kept once, as `<sha256 of its pixels>.png` beside a `.json` with its predictions;
the `.json` is written last, so a picture without one is incomplete. A thread of the inbox's own
writes them: a request hands over its picture and does not wait. A reviewer's verdict, `accepted` or
`rejected`, is in a `.verdict` file beside the picture.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .catalogue import find_own, shrink
from .core import (
    ActiveLearningConfig,
    BadRequest,
    Call,
    Config,
    ConfigError,
    Extension,
    ModelServer,
    NotFound,
    Reply,
    ServingError,
    Workers,
    is_plain,
    log_safely,
    parse_json,
    read_body,
    reply,
    route,
    routines,
)
from .manifest import write_whole

logger = logging.getLogger("serving")

SCORES = 1000  # the latest scores kept per deployment, to choose a threshold by
VERDICTS = ("accepted", "rejected", "none")
LOOKING = 0.01  # the largest share of its time that an inbox spends on scanning its folder

MOST_WAITING = 32  # pictures that may wait, besides the one being written
MOST_HELD = 256 << 20  # bytes of pictures waiting to be written; a single one may be larger


class Inbox:
    """One group's folder. `offer` never waits and never raises.

    counts: the outcomes of offers: `kept`, `known` (the same picture again), `full` (a cap is
    reached), `busy` (too many wait already), `failed` (the disk).
    scores: of the latest pictures, kept or not, by (deployment, strategy).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.scores: dict[tuple[str, str], deque[float]] = defaultdict(lambda: deque(maxlen=SCORES))
        self._workers = Workers(1, "serving-inbox")
        self._held = 0  # bytes of the pictures that are waiting or being written
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self._look()

    def _look(self) -> None:
        """Count the folder's pictures and bytes, and set when to do so next: other processes write
        into the folder, and people remove reviewed pictures.
        """
        start, self._kept, self._bytes = time.monotonic(), 0, 0
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.folder):
                self._kept += entry.name.endswith(".png")
                with contextlib.suppress(FileNotFoundError):  # taken away just now
                    self._bytes += entry.stat().st_size
        now = time.monotonic()
        self._look_at = now + (now - start) / LOOKING

    def offer(
        self, image: np.ndarray, record: Callable[[], Mapping[str, Any]], caps: ActiveLearningConfig
    ) -> None:
        """Queue a picture, uint8 RGB [H, W, 3], to be written; `record` makes its `.json`."""
        with self._lock:
            is_large = self._held and self._held + image.nbytes > MOST_HELD
            if not is_large and self._workers.open <= MOST_WAITING:
                with contextlib.suppress(ServingError):  # no thread: the next offer asks for one
                    self._workers.submit(self._write, image, record, caps)
                    self._held += image.nbytes
                    return
            self._count("busy", "more come at once than can be written")

    def flush(self, seconds: float = threading.TIMEOUT_MAX) -> None:
        """Wait until everything offered so far is written, but at most `seconds`."""
        with contextlib.suppress(ServingError):
            if self._workers.open:
                wait([self._workers.submit(lambda: None)], seconds)

    def end(self) -> None:
        """Wait until everything offered is written, and end the thread; a new offer starts one."""
        written = threading.Event()
        with self._lock:
            self._workers.close(written.set)
            self._workers = Workers(1, "serving-inbox")
        written.wait()

    def _write(
        self, image: np.ndarray, record: Callable[[], Mapping[str, Any]], caps: ActiveLearningConfig
    ) -> None:
        try:
            self._count(self._keep(image, record, caps))
        # a full disk, a deleted folder, a file in its place; a later picture may succeed
        except Exception as error:
            self._count(
                "failed", f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
            )
        with self._lock:
            self._held -= image.nbytes

    def _count(self, outcome: str, reason: str = "max_images or max_bytes is reached") -> None:
        self.counts[outcome] += 1
        if outcome in ("full", "failed", "busy") and outcome not in self._said:
            text = "Active learning group %s: pictures are not kept: %s"
            log_safely(logging.WARNING, text, self.folder.name, reason)
        # "busy" is logged only once: under load it alternates with "kept"
        self._said = self._said & {"busy"} if outcome == "kept" else self._said | {outcome}

    def _keep(
        self, image: np.ndarray, record: Callable[[], Mapping[str, Any]], caps: ActiveLearningConfig
    ) -> str:
        name = hashlib.sha256(
            repr(image.shape).encode() + np.ascontiguousarray(image).data
        ).hexdigest()
        if all((self.folder / f"{name}.{kind}").exists() for kind in ("json", "png")):
            return "known"
        if time.monotonic() >= self._look_at:
            self._look()
        if self._kept >= caps.max_images:
            return "full"
        picture = routines.encode(image)
        text = json.dumps({**record(), "height": image.shape[0], "width": image.shape[1]}).encode()
        if self._bytes + len(picture) + len(text) > caps.max_bytes:
            return "full"
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{name}.png", picture)
        write_whole(self.folder / f"{name}.json", text)
        self._kept += 1
        self._bytes += len(picture) + len(text)
        return "kept"


def read_verdict(folder: Path, stem: str) -> str:
    """The verdict on a picture: `accepted`, `rejected`, or `none` so far."""
    try:
        said = (folder / f"{stem}.verdict").read_text().strip()
    except (OSError, ValueError):  # none yet, or no text
        return "none"
    return said if said in VERDICTS else "none"


def read_kept(
    folder: Path, deployments: Collection[str] | None = None, verdicts: Collection[str] = VERDICTS
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each record of a group, with `file_name` and `verdict`, and its COCO object, in which a
    `category_id` is a pair (id, name).

    Several deployments may share a group; `deployments`, if given, selects whose pictures. Only
    pictures with one of the `verdicts` are yielded.
    """
    for path in sorted(path for path in folder.glob("*.json") if is_plain(path.name)):
        verdict = read_verdict(folder, path.stem)
        try:
            record = json.loads(path.read_bytes())
            is_hidden = deployments is not None and record.get("deployment") not in deployments
            if is_hidden or verdict not in verdicts:
                continue
            record |= {"file_name": f"{path.stem}.png", "verdict": verdict}
            coco = routines.to_coco(
                record["predictions"], record["width"], record["height"], {}, record["file_name"]
            )
            for entry, found in zip(coco["annotations"], record["predictions"]):
                entry["category_id"] = int(found["tag"]["id"]), str(found["tag"]["name"])
            path.with_suffix(".png").stat()
        # deleted meanwhile, or edited by hand
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            text = "Active learning group %s: %s is skipped: broken record or missing picture"
            logger.warning(text, folder.name, path.name)
            continue
        yield record, coco


def read_group(
    folder: Path,
    labels: Mapping[int, str],
    deployments: Collection[str] | None = None,
    verdicts: Collection[str] = VERDICTS,
) -> dict[str, Any]:
    """A group as one COCO object: `images` with `file_name` in its folder, `score`,
    `date_captured` and `verdict`; `annotations`; `categories`. See `read_kept` for the filters.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record, coco in read_kept(folder, deployments, verdicts):
        own = {"id": len(images) + 1, "date_captured": record.get("time")}
        images.append(
            {**coco["images"][0], **own, "score": record.get("score"), "verdict": record["verdict"]}
        )
        annotations += [
            {**entry, "id": len(annotations) + number, "image_id": own["id"]}
            for number, entry in enumerate(coco["annotations"], 1)
        ]
    numbers = number_categories([entry["category_id"] for entry in annotations], labels)
    for entry in annotations:
        entry["category_id"] = numbers[entry["category_id"]]
    names = {**labels, **{number: name for (_, name), number in numbers.items()}}
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in sorted(names.items())],
    }


def number_categories(
    tags: Collection[tuple[int, str]], labels: Mapping[int, str]
) -> dict[tuple[int, str], int]:
    """A category number for each (id, name): the id itself, or a new number if `labels` or an
    earlier tag gives that id another name. Deployments with different labels may share a group.
    """
    new = itertools.count(1 + max((*labels, *(number for number, _ in tags)), default=0))
    numbers, taken = dict[tuple[int, str], int](), set[int]()
    for tag in dict.fromkeys(tags):
        own = labels.get(tag[0], tag[1]) == tag[1] and tag[0] not in taken
        numbers[tag] = tag[0] if own else next(new)
        taken.add(numbers[tag])
    return numbers


def export_group(folder: Path, target: Path, labels: Mapping[int, str]) -> int:
    """Write a group as a COCO data set, `annotations.json` and `images/`, without what was
    rejected; returns how many pictures. Raises OSError.
    """
    coco = read_group(folder, labels, verdicts=("accepted", "none"))
    (target / "images").mkdir(parents=True, exist_ok=True)
    for image in coco["images"]:
        shutil.copyfile(folder / image["file_name"], target / "images" / image["file_name"])
    write_whole(target / "annotations.json", json.dumps(coco).encode())
    return len(coco["images"])


# --- what plugs in --------------------------------------------------------------------------------


def prepare(server: ModelServer, config: Config) -> dict[str, Inbox]:
    """The inbox of each deployment that has active learning, by deployment id. Raises ConfigError
    for a folder with letters that the locale lacks.
    """
    known, found = server.state["active_learning"], {}
    for index, deployment in enumerate(config.deployments):
        if learning := deployment.active_learning:
            folder = Path(learning.folder) / learning.group
            try:
                found[deployment.id] = known.get(folder) or known.setdefault(folder, Inbox(folder))
            except ValueError as error:
                path = f"$.deployments[{index}].active_learning.folder"
                raise ConfigError(path, f"cannot be read: {error}") from None
    return found


def saw(
    server: ModelServer,
    ready: Any,
    image: np.ndarray,
    tensors: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> None:
    """Note a picture's score; offer the picture to the inbox if that reaches the threshold."""
    learning = ready.config.active_learning
    inbox = server.prepared.of["active_learning"].get(ready.config.id)
    if inbox is None or learning is None:  # a reload meanwhile may have added or removed it
        return
    score = routines.uncertainty(dict(tensors), learning.strategy)
    if math.isfinite(score):
        inbox.scores[ready.config.id, learning.strategy].append(score)
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

    inbox.offer(image, record, learning)


def find_inbox(server: ModelServer, call: Call, deployment: str, group: str) -> tuple[Any, Inbox]:
    """A deployment that the caller's key may use, and its inbox; this does not count in a quota.

    Raises NotFound.
    """
    ready = find_own(server, call, deployment)
    inbox = server.prepared.of["active_learning"].get(ready.config.id)
    if inbox is None or ready.config.active_learning.group != group:
        raise NotFound(f"Deployment '{deployment}' has no active learning group '{group}'")
    return ready, inbox


def find_picture(server: ModelServer, call: Call, deployment: str, group: str, name: str) -> Path:
    """The file of a kept picture of a deployment that the caller's key may use.

    Raises NotFound.
    """
    _, inbox = find_inbox(server, call, deployment, group)
    path = inbox.folder / name
    missing = NotFound(f"Active learning group '{group}' has no picture '{name[:80]}'")
    if not re.fullmatch(r"[0-9a-f]{64}\.png", name):
        raise missing
    try:
        record = json.loads(path.with_suffix(".json").read_bytes())
        seen_by = record.get("deployment")
    except (OSError, ValueError, AttributeError):  # taken away or edited by hand
        raise missing from None
    own = call.caller.deployments
    if own is not None and seen_by not in own:
        raise missing
    return path


def view_active_learning(server: ModelServer, call: Call, deployment: str, group: str) -> Reply:
    """A group as COCO; with `?format=json`, its records as stored, with predictions in the form of
    /predict.
    """
    ready, inbox = find_inbox(server, call, deployment, group)
    form, whose = call.argument("format", "coco"), call.caller.deployments
    if form not in ("coco", "json"):
        raise BadRequest(f"format: expected coco or json, got '{form[:40]}'")
    inbox.flush(call.trace.timeout())
    if form == "json":
        return reply({"images": [record for record, _ in read_kept(inbox.folder, whose)]})
    return reply(read_group(inbox.folder, ready.labels, whose))


def view_scores(server: ModelServer, call: Call, deployment: str, group: str) -> Reply:
    """The scores of the latest pictures that a deployment has seen since the start, the latest
    last, whether they were put aside or not.
    """
    ready, inbox = find_inbox(server, call, deployment, group)
    learning = ready.config.active_learning
    scores = inbox.scores.get((ready.config.id, learning.strategy), deque[float]()).copy()
    return reply(
        {
            "threshold": learning.threshold,
            "strategy": learning.strategy,
            "most": SCORES,
            "scores": [round(score, 6) for score in scores],
        }
    )


def view_picture(
    server: ModelServer, call: Call, deployment: str, group: str, picture: str
) -> Reply:
    """A kept picture as PNG; with `?side=320`, shrunk to at most 320 pixels on the longer side."""
    path, side = find_picture(server, call, deployment, group, picture), call.argument("side")
    if not re.fullmatch(r"([1-9][0-9]{0,4})?", side, re.ASCII):
        raise BadRequest(f"side: expected a number of pixels, got '{side[:40]}'")
    try:
        data = path.read_bytes()
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if side else None
    except (OSError, cv2.error):  # taken away meanwhile; an empty file
        raise NotFound(f"Picture '{picture}' is no longer there") from None
    if image is not None and max(image.shape[:2]) > int(side):
        small, _ = shrink(image, int(side))
        data = cv2.imencode(".png", small)[1].tobytes()
    headers = (("Cache-Control", "private, max-age=3600"),)
    return Reply(data, content_type="image/png", headers=headers)


def view_verdict(
    server: ModelServer, call: Call, deployment: str, group: str, picture: str
) -> Reply:
    """Store a reviewer's verdict: `{"verdict": "accepted"}`, `rejected` or `none`."""
    path = find_picture(server, call, deployment, group, picture).with_suffix(".verdict")
    body = parse_json(read_body(server, call, limit=1000))
    verdict = body.get("verdict") if isinstance(body, dict) else None
    if verdict not in VERDICTS:
        raise BadRequest(f"verdict: expected accepted, rejected or none, got {str(verdict)[:40]}")
    try:
        if verdict == "none":
            path.unlink(missing_ok=True)
        else:
            write_whole(path, verdict.encode())
    except OSError as error:
        text = f"The verdict cannot be written: {error.strerror or type(error).__name__}"
        raise ServingError(text, "UNAVAILABLE") from None
    return reply({"file_name": picture, "verdict": verdict})


def end(server: ModelServer) -> None:
    """End the threads that write."""
    for inbox in server.state["active_learning"].values():
        inbox.end()


GROUP = "/{deployment}/active_learning/{group}"

EXTENSION = Extension(
    "active_learning",
    sections={"deployments[].active_learning": None},
    open=lambda server: dict[Path, Inbox](),  # by folder; they outlive a config
    end=end,
    prepare=prepare,
    saw=saw,
    routes=(
        route("GET", GROUP, view_active_learning, "key", "What an inbox has collected", lists=True),
        route(
            "GET",
            GROUP + "/'scores'",
            view_scores,
            "key",
            "The scores of the latest pictures",
            lists=True,
        ),
        route(
            "GET", GROUP + "/{picture}", view_picture, "key", "A picture of an inbox", lists=True
        ),
        route(
            "PUT",
            GROUP + "/{picture}/verdict",
            view_verdict,
            "key",
            "Accept or reject a picture",
            lists=True,
        ),
    ),
)
