"""The page's Manage in Chromium: what its forms change is in the config file, and what is refused is told where it was asked for."""

import json
import os
import shutil
import zipfile

import pytest
import requests
from conftest import ROOT, bearer, key_entry, listening, wait

import serving

Keys = pytest.importorskip("selenium.webdriver.common.keys").Keys

BOSS = bearer("boss")
PLUS_TWO = ROOT / "models/half_plus_two/123"


class Site:
    """A managed server over a config file that can be written, and its address."""

    def __init__(self, folder):
        self.path = folder / "config.json"
        for name in ("half_plus_two", "shapes"):
            shutil.copytree(ROOT / "models" / name, folder / name)
        self.config = {
            "model_config_list": [
                {"config": {"name": "shapes", "base_path": "shapes"}},
                {"config": {"name": "half", "base_path": "half_plus_two"}},
            ],
            "deployments": [
                {
                    "id": "shapes",
                    "name": "All shapes",
                    "model": "shapes",
                    "label_map": "shapes/label_map.pbtxt",
                }
            ],
            "auth": {
                "keys": [
                    key_entry("boss", "boss", admin=True),
                    key_entry("site", "good", quota={"calls": 1000, "period": "day"}),
                ],
                "quota_store": "quotas.sqlite3",
            },
            "admin": {"upload": True},
            "server": {"file_system_poll_wait_seconds": 0},
        }
        self.path.write_text(json.dumps(self.config))

    def read(self):
        return json.loads(self.path.read_text())

    def reset(self):
        """As it was at first, for the next test; nothing where it is so."""
        if self.read() == self.config:
            return
        text = json.dumps(self.config)
        headers = BOSS | {"If-Match": "*"}
        response = requests.put(f"{self.address}/v1/config/file", text, headers=headers)
        assert response.status_code in (200, 201), response.text


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory):
    site = Site(tmp_path_factory.mktemp("managed"))
    server = serving.ModelServer(site.path)
    assert server.wait(120)
    with listening(server) as site.address:
        yield site
    server.stop()


@pytest.fixture
def site(shared_site):
    yield shared_site
    shared_site.reset()


class Page:
    """Manage in a browser, and what a person does there."""

    def __init__(self, browser, address, key="boss"):
        self.browser = browser
        browser.get("about:blank")
        browser.get(f"{address}/console/#key={key}")
        self.wait("document.querySelector('#main').children.length")
        self.js("location.hash = 'manage'")

    def js(self, script, *values):
        return self.browser.execute_script(script, *values)

    def wait(self, script):
        return wait(self.browser, script)

    def part(self, title):
        self.wait(f"document.querySelector('section[aria-label=\"{title}\"]')")
        return Part(self, f'section[aria-label="{title}"]')


class Part:
    def __init__(self, page, selector):
        self.page, self.selector = page, selector

    def click(self, text):
        """Press the button of this text (and of this name, where several have it)."""
        self.page.wait(
            f"""[...document.querySelectorAll({json.dumps(self.selector + " button")})].some((one) =>
            [one.textContent, one.ariaLabel, one.title].includes({json.dumps(text)})
            && !one.disabled && (one.focus(), one.click(), true))"""
        )

    def field(self, label):
        """The field of a label, filled or chosen as a person does it."""
        return self.page.wait(
            f"""[...document.querySelectorAll({json.dumps(self.selector + " label")})].find((one) =>
            one.textContent.trim().startsWith({json.dumps(label)})
            && one.checkVisibility())?.querySelector('input, select')"""
        )

    def type(self, label, text):
        field = self.field(label)
        field.clear()
        field.send_keys(text)

    def choose(self, label, value):
        self.page.js(
            """arguments[0].value = arguments[1];
            arguments[0].dispatchEvent(new Event('change', {bubbles: true}));""",
            self.field(label),
            value,
        )

    def says(self, *texts):
        """Wait until the part tells these; returns what it tells."""
        told = f"document.querySelector({json.dumps(self.selector + ' > [role=status]')}).innerText"
        self.page.wait(f"{json.dumps(texts)}.every((one) => {told}.includes(one))")
        return self.page.js(f"return {told}")


@pytest.fixture
def page(browser, site):
    """The part Manage as an admin sees it; no test leaves an error of scripts."""
    browser.get_log("browser")
    yield Page(browser, site.address)
    errors = [entry["message"] for entry in browser.get_log("browser")]
    assert [text for text in errors if "Failed to load resource" not in text] == []


# --- deployments ----------------------------------------------------------------------------------


