"""REST routes that change the config, for keys marked `admin`: the file, deployments, keys, models.
Off unless the config has the section `admin`.

Each change makes a whole new config: it is checked, written to the file, and in force before the
answer is sent. docs/admin.md has the URLs.
"""

import copy
import functools
import logging
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any

from .config_file import ConfigFile, compare_json, etag_of, hide, restore, spell_config, unwritable
from .core import (
    BadRequest,
    Call,
    Config,
    ConfigError,
    Extension,
    ModelServer,
    NotFound,
    Outcome,
    Reply,
    Route,
    ServingError,
    digest,
    hide_paths,
    is_asked,
    json_kind,
    load_config,
    plan_changes,
    read_body,
    read_config,
    reply,
    route,
)
from .quotas import describe_usage
from .statistics import describe_statistics

logger = logging.getLogger("serving")

Edit = Callable[[dict[str, Any]], None]  # changes a config's JSON object in place


class Management:
    """State of a server: its config file, and since when (monotonic) each deployment exists."""

    def __init__(self, server: ModelServer):
        self.file, self.since = ConfigFile(lambda: server.manager.path), dict[str, float]()


def management_of(server: ModelServer) -> Management:
    return server.state["admin"]


def administered(view: Callable[..., Reply]) -> Callable[..., Reply]:
    """Wrap a view so that only keys marked admin may call it, and only if `admin` is configured."""

    @functools.wraps(view)
    def checked(server: ModelServer, call: Call, **arguments: Any) -> Reply:
        if server.config.admin is None:
            raise NotFound('Managing is off: the config has no section "admin": {}')
        if call.caller.key is None or not call.caller.key.admin:
            raise ServingError(
                f"The key '{call.caller.name}' is not marked admin", "PERMISSION_DENIED"
            )
        try:
            return view(server, call, **arguments)
        # 400, as for any wrong body: 412, as of a reload, says here that If-Match does not match
        except ConfigError as error:
            raise BadRequest("; ".join(one.message for one in error.all())) from None

    return checked


def admin_route(methods: str, url: str, view: Callable[..., Reply], doc: str) -> Route:
    return route(methods, url, view, "admin", doc)


# --- one change -----------------------------------------------------------------------------------


def edit_config(
    server: ModelServer, call: Call, edit: Edit, told: Mapping[str, Any] | None = None
) -> Reply:
    """Apply `edit` to the current config file; members of `told` are added to the answer."""

    def change(text: bytes) -> bytes:
        if problem := find_problem(server, text):
            raise ServingError(
                f"The config file has errors already, correct them first: {problem}",
                status=HTTPStatus.CONFLICT,
            )
        old = read_config(text)
        new = copy.deepcopy(old)
        edit(new)
        return text if new == old else spell_config(new)

    return change_config(server, call, change, told)


def find_problem(server: ModelServer, text: bytes) -> str:
    """Why a text is not a valid config, or ""."""
    try:
        load_config(management_of(server).file.path, text, type(server.config))
    except ConfigError as error:
        return error.message
    return ""


def change_config(
    server: ModelServer,
    call: Call,
    change: Callable[[bytes], bytes],
    told: Mapping[str, Any] | None = None,
    undone: bool = False,
) -> Reply:
    """Replace the config file's bytes by the result of `change`, and bring it into force.

    With `?dry_run=1`, only answers what would change. 201 for a change, 200 if there is none.
    Raises ServingError: 400 for a wrong config, 409 if the file cannot be written, 412 if the file
    is not in the state that `If-Match` names.
    """
    file, dry_run = management_of(server).file, is_asked(call, "dry_run")
    if not dry_run and (problem := file.problem()):
        raise unwritable(problem)
    with file.held() as old:
        check_match(call, old)
        new = change(old)
        plan = plan_change(server, new)
        answer = {"changes": compare_json(read_leniently(old), read_config(new)), **(told or {})}
        if dry_run:
            answer |= {"dry_run": True, "plan": plan}
        elif new != old:
            file.write(old, new, undone)
            places = ", ".join(one["path"] for one in answer["changes"])
            logger.info("The key '%s' has changed the config: %s", call.caller.name, places)
    if dry_run or new == old:
        return reply(answer).with_headers(("ETag", etag_of(old)))
    return take_over(server, call, answer).with_headers(("ETag", etag_of(new)))


