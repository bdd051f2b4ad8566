"""/predict over HTTP: pictures in, annotations out, routines, deployments, hostile pictures."""

import base64
import contextlib
import functools
import gzip
import http.client
import http.server
import io
import json
import resource
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests
from conftest import (
    ROOT,
    FakeDetector,
    FakeServable,
    Rest,
    assert_error,
    bearer,
    config,
    fake_server,
    image_bytes,
    key_entry,
    listening,
    png_header,
    web_server,
)
from PIL import Image

import routines
import serving

pytestmark = pytest.mark.usefixtures("extensions")

AUTH = {"keys": [key_entry("site", "k")]}
KEY = bearer("k")
LABELS = ["cat", "dog"]
PICTURE = np.kron(np.random.default_rng(0).integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(
    np.uint8
)  # 48 x 64, in blocks of 8


def b64(data):
    return base64.b64encode(data).decode()


def detector(**options):
    fake = FakeDetector()
    server = fake_server(
        {"d": fake},
        auth=AUTH,
        deployments=[{"id": "pets", "model": "d", "label_map": LABELS, **options}],
    )
    return server, fake


def with_routines(module):
    """A server of the detector with a module of routines."""
    deployment = {"id": "pets", "model": "d"}
    options = {"deployments": [deployment], "routine_modules": [str(module)]}
    return fake_server({"d": FakeDetector()}, auth=AUTH, **options)


@pytest.fixture
def pets(how):
    return Rest(detector()[0], how)


def post(rest, body, path="/predict", **options):
    return rest.post(path, body, headers={**KEY, **options.pop("headers", {})}, **options)


def expected_box(image):
    red, green, _ = (float(np.float32(value / 255)) for value in image[0, 0].tolist())
    return [[red, green], [red, 1.0], [1.0, 1.0], [1.0, green]]


def test_the_answer_is_the_published_object(pets):
    response = post(pets, {"image_type": "base64", "data": b64(image_bytes(PICTURE))})
    assert response.status_code == 200 and response.headers["Content-Type"] == "application/json"
    best, second = response.json["predictions"]
    tag = 1 + int(PICTURE[0, 0, 2]) % 2
    assert best == {
        "annotationId": 0,
        "bound": expected_box(PICTURE),
        "boundType": "rectangle",
        "confidence": float(np.float32(0.9)),
        "contour": None,
        "contourType": None,
        "tag": {"id": tag, "name": LABELS[tag - 1]},
    }
    assert second["annotationId"] == 1 and second["tag"] == {"id": 2, "name": "dog"}


def test_every_way_to_send_a_picture(pets):
    data, array = image_bytes(PICTURE), io.BytesIO()
    np.save(array, PICTURE)
    bodies = [
        ({"image_type": "base64", "data": b64(data)}, {}),
        ({"image_type": "base_64", "data": base64.encodebytes(data).decode()}, {}),
        ({"image_type": "base64", "data": "data:image/png;base64," + b64(data).rstrip("=")}, {}),
        ({"image_type": "array", "data": PICTURE.tolist()}, {}),
        (data, {"content_type": "image/png"}),
        (data, {"content_type": "application/octet-stream"}),
        (data, {}),
        (array.getvalue(), {"content_type": "application/x-npy"}),
        (array.getvalue(), {}),
    ]
    answers = [post(pets, body, **options) for body, options in bodies]
    for name in ("image", "file"):
        answers.append(
            pets.client.post(
                pets.prefix + "/pets/predict",
                data={name: (io.BytesIO(data), "a.png", "image/png")},
                headers=KEY,
            )
        )
    for response in answers:
        assert response.status_code == 200, response.data
        assert response.json["predictions"][0]["bound"] == expected_box(PICTURE)


FORM = "multipart/form-data; boundary=Xx"
SENT = ('name=image; filename="a.png"', image_bytes(PICTURE))
CHAIN = b'[{"name": "FilterConfidence", "confidence": 0.5}]'


@pytest.mark.parametrize(
    "content_type, parts",
    [
        ("Multipart/Form-Data; Boundary=Xx", [SENT]),
        (FORM, [SENT, ('name=other; filename=""', b"")]),
        (
            FORM,
            [('name=other; filename=""', b""), SENT, ("name=frame", b""), ("name=routines", b"")],
        ),
        (FORM, [("name=image\r\nContent-Type: image/png", image_bytes(PICTURE))]),
        (FORM, [("name=file", image_bytes(PICTURE)), ("name=frame", b"0")]),
        (FORM, [('name=image; filename=""', image_bytes(PICTURE)), ("name=image", b"a caption")]),
        (FORM, [("name=image", b""), ("name=image", image_bytes(PICTURE))]),
    ],
)
def test_forms_as_browsers_and_programs_send_them(content_type, parts):
    rest = Rest(detector()[0])
    response = post(rest, form_of(parts), content_type=content_type)
    assert response.json == post(rest, image_bytes(PICTURE)).json
    chained = form_of([*parts[::-1], ("name=routines", CHAIN)][::-1])
    assert len(post(rest, chained, content_type=content_type).json["predictions"]) == 1


def form_of(parts):
    written = [
        f"--Xx\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in parts
    ]
    return b"".join((*written, b"--Xx--\r\n"))


@pytest.mark.parametrize(
    "content_type, parts, text",
    [
        (
            "multipart/form-data",
            [SENT],
            "multipart: expected a boundary in the content type, got none",
        ),
        (FORM, [('name=image; filename=""', b"")], "multipart: expected a picture..., got: image"),
        (
            FORM,
            [('filename=""', b""), ("", b"x")],
            "multipart: expected a picture..., got: None, None",
        ),
        (FORM, [("name=image", b"a caption")], "not an image of a known format..."),
        (FORM.replace("Xx", "xX"), [SENT], "multipart: the body is not a whole form..."),
    ],
)
def test_wrong_forms_say_what_is_wrong(content_type, parts, text):
    response = post(Rest(detector()[0]), form_of(parts), content_type=content_type)
    assert response.status_code == 400 and fnmatch(response.json["error"], text.replace("...", "*"))


def test_a_picture_that_curl_has_damaged_says_how_to_send_it():
    damaged = image_bytes(PICTURE).replace(b"\r", b"").replace(b"\n", b"")  # by `-d @picture.png`
    rest, curl = Rest(detector()[0]), "application/x-www-form-urlencoded"
    found, other = (post(rest, damaged, content_type=kind) for kind in (curl, "image/png"))
    assert found.status_code == other.status_code == 400
    assert found.json["error"] == other.json["error"] + "; with curl use --data-binary"


@pytest.mark.parametrize(
    "content_type", ["image/png", "multipart/form-data", FORM, "application/octet-stream"]
)
@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b" " * 70 + b"\n"])
def test_json_is_read_whatever_the_content_type_says(content_type, before):
    rest, picture = Rest(detector()[0]), image_bytes(PICTURE)
    body = before + json.dumps({"image_type": "base64", "data": b64(picture)}).encode()
    assert post(rest, body, content_type=content_type).json == post(rest, picture).json


@pytest.mark.parametrize(
    "content_type, body, chained",
    [
        (
            None,
            {"image_type": "base64", "data": b64(image_bytes(PICTURE))},
            {"routines": json.loads(CHAIN)},
        ),
        (FORM, form_of([SENT]), form_of([SENT, ("name=routines", CHAIN)])),
    ],
)
def test_routines_in_the_url_are_for_every_body_that_has_none(content_type, body, chained):
    rest = Rest(detector()[0])
    chained = {**body, **chained} if isinstance(body, dict) else chained
    asked = {"content_type": content_type, "query_string": {"routines": CHAIN.decode()}}
    found = post(rest, body, **asked).json["predictions"]
    assert found == post(rest, chained, content_type=content_type).json["predictions"] != []
    assert len(found) == 1
    both = "routines: expected in the body or in the URL, got both"
    assert_error(post(rest, chained, **asked), 400, both)


