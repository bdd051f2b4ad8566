"""A server with one of everything that the page has to show, its models made up: what the page's
tests look at, and the pictures in the documents.
"""

import io
import threading
import time
from pathlib import Path

import numpy as np
from conftest import NO_POLL, ROOT, image_bytes, key_entry, signature, spec
from PIL import Image

import serving
from serving_extensions.pipeline_servables import describe_signature

KEY, RESTRICTED = "the-key", "a-small-key"
ROWS = (None,)
PICTURE = spec("image", "DT_UINT8", (1, None, None, 3))
BOXES = {
    "detection_boxes": (1, None, 4),
    "detection_classes": (1, None),
    "detection_scores": (1, None),
}
# Latin, Chinese and Arabic, one with what HTML and a spreadsheet would take for something else.
NAMES = ["white cell", "红细胞", "خلية", "<b>=1+1", "platelet", "a name that is rather long"]


class Made(serving.Servable):
    """A model of given signatures; `answer(inputs)` says what it answers."""

    def __init__(self, answer, *signatures, **named):
        found = {"serving_default": signature(*signatures)} if signatures else named
        told = {
            name: describe_signature(one)["signature_def"]["serving_default"]
            for name, one in found.items()
        }
        super().__init__(
            found,
            lambda name, inputs: answer(inputs),
            metadata={"signature_def": told},
            device="CPU:0",
        )


def detector(find):
    """A detector; `find(pixels [H, W, 3])` answers boxes [N, 4] in 0..1, classes and scores [N]."""

    def answer(inputs):
        arrays = find(inputs["image"][0])
        return {name: np.asarray(one, np.float32)[None] for name, one in zip(BOXES, arrays)}

    return Made(answer, [PICTURE], [spec(name, shape=shape) for name, shape in BOXES.items()])


def grid(count, classes, score=lambda n: 0.99 - 0.9 * n):
    """`count` boxes in rows and columns, their confidences from high to low."""
    side = int(np.ceil(np.sqrt(max(count, 1))))
    top, left = np.divmod(np.arange(count), side)
    box = np.stack([top + 0.15, left + 0.1, top + 0.9, left + 0.85], axis=-1) / side
    return box, 1 + np.arange(count) % classes, score(np.linspace(0, 1, count))


def some(version):
    """A detector of four things; its second version finds one less and is surer of the others."""
    keep, surer = (4, 0.0) if version == 1 else (3, 0.02)
    boxes = [
        [0.1, 0.1, 0.45, 0.4],
        [0.5, 0.5, 0.9, 0.95],
        [0.15, 0.6, 0.4, 0.8],
        [0.6, 0.1, 1, 0.3],
    ]
    scores = np.array([0.9, 0.7, 0.5, 0.31]) + surer
    return detector(lambda pixels: (boxes[:keep], [1, 2, 3, 4][:keep], scores[:keep]))


def rings():
    """A segmenter: a disk with a hole, and one without."""

    def answer(inputs):
        y, x = np.mgrid[-1:1:128j, -1:1:128j]
        far, other = np.hypot(y, x + 0.3), np.hypot(y - 0.6, x - 0.6)
        planes = np.where((far > 0.25) & (far < 0.55), 1, np.where(other < 0.3, 2, 0))
        return {"SemanticPredictions": planes[None].astype(np.int64)}

    output = spec("SemanticPredictions", "DT_INT64", (1, None, None))
    return Made(answer, [PICTURE], [output])


def thousand():
    """A classifier of 1,000 classes."""

    def answer(inputs):
        odds = 1.0 / (1 + np.arange(1000) * 617 % 1000) ** 2
        return {"probabilities": (odds / odds.sum())[None].astype(np.float32)}

    return Made(answer, [PICTURE], [spec("probabilities", shape=(1, 1000))])


def slow(wait):
    """A detector that answers when `wait` is set, after 20 seconds at the latest."""

    def find(pixels):
        wait.wait(20)
        return grid(4, 2)

    return detector(find)


def failing():
    def answer(inputs):
        raise RuntimeError("made to fail")

    return Made(answer, [spec("x", shape=(None, 1))], [spec("y", shape=(None, 1))])


def add_one():
    return Made(
        lambda inputs: {"y": inputs["x"] + 1}, [spec("x", shape=ROWS)], [spec("y", shape=ROWS)]
    )


def table():
    """Rows of four numbers to probabilities of three classes."""

    def answer(inputs):
        odds = np.exp(inputs["flower"][:, :3])
        return {"kinds": odds / odds.sum(axis=1, keepdims=True)}

    return Made(answer, [spec("flower", shape=(None, 4))], [spec("kinds", shape=(None, 3))])


