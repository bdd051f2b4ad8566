"""What :predict reads besides JSON: pictures, .npy, .npz, raw tensors; and what it
answers besides JSON: .npy, .npz, raw tensors.
"""

import io
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .core import (
    MAX_LISTS,
    NUMPY_DTYPES,
    Allowance,
    BadRequest,
    Call,
    Extension,
    NamedRows,
    Reply,
    ServingError,
    is_base64,
    routines,
)

NPY, NPZ, RAW = "application/x-npy", "application/x-npz", "application/octet-stream"
ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")  # the second without members
RAW_DTYPES = {dtype.name: dtype for dtype in NUMPY_DTYPES.values() if dtype.kind != "O"}


def read(call: Call, body: bytes) -> dict[str, Any] | None:
    """Read a raw tensor or .npy array (the only input), an .npz (inputs by name) or a picture
    (one instance, or the only input: see `wrap_picture`) as a predict body.

    None for any other bytes. Raises BadRequest for an array that cannot be read.
    """
    if "HTTP_X_TENSOR_SHAPE" in call.environ:
        dtype = call.environ.get("HTTP_X_TENSOR_DTYPE", "float32")
        return {"inputs": read_raw(body, dtype, call.environ["HTTP_X_TENSOR_SHAPE"])}
    if "HTTP_X_TENSOR_DTYPE" in call.environ:
        raise BadRequest("X-Tensor-Shape: expected sizes such as 1,224,224,3, got none")
    if body[:1] in (b"{", b" ", b"\n", b""):
        return None
    if body.startswith((routines.NPY_START, *ZIP_STARTS)):
        return {"inputs": load_arrays(body, call.allowance)}
    return {"instances": body} if routines.reader_of(body) else None


def read_raw(body: bytes, dtype: str, shape: str) -> np.ndarray:
    """View bytes as the array that the headers describe: little-endian, C order, not copied."""
    if dtype not in RAW_DTYPES:
        raise BadRequest(
            f"X-Tensor-Dtype: expected one of {', '.join(sorted(RAW_DTYPES))}, got '{dtype[:40]}'"
        )
    if not re.fullmatch(r"[ \t]*|[ \t]*[0-9]{1,18}([ \t]*,[ \t]*[0-9]{1,18}){0,31}[ \t]*", shape):
        raise BadRequest(f"X-Tensor-Shape: expected sizes such as 1,224,224,3, got '{shape[:60]}'")
    sizes = [int(size) for size in shape.split(",") if size.strip()]
    count = math.prod(sizes)
    if count * RAW_DTYPES[dtype].itemsize != len(body):
        raise BadRequest(
            f"body: expected {count * RAW_DTYPES[dtype].itemsize} bytes for {dtype} {sizes}, got "
            f"{len(body)}"
        )
    refuse_hollow(sizes)
    if dtype == "bool" and body.strip(b"\0\1"):
        raise BadRequest("body: expected bytes 0 and 1 for bool")
    return np.frombuffer(body, RAW_DTYPES[dtype].newbyteorder("<")).reshape(sizes)


def refuse_hollow(sizes: Sequence[int], where: str = "") -> None:
    """Refuse an empty array with very many rows: it needs no bytes in the request,
    but its JSON answer may be gigabytes of brackets.
    """
    if 0 in sizes and math.prod(size or 1 for size in sizes) > MAX_LISTS:
        raise BadRequest(
            f"{where and f'{where}: '}an array without numbers may have {MAX_LISTS} rows, "
            f"not the shape {list(sizes)}"
        )


def load_arrays(body: bytes, allowance: Allowance) -> Any:
    """The array of a .npy, or the arrays of an .npz by name.

    They hold bool, numbers or text, never pickles. `allowance` counts their bytes before they are
    made. Raises BadRequest, and what `allowance` raises.
    """
    try:
        if body.startswith(ZIP_STARTS):
            return load_npz(body, allowance)
        array = routines.read_npy(io.BytesIO(body), len(body), allowance.take)
    except ValueError as error:
        raise BadRequest(f"body is no .npy or .npz of numbers: {error}") from None
    refuse_hollow(array.shape)
    return array


