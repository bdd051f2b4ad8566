"""Models and configs as people have them: .keras and .h5 files, TensorFlow Serving's own config,
folders that are one level off. The truth is Keras, called directly.
"""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import NO_POLL, ROOT, Rest

import serving
from serving_extensions import keras_files

ROWS = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def keras(tf):
    return tf.keras


@pytest.fixture(scope="module")
def files(tmp_path_factory, keras):
    """A functional model of two inputs as .keras, a sequential one as .h5, one with a Lambda."""
    folder = tmp_path_factory.mktemp("files")
    keras.utils.set_random_seed(1)
    one, other = keras.Input((3,), name="one"), keras.Input((3,), name="other")
    joined = keras.layers.Concatenate()([one, other])
    two = keras.Model([one, other], keras.layers.Dense(2, "softmax")(joined))
    two.save(folder / "two.keras")
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu")])
    plain.compile("adam", "mse")
    plain.save(folder / "plain.h5")
    odd = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])
    odd.save(folder / "odd.keras")
    return folder, two, plain


def served(base_path, **others):
    model = {"name": "m", "base_path": str(base_path)}
    server = serving.ModelServer(
        {"model_config_list": [{"config": model}], "server": NO_POLL, **others}
    )
    assert server.wait(300)
    return server


def reason_of(server):
    """Why model m is not there; the server ends."""
    try:
        states = server.manager.states()["m"]
        return next((state.error for state in states.values()), "") or server.readiness()[0]
    finally:
        server.stop()


def test_a_keras_file_in_a_version_folder(tmp_path, files):
    folder, two, _ = files
    (tmp_path / "m/7").mkdir(parents=True)
    shutil.copy(folder / "two.keras", tmp_path / "m/7/model.keras")
    server = served(tmp_path / "m")
    try:
        inputs = {"one": ROWS, "other": ROWS[::-1]}
        found = server.predict("m", {"inputs": inputs})["outputs"]
        np.testing.assert_allclose(found, two([ROWS, ROWS[::-1]]).numpy(), rtol=1e-5)
        assert list(server.status("m")["model_version_status"][0].values())[0] == "7"
    finally:
        server.stop()
    (cache,) = (tmp_path / "m/.exported").iterdir()
    written = (cache / "saved_model.pb").stat().st_mtime_ns
    again = served(tmp_path / "m")  # from the cache
    assert again.readiness() == []
    again.stop()
    assert (cache / "saved_model.pb").stat().st_mtime_ns == written


@pytest.mark.usefixtures("exports_here")
def test_a_keras_file_answers_as_predict_does(tmp_path, keras):
    """What turns pictures in training, and a layer behind it that counts them, rest."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    turned = [layers.Resizing(8, 8), layers.RandomFlip(), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((6, 6, 3)), *turned, layers.Flatten(), layers.Dense(2)])
    model.save(tmp_path / "m.keras")
    pictures = np.random.default_rng(3).random((2, 6, 6, 3), np.float32)
    server = served(tmp_path / "m.keras")
    try:
        found = server.predict("m", {"instances": pictures})["predictions"]
        np.testing.assert_allclose(found, model.predict(pictures, verbose=0), rtol=1e-4)
    finally:
        server.stop()


def test_an_export_left_in_training_is_told_and_refused_for_pictures(
    tmp_path, keras, caplog, capsys
):
    """Keras' own export of what comes after such layers; the line that is told mends it."""
    layers = keras.layers
    last = [layers.BatchNormalization(), layers.Flatten(), layers.Dense(2, "softmax")]
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.Resizing(8, 8), *last])
    pictures = np.random.default_rng(3).random((2, 6, 6, 3), np.float32)
    deployment = {"id": "d", "model": "m", "label_map": ["a", "b"]}
    command = [str(tmp_path / "c.json"), "--check"]
    models = [{"config": {"name": "m", "base_path": str(tmp_path / "m")}}]
    text = json.dumps({"model_config_list": models, "deployments": [deployment]})
    (tmp_path / "c.json").write_text(text)
    told = "changes variables in a call: answers may depend on earlier calls"

    model.export(tmp_path / "m/1", verbose=False)
    server = served(tmp_path / "m", deployments=[deployment])
    try:
        assert f"m: signature serving_default {told}" in caplog.text
        assert "keras.Model(x, model(x, training=False)).export(" in caplog.text
        assert told in server.readiness()[0]
        with pytest.raises(serving.ServingError, match=told):
            server.predict_image(np.zeros((6, 6, 3), np.uint8))
    finally:
        server.stop()
    assert serving.main(command) == 2 and told in capsys.readouterr().out
    meant = served(tmp_path / "m", deployments=[{**deployment, "stateful": True}])
    try:
        assert meant.readiness() == []
        assert meant.predict_image(np.zeros((6, 6, 3), np.uint8))
    finally:
        meant.stop()

    x = model.inputs[0]
    keras.Model(x, model(x, training=False)).export(tmp_path / "m/2", verbose=False)
    assert serving.main(command) == 0
    server = served(tmp_path / "m", deployments=[deployment])
    try:
        assert server.readiness() == []
        found = server.predict("m", {"instances": pictures})["predictions"]
        np.testing.assert_allclose(found, model.predict(pictures, verbose=0), rtol=1e-4)
    finally:
        server.stop()


