"""Images in, predictions out, and the routines between: what `/predict` adds to a served model.

    Images in        bytes, base64, nested lists or a URL to uint8 RGB [H, W, 3], within limits
    Model outputs    five families of detectors, segmenters and classifiers to the same arrays
    Routines         filters and measures, chained in a request or a deployment; your own with
                     `@routine`
    Predictions out  the arrays to annotations, COCO, or a drawn picture

Predictions travel between the rooms as a dict of arrays, N of them, best first:

    boxes    float32 [N, 4], ymin, xmin, ymax, xmax in 0..1 of the original picture; absent for
             classifiers
    scores   float32 [N], 0..1
    classes  int64 [N], ids of the label map
    names    object [N], str, from the label map
    masks    float32 [N, mh, mw], 0..1, relative to the box; only for segmenters
    answer   a dict merged into the response; with `only_answer` it stands in place of the
             predictions

This module never imports `serving`: it works on arrays alone.
"""

import base64
import binascii
import codecs
import contextlib
import contextvars
import dataclasses
import difflib
import fnmatch
import functools
import http.client
import importlib
import io
import ipaddress
import itertools
import json
import math
import re
import runpy
import socket
import ssl
import sys
import threading
import time
import unicodedata
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urljoin, urlsplit
from xml.sax.saxutils import escape

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, TiffImagePlugin, UnidentifiedImageError

__all__ = ["ROUTINES", "ImageError", "ImageLimits", "RoutineError", "argument", "routine"]

Tensors = dict[str, Any]


class ImageError(ValueError):
    """The picture cannot be had; `too_large` when a limit is why."""

    def __init__(self, message: str, too_large: bool = False):
        super().__init__(message)
        self.too_large = too_large


class RoutineError(ValueError):
    """A routine has nothing to work on in what this model answers, or in this picture."""


class LabelError(ValueError):
    """A label map is not that of the model."""


# ==================================================================================================
# Images in
# In: what a request holds. Out: uint8 RGB [H, W, 3], upright; or ImageError with the reason.
# ==================================================================================================


def allow_all(size: int) -> None:
    """Let a picture take whatever it takes."""


@dataclass(frozen=True)
class ImageLimits:
    """How much of a picture, and how long to wait for it.

    `allow` is told of the bytes that something will take before they are taken, and of a negative
    number when some of them are free again; what it raises passes.
    """

    max_bytes: int = 50 << 20
    max_pixels: int = 50_000_000
    download_seconds: float = 10
    allowed_hosts: tuple[str, ...] = ()
    allow: Callable[[int], None] = allow_all


FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def decode_image(data: bytes, limits: ImageLimits) -> np.ndarray:
    """Decode picture bytes to uint8 RGB [H, W, 3], upright by EXIF; the first frame of several."""
    return unpack_image(open_image(data, limits), limits)


def open_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read a picture's header alone, and allow for the array that it will be.

    A small file that unpacks to a huge picture is refused unopened.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"image of {len(data)} bytes is over the limit of {limits.max_bytes}", too_large=True
        )
    with image_damage(limits, data):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        tile = tile_size(image)
    check_pixels(*image.size, limits)
    check_pixels(*tile, limits)
    limits.allow(3 * image.width * image.height)
    return image


def unpack_image(image: Image.Image, limits: ImageLimits) -> np.ndarray:
    """Decode a picture of which the header is read, and free what Pillow holds of it."""
    working = working_bytes(image)
    limits.allow(working)
    with contextlib.closing(image), image_damage(limits):
        image.load()
        turn_upright(image)
        array = to_rgb(image)
    limits.allow(-working)
    return array


@contextlib.contextmanager
def image_damage(limits: ImageLimits, data: bytes = b"") -> Iterator[None]:
    """Raise ImageError for `data` that is no picture or a damaged one; MemoryError passes."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"image has more pixels than the limit of {limits.max_pixels}", too_large=True
        ) from None
    except UnidentifiedImageError:
        start = data[:8].hex(" ") or "nothing"
        raise ImageError(
            f"not an image of a known format; expected one of {', '.join(FORMATS)}, "
            f"got bytes that start with {start}"
        ) from None
    except Exception as error:  # Pillow's formats raise of every kind for damaged bytes
        raise ImageError(f"image is damaged: {plain(error)}") from None


def check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            f"image of {width}x{height} pixels is over the limit of {limits.max_pixels}",
            too_large=True,
        )


def tile_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, which may be larger than the picture; else 0, 0."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(TiffImagePlugin.TILEWIDTH, 0), tags.get(TiffImagePlugin.TILELENGTH, 0)
    return abs(int(width)), abs(int(height))


def working_bytes(image: Image.Image) -> int:
    """What decoding an opened picture takes beside the array that is kept, in bytes.

    Pillow holds 1, 2 or 4 bytes a pixel, 4 more of one that is converted, and the array twice: more
    than a progressive JPEG or a picture that is turned takes before there is an array.
    """
    is_16_bit = image.mode.startswith("I;16")
    held = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if is_16_bit else 4)
    converted = 0 if is_16_bit or image.mode == "RGB" else 4
    canvases = 8 if image.format == "WEBP" else 0
    tile_width, tile_height = tile_size(image)
    pixels = image.width * image.height
    return (held + converted + canvases + 3) * pixels + 4 * tile_width * tile_height


def turn_upright(image: Image.Image) -> None:
    """Turn a loaded picture as its EXIF block says, if that can be read, in place."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Pillow's reader of EXIF raises of every kind
        return


def upright(image: Image.Image) -> Image.Image:
    """A copy of somebody's picture, turned as its EXIF block says."""
    copy = image.copy()
    copy.format = image.format  # which tells what a mode means
    turn_upright(copy)
    return copy


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any mode as uint8 RGB [H, W, 3]: 16-bit greys keep their high byte, alpha is dropped.

    Greys of 32 bits are cut to 0..255, as Image.convert does.
    """
    is_16_bit = image.mode.startswith("I;16") or image.mode == "I" and image.format == "PNG"
    if is_16_bit:  # `I` in Pillow 10
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def decode_text(text: str, limits: ImageLimits) -> np.ndarray:
    """Decode a picture in base64."""
    return decode_image(read_text(text, limits), limits)


def read_text(text: str, limits: ImageLimits) -> bytes:
    """Read base64: with or without line breaks, padding, URL-safe letters, a `data:` prefix."""
    if len(text) > limits.max_bytes * 3 // 2 + 1000:
        raise ImageError(
            f"image of {len(text)} base64 characters is over the limit of {limits.max_bytes} bytes",
            too_large=True,
        )
    limits.allow(len(text) * 3 // 4)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:  # what most clients send needs no second look
        return decode_base64(text)


def decode_base64(text: str) -> bytes:
    """Base64 in any spelling; raises ImageError for all else."""
    text = re.sub(r"^data:[^,]{0,200},", "", text)
    text = re.sub(r"\s+", "", text).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"data is not base64: {error}") from None


def decode_array(value: Any, limits: ImageLimits) -> np.ndarray:
    """Read nested lists or an array [H, W], [H, W, 1], [H, W, 3] or [H, W,
    4] of 0..255 as uint8 RGB.
    """
    array = value if isinstance(value, np.ndarray) else read_lists(value)
    if array.dtype.kind not in "uif":
        raise ImageError(f"array: expected numbers 0..255, got {array.dtype}")
    array = array[:, :, np.newaxis] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(
            "array: expected shape HxW, HxWx1, HxWx3 or HxWx4, got "
            f"{'x'.join(map(str, array.shape)) or 'a number'}"
        )
    height, width, _ = array.shape
    if height * width > limits.max_pixels:
        raise ImageError(
            f"array of {width}x{height} pixels is over the limit of {limits.max_pixels}",
            too_large=True,
        )
    limits.allow(3 * height * width + array.nbytes)
    if not (array.min() >= 0 and array.max() <= 255):  # NaN fails too
        raise ImageError(f"array: expected values 0..255, got {array.min()}..{array.max()}")
    array = (np.rint(array) if array.dtype.kind == "f" else array).astype(np.uint8)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[:, :, :3].copy()


def read_lists(value: Any) -> np.ndarray:
    """Nested lists of numbers, up to three deep, as an array.

    Level by level, so that nothing but numbers reaches NumPy: for each of its elements it would
    take as much as for the longest text among them.
    """
    shape: list[int] = []
    flat = [value]
    while set(map(type, flat)) == {list}:
        lengths = set(map(len, flat))
        if len(lengths) > 1:
            raise ImageError("array is ragged: expected rows of equal length")
        shape.append(lengths.pop())
        if len(shape) > 3:
            raise ImageError(
                "array: expected shape HxW, HxWx1, HxWx3 or HxWx4, got more than 3 levels of lists"
            )
        flat = list(itertools.chain.from_iterable(flat))
    kinds = set(map(type, flat))
    if list in kinds:
        raise ImageError("array is ragged: expected rows of equal length")
    if not kinds <= {int, float}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds - {int, float}))
        raise ImageError(f"array: expected numbers 0..255, got {names}")
    return np.array(flat).reshape(shape)


# The dtypes that a tensor can have and a .npy can spell; texts too, of any length but none.
NPY_NAMES = (
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
)
STRING_BYTES = 64  # what each text of an array takes as an object of Python, beside its letters
PIECE = 1 << 20  # bytes that are unpacked at once


def read_npy(file: IO[bytes], there: int, allow: Callable[[int], None] = allow_all) -> np.ndarray:
    """Read a .npy from a file of at most `there` bytes: bool, numbers, or texts; never a pickle.

    `allow` is told what the array takes before it is made. Raises ValueError.
    """
    shape, is_fortran, dtype = read_npy_head(file)
    count = math.prod(shape)
    size = count * dtype.itemsize
    left = there - file.tell()
    if size > left:
        raise ValueError(f"{dtype} {list(shape)} takes {size} bytes, got {left}")
    allow(size + (count * STRING_BYTES if dtype.kind in "SU" else 0))
    data = np.empty(size, np.uint8)
    fill(data, file)
    if dtype.kind == "b" and data.max(initial=0) > 1:
        raise ValueError("expected bytes 0 and 1 for bool")
    if dtype.kind == "U":
        letters = data.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if letters.max(initial=0) > sys.maxunicode:
            raise ValueError("expected letters of Unicode")
    return data.view(dtype).reshape(shape, order="F" if is_fortran else "C")


def fill(data: np.ndarray, file: IO[bytes]) -> None:
    """Fill an array of bytes from a file, piece by piece; ValueError when it ends before."""
    start = 0
    while start < data.size:
        piece = file.read(min(PIECE, data.size - start))
        if not piece:
            raise ValueError(f"{data.size} bytes are announced, got {start}")
        data[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
        start += len(piece)


def read_npy_head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, whether columns come first, and dtype; ValueError for what no tensor has."""
    try:
        version = np.lib.format.read_magic(file)
        # Version 3 differs from 2 in the names of fields alone, which no array here has.
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(file)
    except MemoryError:  # Python's parser says so of 10,000 bytes at most
        raise ValueError("its header is nested too deeply") from None
    except Exception as error:
        raise ValueError(f"its header cannot be read: {plain(error)[:200]}") from None
    is_text = dtype.kind in "SU" and dtype.itemsize > 0
    if dtype.name not in NPY_NAMES and not is_text:
        raise ValueError(
            f"expected a dtype of {', '.join(NPY_NAMES)} or text, got {str(dtype)[:60]}"
        )
    if len(shape) > 32 or any(isinstance(size, bool) or size < 0 for size in shape):
        raise ValueError(f"expected a shape of up to 32 sizes from 0 on, got {str(shape)[:60]}")
    return shape, is_fortran, dtype


