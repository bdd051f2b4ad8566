"""Large arrays in JSON: the quick way reads what the plain path reads, or leaves it alone; no answer tells which of them it was."""

import base64
import io
import json
import math
import random
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import Rest, fake_server, signature, spec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import serving

DTYPES = (
    "int8",
    "uint8",
    "int16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "half",
    "bfloat16",
    "float",
    "double",
    "bool",
    "string",
    "complex64",
)
INTEGERS = ("0", "-0", "1", "-1", "7", "127", "-128")
LONG_INTEGERS = (
    "128",
    "255",
    "256",
    "-129",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967295",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "18446744073709551615",
)
FLOATS = (
    "0.0",
    "-0.0",
    "1.5",
    "1e5",
    "1E-7",
    "-2.5e+3",
    "0.1",
    "3.4028234e38",
    "3.4028236e38",
    "65504.0",
    "65520.0",
    "1e-400",
    "5e-324",
    "2.2250738585072011e-308",
    "9007199254740993.0",
    "1.7976931348623157e308",
    "0.30000000000000004440892098500626161694526672363281",
)
BEYOND = ("18446744073709551616", "-9223372036854775809", "1e400", "-1e400", "1" * 400)
WRONG = (
    "01",
    "+1",
    ".5",
    "1.",
    "1e",
    "1e+",
    "-",
    "--1",
    "1-1",
    "NaN",
    "Infinity",
    "-Infinity",
    "Inf",
    "null",
    "true",
    "false",
    '"1"',
    "[]",
    "[1]",
    "{}",
    "1 2",
    "",
    "1,",
    ",1",
    "1,,2",
    "/*1*/1",
    "0x10",
    "1_0",
    "\x00",
    "\x0b1",
    "1\u00a0",
    "-01",
    "1.e5",
    "e5",
)
SPACES = ("", "", "", " ", "\n", "\t", "\r\n", "  \n  ")


# --- one array --------------------------------------------------------------------------------------------


def spell(shape, choose, space=lambda: ""):
    """Nested lists of that shape as JSON."""
    if not shape:
        return space() + choose() + space()
    return (
        space()
        + "["
        + ",".join(spell(shape[1:], choose, space) for _ in range(shape[0]))
        + "]"
        + space()
    )


def expect(text):
    """What read_array must find: by Python's own parser, leaf by leaf."""

    def refuse(_):
        raise ValueError

    try:
        value = json.loads(text.decode("latin-1"), parse_constant=refuse)
    except ValueError:
        return None
    shape, first = [], value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    leaves = []

    def collect(item, level):
        if level == len(shape):
            if type(item) not in (int, float):
                raise ValueError
            leaves.append(item)
        elif not isinstance(item, list) or len(item) != shape[level]:
            raise ValueError
        else:
            for part in item:
                collect(part, level + 1)

    try:
        collect(value, 0)
    except ValueError:
        return None
    integers = [leaf for leaf in leaves if type(leaf) is int]
    if (
        not leaves
        or not shape
        or len(shape) > serving.MAX_DIMENSIONS
        or not all(-(2**63) <= leaf < 2**64 for leaf in integers)
        or not all(map(math.isfinite, leaves))
    ):
        return None
    if len(integers) < len(leaves):
        return np.array([float(leaf) for leaf in leaves]).reshape(shape)
    if max(leaves) < 2**63:
        return np.array(leaves, np.int64).reshape(shape)
    return np.array(leaves, np.uint64).reshape(shape) if min(leaves) >= 0 else None


def assert_same(found, wanted):
    assert (found is None) == (wanted is None)
    if found is not None:
        assert (
            found.dtype == wanted.dtype
            and found.shape == wanted.shape
            and found.tobytes() == wanted.tobytes()
        )


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=5)
pools = st.sampled_from(
    [
        INTEGERS,
        INTEGERS + LONG_INTEGERS,
        FLOATS,
        INTEGERS + FLOATS,
        INTEGERS + LONG_INTEGERS + FLOATS,
    ]
)


