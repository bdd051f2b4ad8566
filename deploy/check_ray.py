"""Check what deploy/ray_serve.py promises on a cluster of three nodes, all on this machine; exits
with 1 if a promise is broken.

pip install 'ray[serve]>=2.60' 'a2wsgi>=1.10' && python deploy/check_ray.py        # two minutes, 4
                                                                                   GB of memory
"""

import contextlib
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ |= {
    "PYTHONPATH": str(ROOT),
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deploy.ray_serve.proxy_middlewares",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
}

import psutil  # noqa: E402
import ray  # noqa: E402
import requests  # noqa: E402
from load import Case, Load, Served, free_port, item, spell  # noqa: E402
from ray import serve  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from deploy import ray_serve  # noqa: E402
from serving import digest  # noqa: E402

REPLICAS = 4
BODY = '{"instances": [1.0, 2.0, 5.0]}'
KEY = {"x-api-key": "check"}
SLOW = "import time\n\n\ndef slow(inputs):\n    time.sleep(0.3)\n    return {'slept': True}\n"
broken: list[str] = []


def promise(kept: bool, text: str) -> None:
    print(f"{'ok    ' if kept else 'BROKEN'} {text}", flush=True)
    if not kept:
        broken.append(text)


def write_config(folder: Path, models: list[str], poll: float) -> None:
    """A config of the demo's half_plus_two under some names, and a handler that takes 0.3 s."""
    items = [item(name, "half_plus_two") for name in models]
    config = {
        "model_config_list": items,
        "handlers": [{"path": "/slow", "function": "slow.py:slow"}],
        "auth": {"keys": [{"name": "check", "sha256": digest("check")}]},
        "server": {"file_system_poll_wait_seconds": poll},
    }
    (folder / "new.json").write_text(json.dumps(config))
    (folder / "new.json").replace(folder / "config.json")  # atomic, so that nobody reads half of it


def look(address: str) -> tuple[str, set[str]]:
    """Which replica answers, identified by how long its first load took (to the
    nanosecond), and its available models.
    """
    text = requests.get(f"{address}/metrics", timeout=30).text
    loaded = set(
        re.findall(r'serving_model_loaded{device="[^"]+",model="(\w+)",version="\d+"} 1.0', text)
    )
    return re.search(
        r'^serving_model_load_duration_seconds{model="one".* (\S+)$', text, re.MULTILINE
    )[1], loaded


def wait_for_all(address: str, seconds: float, model: str | None = None) -> tuple[int, float]:
    """How many replicas answer (with `model`: that have it),
    and how long it took to see them all.
    """
    begun, seen = time.monotonic(), set()
    while len(seen) < REPLICAS and time.monotonic() - begun < seconds:
        replica, loaded = look(address)
        if model is None or model in loaded:
            seen.add(replica)
    return len(seen), time.monotonic() - begun


def wait_for_proxy(address: str) -> None:
    """Wait for the proxy: Ray may call an application ready before that listens."""
    for _ in range(300):
        with contextlib.suppress(requests.ConnectionError):
            if requests.get(f"{address}/-/healthz", timeout=5).status_code == 200:
                return
        time.sleep(0.1)


class Clients:
    """Clients that call without a pause and record each call: when it began
    and ended, its status, its path.
    """

    def __init__(self, address: str):
        self.address, self.calls, self.stop = address, [], threading.Event()
        paths = ["/v1/models/one:predict"] * 4 + ["/slow"] * 8
        self.threads = [threading.Thread(target=self.call, args=(path,)) for path in paths]
        for thread in self.threads:
            thread.start()

    def call(self, path: str) -> None:
        session = requests.Session()
        while not self.stop.is_set():
            begun, outcome = time.monotonic(), ""
            try:
                response = session.post(self.address + path, BODY, headers=KEY, timeout=30)
                outcome = str(response.status_code)
                if response.status_code == 503:
                    outcome += " Retry-After" if "Retry-After" in response.headers else ""
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                # before the answer, or during it
                outcome = "connection ended"
            self.calls.append((begun, time.monotonic(), outcome, path))

    def end(self) -> list[tuple[float, float, str, str]]:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        return self.calls


def check_answers(address: str) -> None:
    answer = requests.post(
        f"{address}/v1/models/one:predict", BODY, headers={"X-Request-Id": "r-1"}
    )
    right = (
        answer.json() == {"predictions": [2.5, 3.0, 4.5]}
        and answer.headers["X-Request-Id"] == "r-1"
    )
    promise(right, "predict answers as on one server")
    made = requests.post(f"{address}/slow")
    refused = made.status_code == 401 and made.json()["request_id"] == made.headers["X-Request-Id"]
    promise(refused, "a call without a key is refused, and has an id")
    large = requests.post(
        f"{address}/v1/models/one:predict", json.dumps({"instances": [0.5] * 2_000_000})
    )
    promise(
        large.json()["predictions"] == [2.25] * 2_000_000, "a body of 10 MB and its answer pass"
    )
    wrong = requests.post(f"{address}/v1/models/none:predict", BODY)
    promise(
        (wrong.status_code, wrong.json())
        == (404, {"error": "Servable not found for request: Latest(none)"}),
        "so do errors",
    )
    promise(
        requests.get(f"{address}/v1/models/a%2Fb").json()["error"].endswith("model a/b"),
        "a URL comes as it was written",
    )
    count, _ = wait_for_all(address, 30)
    promise(count == REPLICAS, f"{count} of {REPLICAS} replicas answer")


