"""The plain loader by itself, and what each of its wrappers adds to it; against TensorFlow called directly."""

import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import NO_POLL, ROOT, FakeServable, config, until
from test_saved_models import by_objects, export, run

import serving
from serving_extensions import batching, freezing, replicas, warmup
from serving_extensions.on_demand import Residency


def request(folder, **fields):
    return serving.LoadRequest(Path(folder), serving.ModelConfig("m", str(folder), **fields))


def load_plainly(folder, **fields):
    return serving.load_saved_model(request(folder, **fields))


def directly(tf, folder, *arrays, signature="serving_default"):
    """What TensorFlow answers, its inputs in the order of their names."""
    function = tf.saved_model.load(str(folder)).signatures[signature]
    names = sorted(function.structured_input_signature[1])
    answer = function(**{name: tf.constant(array) for name, array in zip(names, arrays)})
    return {name: value.numpy() for name, value in answer.items()}


def assert_same(own, other):
    assert own.keys() == other.keys()
    for name, value in other.items():
        np.testing.assert_allclose(own[name], value, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def network(tf, folder):
    """A Keras 3 export of convolutions."""
    import keras

    keras.utils.set_random_seed(5)
    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(3)]
    keras.Sequential([keras.Input((8, 8, 3)), *layers]).export(
        str(folder / "network"), verbose=False
    )
    return folder / "network"


