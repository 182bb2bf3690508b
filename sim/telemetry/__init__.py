"""The state of a run for other processes while it runs.

The coordinator publishes snapshots on a socket in the run's private directory; the progress display is one
subscriber, another terminal may be a second. A snapshot is complete in itself, so one that is missed is made up
by the next; each is numbered, so that it is known how many were missed.
"""

from sim.telemetry.discovery import SOCKET, Found, running
from sim.telemetry.publisher import Publisher
from sim.telemetry.snapshot import Group, RecentEvent, Snapshot
from sim.telemetry.subscriber import Subscriber, following

__all__ = ["SOCKET", "Found", "Group", "Publisher", "RecentEvent", "Snapshot", "Subscriber", "following", "running"]
