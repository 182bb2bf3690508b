"""A recorded session in lines, as `ivsim explain` prints it and a failed test shows it."""

from __future__ import annotations

from collections.abc import Iterator

from nodes.qemu_versions import QemuVersion
from nodes.wire.capture import NANOSECONDS, format_entry
from nodes.wire.explanation import Analysis
from nodes.wire.v2.protocol import V2


def analysis_lines(explanation: Analysis, version: QemuVersion) -> Iterator[str]:
    """The connection of one client, message by message; what is wrong is marked, with what QEMU of ``version`` does."""
    problems = explanation.problems
    identity = [] if explanation.peer is None else [f"ID {explanation.peer}"]
    if explanation.memory_bytes is not None:
        identity.append(f"{explanation.memory_bytes} bytes of memory")
    verdict = f"wrong, first in line {problems[0].line}" if problems else "clean"
    yield f"connection {explanation.connection}: {', '.join([*identity, verdict])}"
    yield f"  dialect: {explanation.named}"
    for explained in explanation.entries:
        entry = explained.entry
        _, _, side, *act = format_entry(entry).split("  #")[0].split(" ")
        words = " ".join(act)
        words = words if len(words) <= 28 else words[:25] + "..."
        yield f"  {entry.line:>5} {entry.time_ns / NANOSECONDS:>12.6f}  {side:6} {words:28} {explained.meaning}"
        for problem in explained.problems:
            device = "The device of 2012" if problem.is_seeds(explanation.judged_by) else f"QEMU {version}"
            device = "The QEMU fork's device" if explanation.judged_by is V2 else device
            yield f"        {'^ first wrong' if problem is problems[0] else '^ wrong'}: {problem.name}"
            yield f"          expected {problem.rule.expected}; got {problem.got}"
            yield f"          {device} {problem.outcome(explanation.judged_by, version)}"
            yield f"          Source: {problem.rule.source}"
    for note in explanation.notes:
        yield f"  note: {note}"
