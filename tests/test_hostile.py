"""Input made to hurt, and faults caused on purpose: each had once a worse outcome than the one asserted here."""

import base64
import contextlib
import gzip
import io
import json
import os
import socket
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from conftest import (
    NO_POLL,
    ROOT,
    Disk,
    FakeDetector,
    FakeServable,
    Rest,
    assert_error,
    bearer,
    config,
    fake_server,
    image_bytes,
    key_entry,
    listening,
    signature,
    spec,
)
from PIL import Image
from test_binary import npy
from test_models import default
from test_saved_models import export, load, run

import routines
import serving

P = "/v1/models/half_plus_two:predict"


def deep(levels, value=""):
    return "[" * levels + value + "]" * levels


@pytest.mark.parametrize("levels", [33, 64, 65, 300])
def test_strings_of_many_dimensions_do_not_crash_tensorflow(demo, levels):
    client = Rest(demo)
    for form in (
        '{"signature_name": "regress", "inputs": ' + deep(levels) + "}",
        '{"signature_name": "regress", "instances": ' + deep(levels, '"a"') + "}",
        '{"instances": ' + deep(levels, "1") + "}",
        '{"inputs": ' + deep(levels, "1") + "}",
        '{"inputs": ' + deep(levels) + "}",
    ):
        response = client.post(P, form)
        assert (
            response.status_code == 400
            and "tensor parsing error: " in json.loads(response.data)["error"]
        )


def test_thirty_two_dimensions_work(demo):
    assert json.loads(Rest(demo).post(P, '{"inputs": ' + deep(32, "2") + "}").data)[
        "outputs"
    ] == json.loads(deep(32, "3.0"))


