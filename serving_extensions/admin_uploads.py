"""Models and projects of handlers that are sent to a running server, where the config's section
`admin` has `upload`: unpacked aside, tried, and renamed into their place.

A model comes into a new version folder; a project into a numbered folder of its own, whose handlers
and models the config then names.
"""

import dataclasses
import os
import posixpath
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from .admin import admin_route, administered, edit_config, management_of, take_over
from .archives import unpack
from .config_file import temporary, unwritable, write_errors
from .core import (
    INIT_SIGNATURE,
    Admin,
    BadRequest,
    Call,
    Extension,
    LoadError,
    LoadRequest,
    ModelConfig,
    ModelServer,
    Reply,
    ServingError,
    Workers,
    choose_versions,
    is_asked,
    list_versions,
    read_config,
)
from .manifest import describe_digest, is_version

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # of what becomes a folder
KERAS = {"metadata.json", "config.json", "model.weights.h5"}  # what a .keras file is made of
FOLDER = "The folder for uploads cannot be written"
KEPT_PROJECTS = 10  # earlier states of a project


def options_of(server: ModelServer, call: Call, what: Any) -> Admin:
    """The section `admin`. Raises ServingError 403 where `what` may not be sent, and BadRequest for
    a dry run: an upload is tried by taking it.
    """
    options = server.config.admin
    assert options is not None  # else these views do not answer
    if options.upload != what and not (options.upload and what is True):
        wanted = "true" if what is True else f'"{what}"'
        raise ServingError(
            f'This needs "admin": {{"upload": {wanted}}} in the config', "PERMISSION_DENIED"
        )
    if is_asked(call, "dry_run"):
        raise BadRequest("dry_run: an upload has no dry run")
    return options


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A new folder inside another, for what is not yet to be seen; gone after the `with`."""
    new = [one for one in (folder, folder.parent) if not one.exists()]
    try:
        with write_errors(FOLDER):
            folder.mkdir(parents=True, exist_ok=True)
            with temporary(folder, ".upload-") as made:
                yield made
    finally:
        with suppress(OSError):  # they are not empty: something has come of it
            for one in new:
                one.rmdir()


def read_archive(call: Call, options: Admin, folder: Path) -> bytes:
    """Unpack a request's body into a new folder; returns the body."""
    folder.mkdir()
    body = call.read(options.max_upload_bytes)
    if not body:
        raise BadRequest("Expected a .zip, .tar or .tar.gz archive as the body")
    unpack(body, folder, options.max_upload_bytes, options.max_upload_files)
    return body


# --- models ---------------------------------------------------------------------------------------

picking = threading.Lock()  # the next version, until its folder is there


@administered
def view_upload(server: ModelServer, call: Call, model: str, version: int | None = None) -> Reply:
    """Take a new version of a model, or a new model; without a number it is the next."""
    options = options_of(server, call, True)
    known = next((one for one in server.config.models if one.name == model), None)
    base = base_of(server, model, known, options)
    if known is None and (problem := management_of(server).file.problem()):
        raise unwritable(problem)
    with aside(base) as folder:
        body = read_archive(call, options, folder / "sent")
        root = find_model_root(folder / "sent", body)
        tried = folder / "1" if version is None else folder / str(version)
        root.rename(tried)
        config = known or ModelConfig(model, str(base))
        told = {"model": model, "signatures": try_model(server, tried, config)}
        told["digest"], misfit = describe_digest(tried)
        if misfit:
            raise BadRequest(misfit)
        number = move_in(tried, base, version)
        return publish(server, call, number, config, known is None, told)


def base_of(server: ModelServer, model: str, known: Any, options: Admin) -> Path:
    """The folder of a model's versions. Raises ServingError for a model that has none."""
    if server.config.is_pipeline(model):
        raise ServingError(f"'{model}' is a pipeline", status=HTTPStatus.CONFLICT)
    if known is None:
        if not FOLDER_NAME.fullmatch(model):
            raise BadRequest("A new model's name: expected letters, digits and ._-")
        base = Path(options.models_folder) / model
        refuse_shared(server, model, base)
        return base
    base = Path(known.base_path)
    if base.is_file() or is_version(base):
        text = f"The base_path of '{model}' is a model, not a folder of versions"
        raise ServingError(text, status=HTTPStatus.CONFLICT)
    return base


def refuse_shared(server: ModelServer, model: str, base: Path) -> None:
    """Raise ServingError 409 where a new model's folder is, holds or lies in that of another."""
    new = Path(os.path.realpath(base))
    for other in server.config.models:
        if not other.base_path or "\0" in other.base_path:  # it has no folder
            continue
        folder = Path(os.path.realpath(other.base_path))
        if new.is_relative_to(folder) or folder.is_relative_to(new):
            text = (
                f"A new model '{model}' would share the folder of '{other.name}': upload it as "
                f"'{other.name}', or under another name"
            )
            raise ServingError(text, status=HTTPStatus.CONFLICT)


