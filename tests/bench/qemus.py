"""Simulated machines against as many real QEMUs without a guest, on the same server: what each costs."""

from __future__ import annotations

from collections.abc import Iterator

from sim.results import Run
from tests.bench.figure import Bar, Figure, alternate
from tests.bench.setting import Setting

__all__ = ["measure_qemus"]

READY = Bar(0.9, 0.5)
MEMORY = Bar(0.5, 0.3)
DOORBELLS = Bar(10.0, 50.0, more_is_better=True)
MEBIBYTE = 1 << 20


def measure_qemus(setting: Setting) -> Iterator[Figure]:
    """The included topology ``storm_64``, all of one kind, in turn; memory of a machine, for QEMUs that of the QEMU."""
    count = setting.size(64, 2)
    seconds = setting.size(2.0, 0.3)
    ready, memory, doorbells = [], [], []

    def run(kind: str) -> float:
        done = setting.run(
            "storm_64",
            overrides={
                "machines.storm.count": str(count),
                "machines.storm.kind": kind,
                "run.duration_s": str(seconds),
                "run.warmup_s": "0.0",
            },
            resources_every_s=0.1,
        )
        measured[kind] = done
        return done.figures.ready_s or 0.0

    measured: dict[str, Run] = {}
    for _ in range(setting.size(3, 1)):
        ready += alternate(1, lambda: run("simulated"), lambda: run("qemu"))
        both = [measured[kind].figures for kind in ("simulated", "qemu")]
        used = [figures.groups["storm"].resources for figures in both]
        private = [((its.private_bytes if its else 0) or 0) / MEBIBYTE for its in used]
        rates = [figures.doorbells_per_s or 0.0 for figures in both]
        memory += [(private[0], private[1])] if all(private) else []
        doorbells += [(rates[0], rates[1])] if all(rates) else []
    yield Figure("qemus", f"{count} machines: all Ready after", "s", ready, READY)
    if memory:  # a short run on a busy host may end before memory is sampled
        yield Figure("qemus", f"{count} machines: private, each", "MiB", memory, MEMORY)
    if doorbells:
        yield Figure("qemus", f"{count} machines: doorbells", "/s", doorbells, DOORBELLS)
