"""Make `shapes`, a small detector of coloured shapes with masks, beside this file, or measure one
already made.

    python models/make_shapes.py             # needs keras, pillow, pycocotools; 15 minutes
    python models/make_shapes.py --measure   # average precision on held-out pictures

The pictures are drawn here, and never twice the same: circles, squares, triangles and stars over a
cluttered background. The net is one of CenterNet's kind: a heat map of each class peaks in the
middle of each shape, and every cell of it knows how far the box's sides are. A second, tiny net
draws a mask in each box found. The saved model has the inputs and outputs that the TensorFlow
Object Detection API gives its own: a picture of any size in, boxes, classes, scores and masks out.
"""

import argparse
import contextlib
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FOLDER = Path(__file__).parent / "shapes"
NAMES = ["circle", "square", "triangle", "star"]
TRAINING, HELD_OUT = 1, 2  # seeds
HELD_OUT_PICTURES = 200
MOST = 6  # most shapes in a picture
SIDE = 256  # pixels of the square that every picture is resized to for the net
CELLS = SIDE // 4  # per side of the heat map
MASK = 28  # points per side of a mask
ROWS = 50  # of the answer
FAINTEST = 0.05  # lowest score of a detection
BATCH = 8


# The pictures.


def outline(rng: np.random.Generator, name: str, size: float) -> np.ndarray:
    """Corners [N, 2] of a shape about the origin, at a random angle; size is its diameter."""
    corners = {"circle": 48, "square": 4, "triangle": 3, "star": 10}[name]
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    radii = np.full(corners, size / 2)
    if name == "star":
        radii[1::2] *= rng.uniform(0.4, 0.5)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def blob(rng: np.random.Generator, size: float) -> np.ndarray:
    """Corners [N, 2] of something that is no shape: long, or with a wavy outline."""
    angles = np.arange(60) * 2 * np.pi / 60
    if rng.random() < 0.3:
        points = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [
            size * rng.uniform(0.5, 0.9),
            size * rng.uniform(0.04, 0.15),
        ]
    else:
        waves = sum(
            rng.uniform(0.12, 0.3) * np.cos(n * angles + rng.uniform(0, 6.3)) for n in (2, 3, 4)
        )
        radii = size / 2 * (0.8 + waves)
        points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])


def coverage(points: np.ndarray, width: int, height: int) -> Image.Image:
    """How much of each pixel a polygon covers, 0..255.

    Drawn three times as large so that its edge is smooth.
    """
    canvas = Image.new("L", (width * 3, height * 3))
    ImageDraw.Draw(canvas).polygon([(x * 3, y * 3) for x, y in points.tolist()], fill=255)
    return canvas.reduce(3)


