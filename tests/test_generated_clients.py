"""Clients that others' generators make of /openapi.json call a live server."""

import base64
import json
import shutil

import pytest
import requests
from conftest import ROOT, bearer, key_entry, listening
from languages import PICTURE, need, run

import serving

PROGRAMS = ROOT / "tests/clients/generated"


@pytest.fixture(scope="module")
def address():
    """The demo, with a key and a handler."""
    config = json.loads((ROOT / "config.json").read_text()) | {
        "auth": {"keys": [key_entry("site", "secret")]}
    }
    for model in config["model_config_list"]:
        model["config"]["base_path"] = str(ROOT / model["config"]["base_path"])
    for deployment in config["deployments"]:
        deployment["label_map"] = str(ROOT / deployment["label_map"])
    server = serving.ModelServer(config, poll_seconds=0)
    server.endpoint("/caption")(lambda value: {"got": value})
    assert server.wait(120) and not server.readiness()
    with listening(server) as address:
        yield address


@pytest.fixture
def encoded():
    return base64.b64encode(PICTURE.read_bytes()).decode()


def check(answers, address):
    """Each answer is what the URL answers a plain request."""
    key = bearer("secret")

    def ask(path, **options):
        return requests.post(address + path, headers=key, **options).json()

    status = requests.get(f"{address}/v1/models/half_plus_two").json()
    assert answers["status"] == status
    assert answers["predict"] == {"outputs": [2.5, 4.5]}
    assert answers["classify"] == {"error": "Servable not found for request: Latest(nothing)"}
    assert answers["classes"] == requests.get(f"{address}/shapes/classes", headers=key).json()
    seen = ask("/shapes/predict", data=PICTURE.read_bytes())
    assert seen["predictions"] and answers["base64"] == answers["form"] == seen
    coco = ask("/shapes/predict?format=coco", data=PICTURE.read_bytes())
    assert coco["annotations"] and answers["coco"] == coco
    assert answers["refused"]["error"] == "The key is not valid"
    assert answers["handler"] == {"got": [1, "ü"]}
    assert answers["reload"] == 200


def test_openapi_python_client_makes_one_that_runs(tmp_path, address, encoded):
    need("openapi-python-client")
    (tmp_path / "settings.yml").write_text("post_hooks: []")  # it would format what it has made
    made = run(
        f"python -m openapi_python_client generate --url {address}/openapi.json --meta none "
        "--config settings.yml --output-path api",
        tmp_path,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    shutil.copy(PROGRAMS / "use.py", tmp_path)
    done = run(f"python use.py {address} {PICTURE} '{encoded}'", tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    check(answers, address)
    assert answers["bytes"] == answers["base64"] and answers["outputs"] == ["outputs"]


def test_openapi_typescript_makes_types_that_compile_and_a_client_that_runs(
    tmp_path, address, encoded
):
    need("openapi-typescript")
    shutil.copy(PROGRAMS / "use.mts", tmp_path)
    for command in (
        f"npx openapi-typescript {address}/openapi.json -o schema.ts",
        "npx tsc --strict --skipLibCheck --module nodenext --types node use.mts",
    ):
        made = run(command, tmp_path)
        assert made.returncode == 0, made.stdout + made.stderr
    done = run(f"node use.mjs {address} '{encoded}'", tmp_path)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout), address)
