"""Versions, policies, labels, states and reload, over a disk and a loader made of Python objects."""

import json
import threading

import pytest
from conftest import NO_POLL, Disk, FakeServable, Rest, assert_error, config

import serving


def start(disk, source):
    server = serving.ModelServer(source, load=disk.load, list_versions=disk.list_versions)
    assert server.wait(10)
    return server


def serve(disk, **fields):
    """A server of the model `m` with some config fields."""
    return start(disk, config({"name": "m", "base_path": "m", **fields}))


def states(server, model="m"):
    return {entry["version"]: (entry["state"], entry["status"]["error_code"]) for entry in server.status(model)["model_version_status"]}


def default(server, model="m"):
    """The version that answers when none is named."""
    return int(server.predict(model, {"inputs": [0.0]})["outputs"][0])


OK, END, BROKEN = ("AVAILABLE", "OK"), ("END", "OK"), ("LOADING", "UNKNOWN")


@pytest.mark.parametrize("policy, served", [
    (None, [10]), ({"latest": {}}, [10]), ({"latest": {"num_versions": 2}}, [10, 9]), ({"all": {}}, [10, 9, 1]),
    ({"specific": {"versions": [1, 9, 77]}}, [9, 1]), ({"specific": {"versions": [77]}}, [])])
def test_policies_pick_versions_by_number(policy, served):
    server = serve(Disk(m=[1, 9, 10]), **({"model_version_policy": policy} if policy else {}))
    assert [entry["version"] for entry in server.status("m")["model_version_status"]] == [str(v) for v in served]
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
    server = serve(Disk(m=[1, 2]), model_version_policy={"all": {}}, version_labels={"stable": 1, "canary": 2})
    client = Rest(server)
    assert json.loads(client.post("/v1/models/m/labels/stable:predict", {"inputs": [0.0]}).data) == {"outputs": [1.0]}
    assert json.loads(client.post("/v1/models/m/labels/canary:predict", {"inputs": [0.0]}).data) == {"outputs": [2.0]}
    assert json.loads(client.get("/v1/models/m/labels/stable").data)["model_version_status"][0]["version"] == "1"


def test_label_of_a_version_that_is_not_served_is_told():
    server = serve(Disk(m=[1]), version_labels={"next": 2})
    status, body = server.reload()
    assert (status, body["details"]) == (500, ["$.model_config_list[0].config.version_labels.next: version 2 is not available"])
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
    assert_error(Rest(server).post("/v1/models/m/versions/2:predict", {"inputs": [0.0]}), 404,
                 "Servable not found for request: Specific(m, 2)")
    disk.models["m"].add(2)
    assert server.reload()[0] == 201 and default(server) == 2


def test_broken_newest_version_leaves_the_next_lower_one_serving():
    """OVMS's HandlingInvalidLastVersion: with 1 and 2 good and 3 broken, `latest 1` serves 2."""
    disk = Disk(m=[1, 2, 3])
    disk.broken = {("m", 3)}
    server = serve(disk)
    assert default(server) == 2 and disk.loaded == [("m", 2)]
    assert states(server) == {"3": BROKEN, "2": OK}
    assert server.status("m", 3)["model_version_status"][0]["status"]["error_message"] == "made to fail"


def test_broken_new_version_keeps_the_old_one_and_is_told_at_each_reload_until_mended():
    disk = Disk(m=[1])
    server = serve(disk)
    disk.models["m"].add(2)
    disk.broken = {("m", 2)}
    for _ in range(2):
        status, body = server.reload()
        assert status == 500 and body["error"] == "Reloading models versions failed. Check server logs for more info."
        assert body["details"] == ["$.model_config_list[0].config: version 2 of m cannot be loaded: made to fail"]
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
        assert status == 400 and body["details"] == ["$.model_config_list[0].config.base_path: base_path cannot be read: "
                                                     "No such file or directory"]
        assert default(server) == 1 and states(server) == {"1": OK}
    disk.models["m"] = folders
    assert server.reload()[0] == 200


def test_all_versions_gone_is_no_error_and_ends_them():
    disk = Disk(m=[1])
    server = serve(disk)
    disk.models["m"] = set()
    assert server.reload()[0] == 201 and states(server) == {"1": END}
    assert server.readiness() == ["m"]


def test_model_without_versions_has_an_empty_status():
    server = serve(Disk(m=[]))
    assert server.status("m") == {"model_version_status": []}


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
    assert states(edited.server, "a") == {"1": END} and set(edited.server.config_status()) == {"a", "b"}
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
        assert edited.reload() == (412, CONFIG_FAILED, ["$: not valid JSON: Expecting value at line 1 column 24"])
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


