"""The file by itself, with routines.py, with all of it: what works with what, each copied to another folder."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import ROOT

MODELS = [
    {"config": {"name": name, "base_path": str(ROOT / "models" / name)}}
    for name in ("half_plus_two", "shapes")
]
KEY = {"Authorization": "Bearer k"}
KEYS = {
    "keys": [
        {
            "name": "one",
            "sha256": "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a",
        }
    ]
}
DEPLOYMENTS = [
    {"id": "shapes", "model": "shapes", "label_map": str(ROOT / "models/shapes/label_map.pbtxt")}
]
PICTURE = ROOT / "models/shapes/samples/0.jpg"


def copy(to, *names):
    to.mkdir()
    for name in names:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, to / name)
    return to


def environment():
    """One in which nothing of the checkout is found by its name."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "TF_CPP_MIN_LOG_LEVEL": "3"
    }


# The server's modules are those of the folder, or none: an installed copy is not found.
START = """
import importlib.machinery, sys
class Here:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in ("serving", "routines", "serving_extensions"):
            found = importlib.machinery.PathFinder.find_spec(name, [{folder!r}])
            if found is None:
                raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
            return found
sys.meta_path.insert(0, Here)
"""


@contextlib.contextmanager
def started(folder, **config):
    """The program in a folder, and where it answers, once its models are there."""
    (folder / "config.json").write_text(
        json.dumps({"model_config_list": MODELS, "auth": KEYS} | config)
    )
    code = START.format(folder=str(folder)) + (
        "import runpy; sys.argv = ['serving.py', '--config', 'config.json', '--port', '0']\n"
        "runpy.run_path('serving.py', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1])
        address = line.split()[3].rstrip(",")
        while not process.stdout.readline().startswith("Status:"):
            assert process.poll() is None
        yield address
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()


def ask(address, path, body=None, headers=()):
    """The status and the JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def picture():
    return {"image_type": "base64", "data": base64.b64encode(PICTURE.read_bytes()).decode()}


def test_the_file_by_itself_speaks_tensorflow_servings_rest(tmp_path):
    with started(copy(tmp_path / "one", "serving.py")) as address:
        predict = "/v1/models/half_plus_two:predict"
        assert ask(address, predict, {"instances": [1.0, 2.0, 5.0]}) == (
            200,
            {"predictions": [2.5, 3.0, 4.5]},
        )
        assert ask(address, predict, {"inputs": [1.0]}) == (200, {"outputs": [2.5]})
        assert ask(address, "/v1/models/half_plus_two")[0] == 200
        assert ask(address, "/v1/models/half_plus_two/metadata")[0] == 200
        assert ask(address, "/v1/config/reload", {})[0] == 200
        assert ask(address, "/readyz")[0] == 200
        assert ask(address, "/v1/models/none")[0] == 404
        needs = {"error": "This needs serving_extensions/console.py beside serving.py"}
        for page in ("/metrics", "/stats", "/console", "/openapi.json"):
            assert ask(address, page) == (404, needs)


def test_with_routines_it_answers_pictures_as_with_all_of_it(tmp_path):
    chain = {"routines": [{"name": "FilterConfidence", "arguments": {"confidence": 0.9}}]}
    answers = []
    for name, files in (
        ("two", ("serving.py", "routines.py")),
        ("all", ("serving.py", "routines.py", "serving_extensions")),
    ):
        with started(copy(tmp_path / name, *files), deployments=DEPLOYMENTS) as address:
            assert ask(address, "/shapes/predict", picture())[0] == 401
            status, answer = ask(address, "/shapes/predict", picture() | chain, KEY)
            assert status == 200 and answer["predictions"]
            answers.append(answer["predictions"])
            status, _ = ask(address, "/stats")
            assert status == (404 if name == "two" else 200)
    for one, other in zip(*answers, strict=True):  # frozen, a model sums in another order
        assert one["tag"] == other["tag"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        np.testing.assert_allclose(one["bound"], other["bound"], atol=1e-3)


@pytest.mark.parametrize(
    ("files", "config", "says"),
    [
        (("serving.py",), {"deployments": DEPLOYMENTS}, "$.deployments: this needs routines.py"),
        (
            ("serving.py", "routines.py"),
            {"handlers": [{"path": "/h", "function": "h:f"}]},
            "$.handlers: this needs serving_extensions/handlers.py",
        ),
        (
            ("serving.py", "routines.py"),
            {
                "pipeline_config_list": [
                    {
                        "name": "p",
                        "inputs": ["x"],
                        "nodes": [
                            {
                                "name": "n",
                                "type": "DL model",
                                "model_name": "half_plus_two",
                                "inputs": [{"x": {"node_name": "request", "data_item": "x"}}],
                                "outputs": [{"data_item": "y", "alias": "y"}],
                            }
                        ],
                        "outputs": [{"y": {"node_name": "n", "data_item": "y"}}],
                    }
                ]
            },
            "$.pipeline_config_list: this needs serving_extensions/pipelines.py",
        ),
    ],
    ids=["pictures", "handlers", "pipelines"],
)
def test_a_config_that_needs_more_says_which_file(tmp_path, files, config, says):
    with pytest.raises(AssertionError) as raised, started(copy(tmp_path / "one", *files), **config):
        pass
    assert f"{says} beside serving.py" in str(raised.value)
    assert "Traceback" not in str(raised.value)


def test_the_file_by_itself_mounts_in_a_site(tmp_path):
    folder = copy(tmp_path / "site", "serving.py")
    code = START.format(folder=str(folder)) + (
        "import flask, serving\n"
        "site = flask.Flask('site')\n"
        f"config = {{'model_config_list': {MODELS[:1]!r}}}\n"
        "site.register_blueprint(serving.create_blueprint(config), url_prefix='/ml')\n"
        "body = {'instances': [1.0]}\n"
        "print(serving.__file__, serving.installed())\n"
        "print(site.test_client().post('/ml/v1/models/half_plus_two:predict', json=body).json)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment(),
    )
    file, answer = done.stdout.splitlines()
    assert file == f"{folder / 'serving.py'} ()" and answer == "{'predictions': [2.5]}"


def test_extensions_of_another_version_are_refused(tmp_path):
    folder = copy(tmp_path / "old", "serving.py", "routines.py", "serving_extensions")
    about = folder / "serving_extensions" / "__init__.py"
    about.write_text(about.read_text().replace('VERSION = "', 'VERSION = "0.0.'))
    code = START.format(folder=str(folder)) + "import serving; serving.installed()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment()
    )
    assert "copy both from one place" in done.stderr
