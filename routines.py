"""Images in, predictions out, and the routines between: what `/predict` adds to a served model.

    Images in        bytes, base64, nested lists or a URL to uint8 RGB [H, W, 3], within limits
    Model outputs    families of detectors, segmenters and classifiers to the same arrays; your own
                     with `@family`
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
import logging
import math
import os
import queue
import re
import runpy
import socket
import ssl
import string
import sys
import threading
import time
import types
import typing
import unicodedata
import zlib
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit
from xml.sax.saxutils import escape

import cv2
import ml_dtypes
import numpy as np
from PIL import (
    Image,
    ImageDraw,
    ImageFont,
    ImageOps,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    features,
)

Tensors = dict[str, Any]
logger = logging.getLogger("serving")
# True while a module of `routine_modules` is being imported: its routines and families belong to
# the importing server alone and are not declared for the whole process.
IMPORTING: contextvars.ContextVar[bool] = contextvars.ContextVar("importing", default=False)


class ImageError(ValueError):
    """A picture cannot be read; `too_large` says that a limit is the reason."""

    def __init__(self, message: str, too_large: bool = False):
        super().__init__(message)
        self.too_large = too_large


class NoPicture(ValueError):
    """A signature takes no pictures, or does not show that it does."""


class RoutineError(ValueError):
    """A routine cannot work on this model's predictions, or on this picture."""

    step: Any = None  # the routine, if it needs an array that the model never answers


# ==================================================================================================
# Images in
# In: what a request holds. Out: uint8 RGB [H, W, 3], upright; or ImageError with the reason.
# ==================================================================================================


def allow_all(size: int) -> None:
    """Allow any number of bytes: the default for `ImageLimits.allow`."""


@dataclass(frozen=True)
class ImageLimits:
    """How pictures are read: size limits, download time in seconds, which frame of several.

    `allow` is called with a number of bytes before they are allocated, and with a negative number
    when they are free again; its exceptions pass through. Transparent pixels are laid on
    `background`; with `alpha`, a picture that has transparency stays RGBA, uint8 [H, W, 4].
    """

    max_bytes: int = 50 << 20
    max_pixels: int = 50_000_000
    download_seconds: float = 10
    allowed_hosts: tuple[str, ...] = ()
    allow: Callable[[int], None] = allow_all
    max_pictures: int = 32
    background: tuple[int, ...] = (255, 255, 255)
    frame: int = 0
    alpha: bool = False


# Pillow reads AVIF from 11.3 on, if its wheel was built with it.
HAS_AVIF = "avif" in features.modules and features.check("avif")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF") + (("AVIF",) if HAS_AVIF else ())
MOST_FRAMES = 10_000  # a requested frame's number is below this
FRAMES_DECODED = 8  # times `max_pixels`, for a frame and all frames that are decoded before it


def decode_image(data: bytes, limits: ImageLimits) -> np.ndarray:
    """Decode picture bytes to uint8 RGB [H, W, 3], upright by EXIF; one frame of several."""
    return unpack_image(open_image(data, limits), limits)


def open_image(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read only a picture's header, and call `allow` for the array that it decodes to.

    A small file that would unpack to a huge picture is refused before it is decoded.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"image of {len(data)} bytes is over the limit of {limits.max_bytes}", too_large=True
        )
    with image_damage(limits, data):
        image = open_heif(data) if is_heif(data) else Image.open(io.BytesIO(data), formats=FORMATS)
        tile = tile_size(image)
    check_pixels(*image.size, limits)
    check_pixels(*tile, limits)
    if limits.frame:
        seek_frame(image, limits)
    limits.allow(3 * image.width * image.height)
    return image


def is_heif(data: bytes) -> bool:
    """Whether bytes are a HEIC or HEIF picture, not an AVIF, which uses the same container."""
    brands = data[8:12] + data[16 : int.from_bytes(data[:4], "big")][:200]
    known = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    return data[4:8] == b"ftyp" and data[8:12] in known and not re.search(b"avi[fs]", brands)


def open_heif(data: bytes) -> Image.Image:
    """Open a HEIC picture with pillow-heif, if it is installed.

    It is called directly: registered as a Pillow plug-in it would change the whole process.
    """
    try:
        import pillow_heif  # optional, and some 10 MB
    except ImportError:
        raise ImageError(
            "image is HEIC, which this server can read only if pillow-heif is installed; "
            f"else expected one of {', '.join(FORMATS)}"
        ) from None
    return pillow_heif.HeifImageFile(io.BytesIO(data))


def seek_frame(image: Image.Image, limits: ImageLimits) -> None:
    """Go to a later frame of an animation, or a later page of a TIFF.

    An animation's frames are decoded in turn up to the wanted one, so their total is limited.
    """
    pixels = (limits.frame + 1) * image.width * image.height
    if image.format != "TIFF" and pixels > FRAMES_DECODED * limits.max_pixels:
        raise ImageError(
            f"frame: {limits.frame} of an animation of {image.width}x{image.height} pixels "
            "needs too much decoding",
            too_large=True,
        )
    working = working_bytes(image)
    limits.allow(working)
    with image_damage(limits):
        try:
            image.seek(limits.frame)
        except EOFError:
            raise ImageError(f"frame: image has no frame {limits.frame}") from None
        tile = tile_size(image)
    limits.allow(-working)
    check_pixels(*image.size, limits)
    check_pixels(*tile, limits)


def unpack_image(image: Image.Image, limits: ImageLimits) -> np.ndarray:
    """Decode a picture whose header has been read, and free Pillow's memory of it."""
    working = working_bytes(image)
    limits.allow(working)
    with contextlib.closing(image), image_damage(limits):
        fit_clear(image)
        image.load()
        turn_upright(image)
        array = to_pixels(image, limits)
    limits.allow(array.nbytes - 3 * array.shape[0] * array.shape[1] - working)
    return array


@contextlib.contextmanager
def image_damage(limits: ImageLimits, data: bytes = b"") -> Iterator[None]:
    """Raise ImageError for `data` that is no picture or a damaged one; MemoryError passes."""
    try:
        yield
    except (MemoryError, ImageError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(
            f"image is over max_pixels {limits.max_pixels}, or Pillow's own limit", too_large=True
        ) from None
    except UnidentifiedImageError:
        start = data[:8].hex(" ") or "nothing"
        raise ImageError(
            f"not an image of a known format; expected one of {', '.join(FORMATS)}, "
            f"got bytes that start with {start}"
        ) from None
    except Exception as error:  # Pillow's decoders raise any kind of exception for damaged bytes
        raise ImageError(f"image is damaged: {plain(error)}") from None


def check_pixels(width: int, height: int, limits: ImageLimits, what: str = "image") -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{what} of {width}x{height} pixels is over the limit of {limits.max_pixels}",
            too_large=True,
        )


def tile_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, which may be larger than the picture; else 0, 0."""
    tags = getattr(image, "tag_v2", {})
    width, height = tags.get(TiffImagePlugin.TILEWIDTH, 0), tags.get(TiffImagePlugin.TILELENGTH, 0)
    return abs(int(width)), abs(int(height))


def working_bytes(image: Image.Image) -> int:
    """The bytes that decoding an opened picture needs besides the array that is kept.

    Pillow holds 1, 2 or 4 bytes a pixel, 4 more for a converted picture, and a second copy of the
    array. That is more than a progressive JPEG or a rotation needs before the array exists.
    A transparent picture needs a canvas too.
    """
    wide = is_wide(image)
    held = {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if wide else 4)
    converted = 5 if wide or image.mode in ("I", "F") else 0 if image.mode == "RGB" else 4
    canvases = {"WEBP": 9, "AVIF": 4, "HEIF": 4}.get(image.format or "", 0)
    canvases += 4 if has_alpha(image) else 0
    tile_width, tile_height = tile_size(image)
    pixels = image.width * image.height
    return (held + converted + canvases + 3) * pixels + 4 * tile_width * tile_height


def fit_clear(image: Image.Image) -> None:
    """Scale a PNG's transparent colour as Pillow will scale the pixels, which it does not itself.

    Of 16-bit colours Pillow keeps the high bytes, which many share: none of them is transparent.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile:
        return
    raw = image.tile[0][3]
    if raw == "RGB;16B":
        image.info.pop("transparency", None)
    elif raw in ("L;2", "L;4") and "transparency" in image.info:
        most = 3 if raw == "L;2" else 15
        image.info["transparency"] = (image.info["transparency"] & most) * 255 // most


def turn_upright(image: Image.Image) -> None:
    """Rotate a loaded picture in place by its EXIF orientation, if that can be read."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # Pillow's EXIF reader raises any kind of exception
        return


def upright(image: Image.Image) -> Image.Image:
    """A copy of the caller's picture, rotated by its EXIF orientation."""
    copy = image.copy()
    copy.format = image.format  # lost by copy(); format and TIFF tags tell what a mode means
    if hasattr(image, "tag_v2"):
        copy.tag_v2 = image.tag_v2  # type: ignore[attr-defined]
    turn_upright(copy)
    return copy


def to_pixels(image: Image.Image, limits: ImageLimits) -> np.ndarray:
    """A picture of any mode as uint8 RGB [H, W, 3], transparency laid on the background; with
    `limits.alpha`, a picture with transparency as RGBA [H, W, 4].

    16-bit greys keep their high byte. Raises ImageError for int32 or float values outside 0..255.
    """
    if is_wide(image):
        image = narrow(image)
    elif image.mode in ("I", "F"):
        image = Image.fromarray(to_bytes(np.asarray(image), "image"))
    if not has_alpha(image):
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    return np.asarray(image if limits.alpha else lay_on(image, limits.background))


def is_wide(image: Image.Image) -> bool:
    """Whether a picture's greys have 16 bits; `I` is Pillow 10's mode of such PNGs."""
    return image.mode.startswith("I;16") or image.mode == "I" and image.format == "PNG"


def narrow(image: Image.Image) -> Image.Image:
    """16-bit greys as their high byte, 12-bit ones as their high 8 bits; the range of the values
    in the picture does not matter.
    """
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        values = (4095 if bits == 12 else 65535) - values
    grey = Image.fromarray((values >> (4 if bits == 12 else 8)).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    alpha = Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
    return Image.merge("LA", [grey, alpha])


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture may have transparent pixels."""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def lay_on(image: Image.Image, background: Sequence[int]) -> Image.Image:
    """An RGBA picture laid on a colour, as RGB."""
    canvas = Image.new("RGB", image.size, tuple(background))
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def on_background(image: np.ndarray, background: Sequence[int]) -> np.ndarray:
    """RGBA [H, W, 4] laid on a colour, as RGB [H, W, 3]; RGB is returned unchanged."""
    if image.shape[2] == 3:
        return image
    return np.asarray(lay_on(Image.fromarray(image), background))


def to_bytes(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers 0..255 as uint8, fractions rounded; raises ImageError for other numbers.

    Floats of at most 1 are ambiguous (is 1.0 white, or nearly black?), so they are refused.
    """
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 255):  # NaN fails too
        raise ImageError(f"{what}: expected values 0..255, got {low}..{high}")
    if values.dtype.kind == "f" and 0 < high <= 1:
        raise ImageError(
            f"{what}: expected values 0..255, got floats {low}..{high}: multiply them by 255"
        )
    return (np.rint(values) if values.dtype.kind == "f" else values).astype(np.uint8)


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
    except ValueError:  # not the plain spelling that most clients send
        return decode_base64(text)


def decode_base64(text: str) -> bytes:
    """Decode base64 in any spelling; raises ImageError for text that is not base64."""
    text = re.sub(r"(?i)^\s*data:[^,]{0,200},", "", text)
    text = re.sub(r"\s+", "", text).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise ImageError(f"data is not base64: {error}") from None


def decode_array(value: Any, limits: ImageLimits) -> np.ndarray:
    """Read nested lists or an array [H, W], [H, W, 1], RGB [H, W, 3] or RGBA [H, W, 4] of 0..255
    as uint8 RGB, or as RGBA as `decode_image` does.
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
    check_pixels(width, height, limits, "array")
    limits.allow(4 * height * width + array.nbytes)
    array = to_bytes(array, "array")
    if array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return array if limits.alpha else on_background(array, limits.background)


def read_lists(value: Any) -> np.ndarray:
    """Nested lists of numbers, up to three deep, as an array.

    The lists are checked level by level, so that only numbers reach NumPy: given a text, NumPy
    would allocate the longest text's size for every element.
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


# The dtypes that both a tensor and a .npy file can have; texts of length 1 and more come on top.
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
STRING_BYTES = 64  # the overhead of each text of an array as a Python object
PIECE = 1 << 20  # the most bytes that are read or unpacked in one step


def read_npy(file: IO[bytes], there: int, allow: Callable[[int], None]) -> np.ndarray:
    """Read a .npy from a file of at most `there` bytes: bool, numbers, or texts; never a pickle.

    `allow` is called with the array's bytes before it is allocated. Raises ValueError.
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
    """Fill a uint8 array from a file, piece by piece; ValueError when the file ends too early."""
    start = 0
    while start < data.size:
        piece = file.read(min(PIECE, data.size - start))
        if not piece:
            raise ValueError(f"{data.size} bytes are announced, got {start}")
        data[start : start + len(piece)] = np.frombuffer(piece, np.uint8)
        start += len(piece)


def read_npy_head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read shape, whether the order is Fortran's, and dtype; ValueError for a dtype or shape that
    no tensor can have.
    """
    try:
        version = np.lib.format.read_magic(file)
        # Version 3 only adds UTF-8 field names to version 2, and arrays with fields are refused.
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, is_fortran, dtype = read(file)
    except MemoryError:  # raised by Python's parser, of a header of 10,000 bytes at most
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


def decode_npy(data: bytes, limits: ImageLimits) -> np.ndarray | list[np.ndarray]:
    """Read a .npy array as a picture, or an array [N, H, W, C] as N pictures."""
    try:
        array = read_npy(io.BytesIO(data), len(data), limits.allow)
    except ValueError as error:
        raise ImageError(f"body is not a .npy array: {error}") from None
    if array.ndim == 4:
        return read_many(list(array), limits, decode_array, "array")
    return decode_array(array, limits)


def plain(error: BaseException) -> str:
    """An error's text without the addresses of objects."""
    return re.sub(r" ?<[^<>]* at 0x[0-9a-f]+>", "", str(error))


def show_kind(value: Any) -> str:
    """A JSON value in at most 60 characters; an object or array is named, not shown."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    return json.dumps(value[:60] if isinstance(value, str) else value)[:60]


Pictures = np.ndarray | list[np.ndarray]  # one picture, or a list if the request sends a list


def read_request(body: Any, limits: ImageLimits) -> tuple[Pictures, Any]:
    """Read the JSON value `{"image_type": "url" | "base64" | "array", "data": ..., "routines":
    [...], "frame": 0}`. Returns the picture (a list if `data` is a list) and the routines.
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
    limits = dataclasses.replace(limits, frame=read_frame(body.get("frame", limits.frame)))
    expected, name, read = kinds[kind]
    chain = [] if body.get("routines") is None else body["routines"]
    if isinstance(data, list) and (expected is str or is_list_of_arrays(data)):
        for index, item in enumerate(data):
            if not isinstance(item, expected):
                raise ImageError(f"data[{index}]: expected {name}, got {show_kind(item)}")
        return read_many(data, limits, read, "data"), chain
    if not isinstance(data, expected):
        raise ImageError(f"data: expected {name}" + ("" if "data" in body else ", got nothing"))
    return read(data, limits), chain


def read_frame(value: Any) -> int:
    """Read the number of the wanted frame or page: a JSON value or a URL's text; None is 0."""
    number = int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value) else value
    number = 0 if value is None else number
    if type(number) is not int or not 0 <= number < MOST_FRAMES:
        raise ImageError(f"frame: expected 0..{MOST_FRAMES - 1}, got {show_kind(value)}")
    return number


def is_list_of_arrays(value: Any) -> bool:
    """Whether lists are nested four deep: several pictures [H, W, C], not a single one."""
    for _ in range(3):
        if not isinstance(value, list) or not value:
            return False
        value = value[0]
    return isinstance(value, list)


def read_many(
    values: Sequence[Any], limits: ImageLimits, read: Callable, place: str
) -> list[np.ndarray]:
    """Read several pictures, together within the time limit of one download; an error names the
    index of its picture.
    """
    if len(values) > limits.max_pictures:
        text = f"{place}: {len(values)} pictures are over the limit of {limits.max_pictures}"
        raise ImageError(text, too_large=True)
    if not values:
        raise ImageError(f"{place}: expected pictures, got none")
    deadline = time.monotonic() + limits.download_seconds

    def read_one(index: int, limits: ImageLimits) -> np.ndarray:
        left = max(0.001, deadline - time.monotonic())
        try:
            return read(values[index], dataclasses.replace(limits, download_seconds=left))
        except ImageError as error:
            raise ImageError(f"{place}[{index}]: {error}", error.too_large) from None

    if read is not fetch_image:
        return [read_one(index, limits) for index in range(len(values))]
    lock = threading.Lock()

    def allow(size: int) -> None:
        with lock:
            limits.allow(size)

    shared = dataclasses.replace(limits, allow=allow)
    with ThreadPoolExecutor(4, "download") as pool:
        return list(pool.map(lambda index: read_one(index, shared), range(len(values))))


# The first bytes of pictures and of .npy arrays; JSON never begins with them.
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")
NPY_START = b"\x93NUMPY"
OBJECT_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")  # of JSON


def reader_of(
    body: bytes, content_type: str = ""
) -> Callable[[bytes, ImageLimits], Pictures] | None:
    """The decoder of a body that is a picture or a .npy array, chosen by its first bytes or its
    content type; None for other bodies, and for a JSON object whatever its content type.
    """
    if OBJECT_START.match(body):
        return None
    if body.startswith(NPY_START) or content_type == "application/x-npy":
        return decode_npy
    is_known = body.startswith(IMAGE_STARTS) or body[4:8] == b"ftyp"  # AVIF and HEIC
    is_bytes = content_type.startswith(("image/", "application/octet-stream"))
    return decode_image if is_known or is_bytes else None


def read_bytes(body: bytes, limits: ImageLimits, content_type: str = "") -> Pictures:
    """Decode a picture or a .npy array to uint8 RGB [H, W, 3], or to a list for an array of rank 4.

    A body of no known kind is tried as a picture.
    """
    return (reader_of(body, content_type) or decode_image)(body, limits)


# --- URLs: only public addresses; the connection goes to the same address that was checked ------

MAX_REDIRECTS = 10
REDIRECTS = (301, 302, 303, 307, 308)
LOOKUPS = threading.BoundedSemaphore(64)  # concurrent name look-ups; a hanging one keeps its place
Address = tuple[str, int]


def fetch_image(
    url: str, limits: ImageLimits, resolve: Callable = socket.getaddrinfo
) -> np.ndarray:
    """Download a picture over http or https. Every address of every host, redirects included, must
    be public or allowed.

    `resolve` is an argument so that tests can change what a name resolves to. The environment's
    proxies are not used. A `data:` URL contains its picture. Raises ImageError with the reason.
    """
    url = url.strip()
    if url[:5].lower() == "data:":
        return decode_image(read_data_url(url, limits), limits)
    deadline = time.monotonic() + limits.download_seconds
    place = read_url(url)
    try:
        for _ in range(MAX_REDIRECTS + 1):
            data, place = fetch_once(place, limits, deadline, resolve)
            if data is not None:
                return decode_image(data, limits)
    except (http.client.HTTPException, OSError) as error:
        slow = isinstance(error, TimeoutError) or time.monotonic() >= deadline
        reason = (
            f"took longer than {limits.download_seconds:g} s"
            if slow
            else getattr(error, "strerror", None) or type(error).__name__
        )
        raise ImageError(f"url cannot be read: {reason}") from None
    raise ImageError(f"url redirects more than {MAX_REDIRECTS} times")


def read_data_url(url: str, limits: ImageLimits) -> bytes:
    """The bytes of `data:[<type>][;base64],...` (RFC 2397)."""
    head, comma, text = url.partition(",")
    if not comma:
        raise ImageError("url: expected a comma after data:...;base64")
    if head.lower().endswith(";base64"):
        return read_text(unquote(text) if "%" in text else text, limits)
    limits.allow(len(text))
    return unquote_to_bytes(text)


