"""The ready client programs: they run as they say, send exactly what they are given, and fail loudly."""

import base64
import configparser
import json

import pytest
from conftest import ROOT
from languages import PICTURE, answering, need, predict, run, serving_shapes

from serving_extensions.client_code import LANGUAGES, TEMPLATES, client_code

CHECK = {"javascript": "fetch"}  # where the client's name is not the language's in languages.py
ROUTINES = [{"name": "FilterConfidence", "arguments": {"confidence": 0.0}}]
NASTY = [
    {
        "name": "FilterClass",
        "arguments": {
            "class_name": [
                'it\'s "q" \\ $HOME #{x} ü\n',
                "`id` $(id) ${id} %s %d ??/",
                "\\\" '''; @KEY@ \u2028 \x7f",
            ]
        },
    }
]
NASTY_KEY = """it's "q" \\ \\\\ $HOME #{x} ${x} `id` $(id) %s ??/ \\u0022 '''; @ROUTINES@ */ \\"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving_shapes(tmp_path_factory.mktemp("clients"), "shapes") as address:
        yield address


@pytest.fixture(params=LANGUAGES)
def language(request):
    need(CHECK.get(request.param, request.param))
    return request.param


def run_client(language, folder, url, key, routines, picture=PICTURE):
    """Run a client as its own note says, on a picture."""
    kind = LANGUAGES[language]
    (folder / kind.file_name).write_text(client_code(language, url, key, routines), "utf-8")
    assert kind.run.endswith(" picture.jpg")
    return run(kind.run.replace("picture.jpg", str(picture)), folder)


def test_a_client_prints_the_predictions(language, tmp_path, server):
    done = run_client(language, tmp_path, f"{server}/shapes/predict", "secret", ROUTINES)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["predictions"] and (200, answer) == predict(server, "shapes")


def test_a_client_says_why_it_was_refused_and_fails(language, tmp_path, server):
    done = run_client(language, tmp_path, f"{server}/shapes/predict", "wrong", [])
    assert done.returncode != 0 and done.stdout == ""
    assert "The key is not valid" in done.stderr


def test_a_client_sends_exactly_what_it_was_given(language, tmp_path):
    received, picture = [], tmp_path / "picture"
    picture.write_bytes(
        bytes(range(256)) * 800 + b"ab"
    )  # more than an argument of a command may hold

    def record(request, body):
        received.append(
            (
                request.command,
                request.path,
                request.headers["Authorization"],
                request.headers["Content-Type"],
                json.loads(body),
            )
        )
        return '{"predictions":["ü"]}'.encode()

    with answering(record) as address:
        done = run_client(
            language,
            tmp_path,
            f"{address}/it's%20$HOME/predict?a=1&b=@KEY@",
            NASTY_KEY,
            NASTY,
            picture,
        )
    assert (done.returncode, done.stdout.strip()) == (0, '{"predictions":["ü"]}'), done
    [(method, path, authorization, content_type, body)] = received
    assert (method, path, authorization) == (
        "POST",
        "/it's%20$HOME/predict?a=1&b=@KEY@",
        f"Bearer {NASTY_KEY}",
    )
    assert content_type.startswith("application/json")
    assert body == {
        "image_type": "base64",
        "data": base64.b64encode(picture.read_bytes()).decode(),
        "routines": NASTY,
    }


def test_trigraphs_of_c_mean_themselves():
    source = client_code("c", "http://x/??/", "??/", [{"name": "??/"}])
    assert "??" not in source and source.count("\\?\\?/") == 3


def test_a_client_without_a_picture_or_a_server_fails(language, tmp_path):
    assert (
        run_client(language, tmp_path, "http://127.0.0.1:9/", "k", [], tmp_path / "none").returncode
        != 0
    )
    assert run_client(language, tmp_path, "http://127.0.0.1:9/", "k", []).returncode != 0


def test_unknown_language_names_those_there_are():
    with pytest.raises(
        ValueError,
        match="^There is no client for 'perl'; there are: curl, python, javascript, axios, java, go, r, ruby, c$",
    ):
        client_code("perl", "http://x", "k", [])


def test_what_cannot_stand_in_a_literal_is_refused():
    with pytest.raises(ValueError, match="^The key has characters that cannot be printed$"):
        client_code("curl", "http://x", "a\nb", [])
    with pytest.raises(ValueError, match="^The url has characters that cannot be printed$"):
        client_code("java", "http://x\u2028", "k", [])
    with pytest.raises(ValueError, match="JSON"):
        client_code("go", "http://x", "k", [float("nan")])


def test_every_template_is_a_language_and_is_in_the_package():
    assert {file.name for file in TEMPLATES.iterdir() if file.is_file()} == {
        kind.template for kind in LANGUAGES.values()
    }
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "clients/*" in setup["options.package_data"]["serving_extensions"]
    for language in LANGUAGES:
        source = client_code(language, "http://x", "k", [])
        assert "@" not in source.replace("--data-binary @-", "") and source.count("http://x") == 1
