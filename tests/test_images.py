"""Pictures in: formats, modes, orientations, limits and urls; and the `shapes` model from a picture to its annotations."""

import base64
import http.server
import io
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import routines
import serving

LIMITS = routines.ImageLimits()
RANDOM = np.random.default_rng(0)
PICTURE = np.kron(RANDOM.integers(0, 256, (6, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)  # 48 x 64, in blocks of 8


def save(image, form, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("form, options, tolerance", [
    ("PNG", {}, 0), ("BMP", {}, 0), ("TIFF", {}, 0), ("WEBP", {"lossless": True}, 0), ("JPEG", {"quality": 95, "subsampling": 0}, 12)])
def test_formats(form, options, tolerance):
    image = routines.decode_image(save(PICTURE, form, **options), LIMITS)
    assert image.dtype == np.uint8 and image.shape == PICTURE.shape
    assert np.abs(image.astype(int) - PICTURE).max() <= tolerance


def test_first_frame_of_an_animation():
    frames = [Image.new("P", (8, 8), colour) for colour in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 250, 10, 20, 9, 9, 9])
    assert routines.decode_image(save(frames[0], "GIF", save_all=True, append_images=frames[1:]), LIMITS)[0, 0].tolist() == [250, 10, 20]


@pytest.mark.parametrize("mode, colour, rgb", [
    ("L", 200, [200] * 3), ("1", 1, [255] * 3), ("RGBA", (10, 20, 30, 128), [10, 20, 30]), ("LA", (70, 5), [70] * 3),
    ("CMYK", (255, 0, 0, 0), [0, 255, 255]), ("I;16", 200 * 256 + 17, [200] * 3)])
def test_modes(mode, colour, rgb):
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert routines.decode_image(save(Image.new(mode, (4, 4), colour), form), LIMITS)[2, 2].tolist() == rgb


@pytest.mark.parametrize("orientation, stored", [
    (1, PICTURE), (2, PICTURE[:, ::-1]), (3, PICTURE[::-1, ::-1]), (4, PICTURE[::-1]), (5, PICTURE.transpose(1, 0, 2)),
    (6, np.rot90(PICTURE)), (7, np.rot90(PICTURE.transpose(1, 0, 2), 2)), (8, np.rot90(PICTURE, -1))])
def test_orientations_of_one_picture_are_the_same_picture(orientation, stored):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = routines.decode_image(save(np.ascontiguousarray(stored), "PNG", exif=exif), LIMITS)
    assert (image == PICTURE).all()


def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("side, text", [(8_000, "image of 8000x8000 pixels is over the limit of 50000000"),
                                        (20_000, "image has more pixels than the limit of 50000000")])
def test_bomb_is_refused_by_its_header(side, text):
    data = png_header(side, side) + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82"
    with pytest.raises(routines.ImageError, match=text) as raised:
        routines.decode_image(data, LIMITS)
    assert raised.value.too_large


@pytest.mark.parametrize("data, text", [
    (b"", "not an image of a known format; .* start with nothing"), (b"%PDF-1.7", "not an image of a known format"),
    (save(PICTURE, "JPEG")[:300], "image is damaged"), (save(PICTURE, "PNG")[:200], "image is damaged"), (png_header(10, 10), "not an image"),
    (b"GIF89a", "image is damaged|not an image")])
def test_bytes_that_are_no_picture(data, text):
    with pytest.raises(routines.ImageError, match=text):
        routines.decode_image(data, LIMITS)


def test_bytes_over_the_limit():
    with pytest.raises(routines.ImageError, match="over the limit of 100") as raised:
        routines.decode_image(save(PICTURE, "PNG"), routines.ImageLimits(max_bytes=100))
    assert raised.value.too_large


def test_base64_in_every_dress():
    data = save(PICTURE, "PNG")
    plain = base64.b64encode(data).decode()
    for text in (plain, base64.urlsafe_b64encode(data).decode(), base64.encodebytes(data).decode(), plain.rstrip("="), "data:image/png;base64," + plain):
        assert (routines.decode_text(text, LIMITS) == PICTURE).all()
    with pytest.raises(routines.ImageError, match="data is not base64"):
        routines.decode_text("no base64!", LIMITS)


@pytest.mark.parametrize("value, shape", [
    (PICTURE[..., 0].tolist(), PICTURE.shape), (PICTURE[..., :1].tolist(), PICTURE.shape), (PICTURE.tolist(), PICTURE.shape),
    (np.dstack([PICTURE, PICTURE[..., :1]]).tolist(), PICTURE.shape), ((PICTURE / 1.0).tolist(), PICTURE.shape)])
def test_arrays(value, shape):
    image = routines.decode_array(value, LIMITS)
    assert image.shape == shape and image.dtype == np.uint8 and (image[..., 0] == PICTURE[..., 0]).all()


@pytest.mark.parametrize("value, text", [
    ([[1, 2], [3]], "ragged"), ([1, 2], "expected shape HxW"), ([[[1, 2]]], "expected shape"), ([], "expected shape"), ([[256]], "0..255, got 256"),
    ([[-1]], "0..255"), ([[float("nan")]], "0..255"), ([["a"]], "expected numbers"), ([[None]], "expected numbers"), (3, "got a number")])
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
                self.wfile.write(save(PICTURE, "PNG"))

        def log_message(self, *arguments):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


ALLOWED = routines.ImageLimits(allowed_hosts=("127.0.0.1", "pictures.example"), max_bytes=1_000_000, download_seconds=0.5)


def resolve(addresses):
    return lambda host, port, type=0: [(socket.AF_INET, type, 6, "", (address, port)) for address in addresses]


def test_url_of_an_allowed_host_and_a_redirect(web):
    for path in ("/picture", f"/to?http://127.0.0.1:{web}/picture", "/to?/picture"):
        assert (routines.fetch_image(f"http://127.0.0.1:{web}{path}", ALLOWED) == PICTURE).all()
    assert (routines.fetch_image(f"http://pictures.example:{web}/picture", ALLOWED, resolve(["127.0.0.1"])) == PICTURE).all()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "2130706433", "0x7f000001", "127.1", "10.0.0.1", "192.168.1.1", "172.16.0.1",
                                  "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "0.0.0.0", "[fe80::1]", "224.0.0.1", "100.64.0.1", "localhost"])
def test_addresses_that_are_not_public_are_refused(host):
    with pytest.raises(routines.ImageError, match="is not a public address|is not known"):
        routines.fetch_image(f"http://{host}/", LIMITS)


def test_redirect_to_a_private_address_is_refused(web):
    for target in ("http://169.254.169.254/latest", "http://[::1]/", "file:///etc/passwd", "gopher://x/"):
        with pytest.raises(routines.ImageError, match="not a public address|expected http"):
            routines.fetch_image(f"http://127.0.0.1:{web}/to?{target}", ALLOWED)


def test_name_with_one_private_address_among_public_ones_is_refused():
    with pytest.raises(routines.ImageError, match="is not a public address"):
        routines.fetch_image("http://rebinds.example/", LIMITS, resolve(["93.184.216.34", "127.0.0.1"]))


def test_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """The name resolves to a public address when it is checked and to this machine afterwards: it is asked once."""
    answers, connected = iter([["93.184.216.34"], ["127.0.0.1"]]), []

    def connect(address, timeout):
        connected.append(address)
        raise ConnectionRefusedError(111, "Connection refused")
    monkeypatch.setattr(routines.socket, "create_connection", connect)
    with pytest.raises(routines.ImageError, match="url cannot be read: Connection refused"):
        routines.fetch_image("http://rebinds.example/a", LIMITS, lambda *a, **k: resolve(next(answers))(*a, **k))
    assert connected == [("93.184.216.34", 80)]


@pytest.mark.parametrize("path, text", [("/drip", "took longer than 0.5 s"), ("/flood", "more than the limit of 1000000 bytes"), ("/nothing", "url answers 404"),
                                        ("/to?" * 9 + "/picture", "redirects more than 5 times|url answers 404")])
def test_slow_large_and_failing_urls(web, path, text):
    start = time.monotonic()
    with pytest.raises(routines.ImageError, match=text):
        routines.fetch_image(f"http://127.0.0.1:{web}{path}", ALLOWED)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("url", ["", "x", "ftp://x/", "http://", "http://x\r\nHost: y/", "http://[::1", "http://x:99999/", "//x/"])
def test_malformed_urls(url):
    with pytest.raises(routines.ImageError, match="expected http|malformed"):
        routines.fetch_image(url, LIMITS)


# --- the demo model -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shapes(tf):
    servable = serving.load_saved_model(ROOT / "models/shapes/1", serving.ModelConfig("shapes", "shapes"))
    signature = servable.signatures["serving_default"]
    labels = routines.load_labels("label_map.pbtxt", ROOT / "models/shapes")
    model = routines.ImageModel({n: (s.dtype, s.shape) for n, s in signature.inputs.items()},
                                {n: (s.dtype, s.shape) for n, s in signature.outputs.items()}, labels)
    return model, lambda inputs: servable.run("serving_default", inputs)


def find(shapes, image, *chain):
    tensors = routines.predict_image(*shapes, image, [*chain, routines.FilterConfidence(confidence=0.5)])
    return routines.to_annotations(tensors, image.shape[1], image.shape[0])


def test_shapes_are_found_named_and_outlined_in_every_sample(shapes):
    assert shapes[0].family == "detection_api"
    found = 0
    for path in sorted((ROOT / "models/shapes/samples").iterdir()):
        annotations = find(shapes, routines.decode_image(path.read_bytes(), LIMITS))
        found += len(annotations)
        assert all(a["tag"]["name"] in ("circle", "square", "triangle", "star") and a["boundType"] == "masks" for a in annotations)
    assert found >= 20


def test_answers_of_a_crop_lie_where_they_lie_in_the_whole_picture(shapes):
    image = routines.decode_image((ROOT / "models/shapes/samples/1.jpg").read_bytes(), LIMITS)
    whole = {(a["tag"]["name"], *np.round(np.array(a["bound"]).ravel(), 1)) for a in find(shapes, image)}
    padded = np.zeros((image.shape[0] * 2, image.shape[1] * 2, 3), np.uint8)
    padded[image.shape[0]:, image.shape[1]:] = image
    cropped = find(shapes, padded, routines.Crop(xmin=0.5, ymin=0.5))
    assert {(a["tag"]["name"], *np.round(np.array(a["bound"]).ravel() * 2 - 1, 1)) for a in cropped} == whole and whole
