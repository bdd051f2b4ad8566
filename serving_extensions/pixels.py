"""Pictures in predict bodies: their bytes, or `{"b64": ...}`, as rows of tensors of pixels.

TensorFlow Serving takes pictures into string tensors alone; those are left as they are.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

import routines
from serving import MAX_DIMENSIONS, is_base64
from serving_extensions.pictures import image_errors

Change = Callable[[Any, Any], Any]  # of a leaf of nested lists, and the input that it is for


def unpack(
    signature: Any,
    body: dict[str, Any],
    limits: routines.ImageLimits,
    dtypes: Mapping[str, np.dtype],
) -> dict[str, Any]:
    """A predict body with pixels [H, W, C] in place of pictures; `dtypes` maps `DT_UINT8` and so on to NumPy's.

    Bodies for strings stay as they are. Raises BadRequest.
    """
    key = "instances" if "instances" in body else "inputs"
    if signature is None or any(spec.dtype == "DT_STRING" for spec in signature.inputs.values()):
        return body
    with image_errors():
        return {**body, key: unpack_value(signature, key, body[key], limits, dtypes)}


def unpack_value(
    signature: Any,
    key: str,
    value: Any,
    limits: routines.ImageLimits,
    dtypes: Mapping[str, np.dtype],
) -> Any:
    specs = {name: spec for name, spec in signature.inputs.items() if takes_pixels(spec)}
    if not specs:
        name, spec = next(iter(signature.inputs.items()))
        shape = "of unknown rank" if spec.shape is None else [size or -1 for size in spec.shape]
        raise routines.ImageError(
            f"input '{name}' takes no pictures: "
            f"expected [-1, H, W, 3] or [-1, H, W, 1], it is {spec.type_name} {shape}"
        )

    def visit(value: Any, change: Change) -> Any:
        if key == "instances" and isinstance(value, list):
            return [visit_named(row, change) for row in value]
        return visit_named(value, change)

    def visit_named(item: Any, change: Change) -> Any:
        if isinstance(item, dict) and not is_base64(item):
            return {
                name: visit_all(part, specs[name], change) if name in specs else part
                for name, part in item.items()
            }
        return visit_all(item, next(iter(specs.values())), change)

    # All of them, before the first is decoded.
    opened = visit(value, lambda leaf, spec: open_picture(leaf, limits))
    pixels = visit(opened, lambda leaf, spec: to_pixels(leaf, spec, dtypes, limits))
    return pixels if key == "instances" and isinstance(value, list) else as_batch(pixels)


def takes_pixels(spec: Any) -> bool:
    """Whether a tensor can hold pictures: numbers [N, H, W, 3] or [N, H, W, 1]."""
    return (
        spec.dtype != "DT_STRING"
        and spec.shape is not None
        and len(spec.shape) == 4
        and spec.shape[3] in (1, 3)
    )


def visit_all(value: Any, spec: Any, change: Change, level: int = 0) -> Any:
    """Nested lists with each leaf changed; raises ImageError for lists deeper than any tensor."""
    if not isinstance(value, list):
        return change(value, spec)
    if level > MAX_DIMENSIONS:
        raise routines.ImageError(
            f"input '{spec.name}': more than {MAX_DIMENSIONS} levels of lists"
        )
    return [visit_all(item, spec, change, level + 1) for item in value]


def open_picture(leaf: Any, limits: routines.ImageLimits) -> Any:
    """A picture's bytes or base64 as a picture with its header read; all else as it is."""
    if is_base64(leaf):
        leaf = routines.read_text(leaf["b64"], limits)
    return routines.open_image(leaf, limits) if isinstance(leaf, bytes) else leaf


def to_pixels(
    leaf: Any, spec: Any, dtypes: Mapping[str, np.dtype], limits: routines.ImageLimits
) -> Any:
    """A picture as pixels 0..255 [H, W, C] of a tensor's dtype, resized where its size is fixed."""
    if not isinstance(leaf, Image.Image):
        return leaf
    image = routines.unpack_image(leaf, limits)
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
