"""Take the pictures of the examples: `python docs/make_example_pictures.py`.

Chromium logs into the shop of examples/shop. Needs what the tests need; writes into docs/pictures.
"""

import sys
import threading

from make_pictures import ROOT, Camera, start_browser, wait
from werkzeug.serving import make_server

sys.path.insert(0, str(ROOT / "examples/shop"))

import shop  # noqa: E402


def put(browser, article):
    """Put an article into the basket, as a customer does."""
    button = f'form[action="/basket/{article}"] button'
    browser.find_element("css selector", button).click()
    wait(browser, f"!document.querySelector('{button}')")


def take_shop(camera):
    """The page of a customer with two articles in the basket, who asks about two others."""
    browser = camera.browser
    camera.resize(1000, 1010)
    browser.get(f"{camera.address}/login")
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


def main():
    site = shop.create_app(eager=True)
    http = make_server("127.0.0.1", 0, site, threaded=True)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    browser = start_browser()
    try:
        camera = Camera(browser, set())
        camera.address = f"http://127.0.0.1:{http.server_port}"
        take_shop(camera)
        problems = [line["message"] for line in browser.get_log("browser")]
        assert not [line for line in problems if "favicon" not in line], problems
    finally:
        browser.quit()
        http.shutdown()


if __name__ == "__main__":
    main()
