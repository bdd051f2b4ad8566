"""handlers.py: modules imported for their handlers, calls, and results as JSON or bytes."""

import asyncio
import collections
import contextvars
import dataclasses
import datetime
import decimal
import enum
import gc
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import threading
import types
import uuid
from http import HTTPStatus

import flask
import numpy as np
import pytest
from conftest import image_bytes
from PIL import Image

import serving
from serving_extensions.handlers import Handler, HandlerError
from serving_extensions.results import to_answer, to_content


@pytest.fixture(autouse=True)
def tidy(monkeypatch, tmp_path):
    """Leave the folders and modules of one test to no other."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name, module in sys.modules.copy().items():  # a copy at once: other threads import
        places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", [])]
        if any(str(place).startswith(str(tmp_path)) for place in places):
            del sys.modules[name]


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def load_edited(handler):
    """Load a handler again, whose files have a line more."""
    for file in handler.folder.rglob("*.py"):
        file.write_text(file.read_text() + "\n")
    return handler.load()


def loaded(folder, function, model_dir=None):
    handler = Handler(function, folder, model_dir)
    assert handler.load()
    return handler


def fails(handler, message):
    with pytest.raises(HandlerError) as caught:
        handler.load()
    assert str(caught.value) == message == handler.error
    return caught.value


def test_a_file_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(write(tmp_path / "home", at_home="def f(x):\n    return x")))
    assert loaded(tmp_path, "~/at_home.py:f").call(3, None) == 3


# What is imported


@pytest.mark.parametrize(
    "function",
    [
        "main:double",
        "main.py:double",
        "src/main.py:double",
        "src.main:double",
        "kit:double",
        "main:Math.double",
    ],
)
def test_a_function_is_found_by_module_file_and_package(tmp_path, function):
    body = "def double(x):\n    return 2 * x\nclass Math:\n    double = staticmethod(double)\n"
    write(tmp_path, main=body, src__in__main=body, kit__in____init__=body)
    assert loaded(tmp_path, function).call(21, None) == 42


def test_a_callable_is_a_handler_at_once():
    handler = Handler(lambda x: x + 1, ".")
    assert not handler.ready
    assert handler.load() and not handler.load()
    assert handler.ready and handler.call(1, None) == 2


def test_an_installed_module_serves_when_no_file_has_the_name(tmp_path):
    assert loaded(tmp_path, "json:dumps").call([1], None) == "[1]"
    assert loaded(tmp_path, "werkzeug.utils:secure_filename").call("a/b", None) == "a_b"


def test_a_file_beside_the_config_comes_before_an_installed_module(tmp_path):
    write(tmp_path, yaml="def f(x):\n    return 'mine'\n", json="def f(x):\n    return 'mine'\n")
    assert (
        loaded(tmp_path, "yaml:f").call(0, None)
        == loaded(tmp_path, "json:f").call(0, None)
        == "mine"
    )
    assert json.loads("[1]") == [1] and sys.modules["json"] is json


@pytest.mark.parametrize(
    "function, message",
    [
        ("main", """expected "module:name" or "file.py:name", got 'main'"""),
        (":f", """expected "module:name" or "file.py:name", got ':f'"""),
        (7, "expected a function, got int"),
        ("gone.py:f", "gone.py: no such file beside the config"),
        ("a\0b.py:f", "a\0b.py: no such file beside the config"),
        ("gone:f", "gone: no such module beside the config or installed"),
        ("gone.deeper:f", "gone.deeper: no such module beside the config or installed"),
        ("../a b:f", "../a b: expected a file ending with .py or the name of a module"),
        ("main:g", "main: has no 'g'"),
        ("main:number", "main: expected 'number' to be a function, got int"),
        (
            "main:none",
            "main:none: expected a function of (inputs) or (inputs, context), got one of ()",
        ),
        (
            "main:three",
            "main:three: expected a function of (inputs) or (inputs, context), got one of (a, b, c)",
        ),
    ],
)
def test_what_cannot_be_a_handler_is_told(tmp_path, function, message):
    write(
        tmp_path,
        main="number = 1\ndef none(): pass\ndef three(a, b, c): pass\nasync def later(x): pass\n",
    )
    handler = Handler(function, tmp_path)
    fails(handler, message)
    assert not handler.ready


@pytest.mark.parametrize(
    "body, message",
    [
        ("import torch_of_ours", "main.py: ModuleNotFoundError: No module named 'torch_of_ours'"),
        ("def f(x) return", "main.py: SyntaxError: expected ':' (main.py, line 1)"),
        (
            "open(__file__ + '.weights')",
            "main.py: FileNotFoundError: No such file or directory: main.py.weights",
        ),
        (
            "raise ValueError(f'no weights in {__file__}, or\\nso')",
            "main.py: ValueError: no weights in main.py, or so",
        ),
        (
            "raise ValueError('see https://example.org/a/b')",
            "main.py: ValueError: see https://example.org/a/b",
        ),
        ("import sys; sys.exit(3)", "main.py: it called sys.exit(3)"),
        ("class Odd(BaseException): pass\nraise Odd('!')", "main.py: Odd: !"),
        ("class Mute(Exception):\n    def __str__(self): 1 / 0\nraise Mute", "main.py: Mute"),
        ("raise ValueError('x' * 1000)", "main.py: ValueError: " + "x" * 497 + "..."),
    ],
)
def test_a_failing_import_tells_its_reason_without_paths(tmp_path, body, message):
    fails(Handler("main:f", write(tmp_path / "a folder", main=body)), message)
    assert "main" not in sys.modules


@pytest.mark.parametrize("name", ["KeyboardInterrupt", "GeneratorExit", "asyncio.CancelledError"])
def test_a_module_that_raises_no_exception_fails_to_import_and_nothing_else(tmp_path, name):
    fails(
        Handler("main:f", write(tmp_path, main=f"import asyncio\nraise {name}")),
        f"main.py: {name.split('.')[-1]}",
    )


# What it finds while it is imported, and what it leaves


def test_model_dir_is_set_during_the_import_only(tmp_path, monkeypatch):
    write(
        tmp_path,
        main="import os\nDIR = os.getenv('MODEL_DIR')\ndef f(x):\n    return DIR, os.getenv('MODEL_DIR')\n",
    )
    monkeypatch.delenv("MODEL_DIR", raising=False)
    assert loaded(tmp_path, "main:f", "model").call(0, None) == (str(tmp_path / "model"), None)
    assert loaded(tmp_path, "main:f").call(0, None) == (None, None)
    monkeypatch.setenv("MODEL_DIR", "/outer")
    assert loaded(tmp_path, "main:f", tmp_path / "other").call(0, None) == (
        str(tmp_path / "other"),
        "/outer",
    )


@pytest.mark.parametrize("ending", ["", "\nraise ValueError"])
def test_an_import_leaves_the_environment_and_the_hosts_modules_as_they_were(
    tmp_path, monkeypatch, ending
):
    monkeypatch.delenv("MODEL_DIR", raising=False)
    write(
        tmp_path,
        main=f"import sys, helper, bare.inner\nassert {str(tmp_path)!r} not in sys.path\ndef f(x): return helper.name{ending}\n",
        helper="name = 'helper'",
        bare__in__inner="",
    )
    path, modules = list(sys.path), dict(sys.modules)
    before = list(sys.meta_path), dict(os.environ), sys.dont_write_bytecode
    handler = Handler("main:f", tmp_path, "model")
    if ending:
        fails(handler, "main.py: ValueError")
    else:
        assert handler.load() and load_edited(handler) and handler.call(0, None) == "helper"
    assert (list(sys.meta_path), dict(os.environ), sys.dont_write_bytecode) == before
    added = {name.partition(".")[2] for name in set(sys.modules) - set(modules)}
    assert sys.path == path and all(sys.modules[n] is module for n, module in modules.items())
    assert added == (set() if ending else {"", "main", "helper", "bare", "bare.inner"})
    del handler
    gc.collect()
    assert dict(sys.modules) == modules
    assert list(tmp_path.rglob("*.pyc")) == []


def test_a_neighbour_is_imported_in_the_function(tmp_path):
    write(
        tmp_path,
        main="def f(x):\n    import helper\n    from kit.part import name\n    return helper.name + name",
        helper="name = 'h'",
        kit__in____init__="",
        kit__in__part="name = 'p'",
    )
    assert loaded(tmp_path, "main:f").call(0, None) == "hp"
    (tmp_path / "src").mkdir()
    write(
        tmp_path,
        src__in__other="def f(x):\n    import beside, above\n    return beside.name + above.name",
        src__in__beside="name = 'b'",
        above="name = 'a'",
    )
    assert loaded(tmp_path, "src/other.py:f").call(0, None) == "ba"


@pytest.mark.parametrize("function", ["main:f", "main.py:f", "kit.main:f", "json.py:f"])
def test_an_instance_of_a_class_of_the_module_is_pickled(tmp_path, function):
    body = "import pickle\nclass Model:\n    pass\ndef f(x): return type(pickle.loads(pickle.dumps(Model()))) is Model"
    write(tmp_path, main=body, json=body, kit__in__main=body)
    write(tmp_path / "second", main=body.replace("Model", "Other"), unlike="def f(x): pass")
    handler = loaded(tmp_path, function)
    assert handler.call(0, None) is True
    assert load_edited(handler) and handler.call(0, None) is True
    loaded(tmp_path / "second", "unlike:f")
    assert handler.call(0, None) is True


def test_a_pickle_of_a_neighbours_class_is_read_where_python_finds_it(tmp_path, monkeypatch):
    write(tmp_path, its_classes="class Model:\n    pass")
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import pickle, its_classes; pickle.dump(its_classes.Model(), open('model.pickle', 'wb'))",
        ],
        cwd=tmp_path,
        check=True,
    )
    body = "import pickle\nwith open(%r, 'rb') as file:\n    MODEL = pickle.load(file)\ndef f(x): return type(MODEL).__module__"
    write(tmp_path, main=body % str(tmp_path / "model.pickle"))
    fails(
        Handler("main:f", tmp_path),
        "main.py: ModuleNotFoundError: No module named 'its_classes' (its_classes is beside it, "
        "but only import statements look there: a pickle, or importlib, needs its folder on "
        "PYTHONPATH)",
    )
    monkeypatch.syspath_prepend(tmp_path)  # as PYTHONPATH does, and `python -m serving` there
    assert loaded(tmp_path, "main:f").call(0, None) == "its_classes"


def test_the_module_has_a_name_of_its_own_beside_the_hosts(tmp_path, monkeypatch):
    host = types.ModuleType("main")
    monkeypatch.setitem(sys.modules, "main", host)
    handler = loaded(write(tmp_path, main="class Model: pass\ndef f(x): return Model()"), "main:f")
    model = handler.call(0, None)
    assert type(pickle.loads(pickle.dumps(model))) is type(model) and type(
        model
    ).__module__.endswith(".main")
    assert load_edited(handler) and sys.modules["main"] is host


def test_two_projects_have_their_own_utils_also_in_their_functions(tmp_path):
    body = """import utils
