"""The process: start, what it prints, wrong starts, signals; over a real socket."""

import contextlib
import dataclasses
import http.client
import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
from conftest import ROOT, Process, listening, signature, spec, started, until

import routines
import serving
from serving_extensions import commands, keras_files, progress


@pytest.fixture(scope="module")
def demo_process():
    """The demo in a process; interrupted, it has written its log alone, and ends with status 0."""
    with started("--port", "0") as server:
        server.wait_for("Try:")
        yield server
        assert server.end(signal.SIGINT) == 0
        assert not any("Traceback" in line or "\x1b" in line for line in server.err)
        ours = [" serving: " in line for line in server.err]
        assert ours and all(ours), "the log alone, and nothing of TensorFlow's own"


def test_demo_starts_says_what_it_serves_and_its_curl_works(demo_process):
    curl, out = demo_process.wait_for("Try:"), "".join(demo_process.out)
    for model, version in (("digits", 1), ("half_plus_three", 123), ("half_plus_two", 123)):
        assert f"{model} version {version}: AVAILABLE on " in out
    assert f"http://127.0.0.1:{demo_process.port}/v1/models" in out
    done = subprocess.run(
        curl.removeprefix("Try:").strip() + " -sS --fail-with-body",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert "outputs" in json.loads(done.stdout), done
    assert demo_process.call("GET", "/readyz")[0] == 200


def test_no_progress_is_drawn_without_stderr(monkeypatch):
    """Python has None for a stderr that is closed, as by `2>&-`."""
    monkeypatch.setattr(sys, "stderr", None)
    assert progress.show_load(serving.ModelServer({"model_config_list": []})) is None


def heard(capsys, text):
    """What a server of this process has printed, once a text is in it."""
    said = []
    until(lambda: said.append(capsys.readouterr().out) or text in "".join(said), 60)
    return "".join(said)


def shell(curl, folder):
    """Run a curl that was shown, its answer into a file of the folder; returns its exit status."""
    command = curl.strip() + " -sS --fail-with-body -o answer"
    return subprocess.run(command, shell=True, cwd=folder).returncode


def write_config(folder, *models, **others):
    """A config of half_plus_two under a name, or of other models."""
    path = folder / "config.json"
    models = models or ({"name": "m", "base_path": str(ROOT / "models/half_plus_two")},)
    items = [{"config": model} for model in models]
    path.write_text(json.dumps({"model_config_list": items, **others}))
    return path


def test_names_that_stdout_cannot_spell_are_told_all_the_same(tmp_path, monkeypatch):
    (tmp_path / "配置").mkdir()
    base_path = str(ROOT / "models/half_plus_two")
    path = write_config(tmp_path / "配置", {"name": "模型", "base_path": base_path})
    latin = io.TextIOWrapper(io.BytesIO(), "latin-1", write_through=True)
    monkeypatch.setattr(sys, "stdout", latin)
    with listening(serving.ModelServer(path)):
        until(lambda: b"Try:" in latin.buffer.getvalue(), 60)
    said = latin.buffer.getvalue().decode("latin-1")
    assert "%E6%A8%A1%E5%9E%8B:predict" in said
    assert r"\u6a21\u578b version 123: AVAILABLE" in said
    assert serving.main(["--config", str(path), "--check"]) == 0
    assert rb"model  \u6a21\u578b  version 123 on AUTO  " in latin.buffer.getvalue()


def test_who_has_no_home_is_served(tmp_path, monkeypatch):
    """As a container's user without a name, whose environment has no HOME either."""

    def home(*path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr(Path, "expanduser", home)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert serving.hide_paths(f"{ROOT}/x of ~/y") == "<serving>/x of ~/y"
    assert routines.list_fonts.__wrapped__()
    assert keras_files.user_cache(tmp_path) == tmp_path


def test_the_commands_that_a_protected_server_shows_have_its_key(tmp_path, capsys):
    with listening(serving.ModelServer(write_config(tmp_path, auth={"protect": "all"}))):
        said = heard(capsys, "Try:")
        for command in (said.split("Try:")[1], re.search("Reload: (.*?)   ", said)[1]):
            assert shell(command, tmp_path) == 0, command


def test_client_that_leaves_does_no_harm(demo_process):
    for cut in (
        b"POST /v1/models/digits:predict HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n{",
        b"GET /v1",
        b"\x00\x01\x02\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", demo_process.port)) as client:
            client.sendall(cut)
    assert demo_process.call("GET", "/livez")[0] == 200


def test_two_mebibytes_of_json_over_a_real_socket(demo_process):
    body = json.dumps({"instances": [[[1.5] * 8] * 8] * 6000})
    assert len(body) > 1.5e6
    status, answer = demo_process.call("POST", "/v1/models/digits:predict", body)
    assert status == 200 and len(json.loads(answer)["predictions"]) == 6000


def test_a_model_of_large_inputs_is_shown_by_a_short_curl_that_works(tf, tmp_path, capsys):
    module = tf.Module()
    taken = tf.TensorSpec((None, 224, 224, 3), tf.float32, "x")
    module.double = tf.function(lambda x: {"y": 2 * x}, [taken])
    tf.saved_model.save(module, str(tmp_path / "m/1"), signatures=module.double)
    path = write_config(tmp_path, {"name": "m", "base_path": "m"})
    with listening(serving.ModelServer(path)) as address:
        curl = heard(capsys, "Try:").split("Try:")[1].strip()
        assert len(curl) < 200 and shell(curl, tmp_path) == 0
        zeros = np.zeros((1, 224, 224, 3)).tolist()
        assert json.loads((tmp_path / "answer").read_bytes()) == {"outputs": zeros}
        for page in ("openapi.json", "deployments"):
            assert len(requests.get(f"{address}/{page}").content) < 100_000


@pytest.mark.parametrize(
    "shapes, dtype, tried, start",
    [
        ([(None, 2)], "DT_FLOAT", True, "curl -d '{\"inputs\":[[1.0,1.0]]}'"),
        (
            [(None, 300)],
            "DT_INT64",
            True,
            "head -c 2400 /dev/zero | curl --data-binary @- -H 'X-Tensor-Dtype: int64' -H 'X-Tensor-Shape: 1,300'",
        ),
        ([(None, 128), (None, 128)], "DT_INT32", True, 'curl -d \'{"inputs":{"x0":[[1,1,'),
        ([(None, 800), (None, 800)], "DT_FLOAT", True, None),
        ([None], "DT_FLOAT", True, "curl -d '{\"inputs\":[1.0]}'"),  # of any number of dimensions
        ([(None, 2)], "DT_STRING", True, None),
        ([(None, 2)], "DT_FLOAT", False, None),
    ],
)
def test_the_command_that_is_shown_for_a_model(shapes, dtype, tried, start):
    default = signature(
        [spec(f"x{number}", dtype, shape) for number, shape in enumerate(shapes)], [spec("y")]
    )
    call = serving.SignatureCall(lambda *arrays: [], tried=tried)
    command = commands.example_command(
        serving.Servable(
            {"serving_default": default}, lambda *_: {}, calls={"serving_default": call}
        )
    )
    assert command == start if start is None else command.startswith(start)


def test_a_curl_with_a_picture_is_shown_for_models_that_take_some(tmp_path, capsys):
    models = {"plain": ROOT / "models/half_plus_two", "seen": ROOT / "models/shapes"}
    path = write_config(
        tmp_path,
        *({"name": name, "base_path": str(path)} for name, path in models.items()),
        deployments=[{"id": f"{name}-d", "model": name} for name in models],
    )
    with listening(serving.ModelServer(path)):
        assert "plain-d/predict" not in heard(capsys, "seen-d/predict")


@pytest.mark.parametrize("polls", [True, False])
def test_a_new_version_is_answered_over_a_real_socket(tmp_path, polls):
    """Found by polling, as is the default, or by a reload."""
    shutil.copytree(ROOT / "models/half_plus_two/123", tmp_path / "m/1")
    path = write_config(tmp_path, {"name": "m", "base_path": "m"})
    server = serving.ModelServer(path, poll_seconds=None if polls else 0)
    with listening(server) as address:

        def ask():
            answer = requests.post(f"{address}/v1/models/m:predict", '{"instances": [2.0]}')
            return answer.status_code, answer.content

        def reload():
            return requests.post(f"{address}/v1/config/reload").status_code

        until(lambda: ask() == (200, b'{"predictions":[3.0]}'), 60)
        shutil.copytree(ROOT / "models/half_plus_three/123", tmp_path / "m/part")
        (tmp_path / "m/part").rename(tmp_path / "m/2")
        if polls:
            until(lambda: ask() == (200, b'{"predictions":[4.0]}'), 20)
            return
        assert ask() == (200, b'{"predictions":[3.0]}')
        assert reload() == 201
        assert ask() == (200, b'{"predictions":[4.0]}')
        assert reload() == 200


@pytest.fixture
def start(monkeypatch):
    """Start by a command line as far as listening; gives the server, its models loaded or failed."""
    servers = []

    def serve(process, server, host, port, stop):
        servers.append(server)

    def start(*arguments):
        assert serving.main(arguments) == 0
        assert servers[-1].wait(60)
        return servers[-1]

    monkeypatch.setattr(serving, "serve", serve)
    yield start
    for server in servers:
        server.stop()


def test_one_model_without_a_config_from_another_folder(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server = start("--model_name", "m", "--model_base_path", str(ROOT / "models/half_plus_two"))
    assert server.predict("m", {"instances": [2.0]})["predictions"].tolist() == [3.0]
    server = start("--model_name", "m", "--model_path", "half")
    assert server.readiness() == ["m (base_path cannot be read: No such file or directory)"]


def test_host_and_port_come_from_the_environment(capsys, monkeypatch):
    monkeypatch.setenv("SERVING_HOST", "0.0.0.0")
    monkeypatch.setenv("SERVING_PORT", "9999")
    with pytest.raises(SystemExit, match="0"):
        serving.main(["--help"])
    said = capsys.readouterr().out
    assert "(SERVING_HOST; 0.0.0.0)" in said and "(SERVING_PORT; 9999)" in said


def test_empty_variables_are_unset_and_a_wrong_one_is_named(capsys, monkeypatch):
    monkeypatch.setenv("SERVING_HOST", "")
    monkeypatch.setenv("SERVING_PORT", "")
    parser = serving.build_parser()
    assert (parser.get_default("host"), parser.get_default("port")) == ("127.0.0.1", "8501")
    monkeypatch.setenv("SERVING_PORT", "x")
    assert refusal(capsys)[1].endswith("error: SERVING_PORT: expected 0 to 65535, got 'x'")
    told = refusal(capsys, "--port", "y")[1]
    assert told.endswith("error: argument --port: expected 0 to 65535, got 'y'")


def test_a_folder_as_the_config_says_how_it_is_served(capsys, tmp_path):
    told = f"serving: {tmp_path}: it is a folder; 'serving {tmp_path}' serves the models in it"
    assert refusal(capsys, "--config", str(tmp_path)) == (2, told)


def refusal(capsys, *arguments):
    """Of the command line, in this process: its exit status, and the last line it says."""
    try:
        status = serving.main(arguments)
    except SystemExit as error:
        status = error.code
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return status, said.strip().splitlines()[-1]


def test_wrong_starts_are_one_clear_line_and_a_status(capsys, tmp_path):
    path = str(write_config(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        in_use = "Address already in use; choose another --host or --port"
        told = f"serving: 127.0.0.1 port {port}: {in_use}"
        assert refusal(capsys, path, "--port", port) == (1, told)
        with pytest.raises(OSError, match=f"127.0.0.1 port {port}: Address already in use$"):
            serving.run(path, "127.0.0.1", int(port))
    assert refusal(capsys, "--nope")[0] == 2
    command = [sys.executable, str(ROOT / "serving.py"), "--config", "nope.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    told = "serving: nope.json: No such file or directory\n"
    assert (done.returncode, done.stderr) == (2, told)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (
            ["--enable_batching=true"],
            "--enable_batching: no such option here; use a model's 'batching'",
        ),
        (
            ["--target_device", "GPU"],
            "--target_device: no such option here; use a model's 'target_device'",
        ),
        (
            ["--grpc_bind_address=0.0.0.0"],
            "--grpc_bind_address: no such option here; use REST: this...",
        ),
        (["--port=8500", "--rest_api_port=8501"], "--port is the same as --rest_port here, as..."),
    ],
)
def test_options_of_other_servers_name_the_one_that_is_here(capsys, arguments, told):
    status, line = refusal(capsys, *arguments)
    assert status == 2 and line.startswith("serving: error: " + told.removesuffix("..."))


def test_options_named_by_others_are_there():
    kinds = (serving.ModelConfig, serving.ServerConfig)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    named = " ".join(serving.ELSEWHERE.values()).replace("model's", "").replace("config's", "")
    assert set(re.findall(r"'(\w+)'", named)) - {"server"} <= fields
    assert not serving.ELSEWHERE.keys() & {name for names, _ in serving.OPTIONS for name in names}


@pytest.mark.parametrize(
    "name, told",
    [
        ("x.pkl", "a .pkl file is no SavedModel: export one (Keras: model.export(folder))"),
        ("x.joblib", "a .joblib file is no SavedModel: export one (Keras: model.export(folder))"),
        ("x.onnx", "a .onnx file is no SavedModel: export one (Keras: model.export(folder))"),
        ("x.zip", "it is an archive: unpack it, and serve the folder"),
        ("1/saved_model.pb", "serve the folder that it is in"),
        ("x.H5", "rename it: Keras reads only files that end in .h5, in small letters"),
        ("x.weights.h5", "it holds only weights: save the model, model.save('x.keras')"),
    ],
)
def test_files_that_are_no_model_say_what_to_serve(tmp_path, capsys, monkeypatch, name, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1").mkdir()
    (tmp_path / name).write_bytes(b"x")
    assert refusal(capsys, name, "--check") == (2, f"serving: {name}: {told}")

    with pytest.raises(serving.LoadError, match=re.escape(told)):
        serving.list_versions(str(tmp_path / name))


def test_two_commands_at_once_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text('{"model_config_list": []}')
    for first, second in (("--check", "--doctor"), ("--doctor", "--check")):
        status, said = refusal(capsys, "c.json", first, second)
        assert status == 2 and said.endswith("are two commands: give one")
    status, said = refusal(capsys, "c.json", "--check", "--manifest", "m")
    assert status == 2 and not (tmp_path / "m").exists()


def test_wrong_configs_and_arguments_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text(
        '{"model_config_list": [{"config": {"name": "m", "path": "m"}}]}'
    )
    assert refusal(capsys, "--config", "c.json") == (
        2,
        "serving: c.json: $.model_config_list[0].config.path: unknown key; did you mean 'base_path'?",
    )
    assert refusal(capsys, "--model_name", "m") == (
        2,
        "serving: error: --model_name and --model_base_path go together",
    )
    assert refusal(capsys, "--model_name", "m", "--model_path", "x", "--config", "c")[0] == 2
    for port in ("x", "70000"):
        assert refusal(capsys, "--port", port) == (
            2,
            f"serving: error: argument --port: expected 0 to 65535, got '{port}'",
        )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["c.json", "--model-name", "x"],
            "unknown option --model-name: did you mean --model_name?",
        ),
        (["--prot", "3", "c.json"], "unknown option --prot: did you mean --port?"),
        (["c.json", "--zzz=1"], "unknown option --zzz: see --help"),
        (["a.json", "b.json"], "unrecognized arguments: b.json"),
    ],
)
def test_an_unknown_option_is_named_and_not_what_stands_behind_it(arguments, told, capsys):
    with pytest.raises(SystemExit) as end:
        serving.main(arguments)
    assert end.value.code == 2 and capsys.readouterr().err.endswith(f"serving: error: {told}\n")


def test_options_that_contradict_each_other_or_are_empty_are_refused(capsys):
    error = "serving: error: "
    for arguments, text in (
        (
            ["models", "--config", "c"],
            "PATH and --config cannot be used together: each says what to serve",
        ),
        (
            ["m", "--model_name", "m", "--model_path", "m"],
            "PATH and --model_name cannot be used together: each says what to serve",
        ),
        (["m", "--model_path", "m"], "--model_name and --model_base_path go together"),
        (["--config", ""], "--config is empty: leave it out, or give it a value"),
        (["--config="], "--config is empty: leave it out, or give it a value"),
        ([""], "PATH is empty: leave it out, or give it a value"),
        (["--model_path", ""], "--model_base_path is empty: leave it out, or give it a value"),
        *(
            ([option, ""], f"{option} is empty: leave it out, or give it a value")
            for option in ("--new-key", "--init", "--init-hub", "--manifest", "--deploy")
        ),
    ):
        assert refusal(capsys, *arguments) == (2, error + text)


def test_a_command_needs_no_dashes_where_no_file_has_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for word in ("version", "--version"):
        with pytest.raises(SystemExit) as ended:
            serving.main([word])
        assert ended.value.code == 0
        assert capsys.readouterr().out == f"serving {serving.__version__}\n"
    shutil.copytree(ROOT / "models/half_plus_two", tmp_path / "models")
    assert serving.main(["check", "models"]) == 0
    assert "half_plus_two" not in (listed := capsys.readouterr().out) and "models " in listed
    (tmp_path / "check").mkdir()
    none = "there is no model in this folder, and no config.json"
    assert refusal(capsys, "check") == (2, f"serving: check: {none}")
    for word in ("host", "digits", "demo"):
        assert refusal(capsys, word)[1] == f"serving: {word}: No such file or directory"
    error = (
        "serving: error: docter: no such file, folder or command; did you mean 'serving doctor'?"
    )
    assert refusal(capsys, "docter") == refusal(capsys, "docter", "x.json") == (2, error)


def test_a_path_with_nothing_to_serve_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    gone = "No such file or directory"
    assert refusal(capsys, "nowhere") == (2, f"serving: nowhere: {gone}")
    monkeypatch.setattr(serving, "__file__", str(tmp_path / "serving.py"))
    hint = "say what to serve (serving models/mine), or create a project with --init"
    assert refusal(capsys) == (2, f"serving: config.json: {gone}; {hint}")
    (tmp_path / "m.onnx").write_bytes(b"x")
    hint = "a .onnx file is no SavedModel: export one (Keras: model.export(folder))"
    assert refusal(capsys, "m.onnx") == (2, f"serving: m.onnx: {hint}")
    shutil.copytree(ROOT / "models/half_plus_two/123", tmp_path / "odd/v1")
    hint = "a version folder's name is a number: 'v1' should be '1'"
    assert find(tmp_path / "odd") == [("v1", tmp_path / "odd/v1", None)]
    (tmp_path / "none/v1").mkdir(parents=True)
    none = "there is no model in this folder, and no config.json"
    assert refusal(capsys, "none") == (2, f"serving: none: {none}; {hint}")


def test_a_link_to_the_file_serves_the_config_beside_the_link_or_else_the_demo(
    tmp_path, monkeypatch
):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/serve.py").symlink_to(ROOT / "serving.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serving, "__file__", str(tmp_path / "bin/serve.py"))
    parser = serving.build_parser(())
    assert serving.choose_source(parser, parser.parse_args([])) == str(ROOT / "config.json")
    (tmp_path / "bin/config.json").touch()
    expected = str(tmp_path / "bin/config.json")
    assert serving.choose_source(parser, parser.parse_args([])) == expected


