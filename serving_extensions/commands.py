"""What the command line does besides serving: --init and --export, which return the exit status,
and the start-up lines.
"""

import os
import shlex
from pathlib import Path
from typing import Any

from .active_learning import export_group
from .core import (
    ConfigError,
    Extension,
    ModelServer,
    ServingError,
    curl_key,
    encode_json,
    list_samples,
    sample_inputs,
    url_of,
    view_infer,
    view_predict_image,
)
from .openapi import NUMERIC, example_request
from .scaffold import HUB_PROJECT, PROJECT, write_project


def init(source: Any, folder: str) -> int:
    """Write a project of a handler, and print what to do next."""
    return write_into(folder, PROJECT)


def init_hub(source: Any, folder: str) -> int:
    """Write a project in the layout of CellStrat's Hub API."""
    return write_into(folder, HUB_PROJECT)


def write_into(folder: str, templates: Path) -> int:
    files = write_project(Path(folder), templates)
    print(
        f"Wrote {len(files)} files into {folder}. Next: cd {shlex.quote(folder)} && "
        "python -m serving --config config.json\n"
        "(where the server is not installed, python path/to/serving.py --config config.json)"
    )
    return 0


def export(source: Any, group_and_folder: list[str]) -> int:
    """Write an active learning group as a COCO data set."""
    group, folder = group_and_folder
    server = ModelServer(source)
    ready = [
        r
        for r in server.prepared.deployments.values()
        if r.config.active_learning and r.config.active_learning.group == group
    ]
    if not ready:
        raise ConfigError("$.deployments", f"no deployment has an active learning group '{group}'")
    inboxes = server.prepared.of["active_learning"]
    folders = {inboxes[r.config.id].folder.resolve() for r in ready}
    if len(folders) > 1:
        names = ", ".join(r.config.id for r in ready)
        text = f"{names} keep group '{group}' in different folders: give the groups other names"
        raise ConfigError("$.deployments", text)
    count = export_group(
        folders.pop(),
        Path(folder),
        {number: name for r in ready for number, name in r.labels.items()},
    )
    print(
        f"Pictures of group {group} in {folder}/images: {count}; their annotations are in "
        f"{folder}/annotations.json"
    )
    return 0


MOST_CHARACTERS = 200  # of a body on a command line


def example_command(servable: Any) -> str | None:
    """A curl command, without its URL, for the default signature: with JSON, or
    with raw zeros if the JSON is long and there is one input.
    """
    call, signature = (
        kind.get("serving_default") for kind in (servable.callables, servable.signatures)
    )
    if call is None or not call.tried:  # it may refuse made-up input
        return None
    example, lone = example_request(signature), len(signature.inputs) == 1
    if example is not None and (
        len(body := encode_json(example).decode()) <= MOST_CHARACTERS or not lone
    ):
        return f"curl -d {shlex.quote(body)}"
    if not lone or any(spec.dtype not in NUMERIC for spec in signature.inputs.values()):
        return None
    (zeros,) = sample_inputs(signature, 1)
    shape = ",".join(map(str, zeros.shape))
    return (
        f"head -c {zeros.nbytes} /dev/zero | curl --data-binary @- -H 'X-Tensor-Dtype: "
        f"{zeros.dtype.name}' -H 'X-Tensor-Shape: {shape}'"
    )


def report(server: ModelServer, address: str) -> None:
    """Print a working curl for a model, and one for a picture."""
    curl, key = None, curl_key(server, server.config.auth.protect == "all")
    for model, states in server.manager.states().items():
        for _, state in sorted(states.items(), reverse=True):
            servable = state.servable  # the loader may take it away meanwhile
            if servable and (command := example_command(servable)):
                command = (
                    f"{command}{key} {address}{url_of(view_infer, model=model, verb='predict')}"
                )
                curl = min(curl or command, command, key=lambda text: text.index(" http"))
    if curl:
        print(f"Try:    {curl}", flush=True)
    defaults = server.config.default_deployment
    deployments = sorted(server.config.deployments, key=lambda one: one.id not in defaults)
    for deployment in [one for one in deployments if takes_pictures(server, one)][:1]:
        sample, *_ = [*list_samples(server, deployment), "picture.jpg"]
        picture = min(os.path.relpath(sample), os.path.abspath(sample), key=len)
        data = f"--data-binary {shlex.quote('@' + picture)}"
        url = address + url_of(view_predict_image, deployment=deployment.id)
        print(f"        curl{curl_key(server)} {data} {url}", flush=True)


def takes_pictures(server: ModelServer, deployment: Any) -> bool:
    """Whether a deployment's model takes pictures, as far as is known yet."""
    if deployment.model not in server.manager.available:
        return True  # it loads on demand, or has failed
    which = deployment.model, deployment.version, deployment.version_label
    try:
        _, servable = server.manager.find(*which)
        server.prepared.deployments[deployment.id].model_of(servable)
    except (ServingError, ValueError):  # no such version; or it takes none
        return False
    return True


EXTENSION = Extension(
    "commands", report=report, commands={"init": init, "init-hub": init_hub, "export": export}
)
