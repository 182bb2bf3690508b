"""The program of a machine: found by its name, with the parameters of its signature.

A program is a generator function whose first parameter is the guest. A topology may set its keyword-only parameters;
each needs an annotation: int, float, str, bool, ``X | None``, ``Literal``, arrays of those, `nodes.guest.Peers` or
`nodes.guest.Trace`. The name of a parameter has its unit, which sets its range:

    *_hz                      0.000001 .. 1e9
    *_s, *_ms, *_us, *_ns     0 .. a week
    *_bytes                   at least 0
    burst, *_burst, count     at least 1
    vector                    0 .. 2047
    offset, *_offset          0 .. the last 64-bit word of the shared memory

A program of another package and a file of programs are imported: their code runs with full trust. A file is one that
the caller named; files beside the topology are not used.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path as FilePath
from typing import Any

from msgspec import Struct
from msgspec import inspect as shapes

from nodes import programs
from nodes.errors import UsageError
from nodes.guest import Peers, Trace
from nodes.spelling import nearest
from topologies.language.problems import Problem, TopologyError, show
from topologies.language.values import describe, leaves
from topologies.resolve.importing import FILE_NAME, MODULE_NAME, import_file, import_program

_WEEK_S = 604_800
OFFSET = re.compile(r"(.*_|)offset")
"""Parameters that are offsets in the shared memory, in bytes; the topology has the size of that."""

_RANGES: tuple[tuple[re.Pattern[str], float, float | None], ...] = (
    (re.compile(r"(.*_|)hz"), 1e-6, 1e9),
    (re.compile(r".*_s"), 0, _WEEK_S),
    (re.compile(r".*_ms"), 0, _WEEK_S * 10**3),
    (re.compile(r".*_us"), 0, _WEEK_S * 10**6),
    (re.compile(r".*_ns"), 0, _WEEK_S * 10**9),
    (re.compile(r".*_bytes"), 0, None),
    (re.compile(r"(.*_|)burst|count"), 1, None),
    (re.compile(r"vector"), 0, 2047),
    (OFFSET, 0, None),
)


class ProgramError(UsageError):
    """A program that cannot be run: not found, not importable, or not a generator function of the right form."""

    def __init__(self, expected: str, got: str, hint: str = "") -> None:
        super().__init__(f"expected {expected}, got {got}" + (f" ({hint})" if hint else ""))
        self.expected = expected
        self.got = got
        self.hint = hint


class Parameter(Struct, frozen=True):
    """One keyword of a program; ``default`` has no meaning if it is ``required``."""

    name: str
    annotation: Any
    names_peers: bool
    required: bool
    default: Any = None
    reads_trace: bool = False

    @property
    def expected(self) -> str:
        """Its values in words."""
        if self.names_peers:
            return "names of groups or machines"
        return "the name of a trace's file" if self.reads_trace else describe(self.annotation)

    @property
    def limits(self) -> str:
        """Its range in words; "" without one."""
        low, high = self.range or (None, None)
        return "" if low is None else f"at least {low:g}" if high is None else f"from {low:g} to {high:g}"

    @property
    def range(self) -> tuple[float, float | None] | None:
        """The least and the greatest number for the unit in the name, or None."""
        for pattern, low, high in _RANGES:
            if pattern.fullmatch(self.name):
                return low, high
        return None


class Program(Struct, frozen=True):
    """A program that can be run: ``function(guest, **parameters)`` makes its generator."""

    name: str
    function: Callable[..., Any]
    parameters: tuple[Parameter, ...]

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]


class ProgramFiles:
    """Files of Python whose generator functions can be named like shipped programs; their code runs with full trust.

    Raises:
        TopologyError: a file cannot be imported or has no programs, or two programs have the same name.
    """

    def __init__(self, files: Iterable[str | FilePath] = ()) -> None:
        self._names: dict[str, str] = {}
        self._files: list[str] = []
        problems = []
        for file in dict.fromkeys(str(FilePath(file).absolute()) for file in files):
            try:
                self._add(file)
            except ProgramError as error:
                problems.append(Problem(file, 0, "", error.expected, error.got, error.hint))
        if problems:
            raise TopologyError(problems)

    def _add(self, file: str) -> None:
        module = _module(file, lambda: import_file(file, again=True))
        self._files.append(file)
        names = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and inspect.isgeneratorfunction(value) and value.__module__ == module.__name__
        ]
        if not names:
            raise ProgramError("a file with generator functions: programs", "none")
        for name in names:
            if name in shipped_programs():
                raise ProgramError("names that no shipped program has", name)
            if name in self._names:
                raise ProgramError("names that no other file of programs has", f"{name}, as in {self._names[name]}")
            self._names[name] = f"{file}:{name}"

    def find_function(self, name: str) -> str:
        """The full name of ``module:function`` of a topology; ``module`` may name a file. Raises `ProgramError`."""
        module, _, function = name.rpartition(":")
        file = next((path for path in self._files if FilePath(path).stem == module), None)
        full = f"{file}:{function}" if file else name
        if not callable(found := _imported(full)):
            raise ProgramError("a function of one argument, the state", f"{show(name)}, a {type(found).__name__}")
        return full

    def find(self, name: str) -> Program:
        """The program with the name in a topology. Raises `ProgramError`."""
        if name in self._names:
            return resolve_program(self._names[name])
        try:
            return resolve_program(name)
        except ProgramError as error:
            if ":" in name or not self._names:
                raise
            expected = f"{error.expected}, {', '.join(self._names)}"
            raise ProgramError(expected, error.got, nearest(name, self._names) or error.hint) from None


def resolve_program(name: str) -> Program:
    """The program ``name``: a shipped one, ``package.module:function`` or ``/path/to/file.py:function``.

    Raises `ProgramError`, also for any exception of the module that is imported.
    """
    function = _imported(name) if ":" in name else _shipped(name)
    if not callable(function) or not inspect.isgeneratorfunction(inspect.unwrap(function)):
        raise ProgramError("a generator function", f"{show(name)}, which is {_kind(function)}")
    return Program(name, function, tuple(_parameters(name, function)))


def shipped_programs() -> tuple[str, ...]:
    """The names of the shipped programs."""
    return tuple(sorted(programs.__all__))


def _shipped(name: str) -> object:
    known = shipped_programs()
    if name not in known:
        hint = nearest(name, known) or "a program of your own is written package.module:function"
        raise ProgramError(f"one of the programs {', '.join(known)}", show(name), hint)
    return import_program(name)


def _imported(name: str) -> object:
    in_file = FILE_NAME.fullmatch(name)
    found = in_file or MODULE_NAME.fullmatch(name)
    if found is None or (in_file is None and ".py:" in name):
        hint = "a file of programs is named with --program FILE" if ".py:" in name else ""
        raise ProgramError("package.module:function", show(name), hint)
    place, function_name = found[1], found[2]
    module = _module(place, lambda: import_file(place) if in_file else importlib.import_module(place))
    missing_marker = object()
    function = getattr(module, function_name, missing_marker)
    if function is missing_marker:
        known = [key for key, value in vars(module).items() if inspect.isgeneratorfunction(value)]
        got = f"{place}, which has no {function_name}"
        raise ProgramError("a generator function of the module", got, nearest(function_name, known))
    return function


def _module(name: str, bring: Callable[[], types.ModuleType]) -> types.ModuleType:
    """The module that ``bring`` imports; ``name`` is its name in messages. Raises `ProgramError`."""
    expected = "a module that can be imported"
    try:
        return bring()
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if name == missing or name.startswith(missing + "."):
            hint = "install it, name its folder in PYTHONPATH, or give its file with --program FILE"
            raise ProgramError(expected, f"no module {missing}", hint) from None
        raise ProgramError(expected, f"{name}, which needs {missing}, which is not installed") from None
    except (Exception, SystemExit) as error:  # the module's own code can raise anything
        got = f"{name}, which fails: {type(error).__name__}: {show(str(error))[1:-1]}"
        raise ProgramError(expected, got) from None


def _kind(value: object) -> str:
    if inspect.isclass(value):
        return "a class"
    if inspect.isfunction(value):
        return "a function without yield"
    return f"a {type(value).__name__}"


def _parameters(program: str, function: Callable[..., Any]) -> Iterator[Parameter]:
    expected = "def program(guest, *, keyword: annotation = default)"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ProgramError(expected, f"{show(program)}: {error}") from None
    for place, parameter in enumerate(signature.parameters.values()):
        if place == 0 and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            continue
        if place == 0 or parameter.kind is not parameter.KEYWORD_ONLY:
            raise ProgramError(expected, f"{show(program)} with {parameter} as parameter {place + 1}")
        yield _parameter(program, function, parameter)
    if not signature.parameters:
        raise ProgramError(expected, f"{show(program)} without parameters")


def _parameter(program: str, function: Callable[..., Any], parameter: inspect.Parameter) -> Parameter:
    """One keyword-only parameter; its annotation is evaluated alone.

    `typing.get_type_hints` of the whole function fails when an annotation exists for type checkers only, as that of
    the guest often does.
    """
    required = parameter.default is parameter.empty
    default = None if required else parameter.default
    if parameter.annotation is parameter.empty:
        got = f"parameter {parameter.name} of {show(program)} without one"
        raise ProgramError("an annotation for each parameter", got)
    try:
        holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
        names = {**vars(builtins), **getattr(inspect.unwrap(function), "__globals__", {})}
        known = {**names, "Peers": Peers, "Trace": Trace}
        hints = typing.get_type_hints(holder, globalns=names, localns=known, include_extras=True)
        annotation = hints[parameter.name]
        names_peers, reads_trace = _mentions(parameter.annotation, Peers), _mentions(parameter.annotation, Trace)
        if not (names_peers or reads_trace) and not _can_be_filled(shapes.type_info(annotation)):
            raise TypeError("a topology cannot write such a value")
    except Exception as error:  # an annotation is an expression: evaluating it can raise anything
        got = f"parameter {parameter.name} of {show(program)}: {parameter.annotation}: {error}"
        raise ProgramError("a type that TOML can fill", got) from None
    return Parameter(parameter.name, annotation, names_peers, required, default, reads_trace)


def _mentions(annotation: Any, kind: Any) -> bool:
    """Whether an annotation, as written, is `Peers` (or `Trace`), or that ``| None``.

    The evaluated one does not tell: Peers is a ``Sequence[int]`` then, like an array of numbers.
    """
    if any(part == kind for part in (annotation, *typing.get_args(annotation))):
        return True
    written = annotation if isinstance(annotation, str) else repr(annotation)
    return re.search(rf"\b{'Trace' if kind is Trace else 'Peers'}\b", written) is not None


def _can_be_filled(shape: shapes.Type) -> bool:
    """Whether TOML has values of ``shape``."""
    lists = shapes.ListType | shapes.VarTupleType
    plain = shapes.BoolType | shapes.IntType | shapes.FloatType | shapes.StrType | shapes.LiteralType
    return all(
        _can_be_filled(leaf.item_type) if isinstance(leaf, lists) else isinstance(leaf, plain) for leaf in leaves(shape)
    )
