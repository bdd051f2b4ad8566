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
SETS = {
    "serving.py": ("serving.py",),
    "with routines.py": ("serving.py", "routines.py"),
    "all": ("serving.py", "routines.py", "serving_extensions", "console"),
}


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


# What lies at the top of a host that has modules of these names of its own.
THEIRS = {
    "serving.py": "theirs = True\n",
    "routines.py": "theirs = True\n",
    "serving_extensions/__init__.py": "theirs = True\n",
}


def host(to, package, *names):
    """A host's folder, the files in a package of it."""
    for file, text in THEIRS.items():
        (to / file).parent.mkdir(parents=True, exist_ok=True)
        (to / file).write_text(text)
    folder = to.joinpath(*package.split("."))
    folder.parent.mkdir(parents=True, exist_ok=True)
    (folder.parent / "__init__.py").touch()
    copy(folder, *names)
    (folder / "__init__.py").touch()
    return to


def run(code, folder):
    """A script, run in a folder."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment()
    )


def python(code, folder):
    """What a script prints, run in a folder."""
    done = run(code, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@contextlib.contextmanager
def started(folder, *program, **config):
    """The program in a folder, and where it answers, once its models are there."""
    (folder / "config.json").write_text(
        json.dumps({"model_config_list": MODELS, "auth": KEYS} | config)
    )
    program = program or ("serving.py",)
    process = subprocess.Popen(
        [sys.executable, *program, "--config", "config.json", "--port", "0"],
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
        for page in ("/metrics", "/stats", "/console"):
            assert ask(address, page)[0] == 404


def test_the_file_by_itself_says_what_is_wrong_with_a_config(tmp_path):
    folder = copy(tmp_path / "one", "serving.py")
    wrong = {"config": {"name": "none", "base_path": "nowhere"}}
    for name, models in (("good", MODELS), ("bad", [*MODELS, wrong])):
        (folder / f"{name}.json").write_text(json.dumps({"model_config_list": models}))
    code = "import serving, sys\nprint('status', serving.main(['good.json', '--check']))\n"
    done = run(code + "sys.exit(serving.main(['bad.json', '--check']))", folder)
    assert (done.returncode, done.stderr) == (2, "")
    good, bad = done.stdout.split("status 0\n")
    assert good.startswith("model  half_plus_two  version 123 on AUTO  ") and "wrong" not in good
    assert bad.startswith("model  half_plus_two  version 123 on AUTO  ")
    assert "wrong: $.model_config_list[2].config.base_path:" in bad


def test_with_routines_it_answers_pictures_as_with_all_of_it(tmp_path):
    """Without extensions at the top of a folder, with all in a package of a host."""
    chain = {"routines": [{"name": "FilterConfidence", "arguments": {"confidence": 0.9}}]}
    two = copy(tmp_path / "two", *SETS["with routines.py"])
    everything = host(tmp_path / "site", "mysite.ml", *SETS["all"])
    answers = []
    for folder, program, stats in ((two, (), 404), (everything, ("-m", "mysite.ml.serving"), 200)):
        with started(folder, *program, deployments=DEPLOYMENTS) as address:
            predict = "/v1/models/half_plus_two:predict"
            assert ask(address, predict, {"instances": [1.0]}) == (200, {"predictions": [2.5]})
            assert ask(address, "/shapes/predict", picture())[0] == 401
            status, answer = ask(address, "/shapes/predict", picture() | chain, KEY)
            assert status == 200 and answer["predictions"]
            answers.append(answer["predictions"])
            assert ask(address, "/stats")[0] == stats
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


# --- as a blueprint, at the top and in a package of a host ----------------------------------------------

# All of it at the top is what the other tests run.
WAYS = {
    "serving.py at the top": ("", SETS["serving.py"]),
    "with routines.py in a package": ("mysite.ml", SETS["with routines.py"]),
    "all in a package": ("mysite.ml", SETS["all"]),
}

MOUNTED = """
import sys
import flask
{imports}
site = flask.Flask("site")
config = {{"model_config_list": {models!r}, "deployments": {deployments!r}, "auth": {auth!r},
           "server": {{"load_wait_seconds": 600}}}}
blueprint = serving.create_blueprint(config)
site.register_blueprint(blueprint, url_prefix="/ml")
client = site.test_client()
print(client.post("/ml/v1/models/half_plus_two:predict", json={{"instances": [1.0]}}).json)
if config["deployments"]:
    print(client.post("/ml/predict", json={picture!r}, headers={key!r}).status_code)
print(client.get("/ml/stats").status_code, client.get("/ml/console/").status_code)
print(serving.create_app(config).test_client().get("/livez").status_code)
site.extensions["serving"][blueprint.name].stop()
ours = [m for name, m in sorted(sys.modules.items())
        if name.rpartition(".")[2] in ("serving", "routines", "serving_extensions", "core")
        and name.startswith({package!r} or ("serving", "routines"))]
print(all(module.__file__.startswith({folder!r}) for module in ours), len(ours))
"""


@pytest.mark.parametrize(("package", "names"), WAYS.values(), ids=WAYS)
def test_as_a_blueprint(tmp_path, package, names):
    if package:
        folder = host(tmp_path / "site", package, *names)
        imports = "import serving as theirs\nfrom mysite.ml import serving\nassert theirs.theirs"
    else:
        folder, imports = copy(tmp_path / "one", *names), "import serving"
    code = MOUNTED.format(
        imports=imports,
        package=package,
        models=MODELS,
        deployments=DEPLOYMENTS if "routines.py" in names else [],
        auth=KEYS,
        picture=picture(),
        key=KEY,
        folder=str(folder / package.replace(".", os.sep)),
    )
    more = "200 200" if "console" in names else "404 404"
    pictures = ["200"] if "routines.py" in names else []
    modules = {"serving.py": 1, "with routines.py": 2, "all": 4}
    count = next(modules[name] for name, files in SETS.items() if files == names)
    lines = python(code, folder)
    assert lines == ["{'predictions': [2.5]}", *pictures, more, "200", f"True {count}"]


COPIES = """
import flask
import serving, mysite.one.serving as one, mysite.two.serving as two
def load(servable):
    return {"load": lambda folder, model: servable, "list_versions": lambda path: {1: path}}
