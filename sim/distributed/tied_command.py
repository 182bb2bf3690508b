"""The `ivsim` command as a child that ends when its parent does: ``python -m sim.distributed.tied_command PID ...``.

PR_SET_PDEATHSIG sends SIGTERM, so that a run ends its machines and removes its memory by itself.
"""

from __future__ import annotations

import os
import signal
import sys

from sim.kernel.processes import end_with_parent

__all__ = ["main"]


def main() -> None:
    """Run the command line after the first argument, the process ID of the parent."""
    parent = int(sys.argv.pop(1))
    end_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(128 + signal.SIGTERM)
    from sim.cli import main as ivsim

    ivsim()


if __name__ == "__main__":
    main()