def shading(
    rng: np.random.Generator, colour: np.ndarray, spread: float, cells: int, width: int, height: int
) -> Image.Image:
    """A picture of about one colour that varies smoothly."""
    corners = np.clip(colour + rng.uniform(-spread, spread, (cells, cells, 3)), 0, 255).astype(
        np.uint8
    )
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Soft colours with lines, specks and blobs on them."""
    picture = shading(
        rng, rng.uniform(0, 255, 3), rng.uniform(10, 130), int(rng.integers(2, 9)), width, height
    )
    pen = ImageDraw.Draw(picture)

    def colour() -> tuple:
        return tuple(rng.integers(0, 256, 3).tolist())

    def spot(margin: float = 0) -> list:
        return rng.uniform([-margin, -margin], [width + margin, height + margin]).tolist()

    for _ in range(rng.integers(0, 6)):
        points = blob(rng, rng.uniform(20, 110)) + spot()
        picture.paste(colour(), mask=coverage(points, width, height))
    for _ in range(rng.integers(0, 10)):
        pen.line(spot(40) + spot(40), fill=colour(), width=int(rng.integers(1, 5)))
    for _ in range(rng.integers(0, 4)):
        x, y = spot()
        radius = rng.uniform(15, 60)
        start = rng.uniform(0, 360)
        pen.arc(
            (x - radius, y - radius, x + radius, y + radius),
            start,
            start + rng.uniform(60, 200),
            fill=colour(),
            width=3,
        )
    for _ in range(rng.integers(0, 40)):
        x, y = spot()
        radius = rng.uniform(0.5, 3)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour())
    return picture


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A picture uint8 [H, W, 3]; which shape each pixel shows, uint8 [H, W], 0 for none and 1 for
    the first; boxes float32 [6, 4] of the visible parts of the shapes, as ymin, xmin, ymax, xmax
    of 0..1; their classes int32 [6], from 1. Unused rows are 0.
    """
    width, height = rng.integers(240, 321, 2).tolist() if rng.random() < 0.5 else (320, 240)
    picture = background(rng, width, height)
    ids = np.zeros((height, width), np.uint8)
    areas, classes = [], np.zeros(MOST, np.int32)
    wanted = rng.integers(1, MOST + 1)
    for _ in range(30):
        if len(areas) == wanted:
            break
        kind = int(rng.integers(len(NAMES)))
        size = rng.uniform(28, 90)
        points = outline(rng, NAMES[kind], size)
        points += rng.uniform(-points.min(axis=0), [width, height] - points.max(axis=0))
        cover = coverage(points, width, height)
        inside = np.asarray(cover) > 127
        hidden = np.bincount(ids[inside], minlength=len(areas) + 1)[1:]
        left = np.bincount(ids.ravel(), minlength=len(areas) + 1)[1:] - hidden
        if (left < 0.75 * np.array(areas)).any():  # would hide too much of earlier shapes
            continue
        under = np.asarray(picture)[inside].mean(axis=0)
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - under).max() < 60:  # would be hard to see
            continue
        if rng.random() < 0.25:  # with an edge of another colour
            picture.paste(tuple(rng.integers(0, 256, 3).tolist()), mask=cover)
            cover = coverage(points * 0.88 + points.mean(axis=0) * 0.12, width, height)
        picture.paste(shading(rng, colour, rng.choice([5, 40]), 2, width, height), mask=cover)
        areas.append(inside.sum())
        classes[len(areas) - 1] = kind + 1
        ids[inside] = len(areas)
    noise = rng.standard_normal((height, width, 3), np.float32) * np.float32(rng.uniform(0, 14))
    pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    return pixels, ids, boxes_of(ids), classes


def boxes_of(ids: np.ndarray) -> np.ndarray:
    boxes = np.zeros((MOST, 4), np.float32)
    for number in range(1, ids.max() + 1):
        rows, columns = (np.flatnonzero((ids == number).any(axis=axis)) for axis in (1, 0))
        boxes[number - 1] = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    return boxes / np.array([*ids.shape, *ids.shape], np.float32)


