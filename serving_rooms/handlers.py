"""A Python function behind a URL: the module it comes from, the call, and what it returns as bytes or JSON.

    Module in     "main.py:inference_handler" to a module of its own, imported with MODEL_DIR set
    Handler       the function of that module, kept while a changed one fails to import
    Result out    what the function returned as a value for the JSON encoder, or bytes with a content type

Works on any framework's results without importing one: a tensor is what has `.numpy()`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import inspect
import io
import json
import math
import os
import re
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Handler", "HandlerError", "to_reply"]


class HandlerError(ValueError):
    """A handler cannot be imported, or its result cannot be written; the text is for the client."""


# ======================================================================================================
# Module in
# In: "module:name" and the folder it is looked up in. Out: a module executed in a namespace of its own,
# and a digest of each source file that it was made of, or HandlerError.
# ======================================================================================================

IMPORTING = threading.RLock()  # one import at a time: they share MODEL_DIR, sys.path and sys.modules
# Names that a file beside the config never stands in for: Python's own, and those of the running server.
KEPT = sys.stdlib_module_names | {"__main__", "serving", "serving_rooms", "routines"}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a module comes from; `path` is None when it is not in the folder, so that Python looks for it."""

    name: str
    path: Path | None
    folders: tuple[Path, ...]


@dataclasses.dataclass(eq=False)
class Loaded:
    """A module and the digests of the files it was made of: its own and its neighbours'."""

    module: types.ModuleType
    files: dict[str, bytes]

    def is_fresh(self) -> bool:
        """Whether every file still holds what was imported; a file that is gone counts as changed."""
        return all(digest_file(path) == digest for path, digest in self.files.items())


# Weak, so that a module and its model go when the last handler lets go of them.
SHARED: "weakref.WeakValueDictionary[tuple[Source, str | None], Loaded]" = weakref.WeakValueDictionary()


def digest_file(path: str) -> bytes | None:
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError:
        return None


def locate(module: str, folder: Path) -> Source:
    """Find the file of "main.py", "src/main.py", "main" or "package.module" in `folder`; HandlerError when a file is missing."""
    if module.endswith(".py"):
        path = (folder / module).resolve()
        if not path.is_file():
            raise HandlerError(f"{module}: no such file beside the config")
        name = path.stem.replace(".", "_")
        return Source(f"handler_{name}" if name in KEPT else name, path, tuple(dict.fromkeys((path.parent, folder))))
    if not all(part.isidentifier() for part in module.split(".")):
        raise HandlerError(f"{module}: expected a file ending with .py or the name of a module")
    base = folder.joinpath(*module.split("."))
    found = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
    return Source(f"handler_{module}" if found and module in KEPT else module, found, (folder,))


class SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles a source file and notes its digest in `seen`."""

    def __init__(self, name: str, path: str, seen: dict[str, bytes]):
        super().__init__(name, path)
        self.seen = seen

    def get_code(self, fullname: str) -> Any:
        """Compile the source, not the cached bytecode: that overlooks a change within one second."""
        data = self.get_data(self.path)
        self.seen[self.path] = hashlib.sha256(data).digest()
        return self.source_to_code(data, self.path)


class Finder:
    """Finds a handler's module and its neighbours; `names` are the modules it found, `seen` their files."""

    def __init__(self, source: Source):
        self.source = source
        self.names: set[str] = set()
        self.seen: dict[str, bytes] = {}

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if name == self.source.name:
            return self.find_target(name, path)
        if name.partition(".")[0] in KEPT:
            return None
        for entry in self.source.folders if path is None else path:
            if is_within(entry, self.source.folders):
                loader: Any = (self.make_loader, [".py"])
                spec = importlib.machinery.FileFinder(str(entry), loader).find_spec(name)
                if spec is not None and spec.loader is not None:  # without a loader it is a bare folder
                    return spec
        return None

    def find_target(self, name: str, path: Sequence[str] | None) -> Any:
        """The handler's own module, from wherever it is: even an installed one is executed anew, for its MODEL_DIR."""
        origin = str(self.source.path) if self.source.path else ""
        if not origin:
            others = (finder.find_spec(name, path, None) for finder in sys.meta_path if finder is not self)
            found = next((spec for spec in others if spec is not None), None)
            origin = (found and found.origin) or ""
            if not origin.endswith(".py"):
                return found
        places = [str(Path(origin).parent)] if Path(origin).name == "__init__.py" else None
        return importlib.util.spec_from_file_location(
            name, origin, loader=self.make_loader(name, origin), submodule_search_locations=places)

    def make_loader(self, name: str, path: str) -> SourceLoader:
        self.names.add(name)
        return SourceLoader(name, path, self.seen)


