"""`ivsim validate`, `list`, `schema` and `init`; and the schema accepts what the loader accepts."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from sim.commands.topology import COMMANDS
from topologies import json_schema, load, shipped, starter_text

FOLDER = Path(load("ping_pong").source_name).parent


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(click.Group(commands=list(COMMANDS)), list(arguments))


def test_validate_says_in_one_line_what_is_asked_for() -> None:
    result = invoke("validate", "doorbell_storm", "--set", "machines.storm.count=32")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "doorbell_storm: 32 machines, 128 vectors, 128 eventfd descriptors in each of 33 processes "
        "(4224 in all), 4194304 bytes of shared_memory\n"
    )


def test_validate_for_machines() -> None:
    result = invoke("validate", "fan_in", "--json", "--set", "machines.sender.count=3", "--set", "run.duration_s=1")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["valid"] is True
    assert (told["machines"], told["vectors"], told["duration_s"]) == (4, 16, 1.0)
    assert told["groups"] == {"receiver": 1, "sender": 3}


def test_a_bad_topology_is_exit_code_2_and_its_problems_on_stderr(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("sed = 1\n[machines.a]\nprogram = 'idle'\ncount = 1000000000\n")
    result = invoke("validate", str(file))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{file}:1: sed" in result.stderr
    assert f"{file}:4: machines.a.count" in result.stderr
    assert "Traceback" not in result.stderr
    result = invoke("validate", str(file), "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 2
    assert told["valid"] is False
    assert [(problem["line"], problem["key"]) for problem in told["problems"]] == [
        (1, "sed"),
        (4, "machines.a.count"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [("no_such_topology",), ("doorbell_storm", "--set", "x"), ("doorbell_storm", "--set", "=3"), ()],
)
def test_wrong_use_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    result = invoke("validate", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_list_shows_what_ships() -> None:
    result = invoke("list")
    assert result.exit_code == 0
    assert [re.split("  +", line) for line in result.stdout.splitlines()] == [list(pair) for pair in shipped()]
    told = json.loads(invoke("list", "--json").stdout)
    assert [(item["name"], item["title"]) for item in told] == shipped()


def test_init_writes_a_file_that_validates_and_overwrites_none(tmp_path: Path) -> None:
    file = tmp_path / "first.toml"
    assert invoke("init", str(file)).exit_code == 0
    assert file.read_text() == starter_text()
    assert invoke("validate", str(file)).exit_code == 0
    file.write_text("mine")
    refused = invoke("init", str(file))
    assert (refused.exit_code, file.read_text()) == (2, "mine")
    assert "--force" in refused.stderr
    assert invoke("init", str(file), "--force").exit_code == 0
    assert file.read_text() == starter_text()
    assert invoke("init", "-").stdout == starter_text()
    assert invoke("init", str(tmp_path / "no" / "folder.toml")).exit_code == 2
    assert invoke("init", str(tmp_path)).exit_code == 2


def test_schema_is_printed_as_it_is() -> None:
    assert json.loads(invoke("schema").stdout) == json_schema()


# A validator for what the schema uses, so that no test needs a library of its own for it.

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
IGNORED = {"title", "description", "default", "examples", "$schema", "$defs", "then"}


def accepts(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    return all(_keyword(key, rule, schema, value, root) for key, rule in schema.items() if key not in IGNORED)


def _keyword(key: str, rule: Any, schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:  # noqa: PLR0911, PLR0912
    is_table, is_number = isinstance(value, dict), isinstance(value, int | float)
    match key:
        case "$ref":
            return accepts(root["$defs"][rule.rpartition("/")[2]], value, root)
        case "type":
            return isinstance(value, TYPES[rule]) and (rule == "boolean" or not isinstance(value, bool))
        case "enum":
            return value in rule
        case "const":
            return bool(value == rule)
        case "minimum":
            return not is_number or value >= rule
        case "exclusiveMinimum":
            return not is_number or value > rule
        case "maximum":
            return not is_number or value <= rule
        case "minLength":
            return not isinstance(value, str) or len(value) >= rule
        case "maxLength":
            return not isinstance(value, str) or len(value) <= rule
        case "pattern":
            return not isinstance(value, str) or re.search(rule, value) is not None
        case "anyOf":
            return any(accepts(choice, value, root) for choice in rule)
        case "allOf":
            return all(accepts(choice, value, root) for choice in rule)
        case "if":
            return not accepts(rule, value, root) or accepts(schema["then"], value, root)
        case "required":
            return not is_table or set(rule) <= set(value)
        case "minProperties":
            return not is_table or len(value) >= rule
        case "propertyNames":
            return not is_table or all(accepts(rule, name, root) for name in value)
        case "properties":
            return not is_table or all(accepts(rule[k], v, root) for k, v in value.items() if k in rule)
        case "additionalProperties":
            others = [v for k, v in value.items() if k not in schema.get("properties", {})] if is_table else []
            return not others if rule is False else all(accepts(rule, other, root) for other in others)
        case "items":
            return not isinstance(value, list) or all(accepts(rule, item, root) for item in value)
    raise AssertionError(f"the schema uses {key}, which this test does not know")


@pytest.mark.parametrize("name", [*(name for name, _ in shipped()), "starter"])
def test_the_schema_accepts_what_ships(name: str) -> None:
    text = starter_text() if name == "starter" else (FOLDER / f"{name}.toml").read_text()
    schema = json_schema()
    assert accepts(schema, tomllib.loads(text), schema)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[machines]",
        "[machines.a]",
        "[machines.a]\nprogram = 'strom'",
        "[machines.'a b']\nprogram = 'idle'",
        "[machines.a]\nprogram = 'idle'\nvector = 4",
        "[machines.a]\nprogram = 'idle'\nvectors = 2049",
        "[machines.a]\nprogram = 'idle'\nprofile = 'other'",
        "[machines.a]\nprogram = 'storm'\nparameters.rate = 4",
        "[machines.a]\nprogram = 'storm'\nparameters.burst = 0",
        "[machines.a]\nprogram = 'storm'\nparameters.to = 1",
        "[machines.a]\nprogram = 'idle'\n[memory]\nsize = '4X'",
        "[machines.a]\nprogram = 'idle'\n[run]\nduration_s = 0",
        "[machines.a]\nprogram = 'idle'\n[run]\non_death = 'x'",
        "sed = 1\n[machines.a]\nprogram = 'idle'",
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(text: str) -> None:
    schema = json_schema()
    assert not accepts(schema, tomllib.loads(text), schema)


def test_the_schema_has_the_regular_expressions_of_json() -> None:
    patterns = re.findall(r'"pattern": "(.*?)"', json.dumps(json_schema()))
    assert len(patterns) >= 3
    assert all(pattern.endswith("$") for pattern in patterns)


def test_the_schema_knows_programs_of_others() -> None:
    schema = json_schema()
    text = "[machines.a]\nprogram = 'package.module:function'\nparameters = { anything = 1 }"
    assert accepts(schema, tomllib.loads(text), schema)


def test_everything_an_editor_completes_has_a_description() -> None:
    definitions = json_schema()["$defs"]
    for name in ("GroupTable", "RunSettings", "MemoryTable", "File"):
        for key, property_schema in definitions[name]["properties"].items():
            target = property_schema.get("$ref", "").rpartition("/")[2]
            assert property_schema.get("description") or definitions[target]["description"], key
