"""Models in published layouts: found or refused at load, and read as the projects themselves read them.

Every reader here is a project's own post-processing, written out by loops.
"""

import json

import cv2
import numpy as np
import pytest
import zoo
from conftest import ROOT, Rest, assert_error, bearer, config, paste_mask
from zoo import ZOO, Zoo

import routines
import serving

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
GARDEN_PICTURE = PICTURE[:32].repeat(2, axis=1)[:, :128]  # of the size that image_info tells
BY_NAME = {model.name: model for model in ZOO}


@pytest.fixture(scope="module")
def everything(tf, tmp_path_factory):
    """A server of all the models, each under a deployment of its own."""
    folder = tmp_path_factory.mktemp("zoo")
    for model in ZOO:
        zoo.export(tf, model, str(folder / model.name / "1"))
    models = [{"name": model.name, "base_path": str(folder / model.name)} for model in ZOO]
    deployments = [{"id": model.name, "model": model.name, **model.config} for model in ZOO]
    (folder / "config.json").write_text(json.dumps(config(*models, deployments=deployments)))
    server = serving.ModelServer(folder / "config.json")
    assert server.wait(300)
    yield server
    server.stop()


def see(server, name, picture=PICTURE):
    """The arrays of predictions for a picture."""
    (_, servable) = server.manager.find(name, None, None)
    model = server.prepared.deployments[name].model_of(servable)
    run = lambda inputs: servable.run("serving_default", inputs)  # noqa: E731
    return model.family, routines.predict_images(model, run, [picture], [])[0]


# --- what the projects do -------------------------------------------------------------------------


