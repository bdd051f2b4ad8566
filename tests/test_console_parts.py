"""The page's Watch, Models and Inbox in Chromium: what they show is what the server says, and what they do is done there."""

import io
import json
import re
import shutil
import time

import pytest
import requests
from conftest import ROOT, bearer, key_entry, listening, listening_app, wait
from PIL import Image
from pycocotools.coco import COCO

import serving
from serving_extensions import metrics

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys
ActionChains = pytest.importorskip("selenium.webdriver").ActionChains

KEY = bearer("the-key")


class Site:
    """A server of many kinds of things, its config file and its address."""

    def __init__(self, folder):
        self.folder, self.path = folder, folder / "config.json"
        for name in ("half_plus_two", "half_plus_three"):
            shutil.copytree(ROOT / "models" / name / "123", folder / "two" / str(len(name)))
        (folder / "broken/1").mkdir(parents=True)
        (folder / "broken/1/saved_model.pb").write_bytes(b"none")
        (folder / "empty").mkdir()
        (folder / "echo.py").write_text("def handle(inputs):\n    return inputs\n")
        demo = json.loads((ROOT / "config.json").read_text())
        models = ROOT / "models"
        learning = {"threshold": 0.1, "folder": str(folder / "inbox")}
        self.config = {
            "model_config_list": [
                self.model("half_plus_two", models / "half_plus_two"),
                self.model("half_plus_three", models / "half_plus_three"),
                self.model("shapes", models / "shapes"),
                self.model("lazy", folder / "two", load="on_demand"),
                self.model("pinned", folder / "two", load="on_demand", pinned=True),
                self.model("broken", folder / "broken"),
                self.model("empty", folder / "empty"),
            ],
            "pipeline_config_list": demo["pipeline_config_list"],
            "deployments": [
                {
                    "id": "shapes",
                    "model": "shapes",
                    "label_map": str(models / "shapes/label_map.pbtxt"),
                    "active_learning": learning,
                }
            ],
            "handlers": [{"path": "/echo", "function": "echo.py:handle"}],
            "auth": {
                "keys": [key_entry("page", "the-key", quota={"calls": 5000, "period": "day"})],
                "quota_store": str(folder / "quotas.sqlite3"),
            },
            "server": {"file_system_poll_wait_seconds": 0},
        }
        self.write()

    @staticmethod
    def model(name, base_path, **options):
        return {"config": {"name": name, "base_path": str(base_path), **options}}

    def write(self):
        self.path.write_text(json.dumps(self.config))

    def get(self, path):
        response = requests.get(f"{self.address}/{path}", headers=KEY)
        assert response.status_code == 200, response.text
        return response.json()

    def see(self, number):
        """Have the deployment look at a sample."""
        picture = (ROOT / f"models/shapes/samples/{number}.jpg").read_bytes()
        return requests.post(f"{self.address}/shapes/predict", picture, headers=KEY)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("site"))
    server = serving.ModelServer(site.path)
    assert server.wait(120)
    with listening_app(serving.create_app(server)) as site.address:
        site.server = server
        for number in range(6):
            assert site.see(number).status_code == 200
        yield site
    server.stop()


@pytest.fixture
def page(browser, site):
    """`page(part)` opens a part of the page; no part has an error of scripts to tell."""
    browser.get_log("browser")

    def open_part(part):
        browser.get("about:blank")
        browser.get(f"{site.address}/console/#key=the-key")
        wait(browser, "document.querySelector('nav a[aria-current]')")
        browser.execute_script("location.hash = arguments[0]", part)
        wait(
            browser,
            f"document.querySelector('nav a[aria-current]').hash == '#{part.split('/')[0]}'",
        )
        return browser

    yield open_part
    errors = [entry["message"] for entry in browser.get_log("browser")]
    assert [text for text in errors if "Failed to load resource" not in text] == []


def text_of(page, selector):
    return page.execute_script("return document.querySelector(arguments[0])?.innerText", selector)


def card(name, kind="models"):
    return f'[data-key="{kind} {name}"]'


