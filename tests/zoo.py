"""Small models in the layouts that people's tools publish, for tests/test_zoo.py.

Each answers constants, so that what is right can be written out by hand; the operations that make
its outputs are those of the published graphs, and so are names, shapes, order and units. `source`
says where the layout stands. Nothing here reads a model's outputs: that is the test's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

CATS = ["cat", "dog", "emu"]
SIDE = 64  # of most inputs: 84 cells in YOLO's grids of strides 8, 16 and 32
CELLS = 84


class Zoo(NamedTuple):
    """A model: `outputs(tf, picture)` by name, its input, and what the deployment's config says.

    `family` is the one it is found to be; `refused` a part of the reason why it is not served, and
    `fails` of why a picture of it is not answered.
    """

    name: str
    source: str
    outputs: Callable[[Any, Any], dict[str, Any]]
    family: str = ""
    config: dict[str, Any] = {}
    refused: str = ""
    fails: str = ""
    shape: tuple[int | None, ...] = (1, SIDE, SIDE, 3)
    dtype: str = "float32"
    input: str = "image"


def constant(**values: Any) -> Callable[[Any, Any], dict[str, Any]]:
    """Outputs that are these numbers, the floats as float32."""

    def outputs(tf: Any, picture: Any) -> dict[str, Any]:
        arrays = {name: np.asarray(value) for name, value in values.items()}
        return {
            name: tf.constant(array.astype(np.float32) if array.dtype.kind == "f" else array)
            for name, array in arrays.items()
        }

    return outputs


def apply(function: Callable[[Any, Any], Any], name: str, value: Any) -> Callable:
    """One output: what a function makes of these numbers."""
    return lambda tf, picture: {
        name: function(tf, tf.constant(np.asarray(value, np.float32)) + 0 * tf.reduce_mean(picture))
    }


def softmax(tf: Any, x: Any) -> Any:
    return tf.nn.softmax(x)


def sigmoid(tf: Any, x: Any) -> Any:
    return tf.sigmoid(x)


def dense(tf: Any, x: Any) -> Any:
    """Numbers that come out of a layer without an activation."""
    return tf.nn.bias_add(tf.identity(x), tf.zeros(x.shape[-1]))


# --- detectors ------------------------------------------------------------------------------------

BOXES = np.array(  # ymin, xmin, ymax, xmax in 0..1
    [[0.25, 0.125, 0.75, 0.625], [0.5, 0.5, 1, 0.75], [0.0, 0.25, 0.5, 0.5], [0, 0, 0, 0]]
)
SCORES = np.array([0.9, 0.75, 0.5, 0])
CLASSES = np.array([2.0, 1, 3, 0])  # from 1
COUNT = np.array([3.0])
MASKS = (np.random.default_rng(3).random((1, 4, 7, 7)) > 0.4).astype(np.float32)
PIXELS = BOXES * SIDE
XYXY, XYWH = BOXES[:, [1, 0, 3, 2]], BOXES[:, [1, 0, 3, 2]].copy()
XYWH[:, 2:] -= XYWH[:, :2]
CXCYWH = XYWH.copy()
CXCYWH[:, :2] += CXCYWH[:, 2:] / 2


def odapi(boxes: Any = BOXES, **more: Any) -> Callable:
    """models/research/object_detection/exporter_lib_v2.py."""
    named = {
        "detection_boxes": boxes[None],
        "detection_scores": SCORES[None],
        "detection_classes": CLASSES[None],
        "num_detections": COUNT,
    }
    return constant(**{**named, **more})


ODAPI = "tensorflow/models research/object_detection/exporter_lib_v2.py"
GARDEN = "tensorflow/models official/vision/serving/detection.py"
# As built by tests/build_zoo.py with tf-models-official 2.20, keras-hub 0.32, keras-cv 0.9,
# ultralytics 8.4.190: names, shapes, dtypes and last operations of those SavedModels.
BUILT_GARDEN = "tf-models-official 2.20 official/vision/serving/"
BUILT_YOLO = "tf-models-official 2.20 official/projects/yolo/serving/export_module_factory.py"
INFO = np.array([[[32, 128], [16, 64], [0.5, 0.5], [0, 0]]], np.float32)  # a picture of 32 x 128
GARDEN_BOXES = BOXES * np.array([16, 64, 16, 64])  # in pixels of the scaled picture
AUTOML = "google/automl efficientdet/tf2/postprocess.py: generate_detections"
EFFICIENTDET = np.concatenate([np.zeros((4, 1)), PIXELS, SCORES[:, None], CLASSES[:, None]], 1)
KERAS_CV = "keras-team/keras-cv keras_cv/src/layers/object_detection/non_max_suppression.py"
KERAS_HUB = "keras-team/keras-hub keras_hub/src/models/retinanet/non_max_supression.py"
DETR = "facebookresearch/detr models/detr.py: PostProcess"
CENTERNET = "xingyizhou/CenterNet src/lib/models/decode.py: ctdet_decode"


def clipped(tf: Any, picture: Any) -> dict[str, Any]:
    """official/vision/serving/detection.py: _normalize_coordinates, which ends with a clip."""
    made = normalized(tf, picture)
    return {**made, "detection_boxes": tf.clip_by_value(made["detection_boxes"], 0.0, 1.0)}


def normalized(tf: Any, picture: Any) -> dict[str, Any]:
    """official/vision/ops/box_ops.py: normalize_boxes, the export's option."""
    ymin, xmin, ymax, xmax = tf.split(tf.constant(GARDEN_BOXES[None].astype(np.float32)), 4, -1)
    height, width = tf.constant(16.0), tf.constant(64.0)
    boxes = tf.concat([ymin / height, xmin / width, ymax / height, xmax / width], -1)
    return {**odapi(image_info=INFO)(tf, picture), "detection_boxes": boxes}


def garden_yolo(tf: Any, picture: Any) -> dict[str, Any]:
    """Classes from 0, as floats; the number of rows as int32."""
    more = {"detection_classes": (CLASSES - 1)[None], "num_detections": np.array([3], np.int32)}
    return odapi(**more)(tf, picture)


def keras_detector(boxes: Any, classes: str = "classes") -> Callable:
    """Unused rows are -1; classes count from 0."""
    scores = np.where(SCORES > 0, SCORES, -1)
    named = {"boxes": boxes[None], "confidence": scores[None], classes: (CLASSES - 1)[None]}
    return constant(**named, num_detections=np.array([3]))


def yolo_scores(count: int, classes: int, seed: int) -> np.ndarray:
    """Scores [count, classes] of which few are high."""
    return np.random.default_rng(seed).random((count, classes)) ** 6


