"""Pipelines from the config: served as models are, validated with OpenVINO Model Server's texts, alive while members change."""

import copy
import json
import shutil
import threading
import time

import numpy as np
import pytest
from conftest import (
    ROOT,
    Disk,
    FakeDetector,
    FakeServable,
    Rest,
    assert_error,
    bearer,
    config,
    fake_server,
    key_entry,
    signature,
    spec,
    until,
)
from test_binary import npy
from test_saved_models import export

import serving

DEMO = {
    "name": "two_steps",
    "inputs": ["x"],
    "nodes": [
        {
            "name": "first",
            "type": "DL model",
            "model_name": "half",
            "inputs": [{"x": {"node_name": "request", "data_item": "x"}}],
            "outputs": [{"data_item": "y", "alias": "middle"}],
        },
        {
            "name": "second",
            "type": "DL model",
            "model_name": "third",
            "inputs": [{"x": {"node_name": "first", "data_item": "middle"}}],
            "outputs": [{"data_item": "y", "alias": "end"}],
        },
    ],
    "outputs": [{"y": {"node_name": "second", "data_item": "end"}}],
}


class Other(serving.Servable):
    """y = x of another shape or dtype, for what does not fit."""

    def __init__(self, x):
        signatures = {"serving_default": signature([x], [spec("y", shape=(None, 1))])}
        super().__init__(signatures, lambda name, given: {"y": given["x"]})


SERVABLES = {
    "half": FakeServable(2),
    "third": FakeServable(3),
    "wide": Other(spec("x", shape=(None, 7))),
    "whole": Other(spec("x", "DT_INT32", (None, 1))),
}


def unstarted(*pipelines, **others):
    servables = {name: copy.copy(servable) for name, servable in SERVABLES.items()}
    return serving.ModelServer(
        {
            "model_config_list": [
                {"config": {"name": name, "base_path": name}} for name in servables
            ],
            "pipeline_config_list": list(pipelines),
            "server": {"file_system_poll_wait_seconds": 0},
            **others,
        },
        load=lambda folder, model: servables[model.name],
        list_versions=lambda base: {1: serving.Path(base) / "1"},
    )


def build(*pipelines, **others):
    server = unstarted(*pipelines, **others)
    assert server.wait(10)
    return server


def changed(**changes):
    """DEMO with a change: `nodes` by index to fields, anything else at the top."""
    pipeline = copy.deepcopy(DEMO)
    for index, fields in changes.pop("nodes", {}).items():
        pipeline["nodes"][index] |= fields
    return pipeline | changes


def link(name, node, item):
    return {name: {"node_name": node, "data_item": item}}


def test_a_pipeline_answers_as_its_models_one_after_the_other(how):
    rest = Rest(build(DEMO), how)
    for rows in ([[1.0]], [[1.0], [2.0], [5.0]]):
        middle = rest.post("/v1/models/half:predict", {"instances": rows}).json["predictions"]
        end = rest.post("/v1/models/third:predict", {"instances": middle}).json["predictions"]
        assert rest.post("/v1/models/two_steps:predict", {"instances": rows}).json == {
            "predictions": end
        }
        assert rest.post("/v1/models/two_steps:predict", {"inputs": {"x": rows}}).json == {
            "outputs": end
        }
        assert rest.post(
            "/v1/models/two_steps:predict", {"instances": [{"x": row} for row in rows]}
        ).json == {"predictions": end}


def test_nodes_in_helping_threads_keep_the_deadline_of_the_request():
    """Two models side by side, each of which waits for the other to have begun."""
    both, seen = threading.Barrier(2), []

    class Slow(FakeServable):
        def call(self, name, inputs, trace=serving.UNTRACED):
            both.wait(10)
            seen.append((threading.get_ident(), trace))
            return super().call(name, inputs, trace)

    nodes = [
        {**DEMO["nodes"][0], "name": name, "model_name": name, "outputs": [output]}
        for name in ("left", "right")
        for output in [{"data_item": "y", "alias": "y"}]
    ]
    outputs = [link("l", "left", "y"), link("r", "right", "y")]
    server = fake_server(
        {"left": Slow(1), "right": Slow(2)},
        pipeline_config_list=[
            {"name": "both", "inputs": ["x"], "nodes": nodes, "outputs": outputs}
        ],
    )
    trace = serving.Trace()
    trace.limit(60, None)
    answer = server.predict("both", {"inputs": [[1.0]]}, trace=trace)["outputs"]
    assert (answer["l"].tolist(), answer["r"].tolist()) == ([[1.5]], [[2.5]])
    assert len({thread for thread, _ in seen}) == 2
    assert [asked for _, asked in seen] == [trace, trace]
    assert trace.model == "both" and 0 < trace.inference <= trace.ended - trace.began
    server.stop()


@pytest.mark.parametrize("shards", [None, 3])
@pytest.mark.parametrize(
    "ends, code",
    [({"deadline": 0.0}, "DEADLINE_EXCEEDED"), ({"has_left": lambda: True}, "CANCELLED")],
    ids=["deadline", "client"],
)
def test_no_node_or_shard_starts_when_nobody_waits_for_it(ends, code, shards):
    """The first that runs, and ends the request, is the last."""
    ran, trace = [], serving.Trace()

    class First(FakeServable):
        def call(self, name, inputs, trace=serving.UNTRACED):
            ran.append(name)
            vars(trace).update(ends)
            return super().call(name, inputs, trace)

    server = fake_server(
        {"half": First(2), "third": First(3)},
        pipeline_config_list=[changed(demultiply_count=shards)],
    )
    with pytest.raises(serving.ServingError) as raised:
        server.predict(
            "two_steps", {"inputs": [[1.0]] if shards is None else [[[1.0]]] * 3}, trace=trace
        )
    assert (raised.value.code, len(ran)) == (code, 1) and trace.nodes.keys() == {"first"}
    server.stop()


