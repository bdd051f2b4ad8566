"""The gallery of examples, each served by its own config: what it answers is held against TensorFlow
called on the same model, and against what was drawn or made up.
"""

import contextlib
import importlib.util
import io
import json
import runpy

import numpy as np
import pytest
import requests
from conftest import ROOT, Rest, bearer, key_entry, listening, listening_app, wait
from PIL import Image, ImageDraw

import serving

EXAMPLES = ROOT / "examples"
CHUNK = 8  # pixels of a picture's pixel, where outlines are filled


@contextlib.contextmanager
def served(name):
    """A client of an example, as its config says, and its key."""
    server = serving.ModelServer(EXAMPLES / name / "config.json", poll_seconds=0)
    assert server.wait(120) and not server.readiness()
    yield Rest(server), bearer(server.generated_key)
    server.stop()


def script_of(name):
    """The script that trains an example's model."""
    path = EXAMPLES / name / "train.py"
    spec = importlib.util.spec_from_file_location(f"train_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script(request):
    return script_of(request.param)


def of(name):
    return pytest.mark.parametrize("script", [name], indirect=True)


def as_png(pixels):
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "png")
        return file.getvalue()


@of("pets")
def test_pets_are_told_apart_as_keras_does(script):
    import keras

    pictures, labels = script.make_pictures(script.HELD_OUT, 30)
    truth = keras.models.load_model(script.MODEL).predict(pictures, verbose=0)  # [N, 2]
    with served("pets") as (rest, key):
        for picture, label, expected in zip(pictures, labels, truth):
            found = rest.post("/predict", as_png(picture), headers=key).json["predictions"]
            assert found[0]["tag"]["name"] == script.NAMES[label]
            confidences = {one["tag"]["name"]: one["confidence"] for one in found}
            assert confidences == pytest.approx(dict(zip(script.NAMES, expected)), abs=1e-5)


