"""The crops example: a detector, a Python function that cuts what it found, a classifier of each crop."""

import base64
import importlib.util

import cv2
import numpy as np
import pytest
from conftest import ROOT, Rest

import routines
import serving

EXAMPLE = ROOT / "examples" / "crops"
SAMPLES = [ROOT / "models/shapes/samples" / f"{number}.jpg" for number in range(10)]
PARAMS = {"confidence": "0.3", "size": "32"}


@pytest.fixture(scope="module")
def server():
    server = serving.ModelServer(EXAMPLE / "config.json", poll_seconds=0)
    assert server.wait(120) and not server.readiness()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def crop_boxes():
    spec = importlib.util.spec_from_file_location("crops_example", EXAMPLE / "crops.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.crop_boxes


def step_by_step(server, crop_boxes, picture):
    """The models called one after the other on uint8 [1, H, W, 3]: kinds [K, 1, 4], boxes [K, 1, 4], the detector's classes [K]."""
    found = server.predict("shapes", {"inputs": {"input_tensor": picture}})["outputs"]
    cut = crop_boxes(
        {"image": picture, "boxes": found["detection_boxes"], "scores": found["detection_scores"]},
        PARAMS,
    )
    kinds = np.stack(
        [server.predict("kinds", {"inputs": {"crops": crop}})["outputs"] for crop in cut["crops"]]
    )
    return (
        kinds,
        cut["boxes"],
        found["detection_classes"][found["detection_scores"] >= float(PARAMS["confidence"])],
    )


def test_pipeline_answers_as_its_models_one_after_the_other_and_they_agree(server, crop_boxes):
    agreed, crops = 0, 0
    for path in SAMPLES:
        picture = routines.decode_image(path.read_bytes(), routines.ImageLimits())[np.newaxis]
        kinds, boxes, classes = step_by_step(server, crop_boxes, picture)
        answer = server.predict("shape_kinds", {"inputs": {"image": picture}})["outputs"]
        assert len(classes) and answer["kinds"].shape == answer["boxes"].shape == (
            len(classes),
            1,
            4,
        )
        np.testing.assert_allclose(answer["kinds"], kinds, atol=1e-5)
        np.testing.assert_allclose(answer["boxes"], boxes, atol=1e-5)
        np.testing.assert_allclose(answer["kinds"].sum(axis=2), 1, atol=1e-5)
        agreed += (answer["kinds"][:, 0].argmax(axis=1) + 1 == classes).sum()
        crops += len(classes)
    assert agreed >= 0.9 * crops, f"{agreed} of {crops}"


def test_pictures_as_files_answer_as_their_pixels_over_http(server, how):
    content = SAMPLES[0].read_bytes()
    picture = routines.decode_image(content, routines.ImageLimits())[np.newaxis]
    answer = Rest(server, how).post(
        "/v1/models/shape_kinds:predict",
        {"inputs": {"image": {"b64": base64.b64encode(content).decode()}}},
    )
    expected = server.predict("shape_kinds", {"inputs": {"image": picture}})["outputs"]
    for name in ("kinds", "boxes"):
        np.testing.assert_allclose(answer.json["outputs"][name], expected[name], atol=1e-5)


def test_black_picture_has_no_answer(server, how):
    black = np.zeros((1, 240, 320, 3), np.uint8)
    with pytest.raises(serving.ServingError) as raised:
        server.predict("shape_kinds", {"inputs": {"image": black}})
    assert raised.value.status == 204
    answer = Rest(server, how).post(
        "/v1/models/shape_kinds:predict", {"inputs": {"image": black.tolist()}}
    )
    assert answer.status_code == 204 and answer.data == b""


def test_crop_boxes_keeps_what_is_sure_enough(crop_boxes):
    picture = np.random.default_rng(1).integers(0, 256, (1, 60, 80, 3), np.uint8)
    boxes = np.array(
        [
            [
                [0, 0, 1, 1],
                [0.5, 0.25, 1, 0.65],
                [1, 1, 1, 1],
                [0.2, 0.2, 0.2, 0.2],
                [0, 0, 0.5, 0.5],
            ]
        ],
        np.float32,
    )
    scores = np.array([[0.9, 0.3, 0.5, 0.5, 0.29]], np.float32)
    cut = crop_boxes(
        {"image": picture, "boxes": boxes, "scores": scores}, {"confidence": "0.3", "size": "32"}
    )
    assert (
        cut["crops"].shape == (4, 1, 32, 32, 3)
        and cut["crops"].dtype == cut["boxes"].dtype == np.float32
    )
    np.testing.assert_array_equal(cut["boxes"], boxes[0, :4, np.newaxis])
    np.testing.assert_array_equal(
        cut["crops"][1, 0],
        cv2.resize(picture[0, 30:60, 20:52], (32, 32), interpolation=cv2.INTER_AREA),
    )
    np.testing.assert_array_equal(
        cut["crops"][2, 0], np.broadcast_to(picture[0, -1, -1], (32, 32, 3))
    )
    nothing = crop_boxes(
        {"image": picture, "boxes": boxes, "scores": scores}, {"confidence": "0.95", "size": "32"}
    )
    assert nothing["crops"].shape == (0, 1, 32, 32, 3) and nothing["boxes"].shape == (0, 1, 4)
