"""Each routine against a brute-force loop; the published call of a vendor; masks redrawn from their polygons; no detections at all."""

import base64
import json
import math
import re
import tracemalloc
import xml.etree.ElementTree as ElementTree
from decimal import Decimal
from typing import Literal

import cv2
import numpy as np
import pytest
from conftest import ROOT, paste_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import routines
import serving

NAMES = {1: "cat", 2: "dog", 3: "emu"}


def made_up(count, seed=0, masks=False):
    """Predictions of random boxes, best first, as a model's reader makes them."""
    random = np.random.default_rng(seed)
    corners = np.sort(random.random((count, 2, 2)), axis=1)  # [N, low/high, y/x]
    tensors = {
        "boxes": corners.reshape(count, 4).astype(np.float32),
        "scores": np.sort(random.random(count).astype(np.float32))[::-1],
        "classes": random.integers(1, 4, count),
    }
    tensors["names"] = np.array([NAMES[number] for number in tensors["classes"]] + [None], object)[
        :-1
    ]
    if masks:
        tensors["masks"] = random.random((count, 7, 7)).astype(np.float32)
    return tensors


def rows(tensors):
    return [
        (box, score, number, name)
        for box, score, number, name in zip(
            tensors["boxes"].tolist(),
            tensors["scores"].tolist(),
            tensors["classes"].tolist(),
            tensors["names"],
        )
    ]


many = pytest.mark.parametrize("count, seed", [(0, 0), (1, 1), (2, 2), (30, 3), (200, 4)])


@many
def test_filter_confidence(count, seed):
    tensors = made_up(count, seed, masks=True)
    kept = routines.FilterConfidence(confidence=0.5)(tensors)
    assert rows(kept) == [row for row in rows(tensors) if row[1] >= 0.5] and len(
        kept["masks"]
    ) == len(kept["scores"])


def test_filter_confidence_keeps_a_score_equal_to_it():
    tensors = made_up(1)
    tensors["scores"] = np.array([0.3], np.float32)
    assert len(routines.FilterConfidence(confidence=0.3)(tensors)["scores"]) == 1


@many
@pytest.mark.parametrize("names", ["dog", ("cat", "emu"), ("nothing",)])
def test_filter_and_exclude_class(count, seed, names):
    tensors = made_up(count, seed)
    wanted = [names] if isinstance(names, str) else names
    assert rows(routines.FilterClass(class_name=names)(tensors)) == [
        row for row in rows(tensors) if row[3] in wanted
    ]
    assert rows(routines.ExcludeClass(class_name=names)(tensors)) == [
        row for row in rows(tensors) if row[3] not in wanted
    ]


