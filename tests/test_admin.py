"""Managing over REST: who may, the config file whole or not at all, deployments, keys, uploads."""

import json
import os
import stat
import subprocess
import sys
import threading
import time

import flask
import pytest
from conftest import ROOT, FakeDetector, FakeServable, Rest, bearer, config, fail, key_entry
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
from serving_extensions import config_file, quotas

PICTURE = json.dumps({"image_type": "array", "data": [[[1, 2, 3]]]})
ADMIN = {"x-api-key": "boss"}
# Method, path, body of every route that is for admins alone; each answers below 300 to one.
CALLS = [
    ("GET", "/v1/config/file", None),
    ("PUT", "/v1/config/file?dry_run=1", "config"),
    ("GET", "/v1/config/history", None),
    ("POST", "/v1/config/rollback?dry_run=1", None),
    ("GET", "/deployments/pictures", None),
    ("PUT", "/deployments/pictures?dry_run=1", {"model": "d", "threshold": 0.5}),
    ("PATCH", "/deployments/pictures?dry_run=1", {"threshold": 0.5}),
    ("DELETE", "/deployments/pictures?dry_run=1", {"name": "pictures"}),
    ("GET", "/deployments/pictures/statistics", None),
    ("GET", "/v1/keys", None),
    ("POST", "/v1/keys?dry_run=1", {"name": "new"}),
    ("PATCH", "/v1/keys/site?dry_run=1", {"disabled": True}),
    ("DELETE", "/v1/keys/site?dry_run=1", None),
    ("PATCH", "/v1/models/d?dry_run=1", {"pinned": True}),
]
# Those of uploads, which are off in these tests: 403 to an admin too. See test_admin_uploads.py.
UPLOADS = [
    ("POST", "/v1/models/d/versions", None),
    ("PUT", "/v1/models/d/versions/2", None),
    ("PUT", "/v1/projects/p", None),
]


class Site:
    """A managed server of fake models over a config file, and a client that has an admin's key."""

    def __init__(self, folder, **changes):
        self.path = folder / "config.json"
        self.config = {
            **config("d", {"name": "m", "base_path": "m"}),
            "deployments": [{"id": "pictures", "model": "d"}],
            "auth": {"keys": [key_entry("boss", "boss", admin=True), key_entry("site", "good")]},
            "admin": {},
            **changes,
        }
        self.path.write_text(json.dumps(self.config))
        self.kinds = {"d": FakeDetector, "m": FakeServable}
        self.servables = {}
        self.server = serving.ModelServer(
            self.path, poll_seconds=0, load=self.load, list_versions=self.list_versions
        )
        assert self.server.wait(10)
        self.rest = Rest(self.server)

    def load(self, folder, model):
        if self.kinds[model.name] is None:
            raise serving.LoadError("made to fail")
        self.servables[model.name] = self.kinds[model.name]()
        return self.servables[model.name]

    def list_versions(self, base_path):
        name = os.path.basename(base_path)
        if name not in self.kinds:
            raise serving.LoadError("base_path cannot be read: No such file or directory")
        return {1: self.path.parent / name / "1"}

    def ask(self, method, path, body=None, headers=ADMIN, **more):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        return self.rest.open(path, method=method, data=data, headers={**headers, **more})

    def read(self):
        return json.loads(self.path.read_text())

    def files(self):
        return [name for name in os.listdir(self.path.parent) if "sqlite" not in name]

    def etag(self):
        return self.ask("GET", "/v1/config/file").headers["ETag"]


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path)
    yield made
    made.server.stop()


# --- who may --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["no key", "wrong", "good", "boss", "off"])
def test_every_admin_route_for_every_caller(tmp_path, state):
    site = Site(tmp_path, **({"admin": None} if state == "off" else {}))
    if state == "off":
        site.config.pop("admin")
    else:  # something to roll back to
        assert site.ask("PATCH", "/v1/keys/site", {"disabled": False}).status_code == 201
    before = site.path.read_bytes()
    key = {"off": "boss"}.get(state, state)
    for method, path, body in (*CALLS, *UPLOADS):
        body = site.config if body == "config" else body
        headers = {} if state == "no key" else bearer(key)
        response = site.ask(method, path, body, headers=headers)
        wanted = {"no key": 401, "wrong": 401, "good": 403, "boss": 200, "off": 404}[state]
        wanted = 403 if state == "boss" and (method, path, None) in UPLOADS else wanted
        assert response.status_code == wanted, (method, path, response.data)
        assert ("WWW-Authenticate" in response.headers) == (wanted == 401)
        if wanted != 200:
            assert set(response.json) >= {"error", "status", "code"}
    assert site.path.read_bytes() == before


def test_every_admin_route_is_in_the_table_above():
    rows = [row for row in serving.routes_of(serving.installed()) if row.guard == "admin"]
    for row in rows:
        for method in row.methods:
            assert any(
                method == one and row.pattern.fullmatch(path.partition("?")[0])
                for one, path, _ in (*CALLS, *UPLOADS)
            ), (method, row.url)
    assert rows


