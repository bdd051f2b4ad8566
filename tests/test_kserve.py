"""KServe's Open Inference Protocol: Triton's own client over a socket, MLServer's test requests,
and requests that are wrong. The truth is TensorFlow, called directly.
"""

import json
import struct
from urllib.parse import quote

import ml_dtypes
import numpy as np
import pytest
import requests
from conftest import (
    FakeServable,
    Rest,
    bearer,
    config,
    fail,
    fake_server,
    key_entry,
    listening,
    signature,
    spec,
)

import serving

triton = pytest.importorskip("tritonclient.http")

DTYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def save(tf, to, **functions):
    """A model of these signatures, each a function and the spec of its input."""
    module = tf.Module()
    module.functions = {
        name: tf.function(function, input_signature=[spec])
        for name, (function, spec) in functions.items()
    }
    tf.saved_model.save(module, str(to), signatures=module.functions)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tf):
    """sums: two outputs of an INT32 input; words: texts; types: one signature for each datatype."""
    root = tmp_path_factory.mktemp("v2")

    def sums(numbers):
        return {"total": tf.reduce_sum(numbers, 1), "halves": tf.cast(numbers, tf.float32) / 2}

    def words(text):
        return {"upper": tf.strings.upper(text), "raw": tf.identity(text)}

    for version in "12":
        spec = tf.TensorSpec([None, 3], tf.int32, "input_0")
        save(tf, root / "sums" / version, serving_default=(sums, spec))
    texts = tf.TensorSpec([None], tf.string, "text")
    save(tf, root / "words/1", serving_default=(words, texts))
    numbers = {
        "BYTES": tf.string,
        "BF16": tf.bfloat16,
        **{name: tf.as_dtype(one) for name, one in DTYPES.items()},
    }
    echoes = {
        name: (lambda x: {"y": tf.identity(x)}, tf.TensorSpec([None, 2], one, "x"))
        for name, one in numbers.items()
    }
    save(tf, root / "types/1", **echoes)
    complex_numbers = tf.TensorSpec([None], tf.complex64, "x")
    save(
        tf, root / "complex/1", serving_default=(lambda x: {"y": tf.math.real(x)}, complex_numbers)
    )
    return root


@pytest.fixture(scope="module")
def address(folder):
    every = {"model_version_policy": {"all": {}}}
    models = [
        {"name": name, "base_path": str(folder / name), **every}
        for name in ("sums", "words", "types", "complex")
    ]
    broken = {"name": "broken", "base_path": str(folder / "none")}
    server = serving.ModelServer(config(*models, broken))
    assert server.wait(120)
    with listening(server) as found:
        yield found
    server.stop()


@pytest.fixture(scope="module")
def client(address):
    with triton.InferenceServerClient(address.removeprefix("http://")) as found:
        yield found


def tensor(name, array, datatype, binary=True):
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


# --- Triton's client ------------------------------------------------------------------------------


def test_the_server_and_its_models(client):
    assert client.is_server_live() and client.get_server_metadata()["name"] == "serving"
    assert not client.is_server_ready()  # `broken` is not there
    assert client.is_model_ready("sums") and client.is_model_ready("sums", "2")
    assert not client.is_model_ready("sums", "9") and not client.is_model_ready("broken")
    assert client.get_model_metadata("sums") == {
        "name": "sums",
        "versions": ["1", "2"],
        "platform": "tensorflow_savedmodel",
        "inputs": [{"name": "input_0", "datatype": "INT32", "shape": [-1, 3]}],
        "outputs": [
            {"name": "halves", "datatype": "FP32", "shape": [-1, 3]},
            {"name": "total", "datatype": "INT32", "shape": [-1]},
        ],
    }


@pytest.mark.parametrize("sent_binary", [True, False])
@pytest.mark.parametrize("asked_binary", [True, False])
@pytest.mark.parametrize("datatype", DTYPES)
def test_every_datatype_there_and_back(client, datatype, sent_binary, asked_binary):
    if datatype == "FP16" and not (sent_binary and asked_binary):
        pytest.skip("Triton's client sends and reads FP16 as bytes alone")
    array = np.array([[0, 1], [1, 0], [1, 1]]).astype(DTYPES[datatype])
    if np.issubdtype(array.dtype, np.integer):
        array[2] = np.iinfo(array.dtype).min, np.iinfo(array.dtype).max
    answer = client.infer(
        "types",
        [tensor("x", array, datatype, sent_binary)],
        outputs=[triton.InferRequestedOutput("y", binary_data=asked_binary)],
        parameters={"signature_name": datatype},
    )
    found = answer.as_numpy("y")
    assert found.dtype == array.dtype and (found == array).all()


