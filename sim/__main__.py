"""``python -m sim`` is `ivsim`."""

import sys

# ``-m`` puts the current directory first: a user's file there must not be imported in place of a module of that name.
if not sys.flags.safe_path:
    del sys.path[0]

from sim.cli import main

if __name__ == "__main__":
    main()
