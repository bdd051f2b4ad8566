"""Pictures in: formats, modes, orientations, limits and urls; and the `shapes` model from a picture to its annotations."""

import base64
import dataclasses
import http.server
import io
import socket
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from conftest import ROOT, image_bytes, load_model, png_header, web_server
from PIL import Image

import routines

LIMITS = routines.ImageLimits()
RANDOM = np.random.default_rng(0)
PICTURE = np.kron(RANDOM.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(
    np.uint8
)  # 48 x 64, in blocks of 8


@pytest.mark.parametrize(
    "form, options, tolerance",
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 12),
    ],
)
def test_formats(form, options, tolerance):
    image = routines.decode_image(image_bytes(PICTURE, form, **options), LIMITS)
    assert image.dtype == np.uint8 and image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).max() <= tolerance


def test_first_frame_of_an_animation():
    frames = [Image.new("P", (8, 8), colour) for colour in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 10, 20, 9, 9, 9])
    assert routines.decode_image(
        image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMITS
    )[0, 0].tolist() == [250, 10, 20]


@pytest.mark.parametrize(
    "mode, colour, rgb",
    [
        ("L", 200, [200] * 3),
        ("1", 1, [255] * 3),
        ("RGBA", (10, 20, 30, 128), [132, 137, 142]),  # on white
        ("LA", (70, 5), [251] * 3),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("I;16", 200 * 256 + 17, [200] * 3),
    ],
)
def test_modes(mode, colour, rgb):
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert (
        routines.decode_image(image_bytes(Image.new(mode, (4, 4), colour), form), LIMITS)[
            2, 2
        ].tolist()
        == rgb
    )


@pytest.mark.parametrize(
    "orientation, stored",
    [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (4, PICTURE[::-1]),
        (5, PICTURE.transpose(1, 0, 2)),
        (6, np.rot90(PICTURE)),
        (7, np.rot90(PICTURE.transpose(1, 0, 2), 2)),
        (8, np.rot90(PICTURE, -1)),
    ],
)
def test_orientations_of_one_picture_are_the_same_picture(orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = routines.decode_image(
        image_bytes(np.ascontiguousarray(stored), "PNG", exif=exif), LIMITS
    )
    assert (image == PICTURE).all()


@pytest.mark.parametrize(
    "side, text",
    [
        (8_000, "image of 8000x8000 pixels is over the limit of 50000000"),
        (20_000, "image is over max_pixels 50000000, or Pillow's own limit"),
    ],
)
def test_bomb_is_refused_by_its_header(side, text):
    data = png_header(side, side) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"
    with pytest.raises(routines.ImageError, match=text) as raised:
        routines.decode_image(data, LIMITS)
    assert raised.value.too_large


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", "not an image of a known format; .* start with nothing"),
        (b"%PDF-1.7", "not an image of a known format"),
        (image_bytes(PICTURE, "JPEG")[:300], "image is damaged"),
        (image_bytes(PICTURE)[:200], "image is damaged"),
        (png_header(10, 10), "not an image"),
        (b"GIF89a", "image is damaged|not an image"),
    ],
)
def test_bytes_that_are_no_picture(data, text):
    with pytest.raises(routines.ImageError, match=text):
        routines.decode_image(data, LIMITS)


def test_wide_greys_keep_their_high_byte_whatever_is_in_the_picture():
    """The same element is the same colour, whatever stands beside it."""
    for largest in (200, 255, 256, 65535):
        wide = np.array([[200, largest]], np.uint16)
        for form in ("PNG", "TIFF"):
            image = routines.decode_image(image_bytes(wide, form), LIMITS)
            assert image.tolist() == [[[0] * 3, [largest >> 8] * 3]], (largest, form)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0junk",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x05\0\0\0\x01\0\0\0\xff",
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\x01\0\0\0\x09\0\0\0",
    ],
)
def test_a_picture_whose_exif_does_not_parse_is_a_picture(exif):
    plain = image_bytes(PICTURE, "JPEG")
    block = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    with Image.open(io.BytesIO(plain)) as truth:
        assert (
            routines.decode_image(plain[:2] + block + plain[2:], LIMITS) == np.asarray(truth)
        ).all()
    with pytest.raises(routines.ImageError, match="image is damaged"):
        routines.decode_image((plain[:2] + block + plain[2:])[:-400], LIMITS)