@pytest.mark.parametrize("where", ["", "/versions/1", "/versions/7", "/versions/0", "/labels/any"])
def test_versions_and_labels_of_a_pipeline_are_ignored(where):
    rest = Rest(build(DEMO))
    assert rest.post(f"/v1/models/two_steps{where}:predict", {"instances": [[1.0]]}).json == {
        "predictions": [[4.25]]
    }
    state = {
        "version": "1",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert rest.get(f"/v1/models/two_steps{where}").json == {"model_version_status": [state]}
    assert rest.get(f"/v1/models/two_steps{where}/metadata").json["modelSpec"] == {
        "name": "two_steps",
        "signatureName": "",
        "version": "1",
    }
    assert rest.get("/v1/config").json["two_steps"] == {"model_version_status": [state]}


def test_metadata_has_the_shapes_of_what_the_request_feeds():
    found = Rest(build(DEMO)).get("/v1/models/two_steps/metadata").json["metadata"]["signature_def"]
    dim = [{"size": "-1", "name": ""}, {"size": "1", "name": ""}]
    assert found["signature_def"]["serving_default"] == {
        "inputs": {
            "x": {
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": dim, "unknown_rank": False},
                "name": "x",
            }
        },
        "outputs": {
            "y": {
                "dtype": "DT_FLOAT",
                "tensor_shape": {"dim": dim, "unknown_rank": False},
                "name": "y",
            }
        },
        "method_name": "",
    }
    assert found["signatureDef"]["serving_default"]["inputs"]["x"]["tensorShape"] == {
        "dim": dim,
        "unknownRank": False,
    }


@pytest.mark.parametrize(
    "body, text",
    [
        ({"inputs": {"z": [[1.0]]}}, "Missing named input: x in 'inputs' object."),
        ({"instances": [{"x": [1.0], "z": 1}]}, "Failed to process element: 0 key: z..."),
        ({}, "Missing 'inputs' or 'instances' key"),
        ({"instances": [["a"]]}, "Failed to process element: 0 of 'instances' list..."),
    ],
)
def test_wrong_requests_to_a_pipeline(body, text):
    assert_error(Rest(build(DEMO)).post("/v1/models/two_steps:predict", body), 400, text)


def test_a_wrong_array_is_told_by_what_its_sender_knows(tmp_path):
    """By the pipeline's own input where the request is wrong, by the node's name where that is."""
    (tmp_path / "mine.py").write_text("def flat(inputs, params): return {'y': inputs['x'].ravel()}")

    class Strict(FakeServable):
        def answer(self, name, inputs):
            return super().answer(name, {"x": serving.fit(spec("x", shape=(None, 1)), inputs)})

    node = {**DEMO["nodes"][0], "inputs": [link("x", "request", "picture")]}
    outputs = [link("y", "first", "middle")]
    renamed = {"name": "renamed", "inputs": ["picture"], "nodes": [node], "outputs": outputs}
    first = {**node, "inputs": [link("x", "mine", "y")]}
    nodes = [custom(f"{tmp_path}/mine.py:flat"), first]
    flat = {**renamed, "name": "flat", "inputs": ["x"], "nodes": nodes}
    server = fake_server(
        {"half": Strict(2)},
        pipeline_config_list=[
            renamed,
            {**renamed, "name": "split", "demultiply_count": -1},
            {**renamed, "name": "three", "demultiply_count": 3},
            flat,
        ],
    )
    for name, text in (
        ("renamed", "input 'picture' takes float [-1, 1], got shape [1, 2]"),
        ("split", "input 'picture' takes float [-1, -1, 1], got shape [1, 2]"),
        ("three", "input 'picture' takes float [3, -1, 1], got shape [1, 2]"),
        ("flat", "node 'first': input 'x' takes float [-1, 1], got shape [2]"),
    ):
        with pytest.raises(serving.BadRequest) as raised:
            server.predict(name, {"inputs": [[1.0, 2.0]]})
        assert raised.value.message == text
    server.stop()


# Some of OpenVINO Model Server's table (all of it: test_pipelines_engine.py): the text, where, and
# the status of a reload.
TABLE = [
    (changed(name="half"), "Pipeline has the same name as model", ".name", 500),
    (
        changed(nodes={0: {"version": 9}}),
        "Pipeline definition has reference to missing model",
        ".nodes[0]",
        500,
    ),
    (changed(nodes={1: {"model_name": "wide"}}), "Invalid input shape", ".nodes[1].inputs[0]", 400),
    (
        changed(nodes={1: {"model_name": "whole"}}),
        "Invalid input precision",
        ".nodes[1].inputs[0]",
        400,
    ),
]


@pytest.mark.parametrize(
    "pipeline, text, where, status", TABLE, ids=[text for _, text, _, _ in TABLE]
)
def test_table_of_wrong_pipelines(pipeline, text, where, status):
    """The server starts all the same, the wrong pipeline is listed with its reason, models and the good pipeline answer."""
    good = changed(name="good")
    server = unstarted(pipeline, good)
    assert server.reload(10)[0] == status
    rest, name = Rest(server), pipeline["name"]
    assert rest.post("/v1/models/good:predict", {"instances": [[1.0]]}).json == {
        "predictions": [[4.25]]
    }
    assert rest.post("/v1/models/half:predict", {"instances": [[1.0]]}).json == {
        "predictions": [[2.5]]
    }
    if name == "half":
        assert rest.get("/v1/models/half").json["model_version_status"][0]["state"] == "AVAILABLE"
        return
    (state,) = rest.get(f"/v1/models/{name}").json["model_version_status"]
    assert (
        state["version"] == "1"
        and state["state"] == "LOADING"
        and state["status"]["error_code"] == "FAILED_PRECONDITION"
    )
    assert (
        state["status"]["error_message"].startswith(f"$.pipeline_config_list[0]{where}")
        and f": {text}" in state["status"]["error_message"]
    )
    assert_error(
        rest.post(f"/v1/models/{name}:predict", {"instances": [[1.0]]}),
        404,
        "Pipeline is not loaded yet",
    )
    assert_error(rest.get("/readyz"), 503, f"Not ready: {name}")


def test_a_reload_with_a_wrong_pipeline_has_the_status_of_its_mistake(tmp_path):
    path = tmp_path / "config.json"
    models = [
        {"config": {"name": name, "base_path": str(ROOT / "models" / folder)}}
        for name, folder in (("half", "half_plus_two"), ("third", "half_plus_three"))
    ]

    def write(*pipelines):
        path.write_text(
            json.dumps({"model_config_list": models, "pipeline_config_list": pipelines})
        )

    write(DEMO)
    server = serving.ModelServer(path, poll_seconds=0)
    assert server.wait(60)
    rest = Rest(server)
    assert rest.post("/v1/models/two_steps:predict", {"instances": [1.0, 2.0]}).json == {
        "predictions": [4.25, 4.5]
    }
    write(changed(nodes={0: {"model_name": "gone"}}))
    answer = rest.post("/v1/config/reload")
    assert (
        answer.status_code == 500
        and answer.json["details"]
        == [f"$.pipeline_config_list[0]{answer.json['details'][0].partition('[0]')[2]}"]
        and "missing model" in answer.json["details"][0]
    )
    assert rest.post("/v1/models/half:predict", {"instances": [1.0]}).status_code == 200
    write()
    assert rest.post("/v1/config/reload").status_code == 201
    assert rest.get("/v1/models/two_steps").json["model_version_status"][0]["state"] == "END"
    assert_error(
        rest.post("/v1/models/two_steps:predict", {"instances": [1.0]}),
        404,
        "Servable not found for request: Latest(two_steps)",
    )
    write(DEMO)
    assert rest.post("/v1/config/reload").status_code == 201
    assert rest.post("/v1/models/two_steps:predict", {"instances": [1.0]}).json == {
        "predictions": [4.25]
    }
    server.stop()


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": [link("y", "secnd", "end")]},
        {"outputs": [link("y", "second", "middle")]},
        {"outputs": []},
        {"inputs": ["other"]},
        {"nodes": {0: {"name": "second"}}},
        {"nodes": {0: {"name": "request"}}},
        {"nodes": {0: {"version": 9}}},
        {"nodes": {0: {"model_name": "gone"}}},
        {"nodes": {0: {"inputs": [link("z", "request", "x")]}}},
        {"nodes": {0: {"outputs": [{"data_item": "z", "alias": "middle"}]}}},
        {"nodes": {1: {"gather_from_node": "first"}}},
        {"nodes": {1: {"inputs": []}}},
        {"name": "half"},
    ],
    ids=str,
)
def test_check_tells_of_a_pipeline_what_a_reload_tells(tmp_path, capsys, change):
    pairs = [("half", "half_plus_two"), ("third", "half_plus_three")]
    models = [{"name": name, "base_path": str(ROOT / "models" / base)} for name, base in pairs]
    (tmp_path / "c.json").write_text(
        json.dumps(config(*models, pipeline_config_list=[DEMO, changed(**{"name": "p"} | change)]))
    )
    server = serving.ModelServer(tmp_path / "c.json")
    wanted = server.reload()[1]["details"]
    server.stop()
    assert serving.main([str(tmp_path / "c.json"), "--check"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert wanted == [line[len("wrong: ") :] for line in lines if line.startswith("wrong: ")]


def test_check_tells_of_a_folder_that_cannot_be_read_once_and_of_its_model(tmp_path):
    models = [{"name": "half", "base_path": str(tmp_path / "nowhere")}]
    models += [{"name": "third", "base_path": str(ROOT / "models/half_plus_three")}]
    server = serving.ModelServer(config(*models, pipeline_config_list=[DEMO]))
    (told,) = serving.examine(server)[1]
    assert told.startswith("$.model_config_list[0].config.base_path: ")


def test_check_knows_nothing_of_the_tensors_of_a_keras_file(tmp_path):
    (tmp_path / "k/1").mkdir(parents=True)
    (tmp_path / "k/1/model.keras").write_bytes(b"x")
    node = {"model_name": "k", "inputs": [link("any", "request", "x")]}
    wrong = changed(name="wrong", nodes={0: node}, outputs=[link("y", "secnd", "end")])
    models = [{"name": "k", "base_path": str(tmp_path / "k")}]
    models += [{"name": "third", "base_path": str(ROOT / "models/half_plus_three")}]
    pipelines = [changed(nodes={0: node}), wrong]
    server = serving.ModelServer(config(*models, pipeline_config_list=pipelines))
    (told,) = serving.examine(server)[1]
    assert told.startswith("$.pipeline_config_list[1].outputs[0]: ") and "missing node" in told


@pytest.mark.parametrize(
    "change, text",
    [
        (
            {"outputs": [{**link("a", "first", "middle"), **link("b", "first", "middle")}]},
            ".outputs[0]: expected an object of one key, got 2",
        ),
        (
            {"nodes": {0: {"inputs": [{}]}}},
            ".nodes[0].inputs[0]: expected an object of one key, got 0",
        ),
        ({"nodes": {0: {"type": "model"}}}, ".nodes[0].type: expected DL model or custom"),
        ({"nodes": {0: {"type": "custom"}}}, ".nodes[0]: a node of type 'custom' needs 'function'"),
        ({"nodes": {0: {"library_name": "x"}}}, ".nodes[0]: a node of type 'DL model'"),
        (
            {"nodes": {0: {"demultiply_count": 10001}}},
            ".nodes[0].demultiply_count: expected at most 10000",
        ),
        ({"nodes": {0: {"version": 0}}}, ".nodes[0].version: expected at least 1"),
        (
            {"nodes": {0: {"modelname": "x"}}},
            ".nodes[0].modelname: unknown key; did you mean 'model_name'?",
        ),
        ({"version": 1}, ".version: unknown key"),
    ],
)
def test_grammar(change, text):
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": [], "pipeline_config_list": [changed(**change)]})
    assert raised.value.message.startswith(f"$.pipeline_config_list[0]{text}"), raised.value.message


@pytest.mark.parametrize("pin", [{"version": 5}, {"version_label": "x"}])
def test_a_deployment_of_a_pipeline_pins_no_version(pin):
    deployment = {"id": "d", "model": DEMO["name"], **pin}
    wrong = {"model_config_list": [], "pipeline_config_list": [DEMO]}
    text = rf"deployments\[0\].{list(pin)[0]}: '.*' is a pipeline, which has no versions"
    with pytest.raises(serving.ConfigError, match=text):
        serving.load_config({**wrong, "deployments": [deployment]})


FUNCTIONS = """
import numpy as np

def double(inputs, params):
    return {"y": inputs["x"] * float(params.get("factor", 2))}

def fails(inputs, params):
    raise RuntimeError("secret")

def wrong(inputs, params):
    return {"z": inputs["x"]}
"""


def custom(function, **fields):
    return {
        "name": "mine",
        "type": "custom",
        "function": function,
        "inputs": [link("x", "request", "x")],
        "outputs": [{"data_item": "y", "alias": "y"}],
        **fields,
    }


def test_custom_nodes_are_python_functions(tmp_path, caplog):
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    pipelines = [
        {
            "name": f,
            "inputs": ["x"],
            "nodes": [custom(f"mine.py:{f}", params={"factor": "3"})],
            "outputs": [link("y", "mine", "y")],
        }
        for f in ("double", "fails", "wrong", "missing")
    ]
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "model_config_list": [],
                "pipeline_config_list": pipelines,
                "server": {"file_system_poll_wait_seconds": 0},
            }
        )
    )
    server = serving.ModelServer(path)
    assert server.wait(10)
    rest = Rest(server)
    assert rest.post("/v1/models/double:predict", {"instances": [1.5, 2.0]}).json == {
        "predictions": [4.5, 6.0]
    }
    failed = rest.post("/v1/models/fails:predict", {"instances": [1.5]})
    assert (
        failed.status_code == 500
        and "secret" not in failed.json["error"]
        and "secret" in caplog.text
    )
    wrong = rest.post("/v1/models/wrong:predict", {"instances": [1.5]})
    assert (
        wrong.status_code == 500
        and "'mine'" in wrong.json["error"]
        and "'y'" in wrong.json["error"]
    )
    state = rest.get("/v1/models/missing").json["model_version_status"][0]
    assert state["state"] == "LOADING"
    place = "$.pipeline_config_list[3].nodes[0].function: "
    assert state["status"]["error_message"].startswith(f"{place}mine.py: has no 'missing'")
    assert any(problem.startswith(place) for problem in server.manager.problems)


