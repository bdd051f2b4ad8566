"""serving and seven other ways to serve a TensorFlow model over HTTP, under the same load on the
same machine.

    python benchmarks/compare.py [--rounds 5] [--seconds 3] [--workloads half_plus_two ...]
        [--peers fastapi ...] [--doors granian ...]

Needs wrk (Debian has it). Makes the models and an environment for each peer at the first run (a few
GB in benchmarks/made/). In each round each peer is started in turn and takes turns with serving,
load by load, so that changes of the machine's speed affect both; every answer is compared. Prints
rows for docs/speed.md at the end: requests per second, medians over the rounds, and the ratio of
serving to the best peer of each round; memory after the load (PSS of all processes); seconds from
process start to the first right answer. `--doors` also runs serving behind granian or gunicorn, as
deploy/ starts them, in turns with serving behind waitress, and adds the ratio of the two.
`in-process` is the model alone, called by 2 threads of one process, also in turns with serving.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import workloads
from load import AUTH, KEY, ROOT, free_port, item
from peers.catalogue import DOORS, PEERS, body_of_instances
from peers.environment import python_of

CONNECTIONS = {
    "half_plus_two": (1, 8, 50),
    "mlp784": (1, 16),
    "mobilenet_v2": (1, 4),
    "ssd320": (1, 50),
}
OURS, ALONE = "serving", "in-process"
START_SECONDS = 120


@dataclass
class Found:
    """Measurements of one server with one workload, a figure for each round."""

    rates: dict[int, list[float]] = field(default_factory=dict)  # by connections; requests/s
    # by connections; p50 and p99, ms
    latency: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    memory: list[float] = field(default_factory=list)  # MB
    ready: list[float] = field(default_factory=list)  # seconds
    errors: int = 0
    failed: list[str] = field(default_factory=list)  # why it is missing from a round
    # by connections: round, its rate, serving's
    duels: dict[int, list[tuple[int, float, float]]] = field(default_factory=dict)


class NoAnswer(Exception):
    """A server that does not start, or whose answers differ from those of serving."""


# ==================================================================================================
# Servers
# ==================================================================================================


# Python keeps compiled modules: all servers start as they do the second time.
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class Server:
    """A server process and its children, asked at `path` with `body`."""

    folder = ROOT / "benchmarks"  # that it is started in

    def __init__(self, name, workload, log):
        self.name, self.workload = name, workload
        self.port, self.log = free_port(), log
        self.headers = {"Content-Type": "application/json"}
        self.start_time = time.perf_counter()
        command = self.command()
        self.process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self.folder, env=ENVIRON, start_new_session=True
        )

    def command(self):
        peer = PEERS[self.name]
        self.path, self.body = peer.path(self.workload), peer.body(self.workload)
        return [python_of(self.name), f"peers/{self.name}.py", self.workload, str(self.port)]

    def read(self, answer):
        return PEERS[self.name].read(self.workload, answer)

    def wait(self):
        """Ask until there is an answer.

        Returns it and the seconds since the process was started.
        """
        while True:
            try:
                answer = self.ask()
                return answer, time.perf_counter() - self.start_time
            except OSError as error:
                late = time.perf_counter() - self.start_time > START_SECONDS
                if late or self.process.poll() is not None:
                    said = Path(self.log.name).read_text()[-2000:]
                    raise NoAnswer(
                        f"{self.name} with {self.workload} does not answer: {error}\n{said}"
                    ) from None
                time.sleep(0.02)

    def ask(self):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{self.path}", self.body, self.headers
        )
        return self.read(urllib.request.urlopen(request, timeout=60).read())

    def sum_over_processes(self, read):
        process, total = psutil.Process(self.process.pid), 0
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += read(member)
        return total

    def memory(self):
        """MB of all its processes, counting shared pages once."""
        return self.sum_over_processes(lambda process: process.memory_full_info().pss) / 1e6

    def cpu_seconds(self):
        return self.sum_over_processes(lambda process: sum(process.cpu_times()[:2]))

    def stop(self):
        group = self.process.pid
        for number, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end and any(
                os.getpgid(p.pid) == group for p in psutil.process_iter() if is_alive(p)
            ):
                self.process.poll()
                time.sleep(0.05)


def is_alive(process):
    with contextlib.suppress(psutil.Error, ProcessLookupError):
        os.getpgid(process.pid)
        return process.status() != psutil.STATUS_ZOMBIE
    return False


class Serving(Server):
    folder = ROOT

    def command(self):
        command = [sys.executable, "-m", "serving", "--config", self.write_config()]
        return [*command, "--port", str(self.port)]

    def write_config(self):
        self.path = f"/v1/models/{self.workload}:predict"
        self.body = body_of_instances(self.workload)
        model = item(self.workload, workloads.base_path(self.workload))
        config = {"model_config_list": [model]}
        if self.workload == "ssd320":
            self.path = "/ssd/predict"
            self.headers["Authorization"] = f"Bearer {KEY}"
            config |= {"deployments": [{"id": "ssd", "model": "ssd320"}], "auth": AUTH}
        path = Path(self.log.name).with_name(f"{self.name}-{self.workload}.json")
        path.write_text(json.dumps(config))
        return path

    def read(self, answer):
        predictions = json.loads(answer)["predictions"]
        if self.workload != "ssd320":
            return np.array(predictions, np.float32)
        corners = [(find["bound"][0], find["bound"][2]) for find in predictions]
        return np.array(
            [
                (find["confidence"], find["tag"]["id"], y0, x0, y1, x1)
                for find, ((x0, y0), (x1, y1)) in zip(predictions, corners)
            ],
            np.float32,
        )


class BehindDoor(Serving):
    """serving behind granian or gunicorn, as deploy/ starts it."""

    STARTS = {
        "granian": (str(ROOT / "deploy/start_granian.py"),),
        "gunicorn": ("-m", "gunicorn", "-c", str(ROOT / "deploy/gunicorn.conf.py")),
    }

    def command(self):
        config = f"SERVING_CONFIG={self.write_config()}"
        bind = f"SERVING_BIND=127.0.0.1:{self.port}"
        return ["env", config, bind, str(python_of(self.name)), *self.STARTS[self.name]]


def agrees(ours, theirs):
    """Whether numbers are equal up to rounding; detections of equal score in any order."""
    if ours.shape != theirs.shape:
        return False
    if ours.ndim == 2 and ours.shape[1] == 6:
        ours, theirs = np.sort(ours, axis=0), np.sort(theirs, axis=0)
    return np.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


# ==================================================================================================
# Load
# ==================================================================================================

SCRIPT = """
local file = io.open("%s", "rb")
wrk.method, wrk.path, wrk.body = "POST", "%s", file:read("*a")
%s
function done(summary, latency)
  local e = summary.errors
  io.write(string.format("RESULT %%f %%d %%f %%f\\n", summary.requests / summary.duration * 1e6,
    e.status + e.connect + e.read + e.write + e.timeout, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3))
