"""Pipelines: every check's text and place, and runs against functions called by hand and brute-force loops."""

import contextlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
from serving_extensions import pipelines
from serving_extensions.pipelines import NoShards, PipelineError, plan

SOURCE = (ROOT / "serving_extensions" / "pipelines.py").read_text()


@dataclass(frozen=True)
class Source:
    node_name: str
    data_item: str


@dataclass(frozen=True)
class Output:
    data_item: str
    alias: str


@dataclass(frozen=True)
class Node:
    name: str
    inputs: tuple[Mapping[str, Source], ...]
    outputs: tuple[Output, ...] = (Output("y", "y"),)
    type: str = "DL model"
    model_name: str | None = "half"
    version: int | None = None
    library_name: str | None = None
    function: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    demultiply_count: int | None = None
    gather_from_node: str | None = None


@dataclass(frozen=True)
class Pipeline:
    nodes: tuple[Node, ...]
    outputs: tuple[Mapping[str, Source], ...]
    inputs: tuple[str, ...] = ("x",)
    name: str = "graph"
    demultiply_count: int | None = None


@dataclass(frozen=True)
class Spec:
    name: str
    dtype: str = "DT_FLOAT"
    shape: tuple[int | None, ...] | None = (None, 2)


@dataclass(frozen=True)
class Model:
    inputs: dict[str, Spec]
    outputs: dict[str, Spec]


def model(
    inputs="x", outputs="y", shape=(None, 2), dtype="DT_FLOAT", out_shape=None, out_dtype=None
):
    return Model(
        {name: Spec(name, dtype, shape) for name in inputs},
        {name: Spec(name, out_dtype or dtype, out_shape or shape) for name in outputs},
    )


MODELS = {
    "half": model(),
    "add": model("ab"),
    "wide": model(shape=(None, 3)),
    "whole": model(dtype="DT_INT32"),
    "split": model(out_shape=(4, None, 2)),
    "flat": model(out_shape=(None,)),
    "gather": model(shape=(4, None, 2)),
    "gather3": model(shape=(3, None, 2)),
    "anything": model(shape=None),
    "any_any": model(shape=(None, None)),
    "text": model(dtype="DT_STRING"),
    "nested": model(shape=(None, 2), out_shape=(3, None, 2)),
}


def find(name, version):
    return MODELS.get(name) if version in (None, 1) else None


def feed(**sources):
    """Inputs in the config's form: feed(x="request.x")."""
    return tuple({name: Source(*source.split("."))} for name, source in sources.items())


def node(
    name, model_name="half", outputs="y", demultiply=None, gather=None, version=None, **sources
):
    return Node(
        name,
        feed(**sources),
        tuple(Output(item, item) for item in outputs),
        model_name=model_name,
        version=version,
        demultiply_count=demultiply,
        gather_from_node=gather,
    )


def custom(name, outputs="y", demultiply=None, gather=None, params=None, **sources):
    return Node(
        name,
        feed(**sources),
        tuple(Output(item, item) for item in outputs),
        "custom",
        None,
        None,
        "library",
        name,
        params or {},
        demultiply,
        gather,
    )


def pipeline(*nodes, inputs="x", demultiply=None, **outputs):
    return Pipeline(nodes, feed(**outputs), tuple(inputs), "graph", demultiply)


ONE = node("a", x="request.x")
SPLIT = node("s", "split", demultiply=4, x="request.x")

