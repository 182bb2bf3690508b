"""The benchmarks work: each is tried once with tiny sizes. How fast anything is, is not asked here."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import shutil

import pytest

from sim.kernel.qemu_program import chosen_qemu
from tests.bench.__main__ import BENCHMARKS, main, measure
from tests.bench.compare import compare, kept
from tests.bench.compare import main as compare_main
from tests.bench.figure import Bar, Figure, alternate
from tests.bench.host import describe_interpreter, describe_noise, noise
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
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.full, pytest.mark.timeout(900)] * (name == "cluster"))
        for name in BENCHMARKS
    ],
)
def test_yields_finite_figures(name, compiler, tmp_path):
    if name == "cross-core" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU")
    if name == "qemus" and shutil.which(chosen_qemu()) is None:
        pytest.skip("no QEMU")
    if name == "cluster":
        pytest.importorskip("distributed")
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
    assert figure.quartiles == (2.5, 3.5)
    assert re.fullmatch(r"made up, ns +8\.00 +2\.00 +3\.00 +0\.50 +3\.50 +2\.50 met", line(figure))
    assert len(header()) < 80


def test_a_reference_that_wavers_is_told():
    steady = [Figure("single", "made up", "ns", [(400.0, other)]) for other in (240.0, 250.0)]
    assert disturbance(steady) == ""
    assert disturbance([Figure("storms", "other", "/s", [(1.0, 9.0)])]) == ""
    text = disturbance([*steady, Figure("batch", "made up", "ns", [(400.0, 290.0)])])
    assert "from 240 to 290 ns" in text
    assert all(len(part) <= 80 for part in text.splitlines())


@pytest.mark.parametrize(
    ("prefix", "variables", "told"),
    [
        (
            "/usr",
            {"CONFIG_ARGS": "'--enable-optimizations' '--with-lto'", "CFLAGS": "-g -O2"},
            "Debian's build, PGO, LTO, -O2",
        ),
        (
            "/usr",
            {"PGO_PROF_GEN_FLAG": "-fprofile-generate", "PGO_PROF_USE_FLAG": "", "CFLAGS": "-O2"},
            "Debian's build, PGO, LTO not told, -O2",
        ),
        ("/home/x/.pyenv/versions/3.11.7", {"OPT": "-O3 -Wall"}, "a pyenv build, no PGO, no LTO, -O3"),
        ("/opt/python", {"CFLAGS": "-flto", "Py_DEBUG": 1}, "the /opt/python build, no PGO, LTO, a debug build"),
    ],
)
def test_the_build_of_the_interpreter_is_named(prefix, variables, told, tmp_path):
    release = tmp_path / "os-release"
    release.write_text('PRETTY_NAME="Debian GNU/Linux 12"\nNAME="Debian GNU/Linux"\n')
    said = describe_interpreter(variables.get, prefix, release)
    assert said == f"{platform.python_implementation()} {platform.python_version()}, {told}"


def test_a_host_that_is_not_quiet_is_refused_unless_one_insists(monkeypatch, capsys, compiler, tmp_path):
    monkeypatch.setattr("tests.bench.__main__.noise", lambda: (0.5, 0.1))
    monkeypatch.setattr("tests.bench.__main__.BENCHMARKS", {"single": lambda setting: iter(())})
    assert main(["--only", "single"]) == 3
    told = capsys.readouterr().err
    assert "other processes use 50% of its CPU time and its hypervisor takes 10% of it" in told
    assert main(["--only", "single", "--insist", "--keep", str(tmp_path)]) == 0
    assert "not quiet" in capsys.readouterr().out
    [document] = [json.loads(path.read_text()) for path in kept(tmp_path)]
    assert (document["quiet"], document["interpreter"]) == (False, describe_interpreter())


def test_noise_is_what_others_use_and_the_hypervisor_takes(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 0 50 1000 0 0 0 10 0 0\n")

    def later(seconds):
        stat.write_text("cpu  110 2 54 1076 0 1 3 14 0 0\n")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.bench.host.time.sleep", later)
        assert noise(1.0, stat) == (0.2, 0.04)
    assert describe_noise(0.01, 0.0) == ""


def result(value, spread, *, name="made up", more_is_better=False, quiet=True):
    figure = Figure("single", name, "ns", [(value + by, 1.0) for by in (-spread, 0, spread)], Bar(2, 1, more_is_better))
    about = {
        "interpreter": "CPython",
        "cpu": "a CPU",
        "quiet": quiet,
        "noise": "" if quiet else "this host is not quiet",
    }
    about |= {"time": "2026-01-02T03:04:05+00:00", "kernel": "6.1", "compiler": "cc"}
    return about | {"figures": [figure.plain()]}


@pytest.mark.parametrize(
    ("old", "new", "more_is_better", "said"),
    [(2.0, 1.5, False, "better"), (1.5, 2.0, False, "worse"), (2.0, 1.5, True, "worse"), (2.0, 2.05, False, "")],
)
def test_two_results_are_compared_by_their_quartiles(old, new, more_is_better, said):
    before, after = (result(value, 0.1, more_is_better=more_is_better) for value in (old, new))
    assert re.search(rf"single: made up .*\) +{new:g} \(.*\) ?{said}$", [*compare(before, after)][3])


def test_figures_of_one_result_only_are_shown():
    lines = "\n".join(compare(result(1.0, 0.1, name="gone"), result(1.0, 0.1, name="new", quiet=False)))
    assert re.search(r"single: new +- ", lines)
    assert re.search(r"single: gone .* -$", lines, re.MULTILINE)
    assert "NOT QUIET" in lines


def test_the_comparison_takes_the_last_two_that_are_kept_and_prints_the_last_as_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tests.bench.compare.KEPT", tmp_path)
    assert compare_main([]) == 2
    for number, value in enumerate((3.0, 1.0, 2.0)):
        (tmp_path / f"2026010{number}T000000Z.json").write_text(json.dumps(result(value, 0.1)))
    assert compare_main([]) == 0
    assert re.search(r"1 \(.*2 \(.*worse", capsys.readouterr().out)
    assert compare_main(["--table"]) == 0
    assert "| single | made up | 2 | 1.95 - 2.05 | 2 | 1 | met |" in capsys.readouterr().out


def test_rounds_alternate():
    order = []

    def measure_one(name: str) -> float:
        order.append(name)
        return float(len(order))

    pairs = alternate(3, lambda: measure_one("ours"), lambda: measure_one("other"))
    assert order == ["ours", "other", "other", "ours", "ours", "other"]
    assert pairs == [(1.0, 2.0), (4.0, 3.0), (5.0, 6.0)]
