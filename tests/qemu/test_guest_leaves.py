"""A machine with a guest leaves its run by device_del, and migrates to a second QEMU by QMP's migrate."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import sim
from nodes.errors import UsageError
from sim.engines.qemu import guest_devices
from sim.results.store import files
from topologies import load, loads

pytestmark = pytest.mark.qemu

ROOT = Path(__file__).parents[2]
UNPLUGS = """
[[timeline]]
console = "^ivsim: ready"
at_s = 0.3
do = "{do}"
machines = "metal"

[[timeline]] # its server has announced the leave, and the guest has released its device
console = "^ivsim: unplugged"
when = "{gone}"
do = "{then}"
"""
GONE_WHEN = {"leave": "up == 1", "unplug": "refused > 0"}
"""A guest prints that it has let go before QEMU says so; a machine that leaves has left when QEMU has."""
GONE = """
[machines.gone]
program = "idle"
[[timeline]]
at_s = 0.1
do = "leave"
machines = "gone"
"""


@pytest.fixture(scope="module")
def bare_metal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, built: the folder of its topology."""
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("needs make and a C compiler")
    folder = tmp_path_factory.mktemp("guest") / "examples" / "bare_metal"
    shutil.copytree(ROOT / "examples" / "bare_metal", folder)
    subprocess.run(["make", "-s", "-C", folder, "CPPFLAGS=-DAWAITED=200"], check=True)
    return folder


def warnings(run: sim.Run, machine: str = "metal") -> list[str]:
    return [event["text"] for event in run.events() if event["kind"] == "warning" and event["machine"] == machine]


def unplugs(folder: Path, do: str, *, then: str = "end", duration_s: float = 100.0, rest: str = "") -> Path:
    """The example's topology in which the guest is unplugged as soon as it is ready."""
    file = folder / f"{do}.toml"
    begin, _, _ = (folder / "bare_metal.toml").read_text().partition("[[timeline]]")
    begin = begin.replace("60.0", str(duration_s))
    begin = begin.replace("rounds = 1000, timeout_s = 10.0", "timeout_s = 0.2")
    file.write_text(begin + UNPLUGS.format(do=do, then=then, gone=GONE_WHEN[do]) + rest)
    return file


