"""Models and projects that are sent: served at once, or refused with nothing left behind."""

import contextlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import NO_POLL, ROOT, Rest, assert_error, key_entry, listening

import serving
from serving_extensions import admin_uploads, archives, config_file, deploying, manifest, on_demand

MODEL = ROOT / "models" / "half_plus_two" / "123"
ADMIN = {"x-api-key": "boss"}
BODY = json.dumps({"instances": [1.0, 2.0]})


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def zipped(files, prefix="", method=zipfile.ZIP_DEFLATED):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(prefix + name, content)
    return packed.getvalue()


def tarred(files, prefix="", mode="w"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def as_macos_packs(files):
    beside = {".DS_Store": b"\0", "__MACOSX/m/._saved_model.pb": b"\0"}
    return zipped({**{f"m/{name}": content for name, content in files.items()}, **beside})


def make(folder, **admin):
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {
                "model_config_list": [],
                "auth": {"keys": [key_entry("boss", "boss", admin=True)]},
                "admin": admin,
            }
        )
    )
    server = serving.ModelServer(path, poll_seconds=0)
    assert server.wait(60)
    return server


@pytest.fixture
def server(tmp_path):
    made = make(tmp_path, upload="code", max_upload_bytes=200_000, max_upload_files=50)
    yield made
    made.stop()


@pytest.fixture
def rest(server):
    return Rest(server)


def send(rest, path, body, method="POST"):
    return rest.open(path, method=method, data=body, headers=ADMIN)


def tree(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if "sqlite" not in path.name
    )


# --- models ---------------------------------------------------------------------------------------


def test_an_upload_has_no_dry_run(rest, tmp_path):
    before = tree(tmp_path)
    told = send(rest, "/v1/models/new/versions?dry_run=1", b"x")
    assert_error(told, 400, "dry_run: an upload has no dry run")
    told = send(rest, "/v1/projects/new?dry_run=1", b"x", "PUT")
    assert_error(told, 400, "dry_run: an upload has no dry run")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("pack", "options"),
    [
        (zipped, {}),
        (tarred, {}),
        (tarred, {"mode": "w:gz"}),
        (zipped, {"prefix": "export/1/"}),
        (zipped, {"method": zipfile.ZIP_BZIP2}),
        (zipped, {"method": zipfile.ZIP_LZMA}),
        (as_macos_packs, {}),
    ],
)
def test_a_model_that_is_sent_answers(rest, tmp_path, pack, options):
    sent = send(rest, "/v1/models/half/versions", pack(files_of(MODEL), **options))
    assert sent.status_code == 201, sent.json
    assert sent.json["version"] == "1" and "serving_default" in sent.json["signatures"]
    assert rest.post("/v1/models/half:predict", BODY).json == {"predictions": [2.5, 3.0]}
    assert files_of(tmp_path / "models/half/1") == files_of(MODEL)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_config_list"] == [
        {"config": {"name": "half", "base_path": "models/half"}}
    ]
    again = send(rest, "/v1/models/half/versions/7", pack(files_of(MODEL), **options), "PUT")
    assert again.status_code == 201 and again.json["version"] == "7"
    status = rest.get("/v1/models/half/versions/7").json["model_version_status"][0]
    assert status["state"] == "AVAILABLE"
    taken = send(rest, "/v1/models/half/versions/7", pack(files_of(MODEL), **options), "PUT")
    assert taken.status_code == 409
    assert sorted(os.listdir(tmp_path / "models/half")) == ["1", "7"]


def test_uploads_are_off_unless_the_config_has_them(tmp_path):
    for upload, model, project in ((False, 403, 403), (True, 400, 403), ("code", 400, 400)):
        server = make(tmp_path, upload=upload)
        rest = Rest(server)
        assert send(rest, "/v1/models/m/versions", b"no archive").status_code == model
        assert send(rest, "/v1/models/m/versions/1", b"no archive", "PUT").status_code == model
        assert send(rest, "/v1/projects/p", b"no archive", "PUT").status_code == project
        server.stop()


