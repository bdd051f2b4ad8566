"""Models as people make them, with their own tools, to be served and compared with TensorFlow.

    python tests/strangers.py FOLDER NAME...     # exports these, as FOLDER/<name>/<version>

A model is a line of a table: its name, how it is made, and what its signatures are asked. MODELS
are asked anything in any order; SCRIPTS have a state, and are asked the same steps each time they
are loaded. Whoever reads the tables needs no TensorFlow: it is imported to export.
"""

import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  (NumPy's "bfloat16")
import numpy as np

keras: Any = None  # all three imported by `export`
tf: Any = None
layers: Any = None

Sampler = Callable[[np.random.Generator, int], np.ndarray]
ROWS = (1, 2, 5, 1, 3, 4)  # of the requests that each signature is asked


class Model(NamedTuple):
    """`build(folder)` exports it; `asks` are samplers by signature, then by input.

    A signature of one input may have its sampler without the input's name.
    """

    name: str
    build: Callable[[Path], Any]
    asks: dict[str, Any]
    version: int = 1


class Script(NamedTuple):
    """A model with a state; `steps` are (signature, {input: value}) in the order they are asked."""

    name: str
    build: Callable[[Path], Any]
    steps: list[tuple[str, dict[str, Any]]]


# --- what is asked --------------------------------------------------------------------------------


def numbers(*shape: int, dtype: Any = np.float32) -> Sampler:
    """Floats [N, *shape], of 0..1 in some requests and of 0..255 in others."""
    return lambda random, n: (random.random((n, *shape)) * random.choice([1, 255])).astype(dtype)


def whole(low: int, high: int, *shape: int, dtype: Any = np.int64) -> Sampler:
    """Integers [N, *shape] of low..high, `high` left out."""
    return lambda random, n: random.integers(low, high, (n, *shape)).astype(dtype)


def flags(*shape: int) -> Sampler:
    return lambda random, n: random.random((n, *shape)) < 0.5


def words(*choice: str | bytes, shape: tuple[int, ...] = ()) -> Sampler:
    """Strings [N, *shape], each one of the choice."""
    known = np.array(
        [word.encode() if isinstance(word, str) else word for word in choice] + [None], object
    )[:-1]
    return lambda random, n: known[random.integers(0, len(known), (n, *shape))]


def sentences(random: np.random.Generator, n: int) -> np.ndarray:
    """Sentences [N] of words of which some are in the vocabulary."""
    known = ["the", "film", "was", "good", "bad", "Not", "at", "all!", "Größe", "unheard-of"]
    texts = [" ".join(random.choice(known, random.integers(1, 9))).encode() for _ in range(n)]
    return np.array([*texts, None], object)[:-1]


def pictures(random: np.random.Generator, n: int) -> np.ndarray:
    """Encoded pictures [N] of several sizes."""
    from PIL import Image

    files = []
    for index in range(n):
        height, width = random.integers(8, 40, 2)
        picture = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))
        file = io.BytesIO()
        picture.save(file, "JPEG" if index % 2 == 0 else "PNG")
        files.append(file.getvalue())
    return np.array([*files, None], object)[:-1]


