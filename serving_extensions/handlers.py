"""A Python function behind a URL: the module it comes from, and the call.

Module in     "main.py:inference_handler" to the module, imported with MODEL_DIR set and its
              neighbours found
Handler       the function of that module; the old one stays if a changed module fails to import
Result        what the function returned; results.py writes it
"""

import asyncio
import builtins
import contextlib
import contextvars
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
from concurrent.futures import ThreadPoolExecutor
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
# In: "module:name" and the folder to look in. Out: the module, and a digest of each project file
# that it executed, or HandlerError.
# ==================================================================================================

IMPORT_LOCK = threading.RLock()  # one handler is imported at a time: they share MODEL_DIR
PROJECT_NUMBERS = itertools.count()
# Modules that a project file never replaces: Python's standard library and the running server's.
RESERVED = sys.stdlib_module_names | {"__main__", "serving", "routines", top(__name__)}
# name; file, or None if Python finds it; folders of the project
ModuleSource = tuple[str, Path | None, tuple[str, ...]]


# CellStrat's projects begin with `from hub import hub_handler`.
HUB_MODULE = types.ModuleType("hub")
HUB_MODULE.hub_handler = hub_handler  # type: ignore[attr-defined]


class Project:
    """The modules that one import of a handler executes, in a package with a unique name.

    Import statements in these modules look into the project's folders first. Other modules'
    imports, sys.path and all other entries of sys.modules stay unchanged.
    """

    def __init__(self, folders: tuple[str, ...]):
        package = types.ModuleType("")
        package.__path__ = list(folders)
        name = f"serving_handler_{next(PROJECT_NUMBERS)}"
        while sys.modules.setdefault(name, package) is not package:  # taken by a copy of this file
            name = f"serving_handler_{next(PROJECT_NUMBERS)}"
        self.name = package.__name__ = name
        self.changed = threading.Condition()  # guards the next two
        self.running: dict[str, int] = {}  # module -> the thread that executes it
        self.waiting: dict[int, str] = {}  # thread -> the module that it waits for
        self.modules, self.whole = {"": package}, {""}  # `whole`: names of fully executed modules
        self.own: dict[str, bool] = {}  # cached results of `has`
        self.files: dict[str, bytes] = {}  # path of each executed file -> its SHA-256
        self.builtins = {**vars(builtins), "__import__": self.import_}

    def import_(
        self,
        name: str,
        names: Mapping[str, Any] | None = None,
        local: Any = None,
        wanted: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        """Import like `__import__`, but prefer a module of the project."""
        if level:
            package = (names or {}).get("__package__") or ""
            name = importlib.util.resolve_name("." * level + name, package)
        if name == "hub" and "hub_handler" in (wanted or ()) and not self.has(name):
            return HUB_MODULE
        own = f"{name}.".removeprefix(f"{self.name}.").rstrip(".")
        if own == name and (isinstance(wanted, list) or not self.has(name)):
            # C code (pickle, say) passes `wanted` as a list, and then looks into sys.modules.
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
        """Whether an import of this name finds a file of the project first."""
        first = top(name)
        if first not in self.own:
            self.own[first] = first not in RESERVED and self.holds(first)
        return self.own[first]

    def holds(self, name: str) -> bool:
        """Whether the project's folders have this module, and the host has not imported that file.

        As in Python, an installed module wins over a folder without `__init__.py`.
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
        """A module of the project, executed (from `path` if given) when it is first needed."""
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
            # a module may have put another in its place
            module = self.modules[name] = sys.modules.get(full, module)
            setattr(package, child, module)
            self.whole.add(name)
            return module

    @contextlib.contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Hold the import lock of one module within a `with`.

        One lock per module, like importlib: the thread that executes another module may wait for
        threads that import this one.
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
        """Whether the thread that executes module `name` is `thread`, or waits for it, directly or
        through others.

        Waiting would be a deadlock, so the half-executed module is used, as importlib does.
        """
        owner = self.running.get(name)
        while owner not in (thread, None):
            owner = self.running.get(self.waiting.get(owner, ""))
        return owner == thread

    def execute(self, module: types.ModuleType, spec: importlib.machinery.ModuleSpec) -> None:
        """Execute a module from its source: bytecode misses a change within the same second."""
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
    """A module, and the digests of its file and of the project files that it imported."""

    module: types.ModuleType
    files: Mapping[str, bytes]


# Weak, so that a module and its model are freed with the last handler that uses them.
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
    """Set MODEL_DIR in the environment within a `with`; restores the previous value."""
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

    If one of them fails, raises HandlerError and removes all its modules from sys.modules.
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
    """The text for the client of why a module could not be imported."""
    name, path, folders = source
    missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    if path is None and missing and f"{name}.".startswith(f"{missing}."):
        return f"{name}: no such module beside the config or installed"
    text = f"{path.name if path else name}: {explain(error, folders)}"
    text = text.replace(f"{project.name}.", "")
    if missing and "." not in missing and project.has(missing):
        text += (
            f" ({missing} is beside it, but only import statements look there: a pickle, or "
            "importlib, needs its folder on PYTHONPATH)"
        )
    return text


# ==================================================================================================
# Handler
# In: a reference to a function, or the function. Out: its result for a value and a context.
# ==================================================================================================


def wants_context(function: Callable[..., Any]) -> bool:
    """Whether to call a function with (value, context) and not with (value) alone.

    It is, if its second argument has no default or is named `context` or `_`, or if it takes
    `*args`. Another argument with a default (`top=3`) is the function's own option. Raises
    HandlerError if it cannot be called with that number of arguments.
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

    The module and the modules it imports are looked up in `folder` first; a relative `model_dir`
    starts there too. `load` sets MODEL_DIR while it imports the module. These modules are a package
    of their own in sys.modules, so that their classes can be pickled. `load` notices changes of the
    files that were executed during the import. Readers take the one reference `bound`; `load`
    builds a new one under a lock and then assigns it.
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
        self.error, self.failed_at = "", -math.inf  # of the last failed import
        self.bound: Bound | None = None

    @property
    def ready(self) -> bool:
        """Whether the handler can be called.

        If it can and `error` is set, `error` says why a newer version could not replace it.
        """
        return self.bound is not None

    @property
    def function(self) -> Callable[..., Any] | None:
        return self.bound.function if self.bound else None

    def load(self) -> bool:
        """Import the module, or import it again if one of its files has changed; returns whether
        the function was replaced.

        Raises HandlerError with the reason, which `error` keeps; the previous function, if any,
        stays.
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

        An Exception passes through; any other BaseException becomes a RuntimeError.
        """
        bound = self.bound
        assert bound is not None  # views check `ready` first
        with errors_only("the handler"):
            found = bound.function(value, context) if bound.two else bound.function(value)
            return outside_loops(asyncio.run, found) if inspect.iscoroutine(found) else found


def outside_loops(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function that runs an event loop: called in a thread of its own if this one
    runs a loop already, as Jupyter's does, because a thread runs only one.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:  # none runs
        return function(*arguments)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, function, *arguments).result()


def check_function(reference: str, folder: Path) -> str | None:
    """What is wrong with a reference's module, or None; nothing is imported."""
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
