"""`ivsim` in this process, for tests in which a process of its own would hold nothing more."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
from unittest import mock

from sim import cli
from sim.host import libraries
from sim.kernel.signals import ENDING

__all__ = ["invoke"]


def invoke(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command with these arguments; its exit code and what it printed are as of a process."""
    before = {number: signal.getsignal(number) for number in ENDING}
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(libraries, "leave_out_pandas"),  # others in this process use it
        ):
            cli.main(list(arguments))
    except SystemExit as end:
        return subprocess.CompletedProcess(arguments, int(end.code or 0), out.getvalue(), err.getvalue())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    raise AssertionError("the command ends the process")
