"""The drawn answer: names in any script, labels that keep apart, masks with holes, small and large."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

import routines


def annotations_of(boxes, names, masks=None, size=(640, 480)):
    tensors = {
        "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
        "scores": np.linspace(1, 0.5, len(boxes)),
        "classes": np.arange(len(boxes)) % max(len(names), 1) + 1,
        "names": np.array([names[n % len(names)] for n in range(len(boxes))] + [None], object)[:-1],
    }
    if masks is not None:
        tensors["masks"] = masks
    return routines.to_annotations(tensors, *size)


def drawn(image, annotations, kind="png"):
    data = routines.draw_annotations(image, annotations, kind)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pixels_of(name, **more):
    annotation = {"tag": {"id": 1, "name": name}, "confidence": 0.5, **more}
    return routines.draw_label(annotation, 20)


@pytest.mark.parametrize(
    "name", ["Müller", "Straße", "Ελλάς", "стул", "قطة", "猫", "ねこ", "사람", "person"]
)
def test_names_of_any_script_are_no_boxes(name):
    """Each letter is drawn as another than what a font draws in place of letters that it has not."""
    path = routines.find_font(name)
    if path is None:
        pytest.skip("no font of this machine has it")
    letters = {letter: routines.draw_letter(path, letter) for letter in name}
    assert len(set(letters.values())) == len(letters)
    assert routines.draw_letter(path, "\U0010fffd") not in letters.values()
    assert (
        pixels_of(name).shape != pixels_of("#1").shape or (pixels_of(name) != pixels_of("#1")).any()
    )


def test_a_name_that_no_font_has_is_its_number(monkeypatch):
    monkeypatch.setattr(routines, "list_fonts", lambda: [routines.PILLOW_FONT])
    routines.find_font.cache_clear()
    assert (pixels_of("猫") == pixels_of("#1")).all()
    assert pixels_of("cat").shape != pixels_of("#1").shape
    monkeypatch.undo()
    routines.find_font.cache_clear()


def test_a_font_of_one_script_writes_the_name_and_another_the_number(monkeypatch):
    """Noto's fonts of Thai, Hebrew or Arabic have no digits, and some no Latin letters."""
    has = {"thai": set("แมว"), "hebrew": set("חתול "), "latin": set("cat 0123456789.#")}
    monkeypatch.setattr(routines, "list_fonts", lambda: list(has))
    monkeypatch.setattr(routines, "has_letters", lambda path, letters: set(letters) <= has[path])
    for name, parts in {
        "cat": [("cat 0.50", "latin")],
        "แมว": [("แมว", "thai"), ("0.50", "latin")],
        "แมว cat": [("แมว", "thai"), ("cat", "latin"), ("0.50", "latin")],
        "חתול חתול": [("חתול חתול", "hebrew"), ("0.50", "latin")],
        "חתול cat": [],  # the order of the words would be wrong
        "猫": [],
        "cat 猫": [],
    }.items():
        routines.find_font.cache_clear()
        assert routines.choose_fonts(name, "0.50") == parts
    monkeypatch.undo()
    routines.find_font.cache_clear()
    monkeypatch.setattr(
        routines, "choose_fonts", lambda *_: [("cat", ":pillow"), ("0.50", ":pillow")]
    )
    assert (
        pixels_of("cat").shape[1]
        > 0.9 * routines.draw_text("cat 0.50", ":pillow", 20, (0, 0, 0)).shape[1]
    )


@pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 4 has no fonts of its own")
def test_chinese_without_a_font_of_the_system(monkeypatch):
    monkeypatch.setattr(routines, "FONT_FOLDERS", ())
    for cached in (routines.list_fonts, routines.find_font):
        cached.cache_clear()
    assert routines.find_font("猫") == routines.find_font("Müller") == routines.OPENCV_FONT
    assert routines.find_font("قطة") is None  # it would write Arabic from the left
    assert (pixels_of("猫") < 250).any() and pixels_of("猫猫").shape[1] > pixels_of("猫").shape[1]
    monkeypatch.undo()
    for cached in (routines.list_fonts, routines.find_font):
        cached.cache_clear()


