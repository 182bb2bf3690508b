"""The topologies that ship: their files, names and titles. Reads no more of each than that."""

from __future__ import annotations

import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent / "scenarios"


def scenario_names() -> list[str]:
    """The names of the topologies that ship, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))


def shipped() -> list[tuple[str, str]]:
    """(name, title) of each topology that ships, sorted by name."""
    return [(name, _title((FOLDER / f"{name}.toml").read_text("utf-8"))) for name in scenario_names()]


def _title(text: str) -> str:
    """The top-level key ``title``, which stands before the first table: the rest of the file is not parsed."""
    return str(tomllib.loads(text.partition("\n[")[0]).get("title", ""))
