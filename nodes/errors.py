"""Every error of the house, and whose fault each one is.

IvshmemError
├── UsageError            the user's: an argument or a file says what cannot be
│   └── TopologyError       ... a topology file (topologies.loader lists all its problems at once)
├── HostError             the host's: too few descriptors, too little memory, no permission
├── ProtocolError         on the wire between server and client
│   ├── RemoteProtocolError   the other side's: it sent what the protocol does not allow
│   └── LocalProtocolError    ours: this program asked the protocol for what it does not allow
├── GuestError            the guest program's: it asked its machine for what a machine cannot do
├── ModelledFault         nobody's: the simulated device did what the real one of that age would have done
└── RunError              the run's: a machine died, the counts do not balance
"""

from __future__ import annotations

__all__ = [
    "GuestError",
    "HostError",
    "IvshmemError",
    "LocalProtocolError",
    "ModelledFault",
    "ProtocolError",
    "RemoteProtocolError",
    "RunError",
    "UsageError",
]


class IvshmemError(Exception):
    """The root: everything this project raises on purpose."""


class UsageError(IvshmemError):
    """The user's own mistake; the message says what was expected, what came and what to do."""


class HostError(IvshmemError):
    """This host cannot carry what was asked for; the message names the limit and the sum that exceeds it."""


class ProtocolError(IvshmemError):
    """Something that the ivshmem client-server protocol does not allow."""


class RemoteProtocolError(ProtocolError):
    """The other side broke the protocol; the connection is of no further use."""


class LocalProtocolError(ProtocolError):
    """This program used the protocol wrongly; nothing was sent."""


class GuestError(IvshmemError):
    """A guest program asked its machine for something that no machine can do."""


class ModelledFault(IvshmemError):  # noqa: N818  (it is the device that erred)
    """A defect of a real device, reported instead of suffered.

    ``row`` is the number of the row in ``tests/golden/seed_rows.toml`` that describes the defect.
    """

    def __init__(self, row: int, message: str) -> None:
        super().__init__(f"row {row}: {message}")
        self.row = row


class RunError(IvshmemError):
    """A run failed; what was measured until then is kept in its directory."""
