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


def test_a_project_holds_the_server_and_all_that_is_served(tmp_path):
    written = write_project(tmp_path / "new" / "one")
    assert (
        files(tmp_path / "new" / "one")
        == {path.relative_to(tmp_path / "new" / "one").as_posix() for path in written}
        >= {
            "config.json",
            "handler.py",
            "test_handler.py",
            "model/README",
            "requirements.txt",
            "Dockerfile",
            "README.md",
            ".gitignore",
            ".dockerignore",
            "serving.py",
            "routines.py",
            "serving_extensions/__init__.py",
            "serving_extensions/handlers.py",
            "serving_extensions/LICENSE",
        }
    )
    assert (tmp_path / "new/one/serving.py").read_bytes() == (ROOT / "serving.py").read_bytes()


def test_every_template_is_written():
    assert files(scaffold.TEMPLATES) - {
        name for name in files(scaffold.TEMPLATES) if "__pycache__" in name
    } == set(scaffold.FILES.values())


def test_the_config_is_json_with_one_handler_at_the_projects_name(project):
    config = json.loads((project / "config.json").read_text())
    assert config == {
        "model_config_list": [],
        "handlers": [
            {
                "path": "/My-Projekt",
                "function": "handler:inference_handler",
                "model_dir": "model",
                "envelope": "hub",
            }
        ],
    }


def test_no_placeholder_is_left(project):
    assert [name for name in files(project) if "PROJECT_NAME" in (project / name).read_text()] == []


def test_the_handler_answers_what_the_readme_prints(project):
    config = json.loads((project / "config.json").read_text())["handlers"][0]
    handler = Handler(config["function"], project, config["model_dir"])
    assert handler.load()
    readme = (project / "README.md").read_text()
    body, url = re.search(r"""-d '(.*)' http://127.0.0.1:8501(\S+)""", readme).groups()
    printed = json.loads(re.search(r'^\{"statusCode.*$', readme, re.MULTILINE)[0])
    assert url == config["path"]
    assert {"statusCode": 200, "body": {"output": handler.call(json.loads(body), None)}} == printed


def test_the_projects_own_test_passes(project):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_copied_server_starts_its_command_line(project):
    for command in (["serving.py"], ["-m", "serving"]):
        done = subprocess.run(
            [sys.executable, *command, "--help"], cwd=project, capture_output=True, text=True
        )
        assert done.returncode == 0 and "--config" in done.stdout, done.stderr


def test_what_the_server_requires_is_in_the_requirements():
    asked = re.search(
        r"install_requires =\n(.*?)\n\n", (ROOT / "setup.cfg").read_text(), re.DOTALL
    )[1]
    given = (scaffold.TEMPLATES / "requirements.txt").read_text()
    for package in re.findall(r"^ +([\w-]+>=[\d.]+)", asked, re.MULTILINE):
        assert re.search(rf"^(# )?{re.escape(package)}$", given, re.MULTILINE), package


@pytest.mark.parametrize(
    "name", ["config.json", ".gitignore", "serving_extensions/handlers.py", "model/README"]
)
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
            if path.name == "Dockerfile" and "x" in mode
            else plain(path, mode, *a, **b)
        ),
    )
    with pytest.raises(OSError) as caught:
        write_project(tmp_path / "p")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(
        tmp_path / "p" / "Dockerfile"
    )
    assert files(tmp_path / "p") == set()


def test_a_missing_template_is_told_before_anything_is_written(tmp_path):
    shutil.copytree(scaffold.TEMPLATES, tmp_path / "templates")
    (tmp_path / "templates" / "Dockerfile").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        write_project(tmp_path / "p", tmp_path / "templates")
    assert Path(caught.value.filename).name == "Dockerfile" and not (tmp_path / "p").exists()


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


def test_folders_beside_the_files_are_passed_over(tmp_path):
    """Python leaves a __pycache__ among the client programs when pip compiles them."""
    cache = ROOT / "serving_extensions" / "clients" / "__pycache__"
    cache.mkdir(exist_ok=True)
    try:
        names = {str(path.relative_to(tmp_path / "p")) for path in write_project(tmp_path / "p")}
    finally:
        cache.rmdir()
    assert {
        "serving_extensions/clients/python.py",
        "console/index.html",
        "console/console.js",
    } <= names
