"""The page of a run in a real browser: sizes, colours, keyboard, paper, and what axe-core says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.results import Run
from sim.views.html.page import page as page_of
from tests.browser import DESKTOP, PHONE, Page, accessibility, browser, needs_browser
from tests.sim.views.test_report import busy
from tests.synthetic import finish

pytestmark = needs_browser


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report."""
    parent = tmp_path_factory.mktemp("report")
    directory = busy(parent)
    finish(directory)
    file = parent / "report.html"
    file.write_text(page_of(Run(directory.path)))
    return file.as_uri()


@pytest.fixture(scope="module")
def shown(report: str) -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_accessible_and_fits(shown: Page, report: str, size: tuple[int, int], dark: bool) -> None:
    shown.resize(*size, dark=dark)
    shown.open(report)
    shown.run("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert accessibility(shown) == []
    assert not shown.run("document.documentElement.scrollWidth > innerWidth")
    assert shown.complaints == []
    assert set(shown.requests) == {report}


def test_the_values_under_a_line_by_keyboard(shown: Page, report: str) -> None:
    shown.resize(*DESKTOP)
    shown.open(report)
    tips = "[...document.querySelectorAll('.tip')].filter(each => !each.hidden).map(each => each.textContent)"
    for _ in range(100):
        shown.key("Tab", 9)
        if shown.run("document.activeElement.matches('svg[data-hover]')"):
            break
    assert shown.run(tips) == []
    shown.key("ArrowRight", 39)
    (first,) = shown.run(tips)
    shown.key("End", 35)
    (last,) = shown.run(tips)
    assert first != last
    shown.key("Escape", 27)
    assert shown.run(tips) == []


def test_the_page_prints(shown: Page, report: str, tmp_path: Path) -> None:
    shown.resize(*DESKTOP, dark=True)
    shown.open(report)
    shown.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
    night = {"name": "prefers-color-scheme", "value": "dark"}  # each call sets all of them
    shown.send("Emulation.setEmulatedMedia", media="print", features=[night])
    white, black = "rgb(255, 255, 255)", shown.run("getComputedStyle(document.body).color")
    assert shown.run("getComputedStyle(document.querySelector('figure')).backgroundColor") == white
    assert sum(map(int, black.removeprefix("rgb(").removesuffix(")").split(","))) < 200  # dark ink, also at night
    shown.send("Emulation.setEmulatedMedia", media="")
