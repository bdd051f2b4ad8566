"""SavedModels opened with no more than their signatures use, or as objects, or with other names than their own."""

import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from serving import (
    LoadError,
    called_functions,
    called_names,
    clean_message,
    new_session,
    tensorflow,
)

logger = logging.getLogger("serving")

# ==================================================================================================
# What the signatures use
# ==================================================================================================

READ = "/Read/ReadVariableOp"  # stands beside each variable; freezing reads them by it
PLAIN = {
    "VarHandleOp",
    "ReadVariableOp",
    "StatefulPartitionedCall",
}  # other operations that have a state want more than a checkpoint
INIT = "__saved_model_init_op"
INIT_COLLECTIONS = {"saved_model_main_op", "legacy_init_op"}


def open_used(
    folder: Path, device: str, tags: Sequence[str] = ("serve",)
) -> tuple[Any | None, dict[str, Any] | None]:
    """A session over what the signatures of a SavedModel use, its variables filled; and the SignatureDefs.

    TensorFlow's loader for sessions takes some three times as long: it brings in the functions that save and restore, and fills
    variables that no signature uses, which then stay in memory. Keras stores each twice.
    The session is None where it is not certain what each variable holds. The SignatureDefs are None where TensorFlow's loader is
    to be tried next; not in files that hold more variables than their checkpoint does, of which it may fill the wrong ones.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    tf = tensorflow()
    file, prefix = folder / "saved_model.pb", folder / "variables" / "variables"
    if not file.is_file() or not prefix.with_suffix(".index").is_file():
        return None, None
    graphs = saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs
    graph = next((graph for graph in graphs if set(graph.meta_info_def.tags) == set(tags)), None)
    if graph is None:
        return None, None
    reader, session = tf.train.load_checkpoint(str(prefix)), None
    try:
        used = extract_used(graph, choose_sound(graph, folder.name))
        if keys := checkpoint_keys(graph, used, reader):
            session = open_filled(used, keys, prefix, device, graph.meta_info_def.stripped_op_list)
    except (
        Exception
    ) as error:  # whatever is wrong with the files: TensorFlow's own loaders say it better
        logger.debug("%s is loaded whole: %s", folder.name, clean_message(str(error)))
    doubled = sum(node.op == "VarHandleOp" for node in graph.graph_def.node) > len(
        reader.get_variable_to_shape_map()
    )
    return session, dict(graph.signature_def) if session or doubled else None


def choose_sound(graph: Any, label: str) -> list[str]:
    """The signatures of a MetaGraphDef whose operations and functions are all there.

    One that is not whole would not let the others be loaded; the log says what it lacks.
    """
    sound = []
    for name in graph.signature_def:
        try:
            missing = find_missing(extract_used(graph, [name]))
        except (AssertionError, KeyError, ValueError) as error:  # tensors that are not there
            missing = clean_message(str(error))
        if missing:
            logger.warning("%s: signature %s is left out: %s", label, name, missing)
        else:
            sound.append(name)
    return sound


def find_missing(used: Any) -> str:
    """What a graph calls that is neither an operation of TensorFlow's nor a function of its own."""
    from tensorflow.python.framework import op_def_registry

    functions = {function.signature.name: function for function in used.library.function}
    bodies = [used.node, *(function.node_def for function in functions.values())]
    for node in itertools.chain.from_iterable(bodies):
        if node.op not in functions and op_def_registry.get(node.op) is None:
            return f"there is no operation '{node.op}'"
        lost = sorted(called_names(node.attr) - functions.keys() - {""})
        if lost:
            return f"there is no function '{lost[0]}'"
    return ""


def extract_used(graph: Any, signatures: Iterable[str]) -> Any:
    """The part of a MetaGraphDef's graph that signatures are made of, with what it calls."""
    extract = tensorflow().compat.v1.graph_util.extract_sub_graph
    infos = (
        info
        for name in signatures
        for signature in [graph.signature_def[name]]
        for side in (signature.inputs, signature.outputs)
        for info in side.values()
    )
    names = {
        info.name.split(":")[0] for info in infos if info.name
    }  # sparse and composite tensors have none
    reads = {
        node.name + READ
        for node in extract(graph.graph_def, sorted(names)).node
        if node.op == "VarHandleOp"
    }
    used = extract(
        graph.graph_def, sorted(names | reads & {node.name for node in graph.graph_def.node})
    )
    functions = called_functions(used.node, used.library)
    if not used.library.gradient:
        del used.library.function[:]
        used.library.function.extend(functions)
    return used


