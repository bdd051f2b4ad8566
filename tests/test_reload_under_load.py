"""Two hundred changes of versions and config while eight threads predict: not one failed or wrong answer."""

import json
import random
import shutil
import sys
import threading
import time

import pytest
from conftest import ROOT

import serving


@pytest.fixture(autouse=True)
def frequent_switches():
    """Threads change places more often: more interleavings, and the loader gets its turn among eight busy threads."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


def test_no_request_fails_or_is_wrong_in_two_hundred_changes(tmp_path):
    """Version 1 of `m` is half_plus_two, later ones alternate; `m` always has a good version on disk.

    An answer is right when it is one of a version that may serve: 0.5 x + 2 or 0.5 x + 3, for the x asked.
    `steady` keeps one version through everything and has one right answer.
    """

    def put(model, version, source):
        part = (
            tmp_path / model / f".{version}"
        )  # copied aside, then renamed: a version appears whole
        shutil.copytree(ROOT / "models" / source / "123", part)
        part.rename(tmp_path / model / str(version))

    def write(**fields):
        models = [
            {"config": {"name": name, "base_path": name, **fields.get(name, {})}}
            for name in ("m", "steady")
        ]
        extra = (
            [{"config": {"name": "extra", "base_path": "steady"}}] if fields.get("extra") else []
        )
        text = json.dumps(
            {"model_config_list": models + extra, "server": {"file_system_poll_wait_seconds": 1}}
        )
        (tmp_path / "config.part").write_text(text)
        (tmp_path / "config.part").rename(tmp_path / "config.json")

    (tmp_path / "m").mkdir(), (tmp_path / "steady").mkdir()
    put("m", 1, "half_plus_two"), put("steady", 1, "half_plus_three")
    write()
    server = serving.ModelServer(tmp_path / "config.json")
    assert server.wait(60) and not server.readiness()
    stop, wrong, asked = threading.Event(), [], [0] * 8

    def ask(number):
        x = 0.0
        while not stop.is_set():
            x += 1.0
            try:
                answers = [
                    float(server.predict(name, {"instances": [x]})["predictions"][0])
                    for name in ("m", "steady")
                ]
                if answers[0] not in (0.5 * x + 2, 0.5 * x + 3) or answers[1] != 0.5 * x + 3:
                    wrong.append((x, answers))
            except Exception as error:
                wrong.append(repr(error))
            asked[number] += 1
            time.sleep(
                0.01
            )  # without it, loading gets a ninth of the GIL, and the test takes minutes

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    chance, good, broken, version = random.Random(0), [1], [], 1
    outcomes = set()
    for _ in range(200):
        kind = chance.choice(
            ["add", "add", "remove", "break", "mend", "policy", "batching", "extra", "wrong config"]
        )
        kind = "remove" if len(good) > 3 else kind
        if kind == "add":
            version += 1
            put("m", version, f"half_plus_{'two' if version % 2 else 'three'}")
            good.append(version)
        elif kind == "remove" and len(good) > 1:
            shutil.rmtree(tmp_path / "m" / str(good.pop(chance.randrange(len(good)))))
        elif kind == "break":
            version += 1
            broken.append(version)
            (tmp_path / "m" / str(version)).mkdir()
            (tmp_path / "m" / str(version) / "saved_model.pb").write_bytes(b"broken")
        elif kind == "mend" and broken:
            mended = broken.pop()
            shutil.rmtree(tmp_path / "m" / str(mended))
            put("m", mended, "half_plus_three")
            good.append(mended)
        elif kind == "wrong config":
            (tmp_path / "config.json").write_text('{"model_config_list": [{"config": {"name": "m"')
        else:
            write(
                m={
                    "model_version_policy": chance.choice(
                        [{"all": {}}, {"latest": {"num_versions": 2}}]
                    )
                }
                if kind == "policy"
                else {"batching": chance.choice([True, False])}
                if kind == "batching"
                else {},
                extra=kind == "extra",
            )
        outcomes.add(server.reload()[0])
    stop.set()
    for thread in threads:
        thread.join()
    server.stop()
    assert not wrong, (len(wrong), wrong[:5])
    assert {201, 500, 412} <= outcomes and sum(asked) > 2000