def texts():
    """A text to its capitals, and to its length by another signature."""
    line = [spec("text", "DT_STRING", ROWS)]

    def answer(inputs):
        return {
            "upper": np.array([one.upper() for one in inputs["text"]], object),
            "length": np.array([len(one) for one in inputs["text"]], np.int64),
        }

    upper, length = spec("upper", "DT_STRING", ROWS), spec("length", "DT_INT64", ROWS)
    both = {
        "serving_default": signature(line, [upper, length]),
        "lengths": signature(line, [length]),
    }
    return Made(answer, **both)


def grey():
    """Grey pictures of 8x8 to their mean."""
    return Made(
        lambda inputs: {"mean": inputs["pixels"].mean(axis=(1, 2, 3))},
        [spec("pixels", shape=(None, 8, 8, 1))],
        [spec("mean", shape=ROWS)],
    )


def planes():
    """Pictures with their channels first, and of one channel without a dimension, to themselves."""
    shapes = {"serving_default": (None, 3, 8, 6), "flat": (None, 28, 28)}
    return Made(
        lambda inputs: {"same": inputs["input_1"]},
        **{
            name: signature([spec("input_1", shape=shape)], [spec("same", shape=shape)])
            for name, shape in shapes.items()
        },
    )


def cube():
    """A tensor that no form suits."""
    return Made(
        lambda inputs: {"sum": inputs["cube"].sum(axis=(1, 2))},
        [spec("cube", shape=(None, 2, 3))],
        [spec("sum", shape=ROWS)],
    )


def encoded():
    """The bytes of picture files to their widths."""

    def answer(inputs):
        sizes = [Image.open(io.BytesIO(one)).size for one in inputs["image_bytes"]]
        return {"width": np.array([width for width, _ in sizes], np.int64)}

    return Made(answer, [spec("image_bytes", "DT_STRING", ROWS)], [spec("width", "DT_INT64", ROWS)])


def vectorized():
    """A column of texts, as Keras's TextVectorization takes them, to their lengths."""
    return Made(
        lambda inputs: {"length": np.array([len(row[0]) for row in inputs["text"]], np.int64)},
        [spec("text", "DT_STRING", (None, 1))],
        [spec("length", "DT_INT64", ROWS)],
    )


def odd():
    """Whole numbers to themselves, and to their logarithms: what JSON and a browser cannot hold."""

    def answer(inputs):
        with np.errstate(all="ignore"):
            return {"same": inputs["n"], "log": np.log(inputs["n"].astype(np.float32))}

    number, log = spec("same", "DT_INT64", ROWS), spec("log", shape=ROWS)
    return Made(answer, [spec("n", "DT_INT64", ROWS)], [number, log])


def single():
    """A picture without a batch to its height and width."""
    return Made(
        lambda inputs: {"size": np.array(inputs["image"].shape[:2], np.int64)},
        [spec("image", "DT_UINT8", (None, None, 3))],
        [spec("size", "DT_INT64", (2,))],
    )


def changed(*names):
    """The sum of two inputs, of other names and sizes in each version."""
    size = len(names[0])
    return Made(
        lambda inputs: {"sum": sum(one.sum(axis=1) for one in inputs.values())},
        [spec(name, shape=(None, size)) for name in names],
        [spec("sum", shape=ROWS)],
    )


def models(wait):
    """name -> version -> a function that makes the model; None for one that cannot be loaded."""
    crowd = detector(lambda pixels: grid(300, len(NAMES)))
    return {
        "cells": {1: lambda: some(1), 2: lambda: some(2)},
        "crowd": {1: lambda: crowd},
        "nothing": {1: lambda: detector(lambda pixels: grid(0, 1))},
        "rings": {1: rings},
        "thousand": {1: thousand},
        "slow": {1: lambda: slow(wait)},
        "broken": {1: None},
        "empty": {},
        "add_one": {1: add_one},
        "table": {1: table},
        "texts": {1: texts},
        "grey": {1: grey},
        "cube": {1: cube},
        "planes": {1: planes},
        "failing": {1: failing},
        "encoded": {1: encoded},
        "vectorized": {1: vectorized},
        "odd": {1: odd},
        "single": {1: single},
        "changed": {1: lambda: changed("a", "b"), 2: lambda: changed("one", "two")},
    }


def node(name, model, source, inner="x"):
    return {
        "name": name,
        "type": "DL model",
        "model_name": model,
        "inputs": [
            {inner: {"node_name": source, "data_item": "x" if source == "request" else "y"}}
        ],
        "outputs": [{"data_item": "y", "alias": "y"}],
    }


