"""What the config says about deployments, keys, pictures, handlers and pipelines: frozen dataclasses, a line an option.

serving.py imports this module while it is itself imported, so this one imports nothing of it.
"""

import dataclasses
import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def option(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    pattern: str | None = None,
) -> Any:
    """Declare a config field in one line: default, what it means (with its unit), and its limits; as in serving.py."""
    metadata = {"doc": doc, "minimum": minimum, "maximum": maximum, "pattern": pattern}
    if default == {}:
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def refuse_repeated(where: str, field_name: str, names: Sequence[str]) -> None:
    """Raise ValueError for a name that stands twice in a list of the config."""
    for index, name in enumerate(names):
        if name in names[:index]:
            raise ValueError(
                f"{where}[{index}].{field_name}: '{name}' is already taken by {where}[{names.index(name)}]"
            )


@dataclass(frozen=True)
class ActiveLearningConfig:
    """Pictures the model is unsure of are put aside, for people to look at."""

    threshold: int | float = option(
        doc="score from which on a picture is put aside, 0..1", minimum=0, maximum=1
    )
    group: str = option(
        "review", "the folder its pictures go to, without slashes", pattern=r"^[\w-][\w.-]{0,99}$"
    )
    strategy: str = option(
        "entropy",
        "entropy, least_confidence or margin",
        pattern="^(entropy|least_confidence|margin)$",
    )
    folder: str = option(
        "active_learning", "where the groups' folders are; relative to the config file"
    )
    max_bytes: int = option(1 << 30, "bytes that a group may hold", minimum=0)
    max_images: int = option(10_000, "pictures that a group may hold", minimum=0)


@dataclass(frozen=True)
class Deployment:
    id: str = option(
        doc="its name in URLs, without slashes and colons; not v1, v2 or model-serving",
        pattern="^(?!(?i:v1|v2|model-serving)$)[^/:]+$",
    )
    model: str = option(doc="the name of the model it serves")
    version: int | None = option(None, "the model's version; default: the highest", minimum=0)
    version_label: str | None = option(None, "or the label of the version")
    default: bool = option(
        False, "whether it answers /predict without an id; else the first deployment does"
    )
    label_map: str | dict[str, Any] | tuple[str, ...] | None = option(
        None, "names of the classes: a file, an object by id, or a list"
    )
    family: str | None = option(
        None,
        "what the outputs are: detection_api, detector, mask_rcnn, segmentation or classifier",
        pattern="^(detection_api|detector|mask_rcnn|segmentation|classifier)$",
    )
    outputs: dict[str, str] = option({}, "the model's own names of the family's outputs")
    scale: int | float = option(1, "the model is shown pixel * scale + offset, of pixels 0..255")
    offset: int | float = option(0, "see scale")
    max_detections: int = option(
        300, "the most predictions in an answer", minimum=1, maximum=100_000
    )
    version_tag: str | None = option(
        None,
        "a name for this state of it, in its answers' X-Version-Tag header",
        pattern=r"^[\x20-\x7e]*$",
    )
    routines: tuple[dict[str, Any], ...] = option((), "run before those of a request")
    active_learning: ActiveLearningConfig | None = option(
        None, "puts aside what the model is unsure of"
    )

    def __post_init__(self) -> None:
        if self.version is not None and self.version_label is not None:
            raise ValueError("give 'version' or 'version_label', not both")


@dataclass(frozen=True)
class Quota:
    calls: int = option(doc="how many calls", minimum=1)
    period: str = option(
        doc="minute, hour, day or month, by UTC", pattern="^(minute|hour|day|month)$"
    )


@dataclass(frozen=True)
class Key:
    name: str = option(
        doc="its name in logs and counts, printable", pattern=r"^[\x21-\x7e]{1,100}$"
    )
    sha256: str = option(
        doc="64 hexadecimal digits: the SHA-256 of the key, as --new-key prints it",
        pattern="^[0-9a-fA-F]{64}$",
    )
    expires: str | None = option(
        None,
        "a date or time, such as 2027-01-31 or 2027-01-31T12:00:00+01:00; UTC where none is given",
    )
    disabled: bool = option(False, "refused while true")
    deployments: tuple[str, ...] | None = option(
        None, "the ids, or paths of handlers, that it is for; default: everything"
    )
    quota: Quota | None = option(None, "how often it may call; default: without limit")

    def __post_init__(self) -> None:
        if self.expires is not None and self.expiry is None:
            raise ValueError(
                "expires: expected a date or time such as 2027-01-31T12:00:00Z, got another text"
            )

    @property
    def expiry(self) -> datetime.datetime | None:
        """When it ceases to be valid."""
        try:
            moment = datetime.datetime.fromisoformat((self.expires or "").replace("Z", "+00:00"))
        except ValueError:
            return None
        return moment if moment.tzinfo else moment.replace(tzinfo=datetime.timezone.utc)


