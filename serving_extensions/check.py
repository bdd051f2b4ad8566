"""What `--check` finds: what a config would serve and what is wrong with its folders,
without loading anything.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from .core import explain_no_versions, explain_tags, find_model_file
from .handlers import HandlerError, locate
from .warmup import read_fields


def check(
    config: Any,
    prepared: Any,
    folder: Path,
    list_versions: Callable[[str], dict[int, Path]],
    choose_versions: Callable[[Any, Iterable[int]], list[int]],
    read_signatures: Callable[[Path, Sequence[str]], Mapping[str, Any]],
) -> tuple[list[str], list[str]]:
    """What a config would serve, a line each, and what is wrong with it.

    `prepared` is what was made ready of it; functions are looked for in `folder`.
    """
    lines, problems, served = check_models(config, list_versions, choose_versions)
    lines += [
        f"pipeline {pipeline.name}: {len(pipeline.nodes)} nodes"
        for pipeline in config.pipeline_config_list
    ]
    lines += [f"handler {handler.path}: {handler.function}" for handler in config.handlers]
    lines += [
        f"deployment {deployment.id}: model {deployment.model}, "
        f"{len(prepared.deployments[deployment.id].labels)} classes"
        for deployment in config.deployments
    ]
    problems += [ready.problem for ready in prepared.deployments.values() if ready.problem]
    problems += check_modules(config)
    problems += check_pipelines(config, folder)
    problems += check_handlers(config, folder)
    problems += check_deployments(config, served)
    folders = {
        model.name: list_versions(model.base_path)
        for model in config.models
        if any(deployment.model == model.name for deployment in config.deployments)
        and served.get(model.name)
    }
    return lines, problems + check_pictures(config, prepared, served, folders, read_signatures)


def check_pictures(
    config: Any,
    prepared: Any,
    served: Mapping[str, list[int]],
    folders: Mapping[str, Mapping[int, Path]],
    read_signatures: Callable[[Path, Sequence[str]], Mapping[str, Any]],
) -> list[str]:
    """Which deployments' models take no pictures, or do not tell what their outputs are.

    By their files alone: what of those cannot be read is told when they are loaded.
    """
    problems: list[str] = []
    models = {model.name: model for model in config.models}
    for ready in prepared.deployments.values():
        name, pinned = ready.config.model, ready.config.version
        if ready.problem or name not in folders:
            continue
        label = models[name].version_labels.get(ready.config.version_label)
        version = pinned if pinned is not None else label or max(served[name])
        try:
            found = read_signatures(folders[name][version], models[name].tags)
        except Exception:  # no such version, or no file of a graph: told elsewhere
            continue
        try:
            labels = ready.labels_in(folders[name][version])
            ready.build_model(found.get("serving_default"), labels)
        except ValueError as error:
            problems += filter(None, [ready.tell(error)])
    return problems


def check_models(
    config: Any,
    list_versions: Callable[[str], dict[int, Path]],
    choose_versions: Callable[[Any, Iterable[int]], list[int]],
) -> tuple[list[str], list[str], dict[str, list[int]]]:
    """A line for each model, what is wrong with its folders,
    and by name the versions to be served.
    """
    lines, problems = list[str](), list[str]()
    served: dict[str, list[int]] = {}
    names = [model.name for model in config.models]
    for index, model in enumerate(config.models):
        path = f"$.model_config_list[{index}].config"
        earlier = names.index(model.name)
        if earlier < index:
            taken = f"is already taken by $.model_config_list[{earlier}].config"
            problems.append(f"{path}.name: '{model.name}' {taken}")
        if model.problem:
            problems.append(f"{path}.{model.problem}")
            continue
        try:
            folders = list_versions(model.base_path)
        except Exception as error:  # a LoadError
            problems.append(f"{path}.base_path: {error}: {model.base_path}")
            continue
        served[model.name] = versions = choose_versions(model.model_version_policy, folders)
        numbers, devices = ", ".join(map(str, versions)) or "none", ", ".join(model.targets)
        lines.append(f"{model.name}: version {numbers} on {devices} from {model.base_path}")
        problems += check_versions(model, path, folders, versions)
    return lines, problems, served


def check_pipelines(config: Any, folder: Path) -> list[str]:
    """What pipelines name that is not there.

    Whether their parts fit is known when the models are loaded.
    """
    names = [model.name for model in config.models]
    nodes = [
        (f"$.pipeline_config_list[{index}].nodes[{number}]", node)
        for index, pipeline in enumerate(config.pipeline_config_list)
        for number, node in enumerate(pipeline.nodes)
    ]
    missing = [
        f"{path}.model_name: no model is called '{node.model_name}'"
        for path, node in nodes
        if node.model_name is not None and node.model_name not in names
    ]
    library = "custom nodes are Python functions here; write 'function': 'module:name'"
    missing += [
        f"{path}.library_name: {library}" for path, node in nodes if node.library_name is not None
    ]
    earlier: dict[str, str] = {}
    for index, pipeline in enumerate(config.pipeline_config_list):
        place = earlier.setdefault(pipeline.name, path := f"$.pipeline_config_list[{index}]")
        if pipeline.name in names:
            missing.append(f"{path}.name: Pipeline has the same name as model: '{pipeline.name}'")
        elif place != path:
            missing.append(f"{path}.name: '{pipeline.name}' is already taken by {place}")
    return missing + [
        f"{path}.function: {problem}"
        for path, node in nodes
        if node.function is not None and (problem := check_function(node.function, folder))
    ]


def check_modules(config: Any) -> list[str]:
    """Which modules of operations are not installed; nothing is imported."""
    return [
        f"$.import_modules[{index}]: {name}: no such module is installed"
        for index, name in enumerate(config.import_modules)
        if not is_installed(name)
    ]


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except ValueError:  # no name of a module
        return False


def check_handlers(config: Any, folder: Path) -> list[str]:
    """What handlers name that is not there."""
    problems: list[str] = []
    for index, handler in enumerate(config.handlers):
        if problem := check_function(handler.function, folder):
            problems.append(f"$.handlers[{index}].function: {problem}")
        if handler.model_dir is not None and not Path(handler.model_dir).is_dir():
            problems.append(f"$.handlers[{index}].model_dir: no such folder: {handler.model_dir}")
    return problems


def check_deployments(config: Any, served: Mapping[str, list[int]]) -> list[str]:
    """What deployments name that is not there.

    `served` has the versions of the models whose folders can be read.
    """
    models = {model.name: model for model in config.models}
    problems: list[str] = []
    for index, deployment in enumerate(config.deployments):
        if deployment.model not in config.served_names:
            problems.append(
                f"$.deployments[{index}].model: no model is called '{deployment.model}'"
            )
        elif deployment.model in served:
            problems += check_pin(
                deployment,
                f"$.deployments[{index}]",
                served[deployment.model],
                models[deployment.model],
            )
    return problems


def check_pin(deployment: Any, path: str, versions: list[int], model: Any) -> list[str]:
    """What is wrong with the version, or its label, that a deployment pins."""
    if deployment.version is not None and deployment.version not in versions:
        return [
            f"{path}.version: version {deployment.version} of {model.name} is not served; there "
            f"are: {versions}"
        ]
    if (
        deployment.version_label is not None
        and deployment.version_label not in model.version_labels
    ):
        return [
            f"{path}.version_label: {model.name} has no label '{deployment.version_label}'; "
            f"there are: {sorted(model.version_labels)}"
        ]
    return []


def check_function(reference: str, folder: Path) -> str | None:
    """What is wrong with where a function is to come from; nothing is imported."""
    module = reference.rpartition(":")[0]
    try:
        _, path, _ = locate(module, folder)
        found = path or importlib.util.find_spec(module.partition(".")[0])
    except (HandlerError, ValueError) as error:
        return str(error)
    return None if found else f"{module}: no such module beside the config or installed"


def check_versions(
    model: Any, path: str, folders: Mapping[int, Path], versions: list[int]
) -> list[str]:
    """What is wrong with the versions that a model's policy picks."""
    problems = (
        []
        if versions
        else [
            f"{path}: no version folder that its policy picks in {model.base_path}"
            + ("" if folders else explain_no_versions(model.base_path))
        ]
    )
    versions = [number for number in versions if find_model_file(folders[number]) is None]
    problems += [
        f"{path}: version {version} holds no saved_model.pb, or an empty one: {folders[version]}"
        for version in versions
        if not any(file.stat().st_size for file in folders[version].glob("saved_model.pb*"))
    ]
    for version in versions:
        there = read_tag_sets(folders[version] / "saved_model.pb")
        if there and set(model.tags) not in map(set, there):
            problems.append(f"{path}.tags: version {version}: {explain_tags(there, model.tags)}")
    return problems + [
        f"{path}.version_labels.{label}: version {version} is not served"
        for label, version in model.version_labels.items()
        if version not in versions
    ]


def read_tag_sets(path: Path) -> list[list[str]]:
    """The tags of each graph in a saved_model.pb; empty where that cannot be read.

    Without TensorFlow, whose import takes seconds: SavedModel.meta_graphs is field 2, there
    meta_info_def 1, there tags 4.
    """
    try:
        graphs = read_fields(path.read_bytes()).get(2, [])
        infos = [read_fields(read_fields(graph).get(1, [b""])[0]) for graph in graphs]
        return [[tag.decode() for tag in info.get(4, [])] for info in infos]
    except (OSError, ValueError, DecodeError):
        return []
