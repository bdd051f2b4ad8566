"""The notebook of the examples: its cells run, and answer what stands in it."""

import json
import os
import re

import pages
import pytest
from conftest import ROOT, free_port

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def results(cell):
    """What the last line of a cell is; what is printed meanwhile comes when it comes."""
    texts = [output["data"]["text/plain"] for output in cell["outputs"] if "data" in output]
    return ["".join(text) for text in texts]


def test_every_cell_of_the_notebook_runs_and_answers_as_it_stands_there(tmp_path, monkeypatch):
    if not os.environ.get("CI"):  # where all of the extra `test` is installed
        pytest.importorskip("nbclient")
        pytest.importorskip("ipykernel")
    import nbclient
    import nbformat

    monkeypatch.setenv("SERVING_PORT", str(free_port()))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    expected = [results(cell) for cell in code_cells(notebook)]
    resources = {"metadata": {"path": str(tmp_path)}}
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # the compiled handler is not the notebook's
    client = nbclient.NotebookClient(
        notebook, timeout=120, resources=resources, kernel_name="python3"
    )
    client.execute()
    for number, cell in enumerate(code_cells(notebook)):
        assert len(expected[number]) == len(results(cell)) == 1
        pages.assert_printed(expected[number][0], results(cell)[0], f"code cell {number + 1}")
    assert list(tmp_path.iterdir()) == [], "nothing is left"


def test_the_notebook_is_kept_as_it_was_executed():
    text = NOTEBOOK.read_text()
    cells = code_cells(json.loads(text))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not re.search(r"#key=\w|/root/|/home/|Traceback", text) and len(text) < 20_000
