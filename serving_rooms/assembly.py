"""What a config adds to models: keys, deployments, handlers and pipelines.

prepare         when a config is taken over: what requests need of it, made ready
refresh_others  after the models of each pass of the loader: handlers imported, pipelines planned
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import routines
from serving import (
    BadRequest,
    Config,
    ConfigError,
    ModelManager,
    ModelServer,
    Outcome,
    Prepared,
    Servable,
    ServingError,
    Signature,
    TensorSpec,
    logger,
)
from serving_rooms.endpoints import Endpoint
from serving_rooms.handlers import Handler, HandlerError, errors_only
from serving_rooms.keys import KeyRing, digest
from serving_rooms.lane import SHORT_SECONDS
from serving_rooms.pictures import prepare_deployment
from serving_rooms.pipelines import NoShards, PipelineError, Plan, plan
from serving_rooms.quotas import open_quotas
from serving_rooms.redis_quotas import shown
from serving_rooms.settings import Key

# ==================================================================================================
# Prepare
# In: a server and a config. Out: `Prepared`, or ConfigError for what the config names that is missing or wrong.
# ==================================================================================================


def prepare(server: ModelServer, config: Config) -> Prepared:
    """Build what requests need of a config; what outlives it (inboxes, imported handlers) is kept in `server.kept`."""
    for index, name in enumerate(config.routine_modules):
        try:
            with errors_only("the module"):
                routines.import_routines(name, Path())
        except Exception as error:  # somebody's code
            raise ConfigError(
                f"$.routine_modules[{index}]", f"{type(error).__name__}: {error}"
            ) from error
    inboxes = server.kept.setdefault("inboxes", {})
    deployments = {
        deployment.id: prepare_deployment(deployment, f"$.deployments[{index}]", inboxes)
        for index, deployment in enumerate(config.deployments)
    }
    endpoints = {
        handler.path: prepare_endpoint(server, handler, config.server.threads)
        for handler in config.handlers
    }
    images = config.server.images
    limits = routines.ImageLimits(
        images.max_bytes,
        images.max_pixels,
        images.download_seconds,
        tuple(map(str.lower, images.allowed_hosts)),
    )
    return Prepared(
        prepare_keys(config.auth, server.key),
        deployments,
        {**endpoints, **server.endpoints},
        limits,
    )


def end_others(server: ModelServer) -> None:
    """End the threads of what outlives a config."""
    for kept in server.kept.values():
        if isinstance(kept, ThreadPoolExecutor):
            kept.shutdown(wait=False)
    for inbox in server.kept.get("inboxes", {}).values():
        inbox.end()


def prepare_keys(auth: Any, generated: str) -> KeyRing:
    """The keys of a config; where it has none, the one generated at start."""
    keys = auth.keys or (Key("generated", digest(generated)),)
    try:
        return KeyRing(
            keys,
            open_quotas(auth.quota_store).take
            if any(key.quota for key in keys)
            else lambda *_: None,
        )
    except OSError as error:
        raise ConfigError(
            "$.auth.quota_store", f"cannot be opened: {error}: {shown(auth.quota_store)}"
        ) from None


def prepare_endpoint(server: ModelServer, config: Any, threads: int) -> Endpoint:
    """A handler of the config; the function itself is imported by the loader."""
    key = "handler", config.function, config.model_dir
    handler = server.kept.get(key) or server.kept.setdefault(
        key, Handler(config.function, server.folder, config.model_dir)
    )
    pool = None
    if config.timeout_seconds is not None:
        pool = server.kept.setdefault(
            ("pool", config.path), ThreadPoolExecutor(threads, f"serving{config.path}")
        )
    return Endpoint(
        config.path, handler, config.methods, config.envelope, config.timeout_seconds, pool
    )


# ==================================================================================================
# Refresh
# In: the models that are there now. Out: handlers imported, pipelines as servables, in the manager.
# ==================================================================================================


def refresh_others(
    server: ModelServer, manager: ModelManager, outcome: Outcome, polling: bool
) -> None:
    """Import handlers that are new or, at a reload, have changed; plan every pipeline whose members have changed."""
    for index, config in enumerate(manager.config.handlers):
        handler = manager.prepared.endpoints[config.path].handler
        if polling and not outcome.config_read and (handler.ready or handler.error):
            continue  # a file may be half written: only the operator knows when it is whole
        import_handler(handler, f"$.handlers[{index}].function", outcome)
    earlier: dict[str, str] = {}
    for index, pipeline in enumerate(manager.config.pipeline_config_list):
        path = f"$.pipeline_config_list[{index}]"
        if pipeline.name in earlier:  # the first one keeps it
            text = f"{path}.name: '{pipeline.name}' is already taken by {earlier[pipeline.name]}"
            outcome.errors.append((500, text))
            continue
        earlier[pipeline.name] = path
        try:
            refresh_pipeline(server, manager, pipeline, outcome)
        except (PipelineError, HandlerError) as error:
            where = f"{path}{getattr(error, 'path', '')}: {error}"
            outcome.errors.append(
                (
                    400
                    if str(error).startswith(("Invalid input shape", "Invalid input precision"))
                    else 500,
                    where,
                )
            )
            if manager.config.is_pipeline(pipeline.name):  # a model of that name keeps it
                manager.show_pipeline(pipeline.name, None, where, outcome)


def import_handler(handler: Handler, path: str, outcome: Outcome) -> None:
    """Import a function's module if it is not there or has changed; a failing one leaves the old one serving."""
    try:
        outcome.changed |= load_function(handler)
    except HandlerError as error:
        logger.info("%s", path, exc_info=error.__cause__ or error)
        outcome.errors.append((500, f"{path}: {error}"))


