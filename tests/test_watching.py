"""deploy/grafana-dashboard.json and deploy/alerts.yml: what they ask for is what a server tells, in words that Grafana and Prometheus take."""

import functools
import json
import os
import re
import shutil
import subprocess

import jsonschema
import pytest
import yaml
from conftest import ROOT, FakeDetector, FakeServable, Rest, bearer, fake_server, key_entry
from prometheus_client.parser import text_string_to_metric_families

import serving

DEPLOY = ROOT / "deploy"
PICTURE = {"image_type": "array", "data": [[[1, 2, 3]]]}
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}

# What Grafana's documents say of a dashboard and of its panels: the fields without which it is none.
# https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
DASHBOARD = {
    "type": "object",
    "required": ["title", "uid", "schemaVersion", "panels", "templating", "time", "refresh"],
    "properties": {
        "id": {"type": ["integer", "null"]},
        "uid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,40}$"},
        "title": {"type": "string", "minLength": 1},
        "schemaVersion": {"type": "integer", "minimum": 36},
        "graphTooltip": {"enum": [0, 1, 2]},
        "templating": {
            "required": ["list"],
            "properties": {
                "list": {
                    "items": {
                        "required": ["name", "type"],
                        "properties": {
                            "type": {"enum": ["datasource", "query"]},
                            "hide": {"enum": [0, 1, 2]},
                        },
                    }
                }
            },
        },
        "panels": {
            "minItems": 1,
            "items": {
                "required": ["id", "type", "title", "gridPos"],
                "properties": {
                    "type": {"enum": ["row", "timeseries", "stat"]},
                    "gridPos": {
                        "required": ["h", "w", "x", "y"],
                        "properties": {"w": {"maximum": 24}, "x": {"maximum": 23}},
                    },
                    "targets": {
                        "items": {"required": ["refId", "expr", "datasource"]},
                        "minItems": 1,
                    },
                },
            },
        },
    },
}


def installed(program):
    """The path of a program; without it the test is skipped, and fails where all must be there."""
    found = shutil.which(program)
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{program} is not installed")
    return found


@functools.cache
def dashboard():
    return json.loads((DEPLOY / "grafana-dashboard.json").read_text())


@functools.cache
def rules():
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return group["rules"]


