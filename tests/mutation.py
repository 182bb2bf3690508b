"""Mutants: one changed piece of the product each, which the tests that are named beside it have to notice.

``python -m tests.mutation`` (`make mutants`) tries all of ``tests/mutants/*.toml``, in parallel, each in a copy of the
repository; ``--only TEXT`` and ``--part 2/5`` try some of them. The exit code is 1 if one survives without
a reason.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import itertools
import os
import queue
import re
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
COPIED = ("nodes", "topologies", "sim", "tests", "examples", "docs", "notebooks")
FILES = (
    *("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "LICENSE", "constraints.txt"),
    *("Containerfile", "hatch_build.py", "mkdocs.yml"),
)
TESTS_FAILED, TESTS_PASSED = 1, 0  # pytest's exit codes
PATIENCE_S = 600.0
WITH_PROCESSES = ("tests/system/", "tests/qemu/", "tests/faults/")
WITHOUT = "without.toml"
SECONDS = itertools.count(1_000_000_000)  # times of files, each once
PROMISE = re.compile(r"^\| (?P<text>[^|]+?) \|(?: [^|]+ \|)? (?P<tests>`tests/[^|]+`) \|$", re.MULTILINE)

Verdict = Literal["killed", "survived", "broken"]


@dataclass(frozen=True)
class Mutant:
    """One change.

    Attributes:
        name: what it is a mutant of: "row 14", "cell revision", or a promise of docs/SPECIFICATION.md.
        file: the changed file, relative to the root.
        old: a text that is in it once.
        new: the text in its place.
        tests: the tests that have to fail, as pytest names them.
        reason: why it may survive; "" if it may not.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    reason: str = ""

    def apply(self, root: Path) -> None:
        """Change the file under ``root``, which is as the repository has it."""
        self._write(root, (ROOT / self.file).read_text().replace(self.old, self.new))

    def undo(self, root: Path) -> None:
        """Give the file its text back."""
        self._write(root, (ROOT / self.file).read_text())

    def _write(self, root: Path, text: str) -> None:
        """Write with a time of its own: Python takes bytecode for that of a file of the same size and second."""
        path = root / self.file
        path.write_text(text)
        second = next(SECONDS)
        os.utime(path, (second, second))

    def problems(self) -> Iterator[str]:
        """What is wrong with it: its text is not there once, it changes nothing, or its tests do not exist."""
        text = (ROOT / self.file).read_text() if (ROOT / self.file).is_file() else ""
        if text.count(self.old) != 1:
            yield f"{self.name}: {self.file} has its text {text.count(self.old)} times"
        if self.old == self.new:
            yield f"{self.name}: it changes nothing"
        if not self.tests:
            yield f"{self.name}: no test is named"
        for test in self.tests:
            file, _, function = test.partition("::")
            function = function.partition("[")[0]
            if not (ROOT / file).is_file() or (function and f"def {function}(" not in (ROOT / file).read_text()):
                yield f"{self.name}: there is no test {test}"


@functools.cache
def rows() -> dict[int, tuple[str, ...]]:
    """The tests of each row of the device of 2012."""
    found: list[dict[str, Any]] = tomllib.loads((ROOT / "tests" / "golden" / "seed_rows.toml").read_text())["row"]
    return {row["number"]: tuple(f"tests/{test}" for test in row["tests"]) for row in found}


@functools.cache
def promises() -> dict[str, tuple[str, ...]]:
    """The promises of docs/SPECIFICATION.md: text -> tests."""
    text = (ROOT / "docs" / "SPECIFICATION.md").read_text()
    return {found["text"]: tuple(re.findall(r"`(.+?)`", found["tests"])) for found in PROMISE.finditer(text)}


@functools.cache
def without_mutant() -> dict[str, str]:
    """The promises that no change of the product is tried for: text -> why."""
    text = (ROOT / "tests" / "mutants" / WITHOUT).read_text()
    return {table["of"]: table["reason"] for table in tomllib.loads(text)["promise"]}


def lacking() -> Iterator[str]:
    """What is wrong with the promises: one has neither a mutant nor a reason, or what has one is no promise."""
    named = {mutant.name for mutant in mutants() if not mutant.name.startswith(("row ", "cell "))}
    yield from (f"a mutant of what is no promise: {name}" for name in sorted(named - promises().keys()))
    for promise in promises():
        if promise not in named and promise not in without_mutant():
            yield f"no mutant, and no reason in {WITHOUT}: {promise}"
    for promise in without_mutant():
        if promise in named or promise not in promises():
            why_not = "has a mutant" if promise in named else "is no promise"
            yield f"{WITHOUT} has a reason for what {why_not}: {promise}"