def examples(random: np.random.Generator, n: int) -> np.ndarray:
    """Serialized Examples [N] of a float and a string."""

    def example(age: float, kind: bytes) -> bytes:
        feature = tf.train.Feature
        features = {
            "age": feature(float_list=tf.train.FloatList(value=[age])),
            "kind": feature(bytes_list=tf.train.BytesList(value=[kind])),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    rows = [example(random.random() * 90, random.choice([b"cat", b"dog"])) for _ in range(n)]
    return np.array([*rows, None], object)[:-1]


def one(*values: Any, dtype: Any = np.float32) -> Sampler:
    """One of these values, whatever the number of rows: of inputs that have none."""
    return lambda random, n: np.array(values[n % len(values)], dtype)


def any_rank(random: np.random.Generator, n: int) -> np.ndarray:
    """Floats of as many dimensions as there are rows: [2], [2, 2], ..."""
    return random.random((2,) * (n % 4)).astype(np.float32)


# --- Keras 3, `model.export` ----------------------------------------------------------------------


def export_layers(to: Path, shape: tuple, *stack: Any, dtype: str = "float32") -> None:
    """A Sequential model over an input `x`, exported."""
    model = keras.Sequential([keras.Input(shape, name="x", dtype=dtype), *stack])
    model.export(to, verbose=False)


def adapted(layer: Any, data: Any) -> Any:
    layer.adapt(data)
    return layer


def text_layer() -> Any:
    texts = tf.constant(["the film was good", "the film was bad", "not at all", "größe"])
    return adapted(layers.TextVectorization(output_sequence_length=6), texts)


def export_unet(to: Path) -> None:
    x = keras.Input((32, 32, 3), name="image")
    first = layers.Conv2D(4, 3, padding="same", activation="relu")(layers.Rescaling(1 / 255)(x))
    low = layers.Conv2D(8, 3, padding="same", activation="relu")(layers.MaxPooling2D()(first))
    high = layers.Conv2DTranspose(4, 2, strides=2, padding="same")(low)
    mask = layers.Conv2D(1, 1, activation="sigmoid")(layers.Concatenate()([first, high]))
    keras.Model(x, mask).export(to, verbose=False)


def export_two_inputs(to: Path) -> None:
    picture, sensor = keras.Input((8, 8, 1), name="picture"), keras.Input((3,), name="sensor")
    joined = layers.Concatenate()([layers.Flatten()(picture), sensor])
    outputs = {
        "label": layers.Dense(4, activation="softmax", name="label")(joined),
        "angle": layers.Dense(1, name="angle")(layers.Dense(5, "tanh")(joined)),
    }
    keras.Model({"picture": picture, "sensor": sensor}, outputs).export(to, verbose=False)


def export_table(to: Path) -> None:
    """Columns of a table: a number, a category, an id."""
    age, kind = keras.Input((1,), name="age"), keras.Input((1,), name="kind", dtype="string")
    shop = keras.Input((1,), name="shop", dtype="int64")
    columns = [
        adapted(layers.Normalization(), np.random.default_rng(1).random((50, 1)) * 90)(age),
        layers.StringLookup(vocabulary=["cat", "dog"], output_mode="one_hot")(kind),
        layers.IntegerLookup(vocabulary=[10, 20, 30], output_mode="multi_hot")(shop),
    ]
    answer = layers.Dense(1, activation="sigmoid")(layers.Concatenate()(columns))
    keras.Model([age, kind, shop], answer).export(to, verbose=False)


def export_attention(to: Path) -> None:
    x = keras.Input((8,), name="tokens", dtype="int32")
    y = layers.Embedding(30, 8)(x)
    y = layers.LayerNormalization()(y + layers.MultiHeadAttention(2, 4)(y, y))
    answer = layers.Dense(3)(layers.GlobalAveragePooling1D()(y))
    keras.Model(x, answer).export(to, verbose=False)


def export_normalized(to: Path) -> None:
    """BatchNormalization that has seen batches, and Dropout: both as they are in inference."""
    model = keras.Sequential(
        [
            keras.Input((12, 12, 3), name="x"),
            layers.Conv2D(6, 3, use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    model.compile("sgd", "mse")
    random = np.random.default_rng(2)
    model.fit(random.random((32, 12, 12, 3)), random.random((32, 3)), verbose=0)
    model.export(to, verbose=False)


def export_subclassed(to: Path) -> None:
    class Residual(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = layers.Dense(6, "gelu"), layers.Dense(6)
            self.drop = layers.Dropout(0.3)

        def call(self, x: Any, training: bool = False) -> Any:
            return {
                "hidden": x + self.second(self.first(self.drop(x, training=training))),
                "largest": tf.argmax(x, -1),
            }

    model = Residual()
    model(np.zeros((1, 6), np.float32))
    model.export(to, verbose=False)


def export_endpoints(to: Path) -> None:
    """A Keras ExportArchive of an encoder, a decoder and both."""
    encoder = keras.Sequential([keras.Input((6,)), layers.Dense(2, "tanh")])
    decoder = keras.Sequential([keras.Input((2,)), layers.Dense(6)])
    archive = keras.export.ExportArchive()
    archive.track(encoder)
    archive.track(decoder)
    six, two = tf.TensorSpec((None, 6), name="x"), tf.TensorSpec((None, 2), name="code")
    archive.add_endpoint("serve", lambda x: decoder(encoder(x)), [six])
    archive.add_endpoint("encode", lambda x: encoder(x), [six])
    archive.add_endpoint("decode", lambda code: decoder(code), [two])
    archive.write_out(to, verbose=False)


def export_half_precision(to: Path) -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        export_layers(
            to,
            (10, 10, 3),
            layers.Conv2D(4, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(3),
            layers.Activation("softmax", dtype="float32"),
        )
    finally:
        keras.config.set_dtype_policy("float32")


def quantized(*stack: Any) -> Any:
    model = keras.Sequential(list(stack))
    model.quantize("int8")
    return model


def export_mobilenet(to: Path) -> None:
    keras.applications.MobileNetV2(
        weights=None, input_shape=(96, 96, 3), alpha=0.35, classes=10
    ).export(to, verbose=False)


def save_wrapped(to: Path) -> None:
    """A Keras model as an attribute of a tf.Module: its variables are stored twice."""
    module = tf.Module()
    module.model = keras.Sequential(
        [keras.Input((7,)), layers.Dense(5, "relu"), layers.BatchNormalization(), layers.Dense(3)]
    )
    function = tf.function(
        lambda x: {"y": module.model(x)}, input_signature=[tf.TensorSpec([None, 7], name="x")]
    )
    tf.saved_model.save(module, to, signatures=function)


# --- TensorFlow 2, `tf.saved_model.save` ----------------------------------------------------------


def floats(*shape: int | None, name: str = "x", dtype: str = "float32") -> Any:
    return tf.TensorSpec(shape, dtype, name)


def save(to: Path, functions: dict[str, tuple[Callable, list]], **attributes: Any) -> None:
    """A tf.Module with these signatures, each a function and the specs of its inputs."""
    module = tf.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    module.functions = {
        name: tf.function(function, input_signature=specs)
        for name, (function, specs) in functions.items()
    }
    tf.saved_model.save(module, to, signatures=module.functions)


def save_one(to: Path, function: Callable, *specs: Any, **attributes: Any) -> None:
    save(to, {"serving_default": (function, list(specs))}, **attributes)


def constant(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save_several(to: Path) -> None:
    weights, bias = tf.Variable(constant(3, 2)), tf.Variable([0.5, -0.5])
    three = [floats(None, 3)]
    save(
        to,
        {
            "serving_default": (lambda x: {"y": tf.nn.softmax(x @ weights + bias)}, three),
            "logits": (lambda x: {"y": x @ weights + bias}, three),
            "both": (lambda x: {"y": x @ weights, "z": tf.reduce_sum(x, 1)}, three),
        },
        weights=weights,
        bias=bias,
    )


def save_autoscale(to: Path) -> None:
    """Scales all it is given by the largest value: what it answers is right for a request alone."""

    def answer(x: Any) -> Any:
        return {"y": tf.reduce_mean(tf.where(tf.reduce_max(x) > 1, x / 255, x), [1, 2, 3])}

    save_one(to, answer, floats(None, 8, 8, 3))


def save_centred(to: Path) -> None:
    """Each row depends on the others of its request."""
    save_one(
        to,
        lambda x: {"y": x - tf.reduce_mean(x, 0), "rank": tf.argsort(tf.argsort(x[:, 0]))},
        floats(None, 4),
    )


def save_vocabulary(to: Path) -> None:
    """A StaticHashTable of a vocabulary file, which is the SavedModel's asset."""
    path = to.parent / "vocabulary.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("zero\none\ntwo\ngröße\n")
    lookup = tf.lookup.TextFileIndex
    module = tf.Module()
    module.file = tf.saved_model.Asset(str(path))
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            module.file, tf.string, lookup.WHOLE_LINE, tf.int64, lookup.LINE_NUMBER
        ),
        -1,
    )
    module.back = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            module.file, tf.int64, lookup.LINE_NUMBER, tf.string, lookup.WHOLE_LINE
        ),
        "?",
    )

    @tf.function(input_signature=[floats(None, name="word", dtype="string")])
    def answer(word: Any) -> Any:
        number = module.table.lookup(word)
        return {"number": number, "next": module.back.lookup(number + 1)}

    tf.saved_model.save(module, to, signatures=answer)
    path.unlink()


def save_bytes(to: Path) -> None:
    def answer(x: Any) -> Any:
        return {
            "doubled": tf.strings.join([x, x]),
            "length": tf.strings.length(x),
            "raw_bytes": tf.strings.join([x, tf.constant(b"\xff\x00")]),
            "upper": tf.strings.upper(x, "utf-8"),
            "is_long": tf.strings.length(x) > 3,
        }

    save_one(to, answer, floats(None, dtype="string"))


def save_ragged(to: Path) -> None:
    """Words of sentences, each with its own number of them."""

    def answer(text: Any) -> Any:
        parts = tf.strings.split(tf.strings.regex_replace(text, "[!?.]", ""))
        return {
            "count": parts.row_lengths(),
            "first": parts.to_tensor("")[:, 0],
            "hashes": tf.strings.to_hash_bucket_fast(parts, 100).to_tensor(-1),
        }

    save_one(to, answer, floats(None, name="text", dtype="string"))


def save_jpeg(to: Path) -> None:
    weights = tf.Variable(constant(3, 4))

    def picture(file: Any) -> Any:
        pixels = tf.io.decode_image(file, 3, expand_animations=False)
        return tf.image.resize(tf.cast(pixels, tf.float32), (16, 16)) / 255

    def answer(image_bytes: Any) -> Any:
        images = tf.map_fn(picture, image_bytes, fn_output_signature=tf.float32)
        return {"scores": tf.nn.softmax(tf.reduce_mean(images, [1, 2]) @ weights)}

    save_one(to, answer, floats(None, name="image_bytes", dtype="string"), weights=weights)


def save_examples(to: Path) -> None:
    """Serialized Examples in, as estimators take them: to predict, to classify, to regress."""
    weight = tf.Variable(0.03)
    features = {
        "age": lambda: tf.io.FixedLenFeature([], tf.float32),
        "kind": lambda: tf.io.FixedLenFeature([], tf.string, "cat"),
    }

    def score(inputs: Any) -> Any:
        parsed = tf.io.parse_example(inputs, {key: make() for key, make in features.items()})
        return tf.sigmoid(parsed["age"] * weight - tf.cast(parsed["kind"] == "dog", tf.float32))

    def classify(inputs: Any) -> Any:
        found = score(inputs)
        labels = tf.tile(tf.constant([["old", "young"]]), [tf.size(found), 1])
        return {"classes": labels, "scores": tf.stack([found, 1 - found], 1)}

    serialized = [floats(None, name="inputs", dtype="string")]
    save(
        to,
        {
            "serving_default": (lambda inputs: {"score": score(inputs)}, serialized),
            "classify": (classify, serialized),
            "regress": (lambda inputs: {"outputs": score(inputs)}, serialized),
        },
        weight=weight,
    )


def save_loops(to: Path) -> None:
    growth = tf.Variable(1.1)

    def collatz(n: Any) -> Any:
        def step(n: Any, count: Any) -> Any:
            following = tf.where(n % 2 == 0, n // 2, 3 * n + 1)
            return tf.where(n > 1, following, n), count + tf.cast(n > 1, tf.int64)

        start = (n, tf.zeros_like(n))
        return {"steps": tf.while_loop(lambda n, count: tf.reduce_any(n > 1), step, start)[1]}

    def grow(x: Any, years: Any) -> Any:
        values = tf.TensorArray(tf.float32, 0, dynamic_size=True)
        for year in tf.range(years):
            x = x * growth
            values = values.write(year, x)
        return {"values": values.stack()}

    save(
        to,
        {
            "serving_default": (collatz, [floats(None, name="n", dtype="int64")]),
            "grow": (grow, [floats(None), floats(name="years", dtype="int32")]),
        },
        growth=growth,
    )


def save_branches(to: Path) -> None:
    weights = tf.Variable([1.5, 2.5, 3.5])

    def answer(x: Any, mode: Any) -> Any:
        y = tf.cond(tf.reduce_sum(x) > 1, lambda: x * weights, lambda: x - weights)
        return {"y": tf.switch_case(mode, [lambda: y, lambda: -y, lambda: tf.exp(-tf.abs(y))])}

    save_one(to, answer, floats(None, 3), floats(name="mode", dtype="int32"), weights=weights)


def save_dropout(to: Path) -> None:
    weights = tf.Variable(constant(4, 4))

    @tf.function
    def body(x: Any, training: bool) -> Any:
        return tf.nn.dropout(x @ weights, 0.5) if training else x @ weights

    save_one(to, lambda x: {"y": body(x, False)}, floats(None, 4), weights=weights)


def save_dtypes(to: Path) -> None:
    def signature(dtype: str, function: Callable) -> tuple:
        return lambda x: {"y": function(x)}, [floats(None, 2, dtype=dtype)]

    save(
        to,
        {
            "int64": signature("int64", lambda x: x * 3 - 1),
            "int8": signature("int8", lambda x: x // 2),
            "bool": signature("bool", lambda x: ~x),
            "uint8": signature("uint8", lambda x: 255 - x),
            "uint64": signature("uint64", lambda x: x + x),
            "half": signature("half", lambda x: x * 1.5),
            "double": signature("float64", lambda x: tf.sqrt(x) / 3),
            "bfloat16": signature("bfloat16", lambda x: x + 1),
        },
    )


def save_complex(to: Path) -> None:
    def answer(x: Any) -> Any:
        found = tf.signal.fft(tf.cast(x, tf.complex64))
        return {"power": tf.abs(found), "phase": tf.math.angle(found + 1)}

    save_one(to, answer, floats(None, 8))


def save_scalars(to: Path) -> None:
    save(
        to,
        {
            "serving_default": (
                lambda n: {"sum": tf.reduce_sum(tf.range(n) ** 2)},
                [floats(name="n", dtype="int64")],
            ),
            "mixed": (
                lambda x, scale: {"y": x * scale, "total": tf.reduce_sum(x) * scale},
                [floats(None, 2), floats(name="scale")],
            ),
            "text": (
                lambda name: {"greeting": tf.strings.join(["hello ", name])},
                [floats(name="name", dtype="string")],
            ),
        },
    )


def save_unknown_rank(to: Path) -> None:
    free = tf.TensorSpec(None, tf.float32, "x")
    save(
        to,
        {
            "serving_default": (lambda x: {"y": x * 2, "sum": tf.reduce_sum(x)}, [free]),
            "part": (lambda x, k: {"y": tf.reshape(x, [-1]) * k}, [free, floats(1, name="k")]),
        },
    )


def save_passed_through(to: Path) -> None:
    save_one(
        to,
        lambda x, key: {"key": key, "x": x, "y": x + 1},
        floats(None, 2),
        floats(None, name="key", dtype="string"),
    )


def save_variables_out(to: Path) -> None:
    """Answers of variables, whatever the input; embeddings that are gathered."""
    table, names = tf.Variable(constant(10, 4)), tf.Variable(["a", "b"])
    half = tf.Variable(constant(4), dtype=tf.float32)

    def answer(ids: Any) -> Any:
        return {
            "rows": tf.nn.embedding_lookup(table, ids),
            "names": names.read_value(),
            "half": tf.cast(tf.cast(half, tf.bfloat16), tf.float32),
        }

    save_one(to, answer, floats(None, name="ids", dtype="int64"), v=[table, names, half])


def save_beside_ragged(to: Path) -> None:
    """One signature takes a ragged tensor, stored as its parts; the other one is plain."""
    weights = tf.Variable([2.0, 3.0])
    save(
        to,
        {
            "ragged": (
                lambda r: {"y": tf.reduce_sum(r, 1)},
                [tf.RaggedTensorSpec([None, None], tf.float32)],
            ),
            "serving_default": (lambda x: {"y": x * weights}, [floats(None, 2)]),
        },
        weights=weights,
    )


def save_beside_sparse(to: Path) -> None:
    weights = tf.Variable([2.0, 3.0])
    save(
        to,
        {
            "sparse": (
                lambda s: {"y": tf.sparse.reduce_sum(s, 1)},
                [tf.SparseTensorSpec([None, None], tf.float32)],
            ),
            "serving_default": (lambda x: {"y": x * weights}, [floats(None, 2)]),
        },
        weights=weights,
    )


def save_without_signatures(to: Path) -> None:
    module = tf.Module()
    module.f = tf.function(lambda x: x + 1, input_signature=[floats(None)])
    tf.saved_model.save(module, to, signatures={})


def save_detector(to: Path) -> None:
    """Boxes by non-maximum suppression; pictures of any size, one at a time."""
    weights = tf.Variable(constant(3, 20))

    def answer(image: Any) -> Any:
        seen = tf.reduce_mean(tf.cast(image, tf.float32) / 255, [1, 2]) @ weights
        scores = tf.sigmoid(seen)[0]
        corner = tf.random.stateless_uniform([20, 2], [1, 2]) * 0.7
        boxes = tf.concat([corner, corner + 0.3], 1)
        kept = tf.image.non_max_suppression(boxes, scores, 5)
        return {
            "detection_boxes": tf.gather(boxes, kept)[None],
            "detection_scores": tf.gather(scores, kept)[None],
            "num_detections": tf.size(kept)[None],
        }

    save_one(to, answer, tf.TensorSpec([1, None, None, 3], tf.uint8, "image"), weights=weights)


def save_again(to: Path) -> None:
    """A SavedModel that was loaded, and saved with a signature of one's own around it."""
    first = to.parent / "first"
    save_several(first)
    module = tf.Module()
    module.loaded = tf.saved_model.load(str(first))

    @tf.function(input_signature=[floats(None, 3, name="features")])
    def answer(features: Any) -> Any:
        return {"twice": 2 * module.loaded.signatures["logits"](x=features)["y"]}

    tf.saved_model.save(module, to, signatures=answer)
    shutil.rmtree(first)


def save_not_finite(to: Path) -> None:
    """NaN, infinities, both zeros, and numbers below the smallest normal one."""

    def answer(x: Any) -> Any:
        zero = x - x
        return {
            "root": tf.sqrt(x - 0.5),
            "over": x / zero,
            "minus_zero": zero * -1.0,
            "low": tf.math.log(zero),
            "tiny": x * 1e-30 * 1e-12,
            "half": tf.cast(x, tf.half),
        }

    save_one(to, answer, floats(None))


def save_dynamic(to: Path) -> None:
    """Outputs of as many rows as the values want."""

    def answer(x: Any) -> Any:
        values, places = tf.unique(x)
        return {
            "values": values,
            "places": places,
            "even": tf.where(x % 2 == 0),
            "counts": tf.math.bincount(tf.cast(x, tf.int32), minlength=3),
        }

    save_one(to, answer, floats(None, dtype="int64"))


def save_dataset_inside(to: Path) -> None:
    def answer(x: Any) -> Any:
        rows = tf.data.Dataset.from_tensor_slices(x).map(lambda row: row * 2)
        return {"sum": rows.reduce(tf.zeros([3]), lambda total, row: total + row)}

    save_one(to, answer, floats(None, 3))


def save_out_of_vocabulary(to: Path) -> None:
    keys, values = tf.constant(["a", "b"]), tf.constant([0, 1], tf.int64)
    table = tf.lookup.StaticVocabularyTable(tf.lookup.KeyValueTensorInitializer(keys, values), 5)
    weights = tf.Variable(constant(7, 3))
    save_one(
        to,
        lambda word: {"row": tf.gather(weights, table.lookup(word))},
        floats(None, name="word", dtype="string"),
        table=table,
        weights=weights,
    )


def save_odd_variables(to: Path) -> None:
    """Variables in lists and dicts, shared, unused, of unusual dtypes, and of no fixed shape."""
    kinds = {
        "complex": tf.Variable([1 + 2j, 3 - 1j], dtype=tf.complex64),
        "flag": tf.Variable([True, False]),
        "byte": tf.Variable([200, 7], dtype=tf.uint8),
        "half": tf.Variable([0.5, 0.1], dtype=tf.half),
        "text": tf.Variable(["größe", ""]),
    }
    free = tf.Variable([1.0, 2.0, 3.0], shape=tf.TensorShape(None))
    free.assign([[4.0, 5.0]])

    def answer(x: Any) -> Any:
        return {
            "complex": tf.math.imag(kinds["complex"]),
            "byte": kinds["byte"] + 0,
            "flag": kinds["flag"].read_value(),
            "text": kinds["text"].read_value(),
            "half": tf.cast(kinds["half"], tf.float32),
            "free": x * free,
        }

    save_one(
        to,
        answer,
        floats(None, 2),
        kinds=kinds,
        again=[free, kinds["half"]],
        free=free,
        unused=tf.Variable(tf.zeros([50])),
    )


def save_sharded(to: Path) -> None:
    """A checkpoint in several files."""
    module = tf.Module()
    module.layers = [tf.Variable(constant(20, 20, seed=seed)) for seed in range(4)]

    @tf.function(input_signature=[floats(None, 20)])
    def answer(x: Any) -> Any:
        for weights in module.layers:
            x = tf.tanh(x @ weights)
        return {"y": x}

    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=2000)
    options = tf.saved_model.SaveOptions(experimental_sharding_callback=policy)
    tf.saved_model.save(module, to, signatures=answer, options=options)


def save_compiled(to: Path) -> None:
    weights = tf.Variable(constant(6, 6))

    @tf.function(jit_compile=True)
    def body(x: Any) -> Any:
        return tf.nn.softmax(tf.nn.relu(x @ weights) + 1)

    save_one(to, lambda x: {"y": body(x)}, floats(None, 6), weights=weights)


def save_for_a_gpu(to: Path) -> None:
    """Made where there was a GPU: operations and variables are placed on it by name."""
    with tf.device("/GPU:0"):
        weights = tf.Variable(constant(6, 3))

    def answer(x: Any) -> Any:
        with tf.device("/GPU:0"):
            return {"y": tf.nn.relu(x @ weights)}

    save_one(to, answer, floats(None, 6), weights=weights)


def save_quantized(to: Path) -> None:
    weights = tf.Variable(constant(6, 3))

    def answer(x: Any) -> Any:
        fake = tf.quantization.fake_quant_with_min_max_args
        exact = tf.quantization.quantize(x, 0.0, 255.0, tf.quint8)
        return {
            "y": fake(x, 0, 255) @ fake(weights, -3, 3),
            "back": tf.quantization.dequantize(exact.output, 0.0, 255.0),
        }

    save_one(to, answer, floats(None, 6), weights=weights)


def save_wide(to: Path) -> None:
    """Scales by its largest value, and then has much to multiply: as if made to be batched."""
    first, second = (tf.Variable(abs(constant(*shape))) for shape in ((64, 1024), (1024, 512)))

    def answer(x: Any) -> Any:
        x = tf.where(tf.reduce_max(x) > 1, x / 255, x)
        return {"y": tf.reduce_mean(tf.nn.relu(x @ first) @ second, 1)}

    save_one(to, answer, floats(None, 64), first=first, second=second)


# --- TensorFlow 1 ---------------------------------------------------------------------------------


def predict_def(inputs: dict, outputs: dict) -> Any:
    return tf.compat.v1.saved_model.signature_def_utils.predict_signature_def(inputs, outputs)


def build_tf1(
    to: Path,
    make: Callable[[], dict],
    initializer: str = "main_op",
    tags: tuple[str, ...] = ("serve",),
    as_text: bool = False,
) -> None:
    """What `make` returns as signatures, with the variables of its graph, by TF1's Builder."""
    v1 = tf.compat.v1
    options = v1.ConfigProto(allow_soft_placement=True)
    with tf.Graph().as_default(), v1.Session(config=options) as session:
        v1.set_random_seed(1)
        signatures = make()
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        builder = v1.saved_model.Builder(str(to))
        given = {"assets_collection": v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS)}
        given[initializer] = v1.tables_initializer()
        builder.add_meta_graph_and_variables(session, [tags[0]], signatures, **given)
        for tag in tags[1:]:
            builder.add_meta_graph([tag], signatures)  # the graph has its main op by now
        builder.save(as_text)


def tf1_table(to: Path, initializer: str) -> None:
    v1 = tf.compat.v1
    path = to.parent / "words.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("zero\none\ntwo\n")

    def make() -> dict:
        word = v1.placeholder(tf.string, [None], "word")
        x = v1.placeholder(tf.float32, [None, 2], "x")
        scale = v1.get_variable("scale", initializer=[2.0, 3.0], use_resource=False)
        file = tf.constant(str(path))
        v1.add_to_collection(v1.GraphKeys.ASSET_FILEPATHS, file)
        index = tf.lookup.TextFileIndex
        table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                file, tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER
            ),
            -1,
        )
        return {
            "serving_default": predict_def({"word": word}, {"number": table.lookup(word)}),
            "scale": predict_def({"x": x}, {"y": x * scale}),
        }

    build_tf1(to, make, initializer=initializer)
    path.unlink()


def tf1_simple(to: Path) -> None:
    """`simple_save` of a network with reference variables, one of them in parts, and batch norm."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(1)
        x = v1.placeholder(tf.float32, [None, 6], "x")
        training = v1.placeholder_with_default(False, [], "training")
        parts = v1.fixed_size_partitioner(2)
        weights = v1.get_variable("w", [6, 4], partitioner=parts, use_resource=False)
        hidden = tf.nn.relu(x @ tf.convert_to_tensor(weights))
        y = tf.cond(training, lambda: tf.nn.dropout(hidden, 0.5), lambda: hidden)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(to), {"x": x}, {"x": x, "y": y})


def tf1_estimator(to: Path) -> None:
    """As an estimator exports: Examples to classify, to regress and to predict."""
    v1 = tf.compat.v1

    def make() -> dict:
        serialized = v1.placeholder(tf.string, [None], "input_example_tensor")
        features = {"age": tf.io.FixedLenFeature([1], tf.float32)}
        age = v1.io.parse_example(serialized, features)["age"]
        weights = v1.get_variable("linear/weights", initializer=constant(1, 3) / 50)
        scores = tf.nn.softmax(age @ weights)
        classes = tf.tile(tf.constant([["0", "1", "2"]]), [tf.shape(age)[0], 1])
        utils = v1.saved_model.signature_def_utils
        outputs = {"probabilities": scores, "class_ids": tf.argmax(scores, 1)}
        return {
            "serving_default": utils.classification_signature_def(serialized, classes, scores),
            "predict": predict_def({"examples": serialized}, outputs),
            "regression": utils.regression_signature_def(serialized, scores[:, :1]),
        }

    build_tf1(to, make)


def tf1_frozen(to: Path) -> None:
    """A frozen graph: no variables, only constants."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 8, 8, 3], "x")
        kernel = v1.get_variable("kernel", initializer=constant(3, 3, 3, 4))
        tf.identity(tf.nn.relu(tf.nn.conv2d(x, kernel, 1, "SAME")), "y")
        session.run(v1.global_variables_initializer())
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])
    with tf.Graph().as_default(), v1.Session() as session:
        x, y = v1.import_graph_def(frozen, return_elements=["x:0", "y:0"], name="")
        v1.saved_model.simple_save(session, str(to), {"x": x}, {"y": y})


