"""A new thing is one file of somebody else's: each kind of them, as such a file, served by all of it."""

import json

import numpy as np
import pytest
from conftest import ROOT, Rest, bearer, config, key_entry

import serving

URL = """
import serving

def view_hello(server, call, name):
    return serving.reply({"hello": name})

EXTENSION = serving.Extension(
    "hello", routes=[serving.route("GET", "/hello/{name}", view_hello, "open")]
)
"""
ROUTINE = '''
from routines import argument, keep, routine

@routine()
class First:
    """The first predictions."""

    count: int = argument(doc="how many", minimum=0)

    def __call__(self, tensors):
        return keep(tensors, slice(self.count))
'''
ENVELOPE = """
import serving

def unwrap(body):
    if not isinstance(body, dict) or "input_data" not in body:
        raise serving.BadRequest("expected {'input_data': ...}")
    return body["input_data"]

BENTO = serving.Envelope(
    unwrap=unwrap,
    wrap=lambda result: {"data": result, "ok": True},
    error=lambda text, status, request_id: {"error": text, "ok": False},
)

EXTENSION = serving.Extension("bento", envelopes={"bento": BENTO})

def double(value):
    return 2 * value

@serving.enveloped(BENTO)
def triple(value):
    return 3 * value
"""
AUTHENTICATION = """
import serving

PEOPLE = {"Basic YWRhOmxvdmVsYWNl": "ada"}

def identify(server, call, found):
    given = call.headers.get("Authorization", "")
    if not given.startswith("Basic "):
        return None
    if given not in PEOPLE:
        raise serving.ServingError("Nobody of that name", "UNAUTHENTICATED")
    return serving.Caller(PEOPLE[given])

EXTENSION = serving.Extension("basic", identify=identify)
"""
BODY = """
import serving

def read(call, body):
    if call.headers.get("Content-Type") == "text/csv":
        return {"instances": [[float(cell) for cell in line.split(",")] for line in body.decode().split()]}

def write(call, answer):
    if call.headers.get("Accept") == "text/csv":
        lines = [",".join(map(str, row)) for row in answer["predictions"].tolist()]
        return serving.Reply("\\n".join(lines).encode(), 200, "text/csv")

EXTENSION = serving.Extension("csv", read=read, write=write)
"""
FORMAT = """
import numpy as np
import serving

def wrap(server, load):
    def load_table(request):
        file = request.folder / "weights.npy"
        if not file.is_file():
            return load(request)
        weights = np.load(file)
        spec = lambda name: serving.TensorSpec(name, name, "DT_FLOAT", (None, len(weights)))
        signature = serving.Signature({"x": spec("x")}, {"y": spec("y")})
        answer = lambda name, inputs: {"y": inputs["x"] * weights}
        return serving.Servable({"serving_default": signature}, answer, device="CPU:0")
    return load_table

EXTENSION = serving.Extension("weights", wrap_load=wrap)
"""
METRIC = """
import serving
from prometheus_client.core import GaugeMetricFamily

def observe(server, trace, line, reply):
    server.state["largest"][0] = max(server.state["largest"][0], len(reply.body))

def collect(server):
    yield GaugeMetricFamily("serving_largest_answer_bytes", "So far", server.state["largest"][0])

EXTENSION = serving.Extension("largest", open=lambda server: [0], observe=observe, collect=collect)
"""
COMMAND = '''
import sys
import serving

def names(source, value):
    """print the models' names after a word, then exit"""
    print(value, *(model.name for model in serving.load_config(source).models))
    return 0

EXTENSION = serving.Extension("names", commands={"names": names})

if __name__ == "__main__":
    sys.exit(serving.main(extensions=[*serving.installed(), EXTENSION]))
'''
SECTION = """
from dataclasses import dataclass
import serving

@dataclass(frozen=True)
class Greeting:
    word: str = serving.option("Hello", "what is said first")
    times: int = serving.option(1, "how often", minimum=1)

def prepare(server, config):
    return " ".join([config.greeting.word] * config.greeting.times) if config.greeting else "..."

def view_greet(server, call):
    return serving.reply(server.prepared.of["greeting"])

EXTENSION = serving.Extension(
    "greeting",
    sections={"greeting": Greeting},
    prepare=prepare,
    routes=[serving.route("GET", "/greet", view_greet, "open")],
)
"""


@pytest.fixture
def serve(tmp_path):
    """A client of a server with the extension that a file holds, over the demo's `half_plus_two`."""
    servers = []

    def serve(text, file="mine.py", **others):
        (tmp_path / file).write_text(text)
        names = {"__name__": "mine"}
        exec(compile(text, str(tmp_path / file), "exec"), names)
        more = [names["EXTENSION"]] if "EXTENSION" in names else []
        model = {"name": "m", "base_path": str(ROOT / "models" / "half_plus_two")}
        (tmp_path / "config.json").write_text(
            json.dumps(config(*others.pop("models", [model]), **others))
        )
        server = serving.ModelServer(
            tmp_path / "config.json", extensions=[*more, *serving.installed()]
        )
        servers.append(server)
        assert server.wait(60) and not server.readiness()
        return Rest(server)

    yield serve
    for server in servers:
        server.stop()


def test_a_url(serve):
    assert serve(URL).get("/hello/ada").json == {"hello": "ada"}