WRONG = {  # where, and the pipeline, by what is said
    "Functionality not implemented": [
        (
            ".nodes[0].demultiply_count",
            pipeline(
                replace(SPLIT, demultiply_count=0),
                node("t", "nested", demultiply=3, x="s.y"),
                y="t.y",
            ),
        ),
        (".nodes[0].demultiply_count", pipeline(SPLIT, demultiply=-1, y="s.y")),
    ],
    "Pipeline definition has multiple nodes with the same name": [
        (".nodes[1].name", pipeline(ONE, ONE, y="a.y")),
        (".nodes[0].name", pipeline(node("request", x="request.x"), y="request.x")),
        (".nodes[0].name", pipeline(node("response", x="request.x"), y="request.x")),
    ],
    "Pipeline definition has multiple outputs with the same alias": [
        (
            ".nodes[1].outputs",
            pipeline(
                ONE,
                replace(node("b", x="a.y"), outputs=(Output("y", "same"), Output("z", "same"))),
                y="b.same",
            ),
        )
    ],
    "Pipeline definition has reference to missing model": [
        (".nodes[0].model_name", pipeline(node("a", "none", x="request.x"), y="a.y")),
        (".nodes[1].model_name", pipeline(ONE, node("b", version=2, x="a.y"), y="b.y")),
    ],
    "Pipeline refers to incorrect library": [
        (".nodes[0].library_name", pipeline(custom("a", x="request.x"), y="a.y"))
    ],
    "Gather node refers to not existing node": [
        (".nodes[0].gather_from_node", pipeline(node("a", gather="q", x="request.x"), y="a.y"))
    ],
    "Gather node refers to node that isn't demultiplexer": [
        (".nodes[1].gather_from_node", pipeline(ONE, node("b", gather="a", x="a.y"), y="b.y"))
    ],
    "Pipeline definition has reference to missing node": [
        (".nodes[0].inputs[0]", pipeline(node("a", x="q.y"), y="a.y")),
        (".outputs[1]", pipeline(ONE, y="a.y", z="q.y")),
    ],
    "Pipeline definition has response node used as dependency node": [
        (".nodes[0].inputs[0]", pipeline(node("a", x="response.y"), y="a.y"))
    ],
    "Pipeline definition has connection to non existing model input": [
        (".nodes[0].inputs[1]", pipeline(node("a", x="request.x", q="request.x"), y="a.y"))
    ],
    "Pipeline definition has multiple connections to the same input of underlying model": [
        (
            ".nodes[0].inputs[1]",
            pipeline(Node("a", feed(x="request.x") + feed(x="request.x")), y="a.y"),
        ),
        (".outputs[1]", Pipeline((ONE,), feed(y="a.y") + feed(y="a.y"))),
    ],
    "Pipeline definition has reference to missing data source": [
        (".nodes[0].inputs[0]", pipeline(node("a", x="request.q"), y="a.y")),
        (".outputs[0]", pipeline(ONE, y="a.q")),
    ],
    "Pipeline definition has reference to missing model output": [
        (".outputs[0]", pipeline(node("a", outputs="q", x="request.x"), y="a.q"))
    ],
    "Pipeline has not enough shape dimensions to demultiply": [
        (".outputs[0]", pipeline(node("a", "flat", demultiply=2, x="request.x"), y="a.y"))
    ],
    "Demultiplication count does not match tensor first dimension": [
        (".outputs[0]", pipeline(replace(SPLIT, demultiply_count=3), y="s.y"))
    ],
    "Invalid input shape": [
        (".nodes[1].inputs[0]", pipeline(ONE, node("b", "wide", x="a.y"), y="b.y")),
        (
            ".nodes[1].inputs[0]",
            pipeline(replace(SPLIT, demultiply_count=None), node("b", x="s.y"), y="b.y"),
        ),
        (
            ".nodes[2].inputs[0]",
            pipeline(SPLIT, node("b", x="s.y"), node("c", gather="s", x="b.y"), y="c.y"),
        ),
        (
            ".nodes[2].inputs[0]",
            pipeline(SPLIT, node("b", x="s.y"), node("c", "gather3", gather="s", x="b.y"), y="c.y"),
        ),
    ],
    "Invalid input precision": [
        (".nodes[1].inputs[0]", pipeline(ONE, node("b", "whole", x="a.y"), y="b.y"))
    ],
    "Pipeline definition does not have connections for all inputs of underlying models": [
        (".nodes[0].inputs", pipeline(node("a", "add", a="request.x"), y="a.y"))
    ],
    "Pipeline definition contains a cycle": [
        (
            ".nodes[0]",
            pipeline(node("a", "add", a="request.x", b="b.y"), node("b", x="a.y"), y="b.y"),
        ),
        (".nodes[0]", pipeline(node("a", "add", a="request.x", b="a.y"), y="a.y")),
    ],
    "Pipeline definition has unconnected nodes": [
        (".nodes[1]", pipeline(ONE, node("b", x="a.y"), y="a.y"))
    ],
    "Demultiplexer and gather nodes are not in LIFO order": [
        (
            ".nodes[2].inputs[1]",
            pipeline(
                SPLIT,
                node("t", "split", demultiply=4, x="request.x"),
                node("c", "add", a="s.y", b="t.y"),
                y="c.y",
            ),
        ),
        (
            ".nodes[2].inputs[0]",
            pipeline(
                SPLIT,
                node("t", "nested", demultiply=3, x="s.y"),
                node("c", "gather", gather="s", x="t.y"),
                y="c.y",
            ),
        ),
        (
            ".nodes[1].inputs[0]",
            pipeline(SPLIT, node("c", "gather", gather="s", x="request.x"), y="c.y", z="s.y"),
        ),
    ],
    "Multiple nodes connected to the same pipeline input require different tensor metadata": [
        (".nodes[1].inputs[0]", pipeline(ONE, node("b", "wide", x="request.x"), y="a.y", z="b.y")),
        (".nodes[1].inputs[0]", pipeline(ONE, node("b", "whole", x="request.x"), y="a.y", z="b.y")),
    ],
    "Pipeline definition has no outputs": [(".outputs", pipeline())],
}


