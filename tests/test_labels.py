"""Label maps as people have them, each with its right reading; and maps that are not the model's."""

import errno
import json
import os

import numpy as np
import pytest
from conftest import (
    ROOT,
    FakeDetector,
    Rest,
    bearer,
    config,
    fake_server,
    key_entry,
    signature,
    spec,
)

import routines
import serving

PERSON = 'item { name: "/m/01g317" id: 1 display_name: "person" }'
KITTI = "\nitem {\n  id: 1\n  name: 'car'\n}\n\nitem {\n  id: 2\n  name: 'pedestrian'\n}\n"
OPEN_IMAGES = """
# the boxable classes, an excerpt
item: < name: "/m/061hd_"; id: 1; display_name: "Infant bed"; >
item { name: "/m/06m11" id: 2 display_name: "Rose" ancestor_ids: [1, 2] frequency: COMMON }
"""
KEYPOINTS = """
item {
  name: "/m/01g317" id: 1 display_name: "person"
  keypoints { id: 0 label: "nose" }
  keypoints { id: 1 label: "left_eye" }
}
item { id: 2 name: "driver\\'s" keypoints { id: 5 label: "nose" } }
"""
COCO = {
    "info": {"year": 2017},
    "images": [{"id": 9, "file_name": "a.jpg"}],
    "annotations": [],
    "categories": [
        {"supercategory": "person", "id": 1, "name": "person"},
        {"supercategory": "outdoor", "id": 13, "name": "stop sign"},
    ],
}
BOTH = {1: "cat", 2: "dog"}
ULTRALYTICS = "path: ../pets\ntrain: images\nnc: 3\nnames:\n  0: person\n  1: no  # a word of YAML\n  2: 'traffic light'\n"


@pytest.mark.parametrize(
    "text, labels",
    [
        (PERSON, {1: "person"}),
        ('# item { name: "ghost" id: 9 }', {}),
        (f'# item {{ name: "ghost" id: 9 }}\n{PERSON} # {{ id: 3 }}', {1: "person"}),
        (KEYPOINTS, {1: "person", 2: "driver's"}),
        (KITTI, {1: "car", 2: "pedestrian"}),
        (OPEN_IMAGES, {1: "Infant bed", 2: "Rose"}),
        ('item { id: 1 name: "a } b { c" }', {1: "a } b { c"}),
        (r'item { id: 1 name: "M\303\274ller" "stra\xc3\x9fe" }', {1: "Müllerstraße"}),
        ("item { id: 0x10 name: '\"quoted\"' }", {16: '"quoted"'}),
        ("item { id: 1 name: '猫' }", {1: "猫"}),
        ("item { id: 1 name: 'x' display_name: '' }", {1: "x"}),
        (json.dumps(COCO), {1: "person", 13: "stop sign"}),
        (json.dumps(COCO["categories"]), {1: "person", 13: "stop sign"}),
        ('[{"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}]', {1: "person", 13: "stop sign"}),
        ('{"cat": 0, "dog": 1}', {0: "cat", 1: "dog"}),
        ('{"0": ["n01440764", "tench"], "1": ["n01443537", "goldfish"]}', {0: "tench", 1: "goldfish"}),
        ('{"1": "cat", "2": 2}', {1: "cat", 2: "2"}),
        (ULTRALYTICS, {0: "person", 1: "no", 2: "traffic light"}),
        ("names: [person, bicycle, off]", {0: "person", 1: "bicycle", 2: "off"}),
        ("train: a\ntrain: b\nnames: [person]", {0: "person"}),
        ("nc: 2\nnames:\n- person\n- 007\n", {0: "person", 1: "007"}),
        ("item\nitems {}\n", {1: "item", 2: "items {}"}),
        ('{"0": 0, "1": 1, "2": 2}', {0: "0", 1: "1", 2: "2"}),
        ('{"1": 0, "cat": 1}', {0: "1", 1: "cat"}),
        ('[["n01440764", "tench"], ["n01443537", "goldfish"]]', {1: "tench", 2: "goldfish"}),
        ('{"1": "a", "2": "b", "2": "b"}', {1: "a", 2: "b"}),
        ("names:\n  1: a\n  1: a\n", {1: "a"}),
    ],
)  # fmt: skip
def test_right_readings(text, labels):
    assert routines.read_label_map(text) == labels
    assert routines.read_label_map("\ufeff" + text) == labels


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name, text", [("a.txt", "猫\nFüße\n"), ("a.json", '["猫", "Füße"]')])
def test_files_with_and_without_a_byte_order_mark(tmp_path, encoding, name, text):
    mark = "" if encoding in ("utf-8", "utf-8-sig", "utf-16") else "\ufeff"
    (tmp_path / name).write_bytes((mark + text).encode(encoding))
    assert routines.load_labels(name, tmp_path) == {1: "猫", 2: "Füße"}


