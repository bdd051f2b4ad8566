"""JSON to tensors and back: against TensorFlow Serving's table, NumPy, Python's json, and each path against the other."""

import json
import math
import shutil
import subprocess
import sys
import warnings

import ml_dtypes
import numpy as np
import orjson
import pytest
from conftest import ROOT, spec
from hypothesis import given, settings
from hypothesis import strategies as st

import serving

NUMBERS = [
    "DT_FLOAT",
    "DT_DOUBLE",
    "DT_HALF",
    "DT_BFLOAT16",
    "DT_INT8",
    "DT_INT16",
    "DT_INT32",
    "DT_INT64",
    "DT_UINT8",
    "DT_UINT16",
    "DT_UINT32",
    "DT_UINT64",
]


def read(value, dtype, quick=True):
    return (
        serving.decode_tensor(value, spec("x", dtype))
        if quick
        else serving.exact_tensor(value, spec("x", dtype))
    )


# --- the JSON dialect -------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=30,
)


@given(json_values, st.sampled_from([None, 2]), st.booleans())
@settings(max_examples=300)
def test_both_parsers_equal_pythons(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "replace")
    assert serving.parse_dialect(text) == json.loads(text)
    assert serving.parse_json(text) == json.loads(text)


@given(
    st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0123456789.eE+-\\nulltrfasNIi ', max_size=60).map(str.encode)
)
@settings(max_examples=1000)
def test_any_bytes_parse_or_are_a_bad_request(body):
    try:
        ours = serving.parse_json(body)
    except serving.BadRequest as error:
        assert error.message.startswith("JSON Parse error: ")
        with pytest.raises(ValueError):
            orjson.loads(body)
    else:
        try:
            theirs = orjson.loads(body)
        except ValueError:
            return
        assert ours == theirs or b'"' in body  # a repeated key


@pytest.mark.parametrize(
    "text, value",
    [
        (b"[NaN, -NaN]", "[nan, nan]"),
        (b"[Inf, -Inf, Infinity, -Infinity]", "[inf, -inf, inf, -inf]"),
        (b"[-0, -0.0, 0e0]", "[0, -0.0, 0.0]"),
        (b"[1e-400]", "[0.0]"),
        (
            b"[18446744073709551615, 18446744073709551616]",
            "[18446744073709551615, 1.8446744073709552e+19]",
        ),
        (
            b"[-9223372036854775808, -9223372036854775809]",
            "[-9223372036854775808, -9.223372036854776e+18]",
        ),
        (b'"\\u0041\\ud83d\\ude00\\u0000"', repr("A\U0001f600\0")),
        (b'"\xff"', repr("\udcff")),
        (b'["NaN", "-Inf \\" -NaN", -NaN, "Inf"]', repr(["NaN", '-Inf " -NaN', math.nan, "Inf"])),
        (b"[1] trailing", "[1]"),
        (b'[1] Inf "' + b'\\"' * 2_000_000, "[1]"),  # would take hours, looked at from each quote
        (b"\xef\xbb\xbf[1]", "[1]"),
        (b'{"a": 1, "a": 2}', "{'a': 1}"),
    ],
)
def test_rapidjson_dialect(text, value):
    assert repr(serving.parse_json(text)) == value


def test_first_of_equal_keys_wins_also_when_escaped():
    for body in (
        b'{"instances": [1], "instances": [2]}',
        b'{"instances": [1], "inst\\u0061nces": [2]}',
    ):
        assert serving.parse_json(body) == {"instances": [1]}
    assert serving.parse_json(b'{"inputs": {"x": 1, "x": 2}}') == {"inputs": {"x": 1}}


@pytest.mark.parametrize("body", [b'"1e309", 1e309', b'NaN, "\xff", 1e309', b"1" * 310])
def test_number_too_big_is_told_with_its_own_place(body):
    with pytest.raises(serving.BadRequest) as raised:
        serving.parse_json(b"[" + body + b"]")
    offset = 1 + body.rfind(b" ") + 1
    text = f"JSON Parse error: Number too big to be stored in double. at offset: {offset}"
    assert raised.value.message == text