def click(page, selector):
    wait(page, f"document.querySelector({json.dumps(selector)})")
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def type_keys(page, *keys):
    ActionChains(page).send_keys(*keys).perform()


# --- models ---------------------------------------------------------------------------------------


def test_cards_tell_states_reasons_and_what_versions_cost(page, site):
    browser = page("models")
    wait(browser, f"document.querySelector('{card('half_plus_two')}')?.innerText.includes('Calls')")
    told = site.get("v1/models")["models"]
    reason = next(
        one["model_version_status"][0]["status"]["error_message"]
        for one in told
        if one["name"] == "broken"
    )
    assert reason in text_of(browser, card("broken")) and "failed" in text_of(
        browser, card("broken")
    )
    red = browser.execute_script(
        f"return getComputedStyle(document.querySelector('{card('broken')} .error')).color"
    )
    assert red in ("rgb(179, 38, 30)", "rgb(255, 138, 128)")
    assert "no version" in text_of(browser, card("empty"))
    cost = site.get("stats")["versions"]["half_plus_two/123"]
    shown = text_of(browser, card("half_plus_two"))
    assert f"{cost['load_seconds']:.2f} s" in shown and cost["device"] in shown
    assert "not measured" in shown and "not yet" in shown
    body = json.dumps({"instances": [1.0]})
    requests.post(f"{site.address}/v1/models/half_plus_two:predict", body, headers=KEY)
    ago = f"document.querySelector('{card('half_plus_two')}').innerText.match(/Last used\\s+\\d+ s ago/)"
    wait(browser, ago)
    for name, kind in (("two_steps", "pipelines"), ("/echo", "handlers")):
        assert "ready" in text_of(browser, card(name, kind))
    assert re.search(
        r"Calls\s+0\s+Last used\s+not yet", text_of(browser, card("/echo", "handlers"))
    )
    assert requests.post(f"{site.address}/echo", "{}", headers=KEY).status_code == 200
    handler = f"document.querySelector('{card('/echo', 'handlers')}').innerText"
    wait(browser, f"{handler}.match(/Calls\\s+1\\s+Last used\\s+\\d+ s ago/)")
    links = "return [...document.querySelectorAll('.cards a')].map((a) => a.hash)"
    assert {"#try/models/shapes", "#try/handlers/%2Fecho", "#try/pipelines/two_steps"} <= set(
        browser.execute_script(links)
    )


def test_the_search_and_a_link_choose_among_the_cards(page):
    browser = page("models")
    names = "[...document.querySelectorAll('.card h3 a')].map((a) => a.textContent)"
    wait(browser, f"{names}.length == 9")
    browser.find_element("css selector", "#models-search").send_keys("HALF")
    assert (
        wait(browser, f"{names}.length == 2 && {names}")
        == ["half_plus_two", "half_plus_three"][::-1]
    )
    browser.execute_script("location.hash = '#models/shapes'")
    assert wait(browser, f"{names}.length == 1 && {names}") == ["shapes"]
    assert wait(browser, "document.title") == "shapes · serving"


def test_a_signature_unfolds_and_stays_open_while_the_numbers_move(page, site):
    browser = page("models")
    fold = f"{card('shapes')} details"
    wait(browser, f"document.querySelector('{card('shapes')}')?.innerText.includes('Calls')")
    click(browser, f"{fold} summary")
    browser.execute_script(f"document.querySelector('{fold} summary').focus()")
    wait(browser, f"document.querySelector('{fold} table')")
    signatures = site.get("v1/models/shapes/metadata")["metadata"]["signature_def"]["signature_def"]
    shown = text_of(browser, fold)
    for name, tensor in signatures["serving_default"]["inputs"].items():
        assert name in shown and tensor["dtype"].removeprefix("DT_").lower() in shown
    before = site.get("stats")["versions"]["shapes/1"]["calls"]
    assert site.see(1).status_code == 200
    wait(
        browser,
        f"/Calls\\s+{before + 1}\\b/.test(document.querySelector('{card('shapes')}').innerText)",
    )
    assert browser.execute_script(
        f"return document.querySelector('{fold}').open && document.querySelector('{fold} table') && "
        f"document.activeElement == document.querySelector('{fold} summary')"
    )


