"""Pictures in predict bodies: their bytes, or `{"b64": ...}`, as rows of tensors of pixels.

TensorFlow Serving takes pictures into string tensors alone; those are left as they are.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import routines
from serving import MAX_DIMENSIONS, is_base64
from serving_rooms.pictures import image_errors


def unpack(signature: Any, body: dict[str, Any], limits: routines.ImageLimits, dtypes: Mapping[str, np.dtype]) -> dict[str, Any]:
    """A predict body with pixels [H, W, C] in place of pictures; `dtypes` maps `DT_UINT8` and so on to NumPy's.

    Bodies for strings stay as they are. Raises BadRequest.
    """
    key = "instances" if "instances" in body else "inputs"
    if signature is None or any(spec.dtype == "DT_STRING" for spec in signature.inputs.values()):
        return body
    with image_errors():
        return {**body, key: unpack_value(signature, key, body[key], limits, dtypes)}


def unpack_value(signature: Any, key: str, value: Any, limits: routines.ImageLimits, dtypes: Mapping[str, np.dtype]) -> Any:
    specs = {name: spec for name, spec in signature.inputs.items() if takes_pixels(spec)}
    if not specs:
        name, spec = next(iter(signature.inputs.items()))
        shape = "of unknown rank" if spec.shape is None else [size or -1 for size in spec.shape]
        raise routines.ImageError(f"input '{name}' takes no pictures: "
                                  f"expected [-1, H, W, 3] or [-1, H, W, 1], it is {spec.type_name} {shape}")

    def unpack_named(item: Any) -> Any:
        if isinstance(item, dict) and not is_base64(item):
            return {name: unpack_all(part, specs[name], dtypes, limits) if name in specs else part for name, part in item.items()}
        return unpack_all(item, next(iter(specs.values())), dtypes, limits)
    if key == "instances" and isinstance(value, list):
        return [unpack_named(row) for row in value]
    return as_batch(unpack_named(value))


def takes_pixels(spec: Any) -> bool:
    """Whether a tensor can hold pictures: numbers [N, H, W, 3] or [N, H, W, 1]."""
    return spec.dtype != "DT_STRING" and spec.shape is not None and len(spec.shape) == 4 and spec.shape[3] in (1, 3)


def unpack_all(value: Any, spec: Any, dtypes: Mapping[str, np.dtype], limits: routines.ImageLimits, level: int = 0) -> Any:
    """Pictures in nested lists as pixels; all else as it is. Raises ImageError for lists deeper than any tensor."""
    if isinstance(value, list):
        if level > MAX_DIMENSIONS:
            raise routines.ImageError(f"input '{spec.name}': more than {MAX_DIMENSIONS} levels of lists")
        return [unpack_all(item, spec, dtypes, limits, level + 1) for item in value]
    if isinstance(value, bytes):
        return to_pixels(routines.decode_image(value, limits), spec, dtypes, limits)
    if is_base64(value):
        return to_pixels(routines.decode_text(value["b64"], limits), spec, dtypes, limits)
    return value


def to_pixels(image: np.ndarray, spec: Any, dtypes: Mapping[str, np.dtype], limits: routines.ImageLimits) -> np.ndarray:
    """A picture as pixels 0..255 [H, W, C] of a tensor's dtype, resized where its height and width are fixed."""
    _, height, width, channels = spec.shape
    height, width = height or image.shape[0], width or image.shape[1]
    dtype = dtypes.get(spec.dtype, np.dtype(np.uint8))
    resized = 0 if image.shape[:2] == (height, width) else 3
    # In the tensor's dtype it is made here, and once more when rows are joined.
    limits.allow(height * width * (resized + 2 * channels * dtype.itemsize))
    image = routines.resize(image, width, height)
    if channels == 1:
        image = routines.Grayscale()(image)[:, :, :1]
    return image.astype(dtype)


def as_batch(value: Any) -> Any:
    """Give a lone picture, [H, W, C], the batch dimension that a column of `inputs` has."""
    if isinstance(value, dict):
        return {name: as_row(item) for name, item in value.items()}
    return as_row(value)


def as_row(value: Any) -> Any:
    return value[np.newaxis] if isinstance(value, np.ndarray) and value.ndim == 3 else value
