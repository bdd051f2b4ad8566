"""SavedModels that are not loaded as they are: with other names, or with variables held twice, as a Keras model in a tf.Module has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving import LoadError, new_session, tensorflow


def read_doubled(folder: Path) -> dict[str, Any] | None:
    """The SignatureDefs of a file that holds more variables than its checkpoint does; None for all others, or unknown."""
    from tensorflow.core.protobuf import saved_model_pb2
    file, tf = folder / "saved_model.pb", tensorflow()
    if not file.is_file() or not (folder / "variables" / "variables.index").is_file():
        return None
    for graph in saved_model_pb2.SavedModel.FromString(file.read_bytes()).meta_graphs:
        if set(graph.meta_info_def.tags) == {tf.saved_model.SERVING}:
            stored = len(tf.train.list_variables(str(folder / "variables" / "variables")))
            return dict(graph.signature_def) if sum(node.op == "VarHandleOp" for node in graph.graph_def.node) > stored else None
    return None


def open_objects(folder: Path, device: str, definitions: Mapping[str, Any], renamed: Mapping[str, Mapping[str, str]]) -> Any:
    """Load a SavedModel's objects into a session's graph, and point the SignatureDefs at their tensors there."""
    tf = tensorflow()
    with new_session(device) as session:
        loaded = tf.saved_model.load(str(folder))
        session.run([tf.compat.v1.global_variables_initializer(), tf.compat.v1.tables_initializer()])
        for name, function in loaded.signatures.items():
            rewire(definitions[name], function, renamed)
    return session


def rewire(definition: Any, function: Any, renamed: Mapping[str, Mapping[str, str]]) -> None:
    """Call a loaded signature in the current graph and point its SignatureDef at the tensors of that call."""
    placeholder = tensorflow().compat.v1.placeholder
    inputs = {name: placeholder(spec.dtype, spec.shape) for name, spec in function.structured_input_signature[1].items()}
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
            stored = {own: type(info).FromString(info.SerializeToString()) for own, info in tensors.items()}
            tensors.clear()
            for own, info in stored.items():
                exposed = mapping.get(side, {}).get(own, own)
                if exposed in tensors:
                    raise LoadError(f"mapping_config.json gives two {side} the name '{exposed}'")
                tensors[exposed].CopyFrom(info)
    return mapping
