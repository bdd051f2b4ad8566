"""How long the page takes until it can be used: `python benchmarks/page.py [times]`.

Chromium opens the page of the tests' made-up server (40 deployments), its cache empty each time.
Prints the median and the longest milliseconds from the navigation's start until all that is served
is listed, and the bytes transferred.
"""

import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent / "tests")]

import showcase  # noqa: E402
from conftest import listening, start_browser, wait  # noqa: E402

WATCH = """
(function look() {
    if (document.querySelectorAll(".list a").length) window.readyAfter = performance.now();
    else requestAnimationFrame(look);
})();
"""
BYTES = """return performance.getEntries().filter((one) => one.transferSize).reduce(
    (sum, one) => sum + one.transferSize, 0)"""


def main(times: int = 20) -> None:
    server, browser = showcase.build(), start_browser()
    assert server.wait(60)
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WATCH})
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    taken = []
    with listening(server) as address:
        for _ in range(times):
            browser.get("about:blank")
            browser.get(f"{address}/console/#key={showcase.KEY}")
            taken.append(wait(browser, "window.readyAfter"))
        size = browser.execute_script(BYTES)
    browser.quit()
    print(f"ready after {statistics.median(taken):.0f} ms, at most {max(taken):.0f}; {size} bytes")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
