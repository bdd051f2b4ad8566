"""Versions, policies, labels, states and reload, over a disk and a loader made of Python objects."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from urllib.parse import quote

import numpy as np
import pytest
from conftest import NO_POLL, ROOT, Disk, FakeServable, Rest, assert_error, config, until
from test_config import REFUSED

import serving


def start(disk, source):
    server = serving.ModelServer(source, load=disk.load, list_versions=disk.list_versions)
    assert server.wait(10)
    return server


def serve(disk, **fields):
    """A server of the model `m` with some config fields."""
    return start(disk, config({"name": "m", "base_path": "m", **fields}))


def states(server, model="m"):
    return {
        entry["version"]: (entry["state"], entry["status"]["error_code"])
        for entry in server.status(model)["model_version_status"]
    }


def default(server, model="m"):
    """The version that answers when none is named."""
    return int(server.predict(model, {"inputs": [0.0]})["outputs"][0])


OK, END, BROKEN = ("AVAILABLE", "OK"), ("END", "OK"), ("LOADING", "UNKNOWN")


@pytest.mark.parametrize(
    "policy, served",
    [
        (None, [10]),
        ({"latest": {}}, [10]),
        ({"latest": {"num_versions": 2}}, [10, 9]),
        ({"all": {}}, [10, 9, 1]),
        ({"specific": {"versions": [1, 9, 77]}}, [9, 1]),
    ],
)
def test_policies_pick_versions_by_number(policy, served):
    server = serve(Disk(m=[1, 9, 10]), **({"model_version_policy": policy} if policy else {}))
    assert [entry["version"] for entry in server.status("m")["model_version_status"]] == [
        str(v) for v in served
    ]
    assert all(state == OK for state in states(server).values())


def test_unnamed_version_is_the_highest_and_zero_means_the_same():
    server = serve(Disk(m=[2, 11]), model_version_policy={"all": {}})
    assert default(server) == 11
    assert server.predict("m", {"inputs": [0.0]}, version=0)["outputs"] == [11]
    assert server.predict("m", {"inputs": [0.0]}, version=2)["outputs"] == [2]
    assert server.status("m", version=0) == server.status("m")


def test_zero_is_version_zero_where_one_exists():
    server = serve(Disk(m=[0, 3]), model_version_policy={"all": {}})
    assert server.predict("m", {"inputs": [0.0]}, version=0)["outputs"] == [0]


def test_labels_name_versions():
    server = serve(
        Disk(m=[1, 2]), model_version_policy={"all": {}}, version_labels={"stable": 1, "canary": 2}
    )
    client = Rest(server)
    assert json.loads(
        client.post("/v1/models/m/labels/stable:predict", {"inputs": [0.0]}).data
    ) == {"outputs": [1.0]}
    assert json.loads(
        client.post("/v1/models/m/labels/canary:predict", {"inputs": [0.0]}).data
    ) == {"outputs": [2.0]}
    assert (
        json.loads(client.get("/v1/models/m/labels/stable").data)["model_version_status"][0][
            "version"
        ]
        == "1"
    )


def test_label_of_a_version_that_is_not_served_is_told():
    server = serve(Disk(m=[1]), version_labels={"next": 2})
    status, body = server.reload()
    assert (status, body["details"]) == (
        500,
        ["$.model_config_list[0].config.version_labels.next: version 2 is not available"],
    )
    assert default(server) == 1


def test_new_version_takes_over_and_the_old_one_is_retired():
    disk = Disk(m=[1])
    server = serve(disk)
    old = server.manager.available["m"].versions[1]
    disk.models["m"].add(2)
    status, body = server.reload()
    assert status == 201 and default(server) == 2 and old.closed
    assert states(server) == {"1": END, "2": OK}
    assert body == {"m": server.status("m")}
    assert server.reload()[0] == 200


def test_retired_version_is_not_found_and_can_come_back():
    disk = Disk(m=[1, 2])
    server = serve(disk, model_version_policy={"all": {}})
    disk.models["m"].remove(2)
    assert server.reload()[0] == 201
    assert_error(
        Rest(server).post("/v1/models/m/versions/2:predict", {"inputs": [0.0]}),
        404,
        "Servable not found for request: Specific(m, 2)",
    )
    disk.models["m"].add(2)
    assert server.reload()[0] == 201 and default(server) == 2


def test_broken_newest_version_leaves_the_next_lower_one_serving():
    """OVMS's HandlingInvalidLastVersion: with 1 and 2 good and 3 broken, `latest 1` serves 2."""
    disk = Disk(m=[1, 2, 3])
    disk.broken = {("m", 3)}
    server = serve(disk)
    assert default(server) == 2 and disk.loaded == [("m", 2)]
    assert states(server) == {"3": BROKEN, "2": OK}
    assert (
        server.status("m", 3)["model_version_status"][0]["status"]["error_message"]
        == "made to fail"
    )


def test_broken_new_version_keeps_the_old_one_and_is_told_at_each_reload_until_mended():
    disk = Disk(m=[1])
    server = serve(disk)
    disk.models["m"].add(2)
    disk.broken = {("m", 2)}
    for _ in range(2):
        status, body = server.reload()
        assert (
            status == 500
            and body["error"]
            == "Reloading models versions failed. Check server logs for more info."
        )
        assert body["details"] == [
            "$.model_config_list[0].config: version 2 of m cannot be loaded: made to fail"
        ]
        assert default(server) == 1 and states(server) == {"1": OK, "2": BROKEN}
    disk.broken = set()
    assert server.reload()[0] == 201 and default(server) == 2


