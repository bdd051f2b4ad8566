"""Two hundred picture files of all modes, formats and sizes, read as Pillow and OpenCV read them; and those with a catch."""

import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from conftest import FakeDetector, Rest, bearer, fake_server, key_entry
from PIL import Image

import routines

LIMITS = routines.ImageLimits()
SIZES = ((48, 64), (1, 1), (7, 5), (33, 130))
WHITE = 255.0
MODES = {
    "PNG": ("1", "L", "LA", "P", "P+", "RGB", "RGB+", "L+", "RGBA", "I;16", "I;16+"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B", "I", "F"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("L", "RGB", "RGBA"),
    "GIF": ("1", "L", "P", "P+", "RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "AVIF": ("L", "RGB", "RGBA"),
}
OPTIONS = {
    "PNG": [{}, {"compress_level": 0}],
    "TIFF": [{}, {"compression": "tiff_lzw"}],
    "JPEG": [{}, {"progressive": True, "quality": 95}, {"subsampling": 0}],
    "WEBP": [{}, {"lossless": True}],
    "GIF": [{}],
    "BMP": [{}],
    "AVIF": [{"speed": 10}],
}
FORMS = [form for form in MODES if form in routines.FORMATS]
FILES = [
    (form, mode, size, options)
    for form in FORMS
    for mode in MODES[form]
    for size in SIZES
    for options in OPTIONS[form]
]


def make(mode, size, seed=0):
    """A picture of a mode; a `+` at its end makes a colour transparent."""
    random, kind = np.random.default_rng(seed), mode.rstrip("+")
    height, width = size
    if kind in ("I;16", "I;16B"):
        values = random.integers(0, 1 << 16, size, np.uint16)
        if kind == "I;16B":
            return Image.frombytes("I;16B", (width, height), values.astype(">u2").tobytes())
        return Image.fromarray(values)
    if kind in ("I", "F"):
        values = random.integers(0, 256, size)
        return Image.fromarray(values.astype(np.int32 if kind == "I" else np.float32) + 0)
    if kind in ("1", "P"):
        grey = Image.fromarray(random.integers(0, 256, size, np.uint8))
        return grey.convert("1") if kind == "1" else grey.convert("RGB").quantize(16)
    bands = len(Image.new(kind, (1, 1)).getbands())
    data = random.integers(0, 256, (height, width, bands), np.uint8)
    return Image.frombytes(kind, (width, height), data.tobytes())


def encode(form, mode, size, options):
    image = make(mode, size)
    if mode.endswith("+"):
        corner = image.getpixel((0, 0))
        options = {**options, "transparency": corner}
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def truth_of(data):
    """A file as Pillow opens it, laid on white in floating point."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I;16"):
            values = np.asarray(image)
            grey = np.dstack([values >> 8] * 3).astype(float)
            clear = image.info.get("transparency")
            alpha = np.ones(values.shape) if clear is None else (values != clear).astype(float)
        elif image.mode in ("I", "F"):
            return np.dstack([np.asarray(image)] * 3).astype(float)
        else:
            clear = "transparency" in image.info or image.mode in ("RGBA", "LA", "PA")
            rgba = np.asarray(image.convert("RGBA" if clear else "RGB")).astype(float)
            grey, alpha = rgba[..., :3], rgba[..., 3] / 255 if clear else np.ones(rgba.shape[:2])
    return grey * alpha[..., np.newaxis] + WHITE * (1 - alpha[..., np.newaxis])


def test_there_are_two_hundred_files():
    assert len(FILES) >= 200


@pytest.mark.parametrize("form, mode, size, options", FILES)
def test_a_file_is_read_as_pillow_reads_it(form, mode, size, options):
    data, taken = encode(form, mode, size, options), []
    image = routines.decode_image(data, routines.ImageLimits(allow=taken.append))
    truth = truth_of(data)
    assert image.dtype == np.uint8 and image.shape == (*size, 3) and sum(taken) == image.nbytes
    assert np.abs(image - truth).max() <= 1
    kept = routines.decode_image(data, routines.ImageLimits(alpha=True))
    assert (routines.on_background(kept, (255, 255, 255)) == image).all()
    assert kept.shape[2] == (4 if mode_is_clear(data) else 3)


def mode_is_clear(data):
    with Image.open(io.BytesIO(data)) as image:
        return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA")


def png(bits, kind, rows, clear):
    """A PNG of one row of any depth, with a transparent colour."""
    width = len(rows) * 8 // bits // (3 if kind == 2 else 1)
    head = struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0)
    parts = (
        (b"IHDR", head),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(b"\0" + rows)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_is_that_of_tensorflow(tf, bits):
    for grey in range(1 << bits):
        data = png(bits, 0, bytes(range(256)), struct.pack(">H", grey))
        found = routines.decode_image(data, routines.ImageLimits(alpha=True))
        assert (found == tf.io.decode_png(data, 4).numpy()).all()


def test_of_colours_of_sixteen_bits_none_is_transparent():
    """Pillow's pixels are the high bytes, and would be cut out by the colour's low ones."""
    colours = np.array([[0x1234] * 3, [0x3400] * 3], ">u2").tobytes()
    data = png(16, 2, colours, colours[:6])
    opaque = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert (routines.decode_image(data, routines.ImageLimits(alpha=True)) == opaque).all()


OPAQUE = [
    file
    for file in FILES
    if file[0] in ("PNG", "BMP", "TIFF", "JPEG", "WEBP")
    and file[1] in ("1", "L", "P", "RGB", "I;16")
    and file[2] == SIZES[0]
]


@pytest.mark.parametrize("form, mode, size, options", OPAQUE)
def test_a_file_is_read_as_opencv_reads_it(form, mode, size, options):
    data = encode(form, mode, size, options)
    flags = cv2.IMREAD_COLOR if mode != "I;16" else cv2.IMREAD_UNCHANGED
    found = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if mode == "I;16":
        found = np.dstack([(found >> 8).astype(np.uint8)] * 3)
    tolerance = 4 if form in ("JPEG", "WEBP") else 0  # each has a decoder of its own
    difference = np.abs(routines.decode_image(data, LIMITS).astype(int) - found[..., ::-1])
    assert np.percentile(difference, 99) <= tolerance


# --- with a catch -------------------------------------------------------------------------------


def tiff(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "values, text",
    [
        (np.array([[0, 0.5, 1]], np.float32), "image: expected values 0..255, got floats 0.0..1.0"),
        (np.array([[0, 1e-9]], np.float32), "multiply them by 255"),
        (np.array([[0, 256.0]], np.float32), "image: expected values 0..255, got 0.0..256.0"),
        (np.array([[-1, 3.0]], np.float32), "got -1.0..3.0"),
        (np.array([[np.nan, 3.0]], np.float32), "got nan"),
        (np.array([[0, 70_000]], np.int32), "got 0..70000"),
        (np.array([[-5, 7]], np.int32), "got -5..7"),
    ],
)
def test_numbers_that_are_no_pixels_are_refused_with_a_word(values, text):
    with pytest.raises(routines.ImageError, match=text):
        routines.decode_image(tiff(values), LIMITS)
    with pytest.raises(routines.ImageError, match=text.replace("image:", "array:")):
        routines.decode_array(values, LIMITS)
    with pytest.raises(routines.ImageError, match="array: expected values"):
        routines.decode_array(values.tolist(), LIMITS)


def test_numbers_that_are_pixels_are_taken():
    for values in (np.zeros((2, 2), np.float32), np.full((2, 2), 254.6, np.float32)):
        for image in (
            routines.decode_image(tiff(values), LIMITS),
            routines.decode_array(values, LIMITS),
        ):
            assert (image == np.rint(values)[..., np.newaxis]).all()
    assert routines.decode_array([[0, 1], [1, 1]], LIMITS)[..., 0].tolist() == [[0, 1], [1, 1]]


def test_greys_of_which_zero_is_white_are_turned():
    """TIFF 6.0, PhotometricInterpretation: 0 is WhiteIsZero, 1 BlackIsZero."""
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    black, white = (struct.pack("<HHII", 262, 3, 1, kind) for kind in (1, 0))
    assert tiff(values).count(black) == 1
    shown = routines.decode_image(tiff(values).replace(black, white), LIMITS)[..., 0]
    assert (shown == 255 - (values >> 8)).all()
    assert (routines.decode_image(tiff(values), LIMITS)[..., 0] == values >> 8).all()


def test_greys_of_twelve_bits_keep_their_high_byte():
    """A TIFF of 12 bits a pixel, packed: two pixels in three bytes."""
    data = bytes([0xFF, 0xF8, 0x00])  # 0xfff, 0x800
    tags = [
        (256, 2),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 122),
        (277, 1),
        (278, 1),
        (279, 3),
    ]
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
        for tag, value in tags
    )
    file = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + b"\0" * 4 + data
    assert len(file) - 3 == 122
    assert routines.decode_image(file, LIMITS)[0, :, 0].tolist() == [255, 128]


def frames(form, count=5):
    images = [
        Image.new("RGB", (16, 16), (40 * number, 0, 255 - 40 * number)) for number in range(count)
    ]
    buffer = io.BytesIO()
    lossless = {"lossless": True} if form == "WEBP" else {}
    images[0].save(buffer, form, save_all=True, append_images=images[1:], **lossless)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_or_the_one_that_is_asked_for(form):
    data = frames(form)
    for number in (0, 3, 4):
        taken = []
        image = routines.decode_image(data, routines.ImageLimits(frame=number, allow=taken.append))
        assert np.abs(image[5, 5].astype(int) - [40 * number, 0, 255 - 40 * number]).max() <= 4
        assert sum(taken) == image.nbytes
    with pytest.raises(routines.ImageError, match="frame: image has no frame 5"):
        routines.decode_image(data, routines.ImageLimits(frame=5))
    one = encode("PNG", "RGB", (8, 8), {})
    with pytest.raises(routines.ImageError, match="frame: image has no frame 1"):
        routines.decode_image(one, routines.ImageLimits(frame=1))


def test_pages_have_sizes_of_their_own_which_are_bounded():
    small, large = Image.new("L", (4, 4)), Image.new("L", (100, 50), 7)
    buffer, taken = io.BytesIO(), []
    small.save(buffer, "TIFF", save_all=True, append_images=[large])
    limits = routines.ImageLimits(frame=1, allow=taken.append)
    assert (routines.decode_image(buffer.getvalue(), limits) == np.full((50, 100, 3), 7)).all()
    assert sum(taken) == 3 * 50 * 100
    with pytest.raises(routines.ImageError, match="image of 100x50 pixels is over the limit of 99"):
        routines.decode_image(buffer.getvalue(), routines.ImageLimits(frame=1, max_pixels=99))


def test_a_frame_far_into_an_animation_is_too_much_work():
    data = frames("GIF", 40)
    with pytest.raises(routines.ImageError, match="needs too much decoding") as raised:
        routines.decode_image(data, routines.ImageLimits(frame=30, max_pixels=256))
    assert raised.value.too_large


def test_a_frame_is_asked_for_in_every_way(how):
    class Colours(FakeDetector):
        def answer(self, name, inputs):
            self.shown.append(inputs["image"])
            return super().answer(name, inputs)

    eye = Colours()
    deployments = [{"id": "d", "model": "m"}]
    rest = Rest(
        fake_server({"m": eye}, auth={"keys": [key_entry("site", "k")]}, deployments=deployments),
        how,
    )
    data = frames("TIFF")
    sent = [
        {"data": data, "query_string": {"frame": "3"}},
        {"data": {"file": (io.BytesIO(data), "a"), "frame": "3"}},
        {
            "json": {
                "image_type": "base64",
                "data": routines.base64.b64encode(data).decode(),
                "frame": 3,
            }
        },
    ]
    for request in sent:
        answer = rest.client.post(rest.prefix + "/predict", headers=bearer("k"), **request)
        assert answer.status_code == 200 and eye.shown[-1][0, 0, 0].tolist() == [120, 0, 135]
    for wrong in ("-1", "x", "10000", "1.5"):
        answer = rest.post("/predict", data, headers=bearer("k"), query_string={"frame": wrong})
        assert answer.json["error"] == f'frame: expected 0..9999, got "{wrong}"'
    body = {"image_type": "base64", "data": "", "frame": True}
    answer = rest.post("/predict", body, headers=bearer("k"))
    assert answer.json["error"] == "frame: expected 0..9999, got true"


def test_the_background_is_a_colour_of_ones_own():
    data = encode("PNG", "RGBA", (8, 8), {})
    black = routines.decode_image(data, routines.ImageLimits(background=(0, 0, 0)))
    with Image.open(io.BytesIO(data)) as image:
        rgba = np.asarray(image).astype(float)
    assert np.abs(black - rgba[..., :3] * rgba[..., 3:] / 255).max() <= 1


def heic(image):
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, quality=100)
    return buffer.getvalue()


def test_heic_is_read_where_pillow_heif_is_and_pillow_stays_as_it_is():
    picture = Image.fromarray(
        np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((16, 16), np.uint8))
    )
    data = heic(picture.convert("RGB"))
    image = routines.decode_image(data, LIMITS)
    assert np.abs(image.astype(int) - np.asarray(picture.convert("RGB"))).max() <= 8
    assert routines.reader_of(data) is routines.decode_image
    assert "HEIF" not in Image.OPEN
    with pytest.raises(routines.ImageError, match="is over the limit of 100"):
        routines.decode_image(data, routines.ImageLimits(max_pixels=100))
    for cut in (40, len(data) // 2):
        with pytest.raises(routines.ImageError, match="image is damaged|not an image"):
            routines.decode_image(data[:cut], LIMITS)


def test_heic_without_pillow_heif_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(routines.ImageError, match="image is HEIC, .* if pillow-heif is installed"):
        routines.decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), LIMITS)


@pytest.mark.skipif("AVIF" not in routines.FORMATS, reason="Pillow without AVIF")
def test_avif_is_a_body_and_its_container_is_no_heic():
    data = encode("AVIF", "RGB", (48, 64), {"speed": 10})
    assert routines.reader_of(data) is routines.decode_image and not routines.is_heif(data)
    as_mif1 = data[:8] + b"mif1" + data[12:]
    assert routines.decode_image(as_mif1, LIMITS).shape == (48, 64, 3)