@pytest.mark.parametrize("chain", [{}, 0, False, "", {"name": "TopK"}])
def test_routines_of_another_type_than_a_list_are_refused(chain):
    rest = Rest(detector()[0])
    body = {"image_type": "base64", "data": b64(image_bytes(PICTURE))}
    text = "routines: expected a list of routines, got "
    assert_error(post(rest, {**body, "routines": chain}), 400, text + "...")
    form = form_of([SENT, ("name=routines", json.dumps(chain).encode())])
    assert_error(post(rest, form, content_type=FORM), 400, text + "...")
    asked = {"query_string": {"routines": json.dumps(chain)}}
    assert_error(post(rest, body, **asked), 400, text + "...")
    for none in (None, []):
        assert post(rest, {**body, "routines": none}).json == post(rest, body).json


def test_routines_of_a_form_that_are_no_json_are_named():
    form = form_of([SENT, ("name=routines", b"nope")])
    answer = post(Rest(detector()[0]), form, content_type=FORM)
    assert_error(answer, 400, "routines in the form: JSON Parse error: ...")


def test_a_form_may_be_packed(pets):
    form = requests.Request(
        "POST", "http://x/", files={"image": ("a.png", image_bytes(PICTURE))}
    ).prepare()
    response = pets.client.post(
        pets.prefix + "/predict",
        data=gzip.compress(form.body, mtime=0),
        headers={**KEY, "Content-Encoding": "gzip"},
        content_type=form.headers["Content-Type"],
    )
    assert response.json == post(pets, image_bytes(PICTURE)).json


def test_a_damaged_form_is_told_as_a_form(pets):
    form = b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nx'
    answer = post(pets, form, content_type="multipart/form-data; boundary=other")
    text = "multipart: the body is not a whole form with the boundary of the content type"
    assert_error(answer, 400, text)
    undeclared = post(pets, form, content_type="application/octet-stream")
    assert undeclared.status_code == 400 and "JSON" not in undeclared.json["error"]


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "gzip, gzip"])
def test_a_coding_that_cannot_be_undone_is_refused(pets, coding):
    answer = post(pets, image_bytes(PICTURE), headers={"Content-Encoding": coding})
    wanted = "Content-Encoding: expected gzip, deflate or identity, got "
    assert_error(answer, 415, wanted + repr(coding))
    assert answer.headers["Accept-Encoding"] == "gzip, deflate"  # RFC 9110, 12.5.3
    meant = post(pets, image_bytes(PICTURE), headers={"Content-Encoding": "UTF-8"})
    assert meant.status_code == 200, "some clients send a charset there"


@pytest.mark.parametrize("how_sent", ["json", "flat", "multipart", "query"])
def test_every_way_to_send_routines(pets, how_sent):
    chain, data = (
        [{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}],
        image_bytes(PICTURE),
    )
    if how_sent == "multipart":
        response = pets.client.post(
            pets.prefix + "/predict",
            data={"image": (io.BytesIO(data), "a.png"), "routines": json.dumps(chain)},
            headers=KEY,
        )
    elif how_sent == "query":
        response = post(pets, data, "/predict", query_string={"routines": json.dumps(chain)})
    else:
        chain = [{"name": "FilterConfidence", "confidence": 0.5}] if how_sent == "flat" else chain
        response = post(pets, {"image_type": "base64", "data": b64(data), "routines": chain})
    assert [p["confidence"] for p in response.json["predictions"]] == [float(np.float32(0.9))]