def test_old_version_stays_while_its_only_successor_is_broken():
    disk = Disk(m=[1])
    server = serve(disk)
    disk.models["m"] = {2}
    disk.broken = {("m", 2)}
    assert server.reload()[0] == 500 and default(server) == 1 and not server.readiness()


def test_poller_tries_a_broken_version_again_only_when_its_files_change(tmp_path):
    for version in (1, 2):
        (tmp_path / "m" / str(version)).mkdir(parents=True)
    loads = []

    def load(folder, model):
        loads.append(folder.name)
        if folder.name == "2" and not (folder / "saved_model.pb").exists():
            raise serving.LoadError("no saved_model.pb")
        return FakeServable(int(folder.name))

    server = serving.ModelServer(config({"name": "m", "base_path": str(tmp_path / "m")}), load=load)
    server.wait(10)
    server.manager.refresh(polling=True)
    server.manager.refresh(polling=True)
    assert loads == ["2", "1"]
    (tmp_path / "m" / "2" / "saved_model.pb").touch()
    assert server.manager.refresh(polling=True).changed
    assert loads == ["2", "1", "2"] and default(server) == 2


def test_a_model_that_loses_its_versions_again_is_told_again(caplog):
    disk = Disk(m=[1])
    server = serve(disk)
    for times in (1, 2, 3):
        disk.models["m"] = set()
        for _ in range(2):
            server.manager.refresh(polling=True)
        assert caplog.text.count("m: no version to serve") == times
        disk.models["m"] = {1}
        server.manager.refresh(polling=True)


def test_the_gauges_of_a_version_go_with_it():
    disk = Disk(m=[1])
    server = serve(disk)
    disk.models["m"] = {2}
    server.manager.refresh(polling=True)
    server.manager.refresh(polling=True)
    text = Rest(server).get("/metrics").get_data(as_text=True)
    found = re.findall(r'serving_model_loaded\{.*version="(\d+)"\} (\S+)', text)
    assert found == [("2", "1.0")] and server.status("m", 1)["model_version_status"]


@pytest.mark.parametrize("again", ["poll", "reload"])
def test_the_poller_leaves_a_new_version_alone_while_it_is_being_copied(
    tmp_path, monkeypatch, caplog, again
):
    caplog.set_level("INFO")
    (tmp_path / "1").mkdir()
    model = {"name": "m", "base_path": str(tmp_path)}
    load = lambda folder, model: FakeServable(int(folder.name))  # noqa: E731
    server = serving.ModelServer(config(model), load=load)
    assert server.wait(10) and default(server) == 1
    (tmp_path / "2/assets").mkdir(parents=True)
    (tmp_path / "2/assets/words.txt").write_text("half of")
    monkeypatch.setattr(serving, "COPY_SECONDS", 3600)
    for _ in range(2):
        assert not server.manager.refresh(polling=True).changed
    assert caplog.text.count("m version 2 is being written: it loads after that") == 1
    assert default(server) == 1 and not server.readiness()
    if again == "poll":
        monkeypatch.setattr(serving, "COPY_SECONDS", 0)
        server.manager.refresh(polling=True)
    else:  # whoever asks for a reload knows that the copy has ended
        assert server.reload()[0] == 201
    assert default(server) == 2


def test_a_broken_version_is_tried_again_by_the_poll_that_reads_another_config(tmp_path):
    disk, file = Disk(m=[1], n=[1]), tmp_path / "config.json"
    disk.broken = {("m", 1)}
    file.write_text(json.dumps(config("m", "n")))
    server = serving.ModelServer(file, load=disk.load, list_versions=disk.list_versions)
    server.wait(10)
    disk.broken = set()
    server.manager.refresh(polling=True)
    assert disk.loaded == [("n", 1)]
    file.write_text(json.dumps(config("m", "n", import_modules=["json"])))
    server.manager.refresh(polling=True)
    assert disk.loaded == [("n", 1), ("m", 1)] and not server.readiness()


def test_a_folder_that_vanishes_while_its_files_are_looked_at_is_passed_over(tmp_path, monkeypatch):
    for name in ("gone/a", "stays/b"):
        (tmp_path / name).mkdir(parents=True)
    away = tmp_path.with_name("away")
    before, scan = serving.fingerprint(tmp_path), os.scandir

    def vanish(path):
        if os.path.basename(path) == "gone":
            os.rename(path, away)
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanish)
    found = serving.fingerprint(tmp_path)
    names = [tmp_path, tmp_path / "stays", tmp_path / "stays/b"]
    assert [path for path, *_ in found] == list(map(str, names)) and len(before) == 5


def test_version_folders_are_numbers_with_or_without_zeros(tmp_path):
    for name in ("00000123", "7", "v3", "3abc", "-1", "tmp", "8.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").touch()
    assert sorted(serving.list_versions(str(tmp_path))) == [7, 123]


