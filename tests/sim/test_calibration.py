"""sim.calibration: the costs of a model are found again in a run that was made with it."""

from __future__ import annotations

import json
import shutil
import tomllib

import msgspec
import pytest
from click.testing import CliRunner

import sim
from nodes.errors import UsageError
from sim.calibration import as_toml, calibrate
from sim.commands.calibrate import calibrate as command
from sim.engines.virtual.cost_model import CostModel, load_model
from sim.results.store.opening import open as open_run


def measured(folder, topology, **overrides):
    """A run under virtual time that says it was one of processes."""
    settings = {"run.engine": "virtual", "run.sample_every": "1", "run.warmup_s": "0.0", **overrides}
    run = sim.run(topology, runs=folder, overrides=settings, resources_every_s=0)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["engine"] == "virtual"
    manifest["engine"] = "process"
    (run.path / "manifest.json").write_text(json.dumps(manifest))
    return open_run(run.path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [
        measured(folder, "ping_pong", **{"run.duration_s": "0.3"}),
        measured(folder, "open_loop_latency", **{"run.duration_s": "1.0", "timeline": "[]"}),
        measured(folder, "doorbell_storm", **{"machines.storm.count": "4", "run.duration_s": "0.02"}),
        measured(
            folder,
            "doorbell_storm",
            **{"machines.storm.count": "4", "run.duration_s": "0.3", "run.sample_every": "64"},
        ),
    ]


def test_the_costs_of_the_model_are_found_again(runs):
    found, model = calibrate(runs), load_model()
    assert set(found.read) == {"ring_ns", "burst_ring_ns", "handle_ns", "wake_ns", "expire_ns"}
    assert found.model.ring_ns == model.ring_ns
    # A storm makes the distance of its time stamps up to a tenth longer, so that each of its edges has its turn.
    assert found.model.burst_ring_ns == pytest.approx(model.burst_ring_ns, rel=0.1)
    for name in ("handle_ns", "wake_ns", "expire_ns"):
        for share in (0.1, 0.5, 0.9):
            ours, theirs = (getattr(each, name).at(share) for each in (found.model, model))
            assert ours == pytest.approx(theirs, rel=0.15, abs=200), (name, share)
    assert found.model.drain_ns == model.drain_ns
    assert "Ping and echo" in found.model.source


def test_handling_is_not_read_off_machines_whose_doorbells_have_no_time_stamps(tmp_path):
    sampled = measured(tmp_path, "ping_pong", **{"run.duration_s": "0.3", "run.sample_every": "16"})
    assert set(calibrate([sampled]).read) == {"wake_ns"}


def test_the_file_is_the_model(runs):
    found = calibrate(runs)
    assert msgspec.convert(tomllib.loads(as_toml(found)), CostModel) == found.model


def test_the_command_writes_a_model_that_a_run_takes(runs, tmp_path):
    model = tmp_path / "host.toml"
    told = CliRunner().invoke(command, [*(str(run.path) for run in runs), "-o", str(model)])
    assert (told.exit_code, told.output) == (0, "")
    settings = {"run.engine": "virtual", "run.duration_s": "0.01", "run.warmup_s": "0.0", "run.cost_model": str(model)}
    assert sim.run("ping_pong", runs=tmp_path, overrides=settings, resources_every_s=0).status == "finished"


def test_a_quiet_run_leaves_no_doubt(runs):
    assert calibrate(runs).doubts == ()


def test_a_round_trip_is_no_distance_of_two_doorbells(runs):
    """The doorbells of a ping are few microseconds apart, too: with an interrupt in between."""
    model = load_model()
    assert calibrate([runs[0]]).read.keys() == {"handle_ns", "wake_ns"}
    assert calibrate([runs[1], runs[0], runs[2]]).model.ring_ns == model.ring_ns


def test_a_cost_that_comes_out_as_nothing_is_told(runs):
    """What is taken off the times is longer than they are: the figure says of how many, and what was taken off."""
    base = msgspec.structs.replace(load_model(), drain_ns=1_000_000)
    found = calibrate(runs, base)
    assert found.model.wake_ns.at(0.5) == 0
    assert any(doubt.startswith("burst_ring_ns is 0") for doubt in found.doubts)
    (told,) = (doubt for doubt in found.doubts if doubt.startswith("wake_ns"))
    assert f"0 in 100% of {found.read['wake_ns']:,} times" in told
    assert f"ring_ns and drain_ns ({1_000_000 + found.model.ring_ns:,} ns)" in told
    assert f"# {told}" in as_toml(found).splitlines()
    assert msgspec.convert(tomllib.loads(as_toml(found)), CostModel) == found.model


def test_a_run_on_a_busy_host_is_told(runs, tmp_path):
    """Other processes, and wake-ups far from a bare one: the costs read off that run, its title, and the figures."""
    busy = tmp_path / "busy"
    shutil.copytree(runs[0].path, busy)
    summary = json.loads((busy / "summary.json").read_text())
    summary["host"] = {"cpu_percent": 180.0, "steal_percent": 7.5}
    summary["wake_up_baseline"] = {"count": 900, "p50_ns": 100, "p99_ns": 200, "placement": "", "clock_ns": 40.0}
    (busy / "summary.json").write_text(json.dumps(summary))
    told = CliRunner().invoke(command, [str(busy), str(runs[2].path)])
    assert told.exit_code == 0
    warned = [line for line in told.stderr.splitlines() if line.startswith("ivsim: warning: ")]
    assert any("wake_ns, handle_ns, of 'Ping and echo" in line and "7.5 % of a CPU" in line for line in warned)
    assert any("a bare wake-up took 0.10 us" in line for line in warned)
    assert all(f"# {line.removeprefix('ivsim: warning: ')}" in told.stdout for line in warned)


def test_a_virtual_run_is_refused(tmp_path):
    settings = {"run.engine": "virtual", "run.duration_s": "0.01", "run.warmup_s": "0.0"}
    with pytest.raises(UsageError, match="a run of the virtual engine shows the costs of its model only"):
        calibrate([sim.run("ping_pong", runs=tmp_path, overrides=settings, resources_every_s=0)])


def test_the_default_model_names_the_runs_that_it_was_read_off():
    assert "read off runs of: Sixteen machines storm each other, Ping and echo" in load_model().source