def queries():
    """What the dashboard's panels ask, as Prometheus is asked: variables are every value."""
    found = [
        target["expr"]
        for panel in dashboard()["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]
    found = [expr.replace("$__rate_interval", "5m") for expr in found]
    return [re.sub(r"\$(instance|model|deployment)", ".*", expr) for expr in found]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The series that a server tells which has answered calls: name -> names of its labels."""
    store = tmp_path_factory.mktemp("quotas") / "q.sqlite3"
    key = key_entry("site", "k", quota={"calls": 100, "period": "day"}, expires="2099-12-31")
    rest = Rest(
        fake_server(
            {"m": FakeServable(), "d": FakeDetector()},
            auth={"keys": [key], "quota_store": str(store)},
            deployments=[{"id": "pets", "model": "d", "label_map": ["cat", "dog"]}],
        )
    )
    assert rest.post("/v1/models/m:predict", {"instances": [[1.0]]}).status_code == 200
    assert rest.post("/predict", PICTURE, headers=bearer("k")).status_code == 200
    rest.server.refused["queue"] += 1
    found = {"up": {"instance", "job"}}
    for family in text_string_to_metric_families(rest.get("/metrics").get_data(as_text=True)):
        for suffix in SUFFIXES.get(family.type, ("",)):
            found[family.name + suffix] = set()
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return {name: labels | {"instance", "job"} for name, labels in found.items()}


def series_in(expr):
    """The series that an expression reads, and the labels that it selects them by."""
    found = re.findall(r"\b((?:serving|process)_\w+|up)\b(?:\{([^}]*)\})?", expr)
    return [(name, set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", inside))) for name, inside in found]


def grouped_by(expr):
    """The labels that an expression groups by."""
    lists = re.findall(r"\bby\s*\(([^)]*)\)", expr)
    return {label.strip() for names in lists for label in names.split(",") if label.strip()}


def check_names(expr, told):
    known = set()
    for name, selected in series_in(expr):
        assert name in told, f"{name} is not in /metrics: {expr}"
        known |= told[name]
        if "gpu" not in name:  # the series of what is not in this machine have no labels to see
            assert selected <= told[name], f"{name} has no {selected - told[name]}: {expr}"
    assert series_in(expr) and grouped_by(expr) <= known | {"le"}, expr


# --- Grafana --------------------------------------------------------------------------------------


def test_the_dashboard_has_what_grafanas_documents_require():
    jsonschema.Draft202012Validator(DASHBOARD).validate(dashboard())
    ids = [panel["id"] for panel in dashboard()["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        letters = [target["refId"] for target in panel.get("targets", ())]
        assert len(letters) == len(set(letters)), panel["title"]


def test_no_two_panels_lie_on_one_another():
    taken = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_grafanas_own_types_lose_nothing_of_the_dashboard():
    """What Grafana's published types do not know, they drop: nothing of it may be."""
    try:
        from grafana_foundation_sdk.cog import encoder, plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard
    except ImportError:
        installed("grafana-foundation-sdk")
    plugins.register_default_plugins()
    back = json.loads(encoder.JSONEncoder().encode(Dashboard.from_json(dashboard())))

    def lost(ours, theirs, path="$"):
        if isinstance(ours, dict):
            return [
                one
                for key, value in ours.items()
                for one in (
                    lost(value, theirs[key], f"{path}.{key}")
                    if key in theirs
                    else [f"{path}.{key}"]
                )
            ]
        if isinstance(ours, list):
            pairs = enumerate(zip(ours, theirs, strict=True))
            return [one for i, pair in pairs for one in lost(*pair, f"{path}[{i}]")]
        return [] if ours == theirs else [path]

    assert lost(dashboard(), back) == []


def test_the_dashboard_asks_for_what_a_server_tells(told):
    assert len(queries()) > 25
    for expr in queries():
        check_names(expr, told)
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "instance", "model", "deployment"]
    for each in variables.values():
        if each["type"] == "query":
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", each["query"]["query"])
            assert asked[2] in told[asked[1]]
    text = json.dumps(dashboard()["panels"])
    used = {
        json.dumps(panel["datasource"]) for panel in dashboard()["panels"] if "targets" in panel
    }
    assert used == {'{"type": "prometheus", "uid": "${datasource}"}'}
    assert set(re.findall(r"\$\{?(\w+)", text)) == {*variables, "__rate_interval"}


def test_the_dashboard_shows_all_that_a_server_tells(told):
    shown = {name for expr in queries() for name, _ in series_in(expr)}
    others = {
        name
        for name in told
        if name.startswith("serving_")
        and not name.endswith(("_created", "_bucket", "_sum", "_count"))
        and name not in shown
    }
    assert others == {"serving_active_learning_pictures_total"}


def test_prometheus_reads_the_dashboards_expressions(tmp_path):
    rules = [{"record": f"q{i}", "expr": expr} for i, expr in enumerate(queries())]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run_promtool("check", "rules", file)


# --- Prometheus -----------------------------------------------------------------------------------


def run_promtool(*arguments):
    done = subprocess.run(
        [installed("promtool"), *arguments], capture_output=True, text=True, cwd=DEPLOY
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_rules_of_prometheus():
    run_promtool("check", "rules", "alerts.yml")


def test_alerts_fire_when_they_must_and_not_before():
    run_promtool("test", "rules", "alerts_test.yml")
    tested = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    assert [test["name"] for test in tested] == [rule["alert"] for rule in rules()]


def test_alerts_ask_for_what_a_server_tells(told):
    for rule in rules():
        check_names(rule["expr"], told)


def test_who_is_left_out_of_the_errors_is_a_route():
    known = {row.name for row in serving.routes_of(tuple(serving.installed()))}
    rule = next(rule["expr"] for rule in rules() if rule["alert"] == "ServingErrors")
    lists = [re.findall(r'route!~"([^"]*)"', expr) for expr in (rule, *queries())]
    assert lists[0] and {names for found in lists for names in found} == {lists[0][0]}
    assert set(lists[0][0].split("|")) <= known


def test_alerts_say_how_bad_it_is_and_what_to_do():
    for rule in rules():
        assert re.fullmatch(r"\d+m", rule["for"])
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} == set(rule["annotations"])