def test_missing_folder_of_a_served_model_keeps_it_serving():
    disk = Disk(m=[1])
    server = serve(disk)
    folders = disk.models.pop("m")
    for _ in range(2):
        status, body = server.reload()
        assert status == 400 and body["details"] == [
            "$.model_config_list[0].config.base_path: base_path cannot be read: "
            "No such file or directory"
        ]
        assert default(server) == 1 and states(server) == {"1": OK}
    disk.models["m"] = folders
    assert server.reload()[0] == 200


def test_all_versions_gone_is_no_error_and_ends_them():
    disk = Disk(m=[1])
    server = serve(disk)
    disk.models["m"] = set()
    assert server.reload()[0] == 201 and states(server) == {"1": END}
    assert server.readiness() == [
        "m (no version to serve: model_version_policy picks none of the version folders [])"
    ]


@pytest.mark.parametrize(
    "made, policy, why",
    [
        (None, {}, "base_path cannot be read: No such file or directory"),
        ("file", {}, "base_path cannot be read: Not a directory"),
        (
            "folder",
            {},
            "no version to serve: model_version_policy picks none of the version folders []",
        ),
        (
            "versions",
            {"model_version_policy": {"specific": {"versions": [7]}}},
            "no version to serve: model_version_policy picks none of the version folders [1, 2]",
        ),
        (
            "versions",
            {"model_version_policy": {"specific": {"versions": []}}},
            "no version to serve: model_version_policy picks none of the version folders [1, 2]",
        ),
    ],
)
def test_a_model_without_versions_is_not_found_and_readyz_says_why(
    tmp_path, how, caplog, made, policy, why
):
    base = tmp_path / "x"
    if made == "file":
        base.touch()
    elif made:
        base.mkdir()
    for version in "12" if made == "versions" else "":
        (base / version).mkdir()
    source = config({"name": "x", "base_path": str(base), **policy})
    server = serving.ModelServer(source, load=lambda folder, model: FakeServable())
    assert server.wait(10)
    client = Rest(server, how)
    assert_error(client.get("/v1/models/x"), 404, "Could not find any versions of model x")
    assert_error(client.get("/v1/models/x/versions/1"), 404, "Could not find any versions of ...")
    assert_error(client.get("/readyz"), 503, f"Not ready: x ({why})")
    assert why in caplog.text


class Edited:
    """A server over a config file that the test edits."""

    def __init__(self, tmp_path, disk, *models):
        self.path = tmp_path / "config.json"
        self.write(*models)
        self.disk, self.server = disk, start(disk, self.path)

    def write(self, *models, **others):
        self.path.write_text(json.dumps(config(*models, **others)))

    def reload(self):
        status, body = self.server.reload()
        return status, body.get("error"), body.get("details")


CONFIG_FAILED = "Reloading config file failed. Check server logs for more info."


def test_edited_config_is_read_and_models_come_and_go(tmp_path):
    edited = Edited(tmp_path, Disk(a=[1], b=[1]), "a")
    assert edited.reload()[0] == 200
    edited.write("a", "b")
    assert edited.reload()[0] == 201 and default(edited.server, "b") == 1
    edited.write("b")
    assert edited.reload()[0] == 201
    assert states(edited.server, "a") == {"1": END} and set(edited.server.config_status()) == {
        "a",
        "b",
    }
    assert edited.disk.loaded == [("a", 1), ("b", 1)]


def test_white_space_is_a_change_and_equal_bytes_are_none(tmp_path):
    edited = Edited(tmp_path, Disk(a=[1]), "a")
    text = edited.path.read_text()
    edited.path.write_text(text + "\n")
    assert edited.reload()[0] == 201
    edited.path.write_text(text + "\n")
    assert edited.reload()[0] == 200


def test_wrong_config_changes_nothing_until_mended(tmp_path):
    edited = Edited(tmp_path, Disk(a=[1]), "a")
    edited.path.write_text('{"model_config_list": [}')
    for _ in range(2):
        assert edited.reload() == (
            412,
            CONFIG_FAILED,
            ["$: not valid JSON: Expecting value at line 1 column 24"],
        )
    edited.write("a", serve={})
    assert edited.reload() == (412, CONFIG_FAILED, ["$.serve: unknown key; did you mean 'server'?"])
    assert default(edited.server, "a") == 1
    edited.write("a")
    assert edited.reload()[0] == 201


def test_config_that_vanished(tmp_path):
    edited = Edited(tmp_path, Disk(a=[1]), "a")
    text = edited.path.read_text()
    edited.path.unlink()
    assert edited.reload()[:2] == (500, "Config file not found or cannot open.")
    edited.path.write_text(text)
    assert edited.reload()[0] == 200


def test_a_config_is_read_at_one_place_wherever_the_process_goes(tmp_path, monkeypatch):
    (tmp_path / "else").mkdir()
    (tmp_path / "config.json").write_text(json.dumps(config("a")))
    monkeypatch.chdir(tmp_path)
    server = start(Disk(a=[1], b=[1]), "config.json")
    monkeypatch.chdir("else")
    assert server.reload()[0] == 200
    (tmp_path / "else/config.json").write_text(json.dumps(config("b")))
    assert server.reload()[0] == 200 and [model.name for model in server.config.models] == ["a"]
    assert server.manager.name == "config.json", "the start line spells it as it was given"


