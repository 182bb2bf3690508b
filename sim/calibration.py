"""The cost model of virtual time, read off real runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from nodes.errors import UsageError
from sim.engines.virtual.cost_model import CostModel, Distribution, load_model
from sim.results.analysis.costs import MEASURED_MIN, SHARES, MeasuredCosts, measured_costs
from sim.results.run import Run
from topologies.language.document import quoted

__all__ = ["Calibration", "as_toml", "calibrate"]

Integers = npt.NDArray[np.int64]

SURE = 10
"""A quantile needs so many times beyond it."""


class Calibration(msgspec.Struct, frozen=True):
    """A cost model, and ``read``: how many times each of its costs was seen in the runs. Others are of the base."""

    model: CostModel
    read: dict[str, int]


def calibrate(runs: Sequence[Run], base: CostModel | None = None) -> Calibration:
    """A cost model from runs of real processes.

    ``ring_ns``, ``handle_ns``, ``wake_ns`` and ``expire_ns`` are read off the first run that shows them, ``cpus`` off
    the first run. A run shows ``wake_ns`` if it had no more machines than the host has CPUs: in others the machines
    wait for each other. What no run shows is that of ``base``, by default the shipped model.

    Raises:
        UsageError: a run is of the virtual engine, or damaged; or no run shows anything.
    """
    model = base or load_model()
    costs = [(run, _measured(run)) for run in runs]
    read: dict[str, int] = {}
    found: dict[str, object] = {"cpus": runs[0].origin.host.cpus}
    ring_ns, drain_ns = model.ring_ns, model.drain_ns
    for _, its in costs:
        if "ring_ns" not in read and len(its.rings) >= MEASURED_MIN:
            found["ring_ns"] = ring_ns = int(np.median(its.rings))
            read["ring_ns"] = len(its.rings)
    for run, its in costs:
        alone = its.deliveries if len(run.machines) <= run.origin.host.cpus else its.deliveries[:0]
        times: dict[str, Integers] = {
            "wake_ns": alone - ring_ns - drain_ns,
            "handle_ns": its.handlings - ring_ns * its.handling_rings,
            "expire_ns": its.lags - drain_ns,
        }
        for name, seen in times.items():
            if name not in read and len(seen) >= MEASURED_MIN:
                found[name], read[name] = _distribution(seen), len(seen)
    if not read:
        raise UsageError(f"the runs show no costs: each needs {MEASURED_MIN} doorbells after the warm-up")
    host = runs[0].origin.host
    titles = ", ".join(dict.fromkeys(run.origin.title for run in runs))
    source = (
        f"{', '.join(sorted(read))} read off runs of: {titles} ({runs[0].origin.started[:10]}; {host.cpu_model}, "
        f"{host.cpus} CPUs, Linux {host.kernel}); the others are those of: {model.source}"
    )
    return Calibration(msgspec.structs.replace(model, source=source, **found), read)


def as_toml(calibration: Calibration) -> str:
    """The model as a file for ``[run] cost_model``."""
    lines = [f"source = {quoted(calibration.model.source)}"]
    for name in CostModel.__struct_fields__[1:]:
        value = getattr(calibration.model, name)
        seen = f"  # {calibration.read[name]} times" if name in calibration.read else ""
        if isinstance(value, Distribution):
            pairs = ", ".join(f"[{share:g}, {cost}]" for share, cost in value.quantiles)
            lines.append(f"{name}.quantiles = [{pairs}]{seen}")
        else:
            lines.append(f"{name} = {value}{seen}")
    return "\n".join(lines) + "\n"


def _measured(run: Run) -> MeasuredCosts:
    if run.origin.engine != "process":
        raise UsageError(f"{run.path}: a run of the {run.origin.engine} engine shows the costs of its model only")
    return measured_costs(run)


def _distribution(times_ns: Integers) -> Distribution:
    """The quantiles that so many times give. Beyond the last of them the tail is cut: one stall is no cost."""
    shares = [share for share in SHARES if len(times_ns) * (1 - share) >= SURE]
    costs = np.quantile(np.maximum(times_ns, 0), shares)
    return Distribution(tuple((share, math.floor(cost)) for share, cost in zip(shares, costs, strict=True)))
