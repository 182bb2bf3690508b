"""Drawings of topologies: what is in them, that nothing covers anything, and that no name breaks their text."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.views.graph import dot, draw, mermaid, svg
from sim.views.graph.layout import lay_out
from tests.synthetic import topology
from topologies import Condition, Domain, Machines, Memory, TimelineEntry, Topology, Trace, load
from topologies.actions import Join, Kill, Leave, Stall, StopServer

SVG = "{http://www.w3.org/2000/svg}"


def changed(made: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(made, **fields)


def ringing(groups: dict[str, int], rings: dict[str, list[str]], **fields: Any) -> Topology:
    """Groups of so many machines, and which groups each of them rings (never a machine itself)."""
    made = topology({name: (count, 2) for name, count in groups.items()})
    members = {name: [each.index for each in made.machines if each.group == name] for name in groups}
    machines = []
    for machine in made.machines:
        to = [index for name in rings.get(machine.group, []) for index in members[name] if index != machine.index]
        machines.append(changed(machine, parameters={"to": Machines(to), "rate_hz": 5.0} if to else {}))
    return changed(made, machines=tuple(machines), **fields)  # type: ignore[no-any-return]


def rich() -> Topology:
    """Two domains, a bridge, a late machine, a timeline."""
    made = ringing({"a": 3, "bridge": 1, "b": 12}, {"a": ["bridge"], "bridge": ["b"], "b": ["b"]})
    domains = {"a": ("main",), "bridge": ("main", "far"), "b": ("far",)}
    machines = tuple(
        changed(
            each, domains=domains[each.group], present=each.index != 2, role="master" if each.index == 0 else "peer"
        )
        for each in made.machines
    )
    when = Condition(metric="pending", comparison=">", bound=9, of="a-0 -> bridge-0:1")
    timeline = (
        TimelineEntry(action=Join(), machines=(2,), at_s=1.5),
        TimelineEntry(action=Kill(), machines=(4, 5, 6), pick=1, at_s=2.0, repeat=3, period_s=1.0),
        TimelineEntry(action=Stall(), machines=(3,), when=when, at_s=1.0),
        TimelineEntry(action=StopServer(domain="far"), at_s=4.0),
    )
    far = Domain(name="far", memory=Memory(size_bytes=1 << 20, kind="memfd"), dialect="legacy")
    return changed(made, machines=machines, domains=(Domain(), far), timeline=timeline)  # type: ignore[no-any-return]


# What is drawn


def test_small_groups_are_drawn_one_by_one_and_large_ones_as_one() -> None:
    drawing = draw(ringing({"few": 8, "many": 9}, {}))
    assert [node.title for node in drawing.nodes] == [*(f"few-{n}" for n in range(8)), "many × 9"]
    assert len(draw(ringing({"few": 8, "many": 9}, {}), each=True).nodes) == 17


def test_too_many_small_groups_are_drawn_as_groups() -> None:
    drawing = draw(ringing({f"g{number}": 5 for number in range(5)}, {}))
    assert [node.title for node in drawing.nodes] == [f"g{number} × 5" for number in range(5)]


def test_edges_count_the_pairs_of_machines() -> None:
    edges = draw(ringing({"hub": 1, "leaf": 20}, {"leaf": ["leaf", "hub"], "hub": ["leaf"]})).edges
    assert [(edge.source, edge.target, edge.pairs, edge.label) for edge in edges] == [
        (0, 1, 20, "to × 20"),
        (1, 0, 20, "to × 20"),
        (1, 1, 20 * 19, "to × 380"),
    ]


def test_a_trace_and_two_parameters_name_peers_too() -> None:
    made = topology({"a": (1, 1), "b": (1, 1)})
    parameters = {"trace": Trace(machines=Machines((1,)), doorbells=((5, 0, 0),)), "to": Machines((1,))}
    made = changed(made, machines=(changed(made.machines[0], parameters=parameters), made.machines[1]))
    (edge,) = draw(made).edges
    assert (edge.parameters, edge.pairs) == (("trace", "to"), 1)


def test_timeline_entries_are_drawn_at_their_machines() -> None:
    drawing = draw(rich())
    notes = {node.title: node.notes for node in drawing.nodes if node.notes}
    assert notes == {
        "a-2": ("join at 1.5 s",),
        "bridge-0": ("stall when pending > 9 of a-0 -> bridge-0:1, from 1 s",),
        "b × 12": ("kill 1 of 3 of 12 at 2 s, 3 times 1 s apart",),
    }
    assert [cluster.notes for cluster in drawing.clusters] == [(), ("stop server at 4 s",)]
    assert [node.later for node in drawing.nodes if node.absent] == ["joins later"]


def test_a_machine_alone_is_told_its_own_turn() -> None:
    leave = TimelineEntry(action=Leave(), machines=(2, 0, 1), at_s=1.0, every_s=0.25)
    made = changed(ringing({"few": 3, "many": 9}, {}), timeline=(leave, changed(leave, machines=(3, 4))))
    assert [node.notes for node in draw(made).nodes] == [
        ("leave at 1.25 s",),
        ("leave at 1.5 s",),
        ("leave at 1 s",),
        ("leave 2 of 9 at 1 s, one every 0.25 s",),
    ]


def test_a_node_is_in_the_cluster_of_its_domain_and_a_bridge_in_none() -> None:
    drawing = draw(rich())
    assert [(cluster.name, cluster.nodes) for cluster in drawing.clusters] == [("main", (0, 1, 2)), ("far", (4,))]
    assert drawing.bridges == (3,)
    assert drawing.clusters[1].memory == "1 MiB memfd, legacy"


# Where it is

ARROWS = st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), unique=True))


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 12), min_size=1), ARROWS)
def test_cards_never_touch_and_stay_in_their_frames(groups: dict[str, int], rings: dict[str, list[str]]) -> None:
    rings = {name: [each for each in those if each in groups] for name, those in rings.items() if name in groups}
    drawing = draw(ringing(groups, rings))
    layout = lay_out(drawing)
    for one, other in itertools.combinations(layout.nodes, 2):
        assert not one.touches(other)
    (frame,) = layout.clusters
    for box in layout.nodes:
        assert frame.left < box.left < box.right < frame.right
        assert frame.top < box.top < box.bottom < frame.bottom
    assert frame.right < layout.width
    assert frame.bottom < layout.height


def test_senders_are_drawn_left_of_receivers() -> None:
    layout = lay_out(draw(ringing({"a": 1, "b": 1, "c": 1}, {"a": ["b"], "b": ["c"], "c": ["b"]})))
    assert layout.nodes[0].right < layout.nodes[1].left
    assert layout.nodes[1].right < layout.nodes[2].left


def test_machines_that_all_ring_each_other_are_drawn_in_a_circle() -> None:
    layout = lay_out(draw(ringing({"a": 4}, {"a": ["a"]})))
    assert not layout.flowing
    assert len({round(box.y) for box in layout.nodes}) == 3


def test_frames_of_domains_never_touch() -> None:
    layout = lay_out(draw(rich()))
    boxes = [*layout.clusters, layout.nodes[3]]
    for one, other in itertools.combinations(boxes, 2):
        assert not one.touches(other)


# SVG


def parsed(picture: str) -> ElementTree.Element:
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    assert root[0].tag == f"{SVG}title"
    assert root[1].tag == f"{SVG}desc"
    assert root.attrib["role"] == "img"
    return root


def shown(root: ElementTree.Element) -> list[str]:
    return ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]


def arrows(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [path for path in root.iter(f"{SVG}path") if path.attrib.get("class") == "edge"]


@pytest.mark.parametrize("name", ["ping_pong", "fan_in", "doorbell_storm", "storm_64"])
def test_what_ships_has_a_picture(name: str) -> None:
    loaded = load(name)
    root = parsed(svg(draw(loaded)))
    assert shown(root)[0] == loaded.title
    for node in draw(loaded).nodes:
        assert node.title in shown(root)
    assert len(arrows(root)) >= 1


@pytest.mark.parametrize("count", [1, 2, 9, 28, 29, 121, 1000])
def test_any_number_of_machines_can_be_drawn(count: int) -> None:
    root = parsed(svg(draw(ringing({"m": count}, {"m": ["m"]} if count < 60 else {}), each=True)))
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    marks = len(list(root.iter(f"{SVG}circle"))) or sum(
        each.attrib.get("class") == "card" for each in root.iter(f"{SVG}rect")
    )
    assert marks == count
    for each in root.iter(f"{SVG}circle"):
        assert 0 < float(each.attrib["cx"]) < width
        assert 0 < float(each.attrib["cy"]) < height


def test_the_picture_shows_all_that_there_is() -> None:
    root = parsed(svg(draw(rich())))
    said = " ".join(shown(root))
    for text in (
        "b × 12",
        "bridge-0",
        "joins later",
        "join at 1.5 s",
        "stop server at 4 s",
        "far  1 MiB memfd",
        "master",
    ):
        assert text in said
    classes = [each.attrib.get("class") for each in root.iter(f"{SVG}rect")]
    assert classes.count("card absent") == 1
    assert classes.count("card") == 3 + 3  # a-0, a-1, the bridge; three for the pile
    assert classes.count("domain") == 2
    dotted = [each for each in root.iter(f"{SVG}path") if each.attrib.get("class") == "member"]
    assert len(dotted) == 2
    description = root[1].text or ""
    assert "a-0 (idle, 2 vectors)" in description
    assert "b × 12 rings b × 12 (to × 132)" in description


def test_two_that_ring_each_other_have_an_arrow_each_unless_there_are_many() -> None:
    two = parsed(svg(draw(ringing({"a": 1, "b": 1}, {"a": ["b"], "b": ["a"]}))))
    assert len(arrows(two)) == 2
    four = parsed(svg(draw(ringing({"a": 4}, {"a": ["a"]}))))
    assert len(arrows(four)) == 6
    assert all("marker-start" in each.attrib for each in arrows(four))


def test_the_style_keeps_to_itself() -> None:
    style = parsed(svg(draw(rich()))).find(f"{SVG}style")
    assert style is not None
    rules = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", str(style.text)))
    assert rules
    assert all(selector.strip().startswith(".ivsim-graph ") for rule in rules for selector in rule.split(","))
    assert "prefers-color-scheme: dark" in str(style.text)


# Text


def unquoted(text: str) -> tuple[str, list[str]]:
    """``text`` without its quoted strings, and those."""
    string = re.compile(r'"(?:[^"\\]|\\.)*"')
    return string.sub("S", text), string.findall(text)


MERMAID = re.compile(
    r"    subgraph d\d+\[S\]|    end| {4,8}n\d+\[{1,2}S\]{1,2}|    n\d+ -\.- d\d+|    n\d+ -->\|S\| n\d+"
    r"|    classDef absent stroke-dasharray: 5 4|    class n\d+(,n\d+)* absent"
)
DOT = re.compile(r"[A-Za-z0-9_ {}\[\];=,>\n-]*")
ANY = st.text(min_size=1, max_size=30)


@given(ANY, ANY, ANY)
def test_no_word_breaks_a_drawing(title: str, program: str, parameter: str) -> None:
    made = rich()
    machines = tuple(changed(each, program=program, parameters={parameter: Machines((0, 4))}) for each in made.machines)
    drawing = draw(changed(made, title=title, machines=machines))

    front, _, body = mermaid(drawing).partition("flowchart LR\n")
    assert json.loads(front.splitlines()[1].removeprefix("title: "))
    bare, labels = unquoted(body)
    for line in bare.splitlines():
        assert MERMAID.fullmatch(line), line
    decoded = [re.sub(r"#(\d+);", lambda number: chr(int(number[1])), label) for label in labels]
    printable = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in program)
    assert any(printable in label for label in decoded)
    for label in labels:
        assert not re.search("[\"'`#;<>&\\[\\]{}|\\\\]", re.sub(r"#\d+;|<br/>", "", label[1:-1]))

    bare, strings = unquoted(dot(drawing))
    assert DOT.fullmatch(bare), bare
    assert bare.count("{") == bare.count("}") == 3
    plain = [string[1:-1].replace("\\\\", "\0").replace('\\"', '"').replace("\\n", "\n") for string in strings]
    assert any(printable in string.replace("\0", "\\") for string in plain)

    said = " ".join(shown(parsed(svg(drawing))))
    assert printable[:20] in said


def test_text_has_every_node_and_edge_once() -> None:
    drawing = draw(rich())
    for text, arrow in ((mermaid(drawing), "-->"), (dot(drawing), " -> ")):
        bare, _ = unquoted(text)
        edges = re.findall(rf"n(\d+) ?{arrow.strip()}(?:\|S\|)? ?n(\d+)", bare)
        assert sorted((int(a), int(b)) for a, b in edges) == [(edge.source, edge.target) for edge in drawing.edges]
    assert mermaid(drawing).count("subgraph ") == dot(drawing).count("subgraph ") == 2


# The command


def ivsim(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sim", "graph", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_command_draws_what_the_name_of_the_file_says(tmp_path: Path) -> None:
    assert "flowchart LR" in ivsim("ping_pong").stdout
    assert ivsim("ping_pong", "--format", "dot").stdout.startswith("digraph ")
    file = tmp_path / "picture.svg"
    done = ivsim("fan_in", "--set", "machines.sender.count=3", "-o", str(file))
    assert done.stdout == ""
    assert done.stderr == f"{file} written\n"
    assert "sender-2" in shown(parsed(file.read_text()))
    assert "sender × 20" in ivsim("fan_in", "--set", "machines.sender.count=20").stdout
    assert "sender-19" in ivsim("fan_in", "--set", "machines.sender.count=20", "--each").stdout


def test_wrong_use_is_one_clear_error(tmp_path: Path) -> None:
    assert "neither" in ivsim("no_such_topology", code=2).stderr
    assert "expected a name that ends in .mmd" in ivsim("ping_pong", "-o", str(tmp_path / "a.png"), code=2).stderr
    assert not (tmp_path / "a.png").exists()
    assert "cannot be written" in ivsim("ping_pong", "-o", str(tmp_path / "no" / "x.svg"), code=2).stderr


def test_a_full_disk_is_the_hosts_error() -> None:
    full = ivsim("ping_pong", "-o", "/dev/full", "--format", "svg", code=3)
    assert full.stderr == "ivsim: /dev/full cannot be written: No space left on device\n"