def decode_npy(data: bytes, limits: ImageLimits) -> np.ndarray:
    try:
        array = read_npy(io.BytesIO(data), len(data), limits.allow)
    except ValueError as error:
        raise ImageError(f"body is not a .npy array: {error}") from None
    return decode_array(array, limits)


def plain(error: BaseException) -> str:
    """An error's text without the addresses of objects."""
    return re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error))


def show_kind(value: Any) -> str:
    """A JSON value in a few letters; what is nested is named alone, however deep it is."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return json.dumps(value[:60] if isinstance(value, str) else value)[:60]


def read_request(body: Any, limits: ImageLimits) -> tuple[np.ndarray, Any]:
    """Read the JSON value `{"image_type": "url" | "base64" | "array", "data": ..., "routines":
    [...]}`: picture and routines.
    """
    if not isinstance(body, dict):
        raise ImageError("expected a JSON object with 'image_type' and 'data'")
    kinds: dict[str, tuple[type, str, Callable]] = {
        "url": (str, "string", fetch_image),
        "base64": (str, "string", decode_text),
        "base_64": (str, "string", decode_text),
        "array": (list, "array", decode_array),
    }
    kind, data = body.get("image_type"), body.get("data")
    if not isinstance(kind, str) or kind not in kinds:
        raise ImageError(f"image_type: expected one of url, base64, array, got {show_kind(kind)}")
    expected, name, read = kinds[kind]
    if not isinstance(data, expected):
        raise ImageError(f"data: expected {name}" + ("" if "data" in body else ", got nothing"))
    return read(data, limits), body.get("routines") or []


# How pictures and arrays begin; no JSON does so.
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")
NPY_START = b"\x93NUMPY"


def reader_of(
    body: bytes, content_type: str = ""
) -> Callable[[bytes, ImageLimits], np.ndarray] | None:
    """How to decode a body that is a picture or a .npy array,
    by its first bytes or its content type; None for all else.
    """
    if body.startswith(NPY_START) or content_type == "application/x-npy":
        return decode_npy
    if content_type == "application/octet-stream" and not body[:64].lstrip().startswith(b"{"):
        return decode_image
    return (
        decode_image if body.startswith(IMAGE_STARTS) or content_type.startswith("image/") else None
    )


def read_bytes(body: bytes, limits: ImageLimits, content_type: str = "") -> np.ndarray:
    """A body that is a picture or a .npy array, as uint8 RGB [H, W, 3]."""
    return (reader_of(body, content_type) or decode_image)(body, limits)


# --- URLs: only public addresses, the connection to the very address that was checked -----------

MAX_REDIRECTS = 5


def fetch_image(
    url: str, limits: ImageLimits, resolve: Callable = socket.getaddrinfo
) -> np.ndarray:
    """Download a picture over http or https. Each address of each host on the way must be public.

    `resolve` is socket.getaddrinfo, an argument so that tests can rebind names. Proxies of the
    environment are not used. Raises ImageError with the reason.
    """
    deadline = time.monotonic() + limits.download_seconds
    try:
        for _ in range(MAX_REDIRECTS + 1):
            data, url = fetch_once(url, limits, deadline, resolve)
            if data is not None:
                break
        else:
            raise ImageError(f"url redirects more than {MAX_REDIRECTS} times")
    except (TimeoutError, http.client.HTTPException, OSError) as error:
        slow = isinstance(error, TimeoutError) or time.monotonic() >= deadline
        reason = (
            f"took longer than {limits.download_seconds:g} s"
            if slow
            else getattr(error, "strerror", None) or type(error).__name__
        )
        raise ImageError(f"url cannot be read: {reason}") from None
    return decode_image(data, limits)


def fetch_once(
    url: str, limits: ImageLimits, deadline: float, resolve: Callable
) -> tuple[bytes | None, str]:
    """One request: the body, or None and where it redirects to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ImageError("url is malformed") from None
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\x00-\x20\x7f]", url):
        raise ImageError("url: expected http://... or https://...")
    address = public_address(host, port, limits, resolve)
    with (
        socket.create_connection(address, timeout=max(0.001, deadline - time.monotonic())) as raw,
        cut_at(deadline, raw),
    ):
        secure = (
            ssl.create_default_context().wrap_socket(raw, server_hostname=host)
            if parts.scheme == "https"
            else raw
        )
        connection = http.client.HTTPConnection(host, port)
        connection.sock = secure
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(
            "GET",
            re.sub(r"[^\x21-\x7e]", lambda m: "".join(f"%{b:02X}" for b in m[0].encode()), target),
            headers={"Accept": "image/*", "User-Agent": "serving", "Connection": "close"},
        )
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308) and response.headers.get("Location"):
            return None, urljoin(url, response.headers["Location"])
        if response.status != 200:
            raise ImageError(f"url answers {response.status} {response.reason}"[:200])
        return read_capped(response, limits, deadline), url


@contextlib.contextmanager
def cut_at(deadline: float, connection: socket.socket) -> Iterator[None]:
    """Shut a connection down at the deadline: a time-out for each read
    does not end a server that drips.
    """

    def cut() -> None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_capped(response: http.client.HTTPResponse, limits: ImageLimits, deadline: float) -> bytes:
    """Read a body up to the limit of bytes; TimeoutError when the deadline cut it."""
    data = io.BytesIO()
    while piece := response.read(PIECE):
        limits.allow(len(piece))
        data.write(piece)
        if data.tell() > limits.max_bytes:
            raise ImageError(
                f"url answers more than the limit of {limits.max_bytes} bytes", too_large=True
            )
    if time.monotonic() >= deadline:
        raise TimeoutError
    return data.getvalue()