@dataclass(frozen=True)
class Place:
    """The parts of a URL that a request needs; `host` is as written, or in IDNA, without []."""

    url: str
    scheme: str
    host: str
    port: int
    target: str
    login: str = ""  # the value of an Authorization header, made of the URL's user and password

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host.lower(), self.port

    @property
    def host_header(self) -> str:
        """The host as curl writes it: the port only where it is not the scheme's own.

        The signature of a signed URL (S3, Google, Azure) covers this header.
        """
        name = f"[{self.host}]" if ":" in self.host else self.host
        standard = self.port == {"http": 80, "https": 443}[self.scheme]
        return name if standard else f"{name}:{self.port}"


def read_url(url: str) -> Place:
    """Split a URL into its parts; ImageError if it is malformed or neither http nor https."""
    try:
        parts = urlsplit(url)
        login, _, netloc = parts.netloc.rpartition("@")
        port = parts.port
    except ValueError:
        raise ImageError("url is malformed") from None
    if parts.scheme not in ("http", "https") or re.search(r"[\x00-\x20\x7f]", url):
        raise ImageError("url: expected http://..., https://... or data:...")
    host = netloc[1:].partition("]")[0] if netloc.startswith("[") else netloc.partition(":")[0]
    try:
        host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        raise ImageError("url is malformed") from None
    if not host or re.search(r"[\\%/\[\]@]", host):
        raise ImageError("url: expected http://... or https://... with a host")
    path = clean_path(parts.path) + (f"?{parts.query}" if parts.query else "")
    port = {"http": 80, "https": 443}[parts.scheme] if port is None else port
    return Place(url, parts.scheme, host, port, escape_target(path), basic_login(login))


def basic_login(login: str) -> str:
    """`user:password` of a URL as the Authorization header has it; empty where there is none."""
    if not login:
        return ""
    user, _, password = login.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return "Basic " + base64.b64encode(pair).decode()


def clean_path(path: str) -> str:
    """A URL's path without the segments `.` and `..` (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    segments = (path or "/").split("/")[1:]
    for segment in segments:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)


def escape_target(target: str) -> str:
    """Percent-encode what a request line cannot contain; existing escapes stay as they are."""
    return quote(target, safe=string.punctuation)


def redirect_of(place: Place, location: str) -> Place:
    """The target of a Location header: absolute, or relative to `place`; spaces are escaped.

    The login is kept only if scheme, host and port stay the same.
    """
    with contextlib.suppress(UnicodeError):  # http.client decodes headers as Latin-1, always
        location = location.encode("latin-1").decode()
    try:
        url = urljoin(place.url, escape_target(location.strip()))
    except ValueError:
        raise ImageError("url redirects to a malformed URL") from None
    found = read_url(url)
    if not found.login and found.origin == place.origin:
        return dataclasses.replace(found, login=place.login)
    return found


def fetch_once(
    place: Place, limits: ImageLimits, deadline: float, resolve: Callable
) -> tuple[bytes | None, Place]:
    """Send one request; returns the body and `place`, or None and the place it redirects to."""
    addresses = public_addresses(place, limits, deadline, resolve)
    connection = http.client.HTTPConnection(place.host, place.port)
    with open_socket(place, connect_any(addresses, deadline)) as link, cut_at(deadline, link):
        if isinstance(link, ssl.SSLSocket):
            link.do_handshake()
        connection.sock = link
        headers = {
            "Host": place.host_header,
            "Accept": "image/*",
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": "serving",
            "Connection": "close",
        }
        if place.login:
            headers["Authorization"] = place.login
        connection.request("GET", place.target, headers=headers)
        with contextlib.closing(connection.getresponse()) as response:
            location = response.headers.get("Location")
            if response.status in REDIRECTS and location:
                return None, redirect_of(place, location)
            if response.status != 200:
                raise ImageError(f"url answers {response.status} {response.reason}"[:200])
            return read_capped(response, limits, deadline), place


def connect_any(addresses: Sequence[Address], deadline: float) -> socket.socket:
    """Connect to the first address that accepts; each may take an equal share of the time left."""
    for index, address in enumerate(addresses):
        left = max(0.001, deadline - time.monotonic())
        try:
            link = socket.create_connection(address, timeout=left / (len(addresses) - index))
        except OSError:
            if index == len(addresses) - 1:
                raise
        else:
            link.settimeout(max(0.001, deadline - time.monotonic()))
            return link
    raise ConnectionError


def open_socket(place: Place, link: socket.socket) -> socket.socket:
    """The connection, wrapped in TLS for https; the certificate must match the URL's host name."""
    if place.scheme == "http":
        return link
    try:
        return ssl.create_default_context().wrap_socket(
            link, server_hostname=place.host.rstrip("."), do_handshake_on_connect=False
        )
    except BaseException:
        link.close()
        raise


@contextlib.contextmanager
def cut_at(deadline: float, connection: socket.socket) -> Iterator[None]:
    """Shut a connection down at the deadline: a time-out per read
    would never stop a server that sends a few bytes at a time.
    """

    def cut() -> None:
        with contextlib.suppress(OSError):  # TLS's own shutdown would wait for the other side
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_capped(response: http.client.HTTPResponse, limits: ImageLimits, deadline: float) -> bytes:
    """Read and unpack a body up to `max_bytes`; TimeoutError when the deadline cut it off."""
    coding = response.headers.get("Content-Encoding", "identity").strip().lower() or "identity"
    if coding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise ImageError(f"url answers in an encoding that is not known: {coding[:40]!r}")
    data = io.BytesIO()
    for piece in response_pieces(response, coding):
        limits.allow(len(piece))
        data.write(piece)
        if data.tell() > limits.max_bytes:
            raise ImageError(
                f"url answers more than the limit of {limits.max_bytes} bytes", too_large=True
            )
    if time.monotonic() >= deadline:
        raise TimeoutError
    return data.getvalue()


def response_pieces(response: http.client.HTTPResponse, coding: str) -> Iterator[bytes]:
    """A body's pieces as they arrive, unpacked, each of at most PIECE bytes."""
    unpacker: Any = None
    while piece := response.read1(PIECE):  # read1 does not wait until PIECE bytes have come
        if coding == "identity":
            yield piece
            continue
        try:
            if unpacker is None:  # some servers send `deflate` without zlib's head
                raw = coding == "deflate" and piece[0] & 15 != 8
                unpacker = zlib.decompressobj(-15 if raw else 47)
            while piece and not unpacker.eof:
                yield unpacker.decompress(piece, PIECE)
                piece = unpacker.unconsumed_tail
        except zlib.error as error:
            raise ImageError(f"url answers damaged {coding}: {error}") from None
    if unpacker is not None and not unpacker.eof:
        raise ImageError(f"url answers damaged {coding}: it ends too early")


def public_addresses(
    place: Place, limits: ImageLimits, deadline: float, resolve: Callable
) -> list[Address]:
    """The addresses to connect to; raises ImageError when any address of the host is not public."""
    shown = place.host[:100]
    try:
        found = look_up(place, deadline, resolve)
    except TimeoutError:
        raise
    except (OSError, UnicodeError):
        raise ImageError(f"url: host '{shown}' is not known") from None
    addresses = list(dict.fromkeys(entry[4][:2] for entry in found))
    public = all(is_public(address) for address, _ in addresses)
    if not public and not is_allowed(place, limits.allowed_hosts):
        raise ImageError(f"url: host '{shown}' is not a public address")
    if not addresses:
        raise ImageError(f"url: host '{shown}' has no address")
    return addresses


def look_up(place: Place, deadline: float, resolve: Callable) -> list[tuple]:
    """Resolve a host in a thread of its own, because a resolver that hangs cannot be stopped.

    Raises the resolver's exception, and TimeoutError at the deadline.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolve(place.host, place.port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.put(error)
        finally:
            LOOKUPS.release()

    if not LOOKUPS.acquire(timeout=max(0.0, deadline - time.monotonic())):
        raise TimeoutError
    try:
        threading.Thread(target=ask, name="look-up", daemon=True).start()
    except RuntimeError:  # no thread can be had
        LOOKUPS.release()
        raise OSError("no thread for a look-up") from None
    try:
        answer = answers.get(timeout=max(0.0, deadline - time.monotonic()))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def is_allowed(place: Place, allowed: Sequence[str]) -> bool:
    """Whether a host, or the host with its port, is in the allowed list, ignoring case."""
    host = place.host.lower().rstrip(".")
    spellings = {host, f"{host}:{place.port}", f"[{host}]", f"[{host}]:{place.port}"}
    return any(name.lower() in spellings for name in allowed)


# IANA's special-purpose address registries (RFC 6890 and later), multicast, and ranges reserved
# before those registries: no public web server has an address in them.
SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24"),
        *("192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20"),
    )
)
# All IPv6 outside this is special as well: loopback, ::/96, 64:ff9b:1::/48, 100::/64, 5f00::/16,
# fc00::/7, fe80::/10, fec0::/10, ff00::/8, and ranges not assigned yet.
UNICAST = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Whether an IP address is on the public internet; of an IPv6 address that embeds an IPv4 one
    the embedded address counts.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if carried is None and address in NAT64:
            carried = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if carried is not None:
            return is_public(str(carried))
        if address not in UNICAST:
            return False
    return not any(address in network for network in SPECIAL)


# ==================================================================================================
# Model outputs
# In: a signature's input and output specs, the model's arrays. Out: the arrays of predictions
# described on top. What neither the files nor the config tell is refused: nothing is guessed.
# ==================================================================================================


def read_label_map(text: str, name: str = "") -> dict[int, str]:
    """Read a label map: TensorFlow's .pbtxt (`item { id: 1 name: 'x' }`), JSON, Ultralytics' YAML
    (`names:`), or one name a line.

    `name` is the file name; its ending tells the format if the text does not. Ids of a JSON list
    and of lines start at 1 (0 is the background), those of a YAML list at 0. Raises ValueError.
    """
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise ValueError("label map: it is empty; no label map at all is written {}")
    if "\0" in text:
        raise ValueError("label map: expected UTF-8, or UTF-16 with its byte order mark")
    ending = Path(name).suffix.lower()
    if ending in (".pbtxt", ".prototxt", ".textproto") or re.search(ITEM, text, re.MULTILINE):
        return read_label_protos(text)
    if ending == ".json" or text.lstrip().startswith(("{", "[")):
        try:
            return label_map_of(json.loads(text, object_pairs_hook=unrepeated))
        except json.JSONDecodeError as error:
            if ending != ".txt":  # there, [UNK] may be the first name
                why = "ends in .json" if ending == ".json" else f"begins with {text.lstrip()[0]}"
                raise ValueError(f"label map: it {why}, and so is read as JSON: {error}") from None
    if ending in (".yaml", ".yml") or re.search(r"^names\s*:", text, re.MULTILINE):
        return read_label_yaml(text)
    names = [line.strip() for line in re.split(r"\r?\n|\r", text)]
    return label_map_of([name for name in names if name])


ITEM = r"^\s*#?\s*item\s*:?\s*[{<]"  # how an entry of a .pbtxt begins


@functools.cache
def label_proto() -> Any:
    """The message of a .pbtxt, as object_detection/protos/string_int_label_map.proto has it."""
    # imported late: protobuf comes with TensorFlow and is slow to import
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
    """Read a .pbtxt with protobuf; `display_name` wins over `name`, as in label_map_util.

    Unknown fields of an item are ignored. Raises ValueError.
    """
    from google.protobuf import text_format  # late, as above

    try:
        found = text_format.Parse(text, label_proto()(), allow_unknown_field=True)
    except text_format.ParseError as error:
        raise ValueError(f"label map: {error}") from None
    if not found.item and re.sub("#.*", "", text).strip():
        raise ValueError("label map: no item { id: ... name: ... }")
    pairs = []
    for item in found.item:
        name = item.display_name or item.name
        if not item.HasField("id") or not name:
            raise ValueError(f"label map: item without id and name: {str(item).strip()[:80]}")
        pairs.append((item.id, name))
    return label_pairs(pairs)


def read_label_yaml(text: str) -> dict[int, str]:
    """Read the `names` of an Ultralytics data set: a list of ids from 0, or a map by id.

    Raises ValueError.
    """
    import yaml  # late: few label maps need it

    # BaseLoader reads only texts: other loaders read the names `no` and `off` as false
    class LabelLoader(yaml.BaseLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            super().construct_mapping(node, deep)  # refuses keys that are lists or maps
            return unrepeated(self.construct_pairs(node, deep))

    try:
        value = yaml.load(text, Loader=LabelLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"label map: {error}") from None
    names = value.get("names", value) if isinstance(value, Mapping) else value
    return label_map_of(dict(enumerate(names)) if isinstance(names, list) else names)


def unrepeated(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The members of an object as a dict; raises ValueError for an id or a name with two values."""
    found = dict(pairs)
    for key, value in pairs if len(found) < len(pairs) else ():
        is_label = str(key).isdecimal() or type(value) is int  # an id and its name, or the reverse
        if is_label and value != found[key]:
            both = f"both {value!r:.40} and {found[key]!r:.40}"
            raise ValueError(f"label map: {key!r:.40} is {both}")
    return found


def load_labels(value: Any, folder: Path) -> dict[int, str]:
    """The label map of a deployment: a file's path, an object, a list or None.

    Raises ValueError and OSError.
    """
    if not isinstance(value, str):
        return label_map_of(value or {})
    file = folder / value
    if file.is_fifo():  # reading it blocks until somebody writes
        raise ValueError("label map: expected a file, got a named pipe")
    return read_label_map(decode_labels(file.read_bytes()), value)


def decode_labels(data: bytes) -> str:
    """A label map's text: UTF-8, or UTF-16 with its byte order mark. Raises UnicodeDecodeError."""
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_wide else "utf-8-sig")


LABEL_FILES = re.compile(
    r"(labels?|label_?maps?|classes|class_(names|labels))\.(pbtxt|txt|json|ya?ml)", re.IGNORECASE
)


def find_labels(folder: Path) -> Path | None:
    """The label map among a SavedModel's assets, if there is exactly one; if there is none, the
    `metadata.yaml` that Ultralytics writes beside the SavedModel.
    """
    assets = folder / "assets"
    files = [path for path in assets.iterdir()] if assets.is_dir() else []
    found = [path for path in files if LABEL_FILES.fullmatch(path.name)]
    about = folder / "metadata.yaml"
    if not found and about.is_file() and b"author: Ultralytics" in about.read_bytes():
        return about
    return found[0] if len(found) == 1 else None


def label_map_of(value: Any) -> dict[int, str]:
    """A label map from a JSON value: an object by id, a list of names with ids from 1, COCO's
    `categories` or an object that has them, or Keras's `class_indices`.

    Raises ValueError.
    """
    if isinstance(value, Mapping) and isinstance(value.get("categories"), list):
        value = value["categories"]
    if isinstance(value, list | tuple):
        pairs: Iterable[tuple[Any, Any]] = enumerate(value, 1)
        if any(isinstance(item, Mapping) for item in value):
            pairs = [
                (item.get("id") if isinstance(item, Mapping) else None, item) for item in value
            ]
    elif isinstance(value, Mapping) and is_turned(value):
        pairs = [(number, name) for name, number in value.items()]
    else:
        pairs = value.items() if isinstance(value, Mapping) else [(value, None)]
    return label_pairs(pairs)


def is_turned(value: Mapping[Any, Any]) -> bool:
    """Whether a map goes from name to id, `{"cat": 0, "dog": 1}`, like Keras's `class_indices`.

    Raises ValueError for numbers on both sides, unless each is its own name.
    """
    if set(map(type, value.values())) != {int}:
        return False
    if not all(str(key).isdecimal() for key in value):
        return True
    for key, number in value.items():
        left, right = f"{key!s:.40}", f"{number!s:.40}"
        if left != right:
            raise ValueError(
                f'label map: expected names as texts, got "{left}": {right}, where either may be '
                f'the name: write {{"{right}": "{left}"}} if {left} is, '
                f'{{"{left}": "{right}"}} if {right} is'
            )
    return False


def label_pairs(pairs: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    """Names by id; raises ValueError for an invalid id or name, and for an id with two names."""
    labels: dict[int, str] = {}
    for key, entry in pairs:
        name = entry.get("name") if isinstance(entry, Mapping) else entry
        match name:
            case [str(wnid), str(text)] if re.fullmatch(r"n\d{8}", wnid):  # ImageNet's
                name = text
        number = -1 if isinstance(key, bool) or not re.fullmatch(r"\d+", str(key)) else int(key)
        if isinstance(name, str) and re.search("[\ud800-\udfff]", name):
            raise ValueError(f"label map: the name of {number} has half of a surrogate pair")
        if number < 0 or isinstance(name, bool) or not isinstance(name, str | int | float):
            raise ValueError(
                'label map: expected {"1": "name"} or a list of names, '
                f"got {key!r:.40}: {name!r:.40}"
            )
        if labels.setdefault(number, str(name)) != str(name):
            raise ValueError(f"label map: id {number} is both '{labels[number]}' and '{name}'")
    return labels


def check_labels(labels: Mapping[int, str], classes: int | None, first_id: int) -> None:
    """Raise ValueError when a label map cannot belong to a model with this number of classes.

    The ids of the classes start at `first_id`; a background, 0, needs no name. A map may leave out
    ids, but a map without gaps must reach the last class: one that ends too early looks like a
    list with a forgotten name, which gives all later classes a wrong name.
    """
    if not labels or classes is None:
        return
    last, ids = first_id + classes - 1, sorted(labels)
    is_dense = ids[-1] - ids[0] == len(ids) - 1 and ids[0] <= max(first_id, 1)
    if ids[0] < first_id or ids[-1] > last or is_dense and ids[-1] < last:
        raise ValueError(
            f"label map: expected names of the model's {classes} classes, ids {first_id} to {last}"
            + (" with 0 the background" if first_id == 0 and 0 not in labels else "")
            + f"; got {len(ids)}, ids {ids[0]} to {ids[-1]}"
        )


# --- what is known before anything is run ---------------------------------------------------------

BOX_FORMATS = ("yxyx", "xyxy", "xywh", "cxcywh")
BOX_SCALES = ("unit", "pixels", "input")
MADE = {"Softmax": "softmax", "Sigmoid": "sigmoid"}  # operations whose results are confidences
NUMBERS = {"float": ("FLOAT", "DOUBLE", "HALF", "BFLOAT16"), "text": ("STRING",)}
WAYS = (
    '"activation": "softmax" (classes exclude each other), "sigmoid" (each by itself) or "none" '
    "(the numbers are confidences already)"
)


OTHER_FAMILY = 'another family or other "outputs" may fit, or a family of your own'


class OutputError(ValueError):
    """A model's outputs contradict its signature or its deployment's config."""


class Output(typing.NamedTuple):
    """What is known of an output: dtype (`DT_FLOAT`), shape, and facts found in the graph.

    `made_by` is the type of the operation that computes the output. `scale` is the scale of the
    boxes in it, `unit` or `input`. Both are "" if unknown. `logits` names the outputs to which a
    softmax or sigmoid is applied to compute this one.
    """

    dtype: str
    shape: tuple[int | None, ...] | None
    made_by: str = ""
    scale: str = ""
    logits: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return show_shape(self.shape)


@dataclass(frozen=True)
class About:
    """The facts that a family is recognised by, and that its reader gets beside the arrays.

    Once a family is found, `outputs` has the names of the family's layout. `size` is the height
    and width of the model's input, None if it takes any; `shown` is the size of the picture that
    was fed to the model. After `settle`, `boxes_format`, `boxes_scale` and `classes_from` are
    final, and so is `activation`: the function still to be applied to the numbers. It is "none"
    if the config says that there is none, "" if the graph has applied one already.
    """

    outputs: Mapping[str, Output]
    own: Mapping[str, str] = dataclasses.field(default_factory=dict)  # layout name to model's name
    labels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    input_name: str = ""
    size: tuple[int, int] | None = None
    channels: str = "rgb"  # of the model's input
    is_encoded: bool = False  # the model decodes, and perhaps resizes, pictures itself
    activation: str | None = None
    threshold: float | None = None
    boxes_format: str | None = None
    boxes_scale: str | None = None
    classes_from: int | None = None
    planes: str | None = None  # whether the planes of an output lie first or last
    shown: tuple[int, int] = (1, 1)
    most: int = 300  # predictions of one picture

    @property
    def names(self) -> int:
        """How many classes have a name, not counting the background at 0."""
        return sum(number > 0 for number in self.labels)

    def made_by(self, slot: str) -> str:
        return self.outputs[slot].made_by

    def shape(self, slot: str) -> tuple[int | None, ...]:
        """The shape of an output without the batch dimension; () if unknown, which it never is for
        a family that is not recognised by names.
        """
        return (self.outputs[slot].shape or ())[1:]

    def activate(self, values: np.ndarray) -> np.ndarray:
        """Confidences, float32, classes on the last axis: a softmax or sigmoid is applied if it is
        still to be done. Raises OutputError for numbers outside 0..1 that need none.
        """
        values = values.astype(np.float32)
        if self.activation == "softmax":
            with np.errstate(invalid="ignore"):  # infinities give NaN; `finish` drops those rows
                powers = np.exp(values - values.max(axis=-1, keepdims=True, initial=-np.inf))
                return powers / powers.sum(axis=-1, keepdims=True)
        if self.activation == "sigmoid":
            return sigmoid(values)
        check_confidences(values, 'write "activation": "softmax" or "sigmoid", if they are logits')
        return values


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * values))