def test_a_model_without_the_signature_that_nodes_call_says_which_it_has():
    servable = FakeServable(2)
    servable.signatures = {"other": servable.signatures["serving_default"]}
    server = fake_server({"half": servable, "third": FakeServable(3)}, pipeline_config_list=[DEMO])
    (state,) = Rest(server).get("/v1/models/two_steps").json["model_version_status"]
    assert state["status"]["error_message"] == (
        "$.pipeline_config_list[0].nodes[0].model_name: node 'first': model 'half' has no "
        "signature 'serving_default'; it has other"
    )
    server.stop()


def serve_function(folder, text):
    """A server of a pipeline p of one function in mine.py, which it looks at when it is told to."""
    if text is not None:
        (folder / "mine.py").write_text(text)
    node = custom("mine.py:double")
    outputs = [link("y", "mine", "y")]
    pipeline = {"name": "p", "inputs": ["x"], "nodes": [node], "outputs": outputs}
    config = {
        "model_config_list": [],
        "pipeline_config_list": [pipeline],
        "server": {"file_system_poll_wait_seconds": 0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    server = serving.ModelServer(folder / "config.json")
    assert server.wait(10)
    return server, Rest(server)


def test_complex_numbers_of_a_function_are_refused_as_those_of_a_model(tmp_path):
    text = "def double(inputs, params):\n    return {'y': inputs['x'].astype('complex64')}\n"
    _, rest = serve_function(tmp_path, text)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    binary = {"parameters": {"binary_data_output": True}}
    for path, body in (
        ("/v1/models/p:predict", {"inputs": [1.0]}),
        ("/v1/models/p:predict", {"instances": [1.0]}),
        ("/v2/models/p/infer", {"inputs": [tensor]}),
        ("/v2/models/p/infer", {"inputs": [tensor], **binary}),
    ):
        answer = rest.post(path, body)
        assert_error(answer, 400, "Failed to write JSON value for tensor type: complex64")


def test_what_is_wrong_with_a_pipeline_is_a_problem_until_it_is_mended():
    disk = Disk(half=[1], third=[1])
    source = config("half", "third", pipeline_config_list=[DEMO])
    server = serving.ModelServer(source, load=disk.load, list_versions=disk.list_versions)
    assert server.wait(10) and not server.manager.problems
    disk.models["half"] = set()
    told = [(server.reload()[0], server.manager.problems) for _ in range(3)]
    assert [status for status, _ in told] == [500, 200, 200]  # as OpenVINO Model Server
    assert "half" in told[0][1][0] and told[0][1] == told[1][1] == told[2][1]
    disk.models["half"] = {1}
    assert server.reload()[0] == 201 and not server.manager.problems and not server.readiness()
    server.stop()


@pytest.mark.parametrize("version", [1, 123])
def test_a_name_that_is_a_model_then_a_pipeline_then_the_model_again(tmp_path, version):
    shutil.copytree(ROOT / "models/half_plus_two/123", tmp_path / "own" / str(version))
    path = tmp_path / "config.json"
    members = [
        {"config": {"name": name, "base_path": str(ROOT / "models" / folder)}}
        for name, folder in (("half", "half_plus_two"), ("third", "half_plus_three"))
    ]
    own = {"config": {"name": "two_steps", "base_path": str(tmp_path / "own")}}
    as_model = {"model_config_list": [*members, own]}
    as_pipeline = {"model_config_list": members, "pipeline_config_list": [DEMO]}
    path.write_text(json.dumps(as_model))
    server = serving.ModelServer(path, poll_seconds=0)
    assert server.wait(60)
    rest, models = Rest(server), []
    for source, answer in ((as_model, 2.5), (as_pipeline, 4.25), (as_model, 2.5)):
        path.write_text(json.dumps(source))
        assert rest.post("/v1/config/reload").status_code in (200, 201)
        asked = rest.post("/v1/models/two_steps:predict", {"instances": [1.0]})
        assert asked.json == {"predictions": [answer]}
        there = server.manager.available["two_steps"].versions.values()
        states = rest.get("/v1/models/two_steps").json["model_version_status"]
        assert [one["state"] for one in states].count("AVAILABLE") == len(there) == 1
        models += there
    server.stop()
    assert all(model.closed for model in (models[0], models[2]))


def test_a_function_that_is_edited_is_taken_in_by_a_reload_and_a_broken_one_leaves_the_old(
    tmp_path,
):
    server, rest = serve_function(tmp_path, FUNCTIONS)

    def ask():
        return rest.post("/v1/models/p:predict", {"instances": [1.5]}).json

    assert ask() == {"predictions": [3.0]}
    for broken in ("def double(:", None):
        (tmp_path / "mine.py").unlink() if broken is None else (tmp_path / "mine.py").write_text(
            broken
        )
        server.manager.refresh(polling=True)  # a file may be half written
        assert ask() == {"predictions": [3.0]}
        told = rest.post("/v1/config/reload")
        assert told.status_code != 200 and "$.pipeline_config_list[0]" in json.dumps(told.json)
        assert ask() == {"predictions": [3.0]}
    (tmp_path / "mine.py").write_text(FUNCTIONS.replace("2)", "4)"))
    assert rest.post("/v1/config/reload").status_code == 201
    assert ask() == {"predictions": [6.0]}


def test_a_function_that_could_not_be_imported_is_executed_again_by_a_reload_alone(tmp_path):
    count = "from pathlib import Path\nwith open(Path(__file__).parent / 'runs', 'a') as f:\n    f.write('x')\n"
    server, rest = serve_function(tmp_path, count + "raise OSError('not yet')\n")
    for _ in range(3):
        server.manager.refresh(polling=True)
    assert (tmp_path / "runs").read_text() == "x"
    assert rest.get("/v1/models/p").json["model_version_status"][0]["state"] == "LOADING"
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    assert rest.post("/v1/config/reload").status_code == 201
    answer = rest.post("/v1/models/p:predict", {"instances": [1.5]})
    assert answer.json == {"predictions": [3.0]}


def test_dynamic_demultiplexer_over_http(tmp_path):
    """[K, 1, 1] rows are split, halved one by one, and gathered; no rows are 204."""
    pipeline = {
        "name": "split",
        "inputs": ["x"],
        "demultiply_count": -1,
        "nodes": [DEMO["nodes"][0]],
        "outputs": [link("y", "first", "middle")],
    }
    rest = Rest(build(pipeline))
    assert rest.post("/v1/models/split:predict", {"inputs": [[[1.0]], [[2.0]], [[4.0]]]}).json == {
        "outputs": [[[2.5]], [[3.0]], [[4.0]]]
    }
    nothing = rest.post("/v1/models/split:predict", npy(np.zeros((0, 1, 1), np.float32)))
    assert nothing.status_code == 204 and nothing.data == b""


def test_a_pipeline_as_a_deployment():
    """A detector behind a custom node that turns the picture: one deployment of /predict."""
    server = serving.ModelServer(
        {
            "model_config_list": [{"config": {"name": "d", "base_path": "d"}}],
            "deployments": [{"id": "pets", "model": "seen", "label_map": ["cat", "dog"]}],
            "pipeline_config_list": [
                {
                    "name": "seen",
                    "inputs": ["image"],
                    "nodes": [
                        {
                            "name": "detect",
                            "type": "DL model",
                            "model_name": "d",
                            "inputs": [link("image", "request", "image")],
                            "outputs": [
                                {"data_item": name, "alias": name}
                                for name in (
                                    "detection_boxes",
                                    "detection_scores",
                                    "detection_classes",
                                )
                            ],
                        }
                    ],
                    "outputs": [
                        link(name, "detect", name)
                        for name in ("detection_boxes", "detection_scores", "detection_classes")
                    ],
                }
            ],
            "auth": {"keys": [key_entry("site", "k")]},
        },
        load=lambda folder, model: FakeDetector(),
        list_versions=lambda base: {1: serving.Path(base) / "1"},
    )
    assert server.wait(10)
    answer = (
        Rest(server)
        .post("/predict", {"image_type": "array", "data": [[[51, 102, 1]]]}, headers=bearer("k"))
        .json["predictions"]
    )
    assert (
        answer[0]["bound"][0] == [pytest.approx(0.2), pytest.approx(0.4)]
        and answer[0]["tag"]["name"] == "dog"
    )


class Lingering(FakeServable):
    """Is closed before it answers, where nobody holds it."""

    def answer(self, name, inputs):
        time.sleep(0.002)
        return super().answer(name, inputs)


def on_disk(disk, pipeline):
    """A server of a pipeline over all versions of the models there."""
    models = [
        {"name": name, "base_path": name, "model_version_policy": {"all": {}}}
        for name in disk.models
    ]
    server = serving.ModelServer(
        config(*models, pipeline_config_list=[pipeline]),
        load=lambda folder, model: Lingering(int(folder.name)),
        list_versions=disk.list_versions,
    )
    assert server.wait(10) and not server.readiness()
    return server


def test_fifty_reloads_with_a_changing_member_while_pipelines_answer():
    """Versions of a member come and go; each answer is that of some version, none fails."""
    disk = Disk(half=[1], third=[3])
    server = on_disk(disk, DEMO)
    right = {0.5 * (0.5 + version) + 3 for version in range(1, 52)}
    stop, wrong, asked = threading.Event(), [], [0] * 3

    def ask(number):
        while not stop.is_set():
            try:
                answer = server.predict("two_steps", {"instances": [[1.0]]})["predictions"][0][0]
                if answer not in right:
                    wrong.append(answer)
            except Exception as error:
                wrong.append(repr(error))
            asked[number] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for change in range(2, 52):
        disk.models["half"] = {change}
        assert server.reload()[0] == 201
        until(lambda least=change: min(asked) > least, 60)
    stop.set()
    for thread in threads:
        thread.join(60)
    server.stop()
    assert wrong == []


def test_pinned_version_that_vanishes_breaks_the_pipeline_and_nothing_else():
    disk = Disk(half=[1, 2], third=[3])
    server = on_disk(disk, changed(nodes={0: {"version": 1}}))
    ask = lambda: server.predict("two_steps", {"instances": [[1.0]]})["predictions"]  # noqa: E731
    assert ask() == [[3.75]]
    disk.models["half"] = {2}
    status, body = server.reload()
    assert status == 500 and "missing model" in body["details"][0]
    assert (
        server.reload()[0] == 200
        and server.status("two_steps")["model_version_status"][0]["state"] == "LOADING"
    )
    disk.models["half"] = {1, 2}
    assert server.reload()[0] == 201
    assert ask() == [[3.75]]
    server.stop()


# --- scalars ----------------------------------------------------------------------------------------------

SCALARS = """
import numpy as np

def halve(inputs, params):
    return {"n": np.int64(inputs["n"] // 2)}

def count(inputs, params):
    return {"n": len(inputs["x"])}
"""


@pytest.fixture(scope="module")
def scalars(tf, tmp_path_factory):
    """A server of a model that takes and answers a scalar, and of pipelines around it, of models and of functions."""
    folder = tmp_path_factory.mktemp("scalars")
    export(
        tf,
        folder / "sum" / "1",
        {
            "serving_default": (
                lambda n: {"sum": tf.reduce_sum(tf.range(n) ** 2)},
                [tf.TensorSpec([], tf.int64, "n")],
            )
        },
    )
    (folder / "mine.py").write_text(SCALARS)
    total = {
        "name": "total",
        "type": "DL model",
        "model_name": "sum",
        "inputs": [link("n", "request", "n")],
        "outputs": [{"data_item": "sum", "alias": "sum"}],
    }
    made = {"type": "custom", "outputs": [{"data_item": "n", "alias": "n"}]}
    halve = {
        **made,
        "name": "halve",
        "function": "mine.py:halve",
        "inputs": [link("n", "total", "sum")],
    }
    count = {
        **made,
        "name": "count",
        "function": "mine.py:count",
        "inputs": [link("x", "request", "x")],
    }
    pipelines = [
        {
            "name": "one",
            "inputs": ["n"],
            "nodes": [total],
            "outputs": [link("sum", "total", "sum")],
        },
        {
            "name": "two",
            "inputs": ["n"],
            "nodes": [
                total,
                halve,
                {**total, "name": "again", "inputs": [link("n", "halve", "n")]},
            ],
            "outputs": [link("sum", "again", "sum"), link("half", "halve", "n")],
        },
        {
            "name": "counted",
            "inputs": ["x"],
            "nodes": [count, {**total, "inputs": [link("n", "count", "n")]}],
            "outputs": [link("sum", "total", "sum")],
        },
    ]
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {
                "model_config_list": [{"config": {"name": "sum", "base_path": "sum"}}],
                "pipeline_config_list": pipelines,
                "server": {"file_system_poll_wait_seconds": 0},
            }
        )
    )
    server = serving.ModelServer(path)
    assert server.wait(60) and not server.readiness()
    return server