def test_good_part_of_a_config_is_applied_and_the_bad_part_told(tmp_path):
    edited = Edited(tmp_path, Disk(a=[1], b=[1]), "a")
    edited.write("a", "missing", "b", {"name": "a", "base_path": "b"})
    status, error, details = edited.reload()
    assert (status, error) == (400, CONFIG_FAILED)
    assert details == [
        "$.model_config_list[1].config.base_path: base_path cannot be read: No such file or directory",
        "$.model_config_list[3].config.name: 'a' is already taken by $.model_config_list[0].config",
    ]
    assert default(edited.server, "a") == default(edited.server, "b") == 1
    assert edited.server.config_status()["missing"] == {"model_version_status": []}
    assert edited.reload()[0] == 400
    edited.write("a", "b")
    assert edited.reload()[0] == 201


def test_changed_settings_load_the_version_anew_and_a_changed_policy_does_not(tmp_path):
    disk = Disk(m=[1, 2])
    edited = Edited(tmp_path, disk, "m")
    first = edited.server.manager.available["m"].versions[2]
    edited.write({"name": "m", "base_path": "m", "model_version_policy": {"all": {}}})
    assert edited.reload()[0] == 201 and disk.loaded == [("m", 2), ("m", 1)]
    edited.write(
        {"name": "m", "base_path": "m", "model_version_policy": {"all": {}}, "batching": False}
    )
    assert edited.reload()[0] == 201 and disk.loaded == [("m", 2), ("m", 1), ("m", 2), ("m", 1)]
    assert first.closed and states(edited.server) == {"1": OK, "2": OK}


def test_changed_settings_that_fail_leave_the_loaded_version_serving(tmp_path):
    edited = Edited(tmp_path, Disk(m=[1]), "m")
    edited.disk.broken = {("m", 1)}
    edited.write({"name": "m", "base_path": "m", "batching": False})
    assert edited.reload()[0] == 500
    assert default(edited.server) == 1 and states(edited.server) == {"1": OK}


def test_parallel_reloads_are_one_after_the_other(tmp_path):
    edited = Edited(tmp_path, Disk(a=[1], b=[1]), "a")
    edited.write("a", "b")
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(edited.reload()[0])) for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 9 + [201]


@pytest.mark.parametrize("fails", [False, True])
def test_a_changed_deployment_describes_the_model_that_it_was_written_for(
    tmp_path, monkeypatch, fails
):
    for name in ("old", "new"):
        shutil.copytree(ROOT / "models/digits", tmp_path / name)
    file, go = tmp_path / "config.json", threading.Event()

    def write(name):
        deployment = {"id": "d", "model": "m", "label_map": [f"{name} {n}" for n in range(10)]}
        models = [{"config": {"name": "m", "base_path": name}}]
        file.write_text(json.dumps({"model_config_list": models, "deployments": [deployment]}))

    def ask():
        found = server.predict_image(np.zeros((8, 8), np.uint8))["predictions"]
        return {one["tag"]["name"].split()[0] for one in found}

    write("old")
    server = serving.ModelServer(file, poll_seconds=0)
    assert server.wait(60) and ask() == {"old"}
    load = server.load

    def load_late(request):
        assert go.wait(60)
        if fails:
            raise serving.LoadError("broken")
        return load(request)

    monkeypatch.setattr(server, "load", load_late)
    write("new")
    reload = threading.Thread(target=server.reload)
    reload.start()
    until(lambda: server.config.deployments[0].label_map[0] == "new 0")
    assert ask() == {"old"} and server.readiness() == []
    go.set()
    reload.join()
    assert ask() == {"old" if fails else "new"}
    monkeypatch.setattr(server, "load", load)
    server.reload()
    assert ask() == {"new"}
    server.stop()


def test_reload_over_http(how, tmp_path):
    edited = Edited(tmp_path, Disk(a=[1]), "a")
    client = Rest(edited.server, how)
    assert client.post("/v1/config/reload").status_code == 200
    edited.disk.models["a"].add(2)
    response = client.post("/v1/config/reload")
    assert response.status_code == 201 and json.loads(response.data) == json.loads(
        client.get("/v1/config").data
    )
    edited.path.unlink()
    assert_error(client.post("/v1/config/reload"), 500, "Config file not found or cannot open.")


def test_running_request_is_finished_before_its_version_is_freed():
    disk, running, go_on = Disk(m=[1]), threading.Event(), threading.Event()
    server = serve(disk)
    servable = server.manager.available["m"].versions[1]
    plain = servable.run

    def slow(name, inputs, trace=serving.UNTRACED):
        if (
            not running.is_set()
        ):  # the first one; those that come before the new version is there are as fast as ever
            running.set()
            go_on.wait(10)
        return plain(name, inputs, trace)

    servable.run = slow
    answers = []
    request = threading.Thread(target=lambda: answers.append(default(server)))
    request.start()
    running.wait(10)
    disk.models["m"] = {2}
    reload = threading.Thread(target=server.reload)
    reload.start()
    while default(server) != 2:  # the new one answers while the old one still runs
        pass
    assert states(server) == {"1": ("UNLOADING", "OK"), "2": OK} and not servable.closed
    go_on.set()
    request.join(10), reload.join(10)
    assert answers == [1] and servable.closed and states(server)["1"] == END