from late import *
def f(x):
    import late, late.deep as deep
    from late import deep as again
    return utils.name + late.name + deep.name + shown + str(again is deep)
"""
    for name in ("a", "b"):
        late = f"from . import deep\nname = {name!r}\nshown = {name!r}"
        files = {
            "utils": f"name = {name!r}",
            "late__in__deep": f"from .. import utils\nname = {name!r}",
        }
        write(tmp_path / name, main=body, late__in____init__=late, **files)
    first, second = loaded(tmp_path / "a", "main:f"), loaded(tmp_path / "b", "main:f")
    assert first.call(0, None) == "aaaaTrue" and second.call(0, None) == "bbbbTrue"
    assert load_edited(first) and first.call(0, None) == "aaaaTrue"
    assert second.call(0, None) == "bbbbTrue"


def test_an_old_version_finds_its_own_neighbours_while_a_call_lasts(tmp_path):
    body = "def f(step):\n    step()\n    import helper\n    return helper.name"
    handler = loaded(write(tmp_path, main="import helper\n" + body, helper="name = 1"), "main:f")

    def change():
        write(tmp_path, helper="name = 2")
        assert handler.load()

    assert handler.call(change, None) == 1 and handler.call(lambda: None, None) == 2


def test_a_bare_folder_of_the_name_of_what_is_installed_is_not_taken_for_it(tmp_path):
    (tmp_path / "yaml").mkdir()
    (tmp_path / "waitress").mkdir()
    body = "import yaml, waitress\ndef f(x): return [yaml.__name__, waitress.__name__]"
    assert loaded(write(tmp_path, main=body), "main:f").call(0, None) == ["yaml", "waitress"]


def test_circular_imports_of_neighbours_work_as_in_python(tmp_path):
    files = {
        "kit__in____init__": "from kit.a import A\nfrom kit import b",
        "kit__in__a": "import kit.b\nfrom . import b\nA = 1\ndef f(): return b.B",
        "kit__in__b": "import main, kit.a as a\nB = 2",
    }
    body = "import kit\ndef f(x): return kit.a.f(), kit.A, kit.b.main.f is f"
    assert loaded(write(tmp_path, main=body, **files), "main:f").call(0, None) == (2, 1, True)


@pytest.mark.parametrize("first", ["import helper\n", ""])
def test_a_module_may_wait_for_threads_that_import_its_neighbours(tmp_path, first):
    body = """