def filled(rings, size):
    """The pixels of a picture within rings of x and y in 0..1, by the even-odd rule: bool [H, W]."""
    inside = np.zeros((size * CHUNK, size * CHUNK), bool)
    for ring in rings:
        drawn = Image.new("1", inside.shape)
        ImageDraw.Draw(drawn).polygon([(x * size * CHUNK, y * size * CHUNK) for x, y in ring], 1)
        inside ^= np.asarray(drawn)
    return inside[CHUNK // 2 :: CHUNK, CHUNK // 2 :: CHUNK]


@of("defects")
def test_defects_are_marked_as_keras_does_and_where_they_were_drawn(script):
    import keras

    surfaces, drawn = script.make_surfaces(script.HELD_OUT, 12)
    truth = keras.models.load_model(script.MODEL).predict(surfaces, verbose=0).argmax(axis=-1)
    marked = np.zeros_like(truth)
    with served("defects") as (rest, key):
        for surface, classes in zip(surfaces, marked):
            answer = rest.post("/predict", as_png(surface), headers=key).json["predictions"]
            for one in answer:
                assert one["tag"]["name"] == script.NAMES[one["tag"]["id"]]
                rings = one.get("contours") or [one["contour"]]
                classes[filled(rings, script.SIZE)] = one["tag"]["id"]
    # outlines are simplified by a tenth of what is thin: only pixels at an edge may be others
    around = np.lib.stride_tricks.sliding_window_view(
        np.pad(truth, ((0, 0), (1, 1), (1, 1)), "edge"), (3, 3), (1, 2)
    )  # [N, H, W, 3, 3]
    edge = around.max((3, 4)) != around.min((3, 4))
    assert edge[marked != truth].all()
    assert (marked != truth).sum() < 0.05 * (truth > 0).sum()
    for number in (1, 2):
        both = (marked == number) & (drawn == number)
        either = (marked == number) | (drawn == number)
        assert both.sum() > 0.7 * either.sum(), script.NAMES[number]


@of("prices")
def test_houses_cost_what_tensorflow_says_by_row_and_by_column(script, tf):
    houses = script.make_houses(script.HELD_OUT, 50)
    predict = tf.saved_model.load(str(script.MODEL)).signatures["serving_default"]
    truth = predict(**{name: tf.constant(values) for name, values in houses.items()})["price"]
    columns = {name: values.tolist() for name, values in houses.items()}
    rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
    with served("prices") as (rest, _):
        by_row = rest.post("/v1/models/prices:predict", {"instances": rows}).json["predictions"]
        by_column = rest.post("/v1/models/prices:predict", {"inputs": columns}).json["outputs"]
    np.testing.assert_allclose(by_row, truth, rtol=1e-5)
    np.testing.assert_allclose(by_column, truth, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(by_row), script.price_of(houses), rtol=0.06)


@of("digits")
def test_handwriting_is_read_as_tensorflow_does(script, tf):
    held_out = np.load(ROOT / "models/digits_held_out.npz")
    images = held_out["images"].astype(np.float32)
    predict = tf.saved_model.load(str(script.MODEL)).signatures["serving_default"]
    truth = predict(images=tf.constant(images))["probabilities"]
    with served("digits") as (rest, _):
        body = {"instances": images.tolist()}
        answer = rest.post("/v1/models/digits:predict", body).json["predictions"]
    np.testing.assert_allclose(answer, truth, atol=1e-5)
    assert (np.argmax(answer, axis=1) == held_out["labels"]).mean() > 0.97


# --- pages ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(path):
    """The address of an example's site, and its server."""
    app = runpy.run_path(str(EXAMPLES / path))["app"]
    (server,) = app.extensions["serving"].values()
    assert server.wait(120) and not server.readiness()
    with listening_app(app) as address:
        yield address, server
    server.stop()


STROKES = {  # x and y on the page's canvas of 256 pixels
    1: [(95, 75), (135, 35), (135, 220)],
    4: [(150, 35), (75, 155), (185, 155), (150, 150), (150, 90), (150, 225)],
    7: [(70, 45), (185, 45), (115, 220)],
}
ROWS = "[...document.querySelectorAll('li')].map((row) => row.querySelector('meter').value)"
STATUS = "document.querySelector('[role=status]').textContent"


def draw_digit(browser, digit):
    """Draw on the page with the mouse, and wait for the answer."""
    from selenium.webdriver import ActionChains

    pad, (start, *others) = browser.find_element("id", "pad"), STROKES[digit]
    draw = ActionChains(browser, duration=20)
    draw.move_to_element_with_offset(pad, start[0] - 128, start[1] - 128).click_and_hold()
    for x, y in others:
        draw.move_to_element_with_offset(pad, x - 128, y - 128)
    draw.release().perform()
    wait(browser, f"{STATUS}.startsWith('That is ')")


@pytest.mark.parametrize("digit", STROKES)
def test_a_digit_that_is_drawn_on_the_page_is_told(browser, digit):
    with opened("digits/draw.py") as (address, _):
        browser.get(address)
        draw_digit(browser, digit)
        assert browser.execute_script(f"return {STATUS}").startswith(f"That is {digit}, at ")
        bars = browser.execute_script(f"return {ROWS}")
        assert np.argmax(bars) == digit and sum(bars) == pytest.approx(1, abs=1e-5)
        browser.find_element("css selector", "button").click()
        assert browser.execute_script(f"return {ROWS}") == [0] * 10


CANVAS = "document.querySelector('canvas').getBoundingClientRect().width"
SURFACE = EXAMPLES / "defects/models/defects/samples/0.jpg"


def told_by_widget(browser, address, file=SURFACE):
    """What the widget on a page tells of a picture; on the page that is open, without address."""
    if address:
        browser.get(address)
    wait(browser, "document.querySelector('input[type=file]')")
    browser.find_element("css selector", "input[type=file]").send_keys(str(file))
    return wait(browser, f"{STATUS} !== 'Looking…' && {STATUS}")


def assert_drawn(browser, answer):
    """The widget's picture is another where something was found, and as it was elsewhere."""
    width, height, *pixels = browser.execute_script(
        """const canvas = document.querySelector('canvas'), {width, height} = canvas;
        return [width, height, ...canvas.getContext('2d').getImageData(0, 0, width, height).data];"""
    )
    picture = np.asarray(Image.open(SURFACE))
    assert [height, width] == list(picture.shape[:2])
    drawn = np.array(pixels, np.int16).reshape(height, width, 4)[..., :3]
    changed = (abs(drawn - picture) > 10).any(axis=-1)
    found = np.zeros_like(changed)
    for one in answer["predictions"]:
        found |= filled(one.get("contours") or [one["contour"]], width)
    assert changed[found].mean() > 0.95
    assert changed[~found].mean() < 0.15  # lines and names


def told_of(answer):
    names = [
        f"{one['tag']['name']} ({round(100 * one['confidence'])} %)"
        for one in answer["predictions"]
    ]
    return f"Found: {', '.join(names)}."


def test_a_page_of_the_site_shows_the_answer_by_script_and_the_console_in_a_frame(browser):
    with opened("widget/shop.py") as (address, _):
        answer = requests.post(f"{address}/ml/defects/predict", SURFACE.read_bytes()).json()
        assert told_by_widget(browser, address) == told_of(answer)
        assert_drawn(browser, answer)
        browser.switch_to.frame(0)
        wait(browser, "document.querySelector('.sample')").click()
        wait(browser, "document.querySelector('.viewer')")
        assert "scratch" in browser.find_element("id", "panel").text
        assert not browser.execute_script("return document.querySelector('#key-dialog').open")
        browser.switch_to.default_content()


def test_the_script_works_on_a_page_of_another_origin_that_the_config_names(browser, tmp_path):
    config = json.loads((EXAMPLES / "widget/config.json").read_text())
    config["auth"] = {"keys": [key_entry("shop", "secret", deployments=["defects"])]}
    pages = {"/widget.js": (EXAMPLES / "widget/static/widget.js").read_bytes()}

    def elsewhere(environ, start_response):
        kind = "text/javascript" if environ["PATH_INFO"].endswith(".js") else "text/html"
        start_response("200 OK", [("Content-Type", f"{kind}; charset=utf-8")])
        return [pages.get(environ["PATH_INFO"], pages["/"])]

    with listening_app(elsewhere) as other:
        config["server"]["cors_origins"] = [other]
        path = EXAMPLES / "widget/config.json"
        server = serving.ModelServer(serving.load_config(path, json.dumps(config).encode()))
        assert server.wait(120)
        with listening(server) as address:
            url = f"{address}/defects/predict"
            pages["/"] = (
                f'<script src="widget.js" data-predict="{url}" data-key="secret"></script>'.encode()
            )
            answer = requests.post(url, SURFACE.read_bytes(), headers=bearer("secret")).json()
            assert told_by_widget(browser, other) == told_of(answer)
            assert_drawn(browser, answer)
            assert "decoded" in told_by_widget(browser, None, __file__)
            assert browser.execute_script("return document.querySelector('canvas').hidden")
            Image.new("RGB", (4000, 300)).save(tmp_path / "wide.png")
            told_by_widget(browser, None, tmp_path / "wide.png")
            assert browser.execute_script(f"return {CANVAS} <= document.body.clientWidth")
            right, pages["/"] = pages["/"], pages["/"].replace(url.encode(), b"/no-json")
            assert told_by_widget(browser, other) == "No answer: 200"
            pages["/"] = right.replace(b"secret", b"wrong")
            pages["/"] += f'<iframe src="{address}/console/"></iframe>'.encode()
            assert "key" in told_by_widget(browser, other)
            browser.switch_to.frame(0)  # which its own policy keeps empty
            assert not browser.find_elements("css selector", "#main")
            browser.switch_to.default_content()
        server.stop()


# --- training -------------------------------------------------------------------------------------


def interface_of(model):
    """Names and shapes of what a model takes and answers."""
    if model.suffix:
        import keras

        net = keras.models.load_model(model)
        return net.input_shape, net.output_shape
    signature = serving.tensorflow().saved_model.load(str(model)).signatures["serving_default"]
    outputs = signature.structured_outputs
    return signature.structured_input_signature[1], {n: t.shape for n, t in outputs.items()}


@pytest.mark.parametrize(
    "script, options",
    [("pets", (16, 1)), ("defects", (8, 1)), ("prices", (64, 1)), ("digits", (1,))],
    indirect=["script"],
)
def test_a_script_trains_such_a_model_as_is_there(script, options, tmp_path, monkeypatch):
    """A few steps of it; the data of the digits are scikit-learn's, which the tests do without."""
    there = script.MODEL
    made = tmp_path / "1" / (there.name if there.suffix else "")
    monkeypatch.setattr(script, "MODEL", made)
    if hasattr(script, "split_digits"):
        data = np.load(ROOT / "models/digits_held_out.npz")
        images, labels = data["images"].astype(np.float32), data["labels"]
        monkeypatch.setattr(script, "split_digits", lambda: (images, images, labels, labels))
    script.train(*options)
    assert interface_of(made) == interface_of(there)
