"""Models in memory only while they are wanted: on demand, idle, within a budget; with real SavedModels and measured memory."""

import contextlib
import json
import multiprocessing
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from conftest import NO_POLL, ROOT, FakeServable, Rest, assert_error, until
from prometheus_client.parser import text_string_to_metric_families
from test_saved_models import export

import serving
from serving_extensions import on_demand

MB = 1 << 20


def write_model(tf, folder, number):
    weights = tf.Variable(np.full((6 * MB,), number, np.float32))
    export(
        tf,
        folder,
        {"serving_default": (lambda x: {"y": x * weights[0]}, [tf.TensorSpec([None], name="x")])},
        weights=weights,
    )


@pytest.fixture(scope="module")
def folders(tf, tmp_path_factory):
    """Seven models of 24 MB, number n answers x * n."""
    made = []
    for number in range(1, 8):
        made.append(tmp_path_factory.mktemp(f"m{number}"))
        write_model(tf, made[-1] / "1", number)
    return made


def serve(folders, models=None, **options):
    """A server of models m1, m2, ... on demand; `models` has more fields by name."""
    items = [
        {
            "config": {
                "name": f"m{number}",
                "base_path": str(folder),
                "load": "on_demand",
                **(models or {}).get(f"m{number}", {}),
            }
        }
        for number, folder in enumerate(folders, 1)
    ]
    server = serving.ModelServer({"model_config_list": items, "server": {**NO_POLL, **options}})
    assert server.wait(60) and not server.readiness()
    return server


def ask(server, number, value=2.0):
    return server.predict(f"m{number}", {"instances": [value]})["predictions"].tolist() == [
        value * number
    ]


def resident(server):
    return [
        entry.config.name
        for entry in sorted(server.state["on_demand"].known(), key=lambda entry: entry.name)
        if entry.resident
    ]


def test_a_model_comes_into_memory_when_it_is_asked_for(folders, caplog):
    caplog.set_level("INFO", "serving")
    server = serve(folders[:2])
    rest = Rest(server)
    assert resident(server) == [] and "is in memory" not in caplog.text
    status = json.loads(rest.get("/v1/models/m1").data)["model_version_status"][0]
    assert status["state"] == "AVAILABLE"
    assert json.loads(rest.get("/v1/models/m1/metadata").data)["metadata"]["signature_def"][
        "signature_def"
    ].keys() >= {"serving_default"}
    assert resident(server) == []
    for waited in (True, False):
        turn = serving.Turn()
        replied = rest.post(
            "/v1/models/m2:predict", {"instances": [3.0]}, environ_overrides={"serving.turn": turn}
        )
        assert json.loads(replied.data) == {"predictions": [6.0]}
        assert turn.waited == waited
    stats = json.loads(rest.get("/stats").data)
    assert (
        resident(server) == ["m2"]
        and stats["versions"]["m1/1"]["on_demand"]["why"] == "not asked for yet"
    )
    assert stats["versions"]["m2/1"]["on_demand"]["why"] == "asked for"
    assert stats["calls"]["m2/1"]["serving_default"].startswith("session")
    server.stop()


@contextmanager
def one_hot(server):
    """The model m1 is asked all the time, and answers right."""
    stop, wrong = threading.Event(), []

    def heat():
        while not stop.is_set():
            if not ask(server, 1):
                wrong.append(1)

    hot = threading.Thread(target=heat)
    hot.start()
    try:
        yield
    finally:
        stop.set()
        hot.join()
    assert not wrong


