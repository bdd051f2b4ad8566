"""A .keras or .h5 file as a model: exported once into a cache beside it, and served from there.

The export is Keras' own, `keras.models.load_model(file).export(folder)` (https://keras.io/guides/
serialization_and_saving/). The model keeps its own signature and is called with `training=False`,
as `predict` calls it. The export runs in its own process, without a GPU: its memory is freed with
it, and a file that crashes it does not crash the server. Keras' safe mode stays on, so that a file
cannot run code.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .config_file import temporary
from .core import Extension, Load, LoadError, LoadRequest, Servable, clean_message, find_model_file
from .manifest import check_manifest, sha256_of

logger = logging.getLogger("serving")

CACHE = ".exported"  # beside the version folders, or the file
MOST_SECONDS = 1800  # of an export

EXPORT = """
import os, sys
os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow")
status = 1
try:
    import keras
    model = keras.models.load_model(sys.argv[1], compile=False)
    if not model.inputs:
        raise ValueError("the model has no fixed inputs")
    status = 2  # it has been read
    given = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    # By itself an export takes a layer's own default: Resizing and RandomFlip say `training=True`,
    # for themselves and for all that comes after them.
    keras.Model(given, model(given, training=False)).export(sys.argv[2], verbose=False)
except Exception as error:
    print(f"\\f{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(status)
"""
NOT_EXPORTED = 2  # exit status if only the export itself fails
# Lines of Keras' errors that tell only the context; the reason follows.
BEGINNING = re.compile(r"(\w+: )?(in user code|Exception encountered when calling .*)|.*:")


def wrap_load(server: Any, load: Load) -> Load:
    def load_any(request: LoadRequest) -> Servable:
        file = find_model_file(request.folder)
        if file is None:
            return load(request)
        check_manifest(request.folder)  # `load` checks the exported folder
        return load(dataclasses.replace(request, folder=exported(file, request.folder)))

    return load_any


def exported(file: Path, version: Path) -> Path:
    """The SavedModel of a file, exported now unless it was before. Raises LoadError."""
    name = version.name  # a bare file's own: several may share a folder
    beside = (file if version == file else version).parent
    digest = digest_of(file)
    places = [beside / CACHE, user_cache(beside)]
    ready = next((p for p in places if is_export(p / f"{name}-{digest}")), None)
    if ready is not None:
        return ready / f"{name}-{digest}"
    place = first_writable(places)
    with temporary(place, ".part.", 0o700) as made:
        export_file(file, made)
        readers = file.stat().st_mode & 0o044
        made.chmod(0o700 | readers | readers >> 2)
        return put_in_place(made, place / f"{name}-{digest}", beside)


def is_export(folder: Path) -> bool:
    """Whether this user can reach an export there. (`Path.is_file` raises an error if not.)"""
    return os.path.isfile(folder / "saved_model.pb")


def digest_of(file: Path) -> str:
    """A digest of a file's bytes, of the Python version and of the export's code."""
    try:
        found = hashlib.sha256(sha256_of(file).encode())
    except OSError as error:
        raise LoadError(f"'{file.name}' cannot be read: {error.strerror}") from None
    found.update((sys.version + EXPORT).encode())
    return found.hexdigest()[:16]


def user_cache(beside: Path) -> Path:
    """Where exports go if the file's folder is read-only, such as a mounted volume."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not base.is_absolute():  # the user has no home
        return beside
    return base / "serving" / hashlib.sha256(str(beside.absolute()).encode()).hexdigest()[:16]


def first_writable(places: list[Path]) -> Path:
    for place in places:
        with contextlib.suppress(OSError):
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK | os.X_OK):
                return place
    raise LoadError("the export can be written neither beside the file nor into the user's cache")


def export_file(file: Path, folder: Path) -> None:
    """Export a file as a SavedModel. Raises LoadError with the reason and what to do."""
    logger.info("%s is exported for serving, once", file.name)
    command = [sys.executable, "-c", EXPORT, str(file.absolute()), str(folder)]
    try:
        # in the empty folder, because `-c` imports modules from there
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=MOST_SECONDS, cwd=folder
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LoadError(f"'{file.name}' cannot be exported: {type(error).__name__}") from error
    if done.returncode == 0:
        return
    reason = reason_in(done.stderr).replace(str(file), file.name)
    reason = reason or f"the export ended with {done.returncode}"
    if done.returncode == NOT_EXPORTED:
        raise LoadError(f"Keras reads '{file.name}', and cannot export it: {reason}")
    raise LoadError(
        f"Keras cannot read '{file.name}' here: {reason}; export it "
        "where it was made, model.export('models/NAME/1'), and serve that folder"
    )


def reason_in(output: str) -> str:
    """The line of an export's output that says why it failed; after a crash, the last."""
    printed, is_told, error = output.partition("\f")
    if not is_told:
        return next((line for line in reversed(printed.splitlines()) if line.strip()), "")
    error = re.sub(r"\x1b\[[0-9;]*m", "", clean_message(error))
    if lost := re.search(r"Could not locate .*?(?= Full object config|$)", error, re.MULTILINE):
        return lost[0]
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return next((line for line in lines if not BEGINNING.fullmatch(line)), lines[0])[:500]


def put_in_place(made: Path, target: Path, beside: Path) -> Path:
    """Move an export to its place; delete those of earlier files of its name, and those of versions
    that are gone from the folder `beside`.
    """
    own = target.name.rpartition("-")[0]
    for old in target.parent.iterdir():
        export = re.fullmatch("(?P<name>.+)-[0-9a-f]{16}", old.name)
        if export is None or old == target:
            continue
        if export["name"] == own or not (beside / export["name"]).exists():
            shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process was faster
        made.rename(target)
    if not is_export(target):
        raise LoadError("the export could not be put in its place")
    return target


EXTENSION = Extension("keras_files", wrap_load=wrap_load)
