"""The help of the commands as man pages and as a page of the site; and the site itself, where it was asked for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs import manual
from sim.commands.catalogue import COMMANDS
from tests.browser import DESKTOP, PHONE, accessibility, browser, needs_browser
from tests.system.transcripts import ROOT

SITE = "IVSHMEM_TEST_SITE"
"""The variable of the environment that has the site built: `make docs` takes a minute."""


def test_each_command_has_a_man_page_with_its_options_and_its_example() -> None:
    pages = manual.man_pages()
    assert list(pages) == ["ivsim.1", *(f"ivsim-{name}.1" for name in COMMANDS)]
    assert "\\-\\-dry\\-run" in pages["ivsim-run.1"]
    assert ".SS ivsim attach ring" in pages["ivsim-attach.1"]
    for name, entry in COMMANDS.items():
        assert entry.example.replace("-", "\\-") in pages[f"ivsim-{name}.1"]


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc here")
def test_the_man_pages_are_correct(tmp_path: Path) -> None:
    for name, text in manual.man_pages().items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *sorted(map(str, tmp_path.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


def test_the_site_lists_pages_that_exist_and_every_command() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    written = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert listed <= written | {"commands.md", "changelog.md"}  # `make docs` warns of a page that is not listed
    text = manual.commands_markdown()
    assert "\\<" not in text  # Markdown of Python shows the backslash
    assert "0&lt;=x&lt;=65535" in text
    assert re.findall(r"^## ivsim (\w+)$", text, re.MULTILINE) == list(COMMANDS)


@needs_browser
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(SITE not in os.environ, reason=f"takes minutes; {SITE}=1 builds the site and looks at all pages")
def test_the_site_is_accessible_and_found_without_a_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The page 404.html is for web servers: its links begin at their root.
    pages = sorted(path for path in tmp_path.rglob("*.html") if path.name != "404.html")
    assert {"index.html", "commands.html", "peers.html"} <= {path.name for path in pages}
    interface = re.sub(r"<[^>]+>", "", (tmp_path / "api" / "peers.html").read_text())
    assert not re.search(r"= (DEFAULT_PATH|VECTORS|V0)\b", interface)  # values, not names of constants
    # A fence that is not understood is text, and makes code of what follows.
    assert not [path.name for path in pages if "```" in path.read_text()]
    with browser() as page:
        for size in (DESKTOP, PHONE):
            for dark in (False, True):
                page.resize(*size, dark=dark)
                for path in pages:
                    page.open(path.as_uri())
                    assert accessibility(page) == [], (path.name, size, dark)
                    assert not page.run("document.documentElement.scrollWidth > innerWidth"), (path.name, size)
        page.resize(*DESKTOP)
        page.open((tmp_path / "index.html").as_uri())
        page.run("document.querySelector('.md-search__input').focus()")
        page.send("Input.insertText", text="coordinated omission")
        page.key("e", 69)
        page.wait("document.querySelector('.md-search-result__item a')")
        assert page.complaints == []
        assert not [each for each in page.requests if each.startswith("http")]
