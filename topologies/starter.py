"""The file that `ivsim init` writes: a small topology that runs, and says what each line means."""

from __future__ import annotations

__all__ = ["starter_text"]

_TEXT = """\
# A topology: which machines share a memory, what each of them runs, for how long.
#
#   ivsim validate THIS_FILE      checks it, and says what it asks of this host
#   ivsim run THIS_FILE           runs it; each machine is a process with an ivshmem device
#   ivsim schema                  the JSON Schema of this language, for editors
#
# Any value can be changed from outside:  --set machines.sender.count=64

title = "Senders ring one receiver"
seed = 1                        # the same seed draws the same order of doorbells

[run]
duration_s = 5.0                # measured time, after the warm-up
warmup_s = 0.5                  # cut from the latencies
sample_every = 16               # one doorbell in so many is time-stamped, per edge; 1: all, 0: none
on_death = "fail"               # or "degrade": the run goes on without a machine that dies

[memory]                        # BAR2 of every machine
size = "4M"                     # bytes, or with K, M, G; a power of two, at least 4096
kind = "shared_memory"          # host programs can open it by name; or "memfd", which cannot shrink

# A group of machines that are alike. The first group gets the peer IDs from 0, the next one goes on.
[machines.receiver]
count = 1
vectors = 4                     # MSI-X vectors, one eventfd each: 1 to 2048
role = "peer"                   # or "master", which can migrate
profile = "qemu-doorbell"       # which device of the field it has
program = "idle"                # takes every interrupt and does nothing

[machines.sender]
count = 3                       # sender-0, sender-1, sender-2
vectors = 4
program = "storm"               # or one of your own: "package.module:function"
# "to": a group, a machine ("sender-0"), several in [], "others" or "all" (itself included)
parameters = { to = "receiver", rate_hz = 1000.0 }
"""


def starter_text() -> str:
    """The text of a commented topology that loads as it is."""
    return _TEXT
