"""Turn a handler's result into an answer: JSON, bytes with a content type, or a stream; with a
status and headers, as in Flask's views.

Works on any framework's results without importing it: a tensor is what has `.numpy()`.
"""

import asyncio
import contextlib
import dataclasses
import datetime
import decimal
import enum
import io
import itertools
import json
import math
import re
import sys
import types
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import numpy as np
from werkzeug.wrappers import Response

from .core import encode_json, errors_only, explain
from .handlers import HandlerError, outside_loops

MAX_LEVELS = 200  # of nested lists and objects: well below where encoders fail
CONTENT_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:; ?[\w-]+=[\w.+\"-]+)*", re.ASCII)
OCTETS = "application/octet-stream"
BYTES = (bytes, bytearray, memoryview)
GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)


def sniff(data: bytes) -> str:
    """The content type, by the first bytes."""
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12], OCTETS)
    starts = {
        b"\x89PNG\r\n\x1a\n": "image/png",
        b"\xff\xd8\xff": "image/jpeg",
        b"GIF87a": "image/gif",
        b"GIF89a": "image/gif",
    }
    return next((kind for start, kind in starts.items() if data.startswith(start)), OCTETS)


@dataclass(frozen=True)
class Answer:
    """A handler's answer: a JSON `value`, or `data` or a `stream` of a content type."""

    value: Any = None
    data: bytes | None = None
    stream: Iterator[bytes] | None = None
    content_type: str = ""
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


def to_answer(result: Any) -> Answer:
    """Read a handler's result as Flask reads a view's: a value, `(value, status)`, `(value,
    status, headers)`, a Response, a generator; see `to_content` for values.

    Raises HandlerError, with the place in the result.
    """
    with errors_only("the handler's result"):
        if isinstance(result, Response):
            return read_response(result)
        status, headers = 200, tuple[tuple[str, str], ...]()
        if is_with_status(result):
            status, headers = int(result[1]), read_headers(result[2:])
            result = result[0]
        kind = ""
        if is_with_type(result, (*BYTES, str, *GENERATORS)) and (
            isinstance(result[0], (*GENERATORS, *BYTES)) or status != 200
        ):
            result, kind = result
        if isinstance(result, types.AsyncGeneratorType):
            result = run_stream(result)
        if isinstance(result, types.GeneratorType):
            stream, told = open_stream(result)
            return Answer(None, None, stream, kind or told, status, headers)
        if kind:
            data = result.encode() if isinstance(result, str) else bytes(result)
            return Answer(None, data, None, kind, status, headers)
    value, kind = to_content(result)
    if isinstance(value, bytes):
        return Answer(None, value, None, kind, status, headers)
    return Answer(value, None, None, kind, status, headers)


def is_with_status(result: Any) -> bool:
    """Whether a result is `(value, status)` or `(value, status, headers)`."""
    return (
        isinstance(result, tuple)
        and len(result) in (2, 3)
        and type(result[1]) in (int, HTTPStatus)  # a NumPy integer is a class found by argmax
        and 200 <= int(result[1]) < 600
        and (len(result) == 2 or isinstance(result[2], (Mapping, list)) or are_pairs(result[2]))
    )


def are_pairs(value: Any) -> bool:
    """Whether a value is a tuple of headers, not a part of the result."""
    return (
        isinstance(value, tuple)
        and value != ()
        and all(
            isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)
            for pair in value
        )
    )