def is_within(entry: str | Path, folders: Iterable[Path]) -> bool:
    """Whether a folder belongs to the project: inside it, and not inside a virtual environment kept there."""
    for folder in folders:
        with contextlib.suppress(ValueError):
            inside = Path(entry).resolve().relative_to(folder)
            return not {"site-packages", "dist-packages"} & set(inside.parts)
    return False


def names_to_hide(source: Source) -> list[str]:
    """Loaded modules that would be taken for the handler's own: its name, and those of its neighbours from elsewhere.

    A neighbour that the host has imported from that very file stays: the handler shares it with the host.
    """
    foreign = set()
    for top in {name.partition(".")[0] for name in list(sys.modules)} - KEPT:
        places = (place for folder in source.folders for place in (folder / f"{top}.py", folder / top / "__init__.py"))
        local = next((place for place in places if place.is_file()), None)
        loaded = getattr(sys.modules.get(top), "__file__", None)
        if local and (not loaded or Path(loaded).resolve() != local.resolve()):
            foreign.add(top)
    own = set() if source.name in KEPT else {source.name}
    return [name for name in list(sys.modules) if name in own or name.partition(".")[0] in foreign]


@contextlib.contextmanager
def surroundings(finder: Finder, model_dir: str | None) -> Iterator[None]:
    """MODEL_DIR, sys.path and sys.modules as the handler's module is to find them; afterwards as they were."""
    hidden = {name: sys.modules.pop(name) for name in names_to_hide(finder.source)}
    before, outer = set(sys.modules), os.environ.get("MODEL_DIR")
    added = [str(folder) for folder in finder.source.folders]  # at the end: the finder has found the modules there
    sys.meta_path.insert(0, finder)
    sys.path.extend(added)
    if model_dir is not None:
        os.environ["MODEL_DIR"] = model_dir
    importlib.invalidate_caches()
    try:
        yield
    finally:
        os.environ.pop("MODEL_DIR", None)
        if outer is not None:
            os.environ["MODEL_DIR"] = outer
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)
        for path in added:
            if path in sys.path:  # from the end, where it was put: the host may have one of its own
                del sys.path[len(sys.path) - 1 - sys.path[::-1].index(path)]
        forget(finder, set(sys.modules) - before)
        restore(hidden)


def forget(finder: Finder, new: Iterable[str]) -> None:
    """Take the handler's modules out of sys.modules, where a module of the host's may want the name."""
    bare = {name for name in new if not getattr(sys.modules[name], "__file__", None)
            and any(is_within(entry, finder.source.folders) for entry in list(getattr(sys.modules[name], "__path__", ())))}
    for name in finder.names | bare:
        sys.modules.pop(name, None)


def restore(hidden: Mapping[str, types.ModuleType]) -> None:
    """Put hidden modules back, also as the attributes of their packages, where the import left the new ones."""
    sys.modules.update(hidden)
    for name, module in hidden.items():
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)


def import_module(source: Source, model_dir: str | None) -> Loaded:
    """Execute a module; raises HandlerError with the reason, whatever the module raises."""
    finder = Finder(source)
    shown = source.path.name if source.path else source.name
    with IMPORTING:
        try:
            with surroundings(finder, model_dir):
                module = importlib.import_module(source.name)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # sys.exit() in a handler must not end the server
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if source.path is None and missing and (missing == source.name or source.name.startswith(f"{missing}.")):
                raise HandlerError(f"{shown}: no such module beside the config or installed") from error
            raise HandlerError(f"{shown}: {explain(error, source.folders)}") from error
    return Loaded(module, finder.seen)


