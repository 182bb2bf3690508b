"""Makes machines run: processes, descriptors, clocks.

``sim.run(topology)`` runs one and returns its results; ``sim.open(path)`` opens those of an earlier one,
``sim.compare(a, b)`` holds one against another. All are loaded when they are first used: a worker imports this
package too, and needs none. What they are is declared in ``__init__.pyi``.
"""

import importlib

__all__ = ["Run", "compare", "open", "run"]

_HOMES = {"run": "sim.runner", "open": "sim.results", "Run": "sim.results", "compare": "sim.results.compare"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    # Notebooks show what these return: the view of each class is registered first.
    importlib.import_module("sim.views.notebook")
    return getattr(importlib.import_module(_HOMES[name]), name)
