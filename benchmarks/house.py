"""The code in figures: lines, functions and columns of each file, and which file imports which.

    python benchmarks/house.py

tests/test_layout.py checks the rules for the same figures.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def files() -> list[Path]:
    """The server's files."""
    extensions = sorted((ROOT / "serving_extensions").glob("*.py"))
    return [ROOT / "serving.py", ROOT / "routines.py", *extensions]


def name_of(file: Path) -> str:
    """A file's name in the graph: `serving`, `metrics`; the folder's name for its `__init__`."""
    return file.parent.name if file.stem == "__init__" else file.stem


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """A function's lines, without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def imported(tree: ast.AST) -> Iterator[str]:
    """All imports in a file, each with its module: `waitress.task.Task`, `.core`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (f"{node.module}." if node.module else "")
            yield from (start + alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "sibling":
            yield from (f".{one.value}" for one in node.args if isinstance(one, ast.Constant))


def graph() -> dict[str, list[str]]:
    """File -> the server's other files that it imports, even late or only for types."""
    known = {name_of(file) for file in files()}
    edges = {}
    for file in files():
        parts = [name.strip(".").split(".")[0] for name in imported(ast.parse(file.read_text()))]
        edges[name_of(file)] = sorted(set(parts) & known - {name_of(file)})
    return edges


def report() -> None:
    print(f"{'file':36} {'lines':>6} {'functions':>9}  {'longest function':36} {'columns':>7}")
    for file in files():
        text = file.read_text()
        found = functions(ast.parse(text))
        longest = max(found, key=length, default=None)
        what = f"{length(longest)} {longest.name}" if longest else ""
        lines = text.splitlines()
        columns = max(map(len, lines), default=0)
        place = str(file.relative_to(ROOT))
        print(f"{place:36} {len(lines):6} {len(found):9}  {what:36} {columns:7}")
    print()
    for name, others in graph().items():
        print(f"{name:20} -> {', '.join(others) or '-'}")


if __name__ == "__main__":
    report()