from concurrent.futures import ThreadPoolExecutor
def part(x):
    from helper import name
    return name
def other(x):
    from kit.part import name
    return name
with ThreadPoolExecutor(1) as pool:
    NAMES = list(pool.map(part, [1, 2])) + [pool.submit(other, 1).result()]
def f(x): return NAMES
"""
    write(tmp_path, main=first + body, helper="name = 'h'", kit__in__part="name = 'p'")
    assert load_within(tmp_path).call(0, None) == ["h", "h", "p"]


def load_within(folder, seconds=60):
    done, handler = threading.Event(), Handler("main:f", folder)
    threading.Thread(target=lambda: handler.load() and done.set(), daemon=True).start()
    assert done.wait(seconds)
    return handler


def test_threads_that_wait_for_each_others_modules_take_half_of_one(tmp_path):
    body = """import threading
barrier = threading.Barrier(2)
threads = [threading.Thread(target=__import__, args=(name,)) for name in ("a", "b")]
for one in threads: one.start()
for one in threads: one.join()
import a, b
def f(x): return a.name, b.name, a.b is b and b.a is a
"""
    part = "import sys\nbarrier = sys.modules[__name__.rpartition('.')[0] + '.main'].barrier\n"
    part += "barrier.wait(60)\nimport {1}\nname = '{0}'\n"
    write(tmp_path, main=body, a=part.format("a", "b"), b=part.format("b", "a"))
    assert load_within(tmp_path).call(0, None) == ("a", "b", True)


def test_a_missing_name_or_neighbour_is_told_as_python_tells_it(tmp_path):
    write(tmp_path, helper="", kit__in____init__="")
    for body, message in [
        ("from helper import gone", "ImportError: cannot import name 'gone' from 'helper'"),
        ("from kit import gone", "ImportError: cannot import name 'gone' from 'kit'"),
        ("import kit.gone", "ModuleNotFoundError: No module named 'kit.gone'"),
        ("import helper.gone", "ModuleNotFoundError: No module named 'helper.gone'"),
        ("from ..kit import x", "ImportError: attempted relative import beyond top-level package"),
    ]:
        with pytest.raises(HandlerError) as caught:
            Handler("main:f", write(tmp_path, main=body)).load()
        assert str(caught.value).startswith(f"main.py: {message}")
        assert "beside" not in str(caught.value)


@pytest.mark.parametrize("files", [{}, {"kit__in____init__": ""}])
def test_two_projects_have_parts_of_their_own_in_a_package_of_one_name(tmp_path, files):
    for name in ("a", "b"):
        write(
            tmp_path / name,
            main="from kit import part\ndef f(x): return part.name",
            kit__in__part=f"name = {name!r}",
            **files,
        )
    handlers = [loaded(tmp_path / name, "main:f") for name in ("a", "b")]
    assert [handler.call(0, None) for handler in handlers] == ["a", "b"]
    assert [load_edited(handler) and handler.call(0, None) for handler in handlers] == ["a", "b"]


def test_two_handlers_of_one_package_are_both_pickled(tmp_path):
    body = "import pickle\nclass Model:\n    pass\ndef f(x): return type(pickle.loads(pickle.dumps(Model()))) is Model"
    write(tmp_path, kit__in____init__="", kit__in__one=body, kit__in__two=body)
    handlers = [loaded(tmp_path, f"kit.{name}:f") for name in ("one", "two")]
    assert [handler.call(0, None) for handler in handlers] == [True, True]


def test_a_file_named_as_one_of_pythons_own_modules_is_no_neighbour(tmp_path):
    write(tmp_path, main="import colorsys\ndef f(x): return colorsys.__file__", colorsys="")
    sys.modules.pop("colorsys", None)
    assert str(tmp_path) not in loaded(tmp_path, "main:f").call(0, None)


def test_a_module_of_another_project_is_not_taken_for_an_installed_one(tmp_path):
    loaded(write(tmp_path / "a", main="def f(x): pass"), "main:f")
    fails(
        Handler("main:f", write(tmp_path / "b", other="")),
        "main: no such module beside the config or installed",
    )


def test_handlers_of_two_folders_have_neighbours_of_one_name(tmp_path, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "helper", types.ModuleType("helper")
    )  # the host has one as well
    for name in ("a", "b"):
        write(
            tmp_path / name,
            main="import helper\ndef f(x): return helper.name",
            helper=f"name = {name!r}",
        )
    handlers = [loaded(tmp_path / name, "main:f") for name in ("a", "b")]
    assert [handler.call(0, None) for handler in handlers] == ["a", "b"]
    assert not hasattr(sys.modules["helper"], "name")


def test_a_file_in_a_folder_finds_the_neighbours_of_both(tmp_path):
    write(
        tmp_path,
        src__in__main="import utils, common\ndef f(x): return utils.name + common.name",
        src__in__utils="name = 'u'",
        common="name = 'c'",
    )
    assert loaded(tmp_path, "src/main.py:f").call(0, None) == "uc"


def test_relative_imports_work_in_a_package(tmp_path):
    write(
        tmp_path,
        kit__in____init__="",
        kit__in__main="from .parts import name\ndef f(x): return name",
        kit__in__parts="name = 'part'",
    )
    assert loaded(tmp_path, "kit.main:f").call(0, None) == "part"


def test_handlers_of_one_file_share_its_module_unless_the_model_differs(tmp_path):
    write(tmp_path, main="box = []\ndef f(x): return box\ndef g(x): return box")
    f, g, other = (
        loaded(tmp_path, "main:f", "m"),
        loaded(tmp_path, "main.py:g", "m"),
        loaded(tmp_path, "main:f", "n"),
    )
    assert f.call(0, None) is g.call(0, None) is not other.call(0, None)
    assert load_edited(f) and g.load()  # one import for both
    assert f.call(0, None) is g.call(0, None)


def test_the_running_server_is_not_imported_again_from_a_copy_beside(tmp_path):
    write(
        tmp_path,
        serving="raise ValueError('a second server')",
        main="import serving\ndef f(x): return serving",
    )
    assert loaded(tmp_path, "main:f").call(0, None) is serving


def test_a_host_module_of_that_very_file_is_shared(tmp_path, monkeypatch):
    write(tmp_path, hostapp="count = []", main="import hostapp\ndef f(x): return hostapp")
    monkeypatch.syspath_prepend(tmp_path)
    import hostapp

    try:
        assert loaded(tmp_path, "main:f").call(0, None) is hostapp is sys.modules["hostapp"]
    finally:
        del sys.modules["hostapp"]


def test_two_threads_see_their_own_model_dir(tmp_path):
    write(
        tmp_path,
        main="import os, time\na = os.environ['MODEL_DIR']\ntime.sleep(0.02)\nb = os.environ['MODEL_DIR']\ndef f(x): return a, b",
    )
    handlers = [Handler("main:f", tmp_path, f"m{i}") for i in range(4)]
    threads = [threading.Thread(target=handler.load) for handler in handlers]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert [h.call(0, None) for h in handlers] == [(str(tmp_path / f"m{i}"),) * 2 for i in range(4)]


# Loading again


def test_an_unchanged_module_is_imported_once(tmp_path):
    write(tmp_path, main="box = []\ndef f(x): return box")
    handler = loaded(tmp_path, "main:f")
    box = handler.call(0, None)
    (tmp_path / "main.py").touch()
    assert not handler.load() and handler.call(0, None) is box
    assert load_edited(handler) and handler.call(0, None) is not box


@pytest.mark.parametrize("changed", ["main", "helper", "kit__in__part"])
def test_a_changed_file_is_imported_anew_within_the_same_second(tmp_path, changed):
    files = {
        "main": "import helper\nfrom kit import part\nX = 1\ndef f(x): return X + helper.X + part.X",
        "helper": "X = 1",
        "kit__in____init__": "",
        "kit__in__part": "X = 1",
    }
    handler = loaded(write(tmp_path, **files), "main:f")
    assert handler.call(0, None) == 3
    write(tmp_path, **{changed: files[changed].replace("X = 1", "X = 5")})
    assert handler.load() and handler.call(0, None) == 7
    assert not handler.load()


def test_a_change_of_the_same_size_within_the_same_second_is_seen(tmp_path):
    write(tmp_path, main="from helper import X\nY = 1\ndef f(x): return X, Y", helper="X = 1")
    handler = loaded(tmp_path, "main:f")
    for values, files in [
        ((2, 1), {"helper": "X = 2"}),
        ((2, 3), {"main": "from helper import X\nY = 3\ndef f(x): return X, Y"}),
    ]:
        write(tmp_path, **files)
        for name in files:
            os.utime(tmp_path / f"{name}.py", (10**9, 10**9))
        os.utime(tmp_path / "helper.py", (10**9, 10**9))
        assert handler.load() and handler.call(0, None) == values
    assert not handler.load()


def test_a_file_changed_while_it_is_imported_is_imported_anew(tmp_path):
    body = "import pathlib, helper\ndef f(x): return helper.X\nfile = pathlib.Path(helper.__file__)\nfile.write_text('X = 2')"
    handler = loaded(write(tmp_path, main=body, helper="X = 1"), "main:f")
    write(tmp_path, main="import helper\ndef f(x): return helper.X")
    assert handler.call(0, None) == 1 and handler.load() and handler.call(0, None) == 2
    assert not handler.load()


@pytest.mark.parametrize(
    "broken, message",
    [
        ("import utils, helper\n1 / 0", "main.py: ZeroDivisionError: division by zero"),
        ("import utils, helper", "main: has no 'f'"),
    ],
)
def test_a_failing_new_version_leaves_the_old_function_and_its_neighbours(
    tmp_path, broken, message
):
    body = "import pickle, utils\nclass Model:\n    pass\ndef f(x):\n    import helper, utils as again\n    pickle.dumps(Model())\n    return utils.X, helper.X, again is utils"
    handler = loaded(
        write(tmp_path, main="import helper\n" + body, utils="X = 1", helper="X = 1"), "main:f"
    )
    write(tmp_path, main=broken, utils="X = 2", helper="X = 2", added="")
    fails(handler, message)
    assert handler.ready and handler.call(0, None) == (1, 1, True)
    write(tmp_path, main=body)
    assert handler.load() and handler.call(0, None) == (2, 2, True)


def test_a_failing_change_keeps_the_old_function_and_its_repair_replaces_it(tmp_path):
    handler = loaded(write(tmp_path, main="def f(x): return 'old'"), "main:f")
    for body, message in [
        ("1 / 0", "main.py: ZeroDivisionError: division by zero"),
        ("def g(x): pass", "main: has no 'f'"),
        ("f = 3", "main: expected 'f' to be a function, got int"),
    ]:
        fails(handler, message) if write(tmp_path, main=body) else None
        assert handler.ready and handler.call(0, None) == "old"
    (tmp_path / "main.py").unlink()
    fails(handler, "main: no such module beside the config or installed")
    write(tmp_path, main="def f(x): return 'new'")
    assert handler.load() and handler.call(0, None) == "new" and handler.error == ""


def test_a_module_goes_with_its_last_handler(tmp_path):
    import weakref

    handler = loaded(
        write(tmp_path, main="class Model: pass\nmodel = Model()\ndef f(x): return model"), "main:f"
    )
    model = weakref.ref(handler.call(0, None))
    del handler
    gc.collect()
    assert model() is None


# The call


@pytest.mark.parametrize(
    "source, two",
    [
        ("lambda inputs: 0", False),
        ("lambda inputs, _: 0", True),
        ("lambda *a: 0", True),
        ("lambda a, *b: 0", True),
        ("lambda a, **b: 0", False),
        ("lambda a, context=None: 0", True),
        ("lambda a, _=None: 0", True),
        ("lambda a, top=3: 0", False),
        ("lambda a, b, c=1: 0", True),
        ("len", False),
    ],
)
def test_the_context_is_given_to_functions_that_take_two(tmp_path, source, two):
    seen = []
    code = (
        source.replace(": 0", ": seen.append(locals())")
        if "lambda" in source
        else "lambda x: seen.append(1)"
    )
    function = eval(code, {"seen": seen})
    handler = Handler(function, ".")
    handler.load()
    handler.call([1], "the context")
    assert ("the context" in str(seen)) is two


def test_the_exception_of_the_function_passes_through():
    def f(x):
        raise LookupError("mine")

    handler = Handler(f, ".")
    handler.load()
    with pytest.raises(LookupError, match="mine"):
        handler.call(0, None)


@pytest.mark.parametrize(
    "error", [SystemExit(2), GeneratorExit(), KeyboardInterrupt(), asyncio.CancelledError()]
)
def test_what_would_end_the_server_becomes_a_runtime_error(error):
    def f(x):
        raise error

    handler = Handler(f, ".")
    handler.load()
    with pytest.raises(RuntimeError, match="the handler ended with"):
        handler.call(0, None)


def test_a_result_that_ends_with_more_than_an_exception_is_a_runtime_error():
    class Odd(dict):
        def items(self):
            raise SystemExit(1)

    with pytest.raises(RuntimeError, match="the handler's result ended with"):
        to_content(Odd(a=1))


# The result


def written(result):
    """What a client reads of a result that json.dumps cannot all write: through the server's encoder."""
    value, kind = to_content(result)
    assert kind == "application/json"
    return json.loads(serving.encode_json(value))