def explain(error: BaseException, folders: Iterable[Path] = ()) -> str:
    """An exception as one line for the client: its type and message, without folders of this machine."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({'' if error.code is None else clean(repr(error.code))})"
    if isinstance(error, OSError) and error.strerror:
        name = f": {Path(os.fsdecode(error.filename)).name}" if isinstance(error.filename, (str, bytes)) else ""
        return f"{type(error).__name__}: {error.strerror}{name}"
    try:
        text = clean(str(error), folders)
    except Exception:  # a __str__ of the handler's own
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def clean(text: str, folders: Iterable[Path] = ()) -> str:
    """One line of at most 500 characters, absolute paths cut down to their last part, or to what comes after `folders`."""
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    text = re.sub(r"(?<=['\"])(?:[A-Za-z]:)?[/\\][^'\"]*[/\\]", "", " ".join(text.split()))  # in quotes it may hold spaces
    text = re.sub(r"(?<![\w.:/])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\":,;()]+[/\\])+", "", text)
    return text if len(text) <= 500 else f"{text[:497]}..."


# ======================================================================================================
# Handler
# In: a reference to a function, or the function. Out: its result for a value and a context.
# ======================================================================================================


def wants_context(function: Callable[..., Any]) -> bool:
    """Whether to call with (value, context): a second argument without default, `*args`, or one named `context` or `_`.

    A default of another name (`top=3`) is the function's own option. Raises HandlerError unless it takes one or two arguments.
    """
    if inspect.iscoroutinefunction(function):
        raise HandlerError("expected a plain function, got an async one")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # some builtins have none
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    second = [p for p in signature.parameters.values() if p.kind in kinds][1:2]
    takes_all = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in signature.parameters.values())
    optional = second and second[0].default is not inspect.Parameter.empty
    two = second[0].name in ("context", "_") if optional else bool(second) or takes_all
    try:
        signature.bind(*(None, None)[:1 + two])
    except TypeError:
        raise HandlerError(f"expected a function of (inputs) or (inputs, context), got one of {signature}") from None
    return two


@dataclasses.dataclass(frozen=True)
class Bound:
    """A function ready to be called, and the module that keeps it."""

    function: Callable[..., Any]
    two: bool
    loaded: Loaded | None


class Handler:
    """A function behind a URL, from "module:name", "file.py:name", "package.module:name", or a callable.

    `folder` is where the module and its neighbours are looked up first, and what a relative `model_dir` starts at.
    The module is imported in `load`: MODEL_DIR, the folder on sys.path and the modules themselves in sys.modules are
    there during the import only, so a handler reads the variable and imports its neighbours at the top, not in the function.
    Readers take one reference, `bound`; `load` builds aside under a lock and assigns.
    """

    def __init__(self, function: str | Callable[..., Any], folder: str | os.PathLike, model_dir: str | os.PathLike | None = None):
        self.reference = function
        self.folder = Path(folder).resolve()
        self.model_dir = None if model_dir is None else str((self.folder / model_dir).resolve())
        self.error = ""
        self.bound: Bound | None = None

    @property
    def ready(self) -> bool:
        """Whether it can be called; `error` then tells why a newer one is not in its place, if so."""
        return self.bound is not None

    @property
    def function(self) -> Callable[..., Any] | None:
        return self.bound.function if self.bound else None

    def load(self, force: bool = False) -> bool:
        """Import the module, or import it anew when its file or a neighbour's has changed; tell whether that was done.

        `force` imports an unchanged one too, once for all handlers that share the module. Raises HandlerError with the
        reason, which `error` keeps; the function that was there, if any, stays.
        """
        try:
            with IMPORTING:
                bound = self.bind(force)
        except HandlerError as error:
            self.error = str(error)
            raise
        changed, self.bound, self.error = bound is not self.bound, bound, ""
        return changed

    def bind(self, force: bool) -> Bound:
        if not isinstance(self.reference, str):
            if not callable(self.reference):
                raise HandlerError(f"expected a function, got {type(self.reference).__name__}")
            return self.bound or Bound(self.reference, wants_context(self.reference), None)
        module, colon, name = self.reference.rpartition(":")
        if not (module and colon and name):
            raise HandlerError(f'expected "module:name" or "file.py:name", got {self.reference!r}')
        loaded = self.take_module(locate(module, self.folder), force)
        if self.bound and loaded is self.bound.loaded:
            return self.bound
        function = find_function(loaded.module, module, name)
        try:
            return Bound(function, wants_context(function), loaded)
        except HandlerError as error:
            raise HandlerError(f"{self.reference}: {error}") from None

    def take_module(self, source: Source, force: bool) -> Loaded:
        """The module all handlers of this source and model_dir share, imported when there is none or it is stale."""
        key = (source, self.model_dir)
        shared, mine = SHARED.get(key), self.bound.loaded if self.bound else None
        if shared and shared.is_fresh() and not (force and shared is mine):
            return shared
        loaded = SHARED[key] = import_module(source, self.model_dir)
        return loaded

    def call(self, value: Any, context: Any) -> Any:
        """Run the function; its exception passes through, but what would end the server comes as RuntimeError."""
        bound = self.bound
        if bound is None:
            raise HandlerError(f"not loaded: {self.error}" if self.error else "not loaded")
        try:
            return bound.function(value, context) if bound.two else bound.function(value)
        except (Exception, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise RuntimeError(f"the handler ended with {type(error).__name__}: {explain(error)}") from error


def find_function(module: types.ModuleType, shown: str, name: str) -> Callable[..., Any]:
    """The module's function (`name` may be dotted); raises HandlerError."""
    try:
        function = functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        raise HandlerError(f"{shown}: has no {name!r}") from None
    if not callable(function):
        raise HandlerError(f"{shown}: expected {name!r} to be a function, got {type(function).__name__}")
    return function


