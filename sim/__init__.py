"""Makes machines run: processes, descriptors, clocks.

``sim.run(topology)`` runs one and returns its results; ``sim.open(path)`` opens those of an earlier one. Both
are loaded when they are first used: a worker imports this package too, and needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.results import Run, open
    from sim.runner import run

__all__ = ["Run", "open", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from sim.runner import run

        return run
    if name in ("open", "Run"):
        import sim.results

        return getattr(sim.results, name)
    raise AttributeError(f"module 'sim' has no attribute {name!r}")
