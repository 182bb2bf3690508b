"""The page of a run: complete, by itself, escaped; and whatever the run lacks, there is a page that says so."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from click.testing import CliRunner

import sim.results
from nodes.errors import UsageError
from sim.commands.report import report
from sim.results import Run, RunDirectory
from sim.results.summary import ExpectationVerdict
from sim.views.html.page import page
from tests.synthetic import MEASURE_NS, SECOND_NS, START_NS, finish, pair, record, topology, usage

RINGS = 400
HOSTILE = "<script>alert('x')</script> & \"quoted\" \x1b[31m"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Structure(HTMLParser):
    """What is in a page, and whether every element is closed where it was opened."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def busy(parent: Path, title: str = "Made up") -> RunDirectory:
    """Two senders and a receiver: four hundred doorbells, one in eight shared an interrupt, senders late by 10 us."""
    directory = RunDirectory.create(parent, topology({"sender": (2, 1), "receiver": (1, 2)}, title), {})
    stamps = [(place % 2, MEASURE_NS + place * 4_000_000) for place in range(RINGS)]
    for machine in range(2):
        rings = [(2, place % 2, at - 10_000, at) for place, (who, at) in enumerate(stamps) if who == machine]
        record(directory, machine, vectors=[(0, 0)], edges={(2, machine): (RINGS // 2, machine)}, rings=rings)
    drains = [(place % 2, 1 + (place % 8 == 0), at + 20_000, at + 22_000) for place, (_, at) in enumerate(stamps)]
    record(directory, 2, vectors=[(RINGS // 2, RINGS // 2), (RINGS // 2 - 1, RINGS // 2 - 1)], drains=drains)
    for look in range(6):
        rows = [usage(machine, f"m{machine}", look / 2) for machine in range(3)]
        directory.resources([*rows, usage(-1, "coordinator", look / 2)])
    return directory


def add_event(path: Path, second: float, kind: str, **fields: object) -> None:
    with (path / "events.jsonl").open("a") as file:
        file.write(
            json.dumps({"time_ns": START_NS + round(second * SECOND_NS), "utc": "", "kind": kind, **fields}) + "\n"
        )


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = finish(busy(tmp_path_factory.mktemp("sound")))
    add_event(made.path, 1.5, "action", do="kill", machine="sender-0", line=14)
    return made.path


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Run:
    """A copy of the sound run, for the test to change."""
    return sim.results.open(shutil.copytree(sound, tmp_path / sound.name))


def test_a_page_has_every_part(run):
    structure = Structure(page(run))
    for heading in ("Latency", "Over time", "Senders and receivers", "Coalescing", "Resources", "Host and run"):
        assert heading in structure.text
    for said in (
        "399",
        "total, corrected",
        "total, raw",
        "warm-up",
        "kill sender-0 (line 14)",
        "sender",
        "receiver",
    ):
        assert said in structure.text
    # Seven charts, wide and narrow each, two bars, two pictures of senders and receivers, and the keys of the legends.
    assert structure.text.count("Delivery over time") >= 3
    assert structure.text.count("Total over time, corrected") >= 3
    assert "Not shown" not in structure.text
    assert "nan" not in re.sub(r"[a-z]nan|nan[a-z]", "", page(run).lower())


def test_a_page_needs_nothing_else(run):
    content = page(run)
    structure = Structure(content)
    assert not {"link", "img", "iframe", "object", "base"} & set(structure.tags)
    assert not [value for name, value in structure.attributes if name in ("src", "href", "srcset", "action")]
    without_names = content.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.|url\((?!#)|@import|fetch\(|XMLHttp", without_names)
    assert "default-src 'none'" in content


def test_every_picture_can_be_parsed_and_has_words(run):
    pictures = re.findall(r"<svg.*?</svg>", page(run), re.DOTALL)
    assert len(pictures) > 12
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        if root.get("role") == "img":
            assert root[0].tag == "title"
            assert root[0].text
            assert root[1].tag == "desc"
            assert root[1].text
            width, height = (float(size) for size in root.get("viewBox").split()[2:])
            inside(root, width, height)


def inside(root: ElementTree.Element, width: float, height: float) -> None:
    """Lines, boxes and text begin within the picture."""
    for element in root.iter():
        for name, most in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)):
            assert -1 <= float(element.get(name, 0)) <= most + 1, ElementTree.tostring(element)
        for x, y in re.findall(r"[MLQ]([-0-9.]+) ([-0-9.]+)", element.get("d", "")):
            assert -1 <= float(x) <= width + 1, (x, width)
            assert -1 <= float(y) <= height + 1, (y, height)


def test_what_hovers_is_as_long_as_what_is_drawn(run):
    values = [value for name, value in Structure(page(run)).attributes if name == "data-hover"]
    assert len(values) == 7
    for value in values:
        facts = json.loads(value)
        assert facts["lines"]
        assert all(len(line["y"]) == len(line["words"]) == len(facts["x"]) for line in facts["lines"])


def test_text_from_files_is_escaped(tmp_path):
    made = finish(busy(tmp_path, HOSTILE))
    add_event(made.path, 1.5, HOSTILE, text=HOSTILE, machines=[HOSTILE])
    (made.path / "status").write_text(f"failed\n{HOSTILE}\n")
    (made.path / "topology.toml").write_text(HOSTILE)
    manifest = json.loads((made.path / "manifest.json").read_text())
    manifest["argv"], manifest["host"]["cpu_model"] = ["ivsim", HOSTILE], HOSTILE
    manifest["groups"][0]["program"] = HOSTILE
    manifest["phases"] = [{"name": "<b>phase", "start_ns": MEASURE_NS, "end_ns": MEASURE_NS + SECOND_NS}]
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    content = page(sim.results.open(made.path))
    structure = Structure(content)
    assert structure.tags.count("script") == 1
    assert structure.tags.count("b") == 4  # the four terms of the balance
    assert "\x1b" not in content
    assert structure.text.count("<script>alert('x')</script>") >= 6
    assert "<b>phase" in structure.text


@pytest.mark.parametrize(
    "name",
    [f"{table}.parquet" for table in ("samples", "drains", "edges", "vectors", "resources")]
    + ["events.jsonl", "status", "manifest.json", "summary.json", "topology.toml"],
)
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "cut", "directory"])
@pytest.mark.sample(10)
def test_a_damaged_run_has_a_page_that_says_so(run, name, damage):
    file = run.path / name
    content = file.read_bytes()
    file.unlink()
    if damage == "directory":
        file.mkdir()
    elif damage != "missing":
        file.write_bytes({"empty": b"", "garbage": b"\xff\x00{" * 99, "cut": content[: len(content) // 2]}[damage])
    opened = Run(run.path)
    text = Structure(page(opened)).text
    if opened.problems and name != "topology.toml":
        assert name.partition(".")[0] in text
    assert "Host and run" in text


def test_an_empty_run_has_a_page(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    record(directory, 0, vectors=[(0, 0)])
    text = Structure(page(finish(directory))).text
    assert "Nothing was sampled" in text
    assert "Nothing was drained" in text
    assert "No doorbell was rung" in text
    assert "The processes were not sampled" in text


def test_a_run_that_never_started_has_a_page(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    ending = sim.results.Ending("failed", "not Ready in time", {0: "never came"}, None, [], 0, 0, 0)
    made = directory.finish(ending)
    text = Structure(page(made)).text
    assert "not Ready in time" in text
    assert "alone-0 died: never came" in text


def test_a_run_that_does_not_balance_says_it_first(tmp_path):
    directory = pair(tmp_path)
    text = Structure(page(finish(directory))).text
    assert "does not balance" in text.partition("Latency")[0]


def test_expectations_are_shown_with_their_verdict(run, monkeypatch):
    verdicts = [
        ExpectationVerdict("p99_us", "receiver", "<= 500", 22.5, met=True),
        ExpectationVerdict("died", "", "== 0", None, met=False, why="<nobody knows>"),
    ]
    monkeypatch.setattr(run, "figures", msgspec.structs.replace(run.figures, expectations=verdicts))
    text = Structure(page(run)).text
    assert "p99_us <= 500 of receiver" in text
    assert "UNMET" in text
    assert "<nobody knows>" in text


def tiles(run: Run) -> dict[str, str]:
    shown = re.search(r"<dl.*?</dl>", page(run), re.DOTALL)
    assert shown is not None
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", shown[0]))


def test_where_senders_were_late_the_tiles_have_the_total_too(run, tmp_path):
    late = tiles(run)
    assert (late["delivery, p99"], late["total, corrected, p99"]) == ("20 us", "32 us")
    directory = RunDirectory.create(tmp_path, topology({"alone": (1, 1)}), {})
    stamps = [MEASURE_NS + place * 1_000_000 for place in range(100)]
    record(
        directory,
        0,
        vectors=[(100, 100)],
        edges={(0, 0): (100, 0)},
        rings=[(0, 0, at, at) for at in stamps],
        drains=[(0, 1, at + 20_000, at + 22_000) for at in stamps],
    )
    never_late = tiles(finish(directory))
    assert list(never_late) == [name for name in late if not name.startswith("total")]


def test_resource_tables_can_be_unfolded(run):
    _, _, rest = page(run).partition("Details of the processes")
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", rest)[:3]]
    head, sender, _ = (dict(zip(cells[0], row, strict=True)) for row in cells)
    assert list(head)[:6] == ["each machine of", "CPU user", "CPU system", "RSS", "USS", "PSS"]
    assert (sender["each machine of"], sender["CPU user"], sender["CPU system"]) == ("sender", "40.0 %", "10.0 %")
    assert (sender["RSS"], sender["USS"], sender["recording"]) == ("9.00 MiB", "3.00 MiB", "1.00 MiB")


def test_scrolling_tables_have_shadows(run):
    content = page(run)
    (rule,) = re.findall(r"^\.scroll \{(.*?)\}", content, re.DOTALL | re.MULTILINE)
    # The covers go along with what scrolls, the shadows stay.
    assert (rule.count("no-repeat local"), rule.count("no-repeat scroll")) == (2, 2)
    assert content.count("--more:") == 2, "one for light pages, one for dark ones"


def test_many_machines_share_rows(tmp_path):
    directory = RunDirectory.create(tmp_path, topology({"many": (130, 1)}), {})
    for machine in range(130):
        record(directory, machine, vectors=[(1, 1)], edges={((machine + 1) % 130, 0): (1, 0)})
    content = page(finish(directory))
    assert "3 machines share a row" in content
    assert content.count('class="cell') == 44 * 44
    assert "many-0 .. many-2 to many-0 .. many-2: 2" in content


def test_the_command_writes_one_file(run, tmp_path):
    done = CliRunner().invoke(report, [str(run.path)])
    assert (done.exit_code, done.stdout) == (0, f"{run.path / 'report.html'}\n")
    content = (run.path / "report.html").read_text()
    assert CliRunner().invoke(report, [str(run.path), "-o", "-"]).stdout == content
    elsewhere = tmp_path / "there.html"
    assert CliRunner().invoke(report, [str(run.path), "-o", str(elsewhere)]).exit_code == 0
    assert elsewhere.read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["there.html"]


def test_the_command_says_what_cannot_be(run, tmp_path):
    for arguments, said in (
        ([str(tmp_path / "none")], "no such run directory"),
        ([str(tmp_path)], "not a run directory"),
        ([str(run.path), "-o", str(tmp_path / "no" / "where.html")], "cannot be written"),
    ):
        error = CliRunner().invoke(report, arguments).exception
        assert isinstance(error, UsageError)
        assert said in str(error)


def test_a_page_is_not_changed_by_where_the_run_lies(run, tmp_path):
    moved = tmp_path / "elsewhere" / run.path.name
    shutil.copytree(run.path, moved)
    assert page(sim.results.open(moved)) == page(run)