@pytest.mark.parametrize(
    "result",
    [
        None,
        True,
        3,
        -(2**63),
        2**64 - 1,
        1.5,
        "text",
        "ü",
        [],
        {},
        [[("Positive", 93.58), ("Negative", 0.1)]],
        {"a": {"b": [1, 2.5, "x", None, True]}},
        (1, (2, [3])),
        {1: "a", 2.5: "c"},
        {True: 1, 0: 2, "z": 0},
        [float(i) for i in range(9)],
        collections.OrderedDict(a=1),
        [{}] * 3,
    ],
)
def test_plain_values_are_written_as_json_dumps_writes_them(result):
    assert written(result) == json.loads(json.dumps(result))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(3),
        np.array(True),
        np.float32(0.1),
        np.int8(-3),
        np.zeros((0, 2)),
        np.array([1, 2], ">i4"),
        np.arange(8, dtype=np.float16)[::2],
        np.array(["a", "bc"]),
        np.array([[1, "x", None]], object),
        np.array([1.5], np.longdouble),
        np.float64(2.5),
    ],
)
def test_numpy_is_written_as_its_list(array):
    expected = array.tolist() if array.dtype != np.longdouble else [1.5]
    read = np.asarray(
        written({"x": array})["x"], array.dtype
    )  # the shortest text of a float32 reads back as itself in its dtype
    assert read.tolist() == expected


