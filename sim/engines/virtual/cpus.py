"""The CPUs that machines share under virtual time: who runs when, and for how long."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Protocol

from sim.engines.virtual.cost_model import CostModel, make_draw
from sim.engines.virtual.loop import VirtualLoop

__all__ = ["Cpus", "Task"]


class Task(Protocol):
    """What runs on a CPU, a slice at a time.

    ``queued``: it is on its way to a CPU, or on one. ``run`` does a slice of work, which moves the clock, and returns
    whether there is more to do at once. ``slice`` is the task's own callback, which calls `Cpus.run` with it.
    """

    queued: bool
    since_ns: int
    slice: Callable[[], object]

    def run(self) -> bool: ...


class Cpus:
    """One queue for all CPUs, first come, first served. A task that does not wait loses its CPU after a time slice."""

    def __init__(self, loop: VirtualLoop, model: CostModel, seed: str) -> None:
        self._push, self._clock = loop.push, loop.clock
        self._switch_ns, self._timeslice_ns = model.switch_ns, model.timeslice_ns
        self._wake = make_draw(model.wake_ns, f"{seed}/wake")
        self._wake_busy = make_draw(model.wake_busy_ns, f"{seed}/wake_busy")
        self._free = [0] * model.cpus
        """A heap: when each CPU that no task has or awaits has become free, or will be."""
        self._waiting: deque[Task] = deque()

    def wake(self, task: Task, at_ns: int) -> None:
        """The task has something to do since ``at_ns``; it gets a CPU after what a wake-up costs."""
        if not task.queued:
            task.queued, task.since_ns = True, -1
            is_idle = self._free and self._free[0] <= at_ns
            self._push(at_ns + (self._wake() if is_idle else self._wake_busy()), task.slice)

    def wake_now(self, task: Task) -> None:
        """As `wake`, for a task whose wake-up has been paid for."""
        if not task.queued:
            task.queued, task.since_ns = True, -1
            self._push(self._clock.ns, task.slice)

    def arrive(self, task: Task) -> None:
        """As `wake_now`, and at once: this is an event of that task."""
        if not task.queued:
            task.queued, task.since_ns = True, -1
            task.slice()

    def run(self, task: Task) -> None:
        """The event of a task: it arrives at the CPUs, or does its next slice on the one that it has."""
        clock = self._clock
        if task.since_ns < 0:
            if not self._free:
                self._waiting.append(task)
                return
            free_ns = heapq.heappop(self._free)
            if free_ns > clock.ns:  # the CPU still does what another task has begun
                task.since_ns = free_ns + self._switch_ns
                self._push(task.since_ns, task.slice)
                return
            task.since_ns = clock.ns
        more = task.run()
        end_ns = clock.ns
        waiting = self._waiting
        if more:
            if not waiting or end_ns - task.since_ns < self._timeslice_ns:
                self._push(end_ns, task.slice)
                return
            waiting.append(task)
        else:
            task.queued = False
        if waiting:
            following = waiting.popleft()
            following.since_ns = end_ns + self._switch_ns
            self._push(following.since_ns, following.slice)
        else:
            heapq.heappush(self._free, end_ns)