def iou(a, b):
    tall, wide = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(tall, 0) * max(wide, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0


@many
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_filter_iou(count, seed, threshold):
    kept = []
    for row in rows(made_up(count, seed)):  # best first
        rivals = [iou(row[0], other[0]) for other in kept if row[2] == other[2]]
        if not any(value >= threshold and value > 0 for value in rivals):  # apart is never over
            kept.append(row)
    assert rows(routines.FilterIOU(iou=threshold)(made_up(count, seed))) == kept


def test_filter_iou_at_its_limit():
    """Of halves, thirds and fifths exactly, the less confident goes; a hair below, both stay."""
    for part, other in ((1, 2), (1, 3), (3, 5), (3, 10), (7, 10)):
        boxes = [[0, 0, 1, 1], [0, 0, 1, part / other]]
        tensors = {
            "boxes": np.array(boxes, np.float32),
            "scores": np.array([0.9, 0.8]),
            "classes": np.array([1, 1]),
        }
        for iou_, left in ((part / other, 1), (part / other + 1e-5, 2), (part / other - 1e-5, 1)):
            assert len(routines.FilterIOU(iou=iou_)(tensors)["scores"]) == left, (part, other)


def test_classes_do_not_suppress_each_other_wherever_their_boxes_lie():
    """Boxes before the picture's edge too: OpenCV alone takes them for another class's."""
    random = np.random.default_rng(0)
    low = random.uniform(-3, 3, (400, 2))
    tensors = {
        "boxes": np.concatenate([low, low + random.uniform(0, 2, (400, 2))], 1).astype(np.float32),
        "scores": random.random(400),
        "classes": random.integers(0, 40, 400) * 1000,
    }
    for row, number in enumerate(tensors["classes"]):
        alone = routines.keep(tensors, tensors["classes"] == number)
        kept = routines.suppress(tensors, 0.4)
        wanted = routines.suppress(alone, 0.4)["scores"].tolist()
        assert kept["scores"][kept["classes"] == number].tolist() == wanted, row
        if row > 20:
            break


@pytest.mark.parametrize("iou", [0.0, 0.25, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(10))
def test_suppression_is_tensorflows(tf, iou, seed):
    """Ties of scores, scores that are none, boxes turned around or without an area; on a grid of sixteenths."""
    random = np.random.default_rng(seed)
    boxes = (random.integers(0, 9, (200, 4)) / 16).astype(np.float32)
    boxes[::17, 2] = boxes[::17, 0]
    scores = (random.integers(0, 20, 200) / 20).astype(np.float32)
    scores[7:9] = np.nan
    tensors = {"boxes": boxes, "scores": scores, "classes": np.ones(200, int)}
    tensors["row"] = np.arange(200)
    # theirs go from above the limit on: a hair below it is from the limit on
    limit = np.nextafter(np.float32(iou), np.float32(0))
    with tf.device("CPU:0"):
        wanted = tf.image.non_max_suppression(boxes, scores, 200, limit).numpy()
    assert routines.suppress(tensors, iou)["row"].tolist() == sorted(wanted.tolist())


def test_boxes_that_are_no_numbers_go():
    tensors = made_up(5)
    tensors["boxes"][1, 2], tensors["boxes"][3] = np.nan, np.inf
    assert rows(routines.suppress(tensors, 1)) == [rows(tensors)[n] for n in (0, 2, 4)]


def test_eight_thousand_rows_are_suppressed_in_little_memory():
    random = np.random.default_rng(0)
    low = random.random((8000, 2))
    tensors = {
        "boxes": np.concatenate([low, low + 0.01], 1).astype(np.float32),
        "scores": random.random(8000).astype(np.float32),
        "classes": random.integers(0, 2, 8000),
    }
    tracemalloc.start()
    kept = routines.suppress(tensors, 0.5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 7000 < len(kept["scores"]) < 8000 and peak < 20e6


def test_threshold_by_class():
    tensors = made_up(200, 4)
    wanted = {"cat": 0.3, "dog": 0.8, "emu": 0.5}
    step = routines.Threshold(confidence={"cat": 0.3, "dog": 0.8}, others=0.5)
    assert rows(step(tensors)) == [row for row in rows(tensors) if row[1] >= wanted[row[3]]]
    assert rows(routines.Threshold(confidence={})(tensors)) == rows(tensors)


@many
@pytest.mark.parametrize("k", [1, 7, 1000])
def test_top_k(count, seed, k):
    tensors = made_up(count, seed)
    mixed = routines.keep(tensors, np.random.default_rng(seed).permutation(count))
    assert rows(routines.TopK(k=k)(mixed)) == rows(tensors)[:k]


def test_filter_iou_takes_the_more_confident_whatever_the_order():
    tensors = {
        "boxes": np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32),
        "scores": np.array([0.2, 0.9]),
        "classes": np.array([1, 1]),
        "names": np.array(["a", "a"], object),
    }
    assert routines.FilterIOU(iou=0.5)(tensors)["scores"].tolist() == [0.9]


def test_filter_iou_is_a_no_op_for_classifiers():
    tensors = made_up(5)
    del tensors["boxes"]
    assert routines.FilterIOU(iou=0)(tensors) == tensors


def test_order_of_the_chain_matters():
    """A confident dog hides an unsure one: filtering by name first or last does not matter, by overlap it does."""
    tensors = {
        "boxes": np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.float32),
        "scores": np.array([0.9, 0.4], np.float32),
        "classes": np.array([1, 1]),
        "names": np.array(["dog", "dog"], object),
    }
    unsure = Unsure(below=0.5)
    assert len(unsure(routines.FilterIOU(iou=0.5)(tensors))["scores"]) == 0
    assert len(routines.FilterIOU(iou=0.5)(unsure(tensors))["scores"]) == 1


@routines.routine()
class Unsure:
    """Keep what the model is not sure of."""

    below: float = routines.argument(0.5, "0..1", minimum=0, maximum=1)

    def __call__(self, tensors):
        return routines.keep(tensors, tensors["scores"] < self.below)


# --- measures ---------------------------------------------------------------------------------------------


def published():
    call = json.loads((ROOT / "tests/data/datature_blood_cells.json").read_text())
    predictions = call["predict_response"]["predictions"]
    tensors = {
        "scores": np.array([p["confidence"] for p in predictions]),
        "classes": np.array([p["tag"]["id"] for p in predictions]),
        "names": np.array([p["tag"]["name"] for p in predictions], object),
    }
    return call, tensors


@pytest.mark.parametrize("name", ["ActiveLearning", "ActiveLearningMetric"])
def test_active_learning_reproduces_the_published_call(name):
    call, tensors = published()
    assert len(tensors["scores"]) == 90
    arguments = {"class_name": tuple(call["request"]["routines"][0]["arguments"]["class_name"])}
    answer, theirs = (
        routines.ROUTINES[name](**arguments)(tensors)["answer"],
        call["active_learning_response"],
    )
    assert answer["avgEntropy"] == pytest.approx(theirs["avgEntropy"], abs=2e-6)
    assert answer["avgPerClass"] == {
        name: pytest.approx(value, abs=2e-6) for name, value in theirs["avgPerClass"].items()
    }


@many
def test_active_learning_equals_a_loop(count, seed):
    tensors, per_class = made_up(count, seed), {}
    for _, p, _, name in rows(tensors):
        per_class.setdefault(name, []).append(-(p * math.log2(p) + (1 - p) * math.log2(1 - p)))
    means = {name: sum(values) / len(values) for name, values in per_class.items()}
    answer = routines.ActiveLearning()(tensors)["answer"]
    assert answer["avgPerClass"] == {name: pytest.approx(value) for name, value in means.items()}
    assert answer["avgEntropy"] == pytest.approx(sum(means.values()) / len(means) if means else 0)


def test_entropy_at_the_ends_is_zero():
    assert routines.entropies(np.array([0.0, 1.0, 0.5])).tolist() == [0, 0, 1]


@many
def test_histogram_by_class(count, seed):
    tensors, counts = made_up(count, seed), {}
    for row in rows(tensors):
        counts[row[3]] = counts.get(row[3], 0) + 1
    answer = routines.Histogram()(tensors)["answer"]["histogram"]
    assert answer["classes"] == counts and "counts" not in answer
    picture = ElementTree.fromstring(
        base64.b64decode(answer["image"].removeprefix("data:image/svg+xml;base64,"))
    )
    assert len([node for node in picture if node.tag.endswith("rect")]) == len(counts)


@many
@pytest.mark.parametrize("arguments", [{"bins": 4}, {"ranges": (0.1, 0.5, 0.9)}])
def test_histogram_by_confidence(count, seed, arguments):
    tensors = made_up(count, seed)
    bounds = list(arguments.get("ranges", (0.25, 0.5, 0.75, 1.0)))
    wanted = {name: [0] * len(bounds) for name in set(tensors["names"])}
    for _, score, _, name in rows(tensors):
        for index, bound in enumerate(bounds):
            if score <= bound:
                wanted[name][index] += 1
                break
    answer = routines.Histogram(**arguments)(tensors)["answer"]["histogram"]
    assert answer["ranges"] == bounds and answer["counts"] == wanted


@pytest.mark.parametrize("arguments", [{"bins": 10}, {"ranges": (0.1, 0.3, 0.7, 0.9, 1.0)}])
def test_a_score_that_reads_as_a_bound_is_in_the_bin_below_it(arguments):
    texts = [f"0.{number:02}" for number in range(1, 100)]
    scores = np.array(texts, np.float32)
    assert [str(score) for score in scores] == [str(float(text)) for text in texts]
    tensors = {"scores": scores, "names": np.full(99, "a", object)}
    told = routines.Histogram(**arguments)(tensors)["answer"]["histogram"]
    bounds = [Decimal(str(bound)) for bound in told["ranges"]]
    below = [sum(Decimal(text) <= bound for text in texts) for bound in bounds]
    assert told["counts"]["a"] == np.diff([0, *below]).tolist()


def test_names_in_the_histograms_picture_are_escaped():
    tensors = made_up(1)
    tensors["names"] = np.array(["<script>&"], object)
    picture = base64.b64decode(
        routines.Histogram()(tensors)["answer"]["histogram"]["image"].split(",")[1]
    )
    assert b"<script>" not in picture and b"&lt;script&gt;&amp;" in picture


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (routines.Histogram, {"bins": 2, "ranges": (0.5,)}),
        (routines.Histogram, {"ranges": (0.5, 0.2)}),
        (routines.Resize, {}),
        (routines.Crop, {"xmin": 0.5, "xmax": 0.5}),
    ],
)
def test_arguments_that_contradict_each_other(kind, arguments):
    with pytest.raises(ValueError):
        kind(**arguments)


