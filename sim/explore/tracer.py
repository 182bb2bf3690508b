"""Tells every event of a run in a line: for a schedule that is replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from nodes.bursts import LoopBatch, one_by_one
from nodes.guest import FOREVER, STEP, Interrupt
from sim.engines.virtual.chaos import Decision, Decisions
from sim.engines.virtual.engine import VirtualEngine
from sim.engines.virtual.machine import VirtualMachine
from sim.explore.state import RunState

WORD_BYTES = 8
BLOCK_BYTES = 4096
WORDS_SHOWN = 12
QUIET_EVENTS = {"statistics", "telemetry"}


class Tracer:
    """Tells what machines, their programs and chaos do. ``tell(line)`` gets each line.

    Args:
        engine: the engine, before it makes machines: doorbells are told from then on.
        state: for the time.
        decisions: told as they are taken.
    """

    def __init__(
        self, engine: VirtualEngine, state: RunState, decisions: Decisions, tell: Callable[[str], object]
    ) -> None:
        self._host, self._state, self._tell = engine.host, state, tell
        self._memory: dict[int, bytes] = {}
        self._signal = signal = self._host.signal

        def ring(line: int, count: int) -> None:
            signal(line, count)
            self._say(self._running(), f"rings {self._owner(line)}")

        self._host.signal = ring
        self._host.make_batch = partial(LoopBatch, signal_all=one_by_one(ring))
        taken = decisions.on_taken

        def take(decision: Decision) -> None:
            taken(decision)
            self._say("chaos", str(decision))

        decisions.on_taken = take

    def waits(self, wait: int | None) -> None:
        match wait:
            case int() if wait == STEP:
                text = "is at a STEP"
            case int():
                until_us = (wait - self._state.start_ns) / 1e3
                text = f"waits for an interrupt or until {until_us:.1f} us" if wait else "takes what has arrived"
            case _:
                text = "waits for an interrupt" if wait is FOREVER else f"yields {wait!r}"
        self._say(self._running(), text)

    def resumes(self, interrupt: Interrupt | None) -> None:
        if interrupt is None:
            self._say(self._running(), "goes on")
        else:
            at = f"vector {interrupt.vector}" + f" of device {interrupt.device}" * bool(interrupt.device)
            self._say(self._running(), f"is interrupted: {at}, {interrupt.doorbells} doorbells")

    def after(self, machine: VirtualMachine) -> None:
        """An event of a machine is over: what it has stored."""
        for number, server in enumerate(self._host.servers):
            now, before = server.memory, self._memory.get(number)
            if before is None:
                self._memory[number] = bytes(now)
            elif changes := list(_changes(before, now)):
                shown = ", ".join(f"[{at:#x}] {old:#x} -> {new:#x}" for at, old, new in changes[:WORDS_SHOWN])
                more = f" and {len(changes) - WORDS_SHOWN} more" if len(changes) > WORDS_SHOWN else ""
                self._say(machine.devices[0].name, f"stores {shown}{more}")
                self._memory[number] = bytes(now)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind not in QUIET_EVENTS:
            told = ", ".join(f"{key} {value}" for key, value in fields.items() if value not in (None, ""))
            self._say("run", f"{kind.replace('_', ' ')}: {told}" if told else kind.replace("_", " "))

    def _say(self, who: str, text: str) -> None:
        time = f"{self._state.time_ns / 1e3:12.1f} us" if self._state.start_ns else " " * 10 + "start"
        self._tell(f"{time}  {who}: {text}")

    def _running(self) -> str:
        running = self._host.running
        return running.devices[0].name if isinstance(running, VirtualMachine) else "?"

    def _owner(self, line: int) -> str:
        """The vector that a line belongs to."""
        counter = self._host.counter(line)
        for number, server in enumerate(self._host.servers):
            for client in server.clients():
                if counter in client.eventfds:
                    machine = client.link.machine
                    name = machine.devices[0].name if isinstance(machine, VirtualMachine) else str(client.peer)
                    return f"{name}:{client.eventfds.index(counter)}" + f" in domain {number}" * bool(number)
        return f"line {line}"


def _changes(before: bytes, now: memoryview) -> Iterator[tuple[int, int, int]]:
    """(offset in bytes, value before, value now) of each word that differs."""
    for block in range(0, len(before), BLOCK_BYTES):
        if before[block : block + BLOCK_BYTES] == now[block : block + BLOCK_BYTES]:
            continue
        for at in range(block, block + BLOCK_BYTES, WORD_BYTES):
            old, new = (int.from_bytes(content[at : at + WORD_BYTES], "little") for content in (before, now))
            if old != new:
                yield at, old, new
