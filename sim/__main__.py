"""``python -m sim`` is `ivsim`."""

from sim.cli import main

if __name__ == "__main__":
    main()
