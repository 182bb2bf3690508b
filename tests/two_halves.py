"""A topology of two domains that share no machine, for the tests of runs over several hosts."""

from __future__ import annotations

__all__ = ["TWO_HALVES"]

TWO_HALVES = """
title = "Two halves"
seed = 3
[run]
duration_s = 0.5
warmup_s = 0.0
sample_every = 1
[domains.left]
host = "any"
[domains.right]
host = "any"
[machines.west]
count = 2
domains = ["left"]
program = "storm"
parameters = { to = "others", rate_hz = 400.0 }
[machines.east]
count = 3
domains = ["right"]
program = "storm"
parameters = { to = "others", rate_hz = 400.0 }
[[expect]]
that = "rung > 0"
[[expect]]
that = "delivery.max_us < 90000000"
of = "east"
"""
"""What either half rings is drawn from the seed: 5 machines, each 400 times a second."""
