"""Take the pictures of the page that the documents show: `python docs/make_pictures.py [name ...]`.

Chromium opens the demo and the made-up server of the page's tests, which has one of
everything. Needs what the tests need, and fonts with Chinese and Arabic letters (Debian:
fonts-noto-cjk, fonts-noto-core); writes into docs/pictures.
"""

import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import requests
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import showcase  # noqa: E402
import test_console_manage as managed  # noqa: E402
from conftest import bearer, key_entry, listening, start_browser, wait  # noqa: E402

import serving  # noqa: E402

KEY = showcase.KEY
DESKTOP, TALL, PHONE = (1280, 800), (1280, 1040), (400, 1000)
COLOURS = 200  # of a picture's palette: small files, no visible steps


class Camera:
    """A browser before one server's page."""

    def __init__(self, browser, wanted):
        self.browser, self.wanted, self.address = browser, wanted, ""

    def js(self, script, *values):
        return self.browser.execute_script(script, *values)

    def resize(self, width, height):
        """Give the window a size in pixels."""
        device = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)

    def look(self, part, dark=False, size=DESKTOP, key=KEY):
        """Open a part of the page in a window of a size."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        self.resize(*size)
        self.browser.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}/console/#key={key}")
        wait(self.browser, "document.querySelector('#main').children.length")
        self.js("location.hash = arguments[0]", part)
        time.sleep(1)

    def press(self, text):
        self.js(
            """[...document.querySelectorAll('#main :is(button, summary)')].find((one) =>
            one.textContent.trim() === arguments[0] && one.checkVisibility()).click()""",
            text,
        )
        time.sleep(1)

    def choose(self, label, value):
        self.js(
            """const label = [...document.querySelectorAll('#main label')].find((one) =>
            one.textContent.startsWith(arguments[0]) && one.checkVisibility());
            const list = label.querySelector('select'); list.value = arguments[1];
            list.dispatchEvent(new Event('change', {bubbles: true}));""",
            label,
            value,
        )

    def give(self, *paths):
        field = self.browser.find_element("css selector", "#panel .drop input[type=file]")
        field.send_keys("\n".join(map(str, paths)))
        time.sleep(2)
        self.js("scrollTo(0, 0)")  # the page has brought the answer into view

    def shoot(self, name):
        """Save a screenshot in few colours."""
        if self.wanted and name not in self.wanted:
            return
        path = ROOT / "docs/pictures" / f"{name}.png"
        self.browser.save_screenshot(str(path))
        picture = Image.open(path).convert("RGB")
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


@contextlib.contextmanager
def demo(folder):
    """The address of the demo, with an inbox for its deployment and with traffic."""
    config = json.loads((ROOT / "config.json").read_text())
    config["auth"] = {"keys": [key_entry("page", KEY, quota={"calls": 100000, "period": "day"})]}
    config["auth"]["quota_store"] = str(folder / "quotas.sqlite3")
    learning = {"threshold": 0.1, "folder": str(folder / "inbox")}
    config["deployments"][0]["active_learning"] = learning
    server = serving.ModelServer(
        serving.load_config(ROOT / "config.json", json.dumps(config).encode())
    )
    assert server.wait(120)
    over = threading.Event()
    with listening(server) as address:
        caller = threading.Thread(target=call, args=(address, over), daemon=True)
        caller.start()
        yield address
        over.set()
        caller.join()


def call(address, over):
    """Call the demo's models until `over` is set, a few calls wrong."""
    samples = [path.read_bytes() for path in sorted(ROOT.glob("models/shapes/samples/*.jpg"))]
    chance = random.Random(0)
    while not over.is_set():
        number = chance.random()
        if number < 0.5:
            requests.post(f"{address}/predict", chance.choice(samples), headers=bearer(KEY))
        elif number < 0.95:
            name = chance.choice(["half_plus_two", "half_plus_three", "two_steps"])
            body = json.dumps(
                {"inputs": {"x": [1.0]}} if name == "two_steps" else {"instances": [1.0]}
            )
            requests.post(f"{address}/v1/models/{name}:predict", body, headers=bearer(KEY))
        else:
            requests.post(f"{address}/predict", b"no picture", headers=bearer(KEY))
        over.wait(chance.expovariate(8))


