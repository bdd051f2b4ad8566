"""The page in Chromium: a picture, boxes, the slider, routines, code, the graph, a wrong key; under a prefix, in a host site."""

import json
import time

import flask
import pytest
import requests
from conftest import ROOT, bearer, key_entry, wait
from test_command_line import started
from test_operation import listening_app

import serving

KEY = "the-key"


@pytest.fixture(scope="module")
def address():
    """A host site with the demo mounted under /ml, served by waitress."""
    config = json.loads((ROOT / "config.json").read_text()) | {
        "auth": {"keys": [key_entry("page", KEY)]}
    }
    server = serving.ModelServer(
        serving.load_config(ROOT / "config.json", json.dumps(config).encode())
    )
    site = flask.Flask("host")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    assert server.wait(120) and server.readiness() == []
    with listening_app(site) as found:
        yield found + "/ml"
    server.stop()


def open_page(browser, address, key=KEY):
    browser.get(address + "/console/")
    browser.execute_script("sessionStorage.clear()")
    browser.get(address + "/console/")
    wait(browser, "document.querySelector('#key-dialog').open")
    browser.find_element("css selector", "#key-input").send_keys(key + "\n")


@pytest.fixture
def page(browser, address):
    browser.get_log("browser"), browser.get_log("performance")
    open_page(browser, address)
    wait(browser, "document.querySelectorAll('.sample').length == 10")
    return browser


def boxes(browser):
    return browser.execute_script("return document.querySelectorAll('#overlay .box').length")


def shown_json(browser):
    return json.loads(browser.execute_script("return document.querySelector('#json').textContent"))