def squares(n):
    return sum(number**2 for number in range(n))


def test_a_scalar_of_a_model_is_a_scalar_out_of_a_pipeline(scalars, how):
    rest = Rest(scalars, how)
    for n in (0, 1, 5, 12):
        assert rest.post("/v1/models/one:predict", {"inputs": n}).json == {"outputs": squares(n)}
        assert rest.post("/v1/models/sum:predict", {"inputs": {"n": n}}).json == {
            "outputs": squares(n)
        }
        half = squares(n) // 2
        assert rest.post("/v1/models/two:predict", {"inputs": {"n": n}}).json == {
            "outputs": {"sum": squares(half), "half": half}
        }
        assert rest.post("/v1/models/counted:predict", {"inputs": [1.0] * n}).json == {
            "outputs": squares(n)
        }


def test_a_scalar_has_no_row_in_predictions_of_a_pipeline_as_of_a_model(scalars):
    rest = Rest(scalars)
    assert_error(
        rest.post("/v1/models/counted:predict", {"instances": [1.0, 2.0]}),
        400,
        "Tensor name: sum has no shape information ",
    )
    alone, piped = (
        rest.post(f"/v1/models/{name}:predict", {"instances": [5]}) for name in ("sum", "one")
    )
    assert (alone.status_code, alone.json) == (
        piped.status_code,
        piped.json,
    ) and alone.status_code == 400


