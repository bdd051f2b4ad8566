"""What counting, Server-Timing and the log cost the fastest route, half_plus_two.

    python benchmarks/measuring.py [seconds a round] [rounds]

Each round measures all ways in turns: in process, through the WSGI application, by CPU time, which
other processes change least; and over HTTP with wrk, over one connection by the clock, as a client
sees it, and over 50 by CPU time. Without wrk, a client in this process is used. Prints medians, and
the median over the rounds of the share that each way costs.
"""

import functools
import io
import logging
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from http.client import HTTPConnection

from load import ROOT, free_port, item

sys.path.insert(0, str(ROOT))

import serving  # noqa: E402

BODY = b'{"instances": [1.0, 2.0, 5.0]}'
ANSWER = b'{"predictions":[2.5,3.0,4.5]}'
PATH = "/v1/models/half_plus_two:predict"
LUA = f"""wrk.method = "POST"
wrk.body = '{BODY.decode()}'
"""


def start(server):
    """Serve in a thread; returns the port."""
    port = free_port()
    threading.Thread(target=serving.run, args=(server,), kwargs={"port": port}, daemon=True).start()
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close() or port
        except OSError:
            time.sleep(0.05)


def rate_in_process(door, seconds):
    """Requests per second of this thread's CPU time."""
    count, begun, now = 0, time.thread_time(), 0.0
    while now - begun < seconds:
        for _ in range(100):
            environ = {
                "REQUEST_METHOD": "POST",
                "PATH_INFO": PATH,
                "QUERY_STRING": "",
                "CONTENT_LENGTH": str(len(BODY)),
                "wsgi.input": io.BytesIO(BODY),
            }
            assert door(environ, lambda status, headers: None) == [ANSWER]
        count, now = count + 100, time.thread_time()
    return count / (now - begun)


def rate_of_wrk(port, seconds, script, connections, clock):
    """Requests per second of a clock, over connections of wrk."""
    url = f"http://127.0.0.1:{port}{PATH}"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "-s", script, url]
    begun = clock()
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in told, told
    return int(re.search(r"(\d+) requests in", told)[1]) / (clock() - begun)


def rate_of_client(port, seconds):
    """Requests per second over one connection, by a client in this process."""
    connection, count, end = HTTPConnection("127.0.0.1", port), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        connection.request("POST", PATH, BODY)
        assert connection.getresponse().read() == ANSWER
        count += 1
    return count / seconds


def undressed(server, call, replied):
    """What `serving.dress` did before it reported the phases of the time."""
    call.trace.answered = time.perf_counter()
    return replied.with_headers(("X-Request-Id", call.request_id))


def measure(name, rate, server, rounds):
    """The rates of all ways, measured in turns."""
    dressed, begins, observers = serving.dress, server.begins, server.observers
    ways = {  # what wraps a request, what dresses its reply, the lowest level that is logged
        "all": (begins, observers, dressed, logging.INFO),
        "counted and timed": (begins, observers, dressed, logging.WARNING),
        "counted": (begins, observers, undressed, logging.WARNING),
        "timed": ([], [], dressed, logging.WARNING),
        "bare": ([], [], undressed, logging.WARNING),
    }
    found = {way: [] for way in ways}
    for number in range(rounds):
        order = list(ways) if number % 2 else list(ways)[::-1]
        for way in order:
            server.begins, server.observers, serving.dress, level = ways[way]
            serving.logger.setLevel(level)
            found[way].append(rate())
    server.begins, server.observers, serving.dress = begins, observers, dressed
    print(f"{name}, {rounds} rounds", flush=True)
    for way, rates in found.items():
        shares = [1 - own / bare for own, bare in zip(rates, found["bare"])]
        share = 100 * statistics.median(shares)
        print(f"  {way:18} {statistics.median(rates):7.0f}/s, costs {share:5.1f} %", flush=True)


def main(seconds=1.0, rounds=15):
    logging.basicConfig(stream=open("/dev/null", "w"), level=logging.INFO)  # noqa: SIM115
    model = item("half_plus_two", ROOT / "models/half_plus_two")
    server = serving.ModelServer({"model_config_list": [model]})
    server.wait()
    door = serving.create_app(server).wsgi_app
    rate_in_process(door, 0.5)
    measure("in process", lambda: rate_in_process(door, seconds / 2), server, rounds)
    port = start(server)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LUA)
        script.flush()
        if shutil.which("wrk"):
            for connections, clock in ((1, time.perf_counter), (50, time.process_time)):
                rate = functools.partial(
                    rate_of_wrk, port, seconds, script.name, connections, clock
                )
                name = f"wrk, {connections} connections, by {clock.__name__}"
                measure(name, rate, server, rounds)
        else:
            measure("HTTP", lambda: rate_of_client(port, seconds), server, rounds)


if __name__ == "__main__":
    main(*(float(a) for a in sys.argv[1:2]), *(int(a) for a in sys.argv[2:3]))
