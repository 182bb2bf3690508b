"""MSI-X: layout, masks, pending bits, and when a message is sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.device.msix import CONTROL_ENABLE, CONTROL_FUNCTION_MASK, Layout, Msix, MsixMessage, Undelivered
from nodes.device.registers import AccessRules
from nodes.errors import GuestError, UsageError

RULES = AccessRules(widest_bytes=8, narrowest_bytes=4)
ON, HELD = CONTROL_ENABLE, CONTROL_ENABLE | CONTROL_FUNCTION_MASK


def table(
    vectors: int = 3,
    masked: Undelivered = Undelivered.PEND,
    disabled: Undelivered = Undelivered.LOSE,
    function_mask: bool = True,
) -> tuple[Msix, list[MsixMessage]]:
    sent: list[MsixMessage] = []
    layout = Layout.exclusive(vectors, 1, 2048)
    made = Msix(layout, sent.append, masked=masked, disabled=disabled, rules=RULES, function_mask=function_mask)
    for vector in range(vectors):
        made.window.write(16 * vector, 8, 0x1000 + 0x10 * vector)
        made.window.write(16 * vector + 8, 4, 0xA0 + vector)
    return made, sent


def unmask(made: Msix, vector: int, masked: int = 0) -> None:
    made.window.write(16 * vector + 12, 4, masked)


@pytest.mark.parametrize(
    ("vectors", "pba_offset", "bar_bytes", "pba_bytes"),
    [
        (1, 0x800, 0x1000, 8),
        (64, 0x800, 0x1000, 8),
        (65, 0x800, 0x1000, 16),
        (128, 0x800, 0x1000, 16),
        (129, 0x810, 0x1000, 24),
        (255, 0xFF0, 0x2000, 32),
        (2048, 0x8000, 0x1_0000, 256),
    ],
)
def test_layout(vectors: int, pba_offset: int, bar_bytes: int, pba_bytes: int) -> None:
    layout = Layout.exclusive(vectors, 1, 2048)
    assert (layout.pba_offset, layout.bar_bytes, layout.pba_bytes) == (pba_offset, bar_bytes, pba_bytes)
    assert layout.table_bytes == 16 * vectors <= pba_offset


@pytest.mark.parametrize(("vectors", "limit"), [(0, 32), (33, 32), (-1, 2048), (2049, 2048)])
def test_vectors_out_of_range(vectors: int, limit: int) -> None:
    with pytest.raises(UsageError, match="number of MSI-X vectors is invalid"):
        Layout.exclusive(vectors, 1, limit)


def test_a_message_needs_four_things() -> None:
    made, sent = table()
    steps: list[Callable[[], None]] = [
        lambda: made.set_control(ON, True),
        lambda: unmask(made, 1),
        lambda: made.set_control(HELD, True),
        lambda: made.set_control(ON, False),
        lambda: made.set_control(ON, True),
    ]
    seen = []
    for step in steps:
        step()
        seen.append(made.fires[1])
    assert seen == [False, True, False, False, True]
    assert made.notify(1) is None
    assert sent == [MsixMessage(1, 0x1010, 0xA1)]
    assert made.fires == [False, True, False]


def test_the_list_of_what_fires_stays_the_same_object() -> None:
    made, _ = table()
    fires = made.fires
    for control in (ON, 0, ON):
        made.set_control(control, True)
    unmask(made, 2)
    made.use(False)
    made.use(True)
    made.reset()
    made.set_control(ON, True)
    unmask(made, 0)
    assert made.fires is fires
    assert fires == [True, False, False]


def test_pending_is_sent_once_on_unmask() -> None:
    made, sent = table()
    made.set_control(ON, True)
    for _ in range(3):
        assert made.notify(0) is Undelivered.PEND
    assert made.window.read(0x800, 4) == 1
    unmask(made, 0)
    unmask(made, 0)
    assert sent == [MsixMessage(0, 0x1000, 0xA0)]
    assert made.window.read(0x800, 4) == 0


def test_pending_survives_disabling_and_is_sent_on_enabling() -> None:
    made, sent = table()
    made.set_control(ON, True)
    made.notify(2)
    made.set_control(0, True)
    unmask(made, 2)
    assert sent == []
    assert made.window.read(0x800, 8) == 4
    made.set_control(HELD, True)
    assert sent == []
    made.set_control(ON, True)
    assert sent == [MsixMessage(2, 0x1020, 0xA2)]


def test_without_bus_master_a_message_is_lost() -> None:
    made, sent = table()
    made.set_control(ON, True)
    made.notify(0)
    made.set_control(ON, False)
    unmask(made, 0)
    assert (sent, made.pending) == ([], 0)
    assert made.notify(0) is Undelivered.LOSE


def test_kept_doorbells_wait_for_a_look_or_for_the_vector() -> None:
    made, sent = table(masked=Undelivered.KEEP, disabled=Undelivered.KEEP)
    made.notify(0)
    made.notify(1)
    assert made.window.read(0x800, 4) == 0  # no poll while MSI-X is disabled
    made.set_control(ON, True)
    assert (made.kept, made.pending) == (0, 3)  # enabling has polled
    made.notify(1)
    assert (made.kept, made.pending) == (2, 3)
    assert made.window.read(0x800, 4) == 3
    assert (made.kept, made.pending) == (0, 3)
    made.notify(1)
    unmask(made, 1)
    assert len(sent) == 2  # the eventfd's own, and the pending bit's
    made.notify(2)
    made.reset()
    assert (made.kept, made.pending) == (4, 0)


def test_a_device_that_ignores_the_function_mask() -> None:
    made, sent = table(function_mask=False)
    made.set_control(HELD, True)
    unmask(made, 0)
    made.notify(0)
    assert len(sent) == 1


def test_vectors_not_in_use_drop_everything() -> None:
    made, sent = table(disabled=Undelivered.PEND)
    made.use(False)
    assert made.notify(0) is Undelivered.LOSE
    made.set_control(ON, True)
    unmask(made, 0)
    assert made.notify(0) is Undelivered.LOSE
    assert (sent, made.pending) == ([], 0)


def test_table_and_pending_bits_as_memory() -> None:
    made, _ = table(vectors=2)
    made.window.write(0, 8, 0x1122_3344_5566_7788)
    made.window.write(8, 4, 0xFFFF_FFFF)
    made.window.write(12, 4, 0xFFFF_FFFE)
    made.window.write(8, 2, 0)
    made.window.write(9, 1, 0)
    assert made.window.read(0, 8) == 0x1122_3344_5566_7788
    assert made.window.read(8, 8) == 0xFFFF_FFFE_FFFF_FFFF
    assert made.window.read(0, 2) == made.window.read(2, 4) == 0
    for offset in (32, 0x7F8, 0x800, 0x808, 0xFF8):
        made.window.write(offset, 8, (1 << 64) - 1)
        assert made.window.read(offset, 8) == 0
    assert made.message(0) == MsixMessage(0, 0x1122_3344_5566_7788, 0xFFFF_FFFF)


def test_pending_bits_of_many_vectors() -> None:
    made, _ = table(vectors=130)
    made.set_control(ON, True)
    for vector in (0, 63, 64, 129):
        made.notify(vector)
    at = made.layout.pba_offset
    assert [made.window.read(at + 8 * word, 8) for word in range(3)] == [1 << 63 | 1, 1, 2]


@pytest.mark.parametrize("vector", [-1, 3])
def test_an_unknown_vector_is_refused(vector: int) -> None:
    with pytest.raises(GuestError, match="the device has 3"):
        table()[0].message(vector)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("control"), st.sampled_from((0, ON, HELD, CONTROL_FUNCTION_MASK)), st.booleans()),
        st.tuples(st.just("mask"), st.integers(0, 2), st.integers(0, 3)),
        st.tuples(st.just("notify"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("use"), st.booleans(), st.just(0)),
        st.tuples(st.just("reset"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("fate", Undelivered)
@given(operations=OPERATIONS)
def test_fires_predicts_notify_and_every_interrupt_is_counted(
    fate: Undelivered, operations: list[tuple[str, int, int]]
) -> None:
    made, sent = table(masked=fate, disabled=fate)
    for kind, first, second in operations:
        if kind == "control":
            made.set_control(first, bool(second))
        elif kind == "mask":
            unmask(made, first, second)
        elif kind == "use":
            made.use(bool(first))
        elif kind == "reset":
            made.reset()
        else:
            fires, before = made.fires[first], len(sent)
            result = made.notify(first)
            assert (result is None) == fires == (len(sent) == before + 1)
            assert not fires or sent[-1].vector == first
            if result is Undelivered.PEND:
                assert made.pending >> first & 1
            if result is Undelivered.KEEP:
                assert made.kept >> first & 1
        for vector in range(3):
            assert made.fires[vector] == (
                made.enabled
                and not made.function_masked
                and made.bus_master
                and made.used[vector]
                and not made.table[4 * vector + 3] & 1
            )
            if made.fires[vector]:
                assert not (made.pending | made.kept) >> vector & 1, "unmasked and still waiting"