def test_request_waits_for_the_first_load_and_then_gives_up():
    go_on = threading.Event()

    def load(folder, model):
        go_on.wait(10)
        return FakeServable(1)

    source = config("m", server={**NO_POLL, "load_wait_seconds": 0})
    server = serving.ModelServer(source, load=load, list_versions=Disk(m=[1]).list_versions).start()
    client = Rest(server)
    response = client.post("/v1/models/m:predict", {"inputs": [0.0]})
    assert_error(response, 503, "Model m is still loading")
    assert response.headers["Retry-After"] == "1"
    assert_error(client.get("/readyz"), 503, "Not ready: m")
    assert client.get("/livez").status_code == 200
    go_on.set()
    server.wait(10)
    assert client.get("/readyz").status_code == 200 and default(server) == 1


def test_loader_survives_whatever_a_model_raises():
    def load(folder, model):
        raise MemoryError("too big")

    server = serving.ModelServer(config("m"), load=load, list_versions=Disk(m=[1]).list_versions)
    server.wait(10)
    assert (
        server.status("m")["model_version_status"][0]["status"]["error_message"]
        == "MemoryError: too big"
    )
    assert server.reload()[0] == 500


def test_stop_frees_every_model_and_refuses_reloads():
    server = serve(Disk(m=[1, 2]), model_version_policy={"all": {}})
    servables, rest = list(server.manager.available["m"].versions.values()), Rest(server)
    server.stop()
    assert all(servable.closed for servable in servables)
    assert_error(rest.post("/v1/config/reload"), 503, "The server is stopping")


def test_fields_without_effect_are_named_once_in_the_log(caplog):
    server = serve(Disk(m=[1]), shape="auto", nireq=4)
    server.reload()
    assert caplog.text.count("m: 'shape' has no effect on a SavedModel") == 1
    assert caplog.text.count("m: 'nireq' has no effect on a SavedModel") == 1


def test_options_that_do_nothing_where_they_stand_are_named_once_in_the_log(caplog):
    disk = Disk(m=[1])
    more = {"monitoring": {"metrics": {}}, "mediapipe_config_list": [{"name": "g"}]}
    server = serving.ModelServer(
        config(
            {"name": "m", "base_path": "m", "pinned": True}, custom_loader_config_list=[], **more
        ),
        load=disk.load,
        list_versions=disk.list_versions,
    )
    assert server.wait(10)
    server.reload()
    texts = [text for text in caplog.messages if text.startswith("note: ")]
    assert sorted(texts) == [
        "note: $.mediapipe_config_list: OpenVINO only, no effect",
        "note: $.monitoring: OpenVINO only, no effect",
        "note: m: 'idle_seconds' and 'pinned' have no effect without \"load\": \"on_demand\"",
    ]


def test_deployment_names_a_model():
    server = start(Disk(m=[1]), config("m", deployments=[{"id": "mine", "model": "m"}]))
    client = Rest(server)
    for name in ("mine", "m"):
        assert json.loads(
            client.post(f"/model-serving/{name}/versions/1:predict", {"inputs": [0.0]}).data
        ) == {"outputs": [1.0]}
        assert json.loads(client.get(f"/model-serving/{name}").data) == server.status("m")


def test_unforeseen_error_of_one_model_does_not_keep_the_others_from_loading():
    disk = Disk(a=[1], b=[1])

    def list_versions(base_path):
        if base_path.endswith("a"):
            raise RuntimeError("unforeseen")
        return disk.list_versions(base_path)

    server = serving.ModelServer(config("a", "b"), load=disk.load, list_versions=list_versions)
    assert server.wait(10) and server.readiness() == ["a"]
    assert server.reload()[1]["details"] == [
        "$.model_config_list[0].config: RuntimeError: unforeseen"
    ]


def test_polling_does_not_wait_for_a_request_that_hangs():
    disk = Disk(m=[1])
    server = serve(disk)
    with server.manager.lease("m") as (version, servable):
        disk.models["m"] = {2}
        server.manager.refresh(polling=True)
        assert (
            version == 1
            and default(server) == 2
            and states(server)["1"] == ("UNLOADING", "OK")
            and not servable.closed
        )
    server.manager.refresh(polling=True)
    assert servable.closed and states(server)["1"] == END


# --- several at once --------------------------------------------------------------------------------------


class Gates:
    """A loader that waits, for each model named in `shut`, until the test opens its gate."""

    def __init__(self, disk, *shut):
        self.disk = disk
        self.begun, self.open = ({name: threading.Event() for name in shut} for _ in range(2))

    def load(self, folder, model):
        if model.name in self.begun:
            self.begun[model.name].set()
            assert self.open[model.name].wait(60)
        return self.disk.load(folder, model)


def begin(disk, load, *models, **options):
    """A server whose loads have begun."""
    source = config(*models, server={**NO_POLL, **options})
    return serving.ModelServer(source, load=load, list_versions=disk.list_versions).start()


