"""Wrong configs, each with its JSON path and text; right ones, OpenVINO Model Server's among them; the JSON Schema."""

import json
import pickle
import re
import sys

import jsonschema
import pytest
from conftest import ROOT, Rest
from urllib3.util import parse_url

import routines
import serving

sys.path.insert(0, str(ROOT / "deploy"))
from config_schema import config_schema  # noqa: E402

M = "$.model_config_list[0].config"


def model(**fields):
    return {"model_config_list": [{"config": {"name": "m", "base_path": "x", **fields}}]}


def without_models(**sections):
    """A config of no models."""
    return {"model_config_list": [], **sections}


WRONG = [
    ({}, "$: missing key 'model_config_list': the models"),
    ({"model_config_list": {}}, "$.model_config_list: expected array, got object"),
    ({"model_config_list": [3]}, "$.model_config_list[0]: expected object, got integer 3"),
    ({"model_config_list": [{}]}, "$.model_config_list[0]: missing key 'config': one model"),
    (
        {"model_config_list": [{"config": {}, "x": 1}]},
        "$.model_config_list[0].x: unknown key; expected one of: config",
    ),
    (
        without_models(modelconfig=[]),
        "$.modelconfig: unknown key; did you mean 'model_config_list'?",
    ),
    (model(base_pth="x"), f"{M}.base_pth: unknown key; did you mean 'base_path'?"),
    (model(version=1), f"{M}.version: unknown key; did you mean 'version_labels'?"),
    (model(name=3), f"{M}.name: expected string, got integer 3"),
    (model(name=None), f"{M}.name: expected string, got null"),
    (
        model(name=""),
        f"{M}.name: expected the model's name in URLs: any text without control characters; not "
        "empty, . or ..; got ''",
    ),
    (model(tags="serve"), f"{M}.tags: expected array, got string 'serve'"),
    (model(instances=0), f"{M}.instances: expected at least 1, got 0"),
    (model(freeze="yes"), f"{M}.freeze: expected boolean, got string 'yes'"),
    (model(model_version_policy="all"), f"{M}.model_version_policy: expected object, got string"),
    (
        model(model_version_policy={"newest": {}}),
        f"{M}.model_version_policy.newest: unknown key; expected one of: latest, all, specific",
    ),
    (
        model(model_version_policy={"all": {"x": 1}}),
        f"{M}.model_version_policy.all.x: unknown key; expected one of: nothing",
    ),
    (
        model(model_version_policy={"latest": {"num_versions": 0}}),
        f"{M}.model_version_policy.latest.num_versions: expected at least 1, got 0",
    ),
    (
        model(model_version_policy={"latest": {"num_versions": True}}),
        f"{M}.model_version_policy.latest.num_versions: expected integer, got boolean True",
    ),
    (
        model(model_version_policy={"specific": {"versions": [1, "2"]}}),
        f"{M}.model_version_policy.specific.versions[1]: expected integer, got string '2'",
    ),
    (
        model(model_version_policy={"specific": {}}),
        f"{M}.model_version_policy.specific: missing key 'versions': the versions to serve",
    ),
    (
        model(version_labels={"stable": "1"}),
        f"{M}.version_labels.stable: expected integer, got string '1'",
    ),
    (model(version_labels=["stable"]), f"{M}.version_labels: expected object, got array"),
    (model(batching=1), f"{M}.batching: expected boolean or object, got integer 1"),
    (
        model(batching={"max_batch_size": 1}),
        f"{M}.batching.max_batch_size: expected at least 2, got 1",
    ),
    (
        model(batching={"batch_size": 8}),
        f"{M}.batching.batch_size: unknown key; did you mean 'max_batch_size'?",
    ),
    (model(nireq=-1), f"{M}.nireq: expected at least 0, got -1"),
    (model(shape=3), f"{M}.shape: expected string or object, got integer 3"),
    (without_models(server={"threads": 0}), "$.server.threads: expected at least 1, got 0"),
    (
        without_models(handlers=[{"path": "/h", "function": "m:f", "timeout_seconds": 1e10}]),
        "$.handlers[0].timeout_seconds: expected at most 86400, got 10000000000.0",
    ),
    (
        without_models(deployments=[{"id": "a", "model": "m", "offset": 10**400}]),
        f"$.deployments[0].offset: expected at most 1e+30, got 1{'0' * 39}",
    ),
    (without_models(server={"threads": 2.5}), "$.server.threads: expected integer, got number 2.5"),
    (without_models(server={"thread": 2}), "$.server.thread: unknown key; did you mean 'threads'?"),
    (
        without_models(server={"file_system_poll_wait_seconds": -1}),
        "$.server.file_system_poll_wait_seconds: expected at least 0, got -1",
    ),
    (
        without_models(server={"trusted_proxy": "300.1.2.3"}),
        "$.server.trusted_proxy: expected address of the proxy in front whose X-Forwarded-Proto, "
        "X-Forwarded-Host and the last address of X-Forwarded-For are believed, or * for any that "
        "connects (start); got '300.1.2.3'",
    ),
    (
        without_models(server={"cors_origins": "*"}),
        "$.server.cors_origins: expected array, got string '*'",
    ),
    (
        without_models(deployments=[{"id": "a"}]),
        "$.deployments[0]: missing key 'model': the name of the model it serves",
    ),
    (
        without_models(deployments=[{"id": "a", "model": "m"}, {"id": "a", "model": "n"}]),
        "$.deployments[1].id: 'a' is already taken by deployments[0]",
    ),
    (
        without_models(pipeline_config_list=[{"name": "p"}]),
        "$.pipeline_config_list[0]: missing key 'inputs': the inputs of a request",
    ),
    (["model"], "$: expected object, got array"),
]
DEVICES = "expected AUTO, CPU, GPU, GPU:1 or HETERO:GPU,CPU"
SIZES = "batching.allowed_batch_sizes: expected rising sizes that end with max_batch_size (32)"
# What is wrong with one model alone: the others serve.
REFUSED = [
    (
        {"model_version_policy": {}},
        "model_version_policy: expected exactly one of 'latest', 'all', 'specific'",
    ),
    (
        {"model_version_policy": {"all": {}, "latest": {}}},
        "model_version_policy: expected exactly one of 'latest', 'all', 'specific'",
    ),
    ({"base_path": ""}, "base_path: expected a folder, got ''"),
    (
        {"version_labels": {"stable": 1, "": 1}},
        "version_labels: expected labels for URLs; not empty, . or .., got ''",
    ),
    (
        {"version_labels": {"..": 1}},
        "version_labels: expected labels for URLs; not empty, . or .., got '..'",
    ),
    (
        {"base_path": "s3://bucket/m"},
        "base_path: expected a folder of this machine, got a URL, s3://...",
    ),
    (
        {"base_path": "gs://bucket"},
        "base_path: expected a folder of this machine, got a URL, gs://...",
    ),
    (
        {"base_path": "file:///m"},
        "base_path: expected a folder of this machine, got a URL, file://...",
    ),
    ({"target_device": "NPU"}, f"target_device: {DEVICES}, got 'NPU'"),
    ({"target_device": ["CPU", "MYRIAD"]}, f"target_device: {DEVICES}, got 'MYRIAD'"),
    ({"target_device": "CPU:" + "9" * 5000}, f"target_device: {DEVICES}, got 'CPU:{'9' * 5000}'"),
    ({"target_device": ""}, f"target_device: {DEVICES}, got ''"),
    ({"target_device": "MULTI:NPU,XYZ"}, f"target_device: {DEVICES}, got 'MULTI:NPU,XYZ'"),
    ({"target_device": []}, "target_device: expected a device, got an empty array"),
    ({"batching": {"allowed_batch_sizes": [4, 2, 32]}}, f"{SIZES}, got [4, 2, 32]"),
    ({"batching": {"allowed_batch_sizes": [4, 8]}}, f"{SIZES}, got [4, 8]"),
    ({"idle_sequence_cleanup": True}, 'idle_sequence_cleanup: needs "stateful": true'),
    ({"max_sequence_number": 5, "stateful": False}, 'max_sequence_number: needs "stateful": true'),
]
TEXTS = [
    (b"", "$: not valid JSON: Expecting value at line 1 column 1"),
    (
        b"{\n 'a': 1}",
        "$: not valid JSON: Expecting property name enclosed in double quotes at line 2 column 2",
    ),
    (b'{"a": "\xff"}', "$: expected UTF-8 text, got byte 0xff at offset 7"),
    (b"[" * 100_000, "$: not a config: nested too deeply, or a number too long"),
    (b'{"a": ' + b"1" * 5000 + b"}", "$: not a config: nested too deeply, or a number too long"),
]