def yolo_boxes(count: int, seed: int) -> np.ndarray:
    """Boxes [count, 4], centre and size in 0..1, many of which overlap."""
    random = np.random.default_rng(seed)
    return np.concatenate(
        [random.uniform(0.3, 0.7, (count, 2)), random.uniform(0.2, 0.5, (count, 2))], 1
    )


V8 = np.concatenate([yolo_boxes(CELLS, 1) * SIDE, yolo_scores(CELLS, 3, 2)], 1)  # [N, 7]
V8_UNIT = V8 / np.array([SIDE] * 4 + [1] * 3)
V5 = np.concatenate([yolo_boxes(3 * CELLS, 3), yolo_scores(3 * CELLS, 4, 4) ** 0.3], 1)  # [N, 8]
V5_PIXELS = V5 * np.array([SIDE] * 4 + [1] * 4)
BIG = np.concatenate([yolo_boxes(189, 5) * 96, yolo_scores(189, 80, 6) ** 2], 1)  # input 96 x 96
NMS = np.concatenate([XYXY * SIDE, SCORES[:, None], (CLASSES - 1)[:, None]], 1)  # [N, 6]


def concat(rows: np.ndarray, transposed: bool = False) -> Callable:
    """One output, joined of boxes and scores as YOLO's heads join theirs."""

    def outputs(tf: Any, picture: Any) -> dict[str, Any]:
        boxes, scores = (
            tf.constant(part[None].astype(np.float32)) for part in (rows[:, :4], rows[:, 4:])
        )
        both = tf.concat([boxes, scores], 2)
        return {"output_0": tf.transpose(both, [0, 2, 1]) if transposed else both}

    return outputs


def unscaled(rows: np.ndarray) -> Callable:
    """One output, of which no constant tells where its boxes lie."""
    return apply(lambda tf, x: tf.abs(x), "output_0", rows[None])


STRIDES = np.repeat([8.0, 16, 32], [64, 16, 4])  # of each of the 84 cells
MIDDLES = np.concatenate(  # of the cells, x and y, in cells
    [np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) + 0.5 for n in (8, 4, 2)]
)
EDGES = np.random.default_rng(11).uniform(0.2, 1.5, (CELLS, 4))  # from a middle, in cells


def decoded() -> np.ndarray:
    """What the heads below find: rows [N, 4 + C] in pixels."""
    low, high = MIDDLES - EDGES[:, :2], MIDDLES + EDGES[:, 2:]
    boxes = np.concatenate([(low + high) / 2, high - low], 1) * STRIDES[:, None]
    return np.concatenate([boxes, V8[:, 4:]], 1)


def head_of_v8(is_unit: bool) -> Callable:
    """utils/tal.py: dist2bbox, times the strides; for TFLite in 0..1, by stride / size."""

    def outputs(tf: Any, picture: Any) -> dict[str, Any]:
        nothing = 0 * tf.reduce_mean(picture)
        constant = lambda value: tf.constant(np.asarray(value, np.float32))  # noqa: E731
        by = constant(STRIDES[None, None])  # [1, 1, N]
        near, far = tf.split(constant(EDGES.T[None]) + nothing, 2, 1)
        middles = constant(MIDDLES.T[None])
        if is_unit:
            share = constant(STRIDES[None, None] / SIDE)
            near, far = near * share, far * share
            middles = constant(MIDDLES.T[None] * STRIDES / SIDE)
        low, high = middles - near, middles + far
        boxes = tf.concat([(low + high) / 2.0, high - low], 1)
        scores = tf.sigmoid(constant(np.log(V8[:, 4:] / (1 - V8[:, 4:])).T[None]) + nothing)
        return {"output_0": tf.concat([boxes if is_unit else boxes * by, scores], 1)}

    return outputs


