"""The warnings about the figures of a run, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sim.results.summary import Summary

DEATHS_SHOWN = 8
# A smaller share of missed doorbells does not change the percentiles.
FEW = 0.001
# Every run has some deliveries without a wake-up.
SHORT_SHARE = 0.01
# Every sender is sometimes this late.
LATE_NS = 1_000_000
# Machines that take this share of all CPUs wait for each other (or for what else the host does), and
# latencies say more about the scheduler than about the interrupt.
SATURATED = 0.6
# A hypervisor that takes more than this, of one CPU, shows in the tail.
STEAL_PERCENT = 0.5
# Preempted this often beyond what its interrupts explain, a machine has lost its CPU to other tasks.
PREEMPTED_PER_S = 100.0
# Above this share of each CPU taken by other processes, the host was not quiet.
OTHERS_PERCENT = 15.0
# Sampling takes CPU time from the processes: above this share it disturbs the measurement.
SAMPLING_PERCENT = 5.0
# Clocks that are read without a system call (clock_gettime(2), vdso(7)).
QUICK_CLOCKS = ("", "tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "riscv_clocksource")


def warnings(figures: Summary) -> Iterator[str]:
    """One sentence for each condition that changes the meaning of the figures."""
    yield from _deaths(figures)
    yield from _doorbells(figures)
    yield from _samples(figures)
    yield from _host(figures)


def _deaths(figures: Summary) -> Iterator[str]:
    for name, how in list(figures.deaths.items())[:DEATHS_SHOWN]:
        yield f"{name} died: {how}"
    if len(figures.deaths) > DEATHS_SHOWN:
        yield f"{len(figures.deaths) - DEATHS_SHOWN} more machines died"


def _doorbells(figures: Summary) -> Iterator[str]:
    if figures.settled:
        yield (
            f"{figures.settled:,} doorbells are settled: a process that died, or that is no machine of this "
            "topology, had not counted them"
        )
    if figures.guest_difference:
        more = "more" if figures.guest_difference > 0 else "fewer"
        yield f"guests say to have rung {abs(figures.guest_difference):,} doorbells {more} than came from them"
    if figures.pending_derived:
        yield "pending is what was left over: the counters were not read at the end"
    if figures.pba_pending:
        yield (
            f"of the delivered doorbells, {figures.pba_pending:,} came while their vector was masked: however many, a "
            "vector keeps one bit of them, which is one interrupt at most when it is unmasked"
        )
    if figures.dropped:
        yield f"of the delivered doorbells, the device lost {figures.dropped:,}: no interrupt was raised for them"
    # At the end of every run a few doorbells are due, and not later than others were.
    many = figures.missed > FEW * (figures.rung + figures.missed)
    if figures.missed_oldest_ns >= LATE_NS and (many or figures.missed_oldest_ns > (figures.latency_ns.lag.max or 0)):
        yield (
            f"{figures.missed:,} doorbells were due and never rung, the oldest for "
            f"{figures.missed_oldest_ns / 1e9:,.2f} s: lag and total do not have them, and read too short"
        )


def _samples(figures: Summary) -> Iterator[str]:
    if figures.unscheduled:
        names = ", ".join(name for name, group in figures.groups.items() if group.unscheduled)
        yield (
            f"closed loop or replies: {names} rang {figures.unscheduled:,} of the samples without a schedule. These "
            "have no lag, and their total counts from the ring. Such a sender rings nothing while its receiver stands "
            "still, so a standstill is one sample, whatever its length; rate_hz gives a schedule"
        )
    if figures.samples_refused or figures.drains_refused:
        yield (
            f"recordings were full: {figures.samples_refused:,} samples and {figures.drains_refused:,} "
            "drains have no stamps, the latencies stand for the time before; a larger sample_every helps"
        )
    if figures.unmatched:
        yield (
            f"{figures.unmatched:,} of {figures.samples:,} samples are without a known delivery: only lag, if any, "
            "is known of them"
        )
    if figures.overfull_drains:
        yield (
            f"{figures.overfull_drains:,} of {figures.drains:,} drains got more samples than doorbells: "
            "each came between a doorbell's time stamp and its write, and the doorbell is in the next one"
        )
    deliveries = figures.latency_ns.delivery.samples
    if figures.wake_up_baseline and figures.short_deliveries > SHORT_SHARE * deliveries:
        yield (
            f"{figures.short_deliveries:,} of {deliveries:,} deliveries took less than a quarter of a bare wake-up's "
            f"{figures.wake_up_baseline.p50_ns / 1e3:,.2f} us: either rung at a machine that was draining, and taken "
            "without a wake-up, or rung between a drain and its stamp, and in fact delivered by the next drain"
        )
    if figures.clock_source not in QUICK_CLOCKS:
        cost = f" ({figures.wake_up_baseline.clock_ns:.0f} ns a look)" if figures.wake_up_baseline else ""
        yield f"the clock is {figures.clock_source}, a slow one{cost}: every sample costs several looks at it"


def _host(figures: Summary) -> Iterator[str]:
    used = [(group.machines, group.resources) for group in figures.groups.values() if group.resources]
    busy = sum(machines * usage.cpu_percent for machines, usage in used) / 100
    preempted = sum(machines * usage.switches_involuntary_per_s for machines, usage in used)
    if figures.machines > figures.cpus and busy > SATURATED * figures.cpus:
        yield (
            f"oversubscribed: {figures.machines} machines kept {busy:.1f} of {figures.cpus} CPUs busy and "
            f"were preempted {preempted:,.0f} times a second; latencies include waiting for a CPU"
        )
    elif preempted > PREEMPTED_PER_S * figures.machines + (figures.interrupts_per_s or 0.0):
        # A sender on the CPU of its receiver may be preempted once for each interrupt.
        yield (
            f"machines were preempted {preempted:,.0f} times a second, more often than interrupted; latencies "
            "include waiting for a CPU"
        )
    yield from disturbances(figures)
    host = figures.host
    if host is not None and host.sampling_percent is not None and host.sampling_percent > SAMPLING_PERCENT:
        yield (
            f"looking at the processes took {host.sampling_percent:.1f} % of a CPU; a larger --resources-every "
            "disturbs less"
        )


def disturbances(figures: Summary) -> Iterator[str]:
    """What others have taken of the host's CPUs during the run, one sentence for each."""
    host = figures.host
    if host is None:
        return
    if host.steal_percent is not None and host.steal_percent > STEAL_PERCENT:
        yield (
            f"the hypervisor gave {host.steal_percent:.1f} % of a CPU to others while this ran (steal time); "
            "the tail may be theirs"
        )
    own = (figures.resources, figures.coordinator)
    others = host.cpu_percent - sum(usage.cpu_percent_sum or 0.0 for usage in own if usage)
    if figures.resources and others > OTHERS_PERCENT * figures.cpus:
        yield (
            f"other processes used {others:.0f} % of a CPU on this host while this ran; latencies include waiting "
            "for them"
        )
