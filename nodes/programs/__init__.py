"""The included guest programs: generator functions of a page at most.

A topology names one of them by its name here, and any other program as ``package.module:function``. Keyword-only
parameters are the keys of ``parameters`` in the topology, which checks the values against the annotations.
"""

from nodes.programs.ethernet import ethernet
from nodes.programs.interrupt_handling import idle, moderate, poll
from nodes.programs.numbered import numbered_storm, round_trip
from nodes.programs.ping_echo import echo, ping
from nodes.programs.relay import relay
from nodes.programs.states import states
from nodes.programs.traffic import storm, trace
from nodes.programs.virtio_console import virtio_console, virtio_console_driver

__all__ = [
    "echo",
    "ethernet",
    "idle",
    "moderate",
    "numbered_storm",
    "ping",
    "poll",
    "relay",
    "round_trip",
    "states",
    "storm",
    "trace",
    "virtio_console",
    "virtio_console_driver",
]
