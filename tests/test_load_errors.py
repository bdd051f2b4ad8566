"""Why a model cannot be loaded or fails, in TensorFlow's own words, the reason first; operations and graphs of other kinds."""

import functools
import json
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import NO_POLL, ROOT, Rest, assert_error
from test_saved_models import export

import serving


def edit(folder, change):
    """Change the first MetaGraphDef of a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / "saved_model.pb"
    stored = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    change(stored.meta_graphs[0])
    path.write_bytes(stored.SerializeToString())


def copy(source, target):
    shutil.copytree(source, target)
    return target / "1"


def export_old(tf, folder, variable, size):
    """A SavedModel as TensorFlow 1 wrote it: y = x times the first element of a variable."""
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None], "x")
        weights = tf.compat.v1.get_variable(variable, [size], use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": x * weights[0]})


def name_operation(name):
    """Give one operation of a graph another name, which TensorFlow does not know."""

    def change(graph):
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                node.op = name if node.op == "GatherV2" else node.op

    return change


@pytest.fixture(scope="module")
def made(tf, tmp_path_factory):
    """Models that cannot be loaded, each for a reason of its own, and models that fail when they are called."""
    folder = tmp_path_factory.mktemp("models")
    one = [tf.TensorSpec([None], name="x")]
    weights = tf.Variable([1.0, 2.0])

    def check(x):
        with tf.control_dependencies([tf.debugging.assert_positive(x, message="must be > 0")]):
            return {"y": tf.identity(x)}

    functions = {
        "gather": lambda x: {"y": tf.gather([1.0, 2.0], tf.cast(x, tf.int32))},
        "check": check,
        "python": lambda x: {"y": tf.numpy_function(lambda x: 1 / 0, [x], tf.float32)},
    }
    for name, function in functions.items():
        export(tf, folder / name / "1", {"serving_default": (function, one)})
    export(
        tf,
        folder / "variables" / "1",
        {"serving_default": (lambda x: {"y": x * weights[0]}, one)},
        weights=weights,
    )
    (
        copy(folder / "variables", folder / "no data") / "variables/variables.data-00000-of-00001"
    ).unlink()
    (copy(folder / "variables", folder / "corrupt") / "saved_model.pb").write_bytes(
        b"\xff\xff no model"
    )
    (copy(folder / "variables", folder / "empty") / "saved_model.pb").write_bytes(b"")
    for name, variable, size in (("old", "v", 2), ("other", "u", 2), ("five", "v", 5)):
        export_old(tf, folder / name / "1", variable, size)
    for name, source in (("key", "other"), ("shape", "five")):
        mixed = copy(folder / "old", folder / name)
        shutil.rmtree(mixed / "variables")
        shutil.copytree(folder / source / "1" / "variables", mixed / "variables")
    (copy(folder / "old", folder / "cut") / "variables/variables.data-00000-of-00001").write_bytes(
        b"xx"
    )
    for name, operation in (
        ("text", "RegexSplitWithOffsets"),
        ("addons", "Addons>Foo"),
        ("mine", "MyOwnOp"),
    ):
        edit(copy(folder / "gather", folder / name), name_operation(operation))
    return folder


def serve(folder, *names, **others):
    """A server of some of those models; they are loaded by its loader, as they are for everybody."""
    items = [{"config": {"name": name, "base_path": str(folder / name)}} for name in names]
    server = serving.ModelServer({"model_config_list": items, "server": NO_POLL, **others})
    assert server.wait(120)
    return server


def reason(server, name):
    return server.status(name)["model_version_status"][0]["status"]["error_message"]


@pytest.mark.parametrize(
    "name, text",
    [
        ("corrupt", "DecodeError: Error parsing message with type 'tensorflow.SavedModel'"),
        ("empty", "the SavedModel has no graphs: it is empty or only half copied"),
        (
            "no data",
            "<base_path>/1/variables/variables.data-00000-of-00001; No such file or directory",
        ),
        ("cut", "Read less bytes than requested"),
        ("key", "Key v not found in checkpoint"),
        ("shape", "Assign requires shapes of both tensors to match. lhs shape= [2] rhs shape= [5]"),
    ],
)
def test_the_reason_of_a_failed_load_comes_first_and_alone(made, name, text):
    found = reason(serve(made, name), name)
    assert found.startswith(text)
    for noise in (
        "\n",
        'File "',
        "Traceback",
        "Graph execution error",
        "Detected at",
        "[[",
        str(ROOT),
        str(made),
        sys.prefix,
    ):
        assert noise not in found, found


@pytest.mark.parametrize(
    "name, status, text",
    [
        ("gather", 400, "indices[0] = -1 is not in [0, 2)"),
        (
            "check",
            400,
            "assertion failed: [must be > 0.  ] [Condition x > 0 did not hold element-wise:] [x (x:0) = ] [-1 7]",
        ),
        ("python", 500, "ZeroDivisionError: division by zero"),
    ],
)
def test_the_reason_of_a_failed_call_is_answered_whole_and_alone(made, name, status, text):
    answer = Rest(serve(made, name)).post(f"/v1/models/{name}:predict", {"inputs": [-1.0, 7.0]})
    assert_error(answer, status, text)


@pytest.mark.parametrize(
    "message, text",
    [
        (
            "Graph execution error:\n\nDetected at node save/Assign defined at (most recent call last):\n"
            '  File "/x/serving.py", line 1414, in _work\n    job()\n\n  File "/x/y.py", line 3, in <module>\n\nlhs [2]\nrhs [5]\n'
            "\t [[{{node save/Assign}}]] [Op:__inference_signature_wrapper_12]",
            "lhs [2]\nrhs [5]",
        ),
        (
            "2 root error(s) found.\n  (0) INVALID_ARGUMENT: first\n\t [[{{node a}}]]\n\t [[b/_5]]\n  (1) INVALID_ARGUMENT: second\n"
            "\t [[{{node a}}]]\n0 successful operations.\n0 derived errors ignored.",
            "first",
        ),
        ("bad shape [Op:MatMul] name: \n\nFunction call stack:\nf -> g\n", "bad shape"),
        (
            "no\n\nOriginal stack trace for 'save/RestoreV2':\n  File \"/x.py\", line 1, in f\n",
            "no",
        ),
        (
            "assertion failed:\n [[1. 2.]\n  [3. 4.]]\nNode: none",
            "assertion failed:\n [[1. 2.]\n  [3. 4.]]\nNode: none",
        ),
        (
            "/data/of the exporter/vocab.txt; No such file",
            "/data/of the exporter/vocab.txt; No such file",
        ),
        (f"{sys.prefix}/lib/x.so: undefined symbol", "<python>/lib/x.so: undefined symbol"),
        ("", ""),
    ],
)
def test_what_tensorflow_writes_around_a_reason_is_left_out(message, text):
    assert serving.clean_message(message) == text


@pytest.mark.parametrize("piece", [" [Op:", "\n [[{{a]]", '\n File "", line 1'])
def test_a_message_that_quotes_its_client_is_read_once_and_cut(piece):
    """Read once for each piece, it would take hours."""
    text = f"x{piece * 300_000}"
    assert serving.AROUND.sub("", text).startswith("x")
    assert len(serving.clean_message("y" * 300_000)) == 64 << 10


# --- operations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "text",
            'Op type not registered \'RegexSplitWithOffsets\': write "import_modules": ["tensorflow_text"] into the config',
        ),
        (
            "addons",
            'Op type not registered \'Addons>Foo\': write "import_modules": ["tensorflow_addons"] into the config',
        ),
        (
            "mine",
            'Op type not registered \'MyOwnOp\': write "import_modules": ["<the module that brings it>"] into the config',
        ),
    ],
)
def test_an_unknown_operation_says_what_to_write_into_the_config(made, name, text):
    found = reason(serve(made, name), name)
    assert found.startswith(text) and "running on" not in found


def test_modules_are_imported_after_tensorflow_and_before_models(made, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "brings_operations.py").write_text(
        "import sys\nassert 'tensorflow' in sys.modules\n"
    )
    path = list(sys.path)
    server = serve(made, "variables", import_modules=["brings_operations"])
    assert "brings_operations" in sys.modules and sys.path == path
    assert server.predict("variables", {"inputs": [3.0]})["outputs"].tolist() == [3.0]


def test_a_module_that_cannot_be_imported_fails_the_models_that_need_it(
    made, tmp_path, monkeypatch, caplog
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "too_old.py").write_text(
        f"raise ImportError('{sys.prefix}/x.so: undefined symbol')"
    )
    server = serve(made, "text", "variables", import_modules=["not_installed_at_all", "too_old"])
    assert server.predict("variables", {"inputs": [3.0]})["outputs"].tolist() == [
        3.0
    ] and server.readiness() == ["text"]
    wrong = (
        "$.import_modules[0]: not_installed_at_all cannot be imported: ModuleNotFoundError: No module named 'not_installed_at_all'; "
        "$.import_modules[1]: too_old cannot be imported: ImportError: <python>/x.so: undefined symbol"
    )
    assert reason(server, "text") == f"Op type not registered 'RegexSplitWithOffsets': {wrong}"
    assert caplog.text.count("not_installed_at_all cannot be imported") >= 1


def test_threads_that_miss_a_module_at_once_log_it_once(monkeypatch):
    logged = []
    monkeypatch.setattr(
        serving.logger, "warning", lambda *given: (logged.append(given), time.sleep(0.2))
    )
    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(serving.import_operations, [("missed_by_threads",)] * 3))
    assert len(logged) == 1


def test_a_module_that_is_mended_is_imported_at_the_next_load(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mended_later.py").write_text("raise ImportError('not yet')")
    assert serving.import_operations(("mended_later",)) == [
        "$.import_modules[0]: mended_later cannot be imported: ImportError: not yet"
    ]
    (tmp_path / "mended_later.py").write_text("MENDED = True  # and longer than before\n")
    assert serving.import_operations(("mended_later",)) == []


# --- tags -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tagged(tf, tmp_path_factory):
    """A SavedModel of two graphs: `serve` doubles, `serve, tpu` triples."""
    folder = tmp_path_factory.mktemp("tagged")
    builder = tf.compat.v1.saved_model.Builder(str(folder / "both" / "1"))
    for tags, factor in ((["serve"], 2.0), (["serve", "tpu"], 3.0)):
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            x = tf.compat.v1.placeholder(tf.float32, [None], "x")
            definition = tf.compat.v1.saved_model.predict_signature_def({"x": x}, {"y": x * factor})
            add = (
                builder.add_meta_graph
                if len(tags) > 1
                else functools.partial(builder.add_meta_graph_and_variables, session)
            )
            add(tags, {"serving_default": definition})
    builder.save()
    weights = tf.Variable([1.0, 2.0])
    export(
        tf,
        folder / "alone" / "1",
        {"serving_default": (lambda x: {"y": x * weights[1]}, [tf.TensorSpec([None], name="x")])},
        weights=weights,
    )

    def change(graph):
        del graph.meta_info_def.tags[:]
        graph.meta_info_def.tags.extend(["serve", "tpu"])

    edit(folder / "alone" / "1", change)
    return folder


def ask_tagged(folder, name, tags, **fields):
    item = {
        "name": name,
        "base_path": str(folder / name),
        **({"tags": tags} if tags else {}),
        **fields,
    }
    server = serving.ModelServer({"model_config_list": [{"config": item}], "server": NO_POLL})
    assert server.wait(120)
    return server


@pytest.mark.parametrize("load", ["eager", "on_demand"])
@pytest.mark.parametrize(
    "name, tags",
    [("both", None), ("both", ["serve"]), ("both", ["tpu", "serve"]), ("alone", ["serve", "tpu"])],
)
def test_the_graph_with_the_tags_of_the_config_is_loaded(tf, tagged, name, tags, load):
    truth = tf.saved_model.load(str(tagged / name / "1"), tags=tags or ["serve"]).signatures[
        "serving_default"
    ]
    server = ask_tagged(tagged, name, tags, load=load)
    assert (
        server.predict(name, {"inputs": [1.5]})["outputs"].tolist()
        == truth(x=tf.constant([1.5]))["y"].numpy().tolist()
    )


@pytest.mark.parametrize("load", ["eager", "on_demand"])
@pytest.mark.parametrize(
    "name, tags, text",
    [
        (
            "alone",
            None,
            'no graph of the SavedModel has just the tags ["serve"]: it has ["serve", "tpu"]; write "tags": ["serve", "tpu"] '
            "into the model's config",
        ),
        (
            "both",
            ["gpu"],
            'no graph of the SavedModel has just the tags ["gpu"]: it has ["serve"], ["serve", "tpu"]; write '
            '"tags": ["serve"] into the model\'s config',
        ),
    ],
)
def test_a_saved_model_without_those_tags_says_which_it_has(tagged, name, tags, text, load):
    assert reason(ask_tagged(tagged, name, tags, load=load), name) == text


def test_check_says_which_tags_there_are(tagged, capsys, tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "model_config_list": [
                    {"config": {"name": "alone", "base_path": str(tagged / "alone")}},
                    {
                        "config": {
                            "name": "both",
                            "base_path": str(tagged / "both"),
                            "tags": ["tpu", "serve"],
                        }
                    },
                ]
            }
        )
    )
    assert serving.main(["--config", str(tmp_path / "config.json"), "--check"]) == 2
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")] == [
        'wrong: $.model_config_list[0].config.tags: version 1: no graph of the SavedModel has just the tags ["serve"]: it has '
        '["serve", "tpu"]; write "tags": ["serve", "tpu"] into the model\'s config'
    ]


# --- several at once --------------------------------------------------------------------------------------


def export_sum(tf, folder, values):
    """A SavedModel of y = x times the sum of its variables."""
    weights = [tf.Variable(value) for value in values]
    export(
        tf,
        folder,
        {
            "serving_default": (
                lambda x: {"y": x * tf.add_n(weights)},
                [tf.TensorSpec([None, 3], name="x")],
            )
        },
        weights=weights,
    )


def test_real_models_that_load_at_once_answer_as_those_that_load_alone(tf, tmp_path):
    """Eight models of as many variables, through four threads of the loader, against TensorFlow called directly."""
    for number in range(8):
        export_sum(
            tf,
            tmp_path / f"m{number}" / "1",
            [np.full((3,), number + index, np.float32) for index in range(5)],
        )
    names = [f"m{number}" for number in range(8)]
    server = serve(tmp_path, *names)
    assert not server.readiness()
    x = np.float32([[1, 2, 3]])
    for name in names:
        truth = (
            tf.saved_model.load(str(tmp_path / name / "1"))
            .signatures["serving_default"](x=tf.constant(x))["y"]
            .numpy()
        )
        assert server.predict(name, {"inputs": x})["outputs"].tolist() == truth.tolist()


def test_tensorflow_is_made_ready_once_however_many_ask_for_it():
    made, begun, go_on = [], threading.Event(), threading.Event()

    @serving.once
    def make(name):
        begun.set()
        assert go_on.wait(60)
        made.append(name)
        return [name]

    answers = []
    threads = [threading.Thread(target=lambda: answers.append(make("a"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert made == ["a"] and all(answer is answers[0] for answer in answers) and len(answers) == 8


@pytest.mark.parametrize(
    "code, told",
    [
        ("raise SystemExit(9)", "SystemExit: 9"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("raise GeneratorExit('left')", "GeneratorExit: left"),
    ],
)
def test_a_module_that_ends_its_program_fails_the_models_that_need_it_alone(
    made, tmp_path, monkeypatch, caplog, code, told
):
    monkeypatch.syspath_prepend(tmp_path)
    name = f"ends_with_{code.split()[1].partition('(')[0].lower()}"
    (tmp_path / f"{name}.py").write_text(code)
    server = serve(made, "text", "variables", import_modules=[name])
    assert server.predict("variables", {"inputs": [3.0]})["outputs"].tolist() == [3.0]
    assert server.readiness() == ["text"]
    wrong = f"$.import_modules[0]: {name} cannot be imported: {told}".strip()
    assert reason(server, "text") == f"Op type not registered 'RegexSplitWithOffsets': {wrong}"
    assert wrong in caplog.text


def forget_python(graph):
    """Give the Python functions of a graph a name that this process has registered none under."""
    for function in graph.graph_def.library.function:
        for node in function.node_def:
            if "token" in node.attr:
                node.attr["token"].s = b"pyfunc_of_another_process"


def test_a_signature_whose_python_function_is_not_here_is_refused(tf, tmp_path, caplog):
    """tf.py_function puts a name into the graph, not the function; loading registers none."""
    one = [tf.TensorSpec([None], name="x")]
    python = (lambda x: {"y": tf.py_function(lambda x: x * 3, [x], tf.float32)}, one)
    export(tf, tmp_path / "alone/1", {"serving_default": python})
    export(tf, tmp_path / "here/1", {"serving_default": python, "ok": (lambda x: {"y": x}, one)})
    edit(copy(tmp_path / "here", tmp_path / "gone"), forget_python)
    edit(tmp_path / "alone/1", forget_python)
    server = serve(tmp_path, "alone", "here", "gone")
    lost = "it calls a Python function (pyfunc_of_another_process), which no SavedModel can contain"
    assert f"signature serving_default cannot be called: {lost}" in reason(server, "alone")
    assert f"gone: signature serving_default cannot be called: {lost}" in caplog.text
    assert "here: signature serving_default calls Python functions by name" in caplog.text
    for name, status in (("gone", 400), ("here", 200)):
        url, body = f"/v1/models/{name}:predict", {"instances": [2.0]}
        assert Rest(server).post(url, body).status_code == status
        body["signature_name"] = "ok"
        assert Rest(server).post(url, body).json == {"predictions": [2.0]}
    server.stop()


def test_a_graph_that_is_a_link_to_nothing_is_told(tmp_path):
    (tmp_path / "saved_model.pb").symlink_to("gone")
    text = "; 'saved_model.pb' in it is no file, or a link to nothing"
    assert serving.explain_folder(tmp_path) == text