@pytest.mark.usefixtures("exports_here")
def test_a_bare_keras_file_that_is_replaced_is_loaded_by_a_reload(tmp_path, keras):
    def save(seed):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.save(tmp_path / "m.keras")
        return model

    def predict():
        return server.predict("m", {"instances": ROWS[:, :3]})["predictions"]

    first = save(1)
    server = served(tmp_path / "m.keras")
    try:
        rest = Rest(server)
        np.testing.assert_allclose(predict(), first(ROWS[:, :3]), rtol=1e-5)
        second = save(2)
        (plan,) = rest.post("/v1/config/reload?dry_run=1").json["models"]["versions"]
        assert plan["reload"] == [1], plan
        assert rest.post("/v1/config/reload").status_code == 201
        np.testing.assert_allclose(predict(), second(ROWS[:, :3]), rtol=1e-5)
    finally:
        server.stop()


@pytest.mark.usefixtures("exports_here")
def test_an_h5_file_by_itself(tmp_path, files):
    folder, _, plain = files
    shutil.copy(folder / "plain.h5", tmp_path)
    server = served(tmp_path / "plain.h5")
    try:
        found = server.predict("m", {"instances": ROWS})["predictions"]
        np.testing.assert_allclose(found, plain(ROWS).numpy(), rtol=1e-5)
    finally:
        server.stop()


@pytest.mark.usefixtures("exports_here")
def test_code_in_a_file_is_not_run(tmp_path, files):
    shutil.copy(files[0] / "odd.keras", tmp_path)
    told = reason_of(served(tmp_path / "odd.keras"))
    assert "Keras cannot read 'odd.keras' here" in told and "model.export('models/NAME/1')" in told
    assert str(tmp_path) not in told


@pytest.mark.usefixtures("exports_here")
@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("custom", "Keras cannot read 'm.keras' here: Could not locate class 'Twice'. Make sure"),
        ("nested", "Keras reads 'm.keras', and cannot export it: ValueError: Got a non-Tensor"),
        ("stateful", "Keras reads 'm.keras', and cannot export it: Input tensor `"),
    ],
)
def test_the_reason_is_told_where_it_is_not_in_the_first_line(tmp_path, keras, made, told):
    class Twice(keras.layers.Layer):
        def call(self, x):
            return x * 2

    x, y = keras.Input((4,)), keras.Input(batch_shape=(1, 3, 2))
    models = {
        "custom": lambda: keras.Sequential([x, Twice()]),
        "nested": lambda: keras.Model(x, {"p": {"q": x * 2, "r": x}}),
        "stateful": lambda: keras.Model(y, keras.layers.GRU(2, stateful=True)(y)),
    }
    models[made]().save(tmp_path / "m.keras")
    with pytest.raises(serving.LoadError) as error:
        keras_files.exported(tmp_path / "m.keras", tmp_path / "m.keras")
    assert error.value.message.startswith(told)
    assert ("export it where it was made" in error.value.message) == (made == "custom")


def test_a_damaged_file(tmp_path):
    (tmp_path / "m.keras").write_bytes(b"PK\x03\x04 and no more")
    told = reason_of(served(tmp_path / "m.keras"))
    assert "Keras cannot read 'm.keras' here: ValueError" in told
    assert not [*tmp_path.glob(".exported/*")]


def write_export(file, folder):
    (folder / "saved_model.pb").write_text(file.name)


def test_files_beside_each_other_keep_their_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_files, "export_file", write_export)
    files = [tmp_path / f"{name}.keras" for name in ("a", "a.keras-b", "b")]
    for file in files:
        file.write_text(file.name)
    made = [keras_files.exported(file, file) for file in files]
    files[0].write_text("changed")
    made[0], before = keras_files.exported(files[0], files[0]), made[0]
    assert not before.exists() and len(set(made)) == 3
    for file, folder in zip(files, made):
        assert (folder / "saved_model.pb").read_text() == file.name
        assert keras_files.exported(file, file) == folder


