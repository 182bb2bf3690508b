"""nodes.wire.v2: the bytes of the QEMU fork's server, its order, its IDs, and a client that reads them however cut."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.errors import LocalProtocolError, RemoteProtocolError, UsageError
from nodes.wire.analyzer import explain, explain_all
from nodes.wire.capture import Bytes, Closes, Connects, Entry, Kind, SentMessage, Session, format_entry, parse
from nodes.wire.client import Ignored, PeerLeft, VectorConnected
from nodes.wire.protocol import V0
from nodes.wire.rules import RULES_V2
from nodes.wire.v2.analyzer import explain_framed
from nodes.wire.v2.client import FramedClient, Initialized
from nodes.wire.v2.protocol import V2, DomainNumbers, Frame, FrameKind
from nodes.wire.v2.server import FramedServer
from tests.fabric import Wire

NUMBERS = DomainNumbers(max_peers=3, vectors=2, protocol=0x4001, output_bytes=8192)


def spell(outbound):
    return [(to, message.encode().hex(), message.descriptors) for to, message in outbound]


INIT = "00000000280000000200000002000000{id}0000000300000002000000014000000020000000000000"


def fd(peer, vector):
    return f"0100000010000000{peer:02x}000000{vector:02x}000000"


def test_the_bytes_for_two_and_three_peers_are_those_of_the_forks_server():
    server = FramedServer("memory", NUMBERS)
    assert spell(server.join(["a0", "a1"])[1]) == [
        (0, INIT.format(id="00"), ("memory",)),
        (0, fd(0, 0), ("a0",)),
        (0, fd(0, 1), ("a1",)),
    ]
    assert spell(server.join(["b0", "b1"])[1]) == [
        (1, INIT.format(id="01"), ("memory",)),
        (0, fd(1, 0), ("b0",)),
        (0, fd(1, 1), ("b1",)),
        (1, fd(0, 0), ("a0",)),
        (1, fd(0, 1), ("a1",)),
        (1, fd(1, 0), ("b0",)),
        (1, fd(1, 1), ("b1",)),
    ]
    peer, third = server.join(["c0", "c1"])
    assert peer == 2
    assert [(to, data) for to, data, _ in spell(third)] == [
        (2, INIT.format(id="02")),
        *((to, fd(2, vector)) for to in (0, 1) for vector in (0, 1)),
        *((2, fd(known, vector)) for known in (0, 1, 2) for vector in (0, 1)),
    ]
    assert spell(server.leave(1)) == [(0, "020000000c00000001000000", ()), (2, "020000000c00000001000000", ())]


def test_ids_are_the_smallest_free_ones_and_one_client_too_many_is_refused():
    server = FramedServer("memory", NUMBERS)
    assert [server.join(["x", "y"])[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LocalProtocolError, match="all 3 peers are connected"):
        server.join(["x", "y"])
    server.leave(2)
    server.leave(0)
    assert [server.join(["x", "y"])[0] for _ in range(2)] == [0, 2]


@pytest.mark.parametrize(
    ("protocol", "told"),
    [(0x0001, [0x0001, 0x0001]), (0x8003, [0xC003, 0x8003]), (0xC003, [0xC003, 0x8003])],
)
def test_of_a_virtio_protocol_id_0_is_the_back_end(protocol, told):
    server = FramedServer("memory", DomainNumbers(2, 1, protocol, 0))
    views = [FramedClient() for _ in told]
    for view in views:
        greeting = server.join(["line"])[1][0].message
        (initialized,) = view.receive(greeting.encode(), greeting.descriptors)
        assert isinstance(initialized, Initialized)
    assert [view.numbers.protocol for view in views] == told


@pytest.mark.parametrize(
    "numbers",
    [
        DomainNumbers(1, 1, 0, 0),
        DomainNumbers(65537, 1, 0, 0),
        DomainNumbers(2, 0, 0, 0),
        DomainNumbers(3, 1, 0x8003, 0),
    ],
)
def test_numbers_that_no_server_has(numbers):
    with pytest.raises(UsageError):
        FramedServer("memory", numbers)


@pytest.mark.parametrize("seed", range(20))
def test_a_client_hears_the_same_wherever_the_stream_is_cut(seed):
    cuts = random.Random(seed)
    server, wires, views, events = FramedServer("memory", NUMBERS), {}, {}, {}
    log = []

    def deliver(outbound):
        for to, message in outbound:
            wires[to].send(message)

    for step in ["join", "join", "leave 0", "join", "join", "leave 1", "leave 2"]:
        if step == "join":
            peer = server.enter([f"{len(log)}/0", f"{len(log)}/1"])
            log.append(peer)
            wires[peer], views[peer], events[peer] = Wire(), FramedClient(), []
            deliver(server.spell_out(server.greet([peer])))
        else:
            deliver(server.leave(int(step.split()[1])))
    for peer, wire in wires.items():
        while wire.messages:
            events[peer] += views[peer].receive(*wire.read(cuts.randint(1, 50)))
        assert list(views[peer].unclaimed()) == []
    assert log == [0, 1, 0, 2]
    assert events[0] == [
        Initialized("memory", 0, NUMBERS),
        *(
            VectorConnected(peer, vector, f"{at}/{vector}")
            for peer, at in ((1, 1), (0, 2), (2, 3))
            for vector in (0, 1)
        ),
        PeerLeft(1),
        PeerLeft(2),
    ]


GREETING = Frame.init(0, NUMBERS, "memory")


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([Frame.event_fd(0, 0, "x")], "invalid initial info"),
        ([Frame(0, GREETING.body[:-1], ("memory",))], "INIT of 39 bytes"),
        (
            [Frame(0, GREETING.body[:4] + b"\3\0\0\0" + GREETING.body[8:], ("memory",))],
            "compatible version 3, expecting 2",
        ),
        ([Frame.init(70000, NUMBERS, "memory")], "server sent invalid ID"),
        ([Frame.init(3, NUMBERS, "memory")], "ID 3 of 3 peers"),
        ([Frame.init(0, NUMBERS._replace(vectors=1025), "memory")], "invalid number of vectors message: 1025"),
        ([Frame.init(0, NUMBERS._replace(max_peers=1), "memory")], "of 1 peers"),
        ([Frame(0, GREETING.body)], "without the shared memory"),
        ([GREETING, GREETING], "a message of 40 bytes, type 0: the device has room for 32"),
        ([GREETING, Frame(2, bytes(25), ("x",))], "a message of 33 bytes, type 2"),
    ],
)
def test_what_a_server_may_not_say(frames, words):
    client, wire = FramedClient(), Wire()
    for frame in frames:
        wire.send(frame)
    taken = []

    def read_all():
        while wire.messages:
            taken.extend(client.receive(*wire.read(64)))

    with pytest.raises(RemoteProtocolError, match=words):
        read_all()
    held = sum(len(frame.descriptors) for frame in frames)
    carried = sum(isinstance(event, Initialized | VectorConnected) for event in taken)
    assert carried + len(list(client.unclaimed())) == held


def test_surplus_bytes_of_a_message_are_skipped():
    client = FramedClient()
    longer = Frame(0, GREETING.body + b"more", ("memory",))
    assert list(client.receive(longer.encode(), ["memory"])) == [Initialized("memory", 0, NUMBERS)]


def test_a_second_descriptor_of_a_message_is_reported():
    client = FramedClient()
    events = list(client.receive(GREETING.encode(), ["memory", "other"]))
    assert isinstance(events[1], Ignored)
    assert events[1].descriptors == ("other",)


def test_a_server_of_version_0_is_named():
    with pytest.raises(RemoteProtocolError, match="speaks version 0"):
        list(FramedClient().receive(bytes(8)))


def test_a_server_that_leaves_before_init_is_an_error():
    with pytest.raises(RemoteProtocolError, match="before it sent INIT"):
        FramedClient().end()


SESSION = (Path(__file__).parents[2] / "golden" / "sessions" / "v2.txt").read_text()


def test_a_recorded_session_is_explained_and_written_back():
    session = parse(SESSION.splitlines())
    first, second = (explain(number, entries) for number, entries in session.connections.items())
    assert not first.problems
    assert not second.problems
    assert (first.peer, second.peer, first.dialect.name) == (0, 1, "v2")
    assert first.memory_bytes == 4 << 20
    meanings = [each.meaning for each in first.entries]
    assert meanings[1].startswith("INIT: the client's own ID 0 of 2, 2 vectors, protocol 0x0001")
    assert meanings[2:6] == [
        *(f"the own vector {vector}: to be waited for" for vector in (0, 1)),
        *(f"peer 1 vector {vector}: to be rung" for vector in (0, 1)),
    ]
    assert meanings[6].startswith("peer 1 has left")
    lines = [line for line in SESSION.splitlines() if line[:1].isdigit()]
    assert [format_entry(entry) for entry in session.entries] == lines


OWN = [GREETING, Frame.event_fd(0, 0, "own"), Frame.event_fd(0, 1, "own")]
OTHER = [*OWN, Frame.event_fd(1, 0, "x")]
ODD = [
    # what comes after the greeting, its words, the rule
    (Frame.event_fd(1, 2, "x"), "Received vector 2 out of order", "v2-vector-order"),
    (Frame.event_fd(0, 2, "x"), "Too many eventfd received, device has 2 vectors", "v2-too-many-vectors"),
    (Frame.event_fd(3, 0, "x"), "invalid peer 3", "v2-peer"),
    (Frame(1, Frame.event_fd(2, 0, "x").body), "vector 0 of peer 2 without an eventfd", "v2-eventfd-missing"),
    (Frame(1, Frame.event_fd(1, 1, "x").body), "vector 1 of peer 1 without an eventfd", "v2-eventfd-missing"),
    (Frame(1, bytes(7), ("x",)), "Invalid eventfd message size", "v2-size"),
    (Frame(2, bytes(3)), "Invalid peer-gone message size", "v2-size"),
    (Frame.peer_gone(0), "invalid peer 0", "v2-own-leave"),
    (Frame.peer_gone(70000), "invalid peer 70000", "v2-leave-unknown"),
    (Frame.peer_gone(2), "peer 2 left, but was never connected", "v2-leave-unknown"),
    (Frame(7, b"", ("x",)), "invalid message, type 7", "v2-type"),
    (Frame(0, bytes(24)), "invalid message, type 0", "v2-type"),
    (Frame(2, Frame.peer_gone(1).body, ("x",)), "more descriptors with a message than it takes", "v2-two-descriptors"),
    (Frame(1, Frame.event_fd(1, 1, "x").body, ("x", "x")), "more descriptors with a message", "v2-two-descriptors"),
]


@pytest.mark.parametrize(("frame", "words", "_rule"), ODD)
def test_what_is_odd_changes_nothing_else(frame, words, _rule):
    client, events = FramedClient(), []
    for each in (*OTHER, frame, Frame.event_fd(2, 0, "y")):
        events += client.receive(each.encode(), each.descriptors)
    (ignored,) = (event for event in events if isinstance(event, Ignored))
    assert words in ignored.reason
    assert VectorConnected(2, 0, "y") in events
    carried = sum(len(getattr(event, "descriptors", ("one",))) for event in events if not isinstance(event, PeerLeft))
    assert carried == sum(len(each.descriptors) for each in (*OTHER, frame)) + 1


def entry_of(at, frame):
    """An entry of a recorded connection: the server says this."""
    carried = tuple(Kind("memfd", 4 << 20) if each == "memory" else Kind("eventfd", 1) for each in frame.descriptors)
    return Entry(at, 1, "server", SentMessage(frame.number, carried, frame.body), "", at + 1)


ENDS = [
    ([Frame.init(70000, NUMBERS, "memory")], "v2-greeting"),
    ([Frame.event_fd(0, 0, "x")], "v2-greeting"),
    ([*OWN, GREETING], "v2-long-message"),
    ([*OTHER, Frame.peer_gone(1), Frame.peer_gone(1)], "v2-leave-twice"),
    ([GREETING, Frame.event_fd(1, 0, "x"), Frame.peer_gone(1)], "v2-leave-before-own"),
]


@pytest.mark.parametrize(("frames", "rule"), [*ENDS, *(([*OTHER, frame], rule) for frame, _words, rule in ODD)])
def test_each_rule_has_a_message_that_violates_it(frames, rule):
    later = [Frame(9, b"")]
    analysis = explain(1, [entry_of(at, frame) for at, frame in enumerate((*frames, *later))], dialect=V2)
    names = [problem.name for problem in analysis.problems]
    assert names == ([rule] if RULES_V2[rule].ends else [rule, "v2-type"])
    assert analysis.problems[0].line == len(frames)


def test_a_leave_and_a_new_join_of_the_same_id_are_no_violation():
    frames = [*OTHER, Frame.peer_gone(1), Frame.event_fd(1, 0, "x"), Frame.peer_gone(1)]
    assert not explain(1, [entry_of(at, frame) for at, frame in enumerate(frames)]).problems


@pytest.mark.parametrize(
    ("act", "before", "rule"),
    [
        (Closes(), [], "v2-close-in-greeting"),
        (Bytes(bytes(10), ()), OWN, "v2-length"),
        (Bytes(GREETING.encode()[:30], ()), [], "v2-greeting"),
        (Bytes(Frame.peer_gone(1).encode()[:6], ()), OWN, "v2-rest"),
        (SentMessage(0), OWN, "v2-length"),
        (SentMessage(7 << 32 | FrameKind.EVENT_FD), OWN, "v2-length"),
        (SentMessage(1 << 62 | FrameKind.EVENT_FD), OWN, "v2-long-message"),
        (SentMessage(17 << 32 | FrameKind.EVENT_FD, (), bytes(8)), OWN, "v2-rest"),
        (SentMessage(7 << 32 | FrameKind.INIT), [], "v2-greeting"),
        (Closes(), OWN, None),
    ],
)
def test_bytes_that_are_no_message_and_the_end_are_judged(act, before, rule):
    entries = [entry_of(at, frame) for at, frame in enumerate(before)]
    analysis = explain_framed(1, [*entries, Entry(9, 1, "server", act, "", 9)])
    assert [problem.name for problem in analysis.problems] == ([rule] if rule else [])


def test_a_client_that_is_refused_without_a_word_is_judged_by_what_the_server_speaks_to_others():
    first = parse(SESSION.splitlines()).connections[1]
    refused = [Entry(9, 7, "client", Connects(), "", 90), Entry(9, 7, "server", Closes(), "", 91)]
    told = explain_all(Session([*first, *refused]))
    assert [[problem.name for problem in each.problems] for each in told] == [[], ["v2-close-in-greeting"]]
    (alone,) = explain_all(Session(refused))
    assert [problem.name for problem in alone.problems] == ["close-in-greeting"]


def test_every_rule_is_tested():
    tested = {rule for _, rule in ENDS} | {rule for *_, rule in ODD}
    assert RULES_V2.keys() - tested == {"v2-close-in-greeting", "v2-length", "v2-rest"}


FRAMES = st.one_of(
    st.builds(
        lambda kind, body, fds: (Frame(kind, body, fds), fds), st.integers(0, 3), st.binary(max_size=48), st.just(())
    ),
    st.builds(lambda peer, vector: (Frame.event_fd(peer, vector, "fd"), ("fd",)), st.integers(0, 3), st.integers(0, 3)),
    st.builds(lambda peer: (Frame.peer_gone(peer), ()), st.integers(0, 3)),
)


@given(frames=st.lists(FRAMES, max_size=30), junk=st.binary(max_size=20), cuts=st.randoms(use_true_random=False))
def test_whatever_a_server_says_descriptors_come_out_once_and_errors_are_declared(frames, junk, cuts):
    client, wire = FramedClient(), Wire()
    wire.send(GREETING)
    for frame, _ in frames:
        wire.send(frame)
    wire.messages.append((junk, ()))
    given_in = came_out = 0
    try:
        while wire.messages:
            data, descriptors = wire.read(cuts.randint(1, 64))
            given_in += len(descriptors)
            for event in client.receive(data, descriptors):
                match event:
                    case Initialized() | VectorConnected():
                        came_out += 1
                    case Ignored(descriptors=dropped):
                        came_out += len(dropped)
    except RemoteProtocolError:
        pass
    assert came_out + len(list(client.unclaimed())) == given_in


def test_a_device_of_another_dialect_is_judged_by_its_own_rules():
    for number, entries in parse(SESSION.splitlines()).connections.items():
        analysis = explain(number, entries, dialect=V0)
        assert analysis.dialect is V2
        assert [problem.name for problem in analysis.problems] == ["version"]