# ======================================================================================================
# Result out
# In: what a function returned. Out: (value for the JSON encoder, "application/json") or (bytes, type).
# ======================================================================================================

MAX_LEVELS = 200  # of lists and objects in a result: well below where encoders give up
CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:; ?[\w-]+=[\w.+\"-]+)*", re.ASCII)
OCTETS = "application/octet-stream"


def sniff(data: bytes) -> str:
    """The content type that the first bytes tell."""
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12], OCTETS)
    starts = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF87a": "image/gif", b"GIF89a": "image/gif"}
    return next((kind for start, kind in starts.items() if data.startswith(start)), OCTETS)


def to_reply(result: Any) -> tuple[Any, str]:
    """What a handler returned, as (value, "application/json") or as (bytes, content type).

    Arrays of numbers stay arrays, for the encoder to write. Raises HandlerError, with the place in the result.
    """
    if isinstance(result, tuple) and len(result) == 2 and is_bytes(result[0]) and isinstance(result[1], str) \
            and CONTENT_TYPE.fullmatch(result[1]):
        return bytes(result[0]), result[1]
    if is_bytes(result):
        return bytes(result), sniff(bytes(result[:12]))
    image = sys.modules.get("PIL.Image")  # who returns a PIL image has imported it
    if image is not None and isinstance(result, image.Image):
        return encode_png(result), "image/png"
    try:
        if is_tensor(result):
            result = read_tensor(result)
            if isinstance(result, bytes) and sniff(result) != OCTETS:  # of tf.io.encode_png, say; else it is a text
                return result, sniff(result)
        return to_json(result, set()), "application/json"
    except Unwritable as error:
        place = "".join(reversed(error.place[-20:])) + ("..." if len(error.place) > 20 else "")
        raise HandlerError(f"${place}: cannot be written as JSON: {error}") from error


def is_bytes(value: Any) -> bool:
    return isinstance(value, (bytes, bytearray, memoryview))


