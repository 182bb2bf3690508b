"""sim.views.cyclictest: what `ivsim show --cyclictest` writes is read back count by count."""

from __future__ import annotations

import email.utils
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import sim
from sim.cli import ivsim
from sim.results.analysis.latency.histogram import Histogram
from tests.synthetic import long_run


@pytest.mark.parametrize("latency", ["delivery", "total"])
def test_what_is_written_is_read_back_by_machine(latency: str, tmp_path: Path) -> None:
    run = sim.open(long_run(tmp_path, 3000))
    file = tmp_path / "run.json"
    done = CliRunner().invoke(ivsim, ["show", str(run.path), "--cyclictest", str(file), "--latency", latency])
    assert (done.exit_code, done.output) == (0, f"{file}\n")
    written = json.loads(file.read_text())
    expected = [its for its in run.histogram(latency, by="machine").values() if len(its)]
    assert written["num_threads"] == len(written["thread"]) == len(expected) > 0
    for thread, histogram in zip(written["thread"].values(), expected, strict=True):
        values = {int(value): count for value, count in thread["histogram"].items()}
        assert Histogram.of(np.repeat([*values], [*values.values()])) == histogram
        assert (thread["cycles"], thread["min"], thread["max"]) == (len(histogram), min(values), max(values))
        mean = sum(value * count for value, count in values.items()) / len(histogram)
        assert thread["avg"] == pytest.approx(mean, abs=0.006)
    assert (written["file_version"], written["resolution_in_ns"], written["return_code"]) == (1, 1, 0)
    began, ended = (email.utils.parsedate_to_datetime(written[name]) for name in ("start_time", "end_time"))
    assert (ended - began).total_seconds() == pytest.approx(run.origin.duration_s, abs=1)
