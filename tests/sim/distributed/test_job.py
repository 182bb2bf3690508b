"""Jobs: what travels, what comes back, and what is refused on the way."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from pathlib import Path

import msgspec
import pytest

from nodes.errors import RunError, UsageError
from sim.distributed.job import Job, JobResult, collect_inputs, pack, unpack, write_files
from topologies import load

TOPOLOGY = """
title = "Two"
[machines.a]
program = "idle"
[machines.b]
program = "storm"
parameters = { to = "a" }
"""


def result(archive: bytes, digest: str) -> JobResult:
    return JobResult("alpha", 0, b"", "", archive, digest)


def archived(*members: tuple[str, bytes, bytes]) -> JobResult:
    """An archive with these members: name, type, content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    return result(content, hashlib.sha256(content).hexdigest())


def test_a_directory_arrives_as_it_was_sent(tmp_path: Path) -> None:
    sent = tmp_path / "sent"
    (sent / "raw").mkdir(parents=True)
    (sent / "status").write_text("finished\n")
    (sent / "raw" / "0.rec").write_bytes(bytes(range(256)) * 9000)
    (sent / "link").symlink_to("/etc/passwd")
    os.utime(sent / "status", (1_000_000_000, 1_000_000_000))
    unpack(result(*pack(sent)), got := tmp_path / "got")
    assert {path.relative_to(got).as_posix() for path in got.rglob("*") if path.is_file()} == {"status", "raw/0.rec"}
    assert (got / "raw" / "0.rec").read_bytes() == (sent / "raw" / "0.rec").read_bytes()
    assert (got / "status").stat().st_mtime == 1_000_000_000
    assert got.stat().st_mode & 0o777 == 0o700


def test_an_archive_that_has_changed_on_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "status").write_text("finished\n")
    content, digest = pack(tmp_path / "sent")
    with pytest.raises(RunError, match="arrived damaged"):
        unpack(result(content[:-1] + bytes([content[-1] ^ 1]), digest), tmp_path / "got")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out", tarfile.REGTYPE),
        ("/tmp/out", tarfile.REGTYPE),
        ("a/../../out", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("link", tarfile.LNKTYPE),
        ("fifo", tarfile.FIFOTYPE),
        ("device", tarfile.CHRTYPE),
    ],
)
def test_an_archive_writes_nothing_outside_its_directory(tmp_path: Path, name: str, kind: bytes) -> None:
    with pytest.raises(RunError, match="alpha"):
        unpack(archived((name, kind, b"x" if kind == tarfile.REGTYPE else b"")), tmp_path / "in" / "got")
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "", ".", "a/../../out", "a\0b"])
def test_a_job_writes_no_file_outside_its_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="below a directory"):
        write_files(Job([], {name: b""}), tmp_path / "job")


def test_a_topology_travels_with_its_traces_and_the_programs_that_are_named(tmp_path: Path) -> None:
    text = TOPOLOGY.replace('program = "storm"\nparameters = { to = "a" }', 'program = "mine"')
    (tmp_path / "t.toml").write_text(text)
    program = tmp_path / "elsewhere" / "mine.py"
    program.parent.mkdir()
    program.write_text("def mine(guest):\n    yield None\n")
    (program.parent / "secret.py").write_text("")
    topology = load(tmp_path / "t.toml", {"machines.a.vectors": "2"}, [program])
    inputs = collect_inputs(topology, [program])
    assert inputs.files == {
        "topology/t.toml": topology.source_text.encode(),
        "programs/mine.py": program.read_bytes(),
    }
    assert inputs.arguments == [
        "topology/t.toml",
        "--program",
        "programs/mine.py",
        "--set",
        "machines.a.vectors=2",
    ]
    other = tmp_path / "mine.py"
    other.write_text(program.read_text())
    with pytest.raises(UsageError, match=r"two programs are called mine\.py"):
        collect_inputs(topology, [program, other])


def test_only_files_below_the_topologys_directory_travel(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(TOPOLOGY)
    topology = load(tmp_path / "t.toml")
    (tmp_path / "day.csv").write_text("0,0\n")
    inside = msgspec.structs.replace(topology, files={"day.csv": str(tmp_path / "day.csv")})
    assert collect_inputs(inside, []).files["topology/day.csv"] == b"0,0\n"
    for name in ("../day.csv", "/day.csv"):
        outside = msgspec.structs.replace(topology, files={name: str(tmp_path / "day.csv")})
        with pytest.raises(UsageError, match="only files below"):
            collect_inputs(outside, [])
    missing = msgspec.structs.replace(topology, files={"night.csv": str(tmp_path / "night.csv")})
    with pytest.raises(UsageError, match="cannot be read"):
        collect_inputs(missing, [])
