"""`ivsim console`: the console of a guest, while its run lasts and afterwards."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import click

from nodes.errors import UsageError
from nodes.spelling import did_you_mean
from sim.commands.options import run_argument

POLL_S = 0.1
READ_BYTES = 1 << 16


@click.command("console")
@run_argument
@click.argument("machine")
def console(run_directory: Path, machine: str) -> None:
    """Print what MACHINE, a real QEMU with a guest, has printed on its console in the run directory RUN.

    While the run lasts it prints what is added, too. Ends with the run, or by Ctrl-C.
    """
    from sim.recording.console_file import machines_with_consoles
    from sim.results.store import files
    from sim.results.store.opening import no_such_run

    if not run_directory.is_dir():
        raise no_such_run(run_directory)
    path = files.console(run_directory, machine)
    if not path.is_file():
        known = machines_with_consoles(run_directory)
        hint = f"; there are those of {', '.join(known)}" if known else ": no machine of it has a guest"
        hint += did_you_mean(machine, known)
        raise UsageError(f"{run_directory} has no console of {machine}{hint}")
    output = sys.stdout.buffer
    with contextlib.suppress(KeyboardInterrupt), open(path, "rb") as file:
        while True:
            lasts = files.read_status(run_directory)[0] == files.RUNNING
            while data := file.read(READ_BYTES):
                output.write(data)
            output.flush()
            if not lasts:
                return
            time.sleep(POLL_S)