@pytest.fixture(scope="module")
def words(tf, folder):
    """A SavedModel as TensorFlow 1 wrote it: the numbers of words by a table that a file fills, times a variable."""
    v1, graph = tf.compat.v1, tf.Graph()
    (folder / "words.txt").write_text("cat\ndog\nbird\n")
    with graph.as_default(), v1.Session(graph=graph) as session:
        given = v1.placeholder(tf.string, [None], "words")
        source = tf.lookup.TextFileInitializer(
            str(folder / "words.txt"),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        found = tf.lookup.StaticHashTable(source, -1).lookup(given)
        weight = v1.get_variable("weight", initializer=2.5, use_resource=False)
        answer = tf.cast(found, tf.float32) * weight
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
        signature = v1.saved_model.predict_signature_def({"words": given}, {"y": answer})
        builder = v1.saved_model.Builder(str(folder / "words"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            {"serving_default": signature},
            assets_collection=v1.get_collection(v1.GraphKeys.ASSET_FILEPATHS),
            main_op=v1.tables_initializer(),
        )
        builder.save()
    (folder / "words.txt").unlink()
    return folder / "words"


# --- the plain loader -------------------------------------------------------------------------------------


def test_the_plain_loader_answers_a_keras_export_as_tensorflow_does(tf, network):
    servable = load_plainly(network)
    for rows in (1, 3):
        images = np.random.default_rng(rows).random((rows, 8, 8, 3), np.float32)
        assert_same(run(servable, images), directly(tf, network, images))
    assert {call.kind for call in servable.callables.values()} == {"session"}
    assert servable.callables["serving_default"].tried and servable.retire(5)


def test_the_plain_loader_answers_a_tf1_model_with_tables_as_tensorflow_does(tf, words):
    servable = load_plainly(words)
    given = np.array([b"bird", b"cow", b"dog"], object)
    answer = run(servable, given)
    assert answer["y"].tolist() == [5.0, -2.5, 2.5]
    assert_same(answer, directly(tf, words, given))


@pytest.mark.parametrize("name", ["digits", "shapes", "half_plus_two"])
def test_the_plain_loader_answers_the_demo_as_tensorflow_does(tf, name):
    (folder,) = (path for path in (ROOT / "models" / name).iterdir() if path.name.isdigit())
    servable = load_plainly(folder)
    inputs = serving.sample_inputs(servable.signatures["serving_default"], 2)
    assert_same(run(servable, *inputs), directly(tf, folder, *inputs))


def test_a_part_of_a_graph_is_the_one_that_tensorflow_takes(tf):
    with tf.Graph().as_default() as graph:
        first, second = tf.split(tf.constant([1.0, 2.0], name="given"), 2, name="split")
        with tf.control_dependencies([tf.print(first, name="said")]):
            tf.add(first, 1.0, name="after")
        with tf.compat.v1.colocate_with(first):
            beside = tf.multiply(second, 2.0, name="beside")
        tf.function(lambda x: x + 1)(beside)
    whole = graph.as_graph_def()
    took = tf.compat.v1.graph_util.extract_sub_graph
    for names in (["split"], ["after"], ["beside"], ["beside", "after"], [whole.node[-1].name]):
        assert serving.extract_sub_graph(whole, names) == took(whole, names), names
    with pytest.raises(ValueError, match="nowhere is not in graph"):
        serving.extract_sub_graph(whole, ["after", "nowhere"])


ALONE = """
import json, logging, sys, numpy as np
logging.basicConfig()
sys.modules["serving_extensions"] = sys.modules["routines"] = None
import serving
items = [{"config": {"name": name, "base_path": path, "batching": True}} for name, path in json.loads(sys.argv[1]).items()]
server = serving.ModelServer({"model_config_list": items, "server": {"file_system_poll_wait_seconds": 0}})
server.wait(120)
images = np.random.default_rng(1).random((2, 8, 8, 3)).astype(np.float32)
print(json.dumps(server.predict("network", {"instances": images.tolist()})["predictions"].tolist()))
print(json.dumps(server.predict("words", {"instances": ["bird", "cow"]})["predictions"].tolist()))
"""


def test_serving_py_alone_loads_keras_exports_and_tables_and_says_what_it_does_not_do(
    tf, tmp_path, network, words
):
    shutil.copy(ROOT / "serving.py", tmp_path)
    models = json.dumps({"network": str(network), "words": str(words)})
    done = subprocess.run(
        [sys.executable, "-c", ALONE, models], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    images, numbers = map(json.loads, done.stdout.splitlines())
    given = np.random.default_rng(1).random((2, 8, 8, 3)).astype(np.float32)
    expected = directly(tf, network, given)["output_0"]
    np.testing.assert_allclose(images, expected, rtol=1e-5, atol=1e-6)
    assert numbers == [5.0, -2.5]
    assert "words: no batching: it needs serving_extensions/ beside serving.py" in done.stderr


def test_what_no_wrapper_answers_is_said_and_the_model_serves(network, caplog):
    servable = load_plainly(network, instances=2, load="on_demand", batching=True)
    assert run(servable, np.ones((1, 8, 8, 3), np.float32))["output_0"].shape == (1, 3)
    for what in ("no batching", "no replicas", "no on-demand loading"):
        assert f"m: {what}: it needs serving_extensions/ beside serving.py" in caplog.text


def test_tensorflows_import_is_no_part_of_a_models_load(monkeypatch):
    monkeypatch.setattr(serving, "IMPORTED", imported := [])

    def load(folder, model):
        time.sleep(0.5)  # the import
        imported.append(time.perf_counter())
        return FakeServable()

    server = serving.ModelServer(
        config("m"), load=load, list_versions=lambda base_path: {1: Path(base_path) / "1"}
    )
    assert server.wait(10)
    assert 0 < server.manager.states()["m"][1].load_seconds < 0.5


def test_a_call_is_told_its_deadline_as_an_argument(network, monkeypatch):
    monkeypatch.setattr(serving, "LONG_SECONDS", 0.0)
    servable, go = load_plainly(network), threading.Event()
    call = servable.callables["serving_default"]._replace(
        run=lambda *_: go.wait(60), operations={"While"}
    )
    held = serving.SessionServable(
        servable.opened.with_calls(lambda name, other: call), lambda: servable.retire(0)
    )
    (name,) = servable.signatures["serving_default"].inputs
    trace = serving.Trace()
    trace.deadline = trace.start
    with pytest.raises(serving.ServingError, match="longer than the request's time") as raised:
        held.run("serving_default", {name: np.ones((1, 8, 8, 3), np.float32)}, trace)
    assert raised.value.code == "DEADLINE_EXCEEDED" and trace.inference > 0
    go.set()
    assert held.retire(5)
    until(lambda: servable.closed)  # by the thread that has run it


# --- checkpoints of another model -------------------------------------------------------------------------


def of_shape(tf, folder, kind, size):
    """A model of one variable [size], its first number times x, of a kind that is opened in its own way."""
    weights, x = tf.Variable(np.arange(1.0, size + 1, dtype=np.float32), name="weights"), None
    one = [tf.TensorSpec([None], name="x")]
    if kind == "tf1":
        v1, graph = tf.compat.v1, tf.Graph()
        with graph.as_default(), v1.Session(graph=graph) as session:
            x = v1.placeholder(tf.float32, [None], "x")
            weights = v1.get_variable("weights", [size], use_resource=True)
            session.run(v1.global_variables_initializer())
            v1.saved_model.simple_save(session, str(folder), {"x": x}, {"y": x * weights[0]})
        return folder
    if kind == "keras":
        import keras

        class Scale(keras.layers.Layer):
            def build(self, _):
                self.scale = self.add_weight(shape=(size,), name="scale", initializer="ones")

            def call(self, x):
                return x * self.scale[0]

        keras.Sequential([keras.Input((1,)), Scale(name="layer")]).export(
            str(folder), verbose=False
        )
        return folder
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer([0, 1], [0.0, 0.0], tf.int64), 0.0
    )
    function = {
        "plain": lambda x: {"y": x * weights[0]},
        "table": lambda x: {"y": x * weights[0] + table.lookup(tf.cast(x, tf.int64))},
    }[kind]
    return export(tf, folder, {"serving_default": (function, one)}, weights=weights, table=table)


@pytest.mark.parametrize("kind", ["plain", "table", "tf1", "keras"])
@pytest.mark.parametrize("sizes", [(2, 3), (3, 2)])
def test_a_checkpoint_whose_variable_has_another_shape_is_refused(tf, folder, kind, sizes):
    wanted, there = sizes
    path = of_shape(tf, folder / f"{kind}{wanted}", kind, wanted)
    load_plainly(path).retire(0)
    other = of_shape(tf, folder / f"{kind}{wanted}{there}", kind, there)
    shutil.rmtree(path / "variables")
    shutil.copytree(other / "variables", path / "variables")
    with pytest.raises(serving.LoadError) as raised:
        load_plainly(path)
    text = raised.value.message
    name = "scale" if kind == "keras" else "weights"
    assert name in text and f"[{wanted}]" in text and f"[{there}]" in text, text


def test_a_variable_of_any_size_is_filled_with_any(tf, folder):
    weights = tf.Variable([1.0, 2.0, 3.0], shape=[None])
    path = export(
        tf,
        folder / "any_size",
        {
            "serving_default": (
                lambda x: {"y": x * tf.reduce_sum(weights)},
                [tf.TensorSpec([None], name="x")],
            )
        },
        weights=weights,
    )
    x = np.array([1, 2], np.float32)
    assert_same(run(load_plainly(path), x), by_objects(tf, path, x))


# --- what is wrapped around it ----------------------------------------------------------------------------


def test_each_wrapper_adds_one_thing_and_changes_nothing_of_what_it_wraps(tf, network):
    plain = load_plainly(network)
    before = dict(vars(plain)), dict(plain.callables)
    for extension, kind, fields in (
        (batching, "batched", {"batching": True}),
        (warmup, "session", {}),
        (replicas, "session", {}),
    ):
        servable = extension.wrap_load(None, lambda request: plain)(request(network, **fields))
        assert servable.callables["serving_default"].kind == kind
        assert (dict(vars(plain)), dict(plain.callables)) == before
        images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
        assert_same(run(servable, images), directly(tf, network, images))
    assert plain.retire(5)


@pytest.mark.parametrize("extension", [freezing, batching, warmup, replicas])
def test_a_servable_that_is_no_saved_model_passes_every_wrapper(extension):
    made = FakeServable()
    servable = extension.wrap_load(None, lambda request: made)(request("f/1", batching=True))
    assert servable is made
    assert servable.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[2.0]]


def test_what_a_wrapper_cannot_do_frees_what_it_wraps(network, folder, tmp_path):
    made = []

    def load(request):
        made.append(serving.load_saved_model(request))
        return made[-1]

    wrong = tmp_path / "1"
    shutil.copytree(network, wrong)
    (wrong / "assets.extra").mkdir()
    (wrong / "assets.extra/tf_serving_warmup_requests").write_bytes(b"x" * 100)
    with pytest.raises(serving.LoadError) as raised:
        warmup.wrap_load(None, load)(request(wrong))
    assert str(tmp_path) not in raised.value.message and made[0].closed


def test_frozen_batched_replicas_on_demand_answer_as_tensorflow_does(tf, network):
    load = serving.ModelServer({"model_config_list": []}).load
    servable = load(request(network, batching=True, instances=2, load="on_demand"))
    assert servable.callables == {} and servable.device == ""
    images = np.random.default_rng(4).random((3, 8, 8, 3), np.float32)
    trace = serving.Trace()
    (name,) = servable.signatures["serving_default"].inputs
    answer = servable.run("serving_default", {name: images}, trace)
    assert_same(answer, directly(tf, network, images))
    assert trace.waited and trace.batch >= 3
    assert servable.device == "CPU:0, CPU:0"
    assert servable.callables["serving_default"].kind == "batched"
    assert servable.retire(5) and servable.resident.closed


@pytest.mark.parametrize("how", ["replicas", "on demand"])
def test_the_time_of_a_model_is_counted_once_however_it_is_wrapped(monkeypatch, how):
    """Also in the second run of a request, as of its second picture."""
    now = [0.0]

    class Clock:
        perf_counter = staticmethod(lambda: now[0])

    class Slow(FakeServable):
        def answer(self, name, inputs):
            now[0] += 3.0
            return super().answer(name, inputs)

    monkeypatch.setattr(serving, "time", Clock)
    if how == "replicas":
        servable = replicas.load_replicas(["CPU:0", "CPU:0"], lambda device: Slow())
    else:
        half = request(ROOT / "models/half_plus_two/123", load="on_demand")
        servable = Residency(serving.ServerConfig, lambda request: Slow())(half)
    trace = serving.Trace()
    for _ in range(2):
        servable.run("serving_default", {"x": np.float32([[2]])}, trace)
    assert trace.inference == 6.0
    assert servable.retire(0)


def test_memory_of_models_that_stay_is_counted_until_they_go(network):
    room = Residency(lambda: serving.ServerConfig(memory_budget_mb=4096), serving.load_saved_model)
    servable = room(request(network))
    assert room.used() > 0
    assert servable.acquire() and not servable.retire(0) and room.used() > 0
    servable.release()
    assert servable.retire(0) and room.used() == 0


def test_a_server_has_all_wrappers_around_the_plain_loader(network, tmp_path):
    shutil.copytree(network, tmp_path / "m" / "1")
    item = {"name": "m", "base_path": str(tmp_path / "m")}
    server = serving.ModelServer({"model_config_list": [{"config": item}], "server": NO_POLL})
    assert server.wait(60)
    with server.lease("m", None, None) as (_, servable):
        assert servable.callables["serving_default"].kind == "frozen"
