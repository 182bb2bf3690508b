"""The cost model of virtual time, read off real runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np

from nodes.errors import UsageError
from sim.engines.virtual.cost_model import CostModel, Distribution, load_model
from sim.results.analysis.warnings import disturbances
from sim.results.arrays import Floats, Integers, Mask
from sim.results.run import Run
from topologies.language.document import quoted

MEASURED_MIN = 200
"""With fewer times there is no distribution."""
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999)
SPARSE = 64
"""So few of the doorbells of a burst have time stamps that these hardly slow it down."""
TOGETHER_NS = 20_000
"""Doorbells of a sender that are further apart were not rung one right after the other."""
NOTHING_SHARE = 0.05
WAKE_FACTOR = 4.0
"""A machine wakes up in 1.0 to 2.5 times what a bare wake-up takes on a quiet host."""
SURE = 10
"""A quantile needs so many times beyond it."""


class Calibration(msgspec.Struct, frozen=True):
    """A cost model that was read off runs.

    Attributes:
        model: the model.
        read: how many times each of its costs was seen in the runs. Others are of the base.
        doubts: why a cost may be wrong, in words.
    """

    model: CostModel
    read: dict[str, int]
    doubts: tuple[str, ...] = ()


def calibrate(runs: Sequence[Run], base: CostModel | None = None) -> Calibration:
    """A cost model from runs of real processes.

    ``ring_ns`` and ``burst_ring_ns`` are read off the run that shows them most often; ``handle_ns``, ``wake_ns`` and
    ``expire_ns`` off the first run that shows them, ``cpus`` off the first run. A run shows ``wake_ns`` if it had no
    more machines than the host has CPUs: in others the machines wait for each other. What no run shows is that of
    ``base``, by default the shipped model.

    Raises:
        UsageError: a run is of the virtual engine, or damaged; or no run shows anything.
    """
    model = base or load_model()
    costs = [(run, measured_costs(run)) for run in runs]
    read: dict[str, int] = {}
    found: dict[str, Any] = {"cpus": runs[0].origin.host.cpus}
    doubts: list[str] = []
    used: dict[str, Run] = {}
    ring_ns, drain_ns = model.ring_ns, model.drain_ns
    ringing, rings = max(((run, its.rings) for run, its in costs), key=lambda each: len(each[1]))
    if len(rings) >= MEASURED_MIN:
        found["ring_ns"], read["ring_ns"], used["ring_ns"] = (ring_ns := int(np.median(rings))), len(rings), ringing
    ringing, bursts = max(((run, its.bursts) for run, its in costs), key=lambda each: len(each[1]))
    if len(bursts) >= MEASURED_MIN:
        # One of these doorbells is the first of a burst, and before a burst the program looks for interrupts.
        further_ns = (bursts - ring_ns - drain_ns) / (ringing.origin.sample_every - 1)
        found["burst_ring_ns"], read["burst_ring_ns"] = max(0, round(np.median(further_ns))), len(bursts)
        used["burst_ring_ns"] = ringing
        doubts += _impossible("burst_ring_ns", further_ns, ring_ns, drain_ns)
    for run, its in costs:
        alone = its.deliveries if len(run.machines) <= run.origin.host.cpus else its.deliveries[:0]
        times: dict[str, Integers] = {
            "wake_ns": alone - ring_ns - drain_ns,
            "handle_ns": its.handlings - ring_ns * its.handling_rings,
            "expire_ns": its.lags - drain_ns,
        }
        for name, seen in times.items():
            if name not in read and len(seen) >= MEASURED_MIN:
                found[name], read[name], used[name] = _distribution(seen), len(seen), run
                doubts += _impossible(name, seen, ring_ns, drain_ns)
    if not read:
        raise UsageError(f"the runs show no costs: each needs {MEASURED_MIN} doorbells after the warm-up")
    host = runs[0].origin.host
    titles = ", ".join(dict.fromkeys(run.origin.title for run in runs))
    source = (
        f"{', '.join(sorted(read))} read off runs of: {titles} ({runs[0].origin.started[:10]}; {host.cpu_model}, "
        f"{host.cpus} CPUs, Linux {host.kernel}); the others are those of: {model.source}"
    )
    model = msgspec.structs.replace(model, source=source, **found)
    return Calibration(model, read, tuple(doubts + list(_disturbances(model, used))))


def as_toml(calibration: Calibration) -> str:
    """The model as a file for ``[run] cost_model``."""
    lines = [f"# {doubt}" for doubt in calibration.doubts]
    lines.append(f"source = {quoted(calibration.model.source)}")
    for name in CostModel.__struct_fields__[1:]:
        value = getattr(calibration.model, name)
        seen = f"  # {calibration.read[name]} times" if name in calibration.read else ""
        if isinstance(value, Distribution):
            pairs = ", ".join(f"[{share:g}, {cost}]" for share, cost in value.quantiles)
            lines.append(f"{name}.quantiles = [{pairs}]{seen}")
        else:
            lines.append(f"{name} = {value}{seen}")
    return "\n".join(lines) + "\n"


def _impossible(name: str, times_ns: Integers | Floats, ring_ns: int, drain_ns: int) -> Iterator[str]:
    """A cost that comes out as 0 is none: what was taken off the times is longer than they were."""
    share = float(np.mean(times_ns <= 0))
    if share > NOTHING_SHARE:
        taken_off = {
            "burst_ring_ns": f"ring_ns and drain_ns ({ring_ns + drain_ns:,} ns)",
            "wake_ns": f"ring_ns and drain_ns ({ring_ns + drain_ns:,} ns)",
            "handle_ns": f"ring_ns ({ring_ns:,} ns) for each doorbell in it",
            "expire_ns": f"drain_ns ({drain_ns:,} ns)",
        }[name]
        yield (
            f"{name} is 0 in {share:.0%} of {len(times_ns):,} times: these took less than {taken_off}, which is taken "
            "off them. Check that cost, or measure again when nothing else runs"
        )


def _disturbances(model: CostModel, used: Mapping[str, Run]) -> Iterator[str]:
    """What else ran while the costs were measured."""
    for run in {id(run): run for run in used.values()}.values():
        names = ", ".join(name for name, its in used.items() if its is run)
        for reason in disturbances(run.figures):
            yield f"{names}, of {run.origin.title!r}: {reason}. Measure again when nothing else runs"
    baseline = used["wake_ns"].figures.wake_up_baseline if "wake_ns" in used else None
    median_ns = model.wake_ns.at(0.5)
    if baseline is not None and not baseline.p50_ns / WAKE_FACTOR <= median_ns <= baseline.p50_ns * WAKE_FACTOR:
        yield (
            f"the median of wake_ns is {median_ns / 1e3:,.2f} us, and beside that run a bare wake-up took "
            f"{baseline.p50_ns / 1e3:,.2f} us: machines were awake already, or waited for a CPU. Measure again when "
            "nothing else runs, with two machines that ring in turn (ping_pong)"
        )


def _distribution(times_ns: Integers) -> Distribution:
    """The quantiles that so many times give. Beyond the last of them the tail is cut: one stall is no cost."""
    shares = [share for share in SHARES if len(times_ns) * (1 - share) >= SURE]
    costs = np.quantile(np.maximum(times_ns, 0), shares)
    return Distribution(tuple((share, math.floor(cost)) for share, cost in zip(shares, costs, strict=True)))


# What a run shows


class DrainTimes(NamedTuple):
    """The drains of a run as columns of one length; ``handled_ns`` is 0 if the program never handled it."""

    machine: Integers
    delivered_ns: Integers
    handled_ns: Integers


@dataclass(frozen=True)
class MeasuredCosts:
    """Times in nanoseconds, one for each occasion; empty where the run does not show any.

    Attributes:
        rings: from one doorbell of a machine to its next one, without an interrupt of that machine in between.
        bursts: the same in storms that time-stamp one doorbell in ``sample_every``: from one of these to the next.
        deliveries: from a doorbell that nothing else shared its interrupt with to its delivery.
        handlings: from a delivery to the end of its handling.
        handling_rings: how many doorbells the machine rang in each of these.
        lags: from the time for which a program waited to its doorbell.
    """

    rings: Integers
    bursts: Integers
    deliveries: Integers
    handlings: Integers
    handling_rings: Integers
    lags: Integers


def measured_costs(run: Run) -> MeasuredCosts:
    """The costs that a run shows, its warm-up left out.

    Raises:
        UsageError: it is of the virtual engine, or a table is missing or damaged.
    """
    if run.origin.engine != "process":
        raise UsageError(f"{run.path}: a run of the {run.origin.engine} engine shows the costs of its model only")
    samples, table = run.columns, run.drains()
    names = ("machine", "delivered_ns", "handled_ns")
    drains = DrainTimes(*(table[name].fill_null(0).to_numpy().astype(np.int64) for name in names))
    order = np.lexsort((samples.rung_ns, samples.source))
    source, rung_ns = samples.source[order], samples.rung_ns[order]
    intended_ns, warmup = samples.intended_ns[order], samples.warmup[order]
    measured = ~samples.warmup
    alone = measured & (samples.count == 1) & (samples.delivered_ns > 0)
    gaps = np.diff(rung_ns)
    next_to = (source[1:] == source[:-1]) & ~warmup[1:] & (gaps <= TOGETHER_NS)
    follows = np.concatenate(([False], (source[1:] == source[:-1]) & (gaps <= TOGETHER_NS)))
    planned = ~warmup & (intended_ns > 0) & ~follows
    every, uninterrupted = run.origin.sample_every, ~_interrupted(drains, source, rung_ns)
    handlings, handling_rings = _handlings(drains, source, rung_ns, every)
    return MeasuredCosts(
        rings=gaps[next_to & uninterrupted] if every == 1 else gaps[:0],
        bursts=gaps[_in_bursts(run, source, intended_ns, warmup) & uninterrupted],
        deliveries=(samples.delivered_ns - samples.rung_ns)[alone],
        handlings=handlings,
        handling_rings=handling_rings,
        lags=(rung_ns - intended_ns)[planned],
    )


def _in_bursts(run: Run, source: Integers, intended_ns: Integers, warmup: Mask) -> Mask:
    """Whether a doorbell and the next one in the table are of one `storm` that rings as fast as it can.

    One in ``sample_every`` of its doorbells is in the table.
    """
    storms = {group.name for group in run.origin.groups if group.program == "storm"}
    rows = [machine.index for machine in run.origin.machines if machine.group in storms]
    at_will = np.isin(source, rows) & (intended_ns == 0) & ~warmup & (run.origin.sample_every >= SPARSE)
    return np.asarray(at_will[1:] & at_will[:-1] & (source[1:] == source[:-1]), np.bool_)


def _interrupted(drains: DrainTimes, source: Integers, rung_ns: Integers) -> Mask:
    """Whether the machine took an interrupt between a doorbell and the next one in the table."""
    taken = np.zeros(len(source), np.int64)
    for index in np.unique(source):
        own = source == index
        taken[own] = np.searchsorted(np.sort(drains.delivered_ns[drains.machine == index]), rung_ns[own])
    return np.asarray(taken[1:] != taken[:-1], np.bool_)


def _handlings(drains: DrainTimes, source: Integers, rung_ns: Integers, sample_every: int) -> tuple[Integers, Integers]:
    """The time of each handling, and the doorbells that the machine rang in it.

    Unless every doorbell has its time stamp, these are known only of machines that rang none.
    """
    machine, begin_ns, end_ns = drains
    known = end_ns > 0
    if sample_every != 1:
        known &= ~np.isin(machine, source) & (sample_every > 0)
    machine, begin_ns, end_ns = machine[known], begin_ns[known], end_ns[known]
    rings = np.zeros(len(machine), np.int64)
    for index in np.unique(machine) if sample_every == 1 else ():
        own, its = machine == index, rung_ns[source == index]
        rings[own] = np.searchsorted(its, end_ns[own]) - np.searchsorted(its, begin_ns[own])
    return end_ns - begin_ns, rings
