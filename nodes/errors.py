"""Every error that this project raises on purpose, and the party at fault.

IvshmemError
├── UsageError            the user: an argument or a file is not valid
│   └── TopologyError       ... a topology file (topologies.loader lists all its problems at once)
├── HostError             the host: too few descriptors, too little memory, no permission
├── ProtocolError         the wire between server and client
│   ├── RemoteProtocolError   the other side: it sent what the protocol does not allow
│   └── LocalProtocolError    this side: a caller asked for what the protocol does not allow
├── GuestError            the guest program: it asked its machine for what no machine can do
├── QemuError             a real QEMU: it did not start, does not answer, has ended, or refused a command
├── ModelledFault         the modelled device: it has the defect of the real one
└── RunError              the run: a machine died, the counts do not balance
"""

from __future__ import annotations


class IvshmemError(Exception):
    """The base of all errors that this project raises on purpose."""


class UsageError(IvshmemError):
    """A mistake of the user; the message says what was expected, what was given and what to do."""


class HostError(IvshmemError):
    """This host is too small for what was asked for; the message names the limit and the sum that exceeds it."""


class ProtocolError(IvshmemError):
    """A violation of the ivshmem client-server protocol."""


class RemoteProtocolError(ProtocolError):
    """The other side violated the protocol; the connection is of no further use."""


class LocalProtocolError(ProtocolError):
    """A caller on this side used the protocol wrongly; nothing was sent."""


class GuestError(IvshmemError):
    """A guest program asked its machine for something that no machine can do."""


class QemuError(IvshmemError):
    """A real QEMU did not start, does not answer, has ended, or refused a command."""


class ModelledFault(IvshmemError):  # noqa: N818  (it is the device that erred)
    """A defect of a real device, reported instead of a crash.

    ``row`` is the number of the row in ``tests/golden/seed_rows.toml`` that describes a defect of 2012; None for a
    defect of a later device.
    """

    def __init__(self, row: int | None, message: str) -> None:
        super().__init__(message if row is None else f"row {row}: {message}")
        self.row = row


class RunError(IvshmemError):
    """A run failed; what was measured until then is in its directory."""
