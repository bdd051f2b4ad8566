"""Models that others made with their own tools, served; compared with TensorFlow called directly.

`strangers.py` has the table of models: a new one is a line there, and is asked all of this.
"""

import base64
import functools
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strangers
from conftest import NO_POLL, ROOT, Rest, assert_error

import serving

NAMES = [model.name for model in strangers.MODELS]
ASKED = [model.name for model in strangers.MODELS if model.asks]
SCRIPTS = {script.name: script for script in strangers.SCRIPTS}


# --- TensorFlow called directly -------------------------------------------------------------------


def array_of(value: Any) -> np.ndarray:
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


class Direct:
    """A SavedModel freshly loaded by TensorFlow itself: into a session, TF2's as objects too."""

    def __init__(self, folder: Path):
        tf = serving.tensorflow()
        self.definitions = strangers.stored_signatures(folder)
        self.callables: dict[str, Callable] = {}  # of the session, by signature
        self.session, is_object = open_graph(folder)
        self.loaded = tf.saved_model.load(str(folder)) if is_object else None
        self.functions = {}  # in the session's graph, where TensorFlow Serving's way is none
        if self.session is None:
            self.session, self.functions = open_objects(folder)

    def ask(self, signature: str, inputs: dict) -> dict[str, np.ndarray]:
        """By objects, if that is how TensorFlow loads it and if its inputs are plain tensors."""
        if self.loaded is None:
            return self.ask_session(signature, inputs)
        tf, function = serving.tensorflow(), self.loaded.signatures[signature]
        specs = function.structured_input_signature[1]
        if specs.keys() != inputs.keys():
            return self.ask_session(signature, inputs)
        tensors = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
        return {name: array_of(value.numpy()) for name, value in function(**tensors).items()}

    def ask_session(self, signature: str, inputs: dict) -> dict[str, np.ndarray]:
        """By a session, as TensorFlow Serving does."""
        definition = self.definitions[signature]
        if signature not in self.callables:
            with self.session.graph.as_default():
                self.callables[signature] = self.make_callable(signature, definition)
        values = self.callables[signature](*(inputs[name] for name in definition.inputs))
        return {name: array_of(value) for name, value in zip(definition.outputs, values)}

    def make_callable(self, signature: str, definition: Any) -> Callable:
        tf, graph = serving.tensorflow(), self.session.graph
        if function := self.functions.get(signature):
            specs = function.structured_input_signature[1]
            inputs = {
                name: tf.compat.v1.placeholder(specs[name].dtype, specs[name].shape)
                for name in definition.inputs
            }
            outputs = function(**inputs)
            fetches = [outputs[name] for name in definition.outputs]
            return self.session.make_callable(fetches, list(inputs.values()))
        feeds = [info.name for info in definition.inputs.values()]
        fetches = [
            tf.identity(graph.get_tensor_by_name(info.name)) if info.name in feeds else info.name
            for info in definition.outputs.values()
        ]  # no feed is fetched
        return self.session.make_callable(fetches, feeds)


def open_graph(folder: Path) -> tuple[Any, bool]:
    """A session over the stored graph, or None if variables stay empty; whether it has objects."""
    tf = serving.tensorflow()
    options = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    session = tf.compat.v1.Session(graph=tf.Graph(), config=options)
    with session.graph.as_default():
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        filled = [
            tf.raw_ops.VarIsInitializedOp(resource=operation.outputs[0])
            for operation in session.graph.get_operations()
            if operation.type == "VarHandleOp"
        ]
        is_object = bool(loaded.object_graph_def.nodes)
        return session if all(session.run(filled)) else None, is_object


def open_objects(folder: Path) -> tuple[Any, dict[str, Any]]:
    """A session over a graph into which the objects are loaded, and its signatures."""
    tf = serving.tensorflow()
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        loaded = tf.saved_model.load(str(folder))
        v1 = tf.compat.v1
        session.run([v1.global_variables_initializer(), v1.tables_initializer()])
    return session, dict(loaded.signatures)


