"""scaffold.py: a new project, complete, never over another's files, and working."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import serving
from serving_extensions import scaffold
from serving_extensions.handlers import Handler
from serving_extensions.scaffold import name_project, write_project


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "My Projekt"
    write_project(folder)
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


FIVE = {"config.json", "handler.py", "test_handler.py", "requirements.txt", "README.md"}


def test_a_project_is_five_files_and_no_copy_of_the_server(tmp_path):
    folder = tmp_path / "new" / "one"
    written = write_project(folder)
    assert files(folder) == {path.name for path in written} == FIVE
    assert files(scaffold.PROJECT) == FIVE


def test_the_config_is_json_with_one_handler_at_the_projects_name(project):
    config = json.loads((project / "config.json").read_text())
    assert config == {
        "model_config_list": [],
        "handlers": [
            {"path": "/My-Projekt", "function": "handler:inference_handler", "envelope": "hub"}
        ],
    }


def test_no_placeholder_is_left(project):
    assert [name for name in files(project) if "PROJECT_NAME" in (project / name).read_text()] == []


def test_the_handler_answers_what_the_readme_prints(project):
    config = json.loads((project / "config.json").read_text())["handlers"][0]
    handler = Handler(config["function"], project)
    assert handler.load()
    readme = (project / "README.md").read_text()
    body, url = re.search(r"""-d '(.*)' http://127.0.0.1:8501(\S+)""", readme).groups()
    printed = json.loads(re.search(r'^\{"statusCode.*$', readme, re.MULTILINE)[0])
    assert url == config["path"]
    assert {"statusCode": 200, "body": {"output": handler.call(json.loads(body), None)}} == printed


def test_the_handler_tells_a_client_what_it_sent_that_is_wrong(project):
    server = serving.ModelServer(project / "config.json")
    server.wait()
    try:
        client = serving.create_app(server).test_client()
        url = server.config.handlers[0].path
        key = {"x-api-key": server.generated_key}
        answer = client.post(url, json=[1, 2], headers=key)
    finally:
        server.stop()
    told = answer.get_json()
    assert told["body"]["error"] == "expected a string, got list"
    assert answer.status_code == told["statusCode"] == 400


def test_the_projects_own_test_passes(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_server_is_installed_from_its_sources_and_asked_of_no_index(project, tmp_path):
    """What an index has under its name is somebody else's."""
    hub = tmp_path / "hub"
    write_project(hub, scaffold.HUB_PROJECT)
    for path in (project / "requirements.txt", hub / "src/requirements.txt"):
        assert [line for line in path.read_text().splitlines() if not line.startswith("#")] == []
    readme = (project / "README.md").read_text()
    assert "\npip install path/to/serving -r requirements.txt\n" in readme
    assert serving.__version__ in readme
    name = re.search(r"^name = (.*)$", (ROOT / "setup.cfg").read_text(), re.MULTILINE)[1]
    wheel = f"{name}-{serving.__version__}-py3-none-any.whl"
    docker = (hub / "Dockerfile").read_text()
    assert f"COPY {wheel} " in docker
    assert re.findall(r"pip install (.*)", docker) == [
        f"--no-cache-dir ./{wheel} -r requirements.txt"
    ]


@pytest.mark.parametrize("name", ["config.json", "README.md"])
def test_files_that_are_there_are_never_overwritten(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine")
    (tmp_path / "handler.py").symlink_to("nowhere")
    with pytest.raises(FileExistsError) as caught:
        write_project(tmp_path)
    assert set(caught.value.strerror.removeprefix("already holds ").split(", ")) == {
        name,
        "handler.py",
    }
    assert caught.value.filename == str(tmp_path)
    assert path.read_text() == "mine" and files(tmp_path) == {name}


def test_a_folder_with_other_files_is_welcome(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert write_project(tmp_path)[0] == tmp_path / "config.json"


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError) as caught:
        write_project(tmp_path / "taken")
    assert caught.value.filename.startswith(str(tmp_path / "taken"))


def test_a_full_disk_is_told_with_the_file_and_leaves_nothing_half(tmp_path, monkeypatch):
    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    plain = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, mode="r", *a, **b: (
            Full(plain(path, mode))
            if path.name == "README.md" and "x" in mode
            else plain(path, mode, *a, **b)
        ),
    )
    with pytest.raises(OSError) as caught:
        write_project(tmp_path / "p")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(
        tmp_path / "p" / "README.md"
    )
    assert files(tmp_path / "p") == set()


def test_a_missing_template_is_told_before_anything_is_written(tmp_path, monkeypatch):
    templates = shutil.copytree(scaffold.PROJECT, tmp_path / "templates")
    (templates / "README.md").unlink()
    monkeypatch.setitem(scaffold.FILES, templates, scaffold.FILES[scaffold.PROJECT])
    with pytest.raises(FileNotFoundError) as caught:
        write_project(tmp_path / "p", templates)
    assert Path(caught.value.filename).name == "README.md" and not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    "folder, name",
    [
        ("sentiment-analyser", "sentiment-analyser"),
        ("My Project (2)", "My-Project-2"),
        ("caf\u00e9", "cafe"),
        ("\u4f60\u597d", "project"),
        ("v1", "v1-handler"),
        ("a/b?c#d", "b-c-d"),
        (".hidden", "hidden"),
        ('"quoted"', "quoted"),
    ],
)
def test_the_name_of_a_project_is_fit_for_a_url(folder, name):
    assert name_project(Path("/somewhere") / folder) == name