def find(path):
    """The models of a PATH: names, base paths, and the one version where only that is served."""
    return [
        (
            item["config"]["name"],
            serving.Path(item["config"]["base_path"]),
            item["config"].get("model_version_policy", {}).get("specific", {}).get("versions"),
        )
        for item in serving.source_at(str(path))["model_config_list"]
    ]


def test_a_path_is_a_model_a_folder_of_models_or_a_config(tmp_path, monkeypatch):
    folder = tmp_path / "models"
    shutil.copytree(ROOT / "models/half_plus_two/123", folder / "half/7")
    shutil.copytree(ROOT / "models/half_plus_two/123", folder / "saved")
    for file in (
        "made/2/m.keras",
        "one.h5",
        ".hidden/1/saved_model.pb",
        "notes.txt",
        "years/2024/x",
    ):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"x")
    half, saved = ("half", folder / "half", None), ("saved", folder / "saved", None)
    one = ("one", folder / "one.h5", None)
    assert find(folder / "half") == [half] and find(folder / "saved") == [saved]
    assert find(folder / "half/7") == [("half", folder / "half", [7])]
    assert find(folder / "one.h5") == [one]
    assert find(folder) == [half, ("made", folder / "made", None), one, saved]
    monkeypatch.chdir(folder / "half")
    assert find(".") == [half] and find("..")[0] == half
    (tmp_path / "config.json").write_text("{}")
    assert serving.source_at(str(tmp_path)) == str(tmp_path / "config.json")
    assert serving.source_at("any.conf") == "any.conf"


