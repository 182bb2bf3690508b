"""What things cost in a run: times that its samples and drains show, for a model of virtual time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from sim.results.arrays import Integers, Mask
from sim.results.run import Run

MEASURED_MIN = 200
"""With fewer times there is no distribution."""
SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 0.9999)
TOGETHER_NS = 20_000
"""Doorbells of a sender that are further apart were not rung one right after the other."""


@dataclass(frozen=True)
class MeasuredCosts:
    """Times in nanoseconds, one for each occasion; empty where the run does not show any.

    Attributes:
        rings: from one doorbell of a machine to its next one, without an interrupt of that machine in between.
        deliveries: from a doorbell that nothing else shared its interrupt with to its delivery.
        handlings: from a delivery to the end of its handling.
        handling_rings: how many doorbells the machine rang in each of these.
        lags: from the time for which a program waited to its doorbell.
    """

    rings: Integers
    deliveries: Integers
    handlings: Integers
    handling_rings: Integers
    lags: Integers


def measured_costs(run: Run) -> MeasuredCosts:
    """The costs that a run shows, its warm-up left out.

    Raises:
        UsageError: a table is missing or damaged.
    """
    samples, drains = run.columns, run.drains()
    order = np.lexsort((samples.rung_ns, samples.source))
    source, rung_ns = samples.source[order], samples.rung_ns[order]
    intended_ns, warmup = samples.intended_ns[order], samples.warmup[order]
    measured = ~samples.warmup
    alone = measured & (samples.count == 1) & (samples.delivered_ns > 0)
    gaps = np.diff(rung_ns)
    next_to = (source[1:] == source[:-1]) & ~warmup[1:] & (gaps <= TOGETHER_NS)
    follows = np.concatenate(([False], (source[1:] == source[:-1]) & (gaps <= TOGETHER_NS)))
    planned = ~warmup & (intended_ns > 0) & ~follows
    handlings, handling_rings = _handlings(drains, source, rung_ns, run.origin.sample_every)
    return MeasuredCosts(
        rings=gaps[next_to & ~_interrupted(drains, source, rung_ns)] if run.origin.sample_every == 1 else gaps[:0],
        deliveries=(samples.delivered_ns - samples.rung_ns)[alone],
        handlings=handlings,
        handling_rings=handling_rings,
        lags=(rung_ns - intended_ns)[planned],
    )


def _interrupted(drains: pa.Table, source: Integers, rung_ns: Integers) -> Mask:
    """Whether the machine took an interrupt between a doorbell and the next one in the table."""
    machine, delivered_ns = (
        drains[name].fill_null(0).to_numpy().astype(np.int64) for name in ("machine", "delivered_ns")
    )
    taken = np.zeros(len(source), np.int64)
    for index in np.unique(source):
        own = source == index
        taken[own] = np.searchsorted(np.sort(delivered_ns[machine == index]), rung_ns[own])
    return np.asarray(taken[1:] != taken[:-1], np.bool_)


def _handlings(drains: pa.Table, source: Integers, rung_ns: Integers, sample_every: int) -> tuple[Integers, Integers]:
    """The time of each handling, and the doorbells that the machine rang in it.

    Unless every doorbell has its time stamp, these are known only of machines that rang none.
    """
    machine, begin_ns, end_ns = (
        drains[name].fill_null(0).to_numpy().astype(np.int64) for name in ("machine", "delivered_ns", "handled_ns")
    )
    known = end_ns > 0
    if sample_every != 1:
        known &= ~np.isin(machine, source) & (sample_every > 0)
    machine, begin_ns, end_ns = machine[known], begin_ns[known], end_ns[known]
    rings = np.zeros(len(machine), np.int64)
    for index in np.unique(machine) if sample_every == 1 else ():
        own, its = machine == index, rung_ns[source == index]
        rings[own] = np.searchsorted(its, end_ns[own]) - np.searchsorted(its, begin_ns[own])
    return end_ns - begin_ns, rings