@pytest.mark.parametrize("body", [b'["\xc3\xa9", x]', b'\xef\xbb\xbf["\xff\xff\xff", x]'])
def test_offset_of_an_error_counts_bytes(body):
    with pytest.raises(serving.BadRequest, match=r"Invalid value\. at offset: (7|8)$"):
        serving.parse_json(body)


@pytest.mark.parametrize("body", [b"1.", b"-1e", b"1.5e+", b"01x.", b"[01]", b"[.5]", b"[+1]"])
def test_half_a_number_is_no_number(body):
    try:
        value = serving.parse_json(body)
    except serving.BadRequest as error:
        assert error.message.startswith("JSON Parse error: ")
    else:  # RapidJSON stops behind a number that is whole, whatever follows
        assert (body, value) == (b"01x.", 0)


def test_first_of_equal_objects_is_taken_whole_and_rows_keep_the_last():
    body = b'{"inputs": {"x": {"a": 1, "a": 2}, "x": 3}, "inputs": 4}'
    assert serving.parse_json(body) == {"inputs": {"x": {"a": 2}}}


@pytest.mark.parametrize("value", [b"1", b"NaN", b'"\xff"', b"x", b""])
@pytest.mark.parametrize("levels", [1000, 1100, 100_000])
def test_json_too_deep_for_the_parsers_is_a_bad_request(levels, value):
    body = b'{"unused": ' + b"[" * levels + value + b"]" * levels + b', "inputs": 1}'
    try:
        assert serving.parse_json(body)["inputs"] == 1
    except serving.BadRequest as error:
        assert error.message == "JSON Parse error: lists and objects are nested too deep"


KEYS = st.sampled_from(["inputs", "instances", "a/b", 'q"', "\\", "é", ""])
SPELLINGS = {"a/b": '"a\\/b"', "inputs": '"in\\u0070uts"', "é": '"\\u00e9"', "": '""'}
pairs = st.lists(
    st.tuples(KEYS, st.booleans(), st.integers(0, 9) | st.just('a"b": \\')), max_size=4
)


def spell(members):
    """An object of JSON; of a member's name there are two spellings, and a value may be one too."""
    written = []
    for key, escaped, value in members:
        name = SPELLINGS.get(key, json.dumps(key)) if escaped else json.dumps(key)
        text = spell(value) if isinstance(value, list) else json.dumps(value)
        written.append(f"{name}: {text}")
    return "{" + ", ".join(written) + "}"


def first_of(members):
    found = {}
    for key, _, value in members:
        found.setdefault(key, value)
    return found


@given(st.lists(st.tuples(KEYS, st.booleans(), st.integers(0, 9) | pairs), max_size=5), pairs)
@settings(max_examples=500)
def test_first_of_equal_keys_wins_at_the_top_and_in_inputs_and_the_last_elsewhere(top, more):
    members = [*top, ("rows", False, more)]
    expected = first_of(members)
    for key, value in expected.items():
        if isinstance(value, list):
            last = {name: item for name, _, item in value}
            expected[key] = first_of(value) if key == "inputs" else last
    assert serving.parse_json(spell(members).encode()) == expected
    assert serving.parse_json(spell(members).encode() + b" trailing") == expected


def test_one_file_alone_reads_the_dialect(tmp_path):
    shutil.copy(ROOT / "serving.py", tmp_path)
    code = "import serving; print(serving.parse_json(b'[NaN, -Inf] x'))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[nan, -inf]\n", done.stderr


# --- values to tensors ------------------------------------------------------------------------------------


def nested(elements):
    """Rectangular nested lists, ragged now and then."""
    shapes = st.lists(st.integers(0, 3), max_size=3)
    rectangular = shapes.flatmap(
        lambda shape: st.lists(elements, min_size=math.prod(shape), max_size=math.prod(shape)).map(
            lambda flat: np.array([*flat, None], object)[:-1].reshape(shape).tolist()
        )
    )
    return rectangular | st.recursive(
        elements, lambda children: st.lists(children, max_size=3), max_leaves=8
    )