# --- JSON as clients write and read it ------------------------------------------------------------


def write_value(value: np.ndarray) -> Any:
    """An array as nested lists; bytes as text where they are text, else as base64."""
    if value.dtype.kind != "O":
        return numbers(value).tolist()
    written = np.frompyfunc(write_string, 1, 1)(value)
    return written.tolist() if value.ndim else written


def write_string(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def write_body(signature: str, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    columns = {name: write_value(value) for name, value in inputs.items()}
    return {"signature_name": signature, "inputs": columns}


def numbers(value: np.ndarray) -> np.ndarray:
    """An array of a dtype that Python knows: bfloat16 as float32."""
    return value.astype(np.float32) if value.dtype.kind == "V" else value


def read_value(value: Any, like: np.ndarray) -> np.ndarray:
    """Nested lists as an array of the dtype of `like`, in the shape that the lists have."""
    if like.size == 0 and value == like.tolist():
        return like
    if like.dtype.kind == "O":
        read = np.frompyfunc(read_string, 1, 1)
        return array_of(read(np.array(value, object)) if like.ndim else read_string(value))
    wide = object if like.dtype.kind in "iu" else bool if like.dtype.kind == "b" else float
    return np.array(value, wide).astype(like.dtype)


def read_string(value: Any) -> bytes:
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def read_answer(data: bytes, truth: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The `outputs` of an answer, as arrays of the dtypes that TensorFlow answers."""
    assert data.startswith(b"{"), data[:1000]
    outputs = json.loads(data)["outputs"]
    if len(truth) == 1:
        outputs = {next(iter(truth)): outputs}
    assert outputs.keys() == truth.keys()
    return {name: read_value(outputs[name], value) for name, value in truth.items()}


def assert_equal(answer: dict[str, np.ndarray], truth: dict[str, np.ndarray], exact: bool) -> None:
    """Each output is TensorFlow's; floats but for rounding, unless `exact`."""
    for name, value in truth.items():
        if exact or value.dtype.kind not in "fV":
            np.testing.assert_array_equal(answer[name], value, name, strict=True)
            continue
        assert (answer[name].shape, answer[name].dtype) == (value.shape, value.dtype), name
        ours, theirs = numbers(answer[name]), numbers(value)
        largest = np.abs(theirs).max(initial=0)
        np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6 * largest, err_msg=name)


# --- what is served -------------------------------------------------------------------------------


class Exported:
    """The folder of all models, and what their signatures are asked."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.requests = {
            name: pickle.loads((folder / name / "requests").read_bytes()) for name in NAMES
        }
        self.files = files_of(folder)  # as they were exported
        self.versions = {model.name: model.version for model in strangers.MODELS}

    def path(self, name: str) -> Path:
        return self.folder / name / str(self.versions.get(name, 1))

    def serve(self, *names: str, **fields: Any) -> serving.ModelServer:
        """A server of these models, each of them loaded or failed."""
        models = [
            {"config": {"name": name, "base_path": str(self.folder / name), **fields}}
            for name in names
        ]
        server = serving.ModelServer({"model_config_list": models, "server": NO_POLL})
        assert server.wait(300)
        return server

    @functools.cache  # noqa: B019  (there is one, for as long as the tests run)
    def direct(self, name: str) -> Direct:
        return Direct(self.path(name))

    @functools.cache  # noqa: B019
    def truth(self, name: str) -> dict[str, list[dict[str, np.ndarray]]]:
        """What TensorFlow answers to the requests of each signature of a model."""
        direct = self.direct(name)
        return {
            signature: [direct.ask(signature, inputs) for inputs in requests]
            for signature, requests in self.requests[name].items()
        }

    def ask(self, rest: Rest, name: str) -> dict[str, list[bytes]]:
        """What a server answers to the same, as bytes."""
        return {
            signature: [ask(rest, name, signature, inputs) for inputs in requests]
            for signature, requests in self.requests[name].items()
        }

    def ask_all(self, server: serving.ModelServer) -> dict[str, dict[str, list[bytes]]]:
        rest = Rest(server)
        return {name: self.ask(rest, name) for name in NAMES}


def ask(rest: Rest, name: str, signature: str, inputs: dict[str, np.ndarray]) -> bytes:
    return post(rest, name, write_body(signature, inputs))


def digest_of(answers: dict[str, list[bytes]]) -> str:
    return hashlib.sha256(repr(answers).encode()).hexdigest()


def post(rest: Rest, name: str, body: dict[str, Any]) -> bytes:
    """The body of the answer; one that is no 200 has its status in front."""
    response = rest.post(f"/v1/models/{name}:predict", body)
    answer = response.get_data()
    return answer if response.status_code == 200 else b"%d %b" % (response.status_code, answer)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run code of this file in a process of its own."""
    source = f"import sys; sys.path[:0] = [{str(ROOT / 'tests')!r}]; from test_strangers import *\n"
    command = [sys.executable, "-c", source + code, *arguments]
    return subprocess.run(command, capture_output=True, cwd=ROOT)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder, names = tmp_path_factory.mktemp("strangers"), [*NAMES, *SCRIPTS]

    def export(names: list[str]) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / "tests/strangers.py"), str(folder), *names]
        return subprocess.run(command, capture_output=True, text=True)

    with ThreadPoolExecutor(2) as threads:
        for done in threads.map(export, (names[::2], names[1::2])):
            assert done.returncode == 0, done.stderr[-2000:]
    return Exported(folder)


