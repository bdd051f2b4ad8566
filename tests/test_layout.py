"""House rules that a machine can see: rooms look upward, files import in one direction, functions are
short, TensorFlow has one door, private parts of libraries are those listed.
"""

import ast
import builtins
import importlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import house  # noqa: E402

import serving  # noqa: E402

SOURCE = (ROOT / "serving.py").read_text()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"^# =+\n# (.+)\n# In: .*\n(?:# .*\n)*?# =+$", re.MULTILINE)


def room_of_line():
    starts = [
        (SOURCE[: match.start()].count("\n") + 1, match[1]) for match in BANNER.finditer(SOURCE)
    ]
    return lambda line: next(
        (index for index in range(len(starts) - 1, -1, -1) if starts[index][0] <= line), -1
    ), [name for _, name in starts]


def test_title_page_lists_the_rooms_in_order():
    _, rooms = room_of_line()
    listed = re.findall(
        r"^    (\w[\w ]+?)  +\S",
        ast.get_docstring(TREE, clean=False).split("those above it:")[1],
        re.MULTILINE,
    )
    assert listed == rooms


def test_rooms_use_only_rooms_above_them():
    room, rooms = room_of_line()
    defined = {}
    for node in TREE.body:
        targets = (
            [node]
            if hasattr(node, "name")
            else [t for t in getattr(node, "targets", [getattr(node, "target", None)])]
        )
        for target in targets:
            name = getattr(target, "name", getattr(target, "id", None))
            if name and not isinstance(node, ast.Import | ast.ImportFrom):
                defined.setdefault(name, room(node.lineno))
    for node in free_names(TREE, set()):
        if node.id in defined and not hasattr(builtins, node.id):
            assert defined[node.id] <= room(node.lineno), (
                f"line {node.lineno}: {node.id} is of the lower room {rooms[defined[node.id]]}"
            )


def free_names(node, bound):
    """The names that a tree reads, without those that the functions around them bind."""
    for child in ast.iter_child_nodes(node):
        inner = bound
        if isinstance(child, ast.FunctionDef | ast.Lambda):
            inner = (
                bound
                | {n.arg for n in ast.walk(child) if isinstance(n, ast.arg)}
                | {
                    n.id
                    for n in ast.walk(child)
                    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
                }
            )
        if (
            isinstance(child, ast.Name)
            and isinstance(child.ctx, ast.Load)
            and child.id not in bound
        ):
            yield child
        yield from free_names(child, inner)


def test_functions_fit_forty_lines():
    long = [
        f"{file.name}: {function.name} has {house.length(function)} lines"
        for file in house.files()
        for function in house.functions(ast.parse(file.read_text()))
        if house.length(function) > 40
    ]
    assert long == []


