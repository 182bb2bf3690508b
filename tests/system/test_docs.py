"""The documentation is true: commands run and print what is shown, code runs, tables and tests are as declared."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import topologies
from sim.cli import ivsim
from sim.commands.catalogue import COMMANDS
from sim.kernel.qemu_program import chosen_qemu
from tests.system.transcripts import PAGES, ROOT, blocks, compare, execute, name_of, page_sessions
from topologies.resolve.programs import resolve_program

BASE = """
[machines.receiver]
vectors = 2
program = "idle"
[machines.sender]
count = 3
vectors = 2
program = "storm"
parameters = { to = "receiver", rate_hz = 100.0 }
"""
CHECKED = ("forward.py", "ring_buffer.py", "lost_wake_up.py", "producer_consumer.py", "asyncio_peer.py", "v2_link.py")
"""The files of examples/ that have type annotations."""
SESSIONS = {command: output for page in PAGES for command, output in page_sessions(page)}


@functools.cache
def generator() -> Any:
    """The module docs/generate.py."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", SESSIONS)
def test_a_command_prints_what_is_shown(command: str, tmp_path: Path) -> None:
    if command.startswith(("ivsim conformance", "ivsim agree")) and shutil.which(chosen_qemu()) is None:
        pytest.skip("needs a real QEMU")
    compare(command, SESSIONS[command], execute(command, tmp_path))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_generated_blocks_are_up_to_date(page: Path) -> None:
    text = page.read_text()
    assert text == generator().regenerated(text), "run: make docs-tables"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_topologies_load(page: Path) -> None:
    for text in blocks(page, "toml"):
        if not uses_a_program_of_the_examples(text):
            topologies.loads(text)
    for text in blocks(page, "toml fragment"):
        topologies.loads(BASE + text)


def uses_a_program_of_the_examples(text: str) -> bool:
    """Whether the topology is one of examples/ that `tests/system/test_examples.py` runs with its programs."""
    return any(text == path.read_text() for path in (ROOT / "examples").glob("*.toml"))


def programs_of(page: Path) -> list[str]:
    """The blocks of a page that define guest programs."""
    return [block for block in blocks(page, "python") + blocks(page, "python program") if "-> Program:" in block]


@pytest.mark.parametrize("page", [page for page in PAGES if programs_of(page)], ids=name_of)
def test_programs_are_programs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")  # an example may import another
    for number, block in enumerate(programs_of(page)):
        module = types.ModuleType(f"documented_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block, name_of(page), "exec"), module.__dict__)
        for function in ast.parse(block).body:
            if (
                isinstance(function, ast.FunctionDef)
                and function.returns
                and ast.unparse(function.returns) == "Program"
            ):
                assert resolve_program(f"{module.__name__}:{function.name}")


def test_programs_and_examples_pass_mypy_strict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYPYPATH", str(ROOT / "examples"))
    for page in PAGES:
        for number, block in enumerate(programs_of(page)):
            (tmp_path / f"{page.stem.lower()}_{number}.py").write_text(block)
    files = [*tmp_path.glob("*.py"), *(ROOT / "examples" / name for name in CHECKED)]
    # Outside the repository: a user has the package's py.typed files and not our configuration. What `make test` has
    # found out about the package, with the same options, need not be found out again.
    with contextlib.suppress(OSError):  # there is none, or mypy is at work there
        shutil.copytree(ROOT / ".mypy_cache", tmp_path / "cache")
    options = ["--strict", "--warn-unreachable", "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "mypy", *options, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for code in blocks(page, "python"):
        if "-> Program:" in code or "__main__" in code or "def test_" in code:  # run by tests of their own
            continue
        namespace: dict[str, Any] = {}
        exec(compile(code, name_of(page), "exec"), namespace)
        assert len(namespace["frame"]) > 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_that_is_named_exists(page: Path) -> None:
    assert set(re.findall(r"(?:`|^|\$ )ivsim ([a-z]+)\b", page.read_text(), re.MULTILINE)) <= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_options_that_are_named_exist(page: Path) -> None:
    """In inline code and in blocks, a line or a span that begins with ``ivsim COMMAND``."""
    text = page.read_text()
    spans = re.findall(r"`(ivsim [a-z][^`]*)`", text) + re.findall(r"^(?:\$ )?(ivsim [a-z].*)", text, re.MULTILINE)
    context = ivsim.make_context("ivsim", ["list"], resilient_parsing=True)
    for span in spans:
        name, *arguments = span.replace("\n", " ").split()[1:]
        command = ivsim.get_command(context, name)
        assert command is not None, span
        known = {option for each in family(command) for parameter in each.params for option in parameter.opts}
        for argument in arguments:
            if re.match(r"--?[A-Za-z]", argument):
                assert argument in known, span


def family(command: click.Command) -> list[click.Command]:
    """A command and its subcommands."""
    return [command, *(command.commands.values() if isinstance(command, click.Group) else ())]


def test_the_facts_about_the_device_of_2012_are_counted() -> None:
    rows = tomllib.loads((ROOT / "tests" / "golden" / "seed_rows.toml").read_text())["row"]
    for page in ("profiles.md", "SPECIFICATION.md"):
        assert f"{len(rows)} facts" in (ROOT / "docs" / page).read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}, (
                target
            )


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    for path in re.findall(r"`((?:nodes|topologies|sim|tests|docs|examples|notebooks)/[\w./*-]*)`", page.read_text()):
        assert any(ROOT.glob(path.rstrip("/"))), path


def test_every_folder_is_in_the_map() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for package in (
        path.parent for layer in ("nodes", "topologies", "sim") for path in ROOT.glob(f"{layer}/*/__init__.py")
    ):
        folder = str(package.relative_to(ROOT))
        assert f"`{folder}/" in text, folder


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        assert not name or name in set(functions(ROOT / path)), f"{path}::{name}"


def functions(path: Path) -> Iterator[str]:
    """The names of the functions of a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_has_the_targets_that_are_named(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^|`)make (\w[\w-]*)", page.read_text(), re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_every_page_is_in_the_index_and_the_readme() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        if page.name != "index.md":
            assert f"]({page.name})" in (ROOT / "docs" / "index.md").read_text(), page.name
            assert f"](docs/{page.name})" in (ROOT / "README.md").read_text().replace("\n", ""), page.name


@pytest.mark.parametrize("kind", ["Run", "Peer", "Server"])
def test_the_documented_members_exist(kind: str) -> None:
    import sim

    table = (ROOT / "docs" / "python.md").read_text().split(f"| member of `{kind}`")[1].split("\n\n")[0]
    names = re.findall(
        r"`(\w+)(?:\([^`]*\))?`", "".join(row.split("|")[1] for row in table.splitlines() if row[:1] == "|")
    )
    assert len(names) > 5
    source = "".join((ROOT / "sim" / name).read_text() for name in ("client.py", "server.py"))
    for name in names:
        assert hasattr(getattr(sim, kind), name) or f"self.{name}" in source, name


def test_the_documented_members_of_a_guest_exist() -> None:
    from nodes.guest import Guest

    table = (ROOT / "docs" / "programs.md").read_text().split("## The guest")[1].split("##")[0]
    source = (ROOT / "nodes" / "guest.py").read_text()
    for name in re.findall(
        r"`(\w+)(?:\([^`]*\))?`", "".join(row.split("|")[1] for row in table.splitlines() if row[:1] == "|")
    ):
        assert hasattr(Guest, name) or f"self.{name}" in source, name