def tf1_sparse(to: Path) -> None:
    v1 = tf.compat.v1

    def make() -> dict:
        s, x = v1.sparse_placeholder(tf.float32, [None, 3]), v1.placeholder(tf.float32, [None])
        return {
            "sparse": predict_def({"s": s}, {"y": v1.sparse_reduce_sum(s)}),
            "serving_default": predict_def({"x": x}, {"y": 2 * x}),
        }

    build_tf1(to, make)


def tf1_loop(to: Path) -> None:
    """Control flow of the old kind: Enter, Merge, Switch."""
    v1 = tf.compat.v1

    def make() -> dict:
        v1.disable_control_flow_v2()
        x = v1.placeholder(tf.float32, [None, 3], "x")
        factor = v1.get_variable("factor", initializer=1.25)
        y = v1.while_loop(lambda i, y: i < 4, lambda i, y: (i + 1, y * factor), [0, x])[1]
        z = v1.cond(tf.reduce_sum(x) > 5, lambda: y + factor, lambda: y - factor)
        v1.enable_control_flow_v2()
        return {"serving_default": predict_def({"x": x}, {"y": y, "z": z})}

    build_tf1(to, make)


def tf1_other_names() -> dict:
    """Names that no Python argument could have."""
    v1 = tf.compat.v1
    x = v1.placeholder(tf.float32, [None, 2], "x")
    return {
        "serving_default": predict_def({"image/encoded:0": x}, {"scores (0..1)": x * 2}),
        "my signature/2": predict_def({"größe": x}, {"y": x + 1, "y z": x - 1}),
    }


