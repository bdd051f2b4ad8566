"""The page in Chromium, in a host site under a prefix, with a policy of the host's: getting in, Try,
Connect, and what axe-core says of all parts. What it shows is held against what the server answers to another client.
"""

import contextlib
import csv
import gzip
import io
import json
import os
import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import flask
import numpy as np
import pytest
import requests
import showcase
from conftest import ROOT, bearer, key_entry, listening, listening_app, until, wait
from PIL import Image
from pycocotools.coco import COCO
from showcase import KEY, RESTRICTED

import serving

webdriver = pytest.importorskip("selenium.webdriver")
Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
PointerInput = pytest.importorskip("selenium.webdriver.common.actions.pointer_input").PointerInput
ScrollOrigin = pytest.importorskip("selenium.webdriver.common.actions.wheel_input").ScrollOrigin

LANGUAGES = 12
NEWER = {}  # files of the page as a newer server has them


class Slow:
    """The event that the slow model waits for; a test sets it to let the model answer."""

    def __init__(self):
        self.event = threading.Event()

    @contextlib.contextmanager
    def held(self):
        self.event.clear()
        yield
        self.event.set()


@contextlib.contextmanager
def hosted(server, **options):
    """The address of a server under /ml of a site with pages and a policy of its own."""
    site = flask.Flask("host")
    site.register_blueprint(serving.create_blueprint(server, **options), url_prefix="/ml")

    @site.get("/frame")
    def frame():
        return '<!doctype html><title>host</title><iframe src="/ml/console/"></iframe>'

    @site.before_request
    def upgraded():
        text = NEWER.get(flask.request.path.rpartition("/")[2])
        return text and flask.Response(text, mimetype="text/javascript")

    @site.after_request
    def guard(response):
        response.headers["Content-Security-Policy"] = "default-src 'self'"
        return response

    with listening_app(site) as address:
        yield address + "/ml"


@pytest.fixture(scope="module")
def slow():
    return Slow()


@pytest.fixture(scope="module")
def address(slow, tmp_path_factory):
    server = showcase.build(slow.event, inbox=tmp_path_factory.mktemp("inbox"))
    assert server.wait(60)
    with hosted(server) as found:
        yield found
    server.stop()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return showcase.write_pictures(tmp_path_factory.mktemp("pictures"))


class Page:
    """The page in a browser, and what a person does there."""

    def __init__(self, browser, address, folder):
        self.browser, self.address, self.folder = browser, address, folder

    def open(self, part="", key=KEY):
        """Open it anew, with a key as after `#key=`, or with none."""
        self.browser.get("about:blank")
        self.browser.get(f"{self.address}/console/icon.svg")
        self.js("sessionStorage.clear(); localStorage.clear()")
        self.browser.get(f"{self.address}/console/{f'#key={key}' if key else ''}")
        if key:
            self.wait("document.querySelector('#main').children.length")
            if part:
                self.go(part)
        return self

    def go(self, part):
        """Follow a link, and wait until what it names is shown."""
        name = part.rpartition("/")[2]
        self.js("location.hash = arguments[0]", part)
        title = f"decodeURIComponent('{name}').toLowerCase()"
        self.wait(f"document.title.toLowerCase().startsWith({title})")
        if part.startswith("try/"):
            heading = "document.querySelector('#panel h2')?.textContent.trim()"
            self.wait(f"{heading} == decodeURIComponent('{name}')")
        return self

    def js(self, script, *values):
        return self.browser.execute_script(script, *values)

    def wait(self, script):
        return wait(self.browser, script)

    def text(self, selector="#main"):
        return self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def says(self, text, selector="#main"):
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"{found}?.innerText.includes({json.dumps(text)})")

    def click(self, text, within="body"):
        """Press the visible button, link or summary of this text."""
        self.wait(
            f"""[...document.querySelectorAll('{within} :is(button, a, summary)')].some((one) =>
            one.textContent.trim() === {json.dumps(text)} && one.checkVisibility()
            && !one.disabled && (one.click(), true))"""
        )

    def choose(self, label, value, within="#main"):
        """Take a value of the list that stands after a label."""
        self.js(
            """const list = [...document.querySelectorAll(`${arguments[2]} label`)].find((one) =>
            one.textContent.startsWith(arguments[0]) && one.checkVisibility()).querySelector('select');
            list.value = arguments[1]; list.dispatchEvent(new Event('change', {bubbles: true}));""",
            label,
            value,
            within,
        )

    def type(self, selector, value):
        self.js(
            """const field = document.querySelector(arguments[0]); field.value = arguments[1];
            field.dispatchEvent(new Event('input', {bubbles: true}));""",
            selector,
            value,
        )

    def take(self, *paths):
        """Choose files."""
        field = self.browser.find_element("css selector", "#panel .drop input[type=file]")
        field.send_keys("\n".join(map(str, paths)))

    def paste(self, place, path, name="pasted.png"):
        """Paste a picture where an element has the keyboard."""
        self.js(
            """const [place, bytes, name] = arguments, clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
            document.querySelector(place).dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true}));""",
            place,
            list(path.read_bytes()),
            name,
        )

    def see(self, path, count):
        """Choose a picture and wait for its boxes."""
        self.take(path)
        self.wait_for_boxes(count)

    def wait_for_boxes(self, count):
        self.wait(f"document.querySelectorAll('.viewer .box').length === {count}")

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def hold(self, part):
        """Calls of URLs with `part` in them are in `asked`, and sent after `release()`."""
        self.js(
            """const part = arguments[0], real = window.fetch, open = new Promise((done) => (window.release = done));
            Object.assign(window, {asked: [], answered: 0});
            window.fetch = async (...of) => { if (!String(of[0]).includes(part)) return real(...of);
            window.asked.push(of[1]); await open; return real(...of).finally(() => (window.answered += 1)); };""",
            part,
        )

    def drawn(self):
        """Wait until what was asked of the page is drawn."""
        self.browser.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )

    def view(self):
        """How a picture is shown: pixels of the window per pixel, left, top."""
        self.drawn()
        return self.js(
            """const view = new DOMMatrix(getComputedStyle(document.querySelector('.viewer canvas')).transform);
            return [view.a, view.e, view.f];"""
        )

    @property
    def boxes(self):
        return self.js("return document.querySelectorAll('.viewer .box').length")

    @property
    def answer(self):
        """The answer as the page's JSON has it."""
        self.js("document.querySelectorAll('#panel details').forEach((one) => (one.open = true))")
        return json.loads(self.text("[aria-label='The answer as JSON']"))

    def requests(self):
        """The URLs asked for since the last look."""
        events = (
            json.loads(one["message"])["message"] for one in self.browser.get_log("performance")
        )
        return [
            one["params"]["request"]["url"]
            for one in events
            if one["method"] == "Network.requestWillBeSent"
        ]

    def saved(self, name):
        """The bytes of a file that the page has the browser save."""
        deadline = time.monotonic() + 60
        file = self.folder / name
        # an empty file of that name stands there before the browser has written it
        while not file.exists() or not file.stat().st_size:
            assert time.monotonic() < deadline, [one.name for one in self.folder.iterdir()]
            time.sleep(0.05)
        return file.read_bytes()


