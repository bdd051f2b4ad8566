"""Bodies and answers of :predict that are no JSON: pictures, .npy and .npz arrays."""

import io
import zipfile
from typing import Any

import numpy as np
from flask import Response

import routines
from serving import BadRequest

NPY, NPZ = "application/x-npy", "application/x-npz"
ZIP_START = b"PK\x03\x04"


def read_predict_body(body: bytes) -> dict[str, Any] | None:
    """A predict body for bytes that are a picture (one instance), a .npy array (the one input) or an .npz (inputs by name).

    None for all else. Raises BadRequest for an array that cannot be read.
    """
    if body.startswith(routines.NPY_START):
        return {"inputs": load(body)}
    if body.startswith(ZIP_START):
        return {"inputs": load(body)}
    return {"instances": [body]} if routines.reader_of(body) else None


def load(body: bytes) -> Any:
    """The array of a .npy, or the arrays by name of an .npz; never a pickle, and nothing larger than its own bytes says."""
    try:
        if not body.startswith(ZIP_START):
            return np.load(io.BytesIO(body), allow_pickle=False)
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(100 << 20, 20 * len(body)):
                raise BadRequest(f"body is an .npz that unpacks to {unpacked} bytes")
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, MemoryError) as error:
        raise BadRequest(f"body is no .npy or .npz of numbers: {routines.plain(error)}") from None


def write_answer(answer: dict[str, Any], wanted: str) -> Response | None:
    """The outputs as .npy (one of them) or .npz (by name), where that is what the client names first; else None."""
    if wanted not in (NPY, NPZ):
        return None
    value = next(iter(answer.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict):  # rows of several outputs
        value = {name: np.stack([np.asarray(row[name]) for row in value]) for name in value[0]}
    outputs = {name: as_saved(name, array) for name, array in (value if isinstance(value, dict) else {"output": value}).items()}
    buffer = io.BytesIO()
    if wanted == NPZ:
        with zipfile.ZipFile(buffer, "w") as archive:  # np.savez has arguments of its own, which an output may be called like
            for name, array in outputs.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, array, allow_pickle=False)
    elif len(outputs) > 1:
        raise BadRequest(f"The model has the outputs {', '.join(outputs)}, and a .npy holds one: accept {NPZ} instead")
    else:
        np.save(buffer, next(iter(outputs.values())), allow_pickle=False)
    return Response(buffer.getvalue(), content_type=wanted)


def as_saved(name: str, value: Any) -> np.ndarray:
    """An output as NumPy can save it: bfloat16 as float32; strings it cannot."""
    array = np.asarray(value)
    if array.dtype.kind == "O":
        raise BadRequest(f"Output '{name}' holds strings, which .npy and .npz do not: accept application/json instead")
    return array.astype(np.float32) if array.dtype.kind == "V" else array
