"""Masks out, by pycocotools: what COCO's own reader makes of an answer is the mask that the model gave."""

import contextlib
import io
import json

import cv2
import numpy as np
import pytest
from conftest import paste_mask
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import routines

# of pycocotools, about NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
WIDTH, HEIGHT = 320, 240


def drawn(seed, side):
    """A mask [h, w] of some kind: blobs with holes, several parts, lines a pixel wide, noise, letters."""
    random = np.random.default_rng(seed)
    tall, wide = random.integers(max(side // 2, 5), side + 1, 2)
    mask = np.zeros((tall, wide), np.uint8)
    corner = lambda: tuple(int(n) for n in random.integers(0, [wide, tall]))  # noqa: E731
    kind = seed % 5
    if kind == 0:
        for _ in range(random.integers(1, 5)):
            axes = tuple(int(n) for n in random.integers(1, max(2, side // 3), 2))
            cv2.ellipse(mask, corner(), axes, int(random.integers(180)), 0, 360, 1, -1)
        cv2.circle(mask, corner(), int(random.integers(1, max(2, side // 5))), 0, -1)
    elif kind == 1:
        for _ in range(random.integers(1, 6)):
            cv2.line(mask, corner(), corner(), 1, 1)
    elif kind == 2:
        noise = cv2.GaussianBlur(random.random((tall, wide)), (0, 0), 1 + random.random() * 3)
        mask = (noise > np.median(noise)).astype(np.uint8)
    elif kind == 3:
        mask = (random.random((tall, wide)) < random.uniform(0.2, 0.9)).astype(np.uint8)
    else:
        cv2.putText(mask, "8g&", (0, tall - 1), cv2.FONT_HERSHEY_SIMPLEX, tall / 40, 1, 1)
        cv2.rectangle(mask, corner(), corner(), 1, 1)
    return mask


def answer_of(mask, top, left):
    """The answer for one mask [h, w] whose box has exactly its pixels, at 320 x 240."""
    tall, wide = mask.shape
    box = np.array([[top, left, top + tall, left + wide]]) / [HEIGHT, WIDTH, HEIGHT, WIDTH]
    tensors = {
        "boxes": box.astype(np.float32),
        "scores": np.array([0.9], np.float32),
        "classes": np.array([1]),
        "names": np.array(["x"], object),
        "masks": mask[np.newaxis].astype(np.float32),
    }
    return json.loads(json.dumps(routines.to_annotations(tensors, WIDTH, HEIGHT)))


def read_back(annotations):
    """What pycocotools reads of them: a mask [240, 320] for each, with their areas."""
    data = routines.to_coco(annotations, WIDTH, HEIGHT, {1: "x"})
    coco = COCO()
    coco.dataset = json.loads(json.dumps(data))
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return [(coco.annToMask(entry), entry) for entry in coco.loadAnns(coco.getAnnIds())]


def overlap(a, b):
    one, other = (coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in (a, b))
    return coco_mask.iou([one], [other], [0])[0, 0]


@pytest.mark.parametrize("side", [20, 60, 150])
def test_five_hundred_masks_come_back(side):
    worst, count = 1.0, 0
    for seed in range(170):
        mask = drawn(seed + 1000 * side, side)
        if mask.sum() < 20:
            continue
        random = np.random.default_rng(seed)
        top, left = random.integers(0, [HEIGHT - mask.shape[0] + 1, WIDTH - mask.shape[1] + 1])
        truth = np.zeros((HEIGHT, WIDTH), np.uint8)
        truth[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
        annotations = answer_of(mask, top, left)
        ((found, entry),) = read_back(annotations)
        worst, count = min(worst, overlap(found, truth)), count + 1
        assert overlap(found, truth) >= 0.9, (seed, side)
        assert entry["area"] == pytest.approx(truth.sum(), rel=0.1)
        assert len(annotations[0].get("contours", [0])) < routines.MOST_RINGS
    assert count > 150, worst


@pytest.mark.parametrize("pixels", [20, 33, 90, 200])
@pytest.mark.parametrize("kind", ["disc", "ring", "star", "two"])
def test_coarse_masks_come_back_smooth(kind, pixels):
    """Masks of 28 x 28, as Mask R-CNN has them, in boxes of other sizes."""
    mask = np.zeros((28, 28), np.uint8)
    if kind == "star":
        turn = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, 6, 13)
        points = np.stack([14 + radius * np.sin(turn), 14 - radius * np.cos(turn)], 1)
        cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    elif kind == "two":
        mask[2:26, 2:12], mask[6:20, 17:27] = 1, 1
    else:
        cv2.circle(mask, (14, 14), 13, 1, -1)
        cv2.circle(mask, (14, 14), 6, 0, -1 if kind == "ring" else 0)
        mask[13:16, 13:16] = kind != "ring"
    box = np.float32([20 / HEIGHT, 30 / WIDTH, (20 + pixels) / HEIGHT, (30 + pixels) / WIDTH])
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    pasted, top, left = paste_mask(mask, box, WIDTH, HEIGHT)
    assert (top, left, *pasted.shape) == (20, 30, pixels, pixels)
    truth[top : top + pixels, left : left + pixels] = pasted
    tensors = {"boxes": box[np.newaxis], "scores": np.ones(1), "classes": np.ones(1, int)}
    tensors |= {"names": np.array(["x"], object), "masks": mask[np.newaxis]}
    annotations = routines.to_annotations(tensors, WIDTH, HEIGHT)
    ((found, _),) = read_back(annotations)
    assert overlap(found, truth) >= 0.9
    assert sum(map(len, annotations[0].get("contours", []))) < 300


def test_holes_and_parts_are_rings_and_the_contour_is_the_largest_parts():
    mask = np.zeros((40, 60), np.uint8)
    mask[0:40, 0:40], mask[10:30, 10:30], mask[15:25, 15:25], mask[5:9, 50:60] = 1, 0, 1, 1
    (annotation,) = answer_of(mask, 100, 200)
    rings = [np.rint(np.array(ring) * [WIDTH, HEIGHT]) for ring in annotation["contours"]]
    bounds = [(*ring.min(axis=0), *ring.max(axis=0)) for ring in rings]
    assert bounds[0] == (200, 100, 240, 140) and bounds[-1] == (210, 110, 230, 130)
    assert set(bounds[1:-1]) == {(215, 115, 225, 125), (250, 105, 260, 109)}
    assert annotation["contour"] == annotation["contours"][0]
    signs = [np.sign(routines.area_of(ring)) for ring in rings]
    assert signs == [1, 1, 1, -1]
    ((found, entry),) = read_back([annotation])
    assert (found[100:140, 200:260] == mask).all() and found.sum() == mask.sum() == entry["area"]
    assert entry["segmentation"]["size"] == [HEIGHT, WIDTH]


def test_a_mask_of_one_ring_has_no_further_field():
    (annotation,) = answer_of(np.ones((9, 9), np.uint8), 3, 4)
    assert "contours" not in annotation and annotation["boundType"] == "masks"
    ((_, entry),) = read_back([annotation])
    assert len(entry["segmentation"]) == 1


def test_parts_without_holes_are_polygons():
    mask = np.zeros((20, 50), np.uint8)
    mask[:, :20], mask[5:9, 30:] = 1, 1
    ((found, entry),) = read_back(answer_of(mask, 0, 0))
    assert len(entry["segmentation"]) == 2 and (found[:20, :50] == mask).all()


def test_boxes_and_classes_are_read_by_pycocotools_too():
    tensors = {
        "boxes": np.float32([[0.25, 0.5, 0.75, 1]]),
        "scores": np.ones(1),
        "classes": np.ones(1, int),
        "names": np.array(["x"], object),
    }
    ((found, entry),) = read_back(routines.to_annotations(tensors, WIDTH, HEIGHT))
    assert found.sum() == entry["area"] == 160 * 120 and found[60:180, 160:].all()
    del tensors["boxes"]
    ((found, entry),) = read_back(routines.to_annotations(tensors, WIDTH, HEIGHT))
    assert found.all() and entry["bbox"] == [0, 0, WIDTH, HEIGHT]


@pytest.mark.parametrize("edge", [(0, 0), (HEIGHT - 30, WIDTH - 50)])
def test_masks_at_the_pictures_edges(edge):
    mask = np.ones((30, 50), np.uint8)
    mask[10:20, 10:40] = 0
    ((found, entry),) = read_back(answer_of(mask, *edge))
    top, left = edge
    assert (found[top : top + 30, left : left + 50] == mask).all() and entry["area"] == mask.sum()


def test_run_lengths_are_pycocotools_own():
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = np.kron(random.random((24, 32)) < 0.5, np.ones((10, 10))).astype(np.uint8)
        rings = routines.find_rings(mask)
        own = {"size": [HEIGHT, WIDTH], "counts": routines.encode_runs(rings, WIDTH, HEIGHT)}
        theirs = coco_mask.encode(np.asfortranarray(mask))
        assert coco_mask.frPyObjects(own, HEIGHT, WIDTH)["counts"] == theirs["counts"]


@pytest.mark.parametrize("side", [20, 60])
@pytest.mark.parametrize("larger", [1.3, 2, 3.7])
def test_masks_that_are_enlarged_come_back(side, larger):
    """Smoothed as OpenCV enlarges them; where lines and noise of single pixels break up is anybody's guess."""
    for seed in (n for n in range(60) if n % 5 in (0, 2)):
        mask = drawn(seed + 7000, side)
        tall, wide = (round(n * larger) for n in mask.shape)
        box = np.float32([5 / HEIGHT, 9 / WIDTH, (5 + tall) / HEIGHT, (9 + wide) / WIDTH])
        truth = np.zeros((HEIGHT, WIDTH), np.uint8)
        pasted, top, left = paste_mask(mask, box, WIDTH, HEIGHT)
        truth[top : top + tall, left : left + wide] = pasted
        if truth.sum() < 20:
            continue
        tensors = {"boxes": box[np.newaxis], "scores": np.ones(1), "classes": np.ones(1, int)}
        tensors |= {"names": np.array(["x"], object), "masks": mask[np.newaxis]}
        ((found, _),) = read_back(routines.to_annotations(tensors, WIDTH, HEIGHT))
        assert overlap(found, truth) >= 0.9, seed


def segmenter(side):
    """A model of one mask [side, side] made by a sigmoid."""
    inputs = {"image": ("DT_UINT8", (None, side, side, 3))}
    return routines.ImageModel(inputs, {"mask": ("DT_FLOAT", (None, side, side, 1), "Sigmoid")})


@pytest.mark.parametrize("shape", [(0, 5, 1), (5, 0, 1), (0, 0, 1)])
def test_planes_without_pixels_have_no_regions(shape):
    found = segmenter(8).read({"mask": np.zeros((1, *shape), np.float32)})
    assert len(found["scores"]) == 0


def thin(name, side=200):
    """A mask [200, 200] of something thin or with a hole, as a model answers it for each pixel."""
    mask = np.zeros((side, side), np.uint8)
    if name == "crack":
        cv2.line(mask, (8, 12), (190, 170), 1, 2)
    elif name == "outline":
        cv2.circle(mask, (100, 100), 90, 1, 3)
    elif name == "comb":
        mask[5:8, 5:180] = mask[5:195, 5:180:14] = mask[5:195, 6:180:14] = 1
    elif name == "hole":
        cv2.circle(mask, (100, 100), 90, 1, -1)
        cv2.circle(mask, (70, 80), 3, 0, -1)
    else:
        cv2.line(mask, (8, 12), (190, 170), 1, 2)
        cv2.line(mask, (150, 10), (190, 40), 1, 2)
    return mask


@pytest.mark.parametrize("name", ["crack", "outline", "comb", "hole", "two cracks"])
def test_what_is_thin_in_a_segmenters_mask_comes_back(name):
    mask = thin(name)
    tensors = segmenter(200).read({"mask": mask[np.newaxis, :, :, np.newaxis] * np.float32(1)})
    truth = np.zeros((HEIGHT, WIDTH), np.uint8)
    truth[:200, :200] = mask
    tensors["boxes"] = tensors["boxes"] * np.float32([200 / HEIGHT, 200 / WIDTH] * 2)
    entries = read_back(routines.to_annotations(tensors, WIDTH, HEIGHT))
    found = np.bitwise_or.reduce([one for one, _ in entries])
    assert overlap(found, truth) >= 0.97
    assert sum(entry["area"] for _, entry in entries) == pytest.approx(truth.sum(), rel=0.03)
    if name == "hole":
        assert found[80, 70] == 0


def test_many_masks_of_a_large_plane_are_bounded():
    mask = np.zeros((1, 700, 700, 1), np.float32)
    mask[:, 4:690:20, 4:690:20] = mask[:, 5:690:20, 4:690:20] = 1  # more than are answered
    mask[:, 4:690:20, 5:690:20] = mask[:, 5:690:20, 5:690:20] = 1
    mask[:, 1:699, 1] = mask[:, 1, 1:699] = 1
    found = segmenter(700).read({"mask": mask})
    assert len(found["masks"]) == 300 and max(found["masks"].shape[1:]) > 100
    assert found["masks"].nbytes <= routines.MASK_BYTES
    parts = [dict(found) for _ in range(9)]
    held = parts[0]
    for part in parts[1:]:
        held = routines.keep_best([held, part], 2000)
    assert len(held["masks"]) == 2000 and held["masks"].nbytes <= routines.TILE_BYTES