def check_match(call: Call, text: bytes) -> None:
    """Raise ServingError 412 if `If-Match` does not name the current state of the file."""
    wanted = call.header("If-Match")
    # a site that compresses gives each coding a tag of its own (RFC 9110, 8.8.3.3): "...:zstd"
    tags = {re.sub(r'[:-](gzip|br|zstd|deflate)"$', '"', tag.strip()) for tag in wanted.split(",")}
    if wanted and "*" not in tags and etag_of(text) not in tags:
        raise ServingError(
            "The config file has been changed since it was read: read it again",
            status=HTTPStatus.PRECONDITION_FAILED,
            headers={"ETag": etag_of(text)},
        )


def plan_change(server: ModelServer, text: bytes) -> dict[str, Any]:
    """What a new config would change.

    Raises ConfigError, and BadRequest for problems that the config in force does not have already.
    """
    wanted = server.read_aside(text)
    plan = plan_changes(server.manager, wanted.config, True)
    plan["problems"] = problems_of(wanted, plan)
    if plan["problems"]:  # those of the config in force are looked for only where they are needed
        now = problems_of(server, plan_changes(server.manager, server.config, False))
        if problems := without_known(plan["problems"], now):
            raise BadRequest("; ".join(problems))
    refuse_lockout(wanted.config)
    return plan


def problems_of(server: ModelServer, plan: Mapping[str, Any]) -> list[str]:
    """What is wrong with a config, as `--check` tells it; but models' files are not read, for which
    each change of a key would wait.
    """
    problems = [*plan["problems"]]
    problems += filter(None, (ready.problem for ready in server.prepared.deployments.values()))
    for extension in server.extensions:
        if extension.sections:
            problems += extension.check(server)[1]
    return list(dict.fromkeys(map(hide_paths, problems)))


def without_known(problems: Iterable[str], known: Iterable[str]) -> list[str]:
    """The problems that are not among the known ones. List indices do not count, since they change
    when earlier entries do; but two problems are more than one.
    """
    index = re.compile(r"\[[0-9]+\]")
    old = Counter(index.sub("[]", problem) for problem in known)
    fresh = []
    for problem in problems:
        old.subtract([text := index.sub("[]", problem)])
        if old[text] < 0:
            fresh.append(problem)
    return fresh


def refuse_lockout(config: Config) -> None:
    """Raise BadRequest for a config after which nobody could take the change back over REST."""
    if config.admin is None:
        raise BadRequest("$.admin: without it nobody could undo this over REST: edit the file")
    for key in config.auth.keys:
        if key.admin and not key.disabled and not key.has_expired:
            return
    raise BadRequest(
        "$.auth.keys: no key that is marked admin would be left to undo this: edit the file"
    )


def read_leniently(text: bytes) -> Any:
    """A config file's JSON; None if it is invalid, since this request may be the repair."""
    try:
        return read_config(text)
    except ConfigError:
        return None


def take_over(server: ModelServer, call: Call, answer: dict[str, Any]) -> Reply:
    """Bring a written config into force: 201, or 500 if that causes problems that were not there
    before.
    """
    known = server.manager.problems
    try:
        _, body = server.reload(call.trace.remaining())
    except ServingError as error:  # it takes longer than the request has, or the server stops
        return reply(answer | {"error": error.message, "written": True}, int(error.status))
    answer["written"] = True
    details = body.get("details") if isinstance(body.get("error"), str) else []
    fresh = without_known(details or (), known)
    if not fresh:
        return reply(answer | {"problems": list(details or ())}, HTTPStatus.CREATED)
    text = "The config is in force, but it has problems: " + "; ".join(fresh)
    return reply(answer | {"error": text, "details": fresh}, HTTPStatus.INTERNAL_SERVER_ERROR)


# --- the file -------------------------------------------------------------------------------------


@administered
def view_config_file(server: ModelServer, call: Call) -> Reply:
    """The config file as it is now, secrets hidden."""
    text = management_of(server).file.read()
    return reply(hide(read_config(text))).with_headers(("ETag", etag_of(text)))


@administered
def view_put_config_file(server: ModelServer, call: Call) -> Reply:
    """Replace the config file; hidden secrets in the new text keep their old values."""
    if not call.header("If-Match") and not is_asked(call, "dry_run"):
        raise ServingError(
            "If-Match is missing: send the ETag of the config file that this replaces, or *",
            status=HTTPStatus.PRECONDITION_REQUIRED,
        )
    body = read_body(server, call)
    given = read_config(body)

    def change(text: bytes) -> bytes:
        old = read_leniently(text)
        whole = restore(given, old)
        if whole == old:  # at most the formatting differs
            return text
        return body if whole == given else spell_config(whole)

    return change_config(server, call, change)