def allowing(taken):
    return routines.ImageLimits(allow=taken.append)


def peak_of(decode):
    tracemalloc.start()
    try:
        decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "mode, form, options, least",
    [
        ("RGB", "PNG", {}, 10),
        ("RGB", "JPEG", {}, 10),
        ("RGB", "JPEG", {"progressive": True}, 10),
        ("L", "PNG", {}, 11),
        ("1", "PNG", {}, 11),
        ("P", "GIF", {}, 11),
        ("RGBA", "PNG", {}, 18),
        ("LA", "PNG", {}, 18),
        ("CMYK", "TIFF", {}, 14),
        ("F", "TIFF", {}, 15),
        ("I", "TIFF", {}, 15),
        ("I;16", "PNG", {}, 13),
        ("RGB", "WEBP", {}, 19),
    ],
)
def test_what_a_picture_takes_is_asked_for_before_it_is_decoded(mode, form, options, least):
    """What is asked for is what a process of its own was measured to take at most, in bytes a pixel, picture by picture."""
    data, taken = image_bytes(Image.new(mode, (300, 200)), form, **options), []
    image = routines.decode_image(data, allowing(taken))
    assert sum(taken[:2]) == least * 300 * 200 and sum(taken) == image.nbytes == 3 * 300 * 200

    def refuse(size):
        raise ZeroDivisionError  # no error of the picture's

    with pytest.raises(ZeroDivisionError):
        routines.decode_image(data, routines.ImageLimits(allow=refuse))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_picture_that_was_decoded_holds_nothing_any_more(form):
    image = routines.open_image(image_bytes(Image.new("RGB", (64, 48)), form), LIMITS)
    routines.unpack_image(image, LIMITS)
    with pytest.raises(ValueError, match="closed"):
        image.getpixel((0, 0))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_many_frames_one_is_decoded_and_asked_for(form):
    frames, taken = [Image.new("RGB", (64, 48), (number, 0, 0)) for number in range(20)], []
    data = image_bytes(frames[0], form, save_all=True, append_images=frames[1:])
    assert (
        routines.decode_image(data, allowing(taken)).shape == (48, 64, 3)
        and sum(taken) == 3 * 64 * 48
    )


def tiled_tiff(width, height, tile):
    """A grey TIFF of a small picture in one large tile, which is decoded whole."""
    packed = zlib.compress(bytes(tile * tile))
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, 8),
        (259, 3, 8),
        (262, 3, 1),
        (277, 3, 1),
        (322, 4, tile),
        (323, 4, tile),
        (324, 4, 134),
        (325, 4, len(packed)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + packed


def test_the_tiles_of_a_tiff_are_bounded_as_its_pixels_are():
    taken = []
    assert routines.decode_image(tiled_tiff(10, 10, 512), allowing(taken)).shape == (10, 10, 3)
    assert max(taken) >= 512 * 512 and sum(taken) == 300
    with pytest.raises(
        routines.ImageError, match="image of 8000x8000 pixels is over the limit of 50000000"
    ):
        routines.decode_image(tiled_tiff(10, 10, 8000), LIMITS)


@pytest.mark.parametrize("broken", ["open", "load", "exif"])
def test_memory_that_runs_out_is_no_damage_of_the_picture(monkeypatch, broken):
    def fail(*arguments, **options):
        raise MemoryError

    if broken == "open":
        monkeypatch.setattr(Image, "open", fail)
    elif broken == "exif":
        monkeypatch.setattr(routines.ImageOps, "exif_transpose", fail)
    else:
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(MemoryError):
        routines.decode_image(image_bytes(PICTURE), LIMITS)


def test_a_long_text_among_numbers_costs_no_more_than_its_length():
    rows = [["a" * 100_000] + [""] * 25_000]

    def decode():
        with pytest.raises(routines.ImageError, match="expected numbers 0..255, got str"):
            routines.decode_array(rows, LIMITS)

    assert peak_of(decode) < 20e6


def test_base64_arrays_and_downloads_are_asked_for_as_well(web):
    data, taken = image_bytes(PICTURE), []
    for text in (
        base64.b64encode(data).decode(),
        "data:image/png;base64," + base64.b64encode(data).decode(),
    ):
        routines.decode_text(text, allowing(taken))
        assert taken[0] >= len(data) and sum(taken) >= len(data) + PICTURE.nbytes
        taken.clear()
    routines.fetch_image(
        f"http://127.0.0.1:{web}/picture", dataclasses.replace(ALLOWED, allow=taken.append)
    )
    assert sum(taken) == len(data) + PICTURE.nbytes
    taken.clear()
    routines.decode_array(PICTURE.tolist(), allowing(taken))
    assert sum(taken) >= PICTURE.nbytes
    taken.clear()
    np.save(buffer := io.BytesIO(), PICTURE)
    routines.decode_npy(buffer.getvalue(), allowing(taken))
    assert sum(taken) >= 2 * PICTURE.nbytes


@pytest.mark.parametrize("descr", ["|V0", "|S0", "<U0", "|V3", "<c8", "|O", "<M8[s]"])
def test_arrays_of_elements_that_are_no_numbers_are_no_pictures(descr):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (5000, 6000), }}\n".encode()
    data = np.lib.format.magic(1, 0) + len(text).to_bytes(2, "little") + text

    def decode():
        with pytest.raises(routines.ImageError, match="body is not a .npy array: "):
            routines.decode_npy(data, LIMITS)

    assert peak_of(decode) < 5e6


