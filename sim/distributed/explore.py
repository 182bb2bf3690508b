"""Seeds on a cluster: batches of them are jobs; the first one that breaks an invariant ends the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from nodes.errors import RunError
from sim.distributed.dask.client import DaskCluster, Done
from sim.distributed.job import Job, JobResult, collect_inputs, refusal
from sim.exit_codes import MISSED
from sim.explore import Exploration, run_seed
from sim.kernel.signals import signals_noted
from topologies import Topology

AHEAD = 2
LOOK_EVERY_S = 0.25
BATCHES_FOR_EACH = 8
BATCH_MIN, BATCH_MAX = 64, 1024
"""Each batch costs the start of a command, and its findings are known only at its end."""


class _Broken(msgspec.Struct):
    seed: int


class _Figures(msgspec.Struct):
    """What `ivsim explore --json` prints, as far as it is needed here."""

    seeds: int
    events: int
    doorbells: int
    decisions: int
    broken: list[_Broken]


def explore_on(
    cluster: DaskCluster,
    topology: Topology,
    programs: Sequence[Path],
    seeds: range,
    *,
    jobs: int = 1,
    keep_going: bool = False,
    progress: Callable[[Exploration], object] = lambda exploration: None,
    warn: Callable[[str], object] = lambda line: None,
) -> tuple[Exploration, str]:
    """Run a topology with each seed on a cluster; stop at the first that breaks an invariant, unless ``keep_going``.

    A seed that breaks an invariant is run again here, for its schedule.

    Args:
        cluster: where.
        topology: the topology; its own seed is not used.
        programs: the files that its programs are in.
        seeds: the seeds, one after the other.
        jobs: how many processes each worker uses.
        keep_going: run all seeds.
        progress: called with the sums so far, now and then.
        warn: is called with a line for the user.

    Returns:
        The sums, and the name of the signal that ended it early, "" for none.

    Raises:
        RunError: the scheduler is gone, or an invariant that a host found broken holds here.
        HostError, UsageError: a host cannot run it.
    """
    inputs = collect_inputs(topology, programs)
    options = ["--jobs", str(jobs), "--json", "--no-shrink", *(["--keep-going"] if keep_going else [])]
    if not (workers := sum(cluster.hosts().values())):
        warn(f"no worker at {cluster.title} now: waiting for one (`ivsim worker {cluster.title}`)")
    size = min(BATCH_MAX, max(BATCH_MIN, math.ceil(len(seeds) / (max(1, workers) * BATCHES_FOR_EACH))))
    batches = [seeds[at : at + size] for at in range(0, len(seeds), size)]
    found, sent = Exploration(), 0
    with signals_noted() as signalled:
        try:
            while (batches or sent) and not signalled() and not (found.broken and not keep_going):
                workers = sum(cluster.hosts().values()) if batches else workers
                while batches and sent < AHEAD * workers:
                    batch = batches.pop(0)
                    name = f"{batch[0]}..{batch[-1]}"
                    arguments = ["explore", *inputs.arguments, "--seeds", name, *options]
                    cluster.submit(name, Job(arguments, inputs.files))
                    sent += 1
                if (done := cluster.wait(LOOK_EVERY_S)) is not None:
                    sent -= 1
                    _add(found, topology, done)
                    progress(found)
        finally:
            if busy := cluster.cancel():
                warn(f"no answer that the seeds have ended on {', '.join(busy)}")
        return found, signalled()


def _add(found: Exploration, topology: Topology, done: Done) -> None:
    if done.result is None:
        raise RunError(f"seeds {done.name} cannot be run: {done.error}") from done.error
    figures = _figures(done.name, done.result)
    outcomes = []
    for broken in figures.broken:
        outcome = run_seed(topology, broken.seed)
        if outcome.broken is None:
            host = done.result.host or "a worker"
            raise RunError(
                f"seed {broken.seed} breaks an invariant on {host}, and none here: are the versions the same?"
            )
        outcomes.append(outcome)
    found.add(Exploration(figures.seeds, figures.events, figures.doorbells, figures.decisions, outcomes))


def _figures(name: str, result: JobResult) -> _Figures:
    if result.code not in (0, MISSED):
        raise refusal(f"seeds {name}", result)
    try:
        return msgspec.json.decode(result.stdout, type=_Figures)
    except msgspec.MsgspecError as error:
        raise RunError(f"seeds {name} on {result.host}: no figures: {error}") from error