# --- before the model -------------------------------------------------------------------------------------


def test_resize_keeps_proportions_and_crop_cuts():
    image = np.zeros((40, 80, 3), np.uint8)
    assert routines.Resize(width=20)(image).shape == (10, 20, 3)
    assert routines.Resize(height=20)(image).shape == (20, 40, 3)
    assert routines.Resize(width=7, height=9)(image).shape == (9, 7, 3)
    assert routines.Crop(xmin=0.25, ymin=0.5)(image).shape == (20, 60, 3)
    assert routines.Crop(xmin=0.999, ymin=0.999, xmax=1.0)(image).shape == (1, 1, 3)


def test_grayscale_has_three_equal_channels():
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    grey = routines.Grayscale()(image)
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()
    np.testing.assert_allclose(grey[..., 0], image @ [0.299, 0.587, 0.114], atol=1)


def test_boxes_found_in_crops_of_crops_are_placed_in_the_whole_picture():
    image = np.zeros((100, 200, 3), np.uint8)
    image[60:70, 120:140] = 255  # ymin .6, xmin .6, ymax .7, xmax .7
    seen, region = routines.run_before(
        [
            routines.Crop(xmin=0.5, ymin=0.5),
            routines.Resize(width=50, height=50),
            routines.Crop(xmax=0.5, ymax=0.5),
        ],
        image,
    )
    ys, xs = np.nonzero(seen[..., 0] > 127)
    found = np.array([[ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]]) / np.tile(
        seen.shape[:2], 2
    )
    np.testing.assert_allclose(
        routines.place_boxes(found, region), [[0.6, 0.6, 0.7, 0.7]], atol=0.01
    )


# --- predictions out --------------------------------------------------------------------------------------


