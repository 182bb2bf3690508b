"""The figures for people and for programs: a table of 80 columns, and JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

from tests.bench.figure import Figure
from tests.bench.host import cpu_model, describe_interpreter
from tests.bench.setting import Setting

__all__ = ["disturbance", "header", "line", "write_json"]

NAME_WIDTH = 31
STEADY = 1.1


def header() -> str:
    """The head of the table."""
    return f"{'':{NAME_WIDTH}} {'ours':>7} {'other':>7} {'ratio':>5} {'+-':>4} {'must':>4} {'reach':>4}"


def line(figure: Figure) -> str:
    """One figure; +- is half the distance of the quartiles, the last column compares it with its bar."""
    name = f"{figure.name}, {figure.unit}"
    other = "" if figure.other is None else _number(figure.other)
    ratio = "" if figure.absolute else f"{figure.value:.2f}"
    low, high = figure.quartiles
    spread = "" if figure.absolute else f"{(high - low) / 2:.2f}"
    must, reach = (f"{figure.bar.must:.2f}", f"{figure.bar.reach:.2f}") if figure.bar else ("", "")
    text = f"{name:{NAME_WIDTH}} {_number(figure.ours):>7} {other:>7} {ratio:>5} {spread:>4} {must:>4} {reach:>4}"
    return f"{text} {figure.verdict}".rstrip()


def disturbance(figures: Sequence[Figure]) -> str:
    """A sentence if the same write took C longer at one time than at another; otherwise nothing."""
    writes = [figure.other for figure in figures if figure.benchmark in ("single", "batch") and figure.other]
    if not writes or max(writes) <= STEADY * min(writes):
        return ""
    return (
        f"! disturbed: C's write took from {min(writes):.0f} to {max(writes):.0f} ns in the course of this run, and\n"
        "! what slows C down slows Python down more: repeat it when nothing else runs"
    )


def _number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.2f} M"
    if value < 0.1:
        return f"{value:.4f}"  # a share: its bar is some hundredths
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def write_json(path: Path, setting: Setting, figures: Sequence[Figure], noise: str) -> None:
    """All rounds of all figures, and the host on which they were measured."""
    document = {
        "schema_version": 2,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "interpreter": describe_interpreter(),
        "compiler": setting.reference.compiler,
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "quiet": not noise,
        "noise": noise,
        "pinned": [setting.cpu, setting.other_cpu],
        "load_1_min": os.getloadavg()[0],
        "disturbed": bool(disturbance(figures)),
        "figures": [figure.plain() for figure in figures],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".new")
    beside.write_text(json.dumps(document, indent=1) + "\n")
    beside.replace(path)
