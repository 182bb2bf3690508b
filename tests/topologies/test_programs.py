"""Programs are found by name, and their parameters are those of the signature."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import nodes.programs
from topologies import ProgramError, TopologyError, loads, resolve_program, shipped_programs
from topologies.resolve.importing import import_program

MODULE = '''
from __future__ import annotations
from typing import TYPE_CHECKING, Annotated, Literal, Optional
import functools
import msgspec
if TYPE_CHECKING:
    from nodes.guest import Guest, Peers

Few = Annotated[int, msgspec.Meta(ge=1, le=3)]

def everything(
    guest: Guest, *, to: Peers, whole: int, part: float = 0.5, word: str = "w", flag: bool = False,
    mode: Literal["a", "b"] = "a", maybe: int | None = None, some: Optional[float] = None,
    numbers: list[int] = [], weights: tuple[float, ...] = (1.0,), few: Few = 1,
    hub: Peers | None = None, rest: "Peers" = "others",
    rate_hz: float = 1.0, wait_s: float = 0.0, size_bytes: int = 0, burst: int = 1, vector: int = 0,
    offset: int = 0,
):
    """Takes a parameter of each kind.

    And says more.
    """
    yield

def plain(guest):
    yield

def positional(guest, to):
    yield

def positional_default(guest, to=1):
    yield

def variadic(guest, **parameters):
    yield

def nothing():
    yield

def keyword_only(*, guest):
    yield

def unannotated(guest, *, to=1):
    yield

def unknown(guest, *, to: NoSuchType = 1):
    yield

def unfillable(guest, *, to: bytes = b""):
    yield

def python_only(guest, *, to: functools.partial = None):
    yield

def evaluated(guest, *, to: 1 / 0 = None):
    yield

def not_a_generator(guest):
    return 1

def decorate(function):
    @functools.wraps(function)
    def wrapper(*a, **k):
        return function(*a, **k)
    return wrapper

@decorate
def wrapped(guest, *, to: Peers = "others", burst: int = 2):
    yield

CONSTANT = 1
class Class: ...
'''

# The same without the __future__ import: annotations are objects, not strings.
OBJECTS = """
from typing import Optional
from nodes.guest import Peers

