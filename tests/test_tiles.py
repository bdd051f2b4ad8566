"""Routines that look at a model more than once, or say what they lack: Tile, warnings, RoutineError."""

import cv2
import numpy as np
import pytest
from conftest import (
    FakeDetector,
    Rest,
    assert_error,
    bearer,
    fake_server,
    key_entry,
    signature,
    spec,
)

import routines
import serving

AUTH = {"keys": [key_entry("site", "k")]}
NAMES = {1: "square", 2: "bar"}


class Blobs(serving.Servable):
    """Finds white squares, seen at a fixed 64 x 64: what is smaller than 2 pixels there is not seen.

    Boxes of connected regions by OpenCV; each row on its own.
    """

    def __init__(self, rows=None, side=64, masks=False):
        self.rows, self.masks, self.calls = rows, masks, []
        sides = (
            [spec("image", "DT_UINT8", (rows, side, side, 3))],
            [
                spec("detection_boxes", shape=(rows, None, 4)),
                spec("detection_classes", shape=(rows, None)),
                spec("detection_scores", shape=(rows, None)),
            ],
        )
        if masks:
            sides[1].append(spec("detection_masks", shape=(rows, None, None, None)))
        super().__init__({"serving_default": signature(*sides)}, self.answer, device="CPU:0")

    def answer(self, name, inputs):
        self.calls.append(len(inputs["image"]))
        found = [self.see(image) for image in inputs["image"]]
        most = max(map(len, found))
        rows = np.zeros((len(found), most, 6), np.float32)
        for row, boxes in zip(rows, found):
            row[: len(boxes)] = np.reshape(boxes, (-1, 6))
        answer = {
            "detection_boxes": rows[..., :4],
            "detection_scores": rows[..., 4],
            "detection_classes": rows[..., 5],
        }
        if self.masks:
            answer["detection_masks"] = np.ones(
                (*rows.shape[:2], 7, 7 + len(found) % 2), np.float32
            )
        return answer

    def see(self, image):
        tall, wide = image.shape[:2]
        count, _, stats, _ = cv2.connectedComponentsWithStats(
            (image[..., 0] > 200).astype(np.uint8)
        )
        boxes = []
        for left, top, width, height, _ in stats[1:count]:
            if min(width, height) >= 2:
                box = [top / tall, left / wide, (top + height) / tall, (left + width) / wide]
                boxes.append([*box, 0.5 + min(width, height) / 200, 1])
        return boxes


def scene(boxes, width=640, height=512):
    image = np.zeros((height, width, 3), np.uint8)
    for left, top, wide, tall in boxes:
        image[top : top + tall, left : left + wide] = 255
    return image


SMALL = [(20 + 97 * n % 600, 30 + 61 * n % 440, 6 + n % 5, 6 + n % 5) for n in range(12)]


def look(image, model=None, most=300, top_k=None, **tile):
    servable = model or Blobs()
    sides = (
        servable.signatures["serving_default"].inputs,
        servable.signatures["serving_default"].outputs,
    )
    specs = ({name: (one.dtype, one.shape) for name, one in side.items()} for side in sides)
    ready = routines.ImageModel(*specs, labels=NAMES, most=most, top_k=top_k)
    chain = [routines.Tile(**tile)] if tile else []
    return routines.predict_images(
        ready, lambda inputs: servable.run("serving_default", inputs), [image], chain
    )[0]


def pixels(tensors, image):
    height, width = image.shape[:2]
    boxes = np.rint(tensors["boxes"] * [height, width, height, width]).astype(int)
    return sorted(
        (left, top, right - left, bottom - top) for top, left, bottom, right in boxes.tolist()
    )


@pytest.mark.parametrize("rows", [None, 1])
@pytest.mark.parametrize("whole", [True, False])
def test_small_objects_are_found_in_tiles(rows, whole):
    """Every square and its place to the pixel, none twice, though tiles share a quarter."""
    image = scene(SMALL)
    assert len(look(image, Blobs(rows))["scores"]) == 0
    servable = Blobs(rows)
    found = look(image, servable, size=64, overlap=0.25, whole=whole)
    assert pixels(found, image) == sorted(SMALL)
    assert (np.diff(found["scores"]) <= 0).all() and set(found["names"]) == {"square"}
    tiles = len(routines.Tile(size=64, overlap=0.25).windows(image))
    assert sum(servable.calls) == tiles + whole
    assert max(servable.calls) == (routines.TILES_AT_ONCE if rows is None else 1)


