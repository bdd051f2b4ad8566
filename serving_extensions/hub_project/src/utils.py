"""Pictures as base64 texts, there and back."""

import base64
import io

from PIL import Image


def decode_image(text):
    """The RGB picture of a base64 text, as a PIL image."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def encode_image(image, form="PNG"):
    """A PIL image as a base64 text."""
    buffer = io.BytesIO()
    image.save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()