@pytest.mark.parametrize("wrong, text", WRONG, ids=range(len(WRONG)))
def test_wrong_config(tmp_path, wrong, text):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(wrong))
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config(path)
    assert raised.value.message == text


def named(name):
    """The config's parts that are a part of a URL, and their places, with a name for each."""
    return [
        (model(name=name), f"{M}.name"),
        (
            without_models(
                pipeline_config_list=[{"name": name, "inputs": [], "nodes": [], "outputs": []}]
            ),
            "$.pipeline_config_list[0].name",
        ),
        (without_models(deployments=[{"id": name, "model": "m"}]), "$.deployments[0].id"),
        (
            without_models(auth={"keys": [{"name": name, "sha256": "0" * 64}]}),
            "$.auth.keys[0].name",
        ),
        (without_models(handlers=[{"path": f"/{name}", "function": "a:b"}]), "$.handlers[0].path"),
        (
            without_models(handlers=[{"path": f"/a/{name}/b", "function": "a:b"}]),
            "$.handlers[0].path",
        ),
    ]


@pytest.mark.parametrize("name", [".", "..", "a\nb", "\x1f", "\x7f", "\x9b"])
def test_what_clients_drop_from_a_url_and_control_characters_are_no_names(name):
    is_dropped = parse_url(f"http://h/{name}/predict").path == "/predict"
    assert is_dropped == (name in (".", ".."))
    for wrong, place in named(name):
        with pytest.raises(serving.ConfigError) as raised:
            serving.load_config(wrong)
        assert raised.value.message.startswith(f"{place}: expected ")
        assert not jsonschema.Draft202012Validator(config_schema()).is_valid(wrong)


