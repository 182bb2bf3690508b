"""The file that `ivsim init` writes: a small topology that runs, with a comment on each line."""

from __future__ import annotations

import textwrap

from topologies.actions import ACTIONS

_TEXT = """\
# A topology: which machines share a memory, what each of them runs, for how long.
#
#   ivsim validate THIS_FILE      checks it, and prints what it needs from this host
#   ivsim run THIS_FILE           runs it; each machine is a process with an ivshmem device
#   ivsim schema                  the JSON Schema of this language, for editors
#
# Any value can be changed from outside:  --set machines.sender.count=64

title = "Senders ring one receiver"
seed = 1                        # the same seed draws the same order of doorbells

[run]
duration_s = 5.0                # measured time, after the warm-up
warmup_s = 0.5                  # cut from the latencies
sample_every = 16               # one doorbell in 16 is time-stamped, per edge; 1: all, 0: none
on_death = "fail"               # or "degrade": the run continues without a machine that dies

[memory]                        # BAR2 of every machine
size = "4M"                     # bytes, or with K, M, G, T; a power of two, at least 4096
kind = "shared_memory"          # other programs can open it by name; or "memfd", which cannot shrink
# name = "lab"                  # that name, in /dev/shm; without it each run takes a new one
# Instead of [memory], several memories, each with a server of its own; machines then say domains = ["left"]:
# [domains.left]
# size = "4M"
# [domains.right]
# dialect = "legacy"            # the wire format of older servers

# [defaults]                    # values for every group that does not set them
# vectors = 4

# A group of equal machines. The first group gets the peer IDs from 0, the next one continues.
[machines.receiver]
count = 1
vectors = 4                     # MSI-X vectors, one eventfd each: 1 to 2048; 0 for a device without interrupts
role = "peer"                   # or "master", which can migrate, or "auto": master if its ID is 0
profile = "qemu-doorbell"       # which device it has: ivsim list --profiles
program = "idle"                # takes every interrupt and does nothing: ivsim list --programs
# cpus = "0-3"                  # where its processes may run; also policy, priority, nice
# absent = true                 # it does not exist until the timeline lets it join

[machines.sender]
count = 3                       # sender-0, sender-1, sender-2
# name = "node-{n:02}"          # or node-00, node-01, node-02
vectors = 4
program = "storm"               # or one of your own: "package.module:function"
# "to": a group, a machine ("sender-0"), several in [], "others", "all" (itself included), "foreign";
# or a pattern: { ring = "sender" }, { pairs = ... }, { star = ... }, { random = "sender", degree = 2 }
parameters = { to = "receiver", rate_hz = 1000.0 }

# [machines.sender.override.0]  # one machine that differs, by its place or its name
# parameters = { rate_hz = 10.0 }

# The parts of the run, instead of run.warmup_s and run.duration_s. The load multiplies rates: from, to.
# [[phases]]
# name = "rise"
# duration_s = 2.0
# load = [0.1, 2.0]
# measured = true               # leading phases that are not measured are the warm-up

# What happens meanwhile; `ivsim list --actions` explains each action:
{actions}
# [[timeline]]
# at_s = 1.5                    # or when = "delivered >= 1000", of = "receiver"
# do = "stall"
# machines = "sender"           # a group, a machine, several in [], or "all"
# pick = 1                      # the number of them, drawn by the seed

# What must hold at the end; if it does not, the exit code is 99.
# [[expect]]
# that = "refused == 0"         # a metric and a number, such as p99_us < 500: ivsim list --metrics
# of = "sender -> receiver"     # a group, a machine, a vector ("receiver:1"), an edge; if absent, the whole run
# abort = true                  # end the run as soon as it is broken

# What a sweep varies: each key that --set knows, and its values.
# [matrix]
# "machines.sender.count" = [1, 2, 4, 8]
"""


def starter_text() -> str:
    """The text of a commented topology that loads as it is."""
    actions = textwrap.wrap(", ".join(ACTIONS), 110, initial_indent="# ", subsequent_indent="# ")
    return _TEXT.replace("{actions}", "\n".join(actions))