@given(shapes, pools, st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=300)
def test_rectangular_arrays_are_read_as_pythons_parser_reads_them(shape, pool, chance, spaced):
    text = spell(
        shape, lambda: chance.choice(pool), lambda: chance.choice(SPACES) if spaced else ""
    ).encode()
    assert_same(serving.read_array(text), expect(text))


@given(shapes, st.integers(-(2**66), 2**66) | st.floats(), st.randoms(use_true_random=False))
@settings(max_examples=300)
def test_any_number_among_others(shape, number, chance):
    place = chance.randrange(math.prod(shape))
    texts = iter(
        [json.dumps(number) if index == place else "3" for index in range(math.prod(shape))]
    )
    text = spell(shape, texts.__next__).encode()
    assert_same(serving.read_array(text), expect(text))


@pytest.mark.parametrize("odd", BEYOND + WRONG)
@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3), (2, 2, 2)])
def test_what_is_no_number_of_64_bits_is_left_to_the_plain_path(odd, shape):
    for place in range(math.prod(shape)):
        texts = iter([odd if index == place else "1" for index in range(math.prod(shape))])
        text = spell(shape, texts.__next__).encode()
        assert_same(serving.read_array(text), expect(text))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[[]]",
        "[[],[]]",
        "[[1],[]]",
        "[[],[1]]",
        "[[[]],[[1]]]",
        "[[1,2],[3]]",
        "[1,[2]]",
        "[[1],2]",
        "[[1,2],[3 4]]",
        "[[1,2][3,4]]",
        "[[1,2],,[3,4]]",
        "[1,2,]",
        "[,1,2]",
        "[1,2",
        "1,2]",
        "[[1,2],[3,4]",
        "[[1,2],3,4]]",
        "[[1,2]],[[3,4]]",
        "[1][2]",
        "[1]]",
        "][",
        "[[1,[2],[3]",
        "",
        "1",
        "[ ]",
        "[[1,2],[3,4],]",
        "[[[1],[2]],[[3]]]",
        "[[[1]],[[2],[3]]]",
        "[[[1,2]],[[3],[4]]]",
        "[[[1],[2]],[[3],[4]]]",
        "[[[[1,2],[3,4]]],[[[5,6],[7,8]]]]",
        "[[1,2],[3,4]]]",
        "[[1],[2]]][",
    ],
)
def test_odd_brackets(text):
    assert_same(serving.read_array(text.encode()), expect(text.encode()))


@given(shapes, st.randoms(use_true_random=False))
@settings(max_examples=500)
def test_a_byte_changed_added_or_lost_is_noticed(shape, chance):
    text = bytearray(spell(shape, lambda: chance.choice(INTEGERS + FLOATS)).encode())
    for _ in range(chance.choice((1, 1, 2))):
        mutate(text, chance, b"[],[],0-.eE \n")
    assert_same(serving.read_array(bytes(text)), expect(bytes(text)))


def mutate(text, chance, alphabet):
    place = chance.randrange(len(text) + 1)
    match chance.randrange(4):
        case 0:
            text[place : place + 1] = bytes([chance.choice(alphabet)])
        case 1:
            text[place:place] = bytes([chance.choice(alphabet)])
        case 2:
            del text[place : place + chance.choice((1, 1, 1, 5))]
        case 3:
            text[place:place] = text[place : place + chance.choice((1, 3, 9))]


@given(st.text(alphabet="[],", max_size=24).filter(lambda text: text.count("[") == text.count("]")))
@settings(max_examples=1000)
def test_balanced_brackets_have_the_shape_that_numbers_in_them_show(skeleton):
    wanted = expect(re.sub(r"(?<=[\[,])(?=[\],])", "1", skeleton).encode())
    assert serving.shape_of(skeleton.encode()) == (None if wanted is None else list(wanted.shape))