def blob(kind, side):
    """A mask of some shape, float [side, side] of 0/1, and the shape's own area lies inside."""
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    if kind == "circle":
        draw.ellipse((1, 1, side - 2, side - 2), fill=1)
    elif kind == "triangle":
        draw.polygon([(side // 2, 1), (1, side - 2), (side - 2, side - 2)], fill=1)
    elif kind == "star":
        points = [
            (side / 2 + r * math.sin(n * math.pi / 5), side / 2 - r * math.cos(n * math.pi / 5))
            for n, r in zip(range(10), [side / 2 - 1, side / 4] * 5)
        ]
        draw.polygon(points, fill=1)
    else:
        draw.rectangle((0, 0, side - 1, side - 1), fill=1)
    return np.asarray(image, np.float32)


@pytest.mark.parametrize("kind", ["circle", "triangle", "star", "square"])
@pytest.mark.parametrize("pixels", [24, 60, 200, 600])
def test_polygon_redrawn_overlaps_its_mask(kind, pixels):
    """Mask and polygon drawn on a grid eight times as fine, so that the areas are compared and not the pixels' corners."""
    width, height, fine = 1024, 768, 8
    box = np.array(
        [100 / height, 200 / width, (100 + pixels) / height, (200 + pixels) / width], np.float32
    )
    mask = blob(kind, 28)
    truth = np.zeros((height * fine, width * fine), np.uint8)
    pasted, top, left = paste_mask(mask, box, width, height, fine)
    truth[top : top + pasted.shape[0], left : left + pasted.shape[1]] = pasted
    ring = np.array(routines.trace_rings(mask, box, width, height)[0])
    drawn = cv2.fillPoly(
        np.zeros_like(truth), [(ring * [width * fine, height * fine]).astype(np.int32)], 1
    )
    assert (drawn & truth).sum() / (drawn | truth).sum() >= 0.95
    assert len(ring) < 200


@pytest.mark.parametrize("kind", ["circle", "triangle", "star", "square"])
def test_polygon_redrawn_in_the_pictures_own_pixels(kind):
    box, mask = np.array([0.1, 0.1, 0.6, 0.6], np.float32), blob(kind, 28)
    truth = np.zeros((480, 640), np.uint8)
    pasted, top, left = paste_mask(mask, box, 640, 480)
    truth[top : top + pasted.shape[0], left : left + pasted.shape[1]] = pasted
    ring = np.array(routines.trace_rings(mask, box, 640, 480)[0]) * [640, 480]
    drawn = cv2.fillPoly(np.zeros_like(truth), [ring.astype(np.int32)], 1)
    assert (drawn & truth).sum() / (drawn | truth).sum() >= 0.95


def test_mask_without_area_has_no_contour():
    box = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
    assert routines.trace_rings(np.zeros((7, 7)), box, 100, 100) == []
    tensors = {**made_up(1), "masks": np.zeros((1, 7, 7))}
    (entry,) = routines.to_annotations(tensors, 100, 100)
    assert (entry["boundType"], entry["contour"], entry["contourType"]) == ("rectangle", None, None)


def test_annotation_is_the_published_object():
    theirs = json.loads((ROOT / "tests/data/datature_blood_cells.json").read_text())[
        "predict_response"
    ]["predictions"][0]
    (xmin, ymin), _, (xmax, ymax), _ = theirs["bound"]
    tensors = {
        "boxes": np.array([[ymin, xmin, ymax, xmax]]),
        "scores": np.array([theirs["confidence"]]),
        "classes": np.array([3]),
        "names": np.array(["WBC"], object),
    }
    assert routines.to_annotations(tensors, 640, 480) == [theirs]


@pytest.mark.parametrize("masks", [True, False])
def test_no_detections_everywhere(masks):
    tensors = made_up(0, masks=masks)
    for kind, arguments in (
        (routines.FilterConfidence, {"confidence": 0.5}),
        (routines.FilterIOU, {"iou": 0.5}),
        (routines.FilterClass, {"class_name": "a"}),
        (routines.ExcludeClass, {"class_name": "a"}),
        (routines.Histogram, {}),
        (routines.Histogram, {"bins": 3}),
        (routines.ActiveLearning, {}),
    ):
        assert len(kind(**arguments)(tensors)["scores"]) == 0
    assert routines.to_annotations(tensors, 10, 10) == []
    assert routines.to_coco([], 10, 10, NAMES)["annotations"] == []
    assert routines.draw_annotations(np.zeros((10, 10, 3), np.uint8), [], "png").startswith(
        b"\x89PNG"
    )


def test_coco_is_in_pixels():
    tensors = {
        **made_up(1),
        "boxes": np.array([[0.25, 0.5, 0.5, 0.75]]),
        "masks": np.ones((1, 28, 28)),
    }
    coco = routines.to_coco(
        routines.to_annotations(tensors, 400, 200), 400, 200, NAMES, file_name="a.png"
    )
    assert coco["images"] == [{"id": 1, "width": 400, "height": 200, "file_name": "a.png"}]
    (entry,) = coco["annotations"]
    assert entry["bbox"] == [200, 50, 100, 50] and entry["area"] == pytest.approx(5000, rel=0.03)
    ring = np.array(entry["segmentation"][0]).reshape(-1, 2)
    np.testing.assert_allclose(
        [ring.min(axis=0), ring.max(axis=0)], [[200, 50], [300, 100]], atol=0.6
    )
    assert coco["categories"] == [
        {"id": 1, "name": "cat"},
        {"id": 2, "name": "dog"},
        {"id": 3, "name": "emu"},
    ]


@pytest.mark.parametrize("kind, start", [("png", b"\x89PNG"), ("jpeg", b"\xff\xd8")])
def test_drawn_picture_has_its_own_size_and_the_boxes(kind, start):
    image = np.full((120, 160, 3), 255, np.uint8)
    annotations = routines.to_annotations(
        {**made_up(1), "boxes": np.array([[0.5, 0.5, 0.9, 0.9]])}, 160, 120
    )
    data = routines.draw_annotations(image, annotations, kind)
    assert data.startswith(start)
    drawn = routines.decode_image(data, routines.ImageLimits())
    assert (
        drawn.shape == image.shape
        and (drawn[108, 90] < 250).any()
        and (drawn[10:40, 10:40] > 250).all()
    )


# --- model families ---------------------------------------------------------------------------------------


def model_of(outputs, labels=NAMES, made_by="", **options):
    """How a deployment reads outputs of these shapes."""
    specs = {name: ("DT_FLOAT", array.shape, made_by) for name, array in outputs.items()}
    return routines.ImageModel({"x": ("DT_UINT8", (1, None, None, 3))}, specs, labels, **options)


def test_detection_api_with_masks():
    outputs = {
        "detection_boxes": np.array(
            [[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0, 0]]], np.float32
        ),
        "num_detections": np.array([2.0]),
        "detection_scores": np.array([[0.4, 0.9, 0]], np.float32),
        "detection_classes": np.array([[2.0, 1.0, 1.0]], np.float32),
        "detection_masks": np.stack([np.full((1, 3, 5, 5), 0.3)])[0],
    }
    model = model_of(outputs)
    assert model.family == "detection_api"
    tensors = model.read(outputs)
    assert (
        tensors["classes"].tolist() == [1, 2]
        and tensors["names"].tolist() == ["cat", "dog"]
        and tensors["masks"].shape == (2, 5, 5)
    )
    assert tensors["boxes"].tolist() == [[0.5, 0.5, 1, 1], [0, 0, 0.5, 0.5]]
    assert len(model_of(outputs, most=1).read(outputs)["scores"]) == 1


def test_detector_rows_are_suppressed_by_class():
    rows_ = [
        [0, 0, 1, 1, 0.5, 1, 1],
        [0, 0, 1, 0.9, 0.8, 1, 1],
        [0, 0, 1, 1, 0.3, 2, 1],
        [0, 0, 1, 1, 0.99, 2, 0],
    ]
    outputs = {"output": np.array([rows_], np.float32)}
    assert model_of(outputs).family == "detector"
    tensors = model_of(outputs).read(outputs)
    assert tensors["classes"].tolist() == [1, 2] and tensors["scores"].tolist() == [
        np.float32(0.8),
        np.float32(0.3),
    ]


def test_mask_rcnn_classes_start_at_zero():
    outputs = {
        "output_1": np.array([0.9, 0.8]),
        "output_2": np.array([0, 2]),
        "output_3": np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]]),
        "output_4": np.ones((2, 14, 14)),
    }
    assert model_of(outputs).family == "mask_rcnn"
    tensors = model_of(outputs).read({name: array[np.newaxis] for name, array in outputs.items()})
    assert tensors["names"].tolist() == ["cat", "emu"] and tensors["masks"].shape == (2, 14, 14)


