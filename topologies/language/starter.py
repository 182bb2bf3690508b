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
# Instead of [memory], several memories, each with a server of its own; machines then say domains = ["left"]:
# [domains.left]
# size = "4M"
# [domains.right]
# dialect = "legacy"            # its server speaks as older ones did

# [defaults]                    # what holds for every group that says nothing else
# vectors = 4

# A group of machines that are alike. The first group gets the peer IDs from 0, the next one goes on.
[machines.receiver]
count = 1
vectors = 4                     # MSI-X vectors, one eventfd each: 1 to 2048; 0 for a device without interrupts
role = "peer"                   # or "master", which can migrate, or "auto": master if its ID is 0
profile = "qemu-doorbell"       # which device of the field it has
program = "idle"                # takes every interrupt and does nothing
# cpus = "0-3"                  # where its processes may run; also policy, priority, nice
# absent = true                 # not there until the timeline lets it join

[machines.sender]
count = 3                       # sender-0, sender-1, sender-2
# name = "node-{n:02}"          # or node-00, node-01, node-02
vectors = 4
program = "storm"               # or one of your own: "package.module:function"
# "to": a group, a machine ("sender-0"), several in [], "others" or "all" (itself included);
# or a pattern: { ring = "sender" }, { pairs = ... }, { star = ... }, { random = "sender", degree = 2 }
parameters = { to = "receiver", rate_hz = 1000.0 }

# [machines.sender.override.0]  # one machine that is different, by its place or its name
# parameters = { rate_hz = 10.0 }

# The parts of the run, instead of run.warmup_s and run.duration_s. The load multiplies rates: from, to.
# [[phases]]
# name = "rise"
# duration_s = 2.0
# load = [0.1, 2.0]
# measured = true               # leading phases that are not measured are the warm-up

# What happens meanwhile: join, leave, kill, stall, resume, slow, mask, unmask, reset, unplug, fill, deafen,
# garble, migrate; stop_server, start_server.
# [[timeline]]
# at_s = 1.5                    # or when = "delivered >= 1000", of = "receiver"
# do = "stall"
# machines = "sender"           # a group, a machine, several in [], or "all"
# pick = 1                      # so many of them, drawn by the seed

# What must hold at the end; a run that misses it exits with 99.
# [[expect]]
# that = "refused == 0"         # a figure and a number: lost, coalescing, p99_us, delivery.p50_us ...
# of = "sender -> receiver"     # whose: a group, a machine, an edge; if absent, of all
# abort = true                  # end the run as soon as it is broken

# What a sweep varies: each key that --set knows, and its values.
# [matrix]
# "machines.sender.count" = [1, 2, 4, 8]
"""


def starter_text() -> str:
    """The text of a commented topology that loads as it is."""
    return _TEXT
