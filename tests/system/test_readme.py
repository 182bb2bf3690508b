"""The README: short, and its first program is the one of examples/. All that it shows is run by test_docs.py."""

from __future__ import annotations

import re

import topologies
from tests.system.transcripts import ROOT, blocks

README = ROOT / "README.md"
LINES_MAX = 150


def test_it_is_short() -> None:
    assert len(README.read_text().splitlines()) <= LINES_MAX


def test_its_program_is_that_of_the_example() -> None:
    (program,) = blocks(README, "python")
    assert program.partition("def ")[2] in (ROOT / "examples" / "forward.py").read_text()


def test_its_topology_is_one() -> None:
    (text,) = blocks(README, "toml")
    topology = topologies.loads(text)
    assert [machine.name for machine in topology.machines] == ["receiver", "sender-0", "sender-1", "sender-2"]


def test_its_two_commands_are_the_makefiles() -> None:
    commands = re.findall(r"^make (\w+)", README.read_text(), re.MULTILINE)
    assert commands == ["run", "test"]


def test_it_counts_the_included_topologies_and_programs() -> None:
    text = README.read_text()
    assert f"names the {len(topologies.shipped())} topologies" in text.replace("\n", " ")