@pytest.mark.parametrize(
    ("answer", "headers", "status"),
    [
        (True, {}, 401),
        ("boss", {}, 401),  # a name that the site gives, which may be any visitor's
        ("ann", {"x-api-key": "good"}, 403),
        ("ann", {"x-api-key": "boss"}, 200),
        (False, {"x-api-key": "boss"}, 401),
    ],
)
def test_a_sites_check_never_makes_an_admin(site, answer, headers, status):
    host = flask.Flask("site")
    blueprint = serving.create_blueprint(site.server, authorize=lambda request: answer)
    host.register_blueprint(blueprint, url_prefix="/ml")
    response = host.test_client().get("/ml/v1/config/file", headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize(
    "headers, admin",
    [(ADMIN, True), (bearer("boss"), True), (bearer("good"), False), (bearer("no"), False)],
)
def test_the_list_tells_whether_a_key_may_manage_also_where_it_needs_none(tmp_path, headers, admin):
    site = Site(tmp_path, deployments=[])
    assert site.ask("GET", "/deployments", headers={}).json["key"]["admin"] is False
    assert site.ask("GET", "/deployments", headers=headers).json["key"]["admin"] is admin
    host = flask.Flask("host")
    blueprint = serving.create_blueprint(site.server, authorize=lambda request: "guest")
    host.register_blueprint(blueprint, url_prefix="/ml")
    answer = host.test_client().get("/ml/deployments", headers=headers)
    assert answer.json["key"]["admin"] is admin
    site.server.stop()


def test_wrong_keys_that_ask_whether_they_may_manage_are_slowed_down_too(tmp_path):
    site = Site(tmp_path, deployments=[])
    for number in range(40):
        site.ask("GET", "/deployments", headers=bearer(f"wrong{number}"))
    assert site.ask("GET", "/v1/keys", headers=bearer("another")).status_code == 429
    assert site.ask("GET", "/deployments").json["key"]["admin"] is False  # not looked at
    site.server.stop()


def test_admin_pages_tell_the_methods_they_take(site):
    response = site.ask("DELETE", "/v1/config/file")
    assert response.status_code == 405 and response.headers["Allow"] == "GET, PUT"


# --- the config file ------------------------------------------------------------------------------


def test_what_is_read_and_sent_back_changes_nothing(tmp_path):
    site = Site(tmp_path, monitoring={"url": "http://user:pa55@host/x?token=abc", "password": "pw"})
    before = site.path.read_bytes()
    response = site.ask("GET", "/v1/config/file")
    shown = response.get_data(as_text=True)
    secrets = ["pa55", "abc", '"pw"', *(key["sha256"] for key in site.config["auth"]["keys"])]
    assert not [secret for secret in secrets if secret in shown]
    assert response.json["monitoring"]["url"] == "http://<hidden>@host/x?token=<hidden>"
    again = site.ask("PUT", "/v1/config/file", response.json, **{"If-Match": site.etag()})
    assert again.status_code == 200 and again.json["changes"] == []
    assert site.path.read_bytes() == before


def test_a_passwords_url_and_digests_stay_what_they_were_when_others_change(site):
    shown = site.ask("GET", "/v1/config/file").json
    shown["auth"]["keys"].reverse()
    shown["auth"]["keys"].append({"name": "new", "sha256": "ab" * 32})
    response = site.ask("PUT", "/v1/config/file", shown, **{"If-Match": site.etag()})
    assert response.status_code == 201, response.json
    kept = {key["name"]: key["sha256"] for key in site.read()["auth"]["keys"]}
    known = {key["name"]: key["sha256"] for key in site.config["auth"]["keys"]}
    assert kept == {**known, "new": "ab" * 32}
    assert "ab" * 32 not in response.get_data(as_text=True)


def test_what_is_hidden_of_nothing_is_refused(site):
    shown = site.ask("GET", "/v1/config/file").json
    shown["auth"]["keys"].append({"name": "new", "sha256": "<hidden>"})
    response = site.ask("PUT", "/v1/config/file", shown, **{"If-Match": "*"})
    assert response.status_code == 400
    assert response.json["error"].startswith("$.auth.keys[2].sha256: <hidden> stands for")


NAMES = st.sampled_from(
    ["a", "name", "id", "path", "config", "password", "api_key", "sha256", "url"]
)
TEXTS = st.sampled_from(
    ["", "x", "y", "http://u:p@h/", "redis://:q@h?token=z", "<hidden>", "s3://b"]
)
LEAVES = st.none() | st.booleans() | st.integers(0, 3) | TEXTS
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4)
)


@settings(max_examples=300)
@given(JSON, JSON)
def test_whatever_is_hidden_comes_back_and_each_difference_is_told(old, new):
    assert config_file.restore(config_file.hide(old), old) == old
    changes = config_file.compare_json(old, new)
    assert bool(changes) == (json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True))
    for secret in ("u:p", ":q", "token=z"):
        assert secret not in json.dumps(changes)


