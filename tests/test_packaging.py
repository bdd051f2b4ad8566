"""The wheel, installed into an environment of its own, run from another folder."""

import ast
import configparser
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import serving
import serving_extensions

PARTS = ("serving.py", "routines.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of programs of an environment with the wheel, which sees the packages of this one."""
    place = tmp_path_factory.mktemp("wheel")
    source, env = place / "source", place / "env"
    source.mkdir()
    for part in PARTS:
        shutil.copy(ROOT / part, source)
    for folder in ("serving_extensions", "console"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    options = ["--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *options, "-w", str(place), str(source)], check=True)
    venv.create(env, symlinks=True)
    (packages,) = env.glob("lib/python*/site-packages")
    (packages / "of_this_one.pth").write_text(sysconfig.get_path("purelib"))
    (wheel,) = place.glob("*.whl")
    python = ["--python", str(env / "bin/python")]
    subprocess.run(
        [*pip, *python, "install", "--no-deps", "--ignore-installed", str(wheel)], check=True
    )
    return env / "bin"


def ask(programs, folder, *arguments):
    command = [str(programs / "serving"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_program_is_there_and_its_help_has_groups_examples_and_exit_codes(programs, tmp_path):
    done = ask(programs, tmp_path, "--help")
    titles = re.findall(r"^(\S.*):$", done.stdout, re.MULTILINE)
    assert (done.returncode, titles) == (
        0,
        [
            "options",
            "what to serve",
            "how to serve it",
            "do one thing, then exit",
            "examples",
            "exit status",
        ],
    )
    assert len(re.findall(r"^  serving ", done.stdout, re.MULTILINE)) == 4


def test_projects_are_written_and_checked_from_another_folder(programs, tmp_path):
    assert ask(programs, tmp_path, "--init", "hello").returncode == 0
    done = ask(programs, tmp_path, "hello", "--check")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("handler  /")


ASK = """
import json, pathlib, sys, serving
from serving_extensions import console
assert pathlib.Path(serving.__file__).parent.name == "site-packages", serving.__file__
picture = (pathlib.Path(sys.argv[1]) / "models/shapes/samples/0.jpg").read_bytes()
server = serving.ModelServer(str(pathlib.Path(sys.argv[1]) / "config.json"))
app = serving.create_app(server)
server.wait()
client, key = app.test_client(), {"Authorization": f"Bearer {server.generated_key}"}
found = client.post("/predict", data=picture, headers=key)
statuses = [client.get(f"/console/{name}").status_code for name in ("", *sys.argv[2:])]
print(json.dumps([found.status_code, found.json["predictions"][0]["tag"]["name"], statuses]))
"""


def test_the_installed_server_answers_pictures_and_has_the_page(programs, tmp_path):
    files = sorted(path.name for path in (ROOT / "console").iterdir() if path.is_file())
    command = [str(programs / "python"), "-c", ASK, str(ROOT), *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [200, "circle", [200] * (1 + len(files))]


def test_everything_that_the_extensions_need_is_in_the_wheel(programs):
    (installed,) = programs.parent.glob("lib/python*/site-packages/serving_extensions")

    def names(folder):
        return {
            str(path.relative_to(folder))
            for path in Path(folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    assert names(installed) == names(ROOT / "serving_extensions")


def setup():
    found = configparser.ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def test_what_the_files_import_is_named_as_needed():
    """Of the wheel's files; what is imported in a function may be an extra's."""
    options = setup()["options"]
    needed, extras = options["install_requires"], setup()["options.extras_require"]
    names = {part: names_of(text) for part, text in [("", needed), *extras.items()]}
    optional = set().union(*(names[extra] for extra in ("cpu", "gpu", "redis", "heic")))
    packages = metadata.packages_distributions()
    files = [ROOT / "serving.py", ROOT / "routines.py", *(ROOT / "serving_extensions").glob("*.py")]
    for path in files:
        for module, is_late in imports_of(ast.parse(path.read_text())):
            if module in sys.stdlib_module_names or (ROOT / f"{module}.py").exists():
                continue
            found = {
                canonical(name) for name in packages.get(module, [NOT_HERE.get(module, module)])
            }
            known = names[""] | optional if is_late else names[""]
            assert found & (known | OF_THOSE), f"{path.name}: {module}"


# What a needed package brings, and cannot do without: Flask's and TensorFlow's own; and what is
# used where the site has set it up.
NOT_HERE = {"pynvml": "nvidia-ml-py", "pillow_heif": "pillow-heif"}  # where it is not installed
OF_THOSE = {"werkzeug", "protobuf", "opentelemetry", "opentelemetry-api"}


def canonical(name):
    return re.sub("[-_.]+", "-", name).lower()


def names_of(requirements):
    lines = (line for line in requirements.splitlines() if line and line[0] != "#")
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in lines}


def imports_of(tree):
    """Top-level names of the modules that a file imports, and whether in a function."""
    at_the_top = set(ast.iter_child_nodes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((one.name.partition(".")[0], node not in at_the_top) for one in node.names)
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0], node not in at_the_top


def test_versions_of_python_are_those_of_the_readme():
    told = re.findall(r":: Python :: 3\.(\d+)$", setup()["metadata"]["classifiers"], re.MULTILINE)
    first, last = re.search(
        r"Python 3\.(\d+) to 3\.(\d+)", (ROOT / "README.md").read_text()
    ).groups()
    assert list(map(int, told)) == list(range(int(first), int(last) + 1))
    assert setup()["options"]["python_requires"] == f">=3.{first}"


def test_what_the_documents_install_brings_tensorflow():
    """`.` alone does not: tensorflow and tensorflow-cpu overwrite each other's files."""
    extras = setup()["options.extras_require"]
    for path in (ROOT / "README.md", ROOT / ".ci/run", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"pip install (?:-\w+ )*('\.[^']*'|\.\S*)", path.read_text()):
            named = re.fullmatch(r"'\.\.?\[(\w+)\]'", target)
            assert named and "tensorflow" in extras[named[1]], f"{path.name}: {target}"


def test_the_version_is_one_wherever_it_stands():
    version = serving.__version__
    assert serving_extensions.VERSION == version == recipe()["context"]["version"]
    for path, text in (
        ("deploy/kubernetes.yaml", "registry.example/serving:"),
        ("deploy/README.md", "dist/serving-"),
        ("docs/command-line.md", "dist/serving-"),
        ("docs/command-line.md", "serving "),
        ("examples/notebook.ipynb", "serving "),
    ):
        found = re.findall(rf"{re.escape(text)}(\d+\.\d+\.\d+)", (ROOT / path).read_text())
        assert set(found) == {version}, path
    published = re.findall(r"mike deploy --push (\S+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert published == [version.rpartition(".")[0]]
    titles = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[0] == version and titles == sorted(titles, reverse=True)


def recipe():
    return yaml.safe_load((ROOT / "deploy/conda/recipe.yaml").read_text())


CONDA_NAMES = {  # where conda-forge has another name than PyPI
    "opencv-python-headless": "py-opencv",
    "prometheus-client": "prometheus_client",
    "redis": "redis-py",
}


def as_conda(requirement):
    """`flask>=3.1` of pip as conda writes it."""
    name, bound = re.fullmatch(r"([\w-]+)(>=[\d.]+)", requirement).groups()
    return f"{CONDA_NAMES.get(name, name)} {bound}"


def required(lines):
    return [line for line in lines.splitlines() if line and not line.startswith("#")]


def test_the_recipe_for_conda_says_what_setup_cfg_says():
    found, options, extras = recipe(), setup()["options"], setup()["options.extras_require"]
    (tensorflow,) = [line for line in required(extras["cpu"]) if line.startswith("tensorflow>")]
    pip = [*required(options["install_requires"]), tensorflow.partition(";")[0]]
    requirements = found["requirements"]
    assert requirements["run"][1:] == [as_conda(line) for line in pip]
    optional = [*required(extras["redis"]), *required(extras["heic"])]
    assert requirements["run_constraints"] == [as_conda(line) for line in optional]
    assert requirements["run"][0] == "python >=${{ python_min }}"
    assert options["python_requires"] == f">={found['context']['python_min']}"
    built = re.search(r'requires = \["setuptools(\S+)"\]', (ROOT / "pyproject.toml").read_text())
    assert f"setuptools {built[1]}" in requirements["host"]
    script = required(setup()["options.entry_points"]["console_scripts"])
    assert script == found["build"]["python"]["entry_points"]
    metadata = setup()["metadata"]
    assert found["about"]["summary"] == metadata["description"]
    assert found["about"]["license"] == metadata["license"]
    assert (ROOT / found["about"]["license_file"]).exists()


def test_what_the_recipe_tries_is_there(programs, tmp_path):
    for part in recipe()["tests"]:
        if names := part.get("python", {}).get("imports"):
            command = [str(programs / "python"), "-c", f"import {', '.join(names)}"]
            assert subprocess.run(command, cwd=tmp_path).returncode == 0
        for line in part.get("script", ()):
            done = ask(programs, tmp_path, *line.removeprefix("serving ").split())
            assert done.returncode == 0, done.stderr
        contents = part.get("package_contents", {})
        (packages,) = programs.parent.glob("lib/python*/site-packages")
        for path in contents.get("site_packages", ()):
            assert (packages / path).is_file(), path
        for path in contents.get("files", ()):
            assert (programs.parent / path).is_file(), path
