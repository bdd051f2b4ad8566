"""A Python function behind a URL: the module it comes from, and the call.

Module in     "main.py:inference_handler" to the module, imported with MODEL_DIR set and its
              neighbours found
Handler       the function of that module, kept while a changed one fails to import
Result        what it returned, which results.py writes
"""

import asyncio
import builtins
import contextlib
import dataclasses
import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import itertools
import math
import os
import sys
import threading
import time
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

from .core import beside, errors_only, explain, hub_handler


class HandlerError(ValueError):
    """A handler cannot be imported, or its result cannot be written; the text is for the client."""


def top(name: str) -> str:
    return name.partition(".")[0]


# ==================================================================================================
# Module in
# In: "module:name" and the folder it is looked up in. Out: a module, and a digest of each file of
# the project that it was made of, or HandlerError.
# ==================================================================================================

IMPORT_LOCK = threading.RLock()  # one handler at a time: they share MODEL_DIR
PROJECT_NUMBERS = itertools.count()
# Names that a file of the project never stands in for: Python's own, and those of the running
# server.
RESERVED = sys.stdlib_module_names | {"__main__", "serving", "routines", top(__name__)}
# name; file, or None where Python is to look for it; folders of the project
ModuleSource = tuple[str, Path | None, tuple[str, ...]]


# What CellStrat's projects begin with: `from hub import hub_handler`.
HUB_MODULE = types.ModuleType("hub")
HUB_MODULE.hub_handler = hub_handler  # type: ignore[attr-defined]