def program(
    guest, *, a: Peers, b: Peers | None = None, c: Optional["Peers"] = None, d: tuple[int, ...] = ()
):
    yield
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is found like an installed one."""
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "good.py").write_text(MODULE)
    (package / "objects.py").write_text(OBJECTS)
    (package / "syntax.py").write_text("def (")
    (package / "raises.py").write_text("raise RuntimeError('half\\nway \\x1b[2J')")
    (package / "exits.py").write_text("import sys; sys.exit(0)")
    (package / "needs.py").write_text("import no_such_thing_anywhere")
    (package / "cycle.py").write_text("import users_package.no_such_part")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("", ".good", ".objects", ".syntax", ".raises", ".exits", ".needs", ".cycle"):
        monkeypatch.delitem(sys.modules, f"users_package{name}", raising=False)


def everything(parameters: str) -> dict[str, Any]:
    topology = loads(
        "[machines.a]\ncount = 2\nprogram = 'users_package.good:everything'\n[machines.a.parameters]\n" + parameters
    )
    return topology.machines[0].parameters


def test_the_shipped_programs_are_those_of_nodes() -> None:
    assert set(shipped_programs()) == set(nodes.programs.__all__) >= {"idle", "ping", "echo", "storm", "poll"}
    for name in shipped_programs():
        program = resolve_program(name)
        assert program.function is getattr(nodes.programs, name)
        assert program.summary
    storm = {parameter.name: parameter for parameter in resolve_program("storm").parameters}
    assert storm["to"].names_peers
    assert storm["to"].default == "others"
    assert not storm["burst"].names_peers


def test_a_program_of_another_package() -> None:
    program = resolve_program("users_package.good:everything")
    assert program.summary == "Takes a parameter of each kind."
    assert [p.name for p in program.parameters if p.required] == ["to", "whole"]
    assert [p.name for p in program.parameters if p.names_peers] == ["to", "hub", "rest"]
    assert resolve_program("users_package.good:plain").parameters == ()
    assert [p.name for p in resolve_program("users_package.good:wrapped").parameters] == ["to", "burst"]


def test_annotations_that_are_objects() -> None:
    parameters = resolve_program("users_package.objects:program").parameters
    assert [(p.name, p.names_peers) for p in parameters] == [
        ("a", True),
        ("b", True),
        ("c", True),
        ("d", False),
    ]


def test_parameters_have_the_types_of_the_signature() -> None:
    assert everything('to = "all"\nwhole = 3\n') == {
        "to": (0, 1),
        "whole": 3,
        "part": 0.5,
        "word": "w",
        "flag": False,
        "mode": "a",
        "maybe": None,
        "some": None,
        "numbers": [],
        "weights": (1.0,),
        "few": 1,
        "hub": None,
        "rest": (1,),
        "rate_hz": 1.0,
        "wait_s": 0.0,
        "size_bytes": 0,
        "burst": 1,
        "vector": 0,
        "offset": 0,
    }
    given = everything(
        'to = []\nwhole = -3\npart = 2\nword = ""\nflag = true\nmode = "b"\nmaybe = 4\nsome = 5\n'
        'numbers = [1, 2]\nweights = [1, 2.5]\nfew = 3\nhub = "a-0"\nrest = ["a-1"]\n'
    )
    assert given["weights"] == (1.0, 2.5)
    assert isinstance(given["part"], float)
    assert isinstance(given["some"], float)
    assert (given["hub"], given["rest"], given["to"]) == ((0,), (1,), ())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("whole = 1.0", "a whole number"),
        ("whole = true", "a whole number"),
        ("whole = 9223372036854775808", "a whole number"),
        ("part = 'x'", "a number"),
        ("part = inf", "a number"),
        ("word = 1", "a string"),
        ("flag = 1", "true or false"),
        ("mode = 'c'", 'one of "a", "b"'),
        ("maybe = 'x'", "a whole number"),
        ("numbers = 1", "an array, each value a whole number"),
        ("numbers = [1, 'x']", "an array, each value a whole number"),
        ("weights = [1.0, nan]", "an array, each value a number"),
        ("few = 4", "a whole number from 1 to 3"),
        ("hub = 1", "the name of a group"),
        ("rest = [1]", "the name of a group"),
        ("rate_hz = 0", "a number from 1e-06 to 1e+09"),
        ("rate_hz = 1e10", "a number from 1e-06 to 1e+09"),
        ("wait_s = -1", "a number from 0 to 604800"),
        ("wait_s = 1e308", "a number from 0 to 604800"),
        ("size_bytes = -1", "a number at least 0"),
        ("burst = 0", "a number at least 1"),
        ("vector = 2048", "a number from 0 to 2047"),
        ("offset = 4194297", "an offset of at most 4194296"),
        ("nothing_known = 1", "one of to, whole"),
        ("maybe = 1979-05-27", "a whole number"),
    ],
)
def test_a_value_that_does_not_fit(line: str, expected: str) -> None:
    given = "" if line.startswith("whole") else "whole = 1\n"
    with pytest.raises(TopologyError) as caught:
        everything(f"to = 'all'\n{given}{line}\n")
    (problem,) = caught.value.problems
    assert expected in problem.expected
    assert problem.key.startswith(f"machines.a.parameters.{line.split(' ', maxsplit=1)[0]}")
    assert problem.line == (6 if not given else 7)


def test_missing_required_parameters_are_reported() -> None:
    with pytest.raises(TopologyError) as caught:
        everything("")
    assert [(p.line, p.key) for p in caught.value.problems] == [
        (4, "machines.a.parameters.to"),
        (4, "machines.a.parameters.whole"),
    ]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("strom", 'did you mean "storm"'),
        ("__name__", "one of the programs"),
        ("SECOND_NS", "one of the programs"),
        ("", "one of the programs"),
        ("../storm", "one of the programs"),
        ("no_such_package_at_all:x", "no module no_such_package_at_all"),
        ("users_package.nothing:x", "no module users_package.nothing"),
        ("users_package.needs:x", "needs no_such_thing_anywhere"),
        ("users_package.cycle:x", "needs users_package.no_such_part"),
        ("users_package.syntax:x", "SyntaxError"),
        ("users_package.raises:x", "RuntimeError: half\\nway"),
        ("users_package.exits:x", "SystemExit"),
        ("users_package.good:everythin", 'did you mean "everything"'),
        ("users_package.good:not_a_generator", "without yield"),
        ("users_package.good:CONSTANT", "a int"),
        ("users_package.good:Class", "a class"),
        ("users_package.good:positional", "to as parameter 2"),
        ("users_package.good:positional_default", "to=1 as parameter 2"),
        ("users_package.good:variadic", "**parameters as parameter 2"),
        ("users_package.good:nothing", "without parameters"),
        ("users_package.good:keyword_only", "guest as parameter 1"),
        ("users_package.good:unannotated", "parameter to"),
        ("users_package.good:unknown", "NoSuchType"),
        ("users_package.good:unfillable", "bytes"),
        ("users_package.good:python_only", "partial"),
        ("users_package.good:evaluated", "1 / 0"),
        (":x", "package.module:function"),
        ("a b:x", "package.module:function"),
        (".good:x", "package.module:function"),
        ("users_package.good:Class.method", "package.module:function"),
        ("users_package.good:plain()", "package.module:function"),
    ],
)
def test_a_program_that_cannot_be_run(name: str, told: str) -> None:
    with pytest.raises(ProgramError) as caught:
        resolve_program(name)
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


def test_each_group_is_told_about_its_program() -> None:
    with pytest.raises(TopologyError) as caught:
        loads("".join(f"[machines.{g}]\nprogram = 'users_package.raises:x'\n" for g in "ab"))
    assert [(p.line, p.key) for p in caught.value.problems] == [
        (2, "machines.a.program"),
        (4, "machines.b.program"),
    ]


# Files of programs

FILE = '''
from nodes.guest import Guest, Peers, Program, Trace

def mine(guest: Guest, *, to: Peers = "others", rate_hz: float = 1.0) -> Program:
    """A program of a user."""
    yield

def played(guest, *, file: Trace | None = None):
    yield

def _hidden(guest):
    yield

def helper():
    return 1
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "of mine.py"
    path.write_text(FILE)
    return path


def test_the_programs_of_a_file_can_be_named(file: Path) -> None:
    topology = loads("[machines.a]\nprogram = 'mine'\nparameters = { rate_hz = 5 }", programs=[file])
    (machine,) = topology.machines
    assert machine.program == f"{file}:mine"
    assert machine.parameters == {"to": (), "rate_hz": 5.0}
    assert topology.groups[0].program == "mine"
    assert loads("[machines.a]\nprogram = 'idle'", programs=[file]).machines[0].program == "idle"
    # The runner finds the same function by that name.
    assert import_program(machine.program) is import_program(machine.program)
    assert import_program(machine.program).__name__ == "mine"
    again = loads(f"[machines.a]\nprogram = '{file}:mine'")
    assert again.machines[0].program == machine.program


def test_a_file_is_found_from_the_current_directory_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    assert loads("[machines.a]\nprogram = 'mine'", programs=[file.name]).machines[0].program == f"{file}:mine"


def test_import_program_brings_all_kinds(file: Path) -> None:
    assert import_program("idle") is nodes.programs.idle
    assert import_program("nodes.programs:idle") is nodes.programs.idle
    assert import_program(f"{file}:helper")() == 1
    with pytest.raises(ValueError, match="expected package"):
        import_program("a:b:c")


@pytest.mark.parametrize("name", ["_hidden", "helper", "Guest", "mien"])
def test_a_function_that_a_file_does_not_have(file: Path, name: str) -> None:
    with pytest.raises(TopologyError) as caught:
        loads(f"[machines.a]\nprogram = '{name}'", programs=[file])
    (problem,) = caught.value.problems
    assert (problem.line, problem.key) == (2, "machines.a.program")
    assert "mine, played" in problem.expected
    assert name != "mien" or problem.hint == 'did you mean "mine"?'


def test_only_named_files_are_imported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    (file.parent / "mine.py").write_text("raise SystemExit('it was run')")
    for name in ("mine", "mine.py:mine", "./mine.py:mine"):
        with pytest.raises(TopologyError) as caught:
            loads(f"[machines.a]\nprogram = '{name}'")
        assert "it was run" not in str(caught.value)
    assert "--program FILE" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("def (", "SyntaxError"),
        ("raise RuntimeError('half')", "half"),
        ("import no_such_thing", "no_such_thing"),
        ("x = 1", "none"),
        ("def storm(guest):\n    yield", "storm"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_files_that_hold_no_programs(tmp_path: Path, text: str, got: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(TopologyError) as caught:
        loads("[machines.a]\nprogram = 'idle'", programs=[path])
    (problem,) = caught.value.problems
    assert (problem.file, got in problem.got) == (str(path), True)


def test_two_files_do_not_offer_the_same_name(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("def mine(guest):\n    yield")
    with pytest.raises(TopologyError, match="as in"):
        loads("[machines.a]\nprogram = 'mine'", programs=[file, other])
    assert loads("[machines.a]\nprogram = 'mine'", programs=[file, file])
    with pytest.raises(TopologyError):
        loads("[machines.a]\nprogram = 'idle'", programs=[tmp_path / "none.py"])


def test_foreign_peers_are_named_by_a_word_that_a_group_may_have() -> None:
    machine = (
        '[machines.a]\nprogram = "storm"\nparameters = {{ to = {}, rate_hz = 1 }}\n[machines.b]\nprogram = "idle"\n'
    )
    for value, machines, foreign in (
        ('"foreign"', (), {"to"}),
        ('["foreign", "b"]', (1,), {"to"}),
        ('"others"', (1,), {"to"}),
        ('"all"', (0, 1), set()),
        ('"b"', (1,), set()),
        ('{ all = "foreign" }', (), {"to"}),
    ):
        found = loads(machine.format(value)).machines[0]
        assert (found.parameters["to"], found.foreign) == (machines, foreign), value
    group = loads(machine.format('"foreign"') + '[machines.foreign]\nprogram = "idle"\n').machines[0]
    assert (group.parameters["to"], group.foreign) == ((2,), set())
    with pytest.raises(TopologyError, match='"foreign"'):
        loads(machine.format('"b"') + '[[timeline]]\nat_s = 1\ndo = "kill"\nmachines = "foreign"\n')