def test_a_deployment_is_created_changed_and_deleted_with_its_name_typed(page, site):
    part = page.part("Deployments")
    part.page.browser.find_element(
        "css selector", "[aria-label='Id of a new deployment']"
    ).send_keys("cells", Keys.ENTER)
    part.choose("model", "shapes")
    part.type("name", "Blood cells")
    part.type("threshold", "0.5")
    part.click("What would change")
    part.says("Would change", "$.deployments[1]", "Blood cells")
    assert len(site.read()["deployments"]) == 1
    part.click("Save")
    part.says("Changed")
    entry = {"id": "cells", "model": "shapes", "name": "Blood cells", "threshold": 0.5}
    assert site.read()["deployments"][1] == entry

    part.choose("Which", "cells")
    page.wait("document.querySelector('h3').textContent == 'cells'")
    part.type("threshold", "0.25")
    part.type("region", "eu")
    part.click("What would change")
    part.says("Would change", "$.deployments[1].threshold: 0.5 → 0.25")
    assert site.read()["deployments"][1] == entry
    part.click("Save")
    part.says("Changed", "0.5 → 0.25")
    assert page.js("return document.activeElement.textContent") == "Save"
    entry |= {"threshold": 0.25, "notes": {"region": "eu"}}
    assert site.read()["deployments"][1] == entry

    part.click("Statistics")
    page.wait("document.querySelector('.tiles')?.innerText.includes('Uptime')")
    part.click("Delete")
    part.says("$.name: expected the name of the deployment")
    page.browser.find_element(
        "css selector", "[aria-label='Its name, typed to delete it']"
    ).send_keys("Blood cells")
    part.click("Delete")
    part.says("Changed")
    assert site.read()["deployments"] == site.config["deployments"]
    names = "[...document.querySelector('select').options].map((one) => one.value)"
    assert page.js(f"return {names}") == ["", "shapes"]


def test_what_is_emptied_is_removed_and_what_is_untouched_stays(page, site):
    part = page.part("Deployments")
    part.choose("Which", "shapes")
    part.type("upload groups", "review")
    part.type("evaluation threshold", "0.3")
    part.choose("evaluation strategy", "margin")
    part.click("Save")
    part.says("Changed")
    learning = {"group": "review", "threshold": 0.3, "strategy": "margin"}
    expected = site.config["deployments"][0] | {"active_learning": learning}
    assert site.read()["deployments"] == [expected]
    part.type("upload groups", Keys.BACKSPACE)
    part.click("Save")
    part.says("active_learning", "→ nothing")
    assert site.read()["deployments"] == site.config["deployments"]
    part.click("Save")
    part.says("Nothing has to change")


def test_a_value_that_is_wrong_is_told_in_its_part_alone(page, site):
    part = page.part("Deployments")
    part.choose("Which", "shapes")
    part.type("routines", '[{"name": ')
    part.click("Save")
    part.says("routines: ")
    part.type("routines", '[{"name": "Nothing"}]')
    part.click("Save")
    part.says("$.deployments[0].routines[0]")
    part.type("routines", Keys.BACKSPACE)
    part.click("Save")
    part.says("Nothing has to change")
    assert site.read() == site.config
    others = "[...document.querySelectorAll('section > [role=status]')].slice(1).map((one) => one.innerText)"
    assert set(page.js(f"return {others}")) == {""}


# --- keys -----------------------------------------------------------------------------------------


def test_a_key_is_shown_once_and_then_disabled_enabled_and_deleted(page, site):
    part = page.part("Keys")
    part.type("name", "ann")
    part.type("calls", "10")
    part.choose("per", "month")
    assert page.js("return document.querySelector('select[multiple]').selectedOptions.length") == 0
    page.js("document.querySelector('select[multiple]').options[0].selected = true")
    part.click("Create the key")
    shown = page.wait("document.querySelector('section pre')?.innerText.split('\\n')[0]")
    part.says("Changed")
    assert shown not in site.path.read_text()
    assert requests.get(f"{site.address}/usage", headers=bearer(shown)).json()["month_calls"] == 0
    picture = (ROOT / "models/shapes/samples/0.jpg").read_bytes()
    url = f"{site.address}/shapes/predict"
    assert requests.post(url, picture, headers=bearer(shown)).status_code == 200

    part.click("Disable ann")
    part.says("disabled: nothing → true")
    assert page.js("return document.activeElement.ariaLabel") == "Enable ann"
    assert requests.post(url, picture, headers=bearer(shown)).status_code == 401
    row = "document.querySelector('[data-key=ann]').innerText"
    told = page.js(f"return {row}").split("\t")
    assert told[:5] == ["ann", "disabled", "shapes", "1 of 10 a month", "1"]
    assert (
        page.js("return document.querySelector('section pre').innerText.split('\\n')[0]") == shown
    )
    part.click("Enable ann")
    part.says("true → false")
    assert requests.post(url, picture, headers=bearer(shown)).status_code == 200

    part.click("Delete ann")
    assert "ann" in [one["name"] for one in site.read()["auth"]["keys"]]
    part.click("Delete ann")  # sure
    part.says("Changed")
    assert [one["name"] for one in site.read()["auth"]["keys"]] == ["boss", "site"]
    page.wait("!document.querySelector('[data-key=ann]')")
    part.click("Disable boss")
    part.says("no key that is marked admin would be left")


