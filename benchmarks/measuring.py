"""What counting and logging cost the fastest route: half_plus_two over HTTP with and without them,
in turns.

    python benchmarks/measuring.py [seconds a round] [rounds]

Prints requests a second of each, medians over the rounds, and the share that measuring costs.
"""

import http.client
import logging
import socket
import statistics
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import serving  # noqa: E402

BODY = b'{"instances": [1.0, 2.0, 5.0]}'


def start(server):
    """Serve in a thread; returns the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threading.Thread(target=serving.run, args=(server,), kwargs={"port": port}, daemon=True).start()
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close() or port
        except OSError:
            time.sleep(0.05)


def rate(port, seconds):
    """Requests a second over one connection."""
    connection, count, end = (
        http.client.HTTPConnection("127.0.0.1", port),
        0,
        time.perf_counter() + seconds,
    )
    while time.perf_counter() < end:
        connection.request("POST", "/v1/models/half_plus_two:predict", BODY)
        assert connection.getresponse().read() == b'{"predictions":[2.5,3.0,4.5]}'
        count += 1
    return count / seconds


def main(seconds=1.0, rounds=15):
    logging.basicConfig(stream=open("/dev/null", "w"), level=logging.INFO)  # noqa: SIM115
    model = {"name": "half_plus_two", "base_path": str(ROOT / "models/half_plus_two")}
    server = serving.ModelServer({"model_config_list": [{"config": model}]})
    server.wait()
    port, metrics = start(server), server.state["metrics"]
    rate(port, seconds)
    found = {"measured": [], "counted alone": [], "bare": []}
    ways = (
        ("measured", metrics, logging.INFO),
        ("counted alone", metrics, logging.WARNING),
        ("bare", None, logging.WARNING),
    )
    for number in range(rounds):
        for name, counted, level in ways:
            server.state["metrics"] = counted
            serving.logger.setLevel(level)
            found[name].append(rate(port, seconds))
        print(
            f"round {number + 1} of {rounds}: "
            + ", ".join(f"{name} {rates[-1]:.0f}/s" for name, rates in found.items()),
            flush=True,
        )
    for name, rates in found.items():
        shares = [1 - own / bare for own, bare in zip(rates, found["bare"])]
        print(
            f"{name}: {statistics.median(rates):.0f} requests/s, costs "
            f"{100 * statistics.median(shares):.1f} %"
        )


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:2]), *(int(a) for a in sys.argv[2:3]))