def test_a_dry_run_tells_the_places_and_changes_nothing(site):
    new = json.loads(json.dumps(site.config))
    new["deployments"][0]["threshold"] = 0.25
    new["deployments"].append({"id": "more", "model": "d"})
    del new["auth"]["keys"][1]
    new["server"]["threads"] = 8
    before = site.path.read_bytes()
    response = site.ask("PUT", "/v1/config/file?dry_run=1", new)
    assert response.status_code == 200 and response.json["changes"] == [
        {"path": "$.server.threads", "new": 8},
        {"path": "$.deployments[0].threshold", "new": 0.25},
        {"path": "$.deployments[1]", "new": {"id": "more", "model": "d"}},
        {"path": "$.auth.keys[1]", "old": {"name": "site", "sha256": "<hidden>"}},
    ]
    assert response.json["plan"]["keys"]["removed"] == ["site"]
    assert site.path.read_bytes() == before and site.files() == ["config.json"]


def test_a_change_is_in_force_when_it_answers(site):
    new = {**site.config, "deployments": [{"id": "other", "model": "d"}]}
    response = site.ask("PUT", "/v1/config/file", new, **{"If-Match": site.etag()})
    assert response.status_code == 201
    assert site.ask("POST", "/other/predict", PICTURE.encode()).status_code == 200
    assert site.ask("POST", "/pictures/predict", PICTURE.encode()).status_code == 404
    assert response.headers["ETag"] == site.etag() and site.read() == new


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"servr": {}}, "$.servr: unknown key; did you mean 'server'?"),
        ({"server": {"threads": "many"}}, "$.server.threads: expected integer"),
        (
            {"deployments": [{"id": "pictures", "model": "none"}]},
            "$.deployments[0].model: no model is called 'none'",
        ),
        ({"admin": None}, "$.admin: "),
        (
            {"auth": {"keys": [key_entry("boss", "boss", admin=True, disabled=True)]}},
            "$.auth.keys: no key that is marked admin",
        ),
        (
            {"routine_modules": ["missing.py"]},
            "$.routine_modules[0]: FileNotFoundError: No such file or directory: missing.py",
        ),
        (
            {
                "auth": {
                    "keys": [key_entry("a", "a", quota={"calls": 1, "period": "day"})],
                    "quota_store": "gone/q.sqlite3",
                }
            },
            "$.auth.quota_store: cannot be opened: ",
        ),
    ],
)
def test_a_config_that_is_wrong_changes_nothing(site, change, error):
    new = {name: value for name, value in {**site.config, **change}.items() if value is not None}
    before = site.path.read_bytes()
    response = site.ask("PUT", "/v1/config/file", new, **{"If-Match": "*"})
    assert response.status_code == 400 and response.json["error"].startswith(error)
    assert site.path.read_bytes() == before and site.files() == ["config.json"]
    broken = site.ask("PUT", "/v1/config/file", b'{"a": 1,,}', **{"If-Match": "*"})
    assert broken.status_code == 400 and "line 1 column 9" in broken.json["error"]


def test_the_second_of_two_writers_is_told(site):
    etag = site.etag()
    first = {**site.config, "deployments": [{"id": "first", "model": "d"}]}
    second = {**site.config, "deployments": [{"id": "second", "model": "d"}]}
    assert site.ask("PUT", "/v1/config/file", first).status_code == 428
    assert site.ask("PUT", "/v1/config/file", first, **{"If-Match": etag}).status_code == 201
    told = site.ask("PUT", "/v1/config/file", second, **{"If-Match": etag})
    assert told.status_code == 412 and told.headers["ETag"] == site.etag()
    assert site.read() == first


def test_of_many_writers_at_once_one_wins(site):
    etag, answers = site.etag(), []

    def write(number):
        new = {**site.config, "deployments": [{"id": f"w{number}", "model": "d"}]}
        answers.append(site.ask("PUT", "/v1/config/file", new, **{"If-Match": etag}).status_code)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [201, *[412] * 7]


def test_keys_made_at_once_are_all_there(site):
    def create(number):
        assert site.ask("POST", "/v1/keys", {"name": f"k{number}"}).status_code == 201

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(site.read()["auth"]["keys"]) == 10