@pytest.mark.parametrize("levels", [990, 100_000])
def test_arrays_and_kinds_nested_deep_are_refused(levels):
    deep = []
    for _ in range(levels):
        deep = [deep]
    for body in (
        {"image_type": deep},
        {"image_type": {"a": deep}},
        {"image_type": "array", "data": deep},
    ):
        with pytest.raises(
            routines.ImageError, match="image_type: expected one of|array: expected shape"
        ):
            routines.read_request(body, LIMITS)


def test_bytes_over_the_limit():
    with pytest.raises(routines.ImageError, match="over the limit of 100") as raised:
        routines.decode_image(image_bytes(PICTURE), routines.ImageLimits(max_bytes=100))
    assert raised.value.too_large


def test_base64_in_every_dress():
    data = image_bytes(PICTURE)
    plain = base64.b64encode(data).decode()
    for text in (
        plain,
        base64.urlsafe_b64encode(data).decode(),
        base64.encodebytes(data).decode(),
        plain.rstrip("="),
        "data:image/png;base64," + plain,
        "\n DATA:image/png;base64," + plain,
    ):
        assert (routines.decode_text(text, LIMITS) == PICTURE).all()
    with pytest.raises(routines.ImageError, match="data is not base64"):
        routines.decode_text("no base64!", LIMITS)


@pytest.mark.parametrize(
    "value, shape",
    [
        (PICTURE[..., 0].tolist(), PICTURE.shape),
        (PICTURE[..., :1].tolist(), PICTURE.shape),
        (PICTURE.tolist(), PICTURE.shape),
        (np.dstack([PICTURE, np.full_like(PICTURE[..., :1], 255)]).tolist(), PICTURE.shape),
        ((PICTURE / 1.0).tolist(), PICTURE.shape),
    ],
)
def test_arrays(value, shape):
    image = routines.decode_array(value, LIMITS)
    assert (
        image.shape == shape
        and image.dtype == np.uint8
        and (image[..., 0] == PICTURE[..., 0]).all()
    )


@pytest.mark.parametrize(
    "value, text",
    [
        ([[1, 2], [3]], "ragged"),
        ([1, 2], "expected shape HxW"),
        ([[[1, 2]]], "expected shape"),
        ([], "expected shape"),
        ([[256]], "0..255, got 256"),
        ([[-1]], "0..255"),
        ([[float("nan")]], "0..255"),
        ([["a"]], "expected numbers"),
        ([[None]], "expected numbers"),
        (3, "got a number"),
    ],
)
def test_wrong_arrays(value, text):
    with pytest.raises(routines.ImageError, match=text):
        routines.decode_array(value, LIMITS)


