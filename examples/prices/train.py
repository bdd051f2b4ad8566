"""Train `prices`, which tells what a house costs by five columns, or measure the one there is.

    python examples/prices/train.py             # needs keras; half a minute
    python examples/prices/train.py --measure   # its error on houses that it has not seen

The houses are made up, and so is the rule of their prices: `price_of`. Nobody has paid them.
"""

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

MODEL = Path(__file__).parent / "models" / "prices" / "1"
COLUMNS = (
    "area",
    "rooms",
    "age",
    "distance",
    "garden",
)  # m2, rooms, years, km to the centre, 0 or 1
TRAINING, HELD_OUT = 1, 2  # seeds


def make_houses(seed: int, count: int) -> dict[str, np.ndarray]:
    """Houses by column, float32 [N] each."""
    rng = np.random.default_rng(seed)
    area = rng.uniform(40, 240, count)
    columns = {
        "area": area,
        "rooms": np.clip(np.round(area / 28 + rng.normal(0, 0.8, count)), 1, 9),
        "age": np.round(rng.uniform(0, 90, count)),
        "distance": rng.uniform(0.5, 30, count),
        "garden": rng.integers(0, 2, count),
    }
    return {name: values.astype(np.float32) for name, values in columns.items()}


def price_of(houses: dict[str, np.ndarray]) -> np.ndarray:
    """Prices of houses in thousands, [N]: by area, less with age, and about half 15 km out."""
    basis = 60 + 3.2 * houses["area"] + 9 * houses["rooms"] + 35 * houses["garden"]
    return basis * (1 - 0.003 * houses["age"]) * (0.35 + 0.65 * 0.5 ** (houses["distance"] / 9))


def make_net(houses: dict[str, np.ndarray]):
    """Five columns, [N] each, to prices [N, 1] in thousands; the scaling is part of the model."""
    import keras

    layers = keras.layers
    inputs = {name: keras.Input((), name=name) for name in COLUMNS}
    scale = layers.Normalization(name="scale")
    scale.adapt(np.stack([houses[name] for name in COLUMNS], axis=1))
    columns = [layers.Reshape((1,))(inputs[name]) for name in COLUMNS]
    hidden = scale(layers.Concatenate()(columns))  # [N, 5]
    for units in (32, 32):
        hidden = layers.Dense(units, activation="swish")(hidden)
    price = layers.Rescaling(100, name="price")(layers.Dense(1)(hidden))
    return keras.Model(inputs, {"price": price})


def train(count: int, epochs: int) -> None:
    import keras

    keras.utils.set_random_seed(TRAINING)
    houses = make_houses(TRAINING, count)
    paid = price_of(houses) * np.random.default_rng(TRAINING).normal(1, 0.03, count)
    net = make_net(houses)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, epochs * -(-count // 64))
    net.compile(keras.optimizers.Adam(rate), "mae")
    net.fit(houses, {"price": paid[:, np.newaxis]}, batch_size=64, epochs=epochs, verbose=2)
    shutil.rmtree(MODEL, ignore_errors=True)
    net.export(str(MODEL), verbose=False)


def measure() -> None:
    import tensorflow as tf

    houses = make_houses(HELD_OUT, 1000)
    predict = tf.saved_model.load(str(MODEL)).signatures["serving_default"]
    found = predict(**{name: tf.constant(values) for name, values in houses.items()})["price"]
    off = np.abs(found.numpy()[:, 0] / price_of(houses) - 1)
    size = sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file())
    print(f"prices: {off.mean():.4f} off on average of {len(off)} held-out houses, {size} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the model there is")
    parser.add_argument("--houses", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    if not options.measure:
        train(options.houses, options.epochs)
    measure()
