"""The QMP client against a peer that says what the protocol allows, and what it does not."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from nodes.errors import QemuError
from tests.real_qemu import Qmp, QmpError

Answer = dict[str, Any]
GREETING: Answer = {"QMP": {"version": {}, "capabilities": []}}
DONE: Answer = {"return": {}}


@contextlib.contextmanager
def answering(*answers: list[Answer]) -> Iterator[tuple[Qmp, list[Answer]]]:
    """A client whose n-th command gets the n-th answers, and the commands; then the peer closes."""
    near, far = socket.socketpair()
    heard: list[Answer] = []

    def serve() -> None:
        with far, far.makefile("rb") as lines:
            far.sendall(json.dumps(GREETING).encode() + b"\r\n")
            for answer in ([DONE], *answers):
                line = lines.readline()
                if not line:
                    return
                heard.append(json.loads(line))
                far.sendall(b"".join(json.dumps(said).encode() + b"\r\n" for said in answer))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Qmp(near) as client:
            yield client, heard
    finally:
        thread.join()


def test_command_its_arguments_and_what_it_returned() -> None:
    with answering([{"return": {"status": "running"}}]) as (client, heard):
        assert client.execute("query-status", **{"node-name": "x"}) == {"status": "running"}
        assert heard == [
            {"execute": "qmp_capabilities", "arguments": {}},
            {"execute": "query-status", "arguments": {"node-name": "x"}},
        ]


def test_refusal_is_an_error_with_qemu_s_words() -> None:
    refused = {"error": {"class": "GenericError", "desc": "There's a migration process in progress"}}
    with answering([refused], [DONE]) as (client, _):
        with pytest.raises(QmpError) as error:
            client.migrate("exec:cat")
        assert client.execute("query-status") == {}  # the connection goes on
    assert (error.value.kind, str(error.value)) == ("GenericError", "There's a migration process in progress")


def test_events_wait_until_they_are_asked_for() -> None:
    events = [{"event": name, "data": {"n": number}} for number, name in enumerate(("RESET", "STOP", "STOP"))]
    with answering([*events[:2], DONE, events[2]]) as (client, _):
        client.execute("stop")
        assert [client.wait_event("STOP")["data"] for _ in range(2)] == [{"n": 1}, {"n": 2}]
        with pytest.raises(QemuError, match="closed its QMP connection"):
            client.wait_event("RESET")


def test_migration_is_awaited_and_its_reasons_are_told() -> None:
    running, failed = {"return": {"status": "active"}}, {"return": {"status": "failed"}}
    blocked = {"return": {"blocked-reasons": ["a", "b"]}}
    with answering([DONE], [running], [running], [failed], [blocked], [DONE]) as (client, heard):
        assert client.migrate("unix:/x") == {"status": "failed"}
        assert heard[1] == {"execute": "migrate", "arguments": {"uri": "unix:/x"}}
        assert client.blockers() == ["a", "b"]
        assert client.blockers() == []


def test_peer_that_is_gone_at_once() -> None:
    near, far = socket.socketpair()
    far.close()
    with pytest.raises(QemuError, match="QMP"):
        Qmp(near)
    assert near.fileno() == -1