def take_demo(camera):
    """The page's parts with the demo: light, dark and on a phone."""
    for name, dark, size in (
        ("try-light", False, TALL),
        ("try-dark", True, TALL),
        ("try-phone", False, PHONE),
    ):
        camera.look("try/shapes", dark, size)
        camera.js("document.querySelectorAll('.sample')[0].click()")
        time.sleep(1.5)
        if size == PHONE:
            camera.js("scrollTo(0, document.querySelector('#panel').offsetTop - 10)")
        camera.shoot(name)
    camera.look("connect/pictures/shapes")
    camera.choose("Language", "python")
    time.sleep(1)
    camera.shoot("connect-light")
    camera.look("connect/api", True)
    camera.js("document.querySelector('details.card').open = true")
    time.sleep(0.5)
    camera.shoot("api-dark")
    camera.look("models", True)
    camera.shoot("models-dark")
    camera.look("inbox/shapes")
    camera.shoot("inbox-light")
    camera.look("try/digits")
    camera.press("Send")
    camera.shoot("model-light")


def take_manage(camera, folder):
    """Manage, with a deployment about to be changed and a key just made."""
    site = managed.Site(folder)
    server = serving.ModelServer(site.path)
    assert server.wait(120)
    with listening(server) as camera.address:
        camera.look("manage", size=TALL, key="boss")
        camera.choose("Which", "shapes")
        time.sleep(1)
        camera.js(
            """document.querySelector('.fields input').value = 'Shapes of Lyon';
            document.querySelector('section[aria-label=Keys] .fields input').value = 'ann';"""
        )
        camera.press("Statistics")
        camera.press("What would change")
        camera.press("Create the key")
        camera.js("scrollTo(0, 0)")
        camera.shoot("manage-light")
    server.stop()


def take_watch(camera):
    for name, dark, size in (
        ("watch-light", False, TALL),
        ("watch-dark", True, TALL),
        ("watch-phone", True, PHONE),
    ):
        camera.look("watch", dark, size)
        time.sleep(2)
        camera.shoot(name)
    camera.look("watch")
    camera.browser.execute_cdp_cmd("Network.enable", {})
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    camera.browser.execute_cdp_cmd("Network.emulateNetworkConditions", gone)
    time.sleep(12)
    camera.shoot("server-gone")
    there = gone | {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
    camera.browser.execute_cdp_cmd("Network.emulateNetworkConditions", there)


def take_hard(camera, pictures):
    """Hard cases: many, none, tall, wide, holes, names in all scripts."""
    for name, part, picture in (
        ("boxes-300", "try/crowd", "plain.png"),
        ("picture-200x6000", "try/cells", "tall.png"),
        ("picture-8000x200", "try/cells", "wide.png"),
        ("classes-1000", "try/thousand", "plain.png"),
        ("nothing-found", "try/nothing", "plain.png"),
        ("mask-with-a-hole", "try/rings", "plain.png"),
        ("names", "try/细胞 خلايا", "plain.png"),
    ):
        camera.look(part, dark=name in ("boxes-300", "names"))
        camera.give(pictures[picture])
        camera.shoot(name)
    camera.look("try/cells", dark=True)
    good = ["plain.png", "scan.tif", "turned.jpg", "tall.png", "wide.png", "broken.jpg"]
    camera.give(*(pictures[name] for name in good))
    camera.shoot("gallery")
    camera.look("try/cells", size=TALL)
    camera.give(pictures["plain.png"])
    camera.press("Compare with…")
    camera.js("document.querySelector('#panel details .bar').scrollIntoView()")
    camera.js(
        """const list = document.querySelectorAll('#panel details label:nth-of-type(1) select')[1];
        list.value = 'version=2'; list.onchange();"""
    )
    camera.press("Compare")
    camera.js("scrollTo(0, document.querySelector('.viewer').offsetTop - 60)")
    time.sleep(0.5)
    camera.shoot("compare")


def take_states(camera):
    """What is served, for a key that may see little, or before it is loaded."""
    camera.look("try/broken")
    camera.shoot("deployments-40")
    camera.look("try/diamond")
    camera.press("Send")
    camera.shoot("pipeline")
    camera.look("try/%2Fecho", dark=True)
    camera.press("Send")
    camera.shoot("handler")
    camera.look("try/rings", key=showcase.RESTRICTED)
    camera.shoot("restricted-key")


def main(wanted):
    browser = start_browser()
    camera = Camera(browser, wanted)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stack.callback(browser.quit)
        folder, hold = Path(name), threading.Event()
        pictures = showcase.write_pictures(folder)
        watched = stack.enter_context(demo(folder))
        with listening(serving.ModelServer({"model_config_list": []})) as camera.address:
            camera.look("try", key="")
            camera.shoot("empty")
        server = showcase.build(hold=hold)
        with listening(server) as camera.address:
            camera.look("try/rings", dark=True)
            camera.shoot("loading")
            hold.set()
            assert server.wait(60)
            take_hard(camera, pictures)
            take_states(camera)
        (folder / "managed").mkdir()
        take_manage(camera, folder / "managed")
        camera.address = watched
        take_demo(camera)
        take_watch(camera)


if __name__ == "__main__":
    main(set(sys.argv[1:]))
