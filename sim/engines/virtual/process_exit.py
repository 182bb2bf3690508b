"""A program that ends its process, under virtual time: that process runs all machines, so only its machine ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NoReturn

from nodes.errors import GuestError
from sim.engines.virtual.host import VirtualHost


@contextlib.contextmanager
def process_exit_refused(host: VirtualHost) -> Iterator[None]:
    """While this lasts, `os._exit` in a machine's program raises an error there.

    It would end the command at once, with the program's exit code and without a result. A child that the program has
    forked ends as it asks, and so does whatever runs while no machine does.
    """
    exit_process, process = os._exit, os.getpid()

    def refuse(status: int) -> NoReturn:
        if host.running is None or os.getpid() != process:
            exit_process(status)
        raise GuestError(f"the program has called os._exit({status})")

    os._exit = refuse
    try:
        yield
    finally:
        os._exit = exit_process
