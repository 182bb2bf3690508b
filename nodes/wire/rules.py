"""The rules that a server can violate, and the reaction of the device: data, each row with its source."""

from __future__ import annotations

from dataclasses import dataclass

from nodes.qemu_versions import QemuVersion, by_version
from nodes.wire.protocol import PEERS_MAX, VERSION

PAGE_BYTES = 4096
QEMU_10, QEMU_11 = QemuVersion(10, 0), QemuVersion(11, 1)
MALFORMED = "a malformed server and QEMU 7.2.22, 10.0.13 and 11.1.3 (tests/golden/malformed*.json: {})"


@dataclass(frozen=True)
class Rule:
    """One rule that a server can violate.

    Attributes:
        expected: what the rule asks for.
        qemu: what QEMU 7.2 does when the rule is violated.
        source: where that was observed.
        ends: whether the device ends or hangs then.
        seed: what the device of 2012 does, where it differs (rows of tests/golden/seed_rows.toml).
        changes: what newer QEMUs do instead, each from a version on.
    """

    expected: str
    qemu: str
    source: str
    ends: bool = False
    seed: str = ""
    changes: tuple[tuple[QemuVersion, str], ...] = ()

    def outcome(self, version: QemuVersion) -> str:
        """What QEMU of ``version`` does when the rule is violated."""
        return by_version(version, self.qemu, *self.changes)