# --- models and uploads ---------------------------------------------------------------------------


def test_a_models_options_are_changed_and_those_left_empty_are_not(page, site):
    part = page.part("Models")
    part.choose("Which", "half")
    part.choose("load", "on_demand")
    part.choose("pinned", "true")
    part.click("What would change")
    part.says("Would change", "load", "pinned")
    assert site.read() == site.config
    part.click("Save the model")
    part.says("Changed")
    entry = {"name": "half", "base_path": "half_plus_two", "load": "on_demand", "pinned": True}
    assert site.read()["model_config_list"][1]["config"] == entry
    page.wait(
        f"document.querySelector({json.dumps(part.selector)}).innerText.includes('now \"on_demand\"')"
    )
    part.type("instances", "2")
    part.click("Save the model")
    part.says("instances")
    assert site.read()["model_config_list"][1]["config"] == entry | {"instances": 2}


def test_a_model_is_uploaded_and_what_is_no_model_is_refused(page, site, tmp_path):
    packed = tmp_path / "sent.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in PLUS_TWO.rglob("*"):
            archive.write(file, file.relative_to(PLUS_TWO))
    part = page.part("Upload")
    field = page.wait(f"document.querySelector({json.dumps(part.selector + ' [type=file]')})")
    part.type("Name", "half")
    field.send_keys(str(packed))
    part.says("Version 124 of half is served")
    body = json.dumps({"instances": [1.0]})
    answer = requests.post(f"{site.address}/v1/models/half:predict", body, headers=BOSS)
    assert answer.json() == {"predictions": [2.5]}
    part.type("Name", Keys.BACKSPACE * 4)
    field.send_keys(str(packed))
    part.says("Version 1 of sent is served", "$.model_config_list[2]")
    assert site.read()["model_config_list"][2]["config"]["name"] == "sent"
    (tmp_path / "none.zip").write_bytes(b"none")
    field.send_keys(str(tmp_path / "none.zip"))
    page.wait(f"document.querySelector({json.dumps(part.selector + ' .error')})")
    part.says("archive")
    assert len(site.read()["model_config_list"]) == 3


def test_what_is_pasted_is_not_uploaded(page, site):
    part = page.part("Upload")
    told = page.js(
        """const clipboardData = new DataTransfer(), [part] = arguments;
        clipboardData.items.add(new File(['none'], 'half.zip'));
        for (const place of ['body', `${part} [type=file]`])
        document.querySelector(place).dispatchEvent(new ClipboardEvent('paste', {clipboardData, bubbles: true}));
        return document.querySelector(`${part} > [role=status]`).textContent;""",
        part.selector,
    )
    assert told == ""


# --- the config file ------------------------------------------------------------------------------


def edit(page, text):
    page.js("document.querySelector('textarea').value = arguments[0]", text)


def test_the_file_is_checked_saved_and_rolled_back(page, site):
    part = page.part("Config file")
    text = page.wait("document.querySelector('textarea')?.value")
    assert site.config["auth"]["keys"][0]["sha256"] not in text
    assert "<hidden>" in text
    edit(page, text.replace('"All shapes"', "3"))
    part.click("Check")
    part.says("$.deployments[0].name: expected string")
    for name in ("First", "Second"):
        edit(page, text.replace("All shapes", name))
        part.click("Check")
        part.says("Would change", f'"{name}"')
        part.click("Save the file")
        part.says("Changed", f'"{name}"')
        assert site.read()["deployments"][0]["name"] == name
        assert site.read()["auth"] == site.config["auth"]  # what is hidden stays
    part.click("What would change")
    part.says("Would change", '"Second" → "First"')
    part.click("Roll back")
    part.says("Changed", '"Second" → "First"')
    page.wait("document.querySelector('textarea').value.includes('First')")
    states = "[...document.querySelector('section:last-child select').options]"
    kept = page.js(f"return {states}.map((one) => [one.value, one.textContent])")
    assert len(kept) == 1 + len(
        requests.get(f"{site.address}/v1/config/history", headers=BOSS).json()["kept"]
    )
    assert any("undone" in told for _, told in kept)
    undone = next(name for name, told in kept if "undone" in told)
    part.choose("Earlier states", undone)
    part.click("Roll back")
    part.says("Changed", '"First" → "Second"')
    assert site.read()["deployments"][0]["name"] == "Second"


