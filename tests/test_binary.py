""".npy and .npz in and out of :predict: to the last bit what the same request says as JSON."""

import io
import zipfile

import numpy as np
import pytest
from conftest import FakeServable, Rest, assert_error, fake_server, signature, spec

import serving


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def two_outputs(dtype=np.float32):
    """sum and product of a [N] and b [N]."""
    specs = [spec("a"), spec("b")], [spec("sum"), spec("product")]
    return serving.Servable({"serving_default": signature(*specs)}, lambda name, x: {
        "sum": (x["a"] + x["b"]).astype(dtype), "product": (x["a"] * x["b"]).astype(dtype)})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_npy_in_and_out_equals_json(how, dtype):
    rest = Rest(fake_server({"m": FakeServable()}), how)
    x = np.arange(12).reshape(12, 1).astype(dtype)
    response = rest.post("/v1/models/m:predict", npy(x), headers={"Accept": "application/x-npy"})
    assert response.headers["Content-Type"] == "application/x-npy"
    answer = np.load(io.BytesIO(response.data))
    assert answer.dtype == np.float32 and (answer == np.float32(0.5) * x.astype(np.float32) + 1).all()
    assert rest.post("/v1/models/m:predict", {"inputs": x.tolist()}).json == rest.post("/v1/models/m:predict", npy(x)).json == {"outputs": answer.tolist()}
    rows = rest.post("/v1/models/m:predict", {"instances": x.tolist()}, headers={"Accept": "application/x-npy"})
    assert (np.load(io.BytesIO(rows.data)) == answer).all()


def test_npz_holds_inputs_and_outputs_by_name():
    rest = Rest(fake_server({"m": two_outputs()}))
    a, b = np.random.default_rng(0).random((2, 5), np.float32)
    for body in (npz(a=a, b=b), {"inputs": {"a": a.tolist(), "b": b.tolist()}}, {"instances": [{"a": float(x), "b": float(y)} for x, y in zip(a, b)]}):
        response = rest.post("/v1/models/m:predict", body, headers={"Accept": "application/x-npz"})
        with np.load(io.BytesIO(response.data)) as found:
            assert (found["sum"] == a + b).all() and (found["product"] == a * b).all()
    one = rest.post("/v1/models/m:predict", npz(a=a, b=b), headers={"Accept": "application/x-npy"})
    assert_error(one, 400, "The model has the outputs sum, product, and a .npy holds one: accept application/x-npz instead, or choose one with ?outputs=")


def test_outputs_may_be_called_like_arguments_of_numpy():
    odd = serving.Servable({"serving_default": signature([spec("x")], [spec("file"), spec("allow_pickle")])},
                           lambda name, x: {"file": x["x"], "allow_pickle": x["x"] * 2})
    response = Rest(fake_server({"m": odd})).post("/v1/models/m:predict", npy(np.ones(3, np.float32)), headers={"Accept": "application/x-npz"})
    with np.load(io.BytesIO(response.data)) as found:
        assert found["allow_pickle"].tolist() == [2, 2, 2] and found["file"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("body, text", [
    (b"\x93NUMPY\x01\x00", "body is no .npy or .npz of numbers: ..."), (npy(np.zeros(3))[:-4], "body is no .npy or .npz of numbers: ..."),
    (b"PK\x03\x04rest", "body is no .npy or .npz of numbers: ..."), (npz(z=np.zeros(3)), "Missing named input: x in 'inputs' object.")])
def test_broken_arrays(body, text):
    assert_error(Rest(fake_server({"m": FakeServable()})).post("/v1/models/m:predict", body), 400, text)


def test_pickles_are_never_read():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    assert_error(Rest(fake_server({"m": FakeServable()})).post("/v1/models/m:predict", buffer.getvalue()), 400, "body is no .npy or .npz of numbers: ...")


def test_a_bomb_of_an_npz_is_refused_unopened():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert_error(Rest(fake_server({"m": FakeServable()})).post("/v1/models/m:predict", buffer.getvalue()), 400, "body is an .npz that unpacks to 314572800 bytes")


def test_strings_need_json():
    strings = serving.Servable({"serving_default": signature([spec("x")], [spec("s", "DT_STRING")])}, lambda name, x: {"s": np.array([b"a"], object)})
    answer = Rest(fake_server({"m": strings})).post("/v1/models/m:predict", {"inputs": [1]}, headers={"Accept": "application/x-npy"})
    assert_error(answer, 400, "Output 'output' holds strings, which .npy and .npz do not: accept application/json instead")