def take_turns(folders):
    """Six models of 24 MB take turns in a budget for three, one of them asked all the time.

    Returns how many bytes the process grows by, at most.
    """
    import psutil

    server = serve(folders[:6], memory_budget_mb=100)
    assert ask(server, 1)
    entry = next(e for e in server.state["on_demand"].entries if e.config.name == "m1")
    loads, first, load = [], entry.resident, server.state["on_demand"].load

    def load_told(entry):
        loads.append(entry.config.name)
        return load(entry)

    server.state["on_demand"].load = load_told
    before, most = psutil.Process().memory_full_info().uss, 0
    with one_hot(server):
        for number in (2, 3, 4, 5, 6, 2, 3, 4, 5, 6):
            assert ask(server, number)
            state = server.state["on_demand"].read()
            assert state["used_mb"] <= 100
            assert 1 <= len(resident(server)) <= 4 and "m1" in resident(server)
            most = max(most, psutil.Process().memory_full_info().uss)
    assert "m1" not in loads and len(loads) == 10
    assert entry.resident is first
    server.stop()
    return most - before


def test_six_models_in_a_budget_for_three_all_answer_the_hot_one_stays_and_memory_comes_back(
    folders,
):
    # where no other test's memory comes and goes
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        grown = fresh.submit(take_turns, folders).result(120)
    assert grown < 100 * MB  # three more of 24 MB, and what loading needs for a moment


def test_the_least_recently_used_leaves_first_and_a_pinned_one_never(folders):
    server = serve(folders[:4], {"m1": {"pinned": True}}, memory_budget_mb=90)
    for number in (1, 2, 3):
        assert ask(server, number)
    assert resident(server) == ["m1", "m2", "m3"]
    assert ask(server, 2) and ask(server, 4)
    assert resident(server) == ["m1", "m2", "m4"]
    assert named(server, "m3").why == "made room for m4"
    server.stop()


def test_models_that_are_always_there_count_and_stay(folders):
    server = serve(folders[:3], {"m1": {"load": "eager"}}, memory_budget_mb=60)
    assert server.state["on_demand"].read()["used_mb"] >= 24
    assert ask(server, 2) and ask(server, 3) and ask(server, 1)
    assert resident(server) == ["m3"]
    server.stop()
    assert server.state["on_demand"].used() == 0


def test_a_model_larger_than_the_budget_is_tried_and_said(folders, caplog):
    server = serve(folders[:1], memory_budget_mb=5)
    assert ask(server, 1)
    assert "m1/1 needs about" in caplog.text and "more than memory_budget_mb leaves" in caplog.text
    assert server.state["on_demand"].make_room(named(server, "m1"), 1)
    assert "m1/1 needs about 1 MB, more than" in caplog.text
    server.stop()


def test_an_idle_model_leaves_memory_and_comes_back(folders):
    server = serve(folders[:2], {"m1": {"idle_seconds": 1}})
    assert ask(server, 1) and ask(server, 2)
    end = time.monotonic() + 15
    while "m1" in resident(server):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert resident(server) == ["m2"] and named(server, "m1").why == "idle for 1 s"
    assert ask(server, 1)
    server.stop()


def test_a_version_that_is_retired_leaves_memory(folders, tmp_path):
    path = tmp_path / "config.json"
    item = {"config": {"name": "m1", "base_path": str(folders[0]), "load": "on_demand"}}
    path.write_text(json.dumps({"model_config_list": [item], "server": NO_POLL}))
    server = serving.ModelServer(path)
    server.wait(60)
    assert ask(server, 1) and resident(server) == ["m1"]
    path.write_text(json.dumps({"model_config_list": [], "server": NO_POLL}))
    assert server.reload()[0] == 201
    assert not server.state["on_demand"].known() and server.state["on_demand"].used() == 0


def test_a_model_is_pinned_where_it_is(folders, tmp_path):
    path = tmp_path / "config.json"
    item = {"name": "m1", "base_path": str(folders[0]), "load": "on_demand"}
    path.write_text(json.dumps({"model_config_list": [{"config": item}], "server": NO_POLL}))
    server = serving.ModelServer(path)
    assert server.wait(60) and ask(server, 1)
    before = named(server, "m1").resident
    item |= {"pinned": True, "idle_seconds": 1}
    path.write_text(json.dumps({"model_config_list": [{"config": item}], "server": NO_POLL}))
    assert server.reload()[0] == 201 and named(server, "m1").resident is before
    assert Rest(server).post("/v1/models/m1/unload").status_code == 400
    assert named(server, "m1").config.idle_seconds == 1
    server.stop()