def test_a_text_file_may_begin_with_a_name_in_brackets(tmp_path):
    (tmp_path / "a.txt").write_text("[UNK]\ncat\n")
    (tmp_path / "b.txt").write_text('["cat", "dog"]')
    assert routines.load_labels("a.txt", tmp_path) == {1: "[UNK]", 2: "cat"}
    assert routines.load_labels("b.txt", tmp_path) == {1: "cat", 2: "dog"}


def test_a_files_ending_tells_its_form(tmp_path):
    (tmp_path / "a.pbtxt").write_text("# no classes\n")
    (tmp_path / "b.yaml").write_text("0: person\n1: bicycle\n")
    assert routines.load_labels("a.pbtxt", tmp_path) == {}
    assert routines.load_labels("b.yaml", tmp_path) == {0: "person", 1: "bicycle"}


@pytest.mark.parametrize(
    "text, problem",
    [
        ("item { id: 1 }", "item without id and name: id: 1"),
        ("classes { id: 1 name: 'x' }", "no item { id: ... name: ... }"),
        ("item { name: 'x' }", "item without id and name"),
        ("item { id: 1 name: 'x' ", "label map: 1:"),
        ("item { id: one name: 'x' }", "label map: 1:"),
        ("item { id: 1 name: 'x' } item { id: 1 name: 'y' }", "id 1 is both 'x' and 'y'"),
        ("item { id: -1 name: 'x' }", "got -1: 'x'"),
        ('[{"id": 1, "name": "a"}, "b"]', "got None: 'b'"),
        ('[{"name": "a"}]', "got None: 'a'"),
        ('[{"id": 1.5, "name": "a"}]', "got 1.5: 'a'"),
        ('{"1": true}', "got '1': True"),
        ("names: 3", "got '3': None"),
        ("[UNK]\ncat\n", "it begins with [, and so is read as JSON: Expecting value: line 1"),
        ('{"1": "\\ud83d"}', "the name of 1 has half of a surrogate pair"),
        ("names: [a\n", "label map: while parsing"),
        ("names:\n  [a]: b\n", "unhashable key"),
        ('{"2": "b", "2": "c"}', "'2' is both 'b' and 'c'"),
        ("names:\n  2: b\n  2: c\n", "'2' is both 'b' and 'c'"),
        ('{"cat": 0, "cat": 1}', "'cat' is both 0 and 1"),
        ('{"1": 0, "2": 1}', 'write {"0": "1"} if 1 is, {"1": "0"} if 0 is'),
        ('[["a", 0], ["b", 1]]', "got 1: ['a', 0]"),
        ('[[1, "person"], [13, "stop sign"]]', "got 1: [1, 'person']"),
        ('{"0": ["n01440764", 5]}', "got '0': ['n01440764', 5]"),
        ("names:\n  0: [a, b]\n", "got '0': ['a', 'b']"),
        ("", "it is empty"),
        (" \n\n", "it is empty"),
        ("c\0a\0t\0\n\0", "expected UTF-8, or UTF-16 with its byte order mark"),
    ],
)
def test_wrong_readings_are_named(text, problem):
    with pytest.raises(ValueError, match="^label map: ") as raised:
        routines.read_label_map(text, "x.pbtxt" if text.startswith("classes") else "")
    assert problem in str(raised.value)


