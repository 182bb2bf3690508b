"""Directories that are cut, crafted, old or no runs at all: what is wrong is said, the rest is read."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sim.results
from nodes.errors import UsageError
from sim.recording import header, reader
from sim.results import Run, RunDirectory
from sim.results.store import schemas
from sim.results.store.directory import ResourceStream
from sim.views.notebook import run_html
from tests.samples import examples
from tests.synthetic import finish, pair, record, topology, usage

TABLES = ("samples", "drains", "edges", "vectors", "resources", "histograms")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound run with some of everything."""
    directory = pair(tmp_path_factory.mktemp("sound"))
    for second in range(3):
        directory.resources([usage(0, "ping-0", second), usage(1, "echo-0", second)])
    for number in range(5):
        directory.event("tick", number=number)
    return finish(directory, {(1, 1): 1}).path


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound run, for the test to damage."""
    return shutil.copytree(sound, tmp_path / sound.name)


def change(path: Path, name: str, **changed: object) -> None:
    file = path / name
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def read_everything(run: Run) -> list[str]:
    """Ask a run for all it has; what it cannot give, in its own words."""
    refused = []
    facts = (lambda: run.manifest, lambda: run.summary, lambda: run.machines)
    for ask in (*facts, run.events, *(partial(run.table, name) for name in TABLES)):
        try:
            ask()
        except UsageError as error:
            refused.append(str(error))
    _ = run.problems, run.status, run.reason, repr(run), run_html(run)
    return refused


def test_a_sound_run_has_nothing_to_say(path):
    run = sim.results.open(path)
    assert (read_everything(run), run.problems) == ([], [])


@pytest.mark.parametrize("name", [f"{table}.parquet" for table in TABLES] + ["events.jsonl", "status"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "directory"])
def test_damage_is_reported_and_the_rest_is_read(path, name, damage):
    file = path / name
    file.unlink()
    if damage == "directory":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes(b"" if damage == "empty" else b"\xff\x00{not this}\n" * 50)
    run = sim.results.open(path)
    refused = read_everything(run)
    assert all(name in words for words in refused)
    # Without a status there is all the rest, and a log of events has what lines are left.
    assert len(refused) == (name != "status" and (name, damage in ("empty", "garbage")) != ("events.jsonl", True))
    assert run.summary["rung"] == 3
    # An event log without events is a sound one.
    assert any(name in problem for problem in run.problems) == ((name, damage) != ("events.jsonl", "empty"))


@pytest.mark.parametrize("name", ["summary.json", "manifest.json"])
def test_a_lost_summary_or_manifest_leaves_the_rest(path, name):
    (path / name).unlink()
    run = sim.results.open(path)
    assert len(read_everything(run)) == (1 if name == "summary.json" else 2)
    assert run.samples().num_rows == 3
    assert len(run.histogram()) == 1
    assert len(run.histogram("drained")) > 0
    assert f"{name} is missing" in run.problems


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    for place, said in (
        (tmp_path / "nowhere", "no such run directory"),
        (tmp_path, "not a run directory"),
        (Path(__file__), "no such run directory"),
    ):
        with pytest.raises(UsageError, match=said):
            sim.results.open(place)


def test_a_directory_of_runs_names_one(path):
    with pytest.raises(UsageError, match=f"it has runs in it, such as {path}$"):
        sim.results.open(path.parent)


def test_runs_of_another_schema_are_named(path):
    change(path, "manifest.json", schema_version=2)
    assert any("schema 2, this program reads schema 1" in problem for problem in sim.results.open(path).problems)
    (path / "summary.json").unlink()
    with pytest.raises(UsageError, match="schema 2, this program reads schema 1"):
        sim.results.open(path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "<script>", "a b", "", "x" * 161, "a\nb", "\x1b[31m"])
def test_names_that_could_do_harm_are_refused(path, name):
    machines = json.loads((path / "manifest.json").read_text())["machines"]
    machines[0]["name"] = name
    change(path, "manifest.json", machines=machines)
    run = sim.results.open(path)
    with pytest.raises(UsageError, match=r"manifest.json is damaged"):
        _ = run.machines
    with pytest.raises(UsageError, match=r"manifest.json is damaged"):
        run.latency(by="machine")


@pytest.mark.parametrize(
    "wrong",
    [
        {"machines": 10**30},
        {"rung": "many"},
        {"latency_ns": None},
        {"groups": {"ping": 5}},
        {"problems": [None]},
        {"duration_s": "<b>"},
    ],
)
def test_a_summary_of_other_types_is_refused(path, wrong):
    change(path, "summary.json", **wrong)
    run = sim.results.open(path)
    assert any("summary.json is damaged" in problem for problem in run.problems)
    assert "damaged" in run_html(run)


def test_samples_of_machines_that_there_are_not(path):
    table = pq.read_table(path / "samples.parquet")
    target = pa.array([60_000] * table.num_rows, pa.uint16())
    schemas.write_table(path, "samples", table.set_column(1, "target", target))
    with pytest.raises(UsageError, match="samples name machine 60000, the manifest has 2"):
        sim.results.open(path).latency(by="group")


def test_tables_with_other_columns_are_refused(path):
    pq.write_table(pa.table({"source": [1], "code": ["import os"]}), path / "samples.parquet")
    with pytest.raises(UsageError, match="other columns"):
        _ = sim.results.open(path).samples()


def test_tables_that_claim_too_many_rows_are_refused(path, monkeypatch):
    monkeypatch.setattr(schemas, "ROW_LIMIT", 2)
    with pytest.raises(UsageError, match="3 rows, more than 2"):
        _ = sim.results.open(path).samples()


def test_small_files_have_limits(path, monkeypatch):
    monkeypatch.setattr(sim.results.store.files, "JSON_LIMIT_BYTES", 100)
    assert any("larger than the 100 bytes" in problem for problem in sim.results.open(path).problems)


def test_deep_json_is_damage_and_no_crash(path):
    (path / "summary.json").write_text('{"groups":' + "[" * 200_000)
    with (path / "events.jsonl").open("a") as events:
        events.write("[" * 100_000 + "\n" + '{"a":' * 100_000 + "\n")
    run = sim.results.open(path)
    assert len(run.events()) == 5
    assert any("summary.json is damaged" in problem for problem in run.problems)
    assert "events.jsonl: 2 lines are damaged and left out" in run.problems


def test_events_cut_at_every_byte_give_the_lines_before(path):
    whole = (path / "events.jsonl").read_bytes()
    for cut in range(len(whole) + 1):
        (path / "events.jsonl").write_bytes(whole[:cut])
        events = Run(path).events()
        complete = whole[:cut].count(b"\n")
        # A line that lacks nothing but its end is a whole one.
        assert len(events) == complete + (whole[cut : cut + 1] == b"\n")
        assert [event["number"] for event in events] == list(range(len(events)))


def test_resources_cut_anywhere_give_the_whole_batches(tmp_path):
    file = tmp_path / "resources.arrows"
    ends, stream = [], ResourceStream(file)
    for second in range(3):
        stream.append([usage(0, "ping-0", second), usage(1, "echo-0", second)])
        ends.append(file.stat().st_size)
    stream.close()
    whole = file.read_bytes()
    for cut in sorted({*range(0, len(whole), 7), *(end + beside for end in ends for beside in (-1, 0, 1)), len(whole)}):
        file.write_bytes(whole[:cut])
        table, wrong = schemas.read_stream(file)
        assert table.num_rows == 2 * sum(end <= cut for end in ends)
        assert table.validate(full=True) is None
        assert not wrong or "ends early" in wrong
    assert not wrong


@pytest.mark.parametrize("table", TABLES)
def test_tables_cut_anywhere_are_damage(path, table):
    file = path / f"{table}.parquet"
    whole = file.read_bytes()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        with pytest.raises(UsageError, match="damaged"):
            schemas.read_table(path, table)


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), table=st.sampled_from(TABLES))
def test_tables_with_a_changed_byte_never_crash_the_reader(path, place, byte, table):
    file = path / f"{table}.parquet"
    whole = file.read_bytes()
    try:
        changed = bytearray(whole)
        changed[int(place * len(whole))] = byte
        file.write_bytes(bytes(changed))
        read_everything(Run(path))
    finally:
        file.write_bytes(whole)


# Recordings.


def one_recording(tmp_path: Path) -> Path:
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 2)}), {})
    directory.close()
    record(
        directory,
        0,
        vectors=[(4, 2), (5, 3)],
        edges={(0, 0): (4, 0), (0, 1): (5, 0)},
        rings=[(0, 0, 10, 11), (0, 1, 20, 21)],
        drains=[(0, 4, 30, 31), (1, 5, 40, 41)],
    )
    return directory.recording_path(0)


def test_a_recording_cut_at_every_byte_tells_what_is_left(tmp_path):
    file = one_recording(tmp_path)
    whole = file.read_bytes()
    rings = set()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        records = reader.read(file, 0)
        rings.add(len(records.rings))
        if cut < header.HEADER_WORDS * header.WORD_BYTES:
            assert records.problems
            assert not records.clean
    assert rings == {0, 1, 2}


@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 95), st.integers(0, 2**64 - 1), max_size=6))
def test_a_recording_with_other_words_gives_figures_or_problems(tmp_path_factory, words):
    parent = tmp_path_factory.mktemp("words")
    directory = RunDirectory.create(parent, topology({"alone": (1, 2)}), {})
    record(
        directory,
        0,
        vectors=[(4, 2), (5, 3)],
        edges={(0, 0): (4, 0), (0, 1): (5, 0)},
        rings=[(0, 0, 10, 11)],
        drains=[(0, 4, 30, 31)],
    )
    content = np.fromfile(directory.recording_path(0), np.uint64)
    for at, word in words.items():
        if at < len(content):
            content[at] = word
    content.tofile(directory.recording_path(0))
    run = finish(directory)
    assert run.figures.rung >= 0
    assert run.samples().num_rows == run.figures.samples
    shutil.rmtree(parent)


def test_a_lost_recording_explains_what_does_not_balance(tmp_path):
    directory = pair(tmp_path)
    directory.recording_path(0).unlink()
    run = finish(directory, {(1, 1): 1})
    assert run.problems[0] == "recording of machine 0 is missing"
    assert (run.summary["rung"], run.summary["settled"], run.balanced) == (3, 3, True)


def test_recordings_elsewhere_are_neither_read_nor_removed(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "0.rec").write_text("somebody else's")
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    (directory.path / "raw").rmdir()
    (directory.path / "raw").symlink_to(other)
    run = finish(directory)
    assert (other / "0.rec").read_text() == "somebody else's"
    assert "recording of machine 0 is missing" in run.problems


def test_what_is_no_recording_is_left_alone(tmp_path):
    directory = pair(tmp_path)
    (directory.path / "raw" / "notes.txt").write_text("mine")
    run = finish(directory, {(1, 1): 1})
    assert (run.path / "raw" / "notes.txt").exists()
    assert run.status == "finished"


@pytest.mark.parametrize(
    "wrong",
    [
        {"status": "running"},
        {"pending": [[0, 0, -1]]},
        {"pending": [[0, 0, 1 << 60]]},
        {"deaths": {"-1": "SIGKILL"}},
        {"start_ns": 10**30},
        {"stop_ns": None},
    ],
)
def test_crafted_last_words_are_not_believed(tmp_path, wrong):
    directory = pair(tmp_path)
    with pytest.raises(ZeroDivisionError), directory:
        _ = 1 / 0
    words = {"status": "finished", "reason": "", "deaths": {}, "pending": [], "foreign_pending": []}
    words |= {"start_ns": 0, "measure_start_ns": 0, "stop_ns": 0}
    (directory.path / "ending.json").write_text(json.dumps(words | wrong))
    run = sim.results.open(directory.path)
    assert run.summary["pending_derived"]
    assert run.balanced


def test_last_words_about_machines_that_there_are_not(tmp_path):
    directory = pair(tmp_path)
    run = finish(directory, {(1, 1): 1, (9, 0): 4}, exits={7: "SIGKILL"})
    assert run.summary["deaths"] == {}
    assert "4 doorbells pend at 9, vector 0, which is not known" in run.problems


def test_a_manifest_of_a_million_machines_is_refused(path):
    machines = [{"index": place, "name": "a", "group": "ping", "vectors": 65536} for place in range(100)]
    change(path, "manifest.json", machines=machines)
    with pytest.raises(UsageError, match="no host has that many"):
        _ = sim.results.open(path).manifest
