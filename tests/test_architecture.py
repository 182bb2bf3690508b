"""What DESIGN says about the whole, held by walking the sources: layers, owners, sizes, dependencies."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import re
import socket
import subprocess
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LAYERS = ("nodes", "topologies", "sim")  # each may import those before it, and itself

LINES_MAX = 400
FUNCTION_LINES_MAX = 70
# These load their names when they are used; what they are is in ``__init__.pyi``.
LAZY_PACKAGES = ("sim/__init__.py", "topologies/__init__.py")
LONGER_FILES = {
    "nodes/device/ivshmem.py": "one device; its guest side, its server side and its registers share all their state",
}

# A machine opens nothing and knows no clock: these modules cannot give it either.
PURE = {
    "array",
    "__future__",
    "abc",
    "bisect",
    "collections",
    "collections.abc",
    "contextlib",
    "copy",
    "dataclasses",
    "difflib",
    "enum",
    "functools",
    "itertools",
    "math",
    "msgspec",
    "msgspec.structs",
    "operator",
    "re",
    "string",
    "struct",
    "textwrap",
    "types",
    "typing",
    "warnings",
}
NO_DATA_READER_NEEDS = {
    "asyncio",
    "ctypes",
    "fcntl",
    "mmap",
    "multiprocessing",
    "psutil",
    "random",
    "resource",
    "select",
    "selectors",
    "signal",
    "socket",
    "subprocess",
    "threading",
    "time",
    "zmq",
}
FOREIGN_IMPORTS = {
    "zmq": "sim/telemetry/subscriber.py",
    "psutil": "sim/host/resources.py",
    "dask": "sim/distributed/dask/",
    "distributed": "sim/distributed/dask/",
}
FOREIGN_CALLS = {
    r"sendmsg|recvmsg|recvmsg_into|send_fds|recv_fds": "sim/kernel/channel.py",
    r"sendmmsg|recvmmsg": "sim/kernel/mmsg.py",
    r"eventfd|eventfd_read|eventfd_write|EFD_\w+": "sim/kernel/eventfd.py",
}
RUNS_WHAT_IT_READS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
CONTAINS_RUST = {
    "pydantic",
    "pydantic-core",
    "typer",
    "jsonschema",
    "rpds-py",
    "polars",
    "altair",
    "orjson",
    "cryptography",
    "fastdigest",
    "tokenizers",
    "ruff",
    "uv",
    "maturin",
    "setuptools-rust",
}


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
MODULES = {module_of(path): path for path in SOURCES}


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file imports, at any level: the modules themselves, not the names in them."""
    nodes = nodes_by_kind(path)
    found = {alias.name for node in nodes.get(ast.Import, ()) for alias in node.names}
    for node in nodes.get(ast.ImportFrom, ()):
        assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            found.add(inner if inner in MODULES else str(node.module))
    return frozenset(found)


def test_there_is_something_to_look_at():
    assert {module.split(".")[0] for module in MODULES} == set(LAYERS)
    assert imports(ROOT / "sim" / "engines" / "process" / "worker.py") >= {
        "nodes.load",
        "sim.engines.process.control",
        "os",
    }


def first_parts(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def layer(name: str) -> list[Path]:
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] == name]


@functools.cache
def nodes_by_kind(path: Path) -> dict[type[ast.AST], list[Any]]:
    """The nodes of a file by their type: each file is walked once for all rules."""
    found: dict[type[ast.AST], list[Any]] = {}
    for node in ast.walk(tree(path)):
        found.setdefault(type(node), []).append(node)
    return found


def nodes_of(kind: type[ast.AST], paths: list[Path] = SOURCES) -> Iterator[tuple[str, Any]]:
    """Every node of that type, with its file and line."""
    for path in paths:
        for node in nodes_by_kind(path).get(kind, ()):
            yield f"{name_of(path)}:{getattr(node, 'lineno', 1)}", node


# Layers


