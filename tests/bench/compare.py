"""``python -m tests.bench.compare [OLD NEW]``: two results of the benchmarks side by side, the last two by default.

``--table`` prints the last result as a table for the documentation instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["compare", "kept", "main", "table"]

KEPT = Path("runs/bench")
NAME_WIDTH = 44
Document = Mapping[str, Any]


def kept(folder: Path) -> list[Path]:
    """The results that are kept in a directory, the oldest first."""
    return sorted(folder.glob("*.json"))


def compare(old: Document, new: Document) -> Iterator[str]:
    """The lines of the comparison: medians with their quartiles, and what differs by more than these."""
    for name, document in (("old", old), ("new", new)):
        yield f"{name}: {document['time']}, {document['interpreter']}, {document['cpu']}{_quiet(document)}"
    yield f"{'':{NAME_WIDTH}} {'old':>22} {'new':>22}"
    before = {(each["benchmark"], each["name"]): each for each in old["figures"]}
    for figure in new["figures"]:
        earlier = before.pop((figure["benchmark"], figure["name"]), None)
        label = f"{figure['benchmark']}: {figure['name']}"
        there = _value(earlier) if earlier else "-"
        said = _difference(earlier, figure) if earlier else ""
        yield f"{label:{NAME_WIDTH}} {there:>22} {_value(figure):>22} {said}".rstrip()
    for (benchmark, name), figure in before.items():
        yield f"{f'{benchmark}: {name}':{NAME_WIDTH}} {_value(figure):>22} {'-':>22}"


def _quiet(document: Document) -> str:
    return "" if document["quiet"] else ", NOT QUIET"


def _value(figure: Document) -> str:
    low, high = figure["quartiles"]
    return f"{figure['value']:.3g} ({low:.3g}-{high:.3g})"


def _difference(old: Document, new: Document) -> str:
    """ "better" or "worse" when the quartiles do not overlap."""
    (old_low, old_high), (new_low, new_high) = old["quartiles"], new["quartiles"]
    if new_high < old_low:
        return "worse" if new["more_is_better"] else "better"
    if new_low > old_high:
        return "better" if new["more_is_better"] else "worse"
    return ""


def table(document: Document) -> Iterator[str]:
    """The result as a page of Markdown."""
    yield f"Measured {document['time'][:10]} on {document['cpu']}, Linux {document['kernel'].partition('-')[0]}."
    yield f"Interpreter: {document['interpreter']}. Reference: {document['compiler']}."
    if not document["quiet"]:
        yield f"{document['noise'].capitalize()}: the figures are upper bounds."
    yield ""
    yield "| benchmark | figure | value | quartiles | must be | aim | verdict |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for figure in document["figures"]:
        low, high = figure["quartiles"]
        bars = [f"{figure[name]:g}" if figure[name] is not None else "" for name in ("must", "reach")]
        unit = f" {figure['unit']}" if figure["value_is"] != "ratio" else ""
        cells = [figure["benchmark"], figure["name"], f"{figure['value']:.3g}{unit}", f"{low:.3g} - {high:.3g}", *bars]
        yield f"| {' | '.join(cells)} | {figure['verdict'] or ''} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns 2 without two results to compare."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description="Compare two results.")
    parser.add_argument("results", nargs="*", type=Path, help=f"JSON files; the last two of {KEPT} by default")
    parser.add_argument("--table", action="store_true", help="print one result as a table in Markdown")
    options = parser.parse_args(arguments)
    wanted = 1 if options.table else 2
    results = options.results or kept(KEPT)[-wanted:]
    if len(results) != wanted:
        print(f"tests.bench.compare: {wanted} results are needed, {len(results)} found", file=sys.stderr)
        return 2
    documents = [json.loads(path.read_text()) for path in results]
    print("\n".join(table(*documents) if options.table else compare(*documents)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