def test_a_small_model_does_not_wait_for_a_large_one():
    disk = Disk(large=[1], small=[1], gone=[])
    del disk.models["gone"]
    gates = Gates(disk, "large")
    server = begin(disk, gates.load, "large", "gone", "small", load_wait_seconds=60)
    assert default(server, "small") == 1 and not gates.open["large"].is_set()
    assert states(server, "small") == {"1": OK} and states(server, "large") == {
        "1": ("LOADING", "OK")
    }
    gone = "gone (base_path cannot be read: No such file or directory)"
    assert server.readiness() == ["large", gone] and not server.manager.first_pass_done.is_set()
    gates.open["large"].set()
    assert server.wait(60) and default(server, "large") == 1 and server.readiness() == [gone]


def test_versions_and_models_load_at_once_in_as_many_threads_as_configured():
    disk, meeting = Disk(a=[1, 2], b=[1]), threading.Barrier(3)

    def load(folder, model):
        meeting.wait(60)  # broken, and so the load, where fewer than three come
        return disk.load(folder, model)

    server = begin(
        disk,
        load,
        {"name": "a", "base_path": "a", "model_version_policy": {"all": {}}},
        "b",
        num_load_threads=3,
    )
    assert server.wait(60) and not server.readiness()
    assert sorted(disk.loaded) == [("a", 1), ("a", 2), ("b", 1)]


def test_one_thread_loads_one_version_at_a_time():
    disk, running, most = Disk(a=[1, 2], b=[1], c=[1]), [], []

    def load(folder, model):
        running.append(model.name)
        most.append(len(running))
        running.remove(model.name)
        return disk.load(folder, model)

    server = begin(
        disk,
        load,
        {"name": "a", "base_path": "a", "model_version_policy": {"all": {}}},
        "b",
        "c",
        num_load_threads=1,
    )
    assert server.wait(60) and most == [1] * 4


def test_a_model_that_fails_while_another_loads_is_told_at_once_and_in_the_order_of_the_config():
    disk = Disk(slow=[1], broken=[1], good=[1])
    disk.broken = {("broken", 1), ("slow", 1)}
    gates = Gates(disk, "slow")
    server = begin(disk, gates.load, "slow", "broken", "good", load_wait_seconds=60)
    assert default(server, "good") == 1
    until(lambda: states(server, "broken") == {"1": BROKEN})
    gates.open["slow"].set()
    assert server.wait(60)
    assert server.reload()[1]["details"] == [
        "$.model_config_list[0].config: version 1 of slow cannot be loaded: made to fail",
        "$.model_config_list[1].config: version 1 of broken cannot be loaded: made to fail",
    ]


def test_a_reload_ends_when_all_its_loads_have_and_the_old_versions_serve_meanwhile():
    disk = Disk(large=[1], small=[1])
    gates = Gates(disk, "large")
    gates.open["large"].set()
    server = begin(disk, gates.load, "large", "small")
    assert server.wait(60)
    gates.open["large"].clear(), gates.begun["large"].clear()
    disk.models = {"large": {2}, "small": {2}}
    answers = []
    reload = threading.Thread(target=lambda: answers.append(server.reload()[0]))
    reload.start()
    assert gates.begun["large"].wait(60)
    until(lambda: default(server, "small") == 2)
    assert default(server, "large") == 1 and answers == []
    gates.open["large"].set()
    reload.join(60)
    assert answers == [201] and default(server, "large") == 2


def test_readers_see_each_model_from_one_assignment():
    """Each table that readers may hold has the models of the one before, and one change."""
    disk = Disk(**{f"m{number}": [1] for number in range(20)})
    server = begin(disk, disk.load, *disk.models)
    assert server.wait(60)
    before = server.manager.available
    disk.models["m3"] = {2}
    server.reload()
    assert before["m3"].versions.keys() == {1} and server.manager.available[
        "m3"
    ].versions.keys() == {2}
    assert all(server.manager.available[name] is before[name] for name in before if name != "m3")


ENDS_WITHIN_A_LOAD = """
import sys; sys.path[:0] = [{tests!r}, {root!r}]
import pathlib, threading, time, serving
from conftest import FakeServable, config
begun = threading.Event()
def load(folder, model):
    print(model.name, "begins", flush=True)
    begun.set()
    time.sleep(0.5)
    print(model.name, "is loaded", flush=True)
    return FakeServable()
source = config("large", "next", server={{"num_load_threads": 1}})
server = serving.ModelServer(source, load=load, list_versions=lambda path: {{1: pathlib.Path("1")}})
server.start()
begun.wait()
print("ends", flush=True)
"""


def test_the_end_of_the_process_waits_for_the_loads_that_run_and_begins_no_other():
    source = ENDS_WITHIN_A_LOAD.format(root=str(ROOT), tests=str(ROOT / "tests"))
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["large begins", "ends", "large is loaded"]
    assert done.returncode == 0 and done.stderr == ""


# --- which versions stay ----------------------------------------------------------------------------------


def test_a_chmod_is_reason_to_try_a_version_again_that_could_not_be_read(tmp_path):
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    file = folder / "saved_model.pb"
    file.write_bytes(b"x")
    file.chmod(0)

    def load(folder, model):
        if not file.stat().st_mode & 0o400:
            raise serving.LoadError("Permission denied")
        return FakeServable(1)

    server = serving.ModelServer(config({"name": "m", "base_path": str(tmp_path / "m")}), load=load)
    assert server.wait(60) and server.readiness() == ["m"]
    assert not server.manager.refresh(polling=True).changed
    file.chmod(0o644)
    assert server.manager.refresh(polling=True).changed
    assert not server.readiness() and default(server) == 1


