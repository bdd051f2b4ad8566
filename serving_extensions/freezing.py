"""Turn a graph's variables into constants: convolutional networks then run faster on a CPU.

Whether a model is frozen depends only on its graph and config, never on measured times.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .core import (
    Extension,
    Load,
    LoadRequest,
    ModelServer,
    OpenModel,
    Servable,
    SessionServable,
    SignatureCall,
    clean_message,
    definition_of,
    load_errors,
    make_calls,
    new_session,
    tensorflow,
    try_calls,
    used_nodes,
)

logger = logging.getLogger("serving")

FREEZE_BYTES = 200 << 20  # of variables; freezing holds several copies for a moment
GAINING = {"Conv2D", "Conv3D", "DepthwiseConv2dNative"}  # the gain is in their weights
HOLDERS = {"StatefulPartitionedCall", "While", "If", "Case"}  # only what they call has state


def wrap_load(server: ModelServer, load: Load) -> Load:
    """A loader that freezes models if that gains anything and the config allows it."""

    def load_frozen(request: LoadRequest) -> Servable:
        if not request.config.freeze:
            return load(request)
        plain = load(dataclasses.replace(request, try_calls=False))
        if plain.opened is None:
            return plain
        close: Callable[[], Any] = functools.partial(plain.retire, 0)
        with load_errors(request.folder, close):
            frozen = freeze(plain.opened)
        if frozen is not None:
            close()  # the session, and its graph with it: nobody needs them any more
            close = frozen.session.close
        model = frozen or plain.opened
        with load_errors(request.folder, close):
            if request.try_calls:
                model = try_calls(model, request.config)
        return SessionServable(model, close)

    return load_frozen


def freeze(model: OpenModel) -> OpenModel | None:
    """The model in a session over its graph with the variables as constants.

    TensorFlow prepares constants once (oneDNN's layout of weights, sums and products of
    constants), but reads variables at each call. Sums may differ in the last bit. None if nothing
    is gained, or an operation has state.
    """
    calls, refused = model.own_calls(), dict[str, str]()
    kinds = frozenset[str]().union(*(call.operations for call in calls.values()))
    small = 0 < variable_bytes(model.session.graph) <= FREEZE_BYTES
    if not model.device.startswith("CPU") or not small or not GAINING & kinds:
        return None
    frozen: Any = None
    try:
        frozen = open_frozen(model.session, calls, model.device)
        if frozen is not None:
            calls = make_calls(frozen, calls, refused)
    except Exception as error:  # not a public interface, and graphs are of all kinds
        refused[""] = clean_message(str(error))
    if frozen is None or refused:
        logger.debug("%s is not frozen: %s", model.name, refused or "it has a state")
        if frozen is not None:
            frozen.close()
        return None
    changed = model.with_calls(lambda name, _: calls[name]._replace(kind="frozen"))
    return dataclasses.replace(changed, session=frozen)


def variable_bytes(graph: Any) -> int:
    """The size of a graph's variables."""
    count = 0
    for operation in graph.get_operations():
        if operation.type == "VarHandleOp":
            shape = tensorflow().TensorShape(operation.get_attr("shape"))
            count += operation.get_attr("dtype").size * (shape.num_elements() or 0)
    return count


def open_frozen(session: Any, plans: Mapping[str, SignatureCall], device: str) -> Any | None:
    """A session over the frozen part of the graph that calls need; None if that has state."""
    from tensorflow.python.framework import convert_to_constants

    convert = convert_to_constants.convert_variables_to_constants_from_session_graph
    wanted = [
        tensor.split(":")[0] for plan in plans.values() for tensor in (*plan.feeds, *plan.fetches)
    ]
    constant = convert(session, session.graph.as_graph_def(), wanted)
    if any(has_state(used_nodes(constant, plan.fetches)) for plan in plans.values()):
        return None
    with new_session(device, session_options()) as frozen:
        tensorflow().graph_util.import_graph_def(constant, name="")
    return frozen


def has_state(nodes: Iterable[Any]) -> bool:
    """Whether any operation has state: variables, tables, random numbers, Python functions."""
    definitions = map(definition_of, {node.op for node in nodes} - HOLDERS)
    return any(definition is None or definition.is_stateful for definition in definitions)


def session_options() -> Any:
    """TensorFlow's session options, without output partition graphs.

    Nobody reads these, and they copy all constants.
    """
    from tensorflow.python.eager import context

    options = context.context().config
    options.experimental.disable_output_partition_graphs = True
    return options


EXTENSION = Extension("freezing", wrap_load=wrap_load)