def iou(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def nms(rows, limit):
    """Greedy, class by class: of (class, score, box) those that stay."""
    kept = []
    for row in sorted(rows, key=lambda row: -row[1]):
        if all(row[0] != other[0] or iou(row[2], other[2]) <= limit for other in kept):
            kept.append(row)
    return kept


def corners(box):
    x, y, width, height = box
    return np.array([y - height / 2, x - width / 2, y + height / 2, x + width / 2])


def ultralytics(rows, side, confidence=0.25, limit=0.7):
    """ops.non_max_suppression: the best class of each row, then NMS."""
    found = []
    for row in rows:
        number = int(row[4:].argmax())
        if row[4 + number] >= confidence:
            found.append((number + 1, row[4 + number], corners(row[:4]) / side))
    return nms(found, limit)


def yolov5(rows, side):
    """general.non_max_suppression: an object's score times that of its best class."""
    found = []
    for row in rows:
        scores = row[5:] * row[4]
        if row[4] >= 0.25 and scores.max() >= 0.25:
            found.append((int(scores.argmax()) + 1, scores.max(), corners(row[:4]) / side))
    return nms(found, 0.45)


def listed(boxes=zoo.BOXES, classes=zoo.CLASSES):
    """Rows as they stand, without those of no confidence."""
    rows = zip(classes, zoo.SCORES, boxes)
    return [(int(number), score, box) for number, score, box in rows if score > 0]


def detr(activation, first):
    """PostProcess: a softmax without its last class; Deformable-DETR: sigmoids."""
    found = []
    for logits, box in zip(zoo.LOGITS[0], zoo.QUERIES[0]):
        if activation == "softmax":
            scores = (np.exp(logits) / np.exp(logits).sum())[:-1]
        else:
            scores = 1 / (1 + np.exp(-logits))
        found.append((int(scores.argmax()) + 1 - first, scores.max(), corners(box)))
    return found


def centernet():
    """ctdet_decode: peaks of 3 x 3, centres moved by the offsets; sizes are width, height."""
    heat, found = 1 / (1 + np.exp(-zoo.HEAT)), []
    for number in range(3):
        for y in range(16):
            for x in range(16):
                around = heat[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2, number]
                if heat[y, x, number] == around.max() and heat[y, x, number] >= 0.3:
                    box = np.array([y + 0.25 - 2, x + 0.25 - 3, y + 0.25 + 2, x + 0.25 + 3]) / 16
                    found.append((number + 1, heat[y, x, number], box))
    return found


V8 = ultralytics(zoo.V8, zoo.SIDE)
V5 = yolov5(zoo.V5, 1)
OUTSIDE = [(2, 0.9, [0, 0, 0.5, 0.5])]  # one lies half outside; one is inverted, one is not there
NAN = [row for index, row in enumerate(listed()) if index != 1]
FROM_COCO = [(number, score, box) for number, score, box in detr("softmax", 1)]
EXPECTED = {
    "odapi": listed(), "odapi_masks": listed(), "odapi_without_batch": listed(), "odapi_of_nan": NAN,
    "odapi_outside": OUTSIDE, "odapi_pixels_said": listed(), "garden_retinanet": listed(),
    "garden_mask_rcnn": listed(), "garden_normalized": listed(), "garden_clipped": listed(), "garden_yolo": listed(),
    "efficientdet": listed(),
    "efficientdet_said": listed(), "yolov8": V8, "yolov8_rows": V8, "yolov8_unit_said": V8,
    "odapi_raw": listed(), "yolov8_unit": V8, "yolov8_scale_said": V8, "yolov8_head": ultralytics(zoo.decoded(), zoo.SIDE),
    "yolov8_head_unit": ultralytics(zoo.decoded(), zoo.SIDE), "yolov5_head": V5,
    "yolov5_head_pixels": V5, "yolov5_pixels": V5,
    "yolo11_coco": ultralytics(zoo.BIG, 96), "yolov5": V5, "yolov5_pixels_said": V5,
    "yolov10": listed(), "yxyx_rows": listed(), "keras_cv": listed(), "keras_cv_relative": listed(),
    "detr": detr("softmax", 0), "detr_of_coco": FROM_COCO, "deformable_detr": detr("sigmoid", 0),
    "centernet": centernet(), "centernet_logits": centernet(),
    "datature_detector": nms(listed(), 0.5), "datature_detector_without_batch": nms(listed(), 0.5),
    "datature_mask_rcnn": listed(), "own_names": listed(),
    # the input takes any size, and pixels are those of the picture
    "yolov8_open": ultralytics(zoo.V8, np.array([48, 96, 48, 96])),
    "yolov8_open_images": ultralytics(zoo.V8, np.array([48, 96, 48, 96])),
    "keras_hub": listed(zoo.PIXELS / np.array([48, 96, 48, 96])),
}  # fmt: skip


def clip(rows):
    """Cut to the picture, best first, without boxes of which nothing is left."""
    rows = [(number, score, np.clip(box, 0, 1)) for number, score, box in rows]
    rows = [row for row in rows if (row[2][2:] > row[2][:2]).all()]
    return sorted(rows, key=lambda row: -row[1])


@pytest.mark.parametrize("name", EXPECTED)
def test_detectors_find_what_their_projects_find(everything, name):
    picture = GARDEN_PICTURE if name.startswith("garden") else PICTURE
    family, found = see(everything, name, picture)
    wanted = clip(EXPECTED[name])
    assert family == BY_NAME[name].family and 0 < len(wanted) == len(found["scores"])
    assert found["classes"].tolist() == [number for number, _, _ in wanted]
    np.testing.assert_allclose(found["scores"], [score for _, score, _ in wanted], atol=1e-5)
    np.testing.assert_allclose(found["boxes"], [box for _, _, box in wanted], atol=1e-3)
    if "label_map" in BY_NAME[name].config and name != "detr_of_coco":
        assert found["names"].tolist() == [zoo.CATS[number - 1] for number, _, _ in wanted]


# --- masks ----------------------------------------------------------------------------------------


def drawn(found, index, height, width):
    """A prediction's mask in pixels of the picture."""
    whole = np.zeros((height, width), bool)
    pixels, top, left = paste_mask(found["masks"][index], found["boxes"][index], width, height)
    whole[top : top + len(pixels), left : left + pixels.shape[1]] = pixels
    return whole


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def test_masks_of_yolo_are_its_projects(everything):
    """ops.process_mask_native: prototypes grown to the picture, added up, cut to the box, above 0."""
    _, found = see(everything, "yolov8_segmentation", PICTURE)
    rows = zoo.SEGMENTS[[10, 50]]
    assert found["classes"].tolist() == [2, 1]
    for index, row in enumerate(rows):
        field = (zoo.PROTOTYPES @ row[7:]).astype(np.float32)
        # the picture is 8 times as large as the input
        field = cv2.resize(field, (512, 512), interpolation=cv2.INTER_LINEAR)
        top, left, bottom, right = (corners(row[:4]) * 8).astype(int)
        whole = np.zeros((512, 512), bool)
        whole[top:bottom, left:right] = field[top:bottom, left:right] > 0
        assert overlap(drawn(found, index, 512, 512), whole) >= 0.98


def test_prototypes_of_a_cube_lie_where_the_config_says(everything):
    """The rows' first 16 planes are rows of the grid, the other 16 columns: below the diagonal."""
    _, found = see(everything, "yolov8_cube_said", np.zeros((128, 128, 3), np.uint8))
    assert found["classes"].tolist() == [2] and len(found["masks"]) == 1
    y, x = np.indices((128, 128))
    box = (y >= 24) & (y < 104) & (x >= 16) & (x < 112)
    assert overlap(drawn(found, 0, 128, 128), box & (y > x)) >= 0.98


def test_as_many_masks_as_the_deployment_answers():
    """In bounded memory: of many, each has fewer pixels."""
    cells = 80 * 80 + 40 * 40 + 20 * 20
    rows = np.zeros((1, 4 + 1 + 2, cells), np.float32)
    count = 700
    rows[0, 0, :count], rows[0, 1, :count] = (
        np.arange(count) % 30 * 20 + 10,
        np.arange(count) // 30 * 20 + 10,
    )
    rows[0, 2:4, :count], rows[0, 4, :count], rows[0, 5:, :count] = 16, 0.9, 1
    planes = np.full((1, 160, 160, 2), 3, np.float32)
    for most, wanted, side in ((1000, 700, 109), (300, 300, 128), (5, 5, 128)):
        model = routines.ImageModel(
            {"images": ("DT_FLOAT", (1, 640, 640, 3))},
            {"a": ("DT_FLOAT", rows.shape, "ConcatV2", "input"), "b": ("DT_FLOAT", planes.shape)},
            most=most,
        )
        found = model.read({"a": rows, "b": planes}, (640, 640))
        assert found["masks"].shape == (wanted, side, side) and found["masks"].min() > 0.9
    assert not len(model.read({"a": rows, "b": -planes}, (640, 640))["scores"])  # none without mask


def region_list(plane):
    """Connected regions of a bool plane, by a flood."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(plane))}
    while left:
        waiting, region = [left.pop()], []
        while waiting:
            y, x = waiting.pop()
            region.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            waiting += near
        if len(region) >= 4:
            whole = np.zeros_like(plane)
            whole[tuple(np.transpose(region))] = True
            yield whole


def sig(x):
    return 1 / (1 + np.exp(-x))


def best_planes(first=1, names=True):
    """Of each pixel the best class."""
    powers = np.exp(zoo.FIELD)
    share, winner = powers / powers.sum(2, keepdims=True), zoo.FIELD.argmax(2)
    return [
        (number + 1 - first, share[..., number][region].mean(), region)
        for number in range(first, 3)
        for region in region_list(winner == number)
    ]


def own_planes(field, limit=0.5):
    """Each plane by itself."""
    return [
        (number + 1, sig(field[..., number])[region].mean(), region)
        for number in range(field.shape[2])
        for region in region_list(sig(field[..., number]) >= limit)
    ]


DEEPLAB = [(number, 1.0, region) for number, _, region in best_planes()]
REGIONS = {
    "unet": own_planes(zoo.MASK), "mask_alone": own_planes(zoo.MASK),
    "unet_logits": own_planes(zoo.MASK, 0.8), "planes_last": best_planes(),
    "planes_first": best_planes(), "planes_resized": best_planes(), "planes_logits": best_planes(),
    "planes_of_labels": own_planes(zoo.FIELD - 3.5), "planes_all_named_said": best_planes(0),
    "deeplab": DEEPLAB, "deeplab_plane": DEEPLAB, "planes_flat": best_planes(),
    "planes_flat_logits": best_planes(), "planes_of_background": best_planes(),
    "deeplab_from_0": [(number, 1.0, region) for number, _, region in best_planes(0)],
    "garden_planes": best_planes(), "garden_planes_rescaled": best_planes(),
    "garden_planes_softmax": best_planes(),
}  # fmt: skip


@pytest.mark.parametrize("name", REGIONS)
def test_segmenters_find_each_region(everything, name):
    family, found = see(everything, name)
    wanted = REGIONS[name]
    assert family == BY_NAME[name].family and 0 < len(wanted) == len(found["scores"])
    matched = set()
    for number, score, region in wanted:
        shares = [overlap(drawn(found, index, 16, 32), region) for index in range(len(wanted))]
        best = int(np.argmax(shares))
        assert shares[best] >= 0.98 and found["classes"][best] == number
        assert found["scores"][best] == pytest.approx(score, abs=1e-5)
        matched.add(best)
    assert len(matched) == len(wanted)


# --- classifiers ----------------------------------------------------------------------------------


def shares(values):
    return (np.exp(values) / np.exp(values).sum()).ravel()


P, FIVE = float(sig(0.75)), shares(zoo.FIVE)
NAMED = dict(zip(zoo.CATS, shares(zoo.NUMBERS)))
LETTERS = dict(zip("abcde", sig(zoo.FIVE).ravel()))
CLASSES = {
    "softmax": NAMED, "softmax_written_out": NAMED, "softmax_hidden": NAMED, "logits": NAMED,
    "softmax_said": NAMED, "logits_and_probs": NAMED, "two_heads_said": NAMED, "labelled": NAMED,
    "labelled_from_1": NAMED, "picture_files": NAMED, "softmax_without_names": dict(zip("123", shares(zoo.NUMBERS))),
    "logits_of_labels": dict(zip(zoo.CATS, sig(zoo.NUMBERS).ravel())),
    "binary": {"cat": 1 - P, "dog": P}, "binary_yes": {"yes": P}, "binary_unnamed": {"1": P},
    "binary_logit": {"cat": 1 - P, "dog": P}, "binary_joined": {"cat": 1 - P, "dog": P},
    "multilabel": LETTERS, "multilabel_from": {k: v for k, v in LETTERS.items() if v >= 0.5},
    "with_background": dict(zip(["0", *"abcd"], FIVE)), "top_two": {"5": FIVE[4], "4": FIVE[3]},
}  # fmt: skip


@pytest.mark.parametrize("name", CLASSES)
def test_classifiers_answer_their_own_confidences(everything, name):
    answer = everything.predict_image(PICTURE, name)["predictions"]
    assert see(everything, name)[0] == BY_NAME[name].family
    found = {one["tag"]["name"]: one["confidence"] for one in answer}
    assert found == {key: pytest.approx(value, abs=1e-6) for key, value in CLASSES[name].items()}
    assert [one["confidence"] for one in answer] == sorted(found.values(), reverse=True)
    assert all(one["bound"] is None for one in answer)


# --- what is refused ------------------------------------------------------------------------------

REFUSED = [model.name for model in ZOO if model.refused]


def test_every_model_is_tested():
    tested = {*EXPECTED, *REGIONS, *CLASSES, *REFUSED, "yolov8_segmentation", "yolov8_cube_said"}
    assert tested | {model.name for model in ZOO if model.fails} == BY_NAME.keys()
    assert len(ZOO) >= 40


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_told_is_refused_at_load_with_the_line_to_write(everything, name):
    problem = everything.manager.deployment_problems()[name]
    place = f"$.deployments[{list(BY_NAME).index(name)}]: "
    assert problem.startswith(place) and BY_NAME[name].refused in problem
    client, key = Rest(everything), bearer(everything.generated_key)
    body = {"image_type": "array", "data": PICTURE.tolist()}
    answer = client.post(f"/{name}/predict", body, headers=key)
    assert_error(answer, 503, f"Deployment '{name}' is not available: {place}...")
    assert BY_NAME[name].refused in answer.json["error"]
    assert f"deployment {name} ({place}" in client.get("/readyz").json["error"]
    shown = client.get("/deployments", headers=key).json["deployments"]
    (shown,) = [one for one in shown if one["id"] == name]
    assert shown["state"] == "failed" and BY_NAME[name].refused in shown["reason"]


def test_those_that_are_told_are_ready(everything):
    assert sorted(everything.manager.deployment_problems()) == sorted(REFUSED)


def test_check_refuses_the_same_without_loading(everything, capsys):
    assert serving.main(["--check", "--config", str(everything.manager.path)]) == 2
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if line.startswith("wrong: ")]
    problems = everything.manager.deployment_problems()
    assert sorted(wrong) == sorted(f"wrong: {problem}" for problem in problems.values())


@pytest.mark.parametrize(
    "said, is_ready", [({}, True), ({"label_map": ["cat"]}, False), ({"default": True}, False)]
)
def test_a_deployment_that_says_nothing_of_pictures_may_name_any_model(tmp_path, said, is_ready):
    """It has a URL of CellStrat's, /model-serving/<id>; loading and --check are of one mind."""
    model = {"name": "numbers", "base_path": str(ROOT / "models/half_plus_two")}
    deployment = {"id": "halves", "model": "numbers", **said}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(model, deployments=[deployment])))
    server = serving.ModelServer(path)
    assert server.wait(60)
    rest = Rest(server)
    assert rest.get("/readyz").status_code == (200 if is_ready else 503)
    assert rest.post("/model-serving/halves:predict", {"instances": [1.0]}).json == {
        "predictions": [2.5]
    }
    body = {"image_type": "array", "data": [[1]]}
    answer = rest.post("/halves/predict", body, headers=bearer(server.generated_key))
    assert answer.status_code == (400 if is_ready else 503)
    assert "input 'x'" in answer.json["error"]
    assert (serving.main(["--check", "--config", str(path)]) == 0) is is_ready
    server.stop()