# --- what functions answer --------------------------------------------------------------------------------

BARE = """
import numpy as np

VALUES = {
    "float": 2.5, "int": 3, "true": True, "long": 2**40, "huge": 10**30, "beyond": 10**5000,
    "large": 1e300, "nan": float("nan"), "text": "a", "double": np.float64(2.5),
    "doubles": np.array([2.5]), "none": None, "list": [1.0], "objects": np.array([10**30]),
    "dates": np.array(["2020-01-01"], "M8[D]"), "negative": -1,
    "texts": np.array(["a", "bc"]), "bytes": np.array([b"a", b"bc"]), "swapped": np.array([2.5], ">f4"),
}

def give(inputs, params):
    value = VALUES[params["value"]]
    return value if params["value"] in ("none", "list") else {"y": value}
"""
TYPES = {
    "float": "DT_FLOAT",
    "half": "DT_HALF",
    "bfloat16": "DT_BFLOAT16",
    "int8": "DT_INT8",
    "uint8": "DT_UINT8",
    "int64": "DT_INT64",
    "bool": "DT_BOOL",
    "string": "DT_STRING",
}


def give(folder, value, target=None):
    """What a function's value is to the input of a model that answers it, or to the response."""
    (folder / "bare.py").write_text(BARE)
    given = {
        "name": "give",
        "type": "custom",
        "function": f"{folder}/bare.py:give",
        "params": {"value": value},
        "inputs": [link("x", "request", "x")],
        "outputs": [{"data_item": "y", "alias": "y"}],
    }
    taken = {
        "name": "take",
        "type": "DL model",
        "model_name": "take",
        "inputs": [link("x", "give", "y")],
        "outputs": [{"data_item": "y", "alias": "y"}],
    }
    nodes = [given, taken] if target else [given]
    pipeline = {
        "name": "p",
        "inputs": ["x"],
        "nodes": nodes,
        "outputs": [link("y", nodes[-1]["name"], "y")],
    }
    dtype = TYPES[target or "float"]
    seen = []

    def answer(name, inputs):
        array = serving.fit(spec("x", dtype, None), inputs)
        seen.append(array.dtype)
        return {"y": array}

    shapes = signature([spec("x", dtype, None)], [spec("y", dtype, None)])
    server = serving.ModelServer(
        {
            "model_config_list": [{"config": {"name": "take", "base_path": "take"}}],
            "pipeline_config_list": [pipeline],
            "server": {"file_system_poll_wait_seconds": 0},
        },
        load=lambda folder, model: serving.Servable({"serving_default": shapes}, answer),
        list_versions=lambda base: {1: serving.Path(base) / "1"},
    )
    assert server.wait(10) and not server.readiness()
    return Rest(server).post("/v1/models/p:predict", {"inputs": [1.0]}), seen


