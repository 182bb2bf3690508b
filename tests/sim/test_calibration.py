"""sim.calibration: the costs of a model are found again in a run that was made with it."""

from __future__ import annotations

import json
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
    ]


def test_the_costs_of_the_model_are_found_again(runs):
    found, model = calibrate(runs), load_model()
    assert set(found.read) == {"ring_ns", "handle_ns", "wake_ns", "expire_ns"}
    assert found.model.ring_ns == model.ring_ns
    for name in ("handle_ns", "wake_ns", "expire_ns"):
        for share in (0.1, 0.5, 0.9):
            ours, theirs = (getattr(each, name).at(share) for each in (found.model, model))
            assert ours == pytest.approx(theirs, rel=0.15, abs=200), (name, share)
    assert found.model.drain_ns == model.drain_ns
    assert "Ping and echo" in found.model.source


def test_the_file_is_the_model(runs):
    found = calibrate(runs)
    assert msgspec.convert(tomllib.loads(as_toml(found)), CostModel) == found.model


def test_the_command_writes_a_model_that_a_run_takes(runs, tmp_path):
    model = tmp_path / "host.toml"
    told = CliRunner().invoke(command, [*(str(run.path) for run in runs), "-o", str(model)])
    assert (told.exit_code, told.output) == (0, "")
    settings = {"run.engine": "virtual", "run.duration_s": "0.01", "run.warmup_s": "0.0", "run.cost_model": str(model)}
    assert sim.run("ping_pong", runs=tmp_path, overrides=settings, resources_every_s=0).status == "finished"


def test_a_virtual_run_is_refused(tmp_path):
    settings = {"run.engine": "virtual", "run.duration_s": "0.01", "run.warmup_s": "0.0"}
    with pytest.raises(UsageError, match="a run of the virtual engine shows the costs of its model only"):
        calibrate([sim.run("ping_pong", runs=tmp_path, overrides=settings, resources_every_s=0)])


def test_the_default_model_names_the_runs_that_it_was_read_off():
    assert "read off runs of: Sixteen machines storm each other, Ping and echo" in load_model().source