def test_a_long_string_among_many_numbers_costs_no_more_than_its_length(demo):
    body = b'{"instances": ["' + b"a" * 100_000 + b'"' + b', ""' * 25_000 + b"]}"
    tracemalloc.start()
    response = Rest(demo).post(P, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (
        response.status_code == 400
        and "Type: String is not of expected type: float" in json.loads(response.data)["error"]
    )
    assert peak < 20e6


@pytest.mark.parametrize(
    "form", ['{"signature_name": "classify", "inputs": [{"b64": "/9j/4AAQSkZJRg=="}]}']
)
def test_graph_error_that_quotes_bytes_is_still_a_bad_request(demo, form):
    response = Rest(demo).post("/v1/models/digits:predict", form)
    assert_error(response, 400, "Could not parse example input...")


def test_feature_name_that_is_no_text(demo):
    for body in (
        b'{"signature_name":"regress","examples":[{"\xff":1.0,"x":1.0}]}',
        b'{"signature_name":"regress","context":{"\xff":1.0},"examples":[{}]}',
    ):
        assert_error(
            Rest(demo).post("/v1/models/half_plus_two:regress", body),
            400,
            "Feature name is not UTF-8: b'\\xff'",
        )


def test_scalar_strings_come_out(tf, tmp_path):
    export(
        tf,
        tmp_path / "m" / "1",
        {
            "serving_default": (
                lambda x: {"y_bytes": tf.identity(x)},
                [tf.TensorSpec([], tf.string, name="x")],
            )
        },
    )
    server = serving.ModelServer(
        {
            "model_config_list": [{"config": {"name": "m", "base_path": str(tmp_path / "m")}}],
            "server": NO_POLL,
        }
    )
    server.wait(60)
    assert json.loads(Rest(server).post("/v1/models/m:predict", {"inputs": "a"}).data) == {
        "outputs": {"b64": "YQ=="}
    }


def test_scalar_string_output_of_rows_is_refused():
    scalar = serving.Servable(
        {"serving_default": signature([spec("x")], [spec("y", "DT_STRING", ())])},
        lambda name, inputs: {"y": np.array(b"a", object)},
    )
    assert_error(
        Rest(fake_server({"m": scalar})).post("/v1/models/m:predict", {"instances": [1]}),
        400,
        "Tensor name: y has no shape information ",
    )


@pytest.mark.parametrize(
    "version, status",
    [
        ("0" * 5000 + "1", 200),
        ("1000000000000000000", 404),
        ("9223372036854775807", 404),
        ("9223372036854775808", 400),
    ],
)
def test_versions_to_the_limit_of_int64(version, status):
    assert (
        Rest(fake_server({"m": FakeServable()})).get(f"/v1/models/m/versions/{version}").status_code
        == status
    )


def test_version_folder_named_by_nanoseconds(tmp_path):
    for name in ("1700000000000000000", "99999999999999999999"):
        (tmp_path / name).mkdir()
    assert list(serving.list_versions(str(tmp_path))) == [1700000000000000000]


def test_path_with_many_slashes_is_unquoted_a_bounded_number_of_times(how, monkeypatch):
    client, calls = Rest(fake_server({"m": FakeServable()}), how), []
    plain = serving.unquote
    monkeypatch.setattr(
        serving, "unquote", lambda *args, **options: calls.append(1) or plain(*args, **options)
    )
    assert client.get("/v1/models/m%62" + "/" * 5000 + "v1/models/x%20").status_code == 400
    assert len(calls) < 20


def test_error_that_quotes_no_text_is_still_json(how):
    client = Rest(fake_server({"m": FakeServable()}), how)
    assert_error(client.get("/v1/models/%FF"), 404, "Could not find any versions of model ?")
    assert_error(
        client.post("/v1/models/m:predict", b'{"inputs": ["\xff"]}'),
        400,
        'JSON Value: "?" Type: String is not of expected type: float',
    )


def test_last_key_wins_in_rows_whichever_parser_reads_them():
    client = Rest(fake_server({"m": FakeServable()}))
    for body in (
        '{"instances": [{"x": [1.0], "x": [2.0]}]}',
        '{"instances": [{"x": [1.0], "x": [2.0]}]} trailing',
        '{"instances": [{"x": [1.0], "x": [2.0]}], "u": 1e0}x',
    ):
        assert json.loads(client.post("/v1/models/m:predict", body).data) == {
            "predictions": [[2.0]]
        }


@pytest.mark.parametrize("escape", ["\\udc80", "\\udcff", "a\\udc80\\u0041"])
def test_escaped_half_of_a_pair_is_no_raw_byte(escape):
    with pytest.raises(serving.BadRequest, match="The surrogate pair in string is invalid"):
        serving.parse_json(f'"{escape}"'.encode())
    assert serving.parse_json(b'["\xff", "\\u0041"]') == ["\udcff", "A"]


def test_numbers_stand_among_nan_and_infinity():
    value = serving.parse_json(b'{"instances": [1.5, NaN, -Infinity, 3]}')
    assert str(value) == "{'instances': [1.5, nan, -inf, 3]}"


def test_body_of_nothing_but_lists_is_refused_before_it_is_parsed(demo):
    body = gzip.compress(b'{"inputs": [' + b"[]," * 5_000_000 + b"[]]}")
    assert_error(
        Rest(demo).post(P, body, headers={"Content-Encoding": "gzip"}),
        413,
        "Request body holds more than 4000000 lists and objects: send fewer rows at once",
    )


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_json_in_other_encodings_than_utf8_is_refused(encoding):
    with pytest.raises(serving.BadRequest, match="JSON Parse error: "):
        serving.parse_json('{"inputs": 1}'.encode(encoding))


# --- what a body unpacks to ---------------------------------------------------------------------------------


def eye(shape=(None, None, None, 3), dtype="DT_UINT8"):
    """The mean colour of each picture."""
    return serving.Servable(
        {"serving_default": signature([spec("x", dtype, shape)], [spec("y")])},
        lambda name, x: {"y": x["x"].mean((1, 2, 3)).astype(np.float32)},
    )


def picture(width, height, mode="L"):
    image = Image.new(mode, (width, height), 7 if mode == "L" else (7, 7, 7))
    return {"b64": base64.b64encode(image_bytes(image)).decode()}


def decoding(servable, most, **others):
    return fake_server({"m": servable}, server={**NO_POLL, "max_decoded_bytes": most, **others})


@pytest.mark.parametrize(
    "key, wrap",
    [
        ("instances", lambda rows: rows),
        ("inputs", lambda rows: rows),
        ("instances", lambda rows: [{"x": row} for row in rows]),
        ("inputs", lambda rows: {"x": rows}),
        ("instances", lambda rows: [rows]),
        ("inputs", lambda rows: {"x": [[rows]]}),
    ],
)
def test_all_pictures_of_a_body_together_are_bounded(key, wrap):
    """Ten pictures of a megapixel each, in a kilobyte each: as arrays they have 30 MB."""
    server = decoding(eye((None, 32, 32, 3)), 20_000_000)
    rest, body = Rest(server), {key: wrap([picture(1000, 1000)] * 10)}
    answer = rest.post("/v1/models/m:predict", body)
    assert (
        answer.status_code == 413
        and "over the limit of 20000000" in answer.json["error"]
        and server.unpacked.held == 0
    )
    assert rest.post("/v1/models/m:predict", {"instances": [picture(1000, 1000)] * 3}).json == {
        "predictions": [7.0] * 3
    }
    assert server.unpacked.held == 0


def test_no_picture_is_decoded_of_a_body_that_holds_too_many(monkeypatch):
    decoded = []
    plain = routines.unpack_image
    monkeypatch.setattr(
        routines, "unpack_image", lambda *arguments: decoded.append(1) or plain(*arguments)
    )
    rest = Rest(decoding(eye((None, 32, 32, 3)), 20_000_000))
    assert (
        rest.post("/v1/models/m:predict", {"instances": [picture(1000, 1000)] * 10}).status_code
        == 413
        and not decoded
    )
    assert (
        rest.post("/v1/models/m:predict", {"instances": [picture(1000, 1000)] * 2}).status_code
        == 200
        and len(decoded) == 2
    )


def test_small_pictures_for_a_large_tensor_are_bounded():
    rest = Rest(decoding(eye((None, 1000, 1000, 3), "DT_FLOAT"), 50_000_000))
    assert_error(
        rest.post("/v1/models/m:predict", {"instances": [picture(1, 1)] * 4}),
        413,
        "Request body unpacks to ...",
    )
    assert rest.post("/v1/models/m:predict", {"instances": [picture(1, 1)]}).json == {
        "predictions": [7.0]
    }


def test_the_defaults_let_through_what_people_send(how):
    rest = Rest(
        fake_server(
            {
                "small": eye((None, 224, 224, 3), "DT_FLOAT"),
                "any": eye((None, None, None, 3), "DT_FLOAT"),
            }
        ),
        how,
    )
    assert rest.post("/v1/models/small:predict", {"instances": [picture(224, 224)] * 64}).json == {
        "predictions": [7.0] * 64
    }
    limits = serving.Config(()).server
    taken = limits.images.max_pixels * (3 + 2 * 3 * 4) + limits.images.max_bytes
    assert (
        taken < limits.max_decoded_bytes < limits.max_queued_bytes
    )  # one of 50 megapixels, for a tensor of floats


def test_what_other_requests_have_unpacked_is_counted_with_this_one():
    server = decoding(eye(), 1 << 30, max_queued_bytes=30_000_000)
    rest, body = Rest(server), {"instances": [picture(1000, 1000)]}
    with contextlib.closing(server.allowance()) as other:
        other.take(25_000_000)
        for path, data, headers in (
            ("/v1/models/m:predict", json.dumps(body), {}),
            (
                "/v1/models/m:predict",
                gzip.compress(b" " * 6_000_000, mtime=0),
                {"Content-Encoding": "gzip"},
            ),
            ("/v1/models/m:predict", npy(np.zeros((1, 1000, 2000, 3), np.uint8)), {}),
        ):
            answer = rest.post(path, data, headers=headers)
            assert_error(answer, 503, "The server is busy: other requests use all ...")
            assert int(answer.headers["Retry-After"]) >= 1 and server.unpacked.held == 25_000_000
        with pytest.raises(serving.ServingError, match="The server is busy"):
            server.predict("m", body)
    assert server.unpacked.held == 0
    assert (
        rest.post("/v1/models/m:predict", body).json == {"predictions": [7.0]}
        and server.unpacked.held == 0
    )


def test_a_body_that_can_never_fit_is_not_told_to_come_again():
    server = decoding(eye(), 1 << 30, max_queued_bytes=5_000_000)
    assert_error(
        Rest(server).post("/v1/models/m:predict", {"instances": [picture(1000, 1000)]}),
        413,
        "Request body unpacks to 11002964 bytes or more, over the limit of 5000000",
    )


def test_what_is_unpacked_is_held_while_the_model_runs_and_no_longer():
    held = []

    def run(name, x):
        held.append(server.unpacked.held)
        raise ValueError("made to fail")

    model = serving.Servable(
        {"serving_default": signature([spec("x", "DT_UINT8", (None, None, None, 3))], [spec("y")])},
        run,
    )
    server = decoding(model, 1 << 30)
    rest, array = Rest(server), np.zeros((1, 100, 100, 3), np.uint8)
    packed = gzip.compress(json.dumps({"instances": array.tolist()}).encode())
    for body, headers in (
        (json.dumps({"instances": [picture(100, 100)]}), {}),
        (npy(array), {}),
        (packed, {"Content-Encoding": "gzip"}),
    ):
        assert rest.post("/v1/models/m:predict", body, headers=headers).status_code == 500
        assert held.pop() >= 30_000 and server.unpacked.held == 0


@pytest.mark.parametrize("verb", ["classify", "regress"])
@pytest.mark.parametrize(
    "context",
    [
        {"a": [1.5] * 1000},
        {"a": "x" * 8000},
        {"a": [""] * 1000},
        dict.fromkeys(map(str, range(900)), 1),
    ],
    ids=["numbers", "text", "texts", "features"],
)
def test_a_context_counts_for_each_of_its_examples(verb, context):
    server = decoding(eye(), 100_000)
    answer = Rest(server).post(f"/v1/models/m:{verb}", {"context": context, "examples": [{}] * 20})
    assert answer.status_code == 413 and "over the limit of 100000" in answer.json["error"]
    with pytest.raises(serving.ServingError, match="over the limit of 100000"):
        getattr(server, verb)("m", {"context": context, "examples": [{}] * 20})
    assert server.unpacked.held == 0


def test_pictures_of_predict_count_in_each_form():
    server = fake_server(
        {"d": FakeDetector()},
        deployments=[{"id": "d", "model": "d"}],
        auth={"keys": [key_entry("t", "k")]},
        server={**NO_POLL, "max_decoded_bytes": 2_000_000},
    )
    rest, data = Rest(server), base64.b64decode(picture(1000, 1000)["b64"])
    array = np.zeros((1000, 1000, 3), np.uint8)
    for body in (
        data,
        json.dumps({"image_type": "base64", "data": picture(1000, 1000)["b64"]}),
        json.dumps({"image_type": "array", "data": array[:600].tolist()}),
        npy(array),
        {"image": (io.BytesIO(data), "a.png")},
    ):
        answer = rest.client.post("/d/predict", data=body, headers=bearer("k"))
        assert answer.status_code == 413 and "over the limit of 2000000" in answer.json["error"], (
            answer.data
        )
        assert server.unpacked.held == 0
    with pytest.raises(serving.ServingError, match="over the limit of 2000000"):
        server.predict_image(data)
    assert (
        rest.client.post(
            "/d/predict", data=base64.b64decode(picture(100, 100)["b64"]), headers=bearer("k")
        ).status_code
        == 200
    )


def test_two_bombs_at_once_take_no_more_than_is_allowed():
    unpacked = serving.UnpackedBytes(lambda: 100)
    first, second = serving.Allowance(unpacked, 80), serving.Allowance(unpacked, 80)
    first.take(60)
    with pytest.raises(serving.ServingError) as busy:
        second.take(60)
    with pytest.raises(serving.ServingError) as large:
        second.take(81)
    assert (
        (busy.value.status, large.value.status) == (503, 413)
        and second.held == 0
        and unpacked.held == 60
    )
    first.take(-20)
    second.take(60)
    first.close(), first.close(), second.close()
    assert unpacked.held == 0


def test_memory_that_runs_out_is_a_server_that_is_busy(monkeypatch, how):
    def fail(*arguments, **options):
        raise MemoryError("Unable to allocate 9. TiB")

    server = decoding(
        serving.Servable(
            {
                "serving_default": signature(
                    [spec("x", "DT_UINT8", (None, None, None, 3))], [spec("y")]
                )
            },
            fail,
        ),
        1 << 30,
    )
    rest, text = (
        Rest(server, how),
        "The server has no memory for this request now: try again in a moment, or with less at once",
    )
    pixels = npy(np.zeros((1, 2, 2, 3), np.uint8))
    packed = io.BytesIO()
    np.savez(packed, x=np.zeros((1, 2, 2, 3), np.uint8))
    bodies = [
        (pixels, {}),
        (packed.getvalue(), {}),
        (json.dumps({"instances": [picture(2, 2)]}), {}),
        (gzip.compress(b'{"instances": [[[[1, 2, 3]]]]}', mtime=0), {"Content-Encoding": "gzip"}),
    ]

    def answers():
        for body, headers in bodies:
            answer = rest.post("/v1/models/m:predict", body, headers=headers)
            assert_error(answer, 503, text)
            assert int(answer.headers["Retry-After"]) >= 1

    answers()
    monkeypatch.setattr(serving.orjson, "loads", fail)
    monkeypatch.setattr("routines.read_npy_head", fail)
    monkeypatch.setattr("PIL.Image.open", fail)
    answers()


@pytest.mark.parametrize(
    "body, plain",
    [
        (b'{"instances": [[1.0]]}', True),
        (b'{"inputs": {"x": "text"}}', True),
        (b"{}", True),
        (b'{"instances": [{"b64": "AAAA"}]}', False),
        (b'{"instances": [{"b\\u0036\\u0034": "AAAA"}]}', False),
        (b'{"instances": [{"\\u0062\\u0036\\u0034": ""}]}', False),
        (b' {"instances": [1]}', False),
        (b"[1]", False),
        (b"", False),
        (b"\x93NUMPY", False),
        (b"PK\3\4", False),
        (b"\x89PNG", False),
        (b"\xef\xbb\xbf{}", False),
    ],
)
def test_plain_json_holds_nothing_packed(body, plain):
    assert serving.is_plain_json(body) is plain


def nested(levels, kind, value="1"):
    opened, closed = {"lists": ("[", "]"), "objects": ('{"a":', "}"), "both": ('[{"a":', "}]")}[
        kind
    ]
    return opened * levels + value + closed * levels


@pytest.mark.parametrize("kind", ["lists", "objects", "both"])
@pytest.mark.parametrize("levels", [200, 400, 960, 990, 10_000])
def test_json_nested_to_any_depth_is_answered(levels, kind):
    """Under a key that nobody asks for it changes nothing, or it is too deep; elsewhere the request is wrong."""
    server = fake_server(
        {
            "m": FakeServable(),
            "i": eye(),
            "s": serving.Servable(
                {"serving_default": signature([spec("x", "DT_STRING")], [spec("y")])}, None
            ),
            "d": FakeDetector(),
        },
        deployments=[{"id": "d", "model": "d"}],
        auth={"keys": [key_entry("t", "k")]},
    )
    server.endpoint("/one")(lambda value: 1)
    rest, deep, numbers = Rest(server), nested(levels, kind), "[" + "1.5," * 600 + "1.5]"
    for form in (
        '{"instances": [[1.0]], "unused": %s}',
        '{"unused": %s, "instances": [[1.0]]}',
        '{"unused": %s, "instances": [[1.0]]} trailing',
    ):
        answer = rest.post("/v1/models/m:predict", form % deep)
        too_deep = {"error": "JSON Parse error: lists and objects are nested too deep"}
        assert answer.json == ({"predictions": [[1.5]]} if answer.status_code == 200 else too_deep)
        assert answer.status_code == 200 or levels > 400
    for value in (deep, nested(levels, kind, '{"b64": "AAAA"}'), nested(levels, kind, numbers)):
        for form in (
            "%s",
            '{"inputs": %s}',
            '{"instances": %s}',
            '{"instances": [%s]}',
            '{"inputs": {"x": %s}}',
            '{"instances": [{"x": %s}]}',
            '{"signature_name": %s}',
            '{"instances": [{"x": 1.0, "y": %s}]}',
            '{"inputs": 1, "instances": %s}',
        ):
            for model in "mis":
                assert rest.post(f"/v1/models/{model}:predict", form % value).status_code == 400, (
                    form,
                    model,
                )
        for form in (
            "%s",
            '{"examples": %s}',
            '{"examples": [%s]}',
            '{"examples": [{"x": %s}]}',
            '{"context": %s}',
        ):
            assert rest.post("/v1/models/m:classify", form % value).status_code == 400, form
        for form in (
            "%s",
            '{"image_type": %s}',
            '{"image_type": "url", "data": %s}',
            '{"image_type": "array", "data": %s}',
            '{"image_type": "array", "data": [[[1, 2, 3]]], "routines": [%s]}',
            '{"image_type": "array", "data": [[[1, 2, 3]]], "routines": [{"name": %s}]}',
            '{"image_type": "array", "data": [[[1, 2, 3]]], "routines": [{"name": "FilterClass", "arguments": {"class_name": %s}}]}',
        ):
            assert rest.post("/d/predict", form % value, headers=bearer("k")).status_code == 400, (
                form
            )
    answer = rest.post("/one", deep, headers=bearer("k"))
    assert answer.json == 1 or levels > 400 and answer.status_code == 400


# --- config and disk ----------------------------------------------------------------------------------------


def written(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text, problem",
    [
        (
            '{"model_config_list": [], "server": {"file_system_poll_wait_seconds": NaN}}',
            "$: expected a number, got NaN",
        ),
        (
            '{"model_config_list": [], "server": {"file_system_poll_wait_seconds": 1e10}}',
            "$.server.file_system_poll_wait_seconds: expected at most 86400, got 10000000000.0",
        ),
        (
            '{"model_config_list": [], "server": {"drain_seconds": 1' + "0" * 400 + "}}",
            "$.server.drain_seconds: expected at most 86400, got 1" + "0" * 39,
        ),
        (
            '{"model_config_list": [], "server": {"threads": 200000}}',
            "$.server.threads: expected at most 1000, got 200000",
        ),
        (
            '{"model_config_list": [{"config": {"name": "m", "base_path": "m", "batching": {"num_batch_threads": 5000}}}]}',
            "$.model_config_list[0].config.batching.num_batch_threads: expected at most 64, got 5000",
        ),
        (
            '{"model_config_list": [], "model_config_list": []}',
            "$: key 'model_config_list' stands twice in one object",
        ),
        (
            '{"model_config_list": [{"config": {"name": "b\\ud800", "base_path": "m"}}]}',
            "$.model_config_list[0].config.name: expected text, got half of a surrogate pair",
        ),
    ],
)
def test_config_that_would_hurt_is_refused(tmp_path, text, problem):
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config(written(tmp_path, text))
    assert raised.value.message == problem


@pytest.mark.parametrize(
    "section, place",
    [
        ({"deployments": [{"label_map": {"1": "\ud83d"}}]}, "$.deployments[0].label_map.1"),
        ({"deployments": [{"notes": {"\udc00": "x"}}]}, "$.deployments[0].notes"),
        ({"\ud83d": 1}, "$"),
        ({"auth": {"s3cr3t": ["\ud83d"]}}, "$.auth"),
    ],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(tmp_path, section, place):
    for source in (section, written(tmp_path, json.dumps(section))):
        with pytest.raises(serving.ConfigError) as raised:
            serving.load_config(source)
        assert raised.value.message == f"{place}: expected text, got half of a surrogate pair"


def test_names_of_files_that_are_no_text_break_no_answer(tmp_path):
    for name in (
        b"m/1/bad\xff.zip",
        b"m/samples/bad\xff.png",
        b"m/samples/a\nb.png",
        b"m/samples/0.png",
    ):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()
    source = {
        "model_config_list": [{"config": {"name": "m", "base_path": str(tmp_path / "m")}}],
        "deployments": [{"id": "d", "model": "m"}],
        "auth": {"keys": [key_entry("site", "k")]},
    }
    server = serving.ModelServer(source, poll_seconds=0)
    assert server.wait(20)
    said = Rest(server).get("/v1/models/m").json["model_version_status"][0]["status"]
    assert r"'bad\udcff.zip' is in it; it is an archive" in said["error_message"]
    shown = Rest(server).get("/deployments", headers=bearer("k")).json["deployments"][0]
    assert shown["samples"] == ["0.png"]


@pytest.mark.parametrize("path", ["a" * 300, "a\0b", "file.txt"])
def test_one_unreadable_base_path_does_not_keep_the_others_from_loading(tmp_path, path):
    (tmp_path / "file.txt").touch()
    half = str(ROOT / "models/half_plus_two")
    source = {
        "model_config_list": [
            {"config": {"name": "bad", "base_path": str(tmp_path / path)}},
            {"config": {"name": "good", "base_path": half}},
        ],
        "server": NO_POLL,
    }
    server = serving.ModelServer(source, load=lambda folder, model: FakeServable())
    assert server.wait(20)
    assert server.readiness()[0].startswith("bad (base_path cannot be read: ")
    assert len(server.readiness()) == 1
    status, body = server.reload()
    assert status == 400 and body["details"][0].startswith(
        "$.model_config_list[0].config.base_path: base_path cannot be read: "
    )


def test_fifo_is_no_config(tmp_path):
    os.mkfifo(tmp_path / "f")
    with pytest.raises(OSError, match="Not a regular file"):
        serving.ModelServer(tmp_path / "f")


def test_what_is_remembered_of_the_config_is_what_was_parsed(tmp_path, monkeypatch):
    path, plain = written(tmp_path, json.dumps(config("a"))), serving.load_config

    def edited_meanwhile(*arguments):
        loaded = plain(*arguments)
        path.write_text(json.dumps(config("b")))
        return loaded

    monkeypatch.setattr(serving, "load_config", edited_meanwhile)
    disk = Disk(a=[1], b=[1])
    server = serving.ModelServer(path, load=disk.load, list_versions=disk.list_versions)
    monkeypatch.setattr(serving, "load_config", plain)
    server.wait(10)
    assert server.reload()[0] == 200 and server.readiness() == [] and default(server, "b") == 1


def test_listing_and_new_models_wait_for_a_reload_in_progress(tmp_path):
    path, slow, loading = (
        written(tmp_path, json.dumps(config("a"))),
        threading.Event(),
        threading.Event(),
    )
    disk = Disk(a=[1], n=[1])

    def load_slowly(folder, model):
        if model.name == "n":
            loading.set()
            slow.wait(10)
        return disk.load(folder, model)

    server = serving.ModelServer(path, load=load_slowly, list_versions=disk.list_versions)
    server.wait(10)
    path.write_text(json.dumps(config("a", "n")))
    reload = threading.Thread(target=server.reload)
    reload.start()
    assert loading.wait(10)
    client, answers = Rest(server), []
    assert [model["name"] for model in json.loads(client.get("/v1/models").data)["models"]] == [
        "a",
        "n",
    ]
    request = threading.Thread(
        target=lambda: answers.append(
            client.post("/v1/models/n:predict", {"inputs": [0.0]}).status_code
        )
    )
    request.start()
    slow.set()
    request.join(10), reload.join(10)
    assert answers == [200]


def test_deployment_of_a_model_that_is_not_there_is_told_by_reload():
    server = fake_server({"m": FakeServable()}, deployments=[{"id": "d", "model": "nope"}])
    status, body = server.reload()
    assert (status, body["details"]) == (500, ["$.deployments[0].model: no model is called 'nope'"])


@pytest.mark.parametrize(
    "mapping, names", [({"a": "b", "b": "a"}, ["a", "b"]), ({"a": "b", "b": "c"}, ["b", "c"])]
)
def test_mapping_renames_all_at_once(tf, tmp_path, mapping, names):
    specs = [
        tf.TensorSpec([None], tf.float32, name="a"),
        tf.TensorSpec([None], tf.float32, name="b"),
    ]
    export(tf, tmp_path / "m", {"serving_default": (lambda a, b: {"y": a - b}, specs)})
    (tmp_path / "m" / "mapping_config.json").write_text(json.dumps({"inputs": mapping}))
    servable = load(tmp_path / "m")
    assert list(servable.signatures["serving_default"].inputs) == names
    inputs = {mapping["a"]: np.array([5], np.float32), mapping["b"]: np.array([2], np.float32)}
    assert servable.run("serving_default", inputs)["y"].tolist() == [3]
    (tmp_path / "m" / "mapping_config.json").write_text(json.dumps({"inputs": {"a": "b"}}))
    with pytest.raises(serving.LoadError, match="gives two inputs the name 'b'"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    "text, told",
    [
        ("[1]", "$: expected object, got array"),
        ('{"inputs": {"x": 5}, "outputs": []}', "$.inputs.x: expected string, got integer 5"),
        ('{"outputs": ["y"]}', "$.outputs: expected object, got array"),
        ("{bad", "$: not valid JSON: Expecting property name"),
    ],
)
def test_wrong_mapping_is_named(tf, tmp_path, text, told):
    export(
        tf, tmp_path, {"serving_default": (lambda x: {"y": x}, [tf.TensorSpec([None], name="x")])}
    )
    (tmp_path / "mapping_config.json").write_text(text)
    with pytest.raises(serving.LoadError) as error:
        load(tmp_path)
    assert error.value.message.startswith(f"mapping_config.json: {told}")


def test_graph_that_takes_one_row_only_is_refused_where_batching_is_asked_for(tf, tmp_path):
    def one_row(x):
        with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(x)[0], 1)]):
            return {"y": tf.identity(x)}

    export(tf, tmp_path / "m", {"serving_default": (one_row, [tf.TensorSpec([None, 2], name="x")])})
    assert run(load(tmp_path / "m"), np.ones((1, 2), np.float32))["y"].shape == (1, 2)
    with pytest.raises(serving.LoadError, match="cannot be batched: it fails for 5 rows together"):
        load(tmp_path / "m", batching=True)


