"""Extension of Griffe for the pages of the Python interface: a default that is a constant's name becomes its value."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import griffe

__all__ = ["ConstantDefaults"]

PLAIN = (str, int, float, bytes)


class ConstantDefaults(griffe.Extension):
    """Shows ``timeout=20.0`` where the source has ``timeout=TIMEOUT_S``."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Replace the defaults of one function that are expressions with a plain value."""
        named = [each for each in func.parameters if isinstance(each.default, griffe.Expr)]
        if not named:
            return
        found: Any = importlib.import_module(func.module.path)
        for name in func.path.removeprefix(f"{func.module.path}.").split("."):
            found = getattr(found, name)
        values = inspect.signature(found).parameters
        for parameter in named:
            if isinstance(value := values[parameter.name].default, PLAIN):
                parameter.default = repr(value)