def test_writers_of_several_processes_take_turns(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[]")
    script = (
        "import json, pathlib, sys; sys.path.insert(0, sys.argv[1]); import serving\n"
        "from serving_extensions import config_file\n"
        "file = config_file.ConfigFile(lambda: pathlib.Path(sys.argv[2]))\n"
        "for number in range(10):\n"
        "    with file.held() as text:\n"
        "        new = [*json.loads(text), [sys.argv[3], number]]\n"
        "        file.write(text, json.dumps(new).encode())\n"
    )
    command = [sys.executable, "-c", script, str(ROOT), str(path)]
    running = [subprocess.Popen([*command, str(number)]) for number in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(json.loads(path.read_text())) == 30


def test_an_edit_by_hand_is_kept_and_told(site):
    etag = site.etag()
    by_hand = {**site.config, "deployments": [{"id": "by_hand", "model": "d"}]}
    site.path.write_text(json.dumps(by_hand))
    told = site.ask("PUT", "/v1/config/file", site.config, **{"If-Match": etag})
    assert told.status_code == 412 and site.read() == by_hand
    assert site.ask("PUT", "/deployments/more", {"model": "d"}).status_code == 201
    assert [one["id"] for one in site.read()["deployments"]] == ["by_hand", "more"]


def test_an_edit_by_hand_while_it_is_written_is_kept(site, monkeypatch):
    by_hand = json.dumps({**site.config, "deployments": []})
    replace = config_file.replace

    def slowly(path, text, like):
        if path.suffix == ".kept":
            site.path.write_text(by_hand)
        replace(path, text, like)

    monkeypatch.setattr(config_file, "replace", slowly)
    response = site.ask("PUT", "/deployments/more", {"model": "d"})
    assert response.status_code == 412 and site.path.read_text() == by_hand


def test_a_config_that_somebody_has_broken_is_put_right_as_a_whole_alone(site):
    site.path.write_text("{")
    assert site.ask("GET", "/v1/config/file").status_code == 400
    refused = site.ask("PATCH", "/v1/keys/site", {"disabled": True})
    assert refused.status_code == 409 and "correct them first" in refused.json["error"]
    response = site.ask("PUT", "/v1/config/file", site.config, **{"If-Match": "*"})
    assert response.status_code == 201 and site.read() == site.config


def test_rollback_goes_back_one_change_after_the_other(site):
    for number in range(3):
        assert site.ask("PUT", f"/deployments/n{number}", {"model": "d"}).status_code == 201
    for left in (2, 1, 0):
        response = site.ask("POST", "/v1/config/rollback")
        assert response.status_code == 201 and len(site.read()["deployments"]) == 1 + left
        assert site.ask("POST", "/pictures/predict", PICTURE.encode()).status_code == 200
    assert site.path.read_text() == json.dumps(site.config)
    assert site.ask("POST", "/v1/config/rollback").status_code == 404
    kept = site.ask("GET", "/v1/config/history").json["kept"]
    assert [one["undone"] for one in kept] == [True] * 3
    wanted = kept[-1]["name"]  # the last state of all, which the first rollback took back
    assert site.ask("POST", "/v1/config/rollback", {"to": wanted}).status_code == 201
    assert len(site.read()["deployments"]) == 4


def test_rollback_of_a_config_that_somebody_has_broken_goes_back_to_the_one_in_force(site):
    assert site.ask("POST", "/v1/keys", {"name": "ann"}).status_code == 201
    in_force = site.path.read_text()
    site.path.write_text(in_force[:-20])
    assert site.ask("POST", "/v1/config/rollback").status_code == 201
    assert site.path.read_text() == in_force
    assert site.ask("POST", "/v1/config/rollback").status_code == 201
    assert site.read() == site.config


def test_rollback_of_an_edit_that_is_not_in_force_goes_back_to_the_config_in_force(site):
    assert site.ask("POST", "/v1/keys", {"name": "ann"}).status_code == 201
    in_force = site.path.read_text()
    site.path.write_text(json.dumps({**site.read(), "import_modules": ["json"]}))
    assert site.ask("POST", "/v1/config/rollback").status_code == 201
    assert site.path.read_text() == in_force


@pytest.mark.parametrize("dry_run", ["?dry_run=1", ""])
@pytest.mark.parametrize(
    "change, told",
    [
        ({"handlers": [{"path": "/f", "function": "nofile.py:run"}]}, "handlers[0].function"),
        ({"deployments": [{"id": "x", "model": "d", "label_map": "nope.txt"}]}, "nope.txt"),
        ({"model_config_list": []}, "pipeline_config_list[0]"),
    ],
)
def test_what_check_finds_wrong_is_refused_and_nothing_changes(tmp_path, change, told, dry_run):
    request = {"node_name": "request", "data_item": "x"}
    node = {"name": "n", "model_name": "m", "type": "DL model", "inputs": [{"x": request}]}
    outputs = [{"y": {"node_name": "n", "data_item": "y"}}]
    node["outputs"] = [{"data_item": "y", "alias": "y"}]
    pipe = {"name": "p", "inputs": ["x"], "nodes": [node], "outputs": outputs}
    site = Site(tmp_path, pipeline_config_list=[pipe], deployments=[])
    assert not site.server.manager.problems
    before = site.path.read_bytes()
    new = {**site.config, **change}
    answer = site.ask("PUT", f"/v1/config/file{dry_run}", new, **{"If-Match": "*"})
    assert answer.status_code == 400 and told in answer.json["error"]
    assert site.path.read_bytes() == before and not site.server.manager.problems
    site.server.stop()


def test_a_new_problem_like_an_old_one_is_new(site):
    site.kinds.pop("m")  # its folder has gone
    site.server.reload()
    assert site.ask("PUT", "/deployments/more", {"model": "d"}).status_code == 201
    new = site.read()
    new["model_config_list"].append({"config": {"name": "typo", "base_path": "typo"}})
    answer = site.ask("PUT", "/v1/config/file", new, **{"If-Match": "*"})
    assert answer.status_code == 400 and "base_path cannot be read" in answer.json["error"]


def test_a_site_that_compresses_may_add_the_coding_to_the_tag(site):
    """As Flask-Compress and nginx do; RFC 9110, 8.8.3.3 has the first."""
    for end in (":zstd", "-gzip"):
        tag = site.etag()[:-1] + f'{end}"'
        assert (
            site.ask("PUT", "/v1/config/file", site.read(), **{"If-Match": tag}).status_code == 200
        )
    wrong = '"0000:zstd"'
    assert site.ask("PUT", "/v1/config/file", site.read(), **{"If-Match": wrong}).status_code == 412


def test_a_config_file_that_is_gone_is_told_to_who_reads_it(site):
    site.path.unlink()
    answer = site.ask("GET", "/v1/config/file")
    assert answer.status_code == 409
    assert answer.json["error"] == "The config file cannot be read: No such file or directory"


def test_the_last_ten_are_kept(site):
    for number in range(13):
        site.ask("PATCH", "/deployments/pictures", {"top_k": number + 1})
    kept = site.ask("GET", "/v1/config/history").json
    assert kept["writable"] and len(kept["kept"]) == 10
    assert kept["kept"][0]["name"] == "000013" and len(site.files()) == 11


def test_mode_and_link_of_the_file_stay(site):
    site.path.chmod(0o640)
    real = site.path.rename(site.path.with_name("real.json"))
    site.path.symlink_to("real.json")
    assert site.ask("PUT", "/deployments/more", {"model": "d"}).status_code == 201
    assert site.path.is_symlink() and len(json.loads(real.read_text())["deployments"]) == 2
    for path in real.parent.glob("real.json*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_config_that_cannot_be_written_is_409_with_the_reason(site, tmp_path, monkeypatch):
    def refused(reason):
        response = site.ask("PUT", "/deployments/more", {"model": "d"})
        assert response.status_code == 409 and reason in response.json["error"], response.json
        assert not site.ask("GET", "/v1/config/history").json["writable"]
        dry = site.ask("PUT", "/deployments/more?dry_run=1", {"model": "d"})
        assert dry.status_code == 200

    site.path.chmod(0o444)
    refused("it is read-only")
    site.path.chmod(0o644)
    mounted = tmp_path / "..2026_11_29" / "config.json"  # as Kubernetes mounts a ConfigMap
    mounted.parent.mkdir()
    site.path.rename(mounted)
    site.path.symlink_to(mounted)
    refused("mounted from a ConfigMap")
    site.path.unlink()
    mounted.rename(site.path)
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    refused("mount its folder")


def test_a_disk_that_refuses_leaves_the_old_config(site, monkeypatch):
    import errno

    before = site.path.read_bytes()
    for number, status in ((errno.EBUSY, 409), (errno.EROFS, 409), (errno.ENOSPC, 507)):

        def refuse(*arguments, number=number):
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", refuse)
            assert site.ask("PUT", "/deployments/x", {"model": "d"}).status_code == status
        assert site.path.read_bytes() == before
        assert site.files() == ["config.json"]


def test_a_disk_that_is_full_between_two_writes_keeps_no_state_of_a_change(site, monkeypatch):
    import errno

    replace = os.replace

    def refuse(source, target):
        if os.path.basename(target) == site.path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    assert site.ask("PUT", "/deployments/x", {"model": "d"}).status_code == 507
    assert site.files() == ["config.json"] and site.read() == site.config


def test_a_config_of_a_program_is_409():
    server = serving.ModelServer(
        {**config(), "auth": {"keys": [key_entry("boss", "boss", admin=True)]}, "admin": {}}
    )
    assert server.wait(10)
    rest = Rest(server)
    for method, path, body in (
        ("GET", "/v1/config/file", None),
        ("POST", "/v1/keys", '{"name": "x"}'),
        ("POST", "/v1/config/rollback", None),
    ):
        response = rest.open(path, method=method, data=body, headers=ADMIN)
        assert response.status_code == 409 and "by a program" in response.json["error"]
    history = rest.get("/v1/config/history", headers=ADMIN).json
    assert history["writable"] is False and "by a program" in history["reason"]
    assert history["kept"] == []


# Writes a config in a child that is killed before, and after, each step in turn.
KILLED = """
import builtins, os, signal, sys, pathlib
sys.path.insert(0, sys.argv[1])
import serving
from serving_extensions import config_file
path = pathlib.Path(sys.argv[2])
old, new = b'{"a": "old"}' * 4000, b'{"b": "new"}' * 5000
file = config_file.ConfigFile(lambda: path)

def child(step):
    count = 0
    def deadly(function):
        def call(*arguments, **options):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return call
    for name in ("open", "replace", "fsync", "chmod", "fchown", "unlink"):
        setattr(os, name, deadly(getattr(os, name)))
    def opened(handle, mode):
        stream = builtins.open(handle, mode, buffering=0)
        class Half:
            fileno, flush = stream.fileno, stream.flush
            def write(self, text):
                deadly(stream.write)(text[:len(text) // 2])
                deadly(stream.write)(text[len(text) // 2:])
            def __enter__(self): return self
            def __exit__(self, *error): stream.close()
        return Half()
    config_file.open = opened
    with file.held() as text:
        file.write(text, new)

seen, step = set(), 0
while True:
    step += 1
    path.write_bytes(old)
    process = os.fork()
    if not process:
        child(step)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    found = path.read_bytes()
    assert found in (old, new), (step, len(found))
    for kept in file.kept():
        assert kept.path.read_bytes() in (old, new), step
    seen.add(found)
    if status == 0:
        break
    assert os.WIFSIGNALED(status), status
with file.held() as text:
    file.write(text, new)
left = [name for name in os.listdir(path.parent) if name.endswith(".tmp")]
print(step, len(seen), left)
"""


def test_kill_at_every_step_of_a_write_leaves_the_old_config_or_the_new_one(tmp_path):
    path = tmp_path / "config.json"
    command = [sys.executable, "-c", KILLED, str(ROOT), str(path)]
    told = subprocess.run(command, capture_output=True, text=True)
    steps, states, left = told.stdout.split()[:3] if told.stdout else (0, 0, told.stderr)
    assert int(steps) > 20 and states == "2" and left == "[]", told


# --- deployments ----------------------------------------------------------------------------------


def test_a_deployment_in_the_words_of_datatures_page(site):
    body = {
        "name": "Blood cells",
        "model": "d",
        "version": 1,
        "label_map": ["red", "white"],
        "routines": [{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}],
        "threshold": 0.3,
        "upload_groups": ["unsure"],
        "evaluation_threshold": 0.7,
        "version_tag": "v1.0",
        "instances": 2,
        "resource_type": "GPU",
        "number_of_gpus": 2,
        "region": "asia",
        "gpu_type": "T4",
    }
    response = site.ask("PUT", "/deployments/cells", body)
    assert response.status_code == 201, response.json
    entry = site.read()["deployments"][1]
    assert entry == {
        "id": "cells",
        **{
            name: body[name]
            for name in ("name", "model", "version", "label_map", "routines", "threshold")
        },
        "version_tag": "v1.0",
        "active_learning": {"group": "unsure", "threshold": 0.7},
        "notes": {"region": "asia", "gpu_type": "T4"},
    }
    model = site.read()["model_config_list"][0]["config"]
    assert model["instances"] == 2 and model["target_device"] == ["GPU:0", "GPU:1"]
    shown = site.ask("GET", "/deployments/cells").json
    for name in ("resource_type", "number_of_gpus", "instances", "upload_groups", "region"):
        assert shown[name] == body[name], name
    assert shown["shared_with"] == ["pictures"]
    assert site.ask("POST", "/cells/predict", PICTURE.encode()).headers["X-Version-Tag"] == "v1.0"
    patched = site.ask("PATCH", "/deployments/cells", {"resource_type": "CPU", "threshold": None})
    assert patched.status_code == 201
    assert site.read()["model_config_list"][0]["config"]["target_device"] == "CPU"
    assert "threshold" not in site.read()["deployments"][1]
    assert site.read()["deployments"][1]["name"] == "Blood cells"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"model": "d", "thresold": 1}, "$.deployments[0].thresold: unknown key"),
        ({"model": "d", "number_of_gpus": 0, "resource_type": "GPU"}, "$.number_of_gpus: 0 does"),
        ({"model": "d", "number_of_gpus": 1, "resource_type": "CPU"}, "$.number_of_gpus: 1 does"),
        ({"model": "d", "resource_type": "TPU"}, "$.resource_type: expected GPU, CPU or AUTO"),
        ({"model": "d", "upload_groups": ["a", "b"]}, "$.upload_groups: expected one group"),
        ({"model": "d", "instances": 0}, "$.model_config_list[0].config.instances: expected at"),
        ({"model": "d", "id": "other"}, "$.id: it differs from the id in the URL"),
        ({"model": "d", "region": 5}, "$.deployments[0].notes.region: expected string"),
        ({}, "$.deployments[0]: missing key 'model'"),
        ([], "Expected a JSON object"),
    ],
)
def test_a_deployment_that_is_wrong_is_refused(site, body, error):
    before = site.path.read_bytes()
    response = site.ask("PUT", "/deployments/pictures", body)
    assert response.status_code == 400 and response.json["error"].startswith(error), response.json
    assert site.path.read_bytes() == before


