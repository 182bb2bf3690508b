"""Attributes an error to the guest program, the modelled device, the server, the host or the simulator."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterator

from nodes.device.qemu_1_1.properties import DeviceExitError
from nodes.errors import HostError, ModelledFault, ProtocolError, QemuError, UsageError
from sim.engines.messages import Failed

TEXT_MAX = 16_384
"""The most bytes of a text in a report."""


class ProgramError(Exception):
    """The guest program raised; ``__cause__`` is what it raised."""


@contextlib.contextmanager
def blaming_program() -> Iterator[None]:
    """Whatever is raised in this block is the guest program's: signals raise nothing where programs run."""
    try:
        yield
    except BaseException as error:
        raise ProgramError from error


def explain(error: BaseException) -> Failed:
    """Return the part that is at fault, the error in one line, and a traceback where it helps."""
    at_fault, cause = "simulator", error
    if isinstance(error, ProgramError) and error.__cause__ is not None:
        at_fault, cause = "program", error.__cause__
    if isinstance(cause, ModelledFault | DeviceExitError):
        at_fault = "modelled device"
    elif isinstance(cause, QemuError):
        at_fault = "QEMU"
    elif isinstance(error, ProtocolError | UsageError):
        at_fault = "server"
    elif isinstance(error, HostError):
        at_fault = "host"
    text = _text(cause)
    kind = "" if at_fault == "QEMU" else type(cause).__name__  # its texts are sentences
    summary = ": ".join(filter(None, (kind, text)))
    if at_fault == "program" and (frames := traceback.extract_tb(cause.__traceback__)):
        summary += f" ({os.path.basename(frames[-1].filename)}, line {frames[-1].lineno})"
    trace = "".join(traceback.format_exception(cause)) if at_fault in ("program", "simulator") else ""
    return Failed(at_fault, summary[:TEXT_MAX], trace[-TEXT_MAX:])


def _text(error: BaseException) -> str:
    """What an error says; its class may be the program's, and raise as well."""
    try:
        return str(error)
    except Exception as failure:
        return f"its text raised {type(failure).__name__}"
