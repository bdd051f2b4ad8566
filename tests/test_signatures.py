"""What a signature takes and answers, what loading leaves behind, and which signatures can be called at all."""

import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import NO_POLL, ROOT, Rest, assert_error, config, fake_server
from test_saved_models import change, export, load, python, run, with_warmup

import serving
from serving_extensions import batching

P = "/v1/models/m:predict"


# --- shapes and dtypes --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grey(tf, folder):
    """Rows of a fixed size, two inputs, a scalar, and one that takes everything, served as `m`."""
    pictures = [tf.TensorSpec([None, 4, 4, 1], tf.float32, name="x")]
    pair = [
        tf.TensorSpec([None, 2], tf.float32, name="a"),
        tf.TensorSpec([None], tf.int32, name="b"),
    ]
    text = [tf.TensorSpec([None, 2], tf.string, name="s")]
    functions = {
        "serving_default": (lambda x: {"y": tf.reduce_sum(x, [1, 2, 3])}, pictures),
        "pair": (lambda a, b: {"y": a[:, 0] + tf.cast(b, tf.float32)}, pair),
        "scalar": (lambda n: {"y": n * n}, [tf.TensorSpec([], tf.int64, name="n")]),
        "any": (lambda z: {"y": 2 * z}, [tf.TensorSpec(None, tf.float32, name="z")]),
        "text": (lambda s: {"y": tf.strings.length(s)}, text),
        "regress": (
            lambda inputs: {"outputs": tf.zeros([2])},
            [tf.TensorSpec([2, 2], tf.string, name="inputs")],
        ),
    }
    export(tf, folder / "grey" / "1", functions)
    server = serving.ModelServer(config({"name": "m", "base_path": str(folder / "grey")}))
    assert server.wait(60) and not server.readiness()
    return server


TAKES = "input 'x' takes float [-1, 4, 4, 1], got shape "
PAIR = "input 'a' takes float [-1, 2], got shape "
WRONG = {
    "rows": ({"instances": [[1]]}, TAKES + "[1, 1]"),
    "rows of another size": ({"instances": [[[[1], [2], [3]]] * 4]}, TAKES + "[1, 4, 3, 1]"),
    "columns": ({"inputs": [[1, 2]]}, TAKES + "[1, 2]"),
    "a named column": ({"inputs": {"x": [1]}}, TAKES + "[1]"),
    "named rows": ({"instances": [{"x": 1}, {"x": 2}]}, TAKES + "[2]"),
    "a scalar": ({"inputs": 1}, TAKES + "[]"),
    "nothing": ({"inputs": []}, TAKES + "[0]"),
    "columns of two": (
        {"signature_name": "pair", "inputs": {"a": [[1, 2, 3]], "b": [1]}},
        PAIR + "[1, 3]",
    ),
    "named rows of two": (
        {"signature_name": "pair", "instances": [{"a": [1, 2], "b": [1]}]},
        "input 'b' takes int32 [-1], got shape [1, 1]",
    ),
    "a list for a scalar": (
        {"signature_name": "scalar", "inputs": [3]},
        "input 'n' takes int64 [], got shape [1]",
    ),
    "strings": (
        {"signature_name": "text", "instances": ["a"]},
        "input 's' takes string [-1, 2], got shape [1]",
    ),
}


@pytest.mark.parametrize("way", WRONG)
def test_a_rank_or_size_that_contradicts_the_signature_is_a_bad_request(grey, how, way):
    body, text = WRONG[way]
    assert_error(Rest(grey, how).post(P, body), 400, text)


@pytest.mark.parametrize("length", [1, 600])
def test_arrays_as_files_and_bytes_are_held_against_the_signature_too(grey, length):
    rest, array, archive = Rest(grey), io.BytesIO(), io.BytesIO()
    np.save(array, np.ones((length, 1), np.float32))
    np.savez(archive, x=np.ones((length, 1), np.float32))
    for body in (array.getvalue(), archive.getvalue(), json.dumps({"instances": [[1]] * length})):
        assert_error(rest.post(P, body), 400, f"{TAKES}[{length}, 1]")
    raw = np.ones(length, np.float32).tobytes()
    assert_error(
        rest.post(P, raw, headers={"X-Tensor-Shape": f"{length}"}), 400, f"{TAKES}[{length}]"
    )


def test_arrays_from_python_and_examples_are_held_against_the_signature(grey):
    for body in (
        {"instances": np.ones((2, 3))},
        {"inputs": np.ones((2, 3))},
        {"inputs": {"x": np.ones((2, 3))}},
    ):
        with pytest.raises(serving.BadRequest) as raised:
            grey.predict("m", body)
        assert raised.value.message == TAKES + "[2, 3]"
    with pytest.raises(
        serving.BadRequest, match=r"input 'inputs' takes string \[2, 2\], got shape \[1\]"
    ):
        grey.regress("m", {"signature_name": "regress", "examples": [{"x": 1.0}]})