@pytest.mark.parametrize("first", [True, False])
def test_segmentation_regions(first):
    planes = np.zeros((60, 80, 4), np.float32)
    planes[..., 0] = 1
    for number, (top, left, bottom, right) in (
        (2, (5, 5, 25, 45)),
        (2, (40, 10, 50, 20)),
        (3, (30, 60, 55, 75)),
    ):
        planes[top:bottom, left:right] = 0
        planes[top:bottom, left:right, number] = 1
    planes = planes * 0.9 + 0.025
    output = (np.moveaxis(planes, 2, 0) if first else planes)[np.newaxis]
    model = model_of({"masks": output}, made_by="Softmax")
    assert model.family == "segmentation"
    tensors = model.read({"masks": output})
    found = {
        (name, *np.rint(box * [60, 80, 60, 80]).astype(int))
        for name, box in zip(tensors["names"], tensors["boxes"])
    }
    assert found == {("dog", 5, 5, 25, 45), ("dog", 40, 10, 50, 20), ("emu", 30, 60, 55, 75)}
    assert tensors["scores"] == pytest.approx([0.925] * 3)
    for annotation in routines.to_annotations(tensors, 800, 600):
        ring, bound = np.array(annotation["contour"]), np.array(annotation["bound"])
        np.testing.assert_allclose(
            [ring.min(axis=0), ring.max(axis=0)], [bound[0], bound[2]], atol=0.01
        )


def test_segmentation_of_background_alone_finds_nothing():
    planes = np.zeros((1, 8, 8, 3), np.float32)
    planes[..., 0] = 1
    model = model_of({"m": planes}, {1: "a", 2: "b"}, "Softmax")
    assert len(model.read({"m": planes})["scores"]) == 0


@pytest.mark.parametrize(
    "values, labels, first, known",
    [
        ([0.1, 0.7, 0.2], NAMES, "dog", {"made_by": "Softmax"}),
        ([-1.0, 3.0, 2.0], NAMES, "dog", {"activation": "softmax"}),
        ([0.1, 0.1, 0.7, 0.1], NAMES, "dog", {"activation": "none", "classes_from": 1}),
        ([0.1, 0.7, 0.2], {0: "x", 1: "y", 2: "z"}, "y", {"made_by": "Softmax"}),
        ([0.1, 0.9], {}, "2", {"made_by": "Softmax"}),
    ],
)
def test_classifier_by_probabilities_or_logits(values, labels, first, known):
    outputs = {"p": np.array([values])}
    tensors = model_of(outputs, labels, **known).read(outputs)
    assert (
        tensors["names"][0] == first
        and tensors["scores"].sum() == pytest.approx(1)
        and "boxes" not in tensors
    )
    entry = routines.to_annotations(tensors, 10, 10)[0]
    assert entry["bound"] is entry["boundType"] is entry["contour"] is entry["contourType"] is None


