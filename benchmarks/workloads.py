"""The models of the benchmarks, made here, and one input for each: the four workloads of the
comparison, and two that need a GPU.

    half_plus_two   three numbers into TensorFlow Serving's half_plus_two
    mlp784          one row of 784 numbers into the two dense layers of TensorFlow's quickstart
    mobilenet_v2    one picture of 224x224x3 numbers into Keras's MobileNetV2
    ssd320          one JPEG of 640x480 pixels into a detector of 320x320: 2,034 anchors, 90
                    classes, combined NMS, 100 detections
    resnet50        pictures of 224x224x3 numbers into Keras's ResNet50
    mask_rcnn1024   pictures of 1024x1024 pixels into a network of Mask R-CNN's shape: ResNet50 with
                    a feature pyramid, 64,512 anchors,
                    300 proposals, two dense layers of 1,024, 100 finds with masks of 28x28

Weights are random, from fixed seeds: they do not change how long a model takes. Made once, in
benchmarks/made/.
"""

import functools
import io
import os
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
MADE = HERE / "made"
WORKLOADS = ("half_plus_two", "mlp784", "mobilenet_v2", "ssd320")
LARGE = ("resnet50", "mask_rcnn1024")


def base_path(workload):
    """The folder of a workload's versions."""
    return HERE.parent / "models/half_plus_two" if workload == "half_plus_two" else MADE / workload


@functools.cache
def sample(workload):
    """The input: numbers [3], [1, 784] or [1, 224, 224, 3], of four or eight digits,
    or the bytes of a JPEG.
    """
    random = np.random.default_rng(7)
    if workload == "half_plus_two":
        return np.array([1.0, 2.0, 5.0])
    if workload == "mlp784":
        return random.random((1, 784)).round(4)
    if workload == "mobilenet_v2":
        return random.random((1, 224, 224, 3)).round(8)
    return draw_jpeg(random)


