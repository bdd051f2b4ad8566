"""KServe's Open Inference Protocol (V2) over HTTP: what Triton's and MLServer's clients speak.

The protocol: https://github.com/kserve/open-inference-protocol (specification/protocol/
inference_rest.md); tensors as bytes: Triton's extension `binary_tensor_data`
(triton-inference-server/server, docs/protocol).
A model's name, versions, signature, errors and limits are those of /v1.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .binary import refuse_hollow
from .core import (
    MAX_DIMENSIONS,
    NUMPY_DTYPES,
    PLAIN_BYTES,
    BadRequest,
    Call,
    Extension,
    ModelServer,
    NotFound,
    Reply,
    ServingError,
    Signature,
    TensorSpec,
    __version__,
    decode_columns,
    decode_tensor,
    encode_json,
    json_kind,
    parse_json,
    read_body,
    read_large_json,
    refuse_complex,
    reply,
    require_writable,
    route,
    select_outputs,
)

# "Tensor Data Types" of the protocol, and BF16, which is Triton's.
DATATYPES = {
    "BOOL": "DT_BOOL",
    "UINT8": "DT_UINT8",
    "UINT16": "DT_UINT16",
    "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64",
    "INT8": "DT_INT8",
    "INT16": "DT_INT16",
    "INT32": "DT_INT32",
    "INT64": "DT_INT64",
    "FP16": "DT_HALF",
    "FP32": "DT_FLOAT",
    "FP64": "DT_DOUBLE",
    "BYTES": "DT_STRING",
    "BF16": "DT_BFLOAT16",
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
DATATYPES_OF = {NUMPY_DTYPES[dtype]: name for dtype, name in NAMES.items()}
JSON_LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
# Parameters of a request that need state between requests, which this server does not keep.
UNSUPPORTED = ("sequence_id", "sequence_start", "sequence_end")


# --- what is served -------------------------------------------------------------------------------


def view_server(server: ModelServer, call: Call) -> Reply:
    return reply({"name": "serving", "version": __version__, "extensions": ["binary_tensor_data"]})


def view_model(server: ModelServer, call: Call, model: str, version: int | None = None) -> Reply:
    """A model's versions, and the tensors of its default signature."""
    with server.lease(model, version, None, call.trace) as (_, servable):
        _, signature = choose_signature(servable, {})
        return reply(
            {
                "name": model,
                "versions": [str(n) for n in sorted(server.manager.available[model].versions)],
                "platform": "tensorflow_savedmodel",
                "inputs": [describe_tensor(spec) for spec in signature.inputs.values()],
                "outputs": [describe_tensor(spec) for spec in signature.outputs.values()],
            }
        )


def describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    """A tensor's name, datatype and shape; -1 is a variable size."""
    sizes = [-1] if spec.shape is None else [-1 if size is None else size for size in spec.shape]
    return {"name": spec.name, "datatype": NAMES.get(spec.dtype, spec.dtype), "shape": sizes}


def view_model_ready(
    server: ModelServer, call: Call, model: str, version: int | None = None
) -> Reply:
    """200 if a model, or the version of it, is ready; 400 if it is not ready yet."""
    found = server.start().manager.available.get(model)
    if found is None and model not in server.config.served_names:
        raise NotFound(f"There is no model '{model}'")
    if server.config.is_pipeline(model):  # pipelines have no versions
        version = None
    # 0 is the default version, as in `infer`
    ready = found is not None and (not version or version in found.versions)
    if not ready:
        raise BadRequest(f"Model '{model}'{'' if version is None else f' {version}'} is not ready")
    return reply({"name": model, "ready": True})


# --- inference ------------------------------------------------------------------------------------


def view_infer_v2(server: ModelServer, call: Call, model: str, version: int | None = None) -> Reply:
    """Answer an inference request: inputs with datatype and shape, their data in the JSON or as
    bytes after it.
    """
    data = read_body(server, call)
    with server.lease(model, version, None, call.trace) as (number, servable):
        request, rest = split_request(data, call.header(JSON_LENGTH))
        if request is None:
            _, signature = choose_signature(servable, {})
            request, rest = describe_raw(signature, model, rest)
        check_request(request)
        name, signature = choose_signature(servable, request)
        inputs = read_inputs(signature, model, request["inputs"], rest)
        wanted = read_wanted(signature, model, request)
        require_writable(select_outputs(signature, [*wanted]))
        outputs = servable.run(name, decode_columns(signature, inputs), call.trace)
    head = {"model_name": model, "model_version": str(number)}
    if request.get("id") is not None:
        head["id"] = request["id"]
    return write_tensors(head, wanted, outputs)


