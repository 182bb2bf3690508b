"""`ivsim top --web`: the page in a real browser while a run goes on, and what the server refuses."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator

import pytest

from nodes.errors import UsageError
from sim.commands.top_web import HOST, LiveServer
from sim.views.rates import Rates, plain
from tests.browser import DESKTOP, PHONE, accessibility, browser, needs_browser
from tests.system.test_top import snapshot

PATIENCE_S = 60.0
HOSTILE = "<script>alert('x')</script> & \"quoted\""


def publish(server: LiveServer, numbers: range) -> None:
    rates = Rates()
    for number in numbers:
        made = snapshot(number, title=HOSTILE, latency_ns={"p50": 1000 * number, "p99": 9000 * number})
        rates.update(made)
        server.publish(plain(made, rates, 0))


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with LiveServer(0) as server:
        yield server


def ask(server: LiveServer, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(server.address.removeprefix("http://").rstrip("/"), timeout=PATIENCE_S)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def test_a_browser_that_comes_late_or_again_gets_what_it_has_not_seen(server: LiveServer) -> None:
    publish(server, range(1, 4))
    with ask(server, "/events") as first, ask(server, "/events", **{"Last-Event-ID": "2"}) as again:
        closing = threading.Thread(target=server.close)
        closing.start()
        lines = [response.read().decode().split("\n\n") for response in (first, again)]
        closing.join()
    assert [[part.split("\n")[0] for part in each if part] for each in lines] == [
        ["id: 1", "id: 2", "id: 3", "event: end"],
        ["id: 3", "event: end"],
    ]


def test_only_this_host_is_answered_and_only_by_its_name(server: LiveServer) -> None:
    with ask(server, "/") as page:
        assert page.status == 200
        assert "default-src 'none'" in page.read().decode()
    with ask(server, "/", Host="elsewhere.example") as refused, ask(server, "/etc/passwd") as unknown:
        assert (refused.status, unknown.status) == (403, 404)
    port = int(server.address.split(":")[2].rstrip("/"))
    with pytest.raises(UsageError, match=f"cannot listen on {HOST}:{port}"):
        LiveServer(port)


@needs_browser
def test_the_pictures_grow_with_the_run_and_say_when_it_is_over(server: LiveServer) -> None:
    with browser() as page:
        page.resize(*DESKTOP)
        publish(server, range(1, 5))
        page.open(server.address)
        page.wait("document.querySelectorAll('#rates svg[role=img] .line').length === 2")
        assert page.run("document.getElementById('title').textContent") == HOSTILE
        assert page.run("document.querySelectorAll('script').length") == 1
        before = page.run("document.querySelector('#latency svg[role=img] .line').getAttribute('d')")
        publish(server, range(5, 9))
        page.wait(f"document.querySelector('#latency svg[role=img] .line').getAttribute('d') !== {before!r}")
        assert page.run("[...document.querySelectorAll('#groups tbody th')].map(each => each.textContent)") == [
            "storm",
            "idle",
        ]
        for size in (DESKTOP, PHONE):
            for dark in (False, True):
                page.resize(*size, dark=dark)
                assert accessibility(page) == [], (size, dark)
                assert not page.run("document.documentElement.scrollWidth > innerWidth"), size
        server.close()
        page.wait("document.getElementById('phase').textContent === 'over'")
        for size in (DESKTOP, PHONE):  # the pictures fit windows that change when nothing comes any more
            page.resize(*size)
            page.wait(
                "(it => it.viewBox.baseVal.width === it.clientWidth)(document.querySelector('#rates svg[role=img]'))"
            )
        assert page.complaints == []
        assert {each.partition("://")[2].partition("/")[0] for each in page.requests} == {server.hosts[0]}