def draw_jpeg(random):
    """A smooth picture with noise, like a photograph: 640x480, about 90 kB."""
    import cv2
    from PIL import Image

    smooth = cv2.resize(
        random.integers(0, 256, (12, 16, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC
    )
    noisy = np.clip(smooth + random.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


# ==================================================================================================
# Models
# ==================================================================================================


def make_all(wanted=WORKLOADS[1:]):
    """Make the models that do not exist yet.

    Each in its own process, since TensorFlow never gives its memory back.
    """
    for workload in wanted:
        if not (base_path(workload) / "1").exists():
            print(f"making {workload}", flush=True)
            if os.spawnv(os.P_WAIT, sys.executable, [sys.executable, __file__, workload]):
                raise SystemExit(f"{workload} could not be made")


def make(workload):
    import keras

    keras.utils.set_random_seed(7)
    folder = base_path(workload) / "1"
    makers = {
        "mlp784": make_mlp,
        "mobilenet_v2": make_mobilenet,
        "ssd320": make_ssd,
        "resnet50": make_resnet,
        "mask_rcnn1024": make_mask_rcnn,
    }
    makers[workload](folder.with_name("making"))
    folder.with_name("making").rename(folder)


def make_mlp(folder):
    import keras

    # as in TensorFlow's quickstart
    layers = [
        keras.Input((784,)),
        keras.layers.Dense(128, "relu"),
        keras.layers.Dense(10, "softmax"),
    ]
    keras.Sequential(layers).export(str(folder), verbose=False)


def make_mobilenet(folder):
    import keras

    keras.applications.MobileNetV2(weights=None).export(str(folder), verbose=False)


def make_resnet(folder):
    import keras

    keras.applications.ResNet50(weights=None).export(str(folder), verbose=False)


ANCHORS = {20: 3, 10: 6, 5: 6, 3: 6, 2: 6, 1: 6}  # by the size of the feature map: 2,034 in all
CLASSES = 90


def make_ssd(folder):
    """A single-shot detector over MobileNetV2, its class scores shifted so that
    the sample yields 100 detections.
    """
    import keras
    import tensorflow as tf

    body = keras.applications.MobileNetV2((320, 320, 3), include_top=False, weights=None)
    features = [body.get_layer("block_13_expand_relu").output, body.output]
    for filters in (512, 256, 256, 128):
        narrow = keras.layers.Conv2D(filters // 2, 1, activation="relu6")(features[-1])
        features.append(
            keras.layers.SeparableConv2D(filters, 3, 2, "same", activation="relu6")(narrow)
        )
    boxes, scores = [], []
    for map_, count in zip(features, ANCHORS.values()):
        boxes.append(
            keras.layers.Reshape((-1, 4))(
                keras.layers.SeparableConv2D(4 * count, 3, padding="same")(map_)
            )
        )
        scores.append(
            keras.layers.Reshape((-1, CLASSES))(
                keras.layers.SeparableConv2D(CLASSES * count, 3, padding="same")(map_)
            )
        )
    join = keras.layers.Concatenate(axis=1)
    network = keras.Model(body.input, [join(boxes), join(scores)])
    module, anchors = tf.Module(), tf.constant(make_anchors())
    module.network, module.shift, module.scale = network, tf.Variable(0.0), tf.Variable(1.0)

    @tf.function(input_signature=[tf.TensorSpec((None, 320, 320, 3), tf.uint8, "input_tensor")])
    def detect(pixels):
        offsets, logits = network(tf.cast(pixels, tf.float32) / 127.5 - 1.0, training=False)
        centre = anchors[:, :2] + 0.1 * tf.tanh(offsets[..., :2]) * anchors[:, 2:]
        half = 0.5 * anchors[:, 2:] * tf.exp(0.2 * tf.tanh(offsets[..., 2:]))
        found = tf.image.combined_non_max_suppression(
            tf.concat([centre - half, centre + half], -1)[:, :, tf.newaxis],
            tf.sigmoid(module.scale * logits + module.shift),
            100,
            100,
            iou_threshold=0.6,
            score_threshold=0.3,
        )
        return {
            "detection_boxes": found.nmsed_boxes,
            "detection_scores": found.nmsed_scores,
            "detection_classes": found.nmsed_classes + 1,
            "num_detections": tf.cast(found.valid_detections, tf.float32),
        }

    calibrate(module, network)
    tf.saved_model.save(module, str(folder), signatures=detect)


def calibrate(module, network):
    """Shift and scale the class scores so that one in 500 of the sample's exceeds the threshold,
    as in a trained detector.
    """
    logits = network(
        read_jpeg(sample("ssd320"))[np.newaxis].astype(np.float32) / 127.5 - 1.0, training=False
    )[1].numpy()
    module.scale.assign(1.5 / logits.std())
    module.shift.assign(-0.85 - float(module.scale.numpy() * np.quantile(logits, 0.998)))


def make_mask_rcnn(folder):
    """A two-stage detector with masks, with the parts of Mask R-CNN at their sizes.

    Scores are not calibrated; all 100 detections are kept.
    """
    import keras
    import tensorflow as tf

    layers = keras.layers
    body = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(1024, 1024, 3))
    maps = [
        layers.Conv2D(256, 1)(body.get_layer(name).output)
        for name in ("conv5_block3_out", "conv4_block6_out", "conv3_block4_out")
    ]
    pyramid = [maps[0]]
    for map_ in maps[1:]:
        pyramid.append(layers.Add()([layers.UpSampling2D()(pyramid[-1]), map_]))
    shared = layers.Conv2D(256, 3, padding="same", activation="relu")
    score, delta = layers.Conv2D(3, 1), layers.Conv2D(12, 1)
    heads = [shared(layers.Conv2D(256, 3, padding="same")(map_)) for map_ in pyramid]
    join = layers.Concatenate(axis=1)
    network = keras.Model(
        body.input,
        [
            join([layers.Reshape((-1, 1))(score(head)) for head in heads]),
            join([layers.Reshape((-1, 4))(delta(head)) for head in heads]),
            pyramid[1],
        ],
    )
    pooled = keras.Input((7, 7, 256))
    dense = layers.Dense(1024, "relu")(layers.Dense(1024, "relu")(layers.Flatten()(pooled)))
    box_head = keras.Model(pooled, [layers.Dense(81)(dense), layers.Dense(4)(dense)])
    mask_head = keras.Sequential(
        [
            keras.Input((14, 14, 256)),
            *(layers.Conv2D(256, 3, padding="same", activation="relu") for _ in range(4)),
            layers.Conv2DTranspose(256, 2, 2, activation="relu"),
            layers.Conv2D(1, 1, activation="sigmoid"),
        ]
    )
    shapes, cells = np.array([(1, 1), (0.7, 1.4), (1.4, 0.7)], np.float32), (32, 64, 128)
    centres = np.concatenate(
        [np.repeat((np.indices((n, n)).reshape(2, -1).T + 0.5) / n, len(shapes), 0) for n in cells]
    ).astype(np.float32)
    halves = np.concatenate([np.tile(shapes * 2 / n, (n * n, 1)) for n in cells])
    module = tf.Module()
    module.parts = [network, box_head, mask_head]

    def place(centre, half, offsets):
        centre = centre + 0.1 * tf.tanh(offsets[..., :2]) * half
        half = half * tf.exp(0.2 * tf.tanh(offsets[..., 2:]))
        return tf.clip_by_value(tf.concat([centre - half, centre + half], -1), 0.0, 1.0)

    def crop(map_, boxes, size):
        count = tf.shape(boxes)[1]
        rows = tf.repeat(tf.range(tf.shape(boxes)[0]), count)
        return tf.image.crop_and_resize(map_, tf.reshape(boxes, (-1, 4)), rows, (size, size))

    @tf.function(input_signature=[tf.TensorSpec((None, 1024, 1024, 3), tf.uint8, "input_tensor")])
    def detect(pixels):
        rows = tf.shape(pixels)[0]
        scores, offsets, features = network(
            tf.cast(pixels, tf.float32) / 127.5 - 1.0, training=False
        )
        best, chosen = tf.math.top_k(tf.sigmoid(scores[..., 0]), 1000)
        boxes = tf.gather(place(centres, halves, offsets), chosen, batch_dims=1)
        proposals = tf.image.combined_non_max_suppression(
            boxes[:, :, tf.newaxis], best[..., tf.newaxis], 300, 300, 0.7, -1.0
        ).nmsed_boxes
        logits, offsets = box_head(crop(features, proposals, 7), training=False)
        centre = (proposals[..., 2:] + proposals[..., :2]) / 2
        half = (proposals[..., 2:] - proposals[..., :2]) / 2
        boxes = place(centre, half, tf.reshape(offsets, (rows, 300, 4)))
        classes = tf.reshape(tf.nn.softmax(logits)[:, 1:], (rows, 300, 80))
        found = tf.image.combined_non_max_suppression(
            boxes[:, :, tf.newaxis], classes, 100, 100, 0.5, -1.0
        )
        masks = tf.reshape(
            mask_head(crop(features, found.nmsed_boxes, 14), training=False), (rows, 100, 28, 28)
        )
        return {
            "detection_boxes": found.nmsed_boxes,
            "detection_scores": found.nmsed_scores,
            "detection_masks": masks,
            "detection_classes": found.nmsed_classes + 1,
            "num_detections": tf.cast(found.valid_detections, tf.float32),
        }

    tf.saved_model.save(module, str(folder), signatures=detect)


def make_anchors():
    """Centre and size of each anchor, float32 [2034, 4], y x h w in 0..1."""
    rows = []
    for scale, (cells, count) in zip(np.linspace(0.1, 0.9, len(ANCHORS)), ANCHORS.items()):
        for y in range(cells):
            for x in range(cells):
                rows += [
                    ((y + 0.5) / cells, (x + 0.5) / cells, scale * h, scale * w)
                    for h, w in (
                        (1, 1),
                        (0.7, 1.4),
                        (1.4, 0.7),
                        (0.6, 1.7),
                        (1.7, 0.6),
                        (1.2, 1.2),
                    )[:count]
                ]
    return np.array(rows, np.float32)


def read_jpeg(data):
    """A picture as the servers of the comparison read it: uint8 RGB [320, 320, 3]."""
    import cv2
    from PIL import Image

    return cv2.resize(
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
        (320, 320),
        interpolation=cv2.INTER_AREA,
    )


if __name__ == "__main__":
    make(sys.argv[1])