def test_what_a_pipelines_function_hands_on_is_held_against_the_signature(grey, tmp_path):
    """Another shape, another dtype, other bytes of the same dtype."""
    results = {
        "wide": "np.ones((1, 5, 4, 1), np.float32)",
        "double": "np.ones((1, 4, 4, 1))",
        "big": "np.ones((1, 4, 4, 1), '>f4')",
        "right": "np.ones((1, 4, 4, 1), np.float32)",
    }
    source = "\n".join(
        f"def {name}(inputs, params): return {{'y': {value}}}" for name, value in results.items()
    )
    (tmp_path / "nodes.py").write_text("import numpy as np\n" + source)
    pipelines = [
        {
            "name": f"p_{name}",
            "inputs": ["x"],
            "outputs": [{"y": {"node_name": "model", "data_item": "y"}}],
            "nodes": [
                {
                    "name": "make",
                    "type": "custom",
                    "function": f"nodes.py:{name}",
                    "inputs": [{"x": {"node_name": "request", "data_item": "x"}}],
                    "outputs": [{"data_item": "y", "alias": "y"}],
                },
                {
                    "name": "model",
                    "type": "DL model",
                    "model_name": "m",
                    "inputs": [{"x": {"node_name": "make", "data_item": "y"}}],
                    "outputs": [{"data_item": "y", "alias": "y"}],
                },
            ],
        }
        for name in results
    ]
    base = grey.config.models[0].base_path
    (tmp_path / "config.json").write_text(
        json.dumps(config({"name": "m", "base_path": base}, pipeline_config_list=pipelines))
    )
    server = serving.ModelServer(tmp_path / "config.json", poll_seconds=0)
    assert server.wait(60)
    answers = {}
    for name in results:
        try:
            answers[name] = server.predict(f"p_{name}", {"inputs": {"x": [1.0]}})[
                "outputs"
            ].tolist()
        except serving.ServingError as error:
            answers[name] = f"{error.status} {error.message}"
    assert answers["right"] == [16.0]
    takes = "400 node 'model': input 'x' takes float [-1, 4, 4, 1], got shape [1, 5, 4, 1]"
    assert answers["wide"].startswith(takes)
    place = "500 node 'make': 'x' of node 'model' from 'y' of node 'make': expected float, got "
    assert answers["double"] == place + "an array of float64"
    assert answers["big"] == [16.0]


def test_a_warm_up_record_of_another_shape_fails_the_load_by_name(tf, folder):
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    request = predict_pb2.PredictRequest()
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(1.0, shape=[1, 1]))
    log = prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )
    path = with_warmup(folder / "warm", log, model="digits/1")
    with pytest.raises(
        serving.LoadError,
        match=r"warmup record: 0: input 'images' takes float \[-1, 8, 8\], got shape \[1, 1\]",
    ):
        load(path)
    request.inputs["other"].CopyFrom(request.inputs["images"])
    del request.inputs["images"]
    log = prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )
    with pytest.raises(serving.LoadError, match="warmup record: 0: Missing named input: images"):
        load(with_warmup(folder / "warm_other", log, model="digits/1"))


@pytest.mark.parametrize("value", [6.0, [6.0], [[1.0, 2.0], [3.0, 4.0]], [[[1.0]]]])
def test_an_input_of_unknown_rank_takes_everything(grey, value):
    answer = grey.predict("m", {"signature_name": "any", "inputs": value})["outputs"]
    assert answer.tolist() == (2 * np.array(value)).tolist()


def test_a_scalar_goes_in_and_comes_out_as_an_array(grey):
    with grey.lease("m", None, None) as (_, servable):
        answer = servable.run("scalar", {"n": np.array(7)})["y"]
    assert isinstance(answer, np.ndarray) and answer.shape == () and answer == 49


def test_sizes_that_only_the_placeholder_has_are_the_inputs(tf, folder):
    """TensorFlow plans with them: it would take the size of x for 3, whatever comes."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 3])
        v1.saved_model.simple_save(
            session, str(folder / "wide"), {"x": x}, {"y": x * tf.cast(tf.shape(x)[1], tf.float32)}
        )

    def forget(graph):
        graph.signature_def["serving_default"].inputs["x"].tensor_shape.unknown_rank = True
        del graph.signature_def["serving_default"].inputs["x"].tensor_shape.dim[:]

    change(folder / "wide", forget)
    servable = load(folder / "wide")
    assert run(servable, np.ones((1, 3), np.float32))["y"].tolist() == [[3, 3, 3]]
    with pytest.raises(
        serving.BadRequest, match=r"input 'x' takes float \[-1, 3\], got shape \[1, 2\]"
    ):
        run(servable, np.ones((1, 2), np.float32))


CONVOLUTION = """
import sys; sys.path.insert(0, {root!r})
import keras, serving, numpy as np
model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(8, 3), keras.layers.Flatten(), keras.layers.Dense(2)])
model.export({folder!r} + "/1", verbose=False)
models = [{{"config": {{"name": str(freeze), "base_path": {folder!r}, "freeze": freeze}}}} for freeze in (True, False)]
server = serving.ModelServer({{"model_config_list": models}})
server.wait()
for name in ("True", "False"):
    for wrong in ([[1]], [[[1]]], [1]):
        try:
            server.predict(name, {{"instances": wrong}})
        except serving.BadRequest as error:
            print(error.message.partition("takes ")[2])
    print(server.predict(name, {{"instances": np.ones((1, 32, 32, 3))}})["predictions"].shape)
