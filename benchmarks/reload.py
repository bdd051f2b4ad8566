"""How long requests wait while a server takes over new versions: the longest answer of one model
around each reload of another.

    python benchmarks/reload.py [folder of a SavedModel] [reloads]

The model in the folder (models/shapes/1) changes: it is copied as one version after the other. One
client asks half_plus_two every 2 ms. Prints milliseconds; the first line is the client's longest
wait in the same time without a reload.
"""

import http.client
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from load import ROOT, Served, item

BODY = b'{"instances": [1.0, 2.0, 5.0]}'


class Client(threading.Thread):
    """Asks again and again; `longest` is the longest answer since it was last set to 0."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.longest, self.wrong, self.done = port, 0.0, 0, False

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        while not self.done:
            start = time.perf_counter()
            connection.request("POST", "/v1/models/asked:predict", BODY)
            response = connection.getresponse()
            self.wrong += json.loads(response.read()) != {"predictions": [2.5, 3.0, 4.5]}
            self.longest = max(self.longest, 1e3 * (time.perf_counter() - start))
            time.sleep(0.002)


def start_server(folder):
    models = [item("asked", ROOT / "models/half_plus_two"), item("changing", folder / "changing")]
    polling = {"file_system_poll_wait_seconds": 0}
    return Served({"model_config_list": models, "server": polling})


def put(model, folder, version):
    # copied aside, then renamed: a version appears whole
    part = folder / "changing" / f".{version}"
    shutil.copytree(model, part)
    part.rename(folder / "changing" / str(version))


def measure(server, client, model, folder, reloads):
    waits, took = [], []
    for version in range(2, 2 + reloads):
        put(model, folder, version)
        start, client.longest = time.perf_counter(), 0.0
        status = server.reload()
        took.append(time.perf_counter() - start)
        time.sleep(0.2)
        waits.append(client.longest)
        print(
            f"reload {version - 1}: {status}, {1e3 * took[-1]:.0f} ms, longest answer "
            f"{waits[-1]:.1f} ms",
            flush=True,
        )
    return waits, took


def main():
    model = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "models/shapes/1")
    reloads = int(sys.argv[2]) if len(sys.argv) > 2 else 10
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put(model, folder, 1)
        server = start_server(folder)
        try:
            client = Client(server.port)
            client.start()
            time.sleep(1)
            client.longest = 0.0
            time.sleep(2)
            print(f"without a reload: longest answer {client.longest:.1f} ms", flush=True)
            waits, took = measure(server, client, model, folder, reloads)
            client.done = True
            client.join()
            print(
                f"median: a reload takes {1e3 * statistics.median(took):.0f} ms, the longest "
                "answer meanwhile "
                f"{statistics.median(waits):.1f} ms ({min(waits):.1f} to {max(waits):.1f}); "
                f"{client.wrong} wrong answers"
            )
        finally:
            server.stop()


if __name__ == "__main__":
    main()
