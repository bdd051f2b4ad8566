"""Models that their own projects have built, against what those projects find in a picture.

Needs a folder that tests/build_zoo.py has filled, named by SERVING_ZOO; docs/pictures.md says how.
"""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import config, paste_mask
from PIL import Image

import routines
import serving

FOLDER = Path(os.environ.get("SERVING_ZOO", "/nowhere"))
TRUTHS = {path.parent.name: path for path in sorted(FOLDER.glob("*/truth.json"))}
pytestmark = pytest.mark.skipif(
    not TRUTHS, reason="SERVING_ZOO names no folder that tests/build_zoo.py has filled"
)


@pytest.fixture(scope="module", params=list(TRUTHS) or [""])
def built(request, tf):
    """A model's truth, its picture, and a server of it alone."""
    folder, truth = FOLDER / request.param, json.loads(TRUTHS[request.param].read_text())
    deployment = {"id": "m", "model": "m", **truth["config"]}
    server = serving.ModelServer(
        config({"name": "m", "base_path": str(folder)}, deployments=[deployment])
    )
    assert server.wait(120)
    yield truth, np.asarray(Image.open(folder / "picture.png")), server
    server.stop()


def test_a_built_model_is_told_or_refused(built):
    truth, _, server = built
    problem = server.manager.deployment_problems().get("m", "")
    if truth["refused"]:
        assert truth["refused"] in problem
    else:
        assert not problem and find(server)[0].family == truth["family"]


def test_a_built_model_finds_what_its_project_finds(built):
    truth, picture, server = built
    if truth["refused"]:
        pytest.skip("it is refused")
    wanted = {key: np.array(value) for key, value in truth["truth"].items()}
    model, run = find(server)
    (found,) = routines.predict_images(model, run, [picture], [])
    if "map" in wanted:
        check_map(found, wanted["map"])
    elif "boxes" in wanted:
        check_boxes(found, wanted)
    else:
        sure = dict(zip(wanted["classes"].tolist(), wanted["scores"]))
        assert len(found["scores"]) == min(len(sure), 300)  # max_detections
        own = [sure[number] for number in found["classes"].tolist()]
        np.testing.assert_allclose(found["scores"], own, atol=1e-4)
        assert min(own) >= sorted(sure.values())[-len(own)] - 1e-4


def find(server):
    """The model behind the deployment, and how it is run."""
    (_, servable) = server.manager.find("m", None, None)
    model = server.prepared.deployments["m"].model_of(servable)
    return model, lambda inputs: servable.run("serving_default", inputs)


def check_boxes(found, wanted):
    """Boxes to 1e-3 and classes exactly, each of what was wanted having its like among the found."""
    boxes = np.clip(wanted["boxes"].reshape(-1, 4), 0, 1)
    there = (boxes[:, 2:] > boxes[:, :2]).all(axis=1) & (wanted["scores"] > 0)
    assert 0 < there.sum() == len(found["scores"])
    rows = range(len(found["scores"]))
    left = list(zip(found["classes"].tolist(), found["scores"], found["boxes"], rows))
    for row in np.nonzero(there)[0]:
        number, score, box = wanted["classes"][row], wanted["scores"][row], boxes[row]
        like = [
            index
            for index, (other, sure, place, _) in enumerate(left)
            if other == number and abs(sure - score) < 1e-3 and abs(place - box).max() < 1e-3
        ]
        assert like, f"no {number} at {box} among {left[:3]}"
        index = left.pop(like[0])[3]
        if "masks" in wanted:
            check_mask(found, index, wanted["masks"][row])


def check_mask(found, index, wanted):
    """The project's pixels, but for one beside its edges and a twentieth of the box.

    Random weights make shallow masks, whose edges move far with half a pixel.
    """
    height, width = wanted.shape
    pixels, top, left = paste_mask(found["masks"][index], found["boxes"][index], width, height)
    whole = np.zeros(wanted.shape, bool)
    whole[top : top + len(pixels), left : left + pixels.shape[1]] = pixels.astype(bool)
    truth, around = (wanted > 0).astype(np.uint8), np.ones((3, 3), np.uint8)
    edge = cv2.dilate(truth, around) - cv2.erode(truth, around)
    differs = whole != (truth > 0)
    ymin, xmin, ymax, xmax = found["boxes"][index] * [height, width, height, width]
    assert (differs & (edge == 0)).sum() <= 0.05 * (ymax - ymin) * (xmax - xmin)


def check_map(found, wanted):
    """Each class's pixels, all its masks together, IoU at least 0.98."""
    height, width = wanted.shape
    for number in np.unique(wanted[wanted > 0]):
        whole = np.zeros(wanted.shape, bool)
        for index in np.nonzero(found["classes"] == number)[0]:
            pixels, top, left = paste_mask(
                found["masks"][index], found["boxes"][index], width, height
            )
            whole[top : top + len(pixels), left : left + pixels.shape[1]] |= pixels.astype(bool)
        truth = wanted == number
        assert (whole & truth).sum() / (whole | truth).sum() >= 0.98
    assert set(found["classes"].tolist()) <= set(np.unique(wanted[wanted > 0]).tolist())