def image_model(outputs, side=64, names=(), **said):
    """How a deployment reads outputs: dtype, shape and perhaps the operation that makes them."""
    labels = {number: name for number, name in enumerate(names, 1)}
    known = {name: (f"DT_{dtype}", *more) for name, (dtype, *more) in outputs.items()}
    return routines.ImageModel({"x": ("DT_FLOAT", (1, side, side, 3))}, known, labels, **said)


F, ROW, RANKED = "FLOAT", ("FLOAT", (1, 4)), ("FLOAT", (None, 4), "Softmax")
TUPLE = {"output_0": ("INT32", (1,)), "output_1": ROW, "output_2": ROW, "output_3": (F, (1, 4, 4))}
INTEGERS = {**TUPLE, "output_1": ("INT32", (1, 4)), "output_4": (F, (1, 4, 7, 7))}
BY_CELLS = {"rows": (F, (1, 84, 8), "ConcatV2", "input")}
RANKS = {"probabilities": RANKED, "class": ("INT64", (None,))}
ESTIMATOR = {
    "logits": (F, (None, 4), "MatMul"), "probabilities": RANKED,
    "class_ids": ("INT64", (None, 1)), "classes": ("STRING", (None, 1)),
}  # fmt: skip
RANKED_LINE = '"family": "classifier", "outputs": {"probabilities": "probabilities"}'
RANKED_SAID = {"family": "classifier", "rename": {"probabilities": "probabilities"}}
SEGMENTER = {"family": "segmentation"}


