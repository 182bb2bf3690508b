"""Programs defined as functions in a notebook cell or a script, written to files that every worker can import.

cloudpickle writes a function with what it refers to. The file loads it again: that runs its code, with full trust, as
any file of programs does.
"""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from nodes.errors import UsageError
from nodes.guest import Program

ProgramSource: TypeAlias = "str | os.PathLike[str] | Callable[..., Program]"
Programs: TypeAlias = "ProgramSource | Sequence[ProgramSource]"

FILE = """\
# A program that was defined in a cell or a script, as cloudpickle has it. To load it runs its code, with full trust.
import base64
import cloudpickle

{name} = cloudpickle.loads(base64.b64decode("{data}"))
{name}.__module__ = __name__
"""


@contextlib.contextmanager
def program_files(programs: Programs) -> Iterator[list[str]]:
    """The files of ``programs``; those of functions are removed at the end.

    Raises:
        UsageError: cloudpickle is not installed, or it cannot write a function.
    """
    given = [programs] if isinstance(programs, str | os.PathLike) or callable(programs) else programs
    with contextlib.ExitStack() as stack:
        files = []
        for program in given:
            if callable(program):
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ivsim-program-"))
                files.append(_write(program, Path(folder)))
            else:
                files.append(os.fspath(program))
        yield files


def _write(function: Callable[..., Program], folder: Path) -> str:
    try:
        import cloudpickle
    except ImportError:
        raise UsageError(
            "a program that is a function needs cloudpickle: pip install 'ivshmem-sim[notebook]'"
        ) from None
    name = getattr(function, "__name__", "")
    if not name.isidentifier():
        raise UsageError(f"expected a program with a name, defined by def, got {function!r}")
    try:
        data = base64.b64encode(cloudpickle.dumps(function)).decode()
    except Exception as error:  # whatever an object that the function refers to raises
        raise UsageError(f"{name}: cannot be sent to other processes: {error}") from error
    file = folder / f"{name}.py"
    file.write_text(FILE.format(name=name, data=data))
    return str(file)