def test_a_deployment_goes_when_its_name_is_typed_and_comes_back(site):
    site.ask("PATCH", "/deployments/pictures", {"name": "My pictures"})
    site.ask("PATCH", "/v1/keys/site", {"deployments": ["pictures"]})
    for body in (None, {}, {"name": "pictures"}, {"name": 5}):
        response = site.ask("DELETE", "/deployments/pictures", body)
        assert response.status_code == 400 and "$.name" in response.json["error"]
    assert site.ask("DELETE", "/deployments/none", {"name": "none"}).status_code == 404
    assert site.ask("DELETE", "/deployments/pictures", {"name": "My pictures"}).status_code == 201
    assert site.ask("POST", "/pictures/predict", PICTURE.encode()).status_code == 404
    assert site.read()["auth"]["keys"][1]["deployments"] == []
    assert site.ask("POST", "/v1/config/rollback").status_code == 201
    assert site.ask("POST", "/pictures/predict", PICTURE.encode()).status_code == 200
    assert site.read()["auth"]["keys"][1]["deployments"] == ["pictures"]


def test_a_models_options_are_changed(site):
    assert site.ask("PATCH", "/v1/models/m", {"load": "on_demand", "pinned": True}).status_code
    assert site.read()["model_config_list"][1]["config"]["pinned"] is True
    assert site.ask("PATCH", "/v1/models/m", {"pinned": None}).status_code == 201
    assert "pinned" not in site.read()["model_config_list"][1]["config"]
    assert site.ask("PATCH", "/v1/models/none", {"pinned": True}).status_code == 404
    assert site.ask("PATCH", "/v1/models/m", {"name": "n"}).status_code == 400
    wrong = site.ask("PATCH", "/v1/models/m", {"base_path": "nowhere"})
    assert wrong.status_code == 400 and "base_path" in wrong.json["error"]