def grid(*shape, made_by="Sigmoid"):
    return {"grid": (F, (1, *shape), made_by)}


@pytest.mark.parametrize(
    "outputs, side, names, reason, said",
    [
        (TUPLE, 64, ["cat"], 'write "family": "mask_rcnn"', {"family": "mask_rcnn"}),
        (INTEGERS, 64, ["cat"], "output_1 is [1, 4] of int32: write", None),
        (grid(7, 7, 30), 224, [], "covers 16 pixels or more", SEGMENTER),
        (grid(13, 13, 30), 416, [], "covers 16 pixels or more", SEGMENTER),
        (grid(7, 7, 5), 112, [], "covers 16 pixels or more", SEGMENTER),
        (grid(7, 7, 3, made_by="Softmax"), 224, ["a", "b"], "covers 32 pixels or more", SEGMENTER),
        (BY_CELLS, 64, [], '"family": "yolov5"', {"family": "yolov5"}),
        (BY_CELLS, 64, "abc", '"family": "yolov5"', {"family": "yolov5"}),
        ({"points": (F, (1, 63), "Sigmoid")}, 64, [], "63 sigmoids without names", None),
        (RANKS, 64, "abcd", RANKED_LINE, RANKED_SAID),
        ({**RANKS, "logits": (F, (None, 4), "MatMul")}, 64, "abcd", RANKED_LINE, RANKED_SAID),
        (ESTIMATOR, 64, "abcd", RANKED_LINE, RANKED_SAID),
        ({"steps": (F, (None, 1, 24, 37), "Softmax")}, 64, [], "a sequence is no mask", None),
    ],
)  # fmt: skip
def test_what_may_be_something_else_waits_for_the_line(outputs, side, names, reason, said):
    with pytest.raises(ValueError) as raised:
        image_model(outputs, side, names)
    assert reason in str(raised.value) and '"labelled_classifier"' not in str(raised.value)
    if said is not None:
        assert image_model(outputs, side, names, **said).family == said["family"]


