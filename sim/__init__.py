"""Makes machines run: processes, descriptors, clocks.

``sim.run(topology)`` runs one and returns its results, ``sim.sweep(topology, axes)`` runs it with many values;
``sim.open(path)`` opens the results of an earlier one, ``sim.compare(a, b)`` compares two.
``sim.serve()`` is a server in this process, ``sim.serve_process()`` one in a child process, ``sim.connect(path)`` a
peer of any server. All are loaded when they are first used: a worker imports this package too, and needs none. What
they are is declared in ``__init__.pyi``.
"""

import importlib

_HOMES = {
    "AsyncPeer": "sim.async_client",
    "Peer": "sim.client",
    "Run": "sim.results",
    "Server": "sim.server",
    "ServerProcess": "sim.server_process",
    "compare": "sim.results.compare",
    "connect": "sim.client",
    "connect_async": "sim.async_client",
    "open": "sim.results",
    "run": "sim.runner",
    "serve": "sim.server",
    "serve_process": "sim.server_process",
    "sweep": "sim.sweeps.run_sweep",
}
__all__ = list(_HOMES)
_SHOWN = ("Run", "compare", "open", "run", "sweep")


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'sim' has no attribute {name!r}")
    if name in _SHOWN:
        # Notebooks show what these return: the view of each class is registered first.
        importlib.import_module("sim.views.notebook")
    return getattr(importlib.import_module(_HOMES[name]), name)