def test_eight_orientations_of_a_picture_give_the_same_boxes(pets):
    turned = [
        PICTURE,
        PICTURE[:, ::-1],
        PICTURE[::-1, ::-1],
        PICTURE[::-1],
        PICTURE.transpose(1, 0, 2),
        np.rot90(PICTURE),
        np.rot90(PICTURE.transpose(1, 0, 2), 2),
        np.rot90(PICTURE, -1),
    ]
    answers = []
    for orientation, stored in enumerate(turned, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        answers.append(post(pets, image_bytes(stored, exif=exif)).json)
    assert all(answer == answers[0] for answer in answers) and answers[0]["predictions"][0][
        "bound"
    ] == expected_box(PICTURE)


def test_coco_and_drawn_pictures(pets):
    data = image_bytes(PICTURE)
    coco = post(pets, data, "/pets/predict", query_string={"format": "coco"}).json
    assert coco["images"] == [{"id": 1, "width": 64, "height": 48, "file_name": "image"}]
    assert (
        coco["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        and len(coco["annotations"]) == 2
    )
    (xmin, ymin), _, (xmax, ymax), _ = expected_box(PICTURE)
    assert coco["annotations"][0]["bbox"] == pytest.approx(
        [xmin * 64, ymin * 48, (xmax - xmin) * 64, (ymax - ymin) * 48]
    )
    for accept, form in (
        ("image/png", "PNG"),
        ("image/jpeg", "JPEG"),
        ("image/jpeg, */*;q=0.1", "JPEG"),
        ("IMAGE/PNG", "PNG"),
        ("image/png;q=0.2, image/jpeg;q=0.9, application/json;q=0.5", "JPEG"),
        ("application/json;q=0, image/png", "PNG"),
    ):
        response = post(pets, data, headers={"Accept": accept})
        assert response.headers["Content-Type"] == f"image/{form.lower()}"
        drawn = Image.open(io.BytesIO(response.data))
        assert drawn.format == form and drawn.size == (64, 48)
    for accept in (
        "application/json",
        "*/*",
        "text/html,application/xhtml+xml,image/avif,*/*;q=0.8",
        "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2",  # Java's HttpURLConnection
        "image/png;q=0",
        "image/png;q=0.5, application/json",
    ):
        assert (
            post(pets, data, headers={"Accept": accept}).headers["Content-Type"]
            == "application/json"
        )
    response = post(pets, data, query_string={"format": "pdf"})
    assert (
        response.status_code == 400
        and response.json["error"] == "format: expected json, coco, png or jpeg, got 'pdf'"
    )


def test_warnings_stand_in_the_head_of_a_drawn_picture(pets):
    for name in ("猫\r\nSet-Cookie: a=b", "cta"):
        chain = [{"name": "FilterClass", "arguments": {"class_name": [name, "cat"]}}]
        asked = {"query_string": {"routines": json.dumps(chain)}}
        told = post(pets, image_bytes(PICTURE), **asked)
        drawn = post(pets, image_bytes(PICTURE), headers={"Accept": "image/png"}, **asked)
        assert drawn.headers["Content-Type"] == "image/png"
        assert json.loads(drawn.headers["X-Warnings"]) == told.json["warnings"]
        assert len(told.json["warnings"]) == 1 and "X-Warnings" not in told.headers
        assert drawn.headers["X-Warnings"].isascii() and "Set-Cookie" not in drawn.headers
    many = [f"class {'x' * 60} {number}" for number in range(200)]
    chain = [{"name": "FilterClass", "class_name": many}] * 60
    drawn = post(
        pets,
        {"image_type": "base64", "data": b64(image_bytes(PICTURE)), "routines": chain},
        headers={"Accept": "image/png"},
    )
    assert 30 <= len(json.loads(drawn.headers["X-Warnings"])) < 600
    assert len(drawn.headers["X-Warnings"]) <= 4000
    assert (
        "X-Warnings"
        not in post(pets, image_bytes(PICTURE), headers={"Accept": "image/png"}).headers
    )


def test_classes_are_the_label_map(pets):
    response = pets.get("/pets/classes", headers=KEY)
    assert response.json == {"1": {"id": 1, "name": "cat"}, "2": {"id": 2, "name": "dog"}}
    assert pets.get("/classes", headers=KEY).json == response.json


@pytest.mark.parametrize(
    "chain, text",
    [
        (
            [{"name": "Nothing"}],
            "routines[0].name: there is no routine 'Nothing'; expected one of: ActiveLearning, ",
        ),
        (
            [{"name": "FilterConfidense"}],
            "routines[0].name: there is no routine 'FilterConfidense'; did you mean 'FilterConfidence'?",
        ),
        (
            [{"name": "Grayscale"}, {"name": "FilterConfidence"}],
            "routines[1].arguments: missing key 'confidence': 0..1",
        ),
        (
            [{"name": "FilterConfidence", "arguments": {"confidence": 1.5}}],
            "routines[0].arguments.confidence: expected at most 1, got 1.5",
        ),
        (
            [{"name": "FilterConfidence", "arguments": {"confidence": "0.5"}}],
            "routines[0].arguments.confidence: expected number, got string '0.5'",
        ),
        (
            [{"name": "FilterConfidence", "arguments": {"confidence": True}}],
            "routines[0].arguments.confidence: expected number, got boolean True",
        ),
        (
            [{"name": "FilterConfidence", "arguments": {"confidence": 0.5, "iou": 1}}],
            "routines[0].arguments.iou: unknown key; expected one of: confidence",
        ),
        (
            [{"name": "Histogram", "arguments": {"bins": 2, "ranges": [1]}}],
            "routines[0].arguments: give 'bins' or 'ranges', not both",
        ),
        (
            [{"name": "FilterClass", "arguments": {"class_name": [1]}}],
            "routines[0].arguments.class_name[0]: expected string, got integer 1",
        ),
        (
            [{"name": "FilterClass", "arguments": [1]}],
            "routines[0].arguments: expected an object, got array",
        ),
        ("FilterClass", "routines: expected a list of routines, got string 'FilterClass'"),
        ([3], "routines[0]: expected an object"),
        ([{}], "routines[0]: expected an object"),
        ([{"name": 1}], "routines[0].name: expected string, got integer 1"),
        (
            [{"name": "Grayscale", "arguments": []}],
            "routines[0].arguments: expected an object, got array",
        ),
        ([{"name": "Grayscale"}] * 65, "routines: expected at most 64 routines, got 65"),
    ],
)
def test_wrong_routines_are_named(pets, chain, text):
    response = post(pets, {"image_type": "array", "data": [[1]], "routines": chain})
    assert_error(response, 400, text + "...")
    assert response.json["status"] == "BadRequest" and response.json["code"] == 400


def test_order_of_the_chain_matters(pets):
    """Histogram before the filter counts both, after it one."""

    def counted(*names):
        chain = {
            "H": {"name": "Histogram"},
            "F": {"name": "FilterConfidence", "arguments": {"confidence": 0.5}},
        }
        answer = post(
            pets,
            {
                "image_type": "array",
                "data": [[[9, 9, 1]]],
                "routines": [chain[name] for name in names],
            },
        ).json
        return len(answer["predictions"]), sum(answer["histogram"]["classes"].values())

    assert counted("H", "F") == (1, 2) and counted("F", "H") == (1, 1)


def test_deployments_own_routines_run_first():
    rest = Rest(detector(routines=[{"name": "FilterConfidence", "confidence": 0.5}])[0])
    answer = post(
        rest, {"image_type": "array", "data": [[[9, 9, 1]]], "routines": [{"name": "Histogram"}]}
    ).json
    assert sum(answer["histogram"]["classes"].values()) == 1


def test_routines_before_the_model_change_what_it_is_shown():
    server, fake = detector(routines=[{"name": "Resize", "arguments": {"width": 32}}])
    post(
        Rest(server),
        {
            "image_type": "array",
            "data": PICTURE.tolist(),
            "routines": [{"name": "Grayscale"}, {"name": "Crop", "xmax": 0.5}],
        },
    )
    assert fake.shown[-1].shape == (1, 24, 16, 3) and (np.ptp(fake.shown[-1], axis=3) == 0).all()


def test_the_vendors_real_call_is_reproduced():
    """90 predictions of a real call go in as a model's outputs; the entropies it answered come out."""
    call = json.loads((ROOT / "tests/data/datature_blood_cells.json").read_text())
    found = call["predict_response"]["predictions"]
    labels = {str(p["tag"]["id"]): p["tag"]["name"] for p in found}
    fake = FakeDetector()
    fake.answer = None
    boxes = [
        [p["bound"][0][1], p["bound"][0][0], p["bound"][2][1], p["bound"][2][0]] for p in found
    ]
    outputs = {
        "detection_boxes": np.array([boxes], np.float32),
        "detection_classes": np.array([[p["tag"]["id"] for p in found]], np.float32),
        "detection_scores": np.array([[p["confidence"] for p in found]], np.float32),
        "num_detections": np.array([len(found)], np.float32),
    }
    fake.run = lambda name, inputs, trace=serving.UNTRACED: outputs
    rest = Rest(
        fake_server(
            {"d": fake}, auth=AUTH, deployments=[{"id": "cells", "model": "d", "label_map": labels}]
        )
    )
    picture = {"image_type": "base_64", "data": b64(image_bytes(PICTURE))}
    assert len(found) == 90 and post(rest, picture).json["predictions"] == found
    answer = post(rest, {**picture, "routines": call["request"]["routines"]}).json
    published = next(
        value for value in call.values() if isinstance(value, dict) and "avgEntropy" in value
    )
    assert answer.keys() == published.keys() and answer["avgEntropy"] == pytest.approx(
        published["avgEntropy"], abs=2e-6
    )
    assert answer["avgPerClass"] == pytest.approx(published["avgPerClass"], abs=2e-6)


def test_most_detections(how):
    rest = Rest(detector(max_detections=1, version_tag="2026-11")[0], how)
    response = post(rest, image_bytes(PICTURE))
    assert len(response.json["predictions"]) == 1 and response.headers["X-Version-Tag"] == "2026-11"


# --- deployments that are not there ---------------------------------------------------------------------------


def test_unknown_deployment_and_no_deployment(pets):
    response = post(pets, image_bytes(PICTURE), "/cars/predict")
    assert_error(response, 404, "There is no deployment 'cars'; there are: pets")
    assert response.json["status"] == "NotFound"
    assert_error(
        post(Rest(fake_server({}, auth=AUTH)), image_bytes(PICTURE)),
        404,
        "There is no deployment: the config has none under 'deployments'",
    )
    assert pets.get("/pets/predict", headers=KEY).status_code == 405


def test_a_url_may_ask_for_another_version_of_the_model(tmp_path):
    """Versions 1 and 2 of a classifier see opposite classes; the deployment is of version 1."""
    for number, scores in ((1, [0.9, 0.1]), (2, [0.2, 0.8])):
        save_constant_classifier(tmp_path / "m" / str(number), scores)
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    model = {
        "name": "m",
        "base_path": str(tmp_path / "m"),
        "model_version_policy": {"all": {}},
        "version_labels": {"canary": 2},
    }
    server = serving.ModelServer(
        {
            "model_config_list": [{"config": model}],
            "deployments": [{"id": "d", "model": "m", "version": 1, "label_map": str(labels)}],
            "auth": AUTH,
        }
    )
    client = serving.create_app(server).test_client()
    assert server.wait(60)

    def best(query):
        answer = client.post(
            f"/d/predict{query}", data=image_bytes(PICTURE), headers=KEY
        ).get_json()
        return answer["predictions"][0]["tag"]["name"]

    try:
        assert [best(q) for q in ("", "?version=1", "?version=2", "?version_label=canary")] == [
            "cat",
            "cat",
            "dog",
            "dog",
        ]
        for query, status, text in (
            ("?version=x", 400, "version: expected a number, got 'x'"),
            ("?version=2&version_label=canary", 400, "expected version or version_label, got both"),
            ("?version=7", 404, "Specific(m, 7)"),
            ("?version_label=none", 400, "none"),
        ):
            answer = client.post(f"/d/predict{query}", data=image_bytes(PICTURE), headers=KEY)
            assert answer.status_code == status and text in answer.get_json()["error"]
    finally:
        server.stop()


def save_constant_classifier(folder, scores):
    """A softmax over the logits whose softmax is `scores`, whatever the picture."""
    import tensorflow as tf

    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 3], tf.float32, "image")])
    def classify(image):
        logits = tf.math.log(tf.constant([scores])) + 0.0 * image[:, 0, 0, :1]
        return {"probabilities": tf.nn.softmax(logits)}

    tf.saved_model.save(module, str(folder), signatures=classify)


def test_the_default_deployment_is_the_one_so_marked_or_the_first():
    deployments = [
        {"id": "a", "model": "d", "label_map": ["a"]},
        {"id": "b", "model": "d", "label_map": ["b"]},
    ]
    assert (
        Rest(fake_server({"d": FakeDetector()}, auth=AUTH, deployments=deployments))
        .get("/classes", headers=KEY)
        .json["1"]["name"]
        == "a"
    )
    deployments[1]["default"] = True
    assert (
        Rest(fake_server({"d": FakeDetector()}, auth=AUTH, deployments=deployments))
        .get("/classes", headers=KEY)
        .json["1"]["name"]
        == "b"
    )
    deployments[0]["default"] = True
    with pytest.raises(
        serving.ConfigError,
        match=r"deployments\[1\].default: deployments\[0\] is the default already",
    ):
        serving.load_config(config(deployments=deployments))


