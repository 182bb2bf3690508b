"""sim.wire.nonblocking_guard: what a real QEMU does to eventfds that it has no vector for is undone."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from sim.kernel.eventfd import COUNTER_MAX, signal
from sim.kernel.qemu_program import find_qemu
from sim.wire import nonblocking_guard
from sim.wire.nonblocking_guard import NonBlockingGuard
from tests.qemu.test_server_scale import OWN_EVENTFDS, eventfds

pytestmark = pytest.mark.qemu

SENT, KEPT = 4, 2  # vectors that the server gives each peer; that the QEMU has


@contextlib.contextmanager
def small_qemu(path: object) -> Iterator[subprocess.Popen[bytes]]:
    """A QEMU without a guest, with fewer vectors than it is sent."""
    arguments = ["-nodefaults", "-display", "none", "-accel", "tcg", "-S", "-m", "16M", "-machine", "pc"]
    arguments += ["-chardev", f"socket,path={path},id=iv", "-device", f"ivshmem-doorbell,chardev=iv,vectors={KEPT}"]
    with subprocess.Popen([find_qemu(), *arguments], stderr=subprocess.DEVNULL) as qemu:
        try:
            yield qemu
        finally:
            qemu.kill()


def test_what_a_qemu_left_blocking_is_made_non_blocking_again(make_site, monkeypatch):
    monkeypatch.setattr(nonblocking_guard, "UNBLOCK_AFTER_NS", (1_000_000, 2_000_000))
    site = make_site(vectors=SENT)
    witness = site.join()

    def blocking(peer):
        return [os.get_blocking(witness.lines[peer, vector].descriptor) for vector in range(SENT)]

    assert blocking(0) == [False] * SENT
    with small_qemu(site.server.path) as qemu:

        def is_read():
            witness.read()
            # Both peers' vectors, as far as it has such: that many only when it has read all.
            return eventfds(qemu.pid) == OWN_EVENTFDS + 2 * KEPT and not site.server.is_unread

        site.until(is_read)
        # The flag is the description's: QEMU's doing shows at our own descriptors. What it keeps, it sets again.
        kept = [False] * KEPT + [True] * (SENT - KEPT)
        site.until(lambda: (blocking(0), blocking(1)) == (kept, kept))

        NonBlockingGuard(site.loop, site.server).start()
        site.until(lambda: (blocking(0), blocking(1)) == ([False] * SENT, [False] * SENT))
        # A ring at a full counter is refused again, where it would have blocked for ever.
        line = witness.lines[0, SENT - 1].descriptor
        signal(line, COUNTER_MAX)
        with pytest.raises(BlockingIOError):
            signal(line, 1)
