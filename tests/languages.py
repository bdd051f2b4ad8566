"""What the tests of client programs share: which languages are here, how programs run, and the servers they call."""

import contextlib
import functools
import hashlib
import http.client
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import NO_POLL, ROOT, listening, web_server

import serving

NODE_MODULES = ROOT / ".node/node_modules"  # where .ci/run puts axios, TypeScript and others
PICTURE = ROOT / "models/shapes/samples/0.jpg"
CHECKS = {
    "curl": "curl --version",
    "python": "python -c 'import requests'",
    "fetch": "node --eval fetch",
    "axios": f"node --eval fetch && test -d '{NODE_MODULES}/axios'",
    "typescript": f"test -d '{NODE_MODULES}/typescript' && test -d '{NODE_MODULES}/@types/node'",
    "java": "javac --version",
    "go": "go version",
    "r": "Rscript -e 'library(httr)'",
    "ruby": "ruby --version",
    "c": "echo '#include <curl/curl.h>' | cc -E -",
    "csharp": "mcs --version && mono --version",
    "php": "php --version",
    "openapi-python-client": "python -c 'import openapi_python_client, httpx'",
    "openapi-typescript": f"test -d '{NODE_MODULES}/openapi-typescript' "
    f"&& test -d '{NODE_MODULES}/openapi-fetch' && test -d '{NODE_MODULES}/@types/node'",
}


def environment():
    """This process's environment without proxies, with its own interpreter as `python`."""
    kept = {
        name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
    }
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


@functools.cache
def is_here(language):
    return (
        subprocess.run(
            CHECKS[language], shell=True, env=environment(), capture_output=True
        ).returncode
        == 0
    )


def need(language):
    """Skip the test where a language is not installed; in CI, which installs them all, fail it."""
    if not is_here(language):
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"not installed, this fails: {CHECKS[language]}"
        )


def run(command, folder):
    """Run a shell command in a folder that sees the Node modules; returns the finished process."""
    if NODE_MODULES.is_dir() and not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(NODE_MODULES)
    return subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )


@contextlib.contextmanager
def answering(handle):
    """A small HTTP server on 127.0.0.1: `handle(request, body)` returns the bytes of a 200, or a status and bytes; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = handle(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            status, answer = answer if isinstance(answer, tuple) else (200, answer)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    with web_server(Handler) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serving_shapes(folder, *deployments):
    """The demo's shapes under some deployments' ids, over a real socket, for the key `secret`; gives the address."""
    (folder / "config.json").write_text(
        json.dumps(
            {
                "model_config_list": [
                    {"config": {"name": "shapes", "base_path": str(ROOT / "models/shapes")}}
                ],
                "deployments": [
                    {
                        "id": name,
                        "model": "shapes",
                        "label_map": str(ROOT / "models/shapes/label_map.pbtxt"),
                    }
                    for name in deployments
                ],
                "auth": {
                    "keys": [{"name": "site", "sha256": hashlib.sha256(b"secret").hexdigest()}]
                },
                "server": {**NO_POLL, "images": {"allowed_hosts": ["127.0.0.1"]}},
            }
        )
    )
    server = serving.ModelServer(folder / "config.json")
    assert server.wait(120) and not server.readiness()
    with listening(server) as address:
        yield address


def predict(address, deployment, key="secret"):
    """What the server answers when the picture itself is posted to it: status, and the JSON read."""
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.request(
        "POST", f"/{deployment}/predict", PICTURE.read_bytes(), {"Authorization": f"Bearer {key}"}
    )
    response = connection.getresponse()
    return response.status, json.loads(response.read())
