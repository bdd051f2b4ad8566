"""`--doctor`: what is well, what is wrong, what to do; and the completion of shells."""

import datetime
import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys

import psutil
import pytest
from conftest import ROOT, Rest, key_entry, listening
from prometheus_client.parser import text_string_to_metric_families

import serving
from serving_extensions import completion, doctor

WELL = {"version": "2.21.0", "gpus": [], "cuda": "12.5.1"}


@pytest.fixture
def ask(monkeypatch, capsys):
    """The status of `--doctor`, and its lines but for their columns, TensorFlow being as told."""

    def ask(*arguments, **probe):
        monkeypatch.setattr(doctor, "probe_tensorflow", lambda: probe or WELL)
        status = serving.main(["--doctor", "--port", "0", *arguments])
        lines = capsys.readouterr().out.splitlines()
        return status, [re.sub(" +", " ", line.strip()) for line in lines]

    return ask


@pytest.fixture
def lone(tmp_path):
    """A path to a model."""
    shutil.copytree(ROOT / "models/half_plus_two", tmp_path / "half_plus_two")
    return str(tmp_path / "half_plus_two")


def about(lines, *subjects):
    """The lines on some subjects, each with what to do about it."""
    found, told = [], False
    for line in lines:
        told = line.split(" ")[1] in subjects or (told and line.startswith("->"))
        if told:
            found.append(line)
    return found


