"""Train `pets`, which tells drawn cats from drawn dogs, or measure the one there is.

    python examples/pets/train.py             # needs keras and pillow; half a minute
    python examples/pets/train.py --measure   # accuracy on drawings that it has not seen

The pictures are made up: a face of a random colour, size, place and tilt, a cat's with pointed
ears, narrow pupils and whiskers, a dog's with hanging ears, a muzzle and a tongue.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

FOLDER = Path(__file__).parent / "models" / "pets"
MODEL, SAMPLES = FOLDER / "1" / "pets.keras", FOLDER / "samples"
NAMES = ("cat", "dog")
TRAINING, HELD_OUT = 1, 2  # seeds
SIZE, CANVAS = 64, 256  # pixels per side: of the network's input, of the drawing
FURS = [(225, 150, 70), (120, 85, 60), (90, 90, 95), (200, 190, 175), (170, 120, 80), (60, 55, 55)]


def draw_face(rng: np.random.Generator, kind: int) -> Image.Image:
    """A picture of a cat (0) or a dog (1), 256 x 256."""
    fur = np.array(FURS[rng.integers(len(FURS))])
    back = tuple(int(value) for value in rng.integers(90, 256, 3))
    picture = Image.new("RGB", (CANVAS, CANVAS), back)
    pen = ImageDraw.Draw(picture)
    coat, dark = tuple(map(int, fur)), tuple(map(int, fur * 0.6))
    (draw_cat, draw_dog)[kind](pen, coat, dark)
    tilt, scale = rng.uniform(-20, 20), rng.uniform(0.9, 1.6)
    move = rng.uniform(-25, 25, 2) * scale
    turned = picture.rotate(tilt, Image.Resampling.BICUBIC, fillcolor=back)
    edge = CANVAS * (1 - scale) / 2
    corners = (scale, 0, edge + move[0], 0, scale, edge + move[1])  # of the visible part
    seen = turned.transform(
        turned.size, Image.Transform.AFFINE, corners, Image.Resampling.BICUBIC, fillcolor=back
    )
    noise = rng.normal(0, 8, (CANVAS, CANVAS, 3))
    return Image.fromarray(np.clip(np.asarray(seen) + noise, 0, 255).astype(np.uint8))


def draw_cat(pen: ImageDraw.ImageDraw, coat: tuple, dark: tuple) -> None:
    for side in (-1, 1):
        pen.polygon(at(side, (68, -2), (20, -62), (72, -100)), coat)
        pen.polygon(at(side, (60, -22), (33, -58), (65, -80)), (235, 170, 170))
    pen.ellipse(box(0, 8, 74, 66), coat)
    for side in (-1, 1):
        pen.ellipse(box(30 * side, -8, 15, 13), (205, 220, 90))
        pen.ellipse(box(30 * side, -8, 4, 12), "black")
        for rise in (-8, 2, 12):
            pen.line(at(side, (18, 32), (96, 30 + rise * 2)), "black", 2)
    pen.polygon(at(1, (-9, 22), (9, 22), (0, 32)), (225, 120, 130))
    for side in (-1, 1):
        pen.arc(box(9 * side, 36, 9, 9), 0, 180, dark, 3)


def draw_dog(pen: ImageDraw.ImageDraw, coat: tuple, dark: tuple) -> None:
    pen.ellipse(box(0, 2, 66, 74), coat)
    for side in (-1, 1):
        pen.ellipse(box(68 * side, 4, 22, 58), dark)
        pen.ellipse(box(26 * side, -18, 10, 10), "white")
        pen.ellipse(box(26 * side, -18, 7, 7), "black")
    pen.ellipse(box(0, 72, 13, 24), (230, 110, 120))
    pen.ellipse(box(0, 40, 40, 32), tuple(min(255, value + 45) for value in coat))
    pen.ellipse(box(0, 22, 17, 12), "black")
    pen.line(at(1, (0, 30), (0, 48)), "black", 3)
    pen.arc(box(0, 44, 22, 14), 20, 160, "black", 3)


def at(side: int, *points: tuple) -> list:
    """Points around the canvas' centre, mirrored if side is -1."""
    return [(CANVAS / 2 + side * x, CANVAS / 2 + y) for x, y in points]


def box(x: float, y: float, width: float, height: float) -> list:
    """Corners of an ellipse by its centre and half axes."""
    return at(1, (x - width, y - height), (x + width, y + height))


def make_pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, 64, 64, 3], and whether each is a dog's, int [N]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    faces = [draw_face(rng, kind).resize((SIZE, SIZE), Image.Resampling.BOX) for kind in labels]
    return np.stack([np.asarray(face) for face in faces]), labels


def make_net():
    """Pictures [N, 64, 64, 3] of 0..255 to probabilities [N, 2]."""
    import keras

    layers = keras.layers
    convolutions = [
        layers.Conv2D(channels, 3, strides=2, padding="same", activation="relu")
        for channels in (8, 16, 24, 32)
    ]
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 3)),
            layers.Rescaling(1 / 127.5, -1),
            *convolutions,
            layers.GlobalMaxPooling2D(),
            layers.Dense(len(NAMES), activation="softmax"),
        ],
        name="pets",
    )


def train(pictures: int, epochs: int) -> None:
    """Write the model, uncompiled: the optimizer's state would triple its size."""
    import keras

    keras.utils.set_random_seed(TRAINING)
    net = make_net()
    net.compile(
        keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    net.fit(*make_pictures(TRAINING, pictures), batch_size=32, epochs=epochs, verbose=2)
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    plain = make_net()
    plain.set_weights(net.get_weights())
    plain.save(MODEL)


def write_samples() -> None:
    SAMPLES.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(HELD_OUT + 1)
    for kind, name in enumerate(NAMES):
        draw_face(rng, kind).save(SAMPLES / f"{name}.jpg", quality=85)


def measure() -> None:
    import keras

    pictures, labels = make_pictures(HELD_OUT, 500)
    found = keras.models.load_model(MODEL).predict(pictures, verbose=0).argmax(axis=1)
    print(
        f"pets: accuracy {(found == labels).mean():.4f} of {len(labels)} held-out drawings, "
        f"{MODEL.stat().st_size} bytes"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the model there is")
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()
    if not options.measure:
        train(options.pictures, options.epochs)
        write_samples()
    measure()