def public_address(host: str, port: int, limits: ImageLimits, resolve: Callable) -> tuple:
    """The address to connect to; raises ImageError when any address of the host is not public."""
    try:
        addresses = [entry[4][:2] for entry in resolve(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        raise ImageError(f"url: host '{host[:100]}' is not known") from None
    if host.lower() not in limits.allowed_hosts:
        for address, _ in addresses:
            if not is_public(address):
                raise ImageError(f"url: host '{host[:100]}' is not a public address")
    if not addresses:
        raise ImageError(f"url: host '{host[:100]}' has no address")
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an IP address is on the open internet,
    looking through IPv6 forms that carry an IPv4 one.
    """
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        carried = (
            address.ipv4_mapped
            or address.sixtofour
            or (address.teredo[1] if address.teredo else None)
        )
        if carried is None and address in ipaddress.ip_network("64:ff9b::/96"):
            carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if carried is not None:
            return is_public(str(carried))
    return address.is_global and not address.is_multicast and not address.is_reserved


# ==================================================================================================
# Model outputs
# In: a signature's input and output specs, the model's arrays. Out: the arrays of predictions
# described on top.
# ==================================================================================================


def read_label_map(text: str, name: str = "") -> dict[int, str]:
    """Read a label map: TensorFlow's .pbtxt (`item { id: 1 name: 'x' }`), JSON, Ultralytics' YAML
    (`names:`), or one name a line.

    `name` is the file's, whose ending tells the form where the text does not. Ids of a JSON list
    and of lines start at 1, 0 is the background; those of a YAML list at 0. Raises ValueError.
    """
    text = text.removeprefix("\ufeff")
    ending = Path(name).suffix.lower()
    if ending in (".pbtxt", ".prototxt", ".textproto") or re.search(ITEM, text, re.MULTILINE):
        return read_label_protos(text)
    if text.lstrip().startswith(("{", "[")):
        return label_map_of(json.loads(text))
    if ending in (".yaml", ".yml") or re.search(r"^names\s*:", text, re.MULTILINE):
        return read_label_yaml(text)
    return label_map_of([line.strip() for line in text.splitlines() if line.strip()])


ITEM = r"^\s*#?\s*item\s*:?\s*[{<]"  # how an entry of a .pbtxt begins


@functools.cache
def label_proto() -> Any:
    """The message of a .pbtxt, as object_detection/protos/string_int_label_map.proto has it."""
    # late: protobuf comes with TensorFlow, and takes its time
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="label_map.proto", package="serving")
    item = file.message_type.add(name="Item")
    for number, name in enumerate(("name", "id", "display_name"), 1):
        kind = kinds.TYPE_INT32 if name == "id" else kinds.TYPE_STRING
        item.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    file.message_type.add(name="LabelMap").field.add(
        name="item",
        number=1,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".serving.Item",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("serving.LabelMap"))


def read_label_protos(text: str) -> dict[int, str]:
    """Read a .pbtxt with protobuf; `display_name` goes before `name`, as in label_map_util.

    What an item has beside them is skipped. Raises ValueError.
    """
    from google.protobuf import text_format  # late, as above

    try:
        found = text_format.Parse(text, label_proto()(), allow_unknown_field=True)
    except text_format.ParseError as error:
        raise ValueError(f"label map: {error}") from None
    pairs = []
    for item in found.item:
        name = item.display_name if item.HasField("display_name") else item.name
        if not item.HasField("id") or not name:
            raise ValueError(f"label map: item without id and name: {str(item).strip()[:80]}")
        pairs.append((item.id, name))
    return label_pairs(pairs)


def read_label_yaml(text: str) -> dict[int, str]:
    """Read the `names` of an Ultralytics data set, a list from id 0 on or a map. ValueError."""
    import yaml  # late: few label maps need it

    try:  # texts alone: plain YAML reads the names `no` and `off` as false
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"label map: {error}") from None
    names = value.get("names", value) if isinstance(value, Mapping) else value
    return label_map_of(dict(enumerate(names)) if isinstance(names, list) else names)


def load_labels(value: Any, folder: Path) -> dict[int, str]:
    """The label map of a deployment: a file's path, an object, a list or None.

    Raises ValueError and OSError.
    """
    if not isinstance(value, str):
        return label_map_of(value or {})
    return read_label_map(decode_labels((folder / value).read_bytes()), value)


def decode_labels(data: bytes) -> str:
    """A label map's text: UTF-8, or UTF-16 with its byte order mark. Raises UnicodeDecodeError."""
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_wide else "utf-8-sig")


LABEL_FILES = re.compile(
    r"(labels?|label_?maps?|classes|class_(names|labels))\.(pbtxt|txt|json|ya?ml)", re.IGNORECASE
)


def find_labels(folder: Path) -> Path | None:
    """The label map among a SavedModel's assets, when they hold one and no other."""
    assets = folder / "assets"
    files = [path for path in assets.iterdir()] if assets.is_dir() else []
    found = [path for path in files if LABEL_FILES.fullmatch(path.name)]
    return found[0] if len(found) == 1 else None


def label_map_of(value: Any) -> dict[int, str]:
    """A label map given as JSON: an object by id, a list of names from id 1 on, COCO's
    `categories` or a file that holds them, Keras's `class_indices`.

    Raises ValueError.
    """
    if isinstance(value, Mapping) and isinstance(value.get("categories"), list):
        value = value["categories"]
    if isinstance(value, list | tuple):
        are_entries = any(isinstance(item, Mapping) for item in value)
        pairs: Iterable[tuple[Any, Any]] = (
            [entry_pair(item) for item in value] if are_entries else enumerate(value, 1)
        )
    elif isinstance(value, Mapping) and is_turned(value):
        pairs = [(number, name) for name, number in value.items()]
    else:
        pairs = value.items() if isinstance(value, Mapping) else [(value, None)]
    return label_pairs(pairs)


def is_turned(value: Mapping[Any, Any]) -> bool:
    """Whether it is `{"cat": 0, "dog": 1}`, as Keras's generators have it."""
    is_named = not any(str(key).isdecimal() for key in value)
    return is_named and set(map(type, value.values())) == {int}


def entry_pair(entry: Any) -> tuple[Any, Any]:
    """Id and name of `{"id": 1, "name": "person"}`, an entry of a list."""
    return (entry.get("id"), entry) if isinstance(entry, Mapping) else (None, entry)


def label_pairs(pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    """Names by id; raises ValueError for what is neither, and for an id that has two names."""
    labels: dict[int, str] = {}
    for key, entry in pairs:
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        if isinstance(name, list) and len(name) == 2:  # ["n01440764", "tench"], as of ImageNet
            name = name[1]
        number = -1 if isinstance(key, bool) or not re.fullmatch(r"\d+", str(key)) else int(key)
        if number < 0 or isinstance(name, bool) or not isinstance(name, str | int | float):
            raise ValueError(
                'label map: expected {"1": "name"} or a list of names, '
                f"got {str(key)[:40]}: {str(name)[:40]}"
            )
        if labels.setdefault(number, str(name)) != str(name):
            raise ValueError(f"label map: id {number} is both '{labels[number]}' and '{name}'")
    return labels


def count_classes(
    family: str | None,
    outputs: Mapping[str, tuple[int | None, ...] | None],
    labels: Mapping[int, str],
) -> tuple[int | None, int]:
    """How many classes a signature's outputs have, None where its shapes do not tell, and the id of
    the first: 0 is the background's, and of a classifier whose label map has it the first class's.
    """
    shape = next(iter(outputs.values()), None) or ()
    if family == "classifier":
        return (shape[-1] if shape and shape[-1] != 1 else None), 0 if 0 in labels else 1
    if family == "segmentation" and len(shape) == 4:
        sizes = [size for size in (shape[1], shape[3]) if size is not None]
        fitting = max(labels, default=0) + 1
        count = fitting if fitting in sizes else min(sizes, default=None)
        return (count if count != 1 else None), 0
    return None, 0


def check_labels(labels: Mapping[int, str], classes: int | None, first_id: int) -> None:
    """Raise LabelError when a label map cannot be that of a model with so many classes.

    Their ids run from `first_id` on; a background, 0, needs no name. A map may leave out ids in
    between, but not the last ones: that is how it looks when a name was forgotten, which shifts all
    after it.
    """
    if not labels or classes is None:
        return
    last, ids = first_id + classes - 1, sorted(labels)
    is_dense = ids[-1] - ids[0] == len(ids) - 1 and ids[0] <= max(first_id, 1)
    if ids[0] < first_id or ids[-1] > last or is_dense and ids[-1] < last:
        raise LabelError(
            f"label map: expected names of the model's {classes} classes, ids {first_id} to {last}"
            + (" with 0 the background" if first_id == 0 and 0 not in labels else "")
            + f"; got {len(ids)}, ids {ids[0]} to {ids[-1]}"
        )


def detect_family(outputs: Mapping[str, tuple[int | None, ...] | None]) -> str:
    """The family of a signature's outputs, by their names and shapes.

    ValueError when it is none of the five.
    """
    shapes = list(outputs.values())
    if {"detection_boxes", "detection_scores", "detection_classes"} <= outputs.keys():
        return "detection_api"
    if {"output_1", "output_2", "output_3"} <= outputs.keys():
        return "mask_rcnn"
    if len(shapes) == 1 and shapes[0] is not None and len(shapes[0]) in (2, 3, 4):
        return {2: "classifier", 3: "detector", 4: "segmentation"}[len(shapes[0])]
    raise ValueError(
        "the outputs are those of no known family: "
        + ", ".join(
            f"{name} {list(shape) if shape is not None else 'of unknown rank'}"
            for name, shape in outputs.items()
        )
    )


def read_detection_api(outputs: Mapping[str, np.ndarray], labels: Mapping[int, str]) -> Tensors:
    """TensorFlow's Object Detection API: boxes [1, N, 4] 0..1, scores and 1-based classes [1, N],
    masks [1, N, mh, mw].
    """
    count = int(np.ravel(outputs["num_detections"])[0]) if "num_detections" in outputs else None
    tensors = {
        "boxes": outputs["detection_boxes"][0][:count],
        "scores": outputs["detection_scores"][0][:count],
        "classes": np.rint(outputs["detection_classes"][0][:count]).astype(np.int64),
    }
    if "detection_masks" in outputs:
        tensors["masks"] = outputs["detection_masks"][0][:count]
    return keep(tensors, tensors["scores"] > 0)  # unused rows are zero


def read_detector(outputs: Mapping[str, np.ndarray], labels: Mapping[int, str]) -> Tensors:
    """Datature's detector: one output [1, N, >=7]: ymin, xmin, ymax, xmax, score, class, ...,
    valid; then class-wise NMS.
    """
    rows = next(iter(outputs.values()))[0]  # [N, >=7]
    rows = rows[rows[:, -1] != 0]
    tensors = {
        "boxes": rows[:, :4],
        "scores": rows[:, 4],
        "classes": np.rint(rows[:, 5]).astype(np.int64),
    }
    return suppress(tensors, 0.5)


def read_mask_rcnn(outputs: Mapping[str, np.ndarray], labels: Mapping[int, str]) -> Tensors:
    """Datature's Mask R-CNN: output_1 scores, output_2 0-based classes, output_3 boxes,
    output_4 masks relative to the box.
    """
    scores = np.ravel(outputs["output_1"])
    tensors = {
        "scores": scores,
        "classes": np.rint(np.ravel(outputs["output_2"])).astype(np.int64) + 1,
        "boxes": outputs["output_3"].reshape(-1, 4),
    }
    if "output_4" in outputs:
        masks = outputs["output_4"]
        tensors["masks"] = masks.reshape(len(scores), *masks.shape[-2:])
    return keep(tensors, scores > 0)


def read_segmentation(outputs: Mapping[str, np.ndarray], labels: Mapping[int, str]) -> Tensors:
    """Class planes [1, C, H, W] or [1, H, W, C], class 0 the background: one prediction for each
    connected region.

    The planes lie along the axis of as many entries as there are labels and a background, else the
    shorter end.
    """
    planes = next(iter(outputs.values()))[0].astype(np.float32)
    last = (
        planes.shape[2] == len(labels) + 1
        if planes.shape[0] != planes.shape[2] and labels
        else planes.shape[2] <= planes.shape[0]
    )
    planes = as_probabilities(planes if last else np.moveaxis(planes, 0, 2))  # [H, W, C]
    winner = planes.argmax(axis=2)
    found = [
        (box, planes[:, :, number][window][inside].mean(), int(number), shrink_region(inside))
        for number in np.unique(winner[winner > 0])
        for box, window, inside in find_regions(winner == number)
    ]
    size = np.array([*winner.shape, *winner.shape], np.float32)
    boxes, scores, classes, masks = zip(*found) if found else ((), (), (), ())
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4) / size,
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes, np.int64),
        "masks": np.array(masks, np.float32).reshape(-1, 64, 64),
    }


def find_regions(plane: np.ndarray) -> Iterator[tuple]:
    """Connected regions of a bool plane: the box, its window of the plane,
    and what is inside there.
    """
    count, regions, stats, _ = cv2.connectedComponentsWithStats(
        plane.astype(np.uint8), connectivity=8
    )
    for region in range(1, count):
        left, top, width, height, area = stats[region]
        if area >= 4:
            window = slice(top, top + height), slice(left, left + width)
            yield (top, left, top + height, left + width), window, regions[window] == region