def find_model_root(folder: Path, body: bytes) -> Path:
    """The folder in an archive that is a version: of a SavedModel, or with a .keras file in it."""
    here = folder
    for _ in range(8):
        # but for what macOS adds
        names = {path.name for path in here.iterdir() if path.name[0] != "."} - {"__MACOSX"}
        if names >= KERAS and here == folder:  # the body was a .keras file, which is a .zip
            whole = folder.with_name("keras")
            whole.mkdir()
            (whole / "model.keras").write_bytes(body)
            return whole
        if is_version(here):
            return here
        if len(names) != 1 or not (here / next(iter(names))).is_dir():
            break
        here /= next(iter(names))
    raise BadRequest(
        "The archive has no model: expected saved_model.pb, or a .keras file, at its top or in its "
        "one folder"
    )


def try_model(server: ModelServer, folder: Path, config: ModelConfig) -> list[str]:
    """Load a version as the server would, and free it; returns its signatures' names.

    Raises BadRequest for one that cannot be loaded. In a thread of its own: as all loads.
    """
    plain = dataclasses.replace(
        config, load="eager", warm_up=False, instances=1, batching=None, pinned=False
    )
    request = LoadRequest(folder, plain, server.config.server, server.config.import_modules)
    try:
        with closing(Workers(1, "serving-load")) as pool:
            servable = pool.submit(server.load, request).result()
    except (LoadError, OSError) as error:
        raise BadRequest(f"The model cannot be loaded: {error}") from error
    names = sorted(servable.signatures.keys() - {INIT_SIGNATURE})
    servable.retire(0)
    if not names:
        raise BadRequest("The model has no signature that can be called")
    return names


def move_in(folder: Path, base: Path, version: int | None) -> int:
    """Rename a version into its place: the next number, or one that nothing has yet."""
    with picking:
        taken = list_versions(str(base))
        number = max(taken, default=0) + 1 if version is None else version
        if number >= 2**63:
            raise ServingError("The highest version is taken: name a free one", "ALREADY_EXISTS")
        if number in taken or (base / str(number)).exists():
            text = f"Version {number} is there already: versions are not replaced"
            raise ServingError(text, "ALREADY_EXISTS")
        folder.rename(base / str(number))
        return number


def publish(
    server: ModelServer,
    call: Call,
    number: int,
    model: ModelConfig,
    is_new: bool,
    told: dict[str, Any],
) -> Reply:
    """Have a version served that is in its place; a new model comes into the config."""
    told["version"] = str(number)
    chosen = choose_versions(model.model_version_policy, list_versions(model.base_path))
    if number not in chosen:
        told["note"] = f"it is not served: model_version_policy picks {chosen or 'none'}"
    if not is_new:
        return take_over(server, call, told)
    base = Path(model.base_path)
    item = {"config": {"name": model.name, "base_path": relative(server, base)}}

    def edit(config: dict[str, Any]) -> None:
        if item not in config["model_config_list"]:  # by another upload, meanwhile
            config["model_config_list"].append(item)

    try:
        replied = edit_config(server, call, edit, told)
    except ServingError:
        shutil.rmtree(base / str(number), ignore_errors=True)
        raise
    return take_over(server, call, told) if replied.status == HTTPStatus.OK else replied


def relative(server: ModelServer, path: Path) -> str:
    """A path as the config has it: from the config's folder where it is in it.

    Of a config that is a link that is the link's folder, where relative paths start.
    """
    assert server.manager.path is not None  # else it cannot be written, which was looked at
    folder = Path(os.path.realpath(server.manager.path.parent))
    real = Path(os.path.realpath(path))
    return real.relative_to(folder).as_posix() if real.is_relative_to(folder) else str(real)


# --- projects -------------------------------------------------------------------------------------


@administered
def view_project(server: ModelServer, call: Call, project: str) -> Reply:
    """Take a project of handlers: its code runs in this server from then on."""
    options = options_of(server, call, "code")
    if not FOLDER_NAME.fullmatch(project):
        raise BadRequest("A project's name: expected letters, digits and ._-")
    if problem := management_of(server).file.problem():
        raise unwritable(problem)
    home = Path(options.projects_folder) / project
    with aside(home) as folder:
        read_archive(call, options, folder / "sent")
        root, given = read_project(folder / "sent")
        check_syntax(root)
        replied = publish_project(server, call, given, place_project(root, home))
    remove_old(server, home)
    return replied


def remove_old(server: ModelServer, home: Path) -> None:
    """Remove a project's earlier folders, but those of a config that a rollback may go back to."""
    file = management_of(server).file
    with suppress(OSError, ServingError):  # of a config that cannot be read: nothing is removed
        named = b"".join([file.read(), *(one.path.read_bytes() for one in file.kept())])
        for old in numbered(home)[:-KEPT_PROJECTS]:
            if not re.search(rb"\b%s/%d\b" % (re.escape(home.name).encode(), old), named):
                shutil.rmtree(home / str(old), ignore_errors=True)


