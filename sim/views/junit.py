"""Verdicts as JUnit XML, which continuous integration servers display as tests."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from xml.etree import ElementTree

from nodes.errors import UsageError
from sim.results import Run
from sim.results.summary import ExpectationVerdict
from sim.views.printable import printable

FINE = ("finished", "degraded")

_printable = functools.partial(printable, keep="\n")


def junit(verdicts: Sequence[ExpectationVerdict], run: Run) -> str:
    """One test suite: that the run finished, that its counts balance, and each expectation.

    A run that an expectation ended fails once, by that expectation; its end is a skipped test then.
    """
    title, duration_s = run.path.name, 0.0
    try:
        figures = run.figures
        title, duration_s = figures.title, figures.elapsed_s
        sums = (
            f"rung {figures.rung}, delivered {figures.delivered}, pending {figures.pending}, refused {figures.refused}"
        )
        balance = "" if run.balanced else f"the counts do not balance: {sums}"
    except UsageError as error:
        balance = str(error)
    skipped = "ended by an expectation" if run.aborted and not all(verdict.met for verdict in verdicts) else ""
    finished = "" if run.status in FINE or skipped else f"{run.status}: {run.reason}"
    cases = [
        ("the run finished", finished, skipped),
        ("the counts balance", balance, ""),
        *((str(verdict), "" if verdict.met else _failure(verdict), "") for verdict in verdicts),
    ]
    failures, skips = (str(sum(bool(case[column]) for case in cases)) for column in (1, 2))
    counts = {"tests": str(len(cases)), "failures": failures, "errors": "0", "skipped": skips}
    suites = ElementTree.Element("testsuites", counts, time=f"{duration_s:.3f}")
    suite = ElementTree.SubElement(
        suites, "testsuite", counts, name=_printable(title), time=f"{duration_s:.3f}", timestamp=_timestamp(run)
    )
    for name, failure, skip in cases:
        case = ElementTree.SubElement(
            suite, "testcase", classname=_printable(title), name=_printable(name), time=f"{duration_s:.3f}"
        )
        if failure:
            told = ElementTree.SubElement(case, "failure", message=_printable(failure), type="expectation")
            told.text = _printable(f"{name}\n{failure}\nrun: {run.path}")
        elif skip:
            ElementTree.SubElement(case, "skipped", message=skip)
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _failure(verdict: ExpectationVerdict) -> str:
    got = "not known" if verdict.got is None else f"{verdict.got:.15g}"
    said = f"expected {verdict.metric} {verdict.expected}, got {got}"
    return f"{said}: {verdict.why}" if verdict.why else said


def _timestamp(run: Run) -> str:
    try:
        return _printable(run.origin.started)
    except UsageError:
        return ""
