"""A new handler project that serves at once: config, handler, its test, requirements, README.

The files come from project/, or from hub_project/ in the layout of CellStrat's Hub API; the server
itself is installed from its sources.
"""

import contextlib
import errno
import os
import re
import unicodedata
from pathlib import Path

from .core import __version__, installed, taken_names

PROJECT = Path(__file__).parent / "project"
HUB_PROJECT = Path(__file__).parent / "hub_project"
FILES = {
    PROJECT: ("config.json", "handler.py", "test_handler.py", "requirements.txt", "README.md"),
    HUB_PROJECT: (
        "config.json",
        "hub_config.json",
        "Dockerfile",
        "src/main.py",
        "src/utils.py",
        "src/requirements.txt",
        "model/README.md",
    ),
}


def name_project(folder: Path) -> str:
    """A folder's name in the letters that a URL takes unquoted: accents go,
    other characters become hyphens.
    """
    text = unicodedata.normalize("NFKD", folder.resolve().name).encode("ascii", "ignore").decode()
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.") or "project"
    return f"{name}-handler" if name.lower() in taken_names(installed()) else name


def read_templates(templates: Path, name: str) -> dict[str, bytes]:
    """What to write, by file name.

    Raises OSError with the name of a file that is missing.
    """
    words = {b"PROJECT_NAME": name.encode(), b"SERVING_VERSION": __version__.encode()}
    contents = {file: (templates / file).read_bytes() for file in FILES[templates]}
    for word, meaning in words.items():
        contents = {file: text.replace(word, meaning) for file, text in contents.items()}
    return contents


def write_project(folder: Path, templates: Path = PROJECT) -> list[Path]:
    """Write a project into a folder, which need not exist; returns the files written, the config
    first.

    Raises FileExistsError with the names of files that exist already, and OSError with the name of
    a file that cannot be written; what was written until then is removed again.
    """
    contents = read_templates(templates, name_project(folder))
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
    """Write a new file, noting it in `written` once it exists.

    OSError always names the file; by itself that of a full disk does not.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            written.append(path)
            file.write(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
