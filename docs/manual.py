"""The help of every command as Markdown and as man pages: the same text that ``--help`` prints."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

import click

from sim.cli import ivsim
from sim.commands.catalogue import COMMANDS
from sim.version import VERSION

__all__ = ["commands_markdown", "man_pages"]

UNWRAPPED = "\b"


class Help(NamedTuple):
    """The parts of one command's help; ``options`` are pairs of names and texts."""

    name: str
    summary: str
    usage: str
    paragraphs: list[tuple[bool, str]]
    options: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    epilog: list[tuple[bool, str]]


def helps() -> Iterator[Help]:
    """Every command, those of groups included, in the order of ``ivsim --help``."""
    with ivsim.make_context("ivsim", ["list"], resilient_parsing=True) as context:
        yield _help(ivsim, context, [(name, entry.summary) for name, entry in COMMANDS.items()])
        for name in COMMANDS:
            command = ivsim.get_command(context, name)
            assert command is not None
            with click.Context(command, context, name) as inner:
                below = command.commands if isinstance(command, click.Group) else {}
                yield _help(command, inner, [(each, its.get_short_help_str(200)) for each, its in below.items()])
                for each, its in below.items():
                    yield _help(its, click.Context(its, inner, each), [])


def _help(command: click.Command, context: click.Context, commands: list[tuple[str, str]]) -> Help:
    options = [param for param in command.get_params(context) if isinstance(param, click.Option)]
    records = [option.get_help_record(context) for option in options]
    return Help(
        name=context.command_path,
        summary=command.get_short_help_str(200),
        usage=" ".join([context.command_path, *command.collect_usage_pieces(context)]),
        paragraphs=_paragraphs(command.help),
        options=[record for record in records if record is not None],
        commands=commands,
        epilog=_paragraphs(command.epilog),
    )


def _paragraphs(text: str | None) -> list[tuple[bool, str]]:
    """Whether each paragraph is to be wrapped, and its text."""
    found = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text or "")):
        if part.lstrip().startswith(UNWRAPPED) or part.startswith("  "):
            found.append((False, part.replace(UNWRAPPED, "").strip("\n")))
        elif part:
            found.append((True, " ".join(part.split())))
    return found


def commands_markdown() -> str:
    """One section for each command."""
    return "\n".join(_markdown(each) for each in helps() if each.name != "ivsim")


def _markdown(its: Help) -> str:
    depth = "##" + "#" * (its.name.count(" ") - 1)
    lines = [f"{depth} {its.name}", "", "```", its.usage, "```", ""]
    for wrapped, text in its.paragraphs:
        lines += [_escaped(text), ""] if wrapped else ["```", inspect.cleandoc(text), "```", ""]
    for head, rows in (("option", its.options), ("command", its.commands)):
        if rows:
            lines += [f"| {head} | meaning |", "| --- | --- |"]
            lines += [f"| `{name}` | {_escaped(text)} |".replace("||", "\\|") for name, text in rows]
            lines.append("")
    for wrapped, text in its.epilog:
        example = text.removeprefix("Example: ")
        if example != text or not wrapped:
            lines += ["```", inspect.cleandoc(example), "```", ""]
        else:
            lines += [_escaped(text), ""]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    """Plain text as Markdown; what stands between backquotes is code already."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([|*_\[\]])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def man_pages() -> dict[str, str]:
    """The text of each page by the name of its file, such as ``ivsim-run.1``."""
    found = list(helps())
    pages = {}
    for its in found:
        if its.name.count(" ") > 1:
            continue
        inner = [each for each in found if each.name.startswith(f"{its.name} ") and its.name != "ivsim"]
        pages[f"{its.name.replace(' ', '-')}.1"] = _man(its, inner)
    return pages


def _man(its: Help, inner: list[Help]) -> str:
    name = its.name.replace(" ", "-")
    lines = [f'.TH "{name.upper()}" 1 "" "ivshmem-sim {VERSION}" "ivshmem-sim"', ".SH NAME"]
    lines += [f"{_roff(name)} \\- {_roff(its.summary.rstrip('.'))}", ".SH SYNOPSIS", f".B {_roff(its.usage)}"]
    lines += [".SH DESCRIPTION", *_roff_paragraphs(its.paragraphs)]
    lines += _roff_list("OPTIONS", its.options)
    if inner:
        lines.append(".SH COMMANDS")
        for each in inner:
            lines += [f".SS {_roff(each.usage)}", *_roff_paragraphs(each.paragraphs)]
            for option, text in each.options:
                lines += [".TP", f".B {_roff(option)}", _roff(text)]
            for _, text in each.epilog:
                lines += [".PP", _roff(text)]
    elif its.commands:
        lines += _roff_list("COMMANDS", [(f"ivsim-{command}(1)", text) for command, text in its.commands])
    notes = [each for each in its.epilog if not each[1].startswith("Example: ")]
    if notes:
        lines += [".SH NOTES", *_roff_paragraphs(notes)]
    examples = [text.removeprefix("Example: ") for _, text in its.epilog if text.startswith("Example: ")]
    if examples:
        lines += [".SH EXAMPLES", ".nf", *map(_roff, examples), ".fi"]
    lines += [".SH SEE ALSO", "ivsim(1)" if its.name != "ivsim" else "qemu-system-x86_64(1)"]
    return "\n".join(lines) + "\n"


def _roff_paragraphs(paragraphs: list[tuple[bool, str]]) -> Iterator[str]:
    for place, (wrapped, text) in enumerate(paragraphs):
        if place:
            yield ".PP"
        yield from [_roff(text)] if wrapped else [".nf", *map(_roff, text.splitlines()), ".fi"]


def _roff_list(heading: str, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    return [f".SH {heading}", *(line for name, text in rows for line in (".TP", f".B {_roff(name)}", _roff(text)))]


def _roff(text: str) -> str:
    """Text as roff takes it: no control line, no escape, hyphens that can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "")
    return f"\\&{text}" if text[:1] in (".", "'") else text
