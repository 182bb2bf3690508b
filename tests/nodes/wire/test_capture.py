"""nodes.wire.capture and `ivsim explain`: recorded sessions, read, written and understood."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.wire.capture import (
    HEADER,
    LINE_CHARS_MAX,
    SIZED,
    Bytes,
    Closes,
    Connects,
    Entry,
    Kind,
    SentMessage,
    SessionError,
    format_entry,
    parse,
    parse_entry,
)

SESSIONS = Path(__file__).parents[2] / "golden" / "sessions"
PATIENCE_S = 60

# The format

kinds = st.one_of(
    st.builds(Kind, st.sampled_from(SIZED), st.integers(0, 2**63 - 1), st.booleans()),
    st.builds(Kind, st.just("eventfd"), st.none() | st.integers(0, 2**31)),
    st.builds(Kind, st.sampled_from(["socket", "pipe", "char", "block", "directory", "other"])),
)
several = st.lists(kinds, max_size=4).map(tuple)
server_acts = st.one_of(
    st.builds(SentMessage, st.integers(-(2**63), 2**63 - 1), several),
    st.builds(Bytes, st.binary(min_size=1, max_size=7), several),
)
client_acts = st.builds(Bytes, st.binary(min_size=1, max_size=64), several)
sided = st.tuples(st.just("server"), server_acts) | st.tuples(st.just("client"), client_acts)


@given(sided, st.integers(0, 10**18 - 1), st.integers(1, 10**9), st.text(max_size=40))
def test_a_line_reads_back_as_what_was_written(act, time_ns, connection, remark):
    entry = Entry(time_ns, connection, *act, remark)
    line = format_entry(entry)
    assert len(line.splitlines()) == 1 or remark  # a remark may hold odd separators, but no line end
    assert "\n" not in line
    assert parse_entry(line, 3) == entry


@given(st.lists(st.tuples(sided, st.integers(0, 10**9)), max_size=20))
def test_a_session_reads_back_as_what_was_written(said):
    entries = [Entry(0, 1, "client", Connects())]
    for (side, act), pause_ns in said:
        entries.append(Entry(entries[-1].time_ns + pause_ns, 1, side, act))
    entries.append(Entry(entries[-1].time_ns, 1, "server", Closes()))
    session = parse([HEADER + "\n", "# comment\n", "\n", *(format_entry(entry) + "\n" for entry in entries)])
    assert list(session.entries) == entries
    assert [entry.line for entry in session.entries] == list(range(4, 4 + len(entries)))


@given(st.lists(st.text(max_size=60), max_size=6))
def test_nonsense_is_refused_with_its_line_and_nothing_else(lines):
    text = [HEADER, "0 1 client connects", *lines]
    caught = None
    try:
        assert parse(text).entries
    except SessionError as error:
        caught = error
    if caught is not None:
        assert 3 <= caught.line <= len(text)
        assert str(caught).startswith(f"line {caught.line}: expected ")


@pytest.mark.parametrize(
    ("line", "expected", "got"),
    [
        ("x 1 client closes", "seconds", "'x'"),
        ("-1 1 client closes", "seconds", "'-1'"),
        ("0 0 client closes", "number of a connection", "'0'"),
        ("0 1 nobody closes", "server or client", "'nobody'"),
        ("0 1 server", "a time, a connection, server or client, and what it did", "'0 1 server'"),
        ("0 1 server connects", "client before connects", "'server'"),
        ("0 1 client 5", "clients send no messages", "'5'"),
        ("0 1 server five", "a number of 64 bits", "'five'"),
        ("0 1 server 9223372036854775808", "a number of 64 bits", "'9223372036854775808'"),
        ("0 1 server 5 eventfood", "a descriptor's kind", "'eventfood'"),
        ("0 1 server 5 eventfd:99999999999999999999", "a descriptor's kind", "'eventfd:9"),
        ("0 1 server -1 memfd", "the size of the memfd", "'memfd'"),
        ("0 1 server 5 pipe:3", "pipe without a number", "'pipe:3'"),
        ("0 1 server bytes 0", "bytes in hexadecimal", "'0'"),
        ("0 1 server bytes", "bytes in hexadecimal", "''"),
        ("0 1 server closes now", "nothing after closes", "'now'"),
        ("0 2 server 0", "connection 2 to begin with 'client connects'", "2 server 0"),
        ("0 1 client connects", "connection 1 to connect once", "'connects'"),
        ("0 1 server " + "0" * LINE_CHARS_MAX, "a line of at most", "'0 1 server 000"),
    ],
)
def test_a_wrong_line_is_named_with_what_was_expected(line, expected, got):
    with pytest.raises(SessionError) as caught:
        parse([HEADER, "0.0 1 client connects", line])
    assert caught.value.line == 3
    assert expected in str(caught.value)
    assert got in str(caught.value)


def test_entries_out_of_order_are_refused():
    start = [HEADER, "1 1 client connects"]
    with pytest.raises(SessionError, match="line 3: expected a time not before"):
        parse([*start, "0.999 1 server 0"])
    with pytest.raises(SessionError, match="line 4: expected nothing more of connection 1, which has closed"):
        parse([*start, "1 1 server closes", "1 1 server 0"])
    for empty in ([], [""], ["ivshmem-session 2"]):
        with pytest.raises(SessionError, match="line 1: expected 'ivshmem-session 1'"):
            parse(empty)


# The command


def run(*arguments, stdin=""):
    command = [sys.executable, "-m", "sim", "explain", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


@pytest.mark.parametrize(
    ("name", "arguments", "first_wrong"),
    [
        ("clean_v0", [], None),
        ("legacy", [], (4, "version", "exits with 1: server sent version")),
        ("legacy", ["--dialect", "legacy"], None),
        ("shm_last", [], (6, "own-vector-before-memory", "SIGSEGV")),
        ("leaves_twice", [], (9, "leave-twice", "SIGABRT: free(): double free detected")),
        ("v2", [], None),
    ],
)
def test_the_command_names_the_dialect_and_the_first_wrong_message(name, arguments, first_wrong):
    file = SESSIONS / f"{name}.txt"
    told, data = run(file, *arguments), run(file, "--json", *arguments)
    assert (told.stderr, data.stderr) == ("", "")
    assert told.returncode == data.returncode == (1 if first_wrong else 0)
    connections = json.loads(data.stdout)["connections"]
    if first_wrong is None:
        assert "clean" in told.stdout
        assert "wrong" not in told.stdout
        return
    line, rule, outcome = first_wrong
    assert [connection["first_wrong_line"] for connection in connections] == [line]
    (entry,) = [entry for entry in connections[0]["entries"] if entry["line"] == line]
    assert entry["problems"][0]["name"] == rule
    assert outcome in entry["problems"][0]["outcome"]
    shown = told.stdout.splitlines()
    at = next(at for at, text in enumerate(shown) if text.startswith(f"  {line:>5} "))
    assert f"^ first wrong: {rule}" in shown[at + 1]
    assert any(outcome in text for text in shown[at : at + 5])


def test_a_session_of_several_problems_that_qemu_survives():
    data = json.loads(run(SESSIONS / "mixed.txt", "--json", "-n", "1").stdout)
    first, second = data["connections"]
    assert (first["clean"], second["clean"], data["clean"]) == (True, False, False)
    assert (first["peer"], second["peer"], second["memory_bytes"]) == (3, 4, 4096)
    found = [(entry["line"], problem["name"]) for entry in second["entries"] for problem in entry["problems"]]
    assert found == [
        (13, "number"),
        (14, "leave-unknown"),
        (15, "not-an-eventfd"),
        (16, "two-descriptors"),
        (18, "client-speaks"),
        (19, "rest"),
    ]
    assert (len(first["notes"]), len(second["notes"])) == (0, 1)  # one eventfd for two vectors


def test_standard_input_will_do():
    told = run("-", stdin=(SESSIONS / "clean_v0.txt").read_text())
    assert told.returncode == 0
    assert "2 connections: clean" in told.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: expected 'ivshmem-session 1'"),
        (b"\x7fELF\x00\xff\xfe", "line 1: expected 'ivshmem-session 1'"),
        (b"ivshmem-session 1\n0 1 client connects\n0 1 server zero\n", "line 3: expected closes, bytes, or a number"),
        (b"ivshmem-session 1\n" + b"9" * 10**6, "line 2: expected a line of at most"),
    ],
)
def test_a_malformed_session_is_reported_with_its_line(content, message, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(content)
    told = run(file)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith(f"ivsim: {file}: {message}")
    assert "Traceback" not in told.stderr


def test_a_file_that_is_not_there():
    told = run("/nonexistent/session")
    assert told.returncode == 2
    assert "cannot read /nonexistent/session: No such file or directory" in told.stderr