class Half(one.Servable): pass
def serve(copy):
    spec = lambda name: copy.TensorSpec(name, name + ":0", "DT_FLOAT", (None,))
    signature = copy.Signature({"x": spec("x")}, {"y": spec("y")})
    servable = copy.Servable({"serving_default": signature}, lambda _, inputs: {"y": inputs["x"]})
    config = {"model_config_list": [{"config": {"name": "m", "base_path": "m"}}],
              "handlers": [{"path": "/h", "function": "handler.py:f"}]}
    return copy.ModelServer(config | {"server": {"file_system_poll_wait_seconds": 0}},
                            load=lambda folder, model: servable,
                            list_versions=lambda path: {1: copy.Path(path)})
site = flask.Flask("site")
for name, copy in (("one", one), ("two", two)):
    server = serve(copy)
    assert all(extension.__class__ is copy.Extension for extension in server.extensions)
    site.register_blueprint(copy.create_blueprint(server), name=name, url_prefix="/" + name)
client = site.test_client()
for name in ("one", "two"):
    print(client.post(f"/{name}/v1/models/m:predict", json={"instances": [1.0]}).json)
    key = {"x-api-key": site.extensions["serving"][name].generated_key}
    print(client.post(f"/{name}/h", json=1, headers=key).json)
    print(client.get(f"/{name}/stats").status_code)
print(one.routines is not two.routines, serving.theirs)
@one.routines.routine()
class Mine: pass
print("Mine" in one.routines.DECLARED, "Mine" in two.routines.DECLARED)
for server in site.extensions["serving"].values():
    server.stop()
"""


def test_two_copies_in_one_process_do_not_mix(tmp_path):
    names = SETS["all"]
    folder = host(tmp_path / "site", "mysite.one", *names)
    copy(folder / "mysite" / "two", *names)
    (folder / "handler.py").write_text(
        "COUNT = []\ndef f(x):\n    COUNT.append(x)\n    return len(COUNT)\n"
    )
    each = ["{'predictions': [1.0]}", "1", "200"]
    assert python(COPIES, folder) == [*each, *each, "True True", "True False"]


def test_what_lies_elsewhere_on_the_path_is_not_taken(tmp_path):
    folder = copy(tmp_path / "alone", "serving.py")
    other = copy(tmp_path / "other", "serving.py", "routines.py", "serving_extensions")
    code = f"import sys; sys.path.append({str(other)!r}); import serving\n"
    code += "print(serving.installed(), bool(serving.routines), 'routines' in sys.modules)"
    assert python(code, folder) == ["() False False"]


def test_what_python_finds_first_is_told(tmp_path):
    """A file of the same name in the current folder, and a path without the folder, as with -P."""
    folder = copy(tmp_path / "ours", "serving.py", "routines.py")
    theirs = tmp_path / "theirs/routines.py"
    theirs.parent.mkdir()
    theirs.touch()
    config = {"model_config_list": [], "deployments": [{"id": "d", "model": "m"}]}
    code = f"""
import sys
sys.path[:0] = [{str(theirs.parent)!r}, {str(folder)!r}]
import serving
for sys.path in (sys.path, []):
    try: serving.ModelServer({config})
    except serving.ConfigError as error: print(error)
"""
    needs = "$.deployments: this needs routines.py beside serving.py"
    assert python(code, theirs.parent) == [
        f"{needs}: Python finds {theirs} first",
        f"{needs}: it is there, but its folder is not on Python's path (-P, -I or PYTHONSAFEPATH)",
    ]


def test_a_file_under_another_name_says_that_its_extensions_are_for_serving(tmp_path):
    folder = copy(tmp_path / "named", "serving.py", "routines.py", "serving_extensions")
    shutil.copy(folder / "serving.py", folder / "tfserve.py")
    code = "import tfserve\ntry: tfserve.installed()\nexcept ImportError as error: print(error)"
    (line,) = python(code, folder)
    assert line.startswith("serving_extensions/ uses the module 'serving', but this one is")


def test_an_extension_may_be_imported_before_the_server(tmp_path):
    folder = copy(tmp_path / "one", "serving.py", "routines.py", "serving_extensions")
    first = "serving_extensions.batching"
    code = f"import {first}, serving; print({first}.EXTENSION in serving.installed())"
    assert python(code, folder) == ["True"]
    folder = host(tmp_path / "site", "mysite.ml", *SETS["all"])
    code = (
        "import mysite.ml.serving_extensions.metrics as first, mysite.ml.serving as serving, sys\n"
    )
    code += "print(first.EXTENSION in serving.installed(), 'serving' in sys.modules)"
    assert python(code, folder) == ["True False"]


def test_extensions_of_another_version_are_refused(tmp_path):
    folder = copy(tmp_path / "old", "serving.py", "routines.py", "serving_extensions")
    about = folder / "serving_extensions" / "__init__.py"
    about.write_text(about.read_text().replace('VERSION = "', 'VERSION = "0.0.'))
    done = run("import serving; serving.installed()", folder)
    assert "copy both from one place" in done.stderr
