"""From the name of a program to its function, however it is named: what a machine's own process needs of this layer.

Naming a program of somebody else's imports its code: it runs, with full trust.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import zlib
from types import ModuleType
from typing import Any

__all__ = ["FILE_NAME", "MODULE_NAME", "SHIPPED", "import_file", "import_program"]

SHIPPED = "nodes.programs"
MODULE_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
FILE_NAME = re.compile(r"(/.*\.py):([A-Za-z_]\w*)", re.ASCII | re.DOTALL)


def import_program(name: str) -> Any:
    """What ``name`` stands for: a shipped program, ``package.module:function`` or ``/path/file.py:function``.

    Raises whatever importing raises; a name of another form is a `ValueError`.
    """
    if ":" not in name:
        return getattr(importlib.import_module(SHIPPED), name)
    if (found := FILE_NAME.fullmatch(name)) is not None:
        return getattr(import_file(found[1]), found[2])
    if (found := MODULE_NAME.fullmatch(name)) is None:
        raise ValueError(f"expected package.module:function, got {name!r}")
    return getattr(importlib.import_module(found[1]), found[2])


def import_file(path: str, *, again: bool = False) -> ModuleType:
    """The module in a file, an absolute path; imported once, under a name that is the same in every process.

    ``again``: as the file is now, whatever was imported before.
    """
    stem = re.sub(r"\W", "_", path.rpartition("/")[2].removesuffix(".py"), flags=re.ASCII)
    name = f"ivsim_program_{stem}_{zlib.crc32(path.encode('utf-8', 'surrogateescape')):08x}"
    if name in sys.modules and not again:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no file of Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
