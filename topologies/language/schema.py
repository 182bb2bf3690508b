"""The JSON Schema (draft 2020-12) of the topology language, for completion and checks in editors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from nodes.device.profiles import PROFILES
from topologies.actions import ACTIONS
from topologies.language.tables import CPU_LIST, File, keys_of, required_keys_of
from topologies.metrics import LATENCIES, LIVE, METRICS, POINTS
from topologies.resolve.patterns import DEGREE, PATTERNS
from topologies.resolve.programs import Parameter, Program, resolve_program, shipped_programs
from topologies.schedule import UNITS_NS

_NAMES: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def json_schema() -> dict[str, Any]:
    """A new dictionary on each call. The loader's cross-checks may refuse a file that the schema accepts."""
    # Through JSON, so that tuples are arrays, as when it is printed.
    schema: dict[str, Any] = json.loads(json.dumps(msgspec.json.schema(File, ref_template="#/$defs/{name}")))
    schema = _for_editors(schema)
    definitions = schema["$defs"]
    programs = [resolve_program(name) for name in shipped_programs()]
    parameters = [_of_program(program) for program in programs]
    for name in ("GroupTable", "MachineTable"):
        _machines(definitions[name], programs)
        definitions[name]["allOf"] = parameters
    _file(definitions["File"])
    _timeline(definitions["ActionTable"])
    _expectations(definitions["ExpectTable"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _file(file: dict[str, Any]) -> None:
    """The rules between the tables of a file."""
    timed = {"required": ["run"], "properties": {"run": {"anyOf": _require("duration_s", "warmup_s")}}}
    file["allOf"] = [
        {"not": {"required": ["memory", "domains"]}},
        {"if": {"required": ["phases"], "properties": {"phases": {"minItems": 1}}}, "then": {"not": timed}},
        {
            "anyOf": [
                {"required": ["defaults"], "properties": {"defaults": {"required": ["program"]}}},
                {"properties": {"machines": {"additionalProperties": {"anyOf": _require("program", "guest")}}}},
            ]
        },
    ]


def _machines(table: dict[str, Any], programs: Iterable[Program]) -> None:
    """The names of devices and programs."""
    properties = table["properties"]
    of_a_version = {"type": "string", "pattern": r"^qemu-(doorbell|plain)-[0-9]+\.[0-9]+$"}
    properties["profile"]["anyOf"] = [{"enum": list(PROFILES)}, of_a_version]
    properties["cpus"]["anyOf"][1]["pattern"] = CPU_LIST
    properties["program"].pop("default", None)
    properties["program"] |= {
        "anyOf": [
            *({"const": program.name, "description": program.summary} for program in programs),
            {"pattern": r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_]*$"},
            {"pattern": r"^/.*\.py:[A-Za-z_][A-Za-z0-9_]*$"},
        ]
    }


def _of_program(program: Program) -> dict[str, Any]:
    """The parameters beside this program's name; none is required, because `[defaults]` may have it."""
    parameters = {
        "type": "object",
        "properties": {parameter.name: _of_parameter(parameter) for parameter in program.parameters},
        "additionalProperties": False,
    }
    return {
        "if": {"properties": {"program": {"const": program.name}}, "required": ["program"]},
        "then": {"properties": {"parameters": parameters}},
    }


def _of_parameter(parameter: Parameter) -> dict[str, Any]:
    if parameter.names_peers:
        schema: dict[str, Any] = _peers()
    elif parameter.reads_trace:
        schema = {"type": "string", "description": "A CSV file beside this one: time_s,source,target,vector."}
    else:
        schema = _without_null(msgspec.json.schema(parameter.annotation))
        low, high = parameter.range or (None, None)
        if schema.get("type") in ("integer", "number"):
            limits = {"minimum": low, "maximum": high}
            schema |= {name: limit for name, limit in limits.items() if limit is not None}
    if not parameter.required and parameter.default is not None:
        schema["default"] = parameter.default
    return schema


def _peers() -> dict[str, Any]:
    """Names, or a pattern over names."""
    patterns = []
    for kind, pattern in PATTERNS.items():
        named = {**_NAMES, **({"description": pattern.meaning} if pattern else {})}
        properties = {kind: named}
        if kind == "random":
            properties[DEGREE] = {"type": "integer", "minimum": 1}
        patterns.append(
            {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
        )
    return {
        "anyOf": [*_NAMES["anyOf"], *patterns],
        "description": (
            'A group, a machine, an array of such names, "others" or "all" (itself included), "foreign"; '
            f"or a pattern: a table with one of {', '.join(PATTERNS)}."
        ),
    }


def _timeline(table: dict[str, Any]) -> None:
    """Each action takes its own keys besides those of every entry."""
    properties = table["properties"]
    for key, schema in properties.items():
        properties[key] = schema = _without_null(schema)
        if key not in ("at_s", "every_s", "repeat", "period_s"):
            schema.pop("default", None)  # the description says what an absent key means
    properties["do"] = {
        "anyOf": [{"const": do, "description": action.__doc__} for do, action in ACTIONS.items()],
        "description": "The action.",
    }
    properties["when"]["pattern"] = _condition(LIVE)
    table["anyOf"] = _require("at_s", "when")
    table["allOf"] = [
        {
            "if": {"properties": {"do": {"const": do}}, "required": ["do"]},
            "then": {"propertyNames": {"enum": keys_of(do)}, "required": required_keys_of(do)},
        }
        for do in ACTIONS
    ]


def _expectations(table: dict[str, Any]) -> None:
    plain = [
        name for row in METRICS.values() for name in (row.name, *row.aliases) if row.name.split(".")[0] not in LATENCIES
    ]
    points = "|".join(point.replace("_", "[._]") for point in POINTS)
    latency = rf"(({'|'.join(LATENCIES)})\.)?({points})_({'|'.join(UNITS_NS)})"
    table["properties"]["that"]["pattern"] = _condition(
        [*map(re.escape, plain), latency, r"statistics\.[A-Za-z_][A-Za-z0-9_]*"]
    )
    table["if"] = {"properties": {"abort": {"const": True}}, "required": ["abort"]}
    table["then"] = {"properties": {"that": {"pattern": _condition(LIVE)}}}


def _condition(metrics: Iterable[str]) -> str:
    """The regular expression of a comparison of one of these metrics, each a regular expression itself."""
    return rf"^[ \t]*({'|'.join(metrics)})[ \t]*(<=|>=|==|!=|<|>)[ \t]*[+-]?[0-9_.]+([eE][+-]?[0-9]+)?[ \t]*$"


def _require(*keys: str) -> list[dict[str, Any]]:
    return [{"required": [key]} for key in keys]


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: an optional key is absent."""
    choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
    if len(choices) == 1:
        return {**{key: value for key, value in schema.items() if key != "anyOf"}, **choices[0]}
    if None in schema.get("enum", ()):
        return {**schema, "enum": [choice for choice in schema["enum"] if choice is not None]}
    return schema


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
