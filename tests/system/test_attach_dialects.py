"""`ivsim attach` at servers that speak other dialects, or do not let it in."""

from __future__ import annotations

import json
import socket
import struct
import threading

import pytest

from nodes.wire.protocol import DIALECTS
from tests.system.test_attach_command import SIZE_BYTES, VECTORS, attach, attached, read_until, serving

OTHERS = [pytest.param(name, id=name) for name in DIALECTS]


@pytest.mark.parametrize("dialect", OTHERS)
def test_it_says_which_dialect_it_met_and_works(short_path, dialect):
    path = short_path / "s"
    with serving(path, "--dialect", dialect), attached(path) as peer:
        first = read_until(peer.stdout, "^peer 0 of")[-1]
        assert f"2 vectors, {SIZE_BYTES} bytes of memory, 0 others, dialect {dialect};" in first
        data = json.loads(attach(path, "peers", "--json").stdout)
        assert (data["peer"], data["dialect"], data["vectors"]) == (1, dialect, VECTORS)
        assert data["peers"] == [{"peer": 0, "vectors": VECTORS}]
        assert attach(path, "ring", "0", "1").stderr == "rang 1 doorbell\n"
        read_until(peer.stdout, "interrupt vector 1")
        assert attach(path, "poke", "0", "0x41424344").returncode == 0
        peer.stdin.write("peek 0 4\n")
        assert "|DCBA|" in read_until(peer.stdout, "00000000")[-1]


def test_a_refused_client_is_told_why(short_path):
    path = short_path / "s"
    with serving(path, "--max-clients", "1"), attached(path) as first:
        read_until(first.stdout, "^peer 0 of")
        told = attach(path, "peers")
    assert (told.returncode, told.stdout) == (1, "")
    assert told.stderr == (
        "ivsim: server sent version -87, expecting 0: it does not let this client in "
        "(too many, none of its users, or broken memory: its log tells)\n"
    )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"HTTP/1.1", "ivsim: server sent version 3543824036068086856, expecting 0\n"),
        (struct.pack("<2i", 0, 40), "the server closed the connection before it sent INIT\n"),
        (struct.pack("<2q", 5, 3), "ivsim: server sent version 5, expecting 0\n"),
        (struct.pack("<q", 5), "the server closed the connection before it sent the shared memory after 5, the ID of"),
        (b"", "the server closed the connection before it sent a version\n"),
    ],
)
def test_a_peer_that_is_no_server_is_reported(short_path, said, message):
    path = short_path / "s"

    def answer():
        accepted, _ = listener.accept()
        with accepted:
            accepted.sendall(said)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        told = attach(path, "peers")
        thread.join()
    path.unlink()
    assert (told.returncode, told.stdout) == (1, "")
    assert message in told.stderr