def tf1_scaled() -> dict:
    v1 = tf.compat.v1
    x = v1.placeholder(tf.float32, [None, 2], "x")
    return {
        "serving_default": predict_def(
            {"x": x}, {"y": x * v1.get_variable("scale", initializer=[2.0, 3.0])}
        )
    }


def tf1_beside_handle() -> dict:
    """One signature has a table itself as an output, which is no number."""
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    x = tf.compat.v1.placeholder(tf.float32, [None], "x")
    return {
        "handle": predict_def({"x": x}, {"y": x, "table": table.resource_handle}),
        "serving_default": predict_def({"x": x}, {"y": x * 2}),
    }


def tf1_on_a_gpu() -> dict:
    with tf.device("/device:GPU:0"):
        return tf1_scaled()


# --- models with a state --------------------------------------------------------------------------


def save_trainable(to: Path) -> None:
    """Trained on the device, as TensorFlow Lite's guide has it: infer, train, save, restore."""
    w, steps = tf.Variable([0.0, 0.0]), tf.Variable(0.0)

    def train(x: Any) -> Any:
        return {"steps": steps.assign_add(1.0), "w": w.assign_add(tf.reduce_mean(x, 0))}

    def store(path: Any) -> Any:
        tf.raw_ops.Save(filename=path, tensor_names=["w"], data=[w.read_value()])
        return {"path": path}

    def restore(path: Any) -> Any:
        found = tf.raw_ops.Restore(file_pattern=path, tensor_name="w", dt=tf.float32)
        return {"w": w.assign(tf.ensure_shape(found, [2]))}

    save(
        to,
        {
            "serving_default": (lambda x: {"y": tf.linalg.matvec(x, w)}, [floats(None, 2)]),
            "train": (train, [floats(None, 2)]),
            "set": (lambda x: {"w": w.assign(x[0])}, [floats(None, 2)]),
            "save": (store, [floats(name="path", dtype="string")]),
            "restore": (restore, [floats(name="path", dtype="string")]),
        },
        w=w,
        steps=steps,
    )