def test_a_project_in_cellstrats_layout_serves_as_its_guide_says(tmp_path):
    """`from hub import hub_handler`, MODEL_DIR, ping and call: "Hub API Quickstart"."""
    folder = tmp_path / "sentiment-analyser"
    assert serving.main(["--init-hub", str(folder)]) == 0
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} >= {
        "Dockerfile",
        "hub_config.json",
        "src/main.py",
        "src/utils.py",
        "src/requirements.txt",
    }
    (folder / "src/main.py").write_text(GUIDE)
    (folder / "model/labels.txt").write_text("Positive Neutral Negative")
    server = serving.ModelServer(folder / "config.json")
    client = serving.create_app(server).test_client()
    assert server.wait(30)
    headers = {"x-api-key": server.generated_key, "Content-Type": "application/json"}
    try:
        ping = client.get("/sentiment-analyser", headers=headers).get_json()
        assert ping["statusCode"] == 200
        payload = json.dumps("Deployment with CellStrat Hub is so simple and quick!")
        response = client.post("/sentiment-analyser", headers=headers, data=payload).get_json()
        assert response["statusCode"] == 200
        assert response["body"]["output"] == [
            [["Positive", 93.58], ["Neutral", 6.27], ["Negative", 0.15]]
        ]
        assert "hub" not in sys.modules
    finally:
        server.stop()


# The guide's main.py, word for word but for the model, whose place three numbers take.
GUIDE = """
import os
from hub import hub_handler
import utils

MODEL_DIR = os.getenv("MODEL_DIR")

model = open(os.path.join(MODEL_DIR, "labels.txt")).read().split()

@hub_handler
def inference_handler(inputs, _):
    '''The main inference function which gets triggered when the API is invoked'''
    output = []
    for prob in [[0.9358, 0.0627, 0.0015]]:
        preds = [(model[i], round(p * 100, 2)) for i, p in enumerate(prob)]
        preds = sorted(preds, key=lambda x: x[1], reverse=True)
        output.append(preds)

    return output
"""


def test_a_project_may_have_a_hub_of_its_own(tmp_path):
    (tmp_path / "p/src").mkdir(parents=True)
    (tmp_path / "p/src/hub.py").write_text("def hub_handler(f):\n    return lambda i, _: 'mine'\n")
    (tmp_path / "p/src/main.py").write_text(
        "from hub import hub_handler\n\n@hub_handler\ndef inference_handler(i, _):\n    return 1\n"
    )
    config = {"model_config_list": [], "handlers": [{"path": "/p", "project": "p"}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    server = serving.ModelServer(tmp_path / "config.json")
    client = serving.create_app(server).test_client()
    assert server.wait(30)
    answer = client.post("/p", headers={"x-api-key": server.generated_key}, data="1")
    server.stop()
    assert answer.get_json() == "mine"


def test_a_handler_needs_a_function_or_a_project(tmp_path):
    with pytest.raises(serving.ConfigError, match="function: needed where there is no project"):
        serving.load_config({"model_config_list": [], "handlers": [{"path": "/p"}]})