def test_files_changed_in_place_are_named_by_the_poller_and_loaded_by_a_reload(tmp_path, caplog):
    folder = tmp_path / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(b"1")
    server = serving.ModelServer(
        config({"name": "m", "base_path": str(tmp_path / "m")}),
        load=lambda folder, model: FakeServable(int((folder / "saved_model.pb").read_bytes())),
    )
    assert server.wait(60)
    (folder / "saved_model.pb").chmod(0o600)
    folder.chmod(0o700)
    assert not server.manager.refresh(polling=True).changed and "files of m" not in caplog.text
    assert server.reload()[0] == 200, "a chmod changes nothing"
    (folder / "saved_model.pb").write_bytes(b"22")
    for _ in range(2):
        assert not server.manager.refresh(polling=True).changed
    assert caplog.text.count("the files of m version 1 changed") == 1 and default(server) == 1
    assert server.reload()[0] == 201 and default(server) == 22


def test_the_last_versions_stay_where_versions_are_always_to_be_present():
    disk = Disk(m=[1])
    server = start(disk, config("m", server={**NO_POLL, "servable_versions_always_present": True}))
    disk.models["m"] = set()
    for _ in range(2):
        status, body = server.reload()
        assert status == 500 and body["details"] == [
            "$.model_config_list[0].config.base_path: expected a version to serve, got none; those that are loaded keep "
            "serving (servable_versions_always_present)"
        ]
        assert default(server) == 1 and states(server) == {"1": OK}
    disk.models["m"] = {2}
    assert (
        server.reload()[0] == 201 and default(server) == 2 and states(server) == {"1": END, "2": OK}
    )


def test_without_that_option_an_empty_folder_unloads_the_last_version():
    disk = Disk(m=[1])
    server = serve(disk)
    disk.models["m"] = set()
    assert server.reload()[0] == 201 and states(server) == {"1": END}


@pytest.mark.parametrize(
    "policy, order",
    [
        (None, ["load 1", "load 2", "close 1"]),
        ("availability_preserving", ["load 1", "load 2", "close 1"]),
        ("resource_preserving", ["load 1", "close 1", "load 2"]),
    ],
)
def test_the_policy_says_whether_a_new_version_is_loaded_before_or_after_the_old_one_is_freed(
    policy, order
):
    disk, done = Disk(m=[1]), []

    class Told(FakeServable):
        def mark_closed(self):
            done.append(f"close {self.version}")

    def load(folder, model):
        done.append(f"load {folder.name}")
        return Told(int(folder.name))

    options = {**NO_POLL, **({"aspired_version_policy": policy} if policy else {})}
    server = serving.ModelServer(
        config("m", server=options), load=load, list_versions=disk.list_versions
    )
    assert server.wait(60)
    disk.models["m"].add(2)
    assert server.reload()[0] == 201 and done == order and default(server) == 2
    assert states(server) == {"1": END, "2": OK} and server.reload()[0] == 200 and done == order


def test_to_preserve_resources_the_old_version_comes_back_when_the_new_one_is_broken():
    disk = Disk(m=[1])
    server = start(
        disk, config("m", server={**NO_POLL, "aspired_version_policy": "resource_preserving"})
    )
    disk.models["m"].add(2)
    disk.broken = {("m", 2)}
    for _ in range(2):
        assert (
            server.reload()[0] == 500
            and default(server) == 1
            and states(server) == {"1": OK, "2": BROKEN}
        )
    loaded = list(disk.loaded)
    server.manager.refresh(polling=True)
    assert disk.loaded == loaded, "what would fail as before is no reason to unload anything"


def test_to_preserve_resources_a_version_of_changed_settings_is_freed_before_it_is_loaded_anew(
    tmp_path,
):
    path, done = tmp_path / "config.json", []

    class Told(FakeServable):
        def mark_closed(self):
            done.append("close")

    def load(folder, model):
        done.append("load")
        return Told(1)

    def write(**fields):
        path.write_text(
            json.dumps(
                config(
                    {"name": "m", "base_path": "m", **fields},
                    server={**NO_POLL, "aspired_version_policy": "resource_preserving"},
                )
            )
        )

    write()
    server = serving.ModelServer(path, load=load, list_versions=Disk(m=[1]).list_versions)
    assert server.wait(60)
    write(batching=False)
    assert (
        server.reload()[0] == 201
        and done == ["load", "close", "load"]
        and states(server) == {"1": OK}
    )


# --- one model alone --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields, text", REFUSED, ids=range(len(REFUSED)))
def test_a_model_that_cannot_be_served_says_so_and_keeps_no_other_from_it(
    fields, text, how, caplog
):
    disk = Disk(bad=[1], x=[1], good=[1])
    server = start(disk, config({"name": "bad", "base_path": "bad", **fields}, "good"))
    client = Rest(server, how)
    assert default(server, "good") == 1 and ("bad", 1) not in disk.loaded
    (entry,) = json.loads(client.get("/v1/models/bad").data)["model_version_status"]
    assert (entry["state"], entry["status"]) == (
        "LOADING",
        {"error_code": "UNKNOWN", "error_message": text},
    )
    assert_error(client.get("/readyz"), 503, f"Not ready: bad ({text})")
    assert f"$.model_config_list[0].config.{text}" in caplog.text
    assert server.reload()[1]["details"] == [f"$.model_config_list[0].config.{text}"]
    assert client.post("/v1/models/bad:predict", {"inputs": [0.0]}).status_code == 404


