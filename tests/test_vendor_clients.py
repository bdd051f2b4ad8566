"""The vendor's published client programs work against this server; only address, key and picture are replaced."""

import json
import re

import pytest
from conftest import ROOT
from languages import PICTURE, answering, need, predict, run, serving_shapes

VENDOR = ROOT / "tests/clients/vendor"
DEPLOYMENTS = (
    "75965b90-d29f-4981-8935-59ff53e1d35d",
    "aa351718-744e-4997-b051-346c3274bcbd",
)  # the ids in the programs
PROGRAMS = {  # language: file, how to run it
    "curl": ("curl.sh", "sh curl.sh"),
    "python": ("python.py", "python python.py"),
    "fetch": ("fetch.js", "node --require ./whole.js fetch.js"),
    "axios": ("axios.js", "node --require ./whole.js axios.js"),
    "java": ("Main.java", "java Main.java"),
    "go": ("main.go", "go run main.go"),
    "r": ("httr.R", "Rscript httr.R"),
    "ruby": ("ruby.rb", "ruby ruby.rb"),
    "c": ("libcurl.c", "cc libcurl.c -o libcurl -lcurl && ./libcurl"),
}
# console.log leaves out what lies deeper than two levels, unless told otherwise.
WHOLE = 'Object.assign(require("util").inspect.defaultOptions, {depth: null, maxArrayLength: null, maxStringLength: null})'
AS_JSON = (
    'node --print \'JSON.stringify(eval(`(${require("fs").readFileSync("printed", "utf8")})`))\''
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving_shapes(tmp_path_factory.mktemp("vendor"), *DEPLOYMENTS) as address:
        yield address


@pytest.fixture(scope="module")
def picture():
    with answering(lambda request, body: PICTURE.read_bytes()) as address:
        yield f"{address}/picture.jpg"


def run_program(language, folder, server, picture, key):
    """Run a vendor's program with its three placeholders replaced, and nothing else."""
    file, command = PROGRAMS[language]
    source = (VENDOR / file).read_text()
    for placeholder, value in (
        (r"https://[^/]+\.datature\.io", server),
        (r"YOUR_SECRET_(HASH|KEY)", key),
        ("https://YOUR_IMAGE.jpg", picture),
    ):
        source, count = re.subn(placeholder, value, source)
        assert count == 1
    (folder / file).write_text(source)
    (folder / "whole.js").write_text(WHOLE)
    return run(command, folder)


def read_printed(language, printed, folder):
    """The answer in what a program prints: JSON, in R as a quoted string, in JavaScript an object as console.log shows it."""
    if language == "r":
        printed = json.loads(printed.removeprefix("[1] "))
    if language in ("fetch", "axios"):
        (folder / "printed").write_text(printed)
        printed = run(AS_JSON, folder).stdout
    return json.loads(printed)


@pytest.mark.parametrize("language", PROGRAMS)
def test_the_vendors_program_prints_the_predictions(language, tmp_path, server, picture):
    need(language)
    done = run_program(language, tmp_path, server, picture, "secret")
    assert done.returncode == 0, done.stderr
    answer = read_printed(language, done.stdout, tmp_path)
    assert answer["predictions"] and (200, answer) == predict(server, DEPLOYMENTS[0])


@pytest.mark.parametrize("language", ["curl", "python", "fetch", "axios"])
def test_the_vendors_program_shows_why_a_wrong_key_is_refused(language, tmp_path, server, picture):
    need(language)
    status, refusal = predict(server, DEPLOYMENTS[0], "wrong")
    assert (status, refusal["error"]) == (401, "The key is not valid")
    done = run_program(language, tmp_path, server, picture, "wrong")
    if language == "axios":  # it catches no error, so Node.js prints all that it knows of it
        assert done.returncode != 0 and "The key is not valid" in done.stderr
    else:
        assert read_printed(language, done.stdout, tmp_path)["error"] == "The key is not valid", (
            done
        )