def is_with_type(result: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a result is `(data, content type)`."""
    return (
        isinstance(result, tuple)
        and len(result) == 2
        and isinstance(result[0], kinds)
        and isinstance(result[1], str)
        and CONTENT_TYPE.fullmatch(result[1]) is not None
    )


# Headers of the message itself, which the server writes.
MESSAGE_HEADERS = {
    "content-type",
    "content-length",
    "transfer-encoding",
    "connection",
    "date",
    "server",
    "x-request-id",
}


def read_headers(given: Any) -> tuple[tuple[str, str], ...]:
    """A handler's headers as pairs. Raises HandlerError for an invalid header."""
    if not given:
        return ()
    pairs = given[0].items() if isinstance(given[0], Mapping) else given[0]
    found = []
    for name, value in pairs:
        name, value = str(name), str(value)
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or re.search("[\0\r\n]", value):
            raise HandlerError(f"headers: {name[:40]!r} is no header, or its value has line breaks")
        try:
            value.encode("latin-1")
        except UnicodeEncodeError:
            raise HandlerError(f"headers: {name} has characters beyond Latin-1") from None
        if name.lower() not in MESSAGE_HEADERS:
            found.append((name, value))
    return tuple(found)


def read_response(response: Response) -> Answer:
    """Read a Response of Flask or Werkzeug; a streamed one stays so."""
    headers = read_headers([list(response.headers.items())])
    kind, status = response.content_type or OCTETS, response.status_code
    if response.is_streamed:
        return Answer(None, None, response.iter_encoded(), kind, status, headers)
    return Answer(None, response.get_data(), None, kind, status, headers)


def run_stream(parts: AsyncGenerator[Any, None]) -> Iterator[Any]:
    """An asynchronous generator as a plain one, run by one task in an event loop of its own.

    The loop runs only while a part is awaited. At the end, or if the reader stops, the tasks that
    are left are cancelled, as `asyncio.run` does.
    """
    ready, asked = asyncio.Queue[Any](), asyncio.Queue[None]()

    async def hand_on() -> None:
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    ready.put_nowait((part,))
                    await asked.get()
        finally:
            ready.put_nowait(())

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        task = loop.create_task(hand_on())
        try:
            while part := outside_loops(loop.run_until_complete, ready.get()):
                yield part[0]
                asked.put_nowait(None)
            outside_loops(loop.run_until_complete, task)
        finally:
            outside_loops(loop.run_until_complete, end_tasks())


async def end_tasks() -> None:
    """End the other tasks of the running loop, including the generator's."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def open_stream(parts: Iterator[Any]) -> tuple[Iterator[bytes], str]:
    """The bytes that a generator yields, and the content type of its first part: text, bytes, or
    other values, each as a line of JSON (application/x-ndjson).

    The first part is made now, so that an early failure is an error and not a broken stream.
    """
    try:
        first = next(parts)
    except StopIteration:
        return iter(()), "text/plain; charset=utf-8"
    kind = "application/x-ndjson"
    if isinstance(first, str):
        kind = "text/plain; charset=utf-8"
    if isinstance(first, BYTES):
        kind = sniff(bytes(first[:12]))
    return map(write_part, itertools.chain([first], parts)), kind


def write_part(part: Any) -> bytes:
    if isinstance(part, BYTES):
        return bytes(part)
    if isinstance(part, str):
        return part.encode()
    value, _ = to_content(part)
    return value if isinstance(value, bytes) else encode_json(value) + b"\n"


@errors_only("the handler's result")  # its own classes may raise anything
def to_content(result: Any) -> tuple[Any, str]:
    """A handler's result as (value, "application/json") or as (bytes, content type).

    Arrays of numbers stay arrays, for the encoder to write. Raises HandlerError, with the place in
    the result.
    """
    if is_with_type(result, BYTES):
        return bytes(result[0]), result[1]
    if isinstance(result, BYTES):
        return bytes(result), sniff(bytes(result[:12]))
    image = sys.modules.get("PIL.Image")  # a PIL image implies the import
    if image is not None and isinstance(result, image.Image):
        return write_png(result), "image/png"
    try:
        if has_numpy(result):
            result = to_numpy(result)
            if isinstance(result, bytes) and sniff(result) != OCTETS:
                # of tf.io.encode_png, say; others are text
                return result, sniff(result)
        return to_json(result, set()), "application/json"
    except Unwritable as error:
        place = "".join(reversed(error.place[-20:])) + ("..." if len(error.place) > 20 else "")
        raise HandlerError(f"${place}: cannot be written as JSON: {error}") from error


def write_png(image: Any) -> bytes:
    """A PIL image as PNG; modes that PNG lacks (CMYK, YCbCr, float) become RGB."""
    try:
        if image.mode in ("I", "I;16B", "I;16L"):
            image = image.convert("I;16")  # PNG has no more than 16 bits
        elif image.mode not in ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"):
            image = image.convert("RGBA" if image.mode in ("RGBa", "La", "PA") else "RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    except (
        OSError,
        ValueError,
        SystemError,
    ) as error:  # a truncated file, read only now; no pixels
        raise HandlerError(f"the image cannot be written as PNG: {explain(error)}") from error


class Unwritable(Exception):
    """A value that JSON cannot hold.

    `place` collects its path, innermost first, as the error rises: good results cost nothing.
    """

    def __init__(self, problem: str):
        super().__init__(problem)
        self.place: list[str] = []


def has_numpy(value: Any) -> bool:
    return not isinstance(value, (np.ndarray, np.generic, type)) and callable(
        getattr(value, "numpy", None)
    )


def to_numpy(value: Any) -> Any:
    """A framework's tensor as NumPy; PyTorch's is first detached from its
    gradients and copied to the CPU.
    """
    try:
        return (value.detach().cpu() if hasattr(value, "detach") else value).numpy()
    except MemoryError:
        raise
    except Exception as error:
        raise Unwritable(f"got {type(value).__name__} ({explain(error)})") from error


def to_json(value: Any, parents: set[int]) -> Any:
    """The value with what the encoder cannot write replaced or refused.

    `parents` holds the ids of the containers around it.
    """
    if (
        value is None
        or isinstance(value, (str, bool, int, float))
        and not isinstance(value, np.generic)
    ):
        return to_scalar(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return to_array(value, parents)
    if isinstance(value, (Mapping, list, tuple)):
        return to_container(value, parents)
    if isinstance(value, BYTES):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise Unwritable(
                "got bytes that are no UTF-8 text; return them alone, or as base64"
            ) from None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return to_container({one.name: getattr(value, one.name) for one in fields}, parents)
    if isinstance(value, enum.Enum):
        return to_json(value.value, parents)
    if isinstance(value, tuple(WRITTEN)):
        return next(write for kind, write in WRITTEN.items() if isinstance(value, kind))(value)
    if is_frame(value):
        return to_json(read_frame_of(value), parents)
    if has_numpy(value):
        return to_json(to_numpy(value), parents)
    raise Unwritable(f"got {type(value).__name__}")


# Types with a form of their own, as in Flask: ISO 8601; text for what JSON numbers would round.
WRITTEN: dict[type, Callable[[Any], Any]] = {
    datetime.datetime: lambda value: value.isoformat() if value == value else None,  # NaT
    datetime.date: datetime.date.isoformat,
    datetime.time: datetime.time.isoformat,
    datetime.timedelta: lambda value: value.total_seconds() if value == value else None,
    decimal.Decimal: str,
    uuid.UUID: str,
}


def is_frame(value: Any) -> bool:
    """Whether a value is one of pandas', which is then imported already."""
    pandas = sys.modules.get("pandas")
    kinds = ("DataFrame", "Series", "Index")
    return pandas is not None and (
        isinstance(value, tuple(getattr(pandas, kind) for kind in kinds)) or value is pandas.NA
    )


def read_frame_of(value: Any) -> Any:
    """A frame as a list of rows, each an object; a series or an index as a list; missing values
    as null.
    """
    pandas = sys.modules["pandas"]
    if value is pandas.NA:
        return None
    if not isinstance(value, pandas.DataFrame):
        return [None if pandas.isna(one) is True else one for one in value.tolist()]
    rows = value.astype(object).where(value.notna(), None)
    return rows.to_dict(orient="records")


def to_scalar(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unwritable("got a string with a lone surrogate") from None
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise Unwritable("got an integer beyond 64 bits")
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN, and clients in browsers do not read one
    return value


def to_array(value: Any, parents: set[int]) -> Any:
    """An array or scalar of NumPy in a form the encoder takes:
    numbers in the machine's byte order, text as a list.
    """
    kind = value.dtype.kind
    if kind == "M":  # ISO 8601, in its own unit
        texts = np.array(np.datetime_as_string(value), object)
        texts[np.isnat(value)] = None
        return to_json(texts.tolist(), parents)
    if kind == "m":
        return to_json((value / np.timedelta64(1, "s")).tolist(), parents)
    if kind == "c" or value.dtype.type is np.void:  # bfloat16 is of kind V too, but no np.void
        raise Unwritable(
            f"got {type(value).__name__} of {value.dtype}"
            if isinstance(value, np.ndarray)
            else f"got {value.dtype}"
        )
    masked = isinstance(value, np.ma.MaskedArray)
    if masked or kind in "SUTO":
        as_it_is = kind == "O" and not masked and all(map(is_text, value.flat))
        return value if as_it_is else to_json(value.tolist(), parents)
    if kind == "f" and value.dtype.itemsize > 8:
        value = value.astype(np.float64)
    if kind in "fV" and not np.isfinite(value).all():
        return to_json(value.astype(np.float64).tolist(), parents)
    return value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can write, or the bytes of one."""
    try:
        text = value.decode() if isinstance(value, bytes) else value
        return isinstance(text, str) and (text.isascii() or bool(text.encode()))
    except UnicodeError:
        return False


def to_container(value: Any, parents: set[int]) -> dict[str, Any] | list:
    if id(value) in parents:
        raise Unwritable("it holds itself")
    if len(parents) >= MAX_LEVELS:
        raise Unwritable(f"got more than {MAX_LEVELS} levels of lists and objects")
    named = isinstance(value, Mapping)
    # long lists of plain numbers pass at the speed of C
    kinds = set() if named else set(map(type, value))
    if (
        kinds == {float}
        and all(map(math.isfinite, value))
        or kinds == {int}
        and min(value) >= -(2**63)
        and max(value) < 2**64
    ):
        return list(value)
    parents.add(id(value))
    written: dict[Any, Any] = {}
    for key, item in value.items() if named else enumerate(value):
        name = to_key(key) if named else key
        if name in written:
            raise Unwritable(f"two keys are written as {json.dumps(name)}")
        try:
            written[name] = to_json(item, parents)
        except Unwritable as error:
            error.place.append(f".{name}" if str(name).isidentifier() else f"[{json.dumps(name)}]")
            raise
    parents.discard(id(value))
    return written if named else list(written.values())


def to_key(key: Any) -> str:
    """A key of an object: text, or a number or truth value as json.dumps writes it."""
    if isinstance(key, str):
        return str(to_scalar(str(key)))
    if isinstance(key, (np.integer, np.floating, np.bool_)):
        key = key.item()
    if isinstance(key, (bool, int, float)):
        return json.dumps(key)
    raise Unwritable(f"got a key that is no string: {type(key).__name__}")
