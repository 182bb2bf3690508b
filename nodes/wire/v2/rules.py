"""The rules that a server of ivshmem v2 can violate."""

from __future__ import annotations

from nodes.wire.rules import Rule

__all__ = ["RULES_V2"]

RULES_V2: dict[str, Rule] = {
    "v2-message": Rule(
        "a message of ivshmem v2 that the device takes",
        "exits with that message",
        "the QEMU fork's hw/misc/ivshmem2.c, ivshmem_recv_setup and process_msg; tests/nodes/wire/test_v2.py",
        ends=True,
    ),
}
