"""A second opinion on the device of 2012: its initialisation and its registers, statement by statement from ivshmem.c.

Written from the source alone (QEMU of August 2012, hw/ivshmem.c), without the product's code, which never imports it.
Each function has the name that it has there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

INTRMASK, INTRSTATUS, IVPOSITION, DOORBELL = 0, 4, 8, 12
U16, U32, U64 = 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
MSIX_VECTORS_MAX = 32  # hw/msix.c, MSIX_MAX_ENTRIES


class Exit(Exception):  # noqa: N818  (exit() is what it is)
    """``exit(status)``; the argument is the status, as a shell sees it."""


class Crash(Exception):  # noqa: N818
    """A null pointer is followed."""


@dataclass
class State:
    """IVShmemState, as far as these functions use it; ``stderr`` is what is printed."""

    chardev: str | None = None
    sizearg: str | None = None
    vectors: int = 1
    ioeventfd: bool = False
    msi: bool = True
    shmobj: str | None = None
    role: str | None = None

    ivshmem_size: int = 0
    role_val: str = ""
    server: bool = False
    msix: bool = False
    blocker: bool = False
    stderr: list[str] = field(default_factory=list)

    intrmask: int = 0
    intrstatus: int = 0
    irq: bool = False
    vm_id: int = 0
    shm_fd: int = 0
    max_peer: int = 0
    peers: dict[int, int] | None = None  # peer -> nb_eventfds
    rung: list[tuple[int, int]] = field(default_factory=list)


def strtoull(text: str) -> tuple[int, str]:
    """The number, and the rest of the text (C: strtoull, base 10)."""
    at = len(text) - len(text.lstrip(" \t\n\v\f\r"))
    negative = text[at : at + 1] == "-"
    at += text[at : at + 1] in ("+", "-") and text[at : at + 1] != ""
    begin = at
    while at < len(text) and text[at] in "0123456789":
        at += 1
    if at == begin:
        return 0, text
    value = min(int(text[begin:at]), U64)
    return (-value & U64 if negative else value), text[at:]


def ivshmem_get_size(s: State) -> int:
    assert s.sizearg is not None
    value, rest = strtoull(s.sizearg)
    if rest[:1] in ("", "M", "m"):
        value = value << 20 & U64
    elif rest[:1] in ("G", "g"):
        value = value << 30 & U64
    else:
        s.stderr.append(f"qemu: invalid ram size: {s.sizearg}")
        raise Exit(1)
    if (value & (value - 1)) != 0:
        s.stderr.append("ivshmem: size must be power of 2")
        raise Exit(1)
    return value


def pci_ivshmem_init(s: State) -> None:  # noqa: PLR0912  (as in the source)
    """Up to the point where the object is opened or the server is listened to."""
    s.ivshmem_size = 4 << 20 if s.sizearg is None else ivshmem_get_size(s)
    if s.ioeventfd and not s.msi:
        s.stderr.append("ivshmem: ioeventfd/irqfd requires MSI")
        raise Exit(1)
    if s.role is not None:
        if s.role == "peer":
            s.role_val = "peer"
        elif s.role == "master":
            s.role_val = "master"
        else:
            s.stderr.append("ivshmem: 'role' must be 'peer' or 'master'")
            raise Exit(1)
    else:
        s.role_val = "master"
    if s.role_val == "peer":
        s.blocker = True
    s.shm_fd = 0
    if s.ioeventfd:
        raise Crash  # setup_ioeventfds walks s.peers, which is allocated below
    if s.chardev is not None and s.chardev[:5] == "unix:":
        if s.shmobj is not None:
            s.stderr.append("WARNING: do not specify both 'chardev' and 'shm' with ivshmem")
        if s.msi:
            if not 1 <= s.vectors <= MSIX_VECTORS_MAX:
                raise Exit(1)
            s.msix = True
        s.server = True
        s.vm_id = -1
        s.peers = {}
    elif s.shmobj is None:
        s.stderr.append("Must specify 'chardev' or 'shm' to ivshmem")


def ivshmem_update_irq(s: State) -> None:
    s.irq = (s.intrstatus & s.intrmask & U32) != 0


def ivshmem_io_write(s: State, addr: int, val: int) -> None:
    dest = val >> 16 & U16
    vector = val & 0xFF
    addr &= 0xFC
    if addr == INTRMASK:
        s.intrmask = val & U32
        ivshmem_update_irq(s)
    elif addr == INTRSTATUS:
        s.intrstatus = val & U32
        ivshmem_update_irq(s)
    elif addr == DOORBELL:
        if dest > s.max_peer:
            return
        if s.peers is None:
            raise Crash
        if vector < s.peers.get(dest, 0):
            s.rung.append((dest, vector))


def ivshmem_io_read(s: State, addr: int) -> int:
    if addr == INTRMASK:
        return s.intrmask
    if addr == INTRSTATUS:
        ret = s.intrstatus
        s.intrstatus = 0
        ivshmem_update_irq(s)
        return ret
    if addr == IVPOSITION:
        return (s.vm_id if s.shm_fd > 0 else -1) & U32
    return 0


def ivshmem_receive(s: State, counter: int) -> None:
    """The character device hands over the counter's eight bytes; the first one is used."""
    s.intrstatus = counter & 0xFF
    ivshmem_update_irq(s)


def ivshmem_reset(s: State) -> None:
    s.intrstatus = 0
