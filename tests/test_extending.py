"""The example of docs/extending.md, word for word, and what a hook that fails does."""

import re

import flask
import pytest
import requests
from conftest import ROOT, FakeServable, Rest, config, listening

import serving

DOC = (ROOT / "docs" / "extending.md").read_text()


@pytest.fixture
def server(monkeypatch):
    """The server of the document, over the demo."""
    monkeypatch.chdir(ROOT)
    names = {}
    exec(re.search(r"```python\n(.*?)```", DOC, re.DOTALL)[1], names)
    server = names["server"]
    assert server.wait(60)
    yield server
    server.stop()


def mounted(server):
    site = flask.Flask("site")
    site.register_blueprint(serving.create_blueprint(server), url_prefix="/ml")
    return site.test_client(), "/ml"


@pytest.mark.parametrize(
    "mount", [mounted, lambda server: (serving.create_app(server).test_client(), "")]
)
def test_the_documents_extension_counts_rows(server, mount):
    client, prefix = mount(server)
    path = f"{prefix}/v1/models/half_plus_two:predict"
    assert client.post(path, json={"instances": [1.0, 2.0, 5.0]}).status_code == 200
    assert client.get(f"{prefix}/rows").json["half_plus_two"] == 3
    assert client.get(f"{prefix}/stats").status_code == 200, "the others are there as well"


def test_the_document_has_every_hook():
    for field in serving.dataclasses.fields(serving.Extension):
        assert field.name == "name" or f"`{field.name}" in DOC, field.name


def test_a_hook_that_fails_is_that_requests_500_and_no_traceback(caplog):
    def fail(server, call):
        raise RuntimeError("secret")

    broken = serving.Extension("broken", routes=[serving.route("GET", "/broken", fail, "open")])
    fake = FakeServable()
    server = serving.ModelServer(
        config("m"),
        extensions=[broken],
        load=lambda folder, model: fake,
        list_versions=lambda path: {1: serving.Path(path)},
    )
    assert server.wait(60)
    rest = Rest(server)
    response = rest.get("/broken")
    assert response.status_code == 500 and "secret" not in response.text
    assert "secret" in caplog.text
    assert rest.post("/v1/models/m:predict", {"inputs": [[1.0]]}).status_code == 200


def test_a_guard_that_is_none_is_refused():
    with pytest.raises(ValueError, match="/r: guard: expected open, .*got 'keys'"):
        serving.route("GET", "/r", print, "keys")


def test_what_hooks_of_a_request_raise_is_that_requests_error(caplog):
    """Over a real socket too: `find` is asked by the thread that reads those."""

    def fail(*given):
        raise RuntimeError("secret")

    for hook, status in (("find", 500), ("begin", 500), ("headers", 400)):
        broken = serving.Extension("broken", **{hook: fail})
        server = serving.ModelServer(config(), extensions=[*serving.installed(), broken])
        with listening(server) as address:
            answer = requests.get(f"{address}/v1/nothing")
        assert answer.status_code == status and "error" in answer.json(), (hook, answer.text)
        assert "secret" not in answer.text and "secret" in caplog.text
        assert server.state["metrics"].in_flight == 0
        caplog.clear()


def test_a_name_is_one_extensions_alone():
    again = serving.Extension("metrics")
    with pytest.raises(ValueError, match="2 extensions are named 'metrics'"):
        serving.ModelServer(config(), extensions=[*serving.installed(), again])


def test_an_end_that_fails_keeps_no_other_from_ending(caplog):
    def fail(server):
        raise RuntimeError("why")

    ended = []
    extensions = [serving.Extension("a", end=fail), serving.Extension("b", end=ended.append)]
    server = serving.ModelServer(config(), extensions=extensions)
    server.stop()
    assert ended == [server] and "why" in caplog.text
    with pytest.raises(serving.ServingError, match="The server is stopping"):
        server.predict("half_plus_two", {"instances": [1.0]})
    with pytest.raises(serving.ServingError, match="The server is stopping"):
        server.manager.find("half_plus_two", None, "stable")


def test_a_commands_help_may_have_percents(capsys):
    def measure(source, value):
        """Measure 5 % of the requests."""

    extension = serving.Extension("measuring", commands={"measure": measure})
    serving.build_parser([extension]).print_help()
    assert "Measure 5 % of the requests." in capsys.readouterr().out
