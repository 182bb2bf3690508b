"""The `ivsim` command, which ``python -m sim`` is, too."""

import sys

# ``-m`` puts the current directory first: a user's file there must not be imported in place of a module of that name.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import signal


def main() -> None:
    """Load the command and run it. An interrupt meanwhile ends the process without a traceback."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sim import cli

    if interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