def test_masked_elements_are_null():
    assert written(np.ma.array([1, 2], mask=[False, True])) == [1, None]


def test_bytes_inside_a_result_are_text():
    assert written({"a": b"x", "b": np.array([b"y", b"z"], object), "c": np.array([b"q"])}) == {
        "a": "x",
        "b": ["y", "z"],
        "c": ["q"],
    }


def test_numbers_that_are_not_finite_are_null():
    """JSON has none (RFC 8259); browsers and most clients refuse a body with NaN in it."""
    value, _ = to_content(
        {
            "a": float("nan"),
            "b": np.array([np.inf, 1]),
            "c": [1.0, float("-inf")],
            "d": np.float32("nan"),
            "e": np.array([[1, np.nan]], np.float16),
        }
    )
    text = b'{"a":null,"b":[null,1.0],"c":[1.0,null],"d":null,"e":[[1.0,null]]}'
    assert serving.encode_json(value) == text


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Box:
    left: float
    made: datetime.datetime


def test_what_flask_writes_is_written():
    day = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    number = uuid.UUID(int=1)
    assert written(
        {
            "when": day,
            "date": day.date(),
            "time": datetime.time(1, 2),
            "price": decimal.Decimal("1.10"),
            "id": number,
            "box": Box(1.5, day),
            "colour": Colour.RED,
            "many": np.array(["2020-01-01"], "datetime64[D]"),
            "took": datetime.timedelta(seconds=1.5),
        }
    ) == {
        "when": "2026-01-02T03:04:05+00:00",
        "date": "2026-01-02",
        "time": "01:02:00",
        "price": "1.10",
        "id": str(number),
        "box": {"left": 1.5, "made": "2026-01-02T03:04:05+00:00"},
        "colour": "red",
        "many": ["2020-01-01"],
        "took": 1.5,
    }


