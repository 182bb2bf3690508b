"""The `ivsim` command, which ``python -m sim`` is, too."""

import sys

# ``-m`` puts the current directory first: a user's file there must not be imported in place of a module of that name.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import atexit
import contextlib
import gc
import os
import signal

GC_THRESHOLD = 20_000
"""Loading a command makes some 100,000 objects and no garbage: Python's own threshold looks 150 times for some."""


def main() -> None:
    """Load the command and run it.

    An interrupt ends the process until the command is loaded: an exception that an import raises can be lost there.
    """
    gc.set_threshold(GC_THRESHOLD)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sim import cli

    try:
        cli.main()
    except SystemExit as end:
        _leave(end.code)


def _leave(code: str | int | None) -> None:
    """End the process. The interpreter does not take itself apart, which costs as much as `ivsim list` does."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, by us or by its reader
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    main()
