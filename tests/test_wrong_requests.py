"""Wrong requests, each with the status and text TensorFlow Serving gives (or ours, where it is wrong to answer at all)."""

import gzip
import json
import zlib

import numpy as np
import pytest
from conftest import FakeServable, Rest, assert_error, fake_server, signature, spec

import serving

pytestmark = pytest.mark.usefixtures("extensions")

P = "/v1/models/one:predict"
TWO = "/v1/models/two:predict"
C = "/v1/models/ex:classify"
R = "/v1/models/ex:regress"


def answer_examples(name, inputs):
    n = len(inputs["inputs"])
    ones = np.ones((n, 1), np.float32)
    return {
        "rank1": {"scores": np.ones(n, np.float32)},
        "labels": {"classes": np.ones((n, 1), np.int64)},
        "double": {"scores": ones.astype(np.float64)},
        "short": {"scores": ones[1:]},
        "uneven": {"scores": ones, "classes": np.full((n, 3), b"a", object)},
        "wide": {"outputs": np.ones((n, 2), np.float32)},
        "few": {"outputs": np.ones(n + 1, np.float32)},
        "whole": {"outputs": np.ones(n, np.int64)},
    }[name]


def make_models():
    two = [spec("a"), spec("b", "DT_INT64")]
    single = {
        "scalar": [spec("y", shape=())],
        "uneven": [spec("y"), spec("z")],
        "complex": [spec("y", "DT_COMPLEX64")],
    }
    odd_outputs = {
        "scalar": {"y": np.float32(1.0) * np.ones(())},
        "uneven": {"y": np.ones(2), "z": np.ones(1)},
        "complex": {"y": np.ones(1, np.complex64)},
    }
    typed = {
        name: signature([spec("x", f"DT_{name.upper()}")], [spec("x", f"DT_{name.upper()}")])
        for name in (
            "float",
            "int32",
            "int64",
            "uint8",
            "int8",
            "uint32",
            "bool",
            "string",
            "complex64",
        )
    }
    examples = {
        name: signature(
            [spec("inputs", "DT_STRING")], [spec(output, dtype) for output, dtype in outputs]
        )
        for name, outputs in {
            "three": [("a", "DT_FLOAT"), ("b", "DT_FLOAT"), ("c", "DT_FLOAT")],
            "other": [("y", "DT_FLOAT")],
            "rank1": [("scores", "DT_FLOAT")],
            "labels": [("classes", "DT_INT64")],
            "double": [("scores", "DT_DOUBLE")],
            "short": [("scores", "DT_FLOAT")],
            "uneven": [("classes", "DT_STRING"), ("scores", "DT_FLOAT")],
            "wide": [("outputs", "DT_FLOAT")],
            "few": [("outputs", "DT_FLOAT")],
            "whole": [("outputs", "DT_INT64")],
        }.items()
    }
    examples["x"] = signature([spec("x", "DT_STRING")], [spec("scores"), spec("outputs")])
    examples["x_regress"] = signature([spec("x", "DT_STRING")], [spec("outputs")])
    examples["two_inputs"] = signature([spec("inputs", "DT_STRING"), spec("b")], [spec("scores")])
    return {
        "one": FakeServable(),
        "two": serving.Servable(
            {"serving_default": signature(two, two)}, lambda name, inputs: inputs
        ),
        "out": serving.Servable(
            {name: signature([spec("x")], outputs) for name, outputs in single.items()},
            lambda name, inputs: odd_outputs[name],
        ),
        "typed": serving.Servable(typed, lambda name, inputs: inputs),
        "none": serving.Servable({"serving_default": signature([], [])}, lambda name, inputs: {}),
        "ex": serving.Servable(examples, answer_examples),
    }


def typed(dtype, value):
    return {"signature_name": dtype, "inputs": value}


def row(index, error, code="INVALID_ARGUMENT"):
    return f"Failed to process element: {index} of 'instances' list. Error: {code}: {error}"


def example(value, **others):
    return {"signature_name": "rank1", "examples": [value], **others}


def get(path, text, status=400):
    return "GET", path, "", status, text


def post(path, body, text, status=400):
    return "POST", path, body, status, text