@pytest.mark.parametrize("tile", [{}, {"size": 64}])
def test_top_k_is_of_the_whole_answer(tile):
    found = look(scene([*SMALL, (60, 300, 300, 150)]), top_k=1, **tile)
    assert len(found["scores"]) == 1


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_larger_than_a_tile_is_found_in_the_whole_and_its_parts_are_not(masks):
    image = scene([(60, 48, 300, 304), (500, 450, 8, 8)])
    found = look(image, Blobs(masks=masks), size=128, overlap=0.2)
    assert pixels(found, image) == [(60, 48, 300, 304), (500, 450, 8, 8)]
    assert "cut" not in found and ("masks" in found) == masks


@pytest.mark.parametrize("size, overlap", [(100, 0), (80, 0.5), (333, 0.9), (1000, 0.2), (512, 0)])
def test_tiles_cover_the_picture_and_are_of_one_size(size, overlap):
    image = np.zeros((512, 640, 3), np.uint8)
    windows = routines.Tile(size=size, overlap=overlap).windows(image)
    covered = np.zeros((512, 640), int)
    for top, left, bottom, right in windows:
        covered[top:bottom, left:right] += 1
        assert (bottom - top, right - left) == (min(size, 512), min(size, 640))
    assert covered.min() == 1 and len(set(map(tuple, windows.tolist()))) == len(windows)


def test_too_many_tiles_are_refused_before_any_is_looked_at():
    servable = Blobs()
    with pytest.raises(routines.RoutineError, match="at most 256 tiles, got 2726; larger tiles"):
        look(scene([]), servable, size=16, overlap=0.3)
    assert servable.calls == []


def test_no_more_than_max_detections_and_the_best():
    image = scene(SMALL)
    every = look(image, size=64, overlap=0.25)
    assert (
        look(image, size=64, overlap=0.25, most=5)["scores"].tolist()
        == every["scores"][:5].tolist()
    )


def test_a_picture_smaller_than_a_tile_is_looked_at_once():
    servable = Blobs()
    found = look(scene([(3, 3, 9, 9)], 40, 30), servable, size=64, whole=False)
    assert servable.calls == [1] and len(found["scores"]) == 1


def test_tiles_are_seen_whole_where_pictures_are_cropped():
    """Squares all over a picture: of tiles of 4 : 3 the square model was shown three quarters."""
    servable = Blobs()
    inputs = {"image": ("DT_UINT8", (None, 64, 64, 3))}
    outputs = servable.signatures["serving_default"].outputs
    model = routines.ImageModel(
        inputs,
        {name: (one.dtype, one.shape) for name, one in outputs.items()},
        options=routines.InputOptions(resize="crop"),
    )
    run = lambda given: servable.run("serving_default", given)  # noqa: E731
    for left in range(2, 230, 12):
        image = scene([(left, 25, 10, 10)], width=240, height=60)
        found = routines.predict_images(model, run, [image], [routines.Tile(size=80, whole=False)])[
            0
        ]
        assert len(found["scores"]) == 1, left


def test_tiles_of_a_crop_are_placed_in_the_whole_picture():
    image = scene(SMALL)
    servable = Blobs()
    sides = (
        servable.signatures["serving_default"].inputs,
        servable.signatures["serving_default"].outputs,
    )
    specs = ({name: (one.dtype, one.shape) for name, one in side.items()} for side in sides)
    chain = [routines.Tile(size=64), routines.Crop(xmin=0.5), routines.FilterConfidence(0.0)]
    run = lambda inputs: servable.run("serving_default", inputs)  # noqa: E731
    model = routines.ImageModel(*specs, labels=NAMES)
    (found,) = routines.predict_images(model, run, [image], chain)
    assert pixels(found, image) == sorted(box for box in SMALL if box[0] > 320)


# --- over HTTP ------------------------------------------------------------------------------------


def rest_of(servable, **deployment):
    deployment = {"id": "x", "model": "m", "label_map": ["square", "bar"], **deployment}
    if "p" in servable.signatures["serving_default"].outputs:  # of no operation that is known
        deployment["activation"] = "none"
    return Rest(fake_server({"m": servable}, auth=AUTH, deployments=[deployment]))


def ask(rest, *chain, image=None, **options):
    data = [[[9, 9, 1]]] if image is None else image.tolist()
    body = {"image_type": "array", "data": data, "routines": list(chain)}
    return rest.post("/predict", body, headers=bearer("k") | options)


