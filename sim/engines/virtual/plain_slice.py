"""The slice of a machine that has interrupts to take and a program to resume, and nothing else to do: nearly all are.

It does what `sim.engines.virtual.execution.Execution.step` does, in one function for all machines of a run. With very
many machines, time goes into fetching what a doorbell looks at from memory: so it looks at few objects of a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from nodes.errors import GuestError
from sim.engines.shared.failures import ProgramError
from sim.engines.virtual.cost_model import CostModel
from sim.engines.virtual.cpus import Cpus, Task
from sim.engines.virtual.loop import VirtualClock, VirtualLoop


class Running(Protocol):
    """What all machines of a run share (`sim.engines.virtual.host.VirtualHost`)."""

    announced: int
    running: object | None
    ticks: int


def make_has_more(loop: VirtualLoop, cpus: Cpus, expire_cost: Callable[[], int]) -> Callable[[Task], bool]:
    """A function that returns whether a task has more to do at once; if not, there is an event when it has.

    It raises `ProgramError` when the program has yielded something else than a time.

    Args:
        expire_cost: draws how much later than its time a machine wakes up, in nanoseconds.
    """
    clock, push, alarm, wake_now = loop.clock, loop.push, cpus.alarm, cpus.wake_now

    def has_more(task: Task) -> bool:
        now_ns, wait = clock.ns, task.wait
        if task.queue and (first_ns := task.first_ns()) is not None:
            if first_ns <= now_ns:
                return True
            push(first_ns, wake_now, task)
        if wait is None:
            return False
        if type(wait) is not int:
            raise ProgramError from GuestError(
                f"a program yields FOREVER, NOW or a time in whole nanoseconds, not {wait!r}"
            )
        if wait <= now_ns:
            return True
        if wait != task.alarm_ns:
            task.alarm_ns = wait
            push(wait + expire_cost(), alarm, task)
        return False

    return has_more


def make_plain_slice(
    host: Running,
    clock: VirtualClock,
    model: CostModel,
    handle_cost: Callable[[], int],
    has_more: Callable[[Task], bool],
) -> Callable[[Task], bool]:
    """A function that does as `Task.run` does, and returns whether there is more to do at once.

    Args:
        handle_cost: draws the cost of an interrupt, in nanoseconds.
        has_more: as `make_has_more` makes it.
    """
    drain_ns = model.drain_ns
    take_interrupts = _make_take_interrupts(clock, drain_ns, handle_cost)

    def plain_slice(task: Task) -> bool:
        if not task.is_plain or task.heard != host.announced or clock.ns >= task.stop_ns:
            return task.run()
        queue = task.queue
        host.running, host.ticks = task, 0
        try:
            if not (queue and take_interrupts(task)):
                wait = task.wait
                if type(wait) is int and wait <= clock.ns:
                    clock.ns += drain_ns
                    try:
                        task.wait = task.vm.resume(None)
                    except BaseException as error:
                        raise ProgramError from error
            more = has_more(task)
            if task.has_warned:
                task.tell_warnings()
            return more
        except Exception as error:  # whatever it is: the machine fails, not the engine
            task.fail(error)
            return False
        finally:
            host.running = None

    return plain_slice


def _make_take_interrupts(clock: VirtualClock, drain_ns: int, handle_cost: Callable[[], int]) -> Callable[[Task], bool]:
    def take_interrupts(task: Task) -> bool:
        """Drain the counters that are not empty, each with its handling; False when there was none."""
        queue, vm = task.queue, task.vm
        took = False
        for _ in range(len(queue)):
            counter = queue.pop(0)
            clock.ns = now_ns = clock.ns + drain_ns
            if counter.held or not counter:
                count = counter.drain(now_ns)
            elif now_ns >= clock.latest_ns or max(counter) <= now_ns:
                count = len(counter)
                counter.clear()
            else:
                count = counter.drain(now_ns)
                if counter:
                    queue.append(counter)
            if not count:
                continue
            took, vector = True, counter.vector
            is_fired = vm.fires[vector]
            try:
                if not is_fired:
                    task.drains.drained(vector, count, now_ns)
                task.wait = vm.deliver(vector, count)
            except BaseException as error:
                if is_fired:
                    task.drains.drained(vector, count, now_ns)
                raise ProgramError from error
            clock.ns = handled_ns = clock.ns + handle_cost()
            if is_fired:
                task.drains.record(vector, count, now_ns, handled_ns)
            else:
                task.drains.handled(handled_ns)
        return took

    return take_interrupts