@pytest.mark.parametrize("text", ['// by hand\n{"1": "a"}', "a\nb\n"])
def test_a_file_that_is_called_json_is_read_as_json(text):
    with pytest.raises(ValueError, match="it ends in .json, and so is read as JSON: Expecting"):
        routines.read_label_map(text, "x.json")


def test_a_line_ends_with_lf_cr_or_both():
    text = "a\u2028b\nc\x85\x1cd\re\r\nf\n\n"
    expected = {1: "a\u2028b", 2: "c\x85\x1cd", 3: "e", 4: "f"}
    assert routines.read_label_map(text) == expected


@pytest.mark.parametrize(
    "name, text",
    [("x.json", "[" * 50_000), ("x.yaml", "names: " + "[" * 5000), ("x.pbtxt", "x { " * 5000)],
)
def test_a_map_that_is_nested_too_deeply_is_the_deployments_fault_alone(tmp_path, name, text):
    file = tmp_path / name
    file.write_text(text)
    deployments = [{"id": "deep", "model": "m", "label_map": str(file)}, {"id": "d", "model": "m"}]
    server = fake_server({"m": FakeDetector()}, deployments=deployments)
    rest, key = Rest(server), bearer(server.generated_key)
    asked = rest.post("/deep/predict", {"image_type": "array", "data": [[1]]}, headers=key)
    assert asked.status_code == 503 and f"nested too deeply: {name}" in asked.json["error"]
    assert rest.get("/d/classes", headers=key).status_code == 200


def test_a_named_pipe_is_no_label_map(tmp_path):
    os.mkfifo(tmp_path / "x.txt")
    with pytest.raises(ValueError, match="expected a file, got a named pipe"):
        routines.load_labels("x.txt", tmp_path)


# --- whether a map is the model's ---------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, classes, first_id",
    [
        ({}, 3, 1),
        (BOTH, None, 1),
        (BOTH, 2, 1),
        ({0: "a", 1: "b"}, 2, 0),
        (BOTH, 3, 0),  # with a background
        ({1: "person", 13: "stop sign"}, 90, 1),  # ids with gaps are no count
        ({2: "b", 3: "c"}, 3, 1),
    ],
)
def test_maps_that_fit(labels, classes, first_id):
    assert routines.check_labels(labels, classes, first_id) is None


@pytest.mark.parametrize(
    "labels, classes, first_id, text",
    [
        (BOTH, 3, 1, "expected names of the model's 3 classes, ids 1 to 3; got 2, ids 1 to 2"),
        ({0: "a", 1: "b"}, 3, 0, "model's 3 classes, ids 0 to 2; got 2, ids 0 to 1"),
        (BOTH, 1, 1, "model's 1 classes, ids 1 to 1; got 2, ids 1 to 2"),
        ({0: "a", 1: "b"}, 2, 1, "ids 1 to 2; got 2, ids 0 to 1"),
        (BOTH, 4, 0, "4 classes, ids 0 to 3 with 0 the background; got 2, ids 1 to 2"),
        ({1: "person", 99: "x"}, 90, 1, "ids 1 to 90; got 2, ids 1 to 99"),
    ],
)
def test_maps_that_cannot_be_the_models(labels, classes, first_id, text):
    with pytest.raises(ValueError) as raised:
        routines.check_labels(labels, classes, first_id)
    assert text in str(raised.value)


def test_inline_maps_of_a_config_may_be_cocos_categories():
    options = {"auth": {"keys": [key_entry("site", "k")]}}
    deployment = {"id": "x", "model": "d", "label_map": COCO["categories"]}
    for label_map in (COCO["categories"], COCO):
        deployment = {"id": "x", "model": "d", "label_map": label_map}
        rest = Rest(fake_server({"d": FakeDetector()}, deployments=[deployment], **options))
        names = rest.get("/classes", headers=bearer("k")).json
        assert {key: one["name"] for key, one in names.items()} == {
            "1": "person",
            "13": "stop sign",
        }