@pytest.mark.parametrize("name", ["", " ", "a\nb\tc", "x" * 5000, "\u202e\u200d", "\x00\x07", "🦄"])
def test_odd_names_take_one_short_line(name):
    label = pixels_of(name)
    assert label.shape[0] < 40 and label.shape[1] < 700


def spread(count, low, high, seed=0):
    random = np.random.default_rng(seed)
    size = random.uniform(low, high, (count, 2))
    corner = random.random((count, 2)) * (1 - size)
    return np.concatenate([corner, corner + size], axis=1)


def placed(annotations, width, height):
    places = routines.place_labels(annotations, 14, width, height, 1)
    return [
        (left, top, left + label.shape[1], top + label.shape[0]) for label, (left, top) in places
    ]


@pytest.mark.parametrize("count", [1, 12, 300])
@pytest.mark.parametrize("size", [(200, 150), (1000, 750)])
def test_labels_keep_apart_and_leave_the_picture_to_be_seen(count, size):
    annotations = annotations_of(spread(count, 0.05, 0.4), ["cat", "traffic light"], size=size)
    rects = placed(annotations, *size)
    assert rects, "the most confident has its name"
    for index, (left, top, right, bottom) in enumerate(rects):
        assert left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]
        for x, y, r, b in rects[:index]:
            assert left >= r or right <= x or top >= b or bottom <= y
    area = sum((r - x) * (b - y) for x, y, r, b in rects)
    assert area <= routines.LABEL_SHARE * size[0] * size[1] or len(rects) == 1


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("size", [(1, 1), (8, 200), (64, 48), (640, 480)])
def test_pictures_of_any_size_are_drawn(kind, size):
    image = np.full((size[1], size[0], 3), 128, np.uint8)
    masks = np.ones((20, 28, 28), np.float32)
    for given in (masks, None):
        out = drawn(image, annotations_of(spread(20, 0.1, 0.9), ["猫"], given, size), kind)
        assert out.shape == image.shape


def test_lines_and_letters_grow_with_the_picture():
    """Of a picture twice as large, shown at half its size, the eye sees the same."""
    shown = []
    for side in (600, 2400):
        image = np.zeros((side, side, 3), np.uint8)
        out = drawn(image, annotations_of([[0.3, 0.3, 0.9, 0.9]], ["cat"], size=(side, side)))
        shown.append(cv2.resize(out, (300, 300), interpolation=cv2.INTER_AREA).max(axis=2) > 60)
    assert (shown[0] & shown[1]).sum() / (shown[0] | shown[1]).sum() > 0.75


def test_masks_are_half_transparent_and_their_holes_clear():
    mask = np.ones((60, 60), np.float32)
    mask[20:40, 20:40] = 0
    image = np.full((200, 200, 3), 100, np.uint8)
    box = [[0.5, 0.5, 0.8, 0.8]]
    out = drawn(image, annotations_of(box, ["x"], mask[np.newaxis], (200, 200)))
    colour = np.array(routines.COLOURS[1])
    np.testing.assert_allclose(out[110, 130], (colour + 100) / 2, atol=2)
    assert (out[130, 130] == 100).all() and (out[40:60, 20:60] == 100).all()


def test_a_classifiers_best_five_names_stand_under_each_other():
    tensors = {
        "scores": np.linspace(1, 0, 40),
        "classes": np.arange(40),
        "names": np.array(["c"] * 40, object),
    }
    annotations = routines.to_annotations(tensors, 320, 240)
    rects = placed(annotations, 320, 240)
    assert len(rects) == routines.MOST_CLASSES
    assert [top for _, top, _, _ in rects] == [n * rects[0][3] for n in range(5)]


def test_three_hundred_masks_on_a_large_picture_are_drawn_one_by_one():
    """Each in its own window: a copy of the picture for each would be 20 GB."""
    image = np.zeros((3000, 4000, 3), np.uint8)
    masks = np.ones((300, 14, 14), np.float32)
    annotations = annotations_of(spread(300, 0.02, 0.05), ["x"], masks, (4000, 3000))
    assert drawn(image, annotations, "jpeg").any()
