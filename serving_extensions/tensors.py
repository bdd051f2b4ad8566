"""Large arrays of numbers in JSON, read into NumPy without a Python object for each number.

`read_value` takes the rectangular arrays out of a predict body, reads them with simdjson, has the rest parsed as ever, and puts the
arrays into the parsed value. What is unusual in any way (ragged, null, strings among numbers, escapes, pictures, numbers beyond
64 bits, NaN) is left to the plain path, which knows all rules and texts: `None` says so.
"""

import functools
import math
import secrets
from typing import Any

import numpy as np
import simdjson

from serving import MAX_DIMENSIONS, MAX_LISTS, ServingError, parse_json

LARGE = 512  # bytes of an array's text; below, the plain path is as fast
MOST_STRINGS = 512  # of a body, keys among them
NUMBERS = b"0123456789+-.eE \t\n\r"  # what a skeleton leaves out; simdjson says whether numbers stand in the right places
TOKEN = secrets.token_hex(16)  # stands for an array in the rest; a client cannot know it
TOKEN_BYTES = TOKEN.encode()
SHORT = 256  # bytes of a rest that is parsed once: clients send the same one again and again

KEPT_BYTES = 8 << 20  # of a text; a parser keeps several times the largest that it has read
parsers: list[simdjson.Parser] = []  # those that nobody uses now: as many as were used at once


def read_value(body: bytes) -> Any | None:
    """The JSON value of a body, its large arrays as int64, uint64 or float64; None where the plain path must read it."""
    if b"\\" in body:
        return None
    rest, arrays, start = list[bytes](), list[np.ndarray](), 0
    for _ in range(MOST_STRINGS):  # brackets and numbers up to the next string, and the string
        quote = body.find(b'"', start)
        end = quote if quote >= 0 else len(body)
        if end - start < LARGE:
            rest.append(body[start:end])
        else:
            first, brace = body.find(b"[", start, end), body.find(b"}", start, end)
            last = (
                body.rfind(b"]", start, brace if brace >= 0 else end) + 1
            )  # behind a row's brace are others' brackets
            array = read_array(body[first:last]) if first >= 0 else None
            if array is None or body[last:end].lstrip().startswith(
                b":"
            ):  # a list is no key, its token would be one
                return None
            rest += [body[start:first], b'"%b%d"' % (TOKEN_BYTES, len(arrays)), body[last:end]]
            arrays.append(array)
        if quote < 0:
            break
        start = body.find(b'"', quote + 1) + 1
        string = body[quote:start]
        if not start or string == b'"b64"':
            return None
        rest.append(string)
    else:
        return None
    text = b"".join(rest)
    if not arrays or len(body) > MAX_LISTS and count_lists(text, arrays) > MAX_LISTS:
        return None
    try:
        return put_back((parse_short if len(text) <= SHORT else parse_json)(text), arrays)
    except (ServingError, RecursionError):
        return None


parse_short = functools.lru_cache(64)(parse_json)  # `put_back` leaves what it is given as it is


def count_lists(text: bytes, arrays: list[np.ndarray]) -> int:
    """The lists and objects of a body, whose arrays are no longer in its text."""
    return (
        text.count(b"[")
        + text.count(b"{")
        + sum(math.prod(array.shape[:level]) for array in arrays for level in range(array.ndim))
    )


def put_back(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value with the arrays in the places of their tokens."""
    if isinstance(value, str):
        return arrays[int(value[len(TOKEN) :])] if value.startswith(TOKEN) else value
    if isinstance(value, dict):
        return {key: put_back(item, arrays) for key, item in value.items()}
    return [put_back(item, arrays) for item in value] if isinstance(value, list) else value


def read_array(text: bytes) -> np.ndarray | None:
    """The array that nested JSON lists of numbers spell; None unless they are rectangular, full and of 64-bit numbers."""
    rank = rank_of_row(text)
    shape = [1] * (rank - 1) + [-1] if rank else shape_of(text.translate(None, NUMBERS))
    if shape is None:
        return None
    try:
        parser = parsers.pop()
    except IndexError:
        parser = simdjson.Parser()
    try:
        lists = parser.parse(text)
        flat = read_numbers(lists, is_float=b"." in text or b"e" in text or b"E" in text)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        return None
    finally:
        lists = None  # the parser is free again when nothing holds what it has parsed
        if len(text) <= KEPT_BYTES:
            parsers.append(parser)
    fits = (
        flat.size == math.prod(shape) if not rank else flat.size
    )  # a row without numbers has the skeleton of a row of one
    return flat.reshape(shape) if fits else None


def read_numbers(lists: Any, is_float: bool) -> np.ndarray:
    """All numbers of nested lists: float64 if one of them is written as a float, else int64, or uint64 where they need it."""
    if is_float:
        return np.frombuffer(lists.as_buffer(of_type="d"), np.float64)
    try:
        return np.frombuffer(lists.as_buffer(of_type="i"), np.int64)
    except (ValueError, TypeError, OverflowError):
        return np.frombuffer(lists.as_buffer(of_type="u"), np.uint64)


def rank_of_row(text: bytes) -> int:
    """How many lists are around one row of numbers, [[1, 2]] has 2; 0 where there are more rows, or it takes a closer look."""
    opened, closed = text.rfind(b"[") + 1, text.find(b"]")
    if opened > MAX_DIMENSIONS or len(text) - closed > MAX_DIMENSIONS:
        return 0
    return opened if text[:opened] == b"[" * opened and text[closed:] == b"]" * opened else 0


def shape_of(skeleton: bytes) -> list[int] | None:
    """The shape of nested lists from their brackets and commas alone; None when rows differ.

    From the inside out: lists of one level follow each other with a comma between, up to the first that has a bracket
    behind it instead, and at last the whole must be nothing but repetitions.
    """
    rank = len(skeleton) - len(skeleton.lstrip(b"["))
    unit_end = skeleton.find(b"]") + 1
    if not 0 < rank <= MAX_DIMENSIONS or not unit_end:
        return None
    unit = skeleton[rank - 1 : unit_end]
    shape = [len(unit) - 1]
    for level in range(1, rank):
        behind = skeleton[
            rank - level + len(unit) :: len(unit) + 1
        ]  # the first of these lists, and each that follows
        count = behind.find(b"]") + 1
        if not count:
            return None
        unit = b"[" + b",".join([unit] * count) + b"]"
        shape.append(count)
    return shape[::-1] if unit == skeleton and math.prod(shape[1:]) <= MAX_LISTS // 2 else None
