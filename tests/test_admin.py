"""Managing over REST: who may, the config file whole or not at all, deployments, keys, uploads."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading

import flask
import pytest
from conftest import ROOT, FakeDetector, FakeServable, Rest, bearer, config, key_entry

import serving
from serving_extensions import config_file

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


class Site:
    """A managed server of fake models over a config file, and a client that has an admin's key."""

    def __init__(self, folder, **changes):
        self.path = folder / "config.json"
        self.config = {
            **config("d", {"name": "m", "base_path": "m"}),
            "deployments": [{"id": "pictures", "model": "d"}],
            "auth": {
                "keys": [key_entry("boss", "boss", admin=True), key_entry("site", "good")],
            },
            "admin": {},
            **changes,
        }
        self.path.write_text(json.dumps(self.config))
        self.servables = {"d": FakeDetector(), "m": FakeServable()}
        self.server = serving.ModelServer(
            self.path,
            poll_seconds=0,
            load=lambda folder, model: self.servables[model.name],
            list_versions=self.list_versions,
        )
        assert self.server.wait(10)
        self.rest = Rest(self.server)

    def list_versions(self, base_path):
        name = os.path.basename(base_path)
        if name not in self.servables:
            raise serving.LoadError("base_path cannot be read: No such file or directory")
        return {1: self.path.parent / name / "1"}

    def ask(self, method, path, body=None, headers=ADMIN, **more):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
        return self.rest.open(path, method=method, data=data, headers={**headers, **more})

    def read(self):
        return json.loads(self.path.read_text())

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
    for method, path, body in CALLS:
        body = site.config if body == "config" else body
        headers = {} if state == "no key" else bearer(key)
        response = site.ask(method, path, body, headers=headers)
        wanted = {"no key": 401, "wrong": 401, "good": 403, "boss": 200, "off": 404}[state]
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
                for one, path, _ in CALLS
            ), (method, row.url)
    assert rows