# --- without TensorFlow -----------------------------------------------------------------------------------


class Slow(FakeServable):
    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def answer(self, name, inputs):
        assert self.go.wait(30)
        return super().answer(name, inputs)


def request(name, **fields):
    return serving.LoadRequest(serving.Path(name) / "1", serving.ModelConfig(name, name, **fields))


def fake(monkeypatch, load, names, budget=None, size=10 * MB, **fields):
    """Entries of a residency whose models are made by `load(name)`, each of `size` bytes."""
    graph = types.SimpleNamespace(signature_def={})
    monkeypatch.setattr(on_demand, "read_graph", lambda folder, tags: graph)
    monkeypatch.setattr(on_demand, "signatures_of", lambda graph, folder: {})
    monkeypatch.setattr(on_demand, "describe", lambda definitions: {"signature_def": {}})
    monkeypatch.setattr(on_demand, "size_of", lambda folder: size)
    monkeypatch.setattr(on_demand, "memory_now", lambda: 0)
    monkeypatch.setattr(on_demand, "settle_garbage", lambda: None)
    options = serving.ServerConfig(memory_budget_mb=budget, load_wait_seconds=0.3)
    room = on_demand.Residency(lambda: options, lambda request: load(request.config.name))
    return room, [room(request(name, load="on_demand", **fields)) for name in names]


def test_many_who_ask_at_once_cause_one_load(monkeypatch):
    loads = []

    def load(name):
        loads.append(name)
        time.sleep(0.05)
        return FakeServable()

    _, (entry,) = fake(monkeypatch, load, ["a"])
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda n: entry.run("serving_default", {"x": np.float32([[n]])})["y"].tolist(),
                range(16),
            )
        )
    assert answers == [[[n / 2 + 1]] for n in range(16)] and loads == ["a"]


def test_a_model_that_was_loaded_for_a_request_stays_until_it_has_run(monkeypatch):
    loads = []
    room, (entry,) = fake(monkeypatch, lambda name: loads.append(name) or FakeServable(), ["a"])
    load_in_turn, gone = room.load_in_turn, []

    def wanted_by_another(*arguments):
        loaded = load_in_turn(*arguments)
        gone.append(not gone and room.evict(entry, "made room"))
        return loaded

    monkeypatch.setattr(room, "load_in_turn", wanted_by_another)
    assert entry.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[2.0]]
    assert loads == ["a"] and gone == [False] and room.evict(entry, "made room")


def test_a_file_that_was_there_at_the_first_load_alone_is_not_missed(monkeypatch, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1/saved_model.pb").write_bytes(b"graph")
    room, (entry,) = fake(monkeypatch, lambda name: FakeServable(), [str(tmp_path)])
    stray = tmp_path / "1/.variables.copied"
    stray.touch()
    for _ in range(2):
        assert entry.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[2.0]]
        assert room.evict(entry, "made room")
        stray.unlink(missing_ok=True)


@pytest.mark.parametrize("changed", ["saved_model.pb", "variables/data"])
def test_files_that_are_changed_in_place_are_loaded_by_a_reload_alone(
    monkeypatch, tmp_path, changed
):
    (tmp_path / "1/variables").mkdir(parents=True)
    (tmp_path / "1/saved_model.pb").write_bytes(b"graph")
    room, (entry,) = fake(monkeypatch, lambda name: FakeServable(), [str(tmp_path)])
    (tmp_path / "1/variables/data").write_bytes(b"copied last")
    for _ in range(2):
        assert entry.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[2.0]]
        assert room.evict(entry, "made room")
    (tmp_path / "1" / changed).write_bytes(b"of another model")
    with pytest.raises(serving.ServingError, match="a reload of the config loads them") as raised:
        entry.run("serving_default", {"x": np.float32([[2]])})
    assert raised.value.status == 503
    anew = room(request(str(tmp_path), load="on_demand"))  # as a reload has it
    assert anew.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[2.0]]