MOST_MEMBERS = 1000  # of an .npz: each takes memory before anything is unpacked
MEMBER_START = b"PK\x01\x02"  # in the directory at the end of a zip file
NUMPY_PACKS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def load_npz(body: bytes, allowance: Allowance) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name. Raises ValueError for what NumPy would not write."""
    if body.count(MEMBER_START) > MOST_MEMBERS:
        raise ValueError(f"an .npz may hold {MOST_MEMBERS} arrays")
    found: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            for member in archive.infolist():
                name = check_member(member, found)
                with archive.open(member) as file:
                    found[name] = routines.read_npy(file, member.file_size, allowance.take)
    except (ServingError, ValueError, MemoryError):
        raise
    except Exception as error:  # zipfile and zlib raise all kinds for damaged bytes
        raise ValueError(routines.plain(error)) from None
    for array in found.values():
        refuse_hollow(array.shape)
    return found


def check_member(member: zipfile.ZipInfo, found: Mapping[str, Any]) -> str:
    """The name of the array that a member of an .npz holds."""
    shown, name = member.filename[:60], member.filename.removesuffix(".npy")
    if name == member.filename:
        raise ValueError(f"'{shown}': expected members that end with .npy")
    if name in found:
        raise ValueError(f"'{shown}' stands twice in it")
    if member.compress_type not in NUMPY_PACKS:
        raise ValueError(
            f"'{shown}': expected it stored or deflated, "
            f"got the method {member.compress_type} of zip"
        )
    return name


def write(call: Call, answer: Mapping[str, Any]) -> Reply | None:
    """The outputs as .npy or raw (one output) or .npz (by name), if that is the type that the
    client likes best; else None.
    """
    wanted = call.accepted
    if wanted not in (NPY, NPZ, RAW):
        return None
    value = next(iter(answer.values()))
    value = value.columns if isinstance(value, NamedRows) else value
    outputs = {
        name: as_saved(name, array)
        for name, array in (value if names_outputs(value) else {"output": value}).items()
    }
    if wanted == NPZ:
        return Reply(pack(outputs), content_type=NPZ)
    if len(outputs) > 1:
        form = "a .npy" if wanted == NPY else "a raw tensor"
        raise BadRequest(
            f"The model has the outputs {', '.join(outputs)}, and {form} holds one: accept {NPZ} "
            "instead, or choose one with ?outputs="
        )
    array = next(iter(outputs.values()))
    if wanted == RAW:
        return write_raw(array)
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Reply(buffer.getvalue(), content_type=NPY)


def names_outputs(value: Any) -> bool:
    """Whether a value maps names to outputs; a dict may also be JSON's form of bytes."""
    return isinstance(value, dict) and not is_base64(value)


def pack(outputs: dict[str, np.ndarray]) -> bytes:
    """An .npz; np.savez fails for an output that is named like one of its arguments."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in outputs.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    return buffer.getvalue()


def write_raw(array: np.ndarray) -> Reply:
    """The bytes of an array in C order, little-endian; its dtype and shape are in headers."""
    return Reply(
        array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(),
        content_type=RAW,
        headers=(
            ("X-Tensor-Dtype", array.dtype.name),
            ("X-Tensor-Shape", ",".join(map(str, array.shape))),
        ),
    )


def as_saved(name: str, value: Any) -> np.ndarray:
    """An output as NumPy can save it: bfloat16 as float32. Raises BadRequest for strings."""
    array = np.asarray(value)
    # a list: of bytes in base64. NumPy's own texts lose the zero bytes at their ends.
    if isinstance(value, list) or array.dtype.kind in "OSU":
        raise BadRequest(
            f"Output '{name}' holds strings, which .npy and .npz do not: accept application/json "
            "instead"
        )
    return array.astype(np.float32) if array.dtype.kind == "V" else array


EXTENSION = Extension("binary", read=read, write=write)