def test_a_model_that_fails_to_load_is_told_and_the_config_is_in_force(site):
    site.kinds["bad"] = None  # its folder is there, and nothing that can be served
    new = json.loads(json.dumps(site.config))
    new["model_config_list"].append({"config": {"name": "bad", "base_path": "bad"}})
    response = site.ask("PUT", "/v1/config/file", new, **{"If-Match": "*"})
    assert response.status_code == 500 and response.json["written"] is True
    assert "$.model_config_list[2].config" in response.json["details"][0]
    assert site.ask("PUT", "/deployments/more", {"model": "d"}).status_code == 201  # no new problem
    assert site.ask("POST", "/v1/config/rollback", {"to": "000001"}).status_code == 201


@pytest.mark.parametrize("name", ["classes", "predict", "preview", "samples", "client"])
def test_a_deployment_may_be_called_as_the_end_of_another_url(tmp_path, name):
    site = Site(tmp_path, deployments=[{"id": name, "model": "d"}])
    for end in ("", "/statistics"):
        answer = site.ask("GET", f"/deployments/{name}{end}")
        assert answer.status_code == 200, answer.text
    assert site.ask("GET", f"/{name}/classes").status_code == 200
    site.server.stop()
    with pytest.raises(serving.ConfigError, match="v1, v2, deployments, model-serving"):
        Site(tmp_path, deployments=[{"id": "Deployments", "model": "d"}])