def encode_png(image: Any) -> bytes:
    """A PIL image as PNG; modes that PNG lacks (CMYK, YCbCr, float) become RGB."""
    try:
        if image.mode in ("I", "I;16B", "I;16L"):
            image = image.convert("I;16")  # PNG has no more than 16 bits
        elif image.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
            image = image.convert("RGBA" if image.mode in ("RGBa", "La", "PA") else "RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    except (OSError, ValueError, SystemError) as error:  # a truncated file that is read only now; no pixels
        raise HandlerError(f"the image cannot be written as PNG: {explain(error)}") from error


class Unwritable(Exception):
    """Something JSON cannot hold; `place` collects its path from the inside out, so that the good case costs nothing."""

    def __init__(self, problem: str):
        super().__init__(problem)
        self.place: list[str] = []


def is_tensor(value: Any) -> bool:
    return not isinstance(value, (np.ndarray, np.generic, type)) and callable(getattr(value, "numpy", None))


def read_tensor(value: Any) -> Any:
    """A framework's tensor as NumPy, off its gradient tape and its GPU first where it has such (PyTorch)."""
    try:
        return (value.detach().cpu() if hasattr(value, "detach") else value).numpy()
    except Exception as error:
        raise Unwritable(f"got {type(value).__name__} ({explain(error)})") from error


def to_json(value: Any, parents: set[int]) -> Any:
    """The value with what the encoder cannot write replaced or refused; `parents` holds the ids of what contains it."""
    if value is None or isinstance(value, (str, bool, int, float)) and not isinstance(value, np.generic):
        return to_scalar(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return to_array(value, parents)
    if isinstance(value, (Mapping, list, tuple)):
        return to_container(value, parents)
    if is_bytes(value):
        return to_text(bytes(value))
    if is_tensor(value):
        return to_json(read_tensor(value), parents)
    raise Unwritable(f"got {type(value).__name__}")


def to_scalar(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unwritable("got a string with a lone surrogate") from None
    if isinstance(value, int) and not -2**63 <= value < 2**64:
        raise Unwritable("got an integer beyond 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        return np.float64(value)  # the encoder writes NaN for it, as in arrays, and not null
    return value


def to_text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Unwritable("got bytes that are no UTF-8 text; return them alone, or as base64") from None


def to_array(value: Any, parents: set[int]) -> Any:
    """An array or scalar of NumPy in a form the encoder takes: numbers in the machine's byte order, text as a list."""
    kind = value.dtype.kind
    if kind in "cmM" or value.dtype.type is np.void:  # bfloat16 is of kind V too, but no np.void
        raise Unwritable(f"got {type(value).__name__} of {value.dtype}" if isinstance(value, np.ndarray) else f"got {value.dtype}")
    if kind in "SUT" or isinstance(value, np.ma.MaskedArray):
        return to_json(value.tolist(), parents)
    if kind == "O":
        if all(isinstance(item, (str, bytes)) for item in value.flat):
            return value
        return to_json(value.tolist(), parents)
    if kind == "f" and value.dtype.itemsize > 8:
        return value.astype(np.float64)
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def to_container(value: Any, parents: set[int]) -> Any:
    if id(value) in parents:
        raise Unwritable("it holds itself")
    if len(parents) >= MAX_LEVELS:
        raise Unwritable(f"got more than {MAX_LEVELS} levels of lists and objects")
    parents.add(id(value))
    written = to_object(value, parents) if isinstance(value, Mapping) else to_list(value, parents)
    parents.discard(id(value))
    return written


def to_list(values: list | tuple, parents: set[int]) -> list:
    kinds = set(map(type, values))  # long lists of plain numbers are let through at the speed of C
    if kinds == {float} and all(map(math.isfinite, values)) or kinds == {int} and min(values) >= -2**63 and max(values) < 2**64:
        return list(values)
    written = []
    for index, value in enumerate(values):
        try:
            written.append(to_json(value, parents))
        except Unwritable as error:
            error.place.append(f"[{index}]")
            raise
    return written


def to_object(values: Mapping, parents: set[int]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for key, value in values.items():
        name = to_key(key)
        if name in written:
            raise Unwritable(f"two keys are written as {json.dumps(name)}")
        try:
            written[name] = to_json(value, parents)
        except Unwritable as error:
            error.place.append(f".{name}" if name.isidentifier() else f"[{json.dumps(name)}]")
            raise
    return written


def to_key(key: Any) -> str:
    """A key of an object: text, or a number or truth value as json.dumps writes it."""
    if isinstance(key, str):
        return str(to_scalar(str(key)))
    if isinstance(key, (np.integer, np.floating, np.bool_)):
        key = key.item()
    if isinstance(key, (bool, int, float)):
        return json.dumps(key)
    raise Unwritable(f"got a key that is no string: {type(key).__name__}")
