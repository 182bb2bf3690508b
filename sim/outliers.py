"""The end of a run at an outlier: the watch while the run lasts, and the causes at its end."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import msgspec

from sim.coordination.coordinator import Coordinator
from sim.coordination.host_history import HostHistory
from sim.coordination.outlier_watch import OutlierWatch
from sim.engines.base import RunLoop
from sim.host.kernel_trace import KernelEvent, KernelTrace
from sim.host.process_looks import page_fault_ns
from sim.kernel.closeable import Closeable
from sim.results import RunDirectory
from sim.results.analysis.outlier.causes import causes, is_explained
from sim.results.analysis.outlier.kernel_events import with_trace
from sim.results.store import files
from sim.results.store.schemas import write_kernel_events
from sim.results.summary import Outlier
from topologies import Topology
from topologies.stop_above import parse_stop_above

KEEP_NS, LIMITS_KEPT = 1_000_000_000, 7
"""Looks are kept for a second, and for so many times the limit more."""


class OutlierEnd(Closeable):
    """Ends a run as ``[run] stop_above`` says; does nothing for a topology without it. A context manager.

    ``in_real_time``: machines are processes of this host, which can be looked at.
    """

    def __init__(self, topology: Topology, directory: RunDirectory, loop: RunLoop, in_real_time: bool) -> None:
        self._directory, self._loop = directory, loop
        self._limit = parse_stop_above(topology.run.stop_above)
        self._host: HostHistory | None = None
        self._trace: KernelTrace | None = None
        self._why_untraced = ""
        self._watch: OutlierWatch | None = None
        if self._limit is not None and in_real_time:
            keep_ns = KEEP_NS + LIMITS_KEPT * self._limit.limit_ns
            self._host = HostHistory(loop.clock.now_ns, loop.clock.cpu_ns, keep_ns)
            self._trace, self._why_untraced = KernelTrace.begin()

    def close(self) -> None:
        """End the watch of the host and of its kernel."""
        if self._host is not None:
            self._host.close()
        if self._trace is not None:
            self._trace.close()

    def event(self, kind: str, **fields: Any) -> None:
        self._directory.event(kind, **fields)
        if self._watch is not None:
            self._watch.note(kind, fields)

    def watch(self, coordinator: Coordinator) -> None:
        """Watch a run that is about to begin."""
        if self._limit is not None:
            fault_ns = 0.0 if self._host is None else page_fault_ns()
            freeze = self._trace.freeze if self._trace is not None else lambda: None
            self._watch = OutlierWatch(
                self._limit,
                coordinator,
                self._loop,
                event=self.event,
                host=self._host,
                fault_ns=fault_ns,
                freeze=freeze,
            )
            self._watch.begin()

    def conclude(self) -> Outlier | None:
        """The outlier with its causes, once the run is over; the evidence is written beside the results."""
        watch = self._watch
        if watch is None or watch.outlier is None or watch.evidence is None:
            return None
        evidence, events = watch.evidence, list[KernelEvent]()
        if self._trace is not None and evidence.parts:
            events = self._trace.read(min(evidence.parts[0].begin_ns, watch.stopped_ns - KEEP_NS))
        evidence, traced = with_trace(evidence, events)
        own = [each._replace(name="the coordinator") if each.pid == os.getpid() else each for each in evidence.others]
        evidence = msgspec.structs.replace(evidence, others=own)
        found = causes(evidence, traced)
        with contextlib.suppress(OSError):  # a full disk: the outlier itself is in the summary
            files.write_json(self._directory.path / files.OUTLIER, evidence)
            if events:
                write_kernel_events(self._directory.path, events)
        told = f"{len(events):,} events of the scheduler and of interrupts" if events else self._why_untraced
        return msgspec.structs.replace(watch.outlier, causes=found, is_explained=is_explained(found), kernel_trace=told)