def shrink_region(inside: np.ndarray) -> np.ndarray:
    """A bool region as a mask [64, 64] of its box, 0..1."""
    method = cv2.INTER_NEAREST if max(inside.shape) <= 64 else cv2.INTER_AREA
    return cv2.resize(inside.astype(np.float32), (64, 64), interpolation=method)


def read_classifier(outputs: Mapping[str, np.ndarray], labels: Mapping[int, str]) -> Tensors:
    """One output [1, C] of probabilities or logits.

    C is the labels' number, or one more with a background at 0.
    """
    scores = as_probabilities(next(iter(outputs.values()))[0].astype(np.float32))
    first = 0 if 0 in labels or len(scores) == len(labels) + 1 else 1
    return {"scores": scores, "classes": np.arange(len(scores), dtype=np.int64) + first}


def as_probabilities(values: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis: as they are when they are some already,
    else the softmax of logits.
    """
    if (
        values.min(initial=0) >= 0
        and values.max(initial=0) <= 1
        and np.allclose(values.sum(axis=-1), 1, atol=1e-2)
    ):
        return values
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


FAMILIES: dict[str, Callable[[Mapping[str, np.ndarray], Mapping[int, str]], Tensors]] = {
    "detection_api": read_detection_api,
    "detector": read_detector,
    "mask_rcnn": read_mask_rcnn,
    "segmentation": read_segmentation,
    "classifier": read_classifier,
}


def read_outputs(
    family: str, outputs: Mapping[str, np.ndarray], labels: Mapping[int, str], most: int
) -> Tensors:
    """A model's outputs as predictions, best first, at most `most`.

    Boxes clipped to the picture.
    """
    tensors = FAMILIES[family](outputs, labels)
    order = np.argsort(-tensors["scores"], kind="stable")[:most]
    tensors = {name: array[order] for name, array in tensors.items()}
    if "boxes" in tensors:
        tensors["boxes"] = np.clip(tensors["boxes"].astype(np.float32), 0, 1)
    tensors["names"] = np.array(
        [labels.get(number, str(number)) for number in tensors["classes"].tolist()] + [None], object
    )[:-1]
    return tensors


# ==================================================================================================
# Routines
# In: predictions as arrays (or, before the model, the picture) and arguments. Out: a new dict of
# them.
# ==================================================================================================

# Of the import that this thread is in: whose routines are one server's alone.
IMPORTING: contextvars.ContextVar[bool] = contextvars.ContextVar("importing", default=False)
DECLARED: dict[str, type] = {}  # outside of such imports: every server of this process has them
BUILT_IN: dict[str, type] = {}  # those of this file; nothing takes their names from them
# What every server has; those of its own modules come over it.
ROUTINES: ChainMap[str, type] = ChainMap(DECLARED, BUILT_IN)


def argument(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a routine's argument in one line: default, what it means, and its limits."""
    return dataclasses.field(
        default=default, metadata={"doc": doc, "minimum": minimum, "maximum": maximum}
    )


def routine(*aliases: str, before_model: bool = False) -> Callable[[type], type]:
    """Make a class a routine of that name and those aliases; its annotated fields are the
    arguments.

    Its `__call__(tensors)` returns a new dict of predictions, or with `before_model` a new picture.
    In a module of `routine_modules` it is for the server that imports it, elsewhere for all of the
    process; there it raises ValueError for the name of a built-in one.
    """

    def register(kind: type) -> type:
        kind = dataclass(frozen=True)(kind)
        kind.before_model = before_model  # type: ignore[attr-defined]
        kind.routine_names = (kind.__name__, *aliases)  # type: ignore[attr-defined]
        if not IMPORTING.get():
            declare(kind)
        return kind

    return register


def declare(kind: Any) -> None:
    """Let every server of this process have a routine."""
    built_in = kind.__module__ == __name__
    for name in kind.routine_names:
        if name in BUILT_IN:
            raise ValueError(
                f"routine {name}: this name is built in; only a module in a config's "
                "routine_modules may take it, for its own server"
            )
        (BUILT_IN if built_in else DECLARED)[name] = kind


def import_routines(name: str, folder: Path) -> dict[str, type]:
    """The routines, by name, that a file relative to `folder` or a module of Python's path holds.

    A file is run anew each time, a module is imported as modules are. Raises what it raises.
    """
    token = IMPORTING.set(True)
    try:
        if name.endswith(".py"):
            run_name = f"routine_modules.{Path(name).stem}"  # in no other module's place meanwhile
            held = runpy.run_path(str(folder / name), run_name=run_name)
        else:
            held = vars(importlib.import_module(name))
    finally:
        IMPORTING.reset(token)
    kinds = [kind for kind in held.values() if "routine_names" in getattr(kind, "__dict__", ())]
    return {name: kind for kind in kinds for name in kind.routine_names}


def keep(tensors: Tensors, chosen: np.ndarray) -> Tensors:
    """The predictions that a mask or an index array [N] picks out of every array."""
    return {
        name: array[chosen] if isinstance(array, np.ndarray) else array
        for name, array in tensors.items()
    }


@routine()
class FilterConfidence:
    """Keep predictions of at least this confidence."""

    confidence: float = argument(doc="0..1", minimum=0, maximum=1)

    def __call__(self, tensors: Tensors) -> Tensors:
        return keep(tensors, tensors["scores"] >= np.float32(self.confidence))


LOWEST = float(np.finfo(np.float32).min)
SAME = 2e-7  # what two IoUs may differ by and be equal: OpenCV has them as float32


def suppress(tensors: Tensors, iou: float) -> Tensors:
    """Class-wise non-maximum suppression: the best stays, those of its class that overlap it by at
    least `iou` go; at 0, those that overlap it at all. The first of equals is the best.

    By OpenCV, since it needs neither TensorFlow nor [N, N] numbers. As in TensorFlow, boxes without
    an area stay and what has no number for its score goes; so does a box that is no numbers.
    """
    boxes = tensors["boxes"].astype(np.float64)  # [N, 4]
    are_numbers = np.isfinite(boxes).all(axis=1)
    boxes[~are_numbers] = 0
    low = np.minimum(boxes[:, :2], boxes[:, 2:])
    size = np.abs(boxes[:, 2:] - boxes[:, :2])
    alive = are_numbers & ~np.isnan(tensors["scores"])
    rivals = np.flatnonzero((size > 0).all(axis=1) & alive)
    if rivals.size:
        _, kinds = np.unique(tensors["classes"][rivals], return_inverse=True)
        # from 0 on: OpenCV sets classes apart by moving boxes by the largest coordinate
        places = low[rivals] - low[rivals].min(axis=0)
        kept = cv2.dnn.NMSBoxesBatched(
            np.concatenate([places, size[rivals]], axis=1).tolist(),
            tensors["scores"][rivals].tolist(),
            kinds.tolist(),
            LOWEST,
            max(iou - SAME, 0.0),
        )
        alive[np.delete(rivals, np.asarray(kept, np.int64))] = False
    return keep(tensors, alive)


@routine()
class FilterIOU:
    """Of two predictions of one class that overlap by at least this IoU, the less confident goes.

    No-op for classifiers.
    """

    iou: float = argument(doc="0..1", minimum=0, maximum=1)

    def __call__(self, tensors: Tensors) -> Tensors:
        return suppress(tensors, self.iou) if "boxes" in tensors else dict(tensors)


def are_named(tensors: Tensors, class_name: str | tuple[str, ...]) -> np.ndarray:
    wanted = {class_name} if isinstance(class_name, str) else set(class_name)
    return np.array([name in wanted for name in tensors["names"]], bool)


MOST_WARNINGS = 10  # of one routine


def warn_unknown(tensors: Tensors, who: str, class_name: str | Iterable[str]) -> Tensors:
    """The predictions, with a warning in the answer for each name that no class of the model has.

    A class without a name of its own goes by its number.
    """
    labels: Mapping[int, str] | None = tensors.get("labels")
    if labels is None:
        return tensors
    there = {*labels.values(), *tensors["names"]}
    names = dict.fromkeys([class_name] if isinstance(class_name, str) else class_name)
    unknown = [name for name in names if name not in there and not name.isdecimal()]
    texts = []
    for name in unknown[:MOST_WARNINGS]:
        close = difflib.get_close_matches(name, labels.values(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        none = "" if labels else "; its deployment has no label map"
        texts.append(f"{who}: the model has no class '{name[:60]}'{hint}{none}")
    answer = tensors.get("answer", {})
    warnings = [*answer.get("warnings", []), *texts]
    return {**tensors, "answer": {**answer, "warnings": warnings}} if texts else tensors


@routine()
class FilterClass:
    """Keep predictions of these classes."""

    class_name: str | tuple[str, ...] = argument(doc="names to keep")

    def __call__(self, tensors: Tensors) -> Tensors:
        kept = keep(tensors, are_named(tensors, self.class_name))
        return warn_unknown(kept, "FilterClass", self.class_name)


@routine()
class ExcludeClass:
    """Drop predictions of these classes."""

    class_name: str | tuple[str, ...] = argument(doc="names to drop")

    def __call__(self, tensors: Tensors) -> Tensors:
        kept = keep(tensors, ~are_named(tensors, self.class_name))
        return warn_unknown(kept, "ExcludeClass", self.class_name)


@routine()
class Threshold:
    """Keep predictions of at least the confidence that their class asks for."""

    confidence: dict[str, float] = argument(
        doc='by class: {"cat": 0.5, "dog": 0.7}', minimum=0, maximum=1
    )
    others: float = argument(0.0, "0..1, of classes that are not named", minimum=0, maximum=1)

    def __call__(self, tensors: Tensors) -> Tensors:
        least = [self.confidence.get(name, self.others) for name in tensors["names"]]
        kept = keep(tensors, tensors["scores"] >= np.array(least, np.float32))
        return warn_unknown(kept, "Threshold", self.confidence)


@routine()
class TopK:
    """Keep the most confident predictions, so many."""

    k: int = argument(doc="how many", minimum=1, maximum=100_000)

    def __call__(self, tensors: Tensors) -> Tensors:
        return keep(tensors, np.argsort(-tensors["scores"], kind="stable")[: self.k])


def entropies(scores: np.ndarray) -> np.ndarray:
    """Binary entropy in bits, float64 [N], of confidences 0..1; 0 at both ends."""
    p = np.clip(scores.astype(np.float64), 0, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.nan_to_num(p * np.log2(p)) - np.nan_to_num((1 - p) * np.log2(1 - p))


@routine("ActiveLearningMetric")
class ActiveLearning:
    """Answer how uncertain the model is, in place of the predictions: the mean binary entropy of
    each class, and their mean.

    The formula is the one that reproduces a published call of Datature's API. No predictions: 0.
    """

    class_name: str | tuple[str, ...] | None = argument(None, "only these classes")

    def __call__(self, tensors: Tensors) -> Tensors:
        kept = (
            tensors
            if self.class_name is None
            else keep(tensors, are_named(tensors, self.class_name))
        )
        average, per_class = mean_of_classes(entropies(kept["scores"]), kept["names"])
        return {
            **tensors,
            "answer": {
                **tensors.get("answer", {}),
                "avgEntropy": average,
                "avgPerClass": per_class,
            },
            "only_answer": True,
        }


def uncertainty(tensors: Tensors, strategy: str) -> float:
    """How uncertain the model is of a picture, 0..1: `entropy` (as ActiveLearning answers it),
    `least_confidence` or `margin`.

    Detections are yes-or-no questions, averaged by class, then over the classes: 1 - p, and 1 - |p
    - (1 - p)|. Classes of a classifier exclude each other: 1 - the best, and 1 - (the best - the
      second). No predictions: 0.
    After Settles, Active Learning Literature Survey (2009), section 3.1.
    """
    scores = np.clip(tensors["scores"].astype(np.float64), 0, 1)
    if strategy != "entropy" and "boxes" not in tensors and len(scores):
        best, second = [*np.sort(scores)[::-1], 0.0][:2]
        return float(1 - best if strategy == "least_confidence" else 1 - (best - second))
    values = {
        "entropy": entropies,
        "least_confidence": lambda p: 1 - p,
        "margin": lambda p: 1 - np.abs(2 * p - 1),
    }[strategy](scores)
    return mean_of_classes(values, tensors["names"])[0]


def mean_of_classes(values: np.ndarray, names: np.ndarray) -> tuple[float, dict[str, float]]:
    """The mean over the classes of each class's mean, and those; values [N], names [N]."""
    per_class = {name: float(values[names == name].mean()) for name in sorted(set(names.tolist()))}
    return float(np.mean(list(per_class.values()))) if per_class else 0.0, per_class


@routine()
class Histogram:
    """Add the distribution of instances: by class,
    or with `bins` or `ranges` by confidence within each class.
    """

    bins: int | None = argument(
        None, "number of equal bins of confidence from 0 to 1", minimum=1, maximum=1000
    )
    ranges: tuple[float, ...] | None = argument(
        None, "rising upper bounds of bins of confidence", minimum=0
    )

    def __post_init__(self) -> None:
        if self.bins is not None and self.ranges is not None:
            raise ValueError("give 'bins' or 'ranges', not both")
        if self.ranges is not None and (
            not self.ranges or list(self.ranges) != sorted(set(self.ranges))
        ):
            raise ValueError(f"ranges: expected rising bounds, got {list(self.ranges)}")

    def __call__(self, tensors: Tensors) -> Tensors:
        names, scores = tensors["names"], tensors["scores"].astype(np.float64)
        kinds = sorted(set(names.tolist()))
        numbers: dict[str, Any] = {"classes": {name: int((names == name).sum()) for name in kinds}}
        bounds = (
            [(n + 1) / self.bins for n in range(self.bins)]
            if self.bins
            else list(self.ranges or ())
        )
        if bounds:  # a bin holds what is above the bound before it, up to and with its own
            bins = np.searchsorted(
                bounds, np.minimum(scores, bounds[-1]) if self.bins else scores, side="left"
            )
            numbers["ranges"] = bounds
            numbers["counts"] = {
                name: [int(((names == name) & (bins == n)).sum()) for n in range(len(bounds))]
                for name in kinds
            }
        numbers["image"] = draw_histogram(numbers)
        return {**tensors, "answer": {**tensors.get("answer", {}), "histogram": numbers}}


def draw_histogram(numbers: Mapping[str, Any]) -> str:
    """The numbers of a Histogram as horizontal bars, an SVG data URI."""
    rows = (
        [
            (f"{name} \N{LESS-THAN OR EQUAL TO} {bound:g}", count)
            for name, counts in numbers["counts"].items()
            for bound, count in zip(numbers["ranges"], counts)
        ]
        if "counts" in numbers
        else list(numbers["classes"].items())
    )
    most = max([count for _, count in rows], default=0) or 1
    bars = "".join(
        f'<text x="150" y="{22 * n + 16}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="156" y="{22 * n + 3}" width="{220 * count / most:.1f}" '
        'height="17" fill="#3b7dd8"/>'
        f'<text x="{160 + 220 * count / most:.1f}" y="{22 * n + 16}">{count}</text>'
        for n, (name, count) in enumerate(rows)
    )
    picture = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="430" height="{22 * len(rows) + 6}" '
        'font-family="sans-serif" '
        f'font-size="12">{bars}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()


@routine(before_model=True)
class Grayscale:
    """Show the model the picture without its colours."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@routine(before_model=True)
class Resize:
    """Show the model the picture at this size; a size that is left out keeps the proportions."""

    width: int | None = argument(None, "pixels", minimum=1, maximum=10_000)
    height: int | None = argument(None, "pixels", minimum=1, maximum=10_000)

    def __post_init__(self) -> None:
        if self.width is None and self.height is None:
            raise ValueError("expected 'width', 'height' or both")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        new = (
            self.width or max(1, round(width * self.height / height))
            if self.height
            else self.width,
            self.height or max(1, round(height * self.width / width))
            if self.width
            else self.height,
        )
        return resize(image, int(new[0] or 1), int(new[1] or 1))


@routine(before_model=True)
class Crop:
    """Show the model a part of the picture, given in 0..1 of its sides.

    Answers stay in coordinates of the whole picture.
    """

    xmin: float = argument(0.0, "0..1", minimum=0, maximum=1)
    ymin: float = argument(0.0, "0..1", minimum=0, maximum=1)
    xmax: float = argument(1.0, "0..1", minimum=0, maximum=1)
    ymax: float = argument(1.0, "0..1", minimum=0, maximum=1)

    def __post_init__(self) -> None:
        if self.xmin >= self.xmax or self.ymin >= self.ymax:
            raise ValueError("expected xmin < xmax and ymin < ymax")

    def bounds(self, image: np.ndarray) -> tuple[int, int, int, int]:
        """Whole pixels top, left, bottom, right; at least one pixel each way."""
        height, width = image.shape[:2]
        top, left = min(int(self.ymin * height), height - 1), min(int(self.xmin * width), width - 1)
        return (
            top,
            left,
            max(top + 1, round(self.ymax * height)),
            max(left + 1, round(self.xmax * width)),
        )

    def __call__(self, image: np.ndarray) -> np.ndarray:
        top, left, bottom, right = self.bounds(image)
        return np.ascontiguousarray(image[top:bottom, left:right])


MOST_TILES = 256  # of one picture


@routine(before_model=True)
class Tile:
    """Show the model the picture in tiles that overlap, for what is small in it, and as a whole.

    After all other routines on the picture, and once: the last Tile of a chain counts. What is
    found is merged by suppression within each class.
    """

    size: int = argument(640, "pixels of a tile's sides", minimum=16, maximum=10_000)
    overlap: float = argument(0.2, "how much of a tile the next repeats", minimum=0, maximum=0.9)
    iou: float = argument(0.5, "see FilterIOU, over all tiles", minimum=0, maximum=1)
    whole: bool = argument(True, "whether the whole picture is shown too")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image  # `find_in_tiles` cuts it

    def windows(self, image: np.ndarray) -> np.ndarray:
        """Top, left, bottom and right of each tile in pixels, int [T, 4], all of one size.

        Raises RoutineError for more than MOST_TILES.
        """
        height, width = image.shape[:2]
        step = max(1, round(self.size * (1 - self.overlap)))
        rows = math.ceil(max(height - self.size, 0) / step) + 1
        columns = math.ceil(max(width - self.size, 0) / step) + 1
        if rows * columns > MOST_TILES:
            raise RoutineError(
                f"Tile: a picture of {width}x{height} pixels in tiles of {self.size}, overlap "
                f"{self.overlap:g}: expected at most {MOST_TILES} tiles, got {rows * columns}; "
                "larger tiles or less overlap make fewer"
            )
        tall, wide = min(self.size, height), min(self.size, width)
        # the last tiles end where the picture does
        tops = np.minimum(np.arange(rows) * step, height - tall)
        lefts = np.minimum(np.arange(columns) * step, width - wide)
        top, left = (grid.ravel() for grid in np.meshgrid(tops, lefts, indexing="ij"))
        return np.stack([top, left, top + tall, left + wide], axis=1)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize [H, W, 3]: by area when it shrinks, bilinear when it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def run_before(chain: Sequence[Any], image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Apply the routines before the model.

    Returns the picture and where it lies in the original, float [4] as a box.
    """
    region = np.array([0, 0, 1, 1], np.float64)
    for step in chain:
        if isinstance(step, Crop):
            part = np.array(step.bounds(image)) / np.tile(image.shape[:2], 2)
            region = place_boxes(part[np.newaxis], region)[0]
        image = step(image)
    return image, region


def place_boxes(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Boxes [N, 4] in 0..1 of a region as boxes in 0..1 of what the region lies in."""
    origin, size = np.tile(region[:2], 2), np.tile(region[2:] - region[:2], 2)
    return (boxes * size + origin).astype(boxes.dtype)


# ==================================================================================================
# Predictions out
# In: predictions as arrays, the picture's size. Out: annotations, COCO, or the picture with them
# drawn.
# ==================================================================================================


def to_annotations(tensors: Tensors, width: int, height: int) -> list[dict[str, Any]]:
    """Predictions as the published objects: bound and contour in 0..1 of the picture,
    best first; with `contours` where a mask has more than one ring.
    """
    annotations = []
    for index, (score, number, name) in enumerate(
        zip(tensors["scores"].tolist(), tensors["classes"].tolist(), tensors["names"])
    ):
        bound, rings = None, []
        if "boxes" in tensors:
            ymin, xmin, ymax, xmax = tensors["boxes"][index].tolist()
            bound = [[xmin, ymin], [xmin, ymax], [xmax, ymax], [xmax, ymin]]
        if "masks" in tensors:
            rings = trace_rings(tensors["masks"][index], tensors["boxes"][index], width, height)
        contour = rings[0] if rings else None
        annotations.append(
            {
                "annotationId": index,
                "bound": bound,
                "boundType": "masks" if contour else "rectangle" if bound else None,
                "confidence": score,
                "contour": contour,
                "contourType": "polygon" if contour else None,
                "tag": {"id": number, "name": name},
                **({"contours": rings} if len(rings) > 1 else {}),
            }
        )
    return annotations


def paste_mask(
    mask: np.ndarray, box: np.ndarray, width: int, height: int, scale: int = 1
) -> tuple[np.ndarray, int, int]:
    """A mask [mh, mw] relative to its box as 0/1 pixels, uint8 [h, w],
    with the top and left of where they lie.
    """
    ymin, xmin, ymax, xmax = box.tolist()
    top, left = round(ymin * height * scale), round(xmin * width * scale)
    bottom, right = round(ymax * height * scale), round(xmax * width * scale)
    return resize_mask(mask, max(1, bottom - top), max(1, right - left)), top, left


def resize_mask(mask: np.ndarray, tall: int, wide: int) -> np.ndarray:
    """A mask [mh, mw] of 0..1 as 0/1 pixels, uint8 [tall, wide]."""
    mask = mask.astype(np.float32)
    if mask.shape != (tall, wide):
        shrinks = mask.shape[0] >= tall and mask.shape[1] >= wide
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        mask = cv2.resize(mask, (wide, tall), interpolation=method)
    return (mask >= 0.5).astype(np.uint8)


FINE, MOST_FINE = 256, 1024  # the pixels that a mask coarser than the picture is traced in
MOST_RINGS = 2000


def trace_mask(
    mask: np.ndarray, box: np.ndarray, width: int, height: int
) -> list[list[float]] | None:
    """The outer ring of a mask's largest part; None when there is no area."""
    rings = trace_rings(mask, box, width, height)
    return rings[0] if rings else None


def trace_rings(
    mask: np.ndarray, box: np.ndarray, width: int, height: int
) -> list[list[list[float]]]:
    """The rings of a mask's parts and holes as [[x, y], ...] in 0..1 of the picture, largest first.

    Filled by the even-odd rule they are the mask; holes run the other way around. A mask as fine as
    the picture is traced as it is, a coarser one smoothly.
    """
    origin = np.array([box[1], box[0]], np.float64)
    size = np.array([box[3] - box[1], box[2] - box[0]], np.float64)  # x, y
    wide, tall = size * [width, height]
    if mask.shape[0] >= tall and mask.shape[1] >= wide:
        pixels = (mask >= 0.5).astype(np.uint8)
    else:
        scale = int(np.clip(np.ceil(FINE / max(tall, wide, 1)), 1, 8))
        sides = [
            np.clip(round(side * scale), 1, max(MOST_FINE, *mask.shape)) for side in (tall, wide)
        ]
        pixels = resize_mask(mask, *map(int, sides))
    grid = np.array(pixels.shape[::-1])
    step = float(max(size * [width, height] / grid))  # the picture's pixels in one of these
    rings = [simplify(ring, step, max(tall, wide)) for ring in find_rings(pixels)]
    rings.sort(key=lambda ring: (area_of(ring) < 0, -abs(area_of(ring))))
    return [
        np.clip(ring / grid * size + origin, 0, 1).round(6).tolist() for ring in rings[:MOST_RINGS]
    ]


def find_rings(pixels: np.ndarray) -> list[np.ndarray]:
    """The rings along the edges of 0/1 pixels [h, w] as x, y [K, 2]; around holes the other way.

    Traced in twice as many cells and one, of which the even ones are the edges: a ring through the
    centres of pixels cuts half of one off, which is all of what is thin.
    """
    rings: list[np.ndarray] = []
    rest, is_hole = pixels, False
    for _ in range(2 * MOST_DEPTH):
        cells = np.zeros((2 * pixels.shape[0] + 1, 2 * pixels.shape[1] + 1), np.uint8)
        cells[1::2, 1::2] = rest
        found, _ = cv2.findContours(
            cv2.dilate(cells, np.ones((3, 3), np.uint8)),
            cv2.RETR_EXTERNAL,
            cv2.CHAIN_APPROX_SIMPLE,
        )
        if not found:
            break
        for ring in found:
            points = ring.reshape(-1, 2) / 2
            rings.append(points[::-1] if (area_of(points) < 0) != is_hole else points)
        cells[:] = 0
        cv2.drawContours(cells, found, -1, 1, cv2.FILLED)
        rest, is_hole = cells[1::2, 1::2] & (1 - rest), not is_hole  # what is filled and should not
    return rings


MOST_DEPTH = 8  # of parts in holes in parts


def area_of(ring: np.ndarray) -> float:
    """The area inside a ring [K, 2], negative when it runs the other way."""
    return cv2.contourArea(ring.astype(np.float32), oriented=True)


def simplify(ring: np.ndarray, step: float, side: float) -> np.ndarray:
    """A ring with fewer points, moved by at most a tenth of how thick it is.

    `step` is what one unit of it takes of the picture's pixels, `side` how many of these it spans.
    """
    points = ring.astype(np.float32).reshape(-1, 1, 2)
    thick = 2 * abs(area_of(ring)) / max(cv2.arcLength(points, True), 1e-6)
    short = cv2.approxPolyDP(points, min(min(1.0, 0.004 * side) / step, 0.1 * thick), True)
    return short.reshape(-1, 2) if len(short) >= 3 else ring


def to_coco(
    annotations: Sequence[Mapping[str, Any]],
    width: int,
    height: int,
    labels: Mapping[int, str],
    image_id: int = 1,
    file_name: str = "image",
) -> dict[str, Any]:
    """Annotations as a COCO object: boxes x, y, w, h and, in pixels, polygons, or RLE for a mask
    with holes; of what has no mask the box.
    """
    entries = []
    for number, annotation in enumerate(annotations, 1):
        (xmin, ymin), _, (xmax, ymax), _ = annotation["bound"] or [[0, 0], [0, 1], [1, 1], [1, 0]]
        box = [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
        segmentation, area = to_segmentation(annotation, width, height)
        entries.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": annotation["tag"]["id"],
                "bbox": box,
                "area": area,
                "segmentation": segmentation,
                "iscrowd": 0,
                "score": annotation["confidence"],
            }
        )
    used = {annotation["tag"]["id"]: annotation["tag"]["name"] for annotation in annotations}
    return {
        "images": [{"id": image_id, "width": width, "height": height, "file_name": file_name}],
        "annotations": entries,
        "categories": [
            {"id": number, "name": name} for number, name in sorted({**used, **labels}.items())
        ],
    }


def rings_of(annotation: Mapping[str, Any], width: int, height: int) -> list[np.ndarray]:
    """The rings of an annotation's mask in pixels, x, y float64 [K, 2] each; none without one."""
    rings = annotation.get("contours") or [annotation["contour"] or []]
    return [np.array(ring, np.float64) * [width, height] for ring in rings if ring]


def to_segmentation(
    annotation: Mapping[str, Any], width: int, height: int
) -> tuple[list[list[float]] | dict[str, Any], float]:
    """COCO's `segmentation` of an annotation, and its area in pixels."""
    rings = rings_of(annotation, width, height)
    if not rings:
        bound = annotation["bound"] or [[0, 0], [0, 1], [1, 1], [1, 0]]
        box = np.array(bound, np.float64) * [width, height]
        return [box.ravel().tolist()], abs(area_of(box))
    runs = encode_runs(rings, width, height)
    area = float(sum(runs[1::2]))
    if any(area_of(ring) < 0 for ring in rings[1:]):
        return {"size": [height, width], "counts": runs}, area
    return [ring.ravel().tolist() for ring in rings], area or abs(area_of(rings[0]))


def encode_runs(rings: Sequence[np.ndarray], width: int, height: int) -> list[int]:
    """What rings hold by the even-odd rule, as COCO's run lengths: column by column, of 0 and 1 in
    turn; a pixel is in when its centre is.
    """
    flips = []  # where a column goes in or out, as the number of the pixel
    for ring in rings:
        ends = np.stack([ring, np.roll(ring, -1, axis=0)])  # [2, K, 2]
        ends = np.where(ends[:1, :, :1] <= ends[1:, :, :1], ends, ends[::-1])  # from left to right
        (left, top), (right, bottom) = ends[0].T, ends[1].T
        first, after = (np.clip(np.ceil(x - 0.5), 0, width).astype(int) for x in (left, right))
        edge = np.repeat(np.arange(len(ring)), after - first)  # one for each column it crosses
        column = (
            first[edge] + np.arange(len(edge)) - (np.cumsum(after - first) - (after - first))[edge]
        )
        slope = (bottom - top)[edge] / (right - left)[edge]
        crossing = top[edge] + (column + 0.5 - left[edge]) * slope
        row = np.clip(np.ceil(crossing - 0.5), 0, height).astype(int)
        flips.append(column * height + row)
    places, times = np.unique(np.concatenate(flips), return_counts=True)
    places = places[times % 2 == 1]
    runs = np.diff(np.concatenate([[0], places, [width * height]])).tolist()
    return runs if runs[-1] else runs[:-1]


def present(
    tensors: Tensors, image: np.ndarray, labels: Mapping[int, str], form: str = "json"
) -> dict[str, Any] | bytes:
    """The answer to a request: `json` or `coco` objects with what routines added,
    or the drawn picture as `png` or `jpeg` bytes.
    """
    answer = tensors.get("answer", {})
    if tensors.get("only_answer"):
        return answer
    height, width = image.shape[:2]
    annotations = to_annotations(tensors, width, height)
    if form in ("png", "jpeg"):
        return draw_annotations(image, annotations, form)
    return {
        **(
            to_coco(annotations, width, height, labels)
            if form == "coco"
            else {"predictions": annotations}
        ),
        **answer,
    }


COLOURS = (
    (230, 60, 60),
    (60, 120, 230),
    (40, 170, 90),
    (230, 150, 30),
    (150, 80, 200),
    (30, 170, 190),
    (220, 90, 160),
    (120, 120, 40),
    (250, 210, 60),
    (120, 80, 50),
    (140, 220, 120),
    (90, 100, 120),
)


def draw_annotations(
    image: np.ndarray, annotations: Sequence[Mapping[str, Any]], kind: str
) -> bytes:
    """The picture, uint8 RGB [H, W, 3], at its own size with boxes, masks and names,
    as `png` or `jpeg` bytes.
    """
    canvas = np.ascontiguousarray(image).copy()
    height, width = canvas.shape[:2]
    side = math.sqrt(height * width)
    thick = max(1, round(side / (350 if len(annotations) <= 50 else 500)))
    for annotation in reversed(annotations):  # the best on top
        draw_shape(canvas, annotation, thick)
    labels = draw_labels(annotations, max(11, round(side / 40)))
    for label, (left, top) in place_labels(labels, annotations, width, height, thick):
        part = canvas[top : top + label.shape[0], left : left + label.shape[1]]
        part[:] = label[: part.shape[0], : part.shape[1]]
    done, data = cv2.imencode(
        ".jpg" if kind == "jpeg" else ".png", cv2.cvtColor(canvas, cv2.COLOR_RGB2BGR)
    )
    if not done:
        raise ImageError("picture cannot be drawn")
    return data.tobytes()


def colour_of(annotation: Mapping[str, Any]) -> tuple[int, int, int]:
    return COLOURS[annotation["tag"]["id"] % len(COLOURS)]


def draw_shape(canvas: np.ndarray, annotation: Mapping[str, Any], thick: int) -> None:
    """Draw a mask, half-transparent with its outline, or else a box, into a picture."""
    height, width = canvas.shape[:2]
    colour = colour_of(annotation)
    rings = [np.rint(ring - 0.5).astype(np.int32) for ring in rings_of(annotation, width, height)]
    if not rings:
        if annotation["bound"]:
            bound = np.rint(np.array(annotation["bound"]) * [width, height]).astype(int)
            (left, top), _, (right, bottom), _ = bound.tolist()
            end = min(right, width - 1), min(bottom, height - 1)
            cv2.rectangle(canvas, (left, top), end, colour, thick)
        return
    points = np.concatenate(rings)
    left, top = np.maximum(points.min(axis=0), 0)
    right, bottom = points.max(axis=0) + 1
    part = canvas[top:bottom, left:right]
    shade = part.copy()
    cv2.fillPoly(shade, [ring - [left, top] for ring in rings], colour)
    part[:] = cv2.addWeighted(shade, 0.5, part, 0.5, 0)
    cv2.polylines(canvas, rings, True, colour, thick, cv2.LINE_AA)


# --- names in a picture ---------------------------------------------------------------------------


LABEL_SHARE = 0.15  # of a picture that names may cover
MOST_LABELS, MOST_CLASSES = 300, 5  # names of boxes; lines of a classifier
MOST_LETTERS = 40


def draw_labels(annotations: Sequence[Mapping[str, Any]], size: int) -> list[np.ndarray]:
    """Name and confidence of each, uint8 RGB [h, w, 3], with letters of `size` pixels."""
    most = MOST_LABELS if annotations and annotations[0]["bound"] else MOST_CLASSES
    return [draw_label(annotation, size) for annotation in annotations[:most]]


def draw_label(annotation: Mapping[str, Any], size: int) -> np.ndarray:
    colour, name = colour_of(annotation), str(annotation["tag"]["name"])
    name = "".join(letter for letter in " ".join(name.split()) if letter.isprintable())
    if len(name) > MOST_LETTERS:
        name = f"{name[: MOST_LETTERS - 2]}.."
    if find_font(name) is None:  # rather its number than boxes in place of letters
        name = f"#{annotation['tag']['id']}"
    text, path = f"{name} {annotation['confidence']:.2f}", find_font(name) or PILLOW_FONT
    is_light = np.dot(colour, (0.299, 0.587, 0.114)) > 150
    ink, room = (0, 0, 0) if is_light else (255, 255, 255), max(2, size // 5)
    if path == OPENCV_FONT:
        return draw_opencv(text, size, room, ink, colour)
    font = open_font(path, size)
    left, _, right, _ = font.getbbox(text)
    above, below = line_of(font)
    wide, tall = math.ceil(right - left) + 2 * room, above + below + room
    label = Image.new("RGB", (wide, tall), colour)
    ImageDraw.Draw(label).text((room - left, room // 2 + above), text, ink, font, anchor="ls")
    return np.asarray(label)


OPENCV_LOCK = threading.Lock()  # nothing says that its fonts may be used in two threads


def draw_opencv(
    text: str, size: int, room: int, ink: tuple[int, ...], colour: tuple[int, ...]
) -> np.ndarray:
    """A line of text in OpenCV's own font, uint8 RGB [h, w, 3], with `room` at its sides."""
    with OPENCV_LOCK:
        font = open_font(OPENCV_FONT, 0)
        _, _, wide, _ = cv2.getTextSize((10_000, 10_000), text, (0, 0), font, size)
        label = np.full((round(1.3 * size) + room, wide + 2 * room, 3), colour, np.uint8)
        cv2.putText(label, text, (room, round(1.05 * size) + room // 2), ink, font, size)
    return label


def line_of(font: Any) -> tuple[int, int]:
    """What a line of a font takes above and below its letters' feet, in pixels."""
    return font.getmetrics() if hasattr(font, "getmetrics") else (font.getbbox("Ag")[3], 0)


def place_labels(
    labels: Sequence[np.ndarray],
    annotations: Sequence[Mapping[str, Any]],
    width: int,
    height: int,
    thick: int,
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Each label that there is room for with its left and top, the most confident first.

    No two overlap, and all together they leave the picture to be seen.
    """
    taken: list[tuple[int, int, int, int]] = []
    left_over = LABEL_SHARE * width * height
    for index, (label, annotation) in enumerate(zip(labels, annotations)):
        tall, wide = label.shape[:2]
        left_over -= tall * wide
        if index and left_over < 0:
            return
        for left, top in label_places(annotation, width, height, tall, wide, index, thick):
            left, top = max(0, min(left, width - wide)), max(0, min(top, height - tall))
            right, bottom = left + wide, top + tall
            if all(left >= r or right <= x or top >= b or bottom <= y for x, y, r, b in taken):
                taken.append((left, top, right, bottom))
                yield label, (left, top)
                break
        else:
            left_over += tall * wide


def label_places(
    annotation: Mapping[str, Any],
    width: int,
    height: int,
    tall: int,
    wide: int,
    index: int,
    thick: int,
) -> list[tuple[int, int]]:
    """Where a label may stand, as left and top, the best first: over its box, in it, under it; of a
    classifier's names under the one before.
    """
    if not annotation["bound"]:
        return [(0, index * tall)] if index == 0 or (index + 1) * tall <= height else []
    bound = np.rint(np.array(annotation["bound"]) * [width, height]).astype(int).tolist()
    (left, top), _, (right, bottom), _ = bound
    edge = left - thick // 2
    over = [(edge, top - tall), (right - wide, top - tall)]
    if top < tall:
        over = []
    inside = [(left, top), (left, bottom - tall)] if right - left > wide else []
    return [*over, *inside, (edge, bottom), (right, top), (left - wide, top)]


FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
# the first that has the letters is taken; other fonts after these
FONTS = (
    "NotoSans-Regular",
    "DejaVuSans",
    "LiberationSans-Regular",
    "Arial",
    "NotoSansCJK-Regular",
    "NotoSansCJKsc-Regular",
    "NotoSans*-Regular",
    "wqy-*",
    "msyh",
    "PingFang",
    "Arial Unicode*",
    "Nirmala",
    "malgun",
    "*-Regular",
    "*",
)
MOST_FONTS = 500
OPENCV_FONT = ":opencv"  # in OpenCV from 5 on: most scripts that are written from the left
PILLOW_FONT = ":pillow"  # English alone


@functools.cache
def list_fonts() -> list[str]:
    """The paths of the machine's fonts, those of FONTS first; at the end what libraries bring."""
    found = [
        path
        for folder in FONT_FOLDERS
        for path in Path(folder).expanduser().rglob("*.[otOT][tT][fcFC]")
    ]

    def rank(path: Path) -> tuple[int, str]:
        names = (n for n, name in enumerate(FONTS) if fnmatch.fnmatchcase(path.stem, name))
        return next(names), path.name

    brought = [OPENCV_FONT, PILLOW_FONT] if hasattr(cv2, "FontFace") else [PILLOW_FONT]
    return [*map(str, sorted(found, key=rank)[:MOST_FONTS]), *brought]


@functools.lru_cache(maxsize=64)
def open_font(path: str, size: int) -> Any:
    """A font of Pillow's, or OpenCV's own; raises OSError for a file that is none."""
    if path == OPENCV_FONT:
        return cv2.FontFace("uni")
    return ImageFont.load_default(size) if path == PILLOW_FONT else ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=4096)
def find_font(text: str) -> str | None:
    """The path of the first font that has all letters of a text; None where none has."""
    letters = {letter for letter in text if unicodedata.category(letter)[0] not in "MCZ"}
    letters |= set("0123456789.#")  # which follow in a label
    return next((path for path in list_fonts() if has_letters(path, letters)), None)


def has_letters(path: str, letters: Iterable[str]) -> bool:
    """Whether a font has them: it draws the same for all that it has not."""
    try:
        none = {draw_letter(path, letter) for letter in ("\U0010fffd", "\ue83a")}
        return not any(draw_letter(path, letter) in none for letter in letters)
    except (OSError, ValueError):  # a damaged font; a font of pictures alone
        return False


def draw_letter(path: str, letter: str) -> tuple[Any, bytes]:
    """The pixels of a letter in a font, to be compared; nothing where it cannot be drawn well."""
    if path != OPENCV_FONT:
        mask = open_font(path, 16).getmask(letter)
        return mask.size, bytes(mask)
    if unicodedata.bidirectional(letter) in ("R", "AL"):  # it would write them from the left
        letter = "\U0010fffd"
    label = draw_opencv(letter, 16, 2, (255, 255, 255), (0, 0, 0))
    return label.shape, label.tobytes()


# ==================================================================================================
# One picture through one model
# In: a model's signature, a picture, chains of routines. Out: predictions, in coordinates of the
# whole picture.
# ==================================================================================================


@dataclass(frozen=True)
class ImageModel:
    """How a deployment shows pictures to its model and reads the answer. Raises ValueError when the
    signature is no image model's.

    `inputs` and `outputs` are name -> (dtype such as `DT_UINT8`, shape or None); `rename` gives the
    model's own output names for a family's; pictures are shown as `pixel * scale + offset`.
    """

    inputs: Mapping[str, tuple[str, tuple[int | None, ...] | None]]
    outputs: Mapping[str, tuple[str, tuple[int | None, ...] | None]]
    labels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    family: str | None = None
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scale: float = 1.0
    offset: float = 0.0
    most: int = 300

    def __post_init__(self) -> None:
        if len(self.inputs) != 1:
            raise ValueError(
                f"an image model takes one input, this one takes {', '.join(self.inputs) or 'none'}"
            )
        ((name, (dtype, shape)),) = self.inputs.items()
        if dtype != "DT_STRING" and (
            shape is None or len(shape) != 4 or shape[3] != 3 or shape[0] not in (None, 1)
        ):
            raise ValueError(
                f"input '{name}' is no picture: expected [1, H, W, 3] or encoded bytes, got "
                f"{list(shape or ())}"
            )
        if self.family is not None and self.family not in FAMILIES:
            raise ValueError(f"family: expected one of {', '.join(FAMILIES)}, got '{self.family}'")
        object.__setattr__(self, "family", self.family or detect_family(self.shapes()))
        check_labels(self.labels, *count_classes(self.family, self.shapes(), self.labels))

    def shapes(self) -> dict[str, tuple[int | None, ...] | None]:
        """The output shapes under the family's names."""
        own = {theirs: name for name, theirs in self.rename.items()}
        return {own.get(name, name): shape for name, (_, shape) in self.outputs.items()}

    def shown_bytes(self, image: np.ndarray) -> int:
        """What `show` takes beside the picture, in bytes; floats are made in two steps."""
        ((_, (dtype, shape)),) = self.inputs.items()
        if dtype == "DT_STRING":
            return 2 * image.nbytes
        _, height, width, _ = shape or (1, None, None, 3)
        pixels = (height or image.shape[0]) * (width or image.shape[1])
        return pixels * 3 * (1 if dtype == "DT_UINT8" else 8)

    def show(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The model's input for a picture, uint8 RGB [H, W, 3]: resized when its size is fixed,
        one row.
        """
        ((name, (dtype, shape)),) = self.inputs.items()
        if dtype == "DT_STRING":
            done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            encoded = np.array([data.tobytes()], object)
            return {name: encoded if shape is None or len(shape) else encoded[0]}
        _, height, width, _ = shape or (1, None, None, 3)
        image = resize(image, width or image.shape[1], height or image.shape[0])
        if dtype == "DT_UINT8":
            return {name: image[np.newaxis]}
        return {name: (image * np.float32(self.scale) + np.float32(self.offset))[np.newaxis]}

    def read(self, outputs: Mapping[str, np.ndarray]) -> Tensors:
        own = {theirs: name for name, theirs in self.rename.items()}
        return read_outputs(
            self.family or "",
            {own.get(name, name): array for name, array in outputs.items()},
            self.labels,
            self.most,
        )


def predict_image(
    model: ImageModel,
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    image: np.ndarray,
    chain: Sequence[Any],
) -> Tensors:
    """Run a picture through the routines before the model, the model, and those after it,
    each in order. Raises RoutineError.
    """
    shown, region = run_before([step for step in chain if step.before_model], image)
    tile = find_tile(chain)
    tensors = (
        model.read(run(model.show(shown)))
        if tile is None
        else find_in_tiles(tile, model, run, shown)
    )
    if "boxes" in tensors:
        tensors["boxes"] = place_boxes(tensors["boxes"], region)
    return run_after(chain, {**tensors, "labels": model.labels})


def run_after(chain: Sequence[Any], tensors: Tensors) -> Tensors:
    """Apply the routines after the model, in order; RoutineError for one that lacks boxes."""
    for step in chain:
        if step.before_model:
            continue
        try:
            tensors = step(tensors)
        except KeyError as error:
            missing = error.args[0]
            if missing not in ("boxes", "masks") or missing in tensors:
                raise
            raise RoutineError(
                f"{type(step).__name__} needs {missing}, and this model answers none"
            ) from None
    return tensors


# --- a picture in tiles ---------------------------------------------------------------------------


TILES_AT_ONCE = 8
TILE_BYTES = 64 << 20  # of all that are shown at once
CUT = 2  # pixels from a tile's edge within which a box may be of a part
COVERED = 0.7  # of a part's box by a whole one's


def find_tile(chain: Sequence[Any]) -> Tile | None:
    """The last Tile of a chain."""
    return next((step for step in reversed(chain) if isinstance(step, Tile)), None)


def shown_bytes(model: ImageModel, image: np.ndarray, chain: Sequence[Any]) -> int:
    """What showing a picture takes beside it, in bytes, in tiles too."""
    tile = find_tile(chain)
    return model.shown_bytes(image) + (0 if tile is None else TILE_BYTES)


def find_in_tiles(
    tile: Tile,
    model: ImageModel,
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    image: np.ndarray,
) -> Tensors:
    """What a model sees in the tiles of a picture, and in the whole, merged.

    Never more than 10 x `model.most` predictions are held. Raises RoutineError for a classifier.
    """
    windows = tile.windows(image)
    tall, wide = image.shape[:2]
    found: Tensors = {}
    if tile.whole or len(windows) == 1:
        found = mark_cut(model.read(run(model.show(image))), np.array([0, 0, tall, wide]), image)
    if len(windows) > 1:
        for window, outputs in run_tiles(model, run, image, windows):
            new = mark_cut(model.read(outputs), window, image)
            found = keep_best([found, new] if found else [new], 10 * model.most)
    found = drop_parts(found)
    del found["cut"]
    return keep_best([suppress(found, tile.iou)], model.most)


def run_tiles(
    model: ImageModel,
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    image: np.ndarray,
    windows: np.ndarray,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Each window [4] with the model's outputs for it, of one row; several at once where both
    sides of the signature have rows.
    """
    specs = [*model.inputs.values(), *model.outputs.values()]
    has_rows = all(shape and shape[0] is None for _, shape in specs)
    tiles = [image[top:bottom, left:right] for top, left, bottom, right in windows]
    fitting = TILE_BYTES // max(1, model.shown_bytes(tiles[0]))
    at_once = min(TILES_AT_ONCE, max(1, fitting)) if has_rows else 1
    for start in range(0, len(tiles), at_once):
        some = [model.show(np.ascontiguousarray(part)) for part in tiles[start : start + at_once]]
        inputs = {name: np.concatenate([one[name] for one in some]) for name in some[0]}
        if len(some) == 1:  # as it is shown, row or none
            inputs = some[0]
        outputs = run(inputs)
        for index, window in enumerate(windows[start : start + at_once]):
            one = slice(index, index + 1)
            mine = {name: array[one] for name, array in outputs.items()} if has_rows else outputs
            yield window, mine


def mark_cut(tensors: Tensors, window: np.ndarray, image: np.ndarray) -> Tensors:
    """The predictions of a window in coordinates of the picture; `cut`, bool [N], says which end
    at an edge of the window that is none of the picture's.
    """
    if "boxes" not in tensors:
        raise RoutineError("Tile needs boxes, and this model answers none")
    size = np.tile(image.shape[:2], 2)
    boxes = place_boxes(tensors["boxes"], window / size)
    inner = window != [0, 0, *image.shape[:2]]
    cut = (inner & (np.abs(boxes * size - window) <= CUT)).any(axis=1)
    return {**tensors, "boxes": boxes, "cut": cut}


def keep_best(parts: Sequence[Tensors], most: int) -> Tensors:
    """Predictions of several runs of a model as one, best first, at most `most`."""
    shapes = [part["masks"].shape[1:] for part in parts if "masks" in part]
    side = tuple(np.max(shapes, axis=0).tolist()) if shapes else ()
    joined = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name == "masks":
            arrays = [resize_masks(array, side) for array in arrays]
        joined[name] = np.concatenate(arrays)
    return keep(joined, np.argsort(-joined["scores"], kind="stable")[:most])


def resize_masks(masks: np.ndarray, side: tuple[int, ...]) -> np.ndarray:
    """Masks [N, mh, mw] at another size, mh and mw."""
    if masks.shape[1:] == side:
        return masks
    resized = [cv2.resize(mask.astype(np.float32), side[::-1]) for mask in masks]
    return np.array(resized, np.float32).reshape(-1, *side)


def drop_parts(tensors: Tensors) -> Tensors:
    """Predictions without those that an edge cuts off and that lie in a larger one of their class,
    at least half as confident.
    """
    low, high = tensors["boxes"][:, :2], tensors["boxes"][:, 2:]
    area = np.prod(high - low, axis=1)
    alive = np.ones(len(area), bool)
    for index in np.flatnonzero(tensors["cut"]):
        shared = np.minimum(high, high[index]) - np.maximum(low, low[index])
        covers = np.prod(np.clip(shared, 0, None), axis=1) >= COVERED * area[index]
        is_larger = (area > area[index]) & (tensors["scores"] >= tensors["scores"][index] / 2)
        alive[index] = not (
            covers & is_larger & (tensors["classes"] == tensors["classes"][index])
        ).any()
    return keep(tensors, alive)