@pytest.mark.parametrize("do", ["unplug", "leave"])
def test_a_guest_lets_go_of_its_device_and_runs_on(do: str, tmp_path: Path, bare_metal: Path) -> None:
    run = sim.run(unplugs(bare_metal, do), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    assert (run.summary["settled"], run.summary["guest_difference"]) == (0, 0)  # it tells its counts before it lets go
    assert warnings(run) == []
    assert "ivsim: unplugged" in files.console(run.path, "metal").read_text()
    assert [event["peer"] for event in run.events() if event["kind"] == "peer_left"] == [1]
    left = [(event["machine"], event["action"]) for event in run.events() if event["kind"] == "machine_left"]
    assert left == ([("metal", "leave")] if do == "leave" else [])


@pytest.mark.parametrize("do", ["unplug", "leave"])
def test_device_del_that_would_abort_is_not_given(do: str, tmp_path: Path, bare_metal: Path) -> None:
    end = f'[[timeline]]\nat_s = 0.1\nwhen = "up == {1 if do == "leave" else 2}"\ndo = "end"\n'
    file = unplugs(bare_metal, do, rest=GONE + end)
    file.write_text(file.read_text().replace("at_s = 0.3", 'when = "up == 2"'))
    run = sim.run(file, runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    ends = "device_del aborts a QEMU that has heard of a peer's leave: its QEMU was ended instead"
    stays = "unplug was not done: device_del aborts a QEMU that has heard of a peer's leave"
    assert (ends if do == "leave" else stays) in warnings(run)
    assert "ivsim: unplugged" not in files.console(run.path, "metal").read_text()
    left = [event["peer"] for event in run.events() if event["kind"] == "peer_left"]
    assert left == ([2, 1] if do == "leave" else [2])


def test_a_guest_that_has_left_joins_again_as_a_new_one(tmp_path: Path, bare_metal: Path) -> None:
    rest = '[[timeline]]\nwhen = "up == 3"\ndo = "end"\n[machines.late]\nabsent = true\nprogram = "idle"\n'
    then = 'join"\nmachines = ["late", "metal"]\n#"'
    run = sim.run(unplugs(bare_metal, "leave", then=then, rest=rest), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    joined = [event["machine"] for event in run.events() if event["kind"] == "machine_joined"]
    assert sorted(joined) == ["late", "metal.2"]
    assert "ivsim: ready" in files.console(run.path, "metal.2").read_text()


STORMED = """
[run]
duration_s = 200
warmup_s = 0
on_death = "degrade"

[defaults]
vectors = 2
"""
LEAVES = """
[domains.{name}]
size = "64K"

[machines.storm-{name}]
count = 2
domains = ["{name}"]
program = "storm"
parameters = {{ to = "{name}", rate_hz = 5000.0 }}

[machines.{name}]
kind = "qemu"
domains = ["{name}"]
guest = {{ kernel = "{kernel}", memory_mib = 16, accel = "tcg", ready_when = "^ivsim: ready" }}

[[timeline]]
at_s = {at_s}
when = "rung >= 100"
of = "{name}"
do = "leave"
machines = "{name}"
"""


@pytest.mark.sample(1)
@pytest.mark.parametrize("turn", range(14))
def test_guests_leave_in_a_storm_and_their_qemus_live(turn: int, tmp_path: Path, bare_metal: Path) -> None:
    kernel = bare_metal.parents[1] / "build" / "guest" / "bare_metal.elf"
    names = ["first", "second", "third"]  # a domain each: a QEMU that has heard of a leave cannot be unplugged
    text = STORMED + "".join(
        LEAVES.format(name=name, kernel=kernel, at_s=0.1 + 0.03 * number + turn / 1000)
        for number, name in enumerate(names)
    )
    run = sim.run(loads(text + f'[[timeline]]\nwhen = "up == {2 * len(names)}"\ndo = "end"\n'), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    assert [event for event in run.events() if event["kind"] in ("machine_died", "warning")] == []
    assert all("ivsim: unplugged" in files.console(run.path, name).read_text() for name in names)
    # QEMU has read what came before the others knew, and these ring it no more.
    assert (run.summary["pending"], run.summary["refused"] > 0) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ('["-S"]', "its guest has not released its device within 3 s: QEMU keeps it, disconnected"),
        ('["-machine", "q35"]', "leave was not done: Bus 'pcie.0' does not support hotplugging"),
    ],
    ids=["no answer", "no hot-plug"],
)
def test_a_guest_keeps_its_device(
    arguments: str, why: str, tmp_path: Path, bare_metal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_devices, "LEAVE_NS", 3_000_000_000)
    stays = why.startswith("leave was not done")
    rest = "" if stays else '[[timeline]]\nwhen = "up == 1"\nat_s = 0.3\ndo = "end"\n'
    file = unplugs(bare_metal, "leave", duration_s=6.0 if stays else 100.0, rest=rest)
    text = file.read_text().replace("memory_mib", f"arguments = {arguments}\nmemory_mib")
    file.write_text(text.replace('console = "^ivsim: ready"\n', "", 1).replace('ready_when = "^ivsim: ready"\n', ""))
    run = sim.run(file, runs=tmp_path)
    assert (run.status, run.reason) == ("finished", "")
    assert why in warnings(run)
    left = [event for event in run.events() if event["kind"] in ("machine_left", "peer_left")]
    assert [event["kind"] for event in left] == ([] if stays else ["peer_left", "machine_left"])


@pytest.mark.parametrize(
    ("before", "why"),
    [
        ('do = "stall"\nmachines = "timer"', "peer 0 has not read that it leaves within 3 s"),
        ('do = "stop_server"', "no server can tell the other peers that it leaves"),
    ],
    ids=["stalled", "no server"],
)
def test_a_leave_that_others_cannot_hear_ends_qemu(
    before: str, why: str, tmp_path: Path, bare_metal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that has not heard may ring during device_del, which a QEMU does not always survive."""
    monkeypatch.setattr(guest_devices, "LEAVE_NS", 3_000_000_000)
    rest = f'[[timeline]]\nat_s = 0.1\n{before}\n[[timeline]]\nat_s = 0.2\nwhen = "up == 1"\ndo = "end"\n'
    run = sim.run(unplugs(bare_metal, "leave", rest=rest), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    assert warnings(run) == [f"{why}, and a doorbell could end QEMU: its QEMU was ended instead"]
    assert "ivsim: unplugged" not in files.console(run.path, "metal").read_text()
    assert [event["machine"] for event in run.events() if event["kind"] == "machine_left"] == ["metal"]


MOVES = """
[run]
duration_s = 100
warmup_s = 0
sample_every = 0
on_death = "degrade"
"""
DOMAIN = """
[domains.{name}]
size = "64K"
"""
MOVER = """
[machines.{name}]
kind = "qemu"
role = "master"
vectors = 2
domains = ["{name}"]
guest = {{ kernel = "{kernel}", memory_mib = 16, accel = "tcg", ready_when = "^ivsim: ready" }}

[[timeline]]
at_s = 0.2
do = "migrate"
machines = "{name}"
to_domain = "{name}-there"
{keys}
"""
RINGS = """
[machines.{name}]
vectors = 2
absent = {absent}
domains = {domains}
program = "round_trip"
parameters = {{ to = "{to}", offset = 0, rounds = {rounds}, timeout_s = 0.5 }}
"""
ANSWERED = """
[machines.answered-{name}]
vectors = 2
absent = true
domains = ["{name}"]
program = "idle"

[[timeline]]
when = "delivered >= 20"
of = "asks-{name}"
do = "join"
machines = "answered-{name}"
"""
JOINS = """
[[timeline]]
when = "{when}"
do = "join"
machines = {machines}

[[timeline]]
when = "{done}"
do = "end"
"""


def moving(bare_metal: Path, faults: dict[str, str], rest: str) -> str:
    """Guests that migrate to the domain ``there``, each from a domain of its own, and what goes wrong with each."""
    kernel = bare_metal.parents[1] / "build" / "guest" / "bare_metal.elf"
    text = MOVES + "".join(DOMAIN.format(name=name) for name in (*faults, *(f"{each}-there" for each in faults)))
    for name, fault in faults.items():
        text += MOVER.format(name=name, kernel=kernel, keys=f'fault = "{fault}"' if fault else "")
    return text + rest


def test_a_guest_migrates_and_answers_where_it_is_then(tmp_path: Path, bare_metal: Path) -> None:
    text = moving(
        bare_metal,
        {"mover": ""},
        RINGS.format(name="stays", absent="false", domains='["mover"]', to="mover", rounds=0)
        + '[machines.filler]\nvectors = 2\nabsent = true\ndomains = ["mover-there"]\nprogram = "idle"\n'
        + RINGS.format(name="follows", absent="true", domains='["mover-there", "mover"]', to="mover", rounds=50)
        + JOINS.format(when="migrated == 1", machines='["filler", "follows"]', done='delivered >= 50"\nof = "follows'),
    )
    run = sim.run(loads(text), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    (moved,) = run.figures.migrations
    assert (moved.machine, moved.verdict, moved.from_domain, moved.to_domain) == (
        "mover",
        "moved",
        "mover",
        "mover-there",
    )
    assert (moved.to_peer, moved.memory_bytes, moved.pending_vectors) == (0, 1 << 16, 0)
    assert moved.state_bytes > 0
    assert moved.downtime_ms > 0
    assert (
        run.summary["statistics"]["follows"]["rounds"] >= 49
    )  # the end may come between the last answer and its count
    # The guest was not booted anew, and its console goes on: the totals that it prints at the end are of both places.
    printed = files.console(run.path, "mover").read_text()
    assert printed.count("ivsim: ready") == 1
    rounds = sum(run.summary["statistics"][name]["rounds"] for name in ("stays", "follows"))
    # What it rang at the peer that it has left, it rang at nothing.
    assert 0 <= run.summary["statistics"]["mover"]["rung"] - rounds <= 4
    assert warnings(run, "mover") == []


def test_a_guest_whose_migration_fails_stays_and_answers(tmp_path: Path, bare_metal: Path) -> None:
    faults = {"cancelled": "cancel", "dies": "target_dies", "gone": "server_gone", "lost": "source_dies"}
    stay = [*faults][:3]
    text = moving(bare_metal, faults, "".join(ANSWERED.format(name=name) for name in stay))
    text += "".join(
        RINGS.format(name=f"asks-{name}", absent="true", domains=f'["{name}"]', to=name, rounds=20) for name in stay
    )
    # Up are then the three guests, three machines that ask, and three that say that one has been answered.
    text += JOINS.format(
        when="migrations_failed == 4", machines=[f"asks-{name}" for name in stay], done=f"up == {3 * len(stay)}"
    )
    run = sim.run(loads(text), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    failed = {each.machine: each.reason for each in run.figures.migrations if each.verdict == "failed"}
    assert failed["cancelled"] == "it was cancelled"
    assert failed["dies"] == "its new QEMU died"
    assert "server.socket.gone" in failed["gone"] or "Failed to connect" in failed["gone"], failed
    # An answer that comes too late ends no round, and the end may come before the last one is counted.
    assert all(1 <= run.summary["statistics"][f"asks-{name}"]["rounds"] <= 20 for name in stay)
    left = [(event["machine"], event["action"]) for event in run.events() if event["kind"] == "machine_left"]
    assert left == [("lost", "migrate")]


@pytest.mark.parametrize(
    ("guest", "keys", "expected"),
    [
        ('disk = "disk.img"', 'to_domain = "there"', "whose guest has a disk"),
        ('kernel = "k"', "hand_over = true", "its QEMU has the connection itself"),
    ],
)
def test_a_migration_that_no_guest_can_do_is_a_mistake_of_the_file(guest: str, keys: str, expected: str) -> None:
    text = DOMAIN.format(name="mover") + DOMAIN.format(name="there")
    text += MOVER.format(name="mover", kernel="k", keys="").partition("[[timeline]]")[0]
    text = text.replace('kernel = "k"', guest)
    text += f'[[timeline]]\nat_s = 1\ndo = "migrate"\nmachines = "mover"\n{keys}\n'
    with pytest.raises(UsageError, match=expected):
        loads(text)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.sample(1)
@pytest.mark.parametrize("example", ["uio_guest", "kernel_driver"])
def test_a_linux_guest_migrates_and_then_lets_go_of_its_device(example: str, tmp_path: Path) -> None:
    file = ROOT / "examples" / example / f"{example}.toml"
    if not all(
        Path(each).is_file() for machine in load(file).machines if machine.guest for each in machine.guest.files
    ):
        pytest.skip(f"examples/{example}/build.py builds it")
    text = file.read_text().partition("[[timeline]]")[0].replace("../../build", f"{ROOT}/build")
    text = text.replace('kind = "qemu"', 'kind = "qemu"\nrole = "master"\ndomains = ["here"]')
    text = text.replace('program = "round_trip"', 'program = "round_trip"\ndomains = ["here"]')
    text = (
        text.replace("60.0", "200.0").replace("ready_when", "ready_timeout_s = 200.0\nready_when")
        + DOMAIN.format(name="here")
        + DOMAIN.format(name="there")
    )
    # The first machine in a domain is peer 0, and only that can be a master.
    begin, timer, linux = (
        text[: text.index("[machines.timer]")],
        *text[text.index("[machines.timer]") :].split("[machines.linux]", 1),
    )
    text = f"{begin}[machines.linux]{linux}{timer}"
    text += """
[[timeline]]
when = "delivered >= 200"
do = "migrate"
machines = "linux"
to_domain = "there"

[[timeline]]
when = "migrated == 1"
do = "leave"
machines = "linux"

[[timeline]]
when = "up == 1"
do = "end"
"""
    run = sim.run(loads(text), runs=tmp_path)
    assert (run.status, run.reason, run.balanced) == ("finished", "", True)
    assert warnings(run, "linux") == []
    (moved,) = run.figures.migrations
    assert (moved.verdict, moved.to_domain) == ("moved", "there")
    assert "ivsim: unplugged" in files.console(run.path, "linux").read_text()
    kinds = [event["kind"] for event in run.events() if event.get("machine") == "linux"]
    assert kinds.index("migrated") < kinds.index("machine_left")