def test_a_model_that_is_mended_serves_and_one_that_is_spoilt_serves_on(tmp_path):
    edited = Edited(
        tmp_path, Disk(a=[1], b=[1]), {"name": "a", "base_path": "a", "target_device": "NPU"}, "b"
    )
    assert edited.server.readiness() != []
    edited.write("a", {"name": "b", "base_path": "gs://b"})
    assert edited.reload()[0] == 500
    assert default(edited.server, "a") == default(edited.server, "b") == 1
    assert (
        states(edited.server, "a") == states(edited.server, "b") == {"1": OK}
        and not edited.server.readiness()
    )
    edited.write("a", "b")
    assert edited.reload()[0] == 201


def test_a_refused_model_that_leaves_the_config_is_forgotten(tmp_path):
    edited = Edited(tmp_path, Disk(b=[1]), {"name": "a", "base_path": "gs://a"}, "b")
    assert states(edited.server, "a") == {"0": BROKEN}
    edited.write("b")
    assert edited.reload()[0] == 201
    with pytest.raises(serving.NotFound, match="^Could not find any versions of model a$"):
        edited.server.status("a")


@pytest.mark.parametrize(
    "name", ["a:b", "a/b", "a b", "größe", "...", "%2F", "labels", "m:predict", "\u2028"]
)
def test_a_name_may_hold_nearly_anything(name, how):
    server = serving.ModelServer(
        config({"name": name, "base_path": "m"}),
        load=Disk(m=[1]).load,
        list_versions=Disk(m=[1]).list_versions,
    )
    assert server.wait(60)
    client = Rest(server, how)
    path = "/v1/models/" + quote(name, safe="").replace(".", "%2E")
    assert json.loads(client.post(f"{path}:predict", {"inputs": [2.0]}).data) == {"outputs": [2.0]}
    assert json.loads(client.get(f"{path}/versions/1").data) == server.status(name)
    assert json.loads(client.get("/v1/models").data)["models"][0]["name"] == name
    assert list(server.config_status()) == [name]


# --- no files left ----------------------------------------------------------------------------------------


def no_files():
    return OSError(errno.EMFILE, os.strerror(errno.EMFILE), f"{sys.prefix}/lib/x/__init__.py")


def test_a_load_without_files_left_names_no_path_and_is_tried_again_by_the_next_poll(caplog):
    disk, left = Disk(m=[1]), [0]

    def load(folder, model):
        if not left[0]:
            raise no_files()
        return disk.load(folder, model)

    server = serving.ModelServer(config("m"), load=load, list_versions=disk.list_versions)
    assert server.wait(10)
    (entry,) = server.status("m")["model_version_status"]
    assert entry["status"]["error_message"] == "OSError: Too many open files: __init__.py"
    server.manager.refresh(polling=True), server.manager.refresh(polling=True)
    assert caplog.text.count("Too many open files") == 1 and sys.prefix not in caplog.text
    left[0] = 1
    assert server.manager.refresh(polling=True).changed and default(server) == 1


@pytest.mark.parametrize(
    "error, text",
    [
        (RuntimeError("in /home/ann/lib/x.so: gone"), "RuntimeError: in x.so: gone"),
        (ImportError(f"{sys.prefix}/x.so: no"), "ImportError: x.so: no"),
        (serving.LoadError(f"{sys.prefix}/x.so: no"), "<python>/x.so: no"),
        (SystemExit(9), "it called sys.exit(9)"),
    ],
)
def test_the_reason_of_a_load_that_failed_early_names_no_folder(error, text):
    def load(folder, model):
        raise error

    server = serving.ModelServer(config("m"), load=load, list_versions=Disk(m=[1]).list_versions)
    assert server.wait(10)
    (entry,) = server.status("m")["model_version_status"]
    assert entry["status"]["error_message"] == text
    assert text in server.reload()[1]["details"][0]


def test_a_lack_of_files_is_one_line_a_minute_and_no_traceback(caplog):
    now, disk = [100.0], Disk(m=[1])

    def list_versions(base_path):
        raise no_files()

    server = serving.ModelServer(
        config("m"), load=disk.load, list_versions=list_versions, clock=lambda: now[0]
    )
    assert server.wait(10)
    line = "the process has too many open files; it will try again"
    for seconds, lines in ((1, 1), (58, 1), (2, 2), (59, 2), (1, 3)):
        now[0] += seconds
        server.manager.refresh(polling=True)
        assert caplog.text.count(line) == lines
    assert "Traceback" not in caplog.text


def test_a_pass_that_stops_short_for_lack_of_files_is_one_line(caplog):
    disk = Disk(m=[1])

    def others(outcome, polling):
        raise no_files()

    server = serving.ModelServer(
        config("m"), load=disk.load, list_versions=disk.list_versions, refresh_others=others
    )
    for _ in range(3):
        with pytest.raises(OSError):
            server.reload()
    assert caplog.text.count("The loader failed: the process has too many") == 1
    assert "Traceback" not in caplog.text and default(server) == 1
