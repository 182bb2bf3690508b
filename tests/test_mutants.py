"""The mutants of ``tests/mutants``: each can be tried, each row and each cell has one, a sample by seed is killed."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from nodes.device.profile import Profile
from nodes.device.profiles import PROFILES
from tests.mutation import Mutant, attempt, lacking, make_copy, mutants, promises, rows, without_mutant

SAMPLE = 1
QUICK = "tests/nodes/device/"


def test_every_mutant_changes_one_place_and_names_tests_that_exist() -> None:
    """`make mutants` tells those of a promise that has other words now, and so no test."""
    assert [problem for mutant in mutants() if mutant.tests for problem in mutant.problems()] == []


def test_every_row_of_the_device_of_2012_has_a_mutant() -> None:
    assert {f"row {number}" for number in rows()} <= {mutant.name for mutant in mutants()}


def test_every_cell_of_a_profile_has_a_mutant() -> None:
    named = {mutant.name.split()[-1] for mutant in mutants() if mutant.name.startswith("cell ")}
    assert set(Profile.cells()) <= named


@pytest.mark.parametrize("name", ["acrn", "cloud-hypervisor", "kvmtool", "ivshmem-flat", "qemu-v2"])
def test_every_cell_that_a_source_is_cited_for_has_a_mutant(name: str) -> None:
    """Of a profile that is compared with no QEMU here; what it has from another profile is that one's."""
    bases = {"cloud-hypervisor": "qemu-plain", "kvmtool": "qemu-plain", "ivshmem-flat": "qemu-doorbell"}
    made = PROFILES[name]
    inherited = PROFILES[bases[name]].sources if name in bases else {}
    own = {f"cell {name} {cell}" for cell in made.cells() if made.sources[cell] != inherited.get(cell)}
    assert own - {mutant.name for mutant in mutants()} == set()


def test_a_promise_without_a_mutant_or_a_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make mutants` does; so does it tell a reason of a promise that is gone."""
    assert all(len(reason) > 20 for reason in without_mutant().values())
    (gone, *_), (held, *_) = without_mutant(), {mutant.name for mutant in mutants()} & promises().keys()
    monkeypatch.setattr("tests.mutation.promises", lambda: {held: (), "new": ()})
    told = list(lacking())
    assert [each for each in told if each.endswith(": new")] == ["no mutant, and no reason in without.toml: new"]
    assert f"without.toml has a reason for what is no promise: {gone}" in told
    assert not [each for each in told if each.endswith(held)]


def test_a_mutant_that_survives_has_a_reason() -> None:
    """A reason is a sentence; what is killed needs none. `make mutants` finds those that lack one."""
    assert all(len(mutant.reason) > 20 for mutant in mutants() if mutant.reason)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, in which mutants are tried; each attempt undoes its change."""
    return make_copy(tmp_path_factory.mktemp("mutants"))


@pytest.mark.timeout(600)
def test_a_sample_by_seed_is_killed(seed: int, root: Path) -> None:
    quick = [each for each in mutants() if not each.reason and all(test.startswith(QUICK) for test in each.tests)]
    for mutant in Random(seed).sample(quick, SAMPLE):
        verdict, printed = attempt(mutant, root)
        assert verdict == "killed", f"{mutant.name}, {mutant.file}: {printed}"


@pytest.mark.timeout(600)
def test_a_change_that_no_test_notices_survives(root: Path) -> None:
    """The runner tells a survivor, and a mutant whose tests cannot run."""
    test = "tests/nodes/test_qemu_versions.py::test_a_version_is_read"
    harmless = Mutant(
        "x", "nodes/qemu_versions.py", '"""Major and minor number;', '"""Minor and major number;', (test,)
    )
    assert attempt(harmless, root)[0] == "survived"
    broken = Mutant("x", "nodes/qemu_versions.py", "import re\n", "import no_such_module\n", (test,))
    assert attempt(broken, root)[0] == "broken"
    assert list(Mutant("x", "nodes/qemu_versions.py", "no such text", "", (test,)).problems())


def test_each_change_of_a_file_has_a_time_of_its_own(root: Path) -> None:
    """Python would run the bytecode of the change before, if both had one size and were made in one second."""
    mutant, times = mutants()[0], set()
    for change in (mutant.apply, mutant.undo) * 2:
        change(root)
        times.add(int((root / mutant.file).stat().st_mtime))
    assert len(times) == 4
