"""An ivshmem device that is a real QEMU's: each access of the guest goes to QEMU, each interrupt comes from there.

`QemuIvshmem` stands in the place of `nodes.device.ivshmem.Ivshmem`, so the same driver, the same programs and the same
accounts work on it. It keeps what a host knows of the device: the peers, the ID, where the BARs are.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Sequence

from nodes.device import driver
from nodes.device.effects import DeviceWarning
from nodes.device.ivshmem import Ivshmem
from nodes.device.msix import CAPABILITY_ID, MsixMessage
from nodes.device.pci import COMMAND, COMMAND_BUS_MASTER, COMMAND_MEMORY, Bar
from nodes.device.profile import Profile
from nodes.device.registers import check_access
from nodes.peer_table import Line
from nodes.vm import Vm
from sim.engines.qemu.machine import QemuMachine
from sim.engines.qemu.msix_state import why_no_interrupt
from sim.kernel.eventfd import EventFd, signal

# Guest memory to which vectors send their messages, 16 bytes for each: 512 KiB for each device, above the first MiB.
MESSAGES_BASE, MESSAGES_BYTES, SLOT_BYTES = 0x10_0000, 0x8_0000, 16
MESSAGE_DATA = 0xC0DE_0000
# Registers and MSI-X table below 4 GiB, the memory far above: windows that nothing else of a PC is in.
SMALL_BARS_BASE, SMALL_BARS_BYTES = 0xE000_0000, 0x10_0000
MEMORY_BARS_BYTES = 1 << 42


class QemuIvshmem(Ivshmem):
    """The device with that ``number`` of a QEMU."""

    def __init__(
        self,
        machine: QemuMachine,
        profile: Profile,
        *,
        vectors: int,
        ring: Callable[[int, int], object],
        role: str,
        on_decode: Callable[[], object],
    ) -> None:
        super().__init__(profile, vectors=vectors, ring=ring, role=role, on_decode=on_decode)
        self.fires = [False] * self.vectors  # only QEMU knows
        self._machine = machine
        self.number = machine.add_device(vectors=vectors, role=role)
        self._slot, self._relay = machine.slot(self.number), machine.relays[self.number]
        self._own: list[EventFd] = []
        self._own_readable: list[select.poll] = []
        self._told: set[str] = set()
        self._messages = MESSAGES_BASE + self.number * MESSAGES_BYTES
        self._own_peer: int | None = None  # as the server has said; the guest knows it once all memory is there
        self._own_lines: set[Line] = set()
        self._rung: dict[Line, tuple[int, EventFd]] = {}
        """By the line of a peer's vector: the doorbell's value, and the eventfd that QEMU has for it."""

    # What the guest does

    def config_read(self, offset: int, size_bytes: int) -> int:
        self.config.read(offset, size_bytes)  # raises for what no access can be
        return self._machine.qemu.config_read(self._slot, offset, size_bytes)

    def config_write(self, offset: int, size_bytes: int, value: int) -> None:
        self.config.write(offset, size_bytes, value)
        self._machine.qemu.config_write(self._slot, offset, size_bytes, value)
        self._update_decode()
        self._collect()

    def bar_read(self, bar: int, offset: int, size_bytes: int) -> int:
        address = self._address(bar, offset, size_bytes)
        return 0 if address is None else self._machine.qemu.read(address, size_bytes)

    def bar_write(self, bar: int, offset: int, size_bytes: int, value: int) -> None:
        address = self._address(bar, offset, size_bytes)
        if bar == self.profile.registers_bar and offset <= self._doorbell_offset < offset + size_bytes:
            # Decoded here, so that it is counted; a doorbell that is for a peer goes to QEMU by `ring`.
            super().bar_write(bar, offset, size_bytes, value)
        elif address is not None:
            self._machine.qemu.write(address, size_bytes, value & (1 << 8 * size_bytes) - 1)
            if self.msix is not None and bar == self.msix.layout.bar:
                self._collect()

    def _address(self, bar: int, offset: int, size_bytes: int) -> int | None:
        """The guest's address of an access; None when nothing decodes it."""
        check_access(offset, size_bytes)
        self._check_bar(bar)
        base = self.config.bar_address(bar)
        within = offset + size_bytes <= self.config.bars[bar].size_bytes
        return base + offset if base is not None and within else None

    def ring(self, line: Line) -> None:
        """Let QEMU ring the vector of a peer whose eventfd this is.

        QEMU writes an eventfd of this process, and what it has written is then rung. Were the peer's own eventfd
        QEMU's, this process could not tell whether QEMU's write was refused: the counter may fill or empty at any
        moment, and QEMU does not say.

        Raises:
            BlockingIOError: the counter is full, or QEMU has dropped the doorbell.
        """
        if line in self._own_lines:
            # These are behind an eventfd that QEMU does not have: `interrupt` counts what is in it.
            signal(line, 1)
            return
        value, eventfd = self._rung[line]
        self._relay.wait_until_read(self._machine.qemu.settle)
        base = self.config.bar_address(self.profile.registers_bar)
        assert base is not None, "a doorbell is decoded only while the BAR is mapped"
        self._machine.qemu.write(base + self._doorbell_offset, 4, value)
        if not eventfd.take():
            raise BlockingIOError
        signal(line, 1)

    def reset(self) -> None:
        self.config.reset()
        self._machine.qemu.reset()
        self._update_decode()

    def unplug(self) -> None:
        """Remove the device from QEMU, or end QEMU if that would abort it."""
        if not self._machine.is_running:
            pass  # that of another device was the reason
        elif why := self._machine.why_not_unplugged:
            self.effects.append(DeviceWarning(f"{why}: its QEMU was ended instead"))
            self._machine.close()
        else:
            self._relay.wait_until_read(self._machine.qemu.settle)
            self._machine.unplug(self.number)
        super().unplug()

    def continue_from(self, other: QemuIvshmem) -> None:
        """Know what the host knows of a device whose state this one's QEMU loads: where its BARs are."""
        self.config, self._decodes = other.config, other._decodes

    def take_over(self, other: QemuIvshmem, memory: int) -> None:
        """Serve the connection of another device: with its ID, its memory and its peers."""
        assert other.peer is not None
        self.greet(other.peer, memory)
        self.peers = other.peers
        for peer in self.peers:
            for vector in range(self.peers.vectors(peer)):
                line = self.peers.line(peer, vector)
                if line is not None and peer == other.peer:
                    self._own_lines.add(line)
                elif line is not None:
                    self._introduce(peer, vector, line)

    def place_bars(self, bars: Iterable[Bar], write: Callable[[int, int, int], object]) -> None:
        """Give the BARs their addresses, and enable memory decode and bus master."""
        base = SMALL_BARS_BASE + self.number * SMALL_BARS_BYTES
        for bar in bars:
            is_memory = bar.index == self.profile.memory_bar
            address = MEMORY_BARS_BYTES * (1 + self.number) if is_memory else base + bar.index * 0x1_0000
            write(bar.offset, 4, address & 0xFFFF_FFFF)
            if bar.wide:
                write(bar.offset + 4, 4, address >> 32)
        write(COMMAND, 2, COMMAND_MEMORY | COMMAND_BUS_MASTER)

    def message_of(self, vector: int) -> tuple[int, int]:
        """The address and the data of a vector's message: memory of the guest, in place of a processor."""
        return self._messages + SLOT_BYTES * vector, MESSAGE_DATA + vector

    # What the server says

    def greet(self, peer: int, memory: int) -> None:
        """Send QEMU what it waits for before it starts, and its own vectors."""
        self._own_peer = peer
        self._relay.greet(peer, memory)
        for _ in range(self.vectors):
            eventfd = EventFd.create()
            readable = select.poll()
            readable.register(eventfd.descriptor, select.POLLIN)
            self._own.append(eventfd)
            self._own_readable.append(readable)
            self._relay.connect(peer, eventfd.descriptor)

    def connect(self, peer: int, vector: int, line: Line = 0) -> bool:
        if not super().connect(peer, vector, line):
            return False
        if peer == self._own_peer:
            self._own_lines.add(line)
        else:
            self._introduce(peer, vector, line)
        return True

    def connect_next(self, peers: Sequence[int], lines: Sequence[Line]) -> None:
        for peer, line in zip(peers, lines, strict=True):
            self.connect(peer, self.peers.vectors(peer), line)

    def _introduce(self, peer: int, vector: int, line: Line) -> None:
        """Tell QEMU of a peer's next vector: an eventfd of this process."""
        self._own_lines.discard(line)  # of a descriptor that was closed, and is another one now
        eventfd = EventFd.create()
        self._rung[line] = peer << 16 | vector, eventfd
        self._relay.connect(peer, eventfd.descriptor)

    def disconnect(self, peer: int) -> None:
        if self.peers.vectors(peer) and peer != self._own_peer:
            self._machine.leave(self.number, peer)
            if self._machine.is_running:
                self._relay.wait_until_read(self._machine.qemu.settle)
        for vector in range(self.peers.vectors(peer)):
            line = self.peers.line(peer, vector)
            if line is not None and line in self._rung:
                self._relay.retire(self._rung.pop(line)[1])
        super().disconnect(peer)

    def close(self) -> None:
        """Close the eventfds that QEMU rings, and those that ring it."""
        for eventfd in (*self._own, *(rung_eventfd for _, rung_eventfd in self._rung.values())):
            eventfd.close()
        self._rung.clear()

    # Interrupts

    def interrupt(self, vector: int, count: int) -> None:
        self._relay.wait_until_read(self._machine.qemu.settle)
        self._own[vector].add(count)
        qemu, (address, data) = self._machine.qemu, self.message_of(vector)
        landed = 0
        while not landed:
            is_taken = not self._own_readable[vector].poll(0)
            landed = int(qemu.ask(["inb 0x80", f"readl {address:#x}"])[1], 0)
            if is_taken and not landed:  # QEMU had taken it before it was asked
                break
        if landed:
            qemu.write(address, 4, 0)
            self.effects.append(MsixMessage(vector, address, data))
        elif driver.is_pending(self, vector):
            self.pended_doorbells += count
        else:
            self.lost_doorbells += count
            self._tell_why()

    def _tell_why(self) -> None:
        """Say once why doorbells are lost: only the guest's driver could know."""
        control = driver.find_capability(self, CAPABILITY_ID)
        assert control is not None
        why = why_no_interrupt(self.config_read(COMMAND, 2), self.config_read(control + 2, 2))
        if why and why not in self._told:
            self._told.add(why)
            self.effects.append(DeviceWarning(f"a doorbell came that cannot interrupt the guest: {why}"))

    def _collect(self) -> None:
        """Vectors that were pending may have fired."""
        if not self.vectors:
            return
        qemu, size_bytes = self._machine.qemu, SLOT_BYTES * self.vectors
        text = qemu.ask([f"read {self._messages:#x} {size_bytes:#x}"])[0]
        slots = bytes.fromhex(text.removeprefix("0x"))
        if not any(slots):
            return
        qemu.fill(self._messages, size_bytes, 0)
        for vector in range(self.vectors):
            if any(slots[SLOT_BYTES * vector : SLOT_BYTES * vector + 4]):
                self.effects.append(MsixMessage(vector, *self.message_of(vector)))


