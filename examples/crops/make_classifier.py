"""Make `kinds`, which tells the shapes of small crops apart, in models/ beside this file, or
measure the one there is.

    python examples/crops/make_classifier.py             # needs keras and pillow; a minute or so
    python examples/crops/make_classifier.py --measure   # accuracy on crops of held-out pictures

The pictures are those of models/make_shapes.py, cut as the pipeline cuts them, with boxes a little
off as found ones are.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent.parent / "models"))

import numpy as np  # noqa: E402
from crops import crop_boxes  # noqa: E402
from make_shapes import NAMES, drawn  # noqa: E402

MODEL = FOLDER / "models" / "kinds" / "1"
TRAINING, HELD_OUT = 11, 12  # seeds
PICTURES, HELD_OUT_PICTURES = 1400, 300
COPIES = 3  # of each training picture's crops, each with other boxes
JITTER = 0.05  # standard deviation of a box's edge, in sides of the box
SIZE = 32


def make_crops(seed: int, pictures: int, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops float32 [N, 32, 32, 3] of the shapes in so many pictures, and their classes int [N],
    from 0.
    """
    rng = np.random.default_rng(seed)
    crops, kinds = [], []
    for number, (picture, _, boxes, classes) in zip(range(1, pictures + 1), drawn(seed)):
        present = classes > 0
        for _ in range(copies):
            moved = move(rng, boxes[present])
            inputs = {
                "image": picture[np.newaxis],
                "boxes": moved[np.newaxis],
                "scores": np.ones((1, len(moved)), np.float32),
            }
            crops.append(crop_boxes(inputs, {"confidence": "0", "size": str(SIZE)})["crops"][:, 0])
            kinds.append(classes[present] - 1)
        if number % 200 == 0 or number == pictures:
            print(f"{number} of {pictures} pictures drawn", flush=True)
    return np.concatenate(crops), np.concatenate(kinds)


def move(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] with each edge a little off."""
    sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    return np.clip(boxes + sizes * JITTER * rng.standard_normal(boxes.shape), 0, 1).astype(
        np.float32
    )


def make_net():
    """Crops [N, 32, 32, 3] of 0..255 to probabilities [N, 4]."""
    import keras

    layers = keras.layers

    def conv(channels, strides=2):
        return [
            layers.Conv2D(channels, 3, strides, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.95),
            layers.ReLU(),
        ]

    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, -1),
            *conv(12, 1),
            *conv(24),
            *conv(32),
            *conv(40),
            *conv(40, 1),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(len(NAMES), activation="softmax"),
        ]
    )


def train(net, crops: np.ndarray, kinds: np.ndarray, epochs: int) -> None:
    import keras
    import tensorflow as tf

    batch = 64
    rate = keras.optimizers.schedules.CosineDecay(6e-3, epochs * -(-len(crops) // batch))
    net.compile(
        keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    data = tf.data.Dataset.from_tensor_slices((crops, kinds)).shuffle(len(crops)).batch(batch)
    data = data.map(
        lambda x, y: (tf.image.random_flip_up_down(tf.image.random_flip_left_right(x)), y)
    ).prefetch(2)
    net.fit(data, epochs=epochs, verbose=2)


def export(net) -> None:
    import keras
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="crops")])
    def classify(crops):
        return {"probabilities": net(crops, training=False)}

    archive = keras.export.ExportArchive()  # finds the variables itself
    archive.add_endpoint("serving_default", classify)
    shutil.rmtree(MODEL, ignore_errors=True)
    archive.write_out(str(MODEL), verbose=False)


def measure() -> None:
    import tensorflow as tf

    classify = tf.saved_model.load(str(MODEL)).signatures["serving_default"]
    crops, kinds = make_crops(HELD_OUT, HELD_OUT_PICTURES, 1)
    found = classify(crops=tf.constant(crops))["probabilities"].numpy().argmax(axis=1)
    size = sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file())
    print(
        f"kinds: accuracy {(found == kinds).mean():.4f} of {len(kinds)} crops of "
        f"{HELD_OUT_PICTURES} held-out pictures, {size} bytes"
    )
    for kind, name in enumerate(NAMES):
        print(f"kinds: {name} {(found == kinds)[kinds == kind].mean():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the model there is, make nothing"
    )
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()
    if not options.measure:
        import keras

        keras.utils.set_random_seed(TRAINING)
        net = make_net()
        train(net, *make_crops(TRAINING, PICTURES, COPIES), options.epochs)
        export(net)
    measure()