def test_pandas():
    """As DataFrame.to_json(orient="records") has it, missing values null."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2], "b": [1.5, None], "c": ["x", None]})
    frame["d"] = pandas.to_datetime(["2020-01-01", None])
    assert written(frame) == [
        {"a": 1, "b": 1.5, "c": "x", "d": "2020-01-01T00:00:00"},
        {"a": 2, "b": None, "c": None, "d": None},
    ]
    assert written({"s": frame["b"], "i": frame.index}) == {"s": [1.5, None], "i": [0, 1]}


@pytest.mark.parametrize(
    ("result", "value", "status", "headers"),
    [
        (({"error": "no"}, 404), {"error": "no"}, 404, ()),
        (("x", 201, {"Location": "/x"}), "x", 201, (("Location", "/x"),)),
        (("x", 201, [("A", "b"), ("A", "c")]), "x", 201, (("A", "b"), ("A", "c"))),
        (("cat", 0.9), ["cat", 0.9], 200, ()),
        (("cat", 9), ["cat", 9], 200, ()),
        (("no", HTTPStatus.NOT_FOUND), "no", 404, ()),
        (("no", 404, (("A", "b"), ("A", "c"))), "no", 404, (("A", "b"), ("A", "c"))),
        ((0.9, np.int64(281)), [0.9, 281], 200, ()),
        (("cat", 300, ()), ["cat", 300, []], 200, ()),
        (("cat", True), ["cat", True], 200, ()),
        (("cat", 300, (640, 480)), ["cat", 300, [640, 480]], 200, ()),
        ((1, 2, 3), [1, 2, 3], 200, ()),
    ],
)
def test_a_status_and_headers_as_in_flasks_views(result, value, status, headers):
    answer = to_answer(result)
    written_value = list(answer.value) if isinstance(answer.value, tuple) else answer.value
    assert (written_value, answer.status, answer.headers) == (value, status, headers)
    assert type(answer.status) is int


def test_a_response_of_flasks():
    answer = to_answer(flask.Response("<p>", 418, {"X-A": "b"}, content_type="text/html"))
    assert (answer.data, answer.status, answer.content_type) == (b"<p>", 418, "text/html")
    assert answer.headers == (("X-A", "b"),)
    assert to_answer((b"<p>", "text/html")).content_type == "text/html"
    assert to_answer(((b"<p>", "text/html"), 404)).status == 404


@pytest.mark.parametrize("headers", [{"A": "b\r\nC: d"}, {"A b": "c"}, {"A": "\u20ac"}])
def test_headers_that_are_none_are_refused(headers):
    with pytest.raises(HandlerError, match="headers"):
        to_answer(("x", 200, headers))


@pytest.mark.parametrize(
    ("parts", "sent", "kind"),
    [
        (["a", "ß"], "aß".encode(), "text/plain; charset=utf-8"),
        ([b"a", b"b"], b"ab", "application/octet-stream"),
        ([{"a": 1}, [2]], b'{"a":1}\n[2]\n', "application/x-ndjson"),
        ([], b"", "text/plain; charset=utf-8"),
    ],
)
def test_generators_are_streams(parts, sent, kind):
    answer = to_answer(one for one in parts)
    assert (b"".join(answer.stream), answer.content_type) == (sent, kind)
    events = to_answer(((one for one in ["data: 1\n\n"]), "text/event-stream"))
    assert (b"".join(events.stream), events.content_type) == (b"data: 1\n\n", "text/event-stream")


def test_an_async_generator_is_one_task():
    owner = contextvars.ContextVar("owner")

    async def parts():
        token, task = owner.set("mine"), asyncio.current_task()
        try:
            yield owner.get()
            yield owner.get()
        finally:
            owner.reset(token)  # ValueError in another
            ends.append(asyncio.current_task() is task)
        yield "end"

    ends = []
    assert list(to_answer(parts()).stream) == [b"mine", b"mine", b"end"]
    left = to_answer(parts()).stream
    assert next(left) == b"mine"
    del left  # its client has gone
    assert ends == [True, True]


class Tensor:
    """As a framework's: the only thing known of it is `.numpy()`."""

    def __init__(self, value):
        self.value = value

    def numpy(self):
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