def checkpoint_keys(graph: Any, used: Any, reader: Any) -> dict[str, str] | None:
    """The checkpoint's key for each variable of the used part; None where one is not certain, or not all there is to restore.

    A function lists the objects that it is bound to (saved_object_graph.proto), and takes them as its last inputs; the checkpoint
    has the key of each object (trackable_object_graph.proto). That is how `tf.saved_model.load` ties them.
    """
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    if not reader.has_tensor("_CHECKPOINTABLE_OBJECT_GRAPH") or has_more_to_restore(graph, used):
        return None
    stored = trackable_object_graph_pb2.TrackableObjectGraph.FromString(
        reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")
    ).nodes
    saved = graph.object_graph_def
    if [sorted_children(node) for node in stored] != [
        sorted_children(node) for node in saved.nodes
    ]:
        return None
    handles = {node.name: node.attr for node in used.node if node.op == "VarHandleOp"}
    keys: dict[str, str] = {}
    for node in used.node:
        bound = (
            saved.concrete_functions[node.attr["f"].func.name].bound_inputs
            if "f" in node.attr
            else ()
        )
        inputs = [name for name in node.input if not name.startswith("^")]
        for name, number in zip(inputs[len(inputs) - len(bound) :], bound):
            key = next(
                (a.checkpoint_key for a in stored[number].attributes if a.name == "VARIABLE_VALUE"),
                "",
            )
            if name in handles and keys.setdefault(name, key) != key:
                return None
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    fitting = all(
        key in shapes
        and dtypes[key] == handles[name]["dtype"].type
        and tensorflow().TensorShape(handles[name]["shape"].shape).is_compatible_with(shapes[key])
        for name, key in keys.items()
    )
    return keys if fitting and keys.keys() == handles.keys() else None


def has_more_to_restore(graph: Any, used: Any) -> bool:
    """Whether a SavedModel has assets, something to run when it is loaded, or a state besides variables, such as tables."""
    from tensorflow.python.framework import op_def_registry

    starts = (
        [info.name for info in graph.signature_def[INIT].outputs.values()]
        if INIT in graph.signature_def
        else []
    )
    starts += [
        name
        for key in INIT_COLLECTIONS & graph.collection_def.keys()
        for name in graph.collection_def[key].node_list.value
    ]
    names = {name.split(":")[0] for name in starts}
    if graph.asset_file_def or any(
        node.op != "NoOp" or node.input for node in graph.graph_def.node if node.name in names
    ):
        return True
    kinds = {node.op for node in used.node} - PLAIN
    return any(
        definition is None or definition.is_stateful
        for definition in map(op_def_registry.get, kinds)
    )


def sorted_children(node: Any) -> list[tuple[str, int]]:
    return sorted((child.local_name, child.node_id) for child in node.children)


def open_filled(
    used: Any, keys: Mapping[str, str], prefix: Path, device: str, producer: Any
) -> Any:
    """A session over a graph, each of its variables restored from the checkpoint by its key."""
    tf = tensorflow()
    dtypes = {node.name: node.attr["dtype"].type for node in used.node if node.op == "VarHandleOp"}
    with new_session(device) as session:
        tf.graph_util.import_graph_def(used, name="", producer_op_list=producer)
        handles = [session.graph.get_tensor_by_name(f"{name}:0") for name in keys]
        with session.graph.device("/device:CPU:0"):
            values = tf.raw_ops.RestoreV2(
                prefix=str(prefix),
                tensor_names=list(keys.values()),
                shape_and_slices=[""] * len(keys),
                dtypes=[dtypes[name] for name in keys],
            )
        session.run(
            [
                tf.raw_ops.AssignVariableOp(resource=handle, value=value)
                for handle, value in zip(handles, values)
            ]
        )
    return session


# ==================================================================================================
# Objects, and other names
# ==================================================================================================


def open_objects(
    folder: Path,
    device: str,
    definitions: Mapping[str, Any],
    renamed: Mapping[str, Mapping[str, str]],
    tags: Sequence[str] = ("serve",),
) -> Any:
    """Load a SavedModel's objects into a session's graph, and point the SignatureDefs at their tensors there."""
    tf = tensorflow()
    with new_session(device) as session:
        loaded = tf.saved_model.load(str(folder), tags=list(tags))
        session.run(
            [tf.compat.v1.global_variables_initializer(), tf.compat.v1.tables_initializer()]
        )
        for name, function in loaded.signatures.items():
            rewire(definitions[name], function, renamed)
    return session


def rewire(definition: Any, function: Any, renamed: Mapping[str, Mapping[str, str]]) -> None:
    """Call a loaded signature in the current graph and point its SignatureDef at the tensors of that call."""
    placeholder = tensorflow().compat.v1.placeholder
    inputs = {
        name: placeholder(spec.dtype, spec.shape)
        for name, spec in function.structured_input_signature[1].items()
    }
    for side, tensors in (("inputs", inputs), ("outputs", function(**inputs))):
        for name, tensor in tensors.items():
            getattr(definition, side)[renamed.get(side, {}).get(name, name)].name = tensor.name


def rename_tensors(definitions: Mapping[str, Any], folder: Path) -> dict[str, dict[str, str]]:
    """Apply OpenVINO Model Server's mapping_config.json: names for requests instead of the model's own; returns it."""
    path = folder / "mapping_config.json"
    mapping = json.loads(path.read_bytes()) if path.is_file() else {}
    for definition in definitions.values():
        for side in ("inputs", "outputs"):
            tensors = getattr(definition, side)
            stored = {
                own: type(info).FromString(info.SerializeToString())
                for own, info in tensors.items()
            }
            tensors.clear()
            for own, info in stored.items():
                exposed = mapping.get(side, {}).get(own, own)
                if exposed in tensors:
                    raise LoadError(f"mapping_config.json gives two {side} the name '{exposed}'")
                tensors[exposed].CopyFrom(info)
    return mapping