WRONG = [  # method, path, body, status, text
    # URLs
    get("/v1/models/one/", "Malformed request: GET /v1/models/one/"),
    get("/v1//models/one", "Malformed request: GET /v1//models/one"),
    get("/v1/", "Malformed request: GET /v1/"),
    get("/v1/models/one/version/1", "Malformed request: GET /v1/models/one/version/1"),
    get("/v1/models/one/versions/x", "Malformed request: GET /v1/models/one/versions/x"),
    get("/v1/models/one/versions/1/labels/a", "Malformed request: ..."),
    get("/v1/models/one/versions/-1", "Malformed request: ..."),
    get("/v1/models/one:predict", "Malformed request: GET /v1/models/one:predict"),
    get("/v1/models/versions/1", "Missing model name in request."),
    get(
        "/v1/models/one/versions/99999999999999999999",
        "Failed to convert version: 99999999999999999999 to numeric.",
    ),
    post("/v1/models/one", "{}", "Malformed request: POST /v1/models/one"),
    post("/v1/models/one:PREDICT", "{}", "Malformed request: POST /v1/models/one:PREDICT"),
    post("/v1/models/one:predict/", "{}", "Malformed request: POST /v1/models/one:predict/"),
    post("/v1/models/:predict", "{}", "Malformed request: POST /v1/models/:predict"),
    post("/v1/config", "", "Malformed request: POST /v1/config"),
    get("/v1/config/reload", "Malformed request: GET /v1/config/reload"),
    ("PUT", "/v1/models/one", "", 400, "Malformed request: PUT /v1/models/one"),
    ("DELETE", "/v1/models/one", "", 400, "Malformed request: DELETE /v1/models/one"),
    ("PATCH", P, "{}", 400, "Malformed request: PATCH /v1/models/one:predict"),
    ("OPTIONS", P, "", 400, "OPTIONS needs an Origin header with http:// or https://"),
    post("/livez", "", "Malformed request: POST /livez"),
    # What is not there
    get("/v1/models/nope", "Could not find any versions of model nope", 404),
    get("/v1/models/one/versions/7", "Could not find version 7 of model one", 404),
    get("/v1/models/one/labels/x", "Unrecognized servable version label: x"),
    get("/v1/models/nope/metadata", "Servable not found for request: Latest(nope)", 404),
    get(
        "/v1/models/one/versions/9/metadata",
        "Servable not found for request: Specific(one, 9)",
        404,
    ),
    post(
        "/v1/models/nope:predict",
        '{"instances": [1]}',
        "Servable not found for request: Latest(nope)",
        404,
    ),
    post(
        "/v1/models/one/versions/99:predict",
        '{"instances": [1]}',
        "Servable not found for request: Specific(one, 99)",
        404,
    ),
    post(
        "/v1/models/one/labels/L:predict",
        '{"instances": [1]}',
        "Unrecognized servable version label: L",
    ),
    post(
        "/v1/models/nope/labels/L:predict",
        '{"instances": [1]}',
        "Unrecognized servable version label: L",
    ),
    post(
        "/model-serving/nope:predict",
        '{"instances": [1]}',
        "Servable not found for request: Latest(nope)",
        404,
    ),
    post("/v1/models/nope:predict", "{}", "Servable not found for request: Latest(nope)", 404),
    post(
        "/v1/models/nope:predict",
        "{",
        "JSON Parse error: Missing a name for object member. at offset: 1",
    ),
    post(
        "/v1/models/nope:classify",
        {"examples": [3]},
        "Example must be JSON object but got JSON Number",
    ),
    # JSON
    post(P, "", "JSON Parse error: The document is empty"),
    post(P, "  ", "JSON Parse error: The document is empty. at offset: 2"),
    post(P, "nul", "JSON Parse error: Invalid value. at offset: 0"),
    post(P, '{"instances": [1,]}', "JSON Parse error: Invalid value. at offset: 17"),
    post(
        P,
        '{"instances" [1]}',
        "JSON Parse error: Missing a colon after a name of object member. at offset: 13",
    ),
    post(
        P,
        '{"instances": [1] "a"}',
        "JSON Parse error: Missing a comma or '}' after an object member. at offset: 18",
    ),
    post(
        P,
        '{"instances": [1 2]}',
        "JSON Parse error: Missing a comma or ']' after an array element. at offset: 17",
    ),
    post(
        P, '{"instances": [1.]}', "JSON Parse error: Miss fraction part in number. at offset: ..."
    ),
    post(P, '{"instances": [1e]}', "JSON Parse error: Miss exponent in number. at offset: ..."),
    post(
        P,
        '{"instances": [1e309]}',
        "JSON Parse error: Number too big to be stored in double. at offset: 15",
    ),
    post(
        P,
        '{"instances": ["a',
        "JSON Parse error: Missing a closing quotation mark in string. at offset: 15",
    ),
    post(
        P,
        '{"instances": ["\\q"]}',
        "JSON Parse error: Invalid escape character in string. at offset: ...",
    ),
    post(
        P,
        '{"instances": ["\\u12"]}',
        "JSON Parse error: Incorrect hex digit after \\u escape in string. at offset: ...",
    ),
    post(
        P,
        '{"instances": ["\\ud800"]}',
        "JSON Parse error: The surrogate pair in string is invalid. at offset: 15",
    ),
    post(P, "[" * 100_000, "JSON Parse error: lists and objects are nested too deep"),
    post(
        P,
        '{"instances": [' + "1" * 5000 + "]}",
        "JSON Parse error: Number too big to be stored in double. at offset: 15",
    ),
    # The request's object
    post(P, "[1]", "JSON Value: [\n    1\n] Is not object"),
    post(P, "3", "JSON Value: 3 Is not object"),
    post(
        P,
        '{"signature_name": 3}',
        'JSON Value: {\n    "signature_name": 3\n} not formatted correctly. '
        "'signature_name' key must be a string value.",
    ),
    post(
        P,
        {"signature_name": "nope", "instances": [1]},
        'Serving signature name: "nope" not found in signature def',
    ),
    post(
        "/v1/models/none:predict",
        {"instances": [1]},
        "Failed to get input map for signature: DEFAULT",
    ),
    post(P, "{}", "Missing 'inputs' or 'instances' key"),
    post(P, {"instances": [1], "inputs": [1]}, "JSON Value: {..."),
    post(P, {"instances": 3}, "JSON Value: 3 Expecting 'instances' to be an list/array"),
    post(P, {"instances": []}, "JSON Value: [] No values in 'instances' array"),
    # Rows
    post(
        TWO,
        {"instances": [1]},
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    post(
        P, {"instances": [{"x": [1]}, [1]]}, "Expecting object but got list at item 1 of input list"
    ),
    post(
        P,
        {"instances": [[1], {"x": [1]}]},
        "Expecting value/list but got object at item 1 of input list",
    ),
    post(
        P,
        {"instances": [{"x": 1, "q": 2}]},
        "Failed to process element: 0 key: q of 'instances' list. Error: INVALID_ARGUMENT: "
        "JSON object: does not have named input: q",
    ),
    post(
        TWO,
        {"instances": [{"a": 1}]},
        "Failed to process element: 0 of 'instances' list. JSON object: {\n    \"a\": 1\n} "
        "keys must be equal to: a,b",
    ),
    post(
        TWO,
        {"instances": [{"a": 1, "b": 2}, {"a": 1, "b": 1.5}]},
        "Failed to process element: 1 key: b of 'instances' list. "
        "Error: INVALID_ARGUMENT: JSON Value: 1.5 Type: Number is not of expected type: int64",
    ),
    post(P, {"instances": [[1, 2], [1, 2, 3]]}, row(1, "Expecting tensor size: 2 but got: 3")),
    post(P, {"instances": [[1, 2], [[1, 2]]]}, row(1, "Expecting shape [2] but got: [1,2]")),
    post(P, {"instances": [1, [[1]]]}, row(1, "Expecting shape [] but got: [1,1]")),
    post(
        P,
        {"instances": [None]},
        row(0, "JSON Value: null Type: Null is not of expected type: float"),
    ),
    post(
        P,
        {"instances": [[1], [True]]},
        row(1, "JSON Value: true Type: True is not of expected type: float"),
    ),
    post(
        "/v1/models/typed:predict",
        {"signature_name": "complex64", "instances": [1]},
        row(0, "Conversion of JSON Value: 1 to type: complex64", "UNIMPLEMENTED"),
    ),
    # Columns
    post(
        TWO,
        {"inputs": [1]},
        "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    post(TWO, {"inputs": {"a": 1}}, "Missing named input: b in 'inputs' object."),
    post(
        P,
        {"inputs": [[1, 2], [3]]},
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    post(P, {"inputs": [1, [2]]}, "Encountered list at unexpected level: 1 expected < 1"),
    post(
        P,
        {"inputs": [[1], 2]},
        "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    post(P, '{"inputs": ' + "[" * 300 + "1" + "]" * 300 + "}", "tensor parsing error: x"),
    # Values and dtypes
    post(P, {"inputs": ["1.0"]}, 'JSON Value: "1.0" Type: String is not of expected type: float'),
    post(
        P,
        {"inputs": [{"a": 1}]},
        'JSON Value: {\n    "a": 1\n} Type: Object is not of expected type: float',
    ),
    post(
        "/v1/models/typed:predict",
        typed("int32", [1.0]),
        "JSON Value: 1.0 Type: Number is not of expected type: int32",
    ),
    post(
        "/v1/models/typed:predict",
        typed("int32", [2**31]),
        "JSON Value: 2147483648 Type: Number is not of expected type: int32",
    ),
    post(
        "/v1/models/typed:predict",
        typed("int32", [True]),
        "JSON Value: true Type: True is not of expected type: int32",
    ),
    post(
        "/v1/models/typed:predict",
        '{"signature_name": "int32", "inputs": [NaN]}',
        "JSON Value: NaN Type: Number is not of ...",
    ),
    post(
        "/v1/models/typed:predict",
        typed("int64", [2**63]),
        f"JSON Value: {2**63} Type: Number is not of expected type: int64",
    ),
    post(
        "/v1/models/typed:predict",
        typed("uint32", [-1]),
        "JSON Value: -1 Type: Number is not of expected type: uint32",
    ),
    post(
        "/v1/models/typed:predict",
        typed("int8", [1, 300]),
        "JSON Value: 300 at [1] is out of range for type: int8",
    ),
    post(
        "/v1/models/typed:predict",
        typed("uint8", [[1], [-1]]),
        "JSON Value: -1 at [1][0] is out of range for type: uint8",
    ),
    post(
        "/v1/models/typed:predict",
        typed("bool", [1]),
        "JSON Value: 1 Type: Number is not of expected type: bool",
    ),
    post(
        "/v1/models/typed:predict",
        typed("string", [1]),
        "JSON Value: 1 Type: Number is not of expected type: string",
    ),
    post("/v1/models/typed:predict", typed("string", [{"b64": "a", "c": 1}]), "JSON Value: {..."),
    post("/v1/models/typed:predict", typed("string", {"b64": "a-_="}), "Unable to base64 decode"),
    post("/v1/models/typed:predict", typed("string", {"b64": "a"}), "Unable to base64 decode"),
    post(
        "/v1/models/typed:predict",
        typed("complex64", [1]),
        "Conversion of JSON Value: 1 to type: complex64",
        501,
    ),
    # Outputs that rows cannot carry
    post(
        "/v1/models/out:predict",
        {"signature_name": "scalar", "instances": [1]},
        "Tensor name: y has no shape information ",
    ),
    post(
        "/v1/models/out:predict",
        {"signature_name": "uneven", "instances": [1]},
        "Tensor name: z has inconsistent batch size: 1 expecting: 2",
    ),
    post(
        "/v1/models/out:predict",
        {"signature_name": "complex", "instances": [1]},
        "Failed to write JSON value for tensor type: complex64",
    ),
    # Examples
    post(
        C,
        "{}",
        "JSON Value: {} When method is classify, key 'examples' is expected and was not found",
    ),
    post(
        C,
        {"examples": 3},
        "JSON Value: {\n    \"examples\": 3\n} Expecting 'examples' value to be an list/array",
    ),
    post(
        C,
        {"examples": []},
        "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array",
    ),
    post(C, {"examples": [[]]}, "Example must be JSON object but got JSON Array"),
    post(C, {"examples": [{}], "context": None}, "Example must be JSON object but got JSON Null"),
    post(
        C, example({"n": [10, 10.0]}), "Unexpected element type in feature: n expecting type: int64"
    ),
    post(
        C, example({"n": [10.0, 10]}), "Unexpected element type in feature: n expecting type: float"
    ),
    post(
        C, example({"n": ["a", 10]}), "Unexpected element type in feature: n expecting type: bytes"
    ),
    post(C, example({"n": None}), "Feature: n has element with unexpected JSON type: Null"),
    post(C, example({"n": [[1]]}), "Feature: n has element with unexpected JSON type: Array"),
    post(C, example({"n": {"a": 1}}), "Feature: n has element with unexpected JSON type: Object"),
    post(C, example({"n": 2**63}), "Feature: n has uint64_t element. Only int64_t is supported."),
    post(C, {"examples": [{}]}, "No signature was found with the name: serving_default"),
    post(C, {"examples": [{}], "signature_name": "two_inputs"}, "Expected one input Tensor."),
    post(
        C,
        {"examples": [{}], "signature_name": "three"},
        "Expected one or two output Tensors, found 3",
    ),
    post(
        C,
        {"examples": [{}], "signature_name": "x"},
        "No classification inputs found in SignatureDef: ...",
    ),
    post(
        C,
        {"examples": [{}], "signature_name": "other"},
        "Expected classification signature outputs to contain at least one of "
        '"classes" or "scores". Signature was: ...',
    ),
    post(C, example({}), "Expected Tensor shape: [batch_size num_classes] but got [1]"),
    post(
        C,
        {"examples": [{}], "signature_name": "labels"},
        "Expected classes Tensor of DT_STRING. Got: DT_INT64",
    ),
    post(
        C,
        {"examples": [{}], "signature_name": "double"},
        "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE",
    ),
    post(
        C,
        {"examples": [{}, {}], "signature_name": "short"},
        "Expected scores output batch size of 2. Got: 1",
    ),
    post(
        C,
        {"examples": [{}], "signature_name": "uneven"},
        "Tensors class and score should match in dim_size(1). Got 3 vs. 1",
    ),
    post(R, {"examples": [{}], "signature_name": "x"}, "Expected one output Tensor."),
    post(
        R,
        {"examples": [{}], "signature_name": "x_regress"},
        "No regression inputs found in SignatureDef: ...",
    ),
    post(
        R,
        {"examples": [{}], "signature_name": "other"},
        "No regression outputs found in SignatureDef: ...",
    ),
    post(
        R,
        {"examples": [{}, {}], "signature_name": "wide"},
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [2,2]",
    ),
    post(
        R,
        {"examples": [{}, {}], "signature_name": "few"},
        "Input batch size did not match output batch size: 2 vs. 3",
    ),
    post(
        R,
        {"examples": [{}], "signature_name": "whole"},
        "Expected output Tensor of DT_FLOAT.  Got: DT_INT64",
    ),
]


@pytest.fixture(scope="module")
def server(extensions):
    return fake_server(make_models())


@pytest.mark.parametrize("method, path, body, status, text", WRONG, ids=range(len(WRONG)))
def test_wrong_request(server, how, method, path, body, status, text):
    client = Rest(server, how)
    body = body if isinstance(body, str) else json.dumps(body)
    assert_error(client.open(path, method=method, data=body), status, text)


DEFLATED = zlib.compress(b'{"instances": [[4]]}')
DEFLATE = {"Content-Encoding": "Deflate"}


@pytest.mark.parametrize("body", [DEFLATED, DEFLATED[2:-4]], ids=["zlib", "raw"])
def test_a_deflated_body_is_read(server, body):
    assert Rest(server).post(P, body, headers=DEFLATE).json == {"predictions": [[3.0]]}


@pytest.mark.parametrize(
    "body", [b"not deflated", DEFLATED[:-1], DEFLATED[2:-5], DEFLATED + b"x", DEFLATED[2:], b""]
)
def test_broken_deflate_is_a_bad_request(server, body):
    wanted = "Content-Encoding says deflate, but the request body is not: ..."
    assert_error(Rest(server).post(P, body, headers=DEFLATE), 400, wanted)


def test_a_deflated_body_of_many_pieces_is_read_and_bounded(server):
    body = b'{"instances": [[4]]' + np.random.default_rng(0).bytes(1_500_000).hex().encode()
    packed = zlib.compress(body.replace(b"]]", b']], "x": "') + b'"}' + b" " * 3_000_000)
    assert Rest(server).post(P, packed, headers=DEFLATE).json == {"predictions": [[3.0]]}
    bounded = fake_server({"one": FakeServable()}, server={"max_unpacked_bytes": 6_000_000})
    wanted = "Request body unpacks to more than the limit of 6000000 bytes"
    assert_error(Rest(bounded).post(P, packed, headers=DEFLATE), 413, wanted)


@pytest.mark.parametrize(
    "body", [b"not gzip", gzip.compress(b"{}", mtime=0)[:-9], zlib.compress(b"{}"), b""]
)
def test_broken_gzip_is_a_bad_request(server, body):
    if body:
        assert_error(
            Rest(server).post(P, body, headers={"Content-Encoding": "gzip"}),
            400,
            "Content-Encoding says gzip, but ...",
        )
    else:
        assert_error(
            Rest(server).post(P, body, headers={"Content-Encoding": "gzip"}),
            400,
            "JSON Parse error: The document is empty",
        )


def test_gzip_bomb_is_refused_at_the_cap():
    server = fake_server({"one": FakeServable()}, server={"max_unpacked_bytes": 1000})
    bomb = gzip.compress(b" " * 10_000_000)
    assert_error(
        Rest(server).post(P, bomb, headers={"Content-Encoding": "gzip"}),
        413,
        "Request body unpacks to more than the limit of 1000 bytes",
    )


def test_gzip_body_is_read(server):
    response = Rest(server).post(
        P, gzip.compress(b'{"instances": [[4]]}'), headers={"Content-Encoding": "gzip"}
    )
    assert json.loads(response.data) == {"predictions": [[3.0]]}


def test_a_coding_without_gzip_is_taken_as_plain_by_predict(server):
    answer = Rest(server).post(P, '{"instances": [[4]]}', headers={"Content-Encoding": "br"})
    assert answer.json == {"predictions": [[3.0]]}


def test_large_body_is_refused():
    server = fake_server({"one": FakeServable()}, server={"max_request_bytes": 10})
    assert_error(
        Rest(server).post(P, b"x" * 11), 413, "Request body of 11 bytes is over the limit of 10"
    )


def test_head_is_malformed_and_has_no_body(server):
    response = Rest(server).open("/v1/models/one", method="HEAD")
    assert response.status_code == 400 and response.data == b""


def test_unexpected_errors_tell_nothing(caplog):
    def fail(name, inputs):
        raise RuntimeError("secret /path")

    broken = serving.Servable({"serving_default": signature([spec("x")], [spec("y")])}, fail)
    response = Rest(fake_server({"m": broken})).post("/v1/models/m:predict", {"instances": [1]})
    assert_error(
        response,
        500,
        f"Internal server error: see request {response.headers['X-Request-Id']} in the server's log",
    )
    assert "secret /path" in caplog.text


def test_graph_error_keeps_its_status_and_text(demo, how):
    client = Rest(demo, how)
    assert_error(
        client.post(
            "/v1/models/half_plus_two:regress",
            {"signature_name": "regress", "examples": [{"x": 2}]},
        ),
        400,
        "Name: <unknown>, Key: x, Index: 0.  Data types don't match. Data type: int64 but expected type: float...",
    )
    assert_error(
        client.post(
            "/v1/models/half_plus_two:regress", {"signature_name": "regress", "examples": [{}]}
        ),
        400,
        "Name: <unknown>, Feature: x (data type: float) is required but could not be found....",
    )
    assert_error(client.post("/v1/models/digits:predict", {"instances": [[1, 2]]}), 400, "...")