@pytest.mark.parametrize("shape", [(None, 28, 28, 1), (None, 1, 28, 28), (None, 28, 28)])
def test_one_plane_for_grey_pictures_may_be_one(shape):
    """What autoencoders of MNIST and grey super-resolution answer, as U-Nets of grey scans do."""
    sides = {"x": ("DT_FLOAT", shape)}, {"planes": ("DT_FLOAT", shape, "Sigmoid")}
    with pytest.raises(
        ValueError, match='may also be a picture.* write "label_map", or "family": "'
    ):
        routines.ImageModel(*sides)
    kind = "mask" if len(shape) == 3 else "segmentation"
    for said in ({"labels": {1: "cell"}}, {"activation": "none"}, {"family": kind}):
        assert routines.ImageModel(*sides, **said).family == kind
    in_colours = {"x": ("DT_FLOAT", (None, 28, 28, 3))}
    assert routines.ImageModel(in_colours, sides[1]).family == kind


@pytest.mark.parametrize("shape", [(None, 1), (None, 8, 8, 1)])
def test_one_of_several_classes_is_answered_where_the_config_says_so(shape):
    """`softmax(x)[..., 1:]` of two classes: the graph does not tell it from a softmax of one."""
    outputs = {"cut": ("FLOAT", shape, "Softmax")}
    with pytest.raises(ValueError, match='several classes: export all of them, or write "activ'):
        image_model(outputs, names=["dog"])
    model = image_model(outputs, names=["dog"], activation="none")
    found = model.read({"cut": np.full((1, *shape[1:]), 0.7, np.float32)})
    assert found["scores"].tolist() == pytest.approx([0.7]) and found["names"] == ["dog"]


def named_rows(scores, classes, boxes=zoo.BOXES[:2], names=("scores", "classes", "boxes")):
    """A batch of one, under a family's names for them."""
    values = (scores, classes, boxes)
    return {name: np.array([value], np.float32) for name, value in zip(names, values)}


API = ("detection_scores", "detection_classes", "detection_boxes")
XYWH_BOXES = [[0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]]
YXYX = {"boxes": {"format": "yxyx", "scale": "unit"}}
IN_TURN = ("output_1", "output_2", "output_3")


