"""Metrics for Prometheus: the text format, checked by its grammar, in a file that is whole at any moment."""

from __future__ import annotations

import os
import re
import stat
import threading
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.errors import UsageError
from sim.telemetry import Group, Publisher, Snapshot
from sim.views import prometheus
from sim.views.prometheus import exporting, exposition, write_metrics

PATIENCE_S = 60.0

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)?\}})? (-?[0-9.e+-]+|NaN|[+-]Inf)")


def snapshot(number: int = 1, **changed: object) -> Snapshot:
    made = Snapshot(
        number=number,
        time_ns=2_500_000_000,
        phase="running",
        machines=3,
        up=2,
        start_ns=1_000_000_000,
        stop_ns=4_000_000_000,
        heartbeats_late=4,
        groups={"storm": Group(2, 1, 10, 0, 0, 1), "idle": Group(1, 1, 0, 7, 6, 0)},
    )
    return msgspec.structs.replace(made, **changed)


def parsed(text: str) -> dict[str, tuple[str, dict[str, float]]]:
    """Family -> (type, labels -> value), by the grammar: HELP, TYPE, samples, each family in one piece."""
    families: dict[str, tuple[str, dict[str, float]]] = {}
    lines = text.split("\n")
    assert lines.pop() == "", "the last line ends with a line feed"
    current = ""
    for line in lines:
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in families
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current
            assert kind in ("counter", "gauge")
            assert (kind == "counter") == name.endswith("_total")
            families[name] = kind, {}
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] == current
            values = families[current][1]
            assert (match[2] or "") not in values, "a label set twice"
            values[match[2] or ""] = float(match[3])
    return families


def test_every_figure_is_there():
    families = parsed(exposition(snapshot(), lost=2))
    assert families["ivsim_doorbells_rung_total"] == ("counter", {'group="storm"': 10, 'group="idle"': 0})
    assert families["ivsim_doorbells_delivered_total"][1]['group="idle"'] == 7
    assert families["ivsim_doorbells_refused_total"][1]['group="storm"'] == 1
    assert families["ivsim_interrupts_total"][1]['group="idle"'] == 6
    assert families["ivsim_machines"][1] == {'group="storm"': 2, 'group="idle"': 1}
    assert families["ivsim_machines_up"][1] == {'group="storm"': 1, 'group="idle"': 1}
    assert families["ivsim_doorbells_pending"] == ("gauge", {"": 2})
    assert families["ivsim_snapshots_lost_total"][1] == {"": 2}
    assert families["ivsim_heartbeats_late_total"][1] == {"": 4}
    assert families["ivsim_snapshot_monotonic_seconds"][1] == {"": 2.5}
    phases = families["ivsim_phase"][1]
    assert (sum(phases.values()), phases['phase="running"']) == (1, 1)
    assert "ivsim_delivery_seconds" not in families
    told = parsed(exposition(snapshot(latency_ns={"p50": 1500})))
    assert told["ivsim_delivery_seconds"][1] == {'percentile="p50"': 1.5e-6}


@given(st.text(), st.text(), st.text())
def test_labels_are_escaped_whatever_they_are(title, phase, group):
    families = parsed(exposition(snapshot(title=title, phase=phase, groups={group: Group(1, 1, 1, 1, 1, 0)})))
    (labels,) = families["ivsim_run_info"][1]
    (value,) = re.findall(r'title="((?:[^"\\]|\\.)*)"', labels, re.DOTALL)
    unescaped = re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), value, flags=re.DOTALL)
    assert unescaped == title


def test_a_file_is_readable_for_others_and_whole(tmp_path):
    path = tmp_path / "ivsim.prom"
    write_metrics(path, snapshot(), 0)
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444 & ~current_umask()
    assert parsed(path.read_text())
    write_metrics(path, snapshot(2), 0)
    assert parsed(path.read_text())["ivsim_snapshots_total"][1] == {"": 2}
    assert os.listdir(tmp_path) == ["ivsim.prom"]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_no_reader_meets_half_a_file(tmp_path):
    path = tmp_path / "ivsim.prom"
    write_metrics(path, snapshot(0), 0)
    done = threading.Event()

    def write() -> None:
        for number in range(1, 300):
            write_metrics(path, snapshot(number), 0)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    last = -1.0
    while not done.is_set():
        number = parsed(path.read_text())["ivsim_snapshots_total"][1][""]
        assert number >= last
        last = number
    writer.join()


def test_a_place_that_cannot_be_is_said(tmp_path):
    with pytest.raises(UsageError, match="metrics cannot be written"):
        write_metrics(tmp_path / "none" / "ivsim.prom", snapshot(), 0)
    (tmp_path / "taken.prom").mkdir()
    with pytest.raises(UsageError, match="metrics cannot be written"):
        write_metrics(tmp_path / "taken.prom", snapshot(), 0)
    assert os.listdir(tmp_path) == ["taken.prom"]


def test_the_last_snapshot_is_exported(short_path):
    path, said = short_path / "ivsim.prom", []
    with Publisher(short_path / "telemetry") as publisher, exporting(publisher.endpoint, path, said.append):
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists():
            assert time.monotonic() < deadline
            publisher.publish(snapshot(1))
            time.sleep(0.01)
        publisher.publish(snapshot(7, phase="done"))
        while parsed(path.read_text())["ivsim_snapshots_total"][1][""] != 7:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert said == []
    assert parsed(path.read_text())["ivsim_phase"][1]['phase="done"'] == 1


def test_metrics_that_cannot_be_written_end_nothing_and_are_said_once(short_path, monkeypatch):
    path, said, tried = short_path / "taken.prom", [], []
    path.mkdir()
    monkeypatch.setattr(prometheus, "write_metrics", lambda *given: (tried.append(given), write_metrics(*given)))
    with Publisher(short_path / "telemetry") as publisher, exporting(publisher.endpoint, path, said.append):
        deadline = time.monotonic() + PATIENCE_S
        while len(tried) < 3:
            assert time.monotonic() < deadline
            publisher.publish(snapshot(1))
            time.sleep(0.001)
    assert said == [f"{path}: metrics cannot be written: Is a directory ({len(tried)} times)"]