def publish_project(server: ModelServer, call: Call, given: dict[str, Any], place: Path) -> Reply:
    """Have a project served that is in its place: its handlers and models come into the config."""
    entries = rebase(given, place, relative(server, place))
    own = relative(server, place.parent) + "/"

    def edit(config: dict[str, Any]) -> None:
        for section, entry_of in SECTIONS.items():
            replace_own(config, section, entries.get(section, []), own, entry_of)

    handlers = [one["path"] for one in entries["handlers"]]
    told = {"project": place.parent.name, "handlers": handlers}
    try:
        return edit_config(server, call, edit, told)
    except ServingError:
        shutil.rmtree(place, ignore_errors=True)
        raise


SECTIONS = {
    "handlers": lambda entry: (entry["path"], entry.get("function") or entry["project"]),
    "model_config_list": lambda item: (item["config"]["name"], item["config"]["base_path"]),
}


def read_project(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder in an archive that is a project; its config.json, handlers and models alone."""
    found = sorted(folder.rglob("config.json"), key=lambda path: len(path.parts))
    if not found or len(found[0].relative_to(folder).parts) > 2:
        raise BadRequest("The archive has no project: expected config.json, as --init writes it")
    given = read_config(found[0].read_bytes())
    unknown = set(given) - {"$schema", *SECTIONS} if isinstance(given, dict) else {"no object"}
    if unknown:
        told = ", ".join(sorted(unknown))
        raise BadRequest(f"config.json of a project may only have handlers and models, got: {told}")
    try:
        for section, entry_of in SECTIONS.items():
            for entry in given.setdefault(section, []):
                entry_of(entry)
    except (TypeError, KeyError) as error:
        raise BadRequest(
            f"config.json of the project: {error}: expected handlers and models"
        ) from None
    return found[0].parent, given


def check_syntax(folder: Path) -> None:
    """Raise BadRequest for a file that is no Python; nothing is run."""
    for path in folder.rglob("[!.]*.py"):  # macOS adds ._x.py
        try:
            compile(path.read_bytes(), path.name, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as error:
            raise BadRequest(f"{path.relative_to(folder)}: {error}") from None


def numbered(home: Path) -> list[int]:
    return sorted(int(path.name) for path in home.iterdir() if path.name.isdigit())


def place_project(root: Path, home: Path) -> Path:
    """Rename a project into the next folder of its home."""
    with picking:
        place = home / str(max(numbered(home), default=0) + 1)
        root.rename(place)
        return place


def rebase(given: dict[str, Any], place: Path, prefix: str) -> dict[str, Any]:
    """A project's handlers and models with their files where they are now."""

    def moved(path: Any) -> Any:
        is_below = isinstance(path, str) and not os.path.isabs(path)
        return posixpath.normpath(f"{prefix}/{path}") if is_below else path

    def function_of(reference: str) -> str:
        module, _, name = reference.rpartition(":")
        file = module if module.endswith(".py") else f"{module.replace('.', '/')}.py"
        is_file = module == file or (place / file).is_file()  # a file that is not there is told so
        return f"{prefix}/{file}:{name}" if is_file else reference

    def handler_of(one: dict[str, Any]) -> dict[str, Any]:
        found = {name: moved(one[name]) for name in ("project", "model_dir") if one.get(name)}
        if one.get("function"):
            found["function"] = function_of(one["function"])
        return {**one, **found}

    return {
        "handlers": [handler_of(one) for one in given["handlers"]],
        "model_config_list": [
            {**one, "config": {**one["config"], "base_path": moved(one["config"]["base_path"])}}
            for one in given["model_config_list"]
        ],
    }


def replace_own(
    config: dict[str, Any], section: str, entries: list[Any], own: str, entry_of: Any
) -> None:
    """Put a project's entries in the place of those it had before.

    Raises ServingError 409 for a name that somebody else's has.
    """
    others = [
        one
        for one in config.get(section, [])
        if not entry_of(one)[1].startswith(own) and one not in entries  # `json:dumps` again
    ]
    names = {entry_of(one)[0] for one in others}
    for one in entries:
        if entry_of(one)[0] in names:
            text = f"{section}: '{entry_of(one)[0]}' exists already, but not in this project"
            raise ServingError(text, "ALREADY_EXISTS")
    if others or entries or section in config:
        config[section] = others + entries


EXTENSION = Extension(
    "admin_uploads",
    routes=(
        admin_route(
            "POST", "/v1/models/{model}/versions", view_upload, "Upload the next version of a model"
        ),
        admin_route(
            "PUT", "/v1/models/{model}/versions/{version}", view_upload, "Upload a model's version"
        ),
        admin_route("PUT", "/v1/projects/{project}", view_project, "Upload a handler project"),
    ),
)
