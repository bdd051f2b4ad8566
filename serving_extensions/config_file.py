"""The config file as it is changed over REST: secrets hidden, differences by place, written whole
or not at all, the last versions kept beside it.
"""

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .core import BadRequest, NotFound, ServingError, read_file

try:
    import fcntl
except ImportError:  # Windows: only writers of one process exclude each other
    fcntl = None  # type: ignore[assignment]

HIDDEN = "<hidden>"
KEPT_CONFIGS = 10  # earlier configs beside the file
MOST_TOLD = 1000  # changes in one answer

# --- secrets --------------------------------------------------------------------------------------

# Names of members that may hold one; hiding too much is harmless: `restore` brings it back.
SECRETS = re.compile(
    r"(?i)pass(word|wd|phrase)?$|secret|(^|[_-])token$|credential|api_?key|private_?key|^key$|sha256"
)
LOGIN = re.compile(r"(?s)(?<=://).*@")  # greedy: a password may hold an @ that should be %40
OPTION = re.compile(r"(?i)([?&][^=&#]*(?:pass|secret|token|key|credential)[^=&#]*=)[^&#]+")


def hide(value: Any, name: str = "") -> Any:
    """A JSON value without possible secrets: members by `name`, logins and options in URLs."""
    if isinstance(value, dict):
        return {key: hide(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [hide(one, name) for one in value]
    is_text = isinstance(value, str | int | float) and not isinstance(value, bool)
    if is_text and value and SECRETS.search(name):
        return HIDDEN
    if isinstance(value, str) and "://" in value:
        return OPTION.sub(rf"\1{HIDDEN}", LOGIN.sub(f"{HIDDEN}@", value))
    return value


def restore(new: Any, old: Any, name: str = "", path: str = "$") -> Any:
    """A JSON value with hidden parts replaced by those of `old` at the same place.

    List entries are matched by name, else by index. Raises BadRequest for a hidden part that `old`
    lacks.
    """
    if isinstance(new, dict):
        there = old if isinstance(old, dict) else {}
        return {key: restore(one, there.get(key), key, f"{path}.{key}") for key, one in new.items()}
    if isinstance(new, list):
        entries: list[Any] = old if isinstance(old, list) else []
        known, wanted = identities(entries, new)
        named = dict(zip(known, entries))
        return [
            restore(one, named.get(wanted[i]), name, f"{path}[{i}]") for i, one in enumerate(new)
        ]
    if isinstance(new, str) and HIDDEN in new:
        if old is None or hide(old, name) != new:
            raise BadRequest(
                f"{path}: {HIDDEN} stands for a secret that the config has, but it has none like "
                "this: write the value itself"
            )
        return old
    return new


def identities(old: list[Any], new: list[Any]) -> list[list[Any]]:
    """What identifies the entries of two states of a list; their indices, if two entries of either
    share a name.
    """
    lists = [[identity(one, index) for index, one in enumerate(each)] for each in (old, new)]
    if all(len(set(each)) == len(each) for each in lists):
        return lists
    return [[("", index) for index in range(len(each))] for each in (old, new)]


def identity(entry: Any, index: int) -> Any:
    """What identifies an entry of a list: its name, as the config's sections have it; else its
    index.
    """
    if isinstance(entry, dict):
        inner = entry["config"] if isinstance(entry.get("config"), dict) else entry
        for key in ("id", "name", "path"):
            if isinstance(inner.get(key), str):
                return key if inner is entry else "config", hide(inner[key], key)
    return "", index


# --- differences ----------------------------------------------------------------------------------


def compare_json(old: Any, new: Any) -> list[dict[str, Any]]:
    """Where two JSON values differ: `path`, `old` if there was a value, `new` if there is one.

    Secrets are hidden, but their changes are listed.
    """
    found = list(find_changes(old, new, "$", ""))
    return found[:MOST_TOLD]


def find_changes(old: Any, new: Any, path: str, name: str) -> Iterator[dict[str, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            place = f"{path}.{key}"
            if key not in new:
                yield {"path": place, "old": hide(old[key], key)}
            elif key not in old:
                yield {"path": place, "new": hide(new[key], key)}
            else:
                yield from find_changes(old[key], new[key], place, key)
    elif isinstance(old, list) and isinstance(new, list):
        yield from compare_lists(old, new, path, name)
    elif old != new or type(old) is not type(new):
        yield {"path": path, "old": hide(old, name), "new": hide(new, name)}


def compare_lists(old: list, new: list, path: str, name: str) -> Iterator[dict[str, Any]]:
    """Compare entries by name: removed ones have their old index, all others the new one."""
    before, after = (
        {known: index for index, known in enumerate(each)} for each in identities(old, new)
    )
    for known, index in before.items():
        if known not in after:
            yield {"path": f"{path}[{index}]", "old": hide(old[index], name)}
    for known, index in after.items():
        place = f"{path}[{index}]"
        if known in before:
            yield from find_changes(old[before[known]], new[index], place, name)
        else:
            yield {"path": place, "new": hide(new[index], name)}
    stayed = [known for known in before if known in after]
    moved = [known for known in after if known in before]
    if stayed != moved:
        orders = [[known[-1] for known in order] for order in (stayed, moved)]
        yield {"path": path, "old": orders[0], "new": orders[1]}


# --- the file -------------------------------------------------------------------------------------


def etag_of(text: bytes) -> str:
    """The HTTP ETag of a state of the file."""
    return f'"{hashlib.sha256(text).hexdigest()[:32]}"'


def spell_config(value: Any) -> bytes:
    """A config as it is written."""
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True)
class Kept:
    """An earlier config beside the file; `undone`: a rollback replaced it."""

    path: Path
    number: int
    undone: bool

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    def describe(self) -> dict[str, Any]:
        status = self.path.stat()
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(status.st_mtime))
        return {"name": self.name, "until": moment, "bytes": status.st_size, "undone": self.undone}


class ConfigFile:
    """A config file that several writers may change: each reads, decides and writes within `held`.

    `find` returns None if the config is no file. Links are followed.
    """

    def __init__(self, find: Callable[[], Path | None]):
        self._find, self._lock = find, threading.Lock()

    @property
    def path(self) -> Path:
        """Where the file is. Raises ServingError where there is none."""
        path = self._find()
        if path is None:
            raise unwritable("the server was given its config by a program, not as a file")
        return Path(os.path.realpath(path))

    def read(self) -> bytes:
        """The file as it is now. Raises ServingError where it cannot be read."""
        try:
            return read_file(self.path)
        except OSError as error:
            raise unwritable(str(error.strerror), "The config file cannot be read") from None

    def problem(self) -> str:
        """Why the file cannot be changed; empty where it can."""
        try:
            path = self.path
            if any(part.startswith("..") for part in path.parts):
                return "it is mounted from a ConfigMap or a Secret: change it there"
            if os.path.ismount(path):
                return "it is mounted by itself and cannot be replaced: mount its folder"
            if not path.stat().st_mode & 0o222 or not os.access(path, os.W_OK):
                return "it is read-only"
            return "" if os.access(path.parent, os.W_OK) else "its folder is read-only"
        except ServingError as error:
            return error.message.partition(": ")[2]
        except OSError as error:
            return f"it cannot be read: {error.strerror}"

    @contextlib.contextmanager
    def held(self) -> Iterator[bytes]:
        """The file's bytes; within a `with` no other writer changes them, but an editor may."""
        with self._lock, locked(self.path.parent):
            yield self.read()

    def kept(self) -> list[Kept]:
        """The earlier configs, the latest first; none where the config is no file."""
        if self._find() is None:
            return []
        path = self.path
        pattern = re.compile(re.escape(path.name) + r"\.(\d{6})\.(kept|undone)")
        found = [
            Kept(path.with_name(name), int(match[1]), match[2] == "undone")
            for name in os.listdir(path.parent)
            if (match := pattern.fullmatch(name))
        ]
        return sorted(found, key=lambda one: one.number, reverse=True)

    def write(self, old: bytes, new: bytes, undone: bool = False) -> None:
        """Replace `old` by `new`, and keep `old`. Call it only within `held`.

        Even after a kill or a loss of power the file is one of the two. Raises ServingError if it
        cannot be written, or somebody has changed it meanwhile.
        """
        path, earlier = self.path, self.kept()
        number = earlier[0].number + 1 if earlier else 1
        kept = path.with_name(f"{path.name}.{number:06d}.{'undone' if undone else 'kept'}")
        with write_errors():
            pattern = f".{glob.escape(path.name)}.*.tmp"  # of a killed write
            for left in path.parent.glob(pattern):
                left.unlink(missing_ok=True)
            replace(kept, old, path)
            if self.read() != old:
                kept.unlink()
                raise ServingError(
                    "The config file has been changed by somebody else just now: read it again",
                    status=412,
                )
            try:
                replace(path, new, path)
            except OSError:
                kept.unlink(missing_ok=True)
                raise
        for one in self.kept()[KEPT_CONFIGS:]:
            with contextlib.suppress(OSError):
                one.path.unlink()

    def find_kept(self, text: bytes, name: str | None) -> Kept:
        """The earlier config called `name`; for None the latest that is not undone and differs from
        `text`, the current file. Raises NotFound.
        """
        for one in self.kept():
            if one.name == name or name is None and not one.undone and read_file(one.path) != text:
                return one
        raise NotFound(
            "There is no earlier config to go back to"
            if name is None
            else f"No earlier config is called '{name[:100]}'"
        )


OF_FILE = "The config file cannot be changed"


def unwritable(reason: str, what: str = OF_FILE) -> ServingError:
    return ServingError(f"{what}: {reason}", status=409)


@contextlib.contextmanager
def write_errors(what: str = OF_FILE) -> Iterator[None]:
    """Raise the disk's errors as ServingError: 507 if it is full, else 409."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ServingError(f"{what}: {error.strerror}", status=507) from error
        reason = error.strerror
        if error.errno == errno.EBUSY:
            reason = "it is mounted by itself and cannot be replaced: mount its folder"
        raise unwritable(reason or type(error).__name__, what) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclude other processes that write here within a `with`: workers that share a file."""
    if fcntl is None or not os.access(folder, os.R_OK):
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def lock(folder: Path) -> int | None:
    """Lock a folder; the handle that holds the lock, None where another has it."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def remove_left(folder: Path, prefix: str) -> None:
    for left in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            handle = lock(left)
            if handle is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(handle)


@contextlib.contextmanager
def temporary(folder: Path, prefix: str, mode: int = 0o755) -> Iterator[Path]:
    """A new folder inside another, whose name begins with `prefix`; gone after the `with`.

    It is locked: what a process has left that was killed is told by that, and removed.
    """
    with locked(folder):  # else one that is not locked yet were taken for left
        remove_left(folder, prefix)
        made = folder / f"{prefix}{secrets.token_hex(8)}"
        made.mkdir(mode)
        handle = lock(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def replace(path: Path, text: bytes, like: Path) -> None:
    """Write a file beside its place, flush it to the disk, and rename it there, all or nothing.

    It gets the mode and the owner of the file `like`.
    """
    status = like.stat()
    temporary = path.with_name(f".{like.name}.{secrets.token_hex(8)}.tmp")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(text)
            file.flush()
            if hasattr(os, "fchown"):
                with contextlib.suppress(OSError):  # not ours to give away
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.chmod(temporary, stat.S_IMODE(status.st_mode))
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, if the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
