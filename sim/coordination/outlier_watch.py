"""Ends a run at the first latency above its limit (``[run] stop_above``), and collects the evidence of its causes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sim.coordination.coordinated_run import CoordinatedRun
from sim.coordination.host_history import HostHistory
from sim.coordination.incarnation import Incarnation
from sim.coordination.live_samples import LiveSample, LiveSamples, handled_ns
from sim.engines.base import RunLoop
from sim.recording import Recording, header
from sim.recording.header import COUNTER_AT
from sim.recording.reader import edges_so_far, latest_drains
from sim.results.analysis.latency.histogram import BINS, bins_of, upper_edges
from sim.results.analysis.latency.latencies import QUANTILES, place_of
from sim.results.analysis.outlier.evidence import ActionSpan, Evidence, LatencyPart, MachineEvidence
from sim.results.summary import Outlier
from topologies.stop_above import StopAbove

SECOND_NS, MILLISECOND_NS = 1_000_000_000, 1_000_000
LOOK_NS_MIN, LOOK_NS_MAX, LOOK_NS_EACH = 2 * MILLISECOND_NS, 20 * MILLISECOND_NS, 50_000
START_LOOK_NS = 50 * MILLISECOND_NS
COST_SHARE = 10
OPEN_TIMES = 5
"""A doorbell that is not handled yet is waited for until it has taken so many times the limit, or a second more."""
DRAINS_KEPT = 4096
MACHINES_KEPT = 64
STOPPED = "failed"
Counts = tuple[int, int, int]

ENDED_BY = {"stall": ("resume",), "fill": ("resume",), "mask": ("unmask", "reset"), "slow": ("slow",)}
"""The actions that last, and those that end them."""
FOREVER = 1 << 62
ACTIONS_KEPT = 256


class ActionSpans:
    """The actions of the timeline on machines, and how long each lasted, by the events of a run."""

    def __init__(self) -> None:
        self._over: list[ActionSpan] = []
        self._open: dict[tuple[str, str], ActionSpan] = {}

    def note(self, now_ns: int, kind: str, fields: Mapping[str, Any]) -> None:
        """Take in an event of the run, which happens now."""
        match fields:
            case {"do": str(do), "machine": str(machine), **rest} if kind == "action" and "skipped" not in rest:
                self._act(now_ns, do, machine, rest)
            case {"machine": str(machine), "downtime_ms": float(downtime_ms)} if kind.startswith("migrat"):
                begin_ns = now_ns - round(downtime_ms * 1e6)
                text = f"{machine} migrated and stood still for {downtime_ms:.3g} ms"
                self._add(ActionSpan(machine, "migrate", begin_ns, now_ns, text))

    def between(self, begin_ns: int, end_ns: int) -> list[ActionSpan]:
        """The actions in effect during that span, in order."""
        every = [*self._over, *self._open.values()]
        return sorted(
            (action for action in every if action.begin_ns < end_ns and action.end_ns > begin_ns),
            key=lambda action: action.begin_ns,
        )

    def _act(self, now_ns: int, do: str, machine: str, rest: Mapping[str, Any]) -> None:
        for begun, ended_by in ENDED_BY.items():
            if do in ended_by and (action := self._open.pop((machine, begun), None)) is not None:
                self._add(ActionSpan(machine, begun, action.begin_ns, now_ns, action.text))
        if do in ENDED_BY and rest.get("delay_us") != 0:
            line = f" (line {rest['line']})" if rest.get("line") else ""
            text = f"{do} of {machine} by the timeline{line}"
            self._open[machine, do] = ActionSpan(machine, do, now_ns, FOREVER, text)

    def _add(self, action: ActionSpan) -> None:
        self._over = [*self._over, action][-ACTIONS_KEPT:]


class OutlierWatch:
    """Follows the samples of a run, and stops it when one of them, or a percentile of all, is above the limit.

    ``host`` remembers looks at processes; None under virtual time. ``freeze`` is called before the run ends.
    """

    def __init__(
        self,
        limit: StopAbove,
        run: CoordinatedRun,
        loop: RunLoop,
        *,
        event: Callable[..., None],
        host: HostHistory | None,
        fault_ns: float = 0.0,
        freeze: Callable[[], None] = lambda: None,
    ) -> None:
        self._limit, self._run, self._loop, self._clock = limit, run, loop, loop.clock
        self._event, self._host, self._fault_ns, self._freeze = event, host, fault_ns, freeze
        self._samples = LiveSamples(run.machines, limit.latency)
        self.actions = ActionSpans()
        self._every_ns = min(LOOK_NS_MAX, max(LOOK_NS_MIN, limit.limit_ns // 4))
        self._bins = np.zeros(BINS, np.int64)
        self._rank = dict(QUANTILES)[limit.point]
        self._worst: LiveSample | None = None
        self._counts: dict[int, list[tuple[int, Counts]]] = {}
        self._full: set[int] = set()
        self.outlier: Outlier | None = None
        """The doorbell that ended the run, without its causes."""
        self.evidence: Evidence | None = None
        self.stopped_ns = 0

    def begin(self) -> None:
        self._loop.at(self._clock.now_ns(), self._look)

    def note(self, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of the run: actions of the timeline, and migrations, explain what they do."""
        self.actions.note(self._clock.now_ns(), kind, fields)

    # Looks

    def _look(self) -> None:
        phase = self._run.phase
        if phase not in ("starting", "running") or self.outlier is not None:
            return
        begin_ns = self._clock.cpu_ns()
        if phase == "starting":
            self._loop.at(self._clock.now_ns() + START_LOOK_NS, self._look)
            return
        self._look_at_host()
        self._remember_counts()
        done = [sample for sample in self._samples.follow() if self._counts_in(sample)]
        if (found := self._beyond(done)) is not None:
            self._stop(*found)
            return
        self._warn_of_full()
        cost_ns = self._clock.cpu_ns() - begin_ns
        each_ns = LOOK_NS_EACH * len(self._run.machines.current)
        self._loop.at(self._clock.now_ns() + max(self._every_ns, each_ns, COST_SHARE * cost_ns), self._look)

    def _warn_of_full(self) -> None:
        """Say once of each machine that it has no room for further samples, which then end no run."""
        for row, receiver in self._samples.receivers.items():
            if row not in self._full and receiver.is_full:
                self._full.add(row)
                name = receiver.incarnation.rows[receiver.place].name
                text = "its recording is full: later doorbells are not held against stop_above (a higher sample_every)"
                self._event("warning", machine=name, text=text)

    def _look_at_host(self, *, at_all: bool = False) -> None:
        if self._host is not None:
            rows = {
                incarnation.rows[0].row: incarnation.live.pid if incarnation.is_running else None
                for incarnation in self._run.machines.incarnations
            }
            self._host.look(rows, at_all=at_all)

    def _remember_counts(self) -> None:
        """Note what devices have counted, so that it is known later what came in the time of one doorbell."""
        now_ns = self._clock.now_ns()
        for row, receiver in self._samples.receivers.items():
            counts = _counts(receiver.recording)
            known = self._counts.setdefault(row, [])
            if not known or known[-1][1] != counts:
                known.append((now_ns, counts))

    def _counts_in(self, sample: LiveSample) -> bool:
        """Whether a sample is measured: not in the warm-up, nor in a phase that is not measured."""
        ending = self._run.ending
        due_ns = sample.due_ns
        return due_ns >= ending.measure_start_ns and all(
            measured or not begin_ns <= due_ns < end_ns for _, begin_ns, end_ns, measured in ending.phases
        )

    # The limit

    def _beyond(self, done: list[LiveSample]) -> tuple[LiveSample, int] | None:
        """The sample at which the run ends, and what the metric has reached; None if it goes on."""
        if self._limit.point != "max":
            return self._percentile_beyond(done)
        above = [sample for sample in done if self._took_ns(sample) > self._limit.limit_ns]
        if above:
            first = min(above, key=lambda sample: sample.ends_ns(self._limit.latency)[1])
            return first, self._took_ns(first)
        now_ns = self._clock.now_ns()
        patience_ns = min(OPEN_TIMES * self._limit.limit_ns, self._limit.limit_ns + SECOND_NS)
        for sample in self._samples.waiting():
            if self._counts_in(sample) and self._took_ns(sample, now_ns) > patience_ns:
                return sample, self._took_ns(sample, now_ns)
        return None

    def _percentile_beyond(self, done: list[LiveSample]) -> tuple[LiveSample, int] | None:
        if not done:
            return None
        took = np.array([self._took_ns(sample) for sample in done], np.int64)
        np.add.at(self._bins, bins_of(took), 1)
        worst = done[int(took.argmax())]
        recent = self._worst is not None and self._took_ns(worst) <= self._took_ns(self._worst)
        if not recent or self._worst is None or self._worst.rung_ns < self._clock.now_ns() - SECOND_NS:
            self._worst = worst
        size = int(self._bins.sum())
        place = place_of(size, self._limit.point, self._rank)
        if place is None:
            return None
        reached = int(upper_edges(np.array([np.searchsorted(np.cumsum(self._bins), place + 1)]))[0])
        return (self._worst, reached) if reached > self._limit.limit_ns else None

    def _took_ns(self, sample: LiveSample, now_ns: int = 0) -> int:
        begin_ns, end_ns = sample.ends_ns(self._limit.latency)
        return max(0, (end_ns or now_ns) - begin_ns) if begin_ns else 0

    # The end

    def _stop(self, sample: LiveSample, reached_ns: int) -> None:
        """End the run: look at everything once more, and put down what is known."""
        self._freeze()
        self._look_at_host(at_all=True)
        now_ns = self._clock.now_ns()
        if self._limit.point == "max":
            reached_ns = self._took_ns(sample, now_ns)
        if sample.place >= 0 and not sample.handled_ns:
            receiver = self._samples.receivers[sample.target]
            sample.handled_ns = handled_ns(receiver.recording, sample.place)
        name = {row: its.incarnation.rows[its.place].name for row, its in self._samples.receivers.items()}
        begin_ns, end_ns = sample.ends_ns(self._limit.latency)
        self.outlier = Outlier(
            metric=self._limit.metric,
            limit_ns=self._limit.limit_ns,
            reached_ns=reached_ns,
            took_ns=self._took_ns(sample, now_ns),
            is_complete=end_ns > 0,
            source=name[sample.source],
            target=name[sample.target],
            vector=sample.vector,
            intended_ns=sample.intended_ns,
            rung_ns=sample.rung_ns,
            delivered_ns=sample.delivered_ns,
            handled_ns=sample.handled_ns,
        )
        self.evidence = self._evidence(sample, begin_ns, end_ns or now_ns, now_ns)
        self._event(
            "stopped_above",
            metric=self._limit.metric,
            limit_ns=self._limit.limit_ns,
            reached_ns=reached_ns,
            source=name[sample.source],
            target=name[sample.target],
            vector=sample.vector,
        )
        self.stopped_ns = now_ns
        self._run.stop(STOPPED, in_short(self.outlier))

    def _evidence(self, sample: LiveSample, begin_ns: int, end_ns: int, now_ns: int) -> Evidence:
        receivers = self._samples.receivers
        source, target = (receivers[row].incarnation for row in (sample.source, sample.target))
        ends = (sample.due_ns, sample.rung_ns, sample.delivered_ns or now_ns, sample.handled_ns or now_ns)
        of = {"lag": source, "delivery": target, "handling": target}
        parts = []
        for (name, its), first, last in zip(of.items(), ends, ends[1:], strict=False):
            first, last = max(first, begin_ns), min(last, end_ns)
            if last > first:
                parts.append(LatencyPart(name, its.name, first, last))
        keys = {its.rows[0].row: its for its in (source, target)}
        for its in self._run.machines.current[:MACHINES_KEPT]:
            keys.setdefault(its.rows[0].row, its)
        machines = {its.name: self._of_machine(key, its, sample, begin_ns, end_ns) for key, its in keys.items()}
        host = self._host
        return Evidence(
            parts=parts,
            machines=machines,
            actions=self.actions.between(begin_ns, end_ns),
            cpus=[] if host is None else [look for _, looks in host.cpus for look in looks],
            others=[] if host is None else host.others(begin_ns, keys),
            fault_ns=self._fault_ns,
            vector=sample.vector,
        )

    def _of_machine(
        self, key: int, its: Incarnation, sample: LiveSample, begin_ns: int, end_ns: int
    ) -> MachineEvidence:
        words = its.recordings[0].words
        drains = [
            (delivered, handled)
            for recording in its.recordings
            for _, delivered, handled in latest_drains(recording, DRAINS_KEPT).tolist()
            if handled > begin_ns or not handled or delivered >= begin_ns
        ]
        at = range(header.COLLECTIONS_AT, header.COLLECTIONS_AT + 2 * header.COLLECTIONS_KEPT, 2)
        masked, dropped = (self._counted_since(its, begin_ns, which) for which in (0, 1))
        host = self._host
        return MachineEvidence(
            pid=None if host is None else host.pid(key),
            looks=[] if host is None else host.looks(key),
            collections=sorted((words[place], words[place + 1]) for place in at if words[place]),
            drains=drains,
            throttled=(0, 0) if host is None else host.throttled(key, begin_ns, end_ns),
            masked=masked,
            dropped=dropped,
            refused=self._refused(its, sample, begin_ns),
        )

    def _counted_since(self, its: Incarnation, begin_ns: int, which: int) -> int:
        """How far one of the counts of a machine has grown since then."""
        grown = 0
        for row, recording in zip(its.rows, its.recordings, strict=True):
            known = self._counts.get(row.row, [])
            before = next((counts for time_ns, counts in reversed(known) if time_ns <= begin_ns), (0, 0, 0))
            grown += _counts(recording)[which] - before[which]
        return grown

    def _refused(self, its: Incarnation, sample: LiveSample, begin_ns: int) -> int:
        """The doorbells that the counter of the sample's vector has refused to its sender, if any since then."""
        receivers = self._samples.receivers
        if its is not receivers[sample.target].incarnation:
            return 0
        sender = receivers[sample.source]
        if not self._counted_since(sender.incarnation, begin_ns, 2):
            return 0
        key = sample.domain << 32 | sample.peer << 16 | sample.vector
        edges = edges_so_far(sender.recording)
        return int(edges[edges[:, 0] == key, 2].sum())


def _counts(recording: Recording) -> Counts:
    """Doorbells that found their vector masked, doorbells that were dropped, and rung ones that were refused."""
    words, layout = recording.words, recording.layout
    used = words[header.EDGES_USED]
    refused = sum(words[layout.edges_at + 2 : layout.edges_at + 3 * used : 3]) if used else 0
    return words[COUNTER_AT["pba_pending"]], words[COUNTER_AT["dropped"]], refused


def in_short(its: Outlier) -> str:
    at_least = "" if its.is_complete else "at least "
    one = "" if its.metric.endswith(".max") else f", the worst of the last second {its.took_ns / 1e6:.3g} ms"
    return (
        f"{its.metric} reached {at_least}{its.reached_ns / 1e6:.4g} ms, above {its.limit_ns / 1e6:g} ms{one}: "
        f"{its.source} -> {its.target}:{its.vector}"
    )
