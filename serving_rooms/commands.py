"""What the command line does besides serving: --new-key, --init, --export, --check (each returns the exit status), the start-up lines."""

import json
import os
import secrets
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serving import (
    ConfigError,
    ModelServer,
    choose_versions,
    encode_json,
    is_typical,
    list_versions,
    parse,
    sample_inputs,
)
from serving_rooms.check import check
from serving_rooms.inbox import export_group
from serving_rooms.keys import digest
from serving_rooms.openapi import example_request
from serving_rooms.scaffold import write_project
from serving_rooms.settings import Auth


def new_key(source: Any, name: str) -> int:
    """Print a key, and what a config says of it; raises ConfigError for a name that a config refuses."""
    key = secrets.token_urlsafe(24)
    entry = {"name": name, "sha256": digest(key)}
    parse(Auth, {"keys": [entry]}, "$.auth")
    print(
        f'Key, shown this once: {key}\nFor the config, in "auth": {{"keys": [...]}}:\n{json.dumps(entry)}'
    )
    return 0


def init(source: Any, folder: str) -> int:
    """Write a project of a handler, and print what to do next."""
    files = write_project(Path(folder))
    print(
        f"Wrote {len(files)} files into {folder}. Next: cd {shlex.quote(folder)} && "
        "python -m serving --config config.json\n"
        "(where the server is not installed, python path/to/serving.py --config config.json)"
    )
    return 0


def export(source: Any, group_and_folder: list[str]) -> int:
    """Write an active learning group as a COCO data set."""
    group, folder = group_and_folder
    ready = [
        r
        for r in ModelServer(source).prepared.deployments.values()
        if r.inbox and r.config.active_learning.group == group
    ]
    if not ready:
        raise ConfigError("$.deployments", f"no deployment has an active learning group '{group}'")
    count = export_group(
        ready[0].inbox.folder,
        Path(folder),
        {number: name for r in ready for number, name in r.labels.items()},
    )
    print(
        f"{count} pictures of group {group} are in {folder}/images, what was seen in them in {folder}/annotations.json"
    )
    return 0


def check_config(source: Any, _: bool) -> int:
    """Print what a config would serve and what is wrong with it."""
    server = ModelServer(source)
    lines, problems = check(
        server.config, server.prepared, server.folder, list_versions, choose_versions
    )
    print("\n".join([*lines, *(f"wrong: {problem}" for problem in problems)]))
    return 2 if problems else 0


COMMANDS: dict[str, Callable[[Any, Any], int]] = {
    "new_key": new_key,
    "init": init,
    "export": export,
    "check": check_config,
}


MOST_CHARACTERS = 200  # of a body on a command line


def example_command(servable: Any) -> str | None:
    """A command, but for its URL, that asks the default signature: JSON, or raw zeros where that is long and of one input."""
    call, signature = (
        kind.get("serving_default") for kind in (servable.callables, servable.signatures)
    )
    if call is None or not call.tried or not is_typical(signature):  # made-up input may not suit it
        return None
    example, lone = example_request(signature), len(signature.inputs) == 1
    if example is not None and (
        len(body := encode_json(example).decode()) <= MOST_CHARACTERS or not lone
    ):
        return f"curl -d {shlex.quote(body)}"
    if not lone or any(spec.dtype == "DT_STRING" for spec in signature.inputs.values()):
        return None
    (zeros,) = sample_inputs(signature, 1)
    shape = ",".join(map(str, zeros.shape))
    return (
        f"head -c {zeros.nbytes} /dev/zero | curl --data-binary @- -H 'X-Tensor-Dtype: {zeros.dtype.name}' "
        f"-H 'X-Tensor-Shape: {shape}'"
    )


def report(server: ModelServer, address: str, stop: threading.Event) -> None:
    """Print, once the first load is over, each model with its versions and devices, the URLs, and a working curl."""
    server.wait()
    if stop.is_set():
        return
    curl = None
    for model, states in server.manager.states().items():
        for version, state in sorted(states.items(), reverse=True):
            device = (
                f" on {state.servable.device}" if state.servable and state.servable.device else ""
            )
            print(
                f"  {model} version {version}: {state.state}{device}{' ' + state.error if state.error else ''}"
            )
            if state.servable and (command := example_command(state.servable)):
                command = f"{command} {address}/v1/models/{quote(model, safe='')}:predict"
                curl = min(curl or command, command, key=lambda text: text.index(" http"))
    for name in server.readiness():
        print(f"  {name}: not available, the log says why")
    print(f"Console: {address}/console")
    print(
        f"Status: {address}/v1/models   Reload: curl -X POST {address}/v1/config/reload   Ready: {address}/readyz"
    )
    if curl:
        print(f"Try:    {curl}", flush=True)
    for path, endpoint in server.prepared.endpoints.items():
        print(f"  {path}: {'ready' if endpoint.handler.ready else endpoint.handler.error}")
    for path in list(server.prepared.endpoints)[:1]:
        print(
            f"        curl -H 'x-api-key: {server.generated_key or 'KEY'}' -d '\"hello\"' {address}{path}",
            flush=True,
        )
    for deployment in (
        d for d in server.config.deployments if d.id in server.config.default_deployment
    ):
        samples = sorted(
            Path(
                next((m.base_path for m in server.config.models if m.name == deployment.model), ".")
            ).glob("samples/*")
        )
        picture = os.path.relpath(samples[0]) if samples else "picture.jpg"
        print(
            f"        curl -H 'Authorization: Bearer {server.generated_key or 'KEY'}' --data-binary {shlex.quote('@' + picture)} "
            f"{address}/{quote(deployment.id, safe='')}/predict",
            flush=True,
        )