@pytest.mark.parametrize("name", LAYERS)
def test_imports_run_one_way(name):
    above = {*LAYERS[LAYERS.index(name) + 1 :], "tests", "notebooks"}
    assert not [(name_of(path), wrong) for path in layer(name) if (wrong := first_parts(path) & above)]


def test_a_machine_opens_nothing_and_knows_no_clock():
    foreign = {name_of(path): imports(path) - PURE - set(MODULES) for path in layer("nodes")}
    assert not {name: wrong for name, wrong in foreign.items() if wrong}
    effects = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}
    calls = nodes_of(ast.Call, layer("nodes"))
    assert not [at for at, call in calls if isinstance(call.func, ast.Name) and call.func.id in effects]


def test_coordination_knows_engines_and_time_only_by_their_protocols():
    """An engine can be added without touching the coordinator: it asks the engine's clock, machines and servers."""
    rooms = [path for path in SOURCES if name_of(path).startswith("sim/coordination/")]
    seam = {"sim.engines.base", "sim.engines.messages"}
    known = {name_of(path): imports(path) for path in rooms}
    assert any("sim.engines.base" in names for names in known.values())
    assert not {
        (room, name)
        for room, names in known.items()
        for name in names
        if name == "time"
        or name.startswith(("sim.kernel", "sim.wire"))
        or (name.startswith("sim.engines") and name not in seam)
    }
    for module in seam:
        assert not [name for name in imports(MODULES[module]) if name.startswith("sim.engines.process")]


def test_topologies_import_no_module_with_effects():
    assert not [
        (name_of(path), wrong) for path in layer("topologies") if (wrong := first_parts(path) & NO_DATA_READER_NEEDS)
    ]


def test_no_import_cycles():
    graph = {module: imports(path) & set(MODULES) - {module} for module, path in MODULES.items()}
    while graph:
        free = [module for module, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a cycle among {sorted(graph)}"
        for module in free:
            del graph[module]


def test_no_import_is_for_type_checkers_only():
    assert not [at for at, name in nodes_of(ast.Name) if name.id == "TYPE_CHECKING"]


def test_results_know_no_views():
    """The views draw the results. ``sim.views.notebook`` registers itself with ``sim.results.display``."""
    below = [path for path in SOURCES if name_of(path).startswith(("sim/results/", "sim/recording/"))]
    above = ("sim.views", "rich")
    assert not [(name_of(path), each) for path in below for each in imports(path) if each.startswith(above)]
    dynamic = [at for at, node in nodes_of(ast.Attribute, below) if node.attr == "import_module"]
    assert not dynamic


# Owners


@pytest.mark.parametrize("foreign", FOREIGN_IMPORTS)
def test_each_foreign_module_has_one_owner(foreign):
    """The owner is a file, or a folder."""
    owner = FOREIGN_IMPORTS[foreign]
    users = {name_of(path) for path in SOURCES if foreign in first_parts(path)}
    assert {owner if owner.endswith("/") and name.startswith(owner) else name for name in users} == {owner}


@pytest.mark.parametrize("foreign", FOREIGN_CALLS)
def test_each_foreign_call_has_one_owner(foreign):
    """``sendmsg`` is a method of a socket, whatever that is called; ``os.eventfd`` is a function of ``os``."""
    of_os = foreign.startswith("eventfd")
    users = {
        at.partition(":")[0]
        for at, node in nodes_of(ast.Attribute)
        if re.fullmatch(foreign, node.attr) and (not of_os or getattr(node.value, "id", "") == "os")
    }
    users |= {
        at.partition(":")[0]
        for at, node in nodes_of(ast.ImportFrom)
        if node.module in {"os", "socket"} and any(re.fullmatch(foreign, alias.name) for alias in node.names)
    }
    assert users == {FOREIGN_CALLS[foreign]}


def test_nothing_waits_with_select():
    """It takes no descriptor above 1023, and a worker or a coordinator may have thousands."""
    calls = [at for at, node in nodes_of(ast.Attribute) if ast.unparse(node) == "select.select"]
    assert not calls + [at for at, node in nodes_of(ast.ImportFrom) if node.module == "select"]


def test_nothing_that_is_read_is_run():
    # It writes the caller's own functions; the files that it writes load them, in workers, like any file of programs.
    writers = {"sim/defined_programs.py": {"cloudpickle"}}
    assert not [
        (name_of(path), wrong)
        for path in SOURCES
        if (wrong := first_parts(path) & RUNS_WHAT_IT_READS - writers.get(name_of(path), set()))
    ]
    assert not [at for at, node in nodes_of(ast.Attribute) if re.fullmatch("(recv|send)_(pyobj|serialized)", node.attr)]
    switches = [(at, node) for at, node in nodes_of(ast.keyword) if node.arg in {"allow_pickle", "shell"}]
    assert not [at for at, node in switches if ast.unparse(node.value) != "False"]


# Shape


def test_a_package_only_re_exports():
    for path in SOURCES:
        if path.name == "__init__.py":
            check_re_exports(path)


def check_re_exports(path: Path) -> None:
    body = tree(path).body
    assert ast.get_docstring(tree(path)), f"{name_of(path)}: a package says what it contains"
    lazy = name_of(path) in LAZY_PACKAGES
    for node in body[1:]:
        match node:
            case ast.ImportFrom(module=str(module)) if module == "__future__" or module.split(".")[0] in LAYERS:
                continue
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                continue
            case ast.Import() | ast.FunctionDef(name="__getattr__") | ast.Assign(targets=[ast.Name()]) if lazy:
                continue
        pytest.fail(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)[:80]}")
    imported = [alias.asname or alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
    exported = _all(path)
    assert set(imported) - {"annotations"} <= set(exported or []), name_of(path)


def _all(path: Path) -> list[str] | None:
    for node in tree(path).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=ast.List(elts=[ast.Constant(), *_]) as value):
                return [str(name) for name in ast.literal_eval(value)]
    return None


