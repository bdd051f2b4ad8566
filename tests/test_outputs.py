"""?outputs=, raw tensors in and out, answers in gzip, bodies as they are read: each against NumPy or the plain answer."""

import functools
import gzip
import io
import json
import socket
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from conftest import FakeServable, Rest, assert_error, fake_server, listening, signature, spec
from werkzeug.exceptions import ClientDisconnected

import serving

P = "/v1/models/m:predict"
RAW = {"Accept": "application/octet-stream"}
SPECIAL = {
    "f": [0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan],
    "V": [0.0, 1.5, np.inf, -3.0],
    "b": [True, False, True],
}


def three():
    """half, double and square of x."""

    def answer(name, inputs):
        x = inputs["x"]
        return {"half": x / 2, "double": x * 2, "square": x * x}

    return serving.Servable(
        {"serving_default": signature([spec("x")], [spec("half"), spec("double"), spec("square")])},
        answer,
    )


def echo(dtype):
    name = next(name for name, known in serving.NUMPY_DTYPES.items() if known == dtype)
    return serving.Servable(
        {"serving_default": signature([spec("x", name, None)], [spec("x", name, None)])},
        lambda name, inputs: inputs,
    )


@functools.cache
def rest_of(make, *arguments, **options):
    """A client of a model, made once."""
    return Rest(
        fake_server({"m": make(*arguments)}, server={"file_system_poll_wait_seconds": 0, **options})
    )


