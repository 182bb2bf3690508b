"""The benchmarks work: each is tried once with tiny sizes. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import math
import os
import re
import shutil

import pytest

from sim.kernel.qemu_program import chosen_qemu
from tests.bench.__main__ import BENCHMARKS, main, measure
from tests.bench.figure import Bar, Figure, alternate
from tests.bench.reference import NoCompilerError, find_compiler
from tests.bench.report import disturbance, header, line


@pytest.fixture
def compiler(monkeypatch):
    monkeypatch.delenv("CC", raising=False)
    try:
        find_compiler()
    except NoCompilerError:
        pytest.skip("no C compiler")


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_yields_finite_figures(name, compiler, tmp_path):
    if name == "cross-core" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    if name == "qemus" and shutil.which(chosen_qemu()) is None:
        pytest.skip("no QEMU")
    cpus = os.sched_getaffinity(0)
    told = []
    figures = measure([name], json_path=tmp_path / "bench.json", tiny=True, tell=told.append)
    assert figures
    for figure in figures:
        assert figure.benchmark == name
        assert math.isfinite(figure.value)
        assert figure.value > 0
        assert (figure.verdict in ("reached", "met", "missed")) is (figure.bar is not None)
    assert all(len(text) <= 80 for text in "\n".join(told).splitlines())
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [entry["name"] for entry in document["figures"]] == [figure.name for figure in figures]
    assert os.sched_getaffinity(0) == cpus


def test_says_what_it_needs_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert main(["--tiny"]) == 2
    assert "need a C compiler: none of cc, gcc, clang is on PATH" in capsys.readouterr().err


def test_says_which_compiler_failed(monkeypatch, capsys):
    monkeypatch.setenv("CC", "false")
    assert main(["--tiny"]) == 2
    assert "false cannot build reference.c" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "more_is_better", "verdict"),
    [
        (1.0, False, "reached"),
        (1.5, False, "met"),
        (2.5, False, "missed"),
        (2.5, True, "reached"),
        (1.5, True, "missed"),
    ],
)
def test_verdicts(value, more_is_better, verdict):
    bar = Bar(2.0, 1.0 if not more_is_better else 2.2, more_is_better)
    assert bar.verdict(value) == verdict


def test_the_value_is_the_median_of_the_ratios():
    figure = Figure("single", "made up", "ns", [(2.0, 1.0), (30.0, 10.0), (8.0, 2.0)], Bar(3.5, 2.5))
    assert (figure.value, figure.ours, figure.other, figure.verdict) == (3.0, 8.0, 2.0, "met")
    assert re.fullmatch(r"made up, ns +8\.00 +2\.00 +3\.00 +3\.50 +2\.50 met", line(figure))
    assert len(header()) < 80


def test_a_reference_that_wavers_is_told():
    steady = [Figure("single", "made up", "ns", [(400.0, other)]) for other in (240.0, 250.0)]
    assert disturbance(steady) == ""
    assert disturbance([Figure("storms", "other", "/s", [(1.0, 9.0)])]) == ""
    text = disturbance([*steady, Figure("batch", "made up", "ns", [(400.0, 290.0)])])
    assert "from 240 to 290 ns" in text
    assert all(len(part) <= 80 for part in text.splitlines())


def test_rounds_alternate():
    order = []

    def measure_one(name: str) -> float:
        order.append(name)
        return float(len(order))

    pairs = alternate(3, lambda: measure_one("ours"), lambda: measure_one("other"))
    assert order == ["ours", "other", "other", "ours", "ours", "other"]
    assert pairs == [(1.0, 2.0), (4.0, 3.0), (5.0, 6.0)]
