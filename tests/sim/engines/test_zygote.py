"""sim.engines.process.zygote: the forks of a worker, and those that the kernel refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Asks for three workers at once, and refuses the fork of the given number. Prints, for each worker, what its control
# socket gets until its end.
REFUSED = """
import errno, os, socket, sys
from sim.engines.process import zygote
from sim.engines.process.control import Control, Forked
from sim.kernel.waiting import readable_within

refused, forks, real, forker = int(sys.argv[1]), 0, os.fork, os.getpid()

def fork():
    global forks
    forks += 1
    if forks == refused:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()

def main(configuration, control, *_):
    Control(control).send(Forked(os.getpid()))
    os._exit(0)

os.fork, zygote.main = fork, main
channel = open("/dev/null", "rb")
ends, asked = [], []
for _ in range(3):
    ours, theirs = Control.pair()
    ends.append(ours)
    asked.append(zygote._Asked(os.open("/dev/null", os.O_RDONLY), theirs.detach(), None))
zygote._fork(channel, forker, sys.path, asked)
print("the forker" if os.getpid() == forker else "another process", flush=True)
for ours in ends:
    told = []
    try:
        while readable_within(ours.fileno(), None):
            if (message := ours.receive()) is not None:
                told.append("forked" if isinstance(message, Forked) else message.summary)
    except EOFError:
        print(*told)
"""
WHY = "fork: Resource temporarily unavailable"


@pytest.mark.parametrize(
    ("refused", "told"),
    [(0, ["forked"] * 3), (1, [WHY] * 3), (2, [WHY, "forked", "forked"]), (4, ["forked", "forked", WHY])],
    ids=["none", "the process between", "the first worker", "the last worker"],
)
def test_a_fork_that_is_refused_is_reported_and_leaves_one_fork_server(refused: int, told: list[str]) -> None:
    """Nothing but a worker itself holds its control socket: that ends with it."""
    ran = subprocess.run(
        [sys.executable, "-P", "-c", REFUSED, str(refused)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.splitlines() == ["the forker", *told], ran.stderr