def test_exports_of_versions_that_are_gone_go_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_files, "export_file", write_export)
    for number in range(1, 5):  # as they come and go when a model is trained again and again
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "m.keras").write_text(str(number))
        keras_files.exported(folder / "m.keras", folder)
        if number > 1:
            shutil.rmtree(tmp_path / str(number - 1))
    (tmp_path / "5").mkdir()
    (tmp_path / "5/m.keras").write_text("5")
    keras_files.exported(tmp_path / "5/m.keras", tmp_path / "5")
    kept = [path.name.partition("-")[0] for path in (tmp_path / ".exported").iterdir()]
    assert sorted(kept) == ["4", "5"]


def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path, monkeypatch):
    (tmp_path / "m.keras").touch()
    code = (
        "import os, pathlib, sys; import serving; from serving_extensions import keras_files\n"
        "keras_files.export_file = lambda file, made: os.kill(os.getpid(), 9)\n"
        "file = pathlib.Path(sys.argv[1]); keras_files.exported(file, file)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.keras")]
    assert subprocess.run(command, cwd=ROOT).returncode == -9
    assert len([*(tmp_path / ".exported").iterdir()]) == 1
    monkeypatch.setattr(keras_files, "export_file", write_export)
    made = keras_files.exported(tmp_path / "m.keras", tmp_path / "m.keras")
    assert [*(tmp_path / ".exported").iterdir()] == [made]


@pytest.mark.parametrize("mode, expected", [(0o644, 0o755), (0o640, 0o750), (0o600, 0o700)])
def test_who_may_read_a_file_may_read_its_export(tmp_path, monkeypatch, mode, expected):
    monkeypatch.setattr(keras_files, "export_file", write_export)
    (tmp_path / "m.keras").touch()
    (tmp_path / "m.keras").chmod(mode)
    made = keras_files.exported(tmp_path / "m.keras", tmp_path / "m.keras")
    assert stat.S_IMODE(made.stat().st_mode) == expected


def test_an_export_that_cannot_be_looked_at_is_made_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(keras_files, "export_file", write_export)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / ".exported").symlink_to("x" * 300)  # as what another user alone may enter
    (tmp_path / "m.keras").touch()
    made = keras_files.exported(tmp_path / "m.keras", tmp_path / "m.keras")
    assert made.parent == keras_files.user_cache(tmp_path)
    assert (made / "saved_model.pb").read_text() == "m.keras"


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch):
    """The user's cache has the export then. (Root may write everywhere: `access` is told so.)"""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path).startswith(str(tmp_path / "cache"))
    )
    places = [tmp_path / "m/.exported", keras_files.user_cache(tmp_path / "m")]
    assert keras_files.first_writable(places) == places[1]


def test_without_the_extension_it_is_told(tmp_path, files):
    shutil.copy(files[0] / "plain.h5", tmp_path)
    model = {"name": "m", "base_path": str(tmp_path / "plain.h5")}
    server = serving.ModelServer({"model_config_list": [{"config": model}]}, extensions=())
    assert server.wait(60)
    assert "this needs serving_extensions/keras_files.py" in reason_of(server)


# --- folders that are one level off, and what is no SavedModel ------------------------------------


def make(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"x")
    return path


@pytest.mark.parametrize(
    ("there", "base", "text"),
    [
        ("m/v1", "m", "a version folder's name is a number: 'v1' should be '1'"),
        ("models/m/1", "models", "there is a model one folder down, in 'm'"),
        ("models/m", "models", "there is a model one folder down, in 'm'"),
        ("m/1", "m/1/variables", "the SavedModel is one folder up, in '1'"),
        ("m/1", "gs://bucket/m", "expected a folder of this machine, got a URL"),
        ("m/1", "model.tflite", "a .tflite file is no SavedModel"),
        ("m/1", "net.onnx", "a .onnx file is no SavedModel"),
    ],
)
def test_the_commonest_mistakes(tmp_path, there, base, text):
    make(tmp_path / there)
    (tmp_path / "m/1/variables").mkdir(parents=True, exist_ok=True)
    for name in ("model.tflite", "net.onnx"):
        (tmp_path / name).write_bytes(b"x")
    if there != "m/1":
        shutil.rmtree(tmp_path / "m/1")
    path = tmp_path / "config.json"
    model = {"config": {"name": "m", "base_path": base}}
    path.write_text(json.dumps({"model_config_list": [model], "server": NO_POLL}))
    server = serving.ModelServer(path)
    assert server.wait(60)
    assert text in reason_of(server)


