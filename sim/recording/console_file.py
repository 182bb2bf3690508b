"""The name of the file in a run directory that keeps the console of a guest."""

from __future__ import annotations

from pathlib import Path

PREFIX, SUFFIX = "console-", ".txt"


def console_file(machine: str) -> str:
    return f"{PREFIX}{machine}{SUFFIX}"


def machines_with_consoles(run_directory: Path) -> list[str]:
    """The machines that have one in a run directory."""
    return sorted(path.name.removeprefix(PREFIX).removesuffix(SUFFIX) for path in run_directory.glob(console_file("*")))
