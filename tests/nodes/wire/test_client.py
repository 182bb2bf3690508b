"""nodes.wire.client: a sound server becomes events, an unsound one an event or an error, and no descriptor is lost."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.errors import RemoteProtocolError
from nodes.wire.client import Assigned, Client, Ignored, MemoryShared, PeerLeft, VectorConnected
from nodes.wire.protocol import DIALECTS, LEGACY, V0, V0_SHM_LAST, Message
from tests.malformed import CASES, SCRIPTS


class ClientSetup:
    """A client and all that became of the descriptors handed to it."""

    def __init__(self, vectors, dialect=None):
        self.client = Client(vectors, dialect=dialect)
        self.events = []
        self.error = None
        self.given = itertools.count()

    def read(self, data, names):
        """One read; after an error nothing more is read."""
        if self.error is not None:
            return
        descriptors = [f"{name} #{next(self.given)}" for name in names]
        try:
            for event in self.client.receive(data, descriptors):
                self.events.append(event)
        except RemoteProtocolError as error:
            self.error = error

    def read_exactly(self, data, names):
        """As QEMU does: never more than the message at hand; a read gets the descriptors of the piece it begins."""
        while data and self.error is None:
            size = self.client.missing_bytes
            self.read(data[:size], names)
            data, names = data[size:], ()

    def close(self):
        if self.error is None:
            try:
                self.client.end()
            except RemoteProtocolError as error:
                self.error = error

    def count(self, kind):
        return sum(isinstance(event, kind) for event in self.events)

    def came_out(self):
        """The numbers of all descriptors that an event carried or that were left over."""
        carried = [getattr(event, "descriptor", None) for event in self.events]
        several = [name for event in self.events for name in getattr(event, "descriptors", ())]
        names = [*filter(None, carried), *several, *self.client.unclaimed()]
        return sorted(int(name.split("#")[1]) for name in names)

    def check_descriptors(self):
        assert self.came_out() == list(range(next(self.given)))
        assert list(self.client.unclaimed()) == []


def test_every_case_seen_on_a_real_qemu_has_a_script():
    assert sorted(SCRIPTS) == sorted(case["case"] for case in CASES)
    assert len(SCRIPTS) == 77


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_malformed_server(name):
    case = SCRIPTS[name]
    reader = ClientSetup(case.vectors, V0)
    for send in case.sends:
        reader.read_exactly(send.data, send.files)
    if case.close:
        reader.close()
    assert bool(reader.error) == bool(case.error)
    assert re.search(case.error, str(reader.error))
    assert reader.count(Ignored) == case.ignored
    assert reader.count(PeerLeft) == case.left
    assert reader.client.is_set_up == case.up
    reader.check_descriptors()


# Where the dialect is not known: what may be an ID of 2012 is not a wrong version yet, and ID 0 with the memory is one.
UNDECIDED = {"version 1", "version big-endian-ish 0x0100.."}
OF_2012 = {"shm before id", "pre-2.5 protocol (no version: id, shm, efd)"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_malformed_server_whose_dialect_is_not_known(name):
    case = SCRIPTS[name]
    reader = ClientSetup(case.vectors)
    for send in case.sends:
        reader.read_exactly(send.data, send.files)
    if case.close:
        reader.close()
    if name in UNDECIDED | OF_2012:
        assert reader.error is None
        assert reader.client.dialect is (LEGACY if name in OF_2012 else None)
        assert reader.client.is_set_up == (name in OF_2012)
    else:
        assert re.search(case.error, str(reader.error))
        assert (bool(reader.error), reader.count(Ignored)) == (bool(case.error), case.ignored)
    reader.check_descriptors()


@pytest.mark.parametrize("dialect", [None, *DIALECTS.values()], ids=["unknown", *DIALECTS])
def test_a_malformed_server_read_in_one_piece(dialect):
    """A verdict does not depend on how much is read at once, and every descriptor comes out."""
    for case in SCRIPTS.values():
        reader = ClientSetup(case.vectors, dialect)
        reader.read(b"".join(send.data for send in case.sends), [name for send in case.sends for name in send.files])
        reader.close()
        reader.check_descriptors()


@pytest.mark.parametrize(
    "sound", ["shm size 4096", "own id 65535", "rt: fewer vectors for a peer", "rt: server closes"]
)
def test_the_same_verdict_as_qemu_where_it_had_one(sound):
    outcome = next(case["outcome"] for case in CASES if case["case"] == sound)
    assert outcome == "runs"
    assert not SCRIPTS[sound].error


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_where_qemu_exits_the_client_or_the_device_refuses_and_where_it_runs_neither_does(case):
    script = SCRIPTS[case["case"]]
    refuses = bool(script.error or script.memory_error)
    if case["outcome"] == "exit 1":
        assert refuses
    elif case["outcome"] == "runs":
        assert not refuses


NUMBERS = st.one_of(st.sampled_from([0, 1, 2, -1, -2, 65535, 65536]), st.integers(-(1 << 63), (1 << 63) - 1))


@given(st.data())
def test_any_bytes_and_descriptors_end_in_events_or_the_declared_error(data):
    reader = ClientSetup(data.draw(st.integers(0, 3)), data.draw(st.sampled_from([None, *DIALECTS.values()])))
    greeted = data.draw(st.booleans())
    numbers = [0, 0, -1] * greeted + data.draw(st.lists(NUMBERS, max_size=12))
    stream = b"".join(Message(number).encode() for number in numbers)
    cuts = data.draw(st.sets(st.integers(0, len(stream))))
    for start, stop in itertools.pairwise(sorted({0, *cuts, len(stream)})):
        reader.read(stream[start:stop], ["fd"] * data.draw(st.integers(0, 2)))
        if reader.error:
            break
    reader.close()
    reader.check_descriptors()
    connected = [(event.peer, event.vector) for event in reader.events if isinstance(event, VectorConnected)]
    assert all(vector < reader.client.vectors for _, vector in connected)


def test_events_that_are_not_taken_give_their_descriptors_back():
    client = Client(1)
    wire = b"".join(Message(number).encode() for number in (0, 0, -1))
    assert next(client.receive(wire, ["memory", "one more"])) == Assigned(0)
    assert list(client.unclaimed()) == ["memory", "one more"]


def test_a_sound_server_in_events():
    client = Client(2)
    events = []
    for number, *files in [(0,), (3,), (-1, "m"), (1, "a"), (1, "b"), (3, "c"), (3, "d"), (1,), (1, "e")]:
        events += client.receive(Message(number).encode(), files)
    assert events == [
        Assigned(3),
        MemoryShared("m"),
        VectorConnected(1, 0, "a"),
        VectorConnected(1, 1, "b"),
        VectorConnected(3, 0, "c"),
        VectorConnected(3, 1, "d"),
        PeerLeft(1),
        VectorConnected(1, 0, "e"),
    ]
    assert client.peers == {1: 1, 3: 2}
    assert (client.peer, client.is_set_up) == (3, True)
    client.end()


def test_the_first_message_after_setup_that_is_odd_changes_nothing():
    client = Client(1)
    for number, *files in [(0,), (3,), (-1, "m"), (3, "c")]:
        list(client.receive(Message(number).encode(), files))
    before = dict(client.peers)
    for number in (-2, 65536, 9, 3):
        (event,) = client.receive(Message(number).encode(), ())
        assert isinstance(event, Ignored)
        assert str(number) in event.reason
    assert client.peers == before


def test_too_many_eventfds_are_told_once_of_each_peer():
    client = Client(1)
    for number, *files in [(0,), (3,), (-1, "m"), (3, "c"), (4, "d"), (5, "e")]:
        list(client.receive(Message(number).encode(), files))
    told = []
    for number, *files in [(4, "f"), (4, "g"), (5, "h"), (4, "i"), (4,), (4, "j"), (4, "k"), (4, "l")]:
        (event,) = client.receive(Message(number).encode(), files)
        if isinstance(event, Ignored):
            assert event.descriptors == tuple(files)  # the receiver's to close, each of them
            told.append((event.reason.partition(",")[0], event.repeated))
    four, five = (f"too many eventfds for peer {peer}" for peer in (4, 5))
    assert told == [(four, False), (four, True), (five, False), (four, True), (four, False), (four, True)]


@pytest.mark.parametrize(
    ("messages", "dialect", "peer"),
    [
        ([(0,)], None, None),
        ([(5,)], None, None),
        ([(0,), (5,)], None, 5),
        ([(0,), (5,), (3, "e"), (3, "e")], None, 5),  # peers before the memory decide nothing
        ([(0,), (5,), (3, "e"), (-1, "m")], V0, 5),
        ([(0,), (5,), (-1, "m"), (5, "e")], V0, 5),
        ([(0,), (0,), (-1, "m")], V0, 0),
        ([(0,), (5,), (5, "e")], V0_SHM_LAST, 5),
        ([(0,), (5,), (3, "e"), (5, "e"), (-1, "m")], V0_SHM_LAST, 5),
        ([(0,), (-1, "m")], LEGACY, 0),
        ([(7,), (-1, "m"), (6, "e"), (7, "e")], LEGACY, 7),
        ([(65535,), (-1, "m")], LEGACY, 65535),
        # The server of 2012 with the version of today before it, as a pull request of 2019 has it: v0.
        ([(0,), (7,), (-1, "m"), (6, "e"), (7, "e")], V0, 7),
    ],
)
def test_a_dialect_is_recognised_by_the_first_messages(messages, dialect, peer):
    client = Client(2)
    for number, *files in messages:
        assert not any(isinstance(event, Ignored) for event in client.receive(Message(number).encode(), files))
    assert (client.dialect, client.peer) == (dialect, peer)


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ([(5,), (3,)], "server sent version 5, expecting 0$"),
        ([(5,), (-1,)], "server sent version 5, expecting 0$"),
        ([(5,), (3, "e")], "server sent version 5, expecting 0$"),
        ([(65536,)], "server sent version 65536, expecting 0$"),
        ([(-1, "m")], "server sent version -1, expecting 0$"),
        ([(5, "e")], "server sent version 5, expecting 0$"),
        ([(0, "e")], "invalid version message"),
        ([(0,), (-1,)], "invalid ID message"),
        ([(-87,)], "expecting 0: it does not let this client in"),
        ([(40 << 32, "m")], "expecting 0: it speaks ivshmem v2"),
    ],
)
def test_an_unknown_dialect_is_judged_as_v0(messages, error):
    reader = ClientSetup(2)
    for number, *files in messages:
        assert reader.error is None
        reader.read(Message(number).encode(), files)
    assert re.search(error, str(reader.error))
    reader.check_descriptors()


@pytest.mark.parametrize(
    ("dialect", "numbers", "missing"),
    [
        (None, [], "a version"),
        (None, [0], "its ID"),
        (None, [5], "the shared memory after 5, the ID of a server of 2012 or a version that is not 0"),
        (None, [0, 5], "the shared memory"),
        (LEGACY, [], "its ID"),
        (LEGACY, [0], "the shared memory"),
        (V0, [0], "its ID"),
    ],
)
def test_an_early_end_names_the_missing_message(dialect, numbers, missing):
    client = Client(1, dialect=dialect)
    for number in numbers:
        list(client.receive(Message(number).encode()))
    with pytest.raises(RemoteProtocolError, match=f"before it sent {missing}$"):
        client.end()
