""".npy and .npz in and out of :predict: to the last bit what the same request says as JSON."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from conftest import NO_POLL, FakeServable, Rest, assert_error, fake_server, signature, spec

import serving
import serving_extensions.binary as serving_binary

FREE = serving.Allowance(serving.UnpackedBytes(lambda: 1 << 40), 1 << 40)


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
    return serving.Servable(
        {"serving_default": signature(*specs)},
        lambda name, x: {
            "sum": (x["a"] + x["b"]).astype(dtype),
            "product": (x["a"] * x["b"]).astype(dtype),
        },
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_npy_in_and_out_equals_json(how, dtype):
    rest = Rest(fake_server({"m": FakeServable()}), how)
    x = np.arange(12).reshape(12, 1).astype(dtype)
    response = rest.post("/v1/models/m:predict", npy(x), headers={"Accept": "application/x-npy"})
    assert response.headers["Content-Type"] == "application/x-npy"
    answer = np.load(io.BytesIO(response.data))
    assert (
        answer.dtype == np.float32 and (answer == np.float32(0.5) * x.astype(np.float32) + 1).all()
    )
    assert (
        rest.post("/v1/models/m:predict", {"inputs": x.tolist()}).json
        == rest.post("/v1/models/m:predict", npy(x)).json
        == {"outputs": answer.tolist()}
    )
    rows = rest.post(
        "/v1/models/m:predict", {"instances": x.tolist()}, headers={"Accept": "application/x-npy"}
    )
    assert (np.load(io.BytesIO(rows.data)) == answer).all()


@pytest.mark.parametrize(
    "accept, kind",
    [
        ("*/*;q=0.1, application/x-npy", "application/x-npy"),
        ("application/json;q=0.5, application/x-npy", "application/x-npy"),
        ("Application/X-NPY", "application/x-npy"),
        ("application/x-npy;q=0, application/json", "application/json"),
        ("application/x-npy;q=0", "application/json"),
        ("application/x-npy;q=0.5, application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
    ],
)
def test_the_type_that_a_client_likes_best_is_answered(how, accept, kind):
    """RFC 9110, 12.5.1 and 12.4.2: the weights decide, 0 refuses; types have no case (8.3.1)."""
    rest = Rest(fake_server({"m": FakeServable()}), how)
    answer = rest.post("/v1/models/m:predict", {"inputs": [[1.0]]}, headers={"Accept": accept})
    assert answer.status_code == 200 and answer.headers["Content-Type"] == kind


def test_npz_holds_inputs_and_outputs_by_name():
    rest = Rest(fake_server({"m": two_outputs()}))
    a, b = np.random.default_rng(0).random((2, 5), np.float32)
    for body in (
        npz(a=a, b=b),
        {"inputs": {"a": a.tolist(), "b": b.tolist()}},
        {"instances": [{"a": float(x), "b": float(y)} for x, y in zip(a, b)]},
    ):
        response = rest.post("/v1/models/m:predict", body, headers={"Accept": "application/x-npz"})
        with np.load(io.BytesIO(response.data)) as found:
            assert (found["sum"] == a + b).all() and (found["product"] == a * b).all()
    one = rest.post("/v1/models/m:predict", npz(a=a, b=b), headers={"Accept": "application/x-npy"})
    assert_error(
        one,
        400,
        "The model has the outputs sum, product, and a .npy holds one: accept application/x-npz instead, or choose one with ?outputs=",
    )


def test_outputs_may_be_called_like_arguments_of_numpy():
    odd = serving.Servable(
        {"serving_default": signature([spec("x")], [spec("file"), spec("allow_pickle")])},
        lambda name, x: {"file": x["x"], "allow_pickle": x["x"] * 2},
    )
    response = Rest(fake_server({"m": odd})).post(
        "/v1/models/m:predict", npy(np.ones(3, np.float32)), headers={"Accept": "application/x-npz"}
    )
    with np.load(io.BytesIO(response.data)) as found:
        assert found["allow_pickle"].tolist() == [2, 2, 2] and found["file"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "body, text",
    [
        (b"\x93NUMPY\x01\x00", "body is no .npy or .npz of numbers: ..."),
        (npy(np.zeros(3))[:-4], "body is no .npy or .npz of numbers: ..."),
        (b"PK\x03\x04rest", "body is no .npy or .npz of numbers: ..."),
        (npz(z=np.zeros(3)), "Missing named input: x in 'inputs' object."),
        (npz(), "Missing named input: x in 'inputs' object."),
    ],
)
def test_broken_arrays(body, text):
    assert_error(
        Rest(fake_server({"m": FakeServable()})).post("/v1/models/m:predict", body), 400, text
    )


def test_pickles_are_never_read():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    assert_error(
        Rest(fake_server({"m": FakeServable()})).post("/v1/models/m:predict", buffer.getvalue()),
        400,
        "body is no .npy or .npz of numbers: ...",
    )


LIMIT = 100 << 20


def limited():
    return fake_server({"m": FakeServable()}, server={**NO_POLL, "max_decoded_bytes": LIMIT})


def packed(*members, method=zipfile.ZIP_DEFLATED):
    """A zip file of (name, pieces of bytes)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, pieces in members:
            with archive.open(name, "w") as file:
                for piece in pieces:
                    file.write(piece)
    return buffer.getvalue()


