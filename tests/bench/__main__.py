"""``python -m tests.bench``: all benchmarks, or those named on the command line."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.bench.analysis import measure_analysis
from tests.bench.bringup import measure_bringup
from tests.bench.cluster import measure_cluster
from tests.bench.doorbells import measure_batch, measure_single
from tests.bench.figure import Figure
from tests.bench.greetings import measure_greetings
from tests.bench.host import describe_interpreter, describe_noise, noise
from tests.bench.messages import measure_messages
from tests.bench.placement import allowed_cpus
from tests.bench.qemus import measure_qemus
from tests.bench.reference import NoCompilerError, built_reference
from tests.bench.report import disturbance, header, line, write_json
from tests.bench.sampling import measure_sampling
from tests.bench.scale import measure_scale
from tests.bench.setting import Setting
from tests.bench.storms import measure_storms
from tests.bench.telemetry import measure_telemetry
from tests.bench.virtual import measure_virtual
from tests.bench.wakes import measure_cross_core, measure_same_core

__all__ = ["BENCHMARKS", "main", "measure"]

BENCHMARKS: dict[str, Callable[[Setting], Iterator[Figure]]] = {
    "single": measure_single,
    "batch": measure_batch,
    "sampling": measure_sampling,
    "messages": measure_messages,
    "greetings": measure_greetings,
    "same-core": measure_same_core,
    "cross-core": measure_cross_core,
    "storms": measure_storms,
    "bringup": measure_bringup,
    "telemetry": measure_telemetry,
    "virtual": measure_virtual,
    "scale": measure_scale,
    "qemus": measure_qemus,
    "analysis": measure_analysis,
    "cluster": measure_cluster,
}
TITLES = {
    "single": "One doorbell through guest, device and table / C write",
    "batch": "One doorbell of a batch / C write",
    "sampling": "One interrupt, from ring to handler, as the instrument sees it / without",
    "messages": "One message of the server / C sendmsg and recvmsg",
    "greetings": "Until all know all / a server in C that greets one after the other",
    "same-core": "A round trip of two machines on one core / two processes in C",
    "cross-core": "A round trip of two machines on two cores / two processes in C",
    "storms": "All ring all on one core, per second of CPU / as many processes in C",
    "telemetry": "Looking at a storm while it lasts (absolute: a share)",
    "virtual": "Doorbells under virtual time, per second of CPU / SimPy on the same traffic",
    "analysis": "Ten million samples (absolute: no reference)",
    "scale": "Very many machines under virtual time (absolute: no reference)",
    "bringup": "Sixty-four machines (absolute: no reference)",
    "cluster": "Runs as tasks of workers on this host / one after the other",
    "qemus": "Simulated machines / as many real QEMUs without a guest",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 2 when there is no C compiler, 3 when the host is not quiet."""
    options = _parse(arguments)
    told = "" if options.tiny else describe_noise(*noise())
    if told and not options.insist:
        print(f"tests.bench: {told}. Repeat it when nothing else runs, or use --insist", file=sys.stderr)
        return 3
    path = options.json
    if path is None and options.keep is not None:
        path = options.keep / f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}.json"
    try:
        measure(
            options.only or list(BENCHMARKS),
            json_path=path,
            disturbed_by=told,
            cpu=options.cpu,
            tiny=options.tiny,
            tell=lambda text: print(text, flush=True),
        )
    except NoCompilerError as error:
        print(f"tests.bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def measure(
    names: Sequence[str],
    *,
    json_path: Path | None = None,
    cpu: int | None = None,
    tiny: bool = False,
    disturbed_by: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> list[Figure]:
    """Run these benchmarks and print each figure as it comes; the JSON is written even if one fails."""
    cpus = allowed_cpus()
    cpu = cpus[-1] if cpu is None else cpu
    other_cpu = next((other for other in cpus if other != cpu), None)
    figures: list[Figure] = []
    with built_reference() as reference, tempfile.TemporaryDirectory(prefix="ivsim-bench-") as folder:
        setting = Setting(reference, cpu, other_cpu, Path(folder), tiny)
        cpus_used = f"CPU {cpu}" + (f" and {other_cpu}" if other_cpu is not None else " only")
        tell(describe_interpreter())
        tell(f"{cpus_used}; load {os.getloadavg()[0]:.1f}")
        if disturbed_by:
            tell(f"! {disturbed_by}")
        tell(reference.compiler[:80])
        tell(header())
        try:
            for name in names:
                tell(f"\n{TITLES[name]}")
                for figure in BENCHMARKS[name](setting):
                    figures.append(figure)
                    tell(line(figure))
            if disturbance(figures):
                tell(f"\n{disturbance(figures)}")
        finally:
            if json_path is not None:
                write_json(json_path, setting, figures, disturbed_by)
    return figures


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure how fast the simulator is, compared with C."
    )
    parser.add_argument("--insist", action="store_true", help="measure also where others use the CPUs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the JSON there, named by the time")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all rounds of all figures there")
    parser.add_argument(
        "--only", action="append", choices=list(BENCHMARKS), metavar="NAME", help=f"of {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--cpu", type=int, choices=allowed_cpus(), help="the CPU to pin to (the last one)")
    parser.add_argument("--tiny", action="store_true", help="try every part once; the figures mean nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