@dataclass(frozen=True)
class Auth:
    keys: tuple[Key, ...] = option((), "who may call; default: one key, made at each start")
    protect: str = option(
        "predict",
        "predict: pictures and handlers need a key; all: everything but /livez and /readyz does",
        pattern="^(predict|all)$",
    )
    quota_store: str | None = dataclasses.field(
        default=None,
        repr=False,
        metadata={  # it may hold a password
            "doc": "what quotas are counted in: a file, or redis://, rediss:// or unix:// for servers that share them; "
            "default: <config>.quotas.sqlite3"
        },
    )

    def __post_init__(self) -> None:
        refuse_repeated("keys", "name", [key.name for key in self.keys])
        if "://" in (store := self.quota_store or ""):
            check_redis(store)


def check_redis(url: str) -> None:
    """Raise ValueError for a URL that no Redis can have. The text does not quote it: it may hold a password."""
    if not re.match("(redis|rediss|unix)://", url):
        raise ValueError(
            "quota_store: expected a file, or a URL that begins with redis://, rediss:// or unix://"
        )
    if any("@" in rest for rest in re.split("[/?#]", url.partition("://")[2], maxsplit=1)[1:]):
        raise ValueError(
            "quota_store: a /, ? or # in a user's name or password is written %2F, %3F or %23, an @ in an option %40"
        )


@dataclass(frozen=True)
class ImageConfig:
    max_bytes: int = option(50 << 20, "size of a picture's file", minimum=1)
    max_pixels: int = option(50_000_000, "width times height, read from the header", minimum=1)
    download_seconds: int | float = option(
        10, "how long a download may take in all", minimum=0.001, maximum=3600
    )
    allowed_hosts: tuple[str, ...] = option(
        (), "hosts of urls that may have addresses which are not public"
    )


# URLs of the server's own, which a handler cannot have; see ROUTES in serving.py.
TAKEN = (
    "v1",
    "v2",
    "model-serving",
    "livez",
    "readyz",
    "predict",
    "classes",
    "deployments",
    "metrics",
    "monitoring",
    "stats",
    "openapi.json",
    "console",
)
TAKEN_PATH = re.compile(
    rf"/({'|'.join(map(re.escape, TAKEN))})(/.*)?"
    "|/[^/]+/(predict|classes)|/[^/]+/(active_learning|samples|client)/[^/]+",
    re.IGNORECASE,
)


def check_path(path: str) -> None:
    """Raise ValueError for a handler's path that is one of the server's own URLs."""
    if TAKEN_PATH.fullmatch(path):
        raise ValueError(
            f"path: '{path}' is one of the server's own URLs; choose another, such as /my{path}"
        )


@dataclass(frozen=True)
class HandlerConfig:
    path: str = option(
        doc="its URL, such as /alice/sentiment, with letters, digits and ._~-",
        pattern=r"^(/[\w.~-]+)+$",
    )
    function: str = option(
        doc="module:name or file.py:name, looked for beside the config", pattern=r"^[^:]+:[^:]+$"
    )
    model_dir: str | None = option(
        None, "the folder that the module finds as MODEL_DIR; relative to the config file"
    )
    envelope: str | None = option(
        None,
        "hub: CellStrat's answers; default: what the function says, or none",
        pattern="^(hub|none)$",
    )
    methods: tuple[str, ...] = option(
        ("POST",),
        "GET, POST, PUT, PATCH or DELETE: those that run it; else GET pings",
        pattern="^(GET|POST|PUT|PATCH|DELETE)$",
    )
    timeout_seconds: int | float | None = option(
        None, "how long a call may take, then 504; default: as long as it does", minimum=0.001
    )

    def __post_init__(self) -> None:
        check_path(self.path)


@dataclass(frozen=True)
class Source:
    node_name: str = option(doc="the node whose output it is, or request")
    data_item: str = option(doc="the output's alias, or the input of the request")


@dataclass(frozen=True)
class NodeOutput:
    data_item: str = option(doc="the model's name of the output")
    alias: str = option(doc="its name for later nodes")