"""


def test_a_wrong_rank_does_not_end_the_process(tmp_path):
    """Frozen or not."""
    out = python(CONVOLUTION.format(root=str(ROOT), folder=str(tmp_path / "m")))
    shapes = ("[1, 1]", "[1, 1, 1]", "[1]")
    told = [f"float [-1, 32, 32, 3], got shape {shape}" for shape in shapes]
    assert out.splitlines() == 2 * [*told, "(1, 2)"]


# --- what loading leaves behind -----------------------------------------------------------------------------


def keeping(tf, name, path):
    """A function of a float x [None] that keeps something of a call, and what it needs tracked."""
    count, vector = tf.Variable(0.0), tf.Variable([0.0, 0.0])
    table = tf.lookup.experimental.MutableHashTable(tf.string, tf.float32, -1.0)

    def add():
        return count.assign_add(1.0)

    def in_a_branch(x):
        return tf.cond(tf.reduce_sum(x) > -1.0, lambda: x + add(), lambda: x)

    def in_a_loop(x):
        return tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, y + add()), [0, x])[1]

    def in_a_switch(x):
        return tf.switch_case(tf.constant(0), [lambda: x + add(), lambda: x])

    def in_a_nested_function(x):
        inner = tf.function(lambda: add())
        return x + tf.function(lambda: inner() * 1.0)()

    def after_it(x):
        with tf.control_dependencies([add()]):
            return tf.identity(x)

    def in_a_table(x):
        with tf.control_dependencies([table.insert(tf.constant(["a"]), tf.constant([5.0]))]):
            return x + table.lookup(tf.constant(["a"]))

    def in_a_file(x):
        with tf.control_dependencies([tf.io.write_file(str(path), "called")]):
            return tf.identity(x)

    def scattered(x):
        vector.scatter_nd_add([[0]], [1.0])
        return x + vector[0]

    generator = tf.random.Generator.from_seed(1)
    functions = {
        "assigns": lambda x: x + add(),
        "branch": in_a_branch,
        "loop": in_a_loop,
        "switch": in_a_switch,
        "nested": in_a_nested_function,
        "control": after_it,
        "table": in_a_table,
        "file": in_a_file,
        "scatter": scattered,
        "python": lambda x: tf.numpy_function(np.positive, [x], tf.float32),
        "stateless python": lambda x: tf.numpy_function(
            np.positive, [x], tf.float32, stateful=False
        ),
        "eager python": lambda x: tf.py_function(lambda x: x, [x], tf.float32),
        "seeded": lambda x: x + tf.random.uniform([], seed=7),
        "generator": lambda x: x + generator.uniform([]),
        "prints": lambda x: (tf.print(x, output_stream="file://" + str(path)), tf.identity(x))[1],
    }
    return functions[name], {
        "count": count,
        "table": table,
        "vector": vector,
        "generator": generator,
    }


KEEPS = [
    "assigns",
    "branch",
    "loop",
    "switch",
    "nested",
    "control",
    "table",
    "file",
    "scatter",
    "python",
    "stateless python",
    "eager python",
    "seeded",
    "generator",
    "prints",
]

# Of these, those that replicas are refused for.
WRITES = {"assigns", "branch", "loop", "switch", "nested", "control", "table", "scatter"}


@pytest.mark.parametrize("name", KEEPS)
def test_a_signature_that_may_keep_something_of_a_call_is_not_called_when_it_is_loaded(
    tf, folder, name, caplog
):
    caplog.set_level("INFO", "serving")
    written = folder / f"written_{name}"
    function, tracked = keeping(tf, name, written)
    path = folder / f"keeps_{name}"
    export(
        tf,
        path,
        {"serving_default": (lambda x: {"y": function(x)}, [tf.TensorSpec([None], name="x")])},
        **tracked,
    )
    servable, other = load(path), load(path, warm_up=False)
    assert not servable.callables["serving_default"].tried and not written.exists()
    assert (
        "m: signature serving_default is not warmed up: its graph may keep state between calls ("
        in caplog.text
    )
    x = np.ones(1, np.float32)
    assert (
        run(servable, x)["y"].tolist() == run(other, x)["y"].tolist()
    )  # the first answer is the first
    if name in WRITES:
        with pytest.raises(serving.LoadError, match="replicas would not share what it writes"):
            load(path, target_device=["CPU", "CPU:0"])
    else:
        assert load(path, target_device=["CPU", "CPU:0"]).callables
        assert "each replica has its own" in caplog.text


def harmless(tf, name):
    tf.random.set_seed(None)  # another test's would become the graph's
    weight = tf.Variable([2.0, 3.0])
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer([0, 1], [10.0, 11.0], tf.int64), -1.0
    )

    def checked(x):
        with tf.control_dependencies([tf.debugging.assert_less(x, 100.0)]):
            return tf.identity(x)

    functions = {
        "reads": lambda x: x * weight[0],
        "gathers": lambda x: x + tf.gather(weight, tf.cast(x, tf.int32)),
        "asserts": checked,
        "looks up": lambda x: x + table.lookup(tf.cast(x, tf.int64)),
        "draws": lambda x: x + 0 * tf.random.uniform([]),
        "branches": lambda x: tf.cond(
            tf.reduce_sum(x) > 1, lambda: x * weight[0], lambda: x - weight[1]
        ),
        "loops": lambda x: tf.while_loop(
            lambda i, y: i < 3, lambda i, y: (i + 1, y * weight[0]), [0, x]
        )[1],
        "maps": lambda x: tf.map_fn(lambda one: one * weight[1], x),
        "nests": lambda x: tf.function(lambda x: tf.function(lambda x: x * weight[0])(x))(x),
    }
    return functions[name], {"weight": weight, "table": table}


@pytest.mark.parametrize(
    "name",
    ["reads", "gathers", "asserts", "looks up", "draws", "branches", "loops", "maps", "nests"],
)
def test_a_signature_that_keeps_nothing_is_warmed_up(tf, folder, name):
    function, tracked = harmless(tf, name)
    path = folder / f"harmless_{name}"
    export(
        tf,
        path,
        {"serving_default": (lambda x: {"y": function(x)}, [tf.TensorSpec([None], name="x")])},
        **tracked,
    )
    assert load(path).callables["serving_default"].tried
    assert not load(path, warm_up=False).callables["serving_default"].tried


@pytest.mark.parametrize("change_is", ["assign", "scatter", "count up"])
def test_reference_variables_of_tensorflow_1_are_left_alone(tf, folder, change_is):
    v1, path = tf.compat.v1, folder / f"tf1_{change_is}"
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, [None])
        count = v1.get_variable("count", initializer=np.zeros(2, np.float32), use_resource=False)
        steps = v1.get_variable("steps", initializer=0, use_resource=False)
        changed = {
            "assign": lambda: v1.assign_add(count, [1.0, 1.0]),
            "scatter": lambda: v1.scatter_add(count, [0], [1.0]),
            "count up": lambda: tf.cast(v1.count_up_to(steps, 100), tf.float32) + [0, 0],
        }[change_is]()
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(
            session, str(path), {"x": x}, {"y": x + changed[0], "read": x + count[0]}
        )
    servable = load(path)
    assert not servable.callables["serving_default"].tried
    first = run(servable, np.zeros(1, np.float32))["y"].tolist()
    assert first == ([0.0] if change_is == "count up" else [1.0])


def test_loading_trains_nothing(tf, folder):
    """Two signatures, one of which trains: freshly loaded, the other answers as the file says."""
    weights, steps = tf.Variable(np.zeros(2, np.float32)), tf.Variable(0.0)
    x = [tf.TensorSpec([None, 2], tf.float32, name="x")]
    export(
        tf,
        folder / "trainable",
        {
            "serving_default": (lambda x: {"y": tf.linalg.matvec(x, weights)}, x),
            "train": (
                lambda x: {
                    "steps": steps.assign_add(1.0),
                    "w": weights.assign_add(tf.reduce_mean(x, 0)),
                },
                x,
            ),
        },
        w=weights,
        steps=steps,
    )
    servable, ones = load(folder / "trainable", batching=True), np.ones((1, 2), np.float32)
    assert [call.kind for _, call in sorted(servable.callables.items())] == ["batched", "session"]
    assert run(servable, ones)["y"].tolist() == [0.0]
    assert run(servable, ones, signature="train")["steps"] == 1.0
    assert run(servable, ones)["y"].tolist() == [2.0]
    replicas = load(folder / "trainable", instances=2)
    assert list(replicas.callables) == ["serving_default"]
    assert run(replicas, ones)["y"].tolist() == [0.0]
    told = 'signature train cannot be called: .*AssignAddVariableOp.*"instances": 1'
    with pytest.raises(serving.BadRequest, match=told):
        run(replicas, ones, signature="train")


def test_functions_are_found_in_attributes_lists_and_other_functions(tf):
    from tensorflow.core.framework import function_pb2, node_def_pb2

    library = function_pb2.FunctionDefLibrary()
    for name in ("one", "two", "three", "four", "five", "unused"):
        library.function.add().signature.name = name
    nodes = [node_def_pb2.NodeDef(name=f"n{number}", op="Case") for number in range(3)]
    nodes[0].attr["f"].func.name = "one"
    nodes[1].attr["branches"].list.func.add().name = "two"
    nodes[1].attr["branches"].list.func[0].attr["inner"].func.name = "three"
    nodes[2].op = "four"
    library.function[0].node_def.add().attr["body"].func.name = "five"
    found = {function.signature.name for function in serving.called_functions(nodes, library)}
    assert found == {"one", "two", "three", "four", "five"}


def test_one_that_tensorflow_may_put_in_the_place_of_a_function_is_looked_at_too(tf):
    from tensorflow.core.framework import function_pb2, node_def_pb2

    library = function_pb2.FunctionDefLibrary()
    for name, kin in (("plain", b"lstm"), ("cudnn", b"lstm"), ("other", b"gru")):
        function = library.function.add()
        function.signature.name, function.attr["api_implements"].s = name, kin
    node = node_def_pb2.NodeDef(name="n", op="PartitionedCall")
    node.attr["f"].func.name = "plain"
    assert {function.signature.name for function in serving.called_functions([node], library)} == {
        "plain",
        "cudnn",
    }


def test_an_operation_that_tensorflow_does_not_know_may_keep_something(tf):
    from tensorflow.core.framework import node_def_pb2

    assert serving.leaves_behind(node_def_pb2.NodeDef(name="n", op="SomebodysOwn"))
    for harmless in ("MatMul", "GuaranteeConst"):
        assert not serving.leaves_behind(node_def_pb2.NodeDef(name="n", op=harmless))


# --- how long a call takes ----------------------------------------------------------------------------------


def timed(monkeypatch, costs, shape, kind="Conv2D", asked=None):
    """The call, of an operation of a kind, as it is warmed up, each call taking the next of `costs`."""
    clock, left = [0.0], iter(costs)

    class Clock:
        perf_counter = staticmethod(lambda: clock[0])

    def call(*arrays):
        (asked if asked is not None else []).append(arrays[0].shape)
        clock[0] += next(left)
        return []

    monkeypatch.setattr(serving, "time", Clock)
    spec = serving.TensorSpec("x", "x:0", "DT_FLOAT", shape)
    one = serving.Signature({"x": spec}, {"y": spec})
    planned = serving.SignatureCall(call, operations=frozenset({kind}))
    return serving.warm_up(planned, one, "m", serving.ModelConfig("m", "m"))


def test_the_time_of_a_call_is_not_that_of_the_first_which_plans(tf, monkeypatch):
    assert timed(monkeypatch, [5.0, 0.004, 0.002, 0.003], (None, 8)).seconds == pytest.approx(0.002)
    assert timed(monkeypatch, [5.0, 0.4], (None, 8)).seconds == pytest.approx(0.4)


@pytest.mark.parametrize("shape", [(None, None, None, 3), (None, None), (1, None), ()])
def test_nothing_is_decided_from_a_picture_of_one_pixel(tf, monkeypatch, shape):
    call = timed(monkeypatch, itertools.repeat(0.001), shape)
    assert call.tried and call.seconds == float("inf")


@pytest.mark.parametrize(
    ("shape", "tried"),
    [
        (None, (8192,)),
        ((None,), (8192,)),
        ((None, 1), (8192, 1)),
        ((None, None), (1, 8192)),
        ((), ()),
        ((2, 3), (2, 3)),
        ((None, 100, 100), (1, 100, 100)),
        ((None, 64, 64), (2, 64, 64)),
    ],
)
def test_what_does_the_same_to_each_number_is_timed_with_as_many_as_small_requests_have(
    tf, monkeypatch, shape, tried
):
    asked = []
    call = timed(monkeypatch, itertools.repeat(0.001), shape, "Mul", asked)
    assert call.tried and call.seconds == pytest.approx(0.001) and set(asked) == {tried}


def test_a_signature_of_unknown_rank_that_may_abort_is_not_tried(tf, monkeypatch):
    call = timed(monkeypatch, [], None, "Conv2D")
    assert not call.tried and call.seconds == float("inf")


def test_strings_and_batches_have_no_known_time(tf, folder):
    export(
        tf,
        folder / "text",
        {
            "serving_default": (
                lambda s: {"y": tf.strings.length(s)},
                [tf.TensorSpec([None], tf.string, name="s")],
            ),
            "numbers": (lambda x: {"y": 2 * x}, [tf.TensorSpec([None, 2], tf.float32, name="x")]),
        },
    )
    servable, batched = load(folder / "text"), load(folder / "text", batching=True)
    assert (
        servable.callables["serving_default"].seconds
        == float("inf")
        > servable.callables["numbers"].seconds
    )
    assert batched.callables["numbers"].kind == "batched" and batched.callables[
        "numbers"
    ].seconds == float("inf")


# --- joining ------------------------------------------------------------------------------------------------


def test_requests_are_joined_only_where_the_config_asks_for_it(tf, folder):
    weight = tf.Variable(np.ones((300, 300), np.float32))

    def heavy(x):
        for _ in range(20):
            x = tf.tanh(x @ weight)
        return {"y": x}

    export(
        tf,
        folder / "heavy",
        {"serving_default": (heavy, [tf.TensorSpec([None, 300], name="x")])},
        weight=weight,
    )
    assert load(folder / "heavy").callables["serving_default"].kind == "session"
    assert load(folder / "heavy", batching=False).callables["serving_default"].kind == "session"
    assert load(folder / "heavy", batching=True).callables["serving_default"].kind == "batched"


def dependent(tf, name):
    return {
        "its own largest": lambda x: tf.where(tf.reduce_max(x) > 1, x / 255, x),
        "far beyond": lambda x: tf.where(tf.reduce_max(x) > 1000, 0 * x, x),
        "a negative one": lambda x: tf.where(tf.reduce_min(x) < 0, x + 1, x),
        "all zero": lambda x: tf.where(tf.reduce_any(tf.reduce_all(tf.equal(x, 0), 1)), x * 2, x),
        "the mean": lambda x: x - tf.reduce_mean(x, 0),
        "the first": lambda x: x - x[:1],
        "softmax": lambda x: tf.nn.softmax(x, 0),
        "their number": lambda x: x / tf.cast(tf.shape(x)[0], tf.float32),
        "sorting": lambda x: tf.sort(x, 0),
        "one row only": lambda x: tf.reshape(x, [1, 3]) * 1.0 + 0 * x,
        "fewer": lambda x: x[: tf.minimum(tf.shape(x)[0], 1)],
    }[name]


@pytest.mark.parametrize(
    "name",
    [
        "its own largest",
        "far beyond",
        "a negative one",
        "all zero",
        "the mean",
        "the first",
        "softmax",
        "their number",
        "sorting",
        "one row only",
        "fewer",
    ],
)
def test_rows_that_depend_on_others_are_refused_where_joining_is_asked_for(tf, folder, name):
    function, path = dependent(tf, name), folder / f"depends_{name}"
    export(
        tf,
        path,
        {
            "serving_default": (
                lambda x: {"y": tf.ensure_shape(function(x), [None, 3])},
                [tf.TensorSpec([None, 3], name="x")],
            )
        },
    )
    server = serving.ModelServer(config({"name": "m", "base_path": str(path), "batching": True}))
    server.wait(60)
    message = server.status("m")["model_version_status"][0]["status"]["error_message"]
    assert message.startswith(
        "m: signature serving_default cannot be batched: "
    ) and message.endswith('; write "batching": false')
    assert load(path).callables["serving_default"].kind == "session"


@pytest.mark.parametrize("name", ["sigmoids", "integers", "half", "words", "random"])
def test_rows_that_stand_alone_are_joined(tf, folder, name):
    """Among them layers that round large numbers otherwise in larger batches, and words beyond a vocabulary, which fail alone."""
    tf.random.set_seed(None)  # another test's would become the graph's
    weights = [
        tf.Variable(np.random.default_rng(n).normal(size=(64, 64)).astype(np.float32))
        for n in range(3)
    ]
    vectors = tf.Variable(np.random.default_rng(4).normal(size=(50, 4)).astype(np.float32))

    def sigmoids(x):
        for weight in weights:
            x = tf.sigmoid(x @ weight)
        return x

    floats, whole = (
        [tf.TensorSpec([None, 64], name="x")],
        [tf.TensorSpec([None, 4], tf.int32, name="x")],
    )
    function, specs = {
        "sigmoids": (sigmoids, floats),
        "integers": (lambda x: x * 3 % 7, whole),
        "random": (lambda x: x + tf.random.uniform([]), floats),
        "half": (lambda x: tf.cast(x * 3, tf.float16), floats),
        "words": (lambda x: tf.gather(vectors, x), whole),
    }[name]
    export(
        tf,
        folder / f"alone_{name}",
        {"serving_default": (lambda x: {"y": function(x)}, specs)},
        weights=weights,
        vectors=vectors,
    )
    assert (
        load(folder / f"alone_{name}", batching=True).callables["serving_default"].kind == "batched"
    )


def test_rows_of_different_scales_at_once_get_what_they_get_alone(tf, folder):
    """A model that scales each row by itself is joined, and rows of 0..1 and of 0..255 do not meet."""

    def scale(x):
        return {"y": tf.where(tf.reduce_max(x, 1, keepdims=True) > 1, x / 255, x)}

    export(
        tf, folder / "own_scale", {"serving_default": (scale, [tf.TensorSpec([None, 3], name="x")])}
    )
    servable, plain = (
        load(folder / "own_scale", batching=serving.Batching(batch_timeout_micros=20_000)),
        load(folder / "own_scale"),
    )
    rows = [
        np.random.default_rng(n).random((1, 3), np.float32) * (255 if n % 2 else 1)
        for n in range(24)
    ]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda row: run(servable, row)["y"], rows))
    for row, answer in zip(rows, answers):
        np.testing.assert_array_equal(answer, run(plain, row)["y"])


def test_made_up_rows_keep_within_their_dtype():
    specs = {
        name: serving.TensorSpec(name, "", dtype, (None, 5))
        for name, dtype in (
            ("a", "DT_UINT8"),
            ("b", "DT_INT8"),
            ("c", "DT_BOOL"),
            ("d", "DT_HALF"),
            ("e", "DT_INT64"),
        )
    }
    rows = batching.make_up_rows(serving.Signature(specs, {}))
    assert len(rows) == len(batching.SCALES)
    for row in rows:
        assert [array.dtype for array in row] == [np.uint8, np.int8, np.bool_, np.float16, np.int64]
        assert all(
            array.shape == (1, 5) and np.isfinite(array.astype(float)).all() for array in row
        )
    assert max(row[0].max() for row in rows) == 255 and min(row[1].min() for row in rows) < 0


# --- what cannot be called ----------------------------------------------------------------------------------


def two_signatures(tf, path, damage):
    """`serving_default` doubles x; `bad` is damaged in the file."""
    weights = tf.Variable([1.0, 2.0])
    x = [tf.TensorSpec([None], tf.float32, name="x")]
    export(
        tf,
        path,
        {
            "serving_default": (lambda x: {"y": x * weights[1]}, x),
            "bad": (
                lambda z: {"y": z + tf.function(lambda: tf.reduce_sum(weights))()},
                [tf.TensorSpec([None], tf.float32, name="z")],
            ),
        },
        weights=weights,
    )
    change(path, damage)
    return path


def caller_of(graph):
    """The node that a signature's output is of, and the function it calls."""
    name = graph.signature_def["bad"].outputs["y"].name.split(":")[0]
    node = next(node for node in graph.graph_def.node if node.name == name)
    return node, next(
        f for f in graph.graph_def.library.function if f.signature.name == node.attr["f"].func.name
    )