def test_unknown_outputs_are_refused_by_name():
    inputs = {"x": ("DT_UINT8", (1, None, None, 3))}
    with pytest.raises(ValueError, match=r"fit no known family: a \[1\], b of any shape: write "):
        routines.ImageModel(inputs, {"a": ("DT_FLOAT", (1,)), "b": ("DT_FLOAT", None)})


@pytest.mark.parametrize(
    "text",
    [
        "item { id: 1 name: 'cat' }\nitem {\n  id: 2\n  name: \"dog\"\n}\nitem { name: 'emu' id: 3 }",
        '{"1": "cat", "2": "dog", "3": "emu"}',
        '{"1": {"id": 1, "name": "cat"}, "2": {"id": 2, "name": "dog"}, "3": {"id": 3, "name": "emu"}}',
        '["cat", "dog", "emu"]',
        "cat\ndog\n\nemu\n",
    ],
)
def test_label_maps(text):
    assert routines.read_label_map(text) == NAMES


@pytest.mark.parametrize("text", ["item { id: 1 }", '{"a": "b"}', "[1", '{"1": {}}'])
def test_wrong_label_maps(text):
    with pytest.raises(ValueError):
        routines.read_label_map(text)


@given(st.integers(0, 50), st.integers(0, 10_000))
@settings(max_examples=50)
def test_filters_never_mix_up_rows(count, seed):
    tensors = made_up(count, seed, masks=True)
    tensors["masks"] = np.broadcast_to(tensors["scores"][:, np.newaxis, np.newaxis], (count, 2, 2))
    for step in (
        routines.FilterConfidence(confidence=0.3),
        routines.FilterIOU(iou=0.4),
        routines.ExcludeClass(class_name="cat"),
    ):
        tensors = step(tensors)
        assert (
            (tensors["masks"][:, 0, 0] == tensors["scores"]).all()
            if len(tensors["scores"])
            else True
        )
        assert all(
            NAMES[number] == name for number, name in zip(tensors["classes"], tensors["names"])
        )


# --- what a reader found ------------------------------------------------------------------------

SQUARE = {"image": ("DT_UINT8", (None, 64, 64, 3))}


def test_planes_of_logits_are_read_as_those_of_sigmoids_where_the_config_says_so():
    logits = np.full((1, 64, 64, 3), -5, np.float32)
    logits[:, :, :32, 1] = 5
    logits[:, :, 16:48, 2] = 6  # over the half of the one before
    seen = []
    for made_by, activation, planes in (
        ("BiasAdd", "sigmoid", logits),
        ("Sigmoid", None, 1 / (1 + np.exp(-logits))),
    ):
        model = routines.ImageModel(
            SQUARE,
            {"out": ("DT_FLOAT", (None, 64, 64, 3), made_by)},
            family="segmentation",
            activation=activation,
            labels={1: "a", 2: "b", 3: "c"},
        )
        found = model.read({"out": planes}, (64, 64))
        seen.append(sorted(zip(found["names"].tolist(), found["boxes"][:, 3].tolist())))
    assert seen[0] == seen[1] == [("b", 0.5), ("c", 0.75)]