@dataclass(frozen=True)
class Node:
    name: str = option(doc="its name in this pipeline")
    type: str = option(doc="DL model or custom", pattern="^(DL model|custom)$")
    inputs: tuple[dict[str, Source], ...] = option(
        doc="where each input comes from, an object of one key each"
    )
    outputs: tuple[NodeOutput, ...] = option(doc="the outputs that others use")
    model_name: str | None = option(None, "the model of a DL model node")
    version: int | None = option(
        None, "its version; default: the highest, at each request", minimum=1
    )
    function: str | None = option(
        None,
        "the Python function of a custom node: module:name or file.py:name",
        pattern=r"^[^:]+:[^:]+$",
    )
    params: dict[str, str] = option({}, "what a custom node's function is given besides")
    library_name: str | None = option(
        None, "OpenVINO's C++ nodes; here custom nodes are Python functions"
    )
    demultiply_count: int | None = option(
        None,
        "split its outputs' first dimension, so many; -1: any number",
        minimum=-1,
        maximum=10000,
    )
    gather_from_node: str | None = option(None, "the demultiplexer whose shards it takes together")

    def __post_init__(self) -> None:
        refuse_many_keys("inputs", self.inputs)
        if (
            self.type == "custom"
            and self.library_name
            and self.function is None
            and self.model_name is None
        ):
            return  # as OpenVINO writes it: the pipeline cannot be, its config is none the worse
        wanted, other = (
            ("function", "model_name") if self.type == "custom" else ("model_name", "function")
        )
        if getattr(self, wanted) is None or getattr(self, other) is not None or self.library_name:
            raise ValueError(
                f"a node of type '{self.type}' needs '{wanted}' and has no '{other}' or 'library_name'"
            )


@dataclass(frozen=True)
class Pipeline:
    name: str = option(doc="its name in URLs, as of a model", pattern=r"^[\s\S]")
    inputs: tuple[str, ...] = option(doc="the inputs of a request")
    nodes: tuple[Node, ...] = option(doc="models and functions")
    outputs: tuple[dict[str, Source], ...] = option(
        doc="where each output comes from, an object of one key each"
    )
    demultiply_count: int | None = option(
        None,
        "split the inputs' first dimension, so many; -1: any number",
        minimum=-1,
        maximum=10000,
    )

    def __post_init__(self) -> None:
        refuse_many_keys("outputs", self.outputs)


def refuse_many_keys(where: str, objects: Sequence[dict[str, Source]]) -> None:
    for index, value in enumerate(objects):
        if len(value) != 1:
            raise ValueError(f"{where}[{index}]: expected an object of one key, got {len(value)}")


def check_names(config: Any) -> None:
    """Raise ValueError where names of deployments and handlers, or the keys for them, contradict each other."""
    names, paths = (
        [deployment.id for deployment in config.deployments],
        [handler.path for handler in config.handlers],
    )
    refuse_repeated("deployments", "id", names)
    refuse_repeated("handlers", "path", paths)
    if (
        len(
            defaults := [
                index for index, deployment in enumerate(config.deployments) if deployment.default
            ]
        )
        > 1
    ):
        raise ValueError(
            f"deployments[{defaults[1]}].default: deployments[{defaults[0]}] is the default already"
        )
    for index, key in enumerate(config.auth.keys):
        for name in sorted(set(key.deployments or ()) - {*names, *paths}):
            raise ValueError(
                f"auth.keys[{index}].deployments: no deployment is called '{name}', and no handler has that path"
            )


def resolve_paths(config: Any, folder: Path, stem: str) -> Any:
    """The config with relative paths made absolute: they start at `folder`, that of the config file, whose name is `stem`."""

    def resolved(deployment: Deployment) -> Deployment:
        label_map, learning = deployment.label_map, deployment.active_learning
        return dataclasses.replace(
            deployment,
            label_map=str(folder / label_map) if isinstance(label_map, str) else label_map,
            active_learning=learning
            and dataclasses.replace(learning, folder=str(folder / learning.folder)),
        )

    return dataclasses.replace(
        config,
        deployments=tuple(map(resolved, config.deployments)),
        handlers=tuple(
            dataclasses.replace(
                handler, model_dir=handler.model_dir and str(folder / handler.model_dir)
            )
            for handler in config.handlers
        ),
        routine_modules=tuple(
            str(folder / name) if name.endswith(".py") else name for name in config.routine_modules
        ),
        auth=dataclasses.replace(
            config.auth,
            quota_store=resolve_store(config.auth.quota_store or f"{stem}.quotas.sqlite3", folder),
        ),
    )


def resolve_store(store: str, folder: Path) -> str:
    """A quota store with its path made absolute, if it has one."""
    return store if "://" in store else str(folder / store)