@pytest.mark.extended
def test_a_deployment_of_a_missing_model_is_reported_everywhere(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(deployments=[{"id": "pets", "model": "gone"}], auth=AUTH)))
    assert serving.main(["--check", "--config", str(path)]) == 2
    assert "wrong: $.deployments[0].model: no model is called 'gone'" in capsys.readouterr().out
    server = serving.ModelServer(path)
    assert server.wait(10)
    rest = Rest(server)
    assert_error(rest.get("/readyz"), 503, "Not ready: deployment pets (no model is called 'gone')")
    response = post(rest, image_bytes(PICTURE))
    assert_error(
        response,
        503,
        "Deployment 'pets' is not available: model 'gone': Servable not found for request: Latest(gone)",
    )
    assert response.headers["Retry-After"] and response.json["status"] == "InternalServerError"


def test_a_model_that_cannot_be_loaded_says_so_at_predict(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    server = serving.ModelServer(
        config(
            {"name": "m", "base_path": str(tmp_path / "m")},
            deployments=[{"id": "pets", "model": "m"}],
            auth=AUTH,
        )
    )
    response = post(Rest(server), image_bytes(PICTURE))
    assert_error(
        response,
        503,
        "Deployment 'pets' is not available: model 'm': SavedModel file does not exist...",
    )


def test_a_model_that_takes_no_pictures_says_so():
    rest = Rest(
        fake_server({"m": FakeServable()}, auth=AUTH, deployments=[{"id": "numbers", "model": "m"}])
    )
    assert_error(
        post(rest, image_bytes(PICTURE)),
        400,
        "Deployment 'numbers' takes no pictures: input 'x' is no picture: expected [1, H, W, 3]...",
    )


@pytest.mark.extended
@pytest.mark.parametrize(
    "pin, text",
    [
        (
            {"version": 99},
            "$.deployments[0].version: version 99 of shapes is not served; there are: [1]",
        ),
        (
            {"version_label": "x"},
            "$.deployments[0].version_label: shapes has no label 'x'; there are: []",
        ),
    ],
)
def test_check_sees_a_pinned_version_that_is_not_there(tmp_path, capsys, pin, text):
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            config(
                {"name": "shapes", "base_path": str(ROOT / "models/shapes")},
                deployments=[{"id": "x", "model": "shapes", **pin}],
            )
        )
    )
    assert serving.main(["--check", "--config", str(path)]) == 2
    assert f"wrong: {text}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "deployment, text",
    [
        (
            {"label_map": 3},
            "$.deployments[0].label_map: expected string or object or array, got integer 3",
        ),
        ({"label_map": ""}, "$.deployments[0].label_map: expected names of the classes: a file"),
        (
            {"family": "yoloo"},
            "$.deployments[0].family: there is no family 'yoloo'; did you mean 'yolo'?",
        ),
        (
            {"routines": [{"name": "X"}]},
            "$.deployments[0].routines[0].name: there is no routine 'X'",
        ),
        (
            {"routines": [{"name": "FilterIOU", "iou": 3}]},
            "$.deployments[0].routines[0].arguments.iou: expected at most 1, got 3",
        ),
        (
            {"active_learning": {"threshold": 2}},
            "$.deployments[0].active_learning.threshold: expected at most 1, got 2",
        ),
        (
            {"active_learning": {"threshold": 0.5, "group": "a b"}},
            "$.deployments[0].active_learning.group: expected the folder its pictures go to: up to "
            "100 letters, digits, '_', '-' and '.',",
        ),
        (
            {"version": 1, "version_label": "a"},
            "$.deployments[0]: give 'version' or 'version_label', not both",
        ),
        ({"id": "v1"}, "$.deployments[0].id: expected its name in URLs"),
        ({"id": "v1\n"}, "$.deployments[0].id: expected its name in URLs"),
        ({"version_tag": "x\n"}, "$.deployments[0].version_tag: expected a name of your own"),
        (
            {"version_tag": "café"},
            "$.deployments[0].version_tag: expected a name of your own for this version, printable "
            "ASCII, in the X-Version-Tag header of its answers; got 'café'",
        ),
        ({"layout": "HWC\n"}, "$.deployments[0].layout: expected the input's dimensions"),
        ({"lable_map": []}, "$.deployments[0].lable_map: unknown key; did you mean 'label_map'?"),
    ],
)
def test_wrong_deployments_in_the_config(deployment, text):
    with pytest.raises(serving.ConfigError) as raised:
        serving.ModelServer(config(deployments=[{"id": "pets", "model": "d", **deployment}]))
    assert raised.value.message.startswith(text)


@pytest.mark.extended
@pytest.mark.parametrize(
    "label_map, text",
    [
        (str(ROOT / "models/shapes/samples/0.jpg"), "expected a text file (.pbtxt, JSON, ..."),
        ("none.pbtxt", "No such file or directory: none.pbtxt"),
        (str(ROOT), f"Is a directory: {ROOT.name}"),
        ({"cat": "0"}, "expected {\"1\": \"name\"} or a list of names, got 'cat': '0'"),
    ],
)
def test_a_wrong_label_map_fails_its_deployment_alone(
    how, tmp_path, capsys, caplog, label_map, text
):
    wanted = config(
        "d",
        deployments=[
            {"id": "wrong", "model": "d", "label_map": label_map},
            {"id": "pets", "model": "d", "label_map": ["cat", "dog"]},
        ],
    )
    place = f"$.deployments[0].label_map: {text}"
    server = serving.ModelServer(
        wanted,
        load=lambda folder, model: FakeDetector(),
        list_versions=lambda base_path: {1: Path(base_path) / "1"},
    )
    assert server.wait(10)
    client, key = Rest(server, how), bearer(server.generated_key)
    assert client.get("/pets/classes", headers=key).status_code == 200
    for answer in (
        client.get("/wrong/classes", headers=key),
        client.post("/wrong/predict", b"", headers=key),
        client.post("/predict", b"", headers=key),
    ):
        wrong = f"Deployment 'wrong' is not available: {place}"
        assert answer.status_code == 503 and str(ROOT) not in answer.json["error"]
        assert answer.json["error"].startswith(wrong.removesuffix("..."))
    shown = client.get("/deployments", headers=key).json["deployments"]
    assert [one["state"] for one in shown] == ["failed", "ready"]
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert f"deployment wrong ({place.removesuffix('...')}" in ready.json["error"]
    assert place.removesuffix("...") in caplog.text
    status, body = server.reload()
    assert status == 500 and body["details"][0].startswith(place.removesuffix("..."))
    (tmp_path / "config.json").write_text(json.dumps(wanted))
    serving.main(["--check", "--config", str(tmp_path / "config.json")])
    assert f"wrong: {place.removesuffix('...')}" in capsys.readouterr().out


def test_a_label_map_that_is_mended_is_read_at_the_next_reload(tmp_path):
    deployment = {"id": "pets", "model": "d", "label_map": "names.txt"}
    (tmp_path / "config.json").write_text(json.dumps(config("d", deployments=[deployment])))
    server = serving.ModelServer(
        tmp_path / "config.json",
        load=lambda folder, model: FakeDetector(),
        list_versions=lambda base_path: {1: Path(base_path) / "1"},
    )
    assert server.wait(10) and server.readiness() and server.reload()[0] == 500
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert server.reload()[0] == 201 and not server.readiness()
    classes = Rest(server).get("/pets/classes", headers=bearer(server.generated_key)).json
    assert "cat" in json.dumps(classes)
    assert server.reload()[0] == 200
    (tmp_path / "names.txt").write_text("cow\ndog\nhen\n")
    server.manager.refresh(polling=True)
    assert "cat" in server.prepared.deployments["pets"].labels.values()  # until somebody asks
    assert server.reload()[0] == 201
    assert "cow" in server.prepared.deployments["pets"].labels.values()
    (tmp_path / "names.txt").unlink()
    assert server.reload()[0] == 500 and server.readiness()