class QemuVm(Vm):
    """A machine whose device is a real QEMU's. It takes the arguments of `Vm` but ``signal``, ``make_batch``."""

    def __init__(self, machine: QemuMachine, profile: Profile, **settings: object) -> None:
        self._machine = machine
        settings["signal"], settings["make_batch"] = lambda line, _count: self.real.ring(line), None
        super().__init__(profile, **settings)  # type: ignore[arg-type]  # those of Vm

    def make_device(self, profile: Profile, *, vectors: int, role: str, size_bytes: int | None) -> QemuIvshmem:
        self.real = QemuIvshmem(
            self._machine,
            profile,
            vectors=vectors,
            role=role,
            ring=self.doorbells.decoded,
            on_decode=self.doorbells.invalidate,
        )
        return self.real

    def stand_by(self, machine: QemuMachine) -> QemuIvshmem:
        """The machine continues with a device of this QEMU from now on; that of the other one is returned."""
        other, self._machine = self.real, machine
        self.make_device(other.profile, vectors=other.vectors, role=other.role, size_bytes=None)
        self.real.continue_from(other)
        self.replace(self.real)
        return other

    def take_over(self, other: QemuIvshmem, memory: int) -> None:
        """The device serves the connection of another one from now on."""
        self.real.take_over(other, memory)
        self.doorbells.replace(self.real.peers)

    def arrive_as(self, peer: int) -> None:
        """QEMU has loaded the state, and the memory is where the program knows it."""
        self.real.set_peer(peer)
        self.real.set_memory(self.guest.memory)
        self.guest.place(peer, self.guest.memory)

    def stay(self, machine: QemuMachine, device: QemuIvshmem) -> None:
        """The machine continues with the device that it had before, of this QEMU."""
        self._machine, self.real = machine, device
        self.replace(device)

    def unplug(self) -> None:
        super().unplug()
        self.settle()  # what the device has to say

    def probe(self) -> None:
        driver.probe(self.device, assign=self.real.place_bars, message=self.real.message_of)