@pytest.mark.parametrize("name", ["...", ".a", "..a", "a..", "a.b"])
def test_dots_in_a_name_are_taken(name):
    for right, _ in named(name):
        serving.load_config(right)
        jsonschema.Draft202012Validator(config_schema()).validate(right)


@pytest.mark.parametrize("wrong, text", TEXTS, ids=range(len(TEXTS)))
def test_text_that_is_no_config(tmp_path, wrong, text):
    path = tmp_path / "config.json"
    path.write_bytes(wrong)
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config(path)
    assert raised.value.message == text


@pytest.mark.parametrize("fields, text", REFUSED, ids=range(len(REFUSED)))
def test_what_is_wrong_with_one_model_does_not_make_the_config_wrong(fields, text):
    config = serving.load_config(model(**fields))
    assert config.models[0].problem == text


def test_a_missing_base_path_is_an_empty_one():
    config = serving.load_config({"model_config_list": [{"config": {"name": "m"}}]})
    assert config.models[0].problem == "base_path: expected a folder, got ''"


@pytest.mark.parametrize(
    "spelled, devices",
    [
        ("AUTO", ["GPU:0", "CPU:0"]),
        ("auto", ["GPU:0", "CPU:0"]),
        ("MULTI", ["GPU:0", "CPU:0"]),
        ("CPU", ["CPU:0"]),
        ("gpu", ["GPU:0"]),
        ("GPU.0", ["GPU:0"]),
        ("GPU:1", ["GPU:1"]),
        (" gpu.1 ", ["GPU:1"]),
        ("HETERO:GPU,CPU", ["GPU:0", "CPU:0"]),
        ("hetero: gpu.1 , cpu", ["GPU:1", "CPU:0"]),
        ("MULTI:CPU,GPU", ["CPU:0", "GPU:0"]),
        ("MULTI:GPU(2),CPU(4)", ["GPU:0", "CPU:0"]),
        ("AUTO:GPU,CPU", ["GPU:0", "CPU:0"]),
        ("AUTO:NPU,CPU", ["NPU", "CPU:0"]),
        ("AUTO:-GPU", ["CPU:0"]),
        ("BATCH:CPU(4)", ["CPU:0"]),
        ("BATCH:GPU", ["GPU:0"]),
        ("HETERO:NPU,XYZ", ["NPU", "XYZ"]),
        ("NPU", ["NPU"]),
    ],
)
def test_every_spelling_of_a_device_of_openvino_is_read(spelled, devices):
    assert serving.read_devices(spelled) == devices


