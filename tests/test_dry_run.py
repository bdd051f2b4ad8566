"""POST /v1/config/reload?dry_run=1: what it tells is what the reload then does, and telling it changes nothing."""

import json
import threading

import pytest
from conftest import NO_POLL, ROOT, Disk, Rest, bearer, config, key_entry

import serving

DRY = "/v1/config/reload?dry_run=1"
GRAPH = (ROOT / "models/half_plus_two/123/saved_model.pb").read_bytes()
NOTHING = {"added": [], "removed": [], "changed": []}


class Site:
    """A config file and version folders, with a server over them that has loaded all."""

    def __init__(self, folder, *models, **others):
        self.file, self.disk = folder / "c.json", Disk(a=[1], b=[1, 2])
        self.folder = folder
        for name, versions in self.disk.models.items():
            for version in versions:
                self.make(name, version)
        self.write(*models, **others)
        self.server = serving.ModelServer(
            self.file, load=self.disk.load, list_versions=self.disk.list_versions
        )
        assert self.server.wait(10)
        self.rest = Rest(self.server)

    def make(self, name, version):
        self.disk.models.setdefault(name, set()).add(version)
        folder = self.folder / name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "saved_model.pb").write_bytes(GRAPH)

    def write(self, *models, **others):
        self.file.write_text(json.dumps(config(*models, **others)))

    def plan(self):
        """The plan, and that it has changed nothing."""
        before, threads = self.state(), set(threading.enumerate())
        answer = self.rest.post(DRY)
        assert self.state() == before, "it changed something"
        assert not set(threading.enumerate()) - threads, "it started something"
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return answer.json

    def state(self):
        manager = self.server.manager
        states = {
            (name, version): (state.state, id(state.servable), state.error)
            for name, versions in manager.states().items()
            for version, state in versions.items()
        }
        return (
            states,
            manager.config,
            id(manager.prepared),
            list(self.disk.loaded),
            dict(self.server.kept),
        )


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path, "a", "b")
    made.disk.list_versions = lambda base: {
        int(one.name): one for one in sorted((tmp_path / base.rpartition("/")[2]).iterdir())
    }
    made.server.manager.list_versions = made.disk.list_versions
    assert made.rest.post("/v1/config/reload").status_code in (200, 201)
    yield made
    made.server.stop()


def test_nothing_to_do_is_told_as_nothing(site):
    plan = site.plan()
    assert plan["dry_run"] is True and plan["changes"] is False and plan["config_read"] is False
    assert plan["models"] == {**NOTHING, "versions": []} and plan["problems"] == []
    assert plan["keys"] == plan["deployments"] == plan["handlers"] == NOTHING
    assert site.rest.post("/v1/config/reload").status_code == 200


def test_models_and_versions_that_come_and_go(site):
    site.make("c", 7)
    site.make("b", 3)
    site.write({"name": "b", "base_path": "b"}, "c")
    plan = site.plan()
    assert plan["changes"] and plan["config_read"]
    assert plan["models"]["added"] == ["c"] and plan["models"]["removed"] == ["a"]
    assert plan["models"]["versions"] == [
        {"model": "a", "load": [], "reload": [], "unload": [1]},
        {"model": "b", "load": [3], "reload": [], "unload": [2]},
        {"model": "c", "load": [7], "reload": [], "unload": []},
    ]
    loaded = len(site.disk.loaded)
    assert site.rest.post("/v1/config/reload").status_code == 201
    assert sorted(site.disk.loaded[loaded:]) == [("b", 3), ("c", 7)], "as it was told"
    assert site.plan()["changes"] is False


def test_changed_options_are_told_with_what_they_were(site):
    site.write(
        {"name": "a", "base_path": "a", "version_labels": {"stable": 1}},
        {"name": "b", "base_path": "b", "instances": 2},
        server={**NO_POLL, "threads": 4, "max_queued_requests": 9},
    )
    plan = site.plan()
    assert plan["models"]["changed"] == [
        {
            "name": "a",
            "options": [
                {"option": "version_labels", "from": {}, "to": {"stable": 1}, "restart": False}
            ],
        },
        {"name": "b", "options": [{"option": "instances", "from": 1, "to": 2, "restart": False}]},
    ]
    assert plan["models"]["versions"] == [
        {"model": "b", "load": [], "reload": [2], "unload": []}
    ], "a label alone loads nothing"
    assert [(o["option"], o["from"], o["to"], o["restart"]) for o in plan["server"]] == [
        ("threads", 32, 4, True),
        ("max_queued_requests", 1000, 9, False),
    ]


START = {
    "threads": 3,
    "connection_limit": 5,
    "max_request_bytes": 10,
    "trusted_proxy": "*",
    "gpu_memory_limit_mb": 5,
    "intra_op_threads": 1,
    "log_format": "json",
    "log_level": "DEBUG",
}


