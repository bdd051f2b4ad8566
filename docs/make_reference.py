"""Print docs/reference.md, every option and routine, made from the dataclasses that read them.

python docs/make_reference.py > docs/reference.md
"""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import routines  # noqa: E402
import serving  # noqa: E402

INTRODUCTION = """# Reference

Every option of `config.json`, the arguments of the routines and the options of the command line,
made from their declarations by `python docs/make_reference.py`. What they are for, with examples:
[config.md](config.md), [pictures.md](pictures.md), [command-line.md](command-line.md), which has
the environment variables as well.
"""
NAMES = {str: "text", int: "integer", float: "number", bool: "true or false", typing.Any: "any"}


def type_of(kind):
    """The kind of JSON value that an option takes."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in NAMES:
        return NAMES[kind]
    if dataclasses.is_dataclass(kind):
        if not dataclasses.fields(kind):
            return "`{}`"
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    if origin is tuple:
        return f"list of {type_of(arguments[0])}"
    if origin is dict:
        return f"object of {type_of(arguments[1])}"
    if origin in (typing.Union, types.UnionType):
        kinds = [one for one in arguments if one is not type(None)]
        kinds = [one for one in kinds if not (one is int and float in kinds)]
        return ", ".join(dict.fromkeys(type_of(one) for one in kinds))
    raise TypeError(f"no word for {kind}")


def default_of(field):
    """The default as JSON; empty if there is none."""
    if field.default_factory is not dataclasses.MISSING:
        return "`{}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if field.default is None:
        return ""
    if dataclasses.is_dataclass(field.default):
        if field.default == type(field.default)():
            return "its own defaults"
        return f"`{json.dumps(given(field.default))}`"
    return f"`{json.dumps(field.default)}`"


def given(value):
    """A dataclass as JSON, without None values."""
    pairs = dataclasses.asdict(value).items()
    return {name: one for name, one in pairs if one is not None}


def limits_of(metadata):
    low, high = metadata.get("minimum"), metadata.get("maximum")
    if low is not None and high is not None:
        return f"{low:,} to {high:,}"
    return f"from {low:,}" if low is not None else f"up to {high:,}" if high is not None else ""


def row(*cells):
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def table(kind):
    """The rows of a dataclass: option, type, default, limits, meaning."""
    yield row("option", "type", "default", "limits", "means")
    yield "|---|---|---|---|---|"
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield row(
            f"`{field.name}`",
            type_of(hints[field.name]),
            default_of(field),
            limits_of(field.metadata),
            field.metadata["doc"],
        )


def command_row(names, told):
    """The row of an option of the command line: its names with what follows them, its meaning."""
    value = told.get("metavar", "")
    if "choices" in told:
        value = "|".join(told["choices"])
    if names == ("path",):
        names, value = (value,), ""
    value = " ".join(value) if isinstance(value, tuple) else value
    defaults = {"--host": serving.HOST, "--port": str(serving.PORT)}
    default = defaults.get(names[0], f"http://{serving.HOST}:{serving.PORT}")
    means = told.get("help", "print the version, then exit").replace("%(default)s", default)
    return row(", ".join(f"`{f'{name} {value}'.strip()}`" for name in names), means)


def kinds_below(kind, found):
    """The dataclasses that a config is made of, each once, the outer before the inner."""
    if dataclasses.is_dataclass(kind):
        if kind in found:
            return
        found.append(kind)
        for hint in typing.get_type_hints(kind).values():
            kinds_below(hint, found)
    for argument in typing.get_args(kind):
        kinds_below(argument, found)


def reference():
    """The page as text."""
    found = []
    kinds_below(serving.Config, found)
    lines = [INTRODUCTION]
    for kind in found:
        if dataclasses.fields(kind):
            lines += [f"## {kind.__name__}", "", *table(kind), ""]
    lines += ["## Routines", ""]
    for name, kind in routines.ROUTINES.items():
        if kind.__module__ == "routines":
            lines += [f"### {name}", "", *table(kind), ""] if dataclasses.fields(kind) else []
    lines += ["## Command line", "", row("option", "means"), "|---|---|"]
    lines += [command_row(*declared) for declared in serving.OPTIONS]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(reference(), end="")
