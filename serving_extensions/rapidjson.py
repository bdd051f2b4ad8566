"""JSON as RapidJSON 1.1 reads it for TensorFlow Serving: to the letter of its dialect and error texts.

serving.py comes here when the quick parsers cannot say what RapidJSON would: wrong JSON, NaN and Infinity, long
numbers, equal keys, bytes that are not UTF-8.
"""

import json
import re
from typing import Any

JSON_SPACE = re.compile(r"[ \t\r\n]*")
JSON_WORD = re.compile("null|true|false|-?NaN|-?Inf(?:inity)?")
JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]*)?([eE][+-]?[0-9]*)?")
JSON_NAMES = {"null": None, "true": True, "false": False}
# Surrogates that no byte outside UTF-8 stands for (those are U+DC80..U+DCFF, Python's surrogateescape).
LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")
STRING_ERRORS = {
    "Unterminated": "Missing a closing quotation mark in string.",
    "Invalid \\uXXXX": "Incorrect hex digit after \\u escape in string.",
    "Invalid": "Invalid escape character in string.",
}


def json_error(problem: str, text: str = "", position: int | None = None) -> ValueError:
    offset = (
        ""
        if position is None
        else f" at offset: {len(text[:position].encode('utf-8', 'surrogateescape'))}"
    )
    return ValueError(f"JSON Parse error: {problem}{offset}")


def parse_exact(body: bytes) -> Any:
    """Parse JSON one token at a time, to any depth; raises ValueError with RapidJSON's text.

    Strict JSON plus NaN, Inf and Infinity; a byte order mark is skipped, text after the root ignored; the
    first of equal keys wins where it matters; bytes that are not UTF-8 come through as surrogate escapes.
    """
    text = body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    position = skip_space(text, 0)
    if position == len(text):
        raise (
            json_error("The document is empty.", text, position)
            if text
            else json_error("The document is empty")
        )
    containers: list[
        tuple[Any, str | None]
    ] = []  # what we are inside of, each with its own key in its parent
    key: str | None = None
    while True:
        opening = text[position : position + 1]
        value: Any = {} if opening == "{" else []
        if opening not in ("{", "["):
            value, position = read_scalar(text, position)
        else:
            position = skip_space(text, position + 1)
            if text[position : position + 1] != ("}" if opening == "{" else "]"):
                containers.append((value, key))
                key, position = read_key(text, position) if opening == "{" else (None, position)
                continue
            position += 1
        while containers:  # put the finished value into its container; close those that end here
            container, own_key = containers[-1]
            if isinstance(container, list):
                container.append(value)
            elif (
                len(containers) > 2
            ):  # in rows and examples the last of equal keys wins, as orjson has it
                container[key] = value
            else:  # at the top and in `inputs` the first, as RapidJSON finds it
                container.setdefault(key, value)
            more, position = read_separator(text, position, container)
            if more:
                key, position = (
                    read_key(text, position) if isinstance(container, dict) else (None, position)
                )
                break
            containers.pop()
            value, key = container, own_key
        else:
            return value


def skip_space(text: str, position: int) -> int:
    match = JSON_SPACE.match(text, position)
    return match.end() if match else position


def read_separator(text: str, position: int, container: Any) -> tuple[bool, int]:
    """Step over a comma (True: more follows) or the container's closing bracket (False)."""
    position = skip_space(text, position)
    mark, closing = text[position : position + 1], "]" if isinstance(container, list) else "}"
    if mark == ",":
        return True, skip_space(text, position + 1)
    if mark != closing:
        what = "an array element" if closing == "]" else "an object member"
        raise json_error(f"Missing a comma or '{closing}' after {what}.", text, position)
    return False, position + 1


def read_key(text: str, position: int) -> tuple[str, int]:
    """Read an object member's name and its colon; returns the name and where its value starts."""
    if text[position : position + 1] != '"':
        raise json_error("Missing a name for object member.", text, position)
    key, position = read_scalar(text, position)
    position = skip_space(text, position)
    if text[position : position + 1] != ":":
        raise json_error("Missing a colon after a name of object member.", text, position)
    return key, skip_space(text, position + 1)


def read_scalar(text: str, position: int) -> tuple[Any, int]:
    """Read a string, number or word; integers outside [-2^63, 2^64-1] become floats."""
    if text[position : position + 1] == '"':
        return read_string(text, position)
    if word := JSON_WORD.match(text, position):
        return JSON_NAMES[word[0]] if word[0] in JSON_NAMES else float(word[0]), word.end()
    number = JSON_NUMBER.match(text, position)
    if not number:
        raise json_error("Invalid value.", text, position)
    fraction, exponent = number.groups()
    if fraction == ".":
        raise json_error("Miss fraction part in number.", text, number.end())
    if exponent and not exponent[-1].isdigit():
        raise json_error("Miss exponent in number.", text, number.end())
    if (
        not fraction
        and not exponent
        and len(number[0]) <= 20
        and -(2**63) <= int(number[0]) < 2**64
    ):
        return int(number[0]), number.end()
    if abs(value := float(number[0])) == float("inf"):
        raise json_error("Number too big to be stored in double.", text, position)
    return value, number.end()


def read_string(text: str, position: int) -> tuple[str, int]:
    try:
        value, end = json.decoder.scanstring(  # type: ignore[attr-defined]
            text, position + 1, True
        )
    except json.JSONDecodeError as error:
        problem = next(
            problem for start, problem in STRING_ERRORS.items() if error.msg.startswith(start)
        )
        raise json_error(problem, text, error.pos) from None
    raw_bytes = re.compile("[\udc80-\udcff]")
    if LONE_SURROGATE.search(value) or len(raw_bytes.findall(value)) != len(
        raw_bytes.findall(text, position, end)
    ):
        raise json_error("The surrogate pair in string is invalid.", text, position)
    return value, end