def test_a_model_on_demand_is_loaded_and_freed_by_a_button(page, site):
    browser = page("models")
    button = f"{card('lazy')} button"
    for text, resident in (("Load", True), ("Free", False)):
        wait(browser, f"document.querySelector('{button}')?.textContent == '{text}'")
        click(browser, button)
        wait(browser, f"document.querySelector('{button}').textContent != '{text}'")
        on_demand = site.get("stats")["versions"]["lazy/15"]["on_demand"]
        assert on_demand["resident"] is resident
    assert "freed by hand" in text_of(browser, card("lazy"))
    click(browser, f"{card('pinned')} button")
    pinned = "in memory: asked for; pinned"
    wait(browser, f"document.querySelector('{card('pinned')}').innerText.includes('{pinned}')")
    assert browser.execute_script(
        f"return document.querySelector('{card('pinned')} button').disabled"
    )


def test_a_model_that_is_being_loaded_is_told_so_and_not_asked_for_twice(page, site):
    browser = page("models")
    button = f"{card('lazy')} button"
    wait(browser, f"document.querySelector('{button}')?.textContent == 'Load'")
    browser.execute_script(
        """const real = window.fetch; window.asked = 0; window.fetch = async (...of) => {
        if (!String(of[0]).endsWith('/load')) return real(...of);
        window.asked += 1;
        await new Promise((done) => (window.go = done));
        return new Response('{"error": "made to fail"}', {status: 500, headers: {'X-Request-Id': 'abc-1'}}); };"""
    )
    click(browser, button)
    wait(browser, "Boolean(window.go)")
    browser.execute_script("document.querySelector('#models-search').oninput()")  # as each 3 s
    assert "Loading…" in text_of(browser, card("lazy"))
    click(browser, button)
    assert browser.execute_script("window.go(); return window.asked") == 1
    wait(browser, f"!document.querySelector('{button}').disabled")
    assert text_of(browser, "#error") == "made to fail\nRequest abc-1"


def test_the_link_of_a_server_of_models_alone_opens_its_page(browser, site, capsys):
    entry = site.model("half_plus_two", ROOT / "models/half_plus_two")
    server = serving.ModelServer({"model_config_list": [entry]})
    assert server.wait(60)
    said = ""
    with listening(server) as address:
        while not (link := re.search(rf"Console: ({address}/console\S*)\n", said)):
            said += capsys.readouterr().out
            time.sleep(0.05)
        browser.get("about:blank")
        browser.get(link[1])
        wait(browser, "document.querySelector('#panel .body')?.value")
        assert not browser.execute_script("return document.querySelector('dialog').open")
        click(browser, "#panel .send")
        wait(browser, "document.querySelector('#panel').innerText.includes('2.5')")
    server.stop()


RELOAD = "section[aria-label=Reload]"


def test_a_reload_with_an_error_tells_what_was_asked_for_and_the_next_one_nothing_of_it(page, site):
    browser = page("models")
    wait(browser, "document.querySelector('.cards .card')")
    policy = {"all": {}}
    site.config["model_config_list"][2]["config"] |= {
        "version_labels": {"x": 1},
        "model_version_policy": policy,
    }
    site.config["handlers"].append({"path": "/new", "function": "echo.py:handle"})
    site.write()
    click(browser, "#reload")
    wait(browser, f"document.querySelector('{RELOAD}').innerText")
    lines = ("Handler /new: added", 'version_labels {} → {"x":1}', '→ {"all":{}}')
    assert all(line in text_of(browser, RELOAD) for line in lines)
    click(browser, f"{RELOAD} .main")
    wait(browser, f"document.querySelector('{RELOAD} [role=alert]')")
    shown = text_of(browser, RELOAD)
    assert "What the reload was asked for" in shown and "broken" in shown
    assert all(line in shown for line in lines)
    assert site.get("v1/models/shapes/labels/x")["model_version_status"]  # it is in force
    site.path.write_text("{")
    click(browser, "#reload")
    wait(browser, "document.querySelector('#error').innerText")
    assert browser.execute_script(f"return document.querySelector('{RELOAD}').hidden")
    site.write()