end
"""


def load(server, connections, seconds, folder):
    """Requests per second, errors, p50 and p99 in ms."""
    body, script = folder / f"{server.name}.body", folder / f"{server.name}.lua"
    body.write_bytes(server.body)
    headers = "\n".join(
        f'wrk.headers["{name}"] = "{value}"' for name, value in server.headers.items()
    )
    script.write_text(SCRIPT % (body, server.path, headers))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", script]
    command.append(f"http://127.0.0.1:{server.port}")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rate, errors, p50, p99 = done.stdout.rsplit("RESULT", 1)[1].split()
    return float(rate), int(errors), float(p50), float(p99)


def rest(servers):
    """Wait, for 10 s at most, until the servers are idle:
    some still work on requests of their last run, which would slow the next run.
    """
    for _ in range(20):
        before = sum(server.cpu_seconds() for server in servers)
        time.sleep(0.5)
        if sum(server.cpu_seconds() for server in servers) - before < 0.05:
            return


def measure(found, server, connections, seconds, folder):
    # With many clients a slow model takes seconds to answer: a run must hold many answers.
    long = connections > 8 and server.workload == "ssd320"
    rate, errors, p50, p99 = load(server, connections, 3 * seconds if long else seconds, folder)
    result = found[server.name]
    result.rates.setdefault(connections, []).append(rate)
    result.latency.setdefault(connections, []).append((p50, p99))
    result.errors += errors
    return rate


def run_alone(ours, round_, seconds, folder, found):
    """Calls per second of the model alone, by 2 threads of one process,
    three times in turns with serving at its most connections.
    """
    connections = max(CONNECTIONS[ours.workload])
    command = [sys.executable, "benchmarks/parts.py", "--rate", ours.workload]
    command += ["--seconds", str(seconds)]
    with (
        open(folder / f"{ALONE}.log", "w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        ) as alone,
    ):

        def measure_alone():
            with contextlib.suppress(BrokenPipeError):
                print(file=alone.stdin, flush=True)
            if not (line := alone.stdout.readline()):
                raise NoAnswer(
                    f"{ours.workload} {ALONE} does not "
                    f"answer:\n{Path(log.name).read_text()[-2000:]}"
                )
            return float(line)

        measure_alone()  # warm
        for _ in range(3):
            beside, rate = measure(found, ours, connections, seconds, folder), measure_alone()
            found[ALONE].rates.setdefault(connections, []).append(rate)
            found[ALONE].duels.setdefault(connections, []).append((round_, rate, beside))
        alone.stdin.close()


@contextlib.contextmanager
def noted(result):
    """Note a server that does not answer, and go on with the others."""
    try:
        yield
    except NoAnswer as error:
        result.failed.append(str(error))
        print(error, flush=True)


def run_round(workload, peers, round_, seconds, folder, found, say):
    """One round of a workload: serving, started once, in turns with each peer, started for it."""
    with open(folder / f"{OURS}.log", "w") as log:
        ours = Serving(OURS, workload, log)
        try:
            reference, ready = ours.wait()
            found[OURS].ready.append(ready)
            for number, name in enumerate(peers, 1):
                say(f"{name} ({number} of {len(peers)})")
                with noted(found[name]):
                    run_pair(ours, name, reference, round_, seconds, folder, found)
            if workload in ("mobilenet_v2", "ssd320"):
                with noted(found[ALONE]):
                    run_alone(ours, round_, seconds, folder, found)
        finally:
            ours.stop()


def run_pair(ours, name, reference, round_, seconds, folder, found):
    with open(folder / f"{name}.log", "w") as log:
        peer = (BehindDoor if name in DOORS else Server)(name, ours.workload, log)
        try:
            answer, ready = peer.wait()
            if not agrees(reference, answer):
                raise NoAnswer(f"{name} answers {ours.workload} otherwise than serving")
            found[name].ready.append(ready)
            for connections in CONNECTIONS[ours.workload]:
                for server in (peer, ours):
                    load(server, connections, 1, folder)  # warm, both
                rates = []
                for server in (peer, ours):
                    rest((peer, ours))
                    rates.append(measure(found, server, connections, seconds, folder))
                found[name].duels.setdefault(connections, []).append((round_, *rates))
            for server in (peer, ours):
                # while both run: they share TensorFlow's code, and PSS counts each one's share
                found[server.name].memory.append(server.memory())
        finally:
            peer.stop()


# ==================================================================================================
# Tables
# ==================================================================================================


def middle(values):
    return statistics.median(values) if values else float("nan")


def ratios(found, peers, connections):
    """The ratio of serving to the best peer of each round, from serving's run beside that peer."""
    best = {}
    for name in peers:
        for round_, theirs, beside in found[name].duels.get(connections, ()):
            best[round_] = max(best.get(round_, (0.0, 0.0)), (theirs, beside))
    return [beside / theirs for theirs, beside in best.values()]


