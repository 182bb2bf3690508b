"""A machine that is a real QEMU continues in another QEMU: QMP's migrate, from one process of the worker to the other.

The worker stays. It connects to the server again, as the process of any machine that migrates does, starts a QEMU that
waits for the state, and lets the first one send it. Only when the second one has loaded it does the first one end.
"""

from __future__ import annotations

import socket
import time
from typing import Any

from nodes.errors import QemuError
from sim.engines.qemu.qtest import Qemu
from sim.kernel.waiting import Patience

PATIENCE_S = 60.0
LOOK_S = 0.002
BANDWIDTH_BYTES_PER_S = 10 << 30
SLOW_BYTES_PER_S = 4096
"""For a migration that something is to go wrong with meanwhile."""
ENDED = ("completed", "failed", "cancelled")


def send_state(source: Qemu, target: Qemu, sock: socket.socket, *, fault: str) -> int:
    """Migrate from ``source`` to ``target``, which reads from the other end of ``sock``.

    Args:
        fault: "target_dies" kills the target while the state is sent, "cancel" cancels the migration then.

    Returns:
        How many bytes were sent.

    Raises:
        QemuError: it failed; the source continues. The message has QEMU's own words.
    """
    bandwidth = SLOW_BYTES_PER_S if fault in ("target_dies", "cancel") else BANDWIDTH_BYTES_PER_S
    source.qmp("migrate-set-parameters", **{"max-bandwidth": bandwidth})
    source.give_descriptor("state", sock)
    source.qmp("migrate", uri="fd:state")
    if fault == "target_dies":
        target.close()
    elif fault == "cancel":
        source.qmp("migrate_cancel")
    sent = _settled(source)
    if sent["status"] != "completed":
        # The source has stopped its virtual machine for the last part; qtest does not mind.
        raise QemuError(_why(sent, target, fault))
    if (arrived := _settled(target))["status"] != "completed":
        raise QemuError(_why(arrived, target, fault))
    return int(sent["ram"]["transferred"])


def _settled(qemu: Qemu) -> dict[str, Any]:
    """Wait until a migration has ended, either way; what query-migrate says then."""
    patience = Patience(PATIENCE_S)
    while (said := dict(qemu.qmp("query-migrate"))).get("status") not in ENDED:
        if patience.is_over():
            raise QemuError(f"its migration has not ended within {PATIENCE_S:g} s: it is {said.get('status', 'idle')}")
        time.sleep(LOOK_S)
    return said


def _why(said: dict[str, Any], target: Qemu, fault: str) -> str:
    if fault == "cancel":
        return "it was cancelled"
    if fault == "target_dies":
        return "its new QEMU died"
    return f"migrate {said['status']}: {said.get('error-desc') or target.end()}"