scalars = (
    st.integers(-300, 300)
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.booleans()
    | st.none()
    | st.text(max_size=2)
    | st.sampled_from([0.5, 1.0, 2**53 + 1, 127, 128, 255, 256, -1, 65504.0, 65536.0, 1e39])
)


@given(
    nested(scalars) | nested(st.integers(-300, 300)) | nested(st.floats()),
    st.sampled_from([*NUMBERS, "DT_BOOL"]),
)
@settings(max_examples=1000)
def test_quick_path_equals_exact_path_or_leaves_it_alone(value, dtype):
    if not isinstance(value, list):
        return
    quick = serving.quick_tensor(value, serving.NUMPY_DTYPES[dtype])
    try:
        exact = serving.exact_tensor(value, spec("x", dtype))
    except serving.ServingError:
        assert quick is None
        return
    if quick is not None:
        assert quick.dtype == exact.dtype and quick.shape == exact.shape
        assert quick.tobytes() == exact.tobytes()


@pytest.mark.parametrize("dtype", [name for name in NUMBERS if "INT" in name])
@pytest.mark.parametrize("quick", [True, False])
def test_integers_are_exact_to_their_limits_and_refused_beyond(dtype, quick):
    limits = np.iinfo(serving.NUMPY_DTYPES[dtype])
    array = read([int(limits.min), int(limits.max)], dtype, quick)
    assert array.dtype == serving.NUMPY_DTYPES[dtype] and array.tolist() == [limits.min, limits.max]
    for value in (int(limits.min) - 1, int(limits.max) + 1, 1.0, 1e2):
        with pytest.raises(serving.BadRequest):
            read([0, value], dtype, quick)


@pytest.mark.parametrize("quick", [True, False])
def test_floats_beyond_float32_are_infinite_and_tiny_ones_zero(quick):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read([1e39, -1e39, 1e-50, 1, 2**63], "DT_FLOAT", quick).tolist() == [
            math.inf,
            -math.inf,
            0.0,
            1.0,
            2.0**63,
        ]
        assert read([1e6], "DT_HALF", quick).tolist() == [math.inf]


@pytest.mark.parametrize(
    "value, shape", [([], (0,)), ([[], []], (2, 0)), (3, ()), ([[[1]]], (1, 1, 1))]
)
@pytest.mark.parametrize("dtype", ["DT_FLOAT", "DT_INT32"])
def test_shapes(value, shape, dtype):
    assert read(value, dtype).shape == read(value, dtype, quick=False).shape == shape


def test_strings_are_their_bytes_and_base64_mixes_with_them():
    array = read(["é", {"b64": "AP8="}, ""], "DT_STRING")
    assert array.dtype == object and array.tolist() == ["é".encode(), b"\x00\xff", b""]


@pytest.mark.parametrize(
    "text, value",
    [
        ("", b""),
        ("AA", b"\0"),
        ("AA==", b"\0"),
        ("AA..", b"\0"),
        (" A\nA = =", b"\0"),
        ("AAA", b"\0\0"),
    ],
)
def test_base64_as_abseil_reads_it(text, value):
    assert serving.decode_b64({"b64": text}) == value


@pytest.mark.parametrize("text", ["A", "AA=", "AA===", "A=A=", "A-_A", "é", "AAAAA", "=", "AAAA="])
def test_base64_that_abseil_refuses(text):
    with pytest.raises(serving.BadRequest, match="Unable to base64 decode"):
        serving.decode_b64({"b64": text})


class Tensor:
    """What makes an array of itself, as a tensor of TensorFlow or a series of pandas does."""

    def __array__(self, dtype=None, copy=None):
        return np.array([0.0, 1.0], dtype)