def check_changes(address: str, folder: Path) -> None:
    write_config(folder, ["one", "polled"], poll=1)
    count, seconds = wait_for_all(address, 30, "polled")
    promise(
        count == REPLICAS and seconds < 5,
        f"a changed config is in force in {count} replicas, by polling, after {seconds:.1f} s",
    )
    write_config(folder, ["one", "polled"], poll=0)
    time.sleep(3)
    write_config(folder, ["one", "reloaded"], poll=0)
    time.sleep(3)
    promise(
        not any("reloaded" in look(address)[1] for _ in range(40)),
        "without polling nothing changes by itself",
    )
    begun = time.monotonic()
    status = requests.post(f"{address}/v1/config/reload").status_code
    taken = time.monotonic() - begun
    count, seconds = wait_for_all(address, 30, "reloaded")
    promise(
        status == 201 and count == REPLICAS and taken + seconds < 5,
        f"one POST /v1/config/reload reaches {count} replicas: answered {status} after "
        f"{taken:.1f} s, all seen {seconds:.1f} s later",
    )
    (folder / "config.json").write_text("{")
    promise(
        requests.post(f"{address}/v1/config/reload").status_code == 412,
        "a reload of a wrong config says so",
    )
    write_config(folder, ["one"], poll=1)
    promise(
        requests.post(f"{address}/v1/config/reload").status_code == 201,
        "and of the next right one too",
    )


def check_throughput(address: str) -> None:
    """Compare requests per second of a cheap model through Ray and from one process beside it, in
    turns: 16 connections, 3 s each.
    """
    case, wrong = Case(spell("POST", "/v1/models/one:predict", BODY.encode())), list[bytes]()

    def answered(_: Case, status: int, body: bytes, seconds: float) -> None:
        if status != 200 or body != b'{"predictions":[2.5,3.0,4.5]}':
            wrong.append(body)

    alone = Served({"model_config_list": [item("one", ROOT / "models/half_plus_two")]})
    try:
        ports = {"Ray": int(address.rpartition(":")[2]), "one process": alone.port}
        rates = dict[str, list[float]]()
        for _ in range(4):
            for name, port in ports.items():
                load, begun = Load(port, 16, lambda: case, answered), time.monotonic()
                rates.setdefault(name, []).append(load.run(seconds=3) / (time.monotonic() - begun))
                load.close()
    finally:
        alone.stop()
    # the first is a warm-up
    ratios = sorted(ray / one for ray, one in list(zip(*rates.values(), strict=True))[1:])
    print(
        "       half_plus_two: "
        f"{', '.join(f'{name} {max(found):.0f}/s' for name, found in rates.items())} at best; "
        f"Ray to one process {ratios[0]:.3f} to {ratios[-1]:.3f}"
    )
    promise(not wrong, "all answers right, through Ray and not")


def kill(cluster: Cluster, node: Any) -> float:
    """Kill a node.

    Returns the time when its last process was gone, since its replicas and its proxy live on for
    a moment.
    """
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    processes, gone = [raylet, *raylet.children(recursive=True)], []

    def watch() -> None:
        while any(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            for process in processes
        ):
            time.sleep(0.005)
        gone.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    cluster.remove_node(node, allow_graceful=False)
    watcher.join()
    return gone[0]


def check_lost_node(address: str, cluster: Cluster, node: Any) -> None:
    load = Clients(address)
    time.sleep(5)
    killed = kill(cluster, node)
    time.sleep(10)
    count, seconds = wait_for_all(address, 120)
    back = time.monotonic() - killed
    calls = load.end()
    failed = [call for call in calls if call[2] != "200"]
    print(f"       {len(calls)} calls, {Counter(call[2] for call in calls)}")
    spans = ", ".join(
        f"{call[0] - killed:.2f} to {call[1] - killed:.2f} {call[3]}" for call in failed
    )
    print(f"       those that failed, from when to when, in seconds after the node's end: {spans}")
    promise(
        all(call[2] in ("503 Retry-After", "connection ended") for call in failed),
        "what failed may be sent again: 503, or no answer",
    )
    predicts = [call for call in failed if call[3] != "/slow"]
    promise(
        all(call[0] <= killed for call in predicts),
        f"{len(predicts)} predicts failed, all of them on their way when the node ended",
    )
    others = [call for call in failed if call[3] == "/slow"]
    few = all(call[0] <= killed + 2 for call in others) and len(others) <= len(load.threads)
    late = sum(call[0] > killed for call in others)
    promise(
        few,
        f"{len(others)} calls of a handler failed, {late} of them begun when the node had ended "
        "and Ray did not know",
    )
    promise(
        count == REPLICAS,
        f"{count} replicas answer again, {back:.0f} s after a node with its replicas was lost",
    )


def main() -> int:
    folder = Path(tempfile.mkdtemp())
    shutil.copytree(ROOT / "models/half_plus_two", folder / "half_plus_two")
    (folder / "slow.py").write_text(SLOW)
    write_config(folder, ["one"], poll=1)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    small = {"object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        nodes = [
            cluster.add_node(num_cpus=REPLICAS, object_store_memory=100 << 20) for _ in range(2)
        ]
        ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
        serve.start(http_options={"port": port})
        begun = time.monotonic()
        serve.run(
            ray_serve.app({"config": str(folder / "config.json"), "num_replicas": str(REPLICAS)})
        )
        print(
            f"       {REPLICAS} replicas on two of three nodes are up after "
            f"{time.monotonic() - begun:.0f} s",
            flush=True,
        )
        wait_for_proxy(address)
        check_answers(address)
        check_throughput(address)
        check_changes(address, folder)
        check_lost_node(address, cluster, nodes[1])
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