def set_output(name):
    return lambda graph: setattr(graph.signature_def["bad"].outputs["y"], "name", name)


def name_a_handle(graph):
    handle = next(node.name for node in graph.graph_def.node if node.op == "VarHandleOp")
    set_output(f"{handle}:0")(graph)


def name_a_handle_honestly(graph):
    name_a_handle(graph)
    graph.signature_def["bad"].outputs["y"].dtype = 20  # DT_RESOURCE


def lose_the_function(graph):
    caller_of(graph)[0].attr["f"].func.name = "nowhere"


def lose_an_inner_function(graph):
    (node,) = (node for node in caller_of(graph)[1].node_def if "f" in node.attr)
    node.attr["f"].func.name = "nowhere"


def use_an_unknown_operation(graph):
    caller_of(graph)[1].node_def.add(name="odd", op="SomebodysOwn")


DAMAGES = {
    "no such tensor": (set_output("nowhere:0"), "tensor 'nowhere:0' of 'y' is not in the graph..."),
    "no such output of an operation": (
        set_output("StatefulPartitionedCall:9"),
        "tensor 'StatefulPartitionedCall:9' of 'y' is not in the graph...",
    ),
    "no tensor's name": (set_output("///"), "tensor '///' of 'y' is not in the graph..."),
    "another dtype": (
        lambda graph: setattr(graph.signature_def["bad"].inputs["z"], "dtype", 3),
        "'z' is int32 in the signature, float in the graph",
    ),
    "a dtype of no name": (
        lambda graph: setattr(graph.signature_def["bad"].inputs["z"], "dtype", 77),
        "'z' is 77 in the signature, float in the graph",
    ),
    "another rank": (
        lambda graph: graph.signature_def["bad"].inputs["z"].tensor_shape.dim.add(size=3),
        "'z' is [-1, 3] in the signature, [-1] in the graph",
    ),
    "a handle as floats": (name_a_handle, "'y' is float in the signature, resource in the graph"),
    "a handle": (name_a_handle_honestly, "none of its outputs is a number or a string"),
    "no function": (
        lose_the_function,
        "tensor 'StatefulPartitionedCall:0' of 'y' is not in the graph...",
    ),
    "no inner function": (lose_an_inner_function, "..."),
    "an unknown operation": (
        use_an_unknown_operation,
        "tensor 'StatefulPartitionedCall:0' of 'y' is not in the graph...",
    ),
    "one tensor for two inputs": (
        lambda graph: (
            graph.signature_def["bad"].inputs["w"].CopyFrom(graph.signature_def["bad"].inputs["z"])
        ),
        'Endpoint "bad_z:0" fed more than once.',
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_signature_says_so_when_it_is_called_and_the_others_answer(
    tf, folder, damage, caplog
):
    how, reason = DAMAGES[damage]
    path = two_signatures(tf, folder / f"damaged_{damage}", how)
    server = serving.ModelServer(config({"name": "m", "base_path": str(path)}))
    assert server.wait(60) and not server.readiness()
    assert "signature bad " in caplog.text
    rest = Rest(server)
    assert rest.post(P, {"instances": [1.0, 2.0]}).json == {"predictions": [2.0, 4.0]}
    body = {"signature_name": "bad", "inputs": {"z": [1], "w": [1]}}
    wanted = (
        "Failed to write JSON value for tensor type: resource"
        if damage == "a handle"
        else f'Signature "bad" cannot be called: {reason}'
    )
    if damage == "a dtype of no name":
        wanted, body["inputs"] = "Conversion of JSON Value: 1 to type: 77", {"z": [1]}
    assert_error(rest.post(P, body), 501 if "Conversion" in wanted else 400, wanted)


def test_the_second_name_of_a_broken_signature_is_broken_too(tf, folder):
    """Keras exports `serve` and `serving_default`, which are one."""

    def add(graph):
        lose_an_inner_function(graph)
        for name in ("second", "third"):
            graph.signature_def[name].CopyFrom(graph.signature_def["bad"])

    servable = load(two_signatures(tf, folder / "twins", add))
    for name in ("bad", "second", "third"):
        with pytest.raises(serving.BadRequest, match=f'Signature "{name}" cannot be called: '):
            servable.run(name, {"z": np.ones(1, np.float32)})
    assert run(servable, np.ones(1, np.float32))["y"].tolist() == [2.0]


def test_of_an_output_that_is_no_number_the_others_can_be_asked_for(tf, folder):
    def add(graph):
        graph.signature_def["bad"].outputs["handle"].CopyFrom(
            graph.signature_def["bad"].outputs["y"]
        )
        name = next(node.name for node in graph.graph_def.node if node.op == "VarHandleOp")
        (
            graph.signature_def["bad"].outputs["handle"].name,
            graph.signature_def["bad"].outputs["handle"].dtype,
        ) = f"{name}:0", 20

    path = two_signatures(tf, folder / "with_handle", add)
    rest = Rest(fake_server({"m": load(path)}))
    body = {"signature_name": "bad", "instances": [1.0]}
    assert_error(rest.post(P, body), 400, "Failed to write JSON value for tensor type: resource")
    assert rest.post(f"{P}?outputs=y", body).json == {"predictions": [4.0]}


def test_a_model_that_cannot_be_asked_anything_is_not_served(tf, folder):
    weight = tf.Variable(2.0)
    export(
        tf,
        folder / "no_good",
        {"serving_default": (lambda x: {"y": x * weight}, [tf.TensorSpec([None], name="x")])},
        weight=weight,
    )
    change(
        folder / "no_good",
        lambda graph: setattr(graph.signature_def["serving_default"].outputs["y"], "dtype", 9),
    )
    with pytest.raises(
        serving.LoadError,
        match="signature serving_default cannot be called: 'y' is int64 in the signature, float in the graph",
    ):
        load(folder / "no_good")


@pytest.mark.parametrize("others", [["named"], []])
def test_a_signature_without_inputs_is_loaded_and_refused_as_tensorflow_serving_does(
    tf, folder, others, how
):
    one = [tf.TensorSpec([None], name="x")]
    signatures = {"serving_default": (lambda: {"y": tf.constant([1.0])}, [])}
    signatures |= {name: (lambda x: {"y": 2 * x}, one) for name in others}
    name = f"no_inputs_{len(others)}"
    export(tf, folder / name / "1", signatures)
    model = {"name": "m", "base_path": str(folder / name)}
    server = serving.ModelServer({"model_config_list": [{"config": model}], "server": NO_POLL})
    assert server.wait(60) and not server.readiness()
    client = Rest(server, how)
    for body in ({"inputs": {}}, {"instances": [1.0]}, {"instances": [{}]}, {}):
        wrong = client.post("/v1/models/m:predict", body)
        assert_error(wrong, 400, "Failed to get input map for signature: DEFAULT")
    named = client.post("/v1/models/m:predict", {"signature_name": "serving_default", "inputs": {}})
    assert_error(named, 400, "Failed to get input map for signature: serving_default")
    for other in others:
        body = {"signature_name": other, "inputs": [3.0]}
        assert client.post("/v1/models/m:predict", body).json == {"outputs": [6.0]}
    assert client.get("/v1/models/m/metadata").status_code == 200


def test_a_model_without_signatures_is_said_to_have_none(tf, folder, caplog, capsys):
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(folder / "none/1"))
    load(folder / "none/1")
    told = "has no signature and cannot be called: export it with signatures"
    assert f"m {told}" in caplog.text
    assert serving.main([str(folder / "none"), "--check"]) == 2
    assert f"wrong: $.model_config_list[0].config: version 1 {told}\n" in capsys.readouterr().out


def test_warm_up_is_part_of_what_a_version_is_loaded_with():
    model = {"name": "m", "base_path": "m"}
    plain, without = (
        serving.load_config({"model_config_list": [{"config": m}], "server": NO_POLL}).models[0]
        for m in (model, {**model, "warm_up": False})
    )
    assert plain.warm_up and not without.warm_up and plain.load_key != without.load_key


# --- what a request can cost --------------------------------------------------------------------------------


def test_a_convolution_of_any_rank_is_refused_and_its_neighbours_serve(tf, tmp_path):
    """oneDNN's kernels end the process on a rank that is not theirs."""
    kernel = tf.ones([3, 3, 1, 1])

    def convolve(x):
        return {"y": tf.nn.conv2d(x, kernel, 1, "SAME")}

    functions = {
        "open": (convolve, [tf.TensorSpec(None, tf.float32, name="x")]),
        "serving_default": (convolve, [tf.TensorSpec([None, 4, 4, 1], tf.float32, name="x")]),
    }
    export(tf, tmp_path / "m" / "1", functions)
    server = serving.ModelServer(config({"name": "m", "base_path": str(tmp_path / "m")}))
    assert server.wait(60) and not server.readiness()
    rest, picture = Rest(server), np.ones([1, 4, 4, 1]).tolist()
    assert rest.post(P, {"instances": picture}).status_code == 200
    body = {"signature_name": "open", "inputs": [[1.0]]}
    assert_error(
        rest.post(P, body),
        400,
        "Signature \"open\" cannot be called: input 'x' has no fixed rank, but its operation "
        "Conv2D needs one: export the model with the input's shape",
    )


NUMBERS = "how much there is to do follows from the numbers"
SHORT = {
    "a sum": (lambda x: 2 * x[:, 0] + 1, [None, 2], "float32", True),
    NUMBERS: (lambda x: serving.tensorflow().range(x[0, 0]), [None, 1], "int32", False),
    "filled": (lambda x: serving.tensorflow().fill([x[0, 0]], 1.0), [None, 1], "int32", False),
    "every row with every other": (
        lambda x: serving.tensorflow().matmul(x, x, transpose_b=True),
        [None, 1],
        "float32",
        False,
    ),
}


@pytest.mark.parametrize("name", SHORT)
def test_a_signature_is_known_as_short_only_where_no_short_request_is_long(tf, tmp_path, name):
    function, shape, dtype, short = SHORT[name]
    specs = [tf.TensorSpec(shape, tf.as_dtype(dtype), name="x")]
    export(tf, tmp_path / "1", {"serving_default": (lambda x: {"y": function(x)}, specs)})
    servable = load(tmp_path / "1")
    assert (servable.seconds_of("serving_default") < 0.005) is short