def drawn(seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    while True:
        yield draw(rng)


# The net.


def make_nets():
    """The net: picture [B, 256, 256, 3] of 0..255 to class scores [B, 64, 64, 4] before the
    sigmoid, distances [B, 64, 64, 4] from each cell to the sides of its box, and features [B, 128,
    128, 8] for the masks. And the mask net: features in a box [N, 28, 28, 8] to the mask [N, 28,
    28] before the sigmoid."""
    import keras
    import tensorflow as tf

    layers = keras.layers

    def conv(x, channels, kernel=3, strides=1):
        x = layers.Conv2D(channels, kernel, strides, padding="same", use_bias=False)(x)
        return layers.ReLU()(layers.BatchNormalization(momentum=0.97)(x))

    def residual(x):
        return layers.Add()([x, conv(conv(x, x.shape[-1]), x.shape[-1])])

    def merge(small, large):
        """Coarse features enlarged to the size of finer ones and added to them,
        as in a feature pyramid.
        """
        channels = large.shape[-1]
        small = layers.UpSampling2D(interpolation="bilinear")(conv(small, channels, 1))
        return layers.Add()([small, large])

    picture = layers.Input((SIDE, SIDE, 3))
    half = conv(layers.Rescaling(1 / 127.5, -1)(picture), 12, 5, 2)
    quarter = conv(conv(half, 32, 3, 2), 32)
    eighth = residual(conv(quarter, 48, 3, 2))
    sixteenth = residual(residual(conv(eighth, 64, 3, 2)))
    eighth = conv(merge(sixteenth, eighth), 48)
    quarter = conv(merge(eighth, quarter), 32)
    features = conv(merge(quarter, half), 8)
    head = conv(quarter, 48)
    rare = keras.initializers.Constant(-4)  # starts with no shape anywhere: most cells have none
    scores = layers.Conv2D(len(NAMES), 1, bias_initializer=rare)(head)
    distances = layers.Conv2D(4, 1)(head)
    distances = layers.Lambda(
        lambda raw: 0.1 * tf.exp(tf.clip_by_value(raw, -4, 3)), name="distances"
    )(distances)

    crop = layers.Input((MASK, MASK, 8))
    coarse = conv(conv(crop, 24, 3, 2), 24)
    coarse = conv(conv(coarse, 32, 3, 2), 32)
    coarse = layers.UpSampling2D(4, interpolation="bilinear")(conv(coarse, 16, 1))
    mask = conv(layers.Concatenate()([coarse, crop]), 12)
    mask = layers.Reshape((MASK, MASK))(layers.Conv2D(1, 1)(mask))
    return keras.Model(picture, [scores, distances, features]), keras.Model(crop, mask)


def to_square(picture):
    """The picture [H, W, 3] as the net sees it, [256, 256, 3]."""
    import tensorflow as tf

    return tf.image.resize(tf.cast(picture, tf.float32), (SIDE, SIDE), antialias=True)


def centres():
    """The y and x of the cells' centres, 0..1: tensors [64, 1] and [1, 64]."""
    import tensorflow as tf

    steps = (tf.range(CELLS, dtype=tf.float32) + 0.5) / CELLS
    return steps[:, tf.newaxis], steps[tf.newaxis]


def to_boxes(distances):
    """Boxes [..., 64, 64, 4] of the distances from each cell's centre up, left, down and right."""
    import tensorflow as tf

    y, x = centres()
    up, left, down, right = tf.unstack(distances, axis=-1)
    return tf.stack([y - up, x - left, y + down, x + right], axis=-1)


def crops(images, boxes, indices, method="bilinear"):
    """What images [B, S, S, C] show in boxes [N, 4],
    taken at the middle of each of 28 x 28 parts of the box: [N, 28, 28, C].
    """
    import tensorflow as tf

    # crop_and_resize takes its first point on the edge of the box, and measures from the centre of
    # the first pixel to that of the last
    side = float(images.shape[1])
    inset = (boxes[:, 2:] - boxes[:, :2]) / (2 * MASK)
    first, last = boxes[:, :2] + inset, boxes[:, 2:] - inset
    points = (tf.concat([first, last], axis=1) * side - 0.5) / (side - 1)
    return tf.image.crop_and_resize(images, points, indices, (MASK, MASK), method)


# The training.


def score_loss(scores, bells, present, classes):
    """CenterNet's focal loss: all cells but centres should be 0,
    but near a centre a miss costs little.
    """
    import tensorflow as tf

    one_hot = tf.one_hot(classes - 1, len(NAMES))
    wanted = tf.reduce_max(bells[..., tf.newaxis] * one_hot[:, :, tf.newaxis, tf.newaxis], axis=1)
    peak = tf.cast(wanted > 0.999, tf.float32)
    found = tf.sigmoid(scores)
    hit = peak * (1 - found) ** 2 * tf.nn.softplus(-scores)
    miss = (1 - peak) * (1 - wanted) ** 4 * found**2 * tf.nn.softplus(scores)
    return tf.reduce_sum(hit + miss) / tf.reduce_sum(present)


def box_loss(found, boxes, bells, present):
    """1 - generalised intersection over union of the true box and the boxes that
    cells near its centre predict.
    """
    import tensorflow as tf

    owner = tf.argmax(bells, axis=1)
    weights = tf.where(bells > 0.1, bells, 0) * tf.transpose(tf.one_hot(owner, MOST), [0, 3, 1, 2])
    weights = tf.reduce_sum(
        weights / (tf.reduce_sum(weights, axis=(2, 3), keepdims=True) + 1e-6), axis=1
    )
    wanted = tf.gather(boxes, owner, batch_dims=1)

    def area(box):
        return tf.reduce_prod(tf.maximum(box[..., 2:] - box[..., :2], 0), axis=-1)

    first, last, other_first, other_last = (
        found[..., :2],
        found[..., 2:],
        wanted[..., :2],
        wanted[..., 2:],
    )
    both = area(tf.concat([tf.maximum(first, other_first), tf.minimum(last, other_last)], axis=-1))
    hull = area(tf.concat([tf.minimum(first, other_first), tf.maximum(last, other_last)], axis=-1))
    union = area(found) + area(wanted) - both
    loss = 1 - both / (union + 1e-6) + (hull - union) / (hull + 1e-6)
    return tf.reduce_sum(loss * weights) / tf.reduce_sum(present)


def mask_loss(mask_net, features, ids, boxes, present):
    """Cross entropy and Dice loss of the masks in the true boxes, which
    are shifted a little, as detected ones are.
    """
    import tensorflow as tf

    rows = tf.where(present > 0)
    picture, number = tf.cast(rows[:, 0], tf.int32), rows[:, 1]
    boxes = tf.gather_nd(boxes, rows)
    size = boxes[:, 2:] - boxes[:, :2]
    boxes += tf.tile(size, [1, 2]) * tf.random.truncated_normal(tf.shape(boxes), stddev=0.04)
    shown = crops(tf.cast(ids, tf.float32), boxes, picture, "nearest")[..., 0]
    wanted = tf.cast(
        tf.equal(shown, tf.cast(number + 1, tf.float32)[:, tf.newaxis, tf.newaxis]), tf.float32
    )
    raw = mask_net(crops(features, boxes, picture), training=True)
    found = tf.sigmoid(raw)
    both = tf.reduce_sum(found * wanted, axis=(1, 2))
    dice = 1 - (2 * both + 1) / (
        tf.reduce_sum(found, axis=(1, 2)) + tf.reduce_sum(wanted, axis=(1, 2)) + 1
    )
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(wanted, raw)
    return tf.reduce_mean(entropy) + tf.reduce_mean(dice)


def train(net, mask_net, steps: int) -> None:
    import keras
    import tensorflow as tf

    rate = keras.optimizers.schedules.CosineDecay(
        2e-4, steps - 100, warmup_target=4e-3, warmup_steps=100
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=5.0)
    variables = net.trainable_variables + mask_net.trainable_variables
    optimizer.build(variables)
    kinds = [
        tf.TensorSpec([None, None, 3], tf.uint8),
        tf.TensorSpec([None, None], tf.uint8),
        tf.TensorSpec([MOST, 4], tf.float32),
        tf.TensorSpec([MOST], tf.int32),
    ]

    def shrink(picture, ids, boxes, classes):
        ids = tf.image.resize(ids[..., tf.newaxis], (SIDE, SIDE), method="nearest")
        return to_square(picture), ids, boxes, classes

    @tf.function
    def step(pictures, ids, boxes, classes):
        present = tf.cast(classes > 0, tf.float32)
        y, x = centres()
        middle = (tf.floor((boxes[..., :2] + boxes[..., 2:]) / 2 * CELLS) + 0.5) / CELLS
        middle, spread = (
            tf.reshape(value, [-1, MOST, 1, 1, 2])
            for value in (middle, (boxes[..., 2:] - boxes[..., :2]) * 0.1)
        )
        spread = tf.maximum(spread, 0.4 / CELLS)
        bells = tf.exp(
            -(((y - middle[..., 0]) / spread[..., 0]) ** 2) / 2
            - ((x - middle[..., 1]) / spread[..., 1]) ** 2 / 2
        )
        # [B, 6, 64, 64]: 1 at the centre of each shape, falling off around it
        bells *= present[..., tf.newaxis, tf.newaxis]
        with tf.GradientTape() as tape:
            scores, distances, features = net(pictures, training=True)
            losses = (
                score_loss(scores, bells, present, classes),
                2 * box_loss(to_boxes(distances), boxes, bells, present),
                mask_loss(mask_net, features, ids, boxes, present),
            )
            loss = tf.add_n(losses)
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return tf.stack(losses)

    batches = tf.data.Dataset.from_generator(lambda: drawn(TRAINING), output_signature=tuple(kinds))
    batches = batches.map(shrink).batch(BATCH).prefetch(2).take(steps)
    begin, recent = time.time(), []
    for number, batch in enumerate(batches, start=1):
        recent.append(step(*batch).numpy())
        if number % 100 == 0 or number == steps:
            scores, boxes, masks = np.mean(recent, axis=0)
            print(
                f"step {number} of {steps}, {time.time() - begin:.0f} s: "
                f"loss of scores {scores:.3f}, boxes {boxes:.3f}, masks {masks:.3f}",
                flush=True,
            )
            recent = []


# The saved model.


def export(net, mask_net) -> None:
    import keras
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8, name="input_tensor")])
    def detect(input_tensor):
        scores, distances, features = net(to_square(input_tensor[0])[tf.newaxis], training=False)
        scores = tf.sigmoid(scores)
        scores *= tf.cast(scores == tf.nn.max_pool2d(scores, 3, 1, "SAME"), tf.float32)
        scores, peaks = tf.math.top_k(tf.reshape(scores, [-1]), 2 * ROWS)
        boxes = tf.clip_by_value(
            tf.gather(tf.reshape(to_boxes(distances), [-1, 4]), peaks // len(NAMES)), 0, 1
        )
        # two boxes that overlap so much show one shape, whatever their classes
        kept = tf.image.non_max_suppression(
            boxes, scores, ROWS, iou_threshold=0.7, score_threshold=FAINTEST
        )
        count = tf.shape(kept)[0]
        boxes = tf.gather(boxes, kept)
        # adds a dummy box, since not all layers of the net accept an empty batch
        boxed = tf.concat([boxes, [[0, 0, 1, 1]]], axis=0)
        masks = tf.sigmoid(
            mask_net(crops(features, boxed, tf.zeros([count + 1], tf.int32)), training=False)
        )[:count]

        def rows(values):
            """Add an axis in front, and pad with zeros to fifty rows."""
            padding = [[0, ROWS - count]] + [[0, 0]] * (values.shape.rank - 1)
            return tf.ensure_shape(
                tf.pad(values, padding)[tf.newaxis], [1, ROWS, *values.shape[1:]]
            )

        return {
            "detection_boxes": rows(boxes),
            "detection_scores": rows(tf.gather(scores, kept)),
            "detection_classes": rows(tf.cast(tf.gather(peaks, kept) % len(NAMES) + 1, tf.float32)),
            "detection_masks": rows(masks),
            "num_detections": tf.cast(count, tf.float32)[tf.newaxis],
        }

    # finds the variables itself; those of a tracked net would be saved twice
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serving_default", detect)
    shutil.rmtree(FOLDER / "1", ignore_errors=True)
    archive.write_out(str(FOLDER / "1"), verbose=False)
    items = [
        f"item {{\n  id: {number}\n  name: '{name}'\n}}\n"
        for number, name in enumerate(NAMES, start=1)
    ]
    (FOLDER / "label_map.pbtxt").write_text("".join(items))


def save_samples() -> None:
    """Ten of the held-out pictures."""
    folder = FOLDER / "samples"
    folder.mkdir(exist_ok=True)
    for number, (pixels, _, _, _) in zip(range(10), drawn(HELD_OUT), strict=False):
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=88)