FORKED = """
import os, serving
from conftest import FakeServable, Rest, fake_server
rest = Rest(fake_server({"m": FakeServable()}))
serving.PREPARED_DEVICES.set()  # as a load does, once it has begun TensorFlow
def ask():
    return rest.post("/v1/models/m:predict", {"inputs": [0.0]})
print(ask().status_code, flush=True)
child = os.fork()
if not child:
    print(ask().status_code, ask().json["error"], flush=True)
    try:
        fake_server({"m": FakeServable()})  # another one, made in the child
    except serving.ServingError as error:
        print(error.code, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(ask().status_code)
"""


def test_a_forked_process_says_so():
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n" + FORKED
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    before, forked, anew, after = done.stdout.splitlines()
    assert (before, anew, after) == ("200", "UNAVAILABLE", "200")
    assert forked.startswith("503 Models were loaded before this process was forked, ")


# --- Python -------------------------------------------------------------------------------------------------


def test_arrays_may_stand_wherever_the_body_has_numbers(demo):
    rows = [np.array([1.0]), np.array([3.0])]
    for value in (
        rows,
        np.array(rows),
        [np.float32(1), np.float64(3)],
        [[1], [3.0]],
        np.array([1, 3]),
    ):
        for key in ("instances", "inputs"):
            answer = next(iter(demo.predict("half_plus_two", {key: value}).values()))
            assert np.ravel(answer).tolist() == [2.5, 3.5]
    for value in (np.float32(4), np.array([4.0], np.float32), [np.float64(4)]):
        assert demo.regress(
            "half_plus_two", {"signature_name": "regress", "examples": [{"x": value}]}
        )["results"].tolist() == [4.0]


