"""Results of a long run are written and read in bounded memory. Each part is measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sim.host import preflight
from sim.results.analysis import matching
from tests.synthetic import long_run

SAMPLES = 1_500_000
MEBIBYTE = 1 << 20
ROOM_BYTES = 100 * MEBIBYTE
"""What pieces, tables of counts and encoders take, however long the run is; measured: some 60 MiB."""

PEAK = """
import sys
import sim
run = sim.open(sys.argv[1])
exec(sys.argv[2])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_bytes(path: Path, code: str = "pass") -> int:
    """The peak of resident memory of a process that opens a run and does ``code``."""
    done = subprocess.run([sys.executable, "-c", PEAK, path, code], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_run(tmp_path_factory.mktemp("small"), 1000)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_run(tmp_path_factory.mktemp("long"), SAMPLES)


def test_results_are_written_in_memory_for_the_index_of_drains_and_a_constant(small: Path, long: Path) -> None:
    base = peak_bytes(small)
    grown = peak_bytes(long) - base
    assert grown <= matching.INDEX_BYTES_EACH * SAMPLES + ROOM_BYTES
    assert base + ROOM_BYTES <= preflight.RESULTS_BYTES
    assert preflight.INDEX_BYTES_EACH == matching.INDEX_BYTES_EACH


@pytest.mark.parametrize(
    "code",
    [
        "run.problems; run.figures",
        "run.latency(by='machine', intervals=True)",
        "run.histogram('total', by='group')",
        "from sim.views.html.page import page; page(run)",
        "sim.compare(run, run)",
    ],
)
def test_a_long_run_is_read_in_memory_that_does_not_grow_with_it(small: Path, long: Path, code: str) -> None:
    peak_bytes(long)  # the first to open it writes its results
    assert peak_bytes(long, code) - peak_bytes(small, code) <= ROOM_BYTES