def test_statistics_of_a_deployment(site):
    for body in (PICTURE, PICTURE, "{"):
        site.ask("POST", "/pictures/predict", body.encode())
    found = site.ask("GET", "/deployments/pictures/statistics").json
    assert (found["requests"], found["errors_4xx"], found["errors_5xx"]) == (3, 1, 0)
    assert found["requests_per_minute"] == 3 and found["error_rate"] == round(1 / 3, 4)
    assert found["state"] == "ready" and found["uptime_seconds"] >= 0
    assert found["latency_ms"]["p50"] > 0 and found["concurrent_requests"] >= 0
    assert found["process"]["memory_bytes"] > 1 << 20 and found["gpus"] == []
    assert site.ask("GET", "/deployments/none/statistics").status_code == 404


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_lives_and_dies(site):
    made = site.ask("POST", "/v1/keys", {"name": "ann", "quota": {"calls": 5, "period": "month"}})
    key = made.json["key"]
    assert made.status_code == 201 and key not in site.path.read_text()

    def call():
        return site.ask("POST", "/pictures/predict", PICTURE.encode(), headers=bearer(key))

    assert call().status_code == 200
    listed = site.ask("GET", "/v1/keys").get_data(as_text=True)
    assert key not in listed and serving.digest(key) not in listed
    ann = json.loads(listed)["keys"][2]
    assert ann["name"] == "ann" and ann["month_calls"] == 1 and ann["quota"]["used"] == 1
    assert site.ask("PATCH", "/v1/keys/ann", {"disabled": True}).status_code == 201
    assert call().status_code == 401
    assert site.ask("PATCH", "/v1/keys/ann", {"disabled": None}).status_code == 201
    assert call().status_code == 200
    assert site.ask("DELETE", "/v1/keys/ann").status_code == 201
    assert call().status_code == 401 and site.ask("DELETE", "/v1/keys/ann").status_code == 404
    assert site.ask("POST", "/v1/keys", {"name": "site"}).status_code == 409
    for wrong in ({"name": "a b"}, {}, {"name": "x", "sha256": "ab" * 32}, {"name": "x", "a": 1}):
        assert site.ask("POST", "/v1/keys", wrong).status_code == 400, wrong
    assert site.ask("PATCH", "/v1/keys/site", {"name": "other"}).status_code == 400


def test_the_last_admin_cannot_lock_everybody_out(site):
    for method, body in (
        ("DELETE", None),
        ("PATCH", {"disabled": True}),
        ("PATCH", {"admin": None}),
    ):
        response = site.ask(method, "/v1/keys/boss", body)
        assert (
            response.status_code == 400 and "no key that is marked admin" in response.json["error"]
        )
    expired = site.ask("PATCH", "/v1/keys/boss", {"expires": "2020-01-01"})
    assert expired.status_code == 400