def classifier(classes):
    outputs = {"p": np.full((1, classes), 1 / classes, np.float32)}
    sides = [spec("image", "DT_FLOAT", (1, 8, 8, 3))], [spec("p", shape=(None, classes))]
    return serving.Servable({"serving_default": signature(*sides)}, lambda *_: outputs)


def test_a_forgotten_name_is_refused_with_both_numbers():
    """Three names of four classes: each would be taken for the one before it."""
    deployment = {"id": "pets", "model": "m", "label_map": ["cat", "dog", "emu"]}
    deployment["activation"] = "none"
    options = {"auth": {"keys": [key_entry("site", "k")]}}
    body = {"image_type": "array", "data": [[1]]}
    for classes, said, status in (
        (3, {}, 200),
        (4, {}, 503),
        (4, {"classes_from": 1}, 200),  # a background at 0
        (4, {"label_map": {"0": "none", "1": "cat", "2": "dog", "3": "emu"}}, 200),
        (5, {}, 503),
    ):
        rest = Rest(
            fake_server({"m": classifier(classes)}, deployments=[{**deployment, **said}], **options)
        )
        answer = rest.post("/predict", body, headers=bearer("k"))
        assert answer.status_code == status, answer.json
        if status == 503:
            ids = f"the model's {classes} classes, ids 1 to {classes}; got 3, ids 1 to 3"
            assert f"label map: expected names of {ids}" in answer.json["error"]
            assert ('write "classes_from": 1' in answer.json["error"]) == (classes == 4)
            assert ids in rest.get("/readyz").json["error"]


# --- labels that a SavedModel brings ------------------------------------------------------------


def see(tf):
    @tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3], tf.float32, name="image")])
    def run(image):
        return {"p": tf.constant([[0.25, 0.75]]) + 0 * tf.reduce_sum(image)}

    return run


def save_seer(tf, folder):
    """A classifier of two classes, with a folder of assets."""
    module = tf.Module()
    module.see = see(tf)
    tf.saved_model.save(module, str(folder), signatures=module.see)
    (folder / "assets").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    "files, label_map, name",
    [
        ({"labels.txt": "cat\ndog\n"}, None, "dog"),
        ({"label_map.pbtxt": PERSON + "item { id: 2 name: 'x' }"}, None, "x"),
        ({"labels.txt": "cat\ndog\n", "vocabulary.txt": "the\na\n"}, None, "dog"),
        ({"labels.txt": "cat\ndog\n"}, ["a", "b"], "b"),
        ({"labels.txt": "cat\ndog\n"}, {}, "2"),
        ({"labels.txt": "cat\ndog\n", "classes.txt": "a\nb\n"}, None, "2"),
        ({}, None, "2"),
    ],
)
def test_labels_among_the_models_own_assets(tf, tmp_path, files, label_map, name):
    save_seer(tf, tmp_path / "1")
    for file, text in files.items():
        (tmp_path / "1" / "assets" / file).write_text(text)
    deployment = {"id": "x", "model": "m", "label_map": label_map, "activation": "none"}
    server = serving.ModelServer(
        config({"name": "m", "base_path": str(tmp_path)}, deployments=[deployment])
    )
    assert server.wait(60)
    rest, key = Rest(server), bearer(server.generated_key)
    body = {"image_type": "array", "data": [[1]]}
    answer = rest.post("/predict", body, headers=key).json
    classes = rest.get("/x/classes", headers=key).json
    shown = rest.get("/deployments", headers=key).json["deployments"][0]["classes"]
    server.stop()
    assert answer["predictions"][0]["tag"] == {"id": 2, "name": name}
    assert classes == shown and classes.get("2", {"name": "2"})["name"] == name