@given(shapes)
def test_every_shape_is_found_from_its_skeleton(shape):
    assert serving.shape_of(spell(shape, lambda: "").encode()) == shape


@pytest.mark.parametrize("rank", [1, 31, 32, 33, 64, 65, 600, 300_000])
def test_depth_is_never_an_error(rank):
    assert_same(
        serving.read_array(b"[" * rank + b"1" + b"]" * rank),
        np.ones((1,) * rank, np.int64) if rank <= serving.MAX_DIMENSIONS else None,
    )


def test_arrays_outlive_the_next_ones_and_failures():
    first = serving.read_array(b"[[1,2],[3,4]]")
    assert (
        serving.read_array(b"[1, 2 3]") is None
        and serving.read_array(b"[1" + b"0" * 400 + b"]") is None
    )
    second = serving.read_array(b"[5.5,6,7,8]")
    assert first.tolist() == [[1, 2], [3, 4]] and second.tolist() == [5.5, 6, 7, 8]


@pytest.mark.parametrize(
    "around",
    ['{"instances": %s}', '{"signature_name": "a", "inputs": {"x": %s, "y": [1, {"z": []}]}}'],
)
def test_what_is_around_arrays_is_parsed_once_and_handed_out_anew(around):
    """Clients send the same again and again; what one request does with its value, no other sees."""

    def spoil(value):
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, dict | list):
                spoil(item)
        value.clear()

    for first in range(3):
        numbers = list(range(first, first + 400))
        body = (around % json.dumps(numbers)).encode()
        value = serving.read_large_json(body)
        assert json.loads(json.dumps(value, default=np.ndarray.tolist)) == json.loads(body)
        spoil(value)


# --- bodies, over HTTP --------------------------------------------------------------------------------------


def echo(names):
    """Signatures of each dtype under its name, whose outputs are their inputs."""
    signatures = {}
    for dtype in DTYPES:
        specs = [spec(name, f"DT_{dtype.upper()}", shape) for name, shape in names.items()]
        signatures[dtype] = signature(specs, specs)
    return serving.Servable(
        signatures | {"serving_default": signatures["float"]}, lambda name, inputs: inputs
    )