def test_routine_modules_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom routines import argument, keep, routine\n\n\n@routine()\nclass KeepRight:\n"
        "    limit: float = argument(0.5, '0..1', minimum=0, maximum=1)\n\n    def __call__(self, tensors):\n"
        "        return keep(tensors, tensors['boxes'][:, 1] >= self.limit)\n"
    )
    (tmp_path / "config.json").write_text(
        json.dumps(config(deployments=[], routine_modules=["mine.py"]))
    )
    assert "KeepRight" in serving.ModelServer(tmp_path / "config.json").prepared.routines
    rest = Rest(with_routines(tmp_path / "mine.py"))
    body = {
        "image_type": "array",
        "data": [[[200, 9, 1]]],
        "routines": [{"name": "KeepRight", "limit": 0.7}],
    }
    assert len(post(rest, body).json["predictions"]) == 1
    body["routines"] = [{"name": "KeepRight", "limit": 7}]
    assert_error(post(rest, body), 400, "routines[0].arguments.limit: expected at most 1, got 7")
    (tmp_path / "broken.py").write_text("import nothing_of_that_name")
    with pytest.raises(
        serving.ConfigError,
        match=r"\$.routine_modules\[0\]: ModuleNotFoundError: No module named 'nothing_of_that_name'",
    ):
        serving.ModelServer(config(routine_modules=[str(tmp_path / "broken.py")]))


OWN_FILTER = """
from routines import argument, keep, routine

@routine()
class FilterConfidence:
    confidence: float = argument(0.5, "0..1", minimum=0, maximum=1)

    def __call__(self, tensors):
        return keep(tensors, tensors["scores"] < 0)
"""
FILTERED = {
    "image_type": "array",
    "data": [[[200, 9, 1]]],
    "routines": [{"name": "FilterConfidence", "confidence": 0}],
}


@pytest.mark.extended
@pytest.mark.parametrize("named", [str, lambda path: path.stem])
def test_a_server_keeps_its_routines_from_others_in_its_process(tmp_path, monkeypatch, named):
    """Two servers with a module each, and one that was there before: each has its own filter."""
    before = Rest(detector()[0])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_filters.py").write_text(OWN_FILTER)
    for _ in range(2):
        own = Rest(with_routines(named(tmp_path / "own_filters.py")))
        assert post(own, FILTERED).json["predictions"] == []
        shown = own.get("/deployments", headers=KEY).json["routines"]
        filters = [item for item in shown if item["name"] == "FilterConfidence"]
        assert [item["arguments"][0]["default"] for item in filters] == [0.5]
        for rest in (before, Rest(detector()[0])):
            assert len(post(rest, FILTERED).json["predictions"]) == 2
            assert rest.get("/deployments", headers=KEY).json["routines"] != shown
    sys.modules.pop("own_filters", None)


@pytest.mark.extended
def test_an_edited_file_of_routines_is_run_again_with_the_next_config(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN_FILTER)
    server = with_routines(path)
    first = server.prepared.routines["FilterConfidence"]
    server.endpoint("/again")(lambda value: value)
    assert server.prepared.routines["FilterConfidence"] is first
    path.write_text(OWN_FILTER.replace("< 0", ">= 0"))
    server.endpoint("/once/more")(lambda value: value)
    assert server.prepared.routines["FilterConfidence"] is not first
    assert len(post(Rest(server), FILTERED).json["predictions"]) == 2


def test_no_routine_of_the_process_takes_the_name_of_a_built_in_one():
    with pytest.raises(ValueError, match="FilterIOU: this name is built in"):

        @routines.routine("FilterIOU")
        class Another:
            pass

    assert routines.ROUTINES["FilterIOU"].__module__ == "routines"
    routines.DECLARED.pop("Another", None)


def test_a_routine_that_fails_is_a_500_with_a_request_id(caplog):
    @routines.routine()
    class Fails:
        def __call__(self, tensors):
            raise RuntimeError("secret")

    response = post(
        Rest(detector()[0]), {"image_type": "array", "data": [[1]], "routines": [{"name": "Fails"}]}
    )
    assert (
        response.status_code == 500
        and "secret" not in response.json["error"]
        and response.json["request_id"] in response.json["error"]
    )
    assert (
        f"{response.json['request_id']}: POST /predict failed" in caplog.text
        and "secret" in caplog.text
    )
    del routines.ROUTINES["Fails"]


# --- families of outputs, from SavedModels ----------------------------------------------------------------------

MASK = np.zeros((1, 1, 8, 8), np.float32)
MASK[..., 2:6, 2:6] = 1
BOX = [0.25, 0.125, 0.75, 0.625]  # ymin, xmin, ymax, xmax
BOUND = [[0.125, 0.25], [0.125, 0.75], [0.625, 0.75], [0.625, 0.25]]
PLANES = np.zeros((1, 8, 8, 3), np.float32)
PLANES[..., 0], PLANES[0, 2:6, 1:5, 0], PLANES[0, 2:6, 1:5, 2] = 1, 0, 1
FAMILIES = {  # outputs, best prediction's bound, class, confidence, and whether it has a contour
    "detection_api": (
        {
            "detection_boxes": [[BOX]],
            "detection_scores": [[0.75]],
            "detection_classes": [[2.0]],
            "num_detections": [1.0],
            "detection_masks": MASK,
        },
        BOUND,
        2,
        0.75,
        True,
    ),
    "detector": (
        {"output_0": [[[*BOX, 0.75, 2, 1], [*BOX, 0.5, 2, 1], [*BOX, 0.875, 1, 0]]]},
        BOUND,
        2,
        0.75,
        False,
    ),
    "mask_rcnn": (
        {"output_1": [[0.75]], "output_2": [[1.0]], "output_3": [[BOX]], "output_4": MASK},
        BOUND,
        2,
        0.75,
        True,
    ),
    "segmentation": (
        {"planes": PLANES},
        [[0.125, 0.25], [0.125, 0.75], [0.625, 0.75], [0.625, 0.25]],
        2,
        1.0,
        True,
    ),
    "classifier": ({"probabilities": [[0.25, 0.75]]}, None, 2, 0.75, False),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "string"])
def test_families_of_outputs_from_saved_models(tf, tmp_path, family, dtype):
    outputs, bound, number, confidence, has_contour = FAMILIES[family]
    shape = [None] if dtype == "string" else [1, 32, 32, 3]
    told = {"input": "encoded"} if dtype == "string" else {}  # its graph decodes nothing

    @tf.function(input_signature=[tf.TensorSpec(shape, getattr(tf, dtype), name="image")])
    def see(image):
        image = tf.io.decode_image(image[0]) if dtype == "string" else image
        nothing = tf.cast(tf.size(image) * 0, tf.float32)
        found = {
            name: tf.constant(np.array(value, np.float32)) + nothing
            for name, value in outputs.items()
        }
        if family in ("segmentation", "classifier"):  # confidences, and the graph says so
            return {name: tf.nn.softmax(tf.math.log(value)) for name, value in found.items()}
        return found

    module = tf.Module()
    module.see = see
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=see)
    server = serving.ModelServer(
        config(
            {"name": "m", "base_path": str(tmp_path)},
            auth=AUTH,
            deployments=[{"id": "x", "model": "m", "label_map": LABELS, **told}],
        )
    )
    answer = post(Rest(server), image_bytes(PICTURE)).json["predictions"]
    server.stop()
    assert len(answer) == (2 if family == "classifier" else 1)
    best = answer[0]
    assert best["tag"] == {"id": number, "name": "dog"}
    assert best["confidence"] == pytest.approx(confidence)
    assert best["bound"] == (
        pytest.approx(bound)
        if bound is None
        else [pytest.approx(point, abs=1e-6) for point in bound]
    )
    assert best["boundType"] == ("masks" if has_contour else "rectangle" if bound else None)
    if family in ("detection_api", "mask_rcnn"):
        assert_redrawn(best["contour"], MASK[0, 0], BOX)