def head_of_v5(is_unit: bool) -> Callable:
    """models/tf.py: TFDetect, scale by scale; in 0..1 it divides by the input's size."""

    def outputs(tf: Any, picture: Any) -> dict[str, Any]:
        nothing, rows, start = 0 * tf.reduce_mean(picture), [], 0
        for stride in (8.0, 16.0, 32.0):
            count = 3 * (SIDE // int(stride)) ** 2
            part = V5_PIXELS[start : start + count].astype(np.float32)
            shift = np.indices((count, 2))[0].astype(np.float32)
            xy = (tf.constant(part[:, :2] / stride - shift) + nothing + shift) * stride
            wh = tf.constant(part[:, 2:4] / stride) * stride + nothing
            if is_unit:
                size = tf.constant([[SIDE, SIDE]], dtype=tf.float32)
                xy, wh = xy / size, wh / size
            rows.append(tf.concat([xy, wh, tf.constant(part[:, 4:]) + nothing], -1)[None])
            start += count
        return {"output_0": tf.concat(rows, 1)}

    return outputs


ULTRALYTICS = (
    "ultralytics/ultralytics nn/modules/head.py: Detect, utils/ops.py: non_max_suppression"
)
YOLOV5 = "ultralytics/yolov5 models/tf.py: TFDetect, utils/general.py: non_max_suppression"
# Four prototypes on a grid of stride 4, and two objects of them.
GRID = np.indices((16, 16)).astype(np.float32)
PROTOTYPES = np.stack(
    [np.ones((16, 16)), GRID[0] - 7.5, GRID[1] - 7.5, ((GRID - 7.5) ** 2).sum(0)], 2
)  # [h, w, 4]
SEGMENTS = np.zeros((CELLS, 4 + 3 + 4))
SEGMENTS[10] = [32, 32, 48, 40, 0, 0.9, 0, 20, 0, 0, -1]  # a disc
SEGMENTS[50] = [20, 40, 30, 36, 0.8, 0, 0, -1, 1, 0, 0]  # a half plane


def heads(turned: bool, activation: Callable) -> Callable:
    """Heat map, sizes and offsets on a grid of 16 x 16."""
    heat, sizes, offsets = HEAT, np.full((16, 16, 2), 4.0), np.full((16, 16, 2), 0.25)
    sizes[..., 0] = 6  # width, then height

    def outputs(tf: Any, picture: Any) -> dict[str, Any]:
        maps = {"hm": heat, "wh": sizes, "reg": offsets}
        made = {}
        for name, value in maps.items():
            value = np.moveaxis(value, 2, 0) if turned else value
            made[name] = tf.constant(value[None].astype(np.float32))
        return {**made, "hm": activation(tf, made["hm"])}

    return outputs


HEAT = np.full((16, 16, 3), -6.0)
HEAT[4, 5, 1], HEAT[4, 6, 1], HEAT[10, 11, 2], HEAT[12, 3, 0] = 2, 1, 1.5, 0.5
LOGITS = np.random.default_rng(7).normal(0, 2, (1, 6, 4))  # of 6 queries
QUERIES = np.concatenate([CXCYWH[:3], CXCYWH[:3] * 0.9])[None]
ROWS = np.concatenate([BOXES, SCORES[:, None], CLASSES[:, None], (SCORES > 0)[:, None]], 1)
NAN_BOXES = BOXES.copy()
NAN_BOXES[1, 2] = np.nan
ODD_BOXES = np.array(
    [[-0.5, -0.25, 0.5, 0.5], [0.75, 0.5, 0.5, 0.75], [1.5, 0, 2, 1], [0, 0, 0, 0]]
)
C = {"label_map": CATS}
FEW = {"label_map": ["cat", "dog"]}  # one of three names was forgotten
RAW = np.zeros((1, 9, 4))  # scores before suppression: the background and three classes
CUBE = np.moveaxis(np.indices((32, 32)).astype(np.float32).repeat(16, 0), 0, 2)  # [32, 32, 32]
CUBE_ROWS = np.zeros((336, 4 + 3 + 32))  # of an input of 128 x 128
CUBE_ROWS[10] = [64, 64, 96, 80, 0, 0.9, 0, *[1.0] * 16, *[-1.0] * 16]


def cube(tf: Any, picture: Any) -> dict[str, Any]:
    """A segmenter with as many prototypes as its grid has rows and columns."""
    rows = concat(CUBE_ROWS, True)(tf, picture)
    return {**rows, **constant(output_1=CUBE[None])(tf, picture)}


DETECTORS = [
    Zoo("odapi", ODAPI, odapi(), "detection_api", C, dtype="uint8", shape=(1, None, None, 3)),
    Zoo("odapi_masks", ODAPI, odapi(detection_masks=MASKS), "detection_api", C),
    Zoo(
        "odapi_without_batch",
        ODAPI + ", rows without the batch",
        constant(detection_boxes=BOXES, detection_scores=SCORES, detection_classes=CLASSES),
        "detection_api",
        C,
    ),
    Zoo("odapi_of_nan", ODAPI, odapi(NAN_BOXES), "detection_api", C),
    Zoo("odapi_outside", ODAPI, odapi(ODD_BOXES), "detection_api", C),
    Zoo(
        "odapi_pixels",
        ODAPI + ", boxes in pixels",
        odapi(PIXELS),
        "detection_api",
        C,
        fails='write "boxes": {"scale": "pixels | input"}',
    ),
    Zoo(
        "odapi_pixels_said",
        ODAPI + ", boxes in pixels",
        odapi(PIXELS),
        "detection_api",
        {**C, "boxes": {"scale": "input"}},
    ),
    Zoo(
        "garden_retinanet",
        GARDEN,
        odapi(GARDEN_BOXES, image_info=INFO),
        "model_garden",
        C,
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "garden_mask_rcnn",
        GARDEN,
        odapi(GARDEN_BOXES, image_info=INFO, detection_masks=MASKS),
        "model_garden",
        C,
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "garden_normalized",
        GARDEN + ", output_normalized_coordinates",
        normalized,
        "detection_api",
        C,
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "garden_clipped",
        BUILT_GARDEN + "detection.py, output_normalized_coordinates",
        clipped,
        "detection_api",
        C,
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "garden_yolo_unsaid",
        BUILT_YOLO,
        garden_yolo,
        config=C,
        refused='write "classes_from": 0 or 1',
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "garden_yolo",
        BUILT_YOLO,
        garden_yolo,
        "detection_api",
        {**C, "classes_from": 0},
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "garden_raw",
        BUILT_GARDEN + "detection.py, apply_nms: false",
        constant(
            decoded_boxes=GARDEN_BOXES[None, :, None],
            decoded_box_scores=SCORES[None, :, None],
            image_info=INFO,
        ),
        config=C,
        refused="raw outputs of a detector",
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "garden_unit",
        GARDEN + ", 0..1 by another operation",
        odapi(BOXES, image_info=INFO),
        "model_garden",
        C,
        fails='write "family": "detection_api"',
        shape=(1, None, None, 3),
        dtype="uint8",
        input="inputs",
    ),
    Zoo(
        "efficientdet",
        AUTOML,
        constant(detections=EFFICIENTDET[None]),
        "efficientdet",
        C,
        input="image_arrays",
    ),
    Zoo(
        "efficientdet_said",
        AUTOML,
        constant(output_0=EFFICIENTDET[None]),
        "efficientdet",
        {**C, "family": "efficientdet"},
    ),
    Zoo(
        "efficientdet_unsaid",
        AUTOML,
        constant(output_0=EFFICIENTDET[None]),
        "detector",
        C,
        fails='"efficientdet"',
    ),
    Zoo("odapi_raw", ODAPI, odapi(raw_detection_scores=RAW), "detection_api", C),
    Zoo(
        "odapi_raw_few",
        ODAPI,
        odapi(raw_detection_scores=RAW),
        config=FEW,
        refused="expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2",
    ),
    Zoo(
        "yolov8_few",
        ULTRALYTICS,
        concat(V8, True),
        config=FEW,
        refused="expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2",
    ),
    Zoo(
        "yolov8_many",
        ULTRALYTICS,
        concat(V8, True),
        config={"label_map": {"0": "cat", "3": "emu"}},
        refused="expected names of the model's 3 classes, ids 0 to 2; got 2, ids 0 to 3",
    ),
    Zoo(
        "yolov8_open_few",
        ULTRALYTICS + ", dynamic",
        lambda tf, picture: {
            "output_0": tf.concat([concat(V8, True)(tf, picture)["output_0"]] * 2, 2)[
                :, :, : tf.cast(84 + 0 * tf.reduce_mean(picture), tf.int32)
            ]
        },
        "yolo",
        FEW,
        shape=(1, None, None, 3),
        input="images",
        refused="expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2",
    ),
    Zoo(
        "yolov5_few",
        YOLOV5,
        concat(V5),
        config=FEW,
        refused="expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2",
    ),
    Zoo(
        "yolov8_segmentation_few",
        ULTRALYTICS,
        lambda tf, picture: {
            **concat(SEGMENTS, True)(tf, picture),
            **constant(output_1=PROTOTYPES[None])(tf, picture),
        },
        config=FEW,
        refused="expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2",
    ),
    Zoo(
        "detr_few",
        DETR,
        constant(pred_logits=LOGITS, pred_boxes=QUERIES),
        config={**FEW, "activation": "softmax", "classes_from": 0},
        refused="expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2",
    ),
    Zoo(
        "centernet_few",
        CENTERNET,
        heads(False, sigmoid),
        config=FEW,
        refused="expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2",
    ),
    Zoo(
        "yolov8_cube",
        ULTRALYTICS + ", 32 prototypes on a grid of 32 x 32",
        cube,
        config=C,
        shape=(1, 128, 128, 3),
        refused='prototypes [1, 32, 32, 32] may lie first or last: write "planes": "first" or "last"',
    ),
    Zoo(
        "yolov8_cube_said",
        ULTRALYTICS + ", 32 prototypes on a grid of 32 x 32",
        cube,
        "yolo_segmentation",
        {**C, "planes": "last"},
        shape=(1, 128, 128, 3),
    ),
    Zoo(
        "planes_of_none",
        ULTRALYTICS,
        concat(V8, True),
        config={**C, "planes": "last"},
        refused="planes: family yolo takes no such option: leave it out",
    ),
    Zoo(
        "half_named",
        "names of one's own",
        constant(detection_boxes=BOXES[None], s=SCORES[None], c=CLASSES[None]),
        config=C,
        refused='for detection_api write "family": "detection_api", "outputs": '
        '{"detection_scores": "c | s", "detection_classes": "c | s"}',
    ),
    Zoo(
        "odapi_from_0",
        ODAPI + ", another trainer's classes",
        odapi(detection_classes=(CLASSES - 1)[None]),
        "detection_api",
        C,
        fails='the model answered class 0, but classes count from 1, and 0 has no name: write "classes_from"',
    ),
    Zoo("yolov8", ULTRALYTICS, concat(V8, True), "yolo", C),
    Zoo("yolov8_rows", ULTRALYTICS + ", transposed", concat(V8), "yolo", C),
    Zoo("yolov8_unit", ULTRALYTICS + ", tflite", concat(V8_UNIT, True), "yolo", C),
    Zoo("yolov8_head", ULTRALYTICS, head_of_v8(False), "yolo", C),
    Zoo("yolov8_head_unit", ULTRALYTICS + ", tflite", head_of_v8(True), "yolo", C),
    Zoo("yolov5_head", YOLOV5, head_of_v5(True), "yolov5", C),
    Zoo("yolov5_head_pixels", YOLOV5 + ", by ONNX", head_of_v5(False), "yolov5", C),
    Zoo(
        "yolov8_of_no_scale",
        "boxes of another layer's make",
        unscaled(V8.T),
        config=C,
        refused='write "boxes": {"format": "cxcywh", "scale": "unit | pixels | input"}',
    ),
    Zoo(
        "yolov8_scale_said",
        "boxes of another layer's make",
        unscaled(V8.T),
        "yolo",
        {**C, "boxes": {"scale": "input"}},
    ),
    Zoo(
        "yolov8_scale_contradicted",
        "boxes of another layer's make",
        unscaled(V8_UNIT.T),
        "yolo",
        {**C, "boxes": {"scale": "input"}},
        fails='write "boxes": {"scale": "unit"}',
    ),
    Zoo(
        "yolov8_unit_said",
        ULTRALYTICS + ", tflite",
        concat(V8_UNIT, True),
        "yolo",
        {**C, "boxes": {"scale": "unit"}},
    ),
    Zoo("yolo11_coco", ULTRALYTICS, concat(BIG, True), "yolo", shape=(1, 96, 96, 3)),
    Zoo(
        "yolov8_open",
        ULTRALYTICS + ", dynamic",
        concat(V8, True),
        "yolo",
        C,
        shape=(1, None, None, 3),
    ),
    Zoo(
        "yolov8_open_images",
        ULTRALYTICS + ", dynamic",
        concat(V8, True),
        "yolo",
        shape=(1, None, None, 3),
        input="images",
    ),
    Zoo(
        "yolov8_open_unsaid",
        ULTRALYTICS + ", dynamic",
        concat(V8, True),
        shape=(1, None, None, 3),
        refused='"yolo"',
    ),
    Zoo(
        "yolov8_of_other_names",
        "ultralytics 8.4.190, yolov8n-obb: a last column for the angle",
        concat(V8, True),
        config={"label_map": ["cat", "dog"]},
        refused="model's 3 classes, ids 1 to 3; got 2, ids 1 to 2; YOLO's pose and rotated-box",
        input="images",
    ),
    Zoo("yolov5", YOLOV5, concat(V5), "yolov5", C),
    Zoo("yolov5_pixels", YOLOV5 + ", by ONNX", concat(V5_PIXELS), "yolov5", C),
    Zoo(
        "yolov5_scale_contradicted",
        "boxes of another layer's make",
        unscaled(V5_PIXELS),
        "yolov5",
        {**C, "boxes": {"scale": "unit"}},
        fails='write "boxes": {"scale": "pixels | input"}',
    ),
    Zoo(
        "yolov5_pixels_said",
        YOLOV5 + ", by ONNX",
        concat(V5_PIXELS),
        "yolov5",
        {**C, "boxes": {"scale": "input"}},
    ),
    Zoo("yolov10_unsaid", ULTRALYTICS + ", end2end", concat(NMS), refused='"yolo_nms"'),
    Zoo("yolov10", ULTRALYTICS + ", end2end", concat(NMS), "yolo_nms", {**C, "family": "yolo_nms"}),
    Zoo(
        "yxyx_rows",
        "rows of another order",
        concat(NMS[:, [1, 0, 3, 2, 4, 5]]),
        "yolo_nms",
        {**C, "family": "yolo_nms", "boxes": {"format": "yxyx"}},
    ),
    Zoo(
        "yolov8_segmentation",
        ULTRALYTICS + ": process_mask_native",
        lambda tf, picture: {
            **concat(SEGMENTS, True)(tf, picture),
            **constant(output_1=PROTOTYPES[None])(tf, picture),
        },
        "yolo_segmentation",
        C,
    ),
    Zoo(
        "keras_cv_unsaid",
        KERAS_CV,
        keras_detector(XYWH * SIDE),
        config=C,
        refused='"boxes": {"format": "yxyx | xyxy | xywh | cxcywh", "scale": "unit | ',
    ),
    Zoo(
        "keras_cv_half_said",
        KERAS_CV,
        keras_detector(XYWH * SIDE),
        config={**C, "boxes": {"format": "xywh"}},
        refused='"format": "xywh", "scale": "unit | ',
    ),
    Zoo(
        "keras_cv",
        KERAS_CV,
        keras_detector(XYWH * SIDE),
        "keras_detector",
        {**C, "boxes": {"format": "xywh", "scale": "input"}},
    ),
    Zoo(
        "keras_cv_relative",
        KERAS_CV,
        keras_detector(XYXY),
        "keras_detector",
        {**C, "boxes": {"format": "xyxy", "scale": "unit"}},
    ),
    Zoo(
        "keras_hub_heads",
        "keras-hub 0.32 RetinaNetObjectDetector.export",
        constant(bbox_regression=np.zeros((1, 765, 4)), cls_logits=np.zeros((1, 765, 4))),
        refused="ends with model.decode_predictions",
        shape=(None, 128, 128, 3),
    ),
    Zoo(
        "keras_cv_heads",
        "keras-cv 0.9 YOLOV8Detector.export",
        constant(boxes=np.zeros((1, 336, 64)), classes=np.zeros((1, 336, 4))),
        refused="ends with model.decode_predictions",
        shape=(None, 128, 128, 3),
    ),
    Zoo(
        "keras_hub",
        KERAS_HUB,
        keras_detector(PIXELS, "labels"),
        "keras_detector",
        {**C, "boxes": {"format": "yxyx", "scale": "pixels"}},
        shape=(1, None, None, 3),
    ),
    Zoo(
        "detr_unsaid",
        DETR,
        constant(pred_logits=LOGITS, pred_boxes=QUERIES),
        config=C,
        refused='write "activation": "softmax"',
    ),
    Zoo(
        "detr_classes_unsaid",
        DETR,
        constant(pred_logits=LOGITS, pred_boxes=QUERIES),
        config={**C, "activation": "softmax"},
        refused='"classes_from": 0 or 1',
    ),
    Zoo(
        "detr",
        DETR,
        constant(pred_logits=LOGITS, pred_boxes=QUERIES),
        "detr",
        {**C, "activation": "softmax", "classes_from": 0},
    ),
    Zoo(
        "detr_of_coco",
        DETR,
        constant(logits=LOGITS, pred_boxes=QUERIES),
        "detr",
        {"label_map": ["cat", "dog"], "activation": "softmax", "classes_from": 1},
    ),
    Zoo(
        "deformable_detr",
        "fundamentalvision/Deformable-DETR models/deformable_detr.py",
        constant(pred_logits=LOGITS, pred_boxes=QUERIES),
        "detr",
        {"activation": "sigmoid", "classes_from": 0},
    ),
    Zoo("centernet", CENTERNET, heads(False, sigmoid), "centernet", C),
    Zoo(
        "centernet_logits",
        CENTERNET,
        heads(True, lambda tf, x: x),
        "centernet",
        {**C, "activation": "sigmoid"},
    ),
    Zoo("datature_detector", "Datature's export", constant(output_0=ROWS[None]), "detector", C),
    Zoo(
        "datature_detector_without_batch",
        "Datature's export",
        constant(output_0=ROWS),
        "detector",
        C,
    ),
    Zoo(
        "datature_mask_rcnn",
        "Datature's export",
        constant(
            output_1=SCORES[None],
            output_2=(CLASSES - 1)[None],
            output_3=BOXES[None],
            output_4=MASKS,
        ),
        "mask_rcnn",
        C,
    ),
    Zoo(
        "own_names",
        "names of one's own",
        constant(b=BOXES[None], s=SCORES[None], c=CLASSES[None]),
        "detection_api",
        {
            **C,
            "outputs": {"detection_boxes": "b", "detection_scores": "s", "detection_classes": "c"},
        },
    ),
    Zoo(
        "half_a_mapping",
        "names of one's own",
        constant(b=BOXES[None], s=SCORES[None], c=CLASSES[None]),
        config={**C, "family": "detection_api", "outputs": {"detection_boxes": "b"}},
        refused="no output for detection_scores",
    ),
    Zoo(
        "wrong_mapping",
        "names of one's own",
        odapi(),
        config={**C, "family": "detection_api", "outputs": {"detection_boxes": "boxes"}},
        refused="the model has no output 'boxes'",
    ),
]

# --- classifiers ----------------------------------------------------------------------------------

NUMBERS = np.array([[0.5, 2.0, -1.0]])
FIVE = np.array([[-2.0, 0, 0.25, 1, 3]])
KERAS = "keras.applications and keras.layers.Dense, model.export"


def written_out(tf: Any, x: Any) -> Any:
    powers = tf.exp(x)
    return powers / tf.reduce_sum(powers, -1, keepdims=True)


def hidden(tf: Any, x: Any) -> Any:
    """A softmax behind functions, casts and shapes."""

    @tf.function
    def inner(y):
        return tf.reshape(tf.cast(tf.nn.softmax(y), tf.float64), [1, 1, 3]), y

    return tf.cast(tf.squeeze(inner(x)[0], [1]), tf.float32)


def both(names: tuple[str, str], activation: Callable = softmax) -> Callable:
    """Logits and what is made of them."""

    def outputs(tf: Any, picture: Any) -> dict[str, Any]:
        x = dense(tf, tf.constant(NUMBERS.astype(np.float32)))
        return {names[0]: x, names[1]: activation(tf, x)}

    return outputs


def gender_and_age(tf: Any, picture: Any) -> dict[str, Any]:
    """The first of two numbers as a sigmoid, the second as it is."""
    gender, age = tf.split(apply(dense, "x", FIVE[:, :2])(tf, picture)["x"], 2, 1)
    return {"gender": tf.sigmoid(gender), "age": age}


TWO_NAMES = {"label_map": ["woman", "man"]}
ONE = np.array([[0.75]])
CLASSIFIERS = [
    Zoo("softmax", KERAS, apply(softmax, "predictions", NUMBERS), "classifier", C),
    Zoo("softmax_without_names", KERAS, apply(softmax, "predictions", NUMBERS), "classifier"),
    Zoo("softmax_written_out", "onnx2tf", apply(written_out, "out", NUMBERS), "classifier", C),
    Zoo("softmax_hidden", "functions in functions", apply(hidden, "out", NUMBERS), "classifier", C),
    Zoo(
        "logits_unsaid",
        "TF Hub, from_logits",
        apply(dense, "logits", NUMBERS),
        config=C,
        refused="made by BiasAdd, neither softmax nor sigmoid: an embedding",
    ),
    Zoo(
        "logits",
        "TF Hub, from_logits",
        apply(dense, "logits", NUMBERS),
        "classifier",
        {**C, "activation": "softmax"},
    ),
    Zoo(
        "logits_of_labels",
        "from_logits, many labels",
        apply(dense, "logits", NUMBERS),
        "classifier",
        {**C, "activation": "sigmoid"},
    ),
    Zoo(
        "logits_called_none",
        "from_logits",
        apply(dense, "logits", NUMBERS),
        "classifier",
        {**C, "activation": "none"},
        fails="confidences must be in 0..1, but the model answers -1..2",
    ),
    Zoo(
        "softmax_twice",
        KERAS,
        apply(softmax, "predictions", NUMBERS),
        config={**C, "activation": "softmax"},
        refused="the graph applies a softmax already",
    ),
    Zoo(
        "softmax_said",
        KERAS,
        apply(softmax, "predictions", NUMBERS),
        "classifier",
        {**C, "activation": "none"},
    ),
    Zoo("binary", KERAS, apply(sigmoid, "dense", ONE), "classifier", {"label_map": ["cat", "dog"]}),
    Zoo("binary_yes", KERAS, apply(sigmoid, "dense", ONE), "classifier", {"label_map": ["yes"]}),
    Zoo("binary_unnamed", KERAS, apply(sigmoid, "dense", ONE), "classifier"),
    Zoo(
        "binary_of_three",
        KERAS,
        apply(sigmoid, "dense", ONE),
        config=C,
        refused="one output means one class or two, but label_map names 3",
    ),
    Zoo(
        "binary_softmax",
        KERAS,
        apply(softmax, "dense", ONE),
        config=C,
        refused="a softmax over one output is always 1",
    ),
    Zoo(
        "binary_logit",
        KERAS,
        apply(dense, "dense", ONE),
        "classifier",
        {"label_map": ["cat", "dog"], "activation": "sigmoid"},
    ),
    Zoo(
        "binary_joined",
        "[1 - p, p]",
        apply(lambda tf, x: tf.concat([1 - tf.sigmoid(x), tf.sigmoid(x)], -1), "out", ONE),
        "classifier",
        {"label_map": ["cat", "dog"]},
    ),
    Zoo(
        "multilabel",
        KERAS,
        apply(sigmoid, "dense", FIVE),
        "classifier",
        {"label_map": ["a", "b", "c", "d", "e"]},
    ),
    Zoo(
        "multilabel_from",
        KERAS,
        apply(sigmoid, "dense", FIVE),
        "classifier",
        {"label_map": ["a", "b", "c", "d", "e"], "threshold": 0.5},
    ),
    Zoo(
        "with_background",
        "TF-Slim, 1001 classes",
        apply(softmax, "predictions", FIVE),
        "classifier",
        {"label_map": ["a", "b", "c", "d"], "classes_from": 1},
    ),
    Zoo("top_two", KERAS, apply(softmax, "predictions", FIVE), "classifier", {"top_k": 2}),
    Zoo(
        "strange_names",
        KERAS,
        apply(softmax, "predictions", NUMBERS),
        config={"label_map": {"7": "x"}},
        refused="label_map names the class 7",
    ),
    Zoo("logits_and_probs", "TF-Slim's endpoints", both(("logits", "probs")), "classifier", C),
    Zoo(
        "gender_and_age",
        "a face's, parts of one layer",
        gender_and_age,
        config=TWO_NAMES,
        refused='write "family": "classifier", "outputs": {"probabilities": "gender"}',
    ),
    Zoo(
        "class_and_numbers",
        "a class and as many numbers, of a layer each",
        lambda tf, picture: {
            **apply(softmax, "label", NUMBERS)(tf, picture),
            **apply(dense, "place", NUMBERS)(tf, picture),
        },
        config=C,
        refused='write "family": "classifier", "outputs": {"probabilities": "label"}',
    ),
    Zoo(
        "two_heads",
        "two classifiers",
        lambda tf, picture: {
            **apply(softmax, "kind", NUMBERS)(tf, picture),
            **apply(softmax, "age", FIVE)(tf, picture),
        },
        config={},
        refused='for classifier write "family": "classifier", "outputs": {"probabilities": "age | kind"}',
    ),
    Zoo(
        "two_heads_said",
        "two classifiers",
        lambda tf, picture: {
            **apply(softmax, "kind", NUMBERS)(tf, picture),
            **apply(softmax, "age", FIVE)(tf, picture),
        },
        "classifier",
        {**C, "outputs": {"probabilities": "kind"}},
    ),
    Zoo(
        "labelled",
        "AutoML Vision",
        lambda tf, picture: {
            **apply(softmax, "scores", NUMBERS)(tf, picture),
            "labels": tf.constant([[b"cat", b"dog", b"emu"]]),
        },
        "labelled_classifier",
    ),
    Zoo(
        "labelled_from_1",
        "AutoML Vision, with a background",
        lambda tf, picture: {
            **apply(softmax, "scores", NUMBERS)(tf, picture),
            "labels": tf.constant([[b"cat", b"dog", b"emu"]]),
        },
        "labelled_classifier",
        {"classes_from": 1},
    ),
    Zoo(
        "softmaxes_joined",
        "two classifiers in one row",
        apply(lambda tf, x: tf.concat([tf.nn.softmax(x), tf.nn.softmax(x)], -1), "out", NUMBERS),
        config={"label_map": list("abcdef")},
        refused="is made by ConcatV2, neither softmax nor sigmoid",
    ),
    Zoo(
        "softmax_turned",
        "one minus a softmax",
        apply(lambda tf, x: 1 - tf.nn.softmax(x), "out", NUMBERS),
        config=C,
        refused="is made by Sub, neither softmax nor sigmoid",
    ),
    Zoo(
        "edges_of_a_box",
        "keras.io, a box for the one object",
        apply(sigmoid, "dense", FIVE[:, :4]),
        refused="4 sigmoids without names may be places, such as the edges of a box: for a classifier "
        'write "label_map", or "family": "classifier"',
    ),
    Zoo(
        "class_and_box",
        "pyimagesearch, a class and a box for the one object",
        lambda tf, picture: {
            **apply(softmax, "class_label", NUMBERS)(tf, picture),
            **apply(sigmoid, "bounding_box", FIVE[:, :4])(tf, picture),
        },
        config=C,
        refused='write "family": "classifier", "outputs": {"probabilities": "class_label"}',
    ),
    Zoo(
        "embedding",
        "TF Hub, feature vectors",
        lambda tf, picture: {"feature": tf.reduce_mean(tf.tile(picture, [1, 1, 1, 9]), [1, 2])},
        refused="an embedding or a regression is no classifier",
    ),
]

# --- segmenters -----------------------------------------------------------------------------------

FIELD = np.full((16, 32, 3), 0.0)  # logits of planes, from which regions come
FIELD[..., 0] = 2
FIELD[2:9, 3:14, 1], FIELD[5:14, 20:30, 2], FIELD[11:15, 2:8, 2] = 4, 5, 3
WIDE = (1, 32, 64, 3)
UNET = "keras.io examples/vision/oxford_pets_image_segmentation"
DEEPLAB = "tensorflow/models research/deeplab/export_model.py: SemanticPredictions"
TWO = {"label_map": ["cat", "dog"]}
MASK = FIELD[..., 2:] - 2  # [H, W, 1]


def planes_first(tf: Any, x: Any) -> Any:
    return tf.transpose(tf.nn.softmax(x), [0, 3, 1, 2])


def resized(tf: Any, x: Any) -> Any:
    return tf.image.resize(tf.nn.softmax(x), [32, 64], "nearest")


def garden_planes(function: Callable, size: tuple[int, int], info: list) -> Callable:
    """Logits in the top left of `size`, the rest 9 of class 1, and image_info."""
    planes = np.zeros((1, *size, 3), np.float32)
    planes[..., 1] = 9
    planes[0, : FIELD.shape[0], : FIELD.shape[1]] = FIELD

    def outputs(tf: Any, picture: Any) -> dict[str, Any]:
        logits = tf.image.resize(function(tf, tf.constant(planes)), size)
        return {"logits": logits, "image_info": tf.constant([info], tf.float32)}

    return outputs


GARDEN_PLANES = BUILT_GARDEN + "semantic_segmentation.py"
GIVEN = {"dtype": "uint8", "shape": (1, None, None, 3), "input": "inputs"}
# pictures of 48 x 96 shown in 32 x 32 keeping their proportions; the planes as large as the picture
KEPT = [[48, 96], [32, 32], [1 / 3, 1 / 3], [0, 0]]
WHOLE = [[16, 32], [32, 32], [1, 1], [0, 0]]
CLASS_MAP = FIELD.argmax(2)[None]
SEGMENTERS = [
    Zoo(
        "unet",
        UNET,
        apply(sigmoid, "mask", MASK[None]),
        "segmentation",
        {"label_map": ["pet"]},
        shape=WIDE,
    ),
    Zoo(
        "unet_logits_unsaid",
        UNET,
        apply(dense, "mask", MASK[None]),
        config={"label_map": ["pet"]},
        refused="neither softmax nor sigmoid",
        shape=WIDE,
    ),
    Zoo(
        "unet_logits",
        UNET,
        apply(dense, "mask", MASK[None]),
        "segmentation",
        {"label_map": ["pet"], "activation": "sigmoid", "threshold": 0.8},
        shape=WIDE,
    ),
    Zoo(
        "unet_softmax",
        UNET,
        apply(softmax, "mask", MASK[None]),
        config={"label_map": ["pet"]},
        refused="a softmax over one output is always 1",
        shape=WIDE,
    ),
    Zoo(
        "mask_alone",
        UNET + ", squeezed",
        apply(sigmoid, "mask", MASK[None, ..., 0]),
        "mask",
        {"label_map": ["pet"]},
        shape=WIDE,
    ),
    Zoo(
        "planes_last", UNET, apply(softmax, "planes", FIELD[None]), "segmentation", TWO, shape=WIDE
    ),
    Zoo(
        "planes_first",
        "PyTorch, by ONNX",
        apply(planes_first, "planes", FIELD[None]),
        "segmentation",
        TWO,
        shape=WIDE,
    ),
    Zoo(
        "planes_resized",
        DEEPLAB,
        apply(resized, "planes", FIELD[None]),
        "segmentation",
        TWO,
        shape=WIDE,
    ),
    Zoo(
        "planes_logits",
        "segmentation_models",
        apply(dense, "planes", FIELD[None]),
        "segmentation",
        {**TWO, "activation": "softmax"},
        shape=WIDE,
    ),
    Zoo(
        "planes_of_labels",
        "sigmoids",
        apply(sigmoid, "planes", FIELD[None] - 3.5),
        "segmentation",
        C,
        shape=WIDE,
    ),
    Zoo(
        "planes_all_named",
        "Cityscapes",
        apply(softmax, "planes", FIELD[None]),
        config=C,
        refused='write "classes_from": 0 if class 0 is a class like the others',
        shape=WIDE,
    ),
    Zoo(
        "planes_all_named_said",
        "Cityscapes",
        apply(softmax, "planes", FIELD[None]),
        "segmentation",
        {**C, "classes_from": 0},
        shape=WIDE,
    ),
    Zoo(
        "garden_planes_unsaid",
        GARDEN_PLANES,
        garden_planes(lambda tf, x: x, (32, 32), KEPT),
        config=TWO,
        refused="neither softmax nor sigmoid",
        **GIVEN,
    ),
    Zoo(
        "garden_planes",
        GARDEN_PLANES,
        garden_planes(lambda tf, x: x, (32, 32), KEPT),
        "garden_segmentation",
        {**TWO, "activation": "softmax"},
        **GIVEN,
    ),
    Zoo(
        "garden_planes_rescaled",
        GARDEN_PLANES + ", rescale_output",
        garden_planes(lambda tf, x: x, (16, 32), WHOLE),
        "garden_segmentation",
        {**TWO, "activation": "softmax"},
        **GIVEN,
    ),
    Zoo(
        "garden_planes_softmax",
        GARDEN_PLANES + ", logit_activation: softmax",
        garden_planes(softmax, (32, 32), KEPT),
        "garden_segmentation",
        TWO,
        **GIVEN,
    ),
    Zoo(
        "planes_of_road",
        "Cityscapes",
        apply(softmax, "planes", FIELD[None]),
        config={"label_map": {"0": "road", "1": "cat", "2": "dog"}},
        refused="label_map names class 0 'road': write \"classes_from\": 0 if class 0",
        shape=WIDE,
    ),
    Zoo(
        "planes_of_background",
        "PASCAL VOC",
        apply(softmax, "planes", FIELD[None]),
        "segmentation",
        {"label_map": {"0": "__background__", "1": "cat", "2": "dog"}},
        shape=WIDE,
    ),
    Zoo(
        "planes_flat",
        "divamgupta/image-segmentation-keras keras_segmentation/models/model_utils.py",
        apply(lambda tf, x: tf.nn.softmax(tf.reshape(x, [1, 512, 3])), "out", FIELD[None]),
        "flat_segmentation",
        TWO,
        shape=WIDE,
    ),
    Zoo(
        "planes_flat_logits",
        "the same, without its last layer",
        apply(lambda tf, x: tf.reshape(x, [1, 512, 3]), "out", FIELD[None]),
        "flat_segmentation",
        {**TWO, "activation": "softmax"},
        shape=WIDE,
    ),
    Zoo(
        "planes_flat_coarse",
        "the same, a quarter of the input",
        apply(lambda tf, x: tf.nn.softmax(tf.reshape(x, [1, 512, 3])), "out", FIELD[None]),
        config=TWO,
        shape=(1, 64, 128, 3),
        refused='rows for 16x32 pixels may be a sequence: for a segmenter write "family": "flat_seg',
    ),
    Zoo(
        "planes_cubic",
        UNET + ", as many classes as rows",
        apply(softmax, "planes", FIELD[None, :3, :3]),
        config={"label_map": ["cat", "dog"]},
        shape=(1, 12, 12, 3),
        refused='may have its classes first or last: write "planes": "first" or "last", or',
    ),
    Zoo(
        "deeplab_road",
        DEEPLAB,
        constant(SemanticPredictions=CLASS_MAP),
        config={"label_map": {"0": "road", "1": "cat", "2": "dog"}},
        refused="label_map names class 0 'road': write \"classes_from\": 0 if class 0",
        shape=WIDE,
    ),
    Zoo(
        "deeplab_from_0",
        DEEPLAB,
        constant(SemanticPredictions=CLASS_MAP),
        "class_map",
        {**C, "classes_from": 0},
        shape=WIDE,
    ),
    Zoo(
        "mask_from_1",
        UNET + ", squeezed",
        apply(sigmoid, "mask", MASK[None, ..., 0]),
        config={"label_map": ["pet"], "classes_from": 1},
        refused="classes_from: a model with one output has no first class",
        shape=WIDE,
    ),
    Zoo(
        "planes_over_rows",
        "a softmax over another axis",
        apply(
            lambda tf, x: tf.transpose(tf.nn.softmax(tf.transpose(x, [0, 2, 3, 1])), [0, 3, 1, 2]),
            "planes",
            FIELD[None],
        ),
        "segmentation",
        TWO,
        shape=WIDE,
        fails="the classes of a softmax must add up to 1 in each pixel, but these add up to 0.",
    ),
    Zoo(
        "grid_of_a_detector",
        "YOLO v1, by Keras",
        apply(sigmoid, "grid", FIELD[None, :7, :7, [0] * 30]),
        config={},
        shape=(1, 448, 448, 3),
        refused="each cell of planes [1, 7, 7, 30] covers 16 pixels or more, as in a detector's grid",
    ),
    Zoo("deeplab", DEEPLAB, constant(SemanticPredictions=CLASS_MAP), "class_map", TWO, shape=WIDE),
    Zoo(
        "deeplab_plane",
        DEEPLAB,
        constant(SemanticPredictions=CLASS_MAP[..., None]),
        "class_map_plane",
        TWO,
        shape=WIDE,
    ),
    Zoo(
        "autoencoder",
        "image to image",
        apply(sigmoid, "decoded", FIELD[None]),
        refused="three planes may also be a picture",
        shape=WIDE,
    ),
    Zoo(
        "gan",
        "pix2pix",
        apply(lambda tf, x: tf.tanh(x), "generated", FIELD[None]),
        refused="a model that answers pictures",
        shape=WIDE,
    ),
]

# --- what is none ---------------------------------------------------------------------------------

SEQUENCE = np.random.default_rng(9).random((1, 24, 40))
OTHERS = [
    Zoo("ocr", "CRNN", apply(softmax, "steps", SEQUENCE), refused="a sequence made by Softmax"),
    Zoo(
        "ocr_logits", "CRNN", apply(dense, "steps", SEQUENCE), refused="a sequence made by BiasAdd"
    ),
    Zoo(
        "tokens",
        "ViT's last hidden state",
        apply(lambda tf, x: x * 2, "hidden", SEQUENCE),
        refused='write its "family"',
    ),
    Zoo(
        "boxes_of_masks",
        UNET,
        apply(sigmoid, "mask", MASK[None]),
        config={"boxes": {"scale": "input"}},
        refused="boxes: family segmentation takes no such option",
        shape=WIDE,
    ),
    Zoo(
        "yolo_of_files",
        ULTRALYTICS + ", decodes pictures itself",
        lambda tf, files: {
            "output_0": concat(V8, True)(tf, files)["output_0"]
            + 0 * tf.reduce_mean(tf.cast(tf.io.decode_image(files[0]), tf.float32))
        },
        config=C,
        refused="the model decodes pictures itself, so that the size of its input is not known",
        shape=(None,),
        dtype="string",
    ),
    Zoo(
        "style",
        "magenta/arbitrary-image-stylization",
        lambda tf, picture: {"stylized": tf.cast(picture, tf.uint8)},
        refused="a deployment answers predictions, not pictures",
    ),
    Zoo(
        "token_ids",
        "a captioner",
        constant(ids=np.arange(20)[None, :, None]),
        refused="not in the input's proportions",
    ),
    Zoo(
        "half_a_detector",
        ODAPI,
        constant(
            detection_boxes=BOXES[None],
            detection_scores=SCORES[None, :3],
            detection_classes=CLASSES[None],
        ),
        refused="; detection_scores is [1, 3]",
    ),
    Zoo(
        "mapping_to_nothing",
        KERAS,
        apply(softmax, "out", NUMBERS),
        config={"outputs": {"probabilities": "probs"}},
        refused="outputs.probabilities: the model has no output 'probs'; it has out [1, 3]",
    ),
    Zoo(
        "text",
        "a text model",
        lambda tf, text: {
            "score": tf.nn.softmax(
                tf.cast(tf.strings.length(text)[:, None], tf.float32) * [[1.0, 2.0]]
            )
        },
        refused="is a string, and the graph does not show what it holds: write",
        shape=(None,),
        dtype="string",
    ),
    Zoo(
        "picture_files",
        "decodes pictures itself",
        lambda tf, files: {
            "p": tf.nn.softmax(
                tf.constant(NUMBERS.astype(np.float32))
                + 0 * tf.reduce_mean(tf.cast(tf.io.decode_image(files[0]), tf.float32))
            )
        },
        "classifier",
        C,
        shape=(None,),
        dtype="string",
    ),
]
ZOO = [*DETECTORS, *CLASSIFIERS, *SEGMENTERS, *OTHERS]


def export(tf: Any, zoo: Zoo, folder: str) -> None:
    """Write a model as a SavedModel."""
    spec = tf.TensorSpec(zoo.shape, getattr(tf, zoo.dtype), name=zoo.input)

    def see(picture):
        if zoo.dtype != "string":
            picture = tf.cast(picture, tf.float32)
        return zoo.outputs(tf, picture)

    module = tf.Module()
    module.see = tf.function(see, input_signature=[spec])
    tf.saved_model.save(module, folder, signatures=module.see.get_concrete_function())
