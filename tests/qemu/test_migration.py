"""Migration on a real QEMU, told by QMP, and the same on our device: verdicts, words, and the bytes that move."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nodes.device.blockers import Blocker, Blockers
from nodes.device.ivshmem import Ivshmem
from nodes.device.migration import FIELDS
from nodes.device.migration_texts import MigrationError
from nodes.device.profiles import profile
from nodes.errors import QemuError, UsageError
from sim.engines.qemu.qtest import Qemu
from sim.kernel.qemu_program import qemu_version
from tests.nodes.device.test_ivshmem_state import PEER_MODE, device
from tests.nodes.device.test_migration import STREAMS, everything, written
from tests.real_qemu import Qmp, QmpError, monitor, read_block, real_qemu

pytestmark = pytest.mark.qemu

SLOT, PLACE = 2, "0000:00:02.0/"
PATIENCE_S = 60.0
EJECT_PORT = 0xAE08  # docs/specs/acpi_pci_hotplug
BARS = {0: 0xFEB0_0000, 1: 0xFEB0_1000, 2: 0xE000_0000}
MIB = 1 << 20
LETTERS = {"master": "on", "peer": "off", "auto": "auto"}


@pytest.fixture(scope="module")
def qemu() -> str:
    return real_qemu()


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Path]:
    """`ivsim serve` as a process of its own."""
    name = f"{path.parent.name}-{path.name}"
    command = [sys.executable, "-m", "sim", "serve", "-F", "-S", str(path), "-n", "2", "-l", "1M", "-M", name]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        assert "serving" in server.stderr.readline()
        try:
            yield path
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 0


@pytest.fixture
def serve(short_path: Path) -> Iterator[Callable[[], Path]]:
    """Starts a server, each time a fresh one: the socket's path. IDs are not used again, and a master needs 0."""
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()
        yield lambda: stack.enter_context(serving(short_path / str(next(numbers))))


def doorbell(path: Path, role: str | None, vectors: int = 2) -> list[str]:
    properties = "" if role is None else f",master={LETTERS[role]}"
    chardev = ["-machine", "pc", "-chardev", f"socket,path={path},id=iv"]
    return [*chardev, "-device", f"ivshmem-doorbell,chardev=iv,vectors={vectors},addr={SLOT:02x}.0{properties}"]


def plain(role: str | None) -> list[str]:
    properties = "" if role is None else f",master={LETTERS[role]}"
    memory = ["-machine", "pc", "-object", "memory-backend-ram,id=memory,size=1M"]
    return [*memory, "-device", f"ivshmem-plain,memdev=memory,addr={SLOT:02x}.0{properties}"]


def write(real: Qemu, *, msix: bool) -> None:
    """What :func:`tests.nodes.device.test_migration.written` writes to ours."""
    for bar, address in BARS.items():
        if bar != 1 or msix:
            real.config_write(SLOT, 0x10 + 4 * bar, 4, address)
    real.config_write(SLOT, 0x04, 2, 0x0006)
    real.write(BARS[0], 4, 0xAB)
    real.write(BARS[0] + 4, 4, 0xCD)
    if msix:
        for vector in range(2):
            for word, value in enumerate((0x2000 + 16 * vector, 0, 0xC0DE_0000 + vector, vector)):
                real.write(BARS[1] + 16 * vector + 4 * word, 4, value)
        real.config_write(SLOT, 0x42, 2, 0x8000)
        real.write(BARS[0] + 12, 4, 0 << 16 | 1)  # itself, on the masked vector
        while not real.read(BARS[1] + 0x800, 4):
            real.settle()


class Stream:
    """A migration stream as QEMU wrote it (migration/savevm.c), and the ivshmem device's section in it.

    The description at its end, JSON, names every device and the length of its fields; sections end with a footer.
    """

    DESCRIPTION, FOOTER = b"\x06", b"\x7e"

    def __init__(self, data: bytes, device: str) -> None:
        self.data = data
        name = (PLACE + device).encode()
        self.name_at = data.index(bytes([len(name)]) + name)
        self.header_at = self.name_at + 1 + len(name)
        identifier = data[self.name_at - 4 : self.name_at]
        self.fields_at = self.header_at + 8
        described = next(entry for entry in self._description()["devices"] if entry["name"] == name.decode())
        self.fields: list[tuple[str, int]] = list(_leaves(described["fields"]))
        self.end = self.fields_at + sum(size for _, size in self.fields)
        assert data[self.end : self.end + 5] == self.FOOTER + identifier
        self.section = bytes([len(device)]) + device.encode() + data[self.header_at : self.end]

    def _description(self) -> Any:
        at = next(
            found.end() - 1
            for found in re.finditer(self.DESCRIPTION + rb"....\{", self.data, re.DOTALL)
            if found.end() - 1 + int.from_bytes(found[0][1:5], "big") == len(self.data)
        )
        return json.loads(self.data[at:])

    def altered(self, at: int, value: bytes) -> bytes:
        """The whole stream with other bytes at ``at``, counted from the first field."""
        at += self.fields_at
        return self.data[:at] + value + self.data[at + len(value) :]