# OpenVINO Model Server's documentation of its config, every field of a model in use.
OVMS = {
    "model_config_list": [
        {
            "config": {
                "name": "model_name1",
                "base_path": "/opt/ml/models/model1",
                "batch_size": "16",
            }
        },
        {
            "config": {
                "name": "model_name2",
                "base_path": "/opt/ml/models/model2",
                "batch_size": "auto",
                "model_version_policy": {"all": {}},
            }
        },
        {
            "config": {
                "name": "model_name3",
                "base_path": "/opt/ml/models/model3",
                "model_version_policy": {"specific": {"versions": [1, 3]}},
                "shape": "auto",
            }
        },
        {
            "config": {
                "name": "model_name4",
                "base_path": "/opt/ml/models/model4",
                "shape": {"input1": "(1,3,200,200)", "input2": "(1,3,50,50)"},
                "plugin_config": {"PERFORMANCE_HINT": "LATENCY"},
            }
        },
        {
            "config": {
                "name": "model_name5",
                "base_path": "/opt/ml/models/model5",
                "shape": "auto",
                "nireq": 32,
                "target_device": "CPU",
                "layout": "NHWC",
                "allow_cache": True,
                "custom_loader_options": {"loader_name": "x"},
            }
        },
        {
            "config": {
                "name": "model_name6",
                "base_path": "/opt/ml/models/model6",
                "stateful": True,
                "idle_sequence_cleanup": False,
                "low_latency_transformation": True,
                "max_sequence_number": 100,
                "batch_size": 4,
                "layout": {"a": "NCHW"},
            }
        },
    ],
    "pipeline_config_list": [],
    "custom_node_library_config_list": [],
    "custom_loader_config_list": [],
    "mediapipe_config_list": [],
    "monitoring": {"metrics": {"enable": True}},
}


def test_an_openvino_model_server_config_is_read_unchanged():
    config = serving.load_config(OVMS)
    assert [m.name for m in config.models] == [f"model_name{n}" for n in range(1, 7)]
    assert config.models[2].model_version_policy.specific.versions == (1, 3)
    assert serving.without_effect(config.models[4]) == [
        "shape",
        "layout",
        "nireq",
        "allow_cache",
        "custom_loader_options",
    ]


@pytest.mark.parametrize(
    "section, text",
    [
        (
            {"deployments": [{"id": "a", "model": "m", "scale": 0}]},
            "scale: expected a number other than 0: it makes all pictures equal",
        ),
        (
            {
                "auth": {
                    "keys": [
                        {
                            "name": "k",
                            "sha256": "0" * 64,
                            "quota": {"calls": 10**30, "period": "day"},
                        }
                    ]
                }
            },
            "$.auth.keys[0].quota.calls: expected at most 9007199254740992, got 1" + "0" * 30,
        ),
    ],
)
def test_numbers_that_could_only_fail_later_are_refused(section, text):
    with pytest.raises(serving.ConfigError, match=re.escape(text)):
        serving.load_config({"model_config_list": []} | section)


ORIGINS = {
    "https://a.example": True,
    "http://localhost:8000": True,
    "http://[::1]:8000": True,
    "https://xn--bcher-kva.example:80": True,
    "http://192.168.0.1": True,
    "capacitor://localhost": True,
    "chrome-extension://abc": True,
    "file://": True,
    "null": True,
    "*": True,
    "https://a.example/": False,
    "https://a.example/page": False,
    "https://A.example": False,
    "HTTPS://a.example": False,
    "a.example": False,
    "https://a.example:443": False,
    "http://[::1]:80": False,
    "https://*.example": False,
    "https://b\u00fccher.example": False,
    "https://": False,
    "": False,
}


@pytest.mark.parametrize(
    "text", [b"model_config_list:\n  - config: 1\n", b"model_config_list: []\n"]
)
def test_a_config_in_yaml_is_no_text_of_protobuf(text):
    with pytest.raises(serving.ConfigError, match="it looks like YAML, and a config is JSON"):
        serving.read_config(text)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_of_protobuf_as_its_own_parser_takes_it(mark):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    text = b'model_config_list < config < name: "a" base_path: "/m" > >'
    text_format.Parse(text, model_server_config_pb2.ModelServerConfig())  # raises if it is wrong
    read = serving.read_config(mark + text)
    assert read == serving.read_config(text.replace(b"<", b"{").replace(b">", b"}"))
    assert read["model_config_list"][0]["config"]["base_path"] == "/m"


@pytest.mark.parametrize("source", [None, ["config.json"], b"config.json", serving.Config])
def test_a_source_that_is_none_is_told_by_its_type(source):
    with pytest.raises(TypeError, match="config: expected a path, a dict or a Config, got"):
        serving.ModelServer(source)