def config(made, cameras=32, inbox=None, **others):
    """The config: every model, 40 deployments, a pipeline that parts and joins, a restricted key;
    what one sees is put aside in the folder `inbox`.
    """
    names = {str(n): name for n, name in enumerate(NAMES, 1)}
    deployments = [
        {"id": "cells", "model": "cells", "version": 1, "default": True, "label_map": names},
        {"id": "crowd", "model": "crowd", "label_map": names},
        {"id": "nothing", "model": "nothing", "label_map": names},
        {"id": "rings", "model": "rings", "label_map": {"1": "ring", "2": "disk"}},
        {"id": "thousand", "model": "thousand", "activation": "none"},
        {"id": "slow", "model": "slow", "label_map": names},
        {"id": "broken", "model": "broken"},
        {"id": "细胞 خلايا", "model": "cells", "label_map": names},
        *({"id": f"camera-{n:02}", "model": "crowd", "label_map": names} for n in range(cameras)),
    ]
    if inbox:
        deployments[0]["active_learning"] = {"threshold": 0, "folder": str(inbox)}
    pipeline = {
        "name": "diamond",
        "inputs": ["x"],
        "nodes": [node("first", "add_one", "request"), node("left", "add_one", "first"),
                  node("right", "add_one", "first"), node("last", "add_one", "right")],
        "outputs": [{"left": {"node_name": "left", "data_item": "y"}},
                    {"last": {"node_name": "last", "data_item": "y"}}],
    }  # fmt: skip
    return {
        "model_config_list": [{"config": model_entry(name, made[name])} for name in made],
        "deployments": deployments,
        "pipeline_config_list": [pipeline],
        "auth": {
            "protect": "all",
            "keys": [
                key_entry("page", KEY),
                key_entry("guest", RESTRICTED, deployments=["rings", "thousand"]),
            ],
        },
        "server": NO_POLL,
        **others,
    }


def model_entry(name, versions):
    entry = {"name": name, "base_path": str(ROOT / "models/shapes") if name == "cells" else name}
    if len(versions) > 1:
        entry |= {"model_version_policy": {"all": {}}, "version_labels": {"canary": max(versions)}}
    return entry


def build(wait=None, hold=None, **others):
    """A server of all of it, not started. Its slow model waits for the event `wait`, and its models
    from the fourth on for `hold` before they are loaded.
    """
    made = models(wait or threading.Event())
    order = list(made)

    def name_of(base_path):
        last = Path(base_path).name
        return "cells" if last == "shapes" else last

    def load(folder, model):
        if hold and order.index(model.name) > 2:
            hold.wait(60)
        make = made[model.name][int(folder.name)]
        if make is None:
            raise serving.LoadError("variables.index is cut off at byte 1024")
        return make()

    server = serving.ModelServer(
        config(made, **others),
        load=load,
        list_versions=lambda base_path: {
            n: Path(base_path) / str(n) for n in made[name_of(base_path)]
        },
    )
    add_handlers(server)
    return server


def add_handlers(server):
    @server.endpoint("/echo")
    def echo(inputs, context):
        return {"echo": inputs}

    @server.endpoint("/picture")
    def picture(inputs, context):
        return image_bytes(Image.new("RGB", (40, 30), "teal"))

    @server.endpoint("/now", methods=["GET", "POST"])
    def now(inputs, context):
        return {"now": time.time()}

    @server.endpoint("/fails")
    def fails(inputs, context):
        raise RuntimeError("made to fail")


# --- pictures ------------------------------------------------------------------------------------


def scene(width, height):
    """A picture with something to see: a gradient and disks."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 120)], -1).astype(
        np.uint8
    )
    step = max(40, min(width, height) // 5)
    pixels[((x % step - step / 2) ** 2 + (y % step - step / 2) ** 2) < (step / 4) ** 2] = 235
    return Image.fromarray(pixels)


def write_pictures(folder):
    """Pictures of all kinds as files; name -> path."""
    turned = Image.Exif()
    turned[0x0112] = 6  # taken with the camera on its side
    files = {
        "plain.png": image_bytes(scene(640, 480)),
        "tall.png": image_bytes(scene(200, 6000)),
        "wide.png": image_bytes(scene(8000, 200)),
        "scan.tif": image_bytes(scene(300, 200), "TIFF"),
        "large.tif": image_bytes(scene(2000, 1000), "TIFF", compression="tiff_lzw"),
        "turned.jpg": image_bytes(scene(400, 200), "JPEG", exif=turned),
        "broken.jpg": b"this is no picture",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in files}