def mode_of(kind):
    return (kind | 0o777) << 16


def with_zip_entry(name, content=b"x", mode=None):
    packed = io.BytesIO(zipped(files_of(MODEL)))
    with zipfile.ZipFile(packed, "a") as archive:
        entry = zipfile.ZipInfo(name)
        entry.filename = entry.orig_filename = name
        entry.external_attr = mode or mode_of(stat.S_IFREG)
        archive.writestr(entry, content)
    return packed.getvalue()


def with_tar_entry(name, kind=tarfile.REGTYPE, link="", size=0):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for known, content in files_of(MODEL).items():
            entry = tarfile.TarInfo(known)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, link, size
        archive.addfile(entry, io.BytesIO(b"x" * size))
    return packed.getvalue()


def bomb_tar():
    """A gzip of a few KB whose tar holds a header (of a name) of 100 MB."""
    packed = io.BytesIO()
    import gzip

    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as stream:
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, 100 << 20
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(100):
            stream.write(b"a" * (1 << 20))
    return packed.getvalue()


def tar_of_folders(number, comment=""):
    """A .tar.gz of so many entries, all of one folder, each with a header that holds a comment."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        entry = tarfile.TarInfo("a")
        entry.type, entry.pax_headers = tarfile.DIRTYPE, {"comment": comment}
        for _ in range(number):
            archive.addfile(entry)
    return packed.getvalue()


def overlapping_zip():
    """A bomb whose entries share one body, each told to be small by the central directory."""
    data = zipped({"a": bytes(150_000), "b": b"y"})
    return data.replace((150_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))


HOSTILE = {
    "bomb": (lambda: zipped({"saved_model.pb": bytes(50 << 20)}), 413),
    "bomb in a tar": (lambda: tarred({"saved_model.pb": bytes(50 << 20)}, mode="w:gz"), 413),
    "bomb in a header": (bomb_tar, 400),
    "sizes that lie": (overlapping_zip, 400),
    "many files": (lambda: zipped({f"f{number}": b"" for number in range(60)}), 413),
    "many folders": (lambda: tarred({f"f{number}/g/h": b"" for number in range(20)}), 413),
    "one folder often": (lambda: tar_of_folders(60), 413),
    "large headers": (lambda: tar_of_folders(20, "x" * 900_000), 413),
    "deep folders": (lambda: tarred({"a/" * 60 + "b": b""}), 413),
    "up": (lambda: with_zip_entry("../up"), 400),
    "up inside": (lambda: with_zip_entry("a/../../up"), 400),
    "up in a tar": (lambda: with_tar_entry("../up"), 400),
    "absolute": (lambda: with_zip_entry("/tmp/serving-absolute"), 400),
    "absolute in a tar": (lambda: with_tar_entry("/tmp/serving-absolute"), 400),
    "backslash": (lambda: with_zip_entry("..\\up"), 400),
    "drive": (lambda: with_zip_entry("C:/up"), 400),
    "nul": (lambda: with_zip_entry("a\0b"), 400),
    "long": (lambda: with_zip_entry("a" * 300), 400),
    "link": (lambda: with_zip_entry("l", b"/etc/passwd", mode_of(stat.S_IFLNK)), 400),
    "device": (lambda: with_zip_entry("d", b"", mode_of(stat.S_IFCHR)), 400),
    "symlink": (lambda: with_tar_entry("l", tarfile.SYMTYPE, "/etc/passwd"), 400),
    "hard link": (lambda: with_tar_entry("l", tarfile.LNKTYPE, "saved_model.pb"), 400),
    "fifo": (lambda: with_tar_entry("f", tarfile.FIFOTYPE), 400),
    "block device": (lambda: with_tar_entry("b", tarfile.BLKTYPE), 400),
    "one name twice": (lambda: with_zip_entry("saved_model.pb"), 400),
    "one name twice in a tar": (lambda: with_tar_entry("./saved_model.pb"), 400),
    "a file as a folder": (lambda: with_zip_entry("saved_model.pb/x"), 400),
    "a folder as a file": (lambda: with_tar_entry("variables"), 400),
    "no model": (lambda: zipped({"a.txt": b"a"}), 400),
    "two models": (lambda: zipped({"a/saved_model.pb": b"", "b/saved_model.pb": b""}), 400),
    "no graph": (lambda: zipped({"saved_model.pb": b"nonsense"}), 400),
    "no variables": (lambda: zipped({"saved_model.pb": files_of(MODEL)["saved_model.pb"]}), 400),
    "nothing": (lambda: b"", 400),
    "text": (lambda: b"hello", 400),
    "too large": (lambda: b"x" * 300_000, 413),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")  # of zipfile, which writes it all the same
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_good_is_refused_and_leaves_nothing(rest, tmp_path, name):
    body, status = HOSTILE[name][0](), HOSTILE[name][1]
    before = tree(tmp_path)
    response = send(rest, "/v1/models/half/versions", body)
    assert response.status_code == status, response.json
    assert tree(tmp_path) == before and not os.path.exists("/tmp/serving-absolute")
    assert str(tmp_path) not in response.json["error"]


@pytest.mark.parametrize("pack", [zipped, tarred, lambda files: tarred(files, mode="w:gz")])
def test_archives_cut_anywhere_are_refused(tmp_path, pack):
    whole = pack(files_of(MODEL))
    end = len(whole) - (len(whole) - len(whole.rstrip(b"\0")) if whole[257:262] == b"ustar" else 0)
    for number, cut in enumerate(range(0, end, max(1, end // 60))):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(serving.BadRequest):
            archives.unpack(whole[:cut], folder, 10**6, 100)


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_archives_damaged_anywhere_are_refused_or_whole(tmp_path, method):
    """Nothing else is raised; what is unpacked all the same is what was packed, by its CRC."""
    content = bytes(range(256)) * 4
    whole = zipped({"a": content}, method=method)
    for at in range(len(whole)):
        data = bytearray(whole)
        data[at] ^= 0xFF
        folder = tmp_path / str(at)
        folder.mkdir()
        with contextlib.suppress(serving.BadRequest):
            archives.unpack(bytes(data), folder, 10**6, 100)
            assert [one.read_bytes() for one in folder.iterdir()] == [content]


def test_a_manifest_that_does_not_fit_is_refused(rest, tmp_path):
    files = {**files_of(MODEL), manifest.MANIFEST: b"ab" * 32 + b"  saved_model.pb\n"}
    response = send(rest, "/v1/models/half/versions", zipped(files))
    assert response.status_code == 400 and "do not fit manifest" in response.json["error"]


@pytest.mark.filterwarnings("ignore:__array__")  # within Keras, of NumPy 2
@pytest.mark.usefixtures("exports_here")
def test_a_keras_file_that_is_sent_answers(rest, tmp_path, tf):
    layers = [tf.keras.Input((2,)), tf.keras.layers.Dense(1, kernel_initializer="ones")]
    tf.keras.Sequential(layers).save(tmp_path / "m.keras")
    body = (tmp_path / "m.keras").read_bytes()
    sent = send(rest, "/v1/models/ones/versions", body)
    assert sent.status_code == 201, sent.json
    answer = rest.post("/v1/models/ones:predict", json.dumps({"instances": [[1.0, 2.0]]}))
    assert answer.json == {"predictions": [[3.0]]}
    version = tmp_path / "models/ones/1"
    manifest.write_manifest(version)
    (version / "model.keras").write_bytes(body + b"x")
    request = serving.LoadRequest(version, serving.ModelConfig("ones", str(version.parent)))
    with pytest.raises(serving.LoadError, match="do not fit manifest"):
        rest.server.load(request)


def test_a_keras_file_is_an_archive_and_the_model_itself(tmp_path):
    files = {"metadata.json": b"{}", "config.json": b"{}", "model.weights.h5": b"weights"}
    for number, body in enumerate((zipped(files), zipped({"export/m.keras": zipped(files)}))):
        folder = tmp_path / str(number) / "sent"
        folder.mkdir(parents=True)
        archives.unpack(body, folder, 10**6, 10)
        root = admin_uploads.find_model_root(folder, body)
        (kept,) = root.iterdir()
        assert kept.suffix == ".keras" and kept.read_bytes() == zipped(files)


def test_what_a_killed_upload_left_is_removed_by_the_next(rest, tmp_path):
    left = tmp_path / "models" / "half" / ".upload-0123"
    left.mkdir(parents=True)
    (left / "big").write_bytes(b"x")
    assert send(rest, "/v1/models/half/versions", zipped(files_of(MODEL))).status_code == 201
    assert os.listdir(left.parent) == ["1"]


@pytest.mark.parametrize("base", ["models/half", "link", "models/half/5/inside", "models"])
def test_a_new_model_takes_no_folder_of_another(server, rest, tmp_path, base):
    (tmp_path / "link").symlink_to("models/half")
    path = tmp_path / "config.json"
    models = [
        {"config": {"name": name, "base_path": place, "warm_up": False}}
        for name, place in (("none", ""), ("no", "a\0b"), ("half-prod", base))
    ]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_config_list": models}))
    server.reload()
    before = tree(tmp_path)
    told = send(rest, "/v1/models/half/versions", zipped(files_of(MODEL)))
    assert_error(told, 409, "A new model 'half' would share the folder of 'half-prod'...")
    assert tree(tmp_path) == before


def test_a_new_model_is_taken_back_by_rollback(rest, tmp_path):
    assert send(rest, "/v1/models/half/versions", zipped(files_of(MODEL))).status_code == 201
    assert send(rest, "/v1/config/rollback", b"").status_code == 201
    assert rest.post("/v1/models/half:predict", BODY).status_code == 404


def test_uploads_of_one_new_model_at_once_are_its_versions(server, tmp_path, monkeypatch):
    meeting, find = threading.Barrier(3), admin_uploads.find_model_root
    monkeypatch.setattr(
        admin_uploads, "find_model_root", lambda *given: meeting.wait(60) and 0 or find(*given)
    )
    with ThreadPoolExecutor(3) as pool:
        body = zipped(files_of(MODEL))
        asked = [
            pool.submit(send, Rest(server), "/v1/models/half/versions", body) for _ in range(3)
        ]
        told = sorted((one.result().status_code, one.result().json["version"]) for one in asked)
    assert told == [(201, "1"), (201, "2"), (201, "3")]
    assert sorted(os.listdir(tmp_path / "models/half")) == ["1", "2", "3"]
    assert len(json.loads((tmp_path / "config.json").read_text())["model_config_list"]) == 1


def test_an_upload_that_begins_is_not_taken_for_one_that_was_left(tmp_path, monkeypatch):
    lock = config_file.lock

    def begin():
        with admin_uploads.aside(tmp_path):
            pass

    def lock_late(folder):
        monkeypatch.setattr(config_file, "lock", lock)
        other = threading.Thread(target=begin)
        other.start()
        other.join(0.3)
        return lock(folder)

    monkeypatch.setattr(config_file, "lock", lock_late)
    with admin_uploads.aside(tmp_path) as made:
        assert made.is_dir()


def test_an_upload_that_the_config_refuses_leaves_nothing(rest, tmp_path):
    before = tree(tmp_path)
    headers = {**ADMIN, "If-Match": '"another"'}
    for method, path, files in (
        ("POST", "/v1/models/half/versions", files_of(MODEL)),
        ("PUT", "/v1/projects/doubler", HANDLER),
    ):
        sent = rest.open(path, method=method, data=zipped(files), headers=headers)
        assert sent.status_code == 412 and tree(tmp_path) == before


def test_a_version_that_the_policy_does_not_pick_is_told(rest):
    body = zipped(files_of(MODEL))
    assert "note" not in send(rest, "/v1/models/half/versions/7", body, "PUT").json
    told = send(rest, "/v1/models/half/versions/3", body, "PUT").json
    assert told["note"] == "it is not served: model_version_policy picks [7]"
    assert deploying.tell(told).endswith("; it is not served: model_version_policy picks [7]")
    assert rest.get("/v1/models/half/versions/3").status_code == 404


def test_what_a_config_that_is_a_link_takes_comes_beside_the_link(tmp_path):
    make(tmp_path, upload=True).stop()
    (tmp_path / "link").mkdir()
    (tmp_path / "link/config.json").symlink_to("../config.json")
    server = serving.ModelServer(tmp_path / "link/config.json", poll_seconds=0)
    assert server.wait(60)
    sent = send(Rest(server), "/v1/models/half/versions", zipped(files_of(MODEL)))
    assert sent.status_code == 201, sent.json
    assert server.predict("half", {"instances": [1.0]})["predictions"].tolist() == [2.5]
    assert files_of(tmp_path / "link/models/half/1") == files_of(MODEL)
    server.stop()


def test_a_model_without_a_signature_of_its_own_is_refused(rest, tmp_path, tf):
    module = tf.Module()
    module.weight = tf.Variable(1.0)
    tf.saved_model.save(module, str(tmp_path / "m"))  # with __saved_model_init_op alone
    sent = send(rest, "/v1/models/none/versions", zipped(files_of(tmp_path / "m")))
    assert_error(sent, 400, "The model has no signature that can be called")


# --- projects -------------------------------------------------------------------------------------

HANDLER = {
    "config.json": json.dumps(
        {"model_config_list": [], "handlers": [{"path": "/double", "function": "handler:double"}]}
    ).encode(),
    "handler.py": b"import helper\n\ndef double(inputs):\n    return helper.TIMES * inputs\n",
    "helper.py": b"TIMES = 2\n",
}


def project(function):
    config = {"model_config_list": [], "handlers": [{"path": "/double", "function": function}]}
    return {**HANDLER, "config.json": json.dumps(config).encode()}


def test_a_rollback_finds_the_project_as_it_was_after_any_number_of_uploads(rest, tmp_path):
    assert send(rest, "/v1/projects/doubler", zipped(HANDLER), "PUT").status_code == 201
    wrong = {**HANDLER, "handler.py": b"1 / 0\n"}
    for _ in range(12):
        assert send(rest, "/v1/projects/doubler", zipped(wrong), "PUT").status_code == 500
        assert send(rest, "/v1/config/rollback", b"").status_code == 201
        assert rest.post("/double", 4, headers=ADMIN).json == 8


def test_a_misspelled_file_of_a_project_is_refused(rest, tmp_path):
    before = tree(tmp_path)
    sent = send(rest, "/v1/projects/doubler", zipped(project("handlr.py:double")), "PUT")
    assert sent.status_code == 400 and "handlr.py: no such file" in sent.json["error"]
    assert tree(tmp_path) == before
    assert send(rest, "/v1/projects/doubler", zipped(HANDLER), "PUT").status_code == 201


def test_a_project_whose_function_is_a_librarys_is_sent_again(rest):
    for status in (201, 200):
        sent = send(rest, "/v1/projects/lib", zipped(project("json:dumps")), "PUT")
        assert sent.status_code in (status, 201), sent.json
    assert rest.post("/double", 4, headers=ADMIN).status_code == 200


def test_after_the_highest_version_there_is_none(rest, tmp_path):
    body = zipped(files_of(MODEL))
    assert send(rest, f"/v1/models/half/versions/{2**63 - 1}", body, "PUT").status_code == 201
    told = send(rest, "/v1/models/half/versions", body)
    assert_error(told, 409, "The highest version is taken: name a free one...")
    assert os.listdir(tmp_path / "models/half") == [str(2**63 - 1)]


def test_a_project_that_is_sent_answers_and_is_replaced(rest, tmp_path):
    first = send(rest, "/v1/projects/doubler", zipped(HANDLER), "PUT")
    assert first.status_code == 201 and first.json["handlers"] == ["/double"]
    assert rest.post("/double", "4", headers=ADMIN).json == 8
    better = {**HANDLER, "helper.py": b"TIMES = 3\n", "._helper.py": b"\0 of macOS"}
    assert send(rest, "/v1/projects/doubler", tarred(better), "PUT").status_code == 201
    assert rest.post("/double", "4", headers=ADMIN).json == 12
    assert sorted(os.listdir(tmp_path / "projects/doubler")) == ["1", "2"]
    assert send(rest, "/v1/config/rollback", b"").status_code == 201
    assert rest.post("/double", "4", headers=ADMIN).json == 8
    other = send(rest, "/v1/projects/other", zipped(HANDLER), "PUT")
    assert other.status_code == 409 and "but not in this project" in other.json["error"]
    assert os.listdir(tmp_path / "projects") == ["doubler"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"config.json": b"{}"}, ""),
        ({"handler.py": b"def double(:\n"}, "handler.py: "),
        (
            {"config.json": b'{"auth": {}}'},
            "config.json of a project may only have handlers and models",
        ),
        ({"config.json": b'{"handlers": [{"path": "/x"}]}'}, "config.json of the project"),
        ({"config.json": b'{"handlers": 5}'}, "config.json of the project"),
        ({"config.json": b"{"}, "$: not valid JSON"),
        ({"config.json": None}, "The archive has no project"),
    ],
)
def test_a_project_that_is_wrong_is_refused(rest, tmp_path, change, error):
    files = {name: text for name, text in {**HANDLER, **change}.items() if text is not None}
    before = tree(tmp_path)
    response = send(rest, "/v1/projects/doubler", zipped(files), "PUT")
    if not error:
        assert response.status_code == 200
        return
    assert response.status_code == 400 and response.json["error"].startswith(error), response.json
    assert tree(tmp_path) == before


# --- from the command line ------------------------------------------------------------------------


def test_deploy_sends_a_model_or_a_project(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SERVING_KEY", "boss")
    shutil.copytree(MODEL.parent, tmp_path / "half")
    project = tmp_path / "doubler"
    project.mkdir()
    for name, text in HANDLER.items():
        (project / name).write_bytes(text)
    with listening(server) as address:
        assert serving.main(["--deploy", str(tmp_path / "half"), "--to", address]) == 0
        assert "half version 123: " in capsys.readouterr().out
        assert serving.main(["--deploy", str(project), "--to", address + "/"]) == 0
        assert "doubler: /double" in capsys.readouterr().out
        assert serving.main(["--deploy", str(tmp_path / "half"), "--to", address]) == 3
        assert "409: Version 123 is there already" in capsys.readouterr().err
        monkeypatch.setenv("SERVING_KEY", "wrong")
        assert serving.main(["--deploy", str(project), "--to", address]) == 3
        rest = Rest(server)
        assert rest.post("/v1/models/half:predict", BODY).json == {"predictions": [2.5, 3.0]}
        assert rest.post("/double", "4", headers=ADMIN).json == 8


@pytest.mark.parametrize(("option", "body"), [("--init", '"hello"'), ("--init-hub", '"a b"')])
def test_what_init_writes_is_deployed_as_it_is(server, tmp_path, monkeypatch, option, body):
    monkeypatch.setenv("SERVING_KEY", "boss")
    project = tmp_path / "hello"
    assert serving.main([option, str(project)]) == 0
    with listening(server) as address:
        assert serving.main(["--deploy", str(project), "--to", address]) == 0
        (path,) = Rest(server).server.prepared.of["handlers"]
        answer = Rest(server).post(path, body, headers=ADMIN)
        assert answer.status_code == 200 and answer.json["statusCode"] == 200, answer.json


def test_deploy_tells_what_is_wrong_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SERVING_KEY", "boss")
    nowhere = "http://127.0.0.1:1"
    assert serving.main(["--deploy", str(MODEL), "--to", nowhere]) == 1
    assert serving.main(["--deploy", str(tmp_path), "--to", nowhere]) == 2
    assert serving.main(["--deploy", str(MODEL), "--to", "ftp://x"]) == 2
    monkeypatch.delenv("SERVING_KEY")
    assert serving.main(["--deploy", str(MODEL), "--to", nowhere]) == 2
    assert "SERVING_KEY is not set" in capsys.readouterr().err


def test_deploy_chooses_what_to_send():
    assert deploying.choose(MODEL)[1] == "/v1/models/half_plus_two/versions"
    assert deploying.choose(MODEL.parent) == ("PUT", "/v1/models/half_plus_two/versions/123", MODEL)


# --- manifests ------------------------------------------------------------------------------------


def test_a_manifest_is_what_sha256sum_checks_and_writes(tmp_path):
    folder = tmp_path / "1"
    shutil.copytree(MODEL, folder)
    (folder / "assets").mkdir(exist_ok=True)
    for name in ("a b", "äö", "*star"):
        (folder / "assets" / name).write_text(name)
    assert serving.main(["--manifest", str(folder)]) == 0
    command = ["sha256sum", "--check", "--strict", "--quiet", manifest.MANIFEST]
    assert subprocess.run(command, cwd=folder).returncode == 0
    assert manifest.check_manifest(folder)
    names = [path.relative_to(folder).as_posix() for path in manifest.files_of(folder).values()]
    written = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True)
    (folder / manifest.MANIFEST).write_bytes(written.stdout)
    assert manifest.check_manifest(folder)
    assert serving.main(["--manifest", str(tmp_path)]) == 2


@pytest.mark.parametrize("name", ["back\\slash", "new\nline", "re\rturn"])
def test_names_that_sha256sum_escapes_have_no_manifest(tmp_path, name, capsys):
    folder = tmp_path / "1"
    shutil.copytree(MODEL, folder)
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / name).write_text(name)
    assert serving.main(["--manifest", str(folder)]) == 2
    assert f"{f'assets/{name}'!r}: expected a name without" in capsys.readouterr().out
    names = [path.relative_to(folder).as_posix() for path in manifest.files_of(folder).values()]
    written = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True)
    (folder / manifest.MANIFEST).write_bytes(written.stdout)
    with pytest.raises(serving.LoadError, match="line 1: expected <sha256>  <file>"):
        manifest.check_manifest(folder)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda folder: (folder / "saved_model.pb").write_bytes(b"x"),
            "saved_model.pb has changed",
        ),
        (lambda folder: (folder / "saved_model.pb").unlink(), "saved_model.pb is missing"),
        (lambda folder: (folder / "more").write_text("x"), "more is not in it"),
        (lambda folder: (folder / manifest.MANIFEST).write_text("x"), "line 1: expected <sha256>"),
        (
            lambda folder: (folder / manifest.MANIFEST).write_text(f"{'ab' * 32}  ../up\n"),
            "../up is missing",
        ),
    ],
)
def test_a_model_that_does_not_fit_its_manifest_is_refused(tmp_path, change, problem):
    folder = tmp_path / "1"
    shutil.copytree(MODEL, folder)
    manifest.write_manifest(folder)
    (folder / ".DS_Store").write_text("left by a system")
    assert manifest.check_manifest(folder)
    change(folder)
    with pytest.raises(serving.LoadError, match=problem):
        manifest.check_manifest(folder)


def test_check_reads_what_a_manifest_tells_once_and_nothing_else(tmp_path, monkeypatch):
    for version in ("1", "2"):
        shutil.copytree(MODEL, tmp_path / "m" / version)
    count = manifest.write_manifest(tmp_path / "m/1")
    policy = {"all": {}}
    model = {"name": "m", "base_path": str(tmp_path / "m"), "model_version_policy": policy}
    read, sha256_of = [], manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    told, problems = manifest.check(serving.ModelServer({"model_config_list": [{"config": model}]}))
    assert [path.relative_to(tmp_path / "m").parts[0] for path in read] == ["1"] * count
    assert [row[3] for row in told] == [
        f"{count} files, no manifest",
        manifest.describe_digest(tmp_path / "m/1")[0],
    ]
    assert problems == [] and told[1][3].endswith(f" of {count} files, fits its manifest")


def test_files_of_a_linked_folder_are_files_of_the_version(tmp_path):
    """To the manifest, to what looks for changes, to what a version needs, to what is sent."""
    folder, weights = tmp_path / "1", tmp_path / "weights"
    shutil.copytree(MODEL, folder)
    (folder / "variables").rename(weights)
    (folder / "variables").symlink_to(weights)
    (weights / "up").symlink_to(tmp_path)  # a loop
    data = "variables/variables.data-00000-of-00001"
    manifest.write_manifest(folder)
    assert data in (folder / manifest.MANIFEST).read_text() and manifest.check_manifest(folder)
    with tarfile.open(fileobj=io.BytesIO(deploying.pack_folder(folder))) as archive:
        assert data in archive.getnames()
    before, size = serving.fingerprint(folder), on_demand.size_of(folder)
    with (folder / data).open("ab") as file:
        file.write(b"x")
    assert serving.fingerprint(folder) != before and on_demand.size_of(folder) > size
    with pytest.raises(serving.LoadError, match=f"{data} has changed"):
        manifest.check_manifest(folder)


def test_a_link_that_leads_nowhere_keeps_no_version_from_being_served(tmp_path):
    folder = tmp_path / "m/1"
    shutil.copytree(MODEL, folder)
    size = on_demand.size_of(folder)
    (folder / "circle").symlink_to("circle")
    (folder / "odd").symlink_to("x" * 300)  # cannot be looked at, as what root alone may enter
    assert on_demand.size_of(folder) == size
    assert not {"circle", "odd"} & {
        os.path.basename(path) for path, *_ in serving.fingerprint(folder)
    }
    item = {"name": "m", "base_path": str(tmp_path / "m")}
    server = serving.ModelServer({"model_config_list": [{"config": item}], "server": NO_POLL})
    assert server.wait(60) and not server.readiness()
    server.stop()


def test_the_old_version_serves_when_the_new_one_does_not_fit(tmp_path, capsys):
    for version in ("1", "2"):
        shutil.copytree(MODEL, tmp_path / "half" / version)
        manifest.write_manifest(tmp_path / "half" / version)
    (tmp_path / "half/2/saved_model.pb").write_bytes((MODEL / "saved_model.pb").read_bytes() + b"x")
    (tmp_path / "half/2").rename(tmp_path / "2")
    path = tmp_path / "config.json"
    entry = {"name": "half", "base_path": "half"}
    path.write_text(json.dumps({"model_config_list": [{"config": entry}]}))
    server = serving.ModelServer(path, poll_seconds=0)
    assert server.wait(60) and not server.readiness()
    (tmp_path / "2").rename(tmp_path / "half/2")
    status, body = server.reload()
    assert status == 500 and "saved_model.pb has changed" in body["details"][0]
    assert server.predict("half", {"instances": [1.0]})["predictions"].tolist() == [2.5]
    server.stop()
    assert serving.main(["--check", "--config", str(path)]) == 2
    told = capsys.readouterr().out
    assert re.search(r"^files +half +version 2 +sha256 [0-9a-f]{64} of ", told, re.MULTILINE)
    assert "wrong: half version 2: The files do not" in told
