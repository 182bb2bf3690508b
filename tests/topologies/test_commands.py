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

from nodes.device.profiles import PROFILES
from nodes.errors import HostError, UsageError
from nodes.qemu_versions import COMPARED_VERSIONS
from nodes.wire.rules import RULES
from sim.commands.topology import init, list_shipped, schema, validate
from topologies import json_schema, load, shipped, shipped_programs, starter_text
from topologies.actions import ACTIONS
from topologies.metrics import LATENCIES, METRICS
from topologies.reference_tables import REFERENCES

FOLDER = Path(load("ping_pong").source_name).parent
EVERYTHING = Path(__file__).parents[1] / "golden" / "topologies" / "everything.toml"


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(click.Group(commands=[validate, list_shipped, schema, init]), list(arguments))


def test_validate_says_in_one_line_what_is_asked_for() -> None:
    result = invoke("validate", "doorbell_storm", "--set", "machines.storm.count=32")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "doorbell_storm: 32 machines, 128 vectors, 128 eventfd descriptors in each of 33 processes "
        "(4224 in all), 4194304 bytes of shared_memory\n"
        "    5.5 s, 0.5 of them warm-up, 1 domain, 2 phases, 0 actions, 2 expectations\n"
    )


def test_validate_notes_what_is_bound_to_fail() -> None:
    assert "\n    note: line 40: migrate stays: refused: Migration is disabled" in invoke("validate", "evacuate").stdout
    (failing,) = json.loads(invoke("validate", "evacuate", "--json").stdout)["failing_migrations"]
    assert (failing["line"], failing["machines"], failing["verdict"]) == (40, ["stays"], "refused")
    assert json.loads(invoke("validate", "ping_pong", "--json").stdout)["failing_migrations"] == []


def test_validate_for_machines() -> None:
    result = invoke("validate", "fan_in", "--json", "--set", "machines.sender.count=3", "--set", "run.duration_s=1")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["valid"] is True
    assert (told["machines"], told["vectors"], told["duration_s"]) == (4, 16, 1.0)
    assert told["groups"] == {"receiver": 1, "sender": 3}


def test_validate_says_what_a_run_goes_through() -> None:
    result = invoke("validate", str(EVERYTHING))
    assert result.stdout == (
        # 51 in the left domain, which 25 machines are in, 2 in the right one, which 2 are in, 4 in the last.
        "everything: 28 machines, 58 vectors, 58 eventfd descriptors in each of 29 processes (1370 in all), "
        "6291456 bytes of memfd and shared_memory\n"
        "    5 s, 0.5 of them warm-up, 3 domains, 3 phases, 7 actions, 5 expectations, a matrix of 12 cells\n"
    )
    told = json.loads(invoke("validate", str(EVERYTHING), "--json").stdout)
    assert (told["phases"], told["timeline"], told["expectations"], told["cells"]) == (3, 7, 5, 12)
    assert told["domains"] == ["left", "right", "cell"]


def test_validate_knows_programs_of_a_file(tmp_path: Path) -> None:
    topology, programs = tmp_path / "t.toml", tmp_path / "mine.py"
    topology.write_text("[machines.a]\nprogram = 'mine'\n")
    programs.write_text("def mine(guest):\n    yield\n")
    assert invoke("validate", str(topology)).exit_code == 2
    assert invoke("validate", str(topology), "--program", str(programs)).exit_code == 0
    assert invoke("validate", str(topology), "--program", str(tmp_path / "none.py")).exit_code == 2
    programs.write_text("def storm(guest):\n    yield\n")
    result = invoke("validate", str(topology), "--program", str(programs))
    assert (result.exit_code, "Traceback" in result.stderr) == (2, False)
    assert str(programs) in result.stderr


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


def test_the_rules_are_told_with_what_each_qemu_does() -> None:
    """Each version has its own words, or "the same"; where a version changes something, one column differs."""
    rows = {row.pop("rule"): row for row in json.loads(invoke("list", "--rules", "--json").stdout)}
    assert rows.keys() == RULES.keys()
    for name, row in rows.items():
        assert row.pop("expected") == RULES[name].expected
        assert list(row) == list(map(str, COMPARED_VERSIONS))
        outcomes: list[str] = []
        for told in row.values():
            outcomes.append(outcomes[-1] if told == "the same" else told)
        assert outcomes == [RULES[name].outcome(version) for version in COMPARED_VERSIONS]
    assert any(row["11.1"] != "the same" for row in rows.values())