def test_every_export_is_defined():
    for path in SOURCES:
        check_exports(path, _all(path) or [])


@pytest.mark.parametrize("name", LAZY_PACKAGES)
def test_a_lazy_package_loads_what_it_declares(name):
    package = importlib.import_module(name.partition("/")[0])
    imports = [node for node in tree((ROOT / name).with_suffix(".pyi")).body if isinstance(node, ast.ImportFrom)]
    declared = sorted(str(alias.asname) for node in imports for alias in node.names)
    assert declared == package.__all__ == sorted(package._HOMES)
    for each in declared:
        assert getattr(package, each) is getattr(importlib.import_module(package._HOMES[each]), each)


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    """Every name that a file defines or imports; of a lazy package those that it declares."""
    defined = set()
    for node in ast.walk(tree(path.with_suffix(".pyi") if name_of(path) in LAZY_PACKAGES else path)):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                defined.add(name)
            case ast.ImportFrom(names=names) | ast.Import(names=names):
                defined |= {alias.asname or alias.name for alias in names}
    return frozenset(defined)


def test_tests_and_examples_import_names_that_exist():
    """A renamed module fails here, and not only in the test that imports it."""
    wrong = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py"), ROOT / "docs" / "generate.py"]:
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.ImportFrom) or str(node.module).split(".")[0] not in LAYERS:
                continue
            source = MODULES.get(str(node.module))
            known = names_in(source) if source else frozenset()
            names = [alias.name for alias in node.names]
            missing = [name for name in names if name not in known and f"{node.module}.{name}" not in MODULES]
            if missing:
                wrong.append((name_of(path), node.module, missing))
    assert not wrong


def check_exports(path: Path, exported: list[str]) -> None:
    assert set(exported) <= names_in(path), name_of(path)
    assert len(exported) == len(set(exported)), name_of(path)


def test_a_file_can_be_seen_at_once():
    lines = {name_of(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > LINES_MAX}.keys() <= LONGER_FILES.keys()
    assert all(lines[name] <= 1.1 * LINES_MAX for name in LONGER_FILES)


@pytest.mark.parametrize("name", LAYERS)
def test_a_class_has_a_name_of_its_own_in_its_layer(name):
    """A private class is known in its module only."""
    places: dict[str, list[str]] = {}
    for path in layer(name):
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name_of(path))
    assert not {twice: where for twice, where in places.items() if len(where) > 1}


