"""The resources that the processes of a run used: from the rows of ``resources.parquet`` to one ``ProcessUse``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from sim.host.resource_row import FIRST_CPU, HOST
from sim.results.arrays import Floats
from sim.results.summary import CpuUse, HostUse, ProcessUse

SPAN_S_MIN = 0.05


def profile(table: pa.Table, machines: Sequence[int], start_ns: int, stop_ns: int) -> ProcessUse | None:
    """The resources that ``machines`` used between two moments of CLOCK_MONOTONIC; None without two rows of any.

    Machines wait for the start and stop by themselves. So the last sample before the start and the first one
    after the stop count as if taken at these moments, even on a busy host.

    CPU and switches are differences between these two, memory the largest value: a machine's peak is what has to
    fit. The time before is bring-up and is left out.
    """
    rows = _columns(table, machines, start_ns, stop_ns)
    numbers = rows["machine"]
    if len(numbers) == 0:
        return None
    starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
    ends = np.r_[starts[1:], len(numbers)] - 1
    elapsed_s = (np.minimum(rows["time_ns"][ends], stop_ns) - np.maximum(rows["time_ns"][starts], start_ns)) / 1e9
    # Two samples at nearly the same time do not show the use between them.
    measured = elapsed_s >= SPAN_S_MIN
    if not measured.any():
        return None

    def rate(name: str) -> Floats:
        used = rows[name][ends] - rows[name][starts]
        result: Floats = used[measured] / elapsed_s[measured]
        return result

    def peak(name: str) -> Floats:
        peaks = np.fmax.reduceat(rows[name], starts)
        return peaks[~np.isnan(peaks)]

    def mean_rate(name: str) -> float | None:
        known = rate(name)
        known = known[~np.isnan(known)]
        return round(float(known.mean()), 1) if len(known) else None

    user, system = 100 * rate("cpu_user_s"), 100 * rate("cpu_system_s")
    cpu, used = user + system, float(user.sum() + system.sum())
    private, pss = peak("private_bytes"), peak("pss_bytes")
    return ProcessUse(
        cpu_percent=round(float(cpu.mean()), 2),
        cpu_percent_max=round(float(cpu.max()), 2),
        cpu_percent_sum=round(float(cpu.sum()), 2),
        cpu_system_share=round(float(system.sum()) / used, 3) if used else 0.0,
        private_bytes=_mean(private),
        private_bytes_max=_max(private),
        private_bytes_sum=_sum(private, len(starts)),
        uss_bytes=_mean(peak("uss_bytes")),
        pss_bytes=_mean(pss),
        pss_bytes_sum=_sum(pss, len(starts)),
        rss_bytes=_mean(peak("rss_bytes")) or 0,
        instrument_bytes=_mean(peak("instrument_bytes")),
        switches_voluntary_per_s=mean_rate("switches_voluntary") or 0.0,
        switches_involuntary_per_s=mean_rate("switches_involuntary") or 0.0,
        faults_minor_per_s=mean_rate("faults_minor"),
        faults_major_per_s=mean_rate("faults_major"),
        descriptors_max=_max(peak("descriptors")),
        threads_max=_max(peak("threads")),
    )


def host_use(table: pa.Table, start_ns: int, stop_ns: int) -> HostUse | None:
    """The load of the host between two moments of CLOCK_MONOTONIC; None without two samples."""
    rows = _columns(table, [HOST], start_ns, stop_ns)
    percent = _percent(rows)
    if percent is None:
        return None
    loads = rows["load_1"][~np.isnan(rows["load_1"])]
    return HostUse(
        cpu_percent=round((percent("cpu_user_s") or 0.0) + (percent("cpu_system_s") or 0.0), 2),
        steal_percent=percent("steal_s"),
        load_max=round(float(loads.max()), 2) if len(loads) else None,
        pressure_cpu_percent=percent("pressure_cpu_s"),
        pressure_memory_percent=percent("pressure_memory_s"),
        pressure_io_percent=percent("pressure_io_s"),
        sampling_percent=percent("sampling_s"),
        cpus=_cpus(table, start_ns, stop_ns),
    )


def _percent(rows: dict[str, Floats]) -> Callable[..., float | None] | None:
    """A function that gives the sum of some CPU times as a share of the time of ``rows``; None for fewer than two."""
    time_ns = rows["time_ns"]
    if len(time_ns) < 2 or time_ns[-1] == time_ns[0]:
        return None

    def percent(*names: str) -> float | None:
        used = sum(float(rows[name][-1] - rows[name][0]) for name in names)
        return None if np.isnan(used) else round(100 * used / (float(time_ns[-1] - time_ns[0]) / 1e9), 2)

    return percent


def _cpus(table: pa.Table, start_ns: int, stop_ns: int) -> list[CpuUse]:
    """The load of each CPU; none without two samples."""
    found = []
    numbers = {number for number in table["machine"].unique().to_pylist() if number <= FIRST_CPU}
    for number in sorted(numbers, reverse=True):
        if (percent := _percent(_columns(table, [number], start_ns, stop_ns))) is not None:
            found.append(
                CpuUse(
                    cpu=FIRST_CPU - number,
                    busy_percent=percent("cpu_user_s", "cpu_system_s") or 0.0,
                    irq_percent=percent("irq_s") or 0.0,
                    softirq_percent=percent("softirq_s") or 0.0,
                    steal_percent=percent("steal_s") or 0.0,
                )
            )
    return found


def private_bytes(machine: Floats, uss_bytes: Floats, instrument_bytes: Floats) -> Floats:
    """The private bytes of each row without the instrument's share; NaN where either is not known.

    Only machines have such a share. One larger than the whole stands in tables of old, which have it estimated: what
    is left is not known there.
    """
    left = uss_bytes - np.where(machine < 0, 0, instrument_bytes)
    return np.where(left >= 0, left, np.nan)


def _columns(table: pa.Table, machines: Sequence[int], start_ns: int, stop_ns: int) -> dict[str, Floats]:
    """The rows of ``machines`` in that time, the last before it and the first after it, by machine and time.

    They are numbers; null is NaN.
    """
    number, time_ns = table["machine"].to_numpy(), table["time_ns"].to_numpy()
    order = np.lexsort((time_ns, number))
    order = order[np.isin(number[order], np.array(machines, dtype=number.dtype))]
    number, time_ns = number[order], time_ns[order]
    same = number[1:] == number[:-1]
    superseded = np.r_[same & (time_ns[1:] <= start_ns), False][: len(order)]
    surplus = np.r_[False, same & (time_ns[:-1] >= stop_ns)][: len(order)]
    chosen = order[~(superseded | surplus)]
    names = [name for name in table.column_names if name != "name"]
    rows = {name: table[name].cast(pa.float64()).to_numpy(zero_copy_only=False)[chosen] for name in names}
    rows["private_bytes"] = private_bytes(rows["machine"], rows["uss_bytes"], rows["instrument_bytes"])
    return rows


def _mean(column: Floats) -> int | None:
    return round(float(column.mean())) if len(column) else None


def _max(column: Floats) -> int | None:
    return int(column.max()) if len(column) else None


def _sum(column: Floats, machines: int) -> int | None:
    """The sum over ``machines``: machines without a detailed sample count like the average of the others."""
    return round(float(column.mean()) * machines) if len(column) else None