@pytest.mark.parametrize(
    "rows, said, problem",
    [
        (
            named_rows([90, 80], [1, 2], names=API),
            {},
            "must be in 0..1, but the model answers 0..90",
        ),
        (
            named_rows([2.5, -1], [1, 2], names=API),
            {},
            "must be in 0..1, but the model answers 0..2.5",
        ),
        (
            named_rows([0.5, -3], [1, 2], names=API),
            {},
            "must be in 0..1, but the model answers -3..0.5",
        ),
        (named_rows([90, 80], [0, 1]), YXYX, "must be in 0..1, but the model answers 0..90"),
        (
            named_rows([17, 3], [0.9, 0.3], names=IN_TURN),
            {"family": "mask_rcnn"},
            "must be in 0..1",
        ),
        (named_rows([0, 1], [0.9, 0.8], names=IN_TURN), {"family": "mask_rcnn"}, "whole numbers"),
        (named_rows([0, 0], [0.9, 0.8], names=IN_TURN), {"family": "mask_rcnn"}, "whole numbers"),
        (
            named_rows([0.9, 0.8], [1, 2], XYWH_BOXES, API),
            {},
            'write "boxes": {"format": "xyxy | xywh | cxcywh"}',
        ),
        (
            {"o": np.array([[[0, 0, 9, 9, 1, 0.7], [0, 0, 9, 9, 0, 0.6]]], np.float32)},
            {"family": "yolo_nms"},
            "whole numbers",
        ),
    ],
)
def test_rows_that_contradict_their_names_are_an_error(rows, said, problem):
    known = {name: (F, array.shape) for name, array in rows.items()}
    with pytest.raises(routines.OutputError) as raised:
        image_model(known, names=["cat", "dog"], **said).read(rows, (64, 64))
    assert problem in str(raised.value)


@pytest.mark.parametrize("count", ["num_detections", "valid_detections"])
def test_rows_that_are_not_used_are_left_out(count):
    """Those beyond the number of rows, as tf.image calls it as well, and those of -1."""
    rows = named_rows([0.9, -1, 0.8, 0.7], [0, -1, 1, 1], zoo.BOXES[[0, 1, 2, 0]])
    rows[count] = np.array([3], np.int32)
    known = {name: (F, array.shape) for name, array in rows.items()}
    found = image_model(known, names=["cat", "dog"], **YXYX).read(rows)
    assert found["names"].tolist() == ["cat", "dog"]


@pytest.mark.parametrize("shape", [(None, 1, 1, 3), (None, 3, 1, 1)])
def test_a_classifier_whose_pooling_leaves_sizes_of_one(shape):
    for said in ({}, {"family": "classifier"}):
        model = image_model({"p": (F, shape, "Softmax")}, names=["a", "b", "c"], **said)
        array = np.array([0.25, 0.75, 0], np.float32).reshape([1, *shape[1:]])
        found = model.read({"p": array})
        assert model.family == "classifier" and found["names"].tolist() == ["b", "a", "c"]


@pytest.mark.parametrize("name", [model.name for model in ZOO if model.fails])
def test_answers_that_contradict_what_they_are_said_to_be_are_no_predictions(everything, name):
    with pytest.raises(serving.ServingError) as raised:
        everything.predict_image(PICTURE, name)
    assert BY_NAME[name].fails in raised.value.message
    assert f"Deployment '{name}'" in raised.value.message


def test_a_class_without_a_name_in_the_label_map_is_warned_of():
    """Detectors of rows do not tell how many classes there are."""
    outputs = {f"detection_{name}": ("DT_FLOAT", None) for name in ("boxes", "scores", "classes")}
    arrays = {
        "detection_boxes": np.array([[[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0, 0, 0.25, 0.5]]]),
        "detection_scores": np.array([[0.9, 0.8, 0.7]]),
        "detection_classes": np.array([[1, 5, 9]]),
    }
    inputs = {"x": ("DT_FLOAT", (1, 64, 64, 3))}
    for labels, warnings in (
        ({1: "cat", 2: "dog"}, ["label map: no name for class 5, 9; it has 2, up to id 2"]),
        ({1: "cat", 5: "dog", 9: "emu"}, None),
        ({}, None),
    ):
        model = routines.ImageModel(inputs, outputs, labels=labels)
        chain = [routines.FilterClass(("cat",))] if labels else []
        (found,) = routines.predict_images(model, lambda _: arrays, [PICTURE], chain)
        assert found.get("answer", {}).get("warnings", [])[:1] == (warnings or [])[:1]
        assert len(found["scores"]) >= 1


def test_rows_of_nan_are_dropped_and_told(everything, caplog):
    see(everything, "odapi_of_nan")
    assert "family detection_api: 1 predictions dropped" in caplog.text


def test_nan_goes_no_further_than_its_row():
    """In a class, in pixels of a mask, in an instance's mask."""
    inputs = {"x": ("DT_FLOAT", (1, 64, 64, 3))}
    model = routines.ImageModel(inputs, {"p": ("DT_FLOAT", (1, 3), "Softmax")})
    found = model.read({"p": np.array([[np.nan, 0.25, 0.75]])})
    assert found["classes"].tolist() == [3, 2]
    model = routines.ImageModel(inputs, {"m": ("DT_FLOAT", (1, 8, 8, 1), "Sigmoid")})
    mask = np.full((1, 8, 8, 1), np.nan)
    assert len(model.read({"m": mask})["scores"]) == 0
    mask[0, 2:6, 2:6] = 0.9
    assert model.read({"m": mask})["boxes"].tolist() == [[0.25, 0.25, 0.75, 0.75]]
    outputs = {f"detection_{name}": ("DT_FLOAT", None) for name in ("boxes", "scores", "classes")}
    model = routines.ImageModel(inputs, {**outputs, "detection_masks": ("DT_FLOAT", None)})
    masks = np.ones((1, 2, 5, 5))
    masks[0, 0, 1, 1] = np.nan
    found = model.read(
        {
            "detection_boxes": np.array([[[0, 0, 1, 1], [0, 0, 0.5, 0.5]]]),
            "detection_scores": np.array([[0.9, 0.8]]),
            "detection_classes": np.array([[1, 2]]),
            "detection_masks": masks,
        }
    )
    assert found["classes"].tolist() == [2] and len(found["masks"]) == 1