def test_what_needs_a_restart_is_told_by_the_reload_and_has_no_effect_before(site, caplog):
    site.write("a", "b", server={**NO_POLL, **START, "drain_seconds": 7})
    options = {one["option"] for one in site.plan()["server"] if one["restart"]}
    assert options == set(START)
    assert site.server.reload()[0] == 201
    told = {line.partition(":")[0] for line in caplog.messages if "at a restart" in line}
    assert told == {f"$.server.{name}" for name in START}
    assert site.rest.post("/v1/models/a:predict", b'{"instances": [[1.0]]}').status_code == 200
    named, found, _ = (ROOT / "docs/config.md").read_text().partition("need a restart")
    assert found and all(f"`{name}`" in named for name in START)


def test_changed_files_of_a_version_are_loaded_anew(site, tmp_path):
    (tmp_path / "b/2/saved_model.pb").write_bytes(b"another")
    plan = site.plan()
    assert plan["models"]["versions"] == [{"model": "b", "load": [], "reload": [2], "unload": []}]
    assert plan["config_read"] is False and plan["changes"]


def test_deployments_and_keys_are_told_by_name_alone(site):
    secret = key_entry("site", "k")
    site.write(
        "a",
        "b",
        auth={"keys": [secret, key_entry("other", "o")]},
        deployments=[{"id": "pets", "model": "a", "label_map": ["cat"]}],
    )
    plan = site.plan()
    assert plan["deployments"]["added"] == ["pets"] and plan["keys"]["added"] == ["site", "other"]
    assert site.rest.post("/v1/config/reload").status_code >= 200
    site.write(
        "a",
        "b",
        auth={"keys": [{**secret, "disabled": True}, key_entry("third", "t")]},
        deployments=[{"id": "pets", "model": "b", "label_map": ["cat"]}],
    )
    text = site.rest.post(DRY).get_data(as_text=True)
    plan = json.loads(text)
    assert plan["deployments"]["changed"] == [{"name": "pets", "options": ["model"]}]
    assert plan["keys"] == {
        "added": ["third"],
        "removed": ["other"],
        "changed": [{"name": "site", "options": ["disabled"]}],
    }
    assert secret["sha256"] not in text


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"model_config_list": [{"config": {"base_path": "a"}}]}',
        '{"model_config_list": [], "server": {"thread": 3}}',
        '{"model_config_list": [], "deployments": [{"id": "p", "model": "a", "routines": [{"name": "No"}]}]}',
        '{"model_config_list": [], "routine_modules": ["none.py"]}',
        None,
    ],
)
def test_a_wrong_config_gets_the_answer_of_the_reload(site, text):
    site.file.unlink() if text is None else site.file.write_text(text)
    before = site.state()
    told, again = site.rest.post(DRY), site.rest.post(DRY)
    assert site.state() == before
    done = site.rest.post("/v1/config/reload")
    assert told.status_code == again.status_code == done.status_code >= 400
    assert told.json == again.json == done.json and told.json["details"]
    after = site.rest.post(DRY)
    assert (after.status_code, after.json) == (done.status_code, done.json), "the same text again"


def test_what_can_be_seen_without_loading_is_told_as_a_problem(site):
    site.write(
        {"name": "a", "base_path": "a", "version_labels": {"x": 9}},
        {"name": "g", "base_path": "gs://bucket/g"},
        {"name": "a", "base_path": "b"},
        {"name": "b", "base_path": "b", "model_version_policy": {"specific": {"versions": [7]}}},
        server={**NO_POLL, "servable_versions_always_present": True},
        deployments=[{"id": "pets", "model": "none", "label_map": ["cat"]}],
    )
    plan = site.plan()
    details = site.rest.post("/v1/config/reload").json["details"]
    none = "$.model_config_list[3].config: model_version_policy picks no version folder in "
    assert sorted(plan["problems"]) == sorted([*details, f"{none}{site.folder / 'b'}"])
    assert len(details) == 5


def test_what_check_knows_is_told_as_a_problem_before_and_after_the_reload(site, capsys):
    pipeline = {"inputs": [], "nodes": [], "outputs": []}
    site.write(
        {"name": "a", "base_path": "a", "tags": ["none"]},
        "b",
        deployments=[
            {"id": "lost", "model": "b", "label_map": "none.txt"},
            {"id": "pets", "model": "b", "label_map": ["cat"]},
        ],
        handlers=[{"path": "/h", "function": "none.py:f"}],
        pipeline_config_list=[{**pipeline, "name": name} for name in "app"],
    )
    assert serving.main([str(site.file), "--check"]) == 2
    lines = capsys.readouterr().out.splitlines()
    wanted = [line[len("wrong: ") :] for line in lines if line.startswith("wrong: ")]
    assert len(wanted) == 7
    assert sorted(site.plan()["problems"]) == sorted(wanted)
    assert site.rest.post("/v1/config/reload").status_code >= 400
    assert sorted(site.plan()["problems"]) == sorted(wanted)