@pytest.mark.parametrize("loading", [{"instances": 2}, {"load": "on_demand"}])
def test_a_models_own_labels_are_found_however_it_is_loaded(tf, tmp_path, loading):
    save_seer(tf, tmp_path / "1")
    (tmp_path / "1/assets/labels.txt").write_text("cat\ndog\n")
    deployment = {"id": "x", "model": "m", "activation": "none"}
    model = {"name": "m", "base_path": str(tmp_path), **loading}
    server = serving.ModelServer(config(model, deployments=[deployment]))
    assert server.wait(60)
    rest, key = Rest(server), bearer(server.generated_key)
    answer = rest.post("/predict", {"image_type": "array", "data": [[1]]}, headers=key).json
    classes = rest.get("/x/classes", headers=key).json
    server.stop()
    assert answer["predictions"][0]["tag"] == {"id": 2, "name": "dog"}
    assert [one["name"] for one in classes.values()] == ["cat", "dog"]


def test_labels_of_a_model_that_cannot_be_read_are_told_where_classes_are_asked_for(tf, tmp_path):
    save_seer(tf, tmp_path / "1")
    (tmp_path / "1/assets/labels.json").write_text("{")
    deployment = {"id": "x", "model": "m", "activation": "none"}
    model = {"name": "m", "base_path": str(tmp_path)}
    server = serving.ModelServer(config(model, deployments=[deployment]))
    assert server.wait(60)
    rest, key = Rest(server), bearer(server.generated_key)
    asked = rest.post("/predict", {"image_type": "array", "data": [[1]]}, headers=key)
    classes = rest.get("/x/classes", headers=key)
    server.stop()
    assert asked.status_code == classes.status_code == 503
    assert "labels.json" in classes.json["error"] and asked.json["error"] == classes.json["error"]


@pytest.mark.parametrize("reads", ["find_labels", "load_labels"])
def test_labels_that_cannot_be_read_for_a_moment_are_read_again(monkeypatch, tmp_path, reads):
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets/labels.txt").write_text("cat\ndog\n")
    read = getattr(routines, reads)

    def fail(*given):
        raise OSError(errno.EMFILE, "Too many open files")

    detector = FakeDetector()
    detector.folder = tmp_path
    server = serving.ModelServer(
        config("d", deployments=[{"id": "x", "model": "d"}]),
        load=lambda folder, model: detector,
        list_versions=lambda base: {1: tmp_path},
    )
    monkeypatch.setattr(routines, reads, fail)
    assert server.wait(10)
    (problem,) = server.readiness()
    assert "Too many open files" in problem and str(tmp_path) not in problem
    monkeypatch.setattr(routines, reads, read)
    assert not server.readiness() and server.reload()[0] == 200
    rest, key = Rest(server), bearer(server.generated_key)
    assert [one["name"] for one in rest.get("/x/classes", headers=key).json.values()] == [
        "cat",
        "dog",
    ]


def test_a_deployment_without_a_label_map_lists_no_classes_of_a_servable_without_files():
    options = {
        "auth": {"keys": [key_entry("site", "k")]},
        "deployments": [{"id": "x", "model": "d"}],
    }
    rest = Rest(fake_server({"d": FakeDetector()}, **options))
    assert rest.get("/classes", headers=bearer("k")).json == {}


def test_the_demos_label_map():
    labels = routines.load_labels("models/shapes/label_map.pbtxt", ROOT)
    assert list(labels) == list(range(1, len(labels) + 1))


def test_a_detector_of_unknown_sizes_is_held_against_its_label_map_at_the_first_picture():
    labels = {1: "cat", 2: "dog"}
    inputs = {"image": ("DT_FLOAT", (1, None, None, 3))}
    outputs = {"out": ("DT_FLOAT", (1, None, None), "ConcatV2", "input")}
    rows = np.zeros((1, 84, 4 + 3), np.float32)  # of a picture of 64 x 64
    for names, fits in ((labels, False), ({**labels, 3: "emu"}, True), ({}, True)):
        model = routines.ImageModel(inputs, outputs, labels=names, family="yolo")
        for array in (rows, rows.transpose(0, 2, 1)):
            if fits:
                assert len(model.read({"out": array}, (64, 64))["scores"]) == 0
                continue
            with pytest.raises(routines.OutputError, match="model's 3 classes.* got 2, ids 1 to 2"):
                model.read({"out": array}, (64, 64))
