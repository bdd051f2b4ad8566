"""Train the model that recommends articles, on baskets made here, and write models/articles/1.

    python train.py              # trains (2 s), tells its hit rate, writes the model
    python train.py --measure    # prints the hit rate of the model that is there

A customer has one or two interests; a basket holds some articles of them, and now and then any
other. The model is shown a basket without one of its articles, and learns which one that was.
"""

import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from articles import ARTICLES

MODEL = Path(__file__).parent / "models" / "articles" / "1"
TRAINING, HELD_OUT = 8000, 2000  # baskets
THEMES = sorted({theme for _, theme in ARTICLES})
# [themes, articles]
BELONGS = np.array([[theme == own for _, own in ARTICLES] for theme in THEMES])


def make_baskets(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Baskets that lack one of their articles, float32 [count, articles] of 0 and 1, and the
    missing article, int [count].
    """
    rng = np.random.default_rng(seed)
    baskets = np.zeros((count, len(ARTICLES)), np.float32)
    missing = np.zeros(count, int)
    for index, basket in enumerate(baskets):
        chosen = rng.choice(len(THEMES), rng.integers(1, 3), replace=False)
        weights = BELONGS[chosen].any(axis=0) + 0.03
        size = rng.integers(2, 6)
        bought = rng.choice(len(ARTICLES), size, replace=False, p=weights / weights.sum())
        basket[bought[1:]], missing[index] = 1, bought[0]
    return baskets, missing


def make_net():
    """Baskets [N, articles] to the probabilities [N, articles] that a customer buys an article
    next; those in the basket get 0.
    """
    import keras

    basket = keras.Input((len(ARTICLES),), name="basket")
    hidden = keras.layers.Dense(16, "relu")(basket)
    logits = keras.layers.Dense(len(ARTICLES))(hidden)
    scores = keras.layers.Softmax(name="scores")(logits - 1e4 * basket)
    return keras.Model(basket, scores)


def train() -> None:
    import keras

    keras.utils.set_random_seed(1)
    net = make_net()
    net.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    net.fit(*make_baskets(TRAINING, 1), batch_size=128, epochs=8, verbose=0)
    shutil.rmtree(MODEL, ignore_errors=True)
    net.export(str(MODEL), verbose=False)


def measure() -> None:
    """Print how often the missing article is among the first three, by the model and by chance."""
    import tensorflow as tf

    recommend = tf.saved_model.load(str(MODEL)).signatures["serving_default"]
    baskets, missing = make_baskets(HELD_OUT, 2)
    (scores,) = recommend(basket=tf.constant(baskets)).values()
    best = np.argsort(-scores.numpy(), axis=1)[:, :3]  # [N, 3]
    hits = (best == missing[:, np.newaxis]).any(axis=1).mean()
    chance = (3 / (len(ARTICLES) - baskets.sum(axis=1))).mean()
    size = sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file())
    print(f"the missing article is among three: {hits:.3f}, by chance {chance:.3f}; {size} bytes")


if __name__ == "__main__":
    if "--measure" not in sys.argv:
        train()
    measure()