def save_counter(to: Path) -> None:
    """Counts its own calls, in a function that a condition in a loop calls."""
    count, seen = tf.Variable(0, dtype=tf.int64), tf.Variable([0.0] * 4)

    @tf.function
    def note(x: Any) -> Any:
        return tf.cond(tf.size(x) > 0, lambda: count.assign_add(1), lambda: count.read_value())

    def answer(x: Any) -> Any:
        tf.while_loop(lambda i: i < 2, lambda i: (i + tf.cast(note(x) > 0, tf.int32),), [0])
        seen.scatter_nd_add([[1]], [tf.reduce_sum(x)])
        return {"count": count.read_value(), "seen": seen.read_value()}

    save_one(to, answer, floats(None), count=count, seen=seen)


def save_dictionary(to: Path) -> None:
    """A MutableHashTable: what is learned is found."""
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1)
    table.insert(tf.constant(["one", "two"]), tf.constant([1, 2], tf.int64))

    def learn(word: Any, number: Any) -> Any:
        table.insert(word, number)
        return {"size": table.size()}

    word = floats(None, name="word", dtype="string")
    save(
        to,
        {
            "serving_default": (lambda word: {"number": table.lookup(word)}, [word]),
            "learn": (learn, [word, floats(None, name="number", dtype="int64")]),
            "forget": (lambda word: (table.remove(word), {"size": table.size()})[1], [word]),
        },
        table=table,
    )


