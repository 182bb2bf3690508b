"""The JSON Schema (draft 2020-12) of the topology language, from which editors complete and check."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from nodes.device.profiles import PROFILES
from topologies.language import File
from topologies.programs import Parameter, Program, resolve_program, shipped_programs

__all__ = ["json_schema"]

_PEERS = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    "description": 'A group, a machine, an array of such names, "others" or "all" (itself included).',
}


def json_schema() -> dict[str, Any]:
    """A new dictionary on each call; what it accepts may still be refused by the loader's cross-checks."""
    schema: dict[str, Any] = _for_editors(msgspec.json.schema(File, ref_template="#/$defs/{name}"))
    group = schema["$defs"]["GroupTable"]
    programs = [resolve_program(name) for name in shipped_programs()]
    group["properties"]["profile"]["enum"] = list(PROFILES)
    group["properties"]["program"] |= {
        "anyOf": [
            *({"const": program.name, "description": program.summary} for program in programs),
            {"pattern": r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"},
        ]
    }
    group["allOf"] = [_of_program(program) for program in programs]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _of_program(program: Program) -> dict[str, Any]:
    """When a group runs this program, its parameters are those of the program."""
    required = [parameter.name for parameter in program.parameters if parameter.required]
    parameters = {
        "type": "object",
        "properties": {parameter.name: _of_parameter(parameter) for parameter in program.parameters},
        "required": required,
        "additionalProperties": False,
    }
    return {
        "if": {"properties": {"program": {"const": program.name}}, "required": ["program"]},
        "then": {
            "properties": {"parameters": parameters},
            "required": ["parameters"] if required else [],
        },
    }


def _of_parameter(parameter: Parameter) -> dict[str, Any]:
    if parameter.names_peers:
        schema: dict[str, Any] = dict(_PEERS)
    else:
        schema = _without_null(msgspec.json.schema(parameter.annotation))
        low, high = parameter.range or (None, None)
        if low is not None:
            schema["minimum"] = low
        if high is not None:
            schema["maximum"] = high
    if not parameter.required and parameter.default is not None:
        schema["default"] = parameter.default
    return schema


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an optional parameter is one that is not there."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    return dict(choices[0]) if len(choices) == 1 else schema


def _for_editors(node: Any) -> Any:
    r"""Regular expressions in ECMA's spelling, which has no ``\Z``."""
    if isinstance(node, dict):
        return {
            key: re.sub(r"\\Z\Z", "$", value) if key == "pattern" and isinstance(value, str) else _for_editors(value)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_for_editors(item) for item in node]
    return node
