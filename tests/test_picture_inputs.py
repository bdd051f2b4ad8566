"""How pictures go into models: layouts, channels, dtypes, numbers, sizes, texts; what is not known is refused with the line to write."""

import base64
import io
import json

import ml_dtypes
import numpy as np
import pytest
from conftest import (
    FakeServable,
    Rest,
    bearer,
    config,
    fake_server,
    image_bytes,
    key_entry,
    signature,
    spec,
)
from PIL import Image

import routines
import serving

RANDOM = np.random.default_rng(0)
PICTURE = np.kron(RANDOM.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
GREY = np.asarray(Image.fromarray(PICTURE).convert("L"))
LIMITS = routines.ImageLimits()
AUTH = {"keys": [key_entry("site", "k")]}


# A deployment of a model whose outputs no operation makes that is known.
NAMED = {"id": "d", "model": "m", "label_map": ["r", "g", "b"], "activation": "none"}


def read(dtype, shape, operations=(), **options):
    return routines.read_input({"x": (dtype, shape)}, routines.InputOptions(**options), operations)


def show(dtype, shape, image=PICTURE, **options):
    return read(dtype, shape, **options).show(image)[0]


@pytest.mark.parametrize(
    "shape, truth",
    [
        ((None, 48, 64, 3), PICTURE[np.newaxis]),
        ((1, None, None, 3), PICTURE[np.newaxis]),
        ((None, 3, 48, 64), PICTURE.transpose(2, 0, 1)[np.newaxis]),
        ((1, 3, None, None), PICTURE.transpose(2, 0, 1)[np.newaxis]),
        ((48, 64, 3), PICTURE),
        ((None, None, 3), PICTURE),
        ((3, 48, 64), PICTURE.transpose(2, 0, 1)),
        ((None, 48, 64, 1), GREY[np.newaxis, :, :, np.newaxis]),
        ((None, 1, 48, 64), GREY[np.newaxis, np.newaxis]),
        ((None, 48, 64), GREY[np.newaxis]),
        ((1, 48, 64), GREY[np.newaxis]),
        ((None, 48, 64, 4), np.dstack([PICTURE, np.full((48, 64), 255, np.uint8)])[np.newaxis]),
    ],
)
@pytest.mark.parametrize("dtype", [*routines.PIXEL_TYPES])
def test_the_shape_tells_how_a_picture_lies_in_it(shape, truth, dtype):
    options = {"offset": -128} if dtype == "DT_INT8" else {}
    shown = show(dtype, shape, **options)
    kind = {"DT_HALF": np.float16, "DT_BFLOAT16": ml_dtypes.bfloat16}.get(dtype)
    assert shown.shape == truth.shape and shown.dtype == routines.PIXEL_TYPES[dtype]
    assert kind is None or shown.dtype == kind
    difference = np.abs(shown.astype(float) - options.get("offset", 0) - truth)
    grey = 1 in shape[-3:] or len(shape) == 3 and 3 not in shape  # of OpenCV, and of Pillow
    assert difference.max() <= (1 if grey or dtype == "DT_BFLOAT16" else 0)


@pytest.mark.parametrize(
    "shape, options, text",
    [
        ((None, None, None, None), {}, 'write "layout": "NHWC" or "NCHW"'),
        (None, {}, 'of any shape does not show how it takes pictures: write "layout"'),
        ((None, None, None), {}, 'write "layout"'),
        ((None, 3, 3, 3), {}, 'write "layout"'),
        ((None, None, None, None), {"layout": "NHWC"}, 'write "channels": "rgb"'),
        ((None, 48, 64, 3), {"layout": "NCHW"}, "layout: 'NCHW' does not fit input 'x'"),
        ((None, 48, 64, 3), {"layout": "NHW"}, "layout: 'NHW' does not fit input 'x'"),
        ((None, 48, 64, 3), {"channels": "grey"}, "channels: 'grey' has 1 channels, but .* has 3"),
        ((None, 48, 64, 1), {"preprocess": "torch"}, "preprocess: 'torch' has 3 channels"),
        ((None, 48, 64, 3), {"mean": (1.0, 2.0)}, "mean: expected 1 or 3 numbers, got 2"),
        ((None, 48, 64, 1), {"std": (1.0, 2.0)}, "std: expected 1 number, got 2"),
        ((None, 48, 64, 3), {"input": "encoded"}, "input: 'encoded' is for strings, 'x' is float"),
        ((None, None, 64, 3), {"resize": "crop"}, "resize: 'crop' needs an input of a fixed size"),
        ((None, 10), {}, "input 'x' is no picture: expected"),
        ((None, 48, 64, 7), {}, "input 'x' is no picture: expected"),
        ((8, 48, 64, 3), {}, "input 'x' is no picture: expected"),
        ((), {}, "input 'x' is no picture: expected"),
    ],
)
def test_what_a_shape_does_not_tell_is_refused_with_the_line_to_write(shape, options, text):
    with pytest.raises(ValueError, match=text):
        read("DT_FLOAT", shape, **options)


def test_what_the_config_tells_is_taken():
    shown = show("DT_UINT8", (None,) * 4, layout="NCHW", channels="bgr")
    assert (shown == PICTURE[..., ::-1].transpose(2, 0, 1)[np.newaxis]).all()
    assert show("DT_UINT8", None, layout="HWC", channels="rgb").shape == PICTURE.shape
    assert show("DT_UINT8", (None, None), layout="HW").shape == PICTURE.shape[:2]


@pytest.mark.parametrize(
    "dtype, options, text",
    [
        ("DT_INT8", {}, 'which cannot hold 0..255: write "offset": -128'),
        ("DT_UINT8", {"offset": -1}, "which cannot hold -1..254"),
        ("DT_UINT8", {"scale": 1 / 255}, "holds no fractions"),
        ("DT_INT32", {"preprocess": "tf"}, "holds no fractions"),
        ("DT_HALF", {"scale": 1e6}, "is half, which cannot hold"),
        ("DT_COMPLEX64", {}, "input 'x' is no picture: it is complex64"),
        ("DT_BOOL", {}, "input 'x' is no picture: it is bool"),
    ],
)
def test_numbers_that_a_dtype_cannot_hold_are_refused(dtype, options, text):
    with pytest.raises(ValueError, match=text):
        read(dtype, (None, 48, 64, 3), **options)


@pytest.mark.parametrize("mode", ["tf", "torch", "caffe"])
@pytest.mark.parametrize("dtype", ["DT_FLOAT", "DT_DOUBLE"])
@pytest.mark.parametrize("first", [True, False])
def test_preprocess_is_that_of_keras_to_the_last_bit(tf, mode, dtype, first):
    from keras.src.applications.imagenet_utils import preprocess_input

    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.dstack([every, every[::-1], every.T])
    kind = routines.PIXEL_TYPES[dtype]
    given = image.transpose(2, 0, 1) if first else image
    form = "channels_first" if first else "channels_last"
    truth = preprocess_input(given[np.newaxis].astype(kind), form, mode)
    shape = (None, 3, 16, 16) if first else (None, 16, 16, 3)
    shown = show(dtype, shape, image, preprocess=mode)
    assert shown.dtype == truth.dtype and (shown == truth).all()


def test_scale_offset_mean_and_std_in_their_order():
    options = {"scale": 1 / 255, "offset": 0.5, "mean": (0.1, 0.2, 0.3), "std": (0.5,)}
    truth = (PICTURE / 255 + 0.5 - np.array([0.1, 0.2, 0.3])) / 0.5
    shown = show("DT_DOUBLE", (None, 48, 64, 3), **options)
    assert np.abs(shown[0] - truth).max() < 1e-12


def test_channels_of_what_is_transparent():
    clear = np.dstack([PICTURE, RANDOM.integers(0, 256, (48, 64), dtype=np.uint8)])
    assert (show("DT_UINT8", (None, 48, 64, 4), clear) == clear).all()
    swapped = show("DT_UINT8", (None, 48, 64, 4), clear, channels="bgra")[0]
    assert (swapped == clear[..., [2, 1, 0, 3]]).all()


# --- sizes --------------------------------------------------------------------------------------


def places(height, width):
    """A grid of boxes in a picture."""
    edges = np.linspace(0.05, 0.95, 7)
    return np.array([[y, x, y + 0.04, x + 0.04] for y in edges for x in edges])


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (37, 101), (300, 20), (64, 64)])
@pytest.mark.parametrize("target", [(32, 32), (640, 640), (24, 96)])
@pytest.mark.parametrize("how", ["stretch", "letterbox", "crop"])
def test_what_lies_somewhere_in_what_is_shown_lies_there_in_the_picture(how, size, target):
    """A ramp over the picture tells at each pixel shown where it is from."""
    height, width = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = (np.arange(height)[:, np.newaxis] + 0.5) / height * 255
    ramp[..., 1] = (np.arange(width) + 0.5) / width * 255
    ramp[..., 2] = 255
    known = read("DT_UINT8", (None, *target, 3), resize=how, padding=(1, 2, 3))
    shown, region = known.show(ramp)
    assert shown.shape == (1, *target, 3)
    inside = shown[0][..., 2] == 255
    ys, xs = np.nonzero(inside)
    centres = np.stack([ys + 0.5, xs + 0.5, ys + 0.5, xs + 0.5], 1) / np.tile(target, 2)
    found = routines.place_boxes(centres, np.array(region))[:, :2]
    told = shown[0][inside][:, :2] / 255
    slack = 1.5 / np.minimum(size, target[:1] * 2) + 2 / 255
    assert (np.abs(found - told) <= slack + 0.02).all()
    outside = shown[0][~inside]
    assert how == "letterbox" or not len(outside)
    assert (outside == [1, 2, 3]).all()