@pytest.fixture(scope="module")
def server(exported):
    """All models as the defaults have them."""
    server = exported.serve(*NAMES)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def answers(exported, server):
    return exported.ask_all(server)


@pytest.fixture(scope="module")
def unfrozen(exported):
    server = exported.serve(*NAMES, freeze=False)
    answers = exported.ask_all(server)
    server.stop()
    return answers


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_loaded(server, name):
    (state,) = server.status(name)["model_version_status"]
    assert (state["state"], state["status"]["error_message"]) == ("AVAILABLE", "")


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_tensorflows(exported, answers, name):
    for signature, truths in exported.truth(name).items():
        for data, truth in zip(answers[name][signature], truths, strict=True):
            assert_equal(read_answer(data, truth), truth, exact=False)


@pytest.mark.parametrize("name", NAMES)
def test_unfrozen_answers_are_those_of_tensorflows_session_to_the_last_bit(
    exported, unfrozen, name
):
    direct = exported.direct(name)
    for signature, requests in exported.requests[name].items():
        for data, inputs in zip(unfrozen[name][signature], requests, strict=True):
            truth = direct.ask_session(signature, inputs)
            assert_equal(read_answer(data, truth), truth, exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_answered_as_columns_are(exported, server, answers, name):
    """Where inputs and outputs have rows, `instances` get as `predictions` what `inputs` get."""
    rest = Rest(server)
    for signature, truths in exported.truth(name).items():
        for number, (inputs, truth) in enumerate(zip(exported.requests[name][signature], truths)):
            lengths = {
                len(value) if value.ndim else None for value in (*inputs.values(), *truth.values())
            }
            if None in lengths or len(lengths) > 1:
                continue
            columns = write_body(signature, inputs)["inputs"]
            rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
            response = rest.post(
                f"/v1/models/{name}:predict", {"signature_name": signature, "instances": rows}
            )
            assert response.status_code == 200, response.get_data()
            predictions = json.loads(response.get_data())["predictions"]
            outputs = json.loads(answers[name][signature][number])["outputs"]
            if len(truth) > 1:
                outputs = [dict(zip(outputs, row)) for row in zip(*outputs.values())]
            assert predictions == outputs


@pytest.mark.parametrize("name", ASKED)
def test_after_a_restart_the_answers_are_the_same_bytes(answers, provoked, name):
    (digest,) = (told for *_, what, told in provoked[name] if what == "the right ones")
    assert digest == digest_of(answers[name])


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_told_as_they_are_stored(exported, server, name):
    answer = json.loads(Rest(server).get(f"/v1/models/{name}/metadata").get_data())
    told = answer["metadata"]["signature_def"]["signature_def"]
    stored = strangers.stored_signatures(exported.path(name))
    assert told.keys() == set(stored)
    for signature, definition in stored.items():
        for side in ("inputs", "outputs"):
            tensors = getattr(definition, side)
            assert told[signature][side].keys() == set(tensors)
            for key, info in tensors.items():
                sizes = [str(dim.size) for dim in info.tensor_shape.dim]
                shape = told[signature][side][key].get("tensor_shape", {"dim": []})
                assert [dim["size"] for dim in shape["dim"]] == sizes


def test_a_model_without_signatures_says_so(server):
    response = Rest(server).post("/v1/models/without_signatures:predict", {"instances": [1]})
    assert_error(response, 400, 'Serving signature name: "serving_default" not found in ...')


@pytest.mark.parametrize(
    "name, signature, inputs",
    [
        ("tf1_beside_sparse", "sparse", {"s": [[1.0, 2.0]]}),
        ("tf1_beside_handle", "handle", {"x": [1.0]}),
    ],
)
def test_a_signature_that_json_cannot_carry_is_refused(server, name, signature, inputs):
    """In words: its own name, or the output's."""
    body = {"signature_name": signature, "inputs": inputs}
    response = Rest(server).post(f"/v1/models/{name}:predict", body)
    assert response.status_code in (400, 501)
    error = json.loads(response.get_data())["error"]
    assert signature in error or "resource" in error, error


@pytest.mark.parametrize(
    "name, verb, signature",
    [
        ("examples", "classify", "classify"),
        ("examples", "regress", "regress"),
        ("tf1_estimator", "classify", "serving_default"),
        ("tf1_estimator", "regress", "regression"),
    ],
)
def test_examples_are_classified_and_regressed_as_tensorflow_does(
    exported, server, tf, name, verb, signature
):
    given = [{"age": 3.5, "kind": "dog"}, {"age": 70.25, "kind": "cat"}]
    feature = tf.train.Feature
    serialized = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    "age": feature(float_list=tf.train.FloatList(value=[row["age"]])),
                    "kind": feature(bytes_list=tf.train.BytesList(value=[row["kind"].encode()])),
                }
            )
        ).SerializeToString()
        for row in given
    ]
    inputs = {"inputs": np.array(serialized, object)}
    truth = exported.direct(name).ask(signature, inputs)
    response = Rest(server).post(
        f"/v1/models/{name}:{verb}", {"signature_name": signature, "examples": given}
    )
    assert response.status_code == 200, response.get_data()
    results = json.loads(response.get_data())["results"]
    if verb == "regress":
        np.testing.assert_allclose(results, truth["outputs"].reshape(-1), 1e-5)
        return
    labels = [[label.decode() for label in row] for row in truth["classes"]]
    assert [[label for label, _ in row] for row in results] == labels
    np.testing.assert_allclose(
        [[score for _, score in row] for row in results], truth["scores"], 1e-5
    )


