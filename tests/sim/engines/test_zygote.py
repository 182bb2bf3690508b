"""sim.engines.process.zygote: the forks of a worker, and those that the kernel refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Refuses the fork of the given number; prints the processes that come back from `_fork`, and what the control
# socket gets.
REFUSED = """
import errno, os, socket, sys
from sim.engines.process import zygote
from sim.engines.process.control import Control

refused, forks, real, forker = int(sys.argv[1]), 0, os.fork, os.getpid()

def fork():
    global forks
    forks += 1
    if forks == refused:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()

os.fork = fork
ours, theirs = Control.pair()
with open("/dev/null", "rb") as nothing:
    zygote._fork(None, forker, [], nothing.fileno(), theirs.fileno(), None)
print("the forker" if os.getpid() == forker else "another process", flush=True)
theirs.close()
if os.getpid() == forker:
    while (message := ours.receive()) is None:
        pass
    print(message.summary)
"""


@pytest.mark.parametrize("refused", [1, 2], ids=["the first fork", "the second fork"])
def test_a_fork_that_is_refused_is_reported_and_leaves_one_fork_server(refused: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-c", REFUSED, str(refused)], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.splitlines() == ["the forker", "fork: Resource temporarily unavailable"], ran.stderr