def test_models_on_demand_load_at_once_where_no_budget_is_kept(monkeypatch):
    meeting = threading.Barrier(2)

    def load(name):
        meeting.wait(60)  # broken, and so the load, where only one comes
        return FakeServable()

    _, entries = fake(monkeypatch, load, ["a", "b"])
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(
                lambda entry: entry.run("serving_default", {"x": np.float32([[2]])})["y"].tolist(),
                entries,
            )
        )
    assert answers == [[[2.0]]] * 2


@pytest.mark.parametrize("budget, most", [(None, 2), (100, 1)])
def test_models_that_stay_load_at_once_where_no_budget_is_kept_and_else_in_turn(
    monkeypatch, budget, most
):
    running, counts, meeting = [], [], threading.Barrier(most)

    def load(name):
        running.append(name)
        meeting.wait(60)
        counts.append(len(running))
        meeting.wait(60)
        running.remove(name)
        return FakeServable()

    room, _ = fake(monkeypatch, load, [], budget=budget)
    monkeypatch.setattr(on_demand, "tensorflow", lambda: None)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: room(request(name)), ["a", "b"]))
    assert counts == [most] * 2


def test_a_model_that_waits_for_another_load_gives_up_at_its_deadline(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def load(name):
        begun.set()
        assert go_on.wait(60)
        return FakeServable()

    _, (first, second) = fake(monkeypatch, load, ["a", "b"], budget=100)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.run, "serving_default", {"x": np.float32([[2]])})
        assert begun.wait(60)
        trace = serving.Trace()
        trace.limit(0.3, None)
        for entry, name in ((second, "b"), (first, "a")):
            with pytest.raises(
                serving.ServingError, match=f"Model {name} is still waiting to be loaded"
            ):
                entry.run("serving_default", {"x": np.float32([[2]])}, trace)
        go_on.set()
        assert running.result()["y"].tolist() == [[2.0]]


@pytest.mark.parametrize("budget", [None, 100])
@pytest.mark.parametrize("retired", [False, True])
def test_who_has_a_model_loaded_gives_up_at_its_deadline_and_the_load_goes_on(
    monkeypatch, budget, retired
):
    made, go_on = [], threading.Event()

    def load(name):
        made.append(FakeServable())
        assert go_on.wait(60)
        return made[-1]

    room, (entry,) = fake(monkeypatch, load, ["a"], budget=budget)
    trace = serving.Trace()
    trace.limit(0.2, None)
    with pytest.raises(serving.ServingError, match="Model a is still being loaded") as raised:
        entry.run("serving_default", {"x": np.float32([[2]])}, trace)
    assert raised.value.status == 503
    if retired:
        assert not entry.retire(0)  # tried again until the load has come to its end
    go_on.set()
    if retired:
        assert entry.retire(60) and made[0].closed
    else:
        assert entry.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[2.0]]
        assert room.evict(entry, "by hand")  # who gave up keeps no lease
    assert len(made) == 1


STOPPED = """
import sys, threading
import serving

item = {"name": "m", "base_path": sys.argv[1], "load": "on_demand"}
for drain in (True, False):
    server = serving.ModelServer({"model_config_list": [{"config": item}]})
    server.wait(60)
    residency = server.state["on_demand"]
    load, begun, made = residency._load, threading.Event(), []
    def slow(request):
        for _ in range(10):
            made.append(load(request))
            begun.set()
        return made[-1]
    residency._load = slow
    trace = serving.Trace()
    trace.limit(0.001, None)
    try:
        server.predict("m", {"instances": [1.0]}, trace=trace)
    except serving.ServingError as error:
        print(error.message)
    begun.wait(60)
    server.stop(drain)
    print(len(made), made[-1].closed, flush=True)
"""