@administered
def view_config_history(server: ModelServer, call: Call) -> Reply:
    """Whether the config file can be changed, and its earlier states, the latest first."""
    file = management_of(server).file
    problem = file.problem()
    kept = [one.describe() for one in file.kept()]
    return reply({"writable": not problem, "reason": problem, "kept": kept})


@administered
def view_rollback(server: ModelServer, call: Call) -> Reply:
    """Go back to the config before the last change, or to the kept state named `to`.

    If the file was edited and is not in force, that was the last change, so the config in force is
    written back.
    """
    body = read_body(server, call)
    name = read_one_member(body, "to") if body.strip() else None
    file, found = management_of(server).file, list[Any]()

    def change(text: bytes) -> bytes:
        if name is None and text != server.manager.text:
            return server.manager.text
        found.append(file.find_kept(text, name))
        return found[0].path.read_bytes()

    replied = change_config(server, call, change, undone=name is None)
    if name is None and found and not is_asked(call, "dry_run"):
        # this state is in force again, so it is removed from the earlier states
        found[0].path.unlink(missing_ok=True)
    return replied


def read_one_member(body: bytes, name: str) -> str | None:
    """The text of a JSON object's only member; None without it. Raises BadRequest."""
    value = read_config(body)
    if not isinstance(value, dict):
        raise BadRequest(f"Expected a JSON object with {name}")
    for known, one in value.items():
        if known != name:
            raise BadRequest(f"$.{known}: unknown; expected one of: {name}")
        if not isinstance(one, str):
            raise BadRequest(f"$.{name}: expected str")
    return value.get(name)


def read_body_object(server: ModelServer, call: Call) -> dict[str, Any]:
    """A request's body, a JSON object."""
    value = read_config(read_body(server, call))
    if not isinstance(value, dict):
        raise BadRequest("Expected a JSON object")
    return value


def merge(entry: Any, patch: Any) -> Any:
    """JSON Merge Patch, RFC 7396: members of `patch` replace those of `entry`, null removes one."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(entry) if isinstance(entry, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged


# --- keys -----------------------------------------------------------------------------------------


@administered
def view_keys(server: ModelServer, call: Call) -> Reply:
    """The keys' names, options and usage this month; never the keys themselves."""
    return reply({"keys": [describe_usage(server, key) for key in server.config.auth.keys]})


@administered
def view_create_key(server: ModelServer, call: Call) -> Reply:
    """Make a key; only this answer shows it."""
    given = read_body_object(server, call)
    if "sha256" in given:
        raise BadRequest("$.sha256: leave it out: the server makes the key and its digest")
    key = secrets.token_urlsafe(24)

    def edit(config: dict[str, Any]) -> None:
        keys = config.setdefault("auth", {}).setdefault("keys", [])
        if any(one["name"] == given.get("name") for one in keys):
            raise ServingError(f"A key is called '{given['name']}' already", "ALREADY_EXISTS")
        keys.append({**given, "sha256": digest(key)})

    told = {} if is_asked(call, "dry_run") else {"key": key}
    return edit_config(server, call, edit, told)


@administered
def view_edit_key(server: ModelServer, call: Call, key: str) -> Reply:
    """Change a key: `disabled`, `expires`, `deployments`, `quota`, `admin`; null is the default."""
    given = read_body_object(server, call)
    for fixed in {"name", "sha256"} & given.keys():
        raise BadRequest(f"$.{fixed}: it cannot be changed: make another key")

    def edit(config: dict[str, Any]) -> None:
        entry = find_key(config, key)
        merged = merge(entry, given)
        entry.clear()
        entry.update(merged)

    return edit_config(server, call, edit)


@administered
def view_delete_key(server: ModelServer, call: Call, key: str) -> Reply:
    def edit(config: dict[str, Any]) -> None:
        config["auth"]["keys"].remove(find_key(config, key))

    return edit_config(server, call, edit)


def find_key(config: dict[str, Any], name: str) -> dict[str, Any]:
    for entry in config.get("auth", {}).get("keys", ()):
        if entry["name"] == name:
            return entry
    raise NotFound(f"No key is called '{name[:100]}'")


# --- models ---------------------------------------------------------------------------------------


