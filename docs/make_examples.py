"""Take the pictures of docs/examples.md: `python docs/make_examples.py [name ...]`.

Chromium opens each example as its own config or site serves it. Needs what the tests
need; writes into docs/pictures.
"""

import base64
import contextlib
import runpy
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import requests
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / name) for name in ("tests", "docs", "examples/shop"))]

import shop  # noqa: E402
import test_examples as examples  # noqa: E402
from conftest import listening, listening_app, start_browser, wait  # noqa: E402
from make_pictures import Camera  # noqa: E402

import serving  # noqa: E402

SENT = (1280, 860)
WIDE = (1280, 940)
HOUSE = {"area": "120", "rooms": "5", "age": "10", "distance": "4", "garden": "1"}
SENTENCE = '"Deployment with CellStrat Hub is so simple and quick!"'
SHAPES = ("circle", "square", "triangle", "star")  # of examples/crops/make_classifier.py


@contextlib.contextmanager
def console(camera, name):
    """The page of an example's server; yields its key."""
    server = serving.ModelServer(ROOT / "examples" / name / "config.json", poll_seconds=0)
    assert server.wait(120)
    with listening(server) as camera.address:
        yield server.generated_key


def run_example(path):
    return runpy.run_path(str(ROOT / "examples" / path))["app"]


@contextlib.contextmanager
def site(camera, app, size):
    """An example's site, opened in a window of a size; yields its address."""
    (server,) = app.extensions["serving"].values()
    assert server.wait(120)
    with listening_app(app) as address:
        camera.resize(*size)
        camera.browser.get(address)
        yield address
    server.stop()


def take_picture_model(camera, name, dark=False):
    with console(camera, name) as key:
        camera.look(f"try/{name}", dark, WIDE, key)
        camera.js("document.querySelectorAll('.sample')[0].click()")
        time.sleep(1.5)
        camera.shoot(f"example-{name}")


def take_sent(camera, name, part, values):
    """Send values to a model or handler, each in the field whose label begins with its name."""
    with console(camera, name) as key:
        camera.look(part, False, SENT, key)
        for label, value in values.items():
            camera.js(
                """const [label, value] = arguments;
                const named = (one) => [one.ariaLabel, one.labels?.[0]?.textContent].join(" ");
                const field = [...document.querySelectorAll("#panel textarea")]
                    .find((one) => one.checkVisibility() && named(one).trim().startsWith(label));
                field.value = value; field.dispatchEvent(new Event("input", {bubbles: true}));""",
                label,
                value,
            )
        camera.press("Send")
        camera.shoot(f"example-{name}")


def take_digits(camera):
    with site(camera, run_example("digits/draw.py"), (760, 540)):
        examples.draw_digit(camera.browser, 4)
        camera.shoot("example-digits")


def take_widget(camera):
    with site(camera, run_example("widget/shop.py"), (1040, 1320)):
        browser = camera.browser
        browser.find_element("css selector", "input[type=file]").send_keys(str(examples.SURFACE))
        browser.switch_to.frame(0)
        wait(browser, "document.querySelectorAll('.sample')[1]").click()
        wait(browser, "document.querySelector('.viewer')")
        browser.switch_to.default_content()
        time.sleep(1)
        camera.shoot("example-widget")


def put(browser, article):
    """Put an article of the shop into the basket, as a customer does."""
    button = f'form[action="/basket/{article}"] button'
    browser.find_element("css selector", button).click()
    wait(browser, f"!document.querySelector('{button}')")


def take_shop(camera):
    """The page of a customer with two articles in the basket, who asks about two others."""
    with site(camera, shop.create_app(), (1000, 1010)) as address:
        browser = camera.browser
        browser.get(f"{address}/login")
        for name, text in (("name", "ann"), ("password", "tea for two")):
            browser.find_element("name", name).send_keys(text)
        browser.find_element("css selector", ".login button").click()
        wait(browser, "document.querySelector('.what-if')")
        put(browser, 0)
        put(browser, 2)
        for article in (12, 14):
            browser.find_element("css selector", f".what-if [value='{article}']").click()
        wait(browser, "document.querySelector('output').textContent")
        camera.js("scrollTo(0, 0)")
        camera.shoot("example-shop")


def draw_crops(camera):
    """Draw the answer's boxes and kinds over the picture that was sent."""
    path = ROOT / "models/shapes/samples/0.jpg"
    body = {"inputs": {"image": {"b64": base64.b64encode(path.read_bytes()).decode()}}}
    with console(camera, "crops"):
        url = f"{camera.address}/v1/models/shape_kinds:predict"
        found = requests.post(url, json=body).json()["outputs"]
    picture = cv2.resize(cv2.imread(str(path)), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    height, width = picture.shape[:2]
    corners = np.round(np.multiply(found["boxes"], [height, width] * 2)).astype(int)[:, 0]
    white, font = (255, 255, 255), cv2.FONT_HERSHEY_SIMPLEX
    for top, left, bottom, right in corners.tolist():
        cv2.rectangle(picture, (left, top), (right, bottom), white, 2, cv2.LINE_AA)
    for (top, left, _, _), (kinds,) in zip(corners.tolist(), found["kinds"]):
        text = f"{SHAPES[np.argmax(kinds)]} {max(kinds):.3f}"
        (wide, _), _ = cv2.getTextSize(text, font, 0.5, 1)
        cv2.rectangle(picture, (left, top - 22), (left + wide + 8, top), white, -1)
        cv2.putText(picture, text, (left + 4, top - 6), font, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    file = ROOT / "docs/pictures/example-crops.png"
    shown = Image.fromarray(picture[..., ::-1])
    shown.quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)


TAKE = {
    "pets": lambda camera: take_picture_model(camera, "pets"),
    "digits": take_digits,
    "defects": lambda camera: take_picture_model(camera, "defects", dark=True),
    "prices": lambda camera: take_sent(camera, "prices", "try/prices", HOUSE),
    "widget": take_widget,
    "shop": take_shop,
    "crops": draw_crops,
    "sentiment": lambda camera: take_sent(
        camera, "sentiment", "try/%2Falice%2Fsentiment-analyser", {"": SENTENCE}
    ),
}


def main(wanted):
    browser = start_browser()
    with contextlib.ExitStack() as stack:
        stack.callback(browser.quit)
        for name in wanted or TAKE:
            TAKE[name](Camera(browser, set()))


if __name__ == "__main__":
    main(sys.argv[1:])