@functools.cache
def mutants() -> tuple[Mutant, ...]:
    """All mutants. Those of a row and of a promise have its tests, unless they name others."""
    found = []
    for path in sorted((ROOT / "tests" / "mutants").glob("*.toml")):
        if path.name == WITHOUT:
            continue
        for table in tomllib.loads(path.read_text())["mutant"]:
            name = table["of"]
            tests: Sequence[str] = table.get("tests", ())
            if not tests and name.startswith("row "):
                tests = rows()[int(name.removeprefix("row "))]
            elif not tests and name in promises():
                tests = promises()[name]
            made = Mutant(name, table["file"], table["old"], table["new"], tuple(tests), table.get("reason", ""))
            found.append(made)
    return tuple(found)


def make_copy(directory: Path) -> Path:
    """A copy of what the tests need, with its bytecode: each attempt would compile all of it.

    It has an environment of its own, `python_of`: a test may start an interpreter without PYTHONPATH, which then has to
    find the copy, too.
    """
    root = directory / "copy"
    ignored = shutil.ignore_patterns("*.pyc.*", ".*", "runs")  # and not what is being written just now
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in FILES:
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, root / name)
    environment, scripts = root / ".venv", Path(sysconfig.get_path("scripts"))
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/*/site-packages")
    # The files that name further places are read in `packages` only, so the repository itself is in none.
    (packages / "copy.pth").write_text(f"{root}\n{sysconfig.get_path('purelib')}\n")
    for tool in scripts.iterdir():
        if not (environment / "bin" / tool.name).exists() and not tool.is_dir():
            (environment / "bin" / tool.name).symlink_to(tool)
    command = environment / "bin" / "ivsim"
    command.unlink(missing_ok=True)
    command.write_text(f"#!{python_of(root)}\nimport sys\nfrom sim.__main__ import main\nsys.exit(main())\n")
    command.chmod(0o755)
    return root


def python_of(root: Path) -> Path:
    """The interpreter of a copy."""
    return root / ".venv" / "bin" / "python"


def attempt(mutant: Mutant, root: Path) -> tuple[Verdict, str]:
    """Change the copy, run the named tests in it; the verdict, and the end of what pytest printed."""
    command = [os.fspath(python_of(root)), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=line"]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("PYTHONPATH", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "PYTEST_ADDOPTS", "CI"):
        environment.pop(name, None)
    mutant.apply(root)
    try:
        done = subprocess.run(
            [*command, *mutant.tests],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "killed", "the tests do not end"
    finally:
        mutant.undo(root)
    verdict: Verdict = "broken"  # the tests could not be run, or all were skipped
    if done.returncode == TESTS_FAILED and re.search(r"^\d+ failed", done.stdout, re.MULTILINE):
        verdict = "killed"
    elif done.returncode == TESTS_PASSED and " passed" in done.stdout:
        verdict = "survived"
    return verdict, done.stdout[-2000:] + done.stderr[-500:]


def try_all(chosen: Sequence[Mutant], jobs: int) -> Iterator[tuple[Mutant, Verdict, str]]:
    """The verdict on each mutant, as it comes."""
    with tempfile.TemporaryDirectory(prefix="mut-") as name:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(jobs):
            copies.put(make_copy(Path(name, str(job))))

        def one(mutant: Mutant) -> tuple[Mutant, Verdict, str]:
            root = copies.get()
            try:
                return mutant, *attempt(mutant, root)
            finally:
                copies.put(root)

        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            for future in concurrent.futures.as_completed([pool.submit(one, mutant) for mutant in chosen]):
                yield future.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help="Those whose name, file or tests contain this text.")
    parser.add_argument(
        "--part", default="1/1", help="One part of these, such as 2/5: every fifth, from the second on."
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    chosen = parser.parse_args()
    picked = [each for each in mutants() if chosen.only in f"{each.name} {each.file} {' '.join(each.tests)}"]
    # What starts no process is told first: it takes most of a second each, the others up to a minute.
    picked.sort(key=lambda each: any(test.startswith(WITH_PROCESSES) for test in each.tests))
    part, parts = map(int, chosen.part.split("/"))
    picked = picked[part - 1 :: parts]
    wrong = [problem for each in picked for problem in each.problems()]
    if wrong:
        print("\n".join(wrong))
        return 1
    started_s = time.monotonic()
    counts = {"killed": 0, "survived": 0, "excused": 0, "broken": 0}
    for mutant, verdict, printed in try_all(picked, chosen.jobs):
        told = "excused" if verdict == "survived" and mutant.reason else verdict
        counts[told] += 1
        if told != "killed":
            print(f"{told}: {mutant.name} ({mutant.file}) {mutant.reason}", flush=True)
            if told == "broken":
                print(printed, flush=True)
    took_s, spent = time.monotonic() - started_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = f"{len(picked)} mutants in {took_s:.0f} s, {spent.ru_utime + spent.ru_stime:.0f} s of CPU time: "
    print(cost + ", ".join(f"{count} {told}" for told, count in counts.items()))
    untold = list(lacking()) if not chosen.only else []
    print("\n".join(untold), end="\n" if untold else "")
    return 1 if counts["survived"] or counts["broken"] or untold else 0


if __name__ == "__main__":
    sys.exit(main())