def test_a_routine(serve):
    shapes = {"name": "shapes", "base_path": str(ROOT / "models" / "shapes")}
    chain = [{"name": "First", "arguments": {"count": 1}}]
    rest = serve(
        ROUTINE,
        models=[shapes],
        routine_modules=["mine.py"],
        deployments=[{"id": "s", "model": "shapes", "routines": chain}],
        auth={"keys": [key_entry("one", "k")]},
    )
    picture = (ROOT / "models/shapes/samples/0.jpg").read_bytes()
    assert len(rest.post("/s/predict", picture, headers=bearer("k")).json["predictions"]) == 1


def test_an_envelope_of_a_handler(serve):
    rest = serve(
        ENVELOPE,
        handlers=[
            {"path": "/double", "function": "mine.py:double", "envelope": "bento"},
            {"path": "/triple", "function": "mine.py:triple"},
            {"path": "/plain", "function": "mine.py:triple", "envelope": "none"},
        ],
        auth={"keys": [key_entry("one", "k")]},
    )
    ask = lambda path, body, key="k": rest.post(path, body, headers=bearer(key))  # noqa: E731
    for path, answer in (("/double", 8), ("/triple", 12)):
        assert ask(path, {"input_data": 4}).json == {"data": answer, "ok": True}
        assert ask(path, 4).json == {"error": "expected {'input_data': ...}", "ok": False}
        denied = ask(path, {"input_data": 4}, "wrong")
        assert denied.status_code == 401 and denied.json["ok"] is False
        assert rest.get(path, headers=bearer("k")).json["data"]["status"] == "ready"
    assert ask("/plain", 4).json == 12


def test_an_envelope_that_nobody_has(serve):
    with pytest.raises(serving.ConfigError) as raised:
        serve(ENVELOPE, handlers=[{"path": "/f", "function": "mine.py:f", "envelope": "bentoml"}])
    assert str(raised.value).endswith(
        "$.handlers[0].envelope: expected one of bento, hub, none, got 'bentoml'"
    )


def test_an_envelope_that_fails_is_the_requests_500(serve):
    text = ENVELOPE.replace('{"error": text, "ok": False}', "text.decode()")
    rest = serve(
        text,
        handlers=[{"path": "/f", "function": "mine.py:double", "envelope": "bento"}],
        auth={"keys": [key_entry("one", "k")]},
    )
    response = rest.post("/f", 4, headers=bearer("k"))
    assert response.status_code == 500 and response.json["status"] == "InternalServerError"


def test_a_scheme_of_authentication(serve):
    rest = serve(AUTHENTICATION, auth={"protect": "all", "keys": [key_entry("one", "k")]})
    ask = lambda value: rest.get("/v1/models", headers={"Authorization": value}).status_code  # noqa: E731
    assert ask("Basic YWRhOmxvdmVsYWNl") == 200
    assert ask("Basic YWRhOmJ5cm9u") == 401
    assert ask("Bearer k") == 200, "the config's keys are there as well"
    assert ask("Bearer l") == 401


def test_a_form_of_bodies(serve):
    headers = {"Content-Type": "text/csv", "Accept": "text/csv"}
    answer = serve(BODY).post("/v1/models/m:predict", "1,2\n3,4\n", headers=headers)
    assert answer.get_data(as_text=True) == "2.5,3.0\n3.5,4.0"


def test_a_format_of_models(serve, tmp_path):
    (tmp_path / "table" / "1").mkdir(parents=True)
    np.save(tmp_path / "table" / "1" / "weights.npy", np.float32([2, 3]))
    rest = serve(FORMAT, models=[{"name": "m", "base_path": "table"}])
    answer = rest.post("/v1/models/m:predict", {"instances": [[1, 1]]})
    assert answer.json == {"predictions": [[2.0, 3.0]]}


def test_a_metric(serve):
    rest = serve(METRIC)
    rest.get("/v1/models/m")
    assert "serving_largest_answer_bytes" in rest.get("/metrics").get_data(as_text=True)


def test_a_section_of_the_config(serve, tmp_path):
    rest = serve(SECTION, greeting={"word": "Hi", "times": 2})
    assert rest.get("/greet").json == "Hi Hi"
    changed = json.loads((tmp_path / "config.json").read_text())
    for greeting, status, said in (
        ({"times": 0}, 412, "Hi Hi"),
        ({"wrod": "Hi"}, 412, "Hi Hi"),
        ({"times": 3}, 201, "Hello Hello Hello"),
        (None, 201, "..."),
    ):
        changed["greeting"] = greeting
        (tmp_path / "config.json").write_text(json.dumps(changed))
        assert rest.post("/v1/config/reload").status_code == status
        assert rest.get("/greet").json == said
    with pytest.raises(serving.ConfigError, match=r"\$.greeting: unknown key"):
        serving.ModelServer(config("m", greeting={}))


def test_a_command(capsys, monkeypatch, tmp_path):
    names = {"__name__": "mine"}
    exec(COMMAND, names)
    (tmp_path / "config.json").write_text(json.dumps(config("one", "two")))
    extensions = [*serving.installed(), names["EXTENSION"]]
    arguments = ["--config", str(tmp_path / "config.json"), "--names", "served:"]
    assert serving.main(arguments, extensions) == 0
    assert capsys.readouterr().out == "served: one two\n"
    with pytest.raises(SystemExit):
        serving.main(["--help"], extensions)
    assert "--names VALUE" in capsys.readouterr().out
