"""sim.engines.qemu.received_lines: lines in whatever pieces they come."""

from __future__ import annotations

import socket

import pytest

from sim.engines.qemu.received_lines import ReceivedLines


def test_lines_come_whole_long_ones_in_parts_and_an_end_is_told() -> None:
    near, far = socket.socketpair()
    near.setblocking(False)
    data: list[bytes] = []
    lines = ReceivedLines(data.append, line_bytes_max=8)
    with near, far:
        assert list(lines.read(near)) == []
        far.send(b"one\n\ntw")
        assert list(lines.read(near)) == [b"one", b""]
        far.send(b"o\nno end in sight")
        assert list(lines.read(near)) == [b"two", b"no end in sight"]
        far.send(b"last\nrest")
        far.close()
        with pytest.raises(EOFError):
            list(lines.read(near))
        assert b"".join(data) == b"one\n\ntwo\nno end in sightlast\nrest"
