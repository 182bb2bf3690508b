"""sim.recording and sim.engines.shared.recorder: plain stores that survive the process that made them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from nodes.device import profiles
from nodes.doorbells import Ledger
from nodes.errors import HostError, UsageError
from nodes.guest import FOREVER, Interrupt
from nodes.ledger import NoLedger
from nodes.programs import idle
from nodes.vm import Vm
from sim.engines.shared.recorder import Recorder
from sim.recording import Counters, Recording, RecordingLayout, RecordingPack, State, header
from sim.recording.header import COUNTER_AT, HEADER_WORDS, NO_PEER, WORD_BYTES
from sim.recording.reader import FEW, drains_so_far, read, totals_so_far, vectors_so_far

LAYOUT = RecordingLayout(vectors=2, edges=3, rings=4, drains=5)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "machine.rec"


@pytest.fixture
def recording(path):
    with Recording.create(path, LAYOUT, machine=7, sample_every=16) as made:
        yield made


def section(recording, name):
    """The words of one section, entry by entry."""
    layout = recording.layout
    starts = {
        "vectors": (layout.vectors_at, layout.vectors, 3),
        "edges": (layout.edges_at, layout.edges, 3),
        "rings": (layout.rings_at, layout.rings, 3),
        "drains": (layout.drains_at, layout.drains, 3),
    }
    at, count, width = starts[name]
    return [tuple(recording.words[at + width * entry : at + width * (entry + 1)]) for entry in range(count)]


def a_machine(program=idle):
    """A machine with two vectors, which runs a program."""
    vm = Vm(
        profiles.QEMU_DOORBELL,
        vectors=2,
        role="peer",
        signal=lambda line, value: None,
        ledger=NoLedger(),
        clock=lambda: 0,
        random=None,
        sample_every=0,
    )
    vm.place(0, memoryview(bytearray(4096)))
    vm.start(program)
    return vm


# The file


@given(st.builds(RecordingLayout, *[st.integers(0, 1000)] * 4))
def test_sections_follow_each_other_without_gap_or_overlap(layout):
    ends = [
        (HEADER_WORDS, layout.vectors_at),
        (layout.vectors_at + 3 * layout.vectors, layout.edges_at),
        (layout.edges_at + 3 * layout.edges, layout.rings_at),
        (layout.rings_at + 3 * layout.rings, layout.drains_at),
        (layout.drains_at + 3 * layout.drains, layout.words),
    ]
    assert all(end == start for end, start in ends)


def test_a_new_recording_says_what_it_is_and_is_reserved(recording, path):
    words = recording.words
    assert words[header.MACHINE] == 7
    assert words[header.SAMPLE_EVERY] == 16
    assert words[header.PEER] == NO_PEER
    assert words[header.STATE] == State.STARTING
    assert path.read_bytes()[:8] == b"IVSIMREC"
    status = path.stat()
    assert status.st_size == LAYOUT.words * WORD_BYTES
    assert status.st_blocks * 512 >= status.st_size
    assert stat.S_IMODE(status.st_mode) == 0o600


def test_header_words_are_all_different():
    names = "MAGIC_AT VERSION_AT MACHINE VECTORS EDGES RINGS DRAINS SAMPLE_EVERY STATE PEER PING PING_NS READY_NS"
    names += " STARTED_NS STOPPED_NS EDGES_USED RINGS_USED DRAINS_USED OF_MACHINE INCARNATION DOMAIN MISSED_OLDEST_NS"
    words = [getattr(header, name) for name in names.split()] + [*COUNTER_AT.values()]
    assert len(set(words)) == len(words)
    assert max(words) < HEADER_WORDS


def test_every_counter_has_a_word_and_adds_up():
    counted = Counters(**{name: place for place, name in enumerate(COUNTER_AT, start=1)})
    assert Counters.total([counted, counted]).named() == {name: 2 * value for name, value in counted.named().items()}
    assert Counters.total([]) == Counters()
    assert [*COUNTER_AT] == [*Counters.__struct_fields__]


def test_stored_words_are_visible_in_another_mapping(recording, path):
    with Recording.open(path) as other:
        assert other.layout == LAYOUT
        recording.words[header.PING] = 3
        assert other.words[header.PING] == 3


def test_a_file_that_exists_is_not_overwritten(recording, path):
    with pytest.raises(FileExistsError):
        Recording.create(path, LAYOUT, machine=0, sample_every=1)
    assert recording.words[header.MACHINE] == 7


def test_a_full_disk_is_found_when_the_recording_is_made(path, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(HostError, match=r"MiB for samples cannot be reserved: No space left"):
        Recording.create(path, LAYOUT, machine=0, sample_every=1)
    assert not path.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: HEADER_WORDS * WORD_BYTES - 1],
        lambda data: b"X" + data[1:],
        lambda data: data[:8] + struct.pack("=Q", 99) + data[16:],
        lambda data: data[:-1],
        lambda data: data[:-8],
        lambda data: data[:24] + b"\xff" * 32 + data[56:],
    ],
    ids=["empty", "no header", "magic", "version", "a byte short", "a word short", "huge sections"],
)
def test_a_file_that_is_no_recording_is_refused(recording, path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match="not a recording"):
        Recording.open(path)


def test_a_recording_cut_at_any_byte_is_refused_and_nothing_leaks(recording, path, tmp_path):
    data = path.read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(data)):
        cut.write_bytes(data[:size])
        with pytest.raises(UsageError):
            Recording.open(cut)


@pytest.mark.parametrize("extra", [1, 7, 8, 4096])
def test_bytes_behind_the_end_do_no_harm(recording, path, tmp_path, extra):
    longer = tmp_path / "longer"
    longer.write_bytes(path.read_bytes() + bytes(extra))
    with Recording.open(longer) as opened:
        assert opened.layout == LAYOUT


def test_stored_words_survive_a_sigkill(path):
    Recording.create(path, LAYOUT, machine=1, sample_every=1).close()
    pid = os.fork()
    if pid == 0:
        recording = Recording.open(path)
        recorder = Recorder(recording)
        recorder.sample(recorder.open_edge(3, 1), 1, 0, 10, 20)
        drained = recorder.make_drains().drained
        drained(1, 5, 30)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with Recording.open(path) as recording:
        assert recording.words[header.RINGS_USED] == 1
        assert section(recording, "rings")[0] == (3 << 16 | 1, 10, 20)
        assert section(recording, "drains")[0] == (5 << 16 | 1, 30, 0)  # still being handled
        assert vectors_so_far(recording).tolist() == [[0, 0], [5, 1]]
    assert read(path, 1).vectors.tolist() == [[0, 0], [5, 1]]


class _Killed(Exception):  # noqa: N818  (no error)
    """What a SIGKILL does to the stores after it."""


class _Column:
    """A column of drains that takes so many stores, together with the others."""

    def __init__(self, column, left):
        self._column, self._left = column, left

    def __len__(self):
        return len(self._column)

    def __setitem__(self, place, word):
        if not self._left[0]:
            raise _Killed
        self._left[0] -= 1
        self._column[place] = word


@pytest.mark.parametrize("flushed", [0, 2, 3])
@pytest.mark.parametrize("stores", range(13))
def test_a_kill_after_any_store_leaves_whole_drains_and_their_sums(path, monkeypatch, stores, flushed):
    """An entry has three stores: what was drained, when, and when it was handled. It counts from the second one on."""
    with Recording.create(path, LAYOUT, machine=1, sample_every=1) as recording:
        left = [stores]
        columns = [_Column(column, left) for column in recording.drain_columns()]
        monkeypatch.setattr(Recording, "drain_columns", lambda _: columns)
        drains = Recorder(recording).make_drains()
        deliver = drains.recording(a_machine(), lambda: 7)
        with contextlib.suppress(_Killed):
            for number in range(4):
                if number == flushed:
                    drains.flush()
                deliver(number % 2, number + 1)
        kept = (stores + 1) // 3
        sums = [[sum(number + 1 for number in range(kept) if number % 2 == vector), 0] for vector in (0, 1)]
        for number in range(kept):
            sums[number % 2][1] += 1
        assert vectors_so_far(recording).tolist() == sums
        assert totals_so_far(recording)[1:3] == (kept * (kept + 1) // 2, kept)
    records = read(path, 1)
    assert (records.vectors.tolist(), len(records.drains), records.problems) == (sums, kept, [])
    handled = [row[2] for chunk in records.drains.chunks() for row in chunk.tolist()]
    assert handled == [7] * (stores // 3) + [0] * (kept - stores // 3)


@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1])
def test_a_recording_with_few_samples_is_read_once(path, count):
    with Recording.create(path, RecordingLayout(2, 1, FEW + 1, FEW + 1), machine=1, sample_every=1) as recording:
        recorder = Recorder(recording)
        edge, drains = recorder.open_edge(3, 1), recorder.make_drains()
        for number in range(count):
            recorder.sample(edge, number + 1, 0, 10, 20 + number)
            drains.record(1, 1, 30 + number, 40)
    records = read(path, 1)
    path.unlink()
    if count > FEW:
        with pytest.raises(FileNotFoundError):
            list(records.rings.chunks())
        return
    rows = [
        [row for chunk in entries.chunks() for row in chunk.tolist()] for entries in (records.rings, records.drains)
    ]
    assert rows[0] == [[3 << 16 | 1, 10, 20 + number] for number in range(count)]
    assert rows[1] == [[1 << 16 | 1, 30 + number, 40] for number in range(count)]


def test_a_recorded_delivery_does_what_delivery_in_steps_does(tmp_path):
    """Also for several doorbells at once, masked vectors, vectors that fire later, and a full section."""
    seen = {}
    for way in ("at once", "in steps"):
        heard, times = [], iter(range(10, 100))

        def program(guest, heard=heard):
            while True:
                heard.append((yield FOREVER if len(heard) < 4 else 50))

        with Recording.create(tmp_path / way, LAYOUT, machine=7, sample_every=1) as recording:
            vm, recorder = a_machine(program), Recorder(recording)
            drains = recorder.make_drains()
            vm.on_left, vm.on_fired = drains.left, recorder.count_fired
            clock = times.__next__
            deliver = drains.recording(vm, clock)
            waits = []
            for vector, count in ((0, 1), (1, 1), (1, 3), (0, 2), (1, 1), (0, 1), (0, 4)):
                vm.mask(1, masked=len(waits) in (2, 4))
                if way == "at once":
                    waits.append(deliver(vector, count))
                else:
                    drains.drained(vector, count, clock())
                    waits.append(vm.deliver(vector, count))
                    drains.handled(clock())
            drains.flush()
            seen[way] = heard, waits, section(recording, "drains"), bytes(recording.words)
    heard, waits, entries, _ = seen["at once"]
    assert heard[:4] == [Interrupt(0, 1), Interrupt(1, 1), Interrupt(1, 1), Interrupt(0, 2)]
    assert waits[0] is FOREVER
    assert waits[-1] == 50
    assert entries[:3] == [(1 << 16, 10, 11), (1 << 16 | 1, 12, 13), (3 << 16 | 1, 14, 0)]
    assert seen["at once"] == seen["in steps"]


@pytest.mark.parametrize("after_ms", [1, 5, 20])
def test_a_kill_at_any_time_loses_no_drain_that_was_stored(path, after_ms):
    size = 1 << 17
    Recording.create(path, RecordingLayout(2, 1, 1, size), machine=1, sample_every=1).close()
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        drains = Recorder(Recording.open(path)).make_drains()
        deliver = drains.recording(a_machine(), lambda: 7)
        os.write(tell, b"x")
        for number in range(size):
            deliver(number % 2, number + 1)
            if number % 1000 == 0:
                drains.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    os.read(told, 1)
    time.sleep(after_ms / 1e3)  # whenever that is: every moment is one to be killed at
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)
    records = read(path, 1)
    entries = np.vstack([*records.drains.chunks(), np.zeros((0, 3), np.int64)])
    assert (entries[:, 0] >> 16).tolist() == list(range(1, len(entries) + 1))
    assert records.vectors[:, 0].tolist() == [int((entries[at::2, 0] >> 16).sum()) for at in (0, 1)]
    assert records.vectors[:, 1].tolist() == [-(-(len(entries) - at) // 2) for at in (0, 1)]
    assert (entries[:-1, 2] == 7).all()
    with Recording.open(path) as recording:
        assert vectors_so_far(recording).tolist() == records.vectors.tolist()


def test_a_drain_that_is_recorded_at_once_is_stored_as_one_in_two_steps(tmp_path):
    """Also beside drains in two steps, behind another recording in its file, and where the section is full."""
    pack = RecordingPack(lambda row: tmp_path / str(row))
    layout = RecordingLayout(2, 1, 1, 3)
    one, other, last = (pack.create(row, layout, sample_every=1, of=row, incarnation=1, domain=0) for row in range(3))
    for recording, at_once in ((one, False), (other, True), (last, False)):
        drains = Recorder(recording).make_drains()
        for vector, count in ((0, 3), (1, 1), (1, 4), (0, 2)):
            if at_once and vector:
                drains.record(vector, count, 50, 60)
            else:
                drains.drained(vector, count, 50)
                drains.handled(60)
        drains.flush()
    entries = [recording.words[layout.drains_at :].tolist() for recording in (one, other, last)]
    assert entries[0] == entries[1] == entries[2] == [3 << 16, 50, 60, 1 << 16 | 1, 50, 60, 4 << 16 | 1, 50, 60]
    assert [vectors_so_far(recording).tolist() for recording in (one, other)] == [[[5, 2], [5, 2]]] * 2
    for recording in (one, other, last):
        recording.close()
    pack.close()


def test_sums_are_kept_up_to_date_entry_by_entry_and_in_great_numbers(path):
    with Recording.create(path, RecordingLayout(3, 1, 1, 40_000), machine=1, sample_every=1) as recording:
        recorder = Recorder(recording)
        drains = recorder.make_drains()
        expected, number = [[0, 0], [0, 0], [0, 0]], 0
        for more in (0, 1, 31, 33, 0, 20_000, 5, 19_930, 7):
            for _ in range(more):
                drains.drained(number % 3, 2, 5)
                drains.handled(6)
                expected[number % 3][0] += 2
                expected[number % 3][1] += 1
                number += 1
            assert vectors_so_far(recording).tolist() == expected
            assert drains_so_far(recording) == min(number, 40_000)
        recorder.count_fired(1)
        drains.drained(0, 1, 5)
        drains.left(0, 1, 0)
        expected[1][1] += 1
        expected[0][0] += 1
        assert vectors_so_far(recording).tolist() == expected
    assert read(path, 1).vectors.tolist() == expected


# The recorder


def test_a_recorder_is_a_ledger(recording):
    ledger: Ledger = Recorder(recording)
    edge = ledger.open_edge(3, 1)
    ledger.store_edge(edge, 100, 7)
    ledger.store_nowhere(4)
    assert section(recording, "edges")[0] == (3 << 16 | 1, 100, 7)
    assert recording.words[header.EDGES_USED] == 1
    assert recording.words[COUNTER_AT["rung_nowhere"]] == 4


def test_the_highest_doorbell_fits(recording):
    recorder = Recorder(recording)
    recorder.store_edge(recorder.open_edge(65535, 65535), (1 << 64) - 1, (1 << 64) - 1)
    assert section(recording, "edges")[0] == (0xFFFF_FFFF, (1 << 64) - 1, (1 << 64) - 1)


def test_one_edge_too_many_is_an_error_that_changes_nothing(recording):
    recorder = Recorder(recording)
    assert len({recorder.open_edge(peer, 0) for peer in range(LAYOUT.edges)}) == LAYOUT.edges
    before = bytes(recording.words)
    with pytest.raises(OverflowError, match="3 are in use"):
        recorder.open_edge(9, 0)
    assert bytes(recording.words) == before


@pytest.mark.parametrize("count", [0, 3, 4, 5, 50])
def test_samples_without_room_are_counted_and_touch_nothing_else(recording, count):
    recorder = Recorder(recording)
    edge = recorder.open_edge(7, 1)
    for at in range(count):
        recorder.sample(edge, at + 1, at, at + 100, at + 200)
    stored = min(count, LAYOUT.rings)
    assert recording.words[header.RINGS_USED] == stored
    assert recording.words[COUNTER_AT["samples_refused"]] == count - stored
    assert section(recording, "rings")[:stored] == [(7 << 16 | 1, at + 100, at + 200) for at in range(stored)]
    assert section(recording, "edges")[0] == ((7 << 16 | 1, count, count - 1) if count else (7 << 16 | 1, 0, 0))
    assert section(recording, "drains") == [(0, 0, 0)] * LAYOUT.drains


@pytest.mark.parametrize("count", [0, 4, 5, 6, 50])
def test_drains_without_room_still_count(recording, count):
    drains = Recorder(recording).make_drains()
    for at in range(count):
        drains.drained(at % 2, 3, 100 + at)
        drains.handled(200 + at)
    stored = min(count, LAYOUT.drains)
    assert drains_so_far(recording) == stored
    assert recording.words[COUNTER_AT["drains_refused"]] == count - stored
    assert section(recording, "drains")[:stored] == [(3 << 16 | at % 2, 100 + at, 200 + at) for at in range(stored)]
    sums = [[3 * ((count + 1) // 2), (count + 1) // 2], [3 * (count // 2), count // 2]]
    assert vectors_so_far(recording).tolist() == sums


def test_without_sections_nothing_is_stored_but_everything_counted(tmp_path):
    with Recording.create(tmp_path / "r", RecordingLayout(1, 1, 0, 0), machine=0, sample_every=0) as recording:
        recorder = Recorder(recording)
        recorder.sample(recorder.open_edge(1, 0), 1, 0, 1, 1)
        drains = recorder.make_drains()
        drains.drained(0, 1, 1)
        drains.handled(2)
        assert recording.words[COUNTER_AT["samples_refused"]] == recording.words[COUNTER_AT["drains_refused"]] == 1
        assert vectors_so_far(recording).tolist() == [[1, 1]]


class Model(RuleBasedStateMachine):
    """A recorder against lists, whatever is recorded in whatever order."""

    WORD = st.integers(1, (1 << 63) - 1)

    def __init__(self):
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.recording = Recording.create(Path(self.directory.name, "r"), LAYOUT, machine=0, sample_every=1)
        self.recorder = Recorder(self.recording)
        self.writer = self.recorder.make_drains()
        self.rings, self.drains, self.edges = [], [], []
        self.numbers = []

    @precondition(lambda self: self.edges)
    @rule(number=st.integers(0, LAYOUT.edges - 1), rung=WORD, refused=WORD, at=WORD)
    def ring(self, number, rung, refused, at):
        number %= len(self.edges)
        self.recorder.sample(self.numbers[number], rung, refused, at, at)
        key = self.edges[number][0]
        self.rings.append((key, at, at))
        self.edges[number] = key, rung, refused

    @rule(vector=st.integers(0, 1), count=st.integers(1, 1 << 40), at=WORD)
    def drain(self, vector, count, at):
        self.writer.drained(vector, count, at)
        self.writer.handled(at)
        self.drains.append((count << 16 | vector, at, at))

    @rule(peer=st.integers(0, 65535), vector=st.integers(0, 65535), rung=WORD)
    def edge(self, peer, vector, rung):
        if len(self.edges) < LAYOUT.edges:
            self.numbers.append(self.recorder.open_edge(peer, vector))
            self.recorder.store_edge(self.numbers[-1], rung, 0)
            self.edges.append((peer << 16 | vector, rung, 0))

    def teardown(self):
        words = self.recording.words
        assert section(self.recording, "rings")[: words[header.RINGS_USED]] == self.rings[: LAYOUT.rings]
        stored = drains_so_far(self.recording)
        assert section(self.recording, "drains")[:stored] == self.drains[: LAYOUT.drains]
        assert section(self.recording, "edges")[: words[header.EDGES_USED]] == self.edges
        assert words[header.RINGS_USED] + words[COUNTER_AT["samples_refused"]] == len(self.rings)
        assert stored + words[COUNTER_AT["drains_refused"]] == len(self.drains)
        self.recording.close()
        self.directory.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30)
