"""The ivshmem device: registers, doorbell, MSI-X or INTx, shared memory, peers.

The device is a state machine. A guest reads and writes its configuration space and its BARs; a server's messages set
its peer ID, its memory and its peers; drained eventfds interrupt it. It appends what it does to ``effects``, in order,
and calls ``ring`` for each doorbell. It handles numbers only, never a descriptor.

One BAR holds the registers, one the MSI-X table and the pending bits (only with MSI-X), one the shared memory. The
profile says which, and everything else in which devices differ (:mod:`nodes.device.profiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.device import migration
from nodes.device.effects import DeviceWarning, Effect, IntxLevel
from nodes.device.msix import Layout, Msix, Undelivered
from nodes.device.pci import COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, Bar, Capability, ConfigSpace
from nodes.device.profile import DOORBELL, INTR_MASK, INTR_STATUS, IV_POSITION, DoorbellMatch, Profile, Quirk
from nodes.device.registers import RegisterFile, Window, check_access
from nodes.device.v2.sections import Sections
from nodes.errors import GuestError, ModelledFault, RemoteProtocolError, UsageError
from nodes.peer_table import Line, PeerTable

PAGE_BYTES = 4096
PEER_LIMIT = 1 << 16


class Ivshmem:
    """One ivshmem device.

    Args:
        profile: which device it is.
        vectors: the number of own eventfds, and of MSI-X vectors where the profile has MSI-X. None: the profile's
            default.
        ring: ``ring(peer, vector)`` is called for each doorbell whose vector is connected.
        role: "peer", "master" (a migration moves its memory) or "auto" (master if its ID is 0). None: the profile's
            default.
        size_bytes: the size of the memory BAR of a device that has this as a property. None: the profile or the memory
            decides.
        on_decode: called when memory decoding is switched on or off, which changes the doorbells that reach a peer.

    Raises:
        UsageError: a number of vectors, a role or a size that the device cannot have.
    """

    # What an engine looks at after each slice of a machine has its place in the object itself, not in a dict.
    __slots__ = ("__dict__", "__weakref__", "effects", "ignored_doorbells")

    def __init__(
        self,
        profile: Profile,
        *,
        vectors: int | None = None,
        ring: Callable[[int, int], object],
        role: str | None = None,
        size_bytes: int | None = None,
        on_decode: Callable[[], object] = lambda: None,
    ) -> None:
        self.profile = profile
        self.role = profile.default_role if role is None else role
        if self.role not in profile.roles:
            raise UsageError(f"role {role!r}: expected {' or '.join(profile.roles)}")
        if vectors is None:
            vectors = profile.default_vectors
        elif profile.fixed_vectors not in (0, vectors):
            raise UsageError(f"{profile.name} always has {profile.fixed_vectors} vectors, not {vectors}")
        self.vectors = vectors if profile.server else 0
        self._ring = ring
        self.effects: list[Effect] = []
        self.ignored_doorbells = 0
        self.peers = PeerTable()
        self._on_decode = on_decode
        self.peer: int | None = None
        self.memory: memoryview | None = None
        self.sections: Sections | None = None  # only ivshmem v2 has them
        self.position_hidden = False  # set by the client of QEMU 1.1, Quirk.DESCRIPTOR_ZERO_UNMAPPED
        self.rung_doorbells = self.pended_doorbells = self.lost_doorbells = 0
        self.intx_raised = self.intx_level = False  # the pin, and the line when INTx is not disabled
        self.msix = self._make_msix(vectors) if profile.msix else None
        self.fires: list[bool] = self.msix.fires if self.msix else [False] * self.vectors
        self.config = self._make_config()
        self._decode_bit = self.config.bars[profile.registers_bar].decode
        self._decodes = self.config.command & self._decode_bit
        self.registers = self._make_registers()
        self._doorbell_offset = profile.registers.offset_of(DOORBELL)
        self._window = Window(
            profile.registers.size_bytes,
            profile.registers_rules,
            lambda offset, _: self.registers.read_word(offset),
            self._write_piece,
        )
        if size_bytes is None and profile.memory_container:
            size_bytes = profile.memory_default_bytes
        self._late_reads = profile.position_late_reads
        self._no_memory = size_bytes == 0 and profile.has(Quirk.ZERO_SIZE)
        if size_bytes is not None and not self._no_memory:
            self._add_memory_bar(size_bytes)

    def _make_registers(self) -> RegisterFile:
        return RegisterFile(
            self.profile.registers,
            reads={IV_POSITION: self._position},
            written={
                INTR_MASK: lambda _: self._update_intx(),
                INTR_STATUS: lambda _: self._update_intx(),
                DOORBELL: self._doorbell,
            },
            cleared={INTR_STATUS: self._update_intx},
        )

    def _msix_layout(self, vectors: int) -> Layout:
        return Layout.exclusive(vectors, self.profile.msix_bar, self.profile.msix_limit, self.profile.msix_pba_offset)

    def _capabilities(self) -> list[Capability]:
        return [self.msix.layout.capability(self.profile.msix_capability)] if self.msix else []

    def _make_msix(self, vectors: int) -> Msix:
        profile = self.profile
        return Msix(
            self._msix_layout(vectors),
            self.effects.append,
            masked=profile.ring_while_masked,
            disabled=profile.ring_while_disabled,
            rules=profile.msix_rules,
            function_mask=profile.function_mask,
            routed=lambda vector: not profile.unmask_needs_eventfd or self._is_connected(self.peer or 0, vector),
        )

    def _make_config(self) -> ConfigSpace:
        profile = self.profile
        config = ConfigSpace(
            profile.identity,
            capabilities=self._capabilities(),
            command_mask=profile.command_mask,
            writable_from=profile.config_writable_from,
        )
        config.preset_command(profile.command_preset)
        config.add_bar(Bar(profile.registers_bar, profile.registers.size_bytes, "registers", io=profile.registers_io))
        if self.msix:
            config.add_bar(Bar(profile.msix_bar, self.msix.layout.bar_bytes, "MSI-X table and pending bits"))
        return config

    def _add_memory_bar(self, size_bytes: int) -> None:
        wide, prefetchable = self.profile.memory_wide, self.profile.memory_prefetchable
        self.config.add_bar(Bar(self.profile.memory_bar, size_bytes, "shared memory", wide, prefetchable))

    # Accesses of the guest

    def config_read(self, offset: int, size_bytes: int) -> int:
        """Read 1, 2 or 4 bytes of configuration space.

        Raises:
            GuestError: another size, or an offset outside the 256 bytes.
        """
        return self.profile.config_misaligned.load(self.config.read, offset, size_bytes)

    def config_write(self, offset: int, size_bytes: int, value: int) -> None:
        """Write 1, 2 or 4 bytes of configuration space; sends the messages that this unmasks.

        Raises:
            GuestError: another size, or an offset outside the 256 bytes.
        """
        self.profile.config_misaligned.store(self.config.write, offset, size_bytes, value)
        self.config_changed()

    def config_changed(self) -> None:
        """Apply what configuration space says now: MSI-X control, bus master, INTx disable, memory decode."""
        if self.msix:
            self._msix_control(self.msix)
        self._update_intx()
        self._update_decode()

    def _update_decode(self) -> None:
        if self._decodes != (decodes := self.config.command & self._decode_bit):
            self._decodes = decodes
            self._on_decode()

    def _msix_control(self, msix: Msix) -> None:
        bus_master = bool(self.config.command & COMMAND_BUS_MASTER) or not self.profile.bus_master_gates
        msix.set_control(self.config.word(self.profile.msix_capability + 2), bus_master)

    def bar_read(self, bar: int, offset: int, size_bytes: int) -> int:
        """Read 1, 2, 4 or 8 bytes of a BAR, little-endian; returns 0 without memory decode and outside the BAR.

        Raises:
            GuestError: another size, or a BAR that the device lacks.
        """
        check_access(offset, size_bytes)
        self._check_bar(bar)
        if not self.config.command & self.config.bars[bar].decode:
            return 0
        if bar == self.profile.registers_bar:
            return self.profile.access_path.load(self._window.read, offset, size_bytes)
        if bar == self.profile.memory_bar:
            return 0 if self.memory is None else int.from_bytes(self.memory[offset : offset + size_bytes], "little")
        assert self.msix is not None
        return self.profile.access_path.load(self.msix.window.read, offset, size_bytes)

    def bar_write(self, bar: int, offset: int, size_bytes: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes of a BAR, little-endian; ignored without memory decode and outside the BAR.

        Raises:
            GuestError: another size, or a BAR that the device lacks.
            ModelledFault: the real device crashes here.
        """
        check_access(offset, size_bytes)
        self._check_bar(bar)
        value &= (1 << 8 * size_bytes) - 1
        if not self.config.command & self.config.bars[bar].decode:
            if bar == self.profile.registers_bar and offset <= self._doorbell_offset < offset + size_bytes:
                self.ignored_doorbells += 1
            return
        if bar == self.profile.registers_bar:
            if self.profile.doorbell_match is not DoorbellMatch.WRITE or not self._match(offset, size_bytes, value):
                self.profile.access_path.store(self._window.write, offset, size_bytes, value)
        elif bar == self.profile.memory_bar:
            self._store(offset, size_bytes, value)
        else:
            assert self.msix is not None
            self.profile.access_path.store(self.msix.window.write, offset, size_bytes, value)

    def _store(self, offset: int, size_bytes: int, value: int) -> None:
        """Take a write to the memory BAR."""
        if self.memory is not None:
            part = self.memory[offset : offset + size_bytes]
            part[:] = value.to_bytes(size_bytes, "little")[: len(part)]

    def _check_bar(self, bar: int) -> None:
        if bar not in self.config.bars:
            present = ", ".join(f"BAR{index}" for index in sorted(self.config.bars))
            raise GuestError(f"BAR{bar}: this device has {present}")

    def reset(self) -> None:
        """Reset the bus: configuration space, MSI-X and registers get their reset values; peers, ID and memory stay."""
        self.registers.reset(INTR_STATUS, *((INTR_MASK,) if self.profile.reset_clears_mask else ()))
        self._late_reads = self.profile.position_late_reads
        self.config.reset()
        if self.msix:
            control = self.profile.msix_capability + 3
            self.config.data[control] &= ~self.config.write_mask[control]
            self.msix.reset()
            self.msix.use(not self.profile.has(Quirk.RESET_DROPS_VECTORS))
        self.config_changed()

    def restored(self) -> None:
        """Continue after a load: all vectors are in use, and unmasked pending interrupts are sent."""
        if self.msix:
            self.msix.use(True)
            self._msix_control(self.msix)
        self.config.set_interrupt_status(self.intx_raised)
        self.intx_level = self.intx_raised and not self.config.command & COMMAND_INTX_DISABLE
        self._update_decode()

    def save(self) -> bytes:
        """Return the device's state as a migration carries it (`nodes.device.migration.save`).

        Raises:
            MigrationError: this kind of device is never migrated.
        """
        return migration.save(self)

    def load(self, data: bytes) -> None:
        """Set the device's state from a migration stream; only a master can (`nodes.device.migration.load`).

        Raises:
            MigrationError: the state is another device's, or this device is no master.
        """
        migration.load(self, data)

    # Registers

    def _position(self) -> int:
        has_memory = self.memory is not None or not self.profile.memory_container
        if self.peer is not None and has_memory and not (self.position_hidden or self._late_reads):
            return self.peer
        self._late_reads = max(0, self._late_reads - 1)
        return self.profile.position_before_setup

    def _write_piece(self, offset: int, size_bytes: int, value: int) -> None:
        """Take one aligned piece of a write: ring the doorbell that it matches, or write the register at its offset."""
        if self.profile.doorbell_match is not DoorbellMatch.PIECE or not self._match(offset, size_bytes, value):
            self.registers.write_word(offset & self.profile.registers_rules.write_offset_mask, value)

    def _match(self, offset: int, size_bytes: int, value: int) -> bool:
        """Ring the connected doorbell that equals this word; returns whether there is one."""
        if offset != self._doorbell_offset or size_bytes != 4:
            return False
        peer, vector = value >> 16, value & 0xFFFF
        if not (self.profile.doorbell_match.knows(peer) and self._is_connected(peer, vector)):
            return False
        self.rung_doorbells += 1
        self._ring(peer, vector)
        return True

    def _doorbell(self, value: int) -> None:
        peer, vector = value >> 16, value & ((1 << self.profile.vector_bits) - 1)
        if not self.profile.server and peer == 0 and self.profile.has(Quirk.PLAIN_DOORBELL_FAULT):
            raise ModelledFault(Quirk.PLAIN_DOORBELL_FAULT, "doorbell for peer 0 without a server: no peer table")
        if self._is_connected(peer, vector):
            self.rung_doorbells += 1
            self._ring(peer, vector)
        else:
            self.ignored_doorbells += 1

    def _is_connected(self, peer: int, vector: int) -> bool:
        return self.peers.line(peer, vector) is not None

    def _update_intx(self) -> None:
        if not self.profile.intx:
            return
        raised = bool(self.registers.values[INTR_STATUS] & self.registers.values[INTR_MASK])
        if self.msix and self.msix.enabled and not self.profile.has(Quirk.INTX_BESIDE_MSIX):
            raised = False
        self.intx_raised = raised
        self.config.set_interrupt_status(raised)
        level = raised and not self.config.command & COMMAND_INTX_DISABLE
        if level != self.intx_level:
            self.intx_level = level
            self.effects.append(IntxLevel(level))

    # Messages of the server

    @property
    def master(self) -> bool:
        """Whether a migration would move this device's memory."""
        return self.role == "master" or (self.role == "auto" and self.peer == 0)

    def set_peer(self, peer: int) -> None:
        """Set the own ID, as the server assigned it. A device without a server keeps 0.

        Raises:
            RemoteProtocolError: an ID outside 0..65535.
            UsageError: a master that is not peer 0, where the device insists (ivshmem_common_realize).
        """
        if not self.profile.server:
            return  # IVPosition reads 0
        if not 0 <= peer < PEER_LIMIT:
            raise RemoteProtocolError(f"own ID {peer}: expected 0..{PEER_LIMIT - 1}")
        if peer and self.role == "master" and self.profile.master_is_first:
            raise UsageError(f"master must connect to the server before any peers: it is peer {peer}")
        self.peer = peer

    def set_memory(self, memory: memoryview) -> None:
        """Back BAR2 with shared memory: one dimension of bytes, writable, a power of two of at least a page.

        Raises:
            RemoteProtocolError: a size that no BAR can have, or less than BAR2's.
            UsageError: memory that cannot be written.
        """
        if memory.readonly:
            raise UsageError("unable to map backing store: the shared memory cannot be written")
        if memory.format != "B" or memory.ndim != 1:
            memory = memory.cast("B")
        size = memory.nbytes
        if self._no_memory:
            self.memory = memory[:0]
            return
        if self.profile.memory_bar not in self.config.bars:
            if size < PAGE_BYTES or size & (size - 1):
                expected = f"a power of two of at least {PAGE_BYTES}"
                raise RemoteProtocolError(f"shared memory of {size} bytes: expected {expected}")
            self._add_memory_bar(size)
        bar_bytes = self.config.bars[self.profile.memory_bar].size_bytes
        if size < bar_bytes:
            raise RemoteProtocolError(f"shared memory of {size} bytes: BAR2 has {bar_bytes}")
        self.memory = memory[:bar_bytes]
        if not self.profile.server and self.peer is None:
            self.peer = 0

    def connect(self, peer: int, vector: int, line: Line = 0) -> bool:
        """Connect a vector of a peer, or of this device; returns False when it is beyond the own number of vectors.

        Raises:
            RemoteProtocolError: an ID or a vector outside 0..65535.
        """
        if not 0 <= peer < PEER_LIMIT or not 0 <= vector < PEER_LIMIT:
            raise RemoteProtocolError(f"peer {peer}, vector {vector}: expected 0..{PEER_LIMIT - 1}")
        if vector >= self.vectors:
            text = f"Too many eventfd received, device has {self.vectors} vectors"
            self.effects.append(DeviceWarning(text))
            return False
        self.peers.connect(peer, vector, line)
        return True

    def connect_next(self, peers: Sequence[int], lines: Sequence[Line]) -> None:
        """Connect the next vector of each of these peers: as `connect` one after the other, for what is in use."""
        self.peers.connect_next(peers, lines)

    def disconnect(self, peer: int) -> None:
        """Remove a peer; doorbells for it are ignored from now on."""
        self.peers.disconnect(peer)

    def unplug(self) -> None:
        """Remove the device: it releases the memory and its peers."""
        self.memory = None
        self.peers.clear()

    # Drained eventfds

    def interrupt(self, vector: int, count: int) -> None:
        """Interrupt: the eventfd of an own vector was drained and held ``count`` doorbells.

        Raises:
            GuestError: the device has no such vector.
        """
        self._check_vector(vector)
        if self.msix is None:
            self._interrupt_status(count)
        else:
            self._notify(self.msix, vector, count)

    def _check_vector(self, vector: int) -> None:
        if not 0 <= vector < self.vectors:
            raise GuestError(f"vector {vector}: the device has {self.vectors}")

    def _notify(self, msix: Msix, vector: int, count: int) -> bool:
        """Interrupt by MSI-X, or count the doorbells that do not; returns whether the message was sent."""
        fate = msix.notify(vector)
        if fate is Undelivered.LOSE:
            self.lost_doorbells += count
        elif fate is not None:
            self.pended_doorbells += count
        return fate is None

    def _interrupt_status(self, count: int) -> None:
        """Set IntrStatus, the same for every vector (ivshmem.c, ivshmem_receive).

        A status that IntrMask or the command register masks counts as pending, like an interrupt of a masked vector.
        """
        if not self.profile.intx:
            self.lost_doorbells += count
            return
        status = count & 0xFF if self.profile.has(Quirk.STATUS_LOW_BYTE) else 1
        self.registers.values[INTR_STATUS] = status
        self._update_intx()
        if not status:
            self.lost_doorbells += count  # a multiple of 256: the status is 0
        elif not self.intx_level:
            self.pended_doorbells += count