def check_confidences(values: np.ndarray, advice: str = OTHER_FAMILY) -> None:
    """Raise OutputError for numbers that lie outside 0..1; NaN is dropped later, row by row."""
    low, high = np.fmin.reduce(values, None, initial=0), np.fmax.reduce(values, None, initial=0)
    if low < -SLACK or high > 1 + SLACK:
        raise OutputError(
            f"confidences must be in 0..1, but the model answers {low:.4g}..{high:.4g}: {advice}"
        )


def check_whole(classes: np.ndarray) -> None:
    """Raise OutputError for classes that are not whole numbers; NaN and infinities are ignored."""
    numbers = np.asarray(classes, np.float64)
    broken = numbers[np.isfinite(numbers) & (np.abs(numbers - np.rint(numbers)) > SLACK)]
    if len(broken):
        raise OutputError(
            f"classes are whole numbers, the model answers {broken[0]:.4g}: another order of the "
            '"outputs", or another family may fit'
        )


SLACK = 1e-3  # tolerance for rounding errors, in confidences and class numbers


# --- families -------------------------------------------------------------------------------------

Reader = Callable[[Mapping[str, np.ndarray], About], Tensors]


@dataclass(frozen=True)
class Family:
    """A known layout of outputs and how to read it, whatever the model; see `family`."""

    name: str
    layout: Mapping[str, str]
    read: Reader
    is_named: bool = True
    told: Callable[[About], str] = lambda about: ""
    check: Callable[[About], str] = lambda about: ""
    boxes: str = ""
    classes_from: int | None = None
    numbers_classes: bool = False
    draws_boxes: bool = False
    scaled_by: str = ""
    numbers: Callable[[About], range | None] = lambda about: None
    activation: str = ""
    threshold: float | None = None
    overlap: float | None = None

    def slots(self) -> Iterator[tuple[list[str], bool, str]]:
        """For each output: its possible names, whether it may be absent, and its pattern."""
        for names, pattern in self.layout.items():
            yield names.rstrip("?").split("|"), names.endswith("?"), pattern


FAMILIES: dict[str, Family] = {}  # those of every server, in the order in which they are tried


def family(layout: Mapping[str, str], **more: Any) -> Callable[[Reader], Reader]:
    """Register a function as the family of its name; `layout` says which outputs it reads.

    `{"boxes": "N 4", "scores|confidence": "N", "masks?": "N h w"}`: the key is an output's name, or
    several possible names; `?` marks an output that may be absent. The value has the sizes without
    the batch: a letter is any size, the same wherever the letter stands. `float`, `int` or `text`
    before the sizes requires that kind of dtype. The function takes the arrays, without the batch,
    by the first of their names, and an `About`. It returns `scores` [N], `classes` [N], and
    optionally `boxes` [N, 4] and `masks` [N, h, w], relative to the box.

        boxes           "yxyx unit": format and scale of the boxes; `?` if the config must say it
        classes_from    the number of the first class, 0 or 1
        numbers_classes True: the function returns ids of the label map itself
        draws_boxes     True: the function computes the boxes, and the config cannot change them
        scaled_by       the output whose graph may tell the scale of the boxes, if that is `?`
        numbers         the range of numbers that classes can have, to check the label map with: a
                        function of About that returns a range, or None if unknown
        activation      the output whose numbers are confidences or logits
        threshold       predictions below it are dropped, unless the deployment sets another
        overlap         of two predictions of a class with at least this IoU, the better one stays
        is_named        False: recognised by shapes and `told`, not by the outputs' names
        told            a further condition to recognise the family: a function of About that
                        returns why it is not met, or ""
        check           a further requirement, also if the config names the family: as `told`
    """

    def register(read: Reader) -> Reader:
        kind = Family(read.__name__, layout, read, **more)
        read.family = kind  # type: ignore[attr-defined]
        if not IMPORTING.get():
            if kind.name in FAMILIES:
                raise ValueError(f"family {kind.name}: this name is taken")
            FAMILIES[kind.name] = kind
        return read

    return register


def fits(output: Output, pattern: str, sizes: dict[str, int], is_named: bool) -> bool:
    """Whether an output fits a pattern's dtype and shape; adds the letters' sizes to `sizes`.

    If the family is not recognised by names, a first size of None or 1 is taken for the batch.
    """
    tokens = pattern.split()
    dtype = output.dtype.removeprefix("DT_")
    wanted = tokens.pop(0) if tokens and tokens[0] in ("float", "int", "text") else ""
    kind = next((kind for kind, names in NUMBERS.items() if dtype in names), "int")
    if wanted != kind and (wanted or kind == "text"):
        return False
    shape = output.shape
    if shape is None:
        return is_named
    if len(shape) == len(tokens) + 1 and shape[0] in (None, 1):
        shape = shape[1:]
    elif len(shape) != len(tokens) or not (is_named or shape and (shape[0] or 0) > 1):
        return False
    for token, size in zip(tokens, shape):
        known = int(token) if token.isdigit() else sizes.setdefault(token, size or 0) or size
        if size is not None and size != known:
            return False
    return True


def match_outputs(
    kind: Family, outputs: Mapping[str, Output], rename: Mapping[str, str]
) -> dict[str, str]:
    """The model's own name for each output of a family; ValueError says what does not fit."""
    if not kind.is_named and not rename:
        for chosen in itertools.permutations(outputs, len(kind.layout)):
            sizes: dict[str, int] = {}
            patterns = zip(chosen, kind.layout.values())
            if len(outputs) == len(chosen) and all(
                fits(outputs[own], pattern, sizes, False) for own, pattern in patterns
            ):
                return dict(zip(kind.layout, chosen))
        raise ValueError(
            f"family {kind.name} needs {show_layout(kind)}, the model has {list_outputs(outputs)}: "
            f'write "outputs": {{"{next(iter(kind.layout))}": "..."}}'
        )
    found, sizes = dict[str, str](), dict[str, int]()
    for names, may_lack, pattern in kind.slots():
        own = next(
            (rename.get(name, name) for name in names if rename.get(name, name) in outputs), None
        )
        if own is None and may_lack:
            continue
        if own is None:
            raise ValueError(
                f"no output for {names[0]} of family {kind.name}, which needs {show_layout(kind)}; "
                f'write "outputs": {{"{names[0]}": "..."}}'
            )
        has_rank = outputs[own].shape is not None
        if not fits(outputs[own], pattern, sizes, kind.is_named or has_rank):
            raise ValueError(
                f"family {kind.name} needs {show_layout(kind)}; {own} is {outputs[own].text} of "
                f'{type_name(outputs[own].dtype)}: write "outputs": {{"{names[0]}": "..."}}'
            )
        found[names[0]] = own
    return found


def show_layout(kind: Family) -> str:
    return ", ".join(
        f"{'|'.join(names)} [{', '.join(pattern.split())}]" for names, _, pattern in kind.slots()
    )


def check_rename(kind: Family, rename: Mapping[str, str]) -> None:
    """Raise ValueError for a name of `outputs` that the family does not have."""
    names = [name for names, _, _ in kind.slots() for name in names]
    for name in rename:
        if name not in names:
            raise ValueError(
                f"outputs: family {kind.name} has no output '{name}'; it has {show_layout(kind)}"
            )


def list_outputs(outputs: Mapping[str, Output]) -> str:
    return ", ".join(f"{name} {output.text}" for name, output in outputs.items())


def find_family(
    kinds: Mapping[str, Family], about: About, wanted: str | None, rename: Mapping[str, str]
) -> tuple[Family, dict[str, str]]:
    """The family of a model's outputs, and the model's own name for each output of the family.

    Raises ValueError, with what to write into the config, if no family is recognised.
    """
    for name, own in rename.items():
        if own not in about.outputs:
            there = list_outputs(about.outputs)
            raise ValueError(f"outputs.{name}: the model has no output '{own}'; it has {there}")
    if wanted is not None:
        check_rename(kinds[wanted], rename)
        return kinds[wanted], match_outputs(kinds[wanted], about.outputs, rename)
    reasons, given = list[str](), {*about.outputs, *rename}
    for kind in kinds.values():
        names = {name for names, _, _ in kind.slots() for name in names}
        if not rename.keys() <= names:
            continue
        try:
            outputs = about.outputs if kind.is_named or rename else choose_outputs(about)
            found = match_outputs(kind, outputs, rename)
        except ValueError as error:
            lacks = [names for names, may, _ in kind.slots() if not may and not {*names} & {*given}]
            reasons += [str(error)] if kind.is_named and not lacks else []
            continue
        reason = kind.told(rename_outputs(kind, about, found))
        if not reason:
            return kind, found
        reasons.append(reason)
    reasons += picture_outputs(about)
    several = len(about.outputs) > 1
    reasons += bare_heads(about) or (suggest_lines(kinds, about) if several else [])
    because = "; ".join(dict.fromkeys(reasons)) or (
        f'write "family" (one of {", ".join(kinds)}) and "outputs" (which output is which)'
    )
    raise ValueError(f"the outputs fit no known family: {list_outputs(about.outputs)}: {because}")


MOST_LINES = 4  # the most config lines that an error suggests


def suggest_lines(kinds: Mapping[str, Family], about: About) -> list[str]:
    """Config lines that would assign some of a model's outputs to a family, likeliest first.

    If a family is recognised by shapes, its line names every output, matching names too.
    """
    ranked = []
    for kind in kinds.values():
        slots = [(names, pattern) for names, may_lack, pattern in kind.slots() if not may_lack]
        there = {names[0]: name for names, _ in slots for name in names if name in about.outputs}
        sizes: dict[str, int] = {}
        present = [(there[names[0]], pattern) for names, pattern in slots if names[0] in there]
        if not all(fits(about.outputs[own], pattern, sizes, True) for own, pattern in present):
            continue
        known = there if kind.is_named else {}
        lacks = {names[0]: pattern for names, pattern in slots if names[0] not in known}
        rest = {name: one for name, one in about.outputs.items() if name not in known.values()}
        fitting = {
            slot: [name for name, one in rest.items() if fits(one, pattern, dict(sizes), False)]
            for slot, pattern in lacks.items()
        }
        if lacks and (there or len(slots) == 1) and all(fitting.values()):
            ranked.append((-len(there), suggest_line(kind, about, fitting)))
    return [line for _, line in sorted(ranked, key=lambda each: each[0]) if line][:MOST_LINES]


def suggest_line(kind: Family, about: About, fitting: Mapping[str, Sequence[str]]) -> str:
    """The config line for a family that lacks some outputs; `fitting` has the candidates of each.

    For a family of a single output, only candidates that `is_likely` accepts are named. Returns ""
    if an output has no candidate left.
    """
    told = {}
    for slot, names in fitting.items():
        told[slot] = [
            name
            for name in names
            if len(kind.layout) > 1 or is_likely(kind, rename_outputs(kind, about, {slot: name}))
        ]
    if not all(told.values()):
        return ""
    names = ", ".join(f'"{slot}": "{" | ".join(known)}"' for slot, known in told.items())
    return f'for {kind.name} write "family": "{kind.name}", "outputs": {{{names}}}'


def is_likely(kind: Family, about: About) -> bool:
    """Whether a family's own conditions and the config are met by these outputs."""
    try:
        return not kind.told(about) and bool(settle(kind, about))
    except ValueError:
        return False


def picture_outputs(about: About) -> list[str]:
    """A text for each output that is a picture."""
    return [
        f"{name} is a picture, and a deployment answers predictions, not pictures"
        for name, (dtype, shape, *_) in about.outputs.items()
        if dtype == "DT_UINT8" and shape is not None and len(shape) == 4 and shape[3] == 3
    ]


# Outputs of detectors as KerasHub, KerasCV and TF Model Garden export them undecoded.
HEADS = (
    {"bbox_regression", "cls_logits"},
    {"box", "classification"},
    {"boxes", "classes"},
    {"raw_boxes", "raw_scores", "image_info"},
    {"decoded_boxes", "decoded_box_scores", "image_info"},
)


def bare_heads(about: About) -> list[str]:
    """A text for a detector's raw heads, whose boxes are neither decoded nor suppressed."""
    if about.outputs.keys() not in HEADS:
        return []
    return [
        "these are raw outputs of a detector, not yet boxes: export a signature that "
        "ends with model.decode_predictions (Keras), or with apply_nms (TF Model Garden)"
    ]


def choose_outputs(about: About) -> Mapping[str, Output]:
    """The outputs to match: only the probabilities if the rest are the logits they come from."""
    for name, output in about.outputs.items():
        if output.logits and {name, *output.logits} == about.outputs.keys():
            return {name: output}
    return about.outputs


def rename_outputs(kind: Family, about: About, found: Mapping[str, str]) -> About:
    """`about` with its outputs under the names of a family's layout, each with a batch."""
    outputs = {}
    ranks = {names[0]: rank_of(pattern) for names, _, pattern in kind.slots()}
    for slot, own in found.items():
        output = about.outputs[own]
        if output.shape is not None and len(output.shape) == ranks[slot]:
            output = output._replace(shape=(1, *output.shape))
        outputs[slot] = output
    return dataclasses.replace(about, outputs=outputs, own=found)


def settle(kind: Family, about: About) -> About:
    """`about` with everything decided that the family leaves to the config or the graph.

    Raises ValueError, with the lines to write, for what neither of them says.
    """
    about = settle_activation(kind, about)
    missing, (form, scale) = [], (kind.boxes or "- -").split()
    told = about.outputs[kind.scaled_by].scale if kind.scaled_by else ""
    form, scale = about.boxes_format or form, about.boxes_scale or told or scale
    if "?" in form + scale:
        known = [f'"format": "{form.replace("?", " | ".join(BOX_FORMATS))}"']
        known += [f'"scale": "{scale.replace("?", " | ".join(BOX_SCALES))}"']
        missing.append(f'"boxes": {{{", ".join(known)}}}')
    is_fixed = kind.draws_boxes or not kind.boxes
    if is_fixed and (about.boxes_format or about.boxes_scale):
        raise ValueError(f"boxes: family {kind.name} takes no such option: leave it out")
    if scale == "input" and about.is_encoded:
        raise ValueError(
            "boxes.scale: the model decodes pictures itself, so that the size of its input is not "
            'known: export it with boxes in 0..1, or in pixels of the picture, and write "pixels"'
        )
    counts = bool(kind.boxes) and not kind.numbers_classes
    if counts and kind.classes_from is None and about.classes_from is None:
        missing.append('"classes_from": 0 or 1 (the number of the first class)')
    if missing:
        raise ValueError(
            f"family {kind.name} needs more: write {' and '.join(missing)} into the deployment"
        )
    first = kind.classes_from if about.classes_from is None else about.classes_from
    limit = kind.threshold if about.threshold is None else about.threshold
    about = dataclasses.replace(
        about, boxes_format=form, boxes_scale=scale, classes_from=first, threshold=limit
    )
    if about.planes and not {"planes", "prototypes"} & kind.layout.keys():
        raise ValueError(f"planes: family {kind.name} takes no such option: leave it out")
    if problem := kind.check(about):
        raise ValueError(problem)
    check_numbers(kind, about)
    return about


def check_numbers(kind: Family, about: About) -> None:
    """Raise ValueError if the label map's ids do not fit the numbers of the classes."""
    numbers = kind.numbers(about)
    if numbers is None:
        return
    try:
        check_labels(about.labels, len(numbers), numbers.start + shift_of(kind, about))
    except ValueError as error:
        raise ValueError(f"{error}{OTHER_COLUMNS * ('predictions' in kind.layout)}") from None


OTHER_COLUMNS = (
    "; YOLO's pose and rotated-box models are not supported, as their extra columns are no classes"
)


def shift_of(kind: Family, about: About) -> int:
    """What is added to the class numbers of a family to get ids of the label map: 0 or 1."""
    return int(not kind.numbers_classes and about.classes_from == 0 and 0 not in about.labels)


def settle_activation(kind: Family, about: About) -> About:
    """`about` with the `activation` decided for numbers that may be confidences or logits.

    Raises ValueError if neither the graph nor the config says which, or if they contradict.
    """
    if not kind.activation:
        if about.activation:
            raise ValueError(f"activation: family {kind.name} answers confidences: leave it out")
        return about
    made = MADE.get(about.made_by(kind.activation))
    if made and about.activation not in (None, "none"):
        raise ValueError(
            f'activation: the graph applies a {made} already: leave it out, or write "none"'
        )
    if not made and about.activation is None:
        raise ValueError(f"{unknown_activation(about, kind.activation)}: write {WAYS}")
    return dataclasses.replace(about, activation=about.activation or "")


def unknown_activation(about: About, slot: str) -> str:
    """The text that an output's numbers may be confidences or logits, for an error.

    Raises ValueError itself for class numbers: no activation makes confidences of those.
    """
    output = about.outputs[slot]
    if output.made_by in ("ArgMax", "ArgMin"):
        raise ValueError(f"{slot} {output.text} holds numbers of classes: export them as integers")
    made = f"made by {output.made_by}" if output.made_by else "made by an unknown operation"
    return f"{slot} {output.text} is {made}, neither softmax nor sigmoid"


# --- from arrays to predictions -------------------------------------------------------------------


def to_yxyx(boxes: np.ndarray, form: str) -> np.ndarray:
    """Boxes [N, 4] of any format as ymin, xmin, ymax, xmax."""
    if form == "yxyx":
        return boxes
    x, y, right, bottom = boxes.T
    if form == "xywh":
        right, bottom = x + right, y + bottom
    if form == "cxcywh":
        x, y, right, bottom = x - right / 2, y - bottom / 2, x + right / 2, y + bottom / 2
    return np.stack([y, x, bottom, right], axis=1)


def to_unit(boxes: np.ndarray, scale: str, input_size: tuple[int, int]) -> np.ndarray:
    """Boxes [N, 4] (ymin, xmin, ymax, xmax) in 0..1 of the picture.

    Of scale `unit` they are in 0..1 already; of `pixels` and `input` they are in pixels of the
    picture as fed to the model, whose height and width are `input_size`.
    """
    return boxes if scale == "unit" else boxes / np.tile(np.array(input_size, np.float32), 2)


def check_scale(boxes: np.ndarray, scale: str, input_size: tuple[int, int]) -> None:
    """Raise OutputError if the boxes [N, 4] contradict the scale that is configured for them."""
    edges = np.nan_to_num(np.abs(boxes)).max(axis=1)  # [N]
    if not len(edges):
        return
    line = 'write "boxes": {"scale": "%s"} into the deployment'
    if scale == "unit" and np.median(edges) > 2:
        raise OutputError(
            f"boxes go up to {edges.max():.4g}, so they are not in 0..1: " + line % "pixels | input"
        )
    if scale != "unit" and edges.max() <= 1.5 and min(input_size) > 8:
        raise OutputError(
            f"boxes go only up to {edges.max():.4g}, so they are not in pixels: " + line % "unit"
        )


def check_format(boxes: np.ndarray, form: str) -> None:
    """Raise OutputError if most boxes [N, 4], converted from `form` to yxyx, have max < min."""
    is_turned = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)  # [N]
    if 2 * is_turned.sum() > len(boxes):
        others = " | ".join(other for other in BOX_FORMATS if other != form)
        raise OutputError(
            f"{is_turned.sum()} of {len(boxes)} boxes have max < min, so they are not {form}: "
            f'write "boxes": {{"format": "{others}"}} into the deployment'
        )


def sound_rows(tensors: Tensors) -> np.ndarray:
    """Which predictions are valid, bool [N]: score not NaN, class >= 0, box and mask finite."""
    sound = ~np.isnan(tensors["scores"]) & (tensors["classes"] >= 0)
    for name in ("boxes", "masks"):
        if name in tensors:
            array = tensors[name]
            sound &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return sound


