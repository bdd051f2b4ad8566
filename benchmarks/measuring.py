"""What counting, Server-Timing and the log cost the fastest route, half_plus_two.

    python benchmarks/measuring.py [seconds a measurement]

All ways are measured in turns, a twentieth of a second each, which is shorter than most
disturbances by other processes: in process, through the WSGI application, by CPU time; and with
wrk, over one connection by the clock, as a client sees it, and over 50 by CPU time. Prints medians,
and the median over the turns of the share that each way costs, with its standard error.
"""

import contextlib
import functools
import io
import logging
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from load import ROOT, free_port, item

sys.path.insert(0, str(ROOT))

import serving  # noqa: E402

BODY = b'{"instances": [1.0, 2.0, 5.0]}'
ANSWER = b'{"predictions":[2.5,3.0,4.5]}'
PATH = "/v1/models/half_plus_two:predict"
SLICE = 0.05  # seconds


def start(server):
    """Serve in a thread; returns the port."""
    port = free_port()
    threading.Thread(target=serving.run, args=(server,), kwargs={"port": port}, daemon=True).start()
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close() or port
        except OSError:
            time.sleep(0.05)


def rate_in_process(door, seconds=SLICE):
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


@contextlib.contextmanager
def loaded(port, connections, seconds):
    """wrk asks all the time. Gives the answers so far, as a function."""
    answered = []
    answer = serving.OpenDoor.answer
    serving.OpenDoor.answer = lambda *given, **named: (
        answered.append(None) or answer(*given, **named)
    )
    url = f"http://127.0.0.1:{port}{PATH}"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(f"wrk.method = 'POST'\nwrk.body = '{BODY.decode()}'\n")
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds + 3}", "-s", script.name, url]
        told = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            time.sleep(1)
            yield lambda: len(answered)
        finally:
            assert "Non-2xx" not in told.communicate()[0]
            serving.OpenDoor.answer = answer


def rate_of(answered, clock):
    """Answers per second of a clock, over a slice of time."""
    count, begun = answered(), clock()
    time.sleep(SLICE)
    return (answered() - count) / (clock() - begun)


def undressed(server, call, replied):
    """What `serving.dress` does for a short answer, without the phases of the time."""
    call.trace.answered = time.perf_counter()
    headers = [header for more in server.dressers for header in more(server, call, replied)]
    return replied.with_headers(*headers, ("X-Request-Id", call.request_id))


def measure(name, rate, server, seconds):
    """The rates of all ways, measured in turns of a slice each."""
    dressed, begins, observers = serving.dress, server.begins, server.observers
    ways = {  # what wraps a request, what dresses its reply, the lowest level that is logged
        "all": (begins, observers, dressed, logging.INFO),
        "counted and timed": (begins, observers, dressed, logging.WARNING),
        "counted": (begins, observers, undressed, logging.WARNING),
        "timed": ([], [], dressed, logging.WARNING),
        "bare": ([], [], undressed, logging.WARNING),
    }
    found = {way: [] for way in ways}
    for number in range(round(seconds / SLICE / len(ways))):
        order = list(ways) if number % 2 else list(ways)[::-1]
        for way in order:
            server.begins, server.observers, serving.dress, level = ways[way]
            serving.logger.setLevel(level)
            found[way].append(rate())
    server.begins, server.observers, serving.dress = begins, observers, dressed
    print(f"{name}, {len(found['bare'])} slices each", flush=True)
    for way, rates in found.items():
        shares = [1 - own / bare for own, bare in zip(rates, found["bare"])]
        share, error = 100 * statistics.median(shares), 125 * statistics.stdev(shares)
        error /= len(shares) ** 0.5  # of a median
        rate = statistics.median(rates)
        print(f"  {way:18} {rate:7.0f}/s, costs {share:5.1f} % (+- {error:.1f})", flush=True)


def main(seconds=60):
    logging.basicConfig(stream=open("/dev/null", "w"), level=logging.INFO)  # noqa: SIM115
    model = item("half_plus_two", ROOT / "models/half_plus_two")
    server = serving.ModelServer({"model_config_list": [model]})
    server.wait()
    door = serving.create_app(server).wsgi_app
    rate_in_process(door, 0.5)
    measure("in process", lambda: rate_in_process(door), server, seconds)
    port = start(server)
    for connections, clock in ((1, time.perf_counter), (50, time.process_time)):
        with loaded(port, connections, seconds) as answered:
            rate = functools.partial(rate_of, answered, clock)
            name = f"wrk, {connections} connections, by {clock.__name__}"
            measure(name, rate, server, seconds)


if __name__ == "__main__":
    main(*(int(a) for a in sys.argv[1:2]))