def test_the_house_is_shown_in_figures():
    done = subprocess.run(
        [sys.executable, "benchmarks/house.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for file in house.files():
        assert str(file.relative_to(ROOT)) in done.stdout


# --- files import in one direction ------------------------------------------------------------------------


def test_routines_import_nothing_of_the_servers():
    assert house.graph()["routines"] == []


def test_the_core_imports_extensions_through_the_seam_alone():
    assert house.graph()["serving"] == ["routines", "serving_extensions"]
    seams = [
        (function.name, node.args[0].value)
        for function in house.functions(TREE)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "sibling"
    ]
    assert seams == [("installed", "serving_extensions")]


def test_one_file_of_the_extensions_knows_where_the_core_is():
    edges = house.graph()
    assert [name for name, others in edges.items() if "serving" in others] == ["core"]
    assert [name for name, others in edges.items() if "routines" in others] == ["serving"]
    for file in (ROOT / "serving_extensions").glob("*.py"):
        absolute = {"serving", "routines", "serving_extensions"} if file.stem != "core" else set()
        for name in house.imported(ast.parse(file.read_text())):
            assert name.split(".")[0] not in absolute, f"{file.name}: {name}: import it relatively"


def test_no_cycle_among_files():
    edges = house.graph()
    edges["serving"].remove("serving_extensions")  # `installed()`, the one seam
    left = dict(edges)
    while free := [name for name, others in left.items() if not set(others) & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}, "these import each other"


# Who imports a module whose name is data, and why.
BY_NAME = {
    ("serving.py", "sibling"): "the files beside serving.py, in the package that it is in",
    (
        "serving.py",
        "import_operations",
    ): "`import_modules` of a config: modules that bring operations",
    ("routines.py", "import_module"): "`routine_modules` of a config",
    ("serving.py", "import_once"): "calls the above",
    ("handlers.py", "import_"): "imports of a handler's project that are none of its files",
    (
        "handlers.py",
        "import_source",
    ): "`function` of a handler: a module of its project, or Python's",
}


def test_only_what_a_config_names_is_imported_by_a_string():
    found = set()
    for file in house.files():
        for function in house.functions(ast.parse(file.read_text())):
            for node in ast.walk(function):
                called = node.func if isinstance(node, ast.Call) else None
                name = getattr(called, "attr", getattr(called, "id", ""))
                if name in ("import_module", "__import__", "run_path", "run_module"):
                    found.add((file.name, function.name))
    assert found == set(BY_NAME)


# --- one name, one meaning --------------------------------------------------------------------------------

# Names that several files have at their top level, and why; with the files where it is not any.
SHARED = {
    ("logger", None): "the one logger of that name, `serving`",
    ("EXTENSION", None): "what a file adds, for the list in serving_extensions/__init__.py",
    ("Shape", ("pipelines", "routines")): "the same; pipelines need no routines.py",
}


def top_names(tree):
    """What a file defines at its top level: classes, functions, constants."""
    for node in tree.body:
        if hasattr(node, "name"):
            yield node.name
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                yield target.id


def test_a_name_means_one_thing():
    """A hook's name is its function's; all else is named once, or listed with its reason."""
    hooks = {field.name for field in serving.dataclasses.fields(serving.Extension)}
    where = {}
    for file in house.files():
        for name in set(top_names(ast.parse(file.read_text()))) - hooks:
            where.setdefault(name, []).append(file.stem)
    several = {name: tuple(sorted(files)) for name, files in where.items() if len(files) > 1}
    assert {name: files for name, files in several.items() if (name, None) not in SHARED} == {
        name: files for name, files in SHARED if files
    }
    for file in house.files()[2:]:
        tree = ast.parse(file.read_text())
        plugged = {
            node.id
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Extension"
            for node in ast.walk(call)
            if isinstance(node, ast.Name)
        }
        assert set(top_names(tree)) & hooks <= plugged, f"{file.name}: named as a hook, and none"


# --- what a part of the files says of the others ----------------------------------------------------------


def test_the_core_names_what_its_extensions_declare():
    there = serving.installed()
    sections = [(section, f"{one.name}.py") for one in there for section in one.sections]
    commands = [(name, f"{one.name}.py") for one in there for name in one.commands]
    assert sorted(sections) == sorted(serving.SECTION_FILES.items())
    assert sorted(commands) == sorted(serving.COMMAND_FILES.items())
    for _, file in sections + commands:
        assert (ROOT / "serving_extensions" / file).is_file()


def test_no_function_spells_a_url():
    """All derive from the one table: `url_of`."""
    rows = serving.routes_of(serving.installed())
    urls = [url for row in rows for url in serving.spellings(row.url)]
    words = {re.escape(word) for url in urls for word in re.findall(r"/([\w.-]+)", url)}
    spelled = re.compile(rf"/(?:{'|'.join(words)})(?![\w.-])")
    found = [
        (file.name, function.name)
        for file in house.files()
        for function in house.functions(ast.parse(file.read_text()))
        for node in ast.walk(
            ast.Module(function.body[ast.get_docstring(function) is not None :], [])
        )
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if spelled.search(node.value)
    ]
    assert found == [("serving.py", "_files_to_load")]  # tells what to do; the table lies below it


def test_what_a_model_is_loaded_by_is_declared_with_its_fields():
    """The others say what is served of it, and when it is in memory, or nothing."""
    fields = serving.dataclasses.fields(serving.ModelConfig)
    others = {one.name for one in fields if not one.metadata["loads"]}
    served = {"name", "model_version_policy", "version_labels", "idle_seconds", "pinned"}
    assert others - served == {
        one.name for one in fields if one.metadata["doc"] == serving.NO_EFFECT
    }


# --- what is known of a call travels with it -------------------------------------------------------------

# Where something is of a thread, or of a context, and why.
OF_A_THREAD = {
    (
        "routines.py",
        "contextvars",
    ): "`@routine` and `@family` run while a module is imported, by a statement without arguments",
    (
        "serving.py",
        "contextvars",
    ): "a site's middleware may keep a span or an id there, for what is noted after the answer",
    ("serving.py", "respond"): "flask.request: Flask calls a view without it",
    (
        "endpoints.py",
        "contextvars",
    ): "a site's function asks flask.g, which Flask keeps there, also in a thread of ours",
    (
        "handlers.py",
        "contextvars",
    ): "an `async` function asks flask.g or the like, also in a thread of ours",
    ("serving.py", "unknown"): "flask.request: and an error's handler",
}
HIDDEN = {"current_app", "g", "session", "has_request_context", "local"}


def of_a_thread(tree):
    """What a tree asks of the thread it runs in: modules, and functions that ask Flask's proxies."""
    for name in house.imported(tree):
        module, _, part = name.rpartition(".")
        if "contextvars" in name or module in ("threading", "_thread", "flask") and part in HIDDEN:
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("local", "_local", "current_app"):
            yield ast.unparse(node)
    if "flask.request" in house.imported(tree):
        asked = {node for node in free_names(tree, set()) if node.id == "request"}
        for node in asked:
            inner = [one for one in house.functions(tree) if node in ast.walk(one)]
            yield min(inner, key=house.length).name


def test_nothing_is_kept_for_a_thread():
    found = {
        (file.name, name)
        for file in house.files()
        for name in of_a_thread(ast.parse(file.read_text()))
    }
    assert found == set(OF_A_THREAD)


@pytest.mark.parametrize(
    "source",
    [
        "import threading\nx = threading.local()",
        "from threading import local",
        "from flask import g",
        "import contextvars",
        "import flask\nflask.current_app",
        "from flask import request\ndef view():\n    return request.path",
    ],
)
def test_what_is_of_a_thread_is_seen(source):
    assert list(of_a_thread(ast.parse(source)))


# --- private and undocumented names of libraries ----------------------------------------------------------

# Modules of libraries that their documentation does not have: all that is imported from them is listed.
UNDOCUMENTED = re.compile(
    r"(waitress\.\w|tensorflow\.(python|core)\b|flask\.sansio\b|\w+(\.\w+)*\._(?!_))"
)
# Underscores that documents have: namedtuple's, Werkzeug's proxies', Python's os.
DOCUMENTED = {"_replace", "_asdict", "_fields", "_get_current_object", "_exit"}

# (file, name) -> why. What can be asked in public is asked there.
PRIVATE = {
    # TensorFlow
    (
        "serving.py",
        "tensorflow.python.saved_model.loader_impl",
    ): "reads saved_model.pb and .pbtxt without loading the graph; the public loaders do both",
    (
        "serving.py",
        "tensorflow.python.framework.op_def_registry",
    ): "whether an operation is there and has a state: `definition_of`",
    (
        "serving.py",
        "tensorflow.python.ops.script_ops",
    ): "the registry of Python functions that graphs call: `is_registered`",
    ("serving.py", "_py_funcs"): "that registry",
    (
        "serving.py",
        "_make_callable_from_options",
    ): "a call of 10 us; Session.make_callable, which is public, takes 300",
    (
        "serving.py",
        "tensorflow.core.protobuf.config_pb2",
    ): "CallableOptions of that call; tf.compat.v1 has other messages of this file only",
    (
        "serving.py",
        "tensorflow.core.protobuf.saved_model_pb2",
    ): "SavedModel, the message of the file",
    (
        "serving.py",
        "tensorflow.core.protobuf.trackable_object_graph_pb2",
    ): "which variables a checkpoint holds, by their names in the graph",
    ("serving.py", "tensorflow.core.framework.types_pb2"): "numbers of dtypes to names: DT_FLOAT",
    ("warmup.py", "tensorflow.core.framework.tensor_pb2"): "TensorProto, in warm-up files",
    (
        "freezing.py",
        "tensorflow.python.framework.convert_to_constants",
    ): "freezes a session's graph; the public one takes functions of TF2 alone",
    (
        "freezing.py",
        "tensorflow.python.eager.context",
    ): "the options that TensorFlow opens sessions with, to add one",
    # waitress: documented is `waitress.serve`, which neither stops nor tells its port
    ("serving.py", "waitress.wasyncore"): "a turn of its loop, so that it can be ended",
    ("serving.py", "waitress.adjustments.Adjustments"): "its options, as its servers take them",
    ("serving.py", "waitress.channel.HTTPChannel"): "which connections still answer, at the end",
    ("serving.py", "waitress.server.TcpWSGIServer"): "a server over a socket of ours",
    ("serving.py", "waitress.task.ThreadedTaskDispatcher"): "its threads, to be waited for",
    ("connections.py", "waitress.channel.HTTPChannel"): "a connection, with limits of its own",
    ("connections.py", "waitress.channel.ClientDisconnected"): "what it raises for one that left",
    ("connections.py", "waitress.parser.HTTPRequestParser"): "stricter about HTTP read in two ways",
    ("connections.py", "waitress.parser.ParsingError"): "which answers 400",
    ("connections.py", "waitress.parser.TransferEncodingNotImplemented"): "which answers 501",
    (
        "connections.py",
        "waitress.proxy_headers.PROXY_HEADERS",
    ): "which headers it trusts a proxy in",
    ("connections.py", "waitress.receiver.ChunkedReceiver"): "bounds what chunks carry beside data",
    (
        "connections.py",
        "waitress.server.TcpWSGIServer",
    ): "accepts all that wait; rests without files",
    ("connections.py", "waitress.utilities.BadRequest"): "answers of its own: 400",
    ("connections.py", "waitress.utilities.RequestEntityTooLarge"): "and 413",
    ("connections.py", "_map"): "how many connections there are, as its own limit counts them",
    ("queueing.py", "waitress.task.Task"): "a request that is refused in the queue",
    ("queueing.py", "waitress.task.WSGITask"): "a request that is answered",
    ("queueing.py", "waitress.utilities.Error"): "the form of its error pages",
    # Python
    (
        "serving.py",
        "_srcfile",
    ): "turns off the search for a line's file, as the logging HOWTO says (Optimization)",
}


def own_names():
    """What our classes and functions name with an underscore themselves."""
    names = set()
    for file in house.files():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                if getattr(node.value, "id", "") == "self":
                    names.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign):
                names.add(getattr(node.target, "id", ""))
    return names


def private_names(tree, own):
    """The private or undocumented names of libraries in a tree.

    Seen are imports, attributes, and those that `getattr`, `setattr` or `set` name. Not seen: an
    undocumented attribute without underscore, and one that has the name of an attribute of ours.
    """
    for name in house.imported(tree):
        if UNDOCUMENTED.match(name):
            yield name
    for node in ast.walk(tree):
        name = getattr(node, "attr", "") if isinstance(node, ast.Attribute) else ""
        if isinstance(node, ast.Call) and len(node.args) > 1:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if called in ("getattr", "setattr", "hasattr", "set"):
                name = getattr(node.args[1], "value", "")
        if isinstance(name, str) and re.match("_[a-z]", name) and name not in own | DOCUMENTED:
            yield name
    yield from re.findall(r"\b(?:tf|tensorflow\(\))\.(?:python|_\w+)[\w.]*", ast.unparse(tree))


def test_private_names_of_libraries_are_those_listed():
    own = own_names()
    found = {
        (file.name, name)
        for file in house.files()
        for name in private_names(ast.parse(file.read_text()), own)
    }
    assert found - set(PRIVATE) == set(), "new: ask in public, or list it with its reason"
    assert set(PRIVATE) - found == set(), "no longer used"


@pytest.mark.parametrize(
    "source",
    [
        "from waitress.task import Task",
        "import tensorflow.python.ops",
        "from tensorflow.core.framework import graph_pb2",
        "import flask\nflask.g._get",
        "getattr(session, '_session')",
        "from numpy._core import multiarray",
        "tensorflow().python.eager",
    ],
)
def test_a_new_private_name_is_seen(source):
    assert list(private_names(ast.parse(source), set()))


# --- TensorFlow, format, types ----------------------------------------------------------------------------


def test_one_function_imports_tensorflow():
    importers = [
        function.name
        for function in ast.walk(TREE)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import) and any(a.name == "tensorflow" for a in node.names)
    ]
    assert importers == ["import_tensorflow"]


def test_importing_serving_does_not_import_tensorflow():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import serving; print('tensorflow' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False\n"
    )


def test_format_lint_and_types():
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


# --- what stands beside the house -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file",
    [
        file.relative_to(ROOT)
        for folder in ("benchmarks", "deploy", "docs", "examples")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if "made" not in file.parts
    ],
    ids=str,
)
def test_what_a_script_asks_the_server_for_is_there(file):
    imported, missing = {}, []
    tree = ast.parse((ROOT / file).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {
                one.name: one.name for one in node.names if one.name in ("serving", "routines")
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "serving_extensions":
            imported |= {one.name: f"serving_extensions.{one.name}" for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = imported.get(node.value.id)
            if module and not hasattr(importlib.import_module(module), node.attr):
                missing.append(f"{node.value.id}.{node.attr}")
    assert not missing