def test_bfloat16_as_bytes(address):
    array = np.array([[1.5, -2.25]], ml_dtypes.bfloat16)
    head = {
        "parameters": {"signature_name": "BF16", "binary_data_output": True},
        "inputs": [one_input("x", "BF16", [1, 2], parameters={"binary_data_size": 4})],
    }
    answer = send(address, "types", head, array.tobytes())
    size = int(answer.headers["Inference-Header-Content-Length"])
    told = json.loads(answer.content[:size])["outputs"][0]
    assert told == {
        "name": "y",
        "datatype": "BF16",
        "shape": [1, 2],
        "parameters": {"binary_data_size": 4},
    }
    assert answer.content[size:] == array.tobytes()


@pytest.mark.parametrize("binary", [True, False])
def test_texts_and_bytes(client, binary):
    texts = np.array(["größe".encode(), b"", b"a,b\n"], object)
    outputs = [triton.InferRequestedOutput("upper", binary_data=binary)]
    answer = client.infer("words", [tensor("text", texts, "BYTES", binary)], outputs=outputs)
    found = [one if isinstance(one, bytes) else one.encode() for one in answer.as_numpy("upper")]
    assert found == ["GRößE".encode(), b"", b"A,B\n"]  # tf.strings.upper is for ASCII


def test_bytes_that_are_no_text_need_the_binary_form(client, address):
    texts = np.array([b"\xff\x00\xfe"], object)
    outputs = [triton.InferRequestedOutput("raw", binary_data=True)]
    answer = client.infer("words", [tensor("text", texts, "BYTES")], outputs=outputs)
    assert answer.as_numpy("raw").tolist() == [b"\xff\x00\xfe"]
    with pytest.raises(triton.InferenceServerException, match="ask for it with") as error:
        outputs = [triton.InferRequestedOutput("raw", binary_data=False)]
        client.infer("words", [tensor("text", texts, "BYTES")], outputs=outputs)
    assert error.value.status() == "400"


def test_some_outputs_with_an_id_and_a_version(client):
    numbers = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
    answer = client.infer(
        "sums",
        [tensor("input_0", numbers, "INT32")],
        model_version="1",
        request_id="mine",
        outputs=[triton.InferRequestedOutput("total")],
    )
    told = answer.get_response()
    assert (told["id"], told["model_name"], told["model_version"]) == ("mine", "sums", "1")
    assert [one["name"] for one in told["outputs"]] == ["total"]
    assert answer.as_numpy("total").tolist() == numbers.sum(1).tolist()
    both = client.infer("sums", [tensor("input_0", numbers, "INT32")])
    assert both.get_response()["model_version"] == "2"
    assert both.as_numpy("halves").tolist() == (numbers / 2).tolist()


@pytest.mark.parametrize("binary", [True, False])
def test_no_texts_keep_their_shape(client, binary):
    for datatype, dtype in (("BYTES", object), ("FP32", np.float32)):
        answer = client.infer(
            "types",
            [tensor("x", np.empty((0, 2), dtype), datatype, binary)],
            outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
            parameters={"signature_name": datatype},
        )
        assert answer.get_output("y")["shape"] == [0, 2]


@pytest.mark.parametrize("packed", ["gzip", "deflate"])
def test_packed_requests(client, packed):
    numbers = np.arange(30, dtype=np.int32).reshape(10, 3)
    answer = client.infer(
        "sums",
        [tensor("input_0", numbers, "INT32", False)],
        request_compression_algorithm=packed,
        response_compression_algorithm=packed,
    )
    assert answer.as_numpy("total").tolist() == numbers.sum(1).tolist()


def test_a_large_tensor_as_json(client):
    numbers = np.random.default_rng(1).integers(-1000, 1000, (20_000, 3)).astype(np.int32)
    answer = client.infer("sums", [tensor("input_0", numbers, "INT32", False)])
    assert (answer.as_numpy("total") == numbers.sum(1)).all()


# --- MLServer's requests --------------------------------------------------------------------------


def one_input(name, datatype, shape, data=None, **others):
    found = {"name": name, "shape": shape, "datatype": datatype, **others}
    return found if data is None else {**found, "data": data}


