"""nodes.wire.analyzer, nodes.wire.rules: which dialect it is, what is wrong, and what a real QEMU does then."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from nodes.qemu_versions import COMPARED_VERSIONS
from nodes.wire.analyzer import explain, recognise
from nodes.wire.capture import HEADER, SIZED, Bytes, Closes, Connects, Entry, Kind, SentMessage, parse
from nodes.wire.client import REFUSED
from nodes.wire.protocol import DIALECTS, LEGACY, V0, V0_SHM_LAST, Decoder, Dialect, Step
from nodes.wire.rules import RULES
from nodes.wire.v2.protocol import V2
from tests.malformed import CASES, OBSERVED, SCRIPTS

SESSIONS = Path(__file__).parents[2] / "golden" / "sessions"

# The dialects


def say(*messages):
    """A connection in which a server says this: numbers alone, or (number, kinds...)."""
    entries = [Entry(0, 1, "client", Connects(), line=2)]
    for message in messages:
        number, *names = message if isinstance(message, tuple) else (message,)
        act = SentMessage(number, tuple(Kind(name, 4096 if name in SIZED else None) for name in names))
        entries.append(Entry(0, 1, "server", act, line=len(entries) + 2))
    return entries


@pytest.mark.parametrize(
    ("messages", "dialect"),
    [
        ([0, 5, (-1, "memfd"), (5, "eventfd")], V0),
        ([0, 5, (3, "eventfd"), (-1, "memfd"), (5, "eventfd")], V0),
        ([0, 5], V0),
        ([0, 5, (5, "eventfd"), (-1, "memfd")], V0_SHM_LAST),
        ([0, (-1, "memfd"), (0, "eventfd")], LEGACY),
        ([5, (-1, "memfd"), (4, "eventfd")], LEGACY),
        ([], None),
        ([1, 5, (-1, "memfd")], None),
        ([(40 << 32, "memfd")], V2),
    ],
)
def test_a_dialect_is_recognised_by_its_first_messages(messages, dialect):
    assert recognise(say(*messages))[0] is dialect


def test_every_dialect_is_clean_by_its_own_rules():
    sessions = {"v0": "clean_v0", "legacy": "legacy", "v0-shm-last": "shm_last"}
    assert sessions.keys() == DIALECTS.keys()
    for name, file in sessions.items():
        for number, entries in parse((SESSIONS / f"{file}.txt").read_text().splitlines()).connections.items():
            explanation = explain(number, entries, dialect=DIALECTS[name])
            assert explanation.dialect is DIALECTS[name]
            assert (explanation.problems, explanation.notes) == ([], ())


@pytest.mark.parametrize(
    ("steps", "messages"),
    [
        ((Step.MEMORY, Step.VERSION, Step.ID, Step.OWN), [(-1, "memfd"), 0, 5, (5, "eventfd")]),
        ((Step.ID, Step.PEERS_AND_OWN, Step.MEMORY), [5, (4, "eventfd"), (5, "eventfd"), (-1, "memfd")]),
        ((Step.VERSION, Step.ID, Step.OWN, Step.MEMORY), [0, 5, (5, "eventfd"), (-1, "memfd")]),
    ],
)
def test_the_rules_take_the_order_from_the_steps_of_a_dialect(steps, messages):
    ending = Entry(0, 1, "client", Closes(), line=9)
    judged = explain(1, [*say(*messages), ending], dialect=Dialect("another", steps, "none")).problems
    assert judged == []
    assert explain(1, [*say(*messages[::-1]), ending], dialect=Dialect("another", steps, "none")).problems


# The rules


def entries_of(case):
    """What a recorder writes down of a malformed server: it reads as QEMU does, 8 bytes at a time."""
    decoder, rest = Decoder(), b""
    entries = [Entry(0, 1, "client", Connects(), line=2)]

    def note(act):
        entries.append(Entry(0, 1, "server", act, line=len(entries) + 2))

    for send in case.sends:
        data, files = send.data, [kind_of(file) for file in send.files]
        while data:
            piece, data = data[: decoder.missing_bytes], data[decoder.missing_bytes :]
            messages = decoder.feed(piece, files)
            files = []
            rest = b"" if messages else rest + piece
            for message in messages:
                note(SentMessage(message.number, message.descriptors))
    if rest:
        note(Bytes(rest, tuple(decoder.unclaimed())))
    if case.close:
        note(Closes())
    return entries


def kind_of(file):
    name, *size = file.split()
    number = int(size[0]) if size else None
    return {
        "eventfd": Kind("eventfd"),
        "null": Kind("char"),
        "memory": Kind("memfd", number),
        "read-only": Kind("memfd", number, read_only=True),
    }[name]


# What cannot be seen on the wire, or is no fault of the server's.
SILENT_IN_QEMU = {
    "disconnect of unknown peer during setup",
    "disconnect of peer beyond 16 during setup",
    "rt: disconnect unknown id 7",
    "rt: disconnect unknown id 60000",
    "rt: short 3-byte message then 5 more",  # makes a 7: the same
    "rt: short 3-byte message then close",
    "rt: memfd passed as eventfd",
    "two fds in one connect message",
    "rt: two fds in one connect message",
    "rt: 17 fds in one message",
    "rt: two connects in one 16-byte write, 2 fds",
}
UNSEEN = {"rt: shm truncated to 0 under QEMU, then guest read"}


@pytest.mark.parametrize("version", COMPARED_VERSIONS, ids=str)
@pytest.mark.parametrize("at", range(len(CASES)), ids=[case["case"] for case in CASES])
def test_the_judgement_is_that_of_a_real_qemu(at, version):
    recorded = OBSERVED[version][at]
    name, outcome = recorded["case"], recorded["outcome"]
    case = SCRIPTS[name]
    explanation = explain(1, entries_of(case), vectors=case.vectors)
    problems = explanation.problems
    if name in UNSEEN:
        return
    died = outcome != "runs"
    assert [problem for problem in problems if problem.rule.ends] == problems[-1:] * died, explanation
    assert bool(problems) == (died or bool(recorded["stderr"]) or name in SILENT_IN_QEMU)
    stderr = recorded["stderr"]
    for problem in problems:
        words = problem.outcome(V0, version)
        if words.startswith("says on stderr: ") and stderr:
            said = words.removeprefix("says on stderr: ").partition(",")[0].partition(" N")[0]
            assert said in stderr, (said, stderr)
    if not died:
        return
    said = problems[-1].outcome(V0, version)
    if outcome.startswith("hang"):
        assert "hangs for ever" in said or "waits in realize" in said
    elif outcome == "exit 1":
        assert "exits with 1" in said
        # Its words, in order, but for the numbers in them.
        words = said.removeprefix("exits with 1: ").removesuffix(" expecting 0").removesuffix(" N,").removesuffix(" N")
        assert re.search(".*".join(map(re.escape, words.split())), stderr), (said, stderr)
    elif outcome == "exit -11":
        assert "SIGSEGV" in said
    else:
        assert "SIGABRT" in said


def test_every_rule_has_a_source_and_is_reachable():
    reached = {
        problem.name
        for case in SCRIPTS.values()
        for problem in explain(1, entries_of(case), vectors=case.vectors).problems
    }
    reached |= {"client-speaks", "refused"}  # tested below
    assert reached == set(RULES)
    for rule in RULES.values():
        assert rule.expected
        assert all(rule.outcome(version) for version in COMPARED_VERSIONS)
        assert re.search("tests/(golden/|[a-z/]*test_)", rule.source)


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_a_source_names_cases_that_exist(rule):
    if "malformed*.json: " in rule.source:
        named = rule.source.split("malformed*.json: ")[1].split(")")[0].replace(" (out of order", "")
        cases = [case["case"] for case in CASES]
        for name in named.split("; "):
            assert any(case.startswith(name) for case in cases), name


NAMES = {
    "version": {"version 1", "version -1", "version 2^32 (low word zero)", "version big-endian-ish 0x0100.."},
    "version-with-descriptor": {"version 0 with an fd", "version+id+shm in one 24 byte write with fd"},
    "id": {"shm before id", "pre-2.5 protocol (no version: id, shm, efd)", "own id -1", "own id -2", "own id 65536"}
    | {"own id 4294967296", "own id with an fd"},
    "memory-without-descriptor": {"shm message without fd"},
    "not-memory": {"eventfd passed as shm", "/dev/null passed as shm"},
    "memory-read-only": {"read-only file as shm"},
    "memory-empty": {"shm size 0"},
    "memory-not-pages": {"shm size 1", "shm size 4095", "shm size 6000"},
    "memory-not-power-of-two": {"shm size 3145728"},
    "memory-again": {"second shm message during setup", "rt: second shm message"},
    "memory-again-without-descriptor": {"rt: second shm message without fd"},
    "own-vector-before-memory": {"no shm: connects only, then silence", "peers before shm (out of order)"},
    "number-in-greeting": {"invalid message -2 during setup", "invalid message 65536 during setup"},
    "number": {"rt: invalid message -2", "rt: invalid message -2 with fd", "rt: invalid message 65536"}
    | {"rt: id INT64_MIN"},
    "leave-unknown": {"disconnect of unknown peer during setup", "disconnect of peer beyond 16 during setup"}
    | {"rt: disconnect unknown id 7", "rt: disconnect unknown id 60000", "rt: short 3-byte message then 5 more"},
    "own-leave-in-greeting": {"disconnect of own id during setup"},
    "own-leave": {"rt: own id again, no fd (= disconnect self)"},
    "leave-twice": {"rt: disconnect twice"},
    "id-again": {"rt: connect, disconnect, reconnect same id", "rt: x50 connect/disconnect same id"},
    "too-many-vectors": {"rt: third eventfd for own id (2 vectors)", "rt: too many vectors for a peer (2 + 3)"}
    | {"rt: connect same id twice without disconnect"},
    "not-an-eventfd": {"rt: memfd passed as eventfd"},
    "two-descriptors": {"two fds in one connect message", "rt: two fds in one connect message"}
    | {"rt: 17 fds in one message", "rt: two connects in one 16-byte write, 2 fds"},
    "rest": {"rt: short 3-byte message then close"},
    "rest-in-greeting": {"4-byte messages (native int)"},
    "close-in-greeting": {"close: before version", "close: after 3 bytes of version", "close: after version"}
    | {"close: after id"},
    "silence-in-greeting": {"silent: nothing sent", "silent after version"},
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_way_to_be_wrong_has_a_name(name):
    problems = {
        problem.name for problem in explain(1, entries_of(SCRIPTS[name]), vectors=SCRIPTS[name].vectors).problems
    }
    assert problems == {rule for rule, cases in NAMES.items() if name in cases}


def test_a_client_that_is_refused_reads_why():
    assert REFUSED == -errno.EUSERS
    entries = [*say(REFUSED), Entry(0, 1, "server", Closes(), line=4)]
    explanation = explain(1, entries)
    assert [(problem.name, problem.line) for problem in explanation.problems] == [("refused", 3)]
    assert f"server sent version {REFUSED}, expecting 0" in explanation.problems[0].outcome(V0)
    assert explanation.dialect is None
    assert "refuses" in explanation.named


def test_a_foreign_dialect_is_pointed_at():
    (note,) = explain(1, say(5, (-1, "memfd"), (5, "eventfd"))).notes
    assert "speaks legacy and is judged by v0: --dialect legacy" in note


def test_messages_after_the_end_of_the_device_are_not_judged():
    leaves = [(1, "eventfd"), 1, 1, -2, 1]
    problems = explain(1, say(0, 0, (-1, "memfd"), (0, "eventfd"), *leaves)).problems
    assert [(problem.name, problem.line) for problem in problems] == [("leave-twice", 9)]


def test_the_device_of_2012_is_told_of_where_it_differs():
    entries = say(0, (-1, "memfd"), (0, "eventfd"), (1, "eventfd"), 1, 1)
    (problem,) = explain(1, entries, dialect=LEGACY).problems
    assert problem.name == "leave-twice"
    assert "row 90" in problem.outcome(LEGACY)
    assert "SIGABRT" in problem.outcome(V0)


def test_a_deaf_client_and_a_shared_eventfd_are_worth_a_note():
    (note,) = explain(1, say(0, 0, (-1, "memfd"), (1, "eventfd"))).notes
    assert "never got an eventfd of its own" in note
    lines = ["0 1 client connects", "0 1 server 0", "0 1 server 0", "0 1 server -1 memfd:4096"]
    shared = [*lines, "0 1 server 0 eventfd:5", "0 1 server 1 eventfd:5"]
    reused = [*lines, "0 1 server 0 eventfd:5", "0 1 server 1 eventfd:6", "0 1 server 1", "0 1 server 2 eventfd:6"]
    for text, notes in ((shared, 1), (reused, 0)):
        assert len(explain(1, parse([HEADER, *text]).entries).notes) == notes
