"""classify and regress: examples, features by name, serialized for a signature that parses tf.train.Example.

Texts and order of checks are TensorFlow Serving's.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from serving import (
    BadRequest,
    Servable,
    Signature,
    decode_base64,
    encode_text,
    is_base64,
    show,
    tensorflow,
    type_of,
)


def decode_examples(body: dict[str, Any]) -> list[dict[str, tuple[str, list]]]:
    """Read `examples` with the `context` merged in; where both define a feature the example wins, as in TensorFlow."""
    context = decode_features(body["context"]) if "context" in body else {}
    if "examples" not in body:
        raise BadRequest(
            f"{show(body)} When method is classify, key 'examples' is expected and was not found"
        )
    examples = body["examples"]
    if not isinstance(examples, list):
        raise BadRequest(f"{show(body)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise BadRequest(f"{show(body)} 'examples' value is an empty array")
    return [context | decode_features(example) for example in examples]


def decode_features(example: Any) -> dict[str, tuple[str, list]]:
    """Read one example; an empty list is a missing feature."""
    if not isinstance(example, dict):
        raise BadRequest(f"Example must be JSON object but got JSON {type_of(example)}")
    features = {}
    for name, value in example.items():
        if re.search("[\ud800-\udfff]", name):
            raise BadRequest(f"Feature name is not UTF-8: {encode_text(name)!r}")
        value = value.tolist() if isinstance(value, np.ndarray) else value
        items = [
            decode_feature(name, item) for item in (value if isinstance(value, list) else [value])
        ]
        for kind, _ in items:
            if kind != items[0][0]:
                raise BadRequest(
                    f"Unexpected element type in feature: {name} expecting type: {items[0][0]}"
                )
        if items:
            features[name] = (items[0][0], [item for _, item in items])
    return features


def decode_feature(name: str, value: Any) -> tuple[str, Any]:
    """One feature value with its kind; integers are never made floats."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, int):  # true and false among them
        if not -(2**63) <= value < 2**63:
            raise BadRequest(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
        return "int64", int(value)
    if isinstance(value, float):
        return "float", value
    if isinstance(value, str | bytes):
        return "bytes", value if isinstance(value, bytes) else encode_text(value)
    if isinstance(value, dict) and is_base64(value):
        return "bytes", decode_base64(value)
    raise BadRequest(f"Feature: {name} has element with unexpected JSON type: {type_of(value)}")


def require(holds: bool, text: str) -> None:
    if not holds:
        raise BadRequest(text)


def run_examples(
    servable: Servable, name: str, examples: list, check: Callable[[Signature, str], None]
) -> dict[str, np.ndarray]:
    """Run a classify or regress signature on serialized examples, its structure checked first."""
    signature = servable.signatures.get(name)
    if signature is None:
        raise BadRequest(f"No signature was found with the name: {name}")
    require(len(signature.inputs) == 1, "Expected one input Tensor.")
    check(
        signature, f"inputs: {', '.join(signature.inputs)}; outputs: {', '.join(signature.outputs)}"
    )
    return servable.run(name, {"inputs": serialize_examples(examples)})


def serialize_examples(examples: Sequence[Mapping[str, tuple[str, list]]]) -> np.ndarray:
    """Features by name, each (`int64` | `float` | `bytes`, values), as serialized tf.train.Examples [N]."""
    train = tensorflow().train
    lists = {
        "int64": lambda values: train.Feature(int64_list=train.Int64List(value=values)),
        "float": lambda values: train.Feature(float_list=train.FloatList(value=values)),
        "bytes": lambda values: train.Feature(bytes_list=train.BytesList(value=values)),
    }
    serialized = np.empty(len(examples), object)
    for index, features in enumerate(examples):
        feature = {name: lists[kind](values) for name, (kind, values) in features.items()}
        serialized[index] = train.Example(
            features=train.Features(feature=feature)
        ).SerializeToString()
    return serialized


def print_shape(array: np.ndarray) -> str:
    return str(list(array.shape)).replace(" ", "")


def classify(servable: Servable, name: str, examples: list) -> dict[str, Any]:
    """Answer a classify request: for each example its [label, score] pairs, under `results` and `result`."""

    def check(signature: Signature, text: str) -> None:
        require(
            len(signature.outputs) in (1, 2),
            f"Expected one or two output Tensors, found {len(signature.outputs)}",
        )
        require(
            "inputs" in signature.inputs, f"No classification inputs found in SignatureDef: {text}"
        )
        require(
            bool(signature.outputs.keys() & {"classes", "scores"}),
            f'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature was: {text}',
        )

    outputs = run_examples(servable, name, examples, check)
    specs = servable.signatures[name].outputs
    for output, dtype in (("classes", "DT_STRING"), ("scores", "DT_FLOAT")):
        if (array := outputs.get(output)) is not None:
            require(
                array.ndim == 2,
                f"Expected Tensor shape: [batch_size num_classes] but got {print_shape(array)}",
            )
            require(
                specs[output].dtype == dtype,
                f"Expected {output} Tensor of {dtype}. Got: {specs[output].dtype}",
            )
            require(
                len(array) == len(examples),
                f"Expected {output} output batch size of {len(examples)}. Got: {len(array)}",
            )
            shape = array.shape
    classes = outputs.get("classes", np.full(shape, b"", object))
    scores = outputs.get("scores", np.zeros(shape, np.float32))
    require(
        classes.shape == scores.shape,
        f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}",
    )
    results = [[list(pair) for pair in zip(*row)] for row in zip(classes, scores)]
    return {"results": results, "result": results}


def regress(servable: Servable, name: str, examples: list) -> dict[str, Any]:
    """Answer a regress request: one value for each example, float32 [N], under `results` and `result`."""

    def check(signature: Signature, text: str) -> None:
        require(len(signature.outputs) == 1, "Expected one output Tensor.")
        require("inputs" in signature.inputs, f"No regression inputs found in SignatureDef: {text}")
        require(
            "outputs" in signature.outputs, f"No regression outputs found in SignatureDef: {text}"
        )

    values = run_examples(servable, name, examples, check)["outputs"]
    dtype = servable.signatures[name].outputs["outputs"].dtype
    require(
        values.ndim == 1 or values.ndim == 2 and values.shape[1] == 1,
        f"Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got {print_shape(values)}",
    )
    require(
        len(values) == len(examples),
        f"Input batch size did not match output batch size: {len(examples)} vs. {len(values)}",
    )
    require(dtype == "DT_FLOAT", f"Expected output Tensor of DT_FLOAT.  Got: {dtype}")
    return {"results": values.reshape(-1), "result": values.reshape(-1)}