def test_a_function_can_be_seen_at_once():
    functions = [*nodes_of(ast.FunctionDef), *nodes_of(ast.AsyncFunctionDef)]
    assert not [
        (at, node.name, lines)
        for at, node in functions
        if (lines := node.end_lineno - node.lineno + 1) > FUNCTION_LINES_MAX
    ]


# What ships


def runtime_closure(extra: str = "") -> set[str]:
    """The distributions that come with ``pip install ivshmem-sim``, all the way down, with one extra or none."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"][extra] if extra else []
    todo = [Requirement(text) for text in [*project["dependencies"], *extras]]
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        todo += [Requirement(text) for text in importlib.metadata.distribution(name).requires or []]
    return seen


def test_nothing_that_ships_contains_rust():
    closure = runtime_closure()
    assert {"msgspec", "pyzmq", "numpy"} <= closure
    assert not closure & CONTAINS_RUST


def test_nothing_of_the_cluster_extra_contains_rust():
    pytest.importorskip("distributed")  # without the extra `dev`, its distributions are not there to be asked
    assert not runtime_closure("dist") & CONTAINS_RUST


def test_nothing_is_imported_that_only_development_brings():
    development = {"hypothesis", "pytest", "nbclient", "packaging"} | {name.replace("-", "_") for name in CONTAINS_RUST}
    allowed = {"sim/pytest_plugin.py": {"pytest"}}  # pytest loads it, and no other module does
    assert not [
        (name_of(path), wrong)
        for path in SOURCES
        if (wrong := first_parts(path) & development - allowed.get(name_of(path), set()))
    ]
    assert not [name_of(path) for path in SOURCES if "sim.pytest_plugin" in imports(path)]


def test_os_sys_means_the_standard_library():
    """The package of that name on PyPI brings 45 others and names that are not its own."""
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("os-sys")
    for name in ("pyproject.toml", "constraints.txt"):
        if (ROOT / name).exists():
            assert not re.search(r"os[-_.]sys", (ROOT / name).read_text(), re.IGNORECASE)


# Prose


PERSONS = re.compile(
    r"\b(whoever|whomever|nobody|somebody|anybody|everybody|he|him|his|she|(?:those|them|ones?|all) who)\b",
    re.IGNORECASE,
)


def prose(path: Path) -> Iterator[str]:
    """The lines of a page; of a Python file those of its comments and of strings that stand alone."""
    if path.suffix != ".py":
        yield from path.read_text().splitlines()
        return
    for expression in nodes_by_kind(path).get(ast.Expr, ()):
        if isinstance(expression.value, ast.Constant) and isinstance(expression.value.value, str):
            yield from expression.value.value.splitlines()
    with path.open("rb") as file:
        yield from (token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT)


def test_machines_and_programs_are_no_persons():
    """They are "it", and a clause about them begins with "that"."""
    pages = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").glob("*.py"),
    ]
    examples = [path for path in (ROOT / "examples").rglob("*") if path.suffix in {".py", ".c", ".toml", ".md"}]
    suspects = [path for path in (*SOURCES, *pages, *examples) if PERSONS.search(path.read_text())]
    assert not [(name_of(path), line.strip()) for path in suspects for line in prose(path) if PERSONS.search(line)]


@functools.cache
def published() -> list[Path]:
    """Everything that is, or could be, committed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_nothing_published_names_this_machine():
    here = {str(ROOT), str(Path.home()) + "/"}
    host = socket.gethostname()
    patterns = [re.escape(place) for place in here if len(place) > 3]
    if len(host) > 3 and host != "localhost":
        patterns.append(rf"\b{re.escape(host)}\b")
    told = re.compile("|".join(patterns).encode())
    places = [f"{name_of(path)}: {match[0]!r}" for path in published() if (match := told.search(path.read_bytes()))]
    assert not places