def test_a_server_that_stops_waits_for_a_load_and_frees_it(folders):
    """TensorFlow ends the process with "exception not rethrown" where its thread is ended."""
    command = [sys.executable, "-c", STOPPED, str(folders[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == 2 * "Model m is still being loaded\n10 True\n"
    assert done.returncode == 0


def test_a_budget_is_kept_when_a_model_that_stays_comes_and_when_it_is_lowered(monkeypatch):
    room, entries = fake(monkeypatch, lambda name: FakeServable(), "abc", budget=40)

    def in_memory(budget):
        options = serving.ServerConfig(memory_budget_mb=budget)
        monkeypatch.setattr(room, "options", lambda: options)
        room.sweep()
        return [entry.config.name for entry in entries if entry.resident]

    for entry in entries:
        entry.run("serving_default", {"x": np.float32([[2]])})
    stay = [room(request("d")), room(request("e"))]
    assert in_memory(40) == ["b", "c"] and entries[0].why == "made room for e"
    assert in_memory(30) == ["c"] and entries[1].why == "beyond memory_budget_mb"
    assert in_memory(20) == []
    entries[0].run("serving_default", {"x": np.float32([[2]])})  # more than is left, and tried
    assert in_memory(20) == ["a"] and in_memory(19) == [] and not any(one.closed for one in stay)


def test_a_call_from_python_waits_for_another_load_however_long_it_takes(monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def load(name):
        begun.set()
        assert go_on.wait(60)
        return FakeServable()

    _, (entry,) = fake(monkeypatch, load, ["a"])
    asked = []

    class Lock:
        """One that says how long it is waited for."""

        def __init__(self, lock):
            self.lock, self.release = lock, lock.release

        def acquire(self, timeout):
            asked.append(timeout)
            if begun.is_set():
                go_on.set()
            return self.lock.acquire(timeout=timeout)

    entry.loading = Lock(entry.loading)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(entry.run, "serving_default", {"x": np.float32([[2]])})
        assert begun.wait(60)
        assert entry.run("serving_default", {"x": np.float32([[2]])})["y"].tolist() == [[2.0]]
        assert running.result()["y"].tolist() == [[2.0]] and asked == [threading.TIMEOUT_MAX] * 2


def test_one_in_use_is_never_evicted_and_the_next_waits_for_it_or_gives_up(monkeypatch):
    made = {}
    room, (first, second) = fake(
        monkeypatch, lambda name: made.setdefault(name, Slow()), ["a", "b"], budget=20
    )
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(first.run, "serving_default", {"x": np.float32([[0]])})
        while "a" not in made or not made["a"]._leases:
            time.sleep(0.005)
        with pytest.raises(
            serving.ServingError, match="no room for model b: all others are in use"
        ) as raised:
            second.run("serving_default", {"x": np.float32([[0]])})
        assert raised.value.status == 503 and not made["a"].closed
        monkeypatch.setattr(
            room, "options", lambda: serving.ServerConfig(memory_budget_mb=20, load_wait_seconds=20)
        )
        waiting = pool.submit(second.run, "serving_default", {"x": np.float32([[0]])})
        time.sleep(0.1)
        made["a"].go.set()
        assert running.result()["y"].tolist() == [[1.0]]
        while "b" not in made:
            time.sleep(0.005)
        made["b"].go.set()
        assert waiting.result()["y"].tolist() == [[1.0]] and made["a"].closed
    assert first.resident is None and second.resident is made["b"]


def test_who_waits_for_room_holds_no_other_load_up(monkeypatch):
    made = {"a": Slow(), "b": FakeServable(), "c": FakeServable()}
    room, (first, second) = fake(monkeypatch, made.get, ["a", "b"], budget=20)
    options = serving.ServerConfig(memory_budget_mb=20, load_wait_seconds=60)
    monkeypatch.setattr(room, "options", lambda: options)
    make_room, waits = room.make_room, threading.Event()
    inputs = {"x": np.float32([[0]])}
    with ThreadPoolExecutor(3) as pool:
        running = pool.submit(first.run, "serving_default", inputs)
        until(lambda: made["a"]._leases)
        monkeypatch.setattr(room, "make_room", lambda *given: waits.set() or make_room(*given))
        waiting = pool.submit(second.run, "serving_default", inputs)
        assert waits.wait(10)
        assert pool.submit(room, request("c")).result(5) is made["c"] and not waiting.done()
        made["a"].go.set()
        for one in (running, waiting):
            assert one.result()["y"].tolist() == [[1.0]]


def test_who_asks_for_a_model_that_is_being_freed_gives_up_at_its_deadline(monkeypatch):
    freeing, go = threading.Event(), threading.Event()

    def load(name):
        servable = FakeServable()
        servable._close = lambda: (freeing.set(), go.wait(30))
        return servable

    room, (entry,) = fake(monkeypatch, load, ["a"])
    inputs = {"x": np.float32([[2]])}
    entry.run("serving_default", inputs)
    with ThreadPoolExecutor(1) as pool:
        freed = pool.submit(room.evict, entry, "by hand")
        assert freeing.wait(30)
        trace = serving.Trace()
        trace.limit(0.2, None)
        with pytest.raises(serving.ServingError, match="still waiting to be loaded"):
            entry.run("serving_default", inputs, trace)
        go.set()
        assert freed.result(30)
    assert entry.run("serving_default", inputs)["y"].tolist() == [[2.0]]


def test_who_waits_for_a_load_does_not_keep_a_model_from_making_room_for_it(monkeypatch):
    room, (entry,) = fake(monkeypatch, lambda name: FakeServable(), ["a"], budget=12)
    entry.run("serving_default", {"x": np.float32([[2]])})
    with room.measuring, ThreadPoolExecutor(1) as pool:  # as another model's load has it
        asked = pool.submit(room.bring_in, entry, serving.Trace())  # as who came too late for it
        with contextlib.suppress(AssertionError):
            until(entry.loading.locked, 0.3)
        gone = room.evict(entry, "made room")
        room.measuring.release()
        asked.result(30)
        room.measuring.acquire()
    assert gone and entry.resident


def test_a_model_that_cannot_be_loaded_says_why_and_is_not_tried_at_each_request(monkeypatch):
    tries = []

    def load(name):
        tries.append(name)
        raise serving.LoadError("made to fail")

    _, (entry,) = fake(monkeypatch, load, ["a"])
    for _ in range(3):
        with pytest.raises(
            serving.ServingError, match="Model a cannot be loaded: made to fail"
        ) as raised:
            entry.run("serving_default", {"x": np.float32([[0]])})
        assert raised.value.status == 503
    assert tries == ["a"] and entry.why == "cannot be loaded: made to fail"
    monkeypatch.setattr(on_demand, "RETRY_SECONDS", 0.0)
    with pytest.raises(serving.ServingError):
        entry.run("serving_default", {"x": np.float32([[0]])})
    assert len(tries) == 2


def test_a_folder_without_a_model_is_said_when_it_is_declared(tmp_path):
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "saved_model.pb").write_bytes(b"\xff\xff no model")
    server = serving.ModelServer(
        {
            "model_config_list": [
                {"config": {"name": "m", "base_path": str(tmp_path / "m"), "load": "on_demand"}}
            ],
            "server": NO_POLL,
        }
    )
    server.wait(60)
    assert server.readiness() == ["m"]
    assert_error(
        Rest(server).post("/v1/models/m:predict", {"instances": [1.0]}),
        404,
        "Servable not found for request: Latest(m)",
    )
    assert str(tmp_path) not in json.dumps(server.status("m"))


def test_a_folder_without_a_model_is_told_as_where_it_is_loaded_at_once(tmp_path):
    (tmp_path / "m/1/inner").mkdir(parents=True)
    (tmp_path / "m/1/inner/saved_model.pb").touch()
    models = [
        {"config": {"name": load, "base_path": str(tmp_path / "m"), "load": load}}
        for load in ("eager", "on_demand")
    ]
    server = serving.ModelServer({"model_config_list": models, "server": NO_POLL})
    server.wait(60)
    one, other = (
        server.status(load)["model_version_status"][0]["status"]["error_message"]
        for load in ("eager", "on_demand")
    )
    assert one == other and "there is a model one folder down, in 'inner'" in one


def test_a_model_is_loaded_and_freed_by_hand(folders):
    models = {"m2": {"load": "eager"}, "m3": {"pinned": True, "version_labels": {"stable": 1}}}
    server = serve(folders[:3], models)
    rest = Rest(server)
    for path in ("/v1/models/m1", "/v1/models/m1/versions/1", "/v1/models/m3/labels/stable"):
        model = path.split("/")[3]
        told = {"model": model, "version": "1", "resident": True, "why": "asked for"}
        assert rest.post(f"{path}/load").json == told and model in resident(server)
    for _ in range(2):  # what is free already is free
        told = rest.post("/v1/models/m1/unload").json
        assert told["resident"] is False and told["why"] == "freed by hand"
    assert resident(server) == ["m3"] and ask(server, 1) and resident(server) == ["m1", "m3"]
    assert_error(
        rest.post("/v1/models/m3/unload"), 400, "'m3' is pinned: once loaded, it stays in memory"
    )
    for verb in ("load", "unload"):
        assert_error(rest.post(f"/v1/models/m2/{verb}"), 400, "'m2' is not on demand...")
        assert_error(
            rest.post(f"/v1/models/m1/versions/2/{verb}"),
            404,
            "Servable not found for request: Specific(m1, 2)",
        )
    with server.state["on_demand"].use(named(server, "m1")):
        assert_error(
            rest.post("/v1/models/m1/unload"),
            503,
            "Version 1 of 'm1' is answering requests: free it when they end",
        )
    assert resident(server) == ["m1", "m3"]
    server.stop()


def named(server, model):
    return next(e for e in server.state["on_demand"].entries if e.config.name == model)


def test_stats_tell_what_each_version_costs_and_when_it_was_asked(folders):
    server = serve(folders[:3], {"m2": {"load": "eager"}}, memory_budget_mb=500)
    rest = Rest(server)
    before = time.time()
    for _ in range(3):
        assert ask_by_http(rest, "m1").status_code == 200
    rest.get("/v1/models/m1/metadata"), rest.post("/v1/models/m3/load")
    found = rest.get("/stats").json["versions"]
    assert {name: entry["calls"] for name, entry in found.items()} == {
        "m1/1": 3,
        "m2/1": 0,
        "m3/1": 0,
    }
    assert found["m2/1"]["on_demand"] is None and found["m3/1"]["last_used"] is None
    assert int(before) <= found["m1/1"]["last_used"] <= time.time()
    assert found["m1/1"]["on_demand"] == {"resident": True, "why": "asked for", "pinned": False}
    for name, folder in zip(found, folders):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert found[name]["file_bytes"] == sum(path.stat().st_size for path in files) > 24 * MB
        assert found[name]["memory_bytes"] >= found[name]["file_bytes"]
        assert found[name]["load_seconds"] > 0 and found[name]["device"] == "CPU:0"
    took = [
        sample
        for family in text_string_to_metric_families(rest.get("/metrics").text)
        if family.name == "serving_model_load_duration_seconds"
        for sample in family.samples
    ]
    assert {f"{one.labels['model']}/{one.labels['version']}": one.value for one in took} == {
        name: pytest.approx(entry["load_seconds"], abs=0.001) for name, entry in found.items()
    }
    rest.post("/v1/models/m1/unload")
    assert rest.get("/stats").json["versions"]["m1/1"]["memory_bytes"] is None
    server.stop()


def ask_by_http(rest, model):
    return rest.post(f"/v1/models/{model}:predict", {"instances": [2.0]})