def test_an_entry_that_stands_twice_is_a_change(site):
    pipeline = {"name": "p", "inputs": [], "nodes": [], "outputs": []}
    site.write("a", "b", pipeline_config_list=[pipeline])
    site.rest.post("/v1/config/reload")
    site.write("a", "b", pipeline_config_list=[pipeline, pipeline])
    assert site.plan()["changes"] is True


def test_a_deployment_of_a_version_that_is_not_served_is_a_problem_wherever_it_is_told(site):
    pins = {"none": {"version": 99}, "label": {"version_label": "x"}, "any": {"version": 0}}
    deployments = [{"id": name, "model": "b", **pin} for name, pin in pins.items()]
    site.write("a", "b", deployments=deployments)
    told = site.plan()["problems"]
    assert told == [
        "$.deployments[0].version: version 99 of b is not served; there are: [2]",
        "$.deployments[1].version_label: b has no label 'x'; there are: []",
    ]
    done = site.rest.post("/v1/config/reload")
    assert done.status_code == 500 and done.json["details"] == told
    assert site.rest.get("/readyz").status_code == 503
    assert list(site.server.manager.deployment_problems()) == ["none", "label"]
    site.write(
        {"name": "b", "base_path": "b", "version_labels": {"x": 2}}, deployments=deployments[1:]
    )
    assert site.plan()["problems"] == []
    assert site.rest.post("/v1/config/reload").status_code == 201
    assert site.rest.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "change, others",
    [
        ({"admin": {"upload": "code"}}, ["admin"]),
        ({"monitoring": {"metrics": {"enable": True}}}, ["monitoring"]),
        ({"admin": None, "mediapipe_config_list": [{"name": "x"}]}, ["mediapipe_config_list"]),
    ],
)
def test_a_change_of_any_other_section_is_told_by_its_name(site, change, others):
    site.write("a", "b", **change)
    plan = site.plan()
    assert plan["others"] == others and plan["changes"] is True
    assert site.rest.post("/v1/config/reload").status_code == 201
    assert site.plan()["others"] == [] and site.plan()["changes"] is False


def test_changed_options_of_admin_are_told_by_their_names(site):
    site.write("a", "b", admin={})
    assert site.rest.post("/v1/config/reload").status_code == 201
    site.write("a", "b", admin={"upload": True, "max_upload_files": 3})
    assert site.plan()["others"] == ["admin.upload", "admin.max_upload_files"]


def test_an_edited_label_map_is_told(site):
    labels = site.folder / "labels.txt"
    labels.write_text("cat\n")
    site.write("a", deployments=[{"id": "d", "model": "a", "label_map": "labels.txt"}])
    site.rest.post("/v1/config/reload")
    assert site.plan()["others"] == []
    labels.write_text("cat\ndog\n")
    assert site.plan()["others"] == ["label_map"] and site.plan()["changes"] is True
    site.rest.post("/v1/config/reload")
    assert site.plan()["others"] == []


def test_only_yes_and_no_are_taken(site):
    for value in ("0", "false"):
        assert site.rest.post(f"/v1/config/reload?dry_run={value}").status_code == 200
    for value in ("", "2", "maybe"):
        answer = site.rest.post(f"/v1/config/reload?dry_run={value}")
        assert answer.status_code == 400
        assert answer.json == {"error": f"dry_run: expected 1 or 0, got '{value}'"}


def test_it_needs_the_key_that_a_reload_needs(tmp_path):
    keys = [key_entry("all", "k"), key_entry("one", "o", deployments=["pets"])]
    site = Site(
        tmp_path,
        "a",
        auth={"keys": keys, "protect": "all"},
        deployments=[{"id": "pets", "model": "a", "label_map": ["cat"]}],
    )
    codes = [
        site.rest.post(DRY, headers=headers).status_code
        for headers in ({}, bearer("o"), bearer("k"))
    ]
    assert codes == [401, 403, 200]
    site.server.stop()


def test_a_server_without_a_file_has_its_folders_alone_to_look_at():
    disk = Disk(a=[1])
    server = serving.ModelServer(config("a"), load=disk.load, list_versions=disk.list_versions)
    assert server.wait(10)
    disk.models["a"].add(2)
    plan = Rest(server).post(DRY).json
    assert plan["models"]["versions"] == [{"model": "a", "load": [2], "reload": [], "unload": [1]}]
    assert plan["config_read"] is False


def test_an_argument_that_stands_twice_is_taken_only_if_both_say_the_same(site):
    site.write("a")
    answer = site.rest.post("/v1/config/reload?dry_run=0&dry_run=1")
    assert answer.status_code == 400
    assert answer.json == {"error": "dry_run: expected one value in the URL, got 2"}
    assert site.rest.post(DRY + "&dry_run=1").json["dry_run"] is True
    assert "b" in site.rest.get("/v1/config").json  # nothing was reloaded