def send(address, model, request, rest=b"", **headers):
    text = json.dumps(request).encode()
    if rest:
        headers["Inference-Header-Content-Length"] = str(len(text))
    return requests.post(
        f"{address}/v2/models/{model}/infer",
        text + rest,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        timeout=30,
    )


NUMBERS = one_input("input_0", "INT32", [1, 3], [1, 2, 3])


def test_mlservers_request(address):
    """SeldonIO/MLServer, tests/testdata/inference-request.json and inference-request-with-output."""
    answer = send(address, "sums", {"inputs": [NUMBERS]}).json()
    assert answer == {
        "model_name": "sums",
        "model_version": "2",
        "outputs": [
            {"name": "halves", "datatype": "FP32", "shape": [1, 3], "data": [0.5, 1.0, 1.5]},
            {"name": "total", "datatype": "INT32", "shape": [1], "data": [6]},
        ],
    }
    answer = send(address, "sums", {"inputs": [NUMBERS], "outputs": [{"name": "total"}]}).json()
    assert [one["name"] for one in answer["outputs"]] == ["total"]


def test_nested_data_and_a_body_of_bytes_alone(address):
    nested = one_input("input_0", "INT32", [2, 3], [[1, 2, 3], [4, 5, 6]])
    answer = send(address, "sums", {"inputs": [nested], "outputs": [{"name": "total"}]}).json()
    assert answer["outputs"][0]["data"] == [6, 15]
    for model, data, output, wanted in (
        ("sums", np.array([[1, 2, 3], [4, 5, 6]], np.int32).tobytes(), "total", [6, 15]),
        ("words", b"\x89PNG\r\n\x1a\n\0\xff", "raw", [b"\x89PNG\r\n\x1a\n\0\xff"]),
        ("words", b"", "raw", [b""]),
    ):
        answer = requests.post(
            f"{address}/v2/models/{model}/infer",
            data,
            headers={"Inference-Header-Content-Length": "0"},
            timeout=30,
        )
        length = int(answer.headers["Inference-Header-Content-Length"])  # as bytes, as from Triton
        found = triton.InferenceServerClient.parse_response_body(
            answer.content, header_length=length
        )
        assert found.as_numpy(output).tolist() == wanted


@pytest.mark.parametrize("nothing", ["id", "parameters", "outputs"])
def test_null_is_as_if_it_were_not_there(address, nothing):
    request = {"inputs": [NUMBERS]}
    answer = send(address, "sums", {**request, nothing: None}).json()
    assert answer == send(address, "sums", request).json() and "id" not in answer


def test_readiness_and_unknown_names(address):
    for path, status in (
        ("/v2/models/sums/ready", 200),
        ("/v2/models/sums/versions/1/ready", 200),
        ("/v2/models/sums/versions/7/ready", 400),
        ("/v2/models/sums/versions/0/ready", 200),  # the default version, as below
        ("/v2/models/sums/versions/0", 200),
        ("/v2/models/broken/versions/0/ready", 400),
        ("/v2/models/broken/ready", 400),
        ("/v2/models/nothing/ready", 404),
        ("/v2/models/nothing", 404),
        ("/v2/models/sums/versions/7", 404),
        ("/v2", 200),
        ("/v2/health/live", 200),
    ):
        assert requests.get(address + path, timeout=30).status_code == status, path
    assert send(address, "nothing", {"inputs": [NUMBERS]}).status_code == 404


@pytest.mark.parametrize("name", ["a/b", "/a", "...", "\u2028", "versions/1"])
def test_a_name_may_hold_nearly_anything_in_each_way_of_mounting(name, how):
    rest = Rest(fake_server({name: FakeServable()}), how)
    path = "/v2/models/" + quote(name, safe="").replace(".", "%2E")
    assert rest.get(f"{path}/ready").json == {"name": name, "ready": True}
    assert rest.get(f"{path}/versions/1").json["name"] == name
    answer = rest.post(f"{path}/infer", {"inputs": [one_input("x", "FP32", [1, 1], [2.0])]})
    assert answer.json["outputs"][0]["data"] == [2.0]


def assert_error(answer, status, text):
    assert answer.status_code == status and text in answer.json()["error"], answer.text


# --- what is wrong --------------------------------------------------------------------------------


MANY = [1.5] * 1000  # so many become an array when they are read


