"""sim.wire.server: many clients that join or leave at once cost work in proportion to the clients that are told.

Work is counted, not timed: the calls that the interpreter makes, Python's and C's.
"""

from __future__ import annotations

import sys

import pytest

from nodes.wire.protocol import DIALECTS
from tests.serving import Reader, SteppedServer

FEW, MANY = 60, 240


def calls(action):
    """How many calls ``action`` makes."""
    count = 0

    def profile(_frame, event, _argument):
        nonlocal count
        count += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(previous)
    return count


@pytest.fixture
def make_site(short_path):
    made = []

    def make(**options):
        made.append(SteppedServer(short_path / f"s{len(made)}", **options))
        return made[-1]

    yield make
    for site in made:
        site.stack.close()


def join_many(site, count):
    """Clients that have joined and never read."""
    expected = len(site.server.peers) + count
    clients = [site.raw() for _ in range(count)]
    site.until(lambda: len(site.server.peers) == expected)
    site.idle()
    return clients


def leaving(site, clients):
    """Calls of the server until it has noticed that all of these clients have left, in turns of the loop."""
    for client in clients:
        client.close()
    left = len(site.server.peers) - len(clients)
    return calls(lambda: site.until(lambda: len(site.server.peers) == left) or site.idle())


def test_clients_that_all_leave_at_once_cost_no_more_each_when_they_are_many(make_site):
    few, many = (make_site() for _ in range(2))
    few_calls = leaving(few, join_many(few, FEW))
    many_calls = leaving(many, join_many(many, MANY))
    assert many_calls / MANY < 1.5 * few_calls / FEW
    assert many.server.departed == []  # all their eventfds are closed


def test_leaves_are_told_to_those_that_stay_and_only_to_them(make_site):
    site = make_site()
    stays, reads = site.join(), site.join()
    clients = join_many(site, FEW)
    site.catch_up(stays, reads)
    leaving(site, clients)
    site.catch_up(stays, reads)
    assert stays.left == reads.left
    assert sorted(stays.left) == [*range(2, 2 + FEW)]


def test_clients_that_do_not_read_add_no_work_to_each_leave(make_site):
    """A hundred clients leave one after the other, beside few or many that take no more."""
    counts = []
    for mute in (FEW, MANY):
        site = make_site(vectors=8)
        join_many(site, mute)
        assert len(site.server._announcements.stuck) > mute / 2
        leavers = join_many(site, 40)
        counts.append(sum(leaving(site, [leaver]) for leaver in leavers))
    assert counts[1] < 1.5 * counts[0]


@pytest.mark.parametrize("turns", [1, 700])
def test_a_client_that_takes_no_more_hears_of_all_leaves_in_order_when_it_reads_again(make_site, turns):
    """The leaves that it missed, between those that joined before and after it."""
    site = make_site(vectors=1)
    sock = site.raw()
    site.until(lambda: 0 in site.server.peers)
    mute = site.server.peers[0]
    join_many(site, 300)
    assert mute.stuck_by == "full"
    for turn in range(turns):
        client = site.raw()
        site.until(lambda turn=turn: 301 + turn in site.server.peers)
        client.close()
        site.until(lambda turn=turn: 301 + turn not in site.server.peers)
        site.idle()
        client = None
    reader = Reader(sock)
    reader.client.vectors = 1
    site.stack.callback(reader.close)
    site.catch_up(reader)
    assert not mute.stuck_by
    assert reader.left == [*range(301, 301 + turns)]
    assert {peer for peer, _ in reader.lines} == {*range(301)}


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_clients_that_join_together_cost_no_more_each_than_they_are_told(make_site, dialect):
    few, many = (make_site(dialect=dialect) for _ in range(2))

    def joining(site, count):
        clients = [site.raw() for _ in range(count)]
        assert clients
        return calls(lambda: site.until(lambda: len(site.server.peers) == count) or site.idle())

    few_calls, many_calls = joining(few, FEW), joining(many, MANY)
    told = MANY / FEW  # each is told of all: in batches, but a socket takes some 278 messages
    assert many_calls / MANY < told * few_calls / FEW