def read_rows(kind: Family, arrays: Mapping[str, np.ndarray], about: About) -> Tensors:
    """Call a family's reader and check that its arrays have one row for each prediction.

    Raises OutputError if they do not: a user's own family may return anything.
    """
    tensors = kind.read(arrays, about)
    if not isinstance(tensors, Mapping) or not {"scores", "classes"} <= tensors.keys():
        came = sorted(tensors) if isinstance(tensors, Mapping) else type(tensors).__name__
        raise OutputError(f"family {kind.name}: expected scores and classes by name, got {came}")
    rows = {name: np.asarray(values) for name, values in tensors.items()}
    if len({values.shape[:1] for values in rows.values()} | {rows["scores"].shape}) != 1:
        shapes = ", ".join(f"{name} {[*values.shape]}" for name, values in rows.items())
        raise OutputError(f"family {kind.name}: expected a row for each prediction, got {shapes}")
    return rows


def finish(kind: Family, tensors: Tensors, about: About) -> Tensors:
    """Turn a reader's arrays into predictions: best first, at most `about.most`, boxes clipped to
    the picture.

    Rows with NaN or without a class are dropped and counted in the log; boxes outside the picture
    are dropped. Raises OutputError for confidences outside 0..1 and classes that are not whole.
    """
    tensors = dict(tensors)
    tensors["scores"] = np.asarray(tensors["scores"], np.float32)
    check_confidences(tensors["scores"])
    check_whole(tensors["classes"])
    classes = np.nan_to_num(np.asarray(tensors["classes"], np.float64), nan=-1, posinf=-1)
    tensors["classes"] = np.rint(classes).astype(np.int64)
    sound = sound_rows(tensors)
    if dropped := int((~sound).sum()):
        logger.warning("family %s: %d predictions dropped: NaN or no class", kind.name, dropped)
    tensors = keep(tensors, sound)
    tensors["scores"] = np.clip(tensors["scores"], 0, 1)
    if about.threshold is not None:
        tensors = keep(tensors, tensors["scores"] >= np.float32(about.threshold))
    from_one = kind.classes_from == about.classes_from == 1
    if from_one and about.names and 0 not in about.labels and (tensors["classes"] == 0).any():
        raise OutputError(
            "the model answered class 0, but classes count from 1, and 0 has no name: write "
            '"classes_from": 0 into the deployment, or a label map with 0'
        )
    if kind.boxes:
        tensors = place_in_picture(kind, tensors, about)
        tensors["classes"] = tensors["classes"] + shift_of(kind, about)
    tensors = keep(tensors, np.argsort(-tensors["scores"], kind="stable")[: about.most])
    return {**tensors, "names": name_classes(tensors, about.labels)}


def place_in_picture(kind: Family, tensors: Tensors, about: About) -> Tensors:
    """Convert boxes of any format and scale to 0..1 of the picture; drop those that are empty.

    Suppression comes before clipping, as in the projects that these families come from.
    """
    boxes = to_yxyx(np.asarray(tensors["boxes"], np.float32), about.boxes_format or "")
    check_scale(boxes, about.boxes_scale or "", about.shown)
    if not kind.draws_boxes:
        check_format(boxes, about.boxes_format or "")
    tensors = {**tensors, "boxes": to_unit(boxes, about.boxes_scale or "", about.shown)}
    if kind.overlap is not None:
        tensors = suppress(tensors, kind.overlap)
    return clip_boxes(tensors, tensors["boxes"])


def clip_boxes(tensors: Tensors, boxes: np.ndarray) -> Tensors:
    """The predictions with `boxes` [N, 4], and their masks, cut off at the edges of the picture;
    those that lie outside it are dropped.
    """
    clipped = np.clip(boxes, 0, 1)
    tensors = {**tensors, "boxes": clipped.astype(np.float32)}
    if "masks" in tensors:
        masks, size = tensors["masks"].astype(np.float32), np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        cut = (clipped != boxes).any(axis=1) & size.all(axis=1)
        parts = (clipped[cut] - np.tile(boxes[cut, :2], 2)) / size[cut]  # 0..1 of the whole box
        masks[cut] = sample_masks(masks[cut], parts, masks.shape[1:])
        tensors["masks"] = masks
    return keep(tensors, (clipped[:, 2:] > clipped[:, :2]).all(axis=1))