def test_a_reload_tells_beforehand_what_would_change_and_afterwards_what_did(page, site):
    browser = page("models")
    wait(browser, "document.querySelector('.cards .card')")
    entry = site.config["model_config_list"]
    entry.append(site.model("new", site.folder / "two", model_version_policy={"all": {}}))
    entry[:] = [one for one in entry if one["config"]["name"] != "broken"]
    site.write()
    click(browser, "#reload")
    shown = wait(browser, "document.querySelector('section[aria-label=Reload]').innerText")
    for line in ("Model new: added", "Model broken: removed", "versions 13, 15 loaded"):
        assert line in shown
    assert "new" not in [one["name"] for one in site.get("v1/models")["models"]]
    click(browser, "section[aria-label=Reload] .main")
    wait(
        browser,
        "document.querySelector('section[aria-label=Reload] h2')?.textContent == 'What the reload changed'",
    )
    shown = text_of(browser, "section[aria-label=Reload]")
    assert "new, version 13" in shown and "AVAILABLE" in shown and "Model new: added" in shown
    states = site.get("v1/models/new")["model_version_status"]
    assert [one["state"] for one in states] == ["AVAILABLE", "AVAILABLE"]
    wait(
        browser,
        f"document.querySelector('{card('new')}') && !document.querySelector('{card('broken')}')",
    )


# --- watch ----------------------------------------------------------------------------------------


def window(site, kind, name, length="5m"):
    """What /stats says of a group, all its requests as a number by class of status."""
    series = site.get(f"stats?window={length}")["series"]
    return next(one for one in series if (one["kind"], one["name"]) == (kind, name))["total"]


ROW = "[...document.querySelectorAll('#watch-groups tbody tr')].find((row) => row.dataset.key == '{} {}')?.innerText"


def predict(site, body='{"instances": [1.0]}', model="half_plus_three"):
    address = f"{site.address}/v1/models/{model}:predict"
    return requests.post(address, body, headers=KEY)


def test_graphs_and_the_table_tell_what_stats_tells_without_the_pages_own_calls(page, site):
    for _ in range(7):
        assert predict(site).status_code == 200
    browser = page("watch")
    row = ROW.format("model", "half_plus_three")
    wait(browser, row)
    total = window(site, "model", "half_plus_three")
    cells = browser.execute_script(f"return {row}").split("\t")
    assert cells[2] == str(total["requests"]) and total["requests"] >= 7
    assert float(cells[4].split()[0]) == pytest.approx(total["latency"]["p50"], abs=0.06)
    shown = "[...document.querySelectorAll('.charts figcaption')].map((one) => one.textContent)"
    wait(browser, f"{shown}.includes('Refused')")  # the first sample comes after five seconds
    titles = browser.execute_script(f"return {shown}")
    for title in ("Requests a minute", "Latency, ms", "In flight, most", "Queue, mean", "Refused"):
        assert title in titles
    assert not [title for title in titles if "GPU" in title], "there is none here"
    loose = (
        "[...document.querySelector('.charts').childNodes].filter(({nodeType: kind}) => kind != 1)"
    )
    assert browser.execute_script(f"return {loose}.length") == 0
    everything = window(site, "all", "")["requests"]
    asked = "performance.getEntriesByType('resource').filter((one) => one.name.includes('window=')).length"
    before = browser.execute_script(f"return {asked}")
    wait(browser, f"{asked} > {before}")
    assert window(site, "all", "")["requests"] == everything
    assert "5,000 a day" in text_of(browser, "#watch-quotas")


