"""Hooks of MkDocs: the pages that are made from the code, and links to files of the repository."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs import manual  # noqa: E402  (of this repository, wherever mkdocs is started)

COMMANDS = """\
# Commands

What `--help` prints, for every command. The package's man pages say the same: `man ivsim-run`.

"""
OF_REPOSITORY = re.compile(r"\]\(\.\./((?!docs/)[\w./-]+)\)")
# "```toml fragment": the second word tells the tests of docs/ what the block is.
FENCE = re.compile(r"^(```\w+) \w+$", re.MULTILINE)
# Copies of what the theme would load from elsewhere at reading time; `make docs` puts them here.
COPIES = ROOT / "build" / "docs"
MERMAID, WORKER = "mermaid.min.js", "iframe-worker.js"
FAR_WORKER = "https://unpkg.com/iframe-worker/shim"  # material/plugins/offline/plugin.py


def on_pre_build(config: Any) -> None:
    """Diagrams and the search index are loaded from the site itself."""
    missing = [name for name in (MERMAID, WORKER) if not (COPIES / name).exists()]
    if missing:
        raise PluginError(f"no {' and no '.join(missing)} in {COPIES}: `make docs` puts it there")
    config.extra_javascript.insert(0, f"assets/{MERMAID}")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """The script with which a page without a server searches comes from the site."""
    return output.replace(FAR_WORKER, "../" * page.file.src_uri.count("/") + f"assets/{WORKER}")


def on_files(files: Files, config: Any) -> Files:
    """Add the commands, the changelog, and the files of the repository that pages link to."""
    files.append(File.generated(config, "commands.md", content=COMMANDS + manual.commands_markdown()))
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    for name in (MERMAID, WORKER):
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(COPIES / name)))
    linked = {
        path
        for page in files.documentation_pages()
        for path in OF_REPOSITORY.findall(page.content_string)
        if (ROOT / path).is_file()
    }
    for path in sorted(linked):
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links that lead out of docs/ lead to the copies, and take the words away that only tests read."""
    up = "../" * page.file.src_uri.count("/")

    def moved(found: re.Match[str]) -> str:
        return f"]({up}repository/{found[1]})" if (ROOT / found[1]).is_file() else found[0]

    # The parser would not see the beginning of such a block, and take its end for the beginning of another.
    return FENCE.sub(r"\1", OF_REPOSITORY.sub(moved, markdown))