def assert_redrawn(contour, mask, box, width=64, height=48):
    """A polygon drawn again overlaps its mask, placed in its box, with an IoU of at least 0.95."""
    ymin, xmin, ymax, xmax = box
    fine = 16  # drawn on a finer grid, so that the grid itself costs nothing
    truth = np.zeros((height * fine, width * fine), np.uint8)
    rows, columns = (
        slice(int(ymin * height * fine), int(ymax * height * fine)),
        slice(int(xmin * width * fine), int(xmax * width * fine)),
    )
    placed = (
        cv2.resize(
            mask,
            (columns.stop - columns.start, rows.stop - rows.start),
            interpolation=cv2.INTER_LINEAR,
        )
        >= 0.5
    )
    truth[rows, columns] = placed
    drawn = np.zeros_like(truth)
    cv2.fillPoly(
        drawn,
        [np.rint(np.array(contour) * [width * fine, height * fine] - 0.5).astype(np.int32)],
        1,
    )
    assert (truth & drawn).sum() / (truth | drawn).sum() >= 0.95


@pytest.mark.parametrize("sample", range(10))
def test_samples_of_the_demo_have_masks_that_fit_their_polygons(demo, sample):
    """The polygons of /predict against the masks that :predict answers for the very same picture."""
    image = np.asarray(Image.open(ROOT / f"models/shapes/samples/{sample}.jpg").convert("RGB"))
    data = (ROOT / f"models/shapes/samples/{sample}.jpg").read_bytes()
    height, width = image.shape[:2]
    raw = demo.predict("shapes", {"instances": [data]})["predictions"][0]
    scores = np.asarray(raw["detection_scores"])
    answer = demo.predict_image(data)["predictions"]
    assert len(answer) == (scores >= np.float32(0.3)).sum() > 0
    for annotation, index in zip(answer, np.argsort(-scores, kind="stable")):
        assert annotation["confidence"] == float(scores[index])
        assert_redrawn(
            annotation["contour"],
            np.asarray(raw["detection_masks"][index], np.float32),
            np.clip(raw["detection_boxes"][index], 0, 1),
            width,
            height,
        )


def test_no_detections_everywhere(how):
    server, fake = detector()
    fake.run = lambda name, inputs, trace=serving.UNTRACED: {
        "detection_boxes": np.zeros((1, 0, 4), np.float32),
        "detection_classes": np.zeros((1, 0), np.float32),
        "detection_scores": np.zeros((1, 0), np.float32),
        "num_detections": np.zeros(1, np.float32),
    }
    rest, body = Rest(server, how), {"image_type": "array", "data": [[1]]}
    names = [name for name, kind in routines.ROUTINES.items() if kind.__module__ == "routines"]
    arguments = {
        "FilterConfidence": {"confidence": 0},
        "FilterIOU": {"iou": 0},
        "FilterClass": {"class_name": "cat"},
        "ExcludeClass": {"class_name": "cat"},
        "Resize": {"width": 3},
    }
    for name in names:
        answer = post(
            rest, {**body, "routines": [{"name": name, "arguments": arguments.get(name, {})}]}
        ).json
        assert answer.get("predictions", []) == [] and answer.get("avgEntropy", 0) == 0, name
    assert post(rest, body, query_string={"format": "coco"}).json["annotations"] == []
    assert post(rest, body, headers={"Accept": "image/png"}).headers["Content-Type"] == "image/png"


# --- hostile pictures -----------------------------------------------------------------------------------------


class Pictures(http.server.BaseHTTPRequestHandler):
    """/good is a picture, /to?<url> redirects, /slow never ends, /large is 60 MB."""

    def do_GET(self):
        self.send_response(302 if self.path.startswith("/to?") else 200)
        if self.path.startswith("/to?"):
            self.send_header("Location", self.path[4:])
        self.end_headers()
        with contextlib.suppress(OSError):  # the client hangs up
            if self.path == "/slow":
                for _ in range(100):
                    self.wfile.write(b".")
                    time.sleep(0.1)
            self.wfile.write(
                image_bytes(PICTURE)
                if self.path == "/good"
                else b"x" * (60 << 20)
                if self.path == "/large"
                else b""
            )

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pictures():
    with web_server(Pictures) as port:
        yield port


def fetching(**images):
    return Rest(
        fake_server(
            {"d": FakeDetector()},
            auth=AUTH,
            deployments=[{"id": "pets", "model": "d"}],
            server={"file_system_poll_wait_seconds": 0, "images": images},
        )
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{}/good",
        "http://[::1]:{}/good",
        "http://[::ffff:127.0.0.1]:{}/good",
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433:{}/good",
        "http://0x7f000001:{}/good",
        "http://0177.0.0.1:{}/good",
        "http://127.1:{}/good",
        "http://0:{}/good",
        "http://localhost:{}/good",
        "http://localhost.:{}/good",
        "http://0.0.0.0:{}/good",
        "http://10.0.0.1/",
        "http://172.16.0.1/",
        "http://192.168.1.1/",
        "http://100.64.0.1/",
        "http://224.0.0.1/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
    ],
)
def test_urls_inside_are_refused(pictures, url):
    response = post(fetching(), {"image_type": "url", "data": url.replace("{}", str(pictures))})
    assert response.status_code == 400
    assert (
        "is not a public address" in response.json["error"]
        or "is not known" in response.json["error"]
    ), response.json


def test_allowed_host_is_fetched_but_not_what_it_redirects_to(pictures):
    rest = fetching(allowed_hosts=["127.0.0.1"])
    good = post(rest, {"image_type": "url", "data": f"http://127.0.0.1:{pictures}/good"})
    assert good.json["predictions"][0]["bound"] == expected_box(PICTURE)
    away = post(
        rest,
        {
            "image_type": "url",
            "data": f"http://127.0.0.1:{pictures}/to?http://localhost:{pictures}/good",
        },
    )
    assert_error(away, 400, "url: host 'localhost' is not a public address")
    hasty = fetching(allowed_hosts=["127.0.0.1"], download_seconds=0.2)
    assert_error(
        post(hasty, {"image_type": "url", "data": f"http://127.0.0.1:{pictures}/slow"}),
        400,
        "url cannot be read: took longer than 0.2 s",
    )
    assert_error(
        post(rest, {"image_type": "url", "data": f"http://127.0.0.1:{pictures}/large"}),
        413,
        "url answers more than the limit of 52428800 bytes",
    )