def test_gpus_are_drawn_where_there_are_some(page, site, monkeypatch):
    gpu = {"name": "GPU:0", "memory_used_bytes": 3 << 30, "utilisation_percent": 40}
    monkeypatch.setattr(metrics, "read_gpus", lambda: [gpu])
    site.server.state["metrics"].look()
    browser = page("watch")
    label = wait(
        browser,
        "[...document.querySelectorAll('.charts svg')].map((one) => one.getAttribute('aria-label')).filter((one) => /GPU/.test(one)).join(' ')",
    )
    assert "GPU memory. Now: memory 3072 MiB" in label and "GPU use. Now: use 40.0 %" in label


def test_the_table_is_sorted_by_a_click_and_a_name_opens_its_graphs(page, site):
    for model, count in (("half_plus_two", 3), ("half_plus_three", 5)):
        for _ in range(count):
            predict(site, model=model)
    browser = page("watch")
    wait(browser, ROW.format("model", "half_plus_three"))
    names = "[...document.querySelectorAll('#watch-groups tbody tr')].map((row) => row.cells[1].innerText)"
    click(browser, "[data-sort=name]")
    shown = browser.execute_script(f"return {names}")
    assert shown == sorted(shown, key=str.lower) and len(shown) > 2
    click(browser, "[data-sort=requests]")
    counts = browser.execute_script(
        "return [...document.querySelectorAll('#watch-groups tbody tr')].map((row) => Number(row.cells[2].innerText.replaceAll(',', '')))"
    )
    assert counts == sorted(counts, reverse=True)
    sorted_by = (
        "document.querySelector('[data-sort=requests]').parentElement.getAttribute('aria-sort')"
    )
    assert browser.execute_script(f"return {sorted_by}") == "descending"
    click(browser, "#watch-groups a[href='#watch/model/half_plus_three']")
    wait(browser, "document.querySelector('h2')?.textContent == 'model half_plus_three'")
    shown = "[...document.querySelectorAll('.charts figcaption')].map((one) => one.textContent)"
    titles = browser.execute_script(f"return {shown}")
    assert titles[5:] == ["In flight, mean", "Queue, mean", "Refused"]
    loose = (
        "[...document.querySelector('.charts').childNodes].filter(({nodeType: kind}) => kind != 1)"
    )
    assert browser.execute_script(f"return {loose}.length") == 0
    assert len(titles) == 8, "CPU and memory are the process's: they are shown in all"
    browser.back()
    wait(browser, "document.querySelector('#watch-groups')")


def test_the_last_errors_are_filtered_and_what_is_typed_survives_an_update(page, site):
    assert predict(site, "{").status_code == 400
    assert predict(site, model="unknown").status_code == 404
    browser = page("watch")
    rows = "document.querySelectorAll('#watch-errors tbody tr')"
    wait(browser, f"{rows}.length >= 2")
    told = site.get("stats?window=5m")["last_errors"]
    box = browser.find_element("css selector", "#errors-filter")  # it is there with the rows
    box.send_keys("models/unknown")
    wanted = [one["request_id"] for one in told if "models/unknown" in one["path"]]
    ids = f"[...{rows}].map((row) => row.cells[4].innerText)"
    assert wait(browser, f"{ids}.length < {len(told)} && {ids}") == wanted
    again = predict(site, model="unknown").headers["X-Request-Id"]
    wait(browser, f"{ids}[0] == '{again}'")
    assert box.get_property("value") == "models/unknown"
    assert browser.execute_script("return document.activeElement.id") == "errors-filter"


def test_errors_of_one_request_id_in_one_second_are_a_row_each_at_every_look(page, site):
    for text in ("one", "two", "three"):
        sent = KEY | {"X-Request-Id": "again"}
        url = f"{site.address}/v1/models/{text}:predict"
        assert requests.post(url, "{}", headers=sent).status_code == 404
    browser = page("watch")
    rows = "[...document.querySelectorAll('#watch-errors tbody tr')]"
    wait(browser, f"{rows}.length")
    told = [one["path"] for one in site.get("stats?window=5m")["last_errors"]]
    # the clock stands still: a slow machine sends them in several seconds
    browser.execute_script(
        """Date.prototype.toLocaleTimeString = () => 'now'; const box = document.querySelector('#errors-filter');
        box.oninput(); box.oninput();"""
    )
    paths = browser.execute_script(f"return {rows}.map((row) => row.cells[2].innerText)")
    assert paths == [f"POST {path}" for path in told]