# --- many at once ---------------------------------------------------------------------------------

CROWD = [
    "one_sigmoid",
    "grey",
    "two_inputs",
    "text",
    "lstm",
    "normalized",
    "autoscale",
    "centred",
    "wide",
    "vocabulary",
    "bytes",
    "loops",
    "passed_through",
    "dtypes",
    "tf1_main_op",
]
JOINABLE = ["softmax", "grey", "two_inputs", "normalized", "vocabulary", "passed_through"]


def crowd(exported: Exported, server: serving.ModelServer, names: list[str], is_right) -> list:
    """What of a thousand requests by sixteen clients `is_right` says no to, by what was asked."""
    wrong, together = [], threading.Barrier(16)
    # Not in their threads: Python 3.11's `ast`, which Werkzeug's rules are made with, fails there
    # now and then ("AST constructor recursion depth mismatch").
    clients = [Rest(server) for _ in range(16)]

    def be_a_client(seed: int) -> None:
        random, rest = np.random.default_rng(seed), clients[seed]
        together.wait()
        for _ in range(1008 // 16):
            name = str(random.choice(names))
            signature = str(random.choice(list(exported.requests[name])))
            number = int(random.integers(len(strangers.ROWS)))
            got = ask(rest, name, signature, exported.requests[name][signature][number])
            if not is_right(name, signature, number, got):
                wrong.append((name, signature, number, got[:100]))

    threads = [threading.Thread(target=be_a_client, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_of_a_thousand_requests_by_sixteen_clients_each_gets_what_it_gets_alone(
    exported, server, answers
):
    wrong = crowd(
        exported,
        server,
        CROWD,
        lambda name, signature, number, got: got == answers[name][signature][number],
    )
    assert not wrong, (len(wrong), sorted({name for name, *_ in wrong}), wrong[:3])
    rest = Rest(server)
    for name in CROWD:
        assert exported.ask(rest, name) == answers[name], name


def is_truth(exported: Exported, name: str, signature: str, number: int, got: bytes) -> bool:
    truth = exported.truth(name)[signature][number]
    try:
        assert_equal(read_answer(got, truth), truth, exact=False)
    except (AssertionError, ValueError):
        return False
    return True


def test_requests_that_are_joined_as_the_config_asks_get_what_they_get_alone(exported):
    server = exported.serve(*JOINABLE, batching=True)
    wrong = crowd(exported, server, JOINABLE, functools.partial(is_truth, exported))
    server.stop()
    assert not wrong, (len(wrong), wrong[:3])


@pytest.mark.parametrize("name", ["autoscale", "wide", "centred"])
def test_rows_that_depend_on_each_other_are_never_joined_though_the_config_asks(exported, name):
    """The model is refused when it loads, or runs unbatched: nobody gets another answer."""
    base_path = str(exported.folder / name)
    server = serving.ModelServer(
        {
            "server": NO_POLL,
            "model_config_list": [
                {"config": {"name": name, "base_path": base_path, "batching": True}}
            ],
        }
    )
    assert server.wait(300)
    refused = bool(server.readiness())
    wrong = crowd(
        exported,
        server,
        [name],
        lambda *asked: refused and asked[-1].startswith(b"404 ") or is_truth(exported, *asked),
    )
    server.stop()
    assert not wrong, (len(wrong), wrong[:3])


# --- models with a state --------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def follow(script: strangers.Script, rest: Rest, truths: list[dict]) -> None:
    """Ask the steps of a script one after the other; each answer is TensorFlow's."""
    for (signature, inputs), truth in zip(script.steps, truths, strict=True):
        data = ask(rest, script.name, signature, inputs)
        assert_equal(read_answer(data, truth), truth, exact=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_loading_and_reloading_leave_a_models_state_as_it_is_stored(exported, name):
    script, path = SCRIPTS[name], exported.path(name)
    direct = Direct(path)
    truths = [direct.ask(signature, inputs) for signature, inputs in script.steps]
    server = exported.serve(name)
    try:
        follow(script, Rest(server), truths)
        os.utime(path / "saved_model.pb", (1, 1))  # another time: loaded anew
        assert server.reload()[0] == 201
        follow(script, Rest(server), truths)
    finally:
        server.stop()


def test_loading_and_asking_change_no_file(exported, server, provoked):
    assert files_of(exported.folder) == exported.files


def test_loading_calls_no_signature_that_writes_a_file(exported):
    diary, here = exported.folder / "diary/diary", set(Path.cwd().iterdir())
    diary.unlink(missing_ok=True)
    server = exported.serve(*SCRIPTS)
    try:
        assert not diary.exists()
        assert set(Path.cwd().iterdir()) == here
        ask(Rest(server), "diary", "write", {"x": np.ones(3, np.float32)})
        assert diary.read_text() == "3"
    finally:
        server.stop()
        diary.unlink(missing_ok=True)


# --- tensors of a wrong shape ---------------------------------------------------------------------


def wrong_values(value: np.ndarray, sizes: list) -> list[tuple[str, np.ndarray]]:
    """What contradicts a signature's shape: higher and lower ranks, each fixed size changed."""
    found = [("a rank too high", value[np.newaxis])]
    if value.ndim:
        found.append(("a rank too low", array_of(value[0])))
    if value.ndim > 2:
        found.append(("rank 1", value.reshape(-1)[:1]))
    for axis, size in enumerate(sizes):
        if size is not None:
            more = np.take(value, [*range(size), 0], axis)
            found.append((f"size {size + 1} of axis {axis}", more))
    return found


def wrong_requests(exported: Exported, name: str) -> list[tuple]:
    """(signature, input, what is wrong, inputs) of each wrong shape of each input."""
    found, stored = [], strangers.stored_signatures(exported.path(name))
    for signature, requests in exported.requests[name].items():
        for key, info in stored[signature].inputs.items():
            if info.tensor_shape.unknown_rank:
                continue
            sizes = [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]
            for what, value in wrong_values(requests[1][key], sizes):
                found.append((signature, key, what, {**requests[1], key: value}))
    return found


def provoke(folder: str, *names: str) -> None:
    """Ask each model wrong shapes, and then what is right; print its name and each answer."""
    exported = Exported(Path(folder))
    rest = Rest(exported.serve(*names))
    for name in names:
        print(json.dumps([name]), flush=True)
        good = exported.ask(rest, name)
        print(json.dumps([name, "", "", "the right ones", digest_of(good)]), flush=True)
        for signature, key, what, inputs in wrong_requests(exported, name):
            for body in write_bodies(signature, inputs):
                answer = post(rest, name, body)[:2000].decode()
                print(json.dumps([name, signature, key, what, answer]), flush=True)
        same = exported.ask(rest, name) == good
        print(json.dumps([name, "", "", "the right ones again", same]), flush=True)


def write_bodies(signature: str, inputs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The same as columns, and as rows where there is one input and it has some."""
    body = write_body(signature, inputs)
    value, *others = body["inputs"].values()
    if others or not isinstance(value, list):
        return [body]
    return [body, {"signature_name": signature, "instances": value}]


def provoke_all(exported: Exported, names: list[str]) -> dict[str, list]:
    """By model, what it answered to wrong shapes, in processes that may die of it."""
    found: dict[str, list] = {}
    while names:
        done = python("provoke(*sys.argv[1:])", str(exported.folder), *names)
        for line in done.stdout.decode().splitlines():
            name, *answer = json.loads(line)
            found.setdefault(name, []).extend([answer] if answer else [])
        assert done.stdout, done.stderr.decode()[-2000:]
        if done.returncode == 0:
            break
        last = [name for name in names if name in found][-1]
        reason = f"the process ended with {done.returncode}: {done.stderr.decode()[-500:]}"
        found[last].append(["", "", "the process", reason])
        names = names[names.index(last) + 1 :]
    return found


@pytest.fixture(scope="module")
def provoked(exported):
    with ThreadPoolExecutor(2) as threads:
        halves = threads.map(functools.partial(provoke_all, exported), (ASKED[::2], ASKED[1::2]))
    return dict(item for half in halves for item in half.items())


@pytest.mark.parametrize("name", ASKED)
def test_tensors_of_a_wrong_shape_are_refused_by_their_inputs_name(provoked, name):
    answers = provoked[name]
    assert answers[-1][2:] == ["the right ones again", True], answers[-1]
    for signature, key, what, answer in answers[1:-1]:
        assert answer.startswith("400 "), (signature, key, what, answer)
        error = json.loads(answer.removeprefix("400 "))["error"]
        assert re.search(rf"(?<!\w){re.escape(key)}(?!\w)", error), (signature, key, what, error)
        assert "{{node" not in error, "TensorFlow was called"
