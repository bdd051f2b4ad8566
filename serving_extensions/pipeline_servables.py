"""Pipelines as servables: planned in each pass of the loader after its models,
over those that are loaded.
"""

import dataclasses
import logging
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from .core import (
    SHORT_SECONDS,
    UNTRACED,
    BadRequest,
    Config,
    Extension,
    LoadError,
    Look,
    ModelManager,
    ModelServer,
    Outcome,
    Row,
    Servable,
    ServingError,
    Signature,
    TensorSpec,
    Trace,
    Workers,
    fit,
    log_safely,
    logger,
    look_at,
    read_signatures,
)
from .endpoints import import_handler
from .handlers import Handler, check_function
from .pipelines import (
    REQUEST,
    RESPONSE,
    MismatchError,
    NodeError,
    NoShards,
    PipelineError,
    Plan,
    plan,
)


class NoFunction(PipelineError):
    """A custom node's function cannot be imported; the outcome has the error already."""


def refresh(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    """Plan every pipeline whose members have changed."""
    manager = server.manager
    earlier: dict[str, str] = {}
    for index, pipeline in enumerate(manager.config.pipeline_config_list):
        path = f"$.pipeline_config_list[{index}]"
        if pipeline.name in earlier:  # the first keeps the name
            text = f"{path}.name: '{pipeline.name}' is already taken by {earlier[pipeline.name]}"
            outcome.errors.append(LoadError(text))
            continue
        earlier[pipeline.name] = path
        _, told = server.kept.get(("pipeline", pipeline.name), (None, None))
        try:
            functions = import_nodes(server, pipeline, path, outcome, polling)
            refresh_pipeline(server, pipeline, functions, outcome)
        except PipelineError as error:
            where = f"{path}{error.path}: {error}"
            if isinstance(error, NoFunction):  # told; planned again once the function is there
                server.kept.pop(("pipeline", pipeline.name), None)
            elif error is told:  # as OpenVINO Model Server, which answers the next reload with 200
                outcome.told.append(where)
            else:
                mismatched = isinstance(error, MismatchError)
                outcome.errors.append(BadRequest(where) if mismatched else LoadError(where))
            if manager.config.is_pipeline(pipeline.name):  # else a model has the name
                manager.show_pipeline(pipeline.name, None, where, outcome)
    pipelines = manager.config.pipeline_config_list
    server.drop("pipeline", [("pipeline", pipeline.name) for pipeline in pipelines])
    server.drop("node", [("node", node.function) for one in pipelines for node in one.nodes])


def refresh_pipeline(
    server: ModelServer, config: Any, functions: Mapping[str, Any], outcome: Outcome
) -> None:
    """Plan a pipeline over the loaded models and its functions by node, unless nothing changed
    since it was last planned.

    Raises PipelineError; if nothing changed, the earlier one again.
    """
    manager = server.manager
    require_name(manager.config, config)
    members = {
        (node.model_name, node.version): servable.signatures if servable else None
        for node in config.nodes
        if node.model_name is not None
        for servable in [find_model(manager, node.model_name, node.version)]
    }
    key, made_of = ("pipeline", config.name), (config, members, functions)
    before, problem = server.kept.get(key, (None, None))
    if before == made_of and not outcome.config_read:
        if problem:
            raise problem.with_traceback(None)
        return
    try:
        planned = plan_over(config, members, functions)
    except PipelineError as error:
        server.kept[key] = made_of, error
        raise
    server.kept[key] = made_of, None
    pool = server.kept.setdefault(("nodes",), Workers(16, "serving-pipeline"))
    servable = PipelineServable(config, planned, manager, pool)
    outcome.changed = True
    manager.show_pipeline(config.name, servable, "", outcome)
    log_safely(logging.INFO, "pipeline %s is available", config.name)


def import_nodes(
    server: ModelServer, config: Any, path: str, outcome: Outcome, polling: bool
) -> dict[str, Any]:
    """The Python functions of a pipeline's custom nodes by node, imported as handlers are: when
    they are new and, at a reload, when they have changed. Other custom nodes need a C++ library.

    A failed import keeps the earlier function. Raises NoFunction if there is none.
    """
    functions: dict[str, Any] = {}
    for at, node in enumerate(config.nodes):
        if node.function is None:
            continue
        handler = server.kept.setdefault(
            ("node", node.function), Handler(node.function, server.folder)
        )
        place = f".nodes[{at}].function"
        import_handler(handler, path + place, outcome, polling)
        if not handler.ready:
            raise NoFunction(handler.error, place)
        functions[node.name] = handler.function
    return functions


def find_model(manager: ModelManager, model: str, version: int | None) -> Servable | None:
    """A loaded version of a model, the highest for None; None without it."""
    found = manager.available.get(model)
    if (
        found is None
        or manager.config.is_pipeline(model)
        or version is not None
        and version not in found.versions
    ):
        return None
    return found.versions[max(found.versions) if version is None else version]


def require_name(config: Config, pipeline: Any) -> None:
    """Raise PipelineError for a pipeline whose name a model has."""
    if not config.is_pipeline(pipeline.name):
        raise PipelineError(f"Pipeline has the same name as model: '{pipeline.name}'", ".name")


def plan_over(
    config: Any, members: Mapping[Any, Mapping[str, Signature] | None], functions: Mapping[str, Any]
) -> Plan:
    """The plan of a pipeline over the signatures of its models and the functions of its nodes.

    Raises PipelineError.
    """
    require_signatures(config, members)
    return plan(config, lambda *which: (members[which] or {}).get("serving_default"), functions)


def require_signatures(config: Any, members: Mapping[Any, Mapping[str, Signature] | None]) -> None:
    """Raise PipelineError for a node whose loaded model lacks the signature that nodes call."""
    for at, node in enumerate(config.nodes):
        there = members.get((node.model_name, node.version))
        if there is not None and "serving_default" not in there:
            raise PipelineError(
                f"node '{node.name}': model '{node.model_name}' has no signature "
                f"'serving_default'; it has {', '.join(there)}",
                f".nodes[{at}].model_name",
            )


class PipelineServable(Servable):
    """A plan as a servable.

    Inputs that only functions see are read as floats; such outputs keep their own dtype.
    """

    def __init__(self, config: Any, planned: Plan, manager: ModelManager, pool: Workers):
        signature = Signature(
            read_specs(planned.inputs, "DT_FLOAT"),
            tell_outputs(planned, read_specs(planned.outputs, "DT_INVALID")),
        )
        super().__init__({"serving_default": signature}, metadata=describe_signature(signature))
        self.config, self.planned, self.manager, self.pool = config, planned, manager, pool

    def seconds_of(self, name: str) -> float:
        """The seconds that its models take together for one row.

        Infinite if unknown: with functions, shards or models that may have to load.
        """
        nodes = self.config.nodes
        if any(part.demultiply_count is not None for part in (self.config, *nodes)):
            return float("inf")
        # a function has none
        models = [find_model(self.manager, node.model_name, node.version) for node in nodes]
        return sum(one.seconds_of("serving_default") if one else float("inf") for one in models)

    def call(
        self, name: str, inputs: dict[str, np.ndarray], trace: Trace = UNTRACED
    ) -> dict[str, np.ndarray]:
        # errors name the names and sizes that the client knows, not those of a node
        inputs = {spec.name: fit(spec, inputs) for spec in self.signatures[name].inputs.values()}

        def call_model(model: str, version: int | None, inputs: Any) -> dict[str, np.ndarray]:
            with self.manager.lease(model, version, trace=trace) as (_, servable):
                return servable.call("serving_default", inputs, trace)

        trace.nodes = seconds = dict[str, float]()
        try:
            long = self.seconds_of(name) >= SHORT_SECONDS
            helpers = self.pool if long else None  # they cost more than a short call
            return self.planned.run(inputs, call_model, helpers, seconds, lambda: in_time(trace))
        except NoShards:
            raise ServingError("", status=204) from None  # as OpenVINO Model Server answers it
        except NodeError as error:  # the function's fault, which its author finds in the log
            logger.error("pipeline %s: %s", self.config.name, error)
            raise ServingError(str(error)) from None
        except PipelineError as error:
            raise BadRequest(str(error)) from error


def in_time(trace: Trace) -> None:
    """Raise ServingError if nobody waits any more for nodes that have not started."""
    if trace.remaining() <= 0:
        text = "The pipeline took longer than the request's timeout"
        raise ServingError(text, "DEADLINE_EXCEEDED")
    if trace.has_left():
        raise ServingError("The client has left", "CANCELLED")


def read_specs(tensors: Mapping[str, Any], default: str) -> dict[str, TensorSpec]:
    """Specs of dtypes and shapes by name; `default` is the dtype of what only functions see."""
    return {
        name: TensorSpec(name, name, dtype or default, shape)
        for name, (dtype, shape) in tensors.items()
    }


def tell_outputs(planned: Plan, specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Output specs with what the models' graphs tell about them.

    Boxes are in the scale of their model's input, which is known only if the model gets the
    request's own inputs.
    """
    told = dict(specs)
    for link in planned.graph.into(RESPONSE):
        if link.given is not None:
            is_first = all(one.node == REQUEST for one in planned.graph.into(link.node))
            told[link.name] = dataclasses.replace(
                specs[link.name],
                made_by=link.given.made_by,
                scale=link.given.scale if is_first else "",
            )
    return told


def describe_signature(signature: Signature) -> dict[str, Any]:
    """A signature as a model's metadata has it, in TensorFlow
    Serving's casing and in OpenVINO's.
    """

    def write(shape: str, rank: str, method: str) -> dict[str, Any]:
        def info(spec: TensorSpec) -> dict[str, Any]:
            dims = [
                {"size": str(-1 if size is None else size), "name": ""} for size in spec.shape or ()
            ]
            return {
                "dtype": spec.dtype,
                shape: {"dim": dims, rank: spec.shape is None},
                "name": spec.name,
            }

        return {
            "serving_default": {
                "inputs": {name: info(spec) for name, spec in signature.inputs.items()},
                "outputs": {name: info(spec) for name, spec in signature.outputs.items()},
                method: "",
            }
        }

    return {
        "signature_def": write("tensor_shape", "unknown_rank", "method_name"),
        "signatureDef": write("tensorShape", "unknownRank", "methodName"),
    }


def check(server: ModelServer) -> tuple[list[Row], list[str]]:
    """The pipelines of a config, and what is wrong with each, as a reload tells it.

    By the signatures in the models' files: nothing is loaded or imported.
    """
    config, problems = server.config, list[str]()
    if not config.pipeline_config_list:
        return [], []
    found = list(look_at(config, server.manager.list_versions))
    looks = {one.model.name: one for one in reversed(found)}  # the first of a name
    earlier: dict[str, str] = {}
    for index, pipeline in enumerate(config.pipeline_config_list):
        place = earlier.setdefault(pipeline.name, path := f"$.pipeline_config_list[{index}]")
        if place != path:
            problems.append(f"{path}.name: '{pipeline.name}' is already taken by {place}")
            continue
        try:
            check_pipeline(server, pipeline, looks)
        except PipelineError as error:
            problems.append(f"{path}{error.path}: {error}")
    rows = [
        ("pipeline", pipeline.name, f"{len(pipeline.nodes)} nodes", "")
        for pipeline in config.pipeline_config_list
    ]
    return rows, problems


def check_pipeline(server: ModelServer, config: Any, looks: Mapping[str, Look]) -> None:
    """Raise PipelineError where a pipeline could not be planned.

    A model whose file tells no signatures (Keras's) is taken as a function is, which takes all.
    """
    members: dict[Any, Mapping[str, Signature] | None] = {}
    nodes: list[Any] = []
    for at, node in enumerate(config.nodes):
        if node.function and (problem := check_function(node.function, server.folder)):
            raise PipelineError(problem, f".nodes[{at}].function")
        nodes.append(node)
        if node.model_name is not None:
            try:
                members[node.model_name, node.version] = read_member(looks, node)
            except Exception:  # what is broken is told of its model
                nodes[at] = types.SimpleNamespace(**{**vars(node), "type": "custom"})
    known = {node.name: check for node in nodes if node.type == "custom" and not node.library_name}
    require_name(server.config, config)
    plan_over(dataclasses.replace(config, nodes=tuple(nodes)), members, known)


def read_member(looks: Mapping[str, Look], node: Any) -> Mapping[str, Signature] | None:
    """The signatures in the file of the version that a node calls; None where there is none.

    Raises what reading it raises.
    """
    look = looks.get(node.model_name)
    if look is not None and look.picked is None:
        raise LoadError("its folders cannot be read")
    if look is None or not look.picked:
        return None
    version = max(look.picked) if node.version is None else node.version
    folder = look.picked.get(version)
    return None if folder is None else read_signatures(folder, look.model.tags)


def end(server: ModelServer) -> None:
    """End the threads that nodes run in."""
    pool = server.kept.get(("nodes",))
    if pool is not None:
        pool.close()


EXTENSION = Extension(
    "pipelines", sections={"pipeline_config_list": None}, refresh=refresh, check=check, end=end
)
