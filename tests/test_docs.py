"""The documents hold: every option and route stands in the README, and its examples answer as printed."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT, Rest

import routines
import serving

README = (ROOT / "README.md").read_text()
DOCS = README + "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))


KINDS = [
    serving.ModelConfig,
    serving.Batching,
    serving.ServerConfig,
    serving.Config,
    *(
        serving.Deployment,
        serving.BoxesConfig,
        serving.ActiveLearningConfig,
        serving.Auth,
        serving.Key,
        serving.Quota,
        serving.Admin,
        serving.ImageConfig,
        serving.HandlerConfig,
        serving.Pipeline,
        serving.Node,
        serving.NodeInput,
        serving.NodeOutput,
    ),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_is_in_the_documents(kind):
    for field in dataclasses.fields(kind):
        if (
            "no effect" not in field.metadata["doc"]
            and "not supported" not in field.metadata["doc"]
        ):
            assert f"`{field.name}`" in DOCS or f'"{field.name}"' in DOCS, field.name


def test_every_routine_and_its_arguments_are_in_the_documents():
    for name, kind in routines.ROUTINES.items():
        if kind.__module__ == "routines":
            assert f"`{name}`" in DOCS and all(
                f"`{field.name}`" in DOCS for field in dataclasses.fields(kind)
            ), name
    assert all(f"`{family}`" in DOCS for family in routines.FAMILIES)


def test_defaults_in_the_readme_are_the_defaults():
    for name, default in re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCS, re.MULTILINE):
        assert any(
            getattr(field, "default", None) == int(default)
            for kind in KINDS
            for field in dataclasses.fields(kind)
            if field.name == name
        ), name


def test_every_command_line_option_is_in_the_readme():
    for action in serving.build_parser()._actions:
        if action.option_strings and action.option_strings[0] != "-h":
            assert f"`{action.option_strings[0]}`" in README


def test_every_route_is_in_the_documents():
    """Each word of each URL that the table spells."""
    for row in serving.routes_of(serving.installed()):
        for url in serving.spellings(row.url):
            fixed = re.sub(r"\{\w+\}", "", url.replace("{verb}", "predict"))
            for word in re.findall(r"[/:][\w.-]+", fixed):
                assert word in DOCS, url


def test_curl_examples_answer_as_printed(demo):
    examples = re.findall(r"^\$ (curl -d .*)\n(.*)$", DOCS, re.MULTILINE)
    assert len(examples) == 5
    client = Rest(demo)
    for command, printed in examples:
        words = shlex.split(command)
        path = words[-1].removeprefix("http://127.0.0.1:8501")
        response = (
            client.post(path, words[words.index("-d") + 1]) if "-d" in words else client.get(path)
        )
        assert json.loads(response.data) == json.loads(printed)


def test_picture_example_answers_as_printed(demo):
    path, printed = re.search(
        r"^\$ curl .*@(models/\S+) .*/predict \| jq .*\n((?:\[.*\n)+)", README, re.MULTILINE
    ).groups()
    answer = demo.predict_image((ROOT / path).read_bytes())["predictions"]
    for line, prediction in zip(printed.strip().split("\n"), answer, strict=True):
        name, confidence, points = json.loads(line)
        assert (prediction["tag"]["name"], len(prediction["contour"])) == (name, points)
        assert prediction["confidence"] == pytest.approx(confidence, abs=1e-4)


def test_python_examples_run():
    for source in (
        re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        + re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)[-1:]
    ):
        source = "\n".join(
            line for line in textwrap.dedent(source).splitlines() if "serving.run(" not in line
        )
        done = subprocess.run(
            [sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr


def test_config_example_is_right():
    example = json.loads(re.search(r"```json\n(.*?)```", README, re.DOTALL)[1])
    example.pop("$schema")
    assert [model.name for model in serving.load_config(example).models] == ["digits", "shapes"]


def test_ci_runs_the_readmes_test_command():
    command = re.search(r"Run the tests:\n\n```\n(.*)\n```", README)[1]
    assert command in (ROOT / ".ci/run").read_text()


def test_readme_is_short():
    assert README.count("\n") < 200


def test_each_row_of_the_compatibility_table_has_its_test():
    text = (ROOT / "docs/compatibility.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| feature" not in line]
    named = re.findall(r"`tests/(test_\w+\.py)`(?:: `(test_\w+)`)? \|$", text, re.MULTILINE)
    assert len(named) == len(rows) == 67
    for file, test in named:
        source = (ROOT / "tests" / file).read_text()
        assert f"def {test or 'test_'}" in source, (file, test)
