"""Write the generated blocks of the documentation: tables from the declarations, examples from their files.

The tables that `ivsim list` prints come from `topologies.reference_tables`. A block stands between
two comments in a Markdown page:

    <!-- generated: actions -->
    ...
    <!-- end -->

`make docs-tables` rewrites every block in place; a test compares them with what this module returns. A name with
a slash is the path of a file in the repository, which is then shown as code.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import sim.exit_codes
import tests.bench
from nodes.guest import Peers
from sim.commands.catalogue import COMMANDS
from tests.bench.figure import Bar
from tests.fault_matrix import ROWS, marked_tests
from topologies import json_schema
from topologies.reference_tables import REFERENCES
from topologies.resolve.programs import resolve_program, shipped_programs

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"(?P<begin><!-- generated: (?P<name>[^ ]+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)
LANGUAGES = {".py": "python", ".sh": "sh", ".toml": "toml", ".out": "text"}


def table(heading: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a vertical bar within a cell is escaped."""
    lines = [list(heading), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(text: str) -> str:
    """A docstring as Markdown: one paragraph, with single backticks."""
    return " ".join(text.replace("``", "`").split())


def short(annotation: object) -> str:
    """An annotation without the names of modules."""
    return re.sub(r"Optional\[(.*)\]$", r"\1 | None", re.sub(r"\w+\.", "", inspect.formatannotation(annotation)))


def programs_tables() -> str:
    """The shipped programs with their docstrings and parameters."""
    parts = []
    for name in shipped_programs():
        program = resolve_program(name)
        parts.append(f"### {name}\n\n{(inspect.getdoc(program.function) or '').replace('``', '`')}\n")
        rows = []
        for parameter in program.parameters:
            kind = short(parameter.annotation).replace(short(Peers), "Peers")
            default = "required" if parameter.required else f"`{parameter.default!r}`".replace("'", '"')
            low, high = parameter.range or (None, None)
            limits = "" if low is None else f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
            rows.append((f"`{parameter.name}`", f"`{kind}`", default, limits))
        if rows:
            parts.append(table(("parameter", "type", "default", "range"), rows))
    return "\n".join(parts)


def exit_codes_table() -> str:
    """The constants of `sim.exit_codes`, each with the text below it."""
    rows: list[tuple[object, str, str]] = [(0, "", "Success.")]
    body = ast.parse(inspect.getsource(sim.exit_codes)).body
    for at, statement in enumerate(body):
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            assert isinstance(statement.targets[0], ast.Name)
            after = body[at + 1] if at + 1 < len(body) else None
            text = ast.get_docstring(ast.Module([after], [])) if isinstance(after, ast.Expr) else ""
            rows.append((statement.value.value, f"`{statement.targets[0].id}`", markdown(text or "")))
    return table(("code", "name in `sim.exit_codes`", "meaning"), rows)


def commands_table() -> str:
    """Every command of `ivsim` with its help in one line."""
    return table(("command", "purpose"), [(f"`ivsim {name}`", entry.summary) for name, entry in COMMANDS.items()])


def bars_table() -> str:
    """The bars of `make bench`, one row for each constant of a module of tests/bench."""
    rows = []
    for module in sorted(pkgutil.iter_modules(tests.bench.__path__), key=lambda each: each.name):
        loaded = importlib.import_module(f"tests.bench.{module.name}") if module.name != "__main__" else None
        for name, bar in vars(loaded).items() if loaded else ():
            if isinstance(bar, Bar):
                sign = "at least" if bar.more_is_better else "at most"
                measured = markdown((loaded.__doc__ or "").partition("\n")[0])
                rows.append((f"`{module.name}.{name}`", measured, f"{sign} {bar.must:g}", f"{bar.reach:g}"))
    return table(("bar", "what its benchmark measures", "must be", "aim"), rows)


def faults_table() -> str:
    """The fault matrix: one row for each of its tests, with the figure of `make faults`."""
    rows = [
        (test.row, ROWS[test.row], f"{test.full:,} {test.unit}", f"`{test.path}::{test.name}`")
        for test in marked_tests()
    ]
    return table(("row", "fault", "injected by `make faults`", "test"), rows)


def keys_tables() -> str:
    """The keys of every table of a topology file, from its JSON Schema."""
    definitions = json_schema()["$defs"]
    parts = []
    for heading, name in TABLES.items():
        rows = [(f"`{key}`", *_key(spec)) for key, spec in definitions[name]["properties"].items()]
        parts.append(f"### {heading}\n\n" + table(("key", "value", "default", "meaning"), rows))
    return "\n".join(parts)


TABLES = {
    "Top level": "File",
    "`[run]`": "RunSettings",
    "`[memory]`": "MemoryTable",
    "`[domains.NAME]`": "DomainTable",
    "`[machines.NAME]`": "GroupTable",
    "`[machines.NAME.guest]`": "GuestImage",
    "`[[phases]]`": "PhaseTable",
    "`[[expect]]`": "ExpectTable",
    "`[chaos]`": "Chaos",
    "`[[invariant]]`": "InvariantTable",
}


def _key(spec: dict[str, Any]) -> tuple[str, str, str]:
    """The value, default and meaning of a key, in words."""
    value = spec.get("default")
    shown = "" if value in (None, "", []) or isinstance(value, dict) else f"`{json.dumps(value)}`"
    return _value(spec), shown, markdown(spec.get("description", ""))


def _value(spec: dict[str, Any]) -> str:
    if "enum" in spec:
        return ", ".join(f"`{value}`" for value in spec["enum"])
    if "anyOf" in spec:
        return " or ".join(dict.fromkeys(_value(each) for each in spec["anyOf"] if each != {"type": "null"}))
    if "$ref" in spec:
        return "table"
    kind = {"array": "array", "object": "table", "boolean": "true or false", "integer": "whole number"}.get(
        spec.get("type", "any"), str(spec.get("type", "any"))
    )
    low = spec.get("minimum", spec.get("exclusiveMinimum"))
    if low is None or "maximum" not in spec:
        return kind
    above = "above " if "exclusiveMinimum" in spec else ""
    return f"{kind}, {above}{low} to {spec['maximum']}"


def _reference(name: str) -> str:
    return REFERENCES[name]().markdown()


BLOCKS: dict[str, Callable[[], str]] = {
    **{name: functools.partial(_reference, name) for name in REFERENCES if name != "programs"},
    "programs": programs_tables,
    "exit-codes": exit_codes_table,
    "commands": commands_table,
    "keys": keys_tables,
    "bars": bars_table,
    "faults": faults_table,
}


def block(name: str) -> str:
    """The text of a generated block."""
    if "/" not in name:
        return f"\n{BLOCKS[name]()}\n"
    path = ROOT / name
    return f"```{LANGUAGES[path.suffix]}\n{path.read_text()}```\n"


def regenerated(text: str) -> str:
    """A page with every generated block rewritten."""
    return BLOCK.sub(lambda found: found["begin"] + block(found["name"]) + found["end"], text)


def main() -> None:
    """Rewrite the pages whose blocks have changed."""
    for page in PAGES:
        text = page.read_text()
        if (new := regenerated(text)) != text:
            page.write_text(new)
            print(page.relative_to(ROOT))


if __name__ == "__main__":
    main()
