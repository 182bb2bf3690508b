"""The README: short, and its first program is the one of examples/. All that it shows is run by test_docs.py."""

from __future__ import annotations

import re
import tomllib

import topologies
from tests.system.transcripts import ROOT, blocks
from topologies.resolve.programs import shipped_programs

README = ROOT / "README.md"
LINES_MAX = 150
NUMBERS = {5: "five", 8: "eight", 10: "ten", 12: "twelve", 14: "fourteen", 16: "sixteen"}


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


def test_its_numbers_are_those_of_the_product() -> None:
    text = README.read_text().replace("\n", " ")
    assert f"names the {len(topologies.shipped())} topologies" in text
    assert f"describes the {NUMBERS[len(shipped_programs())]} that are included" in text
    storm = topologies.load("doorbell_storm")
    assert f"runs {NUMBERS[len(storm.machines)]} machines for {NUMBERS[round(storm.run.duration_s)]} seconds" in text
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    versions = sorted(re.findall(r"Python :: (3\.\d+)", " ".join(classifiers)), key=lambda name: int(name[2:]))
    assert f"Python {versions[0]} to {versions[-1]}" in text