@pytest.mark.parametrize("name", REFERENCES)
def test_list_shows_the_references_of_the_language(name: str) -> None:
    table = REFERENCES[name]()
    option = [] if name == "topologies" else [f"--{name}"]
    assert invoke("list", *option).stdout == REFERENCES[name]().plain()
    assert invoke("list", *option, "--markdown").stdout == REFERENCES[name]().markdown()
    rows = json.loads(invoke("list", *option, "--json").stdout)
    assert [tuple(row.values()) for row in rows] == list(table.rows)
    assert {tuple(row) for row in rows} == {table.head}
    lines = REFERENCES[name]().markdown().splitlines()
    assert len(lines) == len(table.rows) + 2
    assert len({len(re.split(r"(?<!\\)\|", line)) for line in lines}) == 1
    assert invoke("list", "--json", "--markdown").exit_code == 2


def test_the_references_name_everything_that_is_declared() -> None:
    assert [row[0] for row in REFERENCES["actions"]().rows] == list(ACTIONS)
    assert [row[0] for row in REFERENCES["profiles"]().rows] == list(PROFILES)
    names = {row[0] for row in REFERENCES["metrics"]().rows}
    families = {f"{latency}.POINT_UNIT" for latency in LATENCIES} | {"POINT_UNIT", "statistics.NAME"}
    assert {name for name in METRICS if name.split(".")[0] not in LATENCIES} | families == names
    assert {row[0].split(".")[0] for row in REFERENCES["programs"]().rows} == set(shipped_programs())
    assert all(action in starter_text() for action in ACTIONS)


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
    assert isinstance(invoke("init", str(tmp_path / "no" / "folder.toml")).exception, UsageError)
    assert invoke("init", str(tmp_path)).exit_code == 2
    assert isinstance(invoke("init", "/dev/full", "--force").exception, HostError)


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
    is_table, is_array = isinstance(value, dict), isinstance(value, list)
    limits = {
        "minProperties": lambda least: not is_table or len(value) >= least,
        "maxProperties": lambda most: not is_table or len(value) <= most,
        "minItems": lambda least: not is_array or len(value) >= least,
        "maxItems": lambda most: not is_array or len(value) <= most,
        "not": lambda refused: not accepts(refused, value, root),
    }
    if not all(limit(schema[key]) for key, limit in limits.items() if key in schema):
        return False
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
        case "minProperties" | "maxProperties" | "minItems" | "maxItems" | "not":
            return True  # seen to by `accepts`
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


@pytest.mark.parametrize("name", [*(name for name, _ in shipped()), "starter", "everything"])
def test_the_schema_accepts_what_ships(name: str) -> None:
    if name == "starter":
        text = starter_text()
    else:
        text = ((EVERYTHING.parent if name == "everything" else FOLDER) / f"{name}.toml").read_text()
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
        "[machines.a]\nprogram = 'idle'\n[memory]\n[domains.x]",
        "[machines.a]\nprogram = 'idle'\ncpus = 'all'",
        "[machines.a]\nprogram = 'idle'\nname = '{m}'",
        "[machines.a]\nprogram = 'storm'\nparameters.to = { rign = 'a' }",
        "[machines.a]\nprogram = 'storm'\nparameters.to = { random = 'a' }",
        "[machines.a.override.0]\ncount = 3\n[machines.a]\nprogram = 'idle'",
        "[defaults]\nvectors = 3\n[machines.a]",
        "[run]\nduration_s = 3\n[machines.a]\nprogram = 'idle'\n[[phases]]\nname = 'x'\nduration_s = 3",
        "[machines.a]\nprogram = 'idle'\n[[phases]]\nname = 'x'\nduration_s = 3\nload = [1, 2, 3]",
        "[machines.a]\nprogram = 'idle'\n[[timeline]]\nat_s = 1\ndo = 'jump'\nmachines = 'a'",
        "[machines.a]\nprogram = 'idle'\n[[timeline]]\ndo = 'kill'\nmachines = 'a'",
        "[machines.a]\nprogram = 'idle'\n[[timeline]]\nat_s = 1\ndo = 'kill'",
        "[machines.a]\nprogram = 'idle'\n[[timeline]]\nat_s = 1\ndo = 'kill'\nmachines = 'a'\nvectors = [0]",
        "[machines.a]\nprogram = 'idle'\n[[timeline]]\nat_s = 1\ndo = 'stop_server'\nmachines = 'a'",
        "[machines.a]\nprogram = 'idle'\n[[timeline]]\nwhen = 'p99_us > 3'\ndo = 'kill'\nmachines = 'a'",
        "[machines.a]\nprogram = 'idle'\n[[expect]]\nthat = 'p98_us > 3'",
        "[machines.a]\nprogram = 'idle'\n[[expect]]\nthat = 'p99_us > 3'\nabort = true",
        "[machines.a]\nprogram = 'idle'\n[matrix]\nseed = 3",
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
    assert len(definitions) == 12
    for name in definitions:
        for key, property_schema in definitions[name]["properties"].items():
            target = property_schema.get("$ref", "").rpartition("/")[2]
            assert property_schema.get("description") or definitions[target]["description"], key