def print_tables(all_found, peers, doors):
    """Markdown: a table of rates for each workload."""
    for workload, found in all_found.items():
        counts = CONNECTIONS[workload]
        heads = [f"{count} connection{'s' * (count > 1)}" for count in counts]
        print(
            f"\n| {workload} | {' | '.join(heads)} | memory, MB | first answer, s "
            f"|\n|---|{'---|' * (len(counts) + 2)}"
        )
        for name in (OURS, *doors, *peers):
            result = found[name]
            cells = [
                cell(result.rates.get(count, []), result.latency.get(count, [])) for count in counts
            ]
            print(
                f"| {name} | {' | '.join(cells)} | {middle(result.memory):.0f} | "
                f"{middle(result.ready):.1f} |"
            )
        print_ratios("serving / best", [ratios(found, peers, count) for count in counts])
        for name in doors:
            duels = [found[name].duels.get(count, ()) for count in counts]
            print_ratios(
                f"{name} / serving",
                [[rate / beside for _, rate, beside in pairs] for pairs in duels],
            )
        if found[ALONE].rates:
            ((count, rates),) = found[ALONE].rates.items()
            shares = [100 * beside / rate for _, rate, beside in found[ALONE].duels[count]]
            share = f"serving {middle(shares):.0f} %, {min(shares):.0f} to {max(shares):.0f}"
            print(f"| in-process, 2 threads | | {middle(rates):.0f}/s ({share}) | | |")
        print(f"\nerrors: {sum(result.errors for result in found.values())}")
        for name, result in found.items():
            if result.failed:
                print(f"{name} is missing from {len(result.failed)} rounds")