@pytest.mark.parametrize("value", [Tensor(), (0.0, 1.0), range(2), (0, np.float32(1))])
@pytest.mark.parametrize("body", ["inputs", "named", "instances", "rows", "tuple of rows"])
def test_values_of_python_are_taken_as_arrays(value, body):
    single = serving.Signature({"x": spec("x", shape=None)}, {})
    expected = np.float32([0, 1])
    if body in ("inputs", "named"):
        found = serving.decode_columns(single, value if body == "inputs" else {"x": value})["x"]
    elif body == "instances":
        found = serving.decode_rows(single, value)["x"]
    else:
        rows = [value, value] if body == "rows" else ({"x": value}, {"x": value})
        found, expected = serving.decode_rows(single, rows)["x"], np.float32([[0, 1], [0, 1]])
    np.testing.assert_array_equal(found, expected, strict=True)


def test_arrays_from_python_keep_their_memory():
    array = np.ones((2, 3), np.float32)
    assert read(array, "DT_FLOAT") is array
    assert read(array.astype(int), "DT_FLOAT").dtype == np.float32
    with pytest.raises(serving.BadRequest):
        read(np.array([0.5]), "DT_INT32")
    with pytest.raises(serving.BadRequest):
        read(np.array([True]), "DT_FLOAT")
    assert read(np.array(["a", "b"]), "DT_STRING").tolist() == [b"a", b"b"]


# --- tensors to JSON --------------------------------------------------------------------------------------


def bits(array):
    return array.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[array.dtype.itemsize]).tolist()


@given(
    st.sampled_from(
        [
            (np.float32, np.uint32),
            (np.float64, np.uint64),
            (np.float16, np.uint16),
            (ml_dtypes.bfloat16, np.uint16),
        ]
    ),
    st.data(),
)
@settings(max_examples=600)
def test_floats_read_back_to_the_same_bits(types, data):
    dtype, unsigned = types
    array = np.array(
        data.draw(st.lists(st.integers(0, np.iinfo(unsigned).max), min_size=1, max_size=20)),
        unsigned,
    ).view(dtype)
    text = serving.encode_json({"predictions": array})
    back = np.array([float(value) for value in serving.parse_dialect(text)["predictions"]]).astype(
        dtype
    )
    finite = ~np.isnan(array.astype(np.float64))
    assert (
        bits(back[finite]) == bits(array[finite])
        and np.isnan(back[~finite].astype(np.float64)).all()
    )


@pytest.mark.parametrize(
    "array, text",
    [
        (np.array([1, 0.1, 1 / 3, -0.0, 1e20], np.float32), b"[1.0,0.1,0.33333334,-0.0,1e+20]"),
        (np.array([math.pi]), b"[3.141592653589793]"),
        (np.array([[1, 2]], np.float32).T, b"[[1.0],[2.0]]"),
        (np.zeros((2, 0), np.float32), b"[[],[]]"),
        (np.array(6, np.float32), b"6.0"),
        (np.array(math.nan, np.float32), b"NaN"),
        (np.array([2**63], np.uint64), b"[9223372036854775808]"),
        (np.array([-5], np.int8), b"[-5]"),
        (np.array([True]), b"[true]"),
        (np.array([b'a"\\\n\x01\x7f\xff'], object), b'["a\\"\\\\\\n\\u0001\x7f\xff"]'),
        (np.array(b"s", object), b'"s"'),
        (np.array([[b"null", b"x"]], object), b'[["null","x"]]'),
    ],
)
def test_spelling(array, text):
    assert serving.encode_json(array) == text


def test_nan_stands_at_its_place_among_others():
    answer = [
        {"a": np.float32("nan"), "b": np.array([1, math.inf], np.float64), "c": b"null"},
        {"a": np.float32(2), "b": np.array([]), "c": b""},
    ]
    assert (
        serving.encode_json(answer)
        == b'[{"a":NaN,"b":[1.0,Infinity],"c":"null"},{"a":2.0,"b":[],"c":""}]'
    )


def test_error_text_of_a_large_value_is_cut():
    with pytest.raises(serving.BadRequest) as raised:
        read([["x" * 1000] * 1000], "DT_FLOAT")
    assert len(raised.value.message) < 400
