"""Documents that are executed: console sessions, code and tables are taken out of Markdown and compared.

A console block, or an ``.out`` file, is a list of commands (``$ ivsim ...``), each followed by its output. A line
``...`` in an output stands for any number of lines. Figures are compared exactly, except in the output of
a command that measures something: there, the words of a line have to be equal, and the numbers may differ.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md")))

MEASURES = re.compile(r"^(ivsim (run|show|compare|sweep|explore|conformance)|python |sh )")
FIGURE = re.compile(r"-?\d[\d.,]*( ?(ns|us|ms|s|k|M|MiB|%))?(?!\w)")


def name_of(page: Path) -> str:
    """The path of a page as the tests print it."""
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page whose info string is ``language``."""
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def sessions(text: str) -> Iterator[tuple[str, str]]:
    """Each command of a transcript, and the output that follows it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def page_sessions(page: Path) -> list[tuple[str, str]]:
    """The sessions of all console blocks of a page."""
    return [session for block in blocks(page, "console") for session in sessions(block)]


def execute(command: str, directory: Path) -> str:
    """Run a command of a transcript from the root of the repository; return what it printed on both streams.

    ``ivsim`` and ``python`` are those of this interpreter. Run directories and schedules go to ``directory``.
    """
    name, *arguments = shlex.split(command)
    assert name in ("ivsim", "python", "sh"), command
    scripts = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "IVSIM_RUN_RUNS": str(directory),
        "IVSIM_EXPLORE_OUTPUT": str(directory / "schedule.json"),
    }
    program = {"ivsim": [sys.executable, "-m", "sim"], "python": [sys.executable], "sh": ["sh"]}[name]
    if name == "python":
        arguments.append(str(directory))
    done = subprocess.run(
        [*program, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment, check=False, timeout=110
    )
    return done.stdout + done.stderr


def words(line: str) -> list[str]:
    """The words of a line that do not depend on the speed of the host."""
    return [word for word in re.split(r"[\s,;=+]+", FIGURE.sub(" ", line)) if word]


def compare(command: str, expected: str, printed: str) -> None:
    """Assert that a command printed what the document shows."""
    have = printed.splitlines()
    normal = words if MEASURES.match(command) else str
    at, skipping = 0, False
    for line in expected.splitlines():
        if line == "...":
            skipping = True
            continue
        found = next((i for i in range(at, len(have)) if normal(have[i]) == normal(line)), None)
        assert found is not None, f"the document shows {line!r}, not found in:\n" + "\n".join(have[at:])
        assert skipping or found == at, f"{command}: {line!r} follows output that is not shown:\n{printed}"
        at, skipping = found + 1, False
    assert skipping or at == len(have), f"{command}: the document ends before the output:\n" + "\n".join(have[at:])
