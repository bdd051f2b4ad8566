"""Load over many connections from one thread: closed (each connection asks again once it is
answered) or open (at a fixed rate, whatever the server does).

Requests are bytes made beforehand and answers are handed over whole, so that the client costs
little of the machine it shares. Under an open load a request's latency counts from when it was
due, so that a server does not look faster by making clients wait.
"""

import collections
import contextlib
import hashlib
import json
import select
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
KEY = "key-of-the-benchmark"
AUTH = {"keys": [{"name": "benchmark", "sha256": hashlib.sha256(KEY.encode()).hexdigest()}]}


def spell(method, path, body=b"", **headers):
    """A request as bytes, for a connection that stays open."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {text}" for name, text in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Case:
    """A request, and whether its client leaves without waiting for the answer."""

    request: bytes
    leaves: bool = False


class Connection:
    """One connection with at most one request under way."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.unsent, self.received, self.case, self.due = memoryview(b""), bytearray(), None, 0.0

    def send(self, case, due):
        """Begin a request: the bytes of `case.request`, which the load has chosen."""
        self.unsent, self.received = memoryview(case.request), bytearray()
        self.case, self.due = case, due
        self.push()

    def push(self):
        with contextlib.suppress(BlockingIOError):
            while self.unsent:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]

    def pull(self):
        """Status and body once the answer is whole, else None.

        Raises ConnectionError if the connection ends before.
        """
        with contextlib.suppress(BlockingIOError):
            data = self.socket.recv(1 << 18)
            if not data:
                raise ConnectionError("closed by the server")
            self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self.received[:end]).lower()
        start = head.find(b"\r\ncontent-length: ")
        size = int(head[start + 18 :].partition(b"\r\n")[0]) if start >= 0 else 0
        if len(self.received) < end + 4 + size:
            return None
        return int(head[9:12]), bytes(self.received[end + 4 :])


class Load:
    """`choose()` gives the next case; `answered(case, status, body, seconds)` takes its answer.

    A case with `leaves` closes its connection without waiting; status 0 means that the connection
    ended.
    """

    def __init__(self, port, connections, choose, answered):
        self.port, self.choose, self.answered = port, choose, answered
        self.poll, self.open = select.epoll(), {}
        self.idle = collections.deque()
        for _ in range(connections):
            self.connect()

    def connect(self):
        connection = Connection(self.port)
        self.open[connection.socket.fileno()] = connection
        self.poll.register(connection.socket, select.EPOLLIN)
        self.idle.append(connection)

    def drop(self, connection):
        del self.open[connection.socket.fileno()]
        self.poll.unregister(connection.socket)
        connection.socket.close()
        self.connect()

    def begin(self, due):
        connection = self.idle.popleft()
        case = self.choose()
        try:
            connection.send(case, due)
        except OSError:  # the server has closed a connection that was idle
            self.drop(connection)
            return
        if case.leaves:
            self.answered(case, None, b"", 0.0)
            self.drop(connection)
        elif connection.unsent:
            self.poll.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def handle(self, connection, event):
        try:
            if event & select.EPOLLOUT:
                connection.push()
                if not connection.unsent:
                    self.poll.modify(connection.socket, select.EPOLLIN)
            answer = connection.pull() if event & ~select.EPOLLOUT else None
        except OSError as error:
            if connection.case:
                self.answered(
                    connection.case, 0, str(error).encode(), time.perf_counter() - connection.due
                )
            else:
                self.idle.remove(connection)
            self.drop(connection)
            return
        if answer:
            case, connection.case = connection.case, None
            self.idle.append(connection)
            self.answered(case, *answer, time.perf_counter() - connection.due)

    def run(self, seconds=None, count=None, rate=None):
        """Load for `seconds` or `count` requests, and wait for the last answers.

        Open with a `rate`, else closed. Returns how many requests began.
        """
        start, begun = time.perf_counter(), 0
        end = start + (seconds or 1e9)
        count = count or 1 << 62
        while (
            (now := time.perf_counter()) < end and begun < count or len(self.idle) < len(self.open)
        ):
            if now < end:
                due = min(count, int((now - start) * rate)) if rate else count
                while begun < due and self.idle:
                    self.begin(start + begun / rate if rate else time.perf_counter())
                    begun += 1
            elif now > end + 60:
                raise TimeoutError(
                    f"{len(self.open) - len(self.idle)} requests have no answer after a minute"
                )
            wait = (
                max(0.0, min(0.05, start + (begun + 1) / rate - now))
                if rate and self.idle and now < end
                else 0.05
            )
            for number, event in self.poll.poll(wait):
                if number in self.open:
                    self.handle(self.open[number], event)
        return begun

    def close(self):
        for connection in self.open.values():
            connection.socket.close()
        self.poll.close()


# ==================================================================================================
# The server
# ==================================================================================================


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def item(name, base_path):
    """The entry of a model in a config."""
    return {"config": {"name": name, "base_path": str(base_path)}}


class Served:
    """`python serving.py` with a config, in a process of its own; the log goes to a file.

    `config` is the path of a file, or what is written into one.
    """

    def __init__(self, config):
        self.folder, self.port = tempfile.TemporaryDirectory(), free_port()
        self.path, self.log = Path(self.folder.name, "config.json"), Path(self.folder.name, "log")
        if isinstance(config, Path):
            self.path = config
        else:
            self.path.write_text(json.dumps(config))
        with open(self.log, "w") as log:
            command = [sys.executable, ROOT / "serving.py", "--config", self.path]
            command += ["--port", str(self.port)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        self.wait()

    def wait(self):
        for _ in range(1200):
            with contextlib.suppress(OSError):
                return self.get("/readyz")
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(self.log.read_text()[-2000:])

    def get(self, path):
        return urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60).read()

    def reload(self):
        """Have it read its config and the versions anew; returns the status."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/config/reload", b"")
        return urllib.request.urlopen(request, timeout=60).status

    def memory(self):
        """MB of its own (USS): shared memory would change with other processes."""
        return psutil.Process(self.process.pid).memory_full_info().uss / 1e6

    def stop(self):
        self.process.terminate()
        status = self.process.wait(60)
        self.folder.cleanup()
        return status


def percentile(values, share):
    """The value below which a share of the values lies; NaN if there are none."""
    return (
        sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")
    )
