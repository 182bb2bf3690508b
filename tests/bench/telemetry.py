"""The cost of watching a storm: snapshots, pings, resources."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench.figure import Bar, Figure
from tests.bench.setting import Setting

__all__ = ["measure_telemetry"]

SHARE = Bar(0.02, 0.01)


def measure_telemetry(setting: Setting) -> Iterator[Figure]:
    """The included topology ``doorbell_storm``: the CPU time of the coordinator, as a share of that of the machines."""
    shares = []
    overrides = {"run.duration_s": str(setting.size(3.0, 0.4)), "run.warmup_s": "0.0"}
    if setting.tiny:
        overrides["machines.storm.count"] = "3"
    for _ in range(setting.size(3, 1)):
        run = setting.run("doorbell_storm", overrides=overrides, resources_every_s=setting.size(0.5, 0.1))
        (told,) = (event for event in run.events() if event["kind"] == "telemetry")
        used = run.figures.resources
        assert used is not None
        assert used.cpu_percent_sum is not None
        machines_s = used.cpu_percent_sum / 100 * run.figures.elapsed_s
        shares.append((told["spent_ms"] / 1000 / machines_s, 0.0))
    yield Figure("telemetry", "doorbell_storm: of its CPU time", "", shares, SHARE, absolute=True)