def sample_masks(planes: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cut each plane [N, h, w] to its box (0..1 of the plane), as [N, *size], interpolated
    linearly.
    """
    height, width = planes.shape[1:]
    masks = np.zeros((len(planes), *size), np.float32)
    for index, (plane, (top, left, bottom, right)) in enumerate(zip(planes, boxes.tolist())):
        rows = (top + (bottom - top) * (np.arange(size[0]) + 0.5) / size[0]) * height - 0.5
        columns = (left + (right - left) * (np.arange(size[1]) + 0.5) / size[1]) * width - 0.5
        x, y = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
        masks[index] = cv2.remap(
            plane.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    return masks


def name_classes(tensors: Tensors, labels: Mapping[int, str]) -> np.ndarray:
    """The names of predictions, object [N]: the reader's own names, else the label map's."""
    if "names" in tensors:
        return tensors["names"]
    numbers = tensors["classes"].tolist()
    return np.array([labels.get(number, str(number)) for number in numbers], object)


def rank_of(pattern: str) -> int:
    return len([token for token in pattern.split() if token not in ("float", "int", "text")])


def drop_ones(shape: tuple[Any, ...]) -> tuple[Any, ...]:
    """[N, C] for the shapes [N, 1, 1, C] and [N, C, 1, 1] that pooling leaves; others as is."""
    if len(shape) != 4 or shape[1:].count(1) < 2:
        return shape
    return shape[0], next((size for size in shape[1:] if size != 1), 1)


def without_batch(array: np.ndarray, pattern: str, name: str) -> np.ndarray:
    """The array of one picture; OutputError if its rank is not the one of the family's pattern."""
    rank = rank_of(pattern)
    if rank == 1:
        array = array.reshape(drop_ones(array.shape))
    if array.ndim == rank + 1 and array.shape[0] == 1:
        return array[0]
    if array.ndim == rank:
        return array
    raise OutputError(
        f"output {name}: expected [{pattern}] of one picture, got {list(array.shape)}"
    )


# --- detectors whose outputs have names -----------------------------------------------------------


def read_named(outputs: Mapping[str, np.ndarray], prefix: str = "detection_") -> Tensors:
    """Boxes, scores, classes and masks, if any, of the rows that are in use.

    Raises OutputError for invalid scores and classes. They are checked first, because unused rows
    are recognised by their scores.
    """
    wanted = {name: outputs.get(prefix + name) for name in ("boxes", "scores", "classes", "masks")}
    count = None  # of valid rows, if the model has an output that says so
    if "num_detections" in outputs:
        count = max(0, int(np.nan_to_num(float(outputs["num_detections"]))))
    tensors = {name: array[:count] for name, array in wanted.items() if array is not None}
    scores = tensors["scores"]
    check_confidences(scores[scores != -1])
    check_whole(tensors["classes"])
    return keep(tensors, ~(scores <= 0))  # unused rows are zero, or -1


DETECTION_API = {
    "detection_boxes": "N 4",
    "detection_scores": "N",
    "detection_classes": "N",
    "num_detections?": "",
    "detection_masks?": "N h w",
    "raw_detection_scores?": "R C",
}


def api_numbers(about: About) -> range | None:
    """The class numbers: raw scores have a column for the background, then one for each class."""
    columns = about.shape("raw_detection_scores") if "raw_detection_scores" in about.own else ()
    if len(columns) != 2 or not columns[1] or about.classes_from is None:
        return None
    return range(about.classes_from, about.classes_from + columns[1] - 1)


def is_in_pixels(about: About) -> str:
    """TF Model Garden's boxes are in pixels, but an export option divides them by the size."""
    divided = about.made_by("detection_boxes") == "RealDiv"
    return "the graph divides the boxes by a size: they are in 0..1" if divided else ""


@family(
    {**DETECTION_API, "image_info": "4 2"},
    boxes="yxyx pixels",
    classes_from=1,
    told=is_in_pixels,
    numbers=api_numbers,
    draws_boxes=True,
)
def model_garden(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """TF Model Garden (official/vision/serving/detection.py): pixels of its scaled picture.

    `image_info` has the original size, the scaled one, the scale and the offset, each (y, x).
    """
    tensors, (_, _, scale, offset) = read_named(outputs), outputs["image_info"].astype(np.float32)
    boxes = tensors["boxes"]
    if len(boxes) and np.nan_to_num(np.abs(boxes)).max() <= 1.5:
        raise OutputError('boxes are in 0..1, not in pixels: write "family": "detection_api"')
    if (scale > 0).all():
        tensors["boxes"] = (tensors["boxes"] + np.tile(offset, 2)) / np.tile(scale, 2)
    return tensors


def counts_from_one(about: About) -> str:
    """TF Model Garden's YOLO has the same output names, but counts classes from 0.

    It is told by its integer num_detections: the Object Detection API's is a float. The Garden's
    other detectors have image_info.
    """
    count = about.outputs.get("num_detections")
    is_float = count is None or count.dtype.removeprefix("DT_") in NUMBERS["float"]
    is_known = about.classes_from is not None or 0 in about.labels
    if is_float or is_known or "image_info" in about.outputs:
        return ""
    return (
        "num_detections is an integer: detection_classes may count from 0 (YOLO of TF Model "
        'Garden) or from 1: write "classes_from": 0 or 1'
    )


@family(
    {**DETECTION_API, "image_info?": "4 2"},
    boxes="yxyx unit",
    classes_from=1,
    told=counts_from_one,
    numbers=api_numbers,
)
def detection_api(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """TensorFlow's Object Detection API: boxes in 0..1, masks of the box."""
    return read_named(outputs)


def has_masks(about: About) -> str:
    """Any exported tuple has outputs of these names: only one with masks is surely Datature's."""
    if "output_4" in about.own:
        return ""
    return (
        "output_1 to output_3 may be anything: if they are scores, classes (from 0) and boxes "
        '(yxyx, 0..1) write "family": "mask_rcnn"; in another order, "family": "keras_detector" '
        'and "outputs" (which output is which)'
    )


@family(
    {"output_1": "float N", "output_2": "N", "output_3": "N 4", "output_4?": "N h w"},
    told=has_masks,
    boxes="yxyx unit",
    classes_from=0,
)
def mask_rcnn(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """Datature's Mask R-CNN: scores, classes, boxes, masks relative to the box."""
    names = {"output_1": "scores", "output_2": "classes", "output_3": "boxes", "output_4": "masks"}
    return read_named({names[name]: array for name, array in outputs.items()}, "")


@family(
    {
        "boxes": "N 4",
        "confidence|scores": "N",
        "classes|labels": "N",
        "num_detections|valid_detections?": "",
        "masks?": "N h w",
    },
    boxes="? ?",
    classes_from=0,
)
def keras_detector(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """KerasCV and KerasHub: the format of the boxes is an argument that the export has lost."""
    return read_named({"scores": outputs["confidence"], **outputs}, "")


def has_activation(about: About) -> str:
    """Only with a softmax is DETR's last class "no object", so the activation must be known."""
    is_known = about.activation != "none" or about.made_by("pred_logits") in MADE
    return "" if is_known else 'activation: write "softmax" (last class: no object) or "sigmoid"'


def has_nothing(about: About) -> bool:
    """Whether DETR's last class means "no object"."""
    return "softmax" in (about.activation, MADE.get(about.made_by("pred_logits")))


def detr_numbers(about: About) -> range | None:
    columns = about.shape("pred_logits")[1:]
    return range(columns[0] - has_nothing(about)) if columns and columns[0] else None


@family(
    {"pred_logits|logits": "N C", "pred_boxes": "N 4"},
    boxes="cxcywh unit",
    activation="pred_logits",
    check=has_activation,
    numbers=detr_numbers,
)
def detr(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """DETR: a softmax over the classes and no object, which is the last; with a sigmoid there is
    no such class (Deformable DETR, RT-DETR).
    """
    logits = outputs["pred_logits"]
    scores = about.activate(logits)[:, : -1 if has_nothing(about) else None]
    return take_best(outputs["pred_boxes"], scores)


def take_best(boxes: np.ndarray, scores: np.ndarray) -> Tensors:
    """Each box [N, 4] with the best of its scores [N, C]; a row with a NaN gets the score NaN."""
    if not scores.shape[1]:
        raise OutputError("the rows have no column for a class")
    return {"boxes": boxes, "scores": scores.max(axis=1), "classes": scores.argmax(axis=1)}


def centernet_numbers(about: About) -> range | None:
    sizes, heat = about.shape("wh"), about.shape("hm")
    if len(sizes) != 3 or len(heat) != 3 or (sizes[0] == 2) == (sizes[2] == 2):
        return None
    count = heat[2 if sizes[2] == 2 else 0]
    return range(count) if count else None


@family(
    {"hm": "float A B C", "wh": "float D E F", "reg": "float D E F"},
    boxes="yxyx unit",
    classes_from=0,
    numbers=centernet_numbers,
    activation="hm",
    draws_boxes=True,
    threshold=0.3,
)
def centernet(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """CenterNet's heads: a heat map whose peaks are centres, sizes and offsets in cells of it."""
    wh, reg = (
        array if array.shape[2] == 2 else np.moveaxis(array, 0, 2)
        for array in (outputs["wh"], outputs["reg"])
    )
    heat = outputs["hm"]  # [h, w, C], or [C, h, w]
    heat = heat if heat.shape[:2] == wh.shape[:2] else np.moveaxis(heat, 0, 2)
    heat = about.activate(heat)
    cell = np.ones((3, 3), np.uint8)  # plane by plane: OpenCV takes at most 128 channels
    around = np.dstack([cv2.dilate(plane, cell) for plane in np.moveaxis(heat, 2, 0)])
    limit = about.threshold or 0
    rows, columns, classes = np.nonzero((heat == around) & (heat >= limit))
    scores = heat[rows, columns, classes]
    middle = np.stack([rows, columns], 1) + reg[rows, columns][:, ::-1]  # [N, 2], y and x
    half = wh[rows, columns][:, ::-1] / 2
    size = np.tile(np.array(heat.shape[:2], np.float32), 2)
    boxes = np.concatenate([middle - half, middle + half], axis=1) / size
    return {"boxes": boxes, "scores": scores, "classes": classes}


# --- detectors of one nameless output -------------------------------------------------------------

ROW_LINES = (
    'for a detector write its "family": "detector" (Datature), "efficientdet", "yolov5", "yolo" or '
    '"yolo_nms" (x1, y1, x2, y2, score, class)'
)
# Operations that end a network of features, never a list of boxes.
FEATURES = (
    "Softmax",
    "Sigmoid",
    "BiasAdd",
    "MatMul",
    "BatchMatMulV2",
    "Tanh",
    "Relu",
    "LogSoftmax",
)


def count_cells(size: tuple[int, int] | None) -> set[int]:
    """The possible numbers of cells in YOLO's grids over an input: strides 8 to 32, or 8 to 64."""
    if size is None:
        return set()
    cells = [(size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32, 64)]
    return {sum(cells[:3]), sum(cells)}


def is_efficientdet(about: About) -> str:
    names = about.input_name.split(":")[0], about.own["detections"].split(":")[0]
    return "" if {"image_arrays", "image_files", "detections"} & set(names) else ROW_LINES


@family(
    {"detections": "N 7"}, is_named=False, told=is_efficientdet, boxes="yxyx pixels", classes_from=1
)
def efficientdet(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """google/automl's EfficientDet: image, ymin, xmin, ymax, xmax, score, class; pixels."""
    rows = outputs["detections"]
    tensors = {"boxes": rows[:, 1:5], "scores": rows[:, 5], "classes": rows[:, 6]}
    if len(rows) and not np.isnan(rows[:, 0]).any() and np.ptp(rows[:, 0]):
        raise OutputError("the rows do not begin with the number of the picture: " + ROW_LINES)
    return keep(tensors, tensors["scores"] != 0)


OBJECT_SCORES = (
    "may have the score of an object before those of the classes, or not: write "
    '"family": "yolov5" (YOLOX, YOLOv6, YOLOv7) or "yolo" (YOLOv8 to v11, turned)'
)


def is_yolo(about: About) -> str:
    """One axis has the cells of the grids over the input, the other the box and the classes.

    If cells come first (Ultralytics' exports have them last), there may be a column for an object
    score, so the label map must show that all columns after the box are classes.
    """
    first, second = about.shape("predictions")
    if about.made_by("predictions") in FEATURES:
        return f"a sequence made by {about.made_by('predictions')} is no detector"
    cells = count_cells(about.size)
    ends = [row for row, cell in ((first, second), (second, first)) if cell in cells]
    is_labelled = bool(about.labels) and first == 4 + len(about.labels)
    if len(ends) == 1:
        columns = ends[0] or 0
        is_told = columns == first or columns in (4 + about.names, 4 + len(about.labels))
        others = f"rows of {columns} columns, one for each cell, {OBJECT_SCORES}"
        return ROW_LINES if columns <= 4 else "" if is_told else others
    if (first or 0) > 4 and (second is None or second > max(first or 0, 50)):
        return "" if about.input_name == "images" or is_labelled else ROW_LINES
    return ROW_LINES


def yolo_rows(rows: np.ndarray, about: About) -> np.ndarray:
    """YOLO's output as rows [N, 4 + C], transposed if it is [4 + C, N]."""
    return rows.T if has_columns_first(rows.shape, about.shown) else rows


def has_columns_first(shape: tuple[int | None, ...], size: tuple[int, int]) -> bool:
    """Whether an output of YOLO is [4 + C, N], not [N, 4 + C]."""
    cells = count_cells(size)
    return shape[1] in cells or shape[0] not in cells


def yolo_columns(about: About) -> int | None:
    """How many numbers YOLO has for each box, 4 + C; None if unknown."""
    shape = about.shape("predictions")
    if None in shape or about.size is None:
        known = [size for size in shape if size is not None]
        return known[0] if len(known) == 1 else None
    return shape[0] if has_columns_first(shape, about.size) else shape[1]


def yolo_numbers(about: About) -> range | None:
    columns = yolo_columns(about)
    return None if columns is None else range(max(0, columns - 4))


@family(
    {"predictions": "A B"},
    is_named=False,
    told=is_yolo,
    numbers=yolo_numbers,
    boxes="cxcywh ?",
    scaled_by="predictions",
    classes_from=0,
    threshold=0.25,
    overlap=0.7,
)
def yolo(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """YOLOv8 to v11: [4 + C, N], centre and size in pixels of the input, a score for each class."""
    rows = yolo_rows(outputs["predictions"], about)
    check_confidences(rows[:, 4:])
    return take_best(rows[:, :4], rows[:, 4:])


def yolov5_numbers(about: About) -> range | None:
    _, columns = about.shape("predictions")
    return range(max(0, columns - 5)) if columns else None


def is_yolov5(about: About) -> str:
    if about.made_by("predictions") in FEATURES:
        return f"a sequence made by {about.made_by('predictions')} is no detector"
    anchors = {3 * cells for cells in count_cells(about.size)}
    return "" if about.shape("predictions")[0] in anchors else ROW_LINES


@family(
    {"predictions": "N A"},
    is_named=False,
    told=is_yolov5,
    numbers=yolov5_numbers,
    boxes="cxcywh ?",
    scaled_by="predictions",
    classes_from=0,
    threshold=0.25,
    overlap=0.45,
)
def yolov5(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """YOLOv5's own TensorFlow export: [N, 5 + C], centre and size in 0..1, an object's score."""
    rows = outputs["predictions"]
    check_confidences(rows[:, 4:])
    return take_best(rows[:, :4], rows[:, 4:5] * rows[:, 5:])


@family(
    {"predictions": "N 6"},
    is_named=False,
    told=lambda about: ROW_LINES,  # never recognised: only the config can name this family
    boxes="xyxy input",
    classes_from=0,
)
def yolo_nms(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """YOLO with suppression inside: x1, y1, x2, y2, score, class."""
    rows = outputs["predictions"]
    tensors = {"boxes": rows[:, :4], "scores": rows[:, 4], "classes": rows[:, 5]}
    return keep(tensors, tensors["scores"] != 0)


PLANES = 'write "planes": "first" or "last"'


def prototype_axis(about: About, shape: tuple[int | None, ...], columns: int | None) -> int | None:
    """The axis of prototypes [A, B, C] that counts them: 0, 2, or None if unknown.

    The other two sizes are a quarter of the picture's. Failing that, `columns` tells it: a row has
    a box, a score for each name and a coefficient for each prototype.
    """
    if about.planes:
        return 0 if about.planes == "first" else 2
    size = about.size or about.shown
    grid = size[0] // 4, size[1] // 4
    ends = [axis for axis, sides in ((0, shape[1:]), (2, shape[:2])) if sides == grid]
    if not ends and columns is not None and about.names:
        ends = [axis for axis in (0, 2) if shape[axis] == columns - 4 - about.names]
    if not ends:
        ends = [axis for axis in (0, 2) if shape[axis] is not None and shape[2 - axis] is None]
    return ends[0] if len(ends) == 1 else None


def is_yolo_segmentation(about: About) -> str:
    """The prototypes have the grid of stride 4, and the rows are YOLO's cells."""
    cells, shape = count_cells(about.size), about.shape("predictions")
    planes = about.shape("prototypes")
    grid = about.size and (about.size[0] // 4, about.size[1] // 4)
    if grid in (planes[:2], planes[1:]) and cells & set(shape):
        return ""
    return 'for a YOLO segmenter write "family": "yolo_segmentation"'


def check_prototypes(about: About) -> str:
    """What is wrong or unknown about the prototypes' axis, or ""; for an input of any size the
    axis is found when a picture has been run.
    """
    shape, columns = about.shape("prototypes"), yolo_columns(about)
    if about.size is None and about.planes is None:
        return ""
    axis = prototype_axis(about, shape, columns)
    if axis is None:
        return f"prototypes {about.outputs['prototypes'].text} may lie first or last: {PLANES}"
    if columns is not None and columns < 5 + (shape[axis] or 0):
        return f"rows of {columns} columns have no coefficients for {shape[axis]} prototypes"
    return ""


def segmentation_numbers(about: About) -> range | None:
    shape, columns = about.shape("prototypes"), yolo_columns(about)
    if columns is None or about.size is None:
        return None
    axis = prototype_axis(about, shape, columns)
    count = None if axis is None else shape[axis]
    return None if count is None else range(max(0, columns - 4 - count))


@family(
    {"predictions": "A B", "prototypes": "D E F"},
    is_named=False,
    told=is_yolo_segmentation,
    check=check_prototypes,
    numbers=segmentation_numbers,
    boxes="cxcywh ?",
    scaled_by="predictions",
    classes_from=0,
    threshold=0.25,
)
def yolo_segmentation(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """YOLO's segmenters: [4 + C + P, N] and P planes, which each row adds up to a mask."""
    planes, rows = outputs["prototypes"], yolo_rows(outputs["predictions"], about)
    axis = prototype_axis(about, planes.shape, rows.shape[1])
    if axis is None:
        raise OutputError(f"prototypes {list(planes.shape)} may lie first or last: {PLANES}")
    planes = np.moveaxis(planes, axis, 0)  # [P, h, w]
    if rows.shape[1] < 5 + len(planes):
        text = f"rows of {rows.shape[1]} columns have no coefficients for {len(planes)} prototypes"
        raise OutputError(text)
    scores, weights = rows[:, 4 : -len(planes)], rows[:, -len(planes) :]
    check_confidences(scores)
    best = {**take_best(rows[:, :4], scores), "weights": weights, "raw": rows[:, :4]}
    best = keep(best, best["scores"] >= np.float32(about.threshold or 0))
    best["boxes"] = to_yxyx(best["raw"], about.boxes_format or "")
    best["boxes"] = to_unit(best["boxes"], about.boxes_scale or "", about.shown)
    best = suppress(keep(best, np.isfinite(best["boxes"]).all(axis=1)), 0.7)
    best = keep(best, np.argsort(-best["scores"], kind="stable")[: about.most])
    weights, raw = best.pop("weights"), best.pop("raw")
    best = {**best, "boxes": raw, "masks": add_up(weights, planes, best["boxes"])}
    return keep(best, (best["masks"] >= 0.5).any(axis=(1, 2)))  # as Ultralytics: none without mask


MASK_BYTES = 32 << 20  # for the masks of one picture; above 512 masks each gets fewer pixels
MASKS_AT_ONCE = 64


def most_side(count: int, size: int = MASK_BYTES) -> int:
    """The side in pixels of `count` square float32 masks that together take `size` bytes; >= 8."""
    return max(8, math.isqrt(size // (4 * max(1, count))))


def resize_masks(masks: Sequence[np.ndarray] | np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Masks [mh, mw], bool or 0..1, as float32 [N, *sides]; enlarging does not blur their edges."""
    tall, wide = map(int, sides)
    resized = np.zeros((len(masks), tall, wide), np.float32)
    for index, mask in enumerate(masks):
        least = min(wide, mask.shape[1]), min(tall, mask.shape[0])
        small = resize(mask.astype(np.float32), *least)
        resized[index] = cv2.resize(small, (wide, tall), interpolation=cv2.INTER_NEAREST)
    return resized


def add_up(weights: np.ndarray, planes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The sums of prototypes [P, h, w] by weights [N, P], as masks 0..1 relative to the boxes."""
    side = min(128, most_side(len(weights)))
    masks = np.zeros((len(weights), side, side), np.float32)
    for start in range(0, len(weights), MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        fields = np.tensordot(weights[some], planes, 1)
        masks[some] = sigmoid(sample_masks(fields, boxes[some], (side, side)))
    return masks


def is_detector(about: About) -> str:
    """Seven columns or more, not made by a feature layer; `detector` checks what is in them."""
    made_by = about.made_by("output")
    columns = about.shape("output")[1]
    if made_by in FEATURES:
        return f"a sequence made by {made_by} is no detector"
    cells = count_cells(about.size)
    if about.shape("output")[0] in cells | {3 * count for count in cells}:
        return ROW_LINES
    rows_made = ("ConcatV2", "Pack", "PadV2", "Pad", "GatherV2", "GatherNd", "SelectV2", "Select")
    return "" if columns == 7 or (columns or 0) > 7 and made_by in rows_made else ROW_LINES


def has_seven_columns(about: About) -> str:
    is_short = about.shape("output")[1] in range(7)
    return "family detector has rows of 7 columns or more" if is_short else ""


@family(
    {"output": "N A"},
    is_named=False,
    told=is_detector,
    check=has_seven_columns,
    boxes="yxyx unit",
    classes_from=1,
    overlap=0.5,
)
def detector(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """Datature's detector: ymin, xmin, ymax, xmax, score, class, ..., valid; then suppression."""
    rows = outputs["output"]  # [N, >=7]
    rows = rows[rows[:, -1] != 0]
    numbers = rows[:, 5][np.isfinite(rows[:, 5])]
    if (numbers != np.rint(numbers)).any() or (np.nan_to_num(rows[:, 4]) > 1 + SLACK).any():
        raise OutputError(
            "the rows are not ymin, xmin, ymax, xmax, score, class, ..., valid: " + ROW_LINES
        )
    return {"boxes": rows[:, :4], "scores": rows[:, 4], "classes": rows[:, 5]}


# --- planes and maps ------------------------------------------------------------------------------


def plane_axis(about: About) -> int | None:
    """The axis of planes [A, B, C] that counts the classes: 0, 2, or None if unknown.

    Its size is the number of names, or one more for a background; failing that, the other two sizes
    must have the proportions of the model's input.
    """
    first, second, last = about.shape("planes")
    if about.planes:
        return 0 if about.planes == "first" else 2
    if last == 1 and first != 1:
        return 2
    if first == 1 and last != 1:
        return 0
    counts = {len(about.labels), about.names, about.names + 1} if about.labels else set()
    ends = [axis for axis, size in ((0, first), (2, last)) if size in counts]
    if len(ends) == 1:
        return ends[0]
    are_pictures = [axis for axis in (0, 2) if is_like(about, axis)]
    return are_pictures[0] if len(are_pictures) == 1 else None


def is_like(about: About, axis: int) -> bool:
    """Whether an axis may count the planes: the other two sizes have the input's proportions."""
    first, second, last = about.shape("planes")
    tall, wide, planes = (second, last, first) if axis == 0 else (first, second, last)
    if planes is None:
        return False
    if about.size is None and tall is not None:
        return tall == wide and planes != tall
    return is_in_proportion(about, tall, wide)


def is_in_proportion(about: About, tall: int | None, wide: int | None) -> bool:
    """Whether a height and width have the proportions of the model's input."""
    if tall is None or wide is None or about.size is None:
        return tall is None and wide is None or about.size is None and tall == wide
    return abs(tall * about.size[1] - wide * about.size[0]) <= max(about.size)


def is_segmentation(about: About) -> str:
    output, planes = about.outputs["planes"], about.shape("planes")
    axis = plane_axis(about)
    if output.made_by == "Tanh":
        return "a model that answers pictures (made by Tanh) is not a segmenter"
    is_softmax = "softmax" in (about.activation, MADE.get(output.made_by))
    if planes[1] == 1 or planes[0] == 1 and is_softmax:
        return "a sequence is no mask"
    if axis is None:
        return check_planes(about)
    count = planes[axis]
    is_named = about.labels and count in (len(about.labels), about.names, about.names + 1)
    if count == 3 and output.made_by != "Softmax" and not is_named:
        return (
            "three planes may also be a picture (a model from image to image): "
            'for a segmenter write "family": "segmentation"'
        )
    if output.made_by not in MADE and about.activation is None:
        return f"{unknown_activation(about, 'planes')}: write {WAYS}"
    tall = planes[1 if axis == 0 else 0]
    stride = FINEST if output.made_by == "Sigmoid" and not about.labels else COARSEST
    if about.size and tall and tall <= math.ceil(about.size[0] / stride):
        return (
            f"each cell of planes {output.text} covers {stride} pixels or more, as in a detector's "
            'grid: for a segmenter write "family": "segmentation"'
        )
    return check_grey(about, "segmentation") if count == 1 else ""


def check_grey(about: About, family: str) -> str:
    """What is wrong with a single plane if the input is grey, or "": it may be a grey picture."""
    if about.channels != "grey" or about.labels or about.activation:
        return ""
    return (
        "one plane for grey pictures may also be a picture (a model from image to "
        f'image): for a segmenter write "label_map", or "family": "{family}"'
    )


# How many pixels high a cell must be for planes to look like a detector's grid: FINEST for sigmoids
# without a label map, which may be of boxes and objects, COARSEST for all other planes.
FINEST, COARSEST = 16, 32


REGIONS: dict[str, Any] = {
    "is_named": False,
    "boxes": "yxyx unit",
    "numbers_classes": True,
    "draws_boxes": True,
}


FIRST_CLASS = (
    'write "classes_from": 0 if class 0 is a class like the others, 1 if it is the background'
)
NO_CLASS = {"background", "bg", "unlabeled", "unlabelled", "void", "none", "nothing", "ignore"}


def check_background(about: About) -> str:
    """What is wrong with class 0's name, or "": it does not show whether 0 is the background."""
    name = re.sub(r"[\W_]+", "", about.labels.get(0, "background")).lower()
    if about.classes_from is None and name not in NO_CLASS:
        return f"label_map names class 0 '{about.labels[0]}': {FIRST_CLASS}"
    return ""


def has_background_plane(about: About, count: int) -> bool:
    """Whether the first of several sigmoid planes is the background: `classes_from` says so, or
    there is one plane more than names.
    """
    said = about.classes_from
    return count > 1 and (said == 1 or said is None and count == about.names + 1)


def check_planes(about: About) -> str:
    """What is unknown about the planes' axis, or about which plane is the background; else ""."""
    axis = plane_axis(about)
    if axis is None:
        return (
            f"planes {about.outputs['planes'].text} may have its classes first or last: {PLANES}, "
            'or "label_map" with as many names as there are classes'
        )
    return check_plane_names(about, about.shape("planes")[axis])


def check_plane_names(about: About, count: int | None) -> str:
    """What is wrong with the number of planes, compared with the label map, or ""."""
    if count == 1:
        return check_count(about, 1, "planes")
    exclusive = are_exclusive(about, count or 2)
    if exclusive and about.classes_from is None and count == about.names:
        return f"there is a name for each plane: {FIRST_CLASS}"
    if problem := check_background(about):
        return problem
    if count is not None:
        exclusive = are_exclusive(about, count) and about.classes_from != 0
        has_background = exclusive or has_background_plane(about, count)
        check_labels(about.labels, count, 0 if has_background or 0 in about.labels else 1)
    return ""


@family(
    {"planes": "float A B C"},
    told=is_segmentation,
    check=check_planes,
    activation="planes",
    **REGIONS,
)
def segmentation(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """Class planes [H, W, C] or [C, H, W]: a prediction for each connected region.

    Of a softmax the best class of each pixel, class 0 the background; of sigmoids each plane by
    itself, from the threshold on.
    """
    axis = plane_axis(about)
    planes = outputs["planes"]
    return find_plane_regions(planes if axis == 2 else np.moveaxis(planes, 0, 2), about)


@family(
    {"planes|logits": "float H W C", "image_info": "4 2"},
    check=lambda about: check_plane_names(about, next(iter(about.shape("planes")[2:]), None)),
    activation="planes",
    **{**REGIONS, "is_named": True},
)
def garden_segmentation(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """TF Model Garden's segmenters (official/vision/serving/semantic_segmentation.py): class planes
    of the model's own input, in which the picture, scaled, lies at the top left; or of the picture.
    """
    planes, (original, _, scale, offset) = outputs["planes"], outputs["image_info"]
    if offset.any():
        raise OutputError(f"image_info: expected an offset of 0, got {offset.tolist()}")
    if planes.shape[:2] != tuple(original):
        tall, wide = np.rint(original * scale).astype(int)
        planes = planes[:tall, :wide]
    return find_plane_regions(planes, about)


def find_plane_regions(planes: np.ndarray, about: About) -> Tensors:
    """The regions of class planes [H, W, C] of a settled `about`."""
    planes = about.activate(planes)
    if are_exclusive(about, planes.shape[2]):
        check_shares(planes, about)
        return find_best_regions(planes, about)
    return find_planes_regions(planes, about)


def check_shares(planes: np.ndarray, about: About) -> None:
    """Raise OutputError for planes [H, W, C] if a softmax's classes do not add up to 1."""
    total = planes.sum(axis=2)
    if about.made_by("planes") == "Softmax" and (np.abs(total - 1) > 0.05).any():  # NaN passes
        raise OutputError(
            "the classes of a softmax must add up to 1 in each pixel, but these add up to "
            f"{np.nanmin(total):.3g}..{np.nanmax(total):.3g}: it is over another axis, or partial"
        )


def are_exclusive(about: About, count: int) -> bool:
    """Whether the planes exclude each other: those of a softmax, not those of sigmoids."""
    return count > 1 and "sigmoid" not in (about.activation, MADE.get(about.made_by("planes")))


def find_best_regions(planes: np.ndarray, about: About) -> Tensors:
    """The regions of the best class of each pixel of planes [H, W, C]."""
    planes = np.nan_to_num(planes)
    winner, best = planes.argmax(axis=2), planes.max(axis=2)
    winner = np.where(best >= (about.threshold or 0), winner, -1)
    return find_map_regions(winner, about, best)


def find_map_regions(numbers: np.ndarray, about: About, best: np.ndarray) -> Tensors:
    """The regions of a class map [H, W], without the background's; a score is the mean of `best`
    [H, W] in the region.
    """
    first = 0 if about.classes_from == 0 else 1
    shift = 1 - first if 0 not in about.labels else 0
    found = [
        (box, best[window][inside].mean(), int(number) + shift, inside)
        for number in np.unique(numbers[numbers >= first])
        for box, window, inside in find_regions(numbers == number)
    ]
    return to_tensors(found, numbers.shape, about)


def find_planes_regions(planes: np.ndarray, about: About) -> Tensors:
    """The regions of each of the planes [H, W, C] by itself, from the threshold on."""
    count, limit = planes.shape[2], 0.5 if about.threshold is None else about.threshold
    has_background = has_background_plane(about, count)
    first = 0 if has_background or 0 in about.labels else 1  # the number of the first plane
    if count == 1 and about.labels:
        first = max(about.labels)  # the only name, or the one after the background's
    found = [
        (box, planes[:, :, index][window][inside].mean(), index + first, inside)
        for index in range(1 if has_background else 0, count)
        for box, window, inside in find_regions(planes[:, :, index] >= limit)
    ]
    return to_tensors(found, planes.shape[:2], about)


def to_tensors(found: list[tuple], size: tuple[int, ...], about: About) -> Tensors:
    """Predictions of the best regions; each is (box in plane pixels, score, class, bool mask)."""
    found = sorted(found, key=lambda each: -each[1])[: about.most]
    boxes, scores, classes, insides = zip(*found) if found else ((), (), (), ())
    sides = np.max([(1, 1), *(inside.shape for inside in insides)], axis=0)
    return {
        "boxes": np.array(boxes, np.float32).reshape(-1, 4) / np.array([*size, *size], np.float32),
        "scores": np.array(scores, np.float32),
        "classes": np.array(classes, np.int64),
        "masks": resize_masks(insides, np.minimum(sides, most_side(len(found)))),
    }


SHARES = (1, 2, 4, 8, 16)  # the input's sides divided by these may be the planes' sides


def find_rows(about: About, shares: Iterable[int] = SHARES) -> tuple[int, int] | None:
    """Height and width of planes [h * w, C], found by the input's size; None if nothing fits."""
    rows, _ = about.shape("planes")
    if rows is None or about.size is None:
        return None
    sizes = [(about.size[0] // share, about.size[1] // share) for share in shares]
    return next((size for size in sizes if math.prod(size) == rows), None)


def unfold(about: About, size: tuple[int, int]) -> About:
    """`about` with the shape of the planes [h * w, C] as [h, w, C]."""
    flat = about.outputs["planes"]
    shape = (None, *size, about.shape("planes")[1])
    outputs = {**about.outputs, "planes": flat._replace(shape=shape)}
    return dataclasses.replace(about, outputs=outputs, planes="last")


def is_flat(about: About) -> str:
    """One row for each pixel of the input, or of half its sides; fewer rows may be a sequence."""
    size = find_rows(about)
    if size is None or about.made_by("planes") not in MADE and about.activation is None:
        return f"a sequence made by {about.made_by('planes') or 'an unknown operation'} is no mask"
    if size == find_rows(about, SHARES[:2]):
        return ""
    return (
        f"rows for {size[0]}x{size[1]} pixels may be a sequence: for a segmenter write "
        '"family": "flat_segmentation"'
    )


def check_flat(about: About) -> str:
    size = find_rows(about)
    if size is None:
        text = f"planes {about.outputs['planes'].text}: expected a row for each pixel"
        return f"{text} of the input, or of its half, quarter, ..., sixteenth part"
    return check_planes(unfold(about, size))


@family({"planes": "float A C"}, told=is_flat, check=check_flat, activation="planes", **REGIONS)
def flat_segmentation(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """Class planes of which the pixels lie in rows, [H * W, C]: their regions."""
    size = find_rows(about)
    assert size is not None  # as `check_flat` has found
    planes = outputs["planes"].reshape(*size, -1)
    return segmentation({"planes": planes}, unfold(about, size))


def is_map(about: About) -> str:
    tall, wide = about.shape("map")[:2]
    return "" if is_in_proportion(about, tall, wide) else "integers, not in the input's proportions"


@family({"map": "int H W"}, told=is_map, check=check_background, **REGIONS)
def class_map(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """The class of each pixel (DeepLab's SemanticPredictions), 0 the background unless
    `classes_from` is 0: its regions.
    """
    numbers = outputs["map"]
    return find_map_regions(numbers, about, np.ones(numbers.shape, np.uint8))


@family({"map": "int H W 1"}, told=is_map, check=check_background, **REGIONS)
def class_map_plane(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """The same, with a last axis of one."""
    return class_map({"map": outputs["map"][:, :, 0]}, about)


def is_mask(about: About) -> str:
    if about.made_by("mask") not in MADE and about.activation is None:
        return (
            f"{unknown_activation(about, 'mask')}: for masks write {WAYS}, for detectors a family"
        )
    is_like = is_in_proportion(about, *about.shape("mask"))
    if about.made_by("mask") == "Softmax" or not is_like:
        return "a sequence is no mask"
    return check_grey(about, "mask")


@family(
    {"mask": "float H W"},
    told=is_mask,
    check=lambda about: check_count(about, 1, "mask"),
    activation="mask",
    **REGIONS,
)
def mask(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """One mask [H, W]: its regions."""
    return find_planes_regions(about.activate(outputs["mask"])[:, :, np.newaxis], about)


FINE_PLANE = 128 * 128


def find_regions(plane: np.ndarray) -> Iterator[tuple]:
    """Connected regions of a bool plane: the box in pixels, its slices of the plane, and the bool
    mask within these.
    """
    if not plane.size:  # OpenCV 5 would end the process
        return
    count, regions, stats, _ = cv2.connectedComponentsWithStats(
        plane.astype(np.uint8), connectivity=8
    )
    least = 4 if plane.size >= FINE_PLANE else 1  # pixels: smaller regions of fine planes are noise
    for region in range(1, count):
        left, top, width, height, area = stats[region]
        if area >= least:
            window = slice(top, top + height), slice(left, left + width)
            yield (top, left, top + height, left + width), window, regions[window] == region


# --- classifiers ----------------------------------------------------------------------------------


@family({"scores": "float C", "labels|classes": "text C"}, activation="scores")
def labelled_classifier(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """A classifier that answers the names too (AutoML Vision, TF1 estimators)."""
    names = [name.decode("utf-8", "replace") for name in outputs["labels"].tolist()]
    scores = about.activate(outputs["scores"])
    classes = np.arange(len(scores)) + (0 if about.classes_from == 1 else 1)
    return {"scores": scores, "classes": classes, "names": np.array(names, object)}


def is_classifier(about: About) -> str:
    if about.made_by("probabilities") not in MADE and about.activation is None:
        return (
            f"{unknown_activation(about, 'probabilities')}: an embedding or a regression is no "
            f"classifier; for a classifier write {WAYS}"
        )
    count = about.shape("probabilities")[0] or 1
    is_sigmoid = about.made_by("probabilities") == "Sigmoid" and about.activation is None
    may_be_places = count % 2 == 0 or count > 3 and count % 3 == 0
    if is_sigmoid and may_be_places and not about.labels:
        return (
            f"{count} sigmoids without names may be places, such as the edges of a box: "
            'for a classifier write "label_map", or "family": "classifier"'
        )
    return ""


def check_classes(about: About) -> str:
    """What is wrong with a classifier's number of outputs beside the label map's ids, or ""."""
    (count,) = about.shape("probabilities")
    if count is None or count == 1:
        return check_count(about, count)
    first = first_class(about)
    strange = [number for number in about.labels if number not in range(first, first + count)]
    if strange:
        return f"label_map names the class {strange[0]}, the model has {count}"
    try:
        check_labels(about.labels, count, first)
    except ValueError as error:
        if count != about.names + 1:
            raise
        return f'{error}; if class 0 is the background, write "classes_from": 1'
    return ""


def first_class(about: About) -> int:
    """The id of the first class: 0 for a background, or where the label map has it."""
    return 0 if 0 in about.labels or about.classes_from == 1 else 1


def check_count(about: About, count: int | None, slot: str = "probabilities") -> str:
    """What is wrong with a single confidence or mask, or ""."""
    is_softmax = "softmax" in (about.activation, MADE.get(about.made_by(slot)))
    if count == 1 and is_softmax and about.activation != "none":
        return (
            "a softmax over one output is always 1, unless it was cut out of several classes: "
            'export all of them, or write "activation": "none"'
        )
    if count == 1 and about.classes_from is not None:
        return "classes_from: a model with one output has no first class: leave it out"
    if count == 1 and len(about.labels) > 2:
        return f"one output means one class or two, but label_map names {len(about.labels)}"
    return ""


@family(
    {"probabilities": "float C"},
    is_named=False,
    told=is_classifier,
    check=check_classes,
    activation="probabilities",
)
def classifier(outputs: Mapping[str, np.ndarray], about: About) -> Tensors:
    """A confidence for each class; of one sigmoid, for the one name or for both."""
    scores = about.activate(outputs["probabilities"])
    if problem := check_count(about, len(scores)):
        raise OutputError(problem)
    if len(scores) == 1:
        numbers = sorted(about.labels) or [1]
        scores = np.concatenate([1 - scores, scores])[-len(numbers) :]
        return {"scores": scores, "classes": np.array(numbers, np.int64)}
    first = first_class(about)
    return {"scores": scores, "classes": np.arange(len(scores), dtype=np.int64) + first}


# ==================================================================================================
# Routines
# In: predictions as arrays (or, before the model, the picture) and arguments. Out: a new dict of
# them.
# ==================================================================================================

DECLARED: dict[str, type] = {}  # user routines declared outside `routine_modules`: for all servers
BUILT_IN: dict[str, type] = {}  # routines of this file; DECLARED cannot take their names
# The routines that every server has; those of a server's own modules are layered over them.
ROUTINES: ChainMap[str, type] = ChainMap(DECLARED, BUILT_IN)


def argument(
    default: Any = dataclasses.MISSING,
    doc: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Declare a routine's argument in one line: default, meaning and limits."""
    return dataclasses.field(
        default=default, metadata={"doc": doc, "minimum": minimum, "maximum": maximum}
    )


def routine(*aliases: str, before_model: bool = False) -> Callable[[type], type]:
    """Register a class as a routine under its own name and `aliases`; its annotated fields are the
    routine's arguments.

    Its `__call__(tensors)` returns a new dict of predictions. With `before_model` it takes and
    returns a picture instead. A routine in a module of `routine_modules` belongs to the server
    that imports it; elsewhere it belongs to every server of the process, and the name of a
    built-in routine raises ValueError.
    """

    def register(kind: type) -> type:
        kind = dataclass(frozen=True)(kind)
        check_arguments(kind)
        kind.before_model = before_model  # type: ignore[attr-defined]
        kind.routine_names = (kind.__name__, *aliases)  # type: ignore[attr-defined]
        if not IMPORTING.get():
            declare_routine(kind)
        return kind

    return register


def check_arguments(kind: Any) -> None:
    """Raise TypeError if a routine has an argument of a type that cannot be read from JSON."""
    hints = typing.get_type_hints(kind)
    kind.__annotations__ = hints  # resolved now: the namespace of a `run_path` module is not kept
    for field in dataclasses.fields(kind):
        if not comes_in_json(hints[field.name]):
            kinds = "int, float, str, bool, tuple, list, dict or a union of these"
            text = f"argument {field.name}: expected {kinds}, got {hints[field.name]}"
            raise TypeError(f"routine {kind.__name__}: {text}")


def comes_in_json(hint: Any) -> bool:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (tuple, list, dict):
        return comes_in_json(inner[-1] if origin is dict else inner[0])
    if origin in (typing.Union, types.UnionType):
        return all(map(comes_in_json, inner))
    return hint in (int, float, str, bool, list, dict, type(None), Any) or dataclasses.is_dataclass(
        hint
    )


def declare_routine(kind: Any) -> None:
    """Make a routine available to every server of this process."""
    built_in = kind.__module__ == __name__
    for name in kind.routine_names:
        if name in BUILT_IN:
            raise ValueError(
                f"routine {name}: this name is built in; only a module in a config's "
                "routine_modules may take it, for its own server"
            )
        (BUILT_IN if built_in else DECLARED)[name] = kind


def import_module(name: str, folder: Path) -> tuple[dict[str, type], dict[str, "Family"]]:
    """The routines and families, by name, of a .py file relative to `folder` or of a module.

    A file is run again at each call; a module is imported normally. Its exceptions pass through.
    """
    token = IMPORTING.set(True)
    try:
        if name.endswith(".py"):
            # a name of its own: run_path replaces sys.modules[run_name] while the file runs
            run_name = f"routine_modules.{Path(name).stem}"
            held = runpy.run_path(str(folder / name), run_name=run_name)
        else:
            held = vars(importlib.import_module(name))
    finally:
        IMPORTING.reset(token)
    kinds = [kind for kind in held.values() if "routine_names" in getattr(kind, "__dict__", ())]
    families = [read.family for read in held.values() if "family" in getattr(read, "__dict__", ())]
    return (
        {name: kind for kind in kinds for name in kind.routine_names},
        {kind.name: kind for kind in families},
    )


def keep(tensors: Tensors, chosen: np.ndarray) -> Tensors:
    """Select predictions: `chosen`, a bool mask or an index array, is applied to every array."""
    return {
        name: array[chosen] if isinstance(array, np.ndarray) else array
        for name, array in tensors.items()
    }


def with_answer(tensors: Tensors, **members: Any) -> Tensors:
    """The predictions with further members of their answer."""
    return {**tensors, "answer": {**tensors.get("answer", {}), **members}}


@routine()
class FilterConfidence:
    """Keep predictions of at least this confidence."""

    confidence: float = argument(doc="0..1", minimum=0, maximum=1)

    def __call__(self, tensors: Tensors) -> Tensors:
        return keep(tensors, tensors["scores"] >= np.float32(self.confidence))


LOWEST = float(np.finfo(np.float32).min)
SAME = 2e-7  # tolerance when an IoU is compared: OpenCV computes it in float32


def suppress(tensors: Tensors, iou: float) -> Tensors:
    """Class-wise non-maximum suppression: the best box stays, boxes of its class that overlap it by
    an IoU of at least `iou` are dropped; with `iou` 0, those that overlap it at all. Of equal
    scores the first is the best.

    OpenCV does it, since it needs neither TensorFlow nor an [N, N] array. As in TensorFlow, boxes
    without area stay and NaN scores are dropped; so are boxes with NaN or infinity.
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
        # shifted to start at 0: OpenCV separates classes by moving boxes by the largest coordinate
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


MOST_WARNINGS = 10  # of one routine in one answer


def warn_unknown(tensors: Tensors, who: str, class_name: str | Iterable[str]) -> Tensors:
    """The predictions, with a warning in the answer for each name that the model has no class of.

    Numbers pass without a warning: a class without a name is called by its number.
    """
    labels: Mapping[int, str] | None = tensors.get("labels")
    if labels is None:
        return tensors
    there = {*labels.values(), *tensors["names"]}
    names = dict.fromkeys([class_name] if isinstance(class_name, str) else class_name)
    unknown = [name for name in names if name not in there and not name.isdecimal()]
    texts = []
    for name in unknown[:MOST_WARNINGS]:
        close = difflib.get_close_matches(name[:60], labels.values(), n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        none = "" if labels else "; its deployment has no label map"
        texts.append(f"{who}: the model has no class '{name[:60]}'{hint}{none}")
    warnings = [*tensors.get("answer", {}).get("warnings", []), *texts]
    return with_answer(tensors, warnings=warnings) if texts else tensors


def warn_nameless(tensors: Tensors) -> Tensors:
    """The predictions, with a warning for class ids that are missing from the label map."""
    labels: Mapping[int, str] = tensors["labels"]
    if not labels:
        return tensors
    named = tensors["names"] != tensors["classes"].astype(str)
    nameless = tensors["classes"][~named]
    numbers = [number for number in np.unique(nameless).tolist() if number and number not in labels]
    if not numbers:
        return tensors
    shown = ", ".join(map(str, numbers[:MOST_WARNINGS]))
    text = f"label map: no name for class {shown}; it has {len(labels)}, up to id {max(labels)}"
    return with_answer(tensors, warnings=[text])


@routine()
class FilterClass:
    """Keep predictions of these classes."""

    class_name: str | tuple[str, ...] = argument(doc="names to keep")

    def __call__(self, tensors: Tensors) -> Tensors:
        warned = warn_unknown(tensors, "FilterClass", self.class_name)
        return keep(warned, are_named(tensors, self.class_name))


@routine()
class ExcludeClass:
    """Drop predictions of these classes."""

    class_name: str | tuple[str, ...] = argument(doc="names to drop")

    def __call__(self, tensors: Tensors) -> Tensors:
        warned = warn_unknown(tensors, "ExcludeClass", self.class_name)
        return keep(warned, ~are_named(tensors, self.class_name))


@routine()
class Threshold:
    """Keep predictions of at least the confidence that their class asks for."""

    confidence: dict[str, float] = argument(
        doc='by class: {"cat": 0.5, "dog": 0.7}', minimum=0, maximum=1
    )
    others: float = argument(0.0, "0..1, of classes that are not named", minimum=0, maximum=1)

    def __call__(self, tensors: Tensors) -> Tensors:
        least = [self.confidence.get(name, self.others) for name in tensors["names"]]
        warned = warn_unknown(tensors, "Threshold", self.confidence)
        return keep(warned, tensors["scores"] >= np.array(least, np.float32))


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
        kept = tensors
        if self.class_name is not None:
            tensors = warn_unknown(tensors, "ActiveLearning", self.class_name)
            kept = keep(tensors, are_named(tensors, self.class_name))
        average, per_class = mean_of_classes(entropies(kept["scores"]), kept["names"])
        answered = with_answer(tensors, avgEntropy=average, avgPerClass=per_class)
        return {**answered, "only_answer": True}


def uncertainty(tensors: Tensors, strategy: str) -> float:
    """How uncertain the model is of a picture, 0..1: `entropy` (as ActiveLearning answers it),
    `least_confidence` or `margin`.

    Each detection is a yes-or-no question: 1 - p, or for margin 1 - |p - (1 - p)|, averaged within
    each class, then over the classes. A classifier's classes exclude each other: 1 - best, or for
    margin 1 - (best - second). No predictions: 0.
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
    """The mean of the class means, and the class means by name; values [N], names [N]."""
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
        if self.ranges is not None and len(self.ranges) > 1000:
            raise ValueError(f"ranges: expected at most 1000 bounds, got {len(self.ranges)}")
        if self.ranges is not None and (
            not self.ranges or list(self.ranges) != sorted(set(self.ranges))
        ):
            raise ValueError(f"ranges: expected rising bounds, got {list(self.ranges)}")

    def __call__(self, tensors: Tensors) -> Tensors:
        names, scores = tensors["names"], tensors["scores"].astype(np.float32)
        kinds = sorted(set(names.tolist()))
        numbers: dict[str, Any] = {"classes": {name: int((names == name).sum()) for name in kinds}}
        bounds = (
            [(n + 1) / self.bins for n in range(self.bins)]
            if self.bins
            else list(self.ranges or ())
        )
        if bounds:  # a bin's lower bound is excluded, its upper bound included
            upper = np.array(bounds, np.float32)  # as FilterConfidence compares
            bins = np.searchsorted(upper, np.minimum(scores, 1) if self.bins else scores)
            numbers["ranges"] = bounds
            table = np.zeros((len(kinds), len(bounds) + 1), np.int64)
            np.add.at(table, (np.searchsorted(np.array(kinds, object), names), bins), 1)
            numbers["counts"] = dict(zip(kinds, table[:, :-1].tolist()))
        numbers["image"] = draw_histogram(numbers)
        return with_answer(tensors, histogram=numbers)


def draw_histogram(numbers: Mapping[str, Any]) -> str:
    """The numbers of a Histogram as horizontal bars, an SVG data URI."""
    listed = iter(numbers["classes"].items())
    if "counts" in numbers:
        listed = (
            (f"{name} \N{LESS-THAN OR EQUAL TO} {bound:g}", count)
            for name, counts in numbers["counts"].items()
            for bound, count in zip(numbers["ranges"], counts)
        )
    rows = list(itertools.islice(listed, 1000))  # more bars are unreadable; the JSON has them all
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
        grey = cv2.cvtColor(image[:, :, :3], cv2.COLOR_RGB2GRAY)
        return np.dstack([grey, grey, grey, *np.moveaxis(image[:, :, 3:], 2, 0)])  # alpha as it is


MOST_PIXELS = 25_000_000  # of a resized picture: a side that is not given has no limit of its own


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
        wide, tall = self.width, self.height
        if wide is None:
            wide = max(1, round(width * (tall or 0) / height))
        if tall is None:
            tall = max(1, round(height * wide / width))
        if wide * tall > MOST_PIXELS:
            raise RoutineError(f"Resize: expected at most {MOST_PIXELS} pixels, got {wide}x{tall}")
        return resize(image, wide, tall)


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
    overlap: float = argument(0.2, "how much of a tile overlaps the next", minimum=0, maximum=0.9)
    iou: float = argument(0.5, "see FilterIOU, over all tiles", minimum=0, maximum=1)
    whole: bool = argument(True, "true: the model gets the whole picture too")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        return image  # unchanged: `find_in_tiles` cuts it

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
    """Resize [H, W, C] or [H, W]: by area where a side shrinks, bilinear where one grows."""
    tall, wide = image.shape[:2]
    # shrink first, on its own: if either side grows, INTER_AREA does not average
    least = min(width, wide), min(height, tall)
    if least != (wide, tall):
        image = cv2.resize(image, least, interpolation=cv2.INTER_AREA)
    if least != (width, height):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


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
        if image.dtype != np.uint8 or image.ndim != 3:  # would be misread as a different picture
            came = f"{image.dtype} {list(image.shape)}"
            raise TypeError(
                f"{type(step).__name__}: expected a picture, uint8 [H, W, 3], got {came}"
            )
    return image, region


def place_boxes(boxes: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Convert boxes [N, 4] from 0..1 of a region to 0..1 of the picture that contains it."""
    origin, size = np.tile(region[:2], 2), np.tile(region[2:] - region[:2], 2)
    return (boxes * size + origin).astype(boxes.dtype)


# ==================================================================================================
# Predictions out
# In: predictions as arrays, the picture's size. Out: annotations, COCO, or the picture with them
# drawn.
# ==================================================================================================


def to_annotations(tensors: Tensors, width: int, height: int) -> list[dict[str, Any]]:
    """Predictions as the API's annotation objects, best first: bound and contour in 0..1 of the
    picture; also `contours` if a mask has more than one ring.
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


def resize_mask(mask: np.ndarray, tall: int, wide: int) -> np.ndarray:
    """A mask [mh, mw] of 0..1 as 0/1 pixels, uint8 [tall, wide]."""
    mask = mask.astype(np.float32)
    if mask.shape != (tall, wide):
        shrinks = mask.shape[0] >= tall and mask.shape[1] >= wide
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        mask = cv2.resize(mask, (wide, tall), interpolation=method)
    return (mask >= 0.5).astype(np.uint8)


# A mask coarser than the picture is traced at its box's size in picture pixels, enlarged up to 8
# times to reach FINE on the longer side; a side has at most MOST_FINE, or as many as the mask.
FINE, MOST_FINE = 128, 1024
MOST_RINGS = 2000


def trace_rings(
    mask: np.ndarray, box: np.ndarray, width: int, height: int
) -> list[list[list[float]]]:
    """The outlines of a mask's parts and holes as [[x, y], ...] in 0..1 of the picture: parts
    first, largest first.

    Filled by the even-odd rule they give the mask; holes run in the opposite direction. A mask as
    fine as the picture is traced pixel by pixel; a coarser one is smoothed.
    """
    origin = np.array([box[1], box[0]], np.float64)
    size = np.array([box[3] - box[1], box[2] - box[0]], np.float64)  # x, y
    wide, tall = size * [width, height]
    is_coarse = mask.shape[0] < tall - 0.5 or mask.shape[1] < wide - 0.5
    pixels = (mask >= 0.5).astype(np.uint8)
    if is_coarse:
        scale = int(np.clip(np.ceil(FINE / max(tall, wide, 1)), 1, 8))
        most = max(MOST_FINE, *mask.shape)
        sides = [np.clip(round(side * scale), 1, most) for side in (tall, wide)]
        pixels = resize_mask(mask, *map(int, sides))
    # enlarged at least twice: a line of one mask pixel is now two wide, so one cell is enough
    cells = 1 if min(np.array(pixels.shape) / mask.shape) >= 2 else 2
    grid = np.array(pixels.shape[::-1])
    step = float(max(size * [width, height] / grid))  # picture pixels per traced pixel
    rings = find_rings(pixels, cells)
    thick = thickness(*rings)
    rings = [simplify(ring, step, max(tall, wide), thick) for ring in rings]
    rings.sort(key=lambda ring: (area_of(ring) < 0, -abs(area_of(ring))))
    return [
        np.clip(ring / grid * size + origin, 0, 1).round(6).tolist() for ring in rings[:MOST_RINGS]
    ]


def find_rings(pixels: np.ndarray, cells: int = 2) -> list[np.ndarray]:
    """The rings along the edges of 0/1 pixels [h, w] as x, y [K, 2]; holes run the other way.

    OpenCV's contours run through pixel centres, which cuts off half a pixel on each side: all of a
    thin part. Therefore the edges are traced. With two `cells` per pixel, the even cells are edges.
    One cell per pixel is faster, but closes gaps of one pixel.
    """
    rings: list[np.ndarray] = []
    rest, is_hole = pixels, False
    square = np.ones((cells + 1, cells + 1), np.uint8)
    tall, wide = (cells * side + 1 for side in pixels.shape)
    for _ in range(2 * MOST_DEPTH):
        if not rest.any():
            break
        edges = np.zeros((tall, wide), np.uint8)
        edges[cells - 1 :: cells, cells - 1 :: cells][: pixels.shape[0], : pixels.shape[1]] = rest
        edges = cv2.dilate(edges, square, anchor=(1, 1))
        found, _ = cv2.findContours(edges, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        for ring in found:
            points = ring.reshape(-1, 2) / cells
            rings.append(points[::-1] if (area_of(points) < 0) != is_hole else points)
        edges[:] = 0
        cv2.drawContours(edges, found, -1, 1, cv2.FILLED)
        inside = cv2.erode(edges, square, anchor=(0, 0)) if cells == 1 else edges
        inside = inside[cells - 1 :: cells, cells - 1 :: cells][
            : pixels.shape[0], : pixels.shape[1]
        ]
        rest, is_hole = inside & (1 - rest), not is_hole  # filled by mistake: the next level
    return rings


MOST_DEPTH = 8  # nesting levels of parts with holes that contain parts


def area_of(ring: np.ndarray) -> float:
    """The area inside a ring [K, 2]; negative for a hole, whose ring runs the other way."""
    return cv2.contourArea(ring.astype(np.float32), oriented=True)


def thickness(*rings: np.ndarray) -> float:
    """The thickness of the shape that rings [K, 2] enclose, in their own unit: twice its area by
    its outline, which is the width of a long line.
    """
    length = sum(cv2.arcLength(ring.astype(np.float32), True) for ring in rings)
    return 2 * abs(sum(map(area_of, rings))) / max(length, 1e-6)


def simplify(ring: np.ndarray, step: float, side: float, thick: float) -> np.ndarray:
    """A ring with fewer points, moved by at most a tenth of the thickness of the ring or its mask.

    `step` is the number of picture pixels per unit of the ring, `side` the box's longer side in
    picture pixels.
    """
    points = ring.astype(np.float32).reshape(-1, 1, 2)
    thick = min(thick, thickness(ring))
    short = cv2.approxPolyDP(points, min(min(1.0, 0.004 * side) / step, 0.1 * thick), True)
    return short.reshape(-1, 2) if len(short) >= 3 else ring


def to_coco(
    annotations: Sequence[Mapping[str, Any]],
    width: int,
    height: int,
    labels: Mapping[int, str],
    file_name: str = "image",
) -> dict[str, Any]:
    """Annotations as a COCO object, in pixels: boxes x, y, w, h; masks as polygons, or as RLE if
    they have holes. Without a mask the segmentation is the box.
    """
    entries = []
    for number, annotation in enumerate(annotations, 1):
        (xmin, ymin), _, (xmax, ymax), _ = annotation["bound"] or [[0, 0], [0, 1], [1, 1], [1, 0]]
        box = [xmin * width, ymin * height, (xmax - xmin) * width, (ymax - ymin) * height]
        segmentation, area = to_segmentation(annotation, width, height)
        entries.append(
            {
                "id": number,
                "image_id": 1,
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
        "images": [{"id": 1, "width": width, "height": height, "file_name": file_name}],
        "annotations": entries,
        "categories": [
            {"id": number, "name": name} for number, name in sorted({**used, **labels}.items())
        ],
    }


def rings_of(annotation: Mapping[str, Any], width: int, height: int) -> list[np.ndarray]:
    """The rings of an annotation's mask in pixels, each x, y float64 [K, 2]; [] without a mask."""
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
    """Fill rings by the even-odd rule, as COCO's run lengths: column by column, runs of 0 and 1 in
    turn. A pixel is inside if its centre is.
    """
    flips = []  # where a column enters or leaves a ring, as pixel index (column * height + row)
    for ring in rings:
        ends = np.stack([ring, np.roll(ring, -1, axis=0)])  # [2, K, 2]
        ends = np.where(ends[:1, :, :1] <= ends[1:, :, :1], ends, ends[::-1])  # from left to right
        (left, top), (right, bottom) = ends[0].T, ends[1].T
        first, after = (np.clip(np.ceil(x - 0.5), 0, width).astype(int) for x in (left, right))
        edge = np.repeat(np.arange(len(ring)), after - first)  # one entry per column it crosses
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
    """The answer to a request: `json` or `coco` objects merged with the routines' own answers, or
    the drawn picture as `png` or `jpeg` bytes.
    """
    answer = tensors.get("answer", {})
    if tensors.get("only_answer"):
        return answer
    height, width = image.shape[:2]
    annotations = to_annotations(tensors, width, height)
    if form in ("png", "jpeg"):
        return draw_annotations(image, annotations, form)
    if form == "coco":
        return {**to_coco(annotations, width, height, labels), **answer}
    return {"predictions": annotations, **answer}


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
    """Draw boxes, masks and names on a picture, uint8 RGB [H, W, 3], without resizing it; returns
    `png` or `jpeg` bytes.
    """
    canvas = image.copy()
    height, width = canvas.shape[:2]
    side = math.sqrt(height * width)
    thick = max(1, round(side / (350 if len(annotations) <= 50 else 500)))
    for annotation in reversed(annotations):  # the best is drawn last, on top
        draw_shape(canvas, annotation, thick)
    size = max(11, round(side / 40))
    for label, (left, top) in place_labels(annotations, size, width, height, thick):
        part = canvas[top : top + label.shape[0], left : left + label.shape[1]]
        part[:] = label[: part.shape[0], : part.shape[1]]
    return encode(canvas, ".jpg" if kind == "jpeg" else ".png", "drawn")


def colour_of(annotation: Mapping[str, Any]) -> tuple[int, int, int]:
    return COLOURS[annotation["tag"]["id"] % len(COLOURS)]


def draw_shape(canvas: np.ndarray, annotation: Mapping[str, Any], thick: int) -> None:
    """Draw an annotation into `canvas`: its mask, half-transparent with an outline, or its box."""
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
    if not part.size:  # a shape thinner than a pixel at the picture's edge
        return
    shade = part.copy()
    cv2.fillPoly(shade, [ring - [left, top] for ring in rings], colour)
    part[:] = cv2.addWeighted(shade, 0.5, part, 0.5, 0)
    cv2.polylines(canvas, rings, True, colour, thick, cv2.LINE_AA)


# --- names in a picture ---------------------------------------------------------------------------


LABEL_SHARE = 0.15  # of a picture that names may cover
MOST_LABELS, MOST_CLASSES = 300, 5  # names of boxes; lines of a classifier
MOST_LETTERS = 40


def draw_label(annotation: Mapping[str, Any], size: int) -> np.ndarray:
    """An annotation's label, uint8 RGB [h, w, 3], with letters `size` pixels high."""
    colour, name = colour_of(annotation), str(annotation["tag"]["name"])
    name = "".join(letter for letter in " ".join(name.split()) if letter.isprintable())
    if len(name) > MOST_LETTERS:
        name = f"{name[: MOST_LETTERS - 2]}.."
    number = f"{annotation['confidence']:.2f}"
    parts = choose_fonts(name, number)
    if not parts:  # no font has the name: the class number, not empty boxes
        parts = choose_fonts(f"#{annotation['tag']['id']}", number)
    drawn = [draw_text(text, path, size, colour) for text, path in parts]
    tall = max(len(part) for part in drawn)
    label = np.full((tall, sum(part.shape[1] for part in drawn), 3), colour, np.uint8)
    left = 0
    for part in drawn:
        top = (tall - len(part)) // 2
        label[top : top + len(part), left : left + part.shape[1]] = part
        left += part.shape[1]
    return label


def choose_fonts(name: str, number: str) -> list[tuple[str, str]]:
    """A name and a number as parts, each with the path of a font that has all its letters.

    There is one part if a font has the letters and the digits; fonts for a single script may lack
    digits. Right-to-left words stay together. Returns [] if no font has a part.
    """
    if path := find_font(name):
        return [(f"{name} {number}", path)]
    is_from_right = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in name)
    words = [name] if is_from_right or find_font(name, False) else name.split()
    paths = [find_font(word, False) for word in words]
    if None in paths:
        return []
    return [*zip(words, map(str, paths)), (number, find_font(number) or PILLOW_FONT)]


def draw_text(text: str, path: str, size: int, colour: tuple[int, ...]) -> np.ndarray:
    """A line of text on a colour, uint8 RGB [h, w, 3], with some room at its sides."""
    is_light = np.dot(colour, (0.299, 0.587, 0.114)) > 150
    ink, room = (0, 0, 0) if is_light else (255, 255, 255), max(2, size // 5)
    if path == OPENCV_FONT:
        return draw_opencv(text, size, room, ink, colour)
    font = open_font(path, size)
    left, _, right, _ = font.getbbox(text)
    above, below = font.getmetrics()
    wide, tall = math.ceil(right - left) + 2 * room, above + below + room
    label = Image.new("RGB", (wide, tall), colour)
    ImageDraw.Draw(label).text((room - left, room // 2 + above), text, ink, font, anchor="ls")
    return np.asarray(label)


OPENCV_LOCK = threading.Lock()  # OpenCV does not document its fonts as thread-safe


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


def place_labels(
    annotations: Sequence[Mapping[str, Any]], size: int, width: int, height: int, thick: int
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """Each label that there is room for, with its left and top; the most confident come first.

    Labels do not overlap, and together cover at most LABEL_SHARE of the picture, or one label.
    """
    most = MOST_LABELS if annotations and annotations[0]["bound"] else MOST_CLASSES
    taken: list[tuple[int, int, int, int]] = []
    left_over = LABEL_SHARE * width * height
    for index, annotation in enumerate(annotations[:most]):
        label = draw_label(annotation, size)
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
    """Possible places of a label, as left and top, best first: above its box, in it, below it,
    beside it. A classifier's labels are stacked from the top left.
    """
    if not annotation["bound"]:
        return [(0, index * tall)] if index == 0 or (index + 1) * tall <= height else []
    bound = np.rint(np.array(annotation["bound"]) * [width, height]).astype(int).tolist()
    (left, top), _, (right, bottom), _ = bound
    edge = left - thick // 2
    over = [(edge, top - tall), (right - wide, top - tall)] if top >= tall else []
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
# Name patterns in order of preference: the first font that has all letters is used.
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
OPENCV_FONT = ":opencv"  # built into OpenCV from 5 on: most left-to-right scripts
PILLOW_FONT = ":pillow"  # built into Pillow: English only


@functools.cache
def list_fonts() -> list[str]:
    """The paths of the machine's fonts in the order of FONTS, then the libraries' own fonts."""
    found = [
        path
        for folder in FONT_FOLDERS
        for path in Path(os.path.expanduser(folder)).rglob("*.[otOT][tT][fcFC]")
    ]

    def rank(path: Path) -> tuple[int, str]:
        names = (n for n, name in enumerate(FONTS) if fnmatch.fnmatchcase(path.stem, name))
        return next(names), path.name

    brought = [OPENCV_FONT, PILLOW_FONT] if hasattr(cv2, "FontFace") else [PILLOW_FONT]
    return [*map(str, sorted(found, key=rank)[:MOST_FONTS]), *brought]


@functools.lru_cache(maxsize=64)
def open_font(path: str, size: int) -> Any:
    """Open a font with Pillow, or OpenCV's own font; raises OSError for a file that is no font."""
    if path == OPENCV_FONT:
        return cv2.FontFace("uni")
    return ImageFont.load_default(size) if path == PILLOW_FONT else ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=4096)
def find_font(text: str, has_digits: bool = True) -> str | None:
    """The path of the first font that has all letters of a text, with `has_digits` also those of
    a confidence; None if no font has.
    """
    letters = {letter for letter in text if unicodedata.category(letter)[0] not in "MCZ"}
    letters |= set("0123456789.#") if has_digits else set()
    return next((path for path in list_fonts() if has_letters(path, letters)), None)


def has_letters(path: str, letters: Iterable[str]) -> bool:
    """Whether a font has these letters: it draws all letters that it lacks the same way."""
    try:
        none = {draw_letter(path, letter) for letter in ("\U0010fffd", "\ue83a")}
        return not any(draw_letter(path, letter) in none for letter in letters)
    except (OSError, ValueError):  # a damaged font; a bitmap-only font such as emoji
        return False


def draw_letter(path: str, letter: str) -> tuple[Any, bytes]:
    """The size and pixels of a letter in a font, for comparison with those of a missing letter."""
    if path != OPENCV_FONT:
        mask = open_font(path, 16).getmask(letter)
        return mask.size, bytes(mask)
    # OpenCV would write right-to-left letters from the left, so they count as missing.
    if unicodedata.bidirectional(letter) in ("R", "AL"):
        letter = "\U0010fffd"
    label = draw_opencv(letter, 16, 2, (255, 255, 255), (0, 0, 0))
    return label.shape, label.tobytes()


# ==================================================================================================
# Pictures to models
# In: a signature's one input, what a deployment's config says of it, a picture. Out: the array that
# the model takes, and where the picture lies in it; ValueError for what cannot be known.
# ==================================================================================================

# The dtypes that pixels can have in a model, by the names of TensorFlow's enum.
PIXEL_TYPES = {
    "DT_UINT8": np.dtype(np.uint8),
    "DT_INT8": np.dtype(np.int8),
    "DT_UINT16": np.dtype(np.uint16),
    "DT_INT16": np.dtype(np.int16),
    "DT_INT32": np.dtype(np.int32),
    "DT_INT64": np.dtype(np.int64),
    "DT_HALF": np.dtype(np.float16),
    "DT_BFLOAT16": np.dtype(ml_dtypes.bfloat16),
    "DT_FLOAT": np.dtype(np.float32),
    "DT_DOUBLE": np.dtype(np.float64),
}
CHANNELS = {"grey": 1, "rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4}
LAYOUTS = ("NHWC", "NCHW", "NHW", "HWC", "CHW")
NORMAL = {1: "grey", 3: "rgb", 4: "rgba"}
Shape = tuple[int | None, ...] | None


@dataclass(frozen=True)
class InputOptions:
    """What a deployment's config says about its model's input; None means the signature tells.

    A pixel 0..255 becomes (pixel * scale + offset - mean) / std, or what `preprocess` makes of it.
    """

    input: str | None = None  # "encoded" or "example", only for a string input
    example_feature: str = "image/encoded"
    layout: str | None = None
    channels: str | None = None
    preprocess: str | None = None
    scale: float = 1.0
    offset: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resize: str | None = None
    padding: tuple[float, ...] = (0, 0, 0)


@dataclass(frozen=True)
class Values:
    """How pixels 0..255 are normalised: (pixel / divisor * scale + offset - mean) / std."""

    divisor: float = 1.0
    scale: float = 1.0
    offset: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def apply(self, pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Normalise pixels [H, W, C] to a dtype; computed in float32, for a double in float64."""
        if self == Values():
            return pixels.astype(dtype)
        kind = np.float64 if dtype == np.float64 else np.float32
        values: Any = pixels.astype(kind)
        if self.divisor != 1:
            values /= kind(self.divisor)
        if self.scale != 1:
            values *= kind(self.scale)
        if self.offset:
            values += kind(self.offset)
        if self.mean:
            values -= np.array(self.mean, kind)
        if self.std:
            values /= np.array(self.std, kind)
        return values.astype(dtype, copy=False)


# keras.applications' imagenet_utils.preprocess_input: the order of channels, then the numbers.
PREPROCESS = {
    "tf": ("rgb", Values(divisor=127.5, offset=-1.0)),
    "torch": ("rgb", Values(divisor=255.0, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))),
    "caffe": ("bgr", Values(mean=(103.939, 116.779, 123.68))),
}


# The part of the picture that the model's input covers, as a box (ymin, xmin, ymax, xmax) in 0..1
# of the picture: it reaches beyond 0..1 after padding, and is smaller after cropping.
Region = tuple[float, float, float, float]
WHOLE: Region = (0.0, 0.0, 1.0, 1.0)


def place(tensors: Tensors, region: Region) -> Tensors:
    """Convert predictions from coordinates of the model's input to those of the picture: boxes
    entirely in the padding are dropped.
    """
    if "boxes" not in tensors or region == WHOLE:
        return tensors
    return clip_boxes(tensors, place_boxes(tensors["boxes"].astype(np.float64), np.array(region)))


def letterbox(
    image: np.ndarray, width: int, height: int, padding: Sequence[float]
) -> tuple[np.ndarray, Region]:
    """Resize a picture to the largest size that fits, and pad it to `width` x `height`."""
    tall, wide = image.shape[:2]
    scale = min(width / wide, height / tall)
    new_wide, new_tall = max(1, round(wide * scale)), max(1, round(tall * scale))
    left, top = (width - new_wide) // 2, (height - new_tall) // 2
    canvas = np.empty((height, width, image.shape[2]), np.uint8)
    canvas[:] = [*padding, 255][: image.shape[2]]
    canvas[top : top + new_tall, left : left + new_wide] = resize(image, new_wide, new_tall)
    ymin, xmin = -top / new_tall, -left / new_wide
    return canvas, (ymin, xmin, ymin + height / new_tall, xmin + width / new_wide)


def cut_middle(image: np.ndarray, width: int, height: int) -> tuple[np.ndarray, Region]:
    """Cut the largest middle part with the wanted proportions, and resize it to the wanted size."""
    tall, wide = image.shape[:2]
    part_tall = max(1, min(tall, wide * height // width))
    part_wide = max(1, min(wide, tall * width // height))
    top, left = (tall - part_tall) // 2, (wide - part_wide) // 2
    part = image[top : top + part_tall, left : left + part_wide]
    region = (top / tall, left / wide, (top + part_tall) / tall, (left + part_wide) / wide)
    return resize(part, width, height), region


@dataclass(frozen=True)
class PictureInput:
    """How a model takes pictures: its input's name and dtype, and how a picture is converted to it.

    A string input has `rank` dimensions in place of a `layout`. `joins` says whether one call takes
    several pictures.
    """

    name: str
    dtype: str
    joins: bool
    form: str = "pixels"  # or encoded, example
    feature: str = ""
    rank: int = 0
    layout: str = ""
    height: int | None = None
    width: int | None = None
    channels: str = "rgb"
    values: Values = Values()
    resize: str = "stretch"
    padding: tuple[float, ...] = (0, 0, 0)

    @property
    def takes_alpha(self) -> bool:
        return self.channels in ("rgba", "bgra")

    def bytes_for(self, image: np.ndarray) -> int:
        """The bytes that `show` and a batch need besides the picture: normalising takes two steps,
        and a batch is a further copy.
        """
        if self.form != "pixels":
            return 2 * image.nbytes
        pixels = (self.height or image.shape[0]) * (self.width or image.shape[1])
        size = PIXEL_TYPES[self.dtype].itemsize
        each = 1 if self.values == Values() and size == 1 else 2 * max(size, 4)
        return pixels * CHANNELS[self.channels] * (each + size * self.joins)

    def show(self, image: np.ndarray) -> tuple[np.ndarray, Region]:
        """Convert a picture, uint8 RGB or RGBA [H, W, C], to the model's input array; returns the
        array and the region of the picture that it covers.
        """
        if self.form != "pixels":
            return self.show_text(image), WHOLE
        canvas, region = self.fit(image)
        colours = self.order(canvas)
        array = self.values.apply(colours, PIXEL_TYPES[self.dtype])  # [H, W, C]
        if "C" not in self.layout:
            array = array[:, :, 0]
        elif self.layout.endswith("CHW"):
            array = np.ascontiguousarray(np.moveaxis(array, 2, 0))
        return (array[np.newaxis] if self.layout.startswith("N") else array), region

    def fit(self, image: np.ndarray) -> tuple[np.ndarray, Region]:
        """Resize a picture to the model's size; returns it and the region that it covers."""
        width, height = self.width or image.shape[1], self.height or image.shape[0]
        if self.resize == "letterbox":
            return letterbox(image, width, height, self.padding)
        if self.resize == "crop":
            return cut_middle(image, width, height)
        return resize(image, width, height), WHOLE

    def order(self, image: np.ndarray) -> np.ndarray:
        """The channels that the model takes, in its order; RGB gets an opaque alpha if needed."""
        if self.channels == "grey":
            return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, np.newaxis]
        if self.takes_alpha and image.shape[2] == 3:
            image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
        if self.channels.startswith("bgr"):
            return np.ascontiguousarray(image[:, :, [2, 1, 0, 3][: image.shape[2]]])
        return image

    def show_text(self, image: np.ndarray) -> np.ndarray:
        """A picture as PNG bytes or as a serialized tf.Example with a PNG, object [1, ...]."""
        data = encode(image)
        if self.form == "example":
            data = encode_example({self.feature: data, "image/format": b"png"})
        return np.array([data], object).reshape([1] * self.rank)


def encode(image: np.ndarray, ending: str = ".png", what: str = "encoded") -> bytes:
    done, data = cv2.imencode(ending, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not done:
        raise ImageError(f"picture cannot be {what}")
    return data.tobytes()


def encode_example(features: Mapping[str, bytes]) -> bytes:
    """A serialized tf.Example whose features hold one byte string each."""
    from tensorflow import train  # late: already imported once a model is loaded

    example = train.Example()
    for name, data in features.items():
        example.features.feature[name].bytes_list.value.append(data)
    return example.SerializeToString()


def read_input(
    inputs: Mapping[str, tuple[str, Shape]], options: InputOptions, operations: Collection[str] = ()
) -> PictureInput:
    """How a signature's one input takes pictures.

    `inputs` has (dtype such as `DT_UINT8`, shape) by name; `operations` are the types of the
    operations in its graph. Raises NoPicture if the input takes no pictures, and ValueError with
    the line to write into the config if something is unknown.
    """
    if len(inputs) != 1:
        raise NoPicture(
            f"an image model takes one input, this one takes {', '.join(inputs) or 'none'}"
        )
    ((name, (dtype, shape)),) = inputs.items()
    if dtype == "DT_STRING":
        return read_text_input(name, shape, options, operations)
    if dtype not in PIXEL_TYPES:
        raise NoPicture(f"input '{name}' is no picture: it is {type_name(dtype)}")
    if options.input is not None:
        raise ValueError(f"input: '{options.input}' is for strings, '{name}' is {type_name(dtype)}")
    return read_pixel_input(name, dtype, shape, options)


def read_pixel_input(name: str, dtype: str, shape: Shape, options: InputOptions) -> PictureInput:
    """How a numeric input takes pictures."""
    layout = find_layout(name, shape, options)
    sizes = dict(zip(layout, shape if shape is not None else (None,) * len(layout)))
    channels = find_channels(name, sizes["C"] if "C" in layout else 1, options)
    values = find_values(options, channels)
    check_values(name, dtype, values, channels)
    if options.resize and not (sizes["H"] and sizes["W"]):
        what = f"'{name}' is {show_shape(shape)}"
        raise ValueError(f"resize: '{options.resize}' needs an input of a fixed size, {what}")
    return PictureInput(
        name,
        dtype,
        joins=layout.startswith("N") and sizes["N"] is None,
        layout=layout,
        height=sizes["H"],
        width=sizes["W"],
        channels=channels,
        values=values,
        resize=options.resize or "stretch",
        padding=options.padding,
    )


# Operations that show that a string input is not the bytes of a picture file.
NO_FILES = {
    "ReadFile": "opens files by their paths; export a signature that takes what is in them",
    "DecodeBase64": "decodes base64 first; export a signature that takes the file's bytes",
}


def read_text_input(
    name: str, shape: Shape, options: InputOptions, operations: Collection[str]
) -> PictureInput:
    """How a string input takes pictures: as picture files, or as tf.Examples that contain one."""
    plain = InputOptions(input=options.input, example_feature=options.example_feature)
    if options != plain:
        raise ValueError(
            f"input '{name}' takes encoded pictures: layout, channels, preprocess, scale, offset, "
            "mean, std, resize and padding do not apply to it: leave them out"
        )
    if shape is not None and any(size not in (None, 1) for size in shape):
        raise NoPicture(f"input '{name}' is no picture: it is string {show_shape(shape)}")
    for kind, what in NO_FILES.items():
        if kind in operations:
            raise ValueError(f"input '{name}' is no picture's file: its graph {what}")
    form = options.input
    if form is None and any(
        kind.startswith(("ParseExample", "ParseSingle")) for kind in operations
    ):
        form = "example"
    elif form is None and any(DECODERS.fullmatch(kind) for kind in operations):
        form = "encoded"
    if form is None:
        raise ValueError(
            f"input '{name}' is a string, and the graph does not show what it holds: write "
            '"input": "encoded" (a picture file) or "input": "example" (a tf.Example) '
            "into the deployment; a model of texts takes no pictures"
        )
    rank = 1 if shape is None else len(shape)
    joins = rank > 0 and (shape is None or shape[0] is None)
    return PictureInput(name, "DT_STRING", joins, form, options.example_feature, rank)


DECODERS = re.compile("Decode(AndCrop)?(Jpeg|Png|Bmp|Gif|WebP|Image)")


def find_layout(name: str, shape: Shape, options: InputOptions) -> str:
    """The order of an input's dimensions, found by its sizes; NoPicture if they do not show it.

    NHW and CHW both fit a single grey picture, and either is right. A side is larger than 4.
    """
    if options.layout:
        layout = options.layout
        if shape is not None and not (len(shape) == len(layout) and fits_layout(layout, shape)):
            raise ValueError(f"layout: '{layout}' does not fit input '{name}' {show_shape(shape)}")
        return layout
    sizes = shape or ()
    fitting = [
        layout for layout in LAYOUTS if len(layout) == len(sizes) and fits_layout(layout, sizes)
    ]
    found = [
        layout
        for layout in fitting
        if all(size is None or size > 4 for side, size in zip(layout, sizes) if side in "HW")
        and ("C" not in layout or sizes[layout.index("C")] is not None)
    ]
    if any(sizes) and (len(found) == 1 or found == ["NHW", "CHW"]):
        return found[0]
    if shape is None or fitting:
        raise NoPicture(
            f"input '{name}' {show_shape(shape)} does not show how it takes pictures: write "
            '"layout": "NHWC" or "NCHW" (or "NHW", "HWC", "CHW", "HW") and "channels": "rgb" '
            '(or "bgr", "grey", "rgba", "bgra") into the deployment'
        )
    raise NoPicture(
        f"input '{name}' is no picture: expected [1, H, W, 3], [1, H, W, 1], [1, H, W, 4], "
        f"[1, 3, H, W], [1, H, W] or encoded bytes, got {show_shape(shape)}"
    )


def fits_layout(layout: str, shape: tuple[int | None, ...]) -> bool:
    """Whether sizes fit a layout: N is 1 or unknown; C is 1, 3, 4 or unknown."""
    sizes = dict(zip(layout, shape))
    return sizes.get("N") in (None, 1) and sizes.get("C") in (None, 1, 3, 4)


def find_channels(name: str, count: int | None, options: InputOptions) -> str:
    """The channels, in order, of an input that has `count` of them (None if unknown)."""
    wanted = options.channels or (options.preprocess and PREPROCESS[options.preprocess][0])
    if count is None:
        if wanted is None:
            raise ValueError(
                f"input '{name}' does not show its channels: write "
                '"channels": "rgb" (or "bgr", "grey", "rgba", "bgra") into the deployment'
            )
        return wanted
    if options.preprocess == "tf" and not options.channels:
        return NORMAL[count]  # "tf" treats all channels alike, so any number will do
    if wanted is not None and CHANNELS[wanted] != count:
        raise ValueError(
            f"{'channels' if options.channels else 'preprocess'}: "
            f"'{options.channels or options.preprocess}' has {CHANNELS[wanted]} channels, "
            f"but input '{name}' has {count}"
        )
    return wanted or NORMAL[count]


def find_values(options: InputOptions, channels: str) -> Values:
    """How pixels are normalised, by a deployment's options."""
    if options.preprocess:
        return PREPROCESS[options.preprocess][1]
    for word, given in (("mean", options.mean), ("std", options.std)):
        if len(given) not in (0, 1, CHANNELS[channels]):
            numbers = (
                "1 number" if CHANNELS[channels] == 1 else f"1 or {CHANNELS[channels]} numbers"
            )
            raise ValueError(f"{word}: expected {numbers}, got {len(given)}")
    return Values(1.0, options.scale, options.offset, options.mean, options.std)


def check_values(name: str, dtype: str, values: Values, channels: str) -> None:
    """Raise ValueError if normalised pixels 0..255 would not fit into an input's dtype."""
    kind, word = PIXEL_TYPES[dtype], type_name(dtype)
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, np.newaxis], CHANNELS[channels], axis=1)
    shown = values.apply(pixels, np.dtype(np.float64))
    low, high = shown.min(), shown.max()
    if kind.kind not in "iu":
        with np.errstate(over="ignore"):
            held = values.apply(pixels, kind).astype(np.float64)
        if not np.isfinite(held).all():
            raise ValueError(f"input '{name}' is {word}, which cannot hold {low:g}..{high:g}")
        return
    if (shown != np.rint(shown)).any():
        raise ValueError(
            f"input '{name}' is {word}, which holds no fractions: preprocess, scale, offset, mean "
            "and std must leave whole numbers"
        )
    limits = np.iinfo(kind)
    if low < limits.min or high > limits.max:
        raise ValueError(
            f"input '{name}' is {word}, which cannot hold {low:g}..{high:g}: write "
            '"offset": -128 or another offset or scale into the deployment, as the model was made'
        )


def type_name(dtype: str) -> str:
    return dtype.removeprefix("DT_").lower()


def show_shape(shape: Shape) -> str:
    return "of any shape" if shape is None else str([-1 if n is None else n for n in shape])


# ==================================================================================================
# One picture through one model
# In: a model's signature, a picture, chains of routines. Out: predictions, in coordinates of the
# whole picture.
# ==================================================================================================


MOST_ANSWERED = 1_000_000  # the most classes that a classifier answers


@dataclass
class ImageModel:
    """How a deployment feeds pictures to its model and reads the outputs. Raises ValueError if the
    signature is not that of an image model.

    `inputs` and `outputs` map a name to (dtype such as `DT_UINT8`, shape or None); an output may
    have the further fields of `Output`. `operations` are the types of the operations in the graph,
    needed for a string input. `rename` maps a family's output names to the model's own. `options`
    is the config's part about the input; `boxes` (`format`, `scale`), `classes_from`, `planes`,
    `activation`, `threshold` and `top_k` are its part about the outputs.
    """

    inputs: Mapping[str, tuple[str, Shape]]
    outputs: Mapping[str, tuple[Any, ...]]
    labels: Mapping[int, str] = dataclasses.field(default_factory=dict)
    family: str | None = None
    rename: Mapping[str, str] = dataclasses.field(default_factory=dict)
    options: InputOptions = InputOptions()
    most: int = 300
    operations: Collection[str] = ()
    boxes: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    classes_from: int | None = None
    planes: str | None = None
    activation: str | None = None
    threshold: float | None = None
    top_k: int | None = None
    families: Mapping[str, Family] = dataclasses.field(default_factory=lambda: FAMILIES)
    shown: PictureInput = dataclasses.field(init=False)
    kind: Family = dataclasses.field(init=False)
    about: About = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.shown = read_input(self.inputs, self.options, self.operations)
        height, width = self.shown.height, self.shown.width
        about = About(
            {
                own: Output(dtype, shape and drop_ones(shape), *more)
                for own, (dtype, shape, *more) in self.outputs.items()
            },
            labels=self.labels,
            input_name=self.shown.name,
            size=(height, width) if height and width else None,
            channels=self.shown.channels,
            is_encoded=self.shown.form != "pixels",
            activation=self.activation,
            threshold=self.threshold,
            boxes_format=self.boxes.get("format"),
            boxes_scale=self.boxes.get("scale"),
            classes_from=self.classes_from,
            planes=self.planes,
        )
        kind, found = find_family(self.families, about, self.family, self.rename)
        self.family, self.kind = kind.name, kind
        self.about = settle(kind, rename_outputs(kind, about, found))

    @property
    def joins(self) -> bool:
        """Whether one call takes several pictures, with one row of each output per picture."""
        shapes = [shape for _, shape, *_ in self.outputs.values()]
        shapes += [known.shape for known in self.about.outputs.values()]  # 1 first: has no batch
        return self.shown.joins and all(shape and shape[0] is None for shape in shapes)

    def shown_size(self, image: np.ndarray) -> tuple[int, int]:
        """Height and width of a picture as it is fed to the model."""
        return self.shown.height or image.shape[0], self.shown.width or image.shape[1]

    def read(self, outputs: Mapping[str, np.ndarray], shown: tuple[int, int] = (1, 1)) -> Tensors:
        """Turn the model's outputs for one picture into predictions.

        `shown` is the height and width at which the picture was fed to the model. Raises
        OutputError for outputs that contradict the signature or the config.
        """
        patterns = {names[0]: pattern for names, _, pattern in self.kind.slots()}
        arrays = {
            slot: without_batch(np.asarray(outputs[own]), patterns[slot], own)
            for slot, own in self.about.own.items()
        }
        most = self.most if self.kind.boxes else MOST_ANSWERED  # a classifier answers every class
        most = min(most, self.top_k or most)
        about = dataclasses.replace(self.about, shown=shown, most=most)
        if self.labels and self.kind.numbers(self.about) is None:
            self.check_late(arrays, about)
        return finish(self.kind, read_rows(self.kind, arrays, about), about)

    def check_late(self, arrays: Mapping[str, np.ndarray], about: About) -> None:
        """Check the label map with the sizes of real outputs, if the signature has no sizes.

        Raises OutputError.
        """
        outputs = {
            slot: known._replace(shape=(1, *arrays[slot].shape))
            for slot, known in about.outputs.items()
        }
        try:
            known = dataclasses.replace(about, outputs=outputs, size=about.shown)
            check_numbers(self.kind, known)
        except ValueError as error:
            raise OutputError(str(error)) from None


Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def predict_images(
    model: ImageModel,
    run: Run,
    images: Sequence[np.ndarray],
    chain: Sequence[Any],
    allow: Callable[[int], None] = allow_all,
) -> list[Tensors]:
    """Run pictures through the routines before the model, the model, and the routines after it.

    The model is called once for all pictures if it can take several. `allow` is called with the
    bytes that the model's input will take. Raises RoutineError.
    """
    before = [step for step in chain if step.before_model]
    prepared = []
    for image in images:
        prepared.append(run_before(before, image))
        shown, _ = prepared[-1]
        allow((shown.nbytes if before else 0) + model.shown.bytes_for(shown))
    tile = find_tile(chain)
    if tile is None:
        seen = see(model, run, [image for image, _ in prepared])
    else:
        seen = [find_in_tiles(tile, model, run, image) for image, _ in prepared]
    found = []
    for tensors, (_, region) in zip(seen, prepared):
        if "boxes" in tensors:
            tensors["boxes"] = place_boxes(tensors["boxes"], region)
        tensors = warn_nameless({**tensors, "labels": model.labels})
        found.append(run_after(chain, tensors))
    return found


def see(
    model: ImageModel, run: Run, images: Sequence[np.ndarray], how: PictureInput | None = None
) -> list[Tensors]:
    """The model's predictions for pictures, boxes in 0..1 of each picture.

    `how` replaces the model's usual way of feeding a picture.
    """
    shown = [(how or model.shown).show(image) for image in images]
    outputs = run_rows(model, run, [row for row, _ in shown])
    return [
        place(model.read(row, model.shown_size(image)), region)
        for row, (_, region), image in zip(outputs, shown, images)
    ]


def run_rows(model: ImageModel, run: Run, rows: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """A model's outputs for each input row; one call for all of them if the model can batch."""
    name = model.shown.name
    if len(rows) > 1 and model.joins and len({row.shape for row in rows}) == 1:
        outputs = run({name: np.concatenate(rows)})
        if all(array.ndim and len(array) == len(rows) for array in outputs.values()):
            return [
                {key: array[index : index + 1] for key, array in outputs.items()}
                for index in range(len(rows))
            ]
    return [run({name: row}) for row in rows]


def run_after(chain: Sequence[Any], tensors: Tensors) -> Tensors:
    """Apply the routines after the model, in order.

    Raises RoutineError if a routine needs boxes or masks and the model has none.
    """
    for step in chain:
        if step.before_model:
            continue
        try:
            tensors = step(tensors)
        except KeyError as error:
            missing = error.args[0]
            if missing not in ("boxes", "masks") or missing in tensors:
                raise
            raise lacks(step, missing) from None
        check_lengths(step, tensors)
    return tensors


def check_lengths(step: Any, tensors: Tensors) -> None:
    """Raise ValueError if a routine returns arrays of different lengths: boxes would get the
    confidences of other predictions.
    """
    named = ("scores", "classes", "names", "boxes", "masks")
    sizes = {name: len(tensors[name]) for name in named if name in tensors}
    if len(set(sizes.values())) != 1:
        text = ", ".join(f"{count} {name}" for name, count in sizes.items()) or "none"
        raise ValueError(f"{type(step).__name__}: expected arrays of one length, got {text}")


def lacks(step: Any, missing: str) -> RoutineError:
    """The error for a routine that needs `boxes` or `masks`, which its model never answers."""
    error = RoutineError(f"{type(step).__name__} needs {missing}, and this model answers none")
    error.step = step
    return error


# --- a picture in tiles ---------------------------------------------------------------------------


TILES_AT_ONCE = 8
TILE_BYTES = 64 << 20  # for the model inputs of all tiles of one call
CUT = 2  # pixels: a box that ends so near a tile's edge may be only a part of an object
COVERED = 0.7  # the share of a part's box that a larger box must cover to replace it


def find_tile(chain: Sequence[Any]) -> Tile | None:
    """The last Tile of a chain."""
    return next((step for step in reversed(chain) if isinstance(step, Tile)), None)


def tile_bytes(chain: Sequence[Any]) -> int:
    """The bytes that running a picture in tiles needs besides the picture."""
    return 0 if find_tile(chain) is None else TILE_BYTES


def find_in_tiles(tile: Tile, model: ImageModel, run: Run, image: np.ndarray) -> Tensors:
    """A model's predictions for the tiles of a picture, and for the whole picture, merged.

    At most 10 x `model.most` predictions are held at a time. Raises RoutineError for a classifier.
    """
    windows = tile.windows(image)
    tall, wide = image.shape[:2]
    found: Tensors = {}
    if tile.whole or len(windows) == 1:
        found = mark_cut(tile, see(model, run, [image])[0], np.array([0, 0, tall, wide]), image)
    if len(windows) > 1:
        for window, seen in see_tiles(model, run, image, windows):
            new = mark_cut(tile, seen, window, image)
            found = keep_best([found, new], 10 * model.most) if found else new
    found = suppress(drop_parts(found), tile.iou)
    del found["cut"]
    most = min(model.most, model.top_k or model.most)
    return keep(found, np.arange(len(found["scores"])) < most)


def see_tiles(
    model: ImageModel, run: Run, image: np.ndarray, windows: np.ndarray
) -> Iterator[tuple[np.ndarray, Tensors]]:
    """Yield each window [4] and the model's predictions for it, batched if the model can batch."""
    tiles = [image[top:bottom, left:right] for top, left, bottom, right in windows]
    fitting = TILE_BYTES // max(1, model.shown.bytes_for(tiles[0]))
    at_once = min(TILES_AT_ONCE, max(1, fitting)) if model.joins else 1
    how = model.shown
    if how.resize == "crop":  # would cut strips off tiles that lack the input's proportions
        how = dataclasses.replace(how, resize="letterbox")
    for start in range(0, len(tiles), at_once):
        some = [np.ascontiguousarray(part) for part in tiles[start : start + at_once]]
        yield from zip(windows[start : start + at_once], see(model, run, some, how))


def mark_cut(tile: Tile, tensors: Tensors, window: np.ndarray, image: np.ndarray) -> Tensors:
    """Convert a window's predictions to coordinates of the picture, and add `cut`, bool [N]: does
    a box end at an edge of the window that is not an edge of the picture?
    """
    if "boxes" not in tensors:
        raise lacks(tile, "boxes")
    size = np.tile(image.shape[:2], 2)
    boxes = place_boxes(tensors["boxes"], window / size)
    inner = window != [0, 0, *image.shape[:2]]
    cut = (inner & (np.abs(boxes * size - window) <= CUT)).any(axis=1)
    return {**tensors, "boxes": boxes, "cut": cut}


def keep_best(parts: Sequence[Tensors], most: int) -> Tensors:
    """Join the predictions of several runs of a model, best first, at most `most`. Masks get the
    size of the largest one, or less to fit in TILE_BYTES.
    """
    best = np.argsort(-np.concatenate([part["scores"] for part in parts]), kind="stable")[:most]
    joined = {
        name: np.concatenate([part[name] for part in parts])[best]
        for name in parts[0]
        if name != "masks"
    }
    if "masks" in parts[0]:
        masks = [mask for part in parts for mask in part["masks"]]
        largest = np.max([part["masks"].shape[1:] for part in parts], axis=0)
        bound = 2 ** int(
            math.log2(most_side(len(best), TILE_BYTES))
        )  # a power of two, which changes rarely from call to call: few masks are shrunk twice
        joined["masks"] = resize_masks([masks[index] for index in best], np.minimum(largest, bound))
    return joined


def drop_parts(tensors: Tensors) -> Tensors:
    """Drop predictions that a tile's edge cuts off, if a larger box of their class covers them and
    is at least half as confident.
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