def refresh_pipeline(
    server: ModelServer, manager: ModelManager, config: Any, outcome: Outcome
) -> None:
    """Plan a pipeline over the models there now, unless it was planned over these very ones.

    Raises PipelineError and HandlerError.
    """
    if not manager.config.is_pipeline(config.name):
        raise PipelineError(f"Pipeline has the same name as model: '{config.name}'", ".name")
    own = [node for node in config.nodes if node.function is not None]  # others need a C++ library
    functions = {node.name: find_function(server, node) for node in own}
    members = {
        (node.model_name, node.version): find_signature(manager, node.model_name, node.version)
        for node in config.nodes
        if node.model_name is not None
    }
    made_of = config, members, functions
    if (
        server.kept.get(("pipeline", config.name)) != made_of or outcome.config_read
    ):  # else planned, or found wrong and said so
        server.kept["pipeline", config.name] = made_of
        planned = plan(with_any_as_none(config), lambda *which: members.get(which), functions)
        servable = pipeline_servable(
            config,
            planned,
            manager,
            server.kept.setdefault("pool", ThreadPoolExecutor(16, "serving-pipeline")),
        )
        outcome.changed = True
        manager.show_pipeline(config.name, servable, "", outcome)
        logger.info("pipeline %s is available", config.name)


def with_any_as_none(config: Any) -> Any:
    """A demultiply_count of 0 is -1, any number, as OpenVINO Model Server takes it."""
    nodes = tuple(
        dataclasses.replace(node, demultiply_count=-1) if node.demultiply_count == 0 else node
        for node in config.nodes
    )
    return dataclasses.replace(
        config,
        nodes=nodes,
        demultiply_count=-1 if config.demultiply_count == 0 else config.demultiply_count,
    )


def find_function(server: ModelServer, node: Any) -> Any:
    """A custom node's Python function, imported as handlers are."""
    key = "handler", node.function, None
    handler = server.kept.get(key) or server.kept.setdefault(
        key, Handler(node.function, server.folder)
    )
    load_function(handler)
    return handler.function


def load_function(handler: Handler) -> bool:
    """Import what is new or has changed; tell whether that was done."""
    return handler.load()


def find_model(manager: ModelManager, model: str, version: int | None) -> Servable | None:
    """A model's version that is there now, the highest for None."""
    found = manager.available.get(model)
    if (
        found is None
        or manager.config.is_pipeline(model)
        or version is not None
        and version not in found.versions
    ):
        return None
    return found.versions[max(found.versions) if version is None else version]


def find_signature(manager: ModelManager, model: str, version: int | None) -> Signature | None:
    """The default signature of a model's version that is there now, the highest for None."""
    servable = find_model(manager, model, version)
    return servable.signatures.get("serving_default") if servable else None


def seconds_of(config: Any, manager: ModelManager) -> float:
    """What the models of a pipeline take together for one row; not known of functions, of shards and of what may have to load."""
    if any(part.demultiply_count is not None for part in (config, *config.nodes)):
        return float("inf")
    models = [
        find_model(manager, node.model_name, node.version) for node in config.nodes
    ]  # a function has none
    return sum(model.seconds_of("serving_default") if model else float("inf") for model in models)


def pipeline_servable(
    config: Any, planned: Plan, manager: ModelManager, pool: ThreadPoolExecutor
) -> Servable:
    """A plan as a servable. Tensors that only functions see are taken for floats in requests, and answered as they come."""

    def call(
        model: str, version: int | None, inputs: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        with manager.lease(model, version) as (_, servable):
            return servable.run("serving_default", inputs)

    def run(name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            helpers = (
                pool if seconds_of(config, manager) >= SHORT_SECONDS else None
            )  # one costs more than a short call
            return planned.run(inputs, call, helpers)
        except NoShards:
            raise ServingError("", status=204) from None  # as OpenVINO Model Server answers it
        except PipelineError as error:
            raise BadRequest(str(error)) from error

    signature = Signature(
        {
            name: TensorSpec(name, name, dtype or "DT_FLOAT", shape)
            for name, (dtype, shape) in planned.inputs.items()
        },
        {
            name: TensorSpec(name, name, dtype or "DT_INVALID", shape)
            for name, (dtype, shape) in planned.outputs.items()
        },
    )
    return Servable(
        {"serving_default": signature},
        run,
        metadata=describe_signature(signature),
        seconds=lambda name: seconds_of(config, manager),
    )


def describe_signature(signature: Signature) -> dict[str, Any]:
    """A signature as a model's metadata has it, in TensorFlow Serving's casing and in OpenVINO's."""

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