def test_npy():
    buffer = io.BytesIO()
    np.save(buffer, PICTURE)
    assert (routines.decode_npy(buffer.getvalue(), LIMITS) == PICTURE).all()
    with pytest.raises(routines.ImageError, match="not a .npy array"):
        routines.decode_npy(buffer.getvalue()[:90], LIMITS)
    np.save(buffer := io.BytesIO(), np.array([{}], object))
    with pytest.raises(routines.ImageError, match="not a .npy array"):
        routines.decode_npy(buffer.getvalue(), LIMITS)


# --- urls -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def web():
    """A web server on this machine that answers a picture, redirects, drips, floods and fails."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path.startswith("/to?"):
                self.send_response(302)
                self.send_header("Location", self.path[4:])
                self.end_headers()
            elif self.path in ("/drip", "/flood"):
                self.send_response(200)
                self.end_headers()
                for _ in range(200):
                    try:
                        self.wfile.write(b"x" * (100_000 if self.path == "/flood" else 1))
                    except OSError:
                        return
                    if self.path == "/drip":
                        time.sleep(0.05)
            else:
                self.send_response(200 if self.path == "/picture" else 404)
                self.end_headers()
                self.wfile.write(image_bytes(PICTURE))

        def log_message(self, *arguments):
            pass

    with web_server(Handler) as port:
        yield port


ALLOWED = routines.ImageLimits(
    allowed_hosts=("127.0.0.1", "pictures.example"), max_bytes=1_000_000, download_seconds=0.5
)


def resolve(addresses):
    return lambda host, port, type=0: [
        (socket.AF_INET, type, 6, "", (address, port)) for address in addresses
    ]


def test_url_of_an_allowed_host_and_a_redirect(web):
    for path in ("/picture", f"/to?http://127.0.0.1:{web}/picture", "/to?/picture"):
        assert (routines.fetch_image(f"http://127.0.0.1:{web}{path}", ALLOWED) == PICTURE).all()
    assert (
        routines.fetch_image(
            f"http://pictures.example:{web}/picture", ALLOWED, resolve(["127.0.0.1"])
        )
        == PICTURE
    ).all()


def test_redirect_to_a_private_address_is_refused(web):
    for target in (
        "http://169.254.169.254/latest",
        "http://[::1]/",
        "file:///etc/passwd",
        "gopher://x/",
    ):
        with pytest.raises(routines.ImageError, match="not a public address|expected http"):
            routines.fetch_image(f"http://127.0.0.1:{web}/to?{target}", ALLOWED)


def test_name_with_one_private_address_among_public_ones_is_refused():
    with pytest.raises(routines.ImageError, match="is not a public address"):
        routines.fetch_image(
            "http://rebinds.example/", LIMITS, resolve(["93.184.216.34", "127.0.0.1"])
        )


def test_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """The name resolves to a public address when it is checked, and to this machine if asked again."""
    answers, connected = iter([["93.184.216.34"], ["127.0.0.1"]]), []

    def connect(address, timeout):
        connected.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(routines.socket, "create_connection", connect)
    with pytest.raises(routines.ImageError, match="url cannot be read: Connection refused"):
        routines.fetch_image(
            "http://rebinds.example/a", LIMITS, lambda *a, **k: resolve(next(answers))(*a, **k)
        )
    assert connected == [("93.184.216.34", 80)]
    assert next(answers) == ["127.0.0.1"], "asked again"


@pytest.mark.parametrize(
    "path, text",
    [
        ("/drip", "took longer than 0.5 s"),
        ("/flood", "more than the limit of 1000000 bytes"),
        ("/nothing", "url answers 404"),
        ("/to?" * 11 + "/picture", "redirects more than 10 times"),
    ],
)
def test_slow_large_and_failing_urls(web, path, text):
    start = time.monotonic()
    with pytest.raises(routines.ImageError, match=text):
        routines.fetch_image(f"http://127.0.0.1:{web}{path}", ALLOWED)
    assert time.monotonic() - start < 5


OF_HTTP = "url: expected http://..., https://... or data:..."


@pytest.mark.parametrize(
    "url, text",
    [
        ("", OF_HTTP),
        ("x", OF_HTTP),
        ("ftp://x/", OF_HTTP),
        ("file:///etc/passwd", OF_HTTP),
        ("gopher://x", OF_HTTP),
        ("//x/", OF_HTTP),
        ("http://a b/", OF_HTTP),
        ("http://x/good\r\nHost: y", OF_HTTP),
        ("http://", "url: expected http://... or https://... with a host"),
        ("http://x\r\nHost: y/", "url is malformed"),
        ("http://x:80\r\nX: y/good", "url is malformed"),
        ("http://[::1", "url is malformed"),
        ("http://x:99999/", "url is malformed"),
    ],
)
def test_malformed_urls(url, text):
    with pytest.raises(routines.ImageError) as raised:
        routines.fetch_image(url, LIMITS)
    assert str(raised.value) == text


# --- the demo model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shapes(tf):
    servable = load_model(ROOT / "models/shapes/1", "shapes")
    signature = servable.signatures["serving_default"]
    labels = routines.load_labels("label_map.pbtxt", ROOT / "models/shapes")
    model = routines.ImageModel(
        {n: (s.dtype, s.shape) for n, s in signature.inputs.items()},
        {n: (s.dtype, s.shape) for n, s in signature.outputs.items()},
        labels,
    )
    return model, lambda inputs: servable.run("serving_default", inputs)


def find(shapes, image, *chain):
    chain = [*chain, routines.FilterConfidence(confidence=0.5)]
    (tensors,) = routines.predict_images(*shapes, [image], chain)
    return routines.to_annotations(tensors, image.shape[1], image.shape[0])


def test_shapes_are_found_named_and_outlined_in_every_sample(shapes):
    assert shapes[0].family == "detection_api"
    found = 0
    for path in sorted((ROOT / "models/shapes/samples").iterdir()):
        annotations = find(shapes, routines.decode_image(path.read_bytes(), LIMITS))
        found += len(annotations)
        assert all(
            a["tag"]["name"] in ("circle", "square", "triangle", "star")
            and a["boundType"] == "masks"
            for a in annotations
        )
    assert found >= 20


def test_answers_of_a_crop_lie_where_they_lie_in_the_whole_picture(shapes):
    image = routines.decode_image((ROOT / "models/shapes/samples/1.jpg").read_bytes(), LIMITS)
    whole = {
        (a["tag"]["name"], *np.round(np.array(a["bound"]).ravel(), 1)) for a in find(shapes, image)
    }
    padded = np.zeros((image.shape[0] * 2, image.shape[1] * 2, 3), np.uint8)
    padded[image.shape[0] :, image.shape[1] :] = image
    cropped = find(shapes, padded, routines.Crop(xmin=0.5, ymin=0.5))
    assert {
        (a["tag"]["name"], *np.round(np.array(a["bound"]).ravel() * 2 - 1, 1)) for a in cropped
    } == whole and whole


# --- requests -------------------------------------------------------------------------------------------------


def test_request_by_array_or_base64_with_its_routines():
    chain = [{"name": "FilterConfidence", "arguments": {"confidence": 0.5}}]
    for body in (
        {"image_type": "array", "data": PICTURE.tolist()},
        {"image_type": "base_64", "data": base64.b64encode(image_bytes(PICTURE)).decode()},
    ):
        image, steps = routines.read_request({**body, "routines": chain}, LIMITS)
        assert (image == PICTURE).all() and steps == chain
        assert routines.read_request(body, LIMITS)[1] == []


@pytest.mark.parametrize(
    "body, text",
    [
        ([], "expected a JSON object"),
        ({}, "image_type: expected one of url, base64, array, got null"),
        ({"image_type": "png"}, 'got "png"'),
        ({"image_type": ["url"]}, "image_type: expected"),
        ({"image_type": "url"}, "data: expected string, got nothing"),
        ({"image_type": "url", "data": 3}, "data: expected string"),
        ({"image_type": "array", "data": "x"}, "data: expected array"),
    ],
)
def test_wrong_requests_for_pictures(body, text):
    with pytest.raises(routines.ImageError, match=text):
        routines.read_request(body, LIMITS)


def test_bodies_that_are_the_picture():
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded"):
        assert (routines.read_bytes(image_bytes(PICTURE), LIMITS, kind) == PICTURE).all()
    assert routines.reader_of(b' {"image_type": "url"}', "application/octet-stream") is None


def test_routines_of_ones_own_are_those_of_who_imports_them(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from routines import argument, keep, routine\n\n@routine('Biggest')\nclass KeepBiggest:\n    count: int = argument(1, 'how many', minimum=1)\n\n"
        "    def __call__(self, tensors):\n        boxes = tensors['boxes']\n        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])\n"
        "        return keep(tensors, (-area).argsort()[:self.count])\n"
    )
    own, families = routines.import_module("mine.py", tmp_path)
    kind = own["Biggest"]
    assert own == {"Biggest": kind, "KeepBiggest": kind} and not {*own} & {*routines.ROUTINES}
    assert families == {}
    tensors = {"boxes": np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5]]), "scores": np.array([0.1, 0.9])}
    assert kind(count=1)(tensors)["scores"].tolist() == [0.1]


@pytest.mark.parametrize(
    "inputs, text",
    [
        ({}, "takes one input, this one takes none"),
        ({"a": ("DT_FLOAT", (1,)), "b": ("DT_FLOAT", (1,))}, "takes a, b"),
        ({"x": ("DT_FLOAT", (None, 10))}, "input 'x' is no picture"),
        ({"x": ("DT_FLOAT", (4, 8, 8, 3))}, "is no picture"),
    ],
)
def test_signatures_that_take_no_picture(inputs, text):
    with pytest.raises(ValueError, match=text):
        routines.ImageModel(inputs, {"y": ("DT_FLOAT", (1, 10))})


@pytest.mark.parametrize(
    "dtype, shape, shown",
    [
        ("DT_UINT8", (1, None, None, 3), (1, 48, 64, 3)),
        ("DT_FLOAT", (None, 24, 32, 3), (1, 24, 32, 3)),
    ],
)
def test_pictures_are_shown_as_the_signature_wants_them(dtype, shape, shown):
    scaled = routines.InputOptions(scale=1 / 255, offset=-0.5)
    options = scaled if dtype == "DT_FLOAT" else routines.InputOptions()
    inputs, outputs = {"x": (dtype, shape)}, {"y": ("DT_FLOAT", (1, 10), "Softmax")}
    array, region = routines.ImageModel(inputs, outputs, options=options).shown.show(PICTURE)
    assert array.shape == shown and array.dtype == (np.uint8 if dtype == "DT_UINT8" else np.float32)
    assert dtype == "DT_UINT8" or abs(array).max() <= 0.5
    assert region == routines.WHOLE
    with pytest.raises(ValueError, match="is uint8, which holds no fractions"):
        routines.ImageModel({"x": ("DT_UINT8", shape)}, outputs, options=scaled)


def test_encoded_pictures_for_models_that_decode_them():
    model = routines.ImageModel(
        {"x": ("DT_STRING", (None,))},
        {"y": ("DT_FLOAT", (1, 10), "Softmax")},
        operations=["DecodeJpeg"],
    )
    assert (routines.decode_image(model.shown.show(PICTURE)[0][0], LIMITS) == PICTURE).all()


def test_outputs_may_have_names_of_their_own():
    outputs = {
        "b": ("DT_FLOAT", (1, None, 4)),
        "s": ("DT_FLOAT", (1, None)),
        "c": ("DT_FLOAT", (1, None)),
    }
    names = {"detection_boxes": "b", "detection_scores": "s", "detection_classes": "c"}
    model = routines.ImageModel(
        {"x": ("DT_UINT8", (1, None, None, 3))}, outputs, {1: "cat"}, rename=names
    )
    tensors = model.read(
        {"b": np.array([[[0, 0, 1, 1]]]), "s": np.array([[0.5]]), "c": np.array([[1.0]])}
    )
    assert model.family == "detection_api" and tensors["names"].tolist() == ["cat"]