def save_dice(to: Path) -> None:
    """A random generator whose state is a variable."""
    generator = tf.random.Generator.from_seed(7)
    save_one(
        to,
        lambda n: {"dice": generator.uniform([4], 1, 7, tf.int32) + 0 * n},
        floats(name="n", dtype="int32"),
        generator=generator,
    )


def save_diary(to: Path) -> None:
    """Writes a file beside its versions whenever it is called."""
    path = str(to.parent / "diary")

    def write(x: Any) -> Any:
        tf.io.write_file(path, tf.strings.as_string(tf.size(x)))
        return {"y": x + 1}

    save(
        to,
        {
            "write": (write, [floats(None)]),
            "serving_default": (lambda x: {"y": x + 1}, [floats(None)]),
        },
    )


def export_training(to: Path) -> None:
    """A Keras model with an endpoint that trains it, its BatchNormalization as well."""
    model = keras.Sequential([keras.Input((3,)), layers.BatchNormalization(), layers.Dense(2)])
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build(model.trainable_variables)

    def train(x: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x, training=True) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return {"loss": loss}

    module = tf.Module()
    module.v = [variable.value for variable in (*model.variables, *optimizer.variables)]
    three = [floats(None, 3)]
    module.functions = {
        "serving_default": tf.function(lambda x: {"y": model(x)}, input_signature=three),
        "train": tf.function(train, input_signature=three),
    }
    tf.saved_model.save(module, to, signatures=module.functions)


def export_augmented(to: Path) -> None:
    """Keras leaves its random layers random in what it exports; their seeds are variables."""
    export_layers(
        to,
        (16, 16, 3),
        layers.RandomFlip(),
        layers.RandomRotation(0.2),
        layers.Flatten(),
        layers.Dense(2),
    )


def save_remembering(to: Path) -> None:
    """A recurrent network that goes on where the last call has ended."""
    weights, state = tf.Variable(constant(5, 3)), tf.Variable(tf.zeros([1, 3]))

    def answer(x: Any) -> Any:
        state.assign(tf.tanh(tf.concat([x, state], 1) @ weights))
        return {"state": state.read_value()}

    save(
        to,
        {
            "serving_default": (answer, [floats(1, 2)]),
            "reset": (lambda x: {"state": state.assign(0 * state)}, [floats(1, 2)]),
        },
        weights=weights,
        state=state,
    )


def tf1_counter(to: Path) -> None:
    """A TF1 graph with an output that counts, by reference variables."""
    v1 = tf.compat.v1

    def make() -> dict:
        x = v1.placeholder(tf.float32, [None], "x")
        total = v1.get_variable("total", initializer=0.0, use_resource=False)
        added = v1.assign_add(total, tf.reduce_sum(x))
        return {
            "add": predict_def({"x": x}, {"total": added}),
            "serving_default": predict_def({"x": x}, {"y": x + total}),
        }

    build_tf1(to, make)


def tf1_queue(to: Path) -> None:
    """A TF1 graph with a queue: what is put in comes out, first in, first out."""
    v1 = tf.compat.v1

    def make() -> dict:
        x = v1.placeholder(tf.float32, [], "x")
        waiting = tf.queue.FIFOQueue(100, [tf.float32], [[]], name="waiting")
        with tf.control_dependencies([waiting.enqueue(x)]):
            return {
                "put": predict_def({"x": x}, {"size": waiting.size()}),
                "serving_default": predict_def({"x": x}, {"size": waiting.size() + 0}),
            }

    build_tf1(to, make)


# --- the tables -----------------------------------------------------------------------------------