def _leaves(fields: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for field in fields:
        if "struct" in field:
            yield from _leaves(field["struct"]["fields"])
        else:
            yield field["name"], field["size"]


def record(machine: Qmp, to: Path, device: str) -> Stream:
    assert machine.migrate(f"exec:cat > {to}")["status"] == "completed"
    return Stream(to.read_bytes(), device)


# Who may migrate.


@pytest.mark.parametrize("role", [None, "peer", "master", "auto"])
@pytest.mark.parametrize("peer", [0, 1])
def test_doorbell(qemu: str, serve: Callable[[], Path], tmp_path: Path, role: str | None, peer: int) -> None:
    """On a server of ours, alone and after another client: the same verdict, in the same words."""
    path = serve()
    with contextlib.ExitStack() as stack:
        if peer:
            stack.enter_context(monitor(qemu, doorbell(path, None)))
        if role == "master" and peer == 1:
            with pytest.raises(UsageError) as error:
                device("qemu-doorbell", role=role, peer=peer)
            with pytest.raises(QemuError) as refused:
                stack.enter_context(monitor(qemu, doorbell(path, role)))
            assert str(error.value).partition(": it is peer")[0] in str(refused.value)
            return
        ours = device("qemu-doorbell", role=role or profile("qemu-doorbell").default_role, peer=peer)
        _, machine = stack.enter_context(monitor(qemu, doorbell(path, role)))
        compare_verdicts(machine, ours, tmp_path)


@pytest.mark.parametrize("role", [None, "peer", "master", "auto"])
def test_plain(qemu: str, tmp_path: Path, role: str | None) -> None:
    with monitor(qemu, plain(role)) as (_, machine):
        ours = device("qemu-plain", role=role or profile("qemu-plain").default_role)
        compare_verdicts(machine, ours, tmp_path)


def compare_verdicts(machine: Qmp, ours: Ivshmem, directory: Path) -> None:
    blockers = Blockers()
    blockers.plug(ours)
    assert machine.blockers() == [found.text for found in blockers]
    uri = f"exec:cat > {directory / 'stream'}"
    if ours.master:
        blockers.begin()
        assert machine.migrate(uri)["status"] == "completed"
        assert machine.execute("query-status")["status"] == "postmigrate"
        return
    with pytest.raises(MigrationError) as error:
        blockers.begin()
    with pytest.raises(QmpError) as refused:
        machine.migrate(uri)
    assert (refused.value.kind, refused.value.description) == ("GenericError", str(error.value))
    assert machine.execute("query-status")["status"] == "prelaunch"


def test_only_migratable(qemu: str, serve: Callable[[], Path]) -> None:
    blockers = Blockers(only_migratable=True)
    with pytest.raises(MigrationError) as ours:
        blockers.plug(device("qemu-doorbell", role="peer"))
    with pytest.raises(QemuError) as refused:
        monitor(qemu, ["-only-migratable", *doorbell(serve(), "peer")]).__enter__()
    assert str(refused.value).endswith(str(ours.value))
    with monitor(qemu, ["-only-migratable", *plain("master")]) as (_, machine):
        assert machine.blockers() == []
        with pytest.raises(QmpError) as late:
            machine.execute("device_add", driver="ivshmem-plain", id="late", memdev="memory")
        assert "busy" in late.value.description
        machine.execute("object-add", **{"qom-type": "memory-backend-ram", "id": "second", "size": MIB})
        with pytest.raises(QmpError) as late:
            machine.execute("device_add", driver="ivshmem-plain", id="late", memdev="second")
        assert late.value.description == str(ours.value)


DISK = ("qcow", "vvfat (rw)")  # a writable directory as a disk is two nodes, and each of them a reason


def test_newest_blocker_is_reported_and_goes_with_its_device(qemu: str, tmp_path: Path) -> None:
    """A disk and two devices come and go; ours is asked the same after every step."""
    other = tmp_path / "disk"
    other.mkdir()
    disk = [Blocker(f"The {kind} format used by node 'disk' does not support live migration") for kind in DISK]
    ours = Blockers()
    first, second = device("qemu-plain", role="peer"), device("qemu-plain", role="peer")

    def agree(machine: Qmp) -> list[str]:  # the oldest first
        listed = [re.sub("'#block[0-9]+'", "'disk'", text) for text in machine.blockers()]
        assert listed == [found.text for found in ours][::-1]
        with pytest.raises(MigrationError) as error:
            ours.begin()
        with pytest.raises(QmpError) as refused:
            machine.migrate(f"exec:cat > {tmp_path / 'stream'}")
        assert refused.value.description == str(error.value) == listed[-1]
        return listed

    with monitor(qemu, plain("peer")) as (real, machine):
        ours.plug(first)
        assert agree(machine) == [PEER_MODE]
        machine.execute("blockdev-add", driver="vvfat", dir=str(other), rw=True, **{"node-name": "disk"})
        for found in disk:
            ours.add(found)
        assert agree(machine) == [PEER_MODE, disk[0].text, disk[1].text]
        machine.execute("object-add", **{"qom-type": "memory-backend-ram", "id": "second", "size": MIB})
        machine.execute("device_add", driver="ivshmem-plain", id="late", memdev="second", addr="6")
        ours.plug(second)
        assert agree(machine) == [PEER_MODE, disk[0].text, disk[1].text, PEER_MODE]
        machine.execute("device_del", id="late")
        real.ask([f"outl {EJECT_PORT:#x} {1 << 6:#x}"])
        machine.wait_event("DEVICE_DELETED")
        ours.unplug(second)
        assert agree(machine) == [PEER_MODE, disk[0].text, disk[1].text]
        machine.execute("blockdev-del", **{"node-name": "disk"})
        for found in disk:
            ours.remove(found)
        assert agree(machine) == [PEER_MODE]


def test_nothing_comes_or_goes_while_a_migration_runs(qemu: str, tmp_path: Path) -> None:
    ours = Blockers()
    moving = device("qemu-plain")
    ours.plug(moving)
    ours.begin()
    with monitor(qemu, [*plain("master"), "-object", "memory-backend-ram,id=second,size=1M"]) as (real, machine):
        write(real, msix=False)
        machine.execute("migrate-set-parameters", **{"max-bandwidth": 4096})  # a byte now and then: it lasts
        machine.execute("migrate", uri=f"exec:cat > {tmp_path / 'stream'}")
        device_id = "/machine/peripheral-anon/device[0]"
        attempts: tuple[tuple[str, dict[str, str], Callable[[], None]], ...] = (
            ("device_add", {"driver": "ivshmem-plain", "memdev": "second"}, lambda: ours.plug(device("qemu-plain"))),
            ("device_del", {"id": device_id}, lambda: ours.unplug(moving)),
            ("migrate", {"uri": "exec:cat"}, ours.begin),
        )
        for command, arguments, attempt in attempts:
            with pytest.raises(QmpError) as refused:
                machine.execute(command, **arguments)
            with pytest.raises(MigrationError) as error:
                attempt()
            assert refused.value.description == str(error.value)
        machine.execute("migrate_cancel")
        assert machine.settled()["status"] == "cancelled"
        ours.end()
        machine.execute("device_add", driver="ivshmem-plain", memdev="second")
        ours.plug(device("qemu-plain", role="peer"))
        assert machine.blockers() == [found.text for found in ours]


def test_words_that_only_a_race_could_bring_are_in_the_program(qemu: str) -> None:
    """A blocker that comes meanwhile: QMP refuses its device first, but the words are there."""
    ours = Blockers()
    ours.plug(device("qemu-plain"))
    ours.begin()
    with pytest.raises(MigrationError) as error:
        ours.add(Blocker(""))
    with monitor(qemu, plain("master")) as (real, _):
        program = program_of(real)
    for text in (str(error.value), "Device %s is not migratable, but --only-migratable was specified"):
        assert text.encode() in program
    assert b"State blocked by non-migratable device '%s'" in program


def program_of(real: Qemu) -> bytes:
    """The file that a QEMU runs, which its path may be only a wrapper of: the one whose name is mapped as code."""
    mapped = {
        line.split(maxsplit=5)[5] for line in Path(f"/proc/{real.pid}/maps").read_text().splitlines() if "/" in line
    }
    (path,) = {path for path in mapped if Path(path).name.startswith("qemu-system")}
    return Path(path).read_bytes()


# The stream.


@pytest.mark.parametrize("kind", ["doorbell", "plain"])
def test_real_stream_is_read_by_our_table(streams: dict[str, Stream], kind: str) -> None:
    """The same writes to both: the same bytes; and theirs loads into ours."""
    stream, name = streams[kind], f"qemu-{kind}"
    ours = written(name)
    assert stream.section == ours.save()
    there = written(name, plain=True)
    there.load(stream.section)
    assert everything(there)[:4] == everything(ours)[:4]
    fields = [(field.name, len(field.save(ours))) for part in ours.profile.stream for field in FIELDS[part]]
    by_qemu = [4, 256, 16, *([33] if ours.msix else []), 4, 4]
    assert [size for _, size in stream.fields] == by_qemu
    assert sum(size for _, size in fields) == sum(by_qemu)
    assert bytes.fromhex(STREAMS[name]["hex"]) == stream.section  # what the golden file has still stands


def test_our_stream_is_read_by_a_real_qemu(qemu: str, tmp_path: Path) -> None:
    """A section that ours has written, in the place of the one that QEMU wrote."""
    with monitor(qemu, plain("master")) as (_, machine):
        untouched = record(machine, tmp_path / "stream", "ivshmem-plain")
    ours = written("qemu-plain").save()
    assert ours != untouched.section
    fields = ours[len(ours) - (untouched.end - untouched.fields_at) :]
    (tmp_path / "ours").write_bytes(untouched.altered(0, fields))
    with monitor(qemu, [*plain("master"), "-incoming", "defer"]) as (real, machine):
        machine.execute("migrate-incoming", uri=f"exec:cat {tmp_path / 'ours'}")
        assert machine.settled()["status"] == "completed"
        assert [real.read(BARS[0] + at, 4) for at in (0, 4, 8)] == [0xAB, 0xCD, 0]


def printed_by(qemu: str, error: MigrationError) -> str:
    """What our device says that this QEMU prints."""
    return "\n".join(error.log.lines(qemu_version(qemu)))


def refusal_of(load: Callable[[], None]) -> MigrationError | None:
    """Why our device does not load it; None when it does."""
    try:
        load()
    except MigrationError as error:
        return error
    return None


DAMAGES = [
    ("plain", -4, b"\0\0\0\1"),
    ("plain", -4, b"\xff\xff\xff\xff"),
    ("plain", -8, b"\0\0\0\1"),
    ("plain", 0, b"\0\0\0\0"),
    ("plain", 0, b"\0\0\0\3"),
    ("plain", 0, b"\xff\xff\xff\xff"),
    ("plain", 4, b"\0"),
    ("plain", 4 + 0x06, b"\x10"),
    ("plain", 4 + 0x0B, b"\6"),
    ("plain", 260, b"\0\0\0\5"),
    ("plain", 264, b"\0\0\0\1"),
    ("plain", 276 + 8, b"\0"),
    ("doorbell", 4 + 0x48, b"\2"),
    ("doorbell", 276 + 32, b"\xff"),
]


@pytest.fixture(scope="module")
def streams(qemu: str) -> dict[str, Stream]:
    """What a real QEMU with either device sends, after :func:`write`."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="iv-") as name, serving(Path(name, "s")) as path:
        for kind, arguments in (("doorbell", doorbell(path, "master")), ("plain", plain("master"))):
            with monitor(qemu, arguments) as (real, machine):
                write(real, msix=kind == "doorbell")
                found[kind] = record(machine, Path(name, kind), f"ivshmem-{kind}")
    return found


def arrive(qemu: str, arguments: list[str], uri: str) -> tuple[str, list[int]]:
    """Load a stream into a fresh QEMU: what it printed, and what its pending bits are when it is content."""
    with monitor(qemu, [*arguments, "-incoming", "defer"]) as (real, machine):
        with contextlib.suppress(QemuError):
            machine.execute("migrate-incoming", uri=uri)
            assert machine.settled()["status"] == "completed"
            return "", [real.read(BARS[1] + 0x800, 4)] if "doorbell" in "".join(arguments) else []
        real.close()
        return real.printed.replace(PLACE, "").replace("qemu-system-x86_64: ", ""), []


@pytest.mark.parametrize(("kind", "at", "value"), DAMAGES)
def test_damaged_stream(
    qemu: str, serve: Callable[[], Path], streams: dict[str, Stream], tmp_path: Path, kind: str, at: int, value: bytes
) -> None:
    """Both refuse, in the same words, or both load it and answer the same."""
    stream = streams[kind]
    (tmp_path / "damaged").write_bytes(stream.altered(at, value))
    there_arguments = doorbell(serve(), "master") if kind == "doorbell" else plain("master")
    printed, pending = arrive(qemu, there_arguments, f"exec:cat {tmp_path / 'damaged'}")
    body = bytearray(stream.section + b"\x7e")
    begin = len(stream.section) - (stream.end - stream.fields_at) + at
    body[begin : begin + len(value)] = value
    if body[-1] != 0x7E:
        body += b"\0"  # QEMU finds something else where the section should have ended
    there = written(f"qemu-{kind}", plain=True)
    before = everything(there)
    refusal = refusal_of(lambda: there.load(bytes(body[:-1])))
    if refusal:
        assert re.sub(r", section_id: \d+$", "", printed) == printed_by(qemu, refusal)
        assert everything(there) == before
    else:
        assert printed == ""
        assert pending == ([there.bar_read(1, 0x800, 4)] if kind == "doorbell" else [])


@pytest.mark.parametrize("cut", [100, 270, 280, 283, 290, 310])
def test_cut_stream(qemu: str, serve: Callable[[], Path], streams: dict[str, Stream], tmp_path: Path, cut: int) -> None:
    """The field in which the stream ends is the same for both."""
    kind = "doorbell" if cut > 285 else "plain"
    stream = streams[kind]
    (tmp_path / "cut").write_bytes(stream.data[: stream.fields_at + cut])
    printed, _ = arrive(
        qemu, doorbell(serve(), "master") if kind == "doorbell" else plain("master"), f"exec:cat {tmp_path / 'cut'}"
    )
    begin = len(stream.section) - (stream.end - stream.fields_at)
    with pytest.raises(MigrationError) as error:
        written(f"qemu-{kind}", plain=True).load(stream.section[: begin + cut])
    assert printed == printed_by(qemu, error.value)


# The journey.


def test_master_moves_to_a_second_qemu_on_a_fresh_server(
    qemu: str, serve: Callable[[], Path], short_path: Path, tmp_path: Path
) -> None:
    """Over a unix socket: registers, MSI-X table, pending bits and memory arrive; and the same with ours."""
    with monitor(qemu, doorbell(serve(), "master")) as (source, leaving):
        write(source, msix=True)
        source.fill(BARS[2], 16, 0x5A)
        with monitor(qemu, [*doorbell(serve(), "master"), "-incoming", "defer"]) as (target, arriving):
            uri = f"unix:{short_path / 'migration'}"
            arriving.execute("migrate-incoming", uri=uri)
            assert leaving.migrate(uri)["status"] == "completed"
            assert arriving.settled()["status"] == "completed"
            config = bytes(target.config_read(SLOT, at, 1) for at in range(256))
            registers = [target.read(BARS[0], 4), target.read(BARS[0] + 4, 4), target.read(BARS[0] + 8, 4)]
            table = read_block(target, BARS[1], 32)
            pending = target.read(BARS[1] + 0x800, 4)
            assert read_block(target, BARS[2], 16) == b"\x5a" * 16
    (short_path / "migration").unlink(missing_ok=True)
    ours = written("qemu-doorbell", plain=True)
    ours.load(written("qemu-doorbell").save())
    assert bytes(ours.config_read(at, 1) for at in range(256)) == config
    assert [ours.bar_read(0, at, 4) for at in (0, 4, 8)] == registers == [0xAB, 0xCD, 0]
    assert b"".join(ours.bar_read(1, at, 4).to_bytes(4, "little") for at in range(0, 32, 4)) == table
    assert ours.bar_read(1, 0x800, 4) == pending == 2


@pytest.mark.parametrize("role", ["peer", "auto"])
def test_peer_on_the_same_server_cannot_take_it_over(
    qemu: str, serve: Callable[[], Path], tmp_path: Path, role: str
) -> None:
    path = serve()
    with monitor(qemu, doorbell(path, "master")) as (_, machine):
        record(machine, tmp_path / "stream", "ivshmem-doorbell")
        printed, _ = arrive(qemu, doorbell(path, role), f"exec:cat {tmp_path / 'stream'}")
        with pytest.raises(MigrationError) as error:
            device("qemu-doorbell", role=role, peer=1).load(written("qemu-doorbell").save())
        assert printed == printed_by(qemu, error.value)