@pytest.fixture
def page(browser, address, tmp_path):
    """The page; whatever a test does, it asks nobody but its server, and its scripts are silent."""
    folder = tmp_path / "saved"
    folder.mkdir()
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    browser.get("about:blank")  # the last test's page asks on
    browser.get_log("browser"), browser.get_log("performance")
    page = Page(browser, address, folder)

    yield page
    asked = page.requests()
    sites = {url.removesuffix("/ml") for url in (page.address, address)}
    own = (*(f"{url}/{name}" for url in sites for name in ("ml", "frame", "favicon.ico")), "about:")
    assert [url for url in asked if not url.startswith(own)] == []
    said = [one["message"] for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    assert [text for text in said if "Failed to load resource" not in text] == []


def predict(address, path, deployment="cells", query="", **body):
    """What the server answers to another client."""
    url = f"{address}/{deployment}/predict{query}"
    answer = requests.post(url, path.read_bytes(), headers=bearer(KEY), params=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- getting in ----------------------------------------------------------------------------------


def test_a_printed_link_opens_the_page_and_its_key_leaves_the_address(page):
    page.open()
    page.wait("document.querySelectorAll('.list a').length")
    assert page.browser.current_url == f"{page.address}/console/"
    assert not page.js("return document.querySelector('#key-dialog').open")
    page.browser.refresh()  # it stays in the tab
    page.wait("document.querySelectorAll('.list a').length")


def test_the_link_is_printed_while_models_still_load(capsys):
    hold, said = threading.Event(), []
    server = showcase.build(hold=hold, auth={})
    with listening(server) as address:
        until(lambda: said.append(capsys.readouterr().out) or "Console:" in "".join(said))
        link, key = re.search(r"Console: (\S+)#key=(\S+)", "".join(said)).groups()
        told = requests.get(f"{address}/deployments", headers=bearer(key)).json()
        assert link == f"{address}/console" and told["loading"]["waiting"]
        hold.set()
    server.stop()


def test_a_browser_that_asks_for_the_root_is_led_to_the_page(page):
    page.open()
    page.browser.get(page.address + "/")
    assert page.browser.current_url == f"{page.address}/console/"


def test_a_key_is_asked_for_when_something_answers_401_and_not_before(page):
    page.open(key=None)
    page.wait("document.querySelector('#key-dialog').open")
    assert f"{page.address}/deployments" in page.requests()
    field = page.browser.find_element("css selector", "#key-input")
    field.send_keys("wrong")
    assert field.get_attribute("type") == "password"
    page.browser.find_element("css selector", "#key-show").click()
    assert field.get_attribute("type") == "text"
    field.send_keys("\n")
    page.says("The key is not valid", "#key-dialog")
    assert page.js("return document.body.innerText.match(/not valid/g).length") == 1
    assert page.js("return document.querySelectorAll('dialog[open]').length") == 1
    page.browser.find_element("css selector", "#key-input").send_keys(KEY + "\n")
    page.wait("document.querySelectorAll('.list a').length")
    assert "not valid" not in page.text("body") and not page.js(
        "return document.querySelector('#key-dialog').open"
    )


@pytest.mark.parametrize("key, said", [("50%", "not valid"), ("ключ", "printable ASCII")])
def test_a_key_that_no_header_can_have_is_told_so(page, key, said):
    page.open(key=None)
    page.browser.get("about:blank")
    page.browser.get(f"{page.address}/console/#key={key}")
    page.says(said, "#key-dialog")
    assert "cannot be reached" not in page.text("body")
    page.browser.find_element("css selector", "#key-input").send_keys(KEY + "\n")
    page.wait("document.querySelectorAll('.list a').length")


def test_cancel_leaves_a_page_that_says_what_is_missing_and_asks_again(page):
    page.open(key=None)
    page.wait("document.querySelector('#key-dialog').open")
    page.click("Cancel")
    page.says("Nothing can be shown without a key")
    page.click("Enter a key", "#main")
    page.wait("document.querySelector('#key-dialog').open")


def test_a_cancelled_dialog_is_opened_again_by_people_alone(page):
    page.open("try/add_one")
    page.wait("document.querySelector('#panel .body')?.value")
    page.js(
        """window.looks = 0; window.fetch = async (url) => { window.looks += String(url).endsWith('/deployments');
        return new Response('{"error": "Log in."}', {status: 401}); };"""
    )
    opened = "document.querySelector('#key-dialog').open"
    page.click("Send")
    page.wait(opened)
    page.click("Cancel")
    page.says("Log in.", "#panel .error:not(:empty)")
    page.js("document.dispatchEvent(new Event('visibilitychange'))")  # the page looks again
    page.wait("window.looks")
    page.drawn()
    assert not page.js(f"return {opened}")
    page.click("Send")
    page.wait(opened)
    page.click("Cancel")


def test_a_change_of_key_that_is_cancelled_leaves_a_page_that_can_be_opened_again(page):
    page.open("try/cells")
    page.click("Change key")
    page.browser.find_element("css selector", "#key-input").send_keys("wrong\n")
    page.says("The key is not valid", "#key-dialog")
    page.click("Cancel")
    page.says("Nothing can be shown without a key")
    page.click("Enter a key", "#main")
    page.browser.find_element("css selector", "#key-input").send_keys(KEY + "\n")
    page.wait("document.querySelectorAll('.list a').length")
    assert "Try again" not in page.text("#main")


def test_a_key_is_remembered_when_that_is_wanted(page):
    stores = "return [sessionStorage, localStorage].map((one) => Object.values(one).join())"
    for remember, kept in ((False, [KEY, ""]), (True, ["", KEY])):
        page.open(key=None)
        page.wait("document.querySelector('#key-dialog').open")
        if remember:
            page.browser.find_element("css selector", "#key-remember").click()
        page.browser.find_element("css selector", "#key-input").send_keys(KEY + "\n")
        page.wait("document.querySelectorAll('.list a').length")
        assert page.js(stores) == kept
    page.js("localStorage.clear()")


def test_a_restricted_key_shows_what_it_may_call(page):
    page.open(key=RESTRICTED)
    names = "[...document.querySelectorAll('.list a')].map((one) => one.textContent)"
    assert page.wait(f"{names}.length && {names}") == ["rings", "thousand"] * 2
    assert "guest: only rings, thousand" in page.text("header")
    page.go("models")
    page.wait("document.querySelectorAll('.cards .card').length === 2")
    assert "Reload…" not in page.text()


def test_a_site_with_a_check_of_its_own_just_opens(page, slow):
    server = showcase.build(slow.event)
    assert server.wait(60)
    with hosted(server, authorize=lambda request: True) as page.address:
        page.open(key=None)
        page.wait("document.querySelectorAll('.list a').length")
        assert not page.js("return document.querySelector('#key-dialog').open")
        page.go("try/table")
        page.wait("document.querySelector('#panel .body')?.value")
        page.click("Send")
        page.says('"outputs"')
        page.browser.get(page.address.removesuffix("/ml") + "/frame")
        page.browser.switch_to.frame(0)
        page.wait("document.querySelectorAll('.list a').length")
        page.browser.switch_to.default_content()
    server.stop()


def test_while_models_load_the_page_says_which_and_fills_itself_in(page, slow):
    hold = threading.Event()
    server = showcase.build(slow.event, hold)
    with hosted(server) as page.address:
        page.open()
        page.says("models loaded; loading", "#loading")
        names = "[...document.querySelectorAll('.list a')].map((one) => one.textContent)"
        assert "slow" in page.wait(f"{names}.length && {names}")
        page.go("try/rings")
        page.says("is being loaded")
        page.js("[...document.querySelectorAll('.list a')][3].focus()")
        hold.set()
        page.wait("document.querySelector('#loading').hidden")
        page.wait("document.querySelector('#panel .drop')")
        page.wait("document.querySelectorAll('.list .dot.loading').length === 0")
        assert page.js("return document.activeElement.textContent") == "rings"
    server.stop()


def test_it_is_asked_again_and_again_while_models_load_whatever_fails(page, slow):
    hold = threading.Event()
    server = showcase.build(slow.event, hold)
    with hosted(server) as page.address:
        page.open()
        page.js(
            """const real = window.fetch, later = window.setTimeout; window.failed = 0;
            window.setTimeout = (work, ms) => later(work, Math.min(ms, 50));
            window.fetch = (...of) => String(of[0]).endsWith('/deployments') && window.failed++ < 3
            ? Promise.reject(new TypeError('made to fail')) : real(...of);"""
        )
        page.wait("window.failed > 2")
        hold.set()
        page.wait("document.querySelector('#loading').hidden")
    server.stop()


def test_opening_the_page_samples_and_code_cost_nothing_of_a_quota(page, slow, tmp_path):
    limits = [key_entry("few", "few", quota={"calls": 1, "period": "day"})]
    auth = {"protect": "all", "keys": limits, "quota_store": str(tmp_path / "quotas.sqlite3")}
    server = showcase.build(slow.event, auth=auth)
    assert server.wait(60)
    with hosted(server) as page.address:
        page.open("try/table", key="few")
        page.wait("document.querySelector('#panel .body')?.value")
        page.go("models/table")
        page.wait("document.querySelector('.cards table')")
        page.click("Reload…")
        page.says("What a reload would change")
        page.go("try/cells")
        page.wait("document.querySelectorAll('.sample canvas').length === 10")
        page.click("This call as code")
        page.says("curl", "[aria-label='Code of this call']")
        for _ in range(2):
            page.js("document.querySelector('.sample').click()")
            page.wait(
                "document.querySelector('.viewer .box') || document.querySelector('#panel .error')"
            )
        page.says("has used its 1 calls", "#panel .error:not(:empty)")
    server.stop()


# --- the list ------------------------------------------------------------------------------------


def test_the_list_has_all_that_is_served_with_states_and_a_search(page):
    page.open("try/broken")
    said = requests.get(f"{page.address}/deployments", headers=bearer(KEY)).json()
    told = [said[kind] for kind in ("deployments", "models", "pipelines", "handlers")]
    names = [one.get("id") or one.get("path") or one["name"] for kind in told for one in kind]
    listed = "return [...document.querySelectorAll('.list a')].map((one) => one.textContent)"
    assert page.js(listed) == names and len(told[0]) == 40
    states = "return [...document.querySelectorAll('.list .dot')].map((one) => one.ariaLabel)"
    assert page.js(states) == [one["state"] for kind in told for one in kind]
    assert "variables.index is cut off" in page.text("#panel .error")
    page.type(".list input", "camera-1")
    assert page.js(listed) == [f"camera-{n}" for n in range(10, 20)]


def test_what_an_address_chooses_is_in_sight_in_the_list(page):
    page.open("try/%2Ffails")
    entry, shown = (page.find(f".groups{one}").rect for one in (" [aria-current]", ""))
    assert shown["y"] <= entry["y"] < shown["y"] + shown["height"]


def test_what_is_gone_is_not_shown_where_the_address_names_nothing(page):
    page.open()
    heading = "document.querySelector('#panel h2')?.textContent.trim()"
    first = page.wait(heading)
    page.js(
        """const [gone] = arguments, real = window.fetch; window.fetch = async (...of) => {
        if (!String(of[0]).endsWith('/deployments')) return real(...of);
        const all = await (await real(...of)).json();
        all.deployments = all.deployments.filter(({id}) => id !== gone);
        return new Response(JSON.stringify(all)); };
        document.dispatchEvent(new Event('visibilitychange'));""",
        first,
    )
    page.wait(f"{heading} && {heading} !== {json.dumps(first)}")
    chosen = "return document.querySelector('.list [aria-current]').textContent"
    assert page.js(chosen) == page.js(f"return {heading}")


def test_who_chooses_by_keyboard_is_led_to_what_was_chosen(page):
    page.open("try/cells")
    held = "return document.activeElement.textContent.trim()"
    page.type(".list input", "ta")
    page.find(".list input").send_keys("b")
    assert page.js("return document.activeElement.type") == "search"
    page.find(".list a").send_keys(Keys.ENTER)
    page.wait("document.activeElement === document.querySelector('#panel h2')")
    assert page.js(held) == "table"
    page.js("document.querySelector('.list a').focus()")
    page.js("document.dispatchEvent(new Event('visibilitychange'))")
    page.drawn()
    assert page.js("return document.activeElement.localName") == "a"


def test_every_link_leads_to_what_it_names_and_back_works(page):
    page.browser.execute_cdp_cmd("Page.resetNavigationHistory", {})  # of 50 pages it drops some
    page.open("try/cells")
    page.go("try/models/cells")
    page.says("image: uint8")
    page.go("try/%E7%BB%86%E8%83%9E%20%D8%AE%D9%84%D8%A7%D9%8A%D8%A7")
    page.browser.back()
    page.says("image: uint8")
    page.browser.back()
    page.wait("document.querySelector('#panel .sample')")
    page.js("location.hash = 'try/unheard-of'")
    page.says("There is nothing called ‘unheard-of’ here.")


# --- pictures ------------------------------------------------------------------------------------


def test_boxes_are_those_of_the_answer_and_the_slider_needs_no_request(page, pictures):
    page.open("try/crowd").see(pictures["plain.png"], 300)
    truth = predict(page.address, pictures["plain.png"], "crowd")["predictions"]
    assert page.answer["predictions"] == truth
    drawn = page.js(
        """const frame = document.querySelector('.viewer canvas').getBoundingClientRect();
        return [...document.querySelectorAll('.box rect.frame')].map((one) => { const box = one.getBoundingClientRect();
        return [(box.left - frame.left) / frame.width, (box.top - frame.top) / frame.height]; }).reverse();"""
    )
    wanted = [one["bound"][0] for one in truth]
    assert np.abs(np.array(drawn) - wanted).max() < 0.01
    page.requests()
    page.type(".confidence", "0.5")
    left = sum(one["confidence"] >= 0.5 for one in truth)
    page.wait(f"document.querySelectorAll('.viewer .box').length === {left}")
    page.type(".confidence", "1")
    page.wait("document.querySelectorAll('.viewer .box').length === 0")
    assert "Nothing above 1.00; best: white cell 0.99." in page.text(".shown")
    assert page.requests() == []


def test_every_label_is_that_of_its_field(page, pictures):
    """`control` of a label is the first element in it that can have one: an output, too."""
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.click("Compare with…")
    other = page.js(
        """return [...document.querySelectorAll('label')].filter((one) => !one.control?.matches('input, select, textarea'))
        .map((one) => one.textContent)"""
    )
    assert other == []
    assert page.js("return document.querySelector('.confidence').labels.length") == 1


def test_chips_count_classes_and_hide_them(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    chips = page.js("return [...document.querySelectorAll('.chip')].map((one) => one.textContent)")
    isolated = [f"\u2068{name}\u2069 1" for name in showcase.NAMES[:4]]
    assert chips == isolated
    page.click(chips[1])
    page.wait("document.querySelectorAll('.viewer .box').length === 3")
    pressed = "return [...document.querySelectorAll('.chip')].map((one) => one.ariaPressed)"
    assert page.js(pressed) == ["true", "false", "true", "true"]
    assert "3 of 4 shown" in page.text(".shown") and "红细胞" not in page.text(".objects")


def test_list_and_drawing_point_at_each_other(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    hover = webdriver.ActionChains(page.browser)
    row = page.browser.find_elements("css selector", ".objects button")[2]
    hover.move_to_element(row).perform()
    page.wait("document.querySelectorAll('.box.strong').length === 1")
    strong = "document.querySelector('.box.strong rect.frame').getAttribute('stroke')"
    assert page.js(f"return {strong}") == "#d55e00"  # the colour of class 3
    box = page.browser.find_elements("css selector", ".viewer .box")[-1]
    hover.move_to_element(box).perform()
    page.wait("document.querySelector('.objects .strong')?.textContent.startsWith('white cell')")


def test_a_box_that_is_pointed_at_leads_its_list_to_the_row(page, pictures):
    page.open("try/crowd").see(pictures["plain.png"], 300)
    page.js(
        """const box = document.querySelector('.viewer .box'); // the last, below all others
        box.querySelector('.frame').dispatchEvent(new PointerEvent('pointermove', {bubbles: true}));"""
    )
    row = page.find(".objects .strong").rect
    shown = page.find(".objects").rect
    assert shown["y"] <= row["y"] <= shown["y"] + shown["height"] - row["height"]


def test_the_list_of_objects_is_one_stop_of_the_keyboard(page, pictures):
    page.open("try/crowd").see(pictures["plain.png"], 300)
    page.js("document.querySelector('.objects button').focus()")
    for keys, row in ((Keys.ARROW_DOWN * 2, 2), (Keys.ARROW_UP, 1)):
        page.browser.switch_to.active_element.send_keys(keys)
        rows = "[...document.querySelectorAll('.objects button')]"
        assert page.js(f"return {rows}.indexOf(document.activeElement)") == row
    page.browser.switch_to.active_element.send_keys(Keys.TAB)
    assert page.browser.switch_to.active_element.text == "PNG"


def test_a_tapped_object_is_pointed_at(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    box = page.browser.find_elements("css selector", ".viewer .box")[-1]
    finger = PointerInput("touch", "finger")
    webdriver.ActionChains(page.browser, devices=[finger]).click(box).perform()
    page.wait("document.querySelector('.objects .strong')?.textContent.startsWith('white cell')")


def overlaps(page):
    """How many pairs of labels cover each other."""
    spots = page.js(
        """return [...document.querySelectorAll('.viewer .label rect')].map((one) =>
        ['x', 'y', 'width', 'height'].map((name) => Number(one.getAttribute(name))))"""
    )
    x, y, wide, tall = np.array(spots).T[:, :, None]
    apart = (x + wide <= x.T + 0.01) | (y + tall <= y.T + 0.01)
    return len(spots), int((~(apart | apart.T)).sum() - len(spots)), set(tall[:, 0])


def test_labels_keep_out_of_each_others_way_at_one_size(page, pictures):
    page.open("try/crowd").see(pictures["plain.png"], 300)
    count, covered, heights = overlaps(page)
    assert count > 10 and covered == 0
    page.click("+")
    page.click("+")
    page.wait(
        "new DOMMatrix(getComputedStyle(document.querySelector('.viewer canvas')).transform).a > 1"
    )
    assert overlaps(page)[1:] == (0, heights)


def test_masks_are_filled_with_holes_and_an_opacity(page, pictures):
    page.open("try/rings").see(pictures["plain.png"], 2)
    truth = predict(page.address, pictures["plain.png"], "rings")["predictions"]
    drawn = page.js(
        "return [...document.querySelectorAll('.box path')].map((one) => [one.getAttribute('d').split('M').length - 1,"
        "getComputedStyle(one).fillRule, getComputedStyle(one).fillOpacity]).reverse()"
    )
    rings = [len(one.get("contours") or [one["contour"]]) for one in truth]
    assert drawn == [[count, "evenodd", "0.35"] for count in rings] and sorted(rings) == [1, 2]
    middle = """const path = [...document.querySelectorAll('.box path')].find((one) => one.getAttribute('d').split('M').length > 2),
        box = path.getBBox(), at = (x, y) => new DOMPoint(box.x + box.width * x, box.y + box.height * y);
        return [path.isPointInFill(at(0.5, 0.5)), path.isPointInFill(at(0.1, 0.5))];"""
    assert page.js(middle) == [False, True]
    page.type(".result label:nth-of-type(2) input", "0.8")
    page.wait("getComputedStyle(document.querySelector('.box path')).fillOpacity === '0.8'")


@pytest.mark.parametrize("name, size", [("tall.png", (200, 6000)), ("wide.png", (8000, 200))])
def test_tall_and_wide_pictures_are_whole_within_the_window(page, pictures, name, size):
    page.open("try/crowd").see(pictures[name], 300)
    frame, canvas = page.js(
        """return ['.viewer', '.viewer canvas'].map((name) => { const box =
        document.querySelector(name).getBoundingClientRect(); return [box.left, box.top, box.right, box.bottom]; })"""
    )
    assert frame[3] - frame[1] <= 0.7 * page.js("return innerHeight") + 1
    assert all(a <= b + 1 for a, b in zip(frame[:2], canvas[:2]))
    assert all(a >= b - 1 for a, b in zip(frame[2:], canvas[2:]))
    shown = (canvas[2] - canvas[0]) / (canvas[3] - canvas[1])
    assert shown == pytest.approx(size[0] / size[1], rel=0.05)


VIEW = "new DOMMatrix(getComputedStyle(document.querySelector('.viewer canvas')).transform)"


def test_zoom_pan_and_full_screen(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    view = VIEW
    fitted = page.wait(f"{view}.a")
    frame = page.browser.find_element("css selector", ".viewer")
    frame.send_keys("+")
    page.wait(f"Math.abs({view}.a / {fitted} - 1.4) < 0.01")
    before = page.js(f"return {view}.e")
    frame.send_keys(Keys.ARROW_LEFT)
    page.wait(f"{view}.e - {before} === 40")
    frame.send_keys("0")
    page.wait(f"Math.abs({view}.a - {fitted}) < 1e-3")
    page.browser.find_element("xpath", "//button[text()='Full screen']").click()
    page.wait("document.fullscreenElement?.className === 'viewer'")
    page.js("return document.exitFullscreen()")
    page.wait("!document.fullscreenElement")


def test_keys_of_the_browser_are_left_to_it(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.click("+")
    left = page.js(
        """return ['0', '+', '-', 'ArrowLeft'].flatMap((key) => ['ctrlKey', 'metaKey', 'altKey'].map((held) =>
        document.querySelector('.viewer').dispatchEvent(new KeyboardEvent('keydown', {key, [held]: true, cancelable: true}))));"""
    )
    assert left == [True] * 12


@pytest.mark.parametrize("name", ["plain.png", "wide.png"])
def test_a_double_click_and_the_wheel_enlarge_what_is_under_the_pointer(page, pictures, name):
    page.open("try/cells").see(pictures[name], 4)
    frame, (fitted, *_) = page.find(".viewer"), page.view()
    page.js(
        """document.querySelector('.viewer').addEventListener('pointermove', ({currentTarget, clientX, clientY}) => {
        const {left, top} = currentTarget.getBoundingClientRect(); window.pointer = [clientX - left, clientY - top]; });"""
    )
    at = [int(frame.size["width"] * -0.05), 3]  # where no box is
    webdriver.ActionChains(page.browser).move_to_element_with_offset(frame, *at).perform()
    place = page.wait("window.pointer")

    def under():
        scale, *corner = page.view()
        return [(one - first) / scale for one, first in zip(place, corner, strict=True)]

    before = under()
    webdriver.ActionChains(page.browser).double_click().perform()
    assert page.view()[0] / fitted == pytest.approx(2.5, rel=0.01)
    assert under() == pytest.approx(before, abs=2 / fitted)
    origin = ScrollOrigin.from_element(frame, *at)
    webdriver.ActionChains(page.browser).scroll_from_origin(origin, 0, -200).perform()
    page.wait(f"{VIEW}.a / {fitted} > 3")
    assert under() == pytest.approx(before, abs=2 / fitted)
    webdriver.ActionChains(page.browser).double_click(frame).perform()
    page.wait(f"Math.abs({VIEW}.a / {fitted} - 1) < 0.01")


def test_a_pressed_mouse_drags_the_picture_and_is_let_go_outside(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    frame = page.find(".viewer")

    def mouse():
        return webdriver.ActionChains(page.browser)

    # pressed in the whole picture, which there is no dragging, and released beside it
    mouse().move_to_element(frame).click_and_hold().perform()
    mouse().move_to_element(page.find("h2")).release().perform()
    mouse().move_to_element(page.find(".viewer .box")).perform()
    page.wait("document.querySelectorAll('.objects .strong').length === 1")
    page.click("+")
    _, *before = page.view()
    mouse().move_to_element_with_offset(frame, 20, 20).move_by_offset(40, 30).perform()
    assert page.view()[1:] == before
    mouse().click_and_hold().move_by_offset(-60, 20).release().move_by_offset(5, 5).perform()
    assert page.view()[1:] == pytest.approx([before[0] - 60, before[1] + 20], abs=1)


def test_a_classifier_of_1000_classes_shows_its_five_best_on_a_scale_of_0_to_1(page, pictures):
    page.open("try/thousand").take(pictures["plain.png"])
    page.wait("document.querySelectorAll('.barrow').length === 5")
    classes = predict(page.address, pictures["plain.png"], "thousand")["predictions"]
    best = sorted(classes, key=lambda one: -one["confidence"])[:5]
    shown = page.js(
        """return [...document.querySelectorAll('.barrow')].map((one) => [one.children[0].textContent,
        one.querySelector('i').getBoundingClientRect().width / one.querySelector('.track').clientWidth, one.children[2].textContent])"""
    )
    for (name, width, number), one in zip(shown, best, strict=True):
        assert (name, number) == (one["tag"]["name"], f"{one['confidence']:.3f}")
        assert width == pytest.approx(one["confidence"], abs=0.01)


def test_nothing_found_is_said(page, pictures):
    page.open("try/nothing").take(pictures["plain.png"])
    page.says("Nothing was found.", ".shown")


@pytest.mark.parametrize("name, size", [("scan.tif", [300, 200]), ("turned.jpg", [200, 400])])
def test_a_tiff_and_a_turned_picture_are_shown_upright(page, pictures, name, size):
    page.open("try/cells").see(pictures[name], 4)
    shown = (
        "return ['width', 'height'].map((name) => document.querySelector('.viewer canvas')[name])"
    )
    assert page.js(shown) == size


@pytest.mark.parametrize("late", ["scan.tif", "broken.jpg"])
def test_a_picture_that_is_read_late_is_not_taken_for_the_next(page, pictures, late):
    page.open("try/cells").hold("/preview")
    page.take(pictures[late])
    page.wait("window.asked.length === 1")
    page.see(pictures["plain.png"], 4)
    page.js("window.release()")
    page.wait("window.answered === 1")
    page.click("Send")
    page.wait("document.querySelector('.timing')")
    assert not page.js("return document.querySelector('#panel .error').checkVisibility()")
    assert page.js("return document.querySelector('.viewer').checkVisibility()")
    page.click("PNG", ".result")
    assert Image.open(io.BytesIO(page.saved("plain-seen.png"))).size == (640, 480)


def test_a_tiff_larger_than_its_preview_has_its_own_pixels(page, pictures):
    page.open("try/cells").see(pictures["large.tif"], 4)
    bound = predict(page.address, pictures["large.tif"])["predictions"][0]["bound"]
    wanted = [bound[0][0] * 2000, bound[0][1] * 1000]

    def corner(name):
        first, *_ = csv.DictReader(io.StringIO(page.saved(name).decode()))
        return [float(first["left"]), float(first["top"])]

    page.click("CSV", ".result")
    assert corner("large.csv") == pytest.approx(wanted, abs=0.01)
    page.click("PNG", ".result")
    assert Image.open(io.BytesIO(page.saved("large-seen.png"))).size == (2000, 1000)
    page.click("What the model is shown")
    page.says("2000×1000 pixels", ".preview")
    page.take(pictures["large.tif"], pictures["plain.png"])
    page.says("2 of 2 done")
    page.click("CSV", "#panel .card")
    assert corner("pictures.csv") == pytest.approx(wanted, abs=0.01)


def test_a_file_that_is_dropped_beside_the_box_leaves_the_page_where_it_is(page):
    page.open("try/cells")
    refused = page.js(
        """const file = new DataTransfer(), text = new DataTransfer();
        file.items.add(new File(['x'], 'x.txt')); text.setData('text/plain', 'x');
        return ['dragover', 'drop'].flatMap((kind) => [file, text].map((dataTransfer) =>
        !document.querySelector('h1').dispatchEvent(new DragEvent(kind, {dataTransfer, bubbles: true, cancelable: true}))));"""
    )
    assert refused == [True, False, True, False]


def test_a_sample_that_cannot_be_had_is_said_where_it_is_pressed(page):
    page.open("try/crowd")
    page.js(
        """const real = window.fetch;
        window.fetch = (...of) => real(String(of[0]).replace('/samples/', '/samples/no-'), of[1]);"""
    )
    page.go("try/cells")
    page.wait("document.querySelector('.sample')?.textContent")
    page.find(".sample").click()
    page.says("has no sample 'no-", "#panel .error:not(:empty)")
    page.says("Request ", "#panel .error:not(:empty)")


def test_a_sample_that_comes_after_its_panel_was_left_is_not_asked_about(page, pictures):
    page.open("try/crowd").hold("/samples/")
    page.go("try/cells")
    page.wait("window.asked.length === 10")
    page.find(".sample").click()
    page.go("try/crowd")
    page.requests()
    page.js("window.release()")
    page.wait("window.answered === 10")
    page.see(pictures["plain.png"], 300)
    asked = [url for url in page.requests() if url.endswith("/predict")]
    assert asked == [f"{page.address}/crowd/predict"]


def test_dropped_and_pasted_pictures_are_taken(page, pictures):
    """Dispatched as events, since a driver has no other program to drop or copy from."""
    page.open("try/cells")
    for kind, name in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        page.js(
            """const [bytes, kind, name] = arguments, data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, {type: 'image/png'}));
            const event = new Event(kind, {bubbles: true, cancelable: true});
            Object.defineProperty(event, name, {value: data});
            document.querySelector('#panel .drop').dispatchEvent(event);""",
            list(pictures["plain.png"].read_bytes()),
            kind,
            name,
        )
        page.wait("document.querySelectorAll('.viewer .box').length === 4")
        assert page.js("return document.querySelector('.viewer canvas').width") == 640
        page.go("try/crowd").go("try/cells")


def test_a_picture_is_pasted_into_the_form_of_a_model_and_not_into_a_text(page, pictures):
    page.open("try/grey")
    page.wait("document.querySelector('#panel .drop')")
    for place in (".body", ".list input", "#panel h2"):
        page.paste(place, pictures["plain.png"], f"into {place}")
    page.says("into #panel h2: 8 × 8 of 640 × 480 pixels", "#panel .drop")


def test_a_picture_is_pasted_after_the_slider_was_moved(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.paste(".confidence", pictures["tall.png"])
    page.wait("document.querySelector('.viewer canvas').width !== 640")


def test_who_leaves_an_entry_lets_what_it_holds_go(page):
    page.open("try/%2Fecho")
    page.js("window.zone = new WeakRef(document.querySelector('#panel .drop'))")
    page.go("try/table")
    page.wait("document.querySelector('#panel .body')?.value")

    def gone():
        page.browser.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        return page.js("return !window.zone.deref()")

    until(gone)


def test_a_broken_picture_leaves_nothing_of_the_last_one(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.take(pictures["broken.jpg"])
    page.says("not an image of a known format", "#panel .error:not(:empty)")
    assert page.js("return !document.querySelector('.viewer').checkVisibility()")
    page.take(pictures["plain.png"])
    page.wait("document.querySelectorAll('.viewer .box').length === 4")
    assert page.js("return !document.querySelector('#panel .error').checkVisibility()")


def test_a_version_and_a_label_are_asked_for(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    for value in ("version_label=canary", "version=2"):
        page.choose("Version", value)
        page.wait("document.querySelectorAll('.viewer .box').length === 3")
        truth = predict(page.address, pictures["plain.png"], query=f"?{value}")
        assert page.answer == truth
        page.choose("Version", "")
        page.wait("document.querySelectorAll('.viewer .box').length === 4")


def test_routines_are_fields_in_an_order_that_can_be_changed(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    for name in ("TopK", "FilterConfidence"):
        page.choose("Routine", name)
    page.type(".routines li:nth-child(1) input", "3")
    page.type(".routines li:nth-child(2) input", "0.6")
    page.js("document.querySelector(`[aria-label='Later: TopK']`).click()")
    chain = [
        {"name": "FilterConfidence", "arguments": {"confidence": 0.6}},
        {"name": "TopK", "arguments": {"k": 3}},
    ]
    names = "[...document.querySelectorAll('.routines strong')].map((one) => one.textContent)"
    assert page.js(f"return {names}") == [one["name"] for one in chain]
    page.click("Send")
    page.wait("document.querySelectorAll('.viewer .box').length === 2")
    truth = predict(page.address, pictures["plain.png"], routines=json.dumps(chain))
    assert page.answer == truth
    page.js("document.querySelector(`[aria-label='Remove FilterConfidence']`).click()")
    page.click("Send")
    page.wait("document.querySelectorAll('.viewer .box').length === 3")


def test_what_the_model_is_shown(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.choose("Routine", "Crop")
    for number, value in enumerate((0.25, 0, 0.75, 1), 1):
        page.type(f".routines label:nth-of-type({number}) input", value)
    page.choose("Routine", "Grayscale")
    page.click("What the model is shown")
    page.wait("document.querySelector('.preview canvas')?.width === 320")
    pixels = page.js(
        """const canvas = document.querySelector('.preview canvas');
        return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data]"""
    )
    red, green, blue, _ = np.array(pixels).reshape(-1, 4).T
    source = Image.open(pictures["plain.png"]).convert("L").crop((160, 0, 480, 1))
    assert (red == green).all() and (green == blue).all()
    assert np.abs(red - np.asarray(source)[0]).max() <= 2


def test_a_tall_picture_that_the_model_is_shown_fits_the_window(page, pictures):
    page.open("try/cells").see(pictures["tall.png"], 4)
    page.click("What the model is shown")
    page.wait("document.querySelector('.preview canvas')")
    shown = page.find(".preview canvas").rect
    assert shown["height"] <= page.js("return innerHeight")
    drawn = page.js(
        "const one = document.querySelector('.preview canvas'); return one.width / one.height"
    )
    assert shown["width"] / shown["height"] == pytest.approx(drawn, rel=0.05)


def test_the_preview_of_resize_and_tile_is_asked_once_for_what_is_typed(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.click("What the model is shown")
    page.wait("document.querySelector('.preview canvas')?.width === 640")
    page.choose("Routine", "Resize")
    page.says("expected 'width', 'height' or both", ".preview .error")
    page.says("Request ", ".preview .error")
    page.requests()
    page.find(".routines input").send_keys("320")
    page.says("320×240 pixels", ".preview")
    asked = [url for url in page.requests() if url.endswith("/preview")]
    assert len(asked) == 1
    page.js("document.querySelector(`[aria-label='Remove Resize']`).click()")
    page.choose("Routine", "Tile")
    page.type(".routines input", "320")
    outlined = """[[0, 0], [100, 100]].map(([x, y]) => [...document.querySelector('.preview canvas')
        .getContext('2d').getImageData(x, y, 1, 1).data.slice(0, 3)].join() === '230,60,60')"""
    page.wait("document.querySelector('.preview canvas')?.width === 640")
    page.wait(f"{outlined}[0]")
    assert page.js(f"return {outlined}") == [True, False]


def differences(left, right):
    """Those of two lists of predictions, as a list of rows; and how many are the same."""

    def overlap(one, other):
        (a, b), (c, d) = (
            (np.array(each["bound"][0]), np.array(each["bound"][2])) for each in (one, other)
        )
        both = np.prod(np.clip(np.minimum(b, d) - np.maximum(a, c), 0, None))
        return both / (np.prod(b - a) + np.prod(d - c) - both)

    free, rows, same = list(right), [], 0
    for one in sorted(left, key=lambda one: -one["confidence"]):
        own = [
            other
            for other in free
            if other["tag"]["name"] == one["tag"]["name"] and overlap(one, other) >= 0.5
        ]
        if not own:
            rows.append((one["tag"]["name"], "only left"))
            continue
        best = max(own, key=lambda other: overlap(one, other))
        free.remove(best)
        change, place = best["confidence"] - one["confidence"], overlap(one, best)
        told = [f"{change:+.3f}"] * (abs(change) >= 0.0005)
        told += [f"moved (IoU {place:.2f})"] * (place < 0.99)
        same += not told
        rows += [(one["tag"]["name"], ", ".join(told))] if told else []
    return rows + [(other["tag"]["name"], "only right") for other in free], same


DIFFERENCES = """return [...document.querySelectorAll('.differences tr')].slice(1).map((one) =>
    [one.firstChild.textContent, one.lastChild.textContent])"""


def test_two_deployments_are_compared_on_one_picture(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.click("Compare with…")
    page.choose("Deployment", "crowd", "#panel details")
    page.click("Compare")
    both = [
        predict(page.address, pictures["plain.png"], name)["predictions"]
        for name in ("cells", "crowd")
    ]
    rows, same = differences(*both)
    page.says(f"{len(rows)} differences, {same} the same")
    assert [tuple(row) for row in page.js(DIFFERENCES)] == rows
    assert page.boxes == 4 + 300 and "Left: cells · right: crowd" in page.text("#panel")


def test_a_box_that_has_moved_is_a_difference(page, pictures):
    """Half as high, which is an intersection over union of 0.5; each other box is where it was."""
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.js(
        """const real = window.fetch; window.fetch = async (...of) => { const response = await real(...of);
        if (!String(of[0]).includes('/predict')) return response;
        const all = await response.json(), {bound} = all.predictions[0];
        for (const point of bound) point[1] = Math.min(point[1], (bound[0][1] + bound[2][1]) / 2);
        return new Response(JSON.stringify(all), {headers: response.headers}); };"""
    )
    page.click("Compare with…")
    page.click("Compare")
    page.says("1 differences, 3 the same")
    assert page.js(DIFFERENCES) == [[showcase.NAMES[0], "moved (IoU 0.50)"]]


def test_a_comparison_that_is_closed_leaves_nothing_and_classes_have_no_divider(page, pictures):
    divider = """[...document.querySelectorAll('#panel label')].find((one) =>
        one.textContent.startsWith('Divider')).checkVisibility()"""
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.click("Compare with…")
    page.choose("Deployment", "crowd", "#panel details")
    page.click("Compare")
    page.wait_for_boxes(4 + 300)
    assert page.js(f"return {divider}")
    page.click("Compare with…")
    page.wait_for_boxes(4)
    assert not page.js("return document.querySelector('.divider').checkVisibility()")
    page.go("try/thousand").take(pictures["plain.png"])
    page.wait("document.querySelectorAll('.barrow').length === 5")
    page.click("Compare with…")
    page.click("Compare")
    page.says("No difference: 1000 the same")
    assert not page.js(f"return {divider}")


def test_an_answer_is_compared_with_that_before_a_routine(page, pictures):
    page.open("try/cells")
    page.choose("Routine", "TopK")
    page.type(".routines input", "2")
    page.see(pictures["plain.png"], 2)
    page.click("Compare with…")
    page.choose("Routines", "without", "#panel details")
    page.click("Compare")
    page.says("2 differences, 2 the same")
    assert page.js(DIFFERENCES) == [[name, "only right"] for name in showcase.NAMES[2:4]]
    assert "without the request's routines" in page.text("#panel")


def test_a_comparison_is_with_what_was_asked_whatever_is_chosen_since(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.choose("Routine", "TopK")
    page.type(".routines input", "2")
    page.click("Compare with…")
    page.click("Compare")
    page.says("No difference: 4 the same")
    page.take(pictures["plain.png"], pictures["plain.png"])
    page.says("2 of 2 done")
    page.js("document.querySelector(`[aria-label='Remove TopK']`).click()")
    page.find(".gallery button").click()
    page.wait_for_boxes(2)
    page.click("Compare")
    page.says("No difference: 2 the same")


def test_who_leaves_ends_a_comparison_and_an_export(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.click("Compare with…")
    page.hold("/predict")
    page.click("Compare")
    page.wait("window.asked.length === 1")
    page.go("try/crowd")
    assert page.js("return window.asked[0].signal.aborted")
    page.open("try/cells").take(pictures["plain.png"], pictures["turned.jpg"])
    page.says("2 of 2 done")
    page.hold("format=coco")
    page.click("COCO", "#panel .card")
    page.wait("window.asked.length === 1")
    page.go("try/crowd")
    assert page.js("return window.asked[0].signal.aborted")


def test_two_versions_are_compared_on_one_picture(page, pictures):
    page.open("try/cells").see(pictures["plain.png"], 4)
    page.click("Compare with…")
    page.choose("Version", "version=2", "#panel details")
    page.click("Compare")
    page.says("4 differences, 0 the same")
    rows = page.js(
        "return [...document.querySelectorAll('.differences tr')].slice(1).map((one) => [...one.children].map((each) => each.textContent))"
    )
    changed = [[name, f"{old:.3f}", f"{old + 0.02:.3f}", "+0.020"]
               for name, old in zip(showcase.NAMES, (0.9, 0.7, 0.5))]  # fmt: skip
    assert rows == [*changed, [showcase.NAMES[3], "0.310", "–", "only left"]]
    page.type("#panel details input[type=range]", "0.25")
    wide = "document.querySelector('.viewer').clientWidth"
    page.wait(f"Math.abs(document.querySelector('.divider').offsetLeft / {wide} - 0.25) < 0.01")


def test_a_late_answer_is_not_drawn_over_the_next_picture(page, slow, pictures):
    """The slow model's answer comes after another deployment has been chosen."""
    page.open("try/slow")
    with slow.held():
        page.take(pictures["plain.png"])
        page.says("Waiting")
        page.go("try/cells").see(pictures["plain.png"], 4)
    time.sleep(0.3)
    assert page.boxes == 4 and page.answer["predictions"][0]["confidence"] == pytest.approx(0.9)


def test_a_gallery_asks_three_at_a_time_filters_and_is_saved(page, pictures):
    page.open("try/cells")
    page.js(
        """const real = window.fetch, open = new Promise((done) => (window.release = done)); window.most = 0; let now = 0;
        window.fetch = async (...of) => { if (!String(of[0]).endsWith('/predict')) return real(...of);
        window.most = Math.max(window.most, ++now); await open; return real(...of).finally(() => (now -= 1)); };"""
    )
    names = ["plain.png", "scan.tif", "turned.jpg", "tall.png", "wide.png", "broken.jpg"]
    page.take(*(pictures[name] for name in names))
    page.wait("window.most === 3")
    page.js("window.release()")
    page.says("6 of 6 done, 1 failed")
    assert page.js("return window.most") == 3
    page.click("CSV", "#panel .card")
    rows = list(csv.DictReader(io.StringIO(page.saved("pictures.csv").decode())))
    assert [one["picture"] for one in rows] == [name for name in names[:5] for _ in range(4)]
    first = predict(page.address, pictures["plain.png"])["predictions"][0]
    assert (rows[0]["name"], float(rows[0]["confidence"])) == ("white cell", first["confidence"])
    corner = [float(rows[0]["left"]) / 640, float(rows[0]["top"]) / 480]
    assert corner == pytest.approx(first["bound"][0], abs=1e-3)
    page.click("COCO", "#panel .card")
    page.saved("coco.json")
    coco = COCO(page.folder / "coco.json")
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == names[:5]
    assert len(coco.getAnnIds()) == 20
    page.type("#panel .card input[type=search]", "scan")
    rows = "[...document.querySelectorAll('.gallery li')].filter((one) => one.checkVisibility()).length"
    assert page.js(f"return {rows}") == 1
    page.click("PNG", "#panel .card")
    saved = Image.open(io.BytesIO(page.saved("scan-seen.png")))
    assert saved.size == (300, 200) and saved.getpixel((30, 60)) != saved.getpixel((60, 60))
    page.js("document.querySelector('.gallery li:not([hidden]) button').click()")
    page.wait("document.querySelectorAll('.viewer .box').length === 4")


def test_a_gallery_keeps_thumbnails_alone(page, pictures):
    page.open("try/cells")
    page.js(
        """const real = window.createImageBitmap, paint = CanvasRenderingContext2D.prototype.drawImage;
        Object.assign(window, {made: [], largest: 0});
        window.createImageBitmap = async (...of) => { const made = await real(...of); window.made.push(made); return made; };
        CanvasRenderingContext2D.prototype.drawImage = function (...of) {
        window.largest = Math.max(window.largest, this.canvas.width, this.canvas.height); return paint.apply(this, of); };"""
    )
    page.take(pictures["tall.png"], pictures["wide.png"], pictures["large.tif"])
    page.says("3 of 3 done")
    assert page.js("return window.made.map((one) => one.width)") == [0, 0, 0], "they are closed"
    assert page.js("return window.largest") <= 240
    page.click("PNG", "#panel .card")
    assert Image.open(io.BytesIO(page.saved("wide-seen.png"))).size == (8000, 200)
    page.find(".gallery li:nth-child(2) button").click()
    page.wait_for_boxes(4)
    assert page.js("return document.querySelector('.viewer canvas').width") == 8000


def test_a_gallery_of_a_classifier_is_filtered_by_its_best_class(page, pictures):
    best, *_, last = predict(page.address, pictures["plain.png"], "thousand")["predictions"]
    page.open("try/thousand").take(pictures["plain.png"], pictures["tall.png"])
    page.says("2 of 2 done")
    rows = "[...document.querySelectorAll('.gallery li')].filter((one) => one.checkVisibility())"
    for sought, many in ((best, 2), (last, 0)):
        page.type("#panel .card input[type=search]", sought["tag"]["name"])
        assert page.js(f"return {rows}.length") == many


def test_many_pictures_are_all_saved_at_one_press(page, tmp_path):
    files = [tmp_path / f"photo{n:02}.jpg" for n in range(12)]
    for file in files:
        showcase.scene(64, 48).save(file)
    page.open("try/cells").take(*files)
    page.says("12 of 12 done")
    page.click("PNG", "#panel .card")
    page.says("12 of 12 given to the browser")
    for file in files:
        page.saved(f"{file.stem}-seen.png")


def test_pictures_are_saved_once_and_no_more_when_the_gallery_is_left(page, pictures, tmp_path):
    files = [tmp_path / f"photo{n:02}.jpg" for n in range(12)]
    for file in files:
        showcase.scene(64, 48).save(file)
    page.open("try/cells").take(*files)
    page.says("12 of 12 done")
    page.js(
        """window.saved = [];
        HTMLAnchorElement.prototype.click = function () { window.saved.push(this.download); };"""
    )
    page.click("PNG", "#panel .card")
    page.click("PNG", "#panel .card")
    page.wait("window.saved.length > 2")
    page.go("try/crowd").go("try/cells")
    before = page.js("return window.saved")
    page.take(pictures["plain.png"], pictures["turned.jpg"])
    page.says("2 of 2 done")
    page.click("PNG", "#panel .card")
    page.says("2 of 2 given to the browser")
    assert page.js("return window.saved") == [*before, "plain-seen.png", "turned-seen.png"]
    assert len(set(before)) == len(before) < 12


def test_coco_is_what_was_seen_whatever_is_chosen_since(page, pictures):
    page.open("try/cells")
    page.choose("Routine", "TopK")
    page.type(".routines input", "1")
    page.choose("Version", "version=2")
    page.take(pictures["plain.png"], pictures["turned.jpg"])
    page.says("2 of 2 done")
    page.choose("Version", "")
    page.js("document.querySelector(`[aria-label='Remove TopK']`).click()")
    page.requests()
    for asked in (2, 0):  # the second time it is known
        page.click("COCO", "#panel .card")
        coco = json.loads(page.saved("coco.json"))
        (page.folder / "coco.json").unlink()
        assert [one["score"] for one in coco["annotations"]] == [pytest.approx(0.92)] * 2
        assert len([url for url in page.requests() if "format=coco" in url]) == asked


def test_a_picture_of_a_gallery_that_is_opened_early_gets_its_answer(page, slow, pictures):
    page.open("try/slow")
    with slow.held():
        page.take(pictures["plain.png"], pictures["turned.jpg"])
        page.wait("document.querySelector('.gallery canvas')?.width === 240")
        page.find(".gallery button").click()
        page.wait("document.querySelector('.viewer').checkVisibility()")
        assert page.boxes == 0
    page.wait_for_boxes(4)


def test_a_gallery_is_stopped_and_its_errors_have_a_request_id(page, slow, pictures):
    page.open("try/slow")
    names = ["plain.png", "tall.png", "wide.png", "turned.jpg", "scan.tif"]
    with slow.held():
        page.take(*(pictures[name] for name in names))
        page.says("0 of 5 done")
        page.click("Stop", "#panel .card")
        page.says("0 of 5 done, 5 stopped")
        listed = "[...document.querySelectorAll('.gallery li')].map((one) => one.innerText.trim())"
        assert page.js(f"return {listed}") == [f"{name}: stopped" for name in names]
    page.find(".gallery li:nth-child(5) button").click()  # each that was stopped can be had
    page.wait_for_boxes(4)
    page.says("1 of 5 done, 4 stopped")
    assert page.js(f"return {listed}")[4] == "scan.tif: 4 found"
    with slow.held():
        page.click("Close", "#panel .card")
        page.take(pictures["broken.jpg"], pictures["broken.jpg"])
        page.says("2 of 2 done, 2 failed")
    told = page.js("return document.querySelector('.gallery span').title")
    stats = requests.get(f"{page.address}/stats", headers=bearer(KEY)).json()
    assert told.rpartition("Request ")[2] in {one["request_id"] for one in stats["last_errors"]}


def test_one_picture_is_saved_as_png_and_csv_without_formulas(page, pictures):
    page.open("try/crowd").see(pictures["plain.png"], 300)
    page.click("CSV", ".result")
    rows = list(csv.DictReader(io.StringIO(page.saved("plain.csv").decode())))
    assert len(rows) == 300 and {one["name"] for one in rows} == set(showcase.NAMES)
    page.click("PNG", ".result")
    drawn = np.asarray(Image.open(io.BytesIO(page.saved("plain-seen.png"))).convert("RGB"), int)
    plain = np.asarray(Image.open(pictures["plain.png"]), int)
    assert drawn.shape == plain.shape and 0.05 < (np.abs(drawn - plain).max(-1) > 30).mean() < 0.6


def test_the_camera_takes_one_picture_or_one_after_the_other(page):
    page.open("try/cells")
    page.js(
        """const real = window.fetch; window.most = window.calls = 0; let now = 0;
        window.fetch = (...of) => { window.calls += 1; window.most = Math.max(window.most, ++now); return real(...of).finally(() => (now -= 1)); };"""
    )
    page.click("Camera")
    page.wait("document.querySelector('video').videoWidth > 0")
    page.click("Take a picture")
    page.wait("document.querySelectorAll('.viewer .box').length === 4")
    page.js("window.most = window.calls = 0")
    page.click("Live")
    page.says("fps")
    page.wait("window.calls > 5")
    assert page.js("return window.most") == 1
    page.js("document.querySelector('.chip').click()")
    page.wait_for_boxes(3)
    calls = page.js("return window.calls")
    page.wait(f"window.calls > {calls + 2}")
    assert (
        page.boxes == 3 and page.js("return document.querySelector('.chip').ariaPressed") == "false"
    )
    page.click("Close the camera")
    page.wait("!document.querySelector('video').checkVisibility()")


def test_live_moves_and_announces_nothing_and_has_one_request_in_flight(page):
    page.open("try/cells")
    page.click("Camera")
    page.wait("document.querySelector('video').videoWidth > 0")
    page.click("Take a picture")
    page.wait_for_boxes(4)
    page.click("What the model is shown")
    page.wait("document.querySelector('.preview canvas')")
    page.click("Live")
    page.says("fps")
    page.js(
        """const real = window.fetch; let now = 0;
        Object.assign(window, {most: 0, previews: 0, seen: new Set()});
        window.fetch = (...of) => { window.most = Math.max(window.most, ++now);
        window.previews += String(of[0]).endsWith('/preview'); return real(...of).finally(() => (now -= 1)); };
        const send = document.querySelector('.send'), stop = send.nextSibling, timed = document.querySelector('.timing').parentElement;
        new MutationObserver(() => window.seen.add([send.disabled, stop.hidden, stop.nextSibling.textContent, timed.children.length].join())).observe(
        document.querySelector('#panel'), {childList: true, subtree: true, attributes: true});"""
    )
    page.wait("window.previews > 5")
    assert page.js("return [window.most, ...window.seen]") == [1, "true,false,,1"]
    page.find(".send + button").click()
    page.wait("document.activeElement === document.querySelector('.send')")
    assert page.js("return !document.querySelector('.send + button').checkVisibility()")
    page.click("Close the camera")


def test_live_that_is_switched_off_and_on_at_once_goes_on_alone(page):
    page.open("try/cells")
    page.js(
        """const real = window.fetch; window.calls = window.aborted = 0;
        window.fetch = (...of) => { window.calls += 1; return real(...of).catch((error) => { window.aborted += 1; throw error; }); };"""
    )
    page.click("Camera")
    page.wait("document.querySelector('video').videoWidth > 0")
    page.click("Live")
    page.wait("window.calls > 2")
    page.js(
        """const live = [...document.querySelectorAll('button')].find((one) => one.textContent === 'Live');
        live.click(); live.click();"""
    )
    page.wait("window.calls > 6")
    page.js("window.calls = window.aborted = 0")
    page.wait("window.calls > 6")
    assert page.js("return window.aborted") == 0
    page.click("Close the camera")


def test_a_camera_that_is_gone_ends_live_and_is_said(page):
    page.open("try/cells")
    page.click("Camera")
    page.wait("document.querySelector('video').videoWidth > 0")
    page.click("Live")
    page.says("fps")
    page.hold("/predict")  # a picture is on its way
    page.wait("window.asked.length")
    page.js(
        "document.querySelector('video').srcObject.getVideoTracks()[0].dispatchEvent(new Event('ended'))"
    )
    page.js("window.release()")
    page.says("The camera has gone.", "#panel .error:not(:empty)")
    calls = page.js("return window.asked.length")
    page.wait("!document.querySelector('video').checkVisibility()")
    time.sleep(0.3)
    assert page.js("return window.asked.length") == calls
    assert page.text("#panel .error:not(:empty)") == "The camera has gone."


PRESSED = (
    "[...document.querySelectorAll('button')].find((one) => one.textContent === 'Live').ariaPressed"
)


@pytest.mark.parametrize("way", ["file", "sample", "paste", "gallery", "Stop"])
def test_another_picture_and_stop_end_live(page, pictures, way):
    page.open("try/cells")
    if way == "gallery":
        page.take(pictures["tall.png"], pictures["plain.png"])
        page.says("2 of 2 done")
    page.click("Camera")
    page.wait("document.querySelector('video').videoWidth > 0")
    page.click("Live")
    page.says("fps")
    camera = page.js("return document.querySelector('.viewer canvas').height")
    if way == "file":
        page.take(pictures["tall.png"])
    elif way == "paste":
        page.paste("body", pictures["tall.png"])
    elif way == "Stop":
        page.hold("/predict")
        page.wait("window.asked.length")
        page.click("Stop")
    else:
        page.find(f".{way} button, button.{way}").click()
    page.wait(f"{PRESSED} === 'false'")
    if way == "Stop":
        assert page.js("return window.asked.length") == 1
    else:
        page.wait(f"document.querySelector('.viewer canvas').height !== {camera}")
        page.wait_for_boxes(4)
    page.click("Close the camera")


def test_the_camera_is_asked_for_once_and_let_go_by_who_leaves(page):
    page.open("try/cells")
    page.js(
        """const {mediaDevices} = navigator, real = mediaDevices.getUserMedia.bind(mediaDevices), open = new Promise((done) => (window.release = done));
        window.streams = []; window.questions = 0;
        mediaDevices.getUserMedia = async (...of) => { window.questions += 1; await open; const stream = await real(...of); window.streams.push(stream); return stream; };"""
    )
    page.click("Camera")
    page.click("Camera")
    assert page.js("return window.questions") == 1
    page.go("try/crowd")
    page.js("window.release()")
    page.wait("window.streams[0]?.getTracks().every((one) => one.readyState === 'ended')")


# --- models, pipelines, handlers -----------------------------------------------------------------


def ask_model(address, name, body):
    url = f"{address}/v1/models/{name}:predict"
    return requests.post(url, json.dumps(body), headers=bearer(KEY)).json()


def test_every_form_begins_with_an_example_that_works(page):
    page.open()
    names = [
        "add_one",
        "table",
        "texts",
        "grey",
        "cube",
        "planes",
        "encoded",
        "vectorized",
        "odd",
        "single",
        "changed",
    ]
    for name in (*names, "pipelines/diamond", "models/cells"):
        page.go(f"try/{name}")
        page.wait("document.querySelector('#panel .body')?.value")
        page.click("Send")
        page.says('"outputs"', "#panel")
        assert page.js("return !document.querySelector('#panel .error').checkVisibility()")


def test_a_table_takes_pasted_csv_and_its_answer_is_a_chart_and_a_table(page):
    page.open("try/table")
    page.wait("document.querySelector('.fields textarea')?.value")
    page.type(".fields textarea", "1,2,3,4\n0.5\t0\t0\t0")
    page.click("Send")
    page.says('"outputs"')
    truth = ask_model(page.address, "table", {"inputs": [[1, 2, 3, 4], [0.5, 0, 0, 0]]})
    assert page.answer == truth
    cells = page.js(
        "return [...document.querySelectorAll('#panel tbody tr')].map((one) => [...one.children].map((each) => Number(each.textContent)))"
    )
    assert cells == [[n, *row] for n, row in enumerate(truth["outputs"])]
    page.type(".fields textarea", "1,2,3")
    assert "Row 1 has 3 values, expected 4" in page.text(".fields")
    page.type(".fields textarea", "1,2,3,four")
    assert "“four” is not a valid float" in page.text(".fields")
    page.type(".fields textarea", "3,2,1,0")
    page.click("Send")
    page.wait("document.querySelectorAll('.barrow').length === 3")


@pytest.mark.parametrize(
    ("answer", "rows", "bars"),
    [
        ([[[n, -n, 1] for n in range(50)]], [[n, n, -n, 1] for n in range(50)], []),
        (
            [[n * 5 % 1001 / 1e3 for n in range(1001)]],
            None,
            sorted(range(1001), key=lambda n: -(n * 5 % 1001))[:5],
        ),
    ],
)
def test_a_batch_of_one_is_a_table_and_of_many_numbers_the_greatest_are_a_chart(
    page, answer, rows, bars
):
    page.open("try/table")
    page.wait("document.querySelector('#panel .body')?.value")
    page.js(
        """const real = window.fetch, all = JSON.stringify({outputs: arguments[0]});
        window.fetch = (...of) => String(of[0]).endsWith(':predict') ? Promise.resolve(new Response(all, {headers: {'Content-Type': 'application/json'}})) : real(...of);""",
        answer,
    )
    page.click("Send")
    page.wait("document.querySelector('#panel tbody tr')")
    cells = "return [...document.querySelectorAll('#panel tbody tr')].map((one) => [...one.children].map((each) => Number(each.textContent)))"
    assert rows in (None, page.js(cells))
    names = "return [...document.querySelectorAll('.barrow')].map((one) => Number(one.firstChild.textContent))"
    assert page.js(names) == bars


@pytest.mark.parametrize(
    ("typed", "sent", "told"),
    [
        ("1,,3,4", '[[1,"",3,4]]', "“” is not a valid float"),
        ("1,2,3,4\n\n5,6,7,8\n", '[[1,2,3,4],[""],[5,6,7,8]]', "“” is not a valid float"),
        ("1\t\t3\t4", '[[1,"",3,4]]', "“” is not a valid float"),
        ("NaN; -Infinity; 1e3 ;2", "[[NaN,-Infinity,1000,2]]", ""),
        ("1e400,2,3,4", '[["1e400",2,3,4]]', "“1e400” is not a valid float"),
        ("1,2,3,four", '[[1,2,3,"four"]]', "“four” is not a valid float"),
        ("", "[]", ""),
        ("a,b,c,d\n1,2,3,4", "[[1,2,3,4]]", "The first line is left out, as a header."),
        ("a,b,c,1\n1,2,3,4", '[["a","b","c",1],[1,2,3,4]]', "“a” is not a valid float"),
        ("NaN,NaN,NaN,NaN\n1,2,3,4", "[[NaN,NaN,NaN,NaN],[1,2,3,4]]", ""),
    ],
)
def test_what_is_sent_is_what_a_table_shows(page, typed, sent, told):
    """Nothing is left out, moved or turned into another number: the server refuses what is wrong."""
    page.open("try/table")
    page.wait("document.querySelector('.fields textarea')?.value")
    page.type(".fields textarea", typed)
    assert page.js("return document.querySelector('#panel .body').value") == f'{{"inputs":{sent}}}'
    assert page.text(".fields [role=status]") == told


def test_json_that_is_marked_as_wrong_is_what_is_sent(page):
    page.open("try/cube")
    page.wait("document.querySelector('.fields textarea')?.value")
    page.type(".fields textarea", "[[[1,2],[3,4]]")
    assert page.text(".fields [role=status]")
    assert page.js("return document.querySelector('#panel .body').value.endsWith('[3,4]]}')")
    page.type(".fields textarea", "[[[NaN,1]]]")
    assert page.text(".fields [role=status]") == ""


def test_after_an_answer_the_keyboard_is_where_it_was_and_the_answer_is_told(page):
    page.open("try/add_one")
    page.wait("document.querySelector('#panel .body')?.value")
    page.js("document.querySelector('.send').focus()")
    page.browser.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait("document.querySelector('.send ~ * [role=status]').textContent === 'Answered.'")
    assert page.js("return document.activeElement === document.querySelector('.send')")


def test_texts_are_lines_and_signatures_are_chosen(page):
    page.open("try/texts")
    page.wait("document.querySelector('.fields textarea')?.value")
    page.type(".fields textarea", "one\nزوج")
    page.click("Send")
    page.says("ONE")
    assert page.answer["outputs"]["upper"] == ["ONE", "زوج"]
    page.choose("Signature", "lengths")
    page.click("Send")
    page.wait("!document.querySelector('#panel').innerText.includes('upper')")
    body = json.loads(page.js("return document.querySelector('#panel .body').value"))
    assert body["signature_name"] == "lengths" and page.answer == ask_model(
        page.address, "texts", body
    )


@pytest.mark.parametrize(
    ("name", "label", "value"),
    [
        ("texts", "Signature", "lengths"),
        ("changed", "Version", "/versions/1"),
        ("models/cells", "Version", "/versions/2"),
    ],
)
def test_an_answer_goes_with_the_form_or_version_that_gave_it(page, name, label, value):
    page.open(f"try/{name}")
    page.wait("document.querySelector('#panel .body')?.value")
    page.click("Send")
    page.says('"outputs"')
    page.choose(label, value)
    page.wait("!document.querySelector('#panel').innerText.includes('outputs')")
    assert page.text("#panel .timing") == page.text("#panel h3") == ""


def test_a_tensor_of_pictures_takes_a_picture(page, tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (20, 30), (51, 51, 51)).save(path)
    page.open("try/grey")
    page.wait("document.querySelector('#panel .drop input')")
    page.take(path)
    page.says("one.png")
    page.click("Send")
    page.says('"outputs"')
    assert page.answer["outputs"] == [pytest.approx(0.2, abs=1e-3)]
    page.choose("Numbers", "0..255")
    page.click("Send")
    page.wait(
        "document.querySelector(`[aria-label='The answer as JSON']`).innerText.includes('51')"
    )


def test_pictures_with_channels_first_and_without_channels(page, tmp_path):
    colours = np.random.default_rng(1).integers(0, 256, (8, 6, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    page.open("try/planes")
    page.wait("document.querySelector('#panel .drop input')")
    page.take(tmp_path / "colours.png")
    page.says("colours.png")
    page.click("Send")
    page.says('"outputs"')
    np.testing.assert_allclose(
        page.answer["outputs"], colours.transpose(2, 0, 1)[np.newaxis] / 255, atol=1e-4
    )

    digit = np.random.default_rng(2).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(digit).save(tmp_path / "digit.png")
    page.choose("Signature", "flat")
    page.take(tmp_path / "digit.png")
    page.says("digit.png")
    page.js(
        "const body = document.querySelector('#panel .body'), {signature_name, inputs: [one]} ="
        " JSON.parse(body.value); body.value = JSON.stringify({signature_name, inputs: [one, one]})"
    )
    page.click("Send")
    page.says("same, 1")
    np.testing.assert_allclose(page.answer["outputs"], [digit / 255] * 2, atol=1e-4)


def test_numbers_that_a_browser_cannot_hold_are_sent_and_shown_as_they_are(page):
    page.open("try/odd")
    page.wait("document.querySelector('.fields textarea')?.value")
    page.type(".fields textarea", "0\n-1\n9007199254740993")
    page.click("Send")
    page.says("-Infinity")
    truth = ask_model(page.address, "odd", {"inputs": [0, -1, 9007199254740993]})
    assert truth["outputs"]["same"][2] == 9007199254740993
    assert str(page.answer) == str(truth) and "NaN" in page.text()
    page.says("9007199254740993", CODE)


def test_signatures_of_serialized_examples_begin_with_one_that_works(browser, tmp_path):
    server = serving.ModelServer(ROOT / "config.json")
    assert server.wait(60)
    with listening(server) as address:
        page = Page(browser, address, tmp_path)
        for signature in ("classify", "regress"):
            page.open("try/half_plus_two", server.key)
            page.wait("document.querySelector('#panel .body')?.value")
            page.choose("Signature", signature)
            assert "b64" in page.js("return document.querySelector('.fields textarea').value")
            page.click("Send")
            page.says("2.5", "[aria-label='The answer as JSON']")
            asked = json.loads(page.js("return document.querySelector('#panel .body').value"))
            assert asked["signature_name"] == signature
            assert page.answer == {"outputs": [[2.5]]}
    server.stop()


def test_a_column_of_texts_is_lines(page):
    page.open("try/vectorized")
    page.wait("document.querySelector('.fields textarea')?.value === 'hello'")
    page.type(".fields textarea", "one\nthree")
    page.click("Send")
    page.says('"outputs"')
    assert page.answer == {"outputs": [3, 5]}


@pytest.mark.parametrize("name, told", [("encoded", [1000]), ("single", [439, 586])])
def test_pictures_go_in_as_files_and_without_a_batch_not_at_any_size(page, tmp_path, name, told):
    size = (1000, 20) if name == "encoded" else (2000, 1500)
    Image.new("RGB", size).save(tmp_path / "photo.png")
    page.open(f"try/{name}")
    page.wait("document.querySelector('#panel .drop input')")
    page.take(tmp_path / "photo.png")
    page.says("photo.png")
    page.click("Send")
    page.says('"outputs"')
    assert page.answer == {"outputs": told}
    assert ("586 × 439 of 2000 × 1500 pixels" in page.text()) == (name == "single")


def test_an_older_version_has_an_example_of_its_own(page):
    page.open("try/changed")
    page.wait("document.querySelector('#panel .body')?.value.includes('one')")
    page.js("document.querySelector('#panel select').focus()")
    page.choose("Version", "/versions/1")
    page.wait("document.querySelector('#panel .body').value.includes('\"a\"')")
    held = "const list = document.activeElement; return [list.localName, list.value]"
    assert page.js(held) == ["select", "/versions/1"], "the keyboard stays where it was"
    page.click("Send")
    page.says('"outputs"')
    assert page.answer == {"outputs": [2]}


def test_a_form_is_that_of_the_version_that_is_served_now(page):
    page.open("try/changed")
    page.wait("document.querySelector('#panel .body')?.value.includes('one')")
    page.js(
        """const real = window.fetch; window.fetch = (url, ...of) =>
        real(String(url).replace('/changed/metadata', '/table/metadata'), ...of);
        document.dispatchEvent(new Event('visibilitychange'));"""
    )
    page.says("flower: float [?, 4]", "#panel .fields")


@pytest.mark.parametrize("signatures", [{}, {"serving_default": {"outputs": {}}}])
def test_a_model_that_cannot_be_called_says_so(page, signatures):
    page.open("try/table")
    page.wait("document.querySelector('#panel .body')?.value")
    page.js(
        """const metadata = {signature_def: {signature_def: arguments[0]}}, real = window.fetch;
        window.fetch = async (...of) => String(of[0]).endsWith('/metadata') ? new Response(JSON.stringify({metadata})) : real(...of);
        document.dispatchEvent(new Event('visibilitychange'));""",
        signatures,
    )
    page.says("It has no signature with inputs, and cannot be called.", "#panel")
    assert not page.js("return document.querySelector('.send').checkVisibility()")


def test_states_and_versions_are_kept_up_to_date_and_what_is_typed_stays(page):
    page.open("try/table")
    page.wait("document.querySelector('.fields textarea')?.value")
    page.type(".fields textarea", "4, 3, 2, 1")
    page.js(
        """document.querySelector('.fields textarea').focus();
        const real = window.fetch; window.fetch = async (...of) => {
        if (!String(of[0]).endsWith('/deployments')) return real(...of);
        const all = await (await real(...of)).json(), one = all.models.find(({name}) => name === 'table');
        if (!window.gone) one.versions.push({...one.versions[0], version: '7'});
        all.models.find(({name}) => name === 'cube').state = 'failed';
        return new Response(JSON.stringify(all)); };"""
    )
    assert "Version" not in page.text("#panel")
    page.js("document.dispatchEvent(new Event('visibilitychange'))")  # somebody comes back
    page.wait("document.querySelector('#panel select').checkVisibility()")
    cube = "[...document.querySelectorAll('.list a')].find((one) => one.textContent === 'cube')"
    page.wait(f"{cube}.querySelector('.dot').ariaLabel === 'failed'")
    options = "return [...document.querySelector('#panel select').options].map((one) => one.value)"
    assert page.js(options) == ["", "/versions/1", "/versions/7"]
    assert page.js("return document.activeElement.value") == "4, 3, 2, 1"
    page.choose("Version", "/versions/7", "#panel")
    page.js("window.gone = true; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait("document.querySelector('#panel select').selectedOptions[0].text === '7 (gone)'")
    assert "/versions/7" not in page.js(options)[:-1]


def test_who_leaves_while_a_model_is_looked_at_is_not_held(page):
    page.open("watch").hold("/metadata")
    page.go("try/table")
    page.wait("window.asked.length")
    page.go("watch")
    page.wait("document.querySelector('nav [aria-current]').hash === '#watch'")
    page.js("window.release()")
    page.wait("window.answered && !document.querySelector('#panel')")
    page.js("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait("document.querySelector('#main svg')")
    assert page.text("#error") == ""


def test_who_leaves_twice_while_a_model_is_looked_at_is_told_of_no_error(page):
    page.open("try/cells").hold("/metadata")
    page.js("location.hash = 'try/table'")
    page.wait("window.asked.length")
    page.go("try/%2Fecho").go("connect")
    page.js("window.release()")
    page.wait("window.answered")
    page.drawn()
    assert page.text("#error") == ""


def test_the_keyboard_stays_on_the_list_that_changes_what_is_shown(page):
    page.open("connect")
    page.wait("document.querySelector('#target')")
    page.js("document.querySelector('#target').focus()")
    page.choose("Call", "models/table", "#main")
    page.wait("document.querySelector('#main code').textContent.endsWith('/table:predict')")
    assert page.js("return document.activeElement.value") == "models/table"


def test_a_copy_that_the_browser_refuses_says_so(page):
    page.open("connect/models/table")
    page.js("navigator.clipboard.writeText = () => Promise.reject(new Error('no'))")
    page.click("Copy")
    page.says("The browser does not let the page copy.")


def test_what_no_form_suits_is_json(page):
    page.open("try/cube")
    page.wait("document.querySelector('.fields textarea')?.value")
    page.type(".fields textarea", "[[[1, 2, 3], [4, 5, 6]")
    assert "JSON" in page.text(".fields .warning")
    page.type(".fields textarea", "[[[1, 2, 3], [4, 5, 6]]]")
    page.click("Send")
    page.says('"outputs"')
    assert page.answer == {"outputs": [21]}


def test_a_pipeline_is_a_graph_of_its_nodes(page):
    page.open("try/diamond")
    names = "return [...document.querySelectorAll('.graph .name')].map((one) => one.textContent)"
    assert page.js(names) == ["request", "first", "left", "right", "last", "response"]
    links = "return [...document.querySelectorAll('.graph path')].length"
    assert page.js(links) == 6
    below = "[...document.querySelectorAll('.graph g')].map((one) => [...one.querySelectorAll('text')].map((each) => each.textContent)).filter((one) => one.length)"
    assert page.js(f"return {below}")[1] == ["first", "add_one"]
    page.click("Send")
    page.says('"outputs"')
    assert page.answer == {"outputs": {"left": [3], "last": [4]}}
    times = dict(page.js(f"return {below}"))
    assert all(times[name].endswith(" ms") for name in ("first", "left", "right", "last"))
    spent = {name: float(time.removesuffix(" ms")) for name, time in times.items() if time}
    slow = page.js("return document.querySelector('.graph .slow .name').textContent")
    assert spent[slow] == max(spent.values())
    told = page.js("return document.querySelector('.graph svg').getAttribute('aria-label')")
    assert f"first {times['first']} from request" in told


def test_a_handler_keeps_a_draft_and_its_method_over_a_reload(page):
    page.open("try/%2Fnow")
    page.choose("Method", "POST")
    page.choose("Body", "text/plain")
    page.type("#panel .body", "not sent")
    shown = """return ['.body', '.bar label:nth-of-type(1) select', '.bar label:nth-of-type(2) select']
        .map((one) => document.querySelector(`#panel ${one}`).value)"""
    page.go("try/table").go("try/%2Fnow")
    assert page.js(shown) == ["not sent", "POST", "text/plain"]
    page.browser.refresh()
    page.wait("document.querySelector('#panel .body')")
    assert page.js(shown) == ["not sent", "POST", "text/plain"]
    page.type("#panel .body", "long" * 25_000)  # more than is kept
    page.go("try/table").go("try/%2Fnow")
    assert page.js(shown) == ['"hello"', "POST", "text/plain"]


def test_a_handler_keeps_its_last_body_and_shows_pictures(page):
    page.open("try/%2Fecho")
    page.type("#panel .body", '{"n": 1}')
    page.click("Send")
    page.says('"echo"')
    page.go("try/%2Fpicture")
    page.click("Send")
    page.wait("document.querySelector('#panel canvas')?.width === 40")
    page.go("try/%2Fnow")
    page.click("Send")
    page.says('"now"')
    page.go("try/%2Fecho")
    assert page.js("return document.querySelector('#panel .body').value") == '{"n": 1}'


def test_an_answer_of_json_lines_is_shown_as_it_is(page):
    page.open("try/%2Fecho")
    page.js(
        """const real = window.fetch, headers = {'Content-Type': 'application/x-ndjson'};
        window.fetch = (url, ...more) => `${url.url ?? url}`.endsWith('/echo')
            ? Promise.resolve(new Response('{"i": 0}\\n{"i": 1}\\n', {headers})) : real(url, ...more)"""
    )
    page.click("Send")
    page.says('{"i": 0}\n{"i": 1}')


# --- waiting, errors, code -----------------------------------------------------------------------


def test_a_request_is_told_its_place_in_the_queue(browser, pictures, tmp_path):
    slow = Slow()
    server = showcase.build(slow.event, server={**showcase.NO_POLL, "threads": 2})
    assert server.wait(60)
    with listening(server) as address, ThreadPoolExecutor(2) as pool, slow.held():
        page = Page(browser, address, tmp_path).open("try/slow")
        running = pool.submit(predict, address, pictures["plain.png"], "slow")
        until(lambda: server.waiting.running["slow"])
        page.take(pictures["plain.png"])
        page.says("place 1 in the queue")
        slow.event.set()
        running.result()
        page.wait("document.querySelectorAll('.objects button').length")
    server.stop()


def test_stop_cancels_a_request_that_waits(page, slow, pictures):
    page.open("try/slow")
    with slow.held():
        page.take(pictures["plain.png"])
        page.says("Waiting 0.")
        page.js(
            """window.told = []; new MutationObserver(() => window.told.push(1))
            .observe(document.querySelector('.send ~ * [role=status]'), {childList: true, characterData: true, subtree: true});"""
        )
        page.says("Waiting 2.")
        assert page.js("return window.told.length") <= 1, "read out once, not each 200 ms"
        assert page.js("return document.querySelector('.send').disabled")
        page.click("Stop")
        page.says("Stopped.")
        assert not page.js("return document.querySelector('.send').disabled")
    events = [json.loads(one["message"])["message"] for one in page.browser.get_log("performance")]
    stopped = [one for one in events if one["method"] == "Network.loadingFailed"]
    assert [one["params"]["canceled"] for one in stopped] == [True]


def test_a_picture_that_cannot_be_read_ends_the_waiting_for_the_last_one(page, slow, pictures):
    page.open("try/slow")
    with slow.held():
        page.take(pictures["plain.png"])
        page.wait("document.querySelector('.send').disabled")
        page.take(pictures["broken.jpg"])
        page.wait("document.querySelector('#panel .error').checkVisibility()")
        assert not page.js("return document.querySelector('.send').disabled")
        assert page.js(
            "return [...document.querySelectorAll('#panel button')]"
            ".every((one) => one.textContent !== 'Stop' || !one.checkVisibility())"
        )


def test_an_answer_tells_where_its_time_went(page):
    page.open("try/table")
    page.wait("document.querySelector('#panel .body')?.value")
    page.js(
        """const real = window.fetch; window.fetch = async (...of) => { const response = await real(...of);
        const headers = new Headers(response.headers);
        headers.set('Server-Timing', 'queue;dur=1, decode;dur=2.5, inference;dur=30, routines;dur=0.5, encode;dur=1, total;dur=40');
        return new Response(response.body, {headers, status: response.status}); };"""
    )
    page.click("Send")
    page.says("inference", ".timing")
    parts = page.js(
        "return [...document.querySelectorAll('.timing .legend span')].map((one) => one.innerText)"
    )
    told = ["queue 1.00 ms", "decode 2.50 ms", "inference 30.0 ms", "routines 0.50 ms"]
    assert parts[:6] == [*told, "encode 1.00 ms", "other 5.00 ms"]
    assert parts[6].startswith("network") and parts[7].startswith("request ")
    widths = page.js(
        "return [...document.querySelectorAll('.times i')].map((one) => one.getBoundingClientRect().width)"
    )
    assert widths[2] / widths[1] == pytest.approx(12, rel=0.2)


def test_an_error_has_its_request_id_and_is_gone_when_something_else_is_chosen(page):
    page.open("try/failing")
    page.wait("document.querySelector('#panel .body')?.value")
    page.click("Send")
    page.says("Internal server error", "#panel .error:not(:empty)")
    said = page.text("#panel .error:not(:empty)")
    stats = requests.get(f"{page.address}/stats", headers=bearer(KEY)).json()
    last = max(stats["last_errors"], key=lambda one: one["time"])
    assert last["request_id"] in said
    page.go("try/table")
    page.wait("document.querySelector('#panel .body')?.value")
    assert "Internal server error" not in page.text("body")


@pytest.mark.parametrize("name", ["cells", "%2Fecho"])
def test_an_error_is_gone_when_what_it_is_about_has_changed(page, pictures, name):
    page.open(f"try/{name}")
    error = "#panel .error:not(:empty)"
    if name == "cells":
        page.see(pictures["plain.png"], 4)
        page.choose("Routine", "TopK")
        page.type(".routines input", "-5")
    else:
        page.type("#panel .body", "{")
    page.click("Send")
    page.wait(f"document.querySelector('{error}')")
    if name == "cells":
        page.click("✕")
    else:
        page.choose("Body", "text/plain")
    page.wait(f"!document.querySelector('{error}')")


@contextlib.contextmanager
def offline(browser):
    gone = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", gone)
    try:
        yield
    finally:
        there = gone | {"offline": False, "downloadThroughput": -1, "uploadThroughput": -1}
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", there)


def test_a_server_that_is_gone_is_said(page):
    page.open("try/table")
    page.wait("document.querySelector('#panel .body')?.value")
    with offline(page.browser):
        page.click("Send")
        page.says("The server cannot be reached.", "#panel .error:not(:empty)")
        page.says("Last seen", "#contact:not([hidden])")
    page.click("Send")
    page.says('"outputs"')
    page.wait("document.querySelector('#contact').hidden")


def test_a_server_that_answers_is_not_said_to_be_gone(page, tmp_path):
    """Of a file that has changed since it was picked, and of a header that no browser sends."""
    file = tmp_path / "note.json"
    file.write_text('{"a": 1}')
    page.open("try/%2Fecho").take(file)
    page.click("Send")
    page.says('"echo"', "[aria-label='The answer']")
    os.utime(file, (0, 0))  # as written anew: browsers look at whole seconds
    page.click("Send")
    page.says("The file cannot be read.", "#panel .error:not(:empty)")
    page.go("connect/api")
    page.wait("document.querySelectorAll('details.card').length")
    shown = "details.card:not([hidden])"

    def unfold(sought):
        page.type("#main input[type=search]", sought)
        page.js(f"document.querySelector('{shown}').open = true")

    unfold("post /predict")
    page.choose("Body", "multipart/form-data")
    page.find(f"{shown} input[type=file]").send_keys(str(file))
    file.unlink()
    page.click("Try it", shown)
    page.says("The file cannot be read.", f"{shown} .error:not(:empty)")
    unfold("table:predict")
    page.js(
        """[...document.querySelectorAll(`${arguments[0]} label`)].find((one) =>
        one.innerText.includes('(header)')).querySelector('input').value = 'größe 红'""",
        shown,
    )
    page.click("Try it", shown)
    page.says("ISO-8859-1", f"{shown} .error:not(:empty)")
    assert page.js("return document.querySelector('#contact').hidden")
    unfold("get /now")
    page.click("Try it", shown)
    page.says('"now"', shown)


def test_a_part_that_is_opened_while_the_server_is_gone_says_so_and_comes_when_it_is_back(page):
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    page.open("try/table")
    with offline(page.browser):
        page.js("location.hash = 'models'")
        page.says("The server cannot be reached.\nTry again")
        page.says("Last seen", "#contact:not([hidden])")
        assert (
            page.js("return document.querySelector('nav [aria-current]').textContent") == "Models"
        )
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})
    page.wait("document.querySelector('.cards .card')")  # without a press of Try again
    assert page.text("#error") == ""


def test_an_entry_that_is_chosen_while_the_server_is_gone_comes_when_it_is_back(page):
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    page.open("try/cells")
    with offline(page.browser):
        page.js("location.hash = 'try/%2Fecho'")
        page.says("The server cannot be reached.", "#panel")
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})
    page.wait("document.querySelector('#panel .body')")
    page.wait("document.querySelector('#contact').hidden")


def test_a_model_that_is_chosen_while_the_server_is_gone_comes_when_it_is_back(page):
    send = (
        "[...document.querySelectorAll('#panel button')].some((one) => one.textContent === 'Send')"
    )
    page.open("try/table")  # what shows models is loaded; what this one takes is not
    page.wait(send)
    with offline(page.browser):
        page.js("location.hash = 'try/models/cells'")
        page.says("The server cannot be reached.", "#panel")
        assert "no signature" not in page.text("#panel") and not page.js(f"return {send}")
    page.wait(send)
    assert "cannot be reached" not in page.text("#panel")


def test_a_server_that_does_not_answer_is_not_asked_more_and_more(page):
    page.open("connect")
    page.js(
        """Object.assign(window, {asked: 0, open: 0});
        const real = AbortSignal.timeout;
        AbortSignal.timeout = () => real.call(AbortSignal, 50);
        window.fetch = (url, {signal}) => { window.asked += 1; window.open += 1;
        return new Promise((done, fail) => signal?.addEventListener('abort', () => { window.open -= 1; fail(signal.reason); })); };
        const {contact} = await import(new URL('api.js', location).href);
        contact.gone = true;
        Date.now = () => contact.seen + 5000;"""
    )
    page.wait("window.asked > 1 && !window.open")
    page.says("Last seen 5 s ago.", "#contact")


def test_a_page_that_is_older_than_its_server_asks_to_be_reloaded(page, monkeypatch):
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    monkeypatch.setitem(NEWER, "handlers.js", 'import {newer} from "./dom.js";')
    page.open("try/cells")
    page.js("location.hash = 'try/%2Fecho'")
    page.says("The server has a newer page: reload this one.", "#panel .error")
    page.browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})
    assert page.js("return document.querySelector('#contact').hidden")


CODE = "[aria-label='Code of this call']"


def test_the_code_is_that_of_this_call_with_or_without_the_key(page, tmp_path):
    page.open("try/table")
    page.wait("document.querySelector('#panel .body')?.value")
    page.type(".fields textarea", "1, 2, 3, 4")
    page.click("This call as code")
    page.says("curl", CODE)
    page.wait(f"document.querySelector({json.dumps(CODE)}).innerText.includes('4')")
    code = page.text(CODE)
    assert KEY not in code and "YOUR_KEY" in code and len(code.strip().splitlines()) == 1
    page.js("document.querySelector('.code input[type=checkbox]').click()")
    page.says(KEY, CODE)
    ran = subprocess.run(["sh", "-c", page.text(CODE)], capture_output=True, timeout=60, text=True)
    assert json.loads(ran.stdout) == ask_model(page.address, "table", {"inputs": [[1, 2, 3, 4]]})
    page.choose("Language", "python")
    page.says("requests", CODE)
    compile(page.text(CODE), "copied", "exec")
    page.click("Download", ".code")
    assert page.saved("predict.py").decode().strip() == page.text(CODE).strip()


def test_the_code_of_a_handler_is_that_of_its_method_and_of_any_body(page, tmp_path):
    page.open("try/%2Fnow")
    page.click("This call as code")
    page.wait(f"document.querySelector({json.dumps(CODE)}).innerText.includes('-X GET')")
    page.choose("Method", "POST")
    page.wait(f"document.querySelector({json.dumps(CODE)}).innerText.includes('-X POST')")
    page.choose("Body", "text/plain")
    page.type("#panel .body", "it's text")
    page.says("-H 'Content-Type: text/plain' --data-raw 'it'\\''s text'", CODE)
    page.go("try/%2Fecho")
    page.type("#panel .body", json.dumps("é" * 20000))
    page.click("This call as code")
    page.says("--data-binary @body.txt", CODE)
    page.js("document.querySelector('.code input[type=checkbox]').click()")
    page.says(KEY, CODE)
    page.click("body.txt", ".code")
    page.saved("body.txt")
    command = ["sh", "-c", page.text(CODE)]
    ran = subprocess.run(command, capture_output=True, cwd=page.folder, timeout=60)
    assert json.loads(ran.stdout) == {"echo": "é" * 20000}
    Image.new("RGB", (2, 2)).save(tmp_path / "one.png")
    page.take(tmp_path / "one.png")
    page.says("-H 'Content-Type: image/png' --data-binary @one.png", CODE)


def test_the_code_of_a_picture_has_its_routines_and_version(page):
    page.open("try/cells")
    page.choose("Routine", "TopK")
    page.type(".routines input", "3")
    page.choose("Version", "version=2")
    page.click("This call as code")
    page.says("TopK", CODE)
    assert "version=2" in page.text(CODE)


@pytest.mark.parametrize(
    ("name", "form", "word"),
    [
        ("turned.jpg", "image=@turned.jpg", "turned.jpg"),
        ('it\'s [a], "b" $& \\ c.jpg', 'image=@"', "'it'\\''s [a], \"b\" $& \\ c.jpg'"),
    ],
    ids=["plain", "odd"],
)
def test_the_code_of_a_picture_has_the_name_of_the_chosen_file(page, pictures, name, form, word):
    file = pictures["turned.jpg"].parent / name
    file.write_bytes(pictures["turned.jpg"].read_bytes())
    page.open("try/cells")
    page.click("This call as code")
    page.says("image=@picture.jpg", CODE)
    page.take(file)
    page.says(form, CODE)
    command = ["sh", "-c", page.text(CODE).replace("YOUR_KEY", KEY)]
    ran = subprocess.run(command, capture_output=True, cwd=file.parent, timeout=60)
    assert json.loads(ran.stdout) == predict(page.address, pictures["turned.jpg"])
    page.choose("Language", "python")
    page.says(f"python predict.py {word}", ".code")


# --- connect -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part, call, client",
    [
        ("pictures/cells", "POST {}/cells/predict", "cells/client/"),
        ("models/table", "POST {}/v1/models/table:predict", "v1/models/table/client/"),
        ("pipelines/diamond", "POST {}/v1/models/diamond:predict", "v1/models/diamond/client/"),
        ("handlers/%2Fnow", "GET {}/now", "v1/client/{}?path=/now"),
    ],
)
def test_connect_has_the_address_and_code_in_every_language(page, part, call, client):
    page.open(f"connect/{part}")
    page.says(call.format(page.address))
    languages = "[...document.querySelectorAll('#main .code option')].map((one) => one.value)"
    page.wait(f"{languages}.length === {LANGUAGES}")
    for language in page.js(f"return {languages}"):
        page.choose("Language", language)
        path = client.format(language) if "{}" in client else client + language
        code = requests.get(f"{page.address}/{path}", headers=bearer(KEY)).text
        page.says(code.strip(), CODE)
        assert f"{page.address}/" in code or f'"{page.address[7:].split(":")[0]}' in code, code
    options = "return [...document.querySelectorAll('#target optgroup')].map((one) => one.label)"
    assert page.js(options) == ["Pictures", "Models", "Pipelines", "Handlers"]


def test_connect_tells_why_there_is_no_code_and_offers_none_to_save(page):
    page.open("connect/models/broken")
    page.says("Servable not found for request: Latest(broken)", "#main .code .error")
    assert not page.js("return document.querySelector('#main .code .block').checkVisibility()")
    assert "Save it as" not in page.text()
    page.go("connect/models/table")
    page.says("Save it as", "#main .code .soft")
    page.says("curl", CODE)


def test_connect_says_where_nothing_is_called_so(page):
    page.open("connect/models/unheard-of")
    page.says("There is nothing called ‘unheard-of’ here.")


@pytest.mark.parametrize("language", ["curl", "python", "c"])
def test_a_key_with_quotes_stands_in_the_code_of_a_picture(
    page, slow, pictures, tmp_path, language
):
    key = "a'b\"c$&\\d??/e"
    auth = {"protect": "all", "keys": [key_entry("odd", key)]}
    server = showcase.build(slow.event, auth=auth)
    assert server.wait(60)
    with hosted(server) as page.address:
        page.open("try/cells", key=quote(key, safe=""))
        page.click("This call as code")
        page.says("curl", CODE)
        page.js("document.querySelector('.code input[type=checkbox]').click()")
        page.choose("Language", language)
        page.wait(f"!document.querySelector({json.dumps(CODE)}).innerText.includes('YOUR_KEY')")
        asked = {"path": "/cells/predict?routines=[]", "key": key}
        url = f"{page.address}/v1/client/{language}"
        told = requests.post(url, json=asked, headers=bearer(key)).text
        page.says(told.strip(), CODE)
        if language == "curl":
            (tmp_path / "picture.jpg").write_bytes(pictures["plain.png"].read_bytes())
            ran = subprocess.run(["sh", "-c", page.text(CODE)], capture_output=True, cwd=tmp_path)
            assert len(json.loads(ran.stdout)["predictions"]) == 4
    server.stop()


def test_the_api_page_tells_schemas_fields_of_forms_and_the_code_of_its_calls(page):
    page.open("connect/api")
    page.wait("document.querySelectorAll('details.card').length")
    page.type("#main input[type=search]", "post /cells/predict")
    shown = "details.card:not([hidden])"
    page.js(f"document.querySelector('{shown}').open = true")
    page.click("Body", shown)
    page.click("Answers", shown)
    page.says('"image_type *": "url or base64 or base_64 or array"')
    page.says('"image *": "file"')
    page.says('"predictions": [')
    page.choose("Body", "multipart/form-data")
    fields = f"[...document.querySelectorAll('{shown} .fields label')].map((one) => one.innerText.trim())"
    assert {"image", "routines", "frame"} <= set(page.js(f"return {fields}"))
    page.js(
        """const field = [...document.querySelectorAll(`${arguments[0]} label`)].find((one) =>
        one.innerText.trim() === 'routines').querySelector('input'); field.value = '[{"name": "it\\'s"}]';
        field.dispatchEvent(new Event('input', {bubbles: true}));""",
        shown,
    )
    page.click("This call as code", shown)
    page.says("--form-string 'routines=[{\"name\": \"it'\\''s\"}]'", CODE)
    page.type("#main input[type=search]", "get /v1/models/table")
    page.js(f"document.querySelector('{shown}').open = true")
    page.click("Try it", shown)
    page.says("200 application/json")
    page.js("window.fetch = () => Promise.reject(new TypeError('made to fail'))")
    page.click("Try it", shown)
    page.says("The server cannot be reached.")
    assert "200 application/json" not in page.text()


def test_the_curl_of_a_form_sends_a_file_of_any_name(page, pictures):
    """As curl's manual says of -F: in double quotes, with a backslash before those and itself."""
    file = pictures["plain.png"].parent / 'a,b; "q" \\ c.png'
    file.write_bytes(pictures["plain.png"].read_bytes())
    page.open("connect/api")
    page.wait("document.querySelectorAll('details.card').length")
    page.type("#main input[type=search]", "post /cells/predict")
    shown = "details.card:not([hidden])"
    page.js(f"document.querySelector('{shown}').open = true")
    page.choose("Body", "multipart/form-data")
    page.find(f"{shown} input[type=file]").send_keys(str(file))
    page.click("This call as code", shown)
    page.says("a,b", CODE)
    command = ["sh", "-c", page.text(CODE).replace("YOUR_KEY", KEY)]
    ran = subprocess.run(command, capture_output=True, cwd=file.parent, timeout=60)
    assert json.loads(ran.stdout) == predict(page.address, pictures["plain.png"])


def test_a_body_of_any_kind_is_sent_as_bytes(page, pictures):
    page.open("connect/api").hold("/echo")
    page.wait("document.querySelectorAll('details.card').length")
    page.type("#main input[type=search]", "post /echo")
    shown = "details.card:not([hidden])"
    page.js(f"document.querySelector('{shown}').open = true")
    page.choose("Body", "*/*")
    page.find(f"{shown} input[type=file]").send_keys(str(pictures["plain.png"]))
    page.click("Try it", shown)
    page.wait("window.asked.length")
    kind = "return window.asked[0].headers['Content-Type']"
    assert page.js(kind) == "application/octet-stream"  # RFC 9110, 8.3: what is not known
    page.js("window.release()")


def test_the_api_page_lists_every_operation_and_tries_it(page):
    page.open("connect/api")
    api = requests.get(f"{page.address}/openapi.json", headers=bearer(KEY)).json()
    page.wait("document.querySelectorAll('details.card').length")
    count = sum(
        method in ("get", "put", "post", "delete", "patch", "head")
        for one in api["paths"].values()
        for method in one
    )
    assert page.js("return document.querySelectorAll('details.card').length") == count
    page.type("#main input[type=search]", "table:predict")
    page.js(
        "[...document.querySelectorAll('details.card')].find((one) => one.checkVisibility()).open = true"
    )
    page.click("Try it")
    page.says("200 application/json")
    assert '"outputs"' in page.text() or '"predictions"' in page.text()
    page.type("#main input[type=search]", "/livez")
    page.js(
        "[...document.querySelectorAll('details.card')].filter((one) => one.checkVisibility()).forEach((one) => (one.open = true))"
    )
    page.click("Try it", "details.card:not([hidden])")
    page.says('"live"')


def test_the_api_page_sends_nothing_while_a_needed_field_is_empty(page):
    page.open("connect/api").hold("/v1/models/")
    page.wait("document.querySelectorAll('details.card').length")
    page.type("#main input[type=search]", "get /v1/models/{model}/metadata")
    shown = "details.card:not([hidden])"
    page.js(f"document.querySelector('{shown}').open = true")
    page.click("Try it", shown)
    field = f"{shown} .fields input"
    assert page.js(f"return document.querySelector('{field}').matches(':invalid:focus')")
    assert page.js("return window.asked") == []
    page.type(field, "table")
    page.click("Try it", shown)
    page.wait("window.asked.length")
    page.js("window.release()")
    page.says("200 application/json")


# --- as a whole ----------------------------------------------------------------------------------


def test_the_skip_link_leads_to_the_content_and_stays_in_the_part(page):
    page.open("connect")
    page.browser.find_element("css selector", ".skip").send_keys("\n")
    page.wait("document.activeElement.id === 'main'")
    assert page.browser.current_url.endswith("#connect")


def test_the_page_is_small():
    """What people see; that of admins, who alone load it, and all as it is sent, compressed."""
    files = {file.name: file.read_bytes() for file in (ROOT / "console").iterdir()}
    managing = len(files["manage.js"])
    assert sum(map(len, files.values())) - managing < 150 * 1024 and managing < 15 * 1024
    assert sum(len(gzip.compress(text, 1)) for text in files.values()) < 80 * 1024


PARTS = [
    "try/cells",
    "try/crowd",
    "try/table",
    "try/diamond",
    "try/grey",
    "try/%2Fecho",
    "try/broken",
    "connect",
    "connect/api",
    "watch",
    "models",
    "inbox",
]


@pytest.fixture(scope="module")
def axe():
    """The text of axe-core, which `npm install --prefix .node axe-core` brings."""
    path = ROOT / ".node/node_modules/axe-core/axe.min.js"
    if not path.is_file():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "axe-core is not installed: see .ci/run"
        )
    return path.read_text()


@contextlib.contextmanager
def window(page, width):
    """A window of this width, on a telephone where it is narrow."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


# What axe-core is asked: all in the light, and in the dark what depends on colours.
SCHEMES = {"light": {}, "dark": {"runOnly": ["color-contrast", "link-in-text-block"]}}


def violations(page, part):
    """What axe-core says of the page as it is, and whether it is wider than the window."""
    page.js("document.querySelectorAll('#main details').forEach((one) => (one.open = true))")
    findings = []
    for scheme, options in SCHEMES.items():
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        found = page.browser.execute_async_script(
            """const [options, done] = arguments; axe.run(document, {resultTypes: ['violations'], ...options}).then((found) =>
            done(found.violations.map((one) => [one.id, one.nodes.length, one.nodes[0].html, one.nodes[0].failureSummary])));""",
            options,
        )
        findings += [(part, scheme, *one) for one in found]
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    return findings + [(part, "wider than the window")] * (page.js(wide) > 0)


@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(page, axe, pictures, width):
    with window(page, width):
        page.open()
        page.js(axe)
        findings = []
        for part in PARTS:
            page.go(part)
            if part in ("try/cells", "try/crowd"):
                page.see(pictures["plain.png"], 4 if part == "try/cells" else 300)
                page.choose("Routine", "Crop")
            if part in ("try/table", "try/diamond", "try/%2Fecho"):
                page.wait("document.querySelector('#panel .body')?.value")
                page.click("Send")
                page.wait("document.querySelector('#panel .timing')")
            findings += violations(page, part)
        assert findings == []


def test_axe_finds_nothing_in_a_gallery_a_comparison_and_the_key_dialog(page, axe, pictures):
    with window(page, 400):
        page.open("try/cells").take(pictures["plain.png"], pictures["broken.jpg"])
        page.js(axe)
        page.says("2 of 2 done, 1 failed")
        page.find(".gallery button").click()
        page.wait_for_boxes(4)
        page.click("Compare with…")
        page.choose("Version", "version=2", "#panel details")
        page.click("Compare")
        page.says("4 differences")
        findings = violations(page, "gallery and comparison")
        page.click("Change key")
        page.wait("document.querySelector('#key-dialog').open")
        assert findings + violations(page, "key dialog") == []