def test_errors_of_a_config_pass_from_process_to_process():
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": 3, "nothing": 1})
    copied = pickle.loads(pickle.dumps(raised.value))
    assert [str(one) for one in copied.all()] == [str(one) for one in raised.value.all()]
    assert copied.path == raised.value.path and copied.status == raised.value.status


def test_a_long_wrong_text_is_cut():
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": [], "server": {"log_level": "x" * 10**7}})
    assert len(raised.value.message) < 200


@pytest.mark.parametrize(
    "section, place",
    [
        ({"server": {"history": ""}}, "$.server.history"),
        ({"auth": {"quota_store": ""}}, "$.auth.quota_store"),
        ({"admin": {"models_folder": ""}}, "$.admin.models_folder"),
        ({"admin": {"projects_folder": ""}}, "$.admin.projects_folder"),
        (
            {"handlers": [{"path": "/h", "function": "a:b", "model_dir": ""}]},
            "$.handlers[0].model_dir",
        ),
        ({"handlers": [{"path": "/h", "project": ""}]}, "$.handlers[0].project"),
    ],
)
def test_an_empty_text_is_no_path(section, place):
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": [], **section})
    assert raised.value.message.startswith(f"{place}: expected ")


@pytest.mark.parametrize("origin, sent", ORIGINS.items())
def test_an_origin_that_no_browser_sends_is_refused(origin, sent):
    source = {"model_config_list": [], "server": {"cors_origins": [origin]}}
    assert jsonschema.Draft202012Validator(config_schema()).is_valid(source) == sent
    if sent:
        assert serving.load_config(source).server.cors_origins == (origin,)
        return
    with pytest.raises(serving.ConfigError, match=r"cors_origins\[0\]: expected .*https://site\.e"):
        serving.load_config(source)


def test_relative_paths_start_at_the_config_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(model(base_path="models/m")))
    assert serving.load_config(tmp_path / "config.json").models[0].base_path == str(
        tmp_path / "models/m"
    )