ids = whole(0, 30, 8)
MODELS = [
    Model(
        "one_sigmoid",
        lambda to: export_layers(
            to, (32, 32, 3), layers.GlobalAveragePooling2D(), layers.Dense(1, activation="sigmoid")
        ),
        {"serving_default": numbers(32, 32, 3), "serve": numbers(32, 32, 3)},
    ),
    Model(
        "softmax",
        lambda to: export_layers(to, (4,), layers.Dense(8, "relu"), layers.Dense(3, "softmax")),
        {"serving_default": numbers(4)},
    ),
    Model(
        "multi_label",
        lambda to: export_layers(
            to,
            (16, 16, 3),
            layers.Rescaling(1 / 255),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, "sigmoid"),
        ),
        {"serving_default": numbers(16, 16, 3)},
    ),
    Model(
        "grey",
        lambda to: export_layers(
            to,
            (28, 28, 1),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(10, "softmax"),
        ),
        {"serving_default": numbers(28, 28, 1)},
    ),
    Model(
        "flat",
        lambda to: export_layers(to, (28, 28), layers.Flatten(), layers.Dense(10)),
        {"serving_default": numbers(28, 28)},
    ),
    Model("unet", export_unet, {"serving_default": numbers(32, 32, 3)}),
    Model(
        "separable",
        lambda to: export_layers(
            to,
            (16, 16, 3),
            layers.SeparableConv2D(6, 3),
            layers.DepthwiseConv2D(3),
            layers.UpSampling2D(interpolation="bilinear"),
            layers.GlobalMaxPooling2D(),
        ),
        {"serving_default": numbers(16, 16, 3)},
    ),
    Model(
        "two_inputs",
        export_two_inputs,
        {"serving_default": {"picture": numbers(8, 8, 1), "sensor": numbers(3)}},
    ),
    Model(
        "normalization",
        lambda to: export_layers(
            to,
            (3,),
            adapted(layers.Normalization(), np.random.default_rng(1).random((50, 3)) * 9),
            layers.Dense(2),
        ),
        {"serving_default": numbers(3)},
    ),
    Model(
        "string_lookup",
        lambda to: export_layers(
            to,
            (1,),
            layers.StringLookup(vocabulary=["cat", "dog"]),
            layers.Embedding(4, 3),
            dtype="string",
        ),
        {"serving_default": words("cat", "dog", "?", "", shape=(1,))},
    ),
    Model(
        "integer_lookup",
        lambda to: export_layers(
            to, (2,), layers.IntegerLookup(vocabulary=[3, 5, 8]), dtype="int64"
        ),
        {"serving_default": whole(0, 10, 2)},
    ),
    Model(
        "category",
        lambda to: export_layers(
            to, (3,), layers.CategoryEncoding(5, "count"), layers.Dense(2), dtype="int32"
        ),
        {"serving_default": whole(0, 5, 3, dtype=np.int32)},
    ),
    Model(
        "text",
        lambda to: export_layers(
            to,
            (),
            text_layer(),
            layers.Embedding(20, 4, mask_zero=True),
            layers.GlobalAveragePooling1D(),
            layers.Dense(1, "sigmoid"),
            dtype="string",
        ),
        {"serving_default": sentences},
    ),
    Model(
        "text_tokens",
        lambda to: export_layers(to, (), text_layer(), dtype="string"),
        {"serving_default": sentences},
    ),
    Model(
        "hashing",
        lambda to: export_layers(to, (1,), layers.Hashing(7), dtype="string"),
        {"serving_default": words("a", "bb", "größe", shape=(1,))},
    ),
    Model(
        "discretization",
        lambda to: export_layers(to, (2,), layers.Discretization([0.2, 1.0, 100.0])),
        {"serving_default": numbers(2)},
    ),
    Model(
        "rescaling",
        lambda to: export_layers(
            to,
            (None, None, 3),
            layers.Resizing(12, 12),
            layers.Rescaling(1 / 127.5, -1),
            layers.Conv2D(3, 3),
            layers.GlobalAveragePooling2D(),
        ),
        {"serving_default": numbers(20, 17, 3)},
    ),
    Model(
        "columns",
        export_table,
        {
            "serving_default": {
                "age": numbers(1),
                "kind": words("cat", "dog", "cow", shape=(1,)),
                "shop": whole(1, 5, 1),
            }
        },
    ),
    Model(
        "lstm",
        lambda to: export_layers(
            to,
            (8,),
            layers.Embedding(30, 6, mask_zero=True),
            layers.LSTM(5),
            layers.Dense(1),
            dtype="int32",
        ),
        {"serving_default": whole(0, 30, 8, dtype=np.int32)},
    ),
    Model(
        "gru",
        lambda to: export_layers(
            to, (None, 3), layers.Bidirectional(layers.GRU(4, return_sequences=True))
        ),
        {"serving_default": numbers(7, 3)},
    ),
    Model(
        "conv1d",
        lambda to: export_layers(
            to,
            (8,),
            layers.Embedding(30, 6),
            layers.Conv1D(4, 3, activation="relu"),
            layers.GlobalMaxPooling1D(),
            dtype="int64",
        ),
        {"serving_default": ids},
    ),
    Model("attention", export_attention, {"serving_default": whole(0, 30, 8, dtype=np.int32)}),
    Model("half_precision", export_half_precision, {"serving_default": numbers(10, 10, 3)}),
    Model("normalized", export_normalized, {"serving_default": numbers(12, 12, 3)}),
    Model("subclassed", export_subclassed, {"serving_default": numbers(6)}),
    Model("mobilenet", export_mobilenet, {"serving_default": numbers(96, 96, 3)}),
    Model(
        "endpoints",
        export_endpoints,
        {"serve": numbers(6), "encode": numbers(6), "decode": numbers(2)},
    ),
    Model("wrapped", save_wrapped, {"serving_default": numbers(7)}),
    Model(
        "half_plus_one",
        lambda to: save_one(to, lambda x: {"y": x / 2 + 1}, floats(None)),
        {"serving_default": numbers()},
    ),
    Model(
        "int8",
        lambda to: quantized(
            keras.Input((6,), name="x"), layers.Dense(8, "relu"), layers.Dense(3)
        ).export(to, verbose=False),
        {"serving_default": numbers(6)},
    ),
    Model(
        "several", save_several, dict.fromkeys(("serving_default", "logits", "both"), numbers(3))
    ),
    Model("autoscale", save_autoscale, {"serving_default": numbers(8, 8, 3)}),
    Model("centred", save_centred, {"serving_default": numbers(4)}),
    Model("vocabulary", save_vocabulary, {"serving_default": words("one", "two", "größe", "x")}),
    Model("bytes", save_bytes, {"serving_default": words("a", "größe", "", 'quo"te', "x\ny")}),
    Model("ragged", save_ragged, {"serving_default": sentences}),
    Model("jpeg", save_jpeg, {"serving_default": pictures}),
    Model(
        "examples",
        save_examples,
        dict.fromkeys(("serving_default", "classify", "regress"), examples),
    ),
    Model(
        "loops",
        save_loops,
        {
            "serving_default": whole(1, 30),
            "grow": {"x": numbers(), "years": one(1, 3, 5, dtype=np.int32)},
        },
    ),
    Model(
        "branches",
        save_branches,
        {"serving_default": {"x": numbers(3), "mode": one(0, 1, 2, dtype=np.int32)}},
    ),
    Model("dropout", save_dropout, {"serving_default": numbers(4)}),
    Model(
        "dtypes",
        save_dtypes,
        {
            "int64": whole(-(2**62), 2**62, 2),
            "int8": whole(-128, 128, 2, dtype=np.int8),
            "bool": flags(2),
            "uint8": whole(0, 256, 2, dtype=np.uint8),
            "uint64": whole(0, 2**62, 2, dtype=np.uint64),
            "half": numbers(2, dtype=np.float16),
            "double": numbers(2, dtype=np.float64),
            "bfloat16": numbers(2, dtype="bfloat16"),
        },
    ),
    Model("complex", save_complex, {"serving_default": numbers(8)}),
    Model(
        "scalars",
        save_scalars,
        {
            "serving_default": one(6, 0, 9, dtype=np.int64),
            "mixed": {"x": numbers(2), "scale": one(2, 0.5)},
            "text": one(b"you", "größe".encode(), dtype=object),
        },
    ),
    Model(
        "unknown_rank",
        save_unknown_rank,
        {"serving_default": any_rank, "part": {"x": any_rank, "k": one([3.0])}},
    ),
    Model(
        "passed_through",
        save_passed_through,
        {"serving_default": {"x": numbers(2), "key": words("a", "b", "c")}},
    ),
    Model("variables_out", save_variables_out, {"serving_default": whole(0, 10)}),
    Model(
        "beside_ragged",
        save_beside_ragged,
        {
            "serving_default": numbers(2),
            "ragged": {"r": one([1, 2, 3]), "r_1": one([0, 1, 3], [0, 0, 3], dtype=np.int64)},
        },
    ),
    Model(
        "beside_sparse",
        save_beside_sparse,
        {
            "serving_default": numbers(2),
            "sparse": {
                "s": one([[0, 1], [1, 0]], dtype=np.int64),
                "s_1": one([1, 2], [3, 4]),
                "s_2": one([2, 3], dtype=np.int64),
            },
        },
    ),
    Model("without_signatures", save_without_signatures, {}),
    Model(
        "detector",
        save_detector,
        {
            "serving_default": lambda random, n: random.integers(0, 256, (1, 10 * n, 12, 3)).astype(
                np.uint8
            )
        },
    ),
    Model("not_finite", save_not_finite, {"serving_default": numbers()}),
    Model("dynamic", save_dynamic, {"serving_default": whole(0, 6)}),
    Model("dataset_inside", save_dataset_inside, {"serving_default": numbers(3)}),
    Model(
        "out_of_vocabulary",
        save_out_of_vocabulary,
        {"serving_default": words("a", "b", "größe", "")},
    ),
    Model("odd_variables", save_odd_variables, {"serving_default": numbers(2)}),
    Model("sharded", save_sharded, {"serving_default": numbers(20)}),
    Model("compiled", save_compiled, {"serving_default": numbers(6)}),
    Model("for_a_gpu", save_for_a_gpu, {"serving_default": numbers(6)}),
    Model("quantized", save_quantized, {"serving_default": numbers(6)}),
    Model("saved_again", save_again, {"serving_default": numbers(3)}),
    Model("wide", save_wide, {"serving_default": numbers(64)}),
    Model(
        "tf1_main_op",
        lambda to: tf1_table(to, "main_op"),
        {"serving_default": words("one", "two", "x"), "scale": numbers(2)},
    ),
    Model(
        "tf1_legacy_init_op",
        lambda to: tf1_table(to, "legacy_init_op"),
        {"serving_default": words("one", "two", "x"), "scale": numbers(2)},
    ),
    Model("tf1_simple", tf1_simple, {"serving_default": numbers(6)}),
    Model(
        "tf1_estimator",
        tf1_estimator,
        dict.fromkeys(("serving_default", "predict", "regression"), examples),
        1700000000,
    ),
    Model("tf1_frozen", tf1_frozen, {"serving_default": numbers(8, 8, 3)}),
    Model("tf1_beside_sparse", tf1_sparse, {"serving_default": numbers()}),
    Model("tf1_loop", tf1_loop, {"serving_default": numbers(3)}),
    Model(
        "tf1_beside_handle",
        lambda to: build_tf1(to, tf1_beside_handle),
        {"serving_default": numbers()},
    ),
    Model(
        "tf1_other_names",
        lambda to: build_tf1(to, tf1_other_names),
        {"serving_default": numbers(2), "my signature/2": numbers(2)},
    ),
    Model(
        "tf1_two_graphs",
        lambda to: build_tf1(to, tf1_scaled, tags=("train", "serve")),
        {"serving_default": numbers(2)},
    ),
    Model(
        "tf1_text",
        lambda to: build_tf1(to, tf1_scaled, as_text=True),
        {"serving_default": numbers(2)},
    ),
    Model("tf1_for_a_gpu", lambda to: build_tf1(to, tf1_on_a_gpu), {"serving_default": numbers(2)}),
]