def choose_signature(servable: Any, request: Mapping[str, Any]) -> tuple[str, Signature]:
    """The signature that the parameter `signature_name` names, by default `serving_default`.

    Raises BadRequest.
    """
    given = parameters_of(request).get("signature_name", "serving_default")
    if not isinstance(given, str) or given not in servable.signatures:
        raise BadRequest(
            f"parameters.signature_name: expected one of {', '.join(servable.signatures)}, got "
            f"{str(given)[:60]!r}"
        )
    return given, servable.signatures[given]


def split_request(data: bytes, length: str) -> tuple[dict[str, Any] | None, memoryview]:
    """The JSON of a body, and the bytes after it; the JSON is None if `length` says 0 bytes."""
    if not length:
        return read_json(data), memoryview(b"")
    known = length.isascii() and length.isdigit() and len(length) <= 18
    if not known or int(length) > len(data):
        raise BadRequest(
            f"{JSON_LENGTH}: expected the bytes of JSON at the beginning of a body of {len(data)}, "
            f"got '{length[:40]}'"
        )
    size, rest = int(length), memoryview(data)[int(length) :]
    return (read_json(data[:size]) if size else None), rest


def read_json(data: bytes) -> dict[str, Any]:
    """Parse a JSON object; long lists of numbers become arrays. Raises BadRequest otherwise."""
    large = read_large_json(data) if len(data) >= PLAIN_BYTES else None
    found = parse_json(data) if large is None else large
    if not isinstance(found, dict):
        raise BadRequest("The request must be a JSON object with 'inputs'")
    return found


