"""Find the function that a program's name stands for: all that a machine's own process needs of this layer.

``package.module:function`` is found as Python finds any module: installed, or in a folder that PYTHONPATH names. The
current directory is not searched; a file there is named with ``--program FILE``. A program that is named is imported:
its code runs with full trust.
"""

from __future__ import annotations

import importlib
import re
import sys
import zlib
from types import ModuleType
from typing import Any

SHIPPED = "nodes.programs"
MODULE_NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
FILE_NAME = re.compile(r"(/.*\.py):([A-Za-z_]\w*)", re.ASCII | re.DOTALL)


def import_program(name: str) -> Any:
    """Return the function ``name``: a shipped program, ``package.module:function`` or ``/path/file.py:function``.

    Raises:
        ValueError: The name has another form.
        Exception: Whatever the imported code raises.
    """
    if ":" not in name:
        return getattr(importlib.import_module(SHIPPED), name)
    if (found := FILE_NAME.fullmatch(name)) is not None:
        return getattr(import_file(found[1]), found[2])
    if (found := MODULE_NAME.fullmatch(name)) is None:
        raise ValueError(f"expected package.module:function, got {name!r}")
    return getattr(importlib.import_module(found[1]), found[2])


def import_file(path: str, *, again: bool = False) -> ModuleType:
    """Import the file ``path``, absolute, once, under a name that is the same in every process.

    The file may import what lies beside it: its folder is put last on the import path, where it hides no module that
    is found elsewhere.

    Args:
        path: The file.
        again: Execute the file as it is now, even if it has been imported before.

    Raises:
        ImportError: The file is not Python; or whatever its code raises.
    """
    stem = re.sub(r"\W", "_", path.rpartition("/")[2].removesuffix(".py"), flags=re.ASCII)
    name = f"ivsim_program_{stem}_{zlib.crc32(path.encode('utf-8', 'surrogateescape')):08x}"
    if name in sys.modules and not again:
        return sys.modules[name]
    from importlib import util

    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no file of Python")
    if (folder := path.rpartition("/")[0] or "/") not in sys.path:
        sys.path.append(folder)
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