def test_good_part_of_a_config_is_applied_and_the_bad_part_told(tmp_path):
    edited = Edited(tmp_path, Disk(a=[1], b=[1]), "a")
    edited.write("a", "missing", "b", {"name": "a", "base_path": "b"})
    status, error, details = edited.reload()
    assert (status, error) == (400, CONFIG_FAILED)
    assert details == ["$.model_config_list[1].config.base_path: base_path cannot be read: No such file or directory",
                       "$.model_config_list[3].config.name: 'a' is already taken by $.model_config_list[0].config"]
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
    edited.write({"name": "m", "base_path": "m", "model_version_policy": {"all": {}}, "batching": False})
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
    threads = [threading.Thread(target=lambda: statuses.append(edited.reload()[0])) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] * 9 + [201]


def test_reload_over_http(how, tmp_path):
    edited = Edited(tmp_path, Disk(a=[1]), "a")
    client = Rest(edited.server, how)
    assert client.post("/v1/config/reload").status_code == 200
    edited.disk.models["a"].add(2)
    response = client.post("/v1/config/reload")
    assert response.status_code == 201 and json.loads(response.data) == json.loads(client.get("/v1/config").data)
    edited.path.unlink()
    assert_error(client.post("/v1/config/reload"), 500, "Config file not found or cannot open.")


def test_running_request_is_finished_before_its_version_is_freed():
    disk, running, go_on = Disk(m=[1]), threading.Event(), threading.Event()
    server = serve(disk)
    servable = server.manager.available["m"].versions[1]
    plain = servable.run

    def slow(name, inputs):
        if not running.is_set():  # the first one; those that come before the new version is there are as fast as ever
            running.set()
            go_on.wait(10)
        return plain(name, inputs)
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
    assert_error(client.get("/readyz"), 503, "Not ready: no version is available of m")
    assert client.get("/livez").status_code == 200
    go_on.set()
    server.wait(10)
    assert client.get("/readyz").status_code == 200 and default(server) == 1


def test_loader_survives_whatever_a_model_raises():
    def load(folder, model):
        raise MemoryError("too big")
    server = serving.ModelServer(config("m"), load=load, list_versions=Disk(m=[1]).list_versions)
    server.wait(10)
    assert server.status("m")["model_version_status"][0]["status"]["error_message"] == "MemoryError: too big"
    assert server.reload()[0] == 500


def test_stop_frees_every_model_and_refuses_reloads():
    server = serve(Disk(m=[1, 2]), model_version_policy={"all": {}})
    servables = list(server.manager.available["m"].versions.values())
    server.stop()
    assert all(servable.closed for servable in servables)
    assert_error(Rest(server).post("/v1/config/reload"), 503, "The server is stopping")


def test_fields_without_effect_are_named_once_in_the_log(caplog):
    server = serve(Disk(m=[1]), shape="auto", nireq=4)
    server.reload()
    assert caplog.text.count("m: 'shape' has no effect on a SavedModel") == 1
    assert caplog.text.count("m: 'nireq' has no effect on a SavedModel") == 1


def test_deployment_names_a_model():
    server = start(Disk(m=[1]), config("m", deployments=[{"id": "mine", "model": "m"}]))
    client = Rest(server)
    for name in ("mine", "m"):
        assert json.loads(client.post(f"/model-serving/{name}/versions/1:predict", {"inputs": [0.0]}).data) == {"outputs": [1.0]}
        assert json.loads(client.get(f"/model-serving/{name}").data) == server.status("m")


def test_unforeseen_error_of_one_model_does_not_keep_the_others_from_loading():
    disk = Disk(a=[1], b=[1])

    def list_versions(base_path):
        if base_path.endswith("a"):
            raise RuntimeError("unforeseen")
        return disk.list_versions(base_path)
    server = serving.ModelServer(config("a", "b"), load=disk.load, list_versions=list_versions)
    assert server.wait(10) and server.readiness() == ["a"]
    assert server.reload()[1]["details"] == ["$.model_config_list[0].config: RuntimeError: unforeseen"]


def test_polling_does_not_wait_for_a_request_that_hangs():
    disk = Disk(m=[1])
    server = serve(disk)
    with server.manager.lease("m") as (version, servable):
        disk.models["m"] = {2}
        server.manager.refresh(polling=True)
        assert version == 1 and default(server) == 2 and states(server)["1"] == ("UNLOADING", "OK") and not servable.closed
    server.manager.refresh(polling=True)
    assert servable.closed and states(server)["1"] == END