def describe_raw(
    signature: Signature, model: str, rest: memoryview
) -> tuple[dict[str, Any], memoryview]:
    """The request that a body without JSON stands for (Triton's "Raw Binary Request"), its bytes.

    The bytes are the model's only input: a single text, or a tensor with at most one unknown size.
    The outputs are answered as bytes.
    """
    if len(signature.inputs) != 1:
        raise BadRequest(
            f"A body of bytes alone is for a model of one input; '{model}' has "
            f"{', '.join(signature.inputs)}"
        )
    ((name, spec),) = signature.inputs.items()
    datatype = datatype_of(spec)
    answered = {"parameters": {"binary_data_output": True}}
    if spec.dtype == "DT_STRING":  # the whole body is one text, without a length before it
        ones = [1] * (1 if spec.shape is None else len(spec.shape))
        text = {"name": name, "datatype": "BYTES", "shape": ones, "data": [bytes(rest)]}
        return {"inputs": [text], **answered}, rest[:0]
    shape, width = spec.shape, NUMPY_DTYPES[spec.dtype].itemsize
    known = math.prod(each for each in shape or () if each is not None) * width
    free = None if shape is None else sum(each is None for each in shape)
    if free not in (0, 1) or not known:
        raise BadRequest(
            f"A body of bytes alone is for an input of one unknown size at most; '{name}' is "
            f"{describe_tensor(spec)['shape']}"
        )
    if free and len(rest) % known:
        raise BadRequest(f"'{name}': expected a multiple of {known} bytes, got {len(rest)}")
    sizes = [len(rest) // known if each is None else each for each in shape or ()]
    size = {"parameters": {"binary_data_size": len(rest)}}
    tensor = {"name": name, "datatype": datatype, "shape": sizes, **size}
    return {"inputs": [tensor], **answered}, rest


def check_request(request: Mapping[str, Any]) -> None:
    """Raise BadRequest for a request without inputs, or with an UNSUPPORTED parameter."""
    if not isinstance(request.get("inputs"), list) or not request["inputs"]:
        raise BadRequest("inputs: expected a list of tensors, got none")
    parameters = parameters_of(request)
    if not isinstance(request.get("id"), str | None):
        raise BadRequest("id: expected a text")
    for name in UNSUPPORTED:
        if parameters.get(name):
            raise BadRequest(f"parameters.{name}: this server keeps no state between requests")


def parameters_of(part: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The parameters of a request or of a tensor in it, all as JSON's own values; {} for null.
    Raises BadRequest.
    """
    given = part.get("parameters")
    if given is not None and not isinstance(given, dict):
        place = f"{where}.parameters" if where else "parameters"
        raise BadRequest(f"{place}: expected an object, got {json_kind(given)}")
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in (given or {}).items()
    }


def datatype_of(spec: TensorSpec) -> str:
    """The datatype of an input. Raises ServingError 501 if the protocol has none for its dtype."""
    if spec.dtype not in NAMES:
        text = f"The input '{spec.name}' is {spec.type_name}, for which there is no datatype"
        raise ServingError(text, "UNIMPLEMENTED")
    return NAMES[spec.dtype]


# --- inputs ---------------------------------------------------------------------------------------


def read_inputs(
    signature: Signature, model: str, tensors: Sequence[Any], rest: memoryview
) -> dict[str, np.ndarray]:
    """The input arrays by name; inputs sent as bytes follow one another in `rest`."""
    found: dict[str, np.ndarray] = {}
    for index, tensor in enumerate(tensors):
        where = f"inputs[{index}]"
        spec = check_input(signature, model, tensor, where)
        if spec.name in found:
            raise BadRequest(f"{where}: the input '{spec.name}' stands twice in the request")
        size = read_parameter(tensor, "binary_data_size", where)
        if size is None:
            found[spec.name] = read_data(tensor, spec, where)
            continue
        if "data" in tensor:
            raise BadRequest(f"{where}: expected data or binary_data_size, got both")
        if size > len(rest):
            raise BadRequest(f"{where}: binary_data_size is {size}, {len(rest)} bytes are left")
        found[spec.name] = read_binary(bytes(rest[:size]), tensor, where)
        rest = rest[size:]
    if len(rest):
        raise BadRequest(f"The body has {len(rest)} bytes more than its inputs")
    if missing := [name for name in signature.inputs if name not in found]:
        raise BadRequest(f"inputs: model '{model}' also needs {', '.join(missing)}")
    return found


def check_input(signature: Signature, model: str, tensor: Any, where: str) -> TensorSpec:
    """The spec of an input, after checking its name, datatype and shape. Raises BadRequest."""
    if not isinstance(tensor, dict):
        raise BadRequest(f"{where}: expected an object with name, shape, datatype and data")
    spec = signature.inputs.get(str(tensor.get("name")))
    if spec is None:
        raise BadRequest(
            f"{where}.name: model '{model}' has no input '{str(tensor.get('name'))[:60]}'; it has "
            f"{', '.join(signature.inputs)}"
        )
    wanted, datatype = datatype_of(spec), tensor.get("datatype")
    if not isinstance(datatype, str) or datatype != wanted:
        raise BadRequest(
            f"{where}.datatype: '{spec.name}' of model '{model}' is {wanted}, got "
            f"'{str(datatype)[:40]}'"
        )
    shape = tensor.get("shape")
    shape = shape.tolist() if isinstance(shape, np.ndarray) else shape
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequest(f"{where}.shape: expected a list of sizes, got {str(shape)[:60]}")
    if len(shape) > MAX_DIMENSIONS:
        most = f"at most {MAX_DIMENSIONS} sizes"
        raise BadRequest(f"{where}.shape: expected {most}, got {len(shape)}")
    refuse_hollow(shape, f"{where}.shape")
    if any(name.startswith("shared_memory") for name in parameters_of(tensor, where)):
        raise BadRequest(f"{where}: this server takes no shared memory: send the data")
    return TensorSpec(spec.name, spec.tensor, spec.dtype, None)


def read_parameter(tensor: Mapping[str, Any], name: str, where: str) -> int | None:
    """A tensor's parameter that is a size in bytes, or None. Raises BadRequest."""
    value = parameters_of(tensor, where).get(name)
    if value is not None and (type(value) is not int or value < 0):
        raise BadRequest(f"{where}.parameters.{name}: expected a size, got {str(value)[:40]}")
    return value


def read_data(tensor: Mapping[str, Any], spec: TensorSpec, where: str) -> np.ndarray:
    """The array of a tensor's `data`: nested lists of its shape, or one flat list, row by row."""
    if "data" not in tensor:
        raise BadRequest(f"{where}: expected data, or parameters.binary_data_size")
    try:
        array = decode_tensor(tensor["data"], spec)
    except BadRequest as error:
        raise BadRequest(f"{where} '{spec.name}': {error.message}") from None
    return with_shape(array, tensor, where)


def with_shape(array: np.ndarray, tensor: Mapping[str, Any], where: str) -> np.ndarray:
    shape = tuple(int(size) for size in tensor["shape"])
    if array.shape != shape and (array.ndim > 1 or array.size != math.prod(shape)):
        raise BadRequest(
            f"{where}: shape {list(shape)} is of {math.prod(shape)} values, data has "
            f"{list(array.shape)}"
        )
    return array.reshape(shape)


def read_binary(data: bytes, tensor: Mapping[str, Any], where: str) -> np.ndarray:
    """The array of a tensor's bytes: little-endian, row by row; each text has its length first."""
    count = math.prod(tensor["shape"])
    if tensor["datatype"] == "BYTES":
        return with_shape(read_texts(data, count, where), tensor, where)
    dtype = NUMPY_DTYPES[DATATYPES[tensor["datatype"]]]
    if len(data) != count * dtype.itemsize:
        raise BadRequest(
            f"{where}: shape {list(tensor['shape'])} of {tensor['datatype']} is "
            f"{count * dtype.itemsize} bytes, got {len(data)}"
        )
    if dtype.kind == "b" and data.strip(b"\0\1"):
        raise BadRequest(f"{where}: expected bytes 0 and 1 for BOOL")
    return np.frombuffer(data, dtype).reshape(tensor["shape"])


def read_texts(data: bytes, count: int, where: str) -> np.ndarray:
    """Texts as bytes in an object array [count]; each follows its length, uint32 little-endian."""
    texts: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(texts) < count:
        (size,) = struct.unpack_from("<I", data, at)
        if at + 4 + size > len(data):
            break
        texts.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    if at != len(data) or len(texts) != count:
        raise BadRequest(
            f"{where}: expected {count} texts, each behind its length in 4 bytes, little-endian; "
            f"{len(data)} bytes hold {len(texts)} and {len(data) - at} bytes more"
        )
    found = np.empty(count, object)
    found[:] = texts
    return found


# --- outputs --------------------------------------------------------------------------------------


def read_wanted(signature: Signature, model: str, request: Mapping[str, Any]) -> dict[str, bool]:
    """The outputs that a request asks for, in its order, and whether as bytes; all outputs if it
    names none.
    """
    usual = parameters_of(request).get("binary_data_output") is True
    asked = request.get("outputs")
    if not isinstance(asked, list | None):
        raise BadRequest("outputs: expected a list of tensors")
    if not asked:
        return dict.fromkeys(signature.outputs, usual)
    found = dict[str, bool]()
    for index, one in enumerate(asked):
        where, name = f"outputs[{index}]", one.get("name") if isinstance(one, dict) else None
        if not isinstance(name, str) or name not in signature.outputs:
            raise BadRequest(
                f"{where}.name: model '{model}' has no output '{str(name)[:60]}'; it has "
                f"{', '.join(signature.outputs)}"
            )
        if name in found:
            raise BadRequest(f"{where}: the output '{name}' stands twice in the request")
        parameters = parameters_of(one, where)
        if any(each.startswith("shared_memory") for each in parameters):
            raise BadRequest(f"{where}: this server writes to no shared memory")
        if parameters.get("classification"):
            raise BadRequest(f"{where}: this server has no classification; leave the parameter out")
        found[name] = parameters.get("binary_data", usual) is True
    return found


def write_tensors(
    head: dict[str, Any], wanted: Mapping[str, bool], outputs: Mapping[str, Any]
) -> Reply:
    """The answer as JSON, followed by the bytes of the outputs that are wanted as bytes."""
    tensors, rest = [], []
    for name, is_binary in wanted.items():
        array = np.asarray(outputs[name])
        refuse_complex(array)
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES_OF[array.dtype],
            "shape": list(array.shape),
        }
        if is_binary:
            data = write_binary(array)
            rest.append(data)
            tensor["parameters"] = {"binary_data_size": len(data)}
        else:
            tensor["data"] = write_data(name, array)
        tensors.append(tensor)
    text = encode_json({**head, "outputs": tensors})
    if not rest:
        return Reply(text)
    headers = ((JSON_LENGTH, str(len(text))),)
    return Reply(b"".join((text, *rest)), content_type=BINARY, headers=headers)


def write_data(name: str, array: np.ndarray) -> Any:
    """Values row by row, texts decoded. Raises BadRequest for bytes that are not UTF-8."""
    if array.dtype.kind != "O":
        return array.ravel()
    try:
        return [bytes(value).decode() for value in array.ravel()]
    except UnicodeDecodeError:
        raise BadRequest(
            f"Output '{name}' holds bytes that are no UTF-8 text: ask for it with "
            '"parameters": {"binary_data": true}'
        ) from None


def write_binary(array: np.ndarray) -> bytes:
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array).tobytes()
    texts = [bytes(value) for value in array.ravel()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


MODEL_V2 = "/v2/models/{model}[/versions/{version}]"

EXTENSION = Extension(
    "kserve",
    routes=(
        route("GET", "/v2", view_server, "open", "KServe V2: the server", line="health"),
        route(
            "GET",
            MODEL_V2,
            view_model,
            "shared",
            "KServe V2: a model's tensors",
            free=True,
            line="state",
        ),
        route(
            "GET",
            MODEL_V2 + "/ready",
            view_model_ready,
            "shared",
            "KServe V2: the model is ready",
            free=True,
            line="state",
        ),
        route(
            "POST",
            MODEL_V2 + "/infer",
            view_infer_v2,
            "shared",
            "KServe V2: inference",
            infers=True,
        ),
    ),
)