X = np.float32
SCRIPTS = [
    Script(
        "trainable",
        save_trainable,
        [
            ("serving_default", {"x": X([[1, 1]])}),
            ("train", {"x": X([[2, 3]])}),
            ("train", {"x": X([[1, 1], [3, 3]])}),
            ("serving_default", {"x": X([[1, 1]])}),
            ("set", {"x": X([[7, 8]])}),
            ("serving_default", {"x": X([[1, 0], [0, 1]])}),
        ],
    ),
    Script("counter", save_counter, [("serving_default", {"x": X([1, 2])})] * 3),
    Script(
        "dictionary",
        save_dictionary,
        [
            ("serving_default", {"word": np.array([b"one", b"two", b"three", b""], object)}),
            ("learn", {"word": np.array([b"three"], object), "number": np.int64([3])}),
            ("forget", {"word": np.array([b"two"], object)}),
            ("serving_default", {"word": np.array([b"one", b"two", b"three", b""], object)}),
        ],
    ),
    Script("dice", save_dice, [("serving_default", {"n": np.int32(0)})] * 3),
    Script("diary", save_diary, [("serving_default", {"x": X([1, 2])})]),
    Script(
        "training",
        export_training,
        [
            ("serving_default", {"x": X([[1, 2, 3]])}),
            ("train", {"x": X([[1, 2, 3], [4, 5, 6]])}),
            ("train", {"x": X([[1, 1, 1], [2, 0, 2]])}),
            ("serving_default", {"x": X([[1, 2, 3]])}),
        ],
    ),
    Script(
        "augmented",
        export_augmented,
        [("serving_default", {"x": np.linspace(0, 1, 768, dtype=X).reshape(1, 16, 16, 3)})] * 3,
    ),
    Script(
        "remembering",
        save_remembering,
        [
            ("serving_default", {"x": X([[1, 2]])}),
            ("serving_default", {"x": X([[1, 2]])}),
            ("reset", {"x": X([[0, 0]])}),
            ("serving_default", {"x": X([[1, 2]])}),
        ],
    ),
    Script(
        "tf1_counter",
        tf1_counter,
        [
            ("serving_default", {"x": X([1])}),
            ("add", {"x": X([1, 2])}),
            ("add", {"x": X([4])}),
            ("serving_default", {"x": X([1])}),
        ],
    ),
    Script("tf1_queue", tf1_queue, [("put", {"x": X(5)}), ("put", {"x": X(6)})]),
]


# --- exporting ------------------------------------------------------------------------------------


def stored_signatures(folder: Path) -> Any:
    """The SignatureDefs of what is to be served, by name, as they are stored."""
    from tensorflow.python.saved_model import loader_impl

    for graph in loader_impl.parse_saved_model(str(folder)).meta_graphs:
        if list(graph.meta_info_def.tags) == ["serve"]:
            return graph.signature_def


def requests_of(model: Model, folder: Path) -> dict[str, list[dict[str, np.ndarray]]]:
    """What each signature of a model is asked: inputs by name, in requests of ROWS rows."""
    found, random = {}, np.random.default_rng(len(model.name))
    stored = stored_signatures(folder)
    for signature, asked in model.asks.items():
        if not isinstance(asked, dict):
            asked = {next(iter(stored[signature].inputs)): asked}
        found[signature] = [
            {name: sample(random, rows) for name, sample in asked.items()} for rows in ROWS
        ]
    return found


def export(folder: Path, names: list[str]) -> None:
    """Export some models, and pickle what the MODELS are asked as FOLDER/<name>/requests."""
    global keras, layers, tf
    import keras
    import tensorflow as tf

    layers = keras.layers
    for model in [*MODELS, *SCRIPTS]:
        if model.name not in names:
            continue
        keras.utils.set_random_seed(1)
        path = folder / model.name / str(getattr(model, "version", 1))
        model.build(path)
        if isinstance(model, Model):
            requests = pickle.dumps(requests_of(model, path))
            (folder / model.name / "requests").write_bytes(requests)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    export(Path(sys.argv[1]), sys.argv[2:])
