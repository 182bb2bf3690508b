"""The guest programs that are shipped: generator functions, each a page at most.

A topology names one by its name here, or any other as ``package.module:function``. Keyword parameters become
the keys of ``parameters`` in the topology; their annotations are checked there.
"""

from __future__ import annotations

from nodes.programs.interrupt_handling import idle, moderate, poll
from nodes.programs.ping_echo import echo, ping
from nodes.programs.relay import relay
from nodes.programs.traffic import storm, trace

__all__ = ["echo", "idle", "moderate", "ping", "poll", "relay", "storm", "trace"]