def test_what_is_left_of_a_quota_is_told_and_failures_are_given_back(tmp_path):
    quota = {"calls": 3, "period": "month"}
    keys = [key_entry("boss", "boss", admin=True), key_entry("ann", "k", quota=quota)]
    site = Site(tmp_path, auth={"keys": keys})

    def call(body=PICTURE):
        return site.ask("POST", "/pictures/predict", body.encode(), headers=bearer("k"))

    def left():
        return site.ask("GET", "/usage", headers=bearer("k")).json["quota"]["remaining"]

    first = call()
    assert first.headers["RateLimit-Limit"] == "3" and first.headers["RateLimit-Remaining"] == "2"
    assert 0 < int(first.headers["RateLimit-Reset"]) <= 31 * 86400
    assert left() == 2 and "RateLimit-Limit" not in site.ask("GET", "/deployments").headers
    site.servables["d"].run = fail
    failed = call()
    assert failed.status_code == 500 and failed.headers["RateLimit-Remaining"] == "2"
    del site.servables["d"].run
    assert left() == 2
    assert call("{").headers["RateLimit-Remaining"] == "1"  # the client's own mistake counts
    assert call().headers["RateLimit-Remaining"] == "0"
    over = call()
    assert over.status_code == 429 and over.headers["RateLimit-Remaining"] == "0"
    assert over.headers["RateLimit-Reset"] == over.headers["Retry-After"]
    assert left() == 0
    usage = site.ask("GET", "/usage", headers=bearer("k")).json
    assert usage["name"] == "ann" and usage["month_calls"] == 3


def test_the_calls_of_a_month_are_written_though_no_other_call_comes(tmp_path, monkeypatch):
    site = Site(tmp_path)
    site.ask("GET", "/usage", headers=bearer("good"))  # writes what there is
    site.ask("POST", "/pictures/predict", PICTURE.encode(), headers=bearer("good"))

    def written():
        return quotas.open_quotas(site.server.config.auth.quota_store).used("site", "usage")

    before = written()
    site.server.manager.refresh(polling=True)
    assert written() == before  # not yet: one write serves the calls of ten seconds
    now = time.monotonic()
    monkeypatch.setattr(quotas.time, "monotonic", lambda: now + 11)
    site.server.manager.refresh(polling=True)
    assert written() == before + 1


def test_usage_needs_a_key_even_where_nothing_else_does(tmp_path):
    rest = Rest(serving.ModelServer(config()))
    assert rest.get("/usage").status_code == 401
    site = Site(tmp_path)
    assert site.ask("GET", "/usage", headers=bearer("good")).json["month_calls"] == 0


def test_wrong_keys_are_slowed_down_by_address(tmp_path):
    keys = [key_entry("boss", "boss", admin=True), key_entry("site", "good")]
    site = Site(tmp_path, auth={"keys": keys, "wrong_keys_per_minute": 3})
    now = [0.0]
    site.server.state["wrong_keys"]._clock = lambda: now[0]

    def call(key, address="10.0.0.1"):
        environ = {"REMOTE_ADDR": address}
        return site.rest.get("/usage", headers=bearer(key), environ_overrides=environ)

    assert call("good").status_code == 200  # known from there
    assert [call(f"wrong{number}").status_code for number in range(4)] == [401, 401, 401, 429]
    told = call("boss")  # a right one, which nobody has shown from there
    assert told.status_code == 429 and told.headers["Retry-After"] == "60"
    assert call("good").status_code == 200 and call("boss", "10.0.0.2").status_code == 200
    now[0] = 20.7
    wait = int(call("boss").headers["Retry-After"])
    now[0] += wait - 1
    assert call("boss").status_code == 429
    now[0] += 1  # the time that it was told to wait is over
    assert call("boss").status_code == 200
    now[0] = 60.5
    assert [call("same").status_code for _ in range(5)] == [401] * 5, "the last again is no guess"
    now[0] = 200.0
    same = ["2001:db8::1", "2001:db8::2", "2001:db8::ffff:3", "2001:db8::4"]  # one network
    assert [call(f"wrong {one}", one).status_code for one in same] == [401, 401, 401, 429]
    assert call("wrong", "2001:db8:0:1::1").status_code == 401


def test_a_page_that_asks_with_a_key_that_has_gone_locks_nobody_out(tmp_path):
    site = Site(tmp_path, auth={"keys": [key_entry("boss", "boss", admin=True)]})
    for path in ("/stats", "/stats?window=5m", "/usage") * 40:
        answer = site.rest.get(path, headers=bearer("gone"))
        assert answer.status_code == (401 if path == "/usage" else 200)
    assert site.rest.get("/usage", headers=bearer("boss")).status_code == 200


def test_what_is_remembered_of_addresses_is_bounded():
    from serving_extensions import wrong_keys

    state = wrong_keys.WrongKeys(lambda: 0.0)
    for number in range(wrong_keys.MOST_KNOWN + 50):
        state.note_wrong(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", "wrong")
        state.note_right("10.0.0.1", str(number))
    assert len(state._wrong) == len(state._right) == wrong_keys.MOST_KNOWN