@pytest.mark.parametrize(
    ("request_body", "text"),
    [
        ([], "must be a JSON object"),
        (None, "must be a JSON object"),
        ({}, "inputs: expected a list of tensors"),
        ({"inputs": []}, "inputs: expected a list of tensors"),
        ({"inputs": [1]}, "inputs[0]: expected an object"),
        ({"inputs": [NUMBERS], "id": 3}, "id: expected a text"),
        ({"inputs": [NUMBERS], "parameters": []}, "parameters: expected an object"),
        ({"inputs": [NUMBERS], "parameters": {"sequence_id": 7}}, "keeps no state"),
        ({"inputs": [{**NUMBERS, "name": "x"}]}, "has no input 'x'; it has input_0"),
        ({"inputs": [{**NUMBERS, "datatype": "FP32"}]}, "is INT32, got 'FP32'"),
        ({"inputs": [{**NUMBERS, "datatype": "float"}]}, "is INT32, got 'float'"),
        ({"inputs": [{**NUMBERS, "shape": [1, -3]}]}, "shape: expected a list of sizes"),
        ({"inputs": [{**NUMBERS, "shape": "1,3"}]}, "shape: expected a list of sizes"),
        ({"inputs": [{**NUMBERS, "shape": [True, 3]}]}, "shape: expected a list of sizes"),
        ({"inputs": [{**NUMBERS, "shape": [1, 4]}]}, "shape [1, 4] is of 4 values, data has [3]"),
        ({"inputs": [{**NUMBERS, "shape": [3], "data": [1, 2, 3]}]}, "input_0"),
        ({"inputs": [{**NUMBERS, "data": [1, 2, 3.5]}]}, "input_0"),
        ({"inputs": [{**NUMBERS, "data": [1, 2, 2**31]}]}, "input_0"),
        ({"inputs": [{**NUMBERS, "data": [1, "2", 3]}]}, "input_0"),
        ({"inputs": [{**NUMBERS, "data": [[1, 2], [3]]}]}, "input_0"),
        ({"inputs": [{k: v for k, v in NUMBERS.items() if k != "data"}]}, "expected data, or"),
        ({"inputs": [NUMBERS, NUMBERS]}, "stands twice"),
        ({"inputs": [{**NUMBERS, "parameters": {"binary_data_size": 12}}]}, "got both"),
        ({"inputs": [{**NUMBERS, "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
        (
            {
                "inputs": [NUMBERS],
                "outputs": [{"name": "total", "parameters": {"classification": 2}}],
            },
            "outputs[0]: this server has no classification; leave",
        ),
        ({"inputs": [NUMBERS], "outputs": [{"name": "y"}]}, "has no output 'y'; it has halves"),
        ({"inputs": [NUMBERS], "outputs": [3]}, "has no output 'None'"),
        ({"inputs": [NUMBERS], "parameters": {"signature_name": "none"}}, "expected one of"),
        ({"inputs": [NUMBERS], "parameters": 5}, "parameters: expected an object, got integer"),
        ({"inputs": [{**NUMBERS, "parameters": 5}]}, "inputs[0].parameters: expected an object"),
        ({"inputs": [{**NUMBERS, "parameters": [1]}]}, "inputs[0].parameters: expected an object"),
        (
            {"inputs": [NUMBERS], "outputs": [{"name": "halves", "parameters": [1]}]},
            "outputs[0].parameters: expected an object",
        ),
        ({"inputs": [NUMBERS], "outputs": [{"name": []}]}, "has no output '[]'"),
        (
            {"inputs": [NUMBERS], "outputs": [{"name": "total"}, {"name": "total"}]},
            "outputs[1]: the output 'total' stands twice",
        ),
        ({"inputs": [{**NUMBERS, "shape": [1] * 70, "data": [1]}]}, "at most 32 sizes, got 70"),
        ({"inputs": [{**NUMBERS, "shape": [2**31, 0], "data": []}]}, "may have 4000000 rows"),
        ({"inputs": [{**NUMBERS, "shape": [2**63 - 1, 0], "data": []}]}, "may have 4000000 rows"),
        ({"inputs": [NUMBERS], "outputs": MANY}, "outputs: expected a list of tensors"),
        ({"inputs": [{**NUMBERS, "datatype": MANY}]}, "is INT32, got '"),
        ({"inputs": [NUMBERS], "parameters": MANY}, "parameters: expected an object, got array"),
        ({"inputs": [NUMBERS], "parameters": {"sequence_id": MANY}}, "keeps no state"),
        (
            {
                "inputs": [NUMBERS],
                "outputs": [{"name": "total", "parameters": {"classification": MANY}}],
            },
            "outputs[0]: this server has no classification; leave",
        ),
    ],
)
def test_wrong_requests_say_what_is_wrong(address, request_body, text):
    assert_error(send(address, "sums", request_body), 400, text)


BINARY = one_input("input_0", "INT32", [1, 3], parameters={"binary_data_size": 12})


@pytest.mark.parametrize(
    ("inputs", "rest", "length", "text"),
    [
        ([BINARY], b"x" * 8, None, "binary_data_size is 12, 8 bytes are left"),
        ([BINARY], b"x" * 16, None, "4 bytes more than its inputs"),
        ([{**BINARY, "shape": [2, 3]}], b"x" * 12, None, "is 24 bytes, got 12"),
        ([BINARY], b"x" * 12, "-1", "expected the bytes of JSON"),
        ([BINARY], b"x" * 12, "9999999", "expected the bytes of JSON"),
        ([BINARY], b"x" * 12, "٣", "expected the bytes of JSON"),
        ([BINARY], b"x" * 12, "0", "'input_0': expected a multiple of 12 bytes, got 1"),
        ([BINARY], b"x" * 12, "1" * 5000, "expected the bytes of JSON"),
    ],
)
def test_wrong_bytes_say_what_is_wrong(address, inputs, rest, length, text):
    body = json.dumps({"inputs": inputs}).encode()
    headers = {"Inference-Header-Content-Length": (length or str(len(body))).encode()}
    answer = requests.post(
        f"{address}/v2/models/sums/infer", body + rest, headers=headers, timeout=30
    )
    assert_error(answer, 400, text)


@pytest.mark.parametrize(
    "shape, text",
    [
        ((None,), "'x': expected a multiple of 4 bytes, got 7"),
        ((2,), "shape [2] of FP32 is 8 bytes, got 7"),
        ((None, None), "for an input of one unknown size at most; 'x' is [-1, -1]"),
    ],
)
def test_bytes_alone_of_a_wrong_length_say_what_was_expected(shape, text):
    same = signature([spec("x", shape=shape)], [spec("y", shape=shape)])
    rest = Rest(fake_server({"m": serving.Servable({"serving_default": same}, fail)}))
    answer = rest.post(
        "/v2/models/m/infer", bytes(7), headers={"Inference-Header-Content-Length": "0"}
    )
    assert answer.status_code == 400 and text in answer.json["error"], answer.text


@pytest.mark.parametrize("form", ["json", "bytes", "bytes alone"])
def test_a_datatype_that_the_protocol_has_not_is_told_in_each_form(address, form):
    numbers = one_input("x", "DT_COMPLEX64", [1], [1])
    if form == "json":
        answer = send(address, "complex", {"inputs": [numbers]})
    else:
        sized = one_input("x", "DT_COMPLEX64", [1], parameters={"binary_data_size": 8})
        head = json.dumps({"inputs": [sized]}).encode() if form == "bytes" else b""
        headers = {"Inference-Header-Content-Length": str(len(head))}
        url = f"{address}/v2/models/complex/infer"
        answer = requests.post(url, head + bytes(8), headers=headers, timeout=30)
    assert_error(answer, 501, "'x' is complex64, for which there is no datatype")


@pytest.mark.parametrize("data", [b"abc", struct.pack("<I", 9) + b"ab", struct.pack("<I", 2**31)])
def test_texts_cut_short(address, data):
    head = {"inputs": [one_input("text", "BYTES", [1], parameters={"binary_data_size": len(data)})]}
    assert_error(send(address, "words", head, data), 400, "expected 1 texts")


def test_keys_are_those_of_v1(folder):
    models = {"name": "sums", "base_path": str(folder / "sums")}
    auth = {"protect": "all", "keys": [key_entry("all", "k")]}
    server = serving.ModelServer(config(models, auth=auth))
    client = serving.create_app(server).test_client()
    assert server.wait(60)
    body = json.dumps({"inputs": [NUMBERS]})
    try:
        assert client.post("/v2/models/sums/infer", data=body).status_code == 401
        assert client.get("/v2/models/sums").status_code == 401
        assert (
            client.post("/v2/models/sums/infer", data=body, headers=bearer("k")).status_code == 200
        )
        assert client.get("/v2/health/live").status_code == 200
    finally:
        server.stop()