def head(descr, shape, order="False", version=(1, 0)):
    """The head of a .npy as its format describes it, whatever it says."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return (
        np.lib.format.magic(*version)
        + len(text).to_bytes(2 if version == (1, 0) else 4, "little")
        + text
    )


def peak_of(body, status, message, server=None):
    """What a refused body takes at most, in bytes."""
    server = server or limited()
    rest = Rest(server)
    tracemalloc.start()
    try:
        assert_error(rest.post("/v1/models/m:predict", body), status, message)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        assert server.unpacked.held == 0


def test_a_bomb_of_an_npz_is_refused_unopened():
    body = packed(("x.npy", [head("'<f4'", "(78643200,)"), *[bytes(1 << 20)] * 300]))
    assert (
        peak_of(
            body, 413, f"Request body unpacks to 314572800 bytes or more, over the limit of {LIMIT}"
        )
        < 5e6
    )


def test_all_arrays_of_an_npz_together_are_bounded():
    part = [head("'<f4'", "(10485760,)"), *[bytes(1 << 20)] * 40]
    body = packed(*((f"{name}.npy", part) for name in "abcd"))
    assert (
        peak_of(
            body, 413, f"Request body unpacks to 125829120 bytes or more, over the limit of {LIMIT}"
        )
        < LIMIT
    )


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_npz_is_packed_as_numpy_packs_it(method):
    body = packed(("x.npy", [head("'<f4'", "(13107200,)"), *[bytes(1 << 20)] * 50]), method=method)
    assert len(body) < 100_000
    text = f"body is no .npy or .npz of numbers: 'x.npy': expected it stored or deflated, got the method {method} of zip"
    assert peak_of(body, 400, text) < 5e6


def test_a_member_that_lies_about_its_size_is_unpacked_no_further():
    honest = packed(("x.npy", [head("'<f4'", "(26214400,)"), *[bytes(1 << 20)] * 100]))
    size = len(head("'<f4'", "(26214400,)")) + LIMIT
    assert (
        honest.count(size.to_bytes(4, "little")) == 2
    )  # in the directory, and before or behind the member
    for lie in (1000, size + 4, 0xFFFFFFF0):
        lying = honest.replace(size.to_bytes(4, "little"), lie.to_bytes(4, "little"))
        answer = Rest(fake_server({"m": FakeServable()})).post("/v1/models/m:predict", lying)
        assert answer.status_code in ((400,) if lie < size else (200, 400))
    short = packed(("x.npy", [head("'<f4'", "(26214400,)"), bytes(1000)]))
    announced = (len(head("'<f4'", "(26214400,)")) + 1000).to_bytes(4, "little")
    lying = short.replace(announced, (1 << 30).to_bytes(4, "little"))
    assert (
        peak_of(
            lying,
            413,
            "Request body unpacks to 104857600 bytes or more, over ...",
            fake_server({"m": FakeServable()}, server={**NO_POLL, "max_decoded_bytes": LIMIT - 1}),
        )
        < 5e6
    )
    assert Rest(limited()).post("/v1/models/m:predict", lying).status_code == 400


@pytest.mark.parametrize(
    "members, text",
    [
        (
            [("x.npy", [npy(np.ones(2))]), ("x.npy", [npy(np.zeros(2))])],
            "'x.npy' stands twice in it",
        ),
        ([("x", [npy(np.ones(2))])], "'x': expected members that end with .npy"),
        ([("x.npy", [npz(x=np.ones(2))])], "its header cannot be read: ..."),
        ([("x.npz", [npz(x=np.ones(2))])], "'x.npz': expected members that end with .npy"),
        ([("x.npy", [b"1, 2, 3"])], "its header cannot be read: ..."),
        ([(f"{n}.npy", [b""]) for n in range(1001)], "an .npz may hold 1000 arrays"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_npz_holds_arrays_under_names_of_their_own(members, text):
    answer = Rest(limited()).post("/v1/models/m:predict", packed(*members))
    assert_error(answer, 400, f"body is no .npy or .npz of numbers: {text}")


HOLLOW = [
    "'|V0'",
    "'|S0'",
    "'<U0'",
    "[]",
    "'|V4'",
    "'|V2'",
    "[('a', '<f4')]",
    "[('a', '<f4', (2,))]",
    "('<f4', (1000000,))",
    "'(3,)f4'",
    "'|O'",
    "'O'",
    "'<M8[s]'",
    "'<m8[ns]'",
    "'<c8'",
    "'<c16'",
    "'<f16'",
    "'|S'",
    "'<U'",
    "'S99999999999999'",
    "None",
    "1",
    "'nonsense'",
    "[" * 3000,
    "-" * 9000 + "1",
    "'" + "x" * 20_000 + "'",
]


@pytest.mark.parametrize("descr", HOLLOW)
def test_elements_that_no_tensor_can_have_are_refused_before_any_is_made(descr):
    """Each a body of a few hundred bytes that says it holds thirty million elements."""
    body = head(descr, "(30000000,)").ljust(128)
    assert peak_of(body, 400, "body is no .npy or .npz of numbers: ...") < 5e6
    assert peak_of(packed(("x.npy", [body])), 400, "body is no .npy or .npz of numbers: ...") < 5e6


@pytest.mark.parametrize(
    "shape",
    [
        "(30000000,)",
        "(-1,)",
        "(-4, -4)",
        "(4611686018427387904, 4)",
        "(2147483648, 2147483648, 4)",
        "(18446744073709551617,)",
        "(True,)",
        "(1.0,)",
        "4",
        "[4]",
        "('a',)",
        f"({'1,' * 33})",
        f"({'9' * 5000},)",
        f"({'9' * 4000},)",
        "(0, -1)",
        "(0, 99999999999999)",
    ],
)
@pytest.mark.parametrize("order", ["True", "False"])
def test_shapes_that_do_not_fit_the_bytes_are_refused(shape, order):
    body = head("'<f4'", shape, order) + bytes(16)
    status = Rest(limited()).post("/v1/models/m:predict", body)
    assert status.status_code == 400, status.data
    assert Rest(limited()).post("/v1/models/m:predict", packed(("x.npy", [body]))).status_code in (
        400,
        413,
    )


def test_a_head_that_is_longer_than_the_body_is_refused():
    for size in (1 << 31, 0xFFFFFFFF, 20_000):
        body = (
            np.lib.format.magic(2, 0)
            + size.to_bytes(4, "little")
            + b"{'descr': '<f4'"
            + b" " * 30_000
        )
        assert (
            peak_of(body, 400, "body is no .npy or .npz of numbers: its header cannot be read: ...")
            < 5e6
        )


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">i8", "<i2", "|u1", "<f2", ">u2"])
def test_every_version_order_and_byte_order_reads_as_numpy_reads_it(version, dtype):
    array = np.arange(12).astype(dtype).reshape(4, 3)
    for order, data in (("False", array.tobytes()), ("True", array.tobytes("F"))):
        body = head(f"'{dtype}'", "(4, 3)", order, version) + data
        truth = np.load(io.BytesIO(body))
        for found in (
            serving_binary.load_arrays(body, FREE),
            serving_binary.load_arrays(packed(("x.npy", [body])), FREE)["x"],
        ):
            assert found.dtype == truth.dtype and (found == truth).all() and (found == array).all()
        answer = Rest(limited()).post("/v1/models/m:predict", body)
        assert answer.json == {"outputs": (array.astype(np.float32) / 2 + 1).tolist()}


def test_texts_are_taken_by_tensors_of_texts_and_counted_as_what_they_become():
    texts = serving.Servable(
        {"serving_default": signature([spec("x", "DT_STRING")], [spec("y")])},
        lambda name, x: {"y": np.array([float(len(item)) for item in x["x"]], np.float32)},
    )
    server = fake_server({"m": texts}, server={**NO_POLL, "max_decoded_bytes": 6400})
    for array in (
        np.array([b"a", b"bcd"]),
        np.array(["a", "bcd"]),
        np.array(["a", "bcd"]).astype(">U3"),
    ):
        assert Rest(server).post("/v1/models/m:predict", npy(array)).json == {"outputs": [1.0, 3.0]}
    assert_error(
        Rest(server).post("/v1/models/m:predict", npy(np.full(200, b"a"))),
        413,
        "Request body unpacks to 13000 bytes or more, over the limit of 6400",
    )
    wrong = head("'<U1'", "(1,)") + (0x110000).to_bytes(4, "little")
    assert_error(
        Rest(server).post("/v1/models/m:predict", wrong),
        400,
        "body is no .npy or .npz of numbers: expected letters of Unicode",
    )


def test_truth_values_of_other_bytes_than_0_and_1_are_refused():
    body = head("'|b1'", "(3,)") + b"\0\1\2"
    assert_error(
        Rest(limited()).post("/v1/models/m:predict", body),
        400,
        "body is no .npy or .npz of numbers: expected bytes 0 and 1 for bool",
    )


@pytest.mark.parametrize(
    "dtype, wanted",
    [("<f4", "DT_INT32"), ("<i4", "DT_STRING"), ("|b1", "DT_FLOAT"), ("<i8", "DT_BOOL")],
)
def test_an_array_of_another_kind_is_refused_without_an_object_for_each_element(dtype, wanted):
    other = serving.Servable(
        {"serving_default": signature([spec("x", wanted)], [spec("y", wanted)])},
        lambda name, x: {"y": x["x"]},
    )
    body = npy(np.ones(1_000_000, dtype))
    first = {"<f4": "1.0", "<i4": "1", "|b1": "true", "<i8": "1"}[dtype]
    kind = "Number" if first != "true" else "True"
    text = f"JSON Value: {first} Type: {kind} is not of expected type: {wanted.removeprefix('DT_').lower()}"
    assert peak_of(body, 400, text, fake_server({"m": other})) < 3 * len(body) + 1e6


@pytest.mark.parametrize(
    "wanted, values, index",
    [
        ("DT_INT8", [1, -128, 127, 128], 3),
        ("DT_UINT8", [0, 255, -1, 256], 2),
        ("DT_UINT64", [5, -1], 1),
        ("DT_INT32", [1, 2**31], 1),
    ],
)
def test_the_first_integer_out_of_range_is_named(wanted, values, index):
    tensor = spec("x", wanted)
    with pytest.raises(serving.BadRequest) as by_array:
        serving.decode_tensor(np.array(values, np.int64), tensor)
    with pytest.raises(serving.BadRequest) as by_list:
        serving.decode_tensor(values, tensor)
    assert (
        by_array.value.message == by_list.value.message
        and str(values[index]) in by_array.value.message
    )


def test_an_answer_without_rows_is_that_of_inputs():
    found = serving.Servable(
        {
            "serving_default": signature(
                [spec("x")], [spec("boxes"), spec("ids", "DT_INT64"), spec("t_bytes", "DT_STRING")]
            )
        },
        lambda name, x: {
            "boxes": np.empty((0, 4), np.float32),
            "ids": np.empty(0, np.int64),
            "t_bytes": np.empty(0, object),
        },
    )
    rest = Rest(fake_server({"m": found}))
    for body in ({"inputs": [1]}, {"instances": [1]}):
        for media in (serving_binary.NPY, serving_binary.NPZ, serving_binary.RAW):
            head = {"Accept": media}
            texts = rest.post("/v1/models/m:predict?outputs=t_bytes", body, headers=head)
            assert_error(texts, 400, "Output 'output' holds strings, ...")
        answer = rest.post(
            "/v1/models/m:predict?outputs=boxes,ids", body, headers={"Accept": serving_binary.NPZ}
        )
        with np.load(io.BytesIO(answer.data)) as arrays:
            shown = {name: (arrays[name].dtype, arrays[name].shape) for name in arrays}
        assert shown == {"boxes": (np.float32, (0, 4)), "ids": (np.int64, (0,))}


@pytest.mark.parametrize(
    "value, kind",
    [(np.array([b"abc"]), "bytes"), ([(1, 2)], "tuple"), (1j, "complex"), ({1}, "set")],
)
def test_what_json_does_not_have_is_called_by_its_own_name(value, kind):
    with pytest.raises(serving.BadRequest, match=f"Type: {kind} is not of expected type: float"):
        serving.decode_tensor(value, spec("x"))


@pytest.mark.parametrize("dtype", ["datetime64[ns]", "datetime64[D]", "timedelta64[ns]"])
@pytest.mark.parametrize("wanted", ["DT_FLOAT", "DT_INT64", "DT_STRING"])
def test_dates_are_no_numbers(dtype, wanted):
    dates = np.array([1, 2], "i8").astype(dtype)
    for value in (dates, dates[0], list(dates)):
        with pytest.raises(serving.BadRequest, match=dtype.partition("[")[0]):
            serving.decode_tensor(value, spec("x", wanted))


@pytest.mark.parametrize("output", ["s", "s_bytes"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("body", [{"inputs": [1]}, {"instances": [1]}])
@pytest.mark.parametrize("media", [serving_binary.NPY, serving_binary.NPZ, serving_binary.RAW])
def test_strings_need_json(output, shape, body, media):
    if "instances" in body and not shape:
        return  # no rows
    strings = serving.Servable(
        {"serving_default": signature([spec("x")], [spec(output, "DT_STRING", shape)])},
        lambda name, x: {output: np.full(shape, b"a", object)},
    )
    answer = Rest(fake_server({"m": strings})).post(
        "/v1/models/m:predict", body, headers={"Accept": media}
    )
    assert_error(
        answer,
        400,
        "Output 'output' holds strings, which .npy and .npz do not: accept application/json instead",
    )


@pytest.mark.parametrize(
    "body", [{"inputs": {"a": [1, 2]}}, {"instances": [{"a": 1}, {"a": 2}]}, {"instances": [1, 2]}]
)
def test_texts_beside_numbers_need_json(body):
    mixed = serving.Servable(
        {"serving_default": signature([spec("a")], [spec("n"), spec("s", "DT_STRING")])},
        lambda name, x: {"n": x["a"], "s": np.array([b"a\0", b""], object)},
    )
    answer = Rest(fake_server({"m": mixed})).post(
        "/v1/models/m:predict", body, headers={"Accept": serving_binary.NPZ}
    )
    assert_error(
        answer,
        400,
        "Output 's' holds strings, which .npy and .npz do not: accept application/json instead",
    )


def test_a_model_that_refuses_a_large_body_is_run_once():
    runs = []

    def refuse(name, x):
        runs.append(len(x["x"]))
        raise serving.ServingError("no such rows", "INVALID_ARGUMENT")

    model = serving.Servable({"serving_default": signature([spec("x")], [spec("y")])}, refuse)
    assert_error(
        Rest(fake_server({"m": model})).post("/v1/models/m:predict", {"inputs": [1.5] * 2000}),
        400,
        "no such rows",
    )
    assert runs == [2000]
