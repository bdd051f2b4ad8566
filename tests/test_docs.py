"""The documents hold: every option and route stands in them, and their examples answer as printed."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pages
import pytest
from conftest import ROOT, listening

import routines
import serving

README = (ROOT / "README.md").read_text()
# What is generated from the declarations has every option by itself: it proves nothing.
WRITTEN = sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs/reference.md"})
DOCS = README + "".join(path.read_text() for path in WRITTEN)


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


def test_defaults_in_the_documents_are_the_defaults():
    for name, default in re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCS, re.MULTILINE):
        assert any(
            getattr(field, "default", None) == int(default)
            for kind in KINDS
            for field in dataclasses.fields(kind)
            if field.name == name
        ), name


def test_every_command_line_option_is_in_the_documents():
    for action in serving.build_parser()._actions:
        if action.option_strings and action.option_strings[0] != "-h":
            assert f"`{action.option_strings[0]}`" in DOCS


def test_every_route_is_on_the_page_of_urls():
    """Each word of each URL that the table spells."""
    page = (ROOT / "docs/rest.md").read_text()
    for row in serving.routes_of(serving.installed()):
        for url in serving.spellings(row.url):
            fixed = re.sub(r"\{\w+\}", "", url.replace("{verb}", "predict"))
            for word in re.findall(r"[/:][\w.-]+", fixed):
                assert word in page, url


@pytest.fixture(scope="module")
def address():
    """Where the demo listens, for pages that start no server of their own; and its key."""
    server = serving.ModelServer(ROOT / "config.json", poll_seconds=0)
    with listening(server) as address:
        assert server.wait(120)
        yield address, server.generated_key


@pytest.mark.parametrize("page", pages.pages())
def test_what_a_page_shows_runs_and_answers_as_printed(page, address, tmp_path):
    pages.Reader(page, tmp_path, *address).follow()


def test_config_example_is_right():
    source = (ROOT / "docs/config.md").read_text()
    example = json.loads(re.search(r"```json\n(.*?)```", source, re.DOTALL)[1])
    example.pop("$schema")
    assert [model.name for model in serving.load_config(example).models] == ["digits", "shapes"]


def test_ci_runs_the_documented_test_command():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    command = re.search(r"Run the tests:\n\n<!--.*-->\n```sh\n(.*)\n```", page)[1]
    assert command in (ROOT / ".ci/run").read_text() and f"`{command}`" in README


def test_readme_is_short():
    assert README.count("\n") < 150
    assert max(map(len, README.splitlines())) <= 100


def test_each_row_of_the_compatibility_table_has_its_test():
    text = (ROOT / "docs/compatibility.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| feature" not in line]
    named = re.findall(r"`tests/(test_\w+\.py)`(?:: `(test_\w+)`)? \|$", text, re.MULTILINE)
    assert len(named) == len(rows) == 67
    for file, test in named:
        source = (ROOT / "tests" / file).read_text()
        assert f"def {test or 'test_'}" in source, (file, test)


@pytest.mark.parametrize("page", pages.pages())
def test_no_block_of_a_page_is_overlooked(page):
    fences = re.findall(r"^ *```", (ROOT / page).read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(list(pages.blocks(page)))


@pytest.mark.parametrize(
    "block, error",
    [
        ("python\nassert 1 == 2", AssertionError),
        ("json\n{,}", json.JSONDecodeError),
        ("console\n$ echo 1\n2", AssertionError),
        ("console\n$ echo 1.5 a\n2.5 b", AssertionError),
        ("console\n$ false", AssertionError),
        ("sh\ntrue", AssertionError),
        ('python title="a.py"\nprint(1)\n```\n\n```console\n$ python a.py\n2', AssertionError),
    ],
)
def test_a_page_that_does_not_hold_is_noticed(block, error, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# A page\n\n```{block}\n```\n")
    with pytest.raises(error):
        pages.Reader(page, tmp_path, "http://127.0.0.1:1", "").follow()


@pytest.mark.parametrize("shown", ["b\na", "a # 1", "a b", "c"])
def test_lines_that_are_not_those_of_their_file_are_noticed(shown):
    pages.assert_shown("a\n\nb", "# file\n  a\n  c d\n  b\n", "here")
    with pytest.raises(AssertionError, match="here: "):
        pages.assert_shown(shown, "# file\n  a\n  c d\n  b\n", "here")


# --- links, the reference, the site -----------------------------------------------------------------------

LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page):
    """A page without its code."""
    source = re.sub(r"^ *```.*?^ *```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", lambda code: re.sub(r"[\[\]()]", "", code[0]), source)


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site name them."""
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        yield re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", [*pages.pages(), "CHANGELOG.md"])
def test_links_within_the_documents_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.resolve().relative_to(ROOT)), f"{page}: {link}"


def test_the_reference_is_made_from_the_declarations():
    done = subprocess.run(
        [sys.executable, "docs/make_reference.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == (ROOT / "docs/reference.md").read_text(), done.stderr


def test_every_variable_of_the_environment_stands_on_the_page_of_the_command_line():
    page = (ROOT / "docs/command-line.md").read_text()
    files = [ROOT / "serving.py", *ROOT.glob("serving_extensions/*.py"), *ROOT.glob("deploy/*.py")]
    named = {
        name
        for file in files
        for name in re.findall(r"os\.environ\b.{,6}[\"']([A-Z][A-Z_]+)[\"']", file.read_text())
    }
    assert "SERVING_PORT" in named and "SERVING_BIND" in named
    assert {name for name in named if f"`{name}" not in page} == set()


def test_the_site_is_built_without_a_warning(tmp_path):
    if not os.environ.get("CI"):  # where all of the extra `test` is installed
        pytest.importorskip("material")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "index.html").exists() and (tmp_path / "production/index.html").exists()
