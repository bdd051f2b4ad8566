"""Print the JSON Schema of config.json, made from the dataclasses that read it.

python deploy/config_schema.py > config.schema.json
"""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import serving  # noqa: E402


def schema_of(kind=serving.Config, metadata=types.MappingProxyType({})):
    """The JSON Schema (draft 2020-12) of a declared type; of the whole config by default."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return {}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [schema_of(k, metadata) for k in arguments if k is not type(None)]}
    schema = {"type": serving.JSON_TYPES[serving.json_type_of(kind)]}
    if dataclasses.is_dataclass(kind):
        fields = dataclasses.fields(kind)
        schema["properties"] = {
            f.name: schema_of(f.type, f.metadata) | {"description": f.metadata["doc"]}
            for f in fields
        }
        schema["required"] = [f.name for f in fields if f.default is f.default_factory]
        schema["additionalProperties"] = False
    elif origin is tuple:
        schema["items"] = schema_of(arguments[0], metadata)
    elif origin is dict:
        schema["additionalProperties"] = schema_of(arguments[1], metadata)
    elif kind in (int, float):
        schema |= {
            limit: metadata[limit]
            for limit in ("minimum", "maximum")
            if metadata.get(limit) is not None
        }
    elif metadata.get("pattern") and kind is str:
        schema["pattern"] = metadata["pattern"]
    if kind is serving.VersionPolicy:
        schema |= {"minProperties": 1, "maxProperties": 1}
    return schema


def config_schema():
    schema = schema_of()
    schema["properties"]["$schema"] = {"type": "string"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "config.json of serving",
        **schema,
    }


if __name__ == "__main__":
    print(json.dumps(config_schema(), indent=1))
