"""Train `digits` for what a hand draws on the page, or measure the one there is.

    python examples/digits/train.py             # needs keras and scikit-learn; a minute
    python examples/digits/train.py --measure   # accuracy on handwriting that it has not seen

The data are the 1,797 handwritten digits that scikit-learn brings, 8 x 8 pixels of 0 to 16 (Optical
Recognition of Handwritten Digits, UCI). Moved, turned and scaled while it trains, so that a digit
need not lie on the page as a scanner has cut it out.
"""

import argparse
import os
import shutil
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

MODEL = Path(__file__).parent / "models" / "digits" / "1"


def split_digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images to train with, images held out, float32 [N, 8, 8]; labels of both, int [N].

    The split of models/make_models.py: models/digits_held_out.npz holds the same held-out images.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images.astype(np.float32)
    return train_test_split(
        images, digits.target, test_size=0.2, random_state=1, stratify=digits.target
    )


def make_net():
    """Images [N, 8, 8] of 0..16 to probabilities [N, 10]."""
    import keras

    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((8, 8), name="images"),
            layers.Rescaling(1 / 16),
            layers.Reshape((8, 8, 1)),
            layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
            layers.RandomRotation(0.05, fill_mode="constant"),
            layers.RandomZoom((-0.1, 0.2), (-0.1, 0.2), fill_mode="constant"),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ]
    )


def train(epochs: int) -> None:
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(1)
    images, _, labels, _ = split_digits()
    net = make_net()
    rate = keras.optimizers.schedules.CosineDecay(6e-3, epochs * -(-len(images) // 64))
    net.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    net.fit(images, labels, batch_size=64, epochs=epochs, verbose=2)

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.float32, name="images")])
    def predict(images):
        return {"probabilities": net(images, training=False)}

    archive = keras.export.ExportArchive()  # finds the variables itself
    archive.add_endpoint("serving_default", predict)
    shutil.rmtree(MODEL, ignore_errors=True)
    archive.write_out(str(MODEL), verbose=False)


def measure() -> None:
    import tensorflow as tf

    _, images, _, labels = split_digits()
    predict = tf.saved_model.load(str(MODEL)).signatures["serving_default"]
    found = predict(images=tf.constant(images))["probabilities"].numpy().argmax(axis=1)
    size = sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file())
    print(
        f"digits: accuracy {(found == labels).mean():.4f} of {len(labels)} held-out digits, "
        f"{size} bytes"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="measure the model there is")
    parser.add_argument("--epochs", type=int, default=60)
    options = parser.parse_args()
    if not options.measure:
        train(options.epochs)
    measure()