def test_a_model_file_beside_the_version_folders(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.keras").write_bytes(b"x")
    assert "'model.keras' is in no version folder: move it into '1'" in reason_of(
        served(tmp_path / "m")
    )


@pytest.mark.parametrize(
    ("files", "told"),
    [
        (["m.tflite"], "; 'm.tflite' is in it; a .tflite file is no SavedModel: export one"),
        (["frozen.pb"], "; 'frozen.pb' is in it; a .pb file is no SavedModel: export one"),
        (
            ["b.keras", "a.h5"],
            "; it holds 'a.h5' and 'b.keras', but a version is one model: keep one",
        ),
        (["saved/saved_model.pb"], "; there is a model one folder down, in 'saved'"),
        (["notes.txt"], "{saved_model.pbtxt|saved_model.pb}"),
    ],
)
def test_a_version_folder_with_something_else_in_it(tmp_path, files, told):
    for name in files:
        (tmp_path / "1" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "1" / name).write_bytes(b"x")
    found = reason_of(served(tmp_path))
    assert found.startswith("SavedModel file does not exist at: <base_path>/1/{saved_model.pbtxt|")
    assert told in found and found.endswith((told, "(Keras: model.export(folder))"))


# --- TensorFlow Serving's own config --------------------------------------------------------------

PROTOBUF = """
# as in TensorFlow Serving's documents (serving_config.md)
model_config_list {
  config {
    name: 'my_first_model'
    base_path: '/tmp/my_first_model/'
    model_platform: 'tensorflow'
    model_version_policy { specific { versions: 42 versions: 43 } }
    version_labels { key: 'stable' value: 42 }
    version_labels { key: 'canary' value: 43 }
  }
  config { name: 'my_second_model', base_path: '/tmp/my_second_model/' model_version_policy { all {} } }
  config: { name: "third" base_path: "third" model_version_policy { latest { num_versions: 2 } } }
}
"""


def test_a_model_config_file_of_tensorflow_serving(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(PROTOBUF)
    first, second, third = serving.load_config(path).models
    assert (first.name, Path(first.base_path)) == ("my_first_model", Path("/tmp/my_first_model"))
    assert [*first.model_version_policy.specific.versions] == [42, 43]
    assert first.version_labels == {"stable": 42, "canary": 43}
    assert second.model_version_policy.all is not None
    assert Path(third.base_path) == tmp_path / "third"
    assert third.model_version_policy.latest.num_versions == 2


def test_it_is_what_tensorflow_servings_own_message_reads(tmp_path):
    """The descriptor against the published one."""
    published = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    from google.protobuf import text_format

    theirs = text_format.Parse(PROTOBUF, published.ModelServerConfig())
    path = tmp_path / "models.config"
    path.write_text(PROTOBUF)
    ours = serving.load_config(path).models
    for model, config in zip(ours, theirs.model_config_list.config, strict=True):
        assert model.name == config.name
        assert dict(model.version_labels) == dict(config.version_labels)
        policy = config.model_version_policy
        chosen = serving.choose_versions(model.model_version_policy, [1, 42, 43, 44])
        wanted = {"specific": [43, 42], "all": [44, 43, 42, 1], "latest": [44, 43]}[
            policy.WhichOneof("policy_choice")
        ]
        assert chosen == wanted


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ("model_version_policy { latest { num_versions: 0 } }", {}),
        ("model_version_policy { latest { } }", {}),
        ("model_version_policy { }", {}),
        ('version_labels { key: "x" }', {"version_labels": {"x": 0}}),
        ("version_labels { value: 3 }", {"version_labels": {"": 3}}),
        (
            "logging_config { log_collector_config { type: 'x' filename_prefix: '/tmp/l' } "
            "sampling_config { sampling_rate: 0.1 } }",
            {},
        ),
    ],
)
def test_what_protobuf_leaves_out_is_its_default(tmp_path, fields, wanted):
    path = tmp_path / "c.config"
    path.write_text(f"model_config_list {{ config {{ name: 'm' base_path: '/m' {fields} }} }}")
    (read,) = serving.load_config(path).models
    assert read == serving.ModelConfig("m", "/m", **wanted)
    assert bool(read.problem) == ("" in read.version_labels)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model_config_list { config { nmae: 'x' } }", 'no field named "nmae"'),
        ("model_config_list { config { name: 'x' base_path: 'm' }", "not a config of TensorFlow"),
        ("custom_model_config { }", "custom_model_config"),
        ("model_config_list { config { base_path: 'm' } }", "$.model_config_list[0].config"),
        (
            "model_config_list:\n  - config:\n      name: x\n",
            "it looks like YAML, and a config is JSON",
        ),
        ("server:\n  port: 8501\n", "it looks like YAML, and a config is JSON"),
    ],
)
def test_configs_that_are_none_say_why(tmp_path, text, told):
    path = tmp_path / "c.config"
    path.write_text(text)
    with pytest.raises(serving.ConfigError) as error:
        serving.load_config(path)
    assert told in str(error.value)