RULES: dict[str, Rule] = {
    "version-with-descriptor": Rule(
        "a version alone",
        "exits with 1: server sent invalid version message",
        MALFORMED.format("version 0 with an fd"),
        ends=True,
    ),
    "version": Rule(
        f"protocol version {VERSION}",
        "exits with 1: server sent version N, expecting 0",
        MALFORMED.format("version 1"),
        ends=True,
    ),
    "refused": Rule(
        f"protocol version {VERSION}; so `ivsim serve` refuses a client: there are too many, or no ID or descriptor "
        "is left",
        "exits with 1: server sent version -87, expecting 0; a server that only closed would leave it hanging",
        "this server and QEMU 7.2.22 (tests/qemu/test_server_scale.py: test_a_qemu_that_is_refused_prints_why)",
        ends=True,
    ),
    "id": Rule(
        f"the client's own ID, 0..{PEERS_MAX - 1}, alone",
        "exits with 1: server sent invalid ID message",
        MALFORMED.format("own id 65536; shm before id; pre-2.5 protocol"),
        ends=True,
        seed="takes any number alone that it has not seen for its ID; below -1 it writes before its table "
        "(rows 59, 60)",
    ),
    "memory-without-descriptor": Rule(
        "-1 with the descriptor of the memory",
        "exits with 1: can't determine size of shared memory sent by server: Bad file descriptor",
        MALFORMED.format("shm message without fd"),
        ends=True,
        seed="indexes its table of peers at -1 (row 64)",
        changes=((QEMU_11, "exits with 1: server didn't provide fd with shared memory message"),),
    ),
    "memory-empty": Rule(
        f"memory of at least {PAGE_BYTES} bytes",
        "exits with 1: memory size 0x0 must be equal to or larger than page size 0x1000",
        MALFORMED.format("shm size 0"),
        ends=True,
        seed="exits with 255: it is smaller than the device's size (row 67)",
    ),
    "not-memory": Rule(
        "-1 with memory: a memfd, a segment of /dev/shm, a file",
        "exits with 1: memory size 0x0 must be equal to or larger than page size 0x1000",
        MALFORMED.format("eventfd passed as shm; /dev/null passed as shm"),
        ends=True,
        seed="exits with 255: it is smaller than the device's size (row 67)",
    ),
    "memory-not-pages": Rule(
        "memory of whole pages",
        "exits with 1: backing store size does not match 'size' option",
        MALFORMED.format("shm size 1; shm size 6000"),
        ends=True,
        changes=(
            (
                QEMU_10,
                "exits with 1: ivshmem.bar2 backing store size is too small for 'size' option plus 'offset' option 0x0",
            ),
        ),
    ),
    "memory-not-power-of-two": Rule(
        "memory whose size is a power of two, as that of every PCI region",
        "dies of SIGABRT: pci_register_bar: Assertion `is_power_of_2(size)' failed",
        MALFORMED.format("shm size 3145728"),
        ends=True,
    ),
    "memory-read-only": Rule(
        "memory that can be written",
        "exits with 1: unable to map backing store for guest RAM: Permission denied",
        MALFORMED.format("read-only file as shm"),
        ends=True,
    ),
    "memory-again": Rule(
        "the shared memory once",
        "says on stderr: server sent unexpected shared memory message, and goes on",
        MALFORMED.format("rt: second shm message"),
        seed="maps it over the first (row 68)",
    ),
    "memory-again-without-descriptor": Rule(
        "the shared memory once, and never -1 alone",
        "says on stderr: server sent unexpected shared memory message, and goes on",
        MALFORMED.format("rt: second shm message without fd"),
        seed="indexes its table of peers at -1 (row 64)",
        changes=((QEMU_11, "says on stderr: server didn't provide fd with shared memory message, and goes on"),),
    ),
    "number-in-greeting": Rule(
        f"-1 or an ID, 0..{PEERS_MAX - 1}",
        "exits with 1: server sent invalid message N",
        MALFORMED.format("invalid message -2 during setup"),
        ends=True,
        seed="does not check: above, its table grows without end, below -1 it writes before it (row 59)",
    ),
    "number": Rule(
        f"-1 or an ID, 0..{PEERS_MAX - 1}",
        "says on stderr: server sent invalid message N, and goes on",
        MALFORMED.format("rt: invalid message -2; rt: id INT64_MIN"),
        seed="does not check: above, its table grows without end, below -1 it writes before it (row 59)",
    ),
    "own-vector-before-memory": Rule(
        "the client's own eventfds after the shared memory",
        "dies of SIGSEGV (TCG); with KVM it accepts them",
        MALFORMED.format("peers before shm (out of order)"),
        ends=True,
        seed="accepts any order (row 76)",
    ),
    "own-leave-in-greeting": Rule(
        "other IDs than the client's own to leave",
        "exits with 1: invalid peer N",
        MALFORMED.format("disconnect of own id during setup"),
        ends=True,
    ),
    "own-leave": Rule(
        "other IDs than the client's own to leave",
        "says on stderr: invalid peer N, and goes on",
        MALFORMED.format("rt: own id again, no fd"),
    ),
    "leave-unknown": Rule(
        "only IDs that were announced to leave",
        "says nothing, but frees that peer's entry: if the ID leaves or joins later, its heap is corrupted",
        MALFORMED.format("rt: disconnect unknown id 7") + " and a closer look with ID 7 twice",
        seed="takes it for its own new ID (rows 60, 62)",
    ),
    "leave-twice": Rule(
        "each ID to leave once",
        "dies of SIGABRT: free(): double free detected",
        MALFORMED.format("rt: disconnect twice"),
        ends=True,
        seed="frees the peer's array twice (row 90)",
    ),
    "id-again": Rule(
        "an ID that has left never to come back: today's QEMU keeps a pointer to what it freed",
        "its heap is corrupted; it dies of SIGABRT then or later",
        MALFORMED.format("rt: connect, disconnect, reconnect same id"),
        ends=True,
        seed="accepts it",
    ),
    "too-many-vectors": Rule(
        "no more eventfds of a peer than the device has vectors",
        "says on stderr: Too many eventfd received, closes it and leaves it blocking for all peers",
        MALFORMED.format("rt: too many vectors for a peer"),
        seed="writes behind the peer's array: heap overflow (row 72)",
    ),
    "not-an-eventfd": Rule(
        "an eventfd",
        "rings into it without a word (TCG); with KVM dies of SIGABRT: error adding ioeventfd",
        MALFORMED.format("rt: memfd passed as eventfd"),
    ),
    "two-descriptors": Rule(
        "at most one descriptor with a message",
        "takes one of them; a further message sent together with it then reads as a leave",
        MALFORMED.format("two fds in one connect message; rt: two connects in one 16-byte write"),
    ),
    "rest": Rule(
        "whole messages, 8 bytes each", "ignores the rest", MALFORMED.format("rt: short 3-byte message then close")
    ),
    "rest-in-greeting": Rule(
        "whole messages, 8 bytes each (no client understands a server that sends numbers of 4 bytes)",
        "waits in realize for the rest, for as long as nothing more comes: there is no time limit",
        MALFORMED.format("4-byte messages (native int)"),
        ends=True,
        seed="goes on without memory, IVPosition stays -1 (row 46)",
    ),
    "close-in-greeting": Rule(
        "the shared memory before the end",
        "hangs for ever in realize, at 100 % CPU, without a word",
        MALFORMED.format("close: before version; close: after id"),
        ends=True,
        seed="goes on without memory, IVPosition stays -1 (rows 46, 77)",
    ),
    "silence-in-greeting": Rule(
        "the shared memory before the end of the recording",
        "waits in realize for as long as nothing more comes: there is no time limit",
        MALFORMED.format("silent: nothing sent; silent after version"),
        ends=True,
        seed="goes on without memory, IVPosition stays -1 (row 46)",
    ),
    "client-speaks": Rule(
        "a silent client: only servers talk",
        "(its ivshmem-server) takes any byte for the client's leaving, and disconnects it",
        "QEMU 7.2's ivshmem-server (tests/golden/wire.json: C after it wrote one byte)",
    ),
}