def test_the_time_of_an_error_of_another_day_has_its_date(page, site):
    assert predict(site, "{").status_code == 400
    browser = page("watch")
    times = "[...document.querySelectorAll('#watch-errors tbody tr')].map((row) => row.cells[0].innerText)"
    assert all("/" not in one for one in wait(browser, f"{times}.length && {times}"))
    browser.execute_script(
        """const real = window.fetch; window.fetch = async (...of) => {
        const response = await real(...of), all = await response.json();
        for (const one of all.last_errors ?? []) one.time -= 86400;
        return new Response(JSON.stringify(all)); };
        document.querySelector('[data-window="5m"]').click();"""
    )
    day = "new Date(Date.now() - 86400000).toLocaleDateString()"
    wait(browser, f"{times}.every((one) => one.startsWith({day}))")


def test_the_pointer_over_a_graph_tells_its_numbers(page, site):
    predict(site)
    browser = page("watch")
    wait(browser, "document.querySelector('.chart svg')")
    told, gone = browser.execute_script(
        """const chart = document.querySelector('.chart'), tip = chart.querySelector('.tip');
        const over = [...chart.querySelectorAll('*')].find((one) => one.onpointermove);
        const {left, width} = over.getBoundingClientRect();
        over.dispatchEvent(new PointerEvent('pointermove', {clientX: left + width / 2}));
        const told = tip.innerText;
        over.dispatchEvent(new PointerEvent('pointerleave'));
        return [told, tip.hidden];"""
    )
    assert re.search(r"\d:\d\d.*2xx", told, re.DOTALL) and gone, told


def test_an_hour_and_a_day_are_shown(page, site):
    predict(site)
    browser = page("watch")
    for length, minutes in (("1h", 60), ("24h", 24 * 60)):
        click(browser, f"[data-window='{length}']")
        pressed = f"document.querySelector('[data-window=\"{length}\"]').ariaPressed == 'true'"
        wait(browser, f"{pressed} && document.querySelector('.charts svg')")
        times = site.get(f"stats?window={length}")["time"]
        assert times[-1] - times[0] == pytest.approx(60 * minutes, rel=0.02)
        first = time.strftime("%I:%M", time.localtime(times[0]))
        wait(browser, f"document.querySelector('.charts svg').textContent.includes('{first}')")


def test_last_seen_is_told_when_the_server_is_gone_and_it_is_found_again(page, site):
    browser = page("watch")
    wait(browser, "document.querySelector('.bar + span')?.textContent.startsWith('Up for')")
    line = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.enable", {})
    try:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **line})
        wait(
            browser,
            "/reached. Last seen \\d+ s ago.$/.test(document.querySelector('#contact').innerText)",
        )
        assert browser.execute_script("return document.querySelector('.charts') != null")
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **line})
    wait(browser, "document.querySelector('#contact').hidden")


# --- the inbox ------------------------------------------------------------------------------------


@pytest.fixture
def inbox(page, site):
    for path in (site.folder / "inbox/review").glob("*.verdict"):
        path.unlink()
    browser = page("inbox/shapes")
    wait(browser, "document.querySelectorAll('ul.gallery button').length")
    return browser


def kept(site):
    """The records of the group, the least certain first."""
    images = site.get("shapes/active_learning/review?format=json")["images"]
    return sorted(images, key=lambda one: -one["score"])


def verdicts(site):
    return [one["verdict"] for one in kept(site)]


SCORES = "[...document.querySelectorAll('ul.gallery button')].map((one) => one.innerText.match(/score ([\\d.]+)/)[1])"


