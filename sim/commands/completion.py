"""What a shell completes: topologies, run directories and the keys of ``--set``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, add_completion_class

RUNS = Path("runs")
SHOWN_MAX = 50


class _BashKeys(BashComplete):
    """As click's, without a space after a word that ends in ``=``."""

    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", "COMPREPLY+=($value)\n            [[ $value == *= ]] && compopt -o nospace"
    )


add_completion_class(_BashKeys, "bash")


def complete_topologies(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The topologies that ship, and files."""
    from topologies.scenario_files import shipped

    names = [CompletionItem(name, help=title) for name, title in shipped() if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


def complete_runs(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The run directories within ``runs``, the latest first, and other directories."""
    found = sorted((path for path in RUNS.glob("*") if (path / "manifest.json").exists()), reverse=True)
    runs = [CompletionItem(str(item)) for item in found if str(item).startswith(incomplete)]
    return runs[:SHOWN_MAX] or [CompletionItem(incomplete, type="dir")]


def complete_keys(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The keys of the topology that the command line names, each with ``=``; no values."""
    # Click has not parsed the arguments when the last word is an option that still lacks its value.
    source = context.params.get("topology") or next(iter(context.args), None)
    found = (CompletionItem(f"{key}=", help=meaning) for key, meaning in _keys(source))
    return [item for item in found if item.value.startswith(incomplete)]


def _keys(source: str | None) -> Iterator[tuple[str, str]]:
    """Dotted keys and their meanings; without a valid topology, the keys that every file has."""
    from msgspec import inspect

    from topologies import ProgramError, TopologyError, load, resolve_program
    from topologies.language.tables import File, GroupTable, MemoryTable
    from topologies.model import RunSettings

    groups = {}
    if source is not None:
        with contextlib.suppress(TopologyError, OSError):
            groups = {group.name: group.program for group in load(source).groups}
    tables = {"": File, "run.": RunSettings, "memory.": MemoryTable} | {
        f"machines.{group}.": GroupTable for group in groups
    }
    # The JSON Schema has the same, and costs more.
    shapes = dict(zip(tables, inspect.multi_type_info(tables.values()), strict=True))
    for prefix, table in shapes.items():
        assert isinstance(table, inspect.StructType)
        for field in table.fields:
            shape, description = field.type, ""
            if isinstance(shape, inspect.Metadata):
                description = (shape.extra_json_schema or {}).get("description", "")
                shape = shape.type
            is_table = isinstance(shape, inspect.DictType | inspect.StructType)
            if not is_table and (prefix or not isinstance(shape, inspect.VarTupleType)):
                yield prefix + field.encode_name, description
    for group, program in groups.items():
        with contextlib.suppress(ProgramError):  # a guest's image has no program of Python
            for parameter in resolve_program(program).parameters:
                yield f"machines.{group}.parameters.{parameter.name}", f"of the program {program}"