SETUP = "the QEMU fork's hw/misc/ivshmem2.c, ivshmem_recv_setup"
READ = "the QEMU fork's hw/misc/ivshmem2.c, ivshmem_read and ivshmem_can_receive"
CONNECT = "the QEMU fork's hw/misc/ivshmem2.c, process_msg_connect"
DISCONNECT = "the QEMU fork's hw/misc/ivshmem2.c, process_msg_disconnect"

RULES_V2: dict[str, Rule] = {
    "v2-greeting": Rule(
        "INIT of at least 40 bytes, compatible version 2, ID, 1 to 1024 vectors, with the shared memory",
        "exits with 1 and that message",
        SETUP,
        ends=True,
    ),
    "v2-close-in-greeting": Rule(
        "INIT before the end", "hangs for ever in realize, at 100 % CPU, without a word", SETUP, ends=True
    ),
    "v2-length": Rule(
        "a length of 8 or more in each header",
        "says on stderr: invalid message, for each byte that follows, and dies of SIGABRT when its buffer is full",
        READ,
        ends=True,
    ),
    "v2-long-message": Rule(
        "messages of at most 32 bytes after INIT",
        "dies of SIGABRT: ivshmem_can_receive: Assertion `s->msg_buffered_bytes < sizeof(s->msg_buf)' failed",
        READ,
        ends=True,
    ),
    "v2-type": Rule(
        "EVENT_FD (1) or PEER_GONE (2) after INIT", "says on stderr: invalid message, type N, and goes on", READ
    ),
    "v2-size": Rule(
        "EVENT_FD of at least 16 bytes, PEER_GONE of at least 12",
        "says on stderr: Invalid eventfd message size or Invalid peer-gone message size, and goes on",
        f"{CONNECT}; process_msg_disconnect",
    ),
    "v2-own-leave": Rule(
        "other IDs than the client's own to leave", "says on stderr: invalid peer N, and goes on", DISCONNECT
    ),
    "v2-leave-unknown": Rule(
        "only IDs that were announced to leave",
        "interrupts its guest by vector 0; from ID 16 on it says on stderr: invalid peer N, and goes on",
        DISCONNECT,
    ),
    "v2-leave-twice": Rule(
        "each ID to leave once until it joins again",
        "dies of SIGABRT: free(): double free detected",
        f"{DISCONNECT} and close_peer_eventfds",
        ends=True,
    ),
    "v2-leave-before-own": Rule(
        "no leave before the client's own first eventfd",
        "dies of SIGSEGV: it interrupts itself by an eventfd that it does not have",
        DISCONNECT,
        ends=True,
    ),
    "v2-vector-order": Rule(
        "the vectors of a peer in ascending order from 0, each once",
        "says on stderr: Received vector N out of order, closes it and goes on",
        CONNECT,
    ),
    "v2-too-many-vectors": Rule(
        "no more eventfds of a peer than INIT told",
        "says on stderr: Too many eventfd received, closes it and goes on",
        CONNECT,
    ),
    "v2-peer": Rule(
        "IDs below the number of peers that INIT told",
        "accepts any ID and makes its table as large; from 2147483647 on it dies of SIGABRT",
        CONNECT,
    ),
    "v2-eventfd-missing": Rule(
        "EVENT_FD with an eventfd",
        "takes -1 for the eventfd: doorbells of that vector go nowhere",
        f"{CONNECT}; a running fork",
    ),
    "v2-two-descriptors": Rule(
        "at most one descriptor with a message, none with PEER_GONE",
        "takes one of them, or keeps it open for ever",
        READ,
    ),
    "v2-rest": Rule("whole messages", "waits for the rest", READ),
}