@pytest.mark.parametrize(
    "value, target, answer",
    [
        ("float", "float", 2.5),
        ("float", "half", 2.5),
        ("float", "bfloat16", 2.5),
        ("int", "float", 3.0),
        ("int", "int8", 3),
        ("int", "uint8", 3),
        ("long", "int64", 2**40),
        ("huge", "float", 1e30),
        ("true", "bool", True),
        ("text", "string", "a"),
        ("float", None, 2.5),
        ("int", None, 3),
        ("true", None, True),
    ],
)
def test_a_bare_number_of_a_function_has_the_dtype_of_the_input_it_feeds(
    tmp_path, value, target, answer
):
    response, seen = give(tmp_path, value, target)
    assert response.status_code == 200, response.json
    outputs = response.json["outputs"]
    assert outputs == pytest.approx(answer) if target == "float" else outputs == answer
    assert seen == ([serving.NUMPY_DTYPES[TYPES[target]]] if target else [])


@pytest.mark.parametrize(
    "value, target",
    [("texts", None), ("texts", "string"), ("bytes", None), ("bytes", "string")]
    + [("swapped", None), ("swapped", "float")],
)
def test_arrays_of_a_function_are_answered_whatever_numpy_calls_their_dtype(
    tmp_path, value, target
):
    wanted = [2.5] if value == "swapped" else ["a", "bc"]
    response, seen = give(tmp_path, value, target)
    assert response.json == {"outputs": wanted}
    assert seen == ([serving.NUMPY_DTYPES[TYPES[target]]] if target else [])