def test_a_letterbox_is_the_whole_picture_in_its_proportions():
    shown, region = read("DT_UINT8", (None, 100, 100, 3), resize="letterbox").show(PICTURE)
    rows = np.flatnonzero(shown[0].any((1, 2)))
    assert (rows[0], rows[-1]) == (12, 86) and shown[0][12:87].any()  # 75 of 100
    assert region == pytest.approx((-12 / 75, 0, 88 / 75, 1))


@pytest.mark.parametrize("size", [(640, 20), (20, 640), (128, 8), (640, 480), (33, 31)])
def test_what_shrinks_is_averaged_also_where_the_other_side_grows(size):
    """Noise, against Pillow's mean of areas along what shrinks, and its bilinear along the rest."""
    wide, tall = size
    image = np.random.default_rng(0).integers(0, 256, (tall, wide, 3), dtype=np.uint8)
    least = min(wide, 64), min(tall, 32)
    small = Image.fromarray(image).resize(least, Image.Resampling.BOX)
    truth = np.asarray(small.resize((64, 32), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(routines.resize(image, 64, 32) - truth).max() <= 3


def test_a_crop_is_that_of_keras(tf):
    import keras

    shown, _ = read("DT_FLOAT", (None, 32, 32, 3), resize="crop").show(PICTURE)
    truth = keras.utils.img_to_array(
        keras.preprocessing.image.smart_resize(PICTURE.astype(np.float32), (32, 32), "nearest")
    )
    # blocks of 8 pixels: away from their borders every way to shrink tells the same
    middle = [row for row in range(32) if row % 16 in (2, 3)]
    assert np.abs(shown[0] - truth)[middle][:, middle].mean() < 40


def test_predictions_in_the_padding_go_and_those_across_its_edge_are_cut():
    region = (-0.5, 0.0, 1.5, 1.0)  # half of what is shown is padding
    mask = np.zeros((3, 8, 8), np.float32)
    mask[:, 4:] = 1  # the lower half of each box
    tensors = {
        "boxes": np.array([[0, 0, 0.25, 1], [0, 0, 0.5, 1], [0.25, 0, 0.75, 0.5]], np.float32),
        "scores": np.array([0.9, 0.8, 0.7], np.float32),
        "classes": np.array([1, 2, 3]),
        "names": np.array(["a", "b", "c"], object),
        "masks": mask,
    }
    placed = routines.place(tensors, region)
    assert placed["boxes"].tolist() == [[0, 0, 0.5, 1], [0, 0, 1, 0.5]]
    assert placed["names"].tolist() == ["b", "c"] and placed["scores"].dtype == np.float32
    assert placed["masks"][0].min() > 0.4 and (placed["masks"][1] == mask[2]).all()
    nothing = {name: array[:0] for name, array in tensors.items()}
    assert routines.place(nothing, region)["masks"].shape == (0, 8, 8)
    assert routines.place(tensors, routines.WHOLE) is tensors
    classified = {"scores": tensors["scores"]}
    assert routines.place(classified, region) is classified


# --- texts --------------------------------------------------------------------------------------


def save(tf, folder, function, *specs):
    module = tf.Module()
    module.f = tf.function(function, input_signature=specs)
    tf.saved_model.save(module, str(folder / "1"), signatures=module.f)


def decode(tf, data):
    return tf.io.decode_image(data, 3, expand_animations=False)


def mean_of(tf, file):
    mean = tf.reduce_mean(tf.cast(decode(tf, file), tf.float32), [0, 1]) / 255
    return mean / tf.reduce_sum(mean)


def parse(tf, data, feature="image/encoded"):
    return tf.io.parse_example(data, {feature: tf.io.FixedLenFeature([], tf.string)})[feature]


@pytest.mark.parametrize("load", ["eager", "on_demand"])
@pytest.mark.parametrize(
    "kind, shape, options",
    [
        ("encoded", [None], {}),
        ("encoded", [1], {}),
        ("encoded", [], {}),
        ("example", [None], {}),
        ("example", [None], {"example_feature": "jpg"}),
    ],
)
def test_the_graph_tells_a_file_from_an_example(tf, tmp_path, kind, shape, options, load):
    def answer(x):
        files = (
            parse(tf, x, options.get("example_feature", "image/encoded"))
            if kind == "example"
            else x
        )
        files = tf.reshape(files, [-1])
        found = tf.map_fn(lambda file: mean_of(tf, file), files, fn_output_signature=tf.float32)
        return {"scores": tf.reshape(found, [-1, 3])}

    save(tf, tmp_path, answer, tf.TensorSpec(shape, tf.string, "x"))
    server = serving.ModelServer(
        config(
            {"name": "m", "base_path": str(tmp_path), "load": load},
            auth=AUTH,
            deployments=[{**NAMED, **options}],
        )
    )
    assert server.wait(60) and not server.readiness()
    answer = server.predict_image(PICTURE, "d")["predictions"]
    shares = PICTURE.mean((0, 1)) / PICTURE.mean((0, 1)).sum()
    for prediction in answer:
        share = shares["rgb".index(prediction["tag"]["name"])]
        assert prediction["confidence"] == pytest.approx(share, abs=1e-5)
    server.stop()


def test_a_text_of_which_the_graph_tells_nothing_is_refused_with_the_line_to_write():
    with pytest.raises(ValueError, match='write "input": "encoded" .* or "input": "example"'):
        read("DT_STRING", (None,), ["StringLength"])
    assert read("DT_STRING", (None,), input="example").form == "example"
    assert read("DT_STRING", (None,), ["DecodeJpeg", "ParseExampleV2"]).form == "example"
    with pytest.raises(ValueError, match="scale, offset, mean, std, resize .* do not apply"):
        read("DT_STRING", (None,), ["DecodeJpeg"], scale=0.5)
    with pytest.raises(ValueError, match="input 'x' is no picture: it is string"):
        read("DT_STRING", (None, 7), ["DecodeJpeg"])


@pytest.mark.parametrize("said", [{}, {"input": "encoded"}])
@pytest.mark.parametrize(
    "kind, what", [("ReadFile", "opens files by their paths"), ("DecodeBase64", "decodes base64")]
)
def test_a_text_that_is_no_bytes_of_a_file_is_refused(kind, what, said):
    with pytest.raises(ValueError, match=f"input 'x' is no picture's file: its graph {what}"):
        read("DT_STRING", (None,), [kind, "DecodeJpeg"], **said)


# --- deployments --------------------------------------------------------------------------------


class Eye(serving.Servable):
    """A classifier that answers each row's mean colours; it keeps what it was shown."""

    def __init__(self, shape=(None, 48, 64, 3), dtype="DT_FLOAT", rows=None):
        self.shown = []
        inputs, outputs = [spec("image", dtype, shape)], [spec("y", shape=(rows, 3))]
        super().__init__({"serving_default": signature(inputs, outputs)}, self.answer)

    def answer(self, name, inputs):
        self.shown.append(inputs["image"])
        means = inputs["image"].astype(np.float64)[..., :3].mean((1, 2)) + 1
        return {"y": (means / means.sum(-1, keepdims=True)).astype(np.float32)}


def eye_server(eye, images=(), **options):
    return fake_server(
        {"m": eye},
        auth=AUTH,
        deployments=[{**NAMED, **options}],
        server={"file_system_poll_wait_seconds": 0, "images": dict(images)},
    )


def text(image):
    return base64.b64encode(image_bytes(image)).decode()


def post(rest, body, **options):
    return rest.post("/predict", body, headers=bearer("k"), **options)


OTHER = np.ascontiguousarray(PICTURE[::-1, :40])


@pytest.mark.parametrize("shape, rows", [((None, 48, 64, 3), None), ((1, 48, 64, 3), 1)])
def test_several_pictures_are_answered_in_their_order_as_each_alone(how, shape, rows):
    eye = Eye(shape, rows=rows)
    rest = Rest(eye_server(eye), how)
    alone = [post(rest, image_bytes(image)).json for image in (PICTURE, OTHER, PICTURE)]
    eye.shown.clear()
    arrays = io.BytesIO()
    np.save(arrays, np.stack([PICTURE, PICTURE]))
    three = {"results": alone}
    body = {"image_type": "base64", "data": [text(image) for image in (PICTURE, OTHER, PICTURE)]}
    assert post(rest, body).json == three
    assert len(eye.shown) == (1 if rows is None else 3)
    lists = {"image_type": "array", "data": [image.tolist() for image in (PICTURE, OTHER, PICTURE)]}
    assert post(rest, lists).json == three
    urls = {"image_type": "url", "data": ["data:image/png;base64," + text(PICTURE)] * 2}
    assert post(rest, urls).json == {"results": [alone[0]] * 2}
    assert post(rest, arrays.getvalue()).json == {"results": [alone[0]] * 2}
    assert post(rest, {**body, "data": body["data"][:1]}).json == {"results": alone[:1]}
    assert rest.server.predict_image([PICTURE, OTHER], "d") == {"results": alone[:2]}
    files = [(io.BytesIO(image_bytes(image)), "a.png") for image in (PICTURE, OTHER, PICTURE)]
    chain = (io.BytesIO(json.dumps([{"name": "FilterConfidence", "confidence": 0}]).encode()), "r")
    for fields in (
        {"f": files},
        {"image": files[0], "file": files[1], "x": files[2], "routines": chain},
    ):
        for file, _ in files:
            file.seek(0)
        sent = {
            name: [
                (io.BytesIO(file.getvalue()), n)
                for file, n in (many if isinstance(many, list) else [many])
            ]
            for name, many in fields.items()
        }
        answer = rest.client.post(rest.prefix + "/predict", data=sent, headers=bearer("k"))
        assert answer.json == three
    assert rest.server.unpacked.held == 0


def test_a_lone_file_is_taken_whatever_its_field_is_called():
    rest = Rest(eye_server(Eye()))
    alone = post(rest, image_bytes(PICTURE)).json
    for name in ("image", "file", "files[]", "picture", ""):
        data = {name: (io.BytesIO(image_bytes(PICTURE)), "a.png")}
        answer = rest.client.post("/predict", data=data, headers=bearer("k"))
        assert answer.json == alone and "predictions" in alone


def test_several_pictures_are_bounded_in_number_and_memory():
    rest = Rest(eye_server(Eye(), {"max_pictures": 2}))
    many = {"image_type": "base64", "data": [text(PICTURE)] * 3}
    answer = post(rest, many)
    assert answer.status_code == 413
    assert answer.json["error"] == "data: 3 pictures are over the limit of 2"
    for body, wrong in (
        ({"image_type": "base64", "data": []}, "data: expected pictures, got none"),
        ({"image_type": "base64", "data": [text(PICTURE), 3]}, "data[1]: expected string, got 3"),
        ({"image_type": "base64", "data": [text(PICTURE), "!"]}, "data[1]: data is not base64"),
        ({"image_type": "array", "data": [[[[1]]], 3]}, "data[1]: expected array, got 3"),
    ):
        answer = post(rest, body)
        assert answer.status_code == 400 and answer.json["error"].startswith(wrong)
    answer = post(rest, {**many, "data": many["data"][:2]}, query_string={"format": "png"})
    assert answer.json["error"] == "format: expected json or coco for several pictures, got png"
    coco = post(rest, {**many, "data": many["data"][:2]}, query_string={"format": "coco"}).json
    assert [len(each["images"]) for each in coco["results"]] == [1, 1]


def test_a_model_with_alpha_is_shown_it_and_others_the_picture_on_the_background():
    clear = np.dstack([PICTURE, np.zeros((48, 64), np.uint8)])
    buffer = io.BytesIO()
    np.save(buffer, clear)
    for images, colour in (((), 255), ({"background": [0, 0, 0]}, 0)):
        eye = Eye()
        rest = Rest(eye_server(eye, images))
        for body in (image_bytes(clear), buffer.getvalue()):
            assert post(rest, body).status_code == 200 and (eye.shown[-1] == colour).all()
        assert rest.server.predict_image(Image.fromarray(clear))["predictions"]
        assert (eye.shown[-1] == colour).all()
    eye = Eye((None, 48, 64, 4), "DT_UINT8")
    rest = Rest(eye_server(eye))
    for image, alpha in ((clear, 0), (PICTURE, 255)):
        assert post(rest, image_bytes(image)).status_code == 200
        assert (eye.shown[-1][..., :3] == PICTURE).all() and (eye.shown[-1][..., 3] == alpha).all()


@pytest.mark.parametrize(
    "options, wrong",
    [
        ({"preprocess": "tf", "scale": 2}, "give 'preprocess', or 'scale'"),
        ({"preprocess": "imagenet"}, ".preprocess: "),
        ({"resize": "pad"}, ".resize: "),
        ({"channels": "RGB"}, ".channels: "),
        ({"layout": "NHWCX"}, ".layout: "),
        ({"input": "file"}, ".input: "),
        ({"std": [0]}, ".std[0]: "),
        ({"padding": [1, 2]}, "padding: expected red, green, blue, got 2 numbers"),
        ({"padding": [1, 2, 256]}, ".padding[2]: "),
    ],
)
def test_wrong_options_of_a_deployment(options, wrong):
    with pytest.raises(serving.ConfigError) as raised:
        eye_server(Eye(), **options)
    assert wrong in str(raised.value)


def test_a_wrong_background():
    with pytest.raises(serving.ConfigError, match="background: expected red, green, blue"):
        eye_server(Eye(), {"background": [1]})


def test_options_of_a_deployment_reach_its_model():
    eye = Eye((None, 32, 32, 3))
    rest = Rest(eye_server(eye, preprocess="caffe", resize="letterbox", padding=[124, 117, 104]))
    assert post(rest, image_bytes(PICTURE)).status_code == 200
    assert np.abs(eye.shown[0][0, 0, 0]).max() < 1  # the padding is the mean
    answer = post(Rest(eye_server(FakeServable())), image_bytes(PICTURE))
    assert "$.deployments[0]: model 'm': input 'x' is no picture" in answer.json["error"]


def test_a_deployment_whose_model_takes_no_pictures_is_refused_when_it_is_loaded():
    for eye, options, text in (
        (Eye((None, None, None, None)), {}, 'write "layout": "NHWC" or "NCHW"'),
        (Eye((None, 48, 64, 3), "DT_INT8"), {}, 'write "offset": -128'),
        (Eye((None,), "DT_STRING"), {}, 'write "input": "encoded"'),
        (Eye(), {"mean": [1, 2]}, "mean: expected 1 or 3 numbers, got 2"),
    ):
        server = eye_server(eye, **options)
        (problem,) = server.readiness()
        assert problem.startswith("deployment d ($.deployments[0]: model 'm': ") and text in problem
        status, answer = server.reload()
        assert status >= 400 and text in answer["details"][-1]
        assert answer["details"][-1].startswith("$.deployments[0]: model 'm': ")
        refused = Rest(server).get("/readyz")
        assert refused.status_code == 503 and "deployment d" in refused.json["error"]
    assert eye_server(Eye()).readiness() == []


@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 28), (1, 28, 28), (3, 28, 28), (28, 28, 4)])
def test_models_as_keras_exports_them_answer_as_keras_does(tf, tmp_path, shape):
    """Everybody's first model, grey 28 x 28, and others of few or many channels."""
    import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(shape),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.export(tmp_path / "1", verbose=False)
    server = serving.ModelServer(
        config(
            {"name": "m", "base_path": str(tmp_path)},
            auth=AUTH,
            deployments=[{"id": "d", "model": "m", "label_map": list("0123456789")}],
        )
    )
    assert server.wait(60) and not server.readiness()
    image = np.ascontiguousarray(PICTURE[:28, :28])
    grey = np.asarray(Image.fromarray(image).convert("L"))
    image = image if 3 in shape or 4 in shape else np.dstack([grey] * 3)
    planes = np.dstack([image, np.full((28, 28), 255, np.uint8)]) if 4 in shape else image
    planes = planes.transpose(2, 0, 1) if 3 in shape else planes
    shown = planes if 3 in shape or 4 in shape else grey.reshape(shape)
    truth = model.predict(shown[np.newaxis].astype(np.float32), verbose=0)[0]
    answers = server.predict_image([image, image], "d")["results"]
    server.stop()
    for answer in answers:
        for prediction in answer["predictions"]:
            name = prediction["tag"]["name"]
            assert prediction["confidence"] == pytest.approx(truth[int(name)], abs=1e-5)