def test_tensors_are_read_by_their_numpy_method():
    assert written(
        {"x": [Tensor(np.array([1, 2])), Tensor(np.float32(0.5))], "s": Tensor(b"text")}
    ) == {"x": [[1, 2], 0.5], "s": "text"}
    assert written(Tensor(np.eye(2))) == [[1.0, 0.0], [0.0, 1.0]]
    assert written(Tensor(b"text")) == "text"


def test_a_tensor_that_holds_a_picture_is_the_picture():
    assert to_content(Tensor(b"\xff\xd8\xff\xe0")) == (b"\xff\xd8\xff\xe0", "image/jpeg")


def test_tensorflow_tensors_are_written(tf):
    result = {
        "f": tf.constant([[1.5, 2.0]]),
        "i": tf.constant(3),
        "s": tf.constant(["a", "b"]),
        "h": tf.constant([1.0], tf.bfloat16),
        "r": tf.ragged.constant([[1], [2, 3]]),
        "v": tf.Variable([1.0]),
        "l": [tf.constant("x")],
    }
    assert written(result) == {
        "f": [[1.5, 2.0]],
        "i": 3,
        "s": ["a", "b"],
        "h": [1.0],
        "r": [[1], [2, 3]],
        "v": [1.0],
        "l": ["x"],
    }
    png = tf.io.encode_png(tf.zeros((2, 2, 3), tf.uint8))
    assert to_content(png) == (png.numpy(), "image/png")