@pytest.mark.parametrize(
    "last, height, width", [(True, 96, 128), (True, 96, 160), (False, 128, 192)]
)
def test_prototypes_of_any_picture_lie_where_their_grid_is(last, height, width):
    cells = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    planes = np.full((1, height // 4, width // 4, 32), -6, np.float32)
    planes[0, :, : width // 8, 0] = 6  # the left half
    rows = np.zeros((1, 4 + 2 + 32, cells), np.float32)
    rows[0, :4, 5] = width / 2, height / 2, width / 2, height / 2
    rows[0, 5, 5], rows[0, 6, 5] = 0.9, 1  # the second class
    planes = planes if last else np.moveaxis(planes, 3, 1)
    model = routines.ImageModel(
        {"image": ("DT_UINT8", (None, height, width, 3))},
        {"a": ("DT_FLOAT", rows.shape, "ConcatV2", "input"), "b": ("DT_FLOAT", planes.shape)},
    )
    found = model.read({"a": rows, "b": planes}, (height, width))
    assert found["classes"].tolist() == [2] and found["scores"][0] == np.float32(0.9)
    half = found["masks"].shape[2] // 2
    assert (found["masks"][0, :, : half - 2] > 0.5).all()
    assert (found["masks"][0, :, half + 2 :] < 0.5).all()


@pytest.mark.parametrize("labels", [range(1, 10), (1, 2), (7,)])
def test_a_label_map_of_other_planes_is_refused_with_both_numbers(labels):
    with pytest.raises(ValueError, match="expected names of the model's 5 classes.* got"):
        routines.ImageModel(
            SQUARE,
            {"out": ("DT_FLOAT", (None, 64, 64, 5), "Softmax")},
            labels={number: str(number) for number in labels},
        )


@pytest.mark.parametrize("slot, shape", [("mask", (None, None)), ("output", (None, 7))])
def test_an_output_without_a_batch_whose_sizes_are_open_is_told_as_any(slot, shape):
    made_by = "Sigmoid" if slot == "mask" else "ConcatV2"
    outputs = {"out": ("DT_FLOAT", shape, made_by)}
    try:
        routines.ImageModel(SQUARE, outputs, rename={slot: "out"})
    except ValueError as error:
        assert "out" in str(error) or slot in str(error)


def test_a_name_that_the_model_has_is_no_warning_though_it_was_dropped():
    model = routines.ImageModel(
        SQUARE, {"scores": ("DT_FLOAT", (None, 2), "Softmax"), "labels": ("DT_STRING", (None, 2))}
    )
    outputs = {
        "scores": np.array([[0.9, 0.1]], np.float32),
        "labels": np.array([[b"cat", b"dog"]], object),
    }
    for step in (
        routines.ExcludeClass(class_name="cat"),
        routines.Threshold(confidence={"dog": 0.5}),
        routines.FilterClass(class_name="cat"),
    ):
        picture = np.zeros((64, 64, 3), np.uint8)
        (seen,) = routines.predict_images(model, lambda _: outputs, [picture], [step])
        assert "warnings" not in seen.get("answer", {}), step


def test_resize_makes_no_picture_that_is_larger_than_any_memory():
    thin = np.zeros((100, 1, 3), np.uint8)
    with pytest.raises(routines.RoutineError, match="at most 25000000 pixels, got 10000x1000000"):
        routines.Resize(width=10_000)(thin)
    assert routines.Resize(height=1000)(thin).shape == (1000, 10, 3)


def test_what_routines_make_of_a_picture_is_allowed_for():
    model = routines.ImageModel(
        {"image": ("DT_FLOAT", (None, None, None, 3))}, {"p": ("DT_FLOAT", (None, 2), "Softmax")}
    )
    asked = []
    routines.predict_images(
        model,
        lambda inputs: {"p": np.array([[0.5, 0.5]], np.float32)},
        [np.zeros((10, 10, 3), np.uint8)],
        [routines.Resize(width=1000, height=500)],
        asked.append,
    )
    assert sum(asked) >= 1000 * 500 * 3 * (1 + 4)


def test_grayscale_leaves_transparency_as_it_is():
    image = np.random.default_rng(1).integers(0, 256, (5, 7, 4), np.uint8)
    grey = routines.Grayscale()(image)
    assert (grey[:, :, 3] == image[:, :, 3]).all() and (grey[:, :, 0] == grey[:, :, 2]).all()
    assert (routines.Grayscale()(image[:, :, :3]) == grey[:, :, :3]).all()


def test_a_histogram_of_many_classes_and_bins_counts_as_one_by_one():
    chance = np.random.default_rng(2)
    names = np.array([f"class {number}" for number in chance.integers(0, 40, 300)], object)
    scores = chance.random(300).astype(np.float32)
    tensors = {"scores": scores, "names": names, "classes": np.arange(300)}
    told = routines.Histogram(bins=100)(tensors)["answer"]["histogram"]
    assert len(told["image"]) < 2_000_000
    for name, counts in told["counts"].items():
        truth = np.zeros(100, int)
        for score in scores[names == name]:
            truth[min(99, int(np.ceil(float(score) * 100)) - 1)] += 1
        assert counts == truth.tolist()


def test_numbers_of_classes_as_floats_are_refused_with_what_to_export():
    with pytest.raises(ValueError, match="holds numbers of classes: export them as integers"):
        routines.ImageModel(SQUARE, {"out": ("DT_FLOAT", (None, 64, 64), "ArgMax")})


@pytest.mark.parametrize("side, found", [(8, 1), (64, 1), (128, 0)])
def test_a_piece_of_three_cells_is_a_speck_of_a_fine_plane_alone(side, found):
    mask = np.full((1, side, side, 1), 0.05, np.float32)
    mask[0, 2, 2:5] = 0.95
    model = routines.ImageModel(
        {"image": ("DT_UINT8", (None, 256, 256, 3))},
        {"out": ("DT_FLOAT", (None, side, side, 1), "Sigmoid")},
        family="segmentation",
    )
    assert len(model.read({"out": mask}, (256, 256))["scores"]) == found


# --- what a model or a request brings that is odd ---------------------------------------------------------


def test_planes_of_sigmoids_whose_class_0_has_a_name_are_told_apart_or_refused():
    planes = np.zeros((1, 64, 64, 2), np.float32)
    planes[0, 5:25, 5:25, 0] = planes[0, 30:60, 30:60, 1] = 1
    names = {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="class 0 'cat'"):
        model_of({"m": planes}, names, "Sigmoid")
    model = model_of({"m": planes}, names, "Sigmoid", classes_from=0)
    assert sorted(model.read({"m": planes})["names"]) == ["cat", "dog"]


def test_outputs_without_a_batch_are_not_taken_for_rows_of_several_pictures():
    shapes = {"detection_boxes": (None, 4), "detection_scores": (None,)}
    shapes |= {"detection_classes": (None,), "num_detections": (None,)}
    specs = {name: ("DT_FLOAT", shape, "") for name, shape in shapes.items()}
    pictures = {"x": ("DT_UINT8", (None, None, None, 3))}
    assert not routines.ImageModel(pictures, specs, NAMES).joins
    batched = {name: (kind, (None, *shape), made) for name, (kind, shape, made) in specs.items()}
    batched["num_detections"] = ("DT_FLOAT", (None,), "")
    assert routines.ImageModel(pictures, batched, NAMES).joins


def test_a_classifier_answers_every_class():
    scores = np.full((1, 1000), 0.001, np.float32)
    model = model_of({"p": scores}, {}, "Softmax")
    assert len(model.read({"p": scores})["scores"]) == 1000
    assert len(model_of({"p": scores}, {}, "Softmax", top_k=5).read({"p": scores})["scores"]) == 5


def test_centernet_of_many_classes():
    heat = np.zeros((1, 16, 16, 365), np.float32)
    heat[0, 4, 6, 300] = heat[0, 10, 2, 7] = 0.9
    sizes, offsets = np.full((1, 16, 16, 2), 3, np.float32), np.zeros((1, 16, 16, 2), np.float32)
    outputs = {"hm": heat, "wh": sizes, "reg": offsets}
    model = model_of(outputs, {}, family="centernet", activation="none")
    found = model.read(outputs)
    assert len(found["classes"]) == 2 and np.ptp(found["classes"]) == 293


def test_names_that_active_learning_does_not_know_are_told():
    tensors = {**made_up(3), "labels": NAMES}
    told = routines.ROUTINES["ActiveLearningMetric"](class_name="unicorn")(tensors)["answer"]
    assert told["avgEntropy"] == 0 and "no class 'unicorn'" in told["warnings"][0]


def test_a_histogram_has_at_most_a_thousand_bounds():
    kind = routines.ROUTINES["Histogram"]
    with pytest.raises(ValueError, match="at most 1000 bounds, got 1001"):
        kind(ranges=tuple(np.linspace(0, 1, 1001).tolist()))
    found = kind(ranges=tuple(np.linspace(0.001, 1, 1000).tolist()))(made_up(50))
    assert len(found["answer"]["histogram"]["ranges"]) == 1000


def test_a_mask_thinner_than_a_pixel_at_the_edge_is_drawn_as_nothing():
    thin = [[[0.9999999, 0.1], [1.0, 0.1], [1.0, 0.9], [0.9999999, 0.9]]]
    canvas = np.zeros((10, 10, 3), np.uint8)
    routines.draw_shape(canvas, {"tag": {"id": 1}, "bound": [], "contour": thin[0]}, 1)


def test_what_pictures_take_is_asked_for_one_after_the_other():
    asked = []

    def allow(count):
        asked.append(count)
        raise MemoryError

    outputs = {"p": np.array([[0.1, 0.9]])}
    model = model_of(outputs, {}, "Softmax")
    resize = routines.ROUTINES["Resize"](width=300, height=300)
    pictures = [np.zeros((8, 8, 3), np.uint8)] * 8
    with pytest.raises(MemoryError):
        routines.predict_images(model, lambda inputs: outputs, pictures, [resize], allow)
    assert len(asked) == 1 and asked[0] >= 300 * 300 * 3


@pytest.mark.parametrize(
    ("before", "made", "text"),
    [
        (False, lambda t: {**t, "scores": t["scores"][1:]}, "got 1 scores, 2 classes, 2 boxes"),
        (False, lambda t: {"labels": t["labels"]}, "got none"),
        (True, lambda picture: picture / 255, "got float64 [4, 6, 3]"),
        (True, lambda picture: picture[..., 0], "got uint8 [4, 6]"),
    ],
)
def test_what_a_routine_of_ones_own_returns_is_looked_at(before, made, text):
    """Scores would stand at other boxes, and a picture in 0..1 would be shown as black."""

    class Mine:
        before_model = before

        def __call__(self, given):
            return made(given)

    boxes, labels = np.float32([[0, 0, 1, 1], [0, 0, 0.5, 0.5]]), {1: "a"}
    tensors = {"scores": np.float32([0.9, 0.1]), "classes": np.int64([1, 1]), "boxes": boxes}
    with pytest.raises((TypeError, ValueError), match=rf"^Mine: .*{re.escape(text)}$"):
        if before:
            routines.run_before([Mine()], np.zeros((4, 6, 3), np.uint8))
        else:
            routines.run_after([Mine()], {**tensors, "labels": labels})


def test_arguments_of_routines_are_of_what_json_has():
    class Named:
        names: list[str] = routines.argument((), "names")
        most: int | None = routines.argument(None, "most")

    kind = routines.dataclass(frozen=True)(Named)
    routines.check_arguments(kind)
    assert serving.parse(kind, {"names": ["a", "b"]}).names == ["a", "b"]
    with pytest.raises(
        serving.ConfigError, match=re.escape("$.names[1]: expected string, got integer 1")
    ):
        serving.parse(kind, {"names": ["a", 1]})

    class Odd:
        how: Literal["a", "b"] = routines.argument("a", "how")

    with pytest.raises(TypeError, match=r"routine Odd: argument how: expected int, .*Literal"):
        routines.check_arguments(routines.dataclass(frozen=True)(Odd))


def test_a_module_with_postponed_annotations(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from typing import Optional\n"
        "from routines import argument, routine\n"
        "@routine()\n"
        "class First:\n"
        "    most: Optional[int] = argument(None, 'how many')\n"
        "    def __call__(self, tensors): return tensors\n"
    )
    kind = routines.import_module("mine.py", tmp_path)[0]["First"]
    assert serving.parse(kind, {"most": 3}).most == 3
    with pytest.raises(
        serving.ConfigError, match=re.escape("$.most: expected integer, got string '3'")
    ):
        serving.parse(kind, {"most": "3"})
