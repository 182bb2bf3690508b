"""Topologies of two machines, for the tests of sweeps: what matters there is the runs, not what runs."""

from __future__ import annotations

PING_PONG = """
title = "Two that ring"
seed = 5
[run]
duration_s = {duration_s}
warmup_s = 0.02
[machines.ping]
program = "ping"
parameters = {{ to = "echo" }}
[machines.echo]
program = "echo"
parameters = {{ to = "ping" }}
"""
"""Two processes that ring each other; takes ``duration_s``."""

VIRTUAL_STORM = """
title = "Two"
seed = 5
[run]
engine = "virtual"
duration_s = 0.001
warmup_s = 0.0
[machines.a]
program = "idle"
[machines.b]
program = "storm"
parameters = { to = "a" }
"""
"""One that rings the other, under virtual time."""