@administered
def view_edit_model(server: ModelServer, call: Call, model: str) -> Reply:
    """Change a model's options: `pinned`, `load`, `instances`, ...; null is the default."""
    given = read_body_object(server, call)
    if "name" in given:
        raise BadRequest("$.name: it cannot be changed")

    def edit(config: dict[str, Any]) -> None:
        item = find_item(config, model)
        item["config"] = merge(item["config"], given)

    return edit_config(server, call, edit)


def find_item(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of a model in a config's list. Raises NotFound."""
    for item in config["model_config_list"]:
        if item["config"]["name"] == name:
            return item
    raise NotFound(f"No model of the config is called '{name[:100]}'")


# --- deployments ----------------------------------------------------------------------------------

# Names that Datature's page uses for settings of the model, of `active_learning`, and of `notes`.
OF_MODEL = ("instances", "resource_type", "number_of_gpus")
OF_LEARNING = {
    "upload_groups": "group",
    "evaluation_threshold": "threshold",
    "evaluation_strategy": "strategy",
}
NOTES = ("region", "gpu_type")


@administered
def view_deployment(server: ModelServer, call: Call, deployment: str) -> Reply:
    """A deployment's settings, as the config file has them."""
    text = management_of(server).file.read()
    settings = describe_settings(read_config(text), deployment)
    return reply(settings).with_headers(("ETag", etag_of(text)))


@administered
def view_put_deployment(server: ModelServer, call: Call, deployment: str) -> Reply:
    """Create a deployment or give it other settings: PUT all of them, PATCH those that change."""
    given = read_body_object(server, call)
    if given.pop("id", deployment) != deployment:
        raise BadRequest("$.id: it differs from the id in the URL")
    of_model = {name: given.pop(name) for name in OF_MODEL if name in given}
    entry = as_entry(given)
    told: dict[str, Any] = {}

    def edit(config: dict[str, Any]) -> None:
        deployments = config.setdefault("deployments", [])
        known = [one for one in deployments if one["id"] == deployment]
        if call.method == "PATCH":
            known = known or [find_entry(config, deployment)]
        merged = merge(known[0] if call.method == "PATCH" else {}, entry)
        if known:
            deployments[deployments.index(known[0])] = {"id": deployment, **merged}
        else:
            deployments.append({"id": deployment, **merged})
        if of_model:
            settings = read_devices_wanted(of_model)
            item = find_item(config, str(merged.get("model")))
            item["config"] = merge(item["config"], settings)
        told["deployment"] = describe_settings(config, deployment)

    return edit_config(server, call, edit, told)


@administered
def view_delete_deployment(server: ModelServer, call: Call, deployment: str) -> Reply:
    """Delete a deployment; to confirm, the body repeats its name: `{"name": "..."}`."""
    typed = read_one_member(read_body(server, call) or b"{}", "name")

    def edit(config: dict[str, Any]) -> None:
        entry = find_entry(config, deployment)
        if typed != entry.get("name", deployment):
            raise BadRequest("$.name: expected the name of the deployment that is to be deleted")
        config["deployments"].remove(entry)
        for key in config.get("auth", {}).get("keys", ()):
            if deployment in (key.get("deployments") or ()):
                key["deployments"].remove(deployment)

    return edit_config(server, call, edit)


def find_entry(config: dict[str, Any], deployment: str) -> dict[str, Any]:
    """A deployment's entry in a config. Raises NotFound."""
    for entry in config.get("deployments", ()):
        if entry["id"] == deployment:
            return entry
    raise NotFound(f"No deployment has the id '{deployment[:100]}'")


def as_entry(given: dict[str, Any]) -> dict[str, Any]:
    """Convert settings with the names of Datature's page to a deployment's entry in the config."""
    for name in ("active_learning", "notes"):
        if not isinstance(given.get(name) or {}, dict):
            raise BadRequest(f"$.{name}: expected object, got {json_kind(given[name])}")
    entry = {name: given[name] for name in given if name not in (*OF_LEARNING, *NOTES)}
    learning = {OF_LEARNING[name]: given[name] for name in OF_LEARNING if name in given}
    if "group" in learning:
        learning["group"] = one_group(learning["group"])
    if learning and learning.get("group", "") is None:
        entry["active_learning"] = None
    elif learning:
        entry["active_learning"] = {**(given.get("active_learning") or {}), **learning}
    if notes := {name: given[name] for name in NOTES if name in given}:
        entry["notes"] = {**(given.get("notes") or {}), **notes}
    return entry


def one_group(groups: Any) -> str | None:
    """The group of `upload_groups`: a text, or a list of one; none turns active learning off."""
    if isinstance(groups, str) and groups:
        return groups
    if not groups:
        return None
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(groups[0], str):
        raise BadRequest("$.upload_groups: expected one group: each deployment has its own")
    return groups[0]


def read_devices_wanted(given: Mapping[str, Any]) -> dict[str, Any]:
    """A model's options for `instances`, `resource_type` and `number_of_gpus`."""
    options = {"instances": given["instances"]} if "instances" in given else {}
    count = given.get("number_of_gpus")
    if "resource_type" not in given and count is None:
        return options
    kind = str(given.get("resource_type", "GPU")).upper()
    if kind not in ("GPU", "CPU", "AUTO"):
        raise BadRequest("$.resource_type: expected GPU, CPU or AUTO")
    if count is not None and (type(count) is not int or not 0 <= count <= 64):
        raise BadRequest("$.number_of_gpus: expected a number of 0 to 64")
    if (kind == "GPU") != bool(count) and count is not None:
        raise BadRequest(f"$.number_of_gpus: {count} does not go with resource_type {kind}")
    many = [f"GPU:{number}" for number in range(count or 1)]
    return {**options, "target_device": many if len(many) > 1 else kind}


def describe_settings(config: dict[str, Any], deployment: str) -> dict[str, Any]:
    """A deployment's settings with the names of Datature's page; `shared_with` lists the other
    deployments of its model.
    """
    entry = find_entry(config, deployment)
    learning, notes = entry.get("active_learning") or {}, entry.get("notes") or {}
    models = (item["config"] for item in config["model_config_list"])
    none: dict[str, Any] = {}
    model = next((one for one in models if one["name"] == entry.get("model")), none)
    targets = model.get("target_device", "AUTO")
    listed = [targets] if isinstance(targets, str) else targets
    gpus = [one for one in listed if "GPU" in one.upper()]
    return {
        **hide(entry),
        "name": entry.get("name", deployment),
        "instances": model.get("instances", 1),
        "resource_type": "GPU" if gpus else str(targets),
        "number_of_gpus": len(gpus),
        "upload_groups": [learning.get("group", "review")] if learning else [],
        "evaluation_threshold": learning.get("threshold"),
        "evaluation_strategy": learning.get("strategy", "entropy") if learning else None,
        **{name: notes.get(name) for name in NOTES},
        "shared_with": [
            one["id"]
            for one in config.get("deployments", ())
            if one.get("model") == entry.get("model") and one is not entry
        ],
    }


@administered
def view_statistics(server: ModelServer, call: Call, deployment: str) -> Reply:
    """The statistics of a deployment."""
    ready = server.prepared.deployments.get(deployment)
    if ready is None:
        raise NotFound(f"No deployment has the id '{deployment[:100]}'")
    since = management_of(server).since.get(deployment)
    return reply(describe_statistics(server, ready, since))


def refresh(server: ModelServer, outcome: Outcome, polling: bool) -> None:
    known, now = management_of(server), time.monotonic()
    known.since = {one.id: known.since.get(one.id, now) for one in server.config.deployments}


EXTENSION = Extension(
    "admin",
    sections={"admin": None},
    open=Management,
    refresh=refresh,
    routes=(
        admin_route("GET", "/v1/config/file", view_config_file, "The config file, secrets hidden"),
        admin_route("PUT", "/v1/config/file", view_put_config_file, "Replace the config file"),
        admin_route(
            "GET", "/v1/config/history", view_config_history, "Earlier states of the config file"
        ),
        admin_route("POST", "/v1/config/rollback", view_rollback, "Go back to an earlier config"),
        admin_route("GET", "/deployments/{deployment}", view_deployment, "Its settings"),
        admin_route(
            "PUT PATCH",
            "/deployments/{deployment}",
            view_put_deployment,
            "Create a deployment, or change its settings",
        ),
        admin_route(
            "DELETE", "/deployments/{deployment}", view_delete_deployment, "Delete a deployment"
        ),
        admin_route("GET", "/deployments/{deployment}/statistics", view_statistics, "Statistics"),
        admin_route("GET", "/v1/keys", view_keys, "The keys and their usage of the month"),
        admin_route("POST", "/v1/keys", view_create_key, "Create a key, which is shown only once"),
        admin_route("PATCH", "/v1/keys/{key}", view_edit_key, "Disable, enable or change a key"),
        admin_route("DELETE", "/v1/keys/{key}", view_delete_key, "Delete a key"),
        admin_route("PATCH", "/v1/models/{model}", view_edit_model, "Change a model's options"),
    ),
)