def values_of(dtype):
    if dtype.kind in SPECIAL:
        return np.array(SPECIAL[dtype.kind], dtype)
    limits = np.iinfo(dtype)
    return np.array([0, 1, limits.min, limits.max, limits.max // 3], dtype)


# --- ?outputs= --------------------------------------------------------------------------------------------------

VALUES = {"half": [1.0, 2.0], "double": [4.0, 8.0], "square": [4.0, 16.0]}


@pytest.mark.parametrize(
    "query, names",
    [
        ("outputs=square", ["square"]),
        ("outputs=half,square", ["half", "square"]),
        ("outputs=square,half", ["half", "square"]),
        ("outputs=half&outputs=double", ["half", "double"]),
        ("outputs=double,double", ["double"]),
        ("outputs=half,double,square", list(VALUES)),
        ("other=1", list(VALUES)),
        ("", list(VALUES)),
        ("outputs=h%61lf", ["half"]),
    ],
)
def test_outputs_that_are_asked_for_in_the_models_order(how, query, names):
    rest = Rest(fake_server({"m": three()}), how)
    columns = rest.post(f"{P}?{query}", {"inputs": [2, 4]}).json["outputs"]
    rows = rest.post(f"{P}?{query}", {"instances": [2, 4]}).json["predictions"]
    if len(names) == 1:
        assert columns == rows == VALUES[names[0]]
    else:
        assert columns == {name: VALUES[name] for name in names} and list(columns) == names
        assert (
            rows == [{name: VALUES[name][row] for name in names} for row in range(2)]
            and list(rows[0]) == names
        )


@pytest.mark.parametrize(
    "query, unknown",
    [
        ("outputs=none", "none"),
        ("outputs=half,none", "none"),
        ("outputs=", ""),
        ("outputs=half,", ""),
        ("outputs=half,%20double", " double"),
        ("outputs=Half", "Half"),
        ("outputs=" + "n" * 100, "n" * 60),
    ],
)
@pytest.mark.parametrize(
    "body", [{"inputs": [2, 4]}, {"instances": [2, 4]}, {"instances": [2.0] * 2000}]
)
def test_unknown_outputs_are_a_bad_request(query, unknown, body):
    assert_error(
        rest_of(three).post(f"{P}?{query}", body),
        400,
        f"outputs: there is no output '{unknown}'; expected some of: half, double, square",
    )


def test_outputs_from_python():
    server = fake_server({"m": three()})
    assert (
        server.predict("m", {"inputs": np.array([2, 4])}, outputs=["square"])["outputs"].tolist()
        == VALUES["square"]
    )
    assert list(server.predict("m", {"inputs": [2, 4]}, outputs=("square", "half"))["outputs"]) == [
        "half",
        "square",
    ]
    with pytest.raises(
        serving.BadRequest, match="there is no output 'x'; expected some of: half, double, square"
    ):
        server.predict("m", {"inputs": [2, 4]}, outputs=["x"])


def test_an_output_chosen_fits_a_form_that_holds_one():
    rest = rest_of(three)
    assert_error(
        rest.post(P, {"inputs": [2, 4]}, headers=RAW),
        400,
        "The model has the outputs half, double, square, and a raw tensor holds one...",
    )
    for body in ({"inputs": [2, 4]}, {"instances": [2, 4]}):
        assert (
            np.frombuffer(
                rest.post(f"{P}?outputs=double", body, headers=RAW).data, np.float32
            ).tolist()
            == VALUES["double"]
        )


# --- raw tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [dtype for dtype in serving.NUMPY_DTYPES.values() if dtype.kind != "O"], ids=str
)
@pytest.mark.parametrize("shape", [(-1,), (1, -1), (-1, 1, 1), "scalar", "none"])
def test_raw_tensors_pass_through(dtype, shape):
    array = values_of(dtype)
    array = (
        array[1].reshape(())
        if shape == "scalar"
        else array[:0].reshape(2, 0, 3)
        if shape == "none"
        else array.reshape(shape)
    )
    response = rest_of(echo, dtype).post(
        P,
        array.tobytes(),
        headers={
            "X-Tensor-Dtype": dtype.name,
            "X-Tensor-Shape": ", ".join(map(str, array.shape)),
            **RAW,
        },
    )
    wanted = array.astype(np.float32) if dtype == ml_dtypes.bfloat16 else array
    assert (
        response.status_code == 200
        and response.headers["Content-Type"] == "application/octet-stream"
    )
    assert response.headers["X-Tensor-Dtype"] == wanted.dtype.name and response.headers[
        "X-Tensor-Shape"
    ] == ",".join(map(str, array.shape))
    assert response.data == wanted.tobytes()


@pytest.mark.parametrize(
    "dtype",
    [np.dtype(kind) for kind in (np.float32, np.float64, np.int32, np.uint8, np.int64)],
    ids=str,
)
def test_raw_tensors_answer_what_json_answers(how, dtype):
    rest = Rest(fake_server({"m": FakeServable()}), how)
    array = np.arange(12, dtype=dtype).reshape(12, 1)
    wanted = np.float32(0.5) * array.astype(np.float32) + 1
    assert rest.post(
        P, array.tobytes(), headers={"X-Tensor-Dtype": dtype.name, "X-Tensor-Shape": "12,1"}
    ).json == {"outputs": wanted.tolist()}
    for body in ({"inputs": array.tolist()}, {"instances": array.tolist()}):
        response = rest.post(P, body, headers=RAW)
        assert response.data == wanted.tobytes() and response.headers["X-Tensor-Shape"] == "12,1"


def test_a_raw_tensor_is_of_float32_where_nothing_is_said():
    response = rest_of(FakeServable).post(
        P, np.float32([[1], [2]]).tobytes(), headers={"X-Tensor-Shape": "2,1"}
    )
    assert response.json == {"outputs": [[1.5], [2.0]]}


def test_bytes_that_look_like_something_else_are_a_raw_tensor():
    rest = Rest(fake_server({"m": echo(np.dtype(np.uint8))}))
    for body in (b'{"instances": 1}', b"\x93NUMPY\x01\x00", b"PK\x03\x04rest", b"\xff\xd8\xff\xe0"):
        assert (
            rest.post(
                P,
                body,
                headers={"X-Tensor-Dtype": "uint8", "X-Tensor-Shape": str(len(body)), **RAW},
            ).data
            == body
        )


@pytest.mark.parametrize(
    "dtype, shape, body, text",
    [
        ("float32", "2", b"1234567", "body: expected 8 bytes for float32 [2], got 7"),
        ("float32", "2,1", b"123456789", "body: expected 8 bytes for float32 [2, 1], got 9"),
        ("float64", "", b"1234", "body: expected 8 bytes for float64 [], got 4"),
        ("float32", "2", b"", "body: expected 8 bytes for float32 [2], got 0"),
        ("float32", "0", b"1234", "body: expected 0 bytes for float32 [0], got 4"),
        ("object", "1", b"12345678", "X-Tensor-Dtype: expected one of bfloat16, bool, ..."),
        ("float", "1", b"1234", "X-Tensor-Dtype: expected one of ..."),
        ("", "1", b"1234", "X-Tensor-Dtype: expected one of ..."),
        ("<f4", "1", b"1234", "X-Tensor-Dtype: expected one of ..."),
        ("x" * 100, "1", b"1234", "X-Tensor-Dtype: expected one of ..."),
        ("float32", "1,", b"1234", "X-Tensor-Shape: expected sizes such as 1,224,224,3, got '1,'"),
        ("float32", ",1", b"1234", "X-Tensor-Shape: ..."),
        ("float32", "-1", b"1234", "X-Tensor-Shape: ..."),
        ("float32", "1;1", b"1234", "X-Tensor-Shape: ..."),
        ("float32", "1.0", b"1234", "X-Tensor-Shape: ..."),
        ("float32", "(1,)", b"1234", "X-Tensor-Shape: ..."),
        ("float32", "one", b"1234", "X-Tensor-Shape: ..."),
        ("float32", "1 1", b"1234", "X-Tensor-Shape: ..."),
        ("float32", "\xb2", b"1234", "X-Tensor-Shape: ..."),
        ("float32", ",".join("1" * 33), b"1234", "X-Tensor-Shape: ..."),
        ("float32", "1" * 19, b"1234", "X-Tensor-Shape: ..."),
        (
            "uint8",
            "9" * 18 + ",1",
            b"1",
            f"body: expected {'9' * 18} bytes for uint8 [{'9' * 18}, 1], got 1",
        ),
        ("float64", ",".join(["9" * 18] * 32), b"", "body: expected ..."),
        ("uint8", "4294967296,4294967296", b"", f"body: expected {2**64} bytes for uint8 ..."),
        (
            "uint8",
            f"0,{'9' * 18},{'9' * 18}",
            b"",
            "an array without numbers may have 4000000 rows, not the shape [0, 9...",
        ),
        ("float32", f"{'9' * 18},0", b"", "an array without numbers may ..."),
        (
            "float32",
            "2001,2000,0",
            b"",
            "an array without numbers may have 4000000 rows, not the shape [2001, 2000, 0]",
        ),
        ("bool", "3", b"\0\1\2", "body: expected bytes 0 and 1 for bool"),
        ("bool", "3", b"\0\xff\1", "body: expected bytes 0 and 1 for bool"),
        ("bool", "1", b"1", "body: expected bytes 0 and 1 for bool"),
    ],
)
def test_wrong_raw_tensors(dtype, shape, body, text):
    rest = rest_of(echo, np.dtype(np.float32))
    tracemalloc.start()
    response = rest.post(P, body, headers={"X-Tensor-Dtype": dtype, "X-Tensor-Shape": shape})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_error(response, 400, text)
    assert peak < 10e6, "nothing is made for sizes that only a header names"


@pytest.mark.parametrize("body", [b"1234", b"{}  ", b"{\0\0\0" * 1000, b""])
def test_a_raw_tensor_needs_its_shape(body):
    response = rest_of(echo, np.dtype(np.float32)).post(P, body, headers={"X-Tensor-Dtype": "int8"})
    assert_error(response, 400, "X-Tensor-Shape: expected sizes such as 1,224,224,3, got none")


def test_arrays_of_many_rows_without_numbers_are_refused():
    rest, hollow = rest_of(FakeServable), np.empty((10**9, 0), np.float32)
    for save in (lambda file: np.save(file, hollow), lambda file: np.savez(file, x=hollow)):
        buffer = io.BytesIO()
        save(buffer)
        assert_error(
            rest.post(P, buffer.getvalue()),
            400,
            "an array without numbers may have 4000000 rows, not the shape [1000000000, 0]",
        )


def test_a_dtype_that_the_model_does_not_take():
    rest = Rest(fake_server({"m": echo(np.dtype(np.int8))}))
    headers = {"X-Tensor-Dtype": "int32", "X-Tensor-Shape": "2", **RAW}
    assert (
        rest.post(P, np.int32([-128, 127]).tobytes(), headers=headers).data
        == np.int8([-128, 127]).tobytes()
    )
    assert_error(
        rest.post(P, np.int32([1, 300]).tobytes(), headers=headers),
        400,
        "JSON Value: 300 at [1] is out of range for type: int8",
    )
    assert_error(
        rest.post(P, np.float32([1, 2]).tobytes(), headers={"X-Tensor-Shape": "2"}),
        400,
        "JSON Value: 1.0 Type: Number is not of expected type: int8",
    )


# --- answers in gzip ------------------------------------------------------------------------------------------------

BODY = {"inputs": [[number] for number in range(500)]}


@pytest.mark.parametrize(
    "accepted, packed",
    [
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("br;q=1.0, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.0, deflate", False),
        ("deflate", False),
        ("", False),
        (None, False),
    ],
)
@pytest.mark.parametrize(
    "form", ["application/json", "application/x-npy", "application/octet-stream"]
)
def test_large_answers_are_packed_for_those_who_take_gzip(accepted, packed, form):
    rest = rest_of(FakeServable, gzip_min_bytes=1000)
    plain = rest.post(P, BODY, headers={"Accept": form})
    response = rest.post(
        P,
        BODY,
        headers={"Accept": form} | ({} if accepted is None else {"Accept-Encoding": accepted}),
    )
    assert "Content-Encoding" not in plain.headers and len(plain.data) >= 1000
    assert response.headers.get("Content-Encoding") == ("gzip" if packed else None) and int(
        response.headers["Content-Length"]
    ) == len(response.data)
    assert (gzip.decompress(response.data) if packed else response.data) == plain.data
    assert len(response.data) < len(plain.data) or not packed
    assert "Accept-Encoding" in response.headers.get("Vary", "") or not packed


@pytest.mark.parametrize("more, packed", [(0, True), (1, False), (-1, True)])
def test_small_answers_are_not_packed(more, packed):
    length = len(rest_of(FakeServable).post(P, BODY).data)
    rest = Rest(fake_server({"m": FakeServable()}, server={"gzip_min_bytes": length + more}))
    response = rest.post(P, BODY, headers={"Accept-Encoding": "gzip"})
    assert ("Content-Encoding" in response.headers) is packed


def test_origins_and_encodings_vary_together():
    server = fake_server(
        {"m": FakeServable()}, server={"gzip_min_bytes": 100, "cors_origins": ["https://a.example"]}
    )
    response = Rest(server).post(
        P, BODY, headers={"Accept-Encoding": "gzip", "Origin": "https://a.example"}
    )
    assert {name.strip() for name in response.headers["Vary"].split(",")} == {
        "Accept-Encoding",
        "Origin",
    }


# --- bodies as they are read ------------------------------------------------------------------------------------------


def call_of(length, sent):
    environ = {"REQUEST_METHOD": "POST", "CONTENT_LENGTH": length, "wsgi.input": io.BytesIO(sent)}
    return serving.Call(environ, P)


@pytest.mark.parametrize(
    "length, sent, limit, found",
    [
        ("5", b"hello", 5, b"hello"),
        ("3", b"hello", 5, b"hel"),
        ("05", b"hello", 5, b"hello"),
        ("0", b"hello", 5, b""),
        ("", b"hello", 5, b""),
    ],
)
def test_a_body_is_no_longer_than_announced(length, sent, limit, found):
    assert call_of(length, sent).read(limit) == found


@pytest.mark.parametrize("sent", [b"hello", b""])
def test_a_body_shorter_than_announced_is_a_client_that_left(sent):
    with pytest.raises(ClientDisconnected):
        call_of("6", sent).read(10)


@pytest.mark.parametrize(
    "environ, status, text",
    [
        ({"CONTENT_LENGTH": "11"}, 413, "Request body of 11 bytes is over the limit of 10"),
        ({"CONTENT_LENGTH": "9" * 30}, 413, f"Request body of {'9' * 30} bytes is over ..."),
        ({"CONTENT_LENGTH": "0"}, 400, "JSON Parse error: The document is empty"),
        ({"CONTENT_LENGTH": ""}, 400, "JSON Parse error: The document is empty"),
        ({"CONTENT_LENGTH": "00"}, 400, "JSON Parse error: The document is empty"),
        ({"CONTENT_LENGTH": "-1"}, 400, "JSON Parse error: ..."),
    ],
)
def test_odd_lengths(environ, status, text):
    rest = rest_of(FakeServable, max_request_bytes=10)
    assert_error(rest.open(P, method="POST", environ_overrides=environ), status, text)


def send(address, head, body, shut=False):
    """What the server answers, until it closes."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(
            f"POST {P} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{head}\r\n".encode() + body
        )
        if shut:
            client.shutdown(socket.SHUT_WR)
        heard = b""
        while piece := client.recv(1 << 16):
            heard += piece
    return heard


def test_bodies_over_a_socket():
    body = json.dumps({"instances": [[4]]}).encode()
    with listening(
        fake_server({"m": FakeServable()}, server={"max_request_bytes": 1000})
    ) as address:
        assert send(address, f"Content-Length: {len(body)}\r\n", body).endswith(
            b'{"predictions":[[3.0]]}'
        )
        assert send(address, f"Content-Length: {len(body)}\r\n", body + b"more").endswith(
            b'{"predictions":[[3.0]]}'
        )
        assert send(address, "Content-Length: 100\r\n", body, shut=True) == b""
        for head in ("", "Content-Length: 0\r\n"):
            assert b" 400 " in send(address, head, b"") and b"The document is empty" in send(
                address, head, b""
            )
        assert b" 413 " in send(address, "Content-Length: 1001\r\n", b"")
        assert b" 413 " in send(
            address,
            "Transfer-Encoding: chunked\r\n",
            b"".join([b"64\r\n" + b" " * 100 + b"\r\n"] * 11) + b"0\r\n\r\n",
        )
        assert send(
            address, "Transfer-Encoding: chunked\r\n", b"14\r\n" + body + b"\r\n0\r\n\r\n"
        ).endswith(b'{"predictions":[[3.0]]}')