def test_the_gallery_is_sorted_by_score_and_its_boxes_are_drawn(inbox, site):
    images = kept(site)
    assert inbox.execute_script(f"return {SCORES}") == [f"{one['score']:.3f}" for one in images]
    drawn = "document.querySelector('#inbox-large canvas')"
    wait(inbox, f"{drawn}?.width == {images[0]['width']}")
    seen = text_of(inbox, "#inbox-large")
    assert all(one["tag"]["name"] in seen for one in images[0]["predictions"])
    wait(inbox, "[...document.querySelectorAll('ul.gallery canvas')].every((one) => one.width > 1)")
    plain = requests.get(
        f"{site.address}/shapes/active_learning/review/{images[0]['file_name']}", headers=KEY
    ).content
    differing = inbox.execute_async_script(
        """const [bytes, done] = arguments, canvas = document.querySelector('#inbox-large canvas');
        createImageBitmap(new Blob([new Uint8Array(bytes)])).then((bitmap) => {
          const other = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
          other.drawImage(bitmap, 0, 0);
          const [one, two] = [canvas.getContext('2d'), other].map((on) => on.getImageData(0, 0, bitmap.width, bitmap.height).data);
          done(one.filter((value, at) => Math.abs(value - two[at]) > 40).length / one.length);
        });""",
        list(plain),
    )
    assert 0.005 < differing < 0.9


def test_keys_move_accept_reject_and_undo(inbox, site):
    wait(inbox, "document.querySelector('ul.gallery button[aria-pressed=true]')")
    inbox.execute_script("document.querySelector('.bar button').focus()")
    type_keys(inbox, "a")  # of a button, which no letter judges for (WCAG 2.1.4)
    inbox.execute_script("document.querySelector('nav a').focus()")  # the way in by a click
    type_keys(inbox, "a", "r", Keys.ARROW_RIGHT, "r")
    counts = "document.querySelector('#main p[role=status]').textContent"
    wait(inbox, f"{counts}.includes('1 accepted, 2 rejected')")
    type_keys(inbox, "u")
    wait(inbox, f"{counts}.includes('1 accepted, 1 rejected')")
    deadline = time.monotonic() + 60
    wanted = ["accepted", "rejected"] + ["none"] * (len(kept(site)) - 2)
    while verdicts(site) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert verdicts(site) == wanted
    chosen = "[...document.querySelectorAll('ul.gallery button')].findIndex((one) => one == document.activeElement)"
    assert inbox.execute_script(f"return {chosen}") == 3
    type_keys(inbox, Keys.ARROW_LEFT)
    assert inbox.execute_script(f"return {chosen}") == 2


def test_nothing_is_undone_of_what_was_shown_before_a_refresh(inbox, site):
    wait(inbox, "document.querySelector('ul.gallery button[aria-pressed=true]')")
    type_keys(inbox, "a")
    counts = "document.querySelector('#main p[role=status]').textContent"
    wait(inbox, f"{counts}.includes('1 accepted')")
    deadline = time.monotonic() + 60
    while "accepted" not in verdicts(site) and time.monotonic() < deadline:
        time.sleep(0.05)
    inbox.execute_script(
        """new MutationObserver(() => (window.refreshed = true)).observe(
        document.querySelector('#main section.card'), {childList: true, subtree: true});"""
    )
    inbox.find_element("xpath", "//button[text()='Refresh']").click()
    wait(inbox, "window.refreshed")
    type_keys(inbox, "u")
    time.sleep(0.5)
    assert "1 accepted" in text_of(inbox, "#main p[role=status]") and "accepted" in verdicts(site)


def test_a_verdict_that_is_not_taken_is_taken_back_with_the_request_id(inbox, site):
    wait(inbox, "document.querySelector('#inbox-large canvas')")
    before = text_of(inbox, "#main p[role=status]")
    inbox.execute_script(
        """const real = window.fetch; window.fetch = (...of) => !String(of[0]).endsWith('/verdict') ? real(...of)
        : Promise.resolve(new Response('{"error": "made to fail"}', {status: 500, headers: {'X-Request-Id': 'abc-2'}}));"""
    )
    click(inbox, "[data-verdict=rejected]")
    wait(inbox, "document.querySelector('#error').innerText == 'made to fail\\nRequest abc-2'")
    wait(inbox, f"document.querySelector('#main p[role=status]').innerText == {json.dumps(before)}")