def test_names_in_a_folder_that_cannot_be_served_are_told(tmp_path, caplog):
    for name in ("bad\udcff/1/m.keras", "a\nb.keras", "pets/1/m.keras", "pets.keras"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [path for _, path, _ in find(tmp_path)] == [tmp_path / "pets", tmp_path / "pets.keras"]
    unfit = "is not served: its name is no UTF-8 text on one line"
    assert [one.getMessage() for one in caplog.records] == [
        f"{tmp_path}/a%0Ab.keras {unfit}",
        f"{tmp_path}/bad\\udcff {unfit}",
        f"{tmp_path}/pets and {tmp_path}/pets.keras are models of one name: rename one",
    ]


def test_a_path_is_served(start, tmp_path):
    for version in "34":
        shutil.copytree(ROOT / "models/half_plus_two/123", tmp_path / "mine" / version)
    server = start(str(tmp_path / "mine/3"))
    assert [state["version"] for state in server.status("mine")["model_version_status"]] == ["3"]
    assert server.predict("mine", {"instances": [2.0]})["predictions"].tolist() == [3.0]


@pytest.fixture
def check(capsys):
    """What --check returns and prints of a config."""

    def check(path):
        status = serving.main(["--config", str(path), "--check"])
        return status, capsys.readouterr().out.splitlines()

    return check


def test_check_says_what_would_be_served(check):
    status, lines = check(ROOT / "config.json")
    assert status == 0
    assert (
        lines[0]
        == f"model       half_plus_two    version 123 on AUTO      {ROOT / 'models/half_plus_two'}"
        and len(lines) == 10
    )
    assert lines[-2] == "pipeline    two_steps        2 nodes"
    assert lines[-1] == "deployment  shapes           model shapes, 4 classes"
    files = [line for line in lines if line.startswith("files ")]
    assert len(files) == 4
    for line, name in zip(files, ("half_plus_two ", "half_plus_three", "digits ")):
        assert re.match(rf"files +{name} +version \d+ +\d+ files, no manifest$", line)


def test_check_names_everything_that_is_wrong(tmp_path, check):
    for folder in ("a/2", "a/4", "empty", "k/1"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(ROOT / "models/half_plus_two/123", tmp_path / "a/1")
    (tmp_path / "a/4/saved_model.pb").write_bytes(b"x")
    (tmp_path / "k/1/model.keras").write_bytes(b"x")
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "model_config_list": [
                    {
                        "config": {
                            "name": "a",
                            "base_path": "a",
                            "model_version_policy": {"all": {}},
                            "version_labels": {"new": 3},
                        }
                    },
                    {"config": {"name": "empty", "base_path": "empty"}},
                    {"config": {"name": "gone", "base_path": "gone"}},
                    {
                        "config": {
                            "name": "a",
                            "base_path": "a",
                            "model_version_policy": {"specific": {"versions": [1]}},
                        }
                    },
                    {"config": {"name": "k", "base_path": "k", "version_labels": {"stable": 1}}},
                ],
                "deployments": [{"id": "d", "model": "nope"}],
            }
        )
    )
    status, lines = check(tmp_path / "c.json")
    assert status == 2
    wrong = [line.replace(str(tmp_path), "T") for line in lines if line.startswith("wrong: ")]
    broken = "wrong: $.model_config_list[0].config: version 4: OSError: Cannot parse file "
    assert wrong.pop(1).startswith(f"{broken}b'saved_model.pb'")
    assert wrong == [
        "wrong: $.model_config_list[0].config.version_labels.new: version 3 is not available",
        "wrong: $.model_config_list[0].config: version 2 holds no saved_model.pb, or an empty one: T/a/2",
        "wrong: $.model_config_list[1].config: model_version_policy picks no version folder in T/empty",
        "wrong: $.model_config_list[2].config.base_path: base_path cannot be read: No such file or directory: T/gone",
        "wrong: $.model_config_list[3].config.name: 'a' is already taken by $.model_config_list[0].config",
        "wrong: $.deployments[0].model: no model is called 'nope'",
    ]