@functools.cache
def real_bomb(side):
    """A whole PNG of side x side pixels of zeros."""
    pack = zlib.compressobj(9)
    rows = (
        b"".join(pack.compress(b"\0" * (side * 3 + 1) * 100) for _ in range(side // 100))
        + pack.flush()
    )
    return (
        png_header(side, side)
        + struct.pack(">I", len(rows))
        + b"IDAT"
        + rows
        + struct.pack(">I", zlib.crc32(b"IDAT" + rows))
        + b"\0\0\0\0IEND\xaeB`\x82"
    )


def test_bombs_are_refused_in_bounded_time_and_memory(pets):
    bomb, before, start = (
        real_bomb(10_000),
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        time.monotonic(),
    )
    told = "image of 10000x10000 pixels is over the limit of 50000000"
    assert_error(post(pets, bomb), 413, told)
    assert_error(post(pets, {"image_type": "base64", "data": b64(bomb)}), 413, told)
    assert (
        time.monotonic() - start < 2
        and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    )  # KiB


def test_large_and_broken_bodies(pets):
    large = b'{"image_type": "base64", "data": "' + b"A" * (200 << 20) + b'"}'
    assert_error(
        post(pets, large), 413, "Request body of 209715236 bytes is over the limit of 209715200"
    )
    assert_error(
        post(pets, b'{"image_type": "base64", "data": "' + b"A" * (80 << 20) + b'"}'),
        413,
        "image of 83886080 base64 characters is over the limit...",
    )
    data = io.BytesIO()
    Image.fromarray(PICTURE).save(data, "JPEG")
    assert_error(post(pets, data.getvalue()[:500]), 400, "image is damaged: ...")
    for body, text in (
        (
            b"",
            "the body is empty: expected the bytes of a picture (Content-Type: image/jpeg), a...",
        ),
        (b"{", "JSON Parse error: Missing a name for object member..."),
        (b"[]", "expected a JSON object with 'image_type' and 'data'"),
        ({"image_type": "file"}, "image_type: expected one of url, base64, array..."),
        ({"image_type": "base64", "data": "%%%"}, "data is not base64: ..."),
        (b"\x93NUMPY\1", "body is not a .npy array: ..."),
        (b"%PDF-1.7", "not an image of a known format; expected one of JPEG, PNG, ..."),
        (b"<svg/>", "not an image of a known format..."),
        (b"P6 1 1 255 xxx", "not an image of a known format..."),
    ):
        assert_error(post(pets, body), 400, text)
    header = (
        b"\x93NUMPY\x01\x00"
        + (40).to_bytes(2, "little")
        + b"{'descr': f(1), 'shape': (1,)}".ljust(39)
        + b"\n"
    )
    assert " at 0x" not in post(pets, header).json["error"]
    assert_error(
        post(pets, image_bytes(PICTURE), query_string={"routines": "["}),
        400,
        "routines in the URL: JSON Parse error: ...",
    )
    response = pets.client.post(
        pets.prefix + "/predict", data={"picture": (io.BytesIO(b"x"), "a.png")}, headers=KEY
    )
    assert_error(response, 400, "not an image of a known format...")
    response = pets.client.post(
        pets.prefix + "/predict",
        data={"picture": "x", "routines": "[]"},
        headers=KEY,
        content_type="multipart/form-data",
    )
    assert_error(response, 400, "multipart: expected a picture as a file, got: picture, routines")
    response = pets.client.post(
        pets.prefix + "/predict",
        data={f"f{n}": "x" for n in range(1001)} | {"image": (io.BytesIO(b"x"), "a")},
        headers=KEY,
    )
    assert response.status_code == 413


# --- pictures on :predict -------------------------------------------------------------------------------------


@pytest.mark.extended
@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((None, 24, 32, 3), "DT_FLOAT"),
        ((None, 24, 32, 3), "DT_UINT8"),
        ((None, None, None, 3), "DT_UINT8"),
        ((None, 24, 32, 1), "DT_FLOAT"),
    ],
)
def test_picture_bytes_on_predict_of_a_model_of_pixels(shape, dtype):
    """Bytes, `b64` and the pixels as nested numbers are one request."""
    from conftest import signature, spec

    shown = []

    def answer(name, inputs):
        shown.append(inputs["image"])
        return {"y": inputs["image"].astype(np.float64).sum((1, 2, 3))}

    servable = serving.Servable(
        {"serving_default": signature([spec("image", dtype, shape)], [spec("y", "DT_DOUBLE")])},
        answer,
    )
    rest, data = Rest(fake_server({"m": servable})), image_bytes(PICTURE)
    pixels = cv2.resize(PICTURE, (32, 24), interpolation=cv2.INTER_AREA) if shape[1] else PICTURE
    pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[..., np.newaxis] if shape[3] == 1 else pixels
    bodies = [
        {"instances": [pixels.tolist()]},
        data,
        {"instances": [{"b64": b64(data)}]},
        {"instances": [{"image": {"b64": b64(data)}}]},
        {"inputs": {"image": {"b64": b64(data)}}},
        {"inputs": [{"b64": b64(data)}]},
        {"inputs": {"b64": b64(data)}},
    ]
    answers = [rest.post("/v1/models/m:predict", body) for body in bodies]
    assert {str(next(iter(a.json.values()))) for a in answers} == {str([float(pixels.sum())])}
    assert len(shown) == len(bodies) and all(
        (image == shown[0]).all() and image.dtype == shown[0].dtype for image in shown
    )
    two = rest.post("/v1/models/m:predict", {"instances": [{"b64": b64(data)}] * 2}).json
    assert two == {"predictions": [float(pixels.sum())] * 2}
    assert_error(
        rest.post("/v1/models/m:predict", {"instances": [{"b64": "xx"}]}),
        400,
        "not an image of a known format...",
    )
    answer = rest.post("/v1/models/m:predict", {"instances": {"b64": b64(data)}})
    assert answer.status_code == 400
    assert answer.json["error"].endswith("Expecting 'instances' to be an list/array")


def test_picture_bytes_on_predict_of_a_model_that_takes_texts_too(monkeypatch):
    """The text takes the same bytes as they are."""
    from conftest import signature, spec

    data, shown = image_bytes(PICTURE), []
    inputs = [spec("image", "DT_FLOAT", (None, 48, 64, 3)), spec("text", "DT_STRING", (None,))]
    servable = serving.Servable(
        {"serving_default": signature(inputs, [spec("y", "DT_DOUBLE")])},
        lambda name, given: shown.append(given) or {"y": np.zeros(1)},
    )
    rest, both = Rest(fake_server({"m": servable})), {"image": {"b64": b64(data)}}
    for body in (
        {"inputs": {"image": [both["image"]], "text": ["x"]}},
        {"inputs": {**both, "text": ["x"]}},
        {"instances": [{**both, "text": "x"}]},
        {"instances": [{**both, "text": both["image"]}]},
        {"instances": [{"image": PICTURE.tolist(), "text": both["image"]}]},
    ):
        answer = rest.post("/v1/models/m:predict", body)
        assert answer.status_code == 200, answer.json
    answer = rest.post("/v1/models/m:predict", {"instances": [{"b64": b64(b"x")}]})
    assert_error(answer, 400, "instances is a plain list, but expecting list of objects...")
    answer = rest.post("/v1/models/m:predict", {"instances": [{"image": {"b64": "eA=="}}]})
    assert answer.status_code == 400 and '"b64": "eA=="' in answer.json["error"]
    monkeypatch.setattr(serving, "routines", serving.NoRoutines())  # texts do not need it
    assert rest.post("/v1/models/m:predict", body).status_code == 200
    assert all((given["image"] == PICTURE[np.newaxis]).all() for given in shown)
    assert [list(given["text"]) for given in shown] == [[b"x"]] * 3 + [[data]] * 3


RGBA = np.dstack([PICTURE, np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)])
GREY = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2GRAY)


@pytest.mark.extended
@pytest.mark.parametrize(
    "shape, dtype, picture, wanted",
    [
        ((None, 3, 48, 64), "DT_FLOAT", PICTURE, np.moveaxis(PICTURE, 2, 0)),
        ((None, 3, None, None), "DT_HALF", PICTURE, np.moveaxis(PICTURE, 2, 0)),
        ((1, 1, 48, 64), "DT_INT64", PICTURE, GREY[np.newaxis]),
        ((None, 48, 64), "DT_DOUBLE", PICTURE, GREY),
        ((None, 48, 64, 4), "DT_UINT8", RGBA, RGBA),
        ((None, 48, 64, 4), "DT_BFLOAT16", PICTURE, np.dstack([PICTURE, GREY * 0 + 255])),
        ((None, None, None, 3), "DT_UINT32", RGBA[..., :3], RGBA[..., :3]),
    ],
)
def test_picture_bytes_on_predict_come_in_the_layouts_of_pictures(shape, dtype, picture, wanted):
    from conftest import signature, spec

    shown = []

    def answer(name, inputs):
        shown.append(inputs["image"])
        return {"y": np.zeros(len(inputs["image"]))}

    servable = serving.Servable(
        {"serving_default": signature([spec("image", dtype, shape)], [spec("y", "DT_DOUBLE")])},
        answer,
    )
    rest, data = Rest(fake_server({"m": servable})), image_bytes(picture)
    for body in (
        data,
        {"instances": [{"b64": b64(data)}]},
        {"inputs": {"image": {"b64": b64(data)}}},
        {"inputs": [{"b64": b64(data)}]},
    ):
        assert rest.post("/v1/models/m:predict", body).status_code == 200
    for array in shown:
        assert array.dtype == serving.NUMPY_DTYPES[dtype] and array.shape == (1, *wanted.shape)
        assert (array[0].astype(np.float64) == wanted).all()