class Ways:
    """A server asked twice, with the quick way and without; `taken` counts the answers that the quick way gave."""

    def __init__(self):
        mixed = [
            spec("image", "DT_UINT8", (None, None, None, 3)),
            spec("n", shape=(None, None, None)),
        ]
        two = [spec("a"), spec("b", "DT_INT64"), spec("c", "DT_UINT8")]
        self.rest = Rest(
            fake_server(
                {
                    "echo": echo({"x": None}),
                    "fixed": echo({"x": (None, 3)}),
                    "pair": echo({"x": None, "y": (None, 2)}),
                    "three": serving.Servable(
                        {"serving_default": signature(two, two)}, lambda name, inputs: inputs
                    ),
                    "pictures": serving.Servable(
                        {"serving_default": signature(mixed, mixed[1:])},
                        lambda name, inputs: {"n": inputs["n"]},
                    ),
                }
            )
        )
        self.taken, self.infer_large = 0, serving.infer_large

    def ask(self, body, model="echo", **headers):
        """The answer, which must be the same both ways."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "infer_large", self.count)
            quick = self.post(body, model, headers)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(serving, "read_large_json", lambda body: None)
            plain = self.post(body, model, headers)
        assert quick == plain
        return quick

    def post(self, body, model, headers):
        response = self.rest.post(
            f"/v1/models/{model}:predict", body, headers={"X-Request-Id": "same", **headers}
        )
        headers = {name: value for name, value in response.headers if name != "Server-Timing"}
        return response.status_code, headers, response.data

    def count(self, value, infer):
        answer = self.infer_large(value, infer)
        self.taken += answer is not None
        return answer


@pytest.fixture(scope="module")
def ways():
    return Ways()


def body_of(values, key="instances", dtype="float", more=""):
    return f'{{"signature_name": "{dtype}", {more}"{key}": {values}}}'.encode()


def many(choose, shape=(40, 3, 5), space=lambda: ""):
    text = spell(shape, choose, space)
    return text + " " * max(0, serving.PLAIN_BYTES - len(text))


@pytest.mark.parametrize("key", ["instances", "inputs"])
@pytest.mark.parametrize("model", ["echo", "fixed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_dtype_answers_the_same_both_ways(ways, dtype, model, key):
    chance = random.Random(f"{dtype} {key}")
    for pool in (("0", "1", "7"), INTEGERS, LONG_INTEGERS, FLOATS, INTEGERS + FLOATS):
        for shape in ((700,), (200, 3), (40, 3, 5), (1, 1, 600), (600, 1, 1)):
            ways.ask(body_of(many(lambda pool=pool: chance.choice(pool), shape), key, dtype), model)


@pytest.mark.parametrize(
    "dtype, pool, kind",
    [
        ("int8", INTEGERS, np.int8),
        ("uint8", ("0", "1", "255"), np.uint8),
        ("int64", (*INTEGERS, "-9223372036854775808", "9223372036854775807"), np.int64),
        ("uint64", ("0", "18446744073709551615"), np.uint64),
        ("int32", INTEGERS, np.int32),
        ("half", (*INTEGERS, "0.1", "2049"), np.float16),
        ("float", INTEGERS + LONG_INTEGERS[:-2], np.float32),
        ("float", FLOATS[:8], np.float32),
        ("double", INTEGERS + FLOATS, np.float64),
    ],
)
@pytest.mark.parametrize("key, answer", [("instances", "predictions"), ("inputs", "outputs")])
def test_the_quick_way_is_taken_and_right(ways, dtype, pool, kind, key, answer):
    chance, taken = random.Random(dtype), ways.taken
    values = many(lambda: chance.choice(pool))
    status, _, data = ways.ask(body_of(values, key, dtype))
    assert status == 200 and ways.taken == taken + 1
    assert np.array_equal(
        np.array(json.loads(data)[answer], object).astype(kind),
        np.array(json.loads(values), object).astype(kind),
    )


def test_several_inputs_by_name(ways):
    taken, numbers = ways.taken, np.arange(900)
    a, b, c = ((numbers % 200).reshape(300, 3).tolist() for _ in range(3))
    status, _, data = ways.ask(json.dumps({"inputs": {"a": a, "b": b, "c": c}}).encode(), "three")
    assert status == 200 and json.loads(data)["outputs"] == {
        "a": np.array(a, float).tolist(),
        "b": b,
        "c": c,
    }
    rows = [
        {"a": list(range(row, row + 200)), "c": [row] * 200, "b": [-row] * 200} for row in range(5)
    ]
    status, _, data = ways.ask(json.dumps({"instances": rows}).encode(), "three")
    assert status == 200 and ways.taken == taken + 2
    assert json.loads(data)["predictions"] == [{name: row[name] for name in "abc"} for row in rows]


BIG, SMALL = json.dumps(list(range(600))), json.dumps([[1.5, 2.5]] * 3)
FLAT, DEEP = json.dumps([0.5] * 600), json.dumps([[[1.0, 2.0]] * 30] * 10)
ROWS_OF_TWO = [json.dumps([number, 1]) for number in range(300)]
JPEG = io.BytesIO()
Image.new("RGB", (4, 4), "red").save(JPEG, "JPEG")
PICTURE = base64.b64encode(JPEG.getvalue()).decode()
TOKEN_LIKE = "0123456789abcdef" * 2 + "0"
BODIES = {
    "first of equal keys": ("echo", f'{{"instances": {BIG}, "instances": {SMALL}}}'),
    "last of equal keys": ("echo", f'{{"instances": {SMALL}, "instances": {BIG}}}'),
    "equal inputs": ("pair", f'{{"inputs": {{"x": {BIG}, "x": {FLAT}, "y": {SMALL}}}}}'),
    "both": ("echo", f'{{"instances": {BIG}, "inputs": {BIG}}}'),
    "escaped key": ("echo", f'{{"inst\\u0061nces": {BIG}}}'),
    "escape elsewhere": ("echo", f'{{"a": "\\n", "instances": {BIG}}}'),
    "array as a key": ("echo", f'{{"instances": {SMALL}, "a": "b", {BIG}: 1}}'),
    "array as the key": ("echo", f'{{"instances": [[1]], "a": 1, "b": "c", {FLAT} : "d"}}'),
    "array alone": ("echo", BIG + " " * 2000),
    "array as signature": ("echo", f'{{"signature_name": {BIG}, "instances": [1]}}'),
    "unused array": ("echo", f'{{"instances": {SMALL}, "unused": {BIG}}}'),
    "unused ragged": ("echo", f'{{"instances": {SMALL}, "unused": [[1], {BIG}]}}'),
    "string like the token": ("echo", f'{{"unused": "{TOKEN_LIKE}", "inputs": {BIG}}}'),
    "token among rows": ("echo", f'{{"inputs": ["{TOKEN_LIKE}", {BIG}]}}'),
    "strings among rows": ("echo", f'{{"instances": ["a", {BIG}, "b"]}}'),
    "rows of strings and arrays": ("echo", f'{{"instances": [{BIG}, "b"]}}'),
    "no comma": ("echo", f'{{"instances" {BIG}}}'),
    "two values": ("echo", f'{{"instances": {BIG} {BIG}}}'),
    "no colon": ("echo", f'{{"instances", {BIG}}}'),
    "value before": ("echo", f'{{"instances": 1 {BIG}}}'),
    "value after": ("echo", f'{{"instances": {BIG} 1}}'),
    "trailing comma": ("echo", f'{{"instances": {BIG},}}'),
    "text after": ("echo", f'{{"instances": {BIG}}} rest'),
    "array after": ("echo", f'{{"instances": {BIG}}} {BIG}'),
    "string after": ("echo", f'{{"instances": {BIG}}} "a" {BIG}'),
    "spaces before": ("echo", f'\r\n\t {{"instances": {BIG}}}'),
    "byte order mark": ("echo", f'\ufeff{{"instances": {BIG}}}'),
    "NUL after": ("echo", f'{{"instances": {BIG}}}\0'),
    "open string": ("echo", f'{{"instances": {BIG}, "a'),
    "open object": ("echo", f'{{"instances": {BIG}'),
    "no name": ("echo", f"{{: {BIG}}}"),
    "NaN beside": ("echo", f'{{"a": NaN, "instances": {BIG}}}'),
    "NaN within": ("echo", f'{{"instances": [NaN, {BIG[1:]}}}'),
    "named": ("echo", f'{{"inputs": {{"x": {BIG}, "z": 1}}}}'),
    "missing input": ("pair", f'{{"inputs": {{"x": {BIG}}}}}'),
    "columns of two": ("pair", f'{{"inputs": {{"y": {SMALL}, "x": {BIG}}}}}'),
    "plain for two": ("pair", f'{{"instances": {BIG}}}'),
    "inputs for two": ("pair", f'{{"inputs": {BIG}}}'),
    "uneven named rows": (
        "echo",
        f'{{"instances": [{{"x": {BIG}}}, {{"x": {FLAT}}}, {{"x": {SMALL}}}]}}',
    ),
    "unknown key in rows": ("echo", f'{{"instances": [{{"x": {BIG}, "q": 1}}]}}'),
    "row and list": ("echo", f'{{"instances": [{{"x": {BIG}}}, {BIG}]}}'),
    "array in a row's list": (
        "echo",
        f'{{"instances": [{{"x": [{BIG}, {FLAT}]}}, {{"x": [{FLAT}, {BIG}]}}]}}',
    ),
    "b64": ("echo", f'{{"inputs": {{"b64": {BIG}}}}}'),
    "no model": ("none", f'{{"instances": {BIG}}}'),
    "no signature": ("echo", f'{{"signature_name": "nope", "instances": {BIG}}}'),
    "unknown dtype": ("echo", body_of(f"[1, {FLAT[1:]}", "inputs", "complex64").decode()),
    "unknown dtype in rows": (
        "echo",
        body_of(f'[{{"x": [1, {FLAT[1:]}}}]', "instances", "complex64").decode(),
    ),
    "unknown dtype among": ("echo", body_of(f'["a", {BIG}]', "inputs", "complex64").decode()),
    "comment": ("echo", f'{{"instances": /* rows */ {BIG}}}'),
    "single quotes": ("echo", f"{{'instances': {BIG}}}"),
    "deep": ("echo", f'{{"inputs": {"[" * 40}{BIG}{"]" * 40}}}'),
    "deeper": ("echo", f'{{"inputs": {"[" * 2000}1{"]" * 2000}}}'),
    "deep and empty": ("echo", f'{{"instances": {"[" * 2000}{"]" * 2000}}}'),
    "deep rows": ("echo", f'{{"instances": {"[" * 2000}1{"]" * 2000}}}'),
    "deep beside": (
        "echo",
        '{"unused": '
        + '[[[[[[[["a",' * 300
        + "1"
        + ',"b"]]]]]]]]' * 180
        + ',"b"]]]]]]]]' * 120
        + f', "inputs": {BIG}}}',
    ),
    "deep beside, few strings": (
        "echo",
        '{"unused": '
        + ("[" * 400 + '"a",') * 8
        + "1"
        + (',"b"' + "]" * 400) * 8
        + f', "inputs": {BIG}}}',
    ),
    "many keys": (
        "echo",
        '{"inputs": {' + ", ".join(f'"k{index}": 1' for index in range(600)) + f', "x": {BIG}}}}}',
    ),
    "empty": ("echo", " " * 3000),
    "empty list": ("echo", f'{{"instances": [{" " * 3000}]}}'),
    "empty rows": ("echo", f'{{"instances": [{",".join(["[]"] * 900)}]}}'),
    "picture and numbers": (
        "pictures",
        f'{{"inputs": {{"image": {{"b64": "{PICTURE}"}}, "n": {DEEP}}}}}',
    ),
    "picture and numbers in rows": (
        "pictures",
        f'{{"instances": [{{"image": {{"b64": "{PICTURE}"}}, "n": {DEEP}}}]}}',
    ),
    "two pictures": (
        "pictures",
        f'{{"inputs": {{"n": {DEEP}, "image": [{{"b64": "{PICTURE}"}}]}}}}',
    ),
    "ragged": ("echo", f'{{"instances": [[1], {", ".join(ROWS_OF_TWO)}]}}'),
    "null": ("echo", f'{{"instances": [null, {", ".join(ROWS_OF_TWO)}]}}'),
    "bytes that are no text": ("echo", f'{{"\udcff": "\udcfe", "instances": {BIG}}}'),
}


@pytest.mark.parametrize("name", BODIES)
def test_odd_bodies_answer_the_same_both_ways(ways, name):
    model, body = BODIES[name]
    body = body.encode("utf-8", "surrogateescape")
    assert len(body) >= serving.PLAIN_BYTES
    ways.ask(body, model)


@pytest.mark.parametrize(
    "name",
    [
        "unused array",
        "columns of two",
        "spaces before",
        "text after",
        "string like the token",
        "array in a row's list",
        "last of equal keys",
    ],
)
def test_bodies_that_are_read_the_quick_way(ways, name):
    model, body = BODIES[name]
    assert serving.read_large_json(body.encode()) is not None
    assert ways.ask(body.encode(), model)[0] in (200, 400)


def test_the_limit_of_lists_is_the_same_both_ways(ways, monkeypatch):
    for module in (serving,):
        monkeypatch.setattr(module, "MAX_LISTS", 1000)
    for shape in (
        (400, 2),
        (499, 2),
        (499, 1),
        (300, 1, 1, 1),
        (330, 1, 2),
        (998, 1),
        (999, 1),
        (3, 333, 1),
        (500, 1, 1),
    ):
        ways.ask(body_of(many(lambda: "1", shape)))
    rows = json.dumps([[1]] * 400)
    status, _, data = ways.ask(
        f'{{"inputs": {{"x": {rows}, "y": {rows}, "z": {rows}}}}}'.encode(), "pair"
    )
    assert status == 413 and b"more than 1000 lists" in data


@given(
    st.sampled_from(["echo", "fixed", "pair"]),
    st.sampled_from(DTYPES),
    st.integers(0, 2**64).map(random.Random),
)
@settings(max_examples=400)
def test_any_body_answers_the_same_both_ways(ways, model, dtype, chance):
    pool = chance.choice(
        (INTEGERS, INTEGERS + LONG_INTEGERS, FLOATS, INTEGERS + FLOATS, ("1", "2", "3"))
    )
    odd = chance.choice(BEYOND + WRONG)
    spaced = chance.random() < 0.3

    def choose():
        return odd if chance.random() < odd_share else chance.choice(pool)

    def space():
        return chance.choice(SPACES) if spaced else ""

    odd_share = chance.choice((0, 0, 0.001))
    values = [
        many(choose, chance.choice(((600,), (300, 2), (30, 2, 10), (2, 2, 2, 90))), space)
        for _ in range(2)
    ]
    key = chance.choice(("instances", "inputs"))
    if chance.random() < 0.3:
        values[0] = f'{{"x": {values[0]}, "y": {values[1]}}}'
        values[0] = f"[{values[0]}, {values[0]}]" if key == "instances" else values[0]
    body = bytearray(
        body_of(
            values[0],
            key,
            dtype,
            chance.choice(("", '"unused": "text", ', f'"unused": {values[1]}, ')),
        )
    )
    for _ in range(chance.choice((0, 0, 1, 1, 2))):
        mutate(body, chance, b'[]{},:"0-.eN \\')
    ways.ask(bytes(body), model)


# --- parsers ----------------------------------------------------------------------------------------------


def test_threads_share_parsers_and_each_reads_its_own(monkeypatch):
    monkeypatch.setattr(serving, "parsers", [])
    texts = [
        json.dumps([[number + place / 8 for place in range(500)]] * 20).encode()
        for number in range(32)
    ]

    def read(number):
        for _ in range(5):
            np.testing.assert_array_equal(
                serving.read_array(texts[number]), json.loads(texts[number])
            )

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        for number in range(4):
            one.submit(read, number).result()
            another.submit(read, number).result()
    assert len(serving.parsers) == 1
    with ThreadPoolExecutor(32) as many:
        list(many.map(read, range(32)))
    assert 1 <= len(serving.parsers) <= 32
    for wrong in (b"[[1, 2], [3, ]]", b"[1, 2e]"):
        before = len(serving.parsers)
        assert serving.read_array(wrong) is None and len(serving.parsers) == before


def test_a_parser_that_has_read_a_huge_text_is_not_kept(monkeypatch):
    monkeypatch.setattr(serving, "parsers", [])
    monkeypatch.setattr(serving, "KEPT_BYTES", 1000)
    assert (
        serving.read_array(json.dumps([1] * 500).encode()).shape == (500,) and not serving.parsers
    )
    assert (
        serving.read_array(json.dumps([1] * 300).encode()).shape == (300,)
        and len(serving.parsers) == 1
    )
