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
from tests.system.transcripts import ROOT

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


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The wheel of this tree, built from a copy: a build leaves nothing in the tree."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist")
    shutil.copytree(ROOT, source, ignore=ignored, symlinks=True)
    execute(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source, cwd=tmp_path)
    (built,) = tmp_path.glob("*.whl")
    return built


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "dependencies",
    ["of this environment", pytest.param("of the package index", marks=[pytest.mark.slow, pytest.mark.full])],
)
def test_a_project_elsewhere_passes_with_the_wheel(tmp_path: Path, wheel: Path, dependencies: str) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_driver.py").write_text(DRIVER_TEST)
    (project / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    venv.create(project / "venv")
    python = project / "venv" / "bin" / "python"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
    if dependencies == "of the package index":
        execute(*install, wheel, "pytest", cwd=project)
    else:
        execute(*install, "--no-deps", "--no-compile", wheel, cwd=project)
        (installed,) = project.glob("venv/lib/*/site-packages")
        (installed / "others.pth").write_text(sysconfig.get_path("purelib"))  # after its own, so the wheel is used
    printed = execute(python, "-m", "pytest", "-ra", cwd=project)
    passed = 1 + bool(shutil.which(chosen_qemu()))
    assert re.search(rf"\b{passed} passed", printed), printed
    assert "plugins: ivshmem-sim-" in printed
    assert execute(project / "venv" / "bin" / "ivsim", "--version", cwd=project)
    assert (project / "venv" / "share" / "man" / "man1" / "ivsim-run.1").read_text().startswith('.TH "IVSIM-RUN" 1')