def test_check_says_where_versions_are_that_are_always_to_be_present(tmp_path, capsys):
    shutil.copytree(ROOT / "models/half_plus_two/123", tmp_path / "m/v1")
    item = {"name": "m", "base_path": str(tmp_path / "m")}
    always = {"servable_versions_always_present": True}
    (tmp_path / "c.json").write_text(
        json.dumps({"model_config_list": [{"config": item}], "server": always})
    )
    assert serving.main([str(tmp_path / "c.json"), "--check"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"model  m  version none on AUTO  {tmp_path}/m"
    assert "base_path: expected a version to serve, got none" in lines[-2]
    hint = f"picks no version folder in {tmp_path}/m; a version folder's name is a number: 'v1' should be '1'"
    assert lines[-1].endswith(hint)


def test_check_reads_a_graph_as_text(tf, tmp_path, capsys):
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    folder = tmp_path / "m/1"
    shutil.copytree(ROOT / "models/half_plus_two/123", folder)
    graph = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    (folder / "saved_model.pb").unlink()
    (folder / "saved_model.pbtxt").write_text(text_format.MessageToString(graph))
    assert serving.main([str(tmp_path / "m"), "--check"]) == 0
    (folder / "saved_model.pbtxt").write_text("no graph")
    capsys.readouterr()
    assert serving.main([str(tmp_path / "m"), "--check"]) == 2
    assert "config: version 1: OSError: Cannot parse file" in capsys.readouterr().out


def test_check_without_tensorflow_says_so_once(tmp_path):
    for version in "12":
        shutil.copytree(ROOT / "models/half_plus_two/123", tmp_path / "m" / version)
    policy = {"model_version_policy": {"all": {}}}
    item = {"name": "m", "base_path": str(tmp_path / "m"), **policy}
    models = [{"config": item}, {"config": {**item, "name": "n"}}]
    (tmp_path / "c.json").write_text(json.dumps({"model_config_list": models}))
    source = (
        "import sys; sys.modules['tensorflow'] = None; import serving; sys.exit(serving.main())"
    )
    command = [sys.executable, "-c", source, str(tmp_path / "c.json"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    wrong = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert done.returncode == 2 and len(wrong) == 1
    assert wrong[0].startswith("wrong: TensorFlow is not installed: pip install")


def test_check_names_models_and_pipelines_that_cannot_be_served(tmp_path, check):
    shutil.copytree(ROOT / "models/half_plus_two", tmp_path / "good")
    source = {"node_name": "request", "data_item": "x"}
    node = {
        "name": "n",
        "type": "custom",
        "inputs": [{"x": source}],
        "outputs": [{"data_item": "y", "alias": "y"}],
    }
    pipeline = {
        "name": "p",
        "inputs": ["x"],
        "nodes": [{**node, "library_name": "lib"}],
        "outputs": [{"y": {"node_name": "n", "data_item": "y"}}],
    }
    models = [
        {"name": "good", "base_path": "good"},
        {"name": "far", "base_path": "gs://bucket/m"},
        {"name": "odd", "base_path": "good", "target_device": "NPU"},
        {"name": "none", "base_path": "good", "target_device": []},
    ]
    (tmp_path / "c.json").write_text(
        json.dumps(
            {
                "model_config_list": [{"config": model} for model in models],
                "import_modules": ["json", "not_installed_at_all"],
                "pipeline_config_list": [pipeline, pipeline, {**pipeline, "name": "good"}],
            }
        )
    )
    status, lines = check(tmp_path / "c.json")
    assert status == 2 and lines[0].startswith("model     good  version 123 on AUTO  ")
    library = (
        "nodes[0].library_name: Pipeline refers to incorrect library: node 'n': no function for "
        "library 'lib': custom nodes are Python functions here, write 'function': 'module:name'"
    )
    assert [line for line in lines if line.startswith("wrong: ")] == [
        "wrong: $.model_config_list[1].config.base_path: expected a folder of this machine, got a URL, gs://...",
        "wrong: $.model_config_list[2].config.target_device: expected AUTO, CPU, GPU, GPU:1 or HETERO:GPU,CPU, got 'NPU'",
        "wrong: $.model_config_list[3].config.target_device: expected a device, got an empty array",
        "wrong: $.import_modules[1]: not_installed_at_all: no such module is installed",
        f"wrong: $.pipeline_config_list[0].{library}",
        "wrong: $.pipeline_config_list[1].name: 'p' is already taken by $.pipeline_config_list[0]",
        "wrong: $.pipeline_config_list[2].name: Pipeline has the same name as model: 'good'",
    ]


SLOW = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import pathlib, time, serving
from conftest import FakeServable, config
class Slow(FakeServable):
    def answer(self, name, inputs):
        print("running", flush=True)
        time.sleep(1.5)
        return super().answer(name, inputs)
serving.run(serving.ModelServer(config("m"), load=lambda folder, model: Slow(), list_versions=lambda path: {{1: pathlib.Path(path) / "1"}}),
            port=0)
print("over", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_finishes_running_requests_refuses_new_ones_and_exits_0(number):
    process = Process.__new__(Process)
    source = SLOW.format(root=str(ROOT), tests=str(ROOT / "tests"))
    process.process = subprocess.Popen(
        [sys.executable, "-c", source],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # under nohup it would be ignored, and stay so
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    process.out, process.err = [], []
    threading.Thread(target=lambda: process.out.extend(process.process.stdout), daemon=True).start()
    answers = []
    request = threading.Thread(
        target=lambda: answers.append(
            process.call("POST", "/v1/models/m:predict", '{"inputs": [4.0]}')
        )
    )
    port = process.port
    idle = socket.create_connection(("127.0.0.1", port))
    request.start()
    process.wait_for("running")
    kept = http.client.HTTPConnection("127.0.0.1", port)
    kept.connect()
    process.process.send_signal(number)
    last = None
    while last != "close":  # none of what it sends is lost, until it is told to send no more
        kept.request("GET", "/livez")
        answer = kept.getresponse()
        assert answer.status == 200 and answer.read()
        last = answer.getheader("Connection")
    time.sleep(0.8)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    request.join(30)
    assert answers == [(200, b'{"outputs":[3.0]}')]
    assert process.process.wait(30) == 0
    idle.close()


# --- what libraries write, and what moves on a terminal ---------------------------------------------------

NOISY = """
import sys; sys.path[:0] = [{root!r}]
import logging, os, serving
with serving.Process() as process:
    process.quiet_libraries()
    logging.basicConfig(level=sys.argv[1], format="%(name)s: %(message)s")
    os.write(2, b"WARNING: All log messages before absl::InitializeLog() is called are\\n")
    os.write(2, b"I0000 00:00:1795949852.542608    1870 port.cc:153] oneDNN is on\\n")
    os.write(2, b"2026-11-29 10:57:36.500000: I tensorflow/core/x.cc:1] older form\\n")
    if not os.path.exists("/dev/nvidiactl"):
        os.write(2, b"2026-11-30 03:24:03.3: E cuda_platform.cc:51] failed call to cuInit: 303\\n")
    os.write(2, b"F0000 00:00:1795949852.5 1 cpu.cc:7] this processor has no AVX\\n")
    print("a line of Python's", file=sys.stderr)
    if sys.argv[2] == "crash":
        os.abort()
    process.show_noise()
    os.write(2, b"I0000 00:00:1795949999.5 1 late.cc:7] after the start")
"""
ABSL = "WARNING: All log messages before absl::InitializeLog() is called are"
ONEDNN = "I0000 00:00:1795949852.542608    1870 port.cc:153] oneDNN is on"
OLDER = "2026-11-29 10:57:36.500000: I tensorflow/core/x.cc:1] older form"
NO_GPU = "2026-11-30 03:24:03.3: E cuda_platform.cc:51] failed call to cuInit: 303"
HIDDEN = [ABSL, ONEDNN, OLDER, *([] if os.path.exists("/dev/nvidiactl") else [NO_GPU])]
SEEN = {"a line of Python's", "F0000 00:00:1795949852.5 1 cpu.cc:7] this processor has no AVX"}
LATE = "I0000 00:00:1795949999.5 1 late.cc:7] after the start"


@pytest.mark.parametrize(
    "level, end, more",
    [
        ("INFO", "well", {LATE}),
        ("DEBUG", "well", {LATE, *(f"serving: {line}" for line in HIDDEN)}),
        ("INFO", "crash", {*HIDDEN}),
    ],
)
def test_noise_of_libraries_is_in_the_debug_log_alone_and_never_lost(level, end, more):
    done = subprocess.run(
        [sys.executable, "-c", NOISY.format(root=str(ROOT)), level, end],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )
    assert done.returncode == (0 if end == "well" else -signal.SIGABRT)
    assert set(done.stderr.splitlines()) == SEEN | more


def test_who_asks_for_the_lines_of_tensorflow_gets_them():
    done = subprocess.run(
        [sys.executable, "-c", NOISY.format(root=str(ROOT)), "INFO", "well"],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0"},
    )
    assert set(done.stderr.splitlines()) == SEEN | {*HIDDEN, LATE}


def on_terminal(command, **environment):
    """What a command writes to stderr where that is a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        command, stdout=its, stderr=its, env={**os.environ, "TERM": "xterm", **environment}
    )
    os.close(its)
    written = b""
    with contextlib.suppress(OSError):  # Linux: the other end is closed
        while piece := os.read(ours, 65536):
            written += piece
    os.close(ours)
    process.wait(60)
    return written.decode()


LOADING = """
import sys; sys.path[:0] = [{root!r}, {tests!r}]
import logging, pathlib, threading, time, serving
from conftest import FakeServable, config
logging.basicConfig(level="INFO", format="%(message)s")
stop = threading.Event()
def load(folder, model):
    time.sleep(0.5)
    threading.Timer(0.5, stop.set).start()
    return FakeServable()
serving.run(serving.ModelServer(config("m"), load=load, list_versions=lambda path: {{1: pathlib.Path(path) / "1"}}),
            port=0, stop=stop)
"""


def test_the_start_is_a_line_that_moves_on_a_terminal_alone():
    command = [sys.executable, "-c", LOADING.format(root=str(ROOT), tests=str(ROOT / "tests"))]
    written = on_terminal(command)
    assert re.search(r"\r\x1b\[K[|/\\-] loading m \(0 of 1 loaded\), \d+ s", written)
    assert "\r\x1b[Km version 1 is available" in written
    assert "\x1b" not in on_terminal(command, TERM="dumb")


def test_colours_are_for_terminals_and_who_wants_them(tmp_path, check, monkeypatch):
    path = write_config(tmp_path, {"name": "m", "base_path": "m"})
    command = [sys.executable, str(ROOT / "serving.py"), str(path), "--check"]
    wrong = "$.model_config_list[0].config.base_path"
    assert f"\x1b[31mwrong:\x1b[0m {wrong}" in on_terminal(command, NO_COLOR="")
    assert check(path)[1][0].startswith(f"wrong: {wrong}")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert check(path)[1][0].startswith(f"wrong: {wrong}")