def test_the_second_of_two_writers_is_told_and_loses_nothing(page, site):
    part = page.part("Config file")
    text = page.wait("document.querySelector('textarea')?.value")
    other = site.read()
    other["deployments"][0]["threshold"] = 0.9
    headers = BOSS | {"If-Match": "*"}
    other_text = json.dumps(other)
    assert requests.put(f"{site.address}/v1/config/file", other_text, headers=headers).ok
    edit(page, text.replace("All shapes", "Mine"))
    part.click("Save the file")
    part.says("has been changed since it was read")
    assert site.read() == other
    assert "Mine" in page.js("return document.querySelector('textarea').value")
    keys = page.part("Keys")  # another part reads all anew: what was written stays, and is refused
    keys.click("Disable site")
    keys.says("Changed")
    part.click("Save the file")
    part.says("has been changed since it was read")
    part.click("Read it again")
    page.wait("document.querySelector('textarea').value.includes('0.9')")
    edit(
        page,
        page.js("return document.querySelector('textarea').value").replace("All shapes", "Mine"),
    )
    part.click("Save the file")
    part.says("Changed")
    assert site.read()["deployments"][0] == other["deployments"][0] | {"name": "Mine"}


# --- who may --------------------------------------------------------------------------------------


def test_a_key_that_is_not_marked_admin_sees_nothing_of_it(browser, site):
    page = Page(browser, site.address, "good")
    page.wait("document.querySelector('#main').innerText.includes('marked admin')")
    assert page.js("return document.querySelectorAll('#main section, #main button').length") == 0
    shown = "document.querySelector('nav [href=\"#manage\"]').checkVisibility()"
    assert page.js(f"return {shown}") is False


def test_a_config_that_cannot_be_written_is_told_and_no_button_writes_it(browser, site):
    mode = site.path.stat().st_mode
    os.chmod(site.path, 0o444)
    try:
        page = Page(browser, site.address)
        part = page.part("Deployments")
        page.wait("document.querySelector('#main').innerText.includes('it is read-only')")
        part.choose("Which", "shapes")
        part.type("threshold", "0.5")
        part.click("What would change")
        part.says("Would change")
        texts = (
            "[...document.querySelectorAll('#main button:disabled')].map((one) => one.textContent)"
        )
        assert set(page.js(f"return {texts}")) == {
            *("Save", "Delete", "Disable", "Create the key"),
            *("Save the model", "Save the file", "Roll back"),
        }
    finally:
        os.chmod(site.path, mode)


def test_a_config_that_a_program_gave_is_told_so(browser, site):
    auth = {"keys": site.config["auth"]["keys"]}
    server = serving.ModelServer({"model_config_list": [], "admin": {}, "auth": auth})
    assert server.wait(60)
    try:
        with listening(server) as address:
            page = Page(browser, address)
            text = "the server was given its config by a program, not as a file"
            page.wait(f"document.querySelector('#main').innerText.includes('{text}')")
            assert page.part("Keys")
            page.wait("document.querySelector('[data-key=boss]')")
    finally:
        server.stop()


@pytest.mark.parametrize("width", [1280, 400])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(page, site, width):
    axe = ROOT / ".node/node_modules/axe-core/axe.min.js"
    if not axe.is_file():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("axe-core is not installed")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    part = page.part("Deployments")
    part.choose("Which", "shapes")
    part.click("Statistics")
    page.wait("document.querySelector('.tiles')")
    part.type("threshold", "2")
    part.click("Save")
    part.says("$.deployments[0].threshold")
    page.part("Keys").type("name", "ann")
    page.part("Keys").click("Create the key")
    page.part("Keys").says("Changed")
    page.js(axe.read_text())
    try:
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            found = page.browser.execute_async_script(
                """const done = arguments[0]; axe.run(document, {resultTypes: ['violations']}).then(
                (found) => done(found.violations.map((one) => [one.id, one.nodes[0].html])));"""
            )
            assert found == []
        root = "document.documentElement"
        assert page.js(f"return {root}.scrollWidth - {root}.clientWidth") <= 0
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