CASES = [(text, *case) for text, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize(
    "text, path, definition", CASES, ids=[f"{text} {path}" for text, path, _ in CASES]
)
def test_a_wrong_graph_is_named_with_its_place(text, path, definition):
    with pytest.raises(PipelineError) as caught:
        plan(definition, find)
    assert str(caught.value).startswith(f"{text}: ")
    assert caught.value.path == path


def test_the_first_check_of_the_table_wins():
    definition = pipeline(node("a", x="missing.y"), node("b", "none", x="a.y"), y="b.y")
    with pytest.raises(PipelineError, match="reference to missing model"):
        plan(definition, find)


def test_an_error_tells_expected_and_given():
    with pytest.raises(PipelineError) as caught:
        plan(pipeline(ONE, node("b", "wide", x="a.y"), y="b.y"), find)
    assert (
        str(caught.value)
        == "Invalid input shape: 'x' of node 'b' from 'y' of node 'a': expected [?, 3], got [?, 2]"
    )


@pytest.mark.parametrize("target", ["half", "anything", "any_any"])
def test_unknown_sizes_and_ranks_match_anything(target):
    assert plan(pipeline(ONE, node("b", target, x="a.y"), y="b.y"), find).inputs == {
        "x": ("DT_FLOAT", (None, 2))
    }


def test_strings_flow_between_nodes():
    definition = pipeline(node("a", "text", x="request.x"), node("b", "text", x="a.y"), y="b.y")
    done = plan(definition, find).run(
        {"x": np.array([[b"q"]], object)}, lambda name, version, inputs: {"y": inputs["x"] + b"!"}
    )
    assert done["y"].tolist() == [[b"q!!"]]


# What a plan tells


def test_a_plan_tells_tensors_and_models():
    made = plan(
        pipeline(
            node("a", version=1, x="request.x"),
            node("b", "add", a="a.y", b="request.z"),
            inputs="xz",
            y="b.y",
            z="request.z",
        ),
        find,
    )
    assert made.inputs == {"x": ("DT_FLOAT", (None, 2)), "z": ("DT_FLOAT", (None, 2))}
    assert made.outputs == {"y": ("DT_FLOAT", (None, 2)), "z": ("DT_FLOAT", (None, 2))}


def test_a_request_input_has_what_all_its_models_take():
    made = plan(
        pipeline(
            node("a", "any_any", x="request.x"),
            node("b", x="request.x"),
            node("c", "anything", x="request.x"),
            y="a.y",
            z="b.y",
            q="c.y",
        ),
        find,
    )
    assert made.inputs == {"x": ("DT_FLOAT", (None, 2))}
    assert made.outputs["q"] == ("DT_FLOAT", None)


def test_custom_nodes_leave_tensors_unknown():
    made = plan(pipeline(custom("a", x="request.x"), y="a.y", q="request.x"), find, {"a": None})
    assert made.inputs == {"x": (None, None)} and made.outputs == {
        "y": (None, None),
        "q": (None, None),
    }


def test_shards_open_at_the_response_are_leading_dimensions():
    nested = pipeline(
        SPLIT,
        node("t", "nested", demultiply=3, x="s.y"),
        node("h", x="t.y"),
        y="h.y",
        z="s.y",
        q="t.y",
        x="request.x",
    )
    assert {name: shape for name, (_, shape) in plan(nested, find).outputs.items()} == {
        "y": (4, 3, None, 2),
        "z": (4, None, 2),
        "q": (4, 3, None, 2),
        "x": (None, 2),
    }


def test_a_demultiplied_request_has_a_leading_dimension():
    fixed, dynamic = (
        plan(pipeline(ONE, demultiply=count, y="a.y", x="request.x"), find) for count in (3, 0)
    )
    assert fixed.inputs == {"x": ("DT_FLOAT", (3, None, 2))} and fixed.outputs[
        "y"
    ] == fixed.outputs["x"] == ("DT_FLOAT", (3, None, 2))
    assert dynamic.inputs == {"x": ("DT_FLOAT", (None, None, 2))} and dynamic.outputs["y"][1] == (
        None,
        None,
        2,
    )


def test_a_gathering_node_takes_one_dimension_more():
    made = plan(
        pipeline(node("c", "gather", gather="request", x="request.x"), demultiply=4, y="c.y"), find
    )
    assert made.inputs == {"x": ("DT_FLOAT", (4, None, 2))} and made.outputs == {
        "y": ("DT_FLOAT", (4, None, 2))
    }


# Runs

X = np.arange(6, dtype=np.float32).reshape(3, 2)


def functions(**by_name):
    """Custom nodes from functions of arrays: functions(a=lambda x: x + 1) returns output y."""
    return {
        name: lambda inputs, params, function=function: {"y": function(**inputs)}
        for name, function in by_name.items()
    }


def run(definition, inputs, pool=None, call=None, **by_name):
    return plan(definition, find, functions(**by_name)).run(inputs, call, pool)


def no_call(name, version, inputs):
    raise AssertionError("no model was to run")


@pytest.fixture(params=[0, 1, 4], ids=["alone", "one helper", "four helpers"])
def pool(request):
    if not request.param:
        yield None
        return
    with ThreadPoolExecutor(request.param) as pool:
        yield pool


def test_a_diamond_equals_its_functions_called_by_hand(pool):
    definition = pipeline(
        custom("a", x="request.x"),
        custom("b", x="a.y"),
        custom("c", x="a.y"),
        custom("d", x="b.y", z="c.y"),
        y="d.y",
        b="b.y",
    )
    done = run(
        definition,
        {"x": X},
        pool,
        a=lambda x: x + 1,
        b=lambda x: x * 2,
        c=lambda x: x * x,
        d=lambda x, z: x - z,
    )
    assert np.array_equal(done["y"], (X + 1) * 2 - (X + 1) ** 2) and np.array_equal(
        done["b"], (X + 1) * 2
    )


def test_models_get_their_name_version_and_inputs():
    asked = []

    def call(name, version, inputs):
        asked.append((name, version, sorted(inputs)))
        return {"y": sum(inputs.values())}

    definition = pipeline(
        node("a", version=1, x="request.x"), node("b", "add", a="a.y", b="request.x"), y="b.y"
    )
    assert np.array_equal(plan(definition, find).run({"x": X}, call)["y"], 2 * X)
    assert asked == [("half", 1, ["x"]), ("add", None, ["a", "b"])]


def test_custom_nodes_get_their_params_and_may_rename_outputs():
    definition = pipeline(
        Node(
            "a",
            feed(x="request.x"),
            (Output("long", "l"), Output("short", "s")),
            "custom",
            params={"k": "3"},
        ),
        y="a.l",
        z="a.s",
    )
    made = plan(
        definition,
        find,
        {
            "a": lambda inputs, params: {
                "long": inputs["x"] * int(params["k"]),
                "short": inputs["x"],
                "more": None,
            }
        },
    )
    done = made.run({"x": X}, no_call)
    assert np.array_equal(done["y"], 3 * X) and done["z"] is X


@pytest.mark.parametrize("count", [3, -1, 0])
def test_a_demultiplexer_runs_what_follows_for_each_shard(count, pool):
    shards = np.random.default_rng(1).normal(size=(3, 1, 2))
    definition = pipeline(
        custom("s", demultiply=count, x="request.x"),
        custom("f", x="s.y"),
        custom("g", x="f.y", z="request.x"),
        y="g.y",
        s="s.y",
    )
    done = run(
        definition, {"x": X}, pool, s=lambda x: shards, f=lambda x: x * 2, g=lambda x, z: x + z
    )
    assert np.array_equal(
        done["y"], np.stack([shard * 2 + X for shard in shards])
    ) and np.array_equal(done["s"], shards)


def test_a_node_gathers_shards(pool):
    definition = pipeline(
        custom("s", demultiply=-1, x="request.x"),
        custom("f", x="s.y"),
        custom("g", gather="s", x="f.y", z="s.y"),
        custom("h", x="g.y"),
        y="h.y",
    )
    seen = []
    done = run(
        definition,
        {"x": X},
        pool,
        s=lambda x: x[:, None],
        f=lambda x: x * x,
        g=lambda x, z: seen.append((x, z)) or x.sum(0),
        h=lambda x: -x,
    )
    assert (
        len(seen) == 1
        and np.array_equal(seen[0][0], (X * X)[:, None])
        and np.array_equal(seen[0][1], X[:, None])
    )
    assert np.array_equal(done["y"], -(X * X)[:, None].sum(0))


def nested(x):
    """[2, 3, 1, 2] of 6 different shards, from what is there."""
    return np.stack([np.stack([x[:1] * (i + 1) + j for j in range(3)]) for i in range(2)])


def test_demultiplexers_nest_and_gather_last_in_first_out(pool):
    definition = pipeline(
        custom("s", demultiply=2, x="request.x"),
        custom("t", demultiply=3, x="s.y"),
        custom("f", x="t.y", z="s.y"),
        custom("g", gather="t", x="f.y"),
        custom("h", gather="s", x="g.y"),
        open="f.y",
        half="g.y",
        y="h.y",
    )
    done = run(
        definition,
        {"x": X},
        pool,
        s=nested,
        t=lambda x: x + 1,
        f=lambda x, z: x * z[0],
        g=lambda x: x.max(0),
        h=lambda x: x.sum(0),
    )
    loop = np.stack([np.stack([shard * outer[0] for shard in outer + 1]) for outer in nested(X)])
    assert np.array_equal(done["open"], loop) and loop.shape == (2, 3, 1, 2)
    assert np.array_equal(done["half"], loop.max(1)) and np.array_equal(
        done["y"], loop.max(1).sum(0)
    )


def test_a_node_may_gather_and_split_again(pool):
    definition = pipeline(
        custom("s", demultiply=3, x="request.x"),
        custom("g", gather="s", demultiply=2, x="s.y"),
        custom("f", x="g.y"),
        y="f.y",
    )
    done = run(
        definition,
        {"x": X},
        pool,
        s=lambda x: x[:, None],
        g=lambda x: x.transpose(2, 0, 1),
        f=lambda x: x + 1,
    )
    assert np.array_equal(done["y"], X[:, None].transpose(2, 0, 1) + 1)


def test_a_request_may_be_demultiplied(pool):
    rows = X[:, None]
    done = run(
        pipeline(custom("f", x="request.x"), demultiply=3, y="f.y", x="request.x"),
        {"x": rows},
        pool,
        f=lambda x: x + x.sum(),
    )
    assert np.array_equal(
        done["y"], np.stack([row + row.sum() for row in rows])
    ) and np.array_equal(done["x"], rows)


def test_a_node_that_a_helper_takes_while_the_caller_wakes_is_waited_for(monkeypatch):
    caller = threading.get_ident()

    class Slow(threading.Condition):
        def __exit__(self, *error):
            super().__exit__(*error)
            if threading.get_ident() == caller:
                time.sleep(0.003)  # as long as a helper needs to take what is ready

    def node(x):
        time.sleep(0 if threading.get_ident() == caller else 0.01)
        return x

    monkeypatch.setattr(pipelines, "threading", SimpleNamespace(Condition=Slow))
    firsts = [custom(name, x="request.x") for name in "ab"]
    others = [custom(f"c{number}", x="b.y") for number in range(4)]
    names = [*"ab", *(f"c{number}" for number in range(4))]
    definition = pipeline(*firsts, *others, **{name: f"{name}.y" for name in names})
    with contextlib.closing(serving.Workers(8, "helper")) as pool:
        for _ in range(5):
            done = run(definition, {"x": X}, pool, **dict.fromkeys(names, node))
            assert all(done[name] is X for name in names)


def test_many_shards_ask_the_pool_for_few_places():
    with ThreadPoolExecutor(2) as pool:
        submitted, submit = [], pool.submit
        pool.submit = lambda *task: (submitted.append(task), submit(*task))[1]
        done = run(
            pipeline(custom("s", demultiply=-1, x="request.x"), custom("f", x="s.y"), y="f.y"),
            {"x": X},
            pool,
            s=lambda x: np.arange(2000.0)[:, None],
            f=lambda x: x + 1,
        )
    assert done["y"].shape == (2000, 1) and len(submitted) <= 2 * 16 + 2


def test_a_pipeline_may_have_no_nodes():
    assert run(pipeline(y="request.x"), {"x": X})["y"] is X


def test_a_node_without_inputs_runs_once():
    done = run(
        pipeline(custom("a"), custom("b", x="a.y"), y="b.y"), {"x": X}, a=lambda: X, b=lambda x: -x
    )
    assert np.array_equal(done["y"], -X)


# What goes wrong at a request

S = pipeline(custom("s", demultiply=3, x="request.x"), custom("f", x="s.y"), y="f.y")


@pytest.mark.parametrize(
    "split, text",
    [
        (
            lambda x: x[:2, None],
            "Wrong dimension size. Should match demultiply count: 'y' of node 's': expected 3, got 2",
        ),
        (
            lambda x: x[:0, None],
            "Wrong dimension size. Should match demultiply count: 'y' of node 's': expected 3, got 0",
        ),
        (
            lambda x: x[:, 0],
            "Wrong number of dimensions in a tensor to be sharded: 'y' of node 's': expected 2 or more, got shape [3]",
        ),
        (
            lambda x: x[0, :1].reshape(()),
            "Wrong number of dimensions in a tensor to be sharded: 'y' of node 's'",
        ),
    ],
)
def test_other_shards_than_announced_are_an_error(split, text):
    with pytest.raises(PipelineError) as caught:
        run(S, {"x": X}, s=split, f=lambda x: x)
    assert str(caught.value).startswith(text) and not isinstance(caught.value, NoShards)


def test_outputs_of_a_dynamic_demultiplexer_have_one_count():
    made = plan(
        pipeline(custom("s", "yz", demultiply=-1, x="request.x"), y="s.y", z="s.z"),
        find,
        {"s": lambda inputs, params: {"y": X, "z": X[:2]}},
    )
    with pytest.raises(PipelineError, match="'z' of node 's': expected 3, got 2"):
        made.run({"x": X}, no_call)


@pytest.mark.parametrize(
    "definition",
    [
        pipeline(custom("s", demultiply=-1, x="request.x"), custom("f", x="s.y"), y="f.y"),
        pipeline(
            custom("s", demultiply=-1, x="request.x"), custom("f", gather="s", x="s.y"), y="f.y"
        ),
        pipeline(custom("f", x="request.x"), demultiply=-1, y="f.y"),
    ],
)
def test_no_shards_are_told_apart(definition, pool):
    with pytest.raises(NoShards):
        run(
            definition,
            {"x": X[:0]},
            pool,
            s=lambda x: x,
            f=lambda x: pytest.fail("there is nothing to run for"),
        )


@pytest.mark.parametrize("gather", [None, "s"])
def test_shards_of_different_shapes_cannot_be_gathered(gather):
    definition = pipeline(
        custom("s", demultiply=3, x="request.x"),
        custom("f", x="s.y"),
        custom("g", gather=gather, x="f.y"),
        y="g.y",
    )
    with pytest.raises(PipelineError) as caught:
        run(
            definition,
            {"x": X},
            s=lambda x: x[:, None],
            f=lambda x: x[:, : int(x[0, 0]) // 4 + 1],
            g=lambda x: x,
        )
    assert "shards dimensions are different" in str(caught.value) and "[1, 1], [1, 2]" in str(
        caught.value
    )
    assert f"node '{'f' if gather else 'g'}'" in str(caught.value)


@pytest.mark.parametrize(
    "outputs, got",
    [
        ([X], "got list"),
        (None, "got NoneType"),
        ({"z": X}, "got {'z': 'ndarray'}"),
        ({"y": [1.0]}, "got {'y': 'list'}"),
        ({"y": {}}, "got {'y': 'dict'}"),
    ],
)
def test_a_custom_node_returns_a_dict_of_arrays(outputs, got):
    made = plan(
        pipeline(custom("a", x="request.x"), y="a.y"), find, {"a": lambda inputs, params: outputs}
    )
    with pytest.raises(PipelineError) as caught:
        made.run({"x": X}, no_call)
    assert str(caught.value) == f"node 'a': expected a dict with array 'y', {got}"


@pytest.mark.parametrize(
    "value, dtype",
    [
        (np.float32(1.5), np.float32),
        (np.int64(7), np.int64),
        (np.array(7, np.uint8), np.uint8),
        (7, np.int64),
        (1.5, np.float64),
        (True, np.bool_),
        (np.bool_(False), np.bool_),
        ("é", object),
        (b"\xff", object),
    ],
)
def test_a_bare_value_of_a_node_is_an_array_without_dimensions(value, dtype):
    made = plan(
        pipeline(custom("a", x="request.x"), custom("b", x="a.y"), y="b.y", z="a.y"),
        find,
        {"a": lambda inputs, params: {"y": value}, "b": lambda inputs, params: {"y": inputs["x"]}},
    )
    answer = made.run({"x": X}, no_call)
    for array in answer.values():
        assert array.shape == () and array.dtype == dtype
        assert array[()] == (value.encode() if isinstance(value, str) else value)


def test_bare_values_of_shards_are_gathered_into_a_row():
    made = plan(
        pipeline(
            custom("s", demultiply=-1, x="request.x"),
            custom("f", x="s.y"),
            custom("g", gather="s", x="f.y"),
            y="f.y",
            z="g.y",
        ),
        find,
        {
            "s": lambda inputs, params: {"y": inputs["x"]},
            "f": lambda inputs, params: {"y": inputs["x"].sum()},
            "g": lambda inputs, params: {"y": inputs["x"].sum()},
        },
    )
    answer = made.run({"x": X}, no_call)
    assert answer["y"].tolist() == X.sum(1).tolist() and answer["y"].dtype == X.dtype
    assert answer["z"].shape == () and answer["z"] == X.sum()


def test_an_exception_passes_through_and_later_nodes_do_not_run(pool):
    error, ran = OSError("broken"), []

    def fail(x):
        raise error

    definition = pipeline(
        custom("a", x="request.x"),
        custom("b", x="request.x"),
        custom("c", x="a.y"),
        custom("d", x="c.y", z="b.y"),
        y="d.y",
    )
    with pytest.raises(OSError) as caught:
        run(
            definition,
            {"x": X},
            pool,
            a=fail,
            b=lambda x: x,
            c=lambda x: ran.append("c") or x,
            d=lambda x, z: ran.append("d") or x,
        )
    assert caught.value is error and not ran


def test_an_exception_waits_for_the_nodes_that_run():
    both, failed, finished = threading.Barrier(2, timeout=20), threading.Event(), []

    def fail(x):
        both.wait()
        try:
            raise KeyError("first")
        finally:
            failed.set()

    def go_on(x):
        both.wait()
        failed.wait(20)
        finished.append(True)
        raise OSError("second")

    with ThreadPoolExecutor(1) as pool, pytest.raises((KeyError, OSError)):
        run(
            pipeline(custom("a", x="request.x"), custom("b", x="request.x"), y="a.y", z="b.y"),
            {"x": X},
            pool,
            a=fail,
            b=go_on,
        )
    assert finished


# Threads and memory


@pytest.mark.parametrize(
    "definition",
    [
        pipeline(custom("a", x="request.x"), custom("b", x="request.x"), y="a.y", z="b.y"),
        pipeline(custom("s", demultiply=2, x="request.x"), custom("a", x="s.y"), y="a.y"),
        pipeline(
            custom("c", x="request.x"), custom("a", x="c.y"), custom("b", x="c.y"), y="a.y", z="b.y"
        ),
    ],
)
def test_independent_nodes_and_shards_run_side_by_side(definition):
    both = threading.Barrier(2, timeout=20)
    meet = lambda x: both.wait() is None or x  # noqa: E731
    with ThreadPoolExecutor(1) as pool:
        run(definition, {"x": X}, pool, a=meet, b=meet, c=lambda x: x, s=lambda x: x[:2, None])


def test_a_branch_goes_on_while_another_is_slow():
    late = threading.Barrier(2, timeout=20)  # `slow` ends only once `c`, which follows `b`, runs
    meet = lambda x: late.wait() is None or x  # noqa: E731
    definition = pipeline(
        custom("slow", x="request.x"),
        custom("b", x="request.x"),
        custom("c", x="b.y"),
        y="slow.y",
        z="c.y",
    )
    with ThreadPoolExecutor(1) as pool:
        run(definition, {"x": X}, pool, slow=meet, b=lambda x: x, c=meet)


def test_a_chain_stays_in_the_callers_thread():
    threads = []
    with ThreadPoolExecutor(2) as pool:
        pool.submit = lambda *task: pytest.fail("the pool was asked")
        note = lambda x: threads.append(threading.current_thread()) or x  # noqa: E731
        run(
            pipeline(
                custom("a", x="request.x"), custom("b", x="a.y"), custom("c", x="b.y"), y="c.y"
            ),
            {"x": X},
            pool,
            a=note,
            b=note,
            c=note,
        )
    assert threads == [threading.current_thread()] * 3


def test_many_runs_share_a_pool_of_one():
    definition = pipeline(
        custom("s", demultiply=3, x="request.x"),
        custom("a", x="s.y"),
        custom("b", x="s.y"),
        custom("c", x="a.y", z="b.y"),
        y="c.y",
    )
    made = plan(
        definition,
        find,
        functions(
            s=lambda x: x[:, None], a=lambda x: x + 1, b=lambda x: x * 2, c=lambda x, z: x + z
        ),
    )
    results = {}
    with ThreadPoolExecutor(1) as pool:

        def ask(number):
            for _ in range(20):
                results[number] = made.run({"x": X + number}, no_call, pool)["y"]

        threads = [
            threading.Thread(target=ask, args=(number,), daemon=True) for number in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    assert all(
        np.array_equal(results[number], 3 * (X + number)[:, None] + 1) for number in range(16)
    )


def test_a_pool_whose_only_thread_is_taken_does_not_stop_a_run():
    free = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(free.wait, 20)
        done = run(
            pipeline(custom("a", x="request.x"), custom("b", x="request.x"), y="a.y", z="b.y"),
            {"x": X},
            pool,
            a=lambda x: x,
            b=lambda x: -x,
        )
        assert not free.is_set() and np.array_equal(done["z"], -X)
        free.set()


def test_a_run_inside_the_pool_it_uses_goes_on():
    definition = pipeline(custom("a", x="request.x"), custom("b", x="request.x"), y="a.y", z="b.y")
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(
            lambda: run(definition, {"x": X}, pool, a=lambda x: x, b=lambda x: -x)
        ).result(20)
    assert np.array_equal(done["z"], -X)


def test_a_pool_that_is_shut_down_does_not_stop_a_run():
    pool = serving.Workers(1, "nodes")
    pool.close()
    done = run(
        pipeline(custom("a", x="request.x"), custom("b", x="request.x"), y="a.y", z="b.y"),
        {"x": X},
        pool,
        a=lambda x: x,
        b=lambda x: -x,
    )
    assert np.array_equal(done["z"], -X)


def test_arrays_are_handed_on_and_shards_are_views():
    seen = []
    definition = pipeline(
        custom("a", x="request.x"),
        custom("s", demultiply=3, x="a.y"),
        custom("f", x="s.y"),
        custom("g", x="f.y"),
        y="g.y",
        a="a.y",
    )
    done = run(
        definition,
        {"x": X},
        a=lambda x: seen.append(x) or x,
        s=lambda x: x[:, None],
        f=lambda x: seen.append(x) or x,
        g=lambda x: x,
    )
    assert (
        seen[0] is X
        and done["a"] is X
        and all(np.shares_memory(shard, X) for shard in seen)
        and len(seen) == 4
    )


# Random graphs

OPERATIONS = [
    lambda x, z: x + z,
    lambda x, z: x * 3 - z,
    lambda x, z: np.maximum(x, z),
    lambda x, z: x - z,
]


@st.composite
def graphs(draw):
    """Nodes n0, n1, ... of two inputs, each from the request or from an earlier node; all without readers are answered."""
    nodes = []
    for number in range(draw(st.integers(1, 9))):
        sources = [
            draw(
                st.sampled_from(
                    ["request.x", "request.z", *(f"n{before}.y" for before in range(number))]
                )
            )
            for _ in "xz"
        ]
        nodes.append((f"n{number}", draw(st.integers(0, 3)), *sources))
    read = {source for _, _, *sources in nodes for source in sources}
    return nodes, [name for name, *_ in nodes if f"{name}.y" not in read]


@settings(max_examples=150)
@given(graphs(), st.permutations(range(9)), st.sampled_from([None, -1, 2]))
def test_random_graphs_equal_recursion(graph, order, demultiply):
    nodes, answers = graph
    shuffled = [nodes[index] for index in order if index < len(nodes)]
    definition = pipeline(
        *(custom(name, x=x, z=z) for name, _, x, z in shuffled),
        inputs="xz",
        demultiply=demultiply,
        **{name: f"{name}.y" for name in answers},
    )
    inputs = {"x": np.arange(4, dtype=np.int64).reshape(2, 2), "z": np.array([[5, -1], [2, 7]])}
    operations = {name: OPERATIONS[operation] for name, operation, _, _ in nodes}
    sources = {name: (x, z) for name, _, x, z in nodes}

    def value(source):
        node, item = source.split(".")
        return inputs[item] if node == "request" else operations[node](*map(value, sources[node]))

    for pool in (None, POOL):
        done = run(definition, inputs, pool, **operations)
        assert done.keys() == set(answers) and all(
            np.array_equal(done[name], value(f"{name}.y")) for name in answers
        )


POOL = ThreadPoolExecutor(2)