def test_the_home_folder_is_written_as_a_shell_does(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = serving.load_config(
        model(base_path="~/m")
        | {
            "deployments": [
                {
                    "id": "d",
                    "model": "m",
                    "label_map": "~/l",
                    "active_learning": {"threshold": 0, "folder": "~/a"},
                }
            ],
            "handlers": [{"path": "/h", "project": "~/p", "model_dir": "~/d"}],
            "routine_modules": ["~/r.py"],
            "server": {"history": "~/h"},
            "auth": {"quota_store": "~/q"},
            "admin": {"models_folder": "~/m", "projects_folder": "~/p"},
        }
    )
    found = [
        config.models[0].base_path,
        config.deployments[0].label_map,
        config.deployments[0].active_learning.folder,
        config.handlers[0].function.partition("/src")[0],
        config.handlers[0].model_dir,
        *config.routine_modules,
        config.server.history,
        config.auth.quota_store,
        config.admin.models_folder,
        config.admin.projects_folder,
    ]
    assert found == [
        f"{tmp_path}/{name}" for name in ("m", "l", "a", "p", "d", "r.py", "h", "q", "m", "p")
    ]
    nobody = serving.load_config(model(base_path="~no-one/m"))
    assert nobody.models[0].base_path.endswith("/~no-one/m")


SECRET = "s3cr3t-of-mine"


@pytest.mark.parametrize(
    "auth, place, expected",
    [
        (SECRET, "$.auth", "expected object, got string"),
        ([SECRET], "$.auth", "expected object, got array"),
        ({"keys": SECRET}, "$.auth.keys", "expected array, got string"),
        ({"keys": [SECRET]}, "$.auth.keys[0]", "expected object, got string"),
        ({"keys": [{SECRET: 1}]}, "$.auth.keys[0]", "unknown key; expected one of: name, sha256"),
        (
            {"keys": [{"name": "a", "sha256": "0" * 64, "deployments": [SECRET]}]},
            "$.auth.keys[0].deployments[0]",
            "no deployment has that id, and no handler that path",
        ),
        (
            {"keys": [{"name": SECRET, "sha256": "0" * 64}] * 2},
            "$.auth.keys[1].name",
            "it is already taken by keys[0]",
        ),
        (
            {"keys": [{"name": "a", "sha256": "AB" * 32}, {"name": "b", "sha256": "ab" * 32}]},
            "$.auth.keys[1].sha256",
            "it is already taken by keys[0]",
        ),
        (
            {"keys": [{"name": "a", "sha256": "0" * 64, f"name{SECRET[0]}": SECRET}]},
            "$.auth.keys[0]",
            "unknown key; did you mean 'name'?",
        ),
        ({SECRET: {}}, "$.auth", "unknown key; expected one of: keys"),
        (
            {"keys": [{"name": "a", "sha256": SECRET}]},
            "$.auth.keys[0].sha256",
            "expected 64 hexadecimal digits",
        ),
        (
            {"keys": [{"name": f"{SECRET} x", "sha256": "0" * 64}]},
            "$.auth.keys[0].name",
            "expected its name",
        ),
        (
            {"keys": [{"name": "a", "sha256": "0" * 64, "expires": SECRET}]},
            "$.auth.keys[0].expires",
            "expected a date",
        ),
        (
            {"keys": [{"name": "a", "sha256": "0" * 64, "disabled": SECRET}]},
            "$.auth.keys[0].disabled",
            "expected boolean",
        ),
        (
            {"keys": [{"name": "a", "sha256": "0" * 64, "quota": SECRET}]},
            "$.auth.keys[0].quota",
            "expected object",
        ),
        (
            {"keys": [{"name": "a", "sha256": "0" * 64, "quota": {"calls": 1, "period": SECRET}}]},
            "$.auth.keys[0].quota.period",
            "expected minute",
        ),
        ({"quota_store": [SECRET]}, "$.auth.quota_store", "expected string, got array"),
        ({"protect": SECRET}, "$.auth.protect", "expected predict"),
    ],
)
def test_a_key_that_stands_in_the_wrong_place_is_not_shown(auth, place, expected):
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": [], "auth": auth})
    assert raised.value.message.startswith(f"{place}: {expected}")
    assert SECRET not in raised.value.message and SECRET not in str(raised.value)


ODD_CONFIG = {
    "model_config_list": [{"config": {"name": "a", "base_pth": "x"}}, {"config": {"base_path": 1}}],
    "deploymnts": [],
    "server": {"threads": "many", "log_levl": "INFO", "images": {"max_pixels": -1}},
}
ALL_TOLD = [
    "$.deploymnts: unknown key; did you mean 'deployments'?",
    "$.model_config_list[0].config.base_pth: unknown key; did you mean 'base_path'?",
    "$.model_config_list[1].config: missing key 'name': ...",
    "$.model_config_list[1].config.base_path: expected string, got integer 1",
    "$.server.log_levl: unknown key; did you mean 'log_level'?",
    "$.server.threads: expected integer, got string 'many'",
    "$.server.images.max_pixels: expected at least 1, got -1",
]


def test_everything_that_is_wrong_is_told_at_once(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(ODD_CONFIG))
    assert serving.main(["--config", str(tmp_path / "config.json"), "--check"]) == 2
    lines = capsys.readouterr().err.removeprefix("serving: ").splitlines()
    told = [line.strip().removeprefix(f"{tmp_path}/config.json: ") for line in lines]
    assert [line[: len(text.removesuffix("..."))] for line, text in zip(told, ALL_TOLD)] == [
        text.removesuffix("...") for text in ALL_TOLD
    ]
    assert len(told) == len(ALL_TOLD)


def test_a_reload_tells_everything_that_is_wrong_and_no_more_than_people_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_config_list": []}')
    server = serving.ModelServer(tmp_path / "config.json", poll_seconds=0)
    assert server.wait(10)
    rest = Rest(server)
    (tmp_path / "config.json").write_text(json.dumps(ODD_CONFIG))
    for url in ("/v1/config/reload", "/v1/config/reload?dry_run=1"):
        details = rest.post(url).json["details"]
        assert len(details) == 7 and details[0] == ALL_TOLD[0] and details[-1] == ALL_TOLD[-1]
    many = {"model_config_list": [{"config": {}}] * 1000}
    (tmp_path / "config.json").write_text(json.dumps(many))
    assert len(rest.post("/v1/config/reload").json["details"]) == 21
    server.stop()


def test_of_a_wrong_word_under_auth_its_length_is_told():
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": [], "auth": {"protect": "al"}})
    assert raised.value.message.endswith("; got a text of 2 characters")


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"handlers": [SECRET]}, "$.handlers[0]: expected object, got string"),
        ({"handlers": SECRET}, "$.handlers: expected array, got string"),
        ({"deployments": [SECRET]}, "$.deployments[0]: expected object, got string"),
        ({"server": SECRET}, "$.server: expected object, got string"),
        ({"server": {"images": SECRET}}, "$.server.images: expected object, got string"),
        ({"pipeline_config_list": [SECRET]}, "$.pipeline_config_list[0]: expected object, got ..."),
        ({"monitoring": SECRET}, "$.monitoring: expected object, got string"),
        (model(version_labels=SECRET), f"{M}.version_labels: expected object, got string"),
        (model(batching=SECRET), f"{M}.batching: expected boolean or object, got string"),
        ({"model_config_list": [SECRET]}, "$.model_config_list[0]: expected object, got string"),
        ({"model_config_list": [{"config": SECRET}]}, f"{M}: expected object, got string"),
        (SECRET, "$: expected object, got string"),
    ],
)
def test_a_string_in_the_place_of_an_object_is_not_shown(tmp_path, wrong, text):
    whole = {"model_config_list": [], **wrong} if isinstance(wrong, dict) else wrong
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config(tmp_path / "config.json")
    assert raised.value.message.startswith(text.removesuffix("..."))
    assert SECRET not in raised.value.message