@pytest.mark.parametrize("where", ["deployment", "request"])
def test_tile_over_http(where):
    chain = [{"name": "Tile", "arguments": {"size": 64, "overlap": 0.25, "whole": False}}]
    rest = rest_of(Blobs(), routines=chain if where == "deployment" else [])
    answer = ask(rest, *(chain if where == "request" else ()), image=scene(SMALL)).json
    assert len(answer["predictions"]) == len(SMALL)
    wrong = ask(rest, {"name": "Tile", "size": 16, "overlap": 0.9}, image=scene([]))
    assert_error(wrong, 400, "routines: Tile: a picture of 640x512 pixels in tiles of 16...")


def classifier():
    sides = [spec("image", "DT_FLOAT", (1, 8, 8, 3))], [spec("p", shape=(1, 2))]
    outputs = {"p": np.float32([[0.25, 0.75]])}
    return serving.Servable({"serving_default": signature(*sides)}, lambda *_: outputs)


@pytest.mark.parametrize("where", ["deployment", "request"])
def test_a_routine_that_needs_boxes_says_so_on_a_classifier(where):
    @routines.routine()
    class Largest:
        def __call__(self, tensors):
            return routines.keep(tensors, tensors["boxes"][:, 0] >= 0)

    for name, text in (
        ("Largest", "routines: Largest needs boxes, and this model answers none"),
        ("Tile", "routines: Tile needs boxes, and this model answers none"),
    ):
        rest = rest_of(classifier(), routines=[{"name": name}] if where == "deployment" else [])
        chain = [{"name": name}] if where == "request" else []
        if where == "request":
            assert_error(ask(rest, *chain), 400, text)
            continue
        where_told = f"Deployment 'x' is not available: $.deployments[0]: model 'm': {text}"
        assert_error(ask(rest), 503, where_told)
        seen = rest.get("/readyz")  # what routines of one's own need, their calls tell
        assert (seen.status_code, text in seen.get_data(as_text=True)) == (
            (503, True) if name == "Tile" else (200, False)
        )
    del routines.ROUTINES["Largest"]


@pytest.mark.parametrize(
    "chain, warnings",
    [
        ([{"name": "FilterClass", "class_name": "sqare"}],
         ["FilterClass: the model has no class 'sqare'; did you mean 'square'?"]),
        ([{"name": "ExcludeClass", "class_name": ["square", "zebra"]}],
         ["ExcludeClass: the model has no class 'zebra'"]),
        ([{"name": "Threshold", "confidence": {"Bar": 0.5}}, {"name": "FilterClass", "class_name": "x"}],
         ["Threshold: the model has no class 'Bar'; did you mean 'bar'?",
          "FilterClass: the model has no class 'x'"]),
        ([{"name": "FilterClass", "class_name": ["bar", "square"]}], None),
        ([{"name": "FilterClass", "class_name": "square"}, {"name": "FilterClass", "class_name": "bar"}], None),
        ([{"name": "FilterClass", "class_name": [f"n{n}" for n in range(1000)]}],
         [f"FilterClass: the model has no class 'n{n}'" for n in range(10)]),
    ],
)  # fmt: skip
def test_a_name_that_the_model_does_not_have_is_warned_of(chain, warnings):
    for rest in (rest_of(FakeDetector()), rest_of(FakeDetector(), routines=chain[:1])):
        sent = chain if rest.get("/x/classes", headers=bearer("k")) and not own(rest) else chain[1:]
        for query in ({}, {"format": "coco"}):
            body = {"image_type": "array", "data": [[[9, 9, 1]]], "routines": sent}
            answer = rest.post("/predict", body, headers=bearer("k"), query_string=query)
            assert answer.status_code == 200 and answer.json.get("warnings") == warnings


def own(rest):
    return rest.get("/deployments", headers=bearer("k")).json["deployments"][0]["routines"]


def test_names_without_a_label_map_are_numbers():
    rest = rest_of(FakeDetector(), label_map=None)
    answer = ask(rest, {"name": "FilterClass", "class_name": ["2", "7", "cat"]}).json
    assert [one["tag"]["name"] for one in answer["predictions"]] == ["2", "2"]
    text = "FilterClass: the model has no class 'cat'; its deployment has no label map"
    assert answer["warnings"] == [text]


def test_the_page_knows_maps_and_booleans():
    about = rest_of(FakeDetector()).get("/deployments", headers=bearer("k")).json["routines"]
    kinds = {one["name"]: {a["name"]: a["kind"] for a in one["arguments"]} for one in about}
    assert kinds["Threshold"] == {"confidence": "map", "others": "number"}
    assert kinds["Tile"]["whole"] == "boolean" and kinds["TopK"] == {"k": "integer"}
