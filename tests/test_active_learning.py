"""Active learning: what is put aside, once, within caps, whatever the disk does; and how it is fetched and exported."""

import errno
import io
import json
import math
import os
import shutil
import threading

import numpy as np
import pytest
from conftest import FakeDetector, Rest, assert_error, bearer, fake_server, key_entry
from PIL import Image
from pycocotools.coco import COCO

import routines
import serving
from serving_extensions import active_learning

KEY = bearer("k")


def learning(folder, **options):
    """A server whose detector finds one prediction of 0.9 and one of 0.4 in each picture; its client and inbox."""
    server = fake_server(
        {"d": FakeDetector()},
        auth={"keys": [key_entry("site", "k"), key_entry("own", "own", deployments=["pets"])]},
        deployments=[
            {
                "id": "pets",
                "model": "d",
                "label_map": ["cat", "dog"],
                "version_tag": "v7",
                "active_learning": {"threshold": 0.5, "folder": str(folder), **options},
            }
        ],
    )
    return Rest(server), server.prepared.of["active_learning"]["pets"]


def post(rest, colour, **fields):
    return rest.post(
        "/predict",
        {"image_type": "array", "data": np.full((4, 6, 3), colour).tolist(), **fields},
        headers=KEY,
    )


def entropy(p):
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@pytest.mark.parametrize(
    "strategy, detections, classes",
    [
        (
            "entropy",
            (entropy(0.9) + (entropy(0.4) + entropy(0.2)) / 2) / 2,
            (entropy(0.7) + entropy(0.2) + entropy(0.1)) / 3,
        ),
        ("least_confidence", (0.1 + (0.6 + 0.8) / 2) / 2, 0.3),
        ("margin", (1 - 0.8 + (1 - 0.2 + 1 - 0.6) / 2) / 2, 1 - 0.5),
    ],
)
def test_strategies_by_hand(strategy, detections, classes):
    found = {
        "boxes": np.zeros((3, 4)),
        "scores": np.array([0.9, 0.4, 0.2]),
        "names": np.array(["a", "b", "b"], object),
    }
    assert routines.uncertainty(found, strategy) == pytest.approx(detections)
    classified = {"scores": np.array([0.2, 0.7, 0.1]), "names": np.array(["a", "b", "c"], object)}
    assert routines.uncertainty(classified, strategy) == pytest.approx(classes)
    nothing = {"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "names": np.zeros(0, object)}
    assert routines.uncertainty(nothing, strategy) == 0


def test_a_group_can_be_read_after_the_server_has_stopped(tmp_path):
    rest, box = learning(tmp_path)
    assert post(rest, 10).status_code == 200
    box.end()  # as stopping a server does
    seen = rest.get("/pets/active_learning/review", headers=KEY)
    assert len(seen.json["images"]) == 1
    assert post(rest, 20).status_code == 200
    seen = rest.get("/pets/active_learning/review", headers=KEY)
    assert len(seen.json["images"]) == 2


def test_uncertain_pictures_are_kept_once_and_come_back_as_coco(tmp_path):
    rest, box = learning(tmp_path)
    for colour in (10, 20, 10):
        assert post(rest, colour).status_code == 200
    box.flush()
    assert dict(box.counts) == {"kept": 2, "known": 1}
    pictures = sorted((tmp_path / "review").glob("*.png"))
    assert sorted(int(np.asarray(Image.open(path)).max()) for path in pictures) == [10, 20]
    response = rest.get("/pets/active_learning/review", headers=KEY)
    (tmp_path / "coco.json").write_bytes(response.data)
    coco = COCO(tmp_path / "coco.json")
    assert (
        len(coco.getImgIds()) == 2
        and len(coco.getAnnIds()) == 4
        and [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    )
    image = coco.loadImgs(1)[0]
    assert (tmp_path / "review" / image["file_name"]).is_file() and (
        image["width"],
        image["height"],
    ) == (6, 4)
    assert image["score"] == pytest.approx(
        (entropy(np.float32(0.9)) + entropy(np.float32(0.4))) / 2, abs=1e-6
    )
    record = json.loads(pictures[0].with_suffix(".json").read_text())
    assert (
        record["version_tag"] == "v7"
        and record["deployment"] == "pets"
        and record["model"] == "d"
        and record["version"] == 1
    )


def test_the_threshold_counts_what_reaches_it(tmp_path):
    score = (entropy(float(np.float32(0.9))) + entropy(float(np.float32(0.4)))) / 2
    for threshold, kept in ((score + 1e-6, 0), (score - 1e-6, 1)):
        rest, box = learning(tmp_path / str(threshold), threshold=threshold)
        post(rest, 11)
        box.flush()
        assert box.counts["kept"] == kept


def test_the_score_is_of_what_the_deployment_sees_not_of_what_a_request_filters(tmp_path):
    rest, box = learning(tmp_path)
    assert (
        post(rest, 10, routines=[{"name": "FilterConfidence", "confidence": 1}]).json["predictions"]
        == []
    )
    box.flush()
    assert len(rest.get("/pets/active_learning/review", headers=KEY).json["annotations"]) == 2


@pytest.mark.parametrize(
    "caps, kept",
    [
        ({"max_images": 3}, 3),
        ({"max_bytes": 3000}, None),
        ({"max_bytes": 0}, 0),
        ({"max_images": 0}, 0),
    ],
)
def test_caps_hold_also_over_a_restart(tmp_path, caps, kept):
    for _ in range(2):
        rest, box = learning(tmp_path, **caps)
        for colour in range(8):
            assert post(rest, colour).status_code == 200
            box.flush()
    found = list((tmp_path / "review").glob("*.json"))
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert kept is None and 0 < len(found) < 8 and size <= 3000 or len(found) == kept
    assert (
        box.counts["known"] == len(found)
        and box.counts["full"] == 8 - len(found)
        and box.counts["kept"] == 0
    )


@pytest.mark.parametrize("fault", ["full disk", "vanished", "a file"])
def test_faults_of_the_disk_fail_no_request_and_leave_no_half_picture(
    tmp_path, monkeypatch, caplog, fault
):
    rest, box = learning(tmp_path)
    post(rest, 1)
    box.flush()
    if fault == "full disk":

        def fail(path, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(active_learning.Path, "write_bytes", fail)
    else:
        shutil.rmtree(tmp_path / "review")
        if fault == "a file":
            (tmp_path / "review").write_text("")
    for colour in (2, 3):
        assert post(rest, colour).status_code == 200
    box.flush()
    if fault == "vanished":
        assert box.counts == {"kept": 3}
        return
    assert (
        box.counts == {"kept": 1, "failed": 2}
        and caplog.text.count("Active learning group review: pictures are not kept: ") == 1
    )
    monkeypatch.undo()
    if fault == "full disk":
        assert [
            path for path in (tmp_path / "review").iterdir() if path.suffix not in (".png", ".json")
        ] == []
        post(rest, 2)
        box.flush()
        assert box.counts["kept"] == 2, "when there is room again, pictures are kept again"


def test_a_slow_disk_holds_no_request(tmp_path, monkeypatch, caplog):
    rest, box = learning(tmp_path)
    gate = threading.Event()
    monkeypatch.setattr(active_learning, "write_whole", lambda path, data: gate.wait(30))
    assert all(post(rest, colour).status_code == 200 for colour in range(60))
    assert box.counts["busy"] >= 60 - 32 - 1
    assert caplog.text.count("pictures are not kept: more come at once than can be written") == 1
    gate.set()
    box.flush()
    assert box.counts["kept"] + box.counts["busy"] == 60


def test_groups_that_are_not_there(tmp_path):
    rest, _ = learning(tmp_path)
    assert_error(
        rest.get("/pets/active_learning/other", headers=KEY),
        404,
        "Deployment 'pets' has no active learning group 'other'",
    )
    assert_error(
        rest.get("/dogs/active_learning/review", headers=KEY),
        404,
        "There is no deployment 'dogs'; there are: pets",
    )
    assert rest.get("/pets/active_learning/..%2f..", headers=KEY).status_code == 404
    assert rest.get("/pets/active_learning/review", headers=KEY).json == {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def test_export_writes_a_coco_data_set(tmp_path, capsys):
    rest, box = learning(tmp_path / "kept")
    post(rest, 10), post(rest, 20)
    box.flush()
    config = {
        "model_config_list": [],
        "deployments": [
            {
                "id": "pets",
                "model": "d",
                "label_map": ["cat", "dog"],
                "active_learning": {"threshold": 0.5, "folder": "kept"},
            }
        ],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (
        serving.main(
            ["--config", str(tmp_path / "config.json"), "--export", "review", str(tmp_path / "out")]
        )
        == 0
    )
    assert capsys.readouterr().out.startswith("Pictures of group review in ")
    coco = COCO(tmp_path / "out/annotations.json")
    for image in coco.loadImgs(coco.getImgIds()):
        assert Image.open(tmp_path / "out/images" / image["file_name"]).size == (6, 4)
    assert (
        serving.main(
            ["--config", str(tmp_path / "config.json"), "--export", "none", str(tmp_path / "out")]
        )
        == 2
    )
    assert "no deployment has an active learning group 'none'" in capsys.readouterr().err


def put(rest, name, body, key=KEY):
    path = f"/pets/active_learning/review/{name}/verdict"
    return rest.open(path, method="PUT", data=json.dumps(body), headers=key)


def test_a_verdict_lies_beside_the_picture_and_the_export_leaves_rejected_ones_out(tmp_path):
    rest, box = learning(tmp_path)
    for colour in (10, 20, 30):
        post(rest, colour)
    box.flush()
    names = sorted(path.name for path in (tmp_path / "review").glob("*.png"))
    for name, said in zip(names, ("accepted", "rejected", "rejected")):
        assert put(rest, name, {"verdict": said}).json == {"file_name": name, "verdict": said}
    assert put(rest, names[2], {"verdict": "none"}).status_code == 200
    rest = learning(tmp_path)[0]  # a restart forgets nothing
    group = rest.get("/pets/active_learning/review", headers=KEY).json
    assert {image["file_name"]: image["verdict"] for image in group["images"]} == dict(
        zip(names, ("accepted", "rejected", "none"))
    )
    assert active_learning.export_group(tmp_path / "review", tmp_path / "out", {}) == 2
    coco = COCO(tmp_path / "out/annotations.json")
    assert sorted(image["file_name"] for image in coco.loadImgs(coco.getImgIds())) == [
        names[0],
        names[2],
    ]
    assert len(coco.getAnnIds()) == 4 and len(list((tmp_path / "out/images").iterdir())) == 2
    assert {path.suffix for path in (tmp_path / "review").iterdir()} == {
        ".png",
        ".json",
        ".verdict",
    }


def test_verdicts_that_are_none_are_refused(tmp_path, monkeypatch):
    rest, box = learning(tmp_path)
    post(rest, 10)
    box.flush()
    (name,) = [path.name for path in (tmp_path / "review").glob("*.png")]
    for body in ({"verdict": "good"}, {"verdict": ["accepted"]}, {}, [], "accepted", None):
        assert_error(put(rest, name, body), 400, "verdict: expected accepted, rejected or none...")
    for other in ("0" * 64 + ".png", name.replace(".png", ".json"), "..%2f..%2fx.png"):
        assert put(rest, other, {"verdict": "accepted"}).status_code == 404
        path = f"/pets/active_learning/review/{other}"
        assert rest.get(path, headers=KEY).status_code == 404

    def fail(path, data):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(active_learning.Path, "write_bytes", fail)
    assert_error(
        put(rest, name, {"verdict": "accepted"}),
        503,
        "The verdict cannot be written: Read-only file system",
    )
    assert read_verdicts(rest) == ["none"]


def read_verdicts(rest):
    images = rest.get("/pets/active_learning/review", headers=KEY).json["images"]
    return [image["verdict"] for image in images]


def test_a_picture_comes_back_whole_or_small(tmp_path):
    rest, box = learning(tmp_path)
    pixels = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    rest.post("/predict", {"image_type": "array", "data": pixels.tolist()}, headers=KEY)
    box.flush()
    (name,) = [path.name for path in (tmp_path / "review").glob("*.png")]
    path = f"/pets/active_learning/review/{name}"
    whole = rest.get(path, headers=KEY)
    assert whole.headers["Content-Type"] == "image/png"
    assert (np.asarray(Image.open(io.BytesIO(whole.data))) == pixels).all()
    small = Image.open(io.BytesIO(rest.get(f"{path}?side=30", headers=KEY).data))
    assert small.size == (30, 20)
    blocks = pixels.reshape(20, 2, 30, 2, 3).mean((1, 3))  # [20, 30, 3]
    assert abs(np.asarray(small, float) - blocks).max() <= 1
    assert rest.get(f"{path}?side=600", headers=KEY).data == whole.data
    assert_error(
        rest.get(f"{path}?side=0", headers=KEY), 400, "side: expected a number of pixels, got '0'"
    )


def test_records_come_as_predict_answered_them(tmp_path):
    rest, box = learning(tmp_path)
    answered = post(rest, 10).json["predictions"]
    (record,) = rest.get("/pets/active_learning/review?format=json", headers=KEY).json["images"]
    assert record["predictions"] == answered and record["verdict"] == "none"
    assert (record["width"], record["height"]) == (6, 4) and record["deployment"] == "pets"
    assert (tmp_path / "review" / record["file_name"]).is_file()
    assert_error(
        rest.get("/pets/active_learning/review?format=png", headers=KEY),
        400,
        "format: expected coco or json, got 'png'",
    )


def test_the_scores_are_those_of_all_pictures_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(active_learning, "SCORES", 3)
    rest, box = learning(tmp_path, threshold=0.99)
    truth = (entropy(float(np.float32(0.9))) + entropy(float(np.float32(0.4)))) / 2
    path = "/pets/active_learning/review/scores"
    assert rest.get(path, headers=KEY).json["scores"] == []
    for colour in (1, 1, 2, 3):
        post(rest, colour)
    found = rest.get(path, headers=KEY).json
    assert found["scores"] == pytest.approx([truth] * 3, abs=1e-5)
    assert (found["threshold"], found["strategy"], found["most"]) == (0.99, "entropy", 3)
    box.flush()
    assert not box.counts["kept"]


def test_a_key_sees_and_judges_pictures_of_its_deployments_alone(tmp_path):
    shared = {"threshold": 0, "folder": str(tmp_path), "group": "review"}
    server = fake_server(
        {"d": FakeDetector()},
        auth={
            "keys": [
                key_entry("site", "k"),
                key_entry("p", "p", deployments=["pets"], quota={"calls": 1, "period": "day"}),
            ],
            "quota_store": str(tmp_path / "quotas"),
        },
        deployments=[
            {"id": name, "model": "d", "label_map": ["cat", "dog"], "active_learning": shared}
            for name in ("pets", "cars")
        ],
    )
    rest, own = Rest(server), bearer("p")
    post(rest, 10)
    body = {"image_type": "array", "data": np.full((4, 6, 3), 20).tolist()}
    rest.post("/cars/predict", body, headers=KEY)
    server.prepared.of["active_learning"]["pets"].flush()
    records = {
        json.loads(path.read_text())["deployment"]: f"{path.stem}.png"
        for path in (tmp_path / "review").glob("*.json")
    }
    for _ in range(2):  # neither counts for the quota
        path = f"/pets/active_learning/review/{records['pets']}"
        assert rest.get(path, headers=own).status_code == 200
        assert put(rest, records["pets"], {"verdict": "accepted"}, own).status_code == 200
    path = f"/pets/active_learning/review/{records['cars']}"
    assert rest.get(path, headers=own).status_code == 404
    assert put(rest, records["cars"], {"verdict": "rejected"}, own).status_code == 404
    assert rest.get(path, headers=KEY).status_code == 200
    path = f"/cars/active_learning/review/{records['cars']}"
    assert_error(rest.get(path, headers=own), 403, "The key is not for 'cars'")


def test_records_edited_by_hand_are_passed_over(tmp_path, caplog):
    rest, box = learning(tmp_path)
    for colour in range(6):
        post(rest, colour)
    box.flush()
    records = sorted((tmp_path / "review").glob("*.json"))
    for record, text in zip(records, ("{", "[]", '{"predictions": [{"tag": []}]}')):
        record.write_text(text)
    records[3].with_suffix(".png").unlink()
    records[4].with_suffix(".verdict").write_bytes("accepted".encode("utf-16"))
    for key in (KEY, bearer("own")):
        answer = rest.get("/pets/active_learning/review", headers=key)
        assert [image["verdict"] for image in answer.json["images"]] == ["none"] * 2
    assert caplog.text.count("is skipped: broken record") == 4 + 3
    assert active_learning.export_group(tmp_path / "review", tmp_path / "out", {}) == 2


def test_a_record_whose_name_is_no_text_is_left_out(tmp_path):
    rest, box = learning(tmp_path)
    post(rest, 1)
    box.flush()
    for path in list((tmp_path / "review").iterdir()):
        path.with_stem("bad\udcff").write_bytes(path.read_bytes())
    for form in ("coco", "json"):
        answer = rest.get(f"/pets/active_learning/review?format={form}", headers=KEY)
        assert len(answer.json["images"]) == 1


@pytest.mark.parametrize("cleaned", ["*", "*.png"])
def test_a_folder_that_was_cleaned_or_that_others_fill_is_counted_again(
    tmp_path, monkeypatch, cleaned
):
    monkeypatch.setattr(active_learning, "LOOKING", math.inf)
    (one, box), (two, other) = (learning(tmp_path, max_images=2) for _ in range(2))
    for rest, its_box, colour in ((one, box, 1), (two, other, 1), (two, other, 2), (one, box, 3)):
        assert post(rest, colour).status_code == 200
        its_box.flush()
    assert (box.counts, other.counts) == ({"kept": 1, "full": 1}, {"known": 1, "kept": 1})
    for path in (tmp_path / "review").glob(cleaned):
        path.unlink()
    for colour in (1, 3):
        post(one, colour)
        box.flush()
    assert box.counts["kept"] == 3


def test_deployments_of_other_labels_share_a_group_and_keep_their_names(tmp_path, capsys):
    labels = {"pets": ["cat", "dog"], "cars": ["car", "dog"]}
    config = {
        "deployments": [
            {
                "id": name,
                "model": "d",
                "label_map": labels[name],
                "active_learning": {"threshold": 0, "folder": str(tmp_path)},
            }
            for name in labels
        ]
    }
    server = fake_server({"d": FakeDetector()}, auth={"keys": [key_entry("site", "k")]}, **config)
    rest = Rest(server)
    for colour, name in zip((10, 20), labels):
        body = {"image_type": "array", "data": np.full((4, 6, 3), colour).tolist()}
        answer = rest.post(f"/{name}/predict", body, headers=KEY).json["predictions"]
        assert [found["tag"]["name"] for found in answer] == labels[name]
    groups = [
        rest.get(f"/{name}/active_learning/review", headers=KEY).json for name in ("pets", "cars")
    ]
    (tmp_path / "config.json").write_text(json.dumps({"model_config_list": [], **config}))
    command = ["--config", str(tmp_path / "config.json"), "--export", "review"]
    assert serving.main([*command, str(tmp_path / "out")]) == 0
    coco = json.loads((tmp_path / "out/annotations.json").read_text())
    for group, first in zip((*groups, coco), ("cat", "car", None)):
        names = {category["id"]: category["name"] for category in group["categories"]}
        found = sorted(names[entry["category_id"]] for entry in group["annotations"])
        assert found == ["car", "cat", "dog", "dog"] and len(names) == len(group["categories"])
        assert first in (names[1], None) and names[2] == "dog"
    config["deployments"][1]["active_learning"]["folder"] = str(tmp_path / "other")
    (tmp_path / "config.json").write_text(json.dumps({"model_config_list": [], **config}))
    assert serving.main([*command, str(tmp_path / "out")]) == 2
    assert "pets, cars keep group 'review' in different folders" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tags", "labels", "numbers"),
    [
        ([(1, "dog")], {1: "cat", 2: "bird"}, [3]),  # 1 is the cat's, though none was kept
        ([(1, "dog"), (1, "cat")], {1: "cat", 2: "bird"}, [3, 1]),
        ([(3, "x"), (3, "y"), (4, "z"), (3, "x")], {}, [3, 5, 4]),
    ],
)
def test_a_label_keeps_its_id_from_the_names_of_others(tags, labels, numbers):
    found = active_learning.number_categories(tags, labels)
    assert list(found.values()) == numbers and list(found) == list(dict.fromkeys(tags))


def test_masks_are_put_aside_as_polygons(demo, tmp_path):
    from conftest import ROOT

    server = serving.ModelServer(
        {
            "model_config_list": [
                {"config": {"name": "shapes", "base_path": str(ROOT / "models/shapes")}}
            ],
            "deployments": [
                {
                    "id": "shapes",
                    "model": "shapes",
                    "active_learning": {
                        "threshold": 0,
                        "folder": str(tmp_path),
                        "strategy": "margin",
                    },
                }
            ],
        }
    )
    answer = server.predict_image((ROOT / "models/shapes/samples/0.jpg").read_bytes(), form="coco")
    kept = (
        Rest(server)
        .get("/shapes/active_learning/review", headers=bearer(server.generated_key))
        .json
    )
    server.stop()
    assert [a["segmentation"] for a in kept["annotations"]] == [
        a["segmentation"] for a in answer["annotations"]
    ] and kept["annotations"]


def test_pictures_that_wait_are_bounded_by_their_bytes(tmp_path, monkeypatch):
    _, box = learning(tmp_path)
    go = threading.Event()
    monkeypatch.setattr(active_learning, "MOST_HELD", 1000)
    monkeypatch.setattr(box, "_keep", lambda *what: go.wait(30) and "kept")
    large = np.zeros((20, 20, 3), np.uint8)
    for _ in range(3):  # one that is over it by itself, and what comes behind it
        box.offer(large, dict, None)
    assert dict(box.counts) == {"busy": 2}
    go.set()
    box.flush(30)
    box.offer(large, dict, None)
    box.flush(30)
    assert dict(box.counts) == {"busy": 2, "kept": 2}


def test_a_folder_with_letters_that_the_locale_lacks_is_refused(monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(serving.ConfigError) as raised:
        patch.setattr(os, "scandir", lambda path: str(path).encode("ascii"))  # as LC_ALL=C has it
        learning("учёба")
    assert raised.value.path == "$.deployments[0].active_learning.folder"
    assert "'ascii' codec can't encode" in raised.value.message
