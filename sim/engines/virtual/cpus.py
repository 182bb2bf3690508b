"""The CPUs that machines share under virtual time: which machine runs when, and for how long."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from nodes.vm import Vm
from sim.engines.shared.recorder import Drains
from sim.engines.virtual.cost_model import CostModel, make_draw
from sim.engines.virtual.counter import VirtualCounter
from sim.engines.virtual.loop import VirtualLoop


class Task(ABC):
    """What runs on a CPU, a slice at a time; and all that a doorbell of it has to look at.

    This is the first part of a machine, so that its attributes share a few lines of a CPU's cache: with very many
    machines nothing of the one whose turn it is is in there.

    Attributes:
        queued: whether it is on its way to a CPU, or on one.
        since_ns: when its time slice has begun; below 0 before it has a CPU.
        is_still, is_gone: whether a stall has taken effect; whether it has ended. Then nothing wakes it.
        is_plain: whether its next slice can be a plain one: interrupts and program, and nothing else.
        heard: how many announcements to all machines there had been when it had heard them all; -1 before.
        stop_ns: when its program is to end.
        has_warned: whether a device has warned of something that is not reported yet.
        wait: what its program has yielded last.
        alarm_ns: the time that an event of it waits for; -1 for none.
        queue: its counters that are not empty, in the order in which they became so.
        wake_delay: how much later than usual it wakes up; None for never.
        vm: its first device, whose program it runs.
        drains: store what this device receives.
    """

    __slots__ = (
        *(
            "alarm_ns",
            "drains",
            "has_warned",
            "heard",
            "is_gone",
            "is_plain",
            "is_still",
            "queue",
            "queued",
        ),
        *("since_ns", "stop_ns", "vm", "wait", "wake_delay"),
    )

    vm: Vm
    drains: Drains

    def __init__(self) -> None:
        self.queued, self.since_ns = False, -1
        self.is_still = self.is_gone = self.is_plain = self.has_warned = False
        self.wait: int | None = None
        self.alarm_ns, self.heard, self.stop_ns = -1, -1, 0
        self.queue: list[VirtualCounter] = []
        self.wake_delay: Callable[[], int] | None = None

    @abstractmethod
    def run(self) -> bool:
        """Do a slice of work, which moves the clock; returns whether there is more to do at once."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Its work has raised this."""

    @abstractmethod
    def tell_warnings(self) -> None:
        """Report what its devices have warned of."""

    @abstractmethod
    def rung(self, counter: VirtualCounter, at_ns: int) -> None:
        """A doorbell has found one of its counters empty, at that time."""

    def first_ns(self) -> int | None:
        """The time of the earliest doorbell in a counter that is waited for; None when all are empty.

        A counter in the queue can be empty: the action ``fill`` takes what a counter holds.
        """
        first_ns: int | None = None
        for counter in self.queue:
            if counter.held:
                return 0
            if counter and (first_ns is None or min(counter) < first_ns):
                first_ns = min(counter)
        if first_ns is None:
            self.queue.clear()
        return first_ns


class Cpus:
    """One queue for all CPUs, first come, first served. A task that does not wait loses its CPU after a time slice.

    Args:
        after: is called with the task after each of its events.

    Attributes:
        slice: ``slice(task)`` does the next slice of a task: `Task.run`, or what does the same for less.
        run: ``run(task)``, the event of a task: it arrives at the CPUs, or does its next slice on the one that it has.
        wake: ``wake(task, at_ns)``: it has something to do since that time, and gets a CPU after what a wake-up costs.
        alarm: ``alarm(task)``, an event of a task: a time that its program waits for may have come.
    """

    def __init__(
        self, loop: VirtualLoop, model: CostModel, seed: str, after: Callable[[Task], object] | None = None
    ) -> None:
        self._push, self._clock = loop.push, loop.clock
        self.slice: Callable[[Task], bool] = lambda task: task.run()
        self._free = [0] * model.cpus
        """A heap: when each CPU that no task has or awaits has become free, or will be."""
        self.run = run = self._make_run(model.switch_ns, model.timeslice_ns)
        if after is not None:

            def run_and_tell(task: Task) -> None:
                run(task)
                after(task)

            self.run = run_and_tell
        self.wake = self._make_wake(model, seed)
        self.alarm = self._make_alarm()

    def _make_wake(self, model: CostModel, seed: str) -> Callable[[Task, int], None]:
        free, push, clock, run = self._free, self._push, self._clock, self.run
        cost_idle = make_draw(model.wake_ns, f"{seed}/wake")
        cost_busy = make_draw(model.wake_busy_ns, f"{seed}/wake_busy")

        def wake(task: Task, at_ns: int) -> None:
            if task.queued or task.is_still or task.is_gone:
                return
            delay_ns = 0 if task.wake_delay is None else task.wake_delay()
            at_ns = max(at_ns, clock.ns) + delay_ns
            task.queued, task.since_ns = True, -1
            is_idle = free and free[0] <= at_ns
            push(at_ns + (cost_idle() if is_idle else cost_busy()), run, task)

        return wake

    def wake_now(self, task: Task) -> None:
        """As ``wake``, for a task whose wake-up has been paid for."""
        if not (task.queued or task.is_still or task.is_gone):
            task.queued, task.since_ns = True, -1
            self._push(self._clock.ns, self.run, task)

    def _make_alarm(self) -> Callable[[Task], None]:
        clock, run = self._clock, self.run

        def alarm(task: Task) -> None:
            wait = task.wait
            if wait is not None and wait <= clock.ns:
                task.alarm_ns = -1
                if not (task.queued or task.is_still or task.is_gone):
                    task.queued, task.since_ns = True, -1
                    run(task)

        return alarm

    def _make_run(self, switch_ns: int, timeslice_ns: int) -> Callable[[Task], None]:
        free, push, clock, take, give = self._free, self._push, self._clock, heapq.heappop, heapq.heappush
        waiting: deque[Task] = deque()

        def run(task: Task) -> None:
            begin_ns = clock.ns
            if task.since_ns < 0:
                if not free:
                    waiting.append(task)
                    return
                free_ns = take(free)
                if free_ns > begin_ns:  # the CPU still does what another task has begun
                    task.since_ns = free_ns + switch_ns
                    push(task.since_ns, self.run, task)
                    return
                task.since_ns = begin_ns
            more = self.slice(task)
            end_ns = clock.ns
            if end_ns > clock.latest_ns:  # noqa: PLR1730 (a call of max for each slice)
                clock.latest_ns = end_ns
            if more:
                if not waiting or end_ns - task.since_ns < timeslice_ns:
                    push(end_ns, self.run, task)
                    return
                waiting.append(task)
            else:
                task.queued = False
            if waiting:
                following = waiting.popleft()
                following.since_ns = end_ns + switch_ns
                push(following.since_ns, self.run, following)
            else:
                give(free, end_ns)

        return run
