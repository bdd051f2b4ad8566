"""`--deploy DIR --to URL`: send a model, or a handler project, to a running server."""

import io
import json
import os
import sys
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from .admin_uploads import EXTENSION as ADMIN_UPLOADS
from .admin_uploads import view_project, view_upload
from .core import Extension, paths_below, url_of
from .manifest import is_version

DONE, UNREACHED, WRONG, REFUSED = 0, 1, 2, 3  # exit statuses
ANSWER_SECONDS = 1800  # a server loads a model before it answers
LEFT_OUT = {"__pycache__", "node_modules", "venv"}


def pack_folder(folder: Path) -> bytes:
    """Pack a folder's files as a .tar.gz, without dotfiles and what can be made anew.

    Links are sent as the files they point to.
    """
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for path in sorted(map(Path, paths_below(folder))):
            name = path.relative_to(folder)
            if not os.path.isfile(path) or any(
                p in LEFT_OUT or p.startswith(".") for p in name.parts
            ):
                continue
            entry = tarfile.TarInfo(name.as_posix())
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return packed.getvalue()


def choose(folder: Path) -> tuple[str, str, Path]:
    """Return the HTTP method, the URL's path and the folder to send: a version of a model (the
    highest of several), else a project. Raises ValueError.
    """
    name = folder.resolve().name
    if is_version(folder):
        owner = folder.resolve().parent.name if name.isdigit() else name
        return "POST", url_of(view_upload, ADMIN_UPLOADS.routes, model=owner), folder
    numbers = [path for path in folder.glob("*") if path.name.isdigit() and is_version(path)]
    if numbers:
        version = max(numbers, key=lambda path: int(path.name))
        url = url_of(view_upload, ADMIN_UPLOADS.routes, model=name, version=str(int(version.name)))
        return "PUT", url, version
    if (folder / "config.json").is_file():
        return "PUT", url_of(view_project, ADMIN_UPLOADS.routes, project=name), folder
    raise ValueError(
        "expected a SavedModel, a folder of version folders, or a project with a config.json"
    )


def send_to(method: str, url: str, body: bytes, key: str) -> tuple[int, Any]:
    """Return the answer's status and body. Raises OSError if there is no answer."""
    headers = {"x-api-key": key, "Content-Type": "application/gzip"}
    request = urllib.request.Request(url, body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            return answer.status, read_answer(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, read_answer(error)


def read_answer(answer: Any) -> Any:
    text = answer.read()
    try:
        return json.loads(text)
    except ValueError:  # a proxy's page
        return {"error": text[:500].decode("utf-8", "replace")}


def deploy(source: Any, folder_and_address: tuple[str, str]) -> int:
    """Send a model or a project to a running server, by the key in SERVING_KEY.

    Returns 0 when it is served, 1 where the server cannot be reached or has failed, 2 for a wrong
    folder or no key, 3 for what the server refuses.
    """
    folder, address = Path(folder_and_address[0]), folder_and_address[1].rstrip("/")
    key = os.environ.get("SERVING_KEY", "")
    try:
        if not key:
            raise ValueError("SERVING_KEY is not set: set it to the key of an admin")
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"--to: expected http://... or https://..., got '{address}'")
        method, path, sent = choose(folder)
        body = pack_folder(sent)
    except (OSError, ValueError) as error:
        print(f"serving: {folder}: {error}", file=sys.stderr)
        return WRONG
    print(f"Sending {len(body)} bytes of {sent} to {address}{path}", flush=True)
    try:
        status, answer = send_to(method, address + path, body, key)
    except OSError as error:
        print(f"serving: {address}: {getattr(error, 'reason', error)}", file=sys.stderr)
        return UNREACHED
    if status < 300:
        print(tell(answer))
        return DONE
    told = answer.get("error") if isinstance(answer, dict) else answer
    print(f"serving: {address}: {status}: {told}", file=sys.stderr)
    return UNREACHED if status >= 500 else REFUSED


def tell(answer: dict[str, Any]) -> str:
    """Say what the server accepted."""
    if "model" in answer:
        signatures = ", ".join(answer.get("signatures", ()))
        told = "; ".join(filter(None, (signatures, answer.get("digest"), answer.get("note"))))
        return f"{answer['model']} version {answer['version']}: {told}"
    return f"{answer.get('project')}: {', '.join(answer.get('handlers', ()))}"


EXTENSION = Extension("deploying", commands={"deploy": deploy})
