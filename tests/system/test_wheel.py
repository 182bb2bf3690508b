"""The package as a user gets it: the wheel, in an environment of its own, in a project outside this repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from sim.kernel.qemu_program import chosen_qemu
from sim.version import VERSION
from tests.system.transcripts import ROOT

VERSIONS = ("3.11", "3.12", "3.13")
DRIVER_TEST = """\
def test_two_machines_answer(ivshmem_machines, ivshmem_peer):
    peer = ivshmem_peer()
    for machine in ivshmem_machines("echo", count=2, to=[peer.id]):
        peer.ring(machine.id, 1)
        assert peer.wait(1).doorbells == 1

def test_a_real_qemu_answers(ivshmem_qemu, ivshmem_peer):
    peer, qemu = ivshmem_peer(), ivshmem_qemu()
    qemu.ring(peer.id, 1)
    assert peer.wait(1).vector == 1
"""


def execute(*command: str | Path, cwd: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST", "PIP_REQ"))}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, and the wheel that is built from it; of a copy, because a build leaves files behind."""
    pytest.importorskip("build", reason="no `build` here: pip install -e '.[dev]'")
    place = tmp_path_factory.mktemp("packages")
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist")
    shutil.copytree(ROOT, place / "source", ignore=ignored, symlinks=True)
    execute(sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "source", cwd=place)
    return place / "dist"


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def passes(project: Path, python: Path) -> None:
    """The test of ten lines passes, and the commands are there."""
    project.joinpath("test_driver.py").write_text(DRIVER_TEST)
    project.joinpath("pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    printed = execute(python, "-m", "pytest", "-ra", cwd=project)
    passed = 1 + bool(shutil.which(chosen_qemu()))
    assert re.search(rf"\b{passed} passed", printed), printed
    assert "plugins: ivshmem-sim-" in printed
    assert execute(python.with_name("ivsim"), "--version", cwd=project)
    run = ("run", "ping_pong", "--quiet", "--set", "run.duration_s=0.2", "--set", "run.warmup_s=0")
    assert "finished" in execute(python.with_name("ivsim"), *run, cwd=project)


@pytest.mark.timeout(600)
def test_a_project_elsewhere_passes_with_the_wheel(tmp_path: Path, built: Path, wheel: Path) -> None:
    """Both packages are in order. The libraries are those of this environment, not the package index's."""
    source = built / f"ivshmem_sim-{VERSION}.tar.gz"
    checked = execute(sys.executable, "-m", "twine", "check", "--strict", wheel, source, cwd=built)
    assert checked.count("PASSED") == 2, checked
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-compile")
    execute(*install, wheel, cwd=tmp_path)
    (installed,) = tmp_path.glob("venv/lib/*/site-packages")
    (installed / "others.pth").write_text(sysconfig.get_path("purelib"))  # after its own, so the wheel is used
    passes(tmp_path, python)
    assert (tmp_path / "venv" / "share" / "man" / "man1" / "ivsim-run.1").read_text().startswith('.TH "IVSIM-RUN" 1')


def interpreter(version: str) -> str:
    """A Python of that version: on PATH, or among those of pyenv."""
    places = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), reverse=True)
    for found in (shutil.which(f"python{version}"), *map(str, places)):
        # pyenv's command for a version that is not chosen is on PATH, and ends with an error.
        if found and not subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode:
            return found
    pytest.skip(f"no Python {version} here")


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_environment_of_each_python_has_all_it_needs(tmp_path: Path, wheel: Path, version: str) -> None:
    execute(interpreter(version), "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    execute(python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel, "pytest", cwd=tmp_path)
    passes(tmp_path, python)


def test_the_containerfile_has_no_findings() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("no hadolint here: pip install -e '.[dev]'")
    assert not execute(hadolint, "--failure-threshold", "style", ROOT / "Containerfile", cwd=ROOT)