def requests_made(browser):
    """The URLs that the page has asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]


def try_sample(browser, number=0):
    browser.execute_script("document.querySelectorAll('.sample')[arguments[0]].click()", number)
    wait(browser, "document.querySelectorAll('#overlay .box').length > 0")


def slide(browser, value):
    browser.execute_script(
        "const s = document.querySelector('#confidence'); s.value = arguments[0]; s.dispatchEvent(new Event('input', {bubbles: true}))",
        value,
    )


def test_a_sample_shows_as_many_boxes_as_the_json_has_and_the_slider_needs_no_request(
    page, address
):
    try_sample(page)
    truth = requests.post(
        f"{address}/predict",
        (ROOT / "models/shapes/samples/0.jpg").read_bytes(),
        headers=bearer(KEY),
    ).json()["predictions"]
    assert boxes(page) == len(shown_json(page)["predictions"]) == len(truth) > 1
    requests_made(page)
    confidences = sorted(p["confidence"] for p in truth)
    slide(page, (confidences[0] + confidences[1]) / 2)
    wait(page, f"document.querySelectorAll('#overlay .box').length == {len(truth) - 1}")
    assert len(shown_json(page)["predictions"]) == len(truth) - 1
    assert [url for url in requests_made(page) if "predict" in url] == []
    slide(page, 0)
    wait(page, f"document.querySelectorAll('#overlay .box').length == {len(truth)}")
    assert "ms" in page.execute_script("return document.querySelector('#timing').textContent")


def test_a_file_is_taken_and_a_routine_changes_the_answer(page):
    page.find_element("css selector", "#file-input").send_keys(
        str(ROOT / "models/shapes/samples/1.jpg")
    )
    wait(page, "document.querySelectorAll('#overlay .box').length > 0")
    page.execute_script("""
        const select = document.querySelector('#add-routine');
        select.value = 'FilterConfidence'; select.dispatchEvent(new Event('change', {bubbles: true}));""")
    wait(page, "document.querySelectorAll('.routine').length == 1")
    page.execute_script("""
        const field = document.querySelector('.routine input');
        field.value = '1'; field.dispatchEvent(new Event('input', {bubbles: true})); field.dispatchEvent(new Event('change', {bubbles: true}));
        document.querySelector('#send').click();""")
    wait(page, "document.querySelectorAll('#overlay .box').length == 0")
    assert shown_json(page)["predictions"] == []


def test_a_late_answer_is_not_drawn_over_the_next_picture(page, address):
    """The answer about the first picture is held back until the one about the second is there."""
    page.execute_script("""
        const real = window.fetch; let calls = 0; window.late = 0;
        window.fetch = async (...of) => {
            const response = await real(...of);
            if (String(of[0]).endsWith('/predict') && calls++ === 0) { await new Promise(done => setTimeout(done, 1500)); window.late = 1; }
            return response;
        };
        document.querySelectorAll('.sample')[0].click();
        setTimeout(() => document.querySelectorAll('.sample')[1].click(), 300);""")
    wait(page, "window.late")
    time.sleep(0.5)
    second = requests.post(
        f"{address}/predict",
        (ROOT / "models/shapes/samples/1.jpg").read_bytes(),
        headers=bearer(KEY),
    ).json()["predictions"]
    first = requests.post(
        f"{address}/predict",
        (ROOT / "models/shapes/samples/0.jpg").read_bytes(),
        headers=bearer(KEY),
    ).json()["predictions"]
    assert (
        [p["bound"] for p in shown_json(page)["predictions"]]
        == [p["bound"] for p in second]
        != [p["bound"] for p in first]
    )
    assert boxes(page) == len(second)


def test_copied_code_is_that_of_this_call(page):
    try_sample(page)
    page.execute_script("""
        const select = document.querySelector('#copy-language');
        select.value = 'python'; select.dispatchEvent(new Event('change', {bubbles: true}));""")
    code = wait(
        page,
        "(document.querySelector('#copy-code').textContent.includes('requests') && document.querySelector('#copy-code').textContent)",
    )
    assert "/ml/shapes/predict" in code
    compile(code, "copied", "exec")


def tab(browser, name):
    browser.execute_script(
        "[...document.querySelectorAll('[role=tab]')].find(t => t.textContent.trim() == arguments[0]).click()",
        name,
    )


def test_the_graph_moves_and_models_are_listed(page, address):
    tab(page, "Watch")
    wait(page, "document.querySelector('#graph').innerHTML.length > 0")
    before = page.execute_script(
        "return document.querySelector('#graph').closest('figure').outerHTML"
    )
    for _ in range(30):
        requests.post(f"{address}/v1/models/half_plus_two:predict", '{"instances": [1.0]}')
    wait(
        page,
        f"document.querySelector('#graph').closest('figure').outerHTML != {json.dumps(before)}",
    )
    stats = requests.get(f"{address}/stats").json()
    drawn = page.execute_script("return document.querySelectorAll('#graph rect').length")
    assert drawn == sum(
        (m["requests"] > m["errors_4xx"] + m["errors_5xx"])
        + (m["errors_4xx"] > 0)
        + (m["errors_5xx"] > 0)
        for m in stats["minutes"]
    )
    tab(page, "Models")
    wait(page, "document.body.innerText.includes('half_plus_three')")
    page.execute_script("document.querySelector('#reload').click()")
    assert wait(page, "document.querySelector('#reload-outcome').textContent")


def test_a_wrong_key_gives_the_servers_words(browser, address):
    open_page(browser, address, key="wrong")
    wait(browser, "document.body.innerText.includes('The key is not valid')")


def test_no_request_leaves_the_machine_and_the_console_is_silent(page, address):
    try_sample(page)
    for name in ("Connect", "Watch", "Models", "Try it"):
        tab(page, name)
        time.sleep(0.3)
    asked = requests_made(page)
    assert asked and all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_page_is_small_and_quick(page, address):
    files = list((ROOT / "console").iterdir())
    assert sum(file.stat().st_size for file in files) < 200_000
    page.get(address + "/console/")
    wait(page, "document.readyState == 'complete'")
    took = page.execute_script(
        "const n = performance.getEntriesByType('navigation')[0]; return n.domContentLoadedEventEnd - n.startTime"
    )
    print(f"loaded in {took:.0f} ms")


def test_it_works_on_a_phone_without_a_sideways_scroll(page):
    try_sample(page)
    page.set_window_size(390, 844)
    try:
        assert page.execute_script(
            "return document.documentElement.scrollWidth <= window.innerWidth + 1"
        )
    finally:
        page.set_window_size(1280, 900)


def test_the_server_alone_prints_where_its_page_is():
    with started("--port", "0") as server:
        assert (
            server.wait_for("Console:").strip()
            == f"Console: http://127.0.0.1:{server.port}/console"
        )