@pytest.mark.parametrize(
    "value, target, text",
    [
        ("float", "int64", "expected int64, got float 2.5"),
        ("long", "int8", "expected int8, got int 1099511627776"),
        ("negative", "uint8", "expected uint8, got int -1"),
        ("int", "bool", "expected bool, got int 3"),
        ("true", "float", "expected float, got bool True"),
        ("int", "string", "expected string, got int 3"),
        ("text", "float", "expected float, got an array of object"),
        ("large", "float", "expected float, got float 1e+300"),
        ("double", "float", "expected float, got an array of float64"),
        ("doubles", "float", "expected float, got an array of float64"),
        ("huge", "int64", f"expected int64, got int 1{'0' * 30}"),
        ("huge", None, "expected at most 64 bits in 'y', got an integer of 100 bits"),
        ("beyond", "float", "expected float, got an integer of 16610 bits"),
        ("objects", None, "expected numbers or texts in array 'y', got object"),
        ("dates", None, "expected numbers or texts in array 'y', got datetime64[D]"),
        ("none", None, "node 'give': expected a dict with array 'y', got NoneType"),
        ("list", "float", "node 'give': expected a dict with array 'y', got list"),
    ],
)
def test_what_a_function_must_not_answer_is_its_fault(tmp_path, caplog, value, target, text):
    response, _ = give(tmp_path, value, target)
    assert response.status_code == 500
    assert response.json["error"].startswith("node 'give': ")
    assert response.json["error"].endswith(text)
    assert f"pipeline p: {response.json['error']}" in caplog.text
    assert "Traceback" not in caplog.text