def test_buttons_accept_and_the_filter_shows_what_is_left(inbox, site):
    wait(inbox, "document.querySelector('#inbox-large canvas')")
    click(inbox, "[data-verdict=accepted]")
    count = len(kept(site))
    inbox.execute_script(
        "const list = document.querySelectorAll('select')[1]; list.value = 'none'; list.onchange()"
    )
    wait(inbox, f"{SCORES}.length == {count - 1}")
    inbox.execute_script(
        "const list = document.querySelectorAll('select')[1]; list.value = 'accepted'; list.onchange()"
    )
    wait(inbox, f"{SCORES}.length == 1")


def test_who_chooses_what_is_shown_by_pointer_judges_by_keys_at_once(inbox, site):
    wait(inbox, "document.querySelector('#inbox-large canvas')")
    shown = "document.querySelectorAll('select')[1]"
    ActionChains(inbox).click(inbox.execute_script(f"return {shown}")).perform()
    inbox.execute_script(f"{shown}.value = 'none'; {shown}.onchange()")
    type_keys(inbox, "a")
    wait(inbox, "document.querySelector('#main p[role=status]').textContent.includes('1 accepted')")
    assert inbox.execute_script(f"return {shown}.value") == "none"
    inbox.execute_script(f"{shown}.focus()")
    type_keys(inbox, Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ARROW_UP)
    assert inbox.execute_script(
        f"return document.activeElement == {shown} && {shown}.value == 'all'"
    )


def test_labels_leave_some_of_a_small_picture_free(inbox, site):
    white = io.BytesIO()
    Image.new("RGB", (8, 8), "white").save(white, "png")
    wait(inbox, "document.querySelector('ul.gallery button[aria-pressed=true]')")
    inbox.execute_script(
        """const real = window.fetch; window.fetch = (...of) => !String(of[0]).includes('?side=') ? real(...of)
        : Promise.resolve(new Response(new Uint8Array(arguments[0])));""",
        list(white.getvalue()),
    )
    type_keys(inbox, Keys.ARROW_RIGHT)
    drawn = "document.querySelector('#inbox-large canvas')"
    wait(inbox, f"{drawn}?.width == 320 && {drawn}.height == 320")
    free = inbox.execute_script(
        f"""const all = {drawn}.getContext('2d').getImageData(0, 0, 320, 320).data;
        return all.filter((value) => value == 255).length / all.length;"""
    )
    assert free > 0.5


def test_coco_of_the_accepted_is_saved(inbox, site, tmp_path):
    inbox.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    wait(inbox, "document.querySelector('#inbox-large canvas')")
    click(inbox, "[data-verdict=accepted]")
    wait(inbox, "document.querySelector('#main p[role=status]').textContent.includes('1 accepted')")
    for text, name, many in (
        ("COCO of all", "shapes.json", len(kept(site))),
        ("COCO of the accepted", "shapes-accepted.json", 1),
    ):
        inbox.find_element("xpath", f"//button[text()='{text}']").click()
        deadline = time.monotonic() + 60
        while not (tmp_path / name).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        coco = COCO(tmp_path / name)
        assert len(coco.getImgIds()) == many
    first = kept(site)[0]
    assert [one["file_name"] for one in coco.loadImgs(coco.getImgIds())] == [first["file_name"]]
    assert len(coco.getAnnIds()) == len(first["predictions"])


def test_the_slider_tells_how_many_of_the_last_pictures_a_threshold_keeps(inbox, site):
    scores = site.get("shapes/active_learning/review/scores")["scores"]
    for threshold in (0, 0.45, 1):
        inbox.execute_script(
            "const slide = document.querySelector('section[aria-label=Threshold] input'); slide.value = arguments[0]; slide.oninput()",
            threshold,
        )
        many = sum(score >= threshold for score in scores)
        text = f"would keep {many} of the last {len(scores)} pictures ({100 * many / len(scores):.1f} %)"
        assert text in text_of(inbox, "section[aria-label=Threshold] p")
