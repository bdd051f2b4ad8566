"""Train `defects`, a small U-Net that marks scratches and dents on metal, or measure the one there
is.

    python examples/defects/train.py             # needs keras and opencv; a minute
    python examples/defects/train.py --measure   # how well it marks surfaces that it has not seen

The surfaces are made up: brushed metal under uneven light, with up to three scratches (thin bright
or dark curves) and up to two dents (round, dark on one side and bright on the other).
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2  # noqa: E402
import numpy as np  # noqa: E402

FOLDER = Path(__file__).parent / "models" / "defects"
MODEL, SAMPLES = FOLDER / "1" / "defects.keras", FOLDER / "samples"
NAMES = ("sound", "scratch", "dent")  # class 0 is the metal itself
TRAINING, HELD_OUT = 1, 2  # seeds
SIZE, CANVAS = 128, 384  # pixels per side: of the network's input, of the drawing


def draw_surface(
    rng: np.random.Generator, scratches: int, dents: int
) -> tuple[np.ndarray, np.ndarray]:
    """A surface, uint8 [384, 384, 3], and the class of each of its pixels, uint8 [384, 384]."""
    y, x = np.mgrid[:CANVAS, :CANVAS] / CANVAS
    light = rng.uniform(-40, 40, 2)
    surface = rng.uniform(130, 170) + light[0] * x + light[1] * y
    surface += cv2.GaussianBlur(rng.normal(0, 60, (CANVAS, CANVAS)), (0, 0), 20, sigmaY=0.7)
    surface += rng.normal(0, 4, (CANVAS, CANVAS))
    classes = np.zeros((CANVAS, CANVAS), np.uint8)
    for _ in range(dents):
        add_dent(rng, surface, classes)
    for _ in range(scratches):
        add_scratch(rng, surface, classes)
    tint = rng.uniform(0.94, 1.06, 3)
    return np.clip(surface[..., np.newaxis] * tint, 0, 255).astype(np.uint8), classes


def add_scratch(rng: np.random.Generator, surface: np.ndarray, classes: np.ndarray) -> None:
    """A bent line of 5 to 10 pixels."""
    start, angle = rng.uniform(0.15, 0.85, 2) * CANVAS, rng.uniform(0, 2 * np.pi)
    bend, length = rng.uniform(-1, 1), rng.uniform(0.25, 0.6) * CANVAS
    angles = angle + bend * np.linspace(0, 1, 40)
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * length / 40
    points = (start + np.cumsum(steps, axis=0)).astype(np.int32)  # [40, 2]
    line = np.zeros((CANVAS, CANVAS), np.uint8)
    cv2.polylines(line, [points], False, 1, int(rng.integers(5, 11)), cv2.LINE_8)
    surface += rng.choice([-55, 60]) * cv2.GaussianBlur(line.astype(float), (0, 0), 1.5)
    classes[line > 0] = NAMES.index("scratch")


def add_dent(rng: np.random.Generator, surface: np.ndarray, classes: np.ndarray) -> None:
    """A hollow with a radius of 16 to 40 pixels, lit from the upper left."""
    middle, radius = rng.uniform(0.15, 0.85, 2) * CANVAS, rng.uniform(16, 40)
    y, x = (np.mgrid[:CANVAS, :CANVAS] - middle[:, np.newaxis, np.newaxis]) / radius
    inside = np.hypot(x, y) <= 1
    surface += inside * 45 * (x + y) * np.sqrt(np.clip(1.2 - x * x - y * y, 0, None))
    classes[inside] = NAMES.index("dent")


def make_surfaces(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Surfaces as the network sees them, uint8 [N, 128, 128, 3], and their classes
    [N, 128, 128]."""
    rng = np.random.default_rng(seed)
    surfaces, classes = [], []
    for _ in range(count):
        surface, drawn = draw_surface(rng, int(rng.integers(4)), int(rng.integers(3)))
        surfaces.append(cv2.resize(surface, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
        classes.append(cv2.resize(drawn, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST))
    return np.stack(surfaces), np.stack(classes)


def make_net():
    """Surfaces [N, 128, 128, 3] of 0..255 to each pixel's probabilities [N, 128, 128, 3]."""
    import keras

    layers = keras.layers

    def conv(channels):
        return layers.Conv2D(channels, 3, padding="same", activation="relu")

    given = keras.Input((SIZE, SIZE, 3))
    fine = conv(8)(layers.Rescaling(1 / 127.5, -1)(given))
    half = conv(12)(layers.MaxPooling2D()(fine))
    quarter = conv(16)(layers.MaxPooling2D()(half))
    up = conv(16)(layers.MaxPooling2D()(quarter))
    for skip, channels in ((quarter, 12), (half, 12), (fine, 8)):
        up = conv(channels)(layers.Concatenate()([layers.UpSampling2D()(up), skip]))
    return keras.Model(given, layers.Conv2D(len(NAMES), 1, activation="softmax")(up))


def train(count: int, epochs: int) -> None:
    """Write the model, uncompiled: the optimizer's state would triple its size."""
    import keras

    keras.utils.set_random_seed(TRAINING)
    net = make_net()
    surfaces, classes = make_surfaces(TRAINING, count)
    weights = np.float32([1, 4, 4])[classes]  # few pixels show a defect
    rate = keras.optimizers.schedules.CosineDecay(4e-3, epochs * -(-count // 8))
    net.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    net.fit(surfaces, classes, 8, epochs, sample_weight=weights, verbose=2)
    plain = make_net()
    plain.set_weights(net.get_weights())
    MODEL.parent.mkdir(parents=True, exist_ok=True)
    plain.save(MODEL)


def write_samples() -> None:
    """Write two surfaces that it has not seen, without overlapping defects."""
    SAMPLES.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(HELD_OUT + 1)
    for number, (scratches, dents) in enumerate([(2, 1), (1, 2)]):
        apart = 0
        while apart != scratches + dents:
            surface, classes = draw_surface(rng, scratches, dents)
            grown = cv2.dilate((classes > 0).astype(np.uint8), np.ones((15, 15)))
            apart = cv2.connectedComponents(grown)[0] - 1
        cv2.imwrite(
            str(SAMPLES / f"{number}.jpg"), surface[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80]
        )


def measure() -> None:
    import keras

    surfaces, classes = make_surfaces(HELD_OUT, 100)
    net = keras.models.load_model(MODEL)
    found = net.predict(surfaces, verbose=0).argmax(axis=-1)
    for number, name in enumerate(NAMES):
        both = (found == number) & (classes == number)
        either = (found == number) | (classes == number)
        print(f"defects: {name}: IoU {both.sum() / either.sum():.3f} on 100 held-out surfaces")
    print(f"defects: {MODEL.stat().st_size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the model there is")
    parser.add_argument("--surfaces", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=22)
    options = parser.parse_args()
    if not options.measure:
        train(options.surfaces, options.epochs)
        write_samples()
    measure()
