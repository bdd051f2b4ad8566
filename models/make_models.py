"""Make the demo models beside this file, or measure the accuracy of `digits` through the server.

python models/make_models.py             # needs scikit-learn for its handwritten digits; about a
                                         minute
python models/make_models.py --measure   # held-out accuracy, asked of serving.ModelServer
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
HELD_OUT = FOLDER / "digits_held_out.npz"


def make_half_plus(name: str, offset: float) -> None:
    """y = 0.5 x + offset, with the signatures of TensorFlow Serving's own example of that name.

    Its signature takes x of any shape: the guide calls it with `[1.0, 2.0, 5.0]`.
    """
    import tensorflow as tf

    class HalfPlus(tf.Module):
        def __init__(self):
            self.a = tf.Variable(0.5, name="a")
            self.b = tf.Variable(offset, name="b")

        @tf.function(input_signature=[tf.TensorSpec(None, tf.float32, name="x")])
        def predict(self, x):
            return {"y": self.a * x + self.b}

        def from_examples(self, serialized):
            features = tf.io.parse_example(
                serialized, {"x": tf.io.FixedLenFeature([1], tf.float32)}
            )
            return self.a * features["x"] + self.b

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def regress(self, inputs):
            return {"outputs": self.from_examples(inputs)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
        def classify(self, inputs):
            return {"scores": self.from_examples(inputs)}

    module = HalfPlus()
    save(
        module,
        name,
        123,
        {
            "serving_default": module.predict,
            "regress": module.regress,
            "classify": module.classify,
            "tensorflow/serving/regress": module.regress,
        },
    )


def make_digits() -> None:
    """A small convolutional classifier of scikit-learn's handwritten digits: images [N, 8,
    8] of 0..16 to 10 probabilities.
    """
    import keras
    import tensorflow as tf
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    keras.utils.set_random_seed(1)
    tf.config.experimental.enable_op_determinism()
    digits = load_digits()
    train_images, images, train_labels, labels = train_test_split(
        digits.images.astype(np.float32),
        digits.target,
        test_size=0.2,
        random_state=1,
        stratify=digits.target,
    )
    layers = keras.layers
    model = keras.Sequential(
        [
            layers.Input((8, 8), name="images"),
            layers.Rescaling(1 / 16),
            layers.Reshape((8, 8, 1)),
            layers.RandomTranslation(0.1, 0.1),
            layers.RandomRotation(0.03),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, padding="same", activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dropout(0.4),
            layers.Dense(10, activation="softmax", name="probabilities"),
        ]
    )
    model.compile(
        keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    model.fit(train_images, train_labels, batch_size=64, epochs=60, verbose=2)

    names = tf.constant([str(digit) for digit in range(10)])

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8], tf.float32, name="images")])
    def predict(images):
        return {"probabilities": model(images, training=False)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="inputs")])
    def classify(inputs):
        features = tf.io.parse_example(inputs, {"image": tf.io.FixedLenFeature([8, 8], tf.float32)})
        scores = model(features["image"], training=False)
        return {"classes": tf.tile(names[tf.newaxis], [tf.shape(scores)[0], 1]), "scores": scores}

    # finds the variables itself; with `track` it would store them twice
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serving_default", predict)
    archive.add_endpoint("classify", classify)
    folder = FOLDER / "digits" / "1"
    shutil.rmtree(folder, ignore_errors=True)
    archive.write_out(str(folder), verbose=False)
    np.savez_compressed(HELD_OUT, images=images.astype(np.uint8), labels=labels.astype(np.uint8))


def save(module, name: str, version: int, signatures: dict) -> None:
    import tensorflow as tf

    folder = FOLDER / name / str(version)
    shutil.rmtree(folder, ignore_errors=True)
    tf.saved_model.save(module, str(folder), signatures=signatures)


def measure() -> None:
    sys.path.insert(0, str(FOLDER.parent))
    import serving

    held_out = np.load(HELD_OUT)
    server = serving.ModelServer(FOLDER.parent / "config.json")
    answer = server.predict("digits", {"instances": held_out["images"].astype(np.float32)})
    right = answer["predictions"].argmax(axis=1) == held_out["labels"]
    print(
        f"digits: {right.sum()} of {len(right)} held-out images right, accuracy {right.mean():.4f}"
    )
    server.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure the accuracy of digits, make nothing"
    )
    if parser.parse_args().measure:
        measure()
    else:
        make_half_plus("half_plus_two", 2.0)
        make_half_plus("half_plus_three", 3.0)
        make_digits()
