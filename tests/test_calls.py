"""How calls are improved: frozen graphs, threads of a model's own, replicas; against the plain session and TensorFlow called directly."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest
from conftest import NO_POLL, ROOT, FakeServable, until
from conftest import load_model as load
from test_saved_models import export, run

import serving
from serving_extensions import freezing
from serving_extensions.replicas import load_replicas


@pytest.fixture
def always(monkeypatch):
    """Freeze whatever may be frozen, whether it gains or not."""
    monkeypatch.setattr(freezing, "GAINING", {"Conv2D", "Mul", "AddV2"})


@pytest.fixture(scope="module")
def network(tf, folder):
    """Convolutions with batch norms of trained-looking statistics, as Keras exports them; and the network itself."""
    import keras

    keras.utils.set_random_seed(3)
    layers = [keras.Input((24, 24, 3))]
    for filters in (8, 16):
        layers += [
            keras.layers.Conv2D(filters, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(6),
        ]
    model = keras.Sequential(
        [*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5, "softmax")]
    )
    random = np.random.default_rng(3)
    model.set_weights(
        [random.uniform(0.2, 1.0, w.shape) if w.ndim == 1 else w for w in model.get_weights()]
    )
    model.export(str(folder / "network"), verbose=False)
    return folder / "network", model


# --- frozen graphs ----------------------------------------------------------------------------------------


def test_a_convolutional_network_however_small_is_frozen_and_answers_as_tensorflow_does(
    tf, network
):
    folder, model = network
    servable, plain = load(folder, batching=False), load(folder, batching=False, freeze=False)
    assert (
        servable.callables["serving_default"].kind == "frozen"
        and plain.callables["serving_default"].kind == "session"
    )
    direct = tf.saved_model.load(str(folder)).signatures["serving_default"]
    for rows in (1, 2, 7):
        images = np.random.default_rng(rows).normal(size=(rows, 24, 24, 3)).astype(np.float32)
        (expected,) = direct(tf.constant(images)).values()
        frozen, session = (run(s, images)["output_0"] for s in (servable, plain))
        np.testing.assert_allclose(frozen, expected.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(frozen, session, rtol=1e-5, atol=1e-6)
    assert servable.retire(5) and plain.retire(5)


def test_a_frozen_model_lets_go_of_the_graph_that_it_was(network, always, monkeypatch):
    graphs, original = [], serving.open_session

    def open_session(*arguments):
        opened = original(*arguments)
        graphs.append(weakref.ref(opened[0].graph))
        return opened

    monkeypatch.setattr(serving, "open_session", open_session)
    servable = load(network[0], batching=False)
    gc.collect()
    assert servable.callables["serving_default"].kind == "frozen" and graphs[0]() is None
    assert servable.retire(5)


def test_the_demo_models_answer_to_the_bit_when_frozen(tf):
    for name, dtype in (("digits", np.float32), ("shapes", np.uint8)):
        folder = ROOT / "models" / name / "1"
        frozen, plain = load(folder, batching=False), load(folder, batching=False, freeze=False)
        (spec,) = plain.signatures["serving_default"].inputs.values()
        assert frozen.callables["serving_default"].kind == "frozen"
        values = (
            np.random.default_rng(5)
            .integers(0, 17, [1, *(size or 1 for size in spec.shape[1:])])
            .astype(dtype)
        )
        for own, other in zip(
            run(frozen, values).values(), run(plain, values).values(), strict=True
        ):
            np.testing.assert_array_equal(own, other)


STATES = {
    "counter": "counts what it is asked",
    "random": "draws numbers",
    "table": "looks words up",
    "python": "calls a Python function",
    "inside": "counts inside a loop",
}


@pytest.mark.parametrize("name", STATES)
def test_what_has_a_state_is_never_frozen(tf, folder, always, name):
    weight, count = tf.Variable(2.0), tf.Variable(0.0)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer([0, 1], [10.0, 11.0], tf.int64), -1.0
    )

    def counter(x):
        return {"y": x * weight + count.assign_add(1.0)}

    def random(x):
        return {"y": x * weight + 0.0 * tf.random.uniform([])}

    def look_up(x):
        return {"y": x * weight + table.lookup(tf.cast(x, tf.int64))}

    def python(x):
        return {"y": weight * tf.numpy_function(np.positive, [x], tf.float32)}

    def inside(x):
        return {
            "y": tf.while_loop(
                lambda i, y: i < 2, lambda i, y: (i + 1, y + count.assign_add(1.0)), [0, x * weight]
            )[1]
        }

    function = {
        "counter": counter,
        "random": random,
        "table": look_up,
        "python": python,
        "inside": inside,
    }[name]
    export(
        tf,
        folder / name,
        {"serving_default": (function, [tf.TensorSpec([2], tf.float32, name="x")])},
        weight=weight,
        count=count,
        table=table,
    )
    servable = load(folder / name, batching=False)
    assert servable.callables["serving_default"].kind == "session"
    before, after = (run(servable, np.array([0, 1], np.float32))["y"] for _ in range(2))
    if name in ("counter", "inside"):
        assert (after > before).all()
    else:
        assert (
            before.tolist() == after.tolist() == ([10.0, 13.0] if name == "table" else [0.0, 2.0])
        )


def test_variables_inside_control_flow_are_frozen(tf, folder, always):
    weight = tf.Variable([2.0, 3.0])

    def function(x):
        return {
            "y": tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * weight), [0, x])[1],
            "x": x,
        }

    export(
        tf,
        folder / "loop",
        {"serving_default": (function, [tf.TensorSpec([None, 2], tf.float32, name="x")])},
        weight=weight,
    )
    servable = load(folder / "loop", batching=False)
    answer = run(servable, np.array([[1, 1], [2, 0]], np.float32))
    assert servable.callables["serving_default"].kind == "frozen"
    assert answer["y"].tolist() == [[8, 27], [16, 0]] and answer["x"].tolist() == [[1, 1], [2, 0]]


@pytest.mark.parametrize(
    "reason",
    ["no convolutions", "cannot be converted", "too large", "not wanted", "cannot be called"],
)
def test_what_gains_nothing_or_cannot_be_frozen_stays_as_it_was(network, monkeypatch, reason):
    def fail(*_):
        raise RuntimeError("no such graph")

    def refuse(session, plans, refused):
        refused["serving_default"] = "not like this"
        return {}

    changes = {
        "no convolutions": ("GAINING", {"Conv3D"}),
        "cannot be converted": ("open_frozen", fail),
        "too large": ("FREEZE_BYTES", 100),
        "not wanted": ("FREEZE_BYTES", 200 << 20),
        "cannot be called": ("make_calls", refuse),
    }
    monkeypatch.setattr(freezing, *changes[reason])
    folder, model = network
    servable = load(folder, freeze=reason != "not wanted")
    assert servable.callables["serving_default"].kind == "session"
    images = np.ones((2, 24, 24, 3), np.float32)
    np.testing.assert_allclose(
        run(servable, images)["output_0"], model(images).numpy(), rtol=1e-5, atol=1e-6
    )


def test_a_frozen_models_first_session_is_closed(network, always, monkeypatch):
    opened = []

    def open_session(*arguments):
        opened.append(original(*arguments))
        return opened[-1]

    original = serving.open_session
    monkeypatch.setattr(serving, "open_session", open_session)
    servable = load(network[0], batching=False)
    ((session, _, _),) = opened
    with pytest.raises(RuntimeError, match="closed"):
        session.run(session.graph.get_operations()[0].outputs[0])
    assert run(servable, np.ones((1, 24, 24, 3), np.float32))["output_0"].shape == (1, 5)


def test_frozen_models_are_batched_when_that_is_wanted(network, always):
    folder, model = network
    servable = load(folder, batching=serving.Batching(max_batch_size=4))
    assert servable.callables["serving_default"].kind == "batched"
    images = np.random.default_rng(1).random((3, 24, 24, 3), np.float32)
    np.testing.assert_allclose(
        run(servable, images)["output_0"], model(images).numpy(), rtol=1e-5, atol=1e-6
    )


# --- threads ----------------------------------------------------------------------------------------------


def test_workers_run_no_more_than_their_number_at_once_in_the_order_of_asking():
    workers, running, most, order, lock = (serving.Workers(2, "test"), 0, 0, [], threading.Lock())

    def job(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            order.append(number)
        time.sleep(0.01)
        with lock:
            running -= 1
        return number * 2

    futures = [workers.submit(job, number) for number in range(12)]
    assert [future.result() for future in futures] == [number * 2 for number in range(12)]
    assert most == 2 and all(abs(place - number) <= 1 for place, number in enumerate(order))
    with pytest.raises(ZeroDivisionError):
        workers.run(lambda: 1 / 0)
    workers.close()


def test_a_long_call_runs_on_its_models_threads_which_end_with_it(network, monkeypatch):
    monkeypatch.setattr(serving, "LONG_SECONDS", 0.0)
    folder, model = network
    servable = load(folder, "net-w")

    def own_threads():
        return [thread for thread in threading.enumerate() if thread.name.startswith("model-net-w")]

    images = np.ones((1, 24, 24, 3), np.float32)
    np.testing.assert_allclose(
        run(servable, images)["output_0"], model(images).numpy(), rtol=1e-5, atol=1e-6
    )
    assert 1 <= len(own_threads()) <= len(serving.os.sched_getaffinity(0))
    assert servable.retire(5)
    until(lambda: not own_threads())


# --- replicas ---------------------------------------------------------------------------------------------


def test_the_least_busy_replica_answers():
    class Slow(FakeServable):
        def answer(self, name, inputs):
            self.calls.append((name, inputs))
            if inputs["x"][0, 0] > 0:
                assert go.wait(10)
            return inputs

    go, made = threading.Event(), []

    def make(device):
        made.append(Slow())
        return made[-1]

    servable = load_replicas(["CPU:0", "CPU:1"], make)
    quick, slow = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    threads = [
        threading.Thread(target=servable.run, args=("serving_default", {"x": slow}))
        for _ in range(2)
    ]
    for number, thread in enumerate(threads, 1):
        thread.start()
        while sum(len(replica.calls) for replica in made) < number:
            time.sleep(0.001)
    assert [len(replica.calls) for replica in made] == [1, 1]  # one each
    go.set()
    for thread in threads:
        thread.join()
    go.clear()
    first = threading.Thread(target=servable.run, args=("serving_default", {"x": slow}))
    first.start()
    while not any(inputs["x"][0, 0] > 0 for _, inputs in made[0].calls[1:]):
        time.sleep(0.001)
    for _ in range(5):
        servable.run("serving_default", {"x": quick})
    assert [len(replica.calls) for replica in made] == [2, 6]
    go.set()
    first.join()
    assert servable.retire(5) and all(replica.closed for replica in made)


def test_replicas_are_retired_when_the_last_request_is_answered():
    made = [FakeServable(), FakeServable()]
    waiting = iter(made)
    servable = load_replicas(["CPU:0", "CPU:1"], lambda device: next(waiting))
    assert servable.acquire()
    retired = []
    retiring = threading.Thread(target=lambda: retired.append(servable.retire(30)))
    retiring.start()
    while servable.acquire():  # until it is being retired
        servable.release()
    assert not any(replica.closed for replica in made)
    servable.release()
    retiring.join(30)
    assert retired == [True] and all(replica.closed for replica in made)


def test_an_answer_that_comes_just_after_the_deadline_is_given(monkeypatch):
    class Late(serving.Future):
        def result(self, timeout=None):
            answer = super().result()
            if timeout is not None:
                raise serving.FutureTimeoutError
            return answer

    monkeypatch.setattr(serving, "Future", Late)
    workers = serving.Workers(1, "late")
    assert workers.run(lambda: 3) == 3
    workers.close()


def test_workers_that_nobody_holds_end_their_threads_after_what_they_run():
    workers, go = serving.Workers(2, "dropped"), threading.Event()
    running = [workers.submit(go.wait, 60) for _ in range(2)]
    threads = [one for one in threading.enumerate() if one.name.startswith("dropped-")]
    del workers
    go.set()
    for thread in threads:
        thread.join(60)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)
    assert all(one.result() for one in running)


def test_what_failed_is_not_held_until_a_collection():
    class Large:
        pass

    def fail(argument):
        raise RuntimeError("made to fail")

    workers, large = serving.Workers(1, "fails"), Large()
    seen = weakref.ref(large)
    gc.disable()
    try:
        future = workers.submit(fail, large)
        with pytest.raises(RuntimeError, match="made to fail"):
            future.result(60)
        del large, future
        workers.submit(int).result(60)  # the thread is done with the first
        assert seen() is None
    finally:
        gc.enable()
    workers.close()


def test_a_replica_that_cannot_be_loaded_frees_the_others():
    made = []

    def make(device):
        if device == "GPU:9":
            raise serving.LoadError("target_device GPU:9 is not there")
        made.append(FakeServable())
        return made[-1]

    with pytest.raises(serving.LoadError, match="GPU:9"):
        load_replicas(["CPU:0", "CPU:0", "GPU:9"], make)
    assert len(made) == 2 and all(replica.closed for replica in made)


def test_a_changed_number_of_instances_loads_anew():
    half = str(ROOT / "models/half_plus_two")
    config = serving.ModelConfig("m", half)
    assert (
        serving.ModelConfig("m", half, instances=2).load_key
        != config.load_key
        != serving.ModelConfig("m", half, freeze=False).load_key
    )
    server = serving.ModelServer(
        {
            "model_config_list": [{"config": {"name": "m", "base_path": half, "instances": 2}}],
            "server": NO_POLL,
        }
    )
    assert server.wait(60)
    assert server.predict("m", {"instances": [2.0]})["predictions"].tolist() == [3.0]


def test_a_signature_of_strings_is_warmed_up_without_rows(tf, folder):
    features = {"x": tf.io.FixedLenFeature([], tf.float32)}
    export(
        tf,
        folder / "examples",
        {
            "serving_default": (
                lambda x: {"y": tf.io.parse_example(x, features)["x"] * 2},
                [tf.TensorSpec([None], tf.string, name="x")],
            )
        },
    )
    servable = load(folder / "examples", batching=False)
    example = tf.train.Example(
        features=tf.train.Features(
            feature={"x": tf.train.Feature(float_list=tf.train.FloatList(value=[3]))}
        )
    )
    assert run(servable, np.array([example.SerializeToString(), None], object)[:1])[
        "y"
    ].tolist() == [6.0]