class Project:
    """The modules of one import of a handler: a package of its own, of a name that nobody else has.

    Import statements in its modules look into its folders first. Everybody else's imports, sys.path
    and what sys.modules holds otherwise are left alone.
    """

    def __init__(self, folders: tuple[str, ...]):
        package = types.ModuleType("")
        package.__path__ = list(folders)
        name = f"serving_handler_{next(PROJECT_NUMBERS)}"
        while sys.modules.setdefault(name, package) is not package:  # of another copy of this file
            name = f"serving_handler_{next(PROJECT_NUMBERS)}"
        self.name = package.__name__ = name
        self.changed = threading.Condition()  # guards the next two
        self.running: dict[str, int] = {}  # module -> the thread that executes it
        self.waiting: dict[int, str] = {}  # thread -> the module that it waits for
        self.modules, self.whole = {"": package}, {""}  # the latter have been executed to their end
        self.own: dict[str, bool] = {}  # what `has` answered
        self.files: dict[str, bytes] = {}  # of each that was executed, the SHA-256
        self.builtins = {**vars(builtins), "__import__": self.import_}

    def import_(
        self,
        name: str,
        names: Mapping[str, Any] | None = None,
        local: Any = None,
        wanted: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        """Import as `__import__` does, a module of the project where it has one of that name."""
        if level:
            package = (names or {}).get("__package__") or ""
            name = importlib.util.resolve_name("." * level + name, package)
        if name == "hub" and "hub_handler" in (wanted or ()) and not self.has(name):
            return HUB_MODULE
        own = f"{name}.".removeprefix(f"{self.name}.").rstrip(".")
        if own == name and (isinstance(wanted, list) or not self.has(name)):
            # A list comes from C, for a pickle, say, which looks into sys.modules afterwards.
            return builtins.__import__(name, names, local, wanted or (), 0)
        module = self.load(own)
        if not wanted:
            return self.load(top(own))
        for part in wanted if hasattr(module, "__path__") else ():
            for item in getattr(module, "__all__", ()) if part == "*" else (part,):
                if not hasattr(module, item) and self.find(f"{own}.{item}"):
                    self.load(f"{own}.{item}")
        return module

    def has(self, name: str) -> bool:
        """Whether an import of this name means a file of the project."""
        first = top(name)
        if first not in self.own:
            self.own[first] = first not in RESERVED and self.holds(first)
        return self.own[first]

    def holds(self, name: str) -> bool:
        """Whether the project's folders hold a module that is not the host's already.

        A folder without `__init__.py` comes after what is installed, as it does in Python.
        """
        found, host = self.find(name), sys.modules.get(name)
        if found is None or found.origin is not None:
            return found is not None and getattr(host, "__file__", None) != found.origin
        installed = None if host else importlib.util.find_spec(name)
        return host is None and (installed is None or installed.origin is None)

    def find(self, name: str) -> importlib.machinery.ModuleSpec | None:
        path = self.modules[name.rpartition(".")[0]].__path__
        return importlib.machinery.PathFinder.find_spec(f"{self.name}.{name}", path)

    def load(self, name: str, path: Path | None = None) -> types.ModuleType:
        """A module of the project, executed the first time that it is asked for.

        From `path` if given.
        """
        if name in self.whole:
            return self.modules[name]
        parent, _, child = name.rpartition(".")
        package = self.modules.get(parent) or self.load(parent)
        with self.turn(name):
            if name in self.modules:
                return self.modules[name]
            if not hasattr(package, "__path__"):
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            full = f"{self.name}.{name}"
            spec = spec_from_file_location(full, path) if path else self.find(name)
            if spec is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            module = importlib.util.module_from_spec(spec)
            self.modules[name] = sys.modules[full] = module
            try:
                self.execute(module, spec)
            except BaseException:
                del self.modules[name]
                sys.modules.pop(full, None)
                raise
            module = self.modules[name] = sys.modules.get(full, module)  # it may put another there
            setattr(package, child, module)
            self.whole.add(name)
            return module

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Wait within a `with` for the thread that executes a module.

        One for each module, as importlib has it: who executes another may wait for threads that
        import this one.
        """
        me = threading.get_ident()
        with self.changed:
            while name in self.running and not self.is_for(me, name):
                self.waiting[me] = name
                self.changed.wait()
            self.waiting.pop(me, None)
            mine = name not in self.running
            self.running.setdefault(name, me)
        try:
            yield
        finally:
            with self.changed:
                if mine:
                    del self.running[name]
                self.changed.notify_all()

    def is_for(self, thread: int, name: str) -> bool:
        """Whether a module waits for this thread, by way of others too: then half of it must do."""
        owner = self.running.get(name)
        while owner not in (thread, None):
            owner = self.running.get(self.waiting.get(owner, ""))
        return owner == thread

    def execute(self, module: types.ModuleType, spec: importlib.machinery.ModuleSpec) -> None:
        """Run a module, from its source and no bytecode,
        which overlooks a change within a second.
        """
        module.__dict__["__builtins__"] = self.builtins
        if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            path = spec.loader.path
            source = spec.loader.get_data(path)
            self.files[path] = hashlib.sha256(source).digest()
            exec(spec.loader.source_to_code(source, path), module.__dict__)
        elif spec.loader is not None:
            spec.loader.exec_module(module)

    def forget(self) -> None:
        """Take the modules out of sys.modules."""
        for name in self.modules:
            sys.modules.pop(f"{self.name}.{name}".rstrip("."), None)


@dataclasses.dataclass(eq=False)
class Loaded:
    """A module, and the digests of the files it was made of: its own and its neighbours'."""

    module: types.ModuleType
    files: Mapping[str, bytes]


# Weak, so that a module and its model go when the last handler lets go of them.
SHARED: "weakref.WeakValueDictionary[tuple[ModuleSource, str | None], Loaded]" = (
    weakref.WeakValueDictionary()
)


def locate(module: str, folder: Path) -> ModuleSource:
    """Find the file of "main.py", "src/main.py", "main" or "package.module" in `folder`.

    HandlerError when a file is missing.
    """
    if module.endswith(".py"):
        path = Path(beside(folder, module))
        if not path.is_file():
            where = "" if Path(module).is_absolute() else " beside the config"
            raise HandlerError(f"{module}: no such file{where}")
        path = path.resolve()
        return (
            path.stem.replace(".", "_"),
            path,
            tuple(dict.fromkeys((str(path.parent), str(folder)))),
        )
    if not all(part.isidentifier() for part in module.split(".")):
        raise HandlerError(f"{module}: expected a file ending with .py or the name of a module")
    base = folder.joinpath(*module.split("."))
    found = next(
        (path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None
    )
    return module, found, (str(folder),)


def digest_file(path: str) -> bytes | None:
    """The SHA-256 of a file; None when it is gone."""
    with contextlib.suppress(OSError):
        return hashlib.sha256(Path(path).read_bytes()).digest()
    return None


@contextlib.contextmanager
def model_dir_set(model_dir: str | None) -> Iterator[None]:
    """MODEL_DIR in the environment, for an import; what it was before comes back."""
    outer = os.environ.get("MODEL_DIR")
    os.environ.update({} if model_dir is None else {"MODEL_DIR": model_dir})
    try:
        yield
    finally:
        os.environ.pop("MODEL_DIR", None)
        os.environ.update({} if outer is None else {"MODEL_DIR": outer})


def import_source(
    source: ModuleSource, model_dir: str | None, check: Callable[[types.ModuleType], Any]
) -> Loaded:
    """Execute a module and `check` it.

    Raises HandlerError, with nothing of it left, when one of them fails.
    """
    importlib.invalidate_caches()
    name, path, folders = source
    project = Project(folders)
    try:
        with model_dir_set(model_dir):
            if path is None:
                module = importlib.import_module(name)
            else:
                module = project.load(name, None if "." in name else path)
            check(module)
    except BaseException as error:  # sys.exit() in a handler must not end the loader
        project.forget()
        if isinstance(error, HandlerError):
            raise
        raise HandlerError(explain_import(project, source, error)) from error
    loaded = Loaded(module, project.files)
    weakref.finalize(loaded, project.forget).atexit = False
    return loaded


def explain_import(project: Project, source: ModuleSource, error: BaseException) -> str:
    """Why a module could not be imported, for the client."""
    name, path, folders = source
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    if path is None and missing and f"{name}.".startswith(f"{missing}."):
        return f"{name}: no such module beside the config or installed"
    text = f"{path.name if path else name}: {explain(error, folders)}"
    text = text.replace(f"{project.name}.", "")
    if missing and "." not in missing and project.has(missing):
        text += (
            f" ({missing} lies beside it, where import statements alone find it: a pickle, or "
            "importlib, needs its folder on PYTHONPATH)"
        )
    return text


# ==================================================================================================
# Handler
# In: a reference to a function, or the function. Out: its result for a value and a context.
# ==================================================================================================


def wants_context(function: Callable[..., Any]) -> bool:
    """Whether to call with (value, context): a second argument without default, `*args`, or one
    named `context` or `_`.

    A default of another name (`top=3`) is the function's own option. Raises HandlerError unless it
    takes one or two arguments.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some builtins have none
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = [p for p in signature.parameters.values() if p.kind in kinds][1:2]
    takes_all = any(
        p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values()
    )
    optional = second and second[0].default is not inspect.Parameter.empty
    two = second[0].name in ("context", "_") if optional else bool(second) or takes_all
    try:
        signature.bind(*(None, None)[: 1 + two])
    except TypeError:
        raise HandlerError(
            f"expected a function of (inputs) or (inputs, context), got one of {signature}"
        ) from None
    return two


@dataclasses.dataclass(frozen=True)
class Bound:
    """A function ready to be called, and the module that keeps it."""

    function: Callable[..., Any]
    two: bool
    loaded: Loaded | None


class Handler:
    """A function behind a URL, from "module:name", "file.py:name", "package.module:name", or a
    callable.

    `folder` is where the module and its neighbours are looked up first, and what a relative
    `model_dir` starts at. MODEL_DIR is set while the module is imported, in `load`. The module and
    its neighbours are a package of their own in sys.modules, where their classes can be pickled.
    `load` sees changes of those that it imports at the top. Readers take one reference, `bound`;
    `load` builds aside under a lock and assigns.
    """

    def __init__(
        self,
        function: str | Callable[..., Any],
        folder: str | os.PathLike,
        model_dir: str | os.PathLike | None = None,
    ):
        self.reference = function
        self.folder = Path(folder).resolve()
        self.model_dir = None if model_dir is None else str((self.folder / model_dir).resolve())
        self.error, self.failed_at = "", -math.inf  # why, and when, the import failed last
        self.bound: Bound | None = None

    @property
    def ready(self) -> bool:
        """Whether it can be called.

        `error` then tells why a newer one is not in its place, if so.
        """
        return self.bound is not None

    @property
    def function(self) -> Callable[..., Any] | None:
        return self.bound.function if self.bound else None

    def load(self) -> bool:
        """Import the module, or import it anew when its file or a neighbour's has changed; tell
        whether that was done.

        Raises HandlerError with the reason, which `error` keeps; the function that was there, if
        any, stays.
        """
        try:
            with IMPORT_LOCK:
                bound = self.bind()
        except HandlerError as error:
            self.error, self.failed_at = str(error), time.monotonic()
            raise
        changed, self.bound, self.error = bound is not self.bound, bound, ""
        return changed

    def bind(self) -> Bound:
        if not isinstance(self.reference, str):
            if not callable(self.reference):
                raise HandlerError(f"expected a function, got {type(self.reference).__name__}")
            return self.bound or Bound(self.reference, wants_context(self.reference), None)
        module, _, name = self.reference.rpartition(":")
        if not (module and name):
            raise HandlerError(f'expected "module:name" or "file.py:name", got {self.reference!r}')
        key = (locate(module, self.folder), self.model_dir)
        loaded, mine = SHARED.get(key), self.bound.loaded if self.bound else None
        fresh = loaded and all(digest_file(file) == digest for file, digest in loaded.files.items())
        if not loaded or not fresh:
            loaded = SHARED[key] = import_source(
                *key, check=functools.partial(find_named, reference=self.reference)
            )
        if self.bound and loaded is mine:
            return self.bound
        return Bound(*find_named(loaded.module, self.reference), loaded)

    def call(self, value: Any, context: Any) -> Any:
        """Run the function, an `async` one in an event loop of its own.

        Its exception passes, all else that it raises comes as RuntimeError.
        """
        bound = self.bound
        assert bound is not None  # views look at `ready`
        with errors_only("the handler"):
            found = bound.function(value, context) if bound.two else bound.function(value)
            return asyncio.run(found) if inspect.iscoroutine(found) else found


def check_function(reference: str, folder: Path) -> str | None:
    """What is wrong with where a function is to come from; nothing is imported."""
    module = reference.rpartition(":")[0]
    try:
        _, path, _ = locate(module, folder)
        found = path or importlib.util.find_spec(module.partition(".")[0])
    except (HandlerError, ValueError) as error:
        return str(error)
    return None if found else f"{module}: no such module beside the config or installed"


def find_named(module: types.ModuleType, reference: str) -> tuple[Callable[..., Any], bool]:
    """The function that "module:name" names (the name may be dotted),
    and whether it wants the context; raises HandlerError.
    """
    shown, _, name = reference.rpartition(":")
    try:
        function = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        raise HandlerError(f"{shown}: has no {name!r}") from None
    if not callable(function):
        raise HandlerError(
            f"{shown}: expected {name!r} to be a function, got {type(function).__name__}"
        )
    try:
        return function, wants_context(function)
    except HandlerError as error:
        raise HandlerError(f"{reference}: {error}") from None