def test_the_demo_is_well_as_it_stands():
    done = subprocess.run(
        [sys.executable, str(ROOT / "serving.py"), "--doctor", "--port", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    import tensorflow as tf

    assert (done.returncode, done.stderr) == (0, "")
    assert f"ok       TensorFlow  {tf.__version__}, " in done.stdout
    assert "ok       model       digits: version 1 on AUTO\n" in done.stdout
    assert f"ok       Python      {sys.version.split()[0]} at {sys.executable}\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("0 wrong, ")


def test_a_tensorflow_that_is_missing_or_crashes_is_wrong(ask, lone):
    status, lines = ask(lone, problem="its import ended with 1: No module named 'tensorflow'")
    assert status == 1
    assert about(lines, "TensorFlow", "models") == [
        "wrong TensorFlow its import ended with 1: No module named 'tensorflow'",
        "-> pip install 'tensorflow>=2.20', or tensorflow-cpu, into this Python",
        "warning models not looked at: they need TensorFlow",
    ]
    _, lines = ask(lone, problem="its import ended with -4")
    assert "without AVX" in about(lines, "TensorFlow")[1]
    _, lines = ask(lone, **{**WELL, "version": "2.4.1"})
    assert about(lines, "TensorFlow")[0] == "warning TensorFlow 2.4.1, for CUDA 12.5.1"


def test_an_import_that_crashes_tells_its_last_line(monkeypatch):
    code = "import os, sys; print('no AVX here', file=sys.stderr); sys.stderr.flush(); os.abort()"
    monkeypatch.setattr(doctor, "PROBE", code)
    assert doctor.probe_tensorflow() == {"problem": "its import ended with -6: no AVX here"}


def test_tensorflow_is_tried_where_nothing_can_be_written(monkeypatch, tmp_path):
    def full(*given, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "json.py").write_text("raise RuntimeError('of the current folder')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "PROBE", "import json; print(json.dumps({'version': '2.21.0'}))")
    monkeypatch.setattr("tempfile.mkdtemp", full)
    assert doctor.probe_tensorflow() == {"version": "2.21.0"}


def test_what_is_said_of_gpus(ask, lone, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    (line,) = about(ask(lone)[1], "GPU")
    assert line == "ok GPU none, and no NVIDIA driver: models run on the CPU"
    (line,) = about(ask(lone, **{**WELL, "gpus": ["NVIDIA H200"]})[1], "GPU")
    assert line == "ok GPU NVIDIA H200"
    (tmp_path / "version").write_text("NVRM version: 570")
    line, todo = about(ask(lone)[1], "GPU")
    assert line == "warning GPU a driver is there, TensorFlow sees no GPU"
    assert "new enough for CUDA 12.5.1" in todo
    line, todo = about(ask(lone, **{**WELL, "cuda": None})[1], "GPU")
    assert line == "warning GPU a driver is there, this TensorFlow is for CPUs"


def test_a_model_for_a_gpu_that_is_not_there_is_wrong(ask, lone, tmp_path):
    models = [
        {"name": "gpu", "base_path": lone, "target_device": "GPU"},
        {"name": "any", "base_path": lone, "target_device": "HETERO:GPU,CPU"},
    ]
    text = json.dumps({"model_config_list": [{"config": model} for model in models]})
    (tmp_path / "c.json").write_text(text)
    status, lines = ask(str(tmp_path / "c.json"))
    assert status == 1 and [line for line in lines if line.startswith("wrong")] == [
        "wrong model gpu wants GPU, but TensorFlow sees no GPU"
    ]
    assert ask(str(tmp_path / "c.json"), **{**WELL, "gpus": ["one"]})[0] == 0


def test_an_address_that_is_taken_or_open_to_all(ask, lone):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        status, lines = ask(lone, "--port", port)
    assert status == 1
    assert about(lines, "address")[0] == (
        f"wrong address 127.0.0.1 port {port}: Address already in use"
    )
    status, lines = ask(lone, "--host", "0.0.0.0")
    assert status == 0 and about(lines, "address")[0].startswith("warning address 0.0.0.0 port 0 ")
    status, lines = ask(lone, "--port", "many")
    assert (status, about(lines, "address")[0]) == (
        1,
        "wrong address 127.0.0.1 port many: --port: expected 0 to 65535, got 'many'",
    )


def test_a_server_of_ours_at_the_address_is_well(ask, lone):
    with listening(serving.ModelServer({"model_config_list": []})) as address:
        port = address.rpartition(":")[2]
        for host in ("127.0.0.1", "0.0.0.0"):
            status, lines = ask(lone, "--host", host, "--port", port)
            told = f"ok address {host} port {port}: serving already runs there"
            assert (status, about(lines, "address")) == (0, [told])


def test_the_memory_of_the_control_group_is_told(ask, lone, tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("700000000\n")
    (tmp_path / "memory.current").write_text("200000000\n")
    monkeypatch.setattr(doctor, "CGROUPS", (str(tmp_path / "memory.max"),))
    total = f"{psutil.virtual_memory().total / 1e6:,.0f}"
    line, todo = about(ask(lone)[1], "memory")
    assert line.startswith("warning memory 500 MB free of ") and "on_demand" in todo, total


def test_what_the_config_writes_must_be_writable(ask, lone, tmp_path, monkeypatch):
    key = key_entry("k", "secret", quota={"calls": 1, "period": "day"})
    config = {
        "model_config_list": [{"config": {"name": "m", "base_path": lone}}],
        "deployments": [
            {"id": "m", "model": "m", "active_learning": {"threshold": 0.5, "folder": "aside"}}
        ],
        "auth": {"keys": [key], "quota_store": "counts.sqlite3"},
        "server": {"history": "locked/stats.json"},
        "admin": {"upload": "code", "models_folder": "locked/models"},
    }
    (tmp_path / "c.json").write_text(json.dumps(config))
    (tmp_path / "locked").mkdir()
    refused = [tmp_path / "locked"]
    really = os.access  # root may write everywhere
    monkeypatch.setattr(
        doctor.os, "access", lambda path, mode: path not in refused and really(path, mode)
    )
    status, lines = ask(str(tmp_path / "c.json"))
    assert status == 1
    assert [line for line in about(lines, "writes") if not line.startswith("->")] == [
        f"ok writes quotas: {tmp_path}/counts.sqlite3",
        f"wrong writes history: {tmp_path}/locked: no permission",
        f"ok writes config: {tmp_path}",
        f"wrong writes uploaded models: {tmp_path}/locked: no permission",
        f"ok writes uploaded projects: {tmp_path}/projects",
        f"ok writes active learning: {tmp_path}/aside",
    ]
    assert not any(key["sha256"] in line for line in lines)


def test_a_keys_end_is_told_by_check_and_metrics(lone, tmp_path, capsys):
    now = datetime.datetime.now(datetime.timezone.utc)
    days = {"gone": -1, "off": -1, "soon": 20, "later": 40}
    ends = {name: str(now + datetime.timedelta(n)) for name, n in days.items()}
    keys = [
        {**key_entry(name, name, expires=end), "disabled": name == "off"}
        for name, end in ends.items()
    ]
    models = [{"config": {"name": "m", "base_path": lone}}]
    (tmp_path / "c.json").write_text(
        json.dumps({"model_config_list": models, "auth": {"keys": [*keys, key_entry("ever", "x")]}})
    )
    assert serving.main(["--check", "--config", str(tmp_path / "c.json")]) == 0
    rows = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    expired = ["key", "gone", f"expired {ends['gone']}"]
    assert [row for row in rows if row[0] == "key"] == [expired]
    server = serving.ModelServer(str(tmp_path / "c.json"))
    (family,) = [
        family
        for family in text_string_to_metric_families(Rest(server).get("/metrics").text)
        if family.name == "serving_key_expires_timestamp_seconds"
    ]
    assert {sample.labels["key"]: sample.value for sample in family.samples} == {
        name: pytest.approx((now + datetime.timedelta(n)).timestamp())
        for name, n in days.items()
        if name != "off"
    }


def test_a_history_in_a_folder_that_is_not_there_cannot_be_written(ask, lone, tmp_path):
    models = [{"config": {"name": "m", "base_path": lone}}]
    config = {"model_config_list": models, "server": {"history": "none/stats.json"}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    status, lines = ask(str(tmp_path / "c.json"))
    assert (status, about(lines, "writes")) == (
        1,
        [f"wrong writes history: {tmp_path}/none: no such folder", "-> make it, or name another"],
    )


def test_a_history_that_cannot_be_looked_at_or_is_a_folder_is_wrong(
    ask, lone, tmp_path, monkeypatch
):
    models = [{"config": {"name": "m", "base_path": lone}}]
    config = {"model_config_list": models, "server": {"history": "locked/stats.json"}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    (tmp_path / "locked/stats.json").mkdir(parents=True)
    status, lines = ask(str(tmp_path / "c.json"))
    assert (status, about(lines, "writes")) == (
        1,
        [
            f"wrong writes history: {tmp_path}/locked/stats.json: it exists, but is not a file",
            "-> name another place",
        ],
    )
    stat, access = os.stat, os.access

    def refuse(path, *given, **options):  # root may enter everywhere
        if isinstance(path, (str, os.PathLike)) and "locked/" in os.fspath(path):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return stat(path, *given, **options)

    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "access", lambda p, mode: p.name != "locked" and access(p, mode))
    status, lines = ask(str(tmp_path / "c.json"))
    assert status == 1
    assert about(lines, "writes")[0] == f"wrong writes history: {tmp_path}/locked: no permission"


def test_nothing_is_written_over(ask, lone, tmp_path):
    models = [{"config": {"name": "m", "base_path": lone}}]
    config = {"model_config_list": models, "server": {"history": "stats.json"}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    for history in (None, "of another version"):
        if history is not None:
            (tmp_path / "stats.json").write_text(history)
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        assert ask(str(tmp_path / "c.json"))[0] == 0
        after = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        assert after == before


def test_versions_that_are_not_served_take_no_memory(lone, tmp_path):
    shutil.copytree(next(tmp_path.glob("half_plus_two/*")), tmp_path / "half_plus_two/999")
    models = [{"config": {"name": "m", "base_path": lone}}]
    (folder,) = doctor.folders_of(serving.ModelServer({"model_config_list": models}))
    assert folder.name == "999"


def test_a_wrong_config_is_told_and_no_secret_of_it(ask, tmp_path):
    store = "redis://user:pass-word@localhost:1/0"
    config = {"model_config_list": [], "auth": {"quota_store": store, "keys": []}}
    (tmp_path / "c.json").write_text(json.dumps(config))
    _, lines = ask(str(tmp_path / "c.json"))
    assert not any("pass-word" in line for line in lines)
    (tmp_path / "c.json").write_text('{"model_config_list": 1}')
    status, lines = ask(str(tmp_path / "c.json"))
    assert status == 1 and about(lines, "config")[0].startswith(
        f"wrong config {tmp_path}/c.json: $.model_config_list: expected "
    )
    status, lines = ask(str(tmp_path / "gone.json"))
    assert status == 1
    assert (
        about(lines, "config")[0] == f"wrong config {tmp_path}/gone.json: No such file or directory"
    )
    (tmp_path / "c.json").write_text(
        '{"model_config_list": [{"config": {"name": "m", "base_path": "gone"}}]}'
    )
    status, lines = ask(str(tmp_path / "c.json"))
    assert status == 1 and any(
        line.startswith("wrong config $.model_config_list[0].config.base_path: ") for line in lines
    )


def test_extensions_of_another_version_are_told_in_a_line(monkeypatch, capsys):
    def another():
        raise ImportError("serving_extensions/ is of version 0.0.1, serving.py of 0.2.0")

    monkeypatch.setattr(serving, "installed", another)
    assert serving.main(["--doctor"]) == 2
    assert capsys.readouterr().err == (
        "serving: serving_extensions/ is of version 0.0.1, serving.py of 0.2.0\n"
    )


# --- completion -------------------------------------------------------------------------------------------


def printed(shell, capsys):
    assert completion.completion(None, shell) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("serving --ch", ["--check"]),
        ("serving --conf", ["--config", "--config_path"]),
        ("serving --completion z", ["zsh"]),
        ("serving --init", ["--init", "--init-hub"]),
    ],
)
def test_bash_completes_options(typed, offered, capsys):
    ask = (
        f"COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _serving; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-ec", f"{printed('bash', capsys)}\n{ask}"], capture_output=True, text=True
    )
    assert (done.stderr, done.stdout.split()) == ("", offered)


def test_zsh_is_told_every_option_with_its_help(capsys):
    text = printed("zsh", capsys)
    for names, _ in serving.OPTIONS:
        for name in names:
            assert f"{name}[" in text if name.startswith("-") else ":PATH:_files" in text
    assert "%(" not in text
    if shutil.which("zsh"):
        done = subprocess.run(["zsh", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        serving.main(["--completion", "fish"])
    assert ended.value.code == 2 and "choose from" in capsys.readouterr().err
