"""The SHA-256 of a version's files: manifest.sha256, as sha256sum writes and checks it.

If a version folder has one, its files must fit it at every load: none missing, changed or added.
"""

import contextlib
import functools
import hashlib
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .core import (
    BadRequest,
    Extension,
    Load,
    LoadError,
    LoadRequest,
    ModelServer,
    Row,
    Servable,
    choose_versions,
    find_model_file,
    fingerprint,
    is_saved_model,
    list_versions,
    paths_below,
)

MANIFEST = "manifest.sha256"
LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
ODD_NAME = re.compile(r"[\\\r\n]")  # sha256sum would escape these


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a version by their names below its folder, sorted; without dotfiles, which
    systems leave behind and no model needs.
    """
    if folder.is_file():  # a .keras file is the whole version
        return {folder.name: folder}
    found = {
        path.relative_to(folder).as_posix(): path
        for path in map(Path, paths_below(folder))
        if os.path.isfile(path) and path.name != MANIFEST
    }
    return {name: found[name] for name in sorted(found) if not is_hidden(name)}


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in name.split("/"))


def sha256_of(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    return sha256.hexdigest()


def spell_manifest(digests: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def read_manifest(text: str) -> dict[str, str]:
    """Digests by file name. Raises LoadError for a line of any other form."""
    digests: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        match = LINE.fullmatch(line.removesuffix("\r"))
        if match is None:
            raise LoadError(f"{MANIFEST}: line {number}: expected <sha256>  <file>")
        digests[match[2].removeprefix("./")] = match[1]
    return digests


def check_manifest(folder: Path, digests: Mapping[str, str] | None = None) -> bool:
    """Whether a version has a manifest. Raises LoadError if its files do not fit it.

    `digests` are those known, by name, so that no file is read twice.
    """
    if folder.is_file():
        return False
    try:
        text = (folder / MANIFEST).read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LoadError(f"{MANIFEST} cannot be read: {error.strerror}") from error
    wanted, there = read_manifest(text), files_of(folder)
    known = digests or {}
    if problems := [
        *(f"{name} is missing" for name in wanted if name not in there and not is_hidden(name)),
        *(f"{name} is not in it" for name in there if name not in wanted),
        *(
            f"{name} has changed"
            for name, path in there.items()
            if name in wanted and (known.get(name) or sha256_of(path)) != wanted[name]
        ),
    ]:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise LoadError(f"The files do not fit {MANIFEST}: {', '.join(problems[:3])}{more}")
    return True


def write_manifest(folder: Path) -> int:
    """Write a version's manifest, all or nothing; returns how many files it lists.

    Raises BadRequest for what is no version and for an odd name, OSError if it cannot be
    written.
    """
    if not is_version(folder):
        raise BadRequest(
            f"{folder}: expected a version folder with a saved_model.pb or a .keras file in it"
        )
    files = files_of(folder)
    if odd := [name for name in files if ODD_NAME.search(name)]:
        raise BadRequest(f"{odd[0]!r}: expected a name without backslashes and line breaks")
    digests = {name: sha256_of(path) for name, path in files.items()}
    write_whole(folder / MANIFEST, spell_manifest(digests).encode("utf-8", "surrogateescape"))
    return len(digests)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        scratch.write_bytes(data)
        os.replace(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def is_version(folder: Path) -> bool:
    """Whether a folder has a model in it."""
    return folder.is_dir() and (is_saved_model(folder) or find_model_file(folder) is not None)


def describe_digest(folder: Path) -> tuple[str, str]:
    """A version's digest in words, and how its files misfit its manifest, if they do.

    The digest is that of a manifest written now: the same for folders with the same files.
    """
    digests = {name: sha256_of(path) for name, path in files_of(folder).items()}
    text = spell_manifest(digests)
    whole = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    told = f"sha256 {whole} of {len(digests)} files"
    try:
        return f"{told}, {'fits its' if check_manifest(folder, digests) else 'no'} manifest", ""
    except LoadError as error:
        return told, error.message


@functools.lru_cache(256)  # files that have not changed are read once
def known_digest(folder: Path, seen: tuple) -> tuple[str, str]:
    """`describe_digest` of a folder whose `fingerprint` is `seen`."""
    return describe_digest(folder)


def wrap_load(server: ModelServer, load: Load) -> Load:
    """A loader that refuses a version whose files do not fit its manifest."""

    def load_checked(request: LoadRequest) -> Servable:
        check_manifest(request.folder)
        return load(request)

    return load_checked


def manifest(source: Any, folder: str) -> int:
    """Write manifest.sha256 into a version folder: at each load its files must fit it."""
    try:
        count = write_manifest(Path(folder))
    except BadRequest as error:
        print(f"serving: {error.message}")
        return 2
    print(f"Wrote {Path(folder) / MANIFEST}: {count} files")
    return 0


def check(server: ModelServer) -> tuple[list[Row], list[str]]:
    """A row for each version that would be served, and those that do not fit their manifests.

    Without a manifest, files are not read: they may be many GB.
    """
    rows, problems = list[Row](), list[str]()
    for model in server.config.models:
        with contextlib.suppress(LoadError, OSError):  # told by others
            folders = list_versions(model.base_path)
            for version in choose_versions(model.model_version_policy, folders):
                told, misfit = f"{len(files_of(folders[version]))} files, no manifest", ""
                if (folders[version] / MANIFEST).exists():
                    told, misfit = known_digest(folders[version], fingerprint(folders[version]))
                rows.append(("files", model.name, f"version {version}", told))
                problems += [f"{model.name} version {version}: {misfit}"] if misfit else []
    return rows, problems


EXTENSION = Extension("manifest", wrap_load=wrap_load, check=check, commands={"manifest": manifest})