@pytest.mark.parametrize(
    "text, told",
    [
        ('{"auth": {"%s": 1, "%s": 2}}', "$.auth: a key stands twice in one object"),
        ('{"auth": {"keys": [{"%s": 1, "%s": 2}]}}', "$.auth.keys[0]: a key stands twice in ..."),
        (
            '{"auth": {"keys": [{"name": "%s", "name": "%s"}]}}',
            "$.auth.keys[0]: key 'name' stands twice in one object",
        ),
        ('{"auth": "%s", "auth": "%s"}', "$: key 'auth' stands twice in one object"),
        (
            '{"server": {"port": "%s", "port": "%s"}}',
            "$.server: key 'port' stands twice in one object",
        ),
    ],
)
def test_a_key_that_stands_twice_under_auth_is_not_shown(tmp_path, text, told):
    (tmp_path / "config.json").write_text(text % (SECRET, SECRET))
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config(tmp_path / "config.json")
    assert raised.value.message.startswith(told.removesuffix("..."))
    assert SECRET not in raised.value.message


def test_a_number_that_stands_where_a_key_belongs_is_not_shown():
    with pytest.raises(serving.ConfigError) as raised:
        serving.load_config({"model_config_list": [], "auth": {"keys": [20271231]}})
    assert raised.value.message == "$.auth.keys[0]: expected object, got integer"


def test_byte_order_mark_and_schema_key_are_fine(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(
        b"\xef\xbb\xbf"
        + json.dumps({"$schema": "config.schema.json", "model_config_list": []}).encode()
    )
    assert serving.load_config(path).models == []


def test_published_schema_is_the_one_generated_from_the_dataclasses():
    assert json.loads((ROOT / "config.schema.json").read_text()) == config_schema(), (
        "run: python deploy/config_schema.py > config.schema.json"
    )


def test_schema_is_valid_and_accepts_what_is_right():
    schema = config_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for config in (
        OVMS,
        json.loads((ROOT / "config.json").read_text()),
        model(batching=True),
        model(batching={"max_batch_size": 8}),
    ):
        jsonschema.Draft202012Validator(schema).validate(config)


# What a JSON Schema cannot say, or the dataclasses check in code.
BEYOND_SCHEMA = ("already taken",)


@pytest.mark.parametrize("wrong, text", WRONG, ids=range(len(WRONG)))
def test_schema_refuses_what_the_parser_refuses(wrong, text):
    if not any(part in text for part in BEYOND_SCHEMA):
        assert not jsonschema.Draft202012Validator(config_schema()).is_valid(wrong)


def test_a_chain_of_a_request_is_read_no_further_than_people_read_of_it():
    kinds = routines.ROUTINES
    wrong = {"name": "Histogram", "arguments": {"ranges": [""] * 100_000}}
    with pytest.raises(serving.ConfigError) as raised:
        serving.read_chain([wrong], kinds)
    assert len(raised.value.all()) == 21 and len(raised.value.others) <= 41
    names = {f"x{number}": 1 for number in range(100_000)}
    with pytest.raises(serving.ConfigError) as raised:
        serving.read_chain([{"name": "Histogram", "arguments": names}], kinds)
    assert len(raised.value.all()) == 21 and len(raised.value.others) <= 41
