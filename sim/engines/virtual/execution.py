"""What a machine's CPU does for its guest under virtual time: the program, the interrupts, and what both cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.guest import STEP, Guest, Program
from sim.engines.shared.delivery import make_delivery
from sim.engines.shared.failures import ProgramError
from sim.engines.virtual.cpus import Task
from sim.engines.virtual.device import VirtualDevice
from sim.engines.virtual.host import VirtualHost
from sim.engines.virtual.ready_counters import ReadyCounters


class Execution:
    """Runs the program of one machine, a slice at a time, and moves the clock by what that costs.

    Args:
        poke: is called when there may be something to do.
        task: the machine; its ``wait`` is what the program has yielded last.
    """

    __slots__ = (
        "_clock",
        "_counters",
        "_deliver",
        "_drain_ns",
        "_drained",
        "_handle_cost",
        "_handled",
        "_host",
        "_is_single",
        "_loop",
        "_poke",
        "_preempt",
        "_preempted_ns",
        "_preempted_until_ns",
        "_reorder",
        "_slow_ns",
        "_slow_until_ns",
        "_task",
        "_vm",
        "_vms",
        "flush",
        "has_begun",
    )

    def __init__(
        self,
        host: VirtualHost,
        devices: Sequence[VirtualDevice],
        counters: ReadyCounters,
        vectors: int,
        poke: Callable[[], object],
        task: Task,
        name: str,
    ) -> None:
        self._host, self._loop, self._clock = host, host.loop, host.loop.clock
        self._drain_ns, self._handle_cost = host.model.drain_ns, host.handle_cost
        self._counters, self._poke, self._task = counters, poke, task
        self._vms = tuple(device.vm for device in devices)
        self._vm, self._is_single = self._vms[0], len(self._vms) == 1
        delivery = make_delivery(devices, vectors)
        self._drained, self._deliver, self._handled, self.flush = (
            *(delivery.drained, delivery.deliver, delivery.handled, delivery.flush),
        )
        task.vm, task.drains = self._vm, delivery.drains
        if host.watcher is not None:
            self._deliver = host.watcher.delivery(self._vms, vectors, self._deliver)
        self.has_begun = False
        self._slow_ns = self._slow_until_ns = 0
        self._reorder = host.decisions.reorders(name)
        self._preempt = host.decisions.delays("preempt", name)
        self._preempted_ns = self._preempted_until_ns = 0
        if self._preempt is not None:
            self._vm.preempts = self._preempts

    def begin(self, program: Callable[[Guest], Program]) -> Callable[[Guest], Program]:
        """Start the program; returns it as a watcher lets it run.

        Raises:
            ProgramError: the program has raised; likewise below.
        """
        self.has_begun = True
        if self._host.watcher is not None:
            program = self._host.watcher.program(self._vm, program)
        try:
            self._task.wait = self._vm.start(program)
        except BaseException as error:
            raise ProgramError from error
        return program

    @property
    def is_plain(self) -> bool:
        """Whether a slice of it can be a plain one (`sim.engines.virtual.plain_slice`)."""
        is_disturbed = self._slow_ns or self._reorder is not None or self._preempt is not None
        return self.has_begun and self._is_single and not is_disturbed and self._host.watcher is None

    def delay_interrupts(self, delay_ns: int) -> None:
        """Take each interrupt so much later from now on."""
        self._slow_ns, self._slow_until_ns = delay_ns, 0

    def step(self) -> bool:
        """Take the interrupts that are there; without any, resume a program whose time has come.

        Returns:
            Whether there is more to do at once; if not, `poke` is called when there is.
        """
        clock, wait, queue = self._clock, self._task.wait, self._task.queue
        if wait == STEP:
            self._end_preemption()
        elif not (queue and self._take_interrupts()) and type(wait := self._task.wait) is int and wait <= clock.ns:
            clock.ns += self._drain_ns
            try:
                self._task.wait = self._vm.expire()
            except BaseException as error:
                raise ProgramError from error
        return self.has_more()

    def has_more(self) -> bool:
        """Whether there is more to do at once; if not, `poke` is called when there is."""
        task = self._task
        if task.wait == STEP:
            if self._preempted_ns:
                self._preempted_until_ns = self._clock.ns + self._preempted_ns
                self._loop.after(self._preempted_ns, self._poke)
                self._preempted_ns = 0
            return False
        if self._slow_ns and task.queue and task.first_ns() is not None:
            self._is_time_of_slow()
            return False
        return self._host.has_more(task)

    def _preempts(self) -> bool:
        """Whether the program is preempted at the `STEP` that it has yielded."""
        assert self._preempt is not None
        self._preempted_ns = self._preempt()
        return self._preempted_ns > 0

    def _end_preemption(self) -> None:
        """Resume the program at its `STEP` when the time has come."""
        if self._clock.ns < self._preempted_until_ns:
            return
        try:
            self._task.wait = self._vm.expire()
            for vm in self._vms:
                vm.settle()
        except BaseException as error:
            raise ProgramError from error

    def _take_interrupts(self) -> bool:
        """Drain the counters that are not empty, each with its handling; False when there was none."""
        clock, drain_ns, queue = self._clock, self._drain_ns, self._task.queue
        handle_cost, deliver = self._handle_cost, self._deliver
        drained, handled = self._drained, self._handled
        took = False
        if self._reorder is not None and len(queue) > 1:
            first = -self._reorder() % len(queue)
            queue[:] = queue[first:] + queue[:first]
        for _ in range(len(queue)):
            if not queue:  # the program has had its device removed
                break
            if self._slow_ns and not self._is_time_of_slow():
                return True
            counter = queue.pop(0)
            clock.ns = now_ns = clock.ns + drain_ns
            count = counter.drain(now_ns)
            if counter or counter.held:
                queue.append(counter)
            if not count:
                continue
            took, vector = True, counter.vector
            drained(vector, count, now_ns)
            try:
                self._task.wait = deliver(vector, count)
            except BaseException as error:
                raise ProgramError from error
            clock.ns = now_ns = clock.ns + handle_cost()
            handled(now_ns)
            if self._task.wait == STEP:
                break
        return took

    def _is_time_of_slow(self) -> bool:
        """Whether a slow machine may take the next interrupt now; if not, it may a while later."""
        if self._slow_until_ns:
            if self._slow_until_ns > self._clock.ns:
                return False
            self._slow_until_ns = 0
            return True
        self._slow_until_ns = self._clock.ns + self._slow_ns
        self._loop.after(self._slow_ns, self._poke)
        return False
