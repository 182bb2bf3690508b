"""Two guest programs: one passes interrupts on, one counts them. See forward.toml for a topology that runs both.

A program is a generator function. ``yield FOREVER`` waits for an interrupt of this machine and returns it. Keyword
parameters are set in the topology (``parameters = { to = "sink" }``). Run it with:

    ivsim run examples/forward.toml --program examples/forward.py
"""

from nodes.guest import FOREVER, Guest, Peers, Program


def forward(guest: Guest, *, to: Peers, offset: int = 0) -> Program:
    """Store the vector of each interrupt in the shared memory, ring the peers in ``to``, and count it."""
    guest.statistics["forwarded"] = 0
    while True:
        interrupt = yield FOREVER
        if interrupt is not None:
            guest.memory[offset] = interrupt.vector
            for peer in to:
                guest.ring(peer, interrupt.vector)
            guest.statistics["forwarded"] += 1


def count(guest: Guest) -> Program:
    """Count interrupts, and the doorbells that they stand for; several doorbells may share one interrupt."""
    guest.statistics.update(interrupts=0, doorbells=0)
    while True:
        interrupt = yield FOREVER
        if interrupt is not None:
            guest.statistics["interrupts"] += 1
            guest.statistics["doorbells"] += interrupt.doorbells