@pytest.mark.parametrize(
    "body",
    [
        {"instances": np.zeros((0, 3))},
        {"instances": {b"x": 1}},
        {"instances": [None]},
        {"inputs": "\ud800"},
        {"inputs": [np.array(["a"])]},
        {"inputs": {1, 2}},
        {"inputs": np.array([1j])},
        {"inputs": np.array([{}])},
        [1],
        None,
        {"signature_name": "regress", "inputs": ["\ud800"]},
    ],
)
def test_wrong_values_from_python_are_bad_requests(demo, body):
    with pytest.raises(serving.BadRequest):
        demo.predict("half_plus_two", body)


def test_configs_from_python(demo):
    source = json.loads((ROOT / "config.json").read_text())
    assert [model.name for model in serving.load_config(source).models] == [
        model.name for model in demo.config.models
    ]
    assert "$schema" in source
    with pytest.raises(serving.ConfigError):
        serving.ModelServer({1: 2})


# --- over a socket --------------------------------------------------------------------------------------------


def talk(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_broken_and_oversized_bodies_over_a_socket():
    server = fake_server(
        {"m": FakeServable()}, server={**NO_POLL, "max_request_bytes": 2000, "connection_limit": 1}
    )
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    with listening(server) as address:
        port = int(address.rpartition(":")[2])
        assert b"200" in talk(port, head + b'Content-Length: 17\r\n\r\n{"inputs": [0.0]}')
        assert b'{"outputs":[1.0]}' in talk(
            port, head + b'Transfer-Encoding: chunked\r\n\r\n11\r\n{"inputs": [0.0]}\r\n0\r\n\r\n'
        )
        assert b" 400 " in talk(port, head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        doubled = b"GET //v1/models/m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert b'{"error":"Malformed request: GET //v1/models/m"}' in talk(port, doubled)
        assert b" 413 " in talk(port, head + b"Content-Length: 5000\r\n\r\n" + b" " * 5000)
        assert b" 413 " in talk(
            port,
            head
            + b"Transfer-Encoding: chunked\r\n\r\n"
            + b"3e8\r\n"
            + b" " * 1000
            + b"\r\n"
            + b"7d0\r\n"
            + b" " * 2000
            + b"\r\n0\r\n\r\n",
        )
        packed = gzip.compress(b'{"inputs": [0.0]}')
        assert b'{"outputs":[1.0]}' in talk(
            port,
            head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed,
        )