def test_masks_are_cut_with_their_boxes():
    """Half of a box lies outside: what is left of its mask is the other half."""
    masks = np.zeros((1, 8, 8), np.float32)
    masks[:, :, 4:] = 1
    box = np.array([[0.0, -0.5, 1, 0.5]], np.float32)
    assert (routines.clip_boxes({"masks": masks}, box)["masks"] > 0.4).all()


# --- exported by Keras itself, by TF1, and on demand ----------------------------------------------


def test_models_as_keras_exports_them(tf, tmp_path):
    """One sigmoid, five of them, logits, and a U-Net: what `:predict` answers is the confidence."""
    import keras

    keras.utils.set_random_seed(1)
    layers, model = keras.layers, {}
    for name, top in {
        "binary": layers.Dense(1, activation="sigmoid"),
        "many": layers.Dense(5, activation="sigmoid"),
        "kinds": layers.Dense(3, activation="softmax"),
        "logits": layers.Dense(3),
    }.items():
        shrink = [layers.Rescaling(1 / 255), layers.GlobalAveragePooling2D()]
        model[name] = keras.Sequential([keras.Input((32, 32, 3)), *shrink, top])
    model["unet"] = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(1, 3, padding="same", activation="sigmoid")]
    )
    for name, one in model.items():
        one.export(tmp_path / name / "1", verbose=False)
    models = [{"name": name, "base_path": str(tmp_path / name)} for name in model]
    deployments = [{"id": name, "model": name} for name in model]
    server = serving.ModelServer(config(*models, deployments=deployments))
    assert server.wait(120)
    assert list(server.manager.deployment_problems()) == ["logits"]
    picture = np.zeros((32, 32, 3), np.uint8)
    for name in ("binary", "many", "kinds"):
        (raw,) = server.predict(name, {"instances": picture[None].astype(np.float32)})[
            "predictions"
        ]
        answer = server.predict_image(picture, name)["predictions"]
        assert [one["confidence"] for one in answer] == pytest.approx(sorted(raw)[::-1])
    assert [
        one["confidence"] for one in server.predict_image(picture, "binary")["predictions"]
    ] == [0.5]
    assert server.predict_image(picture, "unet")["predictions"][0]["boundType"] == "masks"
    server.stop()


def test_a_frozen_graph_of_tf1_and_a_model_on_demand(tf, tmp_path):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        pixels = tf.compat.v1.placeholder(tf.float32, (None, 8, 8, 3), "input")
        means = tf.reduce_mean(pixels, [1, 2]) / 255
        known = tf.identity(tf.nn.softmax(means), "Predictions")
        tf.compat.v1.saved_model.simple_save(
            session, str(tmp_path / "1"), {"input": pixels}, {"predictions": known}
        )
        tf.compat.v1.saved_model.simple_save(
            session, str(tmp_path / "raw/1"), {"input": pixels}, {"logits": means + 0.0}
        )
    models = [
        {"name": "m", "base_path": str(tmp_path)},
        {"name": "later", "base_path": str(tmp_path), "load": "on_demand"},
        {"name": "raw", "base_path": str(tmp_path / "raw"), "load": "on_demand"},
    ]
    deployments = [{"id": one["name"], "model": one["name"]} for one in models]
    server = serving.ModelServer(config(*models, deployments=deployments))
    assert server.wait(120)
    assert list(server.manager.deployment_problems()) == ["raw"]
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[..., 1] = 255
    wanted = np.exp([1.0, 0, 0]) / np.exp([1.0, 0, 0]).sum()
    for name in ("m", "later"):
        found = server.predict_image(picture, name)["predictions"]
        assert [one["tag"]["id"] for one in found] == [2, 1, 3]
        assert [one["confidence"] for one in found] == pytest.approx(wanted)
    server.stop()


