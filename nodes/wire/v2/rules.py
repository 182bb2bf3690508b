"""The rules that a server of ivshmem v2 can violate, and what the QEMU fork's device does then."""

from __future__ import annotations

from nodes.wire.rules import Rule

__all__ = ["RULES_V2"]

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
        "INIT before the end",
        "hangs for ever in realize, at 100 % CPU, without a word",
        SETUP,
        ends=True,
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
        "EVENT_FD (1) or PEER_GONE (2) after INIT",
        "says on stderr: invalid message, type N, and goes on",
        READ,
    ),
    "v2-size": Rule(
        "EVENT_FD of at least 16 bytes, PEER_GONE of at least 12",
        "says on stderr: Invalid eventfd message size or Invalid peer-gone message size, and goes on",
        f"{CONNECT}; process_msg_disconnect",
    ),
    "v2-own-leave": Rule(
        "other IDs than the client's own to leave",
        "says on stderr: invalid peer N, and goes on",
        DISCONNECT,
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
    "v2-rest": Rule(
        "whole messages",
        "waits for the rest",
        READ,
    ),
}