@pytest.mark.extended
@pytest.mark.parametrize(
    "shape, dtype, key, wanted",
    [
        ((48, 64, 3), "DT_FLOAT", "outputs", PICTURE),
        ((None, None, 3), "DT_UINT8", "outputs", PICTURE),
        ((3, 48, 64), "DT_FLOAT", "outputs", np.moveaxis(PICTURE, 2, 0)),
        ((), "DT_STRING", "outputs", np.array(image_bytes(PICTURE), object)),
        ((1,), "DT_STRING", "predictions", np.array([image_bytes(PICTURE)], object)),
        ((None,), "DT_STRING", "predictions", np.array([image_bytes(PICTURE)], object)),
        ((1, 48, 64, 3), "DT_FLOAT", "predictions", PICTURE[np.newaxis]),
    ],
)
def test_a_picture_as_the_body_is_a_row_or_the_one_input(shape, dtype, key, wanted):
    """What takes one picture and no rows gets it as `inputs` does, and answers `outputs`."""
    from conftest import signature, spec

    shown = []

    def answer(name, inputs):
        shown.append(inputs["image"])
        return {"y": np.zeros(1)}

    servable = serving.Servable(
        {"serving_default": signature([spec("image", dtype, shape)], [spec("y", "DT_DOUBLE")])},
        answer,
    )
    reply = Rest(fake_server({"m": servable})).post("/v1/models/m:predict", image_bytes(PICTURE))
    assert reply.json == {key: [0.0]}
    assert shown[0].shape == wanted.shape and (shown[0] == wanted).all()


@pytest.mark.extended
def test_a_picture_for_a_signature_without_inputs():
    servable = serving.Servable({"serving_default": serving.Signature({}, {})}, lambda *a: {})
    rest, text = (
        Rest(fake_server({"m": servable})),
        "Failed to get input map for signature: DEFAULT",
    )
    for body in (image_bytes(PICTURE), {"instances": [{"b64": b64(image_bytes(PICTURE))}]}):
        assert_error(rest.post("/v1/models/m:predict", body), 400, text)


@pytest.mark.extended
@pytest.mark.parametrize(
    "shape, dtype",
    [((None, 8, 8, 3), "DT_INT8"), ((None, 8, 8, 3), "DT_BOOL"), ((None, 8, 8, 7), "DT_FLOAT")],
)
def test_picture_bytes_on_predict_of_what_cannot_hold_them(shape, dtype):
    """int8 would wrap what is bright."""
    from conftest import signature, spec

    servable = serving.Servable(
        {"serving_default": signature([spec("image", dtype, shape)], [spec("y", "DT_DOUBLE")])},
        lambda name, inputs: {"y": np.zeros(1)},
    )
    body = {"instances": [{"b64": b64(image_bytes(PICTURE))}]}
    answer = Rest(fake_server({"m": servable})).post("/v1/models/m:predict", body)
    shown = str([-1, *shape[1:]])
    assert_error(answer, 400, "input 'image' takes no pictures: expected [-1, H, W, 3] or ...")
    assert answer.json["error"].endswith(f"it is {dtype[3:].lower()} {shown}")


@pytest.mark.extended
def test_picture_bytes_on_predict_of_other_models(rest):
    assert_error(
        rest.post("/v1/models/half_plus_two:predict", image_bytes(PICTURE)),
        400,
        "input 'x' takes no pictures: expected [-1, H, W, 3]...",
    )
    answer = rest.post("/v1/models/half_plus_two:predict", {"instances": [{"b64": "AAAA"}]})
    assert answer.status_code == 400 and "takes no pictures" in answer.json["error"]


# --- many at once ---------------------------------------------------------------------------------------------


@pytest.mark.extended
def test_fifty_clients_and_five_thousand_pictures_each_get_their_own_answer():
    server, _ = detector()
    with listening(server) as address:

        def ask(number):
            client, wrong = (
                http.client.HTTPConnection(address.removeprefix("http://"), timeout=60),
                [],
            )  # lighter than requests
            for n in range(number, 5000, 50):
                image = np.full((4, 4, 3), (n % 255, n // 255, n % 7), np.uint8)
                body = (
                    image_bytes(image)
                    if n % 2
                    else json.dumps({"image_type": "base64", "data": b64(image_bytes(image))})
                )
                client.request("POST", "/pets/predict", body, KEY)
                response = client.getresponse()
                answer = response.read()
                if response.status != 200 or json.loads(answer)["predictions"][0][
                    "bound"
                ] != expected_box(image):
                    wrong.append((n, answer))
            return wrong

        with ThreadPoolExecutor(50) as pool:
            assert sum(pool.map(ask, range(50)), []) == []


THERE = "there are: " + ", ".join(f"{number}.jpg" for number in range(10))


# --- named samples --------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["sample:0.jpg", "sample:0", "{{0.jpg}}", "{{ 0 }}"])
@pytest.mark.parametrize("kind", ["url", "base64"])
def test_a_sample_by_its_name_is_that_picture(rest, data, kind):
    """`{{squirrel}}` as in Datature's document, "Additional Ingress/Egress Routines"."""
    file = (ROOT / "models/shapes/samples/0.jpg").read_bytes()
    sent = rest.post("/shapes/predict", file, headers=bearer(rest.server.generated_key)).get_json()
    named = {"image_type": kind, "data": data}
    answer = rest.post(
        "/shapes/predict", json.dumps(named), headers=bearer(rest.server.generated_key)
    ).get_json()
    assert answer == sent and answer["predictions"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("sample:none.jpg", f"data: there is no sample 'none.jpg'; {THERE}"),
        ("{{squirrel}}", f"data: there is no sample 'squirrel'; {THERE}"),
        ("sample:../label_map.pbtxt", f"data: there is no sample '../label_map.pbtxt'; {THERE}"),
        (["sample:0", "aGVsbG8="], "data: names of samples cannot be mixed with other pictures"),
    ],
)
def test_a_sample_that_is_none(rest, data, text):
    body = json.dumps({"image_type": "url", "data": data})
    assert_error(
        rest.post("/shapes/predict", body, headers=bearer(rest.server.generated_key)), 400, text
    )


# --- routines as forms send them ------------------------------------------------------------------


@pytest.mark.parametrize(
    "routine",
    [
        {"name": "FilterConfidence", "arguments": {"confidence": 0.5}},
        {"name": "FilterConfidence", "kwargs": {"confidence": 0.5}},
        {"name": "FilterConfidence", "args": [0.5]},
        {"name": "FilterConfidence", "args": [0.5], "kwargs": {}},
        {"name": "FilterConfidence", "args": None, "kwargs": {"confidence": 0.5}},
        {"name": "FilterConfidence", "confidence": 0.5},
    ],
)
def test_arguments_by_name_or_in_their_order(pets, routine):
    body = {"image_type": "base64", "data": b64(image_bytes(PICTURE)), "routines": [routine]}
    answer = post(pets, body, "/pets/predict").json
    assert [one["confidence"] >= 0.5 for one in answer["predictions"]] == [True]


@pytest.mark.parametrize(
    ("routine", "text"),
    [
        ({"args": [0.5, 1]}, "routines[0].args: FilterConfidence has 1 arguments, got 2"),
        ({"args": {"confidence": 1}}, "routines[0].args: expected a list, got object"),
        (
            {"confidence": 1, "arguments": {"confidence": 0}},
            "routines[0].arguments: 'confidence' is given twice",
        ),
        ({"kwargs": [1]}, "routines[0].kwargs: expected an object, got array"),
        (
            {"args": [0.5], "confidence": 0.6},
            "routines[0].args: 'confidence' is given by name as well",
        ),
        ({"args": ["x"]}, "routines[0].arguments.confidence: expected number, got string 'x'"),
    ],
)
def test_wrong_arguments_are_named(pets, routine, text):
    chain = [{"name": "FilterConfidence", **routine}]
    body = {"image_type": "base64", "data": b64(image_bytes(PICTURE)), "routines": chain}
    assert_error(post(pets, body, "/pets/predict"), 400, text)


def test_a_picture_that_cannot_be_drawn_in_is_the_clients(pets):
    """JPEG goes up to 65,535 pixels a side."""
    wide = np.zeros((10, 70_000, 3), np.uint8)
    answer = pets.client.post(
        pets.prefix + "/predict", data=image_bytes(wide), headers={**KEY, "Accept": "image/jpeg"}
    )
    assert answer.status_code == 400, answer.get_data(as_text=True)
    assert_error(answer, 400, "picture cannot be drawn")
