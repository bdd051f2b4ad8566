"""A new project that serves at once: a handler, its test and model folder, a config, and a copy of the server.

The files come from project/, and from the server this module belongs to: the server is one file that is copied, with
the modules that lie beside it, so that the project needs nothing but a few packages.
"""

import contextlib
import errno
import os
import re
import sys
import unicodedata
from pathlib import Path

from serving import TAKEN

__all__ = ["name_project", "write_project"]

TEMPLATES = Path(__file__).parent / "project"
INSTALLED_CONSOLE = Path(sys.prefix) / "share/serving/console"  # where `pip install` puts it
# File of the project: file in the templates, where it has no dot, lest git and Docker take it for their own.
FILES = {
    name: name.lstrip(".")
    for name in (
        "config.json",
        "handler.py",
        "test_handler.py",
        "model/README",
        "requirements.txt",
        "Dockerfile",
        "README.md",
        ".gitignore",
        ".dockerignore",
    )
}


def name_project(folder: Path) -> str:
    """A folder's name in the letters that a URL takes as they are: accents go, the rest becomes hyphens."""
    text = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "project"
    return f"{name}-handler" if name.lower() in TAKEN else name


def read_sources(templates: Path, name: str) -> dict[str, bytes]:
    """What is to be written, by path in the project; raises OSError with the name of the file that is missing."""
    contents = {
        path: (templates / source).read_bytes().replace(b"PROJECT_NAME", name.encode())
        for path, source in FILES.items()
    }
    rooms = Path(__file__).parent
    copies = {"serving.py": rooms.parent / "serving.py"}
    copies |= {
        f"serving_extensions/{path.name}": path
        for path in sorted(rooms.glob("*.py"))
        if path != Path(__file__)
    }
    for target, folders in (
        ("serving_extensions/clients", [rooms / "clients"]),
        ("console", [rooms.parent / "console", INSTALLED_CONSOLE]),
    ):
        files = next((found for folder in folders if (found := sorted(folder.glob("*")))), [])
        copies |= {f"{target}/{path.name}": path for path in files if path.is_file()}
    optional = {
        "routines.py": rooms.parent / "routines.py",
        "serving_extensions/LICENSE": rooms.parent / "LICENSE",
    }
    copies |= {
        path: source for path, source in optional.items() if source.is_file()
    }  # an installed server keeps no LICENSE beside
    contents |= {path: source.read_bytes() for path, source in copies.items()}
    return contents


def write_project(folder: Path, templates: Path = TEMPLATES) -> list[Path]:
    """Write a project into a folder, which need not exist; returns the files written, the config first.

    Raises FileExistsError, naming them, when any of the files is there already, and OSError with the name of a file that
    cannot be written; what was written of the project until then is removed again.
    """
    folder = Path(folder)
    contents = read_sources(templates, name_project(folder))
    there = [path for path in contents if os.path.lexists(folder / path)]
    if there:
        raise FileExistsError(errno.EEXIST, f"already holds {', '.join(there)}", str(folder))
    written: list[Path] = []
    try:
        for path, content in contents.items():
            write_file(folder / path, content, written)
    except BaseException:
        for file in written:
            with contextlib.suppress(OSError):
                file.unlink()
        raise
    return written


def write_file(path: Path, content: bytes, written: list[Path]) -> None:
    """Write a new file, noting it in `written` once it exists; OSError always names the file, as on a full disk it would not."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            written.append(path)
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