def test_pipelines_tell_what_the_graphs_of_their_models_tell(tf, tmp_path):
    """What makes their numbers; where boxes lie, of pictures that go to the model as they are."""
    (tmp_path / "turn.py").write_text("def turn(inputs, params):\n    return dict(inputs)\n")
    names, models, pipelines = ("softmax", "logits_unsaid", "yolov8", "yolov8_head"), [], []
    for name in names:
        zoo.export(tf, BY_NAME[name], str(tmp_path / name / "1"))
        models.append({"name": name, "base_path": str(tmp_path / name)})
        ((output, _),) = serving.read_signatures(tmp_path / name / "1", ["serve"])[
            "serving_default"
        ].outputs.items()
        link = lambda key, node, item: {key: {"node_name": node, "data_item": item}}  # noqa: E731
        turn = {
            "name": "turn", "type": "custom", "function": "turn.py:turn",
            "inputs": [link("image", "request", "image")],
            "outputs": [{"data_item": "image", "alias": "image"}],
        }  # fmt: skip
        for first in ("request", "turn"):
            node = {
                "name": "see", "type": "DL model", "model_name": name,
                "inputs": [link("image", first, "image")],
                "outputs": [{"data_item": output, "alias": "found"}],
            }  # fmt: skip
            nodes = [node, turn] if first == "turn" else [node]
            outputs = [link(output, "see", "found")]
            one = {
                "name": f"{first}_{name}",
                "inputs": ["image"],
                "nodes": nodes,
                "outputs": outputs,
            }
            pipelines.append(one)
    deployments = [
        {"id": one["name"], "model": one["name"], "channels": "rgb", "layout": "NHWC", **zoo.C}
        for one in pipelines
    ]
    path = tmp_path / "config.json"
    made = config(*models, pipeline_config_list=pipelines, deployments=deployments)
    path.write_text(json.dumps(made))
    server = serving.ModelServer(path)
    assert server.wait(120)
    problems = server.manager.deployment_problems()
    assert sorted(problems) == [
        "request_logits_unsaid", "turn_logits_unsaid", "turn_yolov8", "turn_yolov8_head",
    ]  # fmt: skip
    assert all('"activation": "softmax"' in problems[name] for name in list(problems)[:2])
    assert all('"scale": "unit | pixels | input"' in problems[f"turn_{name}"] for name in names[2:])
    picture = cv2.resize(PICTURE, (zoo.SIDE, zoo.SIDE))
    for name in ("request_softmax", "turn_softmax", "request_yolov8_head"):
        found = server.predict_image(picture, name)["predictions"]
        if "softmax" in name:
            found = {one["tag"]["name"]: one["confidence"] for one in found}
            assert found == {key: pytest.approx(value) for key, value in NAMED.items()}
        else:
            wanted = clip(EXPECTED["yolov8_head"])
            assert [one["confidence"] for one in found] == pytest.approx([w[1] for w in wanted])
            assert found[0]["bound"][0][::-1] == pytest.approx(wanted[0][2][:2].tolist(), abs=1e-4)
    server.stop()


# --- families of one's own ------------------------------------------------------------------------


def test_the_family_in_the_documents_runs(tf, tmp_path):
    text = (ROOT / "docs/pictures.md").read_text()
    (source,) = [part for part in text.split("```python\n")[1:] if "@family" in part]
    (tmp_path / "mine.py").write_text(source.split("```")[0])
    middles = Zoo(
        "middles", "docs/pictures.md",
        zoo.constant(middles=[[[0.5, 0.25], [0.75, 0.5]]], sureness=[[0.9, 0.4]]), input="image",
    )  # fmt: skip
    zoo.export(tf, middles, str(tmp_path / "m" / "1"))
    made = config(
        {"name": "m", "base_path": str(tmp_path / "m")},
        deployments=[{"id": "m", "model": "m", "label_map": ["cell"]}],
        routine_modules=[str(tmp_path / "mine.py")],
    )
    server = serving.ModelServer(made)
    assert server.wait(60) and server.readiness() == []
    (found,) = server.predict_image(PICTURE)["predictions"]
    server.stop()
    assert found["tag"] == {"id": 1, "name": "cell"}
    assert found["confidence"] == pytest.approx(0.9)
    assert np.allclose(found["bound"][0], [0.45, 0.2]) and np.allclose(
        found["bound"][2], [0.55, 0.3]
    )
    assert "spots" not in routines.FAMILIES


def test_no_family_of_the_process_takes_a_name_that_is_taken():
    with pytest.raises(ValueError, match="family yolo: this name is taken"):

        @routines.family({"x": "N"})
        def yolo(outputs, about):
            return {}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "family spots: expected scores and classes by name, got NoneType"),
        ({"scores": [0.5], "boxes": []}, r"by name, got \['boxes', 'scores'\]"),
        ({"scores": [0.5], "classes": [1, 2]}, r"got scores \[1\], classes \[2\]"),
        ({"scores": [[0.5]], "classes": [1]}, r"got scores \[1, 1\], classes \[1\]"),
    ],
)
def test_what_a_family_of_ones_own_returns_is_looked_at(answer, told):
    kind = routines.Family("spots", {"x": "N"}, lambda outputs, about: answer)
    with pytest.raises(routines.OutputError, match=told):
        routines.read_rows(kind, {}, None)