def print_ratios(name, against):
    """A row: the median, the least and the most of each list of ratios."""
    cells = [f"**{middle(r):.2f}** ({min(r):.2f} to {max(r):.2f})" if r else "" for r in against]
    print(f"| {name} | {' | '.join(cells)} | | |")


def cell(rates, latency):
    if not rates:
        return ""
    p50, p99 = (middle([pair[place] for pair in latency]) for place in (0, 1))
    return f"{middle(rates):.{0 if middle(rates) >= 100 else 1}f}/s ({p50:.3g} / {p99:.3g} ms)"


def check_overload(seconds, folder):
    """500 connections at the slowest workload: which answers come,
    and whether memory grows meanwhile.
    """
    with open(folder / f"{OURS}.log", "w") as log:
        server = Serving(OURS, "ssd320", log)
        try:
            server.wait()
            load(server, 50, seconds, folder)
            before, seen = server.memory(), []
            for _ in range(4):
                rate, errors, p50, p99 = load(server, 500, 2 * seconds + 10, folder)
                seen.append(f"{rate:.0f}/s, {errors} errors, {server.memory():.0f} MB")
            print(f"\n500 connections: before {before:.0f} MB; then {'; '.join(seen)}")
        finally:
            server.stop()


@contextlib.contextmanager
def neighbours(count):
    """Processes that each use a whole core while the `with` lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each run of wrk")
    parser.add_argument(
        "--workloads", nargs="+", choices=workloads.WORKLOADS, default=workloads.WORKLOADS
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--doors", nargs="*", choices=DOORS, default=[], help="serving behind these as well"
    )
    parser.add_argument(
        "--busy",
        type=int,
        default=0,
        help="processes that do nothing but compute, beside all of it",
    )
    options = parser.parse_args()
    workloads.make_all()
    others = [*options.doors, *options.peers]
    for name in others:
        print(f"environment of {name}", flush=True)
        python_of(name)
    all_found = {
        workload: {name: Found() for name in (OURS, ALONE, *others)}
        for workload in options.workloads
    }
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, neighbours(options.busy):
        for round_ in range(1, options.rounds + 1):
            for workload, found in all_found.items():

                def say(what, round_=round_, workload=workload):
                    print(
                        f"{(time.monotonic() - start) / 60:5.1f} min, round {round_} of "
                        f"{options.rounds}: {workload}, {what}",
                        flush=True,
                    )

                run_round(workload, others, round_, options.seconds, Path(folder), found, say)
            print_tables(all_found, options.peers, options.doors)
        if "ssd320" in options.workloads:
            check_overload(options.seconds, Path(folder))


if __name__ == "__main__":
    main()
