"""House rules that a machine can see: rooms look upward, functions are short, TensorFlow has one door."""

import ast
import builtins
import re
import subprocess
import sys

from conftest import ROOT

SOURCE = (ROOT / "serving.py").read_text()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"^# =+\n# (.+)\n# In: .*\n(?:# .*\n)*?# =+$", re.MULTILINE)


def room_of_line():
    starts = [
        (SOURCE[: match.start()].count("\n") + 1, match[1]) for match in BANNER.finditer(SOURCE)
    ]
    return lambda line: next(
        (index for index in range(len(starts) - 1, -1, -1) if starts[index][0] <= line), -1
    ), [name for _, name in starts]


def test_title_page_lists_the_rooms_in_order():
    _, rooms = room_of_line()
    listed = re.findall(
        r"^    (\w[\w ]+?)  +\S",
        ast.get_docstring(TREE, clean=False).split("those above it:")[1],
        re.MULTILINE,
    )
    assert listed == rooms


def test_rooms_use_only_rooms_above_them():
    room, rooms = room_of_line()
    defined = {}
    for node in TREE.body:
        targets = (
            [node]
            if hasattr(node, "name")
            else [t for t in getattr(node, "targets", [getattr(node, "target", None)])]
        )
        for target in targets:
            name = getattr(target, "name", getattr(target, "id", None))
            if name and not isinstance(node, ast.Import | ast.ImportFrom):
                defined.setdefault(name, room(node.lineno))
    for node in free_names(TREE, set()):
        if node.id in defined and not hasattr(builtins, node.id):
            assert defined[node.id] <= room(node.lineno), (
                f"line {node.lineno}: {node.id} is of the lower room {rooms[defined[node.id]]}"
            )


def free_names(node, bound):
    """The names that a tree reads, without those that the functions around them bind."""
    for child in ast.iter_child_nodes(node):
        inner = bound
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            inner = (
                bound
                | {n.arg for n in ast.walk(child) if isinstance(n, ast.arg)}
                | {
                    n.id
                    for n in ast.walk(child)
                    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
                }
            )
        if (
            isinstance(child, ast.Name)
            and isinstance(child.ctx, ast.Load)
            and child.id not in bound
        ):
            yield child
        yield from free_names(child, inner)


def test_functions_fit_forty_lines():
    files = [ROOT / "serving.py", ROOT / "routines.py", *(ROOT / "serving_extensions").glob("*.py")]
    long = [
        f"{file.name}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 40
    ]
    assert long == []


def test_one_function_imports_tensorflow():
    importers = [
        function.name
        for function in ast.walk(TREE)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import) and any(a.name == "tensorflow" for a in node.names)
    ]
    assert importers == ["tensorflow"]


def test_importing_serving_does_not_import_tensorflow():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import serving; print('tensorflow' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False\n"
    )


def test_format_lint_and_types():
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
