"""Other versions of QEMU than the one that the tests use: a sample by seed of what is compared with each.

``IVSHMEM_MORE_QEMUS`` names their programs, separated like PATH. All of a version: ``IVSHMEM_QEMU=PROGRAM python -m
pytest -m qemu``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from random import Random

import pytest

from sim.kernel.qemu_program import qemu_version
from sim.oracle.conformance import CONFORMING, conform
from tests.nodes.device.test_migration import written
from tests.qemu.test_migration import DAMAGES, arrive, plain, printed_by, record, refusal_of
from tests.qemu.test_migration import write as write_to
from tests.real_qemu import MORE_QEMUS, monitor

pytestmark = pytest.mark.qemu

OPERATIONS = 300
DAMAGES_TRIED = 2


@pytest.fixture(params=MORE_QEMUS or [None], ids=lambda path: "none" if path is None else str(qemu_version(path)))
def qemu(request: pytest.FixtureRequest) -> str:
    if request.param is None:
        pytest.skip("IVSHMEM_MORE_QEMUS names no QEMU")
    assert os.access(request.param, os.X_OK)
    return str(request.param)


@pytest.mark.parametrize("access", ["tcg", "qtest"])
@pytest.mark.parametrize("name", CONFORMING)
def test_the_simulated_device_conforms(qemu: str, name: str, access: str, seed: int) -> None:
    report = conform(qemu, name, seed, OPERATIONS, access=access)
    assert report.agrees, str(report)
    assert report.version == qemu_version(qemu)


def test_a_damaged_stream_is_refused_in_the_words_that_are_quoted(qemu: str, tmp_path: Path, seed: int) -> None:
    with monitor(qemu, plain("master")) as (real, machine):
        write_to(real, msix=False)
        stream = record(machine, tmp_path / "stream", "ivshmem-plain")
    begin = len(stream.section) - (stream.end - stream.fields_at)
    damages = [(at, value) for kind, at, value in DAMAGES if kind == "plain" and at + len(value) <= 280]
    for at, value in Random(seed).sample(damages, DAMAGES_TRIED):
        (tmp_path / "damaged").write_bytes(stream.altered(at, value))
        printed, _ = arrive(qemu, plain("master"), f"exec:cat {tmp_path / 'damaged'}")
        body = bytearray(stream.section)
        body[begin + at : begin + at + len(value)] = value
        there = written("qemu-plain", plain=True)
        refusal = refusal_of(lambda there=there, body=body: there.load(bytes(body)))  # type: ignore[misc]
        assert re.sub(r", section_id: \d+$", "", printed) == ("" if refusal is None else printed_by(qemu, refusal))
