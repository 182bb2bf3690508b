"""The sentences beside the tables of a run: the same in terminal, notebook and HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from sim.results import Run
from sim.results.analysis.latency.intervals import FEWEST, SLICES
from sim.results.summary import Summary
from sim.views import rows
from sim.views.units import human_count, human_ns


def setting(figures: Summary) -> str:
    """How many machines ran for how long, with which seed."""
    ready = "" if figures.ready_s is None else f", all ready after {figures.ready_s:.2f} s"
    hosts = f" of {len(figures.parts)} hosts" if figures.parts else ""
    return (
        f"{figures.machines} machines on {figures.cpus} CPUs{hosts}{ready}; ran {figures.elapsed_s:.2f} s, the "
        f"first {min(figures.warmup_s, figures.elapsed_s):g} s of it as warm-up; seed {figures.seed}"
    )


def context(figures: Summary) -> Iterator[tuple[str, str]]:
    """The conditions of the figures, each with its name: the legend, the wake-up baseline, the host, the cost."""
    if any(rows.TOO_FEW in row for row in rows.latencies(figures).rows):
        yield rows.TOO_FEW, "too few samples for that percentile"
    if figures.latency_ns.delivery.p50 is not None and not figures.latency_ns.delivery.intervals:
        yield "no 95 % CI", f"drains in fewer than {FEWEST} of {SLICES} slices of the measured time"
    if its := figures.wake_up_baseline:
        times = ", ".join(f"its {name} {human_count(times)} times that" for name, times in its.times_baseline.items())
        yield (
            "wake-up baseline",
            f"a bare wake-up takes {human_ns(its.p50_ns)} here (p99 {human_ns(its.p99_ns)}; {its.placement}), "
            f"reading the clock {human_ns(its.clock_ns)}{'; delivery has ' + times if times else ''}",
        )
    if figures.cpu_ns_per_doorbell is not None:
        cost = human_ns(figures.cpu_ns_per_doorbell)
        yield "cost", f"{cost} of CPU time for each doorbell rung, all machines together"
    if figures.host:
        yield "host", _host(figures)


def _host(figures: Summary) -> str:
    host = figures.host
    assert host is not None
    facts = [f"{host.cpu_percent:.0f} % of {figures.cpus} CPUs in use"] if host.cpu_percent else []
    facts += [f"{host.steal_percent:.1f} % taken by the hypervisor"] if host.steal_percent else []
    facts += [f"load {host.load_max:g}"] if host.load_max is not None else []
    pressures = (("CPUs", "cpu"), ("memory", "memory"), ("disks", "io"))
    waits = [(name, getattr(host, f"pressure_{field}_percent")) for name, field in pressures]
    waited = ", ".join(f"{name} {share:.0f} %" for name, share in waits if share and share >= 0.5)
    facts += [f"of the time, tasks waited for {waited}"] if waited else []
    facts += [f"sampling took {host.sampling_percent:.1f} % of a CPU"] if host.sampling_percent is not None else []
    return "; ".join(facts)


def outlier(figures: Summary) -> Iterator[str]:
    """The doorbell that ended the run, in parts, and its causes; nothing for a run that ended otherwise."""
    if (its := figures.outlier) is None:
        return
    at_least = "" if its.is_complete else "at least "
    parts = [("lag", its.intended_ns, its.rung_ns), ("delivery", its.rung_ns, its.delivered_ns)]
    parts += [("handling", its.delivered_ns, its.handled_ns)]
    known = ", ".join(f"{name} {human_ns(end - begin)}" for name, begin, end in parts if begin and end)
    missing = "" if its.handled_ns else "not handled yet" if its.delivered_ns else "not delivered yet"
    told = "; ".join(filter(None, (known, missing)))
    yield f"outlier: {its.source} -> {its.target}:{its.vector} took {at_least}{human_ns(its.took_ns)} ({told})"
    for kind, share, _, text in rows.outlier(figures).rows:
        yield f"{share:>6}  {kind}: {text}"
    if its.kernel_trace:
        yield f"kernel trace: {its.kernel_trace}"


def migration_reasons(figures: Summary, most: int = rows.MIGRATIONS_SHOWN) -> Iterator[str]:
    """Why machines did not migrate, once for each reason; which were handed over; how many rows are not shown."""
    names: dict[tuple[str, str], dict[str, None]] = {}
    for migration in figures.migrations:
        if migration.reason:
            names.setdefault((migration.verdict, migration.reason), {})[migration.machine] = None
        elif migration.hand_over and migration.verdict == "moved":
            names.setdefault(("handed over, connection and ID", ""), {})[migration.machine] = None
    for (verdict, reason), machines in names.items():
        few = [*machines][:3]
        more = f" and {len(machines) - len(few)} more" if len(machines) > len(few) else ""
        yield f"{verdict}: {', '.join(few)}{more}" + (f": {reason}" if reason else "")
    unseen = len(rows.alike(figures)) - most
    if unseen > 0:
        yield f"{unseen:,} more outcomes of migrations stand in summary.json"


def counted(run: Run) -> Iterator[str]:
    """The statistics of programs, summed over the machines of each group; latencies stand in their table."""
    group_of = {machine["name"]: machine["group"] for machine in run.machines}
    sums: dict[str, Counter[str]] = {}
    for machine, values in run.figures.statistics.items():
        if machine in group_of:
            names = [name.replace(" ", "_") for name in rows.own_latencies(values)]
            shown = {key: value for key, value in values.items() if not _is_of(key, names)}
            sums.setdefault(group_of[machine], Counter()).update(shown)
    for group, total in sums.items():
        yield f"{group} counted: " + ", ".join(f"{name} {value:,.10g}" for name, value in total.items())


def _is_of(key: str, latencies: Iterable[str]) -> bool:
    return any(key in (f"{name}_samples", *(f"{name}_{point}_us" for point in rows.OWN_POINTS)) for name in latencies)


def warnings(run: Run) -> list[str]:
    """Everything that a reader of the figures has to know: about the figures, then what is missing or damaged."""
    return list(dict.fromkeys([*run.warnings, *run.problems]))
