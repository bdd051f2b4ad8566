"""The ready client programs: they run as they say, send exactly what they are given, and fail loudly."""

import base64
import configparser
import email.policy
import json
from urllib.parse import quote

import pytest
import requests
from conftest import ROOT, FakeServable, Rest, fake_server, listening, signature, spec
from languages import PICTURE, answering, need, predict, run, serving_shapes

import serving
from serving_extensions.client_code import LANGUAGES, TEMPLATES, call_code, client_code

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
    kind, code = LANGUAGES[language], client_code(language, url, key, routines)
    if language == "curl":  # a line to be typed, which names the file itself
        code = code.replace("image=@picture.jpg", f"image=@{picture}")
    else:
        assert kind.run.endswith(" picture.jpg")
    (folder / kind.file_name).write_text(code, "utf-8")
    return run(kind.run.replace("picture.jpg", str(picture)), folder)


def run_again(language, folder, picture):
    """Run a client that is there, and compiled where its language is."""
    command = LANGUAGES[language].run.rpartition(" && ")[2]
    return run(command.replace("picture.jpg", str(picture)), folder)


def run_call(language, folder, code):
    """Run a program that makes some other call."""
    kind = LANGUAGES[language]
    (folder / kind.file_name).write_text(code, "utf-8")
    return run(kind.run.removesuffix(" picture.jpg"), folder)


def test_a_client_prints_the_predictions(language, tmp_path, server):
    done = run_client(language, tmp_path, f"{server}/shapes/predict", "secret", ROUTINES)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["predictions"] and (200, answer) == predict(server, "shapes")


def test_a_client_says_why_it_was_refused_and_fails(language, tmp_path, server):
    done = run_client(language, tmp_path, f"{server}/shapes/predict", "wrong", [])
    printed = done.stdout if language == "curl" else done.stderr  # curl prints answers in one place
    assert done.returncode != 0 and (language == "curl" or done.stdout == "")
    assert "The key is not valid" in printed


def test_a_client_sends_exactly_what_it_was_given_and_fails_where_it_cannot(language, tmp_path):
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
                read_form(request, body) if language == "curl" else json.loads(body),
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
        away = picture.rename(tmp_path / "away")
        assert run_again(language, tmp_path, picture).returncode != 0, "there is no picture"
        sent = away.rename(picture).read_bytes()
    assert run_again(language, tmp_path, picture).returncode != 0, "there is no server"
    assert (done.returncode, done.stdout.strip()) == (0, '{"predictions":["ü"]}'), done
    [(method, path, authorization, content_type, body)] = received
    assert (method, path, authorization) == (
        "POST",
        "/it's%20$HOME/predict?a=1&b=@KEY@",
        f"Bearer {NASTY_KEY}",
    )
    if language == "curl":
        assert body == {"image": sent, "routines": json.dumps(NASTY).encode()}
        return
    assert content_type.startswith("application/json")
    assert body == {
        "image_type": "base64",
        "data": base64.b64encode(sent).decode(),
        "routines": NASTY,
    }


def read_form(request, body):
    """The fields of a multipart body, as Python's own parser of mails reads them."""
    head = f"Content-Type: {request.headers['Content-Type']}\r\n\r\n".encode()
    parts = email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts()
    return {
        part.get_param("name", header="Content-Disposition"): part.get_payload(decode=True)
        for part in parts
    }


def test_trigraphs_of_c_mean_themselves():
    source = client_code("c", "http://x/??/", "??/", [{"name": "??/"}])
    assert "??" not in source and source.count("\\?\\?/") == 3


def test_unknown_language_names_those_there_are():
    with pytest.raises(
        ValueError,
        match="^There is no client for 'perl'; there are: curl, python, javascript, axios, "
        "typescript, java, go, r, ruby, c, csharp, php$",
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
        kind + language.template for language in LANGUAGES.values() for kind in ("", "call_")
    }
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert "clients/*" in setup["options.package_data"]["serving_extensions"]
    for language in LANGUAGES:
        source = client_code(language, "http://x", "k", [])
        assert (
            "@" not in source.replace("image=@picture.jpg", "").replace("@types", "")
            and source.count("http://x") == 1
        )
        source = call_code(language, "POST", "http://x", "k", {})
        assert "@" not in source and source.count("http://x") == 1


