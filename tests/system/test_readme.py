"""The README is true: its commands are run, its output compared, its code executed, its links followed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import topologies
from sim.cli import COMMANDS
from sim.oracle.qtest import DEFAULT_QEMU
from topologies.resolve.programs import resolve_program

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def sessions() -> Iterator[tuple[str, str]]:
    """Each command of the console blocks, and what the README says it prints."""
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            yield command, output


SESSIONS = dict(sessions())


def shape(line: str) -> list[str]:
    """The words of a line that do not depend on how fast the host was."""
    without_figures = re.sub(r"\d[\d.,]*( ?(ns|us|ms|s|k|M|MiB|%))?(?!\w)", " ", line)
    return [word for word in re.split(r"[\s,;=+]+", without_figures) if word]


@pytest.mark.parametrize("command", SESSIONS)
def test_a_command_prints_what_the_readme_shows(command: str, tmp_path: Path) -> None:
    name, *arguments = shlex.split(command)
    assert name == "ivsim"
    if arguments[0] == "conformance" and shutil.which(DEFAULT_QEMU) is None:
        pytest.skip("needs a real QEMU")
    if arguments[0] == "run":
        arguments += ["--runs", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "sim", *arguments], capture_output=True, text=True, cwd=ROOT, check=False, timeout=100
    )
    printed = (done.stdout + done.stderr).splitlines()
    expected = SESSIONS[command].splitlines()
    measured = arguments[0] == "run"
    at, skipping = 0, False
    for line in expected:
        if line == "...":
            skipping = True
            continue
        alike = (lambda one, other: shape(one) == shape(other)) if measured else str.__eq__
        found = [i for i in range(at, len(printed)) if alike(printed[i], line)]
        assert found, f"the README shows {line!r}, not found in:\n" + "\n".join(printed[at:])
        assert skipping or found[0] == at, "\n".join(printed)
        at, skipping = found[0] + 1, False
    assert skipping or at == len(printed), printed[at:]


def test_the_topology_is_one(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    topology = topologies.loads(text)
    assert [machine.name for machine in topology.machines] == ["receiver", "sender-0", "sender-1", "sender-2"]


def test_the_programs_of_the_readme_are_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    program = next(block for block in blocks("python") if "def forward" in block)
    module = types.ModuleType("readme_program")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(program, "README.md", "exec"), module.__dict__)
    resolved = resolve_program("readme_program:forward")
    assert [parameter.name for parameter in resolved.parameters] == ["to", "offset"]
    for name in re.findall(r"`(\w+)`", re.search(r"Shipped are (.*?)\n\(", README, re.DOTALL)[1]):
        assert resolve_program(name)


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = next(block for block in blocks("python") if "sim.run(" in block)
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert len(namespace["frame"]) > 0  # type: ignore[arg-type]


def test_every_command_that_is_named_exists() -> None:
    assert set(re.findall(r"`?ivsim ([a-z]+)\b", README)) - {"is"} <= set(COMMANDS)


def test_every_profile_is_described() -> None:
    from nodes.device.profiles import PROFILES

    table = README.split("| profile |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w.-]+)`", table, re.MULTILINE)) == set(PROFILES)


def test_links_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text()):
            assert (ROOT / target).exists(), f"{page}: {target}"


def test_make_does_what_the_readme_says() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
