"""sim.views.hdr_histogram: what it writes is read back by the hdrhistogram package, count by count."""

from __future__ import annotations

import re

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import sim
from sim.cli import ivsim
from sim.results.analysis.latency.histogram import Histogram
from sim.views.hdr_histogram import encode, hgrm, hlog
from tests.synthetic import long_run

hdrh = pytest.importorskip("hdrh.histogram", reason="hdrhistogram is not installed (extra dev)")
LATENCIES = st.lists(st.integers(0, 1 << 62) | st.integers(0, 3000), min_size=1, max_size=300)


def read_back(text: str) -> dict[tuple[int, int], int]:
    decoded = hdrh.HdrHistogram.decode(text)
    found = {}
    for item in decoded.get_recorded_iterator():
        highest = decoded.get_highest_equivalent_value(item.value_iterated_to)
        found[decoded.get_lowest_equivalent_value(item.value_iterated_to), highest] = item.count_added_in_this_iter_step
    return found


@given(LATENCIES)
def test_every_bin_and_count_is_read_back(values):
    histogram = Histogram.of(np.array(values))
    columns = histogram.columns()
    bins = zip(columns["low"].tolist(), columns["high"].tolist(), strict=True)
    assert read_back(encode(histogram)) == dict(zip(bins, columns["count"].tolist(), strict=True))


def test_large_counts_and_an_empty_histogram_are_read_back():
    many = Histogram.sparse(np.array([0, 5, 200, 6000]), np.array([1, (1 << 53) + 1, 127, 128]))
    assert list(read_back(encode(many)).values()) == [1, (1 << 53) + 1, 127, 128]
    assert read_back(encode(Histogram.of(np.zeros(0, np.int64)))) == {}


@given(st.lists(st.integers(0, 1 << 40) | st.integers(0, 3000), min_size=1, max_size=300))
def test_percentiles_come_closer_to_100_and_the_moments_are_those_of_the_package(values):
    histogram = Histogram.of(np.array(values))
    decoded = hdrh.HdrHistogram.decode(encode(histogram))
    head, blank, *rows, mean, maximum, buckets = hgrm(histogram).splitlines()
    assert (head.split(), blank) == (["Value", "Percentile", "TotalCount", "1/(1-Percentile)"], "")
    tops = [high for _, high in read_back(encode(histogram))]
    levels = []
    for row in rows:
        value, level, count, *inverse = row.split()
        levels.append(float(level))
        # The lowest bin up to which at least this share of all values is.
        reaches = [top for top in tops if sum(each <= top for each in values) >= (float(level) - 1e-12) * len(values)]
        assert round(float(value)) == min(reaches)
        assert int(count) == sum(each <= min(reaches) for each in values)
        assert len(inverse) == (float(level) < 1)
    assert round(float(value)) == max(tops)
    assert levels == sorted(levels)
    assert (levels[0], levels[-1]) == (0, 1)
    numbers = [float(text) for line in (mean, maximum, buckets) for text in re.findall(r"= +([\d.]+)", line)]
    expected = [decoded.get_mean_value(), decoded.get_stddev(), decoded.get_max_value(), len(values)]
    assert numbers == pytest.approx([*expected, decoded.bucket_count, decoded.sub_bucket_count], abs=0.01)


def test_a_log_has_a_tagged_line_for_each_latency(tmp_path):
    log = pytest.importorskip("hdrh.log")
    histograms = {"delivery": Histogram.of(np.arange(1000)), "total": Histogram.of(np.arange(5000))}
    (tmp_path / "run.hlog").write_text(hlog(histograms, 1_700_000_000.5, 2.5))
    reader = log.HistogramLogReader(str(tmp_path / "run.hlog"), hdrh.HdrHistogram(1, 1 << 40, 2))
    read = [reader.get_next_interval_histogram() for _ in range(3)]
    reader.close()
    assert [each and (each.get_tag(), each.get_total_count()) for each in read] == [
        ("delivery", 1000),
        ("total", 5000),
        None,
    ]
    assert read[0].get_start_time_stamp() == 1_700_000_000_500
    assert read[0].get_end_time_stamp() == 1_700_000_003_000


def test_show_writes_both_files_of_a_run(tmp_path):
    run = sim.open(long_run(tmp_path, 3000))
    files = [tmp_path / "run.hgrm", tmp_path / "run.hlog"]
    options = ["show", str(run.path), "--hgrm", str(files[0]), "--hlog", str(files[1])]
    done = CliRunner().invoke(ivsim, options)
    assert (done.exit_code, done.output.split()) == (0, [str(file) for file in files])
    assert files[0].read_text() == hgrm(run.histogram("delivery"))
    delivery = next(line for line in files[1].read_text().splitlines() if line.startswith("Tag=delivery,"))
    assert sum(read_back(delivery.rpartition(",")[2]).values()) == len(run.histogram("delivery")) > 0
    printed = CliRunner().invoke(ivsim, ["show", str(run.path), "--hgrm", "-", "--latency", "total"])
    assert printed.output == hgrm(run.histogram("total"))