# --- any call -------------------------------------------------------------------------------------

ODD = """it's "q" \\ $HOME #{x} `id` $(id) %41 ??/ @KEY@ /:?& ü 漢 \u2028 """  # a model's name


@pytest.fixture(scope="module")
def model():
    """The URLs of models whose names are hard to write, by language."""
    plainer = ODD.replace(":", "")  # Mono decodes %3A, whatever it is told
    with listening(fake_server({ODD: FakeServable(), plainer: FakeServable()})) as address:
        yield (
            lambda language: (
                f"{address}/v1/models/{quote(plainer if language == 'csharp' else ODD, safe='')}"
            )
        )


def test_a_call_prints_the_answer_of_a_model(language, tmp_path, model):
    code = requests.get(f"{model(language)}/client/{language}?outputs=y").text
    assert "YOUR_KEY" not in code  # it is open to all
    done = run_call(language, tmp_path, code)
    assert done.returncode == 0, done
    assert json.loads(done.stdout) == {"outputs": [[1.5]]}  # of 1.0


def test_a_program_for_texts_is_answered_once_its_input_is_filled_in(language, tmp_path):
    texts = [spec("line", "DT_STRING", (None,)), spec("column", "DT_STRING", (None, 1))]
    same = {"serving_default": signature(texts, texts)}
    with listening(fake_server({"m": serving.Servable(same, lambda _, inputs: inputs)})) as address:
        code = requests.get(f"{address}/v1/models/m/client/{language}").text
        done = run_call(language, tmp_path, code.replace("YOUR_INPUT", "lovely"))
    assert done.returncode == 0, done
    assert json.loads(done.stdout) == {"outputs": {"line": ["lovely"], "column": [["lovely"]]}}


def test_a_call_is_exactly_what_was_asked_for_and_fails_when_it_is_refused(language, tmp_path):
    received = []

    def record(request, body):
        sent = [request.headers.get(name) for name in ("Authorization", "Content-Type")]
        received.append((request.command, request.path, *sent, body))
        return (201, b"[1]") if request.command == "PUT" else (401, b"no key")

    with answering(record) as address:
        done = run_call(language, tmp_path, call_code(language, "GET", f"{address}/a?b=%20", None))
        assert done.returncode != 0, done
        assert "no key" in (done.stdout if language == "curl" else done.stderr)
        url = f"{address}/it's%20$HOME/x:y?a=1&b=@KEY@"
        done = run_call(language, tmp_path, call_code(language, "PUT", url, NASTY_KEY, NASTY))
        assert (done.returncode, done.stdout.strip()) == (0, "[1]"), done
    assert received[0] == ("GET", "/a?b=%20", None, None, b"")
    assert received[1][:3] == ("PUT", "/it's%20$HOME/x:y?a=1&b=@KEY@", f"Bearer {NASTY_KEY}")
    assert received[1][3].startswith("application/json") and json.loads(received[1][4]) == NASTY


@pytest.mark.parametrize(
    ("url", "status", "part"),
    [
        ("/v1/models/%ff/client/python", 404, "Servable not found"),
        ("/%ff/client/python", 404, ""),
        ("/v1/client/python?path=/readyz%3Fa=%E2%82%AC", 200, "a=%E2%82%AC"),
        ("/v1/client/python?path=/usage&key=K", 200, "Bearer K"),
        ("/v1/client/python?path=/livez&key=K", 200, "/livez"),
    ],
)
def test_a_program_is_written_for_any_url_or_it_is_told_why_not(url, status, part):
    server = fake_server({"m": FakeServable()})
    answer = Rest(server).get(url, headers={"x-api-key": server.generated_key})
    text = answer.get_data(as_text=True)
    assert answer.status_code == status and part in text, text
    assert ("Bearer K" in text) == ("usage" in url)