@dataclasses.dataclass
class Point:
    x: int = 1


cycle: list = [1]
cycle.append({"self": cycle})
deep: list = []
for _ in range(500):
    deep = [deep]


@pytest.mark.parametrize(
    "result, message",
    [
        ({"output": [1, 2, object()]}, "$.output[2]: cannot be written as JSON: got object"),
        ({"a": {1, 2}}, "$.a: cannot be written as JSON: got set"),
        (Point, "$: cannot be written as JSON: got type"),
        ([{"a b": range(3)}], '$[0]["a b"]: cannot be written as JSON: got range'),
        ((1, pathlib.Path("/etc")), "$[1]: cannot be written as JSON: got PosixPath"),
        ({"x": {1, 2}}, "$.x: cannot be written as JSON: got set"),
        ((i for i in []), "$: cannot be written as JSON: got generator"),
        ({"x": {(1, 2): 3}}, "$.x: cannot be written as JSON: got a key that is no string: tuple"),
        ({"x": {1: 3, "1": 4}}, '$.x: cannot be written as JSON: two keys are written as "1"'),
        (cycle, "$[1].self: cannot be written as JSON: it holds itself"),
        (
            deep,
            "$"
            + "[0]" * 20
            + "...: cannot be written as JSON: got more than 200 levels of lists and objects",
        ),
        ([2**64], "$[0]: cannot be written as JSON: got an integer beyond 64 bits"),
        (["\ud800"], "$[0]: cannot be written as JSON: got a string with a lone surrogate"),
        (
            [b"\xff"],
            "$[0]: cannot be written as JSON: got bytes that are no UTF-8 text; return them alone, or as base64",
        ),
        (
            np.array(["\ud800"], object),
            "$[0]: cannot be written as JSON: got a string with a lone surrogate",
        ),
        (
            {"jpegs": np.array([[b"x", b"\xff\xd8"]], object)},
            "$.jpegs[0][1]: cannot be written as JSON: got bytes that are no UTF-8 text; return them alone, or as base64",
        ),
        ([np.array([1j])], "$[0]: cannot be written as JSON: got ndarray of complex128"),
        (np.zeros(1, [("a", int)]), "$: cannot be written as JSON: got ndarray of [('a', '<i8')]"),
        ({"o": np.array([1, range(2)], object)}, "$.o[1]: cannot be written as JSON: got range"),
        (
            Tensor(RuntimeError("requires grad")),
            "$: cannot be written as JSON: got Tensor (RuntimeError: requires grad)",
        ),
        ([Image.new("L", (1, 1))], "$[0]: cannot be written as JSON: got Image"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(result, message):
    with pytest.raises(HandlerError) as caught:
        to_content(result)
    assert str(caught.value) == message


def test_200_levels_are_written_and_a_list_may_stand_in_two_places():
    nested: list = []
    for _ in range(199):
        nested = [nested]
    assert written(nested) == nested
    shared = [1, "x"]
    assert written([shared, shared]) == [shared, shared]


@pytest.mark.parametrize(
    "format, kind",
    [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/webp"), ("GIF", "image/gif")],
)
def test_bytes_of_pictures_are_known_by_their_start(format, kind):
    data = image_bytes(Image.new("RGB", (2, 2)), format)
    assert (
        to_content(data)
        == to_content(bytearray(data))
        == to_content(memoryview(data))
        == (data, kind)
    )


def test_other_bytes_are_octets_or_what_the_handler_names():
    import wave

    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        (
            file.setnchannels(1),
            file.setsampwidth(2),
            file.setframerate(8000),
            file.writeframes(b"\0\0"),
        )
    assert to_content(sound.getvalue())[1] == "audio/wav"
    assert to_content(b"") == (b"", "application/octet-stream")
    assert to_content((b"<p>", "text/html; charset=utf-8")) == (b"<p>", "text/html; charset=utf-8")
    assert to_content((b"a", "b\r\nSet-Cookie: c/d")) == (
        ["a", "b\r\nSet-Cookie: c/d"],
        "application/json",
    )


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "I", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "HSV", "PA"]
)
def test_a_pil_image_is_a_png(mode):
    data, kind = to_content(Image.new(mode, (3, 2)))
    assert kind == "image/png" and Image.open(io.BytesIO(data)).size == (3, 2)


def test_a_truncated_pil_image_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        buffer, "JPEG"
    )
    with pytest.raises(HandlerError, match="the image cannot be written as PNG"):
        to_content(Image.open(io.BytesIO(buffer.getvalue()[:-2000])))


# The module itself


def test_what_an_enum_holds_is_written_as_anything_else():

    from serving_extensions import results

    kinds = enum.Enum("Kind", {"plain": 3, "listed": [1, 2], "odd": {1, 2}})
    assert json.loads(serving.encode_json(results.to_json([kinds.plain, kinds.listed], set()))) == [
        3,
        [1, 2],
    ]
    with pytest.raises(results.Unwritable, match="got set"):
        results.to_json(kinds.odd, set())