# --- one pipeline alone -----------------------------------------------------------------------------------


def test_a_pipeline_that_cannot_be_keeps_no_other_from_being_served():
    library = changed(
        name="native", nodes={0: {"type": "custom", "library_name": "lib", "model_name": None}}
    )
    del library["nodes"][0]["model_name"]
    server = build(
        DEMO,
        changed(demultiply_count=3),
        library,
        changed(name="gone", nodes={0: {"model_name": "gone"}}),
        changed(name="a:b/c d"),
    )
    rest = Rest(server)
    for name in ("two_steps", "a%3Ab%2Fc%20d"):
        assert rest.post(f"/v1/models/{name}:predict", {"instances": [[1.0]]}).json == {
            "predictions": [[4.25]]
        }
        for url in ("ready", "versions/1/ready", "versions/9/ready"):  # it has no versions
            assert rest.get(f"/v2/models/{name}/{url}").status_code == 200
    assert rest.get("/v2/models/native/versions/9/ready").status_code == 400
    state = rest.get("/v1/models/native").json["model_version_status"][0]
    assert (
        state["state"] == "LOADING"
        and "Pipeline refers to incorrect library" in state["status"]["error_message"]
    )
    assert "write 'function': 'module:name'" in state["status"]["error_message"]
    assert server.readiness() == ["native", "gone"]
    assert (
        "$.pipeline_config_list[1].name: 'two_steps' is already taken by $.pipeline_config_list[0]"
        in server.reload()[1]["details"]
    )


def test_a_pipeline_is_planned_after_the_models_it_names_are_there():
    gates = {name: threading.Event() for name in ("half", "third")}

    def load(folder, model):
        assert gates[model.name].wait(60)
        return copy.copy(SERVABLES[model.name])

    server = serving.ModelServer(
        {
            "model_config_list": [{"config": {"name": name, "base_path": name}} for name in gates],
            "pipeline_config_list": [DEMO],
            "server": {"file_system_poll_wait_seconds": 0, "load_wait_seconds": 60},
        },
        load=load,
        list_versions=lambda base: {1: serving.Path(base) / "1"},
    ).start()
    gates["third"].set()
    assert (
        server.predict("third", {"inputs": [[1.0]]})["outputs"].tolist() == [[3.5]]
        and "two_steps" not in server.manager.available
    )
    gates["half"].set()
    assert server.predict("two_steps", {"instances": [[1.0]]})["predictions"].tolist() == [[4.25]]
    assert server.wait(60) and not server.readiness()