# The measuring.


def paste(mask: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask [28, 28] of a box, pasted into the whole picture: bool [H, W]."""
    top, left, bottom, right = box * [height, width, height, width]
    # the picture's pixels in the coordinates of the mask's points
    y = (np.arange(height) + 0.5 - top) / max(bottom - top, 1e-6) * MASK - 0.5
    x = (np.arange(width) + 0.5 - left) / max(right - left, 1e-6) * MASK - 0.5
    inside = ((y >= -0.5) & (y <= MASK - 0.5))[:, np.newaxis] & ((x >= -0.5) & (x <= MASK - 0.5))

    def blend(values, at):
        at = np.clip(at, 0, MASK - 1)
        low = np.minimum(at.astype(int), MASK - 2)
        part = (at - low)[:, np.newaxis]
        return values[low] * (1 - part) + values[low + 1] * part

    return (blend(blend(mask, y).T, x).T >= 0.5) & inside


def annotation(box, mask: np.ndarray, **more) -> dict:
    """What pycocotools needs of a detection or a true shape, whose box is ymin, xmin, ymax, xmax
    of 0..1.
    """
    from pycocotools import mask as run_lengths

    height, width = mask.shape
    top, left, bottom, right = (
        np.asarray(box, np.float64) * [height, width, height, width]
    ).tolist()
    return {
        "bbox": [left, top, right - left, bottom - top],
        "area": float(mask.sum()),
        "iscrowd": 0,
        "segmentation": run_lengths.encode(np.asfortranarray(mask.astype(np.uint8))),
        **more,
    }


def measure() -> None:
    import tensorflow as tf
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detect = tf.saved_model.load(str(FOLDER / "1")).signatures["serving_default"]
    images, truth, found, times = [], [], [], []
    for number, (pixels, ids, boxes, classes) in zip(
        range(1, HELD_OUT_PICTURES + 1), drawn(HELD_OUT), strict=False
    ):
        begin = time.perf_counter()
        answer = {
            name: value.numpy()[0]
            for name, value in detect(input_tensor=tf.constant(pixels[np.newaxis])).items()
        }
        times.append(time.perf_counter() - begin)
        images.append({"id": number, "height": ids.shape[0], "width": ids.shape[1]})
        for index in range(np.count_nonzero(classes)):
            truth.append(
                annotation(
                    boxes[index],
                    ids == index + 1,
                    image_id=number,
                    id=len(truth) + 1,
                    category_id=int(classes[index]),
                )
            )
        for index in range(int(answer["num_detections"])):
            box = answer["detection_boxes"][index]
            found.append(
                annotation(
                    box,
                    paste(answer["detection_masks"][index], box, *ids.shape),
                    image_id=number,
                    category_id=int(answer["detection_classes"][index]),
                    score=float(answer["detection_scores"][index]),
                )
            )
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        true, ours = COCO(), COCO()
        categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
        true.dataset = {"images": images, "categories": categories, "annotations": truth}
        ours.dataset = {
            "images": images,
            "categories": categories,
            "annotations": [{**one, "id": number} for number, one in enumerate(found, start=1)],
        }
        true.createIndex()
        ours.createIndex()
    print(
        f"shapes: {len(truth)} shapes in {HELD_OUT_PICTURES} held-out pictures, {len(found)} "
        "detections"
    )
    for kind, name in ("bbox", "box"), ("segm", "mask"):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(true, ours, kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        print(f"shapes: {name} AP50 {evaluation.stats[1]:.4f}, AP50:95 {evaluation.stats[0]:.4f}")
    size = sum(file.stat().st_size for file in (FOLDER / "1").rglob("*") if file.is_file())
    print(f"shapes: {np.median(times) * 1000:.1f} ms a picture, {size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the model there is, make nothing"
    )
    parser.add_argument(
        "--steps", type=int, default=3000, help="of training, with eight pictures each"
    )
    options = parser.parse_args()
    if not options.measure:
        import keras

        keras.utils.set_random_seed(TRAINING)
        nets = make_nets()
        train(*nets, options.steps)
        export(*nets)
        save_samples()
    measure()
